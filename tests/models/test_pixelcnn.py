"""PixelCNN: its likelihood is exact, each value knows all before it and nothing else, and it draws what it says."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from support import ENERGY, MAPS, SMALL, command, tiny, toy, write_folder
from torch import Tensor, nn

from calogen.config import GeneratorConfig
from calogen.errors import ConfigError
from calogen.families import FAMILIES, CartesianLayer, Condition, Family
from calogen.models.classics.pixelcnn import PixelCnnGenerator, _Past, _sums
from calogen.models.registry import build_generator
from calogen.shards.samples import Samples
from calogen.training.loop import train

TINY = Family(name="tiny", layers=(CartesianLayer(shape=(1, 2), size=(2, 4)),), conditions=(ENERGY,), threshold=30.0)
PAIR = Family(
    name="pair", layers=tuple(CartesianLayer(shape=(1, 1), size=(2, 2)) for _ in range(2)), conditions=(ENERGY,)
)
SLOPE = Condition(name="slope", low=0.0, high=1.0)
FIELDS = Family(name="fields", kind="map", unit="exp", pixels=(8, 8), box_size=8.0, conditions=(SLOPE,))


def built(family: Family, scale: float = 0.3, **shape: Any) -> PixelCnnGenerator:
    """A fitted generator with weights in its last layers, in double precision."""
    torch.manual_seed(1)
    names = [c.name for c in family.conditions]
    generator = build_generator(family, names, GeneratorConfig(network="pixelcnn", **shape))
    assert isinstance(generator, PixelCnnGenerator)
    generator.fit(toy(family, 200), 1)
    for picture in generator.pictures:
        nn.init.normal_(picture.last.weight, std=scale)
    return generator.double()


def some(family: Family, count: int) -> tuple[Tensor, Tensor]:
    """Samples and conditions, in double precision."""
    samples = toy(family, count, seed=3)
    columns = samples.conditions.array([c.name for c in family.conditions])
    return torch.from_numpy(samples.values).double(), torch.from_numpy(columns).double()


@pytest.mark.parametrize("family", [SMALL, MAPS], ids=lambda f: f.name)
def test_a_value_changes_its_own_density_and_those_of_values_after_it_only(family: Family) -> None:
    generator, (values, conditions) = built(family), some(family, 6)
    with torch.no_grad():
        before = generator.log_densities(values, conditions)
        for cell in range(0, family.voxels, max(1, family.voxels // 40)):
            other = values.clone()
            one = other.flatten(1)[:, cell]
            other.flatten(1)[:, cell] = torch.where(one > 0, 0.7 * one, 0.01 * float(values.max()))
            after = generator.log_densities(other, conditions)
            assert torch.equal(after[:, :cell], before[:, :cell])
            assert (after[:, cell] != before[:, cell]).all()
            assert cell == family.voxels - 1 or (after[:, cell + 1 :] != before[:, cell + 1 :]).any(1).all()


def test_rows_above_are_seen_on_both_sides_without_a_blind_spot() -> None:
    generator, (values, conditions) = built(MAPS), some(MAPS, 2)
    for picture in generator.pictures:
        nn.init.zeros_(picture.left.weight[:, 2:])  # sums, which know of every cell
    place = 8 * 16 + 8
    seen = set()
    with torch.no_grad():
        before = generator.log_densities(values, conditions)[:, place]
        for i in range(6, 10):
            for j in range(3, 14):
                other = values.clone()
                other[:, i, j] *= 1.3
                if (generator.log_densities(other, conditions)[:, place] != before).all():
                    seen.add((i, j))
    above = {(i, j) for i in (6, 7) for j in range(3, 14)}  # a kernel with a mask sees none beyond (7, 9), (6, 10)
    assert seen == above | {(8, j) for j in range(3, 9)}


@pytest.mark.parametrize("family", [TINY, PAIR], ids=lambda f: f.name)
def test_densities_add_up_to_one_over_values_and_zeros(family: Family) -> None:
    generator, energy = built(family, 0.2), 2e4
    lowest = family.threshold or energy * 1e-13
    logs = torch.linspace(math.log(lowest), math.log(energy) + 12, 200, dtype=torch.float64)
    axis = torch.cat([torch.zeros(1, dtype=torch.float64), logs.exp()])
    with torch.no_grad():
        pairs = torch.cartesian_prod(axis, axis)
        density = generator.log_density(pairs, torch.full((len(pairs), 1), energy, dtype=torch.float64)).exp()
        step = torch.full_like(logs, float(logs[1] - logs[0]))
        step[[0, -1]] /= 2  # the trapezoidal rule
        weight = torch.cat([torch.ones(1, dtype=torch.float64), step])
        table = density.view(len(axis), -1) * weight * weight[:, None]
    assert 0.02 < float(table[0].sum()) < 0.98
    assert float(table.sum()) == pytest.approx(1, abs=1e-4)

    # What it draws is distributed so: how often which voxels are on, and how large they are. (It would hold those
    # beyond twice the largest of training at this value.)
    generator.transform.most.fill_(math.inf)
    count = 20_000
    latent = torch.randn(count, generator.latent_size, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    with torch.no_grad():
        made = generator(latent, torch.full((count, 1), energy, dtype=torch.float64))
    where = torch.searchsorted(logs, made.clamp(min=lowest).log()).clamp(1, len(logs) - 1) + 1
    where[made == 0] = 0
    for first in (False, True):
        for second in (False, True):
            expected = table[slice(1, None) if first else slice(1), slice(1, None) if second else slice(1)].sum()
            found = (((made[:, 0] > 0) == first) & ((made[:, 1] > 0) == second)).double().mean()
            assert float(found) == pytest.approx(float(expected), abs=5 * math.sqrt(float(expected) / count))
    for axis_of in (0, 1):
        mass = table.sum(1 - axis_of)
        expected = mass.cumsum(0) - torch.cat([torch.zeros(1), 0.5 * mass[1:]])  # up to the middle of a node
        found = torch.bincount(where[:, axis_of], minlength=len(axis)).cumsum(0) / count
        assert float((found - expected).abs().max()) < 2 / math.sqrt(count)  # Kolmogorov: p = 7e-4


@pytest.mark.parametrize("family", [SMALL, MAPS], ids=lambda f: f.name)
def test_cell_by_cell_the_network_says_what_it_says_of_all_cells_at_once(family: Family) -> None:
    generator, (values, conditions) = built(family), some(family, 5)
    shares = values.flatten(1) / generator.transform.whole(conditions)
    past = _Past(generator.scaled(conditions))
    for picture, part in zip(generator.pictures, generator.parts, strict=True):
        here, said = shares[:, part], []

        def cell_of(
            number: int, outputs: Tensor, here: Tensor = here, first: int = part.start, said: list[Tensor] = said
        ) -> tuple[Tensor, Tensor]:
            said.append(outputs)
            cell = here[:, number : number + 1]
            return cell, generator._planes(cell, slice(first + number, first + number + 1))

        with torch.no_grad():
            made, planes = picture.walk(cell_of, past)
            sums = _sums(here.cumsum(1) - here, past.sum).unflatten(2, picture.shape)
            torch.testing.assert_close(torch.cat(said, 2), picture(planes, sums, past).flatten(2))
        assert torch.equal(made, here)
        past = past.after(here, planes)


@pytest.mark.parametrize("family", [SMALL, MAPS], ids=lambda f: f.name)
def test_a_sample_has_the_same_bits_whatever_is_made_with_it(family: Family) -> None:
    generator, (_, conditions) = built(family).float(), some(family, 40)
    latent = np.random.default_rng(1).standard_normal((40, generator.latent_size), np.float32)
    columns, made_by = conditions.float().numpy(), generator.folded()
    order = np.random.default_rng(2).permutation(40)
    made = made_by(latent, columns)
    np.testing.assert_array_equal(made_by(latent[order], columns[order]), made[order])
    np.testing.assert_array_equal(made_by(latent[7:8], columns[7:8]), made[7:8])
    assert made_by(latent[:0], columns[:0]).shape == (0, *family.sample_shape)


def fields(count: int, seed: int) -> tuple[Samples, np.ndarray]:
    """Exponentials of normal fields with correlations a^(|di| + |dj|), a = 0.2 + 0.6 slope; their log densities (N,).

    Along rows and columns they are autoregressive, so their density is known: innovations are independent.
    """
    rng = np.random.default_rng(seed)
    slope = rng.random(count)
    a, noise = 0.2 + 0.6 * slope, rng.normal(size=(count, 8, 8))
    logs, spread = noise.copy(), np.sqrt(1 - a**2)
    density = -0.5 * (noise**2 + math.log(2 * math.pi)).sum((1, 2)) - 2 * 8 * 7 * np.log(spread)
    for axis in (1, 2):
        line = np.moveaxis(logs, axis, 0)  # a view
        for i in range(1, 8):
            line[i] = a[:, None] * line[i - 1] + spread[:, None] * line[i]
    return Samples(FIELDS, np.exp(logs).astype(np.float32), {"slope": slope}), density


def test_of_a_field_that_is_known_it_learns_likelihood_and_correlations_at_every_condition() -> None:
    torch.manual_seed(1)
    generator = build_generator(FIELDS, ["slope"], GeneratorConfig(network="pixelcnn", channels=(12, 12)))
    assert isinstance(generator, PixelCnnGenerator)
    (samples, _), (fresh, density) = fields(6000, 1), fields(1000, 2)
    generator.fit(samples, 1)
    values, columns = (torch.from_numpy(array) for array in (samples.values, samples.conditions.array(["slope"])))
    optimiser = torch.optim.Adam(generator.parameters(), lr=6e-3)
    steps, stream = 150, torch.Generator().manual_seed(1)
    for step in range(steps):
        optimiser.param_groups[0]["lr"] = 6e-3 * min(1.0, 2 * (1 - step / steps))
        rows = torch.randint(len(values), (64,), generator=stream)
        optimiser.zero_grad()
        generator.loss(values[rows], columns[rows], stream).backward()
        optimiser.step()
    with torch.no_grad():
        found = generator.loss(*map(torch.from_numpy, (fresh.values, fresh.conditions.array(["slope"]))), stream)
        excess = float(found) + density.mean() / 64
        made = {}
        for slope in (0.1, 0.9):
            latent = torch.randn(1000, generator.latent_size, generator=stream)
            made[slope] = generator(latent, torch.full((1000, 1), slope)).log()
    print(f"nats a pixel above those of the field: {excess:.4f}")
    assert -0.005 < excess < 0.02
    for slope, logs in made.items():
        a = 0.2 + 0.6 * slope
        assert float(logs.square().mean()) == pytest.approx(1, abs=0.15)
        beside = ((logs[:, 1:], logs[:, :-1], a), (logs[:, :, 1:], logs[:, :, :-1], a))
        across = ((logs[:, 1:, 1:], logs[:, :-1, :-1], a**2), (logs[:, 1:, :-1], logs[:, :-1, 1:], a**2))
        for one, two, expected in (*beside, *across):
            found = torch.corrcoef(torch.stack([one.flatten(), two.flatten()]))[0, 1]
            assert float(found) == pytest.approx(expected, abs=0.07)


def test_families_it_makes_and_families_it_refuses() -> None:
    def outline(family: Family) -> PixelCnnGenerator:
        with torch.device("meta"):
            made = build_generator(family, [c.name for c in family.conditions], GeneratorConfig(network="pixelcnn"))
        assert isinstance(made, PixelCnnGenerator)
        return made

    for name in ("calogan", "1-photons", "1-pions", "nbody-64"):
        family = FAMILIES[name]
        made = outline(family)
        assert made.passes == family.voxels == sum(math.prod(picture.shape) for picture in made.pictures)
    for name, size in (("2", 6480), ("3", 40500), ("camels", 65536)):
        with pytest.raises(ConfigError, match="one after another") as raised:
            outline(FAMILIES[name])
        assert "at most 4096 voxels or pixels" in str(raised.value)
        assert str(size) in str(raised.value)
        assert raised.value.exit_code == 2


def test_that_it_is_slow_is_said_before_and_after_training(tmp_path: Any) -> None:
    data = write_folder(tmp_path / "data", toy(SMALL, 60))
    options = {"objective": "likelihood", "steps": 1}
    run = train(tiny(generator={"network": "pixelcnn"}, training=options), data, tmp_path / "run")
    assert any("one value after another" in str(record.get("warning")) for record in run.records)
    asked = ["generate", run.folder, "--like", data, "-n", 10, "--out", tmp_path / "made", "--dry-run"]
    assert f"each sample takes {SMALL.voxels} steps" in command(*asked).out
    assert not (tmp_path / "made").exists()
