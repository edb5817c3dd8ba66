"""What showers are compared by and what maps are: the only place in this package that asks which a family has."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from calogen.families import Family

from ..survey.plan import SurveyPlan
from ..survey.survey import Survey
from .registry import Quantity

Array = NDArray[np.float64]
Rows = NDArray[np.int64]
Values = NDArray[np.float32]
_MAIN_LAYERS = 8
LENGTHS = ("centre_x", "centre_y", "width_x", "width_y")  # that CaloChallenge's features have of each layer
_EMPTY = 1e-8  # MeV added before the logarithm of a layer's energy, as in CaloChallenge


@dataclass(frozen=True)
class Change:
    """A small change of reference samples that a classifier worth its name must see.

    Attributes:
        title: What is different.
        make: From values of samples (N, ...) and a random generator to the changed values.
    """

    title: str
    make: Callable[[Values, np.random.Generator], Values]


@dataclass(frozen=True)
class Kind:
    """What differs between showers and maps when samples are compared.

    Attributes:
        noun: What samples are called.
        spectrum: The separation power of the values of single voxels.
        empty: The difference of the shares of empty voxels.
        vector_units: Of distances between whole samples, with and without incident energies.
        nearness: From whole samples as vectors (N, V) to the space of nearest neighbours.
        features: What FPD and KPD are measured on, for some of a survey's columns, (rows, F).
        main: Observables whose tails are compared.
        modes: Observables whose joint distribution shows whether kinds of samples are missing.
        correlated: Observables whose correlations are compared: about twenty.
        shown: Quantities whose mean and spread tables show after the headlines; those of layers only if they are few.
        views: What classifiers are shown.
        changes: By name, what classifiers must see.
        recipes: How classifiers may be trained.
        ensembles: Whether single samples scatter so much that ensembles are judged, too.
    """

    noun: str
    spectrum: Quantity
    empty: Quantity
    vector_units: tuple[str, str]
    nearness: Callable[[Values], Values]
    features: Callable[[Survey, SurveyPlan, Rows], Array]
    main: Callable[[Survey, SurveyPlan], list[str]]
    modes: Callable[[Survey, SurveyPlan], list[str]]
    correlated: Callable[[SurveyPlan], list[str]]
    shown: tuple[str, ...]
    views: tuple[str, ...]
    changes: Mapping[str, Change]
    recipes: tuple[str, ...] = ("light",)
    ensembles: bool = False


def kind_of(family: Family) -> Kind:
    """What samples of a family are compared by."""
    return {"calorimeter": SHOWERS, "map": MAPS}[family.kind]


# ------------------------------------------------------------------------------------------------ showers
def _shower_features(side: Survey, plan: SurveyPlan, rows: Rows) -> Array:
    """CaloChallenge's: log10 of the incident and the layers' energies, each layer's centre and width in x and y.

    Source: CaloChallenge ``evaluate.py``, ``prepare_high_data_for_classifier`` (its factors 1/100 of lengths cancel).
    """
    columns: list[NDArray[np.floating]] = []
    energy = plan.family.energy
    if plan.has_energy and energy is not None and energy.name in side.conditions:
        columns.append(np.log10(np.maximum(side.conditions[energy.name][rows], np.finfo(np.float32).tiny)))
    for name, observable in plan.observables.items():
        column = side.table[side.names.index(name), rows].astype(np.float64)
        if observable.quantity == "energy":
            columns.append(np.log10(np.maximum(column, 0) + _EMPTY))
        elif observable.quantity in LENGTHS:
            columns.append(column)
    return np.stack(columns, axis=1).astype(np.float64)


def _shower_main(reference: Survey, plan: SurveyPlan) -> list[str]:
    """Response, depth, and the shares of the layers with most energy."""
    layers = [f"fraction_{number}" for number in plan.family.layer_numbers]
    means = {name: float(reference.table[reference.names.index(name)].mean(dtype=np.float64)) for name in layers}
    chosen = sorted(layers, key=lambda name: -means[name])[:_MAIN_LAYERS]
    size = ["response"] if plan.has_energy else []
    return [*size, "shower_depth", *(name for name in layers if name in chosen)]


def _shower_correlated(plan: SurveyPlan) -> list[str]:
    """Those of the whole shower and of layers, or the energies of the layers of deep families."""
    known = plan.observables
    if len(plan.family.layers) > 8:
        return [name for name, observable in known.items() if observable.quantity == "energy"]
    of_layers = ("fraction", "energy_ratio", "width_x", "width_y", "width_r")
    whole = [name for name in ("total_energy", "response", "shower_depth_width") if name in known]
    return [*whole, *(n for n, o in known.items() if o.quantity in of_layers or n.startswith("occupancy_"))]


def _thinned(values: Values, rng: np.random.Generator) -> Values:
    """A tenth of the hits lost, at random among the fainter half of each shower; its energy stays."""
    values = values.copy()
    hits = np.where(values > 0, values, np.nan)
    alive = (values > 0).any(axis=1)
    middle = np.full((len(values), 1), np.inf, dtype=np.float32)
    middle[alive] = np.nanmedian(hits[alive], axis=1, keepdims=True)
    before = values.sum(axis=1, dtype=np.float64, keepdims=True)
    values[(values < middle) & (rng.random(values.shape, dtype=np.float32) < 0.2)] = 0
    after = values.sum(axis=1, dtype=np.float64, keepdims=True)
    values *= np.divide(before, after, out=np.ones_like(before), where=after > 0)
    return values


_SPECTRUM = "Separation power of the spectrum of single voxels or pixels: 0 equal, 1 disjoint."
_spectrum = partial(Quantity, meaning=_SPECTRUM, headline=True, large=True, telling=True)
_EMPTY_SHARE = "Share of voxels or pixels that are empty or below the spectrum's axis, less the reference's."
SHOWERS = Kind(
    noun="showers",
    spectrum=_spectrum("separation/voxel", "energy spectrum of single voxels"),
    empty=Quantity("empty_voxels", "share of empty voxels", _EMPTY_SHARE, headline=True),
    vector_units=("of incident energy", "of the reference's mean deposited energy"),
    nearness=lambda vectors: np.sqrt(np.maximum(vectors, 0)),  # Hellinger's distance: voxels of all sizes count
    features=_shower_features,
    main=_shower_main,
    modes=lambda reference, plan: ["total_energy", *_shower_main(reference, plan), "shower_depth_width"],
    correlated=_shower_correlated,
    shown=("response", "fraction"),
    views=("voxels", "log_voxels", "observables"),
    changes={
        "energies_0.1%": Change("all energies raised by 0.1 %", lambda values, _: values * np.float32(1.001)),
        "occupancy_10%": Change("10 % fewer occupied voxels", _thinned),
    },
    recipes=("light", "calochallenge"),
)


# ------------------------------------------------------------------------------------------------ maps
def _map_features(side: Survey, plan: SurveyPlan, rows: Rows) -> Array:
    """All observables, logarithms of those that spread over decades."""
    columns = [side.table[side.names.index(name), rows].astype(np.float64) for name in plan.observables]
    logs = [observable.log for observable in plan.observables.values()]
    return np.stack([np.log10(np.maximum(c, _EMPTY)) if log else c for c, log in zip(columns, logs, strict=True)], 1)


def _map_correlated(plan: SurveyPlan) -> list[str]:
    powers = [o.name for o in plan.observables.values() if o.wave_number]
    return ["mean", "std", "peaks", *powers[:: max(1, len(powers) // 15)]]


MAPS = Kind(
    noun="maps",
    spectrum=_spectrum("separation/pixel", "distribution of single pixels"),
    empty=Quantity("empty_pixels", "share of empty pixels", _EMPTY_SHARE, headline=True),
    vector_units=("ln(1+delta)", "ln(1+delta)"),
    nearness=lambda vectors: vectors,
    features=_map_features,
    main=lambda *_: ["mean", "std", "maximum"],
    modes=lambda _, plan: ["maximum", *_map_correlated(plan)],
    correlated=_map_correlated,
    shown=("mean", "std", "peaks"),
    views=("log_pixels", "observables"),
    changes={
        "contrast_5%": Change("5 % more contrast", lambda values, _: np.maximum(1 + np.float32(1.05) * (values - 1), 0))
    },
    ensembles=True,
)
