"""What the surveys of one comparison share: bins, edges, examples and sizes, decided by a look at the reference."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import hist
import numpy as np
from numpy.typing import NDArray

from calogen.errors import ShardError
from calogen.families import Family
from calogen.shards.reader import Source

from ..observables.axis import ShowerAxis
from ..observables.catalogue import catalogue, observe, voxel_of
from ..observables.observable import Observable
from .histograms import observable_edges, spectrum_axis
from .selections import Selection, selections

Array = NDArray[np.float64]
PROJECTIONS = 64
_QUANTILES = np.array([0.125, 0.375, 0.625, 0.875])  # of conditions, at which examples are shown
KEPT = 10_000  # whole samples kept for exact earth mover's distances, classifiers and the voxel spectrum's floor
_KEPT_BYTES = 2**28
_ROWS = 750_000  # samples whose observables are kept one by one
_ROWS_BYTES = 2**29
_GLANCED = 2**14  # reference samples that decide bins and edges
_GLANCED_BYTES = 2**25  # read at a time
_FEWEST_GLANCED = 50  # of them in a selection, for edges of its own


@dataclass(frozen=True)
class SurveyPlan:
    """What every survey of one comparison must share; decided by the reference.

    Attributes:
        family: What a sample is; with the read-out threshold below which voxels of every side are taken as 0.
        selections: All samples, then the bins of each condition.
        axis: Axis of the voxel spectrum.
        edges: By observable, and of single voxels, histogram edges of each selection.
        targets: Conditions of the example samples, (T, C), in the family's order and units; their deposited energies,
            (T, 1), where incident energies are not known.
        seed: Decides directions and which whole samples are kept.
        fixed_scale: What whole showers are divided by where some of them have no incident energies: the reference's
            mean deposited energy. None where every shower is divided by its own incident energy.
        kept: Whole samples to keep of each side, at most.
        rows: Samples of each side whose observables are kept, at most; of more, a seeded subset.
        shower_axis: Where the axis of each shower is; None if conditions do not say.
    """

    family: Family
    selections: tuple[Selection, ...]
    axis: hist.axis.Regular
    edges: Mapping[str, tuple[Array, ...]]
    targets: Array
    seed: int
    fixed_scale: float | None = None
    kept: int = KEPT
    rows: int = _ROWS
    shower_axis: ShowerAxis | None = None

    @property
    def has_energy(self) -> bool:
        """Whether nothing is left out for want of incident energies; true for maps."""
        return self.fixed_scale is None

    @property
    def observables(self) -> dict[str, Observable]:
        """The observables that every side has, by name."""
        return catalogue(self.family, energy=self.has_energy, axis=self.shower_axis)

    @property
    def resolutions(self) -> Array:
        """The resolution of every observable in its unit, (K,)."""
        return np.array([observable.resolution for observable in self.observables.values()])


def common_conditions(family: Family, sides: Sequence[Collection[str]]) -> list[str]:
    """The family's conditions that a comparison uses.

    All of them, so that a side which lacks one is noticed; but a surrogate need not be conditioned on the incident
    energy, so where showers come without it, whatever else every side has.

    Args:
        family: What the samples are.
        sides: Names of the conditions that each side has.
    """
    names = [c.name for c in family.conditions]
    if family.energy is None or all(family.energy.name in side for side in sides):
        return names
    return [n for n in names if all(n in side for side in sides)]


def plan_comparison(
    reference: Source,
    *,
    bins: int,
    seed: int,
    others: Mapping[str, Collection[str]] | None = None,
    kept: int = KEPT,
    more: Sequence[Selection] = (),
    threshold: float | None = None,
) -> SurveyPlan:
    """Selections, axes and example energies, from reference samples spread evenly over the source.

    Args:
        reference: The reference.
        bins: Bins of each condition.
        seed: See :class:`SurveyPlan`.
        others: Names of the conditions of the sides to be compared with it.
        kept: Whole samples to keep of each side; fewer if they would take more than 256 MiB.
        more: Selections to be added to the bins.
        threshold: For all sides, in the family's unit (none: the reference's).

    Raises:
        ShardError: If the reference is empty, or none of the samples looked at can be used.
    """
    family = reference.family
    if threshold is not None and threshold != family.threshold:
        family = family.model_copy(update={"threshold": threshold})
    table, found, low, high = _glance(reference, family)
    common = common_conditions(family, [found, *(others or {}).values()])
    conditions = {name: values for name, values in found.items() if name in common}
    shower_axis = ShowerAxis.fit(family, table, {n: v for n, v in found.items() if n in _everywhere(common, others)})
    if shower_axis is not None:
        table = _glance(reference, family, shower_axis)[0]
    fixed_scale, targets = None, _example_targets(family, conditions)
    if family.energy is not None and family.energy.name not in common:
        deposited = table["total_energy"]
        fixed_scale = float(deposited.mean()) or 1.0
        targets = np.quantile(deposited, _QUANTILES)[:, None]
    chosen = (*selections(family, conditions, bins), *more)
    kept = max(1, min(kept, _KEPT_BYTES // (4 * family.voxels)))
    rows = max(kept, min(_ROWS, _ROWS_BYTES // (4 * (len(table) + PROJECTIONS))))
    axis = spectrum_axis(voxel_of(family), max(low, high * 1e-9), 2 * high)
    # Histogram edges are those of all samples in selections with too few.
    count = len(next(iter(table.values())))
    members = [selection.of(conditions, count) for selection in chosen]
    own = [mine if np.count_nonzero(mine) >= _FEWEST_GLANCED else np.ones(count, dtype=bool) for mine in members]
    edges = {
        name: tuple(observable_edges(observable, table[name][mine].astype(np.float32)) for mine in own)
        for name, observable in catalogue(family, energy=fixed_scale is None, axis=shower_axis).items()
    }
    return SurveyPlan(
        family=family,
        selections=chosen,
        axis=axis,
        edges={**edges, axis.name: (np.asarray(axis.edges),) * len(chosen)},
        targets=targets,
        seed=seed,
        fixed_scale=fixed_scale,
        kept=kept,
        rows=rows,
        shower_axis=shower_axis,
    )


def _everywhere(names: Collection[str], others: Mapping[str, Collection[str]] | None) -> list[str]:
    """Those of some conditions that every other side has."""
    return [name for name in names if all(name in side for side in (others or {}).values())]


def read_out(values: NDArray[np.float32], threshold: float) -> NDArray[np.float32]:
    """Voxels (N, V) with those below a read-out threshold as 0; the same array where there is none."""
    return values if threshold <= 0 else np.where(values < np.float32(threshold), np.float32(0), values)


def _glance(
    reference: Source, family: Family, shower_axis: ShowerAxis | None = None
) -> tuple[dict[str, Array], dict[str, NDArray[np.floating[Any]]], float, float]:
    """Some reference samples as the family reads them out, spread evenly over the source.

    Those with voxels that are not finite are left out.

    Returns:
        Their observables and conditions by name, (n,) each, and the smallest and largest voxel above 0.
    """
    count, voxels = len(reference), reference.family.voxels
    if count == 0:
        raise ShardError("the reference has no samples", hint="give a file or folder with samples")
    width = max(1, min(256, _GLANCED_BYTES // (4 * voxels)))
    parts = max(16, _GLANCED // (256 * max(1, voxels // 1000)))  # fewer of large samples
    starts = np.arange(0, count, width)
    if count > parts * width:
        starts = np.linspace(0, count - width, parts).astype(int)
    tables, conditions, low, high = [], [], np.inf, 0.0
    for start in starts.tolist():
        part = reference.read(start, min(start + width, count))
        part = part.select(np.isfinite(part.values.reshape(len(part), voxels)).all(axis=1))
        if not len(part):
            continue
        part = replace(part, family=family, values=read_out(part.values, family.threshold))
        positive = part.values[part.values > 0]
        if len(positive):
            low, high = min(low, float(positive.min())), max(high, float(positive.max()))
        tables.append(observe(part, shower_axis))
        conditions.append(part.conditions)
    if not tables:
        raise ShardError(
            "no sample of the reference can be used",
            where="reference",
            expected="at least one sample whose values are all finite",
            found=f"{count} rows, all of them bad" if getattr(reference, "dropped", 0) else f"{count} samples",
        )
    table, found = (
        {name: np.concatenate([part[name] for part in parts]) for name in parts[0]} for parts in (tables, conditions)
    )
    return (table, found, low, high) if high else (table, found, 0.1, 1.0)


def _example_targets(family: Family, conditions: Mapping[str, NDArray[np.floating[Any]]]) -> Array:
    """Conditions at which samples are shown, (T, C), all of them those of a reference sample.

    Nearest to quantiles of the first, medians of the others, labels in turn: samples that were generated at the
    reference's conditions then have the very same.
    """
    known = [c for c in family.conditions if c.name in conditions]
    if not known:
        return np.zeros((len(_QUANTILES), 0))
    wanted = [
        np.resize(np.unique(conditions[c.name]), len(_QUANTILES)).astype(np.float64)
        if c.labels
        else np.quantile(conditions[c.name], np.full_like(_QUANTILES, 0.5) if position else _QUANTILES)
        for position, c in enumerate(known)
    ]
    places = np.stack([conditions[c.name].astype(np.float64) for c in known], axis=1)
    scale = example_scale(family, [c.name for c in known])
    rows: list[int] = []
    for target in np.stack(wanted, axis=1):
        away = np.sum(((places - target) / scale) ** 2, axis=1)
        if len(rows) < len(places):
            away[rows] = np.inf  # each sample is shown once
        rows.append(int(np.argmin(away)))
    return places[rows]


def example_scale(family: Family, names: Sequence[str]) -> Array:
    """What a difference in each condition is compared with when samples are matched, (C,).

    Ranges, of the first condition a twentieth: it says most about how a sample looks. Labels must be equal.
    """
    ranges = [1e-3 if c.labels else (c.high - c.low) or 1.0 for c in map(family.condition, names)]
    return np.array([*(0.05 * scale for scale in ranges[:1]), *ranges[1:]])


def directions(dimensions: int, count: int, seed: int) -> Array:
    """Random unit vectors, uniform on the sphere, (dimensions, count)."""
    vectors = np.random.default_rng(seed).normal(size=(dimensions, count))
    return np.asarray(vectors / np.linalg.norm(vectors, axis=0))
