"""A report says what is the case: planted defects show, equal samples do not differ, and nothing gets lost."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
import struct
import subprocess
import sys
import time
import zlib
from dataclasses import replace
from html import unescape
from itertools import islice

import numpy as np
import pytest
from calogen.analysis.comparison import compare
from calogen.analysis.figures import values as views
from calogen.analysis.figures.draw import draw
from calogen.analysis.figures.panels import encode
from calogen.analysis.figures.showers import by_energy
from calogen.analysis.metrics.classifiers import AUC, AUC_WORST, Classification
from calogen.analysis.metrics.conditioning import mean_of
from calogen.analysis.metrics.distances import scale_of, wasserstein_1d
from calogen.analysis.metrics.registry import Key, Metric
from calogen.analysis.metrics.validation import score
from calogen.analysis.numbers import in_brackets, with_error
from calogen.analysis.observables.catalogue import observe
from calogen.analysis.page.html import render
from calogen.analysis.page.save import save
from calogen.analysis.page.tables import SUMMARY_HEADER, SideBySide, summary
from calogen.analysis.page.verdict import verdict
from calogen.analysis.report import SCHEMA_DOCS
from calogen.analysis.survey.selections import selections
from support import ORACLES

from calogen.errors import ConfigError, GateError, ShardError
from calogen.families import FAMILIES, Condition
from calogen.shards.samples import Samples
from calogen.shards.sources import open_shards
from calogen.shards.writer import write_shard


def toy(name, count, seed=0):
    """Showers with a profile and scattered response, or lognormal maps."""
    family, rng = FAMILIES[name], np.random.default_rng(seed)
    conditions = {c.name: rng.uniform(c.low, c.high, count).astype(np.float32) for c in family.conditions}
    shape = (count, *family.sample_shape)
    if family.kind == "map":
        rough = rng.lognormal(0, conditions["sigma_8"][:, None, None], size=shape).astype(np.float32)
        return Samples(family, rough, conditions)
    layer = family.layer_of_voxel / len(family.layers)
    profile = np.exp(-np.abs(family.centres).sum(axis=1) / 40) * np.exp(-((layer - 0.4) ** 2) / 0.1)
    values = rng.exponential(size=shape) * profile * (rng.random(shape) < 0.6)
    values *= (conditions["incident_energy"] * rng.normal(0.95, 0.01, count) / values.sum(axis=1))[:, None]
    return Samples(family, values.astype(np.float32), conditions)


@pytest.fixture(scope="module")
def showers():
    return toy("calogan", 1600)


@pytest.fixture(scope="module")
def report(showers):
    """Independent toy showers, once as they are and once with 1 % more energy."""
    good = replace(showers.read(500, 900), kind="generated", provenance=({"checkpoint": "<a> & b"},))
    return compare(showers.read(0, 500), {"same": good, "scaled": replace(good, values=1.01 * good.values)})


LARGE = {name for name, family in FAMILIES.items() if family.voxels > 10_000}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in LARGE else name for name in FAMILIES]
)
def test_every_family_has_a_report(name):
    count = 40 if FAMILIES[name].voxels > 5000 else 120
    bins = 2 if FAMILIES[name].voxels < 5000 else 0
    found = compare(toy(name, count), toy(name, count, seed=1), bins=bins)
    metrics = found.metrics["generated"]
    assert {"score", "sliced_w1", "correlation"} <= set(metrics)
    assert any(k.startswith("emd_") for k in metrics)
    assert all(m.n > 0 for m in metrics.values())
    assert any("[" in k for k in metrics) == (bins > 0)
    for observable in found.observables:
        assert f"w1/{observable}" in metrics
    json.dumps(found.to_json(), allow_nan=False)
    assert verdict(found, "generated").headline


def test_equal_samples_differ_by_chance_only(report):
    pulls = np.array([m.pull for m in report.metrics["same"].values() if m.pull is not None])
    assert len(pulls) > 500
    assert abs(pulls.mean()) < 0.5
    assert (np.abs(pulls) < 3).mean() > 0.99


def test_one_percent_of_energy_is_seen(report):
    found = report.metrics["scaled"]
    for selection in report.plan.selections:
        bias = found[f"mean/response{selection.suffix}"]
        assert bias.value == pytest.approx(0.01, abs=4 * bias.error)
        assert bias.pull > 3
        assert found[f"w1_sd/response{selection.suffix}"].pull > 3
    assert found["score"].value > report.metrics["same"]["score"].value
    assert abs(found["mean/fraction_1"].pull) < 3  # a common factor leaves fractions alone


def test_the_distance_in_standard_deviations_is_the_distance(report):
    found, row = report.metrics["scaled"], report.reference.names.index("total_energy")
    sd = report.reference.table[row].astype(np.float64).std()
    assert found["w1/total_energy"].value == pytest.approx(found["w1_sd/total_energy"].value * sd, rel=1e-6)
    assert found["w1/total_energy"].unit == "MeV"
    assert found["w1_sd/total_energy"].unit == "sd"


def test_json_says_everything_once(report, tmp_path):
    text = json.dumps(report.to_json(), allow_nan=False)
    content = json.loads(text)
    assert content["schema"] == 1
    metric = content["generated"]["scaled"]["metrics"]["w1/response[1:25.75GeV]"]
    assert set(metric) == {"value", "error", "floor", "floor_error", "pull", "n", "unit"}
    assert metric["value"] == report.metrics["scaled"]["w1/response[1:25.75GeV]"].value
    assert content["generated"]["same"]["provenance"] == [{"checkpoint": "<a> & b"}]


def test_the_same_seed_gives_the_same_report(showers):
    first, second = (compare(showers.read(0, 100), showers.read(100, 200), bins=1, seed=3).to_json() for _ in range(2))
    assert first == second
    other = compare(showers.read(0, 100), showers.read(100, 200), bins=1, seed=4).to_json()
    assert first["generated"] != other["generated"]


def test_gates(report):
    report.check({"mean/response[1:25.75GeV]": 0.02, "score": 5})
    with pytest.raises(GateError, match="2 of 4 limits") as gate:
        report.check({"mean/response": 0.005, "w1_sd/response": 0.3})
    assert gate.value.exit_code == 3
    assert "mean/response of scaled" in str(gate.value)
    with pytest.raises(ConfigError, match="no metric 'scroe'") as wrong:
        report.check({"scroe": 1})
    assert "'score'" in str(wrong.value)


def test_the_summary_is_for_a_terminal(report):
    rows = summary(report)
    assert {row.generated for row in rows} == {"same", "scaled"}
    assert all(len(row.cells) == len(SUMMARY_HEADER) for row in rows)
    assert any(row.key == "mean/response[1:25.75GeV]" for row in rows)


def test_unphysical_values_are_counted_and_left_out(showers):
    values = showers.values[200:400].copy()
    values[3, 5] = np.nan
    values[3, 6] = np.inf
    values[7, 1] = -1.0
    values[8] *= 2
    found = compare(showers.read(0, 200), replace(showers.read(200, 400), values=values), bins=0)
    metrics = found.metrics["generated"]
    assert metrics["nonfinite_voxels"].value == 2
    assert metrics["nonfinite_samples"].value == 1
    assert metrics["negative_voxels"].value == 1
    assert metrics["response_too_high"].value == 1
    assert metrics["nonfinite_voxels"].unit == "voxels"
    assert found.generated["generated"].table.shape[1] == 199
    assert np.isfinite(found.generated["generated"].table).all()
    assert len([note for note in found.notes if "constant but for rounding" not in note]) == 3
    assert verdict(found, "generated").headline.startswith("Contains unphysical")


def test_held_out_ranges_are_selections_of_their_own(showers):
    reference, other = showers.read(0, 250), showers.read(250, 500)
    gapped = replace(other, provenance=({"holdout": {"incident_energy": [40e3, 60e3]}},))
    plain, found = compare(reference, other, bins=2), compare(reference, gapped, bins=2)
    metrics = found.metrics["generated"]
    names = [k for k in metrics if k.startswith("w1/response")]
    assert names == [f"w1/response{where}" for where in ("", *_BINS, "[inside:40:60GeV]", "[outside:40:60GeV]")]
    energy = reference.conditions["incident_energy"]
    inside = int(np.count_nonzero((energy >= 40e3) & (energy <= 60e3)))
    assert metrics["mean/response[inside:40:60GeV]"].n <= inside
    assert found.reference.means.count[-2:].tolist() == [inside, 250 - inside]
    assert metrics["score"] == plain.metrics["generated"]["score"]  # the bins alone
    assert any(s.startswith("Inside held-out 40 to 60 GeV") for s in verdict(found, "generated").details)
    assert found.to_json()["bins"][2]["held"] == "incident_energy"


_BINS = ("[1:50.5GeV]", "[50.5:100GeV]")


@pytest.fixture(scope="module")
def seeds(showers):
    """Two seeds of one surrogate beside another one."""
    first, second = showers.read(200, 450), showers.read(450, 700)
    second = replace(second, values=1.02 * second.values)
    return compare(showers.read(0, 200), {"gan": [first, second], "flow": first}, bins=1)


def test_seeds_become_a_band(seeds):
    assert list(seeds.metrics) == ["gan", "flow"]
    assert list(seeds.generated) == ["gan #1", "gan #2", "flow"]
    one, two = (seeds.seed_metrics[name]["mean/response"] for name in seeds.seeds["gan"])
    both = seeds.metrics["gan"]["mean/response"]
    assert one == seeds.metrics["flow"]["mean/response"]
    assert both.value == pytest.approx((one.value + two.value) / 2)
    spread = abs(one.value - two.value) / np.sqrt(2)
    assert both.error == pytest.approx(np.sqrt(spread**2 + (one.error**2 + two.error**2) / 2))
    content = seeds.to_json()["generated"]
    assert content["gan"]["samples"] == 500
    assert set(content["gan"]["seeds"]) == {"gan #1", "gan #2"}
    assert "seeds" not in content["flow"]
    histograms = views.observable_histograms(seeds, "response")
    assert (histograms["gan"].total, histograms["gan"].seeds) == (500, 2)
    gan = histograms["gan"]
    assert np.all(gan.curve.error >= np.sqrt(gan.contents[1:-1]) / 500 / gan.widths)
    _, curves = views.condition_curves(seeds, "response", seeds.family.conditions[0], mean_of)
    np.testing.assert_allclose(curves["gan"].over(curves["flow"]).y, 1.01, atol=0.005)


def test_surrogates_side_by_side(seeds, report):
    table = SideBySide.of(seeds)
    assert table.names == ("gan", "flow")
    lines = list(csv.DictReader(io.StringIO(table.to_csv())))
    assert [line["metric"] for line in lines] == [key for key, _ in table.rows]
    for line in lines:
        value = seeds.metrics["gan"][line["metric"]].value
        assert line["gan value"] == ("" if value is None else str(value))
    latex = table.to_latex().splitlines()
    assert latex[1:4] == [r"\toprule", r" & gan & flow & floor \\", r"\midrule"]
    assert all(line.count(" & ") == 3 for line in latex[4:-2])
    assert any(
        line.startswith("sliced Wasserstein distance of whole samples [of incident energy] & $") for line in latex
    )
    page = render(seeds, [])
    assert "Side by side" in page
    assert "500 showers of 2 seeds" in page


def test_a_table_for_a_paper_has_the_rows_that_were_asked_for(report):
    table = SideBySide.of(report, ["response", "width_x_1", "fraction", "mean/response[1:25.75GeV]"])
    keys = [
        "w1_sd/response",
        "w1_sd/width_x_1",
        *(f"w1_sd/fraction_{i}" for i in range(3)),
        "mean/response[1:25.75GeV]",
    ]
    assert [key for key, _ in table.rows] == keys
    lines = table.to_latex().splitlines()[4:-2]
    scaled = report.metrics["scaled"]["w1_sd/response"]
    shown = in_brackets(scaled.value, scaled.error)
    assert lines[0].startswith(r"$E_\mathrm{tot}\,/\,E_\mathrm{inc}$, Wasserstein distance [$\sigma_\mathrm{ref}$] & $")
    assert f"${shown}$" in lines[0]
    assert lines[-1].startswith(r"$E_\mathrm{tot}\,/\,E_\mathrm{inc}$, ")
    assert "1 to 25.75 GeV & $" in lines[-1]
    with pytest.raises(ConfigError, match=r"(?s)no metric or observable 'responce'.*did you mean 'response'"):
        SideBySide.of(report, ["responce"])


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (0.12345, 0.0123, "0.123(12)"),
        (12.3456, 1.5, "12.3(1.5)"),
        (1234.5, 56, "1234(56)"),
        (-3.2e-9, 1.5e-9, "-3.2(1.5)e-9"),
        (0.00321, 0.00011, "0.00321(11)"),
        (0.5, None, "0.5"),
    ],
)
def test_errors_are_put_into_brackets(value, error, text):
    assert in_brackets(value, error) == text


def test_one_figure_is_one_call(report, tmp_path):
    for name in ("response", "response[1:25.75GeV]", "overview"):
        assert report.figure(name, tmp_path / "one.pdf").read_bytes().startswith(b"%PDF")
    with pytest.raises(ConfigError, match="no observable or figure 'responce'"):
        report.figure("responce", tmp_path / "one.pdf")
    with pytest.raises(ConfigError, match="unknown format"):
        report.figure("response", tmp_path / "one.jpeg")
    save(report, tmp_path / "out", table=["response"], figures=["response", "width_x_1"])
    names = sorted(path.name for path in (tmp_path / "out" / "figures").iterdir())
    assert names == ["response.pdf", "response.png", "width_x_1.pdf", "width_x_1.png"]
    assert (tmp_path / "out" / "table.csv").read_text().count("\n") == 2


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (0.12345, 0.0123, "0.123 ± 0.012"),
        (-4.2, 0.96, "-4.20 ± 0.96"),
        (1234.5, 56, "1234 ± 56"),
        (3.2e-9, 1.5e-9, "(3.2 ± 1.5)e-9"),
        (319.0, 3e-7, "(3.1900000000 ± 0.0000000030)e2"),
        (5.0, 1e-200, "5.000000000000000 ± 0.000000000000000"),
        (0.5, None, "0.5"),
        (None, None, "-"),
    ],
)
def test_values_are_written_with_the_digits_of_their_errors(value, error, text):
    assert with_error(value, error) == text


def test_names_must_differ(showers):
    few = showers.read(0, 60)
    with pytest.raises(ConfigError, match="a name of its own"):
        compare(few, {"reference": few})
    with pytest.raises(ConfigError, match="a name of its own"):
        compare(few, {"gan": [few, few], "gan #1": few})
    with pytest.raises(ConfigError, match="a name of its own"):
        compare(few, {"gan": []})


def test_training_samples_are_looked_for(showers):
    reference, learnt = showers.read(0, 120), showers.read(120, 240)
    copies = replace(learnt, kind="generated")
    found = compare(reference, {"copies": copies, "new": showers.read(240, 360)}, bins=1, training=learnt)
    assert found.metrics["copies"]["training_copies"].value == 1
    assert found.metrics["new"]["training_copies"].value == 0
    assert verdict(found, "copies").headline.startswith("Repeats samples it was trained on")
    assert found.to_json()["training"]["samples"] == 120
    assert found.settings["training"] is True
    with pytest.raises(ShardError, match="different families"):
        compare(reference, copies, training=toy("1-photons", 20))


def test_classifiers_are_in_the_report(showers, monkeypatch):
    """What classifiers find is tested with them; here, that all of it is shown."""
    auc, control = Metric.of(0.7, 0.01, 0.5, 0.01, 300), Metric.of(0.51, 0.02, 0.5, 0.0, 150)
    told = []

    def classify(reference, generated, *, recipe, seed, progress):
        told.append((len(reference), len(generated), recipe, seed))
        metrics = {Key(AUC, "voxels"): auc, Key(AUC_WORST): auc}
        return Classification(metrics, {}, (("width_x_1", 0.04),), {"energies/voxels": control}, ("small sample.",))

    monkeypatch.setattr("calogen.analysis.metrics.classifiers.classify", classify)
    found = compare(showers.read(0, 120), showers.read(120, 240), bins=1, seed=5, classifier="light")
    assert told == [(120, 120, "light", 5)]
    assert found.metrics["generated"]["auc/worst"] == auc
    assert "generated: small sample." in found.notes
    assert "a trained classifier (AUC 0.7)" in verdict(found, "generated").headline
    content = found.to_json()["generated"]["generated"]["classifier"]
    assert content["tell_tales"] == [["width_x_1", 0.04]]
    assert content["controls"]["energies/voxels"]["value"] == 0.51
    page = render(found, [])
    assert "Positive controls" in page
    assert "not seen" in page
    assert "width_x_1" in page
    assert any(row.key == "auc/worst" for row in summary(found))


def test_the_file_describes_itself(report):
    content = report.to_json()
    assert set(content) <= set(SCHEMA_DOCS)
    for side in content["generated"].values():
        assert set(side) <= {*SCHEMA_DOCS, "provenance", "samples", "resolution", "verdict"}
    known = {re.match(r"[a-z0-9_]+", key)[0] for found in report.metrics.values() for key in found}
    missing = {re.sub(r"(emd|fpd|kpd)_\d+$", r"\1", name) for name in known} - set(content["quantities"])
    assert missing == {"separation"} - set(content["quantities"])
    page = render(report, [])
    for name, quantity in content["quantities"].items():
        assert f"<code>{name}</code>" in page or f"<code>{name}_N</code>" in page
        assert quantity["title"]
        assert quantity["meaning"].endswith(".")


def test_calibration_and_resolution_are_metrics(report):
    metrics = report.metrics["scaled"]
    bias = metrics["calibration/bias"]
    assert bias.value == pytest.approx(-0.01, abs=5 * bias.error)  # 1 % more energy is taken for 1 % less
    assert abs(report.metrics["same"]["calibration/bias"].pull) < 4
    assert abs(metrics["constant/core_resolution"].pull) < 4  # a common factor leaves the resolution alone
    fit = report.to_json()["reference"]["resolution"]["core_resolution"]
    assert fit["constant"]["value"] == pytest.approx(0.0105, abs=0.002)  # 1 % of 95 %


def test_radial_profiles_hold_all_energy(report):
    profile = list(views.radial(report).values())
    total = sum(curves["reference"].y @ np.diff(edges) for edges, curves in profile)
    response = report.reference.table[report.reference.names.index("response")]
    assert total == pytest.approx(response.mean(dtype=np.float64), rel=1e-5)
    assert all(np.all(curves["reference"].error > 0) for _, curves in profile)
    ratio = profile[1][1]["scaled"].over(profile[1][1]["same"])
    np.testing.assert_allclose(ratio.y, 1.01, rtol=1e-4)


def test_a_simulation_of_nothing_is_no_mix_up_of_units(tmp_path):
    samples = toy("calogan", 60)
    empty = replace(samples, values=np.zeros_like(samples.values))
    write_shard(tmp_path / "empty.h5", empty, provenance={})
    with pytest.raises(ShardError, match="showers are empty"):
        compare(tmp_path / "empty.h5", samples)
    half = replace(samples, values=np.where(np.arange(60)[:, None] % 4 == 0, samples.values, 0))
    write_shard(tmp_path / "half.h5", half, provenance={})
    assert len(open_shards(tmp_path / "half.h5").read()) == 60


def test_other_conditions_are_noted(showers):
    reference, other = showers.read(0, 200), showers.read(200, 800)
    narrow = other.select(other.conditions["incident_energy"] < 30e3)
    assert any("incident_energy is not distributed" in n for n in compare(reference, narrow, bins=0).notes)


def test_families_do_not_mix():
    with pytest.raises(ShardError, match="different families"):
        compare(toy("calogan", 20), toy("1-photons", 20))
    with pytest.raises(ShardError, match="different families"):
        score(toy("calogan", 20), toy("1-photons", 20))


def test_missing_conditions_are_named(showers):
    lacking = bare(toy("nbody-64", 40))
    with pytest.raises(ShardError, match="lack the condition 'Omega_m'"):
        compare(toy("nbody-64", 40), lacking)
    with pytest.raises(ShardError, match="lack the condition"):
        score(toy("nbody-64", 40), lacking)


def bare(samples):
    return replace(samples, conditions={})


def test_examples_at_one_energy_are_different_showers(showers):
    reference, other = showers.read(0, 150), showers.read(150, 300)
    one = {"incident_energy": np.full(150, 1e4, np.float32)}
    found = compare(replace(reference, conditions=one), {"other": replace(other, conditions=one)})
    for side in (found.reference, found.generated["other"]):
        assert len(np.unique(side.examples[0], axis=0)) == len(side.examples[0]) > 1


@pytest.mark.parametrize("both", [False, True])
def test_showers_without_energies_are_compared_without(showers, tmp_path, monkeypatch, both):
    reference, other = showers.read(0, 150), bare(showers.read(150, 300))
    found = compare(
        bare(reference) if both else reference, {"free": other, "scaled": replace(other, values=1.1 * other.values)}
    )
    metrics = found.metrics["free"]
    assert {"score", "sliced_w1", "emd_50", "correlation", "w1/total_energy"} <= set(metrics)
    assert not [k for k in metrics if "response" in k or "[" in k]
    assert metrics["sliced_w1"].unit == "of the reference's mean deposited energy"
    assert abs(metrics["sliced_w1"].pull) < 4
    assert found.metrics["scaled"]["mean/total_energy"].value > metrics["mean/total_energy"].value + 0.05
    assert found.plan.fixed_scale == pytest.approx(reference.values.sum(axis=1).mean(), rel=0.1)
    assert len([note for note in found.notes if "constant but for rounding" not in note]) == 1
    assert found.notes[0].startswith("reference and free and scaled: " if both else "free and scaled: ")
    assert "no response" in found.notes[0]
    for side in (found.reference, *found.generated.values()):  # shown by deposited energy
        np.testing.assert_allclose(side.examples[0].sum(axis=1), side.examples[1][:, 0], rtol=1e-5)
        np.testing.assert_allclose(side.examples[1], found.plan.targets, rtol=0.2)
    assert any(row.key == "mean/total_energy" for row in summary(found))
    if both:
        return  # the same figures
    drawn = list(draw(found))
    monkeypatch.setattr("calogen.analysis.page.save.draw", lambda report: drawn[:1])
    page = save(found, tmp_path / "out").read_text()
    assert "come without incident energies" in page
    figures = {drawing.name for drawing in drawn}
    assert {"observables-shower", "longitudinal", "mean-showers", "examples", "correlations"} <= figures
    assert not figures & {"response", "by-energy"}
    json.loads((tmp_path / "out" / "metrics.json").read_text())


def test_energies_that_one_side_lacks_change_nothing(showers):
    reference, other = showers.read(0, 200), showers.read(200, 400)
    pairs = [(reference, bare(other)), (bare(reference), other), (bare(reference), bare(other))]
    first, *rest = ([compare(*pair).metrics, score(*pair)] for pair in pairs)
    assert all(found == first for found in rest)
    assert 0 < first[1] < 1


def test_a_condition_that_every_side_has_is_used_without_energies():
    known = FAMILIES["calogan"].conditions
    family = FAMILIES["calogan"].model_copy(
        update={"conditions": (*known, Condition(name="angle", unit="rad", low=-1, high=1))}
    )
    angle = np.linspace(-1, 1, 200)
    sides = [replace(toy("calogan", 200, seed), family=family) for seed in (0, 1)]
    sides = [replace(s, conditions={**s.conditions, "angle": angle}) for s in sides]
    by_angle = compare(sides[0], replace(sides[1], conditions={"angle": angle}), bins=2)
    assert [s.condition for s in by_angle.plan.selections] == ["", "angle", "angle"]
    assert "w1/total_energy[angle=-1:0rad]" in by_angle.metrics["generated"]
    assert len(compare(sides[0], bare(sides[1]), bins=2).plan.selections) == 1
    assert 0 < score(sides[0], replace(sides[1], conditions={"angle": angle})) < 1
    with pytest.raises(ShardError, match="lack the condition 'angle'"):  # energies are there, the angle is not
        compare(sides[0], replace(sides[1], conditions=toy("calogan", 200).conditions))


def test_two_conditions_in_mev_are_told_apart():
    """Bins of the incident energy have bare names, those of other conditions are named: no key overwrites another."""
    family = FAMILIES["calogan"].with_condition(Condition(name="beam_spread", unit="MeV", low=1e3, high=1e5))
    sides = []
    for seed in (0, 1):
        samples, spread = toy("calogan", 200, seed), np.random.default_rng(seed + 9).uniform(1e3, 1e5, 200)
        sides.append(Samples(family, samples.values, {**samples.conditions, "beam_spread": spread}))
    report = compare(*sides, bins=2)
    names = [s.name for s in report.plan.selections]
    assert names == ["", "1:50.5GeV", "50.5:100GeV", "beam_spread=1:50.5GeV", "beam_spread=50.5:100GeV"]
    metrics = report.metrics["generated"]
    assert {f"mean/response{s.suffix}" for s in report.plan.selections} <= set(metrics)
    assert len({metrics[f"mean/response{s.suffix}"].value for s in report.plan.selections}) == len(names)
    energy, spread = (condition.axis for condition in family.conditions)
    assert energy == (1e-3, r"$E_\mathrm{inc}$ [GeV]")
    assert spread == (1e-3, "beam_spread [GeV]")
    titles = {axes.get_title(loc="left") for figure in by_energy(report) for axes in figure.figure.axes}
    assert {s.title for s in report.plan.selections[1:]} <= titles


def test_a_generated_reference_is_noted(showers):
    reference = replace(showers.read(0, 100), kind="generated")
    assert any("themselves generated" in n for n in compare(reference, showers.read(100, 200), bins=0).notes)


def test_too_few_samples_are_an_error_not_a_number():
    with pytest.raises(ShardError, match="too few"):
        compare(toy("calogan", 2), toy("calogan", 2))
    with pytest.raises(ShardError, match="no samples"):
        compare(toy("calogan", 0), toy("calogan", 5))


@pytest.mark.parametrize("settings", [{"bins": 99999999999}, {"bins": 2.5}, {"bins": -1}, {"seed": -1}, {"seed": 0.5}])
def test_settings_out_of_range_are_refused(showers, settings):
    with pytest.raises(ConfigError, match="invalid"):
        compare(showers, showers, **settings)


@pytest.mark.parametrize(
    ("value", "energy", "said"), [(np.nan, 1e4, "no sample of"), (1, np.nan, "nan"), (1, 0, "above 0")]
)
def test_samples_that_cannot_be_used_are_refused(showers, value, energy, said):
    good = showers.read(0, 40)
    bad = replace(good, values=good.values * value, conditions={"incident_energy": np.full(40, energy)})
    with pytest.raises(ShardError, match=said):
        compare(bad, good)
    with pytest.raises(ShardError, match=said):
        compare(good, bad)


class AllBad:
    """A reference that leaves out every row, as files opened with ``drop_bad`` do."""

    def __init__(self, samples):
        self._samples, self.family, self.dropped, self.provenance = samples, samples.family, len(samples), ()

    def __len__(self):
        return len(self._samples)

    @property
    def bounds(self):
        return 0, len(self)

    def read(self, start=0, stop=None):
        return self._samples.read(0, 0)

    def chunks(self, size=4096, start=0, stop=None):
        yield self._samples.read(0, 0)

    def placed_chunks(self, size=4096, start=0, stop=None):
        yield np.arange(0), self._samples.read(0, 0)


def test_sources_without_a_usable_row_are_refused(showers):
    good = showers.read(0, 40)
    with pytest.raises(ShardError, match="no sample of the reference can be used"):
        compare(AllBad(good), good)
    with pytest.raises(ShardError, match="no sample of the source can be used"):
        compare(good, AllBad(good))


def test_unknown_metrics_name_a_few_and_limits_are_numbers(report):
    with pytest.raises(ConfigError) as wrong:
        report.check({"zzz": 1})
    assert len(str(wrong.value)) < 1500
    with pytest.raises(ConfigError, match="not a number"):
        report.check({"score": float("nan")})


def test_paths_are_opened_and_progress_is_told():
    told = []
    found = compare(
        ORACLES / "calogan_gamma_64.h5",
        str(ORACLES / "calogan_eplus_64.h5"),
        bins=0,
        progress=lambda *step: told.append(step),
    )
    assert list(found.generated) == ["calogan_eplus_64"]
    assert told[0] == ("opening the samples", 0, 0)
    assert [step for step in told if step[1] == 64] == [("reference", 64, 64), ("calogan_eplus_64", 64, 64)]
    assert ("overall", 6, 7) in told
    shards = open_shards(ORACLES / "calogan_gamma_64.h5")
    assert compare(shards, shards, bins=0).metrics["generated"]["w1/response"].n == 32


def test_a_survey_is_the_same_in_small_chunks(showers, monkeypatch):
    first = compare(showers.read(0, 90), showers.read(100, 190)).to_json()["generated"]["generated"]["metrics"]
    monkeypatch.setattr("calogen.analysis.survey.survey._rows_at_once", lambda family: 37)
    second = compare(showers.read(0, 90), showers.read(100, 190)).to_json()["generated"]["generated"]["metrics"]
    assert set(first) == set(second)
    for key, metric in first.items():
        assert second[key]["value"] == pytest.approx(metric["value"], rel=1e-4, abs=1e-7), key


def test_score_is_fast_seeded_by_nothing_and_orders_defects(showers):
    reference, other = showers.read(0, 800), showers.read(800, 1600)
    score(reference, other)
    start = time.process_time()
    floor = score(reference, other)
    assert time.process_time() - start < 2
    assert score(reference, reference) == 0
    assert floor < score(reference, replace(other, values=1.01 * other.values))
    assert floor == score(reference, other)
    broken = other.values.copy()
    broken[0, 0] = np.nan
    assert score(reference, replace(other, values=broken)) == float("inf")


def test_score_of_a_few_samples_stays_of_order_one():
    reference, other = toy("calogan", 24), toy("calogan", 24, seed=1)
    scores = [score(reference.read(k, k + 12), other.read(k, k + 12)) for k in range(13)]
    assert max(scores) < 1.5
    assert score(reference.read(0, 12), replace(other.read(0, 12), values=2 * other.values[:12])) > max(scores)


def test_score_uses_the_spread_in_a_bin_that_has_enough_samples(showers):
    reference, other = showers.read(0, 800), showers.read(800, 1600)
    mine, theirs = observe(reference, scored=True), observe(other, scored=True)
    distances = []
    for selection in selections(reference.family, reference.conditions, 4)[1:]:
        a, b = selection.of(reference.conditions, 800), selection.of(other.conditions, 800)
        scales = {n: scale_of(mine[n][a]) for n in mine}
        distances += [wasserstein_1d(mine[n][a], theirs[n][b]) / scale for n, scale in scales.items() if scale]
    assert score(reference, other) == pytest.approx(np.mean(distances), rel=1e-12)


def test_histograms_of_a_view_lose_nothing(report):
    for name in ("response", "energy_2", "depth"):
        for title, histogram in views.observable_histograms(report, name).items():
            assert histogram.total == sum(side.used for side in views.sides(report)[title])
            assert histogram.curve.y @ histogram.widths == pytest.approx(1 - histogram.flow.sum())


def test_the_curve_of_the_mean_is_the_mean(report):
    edges, curves = views.condition_curves(report, "response", report.family.conditions[0], mean_of)
    assert len(edges) == 11
    ratio = curves["scaled"].over(curves["same"])
    np.testing.assert_allclose(ratio.y, 1.01, rtol=1e-4)


def test_the_page_needs_nothing_else(report, tmp_path):
    picture = ("figure", "Title", "Caption", b"png")
    page = render(report, [picture])
    assert not re.search(r"""(src|href)\s*=\s*["']?(https?:)?//""", page)
    assert "http" not in page.replace("http-equiv", "")
    assert "&lt;a&gt; &amp; b" in page  # provenance is text, whatever it says
    assert "<a> & b" not in page
    assert page.count("<tr") > 1000


_LOOK = """
<!doctype html><iframe id="page" style="width: 400px; height: 800px"></iframe><pre id="found"></pre><script>
const frame = document.getElementById("page");
frame.srcdoc = PAGE;
frame.onload = () => {
  const page = frame.contentDocument, window = frame.contentWindow, found = {};
  const body = page.querySelector("#all tbody"), first = column => Number(body.rows[0].cells[column].dataset.v);
  const head = title => [...page.querySelectorAll("#all th")].find(th => th.textContent === title);
  found.wide = page.documentElement.scrollWidth;
  found.headline = page.querySelector(".headline").getBoundingClientRect().bottom;
  found.open = page.querySelector("#metrics details").open;
  head("value").click();
  found.largest = first(4);
  head("value").click();
  found.smallest = [...body.rows].map(row => row.cells[4].dataset.v).find(v => v !== "");
  page.getElementById("words").value = "w1_sd response";
  page.getElementById("words").oninput();
  found.shown = [...body.rows].filter(row => !row.hidden).length;
  window.dispatchEvent(new window.Event("beforeprint"));
  found.unfolded = page.querySelectorAll("details.printed:not([open])").length;
  document.getElementById("found").textContent = JSON.stringify(found);
};
</script>
"""


def test_the_page_works_in_a_browser_at_the_width_of_a_phone_and_on_paper(report, tmp_path):
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        pytest.skip("no Chromium: apt-get install chromium")
    page = render(
        report, [("wide", "Wide", "A caption.", _png(2000, 100)), ("overview", "First", "A.", _png(700, 500))]
    )
    (tmp_path / "report.html").write_text(page)
    (tmp_path / "look.html").write_text(_LOOK.replace("PAGE", json.dumps(page).replace("</", "<\\/")))
    headless = [chromium, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]

    def run(*options):
        return subprocess.run([*headless, *options], capture_output=True, text=True, check=True, timeout=120).stdout

    dom = run("--virtual-time-budget=20000", "--dump-dom", (tmp_path / "look.html").as_uri())
    found = json.loads(unescape(re.search(r'<pre id="found">(.*?)</pre>', dom)[1]))
    values = [m.value for metrics in report.metrics.values() for m in metrics.values() if m.value is not None]
    assert found["wide"] <= 400  # no page to be moved sideways
    assert found["headline"] < 800  # seen first
    assert found["open"] is False
    assert found["largest"] == pytest.approx(max(values), rel=1e-4)
    assert float(found["smallest"]) == pytest.approx(min(values), rel=1e-4)
    assert found["shown"] == sum(
        key.startswith("w1_sd/response") for metrics in report.metrics.values() for key in metrics
    )
    assert found["unfolded"] == 0
    run(f"--print-to-pdf={tmp_path / 'report.pdf'}", "--no-pdf-header-footer", (tmp_path / "report.html").as_uri())
    assert 2 <= (tmp_path / "report.pdf").read_bytes().count(b"/Type /Page\n") <= 40  # without thousands of rows


def _png(width, height):
    """A grey picture."""
    rows = zlib.compress((b"\0" + b"\xc0" * width) * height)
    parts = ((b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)), (b"IDAT", rows), (b"IEND", b""))
    chunks = (struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in parts)
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def test_a_saved_report_has_its_files(tmp_path, monkeypatch):
    monkeypatch.setattr("calogen.analysis.page.save.draw", lambda report: islice(draw(report), 4))
    found = compare(toy("nbody-64", 60), toy("nbody-64", 60, seed=1), bins=0)
    page = save(found, tmp_path / "out")
    names = {p.relative_to(tmp_path / "out").as_posix() for p in (tmp_path / "out").rglob("*") if p.is_file()}
    assert {"metrics.json", "report.html", "figures/power.png", "figures/maps.pdf"} <= names
    assert page.read_text().count("data:image/png;base64,") == sum(n.endswith(".png") for n in names)
    assert json.loads((tmp_path / "out" / "metrics.json").read_text()) == json.loads(json.dumps(found.to_json()))


@pytest.mark.parametrize("name", ["calogan", pytest.param("1-pions", marks=pytest.mark.slow)])
def test_every_figure_of_showers_can_be_drawn(name):
    found = compare(toy(name, 80), toy(name, 80, seed=1), bins=2)
    names = []
    for drawing in draw(found):
        names.append(drawing.name)
        assert drawing.caption.endswith(".")
        if drawing.name in ("longitudinal", "spectrum"):
            assert encode(drawing, "png") == encode(drawing, "png")
    assert len(names) == len(set(names))
    assert {"response", "by-energy", "mean-showers", "examples", "correlations", "distances", "spectrum"} <= set(names)
    assert {"radial", "voxel-correlations"} <= set(names)


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_every_figure_of_every_family_can_be_encoded(name):
    for drawing in draw(compare(toy(name, 60), {"one": toy(name, 60, seed=1), "two": toy(name, 60, seed=2)}, bins=2)):
        assert encode(drawing, "png").startswith(b"\x89PNG")
        assert encode(drawing, "pdf").startswith(b"%PDF")


def test_importing_the_package_is_cheap():
    code = "import sys, calogen.analysis; print([m for m in ('matplotlib', 'ot', 'scipy', 'hist') if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
