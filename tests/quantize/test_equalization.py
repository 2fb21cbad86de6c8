"""Cross-layer equalisation: exact, and worth it."""

import numpy as np
import pytest
from onnx import ModelProto, numpy_helper

from quantize.equalization import channel_reach, equalize, junctions
from quantize.patches import Patches
from quantize.plan import make_plan
from quantize.search import Judge, open_session


def copy_of(model: ModelProto) -> ModelProto:
    copy = ModelProto()
    copy.CopyFrom(model)
    return copy


def test_junctions_are_tensors_between_convolutions(tiny: ModelProto) -> None:
    found = {junction.tensor: (junction.source.name, junction.free) for junction in junctions(tiny)}
    assert found == {"t1": ("first", True)}, "t2 has a reader that is no convolution, t5 a clip behind it"


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
