"""A file that takes and gives uint8 pictures: the same pixels, in both engines, and nothing else changed."""

from pathlib import Path

import numpy as np
import onnx
import pytest

from export.fuse_io import fuse_io
from export.to_onnx import export_onnx
from model.gmin import Gmin
from model.registry import describe
from runtime.engines.contract import PixelEngine
from runtime.engines.opening import open_engine
from runtime.ensemble import SelfEnsemble
from runtime.errors import UserError
from runtime.images import Picture
from runtime.upscale import upscale
from tests.conftest import ROOT

MODELS = ROOT / "runtime/models"


@pytest.fixture(scope="module")
def fused(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("fused") / "gmin_x4_pixels.onnx"
    onnx.save(fuse_io(onnx.load(MODELS / "gmin_x4.onnx")), path)
    return path


@pytest.mark.parametrize("backend", ["ort", "openvino"])
def test_the_pixels_are_those_of_the_float_file(backend: str, fused: Path, photo: np.ndarray) -> None:
    picture = Picture(photo[40:72, 100:140])
    plain, engine = open_engine(f"{backend}:{MODELS / 'gmin_x4.onnx'}"), open_engine(f"{backend}:{fused}")
    assert isinstance(engine, PixelEngine)
    assert (plain.info.pixels, engine.info.pixels) == ("float", "uint8")
    assert engine.info.scale == 4
    expected = upscale(plain, picture).picture.colour.astype(int)
    for result in (upscale(engine, picture), upscale(engine, picture, tile=32, overlap=0)):
        difference = np.abs(result.picture.colour.astype(int) - expected)
        assert difference.max() <= 1
    assert (upscale(engine, picture).picture.colour != expected).mean() < 1e-3
    batch = np.asarray(picture.colour.transpose(2, 0, 1)[None], np.float32) / 255
    assert np.abs(engine.infer(batch) * 255 - np.clip(plain.infer(batch) * 255, 0, 255)).max() < 1.1


def test_quantized_files_can_be_fused_too(tmp_path: Path, photo: np.ndarray) -> None:
    path = tmp_path / "int8.onnx"
    onnx.save(fuse_io(onnx.load(MODELS / "gmin_x4_int8_cpu.onnx")), path)
    picture = Picture(photo[40:60, 100:130])
    results = [
        upscale(open_engine(f"ort:{file}"), picture).picture.colour.astype(int)
        for file in (path, MODELS / "gmin_x4_int8_cpu.onnx")
    ]
    assert np.abs(results[0] - results[1]).max() <= 1


def test_16_bits_and_exact_tiles_are_refused(fused: Path, photo: np.ndarray) -> None:
    engine = open_engine(f"ort:{fused}")
    deep = Picture(photo[:40, :40].astype(np.uint16) * 257)
    for asked, tile in ((engine, None), (engine, 32), (SelfEnsemble(engine), None)):
        with pytest.raises(UserError, match="8 bits only"):
            upscale(asked, deep, tile=tile, overlap=0)
    with pytest.raises(UserError, match="has a Transpose as well"):
        upscale(engine, Picture(photo[:20, :300]), tile=16, tiling="exact")


def test_the_exporter_checks_and_says_so(tmp_path: Path) -> None:
    target = tmp_path / "pixels.onnx"
    small = Gmin(2, width=16, modules=1)  # untrained: this is about the borders of the file
    assert export_onnx(small, target, describe("gmin_x2"), fuse_io=True).fused_io
    model = onnx.load(target)
    assert model.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.UINT8
    assert {entry.key: entry.value for entry in model.metadata_props}["gmin.input"] == "NHWC uint8 RGB"
    assert upscale(open_engine(f"ort:{target}"), Picture(np.zeros((9, 7, 3), np.uint8))).picture.colour.shape[0] == 18
