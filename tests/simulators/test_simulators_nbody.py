"""N-body maps: linear theory, conservation of mass, the design, the same maps however the work is cut."""

import numpy as np
import pytest
from scipy.stats import linregress

from calogen.errors import ConditionError, ConfigError
from calogen.families import FAMILIES
from calogen.models.maps.linear import variance_8
from calogen.shards.sources import open_shards
from calogen.shards.writer import write_shard
from calogen.simulators import build

pytest.importorskip("camb")
pytest.importorskip("numba")

from calogen.simulators import mesh, nbody  # the extra is there

BOX = 100.0
TWO = {"Omega_m": "list:0.3,0.25"}  # CAMB is the slow part


@pytest.fixture(scope="module")
def small():
    """Five realisations of 12 maps of 16 x 16."""
    return build("nbody", samples=60, seed=3, pixels="16", box=16, slabs=4, steps="5", conditions=TWO)


@pytest.fixture(scope="module")
def maps(small):
    return small.make(0, 36)


# ------------------------------------------------------------------------------------------------- linear theory


def test_growth_without_lambda_is_the_scale_factor():
    growth = nbody.Growth(1.0)
    for a in (0.02, 0.3, 1.0):
        assert growth.first(a) == pytest.approx(a, rel=1e-4)
        assert growth.second(a) == pytest.approx(-3 / 7 * a**2, rel=1e-3)
        assert growth.second_rate(a) == pytest.approx(-6 / 7 * a, rel=1e-3)


def test_growth_with_lambda_is_slower():
    """Carroll, Press & Turner 1992: D(z = 0) / a = 0.779 at Omega_m = 0.3, to 1 %."""
    growth = nbody.Growth(0.3)
    assert 0.01 / growth.first(0.01) == pytest.approx(0.779, rel=0.01)


def test_the_spectrum_has_its_sigma_8():
    k = np.geomspace(1e-4, 50, 4000)
    power = nbody.linear_power(0.3, 0.8)(k)
    assert variance_8(k, power) ** 0.5 == pytest.approx(0.8, rel=1e-3)
    assert nbody.linear_power(0.3, 0.4)(k) == pytest.approx(power / 4, rel=1e-6)
    assert 0.01 < k[np.argmax(power)] < 0.03  # the horizon at equality
    assert nbody.hmcode_power(0.3, 0.8)(np.array([0.01])) == pytest.approx(np.interp(0.01, k, power), rel=0.02)


def test_small_perturbations_grow_linearly():
    """Modes far larger than the cells end where the first order puts them; a lattice is off by (k / Nyquist)^2."""

    def power(k):
        return np.where(k < 2.5 * 2 * np.pi / BOX, 10.0, 0.0)

    n, seed = 32, 5
    first, _ = nbody.displacements(power, n, BOX, seed)
    found = nbody.evolve(power, 0.3, n, BOX, seed=seed, steps=10) - mesh.lattice(n, BOX).reshape(-1, 3)
    fit = linregress(first.ravel(), found.ravel())
    assert fit.slope == pytest.approx(1, abs=0.015)
    assert fit.rvalue > 0.997


def test_displacements_make_the_density_they_should():
    """div psi = -delta, which has the spectrum asked for; pairs are opposite in first order."""
    n, level = 16, 50.0
    first, second = nbody.displacements(lambda k: np.full(k.shape, level), n, BOX, 1, sign=1)
    other, same = nbody.displacements(lambda k: np.full(k.shape, level), n, BOX, 1, sign=-1)
    assert np.allclose(first, -other, atol=1e-6)
    assert np.allclose(second, same, atol=1e-6)
    modes = np.fft.rfftn(first.reshape(n, n, n, 3), axes=(0, 1, 2))
    density = -sum(1j * k * modes[..., i] for i, k in enumerate(mesh.wavenumbers(n, BOX)))
    inner = np.abs(density[1:6, 1:6, 1:6]) ** 2 * BOX**3 / n**6  # below the Nyquist planes
    assert np.allclose(inner, level, rtol=1e-3)


# -------------------------------------------------------------------------------------------------------- meshes


def test_a_deposit_keeps_mass_and_centre():
    x = np.array([[1.25, 2.0, 3.5], [-0.25, 8.0, 16.1]], np.float32)  # not wrapped
    density = mesh.deposit(x, 8, 1.0)
    assert density.sum() == pytest.approx(2)
    assert density[1, 2, 3] == pytest.approx(0.75 * 0.5)
    assert density[7, 0, 0] == pytest.approx(0.25 * 0.9)


def test_the_force_is_minus_the_gradient():
    n, k = 32, 2 * np.pi * 2 / BOX
    x = np.arange(n) * BOX / n
    potential = np.cos(k * x).astype(np.float32)[None, :, None] * np.ones((n, 1, n), np.float32)
    force = np.empty((n, n, n, 3), np.float32)
    mesh.force(potential, n / BOX, force)
    assert force[0, :, 0, 1] == pytest.approx(k * np.sin(k * x), abs=1e-3 * k)
    assert np.abs(force[..., 0]).max() < 1e-5


def test_the_spectrum_of_white_noise_is_flat():
    n = 32
    noise = 1 + np.random.default_rng(1).standard_normal((n, n, n)).astype(np.float32) * 0.1
    k, power = mesh.power_spectrum(noise, BOX)
    window = 0.01 * (BOX / n) ** 3
    assert len(k) == n // 2 - 1
    assert k[0] == pytest.approx(2 * np.pi / BOX, rel=0.3)
    assert power[1:5] == pytest.approx(window, rel=0.3)  # few modes; the window of a deposit is near 1
    assert np.all(power[8:] > window)  # and divided out where it is not


# ---------------------------------------------------------------------------------------------------------- maps


def test_maps_hold_the_mass_of_the_box(maps):
    per_axis = maps.values.reshape(3, 3, 4, 16, 16)  # realisation, axis, slab
    assert per_axis.mean((2, 3, 4)) == pytest.approx(1, abs=1e-5)
    assert maps.values.min() >= 0
    # Slabs along x, summed, are the box seen along x; its profile along y is that of the slabs along y.
    seen_along_x = per_axis[:, 0].mean(1).mean(2)  # (realisation, y)
    assert per_axis[:, 1].mean((2, 3)) == pytest.approx(seen_along_x.reshape(3, 4, 4).mean(2), abs=1e-5)


def test_maps_do_not_depend_on_how_the_work_is_cut(small, maps):
    block = small.block
    again = small.make(2 * block, 3 * block)
    assert np.array_equal(again.values, maps.values[2 * block :])
    assert np.array_equal(again.extras["realisation_id"], maps.extras["realisation_id"][2 * block :])
    assert np.array_equal(again.conditions["sigma_8"], maps.conditions["sigma_8"][2 * block :])


def test_pieces_make_any_range(small, maps):
    pieces = list(small.pieces(10, 30))
    assert [len(piece) for piece in pieces] == [2, 12, 6]
    assert np.array_equal(np.concatenate([piece.values for piece in pieces]), maps.values[10:30])


def test_realisations_have_names_and_cosmologies_of_their_own(small, maps, tmp_path):
    ids = maps.extras["realisation_id"].reshape(3, small.block)
    assert (ids == ids[:, :1]).all()
    assert len(np.unique(ids)) == 3
    assert len(np.unique(maps.conditions["sigma_8"])) == 3
    assert maps.conditions["Omega_m"][:: small.block] == pytest.approx([0.3, 0.25, 0.3])
    write_shard(tmp_path / "maps.h5", maps, provenance=small.describe())
    read = open_shards(tmp_path / "maps.h5")
    assert np.array_equal(read.read().extras["realisation_id"], maps.extras["realisation_id"])
    assert read.family.pixels == (16, 16)
    training, held_out = read.split_off(3)
    assert not set(training.read().extras["realisation_id"]) & set(held_out.read().extras["realisation_id"])


def test_the_design_is_a_latin_hypercube():
    design = build("nbody", samples=24 * 40, seed=1).design
    for name, low in (("Omega_m", 0.1), ("sigma_8", 0.6)):
        strata = np.floor((design[name] - low) / 0.4 * 40).astype(int)
        assert sorted(strata.tolist()) == list(range(40))
    assert abs(np.corrcoef(design["Omega_m"], design["sigma_8"])[0, 1]) < 0.4
    assert np.array_equal(design["Omega_m"], build("nbody", samples=24 * 39 + 1, seed=1).design["Omega_m"])
    assert not np.array_equal(design["Omega_m"], build("nbody", samples=24 * 40, seed=2).design["Omega_m"])


def test_cosmologies_can_be_fixed():
    engine = build("nbody", samples=100, conditions={"Omega_m": "fixed:0.3", "sigma_8": "list:0.7,0.9"})
    assert engine.realisations == 5
    assert engine.design["Omega_m"].tolist() == [0.3] * 5
    assert engine.design["sigma_8"].tolist() == [0.7, 0.9, 0.7, 0.9, 0.7]
    assert engine.family == FAMILIES["nbody-64"].model_copy(update={"conditions": engine.family.conditions})


def test_refining_interpolates_the_lattice():
    n, box = 4, 8.0
    shift = np.array([0.5, -0.25, 1.0], np.float32)
    refined = nbody.refine(mesh.lattice(n, box).reshape(-1, 3) + shift, n, box)
    assert refined == pytest.approx(mesh.lattice(2 * n, box).reshape(-1, 3) + shift, abs=1e-5)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"pixels": 48}, "pixels"),
        ({"slabs": 7}, "must divide the pixels\n  where    slabs\n  expected a divisor of 64\n  found    7"),
        ({"pairs": 3}, "whole pixels in every slab\n  where    pairs\n  expected a divisor of 64 / 8"),
        ({"box": 0}, "box"),
        ({"steps": 1}, "steps"),
        ({"conditions": {"Omega_m": "uniform:0.01:0.5"}}, "cannot be simulated"),
        ({"conditions": {"w_0": "fixed:-1"}}, "no condition 'w_0'"),
        ({"particle": "gamma"}, "no option 'particle'"),
    ],
)
def test_what_cannot_be_simulated_is_refused(options, said):
    with pytest.raises((ConfigError, ConditionError)) as error:
        build("nbody", samples=10, **options)
    assert said in str(error.value)


def test_only_whole_realisations_of_the_design(small):
    with pytest.raises(ConfigError, match="whole blocks"):
        small.make(0, 5)
    with pytest.raises(ConfigError, match="no such realisation"):
        small.make(60, 72)


def test_the_check_speaks_of_hmcode_and_growth(small):
    text = small.check()
    assert "HMcode2020" in text
    assert "growth" in text
    k = np.array([5.0, 15.0, 25.0, 50.0])  # small boxes have such waves
    slopes = np.diff(np.log(nbody.hmcode_power(0.3, 0.8)(k))) / np.diff(np.log(k))
    assert slopes == pytest.approx(-2.1, abs=0.3)


# ---------------------------------------------------------------------------------------------------------- slow


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_the_spectrum_is_near_hmcode():
    k, power = nbody.paired_power(0.3, 0.8, 128, 128.0, 20)
    ratio = power / nbody.hmcode_power(0.3, 0.8)(k)
    inside = (k > 0.25) & (k < 1)
    assert np.abs(ratio[inside] - 1).max() < 0.12


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("omega_m", [0.2, 0.3])
def test_large_scales_grow_linearly(omega_m):
    k, ratio = nbody.growth_check(omega_m, 0.8, 64, 20)
    assert len(k) > 1
    assert np.abs(ratio - 1).max() < 0.02


# --------------------------------------------------------------------------------------------------------- pairs


def test_a_coarser_run_has_the_phases_of_the_finer_one():
    """Every mode below the coarse mesh's Nyquist has the same displacement; there are no others."""

    def power(k):
        return np.where(k < 3.5 * 2 * np.pi / BOX, 10.0, 0.0)

    fine, _ = nbody.displacements(power, 16, BOX, 7)
    coarse, _ = nbody.displacements(power, 8, BOX, 7, phases=16)
    assert np.allclose(coarse.reshape(8, 8, 8, 3), fine.reshape(16, 16, 16, 3)[::2, ::2, ::2], atol=1e-3 * fine.std())
    other, _ = nbody.displacements(power, 8, BOX, 7)
    assert abs(np.corrcoef(coarse.ravel(), other.ravel())[0, 1]) < 0.5


def test_pairs_are_of_the_same_boxes_pixel_by_pixel(tmp_path):
    engine = build("nbody", samples=24, seed=3, pixels="16", box=32, slabs=4, steps="5", pairs="2", conditions=TWO)
    made = engine.make(0, 24)
    low = made.extras["low"]
    assert low.shape == (24, 8, 8)
    assert made.family.low_pixels == (8, 8)
    assert low.reshape(2, 3, 4, 8, 8).mean((2, 3, 4)) == pytest.approx(1, rel=1e-5)  # as much matter along each axis
    coarse = made.values.reshape(24, 8, 2, 8, 2).mean((2, 4))

    def related(shift):
        moved = np.roll(coarse, shift, (1, 2))
        return np.mean(
            [np.corrcoef(np.log(a.ravel()), np.log(b.ravel()))[0, 1] for a, b in zip(low, moved, strict=True)]
        )

    assert related((0, 0)) > 0.85
    half = np.roll(made.values, 1, 1).reshape(24, 8, 2, 8, 2).mean((2, 4))  # half a coarse pixel off is worse
    there = [np.corrcoef(np.log(a.ravel()), np.log(b.ravel()))[0, 1] for a, b in zip(low, half, strict=True)]
    assert related((0, 0)) > np.mean(there) + 0.02
    alone = build("nbody", samples=24, seed=3, pixels="16", box=32, slabs=4, steps="5", conditions=TWO).make(0, 24)
    assert np.array_equal(alone.values, made.values)
    write_shard(tmp_path / "pairs.h5", made, provenance=engine.describe())
    read = open_shards(tmp_path / "pairs.h5").read()
    assert np.array_equal(read.extras["low"], low)
    assert "low" in engine.describe()


@pytest.mark.parametrize("factor", [3, 4])
def test_pairs_that_cut_pixels_are_refused(factor):
    with pytest.raises(ConfigError, match=r"(?s)whole pixels in every slab.*16 / 4"):
        build("nbody", samples=12, pixels="16", box=16, slabs=4, pairs=factor)
