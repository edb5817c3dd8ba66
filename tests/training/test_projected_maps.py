"""Projected training of maps: it mends a planted defect, resumes bit for bit, and keeps critics that choose."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support import tiny, toy, write_folder

from calogen.errors import ConfigError
from calogen.families import FAMILIES, Family
from calogen.models.maps import zeldovich
from calogen.models.maps.spectra import shell_power
from calogen.models.maps.zeldovich import ZeldovichGenerator
from calogen.runs.checkpoint import load_checkpoint
from calogen.sampling import Surrogate
from calogen.shards.samples import Samples
from calogen.training import loop, projected, train
from calogen.training.projected import ProjectedTrainer
from calogen.training.setup import prepare

SMALL = Family.model_validate({**FAMILIES["nbody-64"].model_dump(), "pixels": (16, 16), "box_size": 16.0})
ROUNDS = {"update": "projected", "log_every": 1, "validate_every": 1, "checkpoint_every": 1, "validation_size": 64}


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"_EPOCHS": 10, "_SLOPES": 1000, "_CRITICS": 2}.items():
        monkeypatch.setattr(projected, name, value)
    monkeypatch.setattr(zeldovich, "_FIT_MAPS", 2048)


@pytest.fixture(scope="module")
def maps() -> Samples:
    return toy(SMALL, 1600, seed=1)


@pytest.fixture(scope="module")
def data(maps: Samples, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("projected") / "data", maps)


def run_of(**training: Any) -> Any:
    return tiny("map", training={**ROUNDS, "steps": 2, **training})


def test_maps_are_trained_by_projection_where_asked_for(data: Path, tmp_path: Path, maps: Samples) -> None:
    assert prepare(run_of(), data).config.training.update == "projected"
    assert prepare(run_of(update="auto"), data).config.training.update == "adam"
    few = write_folder(tmp_path / "few", maps.read(0, 900))
    with pytest.raises(ConfigError, match="at least 1000"):
        prepare(run_of(), few)


def test_a_planted_defect_is_mended(data: Path, tmp_path: Path) -> None:
    """Small scales too weak by a quarter."""
    trainer = loop.TrainingLoop.start(prepare(run_of(), data), tmp_path / "run", check=False).trainer
    assert isinstance(trainer, ProjectedTrainer)
    generator = trainer.generator
    assert isinstance(generator, ZeldovichGenerator)
    latent = torch.randn(400, generator.latent_size, generator=torch.Generator().manual_seed(3))
    conditions = torch.tensor([[0.3, 0.8]]).repeat(400, 1)

    def power() -> float:
        with torch.no_grad():
            return float(shell_power(generator(latent, conditions).log())[:, 4:8].log().mean())

    whole = power()
    generator.transfer[0, 4:] -= 0.3
    trainer.arm()
    before = power()
    assert before < whole - 0.1
    found = [trainer.step() for _ in range(2)]
    assert found[0]["validation_auc"] > 0.6
    assert any(bool(round_["accepted"]) for round_ in found)
    assert abs(power() - whole) < 0.7 * abs(before - whole)


@pytest.mark.slow
def test_a_resumed_run_is_the_same_and_its_critics_choose(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(projected, "_CHANCE", -100.0)
    monkeypatch.setattr(ProjectedTrainer, "_harm", lambda *_: 0.0)
    whole = train(run_of(), data, tmp_path / "whole")
    asked = {"times": 0}

    def stop() -> int:
        asked["times"] += 1
        return 15 if asked["times"] == 1 else 0

    with pytest.raises(Exception, match="stopped by signal"):
        train(run_of(), data, tmp_path / "parts", should_stop=stop)
    parts = train(run_of(), data, tmp_path / "parts", resume=True)
    mine, other = (load_checkpoint(run.folder / "checkpoints" / "step-2").model for run in (whole, parts))
    assert mine["refinement.coefficients"].any()
    assert all(torch.equal(mine[name], other[name]) for name in mine)

    surrogate = Surrogate.load(whole.folder / "checkpoints" / "step-2")
    where = {"Omega_m": 0.3, "sigma_8": 0.8}
    plain, chosen = (each.sample(where, 6, seed=1) for each in (surrogate, surrogate.selecting(3)))
    assert plain.shape == chosen.shape
    assert not (plain == chosen).all()
