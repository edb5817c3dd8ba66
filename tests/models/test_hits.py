"""Hits: noise that neighbouring cells share, and how many voxels are on where few are."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from calogen.families import FAMILIES, Family
from calogen.models.showers.counts import HitCounts, foremost, natural
from calogen.models.showers.neighbours import SharedNoise

DISC = Family.model_validate(
    {
        "name": "disc",
        "layers": [{"geometry": "cylindrical", "n_alpha": 6, "r_edges": [0, 5, 10, 20]}] * 2
        + [{"geometry": "cartesian", "shape": [3, 4], "size": [30, 40]}],
        "conditions": [{"name": "incident_energy", "role": "energy", "unit": "MeV", "low": 1e3, "high": 1e5}],
        "threshold": 0.01,
    }
)

N = 20_000


def shared(along: int, correlation: float) -> SharedNoise:
    """Noise whose neighbours along one axis correlate so much, away from edges, whatever their layer's energy."""
    noise = SharedNoise(DISC)
    noise.shares[along] = correlation / (1 + math.sqrt(1 - 2 * correlation**2))
    return noise


def test_neighbours_lie_at_a_cells_edges_and_around_the_ring_and_in_the_same_cell_of_the_next_layer() -> None:
    around, outwards, depth = DISC.neighbours
    cell = np.arange(18).reshape(6, 3)  # sectors, rings
    np.testing.assert_array_equal(around[0, :18].reshape(6, 3), np.roll(cell, 1, 0))
    np.testing.assert_array_equal(outwards[1, :18].reshape(6, 3)[:, :2], cell[:, 1:])
    np.testing.assert_array_equal(outwards[1, :18].reshape(6, 3)[:, 2], cell[:, 2])  # none beyond the last ring
    np.testing.assert_array_equal(depth[1, :18], np.arange(18, 36))
    np.testing.assert_array_equal(depth[0, 18:36], np.arange(18))
    np.testing.assert_array_equal(depth[:, 36:], [np.arange(36, 48)] * 2)  # the last layer has other cells
    assert around[0, 36] == 36  # a rectangle does not wrap around
    assert around[1, 36] == 40
    calogan = FAMILIES["calogan"]
    distance = np.linalg.norm(calogan.centres[calogan.neighbours[:2]] - calogan.centres, axis=-1)
    pitch = np.array([layer.pitch for layer in calogan.layers])[calogan.layer_of_voxel].T  # type: ignore[union-attr]
    np.testing.assert_allclose(distance, np.where(distance > 0, pitch[:, None], 0))


@pytest.mark.parametrize("along", [0, 1, 2])
def test_shared_noise_is_standard_and_correlates_neighbours_alone(along: int) -> None:
    own = torch.randn(60_000, DISC.voxels, generator=torch.Generator().manual_seed(1))
    noise, _ = shared(along, 0.3)(own, torch.full((60_000, 3), 50.0))
    found = np.corrcoef(noise.numpy().T)
    np.testing.assert_allclose(noise.var(0), 1, atol=0.03)
    before, after = DISC.neighbours[along]
    ring = (before != np.arange(48)) & (after != np.arange(48))
    for voxel in np.flatnonzero(ring & ring[after])[:9]:
        assert found[voxel, after[voxel]] == pytest.approx(0.3, abs=0.02)
    other = 1 - min(along, 1)
    beyond = DISC.neighbours[other][1]
    lonely = beyond != np.arange(48)
    assert np.abs(found[np.flatnonzero(lonely), beyond[lonely]]).max() < 0.03


def test_without_shares_noise_stays_as_it_is() -> None:
    own = torch.randn(5, DISC.voxels, generator=torch.Generator().manual_seed(1))
    noise, apart = SharedNoise(DISC)(own, torch.ones(5, 3))
    assert torch.equal(noise, own)
    assert not apart.any()


def test_what_keeps_energies_apart_is_independent_of_the_voxels_normal_and_opposed_to_its_neighbours() -> None:
    noise = shared(0, 0.5)
    noise.apart.fill_(0.7)
    own = torch.randn(60_000, DISC.voxels, generator=torch.Generator().manual_seed(2))
    normals, apart = noise(own, torch.full((60_000, 3), 50.0))
    both = np.corrcoef(normals.numpy().T, apart.numpy().T)[:48, 48:]
    assert np.abs(np.diag(both)).max() < 0.02
    after = DISC.neighbours[0, 1, :36]
    assert (both[after, np.arange(36)] < -0.1).all()


def test_sharing_is_found_again_from_showers_that_have_it() -> None:
    # Hits where normals exceed 1.5, with the layer's energy equal at all levels but one.
    generator = torch.Generator().manual_seed(3)
    energies = torch.exp(torch.rand(8_000, 3, generator=generator))
    faint = torch.ones(8_000, 3, dtype=torch.bool)
    core = torch.tensor([[0, 3, 6], [18, 21, 24], [36, 37, 38]])
    truth, found = shared(0, 0.4), SharedNoise(DISC)
    for noise in (truth, found):
        noise.prepare(energies, core)

    def hits(noise: SharedNoise, seed: int) -> torch.Tensor:
        own = torch.randn(8_000, DISC.voxels, generator=torch.Generator().manual_seed(seed))
        return (noise(own, energies)[0] > 1.5).float()

    target = found.pairs(hits(truth, 4), energies, faint)
    for step, most in enumerate((0.3, 0.2, 0.15, 0.1, 0.07, 0.05)):
        found.move(target, found.pairs(hits(found, 5 + step), energies, faint), most)
    wanted = truth.shares[0, :, :4]
    torch.testing.assert_close(found.shares[0, :, :4], wanted, atol=0.1, rtol=0)
    assert found.shares[1:, :, :4].abs().max() < 0.1


def test_asymmetries_decide_how_far_energies_are_kept_apart() -> None:
    noise = SharedNoise(DISC)
    found = torch.tensor([0.2, 0.3, 0.4])[:, None, None].expand(3, 4, 3)
    target = torch.full((4, 3), 0.35)
    target[0] = 0.1
    target[1] = 0.9
    noise.set_apart(target, found)
    torch.testing.assert_close(noise.apart[:, 0], torch.tensor([0.0, 1.0, 0.75, 0.75]))
    noise.set_apart(target, 0.3 + 0.01 * found)  # changes nothing
    assert not noise.apart.any()


def made(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Layer energies (N, 3), and how far voxels are from being off, hits rising with energy as independent cells do."""
    stream = torch.Generator().manual_seed(seed)
    energies = torch.exp(3 * torch.rand(N, 3, generator=stream))
    chance = (0.02 * energies[:, DISC.layer_of_voxel]).clamp(max=0.9)
    return energies, torch.log(chance) - torch.log(torch.rand(N, DISC.voxels, generator=stream))


def test_hits_are_as_many_as_in_training_showers_and_the_first_stay_first() -> None:
    energies, excess = made(1)
    # Showers whose hits rise with energy, and vary by one at most.
    stream = torch.Generator().manual_seed(2)
    hits = (0.3 * energies + torch.rand(N, 3, generator=stream)).round().clamp(min=1)
    parts = DISC.layer_slices
    counts = HitCounts(DISC)
    torch.testing.assert_close(counts(excess[:, parts[0]], energies[:, 0], 0), excess[:, parts[0]])
    numbers = torch.stack([natural(foremost(excess[:, part])) for part in parts], 1)
    counts.fit(numbers, hits, energies)

    energies, excess = made(3)
    found = counts(excess[:, parts[0]], energies[:, 0], 0)
    rows = energies[:, 0] < 8
    on, before = ((x > 0).sum(1).clamp(min=1).double() for x in (found, excess[:, parts[0]]))  # the nearest has all
    before = before[rows]
    expected = 0.3 * energies[rows, 0] + 0.5
    residual, usual = ((hits - expected).square().mean() for hits in (on[rows], before))
    assert residual < 0.4 < 0.6 < usual
    assert torch.equal(found.argsort(1), excess[:, parts[0]].argsort(1))


def test_layers_with_many_hits_are_left_alone() -> None:
    energies, excess = made(4)
    counts = HitCounts(DISC)
    counts.fit(torch.rand(N, 3) * 10, torch.full((N, 3), 9.0), energies)
    assert torch.equal(counts(excess[:, :18], energies[:, 0], 0), excess[:, :18])


@pytest.mark.parametrize(
    ("first", "number"), [([3.0, 1.0, -1.0], 1.5), ([2.0, 1.0, 0.5], 3.0), ([-0.5, -1.0, -2.0], -0.5)]
)
def test_the_number_rounds_up_to_that_of_the_voxels_on(first: list[float], number: float) -> None:
    torch.testing.assert_close(natural(torch.tensor([first])), torch.tensor([number]))
