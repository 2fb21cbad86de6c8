"""The last convolution fitted anew: nearer to FP32 on pictures that it was not fitted to, and nothing else changed."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto, helper, numpy_helper

from quantize.patches import Patches, load_patches
from quantize.plan import Plan, make_plan
from quantize.refit import change, refit_tail
from quantize.search import Judge, open_session
from tests.conftest import Script


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
    plan.model.graph.node.append(helper.make_node("Identity", ["b4"], ["other"], "reader"))
    assert refit_tail(plan, tiny, few) is plan


def test_files_are_written_fitted(script: Script, tiny: ModelProto, patch_folder: Path, tmp_path: Path) -> None:
    onnx.save(tiny, tmp_path / "tiny.onnx")
    done = script("quantize/ptq.py", tmp_path / "tiny.onnx", "-o", tmp_path / "out.onnx", "--calib", patch_folder)
    assert done.returncode == 0, done.stderr
    plan = make_plan(tiny, load_patches(str(patch_folder), 4, 64), target="tensorrt")
    written = {tensor.name: tensor for tensor in onnx.load(tmp_path / "out.onnx").graph.initializer}
    fitted = refit_tail(plan, tiny, load_patches(str(patch_folder), 4, 64))
    plain, expected = (
        next(numpy_helper.to_array(tensor) for tensor in made.model.graph.initializer if tensor.name == "w4")
        for made in (plan, fitted)
    )
    found = numpy_helper.to_array(written["w4"])
    assert np.abs(found - expected).max() < 1e-5 < np.abs(found - plain).max()


def test_flat_colours_do_not_cost_pictures_more_than_fitting_gains() -> None:
    squares = np.diag([1.0, 1.0])
    pictures = (squares, np.array([[0.1], [0.0]]))
    kind, costly = (squares, np.array([[0.2], [0.0]])), (squares, np.array([[0.0], [90.0]]))
    assert change(pictures, kind)[0, 0] > 0.1, "both want more of the first"
    assert np.abs(change(pictures, costly) - change(pictures, (0 * squares, np.zeros((2, 1))))).max() < 1e-9
