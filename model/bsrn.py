"""BSRN, the blueprint separable residual network.

Source: Li et al., "Blueprint Separable Residual Network for Efficient Image Super-Resolution", CVPR Workshops 2022;
key for key the released net_g_BSRN_x2, x3 and x4 files. C is the width, 64.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from model.blocks import BlueprintConv, Distillation, PooledAttention, conv3x3, global_mean


class ContrastAttention(nn.Module):
    """CCA: each channel weighted by a function of all channels' means and standard deviations over the frame."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv_du = nn.Sequential(
            nn.Conv2d(width, width // 16, 1), nn.ReLU(), nn.Conv2d(width // 16, width, 1), nn.Sigmoid()
        )

    def forward(self, x: Tensor) -> Tensor:
        mean = x.float().mean(dim=(2, 3), keepdim=True)  # (N, C, 1, 1), float32 as in global_mean
        variance = global_mean((x.float() - mean).square())
        if self.training:
            variance = variance.clamp_min(1e-24)  # the root of a constant channel has no gradient
        return x * self.conv_du((mean + variance.sqrt()).to(x.dtype))


class Block(Distillation):
    """ESDB: distillation with residual refinement, spatial and channel attention, around a skip."""

    def __init__(self, width: int) -> None:
        super().__init__(width, residual=True)
        self.esa = PooledAttention(width, width // 4, conv=BlueprintConv, activation=F.gelu)
        self.cca = ContrastAttention(width)

    def forward(self, x: Tensor) -> Tensor:
        z = super().forward(x)  # (N, C, H, W)
        return self.cca(self.esa(z)) + x


class Bsrn(nn.Module):
    """BSRN: (N, 3, H, W) float RGB in [0, 1] to (N, 3, scale·H, scale·W), unclamped; H, W of at least 15."""

    def __init__(self, scale: int = 4, *, width: int = 64, blocks: int = 8) -> None:
        super().__init__()
        self.scale = scale
        self.copies = 4  # of the image, on the channel axis; folding makes it 1
        self.fea_conv = BlueprintConv(3 * self.copies, width)
        self.block_names = [f"B{k}" for k in range(1, blocks + 1)]
        for name in self.block_names:
            self.add_module(name, Block(width))
        self.c1 = nn.Conv2d(blocks * width, width, 1)
        self.c2 = BlueprintConv(width, width)
        self.upsampler = nn.Sequential()
        self.upsampler.add_module(
            "upsampleOneStep", nn.Sequential(conv3x3(width, 3 * scale * scale), nn.PixelShuffle(scale))
        )

    def forward(self, x: Tensor) -> Tensor:
        shallow = self.fea_conv(torch.cat([x] * self.copies, dim=1))  # 12 -> (N, C, H, W)
        h, stages = shallow, []
        for name in self.block_names:
            h = self.get_submodule(name)(h)
            stages.append(h)
        deep = self.c2(F.gelu(self.c1(torch.cat(stages, dim=1))))  # 8C -> C
        return self.upsampler(deep + shallow)  # (N, 3, sH, sW)
