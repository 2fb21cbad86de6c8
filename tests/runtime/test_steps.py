"""Sizes, ensembles and formats that a user can ask for."""

import json
from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from benchmarks.interruptions import cubic_engine
from runtime.engines.contract import Batch, EngineInfo
from runtime.ensemble import SelfEnsemble
from runtime.images import Picture
from runtime.steps import Loaded, Options, compute, final_size, load, store
from tests.conftest import ROOT, Script

PHOTO = ROOT / "data/chelsea.png"


@given(st.integers(1, 9000), st.integers(1, 9000), st.integers(1, 9000), st.integers(1, 9000))
def test_fit_never_exceeds_and_keeps_the_ratio(width: int, height: int, box_width: int, box_height: int) -> None:
    w, h = final_size(width, height, Options(fit=(box_width, box_height)), 4)
    assert 1 <= w <= box_width
    assert 1 <= h <= box_height
    assert w == box_width or h == box_height
    assert abs(w * height - h * width) <= max(width, height) or min(w, h) == 1


class Shift:
    """A stand-in network that shifts by one pixel and doubles each: it knows left from right. No engine."""

    info = EngineInfo("shift", "numpy", "cpu", 2, "shift", "approximate", 1, 1, "fp32")

    def infer(self, batch: Batch) -> Batch:
        return np.roll(batch, (1, 2), (2, 3)).repeat(2, axis=2).repeat(2, axis=3)

    def close(self) -> None: ...


def test_the_ensemble_does_not_know_left_from_right() -> None:
    batch = np.random.default_rng(0).random((1, 3, 5, 7), dtype=np.float32)
    ensemble, alone = SelfEnsemble(Shift()), Shift()
    assert ensemble.info.scale == 2
    answer = ensemble.infer(batch)
    assert answer.shape == (1, 3, 10, 14)
    for turn in (lambda x: x[..., ::-1], lambda x: x[..., ::-1, :], lambda x: x.swapaxes(2, 3)):
        np.testing.assert_allclose(ensemble.infer(np.ascontiguousarray(turn(batch))), turn(answer), atol=1e-6)
        assert not np.allclose(alone.infer(np.ascontiguousarray(turn(batch))), turn(alone.infer(batch)))


def test_sizes_beside_the_networks_own() -> None:
    picture = Picture(
        np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8), np.full((30, 40), 9, np.uint8)
    )
    cases = [
        (Options(), (80, 60), ""),
        (Options(fit=(60, 60)), (60, 45), "the network's x2 of 80x60 resized to 60x45 by area means"),
        (Options(fit=(160, 900)), (160, 120), "resized to 160x120 by a bicubic filter"),
        (Options(fit=(20, 90)), (20, 15), "the source, without the network"),
    ]
    for options, size, note in cases:
        done = compute(Shift(), Loaded(picture, 0.0), options)
        result = done.upscaled.picture
        assert result.colour.shape == (*size[::-1], 3)
        assert result.alpha is not None
        assert result.alpha.shape == size[::-1]
        assert note in done.resized
        assert bool(note) == bool(done.resized)


def test_a_size_that_the_options_do_not_mean() -> None:
    picture = Picture(np.zeros((90, 160, 3), np.uint8))
    for options in (Options(fit=(214, 120)), Options()):
        done = compute(Shift(), Loaded(picture, 0.0), options, size=(212, 120))
        assert done.upscaled.picture.colour.shape == (120, 212, 3)


def test_notes_of_the_source_reach_the_result(tmp_path: Path) -> None:
    pages = [Image.new("RGB", (9, 8), colour) for colour in ("red", "blue")]
    pages[0].save(tmp_path / "a.tiff", save_all=True, append_images=pages[1:])
    loaded = load(tmp_path / "a.tiff", Options(), 2)
    written = store(tmp_path / "a.tiff", tmp_path / "b.png", compute(Shift(), loaded, Options()), Options())
    assert "only the first" in written["notes"][0]


def test_what_can_be_asked_on_the_command_line(script: Script, tmp_path: Path) -> None:
    small, engine = tmp_path / "small.jpg", tmp_path / "cubic_x4.onnx"
    exif = Image.Exif()
    exif[0x0110] = "model of a camera"
    Image.open(PHOTO).convert("RGB").crop((100, 40, 196, 104)).save(small, exif=exif)
    cubic_engine(engine)
    cases: list[tuple[list[object], str, tuple[int, int]]] = [
        (["--scale", 2], "small_x2.png", (192, 128)),
        (["--fit", "300x300", "--format", "webp", "--quality", 60], "small_300x300.webp", (300, 200)),
        (["--x8", "--format", "same", "--strip-metadata"], "small_x4.jpg", (384, 256)),
    ]
    for arguments, name, size in cases:
        done = script("runtime/infer.py", small, "--engine", f"ort:{engine}", "--json", "-", *arguments)
        assert done.returncode == 0, done.stderr
        result = json.loads(done.stdout)["results"][0]
        assert result["output"] == str(tmp_path / name)
        assert (result["width"], result["height"]) == size
        assert ("resized" in str(result.get("notes"))) == (size != (384, 256))
        back = Image.open(tmp_path / name)
        assert back.size == size
        assert (0x0110 in back.getexif()) == ("--strip-metadata" not in arguments)
    refused: list[tuple[list[object], str]] = [
        (["--fit", "300"], "is no size"),
        (["--fit", "30x30", "--scale", 2], "contradict"),
        (["--quality", 50], "is for JPEG and WebP"),
        (["--budget", "much"], "is no number of bytes"),
        (["--budget", "100K"], "more than the budget"),
        (["-o", tmp_path / "a.png", "--format", "jpg"], "contradict"),
    ]
    for arguments, message in refused:
        done = script("runtime/infer.py", small, "--engine", f"ort:{engine}", *arguments)
        assert done.returncode == 2, (arguments, done.stderr)
        assert message in done.stderr
