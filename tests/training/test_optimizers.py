"""Adan and Muon against their papers' equations, written out in numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from training.optimizers import Adan, Muon, make_optimizer, orthogonalized


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


def test_muon_steps_along_the_orthogonal_factor_of_its_momentum() -> None:
    rng = np.random.default_rng(1)
    start, gradients = rng.normal(size=(6, 4, 1, 1)), [rng.normal(size=(6, 4, 1, 1)) for _ in range(3)]
    weight = torch.nn.Parameter(torch.from_numpy(start.copy()))
    optimizer = Muon([weight], 0.01, momentum=0.9, weight_decay=0.1)
    expected, mean = start.reshape(6, 4), np.zeros((6, 4))
    for gradient in gradients:
        weight.grad = torch.from_numpy(gradient.copy())
        before = weight.detach().numpy().reshape(6, 4).copy()
        optimizer.step()
        mean = 0.9 * mean + 0.1 * gradient.reshape(6, 4)
        u, _, v = np.linalg.svd(0.1 * gradient.reshape(6, 4) + 0.9 * mean, full_matrices=False)
        step = (before * (1 - 0.01 * 0.1) - weight.detach().numpy().reshape(6, 4)) / (0.01 * 0.2 * 6**0.5)
        along = u.T @ step @ v.T  # what the step is in the directions of the momentum
        assert np.all((np.diag(along) > 0.6) & (np.diag(along) < 1.3))
        assert np.abs(along - np.diag(np.diag(along))).max() < 1e-8
        expected = expected * (1 - 0.01 * 0.1) - 0.01 * 0.2 * 6**0.5 * (u @ v)
    assert np.abs(expected - weight.detach().numpy().reshape(6, 4)).max() < 3 * 0.01 * 0.2 * 6**0.5 * 0.35


@pytest.mark.parametrize("shape", [(3, 5, 5), (3, 9, 4), (3, 4, 9)])
def test_orthogonalized(shape: tuple[int, int, int]) -> None:
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 1e-4
    values = torch.linalg.svdvals(orthogonalized(matrices))
    assert torch.linalg.svdvals(matrices).max() < 1e-2
    assert 0.3 < float(values.min()) <= float(values.max()) < 1.3
    assert orthogonalized(torch.zeros(1, 3, 3)).isfinite().all()


def test_muon_leaves_what_is_no_matrix_of_channels_to_adan() -> None:
    rng = np.random.default_rng(2)
    shapes = [(4,), (4, 1, 3, 3), (1, 4, 1, 1), (4, 4, 1, 1)]
    starts = [rng.normal(size=shape) for shape in shapes]
    weights = [torch.nn.Parameter(torch.from_numpy(start.copy())) for start in starts]
    muon = make_optimizer("muon", weights, learning_rate=0.01, weight_decay=0)
    history: list[list[np.ndarray]] = []
    for _ in range(3):
        history.append([rng.normal(size=shape) for shape in shapes])
        for weight, gradient in zip(weights, history[-1], strict=True):
            weight.grad = torch.from_numpy(gradient.copy())
        muon.step()
    for k in (0, 1):
        wanted = reference(starts[k], [gradients[k] for gradients in history], 0.02, 0)
        np.testing.assert_allclose(weights[k].detach().numpy(), wanted, rtol=1e-10)
    assert {"mean"} == set(muon.state[weights[3]])


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
