"""Layer energies as projected training sees them, and what it can change about them."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn

from ...shards.samples import Samples
from ..refinement import Draft, Refinement, Scene, whitening
from .energies import LEADING, MOST_LEADING, MOST_NORMAL, STATIONS, LayerEnergies
from .transform import ShowerTransform
from .views import limited

_FARTHEST = 6.0  # standard deviations
_PAIRS = LEADING * (LEADING + 1) // 2


class Energies(Protocol):
    """What makes layer energies: the generator."""

    transform: ShowerTransform

    def energy_normals(self, normals: Tensor, conditions: Tensor) -> Tensor:
        """Normals (B, D) that layer energies are made of, from standard ones and all conditions (B, C)."""


class EnergyRefinement(Refinement):
    """Changes of the fitted coefficients by which layer energies depend on each other.

    Those of m and log s of :class:`LayerEnergies`, for each of its D variables: how they change with the incident
    energy, with the normals before theirs, and with products of the first three. A change is part of the fit as soon
    as it is made, so it costs nothing afterwards.

    Args:
        energies: What is changed.
    """

    def __init__(self, energies: LayerEnergies) -> None:
        size, leading = energies.size, min(LEADING, energies.size)
        before = torch.ones(size, size, dtype=torch.bool).tril(-1)
        pairs = torch.zeros(size, _PAIRS, dtype=torch.bool)
        first, second = torch.triu_indices(LEADING, LEADING)
        for i in range(size):
            pairs[i] = (first < i) & (second < i)
        always, few = torch.ones(size, STATIONS, dtype=torch.bool), before.clone()
        few[:, leading:] = False
        mean, log_scale = torch.cat([always, before, pairs], 1), torch.cat([always, few, pairs & False], 1)
        super().__init__(1, torch.cat([mean, log_scale]))
        self._of = (energies,)  # in a tuple, since its tensors are not this module's

    def add(self, step: Tensor) -> None:
        """Change the fit by coefficients (1, 2 D, F)."""
        (energies,) = self._of
        size = energies.size
        mean, log_scale = step[0].split(size)
        near, normals, pairs = mean.split([STATIONS, size, _PAIRS], 1)
        energies.linear += normals
        energies.bent[0, :, :STATIONS] += near
        energies.bent[0, :, STATIONS + LEADING : STATIONS + LEADING + _PAIRS] += pairs
        near, normals, _ = log_scale.split([STATIONS, size, _PAIRS], 1)
        leading = min(LEADING, size)
        energies.bent[1, :, :STATIONS] += near
        energies.bent[1, :, STATIONS : STATIONS + leading] += normals[:, :leading]


class EnergyScene(Scene):
    """Layer energies of showers.

    Views are the logarithms of the total and of the layers' shares, standardised as the fit has them and uncorrelated.

    Args:
        generator: A fitted one.
        samples: Reference showers, in physical units.
        seen_by: How they are seen; none: as these are standardised.
    """

    name = "energies"

    def __init__(self, generator: Energies, samples: Samples, seen_by: _EnergyViews | None = None) -> None:
        self.generator, transform = generator, generator.transform
        self.refinement = EnergyRefinement(transform.energies)
        data = transform.prepared(samples)
        self._all = data.conditions.float()
        self._known = transform.known_to_energies(self._all)
        energies = data.energies.float()
        self.seen_by = seen_by or _EnergyViews(transform.energies, energies, self._known)
        self.views = self.seen_by(energies, self._known)
        self.context = self._context(self._known)

    def like(self, samples: Samples) -> EnergyScene:
        """Other showers with the same views."""
        return EnergyScene(self.generator, samples, self.seen_by)

    def draw(self, rows: Tensor, stream: torch.Generator) -> EnergyDraft:
        """Random layer energies with the conditions of showers ``rows``."""
        size = self.generator.transform.energies.size
        normals = torch.randn(len(rows), size, generator=stream)
        return EnergyDraft(self, self.generator.energy_normals(normals, self._all[rows]), self._known[rows])

    def _context(self, known: Tensor) -> Tensor:
        energies = self.generator.transform.energies
        return torch.cat([energies.near(known), energies.scaled_others(known)], 1)[:, None]


class EnergyDraft(Draft):
    """Layer energies whose dependence on each other may still change.

    Args:
        scene: Where they belong.
        normals: What they are made of, (B, D).
        known: The conditions that they depend on, (B, C).
    """

    def __init__(self, scene: EnergyScene, normals: Tensor, known: Tensor) -> None:
        self._scene, self._normals, self._known = scene, normals, known
        self.context = scene._context(known)
        near, inner = self.context[:, 0, :STATIONS], normals.clamp(-MOST_NORMAL, MOST_NORMAL)
        leading = inner[:, :LEADING].clamp(-MOST_LEADING, MOST_LEADING)
        leading = nn.functional.pad(leading, (0, LEADING - leading.shape[1]))
        first, second = torch.triu_indices(LEADING, LEADING)
        self.features = torch.cat([near, inner, leading[:, first] * leading[:, second]], 1)[:, None]

    def views(self, amplitudes: Tensor) -> Tensor:
        """Views (B, 1, D) with these changes of m and log s, (B, 1, 2 D)."""
        energies = self._scene.generator.transform.energies
        change = amplitudes[:, 0].T.unflatten(0, (2, -1))
        return self._scene.seen_by(energies.inverse(self._normals, self._known, change), self._known)


class _EnergyViews:
    """Standardised variables of layer energies, made uncorrelated by those of training showers.

    Args:
        energies: The fit; what changes later is copied.
        showers: Layer energies, (N, L).
        known: Conditions, (N, C).
    """

    def __init__(self, energies: LayerEnergies, showers: Tensor, known: Tensor) -> None:
        self._fit = energies
        values = energies.standardised(showers, known).clamp(-_FARTHEST, _FARTHEST)
        self._mean = values.mean(0)
        self._scale = values.std(0).clamp(min=1e-3)
        self._whitening = whitening((values - self._mean) / self._scale)

    def __call__(self, showers: Tensor, known: Tensor) -> Tensor:
        """Views (B, 1, D) of layer energies (B, L) in MeV."""
        values = self._fit.standardised(showers, known).clamp(-_FARTHEST, _FARTHEST)
        return limited((values - self._mean) / self._scale @ self._whitening)[:, None]
