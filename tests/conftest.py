"""What the tests share: where the assets are, and files made once a run."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]
Script = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def gmin_data() -> Path:
    """The folder of third-party images and weights, which are not part of the repository."""
    named = os.environ.get("GMIN_DATA")
    if not named or not Path(named).is_dir():
        pytest.skip("needs third-party assets: set GMIN_DATA to a folder that holds them")
    return Path(named).resolve()


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Script:
    """Run a script of the repository as a user does; the user's cache is the test's own."""

    def run(name: str, *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, str(ROOT / name), *map(str, arguments)],
            capture_output=True,
            text=True,
            timeout=240,
            cwd=ROOT,
            env={**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache"), **environment},
        )

    return run


@pytest.fixture(scope="session")
def photo() -> np.ndarray:
    """The shipped photo, (300, 451, 3) uint8 RGB."""
    from data.sets import sample_photo

    return sample_photo()


@pytest.fixture(scope="session")
def fp32_onnx(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """GMIN x4 with the shipped weights, exported once."""
    from export.to_onnx import export_onnx
    from model.checkpoint import load_checkpoint
    from model.registry import create, describe

    path = tmp_path_factory.mktemp("onnx") / "gmin_x4.onnx"
    model = load_checkpoint(create("gmin_x4"), ROOT / "model/weights/gmin_x4.safetensors")
    export_onnx(model, path, describe("gmin_x4"))
    return path


@pytest.fixture(scope="session")
def fp16_onnx(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same in FP16 between FP32 borders, exported once."""
    from export.to_onnx import export_onnx
    from model.checkpoint import load_checkpoint
    from model.registry import create, describe

    path = tmp_path_factory.mktemp("onnx") / "gmin_x4_fp16.onnx"
    model = load_checkpoint(create("gmin_x4"), ROOT / "model/weights/gmin_x4.safetensors")
    export_onnx(model, path, describe("gmin_x4"), precision="fp16")
    return path


@pytest.fixture(scope="session")
def patch_folder(tmp_path_factory: pytest.TempPathFactory, photo: np.ndarray) -> Path:
    """Six HR pictures cut from the shipped photo: enough to calibrate without third-party data."""
    import cv2

    folder = tmp_path_factory.mktemp("patches")
    for i, left in enumerate(range(0, 301, 60)):
        cv2.imwrite(str(folder / f"{i}.png"), photo[20 * i : 20 * i + 128, left : left + 128, ::-1])
    return folder
