"""The voxels of showers whose layer energies are known, compiled: what they depend on, and normals to MeV."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...compiling import compiled, kernel
from ..contract import Array
from .arithmetic import (
    HALF,
    ONE,
    ROOT_HALF,
    ZERO,
    F,
    clipped,
    erfc,
    exp,
    log,
    multiply,
    multiply_each,
    of_layer,
    total,
    widest_of,
)
from .counts import MOST, TIE
from .energy_kernel import Scaling, scale
from .frame import SIZE
from .frame_kernel import LOCAL
from .shapes import LOW, MIDDLE, SHAPES
from .voxels import CLIP, FAINT

_CLIP, _LOW, _MIDDLE = F(CLIP), F(LOW), F(MIDDLE)
_FAINT_FROM, _FAINT_OVER = F(FAINT[0]), F(FAINT[1])
_LEAST_ENERGY, _TINY = F(1e-9), F(1e-30)
_LEAST_EXCESS, _LEAST_LOG_SHARE, _MOST_LOG_SHARE = F(1e-4), F(-40), F(10)
_FARTHEST = F(6)  # normals beyond which tails change no further
_TIE, _LEAST_STEP, _NONE = F(TIE), F(1e-6), F(-1e3)
_LANES = 16


class FeatureTables(NamedTuple):
    """What voxels depend on; see :class:`VoxelShares`.

    Attributes:
        scaling: Of the conditions that voxels depend on.
        leading: Place of the incident energy among the scaled ones; -1: it is no condition.
        products: Which three columns are multiplied for each feature, (3, F).
        plain: How many features, the first, depend on the conditions alone.
        layer: Place of the layer's energy among the features, and
        depth: of the shower's depth.
        centre: (P, L + 1).
        spread: (L + 1,).
        knee: In MeV.
        few: (L,).
        together: (L,).
        driver_centre: (J,).
    """

    scaling: Scaling
    leading: int
    products: NDArray[np.int64]
    plain: int
    layer: int
    depth: int
    centre: Array
    spread: Array
    knee: np.float32
    few: Array
    together: Array
    driver_centre: Array


class ShareTables(NamedTuple):
    """How the energy of each layer is shared; regressions hold (F, V_layer) for one layer after another.

    Attributes:
        occupancy: Log odds of being off.
        log_scale: Of the logarithm of the share.
        location: Of the logarithm of the share.
        stations: Scaled incident energies, (3,).
        shape: (5, 3, V).
        levels: Log energies of each layer at which it is known how many voxels are on, (S, L).
        limits: (S, MOST, L).
        half: Half width of what is moved onto the line at the electron's mass, (L,) in MeV.
        mass: Of the electron.
        reach: On both sides of the line.
        threshold: In MeV.
    """

    occupancy: Array
    log_scale: Array
    location: Array
    stations: Array
    shape: Array
    levels: Array
    limits: Array
    half: Array
    mass: np.float32
    reach: np.float32
    threshold: np.float32


@kernel
def features_of(
    energies: Array,
    conditions: Array,
    local: Array,
    tables: FeatureTables,
    design: Array,
    drivers: Array,
    logs: Array,
    faint: Array,
    together: Array,
    leading: Array,
) -> None:
    """:meth:`VoxelShares.given`.

    Args:
        energies: Of the layers, in MeV, (B, L).
        conditions: All, in their units, (B, C).
        local: Features and drivers of the shower frame, (B, L, 34), or nothing.
        tables: What was fitted.
        design: Receives features, (L, B, F).
        drivers: Receives drivers less their means, (B, L, J).
        logs: Receives logarithms of layer energies, (B, L).
        faint: Receives (B, L).
        together: Receives how much of the correlations is left, (B, L).
        leading: Receives the scaled incident energy, (B,), 0 where it is no condition.
    """
    products, centre, spread, plain = tables.products, tables.centre, tables.spread, tables.scaling.size
    layers, count = energies.shape[1], tables.products.shape[1]
    first = 1 + plain  # columns: one, conditions, energy, depth, incident energy squared, local ones
    columns = np.zeros(first + 3 + LOCAL, np.float32)
    profile, scaled = np.empty(layers + 1, np.float32), np.empty((len(energies), plain), np.float32)
    scale(conditions, tables.scaling, scaled)
    for r in range(len(energies)):
        energy = scaled[r, tables.leading] if tables.leading >= 0 else ZERO
        columns[0], columns[first + 2], leading[r] = ONE, energy * energy, energy
        for i in range(plain):
            columns[1 + i] = scaled[r, i]

        # Log layer energies and the mean layer, as far as they differ from what the conditions say.
        whole, moment = ZERO, ZERO
        for layer in range(layers):
            whole += energies[r, layer]
            moment += F(layer) * energies[r, layer]
            profile[layer] = math.log(energies[r, layer] + tables.knee)
            logs[r, layer] = math.log(max(energies[r, layer], _LEAST_ENERGY))
        profile[layers] = moment / max(whole, F(1e-12))
        for layer in range(layers + 1):
            expected = ZERO
            for k in range(tables.plain):
                product = columns[products[0, k]] * columns[products[1, k]] * columns[products[2, k]]
                expected += product * centre[k, layer]
            profile[layer] = clipped((profile[layer] - expected) / spread[layer], -_CLIP, _CLIP)

        columns[first + 1] = profile[layers]
        for layer in range(layers):
            columns[first] = profile[layer]
            if local.size:
                for k in range(LOCAL):
                    columns[first + 3 + k] = local[r, layer, k]
            for k in range(count):
                design[layer, r, k] = columns[products[0, k]] * columns[products[1, k]] * columns[products[2, k]]
            drivers[r, layer, 0], drivers[r, layer, 1] = energy, math.tanh(design[layer, r, tables.depth])
            for k in range(2, drivers.shape[2]):
                drivers[r, layer, k] = columns[first + 3 + SIZE + k - 2]
            for k in range(drivers.shape[2]):
                drivers[r, layer, k] -= tables.driver_centre[k]
            unusual = (_FAINT_FROM - design[layer, r, tables.layer]) / _FAINT_OVER
            few = tables.few[layer] - logs[r, layer] + HALF
            faint[r, layer] = clipped(max(unusual, few), ZERO, ONE)
            together[r, layer] = ONE - faint[r, layer] * (ONE - tables.together[layer])


@kernel
def share_out(
    normals: Array,
    energies: Array,
    logs: Array,
    energy: Array,
    design: Array,
    apart: Array,
    bounds: NDArray[np.int64],
    tables: ShareTables,
    showers: Array,
) -> None:
    """:meth:`VoxelShares.inverse`: voxels in MeV from their normals.

    Args:
        normals: (B, V).
        energies: Of the layers, in MeV, (B, L).
        logs: Their logarithms.
        energy: The scaled incident energy, (B,).
        design: Features of voxels, (L, B, F).
        apart: To be added to the voxels' standardised log shares, (B, V), or nothing.
        bounds: Of the layers' voxels, (L + 1,).
        tables: What was fitted.
        showers: Receives (B, V).
    """
    count, features, widest = len(normals), design.shape[2], widest_of(bounds)
    odds, spreads = np.empty(count * widest, np.float32), np.empty(count * widest, np.float32)
    places, excess = np.empty(count * widest, np.float32), np.empty(widest, np.float32)
    pieces = np.empty((SHAPES, widest), np.float32)
    lanes, greatest = np.empty(_LANES, np.float32), np.empty(MOST + 2, np.float32)
    stations, shape = tables.stations, tables.shape
    for layer in range(len(bounds) - 1):
        # The three regressions of all voxels of a layer.
        low, width = bounds[layer], bounds[layer + 1] - bounds[layer]
        odd, spread = odds[: count * width].reshape(count, width), spreads[: count * width].reshape(count, width)
        location = places[: count * width].reshape(count, width)
        multiply(design[layer], of_layer(tables.occupancy, features, low, width), odd)
        multiply(design[layer], of_layer(tables.log_scale, features, low, width), spread)
        multiply(design[layer], of_layer(tables.location, features, low, width), location)
        for r in range(count):
            # The excess log p - log S, with p = 1 / (1 + exp(-logit)) and S = erfc(normal / root 2) / 2.
            for v in range(width):
                tail = erfc(clipped(normals[r, low + v], -_FARTHEST, _FARTHEST) * ROOT_HALF)
                excess[v] = -log((ONE + exp(odd[r, v])) * tail * HALF)
            if logs[r, layer] < tables.levels[len(tables.levels) - 1, layer]:
                _set_number(excess[:width], layer, logs[r, layer], tables, greatest)

            # It is a standard exponential where the voxel is on, and the quantile function, between two stations of
            # incident energy, makes it the logarithm of the share.
            station = 0 if energy[r] < stations[1] else 1
            above = clipped((energy[r] - stations[station]) / (stations[station + 1] - stations[station]), ZERO, ONE)
            below, made = ONE - above, showers[r, low : low + width]
            for piece in range(SHAPES):
                for v in range(width):
                    lower, upper = shape[piece, station, low + v], shape[piece, station + 1, low + v]
                    pieces[piece, v] = below * lower + above * upper
            for v in range(width):
                least = max(excess[v], _LEAST_EXCESS)
                log_excess = log(least)
                value = pieces[0, v] + pieces[1, v] * log_excess + pieces[2, v] * math.sqrt(least)
                value += pieces[3, v] * min(log_excess - _LOW, ZERO)
                made[v] = value + pieces[4, v] * min(log_excess - _MIDDLE, ZERO)
            if apart.size:
                for v in range(width):
                    made[v] += apart[r, low + v]
            for v in range(width):
                log_share = location[r, v] + exp(spread[r, v]) * made[v]
                share = exp(clipped(log_share, _LEAST_LOG_SHARE, _MOST_LOG_SHARE))
                made[v] = share if excess[v] > ZERO else ZERO
            _normalise(made, excess[:width], energies[r, layer], tables.threshold, lanes)
            if tables.half[layer] > ZERO:
                _move_to_line(made, tables.half[layer], tables.mass, tables.reach)
                multiply_each(made, energies[r, layer] / max(total(made, lanes), _TINY))


@compiled
def _normalise(voxels: Array, excess: Array, energy: F, threshold: F, lanes: Array) -> None:
    """Shares of voxels (N,) to energies over the thresholds, in place.

    A layer with no voxel on, or more than its energy suffices for, puts all into the one that came nearest.
    """
    whole, least = total(voxels, lanes), ZERO
    if threshold > ZERO:
        on = 0
        for v in range(len(voxels)):
            on += 1 if excess[v] > ZERO else 0
        least = threshold * F(on)
    if whole > ZERO and energy > least:
        factor = (energy - least) / max(whole, _TINY)
        for v in range(len(voxels)):
            voxels[v] = voxels[v] * factor + (threshold if excess[v] > ZERO else ZERO)
        return
    nearest = 0
    for v in range(len(voxels)):
        voxels[v] = ZERO
        if excess[v] > excess[nearest]:
            nearest = v
    voxels[nearest] = energy


@compiled
def _move_to_line(voxels: Array, half: F, mass: F, reach: F) -> None:
    """Voxels (N,) next to the electron's mass onto it: distances shrink by ``half``, and are stretched again."""
    stretch = reach / (reach - half)
    for v in range(len(voxels)):
        distance = voxels[v] - mass
        moved = mass + (distance - clipped(distance, -half, half)) * stretch
        voxels[v] = moved if abs(distance) < reach else voxels[v]


@compiled
def _set_number(excess: Array, layer: int, logs: F, tables: ShareTables, greatest: Array) -> None:
    """:class:`HitCounts` of one layer, in place.

    Args:
        excess: How far voxels are from being off, (N,).
        layer: Which.
        logs: The logarithm of its energy.
        tables: What was fitted.
        greatest: To be overwritten, (MOST + 2,).
    """
    # How many are on, and how nearly one more or less is.
    known, on, last, after, most = min(len(greatest), len(excess)), 0, F(1e30), F(-1e30), F(-1e30)
    for v in range(len(excess)):
        most = max(most, excess[v])
        if excess[v] > ZERO:
            on += 1
            last = min(last, excess[v])
        else:
            after = max(after, excess[v])
    if on >= known:
        number = F(known)
    elif on == 0:
        number = max(most, _NONE)
    else:
        number = F(on - 1) + last / max(last - after, _LEAST_STEP)
    if number > F(MOST):
        return

    # The number that as large a share of training showers has at this energy.
    levels, limits = tables.levels, tables.limits
    level = 0
    while level < len(levels) - 2 and logs >= levels[level + 1, layer]:
        level += 1
    above = (logs - levels[level, layer]) / (levels[level + 1, layer] - levels[level, layer])
    above, wanted = clipped(above, ZERO, ONE), 1
    for k in range(MOST):
        limit = limits[level, k, layer] + above * (limits[level + 1, k, layer] - limits[level, k, layer])
        wanted += 1 if number > limit + _TIE else 0
    if wanted == max(math.ceil(number), 1) or wanted >= known:
        return

    # What comes next in order is then just off.
    kept = 0
    for v in range(len(excess)):
        if kept <= wanted or excess[v] > greatest[wanted]:
            place = min(kept, wanted)
            while place > 0 and greatest[place - 1] < excess[v]:
                greatest[place] = greatest[place - 1]
                place -= 1
            greatest[place] = excess[v]
            kept += 1
    shift = greatest[wanted]
    for v in range(len(excess)):
        excess[v] -= shift
