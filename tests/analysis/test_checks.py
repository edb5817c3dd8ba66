"""Training samples, repeats and wrong tails are found where they are, and only there."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from calogen.analysis.metrics.checks import duplicates, memorisation, nearest, sample_codes, statements, tails
from calogen.analysis.survey.plan import plan_comparison
from calogen.analysis.survey.survey import survey
from support import MAPS, SINGLE, SMALL, toy

from calogen.shards.samples import Samples


def surveyed(*samples: Samples, bins: int = 0):
    plan = plan_comparison(samples[0], bins=bins, seed=0)
    return [survey(s, plan) for s in samples], plan


@pytest.fixture(scope="module")
def sides():
    """Held-out and training showers of one distribution."""
    return toy(SMALL, 400, seed=1), toy(SMALL, 600, seed=2)


def remembered(reference: Samples, generated: Samples, training: Samples):
    (base, mine, known), plan = surveyed(reference, generated, training)
    return memorisation(base, mine, known, plan)


def test_independent_showers_are_not_memorised(sides):
    reference, training = sides
    found = remembered(reference, toy(SMALL, 300, seed=3), training)
    assert found["training_copies"].value == 0
    assert found["memorisation_p"].value > 0.01
    assert abs(found["memorisation"].pull) < 3
    assert not statements(found)


@pytest.mark.parametrize("mirror", range(4))
def test_copies_and_mirrored_copies_are_memorised(sides, mirror):
    reference, training = sides
    copied = training.select(slice(0, 300))
    copied = replace(copied, values=copied.values[:, SMALL.images[mirror].order])
    found = remembered(reference, copied, training)
    assert found["training_copies"].value == 1
    assert found["memorisation"].value == 1
    assert found["memorisation_p"].value < 1e-6
    assert "repeats what it was trained on" in statements(found)[0]


def test_few_copies_and_blurred_copies_are_memorised(sides):
    reference, training = sides
    rng = np.random.default_rng(4)
    blurred = training.select(slice(0, 300))
    noise = rng.normal(1, 0.02, size=blurred.values.shape).astype(np.float32)
    found = remembered(reference, replace(blurred, values=blurred.values * noise), training)
    assert found["training_copies"].value == 0
    assert found["memorisation_p"].value < 1e-6
    few = Samples.concatenate([toy(SMALL, 270, seed=3), training.select(slice(0, 30))])
    found = remembered(reference, few, training)
    assert found["training_copies"].value == pytest.approx(0.1, rel=0.02)
    assert found["memorisation_p"].value < 1e-4


def test_smooth_showers_are_not_called_memorised(sides):
    """Averages of independent showers are nearer to everything, to training showers as to others."""
    reference, training = sides
    parts = [toy(SMALL, 300, seed=s) for s in (5, 6, 7)]
    shares = np.mean([p.values / p.conditions["incident_energy"][:, None] for p in parts], axis=0)
    smooth = replace(parts[0], values=(shares * parts[0].conditions["incident_energy"][:, None]).astype(np.float32))
    assert remembered(reference, smooth, training)["memorisation_p"].value > 0.001


def test_maps_learnt_by_heart():
    training = toy(MAPS, 200, seed=1)
    found = remembered(toy(MAPS, 100, seed=2), training.select(slice(0, 60)), training)
    assert found["training_copies"].value == 1
    assert found["memorisation_p"].value < 1e-6
    assert remembered(toy(MAPS, 100, seed=2), toy(MAPS, 60, seed=3), training)["memorisation_p"].value > 0.01


def test_nearest_is_brute_force_over_mirrors():
    rng = np.random.default_rng(8)
    queries, pool = rng.random((7, SMALL.voxels)), rng.random((11, SMALL.voxels))
    images = np.concatenate([pool[:, image.order] for image in SMALL.images])
    expected = np.linalg.norm(queries[:, None] - images, axis=2).min(axis=1)
    assert nearest(queries, pool, SMALL) == pytest.approx(expected)


def test_duplicates_wherever_they_are(sides):
    reference, other = sides
    rows = np.random.default_rng(9).permutation(np.r_[0:450, 0:50])
    (base, mine), plan = surveyed(reference, other.select(rows))
    found = duplicates(base, mine, plan)
    assert found["duplicates"].value == pytest.approx(0.1, rel=0.01)  # a few showers are empty
    assert found["duplicates"].floor == 0
    assert found["duplicates"].pull > 5
    assert statements(found)[0].startswith("10 % of the samples repeat another one exactly")
    (base, mine), plan = surveyed(reference, other)
    found = duplicates(base, mine, plan)
    assert found["duplicates"].value == 0
    assert abs(found["near_duplicates"].pull) < 4


def test_near_duplicates(sides):
    reference, other = sides
    rng = np.random.default_rng(10)
    twice = other.select(np.r_[0:300, 0:100])
    noise = rng.normal(1, 0.01, size=twice.values.shape).astype(np.float32)
    (base, mine), plan = surveyed(reference, replace(twice, values=twice.values * noise))
    found = duplicates(base, mine, plan)
    assert found["duplicates"].value == 0
    assert found["near_duplicates"].value > 0.1
    assert found["near_duplicates"].pull > 3


def test_empty_samples_are_no_duplicates():
    samples = toy(SINGLE, 60, seed=1)
    samples.values[:10] = 0
    (side,), plan = surveyed(samples)
    assert len(sample_codes(side, plan)) == 50
    assert duplicates(side, side, plan)["duplicates"].value == 0


def test_tails_have_the_shares_and_errors_of_a_binomial():
    reference, generated = toy(SMALL, 4000, seed=1), toy(SMALL, 2000, seed=2)
    (base, mine), plan = surveyed(reference, generated, bins=2)
    quiet = tails(base, mine, plan)
    for key, metric in quiet.items():
        assert abs(metric.pull) < 4, key
        if key.startswith("tail_high/response"):
            assert metric.floor == pytest.approx(0.001, rel=0.01)
            assert metric.floor_error == pytest.approx(np.sqrt(0.001 / 4000), rel=0.3)
    row = base.names.index("response")
    mine.table[row, :40] = 0.1
    loud = tails(base, mine, plan)
    assert loud["tail_low/response"].value == pytest.approx(0.02, abs=0.002)
    assert loud["tail_low/response"].pull > 5
    assert loud["quantile_low/response"].value < -1
    assert loud["tail_high/response"].value <= quiet["tail_high/response"].value


def test_early_and_late_showers_are_counted_at_their_energy():
    reference, generated = toy(SMALL, 4000, seed=1), toy(SMALL, 2000, seed=2)
    (base, mine), plan = surveyed(reference, generated, bins=3)
    row = base.names.index("shower_depth")
    for side in (base, mine):  # deeper at high energy, and continuous
        noise = np.random.default_rng(len(side.kept)).normal(size=side.count)
        side.table[row] = np.log(side.conditions["incident_energy"]) + 0.1 * noise
    quiet = tails(base, mine, plan)
    depth = mine.table[row].copy()
    mine.table[row, :100] += 5
    late = tails(base, mine, plan)["late_conversion"]
    mine.table[row] = np.maximum(depth, np.log(mine.conditions["incident_energy"]) - 0.1)
    early = tails(base, mine, plan)["early_conversion"]
    for kind in ("early", "late"):
        assert quiet[f"{kind}_conversion"].floor == pytest.approx(0.05, abs=0.001)
        assert abs(quiet[f"{kind}_conversion"].pull) < 4
    assert late.pull > 5
    assert early.value < quiet["early_conversion"].value / 2


def test_a_few_samples_have_no_tails():
    (base, mine), plan = surveyed(toy(SMALL, 150), toy(SMALL, 150, seed=1))
    assert tails(base, mine, plan) == {}
