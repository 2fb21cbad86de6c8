"""Quantization end to end, without third-party data: three flavours, their pixels, their bytes, their refusals."""

import itertools
import json
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, numpy_helper

from data.metrics import psnr
from data.sets import to_batch
from quantize.calibration import collect_statistics
from quantize.graph import check_quantizable, convolutions, dense, read_onnx, tail
from quantize.passes import centre_input_on_levels, insert_centred_input
from quantize.patches import Patches, load_patches
from quantize.placement import quantize_weight
from quantize.plan import make_plan
from quantize.ptq import judge
from quantize.refit import refit_tail
from quantize.search import Judge, open_session
from runtime.engines.ort import OrtEngine
from runtime.errors import UserError
from tests.conftest import ROOT, Script

MODELS = ROOT / "runtime/models"
FLAVOURS = {"tensorrt": "gmin_x4_int8.onnx", "cpu": "gmin_x4_int8_cpu.onnx", "openvino": "gmin_x4_int8_openvino.onnx"}


def run(path: Path, batch: np.ndarray) -> np.ndarray:
    """By the runtime's engine, which asks for kernels that do not saturate where there is no VNNI."""
    return OrtEngine(path, device="cpu").infer(batch)


@pytest.mark.parametrize("target", FLAVOURS)
def test_command(script: Script, fp32_onnx: Path, patch_folder: Path, tmp_path: Path, target: str) -> None:
    results = []
    for i in range(2):
        done = script(
            "quantize/ptq.py", fp32_onnx, "-o", tmp_path / f"{i}.onnx", "--calib", patch_folder, "--target", target,
            "--json", tmp_path / f"{i}.json",
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        results.append((tmp_path / f"{i}.onnx").read_bytes())
    assert results[0] == results[1], "the same command must give the same bytes"
    report = json.loads((tmp_path / "0.json").read_text())
    assert report["convolutions_int8"] == {"tensorrt": 82, "cpu": 82, "openvino": 38}[target]
    assert report["convolutions_int8"] + report["convolutions_float"] == 83
    assert report["psnr_against_fp32_db"] > 40
    assert report["size_bytes"] < 0.65 * report["source_bytes"]
    assert "held-out patches" in done.stdout


@pytest.mark.parametrize("method", ["minmax", "percentile", "entropy", "mse"])
def test_methods(script: Script, fp32_onnx: Path, patch_folder: Path, tmp_path: Path, method: str) -> None:
    done = script(
        "quantize/ptq.py", fp32_onnx, "-o", tmp_path / "a.onnx", "--calib", patch_folder, "--method", method,
        "--json", "-",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["method"] == method
    assert report["psnr_against_fp32_db"] > 38


@pytest.mark.parametrize("target", FLAVOURS)
def test_the_shipped_files_keep_flat_colours_and_gradients_to_a_level(target: str) -> None:
    """Away from the border, where the FP32 network itself does not keep them; colours of a picture of 8 bits, for a
    value between two of its levels is rounded before anything else.
    """
    inside = slice(32, -32)
    engine = OrtEngine(MODELS / FLAVOURS[target], device="cpu")
    for levels in itertools.product((0, 64, 128, 191, 255), repeat=3):
        colour = np.array(levels, np.float32)[None, :, None, None] / 255
        result = engine.infer(np.tile(colour, (1, 1, 32, 32))).clip(0, 1)[..., inside, inside]
        assert np.abs(result - colour).max() * 255 < 1, levels
    ramp = np.tile(np.arange(48, dtype=np.float32) * 5 / 255, (1, 3, 32, 1))
    files = (MODELS / "gmin_x4.onnx", MODELS / FLAVOURS[target])
    exact, result = (run(file, ramp).clip(0, 1)[..., inside, inside] for file in files)
    assert np.abs(result - exact).max() * 255 <= 1


@pytest.mark.parametrize("name", FLAVOURS.values())
def test_the_shipped_files_are_those_of_the_shipped_network(name: str, photo: np.ndarray) -> None:
    batch = to_batch(photo[:96, :128])
    exact, result = (run(MODELS / file, batch).clip(0, 1) for file in ("gmin_x4.onnx", name))
    assert psnr(exact, result, peak=1.0) > 44
    digests = {
        entry.value
        for file in ("gmin_x4.onnx", name)
        for entry in onnx.load(MODELS / file).metadata_props
        if entry.key == "gmin.checkpoint_sha256"
    }
    assert len(digests) == 1


def test_the_shipped_onnx_is_the_export_of_the_shipped_weights(fp32_onnx: Path, photo: np.ndarray) -> None:
    batch = to_batch(photo[100:140, 100:150])
    assert np.abs(run(fp32_onnx, batch) - run(MODELS / "gmin_x4.onnx", batch)).max() < 1e-5


def test_flavours_hold_what_they_promise() -> None:
    kinds = {}
    for target, name in FLAVOURS.items():
        graph = onnx.load(MODELS / name).graph
        zero = {t.name: numpy_helper.to_array(t) for t in graph.initializer if t.name.endswith("_zero_point")}
        quantizers = [node for node in graph.node if node.op_type == "QuantizeLinear"]
        kinds[target] = {zero[node.input[2]].dtype.name for node in quantizers}
        if target == "tensorrt":
            assert not any(zero[node.input[2]].any() for node in quantizers)
            assert not any(t.data_type == TensorProto.INT32 for t in graph.initializer)
    assert kinds == {"tensorrt": {"int8"}, "cpu": {"uint8"}, "openvino": {"uint8"}}


def test_weights_are_symmetric_per_channel() -> None:
    weight = np.random.default_rng(0).normal(0, 1, (8, 4, 3, 3)).astype(np.float32) * 10.0 ** np.arange(-4, 4).reshape(
        -1, 1, 1, 1
    ).astype(np.float32)
    weight[3] = 0
    levels, scales = quantize_weight(weight)
    assert levels.dtype == np.int8
    assert np.abs(levels.reshape(8, -1).astype(int)).max(axis=1).tolist() == [127, 127, 127, 0, 127, 127, 127, 127]
    error = np.abs(levels * scales.reshape(-1, 1, 1, 1) - weight).reshape(8, -1).max(axis=1)
    assert (error <= scales * 0.5001).all()


def test_the_centred_input_is_exact_inside_and_close_at_the_border(fp32_onnx: Path, photo: np.ndarray) -> None:
    model = read_onnx(fp32_onnx)
    assert centre_input_on_levels(model) == "sub"
    assert centre_input_on_levels(model) is None, "it is centred already"
    head = model.graph.node[1].output[0]
    batch = to_batch(photo[:20, :24])
    original = read_onnx(fp32_onnx)
    from quantize.calibration import with_outputs

    a, b = (
        onnxruntime.InferenceSession(with_outputs(m, [head]).SerializeToString()).run([head], {"input": batch})[0]
        for m in (original, model)
    )
    assert np.abs(a - b)[..., 1:-1, 1:-1].max() < 1e-5
    weights = numpy_helper.to_array(next(t for t in original.graph.initializer if t.name == "head.weight"))
    assert 1e-5 < np.abs(a - b).max() <= 0.5 / 255 * np.abs(weights).sum(axis=(1, 2, 3)).max()


def test_graph_roles(fp32_onnx: Path) -> None:
    model = read_onnx(fp32_onnx)
    assert len(convolutions(model)) == 83
    assert len(dense(model)) == 39
    assert [
        numpy_helper.to_array(t).shape for n in tail(model) for t in model.graph.initializer if t.name == n.input[1]
    ] == [(48, 64, 3, 3)]


def test_calibration_memory_does_not_grow(fp32_onnx: Path) -> None:
    """Peak of traced allocations with 4 and with 24 patches: statistics are of fixed size."""
    import tracemalloc

    model = read_onnx(fp32_onnx)
    names = [node.input[0] for node in convolutions(model)]
    peaks = []
    for count in (4, 24):
        tracemalloc.start()
        patches = (np.random.default_rng(i).random((1, 3, 32, 32), dtype=np.float32) for i in range(count))
        collect_statistics(model, names, patches)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.1 * peaks[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.onnx", "-o", "a.onnx"], "There is no model at nowhere.onnx"),
        ([MODELS / "gmin_x4.onnx", "-o", "a.txt"], "must end in .onnx"),
        ([MODELS / "gmin_x4_int8.onnx", "-o", "a.onnx"], "is quantized already"),
        ([MODELS / "gmin_x4.onnx", "-o", "a.onnx", "--calib", "/nowhere"], "neither DIV2K nor a folder"),
        ([MODELS / "gmin_x4.onnx", "-o", "a.onnx", "--calib", ROOT / "docs"], "holds no pictures"),
        ([ROOT / "README.md", "-o", "a.onnx"], "is not an ONNX file"),
        ([MODELS / "gmin_x4.onnx", "-o", "a.onnx", "--time"], "time the plan on its device"),
    ],
)
def test_mistakes_end_with_one_sentence(script: Script, arguments: list[object], message: str) -> None:
    done = script("quantize/ptq.py", *arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (ROOT / "a.onnx").exists()


def test_pictures_that_are_too_small_are_named(script: Script, tmp_path: Path) -> None:
    for name in "ab":
        cv2.imwrite(str(tmp_path / f"{name}.png"), np.zeros((9, 90, 3), np.uint8))
    done = script("quantize/ptq.py", MODELS / "gmin_x4.onnx", "-o", tmp_path / "a.onnx", "--calib", tmp_path)
    assert done.returncode == 2
    assert "a.png has 88x8 pixels; at x4 it needs" in done.stderr


def test_external_data_is_refused(script: Script, tmp_path: Path) -> None:
    model = onnx.load(MODELS / "gmin_x4.onnx")
    onnx.save(model, tmp_path / "a.onnx", save_as_external_data=True, location="a.bin", size_threshold=0)
    done = script("quantize/ptq.py", tmp_path / "a.onnx", "-o", tmp_path / "b.onnx")
    assert done.returncode == 2
    assert "keeps weights in other files" in done.stderr


def test_a_graph_without_names_is_named_and_quantized(script: Script, patch_folder: Path, tmp_path: Path) -> None:
    """A foreign file: no metadata, no node names, another input name, and no centred input."""
    random = np.random.default_rng(0)
    weights = {"w": random.normal(0, 0.1, (12, 3, 3, 3)), "b": random.normal(0, 0.1, 12)}
    graph = onnx.helper.make_graph(
        [
            onnx.helper.make_node("Conv", ["picture", "w", "b"], ["y"], pads=[1, 1, 1, 1]),
            onnx.helper.make_node("DepthToSpace", ["y"], ["z"], blocksize=2, mode="CRD"),
        ],
        "foreign",
        [onnx.helper.make_tensor_value_info("picture", TensorProto.FLOAT, ["N", 3, "H", "W"])],
        [onnx.helper.make_tensor_value_info("z", TensorProto.FLOAT, ["N", 3, "H2", "W2"])],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=9)
    onnx.save(model, tmp_path / "a.onnx")
    done = script(
        "quantize/ptq.py", tmp_path / "a.onnx", "-o", tmp_path / "b.onnx", "--calib", patch_folder, "--int8-tail",
        "--json", "-",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["convolutions_int8"] == 1


def test_a_file_without_types_and_one_of_ir_3_give_the_same_as_any_other(tiny: onnx.ModelProto, few: Patches) -> None:
    """PyTorch's TorchScript exporter names no types, and up to IR 3 every constant is an input too."""
    expected = make_plan(tiny, few, target="cpu").build()
    del tiny.graph.value_info[:]
    tiny.ir_version = 3
    for tensor in tiny.graph.initializer:
        tiny.graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    onnx.checker.check_model(tiny, full_check=True)
    check_quantizable(tiny, Path("old.onnx"))
    assert [value.name for value in tiny.graph.input] == ["input"]
    plan = make_plan(tiny, few, target="cpu")
    assert plan.build().graph == expected.graph
    batch = next(few.batches())
    fitted = open_session(refit_tail(plan, tiny, few).build()).run(None, {"input": batch})[0]
    assert fitted.shape[-1] == 4 * batch.shape[-1]


def test_what_reads_the_result_of_an_unknown_operation_is_not_left_out_in_silence(
    tiny: onnx.ModelProto, few: Patches
) -> None:
    gelu = next(node for node in tiny.graph.node if node.name == "gelu")
    gelu.domain = "com.microsoft"
    tiny.opset_import.append(onnx.helper.make_opsetid("com.microsoft", 1))
    del tiny.graph.value_info[:]
    with pytest.raises(UserError, match="what mix reads is unknown"):
        make_plan(tiny, few, target="tensorrt")


def test_what_is_not_float_pictures_of_any_size_is_refused(tiny: onnx.ModelProto) -> None:
    def refused(change: Callable[[onnx.ModelProto], object]) -> str:
        model = onnx.ModelProto()
        model.CopyFrom(tiny)
        change(model)
        with pytest.raises(UserError) as caught:
            check_quantizable(model, Path("a.onnx"))
        return str(caught.value)

    def fix(model: onnx.ModelProto) -> None:
        for dim, value in zip(model.graph.input[0].type.tensor_type.shape.dim[2:], (24, 40), strict=True):
            dim.dim_value = value

    def halve(model: onnx.ModelProto) -> None:
        for tensor in model.graph.initializer:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), tensor.name))

    assert "takes only pictures of 1 x 3 x 24 x 40" in refused(fix)
    assert "its weights are float16" in refused(halve)
    assert "of ONNX opset 12" in refused(lambda model: setattr(model.opset_import[0], "version", 12))


def test_a_first_convolution_without_a_bias_is_centred_too() -> None:
    random = np.random.default_rng(0)
    weight = random.normal(0, 1, (6, 3, 3, 3)).astype(np.float32)
    graph = onnx.helper.make_graph(
        [
            onnx.helper.make_node("Sub", ["x", "half"], ["m"], name="centre"),
            onnx.helper.make_node("Conv", ["m", "w"], ["y"], name="first"),
        ],
        "g",
        [onnx.helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, "H", "W"])],
        [onnx.helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 6, "H2", "W2"])],
        [numpy_helper.from_array(weight, "w"), numpy_helper.from_array(np.float32(0.5), "half")],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=9)
    batch = random.random((1, 3, 5, 7), dtype=np.float32)
    before = onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"x": batch})[0]
    assert centre_input_on_levels(model) == "m"
    after = onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"x": batch})[0]
    assert np.abs(before - after).max() < 1e-5


def test_a_picture_that_comes_out_exactly_counts_for_120_db(tiny: onnx.ModelProto, tmp_path: Path) -> None:
    """Black from a network that is black: infinitely many decibels before and after, and no NaN between them."""
    for name in ("w4", "b4"):
        tensor = next(t for t in tiny.graph.initializer if t.name == name)
        tensor.CopyFrom(numpy_helper.from_array(np.zeros_like(numpy_helper.to_array(tensor)), name))
    for name in "ab":
        cv2.imwrite(str(tmp_path / f"{name}.png"), np.zeros((64, 64, 3), np.uint8))
    patches = load_patches(str(tmp_path), 4, 2)
    content = tiny.SerializeToString()
    assert judge(content, content, patches) == (120, 120, 120)
    assert Judge(tiny, list(patches.judges()), 4).candidate(tiny, ()).drop_db == 0


def test_centring_the_input_of_a_1x1_convolution_is_exact() -> None:
    random = np.random.default_rng(0)
    weight = random.normal(0, 1, (6, 3, 1, 1)).astype(np.float32)
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Conv", ["x", "w"], ["y"], name="first")],
        "g",
        [onnx.helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, "H", "W"])],
        [onnx.helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 6, "H", "W"])],
        [numpy_helper.from_array(weight, "w")],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=9)
    batch = random.random((1, 3, 5, 7), dtype=np.float32)
    before = onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"x": batch})[0]
    assert insert_centred_input(model)
    assert centre_input_on_levels(model) == "x_centred"
    after = onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"x": batch})[0]
    assert np.abs(before - after).max() < 1e-5, "a 1x1 convolution pads nothing: exact up to the border"
    assert not insert_centred_input(model)


def test_only_clips_that_do_nothing_are_dropped(tiny: onnx.ModelProto, few: Patches) -> None:
    kinds = [
        [node.op_type for node in make_plan(tiny, few, target=target, float_tail=tail).build().graph.node]
        for target, tail in (("tensorrt", False), ("tensorrt", True))
    ]
    assert "Clip" not in kinds[0], "the last convolution reads 8 bits whose range lies within the bounds"
    assert "Clip" in kinds[1], "the last convolution reads floats"


def test_small_steps_do_not_overflow_a_bias() -> None:
    weight = np.array([1.0, 1e-9], np.float32).reshape(2, 1, 1, 1)
    _, scales = quantize_weight(weight, np.array([0.0, 1e-6], np.float32))
    assert scales[0] == np.float32(1 / 127)
    assert scales[1] == np.float32(1e-6)
