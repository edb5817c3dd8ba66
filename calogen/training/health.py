"""Whether a run goes well: how alike generated samples are to each other, and when to warn or stop."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial import KDTree

from ..analysis.observables.catalogue import catalogue, observe
from ..families import varies
from ..models.conditions import scale_conditions
from ..runs.folder import Record
from ..shards.samples import Samples

COLLAPSED = 0.3
"""Diversity below which a generator counts as collapsed: far below what slow learning or sharp cores do to it."""

_WORSE, _OFTEN = 1.5, 3  # a score this much above the best, in so many validations one after another, is no chance


def diversity(reference: Samples, generated: Samples) -> float:
    """How much generated samples at the same conditions differ from each other, as a share of what the reference does.

    Every sample is compared with the one nearest to it in the conditions: voxel by voxel, and in every observable. A
    generator that makes one shape for each condition (mode collapse) is near 0; so is one that varies only in single
    voxels, or not in them. A perfect one is at 1.

    Args:
        reference: Samples in physical units.
        generated: As many, with the same conditions, row by row.

    Returns:
        The smaller of two ratios: of the mean distance of voxels, and the median over observables.
    """
    partner = _partners(reference)
    apart = [_distance(samples.values, partner) for samples in (generated, reference)]
    mine, others = (observe(side, scored=True) for side in (generated, reference))
    known = catalogue(reference.family)
    ratios = [apart[0] / apart[1]] if apart[1] > 0 else []
    steps = {name: float(np.nanmean(np.abs(values - values[partner]))) for name, values in others.items()}
    spread = [
        float(np.nanmean(np.abs(mine[name] - mine[name][partner]))) / step
        for name, step in steps.items()
        if name in mine and varies(step, float(np.nanmax(np.abs(others[name]))), known[name].resolution)
    ]
    ratios += [float(np.median(spread))] if spread else []
    return min(ratios, default=1.0)


def _partners(samples: Samples) -> NDArray[np.int64]:
    """For each sample, another with conditions as near as possible, (N,)."""
    count, names = len(samples), tuple(samples.conditions)
    if not names or count < 2:
        return np.roll(np.arange(count), 1)
    columns = torch.from_numpy(samples.conditions.array())
    points = scale_conditions(samples.family, names, columns).double().numpy()
    near = np.asarray(
        KDTree(points).query(points, k=2)[1]
    )  # itself and another, in any order where conditions are equal
    return np.where(near[:, 0] == np.arange(count), near[:, 1], near[:, 0])


def _distance(values: NDArray[np.float32], partner: NDArray[np.int64]) -> float:
    """Mean over samples of the sum of absolute differences over the sum of values, 0 to 1."""
    flat, total = values.reshape(len(values), -1), 0.0
    for start in range(0, len(flat), 500):  # bounds the memory for large samples
        some, other = flat[start : start + 500], flat[partner[start : start + 500]]
        sums = np.abs(some).sum(1) + np.abs(other).sum(1)
        total += float((np.abs(some - other).sum(1) / np.maximum(sums, 1e-30)).sum())
    return total / len(flat)


def alarm(records: Sequence[Record]) -> str | None:
    """What the last validation gives reason to warn of, if the one before it did not already.

    Args:
        records: The log so far; those with a score are validations.
    """
    seen = [record for record in records if "score" in record]
    for fault in (_collapse, _decline):
        found = fault(seen)
        if found and not fault(seen[:-1]):
            return found
    return None


def _collapse(seen: Sequence[Record]) -> str | None:
    found = seen[-1].get("diversity") if seen and seen[-1]["step"] > 0 else None
    if found is None or found >= COLLAPSED:
        return None
    return (
        "the generator is collapsing: at equal conditions its samples differ "
        f"{found:.2g} times as much as those of the reference"
    )


def _decline(seen: Sequence[Record]) -> str | None:
    scores = [_number(record["score"]) for record in seen]
    best = min(scores, default=math.inf)
    if len(scores) <= _OFTEN or not all(value > _WORSE * best for value in scores[-_OFTEN:]):
        return None
    step = seen[scores.index(best)]["step"]
    return (
        f"the score was above {_WORSE} times that of step {step} for {_OFTEN} validations; the best checkpoint is kept"
    )


def without_progress(records: Sequence[Record]) -> int:
    """Validations since the best one."""
    scores = [_number(record["score"]) for record in records if "score" in record]
    return len(scores) - 1 - scores.index(min(scores)) if scores else 0


def _number(value: float | None) -> float:
    return math.inf if value is None else value  # the log holds no infinities
