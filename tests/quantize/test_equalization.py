"""Cross-layer equalisation: exact, and worth it."""

import numpy as np
import pytest
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from quantize.equalization import channel_reach, equalize, junctions
from quantize.patches import Patches
from quantize.plan import make_plan
from quantize.search import Judge, open_session


def copy_of(model: ModelProto) -> ModelProto:
    copy = ModelProto()
    copy.CopyFrom(model)
    return copy


def enlarging(nodes: list[NodeProto], weights: dict[str, np.ndarray]) -> ModelProto:
    ends = [
        helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, 3, "h", "w"]),
        helper.make_tensor_value_info("output", TensorProto.FLOAT, [1, 3, "sh", "sw"]),
    ]
    constants = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    graph = helper.make_graph(nodes, "enlarging", ends[:1], ends[1:], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def test_junctions_are_tensors_between_convolutions(tiny: ModelProto) -> None:
    found = {junction.tensor: (junction.source.name, junction.free) for junction in junctions(tiny)}
    assert found == {"t1": ("first", True)}, "t2 has a reader that is no convolution, t5 a clip behind it"


@pytest.fixture
def joined() -> ModelProto:
    """Two convolutions of different range, concatenated, read by a dense and a depth-wise convolution."""
    draw = np.random.default_rng(1)
    shapes = {"a": (4, 3, 1, 1), "b": (2, 3, 1, 1), "dense": (3, 6, 1, 1), "alone": (6, 1, 3, 3), "last": (48, 9, 1, 1)}
    weights = {name: draw.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    weights["a"] *= 100
    nodes = [
        helper.make_node("Conv", ["input", "a"], ["ta"], "a"),
        helper.make_node("Conv", ["input", "b"], ["tb"], "b"),
        helper.make_node("Concat", ["ta", "tb"], ["both"], "join", axis=1),
        helper.make_node("Conv", ["both", "dense"], ["td"], "dense"),
        helper.make_node("Conv", ["both", "alone"], ["tl"], "alone", group=6, pads=[1, 1, 1, 1]),
        helper.make_node("Concat", ["td", "tl"], ["all"], "join_again", axis=1),
        helper.make_node("Conv", ["all", "last"], ["wide"], "last"),
        helper.make_node("DepthToSpace", ["wide"], ["output"], "shuffle", blocksize=4, mode="CRD"),
    ]
    return enlarging(nodes, weights)


def test_parts_of_a_concatenation_are_scaled_in_their_readers_too(joined: ModelProto, few: Patches) -> None:
    found = {j.tensor: [(reader.node.name, reader.first) for reader in j.readers] for j in junctions(joined)}
    assert found == {
        "ta": [("dense", 0), ("alone", 0)],
        "tb": [("dense", 4), ("alone", 4)],
        "td": [("last", 0)],
        "tl": [("last", 3)],
    }
    changed = copy_of(joined)
    assert equalize(changed, few.batches()) == 4
    batch = next(few.batches())
    before, after = (open_session(model).run(None, {"input": batch})[0] for model in (joined, changed))
    assert np.abs(before - after).max() <= 1e-5 * np.abs(before).max()
    wide, even = (channel_reach(model, ["both"], few.batches())["both"] for model in (joined, changed))
    assert even.max() / even.min() < wide.max() / wide.min() / 4


def test_a_map_of_one_channel_multiplied_into_many_is_left_alone(few: Patches) -> None:
    """Spatial attention: neither the map nor what is joined behind the product has as many channels as its source."""
    draw = np.random.default_rng(2)
    shapes = {"a": (8, 3, 1, 1), "gate": (1, 8, 1, 1), "b": (8, 8, 1, 1), "last": (48, 16, 1, 1)}
    weights = {name: draw.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    weights["b"] *= np.float32(4.0) ** np.arange(-4, 4, dtype=np.float32)[:, None, None, None]
    nodes = [
        helper.make_node("Conv", ["input", "a"], ["ta"], "a"),
        helper.make_node("Conv", ["ta", "gate"], ["map"], "gate"),
        helper.make_node("Mul", ["map", "ta"], ["gated"], "product"),
        helper.make_node("Conv", ["gated", "b"], ["tb"], "b"),
        helper.make_node("Concat", ["gated", "tb"], ["both"], "join", axis=1),
        helper.make_node("Conv", ["both", "last"], ["wide"], "last"),
        helper.make_node("DepthToSpace", ["wide"], ["output"], "shuffle", blocksize=4, mode="CRD"),
    ]
    gated = enlarging(nodes, weights)
    changed = copy_of(gated)
    equalize(changed, few.batches())
    batch = next(few.batches())
    before, after = (open_session(model).run(None, {"input": batch})[0] for model in (gated, changed))
    assert np.abs(before - after).max() <= 1e-5 * np.abs(before).max()


def test_the_network_stays_the_same(tiny: ModelProto, few: Patches) -> None:
    changed = copy_of(tiny)
    assert equalize(changed, few.batches()) == 1
    for batch in few.batches():
        before, after = (open_session(model).run(None, {"input": batch})[0] for model in (tiny, changed))
        assert np.abs(before - after).max() <= 1e-5 * np.abs(before).max()


def test_channels_have_one_range_afterwards(tiny: ModelProto, few: Patches) -> None:
    changed = copy_of(tiny)
    equalize(changed, few.batches())
    before, after = (channel_reach(model, ["t1"], few.batches())["t1"] for model in (tiny, changed))
    assert before.max() / before.min() > 100
    assert after.max() / after.min() <= 2.1  # powers of two


def test_constants_that_others_read_are_left_alone(tiny: ModelProto, few: Patches) -> None:
    next(node for node in tiny.graph.node if node.name == "mix").input[2] = "b1"
    before = {tensor.name: numpy_helper.to_array(tensor) for tensor in tiny.graph.initializer}
    assert equalize(tiny, few.batches()) == 0
    assert all(np.array_equal(before[t.name], numpy_helper.to_array(t)) for t in tiny.graph.initializer)


@pytest.mark.parametrize("target", ["tensorrt", "cpu"])
def test_it_pays(tiny: ModelProto, few: Patches, target: str) -> None:
    judge = Judge(tiny, list(few.judges()), 4)
    plain, equal = (judge.mse(make_plan(tiny, few, target=target, equalized=on).build()) for on in (False, True))
    assert equal < 0.8 * plain
