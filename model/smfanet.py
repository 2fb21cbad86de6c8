"""SMFANet and SMFANet+, the self-modulation feature aggregation networks.

Source: Zheng et al., "SMFANet: A Lightweight Self-Modulation Feature Aggregation Network for Efficient Image
Super-Resolution", ECCV 2024; key for key the released files. C is the width, 36 (48 for SMFANet+).

The adaptive pool and the nearest resize are index arithmetic on integers: PyTorch's exporter freezes the size in
``adaptive_max_pool2d``, and ONNX's nearest Resize picks other rows at some sizes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from model.blocks import conv3x3, depthwise, global_mean, widened

_POOLING = 8
_LONGEST_BIN = 2 * _POOLING - 1  # a bin covers 15 pixels where the side is 15, and fewer on longer sides


class LocalDetail(nn.Module):
    """LDE: two depth-wise filters per channel and two 1×1 convolutions."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv_0 = nn.Sequential(
            nn.Conv2d(width, 2 * width, 3, padding=1, groups=width), nn.Conv2d(2 * width, 2 * width, 1)
        )
        self.conv_1 = nn.Conv2d(2 * width, width, 1)

    def forward(self, y: Tensor) -> Tensor:
        return self.conv_1(F.gelu(self.conv_0(y)))


class FeatureAggregation(nn.Module):
    """SMFA: a local branch, and a global one that a coarse map of itself and its variance modulate."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.ones(1, width, 1, 1))
        self.belt = nn.Parameter(torch.zeros(1, width, 1, 1))
        self.linear_0 = nn.Conv2d(width, 2 * width, 1)
        self.linear_1 = nn.Conv2d(width, width, 1)
        self.linear_2 = nn.Conv2d(width, width, 1)
        self.lde = LocalDetail(width)
        self.dw_conv = depthwise(width, 3)

    def forward(self, f: Tensor) -> Tensor:
        height, columns = f.shape[2:]
        local, x = self.linear_0(f).chunk(2, dim=1)  # (N, C, H, W) each
        coarse = self.dw_conv(pool_to_eighth(pool_to_eighth(x, 2), 3))  # (N, C, H//8, W//8)
        modulation = F.gelu(self.linear_1(coarse * self.alpha + frame_variance(x) * self.belt))
        spread = nearest_to(nearest_to(modulation, height, 2), columns, 3)  # (N, C, H, W)
        return self.linear_2(x * spread + self.lde(local))


class PartialFeedForward(nn.Module):
    """PCFN: a 1×1 expansion of which a quarter of the channels also sees its neighbours."""

    def __init__(self, width: int) -> None:
        super().__init__()
        partial = width // 2
        self.parts = (partial, 2 * width - partial)
        self.conv_0 = nn.Conv2d(width, 2 * width, 1)
        self.conv_1 = conv3x3(partial, partial)
        self.conv_2 = nn.Conv2d(2 * width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        near, rest = F.gelu(self.conv_0(x)).split(self.parts, dim=1)  # (N, C/2, H, W), (N, 3C/2, H, W)
        return self.conv_2(torch.cat((F.gelu(self.conv_1(near)), rest), dim=1))


class Block(nn.Module):
    """FMB: both halves on features normalised per pixel, each around a skip."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.smfa = FeatureAggregation(width)
        self.pcfn = PartialFeedForward(width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.smfa(unit_pixels(x)) + x  # (N, C, H, W)
        return self.pcfn(unit_pixels(x)) + x


class Smfanet(nn.Module):
    """SMFANet: (N, 3, H, W) float RGB in [0, 1] to (N, 3, scale·H, scale·W), unclamped; H, W of at least 8.

    A smaller input leaves the pooled map empty and ``forward`` raises ``IndexError`` or ``RuntimeError``.
    """

    def __init__(self, scale: int = 4, *, width: int = 36, blocks: int = 8) -> None:
        super().__init__()
        self.scale = scale
        self.to_feat = conv3x3(3, width)
        self.feats = nn.Sequential(*(Block(width) for _ in range(blocks)))
        self.to_img = nn.Sequential(conv3x3(width, 3 * scale * scale), nn.PixelShuffle(scale))

    def forward(self, x: Tensor) -> Tensor:
        shallow = self.to_feat(x)  # (N, C, H, W)
        return self.to_img(self.feats(shallow) + shallow)  # (N, 3, sH, sW)


def unit_pixels(x: Tensor) -> Tensor:
    """Every pixel's channel vector divided by its Euclidean length."""
    return x / torch.linalg.vector_norm(x, dim=1, keepdim=True).clamp_min(1e-12)


def frame_variance(x: Tensor) -> Tensor:
    """Unbiased variance over height and width, (N, C, 1, 1), from means: their sums overflow half precision."""
    pixels = x.shape[2] * x.shape[3]
    wide = widened(x)
    biased = global_mean((wide - global_mean(wide)).square())
    return (biased * (pixels / (pixels - 1))).to(x.dtype)


def pool_to_eighth(x: Tensor, dim: int) -> Tensor:
    """Adaptive max-pool of one axis to an eighth of its length, rounded down: the bins may overlap.

    Bin i of q covers ⌊i·L/q⌋ to ⌈(i+1)·L/q⌉ − 1. Short bins repeat their last pixel, which no maximum notices.
    """
    length = x.shape[dim]
    bins = length // _POOLING
    i = torch.arange(bins, device=x.device)
    first = i * length // bins
    last = ((i + 1) * length + bins - 1) // bins - 1
    offsets = torch.arange(_LONGEST_BIN, device=x.device)
    index = torch.minimum(first[:, None] + offsets, last[:, None])  # (bins, 15)
    return x.index_select(dim, index.flatten()).unflatten(dim, (bins, _LONGEST_BIN)).amax(dim + 1)


def nearest_to(x: Tensor, length: int, dim: int) -> Tensor:
    """Nearest-neighbour resize of one axis to ``length``: pixel r takes source ⌊r·source/length⌋."""
    r = torch.arange(length, device=x.device)
    return x.index_select(dim, r * x.shape[dim] // length)
