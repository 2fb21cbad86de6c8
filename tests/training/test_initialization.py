"""Fresh weights: a picture reaches the last module, in every variant, and a training uses them."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from model.registry import create, names
from runtime.errors import UserError
from training.initialization import initialize
from training.options import TrainingOptions
from training.samples import TrainingImage, load_image
from training.train import build

from .conftest import picture

VARIANTS = [name for name in names() if name.startswith("gmin_") and name.endswith("_x4")]


def deviations(network: nn.Module, x: torch.Tensor) -> list[float]:
    """Of what each module gives, within pictures."""
    found: list[float] = []
    handles = [
        module.register_forward_hook(lambda _m, _i, y: found.append(float(y.var(dim=(2, 3)).mean().sqrt())))
        for module in network.body  # type: ignore[union-attr]
    ]
    with torch.no_grad():
        assert network(x).isfinite().all()
    for handle in handles:
        handle.remove()
    return found


def batch(pictures: Path) -> torch.Tensor:
    lr = np.stack([load_image(path, scale=4).lr for path in sorted(pictures.glob("*.png"))])
    return torch.from_numpy(lr).permute(0, 3, 1, 2).float() / 255


@pytest.mark.parametrize("name", VARIANTS)
def test_a_picture_reaches_the_last_module(name: str, pictures: Path) -> None:
    x = batch(pictures)
    torch.manual_seed(0)
    network = create(name)
    before = deviations(network, x)
    initialize(network, x[1:])
    after = deviations(network, x)  # the first picture is new to it
    assert all(0.2 < deviation < 20 for deviation in after)
    assert before[-1] < after[-1] / 10
    network(x).mean().backward()
    first = network.body[0].sml.gmib  # type: ignore[union-attr, index]
    assert all(float(weight.grad.abs().max()) > 0 for weight in first.parameters())


def test_a_run_begins_with_them_unless_it_has_begun(tmp_path: Path) -> None:
    images = [TrainingImage(Path(str(seed)), picture(seed), picture(seed)[::4, ::4].copy()) for seed in range(2)]
    options = TrainingOptions(tmp_path, model="gmin_x4", initialization="unit", patch=12)
    one, other = build(options, images=images)[0], build(options, images=images)[0]
    assert torch.equal(one.msff.weight, other.msff.weight)  # type: ignore[union-attr, arg-type]
    assert one.lka.pw.bias[0].item() == pytest.approx(0.1)  # type: ignore[union-attr, index, arg-type]
    (tmp_path / "checkpoint.pt").touch()
    assert build(options)[0].lka.pw.bias[0].item() != pytest.approx(0.1)  # type: ignore[union-attr, index, arg-type]


def test_other_networks_do_not_know_it() -> None:
    with pytest.raises(UserError, match="Only GMIN"):
        initialize(create("lkdn_x4"), torch.rand(1, 3, 32, 32))
