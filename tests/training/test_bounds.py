"""Bounds from photographs: the output on them stays, what lies outside is cut."""

import json
from pathlib import Path

import pytest
import torch

from model.checkpoint import load_checkpoint, save_checkpoint
from model.gmin import Gmin
from model.registry import create
from tests.conftest import Script
from training.bounds import bound
from training.samples import load_image


def a_loud_network() -> Gmin:
    torch.manual_seed(3)
    network = Gmin(2, modules=3).eval()
    with torch.no_grad():
        for parameter in network.body.parameters():
            parameter.mul_(1.5)
    return network


def test_photographs_stay_and_products_keep_the_bound(pictures: Path) -> None:
    network = a_loud_network()
    images = [load_image(path, scale=2) for path in sorted(pictures.glob("*.png"))]
    photographs = [torch.from_numpy(image.lr.copy()).permute(2, 0, 1)[None] / 255 for image in images]
    with torch.no_grad():
        before = [network(x) for x in photographs]
    rows = bound(network, images)
    bounds = [row["product_bound"] for row in rows]
    with torch.no_grad():
        for x, expected in zip(photographs, before, strict=True):
            assert float((network(x) - expected).abs().max()) < 1e-5
    assert products_of(network, photographs) == pytest.approx(bounds, abs=1e-3), "photographs reach the bounds"
    assert products_of(network, [torch.full((1, 3, 9, 9), 1000.0)]) == pytest.approx(bounds, abs=1e-3)


def products_of(network: Gmin, inputs: list[torch.Tensor]) -> list[float]:
    """Of each module the largest value that its projection reads."""
    largest = [0.0] * len(network.body)
    handles = []
    for k, module in enumerate(network.body.children()):

        def look(_module: torch.nn.Module, read: tuple[torch.Tensor], k: int = k) -> None:
            largest[k] = max(largest[k], float(read[0].abs().max()))

        handles.append(module.egsfn.project.register_forward_pre_hook(look))
    with torch.no_grad():
        for x in inputs:
            network(x)
    for handle in handles:
        handle.remove()
    return largest


def test_a_smaller_margin_cuts(pictures: Path) -> None:
    network = a_loud_network()
    image = load_image(sorted(pictures.glob("*.png"))[0], scale=2)
    x = torch.from_numpy(image.lr.copy()).permute(2, 0, 1)[None] / 255
    with torch.no_grad():
        before = network(x)
        bound(network, [image], margin=0.5)
        assert float((network(x) - before).abs().max()) > 1e-4


def test_the_command(script: Script, pictures: Path, tmp_path: Path) -> None:
    weights, output = tmp_path / "fresh.safetensors", tmp_path / "bounded.safetensors"
    torch.manual_seed(0)
    save_checkpoint(create("gmin_x2").state_dict(), weights, metadata={"model": "gmin_x2"})
    command = ["training/bounds.py", weights, "--data", pictures, "--validation", "valid/*", "-o", output]
    done = script(*command, "--json", "-")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    network = load_checkpoint(create("gmin_x2"), output)
    kept = [module.egsfn.product_bound for module in network.get_submodule("body").children()]
    assert kept == pytest.approx([row["product_bound"] for row in report["modules"]], abs=1e-3)

    save_checkpoint(create("bsrn_x2").state_dict(), weights, metadata={"model": "bsrn_x2"})
    done = script(*command)
    assert done.returncode == 2
    assert "not GMIN" in done.stderr
