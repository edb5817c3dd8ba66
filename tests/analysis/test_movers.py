"""The energy mover's distance has known values, is a metric, and its two-sample test sees planted defects."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from calogen.analysis.comparison import compare
from calogen.analysis.metrics import movers
from calogen.analysis.metrics.classifiers import Classification
from calogen.analysis.metrics.movers import ENERGY_MOVER, ENERGY_MOVER_MMD, Points, energy_mover, energy_mover_metrics
from calogen.analysis.metrics.registry import Key
from calogen.analysis.survey.plan import plan_comparison
from scipy.optimize import linprog
from support import MAPS, straight, toy

DEPTHS = np.array([[5.0, 0.0], [30.0, 0.0]])


def shower(*points):
    """From (energy, x, y, z), positions in units of R."""
    table = np.array(points, dtype=np.float64).reshape(-1, 4)
    return Points(table[:, 0], table[:, 1:])


def random_showers(count, seed=0):
    rng = np.random.default_rng(seed)
    return [Points(rng.gamma(0.5, size=n), rng.uniform(-0.5, 0.5, size=(n, 3))) for n in rng.integers(1, 7, count)]


def test_one_voxel_moves_by_its_distance():
    assert energy_mover(shower((3, 0, 0, 0)), shower((3, 0.3, 0.4, 0))) == pytest.approx(3 * 0.5)
    assert energy_mover(shower((3, 0, 0, 0)), shower((3, 9, 0, 0))) == pytest.approx(3 * 2)  # at most 2 R


def test_what_a_shower_lacks_counts_in_full():
    assert energy_mover(shower((3, 0, 0, 0)), shower((2, 0, 0.1, 0))) == pytest.approx(1 + 2 * 0.1)
    assert energy_mover(shower((2, 0, 0.1, 0)), shower((3, 0, 0, 0))) == pytest.approx(1 + 2 * 0.1)
    assert energy_mover(shower((3, 0, 0, 0)), shower()) == 3
    assert energy_mover(shower(), shower()) == 0


def test_equal_to_its_definition_as_a_linear_program():
    """Least sum f d / R with flows that leave and reach no more than there is, and all that both have."""
    for first, second in zip(random_showers(5), random_showers(5, 1), strict=True):
        n, m = len(first.energies), len(second.energies)
        distance = np.linalg.norm(first.positions[:, None] - second.positions, axis=-1)
        leaves, reaches = np.kron(np.eye(n), np.ones(m)), np.kron(np.ones(n), np.eye(m))
        totals = first.energies.sum(), second.energies.sum()
        found = linprog(
            distance.ravel(),
            A_ub=np.vstack([leaves, reaches]),
            b_ub=np.concatenate([first.energies, second.energies]),
            A_eq=np.ones((1, n * m)),
            b_eq=[min(totals)],
        )
        assert energy_mover(first, second) == pytest.approx(found.fun + abs(totals[0] - totals[1]), rel=1e-6)


def test_it_is_a_metric():
    some = random_showers(4, 2)
    for a, b, c in permutations(some, 3):
        assert energy_mover(a, b) == pytest.approx(energy_mover(b, a))
        assert energy_mover(a, c) <= energy_mover(a, b) + energy_mover(b, c) + 1e-9
    assert energy_mover(some[0], some[0]) == pytest.approx(0, abs=1e-12)


@pytest.fixture(scope="module")
def reference():
    return straight(400, depths=DEPTHS, jitter=0.5)


@pytest.fixture(scope="module")
def plan(reference):
    return plan_comparison(reference, bins=0, seed=0)


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(movers, "_SHOWERS", 160)
    monkeypatch.setattr(movers, "_HOTTEST", 8)


@pytest.mark.usefixtures("quick")
def test_pulls_of_like_samples_are_small_and_planted_defects_are_seen(reference, plan):
    def pulls(**changes):
        generated = straight(400, seed=1, depths=DEPTHS, **{"jitter": 0.5, **changes})
        found = energy_mover_metrics(reference, generated, plan)
        assert all(metric.floor == 0 for metric in found.values())
        return found[Key(ENERGY_MOVER)].pull, found[Key(ENERGY_MOVER_MMD)].pull

    assert max(map(abs, pulls())) < 3
    assert min(pulls(shift=2.0)) > 3.5
    assert min(pulls(width=3.0)) > 3.5


def test_showers_are_seen_from_their_axis(plan):
    """The same showers moved by whole cells, impact points and all, are the same showers."""
    here, there = (straight(20, depths=DEPTHS, jitter=0.0, offset=offset, inclined=False) for offset in (0.0, 8.0))
    pairs = zip(*(movers._points(side, plan) for side in (here, there)), strict=True)
    assert max(energy_mover(a, b) for a, b in pairs) < 1e-6


def test_it_needs_showers_and_some_of_them(reference, plan):
    assert not energy_mover_metrics(reference.read(0, 60), reference.read(60, 120), plan)
    maps = toy(MAPS, 30)
    assert not energy_mover_metrics(maps, maps, plan_comparison(maps, bins=0, seed=0))


@pytest.mark.usefixtures("quick")
def test_it_comes_with_the_classifiers(reference, monkeypatch):
    nothing = Classification({}, {}, (), {}, ())
    monkeypatch.setattr("calogen.analysis.metrics.classifiers.classify", lambda *_, **__: nothing)
    sides = reference.read(0, 160), straight(160, seed=5, depths=DEPTHS, jitter=0.5)
    found = compare(*sides, bins=0, classifier="light").metrics["generated"]
    assert {key.quantity for key in found.select(ENERGY_MOVER, ENERGY_MOVER_MMD)} == {ENERGY_MOVER, ENERGY_MOVER_MMD}
