"""Checkpoints: safetensors and JSON, written atomically, verified on reading. No pickle anywhere."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import (
    BaseModel,
    ConfigDict,
    SerializerFunctionWrapHandler,
    ValidationError,
    field_validator,
    model_serializer,
)
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as tensor_bytes
from torch import Tensor, nn

from ..config import Config
from ..errors import CheckpointError, ConditionError, ConfigError, DamagedError, DivergenceError, StorageError
from ..families import Condition, Family, readable
from ..models.contract import Generator
from ..models.refinement import Selection
from ..models.registry import RENAMED, build_generator
from ..storage import digest_of, read_bounded, remedy, sync_folder, write_atomic

SCHEMA = 1
_CARD, _MODEL, _TRAINING = "checkpoint.json", "model.safetensors", "training.safetensors"
_SELECTION = "selection.safetensors"
_MOST_BYTES = 8 * 2**30
_UNCOVERED = ("history", "history_sha256", "sha256")  # keys of a card that its digest is not about


class ConditionRange(BaseModel):
    """What a model was trained on: a condition, its unit, and the range or labels that the training data covered."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    name: str
    unit: str
    low: float
    high: float
    labels: tuple[str, ...] = ()

    @model_serializer(mode="wrap")
    def _without_labels(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        found: dict[str, Any] = handler(self)
        return found if self.labels else {key: value for key, value in found.items() if key != "labels"}

    def __str__(self) -> str:
        """The range, or the labels, for people."""
        return ", ".join(self.labels) or f"{self.low:g} to {self.high:g} {self.unit}".rstrip()

    @property
    def short(self) -> str:
        """Name and range in few signs, as ``incident_energy 1-100 GeV``."""
        factor, unit = readable(self.unit, self.high)
        sign = "-" if self.low >= 0 else " to "
        values = ", ".join(self.labels) or f"{factor * self.low:g}{sign}{factor * self.high:g} {unit}"
        return f"{self.name} {values}".rstrip()

    @property
    def spec(self) -> str:
        """All of it, evenly, as a specification for requests."""
        return f"uniform:{','.join(self.labels)}" if self.labels else f"uniform:{self.low!r}:{self.high!r}{self.unit}"

    def numbers(self, condition: Condition) -> NDArray[np.float64]:
        """Numbers of the labels; of a range its ends."""
        return np.array([condition.code(label) for label in self.labels] or [self.low, self.high])

    def check(self, values: NDArray[np.float32], condition: Condition, *, extrapolate: bool) -> None:
        """Refuse values (n,) that are impossible or outside the range.

        Args:
            values: In the condition's unit, or the numbers of its labels.
            condition: What the family says of it.
            extrapolate: Allow what lies outside, as long as it is possible at all; never other labels.

        Raises:
            ConditionError: Names condition, row, value, range and remedy.
        """
        what, expected, hint = "not what the surrogate was trained on", str(self), None
        if condition.labels:
            wrong = ~np.isin(values, self.numbers(condition))
        elif (wrong := ~condition.possible(values)).any():
            what, expected = "not possible", condition.domain
        elif not extrapolate:
            margin = 1e-6 * max(abs(self.low), abs(self.high))
            wrong = (values < self.low - margin) | (values > self.high + margin)
            hint = "`extrapolate=True` allows it; such samples were never compared with any reference"
        if not wrong.any():
            return
        row = int(np.flatnonzero(wrong)[0])
        number = float(values[row])
        found = f"{number:g} {self.unit}".rstrip()
        if condition.labels:
            known = number in range(len(condition.labels))
            found = condition.labels[int(number)] if known else f"{number:g}, which is the number of no label"
        raise ConditionError(
            f"{int(wrong.sum())} value(s) of '{self.name}' are {what}",
            where=f"sample {row}",
            expected=expected,
            found=found,
            hint=hint,
        )


class Card(BaseModel):
    """The JSON half of a checkpoint.

    Attributes:
        calogen_checkpoint: Schema number.
        family: What the model makes.
        conditions: What it is conditioned on, in the order of its columns.
        config: The resolved training configuration.
        step: Generator updates so far.
        score: Validation score, none before the first validation.
        holdout: Ranges of conditions left out of training.
        provenance: Versions, seed, data digest.
        history: Validations of the run so far, at most 64 of them: step, seconds of training until then, score, critic
            gap, Wasserstein estimate or loss; the first has the floor of the score with its error.
        model_sha256: Of ``model.safetensors``.
        training_sha256: Of ``training.safetensors``, where there is one.
        selection_sha256: Of ``selection.safetensors``, where there is one: critics that choose among candidates.
        history_sha256: Of the history.
        sha256: Of all else on the card, and so, through their digests, of everything that decides samples.
    """

    model_config = ConfigDict(frozen=True, extra="ignore", protected_namespaces=())
    calogen_checkpoint: int = SCHEMA
    family: Family
    conditions: tuple[ConditionRange, ...]
    config: Config
    step: int
    score: float | None = None
    holdout: dict[str, tuple[float, float]] = {}
    provenance: dict[str, Any] = {}
    history: tuple[dict[str, int | float | None], ...] = ()
    model_sha256: str = ""
    training_sha256: str = ""
    selection_sha256: str = ""
    history_sha256: str = ""
    sha256: str = ""

    @field_validator("config")
    @classmethod
    def _of_today(cls, config: Config) -> Config:
        """Networks of earlier checkpoints by the names they have today; roles come with the conditions themselves."""
        name = config.generator.network
        return config.updated({"generator": {"network": RENAMED[name]}}) if name in RENAMED else config


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint in memory: its card and the averaged generator's tensors by name."""

    card: Card
    model: dict[str, Tensor]
    folder: Path

    @property
    def name(self) -> str:
        """What people call it: its run, or its folder."""
        folder = self.folder.resolve()
        return (folder.parents[1] if folder.parent.name == "checkpoints" else folder).name

    def generator(self) -> Generator:
        """The averaged generator, ready to sample, on the CPU.

        Raises:
            CheckpointError: If the tensors do not fit the networks the card describes.
        """
        names = [c.name for c in self.card.conditions]
        with torch.device("meta"):  # a card that asks for more than the tensors hold must not fill the memory
            outline = build_generator(self.card.family, names, self.card.config.generator)
        load_state(outline, {name: tensor.to("meta") for name, tensor in self.model.items()}, self.folder / _MODEL)
        generator = build_generator(self.card.family, names, self.card.config.generator)
        load_state(generator, self.model, self.folder / _MODEL)
        return generator.eval().requires_grad_(False)

    def selection(self, generator: Generator) -> Selection:
        """What chooses among candidates for a sample.

        Args:
            generator: That of :meth:`generator`.

        Raises:
            CheckpointError: If the checkpoint has none, or it is damaged.
        """
        if not self.card.selection_sha256:
            raise CheckpointError(
                "the checkpoint has no critics that could choose among candidates",
                where=self.folder,
                expected=_SELECTION,
                hint="projected training writes them at its end; generate without `candidates`",
            )
        _, tensors = _read_tensors(self.folder / _SELECTION, self.card.selection_sha256)
        numbers = {name.split(".")[1] for name in tensors if name.startswith("critics.")}
        found = generator.selection(len(numbers))
        if found is None:
            raise DamagedError("critics for a network that has no use for them", where=self.folder / _SELECTION)
        load_state(found, tensors, self.folder / _SELECTION)
        return found.eval().requires_grad_(False)

    def training_state(self) -> dict[str, Tensor]:
        """Live networks and optimisers, for resuming.

        Raises:
            CheckpointError: If the checkpoint has none (a surrogate made for sampling only) or it is damaged.
        """
        path = self.folder / _TRAINING
        if not path.exists() and not self.card.training_sha256:
            raise CheckpointError(
                "the checkpoint has no training state and cannot be resumed",
                where=self.folder,
                expected=_TRAINING,
                hint="resume from a run folder; surrogates hold the generator only",
            )
        data, tensors = _read_tensors(path, self.card.training_sha256)
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        kept, own = header.get("__metadata__", {}), _facts(self.card)
        for name, value in own.items():
            if kept.get(name) != value:
                raise DamagedError(
                    f"the training state has another {name} than the checkpoint's description",
                    where=path,
                    expected=value,
                    found=kept.get(name, "nothing: an earlier calogen wrote it"),
                    hint="resume from another checkpoint, or start a new run",
                )
        return tensors


def _facts(card: Card) -> dict[str, str]:
    """What a training state must have in common with its card."""
    data, config = (
        str(card.provenance.get("data", "")),
        digest_of(card.config.model_dump(mode="json", exclude_defaults=True)),
    )
    return {"step": str(card.step), "seed": str(card.config.seed), "configuration": config, "data": data}


def load_state(module: nn.Module, state: Mapping[str, Tensor], where: Path) -> None:
    """Load tensors into a module, strictly.

    Raises:
        CheckpointError: If names or shapes differ.
    """
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        detail = str(error).splitlines()[1].strip() if "\n" in str(error) else str(error)
        raise CheckpointError(
            "the checkpoint does not fit its own description", where=where, found=detail, hint="the file was changed"
        ) from None


def save_checkpoint(
    folder: Path,
    card: Card,
    model: Mapping[str, Tensor],
    training: Mapping[str, Tensor] | None = None,
    selection: Mapping[str, Tensor] | None = None,
) -> None:
    """Write a checkpoint folder; it has its final name only when it is complete.

    Args:
        folder: Where; replaced if it exists.
        card: Described in :class:`Card`; its digest is filled in.
        model: Averaged generator and transform.
        training: Everything else needed to resume (none: a surrogate for sampling).
        selection: Critics that choose among candidates (none: there are none).

    Raises:
        DivergenceError: If numbers are not finite.
        StorageError: If the disk refuses.
    """
    for tensors in (model, training or {}, selection or {}):
        _require_finite(tensors, folder)
    files = {_MODEL: tensor_bytes(_plain(model))}
    digests = {"model_sha256": hashlib.sha256(files[_MODEL]).hexdigest(), "training_sha256": ""}
    if training is not None:
        files[_TRAINING] = tensor_bytes(_plain(training), _facts(card))
        digests["training_sha256"] = hashlib.sha256(files[_TRAINING]).hexdigest()
    if selection is not None:
        files[_SELECTION] = tensor_bytes(_plain(selection))
        digests["selection_sha256"] = hashlib.sha256(files[_SELECTION]).hexdigest()
    files[_CARD] = _sealed(json.loads(card.model_copy(update=digests).model_dump_json()))
    part = folder.with_name(folder.name + ".part")
    try:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        for name, content in files.items():
            with (part / name).open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        if folder.exists():
            shutil.rmtree(folder)
        part.rename(folder)
        sync_folder(folder.parent)
    except OSError as error:
        shutil.rmtree(part, ignore_errors=True)
        needed = sum(len(content) for content in files.values())
        after = "there is no earlier checkpoint, so the run starts again"
        if any(path.name[5:].isdigit() for path in folder.parent.glob("step-*")):
            after = "earlier checkpoints are untouched: go on with `resume=True`"
        raise StorageError(
            f"cannot write the checkpoint: {error.strerror}",
            where=folder,
            expected=f"{needed / 1e6:.1f} MB of space",
            hint=f"{remedy(error)}; {after}",
        ) from None


def _sealed(table: dict[str, Any]) -> bytes:
    """The text of a card, with its digests."""
    table["history_sha256"] = digest_of({"history": table.get("history", [])})
    table["sha256"] = digest_of(table, _UNCOVERED)
    return json.dumps(table, indent=1, ensure_ascii=False).encode()


def rewrite_card(
    folder: Path, history: Sequence[Mapping[str, int | float | None]], selection: Mapping[str, Tensor] | None = None
) -> None:
    """Bring a saved checkpoint up to date with the run, which went on after it was made.

    Args:
        folder: Of the checkpoint.
        history: Of the run.
        selection: Critics that choose among candidates (none: it keeps those that it has).

    Raises:
        DivergenceError: If numbers are not finite.
        StorageError: If the disk refuses.
    """
    try:
        table = _table(folder)
        _require_sealed(table, folder / _CARD)
    except CheckpointError:
        return  # a damaged card stays as it is: it is found when the checkpoint is loaded
    if selection is not None:
        _require_finite(selection, folder)
        content = tensor_bytes(_plain(selection))
        if table.get("selection_sha256"):  # a kill must not leave new critics with the digest of old ones
            write_atomic(folder / _CARD, _sealed({**table, "selection_sha256": ""}))
        write_atomic(folder / _SELECTION, content)
        table["selection_sha256"] = hashlib.sha256(content).hexdigest()
    write_atomic(folder / _CARD, _sealed({**table, "history": list(map(dict, history))}))


def seal(folder: Path) -> bool:
    """Write the digests of a card that has none, as those made before cards had any; tensors are not touched.

    Nothing tells whether such a card was changed: seal those alone whose origin is known. After a change on purpose,
    delete the card's line ``sha256`` first.

    Returns:
        Whether there was anything to write; a card with digests is checked instead.

    Raises:
        CheckpointError: If the checkpoint is damaged.
        StorageError: If the disk refuses.
    """
    table = _table(folder)
    missing = not table.get("sha256")
    if missing:
        text = _sealed(table)
        _checkpoint(json.loads(text), folder)  # or it says what is wrong
        write_atomic(folder / _CARD, text)
    load_checkpoint(folder)
    return missing


def load_checkpoint(folder: str | Path) -> Checkpoint:
    """Read and verify a checkpoint folder.

    Raises:
        CheckpointError: If it is missing, damaged, pickled, newer than this version, or not a checkpoint.
    """
    folder = Path(folder)
    if folder.is_file():
        with folder.open("rb") as file:
            _refuse_pickle(file.read(9), folder)
        raise CheckpointError(
            "a checkpoint is a folder, not a file", where=folder, expected="a run folder, a checkpoint folder or a name"
        )
    table = _table(folder)
    _require_sealed(table, folder / _CARD)
    return _checkpoint(table, folder)


def _checkpoint(table: dict[str, Any], folder: Path) -> Checkpoint:
    """A checkpoint whose card says what is in a table."""
    try:
        card = Card.model_validate(table)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise DamagedError(
            f"the checkpoint's description is damaged: {first['msg']}", where=f"{folder / _CARD}: {place}"
        ) from None
    except ConfigError as error:
        raise DamagedError(
            f"the checkpoint's description is damaged: {error.what}", where=f"{folder / _CARD}: config.{error.where}"
        ) from None
    return Checkpoint(card, _read_tensors(folder / _MODEL, card.model_sha256)[1], folder)


def _table(folder: Path) -> dict[str, Any]:
    """What a card says, as JSON."""
    path = folder / _CARD
    try:
        text = read_bounded(path)
    except FileNotFoundError:
        raise DamagedError(
            "there is no checkpoint here", where=folder, expected=f"a folder with {_CARD} and {_MODEL}"
        ) from None
    except OSError as error:
        raise CheckpointError(f"cannot read the checkpoint: {error.strerror}", where=path) from None
    try:
        table = json.loads(text)
        found = table["calogen_checkpoint"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise DamagedError(
            "the checkpoint's description is damaged", where=path, expected="JSON with 'calogen_checkpoint'"
        ) from None
    if not isinstance(found, int) or found > SCHEMA:  # first: what a newer calogen writes may look otherwise
        raise CheckpointError(
            "the checkpoint was written by a newer calogen",
            where=path,
            expected=f"schema {SCHEMA} or older",
            found=found,
            hint="upgrade calogen",
        )
    return dict(table)


def _require_sealed(table: Mapping[str, Any], path: Path) -> None:
    """Refuse a card that is not as it was written."""
    if not table.get("sha256"):
        raise CheckpointError(
            "the checkpoint's description has no digest, so nothing tells whether it is as it was written",
            where=path,
            expected="a key 'sha256', as checkpoints of today have it",
            hint="if you know where it comes from, write one with `rebuild=True`",
        )
    history = table.get("history", [])
    for key, own in (("sha256", digest_of(table, _UNCOVERED)), ("history_sha256", digest_of({"history": history}))):
        if table.get(key) != own:
            raise DamagedError(
                "the checkpoint's description is damaged or was changed",
                where=path,
                expected=f"{key} {str(table.get(key))[:16]}...",
                found=f"{own[:16]}...",
                hint="copy it again, or take another checkpoint",
            )


def _require_finite(tensors: Mapping[str, Tensor], folder: Path) -> None:
    if wrong := _not_finite(tensors):
        raise DivergenceError("numbers that are not finite are not saved", where=folder, found=", ".join(wrong[:4]))


def _not_finite(tensors: Mapping[str, Tensor]) -> list[str]:
    """Names of tensors with numbers that are not finite."""
    floating = {name: tensor for name, tensor in tensors.items() if tensor.is_floating_point()}
    # The sum is cheap, and finite only where all numbers are; it may overflow where they are.
    return [n for n, t in floating.items() if not t.sum().isfinite() and not t.isfinite().all()]


def _read_tensors(path: Path, digest: str = "") -> tuple[bytes, dict[str, Tensor]]:
    """The bytes of a file, and the tensors in them."""
    try:
        data = read_bounded(path, _MOST_BYTES)
    except OSError as error:
        kind = DamagedError if isinstance(error, FileNotFoundError) else CheckpointError
        raise kind(f"cannot read the checkpoint: {error.strerror}", where=path) from None
    _refuse_pickle(data[:9], path)
    if digest and hashlib.sha256(data).hexdigest() != digest:
        raise DamagedError(
            "the checkpoint's tensors are not those it was written with",
            where=path,
            expected=f"SHA-256 {digest[:16]}...",
            found=f"{hashlib.sha256(data).hexdigest()[:16]}...",
            hint="the file is damaged or was changed: take another checkpoint",
        )
    try:
        tensors = load_tensors(data)
    except SafetensorError as error:
        raise DamagedError(f"the checkpoint is damaged: {error}", where=path) from None
    if wrong := _not_finite(tensors):
        what = "the checkpoint holds numbers that are not finite"
        raise DamagedError(what, where=path, found=", ".join(wrong[:4]), hint="take another checkpoint")
    return data, tensors


def _refuse_pickle(start: bytes, path: Path) -> None:
    """Refuse a file that starts as a pickle or as the archive torch.save puts one into.

    Args:
        start: The first nine bytes; safetensors begin with the length of their header, which can look like a pickle's
            first bytes, and then the header's brace.
        path: For the message.
    """
    if (start[:4] == b"PK\x03\x04" or (start[:1] == b"\x80" and start[1:2] <= b"\x05")) and start[8:] != b"{":
        raise CheckpointError(
            "the file is a pickle, which can run any code when it is opened",
            where=path,
            expected="a checkpoint folder with safetensors",
            hint="calogen reads no pickles; convert it in a sandbox with safetensors.torch.save_file",
        )


def _plain(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous CPU tensors that share no memory, as safetensors wants them."""
    return {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}


def optimiser_state(optimiser: torch.optim.Optimizer, prefix: str) -> dict[str, Tensor]:
    """An optimiser's moments as named tensors."""
    state = optimiser.state_dict()["state"]
    return {
        f"{prefix}.{index}.{key}": torch.as_tensor(value)
        for index, entries in state.items()
        for key, value in entries.items()
    }


def load_optimiser(optimiser: torch.optim.Optimizer, tensors: Mapping[str, Tensor], prefix: str) -> None:
    """Inverse of :func:`optimiser_state`."""
    tree = optimiser.state_dict()
    entries: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith(prefix + "."):
            _, index, key = name.rsplit(".", 2)
            entries.setdefault(int(index), {})[key] = tensor
    optimiser.load_state_dict({**tree, "state": entries})
