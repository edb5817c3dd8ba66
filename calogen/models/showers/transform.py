"""Showers <-> latent normals.

Every layer energy and every voxel is expressed as the standard normal number with the same probability, given the
conditions and, for voxels, the energy of their layer. A network that outputs independent standard normals there already
makes showers with the right marginal distributions; all it has to learn is how they go together (the copula).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from ...errors import ShardError
from ...families import Family
from ...shards.samples import Samples
from ..conditions import energy_column, scale_conditions, scaled_size
from .fitting import fit_least_squares, fit_logistic, fit_quantiles, inverse_tail, normal_tail
from .shapes import SHAPES, exponential, fit_shapes, quantile

_FEW_HITS = 1000  # fewer at one station of energy, in all voxels, are no reason for shapes of its own
_LINE_ROWS = 3000  # showers in which the line is looked for
_FIT_NUMBERS = 10_000_000  # voxels looked at while fitting, each with its mirror images: bounds memory to about 1 GB
_BLOCK = 2048  # voxels fitted at a time
_ROUGHNESS = 30.0  # how much more strongly products of three and four are pulled towards 0
LEAK_FLOOR = 1e-4  # of the incident energy: the scale below which a leak is not resolved
SMALLEST = 1e-3  # of the knee: the least energy of a layer that is not empty
PER_UNIT = 5
# Latent normals at which energy quantiles are kept, -4 to 4.
_GRID = torch.arange(-4 * PER_UNIT, 4 * PER_UNIT + 1) / PER_UNIT
MOST_NORMAL = 3.999
_FITTED = slice(PER_UNIT, -PER_UNIT)  # of these, the ones data can resolve; the rest continue their slope
_ALL = slice(None)
ELECTRON = 0.51099895  # mass in MeV: where annihilation photons that stay in one voxel make a line
LINE_REACH = 0.3  # MeV on both sides of the line from which its voxels are taken
EARLIER_CLIP = 3.0  # latent normals beyond which further energies are not extrapolated
_EARLIER = 3  # normals that the quantiles of a further energy variable depend on
CLIP = 3.0  # standard deviations beyond which the regressions are not extrapolated


class ShowerTransform(nn.Module):
    """Showers to latent normals and back.

    A shower is taken apart into its total energy, the logarithms of its layer energies relative to the leading
    layer, and each voxel's share of its layer. Given the conditions c:

    * each energy variable is mapped to its latent normal g by quantile regressions in c and in the normals of the total
      and of the two layers before it, so that the normals are independent (Rosenblatt 1952); the lowest normals of a
      layer mean that it is empty;
    * voxel v is on if the upper tail S(n) of its normal n is below p = sigmoid(logit), and its share of the layer is
      then exp(m + s * Q(log(p / S))): log(p / S) is standard exponential, so Q holds the shape of the distribution.
      The share falls to 0 continuously as S rises to p, hence gradients with no straight-through trick;
    * logit, m and log s are polynomials in c, the layer's energy and the shower's depth; Q is interpolated between
      three incident energies.

    Mirror images of a voxel share one fit.

    Shares are normalised to their layer's energy: energies are exact, whatever the network does.

    Args:
        family: A calorimeter family.
        conditions: Names of the conditions, in the order of the columns given to the network.

    Raises:
        ShardError: From :meth:`fit`, if the samples hold no energy.
    """

    powers: Tensor  # (3, L * G) which three columns are multiplied for each feature of each energy variable
    orders: Tensor  # (L, L) for each leading layer, the column of every layer's energy variable
    others: Tensor  # (L, L - 1) for each leading layer, the layers beside it
    _beyond: Tensor  # steps beyond the outermost fitted quantiles, (PER_UNIT,)
    _never: Tensor  # (L, 1) added to the log odds of a layer being empty: the total never is
    reference: Tensor  # () index of the leading layer
    empty_logits: Tensor  # (L, G) coefficients of the log odds that a layer other than the leading one is empty
    energy_range: Tensor  # (L, 2) smallest and largest value of each energy variable in the data
    energy_quantiles: Tensor  # (L, G, K) coefficients of the energy variables' quantiles
    products: Tensor  # (3, F) which three columns are multiplied for each feature of voxels
    shape_centre: Tensor  # (P, L + 1) log layer energies and depth as polynomials in c ...
    shape_spread: Tensor  # (L + 1,) ... and their spread about it
    line: Tensor  # (L,) half width in MeV of what is moved onto the line at the electron's mass
    stations: Tensor  # (3,) scaled incident energies between which shapes are interpolated

    def __init__(self, family: Family, conditions: Sequence[str]) -> None:
        super().__init__()
        self.family = family
        self.conditions = tuple(conditions)
        self.energy_column = energy_column(family, self.conditions)
        count, layers, voxels = scaled_size(family, self.conditions), len(family.layers), family.voxels
        powers = _energy_products(count, layers, self.energy_column)
        cubic = powers.shape[2]
        products = _voxel_products(count, self.energy_column)
        features = products.shape[1]
        self._rough = (products > 0).all(0) | (products.amax(0) == count + 3)  # products of more than two
        self._plain = int((products <= count).all(0).sum()) + (self.energy_column is not None)
        self.register_buffer("powers", powers.flatten(1), persistent=False)
        self.register_buffer("orders", _energy_orders(layers), persistent=False)
        self.register_buffer("others", self.orders.argsort(1)[:, 1:], persistent=False)
        self.register_buffer("_beyond", -torch.arange(1, PER_UNIT + 1) / PER_UNIT, persistent=False)
        self.register_buffer("_never", torch.tensor([[-torch.inf], *[[0.0]] * (layers - 1)]), persistent=False)
        self.register_buffer("reference", torch.tensor(0))
        self.register_buffer("empty_logits", torch.full((layers, cubic), 0.0))
        self.register_buffer("energy_range", torch.zeros(layers, 2))
        self.register_buffer("energy_quantiles", torch.zeros(layers, cubic, len(_GRID[_FITTED])))
        self.register_buffer("products", products, persistent=False)
        self.register_buffer("shape_centre", torch.zeros(self._plain, layers + 1))
        self.register_buffer("shape_spread", torch.ones(layers + 1))
        self.register_buffer("line", torch.zeros(layers))
        self.register_buffer("stations", torch.tensor([-0.5, 0.2, 0.8]))
        # Parameters, so that training can refine them: (F, V) each, and the numbers of Q at each station.
        self.occupancy = nn.Parameter(torch.zeros(features, voxels))
        self.location = nn.Parameter(torch.zeros(features, voxels))
        self.log_scale = nn.Parameter(torch.zeros(features, voxels))
        self.shape = nn.Parameter(torch.zeros(SHAPES, len(self.stations), voxels))

    # --- energies -----------------------------------------------------------------------------------------------

    def layer_energies(self, showers: Tensor) -> Tensor:
        """Energy of each layer, (B, L), from showers (B, V); both in MeV."""
        return torch.stack([showers[:, part].sum(1) for part in self.family.layer_slices], 1)

    def energy_variables(self, energies: Tensor, conditions: Tensor) -> Tensor:
        """Total and relative layer energies as unbounded variables.

        Args:
            energies: Layer energies, (B, L), in MeV.
            conditions: (B, C), in their units.

        Returns:
            (B, L): the leak (or response, or total energy) and the other layers relative to the leading one, all as
            logarithms.
        """
        # The total against the incident energy: where energy is conserved the leak, which has a scale of its own, else
        # the response. Either varies by orders of magnitude, hence logarithms.
        total, knee = energies.sum(1), self.family.knee
        if self.energy_column is None:
            first = torch.log(total + knee)
        elif self.family.conserves_energy:
            first = torch.log((1 - total / conditions[:, self.energy_column]).clamp(min=0) + LEAK_FLOOR)
        else:
            first = torch.log(total / conditions[:, self.energy_column] + LEAK_FLOOR)

        # Relative to the leading layer, the others say how deep the shower is, whatever its energy.
        ratios = torch.log((energies + knee) / (energies.index_select(1, self.reference.view(1)) + knee))
        return torch.cat([first[:, None], ratios.index_select(1, self._of_leading(self.others))], 1)

    def _energies(self, variables: Tensor, empty: Tensor, conditions: Tensor) -> Tensor:
        """Inverse of :meth:`energy_variables`, for layers that may be empty (B, L)."""
        first, knee = variables[:, :1], self.family.knee
        if self.energy_column is None:
            total = (torch.exp(first) - knee).clamp(min=0)
        else:
            incident = conditions[:, self.energy_column : self.energy_column + 1]
            if self.family.conserves_energy:
                total = incident * (1 + LEAK_FLOOR - torch.exp(first)).clamp(0, 1)
            else:
                total = incident * (torch.exp(first) - LEAK_FLOOR).clamp(0, self.family.max_response)

        # A softmax of the logarithmic ratios gives shares of (energy + knee); the leading layer's own ratio is 0, and
        # an empty layer, at minus infinity, gets no share.
        order = self._of_leading(self.orders)
        ratios = torch.where(empty, -torch.inf, torch.cat([torch.zeros_like(first), variables[:, 1:]], 1))
        shares = torch.softmax(ratios.index_select(1, order), 1)
        layers = len(order) - empty.sum(1, keepdim=True)
        energies = (shares * (total + layers * knee) - knee).clamp(min=SMALLEST * knee)
        energies = torch.where(shares > 0, energies, 0.0)

        # The floor on small energies adds a little: what is left is scaled, so that the total is met exactly.
        return energies * (total / energies.sum(1, keepdim=True).clamp(min=1e-12))

    def _of_leading(self, table: Tensor) -> Tensor:
        """The row of a table that belongs to the leading layer; the host does not wait to know which layer it is."""
        return table.index_select(0, self.reference.view(1))[0]

    def _designs(self, conditions: Tensor, normals: Tensor) -> Tensor:
        """Features (L, B, G) of the energy variables: of conditions, and of the first and last two normals before each.

        Args: conditions (B, C) in their units, normals (B, L); those not known yet are not looked at.
        """
        scaled = scale_conditions(self.family, self.conditions, conditions)
        square = self.leading(scaled).square()
        normals = normals.clamp(-EARLIER_CLIP, EARLIER_CLIP)
        columns = torch.cat([torch.ones_like(square), scaled, normals, torch.zeros_like(square), square], 1)
        one, two, three = (columns.index_select(1, power) for power in self.powers)
        designs: Tensor = (one * two * three).unflatten(1, (len(self.energy_range), -1)).transpose(0, 1)
        return designs

    def _knots(self, designs: Tensor, which: slice = _ALL) -> Tensor:
        """Quantiles of some energy variables on the grid of normals, (K, B, Q), increasing; designs (K, B, G)."""
        fitted = torch.cummax(designs @ self.energy_quantiles[which], 2).values
        # The outermost quantiles are noisy: continue with the slope over a whole unit.
        low, high = fitted[..., :1], fitted[..., -1:]
        below = torch.lerp(low, fitted[..., PER_UNIT : PER_UNIT + 1], self._beyond.flip(0))
        above = torch.lerp(high, fitted[..., -PER_UNIT - 1 : -PER_UNIT], self._beyond)
        least, most = self.energy_range[which, None].split(1, 2)
        return torch.cat([below, fitted, above], 2).clamp(least, most)

    def energies_from_normals(self, normals: Tensor, conditions: Tensor) -> Tensor:
        """Layer energies (B, L) in MeV from latent normals (B, L) and conditions (B, C) in their units."""
        # A layer is empty where the upper tail of its normal exceeds the probability of being full. The other normals
        # are stretched over all probabilities again, since quantiles are those of layers with energy.
        normals = normals.clamp(-MOST_NORMAL, MOST_NORMAL)
        designs, rows = self._designs(conditions, normals), normals.T
        tail, full = normal_tail(rows), 1 - self._empty(designs)
        empty = tail > full
        stretched = inverse_tail(torch.where(empty, 0.5, tail / full.clamp(min=1e-6)))

        # Between the quantiles on the grid, straight lines.
        position = torch.where(full < 1, stretched, rows).clamp(-MOST_NORMAL, MOST_NORMAL) * PER_UNIT + 4 * PER_UNIT
        index = position.detach().nan_to_num(0.0).long()  # diverged networks give NaN, not a wrong address
        low, high = self._knots(designs).gather(2, torch.stack([index, index + 1], 2)).unbind(2)
        return self._energies(torch.lerp(low, high, position - index).T, empty.T, conditions)

    def _empty(self, designs: Tensor, which: slice = _ALL) -> Tensor:
        """Probability (K, B) that the layers of some energy variables are empty; exactly 0 for the total."""
        logits = (designs @ self.empty_logits[which, :, None])[..., 0]
        probability = torch.sigmoid(logits + self._never[which])
        return torch.where(probability > 1e-5, probability, 0.0)

    def _energy_normal(self, variable: Tensor, empty: Tensor, design: Tensor, i: int) -> Tensor:
        """Latent normals (B,) of energy variable i, and of its layer being empty; design (1, B, G)."""
        # Where the value lies between the quantiles: the inverse of the straight lines.
        knots = self._knots(design, slice(i, i + 1))[0]
        index = (torch.searchsorted(knots, variable[:, None].contiguous()) - 1).clamp(0, knots.shape[1] - 2)
        low, high = (knots.gather(1, index + k)[:, 0] for k in (0, 1))
        inner = (index[:, 0] + ((variable - low) / (high - low).clamp(min=1e-9)).clamp(0, 1)) / PER_UNIT - 4

        # Of an empty layer only the range of its normal is known: it is given the middle of it, in probability.
        full = 1 - self._empty(design, slice(i, i + 1))[0]
        tail = torch.where(empty & (full < 1), (1 + full) / 2, full * normal_tail(inner))
        return torch.where(full < 1, inverse_tail(tail), inner).clamp(-4, 4)

    def _energy_normals(self, energies: Tensor, conditions: Tensor, *, fit: bool = False) -> Tensor:
        """Latent normals (B, L) of the energies (B, L); the regressions behind them are fitted first if asked."""
        empties = (energies == 0).index_select(1, torch.cat([self.reference.view(1), self._of_leading(self.others)]))
        normals = torch.zeros_like(energies)
        for i, variable in enumerate(self.energy_variables(energies, conditions).unbind(1)):
            design, empty = self._designs(conditions, normals)[i : i + 1], empties[:, i]
            if fit:
                self._fit_energy(variable, empty, design[0], i)
            normals[:, i] = self._energy_normal(variable, empty, design, i)
        return normals

    def _fit_energy(self, variable: Tensor, empty: Tensor, design: Tensor, i: int) -> None:
        levels = 1 - normal_tail(_GRID[_FITTED].double())
        rows = ~empty if i else torch.ones_like(empty)
        if rows.sum() >= 2:
            self.energy_range[i] = torch.stack([variable[rows].min(), variable[rows].max()])
            self.energy_quantiles[i] = fit_quantiles(design[rows], variable[rows], levels)
        if empty.all() or not empty.any():  # nothing to regress: always or never
            self.empty_logits[i, 0] = 30.0 if empty.all() else -30.0
        else:
            self.empty_logits[i] = fit_logistic(design, empty[:, None].double())[:, 0]

    # --- voxels -------------------------------------------------------------------------------------------------

    def leading(self, scaled: Tensor) -> Tensor:
        """The scaled incident energy (..., 1), 0 where it is no condition; scaled conditions (..., C)."""
        column = self.energy_column
        return scaled.new_zeros(*scaled.shape[:-1], 1) if column is None else scaled[..., column : column + 1]

    def near(self, conditions: Tensor) -> Tensor:
        """How near each station of energy is, (B, 3), adding up to 1; conditions (B, C) in their units."""
        energy = self.leading(scale_conditions(self.family, self.conditions, conditions))
        ramps = ((energy - self.stations[:-1]) / self.stations.diff()).clamp(0, 1)
        return torch.cat([1 - ramps[:, :1], ramps[:, :1] - ramps[:, 1:], ramps[:, 1:]], 1)

    def features(self, energies: Tensor, conditions: Tensor) -> Tensor:
        """What voxel distributions depend on: (B, L, F) from layer energies (B, L) in MeV and conditions (B, C)."""
        scaled = scale_conditions(self.family, self.conditions, conditions)
        profile = self._profile(energies)
        standard = (profile - self._plain_features(scaled) @ self.shape_centre) / self.shape_spread
        standard = standard.clamp(-CLIP, CLIP)
        layers = len(self.family.layers)
        pair = torch.stack([standard[:, :layers], standard[:, layers:].expand(-1, layers)], 2)
        return self._products(scaled[:, None, :].expand(-1, layers, -1), pair, self.products)

    def _plain_features(self, scaled: Tensor) -> Tensor:
        """The features (B, P) that depend on the conditions alone."""
        return self._products(scaled, scaled.new_zeros(len(scaled), 2), self.products[:, : self._plain])

    def _products(self, scaled: Tensor, pair: Tensor, products: Tensor) -> Tensor:
        one = torch.ones_like(pair[..., :1])
        columns = torch.cat([one, scaled, pair, self.leading(scaled).square()], -1)
        first, second, third = (columns.index_select(-1, product) for product in products)
        return first * second * third

    def _profile(self, energies: Tensor) -> Tensor:
        """Log layer energies and the energy-weighted mean layer, (B, L + 1)."""
        number = torch.arange(energies.shape[1], device=energies.device, dtype=energies.dtype)
        depth = (energies * number).sum(1) / energies.sum(1).clamp(min=1e-12)
        return torch.cat([torch.log(energies + self.family.knee), depth[:, None]], 1)

    def inverse(self, energy_normals: Tensor, voxel_normals: Tensor, conditions: Tensor) -> Tensor:
        """Network space to showers.

        Args:
            energy_normals: Of the energy variables, (B, L).
            voxel_normals: Of the voxels, (B, V).
            conditions: (B, C), in their units (MeV for energies).

        Returns:
            Showers (B, V) in MeV, never negative.
        """
        return self._from_energies(self.energies_from_normals(energy_normals, conditions), voxel_normals, conditions)

    def _from_energies(self, energies: Tensor, voxel_normals: Tensor, conditions: Tensor) -> Tensor:
        """Showers (B, V) in MeV with the given layer energies (B, L)."""
        features, near = self.features(energies, conditions), self.near(conditions)
        tail = normal_tail(voxel_normals.clamp(-6, 6))
        parts = []
        for i, part in enumerate(self.family.layer_slices):
            # How far the upper tail S of a normal lies below the probability p of the voxel being on: log(p / S).
            row = features[:, i]
            excess = nn.functional.logsigmoid(row @ self.occupancy[:, part]) - torch.log(tail[:, part])
            on = excess > 0

            # That excess is a standard exponential, and the quantile function makes it the logarithm of the share.
            # Voxels that are off are computed at 1, where gradients are harmless, and put to zero afterwards.
            log_share = row @ self.location[:, part] + torch.exp(row @ self.log_scale[:, part]) * quantile(
                torch.where(on, excess, 1.0).clamp(min=1e-4), near @ self.shape[..., part]
            )
            share = torch.where(on, torch.exp(log_share.clamp(-40, 10)), 0.0)

            # The layer's energy is known already: shares are normalised to it. A layer with energy but no voxel on
            # puts it all into the voxel that came nearest.
            total = share.sum(1, keepdim=True)
            nearest = torch.zeros_like(share).scatter_(1, excess.argmax(1, keepdim=True), 1.0)
            share = torch.where(total > 0, share / total.clamp(min=1e-30), nearest)
            parts.append(self._with_line(share * energies[:, i : i + 1], energies[:, i : i + 1], i))
        return torch.cat(parts, 1)

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

    def forward(self, showers: Tensor, conditions: Tensor) -> tuple[Tensor, Tensor]:
        """Showers to network space.

        Args:
            showers: (B, V) in MeV.
            conditions: (B, C), in their units.

        Returns:
            Latent normals of energies (B, L) and voxels (B, V). A voxel that is off is given the middle of the normals
            it may have: the largest one is :meth:`ceiling`.
        """
        energies = self.layer_energies(showers)
        features, near = self.features(energies, conditions), self.near(conditions)
        normals = []
        for i, part in enumerate(self.family.layer_slices):
            # The share as a standardised logarithm, and the exponential variable that has it as its quantile.
            row, layer = features[:, i], showers[:, part]
            share = torch.log(layer.clamp(min=1e-30) / energies[:, i : i + 1].clamp(min=1e-30))
            residual = (share - row @ self.location[:, part]) * torch.exp(-row @ self.log_scale[:, part])
            excess = exponential(residual, near @ self.shape[..., part])

            # From there the upper tail of the normal: S = p exp(-excess) where the voxel is on, between p and 1 where
            # it is off.
            probability = torch.sigmoid(row @ self.occupancy[:, part])
            on = probability * torch.exp(-excess)
            normals.append(inverse_tail(torch.where(layer > 0, on, (1 + probability) / 2)))
        return self._energy_normals(energies, conditions), torch.cat(normals, 1)

    def ceiling(self, showers: Tensor, conditions: Tensor) -> Tensor:
        """The latent normal below which each voxel is off, (B, V), given the layer energies of ``showers``."""
        features = self.features(self.layer_energies(showers), conditions)
        parts = enumerate(self.family.layer_slices)
        logits = torch.cat([features[:, i] @ self.occupancy[:, part] for i, part in parts], 1)
        return inverse_tail(torch.sigmoid(logits))

    # --- fit ----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def fit(self, samples: Samples) -> tuple[Tensor, Tensor]:
        """Fit everything to training samples and their mirror images.

        Args:
            samples: Showers in MeV with the conditions the transform was made for.

        Returns:
            The rows used: showers (N, V) in MeV and conditions (N, C), float64.

        Raises:
            ShardError: If fewer than 16 showers have energy.
        """
        showers, conditions = _rows_to_fit(samples, self.family, self.conditions)
        scaled = scale_conditions(self.family, self.conditions, conditions)
        self.double()

        # Energies, one variable after the other. The leading layer is never said to be empty: take the one that is
        # least often, then the one with most energy.
        energies = self.layer_energies(showers)
        share = energies.mean(0) / energies.mean(0).sum()
        self.reference.fill_(int(((energies > 0).double().mean(0) + 1e-3 * share).argmax()))
        self._energy_normals(energies, conditions, fit=True)

        # What voxels depend on: energies and depth less their mean course with the conditions, in units of their
        # spread about it. Else they would repeat what the conditions say, and no regression could tell them apart.
        plain, profile = self._plain_features(scaled), self._profile(energies)
        self.shape_centre.copy_(fit_least_squares(plain, profile, torch.ones_like(profile), ridge=1e-3))
        spread = (profile - plain @ self.shape_centre).std(0)
        self.shape_spread.copy_(torch.where(spread > 1e-6, spread, torch.ones_like(spread)))

        # Voxels, layer by layer. Mirror images follow the same law: one fit sees the showers of all images, in blocks
        # that fit into memory, and its numbers are written to each image.
        features, nearest = self.features(energies, conditions), self.near(conditions).argmax(1)
        mirrors = torch.from_numpy(np.stack(self.family.mirrors))
        for i, part in enumerate(self.family.layer_slices):
            rows = energies[:, i] > 0
            first = mirrors[:, part].amin(0)  # of the mirror images of each voxel
            voxels, image = first.unique(return_inverse=True)
            for start in range(0, len(voxels), _BLOCK):
                chosen = mirrors[:, voxels[start : start + _BLOCK]]
                copies = len(chosen)
                shares = torch.cat([showers[rows][:, voxel] for voxel in chosen])
                shares /= energies[rows, i].repeat(copies)[:, None]
                fits = self._fit_voxels(features[rows, i].repeat(copies, 1), shares, nearest[rows].repeat(copies))
                here = (image >= start) & (image < start + _BLOCK)
                where = torch.arange(part.start, part.stop)[here]
                for parameter, fit in zip(self.parameters(), fits, strict=True):
                    parameter[..., where] = fit[..., image[here] - start]
        self.float()
        self._fit_line(showers, energies, conditions)
        return showers, conditions

    def _fit_line(self, showers: Tensor, energies: Tensor, conditions: Tensor) -> None:
        """Move as many voxels onto the line at the electron's mass as there are in the data, if there is one."""
        # What the transform makes so far, of random normals and the true energies.
        mass = ELECTRON / self.family.unit_in_mev
        rows = torch.arange(0, len(showers), max(1, len(showers) // _LINE_ROWS))
        normals = torch.randn(len(rows), showers.shape[1], generator=torch.Generator().manual_seed(0))
        with_energy = energies[rows].float()
        made = self._from_energies(with_energy, normals, conditions[rows].float())

        # A line is an excess of voxels at the mass over those beside it. Its half width is chosen so that as many
        # generated voxels lie within it as there are on the line in the data.
        self.line.zero_()
        for i, part in enumerate(self.family.layer_slices):
            near = (showers[rows][:, part] - mass).abs() / mass
            on_line, beside = int((near < 1e-4).sum()), int(((near > 1e-3) & (near < 1.1e-2)).sum())
            if on_line > 100 + beside:  # beside: a hundred times as wide
                distances = (made[:, part] - mass)[made[:, part] > 0].abs().sort().values
                self.line[i] = distances[min(on_line, len(distances) - 1)].clamp(max=LINE_REACH / 2)

    def _fit_voxels(self, design: Tensor, shares: Tensor, nearest: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Occupancy, location, log scale and shapes of some voxels of one layer.

        Args: design (N, F), shares of the layer (N, V_block), nearest station of each shower (N,).
        """
        # The mean of the logarithm, then the logarithm of its spread as a mean of log residuals: least squares, which
        # thousands of voxels solve at once without iterations. Products of three and four are pulled towards 0 more.
        on = (shares > 0).double()
        count = on.sum(0)
        logs = torch.log(shares.clamp(min=1e-30))
        ridge = 1 + _ROUGHNESS * self._rough.double()
        location = fit_least_squares(design, logs, on, ridge=2 * ridge)
        residual = logs - design @ location
        magnitude = torch.log(residual.abs() + 1e-3)
        log_scale = fit_least_squares(design, magnitude, on, ridge=20 * ridge)

        # A mean of logarithms is the spread up to a factor, which the root of the mean square puts right.
        residual = residual * torch.exp(-design @ log_scale)
        spread = ((residual.square() * on).sum(0) / count.clamp(min=1)).sqrt().clamp(min=1e-3)
        log_scale[0] += torch.log(spread)
        residual = residual / spread

        # What is left is the shape, one for each station of energy; where a station has few voxels on, that of all.
        rows = [nearest == station for station in range(len(self.stations))]
        few = [bool(on[chosen].sum() < _FEW_HITS) for chosen in rows]
        whole = [fit_shapes(residual, on > 0, count / (count + 30))] if any(few) else []
        shapes = []
        for chosen, too_few in zip(rows, few, strict=True):
            count = on[chosen].sum(0)  # decides how far a voxel's own data is trusted
            own = [] if too_few else [fit_shapes(residual[chosen], on[chosen] > 0, count / (count + 30))]
            shapes += own or whole
        return fit_logistic(design, on, ridge=2 * ridge), location, log_scale, torch.stack(shapes, 1)


def _rows_to_fit(samples: Samples, family: Family, conditions: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Showers with energy, as many as memory allows: (N, V) and (N, C), float64."""
    with_energy = np.flatnonzero(samples.values.sum(1) > 0)
    if len(with_energy) < 16:
        raise ShardError(
            "too few showers to fit a transform",
            expected="at least 16 showers with energy",
            found=len(with_energy),
            hint="add training data",
        )
    limit = max(2000, _FIT_NUMBERS // family.voxels)
    rows = with_energy[:: max(1, math.ceil(len(with_energy) / limit))]
    values = samples.values[rows]
    return torch.from_numpy(values).double(), torch.from_numpy(samples.conditions.array(conditions)[rows]).double()


def _energy_products(conditions: int, layers: int, energy: int | None) -> Tensor:
    """Columns to be multiplied, (3, L, G), for all monomials of an energy variable's conditions and earlier normals.

    The columns are: one, the conditions, the normals, zero (in place of what does not exist) and the energy squared.
    """
    none = 1 + conditions + layers
    leading, square = (none, none) if energy is None else (1 + energy, none + 1)
    chosen = []
    for layer in range(layers):
        earlier = [1 + conditions + i for i in dict.fromkeys([0, layer - 1, layer - 2]) if 0 <= i < layer]
        earlier += [none] * (_EARLIER - len(earlier))
        variables = [*range(1, 1 + conditions), *earlier]
        pairs = list(itertools.combinations_with_replacement(variables, 2))
        singles = [(v, 0, 0) for v in variables]
        cubes = [*((v, v, v) for v in variables), *((leading, leading, v) for v in earlier), (square, square, 0)]
        chosen.append([(0, 0, 0), *singles, *((a, b, 0) for a, b in pairs), *cubes])
    return torch.tensor(chosen).permute(2, 0, 1)


def _voxel_products(conditions: int, energy: int | None) -> Tensor:
    """Columns to be multiplied, (3, F), for the features of voxels; those of the conditions alone come first.

    The columns are: one, the conditions, the layer's energy, the depth, and the incident energy squared. All products
    of two; of three and four where the incident energy is one, since showers change most with it.
    """
    layer, depth, square = conditions + 1, conditions + 2, conditions + 3
    pairs = itertools.combinations_with_replacement(range(1, conditions + 3), 2)
    chosen = [(0, 0, 0), *((v, 0, 0) for v in range(1, conditions + 3)), *((a, b, 0) for a, b in pairs)]
    if energy is not None:
        chosen += itertools.combinations_with_replacement((1 + energy, layer, depth), 3)
        chosen += [(square, square, 0)]
    plain = [product for product in chosen if not {layer, depth} & set(product)]
    return torch.tensor([*plain, *(product for product in chosen if product not in plain)], device="cpu").T


def _energy_orders(layers: int) -> Tensor:
    """For each leading layer, which energy variable is each layer's own, (L, L): the first is the leading layer's."""
    orders = [[0 if i == leading else i + (i < leading) for i in range(layers)] for leading in range(layers)]
    return torch.tensor(orders)
