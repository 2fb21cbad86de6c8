"""The one command for a device: every step of it with FAKES of TensorRT and CUDA, and without any."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.device import perform
from tests.conftest import ROOT, Script
from tests.tiny_onnx import tiny


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.onnx"
    path.write_bytes(tiny())
    return path


def test_all_steps_on_a_fake_jetson(script: Script, model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    done = script("benchmarks/device.py", model, "-o", folder, "--size", "48x32", "--rounds", 2, "--json", "-",
                  PYTHONPATH=str(ROOT / "tests/fakes"))  # fmt: skip
    assert done.returncode == 0, done.stderr
    steps = {step["name"]: step for step in json.loads(done.stdout)["steps"]}
    assert list(steps) == ["doctor", "build_tiny_fixed", "build_tiny_range", "latency"]
    assert steps["doctor"]["result"]["gpu"]["name"] == "Fake Orin"
    assert [row["engine"] for row in steps["latency"]["result"]["results"]] == [
        f"ort:{model}",
        f"tensorrt:{folder}/tiny_fixed.plan",
    ]
    page = (folder / "comparison.md").read_text()
    assert "GPU: Fake Orin" in page
    assert page.count("TensorRT 10.3.0") == 1


def test_a_folder_is_one_of_where_the_user_stands(
    patch_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(patch_folder.parent)
    step = perform("accuracy", "benchmarks/accuracy.py", "bicubic", "--set", patch_folder.name, output=tmp_path)
    assert step.error is None
    assert step.result["results"][0]["images"] == 6


def test_without_a_gpu_what_can_be_done_is_done(script: Script, model: Path, tmp_path: Path) -> None:
    done = script("benchmarks/device.py", model, "-o", tmp_path / "out", "--size", "48x32", "--rounds", 2,
                  PYTHONPATH=str(ROOT / "tests/fakes"), FAKE_GPU_COUNT="0")  # fmt: skip
    assert done.returncode == 3
    assert "build_tiny_fixed failed: There is no usable NVIDIA driver or GPU here" in done.stderr
    page = (tmp_path / "out/comparison.md").read_text()
    assert "none usable" in page
    assert "ONNX Runtime" in page
    assert script("benchmarks/device.py", "none.onnx", "-o", tmp_path / "out").returncode == 2
