"""The bicubic of the protocol."""

from pathlib import Path

import numpy as np
import pytest

from data.bicubic import resize_bicubic
from data.sets import crop_to_multiple, downscale, read_rgb


@pytest.mark.parametrize("name", ["BSD100", "Set5", "Set14"])
def test_bit_identical_to_the_lr_files(gmin_data: Path, name: str) -> None:
    files = sorted((gmin_data / "benchmarks" / name / "LR_bicubic/X4").glob("*.png"))
    assert files
    wrong = [
        f.name
        for f in files
        if not np.array_equal(downscale(crop_to_multiple(read_rgb(f.parents[2] / "HR" / f.name), 4), 4), read_rgb(f))
    ]
    assert wrong == []


def test_rounds_between_the_passes() -> None:
    """Rounding only at the end gives other pixels: this is what the intermediate rounding is for."""
    image = np.random.default_rng(3).integers(0, 256, (64, 64), dtype=np.uint8)
    once = np.floor(resize_bicubic(image.astype(np.float64), 0.25) + 0.5).clip(0, 255)
    twice = resize_bicubic(image, 0.25)
    assert np.abs(once - twice).max() == 1


@pytest.mark.parametrize("scale", [0.25, 1 / 3, 0.5, 2.0, 3.0, 4.0])
@pytest.mark.parametrize("shape", [(24, 36), (25, 37, 3)])
def test_shape_dtype_and_constants(scale: float, shape: tuple[int, ...]) -> None:
    for dtype in (np.uint8, np.float32):
        result = resize_bicubic(np.full(shape, 77, dtype), scale)
        assert result.shape == (int(np.ceil(shape[0] * scale)), int(np.ceil(shape[1] * scale)), *shape[2:])
        assert result.dtype == dtype
        assert np.abs(result.astype(float) - 77).max() < 1e-4


def test_reproduces_a_straight_line_inside() -> None:
    line = np.tile(np.arange(40.0), (40, 1))
    enlarged = resize_bicubic(line, 2.0)
    expected = (np.arange(80) + 0.5) / 2 - 0.5
    np.testing.assert_allclose(enlarged[40, 8:-8], expected[8:-8], atol=1e-9)


def test_refuses_what_it_cannot_resize() -> None:
    with pytest.raises(ValueError, match="uint8 or floats"):
        resize_bicubic(np.zeros((4, 4), np.int16), 0.5)
    with pytest.raises(ValueError, match="positive"):
        resize_bicubic(np.zeros((4, 4), np.uint8), 0.0)
