"""Showers in numpy, whose calls cost a third of torch's: a single one takes a fraction of a millisecond."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from ...families import Family
from ..conditions import codings, scaling
from ..contract import Array
from ..layers import SLOPE
from .counts import MOST, TIE
from .factors import LEAST_NOISE
from .fast_energies import FoldedEnergies
from .fast_patterns import FoldedPatterns
from .frame import Cells
from .patterns import ShapeRefinement
from .shapes import LOW, MIDDLE
from .transform import ShowerTransform, local_of
from .voxels import CLIP, ELECTRON, FAINT, LINE_REACH

_LEAST = np.float32(LEAST_NOISE)
_LOG_2 = np.float32(math.log(2))
_MOST_TAIL = np.float32(6 * math.sqrt(0.5))
_TOGETHER = 128  # showers that are refined at a time
_CACHED = 1 << 15  # voxels worked on at a time: what a core's own cache holds of all their intermediate values


class FoldedShowers:
    """A trained ``ShowerGenerator`` without its training; see there and :class:`ShowerTransform` for what it does.

    Normalisation and noise are folded into the weights, factors and last layer are one matrix product, occupancy needs
    one logarithm, and voxels are worked on in place, a cacheful at a time. Agrees with the module to rounding, except
    at the gate that makes a voxel exactly zero.

    Args:
        transform: The generator's.
        splits: Its latent numbers: for energies, factors, voxels.
        tensors: All its tensors by name; they are copied.
        epsilon: Added to variances where normals are standardised.
        refinement: What projected training changed.
    """

    def __init__(
        self,
        transform: ShowerTransform,
        splits: tuple[int, int, int],
        tensors: Mapping[str, Tensor],
        epsilon: float,
        refinement: ShapeRefinement,
    ) -> None:
        voxels, window = transform.voxels, transform.window
        state: dict[str, Array] = {name: tensor.cpu().numpy().copy() for name, tensor in tensors.items()}
        prefix = "transform.voxels."
        learnt = {name.removeprefix(prefix): a for name, a in state.items() if name.startswith(prefix)}
        self._transform, self._splits = copy.deepcopy(transform).cpu(), splits
        self._layer_energies = FoldedEnergies(transform.energies)
        # Networks and energies see the conditions of energies, voxels their own: where the axis is, they have besides.
        self._of_energies, self._of_voxels = transform.columns
        self._for_networks = _Scaling(transform.family, transform.energies.conditions)
        self._for_voxels = _Scaling(transform.family, voxels.conditions)
        self._energy_column = voxels.energy_column
        self._energy_network = _dense(state, "energies.")
        *self._hidden, (last, bias) = _dense(state, "shapes.")
        # Normalised normals over the root of 2, as erfc takes them.
        scale = 1 / np.sqrt(state["standardise.running_var"] + np.float32(epsilon))
        scale *= np.float32(math.sqrt(0.5))
        self._shift = np.concatenate([last, (bias - state["standardise.running_mean"])[None]]) * scale
        self._drifting = state["drift"].shape[2]
        self._shared, self._drift = voxels.drivers[0], np.ascontiguousarray(state["drift"].transpose(0, 2, 1))
        self._loadings = np.concatenate([state["loadings"].T, *self._drift[: self._shared]])
        self._power, self._scale = state["power"], scale
        self._driver_centre, self._together = state["centre"], state["together"]
        self._core, self._mixing = state["core"], np.ascontiguousarray(state["mixing"].transpose(0, 2, 1))
        # Noise that neighbours share: along those axes where they do. A cell that is not there has noise 0.
        beside, shares = transform.window.neighbours, state["noise.shares"]
        itself = beside == np.arange(window.voxels)
        beside = np.where(itself, window.voxels, beside)
        self._shared_axes = [
            (beside[axis], (~itself[axis]).sum(0).astype(np.float32), share)
            for axis, share in enumerate(shares)
            if share.any()
        ]
        self._apart = state["noise.apart"] if state["noise.apart"].any() else None
        self._levels, self._zone = state["noise.levels"], state["noise.zone"]
        self._per_gap = 1 / np.diff(self._levels, axis=0)
        # How many voxels are on where few are. Layers with fewer cells than others repeat their first.
        self._count_levels, self._limits = learnt["counts.levels"], learnt["counts.limits"]
        self._limit_steps = np.diff(self._limits, axis=0)
        sizes = np.diff(window.layer_bounds)
        places = np.arange(sizes.max())
        self._spare_cells = places >= sizes[:, None]
        self._cells = np.array(window.layer_bounds[:-1])[:, None] + np.where(self._spare_cells, 0, places)
        self._kept = min(MOST + 2, int(sizes.max()))
        self._most = np.minimum(sizes, self._kept)
        # Regressions on products of three columns; those of the conditions alone come first.
        self._products, self._plain = voxels.products.numpy(), len(learnt["shape_centre"])
        self._layer, self._depth = voxels.places
        self._stations, self._gaps = learnt["stations"][:-1, None], np.diff(learnt["stations"])[:, None]
        self._centre, self._spread = learnt["shape_centre"].T.copy(), learnt["shape_spread"][:, None]
        regressions = [-learnt["occupancy"], learnt["log_scale"], learnt["location"]]
        self._parts = window.layer_slices
        self._regressions = [[np.ascontiguousarray(r[:, part]) for r in regressions] for part in self._parts]
        self._shape = learnt["shape"]
        self._patterns = FoldedPatterns(refinement, self._parts) if refinement.active else None
        self._few = learnt["few"]
        self._knee, self._threshold = np.float32(window.knee), np.float32(window.threshold)
        unit = np.float32(window.unit_in_mev)
        self._mass, self._reach = np.float32(ELECTRON) / unit, np.float32(LINE_REACH) / unit
        self._half = (learnt["line"] / unit)[window.layer_of_voxel]
        self._stretch = self._reach / (self._reach - self._half)

    @np.errstate(over="ignore")  # far outside the trained range odds are infinite: probabilities 0 and 1
    def __call__(self, latent: Array, conditions: Array) -> Array:
        """Showers (B, V) in MeV from standard normals (B, Z) and conditions (B, C) in their units."""
        # The networks, and layer energies: voxels depend on them.
        size, rank, _ = self._splits
        first, factors, own = latent[:, :size], latent[:, size : size + rank], latent[:, size + rank :]
        known = _taken(conditions, self._of_energies)
        scaled = self._for_networks(known)
        normals = first + _run(self._energy_network, np.concatenate([first, scaled], 1))
        hidden = _leaky(_run(self._hidden, np.concatenate([normals, factors, scaled], 1)))
        energies = self._layer_energies(normals, known)
        one = np.ones((len(latent), 1), np.float32)
        plain = self._for_voxels(_taken(conditions, self._of_voxels))
        leading = plain[:, self._energy_column, None] if self._energy_column is not None else 0 * one
        cells, local = self._local(conditions, energies.T)
        features = self._features(energies, plain, leading, local)
        near = self._near(leading)

        # Everything linear as two products, whose second the layers that are faint have less of.
        drivers = np.empty((len(latent), len(self._parts), len(self._drift)), np.float32)
        drivers[..., 0], drivers[..., 1] = leading, np.tanh(features[self._depth, 0])[:, None]
        if local is not None:
            drivers[..., 2 : self._shared], drivers[..., self._shared :] = local[1][:, None], local[2]
        drivers -= self._driver_centre
        drifting = factors[:, : self._drifting]
        shared = [drifting * d[:, None] for d in drivers[:, 0, : self._shared].T]
        common = np.concatenate([factors, *shared], 1) @ self._loadings
        for number, part in enumerate(self._parts if local is not None else ()):
            for place, drift in enumerate(self._drift[self._shared :], self._shared):
                common[:, part] += drivers[:, number, place, None] * (drifting @ drift[:, part])
        logs = np.log(np.maximum(energies, np.float32(1e-9)))
        few = self._few - logs.T + np.float32(0.5)
        faint = np.minimum(np.maximum(np.maximum((FAINT[0] - features[self._layer].T) / FAINT[1], few), 0), 1)
        together = 1 - faint * (1 - self._together)
        for layer in np.flatnonzero((together < 1).any(0)):
            common[:, self._parts[layer]] *= together[:, layer, None]
        showers: Array = np.concatenate([hidden, one], 1) @ self._shift
        squares = [_quadratic(d) for d in drivers.transpose(1, 0, 2)]
        mixed = (own[:, self._core].transpose(1, 0, 2) @ self._mixing).transpose(1, 0, 2)
        alone = faint > 0.5
        moved = drivers if self._patterns is None else drivers + (self._driver_centre - self._patterns.driver_means)

        # Voxels in blocks: a dozen passes over arrays of this size would wait for memory, not for arithmetic.
        rows = max(1, _CACHED // showers.shape[1])
        buffers = np.empty((5, min(rows, len(showers)), showers.shape[1]), np.float32)
        blocks = [slice(start, start + rows) for start in range(0, len(showers), rows)]
        aparts = []
        for block in blocks:
            power, spare = buffers[:2, : len(common[block])]
            for square, part in zip(squares, self._parts, strict=True):
                np.matmul(square[block], self._power[:, part], out=power[:, part])
            for layer in np.flatnonzero((together[block] < 1).any(0)):
                power[:, self._parts[layer]] *= together[block, layer, None] ** 2
            # What factors leave of a variance of 1 is a voxel's own; both together have a variance of 1.
            np.subtract(1, power, out=spare)
            np.sqrt(np.maximum(spare, _LEAST, out=spare), out=spare)
            noise, apart = self._noise(own[block], logs[:, block])
            held = np.where(alone[block, :, None], noise[:, self._core], mixed[block])
            noise[:, self._core.ravel()] = held.reshape(len(held), -1)
            spare *= noise
            spare += common[block]
            power += _LEAST
            spare /= np.sqrt(np.maximum(power, 1, out=power), out=power)
            spare *= self._scale
            showers[block] += spare
            aparts.append(apart)
        if self._patterns is not None:
            for start in range(0, len(showers), _TOGETHER):
                some = slice(start, start + _TOGETHER)
                self._patterns(showers[some], features[..., some], moved[some])
        for block, apart in zip(blocks, aparts, strict=True):
            self._voxels(showers[block], energies[:, block], features[..., block], near[block], apart, buffers)
        return showers if cells is None else self._on_read_out(showers, cells)

    def _noise(self, own: Array, logs: Array) -> tuple[Array, Array | None]:
        """:meth:`SharedNoise.forward` of independent normals (B, V) and the logarithms of layer energies (L, B)."""
        ramps = np.minimum(np.maximum((logs - self._levels[:-1, :, None]) * self._per_gap[..., None], 0), 1)
        near = np.concatenate([np.ones_like(ramps[:1]), ramps])
        near[:-1] -= ramps
        near = near.repeat(2, 1)
        noise, kept = own, np.ones_like(own[:1, :1])
        for (before, after), number, shares in self._shared_axes:
            share = self._at(near, shares)
            padded = np.concatenate([noise, np.zeros_like(noise[:, :1])], 1)
            both = padded[:, before]
            both += padded[:, after]
            both *= share
            both += noise
            share *= share
            share *= number
            share += 1
            scale: Array = np.sqrt(share, out=share)
            both /= scale
            noise, kept = both, kept / scale if self._apart is not None else kept
        if noise is own:
            return own.copy(), None
        if self._apart is None:
            return noise, None
        apart = own - kept * noise
        apart *= self._at(near, self._apart)
        return noise, apart

    def _at(self, near: Array, values: Array) -> Array:
        """What holds for the voxels, (B, V), of values (S, L) at the levels of layer energies."""
        found: Array = (near * values[..., None]).sum(0).T[:, self._zone]
        return found

    def _counts(self, excess: Array, energies: Array) -> None:
        """:class:`HitCounts`, in place: how far voxels are from being off, (B, V); layer energies (L, B)."""
        logs = np.log(np.maximum(energies, np.float32(1e-9)))
        layer, row = np.nonzero(logs < self._count_levels[-1][:, None])
        if not len(row):
            return
        cells, most = self._cells[layer], self._most[layer]
        values = excess[row[:, None], cells]
        first = np.where(self._spare_cells[layer], np.float32(-np.inf), values)
        first = np.sort(np.partition(first, -self._kept, 1)[:, -self._kept :], 1)[:, ::-1]
        # As `natural` has it.
        each, on = np.arange(len(first)), (first > 0).sum(1)
        last, after = first[each, np.maximum(on - 1, 0)], first[each, np.minimum(on, most - 1)]
        with np.errstate(invalid="ignore"):
            number = on - 1 + last / np.maximum(last - after, np.float32(1e-6))
        number = np.where(on == 0, np.maximum(first[:, 0], -1e3), np.where(on >= most, on, number))
        levels = self._count_levels[:, layer]
        near = np.minimum(np.maximum((logs[layer, row] - levels[:-1]) / np.diff(levels, axis=0), 0), 1)
        limits = self._limits[0, :, layer].T + np.einsum("sp,skp->kp", near, self._limit_steps[..., layer])
        wanted = 1 + (number > limits + TIE).sum(0)
        change = (wanted != np.maximum(np.ceil(number), 1)) & (wanted < most) & (number <= MOST)
        chosen = np.flatnonzero(change)
        shift = first[chosen, wanted[chosen]]
        excess[row[chosen, None], cells[chosen]] = values[chosen] - shift[:, None]

    @torch.inference_mode()
    def _local(self, conditions: Array, energies: Array) -> tuple[Cells | None, tuple[Array, Array, Array] | None]:
        """Where the axes are, and what :class:`Local` holds, features first."""
        frame = self._transform.frame
        if frame is None:
            return None, None
        cells = frame.cells(*(torch.from_numpy(np.ascontiguousarray(a)) for a in (conditions, energies)))
        local = local_of(frame, cells)
        return cells, (local.features.permute(2, 1, 0).numpy(), local.drivers.numpy(), local.own.numpy())

    @torch.inference_mode()
    def _on_read_out(self, showers: Array, cells: Cells) -> Array:
        frame = self._transform.frame
        if frame is None:
            return showers
        found: Array = frame.from_frame(torch.from_numpy(showers), cells)[0].numpy()
        found[found < self._threshold] = 0
        return found

    def _near(self, leading: Array) -> Array:
        """:meth:`ShowerTransform.near`, (B, 3)."""
        first, second = np.minimum(np.maximum((leading.T - self._stations) / self._gaps, 0), 1)
        return np.stack([1 - first, first - second, second], 1)

    def _features(
        self, energies: Array, scaled: Array, leading: Array, local: tuple[Array, Array, Array] | None
    ) -> Array:
        """:meth:`VoxelShares.features`, features first: (F, L, B)."""
        layers, count = energies.shape
        number = np.arange(layers, dtype=np.float32)
        depth = (number @ energies) / np.maximum(energies.sum(0), np.float32(1e-12))
        profile = np.concatenate([np.log(energies + self._knee), depth[None]])
        plain = scaled.shape[1]
        columns = np.empty((plain + 4 + (0 if local is None else len(local[0])), layers, count), np.float32)
        columns[0], columns[1 : plain + 1], columns[plain + 3] = 1, scaled.T[:, None], leading[:, 0] * leading[:, 0]
        first, second, third = (columns[product, 0] for product in self._products[:, : self._plain])
        standard = _within((profile - self._centre @ (first * second * third)) / self._spread, CLIP)
        columns[plain + 1], columns[plain + 2] = standard[:-1], standard[-1]
        if local is not None:
            columns[plain + 4 :] = local[0]
        first, second, third = (columns[product] for product in self._products)
        features: Array = first * second * third
        return features

    def _voxels(
        self, normals: Array, energies: Array, features: Array, near: Array, apart: Array | None, buffers: Array
    ) -> None:
        """Turn voxel normals over the root of 2, (B, V), into MeV, in place; see :meth:`VoxelShares.inverse`."""
        # The regressions of all voxels, a layer at a time because each has features of its own.
        excess, spread, location, spare, weight = buffers[:, : len(normals)]
        for number, (part, regressions) in enumerate(zip(self._parts, self._regressions, strict=True)):
            design = features[:, number].T
            for out, regression in zip((excess, spread, location), regressions, strict=True):
                np.matmul(design, regression, out=out[:, part])

        # The excess log p - log S, with p = 1 / (1 + exp(-logit)) and S = erfc(normal / root 2) / 2, needs a single
        # logarithm: log 2 - log((1 + exp(-logit)) erfc).
        tail = torch.from_numpy(np.minimum(normals, _MOST_TAIL, out=normals))
        torch.erfc(tail, out=tail)  # ten times as fast as scipy's
        np.exp(excess, out=excess)
        excess += 1
        excess *= normals
        np.subtract(_LOG_2, np.log(excess, out=excess), out=excess)
        self._counts(excess, energies)

        # Shares, zero where the excess is negative, normalised to the energy of their layer.
        least = np.maximum(excess, np.float32(1e-4), out=normals)
        self._shares(least, near, apart, spread, location, spare, weight)
        on = np.greater(excess, 0, out=spare)
        showers = np.multiply(location, on, out=normals)
        for part, energy in zip(self._parts, energies, strict=True):
            layer = showers[:, part]
            total, least = layer.sum(1), 0.0
            if self._threshold:
                least = self._threshold * on[:, part].sum(1)
            # A layer with no voxel on, or more than its energy suffices for, puts all into the one that came nearest.
            alone = np.flatnonzero((total == 0) | (energy <= least))
            layer *= ((energy - least) / np.maximum(total, np.float32(1e-30)))[:, None]
            if self._threshold:
                layer += self._threshold * on[:, part]
            if len(alone):
                layer[alone] = 0
                layer[alone, excess[alone, part].argmax(1)] = energy[alone]
        if self._half.any():
            self._put_on_line(showers, energies, spare, weight, excess)

    def _shares(
        self,
        excess: Array,
        near: Array,
        apart: Array | None,
        spread: Array,
        location: Array,
        value: Array,
        weight: Array,
    ) -> None:
        """exp(location + exp(spread) (Q(excess) + apart)) in place of the location; all (B, V) are overwritten."""
        constant, logarithm, root, low, middle = self._shape
        np.matmul(near, root, out=value)
        value *= np.sqrt(excess, out=weight)
        value += np.matmul(near, constant, out=weight)
        log = np.log(excess, out=excess)
        for slope, bend in ((logarithm, None), (middle, MIDDLE), (low, LOW)):
            if bend is not None:
                log -= np.float32(bend)
                np.minimum(log, 0, out=log)
            np.matmul(near, slope, out=weight)
            weight *= log
            value += weight
            if bend is not None:
                log += np.float32(bend)
        if apart is not None:
            value += apart
        value *= np.exp(spread, out=spread)
        location += value
        np.minimum(location, 10, out=location)
        np.exp(location, out=location)

    def _put_on_line(self, showers: Array, energies: Array, distance: Array, nearest: Array, within: Array) -> None:
        """:meth:`ShowerTransform._with_line`, in place; the last three, (B, V), are overwritten."""
        np.subtract(showers, self._mass, out=distance)
        np.less(np.abs(distance, out=within), self._reach, out=within)
        np.maximum(distance, -self._half, out=nearest)
        np.minimum(nearest, self._half, out=nearest)
        # Where within reach, distance becomes stretch * (distance - nearest).
        nearest *= self._stretch
        distance *= self._stretch - 1
        distance -= nearest
        distance *= within
        showers += distance
        for part, energy in zip(self._parts, energies, strict=True):
            layer = showers[:, part]
            layer *= (energy / np.maximum(layer.sum(1), np.float32(1e-30)))[:, None]


class _Scaling:
    """:func:`scale_conditions` of some conditions, in float32."""

    def __init__(self, family: Family, names: Sequence[str]) -> None:
        offset, slope, logarithmic = scaling(family, names)
        self._offset, self._slope = offset.astype(np.float32), slope.astype(np.float32)
        self._logarithmic = np.flatnonzero(logarithmic)
        self._codings = [(i, table.astype(np.float32)) for i, table in codings(family, names)]

    def __call__(self, conditions: Array) -> Array:
        codes = conditions
        if len(self._logarithmic):
            conditions = conditions.copy()
            conditions[:, self._logarithmic] = np.log(conditions[:, self._logarithmic])
        scaled: Array = conditions * self._slope + self._offset
        for column, table in self._codings:
            rows = table[codes[:, column].astype(np.intp)]
            scaled[:, column] = rows[:, 0]
            scaled = np.concatenate([scaled, rows[:, 1:]], 1)
        return scaled


def _quadratic(drivers: Array) -> Array:
    """One, the drivers and their products of two, (B, 1 + J + J (J + 1) / 2)."""
    first, second = np.triu_indices(drivers.shape[1])
    return np.concatenate([np.ones_like(drivers[:, :1]), drivers, drivers[:, first] * drivers[:, second]], 1)


def _taken(conditions: Array, columns: list[int] | None) -> Array:
    return conditions if columns is None else np.ascontiguousarray(conditions[:, columns])


def _dense(state: dict[str, Array], prefix: str) -> list[tuple[Array, Array]]:
    """Weights (inputs, outputs) and biases of the linear layers of a network."""
    numbers = sorted({int(name.split(".")[1]) for name in state if name.startswith(prefix)})
    weights = [(state[f"{prefix}{n}.weight"], state[f"{prefix}{n}.bias"]) for n in numbers]
    return [(np.ascontiguousarray(weight.T), bias) for weight, bias in weights]


def _run(layers: list[tuple[Array, Array]], values: Array) -> Array:
    for number, (weight, bias) in enumerate(layers):
        values = np.matmul(_leaky(values) if number else values, weight)
        values += bias
    return values


def _leaky(values: Array) -> Array:
    leaky: Array = np.maximum(values, values * np.float32(SLOPE))
    return leaky


def _within(values: Array, limit: float) -> Array:
    """Clipped to +-limit: np.clip costs several calls of np.minimum."""
    return np.minimum(np.maximum(values, np.float32(-limit)), np.float32(limit))
