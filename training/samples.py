"""The images that are learnt from: which ones, their LR counterparts, and the crops of each step."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from data.bicubic import resize_bicubic
from runtime.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"})


@dataclass(frozen=True)
class TrainingImage:
    """One HR image with its LR counterpart and, if there is a teacher, the teacher's output for it.

    All are (H, W, 3) uint8 RGB; ``target`` has the size of ``hr``, which is ``scale`` times that of ``lr``.
    """

    path: Path
    hr: NDArray[np.uint8]
    lr: NDArray[np.uint8]
    target: NDArray[np.uint8] | None = None


def read_rgb(path: Path) -> NDArray[np.uint8]:
    """Read an 8-bit image as (H, W, 3) uint8 RGB; grey becomes three equal channels.

    Raises:
        UserError: the file is no image.
    """
    import cv2

    image = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if image is None:
        raise UserError(f"{path} cannot be read as an image; remove it from the training folder.")
    return np.ascontiguousarray(image[:, :, ::-1], dtype=np.uint8)


def find_images(folder: Path, *, only: Iterable[str] = (), exclude: Iterable[str] = ()) -> list[Path]:
    """Image files under ``folder``, sorted, restricted to and without the given relative glob patterns."""
    only, exclude = tuple(only), tuple(exclude)
    found = []
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder)
        if path.suffix.lower() not in SUFFIXES or any(relative.match(pattern) for pattern in exclude):
            continue
        if not only or any(relative.match(pattern) for pattern in only):
            found.append(path)
    return found


def load_image(path: Path, *, scale: int, cache: Path | None = None) -> TrainingImage:
    """Read ``path``, crop it to a multiple of ``scale`` and shrink it as MATLAB does.

    Raises:
        UserError: the file is no image or smaller than one LR pixel.
    """
    hr = read_rgb(path)
    height, width = (side - side % scale for side in hr.shape[:2])
    if not height or not width:
        raise UserError(f"{path} is {hr.shape[1]} x {hr.shape[0]} pixels, too small for x{scale}.")
    hr = np.ascontiguousarray(hr[:height, :width])
    stored = None if cache is None else cache / f"{content_name(hr)}_lr_x{scale}.npy"
    if stored is not None and stored.is_file():
        return TrainingImage(path, hr, np.load(stored))
    lr = resize_bicubic(hr, 1 / scale).astype(np.uint8)
    if stored is not None:
        write_array(stored, lr)
    return TrainingImage(path, hr, lr)


def content_name(image: NDArray[np.uint8]) -> str:
    """A file name made of the pixels, so that a cache never serves another image's result."""
    return hashlib.sha256(repr(image.shape).encode() + image.tobytes()).hexdigest()[:24]


def write_array(path: Path, array: NDArray[np.generic]) -> None:
    """Store an array as .npy, whole or not at all."""
    from runtime.files import atomic_write

    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as stream:
        np.save(stream, array)


class Crops:
    """Random crops of a set of images, the same for a step whatever happened before it.

    The crops of step k depend on the seed and k alone, so a resumed run and a run spread over many processes see what
    an uninterrupted single process would.
    """

    def __init__(self, images: Sequence[TrainingImage], *, scale: int, patch: int, batch: int, seed: int) -> None:
        self._images = [image for image in images if min(image.lr.shape[:2]) >= patch]
        if not self._images:
            raise UserError(f"No training image holds an LR crop of {patch} x {patch} pixels at x{scale}.")
        areas = np.array([image.lr.shape[0] * image.lr.shape[1] for image in self._images], np.float64)
        self._shares = areas.cumsum() / areas.sum()  # every pixel of the set is seen about equally often
        self._scale, self._patch, self._batch, self._seed = scale, patch, batch, seed

    def batch(self, step: int, *, rank: int = 0, world: int = 1) -> tuple[Tensor, Tensor, Tensor | None]:
        """The crops of ``step`` that process ``rank`` of ``world`` learns from.

        Returns:
            LR (n, 3, p, p), HR and teacher's target (n, 3, s·p, s·p), float32 RGB in [0, 1]; n = batch / world.
        """
        import torch

        # a step owns 2^64 values of the generator's counter, so no two steps share any
        draws = np.random.Generator(np.random.Philox(key=self._seed, counter=step << 64)).random((self._batch, 4))
        mine = draws[rank * self._batch // world : (rank + 1) * self._batch // world]
        crops = [self._crop(draw) for draw in mine]

        def stack(parts: Sequence[NDArray[np.uint8]]) -> Tensor:
            return torch.from_numpy(np.stack(parts)).permute(0, 3, 1, 2).float().div_(255)  # channels last in memory

        targets = [target for _, _, target in crops if target is not None]
        return (
            stack([lr for lr, _, _ in crops]),
            stack([hr for _, hr, _ in crops]),
            stack(targets) if targets else None,
        )

    def _crop(self, draw: NDArray[np.float64]) -> tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.uint8] | None]:
        image = self._images[min(int(np.searchsorted(self._shares, draw[0], side="right")), len(self._images) - 1)]
        height, width = image.lr.shape[:2]
        p, s = self._patch, self._scale
        top, left = int(draw[1] * (height - p + 1)), int(draw[2] * (width - p + 1))
        symmetry = int(draw[3] * 8)
        fine = slice(top * s, (top + p) * s), slice(left * s, (left + p) * s)
        return (
            turned(image.lr[top : top + p, left : left + p], symmetry),
            turned(image.hr[fine], symmetry),
            None if image.target is None else turned(image.target[fine], symmetry),
        )


def turned(image: NDArray[np.uint8], symmetry: int) -> NDArray[np.uint8]:
    """One of the eight symmetries of the square: ``symmetry % 4`` quarter turns, mirrored from 4 on; (H, W, C)."""
    image = np.rot90(image, symmetry % 4)
    return image[:, ::-1] if symmetry >= 4 else image


def turned_back(image: NDArray[np.generic], symmetry: int) -> NDArray[np.generic]:
    """Undo ``turned``."""
    if symmetry >= 4:
        image = image[:, ::-1]
    return np.rot90(image, -(symmetry % 4))
