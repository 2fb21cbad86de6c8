"""LKDN, the large-kernel distillation network.

Source: Xie et al., "Large Kernel Distillation Network for Efficient Single Image Super-Resolution", CVPR Workshops
2023; key for key the released LKDN_x2, x3 and x4 files (their ``params_ema``). C is the width, 56.

The released weights overflow half precision: the attention product is unbounded, and pixel norm hides that from the
output. ``model.rescaling.rescale_lkdn`` cures it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from model.blocks import Distillation, DistillationTrunk, conv3x3, depthwise, widened


class LargeKernelAttention(nn.Module):
    """Its input times a 1×1, a 5×5 and a dilated 5×5 depth-wise convolution of it; the 1×1 first, unlike VAN's."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.pointwise = nn.Conv2d(width, width, 1)
        self.depthwise = depthwise(width, 5)
        self.depthwise_dilated = depthwise(width, 5, dilation=3)

    def forward(self, z: Tensor) -> Tensor:
        return z * self.depthwise_dilated(self.depthwise(self.pointwise(z)))


class PixelNorm(nn.Module):
    """LayerNorm over the channels at every pixel by itself.

    Written on the channel axis: ``LayerNorm`` wants channels last, and its two transposes would be exported.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.eps = 1e-5
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        # In float32 even in a float16 network: rescaling makes the eps too small for less.
        wide = widened(x)  # (N, C, H, W)
        deviation = wide - wide.mean(dim=1, keepdim=True)
        variance = deviation.square().mean(dim=1, keepdim=True)  # (N, 1, H, W), biased
        normal = (deviation / (variance + self.eps).sqrt()).to(x.dtype)
        return normal * self.weight.view(-1, 1, 1) + self.bias.view(-1, 1, 1)


class Block(Distillation):
    """LKDB: distillation, large-kernel attention, a 1×1 convolution and pixel norm, around a skip."""

    def __init__(self, width: int) -> None:
        super().__init__(width, residual=False)
        self.atten = LargeKernelAttention(width)
        self.c6 = nn.Conv2d(width, width, 1)
        self.pixel_norm = PixelNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        z = super().forward(x)  # (N, C, H, W)
        return self.pixel_norm(self.c6(self.atten(z))) + x


class Lkdn(DistillationTrunk):
    """LKDN: (N, 3, H, W) float RGB in [0, 1] to (N, 3, scale·H, scale·W), unclamped; any H, W of at least 1."""

    def __init__(self, scale: int = 4, *, width: int = 56, blocks: int = 8) -> None:
        super().__init__(width, [Block(width) for _ in range(blocks)])
        self.scale = scale
        self.upsampler = nn.Sequential(conv3x3(width, 3 * scale * scale), nn.PixelShuffle(scale))

    def forward(self, x: Tensor) -> Tensor:
        deep = super().forward(x)  # 8 blocks, fused, plus the shallow features: (N, C, H, W)
        return self.upsampler(deep)  # (N, 3, sH, sW)
