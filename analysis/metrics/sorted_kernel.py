"""Compiled: what many divisions of the same samples have in common is one sort; each division is a walk along it."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from calogen.compiling import kernel


@kernel
def pick(values: NDArray[Any], order: NDArray[Any], picks: NDArray[Any], found: NDArray[Any]) -> None:
    """The samples of every division in increasing order, as often as it has them.

    Args:
        values: In increasing order, (N,).
        order: Which sample each of them is, (N,).
        picks: How often each division has each sample, (S, N), n in all.
        found: The result, (S, n + 1); the last column means nothing.
    """
    for s in range(len(picks)):
        place = 0
        for i in range(len(values)):
            # Written in any case: a sample that is not wanted is overwritten by the next.
            found[s, place] = values[i]
            times = int(picks[s, order[i]])
            for again in range(1, times):
                found[s, place + again] = values[i]
            place += times


@kernel
def walk_labels(
    values: NDArray[np.float64],
    bins: NDArray[np.int64],
    labels: NDArray[np.int8],
    weights: NDArray[np.float64],
    w1: NDArray[np.float64],
    chi2: NDArray[np.float64],
) -> None:
    """Wasserstein-1 distance and the terms of chi-square between the samples labelled 1 and -1, for every labelling.

    Args:
        values: In increasing order, (n,).
        bins: The histogram's bin of each of them, (n,).
        labels: Theirs, (n, P).
        weights: One over how many samples are labelled 1 and -1, (2, P).
        w1: The distances, (P,), from 0 on.
        chi2: Sums over bins of (a / A - b / B)^2 / (a + b), with a of A and b of B samples in a bin; (P,), from 0 on.
    """
    count, labellings = labels.shape
    above, below, first, second = np.zeros((4, labellings), np.int32)
    for i in range(count):
        for p in range(labellings):
            above[p] += labels[i, p] > 0
            below[p] += labels[i, p] < 0
        if i + 1 == count or bins[i + 1] != bins[i]:
            for p in range(labellings):
                a, b = above[p] - first[p], below[p] - second[p]
                if a + b > 0:
                    chi2[p] += (a * weights[0, p] - b * weights[1, p]) ** 2 / (a + b)
                first[p], second[p] = above[p], below[p]
        if i + 1 < count:
            step = values[i + 1] - values[i]
            for p in range(labellings):
                w1[p] += step * abs(above[p] * weights[0, p] - below[p] * weights[1, p])


@kernel
def walk_weights(
    values: NDArray[Any], order: NDArray[Any], weights: NDArray[np.float32], furthest: NDArray[np.float32]
) -> None:
    """The sum of weights along the samples, for every division, where it is furthest from 0.

    Args:
        values: In increasing order, (N,). Of equal values the sum moves at once.
        order: Which sample each of them is, (N,).
        weights: Of every sample in every division, (N, P).
        furthest: The result, (P,), from 0 on.
    """
    count, divisions = weights.shape
    below = np.zeros(divisions, np.float32)
    for i in range(count):
        for p in range(divisions):
            below[p] += weights[order[i], p]
        if i + 1 == count or values[i + 1] != values[i]:
            for p in range(divisions):
                furthest[p] = max(furthest[p], abs(below[p]))
