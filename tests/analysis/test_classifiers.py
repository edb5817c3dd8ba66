"""Two-sample classifiers: what equal, shifted and altered samples must give."""

import math
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from calogen.analysis.metrics import classifiers
from calogen.analysis.metrics.classifiers import FOLDS, Views, auc, classify, groups_of, halves, parts
from calogen.analysis.metrics.kinds import MAPS as KIND_OF_MAPS
from calogen.analysis.metrics.kinds import SHOWERS
from calogen.analysis.observables.catalogue import observe
from scipy.stats import norm
from support import MAPS, ROOT, SINGLE, SMALL, toy

from calogen.errors import ConfigError, ShardError
from calogen.families import Family
from calogen.shards.sources import open_shards

REAL = ROOT / "data" / "calogan-gamma" / "test"


@pytest.fixture(autouse=True)
def few_trees(monkeypatch):
    """A tenth of the trees sees what is planted here."""
    monkeypatch.setattr(classifiers, "_TREES", 10)


@cache
def photons():
    """Real showers: what the networks would need minutes for, the trees see at once."""
    return open_shards(REAL).read(0, 900)


def trees(first, second, **options):
    """What the classifier on observables reaches."""
    views = Views(first, second, "light")
    options = {"seed": 0, "cross_fit": True, "tick": lambda: None, **options}
    return classifiers._trial(views, "observables", first, second, **options)


def test_the_auc_of_shifted_normals_is_known_and_its_error_right():
    rng = np.random.default_rng(0)
    known = norm.cdf(0.8 / math.sqrt(2))
    found = np.array([auc(rng.normal(size=150), rng.normal(0.8, 1, size=300)) for _ in range(300)])
    assert found[:, 0].mean() == pytest.approx(known, abs=3 * found[:, 0].std() / math.sqrt(300))
    assert found[:, 1].mean() == pytest.approx(found[:, 0].std(), rel=0.15)


def test_auc_counts_pairs_and_halves_of_ties():
    a, b = np.array([0.0, 1, 1, 2]), np.array([1.0, 2, 3])
    pairs = np.mean((b[:, None] > a) + 0.5 * (b[:, None] == a))
    assert auc(a, b)[0] == pytest.approx(pairs)
    assert auc(a, a) == pytest.approx((0.5, auc(a, a)[1]))
    assert auc(a, a + 10) == (1.0, 0.0)


@pytest.mark.parametrize("view", ["voxels", "log_voxels", "observables"])
def test_a_shift_of_one_voxel_gives_its_known_auc(view):
    """Energies alike, one voxel normal about 500 MeV, the other its complement: AUC = Phi(shift / sqrt 2)."""
    rng = np.random.default_rng(3)
    layers = [{**SINGLE.layers[0].model_dump(), "shape": (1, 2)}]
    family = Family.model_validate({**SINGLE.model_dump(), "layers": layers})  # a copy would keep what it has counted

    def showers(shift):
        first = rng.normal(500 + 20 * shift, 20, size=450)
        return classifiers_samples(family, np.stack([first, 1000 - first], axis=1), np.full(450, 1000.0))

    first, second = showers(0.0), showers(1.5)
    views = Views(first, second, "light")
    found = classifiers._trial(views, view, first, second, seed=0, cross_fit=True, tick=lambda: None)
    value, error = found.area
    assert value == pytest.approx(norm.cdf(1.5 / math.sqrt(2)), abs=max(3 * error, 0.03))


def classifiers_samples(family, values, energies):
    samples = toy(family, len(values))
    return replace(samples, values=values, conditions={"incident_energy": energies})


def test_equal_distributions_give_one_half_within_the_stated_error():
    pulls = []
    for seed in range(10):
        value, error = trees(toy(SINGLE, 250, 2 * seed), toy(SINGLE, 250, 2 * seed + 1), seed=seed).area
        pulls.append((value - 0.5) / error)
    assert np.abs(pulls).max() < 3
    assert 0.5 < np.std(pulls) < 1.6


def test_a_light_comparison_of_equal_toys_finds_nothing_and_repeats():
    reference, generated = toy(SINGLE, 220, 1), toy(SINGLE, 110, 2)
    steps = []
    found = classify(reference, generated, seed=4, progress=lambda *step: steps.append(step))
    assert set(found.metrics) == {"auc/voxels", "auc/log_voxels", "auc/observables", "auc/worst"}
    for metric in found.metrics.values():
        assert abs(metric.value - 0.5) < 4 * metric.error
        assert abs(metric.floor - 0.5) < 4 * metric.floor_error
        assert metric.n == 110
    assert found.metrics["auc/worst"].value == max(found.metrics[f"auc/{v}"].value for v in found.folds)
    assert all(len(folds) == FOLDS for folds in found.folds.values())
    assert found.metrics["auc/voxels"].value == pytest.approx(np.mean(found.folds["voxels"]))
    assert any("too small: an AUC" in note for note in found.notes)  # 0.1 % cannot be seen in 110 such showers
    assert steps[-1][1] == steps[-1][2] == len(steps)
    assert classify(reference, generated, seed=4) == found


def changed(change, samples, rng):
    return replace(samples, values=change.make(samples.values, rng))


def test_controls_on_real_photons_are_seen():
    first, second = halves(photons(), 450, np.random.default_rng(0))
    for change in SHOWERS.changes.values():
        value, error = trees(second, changed(change, first, np.random.default_rng(1))).area
        assert value > 0.5 + 10 * error
    value, error = trees(second, first).area
    assert abs(value - 0.5) < 3 * error


def test_the_tell_tale_is_the_observable_that_was_changed():
    first, second = halves(photons(), 450, np.random.default_rng(0))
    scaled = changed(SHOWERS.changes["energies_0.1%"], first, np.random.default_rng(1))
    found = trees(second, scaled, explain=True).tell_tales
    assert found[0][0] == "response"
    assert found[0][1] > 0.1
    assert all(loss < 0.05 for _, loss in trees(second, first, explain=True).tell_tales)


def test_changes_are_what_their_names_say():
    samples = photons().select(slice(0, 200))
    rng = np.random.default_rng(0)
    before = observe(samples)
    scaled, thinned = (
        observe(changed(SHOWERS.changes[name], samples, rng)) for name in ("energies_0.1%", "occupancy_10%")
    )
    assert scaled["response"] == pytest.approx(1.001 * before["response"], rel=1e-6)
    assert scaled["occupancy"] == pytest.approx(before["occupancy"])
    assert thinned["occupancy"].mean() == pytest.approx(0.9 * before["occupancy"].mean(), rel=0.01)
    assert thinned["response"] == pytest.approx(before["response"], rel=1e-6)
    maps = toy(MAPS, 5)
    contrast = changed(KIND_OF_MAPS.changes["contrast_5%"], maps, rng)
    inside = contrast.values > 0
    assert (contrast.values - 1)[inside] == pytest.approx(1.05 * (maps.values - 1)[inside], rel=1e-4, abs=1e-5)


def test_showers_made_for_the_same_energies_share_their_folds():
    first = toy(SINGLE, 200, 1)
    second = replace(toy(SINGLE, 200, 2), conditions=first.conditions)
    side = np.repeat(np.float32([0, 1]), 200)
    fold = parts(groups_of((first, second)), side, FOLDS, np.random.default_rng(0))
    assert np.array_equal(fold[:200], fold[200:])
    assert np.bincount(fold[:200]).tolist() == [40] * FOLDS


def test_few_discrete_energies_separate_nothing_and_realisations_stay_whole():
    rng = np.random.default_rng(0)
    energies = {"incident_energy": rng.choice([1e3, 1e4, 1e5], size=200)}
    sides = [replace(toy(SINGLE, 200, seed), conditions=energies) for seed in (1, 2)]
    assert len(np.unique(groups_of((sides[0], sides[1])))) == 400
    boxes = np.repeat(np.arange(20), 10)
    sides[0] = replace(sides[0], extras={"realisation_id": boxes})
    groups = groups_of((sides[0], sides[1]))
    fold = parts(groups, np.repeat(np.float32([0, 1]), 200), FOLDS, rng)
    assert all(len(set(fold[:200][boxes == box])) == 1 for box in range(20))
    assert np.bincount(fold[:200]).tolist() == np.bincount(fold[200:]).tolist() == [40] * FOLDS
    first, second = halves(sides[0], 100, rng)
    assert not set(first.extras["realisation_id"]) & set(second.extras["realisation_id"])


def test_maps_are_classified_in_their_own_views():
    maps = MAPS.model_copy(update={"pixels": (8, 8)})
    reference = toy(maps, 220, 1)
    generated = toy(maps, 110, 2)
    found = classify(reference, replace(generated, values=generated.values**2))
    assert set(found.metrics) == {"auc/log_pixels", "auc/observables", "auc/worst"}
    assert found.metrics["auc/observables"].value > 0.5 + 3 * found.metrics["auc/observables"].error
    with pytest.raises(ConfigError, match="for showers"):
        classify(reference, reference, recipe="calochallenge")


def test_the_recipe_of_the_calochallenge_sees_what_is_there_and_calibrates(monkeypatch):
    monkeypatch.setattr(classifiers, "_NODES", 128)
    monkeypatch.setattr(classifiers, "_EPOCHS", 40)
    reference, generated = toy(SINGLE, 500, 1), toy(SINGLE, 500, 2)
    generated = replace(generated, values=generated.values * np.float32(4))
    found = classify(reference, generated, recipe="calochallenge")
    assert {f"jsd/{v}" for v in ("voxels", "log_voxels", "observables")} < set(found.metrics)
    worst = found.metrics["auc/worst"]
    assert worst.value > 0.8
    assert worst.pull > 3
    jsds = [m for key, m in found.metrics.items() if key.startswith("jsd/")]
    assert all(m.value <= 1 and m.unit == "bit" for m in jsds)
    assert max(m.value for m in jsds) > 0.2
    assert all(len(folds) == 1 for folds in found.folds.values())
    reference = toy(SMALL, 50)
    names, columns = Views(reference, reference, "calochallenge").table("observables", reference)
    measured = observe(reference)
    assert "response" not in names
    assert columns[:, names.index("energy_0")] == pytest.approx(np.log10(measured["energy_0"] + 1e-8), rel=1e-5)
    assert columns[:, names.index("width_x_0")] == pytest.approx(measured["width_x_0"] / 100, rel=1e-5)


def test_showers_without_energies_and_rows_that_are_not_finite():
    reference, generated = toy(SINGLE, 200, 1), toy(SINGLE, 101, 2)
    generated.values[3, 2] = np.nan
    found = classify(reference, replace(generated, conditions={}))
    assert found.metrics["auc/voxels"].n == 100
    assert any("1 generated samples are not finite" in note for note in found.notes)
    assert any("no incident energies" in note for note in found.notes)


def test_what_cannot_be_classified_is_refused():
    with pytest.raises(ShardError, match="too few samples for a classifier"):
        classify(toy(SINGLE, 199), toy(SINGLE, 300))
    with pytest.raises(ShardError, match="different families"):
        classify(toy(SINGLE, 300), toy(SMALL, 300))
    with pytest.raises(ConfigError, match="recipe"):
        classify(toy(SINGLE, 300), toy(SINGLE, 300), recipe="heavy")
