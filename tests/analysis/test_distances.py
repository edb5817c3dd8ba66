"""Distances have known values, agree with POT and scipy, and their floors and pulls mean what they say."""

from __future__ import annotations

import numpy as np
import ot
import pytest
from calogen.analysis.metrics.distances import (
    CHI2,
    SEPARATION,
    SEPARATION_FLOW,
    W1,
    Draws,
    chi2_per_ndf,
    compare_1d,
    earth_mover,
    mean_difference,
    separation_power,
    spread_difference,
    squared_distances,
    wasserstein_1d,
)
from calogen.analysis.metrics.registry import Metric
from calogen.analysis.survey.plan import directions
from scipy.stats import kurtosis, wasserstein_distance
from support import ORACLES

from calogen.errors import ShardError


def test_w1_of_shifted_samples_is_the_shift():
    x = np.random.default_rng(0).normal(size=1000)
    assert wasserstein_1d(x, x + 0.25) == pytest.approx(0.25, rel=1e-12)
    assert wasserstein_1d(x, x) == 0


@pytest.mark.parametrize(("n", "m"), [(500, 500), (500, 321), (1, 7), (400, 1)])
def test_w1_equals_scipy_and_pot(n, m):
    rng = np.random.default_rng(n + m)
    a, b = rng.normal(size=n), np.round(rng.exponential(size=m), 1)  # ties included
    assert wasserstein_1d(a, b) == pytest.approx(wasserstein_distance(a, b), rel=1e-12)
    assert wasserstein_1d(a, b) == pytest.approx(float(ot.wasserstein_1d(a, b)), rel=1e-9)


def test_w1_needs_samples():
    with pytest.raises(ValueError, match="both sides"):
        wasserstein_1d([], [1.0])


def test_sliced_equals_pot():
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(200, 6)), rng.normal(0.3, 1.2, size=(150, 6))
    basis = directions(6, 50, seed=3)
    expected = ot.sliced_wasserstein_distance(a, b, projections=basis, p=1)
    found = np.mean([wasserstein_1d(p, q) for p, q in zip((a @ basis).T, (b @ basis).T, strict=True)])
    assert found == pytest.approx(float(expected), rel=1e-9)


def test_earth_mover_equals_pot_and_known_values():
    rng = np.random.default_rng(2)
    a, b = rng.normal(size=(60, 5)), rng.normal(size=(60, 5))
    assert earth_mover(a, b) == pytest.approx(float(ot.emd2([], [], ot.dist(a, b, metric="euclidean"))), rel=1e-9)
    assert earth_mover(a, a[::-1] + np.array([3.0, 0, 4.0, 0, 0])) == pytest.approx(5.0, rel=1e-9)
    fewer = ot.emd2([], [], ot.dist(a, b[:37], metric="euclidean"))
    assert earth_mover(a, b[:37]) == pytest.approx(float(fewer), rel=1e-9)
    column = rng.normal(size=(80, 1))
    assert earth_mover(column, 2 * column) == pytest.approx(wasserstein_1d(column, 2 * column), rel=1e-6)


def test_separation_power_equals_calochallenge():
    oracle = np.load(ORACLES / "separation_power.npz")
    counts = [np.histogram(oracle[k], oracle["bins"])[0] for k in "ab"]
    assert abs(float(separation_power(*counts)) - float(oracle["separation"])) < 1e-9
    assert separation_power([5, 0], [0, 3]) == pytest.approx(1.0)
    assert separation_power([2, 4], [1, 2]) == pytest.approx(0.0)


def test_chi2_is_one_for_chance():
    rng = np.random.default_rng(3)
    rows = [np.stack([np.histogram(rng.normal(size=n), 20, (-3, 3))[0] for _ in range(300)]) for n in (2000, 1000)]
    assert chi2_per_ndf(*rows).mean() == pytest.approx(1.0, abs=0.06)
    assert chi2_per_ndf(rows[0][0], rows[0][0]) == 0


def test_draws_are_disjoint_equal_in_size_and_seeded():
    draws = Draws.make(101, 40, seed=5)
    assert draws.n == 40
    assert not (draws.first & draws.second).any()
    for picked in (draws.first, draws.second, draws.generated, draws.first_again, draws.generated_again):
        assert (picked.sum(axis=1) == 40).all()
    again = Draws.make(101, 40, seed=5)
    assert all(np.array_equal(a, b) for a, b in zip(vars(draws).values(), vars(again).values(), strict=True))
    with pytest.raises(ShardError, match="too few"):
        Draws.make(3, 40, seed=0)


def test_maps_of_one_realisation_stay_on_one_side():
    groups = np.repeat(np.arange(8), 6)
    draws = Draws.make(48, 30, seed=0, groups=groups)
    for first, second in zip(draws.first, draws.second, strict=True):
        assert not set(groups[first]) & set(groups[second])


def test_compare_1d_is_what_it_says():
    rng = np.random.default_rng(6)
    reference, generated = rng.normal(size=90), rng.normal(0.5, 1.5, size=70)
    edges = np.linspace(-2, 2, 9)
    draws = Draws.make(90, 70, seed=1)
    found = compare_1d(reference, generated, edges, draws)
    half, other, mine = reference[draws.first[0]], reference[draws.second[0]], generated[draws.generated[0]]
    assert np.asarray(found[W1])[:2, 0] == pytest.approx([wasserstein_1d(half, mine), wasserstein_1d(half, other)])
    again = np.repeat(reference, draws.first_again[0]), np.repeat(generated, draws.generated_again[0])
    assert found[W1][2][0] == pytest.approx(wasserstein_1d(*again))
    inside = [np.histogram(x, edges)[0] for x in (half, mine)]
    assert found[SEPARATION][0][0] == pytest.approx(float(separation_power(*inside)))
    with_flow = [
        np.concatenate([[np.sum(x < -2)], h, [np.sum(x >= 2)]]) for x, h in zip((half, mine), inside, strict=True)
    ]
    assert found[CHI2][0][0] == pytest.approx(float(chi2_per_ndf(*with_flow)))
    assert found[SEPARATION_FLOW][0][0] == pytest.approx(float(separation_power(*with_flow)))


def test_separation_counts_what_lies_outside_under_its_own_name():
    """Ten samples in a hundred far outside: invisible to CaloChallenge's definition, not to the other."""
    reference = np.linspace(0, 1, 400, endpoint=False)
    generated = np.where(np.arange(400) % 10, reference, 5.0)
    found = compare_1d(reference, generated, np.array([0.0, 0.5, 1.0]), Draws.make(400, 400, seed=0))
    inside, everything = (Metric.from_splits(d, 200) for d in (found[SEPARATION], found[SEPARATION_FLOW]))
    assert inside.pull < 3
    assert everything.value == pytest.approx(0.05, abs=0.015)
    assert everything.pull > 3


def test_errors_from_subsamples_are_those_of_repeated_experiments():
    """The difference of two medians: its error from half samples is the spread over new samples."""
    rng = np.random.default_rng(9)
    draws = Draws.make(400, 400, seed=0, cap=200)
    medians, errors = [], []
    for reference, generated in rng.normal(size=(60, 2, 400)):
        found = []
        for s in range(len(draws.first)):
            half = np.median(reference[draws.first[s]])
            others = generated[draws.generated[s]], reference[draws.second[s]]
            found.append([np.median(other) - half for other in others])
        metric = Metric.from_subsamples(*np.transpose(found), draws.n, 400)
        medians.append(metric.value)
        errors.append(metric.error)
    assert np.mean(errors) == pytest.approx(np.std(medians), rel=0.25)
    few = Metric.from_subsamples([1.0, 2, 3, 2], [0.0, 0, 1, 1], 10, 1010)
    assert few.error == pytest.approx(np.std([1, 2, 3, 2], ddof=1) * np.sqrt(1 / 4 + 10 / 1000))


def test_squared_distances():
    rng = np.random.default_rng(10)
    a, b = rng.normal(size=(5, 3)), rng.normal(size=(4, 3))
    assert squared_distances(a, b) == pytest.approx(((a[:, None] - b) ** 2).sum(axis=2))


def test_pulls_are_small_without_and_large_with_a_difference():
    rng = np.random.default_rng(7)
    pulls = {0.0: [], 0.5: []}
    for shift, found in pulls.items():
        for seed in range(40):
            reference, generated = rng.normal(size=600), rng.normal(shift, 1.0, size=300)
            draws = Draws.make(600, 300, seed)
            compared = compare_1d(reference, generated, np.linspace(-3, 3, 21), draws)
            found.append([Metric.from_splits(d, draws.n).pull for d in (compared[W1], compared[SEPARATION])])
    null, planted = np.array(pulls[0.0]), np.array(pulls[0.5])
    assert np.abs(null.mean(axis=0)).max() < 0.35
    assert (null < 3).mean() > 0.97
    assert planted[:, 0].mean() > 3


def test_differences_of_moments():
    rng = np.random.default_rng(8)
    reference = rng.normal(10, 1, size=4000)
    value, error = mean_difference(reference, 1.01 * reference, signed=False)
    assert value == pytest.approx(0.01, rel=1e-9)
    assert error == pytest.approx(0.1 * np.sqrt(2 / 4000), rel=0.05)
    value, _ = mean_difference(reference - 10, reference - 9.5, signed=True)
    assert value == pytest.approx(0.5 / reference.std())
    value, error = spread_difference(reference, 10 + 1.2 * (reference - 10))
    assert value == pytest.approx(0.2, rel=1e-9)
    excess = kurtosis(reference)  # the variance of a variance: (m4 - m2^2) / N
    assert error == pytest.approx(1.2 * np.sqrt(2 * (excess + 2) / (4 * 4000)), rel=1e-9)
    assert error == pytest.approx(1.2 / np.sqrt(4000), rel=0.1)  # sqrt(2 / 2N) for normals


@pytest.mark.parametrize("difference", [lambda a, b: mean_difference(a, b, signed=False), spread_difference])
def test_moments_of_constants(difference):
    zero, one = np.zeros(5), np.arange(5.0)
    assert difference(zero, zero) == (0.0, 0.0)
    assert np.isnan(difference(zero, one)[0])


def test_what_is_not_finite_is_none():
    metric = Metric.of(float("nan"), 0.1, 0.0, float("inf"), 10)
    assert metric == Metric(None, 0.1, 0.0, None, None, 10)
    assert Metric.of(2.0, 0.0, 2.0, 0.0, 5).pull == 0
    assert Metric.of(3.0, 0.0, 2.0, 0.0, 5).pull is None
