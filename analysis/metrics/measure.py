"""From two surveys to metrics: every distance of every observable in every selection, with error, floor and pull."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from ..observables.observable import Observable
from ..survey.histograms import observable_edges
from ..survey.plan import SurveyPlan
from ..survey.selections import ALL, Selection
from ..survey.survey import Survey, vectors
from .checks import duplicates, memorisation, tails
from .distances import (
    MAX_COMPARED,
    Columns,
    Comparison1D,
    Draws,
    Draws3,
    Metric,
    compare_1d,
    earth_mover,
    mean_difference,
    scale_of,
    separation_power,
    spread_difference,
)
from .multivariate import correlated as correlated
from .multivariate import correlation_distance, manifold_metrics, physics_distances, thinned
from .permutation import overall

Array = NDArray[np.float64]
_EMD_ROWS = 10_000  # samples that its splits are drawn from
_EMD_SIZES = (500, 200, 100, 50, 20, 10)
FEWEST = 20  # reference or generated samples below which a bin is left out


def measure(
    reference: Survey, generated: Survey, plan: SurveyPlan, *, training: Survey | None = None
) -> dict[str, Metric]:
    """All metrics of one comparison by key, ``quantity/observable[bin]``.

    Args:
        reference: The reference.
        generated: The generated samples.
        plan: Shared by all surveys.
        training: What the surrogate was trained on, if generated samples shall be looked for in it.

    Keys:
        ``w1/O[B]``: Wasserstein-1 distance in the observable's unit; ``w1_sd/O[B]`` in reference standard deviations.
        ``separation/O[B]``: CaloChallenge's separation power, within the range of the bins; ``separation_flow/O[B]``
        counts what lies outside as two more bins.
        ``chi2/O[B]``: chi-square per degree of freedom, under- and overflow included.
        ``mean/O[B]``, ``spread/O[B]``, ``core/O[B]``: generated over reference mean, standard deviation and half width
        of the central 68 %, minus 1 (mean of signed observables: difference in reference standard deviations).
        ``score``: mean of all ``w1_sd`` in the bins. ``correlation``: root mean square difference of the correlation
        matrices. ``sliced_w1``, ``emd_SIZE``: whole samples. ``separation/voxel``: spectrum of voxels.
        ``nonfinite_voxels``, ``negative_voxels``, ...: how many.
        ``fpd_SIZE``, ``kpd_SIZE``, ``density``, ``coverage``: see :mod:`calogen.analysis.metrics.multivariate`.
        ``duplicates``, ``near_duplicates``, ``tail_low/O``, ``quantile_low/O``, ``late_conversion``, ...,
        ``memorisation``: see :mod:`calogen.analysis.metrics.checks`.
        ``overall``, ``overall_p``: the largest pull and its p-value, see :mod:`calogen.analysis.metrics.permutation`.
    """
    found = observable_metrics(reference, generated, plan)
    found.update(earth_mover_metrics(reference, generated, plan))
    found.update(spectrum_metrics(reference, generated, plan))
    if min(reference.table.shape[1], generated.table.shape[1]) >= FEWEST:
        found.update(physics_distances(reference, generated, plan))
        found.update(manifold_metrics(reference, generated, plan))
        found.update(duplicates(reference, generated, plan))
        found.update(tails(reference, generated, plan))
        found.update(overall(reference, generated, plan))
        if training is not None:
            found.update(memorisation(reference, generated, training, plan))
    samples = generated.count
    for name, count in generated.problems.items():
        unit = "voxels" if name.endswith("voxels") else "samples"
        found[name] = Metric(float(count), None, float(reference.problems[name]), None, None, samples, unit)
    return found


def observable_metrics(reference: Survey, generated: Survey, plan: SurveyPlan) -> dict[str, Metric]:
    """The metrics of single observables in every selection, their mean, and those of sums of voxels and correlations.

    See :func:`measure` for the keys.
    """
    found: dict[str, Metric] = {}
    table = plan.observables
    scaled: list[Draws3] = []
    binned = any(s.condition for s in plan.selections)
    for number, selection in enumerate(plan.selections):
        mine, other = (np.flatnonzero(side.members(selection)) for side in (reference, generated))
        if min(len(mine), len(other)) < FEWEST:
            continue
        # Splits hold at most half of what they are drawn from: more would cost memory and show nothing new.
        few, few_other = (rows[thinned(len(rows), 2 * MAX_COMPARED, plan.seed)] for rows in (mine, other))
        groups = reference.groups[few] if reference.groups is not None else None
        draws = Draws.make(len(few), len(few_other), plan.seed + number, groups=groups)
        for row, observable in enumerate(table.values()):
            r, g = reference.table[row, mine], generated.table[row, other]
            edges = observable_edges(observable, r)
            compared = compare_1d(reference.table[row, few], generated.table[row, few_other], edges, draws)
            found.update(_observable_metrics(observable, selection, compared, r, g, draws.n))
            if selection.condition or not binned:
                scaled.append(_scaled(compared.w1, 1 / scale_of(r)))
        if selection is ALL:
            projected = reference.projections[:, few], generated.projections[:, few_other]
            found["sliced_w1"] = _sliced(*projected, draws, plan)
            names = [reference.names.index(name) for name in correlated(plan)]
            columns = reference.table[names][:, few].T, generated.table[names][:, few_other].T
            found["correlation"] = Metric.from_splits(draws.each(correlation_distance, *columns), draws.n)
    if scaled:
        n = min(reference.table.shape[1] // 2, generated.table.shape[1], MAX_COMPARED)
        found["score"] = Metric.from_splits(_mean_draws(scaled), n, "sd")
    return found


def _observable_metrics(
    observable: Observable,
    selection: Selection,
    compared: Comparison1D,
    reference: NDArray[np.float32],
    generated: NDArray[np.float32],
    n: int,
) -> Iterable[tuple[str, Metric]]:
    name, unit = observable.name + selection.suffix, observable.unit
    yield f"w1/{name}", Metric.from_splits(compared.w1, n, unit)
    yield f"w1_sd/{name}", Metric.from_splits(compared.w1, n, "sd", scale=1 / scale_of(reference))
    yield f"separation/{name}", Metric.from_splits(compared.separation, n)
    yield f"separation_flow/{name}", Metric.from_splits(compared.separation_flow, n)
    yield f"chi2/{name}", Metric.from_splits(compared.chi2, n, "per ndf")
    sizes = min(len(reference), len(generated))
    # Differences of moments average to zero between halves of one sample: their floor is 0 without a split.
    value, error = mean_difference(reference, generated, signed=observable.signed)
    yield f"mean/{name}", Metric.of(value, error, 0.0, 0.0, sizes, "sd" if observable.signed else "")
    value, error = spread_difference(reference, generated)
    yield f"spread/{name}", Metric.of(value, error, 0.0, 0.0, sizes)
    if not observable.step:
        yield f"core/{name}", Metric.from_splits(compared.core, n)


def _scaled(draws: Draws3, factor: float) -> Draws3:
    first, second, third = (np.asarray(x) * factor for x in draws)
    return first, second, third


def _mean_draws(draws: list[Draws3]) -> Draws3:
    first, second, third = np.mean(np.asarray(draws), axis=0)
    return first, second, third


def _vector_unit(plan: SurveyPlan) -> str:
    if plan.family.kind == "map":
        return "ln(1+delta)"
    return "of incident energy" if plan.has_energy else "of the reference's mean deposited energy"


def _sliced(reference: Columns, generated: Columns, draws: Draws, plan: SurveyPlan) -> Metric:
    edges = np.array([0.0, 1.0])  # only the Wasserstein distances are of interest
    projected = [compare_1d(r, g, edges, draws).w1 for r, g in zip(reference, generated, strict=True)]
    return Metric.from_splits(_mean_draws(projected), draws.n, _vector_unit(plan))


def earth_mover_metrics(reference: Survey, generated: Survey, plan: SurveyPlan) -> dict[str, Metric]:
    """``emd_SIZE``: exact earth mover's distance of samples kept whole."""
    rows = [thinned(len(side.kept), _EMD_ROWS, plan.seed) for side in (reference, generated)]
    parts = (side.kept.select(r) for side, r in zip((reference, generated), rows, strict=True))
    r, g = (vectors(part, plan.fixed_scale) for part in parts)
    groups = None if reference.kept_groups is None else reference.kept_groups[rows[0]]
    sizes = [s for s in _EMD_SIZES if 2 * s <= len(r) and s <= len(g)]
    return {f"emd_{sizes[0]}": _exact(r, g, groups, sizes[0], plan)} if sizes else {}


def spectrum_metrics(reference: Survey, generated: Survey, plan: SurveyPlan) -> dict[str, Metric]:
    """``separation/voxel`` and ``empty_voxels``: the spectrum of voxels (pixels) of samples kept whole."""
    found: dict[str, Metric] = {}
    r, g = reference.kept, generated.kept
    if len(r) >= 4 and len(g) >= 2:
        draws = Draws.make(len(r), len(g), plan.seed, groups=reference.kept_groups)
        picked = [p.astype(np.float64) @ reference.kept_spectra for p in (draws.first, draws.second, draws.first_again)]
        mine = [p.astype(np.float64) @ generated.kept_spectra for p in (draws.generated, draws.generated_again)]
        pairs = [(picked[0], mine[0]), (picked[0], picked[1]), (picked[2], mine[1])]
        first, second, third = (separation_power(a[:, 1:-1], b[:, 1:-1]) for a, b in pairs)
        kind = "pixel" if plan.family.kind == "map" else "voxel"
        found[f"separation/{kind}"] = Metric.from_splits((first, second, third), draws.n)
        first, second, third = (a[:, 0] / a.sum(axis=1) for a in (mine[0], picked[1], mine[1]))
        base, base_again = (a[:, 0] / a.sum(axis=1) for a in (picked[0], picked[2]))
        if base.any() or first.any():
            empty = (first - base, second - base, third - base_again)
            found[f"empty_{kind}s"] = Metric.from_splits(empty, draws.n)
    return found


def _exact(r: Columns, g: Columns, groups: NDArray[np.integer] | None, size: int, plan: SurveyPlan) -> Metric:
    """Exact earth mover's distance of sub-samples of whole samples (N, V) and (M, V); groups of the former, (N,)."""
    draws = Draws.make(len(r), len(g), plan.seed, groups=groups, cap=size)
    found = []
    for s in range(len(draws.first)):
        half = r[draws.first[s]]
        found.append([earth_mover(half, g[draws.generated[s]]), earth_mover(half, r[draws.second[s]])])
    values, floors = np.transpose(found)
    return Metric.from_subsamples(values, floors, draws.n, min(len(r), len(g)), _vector_unit(plan))
