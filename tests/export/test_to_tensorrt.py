"""Real builds by TensorRT-RTX, which needs no GPU for that: what is accepted, what is in the plan, what is refused."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from typer.testing import CliRunner

from export.build_process import build_apart, personality
from export.builder import build_plan
from export.layers import int8_convolutions, layers_from_log, quantized_convolutions
from export.to_onnx import export_onnx
from export.to_tensorrt import app, plan_from_onnx, profile_for
from model.registry import create, describe
from quantize.lint import lint_for_tensorrt
from quantize.patches import load_patches
from quantize.ptq import quantize_model
from runtime.errors import UserError
from runtime.flavour import VERBOSE, Flavour, load_flavour
from runtime.plans import Layer, Profile, sidecar
from tests.conftest import ROOT, Script
from tests.tiny_onnx import tiny

SHIPPED = ROOT / "runtime/models/gmin_x4_int8.onnx"
TARGETS = ("sm86", "sm89", "sm120")
PROFILE = Profile((16, 24), (64, 64), (96, 80))


@pytest.fixture(scope="session")
def rtx() -> Flavour:
    pytest.importorskip("tensorrt_rtx")
    return load_flavour("rtx")


@pytest.fixture(scope="session")
def files(
    tmp_path_factory: pytest.TempPathFactory, fp32_onnx: Path, fp16_onnx: Path, patch_folder: Path
) -> dict[str, Path]:
    """GMIN as shipped; LKDN and BSRN with random weights. All precisions."""
    folder = tmp_path_factory.mktemp("tensorrt")
    torch.manual_seed(0)
    networks = {name: create(name) for name in ("gmin_x4", "lkdn_x4", "bsrn_x4")}
    found = {"gmin_x4 fp32": fp32_onnx, "gmin_x4 fp16": fp16_onnx}
    patches = load_patches(str(patch_folder), 4, 2)
    for name, network in networks.items():
        for precision in ("fp32", "fp16"):
            path = found.setdefault(f"{name} {precision}", folder / f"{name}_{precision}.onnx")
            if not path.exists():
                export_onnx(network.eval(), path, describe(name), precision=precision)
        path = found[f"{name} int8"] = folder / f"{name}_int8.onnx"
        model = onnx.load(found[f"{name} fp32"])
        onnx.save(quantize_model(model, patches, target="tensorrt", method="minmax"), path)
    return found


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
@pytest.mark.parametrize("name", ["gmin_x4", "lkdn_x4", "bsrn_x4"])
def test_our_files_build_for_three_generations(name: str, precision: str, files: dict[str, Path], rtx: Flavour) -> None:
    """One plan holds code for 8.6, 8.9 and 12.0; its height and width are dynamic; a second build is the same."""
    content = files[f"{name} {precision}"].read_bytes()
    plan, layers, reproducible = build_apart(content, rtx, PROFILE, targets=TARGETS)
    assert reproducible == addresses_can_be_fixed()
    if reproducible:
        assert build_apart(content, rtx, PROFILE, targets=TARGETS)[0] == plan
    assert len(plan) > 100_000
    convolutions = [layer for layer in layers if layer.kind == "correlation"]
    assert len(convolutions) > 10, "a dump was found and read"
    model = onnx.load_from_string(content)
    meant = quantized_convolutions(model)
    if precision == "int8":
        everything = [node for node in model.graph.node if node.op_type == "Conv"]
        normed = 8 if name == "lkdn_x4" else 0  # a pixel norm follows: they stay float (quantize/graph.py)
        assert len(meant) == len(everything) - 1 - normed, "all but the one that gives the picture"
        assert int8_convolutions(layers, meant) == meant.keys()
    else:
        assert not meant
        assert {layer.inputs[0] for layer in convolutions} == {"Half" if precision == "fp16" else "Float"}


@pytest.mark.parametrize("target", TARGETS)
def test_two_builds_for_one_size_are_byte_identical(target: str, rtx: Flavour) -> None:
    """In one process too, where for a range of sizes a few bytes may differ (docs/jetson.md)."""
    tile = Profile((64, 64), (64, 64), (64, 64))
    first, second, third = (build_plan(tiny(), rtx, tile, targets=(target,))[0] for _ in range(3))
    assert first == second == third


def addresses_can_be_fixed() -> bool:
    """Asked of the system's own tool, where there is one."""
    tool = shutil.which("setarch")
    return tool is not None and subprocess.run([tool, "-R", "true"], capture_output=True).returncode == 0


def test_builds_for_a_range_of_sizes_are_byte_identical(
    rtx: Flavour, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Whatever the environment, the hash seed, the folder and the other work of the machine. With random addresses
    half the builds of GMIN in FP32 differ from the others.
    """
    if not addresses_can_be_fixed():
        pytest.skip("this system does not let a process fix its addresses")
    content = (SHIPPED.parent / "gmin_x4.onnx").read_bytes()
    environment = dict(os.environ)
    plans = []
    for seed, letters in (("1", 0), ("2", 30_000), ("3", 90_001)):
        monkeypatch.setenv("PYTHONHASHSEED", seed)
        monkeypatch.setenv("SOMETHING", "x" * letters)
        monkeypatch.chdir(tmp_path if letters else ROOT)
        plan, _, reproducible = build_apart(content, rtx, PROFILE, targets=("sm86",))
        assert reproducible
        plans.append(plan)
    with ThreadPoolExecutor(2) as pool:  # two at a time, in turns on the processor
        plans += pool.map(lambda _: build_apart(content, rtx, PROFILE, targets=("sm86",))[0], range(2))
    assert len({hashlib.sha256(plan).hexdigest() for plan in plans}) == 1
    assert not (personality() or 0) & 0x0040000, "this process keeps its own addresses random"
    assert os.environ.keys() == environment.keys() | {"SOMETHING", "PYTHONHASHSEED"}


def test_where_addresses_cannot_be_fixed_the_plan_is_built_and_a_note_says_so(
    tmp_path: Path, rtx: Flavour, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a container whose filter of system calls refuses ``personality``."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("export.build_process.personality", lambda wanted=0: None)
    model, plan = tmp_path / "tiny.onnx", tmp_path / "tiny.plan"
    model.write_bytes(tiny())
    for shapes, noted in (("16x16,32x32,64x64", True), ("32x32", False)):
        done = CliRunner().invoke(app, [str(model), "-o", str(plan), "--target", "sm86", "--shapes", shapes])
        assert done.exit_code == 0, done.output
        assert ("may differ in a few bytes here (docs/jetson.md)" in done.output) == noted
        assert json.loads(sidecar(plan).read_text())["reproducible"] is not noted


@pytest.mark.parametrize(
    ("built", "plan", "reproducible"),
    [("aa", "a", True), ("baa", "a", True), ("abca", "a", True), ("abcd", "a", False)],
)
def test_of_builds_that_differ_the_plan_counts_that_came_twice(
    built: str, plan: str, reproducible: bool, rtx: Flavour, monkeypatch: pytest.MonkeyPatch
) -> None:
    builds = ((letter.encode(), [], True) for letter in built)
    monkeypatch.setattr("export.build_process._build", lambda *_, **__: next(builds))
    assert build_apart(b"", rtx, PROFILE) == (plan.encode(), [], reproducible)
    assert next(builds, None) is None, "no more builds than needed, and no fewer"


def test_a_builder_that_crashes_is_one_sentence(rtx: Flavour) -> None:
    """The builder of 1.7.1 crashes on a computed scale, which our linter refuses before."""
    if rtx.version != "1.7.1.116":
        pytest.skip("another version may do better")
    content = quantized("computed scale").SerializeToString()
    with pytest.raises(UserError, match=r"crashed while it built the engine \(SIG\w+\): try"):
        build_apart(content, rtx, PROFILE, targets=("sm86",))


def test_random_addresses_change_a_few_bytes_at_most(rtx: Flavour) -> None:
    """In one process, where builds find the heap as the one before left it."""
    first, second = (build_plan(tiny(), rtx, PROFILE, targets=("sm86",)) for _ in range(2))
    assert first[1] == second[1], "the layers are the same"
    a, b = (np.frombuffer(plan, np.uint8) for plan, _ in (first, second))
    assert a.shape == b.shape
    assert np.count_nonzero(a != b) <= 64


def test_the_shipped_file_by_the_command(script: Script, tmp_path: Path, rtx: Flavour) -> None:
    plan = tmp_path / "gmin.plan"
    done = script(
        "export/to_tensorrt.py", SHIPPED, "-o", plan, "--target", *TARGETS, "--shapes", "64x64", "--json", "-"
    )
    assert done.returncode == 0, done.stderr
    report, record = json.loads(done.stdout), json.loads((tmp_path / "gmin.plan.json").read_text())
    assert report["plan_sha256"] == record["plan_sha256"] == hashlib.sha256(plan.read_bytes()).hexdigest()
    assert (record["flavour"], record["version"], record["targets"]) == ("rtx", rtx.version, list(TARGETS))
    assert record["int8_convolutions"] == record["int8_convolutions_meant"] == 82
    assert record["profile"] == {"smallest": [64, 64], "best": [64, 64], "largest": [64, 64]}
    assert record["metadata"]["gmin.scale"] == "4"
    assert len(record["layers"]) > 100
    trusted = tmp_path / "cache/gmin-edge/trusted-plans"
    assert [path.name for path in trusted.iterdir()] == [record["plan_sha256"]]
    assert trusted.stat().st_mode & 0o077 == 0


def test_an_equal_plan_is_not_built_twice(tmp_path: Path, rtx: Flavour, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    model, outputs = tmp_path / "tiny.onnx", [tmp_path / f"{i}.plan" for i in range(2)]
    model.write_bytes(tiny())
    first, second = (plan_from_onnx(model, output, flavour="rtx", targets=("sm86",)) for output in outputs)
    assert (first.cached, second.cached) == (False, True)
    assert outputs[0].read_bytes() == outputs[1].read_bytes()
    for other in ({"targets": ("sm89",)}, {"shapes": "64x64"}, {"workspace_mib": 512}, {"cache": False}):
        assert not plan_from_onnx(model, outputs[1], **{"flavour": "rtx", "targets": ("sm86",), **other}).cached
    for kept in (tmp_path / "cache/gmin-edge/plans").glob("*.plan"):
        kept.write_bytes(kept.read_bytes()[:1000])  # as a full disk would leave it
    again = plan_from_onnx(model, outputs[1], flavour="rtx", targets=("sm86",))
    assert not again.cached
    assert outputs[1].stat().st_size == outputs[0].stat().st_size


def test_two_processes_build_a_plan_once(tmp_path: Path, rtx: Flavour) -> None:
    model = tmp_path / "tiny.onnx"
    model.write_bytes(tiny())
    command = [sys.executable, str(ROOT / "export/to_tensorrt.py"), str(model), "--target", "sm86", "--json", "-"]
    environment = {"PATH": "/usr/bin", "XDG_CACHE_HOME": str(tmp_path / "cache")}
    running = [
        subprocess.Popen(
            [*command, "-o", str(tmp_path / f"{i}.plan")], env=environment, stdout=subprocess.PIPE, text=True
        )
        for i in range(2)
    ]
    reports = [json.loads(process.communicate(timeout=120)[0]) for process in running]
    assert sorted(report["cached"] for report in reports) == [False, True]


def quantized(fault: str) -> onnx.ModelProto:
    """One convolution in Q/DQ, sound or with one fault."""
    random = np.random.default_rng(0)
    weights = random.integers(-100, 100, (8, 3, 3, 3)).astype(np.int8)
    kind = np.uint8 if fault == "uint8" else np.int8
    zero = np.array(3 if fault == "zero point" else 0, kind)
    constants = {"ws": np.full(8, 0.01, np.float32), "w": weights, "wz": np.zeros(8, np.int8), "z": zero}
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], "q"),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["xd"], "dq"),
        helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["wd"], "wdq", axis=0),
        helper.make_node("Conv", ["xd", "wd", "b"], ["y"], "conv"),
    ]
    if fault == "computed scale":
        constants["half"] = np.array(0.01, np.float32)
        nodes.insert(0, helper.make_node("ReduceMax", ["x"], ["s"], "scale", keepdims=0))
    else:
        constants["s"] = np.array(0.02, np.float32)
    if fault == "int32 bias":
        constants |= {"bq": np.arange(8, dtype=np.int32), "bs": np.full(8, 2e-4, np.float32)}
        constants["bz"] = np.zeros(8, np.int32)
        nodes.insert(0, helper.make_node("DequantizeLinear", ["bq", "bs", "bz"], ["b"], "bdq", axis=0))
    else:
        constants["b"] = np.zeros(8, np.float32)
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, "H", "W"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


@pytest.mark.parametrize("fault", ["none", "int32 bias", "zero point", "uint8", "computed scale"])
def test_the_linter_agrees_with_the_parser(fault: str, rtx: Flavour) -> None:
    """What the parser refuses, the linter refuses. It also refuses two things that the parser takes: uint8, which the
    parser warns of and the engine clips, and a computed scale, on which the builder of 1.7.1 crashes the process.
    """
    model = quantized(fault)
    trt, log = rtx.module, rtx.log
    log.clear(VERBOSE)
    builder = trt.Builder(log)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parsed = trt.OnnxParser(network, log).parse(model.SerializeToString())
    warnings = " ".join(log.messages(2))
    log.clear()
    assert bool(lint_for_tensorrt(model)) == (fault != "none")
    assert parsed == (fault in ("none", "uint8", "computed scale"))
    assert fault != "uint8" or "uint8" in warnings.lower()


def test_failures_of_the_library_carry_its_reason(rtx: Flavour, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"could not parse the file: Det act, unsupported node"):
        build_plan(tiny(operator="Det"), rtx, PROFILE, targets=("sm86",))
    with pytest.raises(UserError, match=r"could not take the sizes .*MIN<=OPT<=MAX.*--shapes"):
        build_plan(tiny(), rtx, Profile((32, 32), (16, 16), (64, 64)), targets=("sm86",))
    with pytest.raises(UserError, match=r"could not parse the file: .*[Pp]arse the ONNX model"):
        build_apart(b"junk", rtx, PROFILE, targets=("sm86",))
    with pytest.raises(UserError, match=r"could not parse the file: Det act, unsupported node"):
        build_apart(tiny(operator="Det"), rtx, PROFILE, targets=("sm86",))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--shapes", "64x64,32x32,128x128"], "must grow: MIN, OPT and MAX"),
        (["--shapes", "64x64,128x128"], "must be one size, or three"),
        (["--shapes", "64"], "'64' is no size"),
        (["--shapes", "0x64"], "'0x64' is no size"),
        (["--target", "sm87"], "Jetsons build on the device"),
        (["--target", "orin"], "'orin' is no compute capability"),
        ([], "such as --target sm86"),
        (["--flavour", "tensorrt", "--target", "sm86"], "tensorrt is not installed"),
        (["-o", "a.onnx"], "must end in .plan"),
        (["-o", "/nowhere/a.plan"], "the folder /nowhere does not exist"),
        (["--timing-cache", "/nowhere/a.cache"], "the folder /nowhere does not exist"),
    ],
)
def test_mistakes_end_with_one_sentence(
    script: Script, tmp_path: Path, arguments: list[str], message: str, rtx: Flavour
) -> None:
    done = script("export/to_tensorrt.py", SHIPPED, "-o", tmp_path / "a.plan", *arguments)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not list(tmp_path.glob("*.plan*"))


def test_a_file_for_other_engines_is_refused_before_the_build(script: Script, tmp_path: Path) -> None:
    other = ROOT / "runtime/models/gmin_x4_int8_cpu.onnx"
    done = script("export/to_tensorrt.py", other, "-o", tmp_path / "a.plan", "--target", "sm86")
    assert done.returncode == 2
    assert "Quantize with --target tensorrt" in done.stderr
    assert list(tmp_path.glob("a.*")) == []


def test_profiles_follow_the_file() -> None:
    fixed = onnx.load_from_string(tiny(size=(48, 64)))
    assert profile_for(fixed, Path("a"), None) == Profile((48, 64), (48, 64), (48, 64))
    assert str(profile_for(fixed, Path("a"), None)) == "64x48"
    with pytest.raises(UserError, match="a fixed height of 48"):
        profile_for(fixed, Path("a"), "64x64")
    fixed.metadata_props.add(key="gmin.minimum_size", value="abc")
    with pytest.raises(UserError, match=r"gmin\.minimum_size = 'abc', which cannot be"):
        profile_for(fixed, Path("a"), None)
    dynamic = onnx.load_from_string(tiny())
    assert profile_for(dynamic, Path("a"), "320x180") == Profile((180, 320), (180, 320), (180, 320))
    dynamic.metadata_props.add(key="gmin.minimum_size", value="24")
    with pytest.raises(UserError, match="starts below 24 pixels, the smallest side that this network takes"):
        profile_for(dynamic, Path("a"), "16x16,64x64,64x64")
    del dynamic.metadata_props[:]
    assert str(profile_for(dynamic, Path("a"), "16x32,64x64,128x256")) == "16x32,64x64,128x256"


def test_layers_of_a_log() -> None:
    """A line as TensorRT-RTX 1.7 prints it, and one with a whole format as TensorRT 10 does."""
    log = (
        "Layers:\nName: conv_myl0_2, LayerType: correlation, Inputs: [ { Name: a, Dimensions: [1,4,-1,-1], Datatype: "
        "Int8, Format: (NHWC) Channel major format }], Constants: [ { Name: w, Dimensions: [64,4,3,3], Datatype: Int8, "
        "Format: (NHWC) x }, { Name: s, Datatype: Float, Format: y }], Outputs: [ { Name: o, Datatype: Float, Format: "
        "z }], TacticName: t, StreamId: 0, Metadata: [ONNX Layer: conv][ONNX Layer: x_dequantize]\n"
        "Name: conv2, LayerType: CaskConvolution, Inputs: [ { Name: a, Format/Datatype: Row major Int8 format }], "
        "Outputs: [ { Name: b, Format/Datatype: Row major linear FP32 }], TacticName: t"
    )
    layers = layers_from_log(["other", log])
    assert layers == [
        Layer("conv_myl0_2", "correlation", ["Int8"], ["Int8", "Float"], ["Float"], ["conv", "x_dequantize"]),
        Layer("conv2", "CaskConvolution", ["Int8"], [], ["Float"], []),
    ]
    meant = {"conv": "conv_w", "conv2": "conv2_w", "other": "other_w"}
    assert int8_convolutions(layers, meant) == {"conv", "conv2"}
    assert layers_from_log(["nothing of the kind"]) == []
