"""Defects planted into Geant4 showers are caught, each by the metric meant for it; nothing is caught without one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import pytest
from calogen.analysis.metrics.checks import duplicates, memorisation, tails
from calogen.analysis.metrics.measure import measure, observable_metrics, spectrum_metrics
from calogen.analysis.metrics.multivariate import manifold_metrics
from calogen.analysis.metrics.registry import Key, Metric
from calogen.analysis.survey.plan import SurveyPlan, plan_comparison
from calogen.analysis.survey.survey import Survey, survey
from support import ROOT

from calogen.shards.samples import Samples
from calogen.shards.sources import open_shards

DATA = ROOT / "data" / "calogan-gamma"
Part = Callable[[Survey, Survey, SurveyPlan], dict[Key, Metric]]


@dataclass(frozen=True, eq=False)
class Showers:
    """The reference, the showers the defects are planted into, and those a surrogate would have been trained on."""

    reference: Survey
    plan: SurveyPlan
    clean: Samples
    training: Samples

    @cache  # noqa: B019  (lives as long as the tests of this file)
    def found_by(self, part: Part, plant: Callable[[Samples], Samples]) -> dict[Key, Metric]:
        return part(self.reference, survey(plant(self.clean), self.plan), self.plan)

    def memorised(self, generated: Samples) -> dict[Key, Metric]:
        known = survey(self.training, self.plan)
        return memorisation(self.reference, survey(generated, self.plan), known, self.plan)


@pytest.fixture(scope="module")
def showers() -> Showers:
    reference = open_shards(DATA / "test").read(0, 2000)
    train = open_shards(DATA / "train").read(0, 3200)
    plan = plan_comparison(reference, bins=2, seed=0)
    return Showers(survey(reference, plan), plan, train.select(slice(0, 1200)), train.select(slice(1200, 3200)))


def untouched(clean: Samples) -> Samples:
    return clean


def scaled(clean: Samples) -> Samples:
    """All energies 0.1 % too high."""
    return replace(clean, values=clean.values * np.float32(1.001))


def swapped(clean: Samples) -> Samples:
    """The first layer comes from another shower of nearly the same energy: marginals stay, correlations go."""
    order = np.argsort(clean.conditions["incident_energy"])
    partner = np.arange(len(order))
    pairs = partner[: len(order) // 2 * 2].reshape(-1, 2)
    pairs[:] = pairs[:, ::-1]
    values = clean.values.copy()
    first = clean.family.layer_slices[0]
    values[order, first] = clean.values[order[partner], first]
    return replace(clean, values=values)


def repeated(clean: Samples) -> Samples:
    """A tenth of the showers are repeats of others."""
    rows = np.arange(len(clean))
    rows[-len(rows) // 10 :] = rows[: -(-len(rows) // 10)]
    return clean.select(np.random.default_rng(1).permutation(rows))


def without_early(clean: Samples) -> Samples:
    """Photons that convert early are missing: the fifth with the largest share in the first layer at their energy."""
    share = clean.values[:, clean.family.layer_slices[0]].sum(axis=1) / clean.values.sum(axis=1)
    trend = np.polyfit(np.log(clean.conditions["incident_energy"]), np.log(share + 1e-3), 2)
    size = np.log(share + 1e-3) - np.polyval(trend, np.log(clean.conditions["incident_energy"]))
    return clean.select(size < np.quantile(size, 0.8))


def shuffled(clean: Samples) -> Samples:
    """Showers that do not belong to their conditions."""
    energies = np.random.default_rng(2).permutation(clean.conditions["incident_energy"])
    return replace(clean, conditions={"incident_energy": energies})


def thresholded(clean: Samples) -> Samples:
    """Voxels below 1 MeV are zero."""
    return replace(clean, values=np.where(clean.values < 1, 0, clean.values).astype(np.float32))


def mirrored(showers: Showers) -> Samples:
    """The training showers, every other one mirrored."""
    copied = showers.training.values.copy()
    copied[::2] = copied[::2][:, showers.clean.family.images[1].order]
    return replace(showers.training, values=copied)


DEFECTS = {
    "scaled": (scaled, observable_metrics, "w1_sd/response", 1),
    "swapped": (swapped, observable_metrics, "correlation", 1),
    "repeated": (repeated, duplicates, "duplicates", 1),
    "repeated, whole": (repeated, duplicates, "near_duplicates", 1),
    "without_early": (without_early, tails, "early_conversion", -1),
    "without_early, coverage": (without_early, manifold_metrics, "coverage", -1),
    "shuffled": (shuffled, observable_metrics, "w1_sd/total_energy[1:50.5GeV]", 1),
    "thresholded": (thresholded, spectrum_metrics, "separation/voxel", 1),
}
"""Defect, the part of the comparison that sees it, its metric, and the sign of the metric's pull."""


@pytest.mark.parametrize("name", DEFECTS)
def test_a_planted_defect_is_caught(showers, name):
    plant, part, key, sign = DEFECTS[name]
    clean, caught = (showers.found_by(part, change)[key] for change in (untouched, plant))
    assert abs(clean.pull) < 3
    assert sign * caught.pull > 5, caught


def test_marginals_say_nothing_where_the_correlation_is_gone(showers):
    found = showers.found_by(observable_metrics, swapped)
    assert all(abs(found[f"w1_sd/energy_{layer}"].pull) < 3 for layer in (0, 1, 2))


def test_shuffled_conditions_show_in_bins_alone(showers):
    found = showers.found_by(observable_metrics, shuffled)
    assert abs(found["w1_sd/total_energy"].pull) < 3


@pytest.mark.parametrize("copies", [lambda s: s.training, mirrored], ids=["copies", "mirrored copies"])
def test_a_copy_of_the_training_showers_is_caught(showers, copies):
    found = showers.memorised(copies(showers))
    assert found["training_copies"].value == pytest.approx(1, abs=0.001)
    assert found["memorisation"].pull > 5
    assert found["memorisation_p"].value < 1e-6


def test_other_showers_are_no_copies(showers):
    found = showers.memorised(showers.clean)
    assert found["training_copies"].value == 0
    assert abs(found["memorisation"].pull) < 3
    assert found["memorisation_p"].value > 0.01


@pytest.fixture(scope="module")
def everything():
    """All metrics of all test showers against others: what a report has."""
    reference = open_shards(DATA / "test").read()
    train = open_shards(DATA / "train").read()
    plan = plan_comparison(reference, bins=4, seed=0)
    base, known = survey(reference, plan), survey(train.select(slice(3500, 9000)), plan)
    clean = train.select(slice(0, 3500))
    return clean, lambda samples: measure(base, survey(samples, plan), plan, training=known)


@pytest.mark.slow
def test_nothing_fires_on_reference_halves(everything):
    clean, found_in = everything
    found = found_in(clean)
    pulls = np.array([m.pull for key, m in found.items() if m.pull is not None])
    assert found["overall_p"].value > 0.05
    assert np.abs(pulls).max() < 5


@pytest.mark.slow
@pytest.mark.parametrize("plant", [scaled, swapped, without_early, shuffled, thresholded])
def test_the_overall_statistic_catches_what_changes_a_distribution(everything, plant):
    clean, found_in = everything
    assert found_in(plant(clean))["overall_p"].value == 0.005


@pytest.mark.slow
def test_repeats_are_counted_and_change_no_distribution(everything):
    clean, found_in = everything
    found = found_in(repeated(clean))
    assert found["duplicates"].pull > 5
    assert found["overall_p"].value > 0.05
