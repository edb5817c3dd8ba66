"""The compiled generator is the module that was trained, to rounding; values may be rounded on purpose."""

from __future__ import annotations

import copy
import functools
import pickle
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from support import MAPS, SINGLE, SMALL, Trained, straight, straight_family, toy

from calogen.config import Config, GeneratorConfig
from calogen.errors import ConfigError
from calogen.families import FAMILIES, Family
from calogen.models.registry import build_generator
from calogen.models.showers.generator import ShowerGenerator
from calogen.models.showers.inference import CompiledShowers
from calogen.production.noise import normals
from calogen.production.requests import Request
from calogen.runs.checkpoint import Card, Checkpoint, ConditionRange
from calogen.sampling import Generation, Surrogate
from calogen.shards.hdf5 import rounded
from calogen.shards.inspect import verify
from calogen.shards.samples import Samples
from calogen.shards.sources import open_shards

AXIS = ("impact_x", "incident_energy", "impact_y", "theta", "phi")
FRAMED = straight_family().model_copy(update={"threshold": 0.5, "symmetries": ("mirror-x", "mirror-y")})
LINEAR = Family.model_validate({**SMALL.model_dump(), "name": "linear", "conserves_energy": False, "knee": 5.0})
CASES = {
    "two conditions, energy conserved": (SMALL, ("incident_energy", "angle")),
    "the energy comes second": (SMALL, ("angle", "incident_energy")),
    "two conditions, energy not conserved": (LINEAR, ("incident_energy", "angle")),
    "no energy": (SMALL, ("angle",)),
    "unconditional": (SMALL, ()),
    "one layer": (SINGLE, ("incident_energy",)),
    "one layer, unconditional": (SINGLE, ()),
    "calogan": (FAMILIES["calogan"], ("incident_energy",)),
    "1-photons": (FAMILIES["1-photons"], ("incident_energy",)),
    "shower frame": (FRAMED, AXIS),
    "as fitted": (SMALL, ("incident_energy", "angle")),
    "no noise is shared": (SMALL, ("incident_energy",)),
}
AS_FITTED = "as fitted"  # networks that end in zero, which are left out, and no refinement
UNSHARED = "no noise is shared"


def showers_of(family: Family, count: int, seed: int) -> Samples:
    if family is not FRAMED:
        return toy(family, count, seed)
    samples = straight(count, depths=np.array([[10.0, 2.0], [45.0, 5.0]]), jitter=0.5, width=1.5, seed=seed)
    noise = np.random.default_rng(seed).gamma(2, 0.5, samples.values.shape).astype(np.float32)
    values = samples.values * noise
    return replace(samples, family=FRAMED, values=np.where(values < FRAMED.threshold, 0, values))


def of_case(case: str) -> ShowerGenerator:
    """The generator of a case, one's own."""
    return copy.deepcopy(_made(case))


@functools.cache  # files that use a case share its fit
def _made(case: str) -> ShowerGenerator:
    family, names = CASES[case]
    if case == AS_FITTED:
        return fitted_to(family, names).eval()
    return trained_like(family, names, unshared=case == UNSHARED)


def fitted_to(family: Family, names: Sequence[str], seed: int = 1) -> ShowerGenerator:
    torch.manual_seed(seed)
    generator = build_generator(family, names, GeneratorConfig(latent=4, hidden=(8, 8)))
    assert isinstance(generator, ShowerGenerator)
    generator.fit(showers_of(family, 300, 0), 1)
    return generator


def trained_like(family: Family, names: Sequence[str], seed: int = 1, *, unshared: bool = False) -> ShowerGenerator:
    """A fitted generator whose networks and statistics are somewhere training could have brought them."""
    generator = fitted_to(family, names, seed)
    with torch.no_grad():
        for network in (generator.energies, generator.shapes):
            network[-1].weight.normal_(0, 0.05)
            network[-1].bias.normal_(0, 0.1)
        generator.standardise.running_mean.normal_(0, 0.1)
        generator.standardise.running_var.uniform_(0.8, 1.3)
        generator.transform.voxels.line.uniform_(0.0, 0.1)
        if not unshared:
            generator.noise.shares.uniform_(-0.2, 0.4)
            generator.noise.apart.uniform_(0.0, 1.0)
        refinement = generator.refinement
        refinement.add(0.03 * torch.randn_like(refinement.coefficients) * refinement.used)
    return generator.eval()


@pytest.fixture(scope="module")
def pair() -> Callable[[str], tuple[ShowerGenerator, CompiledShowers]]:
    """Generators and their compiled forms, by case; made once."""
    made: dict[str, tuple[ShowerGenerator, CompiledShowers]] = {}

    def get(case: str) -> tuple[ShowerGenerator, CompiledShowers]:
        if case not in made:
            generator = of_case(case)
            made[case] = generator, generator.folded()
        return made[case]

    return get


def both(pair: tuple[ShowerGenerator, CompiledShowers], latent: np.ndarray, conditions: np.ndarray) -> list[np.ndarray]:
    """Showers of the module in double and in single precision, and of its compiled form."""
    generator, quick = pair
    tensors = torch.from_numpy(latent), torch.from_numpy(conditions)
    with torch.inference_mode():
        single = generator(*tensors).numpy()
        generator.double()
        double = generator(*(tensor.double() for tensor in tensors)).numpy()
        generator.float()
    return [double, single, quick(latent, conditions)]


@pytest.mark.parametrize("case", CASES)
def test_the_compiled_generator_is_the_module_to_rounding_but_for_gates(case: str, pair: Callable[..., object]) -> None:
    found = pair(case)
    generator = found[0]
    names = generator.transform.conditions
    assert (generator.transform.frame is not None) == (case == "shower frame")
    count = 1500 if generator.family.voxels < 100 else 300
    coarse = generator.coarse
    latent = normals(3, 0, count, generator.latent_size - coarse, coarse)
    conditions = showers_of(generator.family, count, 3).conditions.array(names)
    double, single, made = both(found, latent, conditions)
    assert made.dtype == np.float32
    assert made.shape == (count, generator.family.voxels)
    assert np.isfinite(made).all()
    assert (made >= 0).all()
    gate = (made > 1e-12) != (double > 1e-12)  # MeV: less is lost where the line takes energy from its neighbours
    assert gate.mean() < 1e-4
    showers = ~gate.any(1)  # a voxel at its gate takes energy from its layer's others
    assert showers.mean() > 0.9
    scale = double.sum(1, keepdims=True)
    error, theirs = ((np.abs(values - double) / scale)[showers] for values in (made, single))
    assert error.max() < 1e-3
    assert error.max() < 20 * theirs.max() + 1e-6  # of the order of the module's own rounding
    assert error.mean() < 2 * theirs.mean()
    np.testing.assert_allclose(made.sum(1)[showers], double.sum(1)[showers], rtol=2e-5, atol=1e-3)


@pytest.mark.parametrize("steps", [1, -2])
def test_a_request_moved_by_whole_cells_gives_the_shower_moved(steps: int, pair: Callable[..., object]) -> None:
    found = pair("shower frame")
    generator = found[0]
    frame = generator.transform.frame
    assert frame is not None
    assert frame.periods[1] == 2.0
    latent = normals(4, 0, 200, generator.latent_size - generator.coarse, generator.coarse)
    conditions = showers_of(FRAMED, 200, 5).conditions.array(AXIS)
    moved = conditions + np.float32([0, 0, steps * frame.periods[1], 0, 0])
    for one, other in zip(both(found, latent, conditions), both(found, latent, moved), strict=True):
        assert ((one == 0) | (one >= FRAMED.threshold * (1 - 1e-6))).all()
        same = []
        for layer, part in zip(FRAMED.layers, FRAMED.layer_slices, strict=True):
            expected = np.roll(one[:, part].reshape(-1, *layer.shape), steps, 2).reshape(len(one), -1)
            same.append(np.isclose(other[:, part], expected, rtol=0.02, atol=FRAMED.threshold).all(1))
        # Rounding moves an axis to the next cell now and then, and far out a shower loses something at the edge.
        assert np.logical_and(*same).mean() > 0.9


def test_layers_that_are_empty_are_empty_in_both(pair: Callable[..., object]) -> None:
    found = pair("two conditions, energy conserved")
    generator = found[0]
    latent = normals(5, 0, 2000, generator.latent_size - generator.coarse, generator.coarse)
    low = np.stack([np.full(2000, 1e3), np.zeros(2000)], 1).astype(np.float32)
    double, _, made = both(found, latent, low)
    empty = [np.stack([v[:, part].sum(1) == 0 for part in SMALL.layer_slices]) for v in (double, made)]
    np.testing.assert_array_equal(*empty)
    assert empty[0].any()
    assert not empty[0].all(0).any()


def test_a_layer_with_energy_but_no_voxel_on_puts_it_into_one_voxel(pair: Callable[..., object]) -> None:
    found = pair("two conditions, energy conserved")
    generator = found[0]
    latent = normals(6, 0, 500, generator.latent_size - generator.coarse, generator.coarse)
    latent[:, generator.splits[0] + generator.splits[1] :] -= 2.5
    conditions = np.tile(np.array([2e3, 0], np.float32), (500, 1))
    double, _, made = both(found, latent, conditions)
    for part in SMALL.layer_slices:
        alone = (double[:, part] > 0).sum(1) == 1
        assert alone.sum() > 50
        assert (made[alone, part].argmax(1) == double[alone, part].argmax(1)).mean() > 0.99
        np.testing.assert_allclose(made[:, part].sum(1), double[:, part].sum(1), rtol=1e-4, atol=1e-3)
    np.testing.assert_array_equal((made > 0).any(1), True)


@pytest.mark.parametrize("case", ["two conditions, energy conserved", "one layer", "calogan"])
def test_extreme_latents_and_conditions_give_numbers_without_a_warning(case: str, pair: Callable[..., object]) -> None:
    generator, quick = pair(case)
    low = [c.low for c in generator.family.conditions]
    high = [c.high for c in generator.family.conditions]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for size in (-40.0, -8.0, 0.0, 8.0, 40.0):
            latent = np.full((4, generator.latent_size), size, np.float32)
            ends = np.array([low, high, np.multiply(low, 1e-2), np.multiply(high, 1e2)], np.float32)
            showers = quick(latent, ends)
            assert np.isfinite(showers).all()
            assert (showers >= 0).all()


@pytest.mark.parametrize("case", ["calogan", "shower frame", AS_FITTED])
def test_a_shower_has_the_same_bits_at_every_place_of_every_batch(case: str, pair: Callable[..., object]) -> None:
    generator, quick = pair(case)
    latent = normals(1, 0, 1024, generator.latent_size - generator.coarse, generator.coarse)
    conditions = showers_of(generator.family, 1024, 4).conditions.array(generator.conditions)
    before = latent.copy(), conditions.copy()
    whole = quick(latent, conditions)
    np.testing.assert_array_equal(latent, before[0])
    np.testing.assert_array_equal(conditions, before[1])
    np.testing.assert_array_equal(quick(latent, conditions), whole)
    for size in (1, 2, 7, 33):
        for start in (0, 31, 1024 - size):
            rows = slice(start, start + size)
            np.testing.assert_array_equal(quick(latent[rows], conditions[rows]), whole[rows])
    other = latent.copy(), conditions.copy()
    for array, values in zip(other, before, strict=True):
        array[1::2] = values[::-2]  # which must not change the others
    np.testing.assert_array_equal(quick(*other)[::2], whole[::2])
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(quick))(latent[:9], conditions[:9]), whole[:9])


def test_columns_of_a_larger_table_are_conditions_too(pair: Callable[..., object]) -> None:
    generator, quick = pair("calogan")
    latent = normals(1, 0, 50, generator.latent_size - generator.coarse, generator.coarse)
    table = np.geomspace(1e3, 1e5, 100).reshape(50, 2)
    expected = quick(latent, np.ascontiguousarray(table[:, 1:], np.float32))
    np.testing.assert_array_equal(quick(np.asfortranarray(latent), table[:, 1:]), expected)


# ------------------------------------------------------------------------------- the way of a GPU, with the CPU as one


def unfolded(surrogate: Surrogate) -> Surrogate:
    """The surrogate as it runs on a device: the module, one block ahead."""
    surrogate._folded = None
    return surrogate


def map_surrogate() -> Surrogate:
    torch.manual_seed(2)
    names = [c.name for c in MAPS.conditions]
    generator = build_generator(MAPS, names, GeneratorConfig(network="zeldovich", channels=(8, 8)))
    generator.fit(toy(MAPS, 60), 1)
    ranges = tuple(ConditionRange(name=c.name, unit=c.unit, low=c.low, high=c.high) for c in MAPS.conditions)
    config = Config.build({"generator": {"network": "zeldovich", "channels": [8, 8]}, "critic": {"channels": [4, 4]}})
    card = Card(family=MAPS, conditions=ranges, config=config, step=0)
    return Surrogate(Checkpoint(card, dict(generator.state_dict()), Path()))


def test_the_module_makes_the_same_showers_as_its_compiled_form(trained: Trained, tmp_path: Path) -> None:
    request = {"incident_energy": "log-uniform:1:100GeV"}
    quick = Surrogate.load(trained.folder).generate(tmp_path / "folded", request, 2500, seed=2, workers=1)
    plain = unfolded(Surrogate.load(trained.folder)).generate(tmp_path / "plain", request, 2500, seed=2, workers=1)
    one, two = (open_shards(folder).read() for folder in (quick, plain))
    np.testing.assert_array_equal(one.conditions["incident_energy"], two.conditions["incident_energy"])
    same = ~((one.values > 0) != (two.values > 0)).any(1)
    assert same.mean() > 0.9
    scale = one.values.sum(1, keepdims=True)
    assert (np.abs(one.values - two.values)[same] <= 1e-4 * scale[same]).all()


def test_the_device_path_agrees_with_the_kernel() -> None:
    # A GPU if there is one; else torch on this CPU, which is the same module, launched the same way.
    quick = Surrogate.load("calogan-gamma")
    device = Surrogate.load("calogan-gamma", "auto")
    device = device if device._device.type == "cuda" else unfolded(device)
    assert quick.inference != device.inference
    energies = {"energy": np.geomspace(1e3, 1e5, 3000).astype(np.float32)}
    one, two = (surrogate.sample(energies, seed=8) for surrogate in (quick, device))
    flips = (one > 0) != (two > 0)
    assert flips.mean() < 1e-5
    same = ~flips.any(1)
    difference = np.abs(one - two)[same]
    assert (difference <= 3e-4 * np.maximum(two[same], 1.0)).all()  # MeV


@pytest.mark.parametrize("how", [unfolded, lambda surrogate: surrogate], ids=["module", "as it runs here"])
def test_maps_do_not_depend_on_shards_or_blocks(how: Callable[[Surrogate], Surrogate], tmp_path: Path) -> None:
    surrogate = how(map_surrogate())
    request = {"Omega_m": "uniform:0.1:0.5", "sigma_8": "fixed:0.8"}
    whole = open_shards(surrogate.generate(tmp_path / "whole", request, 2500, seed=4, workers=1)).read()
    cut = open_shards(surrogate.generate(tmp_path / "cut", request, 2500, seed=4, shard_size=700, workers=1)).read()
    np.testing.assert_array_equal(cut.values, whole.values)
    np.testing.assert_array_equal(cut.conditions["Omega_m"], whole.conditions["Omega_m"])
    pieces = list(Generation(surrogate, Request.of(MAPS, request, 2500), 4).pieces(900, 2100))
    rows = surrogate.block
    sizes = [len(piece) for piece in pieces]
    assert sizes == [rows - 900 % rows, *[rows] * (len(sizes) - 2), 2100 % rows]
    np.testing.assert_array_equal(np.concatenate([piece.values for piece in pieces]), whole.values[900:2100])
    assert np.isfinite(whole.values).all()
    assert (whole.values >= 0).all()


@pytest.mark.parametrize("kind", ["maps", "showers"])
def test_one_block_is_computed_ahead_of_the_one_that_is_written(kind: str, trained: Trained) -> None:
    surrogate = unfolded(map_surrogate() if kind == "maps" else Surrogate.load(trained.folder))
    launched, launch = [], surrogate.launch

    def noted(columns: np.ndarray, seed: int, start: int) -> Callable[[], np.ndarray]:
        launched.append(start)
        return launch(columns, seed, start)

    surrogate.launch = noted  # type: ignore[method-assign]
    specs = {"Omega_m": "fixed:0.3", "sigma_8": "fixed:0.8"} if kind == "maps" else {"incident_energy": "fixed:5GeV"}
    rows = surrogate.block
    request = Request.of(surrogate.family, specs, 3 * rows)
    seen = [list(launched) for _ in Generation(surrogate, request).pieces(0, 3 * rows)]
    assert seen == [[0, rows], [0, rows, 2 * rows], [0, rows, 2 * rows]]


# --------------------------------------------------------------------------------------------------- mantissa bits


@pytest.mark.parametrize("bits", [1, 5, 10, 16, 22, 23])
def test_rounding_keeps_every_value_within_its_bound_and_zeros_zero(bits: int) -> None:
    values = np.exp(np.random.default_rng(0).normal(0, 8, 50_000)).astype(np.float32)
    values[::7] = 0
    kept = rounded(values, bits)
    assert (np.abs(kept - values) <= 2.0 ** -(bits + 1) * values).all()
    assert not kept[::7].any()
    assert not (kept.view(np.uint32) & np.uint32((1 << (23 - bits)) - 1)).any()
    np.testing.assert_array_equal(rounded(kept, bits), kept)
    if bits == 23:
        np.testing.assert_array_equal(kept, values)


def test_rounded_showers_are_smaller_say_so_and_are_not_mixed_with_others(trained: Trained, tmp_path: Path) -> None:
    surrogate = Surrogate.load(trained.folder)
    request, how = {"incident_energy": "uniform:1:100GeV"}, {"seed": 1, "shard_size": 1500, "workers": 1}
    full, short = tmp_path / "full", tmp_path / "short"
    surrogate.generate(full, request, 2000, **how)
    surrogate.generate(short, request, 2000, mantissa_bits=10, **how)
    one, two = (open_shards(folder).read().values for folder in (full, short))
    assert (np.abs(two - one) <= 2.0**-11 * one).all()
    sizes = [sum(path.stat().st_size for path in folder.glob("*.h5")) for folder in (full, short)]
    assert sizes[1] < 0.8 * sizes[0]
    with h5py.File(short / "shard-000000.h5") as file:
        assert '"mantissa_bits": 10' in file.attrs["provenance"]
    for other in (None, 11):
        with pytest.raises(ConfigError, match="its mantissa bits differs"):
            surrogate.generate(short, request, 2000, mantissa_bits=other, **how)
    with pytest.raises(ConfigError, match="its mantissa bits differs"):
        surrogate.generate(full, request, 2000, mantissa_bits=10, **how)
    for bits in (0, 24):
        with pytest.raises(ConfigError, match="a mantissa has 1 to 23 bits"):
            surrogate.generate(tmp_path / "new", request, 10, mantissa_bits=bits)
    assert verify(short) == []
