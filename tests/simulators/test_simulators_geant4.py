"""Geant4 showers: the physics that is known of them, the same showers however the work is cut, and what is refused."""

import io
import multiprocessing
import tarfile
from concurrent.futures import ProcessPoolExecutor
from importlib.resources import files
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import ks_2samp
from support import ROOT
from test_simulators import OWN_DETECTOR, own_detector  # noqa: F401

from calogen.config import Config
from calogen.errors import ConditionError, ConfigError
from calogen.shards.samples import Samples
from calogen.shards.sources import open_shards
from calogen.shards.writer import write_shard
from calogen.simulators import build
from calogen.simulators.geant4 import ELEMENTS

pytest.importorskip("calzone")


X0 = 6 / (2 / 5.612 + 4 / 140.0)  # mm of the stack a radiation length: 5.612 mm of lead, 140 mm of argon


@pytest.fixture(scope="module")
def pools():
    """Processes for each physics: Geant4 has one set of physics a process, and must not end ours."""
    context = multiprocessing.get_context("spawn")
    found = {name: ProcessPoolExecutor(n, mp_context=context) for name, n in (("option1", 2), ("standard", 1))}
    yield found
    for pool in found.values():
        pool.shutdown()


@pytest.fixture
def simulate(pools):
    """Samples of an engine, cut into parts for the two processes."""

    def run(engine, count, parts=2):
        ends = np.linspace(0, count, parts + 1).astype(int).tolist()
        pool = pools[engine.physics]
        jobs = [pool.submit(engine.make, a, b) for a, b in pairwise(ends)]
        return Samples.concatenate([job.result() for job in jobs])

    return run


SHAPES = ("response", "layer 0", "layer 2", "hit in layer 1", "hit in layer 2", "width in layer 1")


def shapes(samples):
    """Observables of CaloGAN's showers, (N,) each."""
    values = samples.values.astype(np.float64)
    layers = [values[:, cells] for cells in samples.family.layer_slices]
    total, x = values.sum(1), samples.family.layers[1].centres[:, 0]
    mean = layers[1] @ x / layers[1].sum(1)
    width = np.sqrt(layers[1] @ x**2 / layers[1].sum(1) - mean**2)
    hits = [(layer > 0).mean(1) for layer in layers[1:]]
    energy = samples.conditions["incident_energy"]
    return total / energy, layers[0].sum(1) / total, layers[2].sum(1) / total, *hits, width


def engine(energy="fixed:20GeV", seed=1, conditions=None, **options):
    return build(
        "geant4", samples=100, seed=seed, conditions={"incident_energy": energy, **(conditions or {})}, **options
    )


def mean_error(values):
    return values.mean(), values.std(ddof=1) / len(values) ** 0.5


def centroid(samples, layer, axis):
    """Mean position of the energy in a layer, in mm."""
    cells = samples.family.layer_slices[layer]
    energy = samples.values[:, cells].sum(0, dtype=np.float64)
    return energy @ samples.family.layers[layer].centres[:, axis] / energy.sum()


# ------------------------------------------------------------------------------------------------------- physics


def test_photons_in_lead_and_argon(simulate):
    samples = simulate(engine(), 16)
    response, error = mean_error(samples.values.sum(1, dtype=np.float64) / 20e3)
    assert abs(response - 0.9962) < 0.0005 + 4 * error
    first, _ = mean_error(samples.values[:, :288].sum(1) / samples.values.sum(1))
    assert abs(first - 0.178) < 4 * 0.1 / 4  # a single shower scatters by 0.1
    assert 0.3 < (samples.values > 0).mean() < 0.45
    assert samples.values.min() == 0
    assert abs(centroid(samples, 1, 0)) < 3
    assert abs(centroid(samples, 1, 1)) < 3


def test_the_signal_in_argon_alone(simulate):
    samples = simulate(engine("fixed:4GeV", signal="active"), 20)
    fraction, error = mean_error(samples.values.sum(1, dtype=np.float64) / 4e3)
    assert abs(fraction - 0.188) < 0.001 + 4 * error
    assert 0.015 < fraction * 20**0.5 * error / fraction / 0.188 < 0.07  # 7 % / sqrt(4) = 3.5 %
    assert "active" in samples.family.description


def test_set_2_is_calibrated_and_cut(simulate):
    samples = simulate(engine("fixed:3GeV", geometry="2"), 12)
    assert samples.values.shape == (12, 6480)
    response, error = mean_error(samples.values.sum(1, dtype=np.float64) / 3e3)
    assert abs(response - 0.95) < 0.02 + 4 * error
    assert samples.values[samples.values > 0].min() >= np.float32(0.01515)
    depth = samples.values.reshape(12, 45, 144).sum((0, 2))
    assert 5 < np.argmax(depth) < 15  # the maximum of 3 GeV electrons: 5 radiation lengths of 4 mm


def test_impact_point_and_angle_move_the_shower(simulate):
    moved = simulate(engine("fixed:5GeV", conditions={"impact_x": "fixed:80", "impact_y": "fixed:-40"}), 6)
    assert centroid(moved, 1, 0) == pytest.approx(80, abs=8)
    assert centroid(moved, 1, 1) == pytest.approx(-40, abs=8)
    assert moved.family.symmetries == ()
    tilted = simulate(engine("fixed:5GeV", conditions={"theta": "fixed:20", "phi": "fixed:90"}), 6)
    assert centroid(tilted, 1, 1) == pytest.approx(200 * np.tan(np.radians(20)), rel=0.25)  # about 200 mm deep
    assert abs(centroid(tilted, 1, 0)) < 8


def test_what_varies_becomes_a_condition(simulate, tmp_path):
    gun = {"impact_x": "uniform:-20:20", "theta": "list:0,10"}
    samples = simulate(engine("log-uniform:0.1:1GeV", conditions=gun), 6)
    assert list(samples.conditions) == ["incident_energy", "impact_x", "theta"]
    assert samples.conditions["theta"].tolist() == [0, 10] * 3
    assert [(c.name, c.unit) for c in samples.family.conditions[1:]] == [("impact_x", "mm"), ("theta", "deg")]
    write_shard(tmp_path / "shower.h5", samples, provenance=samples.provenance[0])
    read = open_shards(tmp_path / "shower.h5").read()
    assert np.array_equal(read.values, samples.values)
    assert np.array_equal(read.conditions["impact_x"], samples.conditions["impact_x"])


def test_sets_2_and_3_are_one_detector_in_other_cells(simulate):
    layers = []
    for geometry in ("2", "3"):
        samples = simulate(engine("fixed:0.5GeV", geometry=geometry), 2)
        assert samples.family.depths[44] == (149.6, 153.0)
        layers.append(samples.values.reshape(2, 45, -1).sum(2))
    np.testing.assert_allclose(
        layers[1].sum(1), layers[0].sum(1), rtol=0.05
    )  # the threshold cuts more of smaller cells
    assert (layers[1] <= layers[0] + 0.1).all()


def test_the_detector_in_the_configs_is_simulated_as_the_readme_says(simulate):
    samples = simulate(engine("fixed:1GeV", geometry=str(ROOT / "configs" / "own-calorimeter.toml")), 4)
    config = Config.load(ROOT / "configs" / "own-calorimeter.toml")
    assert samples.family.same_samples(config.resolved_family())
    assert samples.family.depths == config.resolved_family().depths
    assert samples.provenance[0]["particle"] == "e-"
    response, error = mean_error(samples.values.sum(1, dtype=np.float64) / 1e3)
    assert abs(response - 0.16) < 0.01 + 4 * error


def test_the_check_suggests_a_scale(pools, own_detector):  # noqa: F811
    calibrated = OWN_DETECTOR.replace("width = 300.0", "width = 300.0\nscale = 2.5")
    own_detector.write_text(calibrated)
    text = pools["standard"].submit(engine(geometry=str(own_detector), signal="active", particle="e-").check).result()
    numbers = {line[:30].strip(): line[30:].split()[0] for line in text.splitlines()[1:]}
    fraction, scale = float(numbers["sampling fraction"]), float(numbers["scale = 1 / fraction"])
    assert fraction * scale == pytest.approx(1, abs=0.01)
    assert 0 < float(numbers["response"]) <= 2.5 * fraction * 1.001  # what misses the cells is in the fraction
    assert "has scale = 2.5" in text


def test_a_detector_of_ones_own_works(simulate, own_detector):  # noqa: F811
    samples = simulate(engine("fixed:0.5GeV", geometry=str(own_detector), particle="e-"), 4)
    assert samples.values.shape == (4, 16)
    assert (samples.values.sum(1) > 10).all()


# ----------------------------------------------------------------------------------------------- reproducibility


def test_shower_i_is_the_same_however_the_work_is_cut(simulate):
    mixed = engine("uniform:0.2:2GeV", seed=5)
    whole, cut = simulate(mixed, 9, parts=1), simulate(mixed, 9, parts=9)
    assert np.array_equal(whole.values, cut.values)
    assert np.array_equal(whole.conditions["incident_energy"], cut.conditions["incident_energy"])


def test_showers_and_seeds_differ(simulate):
    showers = [*simulate(engine("fixed:0.5GeV", seed=2), 4).values, *simulate(engine("fixed:0.5GeV", seed=3), 4).values]
    assert len({shower.tobytes() for shower in showers}) == 8


def test_one_set_of_physics_a_process(pools):
    job = pools["option1"].submit(engine("fixed:0.1GeV", cut=0.7).make, 0, 1)
    assert len(job.result()) == 1
    jobs = [pools["option1"].submit(engine("fixed:0.1GeV", physics="standard").make, 0, 1) for _ in range(2)]
    refused = 0
    for job in jobs:
        try:
            job.result()
        except ConfigError as error:
            refused += "one set of physics" in str(error)
    assert refused


def test_provenance_says_what_was_simulated(own_detector):  # noqa: F811
    found = engine(geometry=str(own_detector), cut=1).describe()
    assert (found["photonuclear"], found["physics"], found["cut"]) == ("off", "option1", "1 mm")
    assert found["geometry"] == "tiles.toml"  # no path of this machine
    assert found["detector"]["modules"][1]["repeat"] == 5
    assert found != engine(geometry=str(own_detector), cut=2).describe()
    own_detector.write_text(own_detector.read_text().replace("thickness = 2.0", "thickness = 2.1"))
    assert found != engine(geometry=str(own_detector), cut=1).describe()


# -------------------------------------------------------------------------------------------------------- refused


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"particle": "pi+"}, "hadrons and nuclei need evaluated"),
        ({"physics": "option4"}, "option1"),
        ({"signal": "active", "physics": "option1"}, "'option1' is wrong"),
        ({"signal": "lead"}, "signal"),
        ({"cut": 0}, "cut"),
        ({"geometry": "caloga"}, "did you mean 'calogan'"),
        ({"detector": {}}, "name the detector by 'geometry'"),
        ({"energy": "fixed:100"}, "unit"),
        ({"energy": "fixed:20TeV"}, "cannot be simulated"),
        ({"energy": "uniform:0:10GeV"}, "cannot be simulated"),
        ({"conditions": {"impact_x": "uniform:-600:600"}}, "480 mm by 480 mm in the middle of plates 1000 mm wide"),
        ({"conditions": {"theta": "uniform:0:50"}}, "the axis of a shower would leave the plates"),
        ({"conditions": {"theta": "fixed:45", "phi": "fixed:90", "impact_y": "fixed:40"}}, "y from 40 to 520 mm"),
        ({"conditions": {"theta": "fixed:89"}}, "0 to 80 deg"),
        ({"conditions": {"eta": "fixed:1"}}, "no condition 'eta'"),
    ],
)
def test_what_cannot_be_simulated_is_refused(options, said):
    with pytest.raises((ConfigError, ConditionError)) as error:
        engine(**options)
    assert said in str(error.value)


def test_an_axis_may_cross_the_plates_from_side_to_side():
    inside = {"theta": "fixed:45", "phi": "list:170,190", "impact_x": "fixed:200"}  # 480 mm deep, 500 mm to each side
    assert engine(conditions=inside).drawn.fixed("theta") == 45
    with pytest.raises(ConditionError, match="x from -280 to 680 mm"):
        engine(conditions={**inside, "phi": "list:0,180"})


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("G4_Fe", "G4_Fee", "unknown material 'G4_Fee'"),
        ("G4_Fe", "G4_Sn", "no evaluated tables for Sn"),
        ("C = 9", "Gd = 9", "no evaluated tables for Gd"),
        (", active = true", "", "no plate of the detector is active"),
    ],
)
def test_what_geant4_would_die_of_is_found_before(old, new, said, own_detector):  # noqa: F811
    own_detector.write_text(own_detector.read_text().replace(old, new))
    with pytest.raises(ConfigError) as error:
        engine(geometry=str(own_detector), signal="active")
    assert said in str(error.value)


# --------------------------------------------------------------------------------------------------------- tables


def test_tables_are_complete_and_are_xcoms():
    archive = files("calogen.data").joinpath("geant4", "tables.tar.xz").read_bytes()
    assert len(archive) < 1e6
    with tarfile.open(fileobj=io.BytesIO(archive)) as tables:
        names = set(tables.getnames())
        numbers = {int(Path(name).name[2:]) for name in names if "/br" in name}
        assert len(numbers) == len(ELEMENTS)
        for z in numbers:
            assert {f"G4EMLOW8.8/epics2017/phot/pe-{kind}-{z}.dat" for kind in ("cs", "high", "low")} <= names
            assert f"G4EMLOW8.8/epics2017/rayl/re-cs-{z}.dat" in names

        def sigma(kind, z, mev, power):
            rows = tables.extractfile(f"G4EMLOW8.8/epics2017/{kind}-{z}.dat").read().decode().splitlines()[2:]
            energy, value = np.array([row.split() for row in rows], float).T
            return np.exp(np.interp(np.log(mev), np.log(energy), np.log(value))) / mev**power

        # NIST: photoelectric 5.23 cm2/g in lead at 100 keV; K edges in keV
        assert sigma("phot/pe-cs", 82, 0.1, 3) == pytest.approx(5.23 * 207.2 / 0.60221, rel=0.02)
        for z, edge in ((14, 1.839), (26, 7.112), (74, 69.525), (82, 88.005), (92, 115.606)):
            start = tables.extractfile(f"G4EMLOW8.8/epics2017/phot/pe-cs-{z}.dat").read().split()[0]
            assert float(start) == pytest.approx(edge / 1e3, rel=2e-3)


# ------------------------------------------------------------------------------------------------------------ slow


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_photons_in_full(simulate):
    samples = simulate(engine("uniform:10:100GeV"), 240, parts=24)
    response, error = mean_error(samples.values.sum(1, dtype=np.float64) / samples.conditions["incident_energy"])
    assert abs(response - 0.9962) < 0.0003 + 2 * error
    shipped = open_shards(ROOT / "data" / "calogan-gamma" / "test").read()
    shipped = shipped.select(shipped.conditions["incident_energy"] > 10e3)
    for name, ours, theirs in zip(SHAPES, shapes(samples), shapes(shipped), strict=True):
        assert ks_2samp(ours, theirs).pvalue > 1e-3, name
    at_20 = simulate(engine(seed=2), 300, parts=20)
    first, error = mean_error(at_20.values[:, :288].sum(1) / at_20.values.sum(1))
    assert error < 0.008
    assert abs(first - 0.178) < 0.008 + 2 * error


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_photons_start_a_radiation_length_later_than_positrons(simulate, tmp_path):
    slices = ", ".join(['{ geometry = "cartesian", shape = [1, 1], size = [1000.0, 1000.0] }'] * 80)
    path = tmp_path / "slices.toml"
    path.write_text(f"""
        [family]
        name = "slices"
        conditions = [{{ name = "incident_energy", unit = "MeV", low = 1e3, high = 1e5, scale = "log" }}]
        layers = [{slices}]
        [detector]
        width = 1000.0
        layer_ends = {[6.0 * (i + 1) for i in range(80)]}
        materials = {{ LiquidArgon = {{ density = 1.39, state = "liquid", formula = {{ Ar = 1 }} }} }}
        [[detector.modules]]
        repeat = 80
        plates = [{{ material = "G4_Pb", thickness = 2.0 }}, {{ material = "LiquidArgon", thickness = 4.0 }}]
    """)
    depths = {}
    for particle in ("gamma", "e+"):
        showers = simulate(engine("fixed:10GeV", geometry=str(path), particle=particle), 200, parts=20)
        layers = showers.values.astype(np.float64)
        depths[particle] = layers @ (6.0 * np.arange(80) + 3) / layers.sum(1) / X0
    (photon, a), (positron, b) = mean_error(depths["gamma"]), mean_error(depths["e+"])
    assert abs(photon - positron - 1.0) < 0.2 + 2 * np.hypot(a, b)


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_argon_in_full(simulate):
    samples = simulate(engine("fixed:10GeV", signal="active"), 250, parts=20)
    fractions = samples.values.sum(1, dtype=np.float64) / 10e3
    fraction, error = mean_error(fractions)
    assert abs(fraction - 0.188) < 0.001 + 2 * error
    resolution = fractions.std(ddof=1) / fraction * 10**0.5
    assert resolution == pytest.approx(0.07, abs=0.01)


def test_a_mixture_is_made_of_the_showers_of_each_particle(simulate):
    conditions = {"incident_energy": "fixed:0.3GeV"}
    options = {"samples": 8, "seed": 11, "conditions": conditions}
    mixed = simulate(build("geant4", particle="gamma,e+", **options), 8)
    codes = mixed.conditions["particle"].astype(int)
    assert set(codes) == {0, 1}
    for code, label in enumerate(mixed.family.labels("particle")):
        alone = simulate(build("geant4", particle=label, **options), 8)
        np.testing.assert_array_equal(mixed.values[codes == code], alone.values[codes == code])
