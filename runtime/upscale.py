"""A picture through an engine: whole where that fits, by tiles where it does not."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal, cast

import numpy as np

from runtime.engines.contract import Batch, CuttableEngine, Engine, EngineInfo, PixelEngine, check_size, infer_each
from runtime.errors import UserError
from runtime.global_means import MeanGraphs, take_apart
from runtime.images import Picture, Pixels
from runtime.memory import SHARE, TILE_BYTES_PER_PIXEL, TooMuchMemoryError, free_bytes
from runtime.onnx_file import read_onnx
from runtime.rows import (
    Counter,
    InferEach,
    Progress,
    Read,
    Seconds,
    blended_rows,
    check_depth,
    collect_means,
    cut_rows,
    smallest_input,
    within_memory,
)
from runtime.tiles import Tiling, plan_tiles

WHOLE_PIXELS = 512 * 512
"""LR pixels up to which a picture goes through the engine in one piece by default."""
DEFAULT_TILE = 256
DEFAULT_OVERLAP = 32
SMALLEST_TILE = 64

TilingMode = Literal["fast", "exact"]


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
    tiling: TilingMode = "fast",
    smaller: bool = True,
    progress: Progress | None = None,
) -> Upscaled:
    """Upscale a picture by the engine's scale.

    Args:
        engine: an open engine.
        picture: uint8 or uint16; the result has the same depth. Alpha is upscaled by a bicubic filter.
        tile: side of a tile in LR pixels; 0 for never; None for tiles of 256 where the picture has over 512² pixels,
            and for smaller ones where little memory is free, or for the largest that the engine takes where the picture
            is larger than that. Halved where the engine cannot get the memory.
        overlap: LR pixels that neighbouring tiles share in fast mode.
        tiling: "fast" takes the global means of a network (GMIN has seven) tile by tile and blends the tiles; "exact"
            collects the means of the whole picture first and gives every tile as much context as the network sees, so
            that the pixels are those of the whole picture up to rounding. It costs several times the time.
        smaller: take smaller tiles where the engine cannot get the memory. False where a run must give the same bytes
            on a full machine too: it fails then.
        progress: told after each tile.

    Raises:
        UserError: the network gave values that are not finite, or exact tiles are not possible with this engine.

    In fast mode, a network that looks at the whole picture gives slightly other pixels by tiles; so does any network
    whose receptive field is larger than half of the overlap. ``exact`` is False then.
    """
    height, width = picture.colour.shape[:2]
    if tile is None:
        tile = default_tile(height, width, engine.info, free=int(free_bytes() * SHARE))
    while True:
        try:
            seconds = Seconds()
            rows, colour = _upscaled_colour(engine, picture.colour, tile, overlap, tiling, seconds, progress)
            break
        except TooMuchMemoryError:
            side = tile or max(height, width)
            if side <= SMALLEST_TILE or not smaller:
                raise
            tile, _ = halved((side, side))
    started = time.perf_counter()
    if picture.grey:  # the network sees three equal channels and gives three that are almost equal
        colour = cast(Pixels, np.rint(colour.mean(axis=2, keepdims=True)).astype(colour.dtype).repeat(3, axis=2))
    alpha = None if picture.alpha is None else _resize_alpha(picture.alpha, engine.info.scale)
    seconds.postprocess += time.perf_counter() - started
    return Upscaled(
        picture=replace(picture, colour=colour, alpha=alpha),
        tiles=rows.tiling.count,
        tile=tile or None,
        overlap=rows.overlap,
        exact=rows.exact,
        seconds=seconds,
    )


def halved(sides: tuple[int, int]) -> tuple[int, int]:
    """Sides of the tile to try after one was too large for the memory."""
    return max(sides[0] // 2, SMALLEST_TILE), max(sides[1] // 2, SMALLEST_TILE)


def within_accepted(engine: Engine, sides: tuple[int, int], margin: int = 0) -> tuple[int, int]:
    """``sides`` of a tile, or smaller ones where the engine does not take those with ``margin`` pixels all around.

    Raises:
        UserError: it takes nothing larger than the margin.
    """
    if engine.info.accepts is None:
        return sides
    largest = engine.info.accepts[1]
    fitting = min(sides[0], largest[0] - 2 * margin), min(sides[1], largest[1] - 2 * margin)
    if min(fitting) < 1:
        raise UserError(
            f"Exact tiles need {margin} pixels around them, and {engine.info.engine} takes {largest[1]}x{largest[0]} "
            "at most: use --tiling fast, or build it with larger --shapes."
        )
    return fitting


def default_tile(height: int, width: int, info: EngineInfo | None = None, *, free: int | None = None) -> int:
    """0, the picture in one piece, where it is small, the engine takes it and the memory suffices; else a side.

    Without ``free``, in bytes, the memory does not count: the same picture gives the same tiles on a full machine too.
    """
    pixels = height * width
    if info is not None and info.accepts is not None:  # a plan: what is free on the host does not matter to it
        smallest, largest = info.accepts
        if height <= largest[0] and width <= largest[1] and pixels <= WHOLE_PIXELS:
            return 0
        return min(largest) if smallest == largest else min(DEFAULT_TILE, *largest)
    if pixels <= WHOLE_PIXELS and (free is None or pixels * TILE_BYTES_PER_PIXEL <= free):
        return 0
    if free is None:
        return DEFAULT_TILE
    sides = (DEFAULT_TILE, 192, 128, 96)
    return next((side for side in sides if side * side * TILE_BYTES_PER_PIXEL <= free), SMALLEST_TILE)


def _upscaled_colour(
    engine: Engine,
    colour: Pixels,
    tile: int,
    overlap: int,
    tiling: TilingMode,
    seconds: Seconds,
    progress: Progress | None,
) -> tuple[Rows, Pixels]:
    """(H, W, 3) to (sH, sW, 3) of the same dtype."""

    def read(top: int, bottom: int) -> Pixels:
        return colour[top:bottom]

    height, width = colour.shape[:2]
    rows = upscaled_rows(
        engine, lambda: read, (height, width), tile=tile, overlap=overlap, tiling=tiling, seconds=seconds,
        progress=progress,
    )  # fmt: skip
    scale, top = engine.info.scale, 0
    whole: Pixels | None = None
    with closing(rows.blocks):  # on an error nothing stays in flight
        for block in rows.blocks:
            if len(block) == height * scale:
                return rows, block
            started = time.perf_counter()
            if whole is None:
                whole = cast(Pixels, np.empty((height * scale, width * scale, 3), colour.dtype))
            whole[top : top + len(block)] = block
            top += len(block)
            seconds.postprocess += time.perf_counter() - started
    assert whole is not None, "a picture has at least one row of tiles"
    return rows, whole


@dataclass(frozen=True)
class Rows:
    """A picture on its way: ``blocks`` are its upscaled rows from top to bottom, computed as they are asked for.

    Close ``blocks`` to stop early.
    """

    blocks: Generator[Pixels, None, None]
    tiling: Tiling
    overlap: int
    exact: bool


def upscaled_rows(
    engine: Engine,
    open_read: Callable[[], Read],
    size: tuple[int, int],
    *,
    tile: int | tuple[int, int],
    overlap: int = DEFAULT_OVERLAP,
    tiling: TilingMode = "fast",
    seconds: Seconds | None = None,
    progress: Progress | None = None,
) -> Rows:
    """Upscale rows that ``open_read`` gives, from top to bottom; it is called once for each pass over the picture.

    Args:
        engine: an open engine.
        open_read: starts at the top of the picture.
        size: height and width of the picture.
        tile: side, or height and width, of what is kept of a tile; exact mode adds the context. 0 for never.
        overlap, tiling, seconds, progress: as in ``upscale``.

    Raises:
        UserError: as ``upscale``, when the first rows are asked for.
    """
    seconds = seconds or Seconds()
    height, width = size
    radius, sides = engine.info.receptive_radius, (tile, tile) if isinstance(tile, int) else tile
    graphs = None
    margin = 0
    if tiling == "exact" and all(sides):
        if height > sides[0] + 2 * radius or width > sides[1] + 2 * radius:
            graphs = _graphs(engine)
            radius = max(radius, graphs.radius if graphs else 0)  # the file's own claim is not taken on trust
        margin = radius
        sides = within_accepted(engine, sides, margin)
    if not all(sides) or (height <= sides[0] + 2 * margin and width <= sides[1] + 2 * margin):
        plan = plan_tiles(height, width, tile=max(height, width), overlap=0)
        if isinstance(engine, PixelEngine) and engine.info.pixels == "uint8" and min(size) >= engine.info.minimum_size:
            return Rows(_as_pixels(engine, open_read(), height, seconds, progress), plan, 0, exact=True)
        blocks = blended_rows(engine, open_read(), plan, seconds, progress)
        return Rows(blocks, plan, 0, exact=not _is_padded(engine, plan))
    if tiling == "fast":
        overlap = min(overlap, min(sides) // 2)
        plan = plan_tiles(height, width, tile=sides, overlap=overlap)
        reaches = engine.info.tiling == "exact" and overlap // 4 >= radius and not _is_padded(engine, plan)
        return Rows(blended_rows(engine, open_read(), plan, seconds, progress), plan, overlap, exact=reaches)

    def planned(reach: int) -> Tiling:
        return plan_tiles(height, width, tile=(sides[0] + 2 * reach, sides[1] + 2 * reach), overlap=2 * reach)

    plan = planned(radius)
    passes = [planned(reach) for reach in graphs.radii] if graphs else []
    blocks = _exact_blocks(engine, graphs, open_read, plan, passes, seconds, progress)
    return Rows(blocks, plan, 2 * radius, exact=not _is_padded(engine, plan))


def _is_padded(engine: Engine, plan: Tiling) -> bool:
    """Whether an engine that takes certain sizes only gets more than the tile, which a global mean would see."""
    smallest = smallest_input(engine)
    return (
        engine.info.tiling != "exact"
        and engine.info.accepts is not None
        and (plan.height < smallest[0] or plan.width < smallest[1])
    )


def _as_pixels(
    engine: PixelEngine, read: Read, height: int, seconds: Seconds, progress: Progress | None
) -> Generator[Pixels, None, None]:
    """A whole picture through a file that takes and gives uint8: nothing is left to do before and after."""
    rows = read(0, height)
    check_depth(engine, rows)
    check_size(engine.info, *rows.shape[:2])
    started = time.perf_counter()
    with within_memory(engine, *rows.shape[:2]):
        result = engine.infer_pixels(np.ascontiguousarray(rows, np.uint8)[None])[0]
    seconds.inference += time.perf_counter() - started
    if progress:
        progress(1, 1)
    yield result


def _graphs(engine: Engine) -> MeanGraphs | None:
    """What exact tiles of this engine need; None for a network that is local."""
    if engine.info.tiling == "exact":
        return None
    if isinstance(engine, CuttableEngine) and engine.info.accepts is not None:
        raise UserError(
            f"Exact tiles need a file for any size, and {engine.info.engine} is for one: use --tiling fast."
        )
    if not isinstance(engine, CuttableEngine) or engine.path.suffix.lower() != ".onnx":
        raise UserError(
            f"Exact tiles need an .onnx file in ONNX Runtime or OpenVINO, without --x8, not {engine.info.engine} in "
            f"{engine.info.backend}: use --tiling fast, or --tile 0 for the picture in one piece."
        )
    return take_apart(read_onnx(engine.path.read_bytes()))


def _exact_blocks(
    engine: Engine,
    graphs: MeanGraphs | None,
    open_read: Callable[[], Read],
    plan: Tiling,
    passes: list[Tiling],
    seconds: Seconds,
    progress: Progress | None,
) -> Generator[Pixels, None, None]:
    count = Counter(plan.count + sum(tiling.count for tiling in passes), progress)
    run_each: InferEach = partial(infer_each, engine)
    if graphs is not None:
        assert isinstance(engine, CuttableEngine)
        known = collect_means(engine, graphs, open_read, passes, seconds, count)
        smallest = smallest_input(engine)
        run = engine.open_part(graphs.network, (1, 3, max(plan.height, smallest[0]), max(plan.width, smallest[1])))

        def run_each(batches: Iterable[Batch]) -> Generator[Batch, None, None]:
            for batch in batches:
                yield run({"": batch, **known})

    yield from cut_rows(engine, run_each, open_read(), plan, seconds, count)


def _resize_alpha(alpha: Pixels, scale: int) -> Pixels:
    import cv2

    height, width = alpha.shape
    resized = cv2.resize(alpha, (width * scale, height * scale), interpolation=cv2.INTER_CUBIC)
    return cast(Pixels, resized.astype(alpha.dtype))
