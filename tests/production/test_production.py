"""Production: the same samples however the work is cut; only what is missing or damaged is made again."""

from __future__ import annotations

import fcntl
import json
import os
import re
import signal
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from support import COUNTED, PIECE, Counted, command, counted

from calogen import storage
from calogen.cores import usable_cores
from calogen.errors import ConfigError, Interrupted, ProductionError, ShardError
from calogen.production.ledger import check_folder
from calogen.production.maker import Job
from calogen.production.parts import Part
from calogen.production.plan import Production
from calogen.production.run import produce
from calogen.shards.inspect import verify
from calogen.shards.manifest import read_manifest, write_manifest
from calogen.shards.sources import open_shards
from calogen.shards.writer import write_shard

ENERGY = "incident_energy"


def arrays(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    samples = open_shards(folder).read()
    return samples.values, samples.conditions[ENERGY]


def same(folder: Path, total: int, seed: int = 0) -> None:
    """The folder is whole, and holds the first ``total`` samples of the seed."""
    assert verify(folder) == []
    expected = counted(np.arange(total), seed)
    values, energies = arrays(folder)
    np.testing.assert_array_equal(values, expected.values)
    np.testing.assert_array_equal(energies, expected.conditions[ENERGY])
    left = [p.name for p in folder.iterdir() if not re.fullmatch(r"shard.*\.h5|manifest.*\.json", p.name)]
    assert left == []


def inodes(folder: Path) -> dict[str, tuple[int, int]]:
    """Identity and time of every shard: changed only for those that were written again."""
    return {p.name: (p.stat().st_ino, p.stat().st_mtime_ns) for p in sorted(folder.glob("*.h5"))}


def rewritten(before: dict[str, tuple[int, int]], folder: Path) -> list[str]:
    return [name for name, facts in inodes(folder).items() if before.get(name) != facts]


# ---------------------------------------------------------------------------------------------------------- parts


@pytest.mark.parametrize("total", [1, 1023, 1024, 1025, 5000, 10**12])
@pytest.mark.parametrize("count", [1, 2, 3, 7, 1000])
def test_parts_cover_every_index_once_and_begin_at_multiples_of_1024(total: int, count: int) -> None:
    bounds = [Part(i, count).bounds(total) for i in range(1, count + 1)]
    assert (bounds[0][0], bounds[-1][1]) == (0, total)
    for (start, stop), (after, _) in zip(bounds, [*bounds[1:], (total, 0)], strict=True):
        assert start <= stop == after
        assert start % 1024 == 0 or start == total
    sizes = [stop - start for start, stop in bounds]
    assert max(sizes) - min(sizes) <= 2047  # a block, and the rest at the end


def test_part_names_sort_and_the_only_part_adds_nothing() -> None:
    assert Part().suffix == ""
    assert [Part(i, 100).suffix for i in (1, 20, 100)] == ["-001-of-100", "-020-of-100", "-100-of-100"]
    assert Part.parse("3/100") == Part(3, 100)


@pytest.mark.parametrize("text", ["0/3", "4/3", "1/0"])
def test_parts_that_are_not_there_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="there is no such part"):
        Part.parse(text)


@pytest.mark.parametrize("text", ["", "1", "1/", "a/b", "-1/3", "1/3/5", "Auto", "1/9999999999"])
def test_what_is_not_a_part_is_explained(text: str) -> None:
    with pytest.raises(ConfigError, match="`part` is i/n or auto"):
        Part.parse(text)


def array(task: int, first: int, last: int, count: int, step: int | None = None) -> dict[str, str]:
    names = {"ID": task, "MIN": first, "MAX": last, "COUNT": count, **({} if step is None else {"STEP": step})}
    return {f"SLURM_ARRAY_TASK_{name}": str(value) for name, value in names.items()}


def tasks(number: int, count: int) -> dict[str, str]:
    return {"SLURM_PROCID": str(number), "SLURM_NTASKS": str(count)}


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"RANK": "0", "WORLD_SIZE": "4"}, (1, 4)),
        ({"RANK": "3", "WORLD_SIZE": "4"}, (4, 4)),
        (array(0, 0, 9, 10), (1, 10)),
        (array(9, 0, 9, 10, 1), (10, 10)),
        (array(1, 1, 1000, 1000), (1, 1000)),
        (array(1000, 1, 1000, 1000), (1000, 1000)),
        (array(5, 1, 9, 5, 2), (3, 5)),
        (array(9, 0, 10, 4, 3), (4, 4)),
        ({"SLURM_STEP_ID": "0", **tasks(2, 8)}, (3, 8)),
        ({"SLURM_STEP_ID": "0", **tasks(1, 4), **array(2, 1, 3, 3)}, (6, 12)),
        ({**tasks(0, 4), **array(2, 1, 3, 3)}, (2, 3)),  # the batch script itself: srun was not used
        ({"RANK": "1", "WORLD_SIZE": "2", **array(3, 1, 3, 3)}, (6, 6)),
    ],
)
def test_auto_takes_the_part_from_torchrun_srun_or_a_slurm_array(
    environment: dict[str, str], expected: tuple[int, int]
) -> None:
    assert Part.parse("auto", environment) == Part(*expected)


def test_all_tasks_of_srun_in_an_array_are_all_parts() -> None:
    found = {
        Part.parse("auto", {"SLURM_STEP_ID": "0", **tasks(i, 4), **array(t, 2, 6, 3, 2)}).index
        for t in (2, 4, 6)
        for i in range(4)
    }
    assert found == set(range(1, 13))


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({}, "finds neither torchrun nor a Slurm array"),
        (tasks(0, 4), "finds neither"),
        ({"RANK": "1"}, "WORLD_SIZE"),
        ({"RANK": "one", "WORLD_SIZE": "2"}, "RANK"),
        ({"RANK": "2", "WORLD_SIZE": "2"}, "rank is not below"),
        (array(3, 1, 9, 4), "unbroken Slurm array"),  # sbatch --array=1,3,5,9
    ],
)
def test_auto_is_refused_where_it_could_be_wrong(environment: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        Part.parse("auto", environment)
    assert message in str(raised.value)


def test_the_cores_that_may_be_used_are_at_least_one_and_no_more_than_there_are() -> None:
    assert 1 <= usable_cores() <= len(os.sched_getaffinity(0))


# ---------------------------------------------------------------------------------------- the same however it is cut


@pytest.mark.parametrize("shard", [5000, 1024, 1000, 333])
def test_samples_do_not_depend_on_the_size_of_shards(shard: int, tmp_path: Path) -> None:
    out = produce(Production(Counted(), 5000, shard), tmp_path / "a")
    same(out, 5000)
    sizes = [len(h5py.File(path)["showers"]) for path in sorted(out.glob("*.h5"))]
    assert sizes[:-1] == [shard] * (len(sizes) - 1)
    assert sum(sizes) == 5000


def test_samples_do_not_depend_on_workers_and_progress_counts_up_to_the_end(tmp_path: Path) -> None:
    heard: list[tuple[int, int]] = []
    plan = Production(Counted(seed=3), 5000, 700)
    same(produce(plan, tmp_path / "two", workers=2, progress=lambda *now: heard.append(now)), 5000, seed=3)
    assert heard[-1] == (5000, 5000)
    assert all(0 <= done <= total == 5000 for done, total in heard)
    for path in produce(plan, tmp_path / "one").glob("*.h5"):
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()


def test_parts_in_one_folder_are_the_single_run_and_an_empty_part_is_no_error(tmp_path: Path) -> None:
    for index in (2, 5, 1, 3):
        produce(Production(Counted(), 3000, 500, Part(index, 5)), tmp_path)
    assert any("1 of 5 parts have not begun: 4" in line for line in verify(tmp_path))
    produce(Production(Counted(), 3000, 500, Part(4, 5)), tmp_path)
    same(tmp_path, 3000)
    parts = [json.loads((tmp_path / f"manifest-{i}-of-5.json").read_text()) for i in range(1, 6)]
    assert [part["planned"] for part in parts] == [0, 1024, 0, 1024, 952]  # three blocks in five parts
    assert [part["samples"] for part in parts] == [0, 1024, 0, 1024, 952]
    manifest = read_manifest(tmp_path)
    assert manifest is not None
    assert manifest.planned == 3000


def test_chunks_may_be_compressed_by_threads(tmp_path: Path) -> None:
    same(produce(Production(Counted(), 50_000, 30_000, threaded=True), tmp_path, workers=3), 50_000)


def test_rows_appended_in_any_portions_are_the_same_dataset(tmp_path: Path) -> None:
    whole, chunks = counted(np.arange(3000)), set()
    for name, step in (("one", 3000), ("few", 1024), ("odd", 77)):
        with ThreadPoolExecutor(2) as pool:
            path, compress = tmp_path / f"{name}.h5", pool if name == "odd" else None
            record = write_shard(path, whole.chunks(step), provenance={}, count=3000, pool=compress)
        assert (record.samples, record.bytes) == (3000, path.stat().st_size)
        with h5py.File(path) as file:
            np.testing.assert_array_equal(file["showers"], whole.values)
            assert file["showers"].chunks == (1024, 8)
            chunks.add(tuple(file["showers"].id.read_direct_chunk((row, 0))[1] for row in (0, 1024, 2048)))
    assert len(chunks) == 1  # compressed to the same bytes


@pytest.mark.parametrize("how", ["few", "many"])
def test_a_maker_of_another_number_of_samples_is_found_out(how: str, tmp_path: Path) -> None:
    with pytest.raises(ProductionError, match="another number of samples"):
        produce(Production(Counted(bad=1200, how=how), 2000, 1000), tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["manifest.json", "shard-000000.h5"]


# --------------------------------------------------------------------------------------------------------- resuming


def stopped_after(samples: int) -> dict[str, Any]:
    """Arguments of ``produce`` that have it interrupted after so many samples."""
    done = [0]

    def progress(now: int, _total: int) -> None:
        done[0] = now

    return {"progress": progress, "should_stop": lambda: signal.SIGTERM if done[0] >= samples else 0}


def test_an_interrupted_production_goes_on_where_it_was(tmp_path: Path) -> None:
    plan = Production(Counted(), 5000, 1000)
    with pytest.raises(Interrupted, match=r"stopped by signal 15 after 2000 of 5000 samples") as raised:
        produce(plan, tmp_path, **stopped_after(2400))
    assert raised.value.exit_code == 143
    before = inodes(tmp_path)
    assert list(before) == ["shard-000000.h5", "shard-000001.h5"]
    assert verify(tmp_path) == [
        f"{tmp_path / 'manifest.json'}: 3000 of 5000 samples are still to be made (the same command again makes them)"
    ]
    produce(plan, tmp_path)
    same(tmp_path, 5000)
    assert rewritten(before, tmp_path) == ["shard-000002.h5", "shard-000003.h5", "shard-000004.h5"]
    before = inodes(tmp_path)
    produce(plan, tmp_path, workers=2)
    assert rewritten(before, tmp_path) == []


def test_asked_to_stop_during_the_last_samples_a_production_ends_well(tmp_path: Path) -> None:
    produce(Production(Counted(), 1000, 1000), tmp_path, **stopped_after(1000))
    same(tmp_path, 1000)


def test_two_workers_asked_to_stop_leave_nothing_that_the_manifest_does_not_know(tmp_path: Path) -> None:
    plan = Production(Counted(pause=0.004), 6000, 256)
    with pytest.raises(Interrupted):
        produce(plan, tmp_path, workers=2, **stopped_after(1500))
    problems = verify(tmp_path)
    assert "are still to be made" in problems[0]
    assert all("samples are missing between" in line for line in problems[1:])
    before = inodes(tmp_path)
    assert len(before) >= 4
    produce(replace(plan, maker=Counted()), tmp_path)
    same(tmp_path, 6000)
    assert not before.keys() & rewritten(before, tmp_path)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (flip, "the file's SHA-256 is not the manifest's"),
        (lambda path: os.truncate(path, 3000), "the file's length is not the manifest's"),
        (lambda path: path.write_bytes(b""), "the file's length is not the manifest's"),
        (Path.unlink, "missing: shard-000002.h5"),
    ],
    ids=["flipped bit", "truncated", "emptied", "gone"],
)
def test_a_damaged_shard_is_named_and_it_alone_is_made_again(harm: Any, message: str, tmp_path: Path) -> None:
    plan = Production(Counted(), 5000, 1000)
    produce(plan, tmp_path)
    before = inodes(tmp_path)
    harm(tmp_path / "shard-000002.h5")
    problems = verify(tmp_path)
    assert any(message in line and "shard-000002.h5" in line for line in problems)
    assert not any("shard-000001.h5: " in line for line in problems)
    produce(plan, tmp_path)
    same(tmp_path, 5000)
    assert rewritten(before, tmp_path) == ["shard-000002.h5"]


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b'{"calogen_schema": 1}', b"\xff"])
def test_with_its_manifest_damaged_a_folder_is_left_alone(text: bytes, tmp_path: Path) -> None:
    plan = Production(Counted(), 3000, 1000)
    produce(plan, tmp_path)
    before = inodes(tmp_path)
    (tmp_path / "manifest.json").write_bytes(text)
    assert verify(tmp_path) != []
    with pytest.raises(ShardError, match="the manifest is damaged"):  # whose shards these are nobody can say
        produce(plan, tmp_path)
    assert rewritten(before, tmp_path) == []


def test_the_damaged_manifest_of_another_part_is_not_written_over(tmp_path: Path) -> None:
    produce(Production(Counted(), 3000, 1000, Part(1, 2)), tmp_path)
    (tmp_path / "manifest-1-of-2.json").write_text("{")
    with pytest.raises(ShardError, match="the manifest is damaged"):
        produce(Production(Counted(), 3000, 1000, Part(2, 2)), tmp_path)
    assert not (tmp_path / "manifest-2-of-2.json").exists()


CHANGES: list[tuple[dict[str, Any], str]] = [
    ({"maker": Counted(seed=1)}, "its seed differs"),
    ({"total": 3001}, "begun with other options"),
    ({"shard_samples": 500}, "`shard_size=1000`"),
    ({"part": Part(1, 2)}, "`part=i/1`"),
    ({"layout": "calogan"}, "`layout=native`"),
]


@pytest.mark.parametrize(("change", "message"), CHANGES, ids=[message for _, message in CHANGES])
def test_a_folder_of_another_production_is_left_alone(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    plan = Production(Counted(), 3000, 1000)
    produce(plan, tmp_path)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    with pytest.raises(ConfigError, match=r"holds another production|begun with other options") as raised:
        produce(replace(plan, **change), tmp_path)
    assert message in str(raised.value)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_other_versions_of_libraries_may_go_on_with_a_production(tmp_path: Path, monkeypatch: Any) -> None:
    def describe(version: str) -> Any:
        return lambda self: {"engine": "counted", "versions": {"torch": version}}

    plan = Production(Counted(), 3000, 1000)
    monkeypatch.setattr(Counted, "describe", describe("1"))
    with pytest.raises(Interrupted):
        produce(plan, tmp_path, **stopped_after(1500))
    monkeypatch.setattr(Counted, "describe", describe("2"))
    produce(plan, tmp_path)
    same(tmp_path, 3000)


@pytest.mark.parametrize("name", ["notes.txt", "data.h5", "shard.h5", "shard-000000.hdf5", "sub"])
def test_a_folder_that_holds_something_else_is_left_alone(name: str, tmp_path: Path) -> None:
    plan = Production(Counted(), 3000, 1000)
    for begun in (False, True):
        out = tmp_path / str(begun)
        if begun:
            produce(plan, out)
        else:
            out.mkdir()
        (out / name).mkdir() if name == "sub" else (out / name).write_text("mine")
        before = inodes(out)
        with pytest.raises(ConfigError, match="the output folder is not empty") as raised:
            produce(plan, out)
        assert name in str(raised.value)
        assert inodes(out) == before


def test_shards_without_a_manifest_are_not_ours(tmp_path: Path) -> None:
    produce(Production(Counted(), 3000, 1000), tmp_path)
    (tmp_path / "manifest.json").unlink()
    with pytest.raises(ConfigError, match="the output folder is not empty"):
        check_folder(Production(Counted(), 3000, 1000), tmp_path)


# ------------------------------------------------------------------------------------------------------------ locks


def test_a_second_writer_of_a_part_is_refused_and_of_another_part_is_not(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(storage, "_LOCK_SECONDS", 0.15)
    (tmp_path / ".lock-1-of-2").touch()
    with (tmp_path / ".lock-1-of-2").open("r+") as first:
        fcntl.flock(first, fcntl.LOCK_EX)
        with pytest.raises(ConfigError, match="being written by another process") as raised:
            produce(Production(Counted(), 3000, 1000, Part(1, 2)), tmp_path)
        assert ".lock-1-of-2" in str(raised.value)
        produce(Production(Counted(), 3000, 1000, Part(2, 2)), tmp_path)
    produce(Production(Counted(), 3000, 1000, Part(1, 2)), tmp_path)  # the first is gone and its lock file is stale
    same(tmp_path, 3000)


def test_while_a_folder_is_written_it_is_locked_and_afterwards_it_is_not(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(storage, "_LOCK_SECONDS", 0.0)
    plan = Production(Counted(), 300, 100)
    refused = []

    def again(_done: int, _total: int) -> None:
        with pytest.raises(ConfigError, match="being written"):
            produce(plan, tmp_path)
        refused.append(True)

    produce(plan, tmp_path, progress=again)
    assert refused
    same(tmp_path, 300)


def test_leftovers_of_a_dead_writer_are_cleared_away(tmp_path: Path) -> None:
    plan = Production(Counted(), 3000, 1000)
    with pytest.raises(Interrupted):
        produce(plan, tmp_path, **stopped_after(1200))
    for name in (".lock", "shard-000001.h5.part", "manifest.json.part"):
        (tmp_path / name).write_bytes(b"half")
    assert any("shard-000001.h5.part: the file was never finished" in line for line in verify(tmp_path))
    produce(plan, tmp_path)
    same(tmp_path, 3000)


# -------------------------------------------------------------------------------------------------- a shard by itself


def test_a_shard_the_manifest_knows_is_believed_only_with_its_own_place_and_bytes(tmp_path: Path) -> None:
    plan = Production(Counted(), 2000, 1000)
    job = Job(plan.maker, tmp_path, plan.provenance())
    told: list[int] = []
    first, second = (job(shard, told.append) for shard in plan.shards())
    assert told[-1] == 1000
    assert len(told) == 2 * -(-1000 // PIECE) + 1  # the second shard begins within a piece
    before = inodes(tmp_path)
    assert job(first, told.append) == first
    assert rewritten(before, tmp_path) == []
    elsewhere = replace(first, index_start=5)
    write_manifest(tmp_path, [elsewhere, second], provenance=plan.provenance())
    produce(plan, tmp_path)
    assert read_manifest(tmp_path).records == (first, second)
    assert rewritten(before, tmp_path) == ["shard-000000.h5"]
    with h5py.File(tmp_path / second.name) as file:
        assert file.attrs["index_start"] == 1000
        assert json.loads(file.attrs["provenance"])["seed"] == 0
    assert open_shards(tmp_path / first.name).family == COUNTED


def test_a_plan_of_a_trillion_samples_knows_its_size_at_once() -> None:
    assert Production(Counted(), 10**12, 1024, Part(3, 1000)).samples == pytest.approx(10**9, abs=1024)


def test_help_of_generate_names_the_ways_to_cut_the_work() -> None:
    text = command("generate", "--help").out
    for option in ("--workers", "--part", "--shard-size", "--mantissa-bits", "--dry-run"):
        assert option in text
