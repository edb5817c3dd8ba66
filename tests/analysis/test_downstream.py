"""Energy calibration with generated showers, tried on reference ones."""

from dataclasses import replace

import numpy as np
import pytest
from calogen.analysis.metrics.downstream import calibration, features, fit
from support import MAPS, SINGLE, SMALL, toy

from calogen.errors import ShardError


def test_a_linear_calorimeter_is_calibrated_exactly():
    rng = np.random.default_rng(0)
    energies = rng.uniform(1, 100, size=(300, 3))
    weights = np.array([1.5, 1.0, 0.7])
    showers = np.column_stack([energies @ weights + 5, energies])
    assert features(showers) @ fit(showers) == pytest.approx(showers[:, 0], rel=1e-5)


def test_weights_may_depend_on_how_the_energy_is_shared():
    rng = np.random.default_rng(1)
    energies = rng.uniform(1, 100, size=(300, 2))
    incident = energies.sum(axis=1) + 0.2 * energies[:, 0] ** 2 / energies.sum(axis=1)
    showers = np.column_stack([incident, energies])
    assert features(showers) @ fit(showers) == pytest.approx(incident, rel=1e-5)


def test_one_layer_and_an_empty_one_are_no_trouble():
    rng = np.random.default_rng(2)
    energies = np.column_stack([rng.uniform(1, 100, size=200), np.zeros(200)])
    showers = np.column_stack([energies[:, 0] / 0.8, energies])
    assert features(showers) @ fit(showers) == pytest.approx(showers[:, 0], rel=1e-6)


def test_equal_showers_calibrate_alike():
    found = calibration(toy(SMALL, 1500, 1), toy(SMALL, 1000, 2))
    names = {key.split("[")[0] for key in found}
    ways = ("calibration", "calibration_back")
    assert names == {f"{way}/{quantity}" for way in ways for quantity in ("bias", "resolution")}
    assert sum("[" in key for key in found) == 4 * 4
    assert max(abs(metric.pull) for metric in found.values()) < 3.5
    assert all(abs(metric.floor) < 4 * metric.floor_error for metric in found.values())
    assert {metric.n for metric in found.values()} == {500}


def test_an_energy_scale_is_a_bias_of_the_same_size_both_ways():
    generated = toy(SMALL, 1000, 2)
    found = calibration(toy(SMALL, 1500, 1), replace(generated, values=generated.values * np.float32(1.02)))
    for way, sign in (("calibration", -1), ("calibration_back", 1)):
        metric = found[f"{way}/bias"]
        assert metric.value == pytest.approx(sign * 0.02, abs=3 * metric.error)
        assert abs(metric.pull) > 5


def test_a_wrong_sharing_between_layers_costs_resolution():
    """Weights learnt where one layer over-responds are wrong for the others."""
    generated = toy(SMALL, 1000, 2)
    values = generated.values.copy()
    values[:, SMALL.layer_slices[1]] *= 1.2
    found = calibration(toy(SMALL, 1500, 1), replace(generated, values=values))
    metric = found["calibration/resolution"]
    assert metric.value > 3 * metric.error


def test_it_repeats_for_a_seed_and_leaves_out_what_is_not_finite():
    reference, generated = toy(SINGLE, 400, 1), toy(SINGLE, 300, 2)
    first = calibration(reference, generated, seed=5, splits=5)
    assert calibration(reference, generated, seed=5, splits=5) == first
    assert calibration(reference, generated, seed=6, splits=5) != first
    generated.values[0, 0] = np.nan
    assert all(m.value is not None for m in calibration(reference, generated, splits=5).values())


def test_nothing_to_calibrate_and_too_few():
    reference = toy(SINGLE, 300)
    assert calibration(toy(MAPS, 50), toy(MAPS, 50)) == {}
    assert calibration(reference, replace(reference, conditions={})) == {}
    with pytest.raises(ShardError, match="too few showers"):
        calibration(toy(SINGLE, 59), reference)
    with pytest.raises(ShardError, match="different families"):
        calibration(reference, toy(SMALL, 300))
