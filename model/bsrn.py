"""BSRN, the blueprint separable residual network.

Source: Li et al., "Blueprint Separable Residual Network for Efficient Image Super-Resolution", CVPR Workshops 2022;
key for key the released net_g_BSRN_x2, x3 and x4 files. C is the width, 64.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from model.blocks import BlueprintConv, Distillation, DistillationTrunk, PooledAttention, conv3x3, global_mean, widened


class ContrastAttention(nn.Module):
    """CCA: each channel weighted by a function of all channels' means and standard deviations over the frame."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv_du = nn.Sequential(
            nn.Conv2d(width, width // 16, 1), nn.ReLU(), nn.Conv2d(width // 16, width, 1), nn.Sigmoid()
        )

    def forward(self, x: Tensor) -> Tensor:
        wide = widened(x)
        mean = global_mean(wide)  # (N, C, 1, 1)
        variance = global_mean((wide - mean).square())
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


class Bsrn(DistillationTrunk):
    """BSRN: (N, 3, H, W) float RGB in [0, 1] to (N, 3, scale·H, scale·W), unclamped; H, W of at least 15."""

    def __init__(self, scale: int = 4, *, width: int = 64, blocks: int = 8) -> None:
        super().__init__(width, [Block(width) for _ in range(blocks)])
        self.scale = scale
        self.upsampler = nn.Sequential()
        self.upsampler.add_module(
            "upsampleOneStep", nn.Sequential(conv3x3(width, 3 * scale * scale), nn.PixelShuffle(scale))
        )

    def forward(self, x: Tensor) -> Tensor:
        deep = super().forward(x)  # 8 blocks, fused, plus the shallow features: (N, C, H, W)
        return self.upsampler(deep)  # (N, 3, sH, sW)
