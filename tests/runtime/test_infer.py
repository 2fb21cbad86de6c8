"""The main command on real files: what it writes, what it says, what it refuses."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from PIL import Image

from data.metrics import psnr
from runtime.engines.opening import open_engine
from runtime.errors import UserError
from runtime.images import read_picture
from tests.conftest import ROOT, Script
from tests.tiny_onnx import tiny

MODELS = ROOT / "runtime/models"
PHOTO = ROOT / "data/chelsea.png"


@pytest.fixture
def small(tmp_path: Path) -> Path:
    path = tmp_path / "small.png"
    Image.open(PHOTO).convert("RGB").crop((100, 40, 196, 104)).save(path)
    return path


def test_upscales_with_the_shipped_file_and_says_how(script: Script, small: Path) -> None:
    done = script("runtime/infer.py", small, "--json", "-")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    (result,) = report["results"]
    assert result["output"] == str(small.with_name("small_x4.png"))
    assert Image.open(result["output"]).size == (384, 256)
    assert (result["tiles"], result["exact"]) == (1, True)
    assert set(result["seconds"]) == {"load", "preprocess", "means", "inference", "postprocess"}
    engine = report["engine"]
    assert engine["precision"].startswith("int8") or "no VNNI" in engine["fallback"]
    assert report["chosen"]
    assert "engine" in done.stderr, "what is for people must not be mixed into the JSON"


@pytest.mark.parametrize(
    "engine",
    [
        f"ort:{MODELS / 'gmin_x4.onnx'}",
        f"openvino:{MODELS / 'gmin_x4.onnx'}",
        f"ort:{MODELS / 'gmin_x4_int8.onnx'}",
        "ort:gmin_x4",
        "openvino:gmin_x4",
        "openvino-bf16:gmin_x4",
    ],
)
def test_every_engine_gives_the_same_picture_within_its_precision(script: Script, small: Path, engine: str) -> None:
    reference, output = small.with_name("reference.png"), small.with_name("out.png")
    assert script("runtime/infer.py", small, "--engine", MODELS / "gmin_x4.onnx", "-o", reference).returncode == 0
    done = script("runtime/infer.py", small, "--engine", engine, "-o", output)
    assert done.returncode == 0, done.stderr
    pixels = [np.asarray(Image.open(path)) for path in (reference, output)]
    assert psnr(*pixels) > (60 if engine.endswith("gmin_x4.onnx") else 44)


def test_the_fastest_engine_is_measured_once_and_remembered(script: Script, small: Path) -> None:
    first = script("runtime/infer.py", small, "--quiet", "--json", "-")
    second = script("runtime/infer.py", small, "--quiet", "--json", "-")
    assert "fastest just now" in json.loads(first.stdout)["chosen"]
    assert "when measured on this machine" in json.loads(second.stdout)["chosen"]
    assert first.stderr == ""


def test_tiles_on_the_real_network(script: Script, tmp_path: Path) -> None:
    """Seams of the shipped network by tiles, against the untiled picture: small, and not called exact."""
    results = []
    for tile in (0, 96):
        target = tmp_path / f"{tile}.png"
        done = script("runtime/infer.py", PHOTO, "--engine", MODELS / "gmin_x4.onnx", "--tile", tile, "-o", target,
                      "--json", "-")  # fmt: skip
        results.append((json.loads(done.stdout)["results"][0], np.asarray(Image.open(target)).astype(int)))
    (whole, a), (tiled, b) = results
    assert whole["exact"]
    assert not tiled["exact"]
    assert tiled["tiles"] > 20
    assert psnr(a, b) > 45
    assert np.abs(a - b).max() <= 40


def test_several_pictures_and_one_bad_one(script: Script, small: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.png"
    bad.write_text("no picture")
    folder = tmp_path / "results"
    done = script("runtime/infer.py", small, bad, PHOTO, "-o", folder, "--json", "-", "--engine", "ort:gmin_x4")
    assert done.returncode == 3
    assert "bad.png is not a PNG" in done.stderr
    assert sorted(path.name for path in folder.iterdir()) == ["chelsea_x4.png", "small_x4.png"]
    assert [("error" in result) for result in json.loads(done.stdout)["results"]] == [False, True, False]


def foreign_network(path: Path, scale_kind: str) -> None:
    nodes = {
        "classifier": [helper.make_node("GlobalAveragePool", ["x"], ["y"])],
        "two outputs": [helper.make_node("Relu", ["x"], ["y"]), helper.make_node("Relu", ["x"], ["z"])],
    }[scale_kind]
    outputs = [helper.make_tensor_value_info(n.output[0], TensorProto.FLOAT, None) for n in nodes]
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, "H", "W"])], outputs
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9), path)


def test_bad_input_ends_with_one_sentence_and_nothing_written(script: Script, small: Path, tmp_path: Path) -> None:
    files = {
        "empty.png": b"",
        "truncated.png": small.read_bytes()[:4000],
        "text.png": b"just text",
        "empty.onnx": b"",
        "text.onnx": b"just text",
        "truncated.onnx": (MODELS / "gmin_x4.onnx").read_bytes()[:50_000],
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    foreign_network(tmp_path / "classifier.onnx", "classifier")
    foreign_network(tmp_path / "two.onnx", "two outputs")
    (tmp_path / "folder.png").mkdir()
    target = tmp_path / "out.png"
    cases: list[tuple[list[object], str]] = [
        ([tmp_path / "nothing.png"], "There is no picture at"),
        ([tmp_path / "folder.png"], "There is no picture at"),
        ([tmp_path / "empty.png"], "is empty"),
        ([tmp_path / "truncated.png"], "cannot be decoded"),
        ([tmp_path / "text.png"], "is not a PNG, JPEG"),
        ([small, "--engine", tmp_path / "nothing.onnx"], "There is no model at"),
        ([small, "--engine", "nothing"], "none of that name is shipped"),
        ([small, "--engine", tmp_path / "empty.onnx"], "is empty"),
        ([small, "--engine", f"ort:{tmp_path / 'text.onnx'}"], "damaged, or no ONNX file"),
        ([small, "--engine", f"openvino:{tmp_path / 'text.onnx'}"], "damaged, or no ONNX file"),
        ([small, "--engine", f"ort:{tmp_path / 'truncated.onnx'}"], "damaged, or no ONNX file"),
        ([small, "--engine", f"ort:{tmp_path / 'classifier.onnx'}"], "no super-resolution network"),
        ([small, "--engine", f"openvino:{tmp_path / 'classifier.onnx'}"], "no super-resolution network"),
        ([small, "--engine", f"ort:{tmp_path / 'two.onnx'}"], "no super-resolution network"),
        ([small, "--engine", "magic:gmin_x4"], "No back end is called 'magic'"),
        ([small, "--engine", tmp_path / "a.weights"], "No engine reads"),
        ([small, "--tile", 16, "--overlap", 16], "must be larger than --overlap"),
        ([small, "--device", "cuda", "--engine", "ort:gmin_x4"], "no cuda provider"),
    ]
    for arguments, message in cases:
        done = script("runtime/infer.py", *arguments, "-o", target)
        assert done.returncode == 2, (arguments, done.stderr)
        assert message in done.stderr, (arguments, done.stderr)
        assert "Traceback" not in done.stderr
        assert not target.exists()
    assert not list(tmp_path.glob(".*")), "no temporary file may be left"


@pytest.mark.parametrize("engine", ["", "ort:", "openvino:"])
def test_a_file_of_one_size_gets_tiles_of_that_size(script: Script, small: Path, tmp_path: Path, engine: str) -> None:
    file = tmp_path / "fixed.onnx"
    file.write_bytes(tiny(size=(24, 40)))
    for source in (small, ROOT / "data/chelsea.png"):
        target = tmp_path / "a.png"
        done = script("runtime/infer.py", source, "--engine", f"{engine}{file}", "-o", target)
        assert done.returncode == 0, done.stderr
        assert read_picture(target).colour.shape[1] == 2 * read_picture(source).colour.shape[1]


def test_other_tiles_for_a_file_of_one_size_are_refused(script: Script, tmp_path: Path) -> None:
    file = tmp_path / "fixed.onnx"
    file.write_bytes(tiny(size=(24, 40)))
    streamed = ["--stream", "--tile", 48, "--overlap", 8, "-o", tmp_path / "a.tif"]
    for arguments in (["--tile", 0], ["--tile", 48, "--overlap", 8], streamed):
        done = script("runtime/infer.py", PHOTO, "--engine", f"ort:{file}", *arguments)
        assert done.returncode == 2
        assert "takes pictures from 40x24 to 40x24 pixels" in done.stderr
        assert "use --tile 24, or export it for any size" in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1
    exact = script("runtime/infer.py", PHOTO, "--engine", f"ort:{file}", "--tile", 24, "--tiling", "exact")
    assert exact.returncode == 2
    file.write_bytes(tiny(size=(8, 8)))
    done = script("runtime/infer.py", PHOTO, "--engine", f"ort:{file}", "-o", tmp_path / "a.png", "--overlap", 0)
    assert done.returncode == 0, done.stderr


def test_a_folder_called_like_a_shipped_model_is_none(script: Script, small: Path, tmp_path: Path) -> None:
    (tmp_path / "gmin_x4").mkdir()
    done = subprocess.run(
        [sys.executable, str(ROOT / "runtime/infer.py"), small.name, "-o", "a.png"], cwd=tmp_path, check=False,
        capture_output=True, text=True, timeout=120, env={**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_a_file_for_several_pictures_at_once_is_refused(tmp_path: Path) -> None:
    model = onnx.load_model_from_string(tiny())
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 4
    onnx.save(model, tmp_path / "four.onnx")
    for backend in ("ort", "openvino"):
        with pytest.raises(UserError, match="takes 4 pictures at once"):
            open_engine(f"{backend}:{tmp_path / 'four.onnx'}")


def test_bad_outputs(script: Script, small: Path, tmp_path: Path) -> None:
    cases: list[tuple[object, str]] = [
        (tmp_path / "nowhere" / "a.png", "does not exist"),
        (tmp_path / "a.gif", "must end in"),
        (small, "would be overwritten"),
    ]
    before = small.read_bytes()
    for target, message in cases:
        done = script("runtime/infer.py", small, "-o", target)
        assert done.returncode == 2
        assert message in done.stderr
    assert small.read_bytes() == before
    script_without_engines = tmp_path / "blocked"
    script_without_engines.mkdir()
    for name in ("onnxruntime", "openvino"):
        (script_without_engines / name).mkdir()
        (script_without_engines / name / "__init__.py").write_text("raise ImportError('blocked by the test')")
    done = script("runtime/infer.py", small, "--engine", "ort:gmin_x4", PYTHONPATH=str(script_without_engines))
    assert done.returncode == 2
    assert "ONNX Runtime is not installed" in done.stderr


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_picture_in_a_folder_without_permission(script: Script, small: Path, tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir()
    (closed / "a.png").write_bytes(small.read_bytes())
    closed.chmod(0)
    try:
        done = script("runtime/infer.py", closed / "a.png")
    finally:
        closed.chmod(0o755)
    assert done.returncode == 2
    assert "permission denied" in done.stderr


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission(script: Script, small: Path, tmp_path: Path) -> None:
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)
    done = script("runtime/infer.py", small, "-o", locked / "a.png")
    assert done.returncode == 2
    assert "permission denied" in done.stderr


def test_runs_where_torch_cannot_be_imported(small: Path, tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise ImportError('blocked by the test')")
    done = subprocess.run(
        [sys.executable, ROOT / "runtime/infer.py", small, "--engine", "ort:gmin_x4"],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr


def test_exported_metadata_reaches_every_engine() -> None:
    from runtime.engines.opening import open_engine

    for prefix in ("ort", "openvino"):
        info = open_engine(f"{prefix}:{MODELS / 'gmin_x4.onnx'}").info
        assert (info.name, info.scale, info.tiling, info.receptive_radius) == ("gmin_x4", 4, "approximate", 118)


def test_what_does_not_go_with_streaming(script: Script, small: Path) -> None:
    for arguments, reason in (
        ([small.parent], "named one by one"),
        ([small, "--scale", 2], "--scale does not go with --stream"),
        ([small, "--format", "png"], "--format does not go with --stream"),
        ([small, "--strip-metadata"], "--strip-metadata does not go with --stream"),
    ):
        done = script("runtime/infer.py", *arguments, "--stream", "--engine", "ort:gmin_x4")
        assert done.returncode == 2
        assert reason in done.stderr


def test_the_budget_is_for_pictures_held_whole(script: Script, small: Path) -> None:
    """--stream is decided first: what it reads by strips may be larger than any budget."""
    common = ("--budget", "10K", "--engine", "ort:gmin_x4")
    assert "more than the budget" in script("runtime/infer.py", small, *common).stderr
    done = script("runtime/infer.py", small, *common, "--stream")
    assert done.returncode == 0, done.stderr
    assert small.with_name("small_x4.tif").is_file()
