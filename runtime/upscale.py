"""A picture through an engine: whole where that fits, by tiles where it does not."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import cast

import numpy as np
from numpy.typing import NDArray

from runtime.engines.contract import Engine
from runtime.errors import UserError
from runtime.images import Picture, Pixels
from runtime.tiles import Tiling, plan_tiles, ramps

WHOLE_PIXELS = 512 * 512
"""LR pixels up to which a picture goes through the engine in one piece by default."""
DEFAULT_TILE = 256
DEFAULT_OVERLAP = 32

Progress = Callable[[int, int], None]
"""Called with (tiles done, tiles in all)."""


@dataclass
class Seconds:
    """Time by stage, in seconds."""

    load: float = 0.0
    preprocess: float = 0.0
    inference: float = 0.0
    postprocess: float = 0.0


@dataclass(frozen=True)
class Upscaled:
    """A result. ``exact`` tells whether the pixels are those of the network run on the whole picture."""

    picture: Picture
    tiles: int
    tile: int | None
    overlap: int
    exact: bool
    seconds: Seconds = field(default_factory=Seconds)


def upscale(
    engine: Engine,
    picture: Picture,
    *,
    tile: int | None = None,
    overlap: int = DEFAULT_OVERLAP,
    progress: Progress | None = None,
) -> Upscaled:
    """Upscale a picture by the engine's scale.

    Args:
        engine: an open engine.
        picture: uint8 or uint16; the result has the same depth. Alpha is upscaled by a bicubic filter.
        tile: side of a tile in LR pixels; 0 for never; None for tiles of 256 where the picture has over 512² pixels.
        overlap: LR pixels that neighbouring tiles share.
        progress: told after each tile.

    Raises:
        UserError: the network gave values that are not finite.

    A network that looks at the whole picture (GMIN: a global mean in each module) gives slightly other pixels by
    tiles; so does any network whose receptive field is larger than half of the overlap. ``exact`` is False then.
    """
    seconds = Seconds()
    height, width = picture.colour.shape[:2]
    if tile is None:
        tile = 0 if height * width <= WHOLE_PIXELS else DEFAULT_TILE
    side = tile or max(height, width)
    tiling = plan_tiles(height, width, tile=side, overlap=min(overlap, side // 2) if tile else 0)
    colour = _by_tiles(engine, picture.colour, tiling, seconds, progress)
    started = time.perf_counter()
    if picture.grey:  # the network sees three equal channels and gives three that are almost equal
        colour = cast(Pixels, np.rint(colour.mean(axis=2, keepdims=True)).astype(colour.dtype).repeat(3, axis=2))
    alpha = None if picture.alpha is None else _resize_alpha(picture.alpha, engine.info.scale)
    seconds.postprocess += time.perf_counter() - started
    reaches = engine.info.tiling == "exact" and overlap // 4 >= engine.info.receptive_radius
    return Upscaled(
        picture=Picture(colour, alpha, grey=picture.grey, metadata=picture.metadata),
        tiles=tiling.count,
        tile=tile or None,
        overlap=overlap if tile else 0,
        exact=tiling.count == 1 or reaches,
        seconds=seconds,
    )


def _by_tiles(engine: Engine, colour: Pixels, tiling: Tiling, seconds: Seconds, progress: Progress | None) -> Pixels:
    """(H, W, 3) to (sH, sW, 3) of the same dtype. Only one row of tiles is ever held as floats."""
    scale = engine.info.scale
    height, width = colour.shape[:2]
    peak = np.iinfo(colour.dtype).max
    down, across = ramps(tiling.rows, tiling.height, scale), ramps(tiling.columns, tiling.width, scale)
    result = np.empty((height * scale, width * scale, 3), colour.dtype)[..., ::-1]  # stored as BGR, as files want it
    strip = np.zeros((tiling.height * scale, width * scale, 3), np.float32)
    for i, top in enumerate(tiling.rows):
        for j, left in enumerate(tiling.columns):
            started = time.perf_counter()
            piece = colour[top : top + tiling.height, left : left + tiling.width]
            batch = _to_batch(piece, peak, engine.info.minimum_size)
            prepared = time.perf_counter()
            output = engine.infer(batch)[0, :, : piece.shape[0] * scale, : piece.shape[1] * scale]
            inferred = time.perf_counter()
            if not np.isfinite(output).all():
                raise UserError(
                    f"{engine.info.engine} gave infinite or undefined values for this picture: its activations "
                    "overflow on it. Use another precision (FP32) or other weights."
                )
            weight = (down[i][:, None] * across[j])[..., None] if tiling.count > 1 else np.float32(1)
            strip[:, left * scale : (left + tiling.width) * scale] += output.transpose(1, 2, 0) * weight
            finished = time.perf_counter()
            seconds.preprocess += prepared - started
            seconds.inference += inferred - prepared
            seconds.postprocess += finished - inferred
            if progress:
                progress(i * len(tiling.columns) + j + 1, tiling.count)
        started = time.perf_counter()
        last = i + 1 == len(tiling.rows)
        done = tiling.height if last else tiling.rows[i + 1] - top  # rows that no later tile adds to
        _store(strip[: done * scale], result[top * scale : (top + done) * scale], peak)
        strip[: (tiling.height - done) * scale] = strip[done * scale :]
        strip[(tiling.height - done) * scale :] = 0
        seconds.postprocess += time.perf_counter() - started
    return result


def _to_batch(piece: Pixels, peak: int, minimum: int) -> NDArray[np.float32]:
    """(H, W, 3) integers to (1, 3, H, W) float32 in [0, 1]; smaller sides than ``minimum`` repeat their last pixels."""
    rows, columns = max(0, minimum - piece.shape[0]), max(0, minimum - piece.shape[1])
    if rows or columns:
        piece = cast(Pixels, np.pad(piece, ((0, rows), (0, columns), (0, 0)), mode="edge"))
    batch = np.ascontiguousarray(piece.transpose(2, 0, 1)[None], np.float32)
    batch /= np.float32(peak)
    return batch


def _store(strip: NDArray[np.float32], target: Pixels, peak: int) -> None:
    """Clamp, scale and round floats into ``target``, in place and without another copy of the strip."""
    np.multiply(strip, peak, out=strip)
    np.rint(strip, out=strip)
    np.clip(strip, 0, peak, out=strip)
    target[...] = strip


def _resize_alpha(alpha: Pixels, scale: int) -> Pixels:
    import cv2

    height, width = alpha.shape
    resized = cv2.resize(alpha, (width * scale, height * scale), interpolation=cv2.INTER_CUBIC)
    return cast(Pixels, resized.astype(alpha.dtype))
