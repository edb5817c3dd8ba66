"""The default generator of showers as an ONNX graph: what :meth:`ShowerGenerator.forward` computes, step by step.

Layers of equal size are computed together, so that a graph of 45 layers is hardly longer than one of three; networks,
patterns and correlations that are zero are left out.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from ..models.conditions import energy_column
from ..models.layers import SLOPE
from ..models.showers import counts, energies, patterns, shapes, voxels
from ..models.showers.factors import LEAST_NOISE
from ..models.showers.generator import ShowerGenerator
from .conditions import scaled_columns
from .frames import Cells, FrameGraph
from .graph import (
    Graph,
    Value,
    inverse_tail,
    joined,
    log_sigmoid,
    looked_up,
    lowest_of,
    nearest,
    normal_tail,
    ramps,
    upper_tail,
)
from .layers import Layers, array

Array = NDArray[Any]
_FAR = 1e30
_SMALLEST = 1e-7  # probability: normals beyond are beyond all tables
_NEVER = -20.0  # log energies in MeV below those of all layers: counts that end there were never fitted


@dataclass
class _Given:
    """What voxels depend on: see :class:`calogen.models.showers.voxels.Given`."""

    energies: Value  # (B, L)
    features: Value  # (B, L, F)
    near: Value  # (B, 3)
    drivers: Value  # (B, L, J)
    faint: Value  # (B, L)
    cells: Cells | None


def shower_graph(graph: Graph, generator: ShowerGenerator, latent: Value, conditions: Sequence[Value]) -> Value:
    """Showers (B, V) in the family's unit, as :meth:`calogen.sampling.Surrogate.sample` makes them.

    Args:
        graph: To be added to.
        generator: Fitted, on the CPU.
        latent: Standard normals, (B, Z).
        conditions: One (B, 1) for each condition, in its unit.
    """
    return _Showers(graph, generator, latent, conditions).made()


class _Showers:
    def __init__(self, graph: Graph, generator: ShowerGenerator, latent: Value, conditions: Sequence[Value]) -> None:
        self.graph, self.generator, self.transform = graph, generator, generator.transform
        self.family, self.window = generator.family, generator.transform.window
        self.parts = latent.among(generator.splits)
        self.conditions = dict(zip(generator.conditions, conditions, strict=True))
        self.zero = latent.columns(0, 1) * 0.0
        self.one = self.zero + 1.0
        self.layers, frame = Layers(self.window), self.transform.frame
        lead = None if frame is None else self._leading(frame.conditions)
        self.frame = None if frame is None or lead is None else FrameGraph(graph, frame, self.conditions, lead)
        self.count = len(self.family.layers)

    def made(self) -> Value:
        """Showers on the read-out."""
        generator = self.generator
        normals, factors, own = self.parts
        scaled = self._scaled(self.transform.energies.conditions)
        energy_normals = self._network(generator.energies, [normals, *scaled], normals)
        given = self._given(self._energies(energy_normals))
        shape, apart = self._copula(factors, own, given)
        shape = self._network(generator.shapes, [energy_normals, factors, *scaled], shape)
        norm = generator.standardise
        factor = 1 / np.sqrt(array(norm.running_var) + norm.eps)
        shape = shape * factor - array(norm.running_mean) * factor
        if generator.refinement.active:
            shape = self._refined(shape, given)
        showers = self._voxels(shape, given, apart)
        if self.frame is not None and given.cells is not None:
            showers = self.frame.on_the_readout(showers, given.cells)
        return showers * (1.0 - showers.below(self.family.threshold).number()) if self.family.threshold else showers

    # --- conditions -----------------------------------------------------------------------------------------------

    def _scaled(self, names: Sequence[str]) -> list[Value]:
        """Columns (B, 1), dimensionless: see :func:`calogen.models.conditions.scale_conditions`."""
        return scaled_columns(self.family, names, self.conditions)

    def _leading(self, names: Sequence[str]) -> Value:
        """The scaled incident energy, (B, 1), 0 where it is no condition."""
        column = energy_column(self.family, names)
        return self.zero if column is None else self._scaled(names)[column]

    def _near(self, energy: Value, stations: Tensor) -> Value:
        """How near each station is, (B, S), adding up to 1."""
        count = len(stations)
        change = np.eye(count)[1:] - np.eye(count)[:-1]
        found: Value = ramps(energy, array(stations)) @ change + np.eye(count)[0]
        return found

    def _network(self, network: nn.Sequential, inputs: Sequence[Value], added: Value) -> Value:
        """What a network of its inputs adds to something; nothing, if its last layer is zero."""
        linear = [layer for layer in network if isinstance(layer, nn.Linear)]
        if not (linear[-1].weight.any() or linear[-1].bias.any()):
            return added
        x = joined(list(inputs))
        for layer in linear:
            x = x @ array(layer.weight).T + array(layer.bias)
            if layer is not linear[-1]:
                x = self.graph.apply("LeakyRelu", x, alpha=SLOPE)
        return added + x

    # --- layer energies -------------------------------------------------------------------------------------------

    def _energies(self, normals: Value) -> Value:
        """Layer energies, (B, L): see :meth:`calogen.models.showers.energies.LayerEnergies.inverse`."""
        own = self.transform.energies
        energy = self._leading(own.conditions)
        others = self._scaled(own.conditions)
        if own.energy_column is not None:
            del others[own.energy_column]
        near = self._near(energy, own.stations)
        height = near @ np.linspace(-1, 1, energies.STATIONS)[:, None]
        pairs = [a * b for a, b in itertools.combinations_with_replacement(others, 2)]
        design = joined([self.one, height, near, *others, *(other * height for other in others), *pairs])

        most = energies.MOST_NORMAL
        normals = normals.clipped(-most, most)
        levelled = self._table(own.levelled, near, self._dependent(normals, near, height)).clipped(-most, most)

        # The layer that is nearest to being full gets the energy where all would be empty.
        layer = array(own.order > 0)
        likely = (design @ array(own.empty_logits)).function("Sigmoid")
        likely = likely * likely.above(1e-5).number() * layer
        full = 1.0 - likely
        some = full.below(1.0)
        # Both tails, so that neither is the rounded rest of the other. A layer that is not empty has less than `full`
        # above it, hence more than `likely` below.
        negative, upper = levelled.below(0.0), upper_tail(levelled.function("Abs"))
        above, beneath = (1.0 - upper).where(negative, upper), upper.where(negative, 1.0 - upper)
        excess = (likely - beneath).where(some, -1.0)
        empty = excess.above(0.0) & excess.above(lowest_of(excess, layer * 1.0))
        beneath = ((beneath - likely) / full.at_least(1e-6)).clipped(_SMALLEST, 1.0)
        above = (above / full.at_least(1e-6)).clipped(_SMALLEST, 1.0)
        inner = inverse_tail(above, beneath) * (1.0 - empty.number())
        scale = (design @ array(own.log_scale)).exp()
        table = self._table(own.marginal, near, inner.where(some, levelled))
        variables = (design @ array(own.location) + scale * table).clipped(*array(own.limits))

        # From variables, in natural order, to energies that add up to the total.
        places, knee = own.order.argsort().tolist(), self.family.knee
        first, shares = variables.take(places[:1]), variables.take(places[1:])
        if own.energy_column is None:
            total = (first.exp() - knee).at_least(0.0)
        else:
            part = first.exp() - energies.LEAK_FLOOR
            part = 1.0 - part if self.family.conserves_energy else part
            limit = 1.0 if self.family.conserves_energy else self.family.max_response
            total = self.conditions[own.conditions[own.energy_column]] * part.clipped(0.0, limit)
        made = shares.exp() * (total + self.count * knee) - knee
        made = made.at_least(energies.SMALLEST * knee) * (1.0 - empty.number().take(places[1:]))
        made = made * (total / made.sum(1))
        return made * (1.0 - made.below(self.family.threshold).number())

    def _dependent(self, normals: Value, near: Value, height: Value) -> Value:
        """Dependent numbers (B, D) from independent normals: see ``LayerEnergies._dependent``."""
        own, size, most = self.transform.energies, self.transform.energies.size, energies.MOST_LEADING
        stations, leads = energies.STATIONS, min(size, energies.LEADING)
        linear = array(own.linear).transpose(2, 0, 1).reshape(size, -1)
        mean = ((normals @ linear).shaped(stations, size) * near.shaped(stations, 1)).sum(1).shaped(size)

        # What is not linear: products of the first normals, and of them with p, each also times the energy's height.
        # A normal that there is not counts as 0.
        first = [normals.columns(i, i + 1).clipped(-most, most) for i in range(leads)]
        first += [self.zero] * (energies.LEADING - leads)
        along = (normals @ array(own.direction).T).clipped(-most, most)
        products = [a * b for a, b in itertools.combinations_with_replacement(first, 2)]
        shared = joined([*first, *products, *(_cubic(x) for x in first)])
        places = [near, shared, shared * height]
        with_p = joined([self.one, *first])
        with_p = joined([with_p, with_p * height])
        alone = joined([self.one, height])
        powers = [(along, with_p, 1 + energies.LEADING), (along.square(), alone, 1), (_cubic(along), alone, 1)]
        bent = []
        width = 2 * energies.LEADING + len(products)  # of `shared`
        for table in array(own.bent).transpose(0, 2, 1):  # (P, D): the coefficients of m, of log s
            constant, changing, rising = np.split(table, [stations, stations + (table.shape[0] - stations) // 2])
            found = joined(places) @ np.concatenate([constant, changing[:width], rising[:width]])
            start = width
            for power, factor, count in powers:
                rows = slice(start, start + count)
                found = found + power * (factor @ np.concatenate([changing[rows], rising[rows]]))
                start += count
            bent.append(found)
        scale = bent[1].clipped(-8.0, 3.0).exp()
        return mean + bent[0] + scale * self._table(own.residual, near, normals)

    def _table(self, tables: Tensor, near: Value, normals: Value) -> Value:
        """Values (B, D) of tables (D, S, K) at normals (B, D)."""
        size, stations, points = tables.shape
        most = energies.MOST_NORMAL
        knots = (near @ array(tables).transpose(1, 0, 2).reshape(stations, -1)).shaped(size, points)
        position = (normals.clipped(-most, most) + float(energies.REACH)) * float(energies.PER_UNIT)
        return looked_up(knots, position.shaped(size, 1), points).shaped(size)

    # --- what voxels depend on ------------------------------------------------------------------------------------

    def _given(self, layer_energies: Value) -> _Given:
        """What voxels depend on: see :meth:`calogen.models.showers.voxels.VoxelShares.given`."""
        own, every = self.transform.voxels, np.ones((self.count, 1))
        columns, lead = self._scaled(own.conditions), self._leading(own.conditions)

        # Log layer energies and depth, less their mean course with the conditions.
        depth = (layer_energies @ np.arange(float(self.count))[:, None]) / layer_energies.sum(1).at_least(1e-12)
        profile = joined([(layer_energies + self.family.knee).log(), depth])
        products, centre, square = own.products.numpy(), array(own.shape_centre), lead.square()
        plain = joined([self.one, *columns, self.zero, self.zero, square])
        course = _products(plain, products[:, : len(centre)], 1) @ centre
        standard = ((profile - course) / array(own.shape_spread)).clipped(-voxels.CLIP, voxels.CLIP)

        energy = standard.columns(0, self.count)
        late = standard.columns(self.count, self.count + 1)
        of_all = joined([self.one, *columns]).shaped(1, 1 + len(columns)) * every
        features = [of_all, energy.shaped(self.count, 1), late.shaped(1, 1) * every, square.shaped(1, 1) * every]
        drivers, mine, cells = [lead, late.function("Tanh")], [], None
        if self.frame is not None:
            cells = self.frame.cells(layer_energies)
            shared, own_drivers = self.frame.drivers(cells)
            features.append(self.frame.features(cells))
            drivers.append(shared)
            mine.append(own_drivers)
        mine.insert(0, joined(drivers).shaped(1, own.drivers[0]) * every)

        unusual = (voxels.FAINT[0] - energy) / voxels.FAINT[1]
        few = array(own.few) + 0.5 - layer_energies.at_least(1e-9).log()
        faint = unusual.at_least(few).clipped(0.0, 1.0)
        found = _products(joined(features, 2), products, 2)
        return _Given(layer_energies, found, self._near(lead, own.stations), joined(mine, 2), faint, cells)

    # --- how voxels go together -----------------------------------------------------------------------------------

    def _copula(self, factors: Value, own: Value, given: _Given) -> tuple[Value, Value | None]:
        """Voxel normals, and what to add to log shares: see ``ShowerGenerator._copula``."""
        generator, layers = self.generator, self.layers
        drivers = given.drivers - array(generator.centre)
        loadings, drift, size = array(generator.loadings), array(generator.drift), generator.drift.shape[2]
        common, drifting = factors @ loadings.T, factors.columns(0, size)
        for i, table in enumerate(drift):
            if table.any():
                driver = layers.spread(drivers.columns(i, i + 1, 2).shaped(self.count))
                common = common + driver * (drifting @ table.T)
        less = 1.0 - array(generator.together)
        together = layers.spread(1.0 - given.faint * less) if less.any() else None
        common = common if together is None else common * together

        # Voxels' own noise: shared with neighbours, but for the core of layers that are not faint, mixed by itself.
        count, core = self.window.voxels, generator.core.numpy()
        shared, apart = self._shared_noise(own, given.energies)
        mixing = array(generator.mixing)
        if not np.array_equal(mixing, np.broadcast_to(np.eye(core.shape[1]), mixing.shape)) or shared is not own:
            hot = own.take(core.ravel()).shaped(*core.shape)
            mixed = (hot.turned(1, 0, 2) @ mixing.transpose(0, 2, 1)).turned(1, 0, 2)
            faint = given.faint.shaped(self.count, 1).above(0.5)
            mixed = shared.take(core.ravel()).shaped(*core.shape).where(faint, mixed)
            places = np.arange(count)
            places[core.ravel()] = count + np.arange(core.size)
            own = joined([shared, mixed.shaped(core.size)]).take(places)

        # What factors leave of a variance of 1 is a voxel's own; far from the mean drivers they leave nothing.
        each = [drivers.columns(i, i + 1, 2) for i in range(len(drift))]
        pairs = [a * b for a, b in itertools.combinations_with_replacement(each, 2)]
        one = drivers.columns(0, 1, 2) * 0.0 + 1.0
        power = layers.regressed(joined([one, *each, *pairs], 2), array(generator.power))
        power = power if together is None else power * together.square()
        total = (power + LEAST_NOISE).at_least(1.0).sqrt()
        return (common + own * (1.0 - power).at_least(LEAST_NOISE).sqrt()) / total, apart

    def _shared_noise(self, own: Value, layer_energies: Value) -> tuple[Value, Value | None]:
        """Correlated normals: see :class:`calogen.models.showers.neighbours.SharedNoise`; none to add where it is 0."""
        noise = self.generator.noise
        shares, apart = array(noise.shares), array(noise.apart)
        if not shares.any():
            return own, None
        # How near the levels the two zones of each layer are.
        logs = layer_energies.at_least(1e-9).log().shaped(self.count, 1)
        come = ramps(logs, array(noise.levels).T).take(np.repeat(np.arange(self.count), 2))
        zone = noise.zone.numpy()

        def at(table: Array) -> Value:
            of_zones: Value = (come * np.diff(table, axis=0).T).sum(2).shaped(2 * self.count) + table[0]
            return of_zones.take(zone)

        found, kept = own, None
        for (before, after), there, table in zip(noise.beside.numpy(), array(noise.there), shares, strict=True):
            if table.any():
                share = at(table)
                both = found.take(before) * there[0] + found.take(after) * there[1]
                scale = 1.0 / (share.square() * there.sum(0) + 1.0).sqrt()
                found = (found + share * both) * scale
                kept = scale if kept is None else kept * scale
        if kept is None or not apart.any():
            return found, None
        return found, at(apart) * (own - kept * found)

    def _refined(self, normals: Value, given: _Given) -> Value:
        """Normals after training: see :class:`calogen.models.showers.patterns.ShapeRefinement`."""
        own, layers, groups, far = self.generator.refinement, self.layers, patterns.GROUPS, patterns.FARTHEST
        group = own.group.numpy()
        member = np.eye(groups)[group % groups]
        sizes = np.bincount(group, minlength=self.count * groups)
        shares = member / sizes[group][:, None]
        capped = normals.clipped(-far, far)

        # Amplitudes, linear in features of the layers.
        means = (layers.within(capped, shares) - array(own.means)) / array(own.spreads)
        means = means.clipped(-far, far)
        inner = means.columns(0, patterns.NEIGHBOURS, 2)
        drivers = given.drivers - array(own.driver_means)
        energy = given.features.columns(own.place, own.place + 1, 2)
        features = [energy * 0.0 + 1.0, drivers, energy, drivers.square(), energy.square(), means]
        features += [np.eye(self.count, k=step) @ inner for step in (-1, 1)]
        coefficients = array(own.coefficients)
        amplitudes = (joined(features, 2).turned(1, 0, 2) @ coefficients.transpose(0, 2, 1)).turned(1, 0, 2)

        # Patterns, each where its amplitude is not always zero.
        found: list[Callable[[], Value | float]] = [lambda: 1.0, lambda: capped, lambda: capped.square() - 1.0]
        for (before, after), there in zip(own.beside.numpy(), array(own.there), strict=True):
            found.append(partial(_halves, capped, before, after, there))
        for position in array(own.position):
            found.append(partial(self._lean, capped, position, shares, group))
        if own.framed:
            for axis, position in enumerate(array(own.position)):
                for first in (
                    drivers.columns(own.driver_means.numel() - 2, own.driver_means.numel(), 2),
                    drivers.columns(2, 4, 2),
                ):
                    found.append(partial(self._along, first.columns(axis, axis + 1, 2), position))
        change: Value | None = None
        for i, pattern in enumerate(found):
            where = slice(i * groups, (i + 1) * groups)
            if coefficients[:, where].any():
                amplitude = amplitudes.columns(where.start, where.stop, 2).shaped(self.count * groups).take(group)
                added = amplitude * pattern()
                change = added if change is None else change + added
        if change is None:
            return normals
        return normals + change.clipped(-patterns.LARGEST, patterns.LARGEST)

    def _lean(self, normals: Value, position: Array, shares: Array, group: NDArray[np.int64]) -> Value:
        """How far groups lean to one side, times positions."""
        means = self.layers.within(normals, shares * position[:, None])
        return means.shaped(self.count * patterns.GROUPS).take(group) * position

    def _along(self, values: Value, position: Array) -> Value:
        """Values (B, L, 1) of the layers times positions of their cells."""
        return self.layers.spread(values.shaped(self.count)) * position

    # --- voxels ---------------------------------------------------------------------------------------------------

    def _voxels(self, normals: Value, given: _Given, apart: Value | None) -> Value:
        """Showers in their frame: see :meth:`calogen.models.showers.voxels.VoxelShares.inverse`."""
        own, layers, threshold = self.transform.voxels, self.layers, self.family.threshold
        tail = normal_tail(normals.clipped(-6.0, 6.0))
        excess = log_sigmoid(layers.regressed(given.features, array(own.occupancy))) - tail.log()
        excess = self._counted(excess, given.energies)
        on = excess.above(0.0)

        # The quantile function, of four pieces, then the share.
        shape = array(own.shape)
        sizes = [self.window.voxels] * len(shape)
        pieces = (given.near @ shape.transpose(1, 0, 2).reshape(shape.shape[1], -1)).among(sizes)
        inner = excess.where(on, 1.0).at_least(1e-4)
        log = inner.log()
        standard = pieces[0] + pieces[1] * log + pieces[2] * inner.sqrt()
        standard = standard + pieces[3] * (log - shapes.LOW).at_most(0.0)
        standard = standard + pieces[4] * (log - shapes.MIDDLE).at_most(0.0)
        standard = standard if apart is None else standard + apart
        scale = layers.regressed(given.features, array(own.log_scale)).exp()
        log_share = layers.regressed(given.features, array(own.location)) + scale * standard
        flags = on.number()
        share = log_share.clipped(-40.0, 10.0).exp() * flags

        # What is over the thresholds is shared out; where that cannot be, all goes into the voxel that came nearest.
        parts = zip(
            layers.cut(share),
            layers.cut(excess),
            layers.cut(flags),
            layers.of_layers(given.energies),
            layers.runs,
            strict=True,
        )
        made = []
        for part, over, some, energies_of, (count, _) in parts:
            energy, total, least = energies_of.shaped(count, 1), part.sum(2), some.sum(2) * threshold
            spare = energy - least
            several = part * (spare / total.at_least(1e-30)) + some * threshold
            made.append(several.where(total.above(0.0) & spare.above(0.0), nearest(over) * energy))
        return self._with_line(layers.whole(made), given.energies)

    def _counted(self, excess: Value, layer_energies: Value) -> Value:
        """How far voxels are from being off, their number set where few are on: see ``HitCounts``."""
        own = self.transform.voxels.counts
        levels, limits = array(own.levels), array(own.limits)
        fitted, most = levels[-1] > _NEVER, counts.MOST
        if not fitted.any():
            return excess
        logs, parts = layer_energies.at_least(1e-9).log(), []
        for part, of_layers, (count, size), here in zip(
            self.layers.cut(excess), self.layers.of_layers(logs), self.layers.runs, self.layers.layers, strict=True
        ):
            if not fitted[here].any():
                parts.append(part)
                continue
            kept = min(most + 2, size)
            first = self.graph.first("TopK", part, np.array([kept]), axis=2, outputs=2)
            on = first.above(0.0)
            number_on = on.number().sum(2)
            last = -((-first).where(on, -_FAR).largest(2))
            after = first.where(first.below(1e-45), -_FAR).largest(2)
            after = after.where(number_on.below(kept - 0.5), first.columns(kept - 1, kept, 2))
            between = number_on - 1.0 + last / (last - after).at_least(1e-6)
            number = number_on.where(number_on.above(kept - 0.5), between)
            number = first.columns(0, 1, 2).at_least(-1e3).where(number_on.below(0.5), number)

            log = of_layers.shaped(count, 1)
            come = ramps(log, levels[:, here].T)
            table = limits[:, :, here].transpose(2, 0, 1)  # (l, S, MOST)
            limit = (come.turned(1, 0, 2) @ np.diff(table, axis=1)).turned(1, 0, 2) + table[:, 0]
            wanted = number.above(limit + counts.TIE).number().sum(2) + 1.0
            other = (wanted - number_on.at_least(1.0)).function("Abs").above(0.5)
            change = other & wanted.below(kept - 0.5) & number.below(most + 1e-3) & log.below(levels[-1, here][:, None])
            place = (wanted - np.arange(float(kept))).function("Abs").below(0.5).number()
            parts.append(part - (place * first).sum(2) * change.number())
        return self.layers.whole(parts)

    def _with_line(self, showers: Value, layer_energies: Value) -> Value:
        """Voxels next to the electron's mass moved onto it; layer energies are exact."""
        half = array(self.transform.voxels.line) / self.window.unit_in_mev
        if half.any():
            mass, reach = voxels.ELECTRON / self.window.unit_in_mev, voxels.LINE_REACH / self.window.unit_in_mev
            distance = showers - mass
            wide = half[self.layers.voxel]
            moved = ((distance - wide).at_least(0.0) - (-distance - wide).at_least(0.0)) * (
                reach / (reach - wide)
            ) + mass
            near = distance.function("Abs").below(np.where(wide > 0, reach, -1.0))
            showers = moved.where(near, showers)
        return showers * self.layers.spread(layer_energies / self.layers.sums(showers).at_least(1e-30))


def _products(columns: Value, products: NDArray[np.int64], axis: int) -> Value:
    """Products of three columns each."""
    first, second, third = (columns.take(product, axis) for product in products)
    return first * second * third


def _halves(normals: Value, before: NDArray[np.int64], after: NDArray[np.int64], there: Array) -> Value:
    """Half the sum of neighbours."""
    found: Value = normals.take(before) * (there[0] / 2) + normals.take(after) * (there[1] / 2)
    return found


def _cubic(x: Value) -> Value:
    return x * x.square() - x * 3.0
