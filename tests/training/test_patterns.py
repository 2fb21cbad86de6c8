"""Synthetic patterns among the training images."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from data.sets import Rgb
from training.patterns import WAVES, blocks, waves, write_patterns
from training.samples import load_image


@pytest.mark.parametrize(("kind", "side"), [(waves, 480), (blocks, 120)])
def test_a_number_is_a_picture(kind, side) -> None:  # type: ignore[no-untyped-def]
    assert np.array_equal(kind(3, side), kind(3, side))
    assert not np.array_equal(kind(3, side), kind(4, side))
    assert kind(0, side).shape == (side, side, 3)
    assert kind(0, 50).shape == (50, 50, 3)


def test_patterns_are_fine_and_high_in_contrast() -> None:
    pictures = np.stack([waves(index) for index in range(8)]).astype(float)
    steps = np.abs(np.diff(pictures.mean(axis=3), axis=2))
    assert np.percentile(steps, 99) > 60  # hard edges
    assert pictures.std() > 40


def test_blocks_reach_full_contrast_from_one_lr_pixel_to_the_next(tmp_path: Path) -> None:
    pairs = write_patterns(tmp_path, WAVES + 8, 4)

    def strong(pictures: list[Rgb]) -> float:
        return float((np.abs(np.diff(np.stack(pictures).mean(axis=3), axis=2)) > 200).mean())

    lr = [load_image(hr_path, scale=4, lr_path=lr_path).lr for hr_path, lr_path in pairs]
    assert strong(lr[WAVES:]) > 0.02
    assert strong(lr[:WAVES]) < 0.001


def test_files_are_made_once(tmp_path: Path) -> None:
    made = write_patterns(tmp_path / "patterns", WAVES + 1, 3)
    paths = [path for pair in made for path in pair if path is not None]
    times = [path.stat().st_mtime_ns for path in paths]
    assert write_patterns(tmp_path / "patterns", WAVES + 1, 3) == made
    assert [path.stat().st_mtime_ns for path in paths] == times
    picture = cv2.imread(str(paths[1]))
    assert picture is not None
    assert np.array_equal(picture[..., ::-1], waves(1))
    hr_path, lr_path = made[-1]
    image = load_image(hr_path, scale=3, lr_path=lr_path)
    assert np.array_equal(image.lr, blocks(WAVES, 160))
    assert np.array_equal(image.hr[1::3, 1::3], image.lr)
    assert write_patterns(tmp_path / "none", 0, 4) == []
    assert not (tmp_path / "none").exists()
