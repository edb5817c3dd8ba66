"""Files that calogen did not write: each is read rightly, or refused with what would settle it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from calogen.analysis.comparison import compare
from calogen.analysis.metrics.validation import judge
from support import MAPS, command, tiny, toy, write_folder

from calogen.config import Config, Reading
from calogen.errors import CalogenError
from calogen.families import FAMILIES, CartesianLayer, Condition, Family, resolve_family
from calogen.runs.checkpoint import load_checkpoint
from calogen.shards.reader import Shards
from calogen.shards.realisations import require_apart
from calogen.shards.samples import Samples
from calogen.shards.sources import open_shards, open_splits
from calogen.training.loop import train
from calogen.training.setup import prepare

N, EACH, SIDE = 40, 15, 32
SET_2, CALOGAN = FAMILIES["2"], FAMILIES["calogan"]
ANGLED = Family(
    name="angled",
    layers=(CartesianLayer(shape=(4, 4), size=(40, 40)),),
    conditions=(
        Condition(name="incident_energy", unit="MeV", low=1e3, high=1e5, scale="log"),
        Condition(name="theta", unit="deg", low=0, high=20),
    ),
)


# ------------------------------------------------------------------------------------------------ what people have


def parameters(n: int = N, seed: int = 1) -> np.ndarray:
    """A Latin hypercube of Omega_m and sigma_8, (n, 2)."""
    rng = np.random.default_rng(seed)
    steps = np.stack([rng.permutation(n), rng.permutation(n)], axis=1)
    return np.array([0.1, 0.6]) + 0.4 * (steps + 0.5) / n


def sims(p: np.ndarray, each: int = EACH, seed: int = 2, side: int = SIDE) -> np.ndarray:
    """Maps of simulations one after another, their mean density in proportion to Omega_m, (n * each, side, side)."""
    maps = np.random.default_rng(seed).lognormal(sigma=1.0, size=(len(p), each, side, side))
    maps *= (p[:, 0, None] / maps.mean(axis=(2, 3)))[..., None, None] * 2.775e11
    return maps.reshape(-1, side, side).astype(np.float32)


P = parameters()
M = sims(P)
ORDER = np.random.default_rng(5).permutation(N * EACH)
LH = "Maps_Mtot_IllustrisTNG_LH_z=0.00.npy"


def stack(
    folder: Path, maps: np.ndarray, rows: Any = None, name: str = "maps.npy", table: str = "params.txt", **how: Any
) -> Path:
    """A stack of maps with a parameter file beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / name, maps)
    if rows is not None:
        np.savetxt(folder / table, rows, **how)
    return folder / name


def hdf5(folder: Path, name: str = "data.h5", attributes: dict[str, Any] | None = None, **datasets: Any) -> Path:
    with h5py.File(folder / name, "w") as file:
        for key, values in datasets.items():
            file[key.replace("__", "/")] = values
        file.attrs.update(attributes or {})
    return folder / name


def showers(
    family: Family = SET_2, energies: Sequence[float] | None = None, count: int = 200, seed: int = 3
) -> Samples:
    """Toy showers at these energies in MeV; their response is about 0.98."""
    made = toy(family, len(energies) if energies is not None else count, seed)
    if energies is None:
        return made
    scale = np.asarray(energies) / made.conditions["incident_energy"]
    return Samples(family, made.values * scale[:, None], {**made.conditions, "incident_energy": energies})


def challenge(folder: Path, made: Samples, energy: float = 1.0, cells: float = 1.0, **more: Any) -> Path:
    """CaloChallenge's layout, energies and voxels multiplied by something."""
    values = {
        "showers": made.values * np.float32(cells),
        "incident_energies": made.conditions["incident_energy"][:, None] * energy,
    }
    return hdf5(folder, **{**values, **more})


def calogan(folder: Path, made: Samples, energy: float = 1e-3, **more: Any) -> Path:
    cells = {
        f"layer_{k}": made.values[:, part].reshape(-1, *layer.shape)
        for k, (part, layer) in enumerate(zip(CALOGAN.layer_slices, CALOGAN.layers, strict=True))
    }
    return hdf5(folder, **cells, energy=made.conditions["incident_energy"][:, None] * energy, **more)


# ------------------------------------------------------------------------------------------------ right readings

Check = Callable[[Shards, Samples], None]


def paired(p: np.ndarray, count: int, simulations: np.ndarray) -> Check:
    """Maps have the parameters of their simulations, means of theirs, and lie whole on one side of a split."""

    def check(shards: Shards, samples: Samples) -> None:
        np.testing.assert_allclose(samples.conditions["Omega_m"], p[simulations, 0], rtol=1e-6)
        np.testing.assert_allclose(
            samples.values.mean(axis=(1, 2)), 1, atol=1e-4
        )  # every map has its simulation's mean
        boxes = shards.origins().boxes
        assert boxes is not None
        assert len(np.unique(boxes)) == count
        assert len(np.unique(np.stack([boxes, simulations]), axis=1).T) == count
        train, validation = shards.split_off()
        assert len(validation) == len(samples) // count * (count // 10)
        assert not set(train.read().conditions["Omega_m"]) & set(validation.read().conditions["Omega_m"])

    return check


IN_ORDER = paired(P, N, np.repeat(np.arange(N), EACH))


def energies(low: float, high: float, response: float = 0.98) -> Check:
    """Incident energies are in MeV, and so are the voxels."""

    def check(shards: Shards, samples: Samples) -> None:
        found = samples.conditions["incident_energy"]
        assert found.min() == pytest.approx(low, rel=1e-3)
        assert found.max() == pytest.approx(high, rel=1e-3)
        assert np.median(samples.values.sum(1) / found) == pytest.approx(response, abs=0.03)

    return check


def column(name: str, expected: Any) -> Check:
    def check(shards: Shards, samples: Samples) -> None:
        np.testing.assert_allclose(samples.conditions[name], expected, rtol=1e-5)

    return check


def noted(text: str) -> Check:
    def check(shards: Shards, samples: Samples) -> None:
        assert any(re.search(text, note) for note in shards.notes), shards.notes

    return check


def whole(shards: Shards, samples: Samples) -> None:
    assert len(samples)


def is_set_2(shards: Shards, samples: Samples) -> None:
    assert shards.family.same_cells(SET_2)
    np.testing.assert_allclose(samples.values, WHOLE.values, rtol=1e-5)
    np.testing.assert_allclose(samples.conditions["incident_energy"], WHOLE.conditions["incident_energy"], rtol=1e-5)


ENERGIES = np.geomspace(1.2e3, 9.6e5, 60)
WHOLE = showers(energies=ENERGIES)
ANGLES = np.random.default_rng(4).uniform(0, 20, 200)
TURNED = WHOLE.values.reshape(60, 45, 16, 9).transpose(0, 3, 2, 1)  # rings, sectors, layers
PLAIN = showers(ANGLED)


def with_angles(folder: Path, factor: float, name: str = "conditions__theta") -> Path:
    return challenge(folder, PLAIN, **{name: ANGLES * factor})


def no_filter(folder: Path, code: int) -> Path:
    """A dataset that says it was compressed with a filter which is not there."""
    path = challenge(folder, WHOLE)
    with h5py.File(path, "r+") as file:
        del file["showers"]
        plan = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        plan.set_chunk((60, 6480))
        plan.set_filter(code, h5py.h5z.FLAG_OPTIONAL, (1,))
        space = h5py.h5s.create_simple((60, 6480))
        h5py.h5d.create(file.id, b"showers", h5py.h5t.IEEE_F32LE, space, plan).write_direct_chunk((0, 0), b"x" * 100)
    return path


def many_files(folder: Path, listed: bool) -> Any:
    names = []
    for k in range(12):
        stack(folder, M[k * EACH : (k + 1) * EACH], name=f"sim{k}.npy")
        names.append(f"sim{k}.npy,Omega_m={P[k, 0]:.6f},sigma_8={P[k, 1]:.6f}")
    (folder / "list.csv").write_text("\n".join(names))
    return folder / "list.csv" if listed else [folder / name for name in names]


def astro_seed(folder: Path) -> Path:
    lines = [f"LH_{k} {a:.5f} {b:.5f} 1 1 1 1 {5000 + k}" for k, (a, b) in enumerate(P)]
    lines += [f"CV_{k} 0.3 0.8 1 1 1 1 {9000 + k}" for k in range(27)]
    path = stack(folder, M, name=LH)
    header = "#Name Omega_m sigma_8 A_SN1 A_AGN1 A_SN2 A_AGN2 seed"
    (folder / "CosmoAstroSeed_IllustrisTNG.txt").write_text("\n".join([header, *lines]))
    return path


def patches(maps: np.ndarray) -> np.ndarray:
    """Quadrant after quadrant: the first of all maps, then the second of all maps, ..."""
    half = SIDE // 2
    return np.concatenate([maps[:, i : i + half, j : j + half] for i in (0, half) for j in (0, half)])


def binning(folder: Path) -> str:
    layer = '<Layer id="{}" r_edges="0,5,10" n_bin_alpha="{}"/>'
    bins = [
        f'<Bin pid="{pid}" name="{name}" etaMin="{low}" etaMax="{low + 5}">'
        f"{layer.format(0, 1)}{layer.format(1, sectors)}</Bin>"
        for pid, name, low, sectors in ((22, "photon", 20, 4), (22, "photon", 25, 6), (211, "pion", 20, 8))
    ]
    (folder / "binning.xml").write_text(f"<Bins>{''.join(bins)}</Bins>")
    return str(folder / "binning.xml")


# ------------------------------------------------------------------------------------------------ the table


@dataclass(frozen=True)
class Case:
    """A file of others, and what comes of it.

    Attributes:
        make: Writes it into a folder; returns what is named.
        right: The right reading; or the words of the refusal, as a regular expression.
        reading: What is said of it.
        family: What it is said to be: a family, its name, or a function of the folder that gives it.
    """

    make: Callable[[Path], Any]
    right: Check | str
    reading: dict[str, Any] = field(default_factory=dict)
    family: Any = None


BOX = {"box": 25.0}
EACH_ROW = np.repeat(P, EACH, axis=0)
CV = np.tile([[0.3, 0.8]], (27, 1))
CV_MAPS = sims(CV)

CASES = {
    # 1: which maps share a simulation
    "in order": Case(lambda d: stack(d, M, P), IN_ORDER, BOX),
    "in order, a row a map": Case(lambda d: stack(d, M, EACH_ROW), IN_ORDER, BOX),
    "in order, said": Case(lambda d: stack(d, M, P), IN_ORDER, {**BOX, "maps_per_simulation": EACH}),
    "CAMELS in order": Case(lambda d: stack(d, M, P, LH, "params_LH_IllustrisTNG.txt"), IN_ORDER),
    "shuffled with a row a map": Case(
        lambda d: stack(d, M[ORDER], EACH_ROW[ORDER]), paired(P, N, np.repeat(np.arange(N), EACH)[ORDER]), BOX
    ),
    "CAMELS shuffled with a row a map": Case(
        lambda d: stack(d, M[ORDER], EACH_ROW[ORDER], LH), paired(P, N, np.repeat(np.arange(N), EACH)[ORDER])
    ),
    "shuffled with a row a simulation": Case(lambda d: stack(d, M[ORDER], P), "do not go with 15 maps", BOX),
    "quadrant after quadrant, a row a map": Case(
        lambda d: stack(d, patches(M), np.tile(EACH_ROW, (4, 1))),
        lambda s, x: _patches(s, x),
        BOX,
    ),
    "quadrant after quadrant, a row a simulation": Case(
        lambda d: stack(d, patches(M), P), "`maps_per_simulation`", BOX
    ),
    "the first 120 maps with all rows": Case(lambda d: stack(d, M[:120], P), "`maps_per_simulation`", BOX),
    "CAMELS, the first 120 maps with all rows": Case(lambda d: stack(d, M[:120], P, LH), "8 rows for the 120 maps"),
    "the first 150 maps with their rows": Case(
        lambda d: stack(d, M[:150], P[:10], LH), paired(P, 10, np.repeat(np.arange(10), EACH))
    ),
    "CV, a row a simulation": Case(lambda d: stack(d, CV_MAPS, CV), lambda s, x: _simulations(s, 27), BOX),
    "CV, a row a map": Case(
        lambda d: stack(d, CV_MAPS, np.repeat(CV, EACH, axis=0)), "one realisation.*`maps_per_simulation`", BOX
    ),
    "CV, a row a map, said": Case(
        lambda d: stack(d, CV_MAPS, np.repeat(CV, EACH, axis=0)),
        lambda s, x: _simulations(s, 27),
        {**BOX, "maps_per_simulation": EACH},
    ),
    "CV, a row a map, by CAMELS' name": Case(
        lambda d: stack(d, CV_MAPS, np.repeat(CV, EACH, axis=0), "Maps_Mtot_IllustrisTNG_CV_z=0.00.npy"),
        lambda s, x: _simulations(s, 27),
    ),
    "blocks that the rows contradict": Case(
        lambda d: stack(d, M[ORDER], EACH_ROW[ORDER]), "have other parameters", {**BOX, "maps_per_simulation": EACH}
    ),
    "HDF5 without realisations, at one point": Case(
        lambda d: hdf5(
            d,
            maps=M[:60] / M[:60].mean(),
            params=np.tile(P[:1], (60, 1)),
            attributes={"param_names": ["Omega_m", "sigma_8"]},
        ),
        lambda s, x: noted("which maps are of one simulation")(s.split_off()[0], x),
        BOX,
    ),
    "HDF5 without realisations, said": Case(
        lambda d: hdf5(
            d,
            maps=M[:60] / M[:60].mean(),
            params=np.tile(P[:1], (60, 1)),
            attributes={"param_names": ["Omega_m", "sigma_8"]},
        ),
        lambda s, x: _simulations(s, 4),
        {**BOX, "maps_per_simulation": EACH},
    ),
    # 3: the right parameters
    "another suite's parameters": Case(
        lambda d: stack(d, M, P, LH, "params_LH_SIMBA.txt"), "parameters are of another suite"
    ),
    "another set's parameters": Case(lambda d: stack(d, M, P, LH, "params_CV_IllustrisTNG.txt"), "of another suite"),
    "another suite's, named together": Case(
        lambda d: f"{stack(d, M, P, LH, 'params_LH_SIMBA.txt')},{d}/params_LH_SIMBA.txt", IN_ORDER
    ),
    "another order of simulations": Case(lambda d: stack(d, M, P[::-1], LH), "total matter does not follow Omega_m"),
    "parameters that are a little off": Case(
        lambda d: stack(d, M, P * np.where(np.arange(N) % 2, 1.05, 0.95)[:, None], LH), noted("scatters by 0.05")
    ),
    "cold dark matter does not follow": Case(
        lambda d: stack(d, M / (1 + EACH_ROW[:, :1, None]), P, LH.replace("Mtot", "Mcdm")),
        column("Omega_m", EACH_ROW[:, 0]),
    ),
    # 6: weights
    "weighted": Case(lambda d: challenge(d, WHOLE, weights=np.arange(60.0)), "are weighted.*`unweight=True`"),
    "weighted, unweighted": Case(
        lambda d: challenge(d, WHOLE, weights=np.repeat([0.0, 1.0], 30)),
        energies(ENERGIES[30], ENERGIES[-1]),
        {"unweight": True},
    ),
    "equally weighted": Case(lambda d: challenge(d, WHOLE, weights=np.full(60, 0.3)), noted("all weights are equal")),
    "negative weights": Case(
        lambda d: challenge(d, WHOLE, weights=np.linspace(-1, 1, 60)), "not finite and positive", {"unweight": True}
    ),
    # 8: units and scales
    "both energies in GeV": Case(lambda d: challenge(d, WHOLE, 1e-3, 1e-3), "`unit=energy=GeV`"),
    "both energies in GeV, said": Case(
        lambda d: challenge(d, WHOLE, 1e-3, 1e-3), energies(1.2e3, 9.6e5), {"unit": {"energy": "GeV"}}
    ),
    "incident energies in GeV": Case(lambda d: challenge(d, WHOLE, 1e-3), "`unit=energy=GeV`"),
    "incident energies in GeV, said": Case(
        lambda d: challenge(d, WHOLE, 1e-3), energies(1.2e3, 9.6e5), {"unit": {"energy": "GeV", "voxels": "MeV"}}
    ),
    "both energies in keV": Case(lambda d: challenge(d, WHOLE, 1e3, 1e3), "`unit=energy=keV`"),
    "low energies, said": Case(
        lambda d: challenge(d, showers(energies=np.linspace(20, 90, 60))), energies(20, 90), {"unit": {"energy": "MeV"}}
    ),
    "CaloGAN's own": Case(lambda d: calogan(d, showers(CALOGAN, np.linspace(1546, 99350, 51))), energies(1546, 99350)),
    "CaloGAN's with energies in MeV": Case(
        lambda d: calogan(d, showers(CALOGAN, np.linspace(2e3, 9e4, 50)), 1.0), "not in the same units"
    ),
    "CaloGAN's with energies in MeV, said": Case(
        lambda d: calogan(d, showers(CALOGAN, np.linspace(2e3, 9e4, 50)), 1.0),
        energies(2e3, 9e4),
        {"unit": {"energy": "MeV"}},
    ),
    "CaloChallenge's own": Case(lambda d: challenge(d, WHOLE), is_set_2),
    "angles in rad": Case(lambda d: with_angles(d, np.pi / 180), "`unit=theta=rad`", family=ANGLED),
    "angles in rad, said": Case(
        lambda d: with_angles(d, np.pi / 180), column("theta", ANGLES), {"unit": {"theta": "rad"}}, family=ANGLED
    ),
    "angles in deg": Case(lambda d: with_angles(d, 1.0), column("theta", ANGLES), family=ANGLED),
    "logarithms of densities": Case(lambda d: stack(d, np.log10(M), P), "look like logarithms.*`log10=True`", BOX),
    "logarithms of densities, said": Case(lambda d: stack(d, np.log10(M), P), IN_ORDER, {**BOX, "log10": True}),
    "logarithms of total matter": Case(lambda d: stack(d, np.log10(M), P, LH), "look like logarithms.*`log10=True`"),
    "logarithms of 1 + delta": Case(lambda d: stack(d, np.log10(M / M.mean()), P), "`log10=True`", BOX),
    "scaled to 0 to 1": Case(lambda d: stack(d, M / M.max(), P), "scaled to the range 0 to 1", BOX),
    "scaled logarithms": Case(lambda d: stack(d, (np.log10(M) - 8) / 6, P), "range 0 to 1|look like logarithms", BOX),
    "HDF5 of densities that are not 1 + delta": Case(
        lambda d: hdf5(d, maps=M / M.mean() * 0.2, params=EACH_ROW, attributes={"param_names": ["Omega_m", "sigma_8"]}),
        "not densities over the mean",
        BOX,
    ),
    "28 unnamed columns": Case(
        lambda d: stack(d, M, np.tile(P, (1, 14)), LH), "the 28 columns .* have no names.*`columns="
    ),
    "28 columns, named": Case(
        lambda d: stack(d, M, np.hstack([P, np.ones((N, 26))]), LH),
        IN_ORDER,
        {"columns": ("Omega_m", "sigma_8", *["_"] * 26)},
    ),
    "columns in another order": Case(
        lambda d: stack(d, M, P[:, ::-1], LH.replace("Mtot", "T")), "`columns=Omega_m,sigma_8"
    ),
    "columns in another order, named": Case(
        lambda d: stack(d, M, P[:, ::-1], LH), IN_ORDER, {"columns": ("sigma_8", "Omega_m")}
    ),
    "names for other columns": Case(
        lambda d: stack(d, M, P, LH), "not as many as the columns", {"columns": ("Omega_m",)}
    ),
    # 9: legitimate data
    "no parameters": Case(lambda d: stack(d, M), "no file has the maps' parameters", BOX),
    "no parameters needed": Case(
        lambda d: stack(d, M / M.mean()),
        noted("nothing says which maps are of one simulation"),
        {**BOX, "parameters": False},
    ),
    "a file a cosmology": Case(lambda d: many_files(d, False), paired(P, 12, np.repeat(np.arange(12), EACH)), BOX),
    "a list of files": Case(lambda d: many_files(d, True), paired(P, 12, np.repeat(np.arange(12), EACH)), BOX),
    "a value without a number": Case(lambda d: f"{stack(d, M)},Omega_m=high,sigma_8=0.8", "no value of 'Omega_m'", BOX),
    "convergence": Case(lambda d: stack(d, np.log(M / M.mean()) / 50, P), "`signed=SCALE`", BOX),
    "convergence, said": Case(
        lambda d: stack(d, np.log(M / M.mean()) / 50, P),
        lambda s, x: np.testing.assert_allclose(x.values, M / M.mean(), rtol=1e-4),
        {**BOX, "signed": 0.02},
    ),
    "CAMELS' table with names and seeds": Case(astro_seed, IN_ORDER),
    "whole numbers": Case(
        lambda d: challenge(
            d, WHOLE, showers=WHOLE.values.astype(np.int64), incident_energies=ENERGIES.astype(np.int64)
        ),
        column("incident_energy", ENERGIES.astype(np.int64)),
    ),
    "incident angles in deg": Case(
        lambda d: challenge(d, WHOLE, incident_theta=np.linspace(0, 80, 60), incident_phi=np.linspace(-170, 170, 60)),
        column("theta", np.linspace(0, 80, 60)),
    ),
    "incident angles, said": Case(
        lambda d: challenge(d, WHOLE, incident_theta=np.linspace(0, 1, 60)),
        column("theta", np.degrees(np.linspace(0, 1, 60))),
        {"unit": {"theta": "rad"}},
    ),
    "incident angles in some unit": Case(
        lambda d: challenge(d, WHOLE, incident_theta=np.linspace(0, 1, 60)), "`unit=theta=rad`"
    ),
    "voxels of no family": Case(
        lambda d: hdf5(d, showers=np.ones((5, 77), np.float32), incident_energies=np.full(5, 1e4)),
        "name their `family`",
    ),
    "an ATLAS binning": Case(
        lambda d: hdf5(d, showers=np.full((40, 14), 500.0, np.float32), incident_energies=np.full(40, 1e4)),
        whole,
        family=lambda d: f"{binning(d)},particle=photon,region=25-30",
    ),
    "an ATLAS binning, region not said": Case(
        lambda d: hdf5(d, showers=np.ones((5, 14))),
        "particle=photon,region=20-25",
        family=lambda d: f"{binning(d)},particle=22",
    ),
    "zstd": Case(lambda d: no_filter(d, 32015), r"compressed with zstd .*calogen\[filters\]"),
    "blosc": Case(lambda d: no_filter(d, 32001), "compressed with blosc "),
    "bitshuffle": Case(lambda d: no_filter(d, 32008), "compressed with bitshuffle"),
    # 10: the field's own files
    "Par04": Case(
        lambda d: hdf5(d, "SiW_angle_90.h5", **{"10": TURNED[:30] / 2, "2": TURNED[30:] / 1e3}),
        lambda s, x: _par04(x),
        {"unit": {}},
        family=SET_2,
    ),
    "LEMURS": Case(
        lambda d: hdf5(d, showers=TURNED, incident_energy=ENERGIES, incident_theta=np.full(60, 90.0)), is_set_2
    ),
    "showers with axes of something else": Case(
        lambda d: hdf5(d, showers=np.ones((5, 16, 9, 45)), incident_energies=np.full(5, 1e4)), "axes of the showers"
    ),
    "point clouds": Case(
        lambda d: hdf5(d, showers=np.ones((5, 6000, 4)), energies=np.ones(5)), "point clouds .*sum the points"
    ),
    "the CMS HGCal challenge": Case(
        lambda d: hdf5(d, showers=np.ones((5, 28, 1988)), gen_info=np.ones((5, 3))), "CMS HGCal .*'incident_energies'"
    ),
    "EDM4hep": Case(lambda d: _bytes(d / "events.root", b"root\x00\x00\xf2"), "ROOT file .*uproot"),
    # 11: the box
    "64 pixels of unknown width": Case(
        lambda d: stack(d, np.ones((4, 64, 64), np.float32), P[:4]), "how wide the maps are.*`box=25`"
    ),
    "HDF5 of unknown width": Case(lambda d: hdf5(d, maps=np.ones((4, 64, 64))), "how wide the maps are.*`box=25`"),
    "CAMELS' name says the width": Case(
        lambda d: stack(d, M, P, LH), lambda s, x: noted("CAMELS, 25 Mpc/h")(s, x) or _box(s, 25, 5)
    ),
    "a width said": Case(lambda d: stack(d, M, P), lambda s, x: _box(s, 25, 0), BOX),
    # 12: what is not read is said
    "datasets besides": Case(lambda d: challenge(d, WHOLE, layer_energies=ENERGIES), noted("not read: layer_energies")),
}


def _simulations(shards: Shards, count: int) -> None:
    boxes = shards.origins().boxes
    assert boxes is not None
    np.testing.assert_array_equal(boxes, np.repeat(np.arange(count), EACH))
    train, validation = shards.split_off()
    assert (len(train), len(validation)) == ((count - max(1, count // 10)) * EACH, max(1, count // 10) * EACH)


def _patches(shards: Shards, samples: Samples) -> None:
    column("Omega_m", np.tile(EACH_ROW[:, 0], 4))(shards, samples)
    np.testing.assert_array_equal(shards.origins().boxes, np.tile(np.repeat(np.arange(N), EACH), 4))
    each = samples.values.reshape(4, N, EACH, -1).mean(axis=(0, 2, 3))
    np.testing.assert_allclose(each, 1, atol=1e-4)


def _par04(samples: Samples) -> None:
    np.testing.assert_allclose(samples.conditions["incident_energy"], np.repeat([2e3, 10e3], 30))
    np.testing.assert_allclose(samples.values[30:], WHOLE.values[:30] / 2, rtol=1e-5)


def _bytes(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def _box(shards: Shards, side: float, depth: float) -> None:
    assert (shards.family.box_size, shards.family.depth) == (side, depth)


@pytest.mark.parametrize("name", CASES)
def test_a_file_of_others_is_read_rightly_or_refused(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    if name in ("zstd", "blosc", "bitshuffle") and find_spec("hdf5plugin"):
        pytest.skip("the filter is there")

    def attempt() -> tuple[Shards, Samples]:
        source = case.make(tmp_path)
        family = case.family(tmp_path) if callable(case.family) else case.family
        resolved = None if family is None else resolve_family(family)
        shards = open_shards(source, family=resolved, reading=Config.build({"reading": case.reading}).reading)
        samples = shards.read()
        open_splits(source, family=resolved, reading=Config.build({"reading": case.reading}).reading)
        return shards, samples

    if not isinstance(case.right, str):
        case.right(*attempt())
        return
    with pytest.raises(CalogenError) as refused:
        attempt()
    assert re.search(case.right, str(refused.value), re.DOTALL), str(refused.value)
    assert refused.value.exit_code == 2


def test_there_are_enough_of_them() -> None:
    assert len(CASES) >= 40


# ------------------------------------------------------------------------------------------------ the leak guard


def side(folder: Path, maps: np.ndarray, rows: np.ndarray, **how: Any) -> Shards:
    reading = Config.build({"reading": {**BOX, **how}}).reading
    return open_shards(stack(folder, maps, rows), reading=reading)


SHARED = [f"Omega_m {a:.6g}, sigma_8 {b:.6g}" for a, b in P[20:30].astype(np.float32)]
LEAKS: dict[str, Callable[[Path], tuple[Shards, Shards, int]]] = {
    "other rows": lambda d: (side(d / "a", M[:450], P[:30]), side(d / "b", M[300:], P[20:]), 10),
    "shuffled, a row a map": lambda d: (
        side(d / "a", M[:450], P[:30]),
        side(d / "b", M[ORDER[ORDER >= 300]], EACH_ROW[ORDER[ORDER >= 300]]),
        10,
    ),
    "logarithms": lambda d: (side(d / "a", M[:450], P[:30]), side(d / "b", np.log10(M[300:]), P[20:], log10=True), 10),
    "few simulations": lambda d: (side(d / "a", M[:450], P[:30]), side(d / "b", M[435:465], P[29:31]), 1),
    "none": lambda d: (side(d / "a", M[:300], P[:20]), side(d / "b", M[300:], P[20:]), 0),
    "one point, the same simulations": lambda d: (
        side(d / "a", CV_MAPS[: 20 * EACH], CV[:20]), side(d / "b", CV_MAPS[15 * EACH :], CV[15:]), 5,
    ),
    "one point, other simulations": lambda d: (
        side(d / "a", CV_MAPS[: 20 * EACH], CV[:20]), side(d / "b", CV_MAPS[20 * EACH :], CV[20:]), 0,
    ),
    "shards of the same maps": lambda d: (
        side(d / "a", M[:450], P[:30]), open_shards(_as_hdf5(d, side(d / "b", M[300:], P[20:]).read())), 10,
    ),
}  # fmt: skip


def _as_hdf5(folder: Path, samples: Samples) -> Path:
    params = samples.conditions.array(["Omega_m", "sigma_8"])
    names = {"param_names": ["Omega_m", "sigma_8"], "box_size": 25.0}
    return hdf5(folder, maps=samples.values, params=params, attributes=names)


@pytest.mark.parametrize("name", LEAKS)
def test_simulations_on_both_sides_are_found_at_whichever_rows(name: str, tmp_path: Path) -> None:
    train, test, shared = LEAKS[name](tmp_path)
    assert len(train.origins().twins(test.origins())[0]) == shared
    assert len(test.origins().twins(train.origins())[0]) == shared
    if shared:
        with pytest.raises(CalogenError, match="is on both sides"):
            require_apart(train.origins(), test.origins())


def test_a_comparison_of_stacks_that_share_simulations_is_refused_by_name(tmp_path: Path) -> None:
    one, two = (stack(tmp_path / name, *some) for name, some in (("a", (M[:450], P[:30])), ("b", (M[300:], P[20:]))))
    for line in (["compare", two, one], ["compare", two, stack(tmp_path / "c", M[:300], P[:20]), "--training", one]):
        done = command(*line, "--box", 25, "--out", tmp_path / "report")
        assert done.code == 2
        assert all(name in done.err for name in SHARED)
        assert not (tmp_path / "report").exists()


def test_provenance_remembers_what_a_surrogate_was_trained_with(tmp_path: Path) -> None:
    train, test = side(tmp_path / "a", M[:450], P[:30]), side(tmp_path / "b", M[300:], P[20:])
    kept = json.loads(json.dumps(train.origins().identity()))
    made = replace(toy(test.family, 40), kind="generated")
    known = {"checkpoint_sha256": "1", "training": {"simulations": kept}}
    with pytest.raises(CalogenError, match=r"trained with 10 of these realisations: .*Omega_m 0\.355"):
        compare(test, replace(made, provenance=(known,)), bins=0)
    assert len(side(tmp_path / "c", M[450:], P[30:]).origins().remembered(kept)) == 0
    points = {
        "by": "pixels",
        "conditions": [],
        "digests": "".join(side(tmp_path / "d", CV_MAPS, CV).origins().identity()["digests"]),
    }
    assert len(side(tmp_path / "e", CV_MAPS[:150], CV[:10]).origins().remembered(points)) == 10


# ------------------------------------------------------------------------------------------------ fair validation

SORTED = np.sort(np.random.default_rng(7).uniform(1e3, 1e5, 400))
POINTS = np.repeat([1e3, 5e3, 2e4, 5e4, 1e5], 80)


@pytest.mark.parametrize("order", [slice(None), slice(None, None, -1)])
def test_a_sorted_file_validates_on_all_of_it(order: slice, tmp_path: Path) -> None:
    path = calogan(tmp_path, showers(CALOGAN, SORTED[order]))
    train, validation = (s.read().conditions["incident_energy"] for s in open_splits(path))
    assert (len(train), len(validation)) == (360, 40)
    ranks = np.sort(np.searchsorted(SORTED.astype(np.float32), validation * (1 - 1e-6)))
    assert (ranks // 10).tolist() == list(range(40))
    again = open_splits(path)[1].read().conditions["incident_energy"]
    np.testing.assert_array_equal(again, validation)


@pytest.mark.parametrize("mixed", [False, True])
def test_every_energy_point_is_on_both_sides(mixed: bool, tmp_path: Path) -> None:
    energy = np.random.default_rng(1).permutation(POINTS) if mixed else POINTS
    train, validation = open_splits(calogan(tmp_path, showers(CALOGAN, energy)))
    for samples, each in ((train, 72), (validation, 8)):
        assert np.unique(samples.read().conditions["incident_energy"], return_counts=True)[1].tolist() == [each] * 5
    parts = [s.read().values for s in (train, validation)]
    assert len(np.unique(np.concatenate(parts), axis=0)) == 400  # nobody is on both sides, or on none


def test_showers_in_another_order_than_their_energies_are_refused(tmp_path: Path) -> None:
    made = PLAIN
    right = challenge(tmp_path, made, conditions__theta=ANGLES)
    assert len(open_shards(right, family=ANGLED))
    order = np.random.default_rng(0).permutation(len(made))
    mixed = replace(made, values=made.values[order])
    with pytest.raises(CalogenError, match=r"(?s)do not belong together.*rank correlation.*same order"):
        open_shards(challenge(tmp_path, mixed, conditions__theta=ANGLES), family=ANGLED).read()


def test_a_surrogate_accepts_the_range_of_all_data_and_its_score_is_of_all_of_it(tmp_path: Path) -> None:
    path = challenge(tmp_path, showers(ANGLED, SORTED), conditions__theta=np.linspace(0.5, 20, 400))
    config = tiny(family=ANGLED, generator={"network": "mlp"}, training={"steps": 0, "validation_size": 20})
    run = train(config, path, tmp_path / "run")
    card = load_checkpoint(run.folder / "checkpoints" / "step-0").card
    low, high = ((c.low, c.high) for c in card.conditions if c.name == "incident_energy").__next__()
    assert low <= SORTED[0] * 1.001
    assert high >= SORTED[-1] * 0.999
    setup = prepare(config, path)
    few = setup.validation.thinned(20).read().conditions["incident_energy"]
    assert few.min() < 10e3
    assert few.max() > 90e3
    assert json.loads((run.folder / "config.json").read_text())["split"] == "stratified"


def test_a_run_is_resumed_with_the_rule_that_it_was_begun_with(tmp_path: Path) -> None:
    path = challenge(tmp_path, PLAIN, conditions__theta=ANGLES)
    config = tiny(family=ANGLED, generator={"network": "mlp"}, training={"steps": 2}, split="last")
    run = train(config, path, tmp_path / "run")
    assert json.loads((run.folder / "config.json").read_text())["split"] == "last"
    assert train(config.updated({"training": {"steps": 4}}), path, run.folder, resume=True).step == 4
    with pytest.raises(CalogenError, match=r"another 'split'|trained on other data"):
        train(tiny(family=ANGLED, generator={"network": "mlp"}, training={"steps": 6}), path, run.folder, resume=True)


# ------------------------------------------------------------------------------------------------ cuts and yardsticks


def test_thresholds_are_applied_to_both_sides_and_what_they_took_is_said() -> None:
    reference, other = toy(ANGLED, 400, 1), toy(ANGLED, 400, 2)
    cut = float(np.quantile(other.values[other.values > 0], 0.3))
    with_threshold = ANGLED.model_copy(update={"threshold": cut})
    made = Samples(with_threshold, np.where(other.values < cut, 0, other.values), other.conditions, {}, "generated")
    fair = compare(reference, {"made": made}, bins=0)
    assert fair.metrics["made"]["empty_voxels"].pull < 3
    assert compare(reference, {"made": made}, bins=0, threshold=0.0).metrics["made"]["empty_voxels"].pull > 5
    said = [note for note in fair.notes if "read-out threshold" in note]
    small = reference.values[(reference.values > 0) & (reference.values < np.float32(cut))]
    voxels, energy = len(small) / np.count_nonzero(reference.values), small.sum() / reference.values.sum()
    assert (
        f"reference: the read-out threshold of {cut:g} MeV, applied to every side, removed {voxels:.2g} of" in said[0]
    )
    assert f"and {energy:.2g} of the energy" in said[0]
    assert "made: " in said[1]
    assert "removed 0 of the voxels with energy, and 0 of the energy" in said[1]
    with pytest.raises(CalogenError, match="invalid threshold"):
        compare(reference, {"made": made}, threshold=-1.0)


def test_maps_normalised_one_by_one_have_a_yardstick() -> None:
    family = replace_box(FAMILIES["nbody-64"])
    one, two = toy(family, 200, 1), toy(family, 200, 2)
    single = one.values / one.values.mean(axis=(1, 2), keepdims=True)
    found = judge(Samples(family, single, one.conditions), replace(two, kind="generated"))
    assert 0 < found.score < 2
    assert any(name.startswith("mean") for name in found.constant)


def replace_box(family: Family) -> Family:
    return family.model_copy(update={"pixels": (16, 16), "box_size": 16.0})


def test_weighted_samples_in_memory_are_not_compared() -> None:
    samples = toy(ANGLED, 40)
    weighted = replace(samples, extras={"weights": np.arange(40.0)})
    with pytest.raises(CalogenError, match="weighted samples cannot be compared"):
        compare(weighted, samples, bins=0)


def test_unweighting_keeps_samples_in_proportion(tmp_path: Path) -> None:
    energy = np.repeat([1e4, 2e4], 2000)
    values = np.ones((4000, 16), np.float32) * energy[:, None] / 16
    path = hdf5(tmp_path, showers=values, incident_energies=energy, weights=np.where(energy > 1.5e4, 1.0, 0.25))
    shards = open_shards(path, family=ANGLED, reading=Reading(unweight=True))
    kept = np.unique(shards.read().conditions["incident_energy"], return_counts=True)[1]
    assert kept[1] == 2000
    assert kept[0] == pytest.approx(500, abs=70)
    assert (
        shards.digest()
        != open_shards(path, family=ANGLED, reading=Reading(unweight=True)).where(np.arange(len(shards)) > 0).digest()
    )


# ------------------------------------------------------------------------------------------------ on the command line


def test_notes_are_given_by_every_command_once_and_kept(tmp_path: Path) -> None:
    path = calogan(tmp_path, showers(CALOGAN, np.linspace(1.5e3, 9.9e4, 80)), extra=np.ones(80))
    note = "datasets that are not read: extra"
    small = ["--set", "generator.network=mlp", "--set", "generator.hidden=[4]", "--set", "critic.hidden=[4]"]
    line = ["train", "--data", path, *small, "--set", "training.batch_size=8", "--steps", 0, "--threads", 1]
    trained = command(*line, "--out", tmp_path / "run")
    assert trained.code == 0, trained.err
    assert trained.err.count(note) == 1
    assert note in json.loads((tmp_path / "run" / "run.json").read_text())["notes"]
    made = command("generate", tmp_path / "run", "--like", path, "--out", tmp_path / "made", "--workers", 1)
    assert made.err.count(note) == 1
    assert note in open_shards(tmp_path / "made").provenance[0]["request"]["notes"]
    assert note in re.sub(r"\s+", " ", command("info", path).out)
    dry = command(*line, "--out", tmp_path / "other", "--dry-run")
    assert dry.err.count(note) == 1
    (tmp_path / "copy").mkdir()
    report = compare(path, calogan(tmp_path / "copy", showers(CALOGAN, np.linspace(1.5e3, 9.9e4, 80))), bins=0)
    assert sum(note in said for said in report.notes) == 1


def test_names_in_files_reach_the_terminal_as_text(tmp_path: Path) -> None:
    path = challenge(tmp_path, WHOLE, **{"\x1b[2J": ENERGIES})
    for line in (["info", path], ["train", "--data", path, "--out", tmp_path / "run", "--dry-run"]):
        done = command(*line)
        assert done.code == 0, done.err
        said = re.sub(r"\s+", " ", done.out + done.err)
        assert ("\x1b" in said, said.count(r"not read: \x1b[2J")) == (False, 1)


def test_options_that_no_file_needs_are_refused(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "data", toy(MAPS, 40))
    for line in (["train", "--data", folder, "--out", tmp_path / "run"], ["info", folder]):
        done = command(*line, "--box", 25)
        assert done.code == 2
        assert "the files say themselves how they are to be read" in done.err
        assert "--box" in done.err


def test_hints_are_options_of_the_command(tmp_path: Path) -> None:
    path = stack(tmp_path / "logs", np.log10(M), P)
    done = command("train", "--data", path, "--box", 25, "--out", tmp_path / "run")
    assert done.code == 2
    assert "--log10 reads logarithms" in done.err
    assert "or say --linear" in done.err
    both = challenge(tmp_path, WHOLE, 1e-3, 1e-3)
    assert "--unit energy=GeV" in command("compare", both, both, "--out", tmp_path / "report").err


def test_maps_without_parameters_train_an_unconditional_surrogate(tmp_path: Path) -> None:
    path = stack(tmp_path / "maps", M[:200] / M[:200].mean())
    sizes = ["generator.network=dcgan", "generator.latent=2", "generator.channels=[4]", "critic.channels=[4]"]
    small = [word for size in sizes for word in ("--set", size)]
    line = ["--data", path, "--box", 25, *small, "--set", "training.batch_size=8", "--steps", 1, "--threads", 1]
    refused = command("train", *line, "--condition", "Omega_m", "--out", tmp_path / "run")
    assert refused.code == 2
    assert "no file has the maps' parameters" in refused.err
    done = command("train", *line, "--unconditional", "--out", tmp_path / "run")
    assert done.code == 0, done.err
    made = command("generate", tmp_path / "run", "-n", 60, "--out", tmp_path / "made", "--workers", 1)
    assert made.code == 0, made.err
    other = stack(tmp_path / "other", M[300:500] / M[300:500].mean())
    report = compare(other, tmp_path / "made", bins=0)
    assert report.metrics["made"]["score"].value is not None
