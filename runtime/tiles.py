"""Where tiles lie and how they join. Pure geometry; all lengths are LR pixels unless said otherwise.

All tiles have one size, so that an engine sees one shape: the last of a row moves back into the picture. Where two
overlap, the outermost pixels of each are thrown away (their context is cut) and a linear ramp joins the rest.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

DISCARD = 0.5  # share of the overlap, at each tile's own border, that is not used at all


@dataclass(frozen=True)
class Tiling:
    """Starts of the tiles along both axes, and their common size."""

    rows: tuple[int, ...]
    columns: tuple[int, ...]
    height: int
    width: int

    @property
    def count(self) -> int:
        """Number of tiles."""
        return len(self.rows) * len(self.columns)


def plan_tiles(height: int, width: int, *, tile: int | tuple[int, int], overlap: int) -> Tiling:
    """Cover ``height`` × ``width`` with tiles that overlap by at least ``overlap``.

    ``tile`` is a side, or (height, width). A side of the picture that is not longer than a tile's is one tile of its
    own length.

    Raises:
        ValueError: the overlap leaves nothing of a tile.
    """
    tall, wide = (tile, tile) if isinstance(tile, int) else tile
    if not 0 <= overlap < min(tall, wide):
        raise ValueError(f"an overlap of {overlap} leaves nothing of a tile of {min(tall, wide)}")
    return Tiling(_starts(height, tall, overlap), _starts(width, wide, overlap), min(height, tall), min(width, wide))


def cores(starts: tuple[int, ...], size: int) -> list[tuple[int, int]]:
    """The part of each tile that is used where tiles are cut and not blended, as (start, end) in the picture.

    The cuts lie in the middle of the overlaps, so that each core has at least half of the overlap as context, or the
    border of the picture. Together the cores are the picture, without gaps and without sharing a pixel.
    """
    cuts = [0, *((a + size + b) // 2 for a, b in itertools.pairwise(starts)), starts[-1] + size]
    return list(itertools.pairwise(cuts))


def ramps(starts: tuple[int, ...], size: int, scale: int) -> list[NDArray[np.float32]]:
    """Weight of each tile along one axis, each (scale·size,) float32; over the picture they add up to 1."""
    weights = [np.ones(size * scale, np.float32) for _ in starts]
    for i in range(len(starts) - 1):
        shared = (starts[i] + size - starts[i + 1]) * scale
        if not shared:  # [-0:] would be the whole tile
            continue
        unused = int(shared * DISCARD / 2)
        rise = np.zeros(shared, np.float32)
        blended = shared - 2 * unused
        rise[unused : unused + blended] = (np.arange(blended, dtype=np.float32) + 0.5) / max(blended, 1)
        rise[unused + blended :] = 1
        weights[i + 1][:shared] *= rise
        weights[i][-shared:] *= 1 - rise
    total = np.zeros((starts[-1] + size) * scale, np.float32)
    for start, weight in zip(starts, weights, strict=True):
        total[start * scale : (start + size) * scale] += weight
    for start, weight in zip(starts, weights, strict=True):  # 1 but where three tiles meet
        weight /= total[start * scale : (start + size) * scale]
    return weights


def _starts(length: int, tile: int, overlap: int) -> tuple[int, ...]:
    if length <= tile:
        return (0,)
    count = -(-(length - overlap) // (tile - overlap))
    return tuple(round(i * (length - tile) / (count - 1)) for i in range(count))
