"""Synthetic pictures of stripes, checks, zone plates and noise, learnt from beside the photographs.

Fine regular patterns and noise in every pixel hardly occur in the training sets, and a network of products without
norms answers what it never saw with activations without measure (model/gmin.py, ``Gmim``).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data.sets import Rgb
from runtime.files import atomic_write

SIDE = 480  # pixels
WAVES = 24
BLOCKS = 24
"""So many patterns are waves, and so many after them blocks; those of a higher number are plain."""


def pattern(index: int, side: int = SIDE) -> Rgb:
    """The pattern of that number: a 3×3 board or one colour, (side, side, 3) uint8 RGB.

    The first are gratings, checks and zone plates with periods from 2 to 24 HR pixels, so that many lie beyond what the
    LR picture can hold. Those from ``WAVES`` on are noise, stripes and checks in square blocks of 2 to 8 HR pixels,
    half of them of 4: a pixel of the LR picture each at x4. After ``BLOCKS`` of these come flat colours, most of them
    saturated, one to a pattern: what a network makes of a crop without any edge is not learnt from crops with some.
    """
    draw = np.random.default_rng(index)
    if index >= WAVES + BLOCKS:
        return np.tile(_plain(draw), (side, side, 1))
    cell = side // 3
    y, x = np.mgrid[:cell, :cell].astype(np.float64)
    board = np.empty((3 * cell, 3 * cell, 3), np.uint8)
    for row in range(3):
        for column in range(3):
            colours = draw.uniform(0, 255, (2, 3))
            if draw.random() < 0.5:
                colours[:, :] = draw.uniform(0, 255, (2, 1))  # grey
            if index < WAVES:
                share = _wave(x, y, draw)[..., None]
            else:
                share = _blocks(cell, draw)
                if draw.random() < 0.4:
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
    return np.asarray(np.clip(0.5 + 0.5 * hardness * wave, 0, 1))


def _blocks(cell: int, draw: np.random.Generator) -> NDArray[np.float64]:
    """(cell, cell, 1 or 3) in [0, 1], constant over squares: noise, alone or on a slope, or stripes and checks."""
    block = draw.choice([2, 3, 4, 4, 4, 4, 6, 8])
    count = -(-cell // block)
    y, x = np.mgrid[:count, :count]
    kind = draw.integers(4)
    shape = count, count, draw.choice([1, 3])
    if kind == 0:
        share = draw.random(shape)
    elif kind == 1:
        share = draw.integers(0, 2, shape).astype(np.float64)
    elif kind == 2:
        slope = (x * draw.uniform(-1, 1) + y * draw.uniform(-1, 1)) / count + draw.uniform(0.2, 0.8)
        share = slope[..., None] + draw.uniform(0.02, 0.3) * draw.standard_normal(shape)
    else:
        width = draw.integers(1, 4)
        share = draw.choice([x // width, y // width, x // width + y // width])[..., None] % 2
    return np.clip(share, 0, 1).repeat(block, axis=0).repeat(block, axis=1)[:cell, :cell]


def _plain(draw: np.random.Generator) -> NDArray[np.uint8]:
    """One colour, (3,), whose channels are 0 or 255 in two thirds of all cases."""
    ends, between = draw.integers(0, 2, 3) * 255, draw.integers(0, 256, 3)
    return np.where(draw.random(3) < 2 / 3, ends, between).astype(np.uint8)


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
