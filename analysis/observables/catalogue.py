"""Shower shapes and map statistics: what physicists measure on one sample, for many samples at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from calogen.families import Family
from calogen.shards.samples import Samples

from .axis import AxisSums, ShowerAxis, axis_observables
from .maps import MapSums, map_observables
from .observable import Array, Observable
from .showers import ShowerSums, shower_observables


class _Kind(NamedTuple):
    """The observables of one kind of family, what they are measured from, and how many samples at a time."""

    observables: Callable[[Family], Iterator[Observable]]
    sums: Callable[[Samples], ShowerSums | MapSums]
    rows: Callable[[Family], int]
    voxel: Callable[[Family], Observable]


_PIXEL = Observable("pixel", r"pixel $1+\delta$")
_KINDS = {
    "calorimeter": _Kind(
        shower_observables, ShowerSums, lambda _: 4096, lambda f: Observable("voxel", "voxel energy", f.unit)
    ),
    "map": _Kind(map_observables, MapSums, lambda f: max(1, 2**22 // f.voxels), lambda _: _PIXEL),
}


def catalogue(family: Family, *, energy: bool = True, axis: ShowerAxis | None = None) -> dict[str, Observable]:
    """All observables of a family by name, in the order in which :func:`observe` gives them.

    Args:
        family: What the samples are.
        energy: Whether the incident energies of showers are known; if not, what needs them is left out.
        axis: Where the axis of each shower is; without it, what is measured from there is left out.
    """
    found = _KINDS[family.kind].observables(family)
    chosen = [observable for observable in found if energy or not observable.needs_energy]
    return {observable.name: observable for observable in (*chosen, *(axis_observables(axis) if axis else ()))}


def voxel_of(family: Family) -> Observable:
    """What a single voxel or pixel is: ``voxel`` or ``pixel``, with label and unit."""
    return _KINDS[family.kind].voxel(family)


def observe(samples: Samples, axis: ShowerAxis | None = None, *, scored: bool = False) -> dict[str, Array]:
    """Every observable of every sample.

    Sums run in float64, over chunks of samples, so memory stays bounded for families of any size.

    Args:
        samples: N samples in physical units (MeV for showers).
        axis: Where the axis of each shower is; without it, what is measured from there is left out.
        scored: Whether to leave out those that scores and classifiers do without.

    Returns:
        By name, (N,) float64 in the unit that :func:`catalogue` says; showers without incident energies have no
        ``response``.
    """
    family, kind = samples.family, _KINDS[samples.family.kind]
    energy = family.energy is None or family.energy.name in samples.conditions
    known = catalogue(family, energy=energy, axis=axis)
    if scored:
        known = {name: observable for name, observable in known.items() if observable.scored}
    table = np.zeros((len(known), len(samples)))
    rows = kind.rows(family)
    for start in range(0, len(samples), rows):
        part = samples.read(start, start + rows)
        shared = {False: kind.sums(part), **({True: AxisSums(axis, part)} if axis else {})}
        for row, observable in zip(table, known.values(), strict=True):
            row[start : start + rows] = observable.measure(shared[observable.about_axis])
    return dict(zip(known, table, strict=True))
