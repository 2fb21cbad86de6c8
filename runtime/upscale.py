"""A picture through an engine: whole where that fits, by tiles where it does not."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from typing import cast

import numpy as np
from numpy.typing import NDArray

from runtime.engines.contract import Batch, Engine, infer_each
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
        tile: side of a tile in LR pixels; 0 for never; None for tiles of 256 where the picture has over 512² pixels,
            or for the largest tiles that the engine takes where the picture is larger than that.
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
        tile = _default_tile(engine, height, width)
    side = tile or max(height, width)
    tiling = plan_tiles(height, width, tile=side, overlap=min(overlap, side // 2) if tile else 0)
    colour = _by_tiles(engine, picture.colour, tiling, seconds, progress)
    started = time.perf_counter()
    if picture.grey:  # the network sees three equal channels and gives three that are almost equal
        colour = cast(Pixels, np.rint(colour.mean(axis=2, keepdims=True)).astype(colour.dtype).repeat(3, axis=2))
    alpha = None if picture.alpha is None else _resize_alpha(picture.alpha, engine.info.scale)
    seconds.postprocess += time.perf_counter() - started
    lowest = _smallest(engine)
    padded = (
        engine.info.tiling != "exact"
        and engine.info.accepts is not None
        and (tiling.height < lowest[0] or tiling.width < lowest[1])
    )
    reaches = engine.info.tiling == "exact" and overlap // 4 >= engine.info.receptive_radius
    return Upscaled(
        picture=Picture(colour, alpha, grey=picture.grey, metadata=picture.metadata),
        tiles=tiling.count,
        tile=tile or None,
        overlap=overlap if tile else 0,
        exact=not padded and (tiling.count == 1 or reaches),
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
    smallest = _smallest(engine)

    def batches() -> Iterator[Batch]:
        for top in tiling.rows:
            for left in tiling.columns:
                started = time.perf_counter()
                batch = _to_batch(colour[top : top + tiling.height, left : left + tiling.width], peak, smallest)
                seconds.preprocess += time.perf_counter() - started
                yield batch

    with closing(infer_each(engine, batches())) as outputs:  # on an error nothing stays in flight
        for i, top in enumerate(tiling.rows):
            for j, left in enumerate(tiling.columns):
                started, prepared = time.perf_counter(), seconds.preprocess
                output = next(outputs)[0, :, : tiling.height * scale, : tiling.width * scale]
                inferred = time.perf_counter()
                seconds.inference += inferred - started - (seconds.preprocess - prepared)
                if not np.isfinite(output).all():
                    raise UserError(
                        f"{engine.info.engine} gave infinite or undefined values for this picture: its activations "
                        "overflow on it. Use another precision (FP32) or other weights."
                    )
                weight = (down[i][:, None] * across[j])[..., None] if tiling.count > 1 else np.float32(1)
                strip[:, left * scale : (left + tiling.width) * scale] += output.transpose(1, 2, 0) * weight
                seconds.postprocess += time.perf_counter() - inferred
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


def _default_tile(engine: Engine, height: int, width: int) -> int:
    """Tiles only where the picture is large, or larger than the engine takes."""
    if engine.info.accepts is None:
        return 0 if height * width <= WHOLE_PIXELS else DEFAULT_TILE
    smallest, largest = engine.info.accepts
    if height <= largest[0] and width <= largest[1] and height * width <= WHOLE_PIXELS:
        return 0
    return min(largest) if smallest == largest else min(DEFAULT_TILE, *largest)


def _smallest(engine: Engine) -> tuple[int, int]:
    """Smallest height and width that the engine takes; smaller pieces are padded."""
    low = engine.info.accepts[0] if engine.info.accepts else (0, 0)
    return max(low[0], engine.info.minimum_size), max(low[1], engine.info.minimum_size)


def _to_batch(piece: Pixels, peak: int, smallest: tuple[int, int]) -> Batch:
    """(H, W, 3) integers to (1, 3, H, W) float32 in [0, 1]; sides below ``smallest`` repeat their last pixels."""
    rows, columns = max(0, smallest[0] - piece.shape[0]), max(0, smallest[1] - piece.shape[1])
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
