"""Exact structural re-parameterisation: fewer parameters and operations, the same output up to rounding.

GMIN: nothing but 1×1 convolutions reads what a GMIM gives (the next SAU and the fusion of all stages), so the linear
``egsfn.project`` that ends it can be multiplied into its readers. SAU's gain becomes part of its convolution, and the
offset of the output part of the last bias. LKDN and BSRN read four copies of the image, RLFN an image in [0, 255];
both become part of the first convolution (and the last one's).
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from model.blocks import DistillationTrunk, global_mean
from model.bsrn import Bsrn
from model.gmin import Gmim, Gmin, SpatialAdaptiveUnit
from model.lkdn import Lkdn
from model.rlfn import Rlfn


class FoldedSpatialAdaptiveUnit(nn.Module):
    """SAU with its gain folded: with y' = (1+γ)·y, y + γ(y − mean y) = y' + k·mean y', where k = −γ/(1+γ)."""

    def __init__(self, unit: SpatialAdaptiveUnit) -> None:
        super().__init__()
        gamma = unit.gamma.detach().double()
        gain = 1 + gamma
        if bool((gain.abs() < 1e-6).any()):
            raise ValueError("a SAU gain of -1 removes a channel and cannot be folded")
        self.proj = nn.Conv2d(unit.proj.in_channels, unit.proj.out_channels, 1)
        _set(self.proj, unit.proj.weight.double() * gain.view(-1, 1, 1, 1), _bias(unit.proj) * gain.flatten())
        self.mean_gain = nn.Parameter((-gamma / gain).float())

    def forward(self, x: Tensor) -> Tensor:
        y = self.proj(x)
        return F.gelu(y + self.mean_gain * global_mean(y))


def can_fold(model: nn.Module) -> bool:
    """Whether ``fold`` knows this network."""
    return type(model) in _FOLDS


@torch.no_grad()
def fold(model: nn.Module) -> nn.Module:
    """A copy of ``model`` with everything folded that can be folded exactly.

    Every variant of GMIN is taken; projections stay where the variant lets something other than a 1×1 convolution
    read them (a residual, no SAU, a feed-forward layer that projects from another width).

    Raises:
        ValueError: the network is not one that this function knows; ask ``can_fold``.
    """
    if not can_fold(model):
        raise ValueError(f"do not know how to fold {type(model).__name__}")
    folded = copy.deepcopy(model).eval()
    _FOLDS[type(model)](folded)
    return folded


def fold_gmin(model: Gmin) -> None:
    """Fold GMIN's projections, gains and output offset, in place."""
    fold_projections(model)
    for module in model.body:
        if isinstance(module, Gmim) and isinstance(module.sml.sau, SpatialAdaptiveUnit):
            module.sml.sau = FoldedSpatialAdaptiveUnit(module.sml.sau)
    _set(model.tail, model.tail.weight.double(), _bias(model.tail) + model.output_offset)
    model.output_offset = 0.0


def fold_input_copies(model: DistillationTrunk) -> None:
    """Let the first 1×1 convolution read the image once, with the sum of its weights for the copies, in place."""
    first = model.fea_conv.pw
    weight = first.weight.double().unflatten(1, (model.copies, 3)).sum(dim=1)  # (C, 3, 1, 1)
    model.fea_conv.pw = nn.Conv2d(3, first.out_channels, 1, bias=False)
    model.fea_conv.pw.weight = nn.Parameter(weight.float())
    model.copies = 1


def fold_pixel_range(model: Rlfn) -> None:
    """Let RLFN's first convolution read [0, 1] and its last one give [0, 1], in place."""
    first, last = model.conv_1, model.upsampler.get_submodule("0")
    assert isinstance(last, nn.Conv2d)
    _set(first, first.weight.double() * model.pixel_range, _bias(first))
    _set(last, last.weight.double() / model.pixel_range, _bias(last) / model.pixel_range)
    model.pixel_range = 1.0


def fold_projections(model: Gmin) -> None:
    """Multiply each module's last 1×1 convolution into its two readers, in place: h = P·z + p.

    The next SAU's W·h + b becomes (W·P)·z + (W·p + b); the fusion's block of columns likewise.
    """
    modules = [module for module in model.body if isinstance(module, Gmim)]
    width = model.tail.in_channels
    fusion, fusion_bias = model.msff.weight.double().flatten(1), _bias(model.msff)
    for i, module in enumerate(modules):
        project = module.egsfn.project
        reader = getattr(modules[i + 1].sml.sau, "proj", None) if i + 1 < len(modules) else None
        last = i + 1 == len(modules)
        if module.residual or not isinstance(project, nn.Conv2d) or project.in_channels != width:
            continue
        if not last and not isinstance(reader, nn.Conv2d):
            continue
        matrix, offset = project.weight.double().flatten(1), _bias(project)
        if isinstance(reader, nn.Conv2d):
            weight = reader.weight.double().flatten(1)
            _set(reader, (weight @ matrix)[..., None, None], weight @ offset + _bias(reader))
        columns = slice(i * width, (i + 1) * width)
        fusion_bias = fusion_bias + fusion[:, columns] @ offset
        fusion[:, columns] = fusion[:, columns] @ matrix
        module.egsfn.project = nn.Identity()
    _set(model.msff, fusion[..., None, None], fusion_bias)


def _bias(conv: nn.Conv2d) -> Tensor:
    assert conv.bias is not None
    return conv.bias.detach().double()


def _set(conv: nn.Conv2d, weight: Tensor, bias: Tensor) -> None:
    conv.weight = nn.Parameter(weight.float())
    conv.bias = nn.Parameter(bias.float())


_FOLDS: dict[type[nn.Module], Callable[[Any], None]] = {
    Gmin: fold_gmin,
    Lkdn: fold_input_copies,
    Bsrn: fold_input_copies,
    Rlfn: fold_pixel_range,
}
