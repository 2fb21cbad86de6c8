"""Adan, the optimiser of the paper, and the choice between it and AdamW."""

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
        parameters: Iterable[nn.Parameter],
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


def make_optimizer(
    name: str, parameters: Iterable[nn.Parameter], *, learning_rate: float, weight_decay: float
) -> torch.optim.Optimizer:
    """``adan`` or ``adamw`` with the settings of the super-resolution papers."""
    if name == "adan":
        return Adan(parameters, learning_rate, weight_decay=weight_decay)
    if name == "adamw":
        return torch.optim.AdamW(
            parameters, lr=learning_rate, betas=(0.9, 0.99), weight_decay=weight_decay, foreach=True
        )
    raise ValueError(f"unknown optimizer {name}")
