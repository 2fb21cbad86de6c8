"""ONNX Runtime's providers for NVIDIA: binding for real on the CPU; the rest against a FAKE of onnxruntime."""

from __future__ import annotations

import sys
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest

from runtime.engines.opening import model_file
from runtime.engines.ort import OrtEngine, _Binding
from runtime.errors import UserError
from tests.tiny_onnx import tiny

ALL = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = tmp_path / "tiny.onnx"
    path.write_bytes(tiny())
    return path


def fake_onnxruntime(asked: list[Any], *, starts: int, refusing: list[bool] | None = None) -> SimpleNamespace:
    """A FAKE: the last ``starts`` providers start. Its sessions run on the CPU, whatever they say."""
    refusing = [] if refusing is None else refusing

    class Session:
        def __init__(self, path: str, sess_options: Any, providers: list[Any], **kept: Any) -> None:
            del sess_options
            refusing.append(kept.get("enable_fallback") == 0)
            asked.extend(providers)
            self._real = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
            self._used = [name for name, _ in providers][-starts:]

        def get_providers(self) -> list[str]:
            return self._used

        def __getattr__(self, name: str) -> Any:
            return getattr(self._real, name)

    class Value:
        @staticmethod
        def ortvalue_from_numpy(array: np.ndarray, device: str, index: int) -> Any:
            assert (device, index) == ("cuda", 0)
            return onnxruntime.OrtValue.ortvalue_from_numpy(array, "cpu", 0)

    return SimpleNamespace(
        __version__="1.99",
        InferenceSession=Session,
        OrtValue=Value,
        SessionOptions=onnxruntime.SessionOptions,
        get_available_providers=lambda: ALL,
    )


def test_bound_memory_gives_the_same_and_owns_nothing(model: Path) -> None:
    """On the CPU, where binding works as it does on a GPU: changing sizes, repeated sizes, results that stay."""
    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    binding, kept = _Binding(session, onnxruntime.OrtValue, "cpu"), []
    for seed, side in enumerate((16, 16, 24, 24, 16)):
        batch = np.random.default_rng(seed).random((1, 3, side, 20), dtype=np.float32)
        (expected,) = session.run(None, {"input": batch})
        kept.append((binding.run(batch), expected))
    for result, expected in kept:
        np.testing.assert_array_equal(result, expected)


@pytest.mark.parametrize(
    ("device", "starts", "used"), [("tensorrt", 3, ALL[0]), ("cuda", 2, ALL[1]), ("auto", 2, ALL[1])]
)
def test_providers_by_device(
    device: str, starts: int, used: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    monkeypatch.setitem(sys.modules, "onnxruntime", fake_onnxruntime(asked, starts=starts))
    engine = OrtEngine(model, device=device)
    names = [name for name, _ in asked]
    assert engine.info.device == used == names[0]
    assert engine.info.fallback is None
    assert names == ALL[ALL.index(used) :]
    if device == "tensorrt":
        options = dict(asked)[ALL[0]]
        folder = Path(options["trt_engine_cache_path"])
        assert folder.is_relative_to(tmp_path / "cache")
        assert folder.stat().st_mode & 0o077 == 0
        assert (options["trt_int8_enable"], options["trt_engine_cache_enable"]) == ("False", "True")


def test_a_provider_that_does_not_start_is_said(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", fake_onnxruntime([], starts=1))
    with closing(OrtEngine(model, device="tensorrt")) as engine:
        assert engine.info.device == "CPUExecutionProvider"
        assert "TensorrtExecutionProvider did not start, CPUExecutionProvider runs" in str(engine.info.fallback)
        assert engine.infer(np.zeros((1, 3, 16, 16), np.float32)).shape == (1, 3, 32, 32)


def test_another_provider_that_does_not_start_is_refused(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only CUDA and TensorRT have a next one: who asks for CoreML by name must not get the CPU in its stead."""
    refusing: list[bool] = []
    fake = fake_onnxruntime([], starts=1, refusing=refusing)
    fake.get_available_providers = lambda: ["CoreMLExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setitem(sys.modules, "onnxruntime", fake)
    with pytest.raises(UserError, match="cannot start its coreml provider here and would use CPUExecutionProvider"):
        OrtEngine(model, device="coreml")
    assert refusing == [True]


def test_the_shipped_file_by_device() -> None:
    """What was quantized for processors must not go to a GPU: TensorRT refuses its biases."""
    names = {device: model_file("gmin_x4", "ort", device).name for device in ("auto", "cpu", "cuda", "tensorrt")}
    assert names == {
        "auto": "gmin_x4_int8_cpu.onnx",
        "cpu": "gmin_x4_int8_cpu.onnx",
        "cuda": "gmin_x4.onnx",
        "tensorrt": "gmin_x4_int8.onnx",
    }


def test_a_provider_that_is_not_there(model: Path) -> None:
    if "TensorrtExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this ONNX Runtime has it")
    with pytest.raises(UserError, match="ONNX Runtime here has no tensorrt provider; present: "):
        OrtEngine(model, device="tensorrt")


@pytest.mark.gpu
@pytest.mark.parametrize("device", ["cuda", "tensorrt"])
def test_real_providers_on_a_real_gpu(device: str, model: Path) -> None:
    try:
        engine = OrtEngine(model, device=device)
    except UserError as refusal:
        pytest.skip(str(refusal))
    with closing(engine), closing(OrtEngine(model, device="cpu")) as judge:
        if engine.info.fallback:
            pytest.skip(engine.info.fallback)
        for side in (32, 32, 48):
            batch = np.random.default_rng(side).random((1, 3, side, 40), dtype=np.float32)
            np.testing.assert_allclose(engine.infer(batch), judge.infer(batch), atol=2e-2)
