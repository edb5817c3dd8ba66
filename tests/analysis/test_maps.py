"""Statistics of maps have the values theory gives, and their metrics see what is wrong and nothing else."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from calogen.analysis.comparison import compare
from calogen.analysis.figures.draw import draw
from calogen.analysis.figures.maps import field
from calogen.analysis.figures.panels import encode
from calogen.analysis.metrics.ensembles import Ensemble, Spread, difference, distance, unit_sums
from calogen.analysis.metrics.maps import PowerModel, map_metrics, map_statistics, quarters, response
from calogen.analysis.observables.statistics import (
    LogAxis,
    Shells,
    bispectra,
    bispectrum_bands,
    cross_spectra,
    minkowski,
    peak_mask,
    pixel_histograms,
    power_spectra,
)
from calogen.analysis.page.tables import summary
from calogen.analysis.survey.plan import plan_comparison
from calogen.analysis.survey.survey import survey
from scipy.ndimage import gaussian_filter, label
from support import MAPS

from calogen.errors import ShardError
from calogen.families import Family
from calogen.shards.samples import Samples

FAMILY = Family.model_validate({**MAPS.model_dump(), "pixels": (32, 32), "box_size": 64.0, "depth": 8.0})


def gaussian(count, pixels=64, box=64.0, slope=-2.0, seed=0):
    """Gaussian fields 1 + delta with P(k) = k^slope in shells' units, and the wave numbers they were made with."""
    rng = np.random.default_rng(seed)
    k = 2 * np.pi / box * np.hypot(np.fft.fftfreq(pixels)[:, None], np.fft.rfftfreq(pixels)) * pixels
    k[0, 0] = np.inf
    white = np.fft.rfft2(rng.normal(size=(count, pixels, pixels)))
    return 1 + np.fft.irfft2(white * np.sqrt(k**slope) * pixels / box, s=(pixels, pixels)), k


def boxes(count, each=6, seed=0, **changes):
    """Lognormal maps of a family with two conditions; those of a box share an amplitude that scatters."""
    rng = np.random.default_rng(seed)
    n = count * each
    conditions = {c.name: np.repeat(rng.uniform(c.low, c.high, count), each) for c in FAMILY.conditions}
    fields, _ = gaussian(n, 32, 64.0, -2.0, seed + 1)
    amplitude = conditions["sigma_8"] * np.repeat(1 + 0.05 * rng.normal(size=count), each) * changes.get("factor", 1.0)
    g = (fields - 1) / fields.std() * amplitude[:, None, None]
    values = np.exp(g - amplitude[:, None, None] ** 2 / 2).astype(np.float32)
    return Samples(FAMILY, values, conditions, extras={"realisation_id": np.repeat(np.arange(count), each)})


@pytest.fixture(scope="module")
def measured():
    """Metrics of independent maps of the same kind, and of maps with 20 % more amplitude."""
    reference = boxes(40)
    plan = plan_comparison(reference, bins=2, seed=0)
    base = map_statistics(survey(reference, plan), plan)
    found = {}
    for name, samples in {"same": boxes(40, seed=5), "rough": boxes(40, seed=5, factor=1.2)}.items():
        lone = replace(samples, extras={})  # a surrogate's maps have no realisations
        found[name] = map_metrics(base, map_statistics(survey(lone, plan), plan, base), plan)
    return found


# ------------------------------------------------------------------------------------------------ statistics


def test_the_power_spectrum_of_a_gaussian_field_is_recovered():
    maps, k = gaussian(400)
    shells = Shells.of((64, 64), 64.0)
    expected = shells.mean((k**-2.0)[None])[0]
    found = power_spectra(maps, 64.0)
    error = found.std(axis=0) / np.sqrt(len(found))
    assert np.abs((found.mean(axis=0) - expected) / error).max() < 4.5
    # A shell of M modes of a Gaussian field scatters by sqrt(2 / M).
    modes = np.bincount(shells.number.ravel(), shells.weight.ravel())[1:32]
    np.testing.assert_allclose(found.std(axis=0)[4:] / expected[4:], np.sqrt(2 / modes[4:]), rtol=0.2)


@pytest.mark.parametrize("pixels", [(16, 16), (15, 15), (16, 24), (17, 12)])
def test_parseval(pixels):
    maps = 1 + np.random.default_rng(1).normal(size=(3, *pixels))
    modes = np.fft.rfft2(maps - 1)
    shells = Shells.of(pixels, 0.0)
    total = np.sum(shells.weight * np.abs(modes) ** 2, axis=(1, 2)) / maps[0].size
    np.testing.assert_allclose(total, np.sum((maps - 1) ** 2, axis=(1, 2)))
    full = np.abs(np.fft.fft2(maps - 1)) ** 2
    side = min(pixels)
    radius = np.rint(np.hypot(*np.meshgrid(*(np.fft.fftfreq(n) * side for n in pixels), indexing="ij")))
    expected = [full[:, radius == n].mean(axis=1) / maps[0].size for n in range(1, side // 2)]
    np.testing.assert_allclose(power_spectra(maps, 0.0), np.transpose(expected))


def test_the_bispectrum_of_independent_pixels_is_their_third_cumulant():
    rng = np.random.default_rng(2)
    maps = 1 + rng.exponential(size=(3000, 32, 32)) - 1
    found = bispectra(maps, 64.0)
    pixel = 64.0 / 32
    error = found.std(axis=0) / np.sqrt(len(found))
    expected = 2 * pixel**4  # of an exponential distribution, everywhere
    assert np.abs((found.mean(axis=0) - expected) / error).max() < 4
    assert (error < 0.5 * expected).sum() >= 5
    np.testing.assert_allclose(power_spectra(maps, 64.0).mean(), pixel**2, rtol=0.01)


def test_the_bispectrum_of_a_gaussian_field_vanishes_and_scales_with_the_cube():
    maps, _ = gaussian(500, 32)
    found = bispectra(maps, 64.0)
    assert np.abs(found.mean(axis=0) / (found.std(axis=0) / np.sqrt(500))).max() < 4
    np.testing.assert_allclose(bispectra(1 - 2 * (maps - 1), 64.0), -8 * found, rtol=1e-3, atol=1e-3 * found.std())
    bands, k = bispectrum_bands((32, 32), 64.0)
    assert bands[0] == (1, 1)
    assert bands[-1][1] == 10  # three times 10 modes are below the sampling frequency
    assert all(b[0] == a[1] + 1 for a, b in pairwise(bands))
    assert np.all(np.diff(k) > 0)


def test_minkowski_functionals_of_gaussian_fields():
    """Tomita 1986; Schmalzing and Gorski 1998, eq. 12: from the variance of the field and of its gradient alone."""
    rng = np.random.default_rng(3)
    n = 128
    frequency = 2 * np.pi * np.hypot(np.fft.fftfreq(n)[:, None], np.fft.rfftfreq(n))
    maps = np.fft.irfft2(np.fft.rfft2(rng.normal(size=(40, n, n))) * np.exp(-0.5 * (6 * frequency) ** 2), s=(n, n))
    maps /= maps.std()
    gradient = np.sqrt(np.mean((maps - np.roll(maps, 1, 1)) ** 2 + (maps - np.roll(maps, 1, 2)) ** 2) / 2)
    level = np.array([-2.0, -1.0, 0.0, 1.0, 2.0])
    from scipy.special import ndtr

    area = ndtr(-level)
    boundary = gradient / 8 * np.exp(-(level**2) / 2)
    euler = gradient**2 * level / (2 * np.pi) ** 1.5 * np.exp(-(level**2) / 2)
    found = minkowski(maps, level, 0.0)
    error = found.std(axis=0) / np.sqrt(len(maps))
    for mine, expected, own in zip(found.mean(axis=0), (area, boundary, euler), error, strict=True):
        assert np.abs(mine - expected).max() < 0.02 * np.abs(expected).max() + 4 * own.max()
    np.testing.assert_allclose(minkowski(maps, level, 64.0)[:, 1], 2 * found[:, 1])  # pixels half as large


def test_minkowski_functionals_of_shapes():
    maps = np.zeros((5, 20, 20))
    maps[0, 3:7, 5:11] = 1  # a rectangle
    maps[1, [2, 3], [2, 3]] = 1  # two pixels that share a corner: between one region and two
    maps[2, :, 4:6] = 1  # a band around the torus: no Euler number
    maps[3, 5:9, 5:9] = 1
    maps[3, 6:8, 6:8] = 0  # with a hole
    maps[4, [0, -1, 0, -1], [0, 0, -1, -1]] = 1  # one square across the corners of the map
    area, sides, euler = minkowski(maps, np.array([0.5]), 0.0)[:, :, 0].T * 400
    np.testing.assert_allclose(area, [24, 2, 40, 12, 4])
    np.testing.assert_allclose(sides * 16 / np.pi, [20, 8, 40, 24, 8])
    np.testing.assert_allclose(euler, [1, 1.5, 0, 0, 1])


def test_minkowski_functionals_are_those_of_regions_counted_one_by_one():
    maps = gaussian_filter(np.random.default_rng(0).random((3, 40, 40)), (0, 2, 2))
    maps[:, [0, -1]] = maps[:, :, [0, -1]] = 0  # no region touches the border, where maps would go on
    levels = np.quantile(maps[maps > 0], [0.2, 0.5, 0.8])
    found = minkowski(maps, levels, 0.0) * 1600
    corners = np.ones((3, 3))
    for i, j in np.ndindex(3, 3):
        above = maps[i] > levels[j]
        sides = sum(np.count_nonzero(np.diff(above, axis=axis)) for axis in (0, 1))
        apart = label(above)[1] - (label(~above, corners)[1] - 1)  # regions that meet in corners are two: less holes
        joined = label(above, corners)[1] - (label(~above)[1] - 1)
        assert found[i, 0, j] == pytest.approx(above.sum())
        assert found[i, 1, j] == pytest.approx(sides * np.pi / 16)
        assert found[i, 2, j] == pytest.approx((apart + joined) / 2)


def test_peaks_and_pixels():
    maps = np.random.default_rng(4).lognormal(size=(20, 12, 10)).astype(np.float32)
    neighbours = [np.roll(maps, (a, b), (1, 2)) for a in (-1, 0, 1) for b in (-1, 0, 1) if (a, b) != (0, 0)]
    np.testing.assert_array_equal(peak_mask(maps), maps > np.max(neighbours, axis=0))
    assert not peak_mask(np.ones((1, 8, 8))).any()
    axis = LogAxis(float(maps.max()) * 1.01, bins=32)
    pixels, peaks = pixel_histograms(maps, axis)
    expected, _ = np.histogram(np.log(maps + np.float32(1e-3)), axis.edges)
    np.testing.assert_allclose(pixels.sum(axis=0), expected, atol=1)  # an edge in float32
    np.testing.assert_array_equal(pixels.sum(axis=1), 120)
    np.testing.assert_array_equal(peaks.sum(axis=1), peak_mask(maps).sum(axis=(1, 2)))
    assert pixel_histograms(np.full((1, 4, 4), 1e9), axis)[0][0, -1] == 16  # beyond the axis is in its last bin


def test_a_shifted_turned_mirrored_copy_does_not_hide():
    maps, _ = gaussian(60, 32)
    maps = np.exp(maps)
    first, second = maps[:30], maps[30:].copy()
    second[0] = np.roll(first[0], (5, 11), (0, 1))
    second[1] = np.rot90(np.roll(first[1], 3, 0)[::-1], 3)
    alike, coherence = cross_spectra(first, second, 64.0, turns=True)
    np.testing.assert_allclose(alike[:2], 1, atol=1e-4)
    np.testing.assert_allclose(coherence[:2], 1, atol=1e-3)
    assert alike[2:].max() < 0.85
    plain, _ = cross_spectra(first, second, 64.0)
    assert plain[0] == pytest.approx(1, abs=1e-4)
    assert plain[1] < 0.85
    assert np.all(plain <= alike + 1e-6)


# ------------------------------------------------------------------------------------------------ errors and floors


def test_errors_and_floors_are_by_realisation():
    """Samples of one unit are equal: the error of the mean is that of as many numbers as there are units."""
    rng = np.random.default_rng(6)
    own = rng.normal(size=(400, 1))
    side = Ensemble({}, {"x": np.repeat(own, 10, axis=0)}, np.repeat(np.arange(400), 10))
    curve = side.curve(np.zeros(1), side.columns["x"], side.members())
    assert curve.error[0] == pytest.approx(1 / np.sqrt(400), rel=0.15)
    sums = unit_sums(side.columns["x"], side.units(side.members()))
    spread = Spread.of(np.concatenate([sums, np.full((400, 1), 10.0)], axis=1), lambda s: s[:, :1] / s[:, 1:], 0)
    assert spread.noise.std() == pytest.approx(0.05, rel=0.3)
    assert spread.again.std() == pytest.approx(0.05, rel=0.3)
    lone = replace(side, unit=None).curve(np.zeros(1), side.columns["x"], side.members())
    assert lone.error[0] == pytest.approx(0.05 / np.sqrt(10), rel=0.15)


def test_equal_sides_are_at_the_floor_on_average():
    rng = np.random.default_rng(7)

    def side(shift=0.0):
        x = rng.normal(loc=1 + shift, scale=0.3, size=(100, 12))
        sums = np.concatenate([x, np.ones((100, 1))], axis=1)
        return Spread.of(sums, lambda s: s[:, :-1] / s[:, -1:], int(rng.integers(1000)))

    def rms(d):
        return np.sqrt(np.mean(d**2, axis=1))

    found = [distance(side(), side(), rms, 100) for _ in range(60)]
    assert np.mean([m.value for m in found]) == pytest.approx(np.mean([m.floor for m in found]), rel=0.07)
    assert distance(side(), side(0.2), rms, 100).pull > 5
    pulls = [difference(a, b, 100).pull for a, b in ((side(), side()) for _ in range(60))]
    assert np.std(pulls) == pytest.approx(1, abs=0.35)


def test_the_response_of_a_known_spectrum():
    rng = np.random.default_rng(8)
    theta = {"a": rng.uniform(0, 1, 4000), "b": rng.uniform(2, 4, 4000)}
    mean = np.exp(np.outer(theta["a"], [2.0, -1.0, 0.0]) + np.outer(theta["b"], [0.5, 0.0, -0.3]))
    side = Ensemble(theta, {"power": 7 * mean * rng.gamma(2, 0.5, size=mean.shape)})
    spread = response(side, ["a", "b"], 0)
    expected = np.array([2.0, -1.0, 0.0, 0.5, 0.0, -0.3])
    error = spread.again.std(axis=0, ddof=1)
    assert np.abs((spread.value - expected) / error).max() < 4
    # Relative errors of 1/sqrt(2), conditions of standard deviations 1/sqrt(12) and 2/sqrt(12).
    np.testing.assert_allclose(error, np.repeat([1, 0.5], 3) * np.sqrt(12 / 2 / 4000), rtol=0.4)
    expectation = PowerModel.fit(side, ["a", "b"]).expected(side)
    np.testing.assert_allclose(np.median(expectation / (7 * mean), axis=0), 1, rtol=0.05)


# ------------------------------------------------------------------------------------------------ metrics


def test_quarters_of_the_plane():
    rng = np.random.default_rng(9)
    conditions = {"Omega_m": rng.uniform(0.1, 0.5, 500), "sigma_8": rng.uniform(0.6, 1.0, 500)}
    found = quarters(FAMILY, conditions)
    assert [q.name for q in found] == ["q1", "q2", "q3", "q4"]
    assert found[1].title == "Omega_m ≥ 0.3, sigma_8 < 0.8"
    members = np.stack([q.of(conditions, 500) for q in found])
    np.testing.assert_array_equal(members.sum(axis=0), 1)
    np.testing.assert_array_equal(members[2], (conditions["Omega_m"] < 0.3) & (conditions["sigma_8"] >= 0.8))
    narrow = {"Omega_m": rng.uniform(0.1, 0.2, 500), "sigma_8": np.full(500, 0.8)}
    halves = quarters(FAMILY, narrow)  # divided where the data are, and not where they have one value
    assert [q.name for q in halves] == ["q1", "q2"]
    assert halves[0].of(narrow, 500).mean() == pytest.approx(0.5, abs=0.1)
    assert quarters(FAMILY, {}) == ()


def test_equal_maps_differ_by_chance_only(measured):
    found = measured["same"]
    for key in (
        "power_rms",
        "power_worst[q1]",
        "power_scatter[q4]",
        "w1_sd/pixel[q2]",
        "w1_sd/peak_height",
        "slope/sigma_8",
    ):
        assert key in found
    for key in ("bispectrum_rms", "minkowski_0", "minkowski_2[Omega_m=0.1:0.3]", "power_covariance", "cross_power"):
        assert key in found
    pulls = np.array([m.pull for m in found.values() if m.pull is not None])
    assert len(pulls) > 100
    assert np.abs(pulls).max() < 5
    assert abs(pulls.mean()) < 1


def test_an_amplitude_too_large_is_seen_and_sized(measured):
    found = measured["rough"]
    for key in (
        "power_rms",
        "power_rms[q1]",
        "power_rms[q4]",
        "power_worst",
        "w1_sd/pixel",
        "minkowski_0",
        "peak_counts",
    ):
        assert found[key].pull > 3, key
    assert found["power_rms"].value > 0.4  # 1.2^2 and more, since the maps are lognormal
    assert found["inferred_bias/sigma_8"].value > 0.03
    assert found["inferred_bias/sigma_8"].pull > 4
    assert abs(found["cross_copies"].pull) < 4


def test_a_surrogate_that_repeats_itself_is_seen():
    reference, few = boxes(40), boxes(1, each=5, seed=3)
    rng = np.random.default_rng(1)
    rows = rng.integers(len(few), size=240)
    values = np.stack([np.roll(few.values[i], rng.integers(32, size=2), (0, 1)) for i in rows])
    repeated = replace(few.select(rows), values=values, extras={})
    plan = plan_comparison(reference, bins=0, seed=0)
    base = map_statistics(survey(reference, plan), plan)
    found = map_metrics(base, map_statistics(survey(repeated, plan), plan, base), plan)
    assert found["cross_copies"].value == pytest.approx(0.2, abs=0.1)  # of five maps, every fifth pair
    assert found["cross_copies"].pull > 3
    assert found["cross_power"].pull > 3


def test_a_report_of_maps_has_its_figures():
    report = compare(boxes(24), {"a": [boxes(24, seed=4), boxes(24, seed=5)]}, bins=0)
    drawings = {d.name: d for d in draw(report)}
    expected = {"maps", "power", "pixels", "peaks", "bispectrum", "minkowski", "response", "inferred", "cross"}
    assert expected | {"power-correlations"} <= set(drawings)
    assert "field" not in drawings  # of small maps
    for name in ("response", "cross"):
        assert len(encode(drawings[name], "png")) > 5000
    keys = [row.key for row in summary(report)]
    assert {"power_rms[q4]", "w1_sd/pixel[q1]", "w1_sd/peak_height[q2]"} <= set(keys)
    assert len(keys) == len(set(keys)) * len(report.metrics)


def test_maps_without_conditions_have_a_report():
    bare = Family.model_validate({**MAPS.model_dump(), "conditions": ()})
    values = np.exp(gaussian(80, 16, 16.0)[0]).astype(np.float32)
    report = compare(Samples(bare, values[:40]), Samples(bare, values[40:]))
    found = report.metrics["generated"]
    assert "power_rms" in found
    assert not any(key.startswith(("slope", "inferred")) or "[" in key for key in found)
    names = {d.name for d in draw(report)}
    assert {"power", "cross", "pixels"} <= names
    assert not {"response", "inferred"} & names


def test_a_large_field():
    family = Family.model_validate({**MAPS.model_dump(), "pixels": (128, 192), "box_size": 128.0})
    maps = np.exp(np.random.default_rng(0).normal(size=(1, 128, 192)))
    drawing = field(Samples(family, maps.astype(np.float32), {"Omega_m": [0.3], "sigma_8": [0.8]}))
    assert "128 x 192" in drawing.caption
    assert len(encode(drawing, "png")) > 10_000


@pytest.mark.parametrize("change", [{"box_size": 128.0}, {"pixels": (16, 16), "box_size": 32.0}, {"depth": 4.0}])
def test_maps_of_another_size_are_refused(change):
    other = Family.model_validate({**FAMILY.model_dump(), **change})
    samples = Samples(
        other, np.ones((30, *other.sample_shape), np.float32), {"Omega_m": [0.3] * 30, "sigma_8": [0.8] * 30}
    )
    with pytest.raises(ShardError, match="different sizes") as refused:
        compare(boxes(5), samples)
    assert "32 x 32 pixels of 2 Mpc/h, box 64 Mpc/h" in str(refused.value)
    assert "Mpc/h" in str(refused.value.found)
