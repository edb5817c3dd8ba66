"""How the voxels of a shower go together, compiled: noise that neighbours share, common factors, the refinement."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...compiling import compiled, kernel
from ..contract import Array
from .arithmetic import ONE, TWO, ZERO, F, clipped, multiply, of_layer, widest_of
from .factors import LEAST_NOISE
from .patterns import FARTHEST, GROUPS, LARGEST, NEIGHBOURS

_LEAST = F(LEAST_NOISE)
_FARTHEST, _LARGEST = F(FARTHEST), F(LARGEST)
_KINDS = 3  # of voxels along an axis: with no neighbour, with one, with two

Places = NDArray[np.uint32]


class NoiseTables(NamedTuple):
    """:class:`SharedNoise` along those A axes where noise is shared, of V voxels in Z zones.

    Attributes:
        beside: The neighbours of each voxel, (A, 2, V); V: there is none.
        kind: Of each voxel, (A, V): three times its zone and its number of neighbours.
        shares: (A, S, Z).
        levels: (S, L).
        apart: (S, Z), or nothing where energies do not follow a voxel's own noise.
        zone: (V,).
        core: The hottest voxels of each layer, (L, M).
        mixing: How their noise is mixed, (L, M, M), results last.
    """

    beside: Places
    kind: Places
    shares: Array
    levels: Array
    apart: Array
    zone: Places
    core: NDArray[np.int64]
    mixing: Array


class CopulaTables(NamedTuple):
    """Common factors, of F inputs; matrices hold (inputs, V_layer) for one layer after another.

    Attributes:
        loadings: K + J D inputs: the factors, and those that drift times each driver.
        drifting: D.
        power: 1 + J + J (J + 1) / 2 inputs.
        last: The last layer of the network, H inputs, or nothing.
        offset: Mean voxel normals, (V,).
        scale: Of what factors and noise make, (V,).
    """

    loadings: Array
    drifting: int
    power: Array
    last: Array
    offset: Array
    scale: Array


class RefinementTables(NamedTuple):
    """:class:`ShapeRefinement` of L layers and A patterns; nothing where it changes nothing.

    Attributes:
        coefficients: (L, F, A).
        group: Of each voxel within its layer, (V,).
        sums: Weights of each group's mean normal and leanings, (V_layer, 3 G) for one layer after another.
        means: (L, G).
        spreads: (L, G).
        position: (2, V).
        beside: Neighbours, (A', 2, V); V: there is none.
        used: Whether the patterns of neighbours along an axis are used in a layer, (A', L).
        framed: Whether there are patterns of where the axis is.
        energy: Place of the layer's energy among the features of voxels.
        driver_shift: To be added to drivers less their means: the refinement has means of its own, (J,).
    """

    coefficients: Array
    group: Places
    sums: Array
    means: Array
    spreads: Array
    position: Array
    beside: Places
    used: NDArray[np.bool_]
    framed: bool
    energy: int
    driver_shift: Array


@kernel
def share_noise(
    latent: Array, first: int, logs: Array, faint: Array, tables: NoiseTables, noise: Array, apart: Array
) -> None:
    """:meth:`SharedNoise.forward`, and the noise of the core.

    Args:
        latent: All latent numbers, (B, Z); those of voxels begin at
        first: this one.
        logs: Logarithms of layer energies, (B, L).
        faint: Of the layers, (B, L).
        tables: What was fitted.
        noise: Receives correlated standard normals, (B, V + 1), the last of them 0.
        apart: Receives what to add to standardised log shares, (B, V), or nothing.
    """
    beside, kind, zone, core, mixing = tables.beside, tables.kind, tables.zone, tables.core, tables.mixing
    axes, zones, voxels = len(beside), tables.shares.shape[2], latent.shape[1] - first
    share, scale = np.empty(_KINDS * zones, np.float32), np.empty((axes, _KINDS * zones), np.float32)
    before, follow = np.empty(voxels + 1, np.float32), np.empty(zones, np.float32)
    mine, mixed = np.empty((1, core.shape[1]), np.float32), np.empty((1, core.shape[1]), np.float32)
    before[voxels] = ZERO
    for r in range(len(latent)):
        own = latent[r, first:]
        for v in range(voxels):
            noise[r, v] = own[v]
        noise[r, voxels] = ZERO

        # Along one axis after another, part of the neighbours' noise is added; the variance stays 1.
        for axis in range(axes):
            for z in range(zones):
                part = _at_level(logs[r], z, tables.levels, tables.shares[axis])
                for number in range(_KINDS):
                    share[_KINDS * z + number] = part
                    scale[axis, _KINDS * z + number] = ONE / math.sqrt(ONE + part * part * F(number))
            for v in range(voxels):
                before[v] = noise[r, v]
            left, right, here = beside[axis, 0], beside[axis, 1], kind[axis]
            scales = scale[axis]
            for v in range(voxels):
                both = before[left[v]] + before[right[v]]
                noise[r, v] = (before[v] + share[here[v]] * both) * scales[here[v]]

        # Where a voxel's own noise is larger than what its neighbours make of it, so is its energy.
        if apart.size:
            for z in range(zones):
                follow[z] = _at_level(logs[r], z, tables.levels, tables.apart)
            for v in range(voxels):
                kept = ONE
                for axis in range(axes):
                    kept *= scale[axis, kind[axis, v]]
                apart[r, v] = follow[zone[v]] * (own[v] - kept * noise[r, v])

        # The hottest voxels of a layer have correlations of their own instead, unless it is faint.
        for layer in range(len(core)):
            if faint[r, layer] <= F(0.5):
                for m in range(core.shape[1]):
                    mine[0, m] = own[core[layer, m]]
                multiply(mine, mixing[layer], mixed)
                for m in range(core.shape[1]):
                    noise[r, core[layer, m]] = mixed[0, m]


@compiled
def _at_level(logs: Array, zone: int, levels: Array, values: Array) -> F:
    """What holds for a zone of values (S, Z) at levels (S, L) of the logarithm of its layer's energy."""
    layer, last = zone // 2, len(levels) - 1
    level = 0
    while level < last - 1 and logs[layer] >= levels[level + 1, layer]:
        level += 1
    gap = levels[level + 1, layer] - levels[level, layer]
    above = clipped((logs[layer] - levels[level, layer]) / gap, ZERO, ONE)
    lower: F = values[level, zone]
    found: F = lower + above * (values[level + 1, zone] - lower)
    return found


@kernel
def correlate(
    latent: Array,
    first: int,
    rank: int,
    hidden: Array,
    drivers: Array,
    together: Array,
    noise: Array,
    bounds: NDArray[np.int64],
    tables: CopulaTables,
    normals: Array,
) -> None:
    """Voxel normals of common factors and noise.

    Args:
        latent: All latent numbers, (B, Z); those of factors begin at
        first: this one.
        rank: K, how many factors there are.
        hidden: What the network's hidden layers make, (B, H), or nothing.
        drivers: With which loadings change, less their means, (B, L, J).
        together: How much of the correlations is left, (B, L).
        noise: From :func:`share_noise`, (B, V + 1).
        bounds: Of the layers' voxels, (L + 1,).
        tables: What was fitted.
        normals: Receives (B, V).
    """
    offset, scale, drifting = tables.offset, tables.scale, tables.drifting
    count = len(latent)
    kinds, pairs = drivers.shape[2], 1 + drivers.shape[2] + drivers.shape[2] * (drivers.shape[2] + 1) // 2
    widest = widest_of(bounds)
    inputs, forms = np.empty((count, rank + kinds * drifting), np.float32), np.empty((count, pairs), np.float32)
    common, power = np.empty(count * widest, np.float32), np.empty(count * widest, np.float32)
    shift = np.empty(count * widest if hidden.size else 0, np.float32)
    for r in range(count):
        for k in range(rank):
            inputs[r, k] = latent[r, first + k]
    for layer in range(len(bounds) - 1):
        low, width = bounds[layer], bounds[layer + 1] - bounds[layer]
        for r in range(count):
            # The loadings of the first factors drift with the drivers, and the variance that they make is a
            # quadratic form of these.
            driver = drivers[r, layer]
            place = 1 + kinds
            forms[r, 0] = ONE
            for a in range(kinds):
                for k in range(drifting):
                    inputs[r, rank + a * drifting + k] = inputs[r, k] * driver[a]
                forms[r, 1 + a] = driver[a]
                for b in range(a, kinds):
                    forms[r, place] = driver[a] * driver[b]
                    place += 1
        made, variance = common[: count * width].reshape(count, width), power[: count * width].reshape(count, width)
        multiply(inputs, of_layer(tables.loadings, inputs.shape[1], low, width), made)
        multiply(forms, of_layer(tables.power, pairs, low, width), variance)
        if hidden.size:
            learnt = shift[: count * width].reshape(count, width)
            multiply(hidden, of_layer(tables.last, hidden.shape[1], low, width), learnt)

        # What factors leave of a variance of 1 is a voxel's own; both together have a variance of 1.
        for r in range(count):
            part = together[r, layer]
            for v in range(width):
                held = variance[r, v] * part * part
                own = noise[r, low + v] * math.sqrt(max(ONE - held, _LEAST))
                value = (made[r, v] * part + own) / math.sqrt(max(held + _LEAST, ONE))
                normals[r, low + v] = offset[low + v] + scale[low + v] * value
            if hidden.size:
                for v in range(width):
                    normals[r, low + v] += learnt[r, v]


@kernel
def refine(
    normals: Array,
    design: Array,
    drivers: Array,
    bounds: NDArray[np.int64],
    tables: RefinementTables,
) -> None:
    """Change normals (B, V) in place by patterns whose amplitudes are linear in features of the shower.

    Args:
        normals: (B, V).
        design: The features of voxels, (L, B, F).
        drivers: Less their means, (B, L, J).
        bounds: Of the layers' voxels, (L + 1,).
        tables: What was trained.
    """
    group, position, beside = tables.group, tables.position, tables.beside
    count, voxels = normals.shape
    layers, kinds = len(bounds) - 1, drivers.shape[2]
    capped = np.zeros((count, voxels + 1), np.float32)  # a neighbour that is not there is 0
    sums = np.empty((layers, count, 3 * GROUPS), np.float32)
    features = np.empty((count, tables.coefficients.shape[1]), np.float32)
    amplitudes = np.empty((count, tables.coefficients.shape[2]), np.float32)
    change = np.empty(widest_of(bounds), np.float32)
    for r in range(count):
        for v in range(voxels):
            capped[r, v] = clipped(normals[r, v], -_FARTHEST, _FARTHEST)
    for layer in range(layers):
        low, width = bounds[layer], bounds[layer + 1] - bounds[layer]
        there = np.ascontiguousarray(capped[:, low : low + width])
        weights = tables.sums[3 * GROUPS * low : 3 * GROUPS * (low + width)].reshape(width, 3 * GROUPS)
        multiply(there, weights, sums[layer])
    for layer in range(layers):
        low, width = bounds[layer], bounds[layer + 1] - bounds[layer]
        for r in range(count):
            # Features: energies, drivers, and what the groups of cells are, here and in the layers beside.
            energy = design[layer, r, tables.energy]
            features[r, 0], features[r, 1 + kinds], features[r, 2 + 2 * kinds] = ONE, energy, energy * energy
            for a in range(kinds):
                driver = drivers[r, layer, a] + tables.driver_shift[a]
                features[r, 1 + a], features[r, 2 + kinds + a] = driver, driver * driver
            place = 3 + 2 * kinds
            for g in range(GROUPS):
                features[r, place + g] = _group(sums, r, layer, g, tables)
            place += GROUPS
            for g in range(NEIGHBOURS):
                features[r, place + g] = _group(sums, r, layer - 1, g, tables) if layer else ZERO
                inside = layer + 1 < layers
                features[r, place + NEIGHBOURS + g] = _group(sums, r, layer + 1, g, tables) if inside else ZERO
        multiply(features, tables.coefficients[layer], amplitudes)

        here = group[low : low + width]
        for r in range(count):
            # Patterns 1, y and y^2 - 1 of the normals y, ...
            one, first, second = amplitudes[r, :GROUPS], amplitudes[r, GROUPS:], amplitudes[r, 2 * GROUPS :]
            for v in range(width):
                y, g = capped[r, low + v], here[v]
                change[v] = one[g] - second[g] + y * (first[g] + y * second[g])
            # ... the mean of a cell's neighbours along each axis, ...
            row = capped[r]
            for axis in range(len(beside)):
                if tables.used[axis, layer]:
                    amplitude = amplitudes[r, (3 + axis) * GROUPS :]
                    left, right = beside[axis, 0, low : low + width], beside[axis, 1, low : low + width]
                    for v in range(width):
                        change[v] += amplitude[here[v]] / TWO * (row[left[v]] + row[right[v]])
            # ... and positions times how far the group leans to one side, and where the axis is.
            for axis in range(2):
                leaning = amplitudes[r, (3 + len(beside) + axis) * GROUPS :]
                for g in range(GROUPS):
                    leaning[g] *= sums[layer, r, (1 + axis) * GROUPS + g]
                    if tables.framed:
                        moved = (5 + len(beside) + 2 * axis) * GROUPS + g
                        last = drivers[r, layer, kinds - 2 + axis] + tables.driver_shift[kinds - 2 + axis]
                        slope = drivers[r, layer, 2 + axis] + tables.driver_shift[2 + axis]
                        leaning[g] += amplitudes[r, moved] * last + amplitudes[r, moved + GROUPS] * slope
                where = position[axis, low : low + width]
                for v in range(width):
                    change[v] += leaning[here[v]] * where[v]
            for v in range(width):
                normals[r, low + v] += clipped(change[v], -_LARGEST, _LARGEST)


@compiled
def _group(sums: Array, row: int, layer: int, group: int, tables: RefinementTables) -> F:
    """How far the mean normal of a group of cells is from what it is in the mean shower, in its spreads."""
    standard = (sums[layer, row, group] - tables.means[layer, group]) / tables.spreads[layer, group]
    return clipped(standard, -_FARTHEST, _FARTHEST)
