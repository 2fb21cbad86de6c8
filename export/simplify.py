"""Clean an exported graph: fold constants, drop what computes nothing, check that the result still is the same."""

from __future__ import annotations

import onnx
from onnx import ModelProto

from export.rewrite import split_by_weights


def simplify(model: ModelProto) -> ModelProto:
    """Simplify with onnxsim, apply our exact rewrites, re-infer shapes and check the result.

    Dynamic axes stay dynamic. Names are made deterministic, so that the same network gives the same bytes.

    Raises:
        RuntimeError: onnxsim changed what the graph computes.
    """
    import onnxsim

    simplified, same = onnxsim.simplify(model)
    if not same:
        raise RuntimeError("simplification changed the output of the graph")
    split_by_weights(simplified)
    del simplified.metadata_props[:]  # its own log; what we have to say is added afterwards
    del simplified.graph.value_info[:]  # stale after folding; inferred again
    for node in simplified.graph.node:
        del node.metadata_props[:]  # the exporter's stack traces: paths of the machine that exported
        node.doc_string = ""
    for value in (*simplified.graph.input, *simplified.graph.output, *simplified.graph.initializer):
        value.doc_string = ""
        del value.metadata_props[:]
    simplified = onnx.shape_inference.infer_shapes(simplified, strict_mode=True, data_prop=True)
    for value in simplified.graph.value_info:
        del value.metadata_props[:]
    onnx.checker.check_model(simplified, full_check=True)
    return simplified
