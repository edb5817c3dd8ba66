"""What projected training can change about a generator, and what it looks at.

A change is a sum of patterns in a sample's latent normals whose amplitudes are linear in features of the sample. So the
coefficients follow from linear least squares, and those of several rounds add up: they cost no more than one.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from ..shards.samples import Samples

_JOINT = 140  # views of a sample up to which a critic takes all of them at once
_HIDDEN, _HIDDEN_OF_BLOCKS = (128, 128), (64, 64)  # widths of the hidden layers
_FLOOR = 0.02  # of the variance of a view, below which it is not made larger
_LABEL = 8  # numbers that tell blocks apart where it takes them one by one


class Refinement(nn.Module):
    """Coefficients of the patterns in each of a sample's blocks (layers of a shower).

    Args:
        blocks: L.
        used: Which of the features each pattern's amplitude may depend on, (A, F) bool.

    Attributes:
        active: Whether it changes anything.
    """

    coefficients: Tensor  # (L, A, F)
    used: Tensor  # (A, F)

    def __init__(self, blocks: int, used: Tensor) -> None:
        super().__init__()
        self.register_buffer("coefficients", torch.zeros(blocks, *used.shape))
        self.register_buffer("used", used, persistent=False)
        self.active = False
        self.register_load_state_dict_post_hook(_activated)  # type: ignore[no-untyped-call]

    def add(self, step: Tensor) -> None:
        """Add to the coefficients, (L, A, F)."""
        self.coefficients += step
        self.active = bool(self.coefficients.any())

    def amplitudes(self, features: Tensor, step: Tensor | None = None) -> Tensor:
        """Of the patterns, (B, L, A), for features (B, L, F); with a step added to the coefficients, (L, A, F)."""
        coefficients = self.coefficients if step is None else self.coefficients + step
        return torch.einsum("blf,laf->bla", features, coefficients)


def _activated(refinement: Refinement, _: object) -> None:
    tensor = refinement.coefficients
    refinement.active = not tensor.is_meta and bool(tensor.any())


class Draft(ABC):
    """Generated samples whose random numbers are drawn and whose patterns may still change.

    Attributes:
        features: (B, L, F), dimensionless.
        context: What a critic is told besides the views, (B, L, C), of order one.
    """

    features: Tensor
    context: Tensor

    @abstractmethod
    def views(self, amplitudes: Tensor) -> Tensor:
        """Views (B, L, D) of the samples with patterns of these amplitudes, (B, L, A); differentiable."""

    def slopes(self, amplitudes: Tensor) -> tuple[Tensor, Tensor]:
        """Those views, and how they change with the amplitudes of their block, (B, L, D, A)."""
        amplitudes = amplitudes.detach().requires_grad_()
        views = self.views(amplitudes)
        # Views are of their own block (two look at the next one, too), so one pass backwards serves all blocks.
        passes = (torch.autograd.grad(view.sum(), amplitudes, retain_graph=True)[0] for view in views.unbind(2))
        return views.detach(), torch.stack(list(passes), 2)


def without_refinement(module: nn.Module, state: dict[str, Tensor], prefix: str, *_: object) -> None:
    """Take a generator's refinement as it is where a state, of before there was one, has none.

    A hook for :meth:`torch.nn.Module.register_load_state_dict_pre_hook`.
    """
    own = module.get_submodule("refinement").state_dict(prefix=f"{prefix}refinement.")
    if not own.keys() & state.keys():
        state.update(own)


def whitening(values: Tensor) -> Tensor:
    """The symmetric matrix (D, D) that makes values (N, D) with mean 0 uncorrelated, of variance 1."""
    variances, axes = torch.linalg.eigh(values.T.double() @ values.double() / max(1, len(values)))
    found: Tensor = axes @ torch.diag((variances.clamp(min=0) + _FLOOR).rsqrt()) @ axes.T
    return found.float()


class Scene(ABC):
    """Reference samples as critics see them, and generated ones at the same conditions.

    Views are numbers that physicists look at, standardised given the conditions and uncorrelated within each block.

    Attributes:
        name: What is seen, for the log; empty: the samples.
        refinement: What can be changed about it.
        views: Of the reference samples, (N, L, D), dimensionless, of order one.
        context: What a critic is told besides, (N, L, C), of order one.
    """

    name: str = ""
    refinement: Refinement
    views: Tensor
    context: Tensor

    def __len__(self) -> int:
        return len(self.views)

    @abstractmethod
    def like(self, samples: Samples) -> Scene:
        """Other reference samples, in physical units, with the same views."""

    def selection(self, critics: Sequence[ViewCritic]) -> Selection | None:  # noqa: ARG002
        """The mean of critics of these views, to choose samples by; none: candidates do not differ in them."""
        return None

    @abstractmethod
    def draw(self, rows: Tensor, stream: torch.Generator) -> Draft:
        """Random samples with the conditions of the reference samples ``rows``, (B,)."""


class Selection(nn.Module, ABC):
    """Critics that choose among candidates for a sample."""

    @abstractmethod
    def forward(self, samples: Tensor, conditions: Tensor) -> Tensor:
        """Log odds of being reference, (B,), of samples (B, ...) with conditions (B, C), in physical units."""


class ViewCritic(nn.Module):
    """Values of views: all together where they are few, else block by block, each with the next one, added up.

    Args:
        blocks: L.
        views: Of a block (D).
        context: Numbers that it is told besides, of a block (C).
    """

    def __init__(self, blocks: int, views: int, context: int) -> None:
        super().__init__()
        self.joint = blocks * views <= _JOINT
        self.label = nn.Parameter(0.3 * torch.randn(0 if self.joint else blocks, _LABEL))
        size = blocks * (views + context) if self.joint else 2 * views + context + _LABEL
        hidden = _HIDDEN if self.joint else _HIDDEN_OF_BLOCKS
        smooth = [part for n, m in pairwise((size, *hidden)) for part in (nn.Linear(n, m), nn.SiLU())]
        self.network = nn.Sequential(*smooth, nn.Linear(hidden[-1], 1))  # smooth, since its gradient is what counts

    def forward(self, views: Tensor, context: Tensor) -> Tensor:
        """Values (B,), larger for reference, of views (B, L, D) and their context (B, L, C)."""
        if self.joint:
            return self.network(torch.cat([views.flatten(1), context.flatten(1)], 1))[:, 0]  # type: ignore[no-any-return]
        following = nn.functional.pad(views[:, 1:], (0, 0, 0, 1))
        label = self.label.expand(len(views), -1, -1)
        return self.network(torch.cat([views, following, context, label], 2))[..., 0].sum(1)  # type: ignore[no-any-return]
