"""Ours against others: one small run of the script, what happens to a quantizer that fails, and the verdict."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path

import pytest

from benchmarks.protocol import Size
from benchmarks.quantizers import Candidate, Row, markdown, measure_all, verdict
from benchmarks.rivals import RECIPES, Job, Made, make
from data.sets import image_set
from runtime.engines import openvino_check
from tests.conftest import ROOT, Script

MODEL = ROOT / "runtime/models/gmin_x4.onnx"
NNCF = importlib.util.find_spec("nncf") is not None
OPENVINO = importlib.util.find_spec("openvino") is not None


def row(recipe: str, ratio: float | None, drop: float, engine: str = "OpenVINO 9.9, CPU (f32)") -> Row:
    return Row(
        recipe=recipe, quantizer=recipe.upper(), setting="the FP32 file" if recipe == "fp32" else "made up",
        version=None, engine="openvino", backend=engine, drop_db={"Set5": drop}, ratio=ratio, median_ms=100.0,
        p90_ms=110.0,
    )  # fmt: skip


BASE = row("fp32", 1.0, 0.0, "ONNX Runtime 9.9, CPU")
BF16 = row("fp32", 0.45, 0.002, "OpenVINO 9.9, CPU (bf16)")


def test_nobody_should_quantize_where_bf16_is_faster() -> None:
    text = verdict([BASE, BF16, row("ours-cpu", 0.5, 0.01), row("lossy", 0.1, 0.2)], "Set5", 0.03)
    assert text == (
        "Nobody should quantize here: within 0.03 dB no INT8 file beats the FP32 file in OpenVINO 9.9, CPU (bf16), "
        "2.22 times as fast as FP32 in ONNX Runtime for 0.0020 dB on Set5."
    )


def test_the_gain_is_told_against_the_best_without_quantization() -> None:
    text = verdict([BASE, BF16, row("ours-openvino", 0.3, 0.0101), row("failed", None, 0.0)], "Set5", 0.03)
    assert text.startswith("Fastest within 0.03 dB: OURS-OPENVINO (made up)")
    assert "3.33 times as fast as FP32 in ONNX Runtime for 0.0101 dB" in text
    assert "1.50 times as fast as the best without any quantization" in text


@pytest.fixture
def job(patch_folder: Path, tmp_path: Path) -> Job:
    return Job(
        recipe="ours-openvino", source=str(MODEL), target=str(tmp_path / "made.onnx"), calib=str(patch_folder),
        array="", patches=2, scale=4, max_drop=0.1,
    )  # fmt: skip


def test_a_quantizer_that_is_not_installed_says_so(job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "nncf.py").write_text("raise ImportError('blocked by the test')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    made = make(RECIPES["nncf"], Job(**{**vars(job), "recipe": "nncf"}), limit_s=60, limit_mb=4000)
    assert made.error == "nncf is not installed (blocked by the test)"
    assert made.seconds is None


@pytest.mark.parametrize(
    ("limit_s", "limit_mb", "options", "message"),
    [
        (60.0, 1.0, (), "stopped when it held more than 0.001 GB"),
        (0.0, 4000.0, (), "stopped after 0 minutes"),
        (60.0, 4000.0, ("--no-such-option",), "No such option"),
    ],
)
def test_a_quantizer_that_goes_wrong_is_told_and_not_waited_for(
    job: Job, limit_s: float, limit_mb: float, options: tuple[str, ...], message: str
) -> None:
    made = make(RECIPES["ours-openvino"], Job(**{**vars(job), "options": options}), limit_s=limit_s, limit_mb=limit_mb)
    assert message in (made.error or "")
    assert not Path(job.target).exists()


@pytest.mark.skipif(not OPENVINO, reason="needs OpenVINO, which refuses the file")
def test_a_refusal_is_a_row(patch_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # a fake processor: which ones compute signed activations wrongly is not for this test to know
    monkeypatch.setattr(openvino_check, "computes_rightly", lambda *, signed: not signed)
    candidates = [
        Candidate("fp32", None, MODEL, Made()),
        Candidate("ours-tensorrt", RECIPES["ours-tensorrt"], MODEL.with_name("gmin_x4_int8.onnx"), Made("9", 1.0, 2.0)),
    ]
    rows = measure_all(candidates, [image_set(str(patch_folder), 4)], Size(24, 16), threads=1, rounds=1)
    found = {(row.recipe, row.engine): row for row in rows}
    assert found["ours-tensorrt", "ort"].ratio is not None
    refused = found["ours-tensorrt", "openvino"]
    assert refused.note.startswith("refused: ")
    assert (refused.ratio, refused.drop_db) == (None, {})


@pytest.mark.skipif(not OPENVINO, reason="scores files in OpenVINO")
def test_script(script: Script, patch_folder: Path, tmp_path: Path) -> None:
    if not openvino_check.computes_rightly(signed=False):
        pytest.skip("OpenVINO refuses INT8 files on this processor")
    rivals = ["ort", "modelopt", *(["nncf"] if NNCF else [])]
    one_picture = tmp_path / "set"
    one_picture.mkdir()
    shutil.copy(patch_folder / "0.png", one_picture)
    done = script(
        "benchmarks/quantizers.py", "-o", tmp_path / "out", "--set", one_picture, "--calib", patch_folder,
        "--engine", "openvino", "--patches", 2, "--rounds", 1, "--size", "32x24", "--threads", 1,
        "--only", "ours-openvino", *(word for name in rivals for word in ("--only", name)), "--ours=--method minmax",
        "--file", MODEL.with_name("gmin_x4_int8_openvino.onnx"), "--json", tmp_path / "a.json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    content = json.loads((tmp_path / "out/quantizers.json").read_text())
    assert content == json.loads((tmp_path / "a.json").read_text())
    rows = {(r["recipe"], r["engine"]): r for r in content["results"]}
    name = "set"
    assert rows["fp32", "ort"]["drop_db"] == {name: 0}
    assert rows["fp32", "ort"]["ratio"] == 1
    ours = rows["ours-openvino --method minmax", "openvino"]
    assert ours["setting"] == "--target openvino --method minmax"
    assert abs(ours["drop_db"][name]) < 0.5
    assert ours["calibration_s"] > 0
    assert 50 < ours["calibration_peak_mb"] < 4000
    assert ours["size_bytes"] == (tmp_path / "out/ours-openvino_--method_minmax.onnx").stat().st_size
    if openvino_check.computes_rightly(signed=True):
        assert rows["ort", "openvino"]["median_ms"] > 0
    else:  # activations of ONNX Runtime's defaults are signed
        assert rows["ort", "openvino"]["note"].startswith("refused: ")
    given = rows["gmin_x4_int8_openvino", "openvino"]
    assert given["quantizer"] == "gmin_x4_int8_openvino.onnx"
    assert given["setting"] == "800 steps of training, mse, DIV2K"
    assert given["median_ms"] > 0
    assert rows["modelopt", None]["note"].startswith("not run: it pins onnx")
    if NNCF:
        assert ("nncf", "ort") not in rows
        assert rows["nncf", "openvino"]["ratio"] > 0
        assert rows["nncf", "openvino"]["version"]
    text = (tmp_path / "out/quantizers.md").read_text()
    assert text == markdown(content)
    assert text in done.stdout
    for part in text.split("\n\n"):
        if part.startswith("|"):
            assert len({line.count("|") for line in part.splitlines()}) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--engine", "nobody"], "No engine is called nobody here"),
        (["--only", "nobody"], "No quantizer is called nobody; known: ort,"),
        (["--modelopt", "/nowhere/python"], "There is no Python at /nowhere/python"),
        (["README.md"], "README.md"),
        (["--file", "nowhere.onnx"], "nowhere.onnx"),
        (["--set", "nowhere"], "neither a folder nor one of"),
        (["--calib", "nowhere"], "neither DIV2K nor a folder"),
    ],
)
def test_mistakes_end_with_one_sentence(script: Script, tmp_path: Path, arguments: list[str], message: str) -> None:
    done = script("benchmarks/quantizers.py", "-o", tmp_path / "out", "--set", ROOT / "data", *arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()
