"""Pre- and post-processing inside the graph: uint8 pictures in, uint8 pictures out, nothing to do around it."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, TensorProto, helper, numpy_helper

PREFIX = "pixels."


def fuse_io(model: ModelProto) -> ModelProto:
    """A copy that takes (N, H, W, 3) uint8 RGB and gives (N, sH, sW, 3) uint8 RGB.

    In between the graph is the same. Going in, levels are divided by 255; going out they are scaled, rounded half to
    even and clamped, as the runtime does outside: the pixels are the same wherever an engine computes these as written.
    """
    fused = ModelProto()
    fused.CopyFrom(model)
    graph = fused.graph
    source, result = graph.input[0], graph.output[0]
    constants = {"peak": np.array(255, np.float32), "low": np.array(0, np.float32)}
    graph.initializer.extend(numpy_helper.from_array(value, PREFIX + name) for name, value in constants.items())
    peak, low = PREFIX + "peak", PREFIX + "low"
    before = _chain(
        f"{PREFIX}{source.name}", source.name,
        ("Transpose", [], {"perm": [0, 3, 1, 2]}), ("Cast", [], {"to": TensorProto.FLOAT}), ("Div", [peak], {}),
    )  # fmt: skip
    after = _chain(
        result.name, f"{PREFIX}{result.name}",
        ("Mul", [peak], {}), ("Round", [], {}), ("Clip", [low, peak], {}), ("Cast", [], {"to": TensorProto.UINT8}),
        ("Transpose", [], {"perm": [0, 2, 3, 1]}),
    )  # fmt: skip
    nodes = [*before, *graph.node, *after]
    del graph.node[:]
    graph.node.extend(nodes)
    for value in (source, result):
        sizes = [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        batch, channels, height, width = sizes
        shape = [batch, height, width, channels]
        value.CopyFrom(helper.make_tensor_value_info(PREFIX + value.name, TensorProto.UINT8, shape))
    for entry in fused.metadata_props:
        if entry.key == "gmin.input":
            entry.value = "NHWC uint8 RGB"
    onnx.checker.check_model(fused, full_check=True)
    return fused


def _chain(source: str, target: str, *steps: tuple[str, list[str], dict[str, Any]]) -> list[onnx.NodeProto]:
    """Nodes from ``source`` to ``target``; each step is an operator, its further inputs and its attributes."""
    nodes, name = [], source
    for i, (operator, inputs, attributes) in enumerate(steps):
        following = target if i + 1 == len(steps) else f"{PREFIX}{source}.{i}"
        nodes.append(helper.make_node(operator, [name, *inputs], [following], f"{PREFIX}{operator}_{i}", **attributes))
        name = following
    return nodes
