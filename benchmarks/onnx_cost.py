"""Parameters and multiply-accumulates of an ONNX file, quantized or not, at a given input size.

Counted here because no maintained counter reads Q/DQ files: what there is either stands still or rounds differently.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from runtime.errors import UserError

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto

    from benchmarks.protocol import Size

_WEIGHT = {
    "Conv": 1,
    "ConvTranspose": 1,
    "ConvInteger": 1,
    "QLinearConv": 3,
    "Gemm": 1,
    "MatMul": 1,
    "MatMulInteger": 1,
    "QLinearMatMul": 3,
}
"""Counted nodes, and which of their inputs is the weight (or the second factor)."""
_NOT_COUNTED = {"Attention", "Einsum", "If", "Loop", "Scan", "LSTM", "GRU", "RNN", "DeformConv", "GroupQueryAttention"}
"""Nodes that multiply and that are not understood here: a file with one is refused, not counted too low."""
_SETTINGS = {
    "QuantizeLinear": (1, 2),
    "DequantizeLinear": (1, 2),
    "QLinearConv": (1, 2, 4, 5, 6, 7),
    "QLinearMatMul": (1, 2, 4, 5, 6, 7),
    "Resize": (1, 2),
    "Clip": (1, 2),
    "Pad": (2,),
}
"""Inputs that are scales, zero points or limits and no parameters."""


class OnnxCost(NamedTuple):
    """What a file holds and multiplies; ``attention_macs`` are products of two computed tensors."""

    parameters: int
    macs: int
    attention_macs: int


def onnx_cost(path: Path, size: Size) -> OnnxCost:
    """Count a file with one input (1, 3, H, W).

    The shapes come from running the graph once with probes on it: shape inference alone gives up where a size is
    computed, as it is around HNCT's windows.

    Raises:
        UserError: the file cannot be read or run, or multiplies in a node that is not understood.
    """
    from quantize.graph import read_onnx

    model = read_onnx(path)
    foreign = sorted({node.op_type for node in model.graph.node} & _NOT_COUNTED)
    if foreign or model.functions:
        raise UserError(f"{path} cannot be counted: it contains {', '.join(foreign) or 'functions of its own'}.")
    counted = [node for node in model.graph.node if node.op_type in _WEIGHT]
    shapes = _shapes(model, path, counted, size)
    constant = _constants(model.graph)
    macs = attention = 0
    for node in counted:
        weight = node.input[_WEIGHT[node.op_type]]
        product = _macs(node, shapes[node.input[0]], shapes[weight], shapes[node.output[0]])
        macs += product
        attention += 0 if weight in constant or node.input[0] in constant else product
    return OnnxCost(_parameters(model.graph), macs, attention)


def _macs(node: NodeProto, given: list[int], weight: list[int], result: list[int]) -> int:
    if node.op_type == "ConvTranspose":  # each input value meets each of its kernels
        return math.prod(given) * math.prod(weight[1:])
    if "Conv" in node.op_type:  # (O, I / groups, h, w)
        return math.prod(result) * math.prod(weight[1:])
    transposed = any(attribute.name == "transA" and attribute.i for attribute in node.attribute)
    return math.prod(result) * given[0 if transposed else -1]


def _shapes(model: ModelProto, path: Path, counted: list[NodeProto], size: Size) -> dict[str, list[int]]:
    """The shape of every tensor that a counted node reads or writes."""
    import numpy as np
    import onnxruntime
    from onnx import TensorProto, helper

    named = sorted({name for n in counted for name in (n.input[0], n.input[_WEIGHT[n.op_type]], n.output[0])})
    initializers = {tensor.name: list(tensor.dims) for tensor in model.graph.initializer}
    probed = [name for name in named if name not in initializers]
    del model.graph.output[:]
    for i, name in enumerate(probed):
        model.graph.node.append(helper.make_node("Shape", [name], [f"probe_{i}"]))
        model.graph.output.append(helper.make_tensor_value_info(f"probe_{i}", TensorProto.INT64, [None]))
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    picture = np.zeros((1, 3, size.height, size.width), np.float32)
    try:
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        results: list[Any] = session.run(None, {session.get_inputs()[0].name: picture})
    except Exception as error:  # the library raises its own kinds, which share no base
        raise UserError(f"{path} cannot be counted at {size}: {str(error).strip().splitlines()[0]}") from error
    return {**initializers, **{name: r.tolist() for name, r in zip(probed, results, strict=True)}}


def _constants(graph: GraphProto) -> set[str]:
    """Names of tensors that do not depend on the picture: initializers and what is computed from them alone."""
    known = {tensor.name for tensor in graph.initializer}
    for node in graph.node:
        if all(name in known for name in node.input if name):
            known |= set(node.output)
    return known


def _parameters(graph: GraphProto) -> int:
    """What the file has learned: floats and levels that enter the arithmetic; no scales, no scalars."""
    from onnx import TensorProto

    floats = {TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE}
    levels = {TensorProto.INT8, TensorProto.UINT8, TensorProto.INT32}
    read: set[str] = set()
    quantized: set[str] = set()
    for node in graph.node:
        for position, name in enumerate(node.input):
            if position not in _SETTINGS.get(node.op_type, ()):
                read.add(name)
                if "Linear" in node.op_type or "Integer" in node.op_type:
                    quantized.add(name)
    return sum(
        math.prod(tensor.dims)
        for tensor in graph.initializer
        if len(tensor.dims)
        and tensor.name in read
        and (tensor.data_type in floats or (tensor.data_type in levels and tensor.name in quantized))
    )
