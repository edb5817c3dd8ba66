"""FPD and KPD agree with jetnet; density, coverage and correlation distances have known values."""

from __future__ import annotations

import numpy as np
import pytest
from calogen.analysis.metrics.distances import Draws
from calogen.analysis.metrics.kinds import kind_of
from calogen.analysis.metrics.multivariate import (
    FPD,
    KPD,
    _frechet_metric,
    batch_sizes,
    caveats,
    correlation_distance,
    correlation_matrix,
    density_coverage,
    extrapolate,
    frechet_distance,
    kernel_distance,
    manifold_metrics,
    moments,
    physics_distances,
    rounded_down,
    scaled_by_largest,
)
from calogen.analysis.metrics.registry import Key, Metric
from calogen.analysis.survey.plan import plan_comparison
from calogen.analysis.survey.survey import survey
from support import MAPS, ORACLES, SMALL, toy

ORACLE = np.load(ORACLES / "fpd_kpd.npz")


@pytest.fixture(scope="module")
def gaussians():
    """The oracle's three samples: two of one distribution, one of another."""
    rng, n = np.random.default_rng(int(ORACLE["seed"])), int(ORACLE["n"])
    mixing = rng.normal(size=(8, 8))
    x, y = rng.normal(size=(n, 8)) @ mixing, rng.normal(size=(n, 8)) @ mixing * 1.02 + 0.05
    assert np.array_equal(mixing, ORACLE["mixing"])
    return {"reference": x, "shifted": y, "same": rng.normal(size=(n, 8)) @ mixing}


def frechet_physics_distance(reference, generated, *, smallest, largest, batches=20):
    """FPD and the error of its fit with jetnet's batches: Kansal et al. 2023, arXiv:2211.10295; jetnet 0.2.5."""
    x, y = scaled_by_largest(reference, generated)
    sizes, rng = batch_sizes(smallest, largest), np.random.default_rng(42)
    found = np.empty((len(sizes), batches))
    for p, size in enumerate(sizes):
        for k in range(batches):
            times = [np.bincount(rng.choice(len(side), size=size), minlength=len(side)) for side in (x, y)]
            found[p, k] = frechet_distance(*(moments(side.T, t) for side, t in zip((x, y), times, strict=True)))
    return extrapolate(sizes, found.mean(axis=1))


def kernel_physics_distance(reference, generated, *, batches=10):
    """KPD with jetnet's batches: the median, and half the width of the central 67.45 %."""
    x, y = scaled_by_largest(reference, generated)
    rngs = [np.random.default_rng(42 + 1000 * batch) for batch in range(batches)]
    found = [kernel_distance(*(side[rng.choice(len(side), size=5000)] for side in (x, y))) for rng in rngs]
    return np.median(found), np.subtract(*np.percentile(found, (83.725, 16.275))) / 2


@pytest.mark.parametrize("name", ["shifted", "same"])
def test_fpd_equals_jetnet(gaussians, name):
    value, error = frechet_physics_distance(gaussians["reference"], gaussians[name], smallest=5000, largest=30_000)
    expected, its_error = ORACLE[f"fpd_{name}"]
    assert abs(value - expected) < 3 * its_error
    assert error == pytest.approx(its_error, rel=0.5)


def test_kpd_equals_jetnet_in_some_batches(gaussians):
    value, _ = kernel_physics_distance(gaussians["reference"], gaussians["shifted"], batches=2)
    expected, its_error = ORACLE["kpd_shifted"]
    assert abs(value - expected) < 3 * its_error


@pytest.mark.slow
@pytest.mark.parametrize("name", ["shifted", "same"])
def test_kpd_equals_jetnet_number_for_number(gaussians, name):
    found = kernel_physics_distance(gaussians["reference"], gaussians[name])
    assert found == pytest.approx(ORACLE[f"kpd_{name}"], rel=1e-6)


def test_frechet_distance_of_known_gaussians():
    rng = np.random.default_rng(0)
    axes, _ = np.linalg.qr(rng.normal(size=(4, 4)))
    widths, others, shift = np.array([1.0, 2, 0.5, 0]), np.array([2.0, 2, 1, 0]), rng.normal(size=4)
    a = np.zeros(4), (axes * widths**2) @ axes.T
    b = shift, (axes * others**2) @ axes.T
    expected = np.sum(shift**2) + np.sum((widths - others) ** 2)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-7)


def test_moments_are_those_of_samples_repeated_as_often_as_they_are_counted():
    rng = np.random.default_rng(5)
    x, times = rng.normal(size=(4, 700)) * np.array([1, 2, 1e-3, 5])[:, None], rng.poisson(0.7, size=700)
    mean, covariance = moments(x, times)
    repeated = np.repeat(x, times, axis=1)
    np.testing.assert_allclose(mean, repeated.mean(axis=1), rtol=1e-9)
    np.testing.assert_allclose(covariance, np.cov(repeated), rtol=1e-9)


def test_fpd_of_features_far_from_zero_is_that_of_features_about_it():
    """Means and covariances of splits are taken about the reference's mean: nothing is lost in differences."""
    rng = np.random.default_rng(6)
    x, y = rng.normal(size=(2, 600, 3))
    draws = Draws.make(600, 600, 0, cap=200)
    one, two = (_frechet_metric(x + shift, y + shift, draws, 0) for shift in (0, 1e4))
    assert (two.value, two.error, two.floor) == pytest.approx((one.value, one.error, one.floor), rel=1e-9, abs=1e-9)


def test_fpd_extrapolates_what_a_finite_sample_adds():
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(2, 20_000, 6))
    plain = frechet_distance(*(moments(side[:500].T, np.ones(500)) for side in scaled_by_largest(x, y)))
    value, error = frechet_physics_distance(x, y, smallest=200, largest=500, batches=5)
    assert value < 0.2 * plain
    assert value < 4 * error + 1e-4
    shifted, _ = frechet_physics_distance(x, y + 1, smallest=200, largest=500, batches=5)
    assert shifted == pytest.approx(np.sum(1 / np.abs(x).max(axis=0) ** 2), rel=0.1)


def test_kernel_distance_is_unbiased_and_what_it_says():
    rng = np.random.default_rng(2)
    a, b = rng.normal(size=(300, 3)), rng.normal(size=(280, 3))
    kernels = [(x @ y.T / 3 + 1) ** 4 for x, y in ((a, a), (b, b), (a, b))]
    own = [(k.sum() - np.trace(k)) / (len(k) * (len(k) - 1)) for k in kernels[:2]]
    assert kernel_distance(a, b) == pytest.approx(sum(own) - 2 * kernels[2].mean(), rel=1e-9)
    found = [kernel_distance(*rng.normal(size=(2, 40, 2))) for _ in range(400)]
    assert abs(np.mean(found)) < 4 * np.std(found) / 20
    assert np.min(found) < 0


def test_density_and_coverage_are_what_they_say():
    rng = np.random.default_rng(3)
    x, y, z = rng.normal(size=(150, 2)), rng.normal(size=(50, 2)), rng.normal(size=(70, 2)) + 1
    within = np.linalg.norm(x[:, None] - x[None], axis=2)
    radius = np.sort(within, axis=1)[:, 3]  # the nearest is the sample itself
    for side, (density, coverage) in zip((y, z), density_coverage(x, y, z, neighbours=3), strict=True):
        inside = np.linalg.norm(x[:, None] - side[None], axis=2) <= radius[:, None]
        assert density == pytest.approx(inside.sum() / (3 * len(side)), rel=1e-9)
        assert coverage == pytest.approx(inside.any(axis=1).mean(), rel=1e-9)


def test_coverage_sees_a_missing_mode_and_density_what_lies_outside():
    rng = np.random.default_rng(4)
    x, y = rng.normal(size=(2, 1500, 3))
    mode = np.where(np.arange(1500) < 500, 8.0, 0)[:, None] * [1, 0, 0]
    alike, missing, outside = density_coverage(x + mode, y + mode, y, y + mode - 4 * (mode == 0))
    assert alike == (pytest.approx(1, abs=0.05), pytest.approx(1 - 2.0**-5, abs=0.015))
    assert missing[1] == pytest.approx(2 / 3, abs=0.03)
    assert outside[0] < 0.4


def test_correlation_distance():
    rng = np.random.default_rng(5)
    x = rng.normal(size=(4000, 3))
    y = x @ np.linalg.cholesky([[1, 0.5, 0], [0.5, 1, 0], [0, 0, 1]]).T * [1, 10, 100] + 5
    assert correlation_matrix(y.T) == pytest.approx(np.corrcoef(y.T))
    assert correlation_distance(x, x * [1, 10, 100]) == pytest.approx(0, abs=1e-9)
    assert correlation_distance(x, y) == pytest.approx(np.sqrt(2 * 0.5**2 / 9), abs=0.02)
    assert correlation_matrix(np.stack([x[:, 0], np.ones(4000)])) == pytest.approx(np.diag([1.0, 0.0]))


@pytest.fixture(scope="module", params=[SMALL, MAPS], ids=lambda f: f.name)
def surveys(request):
    """Toy reference, samples of the same distribution, and samples of another."""
    samples = [toy(request.param, count, seed) for seed, count in enumerate((400, 300))]
    plan = plan_comparison(samples[0], bins=2, seed=0)
    reference, same = (survey(s, plan) for s in samples)
    other = survey(samples[1], plan)
    other.table[:] *= 3
    return plan, reference, same, other


def test_metrics_of_surveys(surveys):
    plan, reference, same, other = surveys

    def measured(generated):
        return {**physics_distances(reference, generated, plan), **manifold_metrics(reference, generated, plan)}

    quiet, loud = measured(same), measured(other)
    assert list(quiet) == ["fpd_200", "kpd_150", "density", "coverage"]
    assert all(metric.n == int(key.split("_")[1]) for key, metric in quiet.items() if "_" in key)
    assert all(abs(metric.pull) < 4 for metric in quiet.values())
    assert loud["fpd_200"].pull > 4
    assert loud["coverage"].pull < -4
    assert quiet == measured(same)
    assert "fpd_200 and kpd_150" in caveats(quiet)[0]
    assert caveats({Key(q, size=n): Metric.of(1, 1, 1, 1, n) for q, n in ((FPD, 50_000), (KPD, 5000))}) == []


def test_features_are_those_of_calochallenge(surveys):
    plan, reference, *_ = surveys
    found = kind_of(plan.family).features(reference, plan, np.array([3, 7]))
    assert np.isfinite(found).all()
    if plan.family is SMALL:
        assert found.shape == (2, 1 + 3 * 5)  # incident energy; of each layer energy, two centres, two widths
        assert found[:, 0] == pytest.approx(np.log10(reference.conditions["incident_energy"][[3, 7]]))
    else:
        assert found.shape == (2, len(plan.observables))


def test_sizes_are_rounded_down():
    assert [rounded_down(n) for n in (7, 99, 1750, 50_000, 16_999)] == [7, 99, 1700, 50_000, 16_000]
