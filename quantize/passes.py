"""Rewrites of the FP32 graph before it is quantized. Each is exact, or says by how much it is not."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, helper, numpy_helper

from quantize.placement import Affine

LEVEL = np.float32(1 / 255)
"""Distance of two levels of an 8-bit picture on [0, 1]."""
CENTRE = np.float32(128 / 255)


def insert_centred_input(model: ModelProto) -> bool:
    """Let a network that begins with a 1×1 convolution read input − 0.5, in place; exact, for nothing is padded.

    A signed symmetric quantizer gives half of its levels to negative values, and a picture on [0, 1] has none. LKDN and
    BSRN begin so (their repeated input folded); GMIN subtracts 0.5 itself.

    Returns:
        Whether the graph was changed.
    """
    graph = model.graph
    initializers = {tensor.name: tensor for tensor in graph.initializer}
    source = graph.input[0].name
    readers = [node for node in graph.node if source in node.input]
    if [node.op_type for node in readers] != ["Conv"] or readers[0].input[1] not in initializers:
        return False
    conv = readers[0]
    weight = numpy_helper.to_array(initializers[conv.input[1]])
    if weight.shape[2:] != (1, 1) or any(a.name == "pads" and any(a.ints) for a in conv.attribute):
        return False
    bias = numpy_helper.to_array(initializers[conv.input[2]]) if len(conv.input) > 2 else np.zeros(len(weight))
    moved = bias + 0.5 * weight.astype(np.float64).sum(axis=(1, 2, 3))
    names = [f"{source}_offset", f"{source}_centred", f"{conv.name}_centred_bias"]
    graph.initializer.append(numpy_helper.from_array(np.float32(0.5), names[0]))
    graph.initializer.append(numpy_helper.from_array(moved.astype(np.float32), names[2]))
    shift = helper.make_node("Sub", [source, names[0]], [names[1]], name=f"{source}_centre")
    kind = graph.input[0].type.tensor_type
    graph.value_info.append(helper.make_tensor_value_info(names[1], kind.elem_type, None))
    inputs = [names[1], conv.input[1], names[2]]
    del conv.input[:]
    conv.input.extend(inputs)
    graph.node.insert(0, shift)
    return True


def centre_input_on_levels(model: ModelProto) -> str | None:
    """Let the network subtract 128/255 instead of 0.5, so that 8 bits hold its input without any error.

    The levels of a picture are k/255; minus 0.5 they fall between the levels of a quantizer whose zero is exact, minus
    128/255 they are (k − 128)/255. The first convolution's bias takes up the difference of 0.5/255, which is exact but
    for the zero padding: there the output of that convolution moves by at most 0.002 of its border weights' sum.

    Changes ``model`` in place.

    Returns:
        The name of the centred tensor, whose levels are multiples of 1/255, or None where the graph does not begin
        with input − 0.5 and a convolution.
    """
    graph = model.graph
    initializers = {tensor.name: tensor for tensor in graph.initializer}
    first = next((n for n in graph.node if graph.input[0].name in n.input), None)
    if first is None or first.op_type != "Sub" or first.input[1] not in initializers:
        return None
    centre = numpy_helper.to_array(initializers[first.input[1]])
    readers = [n for n in graph.node if first.output[0] in n.input]
    if centre.size != 1 or centre.item() != 0.5 or [n.op_type for n in readers] != ["Conv"]:
        return None
    (conv,) = readers
    if len(conv.input) == 2:
        zeros = np.zeros(initializers[conv.input[1]].dims[0], np.float32)
        graph.initializer.append(numpy_helper.from_array(zeros, f"{conv.name}_centred_bias"))
        initializers[graph.initializer[-1].name] = graph.initializer[-1]
        conv.input.append(graph.initializer[-1].name)
    weight, bias = (initializers[name] for name in conv.input[1:3])
    gain = numpy_helper.to_array(weight).astype(np.float64).sum(axis=(1, 2, 3))
    moved = numpy_helper.to_array(bias) + gain * (float(CENTRE) - 0.5)
    bias.CopyFrom(numpy_helper.from_array(moved.astype(np.float32), bias.name))
    shift = numpy_helper.from_array(np.full(centre.shape, CENTRE, np.float32), f"{first.output[0]}_centre")
    graph.initializer.append(shift)
    first.input[1] = shift.name
    return str(first.output[0])


def means_by_pooling(model: ModelProto) -> int:
    """Write each mean over height and width as ``GlobalAveragePool``, in place; the same sum.

    ONNX Runtime has no 8-bit ``ReduceMean``: it took 72 of 325 ms of GMIN's INT8 graph, where its 8-bit pooling takes
    1.4 ms and gives the same bytes (320×180, two threads, Xeon with AMX).

    Returns:
        The number of nodes rewritten.
    """
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    count = 0
    for node in model.graph.node:
        attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        axes = attributes.get("axes", constants.get(node.input[1]) if len(node.input) > 1 else None)
        if node.op_type != "ReduceMean" or axes is None or not attributes.get("keepdims", 1):
            continue
        if sorted(int(axis) % 4 for axis in axes) == [2, 3]:
            node.op_type = "GlobalAveragePool"
            del node.input[1:], node.attribute[:]
            count += 1
    return count


def clip_bounds(model: ModelProto) -> dict[str, tuple[float, float]]:
    """Outputs of the ``Clip`` nodes with constant bounds around 0, and those bounds."""
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    found = {}
    for node in model.graph.node:
        if node.op_type == "Clip" and len(node.input) == 3 and set(node.input[1:]) <= set(constants):
            low, high = (float(numpy_helper.to_array(constants[name])) for name in node.input[1:])
            if low <= 0 <= high:
                found[node.output[0]] = low, high
    return found


def drop_idle_clips(model: ModelProto) -> int:
    """Remove each ``Clip`` that only quantizers read whose own range lies within its bounds, in place; exact.

    Returns:
        The number of nodes removed.
    """
    graph = model.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    outputs = {output.name for output in graph.output}
    bounds = clip_bounds(model)
    readers: dict[str, list[NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)

    def value(name: str) -> NDArray[Any]:
        return np.asarray(numpy_helper.to_array(constants[name]))

    def within(quantizer: NodeProto, low: float, high: float) -> bool:
        if quantizer.op_type != "QuantizeLinear" or not set(quantizer.input[1:]) <= set(constants):
            return False
        scale, zero = value(quantizer.input[1]), value(quantizer.input[2])
        affine = Affine(np.float32(scale), int(zero), "int8" if zero.dtype == np.int8 else "uint8")
        return bool(affine.scale <= affine.largest_scale(low, high))

    idle = []
    for node in graph.node:
        name = node.output[0]
        if name not in bounds or name in outputs or name not in readers:
            continue
        if all(within(quantizer, *bounds[name]) for quantizer in readers[name]):
            idle.append(node)
    for node in idle:
        for reader in readers[node.output[0]]:
            reader.input[0] = node.input[0]
        graph.node.remove(node)
    return len(idle)
