"""What a model argument means: a run, a checkpoint, or a surrogate that comes with calogen."""

from __future__ import annotations

import importlib.resources
from pathlib import Path
from typing import Any

from ..errors import CheckpointError, did_you_mean
from .checkpoint import load_checkpoint
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
    if named and not (path / "checkpoints").is_dir() and not (path / "checkpoint.json").exists():
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


def is_model(path: str | Path) -> bool:
    """Whether a path or name means a trained model rather than data."""
    if (Path(path) / "checkpoints").is_dir():
        return True  # a run, whether or not it can be used
    try:
        return (find_model(path) / "checkpoint.json").exists()
    except CheckpointError:
        return False


def describe_model(model: str | Path) -> dict[str, Any]:
    """What a model is, for people and as JSON.

    Raises:
        CheckpointError: If it is damaged.
    """
    folder = find_model(model)
    card = load_checkpoint(folder).card
    return {
        "model": str(model),
        "checkpoint": folder.name,
        "family": card.family.name,
        "conditions": {c.name: str(c) for c in card.conditions},
        "symmetries": list(card.family.symmetries),
        "step": card.step,
        "validation score": card.score,
        "held out of training": {name: list(ends) for name, ends in card.holdout.items()},
        "network": card.config.generator.network,
        "objective": card.config.training.objective,
        "sha256": card.model_sha256,
        "provenance": card.provenance,
        "history": list(card.history),
    }
