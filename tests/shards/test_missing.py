"""Samples that are missing are said; what changes while it is read is refused; manifests can be made again."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from calogen.analysis import compare
from support import MAPS, SMALL, Counted, command, tiny, toy, write_folder

from calogen.errors import ConfigError, ShardError
from calogen.production.parts import Part
from calogen.production.plan import Production
from calogen.production.rebuild import rebuild
from calogen.production.requests import Request
from calogen.production.run import produce
from calogen.shards.inspect import describe, verify
from calogen.shards.manifest import Manifest, missing, read_part, write_manifest
from calogen.shards.sources import open_shards
from calogen.training.loop import train


@pytest.fixture
def parts(tmp_path: Path) -> Path:
    """Parts 1 and 3 of 3."""
    for index in (1, 3):
        produce(Production(Counted(), 6000, 1024, Part(index, 3)), tmp_path / "parts")
    return tmp_path / "parts"


@pytest.fixture
def gap(tmp_path: Path) -> Path:
    """Three shards of which the second is gone, with and without a manifest."""
    folder = write_folder(tmp_path / "gap", toy(SMALL, 90), 30)
    records = read_part(folder / "manifest.json").records
    (folder / "shard-000001.h5").unlink()
    write_manifest(folder, [records[0], records[2]], provenance={"toy": 1})
    return folder


def test_missing_parts_and_unfinished_ones_are_said(parts: Path) -> None:
    shards = open_shards(parts)
    assert shards.missing[0] == f"{parts}: 1 of 3 parts have not begun: 2"
    assert "1024 samples are missing between" in shards.missing[1] or "2048 samples are missing" in shards.missing[1]
    assert set(shards.missing) <= set(describe(parts)["notes"])
    assert set(shards.missing) <= set(verify(parts))
    with pytest.raises(ShardError, match="samples are missing"):
        open_shards(parts, strict=True)
    assert open_shards(parts).read(0, 10).values.shape == (10, 8)


def test_parts_that_are_missing_are_named_in_ranges() -> None:
    begun = Manifest((), (), None)
    folder = Path("parts")
    some = {folder / f"manifest-{i}-of-100.json": begun for i in (1, 3, 4, 10)}
    assert missing(folder, some) == [f"{folder}: 96 of 100 parts have not begun: 2, 5-9, 11-100"]
    odd = {folder / f"manifest-{i}-of-100.json": begun for i in range(1, 100, 2)}
    assert missing(folder, odd)[0].endswith("50 of 100 parts have not begun: 2, 4, 6, 8, 10, 12, ...")


@pytest.mark.parametrize("listed", [True, False])
def test_gaps_are_said_everywhere_and_refused_where_asked(listed: bool, gap: Path, tmp_path: Path) -> None:
    if not listed:
        (gap / "manifest.json").unlink()
    line = f"{gap}: 30 samples are missing between shard-000000.h5 and shard-000002.h5"
    assert open_shards(gap).missing == (line,)
    assert open_shards(str(gap / "*.h5")).missing == (line,)
    whole = write_folder(tmp_path / "whole", toy(SMALL, 60, seed=1))
    assert f"generated: {line}." in compare(whole, {"generated": gap}, bins=0).notes
    assert Request.like(open_shards(gap), ["angle"]).describe()["notes"] == [line]
    config = tiny(training={"steps": 0, "validation_size": 16})
    run = train(config, gap, tmp_path / "run")
    assert json.loads((run.folder / "run.json").read_text())["notes"] == [line]
    assert [record["note"] for record in run.records if "note" in record] == [line]
    for words in (
        ["info", gap],
        ["compare", whole, gap, "--out", tmp_path / "report"],
        ["train", "--data", gap, "--out", tmp_path / "new"],
        ["generate", tmp_path / "run", "--like", gap, "--out", tmp_path / "new"],
    ):
        done = command(*words, "--strict")
        assert done.code == 2, words
        assert "samples are missing" in done.err
        assert "30 samples are missing" in done.err
    assert line in command("info", gap).out
    done = command("generate", tmp_path / "run", "--like", gap, "--out", tmp_path / "new")
    assert (done.code, f"note: {line}" in done.err) == (0, True)


def test_files_that_nobody_numbered_have_no_gaps(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        path = write_folder(tmp_path / name, toy(SMALL, 30)) / "shard-000000.h5"
        path.rename(tmp_path / f"{name}.h5")
    assert open_shards(str(tmp_path / "*.h5"), strict=True).missing == ()


@pytest.mark.parametrize("how", ["replaced", "written again"])
def test_a_file_that_changes_while_it_is_read_is_refused(how: str, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "a", toy(SMALL, 60))
    other = write_folder(tmp_path / "b", toy(SMALL, 60, seed=1)) / "shard-000000.h5"
    path, shards = folder / "shard-000000.h5", open_shards(folder)
    chunks = shards.chunks(20)
    next(chunks)
    size = path.stat().st_size
    content = other.read_bytes()[:size].ljust(size, b"\0")
    if how == "replaced":
        (tmp_path / "new").write_bytes(content)
        (tmp_path / "new").replace(path)
    else:
        path.write_bytes(content)
    for use in (lambda: next(chunks), shards.read):
        with pytest.raises(ShardError, match="changed while it was in use"):
            use()


def test_parameters_that_change_while_their_maps_are_read_are_refused(tmp_path: Path) -> None:
    maps = toy(MAPS, 12)
    np.save(tmp_path / "maps.npy", maps.values)
    np.savetxt(tmp_path / "params.txt", np.stack(list(maps.conditions.values()), 1))
    shards = open_shards(tmp_path / "maps.npy", family=MAPS)
    np.savetxt(tmp_path / "params.txt", np.stack(list(maps.conditions.values()), 1)[::-1])
    with pytest.raises(ShardError, match="changed while it was in use"):
        shards.read()
    with pytest.raises(ShardError, match="changed while it was in use"):
        shards.origins()


# ------------------------------------------------------------------------------------------------------ made again


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_text("{"), lambda path: os.truncate(path, 99)])
@pytest.mark.parametrize("count", [1, 3])
def test_a_lost_or_damaged_manifest_is_made_again_and_production_goes_on(damage, count: int, tmp_path: Path) -> None:
    plans = [Production(Counted(), 5000, 1024, Part(index + 1, count)) for index in range(count)]
    for plan in plans:
        produce(plan, tmp_path)
    name = sorted(tmp_path.glob("manifest*.json"))[0]
    before, times = read_part(name), {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.h5")}
    damage(name)
    if not name.exists() and count == 1:
        with pytest.raises(ConfigError, match="rebuild=True"):
            produce(plans[0], tmp_path)
    else:
        with pytest.raises(ShardError, match=r"rebuild=True|manifest and the folder disagree"):
            open_shards(tmp_path)
    done = command("verify", tmp_path, "--rebuild")
    assert done.code == 0, done.err
    assert read_part(name) == before
    for plan in plans:
        produce(plan, tmp_path)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.h5")} == times
    assert verify(tmp_path) == []


def test_an_unfinished_production_goes_on_from_a_manifest_made_again(tmp_path: Path) -> None:
    plan = Production(Counted(), 5000, 1024)
    produce(plan, tmp_path / "whole")
    produce(plan, tmp_path / "half")
    for name in ("manifest.json", "shard-000003.h5", "shard-000004.h5"):
        (tmp_path / "half" / name).unlink()
    assert rebuild(tmp_path / "half") == [tmp_path / "half" / "manifest.json"]
    assert "1928 of 5000 samples are still to be made" in verify(tmp_path / "half")[0]
    produce(plan, tmp_path / "half")
    mine, theirs = (open_shards(tmp_path / name).read().values for name in ("half", "whole"))
    np.testing.assert_array_equal(mine, theirs)


def test_no_manifest_is_made_of_shards_that_are_damaged_or_of_different_origins(tmp_path: Path) -> None:
    plan = Production(Counted(), 3000, 1024)
    folder = produce(plan, tmp_path / "a")
    shard, content = folder / "shard-000001.h5", (folder / "shard-000001.h5").read_bytes()
    other = produce(Production(Counted(seed=1), 3000, 1024), tmp_path / "b") / shard.name
    shutil.copy(other, shard)
    with pytest.raises(ShardError, match="not those of their manifest"):  # which can be read, and is right
        rebuild(folder)
    (folder / "manifest.json").unlink()
    with pytest.raises(ShardError, match="of different origins"):
        rebuild(folder)
    shard.write_bytes(content[:-100])
    with pytest.raises(ShardError, match="not whole"):
        rebuild(folder)
    shard.write_bytes(content)
    (folder / "shard-000000.h5").rename(folder / "shard-000007.h5")
    with pytest.raises(ShardError, match="not one of its production"):
        rebuild(folder)
    assert not (folder / "manifest.json").exists()


def test_a_manifest_without_a_digest_is_read_and_gets_one_where_asked(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "a", toy(SMALL, 30))
    path, before = folder / "manifest.json", (folder / "manifest.json").read_text()
    old = {key: value for key, value in json.loads(before).items() if key != "sha256"}
    path.write_text(json.dumps(old))
    assert len(open_shards(folder)) == 30
    path.write_text(json.dumps({**old, "sha25v": "0"}))  # a flipped bit
    with pytest.raises(ShardError, match="its digest is another"):
        open_shards(folder)
    path.write_text(json.dumps(old))
    rebuild(folder)
    assert path.read_text() == before
