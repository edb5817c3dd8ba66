"""Layer energies in numpy, folded: see :class:`LayerEnergies` for what they are."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy.special import erfc, ndtri

from ..conditions import codings, scaling
from ..contract import Array
from .energies import LEADING, LEAK_FLOOR, MOST_LEADING, MOST_NORMAL, PER_UNIT, REACH, SMALLEST, STATIONS, LayerEnergies

_PAIRS = np.triu_indices(LEADING)
_SHARED = 2 * LEADING + len(_PAIRS[0])  # terms that all variables have in common
_NEVER_EMPTY = math.log(1e-5)  # log odds below which a layer is never empty


class FoldedEnergies:
    """:meth:`LayerEnergies.inverse` in float32 numpy; agrees with the module to rounding.

    Args:
        energies: A fitted module; its numbers are copied.
    """

    def __init__(self, energies: LayerEnergies) -> None:
        learnt = {name: a.cpu().numpy().astype(np.float32) for name, a in energies.named_buffers()}
        family = energies.family
        self._column, self._conserves = energies.energy_column, family.conserves_energy
        self._knee, self._threshold = np.float32(family.knee), np.float32(family.threshold)
        self._most = np.float32(1 if family.conserves_energy else family.max_response)
        offset, slope, logarithmic = scaling(family, energies.conditions)
        self._offset, self._slope = offset.astype(np.float32), slope.astype(np.float32)
        self._logarithmic = np.flatnonzero(logarithmic)
        self._codings = [(i, table.astype(np.float32)) for i, table in codings(family, energies.conditions)]
        self._stations = learnt["stations"]
        self._heights = np.linspace(-1, 1, STATIONS, dtype=np.float32)
        size = self._size = energies.size
        order = energies.order.cpu().numpy()
        self._places = np.argsort(order)
        self._marginals = np.concatenate([learnt[n] for n in ("location", "log_scale", "empty_logits")], 1).T.copy()
        self._marginals[2 * size + int(self._places[0])] = 0
        self._marginals[2 * size + int(self._places[0]), 0] = -30  # the total is never empty
        self._least, self._largest = learnt["limits"][:, :, None]
        # Linear coefficients at all stations are one product; so are the terms that variables share.
        self._linear = learnt["linear"].reshape(STATIONS * size, size)
        self._direction = learnt["direction"]
        shared, own = np.arange(_SHARED), np.arange(_SHARED, _SHARED + LEADING + 3)
        count = _SHARED + LEADING + 3
        bent = learnt["bent"].reshape(2 * size, -1)
        self._common = np.concatenate(
            [bent[:, :STATIONS], *(bent[:, STATIONS + shared + k * count] for k in (0, 1))], 1
        )
        parts = [bent[:, STATIONS + own + k * count] for k in (0, 1)]
        # Powers of p: coefficients of p are products of (1, leading normals), those of p^2 and p^3 numbers.
        self._own = [np.concatenate([p[:, k] for p in parts], 1) for k in (slice(0, 1 + LEADING), [-2], [-1])]
        self._tables = [learnt[name].reshape(-1) for name in ("residual", "levelled", "marginal")]

    def __call__(self, normals: Array, conditions: Array) -> Array:
        """Layer energies, layers first: (L, B) in MeV, from normals (B, D) and conditions (B, C) in their units."""
        height, others = self._scaled(conditions)
        station = np.searchsorted(self._stations[1:-1], height, side="right")
        gap = self._stations[station + 1] - self._stations[station]
        above = _clipped((height - self._stations[station]) / gap, 0, 1)
        rows = np.arange(len(height))
        near = np.zeros((STATIONS, len(height)), np.float32)
        near[station, rows], near[station + 1, rows] = 1 - above, above
        height = self._heights @ near

        # Independent normals to dependent ones, whose marginals are normal again.
        normals = _clipped(normals.T, -MOST_NORMAL, MOST_NORMAL)
        mean, scale = self._given(normals, near, height)
        mean += scale * self._look_up(0, normals, station, above)
        levelled = _clipped(self._look_up(1, mean, station, above), -MOST_NORMAL, MOST_NORMAL)

        # Location, log scale and log odds of being empty in one product.
        first, second = np.triu_indices(len(others))
        one = np.ones((1, len(height)), np.float32)
        design = np.concatenate([one, height[None], near, others, others * height, others[first] * others[second]])
        location, scale, logits = (self._marginals @ design).reshape(3, self._size, -1)
        empty = None
        if logits.max() > _NEVER_EMPTY:
            levelled, empty = self._emptied(levelled, logits)
        variables = self._look_up(2, levelled, station, above)
        variables *= np.exp(scale, out=scale)
        variables += location
        np.minimum(np.maximum(variables, self._least, out=variables), self._largest, out=variables)
        return self._energies(variables, empty, conditions)

    def _scaled(self, conditions: Array) -> tuple[Array, Array]:
        """The scaled incident energy (B,), 0 where it is no condition, and the other conditions (C', B)."""
        values = conditions.astype(np.float32)
        values[:, self._logarithmic] = np.log(values[:, self._logarithmic])
        columns = list((values * self._slope + self._offset).T)
        for column, table in self._codings:
            columns[column], *more = table[conditions[:, column].astype(np.intp)].T
            columns += more
        height = np.zeros(len(values), np.float32) if self._column is None else columns.pop(self._column)
        return height, np.stack(columns) if columns else np.empty((0, len(values)), np.float32)

    def _given(self, normals: Array, near: Array, height: Array) -> tuple[Array, Array]:
        """The m and s of all variables, (D, B) each; normals (D, B)."""
        size, count = normals.shape
        mean = np.zeros_like(normals)
        for share, part in zip(near, (self._linear @ normals).reshape(STATIONS, size, count), strict=True):
            part *= share
            mean += part
        leading = np.zeros((LEADING, count), np.float32)
        leading[: min(LEADING, size)] = _clipped(normals[:LEADING], -MOST_LEADING, MOST_LEADING)
        shared = np.concatenate([leading, leading[_PAIRS[0]] * leading[_PAIRS[1]], leading**3 - 3 * leading])
        with_one = np.concatenate([np.ones((1, count), np.float32), leading])
        one = np.stack([with_one[0], height])
        along = np.tile(_clipped(self._direction @ normals, -MOST_LEADING, MOST_LEADING), (2, 1))
        # A polynomial of third degree in p; its cubic term is p^3 - 3 p.
        cube = self._own[2] @ one
        bent = cube * along
        bent += self._own[1] @ one
        bent *= along
        bent += self._own[0] @ np.concatenate([with_one, with_one * height])
        bent -= 3 * cube
        bent *= along
        bent += self._common @ np.concatenate([near, shared, shared * height])
        mean += bent[:size]
        return mean, np.exp(_clipped(bent[size:], -8, 3))

    def _look_up(self, which: int, normals: Array, station: NDArray[np.intp], above: Array) -> Array:
        """Values (D, B) of a table between its points and between two stations."""
        table, points = self._tables[which], 2 * REACH * PER_UNIT + 1
        position = (_clipped(normals, -MOST_NORMAL, MOST_NORMAL) + np.float32(REACH)) * np.float32(PER_UNIT)
        index = position.astype(np.intp)
        position -= index
        index += station * points
        index += (np.arange(len(normals)) * (STATIONS * points))[:, None]
        low, high = table.take(index), table.take(index + points)
        index += 1
        left = low + above * (high - low)
        low, high = table.take(index), table.take(index + points)
        low += above * (high - low)
        low -= left
        low *= position
        low += left
        return low

    def _emptied(self, normals: Array, logits: Array) -> tuple[Array, NDArray[np.bool_]]:
        """Normals stretched over layers that are not empty, and which are empty, (D, B) each."""
        full = 1 / (1 + np.exp(logits))
        full[logits < _NEVER_EMPTY] = 1
        tail = erfc(normals * np.float32(math.sqrt(0.5))) / 2
        excess = np.where(full < 1, tail - full, np.float32(-1))
        empty = excess > 0
        layers = np.delete(np.arange(self._size), self._places[0])
        none = np.flatnonzero(empty[layers].all(0))
        empty[layers[excess[layers][:, none].argmin(0)], none] = False
        # Only layers that may be empty need the inverse of the normal distribution, which is slow.
        may = (full < 1) & ~empty
        inner = np.minimum(np.maximum(tail[may] / full[may], 1e-9), 1 - 1e-9).astype(np.float64)
        normals = normals.copy()
        normals[may] = -ndtri(inner)
        return normals, empty

    def _energies(self, variables: Array, empty: NDArray[np.bool_] | None, conditions: Array) -> Array:
        variables = variables[self._places]
        total, floor, layers = np.exp(variables[0]), np.float32(LEAK_FLOOR), np.float32(self._size - 1)
        if self._column is None:
            total = np.maximum(total - self._knee, 0)
        else:
            part = 1 + floor - total if self._conserves else total - floor
            total = conditions[:, self._column].astype(np.float32) * _clipped(part, 0, float(self._most))
        energies: Array = np.exp(variables[1:])
        energies *= total + layers * self._knee
        energies -= self._knee
        np.maximum(energies, np.float32(SMALLEST) * self._knee, out=energies)
        if empty is not None:
            energies[empty[self._places[1:]]] = 0
        energies *= total / energies.sum(0)
        energies[energies < self._threshold] = 0
        return energies


def _clipped(values: Array, least: float, most: float) -> Array:
    """np.clip costs several calls of np.minimum."""
    return np.minimum(np.maximum(values, np.float32(least)), np.float32(most))
