"""Layer energies <-> standard normals."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ...families import Family
from ..conditions import energy_column, scale_conditions, scaled_size
from .fitting import fit_logistic, fit_quantiles, inverse_tail, normal_tail

LEAK_FLOOR = 1e-4  # of the incident energy: the scale below which a leak is not resolved
SMALLEST = 1e-3  # of the knee: the least energy of a layer that is not empty
PER_UNIT = 5
_GRID = torch.arange(-4 * PER_UNIT, 4 * PER_UNIT + 1) / PER_UNIT
MOST_NORMAL = 3.999
_FITTED = slice(PER_UNIT, -PER_UNIT)
_ALL = slice(None)
EARLIER_CLIP = 3.0
_EARLIER = 3


class LayerEnergies(nn.Module):
    def __init__(self, family: Family, conditions: Sequence[str]) -> None:
        super().__init__()
        self.family = family
        self.conditions = tuple(conditions)
        self.energy_column = energy_column(family, self.conditions)
        self.size = len(family.layers)
        count, layers = scaled_size(family, self.conditions), len(family.layers)
        powers = _energy_products(count, layers, self.energy_column)
        cubic = powers.shape[2]
        self.register_buffer("powers", powers.flatten(1), persistent=False)
        self.register_buffer("orders", _energy_orders(layers), persistent=False)
        self.register_buffer("others", self.orders.argsort(1)[:, 1:], persistent=False)
        self.register_buffer("_beyond", -torch.arange(1, PER_UNIT + 1) / PER_UNIT, persistent=False)
        self.register_buffer("_never", torch.tensor([[-torch.inf], *[[0.0]] * (layers - 1)]), persistent=False)
        self.register_buffer("reference", torch.tensor(0))
        self.register_buffer("empty_logits", torch.full((layers, cubic), 0.0))
        self.register_buffer("energy_range", torch.zeros(layers, 2))
        self.register_buffer("energy_quantiles", torch.zeros(layers, cubic, len(_GRID[_FITTED])))

    def leading(self, scaled):
        column = self.energy_column
        return scaled.new_zeros(*scaled.shape[:-1], 1) if column is None else scaled[..., column : column + 1]

    def fit(self, energies, conditions):
        share = energies.mean(0) / energies.mean(0).sum()
        self.reference.fill_(int(((energies > 0).double().mean(0) + 1e-3 * share).argmax()))
        self._energy_normals(energies, conditions, fit=True)

    def inverse(self, normals, conditions):
        return self.energies_from_normals(normals, conditions)

    def forward(self, energies, conditions):
        return self._energy_normals(energies, conditions)

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


def _energy_orders(layers: int) -> Tensor:
    """For each leading layer, which energy variable is each layer's own, (L, L): the first is the leading layer's."""
    orders = [[0 if i == leading else i + (i < leading) for i in range(layers)] for leading in range(layers)]
    return torch.tensor(orders)


class FoldedEnergies:
    def __init__(self, energies):
        import copy
        self.e = copy.deepcopy(energies)

    @torch.inference_mode()
    def __call__(self, normals, conditions):
        return self.e.inverse(torch.from_numpy(normals), torch.from_numpy(conditions)).numpy()
