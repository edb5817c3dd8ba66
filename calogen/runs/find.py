"""What a model argument means: a run, a checkpoint, or a surrogate that comes with calogen."""

from __future__ import annotations

import importlib.resources
from pathlib import Path
from typing import Any

from ..analysis.origins import chosen_checkpoint
from ..errors import CheckpointError, did_you_mean
from .checkpoint import Checkpoint, load_checkpoint, seal
from .folder import RunFolder


def find_model(model: str | Path) -> Path:
    """The checkpoint folder a model argument means.

    Args:
        model: A run folder (its best checkpoint), a checkpoint folder, or the name of a shipped surrogate.

    Raises:
        CheckpointError: If there is none.
    """
    path = Path(model)
    shipped = Path(str(importlib.resources.files("calogen.data"))) / "surrogates"
    named = path.name == str(model) and bool(path.name) and (shipped / path.name).is_dir()
    if named and not holds_model(path):
        return shipped / path.name  # a folder of that name may hold its data
    if (path / "checkpoints").is_dir():
        best = RunFolder(path).best()
        if best is None:
            raise CheckpointError(
                "the run has no checkpoint yet", where=path, hint="finish it by training with `resume=True`"
            )
        return path / "checkpoints" / str(best["checkpoint"])
    if not path.exists():
        names = sorted(p.name for p in shipped.iterdir() if p.is_dir()) if shipped.is_dir() else []
        raise CheckpointError(
            f"there is no model '{model}'",
            expected="a run folder, a checkpoint folder, or one of: " + (", ".join(names) or "no surrogates"),
            hint=did_you_mean(str(model), names),
        )
    return path


def load_model(model: str | Path) -> Checkpoint:
    """The checkpoint that a model argument means, read and verified.

    Args:
        model: As for :func:`find_model`.

    Raises:
        CheckpointError: If there is none, it is damaged, or its run says other things of it.
    """
    checkpoint = load_checkpoint(find_model(model))
    run = RunFolder(Path(model))
    if run.checkpoints == checkpoint.folder.parent and (judged := run.best()) is not None:
        run.require_best(judged, checkpoint.card)
    return checkpoint


def holds_model(path: Path) -> bool:
    """Whether a folder is a run or a checkpoint, whether or not it can be used."""
    return (path / "checkpoints").is_dir() or (path / "checkpoint.json").exists()


def is_model(path: str | Path) -> bool:
    """Whether a path or name means a trained model rather than data."""
    if (Path(path) / "checkpoints").is_dir():
        return True  # a run, whether or not it can be used
    try:
        return (find_model(path) / "checkpoint.json").exists()
    except CheckpointError:
        return False


def verify_model(model: str | Path, *, rebuild: bool = False) -> list[str]:
    """Checks every byte of a model: of a run, all of its checkpoints, with what resuming needs.

    Args:
        model: As for :func:`find_model`.
        rebuild: Write the digests of cards that have none, as :func:`.checkpoint.seal` does.

    Returns:
        What is wrong, one line each.

    Raises:
        CheckpointError: If there is no such model.
    """
    problems, run = list[str](), RunFolder(Path(model))
    folders = [run.checkpoints / f"step-{step}" for step in run.steps()] or [find_model(model)]
    for folder in folders:
        try:
            if rebuild:
                seal(folder)
            checkpoint = load_checkpoint(folder)
            if folder.parent == run.checkpoints:  # surrogates hold the generator only
                checkpoint.training_state()
            if checkpoint.card.selection_sha256:
                checkpoint.selection(checkpoint.generator())
        except CheckpointError as error:
            problems.append(f"{error.where}: {error.what}")
    try:
        load_model(model)
    except CheckpointError as error:
        problems.append(f"{error.where}: {error.what}")
    return list(dict.fromkeys(problems))


def describe_model(model: str | Path) -> dict[str, Any]:
    """What a model is, for people and as JSON.

    Raises:
        CheckpointError: If it is damaged.
    """
    checkpoint = load_model(model)
    folder, card = checkpoint.folder, checkpoint.card
    return {
        "model": str(model),
        "checkpoint": folder.name,
        "family": card.family.name,
        **({"usual size": f"{size} x {size} pixels"} if (size := card.config.generator.size) else {}),
        "conditions": {c.name: str(c) for c in card.conditions},
        "symmetries": list(card.family.symmetries),
        "step": card.step,
        "outcome": chosen_checkpoint(
            card.step, max(card.step, *(int(one.get("step") or 0) for one in card.history), 0)
        ),
        "validation score": card.score,
        "held out of training": {name: list(ends) for name, ends in card.holdout.items()},
        "network": card.config.generator.network,
        "objective": card.config.training.objective,
        "sha256": card.model_sha256,
        "card_sha256": card.sha256,
        "provenance": card.provenance,
        "history": list(card.history),
    }
