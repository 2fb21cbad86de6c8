"""The machine's best case: a real network, counted right, 8 bits where they are said to be."""

import json

import numpy as np
import onnx
import pytest

from benchmarks.onnx_cost import onnx_cost
from benchmarks.peak import best_case
from benchmarks.protocol import Size
from runtime.engines.opening import MODELS
from tests.conftest import Script

onnxruntime = pytest.importorskip("onnxruntime")


def test_the_best_case_is_counted_and_quantized(tmp_path) -> None:
    outputs = []
    for form in ("float", "int8"):
        path = tmp_path / f"{form}.onnx"
        model = best_case(form)
        path.write_bytes(model.SerializeToString())
        assert onnx_cost(path, Size(8, 8)).macs == 64 * (3 * 256 + 8 * 256 * 256 + 256 * 12)
        session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
        outputs.append(session.run(None, {"input": np.full((1, 3, 8, 8), 0.5, np.float32)})[0])
    assert outputs[0].std() > 0
    assert np.abs(outputs[0] - outputs[1]).mean() < 0.1 * np.abs(outputs[0]).mean(), "int8 computes the same network"
    weights = {tensor.name: tensor.data_type for tensor in best_case("int8").graph.initializer if len(tensor.dims) == 4}
    assert sorted(weights.values()) == [onnx.TensorProto.FLOAT] * 2 + [onnx.TensorProto.INT8] * 8


def test_script(script: Script) -> None:
    done = script(
        "benchmarks/peak.py", f"ort:{MODELS / 'gmin_x4.onnx'}", "--size", "32x24", "--rounds", 1, "--threads", 1,
        "--json", "-",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    content = json.loads(done.stdout)
    peaks = {(peak["backend"], peak["form"]): peak["gmacs_per_s"] for peak in content["peaks"]}
    assert {("ort", "float"), ("ort", "int8")} <= set(peaks)
    (result,) = content["results"]
    assert result["gmacs_per_s"] == pytest.approx(result["gmacs"] / result["median_ms"] * 1e3)
    assert result["of_float_peak"] == pytest.approx(result["gmacs_per_s"] / peaks["ort", "float"])
    assert "best case" in done.stderr


def test_mistakes_end_with_one_sentence(script: Script) -> None:
    done = script("benchmarks/peak.py", "ort:nowhere.onnx", "--rounds", 1)
    assert done.returncode == 2
    assert "nowhere.onnx" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
