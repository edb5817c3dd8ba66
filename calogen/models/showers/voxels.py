"""The voxels of showers whose layer energies are known <-> standard normals."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ...families import Family
from ...stages import counted
from ..conditions import energy_column, scale_conditions, scaled_size
from .counts import HitCounts
from .fitting import fit_least_squares, fit_logistic, inverse_tail, normal_tail
from .frame import Cells
from .shapes import SHAPES, exponential, fit_shapes, quantile, shifted

_LARGEST_SCALE = 30.0  # logarithm: beyond, shares are limited anyway, and gradients are to stay finite
_FEW_HITS = 1000  # fewer at one station of energy, in all voxels, are no reason for shapes of its own
_NUMBERS = 6_000_000  # voxels of all showers worked on at a time while fitting: bounds memory to some 500 MB
_ROUGHNESS = 30.0  # how much more strongly products of three and four are pulled towards 0
ELECTRON = 0.51099895  # mass in MeV: where annihilation photons that stay in one voxel make a line
LINE_REACH = 0.3  # MeV on both sides of the line from which its voxels are taken
_HEAVY = 0.02  # share of its layer's energy from which on a voxel's numbers are corrected in full
_FEW = (3, 5)  # voxels on that are few
_NEVER = 40.0  # minus the logarithm of an energy that no layer has
# Standard deviations of its log energy below which a layer begins to be faint, and how many further down it is.
FAINT = (-0.6, 0.5)
CLIP = 3.0  # standard deviations beyond which the regressions are not extrapolated
LEAST = 1e-3  # of the threshold: the least excess over it


class Local(NamedTuple):
    """Where showers lie in the cells of the layers, where that changes from shower to shower.

    Attributes:
        features: Of each layer, (B, L, K), dimensionless.
        drivers: Numbers of order one with which the correlations of voxels change: of all layers, (B, J').
        own: The same of each layer for itself, (B, L, A).
    """

    features: Tensor
    drivers: Tensor
    own: Tensor


class Given(NamedTuple):
    """What the distributions of voxels depend on, of B showers.

    Attributes:
        energies: Of the layers, (B, L), in MeV.
        features: Of each layer, (B, L, F), dimensionless.
        near: How near each station of energy is, (B, 3), adding up to 1.
        drivers: With which the correlations of the voxels of each layer change, (B, L, J + A), of order one; the first
            J are the same for all layers.
        faint: Whether each layer has far less energy than usual, or so little that few voxels are on, (B, L), from 0
            (no) to 1 (yes).
        cells: Where the axes are, in a shower frame.
    """

    energies: Tensor
    features: Tensor
    near: Tensor
    drivers: Tensor
    faint: Tensor
    cells: Cells | None = None


class View(NamedTuple):
    """Images of training showers that change the conditions in one and the same way.

    Attributes:
        orders: Orders of the voxels, (I, V).
        conditions: Of the images, (N, C), in their units, float64.
        local: Where the images lie in the cells, float64.
    """

    orders: Tensor
    conditions: Tensor
    local: Local | None = None


class VoxelShares(nn.Module):
    """How the energy of each layer is shared between its voxels.

    Given the conditions and the layer energies, every voxel is expressed as the standard normal number n with the same
    probability. It is on if the upper tail S(n) is below p = sigmoid(logit). Of the layer's energy over the thresholds
    of its voxels that are on, its share is then exp(m + s * Q(log(p / S))): log(p / S) is standard exponential, so Q
    holds the shape of the distribution. The share falls to 0 continuously as S rises to p, hence gradients with no
    straight-through trick. logit, m and log s are polynomials in the conditions, the layer's energy and the shower's
    depth; Q is interpolated between three incident energies.

    Shares are normalised to their layer's energy: energies are exact, whatever the network does.

    Args:
        family: A calorimeter family.
        conditions: Names of the conditions that voxels depend on.
        local: How many features there are besides (:class:`Local`), for how many, the first, products with energies
            and depth are worth it, and how many drivers, of all layers and of each.
    """

    products: Tensor  # (3, F) which three columns are multiplied for each feature of voxels
    shape_centre: Tensor  # (P, L + 1) log layer energies and depth as polynomials in c ...
    shape_spread: Tensor  # (L + 1,) ... and their spread about it
    few: Tensor  # (L,) log energy in MeV of a layer with few voxels on
    line: Tensor  # (L,) half width in MeV of what is moved onto the line at the electron's mass
    stations: Tensor  # (3,) scaled incident energies between which shapes are interpolated

    def __init__(
        self, family: Family, conditions: Sequence[str], local: tuple[int, int, int, int] = (0, 0, 0, 0)
    ) -> None:
        super().__init__()
        self.family, self.conditions = family, tuple(conditions)
        self.energy_column = energy_column(family, self.conditions)
        count, layers, voxels = scaled_size(family, self.conditions), len(family.layers), family.voxels
        products = _voxel_products(count, local[:2], self.energy_column)
        features = products.shape[1]
        self._rough = (products > 0).all(0) | (products.amax(0) == count + 3)  # products of more than two
        self._plain = int((products <= count).all(0).sum()) + (self.energy_column is not None)
        self.places = self._layer, self._depth = tuple(products.T.tolist().index([count + i, 0, 0]) for i in (1, 2))
        self.drivers = 2 + local[2], local[3]  # of all layers, and of each
        self.register_buffer("products", products, persistent=False)
        self.register_buffer("shape_centre", torch.zeros(self._plain, layers + 1))
        self.register_buffer("shape_spread", torch.ones(layers + 1))
        self.register_buffer("few", torch.full((layers,), -_NEVER))
        self.register_buffer("line", torch.zeros(layers))
        self.register_buffer("stations", torch.tensor([-0.5, 0.2, 0.8]))
        # Parameters, so that training can refine them: (F, V) each, and the numbers of Q at each station.
        self.occupancy = nn.Parameter(torch.zeros(features, voxels))
        self.location = nn.Parameter(torch.zeros(features, voxels))
        self.log_scale = nn.Parameter(torch.zeros(features, voxels))
        self.shape = nn.Parameter(torch.zeros(SHAPES, len(self.stations), voxels))
        self.counts = HitCounts(family)

    # --- features -----------------------------------------------------------------------------------------------

    def leading(self, scaled: Tensor) -> Tensor:
        """The scaled incident energy (..., 1), 0 where it is no condition; scaled conditions (..., C)."""
        column = self.energy_column
        return scaled.new_zeros(*scaled.shape[:-1], 1) if column is None else scaled[..., column : column + 1]

    def near(self, conditions: Tensor) -> Tensor:
        """How near each station of energy is, (B, 3), adding up to 1; conditions (B, C) in their units."""
        energy = self.leading(scale_conditions(self.family, self.conditions, conditions))
        ramps = ((energy - self.stations[:-1]) / self.stations.diff()).clamp(0, 1)
        return torch.cat([1 - ramps[:, :1], ramps[:, :1] - ramps[:, 1:], ramps[:, 1:]], 1)

    def given(self, energies: Tensor, conditions: Tensor, local: Local | None = None) -> Given:
        """What voxel distributions depend on.

        Args:
            energies: Of the layers, (B, L), in MeV.
            conditions: (B, C), in their units.
            local: Where the shower lies in the cells, where that changes.
        """
        features = self.features(energies, conditions, local)
        scaled = scale_conditions(self.family, self.conditions, conditions)
        drivers = torch.cat([self.leading(scaled), torch.tanh(features[:, 0, self._depth : self._depth + 1])], 1)
        drivers = drivers[:, None].expand(-1, features.shape[1], -1)
        drivers = drivers if local is None else self.with_local(drivers, local)
        unusual = (FAINT[0] - features[..., self._layer]) / FAINT[1]
        few = self.few - torch.log(energies.clamp(min=1e-9)) + 0.5
        faint = torch.maximum(unusual, few).clamp(0, 1)
        return Given(energies, features, self.near(conditions), drivers, faint)

    @staticmethod
    def with_local(drivers: Tensor, local: Local) -> Tensor:
        """Drivers (B, L, J + A) of which the first two are given, and the others are local."""
        shared = local.drivers[:, None].expand(-1, drivers.shape[1], -1)
        return torch.cat([drivers[..., :2], shared, local.own], 2)

    def features(self, energies: Tensor, conditions: Tensor, local: Local | None = None) -> Tensor:
        """The features (B, L, F), dimensionless; arguments as for :meth:`given`."""
        scaled = scale_conditions(self.family, self.conditions, conditions)
        profile = self._profile(energies)
        standard = (profile - self._plain_features(scaled) @ self.shape_centre) / self.shape_spread
        standard = standard.clamp(-CLIP, CLIP)
        layers = len(self.family.layers)
        pair = torch.stack([standard[:, :layers], standard[:, layers:].expand(-1, layers)], 2)
        parts = [scaled[:, None, :].expand(-1, layers, -1), pair]
        return self._products(parts if local is None else [*parts, local.features], self.products)

    def _plain_features(self, scaled: Tensor) -> Tensor:
        """The features (B, P) that depend on the conditions alone."""
        return self._products([scaled, scaled.new_zeros(len(scaled), 2)], self.products[:, : self._plain])

    def _products(self, parts: Sequence[Tensor], products: Tensor) -> Tensor:
        one, square = torch.ones_like(parts[1][..., :1]), self.leading(parts[0]).square()
        columns = torch.cat([one, parts[0], parts[1], square, *parts[2:]], -1)
        first, second, third = (columns.index_select(-1, product) for product in products)
        return first * second * third

    def _profile(self, energies: Tensor) -> Tensor:
        """Log layer energies and the energy-weighted mean layer, (B, L + 1)."""
        number = torch.arange(energies.shape[1], device=energies.device, dtype=energies.dtype)
        depth = (energies * number).sum(1) / energies.sum(1).clamp(min=1e-12)
        return torch.cat([torch.log(energies + self.family.knee), depth[:, None]], 1)

    # --- normals to showers and back ----------------------------------------------------------------------------

    def inverse(self, normals: Tensor, given: Given, apart: Tensor | None = None) -> Tensor:
        """Showers (B, V) in MeV, never negative, with the given layer energies.

        Args:
            normals: (B, V).
            given: What they depend on.
            apart: To be added to the voxels' standardised log shares, (B, V); none: nothing.
        """
        threshold, parts = self.family.threshold, []
        for i, part in enumerate(self.family.layer_slices):
            row, energy = given.features[:, i], given.energies[:, i : i + 1]
            excess = self.counts(self.excess(normals, given, i), given.energies[:, i], i)
            on = excess > 0

            # That excess is a standard exponential, and the quantile function makes it the logarithm of the share.
            # Voxels that are off are computed at 1, where gradients are harmless, and put to zero afterwards.
            standard = quantile(torch.where(on, excess, 1.0).clamp(min=1e-4), given.near @ self.shape[..., part])
            standard = standard if apart is None else standard + apart[:, part]
            scale = torch.exp((row @ self.log_scale[:, part]).clamp(max=_LARGEST_SCALE))
            log_share = row @ self.location[:, part] + scale * standard
            share = torch.where(on, torch.exp(log_share.clamp(-40, 10)), 0.0)

            # The layer's energy is known already: what is over the thresholds is shared out. Where no voxel is on, or
            # more are than the energy suffices for, all of it goes into the voxel that came nearest.
            base = threshold * on.to(share.dtype)
            total, least = share.sum(1, keepdim=True), base.sum(1, keepdim=True)
            voxels = share / total.clamp(min=1e-30) * (energy - least) + base
            nearest = torch.zeros_like(share).scatter_(1, excess.argmax(1, keepdim=True), 1.0)
            voxels = torch.where((total > 0) & (energy > least), voxels, nearest * energy)
            parts.append(self._with_line(voxels, energy, i))
        return torch.cat(parts, 1)

    def excess(self, normals: Tensor, given: Given, i: int) -> Tensor:
        """How far the upper tail S of normals (B, V) lies below the probability p of a voxel being on: log(p / S).

        Of layer i, (B, V_layer).
        """
        part = self.family.layer_slices[i]
        tail = normal_tail(normals[:, part].clamp(-6, 6))
        return nn.functional.logsigmoid(given.features[:, i] @ self.occupancy[:, part]) - torch.log(tail)

    def _with_line(self, voxels: Tensor, energies: Tensor, i: int) -> Tensor:
        """Voxels (B, V) of layer i, in MeV, those next to the electron's mass moved onto it; energies (B, 1) stay.

        The distances to the line shrink by its half width, and those within reach are stretched again, so that there
        is no gap.
        """
        unit = self.family.unit_in_mev
        mass, reach, half = ELECTRON / unit, LINE_REACH / unit, self.line[i] / unit
        distance = voxels - mass
        moved = mass + distance.sign() * (distance.abs() - half).clamp(min=0) * reach / (reach - half)
        voxels = torch.where((distance.abs() < reach) & (half > 0), moved, voxels)
        return voxels * (energies / voxels.sum(1, keepdim=True).clamp(min=1e-30))

    def forward(self, showers: Tensor, given: Given) -> Tensor:
        """Normals (B, V) of showers (B, V) in MeV with the given layer energies; the inverse of :meth:`inverse`.

        A voxel that is off is given the middle of the normals it may have: the largest one is :meth:`ceiling`.
        """
        normals = []
        for i, part in enumerate(self.family.layer_slices):
            # The share as a standardised logarithm, and the exponential variable that has it as its quantile.
            row, layer = given.features[:, i], showers[:, part]
            share = self._shares(layer, given.energies[:, i : i + 1])
            residual = (torch.log(share.clamp(min=1e-30)) - row @ self.location[:, part]) * torch.exp(
                -row @ self.log_scale[:, part]
            )
            excess = exponential(residual, given.near @ self.shape[..., part])

            # From there the upper tail of the normal: S = p exp(-excess) where the voxel is on, between p and 1 where
            # it is off. Of one that has the whole layer only that it is on is known.
            probability = torch.sigmoid(row @ self.occupancy[:, part])
            on = probability * torch.where(share < 1, torch.exp(-excess), 0.5)
            normals.append(inverse_tail(torch.where(layer > 0, on, (1 + probability) / 2)))
        return torch.cat(normals, 1)

    def ceiling(self, given: Given) -> Tensor:
        """The normal below which each voxel is off, (B, V)."""
        parts = enumerate(self.family.layer_slices)
        logits = torch.cat([given.features[:, i] @ self.occupancy[:, part] for i, part in parts], 1)
        return inverse_tail(torch.sigmoid(logits))

    def _shares(self, layer: Tensor, energy: Tensor) -> Tensor:
        """Shares (B, V_layer) of a layer's energy (B, 1) over the thresholds of its voxels that are on; 0 where off."""
        threshold, on = self.family.threshold, layer > 0
        least = threshold * LEAST  # rounding must not make a voxel that is on one that is off
        over = torch.where(on, (layer - threshold).clamp(min=max(least, 1e-30)), 0.0)
        return over / (energy - threshold * on.sum(1, keepdim=True)).clamp(min=max(least, 1e-30))

    # --- fit ----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def fit(
        self,
        showers: Tensor,
        energies: Tensor,
        views: Sequence[View],
        seen: Tensor | None = None,
        *,
        centre: bool = True,
    ) -> None:
        """Fit to training showers and their images, which follow the same law.

        Args:
            showers: (N, V) in MeV, float32.
            energies: Of their layers, (N, L), float64.
            views: Images that change the conditions in one way, each: the first is that of the showers themselves.
            seen: Which voxels the read-out can have seen, (N, V) bool; none: all.
            centre: Whether to fit what all fits depend on, first.
        """
        if centre:
            self._centre(showers, energies, views)

        # Voxels, layer by layer. One fit sees the showers of all images, in blocks of voxels that fit into memory. Its
        # numbers are written to each image, whose features are linear in those of the showers themselves.
        lowest = torch.cat([view.orders for view in views]).amin(0)
        nearest = [self.near(view.conditions).argmax(1) for view in views]
        slices = self.family.layer_slices
        for i, part in enumerate(counted("fitting voxels, layer by layer", slices, len(slices))):
            rows = energies[:, i] > 0
            if not rows.any():
                self.occupancy[0, part] = -30.0
                continue
            designs = [self._layer_features(view, energies, i)[rows] for view in views]
            moved = [torch.linalg.lstsq(designs[0], d, driver="gelsd").solution for d in designs[1:]]
            moves = [torch.eye(designs[0].shape[1], dtype=designs[0].dtype), *moved]
            design, stations = torch.cat(designs), torch.cat([n[rows] for n in nearest])
            layer = self._shares(showers[rows][:, part].double(), energies[rows, i : i + 1]).float()
            voxels = lowest[part].unique()
            block = max(1, _NUMBERS // (len(design) * len(views[0].orders)))
            for start in range(0, len(voxels), block):
                here = voxels[start : start + block]
                chosen = [view.orders[:, here] - part.start for view in views]
                chosen = [images[_distinct(chosen[0])] for images in chosen]
                shares = torch.cat([torch.stack([layer[:, voxel] for voxel in images]) for images in chosen], 1)
                trials: Tensor | int = len(shares)
                if seen is not None:
                    found = seen[rows][:, part].double()
                    trials = torch.cat([torch.stack([found[:, v] for v in images]).sum(0) for images in chosen])
                known = None if centre else self.occupancy[:, here]
                fits = self._fit_voxels(design, shares.double(), stations, trials, known)
                for view, move in zip(views, moves, strict=True):
                    for order in view.orders:
                        for name, fit in fits.items():
                            getattr(self, name)[..., order[here]] = fit if name == "shape" else move @ fit

    def _centre(self, showers: Tensor, energies: Tensor, views: Sequence[View]) -> None:
        """Find stations of energy, the mean course of energies and depth with conditions, and where hits are few.

        Of all images: so energies and depth less that course are the same for a shower and its image, and the features
        of images are linear in those of showers.
        """
        scaled = torch.cat([scale_conditions(self.family, self.conditions, view.conditions) for view in views])
        energy = self.leading(scaled)[:, 0]
        ends = torch.quantile(energy[:: max(1, len(energy) // 100_000)], energy.new_tensor([1 / 6, 1 / 2, 5 / 6]))
        if (ends.diff() > 0.05).all():
            self.stations.copy_(ends)

        # What voxels depend on: energies and depth less their mean course with the conditions, in units of their
        # spread about it. Else they would repeat what the conditions say, and no regression could tell them apart.
        plain, profile = self._plain_features(scaled), self._profile(energies).repeat(len(views), 1)
        self.shape_centre.copy_(fit_least_squares(plain, profile, torch.ones_like(profile), ridge=1e-3))
        spread = (profile - plain @ self.shape_centre).std(0)
        self.shape_spread.copy_(torch.where(spread > 1e-6, spread, torch.ones_like(spread)))

        for i, part in enumerate(self.family.layer_slices):
            hits = (showers[:, part] > 0).sum(1)
            rows = (hits >= _FEW[0]) & (hits <= _FEW[1])
            self.few[i] = torch.log(energies[rows, i]).mean() if rows.any() else -_NEVER

    @torch.no_grad()
    def correct(
        self,
        target: VoxelShares,
        made: Tensor,
        energies: Tensor,
        views: Sequence[View],
        seen: Tensor | None = None,
        trust: float = 1.0,
    ) -> None:
        """Shift occupancies, locations, scales and shapes by what those of the showers made so far are off.

        Normalising shares to the energy of their layer changes how each is distributed, and a layer with energy has at
        least one voxel on. So the same fit is made to what comes out, and the differences are taken off (indirect
        inference: Gourieroux, Monfort & Renault 1993).

        Args:
            target: What was fitted to the training showers.
            made: Showers (N, V) in MeV that this object makes with the energies of the training showers.
            energies: As for :meth:`fit`.
            views: As for :meth:`fit`.
            seen: As for :meth:`fit`.
            trust: What part of the differences is taken off.
        """
        found = copy.deepcopy(self)
        found.fit(made, energies, views, seen, centre=False)
        # What normalising does is seen in voxels with much of their layer; of others the differences are noise.
        heavy = torch.cat(
            [made[:, part].mean(0) / energies[:, i].mean() for i, part in enumerate(self.family.layer_slices)]
        )
        moved = trust * (heavy / _HEAVY).clamp(max=1.0).to(self.location.dtype)
        self.location.add_(moved * (target.location - found.location))
        self.log_scale.add_(moved * (target.log_scale - found.log_scale))
        self.shape.copy_(shifted(self.shape, target.shape, found.shape, moved))
        self.occupancy.add_(trust * (target.occupancy - found.occupancy))

    def _layer_features(self, view: View, energies: Tensor, i: int) -> Tensor:
        """The features (N, F) of one layer, float64: those of all layers at a time would fill memory."""
        rows = torch.arange(len(energies)).split(max(1, _NUMBERS // self.products.shape[1] // energies.shape[1]))
        local = view.local
        parts = [None if local is None else Local(*(part[r] for part in local)) for r in rows]
        blocks = zip(rows, parts, strict=True)
        return torch.cat([self.features(energies[r], view.conditions[r], part)[:, i] for r, part in blocks])

    def _fit_voxels(
        self, design: Tensor, shares: Tensor, stations: Tensor, trials: Tensor | int, start: Tensor | None
    ) -> dict[str, Tensor]:
        """Parameters of some voxels of one layer, by name.

        Args: design (N, F), shares of the layer (I, N, V_block) in I images, nearest station of each shower (N,), in
        how many images a voxel can have been seen (N, V_block).
        """
        # The mean of the logarithm, then the logarithm of its spread as a mean of log residuals: least squares, which
        # thousands of voxels solve at once without iterations. Products of three and four are pulled towards 0 more.
        on = shares > 0
        several = on & (shares < 1)  # a voxel that has the whole layer says nothing about how energy is shared
        count = several.sum(0).double()
        mean = _mean_over(several, count)
        logs = torch.log(shares.clamp(min=1e-30))
        ridge = 1 + _ROUGHNESS * self._rough.double()
        location = fit_least_squares(design, mean(logs), count, ridge=2 * ridge)
        residual = logs - design @ location
        log_scale = fit_least_squares(design, mean(torch.log(residual.abs() + 1e-3)), count, ridge=20 * ridge)

        # A mean of logarithms is the spread up to a factor, which the root of the mean square puts right.
        residual *= torch.exp(-design @ log_scale)
        spread = ((residual.square() * several).sum((0, 1)) / count.sum(0).clamp(min=1)).sqrt().clamp(min=1e-3)
        log_scale[0] += torch.log(spread)
        residual /= spread

        # What is left is the shape, one for each station of energy; where a station has few voxels on, that of all.
        shapes = []
        whole: Tensor | None = None
        for station in range(len(self.stations)):
            chosen = stations == station
            if several[:, chosen].sum() < _FEW_HITS:
                whole = self._fit_shapes(residual, several) if whole is None else whole
                shapes.append(whole)
            else:
                shapes.append(self._fit_shapes(residual[:, chosen], several[:, chosen]))
        fits = {"location": location, "log_scale": log_scale, "shape": torch.stack(shapes, 1)}
        fits["occupancy"] = fit_logistic(design, on.sum(0).double(), trials, ridge=2 * ridge, start=start)
        return fits

    @staticmethod
    def _fit_shapes(residual: Tensor, on: Tensor) -> Tensor:
        count = on.sum((0, 1))  # decides how far a voxel's own data is trusted
        return fit_shapes(residual.flatten(0, 1), on.flatten(0, 1), count / (count + 30))

    @torch.no_grad()
    def fit_line(self, showers: Tensor, given: Given) -> None:
        """Move as many voxels onto the line at the electron's mass as there are in the data, if there is one."""
        # What the transform makes so far, of random normals and the true energies.
        mass = ELECTRON / self.family.unit_in_mev
        normals = torch.randn(showers.shape, generator=torch.Generator().manual_seed(0))
        self.line.zero_()
        made = self.inverse(normals, given)

        # A line is an excess of voxels at the mass over those beside it. Its half width is chosen so that as many
        # generated voxels lie within it as there are on the line in the data.
        for i, part in enumerate(self.family.layer_slices):
            distance = (showers[:, part] - mass).abs() / mass
            on_line, beside = int((distance < 1e-4).sum()), int(((distance > 1e-3) & (distance < 1.1e-2)).sum())
            if on_line > 100 + beside:  # beside: a hundred times as wide
                distances = (made[:, part] - mass)[made[:, part] > 0].abs().sort().values
                self.line[i] = distances[min(on_line, len(distances) - 1)].clamp(max=LINE_REACH / 2)


def _distinct(orders: Tensor) -> list[int]:
    """Rows of (I, V) that differ from all before them."""
    return list({tuple(row): i for i, row in reversed(list(enumerate(orders.tolist())))}.values())[::-1]


def _mean_over(chosen: Tensor, count: Tensor) -> Callable[[Tensor], Tensor]:
    """The mean (N, V) over images (I, N, V), of those that are chosen."""
    return lambda values: (values * chosen).sum(0) / count.clamp(min=1)


def _voxel_products(conditions: int, local: tuple[int, int], energy: int | None) -> Tensor:
    """Columns to be multiplied, (3, F), for the features of voxels; those of the conditions alone come first.

    The columns are: one, the conditions, the layer's energy, the depth, the incident energy squared, and the local
    features. All products of two; of three and four where the incident energy is one, since showers change most with
    it; local features by themselves, and the first of them with energies and depth.
    """
    layer, depth, square = conditions + 1, conditions + 2, conditions + 3
    pairs = itertools.combinations_with_replacement(range(1, conditions + 3), 2)
    chosen = [(0, 0, 0), *((v, 0, 0) for v in range(1, conditions + 3)), *((a, b, 0) for a, b in pairs)]
    if energy is not None:
        chosen += itertools.combinations_with_replacement((1 + energy, layer, depth), 3)
        chosen += [(square, square, 0)]
    plain = [product for product in chosen if not {layer, depth} & set(product)]
    chosen = [*plain, *(product for product in chosen if product not in plain)]
    first, crossed = square + 1, [layer, depth, *([] if energy is None else [1 + energy])]
    chosen += [(column, 0, 0) for column in range(first, first + local[0])]
    chosen += [(column, other, 0) for column in range(first, first + local[1]) for other in crossed]
    return torch.tensor(chosen, device="cpu").T
