"""Tiles through a network, given back as finished rows of the upscaled picture from top to bottom.

A picture in memory and a file that never is in memory as a whole take the same way. Two modes: ``blended_rows`` joins
neighbouring tiles by ramps, which hides what is approximate about them; ``cut_rows`` gives each tile so much context
that what it keeps is exact, after ``collect_means`` has found what a network takes from the whole picture.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any, cast

import cv2
import numpy as np
from numpy.typing import NDArray

from runtime.engines.contract import Batch, CuttableEngine, Engine, check_size, infer_each
from runtime.errors import UserError
from runtime.global_means import ENDS, STARTS, MeanGraphs
from runtime.images import Pixels
from runtime.memory import TooMuchMemoryError, is_out_of_memory
from runtime.tiles import Tiling, cores, ramps

Read = Callable[[int, int], Pixels]
"""Rows ``top`` to ``bottom`` of a picture, (bottom - top, W, 3) RGB. Called from top to bottom: ``top`` never falls."""
InferEach = Callable[[Iterable[Batch]], Generator[Batch, None, None]]
"""As ``runtime.engines.contract.infer_each`` with an engine."""
Progress = Callable[[int, int], None]
"""Called with (tiles done, tiles in all)."""
_BAND = 32


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
) -> Generator[Pixels, None, None]:
    """Upscaled rows, block by block, (h, sW, 3) each; one row of tiles is held as floats. Close it to stop early.

    Raises:
        UserError: the network gave values that are not finite.
    """
    scale, count = engine.info.scale, Counter(tiling.count, progress)
    if tiling.count == 1:  # nothing to blend
        with closing(_outputs(engine, lambda batches: infer_each(engine, batches), read, tiling, seconds)) as outputs:
            output, dtype = next(outputs)
            started = time.perf_counter()
            finished = _pixels(output, dtype)
            seconds.postprocess += time.perf_counter() - started
            count()
            yield finished
        return
    width = tiling.columns[-1] + tiling.width
    down, across = ramps(tiling.rows, tiling.height, scale), ramps(tiling.columns, tiling.width, scale)
    strip = np.zeros((3, tiling.height * scale, width * scale), np.float32)  # planes, as the network gives them
    with closing(_outputs(engine, lambda batches: infer_each(engine, batches), read, tiling, seconds)) as outputs:
        for i, top in enumerate(tiling.rows):
            for j, left in enumerate(tiling.columns):
                output, dtype = next(outputs)
                started = time.perf_counter()
                ramp = down[i][:, None] * across[j]
                for plane, values in zip(strip[..., left * scale : (left + tiling.width) * scale], output, strict=True):
                    cv2.accumulateProduct(values, ramp, plane)
                seconds.postprocess += time.perf_counter() - started
                count()
            started = time.perf_counter()
            last = i + 1 == len(tiling.rows)
            done = tiling.height if last else tiling.rows[i + 1] - top  # rows that no later tile adds to
            finished = _pixels(strip[:, : done * scale], dtype)
            strip[:, : (tiling.height - done) * scale] = strip[:, done * scale :]
            strip[:, (tiling.height - done) * scale :] = 0
            seconds.postprocess += time.perf_counter() - started
            yield finished


def cut_rows(
    engine: Engine,
    run_each: InferEach,
    read: Read,
    tiling: Tiling,
    seconds: Seconds,
    count: Counter,
) -> Generator[Pixels, None, None]:
    """Upscaled rows, block by block, each tile cut to its core (``runtime.tiles.cores``). Close it to stop early.

    Raises:
        UserError: the network gave values that are not finite.
    """
    scale = engine.info.scale
    width = tiling.columns[-1] + tiling.width
    columns = list(zip(tiling.columns, cores(tiling.columns, tiling.width), strict=True))
    with closing(_outputs(engine, run_each, read, tiling, seconds)) as outputs:
        for top, (first, end) in zip(tiling.rows, cores(tiling.rows, tiling.height), strict=True):
            finished: Pixels | None = None
            for left, (start, stop) in columns:
                output, dtype = next(outputs)
                started = time.perf_counter()
                if finished is None:
                    finished = cast(Pixels, np.empty(((end - first) * scale, width * scale, 3), dtype))
                core = output[
                    :, (first - top) * scale : (end - top) * scale, (start - left) * scale : (stop - left) * scale
                ]
                finished[:, start * scale : stop * scale] = _pixels(core, dtype)
                seconds.postprocess += time.perf_counter() - started
                count()
            assert finished is not None, "a row of tiles has at least one"
            yield finished


def _outputs(
    engine: Engine, run_each: InferEach, read: Read, tiling: Tiling, seconds: Seconds
) -> Generator[tuple[NDArray[np.float32], np.dtype[np.uint8] | np.dtype[np.uint16]], None, None]:
    """Each tile through the network, row by row: (3, scale·h, scale·w) float32, and the type of the picture's samples.

    Batches are made as the engine takes them, which may be a few ahead of the results.
    """
    scale, smallest = engine.info.scale, smallest_input(engine)
    shape = (1, 3, max(tiling.height, smallest[0]), max(tiling.width, smallest[1]))
    check_size(engine.info, *shape[2:])
    expected = (1, 3, shape[2] * scale, shape[3] * scale)
    dtypes: list[np.dtype[np.uint8] | np.dtype[np.uint16]] = []

    def batches() -> Iterator[Batch]:
        for top in tiling.rows:
            started = time.perf_counter()
            rows = read(top, top + tiling.height)
            check_depth(engine, rows)
            dtypes[:] = [rows.dtype]
            for left in tiling.columns:
                batch = to_batch(rows[:, left : left + tiling.width], smallest)
                seconds.preprocess += time.perf_counter() - started
                yield batch
                started = time.perf_counter()

    with closing(run_each(batches())) as results:  # on an error nothing stays in flight
        for _ in range(tiling.count):
            started, prepared = time.perf_counter(), seconds.preprocess
            with within_memory(engine, shape[2], shape[3]):
                whole = next(results)
            seconds.inference += time.perf_counter() - started - (seconds.preprocess - prepared)
            if whole.shape != expected:
                raise UserError(
                    f"{engine.info.engine} says that it enlarges {scale} times, and turned {shape} into {whole.shape}."
                )
            output = whole[0, :, : tiling.height * scale, : tiling.width * scale]
            if not np.isfinite(output).all():
                raise UserError(
                    f"{engine.info.engine} gave infinite or undefined values for this picture: its activations "
                    "overflow on it. Use another precision (FP32) or other weights."
                )
            yield output, dtypes[0]


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


def smallest_input(engine: Engine) -> tuple[int, int]:
    """Smallest height and width that the engine takes; smaller pieces are padded."""
    low = engine.info.accepts[0] if engine.info.accepts else (0, 0)
    return max(low[0], engine.info.minimum_size), max(low[1], engine.info.minimum_size)


def to_batch(piece: Pixels, smallest: tuple[int, int] = (1, 1)) -> Batch:
    """(H, W, 3) integers to (1, 3, H, W) float32 in [0, 1]; sides below ``smallest`` repeat their last pixels."""
    rows, columns = max(0, smallest[0] - piece.shape[0]), max(0, smallest[1] - piece.shape[1])
    peak = np.iinfo(piece.dtype).max
    if rows or columns:
        piece = cast(Pixels, np.pad(piece, ((0, rows), (0, columns), (0, 0)), mode="edge"))
    batch = np.ascontiguousarray(piece.transpose(2, 0, 1)[None], np.float32)
    batch /= np.float32(peak)
    return batch


def check_depth(engine: Engine, rows: Pixels) -> None:
    """Refuse 16 bits for a file that rounds to 8 by itself.

    Raises:
        UserError: it does.
    """
    if engine.info.pixels == "uint8" and rows.dtype != np.uint8:
        raise UserError(
            f"{engine.info.engine} takes 8 bits only, and this picture has 16: use a file without --fuse-io."
        )


@contextmanager
def within_memory(engine: Engine, height: int, width: int) -> Iterator[None]:
    """Any library's way to say that it got no memory for an input of this size as one error.

    Raises:
        TooMuchMemoryError: a smaller tile may do.
    """
    try:
        yield
    except Exception as error:  # each library has its own kind
        if not is_out_of_memory(error):
            raise
        raise TooMuchMemoryError(
            f"{engine.info.engine} cannot get the memory for {width}x{height} pixels: name a smaller --tile."
        ) from error


def _pixels(planes: NDArray[np.float32], dtype: np.dtype[np.uint8] | np.dtype[np.uint16]) -> Pixels:
    """(3, H, W) floats in [0, 1], scaled, rounded and clamped, as (H, W, 3) integers of ``dtype``."""
    peak: Any = np.iinfo(dtype).max  # a number, which OpenCV's type hints do not know of
    kind = cv2.CV_8U if dtype == np.uint8 else cv2.CV_16U
    _, height, width = planes.shape
    pixels = np.empty((height, width, 3), dtype)
    for top in range(0, height, _BAND):  # few rows at a time, which stay in the cache between the two steps
        bottom = top + _BAND
        channels = [cv2.multiply(plane[top:bottom], peak, dtype=kind) for plane in planes]
        cv2.merge(channels, pixels[top:bottom])
    return cast(Pixels, pixels)
