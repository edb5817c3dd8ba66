"""Summary statistics of maps, and distances of batches by them: known values, symmetries, no bias."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from support import tiny, toy, write_folder

from calogen.config import GeneratorConfig
from calogen.errors import ConfigError
from calogen.families import FAMILIES, Family
from calogen.models.maps import summaries as module
from calogen.models.maps import zeldovich
from calogen.models.maps.spectra import shell_power
from calogen.models.maps.summaries import MapSummaries
from calogen.models.maps.zeldovich import ZeldovichGenerator
from calogen.models.registry import build_generator, build_summaries
from calogen.shards.samples import Samples
from calogen.training import loop
from calogen.training.setup import prepare
from calogen.training.trainers import MatchingTrainer

SIDE = 16
SMALL = Family.model_validate({**FAMILIES["nbody-64"].model_dump(), "pixels": (SIDE, SIDE), "box_size": float(SIDE)})
NAMES = ("Omega_m", "sigma_8")


def built(channels: tuple[int, ...] = (8, 8)) -> ZeldovichGenerator:
    generator = build_generator(SMALL, NAMES, GeneratorConfig(network="zeldovich", channels=channels))
    assert isinstance(generator, ZeldovichGenerator)
    return generator.eval()


@pytest.fixture(scope="module")
def samples() -> Samples:
    return toy(SMALL, 800, seed=1)


@pytest.fixture(scope="module")
def generator(samples: Samples) -> ZeldovichGenerator:
    made = built()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(zeldovich, "_FIT_MAPS", 2048)
        made.fit(samples, 1)
    return made


@pytest.fixture(scope="module")
def scaled(generator: ZeldovichGenerator, samples: Samples) -> torch.Tensor:
    return generator.scaled(torch.from_numpy(samples.conditions.array(NAMES)))


@pytest.fixture(scope="module")
def summaries(generator: ZeldovichGenerator, samples: Samples, scaled: torch.Tensor) -> MapSummaries:
    made = build_summaries(generator)
    assert isinstance(made, MapSummaries)
    made.fit(samples, scaled)
    return made


def test_soft_peaks_and_functionals_count_what_is_there() -> None:
    """Three bright spots of one pixel, far above all: 3 peaks, 3 components, their area and boundary."""
    logs = torch.full((1, 16, 16), -5.0)
    for row, column in ((2, 3), (8, 8), (12, 1)):
        logs[0, row, column] = 8.0
    _, *above = (float(value) ** 2 - 0.1 for value in module._peaks(logs, torch.ones(2)))
    assert above == pytest.approx([3.0, 3.0], abs=0.01)
    area, boundary, euler = (256 * float(value) for value in module._minkowski(logs, torch.ones(1)))
    assert (area, boundary, euler) == pytest.approx((3, 6, 3), abs=0.01)


def test_curvatures_tell_a_ridge_from_a_hill() -> None:
    place = torch.arange(32) * (2 * torch.pi / 32)
    wave = torch.cos(place)[None, :, None].expand(1, 32, 32)
    found = []
    for field in (wave, wave + wave.mT):
        second = torch.stack(
            [torch.gradient(torch.gradient(field, dim=a)[0], dim=b)[0] for a, b in ((1, 1), (2, 2), (1, 2))], 1
        )
        found.append([float(value) for value in module._ridges(second[:, :, 4:-4, 4:-4])])
    ridge, hills = found
    assert ridge[-1] > hills[-1]


def test_statistics_are_standard_and_the_same_for_images(
    summaries: MapSummaries, samples: Samples, scaled: torch.Tensor
) -> None:
    maps = torch.from_numpy(samples.values)
    raw = summaries.measured(maps)
    terms = module.features(scaled)
    standard = summaries._standard(raw, terms)
    assert standard.mean(0).abs().max() < 0.05
    assert standard.square().mean(0).sqrt() == pytest.approx(1, abs=0.01) or torch.isinf(summaries.scale).any()
    for image in (maps.roll((3, 7), (1, 2)), maps.flip(1), maps.rot90(1, (1, 2))):
        turned = summaries._standard(summaries.measured(image), terms)
        torch.testing.assert_close(turned, standard, rtol=0, atol=0.03)


def test_squares_of_means_are_without_bias() -> None:
    rng = torch.Generator().manual_seed(1)
    values, terms = torch.randn(7, 3, generator=rng), torch.randn(7, 2, generator=rng)
    products = values[:, :, None] * terms[:, None]
    pairs = [(products[i] * products[j]).sum() for i in range(7) for j in range(7) if i != j]
    torch.testing.assert_close(module._square(values, terms), torch.stack(pairs).sum() / (7 * 6 * 3))
    many = [module._square(torch.randn(8, 5, generator=rng) + 0.5, torch.ones(8, 1)) for _ in range(2000)]
    assert float(torch.stack(many).mean()) == pytest.approx(0.25, abs=0.02)


def test_the_energy_distance_is_least_for_the_reference() -> None:
    rng = torch.Generator().manual_seed(2)
    reference, none = torch.randn(400, 3, generator=rng), torch.zeros(400, 0)
    at = {
        s: float(module._energy_distance(torch.randn(400, 3, generator=rng) + s, reference, none)) for s in (0, 0.5, 1)
    }
    assert at[0] < at[0.5] < at[1]
    wide = float(module._energy_distance(2 * torch.randn(400, 3, generator=rng), reference, none))
    assert wide > at[0]


def test_the_distance_sees_a_change_and_none_where_there_is_none(
    summaries: MapSummaries, samples: Samples, scaled: torch.Tensor
) -> None:
    maps, mine = torch.from_numpy(samples.values[:200]), scaled[:200]
    same = summaries(maps, maps, maps.roll(1, 0), mine)
    assert float(same["kept"]) == 0
    assert float(same["means"]) < 0.05
    louder = summaries((1 + 1.5 * (maps - 1)).clamp(min=0.01), maps, maps.roll(1, 0), mine)
    for part in ("means", "kept", "energy"):
        assert float(louder[part]) > float(same[part]) + 0.1
    still = maps.clone().requires_grad_()
    sum(summaries(still, maps, maps, mine).values()).backward()
    assert torch.isfinite(still.grad).all()
    assert still.grad.abs().sum() > 0


def test_maps_learn_their_small_scales_and_keep_their_spectrum(samples: Samples, tmp_path: Path) -> None:
    """Reference maps with a pattern that no filter and no point transform can make: every peak is followed by a dip."""
    values = samples.values.copy()
    logs = np.log(values)
    sharp = np.maximum(logs - np.roll(logs, 1, 2), 0) * (logs > np.quantile(logs, 0.8))
    values = np.exp(logs - 0.8 * np.roll(sharp, 1, 2)).astype(np.float32)
    data = write_folder(tmp_path / "data", replace(samples, values=values))
    config = tiny("map", training={"objective": "matching", "steps": 25, "batch_size": 64, "learning_rate": 5e-3})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(zeldovich, "_FIT_MAPS", 2048)
        patch.setattr(module, "_MOST", 800)
        run = loop.TrainingLoop.start(prepare(config, data), tmp_path / "run", check=False)
    trainer = run.trainer
    assert isinstance(trainer, MatchingTrainer)
    conditions = torch.from_numpy(samples.conditions.array(NAMES))[:400]
    latent = torch.randn(400, trainer.average.latent_size, generator=torch.Generator().manual_seed(3))
    mine = trainer.average.scaled(conditions)

    @torch.no_grad()
    def distance() -> tuple[float, torch.Tensor]:
        maps, fitted = trainer.average.with_start(latent, conditions)
        found = trainer.summaries(maps, fitted, fitted, mine)
        return float(found["means"]), shell_power(maps - 1).mean(0)[1:9] / shell_power(fitted - 1).mean(0)[1:9]

    before, _ = distance()
    run.advance(25)
    after, kept = distance()
    assert after < 0.75 * before
    torch.testing.assert_close(kept, torch.ones(8), rtol=0, atol=0.15)


def test_a_network_without_summaries_says_so(tmp_path: Path, samples: Samples) -> None:
    data = write_folder(tmp_path / "data", samples)
    config = tiny("map", generator={"network": "dcgan"}, training={"objective": "matching", "steps": 1})
    with pytest.raises(ConfigError, match="no summary statistics"):
        prepare(config, data)


def test_a_fit_from_a_surrogate_makes_its_maps(generator: ZeldovichGenerator, samples: Samples) -> None:
    other = built((16,))  # a network that adds nothing may be another
    other.fit_from(generator, samples, 1)
    latent, conditions = torch.randn(2, other.latent_size), torch.tensor([[0.2, 0.7], [0.4, 0.9]])
    assert torch.equal(other(latent, conditions), generator(latent, conditions))
    trained = built()
    trained.load_state_dict(generator.state_dict())
    with torch.no_grad():
        trained.residual.last.bias.fill_(0.1)
    with pytest.raises(ConfigError, match="other widths"):
        built((16,)).fit_from(trained, samples, 1)
