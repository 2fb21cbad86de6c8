"""Strips: the same pixels as in memory, whatever the sizes, with memory that does not grow with the picture."""

import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import tifffile
from onnx import TensorProto, helper, numpy_helper
from PIL import Image, ImageCms

from runtime.engines.contract import Batch, EngineInfo
from runtime.engines.opening import open_engine
from runtime.errors import UserError
from runtime.images import Picture
from runtime.memory import TILE_BYTES_PER_PIXEL, TooMuchMemoryError, free_bytes, tile_that_fits
from runtime.streaming import upscale_file
from runtime.upscale import upscale
from tests.conftest import ROOT, Script

PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def cheap_network(path: Path) -> Path:
    """One convolution and a pixel shuffle, x2: no super-resolution, for tests of everything around it."""
    random = np.random.default_rng(0)
    weight = random.random((12, 3, 3, 3), dtype=np.float32) / 27
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 3, None, None]) for name in "xy"]
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("DepthToSpace", ["c"], ["y"], blocksize=2, mode="CRD"),
    ]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], [numpy_helper.from_array(weight, "w")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    facts = {"scale": "2", "tiling": "exact", "receptive_radius": "1", "minimum_size": "1"}
    for key, value in facts.items():
        model.metadata_props.add(key=f"gmin.{key}", value=value)
    onnx.save(model, path)
    return path


@pytest.fixture
def cheap(tmp_path: Path) -> Path:
    return cheap_network(tmp_path / "cheap_x2.onnx")


@pytest.mark.parametrize(
    ("kind", "tiling", "size"),
    [
        ("png", "fast", (140, 300)),
        ("png", "exact", (300, 140)),
        ("tif", "exact", (140, 300)),
        ("tif", "fast", (9, 11)),
        ("jpg", "fast", (300, 140)),
    ],
)
def test_strips_give_the_pixels_of_memory(
    cheap: Path, tmp_path: Path, kind: str, tiling: str, size: tuple[int, int]
) -> None:
    source, target = tmp_path / f"a.{kind}", tmp_path / "b.tif"
    pixels = np.random.default_rng(1).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(source, icc_profile=PROFILE)
    pixels = np.asarray(Image.open(source))
    engine = open_engine(f"ort:{cheap}")
    done = upscale_file(engine, source, target, tile=64, tiling=tiling)  # type: ignore[arg-type]
    whole = upscale(engine, Picture(pixels), tile=0).picture.colour
    written = tifffile.imread(target)
    assert written.shape == (2 * size[0], 2 * size[1], 3) == (done.height, done.width, 3)
    assert done.exact
    # JPEG decoders of two libraries may differ by a level or two, and so may what is made of them
    assert np.abs(written.astype(int) - whole.astype(int)).max() <= (3 if kind == "jpg" else 1)
    with tifffile.TiffFile(target) as file:
        assert file.is_bigtiff
        assert file.pages[0].tags["InterColorProfile"].value == PROFILE


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_grey_and_16_bit(cheap: Path, tmp_path: Path, dtype: type) -> None:
    source, target = tmp_path / "a.png", tmp_path / "b.tif"
    grey = np.random.default_rng(1).integers(0, np.iinfo(dtype).max + 1, (90, 120), dtype=dtype)
    Image.fromarray(grey).save(source)
    upscale_file(open_engine(f"ort:{cheap}"), source, target, tile=64)
    written = tifffile.imread(target)
    assert (written.shape, written.dtype) == ((180, 240), dtype)


def test_the_orientation_is_applied(cheap: Path, tmp_path: Path) -> None:
    source, target = tmp_path / "a.jpg", tmp_path / "b.tif"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.zeros((40, 60, 3), np.uint8)).save(source, exif=exif)
    upscale_file(open_engine(f"ort:{cheap}"), source, target)
    assert tifffile.imread(target).shape == (120, 80, 3)


def test_the_command_streams_and_refuses_with_a_reason(script: Script, cheap: Path, tmp_path: Path) -> None:
    alpha, cut, good = tmp_path / "alpha.png", tmp_path / "cut.png", tmp_path / "good.png"
    Image.new("RGBA", (30, 20)).save(alpha)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (200, 200, 3), dtype=np.uint8)).save(good)
    cut.write_bytes(good.read_bytes()[:60_000])
    engine = ("--engine", f"ort:{cheap}", "--stream")
    done = script("runtime/infer.py", good, *engine)
    assert done.returncode == 0, done.stderr
    assert tifffile.imread(tmp_path / "good_x2.tif").shape == (400, 400, 3)
    done = script("runtime/infer.py", alpha, *engine)
    assert done.returncode == 2
    assert "without transparency" in done.stderr
    opened = open_engine(f"ort:{cheap}")
    cases: list[tuple[Path, str, int | None, str]] = [
        (cut, "x.tif", None, "damaged"),
        (cheap, "x.tif", None, "damaged, or no picture"),
        (good, "x.png", None, "must end in .tif"),
        (good, "x.tif", 1_000_000, "not enough"),
    ]
    for source, target, memory, message in cases:
        with pytest.raises(UserError, match=message):
            upscale_file(opened, source, tmp_path / target, memory_bytes=memory)
    assert sorted(path.name for path in tmp_path.glob("*.tif")) == ["good_x2.tif"]
    assert not list(tmp_path.glob(".*")), "no temporary file may be left"


def peak_megabytes(arguments: list[object]) -> float:
    """Peak resident memory of a run of ``infer.py``, in a process of its own."""
    code = (
        "import resource, subprocess, sys; done = subprocess.run(sys.argv[1:]);"
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss); sys.exit(done.returncode)"
    )
    command = [sys.executable, "-c", code, sys.executable, str(ROOT / "runtime/infer.py"), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    unit = 1e6 if sys.platform == "darwin" else 1e3
    return float(done.stdout.split()[-1]) / unit


def test_memory_does_not_grow_with_the_height(cheap: Path, tmp_path: Path) -> None:
    peaks = []
    for height in (500, 3500):
        source = tmp_path / f"{height}.tif"
        tifffile.imwrite(source, np.zeros((height, 1500, 3), np.uint8), tile=(256, 256), photometric="rgb")
        peaks.append(
            peak_megabytes([source, "--engine", f"ort:{cheap}", "--stream", "--tile", 192, "--threads", 1, "--quiet"])
        )
    assert peaks[1] < peaks[0] + 25, "the larger result alone has 63 MB"


class Greedy:
    """A stand-in engine that cannot get the memory for more than ``limit`` pixels, as libraries say it."""

    def __init__(self, limit: int, error: Exception) -> None:
        self.limit, self.error = limit, error
        self.info = EngineInfo("greedy", "numpy", "cpu", 2, "greedy", "exact", 0, 1, "fp32")

    def infer(self, batch: Batch) -> Batch:
        if batch.shape[2] * batch.shape[3] > self.limit:
            raise self.error
        return np.asarray(batch.repeat(2, axis=2).repeat(2, axis=3), np.float32)

    def close(self) -> None: ...


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("std::bad_alloc"), RuntimeError("Failed to allocate memory for 123 bytes")]
)
def test_tiles_are_halved_when_the_memory_is_short(error: Exception, tmp_path: Path) -> None:
    picture = Picture(np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8))
    result = upscale(Greedy(128 * 128, error), picture)
    assert result.tile == 100, "400, 200 and then 100"
    assert (result.picture.colour == picture.colour.repeat(2, axis=0).repeat(2, axis=1)).all()
    source, target = tmp_path / "a.png", tmp_path / "a.tif"
    Image.fromarray(picture.colour).save(source)
    assert upscale_file(Greedy(128 * 128, error), source, target, tile=256).tile == (128, 128)
    assert (tifffile.imread(target) == result.picture.colour).all()
    with pytest.raises(TooMuchMemoryError, match="smaller --tile"):
        upscale(Greedy(100, error), picture)


def test_other_errors_of_an_engine_are_not_taken_for_memory() -> None:
    with pytest.raises(ZeroDivisionError):
        upscale(Greedy(1, ZeroDivisionError("x")), Picture(np.zeros((8, 8, 3), np.uint8)))


def test_tiles_chosen_from_memory_fit_into_it() -> None:
    assert 0 < free_bytes() < 1 << 50
    before: tuple[int, int] | None = None
    for megabytes in (50, 200, 800, 3200):
        tile = tile_that_fits(megabytes * 10**6, width=30_000, scale=2, margin=0, overlap=32, item_bytes=1)
        if tile is None:
            assert before is None, "more memory must not fit less"
            continue
        strip = tile[0] * 2 * 60_000 * 3 * 5
        assert tile[0] * tile[1] * TILE_BYTES_PER_PIXEL + strip <= megabytes * 10**6
        before = tile
    assert before is not None
    assert tile_that_fits(10**6, width=100, scale=4, margin=0, overlap=32, item_bytes=1) is None
    exact = tile_that_fits(10**9, width=5000, scale=4, margin=118, overlap=0, item_bytes=1)
    assert exact is not None
    assert (exact[0] + 236) * (exact[1] + 236) * TILE_BYTES_PER_PIXEL < 10**9


def test_a_header_that_claims_too_much_is_refused(cheap: Path, tmp_path: Path) -> None:
    source = tmp_path / "bomb.png"
    Image.new("L", (10, 10)).save(source)
    content = bytearray(source.read_bytes())
    content[16:24] = (2**31 - 1).to_bytes(4, "big") * 2
    source.write_bytes(content)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError, match=r"damaged|claims"):
        upscale_file(open_engine(f"ort:{cheap}"), source, tmp_path / "x.tif")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000
