"""Peak memory of one engine, in a process of its own: inside the bench, all engines share one heap.

python benchmarks/memory.py openvino:gmin_x4.onnx 320x180 2
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

if not __package__:  # started as a file: import from the repository, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks.protocol import Size, size_from_text

MEANING = (
    "highest resident memory of a process that opens the engine and runs it twice, less what Python and numpy held "
    "before: the library, the weights and the activations"
)


def peak_memory_mb(spec: str, size: Size, *, threads: int) -> float | None:
    """Peak memory of opening and running an ENGINE, in 10^6 bytes; None where the system does not tell.

    Raises:
        RuntimeError: the process failed.
    """
    command = [sys.executable, str(Path(__file__).resolve()), spec, str(size), str(threads)]
    done = subprocess.run(command, capture_output=True, text=True)  # noqa: S603 - this interpreter and this file
    if done.returncode:
        raise RuntimeError(f"measuring the memory of {spec} failed: {done.stderr.strip().splitlines()[-1:]}")
    result: float | None = json.loads(done.stdout.splitlines()[-1])
    return result


def resident_mb(field: str) -> float | None:
    """Resident memory of this process in 10^6 bytes, now (VmRSS) or at its highest (VmHWM).

    Linux only. ``getrusage`` would answer elsewhere too, but its peak survives exec: a child of a large process starts
    with the size of its parent.
    """
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1.024e-3 for line in lines if line.startswith(f"{field}:")), None)


def _measure(spec: str, size: Size, threads: int) -> float | None:
    from contextlib import closing

    import numpy as np

    batch = np.random.default_rng(0).random((1, 3, size.height, size.width), dtype=np.float32)
    before = resident_mb("VmRSS")
    from benchmarks.exported import open_timed

    with closing(open_timed(spec, threads=threads).engine) as engine:
        engine.infer(batch)
        engine.infer(batch)
    after = resident_mb("VmHWM")
    return None if before is None or after is None else round(after - before, 1)


if __name__ == "__main__":
    sys.stdout.write(json.dumps(_measure(sys.argv[1], size_from_text(sys.argv[2]), int(sys.argv[3]))) + "\n")
