"""Families: geometry, symmetries, names, tables."""

from __future__ import annotations

import json
import math
import tomllib
from pathlib import Path

import numpy as np
import pytest
from support import ALL_FAMILIES, CALORIMETERS, ENERGY, ROOT, SMALL, TURNED

from calogen.errors import ConfigError
from calogen.families import FAMILIES, CartesianLayer, Condition, CylindricalLayer, Family, Symmetry, resolve_family


@pytest.mark.parametrize(
    ("name", "voxels", "layers"),
    [("calogan", 504, 3), ("1-photons", 368, 5), ("1-pions", 533, 7), ("2", 6480, 45), ("3", 40500, 45)],
)
def test_built_in_calorimeters_have_the_published_numbers_of_voxels_and_layers(
    name: str, voxels: int, layers: int
) -> None:
    family = FAMILIES[name]
    assert (family.voxels, len(family.layers), family.sample_shape) == (voxels, layers, (voxels,))


def test_the_family_of_maps_has_pixels_and_named_parameters() -> None:
    family = FAMILIES["nbody-64"]
    assert (family.sample_shape, family.voxels, family.box_size) == ((64, 64), 4096, 64.0)
    assert [c.name for c in family.conditions] == ["Omega_m", "sigma_8"]


@pytest.mark.parametrize("family", CALORIMETERS, ids=lambda f: f.name)
def test_slices_tile_the_voxels_layer_by_layer(family: Family) -> None:
    assert family.layer_bounds[0] == 0
    assert family.layer_bounds[-1] == family.voxels == len(family.centres)
    for i, part in enumerate(family.layer_slices):
        assert set(family.layer_of_voxel[part]) == {i}
        assert part.stop - part.start == math.prod(family.layers[i].shape)


def test_layer_numbers_are_the_detectors_own() -> None:
    assert FAMILIES["1-photons"].layer_numbers == (0, 1, 2, 3, 12)
    assert SMALL.layer_numbers == (0, 1, 2)


def test_cartesian_centres_are_row_major_and_centred() -> None:
    centres = CartesianLayer(shape=(2, 3), size=(20, 30)).centres
    np.testing.assert_allclose(centres, [[-5, -10], [-5, 0], [-5, 10], [5, -10], [5, 0], [5, 10]])


def test_cylindrical_centres_have_the_radius_fastest_and_alpha_from_minus_pi() -> None:
    layer = CylindricalLayer(n_alpha=4, r_edges=(0, 2, 6))
    np.testing.assert_allclose(layer.polar[:3], [[-0.75 * np.pi, 1], [-0.75 * np.pi, 4], [-0.25 * np.pi, 1]])
    np.testing.assert_allclose(layer.centres[1], [4 * np.cos(-0.75 * np.pi), 4 * np.sin(-0.75 * np.pi)])


SQUARES = Family(
    name="squares",
    layers=(CartesianLayer(shape=(4, 4), size=(8, 8)), CartesianLayer(shape=(2, 2), size=(9, 9))),
    conditions=TURNED.conditions,
)
MIRRORS = ("mirror-x", "mirror-y")


@pytest.mark.parametrize(
    ("family", "proposed", "size"),
    [
        (FAMILIES["calogan"], MIRRORS, 4),
        (FAMILIES["1-photons"], (*MIRRORS, "turn"), 20),  # layers of one sector turn by any angle
        (FAMILIES["2"], (*MIRRORS, "turn"), 32),
        (FAMILIES["3"], (*MIRRORS, "turn"), 100),
        (SMALL, MIRRORS, 4),
        (SQUARES, (*MIRRORS, "swap-xy"), 8),
        (TURNED, (*MIRRORS, "turn"), 8),
        (FAMILIES["nbody-64"], (), 1),
    ],
    ids=lambda given: getattr(given, "name", None),
)
def test_layers_propose_symmetries_which_generate_a_group(
    family: Family, proposed: tuple[Symmetry, ...], size: int
) -> None:
    assert family.proposed_symmetries() == proposed
    group = family.with_symmetries(proposed).images if proposed else family.images
    assert len(group) == size
    np.testing.assert_array_equal(group[0].order, np.arange(family.voxels))
    known = {image.order.tobytes() for image in group}
    assert len(known) == size
    for one in group:
        assert one.order.argsort().tobytes() in known
        for two in group[1:4]:
            assert one.order[two.order].tobytes() in known


@pytest.mark.parametrize("family", [FAMILIES["calogan"], FAMILIES["2"], SMALL, SQUARES, TURNED], ids=lambda f: f.name)
def test_images_move_centres_as_the_plane_and_keep_layers(family: Family) -> None:
    one_sector = [layer.sectors == 0 for layer in family.layers]
    seen = ~np.array(one_sector)[family.layer_of_voxel]  # the centres of one sector are not where the energy is
    for image in family.with_symmetries(family.proposed_symmetries()).images:
        moved = family.centres[image.order] @ image.plane.T
        np.testing.assert_allclose(moved[seen], family.centres[seen], atol=1e-9)
        np.testing.assert_array_equal(family.layer_of_voxel[image.order], family.layer_of_voxel)


def test_images_of_conditions_are_those_of_points_and_directions() -> None:
    names = [c.name for c in TURNED.conditions]
    conditions = np.array([[5e3, 3.0, -4.0, 10.0, 150.0], [5e4, 0.5, 8.0, 0.0, -100.0]], np.float32)
    for family, symmetry, impact, phi in [
        (TURNED, "mirror-x", [[-3, -4], [-0.5, 8]], [30, -80]),
        (TURNED, "mirror-y", [[3, 4], [0.5, -8]], [-150, 100]),
        (TURNED, "turn", [[4, 3], [-8, 0.5]], [-120, -10]),  # by a quarter, the largest sector of all
        (SQUARES, "swap-xy", [[-4, 3], [8, 0.5]], [-60, -170]),
    ]:
        motion = family.motion(family.with_symmetries([symmetry]).images[1], names)
        expected = np.column_stack([conditions[:, 0], impact, conditions[:, 3], phi])
        np.testing.assert_allclose(motion(conditions), expected, atol=1e-4, err_msg=symmetry)
        again = conditions
        for _ in range(4):
            again = motion(again)
        np.testing.assert_allclose(again, conditions, atol=1e-3)


@pytest.mark.parametrize("unit", ["deg", "rad"])
@pytest.mark.parametrize("low", [-180, 0])
def test_azimuths_stay_in_their_own_convention(low: float, unit: str) -> None:
    scale = 1.0 if unit == "deg" else math.pi / 180
    phi = Condition(name="phi", unit=unit, low=low * scale, high=(low + 360) * scale)
    family = Family(name="own", layers=TURNED.layers, conditions=(ENERGY, phi), symmetries=TURNED.symmetries)
    columns = np.linspace([1e3, phi.low], [1e3, phi.high], 50).astype(np.float32)
    for image in family.images:
        moved = family.motion(image, ["incident_energy", "phi"])(columns)[:, 1]
        assert moved.min() >= phi.low - 1e-5
        assert moved.max() <= phi.high + 1e-5
        angles = (np.radians(azimuth / scale) for azimuth in (columns[:, 1], moved))
        before, after = (np.column_stack([np.cos(angle), np.sin(angle)]) for angle in angles)
        np.testing.assert_allclose(before @ image.plane.T, after, atol=1e-5)


def test_symmetries_are_proposed_where_it_is_known_what_they_do_to_the_conditions() -> None:
    assert TURNED.proposed_symmetries(["incident_energy", "impact_x"]) == MIRRORS
    assert SQUARES.proposed_symmetries(["impact_y", "phi"]) == MIRRORS
    assert SQUARES.proposed_symmetries(["impact_y", "impact_x"]) == (*MIRRORS, "swap-xy")
    assert SMALL.proposed_symmetries(["incident_energy"]) == MIRRORS
    assert SMALL.proposed_symmetries(["incident_energy", "angle"]) == ()  # an angle to what?
    choices = ([], ["theta"], ["impact_x"], ["impact_x", "impact_y"])
    motions = [[TURNED.motion(image, names) for image in TURNED.images] for names in choices]
    assert [sum(motion is not None and motion.still for motion in found) for found in motions] == [8, 8, 2, 1]


def test_symmetries_of_a_copy_are_its_own() -> None:
    assert len(SMALL.images) == 4
    assert len(SMALL.model_copy(update={"symmetries": ("mirror-y",)}).images) == 2


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (1010, 99_000, (1e3, 1e5)),  # within 1 % of the logarithmic range on both sides
        (1010, 50e3, (1e3, 50e3)),
        (2e3, 99_000, (2e3, 1e5)),
        (50e3, 50e3, (50e3, 50e3)),
        (990, 101_000, (1e3, 1e5)),
    ],
)
def test_a_range_nearly_covered_counts_as_covered(low: float, high: float, expected: tuple[float, float]) -> None:
    assert ENERGY.covered(low, high) == expected


@pytest.mark.parametrize(
    ("condition", "domain", "possible"),
    [
        (ENERGY, "finite values above 0, at most 1e+08 MeV", [0, 0, 1, 1]),
        (Condition(name="beam", unit="GeV", low=1, high=2), "finite values above 0, at most 2000 GeV", [0, 0, 1, 1]),
        (FAMILIES["nbody-64"].condition("sigma_8"), "finite values above 0, at most 1000", [0, 0, 1, 1]),
        (FAMILIES["camels"].condition("Omega_m"), "finite values above 0, at most 500", [0, 0, 1, 1]),
        (Condition(name="impact_x", unit="mm", low=1, high=2), "finite values from -2000 mm to 2000 mm", [1, 1, 1, 1]),
        (Condition(name="huge", low=0, high=1e30), "finite values from -1e+18 to 1e+18", [1, 1, 1, 1]),
        (Condition.labelled("particle", ("gamma", "e+")), "0 (gamma), 1 (e+)", [0, 1, 0, 1]),
    ],
    ids=lambda given: getattr(given, "name", None),
)
def test_a_condition_says_which_values_there_can_be(condition: Condition, domain: str, possible: list[int]) -> None:
    assert condition.domain == domain
    values = np.array([-1, 0, 0.5, 1, np.nan, np.inf, -1e29, 1e29])
    assert condition.possible(values).tolist() == [bool(x) for x in [*possible, 0, 0, 0, 0]]


@pytest.mark.parametrize("family", ALL_FAMILIES, ids=lambda f: f.name)
def test_a_family_survives_its_json(family: Family) -> None:
    again = Family.model_validate_json(family.model_dump_json())
    assert again == family
    for one in (again, family):
        assert len(one.centres) == one.voxels if one.layers else True  # kept, which equality must not mind
    assert again == family
    assert hash(again) == hash(family)
    assert again != Family.model_validate({**family.model_dump(), "threshold": 9.0})


def test_names_and_conditions_are_found_or_suggested() -> None:
    assert resolve_family("calogan") is FAMILIES["calogan"]
    with pytest.raises(ConfigError, match="did you mean 'calogan'"):
        resolve_family("caologan")
    assert SMALL.condition("angle").unit == "rad"
    with pytest.raises(ConfigError, match="did you mean 'angle'"):
        SMALL.condition("angel")


def test_families_are_compared_by_geometry_and_not_by_name() -> None:
    calogan = FAMILIES["calogan"]
    assert calogan.same_samples(calogan.model_copy(update={"name": "mine", "conditions": (), "threshold": 1.0}))
    assert not calogan.same_samples(FAMILIES["2"])
    assert not calogan.same_samples(calogan.model_copy(update={"unit": "GeV"}))


def test_depths_count_where_both_families_know_theirs() -> None:
    calogan = FAMILIES["calogan"]
    assert calogan.depths == ((0, 90), (90, 437), (437, 480))
    assert calogan.layers[1].pitch == (40, 40)
    shallow, unknown = calogan.with_depths([(0, 80), (80, 437), (437, 480)]), calogan.with_depths(())
    assert not shallow.same_samples(calogan)
    assert shallow.same_cells(calogan)
    for one in (calogan, shallow):
        assert unknown.same_samples(one)
        assert one.same_samples(unknown)


def test_a_family_without_depths_is_written_as_it_always_was() -> None:
    unknown = FAMILIES["calogan"].with_depths(())
    assert unknown.depths == ()
    assert list(unknown.model_dump()["layers"][0]) == ["geometry", "shape", "size", "index"]
    assert '"z":[90.0,437.0]' in FAMILIES["calogan"].model_dump_json()


def test_a_written_family_of_a_built_in_one_gets_its_depths() -> None:
    old = FAMILIES["calogan"].with_depths(()).model_copy(update={"symmetries": (), "description": "old"})
    read = resolve_family(json.loads(old.model_dump_json()))
    assert (read.depths, read.description) == (FAMILIES["calogan"].depths, "old")
    assert resolve_family(read.with_depths([(0, 1), (1, 2), (2, 3)]).model_dump()).depths[2] == (2, 3)
    assert resolve_family(old.model_copy(update={"name": "mine"}).model_dump()).depths == ()
    binning = resolve_family(ROOT / "tests" / "binning" / "binning_dataset_2.xml")
    np.testing.assert_allclose(binning.depths[44], (149.6, 153))


TABLE = """
name = "mine"
conserves_energy = true
threshold = 0.5
[[conditions]]
name = "incident_energy"
unit = "MeV"
low = 100.0
high = 1000.0
scale = "log"
[[layers]]
geometry = "cylindrical"
n_alpha = 2
r_edges = [0, 1, 2]
[[layers]]
shape = [2, 2]
size = [10, 10]
geometry = "cartesian"
"""


def test_a_table_in_toml_makes_a_family() -> None:
    family = resolve_family(tomllib.loads(TABLE))
    assert (family.name, family.voxels, family.layer_bounds) == ("mine", 8, (0, 4, 8))
    assert (family.threshold, family.conserves_energy) == (0.5, True)


def test_a_table_without_roles_gets_them_from_names_and_labels() -> None:
    more = """
[[conditions]]
name = "impact_x"
low = -5.0
high = 5.0
[[conditions]]
name = "particle"
labels = ["gamma", "e+"]
[[conditions]]
name = "temperature"
low = 80.0
high = 90.0
"""
    family = resolve_family(tomllib.loads(TABLE + more))
    assert [condition.role for condition in family.conditions] == ["energy", "impact", "label", "other"]
    assert family.energy == family.conditions[0]
    assert resolve_family(family.model_dump()) == family


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("threshold = 0.5", "treshold = 0.5", "did you mean 'threshold'"),
        ("threshold = 0.5", "threshold = -1", "family.threshold"),
        ("high = 1000.0", "high = 10.0", "low must be below high"),
        ("low = 100.0", "low = 0.0", "a logarithmic scale needs low > 0"),
        ('"incident_energy"', '"energy"', "first condition of a calorimeter family is the incident energy"),
        ("[0, 1, 2]", "[0, 2, 1]", "r_edges must increase"),
        ("[2, 2]", "[0, 2]", "at least one cell"),
        ("n_alpha = 2", "n_alpha = 2\nz = [3.0, 3.0]", "begins before it ends"),
        ("n_alpha = 2", "n_alpha = 2\nz = [0.0, 3.0]", "either all layers have a depth z, or none"),
        ("threshold = 0.5", 'symmetries = ["roll"]', "the layers allow the symmetries"),
        ("n_alpha = 2", "n_alpha = 0", "n_alpha"),
        ("threshold = 0.5", "pixels = [4, 4]", "has layers and no pixels"),
        ("threshold = 0.5", 'kind = "map"', "has pixels and no layers"),
    ],
)
def test_a_wrong_table_says_what_is_wrong_with_it(old: str, new: str, message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        resolve_family(tomllib.loads(TABLE.replace(old, new)))
    assert message in str(raised.value)
    assert raised.value.exit_code == 2


def test_layers_follow_each_other_in_depth() -> None:
    table = tomllib.loads(TABLE)
    for layer, z in zip(table["layers"], ([1, 4], [3, 5]), strict=True):
        layer["z"] = z
    with pytest.raises(ConfigError, match=r"layer 1 begins \(z\) before layer 0 ends"):
        resolve_family(table)
    table["layers"][1]["z"] = [4.5, 5]
    assert resolve_family(table).depths == ((1, 4), (4.5, 5))


def test_a_family_may_stand_in_a_toml_file(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(f"[family]{TABLE.replace('[[', '[[family.')}")
    (tmp_path / "named.toml").write_text('family = "calogan"')
    assert resolve_family(tmp_path / "mine.toml") == resolve_family(tomllib.loads(TABLE))
    assert resolve_family(str(tmp_path / "named.toml")) is FAMILIES["calogan"]
    (tmp_path / "none.toml").write_text("x = 1")
    with pytest.raises(ConfigError, match="family table is not valid"):
        resolve_family(tmp_path / "none.toml")


def test_an_odd_number_of_sectors_has_no_mirror_in_x() -> None:
    layer = CylindricalLayer(n_alpha=3, r_edges=(0, 1))
    with pytest.raises(ValueError, match="the layers allow the symmetries"):
        Family(name="odd", layers=(layer,), conditions=(ENERGY,), symmetries=("mirror-x",))
    odd = Family(name="odd", layers=(layer,), conditions=(ENERGY,))
    assert odd.proposed_symmetries() == ("mirror-y", "turn")
    assert len(odd.with_symmetries(("mirror-y", "turn")).images) == 6


def test_condition_names_must_differ() -> None:
    with pytest.raises(ValueError, match="must differ"):
        Family(name="twice", layers=(CartesianLayer(shape=(1, 1), size=(1, 1)),), conditions=(ENERGY, ENERGY))
