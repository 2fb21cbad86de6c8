"""Cross-layer equalisation: channels of one tensor brought to one range, at no cost and without changing the network.

Between a convolution and the convolutions that read its output, each channel can be scaled freely: what the first one's
weights gain, the second one's lose (Nagel et al., ICCV 2019; with the exponent of SmoothQuant, Xiao et al., ICML 2023).
A tensor has one 8-bit scale for all its channels, weights have one for each output channel, so for depth-wise readers
the exchange is all gain: their weights' scales absorb it. Dense readers mix channels; there the range is shared out
between the tensor and the weights.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, numpy_helper

_SHARE = 0.5
"""Of the range of a tensor that a dense reader's weights take over."""
_FLOOR = 1e-3
"""Channels below this share of the largest are treated as if they had it: dead channels must not blow up weights."""


@dataclass(frozen=True)
class Reader:
    """A convolution that reads a tensor, directly or as a part of a concatenation."""

    node: NodeProto
    first: int
    """Channel of the convolution's input at which the tensor begins."""


@dataclass(frozen=True)
class Junction:
    """A tensor whose channels may be scaled: the convolution that decides its scale, and its readers."""

    tensor: str
    channels: int
    source: NodeProto
    readers: tuple[Reader, ...]
    free: bool
    """All readers are depth-wise."""


def junctions(model: ModelProto) -> list[Junction]:
    """Tensors between convolutions, directly, through a product or into a concatenation, in the order of the graph."""
    graph = model.graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    producers = {name: node for node in graph.node for name in node.output}
    readers: dict[str, list[NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    outputs = {output.name for output in graph.output}
    widths = _widths(model)

    def channels(name: str) -> int | None:
        producer = producers.get(name)
        source = None if producer is None else _source(producer, producers, readers)
        if source is None or source.input[1] not in weights:
            return None
        count: int = weights[source.input[1]].dims[0]
        return count if widths.get(name) == count else None  # a map of one channel may be multiplied into many

    def convolutions_behind(name: str) -> list[Reader] | None:
        found = []
        for node in readers.get(name, []):
            if node.op_type == "Conv" and node.input[0] == name and node.input[1] in weights:
                found.append(Reader(node, 0))
            elif node.op_type == "Concat" and name not in outputs and list(node.input).count(name) == 1:
                counts = [channels(part) for part in node.input]
                behind = convolutions_behind(node.output[0])
                if behind is None or None in counts or node.output[0] in outputs:
                    return None
                first = sum(count or 0 for count in counts[: list(node.input).index(name)])
                found += [Reader(reader.node, reader.first + first) for reader in behind]
            else:
                return None
        return found

    found = []
    for node in graph.node:
        name = node.output[0]
        source, count = _source(node, producers, readers), channels(name)
        behind = None if source is None or name in outputs else convolutions_behind(name)
        if source is None or count is None or not behind or any(reader.node is source for reader in behind):
            continue
        alone = [_group(reader.node) == weights[reader.node.input[1]].dims[0] for reader in behind]
        if any(not single and _group(reader.node) != 1 for single, reader in zip(alone, behind, strict=True)):
            continue  # groups of several channels: not met in these networks
        found.append(Junction(name, count, source, tuple(behind), all(alone)))
    return found


def equalize(model: ModelProto, images: Iterable[NDArray[np.float32]]) -> int:
    """Scale the channels of every junction, in place; exact but for the rounding of floats.

    Args:
        model: an FP32 graph whose convolutions own their weights.
        images: each (N, 3, H, W) float32 RGB in [0, 1]; they show each channel's range.

    Returns:
        The number of tensors whose channels were scaled.
    """
    found = junctions(model)
    reach = channel_reach(model, [junction.tensor for junction in found], images)
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    shared = _shared(model)
    count = 0
    for junction in found:
        names = {*junction.source.input[1:3], *(reader.node.input[1] for reader in junction.readers)}
        if names & shared:
            continue
        extent = _floored(reach[junction.tensor])
        if junction.free:
            factor = extent.max() / extent
        else:
            parts = [
                np.abs(_array(tensors[reader.node.input[1]]))[:, reader.first : reader.first + len(extent)]
                for reader in junction.readers
                if _group(reader.node) == 1
            ]
            columns = _floored(np.max([part.max(axis=(0, 2, 3)) for part in parts], axis=0))
            factor = extent ** -(1 - _SHARE) * columns**_SHARE
        factor = 2.0 ** np.rint(np.log2(factor))  # powers of two: no weight is rounded
        for name in junction.source.input[1:3]:
            scaled = _array(tensors[name])
            _store(tensors[name], scaled * factor.reshape(-1, *[1] * (scaled.ndim - 1)))
        for reader in junction.readers:
            weight = _array(tensors[reader.node.input[1]]).copy()
            read = slice(reader.first, reader.first + len(factor))
            if _group(reader.node) == 1:
                weight[:, read] /= factor[:, None, None]
            else:
                weight[read] /= factor[:, None, None, None]
            _store(tensors[reader.node.input[1]], weight)
        count += 1
    return count


def channel_reach(
    model: ModelProto, tensors: list[str], images: Iterable[NDArray[np.float32]]
) -> Mapping[str, NDArray[np.float64]]:
    """Largest magnitude of each channel of each tensor (N, C, H, W) over all images: (C,) by name."""
    import onnxruntime

    from quantize.calibration import quiet_options, with_outputs

    session = onnxruntime.InferenceSession(
        with_outputs(model, tensors).SerializeToString(), quiet_options(), providers=["CPUExecutionProvider"]
    )
    (graph_input,) = session.get_inputs()
    reach: dict[str, NDArray[np.float64]] = {}
    for image in images:
        if not tensors:
            break
        for name, values in zip(tensors, session.run(tensors, {graph_input.name: image}), strict=True):
            here = np.abs(values).max(axis=(0, 2, 3)).astype(np.float64)
            reach[name] = np.maximum(reach[name], here) if name in reach else here
    return reach


def _source(
    node: NodeProto, producers: Mapping[str, NodeProto], readers: Mapping[str, list[NodeProto]]
) -> NodeProto | None:
    """The convolution whose output channels scale ``node``'s output: itself, or the factor of a product."""
    if node.op_type == "Conv":
        return node
    if node.op_type == "Mul":
        for name in node.input:
            factor = producers.get(name)
            if factor is not None and factor.op_type == "Conv" and len(readers[name]) == 1:
                return factor
    return None


def _widths(model: ModelProto) -> dict[str, int]:
    """How many channels each tensor (N, C, H, W) has, where that is known."""
    graph = onnx.shape_inference.infer_shapes(model).graph
    shapes = {value.name: value.type.tensor_type.shape.dim for value in (*graph.value_info, *graph.output)}
    return {name: dims[1].dim_value for name, dims in shapes.items() if len(dims) == 4 and dims[1].dim_value}


def _shared(model: ModelProto) -> set[str]:
    """Initializers that more than one node reads: scaling them for one would change the other."""
    seen: set[str] = set()
    twice: set[str] = set()
    for node in model.graph.node:
        for name in node.input:
            (twice if name in seen else seen).add(name)
    return twice & {tensor.name for tensor in model.graph.initializer}


def _group(node: NodeProto) -> int:
    return next((int(attribute.i) for attribute in node.attribute if attribute.name == "group"), 1)


def _floored(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.maximum(values, max(float(values.max()) * _FLOOR, 1e-12)).astype(np.float64)


def _array(tensor: TensorProto) -> NDArray[np.float32]:
    return np.asarray(numpy_helper.to_array(tensor), np.float32)


def _store(tensor: TensorProto, values: NDArray[np.floating]) -> None:
    tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float32), tensor.name))
