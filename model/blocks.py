"""Building blocks that several networks share because they really are the same."""

from __future__ import annotations

from torch import Tensor, nn


def depthwise(width: int, kernel: int, *, dilation: int = 1) -> nn.Conv2d:
    """A depth-wise convolution with bias that keeps height and width."""
    return nn.Conv2d(width, width, kernel, padding=dilation * (kernel // 2), dilation=dilation, groups=width)


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
