"""EFDN, the edge-enhanced feature distillation network, in its deployed (re-parameterised) form.

Source: Wang, "Edge-Enhanced Feature Distillation Network for Efficient Super-Resolution", CVPR Workshops 2022; key for
key the x4 file of the NTIRE 2022 challenge, in which the training branches are already merged. C is the width, 48.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn

from model.blocks import PooledAttention, conv3x3


def _activated(name: str, conv: nn.Conv2d) -> nn.Sequential:
    """A convolution under its released name, then PReLU with a slope per channel, of either sign and above 1 too."""
    return nn.Sequential(OrderedDict([(name, conv), ("act", nn.PReLU(conv.out_channels))]))


class Cell(nn.Module):
    """EFDB: a chain of three convolutions, half the width taken at each of its four points, fused and attended."""

    def __init__(self, width: int) -> None:
        super().__init__()
        half = width // 2
        self.conv1 = _activated("conv1x1", nn.Conv2d(width, width, 1))
        self.conv2 = _activated("rep_conv", conv3x3(width, width))
        self.conv3 = _activated("rep_conv", conv3x3(width, width))
        self.fuse = nn.Conv2d(4 * half, width, 1)
        self.att = PooledAttention(width, width // 4)
        self.branch = nn.ModuleList(nn.Conv2d(width, half, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        r1 = self.conv1(x)  # (N, C, H, W)
        r2 = self.conv2(r1)
        r3 = self.conv3(r2)
        kept = [branch(r) for branch, r in zip(self.branch, (x, r1, r2, r3), strict=True)]  # (N, C/2, H, W) each
        return self.att(self.fuse(torch.cat(kept, dim=1))) + x


class Efdn(nn.Module):
    """EFDN: (N, 3, H, W) float RGB in [0, 1] to (N, 3, scale·H, scale·W); H, W of at least 15.

    Unclamped, as every network here: the official one clamps to [0, 1] as its last step, which hides errors and kills
    gradients. Released for x4 only.
    """

    def __init__(self, scale: int = 4, *, width: int = 48) -> None:
        super().__init__()
        self.scale = scale
        self.head = conv3x3(3, width)
        self.cells = nn.ModuleList(Cell(width) for _ in range(4))
        self.local_fuse = nn.ModuleList(nn.Conv2d(2 * width, width, 1) for _ in range(3))
        self.tail = nn.Sequential(conv3x3(width, 3 * scale * scale), nn.PixelShuffle(scale))

    def forward(self, x: Tensor) -> Tensor:
        shallow = self.head(x)  # (N, C, H, W)
        o1 = self.cells[0](shallow)
        o2 = self.cells[1](o1)
        o3 = self.cells[2](self.local_fuse[0](torch.cat((o1, o2), dim=1)))  # 2C -> C
        o4 = self.cells[3](self.local_fuse[1](torch.cat((o2, o3), dim=1)))
        deep = self.local_fuse[2](torch.cat((o2, o4), dim=1))  # the second cell again, not the third
        return self.tail(deep + shallow)  # (N, 3, sH, sW)
