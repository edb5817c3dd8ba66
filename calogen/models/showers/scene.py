"""Showers as projected training sees them: those of the training data, and generated ones with their layer energies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, cast

import torch
from torch import Tensor, nn

from ...shards.samples import Samples
from ..refinement import Draft, Scene, Selection, ViewCritic
from .patterns import GROUPS, ShapeRefinement
from .transform import ShowerTransform
from .views import VIEWS, ShowerViews
from .voxels import Given

_ROWS = 1024  # showers at a time


class Shapes(Protocol):
    """What makes showers of given layer energies: the generator."""

    transform: ShowerTransform
    refinement: ShapeRefinement

    def normals(self, given: Given, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Random voxel normals (B, V) before refinement, and what to add to the standardised log shares, (B, V)."""

    def shaped(self, normals: Tensor, given: Given, apart: Tensor, seen: Tensor | None) -> Tensor:
        """Showers (B, V) in MeV, in their frame, of which the voxels ``seen`` have all energy; none: all voxels."""


class ShowerScene(Scene):
    """Shapes of showers at given layer energies, in their frame.

    Args:
        generator: A fitted one.
        samples: Reference showers, in physical units.
        views: How they are seen; none: standardised by these.
    """

    def __init__(self, generator: Shapes, samples: Samples, views: ShowerViews | None = None) -> None:
        self.generator, self.data = generator, generator.transform.prepared(samples)
        self.refinement = generator.refinement
        if views is None:
            given = self._given(slice(None))
            views = ShowerViews(generator.transform.window, given.features.shape[2])
            views.fit(self.refinement.group % GROUPS, self.data.showers, given)
        self.seen_by = views
        found = []
        for rows in torch.arange(len(self.data.showers)).split(_ROWS):
            given = self._given(rows)
            found.append((views(self.data.showers[rows], given), context_of(generator, given)))
        self.views, self.context = (torch.cat(parts) for parts in zip(*found, strict=True))

    def like(self, samples: Samples) -> ShowerScene:
        """Other showers with the same views."""
        return ShowerScene(self.generator, samples, self.seen_by)

    def selection(self, critics: Sequence[ViewCritic]) -> ShowerSelection:
        """The mean of critics of these views."""
        found = ShowerSelection(self.generator, len(critics))
        found.views.load_state_dict(self.seen_by.state_dict())
        for mine, critic in zip(found.critics, critics, strict=True):
            mine.load_state_dict(critic.state_dict())
        return found

    def draw(self, rows: Tensor, stream: torch.Generator) -> ShowerDraft:
        """Random showers with the layer energies and conditions of showers ``rows``."""
        given = self._given(rows)
        normals, apart = self.generator.normals(given, stream)
        return ShowerDraft(self, given, normals, apart, None if self.data.seen is None else self.data.seen[rows])

    def _given(self, rows: Tensor | slice) -> Given:
        data = self.data
        return self.generator.transform.given(data.energies[rows].float(), data.conditions[rows].float())


class ShowerDraft(Draft):
    """Showers whose voxel normals may still change.

    Args:
        scene: Where they belong.
        given: What their voxels depend on.
        normals: Of their voxels, (B, V), as the fit has them.
        apart: What is added to standardised log shares, (B, V).
        seen: Which voxels the read-out can have seen, (B, V); none: all.
    """

    def __init__(self, scene: ShowerScene, given: Given, normals: Tensor, apart: Tensor, seen: Tensor | None) -> None:
        self._scene, self._given, self._normals, self._apart, self._seen = scene, given, normals, apart, seen
        self.features = scene.generator.refinement.features(normals, given)
        self.context = context_of(scene.generator, given)

    def views(self, amplitudes: Tensor) -> Tensor:
        """Views (B, L, D) of the showers with patterns of these amplitudes, (B, L, A)."""
        generator = self._scene.generator
        normals = generator.refinement(self._normals, self._given, amplitudes)
        showers = generator.shaped(normals, self._given, self._apart, self._seen)
        return cast("Tensor", self._scene.seen_by(showers, self._given))


class ShowerSelection(Selection):
    """Critics of showers at given layer energies.

    Args:
        generator: Of the showers.
        critics: How many.
    """

    def __init__(self, generator: Shapes, critics: int) -> None:
        super().__init__()
        window, voxels = generator.transform.window, generator.transform.voxels
        self._of = (generator,)  # in a tuple, since its tensors are not this module's
        self.views = ShowerViews(window, voxels.products.shape[1])
        context = sum(voxels.drivers) + 2
        self.critics = nn.ModuleList(ViewCritic(len(window.layers), VIEWS, context) for _ in range(critics))

    def forward(self, samples: Tensor, conditions: Tensor) -> Tensor:
        """Log odds of being reference, (B,), of showers (B, V) in MeV with conditions (B, C)."""
        (generator,) = self._of
        showers, energies, _ = generator.transform.framed(samples, conditions)
        given = generator.transform.given(energies, conditions)
        views, context = self.views(showers, given), context_of(generator, given)
        return torch.stack([critic(views, context) for critic in self.critics]).mean(0)


def context_of(generator: Shapes, given: Given) -> Tensor:
    """What a critic is told of showers besides their views, (B, L, C)."""
    layer = given.features[..., generator.transform.voxels.places[0], None]
    drivers = given.drivers - generator.refinement.driver_means
    return torch.cat([drivers, layer, given.faint[..., None]], 2)
