"""Fits are kept under everything that decides them: the same gives the same bits, anything else is fitted anew."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from support import SMALL, everything_in, tiny, toy, write_folder

from calogen.config import Config
from calogen.runs.find import load_model
from calogen.training import kept
from calogen.training.loop import Run, train
from calogen.training.setup import prepare


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(kept, "FEWEST_SECONDS", 0.0)
    return write_folder(tmp_path / "data", toy(SMALL, 300))


def notes(run: Run) -> list[str]:
    return [record["note"] for record in run.records if "the fit of an earlier run" in record.get("note", "")]


def test_a_kept_fit_gives_the_same_bits_and_a_damaged_one_is_made_anew(
    data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = tiny(training={"steps": 1})
    first = train(config, data, tmp_path / "first")
    scan = config.updated({"training": {"learning_rate": 1e-3, "steps": 0}})
    second = train(scan, data, tmp_path / "second")
    assert not notes(first)
    assert len(notes(second)) == 1
    start, again = (next(record for record in run.records if "score" in record) for run in (first, second))
    assert start["score"] == again["score"]
    assert again["seconds"] > 0.5 * start["seconds"]  # the time of the fit counts whenever it was made
    (tensors,) = (tmp_path / "cache" / "calogen" / "fits").glob("*.safetensors")
    assert load_model(second.folder).card.step == 0
    tensors.write_bytes(tensors.read_bytes()[:-1] + b"x")
    with caplog.at_level(logging.WARNING, "calogen"):
        third = train(config, data, tmp_path / "third")
    assert "made anew" in caplog.text
    assert not notes(third)
    same = [
        {k: v for k, v in everything_in(run.folder / "checkpoints").items() if k.endswith("model.safetensors")}
        for run in (first, third)
    ]
    assert same[0] == same[1]


def test_a_name_is_that_of_all_that_decides_and_of_nothing_else(data: Path, tmp_path: Path) -> None:
    def name(where: Path = data, **changes: object) -> str:
        return kept.fit_name(prepare(Config.build(tiny().model_dump(exclude_unset=True)).updated(changes), where))

    other = write_folder(tmp_path / "other", toy(SMALL, 300, seed=1))
    assert name() == name(training={"learning_rate": 0.1, "steps": 7, "reuse_fit": False})
    different = [
        name(),
        name(other),
        name(seed=7),
        name(conditions=["incident_energy"]),
        name(holdout={"incident_energy": (2e4, 3e4)}),
        name(symmetries=[]),
    ]
    assert len(set(different)) == len(different)


def test_switched_off_nothing_is_written(data: Path, tmp_path: Path) -> None:
    train(tiny(training={"steps": 0, "reuse_fit": False}), data, tmp_path / "run")
    assert not list((tmp_path / "cache").rglob("*.safetensors"))
