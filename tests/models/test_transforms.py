"""Transforms: what goes into network space comes back; energies are exact; the fit describes its data."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from support import ANGLE, CALORIMETERS, ENERGY, MAPS, SINGLE, SMALL, TURNED, toy
from torch import Tensor

from calogen.config import GeneratorConfig
from calogen.errors import ShardError
from calogen.families import FAMILIES, CartesianLayer, Family
from calogen.models.conditions import scale_conditions
from calogen.models.maps.conv import MapTransform
from calogen.models.registry import build_generator
from calogen.models.showers.shapes import exponential, fit_shapes, quantile
from calogen.models.showers.transform import ShowerTransform
from calogen.models.showers.voxels import ELECTRON, VoxelShares
from calogen.shards.samples import Samples

CALOGAN = FAMILIES["calogan"]
POINTS = Family(
    name="points",
    layers=tuple(CartesianLayer(shape=shape, size=(30, 30)) for shape in ((1, 1), (3, 3), (1, 1))),
    conditions=(ENERGY,),
    threshold=0.02,
)
"""Layers of a single voxel."""


@dataclass(frozen=True)
class Fitted:
    """A transform, the showers it was fitted to and their conditions, all float64."""

    transform: ShowerTransform
    showers: Tensor
    conditions: Tensor


def fitted(samples: Samples, names: tuple[str, ...] | None = None) -> Fitted:
    family = samples.family
    names = tuple(c.name for c in family.conditions) if names is None else names
    transform = ShowerTransform(family, names)
    transform.fit(samples)
    transform.double().requires_grad_(False)
    conditions = torch.from_numpy(samples.conditions.array(names)).double()
    return Fitted(transform, torch.from_numpy(samples.values).double(), conditions)


def toy_over_the_range(family: Family, count: int) -> Samples:
    """Toy showers among which are some at the lowest and at the highest energy."""
    samples = toy(family, count, seed=3)
    energies = samples.conditions["incident_energy"].copy()
    scale = np.ones(count, np.float32)
    for row, end in ((0, energies.argmin()), (1, energies.argmax())):
        wanted = family.conditions[0].low if row == 0 else family.conditions[0].high
        scale[end] = wanted / energies[end]
        energies[end] = wanted
    return replace(
        samples, values=samples.values * scale[:, None], conditions={**samples.conditions, "incident_energy": energies}
    )


SIZED = [pytest.param(f, marks=pytest.mark.slow) if f.voxels > 10_000 else f for f in (*CALORIMETERS, POINTS)]


@pytest.fixture(scope="module", params=SIZED, ids=lambda f: f.name)
def fit(request: pytest.FixtureRequest) -> Fitted:
    family: Family = request.param
    return fitted(toy_over_the_range(family, 24 if family.voxels > 10_000 else 80 if family.voxels > 1000 else 600))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 3e-5), (torch.float32, 5e-5)])
def test_inverse_of_forward_is_the_shower_itself_given_its_layer_energies(
    fit: Fitted, dtype: torch.dtype, tolerance: float
) -> None:
    # To a few 1e-5 of the incident energy, zeros exactly, from the lowest to the highest energy; but for showers with a
    # voxel beyond the normals that are kept (6 standard deviations; less than any other at its conditions).
    transform, showers, conditions = fit.transform.to(dtype), fit.showers.to(dtype), fit.conditions.to(dtype)
    given = transform.given(transform.layer_energies(showers), conditions)
    normals = transform.voxels(showers, given)
    again = transform.made(normals, given)
    lowest = (showers > 0) & (normals - transform.ceiling(showers, conditions) < 2e-4)
    transform.double()
    assert normals.isfinite().all()
    kept = (normals < 5.9).all(1) & ~lowest.any(1)
    assert kept.double().mean() > 0.85
    error = (again - showers).abs().amax(1) / conditions[:, 0]
    assert float(error[kept].max()) < tolerance
    assert float(error[kept].median()) < tolerance / 10
    if dtype == torch.float64:
        assert torch.equal(again[kept] > 0, showers[kept] > 0)


def test_whole_showers_come_back_where_their_energies_do(fit: Fitted) -> None:
    transform, conditions = fit.transform, fit.conditions
    energy_normals, voxel_normals = transform(fit.showers, conditions)
    assert (energy_normals.abs() <= 4).all()
    energies = transform.generated_energies(energy_normals, conditions)
    error = (energies - transform.layer_energies(fit.showers)).abs().amax(1) / conditions[:, 0]
    # Beyond the reach of its tables an energy is not kept.
    if len(conditions) >= 600:
        assert (error < 1e-6).double().mean() > 0.9
    lowest = (fit.showers > 0) & (voxel_normals - transform.ceiling(fit.showers, conditions) < 2e-4)
    kept = (error < 1e-6) & (voxel_normals < 5.9).all(1) & ~lowest.any(1)
    again = transform.inverse(energy_normals, voxel_normals, conditions)
    assert ((again - fit.showers).abs().amax(1) / conditions[:, 0] < 3e-5)[kept].all()


@pytest.mark.parametrize("width", [1.0, 3.0, 30.0])
def test_layer_sums_are_the_energies_of_the_normals_whatever_the_voxels_say(fit: Fitted, width: float) -> None:
    transform, family = fit.transform.float(), fit.transform.family
    generator = torch.Generator().manual_seed(2)
    conditions = fit.conditions.float()
    layers = torch.randn(len(conditions), transform.energies.size, generator=generator) * width
    voxels = torch.randn(len(conditions), family.voxels, generator=generator) * width
    energies = transform.generated_energies(layers, conditions)
    showers = transform.inverse(layers, voxels, conditions)
    transform.double()
    incident = conditions[:, :1]
    assert (showers >= 0).all()
    assert showers.isfinite().all()
    sums = transform.layer_energies(showers.double())
    assert float(((sums - energies.double()).abs() / incident).max()) < 1e-6
    # A voxel is off, over the threshold, or has all of its layer.
    whole = energies[:, torch.from_numpy(family.layer_of_voxel)]
    assert ((showers == 0) | (showers >= family.threshold * (1 - 1e-5)) | (showers > 0.9999 * whole)).all()
    assert float((showers.double().sum(1) / incident[:, 0]).max()) < family.max_response + 1e-5
    if family.conserves_energy:
        assert float((showers.double().sum(1) / incident[:, 0]).max()) <= 1 + 1e-6


def test_extreme_normals_have_finite_gradients(fit: Fitted) -> None:
    transform, family = fit.transform.float(), fit.transform.family
    conditions = fit.conditions[:4].float()
    for value in (-40.0, -6.0, 0.0, 6.0, 40.0):
        layers = torch.full((len(conditions), transform.energies.size), value, requires_grad=True)
        voxels = torch.full((len(conditions), family.voxels), value, requires_grad=True)
        transform.inverse(layers, voxels, conditions).square().sum().backward()
        assert layers.grad.isfinite().all()
        assert voxels.grad.isfinite().all()
    transform.double()


def test_a_higher_voxel_normal_never_means_less_energy_in_that_voxel(fit: Fitted) -> None:
    transform, family = fit.transform, fit.transform.family
    generator = torch.Generator().manual_seed(4)
    conditions = fit.conditions[:1].expand(40, -1)
    layers = torch.zeros(40, transform.energies.size, dtype=torch.float64)
    base = torch.randn(1, family.voxels, generator=generator, dtype=torch.float64).expand(40, -1).clone()
    for voxel in (0, family.voxels // 2, family.voxels - 1):
        scores = base.clone()
        scores[:, voxel] = torch.linspace(-4, 4, 40, dtype=torch.float64)
        energy = transform.inverse(layers, scores, conditions)[:, voxel]
        assert (energy.diff() >= -1e-9 * conditions[0, 0]).all()
        assert energy[0] <= energy[-1]


def test_the_voxel_normals_of_the_data_are_standard() -> None:
    found = fitted(toy(CALOGAN, 900))
    _, voxels = found.transform(found.showers, found.conditions)
    ceiling = found.transform.ceiling(found.showers, found.conditions)
    on = found.showers > 0
    assert (voxels[on] > ceiling[on] - 1e-9).all()
    often = on.double().mean(0) > 0.55  # their median is always that of an occupied voxel
    assert often.sum() > 10
    assert float(voxels[:, often].quantile(0.8, 0).mean()) == pytest.approx(0.84, abs=0.05)


def test_normals_that_are_not_numbers_give_showers_that_are_not_numbers() -> None:
    found = fitted(toy(SMALL, 100))
    bad = torch.full((2, found.transform.energies.size), torch.nan, dtype=torch.float64)
    voxels = torch.zeros(2, SMALL.voxels, dtype=torch.float64)
    assert found.transform.inverse(bad, voxels, found.conditions[:2]).isnan().any()
    assert found.transform.inverse(bad * 0, voxels * torch.nan, found.conditions[:2]).isnan().any()


@pytest.mark.parametrize(
    ("samples", "names"),
    [
        pytest.param(toy(CALOGAN, 16), None, id="16 showers"),
        pytest.param(toy(SMALL, 50), None, id="50 showers, 2 conditions"),
        pytest.param(toy(SINGLE, 300), None, id="one layer"),
        pytest.param(toy(SMALL, 300), (), id="unconditional"),
        pytest.param(toy(SMALL, 300), ("angle",), id="not conditioned on the energy"),
    ],
)
def test_unusual_fits_give_finite_showers_like_the_data(samples: Samples, names: tuple[str, ...] | None) -> None:
    names = tuple(c.name for c in samples.family.conditions) if names is None else names
    generator = build_generator(samples.family, names, GeneratorConfig(latent=4, hidden=(8,)))
    generator.eval().fit(samples, 1)
    conditions = torch.from_numpy(samples.conditions.array(names))
    latent = torch.randn(len(samples), generator.latent_size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        made = generator(latent, conditions).double()
    assert made.isfinite().all()
    assert (made >= 0).all()
    mean, generated = samples.values.sum(1).mean(), float(made.sum(1).mean())
    error = samples.values.sum(1).std() / np.sqrt(len(samples))
    assert abs(generated - mean) < 5 * error + 0.05 * mean


def test_one_energy_only_is_fitted_and_reproduced() -> None:
    samples = toy(CALOGAN, 400, seed=2)
    scale = 20e3 / samples.conditions["incident_energy"]
    samples = replace(
        samples, values=samples.values * scale[:, None], conditions={"incident_energy": np.full(400, 20e3)}
    )
    generator = build_generator(CALOGAN, ["incident_energy"], GeneratorConfig(latent=4, hidden=(8,)))
    generator.eval().fit(samples, 1)
    with torch.no_grad():
        latent = torch.randn(400, generator.latent_size, generator=torch.Generator().manual_seed(1))
        made = generator(latent, torch.full((400, 1), 20e3))
    response = samples.values.sum(1) / 20e3
    assert float(made.sum(1).mean()) / 20e3 == pytest.approx(response.mean(), abs=float(5 * response.std() / 20))


def test_layers_are_empty_as_often_as_in_the_data() -> None:
    samples = toy(SMALL, 2000)
    values = samples.values.copy()
    energies = samples.conditions["incident_energy"]
    hit = np.random.default_rng(0).random(2000) < np.where(energies > np.median(energies), 0.9, 0.2)
    values[~hit, SMALL.layer_slices[2]] = 0
    found = fitted(replace(samples, values=values))
    generator = torch.Generator().manual_seed(1)
    normals = torch.randn(2000, found.transform.energies.size, generator=generator, dtype=torch.float64)
    made = found.transform.generated_energies(normals, found.conditions)
    data = found.transform.layer_energies(found.showers)
    high = found.conditions[:, 0] > float(np.median(energies))
    rates = [[float((e[rows, 2] == 0).double().mean()) for rows in (high, ~high)] for e in (data, made)]
    assert rates[0][1] - rates[0][0] > 0.2
    assert rates[1] == pytest.approx(rates[0], abs=0.06)


def test_a_layer_that_is_never_hit_stays_empty() -> None:
    samples = toy(SMALL, 400)
    values = samples.values.copy()
    values[:, SMALL.layer_slices[2]] = 0
    found = fitted(replace(samples, values=values))
    generator = torch.Generator().manual_seed(1)
    normals = torch.randn(400, found.transform.energies.size, generator=generator, dtype=torch.float64)
    voxels = torch.randn(400, SMALL.voxels, generator=generator, dtype=torch.float64)
    made = found.transform.inverse(normals, voxels, found.conditions)
    assert made.isfinite().all()
    share = made[:, SMALL.layer_slices[2]].sum(1) / found.conditions[:, 0]
    assert float(share.max()) == 0


@pytest.mark.parametrize("rows", [0, 5, 15])
def test_too_few_showers_with_energy_are_refused(rows: int) -> None:
    samples = toy(SMALL, 40)
    values = samples.values.copy()
    values[rows:] = 0
    with pytest.raises(ShardError, match="too few showers") as raised:
        ShowerTransform(SMALL, ["incident_energy"]).fit(replace(samples, values=values))
    assert raised.value.found <= rows  # mirrored copies are not counted


def test_data_without_the_condition_are_refused() -> None:
    samples = Samples(SMALL, toy(SMALL, 20).values, {"angle": np.zeros(20)})
    with pytest.raises(ShardError, match="lack the condition 'incident_energy'"):
        ShowerTransform(SMALL, ["incident_energy"]).fit(samples)


def test_the_fit_uses_mirrored_copies() -> None:
    samples = toy(CALOGAN, 300, seed=5)
    values = (samples.values * (CALOGAN.centres[:, 0] < 0)).astype(np.float32)  # one half only
    transform = ShowerTransform(CALOGAN, ["incident_energy"])
    data = transform.fit(replace(samples, values=values))
    assert len(data.showers) == len(data.conditions) == (values.sum(1) > 0).sum()
    for parameter in transform.voxels.parameters():
        assert parameter.abs().amax() > 0
        for order in (image.order for image in CALOGAN.images):
            assert torch.equal(parameter, parameter[..., order])


def test_voxels_of_images_follow_the_same_law_at_the_images_conditions() -> None:
    # What is fitted of voxel order[v] at some conditions is what is fitted of voxel v at those of the image.
    transform = ShowerTransform(TURNED, ("incident_energy", "impact_x", "impact_y"))
    data = transform.fit(toy(TURNED, 400, seed=6))
    assert sum(len(view.orders) for view in data.views) == len(TURNED.images) == 8
    voxels = transform.voxels.double().requires_grad_(False)
    features = [voxels.features(data.energies, view.conditions) for view in data.views]
    for i, part in enumerate(TURNED.layer_slices):
        for view, moved in zip(data.views, features, strict=True):
            for order in view.orders[:, part]:
                for table in (voxels.location, voxels.log_scale, voxels.occupancy):
                    here, there = features[0][:, i] @ table[:, order], moved[:, i] @ table[:, part]
                    torch.testing.assert_close(here, there, rtol=1e-5, atol=1e-5)
                assert torch.equal(voxels.shape[..., order], voxels.shape[..., part])


def test_conditions_are_scaled_to_their_usual_range_each_on_its_own_scale() -> None:
    values = torch.tensor([[1e3, -1.0], [1e4, 0.0], [1e5, 1.0]])
    scaled = scale_conditions(SMALL, ["incident_energy", "angle"], values)
    torch.testing.assert_close(scaled, torch.tensor([[-1.0, -1.0], [0.0, 0.0], [1.0, 1.0]]), atol=1e-6, rtol=0)
    swapped = scale_conditions(SMALL, ["angle", "incident_energy"], values.flip(1))
    torch.testing.assert_close(swapped, scaled.flip(1))
    assert scale_conditions(SMALL, [], values[:, :0]).shape == (3, 0)
    assert (ENERGY.scale, ANGLE.scale) == ("log", "linear")


def test_maps_come_back_exactly_and_lie_in_the_unit_interval() -> None:
    samples = toy(MAPS, 200)
    transform = MapTransform(MAPS)
    transform.fit(samples)
    maps = torch.from_numpy(samples.values)
    maps[0, 0] = 0.0  # a void
    scaled = transform(maps)
    assert float(scaled.min()) == -1.0
    assert float(scaled.max()) < 1.0
    torch.testing.assert_close(transform.inverse(scaled), maps, rtol=1e-4, atol=1e-6)
    bright = torch.from_numpy(np.array([np.percentile(samples.values, 99)], np.float32))
    assert float(transform(bright)) == pytest.approx(0.5, abs=0.05)
    assert transform.inverse(torch.tensor([-5.0, 5.0])).isfinite().all()


def test_the_fitted_start_has_the_occupancies_and_layer_fractions_of_its_data() -> None:
    samples = toy(CALOGAN, 800, seed=11)
    generator = build_generator(CALOGAN, ["incident_energy"], GeneratorConfig(latent=8, hidden=(8,)))
    generator.eval().fit(samples, 1)
    draws = torch.Generator().manual_seed(3)
    with torch.no_grad():
        conditions = torch.from_numpy(samples.conditions.array(["incident_energy"]))
        made = generator(torch.randn(800, generator.latent_size, generator=draws), conditions).numpy()
    for i, part in enumerate(CALOGAN.layer_slices):
        for values in (
            [(x[:, part] > 1e-3).mean(1) for x in (samples.values, made)],
            [x[:, part].sum(1) / x.sum(1) for x in (samples.values, made)],
        ):
            mean, other = (v.mean() for v in values)
            error = np.hypot(*(v.std() / np.sqrt(800) for v in values))
            assert abs(mean - other) < 4 * error + 0.05 * mean, (i, mean, other, error)
    response = [x.sum(1) / samples.conditions["incident_energy"] for x in (samples.values, made)]
    assert response[1].mean() == pytest.approx(response[0].mean(), abs=0.002)
    assert response[1].std() == pytest.approx(response[0].std(), rel=0.2)
    per_voxel = [(x > 1e-3).mean(0) for x in (samples.values, made)]
    assert np.abs(per_voxel[0] - per_voxel[1]).mean() < 0.025


# ------------------------------------------------------------------------------------------ shapes of distributions


def test_quantile_functions_increase_and_come_back() -> None:
    generator = torch.Generator().manual_seed(2)
    residual = torch.randn(4000, 6, generator=generator, dtype=torch.float64)
    residual[:, 1] = residual[:, 1].exp()
    residual[:, 2] = -residual[:, 2].exp()
    residual[:, 3:] = torch.rand(4000, 3, generator=generator, dtype=torch.float64)
    shape = fit_shapes(residual, torch.ones_like(residual) > 0, torch.ones(6, dtype=torch.float64))
    excess = torch.logspace(-3.9, 1.35, 300, dtype=torch.float64)[:, None].expand(-1, 6)
    values = quantile(excess, shape)
    assert (values.diff(dim=0) > 0).all()
    torch.testing.assert_close(exponential(values, shape), excess, rtol=1e-6, atol=1e-9)


def test_quantile_functions_describe_what_they_were_fitted_to() -> None:
    generator = torch.Generator().manual_seed(5)
    residual = torch.randn(20_000, 2, generator=generator, dtype=torch.float64)
    residual[:, 1] = torch.log(-torch.log(torch.rand(20_000, generator=generator, dtype=torch.float64)))
    shape = fit_shapes(residual, torch.ones_like(residual) > 0, torch.ones(2, dtype=torch.float64))
    levels = torch.tensor([0.02, 0.1, 0.3, 0.5, 0.7, 0.9, 0.98], dtype=torch.float64)
    made = quantile(-torch.log1p(-levels)[:, None].expand(-1, 2), shape)
    torch.testing.assert_close(made, torch.quantile(residual, levels, 0), atol=0.08, rtol=0)


def test_shapes_are_interpolated_between_energies_and_constant_beyond_them() -> None:
    voxels = VoxelShares(CALOGAN, ["incident_energy"])
    stations = torch.exp((voxels.stations + 1) / 2 * np.log(100)) * 1e3  # scaled energies in MeV
    torch.testing.assert_close(voxels.near(stations[:, None]), torch.eye(3), atol=1e-5, rtol=0)
    ends = voxels.near(torch.tensor([[10.0], [1e7]]))
    torch.testing.assert_close(ends, torch.eye(3)[[0, 2]])
    middle = voxels.near((stations[:2].log().mean().exp()).view(1, 1))
    torch.testing.assert_close(middle, torch.tensor([[0.5, 0.5, 0.0]]), atol=1e-5, rtol=0)
    assert torch.isfinite(VoxelShares(CALOGAN, []).near(torch.zeros(2, 0))).all()


# ------------------------------------------------------------------------------------- layers of little energy


def test_where_energy_does_not_suffice_for_its_hits_the_nearest_voxel_has_all_of_it() -> None:
    voxels, threshold = VoxelShares(SMALL, ["incident_energy"]).double().requires_grad_(False), SMALL.threshold
    voxels.location.normal_(generator=torch.Generator().manual_seed(1))
    normals = torch.linspace(1, 2, SMALL.voxels, dtype=torch.float64)[None]  # all are on, the last of a layer nearest
    hits = torch.tensor([part.stop - part.start for part in SMALL.layer_slices])
    for factor, enough in ((0.5, False), (0.999, False), (1.001, True), (3.0, True)):
        energies = (factor * threshold * hits).double()[None]
        made = voxels.inverse(normals, voxels.given(energies, torch.full((1, 1), 1e4, dtype=torch.float64)))[0]
        for part, energy in zip(SMALL.layer_slices, energies[0], strict=True):
            torch.testing.assert_close(made[part].sum(), energy, rtol=1e-12, atol=0)
            if enough:
                assert (made[part] >= threshold * (1 - 1e-12)).all()
            else:
                assert made[part].nonzero().tolist() == [[part.stop - part.start - 1]]


def test_layers_are_faint_far_below_their_usual_energy() -> None:
    found = fitted(toy(SMALL, 300))
    energies = found.transform.layer_energies(found.showers)
    faint = found.transform.given(energies, found.conditions).faint
    usual = found.conditions[:, :1].where((faint == 0).all(1, keepdim=True), 0.0).argmax().expand(200)
    for layer in range(3):
        less = energies[usual].clone()
        less[:, layer] *= torch.exp(-torch.linspace(0, 15, 200, dtype=torch.float64))
        growing = found.transform.given(less, found.conditions[usual]).faint[:, layer]
        assert (growing.diff() >= 0).all()
        assert (growing[0], growing[-1]) == (0, 1)
        assert ((growing > 0) & (growing < 1)).any()


# -------------------------------------------------------------------------------------------- the annihilation line


def test_as_many_voxels_are_put_onto_the_line_as_in_the_data(monkeypatch: pytest.MonkeyPatch) -> None:
    transform = ShowerTransform(CALOGAN, ["incident_energy"])
    voxels = transform.voxels
    generator = torch.Generator().manual_seed(1)
    made = 2 * torch.rand(2000, CALOGAN.voxels, generator=generator)
    data = 2 * torch.rand(2000, CALOGAN.voxels, generator=generator, dtype=torch.float64)
    data[torch.rand(data.shape, generator=generator) < 0.02] = ELECTRON
    monkeypatch.setattr(voxels, "inverse", lambda *_: made)
    energies = transform.layer_energies(made)
    given = transform.given(energies, torch.full((2000, 1), 1e4))
    voxels.fit_line(data, given)
    assert voxels.line.tolist() == pytest.approx([0.02] * 3, rel=0.1)  # of a flat distribution
    for i, part in enumerate(CALOGAN.layer_slices):
        with_line = voxels._with_line(made[:, part], energies[:, i : i + 1], i)
        rate = float(((with_line / ELECTRON - 1).abs() < 4e-3).double().mean())
        assert rate == pytest.approx(0.02, rel=0.2)  # but for rescaling to the energies
        torch.testing.assert_close(with_line.sum(1), energies[:, i], rtol=1e-5, atol=0)
    voxels.fit_line(2 * torch.rand(2000, CALOGAN.voxels, generator=generator), given)
    assert not voxels.line.any()


def test_a_line_takes_its_voxels_from_both_sides_and_leaves_no_gap() -> None:
    shares = VoxelShares(CALOGAN, ["incident_energy"])
    voxels = torch.linspace(0.1, 1.0, 901, dtype=torch.float64)[None]
    energies = voxels.sum(1, keepdim=True)
    assert torch.equal(shares._with_line(voxels, energies, 0), voxels)  # no line, no change
    shares.line[0] = 0.03
    made = shares._with_line(voxels, energies, 0)[0]
    on = (made / ELECTRON - 1).abs() < 1e-3
    assert voxels[0, on].min() == pytest.approx(ELECTRON - 0.03, abs=2e-3)
    assert voxels[0, on].max() == pytest.approx(ELECTRON + 0.03, abs=2e-3)
    assert (made.diff() >= 0).all()
    assert float(made.diff().max()) < 1.5e-3
