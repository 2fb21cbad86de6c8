"""The known answer against what really happens to pictures, on this processor and on older ones.

``ONEDNN_MAX_CPU_ISA`` makes OpenVINO use the kernels of an older processor, so the faults themselves are shown here,
not a model of them.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import comparison
from benchmarks.latency import default_engines
from runtime.engines.opening import open_engine
from runtime.environment import environment
from tests.conftest import Script

pytest.importorskip("openvino")
pytestmark = pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="the faults are those of x86")
ROOT = Path(__file__).resolve().parents[2]
MODELS = ROOT / "runtime/models"
FILES = {"float": "gmin_x4", "signed": "gmin_x4_int8", "unsigned": "gmin_x4_int8_openvino"}
HERE, VNNI, OLD = "DEFAULT", "AVX512_CORE_VNNI", "AVX2"

_MEASURE = """
import json, sys
import cv2, numpy as np, onnxruntime, openvino
from runtime.engines.openvino_check import computes_rightly
photo = cv2.imread("data/chelsea.png")[60:140, 100:200, ::-1]
x = np.ascontiguousarray(photo.transpose(2, 0, 1)[None], np.float32) / 255
found = {"signed_right": computes_rightly(signed=True), "unsigned_right": computes_rightly(signed=False)}
options = onnxruntime.SessionOptions()
options.log_severity_level = 4
for key, path in zip(sys.argv[1::2], sys.argv[2::2]):
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    expected = session.run(None, {session.get_inputs()[0].name: x})[0]
    result = openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})(x)[0]
    found[key] = float(-10 * np.log10(np.mean((result - expected) ** 2) + 1e-12))
print(json.dumps(found))
"""


def _needs(isa: str) -> None:
    features = environment(1).features
    if isa == VNNI and "avx512_vnni" not in features:
        pytest.skip("this processor has no AVX-512 VNNI")
    if isa == HERE and not {"avx512_vnni", "avx_vnni"} & set(features):
        pytest.skip("this processor has no VNNI, so OpenVINO refuses every INT8 file")


@pytest.mark.parametrize("isa", [HERE, VNNI, OLD])
def test_the_known_answer_says_what_happens_to_pictures(isa: str) -> None:
    _needs(isa)
    files = [text for key, name in FILES.items() for text in (key, str(MODELS / f"{name}.onnx"))]
    done = subprocess.run(
        [sys.executable, "-c", _MEASURE, *files],
        env=os.environ | {"ONEDNN_MAX_CPU_ISA": isa, "PYTHONPATH": str(ROOT)},
        cwd=ROOT, capture_output=True, text=True, check=True, timeout=120,
    )  # fmt: skip
    found = json.loads(done.stdout)
    assert found["float"] > 80
    assert (found["unsigned"] > 50) == found["unsigned_right"]
    assert (found["signed"] > 50) == found["signed_right"]
    if isa == OLD:
        assert not found["unsigned_right"]


def test_without_vnni_quantized_files_are_refused_and_the_name_of_a_model_means_its_fp32_file(
    script: Script, tmp_path: Path
) -> None:
    target = tmp_path / "large.png"
    photo = ROOT / "data/chelsea.png"
    file = MODELS / "gmin_x4_int8_openvino.onnx"
    refused = script("runtime/infer.py", photo, "--engine", f"openvino:{file}", "-o", target, ONEDNN_MAX_CPU_ISA=OLD)
    assert refused.returncode == 2
    assert "no VNNI" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert not target.exists()
    for engine in ("gmin_x4", "openvino:gmin_x4"):
        done = script("runtime/infer.py", photo, "--engine", engine, "-o", target, "--json", "-",
                      ONEDNN_MAX_CPU_ISA=OLD)  # fmt: skip
        assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)["engine"]
    assert found["backend"].startswith("OpenVINO")
    assert found["precision"] == "fp32"
    assert found["fallback"].startswith("gmin_x4.onnx, because OpenVINO's 8-bit sums")
    assert found["fallback"].endswith("no VNNI")  # and no advice: there is nothing left to do


def test_bf16_is_refused_where_the_environment_withholds_avx512(script: Script, tmp_path: Path) -> None:
    """OpenVINO 2026.4.1 dies of a segmentation fault there; a processor that has no AVX-512 does not."""
    done = script("runtime/infer.py", ROOT / "data/chelsea.png", "--engine", "openvino-bf16:gmin_x4", "-o",
                  tmp_path / "a.png", ONEDNN_MAX_CPU_ISA=OLD)  # fmt: skip
    withheld = "avx512f" in environment(1).features
    assert done.returncode == (2 if withheld else 0), done.stderr
    assert ("ONEDNN_MAX_CPU_ISA=AVX2 withholds AVX-512" in done.stderr) == withheld
    assert (tmp_path / "a.png").exists() != withheld


def test_without_vnni_the_comparisons_leave_quantized_files_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runtime.engines.openvino_check.computes_rightly", lambda *, signed: False)  # a fake processor
    monkeypatch.setattr(comparison, "has_weights", lambda _name: True)
    chosen = open_engine(f"openvino:{MODELS / 'gmin_x4.onnx'}")
    monkeypatch.setattr("runtime.selection.open_fastest", lambda _: (chosen, "it was the fastest"))
    comparison.refusals.cache_clear()
    try:
        specs = [entry.spec or "" for entry in comparison.entries(replace(comparison.QUICK, int8=("lkdn_x4",)))]
        engines, reason = default_engines()
    finally:
        comparison.refusals.cache_clear()
    assert not [spec for spec in specs if spec.endswith(("_int8_openvino.onnx", "_int8_openvino"))]
    assert [spec for spec in specs if spec.endswith("gmin_x4_int8_cpu.onnx")]
    assert "GMIN INT8" not in [label for _, label in engines]
    assert "no VNNI" in reason


def test_without_amx_signed_files_are_refused_and_others_run(script: Script, tmp_path: Path) -> None:
    _needs(VNNI)
    photo = ROOT / "data/chelsea.png"
    signed = script("runtime/infer.py", photo, "--engine", f"openvino:{MODELS / 'gmin_x4_int8.onnx'}",
                    "-o", tmp_path / "a.png", ONEDNN_MAX_CPU_ISA=VNNI)  # fmt: skip
    assert signed.returncode == 2
    assert "quantized with signed activations" in signed.stderr
    unsigned = script("runtime/infer.py", photo, "--engine", f"openvino:{MODELS / 'gmin_x4_int8_openvino.onnx'}",
                      "-o", tmp_path / "b.png", ONEDNN_MAX_CPU_ISA=VNNI)  # fmt: skip
    assert unsigned.returncode == 0
