"""Muon for the hidden matrices, Adam for everything else, side by side.

Muon: https://kellerjordan.github.io/posts/muon/, scaled to Adam's size of step as in https://arxiv.org/abs/2502.16982.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn


def _orthogonalized(matrix: Tensor, steps: int = 5) -> Tensor:
    """The nearest (about) orthogonal matrix, by Newton-Schulz iterations.

    Each iteration multiplies x by a polynomial of its Gram matrix from the short side; the polynomials are
    gathered first and x is touched twice only, which makes a step several times cheaper on a CPU.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrix.float()
    tall = x.shape[0] > x.shape[1]
    if tall:
        x = x.T
    x = x / (x.norm() + 1e-7)
    gram = x @ x.T
    identity = torch.eye(len(gram), device=gram.device)
    gathered = gram
    for step in range(steps):
        factor = a * identity + b * gram + c * (gram @ gram)
        gathered = factor @ gathered if step else factor
        if step < steps - 1:
            gram = factor @ gram @ factor
    x = gathered @ x
    return (x.T if tall else x).to(matrix.dtype)


class Muon(torch.optim.Optimizer):
    """Momentum, made orthogonal; convolutions are matrices of (out, everything else)."""

    def __init__(
        self, params: Iterable[nn.Parameter], lr: float, momentum: float = 0.95, weight_decay: float = 0.0
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        assert closure is None
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if "momentum" not in state:
                    state["momentum"] = torch.zeros_like(parameter)
                momentum: Tensor = state["momentum"]
                momentum.lerp_(parameter.grad, 1 - group["momentum"])
                step = parameter.grad.lerp(momentum, group["momentum"]).flatten(1)
                step = _orthogonalized(step) * (0.2 * math.sqrt(max(step.shape)))
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.sub_(step.view_as(parameter), alpha=group["lr"])


class Optimizers:
    """Both, with one learning-rate factor."""

    def __init__(
        self,
        matrices: list[nn.Parameter],
        others: list[nn.Parameter],
        muon_rate: float,
        adam_rate: float,
        weight_decay: float = 0.0,
    ) -> None:
        self._both: list[tuple[torch.optim.Optimizer, float]] = [
            (Muon(matrices, muon_rate, weight_decay=weight_decay), muon_rate),
            (torch.optim.AdamW(others, adam_rate, betas=(0.9, 0.98), weight_decay=0.0), adam_rate),
        ]
        self._parameters = [*matrices, *others]

    def step(self, factor: float, clip: float = 1.0) -> None:
        """One step at ``factor`` of the rates; clears the gradients."""
        nn.utils.clip_grad_norm_(self._parameters, clip)
        for optimizer, rate in self._both:
            for group in optimizer.param_groups:
                group["lr"] = rate * factor
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    def state_dict(self) -> list[Any]:
        return [optimizer.state_dict() for optimizer, _ in self._both]

    def load_state_dict(self, states: list[Any]) -> None:
        for (optimizer, _), state in zip(self._both, states, strict=True):
            optimizer.load_state_dict(state)


def split_matrices(model: nn.Module, *, but: tuple[str, ...] = ()) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """(matrices and convolutions, all else); names that begin with one of ``but`` go with all else."""
    matrices, others = [], []
    for name, parameter in model.named_parameters():
        (matrices if parameter.ndim >= 2 and not name.startswith(but) else others).append(parameter)
    return matrices, others
