"""Shards to batches. Batch i is a function of (data, seed, i) alone: a resumed run sees what it would have seen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .errors import ShardError
from .families import Family
from .shards import Samples, Shards
from .transforms import condition_array


class Batches:
    """Random access to an endless, shuffled sequence of training batches.

    Data that fit into ``memory`` are held there. Larger data are read in windows: groups of blocks drawn from all
    over the data, shuffled within. Rows inside the held-out ranges are never seen.

    Args:
        shards: Training data.
        conditions: Names of the conditions, in the order of the columns.
        batch_size: Samples per batch.
        seed: Of the order.
        device: Where batches go.
        memory: Bytes of samples to hold at a time.
        holdout: Ranges of conditions left out, by name, in their units.

    Raises:
        ShardError: If fewer samples than one batch are left.
    """

    _BLOCK = 4096  # rows read at a time when streaming

    def __init__(
        self,
        shards: Shards | Samples,
        conditions: Sequence[str],
        batch_size: int,
        *,
        seed: int,
        device: torch.device,
        memory: int = 4 * 2**30,
        holdout: Mapping[str, tuple[float, float]] | None = None,
    ) -> None:
        self._shards = shards
        self._names = tuple(conditions)
        self._batch_size = batch_size
        self._seed = seed
        self._device = device
        self._holdout = dict(holdout or {})
        rows = max(self._BLOCK, memory // (4 * shards.family.voxels))
        blocks = -(-len(shards) // self._BLOCK)
        self._in_memory = len(shards) <= rows
        self._windows = 1 if self._in_memory else -(-blocks // (rows // self._BLOCK))
        self._blocks = blocks
        self._loaded: tuple[int, int] | None = None
        self._values = torch.empty(0)
        self._conditions = torch.empty(0)
        looked_at = self._read(0, 0)
        if len(self._values) < batch_size:
            raise ShardError(
                "there are fewer training samples than one batch",
                expected=f"at least {batch_size} outside the held-out ranges",
                found=len(self._values),
                hint="add data or lower training.batch_size",
            )
        # As many batches as an average window has rows for; the first shows what share of them is held out.
        self._per_window = max(1, len(shards) * len(self._values) // (looked_at * self._windows * batch_size))
        self._order = self._shuffled(0, 0)
        self._loaded = (0, 0)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Batch ``index``: samples (B, ...) and conditions (B, C), in physical units, on the device."""
        window, batch = divmod(index, self._per_window)
        epoch, window = divmod(window, self._windows)
        self._load(epoch, window)
        rows = self._order[batch * self._batch_size : (batch + 1) * self._batch_size]
        return self._values[rows], self._conditions[rows]

    def sample_conditions(self, count: int, generator: torch.Generator) -> Tensor:
        """Conditions of ``count`` random rows of the current window, (count, C)."""
        rows = torch.randint(len(self._conditions), (count,), generator=generator, device=self._device)
        return self._conditions[rows]

    def _load(self, epoch: int, window: int) -> None:
        """Make a window current; in memory only its order changes from epoch to epoch."""
        if self._loaded == (epoch, window):
            return
        if not self._in_memory:
            self._values, self._conditions = torch.empty(0), torch.empty(0)  # never two windows at a time
            self._read(epoch, window)
        self._order = self._shuffled(epoch, window)
        self._loaded = (epoch, window)

    def _shuffled(self, epoch: int, window: int) -> Tensor:
        """Rows of the current window in the order of its batches."""
        order = np.random.default_rng((self._seed, epoch, window)).permutation(len(self._values))
        wanted = self._per_window * self._batch_size
        return torch.from_numpy(np.resize(order, wanted)).to(self._device)  # a window that is short goes round

    def _read(self, epoch: int, window: int) -> int:
        """Read a window, or the next one that has rows outside the held-out ranges; returns the rows looked at."""
        blocks = np.arange(self._blocks)
        if not self._in_memory:
            blocks = np.random.default_rng((self._seed, epoch)).permutation(blocks)
        windows = np.array_split(blocks, self._windows)  # in equal parts: no window of a few rows
        for chosen in (*windows[window:], *windows[:window]):
            values, conditions, looked_at = [], [], 0
            for block in chosen.tolist():
                start, stop = block * self._BLOCK, min((block + 1) * self._BLOCK, len(self._shards))
                samples = self._shards.read(start, stop)
                keep = ~held_out(samples, self._holdout)
                values.append(torch.from_numpy(samples.values[keep]))
                conditions.append(torch.from_numpy(condition_array(samples, self._names)[keep]))
                looked_at += stop - start
            if any(map(len, values)):
                break
        self._values = torch.cat(values).to(self._device)
        self._conditions = torch.cat(conditions).to(self._device)
        return looked_at

    def samples(self, family: Family, count: int | None = None) -> Samples:
        """The first ``count`` rows of the current window (all when absent), physical units."""
        columns = self._conditions[:count].cpu().numpy()
        named = {name: columns[:, i] for i, name in enumerate(self._names)}
        return Samples(family, self._values[:count].cpu().numpy(), named)

    def condition_range(self) -> tuple[Tensor, Tensor]:
        """Smallest and largest value of each condition in the current window, (C,) each."""
        return self._conditions.amin(0).cpu(), self._conditions.amax(0).cpu()


def held_out(samples: Samples, holdout: Mapping[str, tuple[float, float]]) -> NDArray[np.bool_]:
    """Which samples (N,) lie inside any of the held-out ranges.

    Raises:
        ShardError: If the data lack a condition that is held out.
    """
    mask = np.zeros(len(samples), bool)
    for name, (low, high) in holdout.items():
        column = condition_array(samples, [name])[:, 0]
        mask |= (column >= low) & (column <= high)
    return mask


class Augmentation:
    """Random exact symmetries of a family: mirrors of showers; mirrors, quarter turns and rolls of maps.

    Args:
        family: Says which symmetries are exact.
        device: Of the samples.
    """

    def __init__(self, family: Family, device: torch.device) -> None:
        self._family = family
        self._orders = torch.as_tensor(np.stack(family.mirrors), device=device) if family.layers else None

    def __call__(self, values: Tensor, generator: torch.Generator) -> Tensor:
        """Transformed copies of samples (B, ...), in the units given."""
        device = values.device
        if self._orders is not None:
            if len(self._orders) == 1:
                return values
            pick = torch.randint(len(self._orders), (len(values),), generator=generator, device=device)
            return values.gather(1, self._orders[pick])
        known = set(self._family.symmetries)
        height, width = values.shape[1:]
        draw = torch.rand(5, generator=generator, device="cpu" if generator.device.type == "cpu" else device).tolist()
        if "roll" in known:
            values = values.roll((int(draw[0] * height), int(draw[1] * width)), (1, 2))
        if "mirror-x" in known and draw[2] < 0.5:
            values = values.flip(1)
        if "mirror-y" in known and draw[3] < 0.5:
            values = values.flip(2)
        if "turn" in known and height == width:
            values = values.rot90(int(draw[4] * 4), (1, 2))
        return values
