"""Super-resolution: laws of its parts, what it learns from pairs, and the way from files to files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from calogen.analysis.metrics import resolution
from calogen.analysis.metrics.resolution import fidelity
from support import MAPS, command, tiny, write_folder

from calogen.config import Config
from calogen.errors import ConditionError, ConfigError, ShardError
from calogen.families import Family
from calogen.models.conditions import inputs_of
from calogen.models.maps import translation
from calogen.models.maps.translation import PairCritic, Translator, filtered, power_table, upsampled
from calogen.sampling import Surrogate
from calogen.shards.samples import Samples
from calogen.shards.sources import open_shards
from calogen.training.batches import Augmentation
from calogen.training.loop import train
from calogen.training.setup import prepare

PAIRS = Family.model_validate({**MAPS.model_dump(), "low_pixels": (8, 8)})
CPU = torch.device("cpu")


def pairs(count: int, seed: int = 0, family: Family = PAIRS) -> Samples:
    """Log-normal maps with much power on small scales, and means over their coarse pixels."""
    rng, (height, width) = np.random.default_rng(seed), family.sample_shape
    k = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width))
    k[0, 0] = 1
    field = np.fft.irfft2(np.fft.rfft2(rng.standard_normal((count, height, width))) / k, s=(height, width))
    high = np.exp(0.8 * field / field.std() - 0.3).astype(np.float32)
    factor = family.factor
    low = high.reshape(count, height // factor, factor, width // factor, factor).mean((2, 4))
    conditions = {"Omega_m": rng.uniform(0.1, 0.5, count), "sigma_8": rng.uniform(0.6, 1.0, count)}
    return Samples(family, high, conditions, {"low": low})


@pytest.fixture(scope="module")
def fitted() -> Translator:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(translation, "_FIT", 60)
        torch.manual_seed(1)
        generator = Translator(PAIRS, (), channels=(8, 8), hidden=(8,))
        generator.fit(pairs(200), 1)
    return generator.requires_grad_(False)


def outputs(generator: Translator, samples: Samples, count: int) -> list[np.ndarray]:
    inputs, stream = torch.from_numpy(inputs_of(samples, (), samples.family)), torch.Generator().manual_seed(2)
    shape = (len(samples), generator.latent_size)
    return [generator(torch.randn(shape, generator=stream), inputs).numpy() for _ in range(count)]


# ------------------------------------------------------------------------------------------------- its parts


def test_interpolation_is_periodic_and_keeps_slopes() -> None:
    maps = torch.rand(3, 6, 8)
    assert torch.allclose(upsampled(torch.ones(1, 4, 4), 2), torch.ones(1, 8, 8))
    moved = upsampled(maps.roll((2, 3), (1, 2)), 2)
    assert torch.allclose(moved, upsampled(maps, 2).roll((4, 6), (1, 2)), atol=1e-6)
    line = torch.arange(12.0).expand(1, 12, 12)
    inner = upsampled(line, 2)[0, 0, 8:-8]
    assert torch.allclose(inner, torch.arange(24)[8:-8] / 2 - 0.25, atol=0.06)
    wave = np.sin(np.arange(16) * np.pi / 4)[None, None].repeat(4, 1)  # cubic splines know a wave of eight pixels
    fine = np.sin((np.arange(32) / 2 - 0.25) * np.pi / 4)
    assert np.allclose(resolution.interpolated(wave, 2)[0, 3], fine, atol=0.01)


def test_a_filter_changes_the_power_it_should_whatever_the_size() -> None:
    noise = torch.randn(40, 32, 32, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(power_table(noise), torch.ones(24), atol=0.15)
    table = torch.linspace(0.5, 2, 24)
    ratio = power_table(filtered(noise, table)) / power_table(noise)
    assert torch.allclose(ratio[1:], table[1:] ** 2, rtol=0.08)  # maps of 32 pixels have no modes near the first node
    tiled = noise.tile(1, 2, 3)
    assert torch.allclose(filtered(tiled, table), filtered(noise, table).tile(1, 2, 3), atol=1e-4)


def test_pairs_are_moved_alike() -> None:
    samples = pairs(30)
    inputs = torch.from_numpy(inputs_of(samples, ("sigma_8",), PAIRS))
    augment = Augmentation(PAIRS, ("sigma_8",), CPU)
    moved, high = augment(torch.Generator().manual_seed(3), inputs, torch.from_numpy(samples.values))
    assert torch.equal(moved[:, 0], inputs[:, 0])
    coarse = high.unflatten(1, (8, 2)).unflatten(3, (8, 2)).mean((2, 4))
    assert torch.allclose(coarse.flatten(1), moved[:, 1:], atol=1e-5)
    assert not torch.allclose(moved, inputs)


# ----------------------------------------------------------------------------------------------- what it learns


def test_the_start_has_the_power_of_the_truth_and_knows_more_than_interpolation(fitted: Translator) -> None:
    fresh = pairs(100, seed=5)
    made = outputs(fitted, fresh, 8)
    found = fidelity(fresh, made)
    assert found.power == pytest.approx(np.ones(7), abs=0.12)
    assert found.low_power[3:].max() < 0.85  # the input lacks it
    assert (found.mean_correlation > found.low_correlation - 0.02).all()
    assert (found.mean_correlation > found.correlation).all()
    assert not np.allclose(made[0], made[1])
    itself = fidelity(fresh, [fresh.values])
    assert itself.power == pytest.approx(np.ones(7))
    assert itself.correlation == pytest.approx(np.ones(7))


def test_maps_of_any_size_are_periodic(fitted: Translator) -> None:
    """Tiled low maps and noise give tiled maps: no edge, and nothing that depends on the size."""
    small, wide = fitted.shaped((16, 16)), fitted.shaped((32, 48))
    noise, low = torch.randn(2, 16, 16), torch.rand(2, 8, 8) + 0.2
    once = small(noise.flatten(1), low.flatten(1))
    many = wide(noise.tile(1, 2, 3).flatten(1), low.tile(1, 2, 3).flatten(1))
    assert torch.allclose(many, once.tile(1, 2, 3), rtol=2e-3, atol=1e-4)
    assert wide.family.box_size / 32 == pytest.approx(MAPS.box_size / 16)
    for size in (31, 0, -16, 6):  # low maps need some pixels to be interpolated between
        with pytest.raises(ConfigError, match=r"(?s)does not fit.*a multiple of 2, at least 8"):
            fitted.resized(size)


def test_the_critic_sees_whether_maps_belong_together(fitted: Translator) -> None:
    samples = pairs(64, seed=6)
    critic = PairCritic(fitted, channels=(4, 4))
    critic.fit(samples, ())
    inputs = torch.from_numpy(inputs_of(samples, (), PAIRS))
    logs = torch.log(torch.from_numpy(samples.values) + 0.02)
    own, other = (
        critic._spectra(logs, fitted.transform.standard(x))
        for x in (inputs.unflatten(1, (8, 8)), inputs.roll(1, 0).unflatten(1, (8, 8)))
    )
    bands = own.shape[1] // 4
    assert own[:, -bands + 1].min() > 0.9  # cross-correlations of the longest modes
    assert abs(other[:, -bands + 1].mean()) < 0.3
    views = critic.view(torch.from_numpy(samples.values), inputs)
    assert critic(views, fitted.scaled(inputs)).shape == (64,)


# ------------------------------------------------------------------------------------------ from files to files


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("pairs") / "data", pairs(80), 40)


def config(**changes: object) -> Config:
    given = {"conditions": ["sigma_8"], "generator": {"network": "super-resolution"}, "training": {"steps": 2}}
    return tiny("map", **{**given, **changes})


@pytest.fixture(scope="module")
def run(folder: Path) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(translation, "_FIT", 5)
        return train(config(), folder, folder.parent / "run").folder


def test_maps_are_translated_the_same_from_files_and_in_memory(run: Path, folder: Path, tmp_path: Path) -> None:
    surrogate, shards = Surrogate.load(run), open_shards(folder)
    samples = shards.read(0, 80)
    expected = surrogate.translate(samples, 7)
    done = command(
        "translate", run, "--data", folder, "--out", tmp_path / "high", "--seed", 7, "--shard-size", 30, "--workers", 1
    )
    assert done.code == 0, done.err
    high = open_shards(tmp_path / "high")
    assert np.allclose(high.read().values, expected, rtol=1e-5)
    assert high.kind == "generated"
    assert high.family.low_pixels is None
    assert high.all_conditions()["sigma_8"] == pytest.approx(samples.conditions["sigma_8"])
    assert np.array_equal(
        surrogate.translate(samples.extras["low"], 7, {"sigma_8": samples.conditions["sigma_8"]}), expected
    )
    assert not np.allclose(surrogate.translate(samples, 8), expected)
    wide = surrogate.translate(np.tile(samples.extras["low"][:2], (1, 2, 1)), conditions={"sigma_8": 0.8})
    assert wide.shape == (2, 32, 16)
    for options, said in (
        (("--check", "--out", tmp_path / "no"), "nothing is written"),
        (("--box", 64), "files say themselves"),
    ):
        refused = command("translate", run, "--data", folder, *options)
        assert refused.code == 2
        assert said in refused.err
    alone = Samples(PAIRS.low, samples.extras["low"], dict(samples.conditions))
    assert np.array_equal(surrogate.translate(alone, 7), expected)
    shown = command("translate", run, "--data", folder, "--check")
    assert shown.code == 0, shown.err
    assert len([line for line in shown.out.splitlines() if line.strip()[:1].isdigit()]) >= 7


def test_what_does_not_fit_is_refused_with_the_numbers(run: Path, folder: Path, tmp_path: Path) -> None:
    surrogate, samples = Surrogate.load(run), open_shards(folder).read(0, 3)
    low = samples.extras["low"]
    other = PAIRS.low.model_copy(update={"box_size": 32.0})
    with pytest.raises(ConfigError, match=r"(?s)another pixel size.*2 Mpc/h.*4 Mpc/h"):
        surrogate.translate(Samples(other, low, dict(samples.conditions)))
    files = write_folder(tmp_path / "other", Samples(other, low, dict(samples.conditions)))
    refused = command("translate", run, "--data", files, "--out", tmp_path / "new", "--workers", 1)
    assert refused.code == 2
    assert "another pixel size" in refused.err
    assert "expected 2 Mpc/h" in refused.err
    assert "found    4 Mpc/h" in refused.err
    assert not (tmp_path / "new").exists()
    shipped = Surrogate.load("nbody-32-to-64")
    thin = Samples(shipped.family.low.model_copy(update={"depth": 4.0}), np.ones((1, 32, 32), np.float32), {})
    with pytest.raises(ConfigError, match=r"(?s)another depth.*expected 8 Mpc/h.*found    4 Mpc/h"):
        shipped.translate(thin)
    with pytest.raises(ConditionError, match=r"(?s)sigma_8.*found    7"):
        surrogate.translate(low, conditions={"sigma_8": 7.0})
    beyond = surrogate.translate(low, 3, {"sigma_8": 1.02}, extrapolate=True)
    assert np.isfinite(beyond).all()
    with pytest.raises(ConditionError, match="'sigma_8' is missing"):
        surrogate.translate(low)
    with pytest.raises(ShardError, match="not densities"):
        surrogate.translate(low - 5, conditions={"sigma_8": 0.8})
    with pytest.raises(ShardError, match="another shape"):
        surrogate.translate(low[0])
    with pytest.raises(ConfigError, match="makes maps of high resolution from"):
        surrogate.sample({"sigma_8": 0.8}, 2)
    with pytest.raises(ConfigError, match="has no maps of low resolution"):
        Surrogate.load("nbody-64").translate(low)
    plain = write_folder(tmp_path / "plain", Samples(MAPS, samples.values, dict(samples.conditions)))
    with pytest.raises(ConfigError, match="data have none of low resolution"):
        prepare(config(), plain)
    assert prepare(tiny("map"), folder).family.low_pixels is None  # other networks have no use for them


def test_pairs_that_are_none_are_refused_with_the_numbers(tmp_path: Path) -> None:
    samples = pairs(20)
    shuffled = replace(samples, extras={"low": samples.extras["low"][::-1]})
    path = write_folder(tmp_path / "shuffled", shuffled)
    with pytest.raises(ShardError, match=r"(?s)do not belong together.*at least 0\.5.*20 pairs.*median of -?0\.\d"):
        open_shards(path).read()
    some = samples.extras["low"].copy()
    some[[5, 6]] = some[[6, 5]]
    path = write_folder(tmp_path / "some", replace(samples, extras={"low": some}))
    with pytest.raises(ShardError, match=r"(?s)do not belong together.*2 of 20 pairs.*row 5"):
        open_shards(path).read()
    assert len(open_shards(path).read(0, 5)) == 5
    with pytest.raises(ShardError, match=r"(?s)do not belong together.*1 of 14 pairs.*row 6"):
        open_shards(path).read(6, 20)
    moved = replace(samples, extras={"low": np.roll(samples.extras["low"], 1, 2)})
    path = write_folder(tmp_path / "moved", moved)
    with pytest.raises(ShardError, match=r"(?s)lie beside each other.*found    a correlation of 0\.5.*by \(0, -1\) of"):
        open_shards(path).read()
    bad = samples.extras["low"].copy()
    bad[4, 1, 1] = np.nan
    path = write_folder(tmp_path / "bad", replace(samples, extras={"low": bad}))
    with pytest.raises(ShardError, match=r"(?s)1 bad row.*dataset low, row 4"):
        open_shards(path).read()
    assert len(open_shards(path, drop_bad=True).read()) == 19
    with pytest.raises(ValueError, match=r"\(16, 16\) pixels are no multiple of those of \(6, 6\)"):
        Family.model_validate({**MAPS.model_dump(), "low_pixels": (6, 6)})
    with h5py.File(tmp_path / "odd.h5", "w") as file:
        file["maps"], file["low"] = samples.values, np.ones((20, 6, 6), np.float32)
        file["params"] = np.stack([samples.conditions["Omega_m"], samples.conditions["sigma_8"]], 1)
        file.attrs["param_names"], file.attrs["box_size"] = ["Omega_m", "sigma_8"], 16.0
    with pytest.raises(ShardError, match=r"(?s)do not go together.*\(16, 16\) pixels over the same.*\(6, 6\)"):
        open_shards(tmp_path / "odd.h5")
    with pytest.raises(ShardError, match="do not fit the family"):
        Samples(MAPS, samples.values, {}, {"low": samples.extras["low"]})
