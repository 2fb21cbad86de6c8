"""Where the time of a file goes in ONNX Runtime, by kind of layer: FP32 beside INT8.

The library's own profiler times each node of the graph that it really runs, after fusion. Names of fused nodes lead
back to the convolutions of the file, and so to their kernels.
"""

from __future__ import annotations

import json
import re
import statistics
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runtime.engines.contract import check_model_file
from runtime.errors import UserError

_KINDS = {
    "Gelu": "GELU",
    "QuickGelu": "SiLU",
    "Sigmoid": "SiLU",  # as 8 bits run it: sigmoid, then a product
    "ReduceMean": "mean over the picture",
    "GlobalAveragePool": "mean over the picture",
    "DepthToSpace": "pixel shuffle",
    "QuantizeLinear": "to and from 8 bits",
    "DequantizeLinear": "to and from 8 bits",
    "ReorderInput": "change of layout",
    "ReorderOutput": "change of layout",
    "Transpose": "change of layout",
    "Mul": "sums and products",
    "Add": "sums and products",
    "Sub": "sums and products",
    "Concat": "split and concatenate",
    "Split": "split and concatenate",
    "Slice": "split and concatenate",
}
_CONVOLUTIONS = ("Conv", "ConvInteger", "FusedConv", "NhwcFusedConv")


@dataclass(frozen=True)
class LayerTime:
    """All nodes of one kind: what they are, how many, and their time in one inference."""

    kind: str
    node_types: tuple[str, ...]
    nodes: int
    time_ms: float


@dataclass(frozen=True)
class LayerProfile:
    """One file: its kinds of layer, slowest first, and their sum. The profiler itself costs a little time."""

    file: str
    backend: str
    size: str
    threads: int | None
    runs: int
    total_ms: float
    layers: tuple[LayerTime, ...]


def profile_layers(
    files: Sequence[Path], *, width: int, height: int, threads: int | None = None, runs: int = 5
) -> list[LayerProfile]:
    """Profile files in turn, A B A B …, one warm-up each, and take the median of every node.

    Args:
        files: ``.onnx`` files.
        width: of the input, in pixels.
        height: of the input, in pixels.
        threads: of one inference; None leaves the choice to the library.
        runs: inferences that count.

    Raises:
        UserError: ONNX Runtime is missing or cannot run a file.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise UserError("Profiling needs ONNX Runtime: pip install 'gmin-edge[ort]'.") from error
    import numpy as np
    import onnx

    from quantize.search import open_session

    batch = np.random.default_rng(0).random((1, 3, height, width), dtype=np.float32)
    with tempfile.TemporaryDirectory(prefix="gmin-layers-") as folder:
        sessions = []
        for i, file in enumerate(files):
            check_model_file(file, ".onnx")
            try:
                session = open_session(onnx.load(file), profile=Path(folder) / str(i), threads=threads)
            except Exception as error:  # the library raises its own kinds, which share no base
                raise UserError(f"ONNX Runtime cannot load {file}: {str(error).splitlines()[0]}") from error
            sessions.append(session)
        for _ in range(runs + 1):
            for session in sessions:
                session.run(None, {session.get_inputs()[0].name: batch})
        profiles = []
        for file, session in zip(files, sessions, strict=True):
            events = json.loads(Path(session.end_profiling()).read_text())
            layers = grouped(events, kernels_of(file))
            profiles.append(
                LayerProfile(
                    file=file.name,
                    backend=f"ONNX Runtime {onnxruntime.__version__}",
                    size=f"{width}x{height}",
                    threads=threads,
                    runs=runs,
                    total_ms=sum(layer.time_ms for layer in layers),
                    layers=layers,
                )
            )
        return profiles


def grouped(events: Sequence[dict[str, Any]], kernels: dict[str, str]) -> tuple[LayerTime, ...]:
    """Sum the profiler's events by kind of layer, slowest first; the first run, which warms up, is left out."""
    durations: defaultdict[tuple[str, str], list[float]] = defaultdict(list)
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            node = event["name"].removesuffix("_kernel_time")
            durations[node, event["args"]["op_name"]].append(event["dur"] / 1e3)
    times: defaultdict[str, float] = defaultdict(float)
    types: defaultdict[str, set[str]] = defaultdict(set)
    nodes: defaultdict[str, int] = defaultdict(int)
    for (node, node_type), values in durations.items():
        kind = kind_of(node, node_type, kernels)
        times[kind] += statistics.median(values[1:] or values)
        types[kind].add(node_type)
        nodes[kind] += 1
    ranked = sorted(times, key=lambda kind: (-times[kind], kind))
    return tuple(LayerTime(kind, tuple(sorted(types[kind])), nodes[kind], times[kind]) for kind in ranked)


def kind_of(node: str, node_type: str, kernels: dict[str, str]) -> str:
    """What a node of the optimized graph is to a reader, the same for FP32 and INT8 wherever it does the same work."""
    plain = node_type.removeprefix("QLinear")
    if plain in _CONVOLUTIONS:
        source = re.sub(r"(_nchwc|_token_\d+|_quant)+$", "", node)
        return kernels.get(source, "convolution")
    return _KINDS.get(plain, plain)


def kernels_of(file: Path) -> dict[str, str]:
    """The kernel of each convolution of a file in words, by the name of its node and of its output.

    A clip that ONNX Runtime fuses into a convolution gives it the name of the clip's output.
    """
    import onnx

    model = onnx.load(file, load_external_data=False)
    shapes = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    for node in model.graph.node:  # an int8 weight stands behind its DequantizeLinear
        if node.op_type == "DequantizeLinear" and node.input[0] in shapes:
            shapes[node.output[0]] = shapes[node.input[0]]
    kernels: dict[str, str] = {}
    for node in model.graph.node:
        if node.op_type == "Clip" and node.input[0] in kernels:
            kernels[node.output[0]] = kernels[node.input[0]]
        if node.op_type == "Conv" and len(shapes.get(node.input[1], ())) == 4:
            attributes = {entry.name: onnx.helper.get_attribute_value(entry) for entry in node.attribute}
            outputs, inputs, high, wide = shapes[node.input[1]]
            depthwise = attributes.get("group", 1) == outputs and inputs == 1
            words = f"{'depth-wise' if depthwise else 'convolution'} {high}×{wide}"
            dilation = max(attributes.get("dilations", [1]))
            text = words if dilation == 1 else f"{words}, dilation {dilation}"
            kernels[node.name] = kernels[node.output[0]] = text
    return kernels
