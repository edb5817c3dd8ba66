"""Surrogates: load a trained generator, sample into memory, generate shards.

Sample i of :meth:`Surrogate.generate` is a function of (checkpoint, seed, conditions, i): its latent numbers come from
its own range of Philox counters, and the network runs on fixed blocks of samples aligned to the global index.
"""

from __future__ import annotations

import copy
import functools
import math
import operator
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypedDict, Unpack, overload

import numpy as np
import torch
from numpy.typing import NDArray

from .errors import CheckpointError, ConditionError, ConfigError, ShardError, did_you_mean
from .export import export, licence_of
from .families import Family
from .models.contract import Generator, OnArrays
from .models.maps.generator import MapGenerator
from .models.maps.translation import Translator
from .models.refinement import Selection
from .models.registry import pick_device
from .production.ledger import begun_with, check_folder
from .production.noise import CONDITIONS, normals, uniforms
from .production.parts import ALIGNMENT, Part
from .production.plan import MOST_SAMPLES, Production
from .production.requests import Request
from .production.run import produce, sensible_workers
from .runs.checkpoint import Card, Checkpoint
from .runs.environment import environment
from .runs.find import load_model
from .shards.conditions import Conditions
from .shards.hdf5 import MANTISSA, compressed, rounded
from .shards.layouts.find import written_format
from .shards.reader import Shards
from .shards.samples import Samples, low_maps
from .shards.writer import SHARD_BYTES, samples_per_shard

BLOCK = ALIGNMENT
_SMALLEST = 4  # pixels a side of a low map
_MOST_CANDIDATES = 64  # for a sample
_FLAT = 1e-3  # scatter of pixels, of their mean: less is no map
_FEW = 128  # rows of a block of samples that take long to compute
_BLOCK_NUMBERS = 2**22  # numbers in one pass of the network: bounds memory for large families
_SHARDS, _FEWEST_IN_SHARD = 16, 4096  # at least so many, unless they would become too small
_BYTES_A_PIXEL = 100  # that making a large map takes
_PROBE = 64  # samples made to see how well they compress


@dataclass(frozen=True)
class Generation:
    """A :class:`calogen.production.maker.Maker` of generated samples.

    Attributes:
        surrogate: Makes them.
        request: Their conditions.
        seed: Of latents and drawn conditions.
        mantissa_bits: Bits kept of every value's mantissa.
    """

    surrogate: Surrogate
    request: Request
    seed: int = 0
    mantissa_bits: int = MANTISSA

    @property
    def family(self) -> Family:
        """What is made."""
        return self.surrogate.family

    @property
    def ceiling(self) -> float | None:
        """The largest value there can be, if the surrogate clips larger ones."""
        largest = self.surrogate.ceiling
        if largest is None:
            return None
        return float(rounded(np.array([largest], np.float32), self.mantissa_bits)[0])

    def describe(self) -> dict[str, Any]:
        """Where the samples come from: checkpoint, seed, request, versions."""
        card = self.surrogate.card
        return {
            "engine": "calogen",
            "checkpoint_sha256": card.model_sha256,
            "card_sha256": card.sha256,
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
            **({"candidates": self.surrogate.candidates} if self.surrogate.candidates > 1 else {}),
            "inference": self.surrogate.inference,
            "versions": environment(),
            **({"mantissa_bits": self.mantissa_bits} if self.mantissa_bits < MANTISSA else {}),
        }

    def pieces(self, start: int, stop: int) -> Iterator[Samples]:
        """Samples start to stop, in blocks aligned to the global index."""
        surrogate, rows = self.surrogate, self.surrogate.block
        ahead: list[Callable[[], Samples]] = []
        for low in range(start - start % rows, stop, rows):
            # Always a full block, so that a sample's bits do not depend on where a shard or part ends. One block ahead,
            # so that a GPU computes the next while this one is compressed.
            conditions = self.request.conditions(surrogate.conditions, self.seed, low, rows)
            keep = slice(max(start - low, 0), min(stop - low, rows))
            values = surrogate.launch(conditions, self.seed, low)
            ahead.append(functools.partial(self._finish, values, conditions[keep], keep))
            if len(ahead) > 1:
                yield ahead.pop(0)()
        for finish in ahead:
            yield finish()

    def _finish(self, values: Callable[[], NDArray[np.float32]], conditions: Conditions, keep: slice) -> Samples:
        return Samples(self.family, rounded(values()[keep], self.mantissa_bits), conditions, kind="generated")


@dataclass(frozen=True)
class Translation:
    """A :class:`calogen.production.maker.Maker` of maps of high resolution, in the order of those of low resolution.

    Attributes:
        surrogate: Makes them, of the size wanted.
        low: Samples whose maps, or the low ones of whose pairs, are translated.
        seed: Of latents.
        extrapolate: Allow conditions outside the trained range.
    """

    surrogate: Surrogate
    low: Shards
    seed: int = 0
    extrapolate: bool = False

    @property
    def family(self) -> Family:
        """What is made."""
        return self.surrogate.family.unpaired()

    def describe(self) -> dict[str, Any]:
        """Where the maps come from: checkpoint, seed, low maps, versions."""
        known = Generation(self.surrogate, Request(len(self.low), {}), self.seed).describe()
        return {**known, "translated": self.low.digest()}

    def pieces(self, start: int, stop: int) -> Iterator[Samples]:
        """Maps start to stop, in blocks aligned to the global index."""
        rows = self.surrogate.block
        for low in range(start - start % rows, stop, rows):
            first, last = max(start, low), min(stop, low + rows)
            given = self.low.read(low, min(low + rows, len(self.low)))
            values = self.surrogate._translated(low_maps(given), given.conditions, self.seed, low, self.extrapolate)
            keep = slice(first - low, last - low)
            yield Samples(self.family, values[keep], given.conditions[keep], kind="generated")


class Surrogate:
    """A trained generator.

    Example:
        >>> surrogate = Surrogate.load("calogan-gamma")
        >>> showers = surrogate.sample({"incident_energy": [10e3, 50e3]}, seed=0)  # (2, 504), MeV

    Args:
        checkpoint: What was trained.
        device: Where to run.

    Attributes:
        card: Family, conditions with trained ranges, configuration, provenance.
        block: Samples computed at a time by :meth:`generate`, aligned to the global index.
    """

    def __init__(self, checkpoint: Checkpoint, device: Literal["auto", "cpu", "cuda"] = "cpu") -> None:
        self._name, self._device = checkpoint.name, pick_device(device)
        generator = checkpoint.generator().to(self._device)
        self._generator = generator.usual() if isinstance(generator, MapGenerator) else generator
        self.card = checkpoint.card.model_copy(update={"family": self._generator.family})
        self._folded = self._generator.folded() if self._device.type == "cpu" else None
        self._ranges = _plain_ranges(checkpoint.card)
        self._checkpoint, self.candidates = replace(checkpoint, model={}), 1  # where critics may be found
        self._selection: Selection | None = None
        large = self.family.kind == "map" or self.family.voxels > _BLOCK_NUMBERS // BLOCK
        self.block = _FEW if large else BLOCK  # a whole block is computed even for one sample

    @classmethod
    def load(cls, model: str | Path, device: Literal["auto", "cpu", "cuda"] = "cpu") -> Surrogate:
        """Load a run folder (its best checkpoint), a checkpoint folder, or a surrogate by name.

        Args:
            model: Path, or the name of a surrogate that comes with calogen.
            device: ``auto`` takes a GPU where there is one.

        Raises:
            CheckpointError: If there is no such model, it is damaged, or it holds numbers that are not finite.
        """
        return cls(load_model(model), device)

    def resized(self, size: int) -> Surrogate:
        """The same surrogate making maps of another size; pixels keep their scale, the box grows.

        Such maps hold no learned power below the fundamental mode of the maps trained on.

        Args:
            size: Side in pixels: any for displaced matter, a multiple of the coarsest cell for `dcgan`.

        Raises:
            ConfigError: If the surrogate makes showers, or the size does not fit, into memory or otherwise.
        """
        if not isinstance(self._generator, MapGenerator):
            raise ConfigError("only maps have a size", where="`size`", found=f"family '{self.family.name}'")
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        if _BYTES_A_PIXEL * size**2 > memory:  # said at once: it would take minutes to find out
            expected = f"at most {math.isqrt(memory // _BYTES_A_PIXEL)} pixels a side"
            raise ConfigError(
                "a map of that size does not fit into memory", where="`size`", expected=expected, found=size
            )
        return self._with(self._generator.resized(size))

    def _with(self, generator: Generator) -> Surrogate:
        """The same surrogate with its generator for maps of another size."""
        other = copy.copy(self)
        other._generator = generator
        other.card = self.card.model_copy(update={"family": other._generator.family})
        other._folded = other._generator.folded() if self._folded else None
        other.block = min(self.block, max(1, _BLOCK_NUMBERS // other.family.voxels))
        return other

    def selecting(self, candidates: int) -> Surrogate:
        """The same surrogate making several candidates for every sample, of which critics choose one by their odds.

        Candidates for a shower have the same layer energies. Generation takes so many times as long, and more.

        Args:
            candidates: How many, up to 64.

        Raises:
            CheckpointError: If the checkpoint has no critics.
            ConfigError: If that is no sensible number.
        """
        other = copy.copy(self)
        other.candidates = _whole(candidates, "candidates", 1, _MOST_CANDIDATES, "1 to 64 candidates for a sample")
        if candidates > 1:
            other._selection = self._checkpoint.selection(copy.deepcopy(self._generator).cpu())
        return other

    @property
    def family(self) -> Family:
        """What the surrogate makes."""
        return self.card.family

    @property
    def module(self) -> Generator:
        """The network: gradients, tensors on its device. ``forward(latent, conditions)`` is in physical units."""
        return self._generator

    def __repr__(self) -> str:
        known = [c.short for c in self.card.conditions] or ["no conditions"]
        if len(known) > 2:
            known[1:] = [f"{len(known) - 1} more conditions"]
        return f"Surrogate({self._name}: {self.family.shapes}, {', '.join(known)}, step {self.card.step})"

    @property
    def parameters(self) -> int:
        """Numbers that were fitted or trained."""
        return sum(p.numel() for p in self._generator.parameters())

    @property
    def ceiling(self) -> float | None:
        """The largest value that it makes, to which it clips larger ones; none: it clips none."""
        return self._generator.ceiling

    @property
    def inference(self) -> dict[str, str | int]:
        """Name and version of the code that makes samples here: bits depend on it."""
        code = self._folded or OnArrays
        return {"name": code.name, "version": code.version}

    @property
    def conditions(self) -> tuple[str, ...]:
        """Names of the conditions it takes."""
        return tuple(c.name for c in self.card.conditions)

    @overload
    def sample(
        self,
        conditions: Mapping[str, Any] | None = None,
        n: int | None = None,
        *,
        seed: int = 0,
        extrapolate: bool = False,
        as_samples: Literal[False] = False,
    ) -> NDArray[np.float32]: ...
    @overload
    def sample(
        self,
        conditions: Mapping[str, Any] | None = None,
        n: int | None = None,
        *,
        seed: int = 0,
        extrapolate: bool = False,
        as_samples: Literal[True],
    ) -> Samples: ...
    def sample(
        self,
        conditions: Mapping[str, Any] | None = None,
        n: int | None = None,
        *,
        seed: int = 0,
        extrapolate: bool = False,
        as_samples: bool = False,
    ) -> NDArray[np.float32] | Samples:
        """Samples in memory.

        Args:
            conditions: By name: a number in the family's unit (MeV for energies), a text (``"50 GeV"``, a label, or
                ``"uniform:1:100GeV"``), or an array of one number or text per sample.
            n: How many; needed where there are no arrays.
            seed: Of the latent numbers and of what is drawn.
            extrapolate: Allow conditions outside the trained range.
            as_samples: Return them with their conditions and where they come from, as :func:`calogen.compare` takes
                them.

        Returns:
            (n, V) showers in MeV, or (n, H, W) maps.

        Raises:
            ConditionError: Missing, unknown, not finite or out of range; lengths that differ.
        """
        self._require_free()
        seed, request = _seed(seed), Request.of(self.family, conditions or {}, n)
        self._check_names(request.names)
        if request.samples < 0:
            raise ConditionError("the number of samples cannot be negative", where="`n`", found=n)
        self.check(request.limits(self.conditions), extrapolate=extrapolate)
        known = request.conditions(self.conditions, seed, 0, request.samples)
        values = self._sampled(known, seed)
        if not as_samples:
            return values
        origin = Generation(self, request, seed).describe()
        return Samples(self.family, values, known, kind="generated", provenance=(origin,))

    def simulator(self, *, extrapolate: bool = False) -> Simulator:
        """The surrogate as a simulator of parameters, for ``sbi``, LtU-ILI and others that infer with simulations.

        Example:
            >>> simulator = Surrogate.load("nbody-64").simulator()
            >>> maps = simulator(torch.tensor([[0.3, 0.8]]), seed=1)  # (1, 64, 64)

        Args:
            extrapolate: Allow parameters outside the trained range.
        """
        self._require_free()
        return Simulator(self, extrapolate)

    def _sampled(self, conditions: Conditions, seed: int) -> NDArray[np.float32]:
        if self._selection is None:
            return self.decode(self.latents(conditions.rows, seed=seed), conditions.array())
        starts = range(0, conditions.rows, self.block)
        parts = [self.launch(conditions[slice(i, i + self.block)], seed, i)() for i in starts]
        return np.concatenate(parts) if parts else self.decode(self.latents(0), conditions.array())

    def _require_free(self) -> None:
        """Refuse to make maps of nothing where the surrogate makes them of others."""
        if self.family.low_pixels:
            raise ConfigError(
                "the surrogate makes maps of high resolution from maps of low resolution, which it was not given",
                found=self.family.summary,
                hint="calogen translate, or surrogate.translate(maps)",
            )

    def translate(
        self,
        maps: NDArray[np.floating[Any]] | Samples,
        seed: int = 0,
        conditions: Mapping[str, Any] | None = None,
        *,
        extrapolate: bool = False,
    ) -> NDArray[np.float32]:
        """Maps of high resolution from those of low resolution.

        Example:
            >>> high = Surrogate.load("run").translate(low, seed=1)  # doctest: +SKIP

        Args:
            maps: Low maps (N, h, w), 1 + delta, periodic, of any size, with the pixels that the surrogate was trained
                on; or samples of such maps, or of pairs.
            seed: Of the noise; other seeds are other maps that go with the same low ones.
            conditions: Those of the surrogate by name, as for :meth:`sample` (default: those that samples have).
            extrapolate: Allow conditions outside the trained range.

        Returns:
            (N, f h, f w), 1 + delta, of the same box.

        Raises:
            ConfigError: If the surrogate is not one of pairs, or pixels or depth are others than it was trained on.
            ConditionError: Conditions missing, unknown or out of range.
            ShardError: If the maps are no densities.
        """
        low = self.family.low  # or it says that there are none
        if isinstance(maps, Samples):
            other = self._of_maps(maps.family)
            values, known = low_maps(maps), maps.conditions
        else:
            values = np.asarray(maps, np.float32)
            if values.ndim != 3 or min(values.shape[1:], default=0) < _SMALLEST:
                expected = f"(N, h, w), both sides at least {_SMALLEST} pixels"
                raise ShardError("low maps have another shape", where="`maps`", expected=expected, found=values.shape)
            box = low.box_size / low.sample_shape[0] * values.shape[1]
            other = self._of_maps(low.model_copy(update={"pixels": values.shape[1:], "box_size": box}))
            known = Conditions((), np.zeros((len(values), 0)))
        if conditions is not None:
            request = Request.of(self.family, conditions, len(values))
            self._check_names(request.names)
            known = request.conditions(self.conditions, _seed(seed), 0, len(values))
        return other._translated(values, known, _seed(seed), 0, extrapolate)

    def plan_translation(
        self,
        out: str | Path,
        data: Shards,
        *,
        seed: int = 0,
        shard_size: int | None = None,
        part: Part | None = None,
        extrapolate: bool = False,
    ) -> Production:
        """What translating a folder of maps will make; arguments and errors as for :meth:`translate`."""
        maker = Translation(self._of_maps(data.family), data, _seed(seed), extrapolate)
        total, part = _samples(len(data)), part or Part()
        size = begun_with(Path(out), total, part) or maker.surrogate._usual_size(total, part)
        production = Production(maker, total, shard_size or size, part, threaded=self._device.type != "cpu")
        check_folder(production, Path(out))
        maker.surrogate._inputs(low_maps(data.read(0, 1)), data.all_conditions(), extrapolate)  # or it says what lacks
        return replace(production, sample_bytes=4.0 * maker.family.voxels)

    def _of_maps(self, family: Family) -> Surrogate:
        """The same surrogate for low maps of a family, or of a family's pairs; refused if their pixels are others."""
        mine, theirs = self.family.low, family.low if family.low_pixels else family
        if theirs.unit != mine.unit or theirs.pixels is None:
            raise ConfigError("these are not such maps", where="low maps", expected=mine.summary, found=theirs.summary)
        pixel, other = (f.box_size / f.sample_shape[0] for f in (mine, theirs))
        for what, wanted, found in (("pixel size", pixel, other), ("depth", mine.depth, theirs.depth)):
            if wanted and found and not math.isclose(wanted, found, rel_tol=1e-3):
                raise ConfigError(
                    f"low maps have another {what} than those that the surrogate was trained on",
                    where=theirs.summary,
                    expected=f"{wanted:g} Mpc/h",
                    found=f"{found:g} Mpc/h",
                    hint="translate maps of the same simulation and projection, or train on such pairs",
                )
        shape = (theirs.sample_shape[0] * self.family.factor, theirs.sample_shape[1] * self.family.factor)
        if shape == self.family.pixels or not isinstance(self._generator, Translator):
            return self
        return self._with(self._generator.shaped(shape))

    def _inputs(self, low: NDArray[np.float32], conditions: Conditions, extrapolate: bool) -> NDArray[np.float32]:
        """What the generator is given: conditions and low maps, checked; conditions may be those of more maps."""
        self._check_names([*conditions.only([name for name in self.conditions if name in conditions])])
        self.check(conditions.only(self.conditions), extrapolate=extrapolate)
        typical = float(np.median(low.mean(axis=(1, 2)))) if low.size else 1.0
        if low.size and not (low.min() >= 0 and low.max() < np.inf and 0.1 <= typical <= 10):
            raise ShardError(
                "low maps are not densities over the mean density of their box",
                expected="finite values of 1 + delta, with a mean of a typical map of 0.1 to 10",
                found=f"values from {low.min():.4g} to {low.max():.4g}, mean {typical:.4g}",
            )
        columns = conditions.array(self.conditions)[: len(low)]
        return np.concatenate([columns, low.reshape(len(low), -1)], 1)

    def _translated(
        self, low: NDArray[np.float32], conditions: Conditions, seed: int, start: int, extrapolate: bool
    ) -> NDArray[np.float32]:
        """Maps (n, H, W) of low maps (n, h, w), which are those from ``start`` on of all with this seed."""
        inputs = self._inputs(low, conditions, extrapolate)
        parts = [
            self._launched(self.latents(len(some), seed=seed, start=start + first), some)()
            for first in range(0, len(inputs), self.block)
            for some in [inputs[first : first + self.block]]
        ]
        return np.concatenate(parts) if parts else np.zeros((0, *self.family.sample_shape), np.float32)

    def _check_names(self, names: Iterable[str]) -> None:
        names, known = set(names), self.conditions
        for name in sorted(names.difference(known)):
            expected = ", ".join(known) or "none: it is unconditional"
            raise ConditionError(
                f"the surrogate has no condition '{name}'", expected=expected, hint=did_you_mean(name, known)
            )
        for name in (name for name in known if name not in names):
            raise ConditionError(f"the condition '{name}' is missing", expected=", ".join(known))

    def check(self, conditions: Conditions, *, extrapolate: bool = False) -> None:
        """Refuse conditions that are not finite or outside the trained range.

        What differs from something within the range by an exact law only, which the generator knows, is within.

        Args:
            conditions: Those of the surrogate, in their units.
            extrapolate: Allow what lies outside, as long as it is finite and physical.

        Raises:
            ConditionError: Names condition, row, value, range and remedy.
        """
        columns, trained = conditions.array(self.conditions), self.card.conditions
        ranges = [c.low for c in trained], [c.high for c in trained]
        inside = self._ranges is not None and np.all((columns >= self._ranges[0]) & (columns <= self._ranges[1]))
        if inside and self._generator.equivalent(columns, *ranges) is columns:
            return  # the usual case, for the sake of single samples
        for known in trained:  # what is not possible comes first: no law holds for it
            known.check(conditions[known.name], self.family.condition(known.name), extrapolate=True)
        for known, moved in zip(trained, self._generator.equivalent(columns, *ranges).T, strict=True):
            known.check(moved, self.family.condition(known.name), extrapolate=extrapolate)
        if extrapolate and columns.size:
            self._try(conditions[np.unique([*columns.argmin(0), *columns.argmax(0)])])

    def _try(self, conditions: Conditions) -> None:
        """Refuse extreme conditions at which the generator overflows, or makes maps without any structure."""
        columns = conditions.array(self.conditions)
        if self.family.low_pixels:  # of low maps that are 1 everywhere
            columns = np.concatenate([columns, np.ones((len(columns), self.family.low.voxels), np.float32)], 1)
        try:
            made = self._launched(self.latents(len(columns)), columns)()
            flat = made.std(axis=(1, 2)) < _FLAT * made.mean(axis=(1, 2)) if self.family.kind == "map" else False
            usable = bool(np.isfinite(made).all() and not np.any(flat))
        except (RuntimeError, IndexError, CheckpointError):  # a place in a table that is no number
            usable = False
        if not usable:
            trained = "; ".join(f"{c.name} {c}" for c in self.card.conditions)
            raise ConditionError("the surrogate makes nothing so far from what it was trained on", expected=trained)

    def launch(self, conditions: Conditions, seed: int, start: int) -> Callable[[], NDArray[np.float32]]:
        """Start computing samples start to start + n, with the conditions of n samples.

        Returns:
            Waits for them, if they are computed on a GPU, and returns them in physical units.
        """
        latents = self.latents(conditions.rows, seed=seed, start=start)
        columns = conditions.array(self.conditions)
        if self._selection is None:
            return self._launched(latents, columns)
        chosen = self._chosen(self._selection, latents, columns, seed, start)
        return lambda: chosen

    @torch.inference_mode()
    def _chosen(
        self, selection: Selection, latents: NDArray[np.float32], columns: NDArray[np.float32], seed: int, start: int
    ) -> NDArray[np.float32]:
        """Samples (n, ...), one of several candidates each, the first of which has the latent numbers (n, Z)."""
        known, made, odds = torch.from_numpy(np.ascontiguousarray(columns)), [], []
        for number in range(self.candidates):
            if number:
                others = self.latents(len(latents), seed=_seed_of(seed, number), start=start)
                others[:, : self._generator.shared] = latents[:, : self._generator.shared]
                latents = others
            made.append(self._launched(latents, columns)())
            odds.append(selection(torch.from_numpy(made[-1]), known).numpy())
        # The largest of log odds with Gumbel noise has the odds' own probability.
        uniform = uniforms(_seed_of(seed, 0), CONDITIONS, start, len(latents), self.candidates)
        best = (np.stack(odds, 1) - np.log(-np.log(uniform))).argmax(1)
        chosen: NDArray[np.float32] = np.stack(made, 1)[np.arange(len(latents)), best]
        return chosen

    def latents(self, count: int, *, seed: int = 0, start: int = 0) -> NDArray[np.float32]:
        """Latent numbers of samples start to start + count of a seed, (count, Z): standard normals."""
        coarse = self._generator.coarse
        return normals(_seed(seed), start, count, self._generator.latent_size - coarse, coarse)

    def decode(self, latents: NDArray[np.float32], columns: NDArray[np.float32]) -> NDArray[np.float32]:
        """Samples of given latent numbers (n, Z) at given conditions (n, C), as :meth:`sample` would make them.

        For walks between two latents, or one latent at several conditions; conditions are not checked.
        """
        starts = range(0, len(columns), self.block)
        parts = [self._launched(latents[i : i + self.block], columns[i : i + self.block])() for i in starts]
        if len(parts) == 1:
            return parts[0]
        return np.concatenate(parts) if parts else np.zeros((0, *self.family.sample_shape), np.float32)

    def _launched(self, latent: NDArray[np.float32], columns: NDArray[np.float32]) -> Callable[[], NDArray[np.float32]]:
        if self._folded:
            values = self._gated(self._folded(latent, columns))
            return lambda: values
        return self._launched_module(latent, columns)

    @torch.inference_mode()
    def _launched_module(
        self, latent: NDArray[np.float32], columns: NDArray[np.float32]
    ) -> Callable[[], NDArray[np.float32]]:
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

    def forward_pass(self) -> tuple[Callable[..., NDArray[np.float32]], tuple[Any, ...]]:
        """The network alone, as it runs on the CPU, and one block of inputs for it: for measuring."""
        rng = np.random.default_rng(0)
        latent = rng.standard_normal((self.block, self._generator.latent_size), np.float32)
        columns = np.zeros((self.block, len(self.card.conditions)), np.float32)
        for i, c in enumerate(self.card.conditions):
            numbers = c.numbers(self.family.condition(c.name))
            columns[:, i] = rng.choice(numbers, self.block) if c.labels else rng.uniform(c.low, c.high, self.block)
        if self.family.low_pixels:
            columns = np.concatenate([columns, np.ones((self.block, self.family.low.voxels), np.float32)], 1)
        return self._folded or OnArrays(self._generator), (latent, columns)

    def _gated(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """Values with those below the family's threshold put to exactly zero, in place.

        Raises:
            CheckpointError: If values are not finite.
        """
        if values.size and not (np.isfinite(values.min()) and np.isfinite(values.max())):  # NaN is either
            wrong = int((~np.isfinite(values).reshape(len(values), -1).all(1)).sum())
            raise CheckpointError(
                "the surrogate makes values that are not finite",
                expected="finite numbers",
                found=f"{wrong} of {len(values)} samples with NaN or infinite values",
                hint="train it again, or take another checkpoint",
            )
        if self.family.threshold:
            values[values < self.family.threshold] = 0
        return values

    def export(self, format: str, out: str | Path, *, opset: int | None = None) -> dict[str, Any]:  # noqa: A002
        """Write the surrogate for programs that do not run Python, and check what it makes there.

        Args:
            format: ``onnx`` (any ONNX runtime) or ``par04`` (Geant4's example Par04).
            out: Folder to be made; empty or absent.
            opset: Of ONNX's operators; none: the lowest that does, which most runtimes read.

        Returns:
            What ``surrogate.json`` in the folder holds: inputs, outputs, units, voxels, and the largest difference.

        Raises:
            ConfigError: Unknown format, a folder that is not empty, a package that is missing, or a surrogate that the
                format cannot express.
            StorageError: If the disk refuses.
        """
        trained, usual = self._checkpoint, self._checkpoint.card.config.generator.size
        shape = (usual, usual) if usual else trained.card.family.sample_shape
        if self.family.kind == "map" and self.family.sample_shape != shape:
            hint = "export the surrogate as it was loaded"
            raise ConfigError("maps are exported at their usual size", expected=shape, hint=hint)
        if self.candidates > 1:
            hint = "export the surrogate as it was loaded, without `candidates`"
            raise ConfigError("critics that choose among candidates are not exported", hint=hint)
        generator = copy.deepcopy(self._generator).cpu()
        return export(generator, self.card, format, out, opset=opset, licence=licence_of(trained.folder))

    def plan(
        self,
        out: str | Path,
        request: Request | Mapping[str, Any],
        n: int | None = None,
        *,
        seed: int = 0,
        layout: str = "native",
        shard_size: int | None = None,
        part: Part | None = None,
        mantissa_bits: int | None = None,
        extrapolate: bool = False,
    ) -> Production:
        """Everything :meth:`generate` checks before it writes; arguments and errors as there."""
        self._require_free()
        if not isinstance(request, Request):
            request = Request.of(self.family, request, n if n is None else _samples(n))
        elif n not in (None, request.samples):
            raise ConfigError("the request itself says how many samples", expected=request.samples, found=n)
        out, part = Path(out), part or Part()
        total = _samples(request.samples)
        bits = MANTISSA if mantissa_bits is None else mantissa_bits
        bits = _whole(bits, "mantissa_bits", 1, MANTISSA, f"a mantissa has 1 to {MANTISSA} bits")
        self._check_names(request.names)
        written_format(layout, self.family, self.conditions)
        if shard_size is not None:
            size = _whole(shard_size, "shard_size", 1, MOST_SAMPLES, "a shard holds at least one sample")
        else:
            size = begun_with(out, total, part) or self._usual_size(total, part)
        maker = Generation(self, request, _seed(seed), bits)
        production = Production(maker, total, size, part, layout, threaded=self._device.type != "cpu")
        check_folder(production, out)
        self.check(request.limits(self.conditions), extrapolate=extrapolate)
        # Each within its limits, conditions may still not go together: then some of the first ones drawn say so.
        self.check(request.conditions(self.conditions, maker.seed, 0, min(BLOCK, total)), extrapolate=extrapolate)
        # How much space it takes follows from how well some samples compress.
        probe = min(_PROBE, self.block, total)
        values = self.launch(request.conditions(self.conditions, maker.seed, 0, probe), 0, 0)()
        return replace(production, sample_bytes=len(compressed(rounded(values, bits))) / probe)

    def _usual_size(self, total: int, part: Part) -> int:
        """Samples in a shard: enough shards to share among processes, and to lose little when the work is stopped."""
        most = samples_per_shard(self.family, SHARD_BYTES)
        in_part = min(total, -(-total // (part.count * BLOCK)) * BLOCK)
        shards = max(-(-in_part // most), min(_SHARDS, in_part // _FEWEST_IN_SHARD), 1)
        return min(most, -(-in_part // (shards * BLOCK)) * BLOCK)  # all about equally long

    def generate(
        self,
        out: str | Path,
        request: Request | Mapping[str, Any],
        n: int | None = None,
        *,
        workers: int | None = None,
        cluster: str | Path | None = None,
        progress: Callable[[int, int], None] | None = None,
        should_stop: Callable[[], int] | None = None,
        **options: Unpack[Options],
    ) -> Path:
        """Write a folder of shards, or finish one.

        Args:
            out: Folder; empty, absent, or what an earlier call with the same arguments left.
            request: Conditions by name, as :meth:`sample` takes them, such as ``"uniform:1:100GeV"``; or a request.
            n: How many samples, up to 10^12; needed where there are no arrays.
            workers: Processes (default: the cores this process may use); with a GPU, threads that compress.
            cluster: Instead of them a running dask cluster: the address of its scheduler, ``"tcp://host:8786"``, or its
                scheduler file. All its workers must see ``out``.
            progress: Called with (samples done, samples in all), of the part.
            should_stop: Asked all the time; a signal number stops the work, and full shards stay.
            **options: Those of :class:`Options`.

        Returns:
            The folder.

        Raises:
            ConditionError: Conditions missing, unknown or out of range: found before anything is written.
            ConfigError: ``out`` holds something else or is being written, a bad number, or no such cluster.
            StorageError: The disk cannot hold the result.
            ProductionError: A worker process failed again and again, or the cluster's scheduler is gone.
            Interrupted: ``should_stop`` asked for it.
        """
        if workers is not None:
            workers = _whole(workers, "workers", 1, MOST_SAMPLES, "at least one worker")
        workers = sensible_workers(workers, cluster)
        production = self.plan(out, request, n, **options)
        how: dict[str, Any] = {"progress": progress, "should_stop": should_stop}
        return produce(production, Path(out), workers=workers, cluster=cluster, **how)


@dataclass(frozen=True)
class Simulator:
    """Samples of parameters, tensors in and out.

    Attributes:
        surrogate: Makes the samples.
        extrapolate: Allow parameters outside the trained range.
    """

    surrogate: Surrogate
    extrapolate: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """What the columns of parameters are, in their order."""
        return self.surrogate.conditions

    @property
    def low(self) -> torch.Tensor:
        """Lower ends of the trained range, (C,): with :attr:`high` the box of a uniform prior."""
        return torch.tensor([c.low for c in self.surrogate.card.conditions], dtype=torch.float32)

    @property
    def high(self) -> torch.Tensor:
        """Upper ends of it, (C,)."""
        return torch.tensor([c.high for c in self.surrogate.card.conditions], dtype=torch.float32)

    def __call__(self, theta: torch.Tensor | NDArray[np.floating[Any]], seed: int | None = None) -> torch.Tensor:
        """Samples (B, ...) in physical units, on the CPU, of parameters (B, C) in their units; one of (C,).

        Args:
            theta: Parameters, columns in the order of :attr:`names`.
            seed: Of the noise: equal parameters and seeds give equal samples. None: drawn from torch's own random
                numbers, so that ``torch.manual_seed`` decides it, and every call makes others.

        Raises:
            ConditionError: If there are more or fewer columns, or a parameter is not finite or out of range.
        """
        given = torch.as_tensor(theta).detach().to("cpu", torch.float32)
        rows = given[None] if given.dim() == 1 else given
        if rows.dim() != 2 or rows.shape[1] != len(self.names):
            raise ConditionError(
                "the parameters have another shape",
                where="theta",
                expected=f"(B, {len(self.names)}): {', '.join(self.names) or 'no conditions'}",
                found=tuple(given.shape),
            )
        conditions = Conditions(self.names, rows.numpy())
        self.surrogate.check(conditions, extrapolate=self.extrapolate)
        number = int(torch.randint(2**62, ())) if seed is None else _seed(seed)
        made = torch.from_numpy(self.surrogate._sampled(conditions, number))
        return made[0] if given.dim() == 1 else made


class Options(TypedDict, total=False):
    """How :meth:`Surrogate.generate` makes its samples.

    Attributes:
        seed: Of latents and drawn conditions.
        layout: ``native``, or ``calogan`` for files in CaloGAN's own layout.
        shard_size: Samples per file (default: 128 MiB of raw samples).
        part: Make only this part of the samples; parts may share the folder.
        mantissa_bits: Round values to so many bits of mantissa: smaller files (10 bits: 5e-4 of each value).
        extrapolate: Allow conditions outside the trained range.
    """

    seed: int
    layout: str
    shard_size: int | None
    part: Part | None
    mantissa_bits: int | None
    extrapolate: bool


def _plain_ranges(card: Card) -> NDArray[np.float64] | None:
    """Both ends of the trained ranges, (2, C); none where some condition is a label, or an end is not possible."""
    ends = [np.array([c.low, c.high]) for c in card.conditions]
    known = [card.family.condition(c.name) for c in card.conditions]
    if any(c.labels or not c.possible(pair).all() for c, pair in zip(known, ends, strict=True)):
        return None
    return np.array(ends).reshape(-1, 2).T


def _seed_of(seed: int, candidate: int) -> int:
    """Of the latent numbers of other candidates, and (0) of the choice among them."""
    return int(np.random.SeedSequence((seed, candidate)).generate_state(1, np.uint64)[0] >> 1)


def _whole(value: object, argument: str, low: int, high: int, rule: str) -> int:
    """An argument that is a whole number, of numpy's kinds too, from ``low`` to ``high``."""
    try:
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise ConfigError("not a whole number", where=f"`{argument}`", found=repr(value)[:80]) from None
    if not low <= number <= high:
        raise ConfigError(rule, where=f"`{argument}`", found=number)
    return number


def _samples(value: object) -> int:
    return _whole(value, "n", 1, MOST_SAMPLES, "the number of samples is 1 to 10^12")


def _seed(value: object) -> int:
    return _whole(value, "seed", 0, 2**63 - 1, "a seed is a number from 0 to 2^63 - 1")
