"""Time by kind of layer: names of fused nodes lead back to kernels, and all time is accounted for."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.layers import grouped, kernels_of, kind_of, profile_layers
from runtime.engines.opening import MODELS
from runtime.errors import UserError

FP32, INT8 = MODELS / "gmin_x4.onnx", MODELS / "gmin_x4_int8_cpu.onnx"


def event(name: str, kind: str, microseconds: float) -> dict:
    return {"cat": "Node", "name": f"{name}_kernel_time", "dur": microseconds, "args": {"op_name": kind}}


def test_events_are_summed_by_kind_and_the_first_run_is_left_out() -> None:
    events = [
        {"cat": "Session", "name": "model_run", "dur": 1e9},
        {"cat": "Node", "name": "a_fence_before", "dur": 1e9, "args": {"op_name": "Conv"}},
    ]
    for first, second in ((9000, 2000), (5000, 4000), (7000, 3000)):
        events += [event("a", "Conv", first), event("b_token_7", "QLinearConv", second), event("c", "QLinearMul", 500)]
        events += [event("d", "Mul", 250)]
    layers = grouped(events, {"a": "convolution 1×1", "b": "depth-wise 5×5"})
    assert [(layer.kind, layer.nodes, layer.node_types) for layer in layers] == [
        ("convolution 1×1", 1, ("Conv",)),
        ("depth-wise 5×5", 1, ("QLinearConv",)),
        ("sums and products", 2, ("Mul", "QLinearMul")),
    ]
    assert [layer.time_ms for layer in layers] == pytest.approx([6.0, 3.5, 0.75])


@pytest.mark.parametrize(
    ("node", "node_type", "kind"),
    [
        ("conv_nchwc", "Conv", "convolution 3×3"),
        ("conv_token_3", "QLinearConv", "convolution 3×3"),
        ("elsewhere", "Conv", "convolution"),
        ("x", "QuickGelu", "SiLU"),
        ("x", "QLinearSigmoid", "SiLU"),
        ("x", "Softmax", "Softmax"),
    ],
)
def test_kinds(node: str, node_type: str, kind: str) -> None:
    assert kind_of(node, node_type, {"conv": "convolution 3×3"}) == kind


@pytest.mark.parametrize("file", [FP32, INT8], ids=["fp32", "int8"])
def test_kernels_are_read_from_the_file(file: Path) -> None:
    """GMIN's seven modules, by node and by output name; int8 weights stand behind a DequantizeLinear."""
    kinds = list(kernels_of(file).values())
    assert kinds.count("depth-wise 7×7, dilation 3") == 2 * (7 + 1)
    assert kinds.count("depth-wise 5×5, dilation 2") == 2 * 7
    assert kinds.count("convolution 3×3") == 2 * 2


def test_every_convolution_of_the_shipped_files_is_told_by_its_kernel() -> None:
    fp32, int8 = profile_layers([FP32, INT8], width=24, height=16, threads=1, runs=1)
    assert {layer.kind for layer in fp32.layers} - {layer.kind for layer in int8.layers} <= {"SiLU"}
    assert "convolution" not in {layer.kind for profile in (fp32, int8) for layer in profile.layers}
    assert next(layer.nodes for layer in fp32.layers if layer.kind == "convolution 1×1") == 37
    assert any("QLinearConv" in layer.node_types for layer in int8.layers)
    assert fp32.total_ms == pytest.approx(sum(layer.time_ms for layer in fp32.layers))


def test_a_missing_file_is_said() -> None:
    with pytest.raises(UserError, match="no model at"):
        profile_layers([Path("nowhere.onnx")], width=8, height=8)
