"""Nothing is loaded, resumed or continued that is damaged, mixed, or of somebody else."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load, save
from support import SINGLE, Trained, command, edit_card, tiny, toy, write_folder

from calogen import storage
from calogen.errors import CheckpointError, ConfigError, DivergenceError
from calogen.models.contract import OnArrays
from calogen.runs.checkpoint import load_checkpoint, save_checkpoint, seal
from calogen.runs.find import find_model
from calogen.runs.folder import RunFolder
from calogen.sampling import Surrogate
from calogen.training.loop import TrainingLoop, train

ENERGY = {"incident_energy": [5e4, 2e4]}


@pytest.fixture
def run(trained: Trained, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained.folder, tmp_path / "run"))


def newest(run: Path) -> Path:
    folder = RunFolder(run)
    return folder.checkpoints / f"step-{folder.steps()[-1]}"


# ------------------------------------------------------------------------------------------------------------- cards


def flipped(name: str, bits: Any, tmp_path: Path) -> list[int]:
    """Bits of a card that can be flipped without a message; samples must be the same then."""
    folder = Path(shutil.copytree(find_model(name), tmp_path / "copy"))
    path, accepted = folder / "checkpoint.json", []
    text, right = path.read_bytes(), Surrogate.load(folder).sample(ENERGY, seed=1)
    for bit in bits:
        changed = bytearray(text)
        changed[bit // 8] ^= 1 << bit % 8
        path.write_bytes(changed)
        try:
            checkpoint = load_checkpoint(folder)
        except CheckpointError:
            continue
        np.testing.assert_array_equal(Surrogate(checkpoint).sample(ENERGY, seed=1), right)
        accepted.append(bit)
    return accepted


def test_no_flipped_bit_of_a_card_changes_samples(tmp_path: Path) -> None:
    size = 8 * (find_model("calogan-gamma") / "checkpoint.json").stat().st_size
    bits = np.random.default_rng(0).choice(size, 120, replace=False)
    assert len(flipped("calogan-gamma", bits.tolist(), tmp_path)) < 20  # white space


@pytest.mark.slow
def test_no_bit_at_all_of_a_card_changes_samples(tmp_path: Path) -> None:
    size = 8 * (find_model("calogan-gamma") / "checkpoint.json").stat().st_size
    accepted = flipped("calogan-gamma", range(size), tmp_path)
    print(f"{size} bits of a card: {size - len(accepted)} refused, {len(accepted)} with the same samples")


@pytest.mark.parametrize("key", ["low", "high", "threshold", "knee", "conserves_energy"])
def test_a_changed_card_is_refused_and_named(key: str, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(find_model("calogan-gamma"), tmp_path / "copy"))
    path = folder / "checkpoint.json"
    line = next(line for line in path.read_text().splitlines() if f'"{key}"' in line)
    value = json.loads("{" + line.strip().rstrip(",") + "}")[key]
    other = line.replace(json.dumps(value), json.dumps(not value if isinstance(value, bool) else value + 1))
    path.write_text(path.read_text().replace(line, other, 1))
    done = command("generate", folder, "-n", 10, "--energy", "fixed:50GeV", "--out", tmp_path / "x")
    assert done.code == 2
    assert f"{path}" in done.err
    assert "damaged or was changed" in done.err
    assert not (tmp_path / "x").exists()


def test_a_card_without_a_digest_gets_one_where_asked_and_one_with_a_wrong_one_never(
    trained: Trained, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(find_model(trained.folder), tmp_path / "copy"))
    path = folder / "checkpoint.json"
    card = json.loads(path.read_text())
    path.write_text(json.dumps({key: value for key, value in card.items() if key not in ("sha256", "history_sha256")}))
    weights = (folder / "model.safetensors").read_bytes()
    done = command("verify", folder)
    assert (done.code, "has no digest" in done.err) == (2, True)
    assert command("verify", folder, "--rebuild").code == 0
    assert json.loads(path.read_text()) == card
    assert (folder / "model.safetensors").read_bytes() == weights
    assert not seal(folder)
    path.write_text(json.dumps({**card, "step": 1}))
    assert command("verify", folder, "--rebuild").code == 2
    with pytest.raises(CheckpointError, match="damaged or was changed"):
        seal(folder)


def test_a_folder_is_not_continued_with_another_card(trained: Trained, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(find_model(trained.folder), tmp_path / "copy"))
    line = ["--like", trained.data, "-n", 20, "--out", tmp_path / "showers"]
    assert command("generate", folder, *line).code == 0
    edit_card(folder, score=0.5)
    done = command("generate", folder, *line)
    assert done.code == 2
    assert "its card sha256 differs" in done.err


# ------------------------------------------------------------------------------------------------------------ resume


@pytest.mark.parametrize("what", ["step", "seed", "configuration", "data"])
def test_a_training_state_of_another_step_seed_configuration_or_data_is_not_resumed(what: str, run: Path) -> None:
    folder = newest(run)
    card = json.loads((folder / "checkpoint.json").read_text())
    config, facts = card["config"], card["provenance"]
    changes: dict[str, dict[str, Any]] = {
        "step": {"step": card["step"] + 4},
        "seed": {"config": {**config, "seed": 7}},
        "configuration": {"config": {**config, "training": {**config["training"], "ema": 0.5}}},
        "data": {"provenance": {**facts, "data": "0" * 64}},
    }
    edit_card(folder, **changes[what])
    with pytest.raises(CheckpointError, match=f"the training state has another {what}"):
        load_checkpoint(folder).training_state()


def warnings(told: list[dict[str, Any]]) -> list[str]:
    return [record["warning"] for record in told if "warning" in record]


@pytest.mark.parametrize("line", [b"\xff\x00", b"5", b"[1]", b"null", b'{"step": "x"}', b'{"step": 1, "score": "x"}'])
def test_a_damaged_or_foreign_line_of_the_log_is_skipped_and_said(line: bytes, trained: Trained, run: Path) -> None:
    log = run / "log.jsonl"
    log.write_bytes(line + b"\n" + log.read_bytes())
    told: list[dict[str, Any]] = []
    train(trained.config, trained.data, run, resume=True, progress=told.append)
    assert warnings(told)[0] == "skipped 1 damaged or foreign line(s) of log.jsonl"
    assert command("info", run).code == 0


def test_numbers_of_the_log_that_the_checkpoint_does_not_remember_are_said(trained: Trained, run: Path) -> None:
    lines = (run / "log.jsonl").read_text().splitlines()
    record = json.loads(lines[-1]) | {"score": 0.0}
    (run / "log.jsonl").write_text("\n".join([*lines[:-1], json.dumps(record), ""]))
    told: list[dict[str, Any]] = []
    train(trained.config, trained.data, run, resume=True, progress=told.append)
    assert "other numbers than the checkpoint remembers of 1 validation(s)" in warnings(told)[0]


@pytest.mark.parametrize(
    "text",
    [
        '{"step": 4, "score": 0.1, "checkpoint": "../../elsewhere"}',
        '{"step": 4, "score": 0.1, "checkpoint": "step-2"}',
        '{"step": "4", "score": 0.1, "checkpoint": "step-4"}',
        '{"step": 4, "score": NaN, "checkpoint": "step-4"}',
        "5",
    ],
)
def test_best_json_names_checkpoints_of_its_run_alone(text: str, run: Path) -> None:
    (run / "best.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"best\.json is damaged"):
        Surrogate.load(run)


def test_best_json_and_the_card_say_the_same(trained: Trained, run: Path) -> None:
    best = RunFolder(run).best()
    assert best is not None
    (run / "best.json").write_text(json.dumps({**best, "score": best["score"] / 2}))
    with pytest.raises(CheckpointError, match=r"best\.json and the checkpoint that it names disagree"):
        Surrogate.load(run)
    with pytest.raises(CheckpointError, match="disagree"):
        train(trained.config, trained.data, run, resume=True)
    (run / "best.json").unlink()  # as the message says
    train(trained.config, trained.data, run, resume=True)
    assert RunFolder(run).best() == best


@pytest.mark.parametrize("resume", [False, True])
def test_a_run_stopped_before_its_first_checkpoint_starts_again(resume: bool, tmp_path: Path) -> None:
    config, folder = tiny(training={"steps": 0}), RunFolder(tmp_path / "run")
    data = write_folder(tmp_path / "data", toy(SINGLE, 60))
    folder.create(config, {})
    folder.log({"step": 0, "of": "the run that was stopped"})
    (folder.checkpoints / "step-0.part").mkdir()
    assert train(config, data, folder.path, resume=resume).step == 0
    assert folder.steps() == [0]
    assert "stopped" not in (folder.path / "log.jsonl").read_text()
    with pytest.raises(ConfigError, match="not empty"):
        train(config, data, folder.path)


# ------------------------------------------------------------------------------------------------- numbers not finite


def test_weights_that_are_not_finite_are_not_loaded(trained: Trained, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(find_model(trained.folder), tmp_path / "copy"))
    tensors = load((folder / "model.safetensors").read_bytes())
    tensors["loadings"].view(-1)[0] = float("nan")
    (folder / "model.safetensors").write_bytes(save(tensors))
    digest = storage.sha256_of(folder / "model.safetensors")
    edit_card(folder, model_sha256=digest)
    done = command("generate", folder, "-n", 5, "--energy", "fixed:5GeV", "--out", tmp_path / "x")
    assert done.code == 2
    assert "not finite" in done.err
    assert "loadings" in done.err


def test_samples_that_are_not_finite_are_not_made(trained: Trained, tmp_path: Path) -> None:
    surrogate = Surrogate.load(trained.folder)

    class Broken(OnArrays):
        def __call__(self, latent: np.ndarray, columns: np.ndarray) -> np.ndarray:
            return np.full((len(latent), 504), np.inf, np.float32)

    surrogate._folded = Broken(surrogate.module)
    with pytest.raises(CheckpointError, match="2 of 2 samples with NaN or infinite values"):
        surrogate.sample(ENERGY)
    with pytest.raises(CheckpointError, match="not finite"):
        surrogate.generate(tmp_path / "x", {"incident_energy": "fixed:5GeV"}, 5)
    assert not list(tmp_path.rglob("*.h5"))


def test_weights_that_are_not_finite_are_not_saved(trained: Trained, tmp_path: Path) -> None:
    found = load_checkpoint(find_model(trained.folder))
    for model, training in (({"a": torch.tensor([1.0, float("inf")])}, {}), ({}, {"b": torch.tensor(float("nan"))})):
        with pytest.raises(DivergenceError, match="not finite"):
            save_checkpoint(tmp_path / "c", found.card, model, training)
    huge = {"a": torch.full((4,), 3e38)}  # whose sum overflows
    save_checkpoint(tmp_path / "c", found.card, huge)
    assert torch.equal(load_checkpoint(tmp_path / "c").model["a"], huge["a"])


# ------------------------------------------------------------------------------------------------------------- locks


@pytest.mark.parametrize("resume", [False, True])
def test_a_second_writer_of_a_run_is_refused_and_told_who_writes(
    resume: bool, trained: Trained, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "_LOCK_SECONDS", 0.0)
    place = run if resume else tmp_path / "new"
    said = []
    start = TrainingLoop.run

    def again(loop: TrainingLoop, should_stop: Any) -> None:
        with pytest.raises(ConfigError, match="being written by another process") as raised:
            train(trained.config, trained.data, place, resume=True)
        said.append(str(raised.value))
        start(loop, should_stop)

    monkeypatch.setattr(TrainingLoop, "run", again)
    before = set(place.rglob("*"))
    train(trained.config, trained.data, place, resume=resume)
    assert f"process {os.getpid()} on " in said[0]
    assert len(said) == 1
    assert not (place / ".lock").exists()
    if resume:
        assert set(place.rglob("*")) == before
