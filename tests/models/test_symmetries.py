"""Symmetries of a read-out that its showers have, and those that they have not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from support import ENERGY, TURNED, toy

from calogen.families import CartesianLayer, Condition, Family
from calogen.models.showers.symmetries import ALARM, judge
from calogen.shards.samples import Samples

STRIPS = Family(
    name="strips",
    layers=(CartesianLayer(shape=(6, 6), size=(60, 60)), CartesianLayer(shape=(4, 4), size=(60, 60))),
    conditions=(
        ENERGY,
        Condition(name="impact_x", unit="mm", low=-10, high=10),
        Condition(name="impact_y", unit="mm", low=-10, high=10),
        Condition.labelled("particle", ("e-", "e+")),
    ),
    symmetries=("mirror-x", "mirror-y", "swap-xy"),
)
ALL = [c.name for c in STRIPS.conditions]


def showers(count: int, seed: int, *, at: float = 1.0, bend: float = 0.0) -> Samples:
    """Spots of many photons about the impact point, drawn within ``at`` of 10 mm; particles are bent apart in x, mm."""
    rng = np.random.default_rng(seed)
    x, y = rng.uniform(-10, 10, (2, count)) * at
    particle = rng.integers(0, 2, count)
    bent = np.stack([x + bend * (2 * particle - 1), y], 1)
    apart = np.square(STRIPS.centres - bent[:, None]).sum(2)
    values = rng.poisson(40 * np.exp(-apart / 400)).astype(np.float32)
    drawn = {"incident_energy": rng.uniform(1e3, 1e5, count), "impact_x": x, "impact_y": y, "particle": particle}
    return Samples(STRIPS, values, drawn)


def held(samples: Samples, names: list[str]) -> dict[str, bool]:
    return {verdict.symmetry: verdict.holds for verdict in judge(samples, names)}


@pytest.mark.parametrize("names", [ALL[:1], ALL])
def test_symmetric_showers_keep_the_symmetries_of_their_read_out(names: list[str]) -> None:
    assert held(showers(2000, 1), names) == {"mirror-x": True, "mirror-y": True, "swap-xy": True}


def test_turned_showers_are_compared_at_turned_conditions() -> None:
    drawn = toy(TURNED, 1500, seed=3).conditions
    apart = np.square(TURNED.centres - np.stack([drawn["impact_x"], drawn["impact_y"]], 1)[:, None]).sum(2)
    values = np.random.default_rng(4).poisson(40 * np.exp(-apart / 200)).astype(np.float32)
    assert set(held(Samples(TURNED, values, drawn), list(drawn)).values()) == {True}
    oblique = np.random.default_rng(5).poisson(40 * np.exp(-apart / 200) * (1 + 0.1 * (TURNED.centres[:, 1] > 0)))
    found = held(Samples(TURNED, oblique.astype(np.float32), drawn), list(drawn))
    assert found == {"mirror-x": True, "mirror-y": False, "turn": False}


def test_showers_off_the_centre_reject_a_mirror_unless_conditions_say_so() -> None:
    samples = showers(4000, 2)
    upper = samples.select(samples.conditions["impact_y"] > 0)
    assert held(upper, ALL[:1]) == {"mirror-x": True, "mirror-y": False, "swap-xy": False}
    verdicts = {verdict.symmetry: verdict for verdict in judge(upper, ALL)}
    assert not verdicts["mirror-y"].holds
    assert "moves impact_y out of the trained range" in str(verdicts["mirror-y"])
    assert verdicts["mirror-x"].holds


@pytest.mark.parametrize("names", [ALL[:1], ALL])
def test_a_layer_lop_sided_by_two_per_cent_rejects_its_mirror(names: list[str]) -> None:
    samples = showers(4000, 3)
    gain = np.where((STRIPS.centres[:, 0] > 0) & (STRIPS.layer_of_voxel == 1), 1.02, 1).astype(np.float32)
    lop_sided = replace(samples, values=samples.values * gain)
    found = held(lop_sided, names)
    assert (found["mirror-x"], found["mirror-y"]) == (False, True)
    assert "layer 1" in judge(lop_sided, names)[0].reason


def test_opposite_bends_of_two_particles_do_not_cancel_where_the_particle_is_a_condition() -> None:
    samples = showers(4000, 4, bend=1.0)
    assert held(samples, ALL[:1])["mirror-x"]
    assert not held(samples, [ALL[0], ALL[3]])["mirror-x"]


def test_few_showers_reject_nothing_and_say_so() -> None:
    samples = showers(400, 5)
    upper = samples.select(samples.conditions["impact_y"] > 0).read(0, 150)
    (*_, last) = judge(upper, ALL[:1])
    assert str(last) == "swap-xy is used (not tested: 150 showers are too few)"
    assert [verdict.holds for verdict in judge(upper.read(0, 0), ALL)] == [True] * 3


def test_showers_without_energy_where_a_symmetry_moves_cells_say_nothing() -> None:
    one_sector = replace(toy(TURNED, 300), values=np.tile(np.float32(TURNED.layer_of_voxel == 1), (300, 1)))
    assert set(held(one_sector, ALL[:1]).values()) == {True}


def test_what_a_symmetry_does_to_a_condition_must_be_known() -> None:
    verdicts = judge(showers(300, 6), ALL[:2])
    assert [verdict.holds for verdict in verdicts] == [True, True, False]
    assert str(verdicts[2]) == "swap-xy is not used (what it does to impact_x is not known)"


def test_false_alarms_are_as_rare_as_stated() -> None:
    p = [float(v.reason.split()[2].strip(",")) for s in range(12) for v in judge(showers(300, 100 + s), ALL[:1])]
    assert min(p) > ALARM
    assert 0.3 < np.mean(p) < 0.7
