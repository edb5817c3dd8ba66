"""The default networks for showers."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from ...families import Family
from ...shards.samples import Samples
from ...stages import stage
from ..conditions import scaled_size
from ..contract import Array, Generator, Inference
from ..layers import SLOPE, mlp
from ..refinement import without_refinement
from .counts import foremost, natural
from .energy_scene import EnergyScene
from .factors import LEAST_NOISE, fit_factors
from .neighbours import APART, Pairs, SharedNoise
from .patterns import ShapeRefinement
from .scene import ShowerScene, ShowerSelection
from .transform import Fitted, ShowerTransform
from .voxels import Given, Local, VoxelShares

_FACTOR_NUMBERS = 100_000_000  # voxels that the factors are fitted to: bounds memory to about 1 GB
_BLOCK = 2048  # showers at a time
_CORE = 32  # voxels of a layer, the hottest, whose own noise is correlated
_FAINTEST, _FEW_FAINT = 0.9, 50  # how faint layers are, and how many, by which their correlations are judged
_UNKNOWN = 8.0  # a ceiling that says nothing of a normal
_PRIOR = 5000  # showers that are worth as much as what is known before
_WEIGHT = 50.0  # of a voxel with all energy of its layer beside one with none
_CORRECTIONS = 2  # of the fit by what comes out of it
_STEPS = (0.3, 0.2, 0.15, 0.1, 0.07, 0.05)  # of correlations of neighbours; the last two after each correction
_NOISE_NUMBERS = 30_000_000  # voxels of generated showers looked at in each
_DRIFTING = 64  # factors whose loadings change with energy, depth, slope and offset
_FEWEST = 200  # showers, below which the fit follows their accidents


class ShowerGenerator(Generator):
    """Energies first, then shapes normalised to them.

    Before training it is a statistical model fitted to the data: independent energy normals and voxel normals that
    follow a linear factor model. Two networks with zero last layers add what training finds.

    Args:
        family: A calorimeter family.
        conditions: Names of the conditions.
        latent: Number of factors K.
        hidden: Widths of the hidden layers of the shape network.
        about_axis: Whether to use a shower frame where there is one.
    """

    transform: ShowerTransform
    refinement: ShapeRefinement
    centre: Tensor  # (J,) mean of each driver of the loadings
    core: Tensor  # (L, M) the hottest voxels of each layer
    mixing: Tensor  # (L, M, M) how their own noise is mixed
    together: Tensor  # (L,) how much of the correlations is left where a layer is faint
    layer_of_voxel: Tensor  # (V,)
    power: Tensor  # (1 + J + J (J + 1) / 2, V) variance due to factors as a quadratic form of the drivers

    def __init__(
        self,
        family: Family,
        conditions: Sequence[str],
        latent: int = 192,
        hidden: Sequence[int] = (256, 128),
        *,
        about_axis: bool = True,
    ) -> None:
        super().__init__(family, conditions)
        self.transform = ShowerTransform(family, conditions, about_axis=about_axis)
        window = self.transform.window
        energies = self.transform.energies
        size, voxels, count = energies.size, window.voxels, scaled_size(family, energies.conditions)
        self.splits = (size, latent, voxels)  # of the latent numbers: energies, factors, voxels' own noise
        self.latent_size, self.coarse, self.shared = sum(self.splits), latent + voxels, size
        drivers, drifting = sum(self.transform.voxels.drivers), min(latent, _DRIFTING)
        self.register_buffer(
            "core", torch.zeros(len(family.layers), min(_CORE, *np.diff(window.layer_bounds)), dtype=torch.long)
        )
        self.register_buffer("mixing", torch.eye(self.core.shape[1]).repeat(len(family.layers), 1, 1))
        self.register_buffer("together", torch.ones(len(family.layers)))
        self.register_buffer("layer_of_voxel", torch.from_numpy(window.layer_of_voxel), persistent=False)
        self.register_buffer("centre", torch.zeros(drivers))
        self.register_buffer("power", torch.zeros(1 + drivers + drivers * (drivers + 1) // 2, voxels))
        self.noise = SharedNoise(window)
        self.refinement = ShapeRefinement(window, drivers, self.transform.voxels.places[0])
        self.register_load_state_dict_pre_hook(without_refinement)  # type: ignore[no-untyped-call]
        self.loadings = nn.Parameter(torch.zeros(voxels, latent))
        self.drift = nn.Parameter(torch.zeros(drivers, voxels, drifting))  # how those of the first factors change
        # Normals stay standard, whatever adversarial training does: without this, the occupancy of voxels that are
        # rarely on drifts away within a thousand steps.
        self.standardise = nn.BatchNorm1d(voxels, affine=False, momentum=0.01)
        self.energies: nn.Sequential = mlp([size + count, 128, 128, size], slope=SLOPE, zero_last=True)
        self.shapes = mlp([size + latent + count, *hidden, voxels], slope=SLOPE, zero_last=True)

    def forward(self, latent: Tensor, conditions: Tensor) -> Tensor:
        """Showers (B, V) in MeV from standard normals (B, Z) and conditions (B, C) in their units."""
        energies, factors, own = latent.split(self.splits, 1)
        scaled, energy_normals = self.transform.scaled(conditions), self.energy_normals(energies, conditions)
        shift = self.shapes(torch.cat([energy_normals, factors, scaled], 1))
        given = self.transform.given(self.transform.generated_energies(energy_normals, conditions), conditions)
        normals, apart = self._copula(factors, own, given)
        normals = self.standardise(normals + shift)
        if self.refinement.active:
            amplitudes = self.refinement.amplitudes(self.refinement.features(normals, given))
            normals = self.refinement(normals, given, amplitudes)
        return self.transform.made(normals, given, apart)

    def energy_normals(self, normals: Tensor, conditions: Tensor) -> Tensor:
        """Normals (B, D) that layer energies are made of, from standard ones and all conditions (B, C)."""
        found: Tensor = normals + self.energies(torch.cat([normals, self.transform.scaled(conditions)], 1))
        return found

    def scenes(self, samples: Samples) -> tuple[ShowerScene, EnergyScene]:
        """Showers and generated ones with their layer energies; and the layer energies."""
        return ShowerScene(self, samples), EnergyScene(self, samples)

    def selection(self, critics: int) -> ShowerSelection:
        """What chooses among showers with the same layer energies."""
        return ShowerSelection(self, critics)

    def equivalent(self, conditions: Array, low: Sequence[float], high: Sequence[float]) -> Array:
        """Conditions with impact points moved by whole cells into the trained range: showers there are the same."""
        frame = self.transform.frame
        return conditions if frame is None else frame.equivalent(conditions, low, high)

    def _copula(self, factors: Tensor, own: Tensor, given: Given) -> tuple[Tensor, Tensor]:
        """Voxel normals (B, V) before training, of factors (B, K) and the voxels' own noise (B, V).

        And what to add to their standardised log shares, (B, V).
        """
        drivers, drifting = given.drivers - self.centre, factors[:, : self.drift.shape[2]]
        common = factors @ self.loadings.T
        for driver, drift in zip(drivers.unbind(2), self.drift, strict=True):
            common = common + driver[:, self.layer_of_voxel] * (drifting @ drift.T)
        layer = self.layer_of_voxel
        together = (1 - given.faint * (1 - self.together)).index_select(1, layer)
        common = common * together
        core, (own, apart) = own[:, self.core], self.noise(own, given.energies)
        mixed = torch.where(
            given.faint[..., None] > 0.5, own[:, self.core], torch.einsum("blm,lkm->blk", core, self.mixing)
        )
        own = own.index_copy(1, self.core.flatten(), mixed.flatten(1))
        # What factors leave of a variance of 1 is a voxel's own; far from the mean drivers they leave nothing.
        parts = enumerate(self.transform.window.layer_slices)
        power = torch.cat([_quadratic(drivers[:, i]) @ self.power[:, part] for i, part in parts], 1)
        power = power * together.square()
        total = (power + LEAST_NOISE).clamp(min=1.0).sqrt()
        return (common + own * (1 - power).clamp(min=LEAST_NOISE).sqrt()) / total, apart

    def folded(self) -> Inference:
        """Compiled, with all that training needs folded into the numbers."""
        from .inference import CompiledShowers  # imports numba, which takes half a second

        return CompiledShowers(self.transform, self.splits, self.state_dict(), self.standardise.eps, self.refinement)

    @torch.no_grad()
    def fit(self, samples: Samples, seed: int) -> None:
        """Fit transform and factors to training samples."""
        data = self.transform.fit(samples)
        self.remarks = self.transform.remarks
        if len(data.showers) < _FEWEST:
            few = f"{len(data.showers)} training showers are few for a fit, which wants at least {_FEWEST}"
            self.remarks += (f"{few}: add showers, or start from a similar surrogate (`prior`)",)
        generator = torch.Generator().manual_seed(seed)
        self._fit_correlations(data, generator)

        stage("fitting neighbours and hits", 0, _CORRECTIONS + 1)
        self.noise.prepare(data.energies, self.core)
        pairs = self._pairs(data, _showers(data))
        self._fit_noise(data, generator, pairs, _STEPS)
        self._fit_counts(data, generator)

        # Shares are normalised in the end, which changes them: the fit is corrected for that.
        target = copy.deepcopy(self.transform.voxels).double()
        for number in range(_CORRECTIONS):
            stage("fitting neighbours and hits", number + 1, _CORRECTIONS + 1)
            self._fit_apart(data, generator)
            self._correct(target, data, generator)
            self._fit_noise(data, generator, pairs, _STEPS[-2:])
            self._fit_counts(data, generator)
        self.refinement.prepare(self._mean(data), self.centre)
        self.refinement.standardise(self._drawn(data, slice(0, _BLOCK), generator)[1])

    @torch.no_grad()
    def fit_from(self, prior: Generator, samples: Samples, seed: int) -> None:
        """Take over a fitted generator of the same family and conditions; layer energies are fitted anew.

        How they are shared out hardly depends on the particle, and takes most showers to know: the prior's numbers move
        towards those of the training showers as far as there are many.
        """
        self.load_state_dict(prior.state_dict())
        for parameter in self.energies[-1].parameters():
            parameter.zero_()
        data = self.transform.prepared(samples)
        self.transform.fit_energies(data)
        target = copy.deepcopy(self.transform.voxels).double()
        target.fit(data.showers, data.energies, data.views, data.seen, centre=False)
        trust = len(data.showers) / (len(data.showers) + _PRIOR)
        self._correct(target, data, torch.Generator().manual_seed(seed), trust)
        self.remarks = self.transform.remarks

    def _correct(self, target: VoxelShares, data: Fitted, generator: torch.Generator, trust: float = 1.0) -> None:
        made = torch.cat([self._made(data, rows, generator) for rows in _blocks(len(data.showers))])
        self.transform.voxels.double().correct(target, made, data.energies, data.views, data.seen, trust)
        self.transform.voxels.float()

    def _fit_correlations(self, data: Fitted, generator: torch.Generator) -> None:
        rows = torch.randperm(len(data.showers), generator=generator)
        rows = rows[: max(1000, _FACTOR_NUMBERS // self.transform.window.voxels)]
        weights, core = self._importance(data)
        self.core.copy_(core)
        normals, ceiling = (torch.empty(len(rows), self.splits[2]) for _ in "ab")
        drivers = torch.empty(len(rows), len(core), len(self.centre))
        faintest = [list[Tensor]() for _ in core]
        for block in _blocks(len(rows)):
            here = rows[block]
            given = self.transform.given(data.energies[here].float(), data.conditions[here].float())
            known = self.transform.voxels(data.showers[here], given)
            off = self.transform.voxels.ceiling(given)
            if data.seen is not None:
                off[~data.seen[here]] = _UNKNOWN
            off[data.showers[here] > 0] = torch.inf
            # Where a layer is faint, few particles make it, and its voxels go together less. Correlations are those of
            # others.
            for i, group in enumerate(core):
                faintest[i].append(known[given.faint[:, i] > _FAINTEST][:, group])
            off[(given.faint > 0.5)[:, self.layer_of_voxel]] = _UNKNOWN
            normals[block], ceiling[block], drivers[block] = known, off, given.drivers
        self.centre.copy_(drivers.mean((0, 1)))
        images = [(data.views[0].orders, drivers - self.centre)]
        for view in data.views[1:]:
            moved = drivers
            if view.local is not None:
                local = Local(*(part[rows].float() for part in view.local))
                moved = self.transform.voxels.with_local(drivers, local)
            images.append((view.orders, moved - self.centre))
        shared, layers = self.transform.voxels.drivers[0], self.transform.window.layer_slices
        loadings, drift, mixing = fit_factors(
            normals, ceiling, images, layers, shared, self.splits[1], self.drift.shape[2], weights, core, generator
        )
        self.loadings.zero_()[:, : loadings.shape[1]] = loadings
        self.drift.zero_()[..., : drift.shape[2]] = drift
        self.mixing.copy_(mixing)
        self.power.copy_(_power(self.loadings, self.drift))
        for i, (parts, group) in enumerate(zip(faintest, core, strict=True)):
            known = torch.cat(parts)
            if len(known) >= _FEW_FAINT:
                model = self.loadings[group] @ self.loadings[group].T
                model.fill_diagonal_(0.0)
                slope = (known.T @ known / len(known) * model).sum() / model.square().sum().clamp(min=1e-9)
                self.together[i] = slope.clamp(0, 1).sqrt()

    def _fit_noise(self, data: Fitted, generator: torch.Generator, target: Pairs, steps: Sequence[float]) -> None:
        """Share the voxels' own noise among neighbours, until as many hits lie side by side as in the target."""
        for most in steps:
            self.noise.move(target, self._pairs(data, self._some_made(data, generator)), most)

    def _pairs(self, data: Fitted, blocks: Iterable[tuple[slice, Tensor]]) -> Pairs:
        """Hits side by side in showers with the layer energies of training showers, in blocks of rows."""
        found = []
        for rows, showers in blocks:
            given = self.transform.given(data.energies[rows].float(), data.conditions[rows].float())
            found.append(self.noise.pairs(showers, data.energies[rows], given.faint > 0.5))
        return Pairs(*(torch.stack(parts).sum(0) for parts in zip(*found, strict=True)))

    def _fit_apart(self, data: Fitted, generator: torch.Generator) -> None:
        """Let energies follow a voxel's own noise as far as the two hottest voxels of training showers differ."""

        def asymmetries(blocks: Iterable[tuple[slice, Tensor]]) -> Tensor:
            found = [self.noise.asymmetries(showers, data.energies[rows]) for rows, showers in blocks]
            total = torch.stack(found).sum(0)
            return total[0] / total[1].clamp(min=1.0)

        target, found = asymmetries(_showers(data)), []
        for part in APART:
            self.noise.apart.fill_(part)
            found.append(asymmetries(self._some_made(data, generator)))
        self.noise.set_apart(target, torch.stack(found))

    def _some_made(self, data: Fitted, generator: torch.Generator) -> Iterator[tuple[slice, Tensor]]:
        """Random showers with the layer energies of some training showers, in blocks of rows."""
        blocks = _blocks(len(data.showers))[: max(1, _NOISE_NUMBERS // (_BLOCK * self.splits[2]))]
        return ((rows, self._made(data, rows, generator)) for rows in blocks)

    def _fit_counts(self, data: Fitted, generator: torch.Generator) -> None:
        """Set how many voxels are on, where few are."""
        voxels, numbers, hits = self.transform.voxels, [], []
        for rows in _blocks(len(data.showers)):
            given, normals, _ = self._drawn(data, rows, generator)
            parts = self.transform.window.layer_slices
            firsts = (foremost(voxels.excess(normals, given, i)) for i in range(len(parts)))
            numbers.append(torch.stack([natural(first) for first in firsts], 1))
            hits.append(torch.stack([(data.showers[rows][:, part] > 0).sum(1) for part in parts], 1))
        voxels.counts.fit(torch.cat(numbers), torch.cat(hits), data.energies)

    def _drawn(self, data: Fitted, rows: slice, generator: torch.Generator) -> tuple[Given, Tensor, Tensor]:
        """What voxels of training showers depend on, and what :meth:`_copula` makes for them of random numbers."""
        given = self.transform.given(data.energies[rows].float(), data.conditions[rows].float())
        return given, *self._random(given, generator)

    def _random(self, given: Given, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """:meth:`_copula` of random factors and noise."""
        factors, own = (torch.randn(len(given.energies), n, generator=generator) for n in self.splits[1:])
        return self._copula(factors, own, given)

    @torch.no_grad()
    def normals(self, given: Given, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Random voxel normals (B, V) before refinement, and what to add to the standardised log shares, (B, V)."""
        normals, apart = self._random(given, generator)
        return self.standardise(normals), apart

    def _made(self, data: Fitted, rows: slice, generator: torch.Generator) -> Tensor:
        """Random showers (N, V) in MeV with the layer energies of training showers, in their frame."""
        given, normals, apart = self._drawn(data, rows, generator)
        return self.shaped(normals, given, apart, None if data.seen is None else data.seen[rows])

    def shaped(self, normals: Tensor, given: Given, apart: Tensor, seen: Tensor | None) -> Tensor:
        """Showers (B, V) in MeV, in their frame, of which the voxels ``seen`` have all energy; none: all voxels."""
        made = self.transform.voxels.inverse(normals, given, apart)
        if seen is None:
            return made
        # What the read-out cannot see goes to the layer's other voxels, as it does for training showers.
        parts, made = self.transform.window.layer_slices, torch.where(seen, made, 0.0)
        scale = (given.energies[:, i] / made[:, part].sum(1).clamp(min=1e-30) for i, part in enumerate(parts))
        return torch.cat([made[:, part] * factor[:, None] for part, factor in zip(parts, scale, strict=True)], 1)

    def _mean(self, data: Fitted) -> Tensor:
        """Mean energies of the voxels, (V,), equal for images of each other."""
        once = data.showers.mean(0, dtype=torch.float64)
        return torch.stack([once[order] for view in data.views for order in view.orders]).sum(0)

    def _importance(self, data: Fitted) -> tuple[Tensor, Tensor]:
        """How much the correlations of each voxel (V,) count, and the hottest voxels of each layer, (L, M)."""
        window, mean = self.transform.window, self._mean(data)
        parts = [mean[part] / mean[part].sum().clamp(min=1e-30) for part in window.layer_slices]
        hottest = [part.argsort(descending=True, stable=True)[: self.core.shape[1]] for part in parts]
        core = torch.stack([h + start for h, start in zip(hottest, window.layer_bounds, strict=False)])
        return torch.sqrt(1 + _WEIGHT * torch.cat(parts)).float(), core


def _showers(data: Fitted) -> Iterator[tuple[slice, Tensor]]:
    """Training showers in blocks of rows."""
    return ((rows, data.showers[rows]) for rows in _blocks(len(data.showers)))


def _blocks(count: int) -> list[slice]:
    return [slice(start, min(count, start + _BLOCK)) for start in range(0, count, _BLOCK)]


def _quadratic(drivers: Tensor) -> Tensor:
    """One, the drivers and their products of two, (B, 1 + J + J (J + 1) / 2), of drivers (B, J)."""
    pairs = [a * b for a, b in itertools.combinations_with_replacement(drivers.unbind(1), 2)]
    return torch.stack([torch.ones_like(pairs[0]), *drivers.unbind(1), *pairs], 1)


def _power(loadings: Tensor, drift: Tensor) -> Tensor:
    """The squares of loadings added up, as coefficients of :func:`_quadratic`, (..., V)."""
    first = loadings[:, : drift.shape[2]]
    pairs = itertools.combinations_with_replacement(range(len(drift)), 2)
    mixed = [(drift[a] * drift[b]).sum(1) * (1 if a == b else 2) for a, b in pairs]
    return torch.stack([loadings.square().sum(1), *(2 * (first * slope).sum(1) for slope in drift), *mixed])
