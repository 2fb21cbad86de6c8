"""Check our use of TensorRT against the ``tensorrt-stubs`` package: ``make types`` runs it after the ordinary check.

The stubs cannot be installed: they depend on the libraries, and their folder would make ``import tensorrt`` succeed. So
they are fetched without what they need, unpacked, mended (some lines are not Python) and shown to mypy alone.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
STUBS = "tensorrt-stubs==10.13.0.35.1"
MENDED = {
    "(self, in: ": "(self, inputs: ",
    "(self: IPluginV3, in: ": "(self: IPluginV3, inputs: ",
    "power: Weights = None, channel_axis: int)": "power: Weights = None, *, channel_axis: int)",
    "import tensorrt_libs as tensorrt_libs": "",
}


def main() -> int:
    """Fetch, mend, check; mypy's exit code."""
    with tempfile.TemporaryDirectory() as folder:
        fetch = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:", STUBS]
        subprocess.run([*fetch, "-d", folder], check=True)
        (wheel,) = Path(folder).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder)
        for path in Path(folder).glob("tensorrt*/*.pyi"):
            text = path.read_text()
            for wrong, right in MENDED.items():
                text = text.replace(wrong, right)
            text = re.sub(r"^bool: .*$", "", text, flags=re.MULTILINE)  # hides the builtin of that name
            path.write_text("# mypy: ignore-errors\n" + text)
        cache = ["--cache-dir", str(Path(folder) / "cache")]
        files = ["runtime/engines/tensorrt.py", "runtime/flavour.py", "export/builder.py"]
        checked = [sys.executable, "-m", "mypy", *cache, *files]
        return subprocess.run(checked, cwd=ROOT, env={**os.environ, "MYPYPATH": folder}).returncode


if __name__ == "__main__":
    sys.exit(main())
