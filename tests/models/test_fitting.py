"""Fits: they recover the numbers that data were made with."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from calogen.models.showers.fitting import (
    fit_factors,
    fit_least_squares,
    fit_logistic,
    fit_quantiles,
    inverse_tail,
    normal_tail,
    own_noise,
)


def design(count: int, seed: int = 1) -> Tensor:
    x = torch.rand(count, 1, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2 - 1
    return torch.cat([torch.ones_like(x), x, x**2], 1)


def test_logistic_regression_recovers_known_coefficients() -> None:
    x = design(40_000)
    known = torch.tensor([[-1.0, 0.5], [1.5, -2.0], [0.5, 0.0]], dtype=torch.float64)
    draws = torch.rand(40_000, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    found = fit_logistic(x, (draws < torch.sigmoid(x @ known)).double())
    torch.testing.assert_close(found, known, atol=0.1, rtol=0)


def test_logistic_regression_of_the_mean_only_gives_the_log_odds() -> None:
    occupied = torch.zeros(1000, 1, dtype=torch.float64)
    occupied[:200] = 1
    found = fit_logistic(torch.ones(1000, 1, dtype=torch.float64), occupied)
    assert float(found) == pytest.approx(math.log(0.25), abs=2e-3)


@pytest.mark.parametrize(("count", "ridge"), [(16, 1e-2), (2000, 1e-2), (2000, 2.0)])
def test_separable_and_constant_voxels_stay_finite_and_on_the_right_side(count: int, ridge: float) -> None:
    x = design(count)
    occupied = torch.stack([(x[:, 1] > 0).double(), torch.ones(count), torch.zeros(count)], 1).double()
    logits = x @ fit_logistic(x, occupied, ridge)
    assert logits.isfinite().all()
    assert logits.abs().max() < 100
    assert (torch.sigmoid(logits[:, 0]).round() == occupied[:, 0]).double().mean() > 0.9
    assert logits[:, 1].mean() > 2
    assert logits[:, 2].mean() < -2


def test_least_squares_recovers_known_coefficients_and_ignores_weightless_values() -> None:
    x = design(500)
    known = torch.tensor([[3.0, -7.0], [1.0, 0.0], [-2.0, 4.0]], dtype=torch.float64)
    values = x @ known
    weights = (torch.rand(values.shape, generator=torch.Generator().manual_seed(3)) < 0.5).double()
    values = torch.where(weights > 0, values, 1e30)
    found = fit_least_squares(x, values, weights, ridge=1e-9)
    torch.testing.assert_close(found, known, atol=1e-6, rtol=0)


def test_least_squares_without_any_data_gives_zeros() -> None:
    found = fit_least_squares(design(50), torch.zeros(50, 2).double(), torch.zeros(50, 2).double())
    assert found.abs().max() == 0


def test_quantile_regression_recovers_conditional_quantiles() -> None:
    x = design(40_000)
    noise = torch.randn(40_000, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    values = 5 + 3 * x[:, 1] + (1 + 0.5 * x[:, 1]) * noise  # quantiles are linear in x
    levels = torch.tensor([0.05, 0.25, 0.5, 0.9], dtype=torch.float64)
    found = fit_quantiles(x, values, levels)
    score = inverse_tail(1 - levels)
    known = torch.stack([5 + score, 3 + 0.5 * score, torch.zeros_like(score)])
    torch.testing.assert_close(found, known, atol=0.1, rtol=0)
    below = (values[:, None] < x @ found).double().mean(0)
    torch.testing.assert_close(below, levels, atol=5e-3, rtol=0)


def test_quantiles_of_a_constant_are_the_constant() -> None:
    x = design(100)
    found = x @ fit_quantiles(x, torch.full((100,), -9.0, dtype=torch.float64), torch.tensor([0.1, 0.9]).double())
    torch.testing.assert_close(found, torch.full_like(found, -9.0), atol=1e-6, rtol=0)


def test_quantile_regression_survives_a_condition_that_never_varies() -> None:
    x = torch.ones(200, 3, dtype=torch.float64) * torch.tensor([1.0, 0.4, 0.16])
    values = torch.randn(200, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    levels = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    found = (x @ fit_quantiles(x, values, levels))[0]
    torch.testing.assert_close(found, torch.quantile(values, levels), atol=0.1, rtol=0)


def test_tail_and_score_are_inverse_and_known() -> None:
    scores = torch.linspace(-5.9, 5.9, 100, dtype=torch.float64)
    torch.testing.assert_close(inverse_tail(normal_tail(scores)), scores, atol=1e-6, rtol=0)
    assert float(normal_tail(torch.tensor(1.959964, dtype=torch.float64))) == pytest.approx(0.025, rel=1e-5)
    assert inverse_tail(torch.tensor([0.0, 1.0])).abs().max() < 6.1


@pytest.mark.parametrize("cut", [-math.inf, -0.5, 0.5], ids=["all known", "31 % censored", "69 % censored"])
def test_factor_loadings_recover_a_known_correlation_also_where_scores_are_censored(cut: float) -> None:
    generator = torch.Generator().manual_seed(6)
    known = torch.randn(12, 2, generator=generator) * 0.5
    known = known / known.square().sum(1, keepdim=True).clamp(min=1.2).sqrt()
    noise = (1 - known.square().sum(1)).sqrt()
    scores = torch.randn(6000, 2, generator=generator) @ known.T + torch.randn(6000, 12, generator=generator) * noise
    censored = scores < cut
    ceiling = torch.full_like(scores, max(cut, -9.0))
    hidden = torch.where(censored, torch.full_like(scores, 1e6), scores)  # must not be looked at
    found, drift = fit_factors(hidden, censored, ceiling, 2, generator)
    assert drift.shape == (12, 0)
    error = (found @ found.T - known @ known.T).fill_diagonal_(0.0)
    assert float(error.abs().max()) < (0.06 if cut == -math.inf else 0.12)


def test_factor_loadings_leave_every_voxel_noise_of_its_own() -> None:
    scores = torch.randn(300, 1, generator=torch.Generator().manual_seed(1)).expand(-1, 5).clone()
    found, _ = fit_factors(scores, scores > 9, torch.zeros_like(scores), 3, torch.Generator().manual_seed(1))
    assert found.shape == (5, 3)
    assert float(found.square().sum(1).max()) <= 0.98 + 1e-6
    assert float((found @ found.T).min()) > 0.8  # all of them are one number


@pytest.mark.parametrize(("count", "voxels", "rank"), [(16, 1, 0), (16, 40, 15), (3, 40, 2)])
def test_the_rank_is_bounded_by_the_data(count: int, voxels: int, rank: int) -> None:
    generator = torch.Generator().manual_seed(1)
    scores = torch.randn(count, voxels, generator=generator)
    found, drift = fit_factors(scores, scores < 0, torch.zeros_like(scores), 64, generator, drifting=5)
    assert found.shape == (voxels, rank)
    assert drift.shape == (voxels, min(5, rank))
    assert np.isfinite(found.numpy()).all()


def test_the_same_seed_gives_the_same_loadings() -> None:
    scores = torch.randn(100, 6, generator=torch.Generator().manual_seed(1))
    both = [
        fit_factors(scores, scores < 0, torch.zeros_like(scores), 2, torch.Generator().manual_seed(8)) for _ in "ab"
    ]
    torch.testing.assert_close(both[0], both[1], rtol=0, atol=0)


def test_loadings_that_change_with_the_energy_are_found() -> None:
    generator = torch.Generator().manual_seed(3)
    energy = torch.rand(8000, generator=generator) * 2 - 1
    known = torch.randn(10, 1, generator=generator) * 0.4
    known, drift = known.clamp(-0.6, 0.6), torch.randn(10, 1, generator=generator).clamp(-1, 1) * 0.3
    at = known.T + energy[:, None] * drift.T
    noise = (1 - at.square()).sqrt()
    factor = torch.randn(8000, 1, generator=generator)
    scores = factor * at + noise * torch.randn(8000, 10, generator=generator)
    censored = scores < -0.3
    found = fit_factors(scores, censored, torch.full_like(scores, -0.3), 1, generator, energy, drifting=1)
    for place in (-0.8, 0.0, 0.8):
        one, two = (a[0] + place * a[1] for a in (found, (known, drift)))
        assert float((one @ one.T - two @ two.T).fill_diagonal_(0.0).abs().max()) < 0.1
        torch.testing.assert_close(own_noise(*found, place).square() + one.square().sum(1), torch.ones(10))
