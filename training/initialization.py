"""Fresh weights with which a picture reaches the last module of a GMIN.

GMIN has neither norms nor skips and multiplies its activations. With PyTorch's own fresh weights the variation of a
picture falls to a hundredth in the first module, and short trainings only learn what the head and the tail can do
without any module. After "All you need is a good init" (LSUV; Mishkin and Matas, ICLR 2016), one layer after the other
is scaled to outputs of deviation 1 on some crops, here with mean 0 in every channel. Plain LSUV is not enough where
activations are multiplied: of two factors, one is a gate here, near 1; depth-wise kernels begin around the identity;
and the product that ends the deep features begins at a tenth, so that the first steps are not spent on silencing it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from model.gmin import FeedForward, GatedMultiScaleBlock, GatedSpatialFeedForward, Gmin, Mlka
from runtime.errors import UserError

GATE_DEVIATION = 0.3
SILU_IS_ONE = 1.2785
QUIET = 0.1
"""What the deep features are multiplied by at first."""


@torch.no_grad()
def initialize(network: nn.Module, crops: Tensor) -> None:
    """Scale the fresh weights of a GMIN, GMIN-L or variant of its ablation, in place.

    Args:
        network: with PyTorch's own fresh weights. Its head and tail stay as they are.
        crops: (N, 3, h, w) LR, RGB in [0, 1].

    Raises:
        UserError: the network is another one.
    """
    if not isinstance(network, Gmin):
        raise UserError("Only GMIN and its variants know the initialization unit; take torch.")
    gates = dict(_gates(network))
    layers: list[Any] = [layer for layer in network.body.modules() if isinstance(layer, nn.Conv2d)]
    for layer in layers:
        if layer.groups > 1:
            layer.weight[:, 0, layer.kernel_size[0] // 2, layer.kernel_size[1] // 2] += 1

    def scale(layer: nn.Conv2d, _inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        """A hook, so that every layer sees what the scaled ones before it give."""
        assert layer.bias is not None
        mean, variance = output.mean(dim=(0, 2, 3)), output.var(dim=(2, 3)).mean(dim=0)
        wanted_mean, wanted_deviation = torch.zeros_like(mean), torch.ones_like(mean)
        if layer in gates:
            first, value = gates[layer]
            wanted_mean[first:], wanted_deviation[first:] = value, GATE_DEVIATION
        gain = wanted_deviation / variance.sqrt().mean().clamp(min=1e-6)
        layer.weight *= gain.view(-1, 1, 1, 1)
        layer.bias.copy_((layer.bias - mean) * gain + wanted_mean)
        return (output - mean.view(-1, 1, 1)) * gain.view(-1, 1, 1) + wanted_mean.view(-1, 1, 1)

    scaled = [layer for layer in [*layers, network.msff] if layer.bias is not None]  # each without one precedes another
    handles = [layer.register_forward_hook(scale) for layer in scaled]
    network(crops)
    for handle in handles:
        handle.remove()
    network.lka.pw.weight *= QUIET
    assert network.lka.pw.bias is not None
    network.lka.pw.bias.fill_(QUIET)


def _gates(network: Gmin) -> Iterator[tuple[nn.Module, tuple[int, float]]]:
    """Layers whose outputs others are multiplied by: from which channel on, and around which value."""
    for module in network.modules():
        if isinstance(module, GatedMultiScaleBlock):
            yield module.gate, (0, SILU_IS_ONE)
        elif isinstance(module, GatedSpatialFeedForward):
            yield module.spatial, (0, 1.0)
        elif isinstance(module, FeedForward) and module.gated:
            yield module.expand, (module.expand.out_channels // 2, 1.0)
        elif isinstance(module, Mlka):
            for attention, local in zip(module.attention, module.local, strict=True):
                yield attention[-1], (0, 1.0)  # type: ignore[index]
                yield local, (0, 1.0)
