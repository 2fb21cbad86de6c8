"""Everything that can be measured: files through the runtime, networks in PyTorch, and bicubic as the floor."""

from __future__ import annotations

from typing import cast

import numpy as np

from data.bicubic import resize_bicubic
from data.sets import Rgb, from_batch, to_batch
from model.registry import names
from runtime.engines.contract import Batch, Engine, EngineInfo
from runtime.engines.opening import open_engine, split_prefix
from runtime.errors import UserError


class BicubicEngine:
    """MATLAB's bicubic on uint8, as papers quote it."""

    info: EngineInfo

    def __init__(self, scale: int) -> None:
        self.info = EngineInfo(
            engine="bicubic",
            backend="bicubic",
            device="cpu",
            scale=scale,
            name="bicubic",
            tiling="exact",
            receptive_radius=2,
            minimum_size=1,
            precision="uint8",
        )

    def infer(self, batch: Batch) -> Batch:
        """(N, 3, H, W) to (N, 3, scale·H, scale·W), values on the 256 levels."""
        result = np.empty((len(batch), 3, *(self.info.scale * side for side in batch.shape[2:])), np.float32)
        for image, target in zip(batch, result, strict=True):
            target[...] = to_batch(cast(Rgb, resize_bicubic(from_batch(image[None]), float(self.info.scale))))[0]
        return result

    def close(self) -> None:
        """Nothing is held."""


def open_any(spec: str, scale: int, *, threads: int | None = None) -> Engine:
    """Open an ENGINE of the command contract: a file, a registered network (PyTorch), or ``bicubic``.

    Raises:
        UserError: it cannot be opened, or its scale is not ``scale``.
    """
    prefix, name = split_prefix(spec)
    engine: Engine
    if name == "bicubic":
        engine = BicubicEngine(scale)
    elif prefix == "torch" or (prefix is None and name in names()):
        from model.engine import TorchEngine

        engine = TorchEngine(name, threads=threads)
    else:
        engine = open_engine(spec, threads=threads)
    if engine.info.scale != scale:
        engine.close()
        raise UserError(f"{spec} upscales by {engine.info.scale}, not by {scale}; name the scale with --scale.")
    return engine
