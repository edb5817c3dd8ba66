"""What classifiers are shown: columns of samples, and the folds they are held out in."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from calogen.families import Family

from ..observables.catalogue import catalogue, observe
from ..survey.plan import common_conditions
from ..survey.survey import vectors
from .kinds import LENGTHS, kind_of

if TYPE_CHECKING:
    from calogen.shards.samples import Samples

Array = NDArray[np.float64]
Columns = NDArray[np.float32]
Rows = NDArray[np.int64]
FOLDS = 5
_DISTINCT = 50  # different conditions from which on equal ones are kept in one fold


def groups_of(sides: tuple[Samples, ...]) -> NDArray[np.int64]:
    """Samples that must not be separated: of equal conditions if there are many different ones, or of one realisation.

    Equal discrete energies (the CaloChallenge's photons have 15) separate nothing: thousands of samples share each.
    """
    names = [n for n in sides[0].conditions if all(n in s.conditions for s in sides)]
    count = sum(len(s) for s in sides)
    if names:
        rows = [np.stack([s.conditions[n] for n in names], axis=1) for s in sides]
        if min(len(np.unique(r, axis=0)) for r in rows) >= _DISTINCT:
            inverse = np.unique(np.concatenate(rows), axis=0, return_inverse=True)[1]
            return np.asarray(inverse, dtype=np.int64).ravel()
    found = np.arange(count)
    start = 0
    for side in sides:
        realisations = side.extras.get("realisation_id")
        if realisations is not None and len(np.unique(realisations)) >= 2 * FOLDS:
            found[start : start + len(side)] = start + np.unique(realisations, return_inverse=True)[1].ravel()
        start += len(side)
    return found


def parts(groups: NDArray[np.int64], side: NDArray[np.float32], count: int, rng: np.random.Generator) -> Rows:
    """Random part of every sample, (N,) in 0 .. count - 1: groups stay whole, every part has as many of each side."""
    _, group = np.unique(groups, return_inverse=True)
    share = np.bincount(group, weights=side) / np.bincount(group)
    kind = np.where(share == 0, 0, np.where(share == 1, 2, 1))  # of one side, of both, of the other
    order = rng.permutation(len(share))
    order = order[np.argsort(kind[order], kind="stable")]
    part = np.empty(len(share), dtype=np.int64)
    part[order] = np.arange(len(share)) % count
    return part[group]


def halves(reference: Samples, half: int, rng: np.random.Generator) -> tuple[Samples, Samples]:
    """Two sets of ``half`` reference samples (or a few fewer) that share no group."""
    part = parts(groups_of((reference,)), np.zeros(len(reference), dtype=np.float32), 2, rng)
    both = [rng.permutation(np.flatnonzero(part == p)) for p in (0, 1)]
    half = min(half, *(len(rows) for rows in both))
    first, second = (reference.select(np.sort(rows[:half])) for rows in both)
    return first, second


class Views:
    """What the classifiers are shown: columns for any samples, scaled by what the reference says.

    Attributes:
        names: The views.
        recipe: Decides the columns of ``observables``: the CaloChallenge has its own.
        conditions: Conditions that both sides have; their columns come first, logarithmic where the family says so.
            The numbers of labels are a column too.
    """

    def __init__(self, reference: Samples, generated: Samples, recipe: str) -> None:
        self.family, self.recipe = reference.family, recipe
        sides = [reference.conditions, generated.conditions]
        known = common_conditions(self.family, sides)
        self.conditions = [c for c in self.family.conditions if c.name in known and all(c.name in s for s in sides)]
        self.names = kind_of(self.family).views
        some = reference.values[:: max(1, len(reference) // 1000)]
        hits = some[some > 0]
        self._faintest = float(np.quantile(hits, 0.001)) if len(hits) else 1.0
        self.fixed_scale: float | None = None
        if self.family.energy is not None and self.family.energy.name not in known:
            self.fixed_scale = float(reference.values.sum(axis=1, dtype=np.float64).mean()) or 1.0

    def table(self, view: str, samples: Samples) -> tuple[list[str], Columns]:
        """Names of the columns (of observables only) and the columns, (N, F)."""
        kept = samples.conditions.only([c.name for c in self.conditions])
        samples = replace(samples, conditions=kept)
        given = [np.log10(kept[c.name]) if c.scale == "log" else kept[c.name] for c in self.conditions]
        names: list[str] = []
        if view == "observables":
            measured = observe(samples)
            if self.recipe == "calochallenge":
                measured = _published(self.family, measured)
            names = [*kept, *measured]
            columns = [*given, *measured.values()]
            return names, np.stack(columns, axis=1).astype(np.float32)
        if view == "log_voxels":
            values = np.log(np.maximum(samples.values, np.float32(self._faintest)))
        else:
            # Showers in per cent of the incident energy, as in the CaloChallenge.
            values = vectors(samples, self.fixed_scale) * np.float32(100 if view == "voxels" else 1)
        return names, np.column_stack([*given, values]).astype(np.float32, copy=False)


def _published(family: Family, measured: dict[str, Array]) -> dict[str, Array]:
    """The CaloChallenge's high-level features in its units: layer energies, centres and widths."""
    found, known = {}, catalogue(family)
    for name, column in measured.items():
        quantity = known[name].quantity
        if quantity == "energy":
            found[name] = np.log10(np.maximum(column, 0) + 1e-8)
        elif quantity in LENGTHS:
            found[name] = column / 100
    return found
