"""Fits of the resolution give back what was put in; held-out ranges are what training leaves out."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from calogen.analysis.metrics.conditioning import (
    RESOLUTIONS,
    HeldOut,
    fit_metrics,
    fit_resolution,
    held_out_selections,
    relative_core,
    relative_spread,
    resolution_fits,
    resolution_of,
)

from calogen.families import FAMILIES
from calogen.shards.samples import Samples
from calogen.training.batches import held_out

CALOGAN = FAMILIES["calogan"]
ENERGY = CALOGAN.conditions[0]
A, B, C = 0.10, 0.30, 0.007


def resolution(energies, a=A, b=B, c=C):
    return np.sqrt(a**2 / energies + (b / energies) ** 2 + c**2)


def side(count, seed, a=A, b=B, c=C):
    """Showers with nothing but a normal response of known resolution, 1 to 100 GeV."""
    rng = np.random.default_rng(seed)
    energies = rng.uniform(1, 100, count)
    response = 0.9 * (1 + resolution(energies, a, b, c) * rng.normal(size=count))
    conditions = {"incident_energy": (1e3 * energies).astype(np.float32)}
    return SimpleNamespace(names=["response"], table=response[None].astype(np.float32), conditions=conditions)


def test_an_exact_curve_gives_its_terms_back():
    energies = np.geomspace(1, 100, 12)
    exact = resolution(energies)
    fit = fit_resolution(exact, 1e-4 * exact, 1 / energies, energies**-2)
    np.testing.assert_allclose(fit.terms, (A, B, C), rtol=1e-6)
    np.testing.assert_allclose(fit.at(energies), exact, rtol=1e-6)
    assert fit.chi2 == pytest.approx(0, abs=1e-6)
    assert fit.ndf == 9


def test_errors_of_the_terms_are_their_scatter():
    energies, rng = np.geomspace(1, 100, 12), np.random.default_rng(1)
    exact = resolution(energies)
    error = 0.01 * exact
    fits = [fit_resolution(exact + error * rng.normal(size=12), error, 1 / energies, energies**-2) for _ in range(200)]
    terms = np.array([fit.terms for fit in fits])
    errors = np.mean([fit.errors for fit in fits], axis=0)
    np.testing.assert_allclose(terms.std(axis=0), errors, rtol=0.2)
    assert np.all(np.abs(terms.mean(axis=0) - (A, B, C)) < 4 * errors / np.sqrt(200))
    assert np.mean([fit.chi2 / fit.ndf for fit in fits]) == pytest.approx(1, abs=0.15)


def test_a_term_that_is_not_there_is_zero_within_its_error():
    energies, rng = np.geomspace(1, 100, 12), np.random.default_rng(2)
    exact = resolution(energies, b=0.0)
    error = 0.01 * exact
    fits = [fit_resolution(exact + error * rng.normal(size=12), error, 1 / energies, energies**-2) for _ in range(100)]
    noise = np.array([fit.terms[1] for fit in fits])
    assert np.all(noise >= 0)
    assert 0.2 < np.mean(noise == 0) < 0.8
    assert np.all([0 < fit.errors[1] < 0.1 for fit in fits])


def test_wide_bins_do_not_bias_the_fit():
    """The first of ten bins reaches from 1 to 11 GeV, where 1/E^2 varies a hundredfold."""
    edges = np.linspace(1e3, 100e3, 11)
    fit = resolution_of(side(200_000, 3), ENERGY, edges, "rms_resolution")
    assert fit is not None
    assert fit.ndf == 10 - 3
    for term, error, truth in zip(fit.terms, fit.errors, (A, B, C), strict=True):
        assert abs(term - truth) < 3 * error
        assert error < max(0.15 * truth, 0.05)


def test_both_resolutions_of_normal_responses_agree():
    values = 0.9 * (1 + 0.01 * np.random.default_rng(4).normal(size=100_000))
    (core, core_error), (spread, spread_error) = relative_core(values), relative_spread(values)
    assert core == pytest.approx(0.01 * 0.9945, abs=4 * core_error)  # 16 % is 0.9945 standard deviations away
    assert spread == pytest.approx(0.01, abs=4 * spread_error)
    assert spread_error == pytest.approx(0.01 / np.sqrt(2e5), rel=0.05)


def test_differences_of_fits_are_metrics():
    sides = {name: side(20_000, 5, c=c) for name, c in (("reference", C), ("generated", 2 * C))}
    fits = resolution_fits(sides, ENERGY)
    found = fit_metrics(*fits.values(), 20_000)
    assert set(found) == {f"{term}/{kind}" for term in ("stochastic", "noise", "constant") for kind in RESOLUTIONS}
    metric = found["constant/rms_resolution"]
    assert metric.pull > 3
    assert metric.value == pytest.approx(C, abs=3 * metric.error)
    assert (metric.floor, metric.n) == (0.0, 20_000)
    assert found["stochastic/rms_resolution"].unit == "sqrt(GeV)"
    assert not fit_metrics(fits["reference"], dict.fromkeys(RESOLUTIONS), 1)


def test_too_few_bins_have_no_fit():
    energies = np.array([1.0, 2.0, 3.0])
    assert fit_resolution(resolution(energies), np.full(3, 0.01), 1 / energies, energies**-2) is None
    five = np.array([1.0, 2.0, 3.0, 4.0, 5.0])
    y = np.where(five > 3, np.nan, resolution(five))
    assert fit_resolution(y, np.full(5, 0.01), 1 / five, five**-2) is None


def test_inside_is_what_training_leaves_out_and_outside_the_rest():
    energies = np.array([39_999, 40_000, 50_000, 60_000, 60_001], dtype=np.float32)
    samples = Samples(CALOGAN, np.zeros((5, CALOGAN.voxels), np.float32), {"incident_energy": energies})
    ranges = {"incident_energy": (40e3, 60e3)}
    inside, outside = held_out_selections(CALOGAN, [{"holdout": ranges}], ["incident_energy"])
    np.testing.assert_array_equal(inside.of(samples.conditions, 5), held_out(samples, ranges))
    np.testing.assert_array_equal(outside.of(samples.conditions, 5), ~held_out(samples, ranges))
    assert (inside.suffix, outside.suffix) == ("[inside:40:60GeV]", "[outside:40:60GeV]")
    assert inside.title == "inside held-out 40 to 60 GeV"
    assert isinstance(inside, HeldOut)
    assert inside.condition == ""  # it is no bin


def test_every_range_counts_once_and_unknown_conditions_do_not():
    one, two = {"incident_energy": [40e3, 60e3]}, {"incident_energy": [10e3, 20e3]}
    provenances = [{"holdout": one}, {}, {"holdout": one}, {"holdout": two}, {"holdout": {}}, {"holdout": None}]
    found = held_out_selections(CALOGAN, provenances, ["incident_energy"])
    assert [s.name for s in found] == ["inside:40:60GeV", "outside:40:60GeV", "inside:10:20GeV", "outside:10:20GeV"]
    assert held_out_selections(CALOGAN, provenances, []) == ()
