"""Synthetic pictures of stripes, checks, zone plates and noise, learnt from beside the photographs.

Fine regular patterns and noise in every pixel hardly occur in the training sets, and a network of products without
norms answers what it never saw with activations without measure (model/gmin.py, ``Gmim``).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data.sets import Rgb
from runtime.files import atomic_write

Fill = Callable[[NDArray[np.float64], NDArray[np.float64], np.random.Generator], NDArray[np.float64]]
"""Columns and rows of a cell, (n, n) each, and random numbers, to shares of a second colour, (n, n, 1 or 3)."""
SIDE = 480  # pixels
WAVES = 24
"""So many patterns are waves; those of a higher number are blocks."""


def waves(index: int, side: int = SIDE) -> Rgb:
    """The wave pattern of that number: a 3×3 board of gratings, checks and zone plates, (side, side, 3) uint8 RGB.

    Periods run from 2 to 24 HR pixels, so that many lie beyond what the LR picture can hold.
    """
    return _board(index, side, _wave, black_and_white=0.0)


def blocks(index: int, side: int) -> Rgb:
    """The block pattern of that number: a 3×3 board of noise, stripes, checks and flat colours.

    They are of single pixels, or of squares of two or three, up to full contrast. ``side`` is that of an LR picture: no
    picture shrunk by a bicubic filter has them, but screenshots, dithered pictures and noisy ones have.
    """
    return _board(index, side, _blocks, black_and_white=0.4)


def _board(index: int, side: int, fill: Fill, *, black_and_white: float) -> Rgb:
    draw = np.random.default_rng(index)
    cell = side // 3
    y, x = np.mgrid[:cell, :cell].astype(np.float64)
    board = np.empty((3 * cell, 3 * cell, 3), np.uint8)
    for row in range(3):
        for column in range(3):
            colours = draw.uniform(0, 255, (2, 3))
            if draw.random() < 0.5:
                colours[:, :] = draw.uniform(0, 255, (2, 1))  # grey
            share = fill(x, y, draw)
            if black_and_white and draw.random() < black_and_white:
                colours = np.array([[0.0] * 3, [255.0] * 3])
            tile = colours[0] + (colours[1] - colours[0]) * share
            board[row * cell : (row + 1) * cell, column * cell : (column + 1) * cell] = np.rint(tile)
    return np.pad(board, ((0, side - 3 * cell), (0, side - 3 * cell), (0, 0)), mode="edge")


def _wave(x: NDArray[np.float64], y: NDArray[np.float64], draw: np.random.Generator) -> NDArray[np.float64]:
    """One wave in [0, 1] over the cell: a grating, a check or a zone plate, its edges soft or hard."""
    angle, period = draw.uniform(0, np.pi), 2 * 12 ** draw.random()  # 2 to 24 pixels
    along = (x * np.cos(angle) + y * np.sin(angle)) * 2 * np.pi / period
    across = (y * np.cos(angle) - x * np.sin(angle)) * 2 * np.pi / period
    kind = draw.integers(3)
    if kind == 0:
        wave = np.sin(along)
    elif kind == 1:
        wave = np.sin(along) * np.sin(across)
    else:
        centre = draw.uniform(0, len(x), 2)
        squared = (x - centre[0]) ** 2 + (y - centre[1]) ** 2
        wave = np.sin(squared * np.pi / (4 * len(x)))  # period of 4 pixels at a cell's length from the centre
    hardness = draw.choice([1.0, 3.0, 50.0])
    return np.asarray(np.clip(0.5 + 0.5 * hardness * wave, 0, 1))[..., None]


def _blocks(x: NDArray[np.float64], y: NDArray[np.float64], draw: np.random.Generator) -> NDArray[np.float64]:
    """Noise, alone or on a slope, stripes and checks, or one colour, in [0, 1] over the cell."""
    block = draw.choice([1, 1, 1, 1, 2, 3])
    x, y = x // block, y // block
    count = int(x.max()) + 1
    kind = draw.integers(5)
    shape = count, count, draw.choice([1, 3])
    if kind == 0:
        share = draw.random(shape)
    elif kind == 1:
        share = draw.integers(0, 2, shape).astype(np.float64)
    elif kind == 2:
        slope = (x * draw.uniform(-1, 1) + y * draw.uniform(-1, 1)) / count + draw.uniform(0.2, 0.8)
        return np.clip(slope[..., None] + draw.uniform(0.02, 0.3) * draw.standard_normal((*x.shape, shape[2])), 0, 1)
    elif kind == 3:
        return np.asarray([x, y, x + y][draw.integers(3)][..., None] % 2)
    else:
        share = np.broadcast_to(draw.integers(0, 2, 3).astype(np.float64), (count, count, 3))
    return np.asarray(share[y.astype(int), x.astype(int)])


def write_patterns(folder: Path, count: int, scale: int) -> list[tuple[Path, Path | None]]:
    """The first ``count`` patterns as PNG files in ``folder``, made where they are not there yet.

    Returns:
        HR and LR picture of each; waves have no LR picture of their own, and the HR picture of blocks is the LR one
        with its pixels enlarged.
    """
    import cv2

    def write(path: Path, picture: Rgb) -> None:
        ok, coded = cv2.imencode(".png", np.ascontiguousarray(picture[..., ::-1]))
        assert ok
        with atomic_write(path) as stream:
            stream.write(coded.tobytes())

    if count:
        folder.mkdir(parents=True, exist_ok=True)
    pairs: list[tuple[Path, Path | None]] = []
    for index in range(min(count, WAVES)):
        path = folder / f"pattern_{index:03d}.png"
        if not path.is_file():
            write(path, waves(index))
        pairs.append((path, None))
    for index in range(WAVES, count):
        hr_path, lr_path = (folder / f"pattern_{index:03d}_x{scale}_{kind}.png" for kind in ("hr", "lr"))
        if not (hr_path.is_file() and lr_path.is_file()):
            picture = blocks(index, SIDE // scale)
            write(lr_path, picture)
            write(hr_path, picture.repeat(scale, axis=0).repeat(scale, axis=1))
        pairs.append((hr_path, lr_path))
    return pairs
