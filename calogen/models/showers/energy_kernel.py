"""The layer energies of showers, compiled: :meth:`LayerEnergies.inverse` one shower at a time."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...compiling import compiled, kernel
from ..contract import Array
from ..layers import SLOPE
from .arithmetic import ONE, TWO, ZERO, F, clipped, multiply, normal_quantile
from .energies import LEADING, LEAK_FLOOR, MOST_LEADING, MOST_NORMAL, PER_UNIT, REACH, SMALLEST, STATIONS

_SLOPE = F(SLOPE)
_MOST_NORMAL, _MOST_LEADING = F(MOST_NORMAL), F(MOST_LEADING)
_REACH, _PER_UNIT, _LEAK_FLOOR = F(REACH), F(PER_UNIT), F(LEAK_FLOOR)
_SMALLEST, _LAST = F(SMALLEST), F(STATIONS - 1)
_SHARED = 2 * LEADING + LEADING * (LEADING + 1) // 2  # terms that all variables have in common
_OWN = LEADING + 3  # terms in a variable's own combination of normals
_NEVER_EMPTY = math.log(1e-5)  # log odds below which a layer is never empty
_LEAST_SCALE, _MOST_SCALE = F(-8), F(3)  # logarithms
_THREE = F(3)


class Scaling(NamedTuple):
    """:func:`scale_conditions` of some conditions.

    Attributes:
        columns: Where they are among all conditions, (C,).
        offset: (C,), and
        slope: (C,), of the condition or of its logarithm:
        logarithmic: (C,).
        labels: How many labels each has, (C,).
        size: How many scaled numbers there are (D).
    """

    columns: NDArray[np.int64]
    offset: NDArray[np.float64]
    slope: NDArray[np.float64]
    logarithmic: NDArray[np.bool_]
    labels: NDArray[np.int64]
    size: int


class Network(NamedTuple):
    """Linear layers with LeakyReLU between them, one after another.

    Attributes:
        weights: Of every layer (inputs, outputs), one after another.
        biases: One after another.
        sizes: Numbers that go in, and that each layer gives.
    """

    weights: Array
    biases: Array
    sizes: NDArray[np.int64]


class EnergyTables(NamedTuple):
    """What :class:`LayerEnergies` has fitted, of D variables and S stations; products come with outputs last.

    Attributes:
        network: What training added to their normals; nothing if that is a constant:
        shift: (D,).
        scaling: Of the conditions that energies depend on.
        leading: Place of the incident energy among the scaled ones; -1: it is no condition.
        stations: (S,).
        places: Of the total, and of each layer, among the variables, (D,).
        marginals: Location, log scale and log odds of being empty, (3, F, D).
        limits: (2, D).
        linear: (S, D, D).
        direction: (D, D).
        bent: (2, P, D).
        residual: Table G, (D, S, K).
        levelled: Table U.
        marginal: Table T.
        conserves: Whether the energy of all layers is at most the incident energy.
        most: The largest response.
        knee: In MeV.
        threshold: In MeV.
    """

    network: Network
    shift: Array
    scaling: Scaling
    leading: int
    stations: Array
    places: NDArray[np.int64]
    marginals: Array
    limits: Array
    linear: Array
    direction: Array
    bent: Array
    residual: Array
    levelled: Array
    marginal: Array
    conserves: bool
    most: np.float32
    knee: np.float32
    threshold: np.float32


@compiled
def scale(conditions: Array, scaling: Scaling, out: Array) -> None:
    """Scaled conditions (B, D) of conditions (B, C) in their units."""
    columns, labels, count = scaling.columns, scaling.labels, len(scaling.columns)
    offset, slope, logarithmic = scaling.offset, scaling.slope, scaling.logarithmic
    for r in range(len(conditions)):
        last = count
        for i in range(count):
            value = float(conditions[r, columns[i]])
            if labels[i] <= 2:
                out[r, i] = offset[i] + slope[i] * (math.log(value) if logarithmic[i] else value)
            else:
                label = min(max(int(value), 0), labels[i] - 1)
                for k in range(labels[i] - 1):
                    code = F(-1) if label == labels[i] - 1 else (ONE if label == k else ZERO)
                    out[r, i if k == 0 else last] = code
                    last += 0 if k == 0 else 1


@compiled
def run(network: Network, rows: Array) -> Array:
    """What a network makes of rows (B, inputs): (B, outputs)."""
    weights, biases, sizes = network.weights, network.biases, network.sizes
    first, begin = 0, 0
    for layer in range(len(sizes) - 1):
        inner, outer = sizes[layer], sizes[layer + 1]
        made = np.empty((len(rows), outer), np.float32)
        multiply(rows, weights[first : first + inner * outer].reshape(inner, outer), made)
        for r in range(len(rows)):
            for v in range(outer):
                made[r, v] += biases[begin + v]
        if layer < len(sizes) - 2:
            leaky(made)
        rows, first, begin = made, first + inner * outer, begin + outer
    return rows


@compiled
def leaky(values: Array) -> None:
    """LeakyReLU in place, (B, N)."""
    for r in range(len(values)):
        for v in range(values.shape[1]):
            values[r, v] = max(values[r, v], values[r, v] * _SLOPE)


@compiled
def _look_up(table: Array, variable: int, station: int, above: F, normal: F) -> F:
    """The value of a table (D, S, K) between its points and between two stations."""
    position = (clipped(normal, -_MOST_NORMAL, _MOST_NORMAL) + _REACH) * _PER_UNIT
    point = int(position)
    part = position - F(point)
    left: F = table[variable, station, point]
    left += above * (table[variable, station + 1, point] - left)
    right: F = table[variable, station, point + 1]
    right += above * (table[variable, station + 1, point + 1] - right)
    return left + part * (right - left)


@kernel
def hidden_layers(normals: Array, latent: Array, rank: int, scaled: Array, network: Network, out: Array) -> None:
    """What the hidden layers of the network for voxels make.

    Args:
        normals: Of layer energies, (B, D).
        latent: All latent numbers, (B, Z): those of energies, and K factors after them.
        rank: K.
        scaled: The conditions that energies depend on, scaled, (B, D').
        network: All but its last layer.
        out: Receives (B, H).
    """
    size = normals.shape[1]
    inputs = np.empty((len(normals), size + rank + scaled.shape[1]), np.float32)
    for r in range(len(normals)):
        for k in range(size):
            inputs[r, k] = normals[r, k]
        for k in range(size, size + rank):
            inputs[r, k] = latent[r, k]
        for k in range(scaled.shape[1]):
            inputs[r, size + rank + k] = scaled[r, k]
    made = run(network, inputs)
    leaky(made)
    for r in range(len(out)):
        for k in range(out.shape[1]):
            out[r, k] = made[r, k]


@kernel
def layer_energies(
    latent: Array, conditions: Array, tables: EnergyTables, scaled: Array, normals: Array, out: Array
) -> None:
    """Layer energies in MeV: the network, and :meth:`LayerEnergies.inverse`.

    Args:
        latent: All latent numbers, (B, Z), those of energies first.
        conditions: All, in their units, (B, C).
        tables: What was fitted.
        scaled: Receives the conditions that energies depend on, scaled, (B, D').
        normals: Receives the normals that energies are made of, (B, D).
        out: Receives (B, L).
    """
    scale(conditions, tables.scaling, scaled)
    for r in range(len(normals)):
        for k in range(normals.shape[1]):
            normals[r, k] = latent[r, k]
    if len(tables.network.sizes):
        inputs = np.empty((len(normals), normals.shape[1] + scaled.shape[1]), np.float32)
        for r in range(len(normals)):
            for k in range(normals.shape[1]):
                inputs[r, k] = normals[r, k]
            for k in range(scaled.shape[1]):
                inputs[r, normals.shape[1] + k] = scaled[r, k]
        learnt = run(tables.network, inputs)
        for r in range(len(normals)):
            for k in range(normals.shape[1]):
                normals[r, k] += learnt[r, k]
    else:
        for r in range(len(normals)):
            for k in range(normals.shape[1]):
                normals[r, k] += tables.shift[k]

    stations, places, leading = tables.stations, tables.places, tables.leading
    marginals, limits = tables.marginals, tables.limits
    linear, direction, bent = tables.linear, tables.direction, tables.bent
    residual, levelled, marginal, knee = tables.residual, tables.levelled, tables.marginal, tables.knee
    size, features = marginals.shape[2], marginals.shape[1]
    design = np.empty(features, np.float32)
    shared, own = np.empty(_SHARED, np.float32), np.empty(1 + LEADING, np.float32)
    free, mean, other = np.empty(size, np.float32), np.empty(size, np.float32), np.empty(size, np.float32)
    along, log_scale, values = np.empty(size, np.float32), np.empty(size, np.float32), np.empty(size, np.float32)
    fitted, full, tails = np.empty((3, size), np.float32), np.empty(size), np.empty(size)
    empty = np.empty(size, np.bool_)
    for r in range(len(normals)):
        # Everything is interpolated between the two stations of incident energy on both sides.
        energy = scaled[r, leading] if leading >= 0 else ZERO
        station = 0
        while station < STATIONS - 2 and energy >= stations[station + 1]:
            station += 1
        above = clipped((energy - stations[station]) / (stations[station + 1] - stations[station]), ZERO, ONE)
        below, height = ONE - above, TWO * (F(station) + above) / _LAST - ONE

        # What location, log scale and log odds of being empty are linear in.
        design[0], design[1] = ONE, height
        for k in range(STATIONS):
            design[2 + k] = ZERO
        design[2 + station], design[3 + station] = below, above
        place, others = 2 + STATIONS, scaled.shape[1] - (1 if leading >= 0 else 0)
        for i in range(scaled.shape[1]):
            if i != leading:
                design[place], design[place + others] = scaled[r, i], scaled[r, i] * height
                place += 1
        place += others
        for i in range(scaled.shape[1]):
            for j in range(i, scaled.shape[1]):
                if i != leading and j != leading:
                    design[place] = scaled[r, i] * scaled[r, j]
                    place += 1
        for kind in range(3):
            for i in range(size):
                fitted[kind, i] = ZERO
            for f in range(features):
                for i in range(size):
                    fitted[kind, i] += design[f] * marginals[kind, f, i]

        # Independent normals to dependent ones: m is linear in the normals, ...
        for i in range(size):
            free[i] = clipped(normals[r, i], -_MOST_NORMAL, _MOST_NORMAL)
            mean[i] = other[i] = along[i] = ZERO
        for j in range(size):
            for i in range(size):
                mean[i] += free[j] * linear[station, j, i]
                other[i] += free[j] * linear[station + 1, j, i]
                along[i] += free[j] * direction[j, i]
        for i in range(size):
            along[i] = clipped(along[i], -_MOST_LEADING, _MOST_LEADING)
            mean[i] = below * mean[i] + above * other[i]

        # ... and bent, as is log s: polynomials in the leading normals and in each variable's own combination.
        for k in range(LEADING):
            own[1 + k] = clipped(free[k], -_MOST_LEADING, _MOST_LEADING) if k < size else ZERO
            shared[k], shared[_SHARED - LEADING + k] = own[1 + k], own[1 + k] * (own[1 + k] * own[1 + k] - _THREE)
        own[0], place = ONE, LEADING
        for a in range(LEADING):
            for b in range(a, LEADING):
                shared[place] = own[1 + a] * own[1 + b]
                place += 1
        for kind in range(2):
            for i in range(size):
                values[i] = below * bent[kind, station, i] + above * bent[kind, station + 1, i]
            _add_polynomials(bent[kind, STATIONS : STATIONS + _SHARED + _OWN], ONE, shared, own, along, values)
            _add_polynomials(bent[kind, STATIONS + _SHARED + _OWN :], height, shared, own, along, values)
            for i in range(size):
                if kind == 0:
                    mean[i] += values[i]
                else:
                    log_scale[i] = clipped(values[i], _LEAST_SCALE, _MOST_SCALE)
        for i in range(size):
            values[i] = mean[i] + F(math.exp(log_scale[i])) * _look_up(residual, i, station, above, free[i])
            values[i] = clipped(_look_up(levelled, i, station, above, values[i]), -_MOST_NORMAL, _MOST_NORMAL)

        # A layer is empty where the upper tail of its normal exceeds the probability of being full; if all were, the
        # one that is nearest to being full is not. The other normals are stretched over all probabilities again.
        nearest, least = -1, math.inf
        for i in range(size):
            odds = fitted[2, i]
            may = i != places[0] and odds >= _NEVER_EMPTY
            full[i] = 1 / (1 + math.exp(min(odds, 700.0))) if may else 1.0
            tails[i] = math.erfc(values[i] * math.sqrt(0.5)) / 2 if may else 0.0
            excess = tails[i] - full[i] if may else -1.0
            empty[i] = excess > 0
            if i != places[0] and excess < least:
                nearest, least = i, excess
        if nearest >= 0:
            empty[nearest] = False
        for i in range(size):
            if full[i] < 1 and not empty[i]:
                values[i] = -normal_quantile(min(max(tails[i] / max(full[i], 1e-6), 1e-9), 1 - 1e-9))

        # To the logarithms of the total, and of the layers' shares of it.
        for i in range(size):
            value = fitted[0, i] + F(math.exp(fitted[1, i])) * _look_up(marginal, i, station, above, values[i])
            values[i] = clipped(value, limits[0, i], limits[1, i])
        whole = F(math.exp(values[places[0]]))
        if leading < 0:
            whole = max(whole - knee, ZERO)
        else:
            part = ONE + _LEAK_FLOOR - whole if tables.conserves else whole - _LEAK_FLOOR
            whole = conditions[r, tables.scaling.columns[leading]] * clipped(part, ZERO, tables.most)

        # Shares are of (energy + knee), and add up to one only about: what results is scaled to meet the total.
        found = ZERO
        for layer in range(size - 1):
            i = places[1 + layer]
            share = F(math.exp(values[i])) * (whole + F(size - 1) * knee) - knee
            out[r, layer] = ZERO if empty[i] else max(share, _SMALLEST * knee)
            found += out[r, layer]
        for layer in range(size - 1):
            out[r, layer] *= whole / found
            if out[r, layer] < tables.threshold:  # no voxel would show it
                out[r, layer] = ZERO


@compiled
def _add_polynomials(weights: Array, factor: F, shared: Array, own: Array, along: Array, out: Array) -> None:
    """Add to ``out`` (D,) the factor times polynomials with weights (P, D).

    Args:
        weights: Of the shared terms, and of p, p times each leading normal, p^2 and p^3 - 3 p.
        factor: A number.
        shared: Terms in the leading normals.
        own: One and the leading normals.
        along: p, each variable's own combination of normals, (D,).
        out: Is added to.
    """
    for t in range(len(shared)):
        for i in range(len(out)):
            out[i] += factor * shared[t] * weights[t, i]
    for t in range(len(own)):
        for i in range(len(out)):
            out[i] += factor * own[t] * along[i] * weights[len(shared) + t, i]
    last = len(weights) - 1
    for i in range(len(out)):
        square = along[i] * along[i]
        out[i] += factor * square * weights[last - 1, i] + factor * along[i] * (square - _THREE) * weights[last, i]
