"""Building blocks that several networks share because they really are the same."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812


def conv3x3(inputs: int, outputs: int, *, stride: int = 1, padding: int = 1) -> nn.Conv2d:
    """An ordinary 3×3 convolution with bias."""
    return nn.Conv2d(inputs, outputs, 3, stride=stride, padding=padding)


def depthwise(width: int, kernel: int, *, dilation: int = 1) -> nn.Conv2d:
    """A depth-wise convolution with bias that keeps height and width."""
    return nn.Conv2d(width, width, kernel, padding=dilation * (kernel // 2), dilation=dilation, groups=width)


def widened(x: Tensor) -> Tensor:
    """``x`` in float32, or float64 if it is: what half precision must not be summed in."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def global_mean(x: Tensor) -> Tensor:
    """Mean over height and width, (N, C, 1, 1), at least in float32: a half-precision sum over a frame overflows."""
    return widened(x).mean(dim=(2, 3), keepdim=True).to(x.dtype)


class BlueprintConv(nn.Module):
    """Blueprint separable convolution (BSConv-U): a 1×1 without bias, then a depth-wise with bias.

    Source: Haase and Amthor, "Rethinking Depthwise Separable Convolutions", CVPR 2020, in the form of BSRN and LKDN.
    """

    def __init__(self, inputs: int, outputs: int, *, kernel: int = 3, stride: int = 1, padding: int = 1) -> None:
        super().__init__()
        self.pw = nn.Conv2d(inputs, outputs, 1, bias=False)
        self.dw = nn.Conv2d(outputs, outputs, kernel, stride=stride, padding=padding, groups=outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.dw(self.pw(x))


class Distillation(nn.Module):
    """The distillation chain of BSRN and LKDN: half the width is kept at each of four steps, then all are fused.

    Source: RFDN (Liu et al. 2020) with blueprint convolutions, as in BSRN (Li et al. 2022). BSRN adds each refinement
    to its input (``residual``), LKDN does not.
    """

    def __init__(self, width: int, *, residual: bool) -> None:
        super().__init__()
        half = width // 2
        self.residual = residual
        self.c1_d = nn.Conv2d(width, half, 1)
        self.c1_r = BlueprintConv(width, width)
        self.c2_d = nn.Conv2d(width, half, 1)
        self.c2_r = BlueprintConv(width, width)
        self.c3_d = nn.Conv2d(width, half, 1)
        self.c3_r = BlueprintConv(width, width)
        self.c4 = BlueprintConv(width, half)
        self.c5 = nn.Conv2d(4 * half, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        kept: list[Tensor] = []
        for distill, refine in ((self.c1_d, self.c1_r), (self.c2_d, self.c2_r), (self.c3_d, self.c3_r)):
            kept.append(F.gelu(distill(x)))  # (N, C/2, H, W)
            x = F.gelu(refine(x) + x if self.residual else refine(x))  # (N, C, H, W)
        kept.append(F.gelu(self.c4(x)))
        return self.c5(torch.cat(kept, dim=1))  # 2C -> C


class DistillationTrunk(nn.Module):
    """What BSRN and LKDN have in common: blocks in a row on four copies of the image, all of them fused."""

    def __init__(self, width: int, blocks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.copies = 4  # of the image, on the channel axis; folding makes it 1
        self.fea_conv = BlueprintConv(3 * self.copies, width)
        self.block_names = [f"B{k}" for k in range(1, len(blocks) + 1)]
        for name, block in zip(self.block_names, blocks, strict=True):
            self.add_module(name, block)
        self.c1 = nn.Conv2d(len(blocks) * width, width, 1)
        self.c2 = BlueprintConv(width, width)

    def forward(self, x: Tensor) -> Tensor:
        shallow = self.fea_conv(torch.cat([x] * self.copies, dim=1))  # 12 -> (N, C, H, W)
        h, stages = shallow, []
        for name in self.block_names:
            h = self.get_submodule(name)(h)
            stages.append(h)
        return self.c2(F.gelu(self.c1(torch.cat(stages, dim=1)))) + shallow  # nC -> C


class PooledAttention(nn.Module):
    """ESA, enhanced spatial attention: a map computed on a coarse grid multiplies the input; at least 15×15 pixels.

    Source: RFANet (Liu et al. 2020). BSRN, HNCT and EFDN use it whole, with their own convolutions and activation;
    RLFN ``reduced`` to one coarse convolution without activation. A smaller input leaves the pool nothing to give, and
    PyTorch raises ``RuntimeError``.
    """

    def __init__(
        self,
        width: int,
        inner: int,
        *,
        conv: Callable[..., nn.Module] = conv3x3,
        activation: Callable[[Tensor], Tensor] = F.relu,
        reduced: bool = False,
    ) -> None:
        super().__init__()
        self.activation = activation
        self.reduced = reduced
        self.conv1 = nn.Conv2d(width, inner, 1)
        self.conv_f = nn.Conv2d(inner, inner, 1)
        if not reduced:
            self.conv_max = conv(inner, inner)
        self.conv2 = conv(inner, inner, stride=2, padding=0)
        self.conv3 = conv(inner, inner)
        if not reduced:
            self.conv3_ = conv(inner, inner)
        self.conv4 = nn.Conv2d(inner, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = self.conv1(x)  # (N, f, H, W)
        coarse = F.max_pool2d(self.conv2(a), 7, stride=3)  # 180×320 -> 89×159 -> 28×51
        if self.reduced:
            coarse = self.conv3(coarse)
        else:
            coarse = self.conv3_(self.activation(self.conv3(self.activation(self.conv_max(coarse)))))
        # By size, not by a factor: the ratio is no integer, and a constant one breaks the exported graph elsewhere.
        coarse = F.interpolate(coarse, size=x.shape[2:], mode="bilinear", align_corners=False)
        return x * torch.sigmoid(self.conv4(coarse + self.conv_f(a)))
