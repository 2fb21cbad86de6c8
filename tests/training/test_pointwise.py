"""bfloat16 products of 1×1 convolutions: close while training, exact otherwise."""

from __future__ import annotations

import copy

import torch
from torch import nn

from training.pointwise import Bfloat16Pointwise, with_bfloat16_pointwise


def test_close_to_pytorch_while_training_and_equal_otherwise() -> None:
    torch.manual_seed(0)
    plain = nn.Conv2d(24, 40, 1)
    ours = Bfloat16Pointwise(copy.deepcopy(plain))
    x = torch.randn(2, 24, 7, 9, requires_grad=True)
    slope = torch.randn(2, 40, 7, 9)
    results = []
    for module in (plain, ours):
        y = module(x)
        results.append((y, *torch.autograd.grad(y, [x, *module.parameters()], slope)))
    for a, b in zip(*results, strict=True):
        assert a.shape == b.shape
        assert b.dtype == torch.float32
        assert float(((a - b).norm() / a.norm()).detach()) < 5e-3  # eight bits of mantissa: 2e-3 a product
    assert not torch.equal(results[0][0], results[1][0])
    assert torch.equal(ours.eval()(x), plain(x))


def test_replaces_plain_pointwise_convolutions_only() -> None:
    model = nn.Sequential(
        nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1, groups=8), nn.Conv2d(8, 8, 1, bias=False), nn.Conv2d(8, 8, 3)
    )
    keys = list(model.state_dict())
    with_bfloat16_pointwise(model)
    assert [type(module) is Bfloat16Pointwise for module in model] == [True, False, False, False]
    assert list(model.state_dict()) == keys
