"""New scores in an earlier report: what changes, what stays, and what is said where no score is."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.readme import block, figure
from benchmarks.report_data import from_json
from benchmarks.rescored import IN_ONNX_RUNTIME, NOT_SCORED, rescore
from runtime.errors import UserError
from tests.conftest import ROOT, Script

FOLDER = "runtime/models"
SCORES = {
    f"ort:{FOLDER}/gmin_x4.onnx": 28.0,
    f"ort:{FOLDER}/gmin_x4_int8_cpu.onnx": 27.98,
    f"ort:{FOLDER}/gmin_x4_int8.onnx": 27.97,
    f"openvino:{FOLDER}/gmin_x4.onnx": 28.0,
    f"ort:{FOLDER}/gmin_x4_int8_openvino.onnx": 27.99,
}


def scores_of(folder: Path, scores: dict[str, float], sets: tuple[str, ...] = ("BSD100", "Set5")) -> list[Path]:
    files = []
    for name in sets:
        results = [{"engine": e, "set": name, "psnr_y_db": value, "ssim_y": 0.9} for e, value in scores.items()]
        where = {"date": "2031-02-03T04:05:06+00:00", "processor": "a made-up processor"}
        files.append(folder / f"{name}.json")
        files[-1].write_text(json.dumps({"schema": 1, "environment": where, "results": results}))
    return files


@pytest.fixture
def earlier(tmp_path: Path) -> Path:
    """The committed report as it would be had everything been measured at once."""
    content: dict[str, Any] = json.loads((ROOT / "docs/comparison.json").read_text())
    content |= {"scored": "", "timed_weights": "", "weights": "SHA-256 before"}
    path = tmp_path / "earlier.json"
    path.write_text(json.dumps(content))
    return path


def test_scores_change_and_times_stay(earlier: Path, tmp_path: Path) -> None:
    before = from_json(earlier)
    after = rescore(before, scores_of(tmp_path, SCORES), weights="SHA-256 after")
    assert [row.median_ms for row in after.rows] == [row.median_ms for row in before.rows]
    assert [row for row in after.rows if row.kind != "file"] == [row for row in before.rows if row.kind != "file"]
    assert (after.weights, after.timed_weights) == ("SHA-256 after", "SHA-256 before")
    rows = {(row.engine or "").replace(f"{FOLDER}/gmin_x4", ""): row for row in after.rows if row.kind == "file"}
    assert rows["ort:_int8_cpu.onnx"].drop_db["BSD100"] == pytest.approx(0.02)
    assert rows["ort:_int8_cpu.onnx"].remark == ""
    quantized = rows["openvino:_int8_openvino.onnx"]
    assert (quantized.drop_db["Set5"], quantized.remark) == (pytest.approx(0.01), IN_ONNX_RUNTIME)
    for unscored in (rows["openvino-bf16:_int8_openvino.onnx"], rows["openvino-bf16:.onnx"]):
        assert (unscored.measured, unscored.drop_db, unscored.remark) == ({}, {}, NOT_SCORED)
    assert after.verdict.file == "gmin_x4_int8_openvino.onnx"
    assert after.verdict.backend == quantized.backend, "what was not scored is not recommended"
    assert any("what it loses was not measured" in remark for remark in after.verdict.remarks)

    text = block(after)
    assert "weights: SHA-256 before." in text
    assert "of other weights: SHA-256 after, scored 2031-02-03 on a made-up processor" in text
    assert "Everything else comes from one command" in text
    assert f"OpenVINO 2026.4.1, CPU (bf16) ({NOT_SCORED}) | – | – |" in text
    assert "2031-02-03" in figure(after)
    twice = rescore(replace(after), scores_of(tmp_path, SCORES), weights="SHA-256 third")
    assert twice.timed_weights == "SHA-256 before"


def test_scores_of_its_own_engine_go_before(earlier: Path, tmp_path: Path) -> None:
    own = {f"openvino:{FOLDER}/gmin_x4_int8_openvino.onnx": 27.5}
    after = rescore(from_json(earlier), scores_of(tmp_path, SCORES | own), weights="new")
    (row,) = [r for r in after.rows if r.engine == f"openvino:{FOLDER}/gmin_x4_int8_openvino.onnx"]
    assert (row.remark, row.drop_db["BSD100"]) == ("", pytest.approx(0.5))


def test_mistakes(earlier: Path, tmp_path: Path) -> None:
    report = from_json(earlier)
    with pytest.raises(UserError, match="must be scored on BSD100, Set5"):
        rescore(report, scores_of(tmp_path, SCORES, sets=("BSD100",)), weights="new")
    with pytest.raises(UserError, match="Cannot read"):
        rescore(report, [tmp_path / "nowhere.json"], weights="new")
    with pytest.raises(UserError, match="is no JSON of benchmarks/accuracy"):
        rescore(report, [earlier], weights="new")


def test_the_command(script: Script, earlier: Path, tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text((ROOT / "README.md").read_text())
    given = [word for path in scores_of(tmp_path, SCORES) for word in ("--scores", path)]
    alone = script("benchmarks/report.py", *given, "--readme", readme)
    assert alone.returncode == 2
    assert "--from" in alone.stderr
    done = script(
        "benchmarks/report.py", "--from", earlier, *given, "--note", "Graphs were compared.", "--readme", readme,
        "--json", "-",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    before = json.loads(earlier.read_text())["warnings"]
    assert json.loads(done.stdout)["warnings"] == [*before, "Graphs were compared."], "those of the times stay"
    assert "Graphs were compared." in readme.read_text()
    assert len(from_json(tmp_path / "docs/comparison.json").profiles) == 2
