"""A training run from its data to its last checkpoint: log lines, validations, checkpoints, the best so far, resume."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ..analysis.metrics.validation import FLOORS, score_floor
from ..analysis.origins import chosen_checkpoint
from ..analysis.survey.plan import read_out
from ..config import Config
from ..errors import CheckpointError, DivergenceError, Interrupted, ShardError
from ..models.contract import Generator
from ..models.showers.symmetries import Verdict, judge
from ..runs.checkpoint import Card, ConditionRange, load_checkpoint
from ..runs.environment import environment
from ..runs.events import Events
from ..runs.folder import Record, RunFolder, resumable
from ..sampling import Surrogate
from ..shards.reader import Shards
from ..shards.samples import Samples
from ..stages import reporting, stage
from ..storage import locked, tidied
from .batches import Batches, held_out
from .health import alarm, without_progress
from .kept import fitted
from .objectives import objective_of
from .projected import ProjectedTrainer
from .ranks import Ranks, joined
from .setup import Setup, prepare
from .trainers import AdversarialTrainer, LikelihoodTrainer, MatchingTrainer, Trainer

_JUDGES = 10_000  # validation samples, at most, by which critics and projected steps are judged


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        folder: The run folder, also what ``calogen generate`` takes.
        step: Generator updates done.
        score: Best validation score.
        records: The log.
        best_step: Of the checkpoint with that score, which is the one that is used.
    """

    folder: Path
    step: int
    score: float | None
    records: tuple[Record, ...]
    best_step: int | None = None

    def surrogate(self, device: Literal["auto", "cpu", "cuda"] = "cpu") -> Surrogate:
        """The best checkpoint, ready to sample."""
        return Surrogate.load(self.folder, device)

    def __repr__(self) -> str:
        score = "no score" if self.score is None else f"best score {self.score:.4f}"
        return f"Run({self.folder}: {self.step} steps, {score} at step {self.best_step})"

    @property
    def outcome(self) -> str:
        """What training came to: which checkpoint is used, its score, and the start's."""
        start = next((r["score"] for r in self.records if r["step"] == 0 and r.get("score") is not None), None)
        said, *rest = (chosen_checkpoint(self.best_step, self.step) or "no checkpoint was validated").split(";")
        score = "" if self.score is None else f", score {self.score:.4f}"
        before = f" (the start's: {start:.4f})" if start is not None and self.best_step else ""
        return ";".join([f"{said}{score}{before}", *rest])


def train(
    config: Config,
    data: str | Path | Sequence[str | Path],
    out: str | Path,
    *,
    resume: bool = False,
    progress: Callable[[Record], None] | None = None,
    should_stop: Callable[[], int] | None = None,
    strict: bool = False,
    ranks: Ranks | None = None,
) -> Run:
    """Train a surrogate; with the other processes, where torchrun or Slurm has started several.

    Args:
        config: What to do.
        data: As for :func:`prepare`.
        out: Run folder; must be empty or absent unless ``resume``.
        resume: Continue from the last checkpoint in ``out``, or start again what was stopped before its first one.
        progress: Called with every log record; between records with ``{"step", "steps"}``; and from the first second
            on, while data are read, fitted and judged, and within rounds, with ``{"step": 0, "stage", "done", "of"}``:
            what is done, how much of it, and of how much (0: nobody knows).
        should_stop: Asked after every step; a signal number stops the run after a checkpoint.
        strict: Refuse data of which parts or samples are missing; else the log and the provenance say so.
        ranks: The processes that train, where they have met already.

    Returns:
        The finished run; every rank has it.

    Raises:
        ConfigError: Wrong configuration, or ``out`` not empty or being written by another process.
        ShardError: Unusable data.
        CheckpointError: Nothing to resume, or another run's checkpoint.
        DivergenceError: Numbers that are not finite; the last good checkpoint is kept.
        Interrupted: ``should_stop`` asked for it; the run can be resumed.
        StorageError: The disk refused.
        RankError: Another process died or failed; the last checkpoint is kept.
        ElsewhereError: The same, and another process says it.
    """
    if ranks is None:
        told: dict[str, Any] = {"progress": progress, "should_stop": should_stop, "strict": strict}
        with joined() as ranks:
            return train(config, data, out, resume=resume, ranks=ranks, **told)
    folder, ask = RunFolder(Path(out)), should_stop or (lambda: 0)
    ranks.require_same({"configuration": config.model_dump(mode="json"), "resume": resume, "strict": strict})
    with ExitStack() as stack:
        stack.enter_context(reporting(_stages(progress) if progress is not None and ranks.first else None))
        stage("opening the data")
        with ranks.apart():
            setup = prepare(config, data, strict=strict, ranks=ranks)
        torch.set_num_threads(setup.threads)
        with ranks.apart():
            if ranks.first:
                if not resume:
                    folder.require_empty()
                stack.enter_context(tidied(folder.path))
                stack.enter_context(locked(folder.lock))
            facts = {"device": setup.device.type, "data": setup.training.digest()}
        ranks.require_same({"settings": setup.config.model_dump(mode="json"), **facts})
        if setup.ranks.size == ranks.size:
            loop = TrainingLoop.start(setup, out, resume=resume, progress=progress)
            loop.run(ask)
            found = loop.finished()
        else:
            found = _on_first(setup, ranks, out, resume=resume, progress=progress, should_stop=ask)
    step, score, records, best = ranks.told(found)
    return Run(folder.path, step, score, tuple(records), best)


def _stages(progress: Callable[[Record], None]) -> Callable[[str, int, int], None]:
    """Hands stages of work on as records."""
    return lambda what, done, of: progress({"step": 0, "stage": what, "done": done, "of": of})


Finished = tuple[int, float | None, tuple[Record, ...], int | None]
"""Steps, best score, log, step of the best checkpoint."""


def _on_first(setup: Setup, ranks: Ranks, out: str | Path, *, should_stop: Callable[[], int], **how: Any) -> Finished:
    """A run that is one process's, on rank 0; the others wait, and pass on the signals that they get."""
    found: Finished = (0, None, (), None)
    with ranks.apart(should_stop):
        if ranks.first:
            loop = TrainingLoop.start(setup, out, **how)
            loop.note(
                f"projected training runs on rank 0; the other {ranks.size - 1} wait (training.update=adam uses all)"
            )
            loop.run(lambda: should_stop() or ranks.heard)
            found = loop.finished()
    return found


class TrainingLoop:
    """Steps, log lines, validations and checkpoints at their intervals; made by :meth:`start`."""

    def __init__(
        self,
        trainer: Trainer,
        folder: RunFolder,
        card: Card,
        validation: Samples,
        progress: Callable[[Record], None] | None,
    ) -> None:
        self.trainer, self.folder, self.card, self.validation = trainer, folder, card, validation
        self.ranks, self.progress = trainer.ranks, progress or (lambda _: None)
        self.records: list[Record] = []
        self.sums: dict[str, Tensor] = {}
        self.begun = self.since = time.monotonic()
        self.counted = 0
        self.events: Events | None = None
        self.before = 0.0  # seconds of the sessions before this one

    @classmethod
    def start(
        cls,
        setup: Setup,
        out: str | Path,
        *,
        resume: bool = False,
        check: bool = True,
        progress: Callable[[Record], None] | None = None,
    ) -> TrainingLoop:
        """Load the data, then fit a new run and save its start, or restore the last checkpoint.

        Args:
            setup: What to train.
            out: Run folder.
            resume: Restore.
            check: Validate and save the start of a new run.
            progress: As for :func:`train`.
        """
        folder, facts, options, ranks = RunFolder(Path(out)), _facts(setup), setup.config.training, setup.ranks
        begun, resume = time.monotonic(), ranks.told(resume and not folder.begun)
        checkpoint, warning, verdicts = None, "", list[Verdict]()
        stage("reading the data")
        with ranks.apart():
            if resume and ranks.first:
                checkpoint, warning = resumable(folder, setup.config, facts)
            elif ranks.first:
                folder.require_empty()
            batches = Batches(
                setup.training,
                setup.conditions,
                options.batch_size,
                seed=setup.config.seed,
                device=setup.device,
                family=setup.family,
                memory=options.memory,
                holdout=setup.config.holdout,
                ranks=ranks,
            )
            validation, bad = _validation_samples(setup)
            facts["dropped"] = setup.training.dropped + bad
            if not resume and setup.family.layers and ranks.first:
                stage("testing symmetries")
                verdicts = judge(batches.samples(setup.family), setup.conditions)
        checkpoint = ranks.passed(checkpoint)
        if checkpoint is not None:
            setup = setup.using(checkpoint.card.family.symmetries)
        elif setup.family.layers:
            setup = setup.using(ranks.told([verdict.symmetry for verdict in verdicts if verdict.holds]))
        trainer = build_trainer(setup, batches)
        loop = cls(trainer, folder, _card(setup, facts), validation, progress)
        loop.begun = begun
        if checkpoint is not None:
            trainer.restore(checkpoint)
            if options.tensorboard and ranks.first:
                loop.events = Events(folder.path, resumed=trainer.done)
            with ranks.apart():
                if ranks.first:
                    folder.judge(checkpoint.card)  # the kill may have come between checkpoint and verdict
                    loop.records = folder.records(trainer.done)
                    folder.rewrite_log(loop.records)
            loop.records = ranks.told(loop.records)
            loop.before = max((record.get("seconds", 0.0) for record in loop.records), default=0.0)
            if warning:
                loop._tell({"step": trainer.done, "warning": warning})
        else:
            kept = (0.0, "")
            with ranks.apart():
                if ranks.first:
                    stage("fitting")
                    kept = fitted(trainer, setup)
            loop.before, reused = ranks.told(kept)
            ranks.copy(trainer.networks)
            trainer.arm()
            with ranks.apart():
                if ranks.first:
                    folder.create(setup.config, facts)  # only now: data that cannot be used leave nothing behind
                    loop.events = Events(folder.path) if options.tensorboard else None
            for note in (*facts["notes"], *([reused] if reused else ())):
                loop._tell({"step": 0, "note": note})
            if facts["dropped"]:
                rows = len(setup.training) + min(options.validation_size, len(setup.validation))
                what = f"left out {facts['dropped']} bad rows of {rows} (drop_bad)"
                loop._tell({"step": 0, "warning": what})
            for remark in trainer.generator.remarks:
                loop._tell({"step": 0, "warning": remark})
            if check:
                seconds = loop.before + time.monotonic() - begun  # what the fit took counts, whenever it was made
                facts = {"step": 0, "steps": options.steps, "seconds": round(seconds, 3)}
                facts |= {"symmetries": "; ".join(map(str, verdicts))} if verdicts else {}
                stage("validating the fitted start")
                validated, floor = trainer.validate(loop.validation), Record()
                with ranks.apart():
                    if ranks.first:
                        floor = _floor(setup, loop.validation)
                loop._tell(ranks.told(facts | validated | floor))
                loop.save()  # the fitted start: the model to beat, and what is left if training diverges at once
        return loop

    def advance(self, steps: int) -> None:
        """Train for some steps, with log lines but no other interruption."""
        for _ in range(steps):
            self._step()
            if self.trainer.done % self.trainer.options.log_every == 0:
                self._log(validate=False)

    def run(self, should_stop: Callable[[], int]) -> None:
        """Train to the last step, the time limit or a signal."""
        trainer, options = self.trainer, self.trainer.options
        limit = math.inf if options.time is None else options.time
        while (
            trainer.done < options.steps and not trainer.finished and self.before < limit
        ):  # earlier sessions may have used all the time
            self._step()
            signal_number = self.ranks.signal(should_stop() if trainer.done < options.steps else 0)
            late = self.seconds() >= limit or bool(trainer.finished)
            last = trainer.done == options.steps or late or bool(signal_number)
            validate = trainer.done % options.validate_every == 0 or (last and not signal_number)
            if validate or last or trainer.done % options.log_every == 0:
                self._log(validate=validate)
            elif self.ranks.first:
                self.progress({"step": trainer.done, "steps": options.steps})
            if trainer.finished:
                self._tell({"step": trainer.done, "stopped": trainer.finished})
            idle = without_progress(self.records) if validate and options.patience else 0
            if options.patience and idle >= options.patience:
                last = late = True
                self._tell({"step": trainer.done, "stopped": f"no better score in {idle} validations"})
            if trainer.done % options.checkpoint_every == 0 or last:
                self.save(final=last and not signal_number)
            if signal_number:
                raise Interrupted(
                    f"stopped by signal {signal_number} after step {trainer.done}; the run can be resumed",
                    signal_number=signal_number,
                    hint=f"the same call with `resume=True` goes on with {self.folder.path}",
                )
            if late:
                return

    def seconds(self) -> float:
        """Of the run so far, fitting and earlier sessions included; ranks agree on it where it decides something."""
        mine = self.before + time.monotonic() - self.begun
        return mine if self.trainer.options.time is None else self.ranks.most(mine)

    def finished(self) -> Finished:
        """Steps, best score, log, and the step of the best checkpoint."""
        if self.events is not None:
            self.events.close()
        best = (self.folder.best() if self.ranks.first else None) or {}
        return self.trainer.done, best.get("score"), tuple(self.records), best.get("step")

    def note(self, text: str) -> None:
        """Write a note into the log."""
        self._tell({"step": self.trainer.done, "note": text})

    def _step(self) -> None:
        for name, value in self.trainer.step(self.seconds()).items():
            self.sums[name] = self.sums[name] + value if name in self.sums else value
        self.counted += 1

    def _tell(self, record: Record) -> None:
        self.records.append(record)
        if self.ranks.first:
            self.folder.log(record)
            if self.events is not None:
                self.events.write(record)
            self.progress(record)

    def _log(self, *, validate: bool) -> None:
        trainer, now, seconds = self.trainer, time.monotonic(), self.seconds()
        values = {name: value / self.counted for name, value in self.ranks.mean(self.sums).items()}
        record: Record = {
            "step": trainer.done,
            "steps": trainer.options.steps,
            "seconds": round(seconds, 3),
            **values,
            "steps_per_second": round(self.counted / max(now - self.since, 1e-9), 3),
        }
        wrong = [name for name, value in values.items() if not math.isfinite(value)]
        for name, network in trainer.networks.items():
            finite = [torch.isfinite(p).all() for p in network.parameters()]
            if not wrong and finite and not torch.stack(finite).all():
                wrong = [f"{name} weights"]
        if wrong:
            if self.ranks.first:
                self.folder.log({"step": trainer.done, "diverged": wrong})
            steps = self.folder.steps()
            kept = self.folder.checkpoints / f"step-{steps[-1]}" if steps else "none yet"
            raise DivergenceError(
                f"training diverged before step {trainer.done}: {', '.join(wrong)} not finite",
                where=self.folder.path,
                found=f"last good checkpoint: {kept}",
                hint="lower training.learning_rate and training.critic_learning_rate, then start again",
            )
        if validate:
            record |= trainer.validate(self.validation)
        self._tell(self.ranks.told(record))
        warning = alarm(self.records) if validate else None
        if warning:
            self._tell({"step": trainer.done, "warning": warning})
        self.sums, self.counted, self.since = {}, 0, time.monotonic()

    def save(self, *, final: bool = False) -> None:
        """Write a checkpoint of the current step, once its numbers are known to be finite.

        Args:
            final: It is the last one, with which goes what the trainer has for those who use it.
        """
        if self.counted:
            self._log(validate=False)  # also checks that everything is finite
        scores = [r["score"] for r in self.records if r.get("step") == self.trainer.done and "score" in r]
        changes = {"step": self.trainer.done, "score": scores[-1] if scores else None}
        card, trainer = self.card.model_copy(update=changes), self.trainer
        with self.ranks.apart():
            if self.ranks.first:
                selection = trainer.selection(partial(self._best_with, card)) if final else None
                self.folder.save(card, trainer.average.state_dict(), trainer.state(), selection)

    def _best_with(self, card: Card) -> Generator:
        """The best generator once one with this card, that of the current step, is saved."""
        best = self.folder.best_with(card)
        if best == card.step:
            return self.trainer.average
        try:
            kept = load_checkpoint(self.folder.checkpoints / f"step-{best}")
        except CheckpointError:  # whoever uses it hears of that; here the last step must not be lost
            return self.trainer.average
        return kept.generator().to(self.trainer.setup.device)


def build_trainer(setup: Setup, batches: Batches) -> Trainer:
    """What trains the generator of a run by its objective."""
    options = setup.config.training
    objective = objective_of(setup.family, setup.config.generator.network, options.objective)
    if options.objective == "matching":
        return MatchingTrainer(setup, batches)
    if objective is None:
        return LikelihoodTrainer(setup, batches)
    if options.update == "adam":
        return AdversarialTrainer(setup, batches, objective)
    return ProjectedTrainer(setup, batches, objective, _some(setup, setup.validation, _JUDGES)[0])


def _some(setup: Setup, shards: Shards, count: int) -> tuple[Samples, int]:
    """Samples spread over all there are, outside held-out ranges, as the read-out sees them.

    Where the last tenth validates, they are the first ones. With them comes how many rows were bad.
    """
    if setup.config.split != "last":
        shards = shards.thinned(count)
    samples = shards.read(0, count)
    samples = samples.select(~held_out(samples, setup.config.holdout))
    return replace(samples, values=read_out(samples.values, setup.family.threshold)), shards.dropped


def _validation_samples(setup: Setup) -> tuple[Samples, int]:
    samples, bad = _some(setup, setup.validation, setup.config.training.validation_size)
    if not len(samples):
        raise ShardError("no validation samples are left outside the held-out ranges", hint="narrow `holdout`")
    return samples, bad


def _floor(setup: Setup, validation: Samples) -> Record:
    """What the score of validation samples is for training samples: as good as any generator's can be."""
    others, _ = _some(setup, setup.training, FLOORS * len(validation))
    if setup.config.split != "last":  # each set of a floor is one of samples from everywhere
        others = others.select(np.random.default_rng(0).permutation(len(others)))
    found = score_floor(validation, others)
    return {} if found is None else {"floor": found[0]} | ({"floor_error": found[1]} if found[1] is not None else {})


def _card(setup: Setup, facts: Record) -> Card:
    ranges = []
    for name, values in setup.ranges.items():
        usual = setup.family.condition(name)
        covered = usual.covered(min(values), max(values))
        labels = tuple(usual.labels[int(code)] for code in values) if usual.labels else ()
        ranges.append(ConditionRange(name=name, unit=usual.unit, low=covered[0], high=covered[1], labels=labels))
    return Card(
        family=setup.family,
        conditions=tuple(ranges),
        config=setup.config,
        step=0,
        holdout=setup.config.holdout,
        provenance=facts,
    )


def _facts(setup: Setup) -> Record:
    return environment() | {
        "device": str(setup.device),
        "threads": setup.threads,
        **({"ranks": setup.ranks.size} if setup.ranks.size > 1 else {}),
        "seed": setup.config.seed,
        "data": setup.training.digest(),
        "training_samples": len(setup.training),
        "validation_samples": len(setup.validation),
        **({"simulations": setup.training.origins().identity()} if setup.family.has_realisations else {}),
        "notes": list(dict.fromkeys([*setup.training.notes, *setup.validation.notes])),
    }
