"""Correlations of voxels: a linear factor model of standard normals, of some of which only a ceiling is known.

Plain statistics on tensors; no physics and no units.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ...stages import counted
from .fitting import inverse_tail, normal_tail

LEAST_NOISE = 0.02  # variance of a voxel's own beside common factors
_ROUNDS = 4  # of drawing what is hidden and finding the factors
_UPDATES = 6  # of the voxels' own variances in a round
_SPARE = 16  # axes followed beside those that are kept
_RESOLVED = 1e-2  # of the strongest factor in a layer: weaker ones have no slopes there
_FAR = 10.0  # normals beyond which none are
_DENSE = 2500  # voxels up to which the matrix of their correlations is computed
_NUMBERS = 3_000_000  # normals worked on at a time
_IMAGED = 200_000_000  # normals of all images looked at in one pass


def fit_factors(
    normals: Tensor,
    ceiling: Tensor,
    views: Sequence[tuple[Tensor, Tensor]],
    layers: Sequence[slice],
    shared: int,
    rank: int,
    drifting: int,
    weights: Tensor,
    core: Tensor,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor, Tensor]:
    """Factor loadings of standard normals, changing linearly with some variables of each row.

    The correlation matrix is made equal to that of the data off its diagonal: principal factors (Harman 1960). Hidden
    normals are drawn from what the factors of the round before leave open (truncated normals), in turn with that.

    Args:
        normals: (N, V) float32; where hidden they are overwritten.
        ceiling: Upper bounds of hidden normals, (N, V) float32; infinite where the normal is known.
        views: Orders of the voxels, (I, V), under which correlations are the same, and the variables (N, L, J) that the
            loadings of each layer change with in these images: of order one, mean about 0, and of little correlation.
        layers: The voxels of each layer, L of them.
        shared: How many of these variables, the first, are the same for all layers.
        rank: Number of factors K, at most min(N, V) - 1.
        drifting: How many of the first factors have loadings that change (D).
        weights: How much the correlations of each voxel count, (V,).
        core: Voxels whose own noise is correlated, too: L groups of M each, (L, M), every group in all of its images.
        generator: Source of the drawn values.

    Returns:
        Loadings (V, K) where all drivers are 0, their slopes (J, V, D), and how independent noise is mixed within each
        group of the core, (L, M, M).
    """
    count, voxels = normals.shape
    rank, kinds = min(rank, count - 1, voxels - 1), views[0][1].shape[2]
    if rank < 1:
        mixing = torch.eye(core.shape[1]).expand(*core.shape, -1)
        return normals.new_zeros(voxels, 0), normals.new_zeros(kinds, voxels, 0), mixing
    drifting = min(drifting, rank)
    images = [(order, drivers) for orders, drivers in views for order in orders]
    copies = max(1, min(len(images), _IMAGED // normals.numel()))
    chunks = [
        (rows, [images[i] for i in torch.randperm(len(images), generator=generator)[:copies]])
        for rows in torch.arange(count).split(max(1, _NUMBERS // voxels))
    ]

    loadings, noise = normals.new_zeros(voxels, rank), normals.new_full((voxels, 1), 0.5)
    mixing = torch.eye(core.shape[1]).repeat(len(core), 1, 1)
    axes = torch.randn(voxels, min(voxels, rank + _SPARE), generator=generator, dtype=normals.dtype)
    for _ in counted("fitting correlations of voxels", range(_ROUNDS), _ROUNDS):
        for rows, _ in chunks:
            normals[rows] = _drawn(normals[rows], ceiling[rows], loadings, core, mixing, generator)
        correlations = _second_moments(normals, chunks)
        for _ in range(_UPDATES):
            # Subspace iteration towards the leading axes of the weighted matrix less the voxels' own variance.
            axes = torch.linalg.qr(axes).Q
            scaled = weights[:, None] * axes
            image = weights[:, None] * (correlations(scaled) - noise * scaled)
            values, turn = torch.linalg.eigh((axes.T @ image + image.T @ axes) / 2)
            leading, values = (axes @ turn)[:, -rank:].flip(1), values[-rank:].flip(0)
            loadings = _bounded(leading * values.clamp(min=0).sqrt() / weights[:, None])
            noise = own_variance(loadings)[:, None]
            axes = image
        mixing = _mixing(normals, chunks, loadings, core)

    # The slope X of the loadings L with a driver solves L X^T + X L^T = C, C being the slope of the correlations; its
    # diagonal is 0, since normals are standard at every value of the driver.
    slopes = normals.new_zeros(kinds, voxels, drifting)
    everything = [slice(0, voxels)]
    for kind, slope in enumerate(slopes):
        for number, part in enumerate(everything if kind < shared else layers):
            here = loadings[part, :drifting]
            product, squares = _slope(normals, chunks, (number, kind), part, here)
            if squares > 0:
                inverse = torch.linalg.pinv((here.T @ here).double(), rtol=_RESOLVED, hermitian=True).to(here.dtype)
                product /= squares
                turned = here @ (inverse @ (here.T @ product) @ inverse)
                slope[part] = product @ inverse - turned / 2
    return loadings, slopes, mixing


def _mixing(normals: Tensor, chunks: _Chunks, loadings: Tensor, core: Tensor) -> Tensor:
    """Roots (L, M, M) of the correlations of the voxels' own noise within groups (L, M): what factors leave over."""
    groups, size = core.shape
    left, share = normals.new_zeros(groups, size, size), 1 / sum(len(rows) * len(images) for rows, images in chunks)
    for rows, images in chunks:
        for order, _ in images:
            here = normals[rows][:, order[core]]
            left += torch.einsum("nlm,nlk->lmk", here, here) * share
    noise = own_variance(loadings)[core].sqrt()
    left -= loadings[core] @ loadings[core].mT
    left /= noise[:, :, None] * noise[:, None, :]
    left.diagonal(dim1=1, dim2=2).fill_(1.0)
    # A sample's matrix need not be that of any noise: negative variances are put to a little above 0.
    values, axes = torch.linalg.eigh(left)
    roots = axes * values.clamp(min=LEAST_NOISE).sqrt()[:, None, :]
    mixing: Tensor = roots / roots.square().sum(2, keepdim=True).sqrt()
    return mixing


def own_variance(loadings: Tensor) -> Tensor:
    """Variance of each voxel's own noise beside its factors, (V,); loadings (V, K)."""
    return (1 - loadings.square().sum(1)).clamp(min=LEAST_NOISE)


_Chunks = Sequence[tuple[Tensor, list[tuple[Tensor, Tensor]]]]  # rows, and in which images they are looked at


def _second_moments(normals: Tensor, chunks: _Chunks) -> Callable[[Tensor], Tensor]:
    """The product of the correlation matrix of all images with some axes (V, A)."""
    voxels, share = normals.shape[1], 1 / sum(len(rows) * len(images) for rows, images in chunks)
    if voxels <= _DENSE:  # the matrix itself is small
        matrix = normals.new_zeros(voxels, voxels)
        for rows, images in chunks:
            moments = normals[rows].T @ normals[rows]
            for order, _ in images:
                matrix += moments[order][:, order] * share
        return lambda axes: matrix @ axes

    def product(axes: Tensor) -> Tensor:
        total = torch.zeros_like(axes)
        for rows, images in chunks:
            for order, _ in images:
                here = torch.empty_like(axes)
                here[order] = axes
                total += (normals[rows].T @ (normals[rows] @ here))[order] * share
        return total

    return product


def _slope(
    normals: Tensor, chunks: _Chunks, driver: tuple[int, int], part: slice, axes: Tensor
) -> tuple[Tensor, float]:
    """Second moments of some voxels weighted with a driver, without their diagonal, times some axes (V', A).

    And the sum of squares of the driver. Args: driver by its layer and its place.
    """
    total, diagonal, squares = torch.zeros_like(axes), axes.new_zeros(len(axes), 1), 0.0
    for rows, images in chunks:
        for order, drivers in images:
            weight = drivers[rows, driver[0], driver[1]]
            seen = normals[rows][:, order[part]]
            weighted = seen * weight[:, None]
            total += weighted.T @ (seen @ axes)
            diagonal += (weighted * seen).sum(0)[:, None]
            squares += float(weight.square().sum())
    return total - diagonal * axes, squares


def _drawn(
    normals: Tensor, ceiling: Tensor, loadings: Tensor, core: Tensor, mixing: Tensor, generator: torch.Generator
) -> Tensor:
    """Normals (N, V) with hidden ones drawn anew: factors given all, then what is hidden given factors and core."""
    hidden, noise = torch.isfinite(ceiling), own_variance(loadings)
    if not loadings.any():  # nothing is known yet, not even values of hidden ones to start from
        mean, noise = torch.zeros_like(normals), torch.ones_like(noise)
        normals = torch.where(hidden, 0.0, normals)
    else:
        precision = torch.eye(loadings.shape[1], dtype=loadings.dtype) + (loadings.T / noise) @ loadings
        root = torch.linalg.cholesky(torch.linalg.inv(precision))
        centre = (normals / noise) @ loadings @ (root @ root.T)
        draw = torch.randn(centre.shape, generator=generator, dtype=centre.dtype)
        mean = (centre + draw @ root.T) @ loadings.T
    spread = noise.sqrt()
    found = normals.clone()
    found[hidden] = _below(mean[hidden], spread.expand_as(normals)[hidden], ceiling[hidden], generator)

    # Of the core, one voxel of every group after the other, given the rest of its group.
    inverse = torch.linalg.inv(mixing @ mixing.mT)
    own = (found[:, core] - mean[:, core]) / spread[core]
    for m, voxels in enumerate(core.T):
        others = (own * inverse[:, m]).sum(2) - own[..., m] * inverse[:, m, m]
        middle, width = (
            -others / inverse[:, m, m] * spread[voxels] + mean[:, voxels],
            spread[voxels] / inverse[:, m, m].sqrt(),
        )
        rows = hidden[:, voxels]
        found[:, voxels] = torch.where(
            rows,
            _below(middle, width.expand_as(middle), ceiling[:, voxels].clamp(max=_FAR), generator),
            found[:, voxels],
        )
        own[..., m] = (found[:, voxels] - mean[:, voxels]) / spread[voxels]
    return found


def _below(mean: Tensor, spread: Tensor, top: Tensor, generator: torch.Generator) -> Tensor:
    """Truncated normals: mean + spread * noise, given that it stays below the top; all of one shape."""
    mass = 1 - normal_tail((top - mean) / spread)
    uniform = torch.rand(mean.shape, generator=generator, dtype=mean.dtype)
    return torch.minimum(mean - spread * inverse_tail((mass * uniform).clamp(min=1e-9)), top)


def _bounded(loadings: Tensor) -> Tensor:
    """Loadings whose squares add up to at most all but the least variance of a voxel's own."""
    return loadings / (loadings.square().sum(1, keepdim=True) / (1 - LEAST_NOISE)).clamp(min=1.0).sqrt()
