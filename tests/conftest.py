"""What tests share: toy samples of any family, shards of them, small runs, and programs in fresh processes."""

from __future__ import annotations

import inspect
import io
import os
import resource
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from calogen.config import Config
from calogen.families import FAMILIES, CartesianLayer, Condition, CylindricalLayer, Family
from calogen.shards import Samples, Shards, open_shards, write_manifest, write_shard

torch.set_num_threads(1)

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
    return Samples(family, values.astype(np.float32), draws)


def write_folder(folder: Path, samples: Samples, each: int | None = None) -> Path:
    """A folder of shards with its manifest."""
    step = each or len(samples)
    records = [
        write_shard(folder / f"shard-{i:06d}.h5", samples.read(a, a + step), provenance={"toy": 1}, index_start=a)
        for i, a in enumerate(range(0, len(samples), step))
    ]
    write_manifest(folder, records, provenance={"toy": 1})
    return folder


_SIZES = {"latent": 4, "hidden": [8], "channels": [4, 4]}


def tiny(kind: str = "calorimeter", **changes: Any) -> Config:
    """A configuration that trains in a moment; keyword arguments change fields or, as mappings, sections."""
    from calogen.networks import DEFAULTS, NETWORKS

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
    from calogen.cli import main

    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setattr(sys, "argv", ["calogen", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
    code = ended.value.code
    return Outcome(code if isinstance(code, int) else int(code is not None), out.getvalue(), err.getvalue())


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


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A tiny run on toy showers of family calogan; leave it as it is."""
    from calogen.training import train

    home = tmp_path_factory.mktemp("trained")
    samples = toy(FAMILIES["calogan"], 700, seed=7)
    data = write_folder(home / "data", samples, 400)
    config = tiny()
    train(config, data, home / "run")
    return Trained(home / "run", data, samples, config)


@pytest.fixture
def shards(tmp_path: Path) -> Callable[..., Shards]:
    """Opens toy shards of a family: ``shards(family, count, seed, each)``."""

    def make(family: Family, count: int, seed: int = 0, each: int | None = None) -> Shards:
        return open_shards(write_folder(tmp_path / f"{family.name}-{count}-{seed}", toy(family, count, seed), each))

    return make
