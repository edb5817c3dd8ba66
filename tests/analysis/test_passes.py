"""A source may be divided in any way, and read by anyone: what is found of it is the same."""

from __future__ import annotations

import os
import signal
import threading
from dataclasses import replace
from functools import reduce
from itertools import pairwise

import numpy as np
import pytest
from calogen.analysis.survey import passes
from calogen.analysis.survey import survey as surveying
from calogen.analysis.survey.nearest import Nearest
from calogen.analysis.survey.passes import surveys
from calogen.analysis.survey.plan import example_scale, plan_comparison
from calogen.analysis.survey.survey import Range, Survey, ranges, survey, survey_range
from support import MAPS, SMALL, command, toy, write_folder

from calogen.errors import ConfigError, ProductionError, ShardError
from calogen.shards.sources import open_shards

CHUNK = 32


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(surveying, "_rows_at_once", lambda family: CHUNK)


@pytest.fixture(scope="module")
def showers():
    found = toy(SMALL, 1000, seed=3)
    values = found.values.copy()
    values[[3, 640, 641], 2] = np.nan, np.inf, -1.0
    return replace(found, values=values)


@pytest.fixture(scope="module")
def plan(showers):
    """Not all samples are listed, and there is a read-out threshold: nothing is trivially the same."""
    found = plan_comparison(showers, bins=3, seed=5, threshold=0.5)
    return replace(found, rows=600, kept=150)


def parts_of(source, plan, size):
    return [survey_range(source, plan, part, threads=1) for part in ranges(source, plan, size=size)]


def require_equal(one: Survey, other: Survey, plan, rtol: float = 0.0) -> None:
    """Equal: what is listed and counted in every bit, and sums but for rounding."""
    for name in ("table", "projections", "kept_index", "kept_spectra", "groups"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name)
    np.testing.assert_array_equal(one.kept.values, other.kept.values)
    assert list(one.conditions) == list(other.conditions)
    for name, values in one.conditions.items():
        np.testing.assert_array_equal(values, other.conditions[name])
        np.testing.assert_array_equal(one.kept.conditions[name], other.kept.conditions[name])
    for number in range(len(plan.selections)):
        for name in [*one.names, plan.axis.name]:
            np.testing.assert_array_equal(one.histograms.counts(name, number), other.histograms.counts(name, number))
    for mine, theirs in zip(one.examples, other.examples, strict=True):
        np.testing.assert_array_equal(mine, theirs)
    assert (one.count, one.used, one.names, one.problems) == (other.count, other.used, other.names, other.problems)
    assert one.provenance == other.provenance
    np.testing.assert_allclose(one.removed, other.removed, rtol=rtol)
    np.testing.assert_allclose(one.means.mean, other.means.mean, rtol=rtol)
    scale = np.abs(one.covariance.covariance).max()
    np.testing.assert_allclose(one.covariance.mean, other.covariance.mean, rtol=1e-6 if rtol else 0)
    np.testing.assert_allclose(one.covariance.covariance, other.covariance.covariance, atol=1e-6 * scale if rtol else 0)


def test_ranges_hold_every_sample_once_and_list_the_same(showers, plan):
    whole = ranges(showers, plan, size=10**9)
    assert len(whole) == 1
    for size in (1, CHUNK, 100, 333):
        found = ranges(showers, plan, size=size)
        assert (found[0].start, found[-1].stop) == (0, 1000)
        assert all(a.stop == b.start for a, b in pairwise(found))
        assert all(part.start % CHUNK == 0 for part in found)
        for name in ("listed", "whole"):
            joined = np.concatenate([getattr(part, name) for part in found])
            np.testing.assert_array_equal(joined, getattr(whole[0], name))
    assert (len(whole[0].listed), len(whole[0].whole)) == (600, 150)


@pytest.mark.parametrize("size", [1, 100, 500])
def test_the_division_changes_nothing(showers, plan, size):
    require_equal(survey(showers, plan, size=size), survey(showers, plan, size=10**9), plan, rtol=1e-12)


def test_any_division_at_all_changes_nothing_but_rounding(showers, plan):
    """Even one that does not begin where chunks do."""
    (whole,) = ranges(showers, plan, size=10**9)
    cuts = [0, 1, 77, 500, 999, 1000]

    def between(places, start, stop):
        return places[(places >= start) & (places < stop)]

    parts = [
        Range("", start, stop, between(whole.listed, start, stop), between(whole.whole, start, stop))
        for start, stop in pairwise(cuts)
    ]
    found = reduce(Survey.merge, [survey_range(showers, plan, part) for part in parts])
    expected = survey(showers, plan, size=10**9)
    np.testing.assert_allclose(found.table, expected.table, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(found.means.mean, expected.means.mean, rtol=1e-9)
    np.testing.assert_array_equal(found.kept.values, expected.kept.values)
    np.testing.assert_array_equal(found.examples[0], expected.examples[0])
    assert found.problems == expected.problems


def test_surveys_merge_in_any_order(showers, plan):
    def parts():
        return parts_of(showers, plan, 250)

    assert len(parts()) == 4
    a, b, c, d = parts()
    in_turn = a.merge(b).merge(c).merge(d)
    a, b, c, d = parts()
    require_equal(d.merge(b).merge(a.merge(c)), in_turn, plan, rtol=1e-12)
    a, b, c, d = parts()
    one, other = a.merge(b), b.merge(a)
    require_equal(one, other, plan)  # exactly
    early = a.merge(c)
    assert early.table.shape[1] < in_turn.table.shape[1]  # joined before what lies between them comes
    require_equal(early.merge(d.merge(b)), in_turn, plan, rtol=1e-12)
    require_equal(a, parts()[0], plan)  # what was merged is as it was


def test_examples_are_the_nearest_of_all_and_none_twice(showers, plan):
    energies = showers.conditions["incident_energy"]
    targets = np.column_stack([np.repeat(np.quantile(energies, [0.2, 0.7]), 2), np.full(4, 45.0)])
    plan = replace(plan, targets=targets)
    found = survey(showers, plan, size=100)
    values, _ = found.examples
    flat = showers.values.reshape(1000, -1)
    rows = [int(np.flatnonzero((np.where(flat < 0.5, 0, flat) == value).all(axis=1))[0]) for value in values]
    assert len(set(rows)) == 4
    scale = example_scale(showers.family, ["incident_energy", "angle"])
    there = np.stack([energies, showers.conditions["angle"]], axis=1)
    good = np.isfinite(flat).all(axis=1)
    for number, target in enumerate(targets):
        away = np.where(good, (((there - target) / scale) ** 2).sum(axis=1), np.inf)
        away[rows[:number]] = np.inf
        assert rows[number] == int(np.argmin(away))
    few = Nearest(plan)
    few.fill(showers.read(10, 11), np.array([10]))
    assert np.isfinite(few.chosen[1]).all()  # one sample is shown four times


def test_maps_keep_their_realisations_in_any_division():
    maps = toy(MAPS, 90, seed=2)
    maps = replace(maps, extras={"realisation_id": np.arange(90) // 4})
    plan = replace(plan_comparison(maps, bins=2, seed=0), rows=70, kept=20)
    require_equal(survey(maps, plan, size=1), survey(maps, plan, size=10**9), plan, rtol=1e-12)


def test_of_files_with_bad_rows_every_division_keeps_the_same(tmp_path, showers, plan):
    values = np.nan_to_num(showers.values.copy(), nan=1.0, posinf=1.0)
    folder = write_folder(tmp_path / "data", replace(showers, values=np.maximum(values, 0)), each=350)
    import h5py

    with h5py.File(folder / "shard-000001.h5", "r+") as file:
        data = file["showers"][:]
        data[[10, 200, 201]] = np.nan
        del file["showers"]
        file["showers"] = data
    (folder / "manifest.json").unlink()  # which knows the file's length
    source = open_shards(folder, drop_bad=True)
    found = [survey(open_shards(folder, drop_bad=True), plan, size=size) for size in (1, 10**9)]
    require_equal(*found, plan, rtol=1e-12)
    assert found[0].problems["dropped_samples"] == 3
    assert found[0].count == 997
    part = ranges(source, plan, size=10**9)[0]
    places = np.concatenate([places for places, _ in source.placed_chunks(CHUNK)])
    assert len(places) == 997
    assert found[0].table.shape[1] == np.isin(part.listed, places).sum()


@pytest.fixture(scope="module")
def files(tmp_path_factory, showers):
    home = tmp_path_factory.mktemp("files")
    write_folder(home / "reference", toy(SMALL, 9000, seed=1), each=2000)
    write_folder(home / "generated", toy(SMALL, 9000, seed=2), each=9000)
    return home


@pytest.fixture
def many_ranges(monkeypatch):
    """Ranges of one chunk as it is in worker processes, which do not know the small ones of this test."""
    monkeypatch.undo()
    monkeypatch.setattr(surveying, "_CHUNKS", 1)
    monkeypatch.setattr(passes, "_FEWEST", 1)


@pytest.mark.usefixtures("many_ranges")
def test_workers_change_nothing(files):
    sources = {name: open_shards(files / name) for name in ("reference", "generated")}
    sources["memory"] = toy(SMALL, 500, seed=4)
    plan = plan_comparison(sources["reference"], bins=3, seed=0)
    seen: list[tuple[str, int, int]] = []
    found = surveys(sources, plan, workers=2, progress=lambda *done: seen.append(done))
    alone = surveys(sources, plan, workers=1)
    assert list(found) == list(alone) == list(sources)
    for name in sources:
        require_equal(found[name], alone[name], plan)
        assert [done for done in seen if done[0] == name][-1][1:] == (len(sources[name]), len(sources[name]))


@pytest.mark.usefixtures("many_ranges")
def test_a_worker_that_is_killed_costs_nothing(files, monkeypatch):
    source = open_shards(files / "reference")
    plan = plan_comparison(source, bins=3, seed=0)
    started: list[int] = []
    real = passes.Pool._start

    def start(pool):
        worker = real(pool)
        started.append(worker.process.pid)
        if len(started) == 1:
            threading.Timer(0.3, os.kill, [worker.process.pid, signal.SIGKILL]).start()
        return worker

    monkeypatch.setattr(passes.Pool, "_start", start)
    found = surveys({"": source}, plan, workers=2)[""]
    assert len(started) == 3
    require_equal(found, surveys({"": source}, plan, workers=1)[""], plan)

    def mortal(pool):
        worker = real(pool)
        threading.Timer(0.3, os.kill, [worker.process.pid, signal.SIGKILL]).start()
        return worker

    monkeypatch.setattr(passes.Pool, "_start", mortal)
    with pytest.raises(ProductionError, match="SIGKILL, twice over the same samples") as caught:
        surveys({"side": source}, plan, workers=2)
    assert "side, samples " in str(caught.value)


@pytest.mark.usefixtures("many_ranges")
def test_errors_of_workers_are_those_of_one_process(files, tmp_path):
    source = open_shards(files / "reference")
    plan = plan_comparison(source, bins=3, seed=0)
    folder = write_folder(tmp_path / "data", toy(SMALL, 9000, seed=1), each=3000)
    broken = open_shards(folder)
    path = folder / "shard-000002.h5"
    path.write_bytes(path.read_bytes()[:-100])
    said = []
    for workers in (1, 2):
        with pytest.raises(ShardError) as caught:
            surveys({"side": broken}, plan, workers=workers)
        said.append(str(caught.value))
    assert said[0] == said[1]
    assert "shard-000002.h5" in said[0]


def test_an_empty_side_and_impossible_workers_are_refused(showers, plan):
    with pytest.raises(ShardError, match="no samples to compare"):
        surveys({"side": showers.read(0, 0)}, plan)
    bad = replace(showers, values=np.full_like(showers.values, np.nan))
    with pytest.raises(ShardError, match="no sample of the source can be used") as caught:
        surveys({"side": bad}, plan)
    assert "side" in str(caught.value)
    with pytest.raises(ConfigError, match="too many for this machine"):
        surveys({"side": showers}, plan, workers=10**6)
    with pytest.raises(ConfigError, match="those of `cluster` are its own"):
        surveys({"side": showers}, plan, workers=2, cluster="tcp://nowhere:1")


def test_compare_takes_workers_on_the_command_line(files, tmp_path):
    done = command("compare", files / "reference", files / "generated", "--out", tmp_path / "r", "--workers", 99999)
    assert done.code == 2
    assert "--workers" in done.err
    assert not (tmp_path / "r").exists()


def test_a_process_of_another_version_or_without_the_files_is_refused(files, plan):
    sources = {"side": open_shards(files / "reference")}
    ready = passes.Surveyor(plan, sources, versions=passes._versions())
    ready.require_ready()
    with pytest.raises(ConfigError, match="another version") as caught:
        replace(ready, versions={"calogen": "0.0.1", "numpy": "1"}).require_ready()
    assert "calogen 0.0.1" in str(caught.value)
