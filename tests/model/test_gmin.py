"""GMIN and its variants against the specification and the golden vectors."""

import copy
import itertools
from math import inf
from pathlib import Path

import numpy as np
import pytest
import torch

from model.checkpoint import load_checkpoint, save_checkpoint
from model.folding import can_fold, fold
from model.gmin import Gmin
from model.registry import create, describe, names

ROOT = Path(__file__).resolve().parents[2]
GMIN = [name for name in names() if name.startswith("gmin")]


def randomised(name: str) -> torch.nn.Module:
    """A network whose every parameter matters: fresh weights leave γ at 1e-5, where a wrong fold would not show."""
    torch.manual_seed(1)
    model = create(name)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def test_matches_the_golden_vector(gmin_data: Path) -> None:
    golden = np.load(gmin_data / "golden/gmin_x4_bootstrap.npz")
    model = load_checkpoint(create("gmin_x4"), gmin_data / "weights/gmin_x4_bootstrap.safetensors")
    with torch.no_grad():
        output = model(torch.from_numpy(golden["input"])).numpy()
    assert np.abs(output - golden["output"]).max() <= 2e-5


def test_parameters_of_the_reference_network() -> None:
    assert sum(p.numel() for p in create("gmin_x4").parameters()) == 300_992


def test_state_dict_names() -> None:
    keys = create("gmin_x4").state_dict().keys()
    for stem in ("sml.sau.proj", "sml.gmib.gate", "sml.gmib.dw_far", "egsfn.expand", "egsfn.project"):
        assert f"body.6.{stem}.weight" in keys
    assert {"head.weight", "msff.bias", "lka.dw_dilated.weight", "tail.bias", "body.0.sml.sau.gamma"} <= set(keys)
    assert len(keys) == 159 + 2 * 7  # and two bounds a module


@pytest.mark.parametrize("name", GMIN)
def test_every_variant_runs_from_one_pixel_on(name: str) -> None:
    scale = describe(name).scale
    model = create(name)
    for height, width in ((1, 1), (5, 8)):
        with torch.no_grad():
            assert model(torch.rand(2, 3, height, width)).shape == (2, 3, scale * height, scale * width)


@pytest.mark.parametrize("name", [name for name in GMIN if name.endswith("x4")])
def test_folding_changes_nothing_but_the_size(name: str) -> None:
    model = randomised(name)
    folded = fold(model)
    image = torch.rand(2, 3, 17, 22)
    with torch.no_grad():
        expected = model(image)
        # Relative: random weights of this size give outputs far outside [0, 1]
        assert (folded(image) - expected).abs().max() <= 1e-5 * max(1.0, expected.abs().max().item())
    assert sum(p.numel() for p in folded.parameters()) <= sum(p.numel() for p in model.parameters())


def test_folding_the_shipped_network() -> None:
    model = load_checkpoint(create("gmin_x4"), ROOT / "model/weights/gmin_x4.safetensors")
    folded = fold(model)
    image = torch.rand(1, 3, 40, 31, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert (folded(image) - model(image)).abs().max() <= 1e-5
    assert sum(p.numel() for p in folded.parameters()) == 271_872
    convolutions = [sum(isinstance(m, torch.nn.Conv2d) for m in net.modules()) for net in (model, folded)]
    assert convolutions == [76, 69]
    assert model.state_dict().keys() == create("gmin_x4").state_dict().keys(), "folding must not touch its argument"


def test_folding_knows_what_it_does_not_know() -> None:
    assert not can_fold(torch.nn.Identity())
    with pytest.raises(ValueError, match="do not know"):
        fold(torch.nn.Identity())


def test_the_mean_makes_tiling_approximate() -> None:
    assert describe("gmin_x4").tiling == "approximate"
    assert describe("gmin_sau_conv_x4").tiling == "exact"


def test_the_receptive_radius_is_the_networks() -> None:
    """One module deep, so that rounding does not hide the outermost pixels, and without the mean."""
    torch.manual_seed(0)
    model = Gmin(2, modules=1, sau="conv").double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.5)
    radius = 15 + 11 + 2  # GMIB and EGSFN, LKA, head and tail
    size = 2 * radius + 11
    image = torch.zeros(1, 3, 1, size, dtype=torch.double)
    changed = image.clone()
    changed[..., size // 2] = 1
    with torch.no_grad():
        difference = (model(changed) - model(image)).abs().amax(dim=(0, 1, 2)).reshape(size, -1).amax(dim=1)
    reached = torch.nonzero(difference).flatten()
    assert (reached.min(), reached.max()) == (size // 2 - radius, size // 2 + radius)
    assert describe("gmin_x4").receptive_radius == 7 * 15 + 11 + 2


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_shipped_weights_keep_every_flat_colour(scale: int) -> None:
    """Away from the border. Better weights than these once answered flat pink with noise."""
    model = load_checkpoint(create(f"gmin_x{scale}"), ROOT / f"model/weights/gmin_x{scale}.safetensors")
    inside = slice(8 * scale, -8 * scale)
    colours = torch.tensor(list(itertools.product((0.0, 0.25, 0.5, 0.75, 1.0), repeat=3))).view(-1, 3, 1, 1)
    with torch.inference_mode():
        answers = model(colours.expand(-1, -1, 32, 32)).clamp(0, 1)
    assert (answers - colours)[..., inside, inside].abs().max() * 255 < 1


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_shipped_weights_answer_full_contrast_from_pixel_to_pixel(scale: int) -> None:
    """Weights before these gave up to 148,977 here."""
    model = load_checkpoint(create(f"gmin_x{scale}"), ROOT / f"model/weights/gmin_x{scale}.safetensors")
    draw, side = torch.Generator().manual_seed(0), torch.arange(64)
    patterns = {
        "checks": ((side[:, None] + side) % 2).expand(1, 3, 64, 64),
        "stripes": (side % 2).expand(1, 3, 64, 64),
        "wide stripes": (side // 2 % 2).expand(1, 3, 64, 64),
        "black and white noise": (torch.rand(1, 1, 64, 64, generator=draw) > 0.5).expand(1, 3, 64, 64),
        "colour noise": torch.rand(1, 3, 96, 96, generator=draw),
    }
    with torch.inference_mode():
        largest = {name: float((model(pattern.float()) - 0.5).abs().max()) for name, pattern in patterns.items()}
    assert max(largest.values()) < 2.5, largest


def test_bounds_are_part_of_the_weights(tmp_path: Path) -> None:
    model = create("gmin_x4")
    body = model.get_submodule("body")
    assert [module.egsfn.bound for module in body.children()] == [20.0] + [8.0] * 6
    for module in body.children():
        module.egsfn.bound, module.egsfn.product_bound = 0.25, 0.125
    save_checkpoint(model.state_dict(), tmp_path / "tight.safetensors", metadata={})
    image = torch.rand(1, 3, 12, 12)
    loaded = load_checkpoint(create("gmin_x4"), tmp_path / "tight.safetensors")
    with torch.no_grad():
        expected = model(image)
        assert torch.equal(loaded(image), expected)
        assert torch.equal(copy.deepcopy(loaded)(image), expected)
    assert [module.egsfn.product_bound for module in loaded.get_submodule("body").children()] == [0.125] * 7

    before = {key: value for key, value in model.state_dict().items() if not key.endswith("bound")}
    save_checkpoint(before, tmp_path / "before.safetensors", metadata={})
    old = load_checkpoint(loaded, tmp_path / "before.safetensors")
    assert [module.egsfn.bound for module in old.get_submodule("body").children()] == [20.0] + [8.0] * 6
    assert [module.egsfn.product_bound for module in old.get_submodule("body").children()] == [inf] * 7


def test_no_pattern_overflows() -> None:
    model = create("gmin_x4")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(6)  # products of products: without the bounds this is not finite
        stripes = (torch.arange(48) % 2).float().expand(1, 3, 48, 48)
        output = model(stripes)
        assert torch.isfinite(output).all()
        assert output.abs().max() > 1e6, "the weights of this test should be hostile"
        for module in model.get_submodule("body").children():
            module.egsfn.bound = float("inf")
        assert not torch.isfinite(model(stripes)).all()
