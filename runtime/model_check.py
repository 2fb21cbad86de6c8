"""Models checked before an engine sees them: what engines would do with a hostile file is theirs to decide, not ours.

Refused are: files that are no well-formed ONNX, weights outside the file (a path may point anywhere), operators beyond
a list, sub-graphs and functions, constants whose data do not match their shape, and graphs that would blow up a small
picture: a few hundred bytes of doubling concatenations are enough to ask for a terabyte.
"""

from __future__ import annotations

import itertools
import math
from pathlib import Path

from runtime.errors import UserError
from runtime.onnx_file import ITEM_BITS, Attribute, MalformedError, Node, OnnxFile, Tensor, elements, read_onnx

MAX_BYTES = 256 << 20
MAX_NODES = 20_000
MAX_CONSTANT_ELEMENTS = 1 << 26
MAX_ELEMENTS_PER_PIXEL = 1 << 14
"""Elements that a value inside may have for one pixel of the input; GMIN x4 has 448."""
MAX_SIDE = 1 << 14
"""Largest size of the picture that a file may prescribe."""

ALLOWED = {
    "Abs", "Add", "And", "ArgMax", "ArgMin", "AveragePool", "BatchNormalization", "Cast", "CastLike", "Ceil", "Clip",
    "Concat", "Constant", "ConstantOfShape", "Conv", "ConvInteger", "ConvTranspose", "Cos", "DepthToSpace",
    "DequantizeLinear", "Div", "DynamicQuantizeLinear", "Elu", "Equal", "Erf", "Exp", "Expand", "Flatten", "Floor",
    "Gather", "GatherElements", "GatherND", "Gelu", "Gemm", "GlobalAveragePool", "GlobalMaxPool", "Greater",
    "GreaterOrEqual", "GridSample", "GroupNormalization", "HardSigmoid", "HardSwish", "Identity",
    "InstanceNormalization", "LayerNormalization", "LeakyRelu", "Less", "LessOrEqual", "Log", "LogSoftmax", "LRN",
    "MatMul", "MatMulInteger", "Max", "MaxPool", "Min", "Mish", "Mod", "Mul", "Neg", "Not", "Or", "Pad", "Pow",
    "PRelu", "QLinearConv", "QLinearMatMul", "QuantizeLinear", "Range", "Reciprocal", "ReduceL1", "ReduceL2",
    "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd", "ReduceSum", "ReduceSumSquare", "Relu", "Reshape", "Resize",
    "Round", "ScatterElements", "ScatterND", "Selu", "Shape", "Sigmoid", "Sign", "Sin", "Size", "Slice", "Softmax",
    "Softplus", "Softsign", "SpaceToDepth", "Split", "Sqrt", "Squeeze", "Sub", "Sum", "Tanh", "Tile", "Transpose",
    "Unsqueeze", "Upsample", "Where", "Xor",
}  # fmt: skip
"""Operators of the standard domain that super-resolution networks are made of. None runs code, reads files or loops."""

_SAME_SHAPE = {"Cast", "DequantizeLinear", "Identity", "QuantizeLinear"}


def check_onnx(path: Path) -> None:
    """Refuse an ``.onnx`` file that is not what a network of ours, or of any kind we know, looks like.

    Raises:
        UserError: with the reason.
    """
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise UserError(f"{path} cannot be used: it has {size >> 20} MB, more than {MAX_BYTES >> 20}.")
    check_content(path.read_bytes(), str(path))


def check_content(content: bytes, name: str) -> OnnxFile:
    """As ``check_onnx``, for bytes that are already in memory; ``name`` is for the message."""
    try:
        file = read_onnx(content)
    except MalformedError as error:
        raise UserError(f"{name} is damaged, or no ONNX file: {error}.") from error
    fault = _fault(file)
    if fault:
        raise UserError(f"{name} is not loaded: {fault}.")
    return file


def _fault(file: OnnxFile) -> str | None:
    if file.functions or file.sparse:
        return "it defines functions or sparse constants"
    if len(file.nodes) > MAX_NODES:
        return f"it has {len(file.nodes):,} nodes, more than {MAX_NODES:,}"
    if not file.nodes or not file.outputs:
        return "its graph is empty"
    constants = dict(file.constants)
    for node in file.nodes:
        for attribute in node.attributes.values():
            if attribute.graph:
                return f"its {node.op} holds a graph of its own"
            if attribute.sparse:
                return "it defines functions or sparse constants"
            if attribute.tensor is not None:
                fault = _tensor_fault(attribute.tensor)
                if fault:
                    return fault
                if node.op == "Constant" and node.outputs:
                    constants[node.outputs[0]] = attribute.tensor
            elif node.op == "Constant" and node.outputs and attribute.name.startswith(("value_int", "value_float")):
                constants[node.outputs[0]] = _listed(attribute)
        if node.domain not in ("", "ai.onnx") or node.op not in ALLOWED:
            operator = f"{node.domain}::{node.op}" if node.domain else node.op
            return f"the operator {operator[:80]!r} is not one that networks here are made of"
    for tensor in file.constants.values():
        fault = _tensor_fault(tensor)
        if fault:
            return fault
    for value in file.inputs:
        fault = size_fault(value.name, value.shape or ())
        if fault:
            return fault
    return _wiring_fault(file) or _growth_fault(file, constants)


def size_fault(name: str, shape: tuple[int | None, ...]) -> str | None:
    """Why the size that a file prescribes for its input cannot be; None where it can."""
    known = [size for size in shape if size is not None]
    if all(0 < size <= MAX_SIDE for size in known) and math.prod(known) <= MAX_CONSTANT_ELEMENTS:
        return None
    return f"its input {name[:80]!r} prescribes an impossible size"


def padded_elements(channels: float, begin: tuple[int, ...], end: tuple[int, ...]) -> float:
    """Elements that a small picture of so many channels has with these borders, given for its last axes.

    Pads may be negative (they cut then); what a picture brings itself is counted as 16 pixels a side.
    """
    pads = [max(low, 0) + max(high, 0) for low, high in itertools.zip_longest(begin, end, fillvalue=0)]
    sides = [1.0, channels, 16.0, 16.0][-len(pads) :] if len(pads) <= 4 else [1.0] * len(pads)
    others = channels if len(pads) < 3 else 1.0
    return others * math.prod(side + pad for side, pad in zip(sides, pads, strict=True)) if any(pads) else 0.0


def _wiring_fault(file: OnnxFile) -> str | None:
    """Every value is computed once, and before it is read; the outputs are computed."""
    known = {"", *file.constants, *(value.name for value in file.inputs)}
    for node in file.nodes:
        unknown = [name for name in node.inputs if name not in known]
        if unknown:
            return f"its {node.op} reads {unknown[0][:80]!r}, which nothing before it computes"
        if node.op != "Constant" and not any(node.inputs):
            return f"its {node.op} reads nothing"
        if not node.outputs or any(name in known for name in node.outputs):
            return f"its {node.op} computes nothing, or what is there already"
        known |= set(node.outputs)
    missing = [value.name for value in file.outputs if value.name not in known]
    return f"nothing computes its output {missing[0][:80]!r}" if missing else None


def _tensor_fault(tensor: Tensor) -> str | None:
    name = f"its constant {tensor.name[:80]!r}"
    if tensor.external:
        return f"{name} lies in another file; weights must be inside"
    if tensor.kind not in ITEM_BITS:
        return f"{name} is of an unusual type ({tensor.kind})"
    if any(size < 0 for size in tensor.shape):
        return f"{name} has a negative size"
    count = elements(tensor.shape)
    if count > MAX_CONSTANT_ELEMENTS:
        return f"{name} claims {count:,} elements"
    stored = len(tensor.raw)
    if stored and stored != -(-count * ITEM_BITS[tensor.kind] // 8):
        return f"{name} claims {count:,} elements and holds {stored:,} bytes"
    if not stored and tensor.typed_bytes < count:
        return f"{name} claims {count:,} elements and holds {tensor.typed_bytes:,} bytes"
    return None


def _growth_fault(file: OnnxFile, constants: dict[str, Tensor]) -> str | None:
    """An upper estimate of each value's channels and area for one pixel of the input, followed through the graph."""
    sizes: dict[str, tuple[float, float]] = {value.name: (3.0, 1.0) for value in file.inputs}
    for node in file.nodes:
        if node.inputs and node.op in _SAME_SHAPE and node.inputs[0] in constants:  # a weight, to be dequantized
            constants |= dict.fromkeys(node.outputs, constants[node.inputs[0]])
            continue
        inputs = [sizes[name] for name in node.inputs if name in sizes]
        channels = max((c for c, _ in inputs), default=1.0)
        area = max((a for _, a in inputs), default=1.0)
        given = [constants.get(name) for name in node.inputs]
        weight = given[1].shape if len(given) > 1 and given[1] is not None else ()
        pads = _pads(node, given)
        absolute = padded_elements(channels, pads[: len(pads) // 2], pads[len(pads) // 2 :])
        if node.op in ("Conv", "ConvInteger") and len(weight) == 4:
            channels = weight[0]
        elif node.op == "ConvTranspose" and len(weight) == 4:
            group = node.attributes["group"].integer if "group" in node.attributes else 1
            channels = weight[1] * max(group, 1)
            area *= math.prod(max(stride, 1) for stride in _list(node, "strides"))
            extra = padded_elements(channels, (), _list(node, "output_padding"))
            absolute = max(absolute, extra, _product(_list(node, "output_shape")))
        elif node.op == "Concat":
            channels = sum(c * a for c, a in inputs) / area
        elif node.op in ("DepthToSpace", "SpaceToDepth"):
            block = max(node.attributes["blocksize"].integer if "blocksize" in node.attributes else 1, 1) ** 2
            channels, area = (channels / block, area * block) if node.op == "DepthToSpace" else (channels * block, area)
        else:
            grown, more = _grown(node, given)
            area, absolute = area * grown, max(absolute, more)
        if absolute > MAX_CONSTANT_ELEMENTS:
            return f"its {node.op} would make {absolute:,.0f} elements"
        if channels * area > MAX_ELEMENTS_PER_PIXEL:
            return f"its {node.op} would make {channels * area:,.0f} elements of every pixel"
        sizes |= dict.fromkeys(node.outputs, (channels, area))
    return None


def _grown(node: Node, given: list[Tensor | None]) -> tuple[float, float]:
    """How many times its input an operator's result is, and how many elements it has at least; constants only."""
    numbers = [tensor.values() if tensor is not None else () for tensor in given]
    if node.op in ("ConstantOfShape",) and numbers:
        return 1.0, _product(numbers[0])
    if node.op in ("Expand", "Reshape") and len(numbers) > 1:
        return 1.0, _product(numbers[1])
    if node.op == "Tile" and len(numbers) > 1:
        return _product(numbers[1]), 0.0
    if node.op == "Range" and len(numbers) > 2 and all(numbers[:3]):
        start, limit, delta = (values[0] for values in numbers[:3])
        return 1.0, abs((limit - start) / delta) if delta else math.inf
    if node.op in ("Resize", "Upsample"):
        scales = [_floats(tensor) for tensor in given[1:] if tensor is not None and tensor.kind == 1]
        scales += [list(node.attributes["scales"].floats)] if "scales" in node.attributes else []
        sizes = numbers[3] if len(numbers) > 3 else ()
        factor = max((math.prod(max(v, 1.0) for v in values) for values in scales if len(values) == 4), default=1.0)
        return factor, _product(sizes)
    return 1.0, 0.0


def _pads(node: Node, given: list[Tensor | None]) -> tuple[int, ...]:
    """The borders that a node adds, all beginnings first; of a Pad with axes only, they are taken for the last ones."""
    if node.op == "Pad" and len(given) > 1 and given[1] is not None:
        return given[1].values()
    return _list(node, "pads")


def _product(values: tuple[int, ...]) -> float:
    return math.prod(float(max(value, 1)) for value in values)


def _listed(attribute: Attribute) -> Tensor:
    """The constant that ``value_int``, ``value_ints``, ``value_float`` or ``value_floats`` stands for."""
    integers = attribute.integers or (attribute.integer,)
    if attribute.name.startswith("value_float"):
        return Tensor("", (len(attribute.floats),), 1, memoryview(b""), 0, (), False, attribute.floats)
    return Tensor("", (len(integers),), 7, memoryview(b""), 0, integers, False)


def _floats(tensor: Tensor) -> list[float]:
    if tensor.floats:
        return list(tensor.floats)
    return [float(value) for value in memoryview(bytes(tensor.raw[: len(tensor.raw) // 4 * 4])).cast("f")]


def _list(node: Node, name: str) -> tuple[int, ...]:
    return node.attributes[name].integers if name in node.attributes else ()
