"""Showers on a CPU: compiled functions, and the numbers of a trained generator in the order in which they read them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ...families import Family
from ..conditions import codings, energy_column, scaled_size, scaling
from ..contract import Array
from .arithmetic import TILE
from .copula_kernel import CopulaTables, NoiseTables, RefinementTables, correlate, refine, share_noise
from .energies import LayerEnergies
from .energy_kernel import EnergyTables, Network, Scaling, hidden_layers, layer_energies
from .frame import ShowerFrame
from .frame_kernel import LOCAL, FrameTables, find_axes, to_read_out
from .patterns import GROUPS, ShapeRefinement
from .transform import ShowerTransform
from .voxel_kernel import FeatureTables, ShareTables, features_of, share_out
from .voxels import ELECTRON, LINE_REACH

_TOGETHER = 21  # tiles of showers for which weights are read once, ...
_CACHED = 26_000  # ... fewer if the showers of a tile have more voxels
_NOTHING, _NO_LOCAL = np.empty((0, 0), np.float32), np.empty((0, 0, 0), np.float32)


class CompiledShowers:
    """A trained ``ShowerGenerator`` without its training, in compiled functions, one for each step.

    Every number of a shower is computed in one and the same order whatever showers are beside it, so its bits depend on
    nothing else.

    Normalisation is folded into factors and noise, networks whose last layer is zero are left out, as is what projected
    training did not change. Agrees with the module to rounding, except at the gate that makes a voxel exactly zero. It
    can be pickled, and is compiled where it is first called.

    Args:
        transform: The generator's.
        splits: Its latent numbers: for energies, factors, voxels.
        tensors: All its tensors by name; they are copied.
        epsilon: Added to variances where normals are standardised.
        refinement: What projected training changed.
    """

    name: ClassVar[str] = "compiled showers"
    version: ClassVar[int] = 1  # one more whenever bits change

    def __init__(
        self,
        transform: ShowerTransform,
        splits: tuple[int, int, int],
        tensors: Mapping[str, Tensor],
        epsilon: float,
        refinement: ShapeRefinement,
    ) -> None:
        state: dict[str, Array] = {name: tensor.cpu().numpy().copy() for name, tensor in tensors.items()}
        parts, voxels = transform.window.layer_slices, transform.voxels
        self._voxels = transform.family.voxels
        energy_network, energy_shift = _network(state, "energies.", whole=True)
        shape_network, shift = _network(state, "shapes.", whole=False)
        scale = 1 / np.sqrt(state["standardise.running_var"] + np.float32(epsilon))
        of_energies, of_voxels = (
            list(range(len(transform.conditions))) if columns is None else columns for columns in transform.columns
        )
        family, window = transform.family, transform.window
        scaled = _scaling(family, transform.energies.conditions, of_energies)
        self._splits, self._bounds, self._shape_network = splits, np.array(window.layer_bounds), shape_network
        self._energies = _energies(transform.energies, scaled, energy_network, energy_shift)
        self._features = _features(transform, state, _scaling(family, voxels.conditions, of_voxels))
        self._noise = _noise(window, state)
        self._copula = _copula(state, parts, scale, (shift - state["standardise.running_mean"]) * scale)
        self._refinement = _refinement(refinement, parts, state["centre"]) if refinement.active else None
        self._shares = _shares(window, state, parts)
        self._frame = _frame(transform.frame) if transform.frame else None
        self._block = TILE * max(1, min(_TOGETHER, _CACHED // splits[2]))

    def __call__(self, latent: Array, conditions: Array) -> Array:
        """Showers (B, V) in MeV from standard normals (B, Z) and conditions (B, C) in their units."""
        showers = np.empty((len(latent), self._voxels), np.float32)
        latent, conditions = (np.ascontiguousarray(array, np.float32) for array in (latent, conditions))
        for start in range(0, len(latent), self._block):
            rows = slice(start, start + self._block)
            self._make(latent[rows], conditions[rows], showers[rows])
        return showers

    def _make(self, latent: Array, conditions: Array, out: Array) -> None:
        """Showers in MeV into ``out``, step by step as :meth:`ShowerGenerator.forward`."""
        (size, rank, voxels), layers, count = self._splits, len(self._bounds) - 1, len(latent)
        first = size + rank  # latent number of voxels

        # Layer energies, and what training added.
        known, normals = _empty(count, self._energies.scaling.size), _empty(count, size)
        energies, hidden = _empty(count, layers), _NOTHING
        layer_energies(latent, conditions, self._energies, known, normals, energies)
        if len(self._shape_network.sizes):
            hidden = _empty(count, int(self._shape_network.sizes[-1]))
            hidden_layers(normals, latent, rank, known, self._shape_network, hidden)

        # What voxels depend on.
        local = _NO_LOCAL
        if self._frame:
            crossed, place = np.empty((count, layers, 2), np.int64), np.empty((count, layers, 2))
            local = _empty(count, layers, LOCAL)
            find_axes(conditions, energies, self._frame, crossed, place, local)
        features, drivers = self._features.products.shape[1], _empty(count, layers, len(self._features.driver_centre))
        design, logs, faint = _empty(layers, count, features), _empty(count, layers), _empty(count, layers)
        together, leading = _empty(count, layers), _empty(count)
        features_of(energies, conditions, local, self._features, design, drivers, logs, faint, together, leading)

        # Their normals: noise, common factors, and what projected training changed.
        noise, apart = _empty(count, voxels + 1), _empty(count, voxels) if self._noise.apart.size else _NOTHING
        share_noise(latent, first, logs, faint, self._noise, noise, apart)
        normals = _empty(count, voxels)
        correlate(latent, size, rank, hidden, drivers, together, noise, self._bounds, self._copula, normals)
        if self._refinement:
            refine(normals, design, drivers, self._bounds, self._refinement)

        # To MeV, and from the shower frame back to the read-out.
        framed = _empty(count, voxels) if self._frame else out
        share_out(normals, energies, logs, leading, design, apart, self._bounds, self._shares, framed)
        if self._frame:
            to_read_out(framed, self._bounds, crossed, place, self._frame, out)


def _empty(*shape: int) -> Array:
    return np.empty(shape, np.float32)


def _scaling(family: Family, names: Sequence[str], columns: Sequence[int]) -> Scaling:
    offset, slope, logarithmic = scaling(family, names)
    labels = np.zeros(len(names), np.int64)
    for place, table in codings(family, names):
        labels[place] = len(table)
    return Scaling(np.array(columns, np.int64), offset, slope, logarithmic, labels, scaled_size(family, names))


def _place(column: int | None) -> int:
    return -1 if column is None else column


def _network(state: Mapping[str, Array], prefix: str, *, whole: bool) -> tuple[Network, Array]:
    """A network, the whole or without its last layer, and the bias of the last layer.

    There is no network where the last layer's weights are zero: then that bias is all it makes.
    """
    numbers = sorted({int(name.split(".")[1]) for name in state if name.startswith(prefix)})
    layers = [(state[f"{prefix}{n}.weight"], state[f"{prefix}{n}.bias"]) for n in numbers]
    last, shift = layers[-1]
    used = [] if not last.any() else layers if whole else layers[:-1]
    sizes = [used[0][0].shape[1], *(len(bias) for _, bias in used)] if used else []
    weights, biases = _joined([weight.T for weight, _ in used]), _joined([bias for _, bias in used])
    return Network(weights, biases, np.array(sizes, np.int64)), shift


def _joined(parts: Sequence[Array]) -> Array:
    return np.concatenate([part.ravel() for part in parts]) if parts else np.empty(0, np.float32)


def _by_layer(matrix: Array, parts: Sequence[slice]) -> Array:
    """A matrix (inputs, V) as those of the layers, one after another."""
    return _joined([matrix[:, part] for part in parts])


def _turned(array: Array, *axes: int) -> Array:
    return np.ascontiguousarray(array.transpose(axes))


def _energies(energies: LayerEnergies, scaled: Scaling, network: Network, shift: Array) -> EnergyTables:
    learnt = {name: a.cpu().numpy().astype(np.float32) for name, a in energies.named_buffers() if name != "order"}
    family = energies.family
    return EnergyTables(
        network=network,
        shift=shift,
        scaling=scaled,
        leading=_place(energies.energy_column),
        stations=learnt["stations"],
        places=np.argsort(energies.order.cpu().numpy()),
        marginals=np.stack([learnt[name] for name in ("location", "log_scale", "empty_logits")]),
        limits=learnt["limits"],
        linear=_turned(learnt["linear"], 0, 2, 1),
        direction=_turned(learnt["direction"], 1, 0),
        bent=_turned(learnt["bent"], 0, 2, 1),
        residual=learnt["residual"],
        levelled=learnt["levelled"],
        marginal=learnt["marginal"],
        conserves=family.conserves_energy,
        most=np.float32(1 if family.conserves_energy else family.max_response),
        knee=np.float32(family.knee),
        threshold=np.float32(family.threshold),
    )


def _features(transform: ShowerTransform, state: Mapping[str, Array], scaled: Scaling) -> FeatureTables:
    voxels = transform.voxels
    centre = state["transform.voxels.shape_centre"]
    layer, depth = voxels.places
    return FeatureTables(
        scaling=scaled,
        leading=_place(voxels.energy_column),
        products=voxels.products.cpu().numpy(),
        plain=len(centre),
        layer=layer,
        depth=depth,
        centre=centre,
        spread=state["transform.voxels.shape_spread"],
        knee=np.float32(transform.window.knee),
        few=state["transform.voxels.few"],
        together=state["together"],
        driver_centre=state["centre"],
    )


def _noise(window: Family, state: Mapping[str, Array]) -> NoiseTables:
    beside, there = _neighbours(window)
    axes = [axis for axis, share in enumerate(state["noise.shares"]) if share.any()]
    apart, zone = state["noise.apart"], state["noise.zone"]
    return NoiseTables(
        beside=beside[axes],
        kind=(3 * zone + there.sum(1)[axes]).astype(np.uint32),
        shares=state["noise.shares"][axes],
        levels=state["noise.levels"],
        apart=apart if apart.any() else apart[:0],
        zone=zone.astype(np.uint32),
        core=state["core"].astype(np.int64),
        mixing=_turned(state["mixing"], 0, 2, 1),
    )


def _neighbours(window: Family) -> tuple[NDArray[np.uint32], NDArray[np.bool_]]:
    """Neighbours of each voxel along each axis, (A, 2, V), V where there is none; and whether there is one."""
    there = window.neighbours != np.arange(window.voxels)
    return np.where(there, window.neighbours, window.voxels).astype(np.uint32), there


def _copula(state: Mapping[str, Array], parts: Sequence[slice], scale: Array, offset: Array) -> CopulaTables:
    drift, last = state["drift"], state[_last(state, "shapes.")]
    loadings = np.concatenate([state["loadings"].T, *drift.transpose(0, 2, 1)])
    return CopulaTables(
        loadings=_by_layer(loadings, parts),
        drifting=drift.shape[2],
        power=_by_layer(state["power"], parts),
        last=_by_layer(last.T * scale if last.any() else last.T[:0], parts),
        offset=offset,
        scale=scale,
    )


def _last(state: Mapping[str, Array], prefix: str) -> str:
    """The name of a network's last weights."""
    names = [name for name in state if name.startswith(prefix) and name.endswith(".weight")]
    return max(names, key=lambda name: int(name.split(".")[1]))


def _refinement(refinement: ShapeRefinement, parts: Sequence[slice], centre: Array) -> RefinementTables:
    found: dict[str, Array] = {name: tensor.cpu().numpy().copy() for name, tensor in refinement.named_buffers()}
    coefficients, position, there = found["coefficients"], found["position"], found["there"] > 0
    group = np.concatenate([found["group"][part] - GROUPS * layer for layer, part in enumerate(parts)])
    sums = []
    for part in parts:
        members = (group[part, None] == np.arange(GROUPS)).astype(np.float32)
        means = members / np.maximum(members.sum(0), 1)
        sums.append(np.concatenate([means, *(means * where[part, None] for where in position)], 1))
    axes = len(there)
    patterns: NDArray[np.bool_] = np.any(
        coefficients.reshape(len(parts), -1, GROUPS, coefficients.shape[2]) != 0, axis=(2, 3)
    )
    return RefinementTables(
        coefficients=_turned(coefficients, 0, 2, 1),
        group=group.astype(np.uint32),
        sums=_joined(sums),
        means=found["means"],
        spreads=found["spreads"],
        position=position,
        beside=np.where(there, found["beside"], group.size).astype(np.uint32),
        used=np.ascontiguousarray(patterns[:, 3 : 3 + axes].T),
        framed=refinement.framed,
        energy=refinement.place,
        driver_shift=centre - found["driver_means"],
    )


def _shares(window: Family, state: Mapping[str, Array], parts: Sequence[slice]) -> ShareTables:
    prefix, unit = "transform.voxels.", window.unit_in_mev
    learnt = {name.removeprefix(prefix): a for name, a in state.items() if name.startswith(prefix)}
    return ShareTables(
        occupancy=_by_layer(-learnt["occupancy"], parts),
        log_scale=_by_layer(learnt["log_scale"], parts),
        location=_by_layer(learnt["location"], parts),
        stations=learnt["stations"],
        shape=learnt["shape"],
        levels=learnt["counts.levels"],
        limits=learnt["counts.limits"],
        half=(learnt["line"] / unit).astype(np.float32),
        mass=np.float32(ELECTRON / unit),
        reach=np.float32(LINE_REACH / unit),
        threshold=np.float32(window.threshold),
    )


def _frame(frame: ShowerFrame) -> FrameTables:
    offset, slope, logarithmic = scaling(frame.family, frame.conditions)
    leading = _place(energy_column(frame.family, frame.conditions))
    known = {name: tensor.cpu().numpy().astype(np.float64) for name, tensor in frame.named_buffers()}
    axis = [frame.axis.get(which, (-1, 0.0)) for which in ("x", "y", "theta", "phi")]
    return FrameTables(
        leading=leading,
        line=np.array([slope[leading], offset[leading]]),
        logarithmic=bool(logarithmic[leading]),
        columns=np.array([column for column, _ in axis]),
        factors=np.array([factor for _, factor in axis]),
        course=known["course"],
        spread=known["spread"].reshape(1),
        depths=known["depths"],
        extent=known["_extent"],
        pitch=known["_pitch"],
        cells=np.array([layer.shape for layer in frame.family.layers]),
        window=np.array([layer.shape for layer in frame.window.layers]),
        starts=np.array(frame.family.layer_bounds[:-1]),
        steepest=known["steepest"],
        tails=known["tails"],
        step=known["step"],
        contained=known["contained"],
        threshold=np.float32(frame.family.threshold),
    )
