"""Straight showers with known axes: effective depths, observables about the axis, position resolution, profiles."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from calogen.analysis.comparison import compare
from calogen.analysis.metrics.movers import ENERGY_MOVER
from calogen.analysis.metrics.position import (
    ON_AXIS,
    POSITION_BIAS,
    POSITION_CORE,
    POSITION_RMS,
    position_metrics,
)
from calogen.analysis.metrics.registry import Key
from calogen.analysis.observables.axis import ShowerAxis
from calogen.analysis.observables.catalogue import catalogue, observe
from calogen.analysis.page.tables import summary
from calogen.analysis.survey.plan import plan_comparison
from calogen.analysis.survey.survey import survey
from support import SINGLE, SMALL, straight, straight_family, toy

from calogen.families import FAMILIES, Condition
from calogen.shards.samples import Samples

DEPTHS = np.array([[5.0, 1.0], [30.0, 4.0]])  # at 10 GeV, and change with ln E
JITTER = 0.3


@pytest.fixture(scope="module")
def showers():
    return straight(2000, depths=DEPTHS, jitter=JITTER)


@pytest.fixture(scope="module")
def axis(showers):
    return ShowerAxis.fit(showers.family, observe(showers), showers.conditions)


def test_effective_depths_are_found_and_not_the_middles(showers, axis):
    at_10_gev = axis.depths[:, 0] + axis.depths[:, 1] * np.log(10e3 / axis.energy)
    np.testing.assert_allclose(at_10_gev, DEPTHS[:, 0], atol=0.5)
    np.testing.assert_allclose(axis.depths[:, 1], DEPTHS[:, 1], atol=0.7)
    assert abs(np.mean(showers.family.depths[1]) - 30) == 5


def test_observables_about_the_axis_are_about_the_axis(showers, axis):
    found = observe(showers, axis)
    assert list(found) == list(catalogue(showers.family, axis=axis))
    for number in (0, 1):
        # Three rows of strips do not say where along them a shower is.
        assert (f"offset_x_{number}" in found) == (number == 1)
        assert abs(found[f"offset_y_{number}"].mean()) < 0.05
        assert found[f"offset_y_{number}"].std() == pytest.approx(JITTER, rel=0.1)
        assert np.abs(found[f"hottest_y_{number}"]).max() < 1 + 4 * JITTER  # half a cell, and what it is off
        assert found[f"around_{number}"].min() > 0.6 > found[f"crossed_{number}"].mean()


def test_shares_about_the_axis_are_sums_of_cells():
    family = straight_family()
    values = np.zeros((2, family.voxels), dtype=np.float32)
    grid = values[:, family.layer_slices[1]].reshape(2, 32, 32)
    grid[0, 16, 16], grid[0, 17, 15], grid[0, 18, 16], grid[0, 0, 0] = 4.0, 2.0, 1.0, 1.0
    values[:, family.layer_slices[1]] = grid.reshape(2, -1)
    conditions = {"incident_energy": [10.0, 10.0], "impact_x": [1.0, 500.0], "impact_y": [1.9, 0.0]}
    conditions |= {"theta": [0.0, 0.0], "phi": [0.0, 0.0]}
    of = ShowerAxis(family, DEPTHS, 1e4)
    found = observe(Samples(family, values, conditions), of)
    assert found["crossed_1"].tolist() == [0.5, 0.0]
    assert found["around_1"].tolist() == [0.75, 0.0]
    assert found["hottest_y_1"][0] == pytest.approx(1.0 - 1.9, abs=1e-6)
    empty = [name for name, observable in catalogue(family, axis=of).items() if observable.about_axis]
    assert all(found[name][1] == 0 for name in empty)


def test_an_axis_needs_conditions_that_say_it(showers):
    table, family, known = observe(showers), showers.family, dict(showers.conditions)

    def fitted(*names, of=family):
        return ShowerAxis.fit(of, table, {name: known[name] for name in ("incident_energy", *names)})

    flat = family.with_depths(())
    assert fitted() is None
    assert fitted("impact_x", "impact_y", "theta") is None  # a direction has two angles
    assert fitted("theta", "phi", of=flat) is None
    assert fitted("impact_x", "impact_y", of=flat) is not None
    at_impact = fitted("impact_x", "impact_y", of=flat).crossing(known | {"theta": np.zeros(len(showers))})
    np.testing.assert_allclose(at_impact, np.broadcast_to([known["impact_x"], known["impact_y"]], at_impact.shape))


def test_angles_without_depths_are_said():
    showers = straight(60, depths=DEPTHS, jitter=JITTER)
    flat = replace(showers, family=showers.family.with_depths(()))
    found = compare(flat, flat, bins=0)
    assert any("depths" in note for note in found.notes)
    assert not [o for o in found.observables.values() if o.about_axis]


def test_position_resolution_and_planted_defects(showers):
    plan = plan_comparison(showers, bins=0, seed=0)
    base = survey(showers, plan)

    def measured(seed, **changes):
        made = straight(800, seed=seed, depths=DEPTHS, **{"jitter": JITTER, **changes})
        return position_metrics(base, survey(made, plan), plan)

    same, shifted, blurred = measured(1), measured(2, shift=2.0), measured(3, jitter=3 * JITTER)
    for centre in ("centre_y_0", "centre_x_1", "centre_y_1"):
        assert all(abs(same[Key(q, centre)].pull) < 4 for q in (POSITION_CORE, POSITION_RMS, POSITION_BIAS))
        core = same[Key(POSITION_CORE, centre)]
        assert core.value == pytest.approx(JITTER, rel=0.1)
        assert core.floor == pytest.approx(JITTER, rel=0.1)
        assert blurred[Key(POSITION_CORE, centre)].value == pytest.approx(3 * JITTER, rel=0.15)
        bias = shifted[Key(POSITION_BIAS, centre)].value
        assert bias == pytest.approx(2.0 if "_y" in centre else 0.0, abs=0.1)
    assert same[Key(ON_AXIS, "hottest_y_0")].value > 0.98
    assert shifted[Key(ON_AXIS, "hottest_y_0")].pull < -5
    assert shifted[Key(ON_AXIS, "hottest_x_1")].value > 0.98


def test_a_report_shows_what_is_about_the_axis_and_only_then():
    showers = straight(120, depths=DEPTHS, jitter=JITTER)
    shown = compare(showers, straight(60, seed=1, depths=DEPTHS, jitter=JITTER), bins=0)
    assert {"offset", "hottest", "about-axis"} < {observable.figure for observable in shown.observables.values()}
    assert Key(POSITION_CORE, "centre_y_0") in [row.key for row in summary(shown)]
    assert not shown.metrics["generated"].select(ENERGY_MOVER)  # seconds, that nobody asked for
    without = compare(toy(SINGLE, 60), toy(SINGLE, 60, 1), bins=0)
    assert not [o for o in without.observables.values() if o.about_axis]
    assert not without.metrics["generated"].select(POSITION_CORE, ON_AXIS)


def test_moments_of_the_profile():
    family = straight_family(layers=4)
    energies = np.array([[1.0, 2.0, 3.0, 4.0], [0.0, 7.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    values = np.zeros((3, family.voxels), dtype=np.float32)
    values[:, [cells.start for cells in family.layer_slices]] = energies
    found = observe(Samples(family, values, {"incident_energy": [10.0] * 3}))
    z = np.mean(family.depths, axis=1)
    mean = np.average(z, weights=energies[0])
    second, third, fourth = (np.average((z - mean) ** k, weights=energies[0]) for k in (2, 3, 4))
    expected = {
        "profile_depth": [mean, z[1], 0],
        "profile_width": [second**0.5, 0, 0],
        "profile_skewness": [third / second**1.5, 0, 0],
        "profile_kurtosis": [fourth / second**2 - 3, 0, 0],
    }
    for name, numbers in expected.items():
        np.testing.assert_allclose(found[name], numbers, rtol=1e-9, atol=1e-12, err_msg=name)
    assert "profile_kurtosis" not in catalogue(FAMILIES["calogan"])  # three layers do not resolve it
    assert "profile_depth" not in catalogue(SMALL)


def test_what_scores_are_made_of_does_not_change_with_what_is_measured():
    showers = toy(FAMILIES["calogan"], 5)
    assert [name for name in observe(showers) if name not in observe(showers, scored=True)] == [
        "profile_depth",
        "profile_width",
        "profile_skewness",
    ]


def test_directions_in_degrees_and_radians():
    family = straight_family()
    angle = Condition(name="theta", unit="rad", low=0, high=1)
    for of, theta in ((family, 45.0), (family.with_condition(angle), np.pi / 4)):
        impact, tangents = of.lines({"theta": np.array([theta]), "phi": np.array([90.0])})
        np.testing.assert_allclose(tangents[:, 0], [0, 1], atol=1e-12)
        assert not impact.any()
