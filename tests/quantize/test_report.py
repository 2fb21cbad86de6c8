"""The page about one quantized file."""

import dataclasses
import json
import re
from pathlib import Path

from onnx import ModelProto

from quantize.patches import Patches
from quantize.plan import make_plan
from quantize.ptq import Quantized
from quantize.report import histogram, render, tensor_reports, trade_off, verdict
from quantize.search import Candidate, SearchResult
from quantize.timing import EngineTime
from tests.conftest import Script


def result(drop: float, times: dict[tuple[str, str], float], *, allowed: float | None = 0.1) -> Quantized:
    return Quantized(
        "out/a.onnx", "b.onnx", "cpu", "mse", "DIV2K", 8, 2, 5, 1, ["a"], 10, 20, 50.0, 28.0, 28.0 - drop, drop,
        max_drop_db=allowed, within=allowed is None or drop <= allowed,
        times=tuple(EngineTime(*key, 10.0 * ratio, ratio) for key, ratio in times.items()),
    )  # fmt: skip


def test_verdicts() -> None:
    fp32, bf16 = {("FP32", "ort"): 1.0}, {("FP32", "openvino-bf16"): 0.5}
    assert verdict(result(0.01, {**fp32, ("INT8", "ort"): 0.5})) == (
        "Ship a.onnx with ort: \N{MINUS SIGN}0.010 dB, 2.00 times as fast as FP32 in ort, and 2.00 times as fast as "
        "the best without quantization (FP32 in ort)."
    )
    assert verdict(result(0.01, {**fp32, **bf16, ("INT8", "ort"): 0.8})) == (
        "Nobody should quantize for this machine: b.onnx in openvino-bf16 is 2.00 times as fast as in ort; a.onnx "
        "reaches 1.25 in ort (\N{MINUS SIGN}0.010 dB)."
    )
    assert "1.25 times as fast as the best" in verdict(result(0.01, {**fp32, **bf16, ("INT8", "openvino"): 0.4}))
    assert verdict(result(0.2, fp32)).startswith("Do not ship a.onnx: it loses 0.200 dB")
    assert "not measured" in verdict(result(0.01, {}))
    assert "no engine here takes it" in verdict(result(0.01, fp32))


def test_tensors_and_drawings(tiny: ModelProto, few: Patches) -> None:
    plan = make_plan(tiny, few, target="cpu", method="percentile")
    tensors = {tensor.name: tensor for tensor in tensor_reports(plan, ())}
    assert set(tensors) <= set(plan.statistics)
    for name, tensor in tensors.items():
        assert tensor.low <= 0 <= tensor.high
        assert 0 <= tensor.clipped_share < 0.01
        assert 15 < tensor.sqnr_db < 70
        assert "nan" not in histogram(tensor, plan.statistics[name])
    assert any(tensor.clipped_share > 0 for tensor in tensors.values()), "percentiles clip"
    gone = {t.name for t in tensor_reports(plan, plan.units)}
    assert gone == set()


def test_layers_that_the_user_keeps_float_are_not_called_8_bit(tiny: ModelProto, few: Patches) -> None:
    plan = make_plan(tiny, few, target="tensorrt")
    kept = dataclasses.replace(result(0.01, {}), float_layers=("depthwise",))
    assert "<td>t1</td>" in render(result(0.01, {}), plan)
    assert "<td>t1</td>" not in render(kept, plan)


def test_the_plot_marks_the_choice() -> None:
    candidates = (Candidate((), 40, 0.5, 5.0, 0.5), Candidate(("a",), 50, 0.1, 7.0, 0.7))
    drawn = trade_off(SearchResult((), candidates, 1, True, 3, pareto=(0, 1)))
    assert len(re.findall("<circle", drawn)) == 2
    assert '<circle class="chosen"' in drawn
    assert "1 float layers, 0.100 dB, 0.70 of FP32" in drawn


def test_command(script: Script, fp32_onnx: Path, patch_folder: Path, tmp_path: Path) -> None:
    done = script(
        "quantize/ptq.py", fp32_onnx, "-o", tmp_path / "a.onnx", "--calib", patch_folder, "--target", "openvino",
        "--time", "--report", tmp_path / "a.html", "--json", "-",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "a.html").read_text()
    report = json.loads(done.stdout)
    assert f"{report['psnr_against_fp32_db']:.2f}" in page
    first, *others = report["times"]
    assert (first["file"], first["engine"], first["ratio"]) == ("FP32", "ort", 1.0)
    assert all(time["median_ms"] > 0 for time in others)
    assert any(time["file"] == "INT8" for time in others)
    assert "Which file, in which engine" in page
    assert "http://" not in page
    assert "https://" not in page
    missing = script("quantize/ptq.py", fp32_onnx, "-o", tmp_path / "b.onnx", "--report", tmp_path / "no/a.html")
    assert missing.returncode == 2
