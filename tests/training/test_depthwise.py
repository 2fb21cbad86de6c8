"""The compiled kernels against PyTorch's convolution, forward and backward."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from runtime.errors import UserError
from training import depthwise
from training.depthwise import FastDepthwise, with_fast_depthwise

CASES = [(64, 3, 1), (24, 5, 2), (32, 7, 3), (8, 5, 1), (16, 7, 1)]


@pytest.mark.parametrize(("channels", "kernel", "dilation"), CASES)
@pytest.mark.parametrize("size", [(13, 9), (1, 1), (2, 30)])
def test_same_as_pytorch(channels: int, kernel: int, dilation: int, size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(channels, channels, kernel, padding=dilation * (kernel // 2), dilation=dilation, groups=channels)
    x, slope = torch.randn(3, channels, *size, requires_grad=True), torch.randn(3, channels, *size)

    def everything(module: nn.Module) -> tuple[torch.Tensor, ...]:
        y = module(x)
        return (y.detach(), *torch.autograd.grad(y, [x, conv.weight, conv.bias], slope))

    for ours, theirs in zip(everything(FastDepthwise(conv)), everything(conv), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_threads_do_not_change_a_bit() -> None:
    torch.manual_seed(0)
    conv = FastDepthwise(nn.Conv2d(64, 64, 5, padding=2, groups=64))
    x = torch.randn(5, 64, 20, 20)
    before = torch.get_num_threads()
    try:
        gradients = []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            gradients.append(torch.autograd.grad(conv(x).square().sum(), list(conv.parameters())))
    finally:
        torch.set_num_threads(before)
    for one, two in zip(*gradients, strict=True):
        assert torch.equal(one, two)


def test_replaces_what_it_can_do_and_keeps_the_state_dict() -> None:
    class Net(nn.Sequential):
        def __init__(self) -> None:
            super().__init__(
                nn.Conv2d(3, 16, 3, padding=1),
                nn.Conv2d(16, 16, 5, padding=2, groups=16),
                nn.Conv2d(16, 16, 5, padding=1, groups=16),  # shrinks
                nn.Conv2d(16, 16, 3, padding=1, groups=2),
                nn.Conv2d(16, 16, 3, padding=1, groups=16, bias=False),
            )

    plain = Net()
    fast = with_fast_depthwise(copy.deepcopy(plain))
    assert [type(module) is FastDepthwise for module in fast] == [False, True, False, False, False]
    assert list(fast.state_dict()) == list(plain.state_dict())
    assert [name for name, _ in fast.named_parameters()] == [name for name, _ in plain.named_parameters()]
    x = torch.rand(1, 3, 12, 12)
    torch.testing.assert_close(fast(x), plain(x))


def test_other_types_are_refused() -> None:
    conv = FastDepthwise(nn.Conv2d(8, 8, 3, padding=1, groups=8))
    with pytest.raises(TypeError, match="bfloat16"):
        conv(torch.rand(1, 8, 4, 4, dtype=torch.bfloat16))


def test_without_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    depthwise._library.cache_clear()
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UserError, match="C compiler"):
        with_fast_depthwise(nn.Sequential())
    monkeypatch.undo()
    monkeypatch.setenv("CC", "false")
    with pytest.raises(UserError, match=r"depthwise\.c"):
        with_fast_depthwise(nn.Sequential())
