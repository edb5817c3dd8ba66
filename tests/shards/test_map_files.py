"""Density maps in files of others, and realisations that stay on one side of a split."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from calogen.analysis.comparison import compare
from support import MAPS, ROOT, command, toy, write_folder

from calogen.config import Config
from calogen.errors import ShardError
from calogen.families import FAMILIES, Family
from calogen.shards.inspect import describe, verify
from calogen.shards.layouts.stacks import Stack, beside_of
from calogen.shards.samples import Samples
from calogen.shards.sources import open_shards, open_splits
from calogen.training.setup import prepare

SHIPPED = ROOT / "data" / "nbody-64"
NAME = "Maps_Mcdm_IllustrisTNG_LH_z=0.00.npy"
STACK = "maps.npy"
EACH, BOXES = 6, 15


def table(boxes: int = BOXES, columns: int = 6) -> np.ndarray:
    rng = np.random.default_rng(3)
    return np.concatenate([rng.uniform([0.1, 0.6], [0.5, 1.0], (boxes, 2)), rng.uniform(0.5, 2, (boxes, 4))], 1)[
        :, :columns
    ]


def densities(boxes: int = BOXES, pixels: int = 16) -> np.ndarray:
    """1 + delta: the maps of a box have the mean 1 together."""
    values = np.random.default_rng(4).lognormal(size=(boxes, EACH, pixels, pixels))
    return (values / values.mean((1, 2, 3), keepdims=True)).reshape(-1, pixels, pixels)


@pytest.fixture
def stack(tmp_path: Path) -> Path:
    """Surface densities of 15 simulations with 6 maps each, in some unit, and their parameters beside them."""
    omega = np.repeat(table()[:, 0], EACH)[:, None, None]
    np.save(tmp_path / STACK, (densities() * omega * 2.775e11).astype(np.float32))
    np.savetxt(tmp_path / "params_LH_IllustrisTNG.txt", table())
    return tmp_path / STACK


# ------------------------------------------------------------------------------------------------ stacks


def test_a_stack_opens_as_one_plus_delta_with_the_parameters_of_its_rows(stack: Path) -> None:
    shards = open_shards(stack, family=MAPS)
    samples = shards.read()
    np.testing.assert_allclose(samples.values, densities(), rtol=2e-6)
    np.testing.assert_allclose(samples.conditions["Omega_m"], np.repeat(table()[:, 0], EACH), rtol=1e-6)
    np.testing.assert_allclose(samples.conditions["sigma_8"], np.repeat(table()[:, 1], EACH), rtol=1e-6)
    np.testing.assert_array_equal(samples.extras["realisation_id"], np.repeat(np.arange(BOXES), EACH))
    assert "map i belongs to row i // 6; 4 of its columns are not used" in shards.notes[0]
    assert "15 simulations" in shards.notes[1]
    assert shards.kind == "reference"


@pytest.mark.parametrize(("start", "stop"), [(0, 1), (5, 7), (13, 16), (89, 90), (4, 4)])
def test_the_mean_is_that_of_whole_simulations_whatever_is_read(stack: Path, start: int, stop: int) -> None:
    shards = open_shards(stack, family=MAPS)
    np.testing.assert_array_equal(shards.read(start, stop).values, shards.read().values[start:stop])
    assert isinstance(Stack.open(stack, beside_of(stack)).maps, np.memmap)


def test_camels_columns_are_in_its_own_order(tmp_path: Path) -> None:
    np.save(tmp_path / NAME, 1e10 * np.random.default_rng(0).random((30, 256, 256), np.float32))
    np.savetxt(tmp_path / "params_IllustrisTNG.txt", [[0.3, 0.8, 1, 2, 1.5, 0.5], [0.2, 0.9, 3, 4, 0.6, 0.7]])
    shards = open_shards(tmp_path / NAME)
    assert shards.family is FAMILIES["camels"]
    assert shards.condition_names == ("Omega_m", "sigma_8", "A_SN1", "A_AGN1", "A_SN2", "A_AGN2")
    assert any("25 Mpc/h" in note for note in shards.notes)
    read = shards.read().conditions
    assert read["A_AGN1"].tolist() == [2] * 15 + [4] * 15
    assert read["A_SN2"].tolist() == pytest.approx([1.5] * 15 + [0.6] * 15)
    np.savetxt(tmp_path / "params_IllustrisTNG.txt", [[0.3, 0.8], [0.2, 0.9]])  # of N-body runs
    assert open_shards(tmp_path / NAME).condition_names == ("Omega_m", "sigma_8")


def test_a_header_names_the_columns(stack: Path) -> None:
    header = "A_SN1 sigma_8 A_AGN1 A_SN2 Omega_m A_AGN2"
    np.savetxt(stack.parent / "params_LH_IllustrisTNG.txt", table(), header=header)
    read = open_shards(stack, family=MAPS).read().conditions
    np.testing.assert_allclose(read["Omega_m"][::EACH], table()[:, 4], rtol=1e-6)
    np.testing.assert_allclose(read["sigma_8"][::EACH], table()[:, 1], rtol=1e-6)


def test_one_row_a_map_makes_simulations_of_equal_rows(stack: Path) -> None:
    rows = np.repeat(table(), EACH, axis=0)
    np.savetxt(stack.parent / "params_LH_IllustrisTNG.txt", rows, delimiter=",")
    samples = open_shards(stack, family=MAPS).read()
    np.testing.assert_allclose(samples.values, densities(), rtol=2e-6)
    np.testing.assert_array_equal(samples.extras["realisation_id"], np.repeat(np.arange(BOXES), EACH))


def test_the_parameter_file_may_be_named(stack: Path) -> None:
    other = stack.parent / "other.txt"
    np.savetxt(other, table()[::-1])
    for source in (f"{stack},{other}", [stack, other]):
        read = open_shards(source, family=MAPS).read(0, 1).conditions
        assert read["Omega_m"][0] == pytest.approx(table()[-1, 0])
    assert open_shards(f"{stack},{other}", family=MAPS).digest() != open_shards(stack, family=MAPS).digest()
    train, _ = open_splits([stack, other], family=MAPS)
    assert train.read(0, 1).conditions["Omega_m"][0] == pytest.approx(table()[-1, 0])


def test_a_bad_map_does_not_spoil_its_simulation(stack: Path) -> None:
    maps = np.load(stack)
    maps[8, 2, 3] = np.nan
    np.save(stack, maps)
    with pytest.raises(ShardError, match="1 bad row of 90") as refused:
        open_shards(stack, family=MAPS).read()
    assert "row 8" in str(refused.value.where)
    shards = open_shards(stack, family=MAPS, drop_bad=True)
    kept = shards.read()
    assert (len(kept), shards.dropped) == (89, 1)
    others = [6, 7, *range(9, 12)]
    expected = densities()[others] / densities()[others].mean()
    np.testing.assert_allclose(kept.values[[6, 7, 8, 9, 10]], expected, rtol=1e-5)
    assert any("row 8" in problem for problem in verify(stack, MAPS))


def _text(text: str) -> Callable[[Path], None]:
    return lambda stack: (stack.parent / "params_LH_IllustrisTNG.txt").write_text(text) and None


def _array(make: Callable[[], object]) -> Callable[[Path], None]:
    return lambda stack: np.save(stack, make(), allow_pickle=True)  # type: ignore[arg-type]


def _archive(stack: Path) -> None:
    with stack.open("wb") as stream:
        np.savez(stream, maps=np.ones(3))


ROWS = "\n".join("0.3 0.8" for _ in range(15))
SPOILT: dict[str, tuple[Callable[[Path], None], str, str]] = {
    "rows that do not divide": (_text("0.3 0.8\n" * 7), "do not belong together", "7 rows"),
    "no rows": (_text("# Omega_m sigma_8\n"), "do not belong together", "0 rows"),
    "a word": (_text(f"{ROWS}\n0.3 high\n"), "invalid row of the parameter file", "line 16"),
    "a short row": (_text(f"0.3 0.8\n0.3\n{ROWS}"), "invalid row of the parameter file", "line 2"),
    "a NaN": (_text(f"{ROWS}\nnan 0.8"), "invalid row of the parameter file", "finite numbers"),
    "names of something else": (_text(f"# mass age\n{ROWS}"), "no column of the parameter file", "mass, age"),
    "bytes": (lambda s: (s.parent / "params_LH_IllustrisTNG.txt").write_bytes(b"\xff\xfe") and None, "not text", ""),
    "no parameters": (lambda s: (s.parent / "params_LH_IllustrisTNG.txt").unlink(), "no file has", "one .txt file"),
    "objects": (_array(lambda: np.array([{}, 1], object)), "not a NumPy array", "bytes of Python objects"),
    "text": (lambda s: s.write_text("0.1 0.2\n"), "not a NumPy array", "8 bytes of text"),
    "zeros": (_array(lambda: np.zeros((30, 16, 16))), "30 bad rows of 30: maps without any matter", "all 0"),
    "absurd": (_text("1e29 0.8\n" * 15), "90 bad rows of 90", "Omega_m: finite values above 0, at most 500"),
    "two dimensions": (_array(lambda: np.ones((15, 16))), "not a stack of maps", "(15, 16)"),
    "whole numbers": (_array(lambda: np.ones((15, 16, 16), int)), "not a stack of maps", "int64"),
    "nothing": (lambda s: s.write_bytes(b""), "not a NumPy array", "an empty file"),
    "half": (lambda s: s.write_bytes(s.read_bytes()[:3000]), "truncated", "3000 bytes of an array that is not whole"),
    "an archive": (_archive, "not a stack of maps", "archive"),
    "another size": (_array(lambda: np.ones((15, 16, 8), np.float32)), "another size than the family's", "(16, 8)"),
    "negative": (_array(lambda: np.full((15, 16, 16), -1.0)), "bad rows", ""),
}


@pytest.mark.parametrize("case", SPOILT)
def test_what_is_wrong_with_a_stack_is_said(stack: Path, case: str) -> None:
    spoil, message, found = SPOILT[case]
    spoil(stack)
    with pytest.raises(ShardError, match=message) as refused:
        for _ in open_shards(stack, family=MAPS).chunks():
            pass
    assert found in str(refused.value)
    assert "pickle" not in str(refused.value)


def test_a_simulation_of_zeros_can_be_left_out(stack: Path) -> None:
    maps = np.load(stack)
    maps[2 * EACH : 3 * EACH] = 0
    np.save(stack, maps)
    with pytest.raises(ShardError, match="6 bad rows of 90: maps without any matter"):
        open_shards(stack, family=MAPS).read()
    assert len(open_shards(stack, family=MAPS, drop_bad=True).read()) == 84


def test_the_folder_of_a_stack_is_no_data_but_says_what_is(stack: Path) -> None:
    with pytest.raises(ShardError, match="holds no data files") as refused:
        open_shards(stack.parent, family=MAPS)
    assert refused.value.hint == f"give the stack of maps itself: {stack}"


def test_labels_are_named_after_the_parameter_file_or_without_it(stack: Path) -> None:
    beside = stack.parent / "params_LH_IllustrisTNG.txt"
    other = beside.rename(stack.parent / "cosmologies.dat")
    for place in (f"{stack},{other}", f"{stack},{other},suite=IllustrisTNG"):
        assert len(open_shards(place, family=MAPS)) == 90
    assert describe(f"{stack},{other},suite=TNG", MAPS)["conditions"]["suite"] == {"samples": {"TNG": 90}}
    other.rename(beside)
    assert describe(f"{stack},suite=TNG", MAPS)["conditions"]["suite"] == {"samples": {"TNG": 90}}


def test_which_parameter_file_is_meant_must_be_clear(stack: Path) -> None:
    (stack.parent / "params_LH_IllustrisTNG.txt").unlink()
    for name in ("params_a.txt", "params_b.txt"):
        np.savetxt(stack.parent / name, table())
    with pytest.raises(ShardError, match="not clear which") as refused:
        open_shards(stack, family=MAPS)
    assert "params_a.txt, params_b.txt" in str(refused.value)
    with pytest.raises(ShardError, match="parameter file, not samples"):
        open_shards(stack.parent / "params_a.txt")
    with pytest.raises(ShardError, match="only a stack of maps takes"):
        open_shards([write_folder(stack.parent / "toy", toy(MAPS, 4)), stack.parent / "params_a.txt"])
    with pytest.raises(ShardError, match="no built-in family has maps like these"):
        open_shards(f"{stack},{stack.parent / 'params_a.txt'}")


def test_a_stack_is_described_trained_on_and_compared(tmp_path: Path) -> None:
    stack = tmp_path / STACK
    family = FAMILIES["nbody-64"]
    maps = toy(family, 48, seed=2)
    np.save(stack, maps.values * 1e10)
    np.savetxt(tmp_path / "params.txt", table(16, 2))
    said = command("info", stack)
    assert "nothing says how wide the maps are" in said.err + said.out
    assert "--box" in said.err + said.out
    said = command("info", stack, "--box", 64)
    assert said.code == 0
    assert "16" in said.out.split("realisations")[1].splitlines()[0]
    assert "map i belongs to row i // 3" in said.out
    sizes = ["generator.network=dcgan", "generator.latent=2", "generator.channels=[4,4]"]
    sizes += ["critic.channels=[4,4]", "training.batch_size=8"]
    small = [word for size in sizes for word in ("--set", size)]
    run = ["--condition", "Omega_m", "--condition", "sigma_8", "--out", tmp_path / "run", "--steps", 1, "--threads", 1]
    trained = command("train", "--data", stack, "--box", 64, *run, *small)
    assert trained.code == 0, trained.err
    once = ["--workers", 1, "--extrapolate"]
    made = command("generate", tmp_path / "run", "--like", stack, "--box", 64, "--out", tmp_path / "made", *once)
    assert "note: maps divided by the mean of their simulation's maps" in made.err
    assert made.code == 0, made.err
    with pytest.raises(ShardError, match="trained with 15 of these realisations"):
        compare(stack, tmp_path / "made", bins=0)
    (tmp_path / "others").mkdir()
    others = tmp_path / "others" / STACK
    np.save(others, toy(family, 48, seed=3).values)
    np.savetxt(tmp_path / "others" / "params.txt", table(32, 2)[16:])
    report = compare(others, tmp_path / "made", bins=0)
    assert any("divided by the mean of their simulation's maps" in note for note in report.notes)
    assert report.metrics["made"]["power_rms"].value is not None
    assert len(np.unique(report.reference.groups)) == 16


def test_maps_of_no_built_in_family_are_read_as_their_configuration_says(tmp_path: Path) -> None:
    """Three conditions, one of them below 0, a column that is not used, and a family that no built-in one is like."""
    boxes, each = 10, 10
    rng = np.random.default_rng(5)
    np.save(tmp_path / STACK, rng.lognormal(23, 1, (boxes * each, 128, 128)).astype(np.float32))
    rows = np.c_[rng.uniform([0.1, 0.6, -1.3], [0.5, 1.0, -0.7], (boxes, 3)), rng.random(boxes)]
    np.savetxt(tmp_path / "params.txt", rows)
    own = ROOT / "configs" / "own-maps.toml"
    setup = prepare(Config.load(own), tmp_path / STACK)
    assert setup.family == Config.load(own).resolved_family()
    assert setup.family.name not in FAMILIES
    assert setup.conditions == ("Omega_m", "sigma_8", "w_0")
    assert (len(setup.training), len(setup.validation)) == (90, 10)
    known = np.concatenate([side.all_conditions()["w_0"] for side in (setup.training, setup.validation)])
    np.testing.assert_allclose(np.unique(known), np.sort(rows[:, 2]), rtol=1e-6)
    assert setup.training.read(0, 20).values.mean() == pytest.approx(1, rel=1e-4)
    np.save(tmp_path / "others.npy", np.ones((100, 64, 64), np.float32))
    with pytest.raises(ShardError, match=r"(?s)another size than the family's.*\(128, 128\).*\(64, 64\)"):
        prepare(Config.load(own), f"{tmp_path / 'others.npy'},{tmp_path / 'params.txt'}")
    np.savetxt(tmp_path / "params.txt", rows[:, :3])
    with pytest.raises(ShardError, match="the names given are not as many as the columns"):
        prepare(Config.load(own), tmp_path / STACK)


def test_files_that_do_not_say_what_they_hold_are_read_like_others(stack: Path) -> None:
    with pytest.raises(ShardError, match="no built-in family"):
        open_shards(stack)
    shards = open_shards(stack, like=MAPS)
    assert shards.family == MAPS
    assert any("16 Mpc/h" in note for note in shards.notes)
    other = MAPS.model_copy(update={"pixels": (16, 8)})
    assert open_shards(write_folder(stack.parent / "native", toy(MAPS, 3)), like=other).family == MAPS
    made = write_folder(stack.parent / "made", replace(toy(MAPS, 40), kind="generated"))
    found = command("compare", stack, f"made={made}", "--out", made, "--bins", 1)
    assert "the output folder holds something else" in found.err  # and not the family
    assert compare(stack, made, bins=0).plan.family == MAPS


def test_a_reference_in_splits_is_judged_by_its_test_samples(tmp_path: Path) -> None:
    for seed, split in enumerate(("train", "test")):
        write_folder(tmp_path / "data" / split, toy(MAPS, 40 + seed, seed=seed))
    made = write_folder(tmp_path / "made", replace(toy(MAPS, 40, seed=3), kind="generated"))
    report = compare(tmp_path / "data", made, bins=0, training=tmp_path / "data")
    assert report.reference.count == 41


# ------------------------------------------------------------------------------------------------ realisations


def boxes(family: Family, ids: list[int], seed: int = 0) -> Samples:
    """Three maps of each realisation, all of a realisation at its own parameters."""
    maps = toy(family, 3 * len(ids), seed)
    own = {n: np.repeat([np.random.default_rng(i).uniform(0.1, 0.5) for i in ids], 3) for n in maps.conditions}
    return Samples(family, maps.values, own, {"realisation_id": np.repeat(ids, 3)})


def test_a_realisation_in_train_and_in_validation_is_refused_by_name(tmp_path: Path) -> None:
    write_folder(tmp_path / "train", boxes(MAPS, [7, 8, 9, 10]), 5)
    write_folder(tmp_path / "validation", boxes(MAPS, [1, 9, 2, 8]))
    with pytest.raises(ShardError, match="realisation 8 is on both sides") as refused:
        open_splits(tmp_path)
    assert "train/shard-000000.h5, row 3" in str(refused.value.where)
    assert "validation/shard-000000.h5, row 9" in str(refused.value.found)
    assert "also realisation 9" in str(refused.value)
    facts = describe(tmp_path)
    assert facts["realisations"] == 6
    assert any("realisation 8 is on both sides" in problem for problem in facts["problems"])
    refused_too = command("train", "--data", tmp_path, "--out", tmp_path / "run", "--condition", "Omega_m")
    assert refused_too.code == 2
    assert "realisation 8 is on both sides" in refused_too.err


def test_a_reference_that_was_trained_on_is_refused(tmp_path: Path) -> None:
    reference = boxes(MAPS, list(range(20)), seed=1)
    train = open_shards(write_folder(tmp_path / "train", boxes(MAPS, list(range(19, 40)))))
    with pytest.raises(ShardError, match="realisation 19 is on both sides") as refused:
        compare(reference, boxes(MAPS, list(range(20)), seed=2), training=train)
    assert "shard-000000.h5, row 0" in str(refused.value.where)
    assert "row 57" in str(refused.value.found)


def test_the_same_number_at_other_parameters_is_another_realisation(tmp_path: Path) -> None:
    write_folder(tmp_path / "train", boxes(MAPS, [0, 1, 2]))
    maps = boxes(MAPS, [0, 1, 2], seed=1)
    moved = {name: values + 0.01 for name, values in maps.conditions.items()}
    write_folder(tmp_path / "validation", Samples(MAPS, maps.values, moved, maps.extras))
    train, validation = open_splits(tmp_path)
    assert (len(train), len(validation)) == (9, 9)


def test_maps_of_equal_parameters_stay_together_where_no_realisation_is_known(tmp_path: Path) -> None:
    maps = boxes(MAPS, list(range(20)))
    write_folder(tmp_path / "all", Samples(MAPS, maps.values, maps.conditions))
    train, validation = open_splits(tmp_path / "all")
    sides = [set(shards.read().conditions["Omega_m"].tolist()) for shards in (train, validation)]
    assert (len(train), len(validation)) == (54, 6)
    assert not sides[0] & sides[1]
    few = boxes(MAPS, [0, 1])  # two cosmologies, many maps of each: not two realisations
    write_folder(tmp_path / "few", Samples(MAPS, np.tile(few.values, (9, 1, 1)), _tiled(few.conditions)))
    train, validation = open_splits(tmp_path / "few")
    assert np.unique(validation.read().conditions["Omega_m"], return_counts=True)[1].tolist() == [2, 2]
    assert any("nothing says which maps are of one simulation" in note for note in train.notes)


def _tiled(conditions: object) -> dict[str, np.ndarray]:
    return {name: np.tile(values, 9) for name, values in conditions.items()}  # type: ignore[attr-defined]


def test_maps_that_are_no_densities_over_their_mean_are_refused(tmp_path: Path) -> None:
    maps = toy(MAPS, 8)
    folder = write_folder(tmp_path / "maps", Samples(MAPS, maps.values * 3e10, maps.conditions))
    with pytest.raises(ShardError, match="not densities over the mean") as refused:
        open_shards(folder).read()
    assert "1 + delta" in str(refused.value)
    wild = Samples(MAPS, maps.values * 3e10, maps.conditions, kind="generated")
    assert len(open_shards(write_folder(tmp_path / "wild", wild)).read()) == 8  # a bad model is to be judged


def test_maps_that_are_the_same_everywhere_are_refused(tmp_path: Path) -> None:
    maps = toy(MAPS, 8)
    flat = np.ones_like(maps.values) * np.linspace(0.5, 2, 8)[:, None, None]
    with pytest.raises(ShardError, match="all of the first 8 maps are the same everywhere"):
        open_shards(write_folder(tmp_path / "flat", Samples(MAPS, flat, maps.conditions))).read()
    flat[3] = maps.values[3]
    assert len(open_shards(write_folder(tmp_path / "empty", Samples(MAPS, flat, maps.conditions))).read()) == 8


def test_maps_of_two_boxes_are_not_read_as_one_and_have_no_labels(tmp_path: Path) -> None:
    maps, wide = toy(MAPS, 8), MAPS.model_copy(update={"box_size": 25.0})
    folders = [write_folder(tmp_path / "a", maps), write_folder(tmp_path / "b", replace(maps, family=wide))]
    with pytest.raises(ShardError, match="files of different family") as refused:
        open_shards(folders)
    assert "box 16 Mpc/h" in refused.value.expected
    assert "box 25 Mpc/h" in refused.value.found
    with pytest.raises(ShardError, match="'particle' cannot be a condition") as refused:
        open_shards([f"{folders[0]},particle=e+", f"{folders[1]},particle=gamma"])
    assert refused.value.expected == "a number: maps have no labels"


def test_other_boxes_in_a_file_of_maps_are_theirs(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "maps.h5", "w") as file:
        file["maps"] = toy(FAMILIES["nbody-64"], 3).values
        file["params"] = table(3, 2)
        file.attrs["param_names"] = ["Omega_m", "sigma_8"]
        file.attrs["box_size"] = 100.0
    assert (
        open_shards(tmp_path / "maps.h5").family.summary == "maps-64-100, (64, 64) pixels, box 100 Mpc/h, 0 Mpc/h deep"
    )
    with pytest.raises(ShardError, match="another box size"):
        open_shards(tmp_path / "maps.h5", family=FAMILIES["nbody-64"])


def test_shipped_maps_are_whole_and_split_by_realisation() -> None:
    assert verify(SHIPPED) == []
    facts = describe(SHIPPED)  # says so under problems if a realisation is in two splits
    assert (facts["family"], facts["samples"], facts["realisations"], facts["problems"]) == ("nbody-64", 1110, 370, [])
    assert facts["splits"] == {"train": 720, "validation": 90, "test": 300}
    assert facts["values"]["mean"] == pytest.approx(1, abs=0.02)
    assert facts["values"]["low"] > 0.003
    for name, condition in facts["conditions"].items():
        known = FAMILIES["nbody-64"].condition(name)
        assert known.covered(condition["low"], condition["high"]) == (known.low, known.high)
    assert sum(path.stat().st_size for path in SHIPPED.rglob("*.h5")) < 12e6
    train, validation = open_splits(SHIPPED)
    assert (len(train), len(validation)) == (720, 90)
    test = open_shards(SHIPPED, split="test").read()
    quarters = np.digitize(test.conditions["Omega_m"], [0.3]) + 2 * np.digitize(test.conditions["sigma_8"], [0.8])
    assert np.bincount(quarters).tolist() == [75, 75, 75, 75]
    kept_bits = test.values.view(np.uint32) & np.uint32(0xFFF)
    assert not kept_bits.any()  # 11 bits of mantissa
