"""The linter: each fault that TensorRT would refuse or hide, planted one at a time."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto, numpy_helper

from quantize.lint import lint_for_tensorrt
from tests.conftest import ROOT, Script


@pytest.fixture
def good() -> ModelProto:
    return onnx.load(ROOT / "runtime/models/gmin_x4_int8.onnx")


def set_initializer(model: ModelProto, suffix: str, change: Callable[[np.ndarray], np.ndarray]) -> None:
    tensor = next(t for t in model.graph.initializer if t.name.endswith(suffix))
    tensor.CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(tensor)), tensor.name))


def test_the_shipped_portable_file_is_clean(good: ModelProto) -> None:
    assert lint_for_tensorrt(good) == []


def test_the_shipped_cpu_file_is_not() -> None:
    faults = lint_for_tensorrt(onnx.load(ROOT / "runtime/models/gmin_x4_int8_cpu.onnx"))
    assert any("UINT8" in fault for fault in faults)
    assert any("INT32" in fault for fault in faults)


@pytest.mark.parametrize(
    ("suffix", "change", "message"),
    [
        ("sub_zero_point", lambda z: z + np.int8(3), "zero point is not 0"),
        ("sub_zero_point", lambda z: z.astype(np.uint8), "UINT8 values"),
        ("sub_scale", lambda s: s * 0, "not positive"),
        ("sub_scale", lambda s: s + np.float32(np.nan), "not positive and finite"),
        ("sub_scale", lambda s: np.full(3, s, np.float32), "per channel on an activation"),
        ("weight_levels", lambda w: w.astype(np.int32), "INT32 constant"),
    ],
)
def test_planted_faults(
    good: ModelProto, suffix: str, change: Callable[[np.ndarray], np.ndarray], message: str
) -> None:
    set_initializer(good, suffix, change)
    faults = lint_for_tensorrt(good)
    assert faults
    assert any(message in fault for fault in faults), faults


def test_a_pair_without_a_zero_point_is_of_the_type_of_what_it_reads(good: ModelProto) -> None:
    weight, activation = (
        next(n for n in good.graph.node if n.op_type == "DequantizeLinear" and n.name.endswith(ending))
        for ending in ("weight_dequantize", "sub_dequantize")
    )
    del weight.input[2:], activation.input[2:]
    assert lint_for_tensorrt(good) == []
    quantizer = next(n for n in good.graph.node if activation.input[0] in n.output)
    del quantizer.input[2:]
    assert all("UINT8 values" in fault for fault in lint_for_tensorrt(good))
    assert len(lint_for_tensorrt(good)) == 2
    quantizer.attribute.append(onnx.helper.make_attribute("output_dtype", onnx.TensorProto.INT8))
    assert lint_for_tensorrt(good) == []


def test_scales_of_weights_lie_along_the_outputs(good: ModelProto) -> None:
    weight = next(n for n in good.graph.node if n.name.endswith("weight_dequantize"))
    next(a for a in weight.attribute if a.name == "axis").i = 1
    (fault,) = lint_for_tensorrt(good)
    assert "along axis 1" in fault


def test_a_computed_scale(good: ModelProto) -> None:
    tensor = next(t for t in good.graph.initializer if t.name == "sub_scale")
    constant = onnx.helper.make_node("Constant", [], ["sub_scale"], value=tensor)
    good.graph.initializer.remove(tensor)
    good.graph.node.insert(0, constant)
    assert any("computed, not an initializer" in fault for fault in lint_for_tensorrt(good))


def test_command(script: Script, tmp_path: Path) -> None:
    models = ROOT / "runtime/models"
    assert script("quantize/lint.py", models / "gmin_x4_int8.onnx").returncode == 0
    run = script("quantize/lint.py", models / "gmin_x4_int8_cpu.onnx")
    assert run.returncode == 2
    assert "TensorRT would not run" in run.stderr
