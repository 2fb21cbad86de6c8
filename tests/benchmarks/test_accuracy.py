"""The scores of the protocol, through the command."""

import csv
import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from tests.conftest import ROOT, Script
from tests.tiny_onnx import tiny

MODELS = ROOT / "runtime/models"


def scores(script: Script, *arguments: object) -> dict[str, dict[str, float]]:
    done = script("benchmarks/accuracy.py", *arguments, "--json", "-")
    assert done.returncode == 0, done.stderr
    return {result["engine"]: result for result in json.loads(done.stdout)["results"]}


def test_bicubic_on_bsd100_is_the_published_figure(script: Script, gmin_data: Path) -> None:
    result = scores(script, "bicubic", "--set", "BSD100")["bicubic"]
    assert result["images"] == 100
    assert result["psnr_y_db"] == pytest.approx(25.96, abs=0.01)


def test_onnx_equals_pytorch_on_set14(script: Script, gmin_data: Path) -> None:
    file = f"ort:{MODELS / 'gmin_x4.onnx'}"
    result = scores(script, "gmin_x4", file, f"ort:{MODELS / 'gmin_x4_int8.onnx'}", "--set", "Set14")
    assert result[file]["psnr_y_db"] == pytest.approx(result["gmin_x4"]["psnr_y_db"], abs=0.001)
    assert result[f"ort:{MODELS / 'gmin_x4_int8.onnx'}"]["psnr_y_db"] > result["gmin_x4"]["psnr_y_db"] - 0.05


def test_a_folder_without_any_data(script: Script, patch_folder: Path, tmp_path: Path) -> None:
    result = scores(
        script, "bicubic", f"ort:{MODELS / 'gmin_x4.onnx'}", "--set", patch_folder, "--csv", tmp_path / "a.csv"
    )
    assert result[f"ort:{MODELS / 'gmin_x4.onnx'}"]["psnr_y_db"] > result["bicubic"]["psnr_y_db"] + 0.3
    rows = list(csv.DictReader((tmp_path / "a.csv").open()))
    assert len(rows) == 12
    mean = sum(float(row["psnr_y_db"]) for row in rows if row["engine"] == "bicubic") / 6
    assert mean == pytest.approx(result["bicubic"]["psnr_y_db"], abs=1e-5)


@pytest.mark.parametrize("scale", [2, 3])
def test_the_smaller_scales(script: Script, patch_folder: Path, scale: int) -> None:
    result = scores(script, "bicubic", f"gmin_x{scale}", "--set", patch_folder, "--scale", scale)
    assert result[f"gmin_x{scale}"]["psnr_y_db"] > result["bicubic"]["psnr_y_db"] + 1.2


def test_pictures_that_are_too_small_are_named(script: Script, tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((16, 40, 3), np.uint8))
    (tmp_path / "tiny.onnx").write_bytes(tiny())
    for engine, scale, needed in (("bicubic", 4, 19), (f"ort:{tmp_path / 'tiny.onnx'}", 2, 32)):
        done = script("benchmarks/accuracy.py", engine, "--set", tmp_path, "--scale", scale)
        assert done.returncode == 2
        assert "40x16 pixels" in done.stderr
        assert f"it needs {needed} a side" in done.stderr


def test_infinity_is_null_in_json(script: Script, tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), np.full((64, 64, 3), 90, np.uint8))
    assert scores(script, "bicubic", "--set", tmp_path)["bicubic"]["psnr_y_db"] is None


def test_the_table_says_the_protocol(script: Script, patch_folder: Path) -> None:
    done = script("benchmarks/accuracy.py", "bicubic", "--set", patch_folder, "--scale", 2)
    assert done.returncode == 0, done.stderr
    assert "protocol: LR by MATLAB-exact bicubic" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["bicubic", "--set", "Set15"], "neither a folder nor one of"),
        ([MODELS / "gmin_x4.onnx", "--scale", "3", "--set", ROOT / "data"], "upscales by 4, not by 3"),
        (["gmin_l_x2", "--scale", "2", "--set", ROOT / "data"], "No weights of gmin_l_x2"),
    ],
)
def test_mistakes(script: Script, arguments: list[object], message: str) -> None:
    done = script("benchmarks/accuracy.py", *arguments)
    assert done.returncode == 2
    assert message in done.stderr
