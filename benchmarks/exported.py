"""Engines to be timed: as ``benchmarks.engines``, and networks exported on the fly where a back end needs a file.

``openvino:lkdn_x4`` is LKDN with its released weights, through the same export as GMIN, kept in the user's cache. Time
does not depend on the weights: a network whose weights are not here is timed with random ones, and says so.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.engines import is_torch, open_any
from benchmarks.protocol import RANDOM
from model.registry import describe, names
from runtime.engines.contract import Engine
from runtime.engines.opening import BACKENDS, MODELS, split_prefix
from runtime.errors import UserError

if TYPE_CHECKING:
    from torch import nn

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Timed:
    """An open engine and what its weights are: "released", "random weights", or "as given"."""

    engine: Engine
    weights: str


def open_timed(spec: str, *, threads: int | None = None) -> Timed:
    """Open an ENGINE to be timed.

    Raises:
        UserError: as ``open_any``; missing weights of a registered network are no reason.
    """
    prefix, name = split_prefix(spec)
    if prefix in BACKENDS and name in names() and not _shipped(name):
        path, weights = exported(name)
        engine = open_any(f"{prefix}:{path}", threads=threads)
        engine.info = replace(engine.info, engine=spec)
        return Timed(engine, weights)
    if is_torch(spec) and name in names():
        from model.engine import TorchEngine

        model, weights = _with_weights(name)
        return Timed(TorchEngine(model, describe(name), engine=spec, threads=threads), weights)
    return Timed(open_any(spec, threads=threads), "as given")


def exported(name: str) -> tuple[Path, str]:
    """The FP32 file of a registered network, made when it is first needed, and what its weights are.

    It is kept by the weights' hash and by that of the code which builds and exports networks: neither can go stale.
    """
    from runtime.files import cache_folder

    weights = _weights(name)
    digest = hashlib.sha256(weights.read_bytes() if weights else RANDOM.encode())
    for source in sorted([*ROOT.glob("model/*.py"), *ROOT.glob("export/*.py")]):
        digest.update(source.read_bytes())
    label = "released" if weights else RANDOM
    path = cache_folder() / "exported" / f"{name}-{digest.hexdigest()[:16]}.onnx"
    if not path.is_file():
        from export.to_onnx import export_onnx

        path.parent.mkdir(parents=True, exist_ok=True)
        model, label = _with_weights(name)
        export_onnx(model, path, describe(name))
    return path, label


def _with_weights(name: str) -> tuple[nn.Module, str]:
    import torch

    from model.checkpoint import load_checkpoint
    from model.registry import create

    weights = _weights(name)
    torch.manual_seed(0)  # the same random weights each time
    model = create(name)
    return (load_checkpoint(model, weights), "released") if weights else (model, RANDOM)


def _weights(name: str) -> Path | None:
    from model.engine import weights_path

    try:
        return weights_path(name)
    except UserError:  # not released, not here, or not to be fetched: the caller says "random weights"
        return None


def _shipped(name: str) -> bool:
    return (MODELS / f"{name}.onnx").is_file()
