"""Runs side by side say what differs between them, and what came of each; their numbers are TensorBoard events, too."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support import Trained, command

import calogen
from calogen.errors import CheckpointError, ConfigError
from calogen.runs.beside import table
from calogen.training.loop import train


def test_settings_that_differ_have_columns_and_others_have_none(trained: Trained, tmp_path: Path) -> None:
    other = trained.config.updated({"seed": 3, "training": {"learning_rate": 1e-3, "steps": 2}})
    run = train(other, trained.data, tmp_path / "other")
    first, second = table([trained.folder, tmp_path / "other"])
    assert {"seed", "training.learning_rate", "training.steps"} <= first.keys()
    assert not {"training.batch_size", "family", "data", "conditions"} & first.keys()
    assert (second["seed"], second["training.learning_rate"]) == (3, 1e-3)
    assert (second["score"], second["best_step"], second["steps"]) == (run.score, run.best_step, 2)
    assert second["start"] == run.records[0]["score"] or second["start"] is not None
    assert second["seconds"] > 0
    assert calogen.runs.table is table
    done = command("info", trained.folder, tmp_path / "other", "--json")
    assert json.loads(done.out) == [first, second]
    shown = command("info", trained.folder, tmp_path / "other").out
    assert "training.learning rate" in shown
    assert str(tmp_path / "other") in shown


def test_what_is_no_run_is_refused(trained: Trained) -> None:
    with pytest.raises(ConfigError, match="no run is named"):
        table([])
    with pytest.raises(CheckpointError, match="no model"):
        table([trained.folder, "calogan-gama"])
    done = command("info", trained.folder, trained.data)
    assert done.code == 2
    assert "only runs are put side by side" in done.err


def test_a_surrogate_that_comes_with_calogen_has_its_history() -> None:
    (row,) = table(["calogan-gamma-angled"])
    assert (row["best_step"], row["steps"]) == (12, 12)
    assert row["score"] < row["start"]


def test_the_log_is_tensorboard_events(trained: Trained, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = train(trained.config.updated({"training": {"tensorboard": True, "steps": 2}}), trained.data, tmp_path / "run")
    found = EventAccumulator(str(run.folder))
    found.Reload()
    scores = {event.step: event.value for event in found.Scalars("validation/score")}
    logged = {record["step"]: record["score"] for record in run.records if record.get("score") is not None}
    assert scores == pytest.approx(logged, rel=1e-6)
    again = train(trained.config.updated({"training": {"steps": 2}}), trained.data, run.folder, resume=True)
    assert again.step == 2  # whether events are written may change
