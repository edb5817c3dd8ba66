"""Position resolution: how well cells tell where the axis of a shower is, in the reference and in generated showers."""

from __future__ import annotations

from functools import partial

import numpy as np
from numpy.typing import NDArray

from ..observables.axis import pitch, resolved, robust_fit
from ..survey.plan import SurveyPlan
from ..survey.survey import Survey
from .distances import MAX_COMPARED, Columns, Draws
from .multivariate import thinned
from .registry import Key, Metric, Quantity

Array = NDArray[np.float64]
_FEWEST = 50  # showers of a layer that a regression is fitted to
_LAYERS = 4  # with most energy
_HARMONICS = (1, 2)  # of the cells' pitch, in which the centroid bends away from the true position

_POSITION = (
    "Where the axis crosses a layer, reconstructed from the layer's centroid by a regression that is fitted to the "
    "reference and applied to both sides: half width of the central 68 %, root mean square and median of reconstructed "
    "minus true position. The floor is what reference showers give."
)
POSITION_CORE = Quantity("position_core", "position resolution (core)", _POSITION, unit="mm", headline=True)
POSITION_RMS = Quantity("position_rms", "position resolution (root mean square)", _POSITION, unit="mm")
POSITION_BIAS = Quantity("position_bias", "bias of the position", _POSITION, unit="mm")
_ON_AXIS = (
    "Share of showers whose hottest cells along an axis of a layer (those of equal position are added) lie within one "
    "cell of where the shower's axis crosses the layer. The floor is the share in the reference."
)
ON_AXIS = Quantity("on_axis", "hottest cells within one cell of the axis", _ON_AXIS, headline=True)


def position_metrics(reference: Survey, generated: Survey, plan: SurveyPlan) -> dict[Key, Metric]:
    """``position_core``, ``position_rms`` and ``position_bias`` of centroids, ``on_axis`` of the hottest cells.

    Of the four layers with most energy, along the axes that they resolve, of showers with energy there. Nothing where
    conditions do not say where the axis is, or of a layer that too few showers reach.
    """
    found: dict[Key, Metric] = {}
    if plan.shower_axis is None:
        return found
    sides, layers = (reference, generated), dict(zip(plan.family.layer_numbers, plan.family.layers, strict=True))
    means = {number: float(_column(reference, f"energy_{number}").mean()) for number in layers}
    for number in sorted(sorted(layers, key=lambda number: -means[number])[:_LAYERS]):
        hit = [np.flatnonzero(_column(side, f"energy_{number}") > 0) for side in sides]
        rows = [mine[thinned(len(mine), 2 * MAX_COMPARED, plan.seed)] for mine in hit]
        if min(len(rows[0]) // 2, len(rows[1])) < _FEWEST:
            continue
        draws = Draws.make(len(rows[0]), len(rows[1]), plan.seed + 3)
        for k, name in resolved(layers[number]).items():
            observables = [f"{part}_{name}_{number}" for part in ("centre", "offset", "hottest")]
            columns = [
                np.stack([_column(side, o)[mine] for o in observables], axis=1)
                for side, mine in zip(sides, rows, strict=True)
            ]
            spacing = pitch(layers[number], k)
            measured = draws.each(partial(_position, spacing), *columns)
            for quantity, values in zip((POSITION_CORE, POSITION_RMS, POSITION_BIAS), measured, strict=False):
                found[Key(quantity, observables[0])] = Metric.from_splits(values, draws.n, quantity.unit)
            if spacing:
                found[Key(ON_AXIS, observables[2])] = Metric.from_splits(measured[3], draws.n)
    return found


def _column(side: Survey, name: str) -> Array:
    return np.asarray(side.table[side.names.index(name)], np.float64)


def _position(spacing: float, own: Columns, tested: Columns) -> Array:
    """Core, root mean square and median of reconstructed minus true positions, and the share of hottest cells near.

    Args:
        spacing: Of the cells along this axis in mm; 0 where they are not equally spaced.
        own: Centroid and hottest position of N showers, each but the first less the true position, (N, 3) in mm: the
            reconstruction is fitted to them.
        tested: The same of M showers, on which it is tried.
    """
    coefficients = robust_fit(_features(own[:, 0], spacing), own[:, 0] - own[:, 1])
    away = _features(tested[:, 0], spacing) @ coefficients - (tested[:, 0] - tested[:, 1])
    low, median, high = np.quantile(away, (0.16, 0.5, 0.84))
    near = np.mean(np.abs(tested[:, 2]) < spacing)
    return np.array([(high - low) / 2, np.sqrt(np.mean(away**2)), median, near])


def _features(centroid: Columns, spacing: float) -> Array:
    """What the position is a linear function of, (N, F): the centroid, and waves that repeat with the cells.

    A narrow shower inside a wide cell pulls the centroid to the cell's middle, wherever in the cell it is.
    """
    columns = [np.ones_like(centroid), centroid]
    for harmonic in _HARMONICS if spacing else ():
        phase = 2 * np.pi * harmonic / spacing * centroid
        columns += [np.sin(phase), np.cos(phase)]
    return np.stack(columns, axis=1)
