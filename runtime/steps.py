"""The three steps of one picture, read, upscale and write, apart so that a run over many can overlap them."""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

from runtime.engines.contract import Engine
from runtime.errors import UserError
from runtime.headers import DEFAULT_BUDGET
from runtime.images import (
    Picture,
    Pixels,
    check_output_format,
    decode_picture,
    fill_hidden,
    read_picture,
    without_metadata,
    write_picture,
)
from runtime.rows import Progress
from runtime.upscale import DEFAULT_OVERLAP, TilingMode, Upscaled, default_tile, upscale

RESULT_VERSION = 5
"""Part of every options hash: raise it when the same options give other bytes."""


@dataclass(frozen=True)
class Options:
    """What a user can ask of each picture; ``None`` means the default."""

    tile: int | None = None
    overlap: int = DEFAULT_OVERLAP
    scale: int | None = None
    """Final scale; below the network's own, its result is reduced by area means."""
    fit: tuple[int, int] | None = None
    """Width and height that the result fills as far as its aspect ratio lets it, never more."""
    x8: bool = False
    quality: int | None = None
    strip_metadata: bool = False
    budget_bytes: int = DEFAULT_BUDGET
    tiling: TilingMode = "fast"


@dataclass
class Loaded:
    """A decoded picture, and how long that took."""

    picture: Picture
    seconds: float
    sha256: str = ""


@dataclass
class Computed:
    """An upscaled picture. ``resized`` says in words what was done besides the network, "" for nothing."""

    upscaled: Upscaled
    resized: str
    read_seconds: float

    @property
    def size_bytes(self) -> int:
        """Bytes of the pixels."""
        picture = self.upscaled.picture
        return picture.colour.nbytes + (picture.alpha.nbytes if picture.alpha is not None else 0)


def options_hash(options: Options, engine: Engine, model: Path | None) -> str:
    """SHA-256 of all that decides about the bytes of a result, besides the input."""
    info = engine.info
    facts = {
        "version": RESULT_VERSION,
        "options": {key: value for key, value in asdict(options).items() if key != "budget_bytes"},
        "model": _model_sha256(model) if model and model.is_file() else info.engine,
        "engine": [info.backend, info.device, info.name, info.precision, info.scale],
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _model_sha256(model: Path) -> str:
    """Of the file, and of the weights beside an OpenVINO IR."""
    digest = hashlib.sha256(model.read_bytes())
    weights = model.with_suffix(".bin")
    if model.suffix.lower() == ".xml" and weights.is_file():
        digest.update(weights.read_bytes())
    return digest.hexdigest()


def load(source: Path, options: Options, scale: int, content: bytes | None = None) -> Loaded:
    """Read a picture, or decode its ``content`` where that is at hand.

    Raises:
        UserError: as ``runtime.images.read_picture``.
    """
    started = time.perf_counter()
    if content is None:
        picture = read_picture(source, scale=scale, fit=options.fit, budget_bytes=options.budget_bytes)
    else:
        picture = decode_picture(content, str(source), scale=scale, fit=options.fit, budget_bytes=options.budget_bytes)
    picture = fill_hidden(without_metadata(picture) if options.strip_metadata else picture)
    return Loaded(picture, time.perf_counter() - started)


def compute(
    engine: Engine,
    loaded: Loaded,
    options: Options,
    progress: Progress | None = None,
    *,
    repeatable: bool = True,
    size: tuple[int, int] | None = None,
) -> Computed:
    """Upscale a picture to the size that was asked for. With ``options.x8`` the engine is a ``SelfEnsemble`` already.

    Where the result must be ``repeatable``, tiles are chosen by the size of the picture alone and never made smaller
    for want of memory: tiles decide about the last bits. ``size``, (width, height), is that of the result where it is
    not the one that the options mean: encoders of videos take even numbers only.

    Raises:
        UserError: as ``runtime.upscale.upscale``.
    """
    picture = loaded.picture
    height, width = picture.colour.shape[:2]
    final = size or final_size(width, height, options, engine.info.scale)
    if final[0] <= width and final[1] <= height and options.fit is not None:  # no pixels to invent
        upscaled = Upscaled(picture, tiles=0, tile=None, overlap=0, exact=True)
    else:
        tile = default_tile(height, width, engine.info) if options.tile is None and repeatable else options.tile
        upscaled = upscale(
            engine, picture, tile=tile, overlap=options.overlap, tiling=options.tiling, smaller=not repeatable,
            progress=progress,
        )  # fmt: skip
    resized = ""
    before = upscaled.picture.colour.shape[1::-1]
    if final != before:
        started = time.perf_counter()
        upscaled = replace(upscaled, picture=_resized(upscaled.picture, final))
        upscaled.seconds.postprocess += time.perf_counter() - started
        how = "area means" if final[0] <= before[0] and final[1] <= before[1] else "a bicubic filter"
        origin = f"the network's x{engine.info.scale}" if upscaled.tiles else "the source, without the network,"
        resized = f"{origin} of {before[0]}x{before[1]} resized to {final[0]}x{final[1]} by {how}"
    return Computed(upscaled, resized, loaded.seconds)


def store(source: Path, target: Path, computed: Computed, options: Options) -> dict[str, Any]:
    """Write a result and describe it, as the JSON of ``runtime/infer.py`` does.

    Raises:
        UserError: as ``runtime.images.write_picture``.
    """
    started = time.perf_counter()
    result = computed.upscaled
    write_picture(target, result.picture, quality=options.quality)
    result.seconds.load += computed.read_seconds
    result.seconds.postprocess += time.perf_counter() - started
    height, width = result.picture.colour.shape[:2]
    description = {
        "input": str(source),
        "output": str(target),
        "width": width,
        "height": height,
        "tiles": result.tiles,
        "tile": result.tile,
        "overlap": result.overlap,
        "exact": result.exact,
        "seconds": asdict(result.seconds),
    }
    notes = [*result.picture.notes, *([computed.resized] if computed.resized else [])]
    return {**description, **({"notes": notes} if notes else {})}


def final_size(width: int, height: int, options: Options, network_scale: int) -> tuple[int, int]:
    """(width, height) of the result in pixels."""
    if options.fit is not None:
        # whole numbers: a float ratio could land one pixel outside of the box
        box_width, box_height = options.fit
        if box_width * height <= box_height * width:
            return box_width, max(1, min(box_height, (height * box_width + width // 2) // width))
        return max(1, min(box_width, (width * box_height + height // 2) // height)), box_height
    scale = options.scale or network_scale
    return width * scale, height * scale


def check_options(options: Options, endings: set[str], network_scale: int) -> None:
    """Refuse what no picture could be given.

    Args:
        options: what was asked for.
        endings: of the results, with their dots.
        network_scale: the engine's.

    Raises:
        UserError: a scale above the network's, or a quality for formats that have none.
    """
    if options.scale is not None and options.scale > network_scale:
        raise UserError(f"--scale {options.scale} is more than the x{network_scale} of this network.")
    if options.quality is not None and not any(
        check_output_format(Path(f"x{ending}")) in ("JPEG", "WebP") for ending in endings
    ):
        raise UserError("--quality is for JPEG and WebP; the results here lose nothing.")


def _resized(picture: Picture, size: tuple[int, int]) -> Picture:
    import cv2

    smaller = size[0] <= picture.colour.shape[1] and size[1] <= picture.colour.shape[0]
    how = cv2.INTER_AREA if smaller else cv2.INTER_CUBIC
    colour = cv2.resize(picture.colour, size, interpolation=how)
    alpha = None if picture.alpha is None else cast(Pixels, cv2.resize(picture.alpha, size, interpolation=how))
    return replace(picture, colour=cast(Pixels, colour), alpha=alpha)
