"""One number for how far generated samples are from the reference, quick enough for validation during training."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from calogen.errors import ShardError
from calogen.shards.samples import Samples

from ..inputs import require_same
from ..observables.catalogue import catalogue, observe
from ..survey.plan import common_conditions
from ..survey.selections import selections
from .distances import scale_of, unequal, wasserstein_1d
from .measure import FEWEST

FLOORS = 4
"""How many disjoint sets of samples a floor is the mean of, where there are so many."""


class Judgement(NamedTuple):
    """What :func:`judge` finds.

    Attributes:
        score: See :func:`score`.
        constant: Of every observable that the reference has constant in a bin, and that the score leaves out: the share
            of generated samples in the bin that differ, by ``OBSERVABLE[BIN]``.
    """

    score: float
    constant: dict[str, float]


def score(reference: Samples, generated: Samples, *, bins: int = 4) -> float:
    """How far generated samples are from the reference: one number, 0 for perfect, in reference standard deviations.

    The mean over all observables and bins of the conditions of W1 over the reference's standard deviation: in the bin,
    or in the whole reference where the bin has fewer than 20 of its samples. Fast enough for validation during
    training. A finite sample gives a floor above 0. Observables that the reference has constant there, but for
    rounding, have no such yardstick and are left out (:func:`judge` says which).

    Args:
        reference: N samples in physical units.
        generated: M samples of the same family, with about the same conditions; rows that are not finite count as
            infinitely far.
        bins: Bins of each condition.

    Raises:
        ShardError: If a side is empty or the families differ.
    """
    return judge(reference, generated, bins=bins).score


def judge(reference: Samples, generated: Samples, *, bins: int = 4) -> Judgement:
    """The score, and what it leaves out; arguments and errors are those of :func:`score`."""
    require_same(reference.family, generated.family, "generated")
    if not len(reference.values) or not len(generated.values):
        raise ShardError("a score needs samples on both sides")
    if not np.isfinite(generated.values).all():
        return Judgement(math.inf, {})
    mine, other = (observe(side, scored=True) for side in (reference, generated))
    known = catalogue(reference.family)
    finest = {name: known[name].resolution for name in mine if name in other}
    common = common_conditions(reference.family, [reference.conditions, generated.conditions])
    found, constant = list[float](), dict[str, float]()
    parts = selections(reference.family, {n: c for n, c in reference.conditions.items() if n in common}, bins)
    for selection in parts[1:] or parts:
        a = selection.of(reference.conditions, len(reference.values))
        b = selection.of(generated.conditions, len(generated.values))
        if a.any() and b.any():
            # A few samples may be all alike by chance: their spread is no yardstick.
            yardstick = a if np.count_nonzero(a) >= FEWEST else np.ones_like(a)
            for name, resolution in finest.items():
                if scale := scale_of(mine[name][yardstick], resolution):
                    found.append(wasserstein_1d(mine[name][a], other[name][b]) / scale)
                else:
                    apart = unequal(mine[name][yardstick], other[name][b], resolution)
                    constant[f"{name}{selection.suffix}"] = float(apart.mean())
    found = found or list(constant.values())
    return Judgement(float(np.mean(found)) if found else math.inf, constant)


def score_floor(reference: Samples, others: Samples, *, bins: int = 4) -> tuple[float, float | None] | None:
    """What :func:`score` gives for samples of the reference's own kind, as many as the reference.

    Args:
        reference: N samples, as for :func:`score`.
        others: Independent samples of the same simulation; sets of N of them are used, at most four.
        bins: As for :func:`score`.

    Returns:
        The mean over the sets, and the standard deviation of one set where there are two or more, all finite; None
        if there are fewer than N others.
    """
    count = len(reference)
    starts = range(0, len(others) - count + 1, max(count, 1))[:FLOORS]
    found = [score(reference, others.read(start, start + count), bins=bins) for start in starts]
    if not found:
        return None
    several = len(found) > 1 and np.isfinite(found).all()
    return float(np.mean(found)), float(np.std(found, ddof=1)) if several else None
