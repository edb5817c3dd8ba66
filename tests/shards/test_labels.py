"""Conditions that are labels: matched by name in files, requests and reports, and without an order for networks."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from itertools import permutations
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from calogen.analysis.comparison import compare
from calogen.analysis.figures.draw import draw
from calogen.analysis.page.notes import condition_notes
from calogen.analysis.survey.plan import plan_comparison
from calogen.analysis.survey.selections import selections
from calogen.analysis.survey.survey import survey
from support import ENERGY, MAPS, Trained, command, listing, tiny

from calogen.cli.compare import _named_samples
from calogen.config import CriticConfig, GeneratorConfig
from calogen.errors import ConditionError, ConfigError, ShardError
from calogen.families import CartesianLayer, Condition, Family, resolve_family
from calogen.gallery import draw_gallery
from calogen.models.conditions import scale_conditions, scaled_size
from calogen.models.registry import NETWORKS, build_critic, build_generator
from calogen.production.requests import Request, Spec
from calogen.runs.checkpoint import ConditionRange
from calogen.sampling import Surrogate
from calogen.shards.inspect import describe
from calogen.shards.samples import Samples
from calogen.shards.sources import open_shards, open_splits
from calogen.shards.writer import write_shard
from calogen.simulators import build
from calogen.training.loop import train
from calogen.training.setup import prepare

PLATES = Family(
    name="plates",
    layers=(CartesianLayer(shape=(2, 2), size=(20, 20)), CartesianLayer(shape=(3, 3), size=(20, 20))),
    conditions=(ENERGY,),
)
SHARES = {"gamma": 0.2, "e-": 0.5, "e+": 0.7}
"""Mean share of the energy in the first layer, by particle."""


def particle(*labels: str) -> Condition:
    return Condition.labelled("particle", labels)


def family_of(*labels: str) -> Family:
    return PLATES.with_condition(particle(*labels))


def showers(labels: Sequence[str], of: Sequence[str], seed: int = 1) -> Samples:
    """One shower for each entry of ``of``; the condition is there if there are several labels."""
    rng = np.random.default_rng(seed)
    energy = 1e3 * 100 ** rng.random(len(of))
    mean = np.array([SHARES[name] for name in of])
    share = rng.beta(20 * mean, 20 * (1 - mean))
    weights = [rng.dirichlet(np.full(size, 3.0), len(of)) for size in (4, 9)]
    values = np.concatenate([weights[0] * share[:, None], weights[1] * (1 - share)[:, None]], 1) * energy[:, None] * 0.9
    codes = {"particle": [labels.index(name) for name in of]} if len(labels) > 1 else {}
    return Samples(family_of(*labels) if codes else PLATES, values, {"incident_energy": energy, **codes})


def file_of(path: Path, label: str, count: int, seed: int = 1, *, told: bool = True) -> Path:
    """A file of one particle, which only its provenance says, if anything does."""
    provenance = {"particle": label} if told else {}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_shard(path, showers([label], [label] * count, seed), provenance=provenance)
    return path


def shares(samples: Samples) -> np.ndarray:
    return samples.values[:, :4].sum(1) / samples.values.sum(1)


# ---------------------------------------------------------------------------------------------------- families


def test_labels_survive_json_and_toml_and_conditions_without_them_are_written_as_ever() -> None:
    family = family_of("gamma", "e+")
    assert Family.model_validate_json(family.model_dump_json()) == family
    table = {
        **PLATES.model_dump(),
        "conditions": [ENERGY.model_dump(), {"name": "particle", "labels": ["gamma", "e+"]}],
    }
    assert resolve_family(table) == family
    assert "labels" not in PLATES.model_dump_json()
    assert family.labelled == {"particle": ("gamma", "e+")}
    assert family.labels("incident_energy") == family.labels("angle") == ()
    assert [family.condition("particle").code(label) for label in ("gamma", "e+")] == [0, 1]
    with pytest.raises(ConditionError, match="did you mean 'gamma'"):
        family.condition("particle").code("gama")


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"labels": ["gamma"]}, "at least two"),
        ({"labels": ["gamma", "gamma"]}, "all different"),
        ({"labels": ["gamma", "e +"]}, "is not a label"),
        ({"labels": ["gamma", "e,+"]}, "is not a label"),
        ({"labels": ["gamma", ""]}, "is not a label"),
        ({"labels": ["a", "b"], "unit": "MeV"}, "no unit"),
        ({"labels": ["a", "b"], "scale": "log", "low": 1, "high": 2}, "no scale"),
        ({"labels": ["a", "b"], "high": 2}, "no range"),
        ({"labels": "ab"}, "Field required"),
    ],
)
def test_labels_that_are_none_are_refused(change: dict[str, Any], part: str) -> None:
    table = {**PLATES.model_dump(), "conditions": [ENERGY.model_dump(), {"name": "particle", **change}]}
    with pytest.raises(ConfigError, match=part):
        resolve_family(table)


def test_energies_and_conditions_of_maps_are_numbers() -> None:
    with pytest.raises(ValueError, match="a number"):
        Family(name="x", layers=PLATES.layers, conditions=(Condition.labelled("incident_energy", ("a", "b")),))
    with pytest.raises(ValueError, match="numbers"):
        MAPS.with_condition(Condition.labelled("code", ("a", "b")))


# ---------------------------------------------------------------------------------------------------- network space


def test_two_labels_are_minus_and_plus_one() -> None:
    family = family_of("gamma", "e+")
    values = torch.tensor([[1e3, 0.0], [1e5, 1.0]])
    scaled = scale_conditions(family, ["incident_energy", "particle"], values)
    torch.testing.assert_close(scaled, torch.tensor([[-1.0, -1.0], [1.0, 1.0]]))


@pytest.mark.parametrize("place", [0, 1])
def test_more_labels_have_no_order(place: int) -> None:
    labels = ("a", "b", "c", "d")
    family = family_of(*labels)
    names = ["incident_energy"]
    names.insert(place, "particle")
    values = torch.full((4, 2), 1e4, dtype=torch.float64)
    values[:, place] = torch.arange(4.0)
    scaled = scale_conditions(family, names, values)
    assert scaled.shape == (4, scaled_size(family, names)) == (4, 4)
    energy = scale_conditions(family, ["incident_energy"], values[:, [1 - place]])
    torch.testing.assert_close(scaled[:, [1 - place]], energy)  # a number stays in its place
    coding = scaled[:, [place, 2, 3]]
    assert coding.sum(0).tolist() == [0, 0, 0]  # deviations from the mean of all labels
    distances = torch.cdist(coding, coding)[:3, :3]  # all labels but the last are equally far apart
    assert distances[~torch.eye(3, dtype=torch.bool)].unique().numel() == 1
    # With a constant, the columns say no more and no less than one column for each label would.
    design = torch.cat([torch.ones(4, 1, dtype=torch.float64), coding], 1)
    torch.testing.assert_close(
        design @ torch.linalg.solve(design, torch.eye(4, dtype=torch.float64)), torch.eye(4).double()
    )


NAMES = {"particle last": ("incident_energy", "particle"), "particle first": ("particle", "incident_energy")}


@pytest.mark.parametrize("labels", [("gamma", "e+"), ("gamma", "e-", "e+")], ids=len)
@pytest.mark.parametrize("names", NAMES.values(), ids=NAMES)
def test_the_folded_generator_is_the_module(labels: tuple[str, ...], names: tuple[str, ...]) -> None:
    samples = showers(labels, [labels[i % len(labels)] for i in range(240)])
    torch.manual_seed(1)
    generator = build_generator(samples.family, names, GeneratorConfig(latent=4, hidden=(8, 8))).eval()
    generator.fit(samples, 1)
    with torch.no_grad():
        for network in (generator.energies, generator.shapes):
            network[-1].weight.normal_(0, 0.1)
    latent = torch.randn(60, generator.latent_size)
    columns = np.stack([samples.conditions[name][:60] for name in names], 1)
    with torch.inference_mode():
        module = generator(latent, torch.from_numpy(columns)).numpy()
    found = generator.folded()(latent.numpy(), columns)
    assert np.mean(np.isclose(found, module, rtol=1e-3, atol=1e-3)) > 0.999  # but for the gate at exact zeros


@pytest.mark.parametrize("network", [name for name in NETWORKS["calorimeter"] if name != "flow"])
def test_every_network_takes_labels(network: str) -> None:
    samples = showers(("gamma", "e-", "e+"), ["gamma", "e+", "e-"] * 40)
    names = ("particle", "incident_energy")
    size = {"channels": (4, 4)} if network == "dcgan" else {"latent": 4}
    generator = build_generator(samples.family, names, GeneratorConfig(network=network, **size))
    generator.fit(samples, 1)
    columns = torch.from_numpy(np.stack([samples.conditions[name] for name in names], 1))
    generator.eval()
    made = generator(torch.randn(120, generator.latent_size), columns)
    assert made.shape == (120, 13)
    assert torch.isfinite(made).all()
    if NETWORKS["calorimeter"][network].critic:
        critic = build_critic(generator, CriticConfig())
        critic.fit(samples, names)
        scores = critic(critic.view(made, columns), scale_conditions(samples.family, names, columns))
        assert scores.shape == (120,)


# ---------------------------------------------------------------------------------------------------- files


@pytest.mark.parametrize("layout", ["native", "calogan"])
def test_files_keep_labels(tmp_path: Path, layout: Any) -> None:
    samples = showers(("gamma", "e+"), ["e+", "gamma", "e+"])
    write_shard(tmp_path / "a.h5", samples, provenance={}, layout=layout)
    shards = open_shards(tmp_path / "a.h5")
    assert shards.family == samples.family
    assert shards.read().conditions["particle"].tolist() == [1, 0, 1]
    with h5py.File(tmp_path / "a.h5") as file:  # which explains itself
        assert json.loads(file.attrs["family"])["conditions"][1]["labels"] == ["gamma", "e+"]
    assert describe(tmp_path / "a.h5")["conditions"]["particle"] == {"samples": {"gamma": 1, "e+": 2}}


def test_labels_of_files_are_matched_by_name(tmp_path: Path) -> None:
    of = ["e+", "gamma", "e+", "gamma", "gamma"]
    for i, labels in enumerate(permutations(("gamma", "e+"))):
        write_shard(tmp_path / f"{i}.h5", showers(labels, of), provenance={})
    read = open_shards(tmp_path).read()
    names = [read.family.labels("particle")[int(code)] for code in read.conditions["particle"]]
    assert names == of + of
    asked = open_shards(tmp_path / "0.h5", labels={"particle": ("e-", "e+", "gamma")}).read()
    assert asked.conditions["particle"].tolist() == [1, 2, 1, 2, 2]
    with pytest.raises(ShardError, match="'gamma' is not a label"):
        open_shards(tmp_path / "0.h5", labels={"particle": ("e-", "e+")})


def test_files_of_one_particle_get_theirs_from_their_provenance_or_with_their_path(tmp_path: Path) -> None:
    told, untold = file_of(tmp_path / "g.h5", "gamma", 5), file_of(tmp_path / "p.h5", "e+", 4, told=False)
    assert open_shards([told, untold]).condition_names == ("incident_energy",)  # unless it is asked for
    with pytest.raises(ShardError, match="nothing says which 'particle'") as caught:
        open_shards([told, untold], labels={"particle": ()})
    assert caught.value.where == untold
    read = open_shards([told, f"{untold},particle=e+"]).read()
    assert read.family.labels("particle") == ("gamma", "e+")
    assert read.conditions["particle"].tolist() == [0] * 5 + [1] * 4
    own = {**family_of("e-", "e+", "gamma").model_dump(), "name": "mine"}
    read = open_shards([told, f"{untold},particle=e+"], family=Family.model_validate(own)).read()
    assert read.conditions["particle"].tolist() == [2] * 5 + [1] * 4
    renamed = open_shards([f"{told},particle=photon", f"{tmp_path}/p*.h5,particle=e+"])
    assert renamed.family.labels("particle") == ("photon", "e+")
    assert any("the file says gamma" in note for note in renamed.notes)
    with pytest.raises(ShardError, match="cannot be a condition") as caught:
        open_shards(told, labels={"particle": ()})
    assert (caught.value.expected, caught.value.found) == ("at least two labels, of letters, digits and signs", "gamma")


def test_foreign_files_get_theirs_with_their_path(tmp_path: Path) -> None:
    for name in ("gamma", "eplus"):
        with h5py.File(tmp_path / f"{name}.hdf5", "w") as file:
            file["showers"] = showers(["gamma"], ["gamma"] * 40).values
            file["incident_energies"] = np.full((40, 1), 2e5, np.float32)
    train_on = [f"{tmp_path}/gamma.hdf5,particle=gamma", f"{tmp_path}/eplus.hdf5,particle=e+"]
    train, validation = open_splits(train_on, family=PLATES)
    assert np.bincount(train.read().conditions["particle"].astype(int)).tolist() == [36, 36]
    assert validation.condition_names == ("incident_energy", "particle")


def test_numbers_that_stand_for_no_label_are_bad_rows(tmp_path: Path) -> None:
    write_shard(tmp_path / "a.h5", showers(("gamma", "e+"), ["gamma", "e+"] * 20), provenance={})
    with h5py.File(tmp_path / "a.h5", "r+") as file:
        codes = np.resize([0, 1], 40).astype(np.float32)
        codes[[3, 7]] = 2, 0.5
        del file["conditions/particle"]
        file["conditions/particle"] = codes
    with pytest.raises(ShardError, match="2 bad rows of 40: numbers that stand for no label") as caught:
        open_shards(tmp_path / "a.h5").read()
    assert (caught.value.expected, caught.value.found) == ("0 (gamma), 1 (e+)", 2.0)
    assert "row 3" in str(caught.value.where)
    assert len(open_shards(tmp_path / "a.h5", drop_bad=True).read()) == 38
    with pytest.raises(ShardError, match="the file itself says"):
        open_shards(f"{tmp_path}/a.h5,particle=e+")


def test_every_kind_of_file_is_on_both_sides_of_a_split(tmp_path: Path) -> None:
    file_of(tmp_path / "g" / "train" / "a.h5", "gamma", 3000, 1)
    file_of(tmp_path / "g" / "validation" / "a.h5", "gamma", 90, 3)
    positrons = file_of(tmp_path / "p.h5", "e+", 500, 2)
    train, validation = open_splits([tmp_path / "g", positrons], labels={"particle": ()})
    counts = [np.bincount(side.read().conditions["particle"].astype(int)).tolist() for side in (train, validation)]
    assert counts == [[3000, 450], [90, 50]]
    assert set(train.read(0, 2000).conditions["particle"]) == {0, 1}  # they take turns
    one, two = (np.sort(side.read().values.sum(1)) for side in (train, validation))
    assert not np.intersect1d(one, two).size
    plain = [side.digest() for side in open_splits([tmp_path / "g", positrons])]
    assert train.digest() not in plain
    with pytest.raises(ShardError, match="named twice"):
        open_splits([tmp_path / "g", tmp_path / "g" / "train"])


# ---------------------------------------------------------------------------------------------------- requests

PARTICLE = particle("gamma", "e-", "e+")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("fixed:e+", [2, 2, 2, 2]),
        ("list:e+,gamma", [2, 0, 2, 0]),
        ("list: e+ , gamma", [2, 0, 2, 0]),
        ("e+", [2, 2, 2, 2]),
        ("uniform", [0, 1, 1, 2]),
        ("uniform:e+,gamma", [2, 2, 0, 0]),
    ],
)
def test_specifications_name_labels(text: str, expected: list[int]) -> None:
    assert Spec.parse(PARTICLE, text).draw(np.array([0.1, 0.4, 0.6, 0.9]), np.arange(4)).tolist() == expected


@pytest.mark.parametrize(
    "text", ["tau", "fixed", "fixed:", "fixed:e+,e-", "list", "uniform:", "log-uniform:e+,e-", "list:e+,", ""]
)
def test_other_specifications_of_labels_are_refused(text: str) -> None:
    with pytest.raises(ConditionError, match="is not a specification of 'particle'"):
        Spec.parse(PARTICLE, text)


def test_an_unknown_label_gets_the_nearest_one() -> None:
    with pytest.raises(ConditionError, match="did you mean 'gamma'"):
        Spec.parse(PARTICLE, "fixed:gama")
    with pytest.raises(ConditionError, match="did you mean 'gamma'"):
        Request.of(family_of("gamma", "e-", "e+"), {"particle": ["gama"]})


@pytest.mark.parametrize(
    "given", [["e+", "gamma"], np.array(["e+", "gamma"], object), [2, 0], np.array([2.0, 0.0])], ids=str
)
def test_labels_in_memory_are_names_or_numbers(given: Any) -> None:
    family = family_of("gamma", "e-", "e+")
    for values, n, expected in ((given, None, [2, 0]), ("e-", 2, [1, 1])):
        made = Request.of(family, {"particle": values}, n).conditions(["particle"], 0, 0, 2)
        assert made["particle"].tolist() == expected


def test_labels_in_files_of_conditions_are_names(tmp_path: Path) -> None:
    (tmp_path / "c.csv").write_text("particle, incident_energy [GeV]\n e+,5\ngamma,6\n")
    with h5py.File(tmp_path / "c.h5", "w") as file:
        file["incident_energy"] = np.array([5e3, 6e3])
        file["incident_energy"].attrs["unit"] = "MeV"
        file["particle"] = ["e+", "gamma"]
    for name in ("c.csv", "c.h5"):
        request = Request.from_file(tmp_path / name, family_of("gamma", "e+"), ["particle", "incident_energy"])
        assert request.conditions(["particle", "incident_energy"], 0, 0, 2).array().tolist() == [[1, 5e3], [0, 6e3]]
        with pytest.raises(ConditionError, match="not a label") as caught:
            Request.from_file(tmp_path / name, family_of("gamma", "e-"), ["particle"])
        assert "row 1" in str(caught.value.where)
    for words, part in ((np.array([b"\xff", b"e+"]), "not a label"), (np.array([0, 1]), "written as strings")):
        with h5py.File(tmp_path / "bad.h5", "w") as file:
            file["particle"] = words
        with pytest.raises(ConditionError, match=part):
            Request.from_file(tmp_path / "bad.h5", family_of("gamma", "e+"), ["particle"])


# ---------------------------------------------------------------------------------------------------- surrogates


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A fitted surrogate of two of three particles, each in files of its own; leave it as it is."""
    home = tmp_path_factory.mktemp("mixture")
    files = [file_of(home / f"{label}.h5", label, 700, seed) for seed, label in enumerate(("gamma", "e+"))]
    family = Family.model_validate({**family_of("gamma", "e-", "e+").model_dump(), "name": "three"})
    config = tiny(family=family.model_dump(), training={"steps": 0})
    train(config, files, home / "run")
    return Trained(home / "run", home, open_shards(files, family=family).read(), config)


def test_each_particle_has_its_own_mean(mixture: Trained) -> None:
    surrogate = Surrogate.load(mixture.folder)
    assert surrogate.card.conditions[1].labels == ("gamma", "e+")
    for label in ("gamma", "e+"):
        made = surrogate.sample({"incident_energy": np.geomspace(2e3, 9e4, 2000), "particle": label}, 2000, seed=1)
        found = made[:, :4].sum(1) / made.sum(1)
        code = mixture.samples.family.labels("particle").index(label)
        known = shares(mixture.samples.select(mixture.samples.conditions["particle"] == code))
        assert found.mean() == pytest.approx(SHARES[label], abs=0.02)
        assert found.mean() == pytest.approx(known.mean(), abs=0.02)
        assert found.std() == pytest.approx(known.std(), rel=0.15)


def test_names_and_numbers_ask_for_the_same_showers(mixture: Trained) -> None:
    surrogate, energy = Surrogate.load(mixture.folder), [1e4, 2e4]
    named = surrogate.sample({"incident_energy": energy, "particle": ["e+", "gamma"]})
    numbered = surrogate.sample({"particle": [2, 0], "incident_energy": energy})
    np.testing.assert_array_equal(named, numbered)
    assert all(array.shape[0] == surrogate.block for array in surrogate.forward_pass()[1])


@pytest.mark.parametrize(
    ("given", "found"), [("e-", "e-"), (1, "e-"), (3, "3,"), (0.5, "0.5,"), (np.nan, "nan,")], ids=str
)
@pytest.mark.parametrize("extrapolate", [False, True])
def test_labels_that_were_not_trained_are_refused_even_to_extrapolate(
    mixture: Trained, given: Any, found: str, extrapolate: bool
) -> None:
    with pytest.raises(ConditionError, match="not what the surrogate was trained on") as caught:
        Surrogate.load(mixture.folder).sample({"incident_energy": 1e4, "particle": given}, 2, extrapolate=extrapolate)
    assert str(caught.value.found).startswith(found)
    assert caught.value.expected == "gamma, e+"


def test_labels_are_not_held_out(mixture: Trained) -> None:
    files = [mixture.data / "gamma.h5", mixture.data / "e+.h5"]
    with pytest.raises(ConfigError, match="ranges are held out, not labels"):
        prepare(mixture.config.updated({"holdout": {"particle": (0, 1)}}), files)
    with pytest.raises(ConfigError, match="no condition 'particel'") as caught:
        prepare(tiny(conditions=["incident_energy", "particel"]), files)
    assert "PATH,particel=LABEL" in str(caught.value.hint)


def test_a_range_without_labels_is_written_as_ever() -> None:
    assert "labels" not in ConditionRange(name="x", unit="", low=0, high=1).model_dump_json()


def test_the_command_line_speaks_of_particles(mixture: Trained, tmp_path: Path) -> None:
    data = [option for label in ("gamma", "e+") for option in ("--data", f"{mixture.data / label}.h5,particle={label}")]
    small = [
        "--set",
        "generator.latent=4",
        "--set",
        "generator.hidden=[8]",
        "--set",
        "training.steps=0",
        "--threads",
        1,
    ]
    done = command("train", *data, "--out", tmp_path / "run", "--energy-conditioned", "--condition", "particle", *small)
    assert done.code == 0, done.err
    assert "gamma, e+" in command("info", tmp_path / "run").out
    ask = ["generate", tmp_path / "run", "--out", tmp_path / "made", "--workers", 1]
    assert "--condition particle=fixed:gamma" in command(*ask, "-n", 9, "--energy", "fixed:9GeV").err
    assert (
        "did you mean 'e+'" in command(*ask, "-n", 9, "--energy", "fixed:9GeV", "--condition", "particle=fixed:e++").err
    )
    like = command(*ask, "--like", f"{mixture.data}/*.h5")  # their provenance says which particle
    assert like.code == 0, like.err
    made = open_shards(tmp_path / "made").read()
    for code, label in enumerate(("gamma", "e+")):
        assert shares(made.select(made.conditions["particle"] == code)).mean() == pytest.approx(SHARES[label], abs=0.02)


def test_reports_speak_of_labels(mixture: Trained, tmp_path: Path) -> None:
    made = Surrogate.load(mixture.folder).generate(
        tmp_path / "made", {"incident_energy": "log-uniform:2:90GeV", "particle": "list:gamma,e+"}, 300, workers=1
    )
    report = compare(f"{mixture.data}/*.h5", made, bins=2)  # the reference has its labels from its provenance
    for label in ("gamma", "e+"):
        assert abs(report.metrics["made"][f"mean/fraction_0[particle={label}]"].value) < 0.15
    titles = {axes.get_title(loc="left") for drawing in draw(report) for axes in drawing.figure.axes}
    assert {"particle gamma", "particle e+"} <= titles
    assert any(" e+" in axes.get_title() for drawing in draw(report) for axes in drawing.figure.axes)


def test_figures_of_a_surrogate_name_the_labels(mixture: Trained) -> None:
    found = {drawing.name: drawing.figure for drawing in draw_gallery(Surrogate.load(mixture.folder))}
    titles = {axes.get_title() for axes in found["sweep-particle"].axes}
    assert {"particle = gamma", "particle = e+"} <= titles
    assert not any("e-" in title for title in titles)  # which was not trained


# ---------------------------------------------------------------------------------------------------- analysis


def test_reports_have_a_bin_for_each_label_there_is() -> None:
    samples = showers(("gamma", "e-", "e+"), ["gamma", "e+"] * 20)
    chosen = [s for s in selections(samples.family, samples.conditions, 2) if s.condition == "particle"]
    assert [s.name for s in chosen] == ["particle=gamma", "particle=e+"]
    assert [s.title for s in chosen] == ["particle gamma", "particle e+"]
    members = np.stack([s.of(samples.conditions, 40) for s in chosen])
    np.testing.assert_array_equal(members.argmax(0), [0, 1] * 20)
    only = samples.select(samples.conditions["particle"] == 2)
    assert not [s for s in selections(only.family, only.conditions, 2) if s.condition == "particle"]


def test_sides_of_a_comparison_share_their_labels(tmp_path: Path) -> None:
    one, two = (showers(labels, ["gamma", "e+"] * 60) for labels in permutations(("gamma", "e+")))
    report = compare(one, two, bins=2)
    assert report.metrics["generated"]["mean/fraction_0[particle=gamma]"].value == 0
    for name, samples in {"a": one, "b": showers(("e-", "e+"), ["e+", "e-"] * 60), "r": two}.items():
        write_shard(tmp_path / f"{name}.h5", samples, provenance={})
    given = {"files": str(tmp_path / "b.h5"), "shards": open_shards(tmp_path / "b.h5"), "memory": one}
    report = compare(tmp_path / "r.h5", given, bins=2)
    assert report.family.labels("particle") == ("e+", "gamma", "e-")  # those seen first first
    kept = {name: side.conditions["particle"].tolist() for name, side in report.generated.items()}
    assert kept == {"files": [0, 2] * 60, "shards": [0, 2] * 60, "memory": [1, 0] * 60}
    for mine in report.metrics.values():
        assert abs(mine["mean/fraction_0[particle=e+]"].value) < 0.05
    named = _named_samples((f"a={tmp_path}/a.h5", f"b={tmp_path}/b.h5"), {"drop_bad": False})
    assert [shards.family.labels("particle") for (shards,) in named.values()] == [("gamma", "e+"), ("e-", "e+")]


def test_labels_that_cannot_be_compared_are_refused() -> None:
    samples = showers(("gamma", "e+"), ["gamma", "e+"] * 30)
    number = Condition(name="particle", low=0, high=1)
    with pytest.raises(ShardError, match="labels of 'particle' are not those of the reference") as caught:
        compare(samples, replace(samples, family=PLATES.with_condition(number)))
    assert (caught.value.expected, caught.value.found) == ("gamma, e+", "a number")
    for code in (2, -1, 0.5):
        wrong = {**samples.conditions, "particle": np.full(60, code, np.float32)}
        for reference in (samples, showers(("e+", "e-"), ["e+"] * 60)):
            with pytest.raises(ShardError, match="60 of 60 samples have an impossible 'particle'"):
                compare(reference, replace(samples, conditions=wrong))
    with pytest.raises(ShardError, match="different families or conditions"):
        Samples.concatenate([samples, replace(samples.select(slice(0, 2)), conditions={})])


def test_files_of_one_particle_are_compared_with_mixtures_and_with_others(tmp_path: Path) -> None:
    for label in ("gamma", "e+"):
        file_of(tmp_path / f"{label}.h5", label, 100, told=False)
    write_shard(tmp_path / "both.h5", showers(("e+", "gamma"), ["gamma", "e+"] * 60), provenance={})
    gamma, positrons = f"{tmp_path}/gamma.h5,particle=gamma", f"{tmp_path}/e+.h5,particle=e+"
    report = compare(tmp_path / "both.h5", {"a": gamma, "b": positrons}, bins=2)
    assert abs(report.metrics["a"]["mean/fraction_0[particle=gamma]"].value) < 0.2
    assert "mean/fraction_0[particle=gamma]" not in report.metrics["b"]
    assert not compare(gamma, gamma, bins=2).family.labelled  # one label is no condition
    (note,) = (note for note in compare(gamma, positrons, bins=2).notes if "its particle is not" in note)
    assert "fraction of gamma 0 instead of 1.000 ± 0.071" in note


def test_notes_compare_the_fractions_of_labels_and_the_distributions_of_numbers() -> None:
    reference = showers(("gamma", "e-", "e+"), ["gamma", "e-", "e+", "e+"] * 300)
    plan = plan_comparison(reference, bins=0, seed=0)
    base = survey(reference, plan)
    for of in (["gamma", "e-", "e+", "e+"] * 100, ["gamma", "e-"] * 200):
        side = survey(showers(("gamma", "e-", "e+"), of, 2), plan)
        notes = [note for note in condition_notes("other", base, side, plan) if "particle" in note]
        assert len(notes) == ("e+" not in of)
    found = "fraction of gamma 0.5 instead of 0.250 ± 0.027, fraction of e- 0.5 instead of 0.250 ± 0.027, fraction"
    assert notes[0].startswith(f"other: its particle is not distributed as in the reference ({found}")
    energies = listing(side, side.table, {"incident_energy": side.conditions["incident_energy"] * 2})
    (note,) = condition_notes("other", base, energies, plan)
    assert " MeV, " in note
    bare = replace(plan, family=MAPS)  # without a unit there is no space before the comma
    cosmology = listing(base, base.table, {"Omega_m": base.conditions["incident_energy"]})
    (note,) = condition_notes("other", cosmology, listing(side, side.table, {"Omega_m": np.zeros(400)}), bare)
    assert " expected" in note
    assert " ," not in note


@pytest.mark.parametrize("files", ["gamma.h5", "*.h5", ""], ids=["file", "glob", "folder"])
def test_info_takes_labels_named_with_a_path(tmp_path: Path, files: str) -> None:
    file_of(tmp_path / "gamma.h5", "gamma", 7)
    facts = describe(f"{tmp_path / files},particle=photon")
    assert facts["conditions"]["particle"] == {"samples": {"photon": 7}}
    assert facts["notes"] == ["particle photon, as named; the file says gamma"]
    assert not facts["problems"]
    done = command("info", f"{tmp_path / files},particle=photon")
    assert "particle: samples photon 7" in done.out
    write_shard(tmp_path / "a.h5", showers(("gamma", "e+"), ["gamma", "e+"] * 2), provenance={})
    write_shard(tmp_path / "b.h5", showers(("e+", "gamma"), ["gamma", "e+"] * 2), provenance={})
    mixed = describe([tmp_path / "a.h5", tmp_path / "b.h5", f"{tmp_path}/gamma.h5,particle=photon"])
    assert mixed["conditions"]["particle"] == {"samples": {"gamma": 4, "e+": 4, "photon": 7}}
    (problem,) = describe(f"{tmp_path}/a.h5,particle=photon")["problems"]
    assert "the file itself says the 'particle' of each sample" in problem


# ---------------------------------------------------------------------------------------------------- simulation


def test_a_mixture_has_its_particles_as_labels() -> None:
    pytest.importorskip("calzone")
    options = {"samples": 4, "seed": 5, "conditions": {"incident_energy": "fixed:0.1GeV"}}
    mixed = build("geant4", particle="gamma, e+", **options)
    assert mixed.family.labelled == {"particle": ("gamma", "e+")}
    assert mixed.describe()["particle"] == "gamma,e+"
    alone = build("geant4", particle="e+", **options)
    assert not alone.family.labelled
    assert "particle" not in alone.describe()["conditions"]
    with pytest.raises(ConfigError, match="twice"):
        build("geant4", particle="e+,e+", **options)
    with pytest.raises(ConfigError, match="cannot be simulated") as caught:
        build("geant4", particle="gamma,pi+", **options)
    assert caught.value.found == "pi+"
    with pytest.raises(ConfigError, match="`particle`"):
        build("geant4", **{**options, "conditions": {"particle": "fixed:e+"}})
    codes = mixed.drawn.conditions(mixed.drawn.names, 5, 0, 1000)["particle"]
    assert np.bincount(codes.astype(int)).tolist() == pytest.approx([500, 500], abs=80)
    two_to_one = {**options, "conditions": {"particle": "list:e+,gamma,gamma"}}
    drawn = build("geant4", particle="gamma,e+", **two_to_one).drawn
    assert drawn.conditions(drawn.names, 5, 0, 3)["particle"].tolist() == [1, 0, 0]


def test_toy_showers_of_a_labelled_family() -> None:
    engine = build("toy", samples=50, seed=1, family=family_of("gamma", "e-", "e+"))
    made = engine.make(0, 50)
    assert set(made.conditions["particle"]) == {0, 1, 2}
    assert made.family.labels("particle") == ("gamma", "e-", "e+")
    assert engine.check()
