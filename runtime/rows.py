"""Tiles through a network, given back as finished rows of the upscaled picture from top to bottom.

A picture in memory and a file that never is in memory as a whole take the same way. Two modes: ``blended_rows`` joins
neighbouring tiles by ramps, which hides what is approximate about them; ``cut_rows`` gives each tile so much context
that what it keeps is exact, after ``collect_means`` has found what a network takes from the whole picture.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from runtime.engines.contract import Batch, CuttableEngine, Engine
from runtime.errors import UserError
from runtime.global_means import ENDS, STARTS, MeanGraphs
from runtime.images import Pixels
from runtime.memory import TooMuchMemoryError, is_out_of_memory
from runtime.tiles import Tiling, cores, ramps

Read = Callable[[int, int], Pixels]
"""Rows ``top`` to ``bottom`` of a picture, (bottom - top, W, 3) RGB. Called from top to bottom: ``top`` never falls."""
Sample = TypeVar("Sample", np.float32, np.uint8)
Progress = Callable[[int, int], None]
"""Called with (tiles done, tiles in all)."""


@dataclass
class Seconds:
    """Time by stage, in seconds. ``means`` is what exact tiles cost before the first of them."""

    load: float = 0.0
    preprocess: float = 0.0
    means: float = 0.0
    inference: float = 0.0
    postprocess: float = 0.0


class Counter:
    """Tiles done and to do, over all passes, told to ``progress``."""

    def __init__(self, total: int, progress: Progress | None) -> None:
        self.done, self.total, self.progress = 0, total, progress

    def __call__(self) -> None:
        """One tile more is done."""
        self.done += 1
        if self.progress:
            self.progress(self.done, self.total)


def blended_rows(
    engine: Engine, read: Read, tiling: Tiling, seconds: Seconds, progress: Progress | None = None
) -> Iterator[Pixels]:
    """Upscaled rows, block by block, (h, sW, 3) each; one row of tiles is held as floats.

    Raises:
        UserError: the network gave values that are not finite.
    """
    scale, count = engine.info.scale, Counter(tiling.count, progress)
    width = tiling.columns[-1] + tiling.width
    down, across = ramps(tiling.rows, tiling.height, scale), ramps(tiling.columns, tiling.width, scale)
    strip = np.zeros((tiling.height * scale, width * scale, 3), np.float32)
    for i, top in enumerate(tiling.rows):
        rows = read(top, top + tiling.height)
        for j, left in enumerate(tiling.columns):
            output = _infer(engine, engine.infer, rows[:, left : left + tiling.width], seconds)
            started = time.perf_counter()
            weight = (down[i][:, None] * across[j])[..., None] if tiling.count > 1 else np.float32(1)
            strip[:, left * scale : (left + tiling.width) * scale] += output.transpose(1, 2, 0) * weight
            seconds.postprocess += time.perf_counter() - started
            count()
        started = time.perf_counter()
        last = i + 1 == len(tiling.rows)
        done = tiling.height if last else tiling.rows[i + 1] - top  # rows that no later tile adds to
        finished = _integers(strip[: done * scale], rows.dtype)
        strip[: (tiling.height - done) * scale] = strip[done * scale :]
        strip[(tiling.height - done) * scale :] = 0
        seconds.postprocess += time.perf_counter() - started
        yield finished


def cut_rows(
    engine: Engine,
    infer: Callable[[Batch], Batch],
    read: Read,
    tiling: Tiling,
    seconds: Seconds,
    count: Counter,
) -> Iterator[Pixels]:
    """Upscaled rows, block by block, each tile cut to its core (``runtime.tiles.cores``).

    Raises:
        UserError: the network gave values that are not finite.
    """
    scale = engine.info.scale
    width = tiling.columns[-1] + tiling.width
    columns = list(zip(tiling.columns, cores(tiling.columns, tiling.width), strict=True))
    for top, (first, end) in zip(tiling.rows, cores(tiling.rows, tiling.height), strict=True):
        rows = read(top, top + tiling.height)
        finished = cast(Pixels, np.empty(((end - first) * scale, width * scale, 3), rows.dtype))
        for left, (start, stop) in columns:
            output = _infer(engine, infer, rows[:, left : left + tiling.width], seconds)
            started = time.perf_counter()
            core = output[
                :, (first - top) * scale : (end - top) * scale, (start - left) * scale : (stop - left) * scale
            ]
            finished[:, start * scale : stop * scale] = _integers(core.transpose(1, 2, 0), rows.dtype)
            seconds.postprocess += time.perf_counter() - started
            count()
        yield finished


def collect_means(
    engine: CuttableEngine,
    graphs: MeanGraphs,
    open_read: Callable[[], Read],
    tilings: Sequence[Tiling],
    seconds: Seconds,
    count: Counter,
) -> dict[str, NDArray[np.float32]]:
    """The global means of a picture, collected by tiles in one pass for each; name to (1, C, 1, 1).

    ``open_read`` starts again at the top of the picture, ``tilings`` are those of the passes.
    """
    started = time.perf_counter()
    known: dict[str, NDArray[np.float32]] = {}
    for name, content, tiling in zip(graphs.means, graphs.stages, tilings, strict=True):
        run, read = engine.open_part(content, (1, 3, tiling.height, tiling.width)), open_read()
        area = (tiling.rows[-1] + tiling.height) * (tiling.columns[-1] + tiling.width)
        total: NDArray[np.float64] | float = 0.0
        for top, (first, end) in zip(tiling.rows, cores(tiling.rows, tiling.height), strict=True):
            rows = read(top, top + tiling.height)
            for left, (start, stop) in zip(tiling.columns, cores(tiling.columns, tiling.width), strict=True):
                window = {STARTS: np.array([first - top, start - left]), ENDS: np.array([end - top, stop - left])}
                mean = run({"": to_batch(rows[:, left : left + tiling.width]), **known, **window})
                total = total + mean.astype(np.float64) * ((end - first) * (stop - start) / area)
                count()
        known[name] = np.asarray(total, np.float32)
    seconds.means += time.perf_counter() - started
    return known


def to_batch(piece: Pixels, minimum: int = 1) -> Batch:
    """(H, W, 3) integers to (1, 3, H, W) float32 in [0, 1]; smaller sides than ``minimum`` repeat their last pixels."""
    rows, columns = max(0, minimum - piece.shape[0]), max(0, minimum - piece.shape[1])
    peak = np.iinfo(piece.dtype).max
    if rows or columns:
        piece = cast(Pixels, np.pad(piece, ((0, rows), (0, columns), (0, 0)), mode="edge"))
    batch = np.ascontiguousarray(piece.transpose(2, 0, 1)[None], np.float32)
    batch /= np.float32(peak)
    return batch


def infer_within_memory(
    engine: Engine, infer: Callable[[NDArray[Sample]], NDArray[Sample]], batch: NDArray[Sample]
) -> NDArray[Sample]:
    """``infer(batch)``, where any library's way to say that it got no memory is one error.

    Raises:
        TooMuchMemoryError: a smaller tile may do.
    """
    try:
        return infer(batch)
    except Exception as error:  # each library has its own kind
        if not is_out_of_memory(error):
            raise
        *_, height, width = batch.shape if batch.dtype != np.uint8 else batch.shape[:-1]
        raise TooMuchMemoryError(
            f"{engine.info.engine} cannot get the memory for {width}x{height} pixels: name a smaller --tile."
        ) from error


def _infer(engine: Engine, infer: Callable[[Batch], Batch], piece: Pixels, seconds: Seconds) -> NDArray[np.float32]:
    """(h, w, 3) integers to (3, sh, sw) float32."""
    started = time.perf_counter()
    batch = to_batch(piece, engine.info.minimum_size)
    prepared = time.perf_counter()
    whole = infer_within_memory(engine, infer, batch)
    scale = engine.info.scale
    if whole.shape != (1, 3, batch.shape[2] * scale, batch.shape[3] * scale):
        raise UserError(
            f"{engine.info.engine} says that it enlarges {scale} times, and turned {batch.shape} into {whole.shape}."
        )
    output = whole[0, :, : piece.shape[0] * engine.info.scale, : piece.shape[1] * engine.info.scale]
    seconds.preprocess += prepared - started
    seconds.inference += time.perf_counter() - prepared
    if not np.isfinite(output).all():
        raise UserError(
            f"{engine.info.engine} gave infinite or undefined values for this picture: its activations "
            "overflow on it. Use another precision (FP32) or other weights."
        )
    return output


def _integers(values: NDArray[np.float32], dtype: np.dtype[np.uint8] | np.dtype[np.uint16]) -> Pixels:
    """Scale, round and clamp floats in place, as integers of ``dtype``."""
    peak = np.iinfo(dtype).max
    np.multiply(values, peak, out=values)
    np.rint(values, out=values)
    np.clip(values, 0, peak, out=values)
    return cast(Pixels, values.astype(dtype))
