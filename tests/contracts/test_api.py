"""What people type into Python: short reprs, slices, one language of conditions, errors that help."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from support import SMALL, tiny, toy, write_folder

import calogen
from calogen.errors import ConditionError, ConfigError
from calogen.families import Family
from calogen.production.requests import Spec


@pytest.fixture(scope="module")
def surrogate() -> calogen.Surrogate:
    return calogen.Surrogate.load("calogan-gamma")


@pytest.fixture(scope="module")
def report(surrogate: calogen.Surrogate) -> calogen.analysis.Report:
    first, second = (
        surrogate.sample({"incident_energy": "uniform:2:90GeV"}, n=300, seed=s, as_samples=True) for s in (0, 1)
    )
    return calogen.compare(first, {"again": second}, bins=0)


def test_reprs_are_short_and_say_what_it_is(surrogate: calogen.Surrogate, report: calogen.analysis.Report) -> None:
    shards = calogen.open_shards("data/calogan-gamma/test")
    assert [repr(x) for x in (surrogate, shards, shards[:3], calogen.FAMILIES["calogan"], report)] == [
        "Surrogate(calogan-gamma: showers 3x96+12x12+12x6, incident_energy 1-100 GeV, step 0)",
        "Shards(5000 showers 3x96+12x12+12x6, calogan, reference, 1 file)",
        "Samples(3 showers 3x96+12x12+12x6, calogan, reference; incident_energy)",
        "Family(calogan: showers 3x96+12x12+12x6; incident_energy)",
        "Report(calogan: reference 300, again 300)",
    ]
    assert repr(calogen.Surrogate.load("nbody-64")).startswith("Surrogate(nbody-64: maps 64x64, Omega_m 0.1-0.5, ")
    assert repr(calogen.Config(training={"steps": 3})) == "Config(training={'steps': 3})"
    for name in ("par04-electron", "calogan-gamma-angled", "calogan-eplus"):
        assert len(repr(calogen.Surrogate.load(name))) < 120


def test_shards_and_samples_are_sliced_and_iterated() -> None:
    shards = calogen.open_shards("data/calogan-gamma/test")
    whole = shards.read(0, 12)
    for index in (slice(2, 9), slice(9, 2, -3), slice(4, 4), slice(-5000, -4996)):
        assert np.array_equal(shards[index].values, whole.values[index] if index.start != -5000 else whole.values[:4])
    assert np.array_equal(shards[-1].values, shards.read(4999).values)
    assert np.array_equal(whole[3].values, whole.values[3:4])
    assert np.array_equal(whole[-1].values, whole.values[-1:])
    assert np.array_equal(whole[[2, 5]].values, whole.values[[2, 5]])
    few = [sample.values[0] for sample, _ in zip(shards, range(12), strict=False)]
    assert np.array_equal(few, whole.values)
    for sequence, index in ((shards, 5000), (whole, 12)):
        with pytest.raises(IndexError):
            sequence[index]


def test_samples_in_memory_know_where_they_are_from(surrogate: calogen.Surrogate, tmp_path: Path) -> None:
    asked = {"incident_energy": "uniform:2:90GeV"}
    samples = surrogate.sample(asked, n=50, seed=3, as_samples=True)
    assert np.array_equal(samples.values, surrogate.sample(asked, n=50, seed=3))
    surrogate.generate(tmp_path / "x", asked, 50, seed=3, workers=1)
    (written,) = calogen.open_shards(tmp_path / "x").provenance
    (mine,) = samples.provenance
    known = ("checkpoint_sha256", "card_sha256", "seed", "request", "request_sha256", "versions")
    assert {key: written[key] for key in known} == {key: mine[key] for key in known}
    assert np.array_equal(calogen.open_shards(tmp_path / "x").read().values, samples.values)


def test_a_value_alone_is_fixed(surrogate: calogen.Surrogate) -> None:
    energy = surrogate.family.condition("incident_energy")
    for text in ("50GeV", "50 GeV", "5e4MeV", "fixed:50GeV"):
        found = Spec.of(energy, text)
        assert (found.kind, *found.values) == ("fixed", 5e4)
    with pytest.raises(ConditionError, match="unit of 'incident_energy' is missing"):
        Spec.of(energy, "50")
    with pytest.raises(ConditionError, match=r"np.repeat\(values, 1000\)"):
        surrogate.sample({"incident_energy": [2e4, 5e4]}, n=1000)


def test_a_report_has_p_values_and_a_face_in_notebooks(report: calogen.analysis.Report) -> None:
    assert report.p_value("response") > 0.05
    assert report.p_value("response", "again") == report.metrics["again"]["p_value/response"].value
    with pytest.raises(ConfigError, match="no p-value"):
        report.p_value("responce")
    with pytest.raises(ConfigError, match="which surrogate"):
        report.p_value("response", "other")
    page = report._repr_html_()
    assert report.verdicts["again"] in page
    assert page.count("<table>") == 1
    assert report.to_json()["generated"]["again"]["verdict"] == report.verdicts["again"]


def test_a_shift_of_one_observable_has_a_small_p_value(surrogate: calogen.Surrogate) -> None:
    first = surrogate.sample({"incident_energy": "uniform:2:90GeV"}, n=400, seed=0, as_samples=True)
    second = surrogate.sample({"incident_energy": "uniform:2:90GeV"}, n=400, seed=1, as_samples=True)
    shifted = calogen.Samples(second.family, 0.97 * second.values, second.conditions, kind="generated")
    report = calogen.compare(first, shifted, bins=0)
    assert report.p_value("response") == 0.005
    assert report.p_value("width_x_1") > 0.05


def test_a_configuration_made_in_python_has_the_errors_of_one_in_a_file() -> None:
    with pytest.raises(ConfigError, match=r"(?s)training\.stepz.*did you mean .steps."):
        calogen.Config(training={"stepz": 3})
    with pytest.raises(ConfigError, match=r"bad value for .training\.steps."):
        calogen.Config(training={"steps": -3})


def test_a_run_gives_its_surrogate_whose_module_has_gradients(tmp_path: Path) -> None:
    data = write_folder(tmp_path / "data", toy(SMALL, 300))
    run = calogen.train(tiny(training={"steps": 1}), data, tmp_path / "run")
    assert repr(run).startswith(f"Run({tmp_path / 'run'}: 1 steps")
    surrogate = run.surrogate()
    assert isinstance(surrogate.family, Family)
    latent = torch.randn(4, surrogate.module.latent_size)
    energies = torch.full((4, 1), 2e4, requires_grad=True)
    surrogate.module(latent, energies).sum().backward()
    assert energies.grad is not None
    assert bool((energies.grad > 0).all())  # a shower of more energy has more
