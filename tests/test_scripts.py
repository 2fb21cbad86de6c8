"""Every script starts fast, without heavy libraries, and every folder keeps to the law of imports."""

import ast
import importlib
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("data", "model", "training", "export", "quantize", "runtime", "benchmarks")
SCRIPTS = sorted(
    str(path.relative_to(ROOT))
    for folder in FOLDERS
    for path in (ROOT / folder).glob("*.py")
    if "\n    run(app)\n" in path.read_text()
)
MAY_IMPORT = {
    "runtime": set(),
    "data": {"runtime"},
    "model": {"runtime", "data"},
    "training": {"runtime", "data", "model"},
    "export": {"runtime", "data", "model", "quantize"},  # a file is linted before it becomes a plan
    "quantize": {"runtime", "data", "model", "training"},
    "benchmarks": {"runtime", "data", "model", "training", "export", "quantize"},
}
NEVER = {"runtime": {"torch"}, "data": {"torch"}, "model": {"onnxruntime", "tensorrt"}}


def test_there_are_scripts() -> None:
    assert {"runtime/infer.py", "export/to_onnx.py", "quantize/ptq.py", "benchmarks/accuracy.py"} <= set(SCRIPTS)


@pytest.mark.parametrize("script", [*SCRIPTS, "gmin.py"])
def test_help_is_fast_and_needs_nothing_heavy(script: str, tmp_path: Path) -> None:
    for name in (
        "torch",
        "onnx",
        "onnxruntime",
        "openvino",
        "tensorrt",
        "tensorrt_rtx",
        "cv2",
        "numpy",
        "pooch",
        "safetensors",
    ):
        (tmp_path / f"{name}.py").write_text("raise ImportError('blocked by the test')")
    empty = tmp_path / "empty_script.py"
    empty.write_text("import typer\napp = typer.Typer()\napp.command()(lambda: None)\napp()\n")
    seconds = min(help_seconds(ROOT / script, tmp_path) for _ in range(3))
    # 1.3 times an empty command's, 0.34 s on a quiet machine; on a busy one both take longer, and are compared
    assert seconds < 0.5 or seconds < 2 * min(help_seconds(empty, tmp_path) for _ in range(3))


def help_seconds(script: Path, blocked: Path) -> float:
    """Processor time of ``--help``; modules in the folder ``blocked`` stand before those that are installed."""
    before = os.times()
    done = subprocess.run(
        [sys.executable, script, "--help"], env={"PYTHONPATH": str(blocked), "PATH": "/usr/bin"}, capture_output=True,
        text=True, timeout=60,
    )  # fmt: skip
    after = os.times()
    assert done.returncode == 0, done.stderr
    assert "--help" in done.stdout
    return after.children_user + after.children_system - before.children_user - before.children_system


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.split(".")[0])
    return found


@pytest.mark.parametrize("folder", FOLDERS)
def test_imports_run_one_way(folder: str) -> None:
    for path in (ROOT / folder).rglob("*.py"):
        used = imports(path)
        assert used & set(FOLDERS) <= MAY_IMPORT[folder] | {folder}, path
        assert not used & NEVER.get(folder, set()), path


def test_the_runtime_installs_without_torch() -> None:
    """What the base dependencies and the engines bring, read from the project's own declaration."""
    text = (ROOT / "pyproject.toml").read_text()
    base = text[text.index("dependencies = [") : text.index("[project.optional-dependencies]")]
    assert "torch" not in base
    assert "onnx" not in base


def documented_commands() -> list[tuple[str, str]]:
    """Every command line of the project's own scripts in the documents: (script, arguments)."""
    documents = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    text = "\n".join(path.read_text() for path in documents).replace("\\\n", " ")
    found = re.findall(rf"^(?:python|torchrun .*?) ?((?:{'|'.join(FOLDERS)})/\w+\.py)([^\n#`]*)", text, re.MULTILINE)
    return sorted({(script, arguments.strip()) for script, arguments in found})


def test_there_are_documented_commands() -> None:
    assert {"runtime/infer.py", "training/train.py", "quantize/ptq.py"} <= {
        script for script, _ in documented_commands()
    }


@pytest.mark.parametrize(("script", "arguments"), documented_commands())
def test_documented_commands_are_taken_by_their_scripts(script: str, arguments: str) -> None:
    """Parsed by the real command line, without running: unknown options and stray arguments fail."""
    module = importlib.import_module(script.removesuffix(".py").replace("/", "."))
    command = typer.main.get_command(module.app)
    command.make_context(script, shlex.split(arguments.replace("…", "x")))
    named = [word for word in shlex.split(arguments) if word.startswith(FOLDERS) and "/" in word]
    for path in named:
        assert (ROOT / path).exists(), f"{path} is documented and not there"
