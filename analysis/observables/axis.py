"""Observables about the axis of each shower, where impact point or direction are conditions.

The axis is the straight line on which the particle enters. A layer collects the energy of an inclined shower over its
whole thickness, and more where the shower is denser: its centroid is on average where the axis is at the *effective*
depth of the layer, for CaloGAN's second layer about 150 mm, where the middle is at 263 mm. That depth is the slope of
centroids, as seen from the impact point, against the tangents of the direction, and changes with the logarithm of the
incident energy.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial

import numpy as np
from numpy.typing import NDArray

from calogen.errors import ShardError
from calogen.families import Family, Layer
from calogen.shards.samples import Samples

from .observable import Array, Observable
from .statistics import blocks

_FEWEST_CELLS = 4  # along an axis, below which a layer does not resolve it
_FEWEST_SHOWERS = 100  # below which the middle of a layer is taken for its effective depth
_LEAST_TANGENT = 0.01  # root mean square below which directions do not show a depth
_LEAST_SHARE = 1e-3  # of a shower's energy: what is below in a layer has no centroid to speak of
_OUTLIER = 5.0  # robust standard deviations
_WINDOWS = {"crossed": (0.5, "the cell that the axis crosses"), "around": (1.5, "that cell and its neighbours")}
_CHUNK_VALUES = 2**16


@dataclass(frozen=True)
class ShowerAxis:
    """Where the axis of each shower crosses each layer; the same for all sides of a comparison.

    Attributes:
        family: What a sample is.
        depths: Effective depth in mm of each layer at ``energy``, and its change with the logarithm of the incident
            energy, (L, 2).
        energy: In the family's unit.
    """

    family: Family
    depths: Array
    energy: float

    @classmethod
    def fit(
        cls, family: Family, observed: Mapping[str, Array], conditions: Mapping[str, NDArray[np.floating]]
    ) -> ShowerAxis | None:
        """The effective depths at which reference showers act.

        Args:
            family: What a sample is.
            observed: Observables of N reference showers, by name.
            conditions: Their conditions that all sides have, by name.

        Returns:
            None if impact and direction are no conditions, or directions are but the family's layers have no depths.
        """
        lines = family.lines(conditions)
        if lines is None or not family.layers:
            return None
        impact, tangents = lines
        if tangents.any() and not family.depths:
            return None
        depths = np.zeros((len(family.layers), 2))
        if family.depths:
            depths[:, 0] = np.mean(family.depths, axis=1)
        found = cls(family, depths, _middle_energy(family, conditions))
        grows = found._logarithm(conditions, tangents.shape[1])
        for i, number in enumerate(family.layer_numbers):
            enough = observed[f"energy_{number}"] > _LEAST_SHARE * observed["total_energy"]
            rows, targets = [np.zeros((0, 2))], [np.zeros(0)]
            for k, name in resolved(family.layers[i]).items():
                rows.append((tangents[k] * np.stack([np.ones_like(grows), grows])).T[enough])
                targets.append((observed[f"centre_{name}_{number}"] - impact[k])[enough])
            design = np.concatenate(rows)
            if len(design) >= _FEWEST_SHOWERS and np.sqrt(np.mean(design[:, 0] ** 2)) > _LEAST_TANGENT:
                depths[i] = robust_fit(design, np.concatenate(targets))
        return found

    def crossing(self, conditions: Mapping[str, NDArray[np.floating]]) -> Array:
        """Where the axes of N showers cross the layers at their effective depths, (L, 2, N) in mm.

        Raises:
            ShardError: If the conditions do not say where the axes are.
        """
        lines = self.family.lines(conditions)
        if lines is None:
            expected = ", ".join(c.name for c in self.family.conditions if c.role in ("impact", "angle"))
            raise ShardError("samples do not say where their axes are", expected=expected, found=", ".join(conditions))
        impact, tangents = lines
        depth = self.depths[:, :1] + self.depths[:, 1:] * self._logarithm(conditions, tangents.shape[1])
        return np.asarray(impact + depth[:, None] * tangents)

    def _logarithm(self, conditions: Mapping[str, NDArray[np.floating]], count: int) -> Array:
        name = self.family.require_energy().name
        if name not in conditions:
            return np.zeros(count)
        return np.log(np.maximum(np.asarray(conditions[name], dtype=np.float64), np.finfo(float).tiny) / self.energy)


def _middle_energy(family: Family, conditions: Mapping[str, NDArray[np.floating]]) -> float:
    energies = conditions.get(family.require_energy().name)
    return 1.0 if energies is None else math.exp(float(np.log(energies, dtype=np.float64).mean()))


def robust_fit(design: Array, target: Array) -> Array:
    """Least squares without outliers, (F,): rows (N, F) far off the fit of all are left out of the next one."""
    mine = np.ones(len(target), dtype=bool)
    for _ in range(3):
        found = np.linalg.lstsq(design[mine], target[mine], rcond=None)[0]
        away = np.abs(target - design @ found)
        mine = away <= _OUTLIER * 1.4826 * max(float(np.median(away)), np.finfo(float).tiny)
    return np.asarray(found)


def resolved(layer: Layer) -> dict[int, str]:
    """The straight axes, 0 for x and 1 for y, along which a layer resolves where a shower is, with their names."""
    return {k: name for k, name in enumerate("xy") if name in layer.axes and len(_rows(layer, k)[0]) >= _FEWEST_CELLS}


def pitch(layer: Layer, axis: int) -> float:
    """Distance in mm of neighbouring cells of a layer along an axis; 0 where they are not equally spaced."""
    values, _ = _rows(layer, axis)
    return float(values[1] - values[0]) if layer.rectangular and len(values) > 1 else 0.0


@lru_cache(maxsize=256)
def _rows(layer: Layer, axis: int) -> tuple[Array, Array]:
    """Different coordinates of a layer's cells along an axis, (U,), and which cells have them, (V_layer, U)."""
    values, index = np.unique(layer.centres[:, axis].round(6), return_inverse=True)
    return values, np.eye(len(values))[index]


def axis_observables(axis: ShowerAxis) -> Iterator[Observable]:
    """All observables about the axis, measured from :class:`AxisSums`. To add one, add an entry here."""
    for i, (layer, number) in enumerate(zip(axis.family.layers, axis.family.layer_numbers, strict=True)):
        of = partial(Observable, layer=number, about_axis=True)
        for k, name in resolved(layer).items():
            centre, hottest = partial(_at, "offsets", i, k), partial(_at, "hottest", i, k)
            label = rf"$\langle {name} \rangle - {name}_\mathrm{{axis}}$, layer {number}"
            yield of(f"offset_{name}_{number}", label, "mm", centre, signed=True, figure="offset")
            label = rf"hottest ${name} - {name}_\mathrm{{axis}}$, layer {number}"
            yield of(f"hottest_{name}_{number}", label, "mm", hottest, signed=True, figure="hottest")
        for name, (_, title) in _WINDOWS.items() if layer.rectangular and resolved(layer) else ():
            share = partial(_at, "shares", i, name)
            yield of(f"{name}_{number}", f"energy in {title}, layer {number}", "", share, figure="about-axis")


def _at(part: str, layer: int, key: int | str, s: AxisSums) -> Array:
    found: Array = getattr(s, part)[layer][key]
    return found


class AxisSums:
    """What the observables about the axis of N showers follow from; empty layers have 0 for all of it.

    Attributes:
        offsets: Of each layer, by resolved axis, its centroid less the crossing point, (N,) in mm.
        hottest: The same of its hottest cells: those with one coordinate along this axis are added.
        shares: Of each layer, by window, the share of its energy in the cells there, (N,).
    """

    def __init__(self, axis: ShowerAxis, samples: Samples) -> None:
        family, count = axis.family, len(samples)
        crossing = axis.crossing(samples.conditions)
        self.offsets: list[dict[int, Array]] = []
        self.hottest: list[dict[int, Array]] = []
        self.shares: list[dict[str, Array]] = []
        for layer, cells, at in zip(family.layers, family.layer_slices, crossing, strict=True):
            axes = resolved(layer)
            offsets, hottest = ({k: np.zeros(count) for k in axes} for _ in range(2))
            shares = {name: np.zeros(count) for name in _WINDOWS}
            for part in blocks(count, max(1, _CHUNK_VALUES // (cells.stop - cells.start))):
                energies = samples.values[part, cells].astype(np.float64)
                total = energies.sum(axis=1)
                hit, scale = total > 0, np.where(total > 0, total, 1.0)
                for k in axes:
                    values, members = _rows(layer, k)
                    rows = energies @ members
                    offsets[k][part] = np.where(hit, rows @ values / scale - at[k, part], 0.0)
                    hottest[k][part] = np.where(hit, values[rows.argmax(axis=1)] - at[k, part], 0.0)
                if layer.rectangular:
                    for name, (reach, _) in _WINDOWS.items():
                        shares[name][part] = _near(layer, energies, at[:, part], reach) / scale
            self.offsets.append(offsets)
            self.hottest.append(hottest)
            self.shares.append(shares)


def _near(layer: Layer, energies: Array, at: Array, reach: float) -> Array:
    """Energy (N,) of the cells whose centres are as near as this, in cells, to the one crossed, along resolved axes."""
    near = energies.reshape(-1, *layer.shape)
    for k in resolved(layer):
        values, _ = _rows(layer, k)
        spacing = pitch(layer, k)
        crossed = values[0] + spacing * np.round((at[k] - values[0]) / spacing)
        mine = np.abs(values[:, None] - crossed) < reach * spacing
        near = near * np.expand_dims(mine.T, 2 - k)
    return np.asarray(near.sum(axis=(1, 2)))
