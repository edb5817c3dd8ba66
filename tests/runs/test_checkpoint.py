"""Checkpoints: what is saved comes back; what is damaged is found; what is interrupted leaves nothing."""

from __future__ import annotations

import errno
import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save
from support import Trained, edit_card, run_python
from torch import nn

from calogen.config import Config
from calogen.errors import CheckpointError, StorageError
from calogen.families import FAMILIES
from calogen.runs.checkpoint import (
    Card,
    Checkpoint,
    ConditionRange,
    load_checkpoint,
    load_optimiser,
    load_state,
    optimiser_state,
    save_checkpoint,
)

CARD = Card(
    family=FAMILIES["calogan"],
    conditions=(ConditionRange(name="incident_energy", unit="MeV", low=1e3, high=1e5),),
    config=Config(),
    step=7,
    score=0.25,
    holdout={"incident_energy": (2e3, 3e3)},
    provenance={"seed": 1},
)
DIGESTS = ("model_sha256", "training_sha256", "history_sha256", "sha256")
MODEL = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor(3)}
TRAINING = {"x": torch.ones(2), "y": torch.tensor(1.5)}


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    save_checkpoint(tmp_path / "step-7", CARD, MODEL, TRAINING)
    return tmp_path / "step-7"


@pytest.fixture
def real(trained: Trained, tmp_path: Path) -> Path:
    """A copy of a trained checkpoint, to be damaged."""
    return Path(shutil.copytree(trained.folder / "checkpoints" / "step-4", tmp_path / "step-4"))


def test_what_is_saved_comes_back(saved: Path) -> None:
    found = load_checkpoint(saved)
    assert found.card.model_copy(update=dict.fromkeys(DIGESTS, "")) == CARD
    for expected, state in ((MODEL, found.model), (TRAINING, found.training_state())):
        assert set(state) == set(expected)
        assert all(torch.equal(state[name], expected[name]) for name in expected)
    assert sorted(p.name for p in saved.parent.iterdir()) == ["step-7"]
    assert sorted(p.name for p in saved.iterdir()) == ["checkpoint.json", "model.safetensors", "training.safetensors"]


def test_saving_again_replaces(saved: Path) -> None:
    save_checkpoint(saved, CARD.model_copy(update={"score": 0.1}), {"a": torch.zeros(1)})
    found = load_checkpoint(saved)
    assert (found.card.score, found.model["a"].tolist()) == (0.1, [0.0])
    with pytest.raises(CheckpointError, match="cannot be resumed"):
        found.training_state()


def test_tensors_that_share_memory_and_views_are_saved(tmp_path: Path) -> None:
    base = torch.arange(12.0).reshape(3, 4)
    save_checkpoint(tmp_path / "c", CARD, {"one": base, "two": base, "view": base.T[1:]})
    assert torch.equal(load_checkpoint(tmp_path / "c").model["view"], base.T[1:])


def test_a_trained_generator_comes_back_with_the_same_numbers(trained: Trained, real: Path) -> None:
    found = load_checkpoint(real)
    generator = found.generator()
    assert not generator.training
    for name, tensor in generator.state_dict().items():
        assert torch.equal(tensor, found.model[name]), name
    assert found.card.family == trained.samples.family
    assert found.card.conditions[0].low == 1e3  # toy energies come within 1 % of the ends
    assert not any(p.requires_grad for p in generator.parameters())


def test_optimiser_moments_come_back() -> None:
    torch.manual_seed(1)
    one, two = nn.Linear(3, 2), nn.Linear(3, 2)
    two.load_state_dict(one.state_dict())
    first, second = (torch.optim.Adam(m.parameters(), lr=0.1) for m in (one, two))
    x = torch.randn(5, 3)

    def step(model: nn.Module, optimiser: torch.optim.Optimizer) -> None:
        optimiser.zero_grad()
        model(x).square().sum().backward()
        optimiser.step()

    step(one, first)
    two.load_state_dict(one.state_dict())
    state = {name: tensor.clone() for name, tensor in optimiser_state(first, "p").items()}
    load_optimiser(second, {**state, "other.0.exp_avg": torch.ones(1)}, "p")
    step(one, first)
    step(two, second)
    assert torch.equal(one.weight, two.weight)


def flip(name: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        data = bytearray((folder / name).read_bytes())
        data[len(data) * 3 // 4] ^= 1
        (folder / name).write_bytes(bytes(data))

    return change


def truncate(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:-20]) and None


def edit(**changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        card = json.loads((folder / "checkpoint.json").read_text())
        (folder / "checkpoint.json").write_text(json.dumps({**card, **changes}))

    return change


def write(name: str, data: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(data) and None


def without_key(folder: Path) -> None:
    card = json.loads((folder / "checkpoint.json").read_text())
    del card["calogen_checkpoint"]
    (folder / "checkpoint.json").write_text(json.dumps(card))


DAMAGE = {
    "no card": (lambda f: (f / "checkpoint.json").unlink(), "there is no checkpoint here"),
    "no tensors": (lambda f: (f / "model.safetensors").unlink(), "cannot read the checkpoint"),
    "card cut short": (truncate("checkpoint.json"), "description is damaged"),
    "card not JSON": (write("checkpoint.json", b"\xff\x00"), "description is damaged"),
    "card a list": (write("checkpoint.json", b"[1]"), "description is damaged"),
    "card without schema": (without_key, "description is damaged"),
    "card with a wrong family": (edit(family={"name": "x"}), "description is damaged"),
    "card with a wrong step": (edit(step="many"), "description is damaged"),
    "newer schema": (edit(calogen_checkpoint=99), "newer calogen"),
    "newer schema of another shape": (edit(calogen_checkpoint=99, config={"new": 1}), "newer calogen"),
    "card changed": (edit(step=8), "damaged or was changed"),
    "history changed": (edit(history=[{"step": 1}]), "damaged or was changed"),
    "card without a digest": (edit(sha256=""), "has no digest"),
    "tensors cut short": (truncate("model.safetensors"), "not those it was written with"),
    "a flipped bit": (flip("model.safetensors"), "not those it was written with"),
    "empty tensors": (write("model.safetensors", b""), "not those it was written with"),
    "a pickle": (write("model.safetensors", pickle.dumps({"a": 1})), "is a pickle"),
    "a torch file": (write("model.safetensors", b"PK\x03\x04rest"), "is a pickle"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_checkpoint_is_explained(saved: Path, name: str) -> None:
    damage, part = DAMAGE[name]
    damage(saved)
    with pytest.raises(CheckpointError) as raised:
        load_checkpoint(saved)
    assert part in str(raised.value)
    assert str(saved) in str(raised.value)
    assert raised.value.exit_code == 2


def test_a_pickle_is_never_executed(saved: Path, tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "sprung",)

    for place in (saved / "model.safetensors", tmp_path / "model.pt"):
        place.write_bytes(pickle.dumps(Trap()))
    for where in (saved, tmp_path / "model.pt"):
        with pytest.raises(CheckpointError, match="is a pickle"):
            load_checkpoint(where)
    assert not (tmp_path / "sprung").exists()


def test_damage_that_a_digest_cannot_show_is_found_too(saved: Path) -> None:
    edit_card(saved, model_sha256="")
    truncate("model.safetensors")(saved)
    with pytest.raises(CheckpointError, match="the checkpoint is damaged"):
        load_checkpoint(saved)


@pytest.mark.parametrize("damage", [flip("training.safetensors"), truncate("training.safetensors")])
def test_damaged_training_state_is_found_when_it_is_needed(saved: Path, damage: Callable[[Path], None]) -> None:
    damage(saved)
    assert load_checkpoint(saved).model
    with pytest.raises(CheckpointError, match="not those it was written with"):
        load_checkpoint(saved).training_state()


def test_a_folder_or_file_that_is_no_checkpoint_is_explained(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("hello")
    for path, part in ((tmp_path, "no checkpoint here"), (tmp_path / "text", "a checkpoint is a folder")):
        with pytest.raises(CheckpointError, match=part):
            load_checkpoint(path)


@pytest.mark.parametrize("change", ["shape", "missing", "surplus", "description"])
def test_tensors_that_do_not_fit_the_description_are_refused(real: Path, change: str) -> None:
    found = load_checkpoint(real)
    state, card = dict(found.model), found.card
    name = "loadings"
    if change == "shape":
        state[name] = state[name][:, :1]
    elif change == "missing":
        del state[name]
    elif change == "surplus":
        state["more"] = torch.zeros(1)
    else:
        card = card.model_copy(update={"config": card.config.updated({"generator": {"latent": 5}})})
    with pytest.raises(CheckpointError, match="does not fit its own description") as raised:
        Checkpoint(card, state, real).generator()
    assert raised.value.found
    with pytest.raises(CheckpointError):
        load_state(nn.Linear(1, 1), {"weight": torch.zeros(2, 2), "bias": torch.zeros(1)}, real)


def test_an_interrupted_write_leaves_no_checkpoint_and_the_old_one_whole(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("calogen.storage.os.fsync", full)
    for folder in (saved, saved.with_name("step-8")):
        with pytest.raises(StorageError, match="No space left on device") as raised:
            save_checkpoint(folder, CARD, {"a": torch.zeros(100)})
        assert raised.value.exit_code == 74
    monkeypatch.undo()
    assert [p.name for p in saved.parent.iterdir()] == ["step-7"]
    assert torch.equal(load_checkpoint(saved).model["a"], MODEL["a"])


def test_leftovers_of_a_killed_write_do_not_matter(saved: Path) -> None:
    part = saved.with_name("step-8.part")
    part.mkdir()
    (part / "model.safetensors").write_bytes(b"half")
    save_checkpoint(saved.with_name("step-8"), CARD, MODEL)
    assert load_checkpoint(saved.with_name("step-8")).model.keys() == MODEL.keys()
    assert not part.exists()


def test_a_full_disk_ends_a_real_process_with_exit_code_74(tmp_path: Path) -> None:
    done = run_python(
        """
        import resource, sys
        from pathlib import Path
        import torch
        from calogen.errors import CalogenError
        from runs.test_checkpoint import CARD, MODEL, save_checkpoint
        folder = Path(sys.argv[1])
        save_checkpoint(folder / "step-1", CARD, MODEL)
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
        try:
            save_checkpoint(folder / "step-2", CARD, {"a": torch.zeros(100_000)})
        except CalogenError as error:
            print(error)
            sys.exit(error.exit_code)
        """,
        tmp_path,
    )
    assert done.returncode == 74, done.stderr
    assert "cannot write the checkpoint" in done.stdout
    assert [p.name for p in tmp_path.iterdir()] == ["step-1"]
    assert load_checkpoint(tmp_path / "step-1").model.keys() == MODEL.keys()


def test_bytes_that_are_not_safetensors_are_refused(saved: Path) -> None:
    data = save({"a": torch.ones(1)})
    edit_card(saved, model_sha256="")
    (saved / "model.safetensors").write_bytes((2**40).to_bytes(8, "little") + data[8:])
    with pytest.raises(CheckpointError, match="the checkpoint is damaged"):
        load_checkpoint(saved)
