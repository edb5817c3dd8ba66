"""Other people's layouts: what is recognised, converted and refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from support import BINNING, ORACLES, ROOT, toy

from calogen.errors import ConfigError, ShardError
from calogen.families import FAMILIES, CartesianLayer, Family, resolve_family
from calogen.families.resolve import family_from_binning
from calogen.shards.layouts import find
from calogen.shards.layouts.find import read_layout
from calogen.shards.layouts.native import Showers
from calogen.shards.sources import open_shards
from calogen.shards.writer import write_shard

XML = {
    "1-photons": "binning_dataset_1_photons.xml",
    "1-pions": "binning_dataset_1_pions.xml",
    "2": "binning_dataset_2.xml",
    "3": "binning_dataset_3.xml",
}


@pytest.fixture
def calogan(tmp_path: Path) -> Path:
    """A CaloGAN file of eight showers as others write it, to be spoilt."""
    path = tmp_path / "gamma.h5"
    rng = np.random.default_rng(1)
    energy = rng.uniform(1, 100, (8, 1)).astype(np.float32)
    with h5py.File(path, "w") as file:
        for number, layer in enumerate(FAMILIES["calogan"].layers):
            cells = rng.random((8, *layer.shape), np.float32)
            share = cells / cells.sum(axis=(1, 2), keepdims=True) / 3
            file[f"layer_{number}"] = (share * energy[:, :, None] * 1e3).astype(np.float32)
        file["energy"] = energy
        file["overflow"] = np.zeros((8, 3), np.float32)
    return path


@pytest.fixture
def challenge(tmp_path: Path) -> Path:
    """A CaloChallenge file of eight showers, to be spoilt."""
    path = tmp_path / "photons.hdf5"
    rng = np.random.default_rng(2)
    with h5py.File(path, "w") as file:
        file["showers"] = rng.random((8, 368)) * 5
        file["incident_energies"] = np.full((8, 1), 1024.0)
    return path


@pytest.fixture
def maps(tmp_path: Path) -> Path:
    """A file of twelve maps of three realisations, to be spoilt."""
    path = tmp_path / "maps.h5"
    rng = np.random.default_rng(3)
    with h5py.File(path, "w") as file:
        file["maps"] = 2 * rng.random((12, 64, 64), np.float32)
        file["params"] = rng.uniform(0.2, 0.6, (12, 2))
        file["realisation_id"] = np.repeat([7, 3, 9], 4)
        file.attrs["param_names"] = ["sigma_8", "Omega_m"]
        file.attrs["box_size"] = 64.0
    return path


# ------------------------------------------------------------------------------------------------ recognised


def test_calogan_energies_become_mev_and_cells_keep_their_order() -> None:
    shards = open_shards(ORACLES / "calogan_gamma_64.h5")
    samples = shards.read()
    assert shards.family is FAMILIES["calogan"]
    assert shards.kind == "reference"
    with h5py.File(ORACLES / "calogan_gamma_64.h5") as file:
        np.testing.assert_allclose(samples.conditions["incident_energy"], file["energy"][:, 0] * 1e3, rtol=1e-7)
        for number, cells in enumerate(shards.family.layer_slices):
            np.testing.assert_array_equal(samples.values[:, cells], file[f"layer_{number}"][:].reshape(64, -1))
    assert "incident energies converted from GeV to MeV" in shards.notes
    assert any("overflow" in note for note in shards.notes)
    assert shards.provenance[0]["engine"] == "Geant4 11.4.0 via calzone"


@pytest.mark.parametrize("name", ["1-photons", "1-pions", "2"])
def test_calochallenge_voxel_count_picks_the_family(name: str) -> None:
    path = ORACLES / f"calochallenge_{name}_32.h5"
    shards = open_shards(path)
    samples = shards.read()
    assert shards.family is FAMILIES[name]
    assert shards.notes == ("datasets that are not read: observables",)
    with h5py.File(path) as file:
        np.testing.assert_array_equal(samples.values, file["showers"][:])
        np.testing.assert_array_equal(
            samples.conditions["incident_energy"], file["incident_energies"][:, 0].astype(np.float32)
        )


def test_maps_are_matched_by_parameter_name(maps: Path) -> None:
    shards = open_shards(maps)
    samples = shards.read()
    assert shards.family is FAMILIES["nbody-64"]
    assert shards.condition_names == ("sigma_8", "Omega_m")
    with h5py.File(maps) as file:
        np.testing.assert_array_equal(samples.conditions["Omega_m"], file["params"][:, 1].astype(np.float32))
    np.testing.assert_array_equal(samples.extras["realisation_id"], np.repeat([7, 3, 9], 4))


@pytest.mark.parametrize(("unit", "factor"), [("MeV", 1.0), ("GeV", 1e3), ("keV", 1e-3)])
def test_energy_unit_attribute_is_believed(calogan: Path, unit: str, factor: float) -> None:
    with h5py.File(calogan, "r+") as file:
        energy = file["energy"][:, 0] * 1e3
        file["energy"][:] = energy[:, None] / factor
        file.attrs["energy_unit"] = unit
    np.testing.assert_allclose(open_shards(calogan).read().conditions["incident_energy"], energy, rtol=1e-6)


def test_cell_unit_attribute_is_believed(challenge: Path) -> None:
    before = open_shards(challenge).read().values
    with h5py.File(challenge, "r+") as file:
        file["showers"][:] = file["showers"][:] / 1e3
        file.attrs["cell_unit"] = "GeV"
    shards = open_shards(challenge)
    np.testing.assert_allclose(shards.read().values, before, rtol=1e-6)
    assert shards.notes == ("voxels converted from GeV to MeV",)


def test_a_family_of_ones_own_reads_calogan_layers(tmp_path: Path) -> None:
    layers = (
        CartesianLayer(shape=(2, 3), size=(10, 10), index=4),
        CartesianLayer(shape=(1, 2), size=(10, 10), index=0),
    )
    energy = FAMILIES["calogan"].conditions[0].model_copy(update={"low": 10.0})
    family = Family(name="mine", layers=layers, conditions=(energy,))
    with h5py.File(tmp_path / "mine.h5", "w") as file:
        file["layer_4"] = np.arange(6, dtype=np.float32).reshape(1, 2, 3)
        file["layer_0"] = np.array([[[6.0, 7.0]]], np.float32)
        file["energy"] = np.array([0.05], np.float32)
    samples = open_shards(tmp_path / "mine.h5", family=family).read()
    np.testing.assert_array_equal(samples.values, np.arange(8)[None])


# ------------------------------------------------------------------------------------------------ refused


def _replace(name: str, make: Callable[[np.ndarray], object]) -> Callable[[h5py.File], None]:
    def spoil(file: h5py.File) -> None:
        data = make(file[name][:])
        del file[name]
        file[name] = data

    return spoil


def _attribute(name: str, value: object) -> Callable[[h5py.File], None]:
    def spoil(file: h5py.File) -> None:
        file.attrs[name] = value

    return spoil


def _external_link(file: h5py.File) -> None:
    del file["energy"]
    file["energy"] = h5py.ExternalLink("/etc/hostname", "/energy")


def _soft_link(file: h5py.File) -> None:
    file["outside"] = h5py.ExternalLink("/etc/hostname", "/")
    del file["energy"]
    file["energy"] = h5py.SoftLink("/outside/energy")


def _external_storage(file: h5py.File) -> None:
    del file["energy"]
    file.create_dataset("energy", (8, 1), "f4", external=[("/etc/hostname", 0, 32)])


def _virtual(file: h5py.File) -> None:
    del file["energy"]
    virtual = h5py.VirtualLayout((8, 1), "f4")
    virtual[:] = h5py.VirtualSource("/etc/hostname", "energy", (8, 1))
    file.create_virtual_dataset("energy", virtual)


def _bomb(file: h5py.File) -> None:
    for name in list(file):
        del file[name]
    rows = 10**12
    for number, layer in enumerate(FAMILIES["calogan"].layers):
        data = file.create_dataset(f"layer_{number}", (rows, *layer.shape), "f4", chunks=(64, *layer.shape))
        data[:64] = 1
    file.create_dataset("energy", (rows, 1), "f4", chunks=(64, 1))[:64] = 1


def _unwritten(file: h5py.File) -> None:
    shape = file["layer_1"].shape
    del file["layer_1"]
    file.create_dataset("layer_1", shape, "f4", chunks=(4, 12, 12), compression="gzip")[:4] = 1


def _inflating_chunk(file: h5py.File) -> None:
    shape = file["layer_1"].shape
    del file["layer_1"]
    data = file.create_dataset("layer_1", shape, "f4", chunks=(8, 12, 12), compression="gzip")
    data.id.write_direct_chunk((0, 0, 0), bytes(20_000))


def _group(file: h5py.File) -> None:
    del file["energy"]
    file.create_group("energy")


CALOGAN_SPOILT = {
    "no cells": (lambda f: f.__delitem__("layer_1"), "'layer_1' is missing"),
    "no energies": (lambda f: f.__delitem__("energy"), "'energy' is missing"),
    "other names": (lambda f: f.move("layer_0", "layer_a"), "no known layout"),
    "a fourth layer": (lambda f: f.copy("layer_1", "layer_3"), "more layers"),
    "wrong cells": (_replace("layer_1", lambda x: x[:, :10]), "wrong shape"),
    "fewer rows": (_replace("layer_2", lambda x: x[:-1]), "wrong shape"),
    "fewer energies": (_replace("energy", lambda x: x[:-1]), "wrong shape"),
    "flat layer": (_replace("layer_0", lambda x: x.reshape(8, -1)), "wrong shape"),
    "truth values": (_replace("layer_0", lambda x: x > 0), "wrong type of number"),
    "text": (_replace("energy", lambda x: [["1 GeV"]] * 8), "wrong type of number"),
    "no rows": (lambda f: [_replace(n, lambda x: x[:0])(f) for n in list(f)], "no samples"),
    "a group": (_group, "a group"),
    "unknown unit": (_attribute("energy_unit", "erg"), "unknown energy unit"),
    "newer": (_attribute("calogen_schema", 2), "newer calogen"),
    "schema text": (_attribute("calogen_schema", "new"), "newer calogen"),
    "family text": (_attribute("family", "{"), "family cannot be understood"),
    "another family": (_attribute("family", FAMILIES["nbody-64"].model_dump_json()), "holds showers"),
    "kind": (_attribute("kind", "dreamt"), "unknown kind"),
    "provenance": (_attribute("provenance", "{"), "not JSON"),
    "external link": (_external_link, "a link"),
    "soft link out of the file": (_soft_link, "a link"),
    "external storage": (_external_storage, "external storage"),
    "virtual": (_virtual, "a virtual dataset"),
    "bomb": (_bomb, "more data than the file holds"),
    "unwritten rows": (_unwritten, "never written"),
    "inflating chunk": (_inflating_chunk, "larger than it may be"),
}


@pytest.mark.parametrize(("spoil", "message"), CALOGAN_SPOILT.values(), ids=CALOGAN_SPOILT)
def test_spoilt_calogan_files(calogan: Path, spoil: Callable[[h5py.File], None], message: str) -> None:
    with h5py.File(calogan, "r+") as file:
        spoil(file)
    with pytest.raises(ShardError, match=message) as caught:
        open_shards(calogan)
    assert str(calogan) in str(caught.value)
    assert caught.value.exit_code == 2


CHALLENGE_SPOILT = {
    "voxels": (_replace("showers", lambda x: x[:, :100]), "368 .*1-photons.*533.*6480.*40500"),
    "layers": (_replace("showers", lambda x: x.reshape(8, 2, -1)), "wrong shape"),
    "energies": (lambda f: f.__delitem__("incident_energies"), "'incident_energies' is missing"),
    "energies wide": (_replace("incident_energies", lambda x: np.tile(x, 2)), "wrong shape"),
    "extras": (lambda f: f.create_dataset("weights", data=np.ones(3)), "wrong shape"),
    "condition": (lambda f: f.create_dataset("conditions/angel", data=np.ones(8)), "no condition 'angel'"),
}


@pytest.mark.parametrize(("spoil", "message"), CHALLENGE_SPOILT.values(), ids=CHALLENGE_SPOILT)
def test_spoilt_challenge_files(challenge: Path, spoil: Callable[[h5py.File], None], message: str) -> None:
    with h5py.File(challenge, "r+") as file:
        spoil(file)
    with pytest.raises(ShardError, match=f"(?s){message}"):
        open_shards(challenge)


MAPS_SPOILT = {
    "pixels": (_replace("maps", lambda x: x[:, :32]), "no built-in family"),
    "no box": (lambda f: f.attrs.__delitem__("box_size"), "nothing says how wide the maps are"),
    "box text": (_attribute("box_size", "large"), "header is damaged"),
    "nameless": (lambda f: f.attrs.__delitem__("param_names"), "have no names"),
    "a name more": (_attribute("param_names", ["sigma_8", "Omega_m", "h"]), "wrong shape"),
    "another name": (_attribute("param_names", ["sigma8", "Omega_m"]), "did you mean 'sigma_8'"),
}


@pytest.mark.parametrize(("spoil", "message"), MAPS_SPOILT.values(), ids=MAPS_SPOILT)
def test_spoilt_map_files(maps: Path, spoil: Callable[[h5py.File], None], message: str) -> None:
    with h5py.File(maps, "r+") as file:
        spoil(file)
    with pytest.raises(ShardError, match=message):
        open_shards(maps)


@pytest.mark.parametrize(("family", "message"), [("1-pions", "not the family's"), ("nbody-64", "not the family's")])
def test_family_asked_for_must_fit(challenge: Path, family: str, message: str) -> None:
    with pytest.raises(ShardError, match=message):
        open_shards(challenge, family=FAMILIES[family])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "does not exist"),
        (b"", "is empty"),
        (b"PK\x03\x04 a zip file", "not HDF5"),
        (b"\x89HDF\r\n\x1a\n", "truncated"),
    ],
)
def test_what_is_no_hdf5_file(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "x.h5"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ShardError, match=message):
        open_shards(path)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_truncated_files(tmp_path: Path, share: float) -> None:
    whole = (ORACLES / "calogan_gamma_64.h5").read_bytes()
    path = tmp_path / "x.h5"
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(ShardError, match="truncated"):
        open_shards(path)


def test_no_header_of_random_damage_escapes_as_another_error(calogan: Path) -> None:
    whole = calogan.read_bytes()
    rng = np.random.default_rng(4)
    for _ in range(300):
        damaged = bytearray(whole)
        for place in rng.integers(0, len(whole), 20):
            damaged[place] = rng.integers(256)
        for place in rng.integers(0, 4096, 3):  # the headers are at the front
            damaged[place] = rng.integers(256)
        calogan.write_bytes(damaged)
        try:
            open_shards(calogan).read()
        except ShardError:
            continue


ABSURD = {
    "energies in MeV": (lambda f: f["energy"].write_direct(f["energy"][:] * 1e3), "already|energies are in MeV"),
    "cells in GeV": (
        lambda f: [f[f"layer_{i}"].write_direct(f[f"layer_{i}"][:] / 1e3) for i in range(3)],
        "voxels in GeV",
    ),
    "cells in keV": (
        lambda f: [f[f"layer_{i}"].write_direct(f[f"layer_{i}"][:] * 1e3) for i in range(3)],
        "voxels in keV",
    ),
    "said to be MeV": (_attribute("energy_unit", "MeV"), "energies are in GeV"),
}


@pytest.mark.parametrize(("spoil", "message"), ABSURD.values(), ids=ABSURD)
def test_absurd_units_are_not_read(calogan: Path, spoil: Callable[[h5py.File], None], message: str) -> None:
    with h5py.File(calogan, "r+") as file:
        spoil(file)
    shards = open_shards(calogan)
    with pytest.raises(ShardError, match="not in the same units") as caught:
        shards.read(3, 4)
    assert caught.value.hint is not None
    assert any(word in caught.value.hint for word in message.split("|"))


# ------------------------------------------------------------------------------------------------ binning


@pytest.mark.parametrize("name", XML)
def test_binning_files_give_the_built_in_families(name: str) -> None:
    loaded = family_from_binning(BINNING / XML[name])
    words = {"name", "description", "threshold"}
    assert loaded.model_dump(exclude=words) == FAMILIES[name].model_dump(exclude=words)
    assert loaded.same_samples(FAMILIES[name])
    assert loaded.name == Path(XML[name]).stem


def test_binning_of_a_new_detector(tmp_path: Path) -> None:
    path = tmp_path / "new.xml"
    path.write_text(
        '<Bins><Bin pid="22" name="photon"><Layer id="3" r_edges="0,5,10" n_bin_alpha="4"/>'
        '<Layer id="5" r_edges="0" n_bin_alpha="1"/></Bin><Bin pid="11" name="electron">'
        '<Layer id="0" r_edges="0,1" n_bin_alpha="1"/></Bin></Bins>'
    )
    photon = family_from_binning(path, "photon")
    assert photon.layer_numbers == (3,)
    assert photon.voxels == 8
    assert photon.conditions[0].name == "incident_energy"
    assert family_from_binning(path, "11").voxels == 1
    with pytest.raises(ConfigError, match="which particle"):
        family_from_binning(path)
    with pytest.raises(ConfigError, match="no such particle"):
        family_from_binning(path, "pion")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "cannot be read"),
        ("<Bins>", "not valid XML"),
        ("<Bins/>", "no such particle"),
        ("<Bins><Bin pid='1'/></Bins>", "no layers"),
        ("<Bins><Bin><Layer id='0' r_edges='0,1'/></Bin></Bins>", "no attribute 'n_bin_alpha'"),
        ("<Bins><Bin><Layer id='0' r_edges='0,a' n_bin_alpha='1'/></Bin></Bins>", "not valid"),
        ("<Bins><Bin><Layer id='0' r_edges='0,2,1' n_bin_alpha='1'/></Bin></Bins>", "must increase"),
        ("<!DOCTYPE x [<!ENTITY a 'b'>]><Bins/>", "document type"),
    ],
)
def test_spoilt_binning_files(tmp_path: Path, text: str | None, message: str) -> None:
    path = tmp_path / "x.xml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        family_from_binning(path)


def test_family_sources() -> None:
    assert resolve_family("calogan") is FAMILIES["calogan"]
    assert resolve_family(str(BINNING / XML["2"])).voxels == 6480
    assert resolve_family(BINNING / XML["1-pions"]).voxels == 533
    assert resolve_family(FAMILIES["2"].model_dump()) == FAMILIES["2"]
    with pytest.raises(ConfigError, match="did you mean 'calogan'"):
        resolve_family("calogn")


@pytest.mark.parametrize(("data", "roles"), [("calogan-gamma", ["energy"]), ("nbody-64", ["cosmology"] * 2)])
def test_files_written_before_there_were_roles_open_with_them(data: str, roles: list[str]) -> None:
    shards = open_shards(ROOT / "data" / data, split="test")
    with h5py.File(shards.files[0]) as file:
        assert '"role"' not in file.attrs["family"]
    assert [condition.role for condition in shards.family.conditions] == roles
    assert shards.family == FAMILIES[shards.family.name]


def test_a_file_format_is_one_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Cubes(Showers):
        written = "cubes"
        marker = "cubes"
        energies = "e_gev"
        energy_unit = "GeV"

    monkeypatch.setattr(find, "FORMATS", (*find.FORMATS, Cubes()))
    samples = toy(FAMILIES["calogan"], 5)
    write_shard(tmp_path / "a.h5", samples, provenance={}, layout="cubes")
    with h5py.File(tmp_path / "a.h5") as file:
        assert {"cubes", "e_gev"} <= set(file)
    read = open_shards(tmp_path / "a.h5").read()
    np.testing.assert_array_equal(read.values, samples.values)
    np.testing.assert_allclose(read.conditions["incident_energy"], samples.conditions["incident_energy"], rtol=2e-7)


def test_headers_alone_tell_the_layout(calogan: Path) -> None:
    layout = read_layout(calogan)
    assert (layout.name, layout.length, layout.conditions[0].factor) == ("calogan", 8, 1e3)
