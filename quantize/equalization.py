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
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, numpy_helper

_SHARE = 0.5
"""Of the range of a tensor that a dense reader's weights take over."""
_FLOOR = 1e-3
"""Channels below this share of the largest are treated as if they had it: dead channels must not blow up weights."""


@dataclass(frozen=True)
class Junction:
    """A tensor whose channels may be scaled: the convolution that decides its scale, and its readers."""

    tensor: str
    source: NodeProto
    readers: tuple[NodeProto, ...]
    free: bool
    """All readers are depth-wise."""


def junctions(model: ModelProto) -> list[Junction]:
    """Tensors between convolutions, directly or through a product with another tensor, in the order of the graph."""
    graph = model.graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    producers = {name: node for node in graph.node for name in node.output}
    readers: dict[str, list[NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    outputs = {output.name for output in graph.output}
    found = []
    for node in graph.node:
        name = node.output[0]
        read = readers.get(name, [])
        source = _source(node, producers, readers)
        if source is None or name in outputs or not read:
            continue
        if any(n.op_type != "Conv" or n.input[0] != name or n.input[1] not in weights for n in read):
            continue
        depthwise = [weights[n.input[1]].dims[1] == 1 for n in read]
        if source.input[1] not in weights or any(n is source for n in read):
            continue
        grouped = [{a.name: a.i for a in n.attribute}.get("group", 1) for n in read]
        if any(not alone and group != 1 for alone, group in zip(depthwise, grouped, strict=True)):
            continue  # groups of several channels: not met in these networks
        found.append(Junction(name, source, tuple(read), all(depthwise)))
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
        names = {junction.source.input[1], *junction.source.input[2:3], *(n.input[1] for n in junction.readers)}
        if names & shared:
            continue
        extent = reach[junction.tensor]
        extent = np.maximum(extent, max(float(extent.max()) * _FLOOR, 1e-12))
        if junction.free:
            factor = extent.max() / extent
        else:
            columns = np.max(
                [np.abs(_array(tensors[n.input[1]])).max(axis=(0, 2, 3)) for n in junction.readers], axis=0
            )
            columns = np.maximum(columns, max(float(columns.max()) * _FLOOR, 1e-12))
            factor = (extent ** -(1 - _SHARE)) * (columns**_SHARE)
            factor /= np.exp(np.log(factor).mean())
        factor = 2.0 ** np.rint(np.log2(factor))  # powers of two: no weight is rounded
        for name in junction.source.input[1:3]:
            _scale(tensors[name], factor.reshape(-1, *[1] * (len(tensors[name].dims) - 1)))
        for reader in junction.readers:
            weight = tensors[reader.input[1]]
            depthwise = weight.dims[1] == 1 and weight.dims[0] == len(factor) and len(factor) > 1
            _scale(weight, (1 / factor).reshape((-1, 1, 1, 1) if depthwise else (1, -1, 1, 1)))
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


def _shared(model: ModelProto) -> set[str]:
    """Initializers that more than one node reads: scaling them for one would change the other."""
    seen: set[str] = set()
    twice: set[str] = set()
    for node in model.graph.node:
        for name in node.input:
            (twice if name in seen else seen).add(name)
    return twice & {tensor.name for tensor in model.graph.initializer}


def _array(tensor: object) -> NDArray[np.float32]:
    return np.asarray(numpy_helper.to_array(tensor))  # type: ignore[arg-type]


def _scale(tensor: object, factor: NDArray[np.float64]) -> None:
    scaled = (_array(tensor).astype(np.float64) * factor).astype(np.float32)
    tensor.CopyFrom(numpy_helper.from_array(scaled, tensor.name))  # type: ignore[attr-defined]
