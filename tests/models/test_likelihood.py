"""Generators that learn by a likelihood of their own: they train, resume and are kept like the others."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support import MAPS, SMALL, tiny, toy, write_folder
from torch import Tensor, nn

from calogen.config import Config
from calogen.errors import ConfigError, Interrupted
from calogen.families import FAMILIES, Family
from calogen.models.contract import LikelihoodGenerator
from calogen.models.registry import NETWORKS, Network, build_critic, build_generator, settled
from calogen.runs.checkpoint import load_checkpoint, seal
from calogen.sampling import Surrogate
from calogen.shards.samples import Samples
from calogen.training.loop import train
from calogen.training.objectives import objective_of
from calogen.training.setup import prepare


class Gaussian(LikelihoodGenerator):
    """Independent normal roots of the voxels: the likelihood, its best parameters and samples are known exactly."""

    def __init__(self, family: Family, conditions: Sequence[str], latent: int = 3) -> None:
        super().__init__(family, conditions)
        self.transform, self.latent_size = nn.Identity(), family.voxels
        self.latent = latent
        self.centre = nn.Parameter(torch.zeros(family.voxels))
        self.log_spread = nn.Parameter(torch.zeros(family.voxels))

    def fit(self, samples: Samples, seed: int) -> None:
        pass

    def loss(self, samples: Tensor, conditions: Tensor, stream: torch.Generator) -> Tensor:
        roots = samples.sqrt() + 1e-3 * torch.randn(samples.shape, generator=stream, device=samples.device)
        pull = (roots - self.centre) / self.log_spread.exp()
        return (pull.square() / 2 + self.log_spread + math.log(2 * math.pi) / 2).sum(1).mean()

    def forward(self, latent: Tensor, conditions: Tensor) -> Tensor:
        return (self.centre + self.log_spread.exp() * latent).square()


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "calogen.models.of_a_test", sys.modules[__name__])
    monkeypatch.setitem(NETWORKS["calorimeter"], "gaussian", Network("of_a_test.Gaussian"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("data") / "small", toy(SMALL, 200), 100)


def gaussian(**training: Any) -> Config:
    options = {"objective": "likelihood", "learning_rate": 0.05, "steps": 6, **training}
    return tiny(generator={"network": "gaussian"}, training=options)


def test_it_reaches_the_best_parameters_and_its_loss_the_entropy(data: Path, tmp_path: Path) -> None:
    config = gaussian(steps=300, batch_size=64, log_every=100, validate_every=300, augment=False, learning_rate=0.1)
    run = train(config.updated({"training": {"ema": 0.9}}), data, tmp_path / "run")
    roots = torch.from_numpy(prepare(config, data).training.read(0, 180).values).sqrt()
    generator = load_checkpoint(run.folder / "checkpoints" / "step-300").generator()
    assert isinstance(generator, Gaussian)
    spread = generator.log_spread.exp()
    assert float(((generator.centre - roots.mean(0)) / roots.std(0).clamp(min=1e-2)).abs().max()) < 0.35
    varied = roots.std(0) > 0.5
    torch.testing.assert_close(spread[varied], roots.std(0)[varied], rtol=0.15, atol=0)
    first, last = run.records[0], run.records[-1]
    assert last["loss"] < first["loss"]
    assert last["loss"] - last["loss_gap"] == pytest.approx(
        float(generator.loss(roots.square()[:20], torch.zeros(20, 2), torch.Generator())), rel=0.2
    )


def test_a_resumed_run_is_the_one_never_stopped(data: Path, tmp_path: Path) -> None:
    train(gaussian(), data, tmp_path / "whole")
    asked = iter([0, 0, 0, 15])
    with pytest.raises(Interrupted, match="after step 4"):
        train(gaussian(), data, tmp_path / "run", should_stop=lambda: next(asked))
    train(gaussian(), data, tmp_path / "run", resume=True)
    one, two = (load_checkpoint(tmp_path / name / "checkpoints" / "step-6") for name in ("whole", "run"))
    for a, b in ((one.model, two.model), (one.training_state(), two.training_state())):
        assert a.keys() == b.keys()
        assert all(torch.equal(tensor, b[name]) for name, tensor in a.items())
    assert not any("critic" in name for name in one.training_state())
    assert one.card.config.generator.network == "gaussian"
    assert one.card.config.generator.latent == 4


def test_the_log_has_losses_and_no_critic(data: Path, tmp_path: Path) -> None:
    run = train(gaussian(), data, tmp_path / "run")
    promised = {"generator_loss", "generator_gradient", "score", "diversity", "loss", "loss_gap"}
    records = [json.loads(line) for line in (run.folder / "log.jsonl").read_text().splitlines()]
    steps = [record for record in records[1:] if "warning" not in record]
    assert len(steps) > 1
    assert all(promised <= record.keys() for record in steps)
    assert not any("critic" in name for record in records for name in record)
    assert prepare(gaussian(), data).parameters() == (2 * SMALL.voxels, 0)


def test_a_surrogate_of_it_samples_and_generates_the_same(data: Path, tmp_path: Path) -> None:
    surrogate = Surrogate.load(train(gaussian(), data, tmp_path / "run").folder)
    conditions = {"incident_energy": np.full(7, 2e3), "angle": np.zeros(7)}
    made = surrogate.sample(conditions, seed=3)
    assert made.shape == (7, SMALL.voxels)
    again = surrogate.sample({name: column[:2] for name, column in conditions.items()}, seed=3)
    np.testing.assert_allclose(again, made[:2], rtol=1e-5)


@pytest.mark.parametrize(
    ("generator", "objective", "part"),
    [
        ("gaussian", "wgan-gp", "a loss of its own and no critic"),
        ("flow", "wgan-gp", "training.objective=likelihood"),
        ("copula", "likelihood", "the likelihood of a sample is not known"),
        ("auto", "likelihood", "'copula' cannot learn by 'likelihood'"),
        ("gausian", "likelihood", "did you mean 'gaussian'"),
    ],
)
def test_network_and_objective_that_do_not_go_together_are_refused(generator: str, objective: str, part: str) -> None:
    config = Config.build({"generator": {"network": generator}, "training": {"objective": objective}})
    with pytest.raises(ConfigError, match=part) as raised:
        objective_of(SMALL, config.generator.network, config.training.objective)
    assert raised.value.exit_code == 2


def test_of_the_networks_of_maps_one_has_a_likelihood() -> None:
    with pytest.raises(ConfigError, match=r"(?s)cannot learn by 'likelihood'.*with a likelihood: pixelcnn"):
        objective_of(MAPS, "auto", "likelihood")
    assert objective_of(MAPS, "pixelcnn", "likelihood") is None


def test_a_network_without_a_critic_gets_none() -> None:
    generator = build_generator(SMALL, [], gaussian().generator)
    with pytest.raises(ConfigError, match="has no critic"):
        build_critic(generator, gaussian().critic)


def test_what_a_checkpoint_keeps_is_complete_and_settling_again_changes_nothing() -> None:
    for family in (FAMILIES["calogan"], MAPS):
        once = settled(Config(), family)
        assert once.generator.network in NETWORKS[family.kind]
        assert settled(once, family) == once
    showers = settled(Config(), FAMILIES["calogan"])
    assert (showers.generator.latent, showers.generator.hidden, showers.critic.hidden) == (192, (256, 128), (256, 128))
    assert showers.generator.channels is None  # of no use to it


def test_training_is_what_suits_the_network_where_nothing_is_given() -> None:
    def training(**given: float | str) -> tuple[str, int, int]:
        found = settled(Config().updated({"training": given}), MAPS).training
        return found.objective, found.steps, found.batch_size

    usual = Config().training
    assert training() == ("matching", 800, 48)
    assert training(steps=7) == ("matching", 7, 48)
    assert training(batch_size=4) == ("matching", 800, 4)
    assert training(time=60) == ("matching", usual.steps, 48)  # a time limit asks for steps
    assert training(objective="wgan-gp") == ("wgan-gp", usual.steps, usual.batch_size)
    assert settled(Config(), FAMILIES["calogan"]).training == usual


@pytest.mark.parametrize(
    ("sections", "family", "where", "words"),
    [
        ({"generator": {"channels": [8]}}, SMALL, "generator.channels", ["'copula' has no setting 'channels'"]),
        ({"critic": {"channels": [8]}}, SMALL, "critic.channels", ["setting 'channels' of its critic", "hidden"]),
        ({"generator": {"latent": 8}}, MAPS, "generator.latent", ["'zeldovich' has no setting 'latent'", "channels"]),
        ({"generator": {"network": "dcgan", "blocks": 2}}, MAPS, "generator.blocks", ["latent, scale"]),
        ({"generator": {"network": "gaussian"}, "critic": {"hidden": [8]}}, SMALL, "critic.hidden", ["has no critic"]),
        ({"generator": {"network": "gaussian", "hidden": [8]}}, SMALL, "generator.hidden", ["known: latent"]),
    ],
)
def test_settings_that_a_network_has_no_use_for_are_refused(
    sections: dict[str, Any], family: Family, where: str, words: list[str]
) -> None:
    objective = "likelihood" if "gaussian" in str(sections) else "wgan-gp"
    with pytest.raises(ConfigError) as raised:
        settled(Config.build({**sections, "training": {"objective": objective}}), family)
    assert raised.value.where == where
    assert all(word in str(raised.value) for word in words), raised.value


def test_a_checkpoint_of_the_network_scores_is_one_of_copula(data: Path, tmp_path: Path) -> None:
    run = train(tiny(training={"steps": 1}), data, tmp_path / "run")
    path = run.folder / "checkpoints" / "step-1" / "checkpoint.json"
    card = json.loads(path.read_text())
    assert card["config"]["generator"]["network"] == "copula"
    card["config"]["generator"]["network"] = "scores"
    del card["sha256"]
    path.write_text(json.dumps(card))
    seal(path.parent)
    assert load_checkpoint(path.parent).card.config.generator.network == "copula"
    assert load_checkpoint(path.parent).generator().network == "copula"


def test_no_steps_keep_the_fitted_start(data: Path, tmp_path: Path) -> None:
    run = train(tiny(training={"steps": 0}), data, tmp_path / "run")
    assert run.step == 0
    assert run.score == next(record["score"] for record in run.records if "score" in record)
    assert Surrogate.load(run.folder).card.step == 0
