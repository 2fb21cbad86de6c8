"""A network small enough to build in a quarter of a second, made without torch, which a Jetson may not have."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto, helper, numpy_helper


def tiny(*, opset: int = 20, size: tuple[object, object] = ("H", "W"), operator: str = "Relu") -> bytes:
    """A x2 network of one convolution."""
    weights = np.random.default_rng(0).normal(size=(12, 3, 3, 3)).astype(np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["input", "w"], ["c"], "conv", pads=[1, 1, 1, 1]),
            helper.make_node(operator, ["c"], ["r"], "act"),
            helper.make_node("DepthToSpace", ["r"], ["output"], "shuffle", blocksize=2),
        ],
        "tiny",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["N", 3, *size])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, ["N", 3, "H2", "W2"])],
        [numpy_helper.from_array(weights, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)
    return model.SerializeToString()
