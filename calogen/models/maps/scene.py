"""Maps as projected training sees them: those of the training data, and generated ones of the same cosmologies."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from ...shards.samples import Samples
from ..refinement import Draft, Scene, Selection, ViewCritic
from .distributions import DensityNormals, features
from .patterns import MapRefinement
from .views import MapViews

_ROWS = 64  # maps at a time


class Normals(Protocol):
    """What makes latent normals of maps: the generator."""

    conditions: tuple[str, ...]
    latent_size: int
    transform: DensityNormals
    refinement: MapRefinement

    def scaled(self, conditions: Tensor) -> Tensor:
        """Scaled conditions (B, C), of conditions in their units."""

    def normals(self, planes: Tensor, scaled: Tensor) -> Tensor:
        """Latent normals (B, H, W) before refinement, of noise (B, P, H, W)."""

    def planes(self, latent: Tensor) -> Tensor:
        """Noise as planes (B, P, H, W), from (B, Z); the last one is the texture's."""


class MapScene(Scene):
    """Maps of given conditions.

    Args:
        generator: A fitted one.
        samples: Reference maps, 1 + delta.
        views: How they are seen; none: standardised by these.
    """

    def __init__(self, generator: Normals, samples: Samples, views: MapViews | None = None) -> None:
        self.generator, self.refinement = generator, generator.refinement
        maps = torch.from_numpy(samples.values)
        self.scaled = generator.scaled(torch.from_numpy(samples.conditions.array(generator.conditions)))
        terms = features(self.scaled)
        if views is None:
            views = MapViews(maps.shape[1], maps.shape[2], terms.shape[1])
            views.fit(maps, terms)
        self.seen_by = views
        self.views, self.context = views(maps, terms)[:, None], self.scaled[:, None]

    def like(self, samples: Samples) -> MapScene:
        """Other maps with the same views."""
        return MapScene(self.generator, samples, self.seen_by)

    def selection(self, critics: Sequence[ViewCritic]) -> MapSelection:
        """The mean of critics of these views."""
        found = MapSelection(self.generator, self.seen_by, len(critics))
        for mine, critic in zip(found.critics, critics, strict=True):
            mine.load_state_dict(critic.state_dict())
        return found

    def draw(self, rows: Tensor, stream: torch.Generator) -> MapDraft:
        """Random maps with the conditions of maps ``rows``."""
        latent = torch.randn(len(rows), self.generator.latent_size, generator=stream)
        return MapDraft(self, self.generator.planes(latent), self.scaled[rows])


class MapDraft(Draft):
    """Maps whose latent normals may still change.

    Args:
        scene: Where they belong.
        planes: Their noise, (B, P, H, W).
        scaled: Their scaled conditions, (B, C).
    """

    def __init__(self, scene: MapScene, planes: Tensor, scaled: Tensor) -> None:
        self._scene, self._terms = scene, features(scaled)
        parts = zip(planes.split(_ROWS), scaled.split(_ROWS), strict=True)
        self._normals = torch.cat([scene.generator.normals(*part) for part in parts])
        self._noise = planes[:, -1].clone()
        self.features = scene.generator.refinement.features(self._normals, scaled)
        self.context = scaled[:, None]

    def views(self, amplitudes: Tensor) -> Tensor:
        """Views (B, 1, D) of the maps with patterns of these amplitudes, (B, 1, A)."""
        return torch.cat([self._scene.seen_by(*part) for part in self._maps(amplitudes)])[:, None]

    def _maps(self, amplitudes: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """A few maps at a time, and features of their conditions."""
        generator = self._scene.generator
        for normals, noise, terms, some in self._parts(amplitudes):
            yield generator.transform.inverse(generator.refinement(normals, noise, some), terms), terms

    def slopes(self, amplitudes: Tensor) -> tuple[Tensor, Tensor]:
        """Views (B, 1, D) and their slopes, (B, 1, D, A)."""
        views, slopes = self._chained(amplitudes, standard=True)
        return views[:, None], slopes[:, None]

    def statistics(self, amplitudes: Tensor) -> Tensor:
        """What views are made of, in standard deviations, (B, D)."""
        return torch.cat([self._scene.seen_by.rest(*part) for part in self._maps(amplitudes)])

    def statistic_slopes(self, amplitudes: Tensor) -> Tensor:
        """Slopes of these, (B, D, A)."""
        return self._chained(amplitudes, standard=False)[1]

    def _chained(self, amplitudes: Tensor, *, standard: bool) -> tuple[Tensor, Tensor]:
        # Every view depends on the same pixels, and every amplitude moves the same pixels: both halves of the chain are
        # computed once and multiplied, instead of one pass through everything for each view.
        generator, found = self._scene.generator, []
        for normals, noise, terms, some in self._parts(amplitudes):
            changed = generator.refinement(normals, noise, some).detach().requires_grad_()
            maps = generator.transform.inverse(changed, terms)
            (steep,) = torch.autograd.grad(maps.sum(), changed)
            patterns = generator.refinement.patterns(normals, noise, some.detach()) * steep[:, None]
            views, down = self._scene.seen_by.slopes(maps, terms, standard=standard)
            found.append((views, down.flatten(2) @ patterns.flatten(2).mT))
        views, slopes = (torch.cat(parts) for parts in zip(*found, strict=True))
        return views, slopes

    def _parts(self, amplitudes: Tensor) -> zip[tuple[Tensor, ...]]:
        """A few maps at a time: normals, noise, features of the conditions, amplitudes."""
        parts = (self._normals, self._noise, self._terms, amplitudes)
        return zip(*(part.split(_ROWS) for part in parts), strict=True)


class MapSelection(Selection):
    """Critics of maps of given conditions.

    Args:
        generator: Of the maps.
        views: What critics see.
        critics: How many.
    """

    def __init__(self, generator: Normals, views: MapViews, critics: int) -> None:
        super().__init__()
        context = generator.scaled(torch.zeros(1, len(generator.conditions))).shape[1]
        self._of = (generator,)  # in a tuple, since its tensors are not this module's
        self.views = views
        self.critics = nn.ModuleList(ViewCritic(1, views.size, context) for _ in range(critics))

    def forward(self, samples: Tensor, conditions: Tensor) -> Tensor:
        """Log odds of being reference, (B,), of maps (B, H, W), 1 + delta, with conditions (B, C)."""
        scaled = self._of[0].scaled(conditions)
        views = self.views(samples, features(scaled))[:, None]
        return torch.stack([critic(views, scaled[:, None]) for critic in self.critics]).mean(0)
