"""Layer energies: what goes in comes back, and a known copula is found again."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from support import ENERGY, SINGLE, SMALL
from torch import Tensor

from calogen.families import CartesianLayer, Family
from calogen.models.showers.energies import LayerEnergies
from calogen.models.showers.generator import ShowerGenerator

MANY = Family(
    name="many", layers=tuple(CartesianLayer(shape=(1, 1), size=(10, 10)) for _ in range(12)), conditions=(ENERGY,)
)


def known(family: Family, count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Energies whose log shares are normal, depend on each other through the depth, and may be empty at the end."""
    rng = np.random.default_rng(seed)
    conditions = np.stack(
        [np.exp(rng.uniform(*np.log((c.low, c.high)), count)) if c.scale == "log" else rng.uniform(c.low, c.high, count)
         for c in family.conditions], 1
    )  # fmt: skip
    energy, layers = conditions[:, 0], len(family.layers)
    height = np.log(energy / 1e3) / np.log(100)
    number = np.arange(layers) / max(1, layers - 1)
    depth = 0.2 + 0.4 * height + 0.12 * rng.normal(size=count)
    shares = np.exp(-(((number - depth[:, None]) / 0.4) ** 2) + 0.2 * rng.normal(size=(count, layers)))
    if layers > 1:
        shares[rng.random(count) < 0.4 * (1 - height), -1] = 0
    response = 1 - 0.05 * np.exp(0.4 * rng.normal(size=count))
    energies = shares * (response * energy / shares.sum(1))[:, None]
    return torch.from_numpy(energies), torch.from_numpy(conditions)


@dataclass(frozen=True)
class Fitted:
    model: LayerEnergies
    energies: Tensor
    conditions: Tensor

    def draw(self, seed: int = 1) -> Tensor:
        normals = torch.randn(len(self.energies), self.model.size, generator=torch.Generator().manual_seed(seed))
        return self.model.inverse(normals.to(self.conditions.dtype), self.conditions)


@pytest.fixture(scope="module", params=[SMALL, SINGLE, MANY], ids=lambda f: f.name)
def fit(request: pytest.FixtureRequest) -> Fitted:
    family: Family = request.param
    energies, conditions = known(family, 4000)
    model = LayerEnergies(family, tuple(c.name for c in family.conditions))
    model.fit(energies, conditions)
    return Fitted(model.double(), energies, conditions)


def test_inverse_of_forward_is_the_energies(fit: Fitted) -> None:
    # But for showers in which something is rarer than the tables reach (4 standard deviations).
    again = fit.model.inverse(fit.model(fit.energies, fit.conditions), fit.conditions)
    difference = ((again - fit.energies).abs() / fit.energies.sum(1, keepdim=True)).amax(1)
    assert (difference < 1e-9).double().mean() > 0.98
    assert torch.equal(again == 0, fit.energies == 0)


def test_forward_makes_independent_standard_normals(fit: Fitted) -> None:
    # Where no layer is empty: the middle of what an empty one may have is no draw.
    energies, conditions = known(fit.model.family, 4000, seed=2)
    rows = (energies > 0).all(1) & (conditions[:, 0] > 5e4)
    normals = fit.model(energies[rows], conditions[rows])[:, :-1]
    assert normals.mean(0).abs().max() < 0.2
    assert (normals.std(0) - 1).abs().max() < 0.15
    if normals.shape[1] > 1:
        correlations = torch.corrcoef(normals.T) - torch.eye(normals.shape[1])
        variables = fit.model.variables(energies[rows], conditions[rows])[:, :-1]
        before = torch.corrcoef(variables.T) - torch.eye(normals.shape[1])
        assert correlations.square().mean().sqrt() < 0.1 < before.square().mean().sqrt()


def test_marginals_and_correlations_of_a_known_law_are_found_again(fit: Fitted) -> None:
    fresh, conditions = known(fit.model.family, 4000, seed=3)
    made = Fitted(fit.model, fresh, conditions).draw()
    high = conditions[:, 0] > 1e4
    for rows in (high, ~high):
        a, b = (e[rows] / conditions[rows, :1] for e in (fresh, made))
        error = a.std(0) * (2 / len(a)) ** 0.5
        assert ((a.mean(0) - b.mean(0)).abs() < 5 * error).all()
        # Within 10 %, or three standard errors where tails are long: of the fitted, the fresh and the drawn sample.
        excess = ((a - a.mean(0)) / a.std(0)).pow(4).mean(0) - 1
        assert ((b.std(0) / a.std(0) - 1).abs() < (3 * (3 * excess / (4 * len(a))).sqrt()).clamp(min=0.1)).all()
        if a.shape[1] > 1:
            assert (torch.corrcoef(a.T) - torch.corrcoef(b.T)).abs().max() < 0.12
        assert ((a == 0).double().mean(0) - (b == 0).double().mean(0)).abs().max() < 0.03


def test_energy_is_never_negative_and_bounded(fit: Fitted) -> None:
    normals = 3 * torch.randn(2000, fit.model.size, generator=torch.Generator().manual_seed(4)).double()
    energies = fit.model.inverse(normals, fit.conditions[:2000])
    family = fit.model.family
    most = 1.0 if family.conserves_energy else family.max_response
    assert (energies >= 0).all()
    assert (energies.sum(1) <= most * fit.conditions[:2000, 0] * (1 + 1e-12)).all()
    assert (energies.sum(1) > 0).all()


def test_gradients_reach_all_normals(fit: Fitted) -> None:
    normals = torch.randn(200, fit.model.size, generator=torch.Generator().manual_seed(5)).double().requires_grad_()
    energies = fit.model.inverse(normals, fit.conditions[:200])
    (gradient,) = torch.autograd.grad((energies / fit.conditions[:200, :1]).square().sum(), normals)
    assert gradient.isfinite().all()
    used = slice(None) if fit.model.layers > 1 else slice(0, 1)  # the share of a single layer is 1
    assert (gradient.abs().sum(0)[used] > 0).all()


def test_compiled_in_single_precision_they_equal_the_module(fit: Fitted) -> None:
    family = fit.model.family
    generator = ShowerGenerator(family, fit.model.conditions, latent=2, hidden=(4,)).eval()
    generator.transform.energies.load_state_dict(fit.model.state_dict())
    latent = torch.randn(2000, generator.latent_size, generator=torch.Generator().manual_seed(6))
    conditions = fit.conditions[:2000].float()
    with torch.no_grad():
        expected = generator.transform.energies.inverse(latent[:, : fit.model.size], conditions).numpy()
    showers = generator.folded()(latent.numpy(), conditions.numpy())
    made = np.stack([showers[:, part].sum(1) for part in family.layer_slices], 1)
    # A normal at the edge of being empty may fall on either side of it.
    same = ((expected == 0) == (made == 0)).all(1)
    assert same.mean() > 0.999
    np.testing.assert_allclose(made[same], expected[same], rtol=2e-3, atol=2e-5 * 1e5)


@pytest.mark.parametrize("count", [16, 100])
def test_few_showers_give_finite_energies(count: int) -> None:
    energies, conditions = known(MANY, count)
    model = LayerEnergies(MANY, ("incident_energy",))
    model.fit(energies, conditions)
    made = Fitted(model, energies, conditions.float()).draw()
    assert made.isfinite().all()
    assert (made.sum(1) / conditions[:, 0] - energies.sum(1) / conditions[:, 0]).mean().abs() < 0.02


def test_without_the_incident_energy_and_with_layers_never_hit() -> None:
    energies, _ = known(MANY, 500)
    energies[:, 3] = 0
    model = LayerEnergies(MANY, ())
    model.fit(energies, torch.zeros(500, 0).double())
    made = Fitted(model, energies, torch.zeros(500, 0)).draw()
    assert made.isfinite().all()
    assert (made[:, 3] == 0).all()
    assert abs(made.sum(1).log().mean() - energies.sum(1).log().mean()) < 0.2
