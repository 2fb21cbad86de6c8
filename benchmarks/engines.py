"""Everything that can be measured: files through the runtime, networks in PyTorch, and bicubic as the floor."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np

from data.bicubic import resize_bicubic
from data.sets import Rgb, from_batch, to_batch
from model.registry import names
from runtime.engines.contract import Batch, Engine, EngineInfo
from runtime.engines.opening import candidates, model_file, open_engine, split_prefix
from runtime.errors import UserError

if TYPE_CHECKING:
    from torch import nn

    from model.registry import Network

CHECKPOINTS = (".safetensors", ".pth", ".pt", ".ckpt")
_IN_PYTORCH = ("torch", "spandrel")


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


def is_torch(spec: str) -> bool:
    """Whether an ENGINE runs in PyTorch: a registered name, a checkpoint, or what ``spandrel:`` recognises."""
    prefix, name = split_prefix(spec)
    return prefix in _IN_PYTORCH or (prefix is None and (name in names() or Path(name).suffix.lower() in CHECKPOINTS))


def torch_network(spec: str, *, weights: bool = True) -> tuple[nn.Module, Network]:
    """Build the network of an ENGINE for which ``is_torch`` holds.

    Args:
        spec: ``gmin_x4``, ``torch:gmin_x4``, ``mine.safetensors``, ``spandrel:FILE.pth``.
        weights: load the released weights of a registered name; without them it is a fresh network.

    Raises:
        UserError: PyTorch is not installed, the name or file is unknown, or the weights are missing or do not fit.
    """
    if importlib.util.find_spec("torch") is None:
        raise UserError(f"{spec} runs in PyTorch, which is not installed: pip install 'gmin-edge[torch]'.")
    prefix, name = split_prefix(spec)
    if prefix == "spandrel":
        from model.foreign import load_foreign

        return load_foreign(Path(name))
    from model.checkpoint import load_checkpoint, read_state, recorded_name
    from model.engine import weights_path
    from model.registry import create, describe

    if Path(name).suffix.lower() not in CHECKPOINTS:
        network, model = describe(name), create(name)
        return (load_checkpoint(model, weights_path(name)) if weights else model), network
    recorded = recorded_name(Path(name))
    if recorded is None:
        read_state(Path(name))  # a missing or broken file is the better message
        raise UserError(
            f"{name} does not say which network it is: export it with --model first, or write spandrel:{name} for "
            "one that spandrel recognises."
        )
    return load_checkpoint(create(recorded), Path(name)), describe(recorded)


def onnx_path(spec: str) -> Path:
    """The ONNX file of an ENGINE that runs from a file.

    Raises:
        UserError: it is another kind of file, or there is none.
    """
    _, name = split_prefix(spec)
    path = Path(name) if name == "bicubic" else model_file(name, candidates(spec)[0])
    if path.suffix.lower() != ".onnx":
        raise UserError(f"{spec} is no ONNX file, and only those and PyTorch networks can be looked into.")
    return path


def open_any(spec: str, scale: int | None = None, *, threads: int | None = None) -> Engine:
    """Open an ENGINE of the command contract: a file, a network in PyTorch, or ``bicubic``.

    Args:
        spec: the ENGINE.
        scale: the upscaling factor that it must have; None takes any (and bicubic at 4).
        threads: threads of one inference; None leaves the choice to the library.

    Raises:
        UserError: it cannot be opened, or its scale is not ``scale``.
    """
    engine: Engine
    if spec == "bicubic":
        engine = BicubicEngine(scale or 4)
    elif is_torch(spec):
        model, network = torch_network(spec)
        from model.engine import TorchEngine

        engine = TorchEngine(model, network, engine=spec, threads=threads)
    else:
        engine = open_engine(spec, threads=threads)
    if scale is not None and engine.info.scale != scale:
        engine.close()
        raise UserError(f"{spec} upscales by {engine.info.scale}, not by {scale}; name the scale with --scale.")
    return engine
