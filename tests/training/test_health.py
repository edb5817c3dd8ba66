"""A run that goes wrong is noticed: collapse, decline, no progress."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from calogen.analysis.metrics.validation import Judgement
from support import MAPS, SMALL, tiny, toy, write_folder

from calogen.models.showers.generator import ShowerGenerator
from calogen.training.health import COLLAPSED, alarm, diversity, without_progress
from calogen.training.loop import train


def records(*scores: float | None, diversity: float = 1.0) -> list[dict[str, Any]]:
    return [{"step": 10 * i, "score": value, "diversity": diversity} for i, value in enumerate(scores)]


@pytest.mark.parametrize("family", [SMALL, MAPS], ids=lambda f: f.name)
def test_diversity_is_one_for_the_reference_and_nothing_for_one_sample_at_each_condition(family: Any) -> None:
    reference = toy(family, 400)
    other = replace(reference, values=toy(family, 400).values)
    assert diversity(reference, other) == pytest.approx(1.0)
    same = replace(reference, values=np.repeat(reference.values[:1], 400, 0))
    assert diversity(reference, same) < 1e-6
    plain = replace(reference, conditions={})  # unconditional
    assert diversity(plain, replace(same, conditions={})) < 1e-6


def test_half_as_much_variation_is_half_the_diversity() -> None:
    rng = np.random.default_rng(1)
    reference = replace(toy(MAPS, 300), values=np.float32(1 + 0.1 * rng.normal(size=(300, 16, 16))))
    less = replace(reference, values=np.float32(1 + 0.05 * rng.normal(size=(300, 16, 16))))
    found = diversity(reference, less)
    assert found <= 0.5 + 0.01
    assert found > 0.2  # observables are of second order in the field, or of first


def test_conditions_that_repeat_are_paired_with_others_than_themselves() -> None:
    reference = toy(MAPS, 60)
    for name, column in reference.conditions.items():
        column[:] = np.repeat(column[:6], 10)
        assert len(np.unique(reference.conditions[name])) == 6
    assert diversity(reference, reference) == pytest.approx(1.0)


def test_a_decline_is_told_once_and_only_after_several_validations() -> None:
    scores = [1.0, 2.0, 1.0, 1.6, 1.7, 1.6, 9.0, 1.0, 2.0]
    told = [alarm(records(*scores[: n + 1])) for n in range(len(scores))]
    assert [bool(text) for text in told] == [False] * 5 + [True] + [False] * 3
    assert "step 0" in str(told[5])
    assert alarm(records(1.0, None, None, None)) is not None  # infinite, as the log holds it


def test_collapse_is_told_when_it_comes_and_never_of_the_start() -> None:
    healthy, bad = records(1.0, 1.0), records(1.0, 1.0, 1.0, diversity=COLLAPSED / 2)
    assert alarm(bad[:1]) is None
    assert "collapsing" in str(alarm(bad[:2]))
    assert alarm(bad) is None
    assert alarm(healthy) is None
    assert "0.15 times" in str(alarm([*healthy, bad[2]]))


def test_validations_without_progress_are_counted() -> None:
    found = [
        without_progress(records(*scores)) for scores in ([], [3.0], [3.0, 2.0], [2.0, 3.0, 2.0], [None, 1.0, None])
    ]
    assert found == [0, 0, 0, 2, 1]


def test_a_network_that_collapses_is_reported_and_the_last_good_checkpoint_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = ShowerGenerator.forward
    calls = {"validations": 0}

    def collapsing(self: ShowerGenerator, latent: Any, conditions: Any) -> Any:
        calls["validations"] += not self.training
        return forward(self, latent * (calls["validations"] <= 2 or self.training), conditions)

    monkeypatch.setattr(ShowerGenerator, "forward", collapsing)
    data = write_folder(tmp_path / "data", toy(SMALL, 300))
    options = {"steps": 8, "validate_every": 2, "checkpoint_every": 2, "log_every": 2}
    run = train(tiny(training=options), data, tmp_path / "run")
    log = [json.loads(line) for line in (run.folder / "log.jsonl").read_text().splitlines()]
    warnings = [r for r in log if "warning" in r]
    assert [r["step"] for r in warnings if "collapsing" in r["warning"]] == [4]
    assert [r["diversity"] < COLLAPSED for r in log if "diversity" in r] == [False, False, True, True, True]
    assert json.loads((run.folder / "best.json").read_text())["step"] <= 2


def test_patience_ends_a_run_that_makes_no_progress(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scores = iter([3.0, 2.0, 2.5, 2.5, 2.5])
    monkeypatch.setattr("calogen.training.trainers.judge", lambda *_: Judgement(next(scores), {}))
    data = write_folder(tmp_path / "data", toy(SMALL, 160))
    run = train(tiny(training={"steps": 20, "validate_every": 2, "patience": 2}), data, tmp_path / "run")
    assert (run.step, run.score) == (6, 2.0)
    assert "no better score in 2 validations" in run.records[-1]["stopped"]
    assert sorted(p.name for p in (run.folder / "checkpoints").iterdir()) == ["step-2", "step-4", "step-6"]
