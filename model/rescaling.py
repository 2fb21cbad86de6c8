"""LKDN's hidden scale, taken out: the same output, and activations that float16 and INT8 can hold.

Pixel norm divides by the deviation of what it gets, so training never bounded the attention product before it: the
released x4 weights reach 1e10 there. Multiplying each convolution between the distillation and pixel norm by a power
of two, and the norm's eps by the square of what arrives there, changes no bit of the float32 output.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from model.lkdn import Block, Lkdn

_PEAK = 8.0  # the largest activation seen lands in (4, 8]: 2^13 below the end of float16


@torch.no_grad()
def rescale_lkdn(model: Lkdn, images: Iterable[Tensor]) -> Lkdn:
    """A copy of ``model`` whose activations on ``images`` stay below 8, products of two of them below 64.

    The eps of each pixel norm is compensated and is no part of the state dict: save the exported file, not the state.

    Args:
        model: LKDN with trained weights, folded or not.
        images: (N, 3, H, W) float32 RGB in [0, 1]; a few photographs do, for the range has a wide margin.

    Raises:
        ValueError: there are no images, or an activation on them is not finite.
    """
    rescaled = copy.deepcopy(model).eval()
    blocks = [module for module in rescaled.modules() if isinstance(module, Block)]
    peaks = _peaks([conv for block in blocks for conv in _chain(block)], rescaled, images)
    for block in blocks:
        c5, pointwise, near, far, c6 = _chain(block)
        scale_c5 = _rescale(c5, 1.0, peaks[c5])
        scale = _rescale(pointwise, scale_c5, peaks[pointwise])
        scale = _rescale(near, scale, peaks[near])
        scale = _rescale(far, scale, peaks[far])
        scale = _rescale(c6, scale_c5 * scale, peaks[c6])  # c6 reads the product of the two branches
        block.pixel_norm.eps *= scale**2
    return rescaled


def _chain(block: Block) -> tuple[nn.Conv2d, ...]:
    attention = block.atten
    return block.c5, attention.pointwise, attention.depthwise, attention.depthwise_dilated, block.c6


def _peaks(convs: list[nn.Conv2d], model: Lkdn, images: Iterable[Tensor]) -> dict[nn.Module, float]:
    """Largest magnitude that each convolution gives on the images."""
    peaks: dict[nn.Module, float] = dict.fromkeys(convs, 0.0)

    def record(conv: nn.Module, _: object, output: Tensor) -> None:
        peak = float(output.abs().max())
        if not math.isfinite(peak):
            raise ValueError("an activation of LKDN is not finite on the calibration images")
        peaks[conv] = max(peaks[conv], peak)

    hooks = [conv.register_forward_hook(record) for conv in convs]
    seen = False
    try:
        for image in images:
            model(image)
            seen = True
    finally:
        for hook in hooks:
            hook.remove()
    if not seen:
        raise ValueError("rescaling LKDN needs at least one calibration image")
    return peaks


def _rescale(conv: nn.Conv2d, input_scale: float, peak: float) -> float:
    """Make ``conv`` read input times ``input_scale`` and give an output that fits, in place; return its scale."""
    output_scale = 2.0 ** math.floor(math.log2(_PEAK / peak)) if peak > 0 else 1.0
    assert conv.bias is not None
    conv.weight.mul_(output_scale / input_scale)
    conv.bias.mul_(output_scale)
    return output_scale
