"""Requests: every form of a specification, every error, and tables that keep their order."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from support import ANGLE, ENERGY, MAPS, SMALL, toy, write_folder

from calogen.errors import CalogenError, ConditionError, ConfigError, ShardError
from calogen.families import FAMILIES, Condition
from calogen.production.requests import Request, Spec
from calogen.shards.reader import Shards
from calogen.shards.sources import open_shards

NAMES = ("incident_energy", "angle")
UNIFORM, INDEX = np.linspace(0, 1, 5), np.arange(5)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("fixed:50GeV", [50e3] * 5),
        ("fixed:50 GeV", [50e3] * 5),
        ("fixed:2.5e3MeV", [2.5e3] * 5),
        ("fixed:.01TeV", [1e4] * 5),
        ("uniform:1:5GeV", [1e3, 2e3, 3e3, 4e3, 5e3]),
        ("log-uniform:1:10000MeV", [1, 10, 100, 1e3, 1e4]),
        ("list:1,5,10GeV", [1e3, 5e3, 1e4, 1e3, 5e3]),
        ("list:7GeV", [7e3] * 5),
        ("fixed:3e6keV", [3e3] * 5),
        ("fixed:5e9eV", [5e3] * 5),
    ],
)
def test_a_specification_of_an_energy_gives_mev(text: str, expected: list[float]) -> None:
    np.testing.assert_allclose(Spec.parse(ENERGY, text).draw(UNIFORM, INDEX), expected, rtol=1e-12)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("fixed:-0.5", [-0.5] * 5),
        ("fixed:-0.5rad", [-0.5] * 5),
        ("uniform:-1:1", [-1, -0.5, 0, 0.5, 1]),
        ("list:0.1,-0.2", [0.1, -0.2, 0.1, -0.2, 0.1]),
    ],
)
def test_a_specification_of_something_else_needs_no_unit(text: str, expected: list[float]) -> None:
    np.testing.assert_allclose(Spec.parse(ANGLE, text).draw(UNIFORM, INDEX), expected)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("50", "the unit of 'incident_energy' is missing"),
        ("GeV50", "is not a specification"),
        ("fixed:", "is not a specification"),
        ("", "is not a specification"),
        ("fixed:GeV", "is not a specification"),
        ("gauss:1:2GeV", "is not a specification"),
        ("fixed:1:2GeV", "is not a specification"),
        ("uniform:1GeV", "is not a specification"),
        ("uniform:1:2:3GeV", "is not a specification"),
        ("uniform:1,2GeV", "is not a specification"),
        ("uniform:1GeV:2GeV", "is not a specification"),
        ("list:1:2GeV", "is not a specification"),
        ("list:1,,2GeV", "is not a specification"),
        ("fixed:nanGeV", "is not a specification"),
        ("fixed:50", "the unit of 'incident_energy' is missing"),
        ("fixed:50gev", "did you mean 'GeV'"),
        ("fixed:50rad", "'rad' is not a unit of energy"),
        ("uniform:5:1GeV", "lower end must come first"),
        ("uniform:5:5GeV", "lower end must come first"),
        ("log-uniform:0:5GeV", "a logarithm needs numbers above 0"),
    ],
)
def test_a_wrong_specification_of_an_energy_is_explained(text: str, part: str) -> None:
    with pytest.raises(ConditionError) as raised:
        Spec.parse(ENERGY, text)
    assert part in str(raised.value)
    assert raised.value.exit_code == 2


def test_a_missing_unit_is_shown_where_it_belongs() -> None:
    with pytest.raises(ConditionError, match="as in uniform:1:50GeV"):
        Spec.parse(ENERGY, "uniform:1:50")
    with pytest.raises(ConditionError, match="not the unit of 'angle'"):
        Spec.parse(ANGLE, "fixed:1GeV")


@pytest.mark.parametrize(
    "energy", ["fixed:50GeV", "50 GeV", "50000 MeV", 5e4, np.float32(5e4), [5e4] * 3, ["50 GeV"] * 3, np.full(3, 5e4)]
)
def test_every_form_of_a_condition_means_the_same(energy: Any) -> None:
    for name in ("incident_energy", "energy"):
        request = Request.of(SMALL, {name: energy, "angle": "uniform:-1:1"}, 3)
        found = request.conditions(NAMES, 2, 0, 3)
        assert found["incident_energy"].tolist() == [5e4] * 3
        assert np.ptp(found["angle"]) > 0


def test_the_energy_has_one_meaning_only() -> None:
    with pytest.raises(ConditionError, match="both name 'incident_energy'"):
        Request.of(SMALL, {"energy": 5e4, "incident_energy": 5e4}, 3)
    with pytest.raises(ConditionError, match="is not a specification"):
        Request.of(SMALL, {"energy": ["GeV50"]})
    with pytest.raises(ConditionError, match="'energy'"):
        Request.of(MAPS, {"energy": 5e4}, 3)


def test_drawn_conditions_follow_their_distribution_and_any_row_can_be_asked_for_alone() -> None:
    request = Request.of(SMALL, {"angle": "uniform:-1:1", "incident_energy": "log-uniform:1:100GeV"}, 20_000)
    columns = request.conditions(NAMES, 5, 0, 20_000).array()
    logs = np.log(columns[:, 0] / 1e3) / np.log(100)
    for unit in (logs, (columns[:, 1] + 1) / 2):
        assert unit.min() >= 0
        assert unit.max() <= 1
        assert abs(unit.mean() - 0.5) < 4 * np.sqrt(1 / 12 / 20_000)
        assert abs(unit.var() - 1 / 12) < 0.003
    assert abs(np.corrcoef(columns.T)[0, 1]) < 0.03
    np.testing.assert_array_equal(request.conditions(NAMES, 5, 1234, 3).array(), columns[1234:1237])
    assert not np.array_equal(request.conditions(NAMES, 6, 0, 5).array(), columns[:5])


def test_a_list_goes_round_by_the_global_index_and_the_last_row_repeats_beyond_the_end() -> None:
    request = Request.of(FAMILIES["calogan"], {"incident_energy": "list:1,2,3GeV"}, 7)
    assert request.conditions(["incident_energy"], 0, 4, 5)["incident_energy"].tolist() == [2e3, 3e3, 1e3, 1e3, 1e3]


def test_limits_of_specifications_are_their_extremes() -> None:
    request = Request.of(SMALL, {"incident_energy": "list:1,2,90GeV", "angle": "uniform:-1:0.5"}, 3)
    limits = request.limits(NAMES)
    assert limits["incident_energy"].tolist() == [1e3, 2e3, 90e3]
    assert (limits["angle"].min(), limits["angle"].max()) == (-1, 0.5)
    mixed = Request(
        3, {"angle": Spec.parse(ANGLE, "list:0,1")}, {"incident_energy": np.array([5e3, 2e3, 9e3], np.float32)}
    )
    assert mixed.limits(NAMES).array().tolist() == [[5e3, 0], [2e3, 1], [9e3, 0]]  # rows of a table in their order
    assert mixed.limits(()).array().shape == (1, 0)


def test_requests_say_what_is_missing_or_unknown() -> None:
    with pytest.raises(ConfigError, match="say how many samples"):
        Request.of(SMALL, {"angle": "fixed:0"}, None)
    with pytest.raises(ConditionError, match="did you mean 'angle'"):
        Request.of(SMALL, {"angel": "fixed:0"}, 3)
    with pytest.raises(ConditionError, match="known: Omega_m, sigma_8"):
        Request.of(MAPS, {"h": "fixed:0"}, 3)


def test_the_digest_changes_with_everything_that_decides_a_condition() -> None:
    table = np.array([5e3, 6e3, 7e3], np.float32)
    requests = [
        Request(3, table={"incident_energy": table}, source="a.csv"),
        Request(3, table={"incident_energy": table + 1}, source="a.csv"),
        Request(3, table={"angle": table}, source="a.csv"),
        Request.of(SMALL, {"angle": "fixed:0"}, 3),
        Request.of(SMALL, {"angle": "fixed:1"}, 3),
        Request.of(SMALL, {"angle": "fixed:1"}, 4),
    ]
    assert len({request.digest() for request in requests}) == len(requests)
    assert requests[0].digest() == Request(3, table={"incident_energy": table.copy()}, source="b.csv").digest()


@pytest.mark.parametrize("length", [2, 4])
def test_a_table_has_one_row_a_sample(length: int) -> None:
    with pytest.raises(ConditionError, match="not one 'angle' per sample"):
        Request(3, table={"angle": np.zeros(length, np.float32)})


def test_like_copies_conditions_in_their_order_and_shortens_or_repeats_them(shards: Callable[..., Shards]) -> None:
    data = shards(SMALL, 25, each=10)
    energies = data.read().conditions["incident_energy"]
    assert Request.like(data, NAMES).samples == 25
    np.testing.assert_array_equal(Request.like(data, NAMES).conditions(NAMES, 0, 0, 25)["incident_energy"], energies)
    for n, start, count, expected in ((4, 1, 3, energies[1:4]), (40, 25, 15, energies[:15])):
        found = Request.like(data, NAMES, n).conditions(NAMES, 9, start, count)
        np.testing.assert_array_equal(found["incident_energy"], expected)
    assert Request.like(data, NAMES, 10**12).limits(NAMES).array().shape == (25, 2)  # however often they repeat
    assert Request.like(data, NAMES, 4).limits(NAMES).array().shape == (4, 2)
    assert Request.like(data, NAMES, 0).samples == 0
    assert Request.like(data, (), None).samples == 25
    with pytest.raises(ShardError, match="lack the condition 'height'"):
        Request.like(data, ["height"])
    wanted = data.family.with_condition(Condition(name="theta", low=0, high=1))
    wanted = wanted.with_condition(Condition.labelled("particle", ("gamma", "e+")))
    for name, hint in (("theta", None), ("particle", "where all of them have one label, name it: PATH,particle=gamma")):
        with pytest.raises(ShardError, match=f"lack the condition '{name}'") as lacking:
            Request.like(data, [name], family=wanted)
        assert lacking.value.hint == hint


def test_like_counts_only_rows_that_can_be_used(tmp_path: Path) -> None:
    samples = toy(SMALL, 20)
    samples.values[3, 0] = np.nan
    write_folder(tmp_path / "bad", samples)
    request = Request.like(open_shards(tmp_path / "bad", drop_bad=True), NAMES)
    assert request.samples == 19
    expected = np.delete(samples.conditions["angle"], 3)
    np.testing.assert_array_equal(request.conditions(NAMES, 0, 0, 19)["angle"], expected)


def csv(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_a_csv_file_keeps_its_order_and_is_matched_by_name(tmp_path: Path) -> None:
    path = csv(tmp_path / "a.csv", "angle [rad], incident_energy [GeV]\n0.5,30\n\n-0.5,10\n0.25,20\n")
    request = Request.from_file(path, SMALL, NAMES)
    assert request.samples == 3
    np.testing.assert_allclose(request.conditions(NAMES, 0, 0, 3).array(), [[30e3, 0.5], [10e3, -0.5], [20e3, 0.25]])
    two = Request.from_file(path, SMALL, NAMES, 2).conditions(NAMES, 0, 0, 2)
    assert two["incident_energy"].tolist() == [30e3, 10e3]
    assert Request.from_file(path, SMALL, NAMES, 0).samples == 0
    assert Request.from_file(path, SMALL, ["angle"]).names == ("angle",)
    assert request.describe() == {"samples": 3, "source": "a.csv"}


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("", "not CSV with a header"),
        ("incident_energy [GeV]\n", "one row per sample"),
        ("incident_energy\n5\n", "the unit of 'incident_energy' is missing"),
        ("incident_energy [gev]\n5\n", "did you mean 'GeV'"),
        ("incident_enrgy [GeV]\n5\n", "did you mean 'incident_energy'"),
        ("energy [GeV]\n5\n", "known: angle, incident_energy"),
        ("5\n6\n", "is not a condition of family"),
        ("angle\n5\n", "lacks the condition 'incident_energy'"),
        ("incident_energy [GeV],incident_energy [GeV]\n5,6\n", "is there twice"),
        ("angle,incident_energy [GeV]\n0,5\n0,five\n", "data row 2, column 'incident_energy [GeV]'"),
        ("angle,incident_energy [GeV]\n0,5\n0\n", "data row 2"),
        ("incident_energy [GeV]\n5\n7,5\n", "with decimal points"),
        ("angle [GeV],incident_energy [GeV]\n0,5\n", "'GeV' is not the unit of 'angle'"),
    ],
)
def test_a_wrong_csv_file_is_explained(tmp_path: Path, text: str, part: str) -> None:
    path = csv(tmp_path / "a.csv", text)
    with pytest.raises(ConditionError) as raised:
        Request.from_file(path, SMALL, ["incident_energy"])
    assert part in str(raised.value)
    assert str(path) in str(raised.value)


def test_asking_for_more_rows_than_a_file_has_is_refused(tmp_path: Path) -> None:
    path = csv(tmp_path / "a.csv", "angle\n0\n1\n")
    with pytest.raises(ConditionError, match="fewer rows than samples asked for"):
        Request.from_file(path, SMALL, ["angle"], 3)


def test_a_binary_or_missing_csv_file_is_explained(tmp_path: Path) -> None:
    (tmp_path / "b.csv").write_bytes(b"\xff\xfe\x00\x81")
    for name in ("b.csv", "none.csv", ""):
        with pytest.raises((ConditionError, ShardError)) as raised:
            Request.from_file(tmp_path / name, SMALL, ["angle"])
        assert raised.value.exit_code == 2


def hdf5(path: Path, **datasets: tuple[Any, str]) -> Path:
    with h5py.File(path, "w") as file:
        for name, (values, unit) in datasets.items():
            file[name] = values
            if unit:
                file[name].attrs["unit"] = unit
    return path


def test_an_hdf5_file_keeps_its_order_and_its_units(tmp_path: Path) -> None:
    energies = np.array([[3.0], [1.0], [2.0]])
    path = hdf5(tmp_path / "a.h5", incident_energy=(energies, "GeV"), angle=(np.array([1, 0, -1]), ""))
    columns = Request.from_file(path, SMALL, NAMES).conditions(NAMES, 0, 0, 3).array()
    np.testing.assert_allclose(columns, [[3e3, 1], [1e3, 0], [2e3, -1]])
    with h5py.File(path, "a") as file:
        file["incident_energy"].attrs["unit"] = np.bytes_("TeV")
    assert Request.from_file(path, SMALL, NAMES).conditions(NAMES, 0, 0, 1).row(0)["incident_energy"] == 3e6


@pytest.mark.parametrize(
    ("datasets", "part"),
    [
        ({"incident_energy": (np.ones(3), "")}, "the unit of 'incident_energy' is missing"),
        ({"incident_energy": (np.ones(3), "m")}, "'m' is not a unit of energy"),
        ({"angle": (np.ones(3), "")}, "lacks the condition 'incident_energy'"),
        ({"incident_energy": (np.ones(3), "GeV"), "angle": (np.ones(2), "")}, "one row per sample"),
        ({"incident_energy": (np.ones((3, 2)), "GeV")}, "wrong shape"),
        ({"incident_energy": (np.array([b"x", b"y"]), "GeV")}, "wrong type of number"),
    ],
)
def test_a_wrong_hdf5_file_is_explained(tmp_path: Path, datasets: dict[str, Any], part: str) -> None:
    with pytest.raises(CalogenError) as raised:
        Request.from_file(hdf5(tmp_path / "a.h5", **datasets), SMALL, NAMES)
    assert part in str(raised.value)
    assert raised.value.exit_code == 2


def test_links_and_groups_in_a_file_of_conditions_are_refused(tmp_path: Path) -> None:
    other = hdf5(tmp_path / "other.h5", angle=(np.ones(3), ""))
    with h5py.File(tmp_path / "link.h5", "w") as file:
        file["angle"] = h5py.ExternalLink(str(other), "angle")
    with h5py.File(tmp_path / "group.h5", "w") as file:
        file.create_group("angle")
    for name in ("link.h5", "group.h5"):
        with pytest.raises(ShardError, match=r"outside the file|a group"):
            Request.from_file(tmp_path / name, SMALL, ["angle"])
    (tmp_path / "torn.h5").write_bytes(other.read_bytes()[:100])
    with pytest.raises(ShardError, match="damaged or truncated"):
        Request.from_file(tmp_path / "torn.h5", SMALL, ["angle"])
