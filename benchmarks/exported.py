"""Engines to be timed: as ``benchmarks.engines``, and networks exported on the fly where a back end needs a file.

``openvino:lkdn_x4`` is LKDN with its released weights, through the same export as GMIN, kept in the user's cache, and
``ort:lkdn_x4_int8_cpu`` is that file through the same quantization, named as GMIN's shipped files are. Time does not
depend on the weights: a network whose weights are not here is timed with random ones, and says so.
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
from runtime.files import atomic_write

if TYPE_CHECKING:
    from torch import nn

    from quantize.patches import Patches
    from quantize.ptq import Target

ROOT = Path(__file__).resolve().parents[1]
CALIBRATION = 64
"""Pictures of DIV2K that calibrate a network quantized on the fly, as ``quantize/ptq.py`` takes them."""
MAX_DROP_DB = 0.05
"""Layers of a network quantized on the fly stay float until it loses no more than this on those pictures."""
ENDINGS: dict[Target, str] = {"tensorrt": "_int8", "cpu": "_int8_cpu", "openvino": "_int8_openvino"}
"""What the name of an INT8 file ends in, by flavour."""


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
    network, target = flavour_of(name)
    if prefix in BACKENDS and network in names() and not _shipped(name):
        path, weights = quantized(network, target) if target else exported(network)
        engine = open_any(f"{prefix}:{path}", threads=threads)
        engine.info = replace(engine.info, engine=spec)
        return Timed(engine, weights)
    if is_torch(spec) and name in names():
        from model.engine import TorchEngine

        model, weights = _with_weights(name)
        return Timed(TorchEngine(model, describe(name), engine=spec, threads=threads), weights)
    return Timed(open_any(spec, threads=threads), "as given")


def flavour_of(name: str) -> tuple[str, Target | None]:
    """``lkdn_x4_int8_cpu`` is ``lkdn_x4`` and "cpu"; a name without such an ending is a network in FP32."""
    for target, ending in ENDINGS.items():
        if name.endswith(ending):
            return name.removesuffix(ending), target
    return name, None


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


def quantized(name: str, target: Target, patches: Patches | None = None) -> tuple[Path, str]:
    """The INT8 file of a registered network in one flavour, made when it is first needed, and what its weights are.

    Args:
        name: of the network.
        target: the flavour.
        patches: what calibrates; None takes the pictures of DIV2K.

    It is kept by the FP32 file (and so by weights and exporter), by the code that quantizes and by the pictures.

    Raises:
        UserError: the pictures are neither here nor to be fetched.
    """
    from quantize.patches import load_patches

    source, label = exported(name)
    chosen = patches or load_patches("DIV2K", describe(name).scale, CALIBRATION)
    digest = hashlib.sha256(source.stem.encode())
    for part in [*sorted(ROOT.glob("quantize/*.py")), *sorted(ROOT.glob("data/*.py")), *chosen.calibration]:
        digest.update(part.read_bytes())
    path = source.with_name(f"{name}{ENDINGS[target]}-{digest.hexdigest()[:16]}.onnx")
    if not path.is_file():
        from quantize.graph import read_onnx
        from quantize.plan import make_plan
        from quantize.ptq import improve
        from quantize.refit import refit_tail

        reference = read_onnx(source)
        plan = make_plan(reference, chosen, target=target)
        # random weights have no quality to lose
        plan, found = improve(plan, chosen, max_drop=None if label == RANDOM else MAX_DROP_DB)
        floats = found.floats if found else ()
        content = refit_tail(plan, reference, chosen, floats).build(floats).SerializeToString(deterministic=True)
        with atomic_write(path) as stream:
            stream.write(content)
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
