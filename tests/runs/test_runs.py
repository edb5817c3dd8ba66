"""Run folders: what checkpoints remember of a run, which of them are kept, and what a damaged one costs."""

from __future__ import annotations

import json
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from support import SINGLE, Trained, edit_card, tiny

from calogen.errors import CheckpointError
from calogen.runs.checkpoint import Card, load_checkpoint
from calogen.runs.environment import environment
from calogen.runs.folder import RunFolder
from calogen.training.loop import train

TENSORS = {"a": torch.ones(2)}


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    run = RunFolder(tmp_path / "run")
    run.create(tiny(), {})
    return run


def validated(run: RunFolder, step: int, score: float, **more: Any) -> None:
    """A validation and a checkpoint."""
    run.log({"step": step, "seconds": step / 2, "score": score, "critic_loss": 1.0, **more})
    run.save(Card(family=SINGLE, conditions=(), config=tiny(), step=step, score=score), TENSORS, TENSORS)


def card(run: RunFolder, step: int) -> Card:
    return load_checkpoint(run.checkpoints / f"step-{step}").card


def test_a_checkpoint_remembers_its_validations_and_the_best_one_learns_of_later_ones(folder: RunFolder) -> None:
    validated(folder, 0, 0.5, floor=0.1, floor_error=0.01)
    folder.log({"step": 5, "seconds": 2.0, "critic_loss": 1.0})  # not a validation
    validated(folder, 10, 0.2, critic_gap=0.123456789)
    validated(folder, 20, float("inf"))
    validated(folder, 30, 0.3)
    first = {"step": 0, "seconds": 0.0, "score": 0.5, "floor": 0.1, "floor_error": 0.01}
    second = {"step": 10, "seconds": 5.0, "score": 0.2, "critic_gap": 0.123457}
    assert card(folder, 20).history == (first, second, {"step": 20, "seconds": 10.0, "score": None})
    assert card(folder, 10).history == card(folder, 30).history  # the best one's card goes on
    assert [one["step"] for one in card(folder, 10).history] == [0, 10, 20, 30]
    assert folder.steps() == [10, 20, 30]


def test_the_history_of_a_long_run_is_thinned_but_keeps_first_best_and_last(folder: RunFolder) -> None:
    for step in range(1000):
        folder.log({"step": step, "seconds": step, "score": 0.1 if step == 777 else 1.0})
    steps = [one["step"] for one in folder.history(until=900)]
    assert len(steps) <= 64
    assert steps == sorted(set(steps))
    assert {0, 777, 900} <= set(steps)
    assert max(b - a for a, b in pairwise(steps)) < 20


def test_cards_without_a_history_load(folder: RunFolder) -> None:
    validated(folder, 0, 0.5)
    edit_card(folder.checkpoints / "step-0")
    assert card(folder, 0).history == ()


def test_a_trained_run_has_a_floor_and_time_goes_on_when_it_is_resumed(trained: Trained, tmp_path: Path) -> None:
    shutil.copytree(trained.folder, tmp_path / "run")
    records = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    for record in records:
        record["seconds"] = record.get("seconds", 0) + 1000
    (tmp_path / "run" / "log.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    train(tiny(training={"steps": 6}), trained.data, tmp_path / "run", resume=True)
    history = load_checkpoint(tmp_path / "run" / "checkpoints" / "step-6").card.history
    assert [one["step"] for one in history] == [0, 2, 4, 6]
    assert 0 < history[0]["floor"] < history[0]["score"]
    assert history[0]["floor_error"] > 0
    assert history[-1]["seconds"] > history[-2]["seconds"] > 1000


@pytest.mark.parametrize("name", ["training.safetensors", "model.safetensors", "checkpoint.json"])
def test_a_damaged_newest_checkpoint_is_set_aside_and_an_older_one_resumed(
    name: str, trained: Trained, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained.folder, run)
    folder = RunFolder(run)
    newest = folder.checkpoints / f"step-{folder.steps()[-1]}" / name
    content = newest.read_bytes()
    newest.write_bytes(content[: len(content) // 2])
    told: list[dict[str, Any]] = []
    train(trained.config, trained.data, run, resume=True, progress=told.append)
    warnings = [record["warning"] for record in told if "warning" in record]
    assert warnings[0].startswith("set aside a damaged checkpoint: ")
    assert str(newest.parent) in warnings[0]
    assert folder.steps()[-1] == 4
    assert (folder.checkpoints / "damaged-step-4" / name).exists()
    whole, again = (load_checkpoint(path / "checkpoints" / "step-4") for path in (trained.folder, run))
    assert all(torch.equal(tensor, again.model[key]) for key, tensor in whole.model.items())


def test_a_damaged_best_checkpoint_is_the_best_no_longer_once_the_run_is_resumed(
    trained: Trained, tmp_path: Path
) -> None:
    run = RunFolder(tmp_path / "run")
    shutil.copytree(trained.folder, run.path)
    first, *others = run.steps()
    scores = {step: load_checkpoint(run.checkpoints / f"step-{step}").card.score for step in others}
    (run.path / "best.json").write_text(json.dumps({"step": first, "score": 0.0, "checkpoint": f"step-{first}"}))
    (run.checkpoints / f"step-{first}" / "model.safetensors").unlink()
    train(trained.config, trained.data, run.path, resume=True)
    best = run.best()
    assert best is not None
    assert best["step"] == min(others, key=scores.__getitem__)
    assert first not in run.steps()


def test_what_a_newer_calogen_wrote_is_not_damaged(trained: Trained, tmp_path: Path) -> None:
    shutil.copytree(trained.folder, tmp_path / "run")
    folder = RunFolder(tmp_path / "run")
    steps = folder.steps()
    path = folder.checkpoints / f"step-{steps[-1]}" / "checkpoint.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"calogen_checkpoint": 99}))
    with pytest.raises(CheckpointError, match="newer calogen"):
        train(trained.config, trained.data, tmp_path / "run", resume=True)
    assert folder.steps() == steps


def test_if_all_checkpoints_are_damaged_the_newest_is_named_and_nothing_touched(
    trained: Trained, tmp_path: Path
) -> None:
    shutil.copytree(trained.folder, tmp_path / "run")
    folder = RunFolder(tmp_path / "run")
    steps = folder.steps()
    for step in steps:
        (folder.checkpoints / f"step-{step}" / "checkpoint.json").write_text("{")
    with pytest.raises(CheckpointError, match="damaged") as raised:
        train(trained.config, trained.data, tmp_path / "run", resume=True)
    assert f"step-{steps[-1]}" in str(raised.value.where)
    assert folder.steps() == steps


def test_the_environment_names_the_commit_of_this_code_and_whether_it_was_changed() -> None:
    facts = environment()
    assert facts.keys() >= {"calogen", "torch", "numpy", "python", "commit"}
    assert "dirty" not in facts["commit"]
    if facts["commit"]:  # not of an installed copy
        assert len(facts["commit"]) >= 12
        assert isinstance(facts["code_changed"], bool)
