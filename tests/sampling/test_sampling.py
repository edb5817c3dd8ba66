"""Surrogates: sample i is sample i, whatever is asked for around it; what cannot be made is refused before writing."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from support import MAPS, SMALL, Trained, command, edit_card, tiny, toy, write_folder

from calogen.config import Config, GeneratorConfig
from calogen.errors import CheckpointError, ConditionError, ConfigError, Interrupted, StorageError
from calogen.families import FAMILIES
from calogen.models.registry import build_generator
from calogen.production.parts import Part
from calogen.production.plan import free_bytes
from calogen.production.requests import Request
from calogen.runs.checkpoint import Card, Checkpoint, ConditionRange
from calogen.runs.find import describe_model, find_model, is_model
from calogen.sampling import Surrogate
from calogen.shards.inspect import verify
from calogen.shards.manifest import read_manifest
from calogen.shards.sources import open_shards
from calogen.training.loop import train

ENERGY = "incident_energy"
CALOGAN = FAMILIES["calogan"]


@pytest.fixture(scope="module")
def surrogate(trained: Trained) -> Surrogate:
    return Surrogate.load(trained.folder)


def made(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    samples = open_shards(folder).read()
    return samples.values, samples.conditions[ENERGY]


# ---------------------------------------------------------------------------------------------------- determinism


def test_samples_do_not_depend_on_shard_size_or_number_but_on_the_seed(surrogate: Surrogate, tmp_path: Path) -> None:
    request = {ENERGY: "log-uniform:1:100GeV"}
    whole = made(surrogate.generate(tmp_path / "whole", request, 2100, seed=5))
    for size in (2100, 1024, 700):
        parts = surrogate.generate(tmp_path / f"{size}", request, 2100, seed=5, shard_size=size, workers=1)
        assert len(list(parts.glob("*.h5"))) == -(-2100 // size)
        for one, two in zip(made(parts), whole, strict=True):
            np.testing.assert_array_equal(one, two)
    for index in (2, 1, 3):
        surrogate.generate(tmp_path / "parts", request, 2100, seed=5, part=Part(index, 3), workers=1)
    for one, two in zip(made(tmp_path / "parts"), whole, strict=True):
        np.testing.assert_array_equal(one, two)
    fewer = made(surrogate.generate(tmp_path / "fewer", request, 5, seed=5))
    np.testing.assert_array_equal(fewer[0], whole[0][:5])
    other = made(surrogate.generate(tmp_path / "other", request, 5, seed=6))
    assert not np.array_equal(other[0], fewer[0])
    assert not np.array_equal(other[1], fewer[1])


def test_sampling_agrees_with_generating_but_for_the_gate_of_zeros(surrogate: Surrogate, tmp_path: Path) -> None:
    table = np.geomspace(1e3, 1e5, 700).astype(np.float32)
    folder = surrogate.generate(tmp_path / "a", Request(700, table={ENERGY: table}), seed=8)
    generated, energies = made(folder)
    np.testing.assert_array_equal(energies, table)
    sampled = surrogate.sample({ENERGY: table}, seed=8)
    alone = surrogate.sample({ENERGY: table[:1]}, seed=8)
    for one, two in ((sampled, generated), (alone, generated[:1])):
        gate = (one > 0) != (two > 0)
        assert gate.mean() < 1e-4
        scale = table[: len(one), None]
        rest = ~gate.any(1)  # a voxel at its gate takes its energy from the others of its layer
        assert (np.abs(one - two)[rest] <= 1e-5 * scale[rest]).all()


def test_samples_are_the_same_on_two_threads(surrogate: Surrogate, tmp_path: Path) -> None:
    request = {ENERGY: "uniform:1:100GeV"}
    mine = made(surrogate.generate(tmp_path / "mine", request, 1500, seed=3, workers=1))
    torch.set_num_threads(2)
    try:
        two = made(surrogate.generate(tmp_path / "two", request, 1500, seed=3, workers=1))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
    np.testing.assert_array_equal(mine[1], two[1])
    np.testing.assert_array_equal(mine[0], two[0])


def test_asking_for_more_samples_keeps_the_first_ones(surrogate: Surrogate) -> None:
    few, many = (surrogate.sample({ENERGY: 2e4}, n, seed=2) for n in (10, 1500))
    np.testing.assert_allclose(many[:10], few, rtol=0, atol=0.2)
    assert (((many[:10] > 0) != (few > 0)).mean()) < 1e-3
    np.testing.assert_array_equal(surrogate.sample({ENERGY: 2e4}, 10, seed=2), few)
    assert len(np.unique(many, axis=0)) == 1500


# ----------------------------------------------------------------------------------------------------- conditions


def test_a_number_with_n_and_one_number_a_sample_are_the_same(surrogate: Surrogate) -> None:
    both = surrogate.sample({ENERGY: 5e3}, 4), surrogate.sample({ENERGY: [5e3] * 4})
    np.testing.assert_array_equal(*both)
    assert both[0].dtype == np.float32
    assert both[0].shape == (4, 504)


@pytest.mark.parametrize("conditions", [{ENERGY: 5e3}, {ENERGY: []}])
def test_no_samples_are_an_empty_array(surrogate: Surrogate, conditions: dict[str, Any]) -> None:
    assert surrogate.sample(conditions, 0).shape == (0, 504)


@pytest.mark.parametrize(
    ("conditions", "n", "part"),
    [
        ({}, 3, "the condition 'incident_energy' is missing"),
        ({"incident_energi": 5e3}, 3, "did you mean 'incident_energy'"),
        ({ENERGY: 5e3, "angle": 0.0}, 3, "has no condition 'angle'"),
        ({ENERGY: 5e3}, None, "agrees with n"),
        ({ENERGY: [5e3, 6e3]}, 3, "agrees with n"),
        ({ENERGY: [[5e3, 6e3]]}, None, "agrees with n"),
        ({ENERGY: 5e3}, -1, "cannot be negative"),
        ({ENERGY: "GeV50"}, 3, "is not a specification"),
        ({ENERGY: [5e3, np.nan]}, None, "sample 1"),
        ({ENERGY: [5e3, np.inf]}, None, "sample 1"),
        ({ENERGY: 50.0}, 3, "expected 1000 to 100000 MeV"),
        ({ENERGY: [5e3, 6e3, 1.01e5, 2e5]}, None, "sample 2"),
        ({ENERGY: -5e3}, 1, "not possible"),
    ],
)
def test_wrong_conditions_are_explained(
    surrogate: Surrogate, conditions: dict[str, Any], n: int | None, part: str
) -> None:
    with pytest.raises(ConditionError) as raised:
        surrogate.sample(conditions, n)
    assert part in " ".join(str(raised.value).split())


def test_the_ends_of_the_trained_range_are_inside_and_beyond_is_allowed_if_asked(surrogate: Surrogate) -> None:
    assert surrogate.sample({ENERGY: [1e3, 1e5]}).shape == (2, 504)
    with pytest.raises(ConditionError, match="`extrapolate=True` allows it"):
        surrogate.sample({ENERGY: [2e5]})
    beyond = surrogate.sample({ENERGY: [2e5, 900.0]}, extrapolate=True)
    assert np.isfinite(beyond).all()
    assert 1.2e5 < beyond[0].sum() <= 2e5
    with pytest.raises(ConditionError):
        surrogate.sample({ENERGY: [0.0]}, extrapolate=True)
    with pytest.raises(ConfigError, match="a seed is a number from 0"):
        surrogate.sample({ENERGY: 5e3}, 1, seed=-1)


def test_what_an_exact_law_moves_into_the_trained_range_is_not_beyond_it(
    surrogate: Surrogate, monkeypatch: pytest.MonkeyPatch
) -> None:
    def halved(conditions: np.ndarray, low: list[float], high: list[float]) -> np.ndarray:
        assert (low, high) == ([1e3], [1e5])
        return np.where(conditions > high, conditions / 2, conditions)

    monkeypatch.setattr(surrogate._generator, "equivalent", halved)
    assert surrogate.sample({ENERGY: [1.5e5]})[0].sum() > 1.2e5
    for energy, message in ((2.5e5, "expected 1000 to 100000 MeV"), (-2e9, "not possible")):
        with pytest.raises(ConditionError) as raised:
            surrogate.sample({ENERGY: [energy]})
        assert message in " ".join(str(raised.value).split())


def test_conditions_that_do_not_go_together_are_refused_before_anything_is_written(
    surrogate: Surrogate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def picky(conditions: np.ndarray, low: list[float], high: list[float]) -> np.ndarray:
        if ((conditions > 4e4) & (conditions < 6e4)).any():  # neither end of what is asked for
            raise ConditionError("no such showers")
        return conditions

    monkeypatch.setattr(surrogate._generator, "equivalent", picky)
    with pytest.raises(ConditionError, match="no such showers"):
        surrogate.generate(tmp_path / "out", {ENERGY: "uniform:1:100GeV"}, 100)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("fault", [np.nan, RuntimeError("index out of bounds")])
def test_conditions_at_which_a_generator_overflows_are_refused_before_anything_is_written(
    fault: object, surrogate: Surrogate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def launched(_: Surrogate, latents: np.ndarray, __: np.ndarray) -> Callable[[], np.ndarray]:
        if isinstance(fault, Exception):
            raise fault
        return lambda: np.full((len(latents), 504), fault, np.float32)

    monkeypatch.setattr(Surrogate, "_launched", launched)
    with pytest.raises(ConditionError, match="so far from what it was trained on"):
        surrogate.generate(tmp_path / "out", {ENERGY: "fixed:9TeV"}, 3, extrapolate=True)
    with pytest.raises(ConditionError, match="so far from what it was trained on"):
        surrogate.sample({ENERGY: [9e6]}, extrapolate=True)
    assert not (tmp_path / "out").exists()


def test_conditions_are_matched_by_name_and_never_by_position() -> None:
    card = Card(
        family=SMALL,
        conditions=(
            ConditionRange(name="angle", unit="rad", low=-1, high=1),
            ConditionRange(name=ENERGY, unit="MeV", low=1e3, high=1e5),
        ),
        config=Config.build({"generator": {"latent": 4, "hidden": [8]}}),
        step=0,
    )
    generator = build_generator(SMALL, ["angle", ENERGY], GeneratorConfig(latent=4, hidden=(8,)))
    generator.fit(toy(SMALL, 200), 1)
    surrogate = Surrogate(Checkpoint(card, dict(generator.state_dict()), Path()))
    assert surrogate.conditions == ("angle", ENERGY)
    one = surrogate.sample({ENERGY: [5e3, 7e4], "angle": [0.5, -0.5]})
    np.testing.assert_array_equal(one, surrogate.sample({"angle": [0.5, -0.5], ENERGY: [5e3, 7e4]}))
    assert (one.sum(1) > [3e3, 4e4]).all()
    assert (one.sum(1) <= [5e3, 7e4]).all()
    assert one[one > 0].min() >= SMALL.threshold


# ------------------------------------------------------------------------------------------------------- generate


@pytest.mark.parametrize(
    ("request_", "options", "error", "part"),
    [
        ({ENERGY: "fixed:50GeV"}, {"n": 0}, ConfigError, "1 to 10^12"),
        ({ENERGY: "fixed:50GeV"}, {"n": -3}, ConfigError, "1 to 10^12"),
        ({ENERGY: "fixed:50GeV"}, {}, ConfigError, "say how many samples"),
        ({ENERGY: "fixed:50GeV"}, {"n": 5, "shard_size": 0}, ConfigError, "at least one sample"),
        ({ENERGY: "fixed:50GeV"}, {"n": 10**12}, StorageError, "will not fit"),
        ({ENERGY: "fixed:50GeV"}, {"n": 5, "seed": -1}, ConfigError, "a seed is a number"),
        ({ENERGY: "fixed:50"}, {"n": 5}, ConditionError, "unit of 'incident_energy' is missing"),
        ({ENERGY: "uniform:50:200GeV"}, {"n": 5}, ConditionError, "200000 MeV"),
        ({ENERGY: "list:5,6,0.1GeV"}, {"n": 1}, ConditionError, "100 MeV"),
        ({}, {"n": 5}, ConditionError, "'incident_energy' is missing"),
        ({"angle": "fixed:1"}, {"n": 5}, ConditionError, "no condition 'angle'"),
        (Request(3, table={ENERGY: np.array([5e3, 6e3, 2e5], np.float32)}), {}, ConditionError, "sample 2"),
        (Request(3, table={ENERGY: np.full(3, 5e3, np.float32)}), {"n": 5}, ConfigError, "says how many samples"),
    ],
)
def test_what_cannot_be_generated_is_refused_before_anything_is_written(
    surrogate: Surrogate, tmp_path: Path, request_: Any, options: dict[str, Any], error: type[Exception], part: str
) -> None:
    with pytest.raises(error) as raised:
        surrogate.generate(tmp_path / "out", request_, **options)
    assert part in " ".join(str(raised.value).split())
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_not_empty_is_left_alone(surrogate: Surrogate, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep")
    for out in (tmp_path, tmp_path / "mine.txt"):
        with pytest.raises(ConfigError, match="output folder is not empty"):
            surrogate.generate(out, {ENERGY: "fixed:5GeV"}, 2)
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


def test_a_folder_that_cannot_be_made_is_a_storage_error(surrogate: Surrogate, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot make the output folder") as raised:
        surrogate.generate(tmp_path / "file" / "below", {ENERGY: "fixed:5GeV"}, 2)
    assert raised.value.exit_code == 74


def test_showers_like_others_have_their_energies_in_their_order(
    trained: Trained, surrogate: Surrogate, tmp_path: Path
) -> None:
    like = Request.like(open_shards(trained.data), surrogate.conditions)
    values, energies = made(surrogate.generate(tmp_path / "like", like))
    np.testing.assert_array_equal(energies, trained.samples.conditions[ENERGY])
    response = values.sum(1) / energies
    assert response.max() <= 1 + 1e-5
    assert response.mean() == pytest.approx(float((trained.samples.values.sum(1) / energies).mean()), abs=0.01)


def test_a_generated_folder_is_a_folder_of_shards_and_says_where_it_is_from(
    trained: Trained, surrogate: Surrogate, tmp_path: Path
) -> None:
    folder = surrogate.generate(tmp_path / "a", {ENERGY: "list:1,5GeV"}, 1100, seed=4, shard_size=1024, workers=1)
    assert verify(folder) == []
    manifest = read_manifest(folder)
    assert manifest is not None
    assert [(r.name, r.samples, r.index_start) for r in manifest.records] == [
        ("shard-000000.h5", 1024, 0),
        ("shard-000001.h5", 76, 1024),
    ]
    shards = open_shards(folder)
    assert shards.kind == "generated"
    assert shards.family == CALOGAN
    for provenance in (shards.provenance[0], manifest.provenance[0]):
        assert provenance["seed"] == 4
        assert provenance["checkpoint_sha256"] == surrogate.card.model_sha256
        assert provenance["request"] == {"samples": 1100, ENERGY: "list:1,5GeV"}
        assert provenance["training"]["data"] == surrogate.card.provenance["data"]
    np.testing.assert_array_equal(shards.read().conditions[ENERGY][:3], [1e3, 5e3, 1e3])


def test_calogans_own_layout_reads_back_as_the_same_showers(surrogate: Surrogate, tmp_path: Path) -> None:
    native = surrogate.generate(tmp_path / "native", {ENERGY: "fixed:50GeV"}, 20)
    theirs = surrogate.generate(tmp_path / "theirs", {ENERGY: "fixed:50GeV"}, 20, layout="calogan")
    with h5py.File(theirs / "shard-000000.h5") as file:
        assert file["layer_0"].shape == (20, 3, 96)
        assert file["energy"][0, 0] == 50
        assert not file["overflow"][:].any()
    for one, two in zip(made(native), made(theirs), strict=True):
        np.testing.assert_array_equal(one, two)


def test_calogans_layout_is_for_its_own_family(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "data", toy(SMALL, 60))
    small = Surrogate.load(train(tiny(training={"steps": 1}), folder, tmp_path / "run").folder)
    with pytest.raises(ConfigError, match="its own three layers only"):
        small.generate(
            tmp_path / "out", {ENERGY: "fixed:50GeV", "angle": "fixed:0"}, 3, layout="calogan", extrapolate=True
        )
    assert not (tmp_path / "out").exists()


def test_an_unconditional_surrogate_takes_no_conditions(tmp_path: Path) -> None:
    data = write_folder(tmp_path / "data", toy(FAMILIES["calogan"], 120))
    run = train(tiny(conditions=(), training={"steps": 1}), data, tmp_path / "run")
    surrogate = Surrogate.load(run.folder)
    showers = surrogate.sample(n=5, seed=1)
    folder = surrogate.generate(tmp_path / "made", {}, 5, seed=1)
    samples = open_shards(folder).read()
    assert dict(samples.conditions) == {}
    np.testing.assert_allclose(samples.values.sum(1), showers.sum(1), rtol=1e-4)
    with pytest.raises(ConditionError, match="it is unconditional"):
        surrogate.sample({ENERGY: 5e3}, 2)
    with pytest.raises(ConfigError, match="needs incident energies"):
        surrogate.generate(tmp_path / "calogan", {}, 5, layout="calogan")


def test_the_estimate_is_near_what_the_files_take(surrogate: Surrogate, tmp_path: Path) -> None:
    request = Request.of(CALOGAN, {ENERGY: "uniform:1:100GeV"}, 3000)
    plan = surrogate.plan(tmp_path / "not" / "there", request, shard_size=1024)
    assert not (tmp_path / "not").exists()
    assert (plan.samples, plan.files, plan.raw_bytes) == (3000, 3, 3000 * 4 * 505)
    assert free_bytes(tmp_path / "not" / "there") == pytest.approx(shutil.disk_usage(tmp_path).free, rel=0.2)
    surrogate.generate(tmp_path / "out", request, shard_size=1024, workers=1)
    taken = sum(path.stat().st_size for path in (tmp_path / "out").glob("*.h5"))
    assert plan.bytes == pytest.approx(taken, rel=0.15)


def test_shards_of_the_usual_size_are_about_equally_long(surrogate: Surrogate, tmp_path: Path) -> None:
    most = (128 << 20) // (504 * 4 * 1024) * 1024
    for samples, part in ((200_000, None), (10**6, Part(2, 7)), (100, None)):
        request = Request.of(CALOGAN, {ENERGY: "fixed:5GeV"}, samples)
        plan = surrogate.plan(tmp_path, request, part=part)
        assert plan.samples == sum(shard.samples for shard in plan.shards())
        assert plan.files == len(plan.shards()) <= max(17, -(-plan.samples // most) + 1)
        assert plan.shard_samples % 1024 == 0
        assert plan.shard_samples <= most
        assert all(shard.samples > 0.9 * plan.shard_samples for shard in plan.shards()[:-1])


def test_a_trillion_samples_are_planned_at_once_and_refused_by_the_disk(surrogate: Surrogate, tmp_path: Path) -> None:
    table = np.full(5, 5e3, np.float32)
    for request in (
        Request.of(CALOGAN, {ENERGY: "log-uniform:1:100GeV"}, 10**12),
        repeated(Request(5, table={ENERGY: table}), 10**12),
    ):
        plan = surrogate.plan(tmp_path / "out", request)
        assert (plan.samples, plan.raw_bytes) == (10**12, 10**12 * 4 * 505)
        assert 1e14 < plan.bytes < plan.raw_bytes
        with pytest.raises(StorageError, match="will not fit on the disk") as raised:
            surrogate.generate(tmp_path / "out", request)
        assert raised.value.exit_code == 74
        assert "GB free" in str(raised.value)
        tenth = surrogate.plan(tmp_path / "out", request, part=Part(3, 10))
        assert tenth.samples == pytest.approx(10**11, abs=1024)
    assert not (tmp_path / "out").exists()


def repeated(request: Request, samples: int) -> Request:
    """The rows of a table, round and round."""
    request.samples = samples
    return request


def test_a_changed_file_of_conditions_is_another_request(surrogate: Surrogate, tmp_path: Path) -> None:
    table = np.linspace(1e3, 1e5, 50).astype(np.float32)
    requests = [Request(50, table={ENERGY: values}, source="c.csv") for values in (table, table[::-1].copy())]
    surrogate.generate(tmp_path / "out", requests[0])
    with pytest.raises(ConfigError, match="its request sha256 differs"):
        surrogate.generate(tmp_path / "out", requests[1])
    with pytest.raises(ConfigError, match="its seed differs"):
        surrogate.generate(tmp_path / "out", requests[0], seed=1)
    surrogate.generate(tmp_path / "out", requests[0])


def test_another_checkpoint_does_not_go_on_with_a_folder(trained: Trained, tmp_path: Path) -> None:
    first, second = (Surrogate.load(trained.folder / "checkpoints" / f"step-{step}") for step in (2, 4))
    first.generate(tmp_path, {ENERGY: "fixed:5GeV"}, 20)
    with pytest.raises(ConfigError, match="its card sha256 differs"):
        second.generate(tmp_path, {ENERGY: "fixed:5GeV"}, 20)


def test_progress_counts_to_the_end_and_a_signal_stops_between_blocks(surrogate: Surrogate, tmp_path: Path) -> None:
    heard: list[tuple[int, int]] = []
    request = {ENERGY: "fixed:5GeV"}
    how = {"shard_size": 1024, "workers": 1}
    surrogate.generate(tmp_path / "a", request, 2500, progress=lambda *now: heard.append(now), **how)
    assert list(dict.fromkeys(heard)) == [(1024, 2500), (2048, 2500), (2500, 2500)]
    with pytest.raises(Interrupted, match="after 1024 of 2500 samples") as raised:
        surrogate.generate(tmp_path / "b", request, 2500, should_stop=lambda: signal.SIGTERM, **how)
    assert raised.value.exit_code == 143
    assert ["1476 of 2500 samples are still to be made" in line for line in verify(tmp_path / "b")] == [True]
    np.testing.assert_array_equal(made(tmp_path / "b")[0], made(tmp_path / "a")[0][:1024])
    surrogate.generate(tmp_path / "b", request, 2500, **how)
    np.testing.assert_array_equal(made(tmp_path / "b")[0], made(tmp_path / "a")[0])
    with pytest.raises(Interrupted, match="after 0 of 2500 samples"):
        surrogate.generate(tmp_path / "d", request, 2500, should_stop=lambda: signal.SIGTERM)
    assert [p.name for p in (tmp_path / "d").iterdir()] == ["manifest.json"]
    surrogate.generate(tmp_path / "c", request, 10, should_stop=lambda: signal.SIGTERM)  # the last shard is the end
    assert len(open_shards(tmp_path / "c")) == 10


# --------------------------------------------------------------------------------------------------------- models


def test_a_run_a_checkpoint_and_its_best_are_found(trained: Trained) -> None:
    best = json.loads((trained.folder / "best.json").read_text())["checkpoint"]
    assert find_model(trained.folder) == trained.folder / "checkpoints" / best
    assert find_model(str(trained.folder / "checkpoints" / "step-2")).name == "step-2"
    assert is_model(trained.folder)
    assert not is_model(trained.data)
    facts = describe_model(trained.folder)
    assert facts["family"] == "calogan"
    assert facts["conditions"] == {ENERGY: "1000 to 100000 MeV"}


def test_a_model_that_is_not_there_is_named_with_what_there_is(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="there is no model 'calogan-gama'") as raised:
        Surrogate.load("calogan-gama")
    assert "a run folder, a checkpoint folder, or one of" in str(raised.value)
    with pytest.raises(CheckpointError, match="there is no checkpoint here"):
        Surrogate.load(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(CheckpointError, match="has no checkpoint yet"):
        Surrogate.load(tmp_path)


@pytest.mark.parametrize("text", ["", "[]", "{}", "\udcff"])
def test_a_damaged_best_is_explained(tmp_path: Path, text: str) -> None:
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "best.json").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(CheckpointError, match=r"best\.json is damaged"):
        Surrogate.load(tmp_path)


def test_a_checkpoint_whose_card_is_of_another_family_is_refused(trained: Trained, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(find_model(trained.folder), tmp_path / "c"))
    edit_card(folder, family=json.loads(FAMILIES["1-photons"].model_dump_json()))
    with pytest.raises(CheckpointError, match="does not fit its own description"):
        Surrogate.load(folder)


def test_only_maps_have_a_size(surrogate: Surrogate) -> None:
    with pytest.raises(ConfigError, match="only maps have a size"):
        surrogate.resized(128)


@pytest.mark.parametrize("bits", [None, 8])
def test_clipped_pixels_are_counted_and_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bits: int | None) -> None:
    data = write_folder(tmp_path / "maps", toy(MAPS, 40))
    config = tiny("map", generator={"network": "dcgan"}, training={"steps": 0})
    maps = Surrogate.load(train(config, data, tmp_path / "run").folder)
    with torch.no_grad():
        maps._generator.last.last.bias[1] += 3.9  # the inverse is clipped from a hyperbolic tangent of 0.999 on
        maps._generator.last.convolution.weight *= 20
    maps._folded = maps._generator.folded()
    monkeypatch.setattr(Surrogate, "load", lambda *_: maps)
    line = ["generate", "it", "-n", 300, "--condition", "Omega_m=fixed:0.3", "--condition", "sigma_8=fixed:0.8"]
    line += ["--workers", 1, "--shard-size", 128, "--out", tmp_path / "made"]
    done = command(*line, *(["--mantissa-bits", bits] if bits else []))
    assert done.code == 0, done.err
    values = open_shards(tmp_path / "made").read().values
    clipped = np.count_nonzero(values == values.max())
    assert 0.01 < clipped / values.size < 0.99
    manifest = read_manifest(tmp_path / "made")
    assert manifest is not None
    assert sum(record.clipped or 0 for record in manifest.records) == clipped
    assert f"{clipped / values.size:.2g} of the values ({clipped}) are" in done.err


def test_what_is_not_clipped_is_not_counted(surrogate: Surrogate, tmp_path: Path) -> None:
    manifest = read_manifest(surrogate.generate(tmp_path / "made", {ENERGY: "uniform:1:100GeV"}, 5))
    assert manifest is not None
    assert [record.clipped for record in manifest.records] == [None]


def test_maps_of_another_size_are_generated_and_described(tmp_path: Path) -> None:
    data = write_folder(tmp_path / "maps", toy(MAPS, 80))
    larger = Surrogate.load(train(tiny("map", training={"steps": 1}), data, tmp_path / "run").folder).resized(32)
    conditions = {"Omega_m": 0.3, "sigma_8": 0.8}
    assert larger.sample(conditions, 3).shape == (3, 32, 32)
    specs = {name: f"fixed:{value}" for name, value in conditions.items()}
    shards = open_shards(larger.generate(tmp_path / "made", specs, 3))
    assert (shards.family.pixels, shards.family.box_size) == ((32, 32), 32.0)


def test_a_surrogate_of_maps_has_a_usual_size(tmp_path: Path) -> None:
    data, side = write_folder(tmp_path / "maps", toy(MAPS, 80)), MAPS.sample_shape[0]
    config = tiny("map", generator={"size": 2 * side}, training={"steps": 0})
    surrogate = Surrogate.load(train(config, data, tmp_path / "run").folder)
    conditions = {"Omega_m": 0.3, "sigma_8": 0.8}
    assert surrogate.family.sample_shape == surrogate.sample(conditions, 1).shape[1:] == (2 * side, 2 * side)
    assert surrogate.family.box_size == 2 * MAPS.box_size
    plain = train(tiny("map", training={"steps": 0}), data, tmp_path / "plain").folder
    back = surrogate.resized(side).sample(conditions, 3)
    np.testing.assert_allclose(back, Surrogate.load(plain).sample(conditions, 3), rtol=1e-2, atol=1e-3)
    specs = {name: f"fixed:{value}" for name, value in conditions.items()}
    assert open_shards(surrogate.generate(tmp_path / "made", specs, 2)).family == surrogate.family


# ---------------------------------------------------------------------------------------------- as a simulator


def test_a_simulator_takes_tensors_repeats_for_a_seed_and_refuses_what_was_not_trained(surrogate: Surrogate) -> None:
    simulator = surrogate.simulator()
    theta = simulator.low + (simulator.high - simulator.low) * torch.rand(5, len(simulator.names))
    one = simulator(theta, seed=3)
    assert one.shape == (5, *surrogate.family.sample_shape)
    assert torch.equal(one, simulator(theta.numpy(), seed=3))
    assert torch.equal(one[:1], simulator(theta[:1], seed=3))  # sample i is sample i, in any batch
    named = {name: theta[:, i].numpy() for i, name in enumerate(simulator.names)}
    assert np.array_equal(one, surrogate.sample(named, seed=3))
    assert simulator(theta[0], seed=3).shape == one.shape[1:]
    torch.manual_seed(1)
    free = simulator(theta), simulator(theta)
    torch.manual_seed(1)
    assert torch.equal(simulator(theta), free[0])
    assert not torch.equal(*free)
    assert simulator(theta[:0]).shape == (0, *one.shape[1:])
    beyond = theta.clone()
    beyond[2, 0] = 10 * simulator.high[0]
    with pytest.raises(ConditionError, match=rf"(?s){simulator.names[0]}.*sample 2.*expected.*found"):
        simulator(beyond)
    assert torch.isfinite(surrogate.simulator(extrapolate=True)(1.01 * theta)).all()
    with pytest.raises(ConditionError, match=r"(?s)another shape.*\(B, \d\).*\(5, 7\)"):
        simulator(torch.ones(5, 7))
