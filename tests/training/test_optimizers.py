"""Adan against its paper's equations, written out in numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from training.optimizers import Adan, make_optimizer


def reference(start: np.ndarray, gradients: list[np.ndarray], rate: float, decay: float) -> np.ndarray:
    """Algorithm 1 of the paper with the bias corrections of its authors' code, in float64, one weight at a time."""
    b1, b2, b3 = 0.98, 0.92, 0.99
    x, m, v, n, before = start.copy(), 0.0, 0.0, 0.0, gradients[0]
    for k, g in enumerate(gradients, start=1):
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * (g - before)
        n = b3 * n + (1 - b3) * (g + b2 * (g - before)) ** 2
        step = rate / (np.sqrt(n / (1 - b3**k)) + 1e-8)
        x = (x - step * (m / (1 - b1**k) + b2 * v / (1 - b2**k))) / (1 + rate * decay)
        before = g
    return x


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_adan_is_the_papers(decay: float) -> None:
    rng = np.random.default_rng(0)
    start, gradients = rng.normal(size=(3, 4)), [rng.normal(size=(3, 4)) for _ in range(7)]
    weight = torch.nn.Parameter(torch.from_numpy(start.copy()))
    optimizer = Adan([weight], 0.01, weight_decay=decay)
    for gradient in gradients:
        weight.grad = torch.from_numpy(gradient.copy())
        optimizer.step()
    np.testing.assert_allclose(weight.detach().numpy(), reference(start, gradients, 0.01, decay), rtol=1e-10)


def test_weights_without_gradient_stay() -> None:
    used, unused = torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(2))
    optimizer = make_optimizer("adan", [used, unused], learning_rate=0.1, weight_decay=0)
    used.grad = torch.ones(2)
    optimizer.step()
    assert not torch.equal(used, torch.ones(2))
    assert torch.equal(unused, torch.ones(2))


def test_unknown_optimizer() -> None:
    with pytest.raises(ValueError, match="sgd"):
        make_optimizer("sgd", [torch.nn.Parameter(torch.ones(1))], learning_rate=0.1, weight_decay=0)
