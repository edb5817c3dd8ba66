"""Networks: critics judge each sample alone, map generators are periodic, untrained networks are the fitted start."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support import MAPS, SINGLE, SMALL, run_python, toy
from torch import nn

from calogen.config import CriticConfig, GeneratorConfig
from calogen.errors import ConfigError
from calogen.families import FAMILIES, Family
from calogen.models.conditions import scale_conditions
from calogen.models.contract import Critic, Generator
from calogen.models.maps.generator import MapGenerator
from calogen.models.registry import build_critic, build_generator, pick_device
from calogen.models.showers.generator import ShowerGenerator
from calogen.models.showers.voxels import Given

SHAPES = GeneratorConfig(latent=4, hidden=(8, 8), channels=(8, 8))
CRITIC = CriticConfig(hidden=(8,), channels=(4, 6))
CONV = GeneratorConfig(network="dcgan", latent=4, channels=(6, 4))


def built(
    family: Family, count: int = 120, shapes: GeneratorConfig = SHAPES
) -> tuple[Generator, Critic, torch.Tensor, torch.Tensor]:
    """A fitted pair of networks, and the samples and conditions they were fitted to."""
    torch.manual_seed(1)
    names = [c.name for c in family.conditions]
    generator = build_generator(family, names, shapes)
    critic = build_critic(generator, CRITIC)
    samples = toy(family, count)
    generator.fit(samples, 1)
    critic.fit(samples, names)
    return generator.eval(), critic, torch.from_numpy(samples.values), torch.from_numpy(samples.conditions.array(names))


@pytest.mark.parametrize("family", [SMALL, SINGLE, MAPS], ids=lambda f: f.name)
def test_a_critics_score_of_a_sample_does_not_depend_on_the_others(family: Family) -> None:
    _generator, critic, values, conditions = built(family)
    scaled = scale_conditions(family, [c.name for c in family.conditions], conditions)
    scores = critic(critic.view(values, conditions), scaled)
    alone = critic(critic.view(values[5:6], conditions[5:6]), scaled[5:6])
    others = torch.cat([values[5:6], 0 * values[:3]])
    among = critic(critic.view(others, conditions[[5, 0, 1, 2]]), scaled[[5, 0, 1, 2]])
    torch.testing.assert_close(alone[0], scores[5])
    torch.testing.assert_close(among[0], scores[5])
    assert scores.shape == (len(values),)
    assert not any(isinstance(m, nn.modules.batchnorm._BatchNorm | nn.Dropout) for m in critic.modules())


@pytest.mark.parametrize("family", [SMALL, SINGLE, MAPS], ids=lambda f: f.name)
def test_critics_see_the_condition(family: Family) -> None:
    _, critic, values, conditions = built(family)
    scaled = scale_conditions(family, [c.name for c in family.conditions], conditions)
    views = critic.view(values, conditions)
    assert (critic(views, scaled) != critic(views, scaled + 1)).all()


def test_a_shower_critics_views_are_standardised_bounded_and_have_gradients_everywhere() -> None:
    _, critic, values, conditions = built(SMALL, 400)
    views = critic.view(values, conditions)
    weights = critic._weights()
    assert float((views.mean(0).abs() / weights).max()) < 0.3
    spread = views.std(0) / weights
    assert float(spread.max()) < 1.2
    assert float(spread.median()) == pytest.approx(1.0, abs=0.1)
    assert float(views.abs().max()) <= 10
    # Four groups (voxels, their shares, sums, layers) weigh the same in all.
    torch.testing.assert_close(weights.square().sum(), 4 * weights[: SMALL.voxels].square().sum())
    empty = torch.zeros_like(values[:4]).requires_grad_(True)
    critic.view(empty, conditions[:4]).sum().backward()
    assert empty.grad.isfinite().all()
    assert (empty.grad != 0).any()


def test_a_shower_critic_sees_energies_on_a_scale_with_an_absolute_knee() -> None:
    _, critic, _values, conditions = built(SMALL)
    shower = torch.zeros(2, SMALL.voxels)
    shower[1, 0] = SMALL.knee
    raw = critic._raw(shower, conditions[:2])
    assert float(raw[1, 0] - raw[0, 0]) == pytest.approx(np.log(2))


@pytest.mark.parametrize("family", [SMALL, SINGLE], ids=lambda f: f.name)
def test_an_untrained_shower_generator_adds_nothing_to_the_fitted_start(family: Family) -> None:
    generator, _, _values, conditions = built(family)
    assert isinstance(generator, ShowerGenerator)
    for network in (generator.energies, generator.shapes):
        last = [m for m in network if isinstance(m, nn.Linear)][-1]
        assert not last.weight.any()
        assert not last.bias.any()
    size, factors, voxels = generator.splits
    assert (size, factors, voxels) == (len(family.layers) + 1, 4, family.voxels)
    assert generator.latent_size == size + factors + voxels
    assert generator.coarse == factors + voxels  # all but the energies'
    assert generator.drift.shape == (2, voxels, factors)
    made = generator(torch.zeros(3, generator.latent_size), conditions[:3])
    expected = generator.transform.inverse(torch.zeros(3, size), torch.zeros(3, voxels), conditions[:3])
    torch.testing.assert_close(made, expected)


def test_the_voxel_normals_of_the_fitted_start_are_standard_with_its_factors_correlations() -> None:
    generator, _, values, conditions = built(SMALL, 400)
    assert isinstance(generator, ShowerGenerator)
    given = generator.transform.given(generator.transform.layer_energies(values[:1]), conditions[:1])
    generator.noise.shares.zero_()
    many = Given(*(part.expand(40_000, *part.shape[1:]) for part in given if part is not None))
    stream = torch.Generator().manual_seed(1)
    with torch.no_grad():
        factors, own = (torch.randn(40_000, n, generator=stream) for n in generator.splits[1:])
        normals, _ = generator._copula(factors, own, many._replace(faint=torch.zeros_like(many.faint)))
    torch.testing.assert_close(normals.var(0), torch.ones(SMALL.voxels), atol=0.04, rtol=0)
    # Of the factors, at the drivers of the shower; within the core of a layer its own noise is correlated, too.
    driver = (given.drivers - generator.centre)[0, 0]
    loadings = (generator.loadings + (driver[:, None, None] * generator.drift).sum(0)).detach()
    assert (loadings.square().sum(1) < 0.98).all()
    expected = loadings @ loadings.T
    for group, mixing in zip(generator.core, generator.mixing, strict=True):
        own_part = (1 - loadings[group].square().sum(1)).sqrt()
        expected[group[:, None], group] += own_part[:, None] * (mixing @ mixing.T) * own_part
    torch.testing.assert_close(torch.corrcoef(normals.T), expected.fill_diagonal_(1.0), atol=0.03, rtol=0)


def test_voxels_of_a_faint_layer_go_together_less() -> None:
    generator, _, values, conditions = built(SMALL, 400)
    assert isinstance(generator, ShowerGenerator)
    assert ((generator.together >= 0) & (generator.together <= 1)).all()
    given = generator.transform.given(generator.transform.layer_energies(values[:9]), conditions[:9])
    layer, (_, rank, voxels) = SMALL.layer_slices[1], generator.splits
    generator.together[1] = 0.0
    generator.noise.shares.zero_()
    stream = torch.Generator().manual_seed(1)
    factors, own = (torch.randn(9, n, generator=stream) for n in (rank, voxels))
    with torch.no_grad():
        usual, faint = (
            generator._copula(factors, own, given._replace(faint=torch.full_like(given.faint, how)))[0]
            for how in (0, 1)
        )
    torch.testing.assert_close(faint[:, layer], own[:, layer])
    assert ((usual - own)[:, layer].abs() > 1e-3).double().mean() > 0.9


def test_a_generators_loss_reaches_all_of_its_parameters_that_can_matter() -> None:
    generator, critic, values, conditions = built(SMALL)
    scaled = scale_conditions(SMALL, ["incident_energy", "angle"], conditions)
    latent = torch.randn(len(values), generator.latent_size, generator=torch.Generator().manual_seed(1))
    critic(critic.view(generator(latent, conditions), conditions), scaled).sum().backward()
    for name in (
        "loadings",
        "drift",
        "transform.voxels.occupancy",
        "transform.voxels.location",
        "energies.4.weight",
        "shapes.4.weight",
    ):
        gradient = generator.get_parameter(name).grad
        assert gradient.isfinite().all(), name
        assert gradient.abs().max() > 0, name


def test_while_training_voxel_scores_are_standardised_and_afterwards_by_what_was_seen() -> None:
    generator, _, _, conditions = built(SMALL, 400)
    assert isinstance(generator, ShowerGenerator)
    with torch.no_grad():
        latent = torch.randn(400, generator.latent_size, generator=torch.Generator().manual_seed(1))
        before = generator(latent, conditions)
        generator.shapes[-1].bias += 3.0  # an adversary that wants every voxel on
        drifted = generator(latent, conditions)
        held = generator.train()(latent, conditions)
        alone = generator.eval()(latent[:1], conditions[:1])
    occupancy = [float((x > 0).double().mean()) for x in (before, drifted, held)]
    assert occupancy[1] > 1.5 * occupancy[0]
    assert occupancy[2] == pytest.approx(occupancy[0], rel=0.1)
    torch.testing.assert_close(alone, generator(latent, conditions)[:1])


def test_a_map_generator_is_periodic() -> None:
    generator, _, _, conditions = built(MAPS, shapes=CONV)
    latent = torch.randn(3, *generator.grid, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        maps = generator(latent.flatten(1), conditions[:3])
        for steps in ((1, 0), (0, 1), (2, 3)):
            rolled = generator(latent.roll(steps, (2, 3)).flatten(1), conditions[:3])
            torch.testing.assert_close(rolled, maps.roll((4 * steps[0], 4 * steps[1]), (1, 2)), rtol=1e-4, atol=1e-5)
    assert maps.shape == (3, 16, 16)
    assert (maps >= 0).all()
    assert float(maps.std()) > 0


def test_a_map_generator_of_another_size_keeps_pixels_and_weights() -> None:
    generator, _, _, conditions = built(MAPS, shapes=CONV)
    assert isinstance(generator, MapGenerator)
    larger = generator.resized(32)
    assert (larger.family.pixels, larger.family.box_size) == ((32, 32), 32.0)
    assert larger.latent_size == 4 * generator.latent_size
    assert next(larger.parameters()) is next(generator.parameters())
    latent = torch.randn(1, *generator.grid, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():  # a periodic latent grid gives the small map, four times
        tiled = larger(latent.tile(1, 1, 2, 2).flatten(1), conditions[:1])
        torch.testing.assert_close(
            tiled, generator(latent.flatten(1), conditions[:1]).tile(1, 2, 2), rtol=1e-4, atol=1e-5
        )
    with pytest.raises(ConfigError, match="multiple of 4"):
        generator.resized(30)


def test_maps_that_cannot_be_halved_that_often_are_refused() -> None:
    with pytest.raises(ConfigError, match="16 x 16 cannot be halved 5 times") as raised:
        build_generator(MAPS, [], GeneratorConfig(network="dcgan", channels=(4,) * 5))
    assert "at most 4" in str(raised.value)
    with pytest.raises(ConfigError, match="cannot be halved"):
        build_critic(build_generator(MAPS, [], CONV), CriticConfig(channels=(4,) * 5))


@pytest.mark.parametrize(("family", "network"), [(SMALL, "zeldovich"), (MAPS, "mlp")], ids=["showers", "maps"])
def test_a_network_of_the_wrong_kind_is_refused(family: Family, network: str) -> None:
    with pytest.raises(ConfigError, match="does not make samples of family"):
        build_generator(family, [], GeneratorConfig.model_validate({"network": network}))


def test_the_same_seed_builds_the_same_networks() -> None:
    one, two = built(FAMILIES["calogan"], 60)[0], built(FAMILIES["calogan"], 60)[0]
    for (name, a), (_, b) in zip(one.state_dict().items(), two.state_dict().items(), strict=True):
        assert torch.equal(a, b), name


def test_no_gpu_is_an_error_only_if_one_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device("auto") == pick_device("cpu") == torch.device("cpu")
    with pytest.raises(ConfigError, match="no usable GPU"):
        pick_device("cuda")


def test_constants_of_networks_that_are_first_imported_for_an_outline_have_values() -> None:
    done = run_python(
        """
        import sys
        import torch
        from calogen.config import GeneratorConfig
        from calogen.families import FAMILIES
        from calogen.models.registry import NETWORKS, build_generator
        names = {"calorimeter": "calogan", "map": "nbody-64"}
        with torch.device("meta"):
            for kind, networks in NETWORKS.items():
                for network in networks:
                    if network != "flow" and not networks[network].paired:
                        build_generator(FAMILIES[names[kind]], (), GeneratorConfig(network=network))
        modules = [module for name, module in sys.modules.items() if name.startswith("calogen.models.")]
        tensors = [value for module in modules for value in vars(module).values() if isinstance(value, torch.Tensor)]
        print(len(tensors) > 0, {tensor.device.type for tensor in tensors})
        """
    )
    assert done.stdout.strip() == "True {'cpu'}", done.stderr
