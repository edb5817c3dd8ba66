"""The generator of maps from displaced matter: its laws, its fit, its folded form, its sizes."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from calogen.analysis.observables.statistics import Shells, power_spectra
from support import MAPS, ROOT, toy

from calogen.config import CriticConfig, GeneratorConfig
from calogen.errors import ConfigError
from calogen.families import Family
from calogen.models.conditions import scale_conditions
from calogen.models.contract import OnArrays
from calogen.models.maps.conv import MapTransform
from calogen.models.maps.distributions import ConditionalDistribution, DensityNormals, features
from calogen.models.maps.linear import matter_power, sheet_power, slab_power
from calogen.models.maps.matter import Grid, displaced
from calogen.models.maps.spectra import log_mean, shell_power, shells
from calogen.models.maps.zeldovich import SHEETS, ZeldovichGenerator
from calogen.models.registry import build_critic, build_generator
from calogen.sampling import Surrogate
from calogen.shards.samples import Samples
from calogen.shards.sources import open_shards
from calogen.training.objectives import gradient_penalty

NAMES = ("Omega_m", "sigma_8")
SHAPE = GeneratorConfig(network="zeldovich", channels=(8, 8))


def lognormal(count: int, seed: int, pixels: int = 32) -> Samples:
    """Periodic log-normal maps; amplitude grows with sigma_8, the spectrum reddens with 1 / Omega_m."""
    family = Family.model_validate({**MAPS.model_dump(), "pixels": (pixels, pixels), "box_size": float(pixels)})
    rng = np.random.default_rng(seed)
    omega, sigma = rng.uniform(0.1, 0.5, count), rng.uniform(0.6, 1.0, count)
    k = np.hypot(np.fft.fftfreq(pixels)[:, None], np.fft.rfftfreq(pixels)) * 2 * np.pi
    k[0, 0] = k[0, 1]
    amplitude = (
        0.7 * sigma[:, None, None] * (k / 0.6) ** (-0.5 - 0.3 / omega[:, None, None] * 0.3) * np.exp(-0.3 * k**2)
    )
    field = np.fft.irfft2(np.fft.rfft2(rng.normal(size=(count, pixels, pixels))) * amplitude, s=(pixels, pixels))
    values = np.exp(field - field.var((1, 2), keepdims=True) / 2).astype(np.float32)
    return Samples(family, values, {"Omega_m": omega, "sigma_8": sigma})


@pytest.fixture(scope="module")
def fitted() -> tuple[ZeldovichGenerator, Samples]:
    """A generator fitted to log-normal maps."""
    samples = lognormal(600, 1)
    torch.manual_seed(1)
    generator = build_generator(samples.family, NAMES, SHAPE)
    assert isinstance(generator, ZeldovichGenerator)
    generator.fit(samples, 1)
    return generator.eval(), samples


def trained_like(generator: ZeldovichGenerator) -> ZeldovichGenerator:
    """The same with a residual network that is not zero."""
    other = build_generator(generator.family, NAMES, SHAPE)
    assert isinstance(other, ZeldovichGenerator)
    other.load_state_dict(generator.state_dict())
    torch.nn.init.normal_(other.residual.last.weight, 0, 0.1, generator=torch.Generator().manual_seed(2))
    return other.eval()


def latents(generator: ZeldovichGenerator, count: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, generator.latent_size, generator=torch.Generator().manual_seed(seed))


# ------------------------------------------------------------------------------------------------ linear theory


def test_the_linear_spectrum_has_its_sigma_8_and_its_slopes() -> None:
    k = np.geomspace(1e-4, 20, 4000)
    for omega, sigma in ((0.1, 0.6), (0.3, 0.8), (0.5, 1.0)):
        power = matter_power(k, omega, sigma)
        x = 8 * k
        window = 3 * (np.sin(x) - x * np.cos(x)) / x**3
        assert np.sqrt(np.trapezoid(power * window**2 * k**2 / (2 * np.pi**2), k)) == pytest.approx(sigma, rel=1e-3)
        slope = np.gradient(np.log(power), np.log(k))
        assert slope[0] == pytest.approx(0.9624, abs=0.01)  # primordial
        assert -3 < slope[-1] < -2.3
    peaks = [k[np.argmax(matter_power(k, omega, 0.8))] for omega in (0.2, 0.3, 0.4)]
    assert peaks == sorted(peaks)  # horizon at equality
    assert peaks[1] == pytest.approx(0.0155, abs=0.003)


def test_a_thin_sheet_moves_as_all_of_space_does() -> None:
    """Without depth, the variance of k . psi / k in the plane is that of one component of the displacement in space."""
    k = np.geomspace(1e-3, 12, 600)
    plane = sheet_power(k, {"Omega_m": 0.3, "sigma_8": 0.8}, 1e-6)
    # <psi_x^2> = int d^2k / (2 pi)^2 P_2(k) / (2 k^2) and = int dk3 P(k3) / (6 pi^2)
    two = np.trapezoid(plane / (2 * k**2) * k**2 / (2 * np.pi), np.log(k))
    three = np.trapezoid(matter_power(k, 0.3, 0.8) * k / (6 * np.pi**2), np.log(k))
    assert two == pytest.approx(three, rel=0.03)
    assert (sheet_power(k, {}, 8.0) <= sheet_power(k, {}, 1.0) + 1e-12).all()


# ------------------------------------------------------------------------------------------------ matter


@pytest.mark.parametrize(("omega_m", "wave"), [(0.1, 0.0), (0.3, 0.0), (0.3, 0.02)])
def test_slabs_have_the_power_of_all_modes_along_them_and_their_means_less_in_small_boxes(
    omega_m: float, wave: float
) -> None:
    conditions, k = {"Omega_m": omega_m, "sigma_8": 0.8}, np.linspace(1e-5, 12, 400_000)
    whole = np.trapezoid(matter_power(np.hypot(k, wave), omega_m, 0.8) * np.sinc(k * 16 / (2 * np.pi)) ** 2, k) / np.pi
    power = [float(slab_power(np.array([wave]), box, 16.0, conditions)[0]) for box in (128.0, 256.0, 512.0, 65536.0)]
    assert power[-1] == pytest.approx(whole, rel=0.01)
    if not wave:
        assert power == sorted(power)
    louder = slab_power(np.array([wave]), 256.0, 16.0, {**conditions, "sigma_8": 1.0})[0]
    assert louder / power[1] == pytest.approx((1.0 / 0.8) ** 2)


def test_matter_is_conserved_periodic_and_moves_where_it_is_told() -> None:
    grid = Grid.of(24, 16, 1.0, torch.device("cpu"))
    noise = torch.randn(3, 2, 24, 16, generator=torch.Generator().manual_seed(1))
    source = torch.fft.rfft2(noise) * torch.exp(-0.5 * grid.wave.square())
    source[..., 0, 0] = 0
    smooth = torch.exp(-0.5 * (2 * grid.wave).square()).expand(3, -1, -1)
    density = displaced(source, smooth, grid)
    assert (density >= 0).all()
    torch.testing.assert_close(density.mean((1, 2)), torch.ones(3), rtol=1e-5, atol=0)
    torch.testing.assert_close(displaced(0 * source, smooth, grid), torch.ones(3, 24, 16))
    rolled = displaced(torch.fft.rfft2(torch.fft.irfft2(source, s=(24, 16)).roll((5, 3), (2, 3))), smooth, grid)
    torch.testing.assert_close(rolled, density.roll((5, 3), (1, 2)), rtol=1e-3, atol=1e-4)
    small = displaced(1e-3 * source, torch.ones_like(smooth), grid) - 1
    wanted = 1e-3 * torch.fft.irfft2(source.mean(1), s=(24, 16))  # linear theory: delta = -div psi
    large = torch.exp(-0.5 * (3 * grid.wave).square())
    found, theory = (torch.fft.irfft2(torch.fft.rfft2(x) * large, s=(24, 16)) for x in (small, wanted))
    assert torch.corrcoef(torch.stack([found.flatten(), theory.flatten()]))[0, 1] > 0.999
    assert float(found.std() / theory.std()) == pytest.approx(1, abs=0.05)


def test_voids_keep_what_is_smoothed_away_elsewhere() -> None:
    """A wave leaves a void and a wall; ripples that smoothing removes are seen in the void, and only there."""
    grid = Grid.of(64, 64, 1.0, torch.device("cpu"))
    rows = torch.arange(64.0)
    wave = 2 * torch.cos(2 * torch.pi * rows / 64)[None, None, :, None].expand(1, 1, 64, 64)
    ripples = 0.3 * torch.cos(2 * torch.pi * rows / 8)[None, None, None, :].expand(1, 1, 64, 64)
    smooth = (grid.wave < 0.3).float()[None]
    both, alone = (displaced(torch.fft.rfft2(x), smooth, grid)[0] for x in (wave + ripples, wave))
    seen = (both - alone).abs().mean(1) / alone.mean(1)
    assert seen[24:41].min() > 0.1  # the void, around row 32
    assert seen[:8].max() < 0.15 * seen[24:41].max()  # not nothing: some came over from the void
    torch.testing.assert_close(both.mean(), torch.tensor(1.0), rtol=1e-5, atol=0)


# ------------------------------------------------------------------------------------------------ scores


def test_scores_of_a_known_distribution_are_its_probits() -> None:
    rng = torch.Generator().manual_seed(1)
    scaled = torch.rand(400, 1, generator=rng) * 2 - 1
    values = scaled + (1 + 0.3 * scaled) * torch.randn(400, 500, generator=rng)
    scores = ConditionalDistribution(4)
    scores.fit(values, features(scaled))
    at = torch.tensor([[-0.7], [0.0], [0.8]])
    x = torch.linspace(-1.5, 2, 8).expand(3, -1)
    expected = (x - at) / (1 + 0.3 * at)
    torch.testing.assert_close(scores(x, features(at)), expected, rtol=0, atol=0.12)
    assert (scores.table(features(at)).diff(dim=1) > 0).all()


def test_the_mean_distribution_is_exactly_that_of_the_data() -> None:
    samples = lognormal(300, 3, 16)
    terms = features(scale_conditions(samples.family, NAMES, torch.from_numpy(samples.conditions.array(NAMES))))
    transform = DensityNormals(terms.shape[1])
    maps = torch.from_numpy(samples.values)
    transform.fit(maps, terms)
    z = torch.linspace(-5, 5, 4001)
    weight = torch.exp(-0.5 * z.square())
    values = transform.inverse(z.expand(len(terms), -1), terms).double()
    for moment in (1, 2):
        found = (values**moment * weight).sum(1) / weight.sum()
        assert float(found.mean()) == pytest.approx(float((maps.double() ** moment).mean()), rel=0.02)
    back = transform.inverse(transform(maps, terms), terms)
    inside = transform(maps, terms).abs() < 4
    torch.testing.assert_close(back[inside], maps[inside], rtol=2e-3, atol=1e-4)


# ------------------------------------------------------------------------------------------------ spectra


@pytest.mark.parametrize("pixels", [(16, 16), (12, 18), (15, 9)])
def test_shell_powers_are_those_of_the_analysis_and_add_up(pixels: tuple[int, int]) -> None:
    maps = torch.randn(5, *pixels, generator=torch.Generator().manual_seed(1))
    power = shell_power(maps)
    theirs = power_spectra(maps.numpy() + 1.0, 0.0)
    np.testing.assert_allclose(power[:, 1 : 1 + theirs.shape[1]].numpy(), theirs, rtol=1e-4)
    number, weight = shells(*pixels)
    count = torch.bincount(number.flatten(), weight.flatten())
    torch.testing.assert_close((power * count).sum(1), maps.square().sum((1, 2)))


def test_the_logarithm_of_a_mean_is_not_the_mean_of_logarithms() -> None:
    rng = torch.Generator().manual_seed(1)
    x = torch.rand(20_000, 1, generator=rng) * 2 - 1
    mean = torch.exp(0.5 + x - 0.4 * x.square())
    values = mean * torch.empty(20_000, 1).exponential_(generator=rng)
    found = log_mean(values, features(x))[:, 0]
    torch.testing.assert_close(found, torch.tensor([0.5, 1.0, -0.4, 0.0], dtype=torch.float64), rtol=0, atol=0.08)


# ------------------------------------------------------------------------------------------------ the generator


def test_a_fitted_start_has_the_spectra_and_pixels_of_its_training_maps(
    fitted: tuple[ZeldovichGenerator, Samples],
) -> None:
    generator, samples = fitted
    conditions = torch.from_numpy(samples.conditions.array(NAMES))
    with torch.no_grad():
        maps = torch.cat([generator(latents(generator, len(c), i), c) for i, c in enumerate(conditions.split(250))])
    assert maps.shape == samples.values.shape
    assert (maps >= 0).all()
    ratio = power_spectra(maps.numpy(), 32.0).mean(0) / power_spectra(samples.values, 32.0).mean(0)
    assert np.abs(ratio[:12] - 1).max() < 0.2
    assert np.sqrt(np.mean((ratio[:12] - 1) ** 2)) < 0.1
    quantiles = np.linspace(0.01, 0.99, 25)
    ours, theirs = (np.quantile(np.log(x[:500]), quantiles) for x in (maps.numpy(), samples.values))
    np.testing.assert_allclose(ours, theirs, atol=0.1)
    rough, calm = (maps[samples.conditions["sigma_8"] > 0.9], maps[samples.conditions["sigma_8"] < 0.7])
    assert rough.std() > 1.2 * calm.std()


def test_the_start_is_periodic_and_has_no_preferred_place(fitted: tuple[ZeldovichGenerator, Samples]) -> None:
    generator = trained_like(fitted[0])
    planes = generator.planes(latents(generator, 2))
    conditions = torch.tensor([[0.2, 0.7], [0.4, 0.9]])
    with torch.no_grad():
        maps = generator(planes.flatten(1), conditions)
        rolled = generator(planes.roll((7, 3), (2, 3)).flatten(1), conditions)
    torch.testing.assert_close(rolled, maps.roll((7, 3), (1, 2)), rtol=2e-2, atol=2e-3)


def test_an_untrained_network_adds_nothing(fitted: tuple[ZeldovichGenerator, Samples]) -> None:
    generator = fitted[0]
    planes, conditions = generator.planes(latents(generator, 2)), torch.tensor([[0.2, 0.7], [0.4, 0.9]])
    terms = features(scale_conditions(generator.family, NAMES, conditions))
    with torch.no_grad():
        expected = generator.transform.inverse(generator.start(planes, terms), terms)
        assert torch.equal(generator(planes.flatten(1), conditions), expected)
    assert generator.latent_size == (SHEETS + 1) * 32 * 32 == generator.coarse


def test_long_modes_and_means_of_larger_maps_follow_linear_theory(fitted: tuple[ZeldovichGenerator, Samples]) -> None:
    generator = fitted[0]
    larger = generator.resized(64)
    omega_m = [0.12, 0.2, 0.3, 0.45]
    terms = features(generator.scaled(torch.tensor([[x, 0.8] for x in omega_m])))
    shared = larger.transfer[:, 2::2]
    assert torch.equal(shared, generator.transfer[:, 1 : 1 + shared.shape[1]])
    boxes = [generator.family.box_size, larger.family.box_size]

    # What the filter does to the mean and to the mode of the larger box alone, over the same of the longest mode
    # trained on: with it, the power of white noise and of sheets becomes a slab's.
    tables = [(terms @ some.transfer).numpy() for some in (generator, larger)]
    for i, x in enumerate(omega_m):
        known = {"Omega_m": x, "sigma_8": 0.8}
        means = [slab_power(np.zeros(1), box, generator.depth, known)[0] for box in boxes]
        assert 2 * (tables[1][i, 0] - tables[0][i, 0]) == pytest.approx(np.log(means[1] / means[0]), abs=0.1)
        waves = [np.array([2 * math.pi / box]) for box in boxes]
        slabs = [slab_power(k, box, generator.depth, known)[0] for k, box in zip(waves, boxes, strict=True)]
        sheets = [sheet_power(k, known, generator.depth / SHEETS)[0] for k in waves]
        wanted = np.log(slabs[1] / sheets[1]) - np.log(slabs[0] / sheets[0])
        assert 2 * (tables[1][i, 1] - tables[0][i, 1]) == pytest.approx(wanted, abs=0.1)

    # Back at the size trained on nothing is lost, and from one size to the next little, between knots of the filter.
    modes = torch.fft.rfft2(torch.randn(2, 32, 32, generator=torch.Generator().manual_seed(1)))
    back = larger.resized(32).filtered(modes, terms[:2])
    torch.testing.assert_close(back, generator.filtered(modes, terms[:2]), rtol=0, atol=1e-5)
    ways = [some.resized(128).transfer[:, :-2] for some in (larger, generator)]  # but for the corner of the plane
    torch.testing.assert_close(*ways, atol=0.03, rtol=0)


@pytest.mark.parametrize("size", [32, 48, 20])
def test_the_folded_form_is_the_module_at_any_size(fitted: tuple[ZeldovichGenerator, Samples], size: int) -> None:
    generator = trained_like(fitted[0]).resized(size)
    assert generator.family.box_size == size
    quick = generator.folded()
    assert isinstance(quick, OnArrays)
    assert quick.function != generator
    latent = latents(generator, 5)
    conditions = torch.tensor([[0.2, 0.7], [0.4, 0.9], [0.3, 0.8], [0.1, 1.0], [0.5, 0.6]])
    with torch.no_grad():
        expected = generator(latent, conditions)
    np.testing.assert_allclose(quick(latent.numpy(), conditions.numpy()), expected.numpy(), rtol=2e-3, atol=1e-4)


def test_large_maps_pass_in_strips_and_keep_the_statistics_of_small_ones(
    fitted: tuple[ZeldovichGenerator, Samples], monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = trained_like(fitted[0])
    large = generator.resized(128)
    latent, conditions = latents(large, 4), torch.full((4, 2), 0.3)
    conditions[:, 1] = 0.8
    whole = large.folded()(latent.numpy(), conditions.numpy())
    monkeypatch.setattr("calogen.models.maps.residual._STRIP", 20 * 128)
    np.testing.assert_allclose(large.folded()(latent.numpy(), conditions.numpy()), whole, rtol=1e-3, atol=1e-4)
    many = latents(generator, 64, 3)
    with torch.no_grad():
        small = generator(many, conditions[:1].expand(64, -1)).numpy()
    # The same power at the same wave numbers; shells 4 n of the large box are those n of the small one.
    ours, theirs = power_spectra(whole, 128.0).mean(0)[3::4], power_spectra(small, 32.0).mean(0)
    assert np.abs(np.log(ours[1:8] / theirs[1:8])).max() < 0.5
    assert np.log(whole + 0.01).std() == pytest.approx(float(np.log(small + 0.01).std()), rel=0.1)
    with pytest.raises(ConfigError, match="at least 4"):
        generator.resized(3)


def test_a_fit_is_repeatable_and_takes_maps_without_conditions() -> None:
    samples = toy(MAPS, 80)
    one, two = (build_generator(MAPS, (), SHAPE) for _ in range(2))
    for generator in (one, two):
        torch.manual_seed(3)
        generator.fit(samples, 5)
    for (name, a), (_, b) in zip(one.named_buffers(), two.named_buffers(), strict=True):
        assert torch.equal(a, b), name
        assert a.isfinite().all(), name
    assert isinstance(one, ZeldovichGenerator)
    made = one(latents(one, 50), torch.zeros(50, 0)).detach()
    assert float(made.mean()) == pytest.approx(float(samples.values.mean()), rel=0.15)


def test_too_few_points_to_interpolate_between_are_said(fitted: tuple[ZeldovichGenerator, Samples]) -> None:
    assert not fitted[0].remarks
    samples = lognormal(12, 4)
    generator = build_generator(samples.family, NAMES, SHAPE)
    generator.fit(samples, 1)
    assert "12 different points of Omega_m, sigma_8 are few: 32 " in generator.remarks[0]


# ------------------------------------------------------------------------------------------------ the critic


def test_a_critic_of_patches_sees_maps_alone_wherever_they_begin(fitted: tuple[ZeldovichGenerator, Samples]) -> None:
    generator, samples = fitted
    torch.manual_seed(1)
    critic = build_critic(generator, CriticConfig(channels=(4, 6)))
    critic.fit(samples, NAMES)
    maps = torch.from_numpy(samples.values[:6])
    conditions = torch.from_numpy(samples.conditions.array(NAMES))[:6]
    scaled = scale_conditions(samples.family, NAMES, conditions)
    views = critic.view(maps, conditions)
    scores = critic(views, scaled)
    torch.testing.assert_close(critic(views[2:3], scaled[2:3])[0], scores[2], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(critic(views.roll((2, 4), (1, 2)), scaled), scores, rtol=1e-3, atol=1e-4)
    assert not torch.allclose(critic(views, -scaled), scores)
    penalty = gradient_penalty(critic, views, views.flip(0), scaled, torch.Generator().manual_seed(1))
    penalty.backward()
    assert math.isfinite(float(penalty.detach()))
    assert all(p.grad is None or p.grad.isfinite().all() for p in critic.parameters())


# ------------------------------------------------------------------------------------------------ the other transform


def test_the_rational_transform_is_inverted_exactly_and_says_what_it_clips() -> None:
    samples = lognormal(50, 2, 16)
    transform = MapTransform(samples.family)
    assert transform.fit(samples) == 0
    maps = torch.from_numpy(samples.values)
    scaled = transform(maps)
    assert float(torch.quantile(scaled, 0.99)) == pytest.approx(0.5, abs=0.02)
    torch.testing.assert_close(transform.inverse(scaled), maps, rtol=1e-3, atol=1e-6)
    given = MapTransform(samples.family, scale=2e-4)
    share = given.fit(samples)
    assert share == float((maps > given.limit).double().mean()) > 0
    assert float(given.a) == pytest.approx(2e-4)
    assert float(given.inverse(given(maps)).max()) == pytest.approx(given.limit, rel=1e-3)
    config = GeneratorConfig(network="dcgan", latent=2, channels=(8, 8), scale=2e-4)
    generator = build_generator(samples.family, NAMES, config)
    generator.fit(samples, 1)
    assert "training pixels exceed 0.3998" in generator.remarks[0]


def test_the_surrogate_that_comes_with_calogen_makes_maps_as_its_card_says() -> None:
    surrogate = Surrogate.load("nbody-64")
    conditions = {"Omega_m": np.full(160, 0.3), "sigma_8": np.repeat([0.65, 0.95], 80)}
    maps = surrogate.sample(conditions, seed=1)
    assert maps.shape == (160, 64, 64)
    assert (maps >= 0).all()
    assert maps.mean() == pytest.approx(1, abs=0.08)  # a map's mean scatters by 0.26
    power = np.log(power_spectra(maps, 64.0)[:, :16]).reshape(2, 80, 16).mean((1, 2))
    assert (power[1] - power[0]) / 0.3 == pytest.approx(3.2, abs=1.2)
    np.testing.assert_array_equal(surrogate.sample({"Omega_m": 0.3, "sigma_8": 0.65}, 80, seed=1)[:5], maps[:5])
    assert surrogate.resized(96).sample({"Omega_m": 0.3, "sigma_8": 0.8}, 1).shape == (1, 96, 96)


def test_the_surrogate_of_large_maps_makes_boxes_twice_as_wide_as_those_it_was_fitted_to() -> None:
    surrogate = Surrogate.load("nbody-256")
    assert surrogate.family.summary == "nbody-256, (256, 256) pixels, box 512 Mpc/h, 16 Mpc/h deep"
    conditions = {"Omega_m": 0.28, "sigma_8": 0.8}
    large = surrogate.sample(conditions, 12, seed=1)
    small = surrogate.resized(128).sample(conditions, 48, seed=2)
    assert (large.shape, small.shape) == ((12, 256, 256), (48, 128, 128))
    assert (large >= 0).all()
    assert large.mean() == pytest.approx(1, abs=0.04)  # a map's mean scatters by 0.04

    # P(k) in octaves: of both sizes, and of the shipped maps near that cosmology.
    boxes = open_shards(ROOT / "data" / "nbody-256" / "train").read()
    close = np.hypot(boxes.conditions["Omega_m"] - 0.28, boxes.conditions["sigma_8"] - 0.8) < 0.15
    near = {name: np.repeat(boxes.conditions[name][close], 4) for name in surrogate.conditions}
    made = surrogate.resized(128).sample(near, seed=3)
    for low, high in [(0.05, 0.1), (0.1, 0.2), (0.2, 0.4), (0.4, 0.8), (0.8, 1.5)]:
        wide, narrow, ours, theirs = (
            power[:, (k >= low) & (k < high)].mean(1)
            for k, power in (
                (Shells.of(maps.shape[1:], box).k, power_spectra(maps, box))
                for maps, box in ((large, 512.0), (small, 256.0), (made, 256.0), (boxes.values[close], 256.0))
            )
        )
        assert wide.mean() == pytest.approx(narrow.mean(), rel=0.12)
        error = theirs.std() / len(theirs) ** 0.5
        assert abs(ours.mean() - theirs.mean()) < 0.05 * theirs.mean() + 3 * error
        assert error < 0.15 * theirs.mean()
