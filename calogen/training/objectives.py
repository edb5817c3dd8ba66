"""What generator and critic minimise: pure functions of critic scores, and the gradient penalty.

Scores are unbounded numbers, (B,); for the probabilistic objectives they are the log odds that a sample is reference.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import softplus

Critic = Callable[[Tensor, Tensor], Tensor]


class Objective(NamedTuple):
    """Losses to minimise; each takes scores (B,) and returns a scalar.

    Attributes:
        critic: Of (reference scores, generated scores).
        generator: Of generated scores.
        source: Where it is from.
    """

    critic: Callable[[Tensor, Tensor], Tensor]
    generator: Callable[[Tensor], Tensor]
    source: str


_WASSERSTEIN = (lambda r, g: g.mean() - r.mean(), lambda g: -g.mean())
OBJECTIVES: dict[str, Objective] = {
    "wgan-gp": Objective(*_WASSERSTEIN, "Gulrajani et al. 2017, arXiv:1704.00028"),
    "wgan-clip": Objective(*_WASSERSTEIN, "Arjovsky et al. 2017, arXiv:1701.07875"),
    "non-saturating": Objective(
        lambda r, g: softplus(-r).mean() + softplus(g).mean(),
        lambda g: softplus(-g).mean(),
        "Goodfellow et al. 2014, arXiv:1406.2661, sec. 3",
    ),
    "minimax": Objective(
        lambda r, g: softplus(-r).mean() + softplus(g).mean(),
        lambda g: -softplus(g).mean(),
        "Goodfellow et al. 2014, arXiv:1406.2661, eq. 1",
    ),
    "lsgan": Objective(
        lambda r, g: (r - 1).square().mean() + g.square().mean(),
        lambda g: (g - 1).square().mean(),
        "Mao et al. 2017, arXiv:1611.04076",
    ),
}


def gradient_penalty(
    critic: Critic, reference: Tensor, generated: Tensor, conditions: Tensor, generator: torch.Generator
) -> Tensor:
    """Two-sided WGAN-GP gradient penalty, averaged over the batch.

    Args:
        critic: Maps (B, D) samples and (B, C) conditions to (B,) scores.
        reference: Samples in the space the critic sees, (B, ...), dimensionless.
        generated: Same shape and device as ``reference``; paired with it by conditions.
        conditions: Scaled conditions, (B, C); C may be 0.
        generator: Source of the interpolation weights, on the same device.

    Returns:
        Scalar >= 0, before multiplication by the penalty weight.

    Raises:
        ValueError: If ``reference`` and ``generated`` differ in shape.

    Source: Gulrajani et al. 2017, arXiv:1704.00028, eq. 3.
    """
    if reference.shape != generated.shape:
        raise ValueError(f"reference {tuple(reference.shape)} and generated {tuple(generated.shape)} differ in shape")
    shape = (len(reference),) + (1,) * (reference.dim() - 1)
    weight = torch.rand(shape, generator=generator, device=reference.device, dtype=reference.dtype)
    between = torch.lerp(generated.detach(), reference.detach(), weight).requires_grad_(True)
    (slope,) = torch.autograd.grad(critic(between, conditions).sum(), between, create_graph=True)
    penalty: Tensor = (slope.flatten(1).norm(dim=1) - 1).square().mean()
    return penalty
