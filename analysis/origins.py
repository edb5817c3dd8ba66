"""What files of generated samples say of their surrogate: how it was trained, and what it cost."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calogen.errors import ShardError
from calogen.shards.manifest import read_manifest
from calogen.shards.reader import Source

Entry = Mapping[str, Any]


@dataclass(frozen=True)
class Costs:
    """What a surrogate cost, on the machines that trained it and generated with it; None where nothing says.

    Attributes:
        network: Of the generator.
        objective: What it was trained by.
        parameters: Numbers fitted or trained in the generator.
        training_steps: Generator updates, or rounds of projected training.
        training_seconds: Time of all of them, fitting and validations included.
        training_device: What they ran on.
        samples_per_second: Written by one process, from latent numbers to the compressed file.
        best_step: Of the checkpoint that the samples were made with.
    """

    network: str | None = None
    objective: str | None = None
    parameters: int | None = None
    training_steps: int | None = None
    training_seconds: float | None = None
    training_device: str | None = None
    samples_per_second: float | None = None
    best_step: int | None = None

    @classmethod
    def of(cls, source: Source) -> Costs:
        """Read them from a source's provenance and its folder's manifest."""
        entry = _entry(source.provenance)
        facts, history = entry.get("training"), _validations(entry)
        facts = facts if isinstance(facts, Mapping) else {}
        device = facts.get("device")
        return cls(
            network=_text(entry.get("network")),
            objective=_text(entry.get("objective")),
            parameters=_whole(entry.get("parameters")),
            training_steps=_whole(history[-1].get("step")) if history else None,
            best_step=_whole(entry.get("checkpoint_step")),
            training_seconds=_number(history[-1].get("seconds")) if history else None,
            training_device=f"{device}, {facts.get('threads')} thread(s)" if device == "cpu" else _text(device),
            samples_per_second=_rate(getattr(source, "files", ())),
        )

    @classmethod
    def mean(cls, several: Sequence[Costs]) -> Costs:
        """Of several seeds: what they share, and means of the numbers that all have."""
        merged: dict[str, Any] = {}
        for key, first in asdict(several[0]).items():
            values = [getattr(costs, key) for costs in several]
            if all(value == first for value in values):
                merged[key] = first
            elif None not in values and not isinstance(first, str) and key != "best_step":
                mean = float(np.mean(values))
                merged[key] = round(mean) if isinstance(first, int) else mean
        return cls(**merged)

    def known(self) -> dict[str, Any]:
        """Those that something says."""
        return {key: value for key, value in asdict(self).items() if value is not None}


def chosen_checkpoint(best: int | None, steps: int | None) -> str:
    """Which checkpoint of a run is used, for people; empty where that is not known.

    Args:
        best: Step of the checkpoint.
        steps: Steps of the run.
    """
    if best is None or steps is None:
        return ""
    if best:
        return f"best checkpoint: step {best} of {steps}"
    return "step 0: the fitted start" + ("; training did not improve on it" if steps else " alone, without training")


def place_of(source: Source) -> str:
    """Where samples come from, in a few words: the last two parts of their path, or memory."""
    files = getattr(source, "files", ())
    if not files:
        return "in memory"
    folders = {path.parent for path in files}
    place = files[0] if len(files) == 1 and not files[0].name.startswith("shard-") else files[0].parent
    return "/".join(place.absolute().parts[-2:]) if len(folders) == 1 else f"{len(files)} files"


@dataclass(frozen=True)
class History:
    """How a training went, validation by validation.

    Attributes:
        steps: Generator updates before each validation, (N,).
        seconds: Time of training until then, (N,).
        curves: By name, (N,) each, NaN where there is none: score, critic_gap, loss_gap, wasserstein,
            validation_auc, loss, diversity.
        floor: Score of training against validation samples, and its uncertainty; NaN if unknown.
        chosen: Step of the checkpoint that the samples were made with; None if unknown.
    """

    steps: NDArray[np.float64]
    seconds: NDArray[np.float64]
    curves: Mapping[str, NDArray[np.float64]]
    floor: tuple[float, float]
    chosen: int | None

    @classmethod
    def of(cls, provenance: Sequence[Entry]) -> History | None:
        """From the provenance of samples; None if it tells no history of at least two validations."""
        entry = _entry(provenance)
        found = _validations(entry)
        if len(found) < 2:
            return None

        def column(name: str) -> NDArray[np.float64]:
            return np.array([_number(one.get(name)) for one in found], np.float64)

        def first(name: str) -> float:
            return next((float(x) for x in column(name) if math.isfinite(x)), math.nan)

        names = dict.fromkeys(key for one in found for key in one if key not in _AXES)
        return cls(
            steps=column("step"),
            seconds=column("seconds"),
            curves={name: column(name) for name in names},
            floor=(first("floor"), first("floor_error")),
            chosen=_whole(entry.get("checkpoint_step")),
        )


def trained_with(provenance: Sequence[Entry]) -> Entry:
    """Which simulations a surrogate was trained with, as its samples' provenance keeps it; nothing if not."""
    training = _entry(provenance).get("training")
    found = training.get("simulations") if isinstance(training, Mapping) else None
    return found if isinstance(found, Mapping) else {}


_MOST = 1e30  # no file of ours has larger numbers, and figures cannot show them
_AXES = ("step", "seconds", "floor", "floor_error")


def _entry(provenance: Sequence[Entry]) -> Entry:
    """What all files say of their checkpoint; nothing if they are of several, or of none."""
    digests = {f"{entry.get('checkpoint_sha256', '')}{entry.get('card_sha256', '')}" for entry in provenance}
    return provenance[0] if len(digests) == 1 and digests != {""} else {}


def _validations(entry: Entry) -> list[Entry]:
    history = entry.get("history")
    return [one for one in history if isinstance(one, Mapping)] if isinstance(history, list | tuple) else []


def _rate(files: Sequence[Path]) -> float | None:
    """Samples a second of one process, of all files whose manifests say how long they took."""
    samples, seconds = 0, 0.0
    names = {path.resolve() for path in files}
    for folder in dict.fromkeys(path.parent for path in files):
        try:
            manifest = read_manifest(folder)
        except ShardError:  # only speed is lost
            continue
        for record in manifest.records if manifest else ():
            if record.seconds and (folder / record.name).resolve() in names:
                samples, seconds = samples + record.samples, seconds + record.seconds
    return samples / seconds if seconds else None


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _number(value: Any) -> float | None:
    usable = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < _MOST
    return float(value) if usable else None


def _whole(value: Any) -> int | None:
    number = _number(value)
    return None if number is None else int(number)
