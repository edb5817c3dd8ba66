"""Shower shapes and map statistics: what physicists measure on one sample, for many samples at once.

The definitions are CaloGAN's (arXiv:1705.02355, table IV) and CaloChallenge's (arXiv:2410.21611), on every calorimeter
family. An empty layer or shower, where the published code divides zero by zero, gives 0 for each quantity.

Showers are read once: a block of one layer that fits into the processor's cache gives all its sums (moments, hits, the
hottest pair), and everything else follows from those.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from calogen.families import ENERGY_UNITS, CartesianLayer, Family, Layer

from .statistics import FLOOR_PIXEL, Shells, peak_mask, power_spectra

if TYPE_CHECKING:
    from calogen.shards.samples import Samples

Array = NDArray[np.float64]
_CHUNK_VALUES = 2**16  # voxels held in float64 at a time: 512 KiB stay in the cache
_CHUNK_PIXELS = 2**22
_CHUNK_SHOWERS = 4096  # showers whose sums are held at a time
_THRESHOLDS = {"15keV": ("15 keV", 0.015), "100keV": ("0.1 MeV", 0.1), "1MeV": ("1 MeV", 1.0)}  # name: label, in MeV
_LOG_QUANTILES = (5, 50, 95, 99)
_NEED_ENERGY = ("response",)  # observables of showers that exist only where the incident energy is known


@dataclass(frozen=True)
class Observable:
    """A number measured on one sample.

    Attributes:
        name: Its name in metrics, ``quantity`` or ``quantity_LAYER`` with the detector's own layer number.
        label: What figures print, in matplotlib's mathtext.
        unit: Its unit, empty when dimensionless.
        signed: Whether values of both signs are normal, so that a relative difference of means makes no sense.
        log: Whether it spreads over decades when the incident energy does, so that bins are logarithmic then.
        step: Distance between neighbouring values of a quantity that counts, 0 for a continuous one.
        layer: The detector's number of the layer concerned, if any.
    """

    name: str
    label: str
    unit: str = ""
    signed: bool = False
    log: bool = False
    step: float = 0.0
    layer: int | None = None

    @property
    def axis_label(self) -> str:
        """The label with its unit in brackets."""
        return f"{self.label} [{self.unit}]" if self.unit else self.label


def catalogue(family: Family, *, energy: bool = True) -> dict[str, Observable]:
    """All observables of a family by name, in the order in which :func:`observables` gives them.

    Args:
        family: What the samples are.
        energy: Whether the incident energies of showers are known; if not, what needs them is left out.
    """
    found = _map_catalogue(family) if family.kind == "map" else _shower_catalogue(family)
    return {observable.name: observable for observable in found if energy or observable.name not in _NEED_ENERGY}


def observe(samples: Samples) -> dict[str, Array]:
    """Every observable of every sample.

    Sums run in float64, over chunks of samples, so memory stays bounded for families of any size.

    Args:
        samples: N samples in physical units (MeV for showers).

    Returns:
        By name, (N,) float64 in the unit that :func:`catalogue` says; showers without incident energies have no
        ``response``.

    Source: hep-lbdl/CaloGAN ``analysis/feats1d.py``; CaloChallenge/homepage ``code/HighLevelFeatures.py``.
    """
    family = samples.family
    count = len(samples.values)
    incident: Array | None = None
    if "incident_energy" in samples.conditions:
        incident = np.asarray(samples.conditions["incident_energy"], dtype=np.float64)
    names = list(catalogue(family, energy=family.kind == "map" or incident is not None))
    table = np.zeros((len(names), count))
    rows = max(1, _CHUNK_PIXELS // family.voxels) if family.kind == "map" else _CHUNK_SHOWERS
    for start in range(0, count, rows):
        part = slice(start, min(start + rows, count))
        if family.kind == "map":
            columns = _map_columns(family, samples.values[part])
        else:
            sums = _sums(family, samples.values[part])
            columns = _shower_columns(family, sums, None if incident is None else incident[part])
        for row, column in enumerate(columns):
            table[row, part] = column
    return dict(zip(names, table, strict=True))


def _ratio(above: Array, below: Array) -> Array:
    return np.divide(above, below, out=np.zeros(np.broadcast(above, below).shape), where=below > 0)


def _spread(square: Array, mean: Array) -> Array:
    # Rounding makes the variance of a single hit slightly negative.
    return np.sqrt(np.maximum(square - mean**2, 0.0))


def _axes(layer: Layer) -> dict[str, Array]:
    """Coordinates of a layer's cells along the axes it resolves, in mm, each (V_layer,)."""
    x, y = layer.centres.T
    if isinstance(layer, CartesianLayer):
        return {"x": x, "y": y, "r": np.hypot(x, y)}
    radius = {"r": layer.polar[:, 1]}
    # One sector has no direction: its cell centres are not where the energy is.
    return {"x": x, "y": y, **radius} if layer.n_alpha > 1 else radius


@lru_cache(maxsize=64)
def _moment_basis(layer: Layer) -> Array:
    """One column per moment of a layer: the sum, then first and second moments of each axis; (V_layer, 1 + 2 axes)."""
    columns = [np.ones(layer.shape[0] * layer.shape[1])]
    for coordinate in _axes(layer).values():
        columns += [coordinate, coordinate**2]
    return np.stack(columns, axis=1)


def _thresholds(family: Family) -> dict[str, tuple[str, float]]:
    """Label and value, in the family's unit, of the thresholds above what is read out anyway, by name."""
    scale = ENERGY_UNITS.get(family.unit, 1.0)
    found = {name: (label, mev / scale) for name, (label, mev) in _THRESHOLDS.items()}
    return {name: (label, value) for name, (label, value) in found.items() if value > family.threshold}


def _shower_catalogue(family: Family) -> Iterator[Observable]:
    yield Observable("total_energy", r"$E_\mathrm{tot}$", family.unit, log=True)
    yield Observable("response", r"$E_\mathrm{tot}\,/\,E_\mathrm{inc}$")
    yield Observable("occupancy", "occupied voxels / all voxels", step=1 / family.voxels)
    for name, (label, _) in _thresholds(family).items():
        yield Observable(f"occupancy_{name}", f"voxels above {label} / all voxels", step=1 / family.voxels)
    yield Observable("depth", "deepest layer hit", step=1.0)
    yield Observable("lateral_depth", r"$\Sigma_i\,i\,E_i$", family.unit, log=True)
    yield Observable("lateral_depth2", r"$\Sigma_i\,i^2\,E_i$", family.unit, log=True)
    yield Observable("shower_depth", r"shower depth $\langle i \rangle_E$", "layers")
    yield Observable("shower_depth_width", r"shower depth width $\sigma(i)_E$", "layers")
    for layer, number in zip(family.layers, family.layer_numbers, strict=True):
        cells = layer.shape[0] * layer.shape[1]
        yield Observable(f"energy_{number}", rf"$E_{{{number}}}$", family.unit, log=True, layer=number)
        yield Observable(f"fraction_{number}", rf"$E_{{{number}}}\,/\,E_\mathrm{{tot}}$", layer=number)
        yield Observable(f"energy_ratio_{number}", rf"$(I_1-I_2)\,/\,(I_1+I_2)$, layer {number}", layer=number)
        yield Observable(f"occupancy_{number}", f"occupancy, layer {number}", step=1 / cells, layer=number)
        for axis in _axes(layer):
            mean, width = rf"$\langle {axis} \rangle$, layer {number}", rf"$\sigma_{{{axis}}}$, layer {number}"
            yield Observable(f"centre_{axis}_{number}", mean, "mm", signed=axis != "r", layer=number)
            yield Observable(f"width_{axis}_{number}", width, "mm", layer=number)


@dataclass(frozen=True)
class _Sums:
    """What the observables of N showers follow from.

    Attributes:
        moments: Of each layer, (1 + 2 axes, N): see :func:`_moment_basis`.
        hottest: The two hottest cells of each layer, (L, 2, N).
        hits: Cells of each layer with energy, (L, N).
        above: Voxels above each threshold, (T, N).
    """

    moments: list[Array]
    hottest: Array
    hits: Array
    above: Array


def _sums(family: Family, showers: NDArray[np.float32]) -> _Sums:
    """Read some showers once, block by block."""
    count, thresholds = len(showers), [np.float32(value) for _, value in _thresholds(family).values()]
    layers = len(family.layers)
    found = _Sums(
        moments=[np.empty((_moment_basis(layer).shape[1], count)) for layer in family.layers],
        hottest=np.zeros((layers, 2, count)),
        hits=np.empty((layers, count)),
        above=np.empty((len(thresholds), count)),
    )
    for position, (layer, cells) in enumerate(zip(family.layers, family.layer_slices, strict=True)):
        rows = max(1, _CHUNK_VALUES // (cells.stop - cells.start))
        for start in range(0, count, rows):
            part = slice(start, min(start + rows, count))
            energies = np.ascontiguousarray(showers[part, cells])
            block = energies.astype(np.float64)
            found.moments[position][:, part] = (block @ _moment_basis(layer)).T
            found.hits[position, part] = _count(energies > 0)
            _pop_hottest(block, found.hottest[position, :, part])
    rows = max(16, _CHUNK_VALUES // showers.shape[1])
    for start in range(0, count, rows):
        part = slice(start, min(start + rows, count))
        for above, threshold in zip(found.above, thresholds, strict=True):
            above[part] = _count(showers[part] > threshold)
    return found


def _count(mask: NDArray[np.bool_]) -> NDArray[np.unsignedinteger]:
    """How many are true in each row, (N,); several times faster than summing booleans."""
    counter = np.uint16 if mask.shape[1] < 2**16 else np.uint64
    return np.asarray(np.add.reduce(mask.view(np.uint8), axis=1, dtype=counter))


def _pop_hottest(block: Array, found: Array) -> None:
    """Energies of the two hottest cells, into (2, N); the hottest is removed from the block."""
    flat, first = block.reshape(-1), np.arange(len(block)) * block.shape[1]
    for rank in range(min(2, block.shape[1])):
        hottest = first + block.argmax(axis=1)
        found[rank] = flat[hottest]
        flat[hottest] = -np.inf


def _shower_columns(family: Family, sums: _Sums, incident: Array | None) -> Iterator[Array]:
    """The observables of some showers, in the order of the catalogue; no response without incident energies."""
    energies = np.stack([moments[0] for moments in sums.moments])
    total = energies.sum(axis=0)
    index = np.arange(len(energies), dtype=np.float64)
    depth, depth2 = index @ energies, index**2 @ energies
    reached = (energies > 0) * index[:, None]
    yield total
    if incident is not None:
        yield _ratio(total, incident)
    yield sums.hits.sum(axis=0) / family.voxels
    yield from sums.above / family.voxels
    yield from (reached.max(axis=0), depth, depth2)
    yield from (_ratio(depth, total), _spread(_ratio(depth2, total), _ratio(depth, total)))
    for moments, (first, second), hits, cells in zip(
        sums.moments, sums.hottest, sums.hits, family.layer_slices, strict=True
    ):
        energy = moments[0]
        yield from (energy, _ratio(energy, total))
        # 1 for a single hit, 0 for an empty layer.
        yield from (_ratio(first - second, first + second), hits / (cells.stop - cells.start))
        for mean, square in zip(moments[1::2], moments[2::2], strict=True):
            centre = _ratio(mean, energy)
            yield from (centre, _spread(_ratio(square, energy), centre))


def _map_catalogue(family: Family) -> Iterator[Observable]:
    yield Observable("mean", r"map mean $\langle 1+\delta \rangle$")
    yield Observable("std", r"map standard deviation $\sigma(\delta)$")
    yield Observable("maximum", r"brightest pixel $\max(1+\delta)$", log=True)
    for percent in _LOG_QUANTILES:
        yield Observable(f"log_q{percent:02d}", rf"{percent} % quantile of $\ln(1+\delta)$", signed=True)
    yield Observable("peaks", "peaks (pixels above their 8 neighbours)", step=1.0)
    unit = "(Mpc/h)$^2$" if family.box_size else "pixel$^2$"
    for shell, k in enumerate(wave_numbers(family), start=1):
        yield Observable(f"power_{shell}", rf"$P(k={k:.3g}$" + (r" h/Mpc)" if family.box_size else ")"), unit, log=True)


def wave_numbers(family: Family) -> Array:
    """Wave numbers of ``power_1``, ``power_2``, ... in h/Mpc, (K,)."""
    return Shells.of(family.pixels or (0, 0), family.box_size).k


def _map_columns(family: Family, maps: NDArray[np.float32]) -> Iterator[Array]:
    """The observables of some maps, in the order of the catalogue."""
    flat = maps.astype(np.float64).reshape(len(maps), -1)
    yield from (flat.mean(axis=1), flat.std(axis=1), flat.max(axis=1))
    yield from np.percentile(np.log(np.maximum(flat, 0) + FLOOR_PIXEL), _LOG_QUANTILES, axis=1)
    yield np.count_nonzero(peak_mask(maps), axis=(1, 2)).astype(np.float64)
    yield from power_spectra(maps, family.box_size).T
