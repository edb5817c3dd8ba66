"""Factors: the correlations that normals were made with are found again, also where only a ceiling is known."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from calogen.models.showers.factors import LEAST_NOISE, fit_factors, own_variance

NO_CORE = torch.zeros(1, 1, dtype=torch.long)
Views = Sequence[tuple[Tensor, Tensor]]


def drawn(loadings: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Standard normals (N, V) with the correlations of loadings (V, K), or of (N, V, K) that change."""
    factors = torch.randn(count, 1, loadings.shape[-1], generator=generator)
    own = (1 - loadings.square().sum(-1)).sqrt() * torch.randn(count, loadings.shape[-2], generator=generator)
    return (factors * loadings).sum(2) + own


def bounded(voxels: int, rank: int, generator: torch.Generator) -> Tensor:
    loadings = torch.randn(voxels, rank, generator=generator) * 0.5
    return loadings / loadings.square().sum(1, keepdim=True).clamp(min=1.2).sqrt()


def found(
    normals: Tensor,
    rank: int,
    generator: torch.Generator,
    *,
    cut: float = -math.inf,
    views: Views | None = None,
    layers: Sequence[slice] | None = None,
    shared: int = 0,
    drifting: int = 0,
    core: Tensor = NO_CORE,
) -> tuple[Tensor, Tensor, Tensor]:
    """What is fitted to normals of which those below a cut are hidden."""
    count, voxels = normals.shape
    hidden = normals < cut
    ceiling = torch.where(hidden, cut, math.inf)
    known = torch.where(hidden, 1e6, normals)  # must not be looked at
    still = [(torch.arange(voxels)[None], torch.zeros(count, 1, 0))]
    layers = [slice(0, voxels)] if layers is None else layers
    weights = torch.ones(voxels)
    return fit_factors(known, ceiling, views or still, layers, shared, rank, drifting, weights, core, generator)


def off_diagonal(loadings: Tensor) -> Tensor:
    return (loadings @ loadings.T).fill_diagonal_(0.0)


@pytest.mark.parametrize("cut", [-math.inf, -0.5, 0.5], ids=["all known", "31 % hidden", "69 % hidden"])
def test_known_correlations_are_recovered_also_where_normals_are_hidden(cut: float) -> None:
    generator = torch.Generator().manual_seed(6)
    known = bounded(12, 2, generator)
    loadings, slopes, _ = found(drawn(known, 12_000, generator), 2, generator, cut=cut)
    assert slopes.shape == (0, 12, 0)
    error = off_diagonal(loadings) - off_diagonal(known)
    assert float(error.abs().max()) < (0.06 if cut == -math.inf else 0.12)


def test_loadings_leave_every_voxel_noise_of_its_own() -> None:
    generator = torch.Generator().manual_seed(1)
    loadings, _, _ = found(torch.randn(300, 1, generator=generator).repeat(1, 5), 3, generator)
    assert float(loadings.square().sum(1).max()) <= 1 - LEAST_NOISE + 1e-6
    assert float(own_variance(loadings).min()) >= LEAST_NOISE * (1 - 1e-6)
    assert float((loadings @ loadings.T).min()) > 0.8  # all of them are one number


@pytest.mark.parametrize(("count", "voxels", "rank"), [(16, 1, 0), (16, 40, 15), (3, 40, 2), (300, 6, 5)])
def test_the_rank_is_bounded_by_the_data(count: int, voxels: int, rank: int) -> None:
    generator = torch.Generator().manual_seed(1)
    views = [(torch.arange(voxels)[None], torch.randn(count, 1, 2, generator=generator))]
    normals, core = torch.randn(count, voxels, generator=generator), torch.arange(min(3, voxels))[None]
    fits = found(normals, 64, generator, cut=0.0, views=views, shared=2, drifting=5, core=core)
    assert [fit.shape for fit in fits] == [
        (voxels, rank), (2, voxels, min(5, rank)), (1, core.shape[1], core.shape[1])
    ]  # fmt: skip
    assert all(fit.isfinite().all() for fit in fits)


def test_the_same_seed_gives_the_same_fit() -> None:
    normals = torch.randn(100, 6, generator=torch.Generator().manual_seed(1))
    core = torch.arange(3)[None]
    both = [found(normals, 2, torch.Generator().manual_seed(8), cut=0.0, core=core) for _ in "ab"]
    for one, other in zip(*both, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("cut", [-math.inf, -0.3], ids=["all known", "38 % hidden"])
def test_loadings_that_change_with_drivers_are_found(cut: float) -> None:
    # One driver for all layers and one of each layer's own. Slopes are too small by two in the number of voxels.
    generator = torch.Generator().manual_seed(3)
    count, layers = 12_000, [slice(0, 24), slice(24, 48)]
    drivers = torch.rand(count, 2, 2, generator=generator) * 2 - 1
    drivers[:, 1, 0] = drivers[:, 0, 0]
    signs = torch.randn(3, 48, 1, generator=generator).sign()
    known, slopes = 0.45 * signs[0], 0.2 * signs[1:]

    def at(both: Tensor, loadings: Tensor, change: Tensor) -> Tensor:
        here = both.repeat_interleave(24, 1).unsqueeze(-1)  # (N, V, J, 1)
        return loadings + (here * change.permute(1, 0, 2)).sum(2)

    normals = drawn(at(drivers, known, slopes), count, generator)
    views = [(torch.arange(48)[None], drivers)]
    loadings, change, _ = found(
        normals, 1, generator, cut=cut, views=views, layers=layers, shared=1, drifting=1
    )  # fmt: skip
    for change_of in torch.eye(2):
        ends = [(change_of * size).expand(1, 2, 2) for size in (1, -1)]
        one, true = (
            torch.sub(*(off_diagonal(at(here, *fit)[0]) for here in ends)) / 2
            for fit in ((loadings, change), (known, slopes))
        )
        for part in layers:
            assert float(true[part, part].abs().max()) > 0.17
            # Hidden normals are drawn as if loadings did not change, so some of the change is missed.
            error = float((one - true)[part, part].abs().max())
            assert error < (0.07 if cut == -math.inf else 0.11)


def test_images_are_pooled_with_the_drivers_they_have() -> None:
    # A mirror that turns the sign of the driver: loadings are mirrored, slopes mirrored with the other sign.
    generator = torch.Generator().manual_seed(4)
    mirror = torch.tensor([1, 0, 3, 2, 5, 4])
    known, slopes = bounded(6, 1, generator), torch.randn(6, 1, generator=generator).clamp(-1, 1) * 0.2
    known, slopes = (known + known[mirror]) / 2, (slopes - slopes[mirror]) / 2
    driver = torch.rand(8000, generator=generator) * 2 - 1
    normals = drawn(known + driver[:, None, None] * slopes, 8000, generator)
    drivers = driver[:, None, None]
    views = [(torch.arange(6)[None], drivers), (mirror[None], -drivers)]
    loadings, change, _ = found(normals, 1, generator, views=views, shared=1, drifting=1)
    for place in (-0.8, 0.0, 0.8):
        here, there = (off_diagonal(loadings + x * change[0]) for x in (place, -place))
        torch.testing.assert_close(here, there[mirror][:, mirror], atol=1e-3, rtol=0)
        assert float((here - off_diagonal(known + place * slopes)).abs().max()) < 0.08


@pytest.mark.parametrize("cut", [-math.inf, -0.5], ids=["all known", "31 % hidden"])
def test_what_factors_leave_over_in_the_core_is_found(cut: float) -> None:
    generator = torch.Generator().manual_seed(5)
    known, core = bounded(12, 1, generator), torch.tensor([[2, 0, 4], [7, 8, 11]])
    roots = torch.linalg.cholesky(
        torch.tensor(
            [
                [[1.0, 0.6, 0.0], [0.6, 1.0, -0.4], [0.0, -0.4, 1.0]],
                [[1.0, -0.5, 0.2], [-0.5, 1.0, 0.0], [0.2, 0.0, 1.0]],
            ]
        )
    )
    own = torch.randn(8000, 12, generator=generator)
    own[:, core] = torch.einsum("nlm,lkm->nlk", own[:, core], roots)
    factor = torch.randn(8000, 1, generator=generator)
    normals = factor @ known.T + own_variance(known).sqrt() * own
    loadings, _, mixing = found(normals, 1, generator, cut=cut, core=core)
    torch.testing.assert_close(mixing.square().sum(2), torch.ones(2, 3))
    for group, root, mixed in zip(core, roots, mixing, strict=True):
        noise = [own_variance(fit)[group].sqrt() for fit in (known, loadings)]
        one, two = (
            fit[group] @ fit[group].T + size[:, None] * (r @ r.T) * size
            for fit, size, r in zip((known, loadings), noise, (root, mixed), strict=True)
        )
        assert float((one - two).abs().max()) < (0.06 if cut == -math.inf else 0.1)


def test_many_voxels_are_fitted_without_the_matrix_of_their_correlations(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(7)
    normals = drawn(bounded(12, 2, generator), 2000, generator)
    views = [(torch.stack([torch.arange(12), torch.arange(11, -1, -1)]), torch.zeros(2000, 1, 0))]
    fits = []
    for dense in (2500, 1):
        monkeypatch.setattr("calogen.models.showers.factors._DENSE", dense)
        loadings, _, _ = found(normals, 2, torch.Generator().manual_seed(1), views=views)
        fits.append(off_diagonal(loadings))
    torch.testing.assert_close(*fits, atol=1e-3, rtol=0)
