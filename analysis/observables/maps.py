"""The observables of density maps: one list."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np

from calogen.families import Family
from calogen.shards.samples import Samples

from .observable import Array, Observable
from .statistics import FLOOR_PIXEL, Shells, peak_mask, power_spectra

_LOG_QUANTILES = (5, 50, 95, 99)
_POWERS_SHOWN = 8


def map_observables(family: Family) -> Iterator[Observable]:
    """All observables of maps, measured from :class:`MapSums`. To add one, add an entry here."""
    shown = partial(Observable, figure="maps")
    yield shown("mean", r"map mean $\langle 1+\delta \rangle$", "", lambda s: s.flat.mean(axis=1))
    yield shown("std", r"map standard deviation $\sigma(\delta)$", "", lambda s: s.flat.std(axis=1))
    yield shown("maximum", r"brightest pixel $\max(1+\delta)$", "", lambda s: s.flat.max(axis=1), log=True)
    for row, percent in enumerate(_LOG_QUANTILES):
        label = rf"{percent} % quantile of $\ln(1+\delta)$"
        quantile = partial(lambda row, s: s.log_quantiles[row], row)
        yield shown(f"log_q{percent:02d}", label, "", quantile, signed=True)
    yield shown("peaks", "peaks (pixels above their 8 neighbours)", "", lambda s: s.peaks, step=1.0)
    unit, per_box = ("(Mpc/h)$^2$", " h/Mpc)") if family.box_size else ("pixel$^2$", ")")
    numbers = wave_numbers(family)
    some = range(0, len(numbers), max(1, len(numbers) // _POWERS_SHOWN))[:_POWERS_SHOWN]
    for row, k in enumerate(numbers):
        label, measure = rf"$P(k={k:.3g}$" + per_box, partial(lambda row, s: s.power[row], row)
        figure = "power" if row in some else ""
        yield Observable(f"power_{row + 1}", label, unit, measure, log=True, wave_number=float(k), figure=figure)


def wave_numbers(family: Family) -> Array:
    """Wave numbers of ``power_1``, ``power_2``, ... in h/Mpc, (K,)."""
    return Shells.of(family.sample_shape[:2], family.box_size).k


class MapSums:
    """What the observables of N maps follow from.

    Attributes:
        flat: The pixels of each map, (N, H * W).
        log_quantiles: Of the logarithm of its pixels, (Q, N).
        peaks: How many pixels are above their neighbours, (N,).
        power: Power spectra, (K, N).
    """

    def __init__(self, samples: Samples) -> None:
        maps = samples.values
        self.flat = maps.astype(np.float64).reshape(len(maps), -1)
        self.log_quantiles = np.percentile(np.log(np.maximum(self.flat, 0) + FLOOR_PIXEL), _LOG_QUANTILES, axis=1)
        self.peaks = np.count_nonzero(peak_mask(maps), axis=(1, 2)).astype(np.float64)
        self.power = power_spectra(maps, samples.family.box_size).T
