"""Showers in numpy, whose calls cost a third of torch's: a single one takes a fraction of a millisecond."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import erfc, ndtri
from torch import Tensor

from ..conditions import codings, scaling
from ..contract import Array
from ..layers import SLOPE
from .shapes import LOW, MIDDLE
from .transform import (
    CLIP,
    EARLIER_CLIP,
    ELECTRON,
    LEAK_FLOOR,
    LINE_REACH,
    MOST_NORMAL,
    PER_UNIT,
    SMALLEST,
    ShowerTransform,
)

_NEVER_EMPTY = math.log(1e-5)  # log odds below which a layer is never empty
_LOG_2 = np.float32(math.log(2))
_MOST_TAIL = np.float32(6 * math.sqrt(0.5))
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
    """

    def __init__(
        self, transform: ShowerTransform, splits: tuple[int, int, int], tensors: Mapping[str, Tensor], epsilon: float
    ) -> None:
        family = transform.family
        state: dict[str, Array] = {name: tensor.cpu().numpy().copy() for name, tensor in tensors.items()}
        learnt = {name.removeprefix("transform."): a for name, a in state.items() if name.startswith("transform.")}
        self._family, self._splits = family, splits
        offset, slope, logarithmic = scaling(family, transform.conditions)
        self._offset, self._slope = offset.astype(np.float32), slope.astype(np.float32)
        self._logarithmic = np.flatnonzero(logarithmic)
        self._codings = [(i, table.astype(np.float32)) for i, table in codings(family, transform.conditions)]
        self._energy_column = transform.energy_column
        self._energy_layers = _dense(state, "energies.")
        *self._hidden, (last, bias) = _dense(state, "shapes.")
        scale = 1 / np.sqrt(state["standardise.running_var"] + np.float32(epsilon))
        scale *= np.float32(math.sqrt(0.5))  # erfc takes normals over the root of 2
        shift = bias - state["standardise.running_mean"]
        self._mix = np.concatenate([last, state["loadings"].T, state["drift"].T, shift[None]]) * scale
        self._drifting = state["drift"].shape[1]
        self._noise = state["noise"] * scale
        # Energies: quantiles and log odds of being empty are one product.
        logits = learnt["empty_logits"][:, None]
        self._quantiles = np.concatenate([learnt["energy_quantiles"].transpose(0, 2, 1), logits], 1)
        self._powers = transform.powers.numpy()
        self._extended = _extended(self._quantiles.shape[1] - 1)
        self._least, self._most = learnt["energy_range"].T[:, :, None, None]
        self._order = transform.orders[int(learnt["reference"])].numpy()
        # Voxels: regressions on products of three columns; those of the conditions alone come first.
        self._products = transform.products.numpy()
        self._plain = len(learnt["shape_centre"])
        self._stations, self._gaps = learnt["stations"][:-1, None], np.diff(learnt["stations"])[:, None]
        self._centre, self._spread = learnt["shape_centre"].T.copy(), learnt["shape_spread"][:, None]
        regressions = [-learnt["occupancy"], learnt["log_scale"], learnt["location"]]
        self._parts = family.layer_slices
        self._regressions = [[np.ascontiguousarray(r[:, part]) for r in regressions] for part in self._parts]
        self._shape = learnt["shape"]
        unit = np.float32(family.unit_in_mev)
        self._mass, self._reach = np.float32(ELECTRON) / unit, np.float32(LINE_REACH) / unit
        self._half = (learnt["line"] / unit)[family.layer_of_voxel]
        self._stretch = self._reach / (self._reach - self._half)

    @np.errstate(over="ignore")  # far outside the trained range odds are infinite: probabilities 0 and 1
    def __call__(self, latent: Array, conditions: Array) -> Array:
        """Showers (B, V) in MeV from standard normals (B, Z) and conditions (B, C) in their units."""
        # The networks, and everything linear after them as one product.
        layers, latents, _ = self._splits
        first, factors, own = latent[:, :layers], latent[:, layers : layers + latents], latent[:, layers + latents :]
        scaled = self._scaled(conditions)
        normals = first + _run(self._energy_layers, np.concatenate([first, scaled], 1))
        hidden = _leaky(_run(self._hidden, np.concatenate([normals, factors, scaled], 1)))
        one = np.ones((len(latent), 1), np.float32)
        leading = scaled[:, self._energy_column, None] if self._energy_column is not None else 0 * one
        drifting = factors[:, : self._drifting] * leading
        showers: Array = np.concatenate([hidden, factors, drifting, one], 1) @ self._mix

        # Energies first: voxels depend on them.
        energies = self._layer_energies(normals, conditions, scaled, leading)
        features, near = self._features(energies, scaled, leading), self._near(leading)

        # Voxels in blocks: a dozen passes over arrays of this size would wait for memory, not for arithmetic.
        rows = max(1, _CACHED // showers.shape[1])
        buffers = np.empty((5, min(rows, len(showers)), showers.shape[1]), np.float32)
        for start in range(0, len(showers), rows):
            block = slice(start, start + rows)
            normals, spare = showers[block], buffers[0, : len(showers[block])]
            spare = np.matmul(near[block], self._noise, out=spare)
            spare *= own[block]
            normals += spare
            self._voxels(normals, energies[:, block], features[..., block], near[block], buffers)
        return showers

    def _scaled(self, conditions: Array) -> Array:
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

    def _layer_energies(self, normals: Array, conditions: Array, scaled: Array, leading: Array) -> Array:
        """:meth:`ShowerTransform.energies_from_normals`, layers first: (L, B)."""
        rows = _within(normals.T, MOST_NORMAL)
        one = np.ones((1, rows.shape[1]), np.float32)
        columns = np.concatenate([one, scaled.T, _within(rows, EARLIER_CLIP), 0 * one, (leading * leading).T])

        # Quantiles at the fitted levels, and log odds of being empty, of all energy variables in one product.
        first, second, third = (columns.take(power, 0) for power in self._powers)
        designs = (first * second * third).reshape(len(rows), -1, rows.shape[1])
        fitted = self._quantiles @ designs
        logits, empty = fitted[1:, -1], None
        if logits.max(initial=-np.inf) > _NEVER_EMPTY:
            rows, empty = _emptied(rows, logits)

        # Extended to all knots, increasing and within the range of the data; then straight lines between them.
        knots = self._extended @ np.maximum.accumulate(fitted[:, :-1], axis=1)
        np.minimum(np.maximum(knots, self._least, out=knots), self._most, out=knots)
        position = _within(rows, MOST_NORMAL) * np.float32(PER_UNIT) + np.float32(4 * PER_UNIT)
        index = position.astype(np.intp)
        position -= index
        count = rows.shape[1]
        index += knots.shape[1] * np.arange(len(rows))[:, None]
        index = index * count + np.arange(count)
        low, high = knots.take(index), knots.take(index + count)
        return self._from_variables(low + position * (high - low), empty, conditions)

    def _from_variables(self, variables: Array, empty: NDArray[np.bool_] | None, conditions: Array) -> Array:
        """Energies (L, B) from energy variables (L, B): total, and logarithms relative to the leading layer."""
        knee = np.float32(self._family.knee)
        total, floor = np.exp(variables[0]), np.float32(LEAK_FLOOR)
        if self._energy_column is None:
            total = np.maximum(total - knee, 0)
        else:
            conserved = self._family.conserves_energy
            response, most = (1 + floor - total, 1) if conserved else (total - floor, self._family.max_response)
            total = conditions[:, self._energy_column] * np.minimum(np.maximum(response, 0), np.float32(most))
        variables[0] = 0
        shares, layers = np.exp(variables[self._order]), np.float32(len(variables))
        if empty is not None:
            empty = empty[self._order]
            shares[empty] = 0
            layers = layers - empty.sum(0, dtype=np.float32)
        energies: Array = shares * ((total + layers * knee) / shares.sum(0)) - knee
        np.maximum(energies, np.float32(SMALLEST) * knee, out=energies)
        if empty is not None:
            energies[empty] = 0
        energies *= total / np.maximum(energies.sum(0), np.float32(1e-12))
        return energies

    def _near(self, leading: Array) -> Array:
        """:meth:`ShowerTransform.near`, (B, 3)."""
        first, second = np.minimum(np.maximum((leading.T - self._stations) / self._gaps, 0), 1)
        return np.stack([1 - first, first - second, second], 1)

    def _features(self, energies: Array, scaled: Array, leading: Array) -> Array:
        """:meth:`ShowerTransform.features`, features first: (F, L, B)."""
        layers, count = energies.shape
        number = np.arange(layers, dtype=np.float32)
        depth = (number @ energies) / np.maximum(energies.sum(0), np.float32(1e-12))
        profile = np.concatenate([np.log(energies + np.float32(self._family.knee)), depth[None]])
        columns = np.empty((scaled.shape[1] + 4, layers, count), np.float32)
        columns[0], columns[1:-3], columns[-1] = 1, scaled.T[:, None], leading[:, 0] * leading[:, 0]
        first, second, third = (columns[product, 0] for product in self._products[:, : self._plain])
        standard = _within((profile - self._centre @ (first * second * third)) / self._spread, CLIP)
        columns[-3], columns[-2] = standard[:-1], standard[-1]
        first, second, third = (columns[product] for product in self._products)
        features: Array = first * second * third
        return features

    def _voxels(self, normals: Array, energies: Array, features: Array, near: Array, buffers: Array) -> None:
        """Turn voxel normals over the root of 2, (B, V), into MeV, in place; see :meth:`ShowerTransform.inverse`."""
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

        # Shares, zero where the excess is negative, normalised to the energy of their layer.
        self._shares(np.maximum(excess, np.float32(1e-4), out=normals), near, spread, location, spare, weight)
        showers = np.multiply(location, np.greater(excess, 0, out=spare), out=normals)
        for part, energy in zip(self._parts, energies, strict=True):
            layer = showers[:, part]
            total = layer.sum(1)
            if not total.all():  # a layer with energy but no voxel on puts it all into the voxel that came nearest
                missing = np.flatnonzero(total == 0)
                layer[missing, excess[missing, part].argmax(1)] = 1
                total[missing] = 1
            layer *= (energy / total)[:, None]
        if self._half.any():
            self._put_on_line(showers, energies, spare, weight, excess)

    def _shares(self, excess: Array, near: Array, spread: Array, location: Array, value: Array, weight: Array) -> None:
        """exp(location + exp(spread) Q(excess)) in place of the location; everything (B, V) is overwritten."""
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


def _extended(count: int) -> Array:
    """From ``count`` fitted quantiles to all knots: they continue with the slope over a whole unit."""
    fitted = np.eye(count)
    beyond = np.arange(1, PER_UNIT + 1)[:, None] / PER_UNIT
    below = fitted[0] + beyond[::-1] * (fitted[0] - fitted[PER_UNIT])
    above = fitted[-1] + beyond * (fitted[-1] - fitted[-1 - PER_UNIT])
    return np.concatenate([below, fitted, above]).astype(np.float32)


def _emptied(normals: Array, logits: Array) -> tuple[Array, NDArray[np.bool_]]:
    """Normals (L, B) stretched over layers that are not empty, and which are empty; log odds (L - 1, B)."""
    full = np.ones_like(normals)
    full[1:] = 1 / (1 + np.exp(logits))
    full[full > 1 - 1e-5] = 1
    tail = erfc(normals * np.float32(math.sqrt(0.5))) / 2
    empty = tail > full
    inner = np.where(empty, 0.5, tail / np.maximum(full, 1e-6)).clip(1e-9, 1 - 1e-9)
    return np.where(full < 1, -ndtri(inner.astype(np.float64)), normals).astype(np.float32), empty


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
