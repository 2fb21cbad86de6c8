"""PNG files of our own, read back by others."""

import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from runtime import png_file
from runtime.errors import UserError
from runtime.images import Picture, read_picture, write_picture
from tests.conftest import ROOT


def opencv(content: bytes) -> Any:
    """Pixels in the order of the file, as OpenCV reads them."""
    pixels: Any = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels.ndim == 2:
        return pixels
    return cv2.cvtColor(pixels, cv2.COLOR_BGRA2RGBA if pixels.shape[2] == 4 else cv2.COLOR_BGR2RGB)


@settings(max_examples=60, deadline=None)
@given(
    height=st.integers(1, 70),
    width=st.integers(1, 70),
    samples=st.sampled_from([1, 3, 4]),
    deep=st.booleans(),
    band=st.sampled_from([1, 1000, 1 << 18]),
    flat=st.booleans(),
)
def test_every_kind_of_pixels_comes_back(
    height: int, width: int, samples: int, deep: bool, band: int, flat: bool
) -> None:
    random = np.random.default_rng(height * 71 + width)
    top = 65536 if deep else 256
    shape = (height, width) if samples == 1 else (height, width, samples)
    values = np.full(shape, top - 1) if flat else random.integers(0, top, shape)
    pixels: Any = values.astype(np.uint16 if deep else np.uint8)
    before, png_file._BAND_BYTES = png_file._BAND_BYTES, band
    try:
        content = b"".join(png_file.png_parts(pixels))
    finally:
        png_file._BAND_BYTES = before
    assert np.array_equal(opencv(content), pixels)
    with Image.open(io.BytesIO(content)) as image:
        image.verify()  # every chunk's check sum
    if not (deep and samples > 1):  # Pillow has no 16-bit colour
        with Image.open(io.BytesIO(content)) as image:
            assert np.array_equal(np.asarray(image), pixels)


def test_grey_with_alpha() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 2), np.uint8)
    with Image.open(io.BytesIO(b"".join(png_file.png_parts(pixels)))) as image:
        assert image.mode == "LA"
        assert np.array_equal(np.asarray(image), pixels)


def test_a_view_of_reversed_pixels() -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (9, 11, 3), np.uint8)[::-1, ::-1, ::-1]
    assert np.array_equal(opencv(b"".join(png_file.png_parts(pixels))), pixels)


def test_without_isa_l_the_pixels_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = read_picture(ROOT / "data/chelsea.png").colour
    monkeypatch.setattr(png_file, "zlib", zlib)
    assert np.array_equal(opencv(b"".join(png_file.png_parts(pixels, icc=b"x" * 200))), pixels)


def test_photographs_are_no_larger_than_opencv_makes_them() -> None:
    pixels = read_picture(ROOT / "data/chelsea.png").colour
    ours = len(b"".join(png_file.png_parts(pixels)))
    theirs = len(cv2.imencode(".png", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR))[1])
    assert ours < 1.05 * theirs


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a disk that is full")
@pytest.mark.parametrize("ending", [".png", ".jpg"])
def test_a_full_disk_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str) -> None:
    @contextmanager
    def full(path: Path) -> Iterator[Path]:
        yield Path("/dev/full")

    monkeypatch.setattr("runtime.images.replacing", full)
    with pytest.raises(UserError, match="Cannot write"):
        write_picture(tmp_path / f"a{ending}", Picture(np.zeros((300, 300, 3), np.uint8)))
