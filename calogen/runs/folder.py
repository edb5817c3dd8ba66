"""Run folders: config.json, run.json, log.jsonl, best.json and checkpoints/step-N; what is kept and what may resume."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ..config import Config
from ..errors import CheckpointError, ConfigError, DamagedError, StorageError
from ..families import Family
from ..storage import require_writable, write_atomic
from .checkpoint import Card, Checkpoint, load_checkpoint, rewrite_history, save_checkpoint

Record = dict[str, Any]
_HISTORY = (
    *("step", "seconds", "score", "floor", "floor_error"),
    *("wasserstein", "critic_gap", "loss", "loss_gap", "diversity"),
)
_MOST_HISTORY = 64  # validations a checkpoint remembers: they go into every shard made with it


class RunFolder:
    """The files of one training run.

    Args:
        path: The folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = path / "checkpoints"

    def require_empty(self) -> None:
        """Refuse a folder that holds anything, or that could not be written.

        Raises:
            ConfigError: If it is not empty, or a file.
            StorageError: If it could not be written.
        """
        is_file = self.path.exists() and not self.path.is_dir()
        if is_file or (self.path.exists() and any(self.path.iterdir())):
            raise ConfigError(
                "the output folder is not empty",
                where=self.path,
                found="a file" if is_file else None,
                hint="choose another `out`, or `resume=True` to go on with this run",
            )
        require_writable(self.path)

    def as_begun(self, config: Config) -> Config:
        """A configuration to resume with: split as the run's own data are, which ``config.json`` says since it may."""
        try:
            begun = json.loads((self.path / "config.json").read_bytes())
        except (OSError, ValueError):
            return config
        return config if not isinstance(begun, dict) or "split" in begun else config.updated({"split": "last"})

    def create(self, config: Config, facts: Record) -> None:
        """Make the folder; refuse one that holds anything.

        Raises:
            ConfigError: If it is not empty.
            StorageError: If it cannot be written.
        """
        self.require_empty()
        try:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            (self.path / "config.json").write_text(config.to_json())
            (self.path / "run.json").write_text(json.dumps(facts, indent=2))
        except OSError as error:
            shutil.rmtree(self.checkpoints, ignore_errors=True)
            for name in ("config.json", "run.json"):  # so that the folder can be used once there is space
                with suppress(OSError):
                    (self.path / name).unlink()
            raise StorageError(f"cannot write the run folder: {error.strerror}", where=self.path) from None

    def log(self, record: Record) -> None:
        """Append one line of JSON.

        Raises:
            StorageError: If it cannot be written.
        """
        try:
            with (self.path / "log.jsonl").open("a") as file:
                file.write(_line(record))
        except OSError as error:
            raise StorageError(f"cannot write the log: {error.strerror}", where=self.path / "log.jsonl") from None

    def records(self, until: int) -> list[Record]:
        """The log up to a step; later lines are of a stretch that will be trained again."""
        path = self.path / "log.jsonl"
        found = []
        for line in path.read_text().splitlines() if path.exists() else []:
            try:
                record = json.loads(line)
            except json.JSONDecodeError:
                continue  # the line a kill cut short
            if record.get("step", 0) <= until:
                found.append(record)
        return found

    def rewrite_log(self, records: Sequence[Record]) -> None:
        """Replace the log.

        Raises:
            StorageError: If it cannot be written.
        """
        write_atomic(self.path / "log.jsonl", "".join(_line(record) for record in records).encode())

    def best(self) -> Record | None:
        """Step, score and name of the best checkpoint so far; none before the first.

        Raises:
            CheckpointError: If ``best.json`` is damaged.
        """
        path = self.path / "best.json"
        try:
            record = json.loads(path.read_bytes())
            return {"step": int(record["step"]), "score": record["score"], "checkpoint": str(record["checkpoint"])}
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            raise CheckpointError(
                "the run's best.json is damaged",
                where=path,
                hint="delete it and go on with `resume=True`, or name a folder in checkpoints/",
            ) from None

    def steps(self) -> list[int]:
        """Steps of the checkpoints there are."""
        return sorted(int(p.name[5:]) for p in self.checkpoints.glob("step-*") if p.name[5:].isdigit())

    def save(self, card: Card, model: Mapping[str, Tensor], training: Mapping[str, Tensor]) -> None:
        """Write a checkpoint; keep the best and the last two.

        Args:
            card: With step and score.
            model: The averaged generator.
            training: Everything needed to resume.
        """
        card = card.model_copy(update={"history": tuple(self.history(card.step))})
        save_checkpoint(self.checkpoints / f"step-{card.step}", card, model, training)
        self.judge(card)
        best = (self.best() or {}).get("step")
        if best != card.step:
            rewrite_history(self.checkpoints / f"step-{best}", card.history)
        kept = {*self.steps()[-2:], best}
        for step in self.steps():
            if step not in kept:
                shutil.rmtree(self.checkpoints / f"step-{step}")

    def history(self, until: int) -> list[dict[str, int | float | None]]:
        """Validations up to a step, from the log: all of them, or the best, the last and some evenly between."""
        found = [
            {key: _short_number(record[key]) for key in _HISTORY if key in record}
            for record in self.records(until)
            if "score" in record
        ]
        if len(found) <= _MOST_HISTORY:
            return found
        scores = [math.inf if record["score"] is None else record["score"] for record in found]
        evenly = np.linspace(0, len(found) - 1, _MOST_HISTORY - 1).round().astype(int).tolist()
        return [found[i] for i in sorted({*evenly, scores.index(min(scores))})]

    def set_aside(self, steps: Collection[int]) -> None:
        """Rename damaged checkpoints: they shall neither be resumed from nor be the best.

        Raises:
            StorageError: If the file system refuses.
        """
        for step in steps:
            folder = self.checkpoints / f"step-{step}"
            aside = folder.with_name(f"damaged-{folder.name}")
            try:
                shutil.rmtree(aside, ignore_errors=True)
                folder.rename(aside)
            except OSError as error:
                what = f"cannot set the damaged checkpoint aside: {error.strerror}"
                raise StorageError(what, where=folder) from None
        best = self.best()
        if best is not None and best["step"] not in self.steps():
            (self.path / "best.json").unlink()

    def judge(self, card: Card) -> None:
        """Make a saved checkpoint the best one if none before it was as good.

        Raises:
            StorageError: If that cannot be written down.
        """
        best = self.best()
        known = best["score"] if best else None
        if best is None or (card.score is not None and (known is None or card.score < known)):
            record = {"step": card.step, "score": card.score, "checkpoint": f"step-{card.step}"}
            write_atomic(self.path / "best.json", _line(record).encode())


def _line(record: Record) -> str:
    """One line of strict JSON: numbers that are not finite become null."""
    infinite = {key: None for key, value in record.items() if isinstance(value, float) and not math.isfinite(value)}
    return json.dumps(record | infinite) + "\n"


def _short_number(value: Any) -> int | float | None:
    """A number with six digits; None for what is none."""
    if not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return value if isinstance(value, int) else float(f"{value:.6g}")


def resumable(folder: RunFolder, config: Config, facts: Record) -> tuple[Checkpoint, str]:
    """The last whole checkpoint of a run folder, and a warning (or nothing); damaged later ones are set aside.

    Args:
        folder: The run.
        config: What resuming was asked with; step count, time, patience, log interval, device and threads may differ.
        facts: Of this session: versions, device, threads, data digest.

    Raises:
        CheckpointError: If there is none that is whole, or it belongs to another configuration or other data.
    """
    checkpoint, damaged = _newest(folder)
    begun = folder.as_begun(checkpoint.card.config)
    if isinstance(config.family, Family) and isinstance(begun.family, Family) and not begun.family.depths:
        config = config.updated({"family": config.family.with_depths(())})  # begun before layers had depths
    theirs = _fixed(begun)
    for key, value in _fixed(config).items():
        if theirs[key] != value:
            raise CheckpointError(
                f"the run in this folder has another '{key}'",
                where=folder.path,
                expected=_short(theirs[key]),
                found=_short(value),
                hint="resume with the same configuration, or start a new run",
            )
    if checkpoint.card.provenance.get("data") != facts["data"]:
        raise CheckpointError("the run in this folder was trained on other data", where=folder.path)
    before = checkpoint.card.provenance
    changed = [key for key in ("threads", "torch", "numpy", "device") if before.get(key) != facts[key]]
    warnings = [f"set aside a damaged checkpoint: {error.what} ({error.where})" for error in damaged.values()]
    if changed:
        details = ", ".join(f"{key} {before.get(key)} -> {facts[key]}" for key in changed)
        warnings += [f"resumed with other {details}: weights will not be bit-identical to an uninterrupted run"]
    folder.set_aside(damaged)
    return checkpoint, "; ".join(warnings)


def _fixed(config: Config) -> Record:
    """The settings that must be the same when a run is resumed, by name."""
    training = config.training.model_dump(exclude={"steps", "time", "log_every", "memory", "patience"})
    others = config.model_dump(exclude={"device", "threads", "training"})
    return others | {f"training.{key}": value for key, value in training.items()}


def _newest(folder: RunFolder) -> tuple[Checkpoint, dict[int, DamagedError]]:
    """The newest checkpoint that is whole; by step, what is wrong with newer ones and with the best.

    Raises:
        CheckpointError: If there is none.
    """
    best, steps = (folder.best() or {}).get("step"), folder.steps()
    found: Checkpoint | None = None
    damaged: dict[int, DamagedError] = {}
    for step in reversed(steps):
        if found is None or step == best:
            try:
                checkpoint = load_checkpoint(folder.checkpoints / f"step-{step}")
                if found is None:
                    checkpoint.training_state()
                    found = checkpoint
            except DamagedError as error:
                damaged[step] = error
    if found is not None:
        return found, damaged
    if damaged:
        raise damaged[max(damaged)]
    raise CheckpointError("there is no checkpoint to resume from", where=folder.path, hint="start in an empty folder")


def _short(value: object) -> str:
    text = value.get("name", "") if isinstance(value, dict) and "name" in value else repr(value)
    return str(text) if len(str(text)) < 200 else str(text)[:200] + "..."
