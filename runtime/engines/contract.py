"""What every engine gives, whatever runs below it."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from runtime.errors import UserError
from runtime.model_check import check_onnx

_ANY_SIZE = 1 << 20
"""Of a side that has no largest size, where the other one has."""
Batch = NDArray[np.float32]
"""(N, 3, H, W) float32 RGB, [0, 1] where it is a picture."""


@dataclass(frozen=True)
class EngineInfo:
    """What an opened engine is. ``tiling`` and ``receptive_radius`` (LR pixels) as in the file's metadata."""

    engine: str
    """What the user named: a path, a network, ``bicubic``."""
    backend: str
    """Library that computes, with its version."""
    device: str
    """Where it computes, as the library names it."""
    scale: int
    name: str
    tiling: Literal["exact", "approximate"]
    receptive_radius: int
    minimum_size: int
    precision: str
    accepts: tuple[tuple[int, int], tuple[int, int]] | None = None
    """Smallest and largest (height, width) in LR pixels; None where any size from ``minimum_size`` goes."""
    fallback: str | None = None
    """What was asked for and is not what runs, and why; printed and in the JSON."""
    pixels: Literal["float", "uint8"] = "float"
    """What the file takes and gives: "uint8" for one exported with ``--fuse-io``, a ``PixelEngine``."""


class Engine(Protocol):
    """A loaded network. Close it, or use it as a context manager through ``contextlib.closing``."""

    info: EngineInfo

    def infer(self, batch: Batch) -> Batch:
        """(N, 3, H, W) to (N, 3, scale·H, scale·W), unclamped; a new array each time."""
        ...

    def close(self) -> None:
        """Free what the engine holds."""
        ...


Feeds = Mapping[str, NDArray[Any]]
"""Inputs by name; "" is the first one, the picture."""


@runtime_checkable
class CuttableEngine(Engine, Protocol):
    """An engine that also runs parts of its file (``runtime.global_means``), with its own device and threads."""

    path: Path

    def open_part(self, content: bytes, shape: tuple[int, ...]) -> Callable[[Feeds], NDArray[np.float32]]:
        """Load an ONNX file from memory that has several inputs and one output.

        ``shape`` is that of the picture in every call; an engine that gains from it compiles for it.
        """
        ...


@runtime_checkable
class PixelEngine(Engine, Protocol):
    """An engine whose file may hold the pre- and post-processing too; ``info.pixels`` says whether it does."""

    def infer_pixels(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """(N, H, W, 3) to (N, scale·H, scale·W, 3), RGB; a new array each time."""
        ...


@dataclass(frozen=True)
class StageTimes:
    """Where the time of one inference on an accelerator went, by the device's own events."""

    host_to_device_ms: float
    compute_ms: float
    device_to_host_ms: float


@runtime_checkable
class TimedEngine(Engine, Protocol):
    """An engine that also says where the time went. Optional: the bench asks, and prints stages only where it is so."""

    last_times: StageTimes
    """Of the last ``infer``."""


@runtime_checkable
class StreamingEngine(Engine, Protocol):
    """An engine that works on several batches at once. Optional: tiles go through it in flight."""

    def infer_each(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """As ``infer`` for each, in order; batches are taken a few ahead of the results."""
        ...


def infer_each(engine: Engine, batches: Iterable[Batch]) -> Generator[Batch, None, None]:
    """Results in order, several in flight where the engine can; close it to stop early."""
    yield from engine.infer_each(batches) if isinstance(engine, StreamingEngine) else map(engine.infer, batches)


@runtime_checkable
class ShapedEngine(Engine, Protocol):
    """An engine that prepares for sizes it sees often, and whose last bits depend on that. Optional.

    Left alone, such an engine may give other bits for a picture after other pictures; a run that must give the same
    bytes after an interruption says beforehand what will come.
    """

    def expect(self, shape: tuple[int, ...] | None) -> None:
        """From now on prepare for batches of exactly this shape and for no other; None for none."""
        ...


def info_from_metadata(
    path: Path,
    metadata: Mapping[str, str],
    *,
    backend: str,
    device: str,
    scale: int,
    shape: Sequence[object] | None = None,
    pixels: Literal["float", "uint8"] = "float",
) -> EngineInfo:
    """Describe an engine from what the exporter wrote into the file; a foreign file is taken with caution.

    ``shape`` is that of the file's input, (N, 3, H, W), or (N, H, W, 3) of ``pixels`` "uint8"; whatever in it is no
    integer may be any. None where the caller knows better what the engine accepts.

    Raises:
        UserError: the file says what cannot be, or its input is of another shape.
    """
    accepts = None if shape is None else _accepted_sizes(path, shape, pixels=pixels == "uint8")
    minimum = recorded(path, metadata, "gmin.minimum_size", 16, range(1, 1025))
    return EngineInfo(
        engine=str(path),
        backend=backend,
        device=device,
        scale=scale,
        name=metadata.get("gmin.name", path.stem),
        tiling="exact" if metadata.get("gmin.tiling") == "exact" else "approximate",
        receptive_radius=recorded(path, metadata, "gmin.receptive_radius", 64, range(4097)),
        minimum_size=minimum if accepts is None else min(minimum, *accepts[1]),
        precision=metadata.get("gmin.precision", "unknown"),
        accepts=accepts,
        pixels=pixels,
    )


def _accepted_sizes(
    path: Path, shape: Sequence[object], *, pixels: bool
) -> tuple[tuple[int, int], tuple[int, int]] | None:
    if len(shape) != 4:
        raise UserError(f"{path} is no super-resolution network: its input has not four dimensions.")
    known = [size if isinstance(size, int) else None for size in shape]
    batch, (height, width) = known[0], known[1:3] if pixels else known[2:]
    if batch is not None and batch != 1:
        raise UserError(f"{path} takes {batch} pictures at once; export it for one, or for any number.")
    if height is None and width is None:
        return None
    return (height or 1, width or 1), (height or _ANY_SIZE, width or _ANY_SIZE)


def check_size(info: EngineInfo, height: int, width: int) -> None:
    """Refuse a batch of a size that the engine does not take.

    Raises:
        UserError: with the tile that it takes.
    """
    if info.accepts is None:
        return
    (low_height, low_width), (high_height, high_width) = info.accepts
    if not (low_height <= height <= high_height and low_width <= width <= high_width):
        onnx = info.engine.endswith((".onnx", ".xml"))
        raise UserError(
            f"{info.engine} takes pictures from {low_width}x{low_height} to {high_width}x{high_height} pixels, not "
            f"{width}x{height}: use --tile {min(high_height, high_width)}, or "
            f"{'export it for any size' if onnx else 'build it with other --shapes'}."
        )


def through_pixels(infer_pixels: Callable[[NDArray[np.uint8]], NDArray[np.uint8]], batch: Batch) -> Batch:
    """``infer`` of a file that takes uint8: floats are rounded to levels going in, and levels come out."""
    levels = np.rint(np.clip(batch, 0, 1) * 255).astype(np.uint8)
    result = infer_pixels(np.ascontiguousarray(levels.transpose(0, 2, 3, 1)))
    floats: Batch = np.ascontiguousarray(result.transpose(0, 3, 1, 2), np.float32)
    floats /= np.float32(255)
    return floats


def recorded(path: Path, metadata: Mapping[str, str], key: str, default: int, allowed: range) -> int:
    """An integer that a file says about itself.

    Raises:
        UserError: it is no integer, or none that can be.
    """
    text = metadata.get(key)
    if text is None:
        return default
    if len(text) > 9 or not text.isdecimal() or int(text) not in allowed:
        raise UserError(f"{path} is not loaded: it says {key} = {text[:40]!r}, which cannot be.")
    return int(text)


def scale_from_shapes(path: Path, given: tuple[int, ...], returned: tuple[int, ...]) -> int:
    """The integer scale of a network that turned an input of shape ``given`` into ``returned``.

    Raises:
        UserError: the shapes are not those of a super-resolution network.
    """
    if len(returned) == 4 and returned[:2] == given[:2]:
        scale, rest = divmod(returned[2], given[2])
        if rest == 0 and scale >= 1 and returned[3] == scale * given[3]:
            return scale
    raise UserError(
        f"{path} is no super-resolution network: it turns an input of {_shape(given)} into {_shape(returned)}, "
        "and not into the same number of channels at a whole multiple of the size."
    )


def check_model_file(path: Path, *endings: str) -> None:
    """Refuse a model that is missing, empty or dangerous (``runtime.model_check``) before a library sees it.

    Args:
        path: the file. An ``.xml`` is checked where it is read (``runtime.ir_check``).
        endings: what the caller can check; libraries would read many more formats, unchecked. None for any.

    Raises:
        UserError: with the reason.
    """
    if not path.is_file():
        raise UserError(f"There is no model at {path}.")
    if path.stat().st_size == 0:
        raise UserError(f"The model {path} is empty (0 bytes).")
    if endings and path.suffix.lower() not in endings:
        raise UserError(f"{path} is not loaded: expected {' or '.join(endings)}, which are checked before an engine.")
    if path.suffix.lower() == ".onnx":
        check_onnx(path)


def _shape(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))
