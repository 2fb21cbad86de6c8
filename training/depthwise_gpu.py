"""Depth-wise convolutions that train faster on an NVIDIA GPU, in Triton, which PyTorch brings along there.

For (N, C, H, W) in channels-last memory, any batch and size, in float32 or bfloat16; sums are float32. The weight
gradient is summed in a fixed order, so that a step gives the same bits every time.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor, nn

from training.depthwise import is_depthwise

_COLUMNS = 16
"""Positions of a row that one program of a kernel works on at a time."""
_CHUNKS = 96
"""Into how many parts the rows of a batch are split to sum a weight gradient."""


def with_gpu_depthwise(model: nn.Module) -> nn.Module:
    """Replace, in place, every depth-wise convolution that the kernels can do; the state dict stays the same."""
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if is_depthwise(child):
                setattr(parent, name, GpuDepthwise(child))
    return model


class GpuDepthwise(nn.Module):
    """An ``nn.Conv2d`` with its groups equal to its channels, for (N, C, H, W) on a GPU; kernels of 3, 5 or 7."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.weight, self.bias = conv.weight, conv.bias
        self.dilation = conv.dilation[0]

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))
        result: Tensor = _depthwise(x, self.weight, self.bias, self.dilation)
        return result


@torch.library.custom_op("gmin::depthwise", mutates_args=())
def _depthwise(x: Tensor, weight: Tensor, bias: Tensor, dilation: int) -> Tensor:
    return _convolve(x, _taps(weight), bias, weight.shape[-1], dilation)


@_depthwise.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor, dilation: int) -> Tensor:
    return torch.empty_like(x, memory_format=torch.channels_last)


@torch.library.custom_op("gmin::depthwise_input_gradient", mutates_args=())
def _input_gradient(gradient: Tensor, weight: Tensor, dilation: int) -> Tensor:
    return _convolve(gradient, _taps(weight).flip(0), None, weight.shape[-1], dilation)  # the kernel turned by half


@_input_gradient.register_fake
def _(gradient: Tensor, weight: Tensor, dilation: int) -> Tensor:
    return torch.empty_like(gradient, memory_format=torch.channels_last)


@torch.library.custom_op("gmin::depthwise_weight_gradient", mutates_args=())
def _weight_gradient(x: Tensor, gradient: Tensor, weight: Tensor, dilation: int) -> Tensor:
    x, x_stride = _pixels(x)
    gradient, gradient_stride = _pixels(gradient)
    n, c, height, width = x.shape
    k = weight.shape[-1]
    rows = n * height
    chunks = min(_CHUNKS, rows)
    parts = torch.empty(chunks, k * k, c, dtype=torch.float32, device=x.device)
    block = min(64, triton.next_power_of_2(c))
    _weight_gradient_kernel[(k, triton.cdiv(c, block), chunks)](
        x, gradient, parts, rows, height, width, c, x_stride, gradient_stride, triton.cdiv(rows, chunks), dilation,
        K=k, BLOCK=block, COLUMNS=_COLUMNS, num_warps=4,
    )  # fmt: skip
    return torch.empty_like(weight).copy_(parts.sum(0).t().view_as(weight))


@_weight_gradient.register_fake
def _(x: Tensor, gradient: Tensor, weight: Tensor, dilation: int) -> Tensor:
    return torch.empty_like(weight)


def _remember(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, _, ctx.dilation = inputs
    ctx.save_for_backward(x, weight)


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor, Tensor, None]:
    x, weight = ctx.saved_tensors
    dx = _input_gradient(gradient, weight, ctx.dilation) if ctx.needs_input_grad[0] else None
    dw = _weight_gradient(x, gradient, weight, ctx.dilation)
    return dx, dw, gradient.sum(dim=(0, 2, 3), dtype=torch.float32), None


_depthwise.register_autograd(_backward, setup_context=_remember)


def _taps(weight: Tensor) -> Tensor:
    return weight.detach().flatten(1).t().contiguous()  # (C, 1, k, k) -> (k*k, C)


def _pixels(x: Tensor) -> tuple[Tensor, int]:
    """``x`` with its channels side by side, and the way to the next pixel; a part of the channels stays in place."""
    _, _, height, width = x.shape
    far = x.stride(3)
    if x.stride() != (height * width * far, 1, width * far, far):
        x = x.contiguous(memory_format=torch.channels_last)
        far = x.shape[1]
    return x, far


def _convolve(x: Tensor, taps: Tensor, bias: Tensor | None, k: int, dilation: int) -> Tensor:
    x, stride = _pixels(x)
    n, c, height, width = x.shape
    result = torch.empty((n, c, height, width), dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    block = min(64, triton.next_power_of_2(c))
    _forward_kernel[(n * height, triton.cdiv(width, _COLUMNS), triton.cdiv(c, block))](
        x, taps, taps if bias is None else bias, result, height, width, c, stride, dilation,
        K=k, HAS_BIAS=bias is not None, BLOCK=block, COLUMNS=_COLUMNS, num_warps=4,
    )  # fmt: skip
    return result


@triton.jit
def _forward_kernel(
    x, taps, bias, result, height, width, c, stride, dilation,
    K: tl.constexpr, HAS_BIAS: tl.constexpr, BLOCK: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)  # of all pictures, one under the other
    line = (row % height).to(tl.int32)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    channels = tl.program_id(2) * BLOCK + tl.arange(0, BLOCK)
    inside = channels < c
    total = tl.zeros((COLUMNS, BLOCK), tl.float32)
    if HAS_BIAS:
        total += tl.load(bias + channels, mask=inside, other=0.0).to(tl.float32)[None, :]
    here = x + row * width * stride + channels[None, :]
    for ky in tl.static_range(K):
        down = (ky - K // 2) * dilation
        if (line + down >= 0) & (line + down < height):
            for kx in tl.static_range(K):
                at = columns + (kx - K // 2) * dilation
                mask = ((at >= 0) & (at < width))[:, None] & inside[None, :]
                value = tl.load(here + (down * width + at)[:, None] * stride, mask=mask, other=0.0)
                tap = tl.load(taps + (ky * K + kx) * c + channels, mask=inside, other=0.0)
                total += value.to(tl.float32) * tap.to(tl.float32)[None, :]
    target = result + (row * width + columns)[:, None] * c + channels[None, :]
    tl.store(target, total.to(result.dtype.element_ty), mask=(columns < width)[:, None] & inside[None, :])


@triton.jit
def _products(x_row, g, columns, width, inside, stride, shift):
    at = columns + shift
    mask = ((at >= 0) & (at < width))[:, None] & inside[None, :]
    return g * tl.load(x_row + at[:, None] * stride, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _weight_gradient_kernel(
    x, gradient, parts, rows, height, width, c, x_stride, gradient_stride, rows_each, dilation,
    K: tl.constexpr, BLOCK: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    ky = tl.program_id(0)  # one row of taps: its K sums share the gradient that is read
    channels = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    chunk = tl.program_id(2)
    inside = channels < c
    down = (ky - K // 2) * dilation
    s0 = tl.zeros((COLUMNS, BLOCK), tl.float32)
    s1 = tl.zeros((COLUMNS, BLOCK), tl.float32)
    s2 = tl.zeros((COLUMNS, BLOCK), tl.float32)
    s3 = tl.zeros((COLUMNS, BLOCK), tl.float32)
    s4 = tl.zeros((COLUMNS, BLOCK), tl.float32)
    s5 = tl.zeros((COLUMNS, BLOCK), tl.float32)
    s6 = tl.zeros((COLUMNS, BLOCK), tl.float32)
    first = -(K // 2) * dilation
    for step in range(rows_each):
        row = chunk.to(tl.int64) * rows_each + step
        line = row % height + down
        if (row < rows) & (line >= 0) & (line < height):
            x_row = x + (row + down) * width * x_stride + channels[None, :]
            g_row = gradient + row * width * gradient_stride + channels[None, :]
            for start in range(0, width, COLUMNS):
                columns = start + tl.arange(0, COLUMNS)
                here = (columns < width)[:, None] & inside[None, :]
                g = tl.load(g_row + columns[:, None] * gradient_stride, mask=here, other=0.0).to(tl.float32)
                s0 += _products(x_row, g, columns, width, inside, x_stride, first)
                s1 += _products(x_row, g, columns, width, inside, x_stride, first + dilation)
                s2 += _products(x_row, g, columns, width, inside, x_stride, first + 2 * dilation)
                if K > 3:
                    s3 += _products(x_row, g, columns, width, inside, x_stride, first + 3 * dilation)
                    s4 += _products(x_row, g, columns, width, inside, x_stride, first + 4 * dilation)
                if K > 5:
                    s5 += _products(x_row, g, columns, width, inside, x_stride, first + 5 * dilation)
                    s6 += _products(x_row, g, columns, width, inside, x_stride, first + 6 * dilation)
    target = parts + (chunk * K * K + ky * K) * c + channels
    tl.store(target, tl.sum(s0, 0), mask=inside)
    tl.store(target + c, tl.sum(s1, 0), mask=inside)
    tl.store(target + 2 * c, tl.sum(s2, 0), mask=inside)
    if K > 3:
        tl.store(target + 3 * c, tl.sum(s3, 0), mask=inside)
        tl.store(target + 4 * c, tl.sum(s4, 0), mask=inside)
    if K > 5:
        tl.store(target + 5 * c, tl.sum(s5, 0), mask=inside)
        tl.store(target + 6 * c, tl.sum(s6, 0), mask=inside)
