"""Image sets: HR pictures with the LR pictures that the protocol makes of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray

from data.assets import located
from data.bicubic import resize_bicubic
from runtime.errors import UserError
from runtime.images import read_picture

Rgb = NDArray[np.uint8]
"""(H, W, 3) uint8 RGB."""

BENCHMARKS = ("BSD100", "Set5", "Set14")
_PICTURES = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"}


@dataclass(frozen=True)
class Pair:
    """One picture of a set: ``hr`` cropped to a multiple of the scale, ``lr`` a ``scale``-th of it."""

    name: str
    hr: Rgb
    lr: Rgb


@dataclass(frozen=True)
class ImageSet:
    """A set at a scale. Iterating reads one picture at a time, in the order of their names."""

    name: str
    scale: int
    files: tuple[Path, ...]

    def __len__(self) -> int:
        return len(self.files)

    def __iter__(self) -> Iterator[Pair]:
        for path in self.files:
            yield make_pair(path, read_rgb(path), self.scale)


def make_pair(path: Path, hr: Rgb, scale: int, *, least: int = 1) -> Pair:
    """The pair of the picture ``hr`` (H, W, 3), which came from ``path``.

    Raises:
        UserError: its LR picture would be narrower or lower than ``least`` pixels, or nothing would be left of it when
            scores leave out ``scale`` pixels at each border.
    """
    hr = crop_to_multiple(hr, scale)
    needed = scale * max(least, 3)
    if min(hr.shape[:2]) < needed:
        raise UserError(f"{path} has {hr.shape[1]}x{hr.shape[0]} pixels; at x{scale} it needs {needed} a side here.")
    return Pair(path.stem, hr, downscale(hr, scale))


def image_set(name: str, scale: int) -> ImageSet:
    """A benchmark set by name, or the pictures of a folder (its ``HR`` folder if it has one).

    LR pictures are made from HR by the exact protocol, which gives the published sets' LR files bit for bit.

    Raises:
        UserError: the set is neither known nor a folder, it cannot be had, or the folder holds no picture.
    """
    folder = located(f"benchmarks/{name}") if name in BENCHMARKS else Path(name)
    if not folder.is_dir():
        raise UserError(f"{name} is neither a folder nor one of {', '.join(BENCHMARKS)}.")
    if (folder / "HR").is_dir():
        folder = folder / "HR"
    return ImageSet(name, scale, pictures_in(folder))


def pictures_in(folder: Path) -> tuple[Path, ...]:
    """The pictures of a folder, sorted by name.

    Raises:
        UserError: there is none.
    """
    files = tuple(sorted(path for path in folder.iterdir() if path.suffix.lower() in _PICTURES))
    if not files:
        raise UserError(f"{folder} holds no pictures.")
    return files


def read_rgb(path: Path) -> Rgb:
    """A picture as (H, W, 3) uint8 RGB; alpha is dropped and 16 bits are rounded to 8."""
    colour = read_picture(path).colour
    if colour.dtype == np.uint16:
        colour = np.rint(colour / 257).astype(np.uint8)
    return np.ascontiguousarray(colour, np.uint8)


def sample_photo() -> Rgb:
    """The shipped photo, (300, 451, 3): Chelsea, by Stéfan van der Walt, CC0, from scikit-image."""
    return read_rgb(Path(__file__).with_name("chelsea.png"))


def crop_to_multiple(image: Rgb, scale: int) -> Rgb:
    """Cut the right and bottom edges to a multiple of ``scale``."""
    height, width = image.shape[:2]
    return image[: height - height % scale, : width - width % scale]


def downscale(hr: Rgb, scale: int) -> Rgb:
    """The LR picture of the protocol: MATLAB's bicubic by 1/scale."""
    return cast(Rgb, resize_bicubic(hr, 1 / scale))


def to_batch(image: Rgb) -> NDArray[np.float32]:
    """(H, W, 3) uint8 RGB to (1, 3, H, W) float32 in [0, 1]."""
    batch = np.ascontiguousarray(image.transpose(2, 0, 1)[None], np.float32)
    batch /= np.float32(255)
    return batch


def from_batch(batch: NDArray[np.floating]) -> Rgb:
    """(1, 3, H, W) floats to (H, W, 3) uint8: clamped to [0, 1], ×255, rounded."""
    image: Rgb = np.rint(batch[0].transpose(1, 2, 0).clip(0, 1) * 255).astype(np.uint8)
    return image
