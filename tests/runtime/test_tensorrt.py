"""The TensorRT engine's bookkeeping against FAKES of TensorRT and CUDA that enforce the real rules (tests/fakes)."""

from __future__ import annotations

import importlib
import json
import sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import cv2
import numpy as np
import onnx
import pytest

from export.to_tensorrt import plan_from_onnx
from runtime import flavour
from runtime.cuda import open_cuda
from runtime.engines.contract import TimedEngine, infer_each
from runtime.engines.opening import open_engine
from runtime.engines.tensorrt import IN_FLIGHT, TensorRtEngine
from runtime.errors import UserError
from runtime.images import Picture
from runtime.plans import read_record, rebuild_command, sidecar, trust_plan, write_record
from runtime.upscale import upscale
from tests.conftest import ROOT, Script
from tests.tiny_onnx import tiny

FAKES = ROOT / "tests/fakes"
FAKED = ("tensorrt", "tensorrt_rtx", "cuda", "pycuda", "fake_gpu")


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """The fake GPU; ``import tensorrt`` and the CUDA bindings are fakes here and in child processes."""
    for name in list(sys.modules):
        if name.split(".")[0] in FAKED:
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(str(FAKES))
    monkeypatch.setenv("PYTHONPATH", str(FAKES))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(flavour, "_loaded", {})
    yield importlib.import_module("fake_gpu").reset()
    for name in list(sys.modules):
        if name.split(".")[0] in FAKED:
            del sys.modules[name]


@pytest.fixture
def plan(fakes: Any, tmp_path: Path) -> Path:
    """Built here by the fake, for 16 to 96 pixels."""
    (tmp_path / "tiny.onnx").write_bytes(tiny())
    plan_from_onnx(tmp_path / "tiny.onnx", tmp_path / "tiny.plan", shapes="16x16,32x32,96x96")
    fakes.calls.clear()
    return tmp_path / "tiny.plan"


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((1, 3, height, width), dtype=np.float32)


def repeated(batch: np.ndarray) -> np.ndarray:
    return batch.repeat(2, 2).repeat(2, 3)


@pytest.mark.parametrize("binding", ["cuda-python", "pycuda"])
def test_sizes_change_and_nothing_leaks(binding: str, plan: Path, fakes: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GMIN_CUDA", binding)
    with closing(TensorRtEngine(plan)) as engine:
        assert isinstance(engine, TimedEngine)
        assert engine.info.scale == 2
        assert engine.info.device == "Fake Orin"
        assert engine.info.accepts == ((16, 16), (96, 96))
        assert binding in engine.info.backend
        for seed, size in enumerate([(32, 32), (16, 96), (16, 96), (16, 96), (96, 96), (17, 33), (96, 96), (96, 96)]):
            batch = picture(*size, seed)
            result = engine.infer(batch)
            np.testing.assert_array_equal(result, repeated(batch))
            assert result.dtype == np.float32
        assert engine.last_times.compute_ms == 0.25
        two = np.concatenate([picture(20, 20, 1), picture(20, 20, 2)])
        np.testing.assert_array_equal(engine.infer(two), repeated(two))
    assert fakes.leaks() == {}


def test_buffers_are_kept_and_grow_only(plan: Path, fakes: Any) -> None:
    with closing(TensorRtEngine(plan)) as engine:
        engine.infer(picture(64, 64))
        before = fakes.calls.count("cudaMalloc")
        for size in ((64, 64), (32, 32), (16, 64), (64, 64)):
            engine.infer(picture(*size))
        assert fakes.calls.count("cudaMalloc") == before == 2
        assert len(fakes.streams) == 1, "a picture alone needs no second slot"
        engine.infer(picture(96, 96))
        assert fakes.calls.count("cudaMalloc") == 4
        assert len(fakes.memory) == len(fakes.pinned) == 2


def test_a_size_that_comes_again_is_replayed_as_a_graph(plan: Path, fakes: Any) -> None:
    with closing(TensorRtEngine(plan)) as engine:
        for _ in range(5):
            batch = picture(32, 48)
            np.testing.assert_array_equal(engine.infer(batch), repeated(batch))
        assert fakes.calls.count("execute_async_v3") == 2, "once as it is, once into the recording"
        assert fakes.calls.count("cudaGraphLaunch") == 4
        engine.infer(picture(48, 32))
        assert not fakes.graphs, "a recording of another size is dropped"
        assert engine.info.fallback is None
    assert fakes.leaks() == {}


@pytest.mark.parametrize("call", ["cudaStreamBeginCapture", "cudaStreamEndCapture", "cudaGraphInstantiate"])
def test_graphs_that_cannot_be_recorded(call: str, plan: Path, fakes: Any) -> None:
    """A refused recording is said and not tried again; the results stay right."""
    with closing(TensorRtEngine(plan)) as engine:
        fakes.fail(call, 719)
        for seed in range(4):
            np.testing.assert_array_equal(engine.infer(picture(32, 32, seed)), repeated(picture(32, 32, seed)))
        assert "without CUDA graphs" in str(engine.info.fallback)
        assert fakes.calls.count("cudaStreamBeginCapture") == 1


def test_several_in_flight_in_order(plan: Path, fakes: Any) -> None:
    batches = [picture(32, 32, seed) for seed in range(7)]
    with closing(TensorRtEngine(plan)) as engine:
        for batch, result in zip(batches, infer_each(engine, iter(batches)), strict=True):
            np.testing.assert_array_equal(result, repeated(batch))
        assert fakes.most_in_flight == IN_FLIGHT
        stopped = infer_each(engine, iter(batches))
        next(stopped)
        stopped.close()  # as when a tile is not finite
        assert not any(fakes.streams.values()), "nothing stays in flight"
        np.testing.assert_array_equal(engine.infer(batches[0]), repeated(batches[0]))
    assert fakes.leaks() == {}


def test_want_of_memory_for_a_second_picture_is_said(plan: Path, fakes: Any) -> None:
    with closing(TensorRtEngine(plan)) as engine:
        fakes.fail("create_execution_context", 1)
        batches = [picture(32, 32, seed) for seed in range(4)]
        for batch, result in zip(batches, infer_each(engine, iter(batches)), strict=True):
            np.testing.assert_array_equal(result, repeated(batch))
        assert "only 1 in flight" in str(engine.info.fallback)
        assert "Requested size was 1000000 bytes" in str(engine.info.fallback)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        ("cudaMalloc", 2, "The GPU is out of memory"),
        ("cudaMallocHost", 2, "out of memory"),
        ("cudaMemcpyAsync", 700, "CUDA could not copy a picture to the GPU"),
        ("set_input_shape", 1, "could not take an input of 1x3x32x32"),
        ("set_tensor_address", 1, "could not take the memory of input"),
        ("execute_async_v3", 1, "could not start the computation"),
        ("cudaEventRecord", 719, "CUDA could not record an event"),
        ("cudaStreamSynchronize", 719, "CUDA could not compute"),
    ],
)
def test_errors_at_each_call(call: str, error: int, message: str, plan: Path, fakes: Any) -> None:
    """One sentence, nothing leaked, and the engine works on when the cause is gone."""
    with closing(TensorRtEngine(plan)) as engine:
        fakes.fail(call, error)
        with pytest.raises(UserError, match=message):
            engine.infer(picture(32, 32))
        fakes.failing.clear()
        for queue in fakes.streams.values():
            queue.clear()
        batch = picture(32, 32, 3)
        np.testing.assert_array_equal(engine.infer(batch), repeated(batch))
    assert fakes.leaks() == {}


@pytest.mark.parametrize("call", ["cudaStreamCreateWithFlags", "create_execution_context", "cudaSetDevice"])
def test_errors_at_the_start_leave_nothing(call: str, plan: Path, fakes: Any) -> None:
    fakes.fail(call, 2)
    with pytest.raises(UserError):
        TensorRtEngine(plan)
    assert fakes.leaks() == {}


def test_tiles_of_a_picture_through_a_plan(plan: Path, fakes: Any) -> None:
    """A picture larger than the plan takes is cut; the fake repeats pixels, so the joined result is known."""
    colour = np.random.default_rng(0).integers(0, 256, (150, 210, 3), dtype=np.uint8)
    with closing(TensorRtEngine(plan)) as engine:
        result = upscale(engine, Picture(colour))
        np.testing.assert_array_equal(result.picture.colour, colour.repeat(2, 0).repeat(2, 1))
        assert (result.tile, result.exact) == (96, False)
        assert fakes.most_in_flight == IN_FLIGHT
        small = upscale(engine, Picture(colour[:9, :40]))
        np.testing.assert_array_equal(small.picture.colour, colour[:9, :40].repeat(2, 0).repeat(2, 1))
        assert small.tiles == 1
        assert not small.exact, "padding changes what a network that sees the whole picture gives"
        with pytest.raises(UserError, match=r"takes pictures from 16x16 to 96x96 pixels, not 210x150: use --tile 96"):
            upscale(engine, Picture(colour), tile=0)


def test_the_command_line_with_a_plan(plan: Path, script: Script, tmp_path: Path) -> None:
    """In a process of its own, where PYTHONPATH brings the fakes: upscaled, refused, and vouched for."""
    (tmp_path / "a.png").write_bytes(cv2.imencode(".png", np.full((40, 120, 3), 77, np.uint8))[1].tobytes())
    done = script("runtime/infer.py", tmp_path / "a.png", "--engine", plan, "--json", "-")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["engine"]["backend"].startswith("TensorRT 10.3.0, cuda-python")
    assert report["results"][0]["tiles"] == 2
    (tmp_path / "elsewhere").mkdir()
    elsewhere = {"XDG_CACHE_HOME": str(tmp_path / "elsewhere")}
    refused = script("runtime/infer.py", tmp_path / "a.png", "--engine", plan, **elsewhere)
    assert refused.returncode == 2
    assert "was not built on this machine" in refused.stderr
    assert len(refused.stderr.strip().splitlines()) == 1
    vouched = script("runtime/infer.py", tmp_path / "a.png", "--engine", plan, "--trust-engine", **elsewhere)
    assert vouched.returncode == 0, vouched.stderr
    wrong = script("runtime/infer.py", tmp_path / "a.png", "--engine", f"tensorrt:{tmp_path / 'tiny.onnx'}")
    assert "is an ONNX file: build a plan by python export/to_tensorrt.py" in wrong.stderr


def test_fixed_tiles(fakes: Any, tmp_path: Path) -> None:
    (tmp_path / "tiny.onnx").write_bytes(tiny())
    plan_from_onnx(tmp_path / "tiny.onnx", tmp_path / "tile.plan", shapes="64x64")
    colour = np.random.default_rng(0).integers(0, 256, (150, 50, 3), dtype=np.uint8)
    with closing(TensorRtEngine(tmp_path / "tile.plan")) as engine:
        result = upscale(engine, Picture(colour))
        np.testing.assert_array_equal(result.picture.colour, colour.repeat(2, 0).repeat(2, 1))
        assert result.tile == 64
        assert fakes.calls.count("set_input_shape") <= 2 * IN_FLIGHT, "one size only"


def test_what_was_not_built_here_is_not_loaded(plan: Path, fakes: Any) -> None:
    content = plan.read_bytes()
    sidecar(plan).rename(plan.with_name("kept"))
    plan.write_bytes(content[:-1] + b" }")  # the same plan to the fake, other bytes
    with pytest.raises(UserError, match=r"was not built on this machine, and a plan is native code.*--trust-engine"):
        open_engine(str(plan))
    open_engine(f"tensorrt:{plan}", trust_engine=True).close()
    fakes.calls.clear()
    plan.with_name("kept").rename(sidecar(plan))
    for trusted in (False, True):
        with pytest.raises(UserError, match="truncated or altered"):
            TensorRtEngine(plan, trusted=trusted)
    plan.write_bytes(content[:20])
    with pytest.raises(UserError, match=r"truncated or altered.*python export/to_tensorrt.py"):
        TensorRtEngine(plan)
    assert fakes.calls == [], "refused before anything of it reached a library"


def test_a_trusted_plan_that_the_library_refuses(plan: Path, fakes: Any) -> None:
    sidecar(plan).unlink()
    plan.write_bytes(b"junk")
    with pytest.raises(UserError, match=r"TensorRT 10.3.0 cannot load .*magicTag assertion failed; build it again"):
        TensorRtEngine(plan, trusted=True)
    assert fakes.leaks() == {}


def test_others_may_not_write_where_trust_is_kept(plan: Path, tmp_path: Path) -> None:
    folder = tmp_path / "cache/gmin-edge/trusted-plans"
    folder.chmod(0o777)
    with pytest.raises(UserError, match="Others may write into"):
        TensorRtEngine(plan)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": "10.1.0"}, r"was built by TensorRT 10.1.0, and TensorRT 10.3.0 is installed here"),
        ({"flavour": "rtx", "version": "1.7"}, r"was built by TensorRT-RTX 1.7, and TensorRT 10.3.0 is installed here"),
        ({"targets": ["sm89"]}, r"was built for sm89, and this Fake Orin is sm87"),
        ({"device": "Fake Xavier"}, r"was built and tuned on another GPU \(Fake Xavier\)"),
    ],
)
def test_a_plan_that_does_not_fit(change: dict[str, Any], message: str, plan: Path, fakes: Any) -> None:
    """Refused with the command that builds it; built again where its ONNX file, and no other, stands beside it."""
    record = read_record(plan)
    assert record is not None
    write_record(plan, replace(record, **change))
    fakes_blocked = ModuleType("tensorrt_rtx")  # without content: as if it were not installed
    sys.modules["tensorrt_rtx"] = fakes_blocked
    before = plan.read_bytes()
    beside = plan.with_name("tiny.onnx")
    content = beside.read_bytes()
    beside.write_bytes(content + b"\x00")
    with pytest.raises(UserError, match=message) as refused:
        TensorRtEngine(plan)
    assert rebuild_command(plan, record) in str(refused.value)
    assert "--shapes 16x16,32x32,96x96" in str(refused.value)
    beside.write_bytes(content)
    if change.get("flavour") == "rtx":
        return
    with closing(TensorRtEngine(plan)) as engine:
        assert "built again, for the plan was built" in str(engine.info.fallback)
        np.testing.assert_array_equal(engine.infer(picture(16, 16)), repeated(picture(16, 16)))
    assert plan.read_bytes() == before, "the plan that does not fit stays as it is"


def test_a_rebuild_that_fails_says_why(plan: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = read_record(plan)
    assert record is not None
    write_record(plan, replace(record, version="10.1.0"))
    monkeypatch.setenv("FAKE_BUILD_FAILS", "1")
    for kept in (plan.parent / "cache/gmin-edge/plans").iterdir():
        kept.unlink()
    with pytest.raises(UserError, match=r"building it again failed: .*Could not find any implementation for node conv"):
        TensorRtEngine(plan)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"schema": 99}', '{"schema": 1}', '{"schema": 1, "profile": {}, "layers": []}']
)
def test_a_record_that_is_none(text: str, plan: Path) -> None:
    sidecar(plan).write_text(text)
    with pytest.raises(UserError, match=r"tiny.plan.json (is no record|was written by another version)"):
        TensorRtEngine(plan)


def test_a_record_names_no_file_elsewhere(plan: Path) -> None:
    content = json.loads(sidecar(plan).read_text())
    sidecar(plan).write_text(json.dumps({**content, "onnx": "../../etc/passwd"}))
    with pytest.raises(UserError, match="is no record"):
        TensorRtEngine(plan)


def test_no_gpu_and_no_driver(plan: Path, fakes: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    fakes.fail("cudaGetDeviceCount", 35)
    with pytest.raises(UserError, match="There is no usable NVIDIA driver or GPU here"):
        TensorRtEngine(plan)
    fakes.count = 0
    fakes.failing.clear()
    for binding in ("cuda-python", "pycuda"):
        monkeypatch.setenv("GMIN_CUDA", binding)
        with pytest.raises(
            UserError, match=r"no usable NVIDIA driver or GPU|CUDA could not look for a GPU|sees no NVIDIA"
        ):
            open_cuda()
    monkeypatch.setenv("GMIN_CUDA", "cupy")
    with pytest.raises(UserError, match="GMIN_CUDA is 'cupy'; it must be one of cuda-python, pycuda"):
        open_cuda()
    with pytest.raises(UserError, match="runs on an NVIDIA GPU, not on cpu"):
        TensorRtEngine(plan, device="cpu")


def test_flavours_that_do_not_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """None installed; bindings without libraries; a part missing; an empty folder; too old."""
    folder = tmp_path / "modules"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setattr(flavour, "MODULES", {"tensorrt": "fake_trt_one", "rtx": "fake_trt_two"})

    def say(content: str | None, wanted: flavour.FlavourOption = "tensorrt") -> str:
        monkeypatch.setattr(flavour, "_loaded", {})
        sys.modules.pop("fake_trt_one", None)
        importlib.invalidate_caches()
        (folder / "fake_trt_one.py").unlink(missing_ok=True)
        if content is not None:
            (folder / f"fake_trt_one{'' if content else '_empty'}.py").write_text(content)
        with pytest.raises(UserError) as refused:
            flavour.load_flavour(wanted)
        return str(refused.value)

    assert say(None, "auto").startswith("TensorRT is not installed: on RTX cards pip install")
    assert "fake_trt_one is not installed: pip install 'gmin-edge[tensorrt]'" in say(None)
    broken = say("raise ImportError('libnvinfer.so.10: cannot open shared object file')")
    assert "its libraries do not load (libnvinfer.so.10: cannot open shared object file)" in broken
    assert "without its module fake_trt_libs" in say("import fake_trt_libs")
    assert "without its bindings" in say("x = 1")
    assert "TensorRT 8.6.1 is too old: 10.3" in say("__version__ = '8.6.1'")
    assert "is not installed" in say("raise ImportError('libnvinfer')", "auto")


def test_a_timing_cache_and_the_workspace(fakes: Any, tmp_path: Path) -> None:
    model, cache = tmp_path / "tiny.onnx", tmp_path / "timing.cache"
    model.write_bytes(tiny())
    for expected in (b"measured", b"measuredmeasured"):
        plan_from_onnx(model, tmp_path / "a.plan", timing_cache=cache, workspace_mib=256, cache=False)
        assert cache.read_bytes() == expected
    cache.write_bytes(b"another GPU")
    with pytest.raises(UserError, match=r"could not use the timing cache .*; remove the file"):
        plan_from_onnx(model, tmp_path / "a.plan", timing_cache=cache, cache=False)
    with pytest.raises(UserError, match="builds only for the GPU that is here, sm87"):
        plan_from_onnx(model, tmp_path / "a.plan", targets=("sm86",))
    record = read_record(tmp_path / "a.plan")
    assert record is not None
    assert (record.flavour, record.device, record.targets, record.driver) == ("tensorrt", "Fake Orin", ["sm87"], "12.6")
    assert record.options["workspace_mib"] == 256
    assert [(layer.name, layer.inputs, layer.outputs) for layer in record.layers] == [("conv", ["Float"], ["Float"])]


def test_a_plan_of_a_network_that_is_none(fakes: Any, tmp_path: Path) -> None:
    """An output that is no multiple of the input."""
    (tmp_path / "tiny.onnx").write_bytes(tiny())
    plan_from_onnx(tmp_path / "tiny.onnx", tmp_path / "tiny.plan")
    content = (tmp_path / "tiny.plan").read_bytes().replace(b'"scale": 2', b'"scale": 0')
    (tmp_path / "tiny.plan").write_bytes(content)
    sidecar(tmp_path / "tiny.plan").unlink()
    with pytest.raises(UserError, match="could not tell the shape of its result"):
        TensorRtEngine(tmp_path / "tiny.plan", trusted=True)
    assert fakes.leaks() == {}


@pytest.mark.gpu
def test_a_real_plan_on_a_real_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The shipped INT8 file, built and run by the TensorRT that is here, against ONNX Runtime on the CPU."""
    try:
        library = flavour.load_flavour()
        open_cuda().close()
    except UserError as refusal:
        pytest.skip(str(refusal))
    from data.metrics import psnr
    from runtime.engines.ort import OrtEngine

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    model = ROOT / "runtime/models/gmin_x4_int8.onnx"
    built = plan_from_onnx(model, tmp_path / "gmin.plan", flavour=library.name, shapes="16x16,96x96,256x256")
    assert built.record.int8_convolutions == built.record.int8_convolutions_meant
    batches = [picture(*size, seed) for seed, size in enumerate([(96, 96)] * 4 + [(64, 128), (256, 256)])]
    with closing(TensorRtEngine(tmp_path / "gmin.plan")) as engine, closing(OrtEngine(model, device="cpu")) as judge:
        assert engine.info.fallback is None
        for batch, result in zip(batches, infer_each(engine, iter(batches)), strict=True):
            expected = judge.infer(batch).clip(0, 1)
            assert psnr(expected, result.clip(0, 1), peak=1.0) > 45
        assert engine.last_times.compute_ms > 0


def test_trust_is_a_hash_and_nothing_else(fakes: Any, tmp_path: Path) -> None:
    assert not (tmp_path / "cache").exists()
    trust_plan("ab" * 32)
    assert [path.name for path in (tmp_path / "cache/gmin-edge/trusted-plans").iterdir()] == ["ab" * 32]
    assert onnx.load_from_string(tiny()).graph.name == "tiny"
