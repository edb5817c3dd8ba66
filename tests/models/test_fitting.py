"""Fits: they recover the numbers that data were made with."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from calogen.models.showers.fitting import fit_least_squares, fit_logistic, inverse_tail, normal_tail


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
    logits = x @ fit_logistic(x, occupied, ridge=ridge)
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


def test_logistic_regression_of_several_trials_is_that_of_each() -> None:
    x = design(3000)
    draws = (torch.rand(2, 3000, 2, generator=torch.Generator().manual_seed(2)) < 0.3 + 0.4 * (x[:, 1:2] > 0)).double()
    tried = torch.ones_like(draws)
    tried[1, ::2] = 0  # half of them were tried once
    together = fit_logistic(x, (draws * tried).sum(0), tried.sum(0))
    alone = fit_logistic(torch.cat([x, x[1::2]]), torch.cat([draws[0], draws[1, 1::2]]))
    torch.testing.assert_close(together, alone, atol=1e-3, rtol=0)


def test_tail_and_normal_are_inverse_and_known() -> None:
    scores = torch.linspace(-5.9, 5.9, 100, dtype=torch.float64)
    torch.testing.assert_close(inverse_tail(normal_tail(scores)), scores, atol=1e-6, rtol=0)
    assert float(normal_tail(torch.tensor(1.959964, dtype=torch.float64))) == pytest.approx(0.025, rel=1e-5)
    assert inverse_tail(torch.tensor([0.0, 1.0])).abs().max() < 6.1
