"""Projected training: what its parts are, that it finds planted defects, ends, resumes, and what it refuses."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support import ENERGY, SINGLE, command, tiny, toy, write_folder

from calogen.errors import CheckpointError, ConfigError
from calogen.families import CartesianLayer, Family
from calogen.models.registry import build_generator
from calogen.models.showers.generator import ShowerGenerator
from calogen.runs.checkpoint import load_checkpoint
from calogen.sampling import Surrogate
from calogen.shards.samples import Samples
from calogen.training import critics, loop, projected, train
from calogen.training.projected import ProjectedTrainer
from calogen.training.setup import prepare

PAIR = Family(
    name="pair",
    layers=(CartesianLayer(shape=(5, 5), size=(50, 50)), CartesianLayer(shape=(4, 4), size=(50, 50))),
    conditions=(ENERGY,),
    threshold=0.01,
    symmetries=("mirror-x", "mirror-y"),
)
QUICK = (
    (critics, "_EPOCHS", 3),
    (critics, "_FEWEST_STEPS", 15),
    (projected, "_SLOPES", 1000),
    (projected, "CRITICS", 2),
)
ROUNDS = {"update": "projected", "log_every": 1, "validate_every": 1, "checkpoint_every": 1, "validation_size": 64}


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for module, name, value in QUICK:
        monkeypatch.setattr(module, name, value)


@pytest.fixture(scope="module")
def samples() -> Samples:
    return toy(PAIR, 1600, seed=1)


@pytest.fixture(scope="module")
def data(samples: Samples, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("projected") / "data", samples)


@pytest.fixture(scope="module")
def generator(samples: Samples) -> ShowerGenerator:
    made = build_generator(PAIR, ["incident_energy"], tiny().generator)
    assert isinstance(made, ShowerGenerator)
    made.fit(samples, 1)
    return made.eval().requires_grad_(False)


def run_of(data: Path, out: Path, **training: Any) -> Any:
    return train(tiny(training={**ROUNDS, "steps": 2, **training}), data, out)


def tensors(folder: Path, step: int) -> dict[str, torch.Tensor]:
    return load_checkpoint(folder / "checkpoints" / f"step-{step}").model


def drawn(generator: ShowerGenerator, samples: Samples) -> tuple[Any, torch.Tensor]:
    fitted = generator.transform.prepared(samples)
    given = generator.transform.given(fitted.energies.float(), fitted.conditions.float())
    return given, generator.normals(given, torch.Generator().manual_seed(3))[0]


def test_views_are_standard_uncorrelated_and_the_same_for_mirror_images(
    generator: ShowerGenerator, samples: Samples
) -> None:
    scene = generator.scenes(samples)[0]
    assert scene.views.shape == (len(scene), 2, 32)
    torch.testing.assert_close(scene.views.mean((0, 1)), torch.zeros(32), rtol=0, atol=0.1)
    for layer in range(2):
        values = scene.views[:, layer]
        values = values[:, values.std(0) > 0.1]  # of groups that have cells
        assert values.shape[1] >= 22
        off = torch.corrcoef(values.T) - torch.eye(values.shape[1])
        assert off.square().mean().sqrt() < 0.1  # shares that add up to 1, and what is cut off, are not whitened
        assert ((values.std(0) > 0.5) & (values.std(0) < 1.1)).all()
    for image in PAIR.images[1:]:
        turned = scene.like(replace(samples, values=np.ascontiguousarray(samples.values[:, image.order])))
        # Where centres should be is fitted to showers that are not quite even.
        both = torch.stack([turned.views.flatten(), scene.views.flatten()])
        assert torch.corrcoef(both)[0, 1] > 0.95


def test_patterns_of_mirror_images_are_mirror_images(generator: ShowerGenerator, samples: Samples) -> None:
    given, normals = drawn(generator, samples)
    refinement = generator.refinement
    coefficients = 0.1 * torch.randn(refinement.coefficients.shape, generator=torch.Generator().manual_seed(0))

    def refined(values: torch.Tensor) -> torch.Tensor:
        features = refinement.features(values, given)
        return refinement(values, given, torch.einsum("blf,laf->bla", features, coefficients * refinement.used))

    assert (refined(normals) - normals).abs().mean() > 0.05
    for image in PAIR.images[1:]:
        order = torch.from_numpy(image.order)
        torch.testing.assert_close(refined(normals[:, order]), refined(normals)[:, order], rtol=0, atol=1e-5)


def test_groups_are_shells_of_falling_energy_that_images_share(generator: ShowerGenerator, samples: Samples) -> None:
    group, mean = generator.refinement.group, torch.from_numpy(samples.values.mean(0))
    for image in PAIR.images[1:]:
        assert torch.equal(group[torch.from_numpy(image.order)], group)
    for part in PAIR.layer_slices:
        found = [mean[part][group[part] == number].mean() for number in group[part].unique()]
        assert len(found) > 2
        assert all(a > b for a, b in pairwise(found))


def test_least_squares_find_the_coefficients_that_made_the_changes() -> None:
    stream = torch.Generator().manual_seed(0)
    slopes, features = torch.randn(900, 6, 4, generator=stream), torch.randn(900, 3, generator=stream)
    used = torch.tensor([[1, 1, 1], [1, 0, 0], [1, 0, 1], [1, 1, 0]], dtype=torch.bool)
    truth = torch.randn(4, 3, generator=stream) * used
    wanted = torch.einsum("bda,af,bf->bd", slopes, truth, features)
    found = projected._least_squares(slopes, features, wanted, used)
    assert found.shape == (len(projected._RIDGES), int(used.sum()))
    torch.testing.assert_close(found[0], truth[used], rtol=0, atol=0.02)
    assert (found[-1].abs().sum() < found[0].abs().sum()).item()  # ridges shrink


def test_a_planted_defect_is_mended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(critics, "_FEWEST_STEPS", 100)
    data = write_folder(tmp_path / "data", toy(PAIR, 3000, seed=1))
    setup = prepare(tiny(training={**ROUNDS, "steps": 3}), data)
    started = loop.TrainingLoop.start(setup, tmp_path / "run", check=False)
    trainer = started.trainer
    assert isinstance(trainer, ProjectedTrainer)
    with torch.no_grad():  # all voxels fluctuate too much
        trainer.generator.transform.voxels.log_scale[0] += 0.5
    trainer.arm()

    def distance() -> float:
        unseen = trainer.aspects[0].unseen
        views, _ = trainer._pool(unseen, 1, torch.Generator().manual_seed(5))
        return float((views.mean(0) - unseen.views.mean(0)).square().mean().sqrt())

    before = distance()
    found = [trainer.step() for _ in range(3)]
    assert found[0]["validation_auc"] > 0.7
    assert found[-1]["validation_auc"] < found[0]["validation_auc"] - 0.03
    assert all(round_["accepted"] == 1 for round_ in found)
    assert 0 < found[0]["share"] < found[0]["linear_share"] + 0.1
    assert distance() < 0.8 * before


@pytest.mark.slow
def test_a_planted_defect_of_layer_energies_is_mended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(critics, "_EPOCHS", 60)
    setup = prepare(tiny(training={**ROUNDS, "steps": 4}), write_folder(tmp_path / "data", toy(PAIR, 3000, seed=1)))
    trainer = loop.TrainingLoop.start(setup, tmp_path / "run", check=False).trainer
    assert isinstance(trainer, ProjectedTrainer)
    energies = trainer.generator.transform.energies
    with torch.no_grad():  # the total and a share are too large, and depend on each other
        energies.bent[0, :2, :6] += 0.6
        energies.linear[:, 1, 0] += 0.5
    trainer.arm()
    trainer.aspects = trainer.aspects[1:]
    (aspect,) = trainer.aspects

    def distance() -> float:
        views, _ = trainer._pool(aspect.unseen, 1, torch.Generator().manual_seed(5))
        return float((views.mean(0) - aspect.unseen.views.mean(0)).square().mean().sqrt())

    before = distance()
    found = [trainer.step() for _ in range(2)]
    assert found[0]["energies_validation_auc"] > 0.6
    assert distance() < 0.4 * before
    assert not energies.linear.triu().any()  # of the normals before each variable alone, or there is no inverse


def test_a_change_of_layer_energies_is_the_same_once_it_is_part_of_the_fit(
    generator: ShowerGenerator, samples: Samples
) -> None:
    scene = copy.deepcopy(generator).scenes(samples)[1]
    refinement = scene.refinement
    step = 0.1 * torch.randn(refinement.coefficients.shape, generator=torch.Generator().manual_seed(0))
    step = step * refinement.used

    def views(step: torch.Tensor | None = None) -> torch.Tensor:
        draft = scene.draw(torch.arange(500), torch.Generator().manual_seed(2))
        return draft.views(refinement.amplitudes(draft.features, step))

    before, changed = views(), views(step)
    assert (changed - before).abs().mean() > 0.05
    refinement.add(step)
    assert ((views() - changed).abs() < 1e-3).double().mean() > 0.99  # rounding counts where hardly any energy is left


def test_a_resumed_run_is_the_same_as_one_that_was_not_stopped(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(projected, "_CHANCE", -100.0)
    whole = run_of(data, tmp_path / "whole")
    first = {"n": 0}

    def stop() -> int:
        first["n"] += 1
        return 15 if first["n"] == 1 else 0

    config = tiny(training={**ROUNDS, "steps": 2})
    with pytest.raises(Exception, match="stopped by signal"):
        train(config, data, tmp_path / "parts", should_stop=stop)
    parts = train(config, data, tmp_path / "parts", resume=True)
    mine, other = tensors(whole.folder, 2), tensors(parts.folder, 2)
    assert mine["refinement.coefficients"].any()
    assert all(torch.equal(mine[name], other[name]) for name in mine)
    records = map(json.loads, (parts.folder / "log.jsonl").read_text().splitlines())
    known = {name for record in records for name in record}
    assert {"critic_auc", "validation_auc", "share", "linear_share", "moved", "ridge", "accepted"} <= known


def test_training_ends_when_steps_are_refused_and_stays_ended(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(projected, "_CHANCE", -100.0)
    monkeypatch.setattr(ProjectedTrainer, "_harm", lambda *_: 99.0)
    run = run_of(data, tmp_path / "run", steps=9)
    assert run.step == 2
    assert "2 rounds in a row changed nothing" in run.records[-1]["stopped"]
    assert "refused" in run.records[-1]["stopped"]
    assert not tensors(run.folder, 2)["refinement.coefficients"].any()
    assert train(tiny(training={**ROUNDS, "steps": 9}), data, run.folder, resume=True).step == 2


def test_training_ends_when_critics_are_at_chance(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(projected, "_CHANCE", 100.0)
    run = run_of(data, tmp_path / "run", steps=9)
    assert run.step == 2
    assert "could not tell" in run.records[-1]["stopped"]


@pytest.mark.parametrize(
    ("changes", "count", "match"),
    [
        ({}, 400, "at least 1000 training samples"),
        ({"generator": {"network": "mlp"}}, 1600, "the network has no refinement"),
        ({"training": {"objective": "lsgan"}}, 1600, "an objective with a penalty"),
    ],
)
def test_what_projected_training_cannot_do_is_refused_and_auto_takes_adam(
    changes: dict[str, Any], count: int, match: str, tmp_path: Path
) -> None:
    folder = write_folder(tmp_path / "data", toy(PAIR, count))
    training = changes.pop("training", {})
    with pytest.raises(ConfigError, match=f"(?s){match}.*training.update"):
        prepare(tiny(**changes, training={**training, "update": "projected"}), folder)
    assert prepare(tiny(**changes, training=training), folder).config.training.update == "adam"


def test_candidates_are_chosen_by_the_critics_of_the_last_checkpoint(data: Path, tmp_path: Path) -> None:
    run = run_of(data, tmp_path / "run", steps=1)
    plain = Surrogate.load(run.folder / "checkpoints" / "step-1")
    picky, energies = plain.selecting(4), np.geomspace(2e3, 9e4, 3000)
    one, four = (s.sample({"incident_energy": energies}, seed=2) for s in (plain, picky))
    assert np.array_equal(plain.selecting(1).sample({"incident_energy": energies}, seed=2), one)
    assert np.array_equal(picky.sample({"incident_energy": energies}, seed=2), four)
    same = (one == four).all(1)
    assert 0.15 < same.mean() < 0.4  # each of four is about as likely
    for part in PAIR.layer_slices:  # candidates share their layer energies
        np.testing.assert_allclose(four[:, part].sum(1), one[:, part].sum(1), rtol=1e-5, atol=1e-2)
    odds = [picky._selection(torch.from_numpy(x), torch.from_numpy(energies[:, None]).float()) for x in (one, four)]
    assert odds[1].mean() > odds[0].mean()
    # A sample depends on its index alone, not on how many come with it.
    first, later = tmp_path / "first", tmp_path / "later"
    picky.generate(first, {"incident_energy": "uniform:2:90GeV"}, 700, seed=3, workers=1)
    picky.generate(later, {"incident_energy": "uniform:2:90GeV"}, 300, seed=3, workers=1)
    from calogen.shards.sources import open_shards

    assert np.array_equal(open_shards(first).read(0, 300).values, open_shards(later).read().values)


def test_critics_go_with_the_best_checkpoint_though_it_is_not_the_last(data: Path, tmp_path: Path) -> None:
    setup = prepare(tiny(training={**ROUNDS, "steps": 2}), data)
    run = loop.TrainingLoop.start(setup, tmp_path / "run", check=False)
    scores = iter([0.2, 0.9])
    run.trainer.validate = lambda _: {"score": next(scores)}  # type: ignore[method-assign]
    run.run(lambda: 0)
    assert run.folder.best() == {"step": 1, "score": 0.2, "checkpoint": "step-1"}
    best, last = (load_checkpoint(run.folder.checkpoints / f"step-{step}") for step in (1, 2))
    assert best.card.selection_sha256
    assert not last.card.selection_sha256
    assert Surrogate.load(run.folder.path).selecting(2).sample({"incident_energy": 1e4}, 3).shape == (3, PAIR.voxels)


def test_candidates_without_critics_are_refused(data: Path, tmp_path: Path) -> None:
    run = run_of(data, tmp_path / "run", steps=0)
    with pytest.raises(CheckpointError, match="no critics"):
        Surrogate.load(run.folder).selecting(4)
    line = ("generate", run.folder, "-n", 10, "--energy", "fixed:5GeV", "--out", tmp_path / "x", "--candidates", 4)
    found = command(*line)
    assert found.code == 2
    assert "no critics" in found.err


def test_a_checkpoint_of_before_there_was_a_refinement_is_one_with_none(generator: ShowerGenerator) -> None:
    state = {name: t for name, t in generator.state_dict().items() if not name.startswith("refinement.")}
    other = build_generator(PAIR, ["incident_energy"], tiny().generator)
    other.load_state_dict(state)
    latent = torch.randn(5, other.latent_size)
    energies = torch.full((5, 1), 1e4)
    assert torch.equal(other.eval()(latent, energies), generator(latent, energies))


def test_one_layer_is_enough(tmp_path: Path) -> None:
    run = run_of(write_folder(tmp_path / "data", toy(SINGLE, 1300)), tmp_path / "run", steps=1)
    assert run.step == 1


def test_rounds_run_on_the_cpu_even_where_there_is_a_gpu(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("calogen.training.setup.pick_device", lambda _: torch.device("cuda"))
    assert prepare(tiny(training=ROUNDS), data).device.type == "cpu"
    assert prepare(tiny(training={**ROUNDS, "update": "adam"}), data).device.type == "cuda"


def test_damaged_critics_are_found(data: Path, tmp_path: Path) -> None:
    from calogen.runs.find import verify_model

    run = run_of(data, tmp_path / "run", steps=1)
    assert not verify_model(run.folder)
    path = run.folder / "checkpoints" / "step-1" / "selection.safetensors"
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    assert any("selection" in str(problem) for problem in verify_model(run.folder))
    with pytest.raises(CheckpointError, match="not those it was written with"):
        Surrogate.load(path.parent).selecting(2)
