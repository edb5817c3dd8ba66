"""Configuration: defaults, files, overrides, and errors that name the key."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support import BINNING, ROOT, SMALL

from calogen.config import Config
from calogen.errors import ConfigError
from calogen.families import FAMILIES

CONFIGS = sorted((ROOT / "configs").glob("**/*.toml"))


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_every_shipped_configuration_loads_and_names_a_known_family(path: Path) -> None:
    config = Config.load(path)
    family = config.resolved_family()
    for name in (*(config.conditions or ()), *config.holdout):
        assert family is not None
        assert family.condition(name).name == name


def test_a_file_and_overrides_change_only_what_they_name(tmp_path: Path) -> None:
    path = write(tmp_path / "a.toml", 'family = "calogan"\nseed = 3\n[training]\nsteps = 10\nbatch_size = 32\n')
    config = Config.load(path, ["training.steps=20", "generator.hidden=[4, 5]", "device=cpu", "training.augment=false"])
    assert (config.seed, config.device) == (3, "cpu")
    assert (config.training.steps, config.training.batch_size, config.training.augment) == (20, 32, False)
    assert config.generator.hidden == (4, 5)
    assert config.critic == Config().critic
    assert config.resolved_family() == FAMILIES["calogan"]


def test_the_resolved_configuration_survives_its_json() -> None:
    config = Config.build({"family": SMALL, "holdout": {"angle": (0.1, 0.2)}, "training": {"time": 3.5}})
    assert Config.build(json.loads(config.to_json())) == config
    assert config.resolved_family() == SMALL


def test_a_family_table_and_a_binning_file_beside_the_configuration_are_understood(tmp_path: Path) -> None:
    table = '[family]\nname = "t"\nkind = "map"\nunit = ""\npixels = [8, 8]\n'
    assert Config.load(write(tmp_path / "a.toml", table)).resolved_family().pixels == (8, 8)  # type: ignore[union-attr]
    binning = BINNING
    xml = next(p for p in sorted(binning.glob("*.xml")) if "2" in p.stem)
    (tmp_path / "mine.xml").write_text(xml.read_text())
    family = Config.load(write(tmp_path / "b.toml", 'family = "mine.xml"\n')).resolved_family()
    assert family is not None
    assert family.voxels == 6480


def test_updated_changes_a_section_in_part() -> None:
    config = Config.build({"training": {"steps": 7}}).updated({"seed": 9, "training": {"batch_size": 8}})
    assert (config.seed, config.training.steps, config.training.batch_size) == (9, 7, 8)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("stepz = 1", ["unknown configuration key 'stepz'"]),
        ("[training]\nstepz = 1", ["unknown configuration key 'training.stepz'", "did you mean 'steps'"]),
        ("[trainin]\nsteps = 1", ["unknown configuration key 'trainin'", "did you mean 'training'"]),
        ("[training]\nsteps = -1", ["training.steps", "greater than or equal to 0", "-1"]),
        ("[training]\nbatch_size = 'many'", ["training.batch_size", "many"]),
        ("[training]\nlearning_rate = inf", ["training.learning_rate"]),
        ("[training]\nlearning_rate = nan", ["training.learning_rate"]),
        ("[training]\nbetas = [0.5, 1.0]", ["training.betas.1"]),
        ("[training]\ntime = true", ["training.time", "a number, not true or false", "True"]),
        ("[training]\nsteps = false", ["training.steps", "a number, not true or false", "False"]),
        ("[training]\nbetas = [0.5, false]", ["training.betas.1", "a number, not true or false"]),
        ("[generator]\nhidden = [8, true]", ["generator.hidden.1", "a number, not true or false"]),
        ("holdout = {angle = [false, 5]}", ["holdout.angle.0", "a number, not true or false"]),
        ("seed = true", ["bad value for 'seed'", "a number, not true or false"]),
        ("[family]\nname = 't'\nkind = 'map'\npixels = [8, 8]\nbox_size = true", ["family.box_size", "a number, not"]),
        ("[generator]\nhidden = [0]", ["generator.hidden.0"]),
        ("[critic]\nchannels = []", ["critic.channels"]),
        ("seed = -1", ["seed"]),
        ("holdout = {incident_energy = [5, 5]}", ["low must be below high"]),
        ("[family]\nname = 'x'\ntreshold = 1", ["treshold"]),
        ("seed = = 1", ["not valid TOML"]),
    ],
)
def test_a_wrong_file_is_explained(tmp_path: Path, text: str, parts: list[str]) -> None:
    path = write(tmp_path / "a.toml", text)
    with pytest.raises(ConfigError) as raised:
        Config.load(path)
    message = str(raised.value)
    assert all(part in message for part in parts), message
    assert str(path) in message
    assert raised.value.exit_code == 2


@pytest.mark.parametrize(
    ("override", "part"),
    [
        ("training.steps", "KEY=VALUE"),
        ("=1", "KEY=VALUE"),
        ("seed.x=1", "'seed' is a value"),
        ("training.step=1", "did you mean 'steps'"),
        ("training.steps=many", "training.steps"),
        ("training.time=true", "bad value for 'training.time'"),
        ("device=true", "bad value for 'device'"),
    ],
)
def test_a_wrong_override_is_explained(tmp_path: Path, override: str, part: str) -> None:
    with pytest.raises(ConfigError, match=part):
        Config.load(write(tmp_path / "a.toml", "seed = 1"), [override])


def test_missing_and_binary_files_are_explained(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read the configuration"):
        Config.load(tmp_path / "none.toml")
    (tmp_path / "b.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="not valid TOML"):
        Config.load(tmp_path / "b.toml")


def test_an_unknown_family_is_suggested() -> None:
    with pytest.raises(ConfigError, match="did you mean 'calogan'"):
        Config.build({"family": "calogam"}).resolved_family()
