"""Showers <-> latent normals.

Every layer energy and every voxel is expressed as the standard normal number with the same probability, given the
conditions and, for voxels, the energy of their layer. A network that outputs independent standard normals there already
makes showers with the right marginal distributions; all it has to learn is how they go together (the copula).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ...errors import ShardError
from ...families import Family, Motion
from ...shards.samples import Samples
from ...stages import stage
from ..conditions import scale_conditions
from .energies import LayerEnergies
from .frame import CROSSED, SIZE, Cells, ShowerFrame, frame_of
from .voxels import Given, Local, View, VoxelShares

_FEWEST = 16  # showers with energy: fewer are no distribution
_LINE_ROWS = 3000  # showers in which the line at the electron's mass is looked for
_FRAMED = 2048  # showers brought into their frame at a time


class Fitted(NamedTuple):
    """Training showers as the fit sees them, N of them with energy.

    Attributes:
        showers: (N, V) in the family's unit, float32; about their axes where there is a shower frame.
        energies: Of their layers, (N, L), float64.
        conditions: (N, C), in their units, float64.
        views: Their images under the family's symmetries: those that change the conditions in one way, each.
        seen: Which voxels the read-out can have seen, (N, V); none: all.
    """

    showers: Tensor
    energies: Tensor
    conditions: Tensor
    views: list[View]
    seen: Tensor | None


class ShowerTransform(nn.Module):
    """Showers to latent normals and back: layer energies first (:class:`LayerEnergies`), then how each is shared out.

    Where impact or angle are conditions, voxels are those of the shower frame (:class:`ShowerFrame`), if the family's
    layers allow one.

    Args:
        family: A calorimeter family.
        conditions: Names of the conditions, in the order of the columns given to the network.
        about_axis: Whether to use a shower frame where there is one.

    Attributes:
        remarks: What the log should say.

    Raises:
        ShardError: From :meth:`fit`, if the samples hold no energy.
    """

    def __init__(self, family: Family, conditions: Sequence[str], *, about_axis: bool = True) -> None:
        super().__init__()
        self.family, self.conditions = family, tuple(conditions)
        self.frame, self.remarks = frame_of(family, self.conditions) if about_axis else (None, ())
        # In the frame, layer energies depend on no impact and on no azimuth, and voxels on neither impact nor angle.
        known = [family.condition(name) for name in self.conditions]
        placing = ("impact", "angle") if self.frame else ()
        still = [i for i, c in enumerate(known) if c.role not in placing or c.behaviour == "still"]
        plain = [i for i, c in enumerate(known) if c.role not in placing]
        self.columns = self._of_energies, self._of_voxels = _chosen(still, len(known)), _chosen(plain, len(known))
        self.window = self.frame.window if self.frame else family
        self.energies = LayerEnergies(family, [self.conditions[i] for i in still])
        local = (SIZE, CROSSED, 4, 2) if self.frame else (0, 0, 0, 0)
        self.voxels = VoxelShares(self.window, [self.conditions[i] for i in plain], local)

    def layer_energies(self, showers: Tensor) -> Tensor:
        """Energy of each layer, (B, L), from showers (B, V) on the read-out; both in MeV."""
        return torch.stack([showers[:, part].sum(1) for part in self.family.layer_slices], 1)

    def energy_variables(self, energies: Tensor, conditions: Tensor) -> Tensor:
        """:meth:`LayerEnergies.variables`, (B, D), of layer energies (B, L) in MeV and all conditions (B, C)."""
        return self.energies.variables(energies, self.known_to_energies(conditions))

    def known_to_energies(self, conditions: Tensor) -> Tensor:
        """Conditions that layer energies depend on, of all (B, C)."""
        return _columns(conditions, self._of_energies)

    def scaled(self, conditions: Tensor) -> Tensor:
        """Conditions that layer energies depend on, (B, D), dimensionless, of all (B, C) in their units."""
        known = self.known_to_energies(conditions)
        return scale_conditions(self.family, self.energies.conditions, known)

    def generated_energies(self, normals: Tensor, conditions: Tensor) -> Tensor:
        """Layer energies (B, L) in MeV of normals (B, D) and conditions (B, C) in their units."""
        return self.energies.inverse(normals, self.known_to_energies(conditions))

    def given(self, energies: Tensor, conditions: Tensor) -> Given:
        """What voxels depend on: layer energies (B, L) in MeV and conditions (B, C) in their units."""
        plain = _columns(conditions, self._of_voxels)
        if self.frame is None:
            return self.voxels.given(energies, plain)
        cells = self.frame.cells(conditions, energies)
        return self.voxels.given(energies, plain, local_of(self.frame, cells))._replace(cells=cells)

    def made(self, normals: Tensor, given: Given, apart: Tensor | None = None) -> Tensor:
        """Showers (B, V) in MeV on the read-out from voxel normals (B, V_window); ``apart`` as for the voxels."""
        showers = self.voxels.inverse(normals, given, apart)
        if self.frame is None or given.cells is None:
            return showers
        found = self.frame.from_frame(showers, given.cells)[0]
        # What a near edge takes away may leave too little to be seen.
        return torch.where(found < self.family.threshold, 0.0, found)

    def inverse(self, energy_normals: Tensor, voxel_normals: Tensor, conditions: Tensor) -> Tensor:
        """Network space to showers.

        Args:
            energy_normals: Of the energy variables, (B, D).
            voxel_normals: Of the voxels, (B, V_window).
            conditions: (B, C), in their units (MeV for energies).

        Returns:
            Showers (B, V) in MeV, never negative.
        """
        given = self.given(self.generated_energies(energy_normals, conditions), conditions)
        return self.made(voxel_normals, given)

    def forward(self, showers: Tensor, conditions: Tensor) -> tuple[Tensor, Tensor]:
        """Showers to network space.

        Args:
            showers: (B, V) in MeV.
            conditions: (B, C), in their units.

        Returns:
            Latent normals of energies (B, D) and voxels (B, V_window). A voxel that is off is given the middle of the
            normals it may have: the largest one is :meth:`ceiling`.
        """
        framed, energies, _ = self.framed(showers, conditions)
        normals = self.energies(energies, self.known_to_energies(conditions))
        return normals, self.voxels(framed, self.given(energies, conditions))

    def ceiling(self, showers: Tensor, conditions: Tensor) -> Tensor:
        """The latent normal below which each voxel is off, (B, V_window), given the layer energies of ``showers``."""
        return self.voxels.ceiling(self.given(self.framed(showers, conditions)[1], conditions))

    def framed(self, showers: Tensor, conditions: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Showers (B, V_window) in their frame, their layer energies (B, L), and the voxels that can have been seen."""
        energies = self.layer_energies(showers)
        if self.frame is None:
            return showers, energies, None
        cells = self.frame.cells(conditions, energies)
        framed, _ = self.frame.to_frame(showers, cells)
        return framed, self.frame.energies(framed, self.window), self.frame.inside(cells)

    # --- fit ----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def fit(self, samples: Samples) -> Fitted:
        """Fit everything to training samples and their images.

        Args:
            samples: Showers in MeV with the conditions the transform was made for.

        Raises:
            ShardError: If fewer than 16 showers have energy.
        """
        if self.frame is not None:
            stage("fitting the axes of showers")
            self.frame.fit(*_with_energy(samples, self.conditions))
        stage("fitting layer energies")
        fitted = self.prepared(samples)
        self.fit_energies(fitted)
        self.voxels.double().fit(fitted.showers, fitted.energies, fitted.views, fitted.seen)
        self.voxels.float()
        rows = torch.arange(0, len(fitted.showers), max(1, len(fitted.showers) // _LINE_ROWS))
        given = self.given(fitted.energies[rows].float(), fitted.conditions[rows].float())
        self.voxels.fit_line(fitted.showers[rows], given)
        return fitted

    def fit_energies(self, fitted: Fitted) -> None:
        """Fit layer energies alone."""
        self.energies.fit(fitted.energies, self.known_to_energies(fitted.conditions))

    def prepared(self, samples: Samples) -> Fitted:
        """Training showers with energy, in their frame and with their images."""
        (showers, conditions), seen = _with_energy(samples, self.conditions), None
        if self.frame is not None:
            blocks = zip(showers.split(_FRAMED), conditions.float().split(_FRAMED), strict=True)
            parts = [self.framed(*block) for block in blocks]
            showers = torch.cat([part[0] for part in parts])
            seen = torch.cat([part[2] for part in parts if part[2] is not None])
        energies = torch.stack([showers[:, part].sum(1, dtype=torch.float64) for part in self.window.layer_slices], 1)
        return Fitted(showers, energies, conditions, self._views(energies, conditions), seen)

    def _views(self, energies: Tensor, conditions: Tensor) -> list[View]:
        """Images of training showers, those together that change the conditions alike; first, those that do not."""
        window = self.window.with_symmetries(self.family.symmetries)
        alike: dict[bytes, tuple[Motion, list[Tensor]]] = {}
        for image, mine in zip(self.family.images, window.images, strict=True):
            motion = self.family.motion(image, self.conditions)
            if motion is not None:
                key = np.round(np.concatenate([motion.linear.ravel(), motion.offset]), 9).tobytes()
                alike.setdefault(key, (motion, []))[1].append(torch.from_numpy(mine.order))
        columns = conditions.numpy()
        return [self._view(o, energies, torch.from_numpy(m(columns)).double()) for m, o in alike.values()]

    def _view(self, orders: list[Tensor], energies: Tensor, conditions: Tensor) -> View:
        local = None
        if self.frame is not None:
            cells = self.frame.cells(conditions.float(), energies.float())
            local = Local(*(part.double() for part in local_of(self.frame, cells)))
        return View(torch.stack(orders), _columns(conditions, self._of_voxels), local)


def local_of(frame: ShowerFrame, cells: Cells) -> Local:
    """Where in the cells axes are, for voxels."""
    return Local(frame.features(cells), *frame.drivers(cells))


def _chosen(columns: list[int], count: int) -> list[int] | None:
    """Which columns are taken of so many; none: all."""
    return None if len(columns) == count else columns


def _columns(conditions: Tensor, chosen: list[int] | None) -> Tensor:
    return conditions if chosen is None else conditions[:, chosen]


def _with_energy(samples: Samples, conditions: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Showers with energy: (N, V), float32, and their conditions (N, C), float64."""
    values, columns = samples.values, samples.conditions.array(conditions)
    rows = values.any(1)
    if rows.sum() < _FEWEST:
        raise ShardError(
            "too few showers to fit a transform",
            expected=f"at least {_FEWEST} showers with energy",
            found=int(rows.sum()),
            hint="add training data",
        )
    if not rows.all():
        values, columns = values[rows], columns[rows]
    return torch.from_numpy(values), torch.from_numpy(columns).double()
