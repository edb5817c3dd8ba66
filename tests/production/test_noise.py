"""Noise: every sample has its own numbers, and they are normal and uniform."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import ndtri
from scipy.stats import kstest

from calogen.production.noise import CONDITIONS, LATENTS, normals, uniforms

KNOWN_UNIFORMS = [0.9719207784869556, 0.7102174073597537, 0.24323606519334462]
KNOWN_NORMALS = [1.3066500425338745, 1.909804105758667, -1.0156434774398804, 0.41261887550354004]


@pytest.mark.parametrize(("fine", "coarse"), [(67, 504), (3, 0), (0, 5), (1, 1), (8, 8)])
def test_a_samples_numbers_do_not_depend_on_where_the_request_starts_or_ends(fine: int, coarse: int) -> None:
    whole = normals(9, 0, 40, fine, coarse)
    assert whole.shape == (40, fine + coarse)
    for start, count in ((0, 1), (17, 5), (39, 1), (8, 32)):
        np.testing.assert_array_equal(normals(9, start, count, fine, coarse), whole[start : start + count])
    u = uniforms(9, CONDITIONS, 0, 40, 3)
    np.testing.assert_array_equal(uniforms(9, CONDITIONS, 31, 4, 3), u[31:35])


def test_no_number_is_used_twice_and_seeds_and_streams_differ() -> None:
    many = uniforms(1, LATENTS, 0, 2000, 7)
    assert len(np.unique(many)) == many.size
    for other in (uniforms(2, LATENTS, 0, 2000, 7), uniforms(1, CONDITIONS, 0, 2000, 7)):
        assert not np.isin(other, many).any()
        assert abs(np.corrcoef(other.ravel(), many.ravel())[0, 1]) < 4 / np.sqrt(many.size)


@pytest.mark.parametrize(("fine", "coarse"), [(4, 696), (67, 504), (3, 0), (0, 5), (1, 1), (7, 9), (8, 8), (2, 2)])
@pytest.mark.parametrize(("seed", "start"), [(0, 0), (3, 1000), (2**63 - 1, 10**12)])
def test_compiled_noise_is_numpys_philox_bit_for_bit(fine: int, coarse: int, seed: int, start: int) -> None:
    fine_words, coarse_words = -(-fine // 2), -(-coarse // 4)
    counters = -(-(fine_words + coarse_words) // 4)
    raw = np.random.Philox(key=[seed, LATENTS], counter=[start * counters, 0, 0, 0]).random_raw(11 * counters * 4)
    words = raw.astype("<u8").reshape(11, -1)
    whole = words[:, :fine_words].copy().view("<u4")[:, :fine]
    halves = words[:, fine_words : fine_words + coarse_words].copy().view("<u2")[:, :coarse]
    expected = [ndtri((part + 0.5) / 2.0**bits) for part, bits in ((whole, 32), (halves.astype(np.int64), 16))]
    found = normals(seed, start, 11, fine, coarse)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, np.concatenate(expected, 1).astype(np.float32))


@pytest.mark.parametrize(("fine", "coarse"), [(40, 0), (0, 40)])
def test_normals_are_standard_normal(fine: int, coarse: int) -> None:
    draws = normals(3, 0, 5000, fine, coarse).astype(np.float64)
    n = draws.size
    assert abs(draws.mean()) < 4 / np.sqrt(n)
    assert abs(draws.var() - 1) < 4 * np.sqrt(2 / n)
    assert abs((draws**4).mean() - 3) < 4 * np.sqrt(96 / n)
    assert kstest(draws.ravel(), "norm").pvalue > 1e-3
    neighbours = np.corrcoef(draws[:, :-1].ravel(), draws[:, 1:].ravel())[0, 1]
    assert abs(neighbours) < 4 / np.sqrt(n)


def test_coarse_normals_are_bounded_and_fine_ones_reach_further() -> None:
    assert np.abs(normals(1, 0, 4000, 0, 64)).max() <= 4.4
    assert np.isfinite(normals(1, 0, 4000, 64, 0)).all()
    assert np.abs(normals(1, 0, 8000, 128, 0)).max() > 4.4


def test_uniforms_fill_the_open_unit_interval_evenly() -> None:
    draws = uniforms(5, LATENTS, 0, 50_000, 2).ravel()
    assert draws.min() > 0
    assert draws.max() < 1
    assert kstest(draws, "uniform").pvalue > 1e-3


@pytest.mark.parametrize(("seed", "start"), [(0, 0), (2**63 - 1, 10**12), (1, 10**12 - 1)])
def test_the_largest_seeds_and_indices_work(seed: int, start: int) -> None:
    draws = normals(seed, start, 3, 5, 6)
    assert np.isfinite(draws).all()
    np.testing.assert_array_equal(draws[1:], normals(seed, start + 1, 2, 5, 6))


def test_the_numbers_of_a_seed_never_change() -> None:
    # Samples are promised to be repeatable: a change here breaks every published seed.
    np.testing.assert_allclose(uniforms(1, 0, 5, 1, 3)[0], KNOWN_UNIFORMS, rtol=0, atol=1e-15)
    np.testing.assert_allclose(normals(1, 5, 1, 2, 2)[0], KNOWN_NORMALS, rtol=0, atol=1e-6)
