"""Adan, the optimiser of the paper, Muon, and the choice between them and AdamW."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn


class Adan(torch.optim.Optimizer):
    """Adaptive Nesterov momentum (Xie et al., "Adan", 2022, algorithm 1), without restarts.

    Betas are given as momentum factors in the order gradient, gradient difference, squared gradient. Weight decay is
    decoupled and proximal. No closure is supported: a step of training evaluates its gradient once.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter] | Iterable[dict[str, Any]],
        lr: float,
        *,
        betas: tuple[float, float, float] = (0.98, 0.92, 0.99),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(parameters, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One update of every parameter that has a gradient."""
        assert closure is None
        for group in self.param_groups:
            parameters: list[Tensor] = [p for p in group["params"] if p.grad is not None]
            if parameters:
                self._update(group, parameters)

    def _update(self, group: dict[str, Any], parameters: list[Tensor]) -> None:
        gradients: list[Tensor] = [p.grad for p in parameters if p.grad is not None]
        for p, gradient in zip(parameters, gradients, strict=True):
            if not self.state[p]:
                zeros = {key: torch.zeros_like(p) for key in ("mean", "difference", "square")}
                # the first difference is zero: there is no earlier gradient to compare with
                self.state[p].update(zeros, previous=gradient.clone(), count=0)
            self.state[p]["count"] += 1
        count = self.state[parameters[0]]["count"]
        beta1, beta2, beta3 = group["betas"]
        mean, difference, square, previous = (
            [self.state[p][key] for p in parameters] for key in ("mean", "difference", "square", "previous")
        )

        change = torch._foreach_sub(gradients, previous)
        torch._foreach_copy_(previous, gradients)
        torch._foreach_lerp_(mean, gradients, 1 - beta1)
        torch._foreach_lerp_(difference, change, 1 - beta2)
        look_ahead = torch._foreach_add(gradients, change, alpha=beta2)
        torch._foreach_mul_(square, beta3)
        torch._foreach_addcmul_(square, look_ahead, look_ahead, 1 - beta3)

        denominator = torch._foreach_sqrt(square)
        torch._foreach_div_(denominator, (1 - beta3**count) ** 0.5)
        torch._foreach_add_(denominator, group["eps"])
        rate = group["lr"]
        torch._foreach_addcdiv_(parameters, mean, denominator, -rate / (1 - beta1**count))
        torch._foreach_addcdiv_(parameters, difference, denominator, -rate * beta2 / (1 - beta2**count))
        if group["weight_decay"]:
            torch._foreach_div_(parameters, 1 + rate * group["weight_decay"])


class Muon(Adan):
    """Orthogonalised momentum for convolutions that mix channels, Adan for all else.

    Muon (Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks") with the root mean square of an
    update held at 0.2 of the rate, as in "Muon is Scalable for LLM Training" (Liu et al. 2025). A convolution's weight
    is the matrix (out, in · k · k). Vectors and depth-wise kernels, which are no matrices of channels, take
    ``ADAN_SHARE`` times the rate. ``torch.optim.Muon`` takes parameters of two dimensions only, one after the other,
    in bfloat16.
    """

    ADAN_SHARE = 2.0

    def __init__(
        self, parameters: Iterable[nn.Parameter], lr: float, *, momentum: float = 0.95, weight_decay: float = 0.0
    ) -> None:
        groups: list[dict[str, Any]] = [{"params": []}, {"params": [], "momentum": momentum}]
        for p in parameters:
            groups[p.dim() == 4 and min(p.shape[:2]) > 1]["params"].append(p)
        super().__init__([group for group in groups if group["params"]], lr, weight_decay=weight_decay)

    def _update(self, group: dict[str, Any], parameters: list[Tensor]) -> None:
        if "momentum" not in group:
            super()._update({**group, "lr": group["lr"] * self.ADAN_SHARE}, parameters)
            return
        alike: dict[torch.Size, list[Tensor]] = {}
        for p in parameters:
            if not self.state[p]:
                self.state[p]["mean"] = torch.zeros_like(p)
            alike.setdefault(p.flatten(1).shape, []).append(p)
        for shape, same in alike.items():
            gradients = [p.grad for p in same if p.grad is not None]
            means = [self.state[p]["mean"] for p in same]
            torch._foreach_lerp_(means, gradients, 1 - group["momentum"])
            ahead = torch._foreach_lerp(gradients, means, group["momentum"])  # Nesterov's
            directions = orthogonalized(torch.stack([update.flatten(1) for update in ahead]))
            torch._foreach_mul_(same, 1 - group["lr"] * group["weight_decay"])
            length = 0.2 * max(shape) ** 0.5
            for p, direction in zip(same, directions, strict=True):
                p.add_(direction.view(p.shape), alpha=-group["lr"] * length)


def orthogonalized(matrices: Tensor) -> Tensor:
    """``matrices`` (N, rows, columns) with singular values brought near 1, by Muon's five Newton-Schulz steps."""
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-12)
    for _ in range(5):
        square = x @ x.mT
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    return x.mT if tall else x


def make_optimizer(
    name: str, parameters: Iterable[nn.Parameter], *, learning_rate: float, weight_decay: float
) -> torch.optim.Optimizer:
    """``adan``, ``muon`` or ``adamw``, the first and the last with the settings of the super-resolution papers."""
    if name == "adan":
        return Adan(parameters, learning_rate, weight_decay=weight_decay)
    if name == "muon":
        return Muon(parameters, learning_rate, weight_decay=weight_decay)
    if name == "adamw":
        return torch.optim.AdamW(
            parameters, lr=learning_rate, betas=(0.9, 0.99), weight_decay=weight_decay, foreach=True
        )
    raise ValueError(f"unknown optimizer {name}")
