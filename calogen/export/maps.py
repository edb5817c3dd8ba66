"""The default generator of density maps as an ONNX graph, at the size it was trained on.

Fourier transforms are products with matrices: at these sizes they take less time than ONNX's operator, and every
runtime has them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..models.layers import SLOPE
from ..models.maps import distributions, matter, zeldovich
from ..models.maps.residual import Residual, Turned
from ..models.maps.zeldovich import SHEETS, ZeldovichGenerator
from .conditions import scaled_columns
from .graph import Graph, Value, increasing, joined
from .layers import array

Array = NDArray[Any]


def map_graph(graph: Graph, generator: ZeldovichGenerator, latent: Value, conditions: Sequence[Value]) -> Value:
    """Maps (B, H, W), 1 + delta: see :meth:`calogen.models.maps.zeldovich.ZeldovichGenerator.forward`.

    Args:
        graph: To be added to.
        generator: Fitted, on the CPU.
        latent: Standard normals, (B, Z).
        conditions: One (B, 1) for each condition, in its unit.
    """
    return _Maps(graph, generator, latent, conditions).made()


class _Modes:
    """Real Fourier transforms of maps (B, H, W), modes as real and imaginary parts (B, H, W // 2 + 1)."""

    def __init__(self, height: int, width: int) -> None:
        self.count = width // 2 + 1
        place, wave = np.arange(width), np.arange(self.count)
        angle = 2 * np.pi * np.outer(place, wave) / width
        self.along = np.concatenate([np.cos(angle), -np.sin(angle)], 1)  # (W, 2 K)
        angle = 2 * np.pi * np.outer(np.arange(height), np.arange(height)) / height
        self.cosine, self.sine = np.cos(angle), np.sin(angle)
        # One of each pair of conjugate modes is kept, and counts twice on the way back.
        weight = np.where((wave == 0) | (2 * wave == width), 1.0, 2.0)[:, None] / (height * width)
        angle = 2 * np.pi * np.outer(wave, place) / width
        self.back = np.concatenate([weight * np.cos(angle), -weight * np.sin(angle)])  # (2 K, W)

    def of(self, maps: Value) -> tuple[Value, Value]:
        """Modes of maps."""
        both = maps @ self.along
        real, imaginary = both.columns(0, self.count, 2), both.columns(self.count, 2 * self.count, 2)
        return (
            self.cosine @ real + self.sine @ imaginary,
            self.cosine @ imaginary - self.sine @ real,
        )

    def maps(self, real: Value, imaginary: Value) -> Value:
        """Maps of modes."""
        rows = self.cosine @ real - self.sine @ imaginary, self.cosine @ imaginary + self.sine @ real
        return joined(list(rows), 2) @ self.back


class _Maps:
    def __init__(self, graph: Graph, generator: ZeldovichGenerator, latent: Value, conditions: Sequence[Value]) -> None:
        self.graph, self.generator = graph, generator
        self.height, self.width = generator.family.sample_shape
        self.modes = _Modes(self.height, self.width)
        self.grid = matter.Grid.of(self.height, self.width, generator.pixel, torch.device("cpu"))
        self.zero = latent.columns(0, 1) * 0.0
        names = generator.conditions
        scaled = scaled_columns(generator.family, names, dict(zip(names, conditions, strict=True)))
        # Constant, linear and quadratic terms, and cubes, as in `features` of models/maps/distributions.py.
        first, second = np.triu_indices(len(scaled))
        squares = [scaled[a] * scaled[b] for a, b in zip(first, second, strict=True)]
        self.terms = joined([self.zero + 1.0, *scaled, *squares, *(x * x.square() for x in scaled)])
        self.scaled = scaled
        size = self.height * self.width
        self.planes = [plane.shaped(self.height, self.width) for plane in latent.among([size] * (SHEETS + 1))]

    def made(self) -> Value:
        """Maps of 1 + delta."""
        generator, ends, nodes = self.generator, distributions.ENDS, distributions.NODES
        real, imaginary = self._matter()
        factor = self._of_modes(generator.transfer, self._linear_position()).exp()
        field = self.modes.maps(real * factor, imaginary * factor)

        # Normals of the field, what the network adds, and densities with the distribution of the training maps.
        normals = self._normals(field)
        normals = self._network(generator.residual, normals)
        tables, knee = generator.transform, float(generator.transform.knee)
        position = (normals.clipped(-ends, ends) + ends) * ((nodes - 1) / (2 * ends))
        logs = self._interpolated(self._quantiles(tables.scores, nodes), position, nodes)
        return (logs.exp() - knee).at_least(0.0)

    # --- matter ---------------------------------------------------------------------------------------------------

    def _matter(self) -> tuple[Value, Value]:
        """Modes of ln density: see :meth:`~calogen.models.maps.zeldovich.ZeldovichGenerator.matter`."""
        generator, wave = self.generator, array(self.grid.wave)
        amplitude = (self._of_modes(generator.spectrum, self._log_position()) * 0.5).exp() * (1 / generator.pixel)
        smoothing = (self.terms @ array(generator.truncation)[:, None]).exp().shaped(1, 1)
        smooth = ((smoothing * wave).square() * -0.5).exp()

        total: Value | None = None
        means: Value | None = None
        for plane in self.planes[:SHEETS]:
            real, imaginary = self.modes.of(plane)
            if means is None:
                means = real
            total = self._deposited(real * amplitude, imaginary * amplitude, smooth, total)
        if total is None or means is None:
            raise AssertionError
        logs = (self._folded(total) / (4.0 * SHEETS) + zeldovich.KNEE).log()
        onset = ((logs - zeldovich.ONSET) / zeldovich.WIDTH).function("Sigmoid")
        strength = onset * self.graph.apply("Pow", smoothing, zeldovich.GROWTH)
        logs = logs + self._grain(self.planes[-1]) * strength

        # How much matter a slab holds is noise of its own: the first mode is that of the noise.
        real, imaginary = self.modes.of(logs)
        first = np.zeros(wave.shape)
        first[0, 0] = 1.0
        return real * (1.0 - first) + means * first, imaginary * (1.0 - first)

    def _grain(self, plane: Value) -> Value:
        size = zeldovich.GRAIN_SIZE / self.generator.pixel
        spread = math.erf(math.pi * size) / (2 * math.sqrt(math.pi) * size)
        smooth = np.exp(-0.5 * np.square(array(self.grid.wave) * zeldovich.GRAIN_SIZE)) * (zeldovich.GRAIN / spread)
        real, imaginary = self.modes.of(plane)
        return self.modes.maps(real * smooth, imaginary * smooth)

    def _deposited(self, real: Value, imaginary: Value, smooth: Value, total: Value | None) -> Value:
        """Matter of a sheet, moved and added to ``total``, (B, (H + 1)(W + 1)); see ``displaced``."""
        kept = real * smooth, imaginary * smooth
        void = ((matter.VOID - self.modes.maps(*kept)) * (1 / matter.VOID_EDGE)).function("Sigmoid")
        places = []
        for gradient, position in zip(array(self.grid.gradient), array(self.grid.position), strict=True):
            moved = self.modes.maps(-kept[1] * gradient, kept[0] * gradient)
            small = self.modes.maps((kept[1] - imaginary) * gradient, (real - kept[0]) * gradient)
            places.append(small * void + moved + position)
        for rows, columns in product((0, 1), (0, 1)):
            y = self._between(places[0], rows, columns, self.height, 0)
            x = self._between(places[1], rows, columns, 0, self.width)
            total = self._added(total, y, x)
        if total is None:
            raise AssertionError
        return total

    def _between(self, place: Value, rows: int, columns: int, down: float, right: float) -> Value:
        """Positions half a row, half a column further."""
        for axis, (half, step) in enumerate(((rows, down), (columns, right)), start=1):
            if half:
                size = (self.height, self.width)[axis - 1]
                beyond = place.columns(0, 1, axis) + float(step)
                place = (place + joined([place.columns(1, size, axis), beyond], axis)) * 0.5
        return place

    def _added(self, total: Value | None, y: Value, x: Value) -> Value:
        """Particles of mass 1 at positions in pixels added to ``total``: cloud in cell."""
        stride = self.width + 1
        corners, parts = [], []
        for place, side in ((y, self.height), (x, self.width)):
            cell = place.function("Floor")
            parts.append(place - cell)
            corners.append(cell - ((cell + 0.5) / float(side)).function("Floor") * float(side))  # periodic
        index, (down, right) = corners[0] * float(stride) + corners[1], parts
        both = down * right
        weights = (1.0 - down - right + both, right - both, down - both, both)
        places = joined([(index + step).shaped(self.height * self.width) for step in (0.0, 1.0, stride, stride + 1.0)])
        values = joined([weight.shaped(self.height * self.width) for weight in weights])
        if total is None:
            total = self.zero * np.ones((self.height + 1) * stride)
        places = self.graph.apply("Cast", places, to=7)
        return self.graph.apply("ScatterElements", total, places, values, axis=1, reduction="add")

    def _folded(self, total: Value) -> Value:
        """The row and the column beyond the box added to the first ones, whose periodic images they are."""
        total = total.shaped(self.height + 1, self.width + 1)
        for axis, size in ((1, self.height), (2, self.width)):
            first = total.columns(0, 1, axis) + total.columns(size, size + 1, axis)
            total = joined([first, total.columns(1, size, axis)], axis)
        return total

    # --- tables ---------------------------------------------------------------------------------------------------

    def _of_modes(self, table: Tensor, position: Array) -> Value:
        """Functions of the conditions at positions between the knots of a table (F, K): (B, H, W // 2 + 1)."""
        knots = array(table)
        cell = np.clip(np.floor(position), 0, knots.shape[1] - 2).astype(np.int64)
        fixed = knots[:, cell] + (position - cell) * (knots[:, cell + 1] - knots[:, cell])  # linear in the terms, too
        found: Value = self.terms @ fixed.reshape(len(knots), -1)
        return found.shaped(*position.shape)

    def _linear_position(self) -> Array:
        position = np.clip(array(self.grid.wave) / self.generator.step, 1, self.generator.transfer.shape[1] - 1)
        position[0, 0] = 0
        return position

    def _log_position(self) -> Array:
        return array(self.generator.log_position(self.grid.wave))

    def _normals(self, field: Value) -> Value:
        """Standard normals of a field, by the distribution of its values."""
        inner = self.generator.inner
        low, high = (float(end) for end in inner.ends)
        size = inner.probit.shape[1]
        return self._interpolated(self._probits(inner), (field - low) * ((size - 1) / (high - low)), size)

    def _probits(self, own: distributions.ConditionalDistribution) -> Value:
        """Normals at the thresholds, increasing, (B, T)."""
        size, most = own.probit.shape[1], distributions.ENDS + 0.5
        normals = (self.terms @ array(own.probit)).clipped(-most, most)
        return increasing(normals, size) + np.arange(size) * distributions.SMALLEST

    def _quantiles(self, own: distributions.ConditionalDistribution, nodes: int) -> Value:
        """Values at evenly spaced normals from -5 to 5, (B, nodes): the table of the inverse."""
        table, size = self._probits(own), own.probit.shape[1]
        wanted = np.linspace(-distributions.ENDS, distributions.ENDS, nodes, dtype=np.float32)
        # How many thresholds lie below: where each node is in the increasing table.
        count = table.shaped(1, size).below(wanted[:, None]).number().sum(2).shaped(nodes).clipped(1.0, size - 1.0)
        low, high = self._at(table, count - 1.0), self._at(table, count)
        position = count - 1.0 + ((wanted - low) / (high - low).at_least(1e-12)).clipped(0.0, 1.0)
        first, last = (float(end) for end in own.ends)
        return position * ((last - first) / (size - 1)) + first

    def _at(self, table: Value, index: Value) -> Value:
        """Entries of tables (B, T) at whole numbers (B, M)."""
        return self.graph.apply("GatherElements", table, self.graph.apply("Cast", index, to=7), axis=1)

    def _interpolated(self, table: Value, position: Value, size: int) -> Value:
        """Straight lines between the entries of tables (B, size), and beyond their ends, at positions (B, H, W)."""
        flat = position.shaped(self.height * self.width)
        cell = flat.clipped(0.0, size - 1 - 1e-3).function("Floor")
        low, high = self._at(table, cell), self._at(table, cell + 1.0)
        return (low + (flat - cell) * (high - low)).shaped(self.height, self.width)

    # --- network --------------------------------------------------------------------------------------------------

    def _network(self, residual: Residual, normals: Value) -> Value:
        """Normals with what the network adds; as they are, if its last layer is zero."""
        if residual.silent:
            return normals
        plane = np.ones((1, self.height, self.width))
        known = [column.shaped(1, 1, 1) * plane for column in self.scaled]
        grid = joined([x.shaped(1, self.height, self.width) for x in (normals, self.planes[-1])] + known)
        width = 2 + len(known)
        for i, level in enumerate(residual.layers):
            made = self.graph.apply("LeakyRelu", self._convolved(grid, level), alpha=SLOPE)
            outputs = len(level.weight)
            grid = made + grid if i and outputs == width else made
            width = outputs
        return normals + self._convolved(grid, residual.last).shaped(self.height, self.width)

    def _convolved(self, grid: Value, layer: Turned) -> Value:
        """A circular convolution of 3 x 3."""
        far = layer.spacing
        for axis, size in ((2, self.height), (3, self.width)):
            grid = joined([grid.columns(size - far, size, axis), grid, grid.columns(0, far, axis)], axis)
        return self.graph.apply("Conv", grid, array(layer.weight), array(layer.bias), dilations=[far, far])
