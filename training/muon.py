"""Optimisers that can be recorded in a CUDA graph: Muon for matrices, Adam for the rest.

Source: Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks"; Kingma and Ba
2015, "Adam".
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)


def orthogonalise(matrices: Tensor, steps: int = 5) -> Tensor:
    """Bring the singular values of (..., R, C) near 1 by Newton-Schulz iterations in bfloat16."""
    a, b, c = _COEFFICIENTS
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = (matrices.mT if tall else matrices).bfloat16()
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.mT if tall else x).to(matrices.dtype)


class Muon:
    """Momentum whose update is made orthogonal; matrices of one shape are updated as one batch.

    Args:
        parameters: of two or more dimensions; more than two are flattened behind the first.
        lr: size of an update whose singular values are 1, at full `size`.
        momentum: of the gradient average.
    """

    def __init__(
        self, parameters: Iterable[nn.Parameter], lr: float, momentum: float = 0.95
    ) -> None:
        self.lr, self.momentum = lr, momentum
        self.groups: dict[tuple[int, int], list[nn.Parameter]] = {}
        for parameter in parameters:
            rows = parameter.shape[0]
            shape = (rows, parameter.numel() // rows)
            self.groups.setdefault(shape, []).append(parameter)
        self.averages = {
            shape: torch.zeros(len(same), *shape, device=same[0].device)
            for shape, same in self.groups.items()
        }

    @torch.no_grad()
    def step(self, size: Tensor) -> None:
        """Apply one update, scaled by `size` (a tensor without dimensions)."""
        for shape, same in self.groups.items():
            gradients = torch.stack([_gradient(p).flatten(1) for p in same])
            average = self.averages[shape].lerp_(gradients, 1 - self.momentum)
            update = orthogonalise(gradients.lerp(average, self.momentum))
            update = update * (size * -self.lr * max(1.0, shape[0] / shape[1]) ** 0.5)
            parts = [u.reshape(p.shape) for u, p in zip(update, same, strict=True)]
            torch._foreach_add_([p.data for p in same], parts)


class Adam:
    """Adam without weight decay.

    Args:
        parameters: of any shape.
        lr: at full `size`.
        betas: decay of the two averages.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.98),
    ) -> None:
        self.parameters, self.lr, self.betas = list(parameters), lr, betas
        self.first = [torch.zeros_like(p.data) for p in self.parameters]
        self.second = [torch.zeros_like(p.data) for p in self.parameters]
        self.steps = torch.zeros((), device=self.parameters[0].device)

    @torch.no_grad()
    def step(self, size: Tensor, largest_norm: float = 1.0) -> None:
        """Apply one update, scaled by `size`; gradients are clipped to a norm together."""
        gradients = [_gradient(p) for p in self.parameters]
        norm = torch.stack(torch._foreach_norm(gradients)).norm()
        scale = (largest_norm / (norm + 1e-6)).clamp(max=1.0)
        gradients = list(torch._foreach_mul(gradients, scale))
        one, two = self.betas
        self.steps += 1
        torch._foreach_lerp_(self.first, gradients, 1 - one)
        torch._foreach_mul_(self.second, two)
        torch._foreach_addcmul_(self.second, gradients, gradients, 1 - two)
        root = torch._foreach_sqrt(self.second)
        torch._foreach_div_(root, (1 - two**self.steps).sqrt())
        torch._foreach_add_(root, 1e-8)
        change = torch._foreach_div(self.first, root)
        torch._foreach_mul_(change, size * -self.lr / (1 - one**self.steps))
        torch._foreach_add_([p.data for p in self.parameters], list(change))


def _gradient(parameter: nn.Parameter) -> Tensor:
    if parameter.grad is None:
        return torch.zeros_like(parameter.data)
    return parameter.grad


class Average:
    """Exponential moving average of parameters; its warm-up follows the number of steps.

    Args:
        parameters: watched, not changed.
        decay: of the average once it is warm.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], decay: float) -> None:
        self.live = list(parameters)
        self.kept = [parameter.detach().clone() for parameter in self.live]
        self.decay, self.steps = decay, 0

    @torch.no_grad()
    def update(self) -> None:
        """Take in the present values."""
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        torch._foreach_lerp_(self.kept, [p.data for p in self.live], 1 - decay)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the averages and the present values."""
        for kept, live in zip(self.kept, self.live, strict=True):
            held = kept.clone()
            kept.copy_(live.data)
            live.data.copy_(held)
