"""The images that are learnt from: which ones, their LR counterparts, and the crops of each step."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from data.sets import Rgb, crop_to_multiple, downscale, read_rgb
from runtime.errors import UserError
from runtime.files import atomic_write
from runtime.images import WRITABLE

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class TrainingImage:
    """One HR image with its LR counterpart and, if there is a teacher, the teacher's output for it.

    All are (H, W, 3) uint8 RGB; ``target`` has the size of ``hr``, which is ``scale`` times that of ``lr``.
    """

    path: Path
    hr: Rgb
    lr: Rgb
    target: Rgb | None = None
    lr_path: Path | None = None
    """File of ``lr``, where it is not made from ``hr``."""


def find_images(folder: Path, *, only: Iterable[str] = (), exclude: Iterable[str] = ()) -> list[Path]:
    """Pictures at any depth under ``folder``, sorted, restricted to and without the given relative glob patterns."""
    only, exclude = tuple(only), tuple(exclude)
    found = []
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder)
        if path.suffix.lower() not in WRITABLE or any(relative.match(pattern) for pattern in exclude):
            continue
        if not only or any(relative.match(pattern) for pattern in only):
            found.append(path)
    return found


def load_image(path: Path, *, scale: int, cache: Path | None = None, lr_path: Path | None = None) -> TrainingImage:
    """Read ``path``, crop it to a multiple of ``scale`` and shrink it as MATLAB does, or read its LR image.

    With a ``cache``, decoded images are put there once and from then on mapped into memory, not read.

    Raises:
        UserError: a file is no picture, smaller than one LR pixel, or the LR image has not 1/scale of the size.
    """
    if cache is None:
        hr, lr = _read_pair(path, lr_path, scale)
        return TrainingImage(path, hr, lr, lr_path=lr_path)
    stored = cache / f"{cache_name(path)}_hr_x{scale}.npy", cache / f"{cache_name(lr_path or path)}_lr_x{scale}.npy"
    if not all(file.is_file() for file in stored):
        for file, image in zip(stored, _read_pair(path, lr_path, scale), strict=True):
            write_array(file, image)
    hr, lr = (np.load(file, mmap_mode="r") for file in stored)
    return TrainingImage(path, hr, lr, lr_path=lr_path)


def _read_pair(path: Path, lr_path: Path | None, scale: int) -> tuple[Rgb, Rgb]:
    hr = np.ascontiguousarray(crop_to_multiple(read_rgb(path), scale))
    if not hr.size:
        raise UserError(f"{path} is {hr.shape[1]} x {hr.shape[0]} pixels, too small for x{scale}.")
    lr = downscale(hr, scale) if lr_path is None else read_rgb(lr_path)
    if lr.shape[0] * scale != hr.shape[0] or lr.shape[1] * scale != hr.shape[1]:
        raise UserError(f"{lr_path} is {lr.shape[1]} x {lr.shape[0]}, not 1/{scale} of {path}.")
    return hr, lr


def lr_counterpart(path: Path, *, data: Path, lr_data: Path, scale: int) -> Path:
    """The LR image of ``path`` in a folder laid out like ``data``: of the same name, or named ``0001x4`` as DIV2K's.

    Raises:
        UserError: there is none.
    """
    relative = path.relative_to(data)
    for stem in (path.stem, f"{path.stem}x{scale}"):
        for suffix in (path.suffix, ".png"):
            candidate = lr_data / relative.with_name(stem + suffix)
            if candidate.is_file():
                return candidate
    raise UserError(f"{lr_data} holds no LR image for {relative}.")


def cache_name(path: Path) -> str:
    """A file name for what is made of ``path``: of its name, size and first 64 KiB, which copies keep."""
    with path.open("rb") as stream:
        start = stream.read(1 << 16)
    return hashlib.sha256(f"{path.name}\0{path.stat().st_size}\0".encode() + start).hexdigest()[:24]


def write_array(path: Path, array: NDArray[np.generic]) -> None:
    """Store an array as .npy, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as stream:
        np.save(stream, array)


class Crops:
    """Random crops of a set of images, the same for a step whatever happened before it.

    The crops of step k depend on the seed and k alone, so a resumed run and a run spread over many processes see what
    an uninterrupted single process would.
    """

    def __init__(self, images: Sequence[TrainingImage], *, scale: int, patch: int, batch: int, seed: int) -> None:
        """Refuse a set in which no image holds a crop; images that are too small are left out.

        Raises:
            UserError: as said.
        """
        self._images = [image for image in images if min(image.lr.shape[:2]) >= patch]
        if not self._images:
            raise UserError(f"No training image holds an LR crop of {patch} x {patch} pixels at x{scale}.")
        self._sizes = np.array([image.lr.shape[:2] for image in self._images])
        areas = self._sizes.prod(axis=1).astype(np.float64)
        self._shares = areas.cumsum() / areas.sum()  # every pixel of the set is seen about equally often
        self._scale, self._patch, self._batch, self._seed = scale, patch, batch, seed

    def batch(self, step: int, *, rank: int = 0, world: int = 1) -> tuple[Tensor, Tensor, Tensor | None]:
        """The crops of ``step`` that process ``rank`` of ``world`` learns from.

        Returns:
            LR (n, 3, p, p), HR and teacher's target (n, 3, s·p, s·p), float32 RGB in [0, 1]; n = batch / world.
        """
        import torch

        crops = [self._crop(*place) for place in self.places(step, rank=rank, world=world)]

        def stack(parts: Sequence[Rgb]) -> Tensor:
            return torch.from_numpy(np.stack(parts)).permute(0, 3, 1, 2).float().div_(255)  # channels last in memory

        targets = [target for _, _, target in crops if target is not None]
        return (
            stack([lr for lr, _, _ in crops]),
            stack([hr for _, hr, _ in crops]),
            stack(targets) if targets else None,
        )

    def places(self, step: int, *, rank: int = 0, world: int = 1) -> NDArray[np.int64]:
        """Where the crops of ``step`` lie: (n, 4) of image, top, left and symmetry, for process ``rank``."""
        # a step owns 2^64 values of the generator's counter, so no two steps share any
        draws = np.random.Generator(np.random.Philox(key=self._seed, counter=step << 64)).random((self._batch, 4))
        draws = draws[rank * self._batch // world : (rank + 1) * self._batch // world]
        image = np.searchsorted(self._shares, draws[:, 0], side="right").clip(max=len(self._images) - 1)
        corners = draws[:, 1:3] * (self._sizes[image] - self._patch + 1)
        return np.column_stack((image, corners, draws[:, 3] * 8)).astype(np.int64)

    def _crop(self, index: int, top: int, left: int, symmetry: int) -> tuple[Rgb, Rgb, Rgb | None]:
        image = self._images[index]
        p, s = self._patch, self._scale
        fine = slice(top * s, (top + p) * s), slice(left * s, (left + p) * s)
        return (
            turned(image.lr[top : top + p, left : left + p], symmetry),
            turned(image.hr[fine], symmetry),
            None if image.target is None else turned(image.target[fine], symmetry),
        )


class ResidentCrops(Crops):
    """The same crops, cut on a GPU that holds all images as they are on disk, 8 bits a sample.

    A core cuts under a thousand crops of 48×48 a second, a large GPU learns from three thousand.
    """

    AHEAD = 256
    """Steps whose places are drawn and sent at once."""

    def __init__(
        self, images: Sequence[TrainingImage], *, scale: int, patch: int, batch: int, seed: int, device: str
    ) -> None:
        """Copy the images to ``device``; for the rest as ``Crops``."""
        import torch

        super().__init__(images, scale=scale, patch=patch, batch=batch, seed=seed)
        self._device = device
        self._sent = range(0)
        taught = all(image.target is not None for image in self._images)

        def pixels(parts: Iterable[Rgb | None]) -> Tensor:
            flat = np.concatenate([part.reshape(-1, 3) for part in parts if part is not None])
            return torch.from_numpy(flat).to(device)

        self._lr = pixels(image.lr for image in self._images)
        self._hr = pixels(image.hr for image in self._images)
        self._target = pixels(image.target for image in self._images) if taught else None
        self._begins = np.concatenate(([0], self._sizes.prod(axis=1).cumsum()[:-1]))  # of each LR image, in pixels
        self._orders = [self._order(patch), self._order(patch * scale)]

    @staticmethod
    def bytes_of(images: Sequence[TrainingImage]) -> int:
        """What the images take."""
        parts = (part for image in images for part in (image.lr, image.hr, image.target))
        return sum(part.size for part in parts if part is not None)

    def batch(self, step: int, *, rank: int = 0, world: int = 1) -> tuple[Tensor, Tensor, Tensor | None]:
        """As of ``Crops``, on the device."""
        if step not in self._sent:
            self._send(range(step, step + self.AHEAD), rank, world)
        corner, width, symmetry, corner_hr, width_hr = self._places[step - self._sent.start]
        coarse = self._index(0, corner, width, symmetry)
        fine = self._index(1, corner_hr, width_hr, symmetry)

        def cut(pixels: Tensor, index: Tensor) -> Tensor:
            return pixels[index].permute(0, 3, 1, 2).float().div_(255)

        return cut(self._lr, coarse), cut(self._hr, fine), None if self._target is None else cut(self._target, fine)

    def _send(self, steps: range, rank: int, world: int) -> None:
        import torch

        s = self._scale
        image, top, left, symmetry = np.moveaxis(
            np.stack([self.places(step, rank=rank, world=world) for step in steps]), 2, 0
        )
        begin, width = self._begins[image], self._sizes[image, 1]
        corner, corner_hr = begin + top * width + left, begin * s * s + top * s * width * s + left * s
        rows = np.stack((corner, width, symmetry, corner_hr, width * s), axis=1)  # (steps, 5, n)
        self._places, self._sent = torch.from_numpy(rows).to(self._device), steps

    def _order(self, side: int) -> Tensor:
        """Row and column in a crop of ``side``² that each pixel of it takes under each symmetry: (8, 2, side, side)."""
        import torch

        grid = np.stack(np.meshgrid(np.arange(side), np.arange(side), indexing="ij"), axis=-1)
        orders = np.stack([turned(grid, symmetry) for symmetry in range(8)])  # type: ignore[arg-type]
        return torch.from_numpy(np.ascontiguousarray(orders.transpose(0, 3, 1, 2))).to(self._device)

    def _index(self, level: int, corner: Tensor, width: Tensor, symmetry: Tensor) -> Tensor:
        rows, columns = self._orders[level][symmetry].unbind(1)  # (n, side, side) each
        return corner[:, None, None] + rows * width[:, None, None] + columns


def turned(image: Rgb, symmetry: int) -> Rgb:
    """One of the eight symmetries of the square: ``symmetry % 4`` quarter turns, mirrored from 4 on; (H, W, C)."""
    image = np.rot90(image, symmetry % 4)
    return image[:, ::-1] if symmetry >= 4 else image


def turned_back(image: NDArray[np.float32], symmetry: int) -> NDArray[np.float32]:
    """Undo ``turned``; (H, W, C)."""
    if symmetry >= 4:
        image = image[:, ::-1]
    return np.rot90(image, -(symmetry % 4))
