"""Conditions as the networks see them: columns in a fixed order, scaled to about [-1, 1].

Column i is condition i. Labels have no order: K of them are K - 1 columns (deviation coding: label k < K - 1 is 1 in
the k-th of them, the last label is -1 in all), the first in the condition's own place, the others after all conditions.
Two labels are -1 and +1.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from ..families import Family
from ..shards.conditions import Conditions
from ..shards.samples import LOW, Samples


def scale_conditions(family: Family, names: Sequence[str], values: Tensor) -> Tensor:
    """Conditions in physical units to about [-1, 1], on each condition's own scale.

    Args:
        family: Knows the usual range of every condition.
        names: Names of the columns.
        values: (B, C), in the conditions' units.

    Returns:
        (B, D), dimensionless; D is :func:`scaled_size`: C, and more where there are more than two labels.
    """
    if not names:
        return values.new_zeros(len(values), 0)
    offset, slope, logarithmic, codings = _scaling_tensors(family, tuple(names), values.dtype, values.device)
    if logarithmic is None:
        logs = values
    else:  # logarithms of those columns alone: gradients of others would be not a number at 0
        logs = torch.where(logarithmic, torch.log(torch.where(logarithmic, values, 1.0)), values)
    scaled = torch.addcmul(offset, logs, slope)
    if not codings:
        return scaled
    columns = list(scaled.unbind(1))
    for column, table in codings:
        codes = values[:, column].nan_to_num(0.0).long().clamp(0, len(table) - 1)
        columns[column], *others = table[codes].unbind(1)
        columns += others
    return torch.stack(columns, 1)


def inputs_of(samples: Samples, names: Sequence[str], family: Family) -> NDArray[np.float32]:
    """What a network is given of samples: the named conditions, then the pixels of the map of low resolution.

    Args:
        samples: In physical units.
        names: Of the conditions, in the order of the columns.
        family: What the network makes; only where it has pairs are there such pixels.

    Returns:
        (N, C), and (N, C + h w) of pairs.
    """
    columns = samples.conditions.array(names)
    if family.low_pixels is None:
        return columns
    return np.concatenate([columns, samples.extras[LOW].reshape(len(samples), -1).astype(np.float32)], 1)


def given_samples(family: Family, values: ArrayLike, inputs: NDArray[np.float32], names: Sequence[str]) -> Samples:
    """Samples (N, ...) and what :func:`inputs_of` makes of them, together again."""
    columns, low = np.split(inputs, [len(names)], 1)
    extras = {LOW: low.reshape(-1, *family.low_pixels)} if family.low_pixels else {}
    return Samples(family, values, Conditions(tuple(names), columns), extras)


def scaled_size(family: Family, names: Sequence[str]) -> int:
    """How many columns :func:`scale_conditions` makes (D)."""
    return sum(max(1, len(family.labels(name)) - 1) for name in names)


def codings(family: Family, names: Sequence[str]) -> list[tuple[int, NDArray[np.float64]]]:
    """Of every condition of more than two labels: its place among the names, and the rows (K, K - 1) of its labels."""
    counts = [len(family.labels(name)) for name in names]
    return [(i, np.vstack([np.eye(k - 1), -np.ones(k - 1)])) for i, k in enumerate(counts) if k > 2]


def scaling(family: Family, names: Sequence[str]) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_]]:
    """Offset, slope and whether it is of the logarithm, (C,) each, of :func:`scale_conditions`; see :func:`codings`."""
    conditions = [family.condition(name) for name in names]
    ends = np.array([(c.low, c.high) for c in conditions]).reshape(-1, 2)
    logarithmic = np.array([c.scale == "log" for c in conditions], bool)
    ends[logarithmic] = np.log(ends[logarithmic])
    slope = 2 / (ends[:, 1] - ends[:, 0])
    return -1 - slope * ends[:, 0], slope, logarithmic


@functools.lru_cache(maxsize=64)
@torch.inference_mode(mode=False)
def _scaling_tensors(
    family: Family, names: tuple[str, ...], dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor, Tensor | None, list[tuple[int, Tensor]]]:
    offset, slope, logarithmic = (torch.from_numpy(a).to(device) for a in scaling(family, names))
    tables = [(place, torch.from_numpy(table).to(device, dtype)) for place, table in codings(family, names)]
    return offset.to(dtype), slope.to(dtype), logarithmic if logarithmic.any() else None, tables


def energy_column(family: Family, names: Sequence[str]) -> int | None:
    """Which of the named conditions is the incident energy; none if none of them is."""
    energy = family.energy
    return list(names).index(energy.name) if energy is not None and energy.name in names else None
