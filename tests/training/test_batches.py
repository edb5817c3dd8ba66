"""Batches: pure functions of data, seed and number; every sample once an epoch; held-out rows never."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support import MAPS, SMALL, TURNED, tiny, toy, write_folder

from calogen.errors import ShardError
from calogen.families import CartesianLayer, Family
from calogen.models.showers.transform import ShowerTransform
from calogen.shards.samples import Samples
from calogen.training.batches import Augmentation, Batches, held_out
from calogen.training.loop import build_trainer
from calogen.training.setup import prepare

CPU = torch.device("cpu")
NAMES = ("incident_energy", "angle")


def numbered(count: int) -> Samples:
    """Samples whose single voxel is their own number."""
    family = Family(name="n", layers=(CartesianLayer(shape=(1, 1), size=(1, 1)),), conditions=SMALL.conditions)
    number = np.arange(count, dtype=np.float32)
    return Samples(family, number[:, None], {"incident_energy": number + 1, "angle": -number})


def batches(samples: Samples, size: int, **options: Any) -> Batches:
    return Batches(samples, NAMES, size, **{"seed": 3, "device": CPU, **options})


def rows(found: Batches, index: int) -> list[int]:
    return [int(v) for v in found[index][0][:, 0]]


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Streaming in windows of 20 rows."""
    monkeypatch.setattr(Batches, "_BLOCK", 10)


def streamed(count: int, size: int, **options: Any) -> Batches:
    return batches(numbered(count), size, memory=80, **options)


@pytest.mark.parametrize("memory", [80, 2**20], ids=["streamed", "in memory"])
def test_a_batch_is_a_function_of_its_number_whatever_was_asked_before(small_blocks: None, memory: int) -> None:
    once = [rows(batches(numbered(104), 8, memory=memory), i) for i in range(30)]
    again = batches(numbered(104), 8, memory=memory)
    for i in (29, 3, 11, 12, 0, 29, 13):
        assert rows(again, i) == once[i]
    assert rows(batches(numbered(104), 8, memory=memory, seed=4), 0) != once[0]


def test_conditions_go_with_their_samples_in_the_order_asked_for() -> None:
    values, conditions = batches(numbered(50), 16)[2]
    torch.testing.assert_close(conditions, torch.cat([values + 1, -values], 1))
    swapped = Batches(numbered(50), NAMES[::-1], 16, seed=3, device=CPU)[2][1]
    torch.testing.assert_close(swapped, conditions.flip(1))
    assert Batches(numbered(50), (), 16, seed=3, device=CPU)[0][1].shape == (16, 0)


def test_in_memory_every_sample_comes_once_an_epoch_in_another_order_each() -> None:
    found = batches(numbered(64), 16)
    epochs = [[n for i in range(4) for n in rows(found, 4 * e + i)] for e in range(3)]
    for epoch in epochs:
        assert sorted(epoch) == list(range(64))
    assert epochs[0] != epochs[1] != epochs[2]


def test_what_is_left_over_is_less_than_a_batch_and_differs_by_epoch() -> None:
    found = batches(numbered(70), 16)
    left = [set(range(70)) - {n for i in range(4) for n in rows(found, 4 * e + i)} for e in range(4)]
    assert all(len(rest) == 6 for rest in left)
    assert len({frozenset(rest) for rest in left}) > 1


def test_streamed_windows_cover_all_samples_once_an_epoch(small_blocks: None) -> None:
    found = streamed(80, 5)  # 4 windows of 2 blocks
    for epoch in range(3):
        seen = [n for i in range(16) for n in rows(found, 16 * epoch + i)]
        assert sorted(seen) == list(range(80))
    windows = [frozenset(n // 10 for i in range(4) for n in rows(found, 4 * w + i)) for w in range(8)]
    assert all(len(blocks) == 2 for blocks in windows)
    assert set(windows[:4]) != set(windows[4:])  # other blocks together in another epoch


def test_a_short_last_block_is_not_seen_more_often_than_the_others(small_blocks: None) -> None:
    found = streamed(43, 4)  # 5 blocks, the last of 3 rows, in 3 windows
    count = Counter(n for i in range(600) for n in rows(found, i))
    assert set(count) == set(range(43))
    expected = 600 * 4 / 43
    assert max(count.values()) < 2 * expected
    assert min(count.values()) > 0.4 * expected


@pytest.mark.parametrize("memory", [80, 2**20], ids=["streamed", "in memory"])
def test_held_out_rows_never_come(small_blocks: None, memory: int) -> None:
    # Sorted data: whole windows are held out.
    found = batches(numbered(200), 4, memory=memory, holdout={"incident_energy": (41.0, 150.0), "angle": (-5.0, -3.0)})
    seen = {n for i in range(300) for n in rows(found, i)}
    assert seen == {*range(3), *range(6, 40), *range(150, 200)}
    drawn = {float(e) for e in found.sample_conditions(500, torch.Generator().manual_seed(1))[:, 0]}
    assert all(e < 41 or e > 150 for e in drawn)


def test_held_out_ranges_include_their_ends() -> None:
    np.testing.assert_array_equal(
        held_out(numbered(5), {"incident_energy": (2.0, 3.0)}), [False, True, True, False, False]
    )
    assert not held_out(numbered(5), {}).any()
    with pytest.raises(ShardError, match="lack the condition 'height'"):
        held_out(numbered(5), {"height": (0, 1)})


@pytest.mark.parametrize(("count", "holdout"), [(7, {}), (40, {"angle": (-35.0, 0.0)})])
def test_fewer_samples_than_a_batch_are_refused(count: int, holdout: dict[str, tuple[float, float]]) -> None:
    with pytest.raises(ShardError, match="fewer training samples than one batch"):
        batches(numbered(count), 8, holdout=holdout)


def test_ranges_and_samples_are_of_what_is_trained_on() -> None:
    found = batches(numbered(50), 8, holdout={"incident_energy": (1.0, 10.0)})
    known = found.conditions.array()
    low, high = known.min(0), known.max(0)
    assert low.tolist() == [11.0, -49.0]
    assert high.tolist() == [50.0, -10.0]
    kept = found.samples(numbered(1).family, 7)
    spread = [10, 16, 23, 29, 36, 42, 49]  # data may be sorted: the first rows are not like the others
    np.testing.assert_array_equal(kept.values[:, 0], spread)
    np.testing.assert_array_equal(kept.conditions["incident_energy"] - 1, spread)


def test_augmented_showers_are_images_with_the_same_layer_energies() -> None:
    samples = toy(SMALL, 300)
    values, none = torch.from_numpy(samples.values), torch.empty(300, 0)
    _, found, again = Augmentation(SMALL, [], CPU)(torch.Generator().manual_seed(1), none, values, 2 * values)
    images = torch.stack([values[:, image.order] for image in SMALL.images])
    which = (images == found).all(2)
    assert which.any(0).all()
    assert (which.double().mean(1) > 0.15).all()  # each of the four about equally often
    assert torch.equal(again, 2 * found)  # moved alike
    transform = ShowerTransform(SMALL, [])
    torch.testing.assert_close(transform.layer_energies(found), transform.layer_energies(values))


def test_conditions_of_augmented_showers_are_those_of_their_image() -> None:
    drawn = toy(TURNED, 400, seed=2).conditions
    names, values, conditions = list(drawn), torch.rand(400, TURNED.voxels), torch.from_numpy(drawn.array())
    moved, found = Augmentation(TURNED, names, CPU)(torch.Generator().manual_seed(3), conditions, values)
    seen = torch.zeros(400, dtype=torch.bool)
    for image in TURNED.images:
        mine = (values[:, image.order] == found).all(1)
        expected = TURNED.motion(image, names)(drawn.array())
        np.testing.assert_allclose(moved[mine], expected[mine.numpy()], atol=1e-4)
        seen |= mine
    assert seen.all()
    assert torch.equal(moved[:, 0], conditions[:, 0])  # the energy
    assert not torch.allclose(moved[:, 1:3], conditions[:, 1:3])
    torch.testing.assert_close(moved[:, 1:3].norm(dim=1), conditions[:, 1:3].norm(dim=1))


def test_the_critic_sees_both_sides_at_the_conditions_of_their_images(tmp_path: Path) -> None:
    side, right = np.sign(TURNED.centres[:, 0]), int(np.argmax(TURNED.centres[:, 0] > 0))
    drawn = toy(TURNED, 300, seed=4).conditions
    samples = Samples(TURNED, 100 + drawn["impact_x"][:, None] * side, drawn)
    setup = prepare(tiny(symmetries=["mirror-x"]), write_folder(tmp_path / "data", samples))
    trainer = build_trainer(setup, Batches(setup.training, setup.conditions, 16, seed=1, device=CPU))
    trainer.generator.forward = lambda _, conditions: 100 + conditions[:, 1:2] * torch.from_numpy(side).float()
    trainer.critic.view = lambda showers, conditions: torch.stack([showers[:, right], conditions[:, 1]], 1)
    for view in trainer._views(torch.Generator().manual_seed(1))[:2]:
        torch.testing.assert_close(view[:, 0] - 100, view[:, 1])  # as before they were mirrored
        assert 4 < np.isin(view[:, 1].numpy(), drawn["impact_x"]).sum() < len(view) - 4  # about half of them were


def test_families_without_symmetries_are_left_alone() -> None:
    family = Family(name="n", layers=SMALL.layers, conditions=SMALL.conditions)
    values, conditions = torch.rand(5, family.voxels), torch.rand(5, 1)
    found = Augmentation(family, ["incident_energy"], CPU)(torch.Generator(), conditions, values)
    assert found[0] is conditions
    assert found[1] is values


def test_augmented_maps_keep_their_pixels_and_their_neighbours() -> None:
    values = torch.from_numpy(toy(MAPS, 6).values)
    augment, generator = Augmentation(MAPS, [], CPU), torch.Generator().manual_seed(1)

    def neighbours(maps: torch.Tensor) -> torch.Tensor:
        return sum(maps * maps.roll(1, axis) for axis in (1, 2)).sum((1, 2))  # type: ignore[return-value]

    changed = 0
    for _ in range(20):
        _, found = augment(generator, torch.empty(6, 0), values)
        torch.testing.assert_close(found.flatten(1).sort().values, values.flatten(1).sort().values)
        torch.testing.assert_close(neighbours(found), neighbours(values), rtol=1e-4, atol=1e-3)
        changed += not torch.equal(found, values)
    assert changed >= 18


def test_every_symmetry_of_a_map_comes_about_equally_often_and_each_map_has_its_own() -> None:
    family = MAPS.model_copy(update={"pixels": (4, 4)})
    maps = torch.arange(16.0).view(1, 4, 4).expand(12_800, 4, 4)
    none = torch.empty(len(maps), 0)
    _, found = Augmentation(family, [], CPU)(torch.Generator().manual_seed(2), none, maps)
    images, counts = torch.unique(found.flatten(1), dim=0, return_counts=True)
    assert len(images) == 16 * 8  # rolls, times mirrors and quarter turns
    assert float((counts - 100.0).square().mean() / 100) == pytest.approx(1.0, abs=0.5)
    turned = family.model_copy(update={"symmetries": ("turn",)})
    four = torch.unique(Augmentation(turned, [], CPU)(torch.Generator(), none, maps)[1].flatten(1), dim=0)
    expected = torch.stack([maps[0].rot90(k) for k in range(4)]).flatten(1)
    torch.testing.assert_close(four, torch.unique(expected, dim=0))


def test_the_same_stream_augments_alike() -> None:
    for family in (SMALL, MAPS):
        values, none = torch.from_numpy(toy(family, 10).values), torch.empty(10, 0)
        both = [Augmentation(family, [], CPU)(torch.Generator().manual_seed(6), none, values)[1] for _ in "ab"]
        assert torch.equal(*both)
