"""Nothing gets lost in a histogram, and its edges come from the reference."""

from __future__ import annotations

import numpy as np
import pytest
from calogen.analysis.observables.observable import Observable
from calogen.analysis.survey.histograms import (
    Histograms,
    is_logarithmic,
    observable_edges,
    spectrum_axis,
)
from calogen.analysis.survey.selections import ALL, condition_edges, disjoint, selections
from support import counts

from calogen.families import FAMILIES


def test_under_and_overflow_are_counted():
    found = counts(np.array([-5, 0.0, 0.5, 1.0, 2.0, 99.0]), np.array([0.0, 1.0, 2.0]))
    assert found.tolist() == [1, 2, 1, 2]


def test_edges_span_the_reference_without_its_tails():
    values = np.random.default_rng(0).normal(5, 1, size=20_000)
    edges = observable_edges(Observable("o", "o"), np.append(values, 1e6))
    assert 1 < edges[0] < edges[-1] < 9
    assert len(edges) - 1 == 50
    assert counts(np.append(values, 1e6), edges)[-1] >= 1


def test_counting_observables_get_bins_around_their_values():
    step = 1 / 288
    occupied = np.random.default_rng(1).integers(100, 130, size=5000) * step
    edges = observable_edges(Observable("o", "o", step=step), occupied.astype(np.float32))
    distance = np.abs(edges[:, None] / step - np.arange(100, 130)[None, :])
    assert distance.min() > 0.4
    assert counts(occupied, edges)[1:-1].sum() >= 0.99 * len(occupied)


def test_energies_over_decades_get_logarithmic_bins():
    energies = np.random.default_rng(2).lognormal(5, 2, size=3000)
    assert is_logarithmic(observable_edges(Observable("energy_0", "E", "MeV", log=True), energies))
    assert not is_logarithmic(observable_edges(Observable("response", "r"), energies))


@pytest.mark.parametrize("value", [0.0, 2.0, -3.0])
def test_a_constant_has_a_bin(value):
    edges = observable_edges(Observable("o", "o"), np.full(30, value))
    assert counts(np.full(30, value), edges)[1:-1].sum() == 30


@pytest.mark.parametrize(
    ("draw", "names"),
    [
        (lambda rng: rng.uniform(1e3, 100e3, 4000), ["1:25.75GeV", "25.75:50.5GeV", "50.5:75.25GeV", "75.25:100GeV"]),
        (lambda rng: 10 ** rng.uniform(3, 5, 4000), ["1:3.162GeV", "3.162:10GeV", "10:31.62GeV", "31.62:100GeV"]),
    ],
)
def test_bins_follow_the_data_and_keep_their_names(draw, names):
    for seed in range(3):
        energy = draw(np.random.default_rng(seed)).astype(np.float32)
        found = selections(FAMILIES["calogan"], {"incident_energy": energy}, 4)
        assert [s.name for s in found] == ["", *names]
        members = np.stack([s.of({"incident_energy": energy}, len(energy)) for s in found])
        assert members[0].all()
        assert (members[1:].sum(axis=0) == 1).all()


def test_one_energy_has_no_bins():
    assert selections(FAMILIES["calogan"], {"incident_energy": np.full(9, 5e4)}, 4) == (ALL,)


def test_uneven_energies_get_quantiles():
    condition = FAMILIES["1-photons"].conditions[0]
    energy = np.concatenate([np.full(500, 256.0), np.full(500, 512.0), np.linspace(4.0e6, 4.19e6, 1000)])
    edges = condition_edges(condition, energy, 4)
    assert edges[0] == 256
    assert np.histogram(energy, edges)[0].min() >= 400


def test_maps_are_binned_in_every_parameter():
    rng = np.random.default_rng(3)
    conditions = {"Omega_m": rng.uniform(0.1, 0.5, 500), "sigma_8": rng.uniform(0.6, 1.0, 500)}
    names = [s.name for s in selections(FAMILIES["nbody-64"], conditions, 2)]
    assert names == ["", "Omega_m=0.1:0.3", "Omega_m=0.3:0.5", "sigma_8=0.6:0.8", "sigma_8=0.8:1"]


def test_streamed_equals_whole():
    rng = np.random.default_rng(4)
    samples = (rng.exponential(size=(60, 20)) * (rng.random((60, 20)) < 0.5)).astype(np.float32)
    table = rng.normal(size=(2, 60)).astype(np.float32)
    energy = rng.uniform(1e3, 1e5, 60).astype(np.float32)
    chosen = selections(FAMILIES["calogan"], {"incident_energy": energy}, 2)
    axis = spectrum_axis(Observable("voxel", "energy"), 0.01, 3.0)
    edges = {"a": (np.linspace(-1, 1, 11),) * 3, "b": (np.linspace(-0.1, 0.1, 4), np.array([0.0, 1]), np.array([0, 2]))}
    histograms = Histograms({**edges, "voxel": (np.asarray(axis.edges),) * 3})
    values = {"a": table[0], "b": table[1], "voxel": samples}
    for part in (slice(0, 13), slice(13, 60)):
        members = np.stack([s.of({"incident_energy": energy[part]}, len(energy[part])) for s in chosen])
        for name, column in values.items():
            histograms.fill(name, column[part], disjoint(members))
    whole, one, two = (histograms.counts("voxel", k) for k in range(3))
    np.testing.assert_array_equal(whole, counts(samples.ravel(), np.asarray(axis.edges)))
    assert whole.sum() == samples.size
    np.testing.assert_array_equal(one + two, whole)
    for number, selection in enumerate(chosen):
        mine = selection.of({"incident_energy": energy}, 60)
        for column, name in zip(table, edges, strict=True):
            expected = counts(column[mine], edges[name][number])
            np.testing.assert_array_equal(histograms.counts(name, number), expected)


def test_a_value_on_an_edge_is_in_the_bin_above_as_its_float32_says():
    edges = np.linspace(0, 1, 11)  # 0.1, 0.2, ... are no float32 numbers
    values = edges.astype(np.float32)
    histograms = Histograms({"a": (edges,)})
    histograms.fill("a", values, disjoint(np.ones((1, 11), dtype=bool)))
    np.testing.assert_array_equal(histograms.counts("a"), counts(values, edges))


def test_disjoint_parts_hold_every_sample_once():
    members = np.random.default_rng(5).random((11, 200)) < 0.3
    parts = disjoint(members)
    assert sorted(np.concatenate([rows for _, rows in parts])) == list(range(200))
    for chosen, rows in parts:
        assert (members[:, rows] == chosen[:, None]).all()
