"""The samples nearest to some targets among all that pass by, which reports show as examples."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calogen.shards.samples import Samples

from .plan import SurveyPlan, example_scale

Array = NDArray[np.float64]


class Nearest:
    """The samples nearest to each target: one more than there are targets before it, so that none is shown twice.

    Args:
        plan: With the targets.
    """

    def __init__(self, plan: SurveyPlan) -> None:
        self._targets, self._deposited = plan.targets, not plan.has_energy
        self._family, self._voxels = plan.family, plan.family.voxels
        self._near = [list[tuple[float, int]]() for _ in plan.targets]  # distance and position, in increasing order
        self._samples: dict[int, tuple[NDArray[np.float32], Array]] = {}  # by position, with where it is

    def fill(self, samples: Samples, positions: NDArray[np.int64]) -> None:
        """Look at samples at some positions, (N,), of their source."""
        places, scale = self._places(samples)
        looked_at = set[int]()
        for number, target in enumerate(self._targets):
            away = np.sum(((places - target) / scale) ** 2, axis=1)
            most = min(number, len(away) - 1)
            rows = np.flatnonzero(away <= np.partition(away, most)[most])
            rows = rows[np.argsort(away[rows], kind="stable")[: number + 1]]
            self._take(number, [(float(away[row]), int(positions[row])) for row in rows])
            looked_at.update(rows.tolist())
        known = self._known
        for row in looked_at:
            if (position := int(positions[row])) in known:
                self._samples[position] = np.array(samples.values[row].ravel()), places[row].astype(np.float64)
        self._samples = {position: self._samples[position] for position in known}

    def merge(self, other: Nearest) -> Nearest:
        """The nearest of both."""
        found = copy.copy(self)
        found._near = list(self._near)
        for number, near in enumerate(other._near):
            found._take(number, near)
        both = {**self._samples, **other._samples}
        found._samples = {position: both[position] for position in found._known}
        return found

    def _take(self, number: int, candidates: list[tuple[float, int]]) -> None:
        self._near[number] = sorted([*self._near[number], *candidates])[: number + 1]

    @property
    def _known(self) -> set[int]:
        return {position for near in self._near for _, position in near}

    @property
    def chosen(self) -> tuple[NDArray[np.float32], Array]:
        """A sample for each target in turn, (T, V), and where it is, (T, C); one twice only if there are too few."""
        values = np.zeros((len(self._targets), self._voxels), dtype=np.float32)
        places, taken = np.full(self._targets.shape, np.nan), set[int]()
        for number, near in enumerate(self._near):
            others = [position for _, position in near if position not in taken] or [p for _, p in near]
            for position in others[:1]:
                taken.add(position)
                values[number], places[number] = self._samples[position]
        return values, places

    def _places(self, samples: Samples) -> tuple[NDArray[np.floating[Any]], Array]:
        """What the targets are of, deposited energies (N, 1) or conditions (N, C), and their scale, (C,)."""
        if self._deposited:
            scale = np.maximum(np.abs(self._targets).mean(axis=0), 1e-30)
            return np.asarray(samples.values.sum(axis=1, dtype=np.float64)[:, None]), scale
        known = [c.name for c in samples.family.conditions if c.name in samples.conditions]
        known = known[: self._targets.shape[1]]
        columns = [samples.conditions[name] for name in known]
        places = np.stack(columns, axis=1) if columns else np.zeros((len(samples), 0))
        return places, example_scale(self._family, known)
