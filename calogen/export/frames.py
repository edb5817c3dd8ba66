"""The shower frame as an ONNX graph: what ``models/showers/frame.py`` computes on the way to the read-out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..models.showers.frame import DEEPEST, EDGE, ShowerFrame
from .graph import Graph, Value, joined, looked_up, ratio
from .layers import Layers, array

Array = NDArray[Any]


@dataclass
class Cells:
    """Where axes cross the layers: see :class:`calogen.models.showers.frame.Cells`."""

    crossed: Value  # (B, L, 2), whole numbers
    offset: Value  # (B, L, 2)
    tangents: Value  # (B, 2)


class FrameGraph:
    """A shower frame.

    Args:
        graph: To be added to.
        frame: Fitted.
        conditions: One (B, 1) for each condition, by name, in its unit.
        energy: The scaled incident energy, (B, 1), 0 where it is no condition.
    """

    def __init__(self, graph: Graph, frame: ShowerFrame, conditions: dict[str, Value], energy: Value) -> None:
        self.graph, self.frame, self.energy = graph, frame, energy
        self.family, self.window = frame.family, frame.window
        self.count = len(self.family.layers)
        layers = self.family.layers
        self.extent = np.array([layer.z for layer in layers], np.float32)
        self.cells_of = np.array([layer.shape for layer in layers], np.float32)
        self.reach = np.array([layer.reach for layer in layers], np.float32)
        self.pitch = 2 * self.reach / self.cells_of
        # Numbers of the axes, in mm or rad; 0 where they are no conditions.
        axes = {name: self.family.condition(name).of_axis for name in conditions}
        zero = energy * 0.0
        self.axis = dict.fromkeys(("x", "y", "theta", "phi"), zero)
        self.axis |= {found[0]: conditions[name] * found[1] for name, found in axes.items() if found}

    def cells(self, energies: Value) -> Cells:
        """Where the axes cross the layers, whose energies on the read-out are (B, L)."""
        (begin, end), middle = self.extent.T, self.extent.mean(1, keepdims=True)
        course, spread = array(self.frame.course), float(self.frame.spread)
        total, line = energies.sum(1), self.energy * float(course[1]) + float(course[0])
        late = ((energies @ middle / total.at_least(1e-12)) - line) / spread
        late = late.where(total.above(0.0), 0.0).clipped(-DEEPEST, DEEPEST)
        features = joined([self.energy * 0.0 + 1.0, self.energy, late, late.square() - 1.0])
        depth = (features @ array(self.frame.depths).T).clipped(begin, end).shaped(self.count, 1)
        phi = self.axis["phi"]
        tangents = self.axis["theta"].function("Tan") * joined([phi.function("Cos"), phi.function("Sin")])
        impact = joined([self.axis["x"], self.axis["y"]])
        place = (impact.shaped(1, 2) + depth * tangents.shaped(1, 2)) / self.pitch + self.cells_of / 2
        crossed = place.function("Floor")
        return Cells(crossed, place - crossed, tangents)

    def features(self, cells: Cells) -> Value:
        """What is left of impact and angle in each layer, (B, L, 28)."""
        offset = cells.offset * 2.0 - 1.0
        slope = self._slope(cells).shaped(1, 2) * np.ones((self.count, 1))
        single = [offset, slope, offset.square(), slope.square(), offset * slope]
        higher = [offset.square() * slope, offset * slope.square(), (offset * slope).square()]
        higher += [offset.square().square(), slope.square().square()]
        across = [a.columns(0, 1, 2) * a.columns(1, 2, 2) for a in (offset, slope)] + [offset * slope.take([1, 0], 2)]
        bumps = [(cells.offset / -EDGE).exp(), ((cells.offset - 1.0) / EDGE).exp()]
        return joined([*single, *higher, *across, *bumps], 2)

    def drivers(self, cells: Cells) -> tuple[Value, Value]:
        """With what correlations change: tangents and their squares, (B, 4), and each layer's offsets, (B, L, 2)."""
        slope = self._slope(cells)
        return joined([slope, slope.square()]), cells.offset * 2.0 - 1.0

    def _slope(self, cells: Cells) -> Value:
        return cells.tangents / array(self.frame.steepest)

    def on_the_readout(self, showers: Value, cells: Cells) -> Value:
        """Showers (B, V) on the read-out from showers about their axis (B, V_window)."""
        graph, there, here = self.graph, Layers(self.window), Layers(self.family)
        beyond = showers.columns(0, 1) * 0.0
        sources = graph.apply("Cast", self._sources(cells), to=7)
        found = graph.apply("GatherElements", joined([showers, beyond]), sources, axis=1)
        wanted = there.sums(showers) * ratio(self._containment(cells), array(self.frame.contained), empty=1.0)
        found = found * here.spread(ratio(wanted, here.sums(found)))
        return found * (1.0 - found.below(self.family.threshold).number())

    def _sources(self, cells: Cells) -> Value:
        """The voxel of the window that each voxel of the read-out is, (B, V), one beyond the last where there is none.

        In float32: such numbers are exact up to 16,777,216, and a shower has no more.
        """
        last, parts = float(self.window.voxels), []
        for i, (layer, window) in enumerate(zip(self.family.layers, self.window.layers, strict=True)):
            crossed = cells.crossed.columns(i, i + 1).shaped(2)
            places = []
            for axis, (count, limit) in enumerate(zip(layer.shape, window.shape, strict=True)):
                place = np.arange(float(count)) + float(limit // 2) - crossed.columns(axis, axis + 1)
                inside = place.above(-0.5) & place.below(limit - 0.5)
                number = place * float(window.shape[1]) + float(self.window.layer_bounds[i]) if axis == 0 else place
                places.append(number.where(inside, last))
            rows, columns = places
            both = rows.shaped(layer.shape[0], 1) + columns.shaped(1, layer.shape[1])
            parts.append(both.shaped(layer.shape[0] * layer.shape[1]))
        return joined(parts).at_most(last)

    def _containment(self, cells: Cells) -> Value:
        """The share of a mean shower's energy in each layer that lies on the read-out, (B, L)."""
        axis = (cells.crossed + cells.offset) * self.pitch - self.reach
        inside = (1.0 - self._beyond(self.reach - axis) - self._beyond(axis + self.reach)).at_least(0.0)
        return (inside.columns(0, 1, 2) * inside.columns(1, 2, 2)).shaped(self.count)

    def _beyond(self, distance: Value) -> Value:
        """Share of a layer's energy beyond a straight line at some distance from the axis in mm; (B, L, 2) both."""
        tails, step = array(self.frame.tails), array(self.frame.step)
        points = tails.shape[1]
        position = (distance.function("Abs") / step[:, None]).shaped(self.count, 2, 1)
        logs = looked_up(tails[:, None], position.at_most(points - 1.0), points).shaped(self.count, 2)
        slope = tails[:, -1:] - tails[:, -2:-1]  # which goes on beyond the last point
        logs = logs + (position.shaped(self.count, 2) - (points - 1.0)).at_least(0.0) * slope
        share: Value = logs.exp()
        return (1.0 - share).where(distance.below(0.0), share)
