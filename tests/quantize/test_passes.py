"""Rewrites that make 8-bit graphs faster, each against what it replaces."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper, numpy_helper

from quantize.graph import shared_levels
from quantize.passes import means_by_pooling
from quantize.patches import Patches
from quantize.plan import make_plan
from quantize.ranges import choose_range, scale_and_zero_point


@pytest.fixture
def branched() -> ModelProto:
    """×1: 1×1 → less its mean → split → one part untouched, one through a depth-wise 3×3 → concat → 1×1 → 3×3."""
    draw = np.random.default_rng(0)
    weights = {
        "w1": draw.normal(size=(8, 3, 1, 1)), "b1": draw.normal(size=8), "gain": draw.normal(size=(1, 8, 1, 1)),
        "w2": 9 * draw.normal(size=(4, 1, 3, 3)), "b2": draw.normal(size=4), "w3": draw.normal(size=(8, 8, 1, 1)) / 9,
        "b3": draw.normal(size=8), "w4": draw.normal(size=(3, 8, 3, 3)) / 9, "b4": np.full(3, 0.5),
    }  # fmt: skip
    tensors = [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()]
    tensors += [numpy_helper.from_array(np.array([2, 3]), "axes"), numpy_helper.from_array(np.array([4, 4]), "sizes")]
    nodes = [
        helper.make_node("Conv", ["input", "w1", "b1"], ["t1"], "first"),
        helper.make_node("ReduceMean", ["t1", "axes"], ["t2"], "mean", keepdims=1),
        helper.make_node("Mul", ["t2", "gain"], ["t3"], "share"),
        helper.make_node("Add", ["t1", "t3"], ["t4"], "deviation"),
        helper.make_node("Split", ["t4", "sizes"], ["t5", "t6"], "split", axis=1),
        helper.make_node("Conv", ["t6", "w2", "b2"], ["t7"], "depthwise", group=4, pads=[1, 1, 1, 1]),
        helper.make_node("Concat", ["t5", "t7"], ["t8"], "join", axis=1),
        helper.make_node("Conv", ["t8", "w3", "b3"], ["t9"], "mix"),
        helper.make_node("Conv", ["t9", "w4", "b4"], ["output"], "last", pads=[1, 1, 1, 1]),
    ]
    graph = helper.make_graph(
        nodes,
        "branched",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, 3, "h", "w"])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, [1, 3, "h", "w"])],
        tensors,
        value_info=[helper.make_tensor_value_info(f"t{i}", TensorProto.FLOAT, None) for i in range(1, 10)],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def _run(model: ModelProto, x: NDArray[np.float32]) -> NDArray[np.float32]:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"input": x})[0])


def _picture() -> NDArray[np.float32]:
    return np.random.default_rng(1).random((1, 3, 24, 20), dtype=np.float32)


def test_means_by_pooling_give_the_same_pixels(branched: ModelProto) -> None:
    before = _run(branched, _picture())
    assert means_by_pooling(branched) == 1
    assert [node.op_type for node in branched.graph.node].count("GlobalAveragePool") == 1
    assert np.abs(_run(branched, _picture()) - before).max() < 1e-5


@pytest.mark.parametrize(("axes", "keepdims"), [([1], 1), ([2], 1), ([2, 3], 0), ([1, 2, 3], 1)])
def test_other_means_stay(branched: ModelProto, axes: list[int], keepdims: int) -> None:
    mean = branched.graph.node[1]
    mean.attribute[0].i = keepdims
    next(t for t in branched.graph.initializer if t.name == "axes").CopyFrom(
        numpy_helper.from_array(np.array(axes), "axes")
    )
    assert means_by_pooling(branched) == 0
    assert mean.op_type == "ReduceMean"


def test_parts_share_the_levels_of_the_whole(branched: ModelProto, few: Patches) -> None:
    assert shared_levels(branched) == {"t5": "t4", "t6": "t4", "t7": "t8"}
    plan = make_plan(branched, few, target="cpu", equalized=False)
    for part, whole in {"t5": "t4", "t6": "t4", "t7": "t8"}.items():
        assert plan.activations[part] == plan.activations[whole]
    tensorrt = make_plan(branched, few, target="tensorrt", equalized=False)
    assert not tensorrt.shared


def test_what_others_read_too_keeps_its_own_levels(branched: ModelProto) -> None:
    branched.graph.node.insert(7, helper.make_node("Add", ["t7", "t5"], ["t10"], "another reader"))
    assert "t7" not in shared_levels(branched)


def test_nothing_is_rounded_twice(branched: ModelProto, few: Patches) -> None:
    """With the levels of the whole the file is nearer to FP32 than with levels of their own, or as near."""
    plan = make_plan(branched, few, target="cpu", equalized=False)
    own = dict(plan.activations)
    for part in plan.shared:
        low, high = choose_range(plan.statistics[part], "mse", symmetric=False)
        scale, zero_point = scale_and_zero_point(low, high, "uint8")
        own[part] = dataclasses.replace(own[part], scale=scale, zero_point=zero_point)
    apart = dataclasses.replace(plan, activations=own, shared={})
    x = next(iter(few.batches()))
    expected = _run(branched, x)
    together, separate = (np.mean((_run(p.build(), x) - expected) ** 2) for p in (plan, apart))
    assert together <= 1.02 * separate


def test_nothing_behind_a_float_tail_reads_8_bits(tiny: ModelProto, few: Patches) -> None:
    assert "shuffle" not in make_plan(tiny, few, target="cpu", equalized=False).units
    assert "shuffle" in make_plan(tiny, few, target="cpu", equalized=False, float_tail=False).units
