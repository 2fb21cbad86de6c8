"""Tuning: the simulation is the file, and learning makes the file better."""

import numpy as np
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from quantize.patches import Patches
from quantize.plan import Plan, make_plan
from quantize.search import Judge, open_session
from quantize.tuning import tune
from runtime.errors import UserError

torch = pytest.importorskip("torch")
from quantize.simulation import SimulatedGraph


@pytest.mark.parametrize("target", ["tensorrt", "cpu", "openvino"])
def test_the_simulation_gives_what_the_file_gives(tiny: ModelProto, few: Patches, target: str) -> None:
    plan = make_plan(tiny, few, target=target)
    batch = next(few.batches())
    with torch.no_grad():
        simulated = SimulatedGraph(plan, ())(torch.from_numpy(batch)).numpy()
    real = open_session(plan.build()).run(None, {"input": batch})[0]
    off = np.abs(simulated - real)
    assert off.mean() < 1e-3  # a tie may round the other way
    assert off.max() < 0.05


@pytest.mark.parametrize("target", ["tensorrt", "cpu"])
def test_learning_brings_the_file_nearer_to_fp32(tiny: ModelProto, few: Patches, target: str) -> None:
    plan = make_plan(tiny, few, target=target, method="minmax")
    judge = Judge(tiny, list(few.judges()), 4)
    before = plan.build().SerializeToString(deterministic=True)
    tuned = tune(plan, (), few, steps=60)
    assert judge.mse(tuned.build()) < 0.9 * judge.mse(plan.build())
    assert plan.build().SerializeToString(deterministic=True) == before, "the plan given stays as it was"
    again = tune(plan, (), few, steps=60)
    assert again.build().SerializeToString(deterministic=True) == tuned.build().SerializeToString(deterministic=True)


def _clipped(model: ModelProto, low: float, high: float) -> ModelProto:
    for tensor in model.graph.initializer:
        if tensor.name in ("low", "high"):
            value = np.float32(low if tensor.name == "low" else high)
            tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))
    return model


@pytest.mark.parametrize("target", ["tensorrt", "cpu"])
def test_learnt_scales_stay_within_the_clips_before_them(tiny: ModelProto, few: Patches, target: str) -> None:
    plan = make_plan(_clipped(tiny, -0.25, 0.25), few, target=target, float_tail=False)
    simulated = SimulatedGraph(plan, ())
    with torch.no_grad():
        for move in simulated.scale_moves:
            move += 0.5
    learnt = simulated.learnt()
    assert learnt.activations["t4"].scale > 1.6 * plan.activations["t4"].scale, "others move"
    assert "Clip" not in {node.op_type for node in learnt.build().graph.node}
    batch = torch.from_numpy(next(few.batches()))
    with torch.no_grad():
        off = simulated(batch) - SimulatedGraph(learnt, ())(batch)
    assert off.abs().max() < 1e-5, "what was trained is kept"


def test_clips_that_signed_levels_cannot_replace_stay(tiny: ModelProto, few: Patches) -> None:
    plan = make_plan(_clipped(tiny, 0, 0.25), few, target="tensorrt", float_tail=False)
    assert plan.activations["t6"].scale > 0.2 / 127
    simulated = SimulatedGraph(plan, ())
    with torch.no_grad():
        for move in simulated.scale_moves:
            move += 0.5
    learnt = simulated.learnt()
    assert learnt.activations["t6"].scale > 0.3 / 127
    assert "Clip" in {node.op_type for node in learnt.build().graph.node}


def test_float_layers_are_not_touched(tiny: ModelProto, few: Patches) -> None:
    plan = make_plan(tiny, few, target="tensorrt")
    tuned = tune(plan, ("mix",), few, steps=3)
    weights = [
        next(tensor for tensor in model.graph.initializer if tensor.name == "w3").raw_data
        for model in (plan.model, tuned.model)
    ]
    assert weights[0] == weights[1]


def test_pools_with_a_border_and_splits_without_sizes_are_simulated() -> None:
    """As files of opset 17 and foreign exporters write them."""
    draw = np.random.default_rng(0)
    nodes = [
        helper.make_node("Conv", ["input", "w"], ["t"], "first"),
        helper.make_node("Split", ["t"], ["a", "b"], "split", axis=1),
        helper.make_node("MaxPool", ["a"], ["m"], "pool", kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        helper.make_node("Mul", ["m", "b"], ["p"], "product"),
        helper.make_node("Conv", ["p", "last"], ["output"], "last"),
    ]
    weights = {"w": draw.normal(size=(6, 3, 1, 1)), "last": draw.normal(size=(3, 3, 1, 1))}
    graph = helper.make_graph(
        nodes,
        "pooled",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, 3, "h", "w"])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, [1, 3, "h", "w"])],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    batch = draw.random((1, 3, 11, 9), dtype=np.float32) - 1  # a border of zeros would be the largest there
    plan = Plan("tensorrt", model, (), frozenset(), {}, {}, {})
    with torch.no_grad():
        simulated = SimulatedGraph(plan, ())(torch.from_numpy(batch)).numpy()
    assert np.abs(simulated - open_session(model).run(None, {"input": batch})[0]).max() < 1e-5


def test_unknown_operations_are_refused(tiny: ModelProto, few: Patches) -> None:
    plan = make_plan(tiny, few, target="tensorrt")
    plan.model.graph.node.insert(0, helper.make_node("Tanh", ["input"], ["unused"], "tanh"))
    with pytest.raises(UserError, match="cannot simulate Tanh"):
        tune(plan, (), few, steps=1)
