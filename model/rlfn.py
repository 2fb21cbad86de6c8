"""RLFN, the residual local feature network.

Source: Kong et al., "Residual Local Feature Network for Efficient Super-Resolution", CVPR Workshops 2022; key for key
the released rlfn_x4 file. C is the width, 52.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from model.blocks import PooledAttention, conv3x3

_SLOPE = 0.05


class Block(nn.Module):
    """RLFB: three convolutions, the skip over them, a 1×1, and the reduced spatial attention; no skip around it all."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.c1_r = conv3x3(width, width)
        self.c2_r = conv3x3(width, width)
        self.c3_r = conv3x3(width, width)
        self.c5 = nn.Conv2d(width, width, 1)
        self.esa = PooledAttention(width, 16, reduced=True)

    def forward(self, x: Tensor) -> Tensor:
        t = F.leaky_relu(self.c1_r(x), _SLOPE)  # (N, C, H, W)
        t = F.leaky_relu(self.c2_r(t), _SLOPE)
        t = F.leaky_relu(self.c3_r(t), _SLOPE)
        return self.esa(self.c5(t + x))


class Rlfn(nn.Module):
    """RLFN: (N, 3, H, W) float RGB in [0, 1] to (N, 3, scale·H, scale·W), unclamped; H, W of at least 15.

    The released weights work on [0, 255]; ``forward`` converts on the way in and out. Folding moves the factors into
    the first and the last convolution.
    """

    def __init__(self, scale: int = 4, *, width: int = 52, blocks: int = 6) -> None:
        super().__init__()
        self.scale = scale
        self.pixel_range = 255.0  # folding makes it 1
        self.conv_1 = conv3x3(3, width)
        self.block_names = [f"block_{k}" for k in range(1, blocks + 1)]
        for name in self.block_names:
            self.add_module(name, Block(width))
        self.conv_2 = conv3x3(width, width)
        self.upsampler = nn.Sequential(conv3x3(width, 3 * scale * scale), nn.PixelShuffle(scale))

    def forward(self, x: Tensor) -> Tensor:
        if self.pixel_range != 1:
            x = x * self.pixel_range
        shallow = self.conv_1(x)  # (N, C, H, W)
        h = shallow
        for name in self.block_names:
            h = self.get_submodule(name)(h)
        y = self.upsampler(self.conv_2(h) + shallow)  # (N, 3, sH, sW)
        return y / self.pixel_range if self.pixel_range != 1 else y
