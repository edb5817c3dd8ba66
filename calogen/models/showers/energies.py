"""Layer energies <-> standard normals: a copula whose marginals and dependence change with the incident energy.

One model for three layers and for forty-five; no physics beyond shares of a total.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ...families import Family
from ..conditions import energy_column, scale_conditions, scaled_size
from .fitting import fit_least_squares, fit_logistic, inverse_tail, normal_tail

STATIONS = 6  # incident energies between which everything is interpolated
LEADING = 3  # normals that the others depend on beyond a linear way
LEAK_FLOOR = 1e-4  # of the incident energy: the scale below which a leak is not resolved
SMALLEST = 1e-3  # of the knee: the least energy of a layer that is not empty
PER_UNIT = 5  # points of a table in a unit of its standard normal
REACH = 4  # normals that tables hold, on both sides
MOST_NORMAL = REACH - 1e-3
MOST_LEADING = 3.0  # normals beyond which dependence is not extrapolated
_LARGEST_SCALE = 30.0  # logarithm: beyond, variables are at their limits anyway, and gradients are to stay finite
_POINTS = 2 * REACH * PER_UNIT + 1
_GRID = np.arange(_POINTS) / PER_UNIT - REACH
_FITTED = slice(PER_UNIT, -PER_UNIT)  # points that data can resolve; the others continue their slope
_FEW = 10.0  # showers beyond a quantile for which a station is trusted as much as all stations together
_SMOOTH = 3.0  # pull of a station towards a line in the logarithm of the energy, in showers
_TIED = 50.0  # pull of linear dependence at a station towards that at all
_CURVED = 20.0  # pull of all other dependence towards 0; of spreads five times as strong
_ROUNDS = 6  # of drawing what empty layers hide
_GROUP = 400  # showers of similar energy for which it is drawn with one correlation matrix
_SIMULATED = 40_000  # showers from which marginal distributions are put right
_ROWS = 4096
_PAIRS = list(itertools.combinations_with_replacement(range(LEADING), 2))


class LayerEnergies(nn.Module):
    """Energies of the layers of a shower from standard normals, and back.

    The variables are the total (leak or response) and the logarithm of each layer's share of it, one more than there
    are layers: shares are normalised, so that none of them collects the errors of all others. Given the conditions,

    * a variable is ``location + scale * T(y)`` with a standard normal y; the lowest y mean that its layer is empty;
    * the y depend on each other through independent normals n, those that explain most first: the i-th is
      ``U_i(m + s * G_i(n_i))``, with m linear in all n before it, and m and log s polynomials in their linear
      combination p that explains it best and in the first three n; U makes its marginal distribution normal again.

    Location, log scale, log odds, linear coefficients and the tables T, G, U change with the incident energy, between
    :data:`STATIONS` stations; location, log scale and log odds with all other conditions, too. All n are known at
    once, hence no loop in :meth:`inverse`.

    Args:
        family: A calorimeter family.
        conditions: Names of the conditions, in the order of their columns.

    Source: Rosenblatt 1952 for the sequence; Wei & Tanner 1990 for what empty layers hide.
    """

    stations: Tensor  # (S,) scaled incident energies
    order: Tensor  # (D,) variables in the order of their normals; 0 is the total, 1 + i layer i
    limits: Tensor  # (2, D) smallest and largest value of each variable in the data
    location: Tensor  # (F, D) coefficients of the location ...
    log_scale: Tensor  # ... of the log scale ...
    empty_logits: Tensor  # ... and of the log odds of being empty
    linear: Tensor  # (S, D, D) of the normals before each, in their order
    direction: Tensor  # (D, D) the combination p
    bent: Tensor  # (2, D, P) coefficients of what is not linear, of m and of log s
    marginal: Tensor  # (D, S, K) T: normals to standardised variables
    residual: Tensor  # (D, S, K) G: normals to residuals
    levelled: Tensor  # (D, S, K) U: dependent numbers to normals

    def __init__(self, family: Family, conditions: Sequence[str]) -> None:
        super().__init__()
        self.family = family
        self.conditions = tuple(conditions)
        self.energy_column = energy_column(family, self.conditions)
        self.layers = len(family.layers)
        self.size = size = self.layers + 1
        others = scaled_size(family, self.conditions) - (self.energy_column is not None)
        features = 2 + STATIONS + 2 * others + others * (others + 1) // 2
        terms = STATIONS + 2 * (2 * LEADING + len(_PAIRS)) + 2 * (1 + LEADING) + 4
        straight = torch.linspace(-REACH, REACH, _POINTS).expand(size, STATIONS, -1)
        self.register_buffer("stations", torch.linspace(-1, 1, STATIONS))
        self.register_buffer("order", torch.arange(size))
        self.register_buffer("limits", torch.zeros(2, size))
        for name in ("location", "log_scale", "empty_logits"):
            self.register_buffer(name, torch.zeros(features, size))
        self.register_buffer("linear", torch.zeros(STATIONS, size, size))
        self.register_buffer("direction", torch.zeros(size, size))
        self.register_buffer("bent", torch.zeros(2, size, terms))
        for name in ("marginal", "residual", "levelled"):
            self.register_buffer(name, straight.clone())

    # --- variables ----------------------------------------------------------------------------------------------

    def variables(self, energies: Tensor, conditions: Tensor) -> Tensor:
        """Logarithms (B, D) of the leak (or response, or total energy) and of the layers' shares, in normals' order."""
        total, knee = energies.sum(1, keepdim=True), self.family.knee
        if self.energy_column is None:
            first = torch.log(total + knee)
        else:
            response = total / conditions[:, self.energy_column, None]
            first = torch.log((1 - response if self.family.conserves_energy else response).clamp(min=0) + LEAK_FLOOR)
        shares = torch.log((energies + knee) / (total + self.layers * knee))
        return torch.cat([first, shares], 1)[:, self.order]

    def _energies(self, variables: Tensor, empty: Tensor, conditions: Tensor) -> Tensor:
        """Inverse of :meth:`variables`, for layers that may be empty, (B, D) both."""
        places, knee = self.order.argsort(), self.family.knee
        first, shares = variables[:, places].split([1, self.layers], 1)
        if self.energy_column is None:
            total = (torch.exp(first) - knee).clamp(min=0)
        else:
            most = 1.0 if self.family.conserves_energy else self.family.max_response
            part = torch.exp(first) - LEAK_FLOOR
            part = 1 - part if self.family.conserves_energy else part
            total = conditions[:, self.energy_column, None] * part.clamp(0, most)

        # Shares are of (energy + knee), and add up to one only about: what results is scaled to meet the total.
        energies = torch.exp(shares) * (total + self.layers * knee) - knee
        energies = torch.where(empty[:, places[1:]], 0.0, energies.clamp(min=SMALLEST * knee))
        energies = energies * (total / energies.sum(1, keepdim=True))
        return torch.where(energies < self.family.threshold, 0.0, energies)  # no voxel would show it

    # --- conditions ---------------------------------------------------------------------------------------------

    def standardised(self, energies: Tensor, conditions: Tensor) -> Tensor:
        """Variables (B, D) less their location, in units of their scale."""
        design = self._design(conditions, self.near(conditions))
        return (self.variables(energies, conditions) - design @ self.location) * torch.exp(-design @ self.log_scale)

    def scaled_others(self, conditions: Tensor) -> Tensor:
        """All conditions but the incident energy, (B, C'), dimensionless."""
        return self._scaled(conditions)[1]

    def near(self, conditions: Tensor) -> Tensor:
        """How near each station of energy is, (B, S), adding up to 1; conditions (B, C) in their units."""
        energy = self._scaled(conditions)[0]
        ramps = ((energy - self.stations[:-1]) / self.stations.diff()).clamp(0, 1)
        return torch.cat([1 - ramps[:, :1], ramps[:, :-1] - ramps[:, 1:], ramps[:, -1:]], 1)

    def _scaled(self, conditions: Tensor) -> tuple[Tensor, Tensor]:
        """The scaled incident energy (B, 1), 0 where it is no condition, and the other conditions."""
        scaled, column = scale_conditions(self.family, self.conditions, conditions), self.energy_column
        if column is None:
            return conditions.new_zeros(len(conditions), 1), scaled
        return scaled[:, column : column + 1], torch.cat([scaled[:, :column], scaled[:, column + 1 :]], 1)

    def _design(self, conditions: Tensor, near: Tensor) -> Tensor:
        """Features (B, F) of location, log scale and log odds."""
        others, height = self._scaled(conditions)[1], self._height(near)
        first, second = np.triu_indices(others.shape[1])
        products = others[:, first] * others[:, second]
        return torch.cat([torch.ones_like(height), height, near, others, others * height, products], 1)

    def _height(self, near: Tensor) -> Tensor:
        """Where between the stations an energy lies, (B, 1), -1 to 1."""
        return near @ torch.linspace(-1, 1, STATIONS, dtype=near.dtype, device=near.device)[:, None]

    # --- dependence ---------------------------------------------------------------------------------------------

    def _terms(self, normals: Tensor, near: Tensor, which: slice = slice(None)) -> Tensor:
        """What m and log s are linear in beside all normals, (D', B, P), for some variables; normals (B, D)."""
        leading = normals[:, :LEADING].clamp(-MOST_LEADING, MOST_LEADING)
        leading = nn.functional.pad(leading, (0, LEADING - leading.shape[1]))
        along = (normals @ self.direction[which].T).clamp(-MOST_LEADING, MOST_LEADING).T[..., None]
        pairs = torch.stack([leading[:, a] * leading[:, b] for a, b in _PAIRS], 1)
        one = torch.ones_like(leading[:, :1])
        shared = torch.cat([leading, pairs, leading**3 - 3 * leading], 1).expand(len(along), -1, -1)
        own = torch.cat([along * torch.cat([one, leading], 1), along**2, along**3 - 3 * along], 2)
        changing = torch.cat([shared, own], 2)
        return torch.cat([near.expand(len(along), -1, -1), changing, changing * self._height(near)], 2)

    def _given(
        self, normals: Tensor, near: Tensor, which: slice = slice(None), change: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The m and s of some variables given the normals before them, (D', B) each; normals (B, D)."""
        mean = torch.einsum("bs,sij,bj->ib", near, self.linear[:, which], normals)
        bent = torch.einsum("ibp,kip->kib", self._terms(normals, near, which), self.bent[:, which])
        bent, log_scale = bent if change is None else bent + change
        return mean + bent, torch.exp(log_scale.clamp(-8, 3))

    def _dependent(self, normals: Tensor, near: Tensor, change: Tensor | None = None) -> Tensor:
        """Dependent numbers (B, D), before U, from independent normals (B, D)."""
        mean, scale = self._given(normals, near, change=change)
        return (mean + scale * _look_up(self.residual, near, normals.T)).T

    def inverse(self, normals: Tensor, conditions: Tensor, change: Tensor | None = None) -> Tensor:
        """Energies from normals.

        Args:
            normals: Independent standard normals, (B, D).
            conditions: (B, C), in their units.
            change: What is added to m and log s, (2, D, B); none: nothing.

        Returns:
            Layer energies (B, L) in MeV, never negative, 0 where a layer is empty. They add up to at most the incident
            energy where the family conserves it, else to at most its largest response.
        """
        near = self.near(conditions)
        design = self._design(conditions, near)
        normals = normals.clamp(-MOST_NORMAL, MOST_NORMAL)
        dependent = self._dependent(normals, near, change)
        levelled = _look_up(self.levelled, near, dependent.T).clamp(-MOST_NORMAL, MOST_NORMAL)

        # A layer is empty where the upper tail of its normal exceeds the probability of being full; not all are: the
        # one that is nearest gets the energy. The other normals are stretched over all probabilities again.
        tail, full = normal_tail(levelled), 1 - self._empty(design).T
        excess = torch.where(full < 1, tail - full, -1.0)
        layer = (self.order > 0)[:, None]
        nearest = torch.where(layer, excess, torch.inf).argmin(0, keepdim=True)
        empty = (excess > 0).scatter(0, nearest, False)
        stretched = inverse_tail(torch.where(empty, 0.5, tail / full.clamp(min=1e-6)))
        inner = torch.where(full < 1, stretched, levelled)

        scale = torch.exp((design @ self.log_scale).clamp(max=_LARGEST_SCALE))
        variables = design @ self.location + scale * _look_up(self.marginal, near, inner).T
        return self._energies(torch.clamp(variables, *self.limits), empty.T, conditions)

    def _empty(self, design: Tensor) -> Tensor:
        """Probability (B, D) of each layer being empty; exactly 0 where it never is."""
        probability = torch.sigmoid(design @ self.empty_logits)
        return torch.where((probability > 1e-5) & (self.order > 0), probability, 0.0)

    def forward(self, energies: Tensor, conditions: Tensor) -> Tensor:
        """Normals (B, D) from layer energies (B, L) in MeV; an empty layer gets the middle, in probability, of its."""
        near = self.near(conditions)
        marginal, ceiling, empty = self._marginal_normals(energies, conditions, near)
        middle = -inverse_tail((1 - normal_tail(ceiling)) / 2)
        dependent = _locate(self.levelled, near, torch.where(empty, middle, marginal).T).T
        normals = torch.zeros_like(dependent)
        for i in range(self.size):
            mean, scale = self._given(normals, near, slice(i, i + 1))
            residual = (dependent[:, i] - mean) / scale
            normals[:, i] = _locate(self.residual[i : i + 1], near, residual)[0]
        return normals

    def _marginal_normals(self, energies: Tensor, conditions: Tensor, near: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Each variable's normal, the ceiling below which its layer is empty, and whether it is; (B, D) each."""
        design = self._design(conditions, near)
        empty = nn.functional.pad(energies == 0, (1, 0))[:, self.order]
        inner = _locate(self.marginal, near, self.standardised(energies, conditions).T)
        full = 1 - self._empty(design)
        normals = torch.where(full < 1, inverse_tail(full * normal_tail(inner.T)), inner.T)
        return normals, inverse_tail(full), empty

    # --- fit ----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def fit(self, energies: Tensor, conditions: Tensor) -> None:
        """Fit everything; all showers are used, in time linear in their number. Few showers are smoothed more.

        Args:
            energies: Layer energies, (N, L), in MeV, float64; every shower has some.
            conditions: (N, C), in their units, float64.
        """
        self.double()
        self.order.copy_(torch.arange(self.size))
        generator = torch.Generator().manual_seed(0)
        height = self._scaled(conditions)[0][:, 0]
        self.stations.copy_(_stations(height))
        near = self.near(conditions)
        self._fit_marginals(energies, conditions, near)

        # What empty layers hide is drawn, group by group of similar energy, given all other layers.
        normals, ceiling, empty = self._marginal_normals(energies, conditions, near)
        groups = height.argsort(stable=True).split(max(_GROUP, -(-len(height) // 64)))
        _draw_hidden(normals, ceiling, empty, near, groups, generator)

        # From here on variables stand in the order of their normals.
        order = _order(torch.corrcoef(normals.T))
        self.order.copy_(order)
        for table in (self.location, self.log_scale, self.empty_logits, self.limits):
            table.copy_(table[:, order])
        self.marginal.copy_(self.marginal[order])
        self._fit_dependence(normals[:, order], near)
        self._level(near, generator)
        self.float()

    def _fit_marginals(self, energies: Tensor, conditions: Tensor, near: Tensor) -> None:
        design, variables = self._design(conditions, near), self.variables(energies, conditions)
        empty = nn.functional.pad(energies == 0, (1, 0))
        full = (~empty).double()

        # Location and log scale by least squares: straight lines in the logarithm of the energy where data are few.
        ridge = torch.full((design.shape[1],), 2.0, dtype=torch.float64)
        ridge[1], ridge[2 : 2 + STATIONS] = 0.1, _SMOOTH
        self.location.copy_(fit_least_squares(design, variables, full, ridge))
        residual = variables - design @ self.location
        spread = ((residual.square() * full).sum(0) / full.sum(0).clamp(min=1)).sqrt()
        magnitude = torch.log(residual.abs() + 1e-3 * spread + 1e-9)
        self.log_scale.copy_(fit_least_squares(design, magnitude, full, 5 * ridge))
        residual = residual * torch.exp(-design @ self.log_scale)

        self.empty_logits.zero_()
        self.empty_logits[0] = -30.0
        self.empty_logits[0, empty.all(0)] = 30.0
        some = empty.any(0) & ~empty.all(0)
        if some.any():
            self.empty_logits[:, some] = fit_logistic(design, empty[:, some].double(), ridge=ridge, iterations=25)

        infinite = torch.full_like(variables, torch.inf)
        self.limits[0] = torch.where(empty, infinite, variables).amin(0).nan_to_num(posinf=0.0)
        self.limits[1] = torch.where(empty, -infinite, variables).amax(0).nan_to_num(neginf=0.0)
        for i, rows in enumerate(~empty.T):
            self.marginal[i] = _quantiles(residual[rows, i], near[rows])

    def _fit_dependence(self, normals: Tensor, near: Tensor) -> None:
        """Regress each variable on the normals before it, first linearly, then on what is bent; normals (N, D)."""
        count, size = normals.shape
        independent = torch.zeros_like(normals)
        everything = normals.new_zeros(STATIONS, size, STATIONS, size)  # sums of products of (near x independent)
        level = torch.eye(STATIONS, dtype=torch.float64) - 1 / STATIONS
        for table in (self.linear, self.direction, self.bent):
            table.zero_()
        for i in range(size):
            mean = torch.zeros(count, dtype=torch.float64)
            if i:
                # Coefficients at the stations are pulled towards their mean.
                right = torch.stack([(share * normals[:, i]) @ independent[:, :i] for share in near.T])
                pull = _TIED * level[:, None, :, None] * torch.eye(i, dtype=torch.float64)[None, :, None, :]
                gram = (everything[:, :i, :, :i] + pull).reshape(STATIONS * i, STATIONS * i)
                gram += torch.eye(STATIONS * i, dtype=torch.float64)
                solution = torch.linalg.solve(gram, right.flatten()).reshape(STATIONS, i)
                self.linear[:, i, :i] = solution
                along = near.mean(0) @ solution
                self.direction[i, :i] = along / along.norm().clamp(min=1e-9)
                mean = ((near @ solution) * independent[:, :i]).sum(1)

            # Terms of normals that come later are zero here, and so are their coefficients.
            terms = self._terms(independent, near, slice(i, i + 1))[0]
            ridge = torch.full((terms.shape[1],), _CURVED, dtype=torch.float64)
            ridge[:STATIONS] = 1.0
            residual = normals[:, i] - mean
            self.bent[0, i] = _ridge(terms, residual, ridge)
            residual = residual - terms @ self.bent[0, i]
            magnitude = torch.log(residual.abs() + 0.05 * residual.std())
            self.bent[1, i] = _ridge(terms, magnitude, torch.where(ridge > 1, 5 * ridge, ridge))
            residual = residual * torch.exp(-(terms @ self.bent[1, i]).clamp(-8, 3))

            self.residual[i] = _quantiles(residual, near)
            independent[:, i] = _locate(self.residual[i : i + 1], near, residual)[0]
            for s in range(STATIONS):
                new = ((near[:, s] * independent[:, i])[:, None] * near).T @ independent[:, : i + 1]
                everything[s, i, :, : i + 1] = new
                everything[:, : i + 1, s, i] = new

    def _level(self, near: Tensor, generator: torch.Generator) -> None:
        """Tables U that make the dependent numbers standard normal again at each station, from simulated showers."""
        near = near.repeat(max(1, -(-_SIMULATED // len(near))), 1)
        parts = near.split(_ROWS)
        draws = [self._dependent(_normals((len(part), self.size), generator), part) for part in parts]
        for i, numbers in enumerate(torch.cat(draws).T):
            for s, quantiles in enumerate(_quantiles(numbers, near).numpy()):
                inner = np.interp(_GRID, quantiles, _GRID)
                self.levelled[i, s] = torch.from_numpy(_extended(inner[None, _FITTED])[0])


def _normals(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def _look_up(tables: Tensor, near: Tensor, positions: Tensor) -> Tensor:
    """Values (D, B) of tables (D, S, K) at normals (D, B): straight lines between their points."""
    positions = (positions.clamp(-MOST_NORMAL, MOST_NORMAL) + REACH) * PER_UNIT
    index = positions.detach().nan_to_num(0.0).long()  # diverged networks give NaN, not a wrong address
    low, high = (near @ tables).gather(2, torch.stack([index, index + 1], 2)).unbind(2)
    return torch.lerp(low, high, positions - index)


def _locate(tables: Tensor, near: Tensor, values: Tensor) -> Tensor:
    """Inverse of :func:`_look_up`: normals (D, B), within the reach of the tables; values (D, B) or (B,)."""
    found = []
    for table, value in zip(tables, values.reshape(len(tables), -1), strict=True):
        knots = near @ table
        index = (torch.searchsorted(knots, value[:, None].contiguous()) - 1).clamp(0, _POINTS - 2)
        low, high = (knots.gather(1, index + k)[:, 0] for k in (0, 1))
        inner = ((value - low) / (high - low).clamp(min=1e-12)).clamp(0, 1)
        found.append((index[:, 0] + inner) / PER_UNIT - REACH)
    return torch.stack(found)


def _stations(height: Tensor) -> Tensor:
    """Stations between the ends of the energies (N,), drawn towards where showers are; increasing."""
    low, high = float(height.min()), float(height.max())
    if high - low < 1e-6:
        low, high = low - 0.5, high + 0.5
    steps = torch.linspace(0, 1, STATIONS, dtype=torch.float64)
    ordered = height.sort().values
    crowded = ordered[(steps * (len(ordered) - 1)).long()].clamp(low, high)
    return (low + (high - low) * steps + crowded) / 2


def _quantiles(values: Tensor, near: Tensor) -> Tensor:
    """Quantiles (S, K) on the grid of normals of values (N,) at each station, where few those of all; increasing."""
    if len(values) < 2:
        return torch.from_numpy(_GRID).expand(STATIONS, -1)
    order = values.argsort(stable=True)
    ordered, weights = values[order].numpy(), near[order].numpy()
    levels = 1 - normal_tail(torch.from_numpy(_GRID[_FITTED])).numpy()
    every = np.interp(levels, (np.arange(len(ordered)) + 0.5) / len(ordered), ordered)
    sums = weights.cumsum(0)
    tables = np.empty((STATIONS, len(levels)))
    for s in range(STATIONS):
        total = sums[-1, s]
        own = np.interp(levels * total, sums[:, s] - weights[:, s] / 2, ordered) if total > 0 else every
        beyond = total**2 / max(np.square(weights[:, s]).sum(), 1e-12) * np.minimum(levels, 1 - levels)
        trust = beyond / (beyond + _FEW)
        tables[s] = np.sort(trust * own + (1 - trust) * every)
    return torch.from_numpy(_extended(tables))


def _extended(fitted: NDArray[np.float64]) -> NDArray[np.float64]:
    """Fitted points (S, K') with those beyond, which continue the slope over a whole unit: (S, K)."""
    beyond = np.arange(1, PER_UNIT + 1) / PER_UNIT
    low, high = fitted[:, :1], fitted[:, -1:]
    below = low - beyond[::-1] * (fitted[:, PER_UNIT : PER_UNIT + 1] - low)
    above = high + beyond * (high - fitted[:, -PER_UNIT - 1 : -PER_UNIT])
    return np.concatenate([below, fitted, above], 1)


def _ridge(design: Tensor, values: Tensor, ridge: Tensor) -> Tensor:
    solution: Tensor = torch.linalg.solve(design.T @ design + torch.diag(ridge), design.T @ values)
    return solution


def _draw_hidden(
    normals: Tensor, ceiling: Tensor, empty: Tensor, near: Tensor, groups: Sequence[Tensor], generator: torch.Generator
) -> None:
    """Draw the normals of empty layers, below their ceilings, given all others; in place, all (N, D)."""
    uniform = torch.rand(normals.shape, generator=generator, dtype=torch.float64)
    alone = -inverse_tail(uniform * (1 - normal_tail(ceiling)))
    normals.copy_(torch.where(empty, torch.minimum(alone, ceiling), normals))
    size, unit = normals.shape[1], torch.eye(normals.shape[1], dtype=torch.float64)
    for _ in range(_ROUNDS if empty.any() else 0):
        # Correlations at each station, where few those of all.
        every = torch.nan_to_num(torch.corrcoef(normals.T))
        matrices = []
        for share in near.T:
            product = (normals * share[:, None]).T @ normals
            spread = product.diag().clamp(min=1e-12).sqrt()
            effective = share.sum() ** 2 / share.square().sum().clamp(min=1e-12)
            matrices.append(torch.lerp(every, product / spread / spread[:, None], effective / (effective + size)))
        correlations = 0.995 * torch.stack(matrices) + 0.005 * unit

        # A layer given all others is normal, with a precision and a mean from the inverse of the correlations.
        for group in groups:
            precision = torch.linalg.inv(torch.einsum("s,sij->ij", near[group].mean(0), correlations))
            for i in empty[group].any(0).nonzero()[:, 0].tolist():
                rows = group[empty[group, i]]
                own = precision[i, i]
                mean = normals[rows, i] - normals[rows] @ precision[i] / own
                top = ceiling[rows, i]
                mass = 1 - normal_tail((top - mean) * own.sqrt())
                uniform = torch.rand(len(rows), generator=generator, dtype=torch.float64)
                normals[rows, i] = torch.minimum(mean - inverse_tail(mass * uniform) / own.sqrt(), top)


def _order(correlations: Tensor) -> Tensor:
    """Variables so that each explains as much as possible of those after it; the total is the first.

    Args: correlations (D, D). Source: Cholesky decomposition with pivots, chosen by all variance explained.
    """
    left = torch.nan_to_num(correlations).clone()
    chosen = [0]
    while True:
        column = left[:, chosen[-1]].clone()
        left -= torch.outer(column, column) / column[chosen[-1]].clamp(min=1e-6)
        if len(chosen) == len(left):
            return torch.tensor(chosen)
        explained = left.square().sum(0) / left.diag().clamp(min=0.02)
        explained[chosen] = -1.0
        chosen.append(int(explained.argmax()))
