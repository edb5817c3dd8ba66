"""The equivalent number of reference samples: unbiased, whatever the sizes, and honest where there is only a limit."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from calogen.analysis.comparison import compare
from calogen.analysis.metrics import equivalent
from calogen.analysis.metrics.equivalent import equivalent_numbers, ks_distances
from calogen.analysis.page.tables import SideBySide, summary
from calogen.analysis.page.verdict import verdict
from calogen.analysis.survey.plan import plan_comparison
from calogen.analysis.survey.survey import survey
from scipy.stats import ks_2samp
from support import MAPS, SINGLE, SMALL, listing, toy

SIZE = 2000


@pytest.fixture(scope="module")
def base():
    samples = toy(SINGLE, 200)
    plan = plan_comparison(samples, bins=0, seed=0)
    return survey(samples, plan), plan


def columns(rng, count, observables):
    """Normal observables, correlated, half of them little more than functions of the energy; and the energies."""
    energy = rng.random(count)
    common = rng.normal(size=count)
    noise = rng.normal(size=(observables, count)) + common
    noise[::2] = 8 * energy + 0.1 * noise[::2]
    return noise, energy


def worth(base, mine, other, seed=0):
    """The two numbers for (columns, energies) of both sides."""
    side, plan = base
    sides = [listing(side, c.astype(np.float32), {"incident_energy": e.astype(np.float32)}) for c, e in (mine, other)]
    found = equivalent_numbers(*sides, replace(plan, seed=seed))
    return found["equivalent"], found["equivalent_worst"]


def draw(base, seed, count=SIZE):
    rng = np.random.default_rng(seed)
    return columns(rng, count, len(base[0].names))


def test_distances_are_those_of_scipy():
    rng = np.random.default_rng(0)
    values = np.round(rng.normal(size=(3, 90)), 1).astype(np.float32)  # with ties
    weights = np.where(np.arange(90) < 40, 1 / 40, -1 / 50).astype(np.float32)
    others = rng.permutation(90)
    found = ks_distances(values, np.stack([weights, weights[others]], axis=1))
    for row, both in zip(values, found, strict=True):
        for ks, mine in zip(both, (weights > 0, weights[others] > 0), strict=True):
            assert ks == pytest.approx(ks_2samp(row[mine], row[~mine]).statistic, abs=1e-6)


def test_a_perfect_surrogate_reaches_the_size_of_the_reference(base):
    for seed in range(4):
        for metric in worth(base, draw(base, seed), draw(base, 100 + seed), seed):
            assert metric.lower_limit
            assert metric.error is metric.pull is None
            assert 0.3 * SIZE < metric.value <= metric.floor < 3 * SIZE
            assert metric.unit == "showers"


def test_a_surrogate_that_repeats_its_training_is_worth_as_many(base):
    """Generated samples are drawn from 150 training samples, more than ten times."""
    found = []
    for seed in range(8):
        (table, energy), rows = draw(base, 200 + seed, 150), np.random.default_rng(seed).integers(150, size=SIZE)
        found.append(worth(base, draw(base, seed), (table[:, rows], energy[rows]), seed))
    for metrics in zip(*found, strict=True):
        inverse = np.array([1 / m.value for m in metrics])
        assert 150 * inverse.mean() == pytest.approx(1, abs=0.4)
        assert all(0.05 < m.error / m.value < 0.7 for m in metrics if not m.lower_limit)
        assert sum(m.lower_limit for m in metrics) <= 2


def test_a_shift_is_worth_what_its_distance_is(base):
    """A uniform distribution shifted by 0.2 of its range is that far away; n showers have a median 0.83 / sqrt(n)."""
    table, energy = draw(base, 1)
    uniform = [np.random.default_rng(seed).random(table.shape) for seed in (2, 3)]
    median, _ = worth(base, (uniform[0], energy), (uniform[1] + 0.2, np.random.default_rng(4).random(SIZE)))
    assert median.value == pytest.approx((0.83 / 0.2) ** 2, rel=0.3)
    assert median.error < 0.3 * median.value


def test_samples_at_the_conditions_of_the_reference_are_compared_with_the_other_half(base):
    """They share its energies, so they would lie nearer to it than independent ones can; copies share them, too."""
    side, energy = base[0], np.random.default_rng(0).random(300).astype(np.float32)
    sides = [listing(side, side.table[:, : len(e)], {"incident_energy": e}) for e in (energy, np.tile(energy, 3))]
    rng = np.random.default_rng(1)
    units, others = equivalent._units(*sides, np.arange(300), np.arange(900))
    others = others[equivalent._by_design(units, others, rng)]
    assert sorted(others) == sorted(units)
    for first, second, beside in zip(*equivalent._halves(units, others, rng), strict=True):
        assert set(others[beside]) == set(units[second])
        assert not set(others[beside]) & set(units[first])


def test_maps_are_split_by_realisation():
    """A factor common to a box is noise of the reference, not a fault of the surrogate."""
    boxes, each = 40, 10
    factor = np.repeat(np.random.default_rng(0).normal(1, 0.1, size=2 * boxes), each)
    maps = toy(MAPS, len(factor))
    maps = replace(maps, values=maps.values * factor[:, None, None].astype(np.float32))
    box, half = np.repeat(np.arange(boxes), each), boxes * each
    reference = replace(maps.select(slice(0, half)), extras={"realisation_id": box})
    plan = plan_comparison(reference, bins=0, seed=0)
    metric = equivalent_numbers(survey(reference, plan), survey(maps.select(slice(half, None)), plan), plan)[
        "equivalent"
    ]
    assert metric.lower_limit
    assert metric.unit == "maps"


def test_reports_say_it():
    reference = toy(SMALL, 600)
    bad = toy(SMALL, 600, seed=4)
    found = compare(reference, {"good": toy(SMALL, 600, seed=1), "bad": replace(bad, values=bad.values**0.8)}, bins=0)
    good, worse = found.metrics["good"]["equivalent"], found.metrics["bad"]["equivalent"]
    assert good.lower_limit
    assert not worse.lower_limit
    assert worse.value < good.value / 2
    content = found.to_json()["generated"]
    assert content["good"]["metrics"]["equivalent"]["lower_limit"] is True
    assert "lower_limit" not in content["bad"]["metrics"]["equivalent"]
    assert any("≥" in row.cells[2] for row in summary(found) if row.key == "equivalent")
    assert r"\geq" in SideBySide.of(found).to_latex()
    assert any("worth at least" in text for text in verdict(found, "good").details)
    assert any(" ± " in text for text in verdict(found, "bad").details if "is worth" in text)
    assert any(shown.value.startswith("≥") for shown in verdict(found, "good").numbers)


def test_a_few_samples_say_nothing(base):
    side, plan = base
    few = listing(side, side.table[:, :80], {n: c[:80] for n, c in side.conditions.items()})
    assert equivalent_numbers(few, side, plan) == {}
