"""What tests share: toy samples of any family, shards of them, small runs, programs, and makers that misbehave.

Quick to import, since worker processes do. As a program it makes a production with two workers, as ``calogen generate``
does.
"""

from __future__ import annotations

import inspect
import io
import json
import os
import resource
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from calogen.config import Config
from calogen.errors import CalogenError
from calogen.families import FAMILIES, CartesianLayer, Condition, CylindricalLayer, Family
from calogen.production.parts import Part
from calogen.production.plan import Production
from calogen.production.run import produce
from calogen.shards.manifest import write_manifest
from calogen.shards.samples import Samples
from calogen.shards.writer import write_shard
from calogen.storage import digest_of

ROOT = Path(__file__).resolve().parents[1]
ORACLES = ROOT / "tests" / "oracles"
BINNING = ROOT / "tests" / "binning"

ENERGY = Condition(name="incident_energy", unit="MeV", low=1e3, high=1e5, scale="log")
ANGLE = Condition(name="angle", unit="rad", low=-1.0, high=1.0)

SMALL = Family(
    name="small",
    layers=(
        CartesianLayer(shape=(4, 3), size=(40, 30)),
        CylindricalLayer(n_alpha=4, r_edges=(0, 5, 10, 20)),
        CartesianLayer(shape=(1, 2), size=(10, 10)),
    ),
    conditions=(ENERGY, ANGLE),
    threshold=0.01,
    symmetries=("mirror-x", "mirror-y"),
    conserves_energy=True,
    max_response=1.01,
)
"""Both geometries, two conditions, both mirrors."""

TURNED = Family(
    name="turned",
    layers=(
        CylindricalLayer(n_alpha=4, r_edges=(0, 5, 10)),
        CylindricalLayer(n_alpha=1, r_edges=(0, 20)),
        CylindricalLayer(n_alpha=8, r_edges=(0, 20)),
    ),
    conditions=(
        ENERGY,
        Condition(name="impact_x", unit="mm", low=-10, high=10),
        Condition(name="impact_y", unit="mm", low=-10, high=10),
        Condition(name="theta", unit="deg", low=0, high=20),
        Condition(name="phi", unit="deg", low=-180, high=180),
    ),
    symmetries=("mirror-x", "mirror-y", "turn"),
)
"""Cylinders that share quarter turns, with impact points and directions."""

SINGLE = Family(name="single", layers=(CartesianLayer(shape=(3, 5), size=(30, 50)),), conditions=(ENERGY,))
"""One layer only; energy not conserved."""

MAPS = Family(
    name="maps",
    kind="map",
    unit="1+delta",
    pixels=(16, 16),
    box_size=16.0,
    conditions=(Condition(name="Omega_m", low=0.1, high=0.5), Condition(name="sigma_8", low=0.6, high=1.0)),
    symmetries=("mirror-x", "mirror-y", "roll", "turn"),
)

CALORIMETERS = [*(f for f in FAMILIES.values() if f.kind == "calorimeter"), SMALL, SINGLE]
ALL_FAMILIES = [*FAMILIES.values(), SMALL, SINGLE, MAPS]


def toy(family: Family, count: int, seed: int = 0) -> Samples:
    """Random samples with the structure of real ones.

    Showers: energies log-uniform over the family's range, a leak that falls with energy, a depth that grows with it,
    voxels gamma-distributed about a core, most of the far ones zero. Maps: log-normal, smooth, periodic.
    """
    rng = np.random.default_rng(seed)
    draws = {}
    for c in family.conditions:
        u = rng.random(count)
        draws[c.name] = c.low * (c.high / c.low) ** u if c.scale == "log" else c.low + (c.high - c.low) * u
    if family.kind == "map":
        height, width = family.sample_shape
        k = np.hypot(*np.meshgrid(np.fft.fftfreq(height), np.fft.fftfreq(width), indexing="ij"))
        noise = np.fft.fft2(rng.normal(size=(count, height, width))) / (1 + (k / 0.1) ** 2)
        field = np.fft.ifft2(noise).real
        amplitude = draws.get("sigma_8", np.ones(count))[:, None, None]
        values = np.exp(amplitude * field / field.std() - amplitude**2 / 2)
        return Samples(family, values.astype(np.float32), draws)
    energy = draws["incident_energy"]
    condition = family.conditions[0]
    height = np.log(energy / condition.low) / np.log(condition.high / condition.low)  # 0 to 1
    number = np.arange(len(family.layers)) / max(1, len(family.layers) - 1)
    depth = 0.2 + 0.4 * height + 0.1 * rng.normal(size=count)
    profile = np.exp(-0.5 * ((number - depth[:, None]) / 0.3) ** 2) * rng.gamma(20, 1 / 20, (count, len(number)))
    profile[:, -1] *= rng.random(count) > 0.3 * (len(number) > 1)  # the last layer is empty in some showers
    response = 1 - np.minimum(0.3, 0.02 * np.exp(0.5 * rng.normal(size=count)) * (1.5 - height))
    values = np.zeros((count, family.voxels))
    position = family.centres
    for i, part in enumerate(family.layer_slices):
        radius = np.hypot(*position[part].T)
        scale = max(np.sort(radius)[len(radius) // 4], 1e-3)
        mean = np.exp(-radius / scale)
        shares = rng.gamma(0.7, mean, (count, len(mean)))
        shares *= rng.random(shares.shape) < (0.15 + 0.8 * mean) * (0.5 + 0.5 * height[:, None])
        total = shares.sum(1, keepdims=True)
        values[:, part] = np.divide(shares, total, out=np.zeros_like(shares), where=total > 0) * profile[:, i : i + 1]
    total = values.sum(1)
    values *= np.divide(response * energy, total, out=np.zeros_like(total), where=total > 0)[:, None]
    values[values < family.threshold] = 0
    return Samples(family, values.astype(np.float32), draws)


def straight_family(layers: int = 2) -> Family:
    """Strips along x, then square cells of 2 mm, 64 mm wide; impact and direction are conditions."""
    z = [(5.0 * k * (k + 3), 5.0 * (k + 1) * (k + 4)) for k in range(layers)]
    impact = [Condition(name=name, unit="mm", low=-10, high=10) for name in ("impact_x", "impact_y")]
    angle = [Condition(name="theta", unit="deg", low=0, high=20), Condition(name="phi", unit="deg", low=-180, high=180)]
    return Family(
        name="straight",
        conditions=(Condition(name="incident_energy", unit="MeV", low=5e3, high=20e3), *impact, *angle),
        layers=tuple(CartesianLayer(shape=(32 if k else 3, 32), size=(64, 64), z=z[k]) for k in range(layers)),
    )


def straight(
    count: int,
    *,
    depths: np.ndarray,
    jitter: float,
    seed: int = 0,
    shift: float = 0.0,
    width: float = 1.0,
    offset: float = 0.0,
    inclined: bool = True,
) -> Samples:
    """Showers that are round clouds about the axis at given depths in each layer, of :func:`straight_family`.

    Args:
        count: How many.
        depths: Of each layer in mm at 10 GeV, and the change with the logarithm of the energy, (L, 2).
        jitter: How far a layer's cloud is off the axis along x and y: standard deviation in mm.
        seed: Decides everything.
        shift: How far clouds are moved along y, in mm; the conditions do not say so.
        width: Standard deviation of a cloud in mm.
        offset: Added to the impact points along y in mm.
        inclined: Whether directions differ from the normal.
    """
    from scipy.special import ndtr

    family, rng = straight_family(len(depths)), np.random.default_rng(seed)
    draws = {c.name: rng.uniform(c.low, c.high, count) for c in family.conditions}
    draws["impact_y"] += offset
    draws["theta"] *= inclined
    tangent, phi = np.tan(np.radians(draws["theta"])), np.radians(draws["phi"])
    shares = rng.dirichlet(np.full(len(depths), 50.0), count)
    values = np.zeros((count, family.voxels))
    for i, (layer, cells) in enumerate(zip(family.layers, family.layer_slices, strict=True)):
        z = depths[i, 0] + depths[i, 1] * np.log(draws["incident_energy"] / 10e3)
        rows = []
        for axis, direction, extra in (("x", np.cos(phi), 0.0), ("y", np.sin(phi), shift)):
            centre = draws[f"impact_{axis}"] + z * tangent * direction + extra + jitter * rng.normal(size=count)
            edges = layer.outline.up if axis == "y" else layer.outline.across
            rows.append(np.diff(ndtr((edges - centre[:, None]) / width), axis=1))
        cloud = shares[:, i, None, None] * rows[0][:, :, None] * rows[1][:, None]
        values[:, cells] = np.where(cloud > 1e-6, cloud, 0.0).reshape(count, -1)
    return Samples(family, (values * draws["incident_energy"][:, None]).astype(np.float32), draws)


def write_folder(folder: Path, samples: Samples, each: int | None = None) -> Path:
    """A folder of shards with its manifest."""
    step = each or len(samples)
    records = [
        write_shard(folder / f"shard-{i:06d}.h5", samples.read(a, a + step), provenance={"toy": 1}, index_start=a)
        for i, a in enumerate(range(0, len(samples), step))
    ]
    write_manifest(folder, records, provenance={"toy": 1})
    return folder


_SIZES = {"latent": 4, "hidden": [8], "channels": [8, 8]}


def tiny(kind: str = "calorimeter", **changes: Any) -> Config:
    """A configuration that trains in a moment; keyword arguments change fields or, as mappings, sections."""
    from calogen.models.registry import DEFAULTS, NETWORKS

    name = changes.get("generator", {}).get("network")
    network = NETWORKS[kind].get(name, NETWORKS[kind][DEFAULTS[kind]])
    classes = {"generator": network.generator_class, "critic": network.critic_class if network.critic else object}
    known = {name: inspect.signature(found).parameters for name, found in classes.items()}
    tree: dict[str, Any] = {
        "threads": 1,
        "device": "cpu",
        **{name: {key: size for key, size in _SIZES.items() if key in taken} for name, taken in known.items()},
        "training": {
            "steps": 4,
            "batch_size": 16,
            "critic_steps": 2,
            "log_every": 2,
            "validate_every": 2,
            "checkpoint_every": 2,
            "validation_size": 64,
        },
    }
    for key, value in changes.items():
        tree[key] = {**tree[key], **value} if isinstance(value, dict) and isinstance(tree.get(key), dict) else value
    return Config.build(tree)


def run_python(code: str, *arguments: object, threads: int = 1) -> subprocess.CompletedProcess[str]:
    """A program in a fresh process, warnings as errors."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONPATH": str(Path(__file__).parent)}
    command = [sys.executable, "-W", "error", "-c", textwrap.dedent(code), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=240, check=False)


@dataclass(frozen=True)
class Outcome:
    """What a command of the command line did."""

    code: int
    out: str
    err: str


def command(*arguments: object) -> Outcome:
    """A command of the command line, through its entry point in this process; errors that escape it fail the test."""
    import pytest

    from calogen.cli import main, terminal

    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setattr(terminal, "PLAIN_SECONDS", 1e6)  # no lines that only a slow machine prints
        patch.setattr(sys, "argv", ["calogen", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
    code = ended.value.code
    return Outcome(code if isinstance(code, int) else int(code is not None), out.getvalue(), err.getvalue())


def edit_card(folder: Path, **changes: Any) -> None:
    """Change a checkpoint's card on purpose, digests included: what they cannot find must be found all the same."""
    path = folder / "checkpoint.json"
    card = {key: value for key, value in json.loads(path.read_text()).items() if not key.startswith(("sha256", "hist"))}
    card = {**card, **changes}
    path.write_text(json.dumps({**card, "sha256": digest_of(card), "history_sha256": digest_of({"history": []})}))


@contextmanager
def no_file_beyond(size: int) -> Iterator[None]:
    """Writing a file beyond ``size`` bytes fails, as on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def everything_in(folder: Path) -> dict[str, bytes]:
    """Files and folders below a folder: their contents, and nothing for folders."""
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else b"" for p in sorted(folder.rglob("*"))}


TINY = """\
threads = 1
device = "cpu"
[generator]
latent = 4
hidden = [8]
[critic]
hidden = [8]
[training]
steps = 4
batch_size = 16
critic_steps = 2
log_every = 2
validate_every = 2
checkpoint_every = 2
validation_size = 16
"""
"""What :func:`tiny` says for showers, as a file."""


@dataclass(frozen=True)
class Trained:
    """A finished tiny run and what it was trained on."""

    folder: Path
    data: Path
    samples: Samples
    config: Config


COUNTED = Family(
    name="counted",
    layers=(CartesianLayer(shape=(2, 4), size=(20, 40)),),
    conditions=(Condition(name="incident_energy", unit="MeV", low=1e3, high=1e5, scale="log"),),
)
PIECE = 64


@dataclass(frozen=True)
class Counted:
    """Sample i is a function of the seed and i, quickly made.

    Attributes:
        seed: Decides the samples; so does nothing else here.
        pause: Seconds that a piece takes.
        bad: Index of the sample at which ``how`` happens.
        how: ``kill``, ``hang``, ``raise``, ``os-error``, ``few`` or ``many``.
        once: A file that is made then; while it exists, nothing happens.
    """

    seed: int = 0
    pause: float = 0.0
    bad: int = -1
    how: str = ""
    once: str = ""

    @property
    def family(self) -> Family:
        return COUNTED

    def describe(self) -> dict[str, Any]:
        return {"engine": "counted", "seed": self.seed}

    def pieces(self, start: int, stop: int) -> Iterator[Samples]:
        for low in range(start - start % PIECE, stop, PIECE):
            index = np.arange(low, low + PIECE)[max(start - low, 0) : stop - low]
            if self.bad in index and not (self.once and Path(self.once).exists()):
                if self.once:
                    Path(self.once).touch()
                self._misbehave()
                if self.how == "few":
                    index = index[:-1]
                if self.how == "many":
                    index = np.append(index, index)
            time.sleep(self.pause)
            yield counted(index, self.seed)

    def _misbehave(self) -> None:
        if self.how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.how == "raise":
            raise ZeroDivisionError("the universe has no mass")
        if self.how == "os-error":
            raise FileNotFoundError(2, "No such file or directory", "geant4-data")
        if self.how == "hang":
            time.sleep(60)


def counted(index: np.ndarray, seed: int = 0) -> Samples:
    """What :class:`Counted` makes of some indices."""
    energy = 1e3 + index % 9973
    grid = (index[:, None].astype(np.uint64) * 8 + np.arange(8, dtype=np.uint64) + seed * 7919) * 2654435761 % 2**20
    return Samples(COUNTED, grid / 2**22 * energy[:, None], {"incident_energy": energy}, kind="generated")


def program(maker: Counted, out: Path, total: int, shard: int, workers: int = 2, part: str = "1/1") -> list[str]:
    """A command line that makes a production in a process of its own."""
    facts = {"maker": asdict(maker), "out": str(out), "total": total, "shard": shard, "workers": workers, "part": part}
    return [sys.executable, "-W", "error", str(Path(__file__)), json.dumps(facts)]


def main() -> None:
    from calogen.cli.terminal import signals

    facts = json.loads(sys.argv[1])
    sys.modules.setdefault("support", sys.modules["__main__"])
    Counted.__module__ = "support"  # what a worker can import
    plan = Production(Counted(**facts["maker"]), facts["total"], facts["shard"], Part.parse(facts["part"]))
    try:
        with signals() as should_stop:
            produce(plan, Path(facts["out"]), workers=facts["workers"], should_stop=should_stop)
    except CalogenError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()


def counts(values: Any, edges: Any) -> Any:
    """Histogram with under- and overflow as first and last entry, (B + 2,); bins are [low, high)."""
    return np.bincount(np.searchsorted(edges, np.asarray(values, np.float64), side="right"), minlength=len(edges) + 1)


def listing(side: Any, table: Any, conditions: Mapping[str, Any]) -> Any:
    """A survey that lists other samples: observables (K, n), and conditions by name, (n,) each."""
    from calogen.analysis.survey.listed import Block, Listed

    columns = {"table": table, "position": np.arange(table.shape[1]), "whole": np.zeros(table.shape[1], bool)}
    block = Block(columns, dict(conditions), side.kept.select(np.arange(0)), side.kept_spectra[:0])
    return replace(side, listed=Listed([block]))
