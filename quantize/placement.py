"""Where the Q/DQ pairs stand: from an FP32 graph and ranges to one explicit INT8 file.

Everything that an engine must know is in the graph: no calibration cache, no builder flag. A quantized convolution has
``QuantizeLinear``/``DequantizeLinear`` before its input, an int8 weight behind a per-channel ``DequantizeLinear``, and,
for CPU engines, an int32 bias and a pair after its output.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper


@dataclass(frozen=True)
class Affine:
    """How a tensor is stored: value = (stored − zero_point) · scale, in int8 or uint8."""

    scale: np.float32
    zero_point: int
    dtype: Literal["int8", "uint8"]

    def largest_scale(self, low: float, high: float) -> np.float32:
        """The scale up to which no level lies outside [low, high], which contains 0."""
        limits = np.iinfo(self.dtype)
        below, above = self.zero_point - limits.min, limits.max - self.zero_point
        exact = np.float32(min(-low / below if below else np.inf, high / above if above else np.inf))
        not_above: np.float32 = np.nextafter(exact, np.float32(0))
        return not_above


def insert_qdq(
    model: ModelProto,
    activations: Mapping[str, Affine],
    convolutions: Collection[str],
    *,
    bias: Literal["float32", "int32"],
    readers: Collection[str],
) -> ModelProto:
    """A copy of ``model`` with Q/DQ pairs on ``activations`` and 8-bit weights in ``convolutions``.

    Args:
        model: an FP32 graph.
        activations: tensors to pass through 8 bits. A graph output among them keeps its name.
        convolutions: names of ``Conv`` nodes whose weights become int8, per output channel, symmetric. Their inputs
            must be among ``activations``.
        bias: "float32" leaves biases alone (TensorRT refuses others), "int32" stores them at the product of the
            scales, as CPU engines fuse them.
        readers: names of the nodes that read the 8-bit values; all others go on reading floats.

    Raises:
        ValueError: a convolution's input has no scale.
    """
    result = ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    outputs = {output.name for output in graph.output}
    nodes: list[NodeProto] = []
    for graph_input in graph.input:
        if graph_input.name in activations:
            nodes += _pair(graph, graph_input.name, graph_input.name, activations[graph_input.name])
    for node in graph.node:
        quantized = node.name in convolutions
        original = list(node.input)
        for i, name in enumerate(original):
            if name in activations and node.name in readers:
                node.input[i] = _restored(name)
        if quantized:
            if original[0] not in activations:
                raise ValueError(f"{node.name} is to be quantized, but its input {original[0]} has no scale")
            integer_bias = bias == "int32" and len(original) > 2
            least = None
            if integer_bias:  # steps so small that the bias would not fit into 32 bits
                offsets = np.abs(numpy_helper.to_array(weights[original[2]]))
                least = offsets / (activations[original[0]].scale * np.float32(2**30))
            nodes += _quantize_weight(graph, node, weights[original[1]], least)
            if integer_bias:
                nodes += _quantize_bias(graph, node, weights, activations[original[0]].scale)
        nodes.append(node)
        for i, name in enumerate(node.output):
            if name in activations:
                if name in outputs:
                    node.output[i] = f"{name}_float"
                    nodes += _pair(graph, node.output[i], name, activations[name], restored=name)
                else:
                    nodes += _pair(graph, name, name, activations[name])
    del graph.node[:]
    graph.node.extend(nodes)
    _drop_unused_initializers(graph)
    return result


def quantize_weight(
    weight: NDArray[np.float32], least: NDArray[np.float32] | None = None
) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Symmetric int8 per output channel: weight (O, …) to levels of the same shape in [-127, 127] and scales (O,).

    No scale is below ``least`` (O,).
    """
    reach = np.abs(weight.reshape(len(weight), -1)).max(axis=1)
    scales = np.maximum(reach / 127, np.finfo(np.float32).tiny).astype(np.float32)
    if least is not None:
        scales = np.maximum(scales, least.astype(np.float32))
    levels = np.rint(weight / scales.reshape(-1, *[1] * (weight.ndim - 1)))
    return levels.clip(-127, 127).astype(np.int8), scales


def _restored(name: str) -> str:
    return f"{name}_dq"


def _pair(graph: GraphProto, source: str, label: str, affine: Affine, restored: str | None = None) -> list[NodeProto]:
    scale, zero = f"{label}_scale", f"{label}_zero_point"
    graph.initializer.append(numpy_helper.from_array(np.asarray(affine.scale, np.float32), scale))
    graph.initializer.append(numpy_helper.from_array(np.asarray(affine.zero_point, affine.dtype), zero))
    return [
        helper.make_node("QuantizeLinear", [source, scale, zero], [f"{label}_q"], name=f"{label}_quantize"),
        helper.make_node(
            "DequantizeLinear",
            [f"{label}_q", scale, zero],
            [restored or _restored(label)],
            name=f"{label}_dequantize",
        ),
    ]


def _quantize_weight(
    graph: GraphProto, node: NodeProto, weight: TensorProto, least: NDArray[np.float32] | None
) -> list[NodeProto]:
    levels, scales = quantize_weight(numpy_helper.to_array(weight), least)
    return [_dequantized_constant(graph, node, 1, levels, scales)]


def _quantize_bias(
    graph: GraphProto, node: NodeProto, weights: Mapping[str, TensorProto], input_scale: np.float32
) -> list[NodeProto]:
    scales = input_scale * numpy_helper.to_array(
        next(t for t in graph.initializer if t.name == f"{node.name}_weight_scale")
    )
    bias = numpy_helper.to_array(weights[node.input[2]]).astype(np.float64)
    limit = 2**31 - 1
    levels = np.rint(bias / scales).clip(-limit, limit).astype(np.int32)
    return [_dequantized_constant(graph, node, 2, levels, scales.astype(np.float32))]


def _dequantized_constant(
    graph: GraphProto, node: NodeProto, index: int, levels: NDArray[np.integer], scales: NDArray[np.float32]
) -> NodeProto:
    """Store ``levels`` and point input ``index`` of ``node`` at their dequantized form."""
    label = f"{node.name}_{'weight' if index == 1 else 'bias'}"
    names = [f"{label}_levels", f"{label}_scale", f"{label}_zero_point"]
    for name, values in zip(names, (levels, scales, np.zeros(len(scales), levels.dtype)), strict=True):
        graph.initializer.append(numpy_helper.from_array(values, name))
    node.input[index] = f"{label}_dq"
    return helper.make_node("DequantizeLinear", names, [node.input[index]], name=f"{label}_dequantize", axis=0)


def _drop_unused_initializers(graph: GraphProto) -> None:
    used = {name for node in graph.node for name in node.input} | {output.name for output in graph.output}
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)
