"""The last convolution fitted anew: nearer to FP32 on pictures that it was not fitted to, and nothing else changed."""

import numpy as np
import pytest
from onnx import ModelProto, numpy_helper

from quantize.patches import Patches
from quantize.plan import Plan, make_plan
from quantize.refit import refit_tail
from quantize.search import Judge, open_session


def _weights(plan: Plan) -> dict[str, bytes]:
    return {tensor.name: tensor.SerializeToString() for tensor in plan.model.graph.initializer}


@pytest.mark.parametrize("target", ["tensorrt", "cpu", "openvino"])
def test_held_out_pictures_come_nearer_to_fp32(tiny: ModelProto, few: Patches, target: str) -> None:
    plan = make_plan(tiny, few, target=target)
    before = _weights(plan)
    fitted = refit_tail(plan, tiny, few)
    judge = Judge(tiny, list(few.judges()), 4)
    assert judge.mse(fitted.build()) < 0.98 * judge.mse(plan.build())
    assert _weights(plan) == before, "the plan given stays as it was"
    changed = {name for name, content in _weights(fitted).items() if content != before[name]}
    assert changed == {"w4", "b4"}
    assert fitted.activations == plan.activations
    assert _weights(refit_tail(plan, tiny, few)) == _weights(fitted)


def test_an_error_that_every_pixel_has_goes(tiny: ModelProto, few: Patches) -> None:
    plan = make_plan(tiny, few, target="tensorrt")
    for tensor in plan.model.graph.initializer:
        if tensor.name == "b4":
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) + np.float32(0.01), "b4"))
    white = np.ones((1, 3, 24, 24), np.float32)

    def off(model: ModelProto) -> float:
        results = [open_session(m).run(None, {"input": white})[0] for m in (tiny, model)]
        return float(np.abs((results[1] - results[0])[..., 16:-16, 16:-16].mean()))

    assert off(plan.build()) > 0.005
    assert off(refit_tail(plan, tiny, few).build()) < 0.002


def test_a_last_convolution_in_8_bits_is_left_alone(tiny: ModelProto, few: Patches) -> None:
    plan = make_plan(tiny, few, target="tensorrt", float_tail=False)
    assert refit_tail(plan, tiny, few) is plan
    assert refit_tail(plan, tiny, few, ["last"]) is not plan


def test_weights_that_others_read_are_left_alone(tiny: ModelProto, few: Patches) -> None:
    plan = make_plan(tiny, few, target="tensorrt")
    for node in plan.model.graph.node:
        if node.name == "last":
            node.input[2] = "b4_of_another"
    assert refit_tail(plan, tiny, few) is plan
