"""What every engine gives, whatever runs below it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from runtime.errors import UserError

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


class Engine(Protocol):
    """A loaded network. Close it, or use it as a context manager through ``contextlib.closing``."""

    info: EngineInfo

    def infer(self, batch: Batch) -> Batch:
        """(N, 3, H, W) to (N, 3, scale·H, scale·W), unclamped; a new array each time."""
        ...

    def close(self) -> None:
        """Free what the engine holds."""
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
class ShapedEngine(Engine, Protocol):
    """An engine that prepares for sizes it sees often, and whose last bits depend on that. Optional.

    Left alone, such an engine may give other bits for a picture after other pictures; a run that must give the same
    bytes after an interruption says beforehand what will come.
    """

    def expect(self, shape: tuple[int, ...] | None) -> None:
        """From now on prepare for batches of exactly this shape and for no other; None for none."""
        ...


def info_from_metadata(path: Path, metadata: Mapping[str, str], *, backend: str, device: str, scale: int) -> EngineInfo:
    """Describe an engine from what the exporter wrote into the file; a foreign file is taken with caution."""
    return EngineInfo(
        engine=str(path),
        backend=backend,
        device=device,
        scale=scale,
        name=metadata.get("gmin.name", path.stem),
        tiling="exact" if metadata.get("gmin.tiling") == "exact" else "approximate",
        receptive_radius=int(metadata.get("gmin.receptive_radius", 64)),
        minimum_size=int(metadata.get("gmin.minimum_size", 16)),
        precision=metadata.get("gmin.precision", "unknown"),
    )


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


def check_model_file(path: Path) -> None:
    """Refuse a model that is missing or empty before a library does so less clearly."""
    if not path.is_file():
        raise UserError(f"There is no model at {path}.")
    if path.stat().st_size == 0:
        raise UserError(f"The model {path} is empty (0 bytes).")


def _shape(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))
