"""What projected training can change about maps, and what its critics see: laws of patterns, views and slopes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from support import toy

from calogen.config import GeneratorConfig
from calogen.errors import ConfigError
from calogen.families import FAMILIES, Family
from calogen.models.maps import zeldovich
from calogen.models.maps.distributions import features
from calogen.models.maps.patterns import LARGEST, MapRefinement
from calogen.models.maps.views import MapViews
from calogen.models.maps.zeldovich import ZeldovichGenerator
from calogen.models.refinement import Draft
from calogen.models.registry import build_generator
from calogen.shards.samples import Samples

SIDE = 32
SMALL = Family.model_validate({**FAMILIES["nbody-64"].model_dump(), "pixels": (SIDE, SIDE), "box_size": float(SIDE)})
NAMES = ("Omega_m", "sigma_8")
SHAPE = GeneratorConfig(network="zeldovich", channels=(4, 4))


def built(shape: GeneratorConfig = SHAPE) -> ZeldovichGenerator:
    generator = build_generator(SMALL, NAMES, shape)
    assert isinstance(generator, ZeldovichGenerator)
    return generator.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def samples() -> Samples:
    return toy(SMALL, 400, seed=1)


@pytest.fixture(scope="module")
def generator(samples: Samples) -> ZeldovichGenerator:
    made = built()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(zeldovich, "_FIT_MAPS", 2048)
        made.fit(samples, 1)
    return made


def noise(count: int, seed: int, side: int = SIDE) -> torch.Tensor:
    return torch.randn(count, side, side, generator=torch.Generator().manual_seed(seed))


def coefficients(refinement: MapRefinement, size: float = 0.02) -> torch.Tensor:
    return size * torch.randn(refinement.coefficients.shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("images", ["roll", "mirror", "turn"])
def test_patterns_of_images_are_images(generator: ZeldovichGenerator, images: str) -> None:
    refinement, scaled = generator.refinement, torch.rand(6, 2) * 2 - 1

    def image(maps: torch.Tensor) -> torch.Tensor:
        if images == "roll":
            return maps.roll((5, 11), (1, 2))
        return maps.flip(1) if images == "mirror" else maps.rot90(1, (1, 2))

    def refined(normals: torch.Tensor, grain: torch.Tensor) -> torch.Tensor:
        amplitudes = refinement.amplitudes(refinement.features(normals, scaled), coefficients(refinement))
        return refinement(normals, grain, amplitudes)

    normals, grain = noise(6, 1), noise(6, 2)
    changed = refined(normals, grain)
    assert (changed - normals).abs().mean() > 0.05
    torch.testing.assert_close(refined(image(normals), image(grain)), image(changed), rtol=0, atol=2e-4)


def test_a_change_is_the_sum_of_patterns_and_bounded(generator: ZeldovichGenerator) -> None:
    refinement, normals, grain = generator.refinement, noise(4, 1), noise(4, 2)
    amplitudes = 0.01 * torch.randn(4, 1, refinement.used.shape[0], generator=torch.Generator().manual_seed(3))
    patterns = refinement.patterns(normals, grain, amplitudes)
    expected = normals + torch.einsum("ba,bahw->bhw", amplitudes[:, 0], patterns)
    torch.testing.assert_close(refinement(normals, grain, amplitudes), expected, rtol=0, atol=1e-4)
    assert ((refinement(normals, grain, 100 * amplitudes) - normals).abs() <= LARGEST + 1e-5).all()


def test_bands_add_up_to_all_but_the_mean(generator: ZeldovichGenerator) -> None:
    refinement, normals = generator.refinement, noise(3, 4).clamp(-3, 3)
    zero = torch.zeros(3, 1, refinement.used.shape[0])
    bands = refinement.patterns(normals, normals, zero)[:, 3 : 3 + refinement.bands]
    torch.testing.assert_close(bands.sum(1), normals - normals.mean((1, 2), keepdim=True), rtol=0, atol=1e-5)


def test_features_are_standard_on_training_maps_and_settle_on_large_ones(generator: ZeldovichGenerator) -> None:
    refinement = generator.refinement
    scaled = torch.zeros(300, 2)
    planes = generator.planes(torch.randn(300, generator.latent_size, generator=torch.Generator().manual_seed(5)))
    own = refinement.features(generator.normals(planes, scaled), scaled)[:, 0, -3:]
    assert own.mean(0).abs().max() < 0.5
    assert ((own.std(0) > 0.6) & (own.std(0) < 1.4)).all()
    large = generator.resized(4 * SIDE)
    planes = large.planes(torch.randn(20, large.latent_size, generator=torch.Generator().manual_seed(6)))
    wide = refinement.features(large.normals(planes, scaled[:20]), scaled[:20])[:, 0, -3:]
    assert (wide.std(0) < 0.6 * own.std(0)).all()


def test_a_refined_generator_works_at_any_size_and_costs_nothing_without_changes(generator: ZeldovichGenerator) -> None:
    other = built()
    other.load_state_dict(generator.state_dict())
    latent = torch.randn(3, other.latent_size, generator=torch.Generator().manual_seed(1))
    conditions = torch.tensor([[0.2, 0.7], [0.3, 0.8], [0.4, 0.9]])
    plain = other(latent, conditions)
    other.refinement.add(coefficients(other.refinement))
    assert (other(latent, conditions) - plain).abs().mean() > 0.01
    large = other.resized(2 * SIDE)
    wide = large(torch.randn(1, large.latent_size, generator=torch.Generator().manual_seed(2)), conditions[:1])
    assert wide.shape == (1, 2 * SIDE, 2 * SIDE)
    assert torch.isfinite(wide).all()
    folded = other.folded()(latent.numpy(), conditions.numpy())
    np.testing.assert_allclose(folded, other(latent, conditions).numpy(), rtol=2e-4, atol=2e-4)
    other.refinement.add(-coefficients(other.refinement))
    assert not other.refinement.active
    assert torch.equal(other(latent, conditions), plain)


def test_a_checkpoint_of_before_there_was_a_refinement_makes_the_same_maps(generator: ZeldovichGenerator) -> None:
    old = {name: tensor for name, tensor in generator.state_dict().items() if not name.startswith("refinement.")}
    other = built()
    other.load_state_dict(old)
    latent, conditions = torch.randn(2, other.latent_size), torch.full((2, 2), 0.4)
    conditions[:, 1] = 0.8
    assert torch.equal(other(latent, conditions), generator(latent, conditions))


def test_views_are_standard_uncorrelated_and_the_same_for_images(
    generator: ZeldovichGenerator, samples: Samples
) -> None:
    scene = generator.scenes(samples)[0]
    values = scene.views[:, 0]
    values = values[:, values.std(0) > 0.1]
    assert values.shape[1] > 50
    torch.testing.assert_close(values.mean(0), torch.zeros(values.shape[1]), rtol=0, atol=0.1)
    off = torch.corrcoef(values.T) - torch.eye(values.shape[1])
    assert off.square().mean().sqrt() < 0.1
    for image in (
        np.roll(samples.values, (3, 7), (1, 2)),
        samples.values[:, ::-1],
        np.rot90(samples.values, 1, (1, 2)),
    ):
        turned = scene.like(replace(samples, values=np.ascontiguousarray(image)))
        torch.testing.assert_close(turned.views, scene.views, rtol=0, atol=0.02)


def test_soft_views_count_what_is_there() -> None:
    """Three bright spots of one pixel, far above all: 3 peaks, 3 components, their area and boundary."""
    views = MapViews(16, 16, 1)
    views.heights.fill_(1.0)
    views.levels.fill_(1.0)
    logs = torch.full((1, 16, 16), -5.0)
    for row, column in ((2, 3), (8, 8), (12, 1)):
        logs[0, row, column] = 8.0
    *_, area, boundary, euler = (float(value) for value in views.statistics(logs))
    _, *above = (float(value) ** 2 - 0.1 for value in views.statistics(logs)[-27:-21])
    assert above == pytest.approx([3.0] * 5, abs=0.01)
    assert area * 256 == pytest.approx(3, abs=0.01)
    assert boundary * 256 == pytest.approx(6, abs=0.01)
    assert euler * 256 == pytest.approx(3, abs=0.01)


def test_slopes_are_those_of_views(generator: ZeldovichGenerator, samples: Samples) -> None:
    """Both halves of the chain multiplied are what a pass through everything gives, and what small steps do."""
    scene = generator.scenes(samples)[0]
    with torch.no_grad():
        draft = scene.draw(torch.arange(5), torch.Generator().manual_seed(2))
        amplitudes = generator.refinement.amplitudes(draft.features, coefficients(generator.refinement))
    views, slopes = draft.slopes(amplitudes)
    whole_views, whole = Draft.slopes(draft, amplitudes)
    torch.testing.assert_close(views, whole_views, rtol=0, atol=1e-4)
    torch.testing.assert_close(slopes, whole, rtol=1e-3, atol=1e-2)
    direction = torch.randn(amplitudes.shape, generator=torch.Generator().manual_seed(7))
    with torch.no_grad():
        step = draft.views(amplitudes + 1e-3 * direction) - draft.views(amplitudes - 1e-3 * direction)
    linear = torch.einsum("blda,bla->bld", slopes, direction)
    assert torch.corrcoef(torch.stack([step.flatten() / 2e-3, linear.flatten()]))[0, 1] > 0.99


def test_a_fit_from_a_surrogate_makes_its_maps(generator: ZeldovichGenerator, samples: Samples) -> None:
    other = built(GeneratorConfig(network="zeldovich", channels=(8,)))  # a network that adds nothing may be another
    other.fit_from(generator, samples, 1)
    latent, conditions = torch.randn(2, other.latent_size), torch.tensor([[0.2, 0.7], [0.4, 0.9]])
    assert torch.equal(other(latent, conditions), generator(latent, conditions))
    trained = built()
    trained.load_state_dict(generator.state_dict())
    trained.residual.last.bias.fill_(0.1)
    with pytest.raises(ConfigError, match="other widths"):
        built(GeneratorConfig(network="zeldovich", channels=(8,))).fit_from(trained, samples, 1)


def test_critics_choose_among_maps(generator: ZeldovichGenerator, samples: Samples) -> None:
    selection = generator.selection(2).eval()
    selection.views.load_state_dict(generator.scenes(samples)[0].seen_by.state_dict())
    conditions = torch.from_numpy(samples.conditions.array(NAMES))[:7]
    odds = selection(torch.from_numpy(samples.values[:7]), conditions)
    assert odds.shape == (7,)
    views = selection.views(torch.from_numpy(samples.values[:7]), features(generator.scaled(conditions)))
    one = [critic(views[:, None], generator.scaled(conditions)[:, None]) for critic in selection.critics]
    torch.testing.assert_close(odds, torch.stack(one).mean(0))


def test_the_fit_mends_the_means_of_views_and_keeps_the_power(
    generator: ZeldovichGenerator, samples: Samples, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Judged with other noise than the fit's."""
    monkeypatch.setattr(zeldovich, "_MEANS_FROM", 100)
    monkeypatch.setattr(zeldovich, "_MEANS_OF", 400)
    scene = generator.scenes(samples)[0]
    draft = scene.draw(torch.arange(400), torch.Generator().manual_seed(9))
    other = built()
    other.load_state_dict(generator.state_dict())
    other._fit_means(samples, 1)
    assert other.refinement.active
    before, after = (draft.statistics(g.refinement.amplitudes(draft.features)).mean(0) for g in (generator, other))
    kept = scene.seen_by.kept
    assert (after - before)[kept].abs().max() < 0.2
    assert after[~kept].square().mean() < 0.5 * before[~kept].square().mean()
