"""The shower frame, compiled: where axes are, and showers about their axis back on the read-out."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...compiling import compiled, kernel
from ..contract import Array
from .arithmetic import ONE, TWO, ZERO, F
from .frame import DEEPEST, EDGE, KNOTS, SIZE

LOCAL = SIZE + 4 + 2
"""Features of a layer, and its drivers: tangents and their squares, and its offsets."""

Axes = NDArray[np.float64]


class FrameTables(NamedTuple):
    """What :class:`ShowerFrame` knows of L layers; all in mm and radians.

    Attributes:
        leading: Column of the incident energy among the conditions; -1: it is none of them.
        line: Slope and offset of its scaled logarithm, or of itself, (2,):
        logarithmic: Which.
        columns: Of impact x and y, theta and phi among the conditions, (4,); -1: it is 0.
        factors: By which they are multiplied, (4,).
        course: (2,).
        spread: One number, (1,).
        depths: (L, 4).
        extent: (L, 2).
        pitch: (L, 2).
        cells: Of the read-out along both axes, (L, 2).
        window: Of the windows.
        starts: First voxel of each layer on the read-out, (L,).
        steepest: (2,).
        tails: (L, K).
        step: (L,).
        contained: (L,).
        threshold: In MeV.
    """

    leading: int
    line: NDArray[np.float64]
    logarithmic: bool
    columns: NDArray[np.int64]
    factors: NDArray[np.float64]
    course: NDArray[np.float64]
    spread: NDArray[np.float64]
    depths: NDArray[np.float64]
    extent: NDArray[np.float64]
    pitch: NDArray[np.float64]
    cells: NDArray[np.int64]
    window: NDArray[np.int64]
    starts: NDArray[np.int64]
    steepest: NDArray[np.float64]
    tails: NDArray[np.float64]
    step: NDArray[np.float64]
    contained: NDArray[np.float64]
    threshold: np.float32


@compiled
def _number(conditions: Array, tables: FrameTables, which: int) -> float:
    """Impact point or angle of one shower, from its conditions (C,)."""
    column = tables.columns[which]
    return conditions[column] * tables.factors[which] if column >= 0 else 0.0


@kernel
def find_axes(
    conditions: Array, energies: Array, tables: FrameTables, crossed: NDArray[np.int64], place: Axes, local: Array
) -> None:
    """:meth:`ShowerFrame.cells`, in double precision: rounding must not move an axis to another cell.

    Args:
        conditions: (B, C), in their units.
        energies: Of the layers, (B, L).
        tables: What was fitted.
        crossed: Receives the numbers of the crossed cells, (B, L, 2).
        place: Receives where within them, 0 to 1, (B, L, 2).
        local: Receives features and drivers of the layers, (B, L, 34).
    """
    extent, depths, pitch = tables.extent, tables.depths, tables.pitch
    layers = energies.shape[1]
    for r in range(len(energies)):
        tangent, phi = math.tan(_number(conditions[r], tables, 2)), _number(conditions[r], tables, 3)
        slopes = (tangent * math.cos(phi), tangent * math.sin(phi))
        energy = 0.0
        if tables.leading >= 0:
            energy = float(conditions[r, tables.leading])
            energy = tables.line[0] * (math.log(energy) if tables.logarithmic else energy) + tables.line[1]
        whole, late = 0.0, 0.0
        for layer in range(layers):
            whole += energies[r, layer]
            late += energies[r, layer] * (extent[layer, 0] + extent[layer, 1]) / 2
        if whole > 0:
            late = (late / max(whole, 1e-12) - tables.course[0] - tables.course[1] * energy) / tables.spread[0]
            late = min(max(late, -DEEPEST), DEEPEST)
        for layer in range(layers):
            depth = depths[layer, 0] + depths[layer, 1] * energy
            depth += depths[layer, 2] * late + depths[layer, 3] * (late * late - 1)
            depth = min(max(depth, extent[layer, 0]), extent[layer, 1])
            for axis in range(2):
                where = (_number(conditions[r], tables, axis) + depth * slopes[axis]) / pitch[layer, axis]
                where += tables.cells[layer, axis] / 2
                crossed[r, layer, axis] = math.floor(where)
                place[r, layer, axis] = where - crossed[r, layer, axis]
            _describe(place[r, layer], slopes, tables.steepest, local[r, layer])


@compiled
def _describe(place: Axes, slopes: tuple[float, float], steepest: Axes, out: Array) -> None:
    """:meth:`ShowerFrame.features` of one layer, (28,), and its drivers, (6,), one after another."""
    x, y = TWO * F(place[0]) - ONE, TWO * F(place[1]) - ONE
    slope_x, slope_y = F(slopes[0] / steepest[0]), F(slopes[1] / steepest[1])
    out[0], out[1], out[2], out[3] = x, y, slope_x, slope_y
    out[4], out[5], out[6], out[7] = x * x, y * y, slope_x * slope_x, slope_y * slope_y
    out[8], out[9] = x * slope_x, y * slope_y
    out[10], out[11], out[12], out[13] = out[4] * slope_x, out[5] * slope_y, x * out[6], y * out[7]
    out[14], out[15], out[16], out[17] = out[8] * out[8], out[9] * out[9], out[4] * out[4], out[5] * out[5]
    out[18], out[19] = out[6] * out[6], out[7] * out[7]
    out[20], out[21], out[22], out[23] = x * y, slope_x * slope_y, x * slope_y, y * slope_x
    out[24], out[25] = F(math.exp(-place[0] / EDGE)), F(math.exp(-place[1] / EDGE))
    out[26], out[27] = F(math.exp((place[0] - 1) / EDGE)), F(math.exp((place[1] - 1) / EDGE))
    out[28], out[29], out[30], out[31] = slope_x, slope_y, out[6], out[7]
    out[32], out[33] = x, y


@kernel
def to_read_out(
    framed: Array, bounds: NDArray[np.int64], crossed: NDArray[np.int64], place: Axes, tables: FrameTables, out: Array
) -> None:
    """:meth:`ShowerFrame.from_frame`.

    Args:
        framed: Voxels of the windows, in MeV, (B, V_window).
        bounds: Where the windows of the layers begin and end, (L + 1,).
        crossed: From :func:`find_axes`, as is
        place: this.
        tables: What was fitted.
        out: Receives voxels of the read-out, (B, V).
    """
    for r in range(len(framed)):
        for layer in range(len(tables.starts)):
            _shift_back(framed[r], layer, bounds[layer], crossed[r, layer], place[r, layer], tables, out[r])


@compiled
def _shift_back(
    framed: Array, layer: int, low: int, crossed: NDArray[np.int64], place: Axes, tables: FrameTables, out: Array
) -> None:
    """One layer of one shower, whose window begins at voxel ``low``; arguments as for :func:`to_read_out`."""
    energy, kept, target = ZERO, ZERO, tables.starts[layer]
    columns, rows = tables.cells[layer, 0], tables.cells[layer, 1]
    width, height = tables.window[layer, 0], tables.window[layer, 1]
    for v in range(low, low + width * height):
        energy += framed[v]
    # Whole cells are shifted; cells of the read-out beyond the window have nothing.
    shift_x, shift_y = width // 2 - crossed[0], height // 2 - crossed[1]
    for i in range(columns):
        for j in range(rows):
            x, y, found = i + shift_x, j + shift_y, ZERO
            if 0 <= x < width and 0 <= y < height:
                found = framed[low + x * height + y]
            out[target] = found
            kept += found
            target += 1
    # The layer has what a mean shower has here.
    wanted = energy * F(_relative_containment(layer, crossed, place, tables))
    factor = wanted / kept if kept > ZERO else ZERO
    for v in range(tables.starts[layer], target):
        value = out[v] * factor
        out[v] = ZERO if value < tables.threshold else value  # what an edge takes away may leave too little


@compiled
def _relative_containment(layer: int, crossed: NDArray[np.int64], place: Axes, tables: FrameTables) -> float:
    """The share of a mean shower's energy that lies on the read-out, over its mean in the data."""
    contained = 1.0
    for axis in range(2):
        half = tables.pitch[layer, axis] * tables.cells[layer, axis] / 2
        where = (crossed[axis] + place[axis]) * tables.pitch[layer, axis] - half
        beyond = _beyond(half - where, layer, tables) + _beyond(half + where, layer, tables)
        contained *= max(1 - beyond, 0.0)
    return contained / tables.contained[layer] if tables.contained[layer] > 0 else 1.0


@compiled
def _beyond(distance: float, layer: int, tables: FrameTables) -> float:
    """The share of a layer's energy beyond a straight line at some distance from the axis."""
    position = abs(distance) / tables.step[layer]
    knot = int(min(position, KNOTS - 2.0))
    low, high = tables.tails[layer, knot], tables.tails[layer, knot + 1]
    share = math.exp(low + (high - low) * (position - knot))
    return 1 - share if distance < 0 else share
