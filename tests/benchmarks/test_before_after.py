"""Before and after side by side, and the README's picture is of the file that ships."""

import json
from contextlib import closing
from pathlib import Path

import cv2
import numpy as np
import pytest

from benchmarks.before_after import GAP, before_after
from benchmarks.protocol import Size
from runtime.engines.opening import MODELS, open_engine
from tests.conftest import ROOT, Script


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    cv2.imwrite(str(tmp_path / "photo.png"), np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8))
    return tmp_path / "photo.png"


def test_halves_are_the_same_part(script: Script, photo: Path, tmp_path: Path) -> None:
    output = tmp_path / "drawn.png"
    done = script(
        "benchmarks/before_after.py", photo, "-o", output, "--engine", "ort:gmin_x4", "--part", "10x6", "--at", "30,24",
        "--json", "-",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["part"] == "10x6"
    whole = tmp_path / "whole.png"
    assert script("runtime/infer.py", photo, "-o", whole, "--engine", "ort:gmin_x4").returncode == 0
    drawn = cv2.imread(str(output))
    assert drawn.shape == (24, 40 + GAP + 40, 3)
    assert np.array_equal(drawn[::4, :40:4], cv2.imread(str(photo))[24:, 30:])
    assert (drawn[:, 40:-40] == 255).all()
    assert np.array_equal(drawn[:, -40:], cv2.imread(str(whole))[96:, 120:])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--at", "31,24"], "is not inside"),
        (["--at", "left"], "'left' is no corner"),
        (["--part", "0x3"], "'0x3' is no size"),
    ],
)
def test_mistakes(script: Script, photo: Path, tmp_path: Path, arguments: list[str], message: str) -> None:
    output = tmp_path / "drawn.png"
    done = script(
        "benchmarks/before_after.py", photo, "-o", output, "--engine", "ort:gmin_x4", "--part", "10x6", *arguments
    )
    assert done.returncode == 2
    assert message in done.stderr
    assert not output.exists()


def test_deep_pictures_are_refused(script: Script, tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "deep.png"), np.zeros((30, 40, 3), np.uint16))
    done = script(
        "benchmarks/before_after.py",
        tmp_path / "deep.png",
        "-o",
        tmp_path / "o.png",
        "--engine",
        "ort:gmin_x4",
        "--part",
        "8x8",
    )
    assert done.returncode == 2
    assert "has 16 bits" in done.stderr


def test_the_picture_in_the_readme_is_of_the_file_that_ships() -> None:
    shown = cv2.imread(str(ROOT / "docs/images/chelsea_before_after.png"))[..., ::-1]
    with closing(open_engine(f"ort:{MODELS / 'gmin_x4_int8_cpu.onnx'}")) as engine:
        drawn = before_after(engine, ROOT / "data/chelsea.png", Size(96, 72), (120, 80))
    off = np.abs(shown.astype(int) - drawn)
    assert off.mean() < 0.1
    assert off.max() <= 3, "rounding may differ from one processor to another"
