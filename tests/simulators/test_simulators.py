"""Simulators: engines are built with good errors, toys have the moments they claim, detectors read out rightly."""

import json
import pickle

import numpy as np
import pytest
from support import ALL_FAMILIES, MAPS, SMALL

from calogen.errors import ConditionError, ConfigError, require
from calogen.families import FAMILIES
from calogen.shards.samples import Samples
from calogen.shards.sources import open_shards
from calogen.shards.writer import write_shard
from calogen.simulators import build
from calogen.simulators.engine import Drawn, stream
from calogen.simulators.geant4 import load_detector

OWN_DETECTOR = """
[family]
name = "tiles"
conditions = [{ name = "incident_energy", unit = "MeV", low = 1e3, high = 50e3, scale = "log" }]
layers = [
    { geometry = "cartesian", shape = [4, 2], size = [80.0, 80.0] },
    { geometry = "cylindrical", n_alpha = 4, r_edges = [0.0, 10.0, 30.0] },
]
[detector]
width = 300.0
layer_ends = [10.3, 24.5]
materials = { Tile = { density = 1.03, formula = { C = 9, H = 10 } } }
modules = [
    { plates = [{ material = "G4_Al", thickness = 0.3 }] },
    { repeat = 5, plates = [
        { material = "G4_Fe", thickness = 2.0 },
        { material = "Tile", thickness = 3.0, active = true },
    ] },
]
"""


@pytest.fixture
def own_detector(tmp_path):
    path = tmp_path / "tiles.toml"
    path.write_text(OWN_DETECTOR)
    return path


# ------------------------------------------------------------------------------------------------------ building


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("geant5", {}, "did you mean 'geant4'"),
        ("toy", {"samples": 0}, "at least one sample"),
        ("toy", {"famly": "calogan"}, "did you mean 'family'"),
        ("toy", {"family": "calogam"}, "did you mean 'calogan'"),
        ("toy", {"family": "nbody-64", "field": "cauchy"}, "lognormal"),
        ("toy", {"family": "nbody-64", "amplitude": "-1"}, "amplitude"),
        ("toy", {"seed": -1}, "seed"),
        ("toy", {"conditions": {"incident_energy": "fixed:50"}}, "unit of 'incident_energy' is missing"),
        ("toy", {"conditions": {"angle": "fixed:1"}}, "no condition 'angle'"),
        ("toy", {"conditions": {"incident_energy": "uniform:-5:10GeV"}}, "cannot be simulated"),
        ("toy", {"conditions": {"incident_energy": "fixed:0GeV"}}, "at least 0.001 MeV"),
        ("toy", {"conditions": {"incident_energy": "fixed:0GeV"}}, "found    0 MeV"),
    ],
)
def test_what_is_wrong_is_said(name, options, said):
    with pytest.raises((ConfigError, ConditionError)) as error:
        build(name, **{"samples": 10, **options})
    assert said in str(error.value)


def test_a_missing_extra_names_the_command():
    with pytest.raises(ConfigError, match="not installed") as error:
        require("calogen_has_no_such_package", "geant4")
    assert 'pip install "calogen[geant4]"' in str(error.value)


def test_blocks_are_whole():
    with pytest.raises(ConfigError, match="whole blocks"):
        build("toy", samples=10).make(5, 3)


def test_pieces_make_any_range():
    engine = build("toy", samples=300, seed=4, family=SMALL)
    made = Samples.concatenate(list(engine.pieces(7, 150)))
    assert np.array_equal(made.values, engine.make(0, 150).values[7:])
    assert [len(piece) for piece in engine.pieces(7, 150)] == [64, 64, 15]


def test_streams_are_independent_of_each_other():
    draws = np.array([stream(seed, i).random(4) for seed in (0, 1, 2, 3) for i in range(4)])
    assert len(np.unique(draws)) == draws.size
    assert np.array_equal(stream(7, 12).random(4), stream(7, 12).random(4))


def test_conditions_know_their_range():
    energy = FAMILIES["calogan"].conditions[0]

    def ranged(text):
        drawn = Drawn([energy], {}, {energy.name: text}, {})
        return drawn.ranged(energy.name).low, drawn.ranged(energy.name).high, drawn.fixed(energy.name)

    assert ranged("uniform:10:20GeV") == (10e3, 20e3, None)
    assert ranged("fixed:50GeV") == (1e3, 100e3, 50e3)
    assert ranged("fixed:200GeV") == (1e3, 200e3, 200e3)
    assert ranged("list:5,2GeV") == (2e3, 5e3, None)


# ---------------------------------------------------------------------------------------------------------- toys


@pytest.mark.parametrize("family", ALL_FAMILIES, ids=lambda f: f.name)
def test_toys_of_every_family_can_be_split_and_written(family, tmp_path):
    engine = pickle.loads(pickle.dumps(build("toy", samples=6, seed=4, family=family)))
    whole = engine.make(0, 6)
    parts = [engine.make(start, start + 2) for start in (4, 0, 2)]
    for part, rows in zip(parts, (slice(4, 6), slice(0, 2), slice(2, 4)), strict=True):
        assert np.array_equal(part.values, whole.values[rows])
        assert all(np.array_equal(part.conditions[c], whole.conditions[c][rows]) for c in whole.conditions)
    assert not np.array_equal(whole.values, build("toy", samples=6, seed=5, family=family).make(0, 6).values)
    write_shard(tmp_path / "toy.h5", whole, provenance=engine.describe())
    read = open_shards(tmp_path / "toy.h5")
    assert np.array_equal(read.read().values, whole.values)
    assert read.family.name == f"toy-{family.name}"
    assert "TOY" in read.family.description
    assert "TOY" in json.dumps(engine.describe())


@pytest.mark.parametrize(
    ("family", "options", "conditions"),
    [
        (FAMILIES["calogan"], {}, {"incident_energy": "fixed:20GeV"}),
        (SMALL, {}, {"incident_energy": "fixed:2GeV"}),
        (MAPS, {"field": "lognormal"}, {"Omega_m": "fixed:0.2", "sigma_8": "fixed:0.9"}),
        (MAPS, {"field": "gaussian", "amplitude": "0.2"}, {"Omega_m": "fixed:0.4", "sigma_8": "fixed:0.7"}),
    ],
    ids=["calogan", "small", "lognormal", "gaussian"],
)
def test_toys_have_the_moments_they_claim(family, options, conditions):
    engine, count = build("toy", samples=1, seed=8, family=family, conditions=conditions, **options), 1000
    samples = engine.make(0, count)
    values = samples.values.reshape(count, -1).astype(np.float64)
    point = {name: float(column[0]) for name, column in samples.conditions.items()}
    mean, variance = (moment.ravel() for moment in engine.law.moments(point))
    pulls = (values.mean(0) - mean) / np.sqrt(variance / count)
    if family.kind == "calorimeter":  # rarely hit voxels have no Gaussian errors
        pulls = pulls[mean**2 > variance / 20]
    assert np.mean(pulls**2) < 1 + 5 * (2 / len(pulls)) ** 0.5
    assert values.var(0).sum() == pytest.approx(variance.sum(), rel=0.05)
    assert values.mean(0).sum() == pytest.approx(mean.sum(), rel=0.01)
    if family.kind == "calorimeter":
        assert values.sum(1).max() <= point["incident_energy"] * (1 + 1e-6)
        assert values[values > 0].min() >= engine.law.cut
    assert "(exact)" in engine.check()


def test_toy_maps_have_the_spectrum_they_claim():
    options = {"family": MAPS, "field": "gaussian", "conditions": {"Omega_m": "fixed:0.5", "sigma_8": "fixed:1"}}
    values = build("toy", samples=1, seed=2, **options).make(0, 400).values.astype(np.float64) - 1
    modes = np.mean(np.abs(np.fft.fft2(values)) ** 2, 0)
    k = np.arange(1, 8)
    slope = np.polyfit(np.log(k), np.log(modes[0, 1:8] + modes[1:8, 0]), 1)[0]
    assert slope == pytest.approx(-1.5, abs=0.1)
    assert modes[0, 0] == pytest.approx(0, abs=1e-3)


# ----------------------------------------------------------------------------------------------------- detectors


def test_calogan_reads_out_what_calogan_reads_out():
    detector = load_detector("calogan")
    assert (len(detector.plates), detector.depth) == (160, 480.0)
    x, y = np.array([-239.0, 0.1, 239.0, 241.0]), np.array([-239.0, 0.1, 239.0, 0.0])
    assert detector.voxel(x, y, np.full(4, 1.0), np.zeros(4, int)).tolist() == [0, 96 + 48, 287, 504]
    assert detector.voxel(x, y, np.full(4, 100.0), np.full(4, 33)).tolist() == [288, 288 + 6 * 12 + 6, 431, 504]
    assert detector.voxel(x, y, np.full(4, 470.0), np.full(4, 157)).tolist() == [432, 432 + 6 * 6 + 3, 503, 504]


def test_the_plate_decides_at_a_boundary():
    detector = load_detector("calogan")  # layer 0 ends where plate 30 begins
    at, middle = np.full(2, 90.0), np.full(2, 0.1)
    layers = detector.family.layer_of_voxel[detector.voxel(middle, middle, at, np.array([29, 30]))]
    assert layers.tolist() == [0, 1]
    inside = np.array([436.9, 437.1])  # layer 1 ends within plate 145
    assert detector.family.layer_of_voxel[detector.voxel(middle, middle, inside, np.full(2, 145))].tolist() == [1, 2]


def test_set_2_reads_out_rings_and_sectors():
    detector = load_detector("2")
    assert (len(detector.plates), detector.depth) == (180, 153.0)
    centres = detector.family.layers[7].centres
    depth, plate = np.full(len(centres), 24.5), np.full(len(centres), 28)
    assert np.array_equal(detector.voxel(*centres.T, depth, plate), 7 * 144 + np.arange(144))
    far = np.array([41.9])
    assert detector.voxel(far, 0 * far, depth[:1], plate[:1]).tolist() == [6480]


def test_a_detector_of_ones_own(own_detector):
    detector = load_detector(own_detector)
    assert [plate.material for plate in detector.plates[:3]] == ["G4_Al", "G4_Fe", "Tile"]
    assert detector.depth == 25.3
    centres = detector.family.layers[1].centres
    found = detector.voxel(*centres.T, np.full(8, 24.0), np.full(8, 10))
    assert np.array_equal(found, 8 + np.arange(8))
    beyond = detector.voxel(np.zeros(1), np.zeros(1), np.array([25.0]), np.array([10]))  # behind the last layer
    assert beyond.tolist() == [16]


def test_depths_of_layers_are_said_once(own_detector):
    assert load_detector(own_detector).family.depths == ((0, 10.3), (10.3, 24.5))
    text = OWN_DETECTOR.replace("[80.0, 80.0]", "[80.0, 80.0], z = [0.0, 10.3]").replace(
        "30.0] }", "30.0], z = [10.3, 24.5] }"
    )
    own_detector.write_text(text.replace("layer_ends = [10.3, 24.5]", ""))
    assert load_detector(own_detector).layer_ends == (10.3, 24.5)
    own_detector.write_text(text.replace("layer_ends = [10.3, ", "layer_ends = [11.3, "))
    with pytest.raises(ConfigError, match="layer_ends say that layers lie at"):
        load_detector(own_detector)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("layer_ends = [10.3, 24.5]", "", "layers need depths"),
        ('unit = "MeV", low = 1e3, high = 50e3', 'unit = "GeV", low = 1, high = 50', "energy must be MeV, got 'GeV'"),
        ("size = [80.0, 80.0] },", "size = [80.0, 80.0], z = [0, 9] },", "either all layers have a depth z, or none"),
        ("layer_ends = [10.3, 24.5]", "layer_ends = [10.3]", "2 layers need as many layer_ends"),
        ("layer_ends = [10.3, 24.5]", "layer_ends = [24.5, 10.3]", "must increase"),
        ("layer_ends = [10.3, 24.5]", "layer_ends = [10.3, 26.0]", "behind the plates"),
        ("thickness = 0.3", "thickness = -0.3", "greater than 0"),
        ("repeat = 5", "repeat = 5000", "less than or equal"),
        ("repeat = 5", "repeats = 5", "Extra inputs"),
        ("[detector]", "[detektor]", "[detector]"),
        ("width = 300.0", "width = ", "not valid TOML"),
        ("r_edges = [0.0, 10.0, 30.0]", "r_edges = [0.0, 30.0, 10.0]", "r_edges must increase"),
    ],
)
def test_a_wrong_detector_is_explained(old, new, said, own_detector):
    own_detector.write_text(OWN_DETECTOR.replace(old, new))
    with pytest.raises(ConfigError) as error:
        load_detector(own_detector)
    assert said in str(error.value)


def test_an_unknown_geometry_is_explained(tmp_path):
    with pytest.raises(ConfigError, match="unknown geometry"):
        load_detector("atlas")
    with pytest.raises(ConfigError, match="cannot read"):
        load_detector(tmp_path / "none.toml")
