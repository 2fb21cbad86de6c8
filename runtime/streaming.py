"""Pictures that are never in memory as a whole: read by strips with libvips, written by strips as tiled BigTIFF.

libvips decodes PNG, JPEG and TIFF from top to bottom; tifffile takes the finished tiles one by one. In between there is
one row of tiles. Exact mode reads the file once for each global mean.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from runtime.engines.contract import Engine
from runtime.errors import UserError
from runtime.files import replacing
from runtime.images import Pixels
from runtime.memory import SHARE, TooMuchMemoryError, free_bytes, resident_bytes, tile_that_fits
from runtime.rows import Progress, Seconds
from runtime.upscale import DEFAULT_OVERLAP, SMALLEST_TILE, TilingMode, halved, upscaled_rows, within_accepted

MAX_PIXELS = 4_000_000_000
"""Pixels that an input may have: a header that claims more is a mistake or an attack."""
_LOADERS = {"pngload", "jpegload", "tiffload", "webpload"}
_TIFF_TILE = 256


@dataclass(frozen=True)
class Streamed:
    """What was done. Sizes are those of the result; ``tile`` is (height, width) of what was kept of a tile."""

    width: int
    height: int
    tiles: int
    tile: tuple[int, int]
    overlap: int
    exact: bool
    seconds: Seconds


def upscale_file(
    engine: Engine,
    source: Path,
    target: Path,
    *,
    tile: int | None = None,
    overlap: int = DEFAULT_OVERLAP,
    tiling: TilingMode = "fast",
    memory_bytes: int | None = None,
    progress: Progress | None = None,
) -> Streamed:
    """Upscale a picture of any size into a tiled BigTIFF, with the memory of one row of tiles.

    Args:
        engine: an open engine.
        source: PNG, JPEG, TIFF or WebP, 8 or 16 bit, grey or colour. WebP is decoded as a whole.
        target: .tif or .tiff, written whole or not at all. The ICC profile is kept; the picture is turned upright.
        tile: side of a tile in LR pixels; None for what fits into the memory, halved where the engine cannot get it.
        overlap: LR pixels that neighbouring tiles share in fast mode.
        tiling: as in ``runtime.upscale.upscale``.
        memory_bytes: the whole process may take this much; None for half of what is free.
        progress: told after each tile.

    Raises:
        UserError: the extra is not installed, the picture is damaged or of another kind, or it cannot be written.
    """
    if target.suffix.lower() not in (".tif", ".tiff"):
        raise UserError(f"{target} must end in .tif: pictures are streamed into BigTIFF files.")
    opened = _Opened(source)
    scale = engine.info.scale
    margin = engine.info.receptive_radius if tiling == "exact" else 0
    shared = 0 if margin else overlap
    budget = int(free_bytes() * SHARE) if memory_bytes is None else memory_bytes - resident_bytes()
    band = _TIFF_TILE * opened.width * scale * 3 * opened.dtype.itemsize
    fitting = (tile, tile) if tile else tile_that_fits(
        budget - band, width=opened.width, scale=scale, margin=margin, overlap=shared, item_bytes=opened.dtype.itemsize
    )  # fmt: skip
    if fitting is None:
        raise UserError(
            f"{max(budget, 0) // 1_000_000} MB of memory are not enough to upscale {source} by strips; allow more with "
            "--memory, or name a small --tile."
        )
    sides = fitting if tile else within_accepted(engine, fitting, margin)
    while True:
        try:
            return _once(engine, opened, target, sides, overlap, tiling, progress)
        except TooMuchMemoryError:
            if min(sides) <= SMALLEST_TILE:
                raise
            sides = halved(sides)


def _once(
    engine: Engine,
    opened: _Opened,
    target: Path,
    sides: tuple[int, int],
    overlap: int,
    tiling: TilingMode,
    progress: Progress | None,
) -> Streamed:
    import tifffile

    seconds, scale = Seconds(), engine.info.scale
    height, width = opened.height * scale, opened.width * scale
    rows = upscaled_rows(
        engine, opened.reader, (opened.height, opened.width), tile=sides, overlap=overlap, tiling=tiling,
        seconds=seconds, progress=progress,
    )  # fmt: skip
    bands = 1 if opened.grey else 3
    with closing(rows.blocks), replacing(target) as temporary:  # on an error nothing stays in flight
        try:
            tifffile.imwrite(
                temporary,
                _tiles(rows.blocks, width, bands),
                shape=(height, width) if opened.grey else (height, width, 3),
                dtype=opened.dtype,
                bigtiff=True,
                photometric="minisblack" if opened.grey else "rgb",
                tile=(_TIFF_TILE, _TIFF_TILE),
                compression="zlib",
                iccprofile=opened.profile,
                metadata=None,
                maxworkers=1,
                buffersize=1 << 24,  # its default of 256 MB would be the largest thing in memory
            )
        except OSError as error:
            raise UserError(f"Cannot write {target}: {error.strerror or error}.") from error
    return Streamed(width, height, rows.tiling.count, sides, rows.overlap, rows.exact, seconds)


class _Opened:
    """A picture file whose header has been read; ``reader`` starts at its top."""

    def __init__(self, path: Path) -> None:
        os.environ.setdefault("VIPS_BLOCK_UNTRUSTED", "1")  # read when the library is loaded
        try:
            import pyvips
            import tifffile  # noqa: F401 -- asked for now, and not after an hour
        except ImportError as error:
            raise UserError("Huge pictures need pyvips and tifffile: pip install 'gmin-edge[huge]'.") from error
        if not path.is_file():
            raise UserError(f"There is no picture at {path}.")
        pyvips.cache_set_max(0)  # nothing is computed twice, so nothing need be kept
        self._vips, self._path = pyvips, path
        image = self._open()
        self.width, self.height = int(image.width), int(image.height)
        loader = str(image.get("vips-loader")).removesuffix("_source")
        if loader not in _LOADERS:
            raise UserError(f"{path} is not a PNG, JPEG, TIFF or WebP picture.")
        if self.width * self.height > MAX_PIXELS:
            raise UserError(f"{path} claims {self.width}x{self.height} pixels, more than {MAX_PIXELS:,}.")
        if image.format not in ("uchar", "ushort") or image.interpretation == "cmyk" or image.bands not in (1, 3):
            raise UserError(
                f"{path} has {image.bands} channels of {image.format} ({image.interpretation}); by strips, only grey "
                "and RGB pictures of 8 or 16 bits without transparency are upscaled."
            )
        self.grey = image.bands == 1
        self.dtype: np.dtype[Any] = np.dtype(np.uint8 if image.format == "uchar" else np.uint16)
        self.profile: bytes | None = None
        if "icc-profile-data" in image.get_fields():
            self.profile = bytes(image.get("icc-profile-data"))

    def reader(self) -> Callable[[int, int], Pixels]:
        """Rows of the picture from the top on; only those from the last ``top`` on are kept."""
        region = self._vips.Region.new(self._open())
        kept: NDArray[Any] = np.empty((0, self.width, 3), self.dtype)
        first = 0

        def read(top: int, bottom: int) -> Pixels:
            nonlocal kept, first
            following = first + len(kept)
            kept, first = kept[top - first :], top
            try:
                content = region.fetch(0, following, self.width, bottom - following)
            except self._vips.Error as error:
                raise UserError(f"{self._path} cannot be decoded: the file is damaged.") from error
            rows = np.frombuffer(content, self.dtype).reshape(bottom - following, self.width, -1)
            kept = np.concatenate((kept, np.broadcast_to(rows, (*rows.shape[:2], 3))))
            return cast(Pixels, kept)

        return read

    def _open(self) -> Any:
        try:
            image = self._vips.Image.new_from_file(str(self._path), access="sequential", fail_on="error")
            if "orientation" in image.get_fields() and image.get("orientation") > 1:  # turning needs all of it: on disk
                image = self._vips.Image.new_from_file(str(self._path), fail_on="error").autorot()
        except self._vips.Error as error:
            raise UserError(f"{self._path} is damaged, or no picture that can be read by strips.") from error
        return image


def _tiles(blocks: Iterator[Pixels], width: int, bands: int) -> Iterator[NDArray[Any]]:
    """Finished rows as tiles of the file, row by row of tiles; what lies outside the picture is 0."""
    side = _TIFF_TILE
    waiting: list[NDArray[Any]] = []
    held = 0
    for block in blocks:
        waiting.append(block[..., :bands])
        held += len(block)
        if held < side:
            continue
        rows = np.concatenate(waiting)
        for top in range(0, held - side + 1, side):
            yield from _row_of_tiles(rows[top : top + side], width)
        waiting = [rows[held - held % side :].copy()]
        held %= side
    if held:
        rows = np.concatenate(waiting)
        yield from _row_of_tiles(np.pad(rows, ((0, side - held), (0, 0), (0, 0))), width)


def _row_of_tiles(rows: NDArray[Any], width: int) -> Iterator[NDArray[Any]]:
    for left in range(0, width, _TIFF_TILE):
        part = rows[:, left : left + _TIFF_TILE]
        missing = _TIFF_TILE - part.shape[1]
        tile = np.ascontiguousarray(np.pad(part, ((0, 0), (0, missing), (0, 0))) if missing else part)
        yield tile[..., 0] if tile.shape[2] == 1 else tile
