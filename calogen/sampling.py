"""Surrogates: load a trained generator, sample into memory, generate shards.

Sample i of :meth:`Surrogate.generate` is a function of (checkpoint, seed, conditions, i): its latent numbers come from
its own range of Philox counters, and the network runs on fixed blocks of samples aligned to the global index.
"""

from __future__ import annotations

import copy
import functools
import operator
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from .cores import sensible_number
from .errors import ConditionError, ConfigError, did_you_mean
from .families import Family
from .models.contract import OnArrays
from .models.maps.generator import MapGenerator
from .models.registry import pick_device
from .production.ledger import begun_with, check_folder
from .production.noise import normals
from .production.parts import ALIGNMENT, Part
from .production.plan import MOST_SAMPLES, Estimate, Plan, require_room, room
from .production.produce import produce
from .production.requests import Request, explicit_columns
from .runs.checkpoint import Card, Checkpoint, load_checkpoint
from .runs.environment import environment
from .runs.find import find_model
from .shards.hdf5 import MANTISSA, compressed, rounded
from .shards.layouts.find import written_format
from .shards.samples import Samples
from .shards.writer import SHARD_BYTES, WrittenLayout, samples_per_shard

BLOCK = ALIGNMENT
_FLAT = 1e-3  # scatter of pixels, of their mean: less is no map
_FEW = 128  # rows of a block of samples that take long to compute
_BLOCK_NUMBERS = 2**22  # numbers in one pass of the network: bounds memory for large families
_SHARDS, _FEWEST_IN_SHARD = 16, 4096  # at least so many, unless they would become too small
_PROBE = 64  # samples made to see how well they compress


@dataclass(frozen=True)
class Generation:
    """A :class:`calogen.production.maker.Maker` of generated samples.

    Attributes:
        surrogate: Makes them.
        request: Their conditions.
        seed: Of latents and drawn conditions.
        mantissa_bits: Bits kept of every value's mantissa; none: all 23.
    """

    surrogate: Surrogate
    request: Request
    seed: int = 0
    mantissa_bits: int | None = None

    @property
    def family(self) -> Family:
        """What is made."""
        return self.surrogate.family

    @property
    def ceiling(self) -> float | None:
        """The largest value there can be, if the surrogate clips larger ones."""
        largest = self.surrogate.ceiling
        if largest is None or self.mantissa_bits is None:
            return largest
        return float(rounded(np.array([largest], np.float32), self.mantissa_bits)[0])

    def describe(self) -> dict[str, Any]:
        """Where the samples come from: checkpoint, seed, request, versions."""
        card = self.surrogate.card
        return {
            "engine": "calogen",
            "checkpoint_sha256": card.model_sha256,
            "checkpoint_step": card.step,
            "sample_shape": self.family.sample_shape,
            "seed": self.seed,
            "request": self.request.describe(),
            "request_sha256": self.request.digest(),
            "holdout": card.holdout,
            "training": card.provenance,
            "network": card.config.generator.network,
            "objective": card.config.training.objective,
            "parameters": self.surrogate.parameters,
            **({"history": card.history} if card.history else {}),
            "versions": environment(),
            **({"mantissa_bits": self.mantissa_bits} if self.mantissa_bits is not None else {}),
        }

    def pieces(self, start: int, stop: int) -> Iterator[Samples]:
        """Samples start to stop, in blocks aligned to the global index."""
        surrogate, rows = self.surrogate, self.surrogate.block
        before: Callable[[], Samples] | None = None
        for low in range(start - start % rows, stop, rows):
            # Always a full block, so that a sample's bits do not depend on where a shard or part ends. One block ahead,
            # so that a GPU computes the next while this one is compressed.
            columns = self.request.columns(surrogate.conditions, self.seed, low, rows)
            keep = slice(max(start - low, 0), min(stop - low, rows))
            after = functools.partial(self._finish, surrogate.launch(columns, self.seed, low), columns, keep)
            if before:
                yield before()
            before = after
        if before:
            yield before()

    def _finish(self, values: Callable[[], NDArray[np.float32]], columns: NDArray[np.float32], keep: slice) -> Samples:
        kept = values()[keep]
        if self.mantissa_bits is not None:
            kept = rounded(kept, self.mantissa_bits)
        named = {name: columns[keep, i] for i, name in enumerate(self.surrogate.conditions)}
        return Samples(self.family, kept, named, kind="generated")


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
        self._folded = self._generator.folded() if self._device.type == "cpu" else None
        large = self.family.kind == "map" or self.family.voxels > _BLOCK_NUMBERS // BLOCK
        self._rows = _FEW if large else BLOCK  # a whole block is computed even for one sample

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
            size: Side in pixels: any for displaced matter, a multiple of the coarsest cell for `dcgan`.

        Raises:
            ConfigError: If the surrogate makes showers, or the size does not fit.
        """
        if not isinstance(self._generator, MapGenerator):
            raise ConfigError("only maps have a size", where="--size", found=f"family '{self.family.name}'")
        other = copy.copy(self)
        other._generator = self._generator.resized(size)
        other._card = self._card.model_copy(update={"family": other._generator.family})
        other._folded = other._generator.folded() if self._folded else None
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
    def block(self) -> int:
        """Samples computed at a time by :meth:`generate`, aligned to the global index."""
        return self._rows

    @property
    def parameters(self) -> int:
        """Numbers that were fitted or trained."""
        return sum(p.numel() for p in self._generator.parameters())

    @property
    def coarse_latents(self) -> int:
        """How many latent numbers of a sample, at the end, may be of low resolution."""
        return self._generator.coarse

    @property
    def ceiling(self) -> float | None:
        """The largest value that it makes, to which it clips larger ones; none: it clips none."""
        return self._generator.ceiling

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
            conditions: By name, in the family's units (MeV for energies): a number (or label), or one per sample.
            n: How many; needed when every condition is a number.
            seed: Of the latent numbers.
            extrapolate: Allow conditions outside the trained range.

        Returns:
            (n, V) showers in MeV, or (n, H, W) maps.

        Raises:
            ConditionError: Missing, unknown, not finite or out of range; lengths that differ.
        """
        _check_seed(seed)
        self._check_names(conditions or {})
        columns = explicit_columns(conditions or {}, [self.family.condition(name) for name in self.conditions], n)
        self.check(columns, extrapolate=extrapolate)
        parts = []
        for start in range(0, len(columns), self._rows):
            rows = columns[start : start + self._rows]
            parts.append(self.launch(rows, seed, start)())
        if len(parts) == 1:
            return parts[0]
        return np.concatenate(parts) if parts else np.zeros((0, *self.family.sample_shape), np.float32)

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
            known.check(columns[:, i], self.family.condition(known.name), extrapolate=extrapolate, first=first)
        if extrapolate and columns.size:
            self._try(columns[np.unique([*columns.argmin(0), *columns.argmax(0)])])

    def _try(self, columns: NDArray[np.float32]) -> None:
        """Refuse extreme conditions at which the generator overflows, or makes maps without any structure."""
        try:
            made = self.launch(columns, 0, 0)()
            flat = made.std(axis=(1, 2)) < _FLAT * made.mean(axis=(1, 2)) if self.family.kind == "map" else False
            usable = bool(np.isfinite(made).all() and not np.any(flat))
        except (RuntimeError, IndexError):  # a place in a table that is no number
            usable = False
        if not usable:
            trained = "; ".join(f"{c.name} {c}" for c in self._card.conditions)
            raise ConditionError("the surrogate makes nothing so far from what it was trained on", expected=trained)

    @torch.inference_mode()
    def launch(self, columns: NDArray[np.float32], seed: int, start: int) -> Callable[[], NDArray[np.float32]]:
        """Start computing samples start to start + n, with conditions (n, C).

        Returns:
            Waits for them, if they are computed on a GPU, and returns them in physical units.
        """
        return self._launched(self.latents(len(columns), seed=seed, start=start), columns)

    def latents(self, count: int, *, seed: int = 0, start: int = 0) -> NDArray[np.float32]:
        """Latent numbers of samples start to start + count of a seed, (count, Z): standard normals."""
        _check_seed(seed)
        coarse = self._generator.coarse
        return normals(seed, start, count, self._generator.latent_size - coarse, coarse)

    @torch.inference_mode()
    def decode(self, latents: NDArray[np.float32], columns: NDArray[np.float32]) -> NDArray[np.float32]:
        """Samples of given latent numbers (n, Z) at given conditions (n, C), as :meth:`sample` would make them.

        For walks between two latents, or one latent at several conditions; conditions are not checked.
        """
        starts = range(0, len(columns), self._rows)
        parts = [self._launched(latents[i : i + self._rows], columns[i : i + self._rows])() for i in starts]
        return np.concatenate(parts) if parts else np.zeros((0, *self.family.sample_shape), np.float32)

    def _launched(self, latent: NDArray[np.float32], columns: NDArray[np.float32]) -> Callable[[], NDArray[np.float32]]:
        if self._folded:
            values = self._gated(self._folded(latent, columns))
            return lambda: values
        inputs = (torch.from_numpy(np.ascontiguousarray(array)) for array in (latent, columns))
        made = self._generator(*(tensor.to(self._device, non_blocking=True) for tensor in inputs))
        if self._device.type != "cuda":
            return lambda: self._gated(made.numpy())
        there = torch.empty(made.shape, dtype=made.dtype, pin_memory=True)
        there.copy_(made, non_blocking=True)
        copied = torch.cuda.Event()
        copied.record()

        def collect() -> NDArray[np.float32]:
            copied.synchronize()
            return self._gated(there.numpy())

        return collect

    def forward_pass(self, *, fold: bool = True) -> tuple[Callable[..., NDArray[np.float32]], tuple[Any, ...]]:
        """The network alone, on the CPU, and one block of inputs for it: for measuring.

        Args:
            fold: As it runs here; else as it was trained.
        """
        rng = np.random.default_rng(0)
        latent = rng.standard_normal((self._rows, self._generator.latent_size), np.float32)
        columns = np.zeros((self._rows, len(self._card.conditions)), np.float32)
        for i, c in enumerate(self._card.conditions):
            numbers = c.numbers(self.family.condition(c.name))
            columns[:, i] = rng.choice(numbers, self._rows) if c.labels else rng.uniform(c.low, c.high, self._rows)
        run = self._folded if fold and self._folded else OnArrays(self._generator)
        return run, (latent, columns)

    def _gated(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """Values with those below the family's threshold put to exactly zero, in place."""
        if self.family.threshold:
            values[values < self.family.threshold] = 0
        return values

    def plan(
        self,
        request: Request,
        out: str | Path,
        *,
        seed: int = 0,
        layout: WrittenLayout = "native",
        shard_size: int | None = None,
        part: Part | None = None,
        mantissa_bits: int | None = None,
        extrapolate: bool = False,
        workers: int | None = None,
    ) -> tuple[Plan, Estimate]:
        """Everything :meth:`generate` checks before it writes; arguments as there.

        Raises:
            ConditionError: As :meth:`generate`.
            ConfigError: As :meth:`generate`.
            StorageError: If the folder may not be written.
        """
        seed = _whole(seed, "seed")
        shard_size = shard_size if shard_size is None else _whole(shard_size, "shard_size")
        mantissa_bits = mantissa_bits if mantissa_bits is None else _whole(mantissa_bits, "mantissa_bits")
        _check_seed(seed)
        self._check_names(dict.fromkeys(request.names))
        part = part or Part()
        if not 1 <= request.samples <= MOST_SAMPLES:
            raise ConfigError("the number of samples is 1 to 10^12", where="-n", found=request.samples)
        written_format(layout, self.family, self.conditions)
        if mantissa_bits is not None and not 1 <= mantissa_bits <= MANTISSA:
            raise ConfigError(f"a mantissa has 1 to {MANTISSA} bits", where="--mantissa-bits", found=mantissa_bits)
        begun = begun_with(Path(out), request.samples, part) if shard_size is None else None
        per_shard = begun or self._per_shard(request.samples, part, shard_size)
        maker = Generation(self, request, seed, mantissa_bits)
        threads = 0 if self._device.type == "cpu" else sensible_number(workers, "workers")
        plan = Plan(maker, request.samples, per_shard, part, layout, threads)
        check_folder(plan, Path(out))
        self.check(request.limits(self.conditions), extrapolate=extrapolate)
        return plan, self._estimate(plan, maker, Path(out))

    def _per_shard(self, total: int, part: Part, shard_size: int | None) -> int:
        if shard_size is not None:
            if shard_size < 1:
                raise ConfigError("a shard holds at least one sample", where="--shard-size", found=shard_size)
            return shard_size
        most = samples_per_shard(self.family, SHARD_BYTES)
        in_part = min(total, -(-total // (part.count * BLOCK)) * BLOCK)
        # Enough shards to share among processes, and to lose little when the work is stopped.
        shards = max(-(-in_part // most), min(_SHARDS, in_part // _FEWEST_IN_SHARD), 1)
        return min(most, -(-in_part // (shards * BLOCK)) * BLOCK)  # all about equally long

    def _estimate(self, plan: Plan, maker: Generation, out: Path) -> Estimate:
        """What is to be made, from how well some samples compress."""
        probe = min(_PROBE, self._rows, plan.total)
        values = self.launch(maker.request.columns(self.conditions, maker.seed, 0, probe), 0, 0)()
        if maker.mantissa_bits is not None:
            values = rounded(values, maker.mantissa_bits)
        return room(plan, out, len(compressed(values)) / probe)

    def generate(
        self,
        out: str | Path,
        request: Request | Mapping[str, Any],
        n: int | None = None,
        *,
        seed: int = 0,
        layout: WrittenLayout = "native",
        shard_size: int | None = None,
        part: Part | None = None,
        mantissa_bits: int | None = None,
        extrapolate: bool = False,
        workers: int | None = None,
        progress: Callable[[int, int], None] | None = None,
        should_stop: Callable[[], int] | None = None,
    ) -> Path:
        """Write a folder of shards, or finish one.

        Args:
            out: Folder; empty, absent, or what an earlier call with the same arguments left.
            request: Conditions of every sample, or a mapping of condition names to specifications such as
                ``"uniform:1:100GeV"`` (then ``n`` is needed).
            n: How many samples, up to 10^12.
            seed: Of latents and drawn conditions.
            layout: ``native``, or ``calogan`` for files in CaloGAN's own layout.
            shard_size: Samples per file (default: 128 MiB of raw samples).
            part: Make only this part of the samples; parts may share the folder.
            mantissa_bits: Round values to so many bits of mantissa: smaller files (10 bits: 5e-4 of each value).
            extrapolate: Allow conditions outside the trained range.
            workers: Processes (default: the cores this process may use); with a GPU, threads that compress.
            progress: Called with (samples done, samples in all), of the part.
            should_stop: Asked all the time; a signal number stops the work, and full shards stay.

        Returns:
            The folder.

        Raises:
            ConditionError: Conditions missing, unknown or out of range: found before anything is written.
            ConfigError: ``out`` holds something else or is being written, or a bad number.
            StorageError: The disk cannot hold the result.
            ProductionError: A worker process failed again and again.
            Interrupted: ``should_stop`` asked for it.
        """
        if not isinstance(request, Request):
            request = Request.from_specs(self.family, request, None if n is None else _whole(n, "n"))
        elif n not in (None, request.samples):
            raise ConfigError("the request itself says how many samples", expected=request.samples, found=n)
        workers = workers if workers is None else _whole(workers, "workers")
        if workers is not None and workers < 1:
            raise ConfigError("at least one worker", where="workers", found=workers)
        workers = sensible_number(workers, "workers")
        plan, estimate = self.plan(
            request,
            out,
            seed=seed,
            layout=layout,
            shard_size=shard_size,
            part=part,
            mantissa_bits=mantissa_bits,
            extrapolate=extrapolate,
            workers=workers,
        )
        require_room(estimate, Path(out))
        on_gpu = bool(plan.threads)
        return produce(plan, Path(out), workers=1 if on_gpu else workers, progress=progress, should_stop=should_stop)


def _whole(value: object, where: str) -> int:
    """A whole number, of numpy's kinds too."""
    try:
        return operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise ConfigError("not a whole number", where=where, found=repr(value)[:80]) from None


def _check_seed(seed: int) -> None:
    if not 0 <= seed < 2**63:
        raise ConfigError("a seed is a number from 0 to 2^63 - 1", where="--seed", found=seed)
