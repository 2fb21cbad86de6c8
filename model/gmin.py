"""GMIN, the gated multi-scale interaction network, and the variants of its paper's ablation.

A reconstruction from the public text (doi 10.1177/30504554261430601): the paper's equations and block tables are not
public. Kernel sizes follow the designs that it builds on: MAN (Wang et al. 2022) for the large-kernel attention,
MogaNet for the feature decomposition, BSRN for ESDB. Comments give shapes; C is the width, 64.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import inf
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 -- the name every reader of PyTorch code knows

from model.blocks import Distillation, depthwise, global_mean

SauKind = Literal["full", "conv", "none"]
MixerKind = Literal["gmib", "esdb", "mlka"]
FeedForwardKind = Literal["egsfn", "ffn", "glu_ffn", "conv_ffn"]


class SpatialAdaptiveUnit(nn.Module):
    """SAU: a 1×1 convolution, then each channel's deviation from its global mean, amplified by a learned gain."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(width, width, 1)
        self.gamma = nn.Parameter(torch.full((1, width, 1, 1), 1e-5))

    def forward(self, x: Tensor) -> Tensor:
        y = self.proj(x)  # (N, C, H, W)
        return F.gelu(y + self.gamma * (y - global_mean(y)))


class PointwiseUnit(nn.Module):
    """The ablation "w/ Conv-1": SAU reduced to its 1×1 convolution."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(self.proj(x))


class GatedMultiScaleBlock(nn.Module):
    """GMIB: three dilations of depth-wise convolution, fused, times a pixel-wise gate."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.parts = (width // 8, 3 * width // 8, width // 2)
        self.gate = nn.Conv2d(width, width, 1)
        self.dw = depthwise(width, 5)
        self.dw_mid = depthwise(self.parts[1], 5, dilation=2)
        self.dw_far = depthwise(self.parts[2], 7, dilation=3)
        self.fuse = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        gate = F.silu(self.gate(x))  # (N, C, H, W)
        near, mid, far = self.dw(x).split(self.parts, dim=1)  # C/8, 3C/8, C/2
        scales = torch.cat((near, self.dw_mid(mid), self.dw_far(far)), dim=1)
        return gate * F.silu(self.fuse(scales))


class Mlka(nn.Module):
    """MLKA, multi-scale large-kernel attention of MAN (ablation of GMIB): three groups of channels, three kernels.

    MAN's width is a multiple of 3; ours is not, so the last group takes the remainder. No norm and no shortcut, as
    everywhere in a GMIM.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        third = width // 3
        self.parts = (third, third, width - 2 * third)
        self.first = nn.Conv2d(width, 2 * width, 1)
        kernels = ((3, 5, 2), (5, 7, 3), (7, 9, 4))  # near kernel, far kernel, dilation of the far one
        self.attention = nn.ModuleList(
            nn.Sequential(depthwise(part, near), depthwise(part, far, dilation=dilation), nn.Conv2d(part, part, 1))
            for part, (near, far, dilation) in zip(self.parts, kernels, strict=True)
        )
        self.local = nn.ModuleList(
            depthwise(part, near) for part, (near, _, _) in zip(self.parts, kernels, strict=True)
        )
        self.last = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        a, x = self.first(x).chunk(2, dim=1)  # (N, C, H, W) each
        groups = zip(a.split(self.parts, dim=1), self.attention, self.local, strict=True)
        a = torch.cat([attention(part) * local(part) for part, attention, local in groups], dim=1)
        return self.last(x * a)


class Bounded(nn.Module):
    """A layer that limits its factors to ±``bound`` and their product to ±``product_bound``, both kept as weights are.

    The two products of a module raise its input to the fourth power, and seven modules follow each other: what a module
    gives three times too large comes out of the last one ten thousand times too large. That happened on flat pinks, on
    the stripes of Set14's barbara, and on full contrast from pixel to pixel. ``training/bounds.py`` sets both to what
    photographs need, so that no module hands on more than that.

    State dicts from before bounds were kept in them mean the bound that the layer was made with, and none on products.
    """

    def __init__(self, bound: float) -> None:
        super().__init__()
        self.bound = self._made_with = bound
        self.product_bound = inf

    def limit(self, product: Tensor) -> Tensor:
        """What the projection reads, limited; (N, C, H, W)."""
        return product if self.product_bound == inf else product.clamp(-self.product_bound, self.product_bound)

    def _save_to_state_dict(self, destination: dict[str, Tensor], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[prefix + "bound"] = torch.tensor(self.bound)
        destination[prefix + "product_bound"] = torch.tensor(self.product_bound)

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *rest: Any) -> None:
        self.bound = float(state_dict.pop(prefix + "bound", self._made_with))
        self.product_bound = float(state_dict.pop(prefix + "product_bound", inf))
        super()._load_from_state_dict(state_dict, prefix, *rest)


class GatedSpatialFeedForward(Bounded):
    """EGSFN: expand, local structure, then a large-kernel half gated by the other half."""

    def __init__(self, width: int, bound: float) -> None:
        super().__init__(bound)
        self.expand = nn.Conv2d(width, 2 * width, 1)
        self.local = depthwise(2 * width, 3)
        self.spatial = depthwise(width, 7)
        self.project: nn.Module = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        halves = self.local(self.expand(x)).chunk(2, dim=1)
        u, w = (half.clamp(-self.bound, self.bound) for half in halves)  # (N, C, H, W) each
        return self.project(self.limit(F.gelu(u) * self.spatial(w)))


class FeedForward(Bounded):
    """The plain layers that the paper compares EGSFN with: FFN, GLU-FFN and Conv-FFN; bounded as that is."""

    def __init__(self, width: int, kind: Literal["ffn", "glu_ffn", "conv_ffn"], bound: float) -> None:
        super().__init__(bound)
        self.gated = kind == "glu_ffn"
        self.expand = nn.Conv2d(width, 2 * width, 1)
        self.local = depthwise(2 * width, 3) if kind == "conv_ffn" else nn.Identity()
        self.project: nn.Module = nn.Conv2d(width if self.gated else 2 * width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.local(self.expand(x)).clamp(-self.bound, self.bound)  # (N, 2C, H, W)
        if self.gated:
            u, w = x.chunk(2, dim=1)
            return self.project(self.limit(F.gelu(u) * w))
        return self.project(self.limit(F.gelu(x)))


class SpatialMixingLayer(nn.Module):
    """SML: SAU, then GMIB (or what an ablation puts in their places)."""

    def __init__(self, width: int, sau: SauKind, mixer: MixerKind) -> None:
        super().__init__()
        units = {"full": SpatialAdaptiveUnit, "conv": PointwiseUnit}
        mixers: dict[str, Callable[[int], nn.Module]] = {
            "gmib": GatedMultiScaleBlock,
            "esdb": partial(Distillation, residual=True),  # ESDB without its two attentions
            "mlka": Mlka,
        }
        self.sau = units[sau](width) if sau != "none" else nn.Identity()
        self.gmib = mixers[mixer](width)

    def forward(self, x: Tensor) -> Tensor:
        return self.gmib(self.sau(x))


class Gmim(nn.Module):
    """One gated multi-scale interaction module; without norm and, as the paper has it, without a skip."""

    def __init__(
        self, width: int, sau: SauKind, mixer: MixerKind, feed_forward: FeedForwardKind, residual: bool, bound: float
    ) -> None:
        super().__init__()
        self.residual = residual
        self.sml = SpatialMixingLayer(width, sau, mixer)
        self.egsfn = (
            GatedSpatialFeedForward(width, bound)
            if feed_forward == "egsfn"
            else FeedForward(width, feed_forward, bound)
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.egsfn(self.sml(x))
        return x + y if self.residual else y


class LargeKernelAttention(nn.Module):
    """LKA in the form of VAN: near, far, mix; the product with its input closes the deep features."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.dw = depthwise(width, 5)
        self.dw_dilated = depthwise(width, 7, dilation=3)
        self.pw = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.pw(self.dw_dilated(self.dw(x)))


class Gmin(nn.Module):
    """GMIN: (N, 3, H, W) float RGB in [0, 1] to (N, 3, scale·H, scale·W), unclamped; any H, W of at least 1."""

    def __init__(
        self,
        scale: int = 4,
        *,
        width: int = 64,
        modules: int = 7,
        sau: SauKind = "full",
        mixer: MixerKind = "gmib",
        feed_forward: FeedForwardKind = "egsfn",
        residual: bool = False,
    ) -> None:
        super().__init__()
        self.scale = scale
        self.offset = 0.5  # a zero-centred input uses the whole signed 8-bit range
        self.output_offset = 0.5  # undoes it; folding moves it into the last bias
        self.head = nn.Conv2d(3, width, 3, padding=1)
        bounds = [20.0] + [8.0] * (modules - 1)  # see Bounded
        self.body = nn.ModuleList(Gmim(width, sau, mixer, feed_forward, residual, bound) for bound in bounds)
        self.msff = nn.Conv2d(modules * width, width, 1)
        self.lka = LargeKernelAttention(width)
        self.tail = nn.Conv2d(width, 3 * scale * scale, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        shallow = self.head(x - self.offset)  # (N, C, H, W)
        h, stages = shallow, []
        for module in self.body:
            h = module(h)
            stages.append(h)
        deep = self.lka(F.gelu(self.msff(torch.cat(stages, dim=1))))  # 7C -> C
        y = F.pixel_shuffle(self.tail(deep + shallow), self.scale)  # (N, 3, sH, sW)
        return y + self.output_offset if self.output_offset else y
