"""Critics of views: what a round of projected training asks, and what chooses among candidates for a sample."""

from __future__ import annotations

from typing import NamedTuple, cast

import torch
from torch import Tensor

from ..models.refinement import ViewCritic
from .objectives import OBJECTIVES, Objective

ODDS = cast("Objective", OBJECTIVES["logistic"])
"""Of critics whose values are log odds, by which candidates are chosen."""

CRITICS = 3  # of an ensemble: each has seen other samples
_PART = 0.8  # of the samples that each sees
_EPOCHS, _FEWEST_STEPS, _BATCH = 20, 100, 512
_EPOCHS_OF_BLOCKS, _BATCH_OF_BLOCKS = 10, 128  # of critics that take blocks one by one: each sample is many for them
_RATE, _BETAS, _DECAY = 2e-3, (0.5, 0.99), 1e-3
_BLUR = 0.2  # standard deviations of the noise on what critics are shown


class Seen(NamedTuple):
    """Samples as critics see them.

    Attributes:
        views: (N, L, D), dimensionless, of order one.
        context: What a critic is told besides, (N, L, C), of order one.
    """

    views: Tensor
    context: Tensor


def trained_critic(
    reference: Seen, generated: Seen, stream: torch.Generator, objective: Objective, weight: float | None = None
) -> ViewCritic:
    """A critic that has learnt from part of the reference samples and from generated ones.

    Args:
        reference: Training samples.
        generated: Any number of them.
        stream: Source of all random numbers.
        objective: Of the critic.
        weight: Of its penalty; none: the objective's own.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(2**31, (), generator=stream)))
        critic = ViewCritic(reference.views.shape[1], reference.views.shape[2], reference.context.shape[2])
    count = len(reference.views)
    shown = torch.randperm(count, generator=stream)[: int(_PART * count)]
    size = _BATCH if critic.joint else _BATCH_OF_BLOCKS
    steps = max(_FEWEST_STEPS, (_EPOCHS if critic.joint else _EPOCHS_OF_BLOCKS) * count // size)
    optimiser = torch.optim.AdamW(critic.parameters(), _RATE, betas=_BETAS, weight_decay=_DECAY)

    def some(count: int) -> Tensor:
        return torch.randint(count, (size,), generator=stream)

    def blurred(found: Tensor) -> Tensor:
        return found + _BLUR * torch.randn(found.shape, generator=stream)

    weight = objective.weight if weight is None else weight
    for number in range(steps):
        optimiser.param_groups[0]["lr"] = _RATE * (1 - number / steps) + 1e-5
        mine, other = shown[some(len(shown))], some(len(generated.views))
        real, made = blurred(reference.views[mine]), blurred(generated.views[other])
        at = reference.context[mine], generated.context[other]
        loss = objective.critic(critic(real, at[0]), critic(made, at[1]))
        if objective.penalty is not None:
            loss = loss + weight * objective.penalty(critic, real, made, at[0], stream)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return critic.requires_grad_(False)
