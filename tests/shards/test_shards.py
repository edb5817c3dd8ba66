"""Shards: what is written comes back, what is damaged is found, what is interrupted leaves nothing."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import resource
import subprocess
import sys
import textwrap
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from support import ROOT

from calogen.errors import ConfigError, ShardError, StorageError
from calogen.families import FAMILIES, CartesianLayer, Condition, Family
from calogen.shards.inspect import describe, verify
from calogen.shards.manifest import read_manifest, write_manifest
from calogen.shards.samples import Samples
from calogen.shards.sources import open_shards, open_splits
from calogen.shards.writer import samples_per_shard, write_shard
from calogen.storage import digest_of

DATA = ROOT / "data" / "calogan-gamma"
SMALL = Family(
    name="small",
    layers=(CartesianLayer(shape=(2, 3), size=(10, 10)), CartesianLayer(shape=(1, 4), size=(10, 10))),
    conditions=(
        Condition(name="incident_energy", unit="MeV", low=1e3, high=1e5, scale="log"),
        Condition(name="angle", unit="rad", low=-1, high=1),
    ),
)


def toy(family: Family, count: int, seed: int = 0, *, unconditional: bool = False) -> Samples:
    """Samples with half of the voxels zero and, for showers, a response of 1."""
    rng = np.random.default_rng(seed)
    values = rng.random((count, *family.sample_shape), np.float32) * rng.integers(0, 2, (count, *family.sample_shape))
    conditions = {c.name: rng.uniform(c.low, c.high, count).astype(np.float32) for c in family.conditions}
    if family.kind == "calorimeter":
        values[:, 0] += 0.1
        values *= (conditions["incident_energy"] / values.sum(axis=1))[:, None]
    return Samples(family, values.astype(np.float32), {} if unconditional else conditions)


def same(one: Samples, two: Samples) -> None:
    np.testing.assert_array_equal(one.values, two.values)
    assert set(one.conditions) == set(two.conditions)
    for name, array in one.conditions.items():
        np.testing.assert_array_equal(array, two.conditions[name])
    for name, array in one.extras.items():
        np.testing.assert_array_equal(array, two.extras[name])


def folder_of(path: Path, samples: Samples, each: int) -> Path:
    records = [
        write_shard(path / f"shard-{k:06d}.h5", samples.read(a, a + each), provenance={"seed": 1}, index_start=a)
        for k, a in enumerate(range(0, len(samples), each))
    ]
    write_manifest(path, records, provenance={"seed": 1})
    return path


# ------------------------------------------------------------------------------------------------ samples


def test_samples_select_and_concatenate_are_inverse() -> None:
    samples = toy(SMALL, 20)
    same(Samples.concatenate([samples.select(slice(0, 7)), samples.select(np.arange(7, 20))]), samples)
    same(Samples.concatenate(list(samples.chunks(6))), samples)
    same(Samples.concatenate(list(samples.chunks(6, 3, 11))), samples.read(3, 11))
    mask = samples.conditions["angle"] > 0
    assert len(samples.select(mask)) == mask.sum()


@pytest.mark.parametrize(
    ("values", "conditions"), [(np.ones((3, 9)), {}), (np.ones(10), {}), (np.ones((3, 10)), {"angle": np.ones(2)})]
)
def test_samples_of_a_wrong_shape(values: np.ndarray, conditions: dict[str, np.ndarray]) -> None:
    with pytest.raises(ShardError):
        Samples(SMALL, values, conditions)


def test_different_samples_do_not_concatenate() -> None:
    with pytest.raises(ShardError, match="different families"):
        Samples.concatenate([toy(SMALL, 2), toy(FAMILIES["calogan"], 2)])
    with pytest.raises(ShardError, match="no samples"):
        Samples.concatenate([])


# ------------------------------------------------------------------------------------------------ there and back


@pytest.mark.parametrize("family", [*FAMILIES.values(), SMALL], ids=lambda family: family.name)
def test_what_is_written_comes_back(tmp_path: Path, family: Family) -> None:
    count = 3 if family.voxels > 10_000 else 1500  # more than one chunk, the last not full
    samples = toy(family, count)
    record = write_shard(tmp_path / "a.h5", samples, provenance={"seed": 3, "engine": "toy"}, index_start=1024)
    shards = open_shards(tmp_path / "a.h5")
    assert (shards.family, shards.kind, len(shards)) == (family, "reference", count)
    assert shards.provenance == ({"seed": 3, "engine": "toy"},)
    same(shards.read(), samples)
    same(shards.read(2, 3), samples.read(2, 3))
    same(Samples.concatenate(list(shards.chunks(999))), samples)
    assert record.sha256 == hashlib.sha256((tmp_path / "a.h5").read_bytes()).hexdigest()
    assert (record.bytes, record.samples) == ((tmp_path / "a.h5").stat().st_size, count)
    assert [path.name for path in tmp_path.iterdir()] == ["a.h5"]


def test_plain_h5py_reads_a_shard(tmp_path: Path) -> None:
    samples = toy(SMALL, 1500)
    write_shard(tmp_path / "a.h5", samples, provenance={}, index_start=5)
    with h5py.File(tmp_path / "a.h5") as file:
        assert (file["showers"].compression, file["showers"].shuffle) == ("gzip", False)
        assert (file["showers"].chunks, file["showers"].dtype) == ((1024, 10), np.float32)
        np.testing.assert_array_equal(file["showers"][:], samples.values)
        np.testing.assert_array_equal(file["incident_energies"][:, 0], samples.conditions["incident_energy"])
        np.testing.assert_array_equal(file["conditions/angle"][:], samples.conditions["angle"])
        assert list(file.attrs["condition_names"]) == ["incident_energy", "angle"]
        assert list(file.attrs["condition_units"]) == ["MeV", "rad"]
        assert Family.model_validate_json(file.attrs["family"]) == SMALL
        assert (file.attrs["calogen_schema"], file.attrs["kind"], file.attrs["index_start"]) == (1, "reference", 5)


def test_the_same_samples_give_the_same_bytes(tmp_path: Path) -> None:
    records = [write_shard(tmp_path / name, toy(SMALL, 2000), provenance={"b": 1, "a": 2}) for name in ("a.h5", "b.h5")]
    assert records[0].sha256 == records[1].sha256


@pytest.mark.parametrize("family", [FAMILIES["calogan"], FAMILIES["nbody-64"]], ids=lambda family: family.name)
def test_unconditional_samples(tmp_path: Path, family: Family) -> None:
    samples = toy(family, 5, unconditional=True)
    write_shard(tmp_path / "a.h5", samples, provenance={})
    shards = open_shards(tmp_path / "a.h5")
    assert shards.condition_names == ()
    same(shards.read(), samples)


def test_extras_are_carried_along(tmp_path: Path) -> None:
    plain = toy(SMALL, 9)
    extras = {"realisation_id": np.arange(9, dtype=np.int32)}
    write_shard(tmp_path / "a.h5", Samples(SMALL, plain.values, plain.conditions, extras, "generated"), provenance={})
    shards = open_shards(tmp_path / "a.h5")
    assert shards.kind == "generated"
    read = shards.read(2, 5)
    np.testing.assert_array_equal(read.extras["realisation_id"], [2, 3, 4])
    assert read.extras["realisation_id"].dtype == np.int32
    with pytest.raises(ShardError, match="cannot hold these extras"):
        write_shard(tmp_path / "b.h5", Samples(SMALL, plain.values, extras={"colour": np.ones(9)}), provenance={})


def test_calogan_layout(tmp_path: Path) -> None:
    samples = toy(FAMILIES["calogan"], 40)
    write_shard(tmp_path / "a.h5", samples, provenance={"seed": 1}, layout="calogan")
    with h5py.File(tmp_path / "a.h5") as file:
        assert file["layer_0"].shape == (40, 3, 96)
        assert not file["overflow"][:].any()
        assert file.attrs["overflow"] == "not modelled: zeros"
        np.testing.assert_allclose(file["energy"][:, 0], samples.conditions["incident_energy"] / 1e3, rtol=1e-6)
    read = open_shards(tmp_path / "a.h5").read()
    np.testing.assert_array_equal(read.values, samples.values)
    np.testing.assert_allclose(read.conditions["incident_energy"], samples.conditions["incident_energy"], rtol=2e-7)


NO_LAYER_0 = Family(
    name="mine",
    layers=(CartesianLayer(shape=(2, 3), size=(10, 10), index=5),),
    conditions=FAMILIES["calogan"].conditions,
)


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        (toy(FAMILIES["1-photons"], 2), "rectangular cells"),
        (toy(FAMILIES["nbody-64"], 2), "rectangular cells"),
        (toy(NO_LAYER_0, 2), "layers 0, 1, ..."),
        (toy(FAMILIES["calogan"], 2, unconditional=True), "needs incident energies"),
        (toy(FAMILIES["calogan"], 2).read(0, 0), "at least one sample"),
    ],
)
def test_what_calogan_layout_cannot_hold(tmp_path: Path, samples: Samples, message: str) -> None:
    with pytest.raises((ConfigError, ShardError), match=message):
        write_shard(tmp_path / "a.h5", samples, provenance={}, layout="calogan")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_shards_hold_whole_blocks_within_the_limit(family: Family) -> None:
    count = samples_per_shard(family)
    assert count % 1024 == 0
    assert count == 1024 or count * family.voxels * 4 <= 128 << 20 < (count + 1024) * family.voxels * 4


# ------------------------------------------------------------------------------------------------ many files


def test_many_files_read_as_one(tmp_path: Path) -> None:
    samples = toy(SMALL, 800)
    folder = folder_of(tmp_path / "x", samples, 10)
    shards = open_shards(folder)
    assert (len(shards), len(shards.files)) == (800, 80)
    same(shards.read(), samples)
    same(shards.read(295, 322), samples.read(295, 322))
    assert len(shards.read(7, 7)) == len(shards.read(9999)) == 0
    same(open_shards(str(folder / "shard-00000[0-4].h5")).read(), samples.read(0, 50))
    same(open_shards(f"{folder}/*").read(), samples)
    same(open_shards([folder / "shard-000001.h5", folder / "shard-000000.h5"]).read(0, 10), samples.read(10, 20))
    open_now = [str(link.resolve()) for link in Path("/proc/self/fd").iterdir()]
    assert not [name for name in open_now if name.startswith(str(tmp_path))]


def test_reading_takes_constant_memory(tmp_path: Path) -> None:
    samples = toy(FAMILIES["calogan"], 6000)
    write_shard(tmp_path / "a.h5", samples, provenance={})
    shards = open_shards(tmp_path / "a.h5")
    tracemalloc.start()
    count = sum(len(chunk) for chunk in shards.chunks(500))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 6000
    assert peak < 5 * 500 * 504 * 4 + (2 << 20)  # of 12 MB in the file


def test_large_samples_come_in_smaller_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("calogen.shards.reader.SLAB_BYTES", 4 * 10 * 6)
    samples = toy(SMALL, 20)
    write_shard(tmp_path / "a.h5", samples, provenance={})
    chunks = list(open_shards(tmp_path / "a.h5").chunks(100))
    assert [len(chunk) for chunk in chunks] == [6, 6, 6, 2]
    same(open_shards(tmp_path / "a.h5").read(), samples)


def test_digest_is_of_content_and_not_of_place(tmp_path: Path) -> None:
    one = folder_of(tmp_path / "a", toy(SMALL, 30), 10)
    two = folder_of(tmp_path / "b", toy(SMALL, 30), 10)
    other = folder_of(tmp_path / "c", toy(SMALL, 30, seed=1), 10)
    digest = open_shards(one).digest()
    assert digest == open_shards(two).digest() != open_shards(other).digest()
    (two / "manifest.json").unlink()
    assert digest == open_shards(two).digest()
    train, validation = open_splits(one)
    assert len({digest, train.digest(), validation.digest()}) == 3


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (toy(FAMILIES["calogan"], 3), "different family"),
        (toy(SMALL, 3, unconditional=True), "different conditions"),
        (Samples(SMALL, toy(SMALL, 3).values, toy(SMALL, 3).conditions, kind="generated"), "different kind"),
    ],
)
def test_files_that_do_not_belong_together(tmp_path: Path, other: Samples, message: str) -> None:
    write_shard(tmp_path / "a.h5", toy(SMALL, 3), provenance={})
    write_shard(tmp_path / "b.h5", other, provenance={})
    with pytest.raises(ShardError, match=message) as caught:
        open_shards(tmp_path)
    assert "b.h5" in str(caught.value.where)


SOURCES = {
    "missing file": ("none.h5", None, "does not exist"),
    "missing folder": ("none", None, "no such file or folder"),
    "glob": ("*.hdf5", None, "no file matches"),
    "empty folder": ("empty", None, "no data files"),
    "split missing": ("empty", "train", "no split 'train'"),
    "file has no split": ("a.h5", "train", "a file has no split"),
    "splits unnamed": ("splits", None, "several splits"),
    "twice": (["a.h5", "a.h5"], None, "named twice"),
    "nothing": ([], None, "no data is named"),
}


@pytest.mark.parametrize(("source", "split", "message"), SOURCES.values(), ids=SOURCES)
def test_sources_that_are_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str | list[str], split: str | None, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "splits" / "train").mkdir(parents=True)
    write_shard(tmp_path / "a.h5", toy(SMALL, 3), provenance={})
    with pytest.raises(ShardError, match=message):
        open_shards(source, split=split)


# ------------------------------------------------------------------------------------------------ splits


def test_split_folders_are_used_and_test_is_never_read(tmp_path: Path) -> None:
    samples = toy(SMALL, 30)
    folder_of(tmp_path / "train", samples.read(0, 20), 10)
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "shard-000000.h5").write_text("not to be opened")
    train, validation = open_splits(tmp_path)
    assert (len(train), len(validation)) == (18, 2)
    folder_of(tmp_path / "validation", samples.read(20, 30), 10)
    train, validation = open_splits(tmp_path)
    same(train.read(), samples.read(0, 20))
    same(validation.read(), samples.read(20, 30))
    same(open_shards(tmp_path, split="validation").read(), samples.read(20, 30))


def test_a_fair_tenth_of_unsplit_data_validates(tmp_path: Path) -> None:
    samples = toy(SMALL, 105)
    folder = folder_of(tmp_path / "x", samples, 40)
    train, validation = open_splits(folder)
    assert (len(train), len(validation)) == (95, 10)
    energies = samples.conditions["incident_energy"]
    chosen = np.isin(energies, validation.read().conditions["incident_energy"])
    same(train.read(), samples.select(~chosen))
    same(validation.read(), samples.select(chosen))
    ranks = np.sort(np.argsort(np.argsort(energies))[chosen])
    assert (ranks // 10).tolist() == list(range(10))  # one of every ten that follow each other
    train, validation = open_splits(folder, rule="last")  # of runs that were begun before
    same(train.read(), samples.read(0, 95))
    same(validation.read(), samples.read(95))
    write_shard(tmp_path / "one.h5", samples.read(0, 1), provenance={})
    with pytest.raises(ShardError, match="one sample"):
        open_splits(tmp_path / "one.h5")


@pytest.mark.parametrize("mixed", [False, True])
def test_a_realisation_is_never_on_both_sides(tmp_path: Path, mixed: bool) -> None:
    family = FAMILIES["nbody-64"]
    samples = toy(family, 60)
    ids = np.repeat(np.array([9, 4, 2, 7, 1]), 12)
    if mixed:
        ids = np.random.default_rng(0).permutation(ids)
    samples = Samples(family, samples.values, samples.conditions, {"realisation_id": ids})
    train, validation = open_splits(folder_of(tmp_path / "x", samples, 25))
    sides = [shards.read().extras["realisation_id"] for shards in (train, validation)]
    assert not set(sides[0]) & set(sides[1])
    assert (len(sides[0]), len(sides[1])) == (48, 12)
    same(train.read(), samples.select(np.isin(ids, sides[0])))
    same(train.read(10, 40), samples.select(np.isin(ids, sides[0])).read(10, 40))


def test_maps_of_one_realisation_cannot_be_split(tmp_path: Path) -> None:
    samples = toy(FAMILIES["nbody-64"], 6)
    write_shard(
        tmp_path / "a.h5",
        Samples(samples.family, samples.values, samples.conditions, {"realisation_id": np.zeros(6, int)}),
        provenance={},
    )
    with pytest.raises(ShardError, match="one realisation"):
        open_splits(tmp_path / "a.h5")


# ------------------------------------------------------------------------------------------------ bad rows


def _voxel(value: float) -> Callable[[h5py.File], None]:
    def spoil(file: h5py.File) -> None:
        for row in (13, 21):
            file["showers"][row, 4] = value

    return spoil


def _energy(value: float) -> Callable[[h5py.File], None]:
    def spoil(file: h5py.File) -> None:
        for row in (13, 21):
            file["incident_energies"][row] = value

    return spoil


def _angle(file: h5py.File) -> None:
    file["conditions/angle"][[13, 21]] = np.nan


BAD = {
    "NaN voxel": (_voxel(np.nan), "showers", "nan"),
    "infinite voxel": (_voxel(np.inf), "showers", "inf"),
    "minus infinite voxel": (_voxel(-np.inf), "showers", "-inf"),
    "negative voxel": (_voxel(-0.5), "showers", "-0.5"),
    "NaN energy": (_energy(np.nan), "incident_energies", "nan"),
    "no energy": (_energy(0), "incident_energies", "0.0"),
    "negative energy": (_energy(-5), "incident_energies", "-5.0"),
    "NaN angle": (_angle, "conditions/angle", "nan"),
}


@pytest.mark.parametrize(("spoil", "dataset", "found"), BAD.values(), ids=BAD)
def test_bad_rows(tmp_path: Path, spoil: Callable[[h5py.File], None], dataset: str, found: str) -> None:
    samples = toy(SMALL, 40)
    folder = folder_of(tmp_path / "x", samples, 40)
    (folder / "manifest.json").unlink()
    with h5py.File(folder / "shard-000000.h5", "r+") as file:
        spoil(file)
    same(open_shards(folder).read(22), samples.read(22))  # rows not asked for do no harm
    with pytest.raises(ShardError, match="2 bad rows of 40") as caught:
        list(open_shards(folder).chunks(8))
    assert str(caught.value.where) == f"{folder / 'shard-000000.h5'}, dataset {dataset}, row 13"
    assert str(caught.value.found) == found
    shards = open_shards(folder, drop_bad=True)
    for _ in range(2):  # a second epoch does not count them again
        same(shards.read(), samples.select(np.delete(np.arange(40), [13, 21])))
        assert shards.dropped == 2
    described = describe(folder)
    assert described["bad_rows"] == 2
    assert "row 13" in described["problems"][0]
    json.dumps(described, allow_nan=False)
    assert any("row 13" in problem for problem in verify(folder))


def test_bad_layer_of_a_calogan_file_is_named(tmp_path: Path) -> None:
    samples = toy(FAMILIES["calogan"], 40)
    samples.values[33, 500] = np.nan
    write_shard(tmp_path / "a.h5", samples, provenance={}, layout="calogan")
    with pytest.raises(ShardError, match="dataset layer_2, row 33"):
        open_shards(tmp_path / "a.h5").read()


def test_numbers_too_large_for_single_precision_are_bad(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["showers"] = np.full((3, 368), 1.0)
        file["incident_energies"] = np.full((3, 1), 512.0)
        file["showers"][1, 0] = 1e300
    with pytest.raises(ShardError, match="1 bad row of 3"):
        open_shards(tmp_path / "a.h5").read()


def test_a_generated_shard_may_be_far_off(tmp_path: Path) -> None:
    reference = toy(FAMILIES["calogan"], 64)
    for kind, factor, fails in (("generated", 2, False), ("reference", 2, True), ("generated", 1000, True)):
        samples = Samples(reference.family, reference.values * factor, reference.conditions, kind=kind)
        write_shard(tmp_path / "a.h5", samples, provenance={})
        if fails:
            with pytest.raises(ShardError, match="not in the same units"):
                open_shards(tmp_path / "a.h5").read()
        else:
            open_shards(tmp_path / "a.h5").read()


# ------------------------------------------------------------------------------------------------ damage


def _spoil_byte(folder: Path) -> None:
    with (folder / "shard-000001.h5").open("r+b") as stream:
        stream.seek(-3000, os.SEEK_END)
        byte = stream.read(1)
        stream.seek(-1, os.SEEK_CUR)
        stream.write(bytes([byte[0] ^ 255]))


def _truncate(folder: Path) -> None:
    os.truncate(folder / "shard-000001.h5", (folder / "shard-000001.h5").stat().st_size - 100)


def _manifest(change: Callable[[dict], object]) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        table = json.loads((folder / "manifest.json").read_text())
        change(table)
        table["sha256"] = digest_of(table, ("sha256",))
        (folder / "manifest.json").write_text(json.dumps(table))

    return spoil


def _more_samples(folder: Path) -> None:
    path = folder / "manifest.json"
    path.write_text(path.read_text().replace('"samples": 30', '"samples": 31'))


DAMAGE = {
    "a byte": (_spoil_byte, "SHA-256 is not the manifest's", "SHA-256"),
    "manifest changed": (
        lambda f: (f / "manifest.json").write_text(
            (f / "manifest.json").read_text().replace('"samples": 30', '"samples": 31')
        ),
        "its digest is another",
        "its digest is another",
    ),
    "truncated": (_truncate, "length is not", "length is not"),
    "missing file": (
        lambda f: (f / "shard-000001.h5").unlink(),
        "missing: shard-000001.h5",
        "missing: shard-000001.h5",
    ),
    "surplus file": (lambda f: (f / "x.h5").write_bytes(b"x"), "not in the manifest: x.h5", "not HDF5"),
    "unfinished": (lambda f: (f / "shard-000003.h5.part").write_bytes(b""), None, "never finished"),
    "no manifest": (lambda f: (f / "manifest.json").unlink(), None, "no manifest"),
    "manifest text": (lambda f: (f / "manifest.json").write_text("{"), "manifest is damaged", "manifest is damaged"),
    "newer manifest": (_manifest(lambda t: t.update(calogen_schema=2)), "newer calogen", "newer calogen"),
    "samples": (_manifest(lambda t: t["shards"][0].update(samples=11)), "as many as the manifest", "as many as"),
    "hash": (_manifest(lambda t: t["shards"][0].update(sha256="0")), "SHA-256 is not the manifest's", "SHA-256"),
    "gap": (_manifest(lambda t: t["shards"][2].update(index_start=25)), None, "5 samples are missing"),
    "overlap": (_manifest(lambda t: t["shards"][2].update(index_start=15)), None, "5 samples are there twice"),
    "outside": (_manifest(lambda t: t["shards"][0].update(name="../x.h5")), "damaged", "damaged"),
    "twice": (_manifest(lambda t: t["shards"].append(t["shards"][0])), "twice", "twice"),
}


@pytest.mark.parametrize(("spoil", "opening", "verifying"), DAMAGE.values(), ids=DAMAGE)
def test_damaged_folders(tmp_path: Path, spoil: Callable[[Path], None], opening: str | None, verifying: str) -> None:
    folder = folder_of(tmp_path / "x", toy(SMALL, 30), 10)
    assert verify(folder) == []
    spoil(folder)
    if opening:
        with pytest.raises(ShardError, match=opening):
            open_shards(folder)
        assert any(opening in problem for problem in describe(folder)["problems"])
    else:
        open_shards(folder)
    assert any(verifying in problem for problem in verify(folder))


def test_a_damaged_chunk_is_found_while_reading(tmp_path: Path) -> None:
    write_shard(tmp_path / "a.h5", toy(SMALL, 3000), provenance={})
    with h5py.File(tmp_path / "a.h5") as file:
        place = file["showers"].id.get_chunk_info(1).byte_offset
    with (tmp_path / "a.h5").open("r+b") as stream:
        stream.seek(place + 200)
        stream.write(bytes(300))
    shards = open_shards(tmp_path / "a.h5")
    assert len(shards.read(0, 1024)) == 1024
    with pytest.raises(ShardError, match="rows 1000 to 1999"):
        list(shards.chunks(1000))
    assert "rows cannot be read" in verify(tmp_path / "a.h5")[0]
    assert "rows cannot be read" in describe(tmp_path / "a.h5")["problems"][0]


def test_describe_reports_damage_and_the_rest(tmp_path: Path) -> None:
    folder_of(tmp_path / "x", toy(SMALL, 30), 10)
    (tmp_path / "x" / "shard-000001.h5").write_bytes(b"")
    described = describe(tmp_path / "x")
    assert described["samples"] == 20
    assert len(described["problems"]) == 1
    (tmp_path / "bad.h5").write_bytes(b"PK")
    described = describe(tmp_path / "bad.h5")
    assert "not HDF5" in described["problems"][0]
    for inspect in (describe, verify):
        with pytest.raises(ShardError, match="does not exist"):
            inspect(tmp_path / "none.h5")


# ------------------------------------------------------------------------------------------------ storage


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EDQUOT, errno.EFBIG])
def test_a_refused_write_says_what_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def refuse(descriptor: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("calogen.storage.os.fsync", refuse)
    path = tmp_path / "new" / "a.h5"
    with pytest.raises(StorageError, match=os.strerror(code)) as caught:
        write_shard(path, toy(SMALL, 30), provenance={})
    assert caught.value.exit_code == 74
    assert str(path) in str(caught.value)
    assert "bytes" in str(caught.value.expected)
    assert not list(path.parent.iterdir())


def test_an_interrupted_write_leaves_the_former_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.h5"
    write_shard(path, toy(SMALL, 30), provenance={})
    before = path.read_bytes()

    def interrupt(self: Path, target: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_shard(path, toy(SMALL, 50), provenance={})
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["a.h5"]


def test_a_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("")
    with pytest.raises(StorageError):
        write_shard(tmp_path / "x" / "a.h5", toy(SMALL, 3), provenance={})


def test_a_file_size_limit_is_an_error_and_not_the_end_of_the_process(tmp_path: Path) -> None:
    script = f"""
        import resource, sys
        from pathlib import Path
        import numpy as np
        from calogen.errors import StorageError
        from calogen.families import FAMILIES
        from calogen.shards.samples import Samples
        from calogen.shards.writer import write_shard
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
        values = np.random.default_rng(0).random((100, 504), np.float32)
        try:
            write_shard(Path({str(tmp_path)!r}) / "a.h5", Samples(FAMILIES["calogan"], values), provenance={{}})
        except StorageError as error:
            sys.exit(error.exit_code)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (74, "")
    assert not list(tmp_path.iterdir())
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 20_000


# ------------------------------------------------------------------------------------------------ manifests and data


def test_manifests_of_parts_are_merged(tmp_path: Path) -> None:
    samples = toy(SMALL, 40)
    for part in (1, 0):  # written in any order
        records = []
        for k in (2 * part, 2 * part + 1):
            piece = samples.read(10 * k, 10 * k + 10)
            records.append(write_shard(tmp_path / f"s-{3 - k}.h5", piece, provenance={}, index_start=10 * k))
        write_manifest(tmp_path, records, provenance={"part": part}, name=f"manifest-{part + 1}-of-2.json")
    manifest = read_manifest(tmp_path)
    assert manifest is not None
    assert (manifest.samples, [record.index_start for record in manifest.records]) == (40, [0, 10, 20, 30])
    assert manifest.provenance == ({"part": 0}, {"part": 1})
    same(open_shards(tmp_path).read(), samples)  # in the order of the index, not of the names
    assert verify(tmp_path) == []
    assert read_manifest(tmp_path / "none") is None


def test_shipped_photons_are_whole_and_as_their_page_says() -> None:
    assert verify(DATA) == []
    described = describe(DATA)
    assert (described["family"], described["kind"], described["samples"]) == ("calogan", "reference", 19_000)
    assert described["splits"] == {"train": 12_500, "validation": 1_500, "test": 5_000}
    assert described["values"]["zero_fraction"] == pytest.approx(0.52, abs=0.005)
    assert described["response"] == pytest.approx(0.996, abs=0.0005)
    energies = described["conditions"]["incident_energy"]
    assert energies["unit"] == "MeV"
    assert 1e3 <= energies["low"] < 1.1e3
    assert 99e3 < energies["high"] <= 100e3
    assert {entry["photonuclear"] for entry in described["provenance"]} == {"off"}
    assert not described["problems"]
    json.dumps(described, allow_nan=False)
    assert max(path.stat().st_size for path in DATA.rglob("*.h5")) < 20e6


def test_splits_of_the_shipped_photons_share_no_seed() -> None:
    seeds = [
        {seed for entry in open_shards(DATA, split=name).provenance for seed in entry["seeds"]}
        for name in ("train", "validation", "test")
    ]
    assert [len(some) for some in seeds] == [25, 3, 1]
    assert len(set.union(*seeds)) == 29


def test_reading_needs_no_torch() -> None:
    script = "import sys, calogen.shards; print('torch' in sys.modules, 'matplotlib' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


def test_files_from_before_layers_had_depths_are_read_with_newer_ones(tmp_path: Path) -> None:
    known, other = SMALL.with_depths([(0, 4), (4, 9)]), SMALL.with_depths([(0, 5), (5, 9)])
    for name, family in (("old", SMALL), ("new", known), ("other", other)):
        write_shard(tmp_path / f"{name}.h5", toy(family, 5), provenance={})
    old, new, third = (tmp_path / f"{name}.h5" for name in ("old", "new", "other"))
    assert open_shards(old).family.depths == ()
    for pair in ((old, new), (new, old)):
        assert open_shards(pair).family == known
        assert len(open_shards(pair)) == 10
    assert open_shards(new, family=SMALL).family == open_shards(old, family=known).family == known
    for several in ((new, third), (old, new, third)):
        with pytest.raises(ShardError, match="files of different family"):
            open_shards(several)
    with pytest.raises(ShardError, match="another family than asked for"):
        open_shards(third, family=known)


def test_a_family_that_is_named_takes_ranges_impact_and_angle_from_the_file(tmp_path: Path) -> None:
    named = SMALL.model_copy(update={"conditions": SMALL.conditions[:1], "symmetries": ("mirror-x", "mirror-y")})
    energy = named.conditions[0].model_copy(update={"low": 2e3, "high": 9e3})
    impact = Condition(name="impact_x", unit="mm", low=-3, high=4)
    varied = SMALL.model_copy(update={"conditions": (energy, impact), "symmetries": ("mirror-y",)})
    write_shard(tmp_path / "varied.h5", toy(varied, 6), provenance={})
    read = open_shards(tmp_path / "varied.h5", family=named).family
    assert (read.conditions, read.symmetries) == ((energy, impact), ("mirror-y",))
    straight = named.model_copy(update={"conditions": (energy,), "symmetries": ()})  # a table without symmetries
    write_shard(tmp_path / "straight.h5", toy(straight, 6), provenance={})
    read = open_shards(tmp_path / "straight.h5", family=named).family
    assert (read.conditions, read.symmetries) == ((energy,), ("mirror-x", "mirror-y"))


def test_ranges_of_files_read_as_one_hold_those_of_each(tmp_path: Path) -> None:
    for name, ends in (("low", (1e3, 1e4)), ("high", (5e3, 1e5))):
        energy = SMALL.conditions[0].model_copy(update={"low": ends[0], "high": ends[1]})
        write_shard(tmp_path / f"{name}.h5", toy(SMALL.with_condition(energy), 6), provenance={})
    both = open_shards((tmp_path / "low.h5", tmp_path / "high.h5")).family
    assert both == SMALL
