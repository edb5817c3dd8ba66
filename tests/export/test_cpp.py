"""The C++ header makes the showers of Python: same noise bit for bit, same energies to single precision."""

from __future__ import annotations

import functools
import json
import shutil
import struct
import subprocess
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from time import process_time

import numpy as np
import pytest
import torch
from models.test_inference import AS_FITTED, CASES, map_surrogate, of_case, showers_of
from support import SMALL, toy

from calogen.config import Config, GeneratorConfig
from calogen.errors import ConfigError
from calogen.export.cpp import FORMAT, WEIGHTS, compiler, template, timer, write_cpp
from calogen.families import Condition
from calogen.models.registry import build_generator
from calogen.models.showers.generator import ShowerGenerator
from calogen.production.noise import normals
from calogen.runs.checkpoint import Card, ConditionRange
from calogen.runs.find import load_model
from calogen.sampling import Surrogate

HERE = Path(__file__).parent
RELATIVE, FLIPS = 3e-4, 1e-6  # largest relative difference above 1 MeV; share of voxels that are on in one of two only
SHIPPED = {"calogan-gamma": 1000, "calogan-eplus": 200, "calogan-gamma-angled": 400, "par04-electron": 40}
PARTICLE = Condition.labelled("particle", ["photon", "electron", "pion"])
LABELLED = SMALL.model_copy(update={"conditions": (*SMALL.conditions, PARTICLE)})

pytestmark = pytest.mark.skipif(compiler() is None, reason="there is no C++ compiler here, which these tests need")


@dataclass(frozen=True)
class Checker:
    """Runs the programs of check.cpp; results come as files."""

    program: Path
    folder: Path

    def __call__(self, what: str, *words: object) -> str:
        found = subprocess.run([self.program, what, *map(str, words)], capture_output=True, text=True)
        assert found.returncode == 0, found.stderr
        return found.stdout

    def refusal(self, what: str, *words: object) -> str:
        found = subprocess.run([self.program, what, *map(str, words)], capture_output=True, text=True)
        assert found.returncode == 2, (found.returncode, found.stdout, found.stderr)
        return found.stderr

    def noise(self, weights: Path, seed: int, index: int, count: int) -> np.ndarray:
        self("noise", weights, seed, index, count, self.folder / "noise")
        return np.fromfile(self.folder / "noise", np.float32).reshape(count, -1)

    def decoded(self, weights: Path, latents: np.ndarray, conditions: np.ndarray) -> np.ndarray:
        latents.tofile(self.folder / "latents")
        conditions.tofile(self.folder / "conditions")
        words = self.folder / "latents", self.folder / "conditions", len(latents), self.folder / "showers"
        self("decode", weights, *words)
        return np.fromfile(self.folder / "showers", np.float32).reshape(len(latents), -1)

    def sampled(self, weights: Path, seed: int, conditions: np.ndarray) -> np.ndarray:
        conditions.tofile(self.folder / "conditions")
        self("sample", weights, seed, self.folder / "conditions", len(conditions), self.folder / "showers")
        return np.fromfile(self.folder / "showers", np.float32).reshape(len(conditions), -1)


def compiled(source: Path, out: Path, *flags: str) -> Path:
    """A program, compiled without a single warning."""
    include = str(HERE.parents[1] / "calogen" / "export" / "cpp_files")
    warnings = ("-Wall", "-Wextra", "-Wpedantic", "-Werror")
    command = [compiler(), "-std=c++17", *flags, *warnings, "-pthread", "-I", include, source, "-o", out]
    found = subprocess.run(command, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    return out


@pytest.fixture(scope="module")
def check(tmp_path_factory: pytest.TempPathFactory) -> Checker:
    """The checks with all vectors this machine has; compiled once."""
    folder = tmp_path_factory.mktemp("check")
    return Checker(compiled(HERE / "check.cpp", folder / "check", "-O1", "-march=native"), folder)


def card_of(generator: ShowerGenerator) -> Card:
    ranges = []
    for name in generator.conditions:
        c = generator.family.condition(name)
        ranges.append(ConditionRange(name=name, unit=c.unit, low=c.low, high=c.high, labels=c.labels))
    return Card(family=generator.family, conditions=tuple(ranges), config=Config.build({}), step=0, sha256="0" * 64)


@functools.cache
def trained(case: str) -> ShowerGenerator:
    return of_case(case)


def latents_of(generator: ShowerGenerator, seed: int, count: int) -> np.ndarray:
    return normals(seed, 0, count, generator.latent_size - generator.coarse, generator.coarse)


def made(generator: ShowerGenerator, latents: np.ndarray, conditions: np.ndarray, kind: torch.dtype) -> np.ndarray:
    """Showers of the module in single or double precision, what is below the threshold put to 0."""
    generator.to(kind)
    parts = zip(np.array_split(latents, 20), np.array_split(conditions, 20), strict=True)
    with torch.inference_mode():
        blocks = [generator(*(torch.from_numpy(part).to(kind) for part in both)).numpy() for both in parts]
    generator.float()
    showers = np.concatenate(blocks)
    return np.where(showers < np.float32(generator.family.threshold), 0, showers)


def difference(one: np.ndarray, other: np.ndarray) -> tuple[float, float]:
    """The largest relative difference above 1 MeV, and the share of voxels that are on in one only.

    Voxels below 1 keV do not count as on: the line at the electron's mass takes such from their neighbours. Where one
    is at its gate it takes energy from its layer's others: such showers are counted, not compared.
    """
    flips = (one > 1e-3) != (other > 1e-3)
    near = np.maximum(one, other) < 1.1e-3
    flips &= ~near
    same = ~flips.any(1)
    one, other = one[same].astype(np.float64), other[same].astype(np.float64)
    large = other > 1
    return float((np.abs(one - other)[large] / other[large]).max()), float(flips.mean())


# ----------------------------------------------------------------------------------------------------------- numbers


def test_noise_is_that_of_python_bit_for_bit(check: Checker, tmp_path: Path) -> None:
    model = load_model("calogan-gamma")
    write_cpp(model.generator(), model.card, tmp_path)
    surrogate = Surrogate(model)
    for seed, index in ((0, 0), (7, 123_456_789), (2**63 - 1, 10**12)):
        expected = surrogate.latents(3000, seed=seed, start=index)
        np.testing.assert_array_equal(check.noise(tmp_path / WEIGHTS, seed, index, 3000), expected)


@pytest.mark.parametrize("case", CASES)
def test_showers_of_any_network_are_those_of_the_module(case: str, check: Checker, tmp_path: Path) -> None:
    generator = trained(case)
    assert generator.refinement.active or case == AS_FITTED
    assert generator.shapes[-1].weight.any() or case == AS_FITTED
    write_cpp(generator, card_of(generator), tmp_path)
    count = 1500 if generator.family.voxels < 100 else 300
    latents = latents_of(generator, 3, count)
    conditions = showers_of(generator.family, count, 3).conditions.array(generator.conditions)
    single, double = (made(generator, latents, conditions, kind) for kind in (torch.float32, torch.float64))
    found = check.decoded(tmp_path / WEIGHTS, latents, conditions)
    assert found.shape == single.shape
    (mine, flips), (theirs, their_flips) = difference(found, double), difference(single, double)
    assert flips <= 2 * their_flips + 3 / found.size
    assert mine <= max(RELATIVE, 2 * theirs)
    same = ((found > 0) == (double > 0)).all(1)  # rounding may take a voxel at the threshold below it
    assert same.mean() > 0.9
    np.testing.assert_allclose(found[same].sum(1), double[same].sum(1), rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_surrogates_make_the_showers_of_the_module(name: str, check: Checker, tmp_path: Path) -> None:
    compare_shipped(name, SHIPPED[name], check, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", SHIPPED)
def test_ten_thousand_showers_are_those_of_the_module(name: str, check: Checker, tmp_path: Path) -> None:
    count = 10_000 if "par04" not in name else 2000
    relative, flips, theirs = compare_shipped(name, count, check, tmp_path, double=True)
    print(f"\n{name}, {count} showers: largest relative difference above 1 MeV {relative:.2g}, flips {flips:.2g}")
    print(f"the module in single precision differs from itself in double precision by {theirs:.2g}")


def compare_shipped(
    name: str, count: int, check: Checker, folder: Path, *, double: bool = False
) -> tuple[float, float, float]:
    """Differences from the module in single precision, and its own from double precision (0: not computed).

    Where single precision itself is off by more, that is how near the two can be.
    """
    model = load_model(name)
    generator = model.generator()
    write_cpp(generator, model.card, folder)
    rng = np.random.default_rng(1)
    conditions = np.stack([rng.uniform(c.low, c.high, count) for c in model.card.conditions], 1).astype(np.float32)
    latents = latents_of(generator, 1, count)
    single = made(generator, latents, conditions, torch.float32)
    relative, flips = difference(check.decoded(folder / WEIGHTS, latents, conditions), single)
    theirs = difference(single, made(generator, latents, conditions, torch.float64))[0] if double else 0.0
    assert relative <= max(RELATIVE, theirs)
    assert flips <= FLIPS
    return relative, flips, theirs


def test_labels_are_conditions_too(check: Checker, tmp_path: Path) -> None:
    torch.manual_seed(0)
    generator = build_generator(LABELLED, [c.name for c in LABELLED.conditions], GeneratorConfig(latent=4, hidden=(8,)))
    assert isinstance(generator, ShowerGenerator)
    samples = toy(LABELLED, 300)
    particle = np.arange(300) % 3
    scale = np.float32([1, 0.5, 0.25])[particle][:, None]
    columns = {name: samples.conditions[name] for name in ("incident_energy", "angle")}
    samples = replace(samples, values=samples.values * scale, conditions={**columns, "particle": particle})
    generator.fit(samples, 1)
    generator.eval()
    write_cpp(generator, card_of(generator), tmp_path)
    latents, conditions = latents_of(generator, 2, 300), samples.conditions.array(generator.conditions)
    single, double = (made(generator, latents, conditions, kind) for kind in (torch.float32, torch.float64))
    found = check.decoded(tmp_path / WEIGHTS, latents, conditions)
    assert difference(found, double)[0] <= max(RELATIVE, 2 * difference(single, double)[0])
    wrong = conditions.copy()
    wrong[7, 2] = 3
    wrong.tofile(tmp_path / "wrong")
    said = check.refusal("sample", tmp_path / WEIGHTS, 0, tmp_path / "wrong", 300, tmp_path / "out")
    assert "particle = 3" in said
    assert "0 (photon) 1 (electron) 2 (pion)" in said


def test_two_threads_make_the_samples_of_one_seed(check: Checker, tmp_path: Path) -> None:
    surrogate = Surrogate.load("calogan-gamma")
    model = load_model("calogan-gamma")
    write_cpp(model.generator(), model.card, tmp_path)
    energies = np.geomspace(1e3, 1e5, 301).astype(np.float32)
    found = check.sampled(tmp_path / WEIGHTS, 5, energies[:, None])
    relative, flips = difference(found, surrogate.sample({"incident_energy": energies}, seed=5))
    assert relative <= RELATIVE
    assert flips <= 3 / found.size


def test_the_example_prints_the_samples_of_python(tmp_path: Path) -> None:
    surrogate, model = Surrogate.load("calogan-gamma"), load_model("calogan-gamma")
    write_cpp(model.generator(), model.card, tmp_path / "c", "calogan-gamma")
    # As a user would, but for the optimisation: not with the vectors of this machine, and from where the folder is.
    command = [compiler(), "-std=c++17", "-O1", "c/example.cpp", "-o", "x"]
    subprocess.run(command, check=True, cwd=tmp_path)

    def printed(*words: object) -> tuple[str, np.ndarray]:
        found = subprocess.run(["./x", *map(str, words)], check=True, cwd=tmp_path, capture_output=True, text=True)
        return found.stdout.splitlines()[0], np.loadtxt(found.stdout.splitlines(), ndmin=2)

    first, table = printed()
    assert first == "# calogan-gamma, seed 0: incident_energy [MeV], then 504 voxels [MeV]"
    assert table.shape == (10, 505)
    expected = surrogate.sample({"incident_energy": table[:, 0]}, seed=0)
    assert difference(table[:, 1:], expected)[0] <= RELATIVE
    _, table = printed("c/calogen_shower.weights", 7, 20e3, 50e3)
    np.testing.assert_array_equal(table[:, 0], [20e3, 50e3])
    expected = surrogate.sample({"incident_energy": [20e3, 50e3]}, seed=7)
    assert difference(table[:, 1:], expected)[0] <= RELATIVE
    wrong = subprocess.run(
        ["./x", "c/calogen_shower.weights", "7", "2e5"], cwd=tmp_path, capture_output=True, text=True
    )
    assert wrong.returncode == 2
    assert wrong.stderr.startswith("the surrogate was not trained there: shower 0 of this call, incident_energy = 2")
    assert "expected 1000 to 100000 MeV" in wrong.stderr


# --------------------------------------------------------------------------------------------------- what is refused


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    folder = tmp_path_factory.mktemp("weights")
    generator = trained("one layer")
    write_cpp(generator, card_of(generator), folder)
    return (folder / WEIGHTS).read_bytes()


DAMAGE: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "foreign": (lambda data: b"\x89HDF\r\n\x1a\n" + data, "is not a weights file of calogen"),
    "empty": (lambda data: b"", "is not a weights file of calogen"),
    "head only": (lambda data: data[:10], "is cut short"),
    "cut": (lambda data: data[:-1000], "is cut short: expected"),
    "longer": (lambda data: data + b"x", "is damaged"),
    "changed": (lambda data: data[:5000] + bytes([data[5000] ^ 1]) + data[5001:], "is damaged: its checksum differs"),
    "newer": (lambda data: data[:8] + struct.pack("<I", FORMAT + 1) + data[12:], f"has format {FORMAT + 1}, and this"),
    "without an array": (lambda data: renamed(data, b"together"), "array 'together' is missing"),
}


def renamed(data: bytes, name: bytes) -> bytes:
    body = data[24:].replace(name.ljust(24, b"\0"), b"other".ljust(24, b"\0"))
    return data[:12] + struct.pack("<IQ", zlib.crc32(body), len(body)) + body


@pytest.mark.parametrize("how", DAMAGE)
def test_files_that_are_no_weights_are_refused(how: str, weights: bytes, check: Checker, tmp_path: Path) -> None:
    damage, message = DAMAGE[how]
    (tmp_path / WEIGHTS).write_bytes(damage(weights))
    assert message in check.refusal("noise", tmp_path / WEIGHTS, 0, 0, 1, tmp_path / "out")


def test_a_file_that_is_not_there_is_said(check: Checker, tmp_path: Path) -> None:
    assert "cannot read the weights file" in check.refusal("noise", tmp_path / "none", 0, 0, 1, tmp_path / "out")


@pytest.mark.parametrize("value", [999.0, 1.1e5, np.nan, np.inf, -5e3])
def test_conditions_outside_the_trained_range_are_refused(
    value: float, weights: bytes, check: Checker, tmp_path: Path
) -> None:
    (tmp_path / WEIGHTS).write_bytes(weights)
    np.array([5e3, 1e5, value], np.float32).tofile(tmp_path / "conditions")
    said = check.refusal("sample", tmp_path / WEIGHTS, 0, tmp_path / "conditions", 3, tmp_path / "out")
    assert "was not trained there: shower 1 of this call, incident_energy = " in said  # the second half of three
    assert "expected 1000 to 100000 MeV" in said


@pytest.mark.slow
def test_impact_points_of_the_same_showers_are_allowed_and_those_that_miss_are_refused(
    check: Checker, tmp_path: Path
) -> None:
    model, surrogate = load_model("calogan-gamma-angled"), Surrogate.load("calogan-gamma-angled")
    write_cpp(model.generator(), model.card, tmp_path)
    for (x, y, theta), refused in {
        (0.0, 150.0, 5.0): None,  # beyond the trained points, but by whole cells the same
        (0.0, 250.0, 5.0): "the impact point is outside the face",
        (0.0, 235.0, 20.0): "leaves the detector at its side",
        (0.0, 0.0, 25.0): "was not trained there: shower 0 of this call, theta = 25 deg",
    }.items():
        row = {"incident_energy": 1e4, "impact_x": x, "impact_y": y, "theta": theta, "phi": 90.0}
        conditions = np.float32([[row[name] for name in surrogate.conditions]])
        try:
            expected = surrogate.sample({name: [value] for name, value in row.items()})
        except Exception:
            expected = None
        assert (expected is None) == (refused is not None), (x, y, theta)
        if refused is None:
            found = check.sampled(tmp_path / WEIGHTS, 0, conditions)
            assert difference(found, expected)[0] <= RELATIVE
        else:
            conditions.tofile(tmp_path / "conditions")
            words = tmp_path / WEIGHTS, 0, tmp_path / "conditions", 1, tmp_path / "out"
            assert refused in check.refusal("sample", *words)


@pytest.mark.parametrize("case", ["shower frame", "calogan", "two conditions, energy conserved"])
def test_places_are_those_of_the_family(case: str, check: Checker, tmp_path: Path) -> None:
    generator = trained(case)
    family = generator.family
    write_cpp(generator, card_of(generator), tmp_path)
    check("places", tmp_path / WEIGHTS, tmp_path / "places")
    found = np.fromfile(tmp_path / "places", np.float32).reshape(-1, 4)
    middle = np.mean(family.depths, 1) if family.depths else np.full(len(family.layers), np.nan)
    layer = family.layer_of_voxel
    np.testing.assert_allclose(found, np.column_stack([layer, family.centres, middle[layer]]), rtol=1e-6, atol=1e-5)


def test_other_networks_are_refused_by_name(tmp_path: Path) -> None:
    maps = map_surrogate()
    with pytest.raises(ConfigError, match="network 'zeldovich', which makes maps, cannot be exported as C\\+\\+"):
        write_cpp(maps._generator, maps.card, tmp_path)
    generator = build_generator(SMALL, ["incident_energy"], GeneratorConfig(network="calogan"))
    card = Card(family=SMALL, conditions=(), config=Config.build({}), step=0)
    with pytest.raises(ConfigError, match="network 'calogan', which makes showers, cannot"):
        write_cpp(generator, card, tmp_path)
    assert not list(tmp_path.iterdir())


# ------------------------------------------------------------------------------------------------ what a user is given


def test_a_folder_holds_all_that_is_needed_and_says_so(tmp_path: Path) -> None:
    generator = trained("one layer")
    card = card_of(generator)
    found = write_cpp(generator, card, tmp_path / "new" / "folder", "mine")
    assert {path.name: path.stat().st_size for path in (tmp_path / "new" / "folder").iterdir()} == found["files"]
    assert found["card_sha256"] == card.sha256
    assert json.dumps(found)
    data = (tmp_path / "new" / "folder" / WEIGHTS).read_bytes()
    for text in (b"mine", card.sha256.encode(), b"incident_energy\n", b"MeV"):
        assert text in data
    assert all(len(line) <= 120 for line in template("calogen_shower.hpp").splitlines())


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("cmake") is None, reason="there is no cmake here")
def test_cmake_builds_the_example(tmp_path: Path) -> None:
    generator = trained("one layer")
    write_cpp(generator, card_of(generator), tmp_path)
    for command in (["cmake", "-S", ".", "-B", "build"], ["cmake", "--build", "build"], ["build/example"]):
        subprocess.run(command, check=True, cwd=tmp_path, capture_output=True)


@pytest.mark.slow
@pytest.mark.parametrize("flags", [("-DCALOGEN_SCALAR",), ("-march=native",), ("-msse2",)], ids=lambda flags: flags[0])
def test_no_path_does_anything_undefined(flags: tuple[str, ...], tmp_path: Path) -> None:
    sanitizers = ("-fsanitize=address,undefined,float-cast-overflow", "-fno-sanitize-recover=all")
    check = Checker(compiled(HERE / "check.cpp", tmp_path / "check", "-O1", *flags, *sanitizers), tmp_path)
    for case in CASES:
        generator = trained(case)
        write_cpp(generator, card_of(generator), tmp_path)
        count = 60
        latents = latents_of(generator, 3, count)
        latents[:5] *= np.float32(np.inf)
        latents[5:10] *= 40
        conditions = showers_of(generator.family, count, 3).conditions.array(generator.conditions)
        conditions[::7] = np.nan
        conditions[1::7] *= 100
        check.decoded(tmp_path / WEIGHTS, np.abs(latents), conditions)
        check.decoded(tmp_path / WEIGHTS, -np.abs(latents), conditions)


@pytest.mark.slow
def test_one_shower_is_many_times_as_fast_as_in_the_module(tmp_path: Path) -> None:
    model = load_model("calogan-gamma")
    generator = model.generator()
    time = timer(generator, model.card, tmp_path)
    assert time is not None
    latents, energies = torch.from_numpy(latents_of(generator, 0, 1024)), torch.linspace(1e3, 1e5, 1024)[:, None]

    def module(batch: int) -> float:
        repeats = max(2, 200 // batch)
        begun = process_time()
        with torch.inference_mode():
            for _ in range(repeats):
                generator(latents[:batch], energies[:batch])
        return 1e6 * (process_time() - begun) / repeats / batch

    for batch, theirs, least in ((1, 1, 10), (100, 100, 2), (10_000, 1024, 2)):
        rounds = [(time(batch), module(theirs)) for _ in range(5)]
        mine, ratio = min(mine for mine, _ in rounds), float(np.median([theirs / mine for mine, theirs in rounds]))
        print(f"\nbatch {batch}: {mine:.1f} us of CPU time a shower, {ratio:.1f} times as fast as the module")
        assert ratio > least
