"""Which symmetries of a read-out its showers have: showers against their images."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...families import Family, Image, Motion, Symmetry
from ...shards.samples import Samples
from ..conditions import scaling

ALARM = 1e-3
"""Probability that a symmetry which holds is rejected."""
FEWEST = 200
"""Showers with energy below which no symmetry is tested."""
_MOST = 20_000  # showers looked at: they show a lop-sidedness of a few per mille, in seconds
_GROUPS = 1000  # of showers that are exchanged with their images together
_EXCHANGES = 1999  # with what is observed 2,000, of which the two largest have p <= ALARM
_HARMONICS = 4
_MOMENTS = 3 * 2 * _HARMONICS  # of a layer
_OUTSIDE, _MARGIN = 0.01, 0.05  # share of images that may lie outside the trained range by more of its width
_POWERS = 3  # of conditions
_ROWS = 1024  # at a time

Columns = NDArray[np.float32]


class Verdict(NamedTuple):
    """What showers say of a symmetry of their read-out.

    Attributes:
        symmetry: Its name.
        holds: Whether it is used.
        reason: Why, or why not.
    """

    symmetry: Symmetry
    holds: bool
    reason: str

    def __str__(self) -> str:
        """For the log."""
        return f"{self.symmetry} is {'used' if self.holds else 'not used'} ({self.reason})"


def judge(samples: Samples, conditions: Sequence[str]) -> list[Verdict]:
    """Which symmetries of the read-out are the showers', too: a two-sample test of each that their family has.

    It compares where energy and hits of every layer lie, in angle and radius, in each shower and in its image: the mean
    difference must be 0. The largest of all mean differences, in standard errors, is calibrated by exchanging showers
    with their images at random, so that a symmetry which holds is rejected with probability ``ALARM``. A symmetry that
    moves conditions is tested at equal conditions: what their powers explain is taken out of the differences first.
    One that moves them out of the trained range is not used, since no shower there could contradict it.

    Args:
        samples: Training showers.
        conditions: Names of those that are trained with.
    """
    rows = np.flatnonzero(samples.values.any(1))
    rows = rows[:: max(1, math.ceil(len(rows) / _MOST))]
    family, array, verdicts = samples.family, samples.conditions.array(conditions)[rows], []
    for symmetry in family.symmetries:
        image = family.with_symmetries([symmetry]).images[1]
        motion = family.motion(image, conditions)
        if motion is None:
            unknown = [name for name in conditions if family.motion(image, [name]) is None]
            verdicts.append(Verdict(symmetry, False, f"what it does to {', '.join(unknown)} is not known"))
        elif len(rows) and (outside := _outside(array, motion)).any():
            names = ", ".join(itertools.compress(conditions, outside))
            verdicts.append(Verdict(symmetry, False, f"it moves {names} out of the trained range"))
        elif len(rows) < FEWEST:
            verdicts.append(Verdict(symmetry, True, f"not tested: {len(rows)} showers are too few"))
        else:
            codes = [(place, code) for place, n in enumerate(conditions) for code in range(len(family.labels(n)))]
            labels = [array[:, place] == code for place, code in codes]
            differences = _differences(samples, rows, image, labels)
            odd = _odd_powers(array, family, conditions, motion)
            p, largest, layer = _largest(differences, odd, len(family.layers))
            where = "all layers together" if layer is None else f"layer {family.layer_numbers[layer]}"
            verdicts.append(Verdict(symmetry, p > ALARM, f"p = {p:.2g}, {largest:.1f} standard errors in {where}"))
    return verdicts


def _outside(conditions: Columns, motion: Motion) -> NDArray[np.bool_]:
    """Which conditions (C,) of images lie outside the range of the showers' own (N, C)."""
    low, high = conditions.min(0), conditions.max(0)
    moved, margin = motion(conditions), _MARGIN * (high - low)
    return np.asarray(((moved < low - margin) | (moved > high + margin)).mean(0) > _OUTSIDE)


def _differences(
    samples: Samples, chosen: NDArray[np.int64], image: Image, labels: Sequence[NDArray[np.bool_]]
) -> Columns:
    """Moments of showers less those of their images, (N, M): of each layer and of all, for all showers and each label.

    Moments are harmonics in the angle of the energy, without and with the radius as a weight, and of the hits.

    Args:
        samples: Showers.
        chosen: Rows of those looked at, (N,).
        image: What they are compared with.
        labels: Which of them have each label, (N,) each.
    """
    family, back = samples.family, image.order.argsort()
    x, y = family.centres.T
    angle, radius = np.arctan2(y, x), np.hypot(x, y)
    waves = [wave(m * angle) for m in range(1, _HARMONICS + 1) for wave in (np.cos, np.sin)]
    weights = np.stack([*waves, *(wave * radius / radius.max() for wave in waves)], 1)
    contrasts = (weights - weights[back]).astype(np.float32)
    found = np.empty((len(chosen), len(family.layers) + 1, _MOMENTS), np.float32)
    for start in range(0, len(chosen), _ROWS):
        rows = slice(start, start + _ROWS)
        showers = samples.values[chosen[rows]]
        hits = (showers > 0).astype(np.float32)
        # Shares of the energy scatter with one over its root: so all energies count.
        showers, hits = (a / np.sqrt(a.sum(1, keepdims=True)) for a in (showers, hits))
        for i, part in enumerate(family.layer_slices):
            found[rows, i, : 2 * len(waves)] = showers[:, part] @ contrasts[part]
            found[rows, i, 2 * len(waves) :] = hits[:, part] @ contrasts[part, : len(waves)]
    found[:, -1] = found[:, :-1].sum(1)
    # What is odd of one particle may be opposite for another, and cancel in all.
    flat = found.reshape(len(found), -1)
    return np.concatenate([flat, *(flat * mine[:, None] for mine in labels)], 1)


def _odd_powers(conditions: Columns, family: Family, names: Sequence[str], motion: Motion) -> Columns:
    """Products of up to three conditions, less those of the image's conditions, (N, P); none if it moves none."""
    if motion.still:
        return np.empty((len(conditions), 0), np.float32)
    offset, slope, logarithmic = scaling(family, names)
    azimuth = motion.period > 0
    powers = []
    for columns in (conditions, motion(conditions)):
        plain = np.where(logarithmic, np.log(np.where(logarithmic, columns, 1)), columns) * slope + offset
        angles = 2 * np.pi * columns[:, azimuth] * motion.rate[azimuth]
        basis = np.concatenate([plain[:, ~azimuth], np.cos(angles), np.sin(angles)], 1)
        chosen = (itertools.combinations_with_replacement(basis.T, n + 1) for n in range(_POWERS))
        powers.append(np.stack([np.prod(factors, 0) for factors in itertools.chain(*chosen)], 1))
    return np.asarray(powers[0] - powers[1], np.float32)


def _largest(differences: Columns, odd: Columns, layers: int) -> tuple[float, float, int | None]:
    """p-value of no difference, the largest mean difference in standard errors, and its layer (none: all).

    Args:
        differences: (N, M); their signs change when a shower and its image are exchanged.
        odd: What may explain them, (N, P); their signs change with them.
        layers: L.
    """
    count, moments = differences.shape
    # An exchange changes the signs of both, so all products stay as they are, and with them every coefficient from here
    # on: showers exchanged at random are what the showers might as well have been.
    slopes = np.linalg.lstsq(odd, differences, rcond=1e-5)[0] if odd.shape[1] else np.zeros((0, moments))
    rest = differences - (odd @ slopes).astype(np.float32)
    size = np.sqrt(np.square(rest, dtype=np.float64).sum(0))
    kept = np.flatnonzero(size > 1e-6 * size.max())
    if not len(kept):  # no layer that the symmetry moves has energy
        return 1.0, 0.0, None
    rest = rest[:, kept] / size[kept].astype(np.float32)

    # Differences as they are, and what is left of each beside all others: the swing of a shower moves many layers
    # alike, and a single lop-sided one stands out when it is taken away.
    alike = (rest.T @ rest).astype(np.float64)
    apart = np.linalg.inv(alike + np.eye(len(kept)) * (0.01 + len(kept) / count))
    apart /= np.sqrt(np.einsum("ij,jk,ki->i", apart, alike, apart, optimize=True))
    groups = np.zeros((min(_GROUPS, count), len(kept)))
    np.add.at(groups, np.arange(count) % len(groups), rest)
    sums = np.concatenate([groups, groups @ apart], 1).astype(np.float32)

    observed = np.abs(sums.sum(0))
    signs = 2 * np.random.default_rng(0).integers(0, 2, (_EXCHANGES, len(groups))).astype(np.float32) - 1
    as_large = np.count_nonzero(np.abs(signs @ sums).max(1) >= observed.max())
    moment = kept[observed.argmax() % len(kept)]
    layer = int(moment // _MOMENTS % (layers + 1))
    return float(1 + as_large) / (1 + _EXCHANGES), float(observed.max()), layer if layer < layers else None
