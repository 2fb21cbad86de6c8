"""Every file of the hostile set is refused with a reason: quickly, in little memory, without a crash or a trace."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT
from tests.hostile.generate import Case, write_hostile_set

SECONDS, MEGABYTES = 2.0, 512


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> list[Case]:
    return write_hostile_set(tmp_path_factory.mktemp("hostile"))


def test_there_are_enough(hostile: list[Case]) -> None:
    kinds = Counter(case.kind for case in hostile)
    assert sum(kinds.values()) >= 60
    assert set(kinds) == {"picture", "model", "checkpoint", "manifest"}


@pytest.mark.parametrize("kind", ["picture", "streamed", "model", "checkpoint", "manifest"])
def test_all_are_refused(hostile: list[Case], kind: str) -> None:
    """In one process for each kind: a crash of a native library ends it, and the next file's line is missing."""
    files = [str(case.path) for case in hostile if case.kind == ("picture" if kind == "streamed" else kind)]
    before = {path.name for path in Path(files[0]).parent.iterdir()}
    done = subprocess.run(
        [sys.executable, "-m", "tests.hostile.feed", kind, *files],
        capture_output=True,
        text=True,
        timeout=200,
        cwd=ROOT,
        env={**os.environ, "OPENCV_LOG_LEVEL": "OFF"},
    )
    reports: list[dict[str, Any]] = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(reports) == len(files), f"died at {files[len(reports)]}: {done.stderr[-2000:]}"
    assert done.returncode == 0
    assert [report for report in reports if report["outcome"] != "refused"] == []
    assert [report for report in reports if len(report["reason"]) < 20 or "\n" in report["reason"]] == []
    assert [report for report in reports if report["cpu_seconds"] > SECONDS] == []
    assert reports[-1]["peak_megabytes"] < MEGABYTES
    assert {path.name for path in Path(files[0]).parent.iterdir()} == before
    assert not Path("/tmp/gmin-hostile-was-here").exists()


@pytest.mark.parametrize(
    ("name", "option"),
    [
        ("bomb.png", None), ("claims_65535.jpg", "--stream"),
        ("doubling.onnx", "--engine"), ("million_fields.onnx", "--engine"),
    ],
)  # fmt: skip
def test_a_command_refuses_with_exit_code_2(hostile: list[Case], tmp_path: Path, name: str, option: str | None) -> None:
    """As a user starts it, with the start of Python in the time and the memory."""
    (path,) = (case.path for case in hostile if case.path.name == name)
    arguments = (
        [ROOT / "data/chelsea.png", "--engine", path] if option == "--engine" else [path, "--engine", "ort:gmin_x4"]
    )
    if option == "--stream":
        arguments.append(option)
    target = tmp_path / ("out.tif" if option == "--stream" else "out.png")
    code = (
        "import json, resource, subprocess, sys\n"
        "done = subprocess.run(sys.argv[1:], capture_output=True, text=True)\n"
        "used = resource.getrusage(resource.RUSAGE_CHILDREN)\n"
        "print(json.dumps([done.returncode, done.stderr, used.ru_utime + used.ru_stime, used.ru_maxrss / 1e3]))"
    )
    command = [sys.executable, "-c", code, sys.executable, ROOT / "runtime/infer.py", *arguments, "-o", target]
    environment = {**os.environ, "OPENCV_LOG_LEVEL": "OFF"}
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=60, env=environment)
    returncode, stderr, cpu_seconds, megabytes = json.loads(done.stdout)
    assert returncode == 2, stderr
    assert stderr.startswith("error: ")
    assert "Traceback" not in stderr
    assert cpu_seconds < SECONDS
    assert megabytes < MEGABYTES
    assert not list(tmp_path.iterdir()), "nothing half-written"
