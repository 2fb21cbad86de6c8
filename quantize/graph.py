"""Reading an FP32 graph and finding in it what quantization needs to know."""

from __future__ import annotations

from pathlib import Path

import onnx
from onnx import ModelProto, NodeProto, TensorProto, numpy_helper

from runtime.errors import UserError

_PASSIVE = {"DepthToSpace", "Clip", "Add", "Identity", "Reshape", "Transpose", "Cast"}
"""Operations that may stand between the last convolution and the picture."""
_STATISTICS = {"Pow", "Sqrt", "Div", "ReduceL2", "LayerNormalization", "Softmax", "MatMul"}
_OPSET = 13
"""The first in which ``DequantizeLinear`` takes a scale for each channel."""
_CARRIERS = {"Add", "Mul", "ReduceMean", "GlobalAveragePool", "Clip", "Max", "Reciprocal", "Transpose", "Reshape"}


def read_onnx(path: Path) -> ModelProto:
    """Read an ONNX file, without external data, and check it.

    Raises:
        UserError: missing, empty, broken, or keeping weights in other files.
    """
    if not path.is_file():
        raise UserError(f"There is no model at {path}.")
    if path.stat().st_size == 0:
        raise UserError(f"The model {path} is empty (0 bytes).")
    try:
        model = onnx.load(path, load_external_data=False)
    except Exception as error:  # protobuf's own kinds
        raise UserError(f"{path} is not an ONNX file.") from error
    if any(tensor.data_location == TensorProto.EXTERNAL for tensor in model.graph.initializer):
        raise UserError(f"{path} keeps weights in other files, which is refused: save it as one file.")
    try:
        onnx.checker.check_model(model, full_check=True)
    except Exception as error:
        raise UserError(f"{path} is not a valid ONNX graph: {str(error).strip().splitlines()[0]}") from error
    return model


def check_quantizable(model: ModelProto, path: Path) -> None:
    """Refuse what is no FP32 super-resolution network, and bring the rest to one form, in place.

    Nodes without a name get one, and constants that are inputs as well (as up to IR 3 all are) become constants alone.

    Raises:
        UserError: the graph is quantized already, has no convolution, not one float input of any size and one output,
            weights of another type than float32, or is of an opset without quantization by channels.
    """
    graph = model.graph
    constants = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in constants]
    if len(inputs) != 1 or len(graph.output) != 1 or not convolutions(model):
        raise UserError(f"{path} is no super-resolution network: it has not one input, one output and convolutions.")
    if any(node.op_type in ("QuantizeLinear", "DequantizeLinear") for node in graph.node):
        raise UserError(f"{path} is quantized already; give the FP32 file.")
    shape = inputs[0].type.tensor_type
    if shape.elem_type != TensorProto.FLOAT or len(shape.shape.dim) != 4 or shape.shape.dim[1].dim_value != 3:
        raise UserError(f"{path} is no super-resolution network: its input is not float pictures of N x 3 x H x W.")
    batch, _, *size = (dim.dim_value for dim in shape.shape.dim)
    if batch > 1 or any(size):
        fixed = " x ".join(str(dim.dim_value or dim.dim_param) for dim in shape.shape.dim)
        raise UserError(f"{path} takes only pictures of {fixed}; export it for any height and width.")
    types = {tensor.name: tensor.data_type for tensor in graph.initializer}
    for node in convolutions(model):
        if types[node.input[1]] != TensorProto.FLOAT:
            kind = TensorProto.DataType.Name(types[node.input[1]]).lower()
            raise UserError(f"{path} is no FP32 file: its weights are {kind}. Give the FP32 file.")
    opset = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0)
    if opset < _OPSET:
        raise UserError(f"{path} is of ONNX opset {opset}; scales for each channel need {_OPSET}: export it anew.")
    del graph.input[:]
    graph.input.extend(inputs)
    model.ir_version = max(model.ir_version, 4)  # up to 3 every constant must be an input
    for i, node in enumerate(graph.node):
        node.name = node.name or f"{node.op_type}_{i}"


def convolutions(model: ModelProto) -> list[NodeProto]:
    """The ``Conv`` nodes whose weights are constants, in order."""
    constants = {tensor.name for tensor in model.graph.initializer}
    return [node for node in model.graph.node if node.op_type == "Conv" and node.input[1] in constants]


def dense(model: ModelProto) -> list[NodeProto]:
    """The convolutions that mix channels: all but the depth-wise ones."""
    inputs_per_group = {tensor.name: tensor.dims[1] for tensor in model.graph.initializer if len(tensor.dims) == 4}
    return [node for node in convolutions(model) if inputs_per_group.get(node.input[1], 2) > 1]


def tail(model: ModelProto) -> list[NodeProto]:
    """The convolutions whose result reaches the output through nothing but a shuffle, a sum or a clip."""
    producers = {name: node for node in model.graph.node for name in node.output}
    found, queue = [], [output.name for output in model.graph.output]
    while queue:
        node = producers.get(queue.pop())
        if node is None:
            continue
        if node.op_type == "Conv":
            found.append(node)
        elif node.op_type in _PASSIVE:
            queue.extend(node.input)
    return found


def sums_before(model: ModelProto, nodes: list[NodeProto]) -> list[NodeProto]:
    """The additions whose result ``nodes`` read directly: the long residual that ends in the last convolution."""
    read = {node.input[0] for node in nodes}
    return [node for node in model.graph.node if node.op_type == "Add" and node.output[0] in read]


def after(model: ModelProto, nodes: list[NodeProto]) -> list[NodeProto]:
    """The nodes that depend on ``nodes``, without them."""
    computed = {name for node in nodes for name in node.output}
    found = []
    for node in model.graph.node:  # in topological order
        if computed & set(node.input):
            found.append(node)
            computed.update(node.output)
    return found


def statistics_nodes(model: ModelProto) -> list[NodeProto]:
    """The nodes that compute deviations and norms: squares, roots, quotients, and what only they feed.

    Their values span many orders of magnitude (a variance of LKDN's pixel norm, say) and have no useful 8-bit scale.
    """
    constants = {tensor.name for tensor in model.graph.initializer}
    found: list[NodeProto] = []
    computed: set[str] = set()
    for node in model.graph.node:  # in topological order
        inputs = {name for name in node.input if name and name not in constants}
        difference = node.op_type == "Sub" and len(inputs) == len(node.input)
        carried = node.op_type in _CARRIERS and bool(inputs) and inputs <= computed
        if node.op_type in _STATISTICS or difference or carried:
            found.append(node)
            computed.update(node.output)
    return found


def before_channel_norms(model: ModelProto) -> list[NodeProto]:
    """The convolutions whose result is normalised over the channels of each pixel (LKDN's pixel norm).

    The norm hides their magnitude, which then differs from pixel to pixel and from picture to picture by orders: no
    range that calibration saw is safe for what they read.
    """
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    normed = set()
    for node in model.graph.node:
        axes = next((list(a.ints) for a in node.attribute if a.name == "axes"), None)
        if axes is None and len(node.input) > 1 and node.input[1] in constants:
            axes = [int(axis) for axis in constants[node.input[1]].ravel()]
        if node.op_type == "ReduceMean" and axes == [1]:
            normed.add(node.input[0])
    return [node for node in convolutions(model) if node.output[0] in normed]


def float_tensors(model: ModelProto) -> set[str]:
    """Names of all activations that are FP32, the input included."""
    graph = model.graph
    typed = {v.name: v.type.tensor_type.elem_type for v in (*graph.value_info, *graph.input, *graph.output)}
    constants = {tensor.name for tensor in graph.initializer}
    return {name for name, kind in typed.items() if kind == TensorProto.FLOAT and name not in constants}


def shared_levels(model: ModelProto) -> dict[str, str]:
    """Tensors that lose nothing by taking the 8-bit levels of another one: part to whole.

    The parts of a ``Split`` hold values that are on the levels of the whole already. What only a ``Concat`` reads is
    rounded to the levels of its result in any case. Engines then move bytes, where they would rescale each value.
    """
    readers: dict[str, int] = {output.name: 2 for output in model.graph.output}
    for node in model.graph.node:
        for name in node.input:
            readers[name] = readers.get(name, 0) + 1
    found: dict[str, str] = {}
    for node in model.graph.node:
        if node.op_type == "Split":
            found |= dict.fromkeys(node.output, found.get(node.input[0], node.input[0]))
        elif node.op_type == "Concat":
            found |= {name: node.output[0] for name in node.input if readers[name] == 1 and name not in found}
    return found
