"""From two surveys to metrics: every distance of every observable in every selection, with error, floor and pull."""

from __future__ import annotations

from functools import partial

import numpy as np
from numpy.typing import NDArray

from calogen.stages import counted, stage

from ..survey.histograms import observable_edges
from ..survey.plan import SurveyPlan
from ..survey.selections import ALL
from ..survey.survey import Survey
from .checks import binomial_share, duplicates, memorisation, tails
from .distances import (
    CORE,
    EMD,
    MAX_COMPARED,
    SLICED_W1,
    UNEQUAL,
    W1,
    W1_SD,
    Draws,
    compare_1d,
    earth_mover,
    moment_differences,
    scale_of,
    separation_power,
    unequal,
)
from .equivalent import equivalent_numbers
from .kinds import kind_of
from .multivariate import CORRELATION, correlation_distance, manifold_metrics, physics_distances, some_vectors, thinned
from .permutation import overall
from .position import position_metrics
from .registry import Key, Metric, Quantity

Array = NDArray[np.float64]
_EMD_ROWS = 10_000  # samples that its splits are drawn from
_EMD_SIZES = (500, 200, 100, 50, 20, 10)
FEWEST = 20  # reference or generated samples below which a bin is left out

_SCORE = "Mean of w1_sd over all observables and bins of the conditions, but those that the reference has constant."
SCORE = Quantity("score", "mean distance (sd)", _SCORE, unit="sd", headline=True, large=True)
PROBLEMS = {
    name: Quantity(name, text, f"How many {text}.", unit, headline=True)
    for name, unit, text in (
        ("nonfinite_voxels", "voxels", "voxels are not finite"),
        (
            "nonfinite_samples",
            "samples",
            "samples have voxels that are not finite; they are left out of every other number",
        ),
        ("negative_voxels", "voxels", "voxels are negative"),
        ("response_too_high", "samples", "showers deposit more energy than the family allows"),
        ("dropped_samples", "samples", "bad samples were dropped while reading and are in no number"),
    )
}
"""What is unphysical; tables show those that there are."""
PARTS = (
    equivalent_numbers,
    physics_distances,
    manifold_metrics,
    duplicates,
    tails,
    position_metrics,
    overall,
)
"""What is measured where there are enough samples. To add a metric, add a function of reference, generated samples and
plan that gives it by its key; its :class:`Quantity` says where it is shown."""


def measure(
    reference: Survey, generated: Survey, plan: SurveyPlan, *, training: Survey | None = None
) -> dict[Key, Metric]:
    """The metrics of one comparison that need nothing but the two surveys.

    Args:
        reference: The reference.
        generated: The generated samples.
        plan: Shared by all surveys.
        training: What the surrogate was trained on, if generated samples shall be looked for in it.
    """
    sides = reference, generated, plan
    found = observable_metrics(*sides)
    stage("whole samples and voxels")
    found |= earth_mover_metrics(*sides) | spectrum_metrics(*sides)
    if min(reference.table.shape[1], generated.table.shape[1]) >= FEWEST:
        for number, part in enumerate(PARTS):
            stage(part.__name__.replace("_", " "), number, len(PARTS))
            found |= part(*sides)
        if training is not None:
            found |= memorisation(reference, generated, training, plan)
    for name, count in generated.problems.items():
        floor, unit = float(reference.problems[name]), PROBLEMS[name].unit
        found[Key(PROBLEMS[name])] = Metric(float(count), None, floor, None, None, generated.count, unit)
    return found


def observable_metrics(reference: Survey, generated: Survey, plan: SurveyPlan) -> dict[Key, Metric]:
    """The metrics of single observables in every selection, their mean, and those of projections and correlations."""
    found: dict[Key, Metric] = {}
    scaled: list[Array] = []
    binned = any(s.condition for s in plan.selections)
    count = len(plan.selections)
    for number, selection in enumerate(counted("observables, bin by bin", plan.selections, count)):
        mine, other = (np.flatnonzero(side.members(selection)) for side in (reference, generated))
        if min(len(mine), len(other)) < FEWEST:
            continue
        # Splits hold at most half of what they are drawn from: more would cost memory and show nothing new.
        few, few_other = (rows[thinned(len(rows), 2 * MAX_COMPARED, plan.seed)] for rows in (mine, other))
        groups = reference.groups[few] if reference.groups is not None else None
        draws = Draws.make(len(few), len(few_other), plan.seed + number, groups=groups)
        for row, observable in enumerate(plan.observables.values()):
            columns, finest = (reference.table[row], generated.table[row]), observable.resolution
            scale = scale_of(columns[0][mine], finest)
            if scale == 0:
                apart = unequal(columns[0][mine], columns[1][other], finest)
                found[Key(UNEQUAL, observable.name, selection)] = binomial_share(apart, np.zeros(len(mine), dtype=bool))
                if not apart.any():  # of equal values, distances and pulls would be those of rounding errors
                    columns = (
                        np.full_like(columns[0], columns[0][mine][0]),
                        np.full_like(columns[1], columns[0][mine][0]),
                    )
            r, g = columns[0][mine], columns[1][other]
            edges = observable_edges(observable, r)
            compared = compare_1d(columns[0][few], columns[1][few_other], edges, draws, finest)
            compared[W1_SD] = compared[W1] / scale if scale else np.where(compared[W1] == 0, 0, np.nan)
            if observable.step:
                del compared[CORE]  # moves in steps
            for quantity, splits in compared.items():
                unit = observable.unit if quantity is W1 else quantity.unit
                found[Key(quantity, observable.name, selection)] = Metric.from_splits(splits, draws.n, unit)
            moments = moment_differences(r, g, signed=observable.signed, resolution=finest)
            for quantity, metric in moments.items():
                found[Key(quantity, observable.name, selection)] = metric
            if scale and observable.scored and (selection.condition or not binned):
                scaled.append(compared[W1_SD])
        if selection is ALL:
            pairs = zip(reference.projections[:, few], generated.projections[:, few_other], strict=True)
            edges = np.array([0.0, 1.0])  # only the Wasserstein distances are of interest
            sliced = np.mean([compare_1d(r, g, edges, draws)[W1] for r, g in pairs], axis=0)
            found[Key(SLICED_W1)] = Metric.from_splits(sliced, draws.n, _vector_unit(plan))
            names = [reference.names.index(name) for name in kind_of(plan.family).correlated(plan)]
            tables = reference.table[names][:, few].T, generated.table[names][:, few_other].T
            correlations = partial(correlation_distance, resolution=plan.resolutions[names])
            found[Key(CORRELATION)] = Metric.from_splits(draws.each(correlations, *tables), draws.n)
    if scaled:
        n = min(reference.table.shape[1] // 2, generated.table.shape[1], MAX_COMPARED)
        found[Key(SCORE)] = Metric.from_splits(np.mean(scaled, axis=0), n, SCORE.unit)
    return found


def _vector_unit(plan: SurveyPlan) -> str:
    return kind_of(plan.family).vector_units[0 if plan.has_energy else 1]


def earth_mover_metrics(reference: Survey, generated: Survey, plan: SurveyPlan) -> dict[Key, Metric]:
    """``emd_SIZE``: exact earth mover's distance of sub-samples of the samples kept whole."""
    (r, groups), (g, _) = (some_vectors(side, plan, _EMD_ROWS) for side in (reference, generated))
    size = next((s for s in _EMD_SIZES if 2 * s <= len(r) and s <= len(g)), None)
    if size is None:
        return {}
    draws = Draws.make(len(r), len(g), plan.seed, groups=groups, cap=size)
    found = [[earth_mover(first, z) for z in others] for first, *others in draws.parts(r, g)]
    values, floors = np.transpose(found)
    metric = Metric.from_subsamples(values, floors, draws.n, min(len(r), len(g)), _vector_unit(plan))
    return {Key(EMD, size=size): metric}


def spectrum_metrics(reference: Survey, generated: Survey, plan: SurveyPlan) -> dict[Key, Metric]:
    """``separation/voxel`` and ``empty_voxels``: the spectrum of voxels (pixels) of samples kept whole."""
    found: dict[Key, Metric] = {}
    r, g, kind = reference.kept, generated.kept, kind_of(plan.family)
    if len(r) >= 4 and len(g) >= 2:
        draws = Draws.make(len(r), len(g), plan.seed, groups=reference.kept_groups)
        spectra = reference.kept_spectra.astype(np.float64), generated.kept_spectra.astype(np.float64)
        pairs = draws.pairs(lambda p: p.astype(np.float64) @ spectra[0], lambda p: p.astype(np.float64) @ spectra[1])
        separations = [separation_power(a[:, 1:-1], b[:, 1:-1]) for a, b in pairs]
        found[Key(kind.spectrum)] = Metric.from_splits(separations, draws.n)
        shares = [[side[:, 0] / side.sum(axis=1) for side in pair] for pair in pairs]
        if shares[0][0].any() or shares[0][1].any():
            found[Key(kind.empty)] = Metric.from_splits([b - a for a, b in shares], draws.n)
    return found
