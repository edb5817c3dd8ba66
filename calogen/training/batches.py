"""Shards to batches. Batch i is a function of (data, seed, i) alone: a resumed run sees what it would have seen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import ShardError
from ..families import Family
from ..models.conditions import given_samples, inputs_of
from ..models.streams import drawn
from ..shards.conditions import Conditions
from ..shards.reader import Shards
from ..shards.samples import Samples
from .ranks import ALONE, Ranks


class Batches:
    """Random access to an endless, shuffled sequence of training batches.

    Data that fit into ``memory`` are held there. Larger data are read in windows: groups of blocks drawn from all
    over the data, shuffled within. Rows inside the held-out ranges are never seen.

    Args:
        shards: Training data.
        conditions: Names of the conditions, in the order of the columns.
        batch_size: Samples per batch.
        family: What is made of them; none: that of the shards. Its maps of low resolution are columns, too.
        seed: Of the order.
        device: Where batches go.
        memory: Bytes of samples to hold at a time.
        holdout: Ranges of conditions left out, by name, in their units.
        ranks: Processes of which each takes its rows of every batch.

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
        family: Family | None = None,
        memory: int = 4 * 2**30,
        holdout: Mapping[str, tuple[float, float]] | None = None,
        ranks: Ranks = ALONE,
    ) -> None:
        self._shards = shards
        self._names, self._family = tuple(conditions), family or shards.family
        self._batch_size = batch_size
        self._seed = seed
        self._device = device
        self._ranks, self._share = ranks, ranks.share(batch_size)
        self._holdout = dict(holdout or {})
        rows = max(self._BLOCK, memory // (4 * shards.family.voxels))
        self._blocks = -(-len(shards) // self._BLOCK)
        self._windows = 1 if len(shards) <= rows else -(-self._blocks // (rows // self._BLOCK))
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
        """This rank's rows of batch ``index``: samples (B, ...) and conditions (B, C), in physical units."""
        window, batch = divmod(index, self._per_window)
        epoch, window = divmod(window, self._windows)
        self._load(epoch, window)
        rows = self._share.of(self._order[batch * self._batch_size : (batch + 1) * self._batch_size])
        return self._values[rows], self._conditions[rows]

    def sample_conditions(self, count: int, generator: torch.Generator) -> Tensor:
        """Conditions of ``count`` random rows of the current window, (count, C)."""
        draw = partial(torch.randint, len(self._conditions))
        rows = drawn(draw, (count,), generator, device=self._device)
        return self._conditions[rows]

    def _load(self, epoch: int, window: int) -> None:
        """Make a window current; in memory only its order changes from epoch to epoch."""
        if self._loaded == (epoch, window):
            return
        if self._windows > 1:
            self._values, self._conditions = torch.empty(0), torch.empty(0)  # never two windows at a time
            with self._ranks.apart():
                self._read(epoch, window)
        self._order = self._shuffled(epoch, window)
        self._loaded = (epoch, window)

    def _shuffled(self, epoch: int, window: int) -> Tensor:
        """Rows of the current window in the order of its batches."""
        order = np.random.default_rng((self._seed, epoch, window)).permutation(len(self._values))
        wanted = self._per_window * self._batch_size
        return torch.from_numpy(np.resize(order, wanted)).to(self._device)  # a short window repeats

    def _read(self, epoch: int, window: int) -> int:
        """Read a window, or the next one that has rows outside the held-out ranges; returns the rows looked at."""
        blocks = np.arange(self._blocks)
        if self._windows > 1:
            blocks = np.random.default_rng((self._seed, epoch)).permutation(blocks)
        windows = np.array_split(blocks, self._windows)  # in equal parts: no window of a few rows
        for chosen in (*windows[window:], *windows[:window]):
            values, conditions, looked_at = [], [], 0
            for block in chosen.tolist():
                start, stop = block * self._BLOCK, min((block + 1) * self._BLOCK, len(self._shards))
                samples = self._shards.read(start, stop)
                keep = ~held_out(samples, self._holdout)
                values.append(torch.from_numpy(samples.values[keep]))
                conditions.append(torch.from_numpy(inputs_of(samples, self._names, self._family)[keep]))
                looked_at += stop - start
            if any(map(len, values)):
                break
        self._values = torch.cat(values).to(self._device)
        self._conditions = torch.cat(conditions).to(self._device)
        return looked_at

    def samples(self, family: Family, count: int | None = None) -> Samples:
        """``count`` rows spread over the current window (all when absent), physical units."""
        rows = len(self._values)
        chosen: slice | Tensor = slice(None)
        if count is not None and count < rows:
            chosen = torch.linspace(0, rows - 1, count, dtype=torch.float64).long()
        values, inputs = (rows[chosen].cpu().numpy() for rows in (self._values, self._conditions))
        return given_samples(family, values, inputs, self._names)

    @property
    def conditions(self) -> Conditions:
        """Those of all rows of the current window."""
        return Conditions(self._names, self._conditions[:, : len(self._names)].cpu().numpy())


def held_out(samples: Samples, holdout: Mapping[str, tuple[float, float]]) -> NDArray[np.bool_]:
    """Which samples (N,) lie inside any of the held-out ranges.

    Raises:
        ShardError: If the data lack a condition that is held out.
    """
    mask = np.zeros(len(samples), bool)
    for name, (low, high) in holdout.items():
        column = samples.conditions.array([name])[:, 0]
        mask |= (column >= low) & (column <= high)
    return mask


class Augmentation:
    """Random symmetries: images of showers and of their conditions; mirrors, quarter turns and rolls of maps.

    Args:
        family: Says which symmetries are used.
        conditions: Names of the conditions, in the order of the columns.
        device: Of the samples.
    """

    def __init__(self, family: Family, conditions: Sequence[str], device: torch.device) -> None:
        self._family, self._columns = family, len(conditions)
        moves = [(image.order, family.motion(image, conditions)) for image in family.images] if family.layers else []
        known = [(order, motion) for order, motion in moves if motion is not None]
        self._orders = torch.as_tensor(np.stack([order for order, _ in known]), device=device) if known else None
        self._moving = not all(motion.still for _, motion in known)
        if self._moving:
            numbers = [(m.linear, m.offset, m.start, m.period, m.rate) for _, m in known]
            stacks = (np.stack(parts).astype(np.float32) for parts in zip(*numbers, strict=True))
            self._motions = [torch.as_tensor(stack, device=device) for stack in stacks]

    def __call__(self, generator: torch.Generator, conditions: Tensor, *samples: Tensor) -> tuple[Tensor, ...]:
        """Conditions (B, C) and samples (B, ...) of images, all in the units given.

        Several batches of samples with the same conditions are moved alike, so that they still have the same ones.
        """
        if self._family.low_pixels is not None:
            return self._moved_pairs(generator, conditions, samples)
        if self._orders is None:
            return conditions, *(self._moved(maps, generator) for maps in samples)
        if len(self._orders) == 1:
            return conditions, *samples
        draw = partial(torch.randint, len(self._orders))
        pick = drawn(draw, (len(conditions),), generator, device=conditions.device)
        index = self._orders[pick]
        images = (showers.gather(1, index) for showers in samples)
        if not self._moving:
            return conditions, *images
        linear, offset, start, period, rate = (stack[pick] for stack in self._motions)
        moved = torch.einsum("bij,bj->bi", linear, conditions) + offset
        return moved - torch.floor((moved - start) * rate) * period, *images

    def _moved(self, maps: Tensor, generator: torch.Generator) -> Tensor:
        """Maps (B, H, W), each rolled, mirrored and turned for itself; the host never waits for the device."""
        if not self._family.symmetries:
            return maps
        draw = drawn(torch.rand, (5, len(maps), 1), generator, dim=1, device=maps.device)
        return self._placed(maps, draw)

    def _moved_pairs(
        self, generator: torch.Generator, conditions: Tensor, samples: tuple[Tensor, ...]
    ) -> tuple[Tensor, ...]:
        """Maps and, in the last columns of the conditions, those of low resolution, all of a pair moved alike."""
        if not self._family.symmetries or self._family.low_pixels is None:
            return conditions, *samples
        draw = drawn(torch.rand, (5, len(conditions), 1), generator, dim=1, device=conditions.device)
        low = conditions[:, self._columns :].unflatten(1, self._family.low_pixels)
        moved = torch.cat([conditions[:, : self._columns], self._placed(low, draw).flatten(1)], 1)
        return moved, *(self._placed(maps, draw, self._family.factor) for maps in samples)

    def _placed(self, maps: Tensor, draw: Tensor, factor: int = 1) -> Tensor:
        """Maps (B, H, W), each moved as random numbers (5, B, 1) from 0 to 1 say, in steps of so many pixels."""
        known, (count, height, width) = set(self._family.symmetries), maps.shape
        no = torch.zeros_like(draw[0], dtype=torch.bool)
        turn = (draw[4] * 4).long() if "turn" in known and height == width else no.long()
        # A quarter turn is an exchange of the axes and a mirror image, half a turn are two mirror images.
        flips = [(turn == 1) | (turn == 2), (turn == 2) | (turn == 3)]
        lines = []
        for axis, (size, name) in enumerate(((height, "mirror-x"), (width, "mirror-y"))):
            line = torch.arange(size, device=maps.device).expand(count, size)
            flip = flips[axis] ^ (draw[2 + axis] < 0.5 if name in known else no)
            line = torch.where(flip, size - 1 - line, line)
            steps = (draw[axis] * (size // factor)).long() * factor
            lines.append((line + steps) % size if "roll" in known else line)
        rows, columns = lines[0][:, :, None], lines[1][:, None, :]
        index = rows * width + columns
        if height == width:
            index = torch.where((turn % 2 == 1)[:, :, None], columns * width + rows, index)
        return maps.flatten(1).gather(1, index.flatten(1)).view_as(maps)
