"""Networks of others through the export and the INT8 path that GMIN takes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks import exported
from benchmarks.engines import open_any
from benchmarks.protocol import RANDOM
from data.metrics import psnr
from data.sets import downscale, to_batch
from model.hnct import Hnct
from quantize.patches import load_patches
from runtime.engines.opening import BACKENDS, installed
from runtime.engines.openvino_check import computes_rightly


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def one_block(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """HNCT of one block with random weights: every kind of operation of the whole network, exported in seconds."""
    import torch

    torch.manual_seed(0)
    monkeypatch.setattr("runtime.selection.cache_folder", lambda: cache)
    monkeypatch.setattr(exported, "_weights", lambda _name: None)
    monkeypatch.setattr(exported, "_with_weights", lambda _name: (Hnct(blocks=1), RANDOM))


@pytest.mark.parametrize("target", exported.ENDINGS)
@pytest.mark.usefixtures("one_block")
def test_hnct_goes_through_export_and_every_flavour_at_any_size(
    target: exported.Target, patch_folder: Path, photo: np.ndarray
) -> None:
    source, label = exported.exported("hnct_x4")
    path, _ = exported.quantized("hnct_x4", target, load_patches(str(patch_folder), 4, 3))
    assert label == RANDOM
    assert path.stat().st_size < source.stat().st_size
    backends = ["ort"]
    if target == "openvino" and installed(BACKENDS["openvino"]) and computes_rightly(signed=False):
        backends.append("openvino")  # elsewhere it refuses the file
    batch = to_batch(downscale(photo, 4))
    for backend in backends:
        engines = [open_any(f"{backend}:{file}", 4, threads=1) for file in (source, path)]
        for height, width in ((24, 32), (37, 51)):  # the second is padded to windows of 8
            exact, result = (engine.infer(batch[..., :height, :width]) for engine in engines)
            assert result.shape == (1, 3, 4 * height, 4 * width)
            assert 30 < psnr(exact, result, peak=float(np.ptp(exact))) < 100
        for engine in engines:
            engine.close()


@pytest.mark.usefixtures("one_block")
def test_a_quantized_file_is_made_once_and_again_for_other_pictures(
    patch_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    patches = load_patches(str(patch_folder), 4, 2)
    first, _ = exported.quantized("hnct_x4", "tensorrt", patches)
    made = first.stat().st_mtime_ns
    assert exported.quantized("hnct_x4", "tensorrt", patches)[0] == first
    assert first.stat().st_mtime_ns == made
    other, _ = exported.quantized("hnct_x4", "tensorrt", load_patches(str(patch_folder), 4, 1))
    assert other != first


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("lkdn_x4", ("lkdn_x4", None)),
        ("lkdn_x4_int8", ("lkdn_x4", "tensorrt")),
        ("lkdn_x4_int8_cpu", ("lkdn_x4", "cpu")),
        ("bsrn_x2_int8_openvino", ("bsrn_x2", "openvino")),
    ],
)
def test_names_of_flavours(name: str, expected: tuple[str, str | None]) -> None:
    assert exported.flavour_of(name) == expected
