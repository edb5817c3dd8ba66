"""Objectives: what generator and critic minimise, pure functions of the critic's values, and what bounds the critic.

Values are unbounded numbers, (B,), larger for reference; for the probabilistic objectives they are the log odds that a
sample is reference. To add an objective is to add an entry to :data:`OBJECTIVES`, with its penalty if it has one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from ..config import TrainingConfig
from ..errors import ConfigError, did_you_mean
from ..families import Family
from ..models.registry import NETWORKS, Network, network_name, network_of
from ..models.streams import drawn

Judge = Callable[[Tensor, Tensor], Tensor]
"""A critic as a function: values (B,) of views (B, ...) with scaled conditions (B, C)."""


@dataclass(frozen=True)
class Objective:
    """Losses to minimise, scalars of values (B,), and what keeps the critic's slope in bounds.

    Attributes:
        critic: Of (values of reference samples, values of generated ones).
        generator: Of values of generated samples.
        source: Where it is from.
        penalty: Added to the critic's loss, times ``training.penalty``; arguments as for :func:`gradient_penalty`. It
            is of single samples, so the critic's values may not depend on the rest of the batch.
        weight: Of the penalty, where ``training.penalty`` does not say another.
        bound: What is done to the critic after each of its steps.
        reach: Of (values of reference samples, of generated ones): by how many times the critic's slope samples are
            meant to move in projected training.
    """

    critic: Callable[[Tensor, Tensor], Tensor]
    generator: Callable[[Tensor], Tensor]
    source: str
    penalty: Callable[[Judge, Tensor, Tensor, Tensor, torch.Generator], Tensor] | None = None
    weight: float = 10.0
    bound: Callable[[nn.Module, TrainingConfig], None] | None = None
    reach: Callable[[Tensor, Tensor], Tensor] = lambda r, _: r.new_ones(())


def gradient_penalty(
    critic: Judge, reference: Tensor, generated: Tensor, conditions: Tensor, generator: torch.Generator
) -> Tensor:
    """Two-sided WGAN-GP gradient penalty, averaged over the batch.

    Args:
        critic: Maps (B, D) samples and (B, C) conditions to (B,) values.
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
    weight = drawn(torch.rand, shape, generator, device=reference.device, dtype=reference.dtype)
    between = torch.lerp(generated.detach(), reference.detach(), weight).requires_grad_(True)
    (slope,) = torch.autograd.grad(critic(between, conditions).sum(), between, create_graph=True)
    penalty: Tensor = (slope.flatten(1).norm(dim=1) - 1).square().mean()
    return penalty


def slope_penalty(
    critic: Judge,
    reference: Tensor,
    generated: Tensor,
    conditions: Tensor,
    generator: torch.Generator,  # noqa: ARG001
) -> Tensor:
    """Half the mean squared slope on reference samples and on generated ones (R1 and R2); arguments as above.

    Source: Mescheder et al. 2018, arXiv:1801.04406.
    """
    total = reference.new_zeros(())
    for side in (reference, generated):
        at = side.detach().requires_grad_(True)
        (slope,) = torch.autograd.grad(critic(at, conditions).sum(), at, create_graph=True)
        total = total + slope.flatten(1).square().sum(1).mean() / 2
    return total


@torch.no_grad()
def clip_weights(critic: nn.Module, options: TrainingConfig) -> None:
    """Bound every weight of the critic by ``training.clip``."""
    torch._foreach_clamp_min_(list(critic.parameters()), -options.clip)
    torch._foreach_clamp_max_(list(critic.parameters()), options.clip)


def _distance(reference: Tensor, generated: Tensor) -> Tensor:
    """The critic's slope is 1: what says how far it is, is the distance."""
    return (reference.mean() - generated.mean()).clamp(min=0)


_WASSERSTEIN = (lambda r, g: g.mean() - r.mean(), lambda g: -g.mean())
OBJECTIVES: dict[str, Objective | None] = {
    "wgan-gp": Objective(
        *_WASSERSTEIN, "Gulrajani et al. 2017, arXiv:1704.00028", penalty=gradient_penalty, reach=_distance
    ),
    "wgan-clip": Objective(*_WASSERSTEIN, "Arjovsky et al. 2017, arXiv:1701.07875", bound=clip_weights),
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
    "logistic": Objective(
        lambda r, g: softplus(-r).mean() + softplus(g).mean(),
        lambda g: softplus(-g).mean(),
        "Mescheder et al. 2018, arXiv:1801.04406",
        penalty=slope_penalty,
        weight=0.2,
    ),
    "likelihood": None,
    "matching": None,
}
"""Objectives by name; none: no critic learns. ``likelihood`` is a loss of the network's own, ``matching`` one of
summary statistics (:class:`~calogen.models.contract.Summaries`)."""


def objective_of(family: Family, network: str, name: str) -> Objective | None:
    """The objective of a name, for a network of a family.

    Raises:
        ConfigError: If there is no such objective or network, or they do not go together.
    """
    if name not in OBJECTIVES:
        raise ConfigError(
            f"unknown objective '{name}'",
            where="training.objective",
            expected=", ".join(OBJECTIVES),
            found=name,
            hint=did_you_mean(name, OBJECTIVES),
        )
    made = network_of(family, network)
    if _suits(made, name):
        return OBJECTIVES[name]
    fitting = [key for key in OBJECTIVES if _suits(made, key)]
    reason, hint = "it has a loss of its own and no critic", f"set training.objective={fitting[0]}"
    if made.critic:
        reason = "it maps noise to samples, and the likelihood of a sample is not known"
        others = [key for key, other in NETWORKS[family.kind].items() if other.critic is None]
        hint += f", or take a network with a likelihood: {', '.join(others)}" if others else ""
    if name == "matching":
        reason = "there are no summary statistics for it"
    raise ConfigError(
        f"network '{network_name(family, network)}' cannot learn by '{name}': {reason}",
        where="generator.network, training.objective",
        found=name,
        hint=hint,
    )


def _suits(network: Network, objective: str) -> bool:
    if objective == "matching":
        return network.summaries is not None
    return (network.critic is None) == (objective == "likelihood")
