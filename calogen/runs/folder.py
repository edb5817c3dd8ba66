"""Run folders: config.json, run.json, log.jsonl, best.json and checkpoints/step-N; what is kept and what may resume."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ..config import Config
from ..errors import CheckpointError, ConfigError, DamagedError, StorageError
from ..storage import TABLE_BYTES, read_bounded, remedy, require_writable, write_atomic
from .checkpoint import Card, Checkpoint, load_checkpoint, rewrite_card, save_checkpoint

Record = dict[str, Any]
_HISTORY = (
    *("step", "seconds", "score", "floor", "floor_error"),
    *("wasserstein", "critic_gap", "loss", "loss_gap", "diversity", "validation_auc"),
)
_NUMBERS = ("seconds", "score")  # what is computed with; a number or null
_MOST_NUMBER = 1e300  # NaN is not below it, either
_START = re.compile(
    r"\.lock|config\.json|run\.json|log\.jsonl|events\.out\..*|(log\.jsonl|best\.json)\.part|checkpoints"
)
_MAY_CHANGE = {"steps", "time", "log_every", "memory", "patience", "tensorboard", "reuse_fit"}  # when a run is resumed
_MOST_HISTORY = 64  # validations a checkpoint remembers: they go into every shard made with it


class RunFolder:
    """The files of one training run.

    Args:
        path: The folder.

    Attributes:
        lock: The file that its writer holds.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = path / "checkpoints"
        self.lock = path / ".lock"

    @property
    def begun(self) -> bool:
        """Whether it holds what a run leaves that was stopped before its first checkpoint, and nothing else."""
        names = {path.name for path in self.path.iterdir()} if self.path.is_dir() else set()
        ours = "checkpoints" in names and all(_START.fullmatch(name) for name in names)
        return ours and not any(path.suffix != ".part" for path in self.checkpoints.iterdir())

    def require_empty(self) -> None:
        """Refuse a folder that holds anything but the beginning of a run, or that could not be written.

        Raises:
            ConfigError: If it is not empty, or a file.
            StorageError: If it could not be written.
        """
        is_file = self.path.exists() and not self.path.is_dir()
        others = [] if is_file or not self.path.exists() else [p for p in self.path.iterdir() if p != self.lock]
        if is_file or (others and not self.begun):
            raise ConfigError(
                "the output folder is not empty",
                where=self.path,
                found="a file" if is_file else None,
                hint="choose another `out`, or `resume=True` to go on with this run",
            )
        require_writable(self.path)

    def create(self, config: Config, facts: Record) -> None:
        """Make the folder; refuse one that holds anything.

        Raises:
            ConfigError: If it is not empty.
            StorageError: If it cannot be written.
        """
        self.require_empty()
        try:
            (self.path / "log.jsonl").unlink(missing_ok=True)  # of a run that never came to a checkpoint
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            (self.path / "config.json").write_text(config.to_json())
            (self.path / "run.json").write_text(json.dumps(facts, indent=2))
        except OSError as error:
            shutil.rmtree(self.checkpoints, ignore_errors=True)
            for name in ("config.json", "run.json"):  # so that the folder can be used once there is space
                with suppress(OSError):
                    (self.path / name).unlink()
            what = f"cannot write the run folder: {error.strerror}"
            raise StorageError(what, where=self.path, hint=remedy(error)) from None

    def log(self, record: Record) -> None:
        """Append one line of JSON.

        Raises:
            StorageError: If it cannot be written.
        """
        try:
            with (self.path / "log.jsonl").open("a") as file:
                file.write(_line(record))
        except OSError as error:
            where, what = self.path / "log.jsonl", f"cannot write the log: {error.strerror}"
            raise StorageError(what, where=where, hint=remedy(error)) from None

    def records(self, until: int) -> list[Record]:
        """The log up to a step; later lines are of a stretch that will be trained again."""
        return [record for record in self.lines() if record is not None and record["step"] <= until]

    def lines(self) -> list[Record | None]:
        """Every line of the log, None where one is damaged or foreign; a last one that a kill cut short is left out.

        Raises:
            CheckpointError: If the log cannot be read.
        """
        path = self.path / "log.jsonl"
        try:
            *whole, last = read_bounded(path, TABLE_BYTES).split(b"\n")
            found = [_record(line) for line in whole if line.strip()]
            return [*found, record] if (record := _record(last)) else found
        except FileNotFoundError:
            return []
        except OSError as error:
            raise CheckpointError(f"cannot read the log: {error.strerror}", where=path) from None

    def rewrite_log(self, records: Sequence[Record]) -> None:
        """Replace the log.

        Raises:
            StorageError: If it cannot be written.
        """
        write_atomic(self.path / "log.jsonl", "".join(_line(record) for record in records).encode())

    def best(self) -> Record | None:
        """Step, score and name of the best checkpoint so far; none before the first.

        Raises:
            CheckpointError: If ``best.json`` is damaged, or names anything but a checkpoint of this run.
        """
        path = self.path / "best.json"
        try:
            record = _record(read_bounded(path))
            if record is None or record.get("checkpoint") != f"step-{record['step']}":
                raise ValueError
            return {key: record[key] for key in ("step", "score", "checkpoint")}
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError):
            raise CheckpointError(
                "the run's best.json is damaged",
                where=path,
                hint="delete it and go on with `resume=True`, or name a folder in checkpoints/",
            ) from None

    def require_best(self, judged: Record, card: Card) -> None:
        """Refuse a ``best.json`` that says other things of the best checkpoint than its card.

        Raises:
            CheckpointError: If it does.
        """
        if (judged["step"], judged["score"]) != (card.step, card.score):
            raise CheckpointError(
                "best.json and the checkpoint that it names disagree",
                where=self.path / "best.json",
                expected=f"step {card.step}, score {card.score}",
                found=f"step {judged['step']}, score {judged['score']}",
                hint="delete best.json and go on with `resume=True`, or name a folder in checkpoints/",
            )

    def steps(self) -> list[int]:
        """Steps of the checkpoints there are."""
        return sorted(int(p.name[5:]) for p in self.checkpoints.glob("step-*") if p.name[5:].isdigit())

    def save(
        self,
        card: Card,
        model: Mapping[str, Tensor],
        training: Mapping[str, Tensor],
        selection: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Write a checkpoint; keep the best and the last two.

        Args:
            card: With step and score.
            model: The averaged generator.
            training: Everything needed to resume.
            selection: Critics that choose among candidates of the best generator, where there are some.
        """
        card = card.model_copy(update={"history": tuple(self.history(card.step))})
        best = self.best_with(card)
        mine = selection if best == card.step else None
        save_checkpoint(self.checkpoints / f"step-{card.step}", card, model, training, mine)
        self.judge(card)
        if best != card.step:
            rewrite_card(self.checkpoints / f"step-{best}", card.history, selection)
        kept = {*self.steps()[-2:], best}
        for step in self.steps():
            if step not in kept:
                shutil.rmtree(self.checkpoints / f"step-{step}")

    def history(self, until: int) -> list[dict[str, int | float | None]]:
        """Validations up to a step, from the log: all of them, or the best, the last and some evenly between."""
        found = self._validations(until)
        if len(found) <= _MOST_HISTORY:
            return found
        scores = [math.inf if record["score"] is None else record["score"] for record in found]
        evenly = np.linspace(0, len(found) - 1, _MOST_HISTORY - 1).round().astype(int).tolist()
        return [found[i] for i in sorted({*evenly, scores.index(min(scores))})]

    def _validations(self, until: int) -> list[dict[str, int | float | None]]:
        return [
            {key: _short_number(record[key]) for key in _HISTORY if key in record}
            for record in self.records(until)
            if "score" in record
        ]

    def lost(self, card: Card) -> int:
        """How many validations a checkpoint remembers that the log has not, or has with other numbers."""
        known = self._validations(card.step)
        return sum(one not in known for one in card.history if (one.get("step") or 0) <= card.step)

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
        if self.best_with(card) == card.step:
            record = {"step": card.step, "score": card.score, "checkpoint": f"step-{card.step}"}
            write_atomic(self.path / "best.json", _line(record).encode())

    def best_with(self, card: Card) -> int:
        """Step of the best checkpoint, if one with this card is among them.

        Rounds of projected training are judged one by one, by more than the score sees: the last is the best one, as
        long as its score is that of the start within the error of the floor.
        """
        best = self.best()
        known = best["score"] if best else None
        if known is not None and card.config.training.update == "projected":
            known = max([known, *(r["score"] + r.get("floor_error", 0.0) for r in self.records(0) if r.get("score"))])
        if best is None or (card.score is not None and (known is None or card.score < known)):
            return card.step
        return int(best["step"])


def _record(line: bytes) -> Record | None:
    """What a line of the log, or ``best.json``, says; None if it is no record of a run."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(record, dict) or type(record.get("step")) is not int or record["step"] < 0:
        return None
    numbers = (record[key] for key in _NUMBERS if record.get(key) is not None)
    return record if all(type(x) in (int, float) and abs(x) < _MOST_NUMBER for x in numbers) else None


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
    unreadable = sum(record is None for record in folder.lines())
    theirs = _fixed(checkpoint.card.config)
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
    alone = {"ranks": 1}  # what one process does not write down
    before, now = alone | checkpoint.card.provenance, alone | facts
    changed = [key for key in ("ranks", "threads", "torch", "numpy", "device") if before.get(key) != now[key]]
    warnings = [f"set aside a damaged checkpoint: {error.what} ({error.where})" for error in damaged.values()]
    if unreadable:
        warnings.append(f"skipped {unreadable} damaged or foreign line(s) of log.jsonl")
    if lost := folder.lost(checkpoint.card):
        warnings.append(f"log.jsonl has other numbers than the checkpoint remembers of {lost} validation(s), or none")
    if changed:
        details = ", ".join(f"{key} {before.get(key)} -> {now[key]}" for key in changed)
        warnings += [f"resumed with other {details}: weights will not be bit-identical to an uninterrupted run"]
    folder.set_aside(damaged)
    for step in folder.steps() if folder.best() is None else ():
        folder.judge(load_checkpoint(folder.checkpoints / f"step-{step}").card)
    return checkpoint, "; ".join(warnings)


def _fixed(config: Config) -> Record:
    """The settings that must be the same when a run is resumed, by name."""
    training = config.training.model_dump(exclude=_MAY_CHANGE)
    others = config.model_dump(exclude={"device", "threads", "training"})
    return others | {f"training.{key}": value for key, value in training.items()}


def _newest(folder: RunFolder) -> tuple[Checkpoint, dict[int, DamagedError]]:
    """The newest checkpoint that is whole; by step, what is wrong with newer ones and with the best.

    Raises:
        CheckpointError: If there is none.
    """
    judged, steps = folder.best() or {}, folder.steps()
    best = judged.get("step")
    found: Checkpoint | None = None
    damaged: dict[int, DamagedError] = {}
    for step in reversed(steps):
        if found is None or step == best:
            try:
                checkpoint = load_checkpoint(folder.checkpoints / f"step-{step}")
                if step == best:
                    folder.require_best(judged, checkpoint.card)
                if found is None:
                    checkpoint.training_state()
                    found = checkpoint
            except DamagedError as error:
                damaged[step] = error
    if found is not None:
        return found, damaged
    if damaged:
        raise damaged[max(damaged)]
    hint = "leave out `resume` to start the run"
    raise CheckpointError("there is no checkpoint to resume from", where=folder.path, hint=hint)


def _short(value: object) -> str:
    text = value.get("name", "") if isinstance(value, dict) and "name" in value else repr(value)
    return str(text) if len(str(text)) < 200 else str(text)[:200] + "..."
