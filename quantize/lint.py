"""What TensorRT would refuse, or silently clip, in a Q/DQ file: found here, named, and before any build.

python quantize/lint.py gmin_x4_int8.onnx
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

if not __package__:  # started as a file: import from the repository, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import typer

from runtime.command_line import JsonOption, QuietOption, new_app, run, say, write_json
from runtime.errors import UserError

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto


def lint_for_tensorrt(model: ModelProto) -> list[str]:
    """Faults of a graph for TensorRT's explicit INT8, one sentence each; empty where there is none.

    TensorRT takes signed INT8 with zero point 0, per-tensor activations, per-channel weights along axis 0, scales that
    are positive finite initializers, and float biases. It warns at uint8 and clips half of its range.
    """
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper

    initializers = {tensor.name: tensor for tensor in model.graph.initializer}
    producers = {name: node for node in model.graph.node for name in node.output}
    weights_of = {node.input[1] for node in model.graph.node if node.op_type == "Conv"}

    def kind_of(node: NodeProto) -> int:
        """Type of the 8-bit values of a pair: of the zero point, else of what is stored; unsigned by the standard."""
        zero = initializers.get(node.input[2]) if len(node.input) > 2 else None
        if zero is not None:
            return int(zero.data_type)
        if node.op_type == "QuantizeLinear":
            named = (helper.get_attribute_value(a) for a in node.attribute if a.name == "output_dtype")
            return int(next(named, 0) or TensorProto.UINT8)
        stored, before = initializers.get(node.input[0]), producers.get(node.input[0])
        if stored is not None:
            return int(stored.data_type)
        return kind_of(before) if before is not None and before.op_type == "QuantizeLinear" else TensorProto.UINT8

    faults = []
    for node in model.graph.node:
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
            continue
        label = f"{node.op_type} {node.name or node.output[0]}"
        scale = initializers.get(node.input[1])
        if scale is None:
            faults.append(f"{label}: the scale {node.input[1]} is computed, not an initializer")
            continue
        scales = numpy_helper.to_array(scale)
        if not (np.isfinite(scales).all() and (scales > 0).all()):
            faults.append(f"{label}: a scale is not positive and finite")
        stored = initializers.get(node.input[0])
        if stored is not None and stored.data_type == TensorProto.INT32:
            faults.append(f"{label}: an INT32 constant (a bias); TensorRT takes biases as floats only")
            continue
        if scales.size > 1 and stored is None:
            faults.append(f"{label}: one scale per channel on an activation; TensorRT takes one per tensor")
        axis = next((a.i for a in node.attribute if a.name == "axis"), 1)
        if scales.size > 1 and stored is not None and axis != 0 and node.output[0] in weights_of:
            faults.append(f"{label}: scales along axis {axis} of a convolution's weight; TensorRT takes them along 0")
        zero = initializers.get(node.input[2]) if len(node.input) > 2 and node.input[2] else None
        if len(node.input) > 2 and node.input[2] and zero is None:
            faults.append(f"{label}: the zero point is computed, not an initializer")
        kind = kind_of(node)
        if kind != TensorProto.INT8:
            faults.append(f"{label}: {TensorProto.DataType.Name(kind)} values; TensorRT holds INT8 and would clip them")
        elif zero is not None and numpy_helper.to_array(zero).any():
            faults.append(f"{label}: the zero point is not 0")
    return faults


app = new_app("Check a Q/DQ file for TensorRT.")


@app.command()
def main(
    model: Annotated[Path, typer.Argument(help="The .onnx file.")],
    json_target: JsonOption = None,
    quiet: QuietOption = False,
) -> None:
    """Check whether TensorRT would take a Q/DQ file as it is; exit code 2 where it would not."""
    from quantize.graph import read_onnx

    faults = lint_for_tensorrt(read_onnx(model))
    write_json({"schema": 1, "model": str(model), "faults": faults}, json_target)
    for fault in faults:
        say(fault, quiet=quiet, json_target=json_target)
    if faults:
        raise UserError(f"TensorRT would not run {model} as it is meant: {len(faults)} faults.")
    say(f"{model}: nothing that TensorRT refuses or clips", quiet=quiet, json_target=json_target)


if __name__ == "__main__":
    run(app)
