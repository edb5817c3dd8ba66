"""Surrogates: load a trained generator, sample into memory, generate shards.

Sample i of :meth:`Surrogate.generate` is a function of (checkpoint, seed, conditions, i): its latent numbers come from
its own range of Philox counters, and the network runs on fixed blocks of samples aligned to the global index.
"""

from __future__ import annotations

import copy
import importlib.resources
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from .checkpoint import Card, Checkpoint, load_checkpoint
from .errors import CheckpointError, ConditionError, ConfigError, Interrupted, StorageError, did_you_mean
from .families import Family
from .networks import MapGenerator, pick_device
from .noise import normals
from .requests import Request
from .runs import RunFolder, require_empty
from .shards import (
    SHARD_BYTES,
    Samples,
    ShardRecord,
    samples_per_shard,
    write_manifest,
    write_shard,
)

BLOCK = 1024
_BLOCK_NUMBERS = 2**22  # numbers in one pass of the network: bounds memory for large families
_MOST_SAMPLES = 10**12


@dataclass(frozen=True)
class Estimate:
    """What a request will make.

    Attributes:
        samples: How many.
        shards: Files.
        raw_bytes: Bytes before compression: the most the files can take.
        free_bytes: What the file system has.
    """

    samples: int
    shards: int
    raw_bytes: int
    free_bytes: int


class Surrogate:
    """A trained generator.

    Example:
        >>> surrogate = Surrogate.load("calogan-gamma")
        >>> showers = surrogate.sample({"incident_energy": [10e3, 50e3]}, seed=0)  # (2, 504), MeV

    Args:
        checkpoint: What was trained.
        device: Where to run.
    """

    def __init__(self, checkpoint: Checkpoint, device: Literal["auto", "cpu", "cuda"] = "cpu") -> None:
        self._card = checkpoint.card
        self._device = pick_device(device)
        self._generator = checkpoint.generator().to(self._device)
        self._rows = BLOCK if self.family.voxels <= _BLOCK_NUMBERS // BLOCK else 128

    @classmethod
    def load(cls, model: str | Path, device: Literal["auto", "cpu", "cuda"] = "cpu") -> Surrogate:
        """Load a run folder (its best checkpoint), a checkpoint folder, or a surrogate by name.

        Args:
            model: Path, or the name of a surrogate that comes with calogen.
            device: ``auto`` takes a GPU where there is one.

        Raises:
            CheckpointError: If there is no such model or it is damaged.
        """
        return cls(load_checkpoint(find_model(model)), device)

    def resized(self, size: int) -> Surrogate:
        """The same surrogate making maps of another size; pixels keep their scale, the box grows.

        Such maps hold no learned power below the fundamental mode of the maps trained on.

        Args:
            size: Side in pixels, a multiple of the generator's coarsest cell.

        Raises:
            ConfigError: If the surrogate makes showers, or the size does not fit.
        """
        if not isinstance(self._generator, MapGenerator):
            raise ConfigError("only maps have a size", where="--size", found=f"family '{self.family.name}'")
        other = copy.copy(self)
        other._generator = self._generator.resized(size)
        other._card = self._card.model_copy(update={"family": other._generator.family})
        other._rows = min(self._rows, max(1, _BLOCK_NUMBERS // other.family.voxels))
        return other

    @property
    def card(self) -> Card:
        """Family, conditions with trained ranges, configuration, provenance."""
        return self._card

    @property
    def family(self) -> Family:
        """What the surrogate makes."""
        return self._card.family

    @property
    def conditions(self) -> tuple[str, ...]:
        """Names of the conditions it takes."""
        return tuple(c.name for c in self._card.conditions)

    def sample(
        self,
        conditions: Mapping[str, ArrayLike] | None = None,
        n: int | None = None,
        *,
        seed: int = 0,
        extrapolate: bool = False,
    ) -> NDArray[np.float32]:
        """Samples in memory.

        Args:
            conditions: By name, in the family's units (MeV for energies): a number, or one per sample.
            n: How many; needed when every condition is a number.
            seed: Of the latent numbers.
            extrapolate: Allow conditions outside the trained range.

        Returns:
            (n, V) showers in MeV, or (n, H, W) maps.

        Raises:
            ConditionError: Missing, unknown, not finite or out of range; lengths that differ.
        """
        _check_seed(seed)
        columns = self._columns(conditions or {}, n)
        self.check(columns, extrapolate=extrapolate)
        parts = []
        for start in range(0, len(columns), self._rows):
            rows = columns[start : start + self._rows]
            parts.append(self._run(rows, seed, start))
        return np.concatenate(parts) if parts else np.zeros((0, *self.family.sample_shape), np.float32)

    def _columns(self, conditions: Mapping[str, ArrayLike], n: int | None) -> NDArray[np.float32]:
        """Conditions as columns (n, C)."""
        self._check_names(conditions)
        arrays = {name: _numbers(name, conditions[name]) for name in self.conditions}
        lengths = {array.size for array in arrays.values() if array.ndim}
        if n is not None:
            lengths.add(n)
        if len(lengths) != 1 or any(array.ndim > 1 for array in arrays.values()):
            raise ConditionError(
                "conditions are numbers, or arrays of one length that agrees with n",
                expected="n, or one array per condition",
                found={name: array.shape for name, array in arrays.items()} | {"n": n},
            )
        count = lengths.pop()
        if count < 0:
            raise ConditionError("the number of samples cannot be negative", found=count)
        columns = [np.broadcast_to(array.reshape(-1) if array.ndim else array, (count,)) for array in arrays.values()]
        return np.stack(columns, 1) if columns else np.zeros((count, 0), np.float32)

    def _check_names(self, names: Mapping[str, Any]) -> None:
        for name in names:
            if name not in self.conditions:
                known = ", ".join(self.conditions) or "none: it is unconditional"
                raise ConditionError(
                    f"the surrogate has no condition '{name}'", expected=known, hint=did_you_mean(name, self.conditions)
                )
        for name in self.conditions:
            if name not in names:
                raise ConditionError(f"the condition '{name}' is missing", expected=", ".join(self.conditions))

    def check(self, columns: NDArray[np.float32], *, extrapolate: bool = False, first: int = 0) -> None:
        """Refuse conditions (n, C) that are not finite or outside the trained range.

        Args:
            columns: In the order of :attr:`conditions`, in their units.
            extrapolate: Allow what lies outside, as long as it is finite and physical.
            first: Index of the first row, for the message.

        Raises:
            ConditionError: Names condition, row, value, range and remedy.
        """
        for i, known in enumerate(self._card.conditions):
            values = columns[:, i]
            logarithmic = self.family.condition(known.name).scale == "log"
            impossible = ~np.isfinite(values) | (values <= 0 if logarithmic else False)
            margin = 1e-6 * max(abs(known.low), abs(known.high))
            outside = (values < known.low - margin) | (values > known.high + margin)
            what, wrong = "not possible", impossible
            expected = "finite values above 0" if logarithmic else "finite values"
            hint = None
            if not (wrong.any() or extrapolate):
                what, wrong = "not what the surrogate was trained on", outside
                expected = f"{known.low:g} to {known.high:g} {known.unit}".rstrip()
                hint = "--extrapolate (extrapolate=True) allows it; nothing vouches for it"
            if wrong.any():
                row = int(np.flatnonzero(wrong)[0])
                raise ConditionError(
                    f"{int(wrong.sum())} value(s) of '{known.name}' are {what}",
                    where=f"sample {first + row}",
                    expected=expected,
                    found=f"{float(values[row]):g} {known.unit}".rstrip(),
                    hint=hint,
                )

    @torch.inference_mode()
    def _run(self, columns: NDArray[np.float32], seed: int, start: int) -> NDArray[np.float32]:
        """Samples start to start + len(columns) of a seed, in one pass."""
        coarse = self._generator.coarse
        latent = normals(seed, start, len(columns), self._generator.latent_size - coarse, coarse)
        values = self._generator(
            torch.from_numpy(latent).to(self._device), torch.from_numpy(np.ascontiguousarray(columns)).to(self._device)
        )
        if self.family.threshold:
            values = torch.where(values >= self.family.threshold, values, 0.0)
        result: NDArray[np.float32] = values.cpu().numpy()
        return result

    def blocks(self, request: Request, seed: int, start: int, stop: int) -> Iterator[Samples]:
        """Samples start to stop of a request, in blocks aligned to the global index.

        Args:
            request: Their conditions.
            seed: Of latents and drawn conditions.
            start: First index.
            stop: One past the last.
        """
        for low in range(start - start % self._rows, stop, self._rows):
            # Always a full block, so that a sample's bits do not depend on where a shard or part ends.
            columns = request.columns(self.conditions, seed, low, self._rows)
            values = self._run(columns, seed, low)
            keep = slice(max(start - low, 0), min(stop - low, self._rows))
            named = {name: columns[keep, i] for i, name in enumerate(self.conditions)}
            yield Samples(self.family, values[keep], named, kind="generated")

    def estimate(self, request: Request, out: str | Path, shard_size: int | None = None) -> Estimate:
        """How many files and bytes a request makes, and whether they fit.

        Raises:
            ConfigError: If the number of samples is not 1 to 10^12, or a shard is to hold none.
            StorageError: If the file system cannot hold even a quarter of the uncompressed bytes.
        """
        n = request.samples
        if not 1 <= n <= _MOST_SAMPLES:
            raise ConfigError("the number of samples is 1 to 10^12", where="-n", found=n)
        per_shard = samples_per_shard(self.family, SHARD_BYTES) if shard_size is None else shard_size
        if per_shard < 1:
            raise ConfigError("a shard holds at least one sample", where="--shard-size", found=shard_size)
        raw = n * 4 * (self.family.voxels + len(self.conditions))
        where = Path(out).absolute()
        while not where.exists():
            where = where.parent
        free = shutil.disk_usage(where).free
        if raw / 4 > free:  # showers compress about twofold, never fourfold
            raise StorageError(
                "the samples will not fit on the disk",
                where=out,
                expected=f"{raw / 8e9:.1f} to {raw / 2e9:.1f} GB of space",
                found=f"{free / 1e9:.1f} GB free",
                hint="generate fewer, or in parts on other disks",
            )
        return Estimate(n, -(-n // per_shard), raw, free)

    def generate(
        self,
        out: str | Path,
        request: Request | Mapping[str, Any],
        n: int | None = None,
        *,
        seed: int = 0,
        layout: Literal["native", "calogan"] = "native",
        shard_size: int | None = None,
        extrapolate: bool = False,
        progress: Callable[[int, int], None] | None = None,
        should_stop: Callable[[], int] | None = None,
    ) -> Path:
        """Write a folder of shards.

        Args:
            out: Folder; must be empty or absent.
            request: Conditions of every sample, or a mapping of condition names to specifications such as
                ``"uniform:1:100GeV"`` (then ``n`` is needed).
            n: How many samples.
            seed: Of latents and drawn conditions.
            layout: ``native``, or ``calogan`` for files in CaloGAN's own layout.
            shard_size: Samples per file (default: 128 MiB of raw samples).
            extrapolate: Allow conditions outside the trained range.
            progress: Called with (samples done, samples in all).
            should_stop: Asked after every block; a signal number stops the work, and full shards stay.

        Returns:
            The folder.

        Raises:
            ConditionError: Conditions missing, unknown or out of range: found before anything is written.
            ConfigError: ``out`` not empty, or a bad number.
            StorageError: The disk cannot hold the result.
            Interrupted: ``should_stop`` asked for it.
        """
        if not isinstance(request, Request):
            request = Request.from_specs(self.family, request, n)
        elif n not in (None, request.samples):
            raise ConfigError("the request itself says how many samples", expected=request.samples, found=n)
        out = Path(out)
        estimate = self.check_request(
            request, out, seed=seed, layout=layout, shard_size=shard_size, extrapolate=extrapolate
        )
        provenance = {
            "engine": "calogen",
            "checkpoint_sha256": self._card.model_sha256,
            "checkpoint_step": self._card.step,
            "seed": seed,
            "request": request.describe(),
            "holdout": self._card.holdout,
            "training": self._card.provenance,
        }
        per_shard = -(-estimate.samples // estimate.shards) if shard_size is None else shard_size
        per_shard = -(-per_shard // self._rows) * self._rows if shard_size is None else per_shard
        return self._write(out, request, estimate.samples, per_shard, provenance, seed, layout, progress, should_stop)

    def check_request(
        self,
        request: Request,
        out: str | Path,
        *,
        seed: int = 0,
        layout: Literal["native", "calogan"] = "native",
        shard_size: int | None = None,
        extrapolate: bool = False,
    ) -> Estimate:
        """Everything :meth:`generate` checks before it writes; arguments as there.

        Returns:
            What would be made.

        Raises:
            ConditionError: As :meth:`generate`.
            ConfigError: As :meth:`generate`.
            StorageError: As :meth:`estimate`.
        """
        _check_seed(seed)
        self._check_names(dict.fromkeys(request.names))
        if layout == "calogan":
            _require_calogan(self.family, self.conditions)
        require_empty(Path(out), "choose another --out")
        estimate = self.estimate(request, out, shard_size)
        self._check_conditions(request, seed, extrapolate)
        return estimate

    def _check_conditions(self, request: Request, seed: int, extrapolate: bool) -> None:
        limits = request.limits(self.conditions)
        if limits is not None:
            self.check(limits, extrapolate=extrapolate)
            return
        for start in range(0, request.samples, 2**16):
            count = min(2**16, request.samples - start)
            columns = request.columns(self.conditions, seed, start, count)
            self.check(columns, extrapolate=extrapolate, first=start)

    def _write(
        self,
        out: Path,
        request: Request,
        total: int,
        per_shard: int,
        provenance: Mapping[str, Any],
        seed: int,
        layout: Literal["native", "calogan"],
        progress: Callable[[int, int], None] | None,
        should_stop: Callable[[], int] | None,
    ) -> Path:
        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(f"cannot make the output folder: {error.strerror}", where=out) from None
        records: list[ShardRecord] = []
        for number, start in enumerate(range(0, total, per_shard)):
            stop = min(start + per_shard, total)
            parts: list[Samples] = []
            done, signal_number = start, 0
            for block in self.blocks(request, seed, start, stop):
                parts.append(block)
                done += len(block)
                if progress:
                    progress(done, total)
                signal_number = should_stop() if should_stop and done < total else 0
                if signal_number:
                    break
            if done == stop:
                path, samples = out / f"shard-{number:06d}.h5", Samples.concatenate(parts)
                records.append(write_shard(path, samples, provenance=provenance, index_start=start, layout=layout))
            if signal_number:  # a shard that is not full is given up: blocks take seconds, shards minutes
                if records:
                    write_manifest(out, records, provenance=provenance)
                raise Interrupted(
                    f"stopped by signal {signal_number} after {done if done == stop else start} of {total} samples",
                    signal_number=signal_number,
                    hint="the finished shards are complete; start again in an empty folder for the whole set",
                )
        write_manifest(out, records, provenance=provenance)
        return out


def _check_seed(seed: int) -> None:
    if not 0 <= seed < 2**63:
        raise ConfigError("a seed is a number from 0 to 2^63 - 1", where="--seed", found=seed)


def _numbers(name: str, values: ArrayLike) -> NDArray[np.float32]:
    try:
        with np.errstate(over="ignore"):  # too large becomes infinite, which is refused
            return np.asarray(values, np.float32)
    except (TypeError, ValueError):
        raise ConditionError(
            f"'{name}' is not a number or an array of numbers", found=repr(values)[:80], hint="in the family's unit"
        ) from None


def _require_calogan(family: Family, conditions: Sequence[str]) -> None:
    if family.name != "calogan":
        raise ConfigError(
            "CaloGAN's layout holds its own three layers only",
            where="--format calogan",
            found=f"family '{family.name}'",
        )
    if "incident_energy" not in conditions:
        raise ConfigError(
            "CaloGAN's layout needs incident energies", where="--format calogan", found="an unconditional surrogate"
        )


def find_model(model: str | Path) -> Path:
    """The checkpoint folder a model argument means.

    Args:
        model: A run folder (its best checkpoint), a checkpoint folder, or the name of a shipped surrogate.

    Raises:
        CheckpointError: If there is none.
    """
    path = Path(model)
    shipped = Path(str(importlib.resources.files("calogen.data"))) / "surrogates"
    if not path.exists() and (shipped / path.name).is_dir() and path.name == str(model):
        return shipped / path.name
    if (path / "checkpoints").is_dir():
        best = RunFolder(path).best()
        if best is None:
            raise CheckpointError("the run has no checkpoint yet", where=path, hint="train it, or --resume it")
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
        "conditions": {c.name: f"{c.low:g} to {c.high:g} {c.unit}".rstrip() for c in card.conditions},
        "step": card.step,
        "validation score": card.score,
        "held out of training": {name: list(ends) for name, ends in card.holdout.items()},
        "objective": card.config.training.objective,
        "sha256": card.model_sha256,
        "provenance": card.provenance,
    }
