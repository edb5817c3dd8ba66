"""The shower frame: showers described about their axis, wherever they hit and from whatever direction they come.

In a uniform detector a shower that is moved by whole cells is the same shower. So every layer is shifted by whole cells
until the cell that the axis crosses is the middle one, and what is left of impact and angle is small: where within
that cell the axis crosses, and how steep it is. Detectors that are not uniform (gaps, modules, cells of several sizes
in one layer) are not described this way.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ...errors import ConditionError
from ...families import CartesianLayer, Family
from ..conditions import energy_column, scale_conditions

SIZE = 28
"""How many :meth:`ShowerFrame.features` there are."""
CROSSED = 10
"""How many of them, the first, change with the layer's energy and the shower's depth."""
_PLACING = ("impact", "angle")  # roles of conditions that say where the axis is
_DEPTHS = 4  # numbers that a layer's effective depth is made of
DEEPEST = 3.0  # standard deviations of the shower's depth beyond which effective depths do not change
EDGE = 0.1  # of a cell: how near to its edges shares change fast
KNOTS = 25  # distances at which the share of energy beyond is kept
_SMALLEST = 1e-6  # of a layer's energy: the least such share
_MOST_ROWS = 20_000  # showers that all of this is fitted to: effective depths are known to less than a millimetre then
_LEAST = 0.1  # of a layer's usual containment: further out, nothing says what was lost
_MARGIN = 1e-6  # of a range: rounding
_OUTLIER = 3.0  # spreads of the centroids beyond which they count less
_ROUNDS = 10  # of reweighting
_RESOLUTION = 10**6  # cell sizes are told apart to a nanometre


class Cells(NamedTuple):
    """Where the axes of B showers cross the L layers, at their effective depths.

    Attributes:
        crossed: Numbers of the crossed cells along x and y, (B, L, 2), int64; outside the layer's where the axis is.
        offset: Where within the cell, 0 to 1, (B, L, 2).
        tangents: tan(theta) (cos phi, sin phi), (B, 2).
    """

    crossed: Tensor
    offset: Tensor
    tangents: Tensor


def frame_of(family: Family, conditions: Sequence[str]) -> tuple[ShowerFrame | None, tuple[str, ...]]:
    """The shower frame for some conditions, and what the log should say where there should be one but is none.

    Args:
        family: A calorimeter family.
        conditions: Names of the conditions.

    Returns:
        None where neither impact nor angle are conditions; and, with a remark, where the layers do not allow a frame.
    """
    placing = [c for c in map(family.condition, conditions) if c.role in _PLACING]
    unknown = [f"'{c.name}' [{c.unit}]" for c in placing if c.of_axis is None]
    if not placing:
        return None, ()
    if unknown:
        reason = f"it knows impact_x, impact_y [mm] and theta, phi [deg or rad], not {', '.join(unknown)}"
    elif not all(layer.rectangular for layer in family.layers):
        reason = "it needs layers of rectangular cells"
    elif any(layer.z is None for layer in family.layers):
        reason = "it needs to know where layers begin and end: add to each, in mm, such as `z = [0, 90]`, in the family"
    else:
        return ShowerFrame(family, conditions), ()
    return None, (f"fitted without a shower frame, in which impact and angle would be followed better: {reason}",)


class ShowerFrame(nn.Module):
    """Showers <-> showers about their axis.

    The axis crosses layer l at impact + z tan(theta) (cos phi, sin phi), where z is the layer's *effective* depth: that
    of its energy. It depends on the incident energy and on how deep the shower is, which its layer energies say: a late
    shower deposits late in every layer.

    A layer's window has an odd number of cells along each axis, its middle one the crossed cell, so that mirror images
    of windows are windows. What lies beyond it is little, and given to the layer's other cells in proportion.

    Near the edges of the read-out, showers lose energy. In the frame a layer has the energy that it would have at the
    usual distance from them: that of the read-out over the :meth:`containment` of a mean shower there, relative to the
    mean over the training showers. The way back is the inverse, so nothing is lost twice, and energies do not depend on
    the impact point in the frame. How much single showers differ in what they lose is not described.

    Args:
        family: A calorimeter family of rectangular cells with depths.
        conditions: Names of the conditions, in the order of the columns; the impact point and the angles among them are
            found by their names, and those that are no conditions are 0.

    Attributes:
        window: What a shower in the frame is: the family with windows as layers. Mirrors are symmetries here, with
            the cells of mirrored showers.
        axis: Columns and factors, to mm or rad, of the conditions that say where the axis is: "x", "y", "theta", "phi".
        periods: Impacts that differ by whole multiples (x, y) of these, in mm, differ by whole cells in every layer.
    """

    _extent: Tensor  # (L, 2) where layers begin and end, in mm
    _pitch: Tensor  # (L, 2) size of their cells along x and y, in mm
    _counts: Tensor  # (L, 2) how many
    course: Tensor  # (2,) the mean depth of a shower's energy, in mm, as a line in the scaled incident energy ...
    spread: Tensor  # () ... and its spread about it
    depths: Tensor  # (L, 4) effective depth in mm: constant, energy, depth of the shower, its square
    steepest: Tensor  # (2,) the largest tangents in the data
    tails: Tensor  # (L, 25) logarithm of the mean share of a layer's energy beyond lines at some distance from the axis
    step: Tensor  # (L,) from one such distance to the next, in mm; the first is 0
    contained: Tensor  # (L,) mean containment of the showers in the data

    def __init__(self, family: Family, conditions: Sequence[str]) -> None:
        super().__init__()
        self.family, self.conditions = family, tuple(conditions)
        layers = cast("tuple[CartesianLayer, ...]", family.layers)
        windows = [tuple(n // 2 * 2 + 1 for n in layer.shape) for layer in layers]
        sizes = [(n * p, m * q) for (n, m), (p, q) in zip(windows, (layer.pitch for layer in layers), strict=True)]
        self.window = family.model_copy(
            update={
                "layers": tuple(
                    layer.model_copy(update={"shape": window, "size": size})
                    for layer, window, size in zip(layers, windows, sizes, strict=True)
                ),
                "symmetries": ("mirror-x", "mirror-y"),
            }
        )
        self.periods = tuple(_common_multiple([layer.pitch[axis] for layer in layers]) for axis in (0, 1))
        placing = [(i, c) for i, c in enumerate(map(family.condition, conditions)) if c.of_axis]
        self.axis = {c.of_axis[0]: (i, c.of_axis[1]) for i, c in placing if c.of_axis}
        self.register_buffer("_extent", torch.tensor([layer.z for layer in layers]), persistent=False)
        self.register_buffer("_pitch", torch.tensor([layer.pitch for layer in layers]), persistent=False)
        self.register_buffer("_counts", torch.tensor([layer.shape for layer in layers]), persistent=False)
        self.register_buffer("course", torch.zeros(2))
        self.register_buffer("spread", torch.tensor(1.0))
        self.register_buffer("depths", nn.functional.pad(self._extent.mean(1, keepdim=True), (0, _DEPTHS - 1)))
        self.register_buffer("steepest", torch.ones(2))
        self.register_buffer("tails", math.log(0.5) - torch.arange(float(KNOTS)).repeat(len(layers), 1))
        self.register_buffer("step", (self._pitch * self._counts).amax(1) / 2 / (KNOTS - 1))
        self.register_buffer("contained", torch.ones(len(layers)))

    # --- where the axis is ----------------------------------------------------------------------------------------

    def cells(self, conditions: Tensor, energies: Tensor | None = None) -> Cells:
        """The cells that the axes cross.

        Args:
            conditions: (B, C), in their units.
            energies: Layer energies on the read-out, (B, L); none: of showers of mean depth.
        """
        impact, tangents = self._impact(conditions), self._tangents(conditions)
        features = self._depth_features(conditions, energies)
        begin, end = self._extent.unbind(1)
        depth = torch.minimum(torch.maximum(features @ self.depths.T, begin), end)
        place = (impact[:, None] + depth[:, :, None] * tangents[:, None]) / self._pitch + self._counts / 2
        crossed = torch.floor(place)
        return Cells(crossed.long(), place - crossed, tangents)

    def _impact(self, conditions: Tensor) -> Tensor:
        """Impact points (B, 2) in mm."""
        return torch.stack([self._number(conditions, which) for which in "xy"], 1)

    def _tangents(self, conditions: Tensor) -> Tensor:
        """Slopes (B, 2) of the axes."""
        theta, phi = (self._number(conditions, which) for which in ("theta", "phi"))
        return torch.tan(theta)[:, None] * torch.stack([torch.cos(phi), torch.sin(phi)], 1)

    def _number(self, conditions: Tensor, which: str) -> Tensor:
        """A number of the axes, (B,), in mm or rad; 0 where it is no condition."""
        column, factor = self.axis.get(which, (0, 0.0))
        return conditions[:, column] * factor

    def _depth_features(self, conditions: Tensor, energies: Tensor | None) -> Tensor:
        """What effective depths are linear in, (B, 4)."""
        energy = self._energy(conditions)
        late = torch.zeros_like(energy)
        if energies is not None:
            late = (self._mean_depth(energies) - self.course[0] - self.course[1] * energy) / self.spread
            late = torch.where(energies.sum(1) > 0, late, 0.0).clamp(-DEEPEST, DEEPEST)
        return torch.stack([torch.ones_like(energy), energy, late, late.square() - (energies is not None) * 1.0], 1)

    def _energy(self, conditions: Tensor) -> Tensor:
        """The scaled incident energy (B,), 0 where it is no condition."""
        column = energy_column(self.family, self.conditions)
        scaled = scale_conditions(self.family, self.conditions, conditions)
        return torch.zeros_like(scaled[:, 0]) if column is None else scaled[:, column]

    def _mean_depth(self, energies: Tensor) -> Tensor:
        """The mean depth of the energy, (B,), in mm, as if it were in the middles of the layers."""
        return energies @ self._extent.mean(1) / energies.sum(1).clamp(min=1e-12)

    # --- there and back -------------------------------------------------------------------------------------------

    def to_frame(self, showers: Tensor, cells: Cells) -> tuple[Tensor, Tensor]:
        """Showers about their axis.

        Args:
            showers: As on the read-out, (B, V), in the family's unit.
            cells: Where their axes are.

        Returns:
            (B, V_window); and the share of each layer's energy that lay beyond the window, (B, L).
        """
        found, energies = self._taken(showers, cells, inwards=True), self.energies(showers, self.family)
        kept = self.energies(found, self.window)
        wanted = energies / self._relative_containment(cells).clamp(min=_LEAST)
        parts = []
        for i, part in enumerate(self.window.layer_slices):
            # A layer with all of its energy beyond the window is rare; it goes into the middle, which is the axis.
            layer = found[:, part] * _ratio(wanted[:, i], kept[:, i])[:, None]
            middle = torch.arange(layer.shape[1], device=layer.device) == layer.shape[1] // 2
            parts.append(torch.where(kept[:, i, None] > 0, layer, wanted[:, i, None] * middle))
        return torch.cat(parts, 1), 1 - _ratio(kept, energies, empty=1.0)

    def from_frame(self, showers: Tensor, cells: Cells) -> tuple[Tensor, Tensor]:
        """Showers on the read-out from showers about their axis.

        Args:
            showers: (B, V_window), in the family's unit.
            cells: Where their axes are.

        Returns:
            (B, V); and the energy that each layer loses for being nearer to an edge than usual, (B, L), negative for
            showers further away from it.
        """
        found, energies = self._taken(showers, cells, inwards=False), self.energies(showers, self.window)
        wanted = energies * self._relative_containment(cells)
        factor = _ratio(wanted, self.energies(found, self.family))
        parts = [found[:, part] * factor[:, i, None] for i, part in enumerate(self.family.layer_slices)]
        found = torch.cat(parts, 1)
        return found, energies - self.energies(found, self.family)

    def inside(self, cells: Cells) -> Tensor:
        """Which cells of the windows lie on the read-out, (B, V_window) bool: all others cannot have been seen."""
        return self._sources(cells, inwards=True) < self.family.voxels

    def containment(self, cells: Cells) -> Tensor:
        """The share of a mean shower's energy in each layer that lies on the read-out, (B, L)."""
        # Along each axis, what lies beyond either edge; across the two the shower is taken to be a product.
        half = self._pitch * self._counts / 2
        axis = (cells.crossed + cells.offset) * self._pitch - half
        return (1 - self._beyond(half - axis) - self._beyond(half + axis)).clamp(min=0).prod(2)

    def _beyond(self, distance: Tensor) -> Tensor:
        """Share of a layer's energy beyond a straight line at some distance from the axis in mm; (B, L, 2) both."""
        # Exponentials between the knots, and outside them; the axis halves a shower.
        position = distance.abs() / self.step[:, None]
        knot = position.detach().nan_to_num(0.0).clamp(max=KNOTS - 2).floor()
        index = knot.long().permute(1, 0, 2).flatten(1)
        low, high = (self.tails.gather(1, index + k).unflatten(1, (-1, 2)).transpose(0, 1) for k in (0, 1))
        share = torch.exp(torch.lerp(low, high, position - knot))
        return torch.where(distance < 0, 1 - share, share)

    def _relative_containment(self, cells: Cells) -> Tensor:
        return _ratio(self.containment(cells), self.contained.expand(len(cells.crossed), -1), empty=1.0)

    def energies(self, showers: Tensor, family: Family) -> Tensor:
        """Energy of each layer, (B, L), of showers (B, V) of a family: this one or the windows'."""
        return torch.stack([showers[:, part].sum(1) for part in family.layer_slices], 1)

    def _places(self, cells: Cells, layer: int, axis: int, *, inwards: bool) -> tuple[Tensor, Tensor]:
        """Where each row of cells of a layer's window (or read-out) is on the read-out (or window), and whether."""
        there, here = (family.layers[layer].shape[axis] for family in (self.family, self.window))
        crossed, middle = cells.crossed[:, layer, axis, None], here // 2
        wanted = torch.arange(here if inwards else there, device=crossed.device)
        place = wanted - middle + crossed if inwards else wanted + middle - crossed
        limit = there if inwards else here
        return place, (place >= 0) & (place < limit)

    def _taken(self, showers: Tensor, cells: Cells, *, inwards: bool) -> Tensor:
        """Voxels of showers where they are in the windows, or from there back; 0 where there are none."""
        return nn.functional.pad(showers, (0, 1)).gather(1, self._sources(cells, inwards=inwards))

    def _sources(self, cells: Cells, *, inwards: bool) -> Tensor:
        """The voxel of the read-out that each voxel of the windows is, or the reverse, (B, V); V beyond the last."""
        source, target = (self.family, self.window) if inwards else (self.window, self.family)
        found = cells.crossed.new_empty(len(cells.crossed), target.voxels)
        for i, (layer, start) in enumerate(zip(source.layers, source.layer_bounds, strict=False)):
            (x, on_x), (y, on_y) = (self._places(cells, i, axis, inwards=inwards) for axis in (0, 1))
            rows = torch.where(on_x, x * layer.shape[1] + start, source.voxels)
            columns = torch.where(on_y, y, source.voxels)
            part = found[:, target.layer_slices[i]].unflatten(1, target.layers[i].shape)
            torch.add(rows[:, :, None], columns[:, None], out=part)
        return found.clamp_(max=source.voxels)

    # --- what showers depend on in the frame ----------------------------------------------------------------------

    def features(self, cells: Cells) -> Tensor:
        """What is left of impact and angle in each layer, (B, L, 28), dimensionless, of order one.

        Along each axis, offset (from -1 to 1 across the cell) and tangent (in units of the steepest) to the second
        order in each, since a steep shower is smeared over narrow cells wherever it crosses them, and fourth powers;
        products across the axes; and bumps at the cell's edges, for cells wider than a shower.
        """
        offset = 2 * cells.offset - 1
        slope = (cells.tangents / self.steepest)[:, None].expand_as(offset)
        single = [offset, slope, offset.square(), slope.square(), offset * slope]
        higher = [offset.square() * slope, offset * slope.square(), (offset * slope).square(), offset**4, slope**4]
        across = [a.prod(-1, keepdim=True) for a in (offset, slope)] + [offset * slope.flip(-1)]
        bumps = [torch.exp(-cells.offset / EDGE), torch.exp((cells.offset - 1) / EDGE)]
        return torch.cat([*single, *higher, *across, *bumps], -1)

    def drivers(self, cells: Cells) -> tuple[Tensor, Tensor]:
        """With what correlations change: tangents and their squares, (B, 4), and each layer's offsets, (B, L, 2)."""
        slope = cells.tangents / self.steepest
        return torch.cat([slope, slope.square()], 1), 2 * cells.offset - 1

    # --- what may be asked for ------------------------------------------------------------------------------------

    def equivalent(
        self, conditions: NDArray[np.float32], low: Sequence[float], high: Sequence[float]
    ) -> NDArray[np.float32]:
        """Conditions with impact points moved by whole common periods of the cells into the trained range.

        Showers there are the same, moved by whole cells. Points that no such move brings into the range stay where they
        are, as do those within it.

        Args:
            conditions: (N, C), in their units, possible ones.
            low: Lower ends of the trained ranges, C of them.
            high: Upper ends.

        Raises:
            ConditionError: If, with impact or angles outside the trained ranges, a particle does not enter the detector
                at its face, or its axis leaves it at the side.
        """
        columns = [column for column, _ in self.axis.values()]
        ends = np.array([low, high], np.float64)
        ends += [[-_MARGIN], [_MARGIN]] * np.abs(ends).max(0)
        beyond = (conditions < ends[0]) | (conditions > ends[1])
        self._refuse_what_misses(conditions, beyond[:, columns].any(1))
        moved = conditions.copy()
        for which, period in zip("xy", self.periods, strict=True):
            if which in self.axis:
                i = self.axis[which][0]
                there = conditions[:, i] - period * np.ceil((conditions[:, i] - ends[1, i]) / period)
                moved[:, i] = np.where(beyond[:, i] & (there >= ends[0, i]), there, conditions[:, i])
        return moved

    @torch.no_grad()
    def _refuse_what_misses(self, conditions: NDArray[np.float32], rows: NDArray[np.bool_]) -> None:
        given = torch.from_numpy(np.ascontiguousarray(conditions))
        theta, impact, cells = self._number(given, "theta"), self._impact(given), self.cells(given)
        first, last = (self.family.layers[i].outline for i in (0, -1))
        reach = [torch.tensor([layer.across[-1], layer.up[-1]]) for layer in (first, last)]
        place = ((cells.crossed + cells.offset)[:, -1] - self._counts[-1] / 2) * self._pitch[-1]
        for wrong, what, expected, hint in (
            (
                (theta < 0) | (theta >= math.pi / 2),
                "the particle does not enter the detector",
                "0 <= theta < 90 degrees",
                "theta is the angle from the normal of the face",
            ),
            (
                (impact.abs() > reach[0]).any(1),
                "the impact point is outside the face of the detector",
                f"at most {reach[0][0]:g} mm from its centre in x and {reach[0][1]:g} mm in y",
                "impact points are counted from the centre of the face",
            ),
            (
                (place.abs() > reach[1]).any(1),
                "the axis of the shower leaves the detector at its side",
                f"that it crosses the last layer at most {reach[1][0]:g} mm from its centre in x, {reach[1][1]:g} in y",
                "a smaller theta, or an impact point further from that side",
            ),
        ):
            found = np.flatnonzero(wrong.numpy() & rows)
            if len(found):
                values = ", ".join(f"{self.conditions[i]} = {conditions[found[0], i]:g}" for i, _ in self.axis.values())
                raise ConditionError(what, where=f"sample {found[0]}", expected=expected, found=values, hint=hint)

    # --- fit ------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def fit(self, showers: Tensor, conditions: Tensor) -> None:
        """Fit effective depths, and what the windows hold, to training showers.

        Args:
            showers: On the read-out, (N, V), in the family's unit.
            conditions: (N, C), in their units.
        """
        self.double()
        rows = (showers.sum(1) > 0).nonzero()[:, 0]
        rows = rows[:: max(1, math.ceil(len(rows) / _MOST_ROWS))]
        showers, conditions = showers[rows].double(), conditions[rows].double()
        energies = self.energies(showers, self.family)

        # How deep a shower is, beside what its energy says.
        energy, late = self._energy(conditions), self._mean_depth(energies)
        line = torch.stack([torch.ones_like(energy), energy], 1)
        gram = line.T @ line + torch.diag(torch.tensor([0.0, 1.0]).double())
        self.course.copy_(torch.linalg.solve(gram, line.T @ late))
        self.spread.copy_((late - line @ self.course).square().mean().sqrt().clamp(min=1e-3))

        features, tangents = self._depth_features(conditions, energies), self._tangents(conditions)
        self.steepest.copy_(tangents.abs().amax(0).clamp(min=1e-6))
        if "theta" in self.axis:
            away = self._centroids(showers, energies) - self._impact(conditions)[:, None]
            for i in range(len(self.depths)):
                self._fit_depth(i, features, tangents, away[:, i], energies[:, i])

        # How much of a shower lies how far from its axis.
        cells = self.cells(conditions, energies)
        axis = (cells.crossed + cells.offset - self._counts / 2) * self._pitch
        for i, part in enumerate(self.family.layer_slices):
            self._fit_tails(i, showers[:, part], energies[:, i], axis[:, i])
        containment = self.containment(cells)
        self.contained.copy_((containment * energies).sum(0) / energies.sum(0).clamp(min=1e-12))
        self.float()

    def _centroids(self, showers: Tensor, energies: Tensor) -> Tensor:
        """Centroids of the layers' energies, (N, L, 2), in mm."""
        centres = torch.from_numpy(self.family.centres)
        sums = [showers[:, part] @ centres[part] for part in self.family.layer_slices]
        return torch.stack(sums, 1) / energies.clamp(min=1e-12)[:, :, None]

    def _fit_depth(self, layer: int, features: Tensor, tangents: Tensor, away: Tensor, energies: Tensor) -> None:
        """Effective depth of a layer: the slope of its centroids, less the impact points (N, 2), with the tangents."""
        # Cells much coarser along one axis than along the other say nothing about it. Centroids of little energy count
        # less, and far ones (few soft photons, a layer hardly hit) less and less.
        finest = self._pitch[layer].min()
        axes = [axis for axis in (0, 1) if self._pitch[layer, axis] <= 4 * finest]
        trust = energies / (energies + energies[energies > 0].median()) if (energies > 0).any() else energies
        design = torch.cat([features * tangents[:, axis, None] for axis in axes])
        values, weights = torch.cat([away[:, axis] for axis in axes]), trust.repeat(len(axes))

        # Few showers say little: the layer's middle is where it is without any, give or take the layer's own depth.
        begin, end = self._extent[layer]
        start = torch.zeros(_DEPTHS, dtype=design.dtype)
        start[0] = (begin + end) / 2
        found, precision = start.clone(), 12 / (end - begin).square()
        for _ in range(_ROUNDS):
            residual = (values - design @ found).abs()
            noise = (1.4826 * residual[weights > 0].median()).clamp(min=1e-3) if (weights > 0).any() else 1.0
            here = weights / (1 + (residual / (_OUTLIER * noise)).square()) / noise**2
            normal = design.T @ (here[:, None] * design) + precision * torch.eye(_DEPTHS, dtype=design.dtype)
            found = torch.linalg.solve(normal, design.T @ (here * values) + precision * start)
        self.depths[layer] = found

    def _fit_tails(self, layer: int, showers: Tensor, energies: Tensor, axis: Tensor) -> None:
        """The share of a layer's energy beyond lines at some distance from the axis, whose place (N, 2) is in mm.

        The lines are all edges between cells, hence every distance in cells of any size; those nearer to the edge of
        the read-out than to the axis are left out, since part of what lies beyond them is not seen.
        """
        beyond = energy = torch.zeros(KNOTS, dtype=showers.dtype)
        shape = self.family.layers[layer].shape
        for i, count in enumerate(shape):
            before = showers.unflatten(1, shape).sum(2 - i).cumsum(1)[:, :-1]
            half = self._pitch[layer, i] * count / 2
            lines = torch.arange(1, count) * self._pitch[layer, i] - half
            for side, share in ((1, energies[:, None] - before), (-1, before)):
                distance = side * (lines - axis[:, i, None])
                used = (distance >= 0) & (distance <= (half - side * axis[:, i, None]) / 2)
                knots = (distance[used] / self.step[layer]).round().long().clamp(max=KNOTS - 1)
                beyond = beyond + torch.bincount(knots, share[used].clamp(min=0), KNOTS)
                energy = energy + torch.bincount(knots, energies[:, None].expand_as(share)[used], KNOTS)

        # Where there are no lines, and further away, the exponential goes on.
        known = (energy > 0) & (beyond > _SMALLEST * energy)
        known[0] = False
        found = known.nonzero()[:, 0].double()
        if len(found) < 2:
            return
        logs = torch.log(beyond[known] / energy[known]).cummin(0).values.clamp(max=math.log(0.5))
        slope = (logs[-1] - logs[-2]) / (found[-1] - found[-2])
        places = np.arange(KNOTS)
        inner = np.interp(places, [0, *found.tolist()], [math.log(0.5), *logs.tolist()])
        outer = logs[-1].item() + (places - found[-1].item()) * slope.item()
        self.tails[layer] = torch.from_numpy(np.where(places > found[-1].item(), outer, inner))


def _ratio(above: Tensor, below: Tensor, empty: float = 0.0) -> Tensor:
    """Ratios of numbers that are not negative; a constant where the lower is 0."""
    return torch.where(below > 0, above / below.clamp(min=1e-30), empty)


def _common_multiple(sizes: Sequence[float]) -> float:
    """The smallest length that is a whole multiple of every size."""
    whole = [Fraction(round(size * _RESOLUTION), _RESOLUTION) for size in sizes]
    denominator = math.lcm(*(size.denominator for size in whole))
    return math.lcm(*(int(size * denominator) for size in whole)) / denominator
