"""What a built engine computes with, layer by layer, from what the library prints at the end of a build.

Without a GPU an engine cannot be opened and inspected; its builder's log names the data types of every layer all the
same, with ProfilingVerbosity.DETAILED.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from runtime.plans import Layer

if TYPE_CHECKING:
    from onnx import ModelProto


def layers_from_log(messages: list[str]) -> list[Layer]:
    """The layers of the message that starts with ``Layers:``; empty where the library printed none."""
    for message in reversed(messages):
        if message.startswith("Layers:"):
            return [layer for line in message.splitlines()[1:] if (layer := _layer(line)) is not None]
    return []


def quantized_convolutions(model: ModelProto) -> dict[str, str]:
    """The convolutions that a Q/DQ graph means to be INT8, whose input and weights both come from 8 bits.

    Returns:
        for each one's name the name of the node that dequantizes its weights.
    """
    dequantized = {node.output[0]: node.name for node in model.graph.node if node.op_type == "DequantizeLinear"}
    return {
        node.name: dequantized[node.input[1]]
        for node in model.graph.node
        if node.op_type == "Conv" and dequantized.keys() >= set(node.input[:2])
    }


def int8_convolutions(layers: list[Layer], meant: dict[str, str]) -> set[str]:
    """Those of ``meant`` (see ``quantized_convolutions``) that the engine computes on 8-bit inputs and weights.

    A layer computes a convolution if it bears its name, or if it is a fused kernel with a correlation in it that takes
    in the dequantization of its weights: tiny ones, on pooled values, are fused with the rounding of their input.
    """
    found = set()
    for layer in layers:
        own = re.sub(r"_myl\d+_\d+$", "", layer.name)
        weights = not layer.constants or "Int8" in layer.constants
        if layer.inputs[:1] == ["Int8"] and weights:
            found |= {own} & meant.keys()
        fused = layer.kind == "kgen" and "Int8" in layer.constants and re.search(r"Roun\w*Cast\w*Corr", layer.name)
        if fused or (layer.kind != "kgen" and layer.inputs[:1] == ["Int8"] and weights):
            found |= {name for name, dequantize in meant.items() if {name, dequantize} <= set(layer.onnx_nodes)}
    return found


def _layer(line: str) -> Layer | None:
    head = re.match(r"Name: (.*?), LayerType: ([^,]+),", line)
    if head is None:
        return None
    marks = [(mark, line.find(f", {mark}: [")) for mark in ("Inputs", "Constants", "Outputs")]
    marks = [(mark, start) for mark, start in marks if start >= 0]
    ends = [start for _, start in marks[1:]] + [line.find(", TacticName:") if ", TacticName:" in line else len(line)]
    types = {
        mark: [_type(text) for text in re.findall(r"Datatype: ([^}]*?)(?:, Format| \}|$)", line[start:end])]
        for (mark, start), end in zip(marks, ends, strict=True)
    }
    return Layer(
        name=head[1],
        kind=head[2],
        inputs=types.get("Inputs", []),
        constants=types.get("Constants", []),
        outputs=types.get("Outputs", []),
        onnx_nodes=re.findall(r"\[ONNX Layer: ([^\]]*)\]", line),
    )


def _type(text: str) -> str:
    """TensorRT 10 writes a whole format, such as "Row major Int8 format"; TensorRT 11 and RTX the type alone."""
    found = re.search(r"Int8|Int32|Int64|Half|Float|FP32|FP16|BFloat16|Bool", text)
    return {"FP32": "Float", "FP16": "Half"}.get(found[0], found[0]) if found else text.strip()
