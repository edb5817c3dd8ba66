"""Fixtures that tests of several rooms share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from support import Trained, tiny, toy, write_folder

from calogen.families import FAMILIES, Family
from calogen.shards.reader import Shards
from calogen.shards.sources import open_shards

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A tiny run on toy showers of family calogan; leave it as it is."""
    from calogen.training.loop import train

    home = tmp_path_factory.mktemp("trained")
    samples = toy(FAMILIES["calogan"], 700, seed=7)
    data = write_folder(home / "data", samples, 400)
    config = tiny()
    train(config, data, home / "run")
    return Trained(home / "run", data, samples, config)


@pytest.fixture
def shards(tmp_path: Path) -> Callable[..., Shards]:
    """Opens toy shards of a family: ``shards(family, count, seed, each)``."""

    def make(family: Family, count: int, seed: int = 0, each: int | None = None) -> Shards:
        return open_shards(write_folder(tmp_path / f"{family.name}-{count}-{seed}", toy(family, count, seed), each))

    return make
