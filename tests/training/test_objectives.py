"""Objectives: losses at known scores, and the penalty of critics whose gradient is known."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from calogen.training.objectives import OBJECTIVES, gradient_penalty

REFERENCE, GENERATED = torch.tensor([1.0, 3.0]), torch.tensor([-1.0, 0.0])


def soft(x: float) -> float:
    return math.log1p(math.exp(x))


ENTROPY = (soft(-1) + soft(-3)) / 2 + (soft(-1) + soft(0)) / 2


@pytest.mark.parametrize(
    ("name", "critic", "generator"),
    [
        ("wgan-gp", -2.5, 0.5),
        ("wgan-clip", -2.5, 0.5),
        ("non-saturating", ENTROPY, (soft(1) + soft(0)) / 2),
        ("minimax", ENTROPY, -(soft(-1) + soft(0)) / 2),
        ("lsgan", (0 + 4) / 2 + (1 + 0) / 2, (4 + 1) / 2),
    ],
)
def test_losses_at_known_scores(name: str, critic: float, generator: float) -> None:
    objective = OBJECTIVES[name]
    assert float(objective.critic(REFERENCE, GENERATED)) == pytest.approx(critic, rel=1e-6)
    assert float(objective.generator(GENERATED)) == pytest.approx(generator, rel=1e-6)


def test_every_objective_rewards_the_generator_for_higher_scores_and_the_critic_for_telling_apart() -> None:
    for objective in filter(None, OBJECTIVES.values()):
        assert objective.generator(GENERATED + 0.5) < objective.generator(GENERATED)
        assert objective.critic(REFERENCE, GENERATED) < objective.critic(GENERATED, REFERENCE)


def test_minimax_is_minus_the_critics_loss_on_generated_samples() -> None:
    objective = OBJECTIVES["minimax"]
    certain = torch.full((2,), 200.0)  # the reference half of the critic's loss vanishes
    torch.testing.assert_close(objective.generator(GENERATED), -objective.critic(certain, GENERATED))


def test_where_the_critic_is_sure_minimax_has_no_gradient_and_non_saturating_has() -> None:
    slopes = {}
    for name in ("minimax", "non-saturating"):
        score = torch.tensor([-20.0], requires_grad=True)
        OBJECTIVES[name].generator(score).backward()
        slopes[name] = abs(float(score.grad))
    assert slopes["minimax"] < 1e-8
    assert slopes["non-saturating"] == pytest.approx(1.0)


def linear(weight: Tensor) -> object:
    return lambda x, c: (x * weight).flatten(1).sum(1) + c.sum(1)


@pytest.mark.parametrize("shape", [(6, 5), (6, 1, 2, 3)])
@pytest.mark.parametrize("conditions", [0, 2])
def test_the_penalty_of_a_linear_critic_is_exact(shape: tuple[int, ...], conditions: int) -> None:
    torch.manual_seed(1)
    weight = torch.randn(shape[1:], dtype=torch.float64)
    reference, generated = torch.randn(2, *shape, dtype=torch.float64)
    c = torch.randn(shape[0], conditions, dtype=torch.float64)
    found = gradient_penalty(linear(weight), reference, generated, c, torch.Generator().manual_seed(2))
    assert found.item() == pytest.approx((float(weight.norm()) - 1) ** 2, rel=1e-12)


def test_the_penalty_of_a_quadratic_critic_uses_points_between_the_samples() -> None:
    reference, generated = torch.full((20_000, 1), 3.0), torch.full((20_000, 1), 1.0)
    found = gradient_penalty(
        lambda x, c: x.square().sum(1) / 2, reference, generated, torch.zeros(20_000, 0), torch.Generator()
    )
    # The slope is x, uniform in 1 to 3: E (x - 1)^2 = 4 / 3.
    assert found.item() == pytest.approx(4 / 3, rel=0.02)


def test_the_penalty_can_be_minimised_in_the_critics_weights() -> None:
    weight = torch.tensor([3.0, 4.0], requires_grad=True)
    penalty = gradient_penalty(
        linear(weight), torch.ones(4, 2), torch.zeros(4, 2), torch.zeros(4, 0), torch.Generator()
    )
    penalty.backward()
    torch.testing.assert_close(weight.grad, 2 * (5 - 1) * torch.tensor([0.6, 0.8]))


def test_the_same_generator_state_gives_the_same_penalty_and_samples_get_no_gradient() -> None:
    reference = torch.randn(8, 3, requires_grad=True)
    generated = torch.randn(8, 3, requires_grad=True)
    critic = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1))
    found = [
        gradient_penalty(
            lambda x, c: critic(x)[:, 0], reference, generated, torch.zeros(8, 0), torch.Generator().manual_seed(5)
        )
        for _ in range(2)
    ]
    assert found[0] == found[1]
    found[0].backward()
    assert reference.grad is None
    assert generated.grad is None


def test_samples_of_different_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="differ in shape"):
        gradient_penalty(
            linear(torch.ones(2)), torch.ones(4, 2), torch.ones(3, 2), torch.zeros(4, 0), torch.Generator()
        )
