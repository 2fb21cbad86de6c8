"""Depth-wise convolutions that train faster on a CPU.

In PyTorch 2.13 on x86, channels last, the weight gradient of a 5×5 or 7×7 depth-wise convolution takes 15 to 25 times
as long as the forward pass, and a dilated one is slow in every direction; together they are a third of a training
step of GMIN. The kernels in ``depthwise.c`` are compiled on first use with the system's C compiler.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn

from runtime.errors import UserError

_SOURCE = Path(__file__).with_suffix(".c")


def with_fast_depthwise(model: nn.Module) -> nn.Module:
    """Replace, in place, every depth-wise convolution that the kernels can do; the state dict stays the same.

    Raises:
        UserError: there is no C compiler, or it fails.
    """
    _library()
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if is_depthwise(child):
                setattr(parent, name, FastDepthwise(child))
    return model


class FastDepthwise(nn.Module):
    """An ``nn.Conv2d`` with its groups equal to its channels, for (N, C, H, W) float32 on a CPU."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.weight, self.bias = conv.weight, conv.bias
        self.dilation = conv.dilation[0]

    def forward(self, x: Tensor) -> Tensor:
        return depthwise(x, self.weight, self.bias, self.dilation)


def depthwise(x: Tensor, weight: Tensor, bias: Tensor | None, dilation: int) -> Tensor:
    """A depth-wise convolution of (N, C, H, W) with (C, 1, k, k), padded to keep the size, that can be learnt through.

    Raises:
        TypeError: something is not float32 on a CPU.
    """
    if x.dtype != torch.float32 or x.device.type != "cpu" or weight.dtype != torch.float32:
        raise TypeError(f"the kernels read float32 on a CPU, not {x.dtype} on {x.device}")
    if bias is None:
        raise TypeError("the kernels add a bias")
    result: Tensor = _Depthwise.apply(x, weight, bias, dilation)
    return result


def can_do(weight: Sequence[int], groups: int, strides: Sequence[int], dilations: Sequence[int], pads: int) -> bool:
    """Whether ``depthwise`` computes the convolution of these properties.

    Args:
        weight: shape, (O, I / groups, k, k).
        groups: number of.
        strides: down and across.
        dilations: down and across.
        pads: zeros on each of the four sides.
    """
    kernel, dilation = weight[-1], dilations[0]
    return (
        groups == weight[0]
        and weight[1] == 1
        and groups % 8 == 0
        and tuple(weight[2:]) in {(3, 3), (5, 5), (7, 7)}
        and tuple(strides) == (1, 1)
        and tuple(dilations) == (dilation, dilation)
        and pads == dilation * (kernel // 2)
    )


def is_depthwise(module: nn.Module) -> TypeGuard[nn.Conv2d]:
    """Whether the kernels compute this module, and learn it."""
    if type(module) is not nn.Conv2d or module.bias is None or module.padding_mode != "zeros":
        return False
    if isinstance(module.padding, str) or module.padding[0] != module.padding[1]:
        return False
    return can_do(module.weight.shape, module.groups, module.stride, module.dilation, module.padding[0])


class _Depthwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, dilation: int) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        ctx.save_for_backward(x, weight)
        ctx.dilation = dilation
        return _convolve(x, _taps(weight), bias, weight.shape[-1], dilation)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor, Tensor, None]:
        x, weight = ctx.saved_tensors
        gradient = gradient.contiguous(memory_format=torch.channels_last)
        k, dilation = weight.shape[-1], ctx.dilation
        dx = None
        if ctx.needs_input_grad[0]:  # the same convolution with its kernel turned by half
            dx = _convolve(gradient, _taps(weight).flip(0).contiguous(), None, k, dilation)
        n, c, height, width = x.shape
        dw, db = torch.zeros(n, k * k, c), torch.zeros(n, c)
        function = _library().depthwise_weight_gradient

        def image(i: int) -> None:
            scratch = _scratch(height, width, c, k, dilation)
            pointers = (x[i], gradient[i], dw[i], db[i], scratch)
            function(*(tensor.data_ptr() for tensor in pointers), height, width, c, k, dilation)

        _each(image, n)
        # (k*k, C) to (C, 1, k, k) in the weight's own strides, which torchrun's gradient buckets have as well
        gradient_of_weight = torch.empty_like(weight).copy_(dw.sum(0).t().view_as(weight))
        return dx, gradient_of_weight, db.sum(0), None


def _convolve(x: Tensor, taps: Tensor, bias: Tensor | None, k: int, dilation: int) -> Tensor:
    n, c, height, width = x.shape
    result = torch.empty_like(x)
    offset = None if bias is None else bias.data_ptr()
    function = _library().depthwise_forward

    def image(i: int) -> None:
        scratch = _scratch(height, width, c, k, dilation)
        function(
            x[i].data_ptr(), taps.data_ptr(), offset, result[i].data_ptr(), scratch.data_ptr(),
            height, width, c, k, dilation,
        )  # fmt: skip

    _each(image, n)
    return result


def _taps(weight: Tensor) -> Tensor:
    return weight.detach().flatten(1).t().contiguous()  # (C, 1, k, k) -> (k*k, C)


def _scratch(height: int, width: int, c: int, k: int, dilation: int) -> Tensor:
    return torch.empty(height * (width + 2 * dilation * (k // 2)) * c)


def _each(work: Callable[[int], None], count: int) -> None:
    threads = torch.get_num_threads()
    if threads == 1 or count == 1:
        for i in range(count):
            work(i)
    else:
        list(_pool(threads).map(work, range(count)))  # ctypes lets go of the interpreter lock


@lru_cache(maxsize=1)
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads)


@lru_cache(maxsize=1)
def _library() -> ctypes.CDLL:
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        raise UserError("Fast depth-wise training needs a C compiler: install gcc, or use --cpu-kernels torch.")
    folder = Path(tempfile.mkdtemp(prefix="gmin-depthwise-"))
    built = folder / f"{hashlib.sha256(_SOURCE.read_bytes()).hexdigest()[:16]}.so"
    command = [compiler, "-O3", "-march=native", "-std=gnu11", "-shared", "-fPIC", str(_SOURCE), "-o", str(built)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 -- our own source
        if done.returncode:
            raise UserError(f"{compiler} could not build {_SOURCE.name}: {done.stderr.strip()[:300]}")
        library = ctypes.CDLL(str(built))
    finally:
        shutil.rmtree(folder, ignore_errors=True)  # a loaded library outlives its file
    for name in ("depthwise_forward", "depthwise_weight_gradient"):
        getattr(library, name).argtypes = [ctypes.c_void_p] * 5 + [ctypes.c_int] * 5
        getattr(library, name).restype = None
    return library
