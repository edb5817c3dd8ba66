"""One number for how far generated samples are from the reference, quick enough for validation during training."""

from __future__ import annotations

import math

import numpy as np

from calogen.errors import ShardError
from calogen.shards.samples import Samples

from ..inputs import require_same
from ..observables.catalogue import observe
from ..survey.plan import common_conditions
from ..survey.selections import selections
from .distances import scale_of, wasserstein_1d
from .measure import FEWEST

FLOORS = 4
"""How many disjoint sets of samples a floor is the mean of, where there are so many."""


def score(reference: Samples, generated: Samples, *, bins: int = 4) -> float:
    """How far generated samples are from the reference: one number, 0 for perfect, in reference standard deviations.

    The mean over all observables and bins of the conditions of W1 over the reference's standard deviation: in the bin,
    or in the whole reference where the bin has fewer than 20 of its samples. Fast enough for validation during
    training. A finite sample gives a floor above 0.

    Args:
        reference: N samples in physical units.
        generated: M samples of the same family, with about the same conditions; rows that are not finite count as
            infinitely far.
        bins: Bins of each condition.

    Raises:
        ShardError: If a side is empty or the families differ.
    """
    require_same(reference.family, generated.family, "generated")
    if not len(reference.values) or not len(generated.values):
        raise ShardError("a score needs samples on both sides")
    if not np.isfinite(generated.values).all():
        return math.inf
    mine, other = observe(reference), observe(generated)
    names = [name for name in mine if name in other]
    common = common_conditions(reference.family, [reference.conditions, generated.conditions])
    found: list[float] = []
    parts = selections(reference.family, {n: c for n, c in reference.conditions.items() if n in common}, bins)
    for selection in parts[1:] or parts:
        a = selection.of(reference.conditions, len(reference.values))
        b = selection.of(generated.conditions, len(generated.values))
        if a.any() and b.any():
            # A few samples may be all alike by chance: their spread is no yardstick.
            yardstick = a if np.count_nonzero(a) >= FEWEST else np.ones_like(a)
            found += [wasserstein_1d(mine[n][a], other[n][b]) / scale_of(mine[n][yardstick]) for n in names]
    return float(np.mean(found)) if found else math.inf


def score_floor(reference: Samples, others: Samples, *, bins: int = 4) -> tuple[float, float | None] | None:
    """What :func:`score` gives for samples of the reference's own kind, as many as the reference.

    Args:
        reference: N samples, as for :func:`score`.
        others: Independent samples of the same simulation; sets of N of them are used, at most four.
        bins: As for :func:`score`.

    Returns:
        The mean over the sets, and the standard deviation of one set where there are two or more; None if there are
        fewer than N others.
    """
    count = len(reference)
    starts = range(0, len(others) - count + 1, max(count, 1))[:FLOORS]
    found = [score(reference, others.read(start, start + count), bins=bins) for start in starts]
    if not found:
        return None
    return float(np.mean(found)), float(np.std(found, ddof=1)) if len(found) > 1 else None
