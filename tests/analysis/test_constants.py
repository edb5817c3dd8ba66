"""A spread below the resolution of the data is no yardstick: such observables are compared for equality, and said."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from calogen.analysis.comparison import compare
from calogen.analysis.metrics.classifiers import _fit
from calogen.analysis.metrics.distances import mean_difference, scale_of, spread_difference, unequal
from calogen.analysis.metrics.multivariate import correlation_distance
from calogen.analysis.metrics.validation import judge, score
from calogen.analysis.observables.catalogue import catalogue, observe
from calogen.analysis.page.tables import summary, worst
from support import ENERGY

from calogen.families import ROUNDING, CylindricalLayer, Family, varies
from calogen.shards.samples import Samples

RINGS = CylindricalLayer(n_alpha=5, r_edges=tuple(np.arange(8) * 4.65))
FAMILY = Family(name="rings", layers=(RINGS, RINGS), conditions=(ENERGY,))


def one_hit(count, seed, twice=0):
    """Showers whose second layer has a single hit; ``twice`` of them have two."""
    rng = np.random.default_rng(seed)
    values = rng.exponential(size=(count, FAMILY.voxels)).astype(np.float32)
    values[:, 35:] = 0
    rows = np.arange(count)
    values[rows, 35 + rng.integers(35, size=count)] = rng.exponential(size=count)
    values[rows[:twice], 35], values[rows[:twice], 69] = 1, 1
    return Samples(FAMILY, values, {"incident_energy": rng.uniform(1e3, 1e5, count)})


@pytest.fixture(scope="module")
def reference():
    return one_hit(400, 0)


def test_one_rule_for_arrays_and_tensors():
    spread, largest = np.array([0.0, 1e-9, 2e-6, 2e-6, 1.0]), np.array([0.0, 1.0, 1.0, 1.0, 1e7])
    resolution = np.array([0.0, 0.0, 0.0, 3e-6, 0.0])
    expected = [False, False, True, False, False]
    assert varies(spread, largest, resolution).tolist() == expected
    assert varies(*(torch.from_numpy(x) for x in (spread, largest, resolution))).tolist() == expected
    assert np.finfo(np.float32).eps < ROUNDING < 1e-5


def test_the_width_of_one_hit_is_zero(reference):
    widths = {name: values for name, values in observe(reference).items() if "width" in name and name.endswith("_1")}
    assert set(widths) == {"width_x_1", "width_y_1", "width_r_1"}
    assert not any(values.any() for values in widths.values())
    assert observe(one_hit(400, 0, twice=5))["width_x_1"][:6].astype(bool).tolist() == [True] * 5 + [False]


def test_resolutions_follow_the_size_of_the_layer():
    known = catalogue(FAMILY)
    assert known["width_r_1"].resolution == pytest.approx(ROUNDING * 6.5 * 4.65)
    assert known["energy_1"].resolution == 0


def test_scores_with_constant_observables(reference):
    equal, other = judge(reference, one_hit(400, 1)), judge(reference, one_hit(400, 1, twice=40))
    assert 0 < equal.score < 0.3
    assert {name for name in equal.constant if "width" in name} == {
        f"width_{axis}_1{bin_}" for axis in "xyr" for bin_ in {name[name.index("[") :] for name in equal.constant}
    }
    assert not any(equal.constant.values())
    assert other.score < 0.3
    assert sum(other.constant[name] for name in other.constant if "width_x_1" in name) == pytest.approx(0.4, rel=0.8)
    # The other way round there is a spread, and the missing hits are a finite distance.
    assert not any("width_x_1" in name for name in judge(one_hit(400, 1, twice=380), reference).constant)
    assert 0.1 < score(one_hit(400, 1, twice=380), reference) < 3


def test_a_sample_in_which_nothing_varies_is_compared_for_equality(reference):
    same = reference.select(np.zeros(30, dtype=int))
    assert score(same, same) == 0
    assert score(same, replace(same, values=2 * same.values)) > 0.1


def test_a_report_says_what_is_constant(reference):
    found = compare(reference, {"equal": one_hit(300, 1), "other": one_hit(300, 1, twice=30)}, bins=0)
    equal, other = found.metrics["equal"], found.metrics["other"]
    assert other["unequal/width_x_1"].value == pytest.approx(0.1)
    assert other["unequal/width_x_1"].pull > 3
    assert other["w1/width_x_1"].value > 0
    assert other["w1_sd/width_x_1"].value is other["spread/width_x_1"].value is other["mean/width_x_1"].value is None
    for quantity in ("unequal", "w1", "w1_sd", "mean", "spread"):
        assert equal[f"{quantity}/width_x_1"].value == 0
    assert "unequal/width_x_0" not in equal
    assert equal["score"].value < 0.3
    assert other["score"].value < 0.3
    notes = {name: [n for n in found.notes if n.startswith(name) and "constant" in n] for name in ("equal", "other")}
    assert len(notes["equal"]) == len(notes["other"]) == 1
    assert notes["equal"][0].endswith("the generated samples are equal.")
    assert "width_x_1 (0.1 of the samples)" in notes["other"][0]
    assert summary(found)

    # What is constant and equal is not among the farthest observables.
    assert equal["w1_sd/width_x_1"].exact
    assert not equal["w1_sd/width_x_0"].exact
    farthest = worst(equal, count=1000)
    assert "w1_sd/width_x_0" in farthest
    assert "w1_sd/width_x_1" not in farthest


def test_rounding_is_no_difference():
    """A response that energy conservation makes 1 but for rounding has no spread, no pull and no classifier."""
    rng = np.random.default_rng(0)
    a, b = (1 + 1e-7 * rng.normal(size=200), 1 + 2e-7 * rng.normal(size=200) + 1e-7)
    assert scale_of(a) == 0
    assert not unequal(a, b).any()
    assert unequal(a, b + 1e-5).all()
    assert spread_difference(a, b) == (0, 0)
    assert mean_difference(a, b, signed=True) == (0, 0)
    assert np.isnan(mean_difference(a, b + 1, signed=True)).all()
    columns = np.stack([np.concatenate([a, b]), rng.normal(size=400)], axis=1).astype(np.float32)
    label, rows = np.repeat(np.float32([0, 1]), 200), np.arange(400)
    views = SimpleNamespace(recipe="light", family=FAMILY)
    classifier = _fit(views, "observables", ["response", "depth"], columns, label, rows, rows[:0], 0)
    shifted = columns + np.float32([1e-6, 0])
    assert (classifier(columns) == classifier(shifted)).all()


def test_correlations_of_what_varies():
    rng = np.random.default_rng(1)
    x = rng.multivariate_normal([0, 0], [[1, 0.5], [0.5, 1]], size=4000)
    noise = 1e-9 * rng.normal(size=(4000, 1))
    a, b = np.hstack([x, noise]), np.hstack([x, x[:, :1]])
    assert correlation_distance(a, b, [0, 0, 1e-6]) == 0  # no correlations with rounding errors, and none to compare
    assert correlation_distance(b, a, [0, 0, 1e-6]) == pytest.approx(np.sqrt((1 + 2 + 2 * 0.25) / 9), abs=0.02)
