"""The classic networks: each trains, resumes and is kept like the default, and each is what its paper says it is."""

from __future__ import annotations

import builtins
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from support import ANGLE, ENERGY, ROOT, SMALL, tiny, toy, write_folder
from torch import Tensor, nn

from calogen.config import Config
from calogen.errors import ConfigError, Interrupted
from calogen.families import FAMILIES, CartesianLayer, Family
from calogen.models.classics.calogan import CaloganCritic, CaloganGenerator, LocallyConnected
from calogen.models.classics.flow import FlowGenerator
from calogen.models.classics.vae import VaeGenerator
from calogen.models.conditions import scale_conditions
from calogen.models.contract import Critic, Generator, LikelihoodGenerator
from calogen.models.registry import build_critic, build_generator, settled
from calogen.production.requests import Request
from calogen.runs.checkpoint import load_checkpoint
from calogen.sampling import Generation, Surrogate
from calogen.training.loop import train

CONFIGS = sorted((ROOT / "configs" / "classics").glob("*.toml"))
PLATES = Family(
    name="plates",
    layers=(CartesianLayer(shape=(3, 6), size=(30, 60)), CartesianLayer(shape=(4, 3), size=(40, 30))),
    conditions=(ENERGY, ANGLE),
    symmetries=("mirror-x", "mirror-y"),
    conserves_energy=True,
    max_response=1.01,
)
"""Two cartesian layers: what every one of the networks can do."""
NETWORKS = ("mlp", "dcgan", "calogan", "vae", "flow", "pixelcnn")
ADVERSARIAL = NETWORKS[:3]


@pytest.fixture(autouse=True)
def _zuko(request: pytest.FixtureRequest) -> None:
    if "flow" in request.node.name:
        pytest.importorskip("zuko")


def config_of(network: str, **training: Any) -> Config:
    objective = "wgan-gp" if network in ADVERSARIAL else "likelihood"
    return tiny(generator={"network": network}, training={"objective": objective, **training})


def built(network: str, family: Family = PLATES, count: int = 200) -> tuple[Any, Tensor, Tensor]:
    """A fitted generator, and the showers and conditions it was fitted to."""
    names = [c.name for c in family.conditions]
    torch.manual_seed(1)
    generator = build_generator(family, names, config_of(network).generator)
    samples = toy(family, count)
    generator.fit(samples, 1)
    return generator, torch.from_numpy(samples.values), torch.from_numpy(samples.conditions.array(names))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("data") / "plates", toy(PLATES, 200), 100)


# ------------------------------------------------------------------------------------------------- what all of them do


@pytest.mark.parametrize("network", NETWORKS)
def test_a_resumed_run_is_the_one_never_stopped_and_sample_i_is_sample_i(
    network: str, data: Path, tmp_path: Path
) -> None:
    config = config_of(network, validate_every=100)
    train(config, data, tmp_path / "whole")
    asked = iter([0, 15])
    with pytest.raises(Interrupted, match="after step 2"):
        train(config, data, tmp_path / "run", should_stop=lambda: next(asked))
    train(config, data, tmp_path / "run", resume=True)
    one, two = (load_checkpoint(tmp_path / name / "checkpoints" / "step-4") for name in ("whole", "run"))
    for a, b in ((one.model, two.model), (one.training_state(), two.training_state())):
        assert a.keys() == b.keys()
        assert all(torch.equal(tensor, b[name]) for name, tensor in a.items())

    surrogate = Surrogate.load(tmp_path / "run" / "checkpoints" / "step-4")
    request = Request(1300, table={"incident_energy": np.geomspace(1e3, 1e5, 1300), "angle": np.linspace(-1, 1, 1300)})
    maker = Generation(surrogate, request, seed=5)
    whole = np.concatenate([part.values for part in maker.pieces(0, 1300)])
    part = np.concatenate([part.values for part in maker.pieces(1000, 1200)])
    np.testing.assert_array_equal(part, whole[1000:1200])
    assert whole.shape == (1300, PLATES.voxels)
    assert np.isfinite(whole).all()
    assert (whole >= 0).all()
    assert len(np.unique(whole.round(3), axis=0)) > 1000
    some = {"incident_energy": np.full(3, 2e4), "angle": np.zeros(3)}
    made = surrogate.sample(some, seed=3)
    np.testing.assert_allclose(surrogate.sample({k: v[:2] for k, v in some.items()}, seed=3), made[:2], rtol=1e-4)


@pytest.mark.parametrize("network", NETWORKS)
def test_every_condition_matters_and_energies_are_in_the_familys_unit(network: str) -> None:
    generator, _, conditions = built(network)
    if network == "vae":
        nn.init.normal_(generator.decoder[-1].weight, std=0.3)
    if network == "flow":
        nn.init.normal_(generator.of_voxels[0].network[-1].weight, std=0.3)
    if network == "pixelcnn":
        for picture in generator.pictures:
            nn.init.normal_(picture.last.weight, std=0.3)
    latent = torch.randn(len(conditions), generator.latent_size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        made = generator.train()(latent, conditions)
        for column in range(conditions.shape[1]):
            other = conditions.clone()
            other[:, column] = other[:, column].flip(0)
            assert (generator(latent, other) != made).any(1).float().mean() > 0.8
        high, low = (
            generator(latent, conditions * torch.tensor([0.0, 1]) + torch.tensor([e, 0.0])) for e in (9e4, 2e3)
        )
    assert made.shape == (len(conditions), PLATES.voxels)
    assert float(high.sum(1).median()) > 3 * float(low.sum(1).median()) > 0 or network in ("dcgan", "calogan")


@pytest.mark.parametrize("network", ADVERSARIAL)
def test_gradients_of_the_score_reach_the_whole_generator(network: str) -> None:
    generator, _, conditions = built(network)
    critic = build_critic(generator, config_of(network).critic)
    latent = torch.randn(len(conditions), generator.latent_size, generator=torch.Generator().manual_seed(1))
    made = generator.train()(latent, conditions)
    scores = critic(critic.view(made, conditions), scale_conditions(PLATES, generator.conditions, conditions))
    scores.sum().backward()
    assert scores.shape == (len(conditions),)
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.any() for p in generator.parameters())


@pytest.mark.parametrize(("network", "rate"), [("vae", 1e-2), ("flow", 3e-3), ("pixelcnn", 1e-2)])
def test_the_likelihood_rises_on_samples_never_seen(network: str, rate: float) -> None:
    generator, _, _ = built(network, count=600)
    names = generator.conditions
    fresh = toy(PLATES, 200, seed=9)
    fresh_values, fresh_conditions = torch.from_numpy(fresh.values), torch.from_numpy(fresh.conditions.array(names))
    samples = toy(PLATES, 600)
    values, conditions = torch.from_numpy(samples.values), torch.from_numpy(samples.conditions.array(names))
    generator.transform.requires_grad_(False)
    optimiser = torch.optim.Adam([p for p in generator.parameters() if p.requires_grad], lr=rate)

    def loss(stream: torch.Generator) -> float:
        with torch.no_grad():
            return float(generator.loss(fresh_values, fresh_conditions, stream))

    before = loss(torch.Generator().manual_seed(0))
    stream = torch.Generator().manual_seed(1)
    for step in range(30):
        rows = slice(step % 6 * 100, step % 6 * 100 + 100)
        optimiser.zero_grad()
        generator.loss(values[rows], conditions[rows], stream).backward()
        optimiser.step()
    assert loss(torch.Generator().manual_seed(0)) < before - 0.1


# ----------------------------------------------------------------------------------------------------------- the towers


@pytest.mark.parametrize(("stride", "padding", "kernel"), [((1, 2), 1, 3), ((1, 1), 1, 2), ((1, 1), 0, 2)])
def test_locally_connected_with_one_kernel_is_a_convolution(stride: tuple[int, int], padding: int, kernel: int) -> None:
    torch.manual_seed(1)
    layer = LocallyConnected(3, 4, (5, 8), kernel, stride=stride, padding=padding)
    convolution = nn.Conv2d(3, 4, kernel, stride=stride, padding=padding)
    images = torch.randn(2, 3, 5, 8)
    with torch.no_grad():
        layer.weight.copy_(convolution.weight.permute(2, 3, 1, 0).reshape(1, -1, 4).expand_as(layer.weight))
        layer.bias.copy_(convolution.bias.expand_as(layer.bias))
        same = layer(images)
        torch.testing.assert_close(same, convolution(images))
        layer.weight[1] += 1.0  # the second place's kernel alone
        changed = (layer(images) - same).abs().sum((0, 1)).flatten() > 1e-4
    assert changed.tolist() == [place == 1 for place in range(changed.numel())]


def test_calogans_layers_begin_on_their_own_and_can_take_over_the_one_before() -> None:
    generator, _, conditions = built("calogan")
    attention = generator.attention[0]
    own, before = torch.randn(5, 1, 4, 3), torch.randn(5, 1, 3, 6)
    with torch.no_grad():
        attention.weights.weight.zero_()
        torch.testing.assert_close(attention(own, before), own, rtol=0, atol=1e-3)
        attention.weights.bias[..., 1] = 10.0
        resized = before.unflatten(3, (3, 2)).mean(4)  # columns averaged two by two, rows 3 -> 4
        taken = attention(own, before)
        torch.testing.assert_close(taken[:, :, 0], resized[:, :, 0], rtol=0, atol=1e-3)
    energies = generator.transform.incident(conditions) / generator.transform.unit
    assert energies.max() <= 100  # GeV, when 100 GeV is the highest


def test_calogans_dead_latent_makes_the_same_shower_scaled_by_nothing() -> None:
    generator, _, _ = built("calogan")
    conditions = torch.tensor([[2e3, 0.0], [9e4, 0.0]])
    with torch.no_grad():
        made = generator.eval()(torch.zeros(2, generator.latent_size), conditions)
    torch.testing.assert_close(made[0], made[1])  # the energy comes in as a factor of the latent numbers only


@pytest.mark.parametrize("batches", [False, True])
def test_calogans_critic_looks_at_the_batch_only_where_that_is_valid(batches: bool) -> None:
    generator, values, conditions = built("calogan")
    assert isinstance(generator, CaloganGenerator)
    torch.manual_seed(2)
    critic = CaloganCritic(generator, per_sample=not batches)
    scaled = scale_conditions(PLATES, generator.conditions, conditions)
    views = critic.view(values, conditions)
    with torch.no_grad():
        alone, among = critic(views[:2], scaled[:2])[:2], critic(views, scaled)[:2]
    assert torch.allclose(alone, among, atol=1e-5) != batches
    assert batches == any(isinstance(m, nn.BatchNorm2d) for m in critic.modules())
    energy, other = critic._incident(scaled)
    torch.testing.assert_close(energy[:, 0], conditions[:, 0] / 1e3, rtol=1e-4, atol=0)
    torch.testing.assert_close(other, scaled[:, 1:])


def test_dcgan_refuses_rings() -> None:
    with pytest.raises(ConfigError, match="voxels of rings differ in size") as raised:
        build_generator(SMALL, [], config_of("dcgan").generator)
    assert "cylindrical layers 1 of family 'small'" in str(raised.value)


def test_fastcalogans_networks_have_the_published_shape() -> None:
    family = FAMILIES["calogan"]
    config = settled(Config.build({"generator": {"network": "mlp"}}), family)
    generator = build_generator(family, ["incident_energy"], config.generator)
    widths = [m.out_features for m in generator.modules() if isinstance(m, nn.Linear)]
    assert (generator.latent_size, widths) == (50, [50, 100, 200, 504])
    critic: Critic = build_critic(generator, config.critic)
    assert [m.out_features for m in critic.modules() if isinstance(m, nn.Linear)] == [504, 504, 504, 1]


# --------------------------------------------------------------------------------------------------------- likelihoods


def test_before_training_the_vaes_loss_is_that_of_independent_censored_normals() -> None:
    generator, values, conditions = built("vae")
    assert isinstance(generator, VaeGenerator)
    with torch.no_grad():
        for parameter in generator.encoder.parameters():
            parameter.zero_()  # the encoder says: standard normal, whatever it sees
        _, scores = generator.transform(values, conditions)
        ceiling = generator.transform.ceiling(values, conditions)
        loss = float(generator.loss(values, conditions, torch.Generator().manual_seed(1)))
    logs = np.where(values > 0, stats.norm.logpdf(scores), stats.norm.logcdf(ceiling))
    assert loss == pytest.approx(-logs.sum(1).mean(), rel=1e-4)


def _perturbed_flow() -> tuple[FlowGenerator, Tensor]:
    generator, _, conditions = built("flow")
    assert isinstance(generator, FlowGenerator)
    torch.manual_seed(3)
    for coupling in (*generator.of_energies, *generator.of_voxels):
        nn.init.normal_(coupling.network[-1].weight, std=0.2)
    return generator.double(), scale_conditions(PLATES, generator.conditions, conditions.double())


def test_the_flows_log_density_is_that_of_its_samples() -> None:
    flow, scaled = _perturbed_flow()
    latent = torch.randn(3, flow.latent_size, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    for i in range(3):
        row = scaled[i : i + 1]

        def sampled(numbers: Tensor, row: Tensor = row) -> Tensor:
            return torch.cat(flow.normals(numbers[None], row), 1)[0]

        jacobian = torch.autograd.functional.jacobian(sampled, latent[i])
        expected = stats.norm.logpdf(latent[i]).sum() - float(torch.linalg.slogdet(jacobian).logabsdet)
        with torch.no_grad():
            found = float(flow.log_density(*flow.normals(latent[i : i + 1], row), row))
        assert found == pytest.approx(expected, abs=1e-6)


def test_before_training_the_flow_is_the_factor_model() -> None:
    generator, _, conditions = built("flow")
    scaled = scale_conditions(PLATES, generator.conditions, conditions)[:50]
    energies, voxels = torch.randn(50, generator.transform.energies.size), torch.randn(50, PLATES.voxels)
    covariance = generator.loadings @ generator.loadings.T + torch.diag(generator.noise.square())
    expected = stats.norm.logpdf(energies).sum(1)
    expected = expected + stats.multivariate_normal(np.zeros(PLATES.voxels), covariance.numpy()).logpdf(voxels)
    with torch.no_grad():
        found = generator.log_density(energies, voxels, scaled)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)


def test_zeros_are_completed_below_their_ceiling_with_the_factor_models_covariance_in_a_flow() -> None:
    generator, _, _ = built("flow")
    voxels = PLATES.voxels
    torch.manual_seed(5)
    generator.loadings.copy_(0.6 * nn.functional.normalize(torch.randn(voxels, 4)))
    generator.noise.fill_(0.8)
    count = 20_000
    scores = torch.randn(count, 4) @ generator.loadings.T + torch.randn(count, voxels) * generator.noise
    ceiling = torch.full_like(scores, 0.3)
    off = scores < ceiling
    filled = generator._completed(scores, off, ceiling, torch.Generator().manual_seed(1))
    assert torch.equal(filled[~off], scores[~off])
    assert (filled[off] <= 0.3).all()
    again = generator._completed(scores, off, ceiling, torch.Generator().manual_seed(1))
    assert torch.equal(filled, again)
    expected = generator.loadings @ generator.loadings.T + torch.diag(generator.noise.square())
    assert float((filled.T @ filled / count - expected).abs().max()) < 0.08


def test_without_zuko_the_flow_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__
    monkeypatch.delitem(sys.modules, "zuko.transforms", raising=False)
    monkeypatch.setitem(sys.modules, "zuko", None)
    monkeypatch.setattr(builtins, "__import__", real)
    with pytest.raises(ConfigError, match="the package 'zuko") as raised:
        build_generator(PLATES, [], config_of("flow").generator)
    assert 'pip install "calogen[flow]"' in str(raised.value)


def test_families_of_too_many_voxels_are_refused_by_the_flow() -> None:
    with pytest.raises(ConfigError, match="all pairs of principal axes"):
        build_generator(FAMILIES["2"], ["incident_energy"], config_of("flow").generator)


# --------------------------------------------------------------------------------------------------- the configurations


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_classic_has_a_configuration_that_fits_its_networks(path: Path) -> None:
    config = settled(Config.load(path), FAMILIES["calogan"])
    assert config.threads == 1
    assert config.training.time == 600 or config.training.steps == 0
    with torch.device("meta"):
        generator: Generator = build_generator(FAMILIES["calogan"], ["incident_energy"], config.generator)
        if not isinstance(generator, LikelihoodGenerator):
            build_critic(generator, config.critic, per_sample=config.training.objective == "wgan-gp")


def test_there_is_a_configuration_of_every_objective_and_network() -> None:
    settings = [settled(Config.load(path), FAMILIES["calogan"]) for path in CONFIGS]
    assert {s.generator.network for s in settings} == {"copula", *NETWORKS}
    with_mlp = {s.training.objective for s in settings if s.generator.network == "mlp"}
    assert with_mlp == {"wgan-gp", "wgan-clip", "non-saturating", "minimax", "lsgan"}
