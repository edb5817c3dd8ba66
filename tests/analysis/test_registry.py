"""Every metric is of a declared quantity, its key is the text it always was, and tables and pages follow from both."""

from __future__ import annotations

import copy
import json
import pickle
from dataclasses import replace

import numpy as np
import pytest
from calogen.analysis.comparison import compare
from calogen.analysis.metrics import measure as measuring
from calogen.analysis.metrics.classifiers import AUC, AUC_WORST, JSD
from calogen.analysis.metrics.distances import MEAN, W1_SD
from calogen.analysis.metrics.maps import STATISTICS, Statistic
from calogen.analysis.metrics.multivariate import FPD
from calogen.analysis.metrics.permutation import OVERALL
from calogen.analysis.metrics.registry import Key, Metric, Metrics, Quantity
from calogen.analysis.page.html import render
from calogen.analysis.page.tables import SideBySide, summary
from calogen.analysis.survey.selections import ALL, Selection
from support import MAPS, SMALL, toy

from calogen.errors import ConfigError

BIN = Selection("10:20GeV", "10 to 20 GeV", "incident_energy", 1e4, 2e4)
SHOWERS = """
auc/observables auc/worst calibration/bias calibration_back/resolution[E] chi2/response[E] constant/core_resolution
core/response correlation coverage density dropped_samples duplicates early_conversion emd_500 empty_voxels fpd_600
jsd/voxels kpd_600 late_conversion mean/response[E] memorisation memorisation_p near_duplicates negative_voxels
noise/rms_resolution nonfinite_samples nonfinite_voxels overall overall_p quantile_high/response quantile_low/response
response_too_high score separation/response separation/voxel separation_flow/response sliced_w1 spread/response
stochastic/core_resolution tail_high/response tail_low/response training_copies w1/response w1_sd/response[E]
"""
OF_MAPS = """
bispectrum_rms cross_copies cross_power inferred_bias/sigma_8[q1] inferred_scatter/Omega_m
inferred_slope/Omega_m minkowski_0 minkowski_1 minkowski_2 peak_counts power_correlation power_covariance power_rms[q4]
power_scatter power_worst separation/pixel slope/Omega_m slope_ratio/Omega_m slope_rms/sigma_8 w1_sd/peak_height
w1_sd/pixel[q1] w1_sd/mean power_rms[Omega_m=0.1:0.3] overall_p
"""


def report_of(family, count, **options):
    sides = [toy(family, count, seed) for seed in range(3)]
    return compare(sides[0], replace(sides[1], kind="generated"), bins=2, training=sides[2], **options)


@pytest.fixture(scope="module")
def of_showers():
    return report_of(SMALL, 1200)


@pytest.fixture(scope="module")
def of_maps():
    return report_of(MAPS, 320)


def test_keys_are_made_of_their_parts():
    assert Key(W1_SD, "response", BIN) == "w1_sd/response[10:20GeV]"
    assert (str(Key(FPD, size=2500)), str(Key(OVERALL)), str(Key(AUC_WORST))) == ("fpd_2500", "overall", "auc/worst")
    key = Key(MEAN, "width_x_1", BIN)
    for copied in (copy.deepcopy(key), pickle.loads(pickle.dumps(key))):
        assert copied == key
        assert (copied.quantity, copied.observable, copied.selection, copied.size) == (MEAN, "width_x_1", BIN, 0)


def test_a_name_is_declared_once():
    Quantity("w1_sd", W1_SD.title, W1_SD.meaning, unit="sd", counted=True)  # the same again does no harm
    with pytest.raises(ValueError, match="'w1_sd' is declared twice"):
        Quantity("w1_sd", "another one", "Nothing.")


def test_metrics_are_found_by_key_and_text_and_selected_by_part():
    metric = Metric.of(1, 1, 0, 0, 10)
    keys = [Key(W1_SD, "a"), Key(W1_SD, "a", BIN), Key(MEAN, "a", BIN), Key(FPD, size=50)]
    found = Metrics(dict.fromkeys(keys, metric))
    assert list(found) == keys
    assert found["w1_sd/a"] is found[keys[0]]
    assert "fpd_50" in found
    assert "fpd_60" not in found
    assert list(found.select(W1_SD)) == list(found.select("w1_sd")) == keys[:2]
    assert list(found.select(observable="a", selection=BIN)) == keys[1:3]
    assert list(found.select(selection="")) == list(found.select(selection=ALL)) == [keys[0], keys[3]]
    assert list(found.select(observable="")) == [keys[3]]
    with pytest.raises(TypeError):
        found["w1_sd/a"] = metric


def test_every_metric_has_a_declared_quantity_and_a_key_of_its_own(of_showers, of_maps):
    for report, wanted in ((of_showers, SHOWERS), (of_maps, OF_MAPS)):
        metrics = report.metrics["generated"]
        assert len({str(key) for key in metrics}) == len(metrics)
        for key in metrics:
            assert key == Key(key.quantity, key.observable, key.selection, key.size)
            assert key.quantity.title
            assert key.quantity.meaning.endswith(".")
        first = next(s.suffix for s in report.plan.selections if s.condition)
        keys = {key.replace("[E]", first) for key in wanted.split()}
        of_classifiers = {Key(AUC, "observables"), Key(AUC_WORST), Key(JSD, "voxels")}
        assert keys - of_classifiers <= set(metrics)


def test_the_statistic_with_the_largest_pull_is_a_field(of_showers):
    metric = of_showers.metrics["generated"][Key(OVERALL)]
    assert metric.unit == "sd"
    assert isinstance(metric.statistic, Key)
    content = json.loads(json.dumps(of_showers.to_json()))["generated"]["generated"]["metrics"]
    assert content["overall"]["statistic"] == metric.statistic
    assert "statistic" not in content["overall_p"]


def test_one_entry_is_a_new_metric_everywhere(monkeypatch):
    """A quantity of its own and the function that measures it: tables, glossary and file follow."""
    new = Quantity("novelty", "a novelty", "What nobody has measured before.", headline=True, large=True)
    entry = lambda *sides: {Key(new): Metric.of(0.25, 0.01, 0.2, 0.01, 9)}  # noqa: E731
    monkeypatch.setattr(measuring, "PARTS", (*measuring.PARTS, entry))
    _shown_everywhere(report_of(SMALL, 60), "novelty")


def test_one_entry_is_a_new_statistic_of_maps(monkeypatch):
    brightness = Quantity("brightness", "mean brightness", "Mean of all pixels.", headline=True, large=True)
    entry = Statistic(
        brightness,
        lambda ensemble, rows, scale: ensemble.columns["pixel"][rows].astype(float),
        lambda mean: mean.sum(axis=1, keepdims=True),
        lambda reference: lambda d: abs(d[:, 0] / reference),
    )
    monkeypatch.setattr("calogen.analysis.metrics.maps.STATISTICS", (*STATISTICS, entry))
    _shown_everywhere(report_of(MAPS, 60), "brightness")


def _shown_everywhere(report, name):
    content = report.to_json()
    assert name in content["generated"]["generated"]["metrics"]
    assert name in content["quantities"]
    assert name in [row.key for row in summary(report)]
    assert name in [key for key, _ in SideBySide.of(report).rows]
    page = render(report, [])
    assert f"<code>{name}</code>" in page
    assert content["quantities"][name]["meaning"] in page


def test_a_report_gives_histograms_of_hist(of_showers):
    first = next(s for s in of_showers.plan.selections if s.condition)
    for name in ("response", "voxel"):
        found = of_showers.histogram(name, first.name)
        assert list(found.axes.name) == ["side", name]
        assert list(found.axes["side"]) == ["reference", "generated"]
        members = np.count_nonzero(of_showers.reference.members(first))
        assert found["reference", :].sum(flow=True) == members * (1 if name == "response" else SMALL.voxels)
    with pytest.raises(ConfigError):
        of_showers.histogram("respnose")
