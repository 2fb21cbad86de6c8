"""Modules that pass nothing on: they are found, and started anew without a change of the output."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from model.checkpoint import load_checkpoint, save_checkpoint
from model.gmin import Gmin
from model.registry import create
from tests.conftest import Script
from training.restart import restart, worth
from training.samples import TrainingImage, load_image


def a_network_with_a_dead_end() -> Gmin:
    torch.manual_seed(3)
    network = Gmin(2, modules=3)
    with torch.no_grad():
        for parameter in network.body.parameters():  # loud enough for the first modules to be heard
            parameter.mul_(1.5)
        network.body[2].egsfn.project.weight.zero_()  # type: ignore[union-attr, operator]
    return network


def output_of(network: Gmin, k: int, x: torch.Tensor) -> torch.Tensor:
    found: list[torch.Tensor] = []
    handle = network.body[k].register_forward_hook(lambda _module, _inputs, output: found.append(output))
    with torch.no_grad():
        network(x)
    handle.remove()
    return found[0]


def test_the_output_stays_and_the_new_module_hands_on_its_input(pictures: Path) -> None:
    network = a_network_with_a_dead_end()
    crops = torch.from_numpy(np.stack([load_image(p, scale=2).lr for p in sorted(pictures.glob("*.png"))]))
    x = crops.permute(0, 3, 1, 2).float() / 255
    with torch.no_grad():
        before = network(x)
    assert float(output_of(network, 2, x).std(dim=(2, 3)).max()) < 1e-6
    restart(network, 1, x)
    with torch.no_grad():
        after = network(x)
    assert float((before - after).abs().max()) < 1e-5
    got, gave = output_of(network, 1, x), output_of(network, 2, x)
    assert gave.isfinite().all()
    pairs = zip(got.transpose(0, 1).flatten(1), gave.transpose(0, 1).flatten(1), strict=True)
    assert np.median([float(torch.corrcoef(torch.stack(pair))[0, 1]) for pair in pairs]) > 0.5
    # and training can listen to it
    network(x).square().mean().backward()
    assert float(network.msff.weight.grad[:, 2 * 64 :].abs().max()) > 0  # type: ignore[index]


def test_the_same_seed_gives_the_same_weights(pictures: Path) -> None:
    x = torch.rand(2, 3, 24, 24, generator=torch.Generator().manual_seed(0))
    networks = [a_network_with_a_dead_end() for _ in range(3)]
    for network, seed in zip(networks, (0, 0, 1), strict=True):
        restart(network, 1, x, seed=seed)
    states = [torch.cat([value.flatten() for value in network.state_dict().values()]) for network in networks]
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[0], states[2])


def test_what_a_dead_module_is_worth(pictures: Path) -> None:
    image: TrainingImage = load_image(pictures / "valid/held.png", scale=2)
    _, worths = worth(a_network_with_a_dead_end(), [image])
    assert abs(worths[2]) < 1e-6
    assert max(abs(value) for value in worths[:2]) > 1e-6


def test_the_command(script: Script, pictures: Path, tmp_path: Path) -> None:
    weights, output = tmp_path / "fresh.safetensors", tmp_path / "anew.safetensors"
    torch.manual_seed(0)
    save_checkpoint(create("gmin_x2").state_dict(), weights, metadata={"model": "gmin_x2"})
    common = ["training/restart.py", weights, "--data", pictures, "--validation", "valid/*", "--below", 1]
    done = script(*common, "-o", output, "--json", "-")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["dead_at_the_end"] == 6  # the first is kept: something must give the others their input
    assert report["restarted_psnr_y_db"] == pytest.approx(report["psnr_y_db"], abs=0.01)
    load_checkpoint(create("gmin_x2"), output)

    done = script(*common[:-1], 0, "-o", tmp_path / "none.safetensors")
    assert done.returncode == 2
    assert "nothing to start anew" in done.stderr
    assert not (tmp_path / "none.safetensors").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "bsrn_x2"], "is not GMIN or GMIN-L"),
        (["--model", "gmin_esdb_x2"], "is not GMIN or GMIN-L"),
        (["--model", "gmin_l_x2"], "does not fit this network"),
        (["--validation", "nowhere/*"], "No image under"),
        (["-o", "nowhere/x.safetensors"], "does not exist"),
    ],
)
def test_mistakes(script: Script, pictures: Path, tmp_path: Path, arguments: list[str], message: str) -> None:
    weights = tmp_path / "fresh.safetensors"
    save_checkpoint(create("gmin_x2").state_dict(), weights, metadata={"model": "gmin_x2"})
    done = script("training/restart.py", weights, "--data", pictures, *arguments)
    assert done.returncode == 2
    assert message in done.stderr
