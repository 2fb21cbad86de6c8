"""OpenVINO IR checked before OpenVINO sees it, by the limits that hold for ONNX (``runtime.model_check``).

Refused are: what is no well-formed IR of version 11 (``runtime.ir_file``); operators beyond a list, so all that hold a
network of their own, keep state between pictures or name other files; constants that do not lie in the ``.bin`` beside;
and graphs that would blow up a small picture. What passes is handed over in memory, written anew from what was checked:
neither another reading of the text nor a file that changed meanwhile makes a difference.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from runtime.errors import UserError
from runtime.ir_file import IrFile, IrLayer, MalformedIrError, elements, read_ir
from runtime.model_check import (
    MAX_BYTES,
    MAX_CONSTANT_ELEMENTS,
    MAX_ELEMENTS_PER_PIXEL,
    MAX_NODES,
    padded_elements,
    size_fault,
)

MAX_XML_BYTES = 32 << 20

ALLOWED = {
    "Abs", "AdaptiveAvgPool", "AdaptiveMaxPool", "Add", "AvgPool", "BatchNormInference", "Broadcast", "Ceiling",
    "Clamp", "Concat", "Const", "Convert", "ConvertLike", "Convolution", "ConvolutionBackpropData", "Cos",
    "DepthToSpace", "Divide", "Elu", "Equal", "Erf", "Exp", "FakeQuantize", "Floor", "FloorMod", "Gather",
    "GatherElements", "GatherND", "Gelu", "Greater", "GreaterEqual", "GridSample", "GroupConvolution",
    "GroupConvolutionBackpropData", "GroupNormalization", "HSigmoid", "HSwish", "HardSigmoid", "Interpolate", "LRN",
    "Less", "LessEqual", "Log", "LogSoftmax", "LogicalAnd", "LogicalNot", "LogicalOr", "LogicalXor", "MVN", "MatMul",
    "MaxPool", "Maximum", "Minimum", "Mish", "Mod", "Multiply", "Negative", "NormalizeL2", "NotEqual", "PReLU", "Pad",
    "Parameter", "Power", "Range", "ReLU", "ReduceL1", "ReduceL2", "ReduceMax", "ReduceMean", "ReduceMin",
    "ReduceProd", "ReduceSum", "Relu", "Reshape", "Result", "Round", "ScatterElementsUpdate", "ScatterNDUpdate",
    "ScatterUpdate", "Select", "Selu", "ShapeOf", "ShuffleChannels", "Sigmoid", "Sign", "Sin", "Slice", "SoftMax",
    "SoftPlus", "SoftSign", "Softmax", "SpaceToDepth", "Split", "Sqrt", "SquaredDifference", "Squeeze",
    "StridedSlice", "Subtract", "Swish", "Tanh", "Tile", "Transpose", "Unsqueeze", "VariadicSplit",
}  # fmt: skip
"""Types of OpenVINO's own sets of operators that super-resolution networks are made of."""

_NOTES = {
    "DisableConstantFolding", "DisableFP16Compression", "DisablePrecisionConversion", "NonconvertibleDivide",
    "decompression", "fused_names", "layout", "old_api_map_element_type", "old_api_map_order",
}  # fmt: skip
"""What ``rt_info`` may say about a layer: names, layouts, how it was stored, and what must not be simplified."""
_VERSION = re.compile(r"opset[1-9]\d?")
_ITEM_BITS = {
    "f64": 64, "f32": 32, "f16": 16, "bf16": 16, "i64": 64, "i32": 32, "i16": 16, "i8": 8, "i4": 4, "u64": 64,
    "u32": 32, "u16": 16, "u8": 8, "u4": 4, "boolean": 8,
}  # fmt: skip
_READ_AS = {"f64": "<f8", "f32": "<f4", "f16": "<f2", "bf16": "<u2", "i64": "<i8", "i32": "<i4", "i16": "<i2",
            "i8": "<i1", "u64": "<u8", "u32": "<u4", "u16": "<u2", "u8": "<u1"}  # fmt: skip
_MOST_NUMBERS = 64
"""Elements of a constant that is read as numbers: sizes, repeats, scales."""
_WEIGHT_KEPT = {"Convert", "FakeQuantize"}
"""What stands between a stored weight and the layer that uses it, and does not change its shape."""


@dataclass(frozen=True)
class CheckedIr:
    """What may be given to OpenVINO: the text written anew, and the weights."""

    xml: bytes
    weights: bytes


@dataclass(frozen=True)
class _Constant:
    shape: tuple[int, ...]
    numbers: tuple[float, ...]
    """Its elements where they are few; else ()."""
    whole: bool
    """Whether they are whole numbers by their type."""


def check_ir(path: Path) -> CheckedIr:
    """Read an ``.xml`` with the ``.bin`` beside it, and refuse what is not what a network looks like.

    Raises:
        UserError: with the reason.
    """
    weights_path = path.with_suffix(".bin")
    text = _content(path, MAX_XML_BYTES)
    if weights_path.exists() and not weights_path.is_file():
        raise UserError(f"{path} is not loaded: its weights {weights_path.name} are no file.")
    weights = _content(weights_path, MAX_BYTES) if weights_path.exists() else b""
    return check_ir_content(text, weights, str(path))


def check_ir_content(xml: bytes, weights: bytes, name: str) -> CheckedIr:
    """As ``check_ir``, for bytes that are already in memory; ``name`` is for the message."""
    try:
        file = read_ir(xml)
        fault = _fault(file, weights)
    except MalformedIrError as error:
        raise UserError(f"{name} is damaged, or no OpenVINO IR: {error}.") from error
    if fault:
        raise UserError(f"{name} is not loaded: {fault}.")
    return CheckedIr(file.xml, weights)


def _content(path: Path, largest: int) -> bytes:
    try:
        size = path.stat().st_size
        if size > largest:
            raise UserError(f"{path} cannot be used: it has {size >> 20} MB, more than {largest >> 20}.")
        with path.open("rb") as stream:
            return stream.read(largest)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {(error.strerror or str(error)).lower()}.") from error


def _fault(file: IrFile, weights: bytes) -> str | None:
    if len(file.layers) > MAX_NODES:
        return f"it has {len(file.layers):,} layers, more than {MAX_NODES:,}"
    for note in file.notes:
        if note.startswith("__"):
            return f"its notes hold {note[:80]!r}, which is for OpenVINO's own use"
    constants: dict[tuple[int, int], _Constant] = {}
    for layer in file.layers:
        if layer.kind not in ALLOWED or not _VERSION.fullmatch(layer.version):
            operator = f"{layer.version}::{layer.kind}"
            return f"the operator {operator[:80]!r} is not one that networks here are made of"
        unknown = [note for note in layer.notes if note not in _NOTES]
        if unknown:
            return f"the note {unknown[0][:80]!r} about its {layer.kind} is not one that is known here"
        if layer.kind == "Const":
            fault = _constant_fault(layer, len(weights))
            if fault:
                return fault
            constants |= dict.fromkeys(((layer.number, port) for port in layer.outputs), _constant(layer, weights))
        if layer.kind == "Parameter":
            kind = layer.data.get("element_type", "")
            if kind not in _ITEM_BITS:
                return f"its input {layer.name[:80]!r} is of an unusual type ({kind[:40]!r})"
            fault = size_fault(layer.name, layer.shape())
            if fault:
                return fault
        elif layer.kind != "Const" and not layer.inputs:
            return f"its {layer.kind} reads nothing"
    inputs, outputs = (sum(layer.kind == kind for layer in file.layers) for kind in ("Parameter", "Result"))
    if (inputs, outputs) != (1, 1):
        return f"it has {inputs} inputs and {outputs} outputs, a super-resolution network one of each"
    return _growth_fault(file, constants)


def _constant_fault(layer: IrLayer, weights_bytes: int) -> str | None:
    name = f"its constant {layer.name[:80]!r}"
    kind = layer.data.get("element_type", "")
    if set(layer.data) != {"element_type", "shape", "offset", "size"}:
        return f"{name} is not described by type, shape, offset and size"
    if kind not in _ITEM_BITS:
        return f"{name} is of an unusual type ({kind[:40]!r})"
    count, offset, size = elements(layer.shape()), layer.number_of("offset"), layer.number_of("size")
    if count > MAX_CONSTANT_ELEMENTS:
        return f"{name} claims {count:,} elements"
    if size != -(-count * _ITEM_BITS[kind] // 8):
        return f"{name} claims {count:,} elements and {size:,} bytes"
    if offset + size > weights_bytes:
        return f"{name} ends at byte {offset + size:,} of a .bin of {weights_bytes:,}"
    return None


def _constant(layer: IrLayer, weights: bytes) -> _Constant:
    shape = tuple(size for size in layer.shape() if size is not None)
    kind, count = layer.data["element_type"], math.prod(shape)
    numbers: tuple[float, ...] = ()
    if count <= _MOST_NUMBERS and kind in _READ_AS:
        found = np.frombuffer(weights, _READ_AS[kind], count, layer.number_of("offset"))
        if kind == "bf16":  # the upper half of a float32
            found = (found.astype(np.uint32) << 16).view(np.float32)
        numbers = tuple(float(value) for value in found)
    return _Constant(shape, numbers, kind[0] in "iu")


def _growth_fault(file: IrFile, constants: dict[tuple[int, int], _Constant]) -> str | None:
    """An upper estimate of each value's channels and area for one pixel of the input, as for ONNX."""
    sizes: dict[tuple[int, int], tuple[float, float]] = {}
    for layer in file.layers:
        if _keeps_weight(layer, constants):
            constants |= dict.fromkeys(((layer.number, port) for port in layer.outputs), constants[layer.inputs[0]])
            continue
        if layer.kind == "Const":
            continue
        given = [constants.get(source) for source in layer.inputs]
        inputs = [sizes[source] for source in layer.inputs if source in sizes]
        channels = max((c for c, _ in inputs), default=3.0 if layer.kind == "Parameter" else 1.0)
        area = max((a for _, a in inputs), default=1.0)
        absolute = padded_elements(channels, layer.numbers_of("pads_begin"), layer.numbers_of("pads_end"))
        weight = given[1].shape if len(given) > 1 and given[1] is not None else ()
        if layer.kind == "Convolution" and len(weight) == 4:
            channels = weight[0]
        elif layer.kind == "GroupConvolution" and len(weight) == 5:
            channels = weight[0] * weight[1]
        elif layer.kind.endswith("ConvolutionBackpropData"):
            if len(weight) >= 4:
                channels = weight[1] if len(weight) == 4 else weight[0] * weight[2]
            area *= math.prod(max(stride, 1) for stride in layer.numbers_of("strides"))
            extra = padded_elements(channels, (), layer.numbers_of("output_padding"))
            absolute = max(absolute, extra, _product(given, 2))
        elif layer.kind == "Concat":
            channels = sum(c * a for c, a in inputs) / area
        elif layer.kind in ("DepthToSpace", "SpaceToDepth"):
            block = float(max(layer.number_of("block_size"), 1)) ** 2
            channels, area = (
                (channels / block, area * block) if layer.kind == "DepthToSpace" else (channels * block, area)
            )
        elif layer.kind == "MatMul" and weight:
            channels = max(channels, *weight[-2:])
        else:
            grown, more = _grown(layer, given, channels)
            area, absolute = area * grown, max(absolute, more)
        if not absolute <= MAX_CONSTANT_ELEMENTS:
            return f"its {layer.kind} would make {absolute:,.0f} elements"
        if not channels * area <= MAX_ELEMENTS_PER_PIXEL:
            return f"its {layer.kind} would make {channels * area:,.0f} elements of every pixel"
        sizes |= dict.fromkeys(((layer.number, port) for port in layer.outputs), (channels, area))
    return None


def _keeps_weight(layer: IrLayer, constants: dict[tuple[int, int], _Constant]) -> bool:
    """Whether a layer gives a stored weight in its own shape: converted, quantized, or scaled, as NNCF stores it."""
    found = [constants[source] for source in layer.inputs if source in constants]
    if layer.kind in _WEIGHT_KEPT:
        return bool(layer.inputs) and layer.inputs[0] in constants
    if layer.kind not in ("Multiply", "Subtract") or len(found) != len(layer.inputs) or len(found) != 2:
        return False
    weight, scale = found[0].shape, found[1].shape
    return (
        len(weight) >= 4
        and len(scale) <= len(weight)
        and all(s in (1, w) for s, w in zip(scale[::-1], weight[::-1], strict=False))
    )


def _grown(layer: IrLayer, given: list[_Constant | None], channels: float) -> tuple[float, float]:
    """How many times its input a layer's result is, and how many elements it has at least; constants only."""
    if layer.kind == "Tile":
        return _product(given, 1), 0.0
    if layer.kind in ("Broadcast", "Reshape"):
        return 1.0, _product(given, 1)
    if layer.kind == "Pad":
        return 1.0, padded_elements(channels, _whole(given, 1), _whole(given, 2))
    if layer.kind == "Range":
        ends = [constant.numbers[:1] for constant in given[:3] if constant is not None]
        if len(ends) == 3 and all(ends):
            start, stop, step = (value[0] for value in ends)
            return 1.0, abs((stop - start) / step) if step else math.inf
    if layer.kind == "Interpolate":
        scales = [c.numbers for c in given[1:] if c is not None and not c.whole]
        sizes = [c.numbers for c in given[1:3] if c is not None and c.whole]
        factor = max((math.prod(max(value, 1.0) for value in values) for values in scales), default=1.0)
        return factor, max((math.prod(max(value, 1.0) for value in values) for values in sizes), default=0.0)
    return 1.0, 0.0


def _product(given: list[_Constant | None], at: int) -> float:
    constant = given[at] if len(given) > at else None
    return math.prod(max(value, 1.0) for value in constant.numbers) if constant is not None else 0.0


def _whole(given: list[_Constant | None], at: int) -> tuple[int, ...]:
    constant = given[at] if len(given) > at else None
    return tuple(int(value) for value in constant.numbers) if constant is not None and constant.whole else ()
