"""Synthetic patterns among the training images."""

from pathlib import Path

import cv2
import numpy as np

from data.sets import downscale
from training.options import TrainingOptions
from training.patterns import BLOCKS, WAVES, pattern, write_patterns
from training.processes import Process
from training.samples import find_images, load_image
from training.train import gather


def test_a_number_is_a_picture() -> None:
    assert np.array_equal(pattern(3), pattern(3))
    assert not np.array_equal(pattern(3), pattern(4))
    assert pattern(0).shape == (480, 480, 3)
    assert pattern(0, side=50).shape == (50, 50, 3)


def test_patterns_are_fine_and_high_in_contrast() -> None:
    pictures = np.stack([pattern(index) for index in range(8)]).astype(float)
    steps = np.abs(np.diff(pictures.mean(axis=3), axis=2))
    assert np.percentile(steps, 99) > 60  # hard edges
    assert pictures.std() > 40


def test_patterns_of_higher_numbers_have_more_contrast_in_the_lr_picture() -> None:
    def strong(first: int) -> float:
        lr = np.stack([downscale(pattern(index), 4) for index in range(first, first + 8)]).astype(float)
        return float((np.abs(np.diff(lr.mean(axis=3), axis=2)) > 100).mean())

    assert strong(WAVES) > 1.5 * strong(0)
    assert pattern(WAVES, side=50).shape == (50, 50, 3)


def test_the_last_patterns_are_one_saturated_colour_each() -> None:
    pictures = np.stack([pattern(index, side=50) for index in range(WAVES + BLOCKS, WAVES + BLOCKS + 64)])
    assert pictures.shape == (64, 50, 50, 3)
    assert np.ptp(pictures, axis=(1, 2)).max() == 0
    assert 0.5 < float(((pictures == 0) | (pictures == 255)).mean()) < 0.8
    assert len(np.unique(pictures[:, 0, 0], axis=0)) > 32


def test_files_are_made_once(tmp_path: Path) -> None:
    paths = write_patterns(tmp_path / "patterns", 2)
    times = [path.stat().st_mtime_ns for path in paths]
    assert [path.stat().st_mtime_ns for path in write_patterns(tmp_path / "patterns", 2)] == times
    picture = cv2.imread(str(paths[1]))
    assert picture is not None
    assert np.array_equal(picture[..., ::-1], pattern(1))
    assert write_patterns(tmp_path / "none", 0) == []
    assert not (tmp_path / "none").exists()


def test_patterns_are_shrunk_where_photographs_have_lr_images_of_their_own(pictures: Path, tmp_path: Path) -> None:
    for path in find_images(pictures):
        lr_path = tmp_path / "lr" / path.relative_to(pictures)
        lr_path.parent.mkdir(parents=True, exist_ok=True)
        image = load_image(path, scale=4)
        assert cv2.imwrite(str(lr_path), image.lr)
    options = TrainingOptions(
        tmp_path, data=pictures, lr_data=tmp_path / "lr", validation=("valid/*",), cache=tmp_path / "cache", patterns=1
    )
    images, _ = gather(options, 4, Process(), quiet=True)
    assert np.array_equal(images[-1].lr, downscale(pattern(0), 4))
