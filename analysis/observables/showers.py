"""The observables of calorimeter showers: one list, and the sums over voxels that all of them follow from.

The definitions are CaloGAN's (arXiv:1705.02355, table IV) and CaloChallenge's (arXiv:2410.21611), on every calorimeter
family. An empty layer or shower, where the published code divides zero by zero, gives 0 for each quantity.

Showers are read once: a block of one layer that fits into the processor's cache gives all its sums (moments, hits, the
hottest pair), and everything else follows from those.

Source: hep-lbdl/CaloGAN ``analysis/feats1d.py``; CaloChallenge/homepage ``code/HighLevelFeatures.py``.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache, partial

import numpy as np
from numpy.typing import NDArray

from calogen.families import ROUNDING, Family, Layer, varies
from calogen.shards.samples import Samples

from .observable import Array, Observable
from .statistics import blocks

_CHUNK_VALUES = 2**16  # voxels held in float64 at a time: 512 KiB stay in the cache
_THRESHOLDS = {"15keV": ("15 keV", 0.015), "100keV": ("0.1 MeV", 0.1), "1MeV": ("1 MeV", 1.0)}  # name: label, in MeV


def shower_observables(family: Family) -> Iterator[Observable]:
    """All observables of showers, measured from :class:`ShowerSums`. To add one, add an entry here."""
    unit, step = family.unit, 1 / family.voxels
    shown = partial(Observable, figure="shower")
    yield shown("total_energy", r"$E_\mathrm{tot}$", unit, lambda s: s.total, log=True)
    response = r"$E_\mathrm{tot}\,/\,E_\mathrm{inc}$"
    yield shown("response", response, "", lambda s: ratio(s.total, s.incident), needs_energy=True)
    yield shown("occupancy", "occupied voxels / all voxels", "", lambda s: s.hits.sum(axis=0) / s.voxels, step=step)
    for row, (name, (label, _)) in enumerate(_thresholds(family).items()):
        title = f"voxels above {label} / all voxels"
        share = partial(lambda row, s: s.above[row] / s.voxels, row)
        yield Observable(f"occupancy_{name}", title, "", share, step=step)
    yield shown("depth", "deepest layer hit", "", lambda s: s.deepest, step=1.0)
    yield from _profile_observables(family)
    yield shown("lateral_depth", r"$\Sigma_i\,i\,E_i$", unit, lambda s: s.depth, log=True)
    yield shown("lateral_depth2", r"$\Sigma_i\,i^2\,E_i$", unit, lambda s: s.depth2, log=True)
    yield shown("shower_depth", r"shower depth $\langle i \rangle_E$", "layers", lambda s: ratio(s.depth, s.total))
    yield shown("shower_depth_width", r"shower depth width $\sigma(i)_E$", "layers", _depth_width)
    for position, (layer, number) in enumerate(zip(family.layers, family.layer_numbers, strict=True)):
        yield from _layer_observables(unit, position, layer, number)


def _profile_observables(family: Family) -> Iterator[Observable]:
    """Moments of the layers' energies along the depth, as far as so many layers resolve them.

    Layers count where their middle is, in mm; by their position where their depths are not known.
    """
    of, layers = partial(Observable, scored=False, figure="shower"), len(family.layers)
    if family.depths:
        yield of("profile_depth", r"mean depth $\langle z \rangle_E$", "mm", lambda s: s.profile[0])
        yield of("profile_width", r"width in depth $\sigma(z)_E$", "mm", lambda s: s.profile[1])
    if layers > 2:
        yield of("profile_skewness", "skewness in depth", "", lambda s: s.profile[2], signed=True)
    if layers > 3:
        yield of("profile_kurtosis", "excess kurtosis in depth", "", lambda s: s.profile[3], signed=True)


def _layer_observables(unit: str, i: int, layer: Layer, number: int) -> Iterator[Observable]:
    """Those of the layer at position ``i``, which the detector calls ``number``."""
    cells = layer.shape[0] * layer.shape[1]
    of = partial(Observable, layer=number)
    energy, fraction = rf"$E_{{{number}}}$", rf"$E_{{{number}}}\,/\,E_\mathrm{{tot}}$"
    yield of(f"energy_{number}", energy, unit, lambda s: s.energies[i], log=True, figure="energy")
    yield of(f"fraction_{number}", fraction, "", lambda s: ratio(s.energies[i], s.total), figure="fraction")
    hottest = rf"$(I_1-I_2)\,/\,(I_1+I_2)$, layer {number}"  # 1 for a single hit, 0 for an empty layer
    contrast = partial(of, resolution=ROUNDING, figure="cells")
    yield contrast(f"energy_ratio_{number}", hottest, "", lambda s: _contrast(*s.hottest[i]))
    occupancy = f"occupancy, layer {number}"
    yield of(f"occupancy_{number}", occupancy, "", lambda s: s.hits[i] / cells, step=1 / cells, figure="cells")
    for k, (axis, coordinate) in enumerate(layer.axes.items()):
        finest = ROUNDING * float(np.abs(coordinate).max())
        centre, width = partial(_centre, i, k), partial(_width, i, k)
        mean, spread = rf"$\langle {axis} \rangle$, layer {number}", rf"$\sigma_{{{axis}}}$, layer {number}"
        yield of(f"centre_{axis}_{number}", mean, "mm", centre, signed=axis != "r", resolution=finest, figure="centre")
        yield of(f"width_{axis}_{number}", spread, "mm", width, resolution=finest, figure="width")


class ShowerSums:
    """What the observables of N showers follow from, in the family's unit and mm; reads them once, block by block.

    Attributes:
        voxels: Of a shower.
        incident: Incident energies, (N,), where they are known.
        moments: Of each layer, (1 + 2 axes, N): the energy, then first and second moments along each of its axes.
        hottest: The two hottest cells of each layer, (L, 2, N).
        hits: Cells of each layer with energy, (L, N).
        above: Voxels above each threshold, (T, N).
        energies: Of each layer, (L, N).
        centres: Of the energy in each layer along each of its axes, (N,).
        total: Energy in all layers, (N,).
        depth: Positions of the layers weighted with their energies, (N,).
        depth2: The same with squared positions.
        profile: Mean, width, skewness and excess kurtosis of the energy in depth, (N,) each.
        deepest: Position of the deepest layer with energy, (N,); 0 for an empty shower.
    """

    def __init__(self, samples: Samples) -> None:
        family, showers, count = samples.family, samples.values, len(samples)
        energy = samples.conditions.get(family.conditions[0].name)
        thresholds = [np.float32(value) for _, value in _thresholds(family).values()]
        layers = len(family.layers)
        self.voxels = family.voxels
        self.incident = None if energy is None else energy.astype(np.float64)
        self.moments = [np.empty((_moment_basis(layer).shape[1], count)) for layer in family.layers]
        self.hottest, self.hits = np.zeros((layers, 2, count)), np.empty((layers, count))
        self.above = np.empty((len(thresholds), count))
        for position, (layer, cells) in enumerate(zip(family.layers, family.layer_slices, strict=True)):
            for part in blocks(count, max(1, _CHUNK_VALUES // (cells.stop - cells.start))):
                energies = np.ascontiguousarray(showers[part, cells])
                block = energies.astype(np.float64)
                self.moments[position][:, part] = (block @ _moment_basis(layer)).T
                self.hits[position, part] = _count(energies > 0)
                _pop_hottest(block, self.hottest[position, :, part])
        for part in blocks(count, max(16, _CHUNK_VALUES // family.voxels)):
            for above, threshold in zip(self.above, thresholds, strict=True):
                above[part] = _count(showers[part] > threshold)
        # From here on nothing depends on the number of voxels.
        index = np.arange(layers, dtype=np.float64)
        self.energies = np.stack([moments[0] for moments in self.moments])
        self.centres = [[ratio(mean, moments[0]) for mean in moments[1::2]] for moments in self.moments]
        self.total = self.energies.sum(axis=0)
        self.depth, self.depth2 = index @ self.energies, index**2 @ self.energies
        self.profile = _profile(np.mean(family.depths, axis=1) if family.depths else index, self.energies, self.total)
        self.deepest = ((self.energies > 0) * index[:, None]).max(axis=0)


def ratio(above: Array, below: Array) -> Array:
    """A quotient that is 0 where the denominator is."""
    return np.divide(above, below, out=np.zeros(np.broadcast(above, below).shape), where=below > 0)


def spread(square: Array, mean: Array) -> Array:
    """Standard deviation from means; 0 for a single hit, whose variance is a rounding error of either sign."""
    found = np.sqrt(np.maximum(square - mean**2, 0.0))
    return np.where(varies(found, np.sqrt(square)), found, 0.0)


def _depth_width(s: ShowerSums) -> Array:
    return spread(ratio(s.depth2, s.total), ratio(s.depth, s.total))


def _profile(middle: Array, energies: Array, total: Array) -> tuple[Array, Array, Array, Array]:
    """Mean, width, skewness and excess kurtosis of where the energy is, (N,) each; 0 where there is no width.

    Args:
        middle: Of each layer, (L,).
        energies: Of each layer, (L, N).
        total: Of all layers, (N,).
    """
    mean = ratio(middle @ energies, total)
    away = middle[:, None] - mean
    second, third, fourth = (ratio((away**k * energies).sum(axis=0), total) for k in (2, 3, 4))
    second = np.where(second > 1e-12 * np.ptp(middle) ** 2, second, 0.0)  # a single layer hit, but for rounding
    return mean, np.sqrt(second), ratio(third, second**1.5), ratio(fourth - 3 * second**2, second**2)


def _contrast(first: Array, second: Array) -> Array:
    return ratio(first - second, first + second)


def _centre(layer: int, axis: int, s: ShowerSums) -> Array:
    return s.centres[layer][axis]


def _width(layer: int, axis: int, s: ShowerSums) -> Array:
    return spread(ratio(s.moments[layer][2 + 2 * axis], s.energies[layer]), s.centres[layer][axis])


@lru_cache(maxsize=64)
def _moment_basis(layer: Layer) -> Array:
    """One column per moment of a layer: the sum, then first and second moments of each axis; (V_layer, 1 + 2 axes)."""
    columns = [np.ones(layer.shape[0] * layer.shape[1])]
    for coordinate in layer.axes.values():
        columns += [coordinate, coordinate**2]
    return np.stack(columns, axis=1)


def _thresholds(family: Family) -> dict[str, tuple[str, float]]:
    """Label and value, in the family's unit, of the thresholds above what is read out anyway, by name."""
    found = {name: (label, mev / family.unit_in_mev) for name, (label, mev) in _THRESHOLDS.items()}
    return {name: (label, value) for name, (label, value) in found.items() if value > family.threshold}


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
