"""Which samples validate where data are not split."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_SEED = 0  # the same samples in every run: scores of several seeds are of the same ones


def tenth_of(keys: NDArray[np.float64], share: int) -> NDArray[np.bool_]:
    """A seeded 1 / ``share`` of every point and of every part of the range, in whichever order samples are, (N,).

    Points are rows of which at least ``share`` are equal: energies that were simulated one by one. All other rows are
    sorted, and one of every ``share`` that follow each other is taken.

    Args:
        keys: Conditions, those that matter most first, (N, K).
        share: See above.
    """
    rng = np.random.default_rng(_SEED)
    order = np.lexsort((rng.permutation(len(keys)), *keys.T[::-1]))
    point = _points(keys[order])
    stratum = np.where(np.bincount(point)[point] >= share, point, -1)
    ranked = order[np.argsort(stratum, kind="stable")]
    counts = np.unique(stratum, return_counts=True)[1]
    place = np.arange(len(keys)) - np.repeat(np.r_[0, np.cumsum(counts)[:-1]], counts)
    groups = ranked[place < np.repeat(counts // share * share, counts)].reshape(-1, share)
    chosen = np.zeros(len(keys), np.bool_)
    chosen[groups[np.arange(len(groups)), rng.integers(0, share, len(groups))]] = True
    if not len(groups):
        chosen[order[rng.integers(len(order))]] = True
    return chosen


def last_of(keys: NDArray[np.float64], share: int, least: int = 0) -> NDArray[np.bool_]:
    """The last 1 / ``share`` of every point, at least so many of each, and one in all, (N,); as :func:`tenth_of`."""
    order = np.lexsort((np.arange(len(keys)), *keys.T[::-1]))
    counts = np.bincount(_points(keys[order]))
    after = np.repeat(np.cumsum(counts), counts) - np.arange(len(keys))  # rows of the point from this one on
    chosen = np.zeros(len(keys), np.bool_)
    chosen[order[after <= np.repeat(np.maximum(counts // share, least), counts)]] = True
    chosen[-1] |= not chosen.any()
    return chosen


def _points(ordered: NDArray[np.float64]) -> NDArray[np.int64]:
    """The number of the point that each of some sorted rows is at, (N,)."""
    return np.cumsum(np.r_[False, (ordered[1:] != ordered[:-1]).any(axis=1)]).astype(np.int64)
