"""A fit can start from another surrogate: what few showers cannot say is taken over, and strangers are refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support import SINGLE, SMALL, tiny, toy, write_folder

from calogen.errors import CheckpointError, ConfigError
from calogen.runs.checkpoint import load_checkpoint
from calogen.training.loop import train


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with showers, few of them, showers of other layers, and a surrogate of the first."""
    folder = tmp_path_factory.mktemp("prior")
    write_folder(folder / "many", toy(SMALL, 600), 600)
    write_folder(folder / "few", toy(SMALL, 60, seed=5), 60)
    write_folder(folder / "other", toy(SINGLE, 240), 240)
    train(tiny(training={"steps": 0}), folder / "many", folder / "run")
    return folder


def test_correlations_are_taken_over_and_voxels_move_a_little(home: Path, tmp_path: Path) -> None:
    config = tiny(training={"steps": 0}, prior=str(home / "run"))
    run = train(config, home / "few", tmp_path / "run")
    start, found = (load_checkpoint(folder / "checkpoints" / "step-0").model for folder in (home / "run", run.folder))
    for name in ("loadings", "drift", "mixing", "transform.voxels.shape_centre", "transform.voxels.stations"):
        assert torch.equal(found[name], start[name]), name
    assert not torch.equal(found["transform.energies.location"], start["transform.energies.location"])
    moved = (found["transform.voxels.location"] - start["transform.voxels.location"]).abs()
    alone = load_checkpoint(
        train(tiny(training={"steps": 0}), home / "few", tmp_path / "alone").folder / "checkpoints" / "step-0"
    ).model["transform.voxels.location"]
    apart = (alone - start["transform.voxels.location"]).abs()
    assert 0 < float(moved.mean()) < 0.1 * float(apart.mean())  # 54 showers are worth about 1 % of what was known


def test_surrogates_of_other_layers_or_conditions_are_refused(home: Path, tmp_path: Path) -> None:
    for data, changes, what in (
        ("other", {}, "other layers"),
        ("few", {"conditions": ["incident_energy"]}, "other conditions"),
        ("few", {"generator": {"network": "mlp"}}, "another network"),
    ):
        with pytest.raises(ConfigError, match=what):
            train(tiny(training={"steps": 0}, prior=str(home / "run"), **changes), home / data, tmp_path / "run")
    with pytest.raises(CheckpointError, match="there is no model"):
        train(tiny(prior="nowhere"), home / "few", tmp_path / "run")
    assert not (tmp_path / "run").exists()
