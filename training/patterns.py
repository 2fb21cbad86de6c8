"""Synthetic pictures of stripes, checks and zone plates, learnt from beside the photographs.

Fine regular patterns hardly occur in the training sets, and a network of products without norms answers what it never
saw with activations without measure (model/gmin.py, ``Gmim``).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data.sets import Rgb
from runtime.files import atomic_write

SIDE = 480  # pixels


def pattern(index: int, side: int = SIDE) -> Rgb:
    """The pattern of that number: a 3×3 board of gratings, checks and zone plates, (side, side, 3) uint8 RGB.

    Periods run from 2 to 24 HR pixels, so that many lie beyond what the LR picture can hold.
    """
    draw = np.random.default_rng(index)
    cell = side // 3
    y, x = np.mgrid[:cell, :cell].astype(np.float64)
    board = np.empty((3 * cell, 3 * cell, 3), np.uint8)
    for row in range(3):
        for column in range(3):
            colours = draw.uniform(0, 255, (2, 3))
            if draw.random() < 0.5:
                colours[:, :] = draw.uniform(0, 255, (2, 1))  # grey
            share = _wave(x, y, draw)[..., None]
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
    return np.asarray(np.clip(0.5 + 0.5 * hardness * wave, 0, 1))


def write_patterns(folder: Path, count: int) -> list[Path]:
    """The paths of the first ``count`` patterns as PNG files in ``folder``, made where they are not there yet."""
    import cv2

    if count:
        folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"pattern_{index:03d}.png" for index in range(count)]
    for index, path in enumerate(paths):
        if not path.is_file():
            ok, coded = cv2.imencode(".png", np.ascontiguousarray(pattern(index)[..., ::-1]))
            assert ok
            with atomic_write(path) as stream:
                stream.write(coded.tobytes())
    return paths
