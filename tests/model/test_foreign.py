"""Networks of others: real spandrel on weights that its own classes made, where it is installed.

spandrel imports torchvision for an inpainting and a face network, which are not used here. Where torchvision is
missing, a stand-in takes its place while spandrel is imported, in these tests only.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks.complexity import complexity
from benchmarks.engines import open_any
from export import to_onnx
from model import foreign
from model.checkpoint import read_state
from runtime.engines.ort import OrtEngine
from runtime.errors import UserError
from tests.conftest import Script

STAND_IN = ("torchvision", "torchvision.transforms", "torchvision.transforms.functional")


@pytest.fixture(scope="module")
def real_spandrel() -> Iterator[ModuleType]:
    if importlib.util.find_spec("spandrel") is None:
        pytest.skip("needs spandrel: pip install 'gmin-edge[spandrel]'")
    missing = importlib.util.find_spec("torchvision") is None
    if missing:
        for name in STAND_IN:
            sys.modules[name] = ModuleType(name)
        vars(sys.modules[STAND_IN[-1]]).update(
            rotate=None, normalize=None, InterpolationMode=SimpleNamespace(NEAREST=0, BILINEAR=1)
        )
    module = importlib.import_module("spandrel")
    if missing:
        for name in STAND_IN:
            del sys.modules[name]  # PyTorch's exporter asks whether torchvision is there
    yield module
    if missing:
        for name in [n for n in sys.modules if n.partition(".")[0] == "spandrel"]:
            del sys.modules[name]


@pytest.fixture
def span(real_spandrel: ModuleType, tmp_path: Path) -> tuple[nn.Module, Path]:
    """SPAN, small, by its authors' code, and a file of its weights."""
    architecture: Any = importlib.import_module("spandrel.architectures.SPAN")
    torch.manual_seed(0)
    model = architecture.SPAN(num_in_ch=3, num_out_ch=3, upscale=4, feature_channels=12).eval()
    path = tmp_path / "mine.pth"
    torch.save({"params": model.state_dict()}, path)
    return model, path


def test_a_network_is_recognised_and_gives_its_authors_pixels(span: tuple[nn.Module, Path]) -> None:
    original, path = span
    model, network = foreign.load_foreign(path)
    assert (network.name, network.scale, network.tiling) == ("mine", 4, "approximate")
    assert network.source.startswith("SPAN, recognised by spandrel")
    image = torch.rand(1, 3, 24, 31)
    with torch.no_grad():
        torch.testing.assert_close(model(image), original(image))


def test_it_is_counted_as_it_is_deployed(span: tuple[nn.Module, Path]) -> None:
    _, path = span
    counted = complexity(f"spandrel:{path}")
    convolutions = 3 * 12 * 9 + 12 + 19 * (12 * 12 * 9 + 12) + (48 * 12 + 12) + (12 * 48 * 9 + 48)
    assert counted.parameters == convolutions


def test_it_is_opened_and_exported_like_any_other(span: tuple[nn.Module, Path], tmp_path: Path) -> None:
    _, path = span
    target = tmp_path / "mine.onnx"
    to_onnx.main(ckpt=path, output=target, model="spandrel", quiet=True)
    batch = np.random.default_rng(0).random((1, 3, 25, 40), dtype=np.float32)
    eager, file = open_any(f"spandrel:{path}", 4, threads=1), OrtEngine(target, device="cpu", threads=1)
    np.testing.assert_allclose(file.infer(batch), eager.infer(batch), atol=1e-4)
    assert file.info.name == "mine"
    eager.close()
    file.close()


def test_a_network_that_computes_with_sizes_is_refused_by_the_export(real_spandrel: ModuleType, tmp_path: Path) -> None:
    architecture: Any = importlib.import_module("spandrel.architectures.SAFMN")
    path = tmp_path / "safmn.pth"
    torch.save(architecture.SAFMN(dim=12, n_blocks=1, upscaling_factor=4).state_dict(), path)
    model, _ = foreign.load_foreign(path)
    assert isinstance(model, foreign.Padded)
    assert model(torch.rand(1, 3, 17, 26)).shape == (1, 3, 68, 104)
    with pytest.raises(UserError, match=r"holds SAFMN, whose code cannot be exported for every size .*spandrel:"):
        to_onnx.main(ckpt=path, output=tmp_path / "safmn.onnx", model="spandrel", quiet=True)
    assert not (tmp_path / "safmn.onnx").exists()


def test_weights_that_nobody_knows(real_spandrel: ModuleType, tmp_path: Path) -> None:
    torch.save({"weight": torch.zeros(3)}, tmp_path / "odd.pth")
    with pytest.raises(UserError, match="no network that spandrel recognises"):
        foreign.load_foreign(tmp_path / "odd.pth")


def test_code_in_a_file_is_never_run(tmp_path: Path) -> None:
    torch.save({"params": nn.Linear(1, 1)}, tmp_path / "code.pth")
    with pytest.raises(UserError, match="contains code"):
        foreign.load_foreign(tmp_path / "code.pth")


class FakeSpandrel(ModuleType):
    """Recognises everything as one network."""

    __version__ = "0"

    class UnsupportedModelError(Exception):
        pass

    def __init__(self, **found: Any) -> None:
        super().__init__("spandrel")
        needs = SimpleNamespace(minimum=0, multiple_of=1, square=False)
        facts = {"purpose": "SR", "input_channels": 3, "output_channels": 3, "scale": 4, "size_requirements": needs}
        descriptor = SimpleNamespace(architecture=SimpleNamespace(name="Fake"), model=nn.Identity(), **facts | found)
        self.canonicalize_state_dict = dict
        self.ModelLoader = lambda device: SimpleNamespace(load_from_state_dict=lambda state: descriptor)


@pytest.mark.parametrize("found", [{"purpose": "Inpainting"}, {"input_channels": 1}, {"output_channels": 4}])
def test_only_super_resolution_of_rgb_is_taken(
    found: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save({"weight": torch.zeros(3)}, tmp_path / "any.pth")
    monkeypatch.setitem(sys.modules, "spandrel", FakeSpandrel(**found))
    with pytest.raises(UserError, match="only super-resolution of RGB"):
        foreign.load_foreign(tmp_path / "any.pth")


def test_without_spandrel_one_sentence_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save({"weight": torch.zeros(3)}, tmp_path / "any.pth")
    monkeypatch.setitem(sys.modules, "spandrel", None)
    with pytest.raises(UserError, match=r"pip install 'gmin-edge\[spandrel\]'"):
        foreign.load_foreign(tmp_path / "any.pth")


def test_a_registered_network_is_not_asked_of_spandrel(script: Script, tmp_path: Path) -> None:
    torch.save({"weight": torch.zeros(3)}, tmp_path / "nameless.pth")
    done = script("export/to_onnx.py", "--ckpt", tmp_path / "nameless.pth", "-o", tmp_path / "x.onnx")
    assert done.returncode == 2
    assert "--model spandrel" in done.stderr
    assert read_state(tmp_path / "nameless.pth").keys() == {"weight"}


def test_padding_is_seen_by_the_network_and_cut_off_again() -> None:
    class Doubling(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            assert x.shape[2] % 8 == x.shape[3] % 8 == 0
            return x.repeat_interleave(2, 2).repeat_interleave(2, 3)

    image = torch.rand(2, 3, 17, 24)
    assert torch.equal(foreign.Padded(Doubling(), 2, 8)(image), image.repeat_interleave(2, 2).repeat_interleave(2, 3))
