"""Bad input at the command line: an exit code, a message that says what to do, no traceback, and nothing written."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import shlex
import shutil
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from support import (
    MAPS,
    SINGLE,
    SMALL,
    TINY,
    command,
    edit_card,
    everything_in,
    no_file_beyond,
    run_python,
    toy,
    write_folder,
)

from calogen.families import FAMILIES
from calogen.shards.samples import Samples
from calogen.shards.sources import open_shards
from calogen.shards.writer import write_shard

CALOGAN = FAMILIES["calogan"]


@dataclass(frozen=True)
class Case:
    """A command line, and what must come of it."""

    line: str
    code: int
    words: tuple[str, ...]


def user(line: str, *words: str) -> Case:
    """What the user gave is wrong: exit code 2."""
    return Case(line, 2, words)


# ------------------------------------------------------------------------------------------------ a world of bad input


def put(name: str, row: int, value: float) -> Callable[[h5py.File], None]:
    """Changes the first number of a row."""

    def spoil(file: h5py.File) -> None:
        values = file[name][:]
        values.reshape(len(values), -1)[row, 0] = value
        del file[name]
        file[name] = values

    return spoil


def external_link(file: h5py.File) -> None:
    del file["showers"]
    file["showers"] = h5py.ExternalLink("/etc/hostname", "/showers")


def virtual_dataset(file: h5py.File) -> None:
    shape = file["showers"].shape
    del file["showers"]
    layout = h5py.VirtualLayout(shape, "f4")
    layout[:] = h5py.VirtualSource("/etc/hostname", "showers", shape)
    file.create_virtual_dataset("showers", layout)


def fewer_voxels(file: h5py.File) -> None:
    showers = file["showers"][:, :-1]
    del file["showers"]
    file["showers"] = showers


def in_gev(file: h5py.File) -> None:
    file["incident_energies"][:] = file["incident_energies"][:] / 1e3


def no_unit_that_exists(file: h5py.File) -> None:
    file.attrs["energy_unit"] = "furlong"


SPOILT_FILES: dict[str, Callable[[h5py.File], None]] = {
    "nan": put("showers", 5, np.nan),
    "inf": put("showers", 5, np.inf),
    "negative": put("showers", 79, -1.0),
    "energy-nan": put("incident_energies", 3, np.nan),
    "energy-zero": put("incident_energies", 3, 0.0),
    "angle-inf": put("conditions/angle", 4, np.inf),
    "renamed": lambda file: file.move("showers", "shower"),
    "no-energies": lambda file: file.__delitem__("incident_energies"),
    "voxels": fewer_voxels,
    "gev": in_gev,
    "unit": no_unit_that_exists,
    "link": external_link,
    "virtual": virtual_dataset,
}


def best(run: Path) -> Path:
    return run / "checkpoints" / str(json.loads((run / "best.json").read_text())["checkpoint"])


def cut(path: Path, by: int = 200) -> None:
    path.write_bytes(path.read_bytes()[:-by])


def of_another_family(run: Path) -> None:
    card = json.loads((best(run) / "checkpoint.json").read_text())
    edit_card(best(run), family=json.loads(SINGLE.model_dump_json()), conditions=card["conditions"][:1])


def as_large_as_memory(run: Path) -> None:
    config = json.loads((best(run) / "checkpoint.json").read_text())["config"]
    config["generator"]["hidden"] = [2**16] * 40
    edit_card(best(run), config=config)


def cut_training_state(run: Path) -> None:
    for path in run.glob("checkpoints/*/training.safetensors"):
        cut(path)


SPOILT_RUNS: dict[str, Callable[[Path], None]] = {
    "truncated": lambda run: cut(best(run) / "model.safetensors"),
    "no-tensors": lambda run: (best(run) / "model.safetensors").unlink(),
    "no-card": lambda run: (best(run) / "checkpoint.json").unlink(),
    "no-best": lambda run: (run / "best.json").unlink(),
    "bad-best": lambda run: (run / "best.json").write_text("{") and None,
    "bad-card": lambda run: (best(run) / "checkpoint.json").write_text("{") and None,
    "binary-card": lambda run: (best(run) / "checkpoint.json").write_bytes(b"\xff\x00") and None,
    "nested-card": lambda run: (best(run) / "checkpoint.json").write_text("[" * 10**5) and None,
    "newer-card": lambda run: (best(run) / "checkpoint.json").write_text('{"calogen_checkpoint": 2}') and None,
    "pickled": lambda run: (best(run) / "model.safetensors").write_bytes(pickle.dumps({"a": 1})) and None,
    "other-family": of_another_family,
    "too-large": as_large_as_memory,
    "cut-state": cut_training_state,
    **dict.fromkeys(("pipe-card", "pipe-weights", "pipe-best"), lambda run: None),
}

BINNING = (
    '<?xml version="1.0" encoding="{}"?><Bins><Bin pid="22" name="photon">'
    '<Layer id="0" r_edges="{}" n_bin_alpha="{}"/></Bin></Bins>'
)
BINNINGS = {
    "encoding": ("klingon", "0,1,2", 1),
    "nan-edge": ("utf-8", "0,nan,2", 1),
    "inf-edge": ("utf-8", "0,1,inf", 1),
    "negative-edge": ("utf-8", "-1,1,2", 1),
    "many-cells": ("utf-8", "0,1,2", 999_999_999_999),
    "digits": ("utf-8", "0,1,2", "9" * 5000),
}
FAMILY = """\
[family]
name = "mine"
[[family.conditions]]
name = "incident_energy"
unit = "MeV"
low = 1000.0
high = {}
[[family.conditions]]
name = "{}"
low = 0.0
high = 1.0
[[family.layers]]
geometry = "cartesian"
shape = [2, 2]
size = [{}, 10.0]
"""
FAMILY_TABLES = {
    "slash": (1e5, "a/b", 10.0),
    "dot": (1e5, ".", 10.0),
    "inf-energy": ("inf", "a", 10.0),
    "nan-size": (1e5, "a", "nan"),
}
TEXTS = {
    "tiny.toml": TINY,
    "syntax.toml": 'family = "calogan\n',
    "nested.toml": "a = " + "[" * 10**5,
    "misspelt.toml": "[training]\nbatchsize = 3\n",
    "section.toml": "[trainin]\nsteps = 3\n",
    "value.toml": "[training]\nsteps = 1.5\n",
    "text.h5": "energies",
    "empty.h5": "",
    "no-unit.csv": "incident_energy,angle\n5,0\n",
    "no-number.csv": "incident_energy [GeV],angle\n5,0\nfive,0\n",
    "decimal-comma.csv": "incident_energy [GeV],angle\n5,3,0\n",
    "misspelt.csv": "incident_enrgy [GeV],angle\n5,0\n",
    "half.csv": "incident_energy [GeV]\n5\n",
    "header.csv": "incident_energy [GeV],angle\n",
    "empty.csv": "",
    "outside.csv": "incident_energy [GeV],angle\n5,0\n5000,0\n",
    "nan.csv": "incident_energy [GeV],angle\n5,0\nnan,0\n",
    "huge.csv": "incident_energy [GeV],angle\n1e300,0\n",
    "mine.txt": "keep",
    "digits.toml": "[training]\nsteps = " + "9" * 5000,
    **{f"{name}.xml": BINNING.format(*values) for name, values in BINNINGS.items()},
    **{f"{name}.toml": FAMILY.format(*values) for name, values in FAMILY_TABLES.items()},
    "params.txt": "# Omega_m sigma_8\n0.3 0.8\n",
}
STACKS = {  # NumPy files by what is wrong with their headers
    "long.npy": b"\x93NUMPY\x02\0\xff\xff\xff\xff{'descr': '<f4'",
    "negative.npy": b"\x93NUMPY\x01\0v\0"
    + b"{'descr': '<f4', 'fortran_order': False, 'shape': (-1, 64, 64), }".ljust(118),
    "spliced.npy": b"\x93NUMPY\x01\0v\0"
    + b"{'descr': '<f4', 'fortran_order': False, 'shape': (2, 64, 64L, (((".ljust(118),
}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with good and bad data, runs, configurations and tables; no test may change it."""
    home = tmp_path_factory.mktemp("world")
    for name, text in TEXTS.items():
        (home / name).write_text(text)
    small = toy(SMALL, 120)
    write_folder(home / "small", small, 80)
    write_folder(home / "maps", toy(MAPS, 40))
    write_folder(home / "few", small.read(0, 6))
    write_folder(home / "one", small.read(0, 1))
    write_folder(home / "no-conditions", Samples(SMALL, small.values, {}))
    for name, spoil in SPOILT_FILES.items():
        folder = Path(shutil.copytree(home / "small", home / name))
        (folder / "manifest.json").unlink()
        with h5py.File(folder / "shard-000000.h5", "r+") as file:
            spoil(file)
    for name, kept in (("cut", False), ("cut-listed", True)):
        cut(shutil.copytree(home / "small", home / name) / "shard-000001.h5")
        if not kept:
            (home / name / "manifest.json").unlink()
    (shutil.copytree(home / "small", home / "bare") / "manifest.json").unlink()
    (shutil.copytree(home / "small", home / "missing") / "shard-000001.h5").unlink()
    # CaloGAN's own files say nothing of units: energies are in GeV, cells in MeV.
    write_shard(home / "calogan.h5", toy(CALOGAN, 60), provenance={}, layout="calogan")
    with h5py.File(home / "calogan.h5", "r+") as file:
        for name in list(file.attrs):
            del file.attrs[name]
    for name, factor, which in (
        ("calogan-mev.h5", 1e3, ["energy"]),
        ("calogan-gev.h5", 1e-3, ["layer_0", "layer_1", "layer_2"]),
    ):
        shutil.copy(home / "calogan.h5", home / name)
        with h5py.File(home / name, "r+") as file:
            for dataset in which:
                file[dataset][:] = file[dataset][:] * factor
    done = command("train", home / "tiny.toml", "--data", home / "small", "--out", home / "run", "--steps", 2)
    assert done.code == 0, done.err
    line = ["train", home / "tiny.toml", "--data", home / "small", "--out", home / "free", "--steps", 1]
    assert command(*line, "--unconditional").code == 0
    assert command("generate", home / "free", "-n", 30, "--out", home / "free-showers").code == 0
    for name, spoil_run in SPOILT_RUNS.items():
        spoil_run(Path(shutil.copytree(home / "run", home / f"run-{name}")))
    torch.save({"a": torch.zeros(2)}, home / "model.pt")
    pipes = {"card": best(home / "run-pipe-card") / "checkpoint.json", "best": home / "run-pipe-best" / "best.json"}
    pipes["weights"] = best(home / "run-pipe-weights") / "model.safetensors"
    for path in (*(home / f"pipe{suffix}" for suffix in (".toml", ".csv", ".txt", ".xml", ".npy")), *pipes.values()):
        path.unlink(missing_ok=True)
        os.mkfifo(path)  # nobody writes to it: opening it would wait for ever
    (home / "zero.toml").symlink_to("/dev/zero")
    np.save(home / "maps.npy", np.ones((4, 64, 64), np.float32))
    for name, content in STACKS.items():
        (home / name).write_bytes(content)
    return home


TRAIN = "train tiny.toml --data {} --out new"
GENERATE = "generate {} -n 5 --energy fixed:50GeV --condition angle=fixed:0 --out new"
COUNT = "generate run {} --energy fixed:50GeV --condition angle=fixed:0 --out new"
SPEC = "generate run -n 5 --condition angle=fixed:0 --energy {} --out new"
MAP = "generate nbody-64 -n 5 --condition {} --condition {} --extrapolate --out new"
TABLE = "generate run --conditions {} --out new"
BAD_ROW = "1 bad row of 80"
NOT_EMPTY = "the output folder is not empty"

CASES = [
    # Files that are not there, not whole, or not what they should be.
    user(TRAIN.format("none.h5"), "the file does not exist", "none.h5", "beside it:"),
    user(TRAIN.format("'none/*.h5'"), "no file matches"),
    user(TRAIN.format("''"), "no data is named"),
    user(TRAIN.format("run"), "holds no data files", "run"),
    user(TRAIN.format("/dev/null"), "a device or a pipe"),
    user(TRAIN.format("text.h5"), "not HDF5", "energies"),
    user(TRAIN.format("empty.h5"), "the file is empty"),
    user(TRAIN.format("cut"), "damaged or truncated", "cut/shard-000001.h5", "make the file again"),
    user(TRAIN.format("cut-listed"), "length is not the manifest's", "shard-000001.h5", "truncated"),
    user(TRAIN.format("missing"), "the manifest and the folder disagree", "missing: shard-000001.h5"),
    user(TRAIN.format("renamed"), "no known layout", "'showers'", "shower"),
    user(TRAIN.format("no-energies"), "'incident_energies' is missing"),
    user(TRAIN.format("voxels"), "26 voxels (family 'small')", "25 voxels"),
    user(TRAIN.format("link"), "is a link", "showers", "point outside the file", "h5repack"),
    user(TRAIN.format("virtual"), "a virtual dataset", "h5repack"),
    user(TRAIN.format("small --data small"), "named twice"),
    user(TRAIN.format("small --data maps"), "files of different family", "expected", "small"),
    user("compare none small --out new", "no such file or folder", "none"),
    user("compare small text.h5 --out new", "not HDF5"),
    user("info none", "no such file or folder", "beside it:"),
    user("verify none", "no such file or folder"),
    user("verify cut-listed", "length is not the manifest's", "1 problem(s) found"),
    user("verify virtual", "a virtual dataset"),
    user("bench train --data none", "no such file or folder"),
    # Pipes, devices, and what is too large or makes no sense.
    user("train pipe.toml --data small --out new", "a device or a pipe", "pipe.toml"),
    user("train zero.toml --data small --out new", "a device or a pipe", "zero.toml"),
    user("train digits.toml --data small --out new", "not valid TOML", "digits.toml"),
    user(TRAIN.format(f"small --set training.steps={'9' * 5000}"), "bad value for 'training.steps'"),
    user(TRAIN.format("small --set family=pipe.xml"), "a device or a pipe", "pipe.xml"),
    user(TRAIN.format("small --set family=encoding.xml"), "not valid XML", "encoding.xml"),
    user(TRAIN.format("small --set family=nan-edge.xml"), "a layer is not valid", "finite number"),
    user(TRAIN.format("small --set family=inf-edge.xml"), "a layer is not valid", "finite number"),
    user(TRAIN.format("small --set family=negative-edge.xml"), "a layer is not valid", "from 0 or more"),
    user(TRAIN.format("small --set family=many-cells.xml"), "a sample has at most"),
    user(TRAIN.format("small --set family=digits.xml"), "a layer is not valid"),
    user("simulate toy -n 5 --set family=slash.toml --out new", "'a/b' cannot be the name of a condition"),
    user("simulate toy -n 5 --set family=dot.toml --out new", "'.' cannot be the name of a condition"),
    user("simulate toy -n 5 --set family=inf-energy.toml --out new", "finite number"),
    user("simulate toy -n 5 --set family=nan-size.toml --out new", "finite number"),
    user("generate run --conditions pipe.csv --out new", "a device or a pipe", "pipe.csv"),
    user(TRAIN.format("pipe.npy,params.txt"), "a device or a pipe", "pipe.npy"),
    user(TRAIN.format("pipe.csv"), "a device or a pipe", "pipe.csv"),
    user(TRAIN.format("maps.npy,pipe.txt"), "a device or a pipe", "pipe.txt"),
    user(TRAIN.format("long.npy,params.txt"), "not a NumPy array, or is truncated"),
    user(TRAIN.format("negative.npy,params.txt"), "not a NumPy array, or is truncated"),
    user(TRAIN.format("spliced.npy,params.txt"), "not a NumPy array, or is truncated"),
    user("info run-pipe-card", "a device or a pipe", "checkpoint.json"),
    user("info run-pipe-weights", "a device or a pipe", "model.safetensors"),
    user("info run-pipe-best", "best.json is damaged"),
    user("train tiny.toml --data small --out run-pipe-best --steps 4 --resume", "best.json is damaged"),
    user("bench analysis --data small --threads 100000", "too many for this machine", "--threads"),
    user(f"{TRAIN.format('small')} --threads 100000", "too many for this machine", "threads", "100000"),
    user(f"{COUNT.format('-n 5')} --workers 100000", "too many for this machine", "workers"),
    user("simulate toy -n 5 --workers 100000 --out new", "too many for this machine", "workers"),
    # Values that are no energies: file, dataset, row and count.
    user(TRAIN.format("nan"), BAD_ROW, "nan/shard-000000.h5, dataset showers, row 5", "found    nan", "--drop-bad"),
    user(TRAIN.format("inf"), BAD_ROW, "dataset showers, row 5", "found    inf"),
    user(TRAIN.format("negative"), BAD_ROW, "dataset showers, row 79", "found    -1.0", "not negative"),
    user(TRAIN.format("energy-nan"), BAD_ROW, "dataset incident_energies, row 3", "above 0"),
    user(TRAIN.format("energy-zero"), BAD_ROW, "dataset incident_energies, row 3", "found    0.0"),
    user(TRAIN.format("angle-inf"), BAD_ROW, "dataset conditions/angle, row 4"),
    user("compare small nan --out new", BAD_ROW, "dataset showers, row 5", "--drop-bad"),
    user("compare nan small --out new", BAD_ROW),
    user("generate run --like nan --out new", BAD_ROW),
    user("verify nan", BAD_ROW, "row 5"),
    # Units.
    user(TRAIN.format("calogan-mev.h5"), "not in the same units", "incident energies are in MeV", "energy_unit"),
    user(TRAIN.format("calogan-gev.h5"), "not in the same units", "the voxels in GeV", "cell_unit"),
    user(TRAIN.format("gev"), "not in the same units", "incident energies are in GeV"),
    user(TRAIN.format("unit"), "unknown energy unit", "furlong", "eV, keV, MeV, GeV, TeV"),
    user("compare calogan.h5 calogan-mev.h5 --out new", "not in the same units"),
    user("verify gev", "not in the same units"),
    # Configuration.
    user("train none.toml --data small --out new", "cannot read the configuration", "none.toml"),
    user("train small --data small --out new", "cannot read the configuration", "Is a directory"),
    user("train syntax.toml --data small --out new", "not valid TOML", "line 1", "syntax.toml"),
    user("train nested.toml --data small --out new", "not valid TOML", "nested.toml"),
    user("train misspelt.toml --data small --out new", "'training.batchsize'", "did you mean 'batch_size'"),
    user("train section.toml --data small --out new", "'trainin'", "did you mean 'training'"),
    user("train value.toml --data small --out new", "bad value for 'training.steps'", "value.toml", "1.5"),
    user(TRAIN.format("small --set training.stepz=3"), "did you mean 'steps'"),
    user(TRAIN.format("small --set training"), "an override is KEY=VALUE"),
    user(TRAIN.format("small --set training.steps=many"), "bad value for 'training.steps'", "many"),
    user(TRAIN.format("small --set family=caloga"), "unknown family 'caloga'", "did you mean 'calogan'"),
    user(TRAIN.format("small --set family=nbody-64"), "another family than asked for", "nbody-64"),
    user(TRAIN.format("small --set training.objective=wgan"), "wgan-gp", "lsgan"),
    user(TRAIN.format("small --set training.learning_rate=inf"), "finite number"),
    user(TRAIN.format("small --set generator.network=unet"), "does not make samples of family 'small'", "mlp"),
    user(TRAIN.format("small --set generator.hidden=" + str([2**16] * 40).replace(" ", "")), "do not fit into memory"),
    user(TRAIN.format("small --seed 99999999999999999999"), "bad value for 'seed'"),
    user(TRAIN.format("small --steps -1"), "--steps", "x>=0"),
    user(TRAIN.format("small --time 0"), "--time", "x>0"),
    user(TRAIN.format("small --batch-size 1"), "--batch-size"),
    user(TRAIN.format("small --device tpu"), "'auto', 'cpu', 'cuda'"),
    user(TRAIN.format("small --colour red"), "No such option", "--colour"),
    user("train --data small", "Missing option", "--out"),
    user("train --out new", "Missing option", "--data"),
    user("tran --data small", "No such command 'tran'"),
    # Conditions in training.
    user(TRAIN.format("small --condition angel"), "has no condition 'angel'", "did you mean 'angle'"),
    user(TRAIN.format("maps --energy-conditioned"), "has no condition 'incident_energy'", "Omega_m, sigma_8"),
    user(TRAIN.format("no-conditions"), "the data lack the condition 'incident_energy'", "--unconditional"),
    user(TRAIN.format("no-conditions --unconditional"), "no incident energies", "even to train --unconditional"),
    user(TRAIN.format("small --unconditional --energy-conditioned"), "--unconditional excludes"),
    user(TRAIN.format("small --unconditional --condition angle"), "--unconditional excludes"),
    user(TRAIN.format("small --holdout incident_energy"), "--holdout takes NAME=VALUE"),
    user(TRAIN.format("small --holdout incident_energy=20GeV"), "'20GeV' is not a range", "NAME=LO:HI"),
    user(TRAIN.format("small --holdout incident_energy=30:20GeV"), "the lower end must come first"),
    user(TRAIN.format("small --holdout incident_energy=20:30"), "the unit of 'incident_energy' is missing", "20:30"),
    user(TRAIN.format("small --holdout incident_energy=20:30gev"), "'gev' is not a unit of energy"),
    user(TRAIN.format("small --holdout angle=0:1GeV"), "'GeV' is not the unit of 'angle'"),
    user(TRAIN.format("small --holdout angel=0:1"), "did you mean 'angle'"),
    user(TRAIN.format("small --holdout angle=0:1 --holdout angle=-1:0"), "names 'angle' twice"),
    user(TRAIN.format("small --holdout incident_energy=1:100GeV"), "fewer training samples than one batch"),
    user(TRAIN.format("few"), "fewer training samples than one batch", "at least 16", "training.batch_size"),
    user(TRAIN.format("one"), "one sample cannot be split"),
    # Output folders.
    user("train tiny.toml --data small --out run", NOT_EMPTY, "--resume"),
    user("train tiny.toml --data small --out run --dry-run", NOT_EMPTY),
    user("train tiny.toml --data small --out mine.txt", NOT_EMPTY, "a file"),
    user(GENERATE.format("run").replace("new", "small"), "another production", "choose another --out"),
    user(GENERATE.format("run --dry-run").replace("new", "small"), "another production"),
    user(GENERATE.format("run").replace("new", "bare"), NOT_EMPTY, "choose another --out"),
    user(GENERATE.format("run").replace("new", "mine.txt"), NOT_EMPTY, "a file"),
    user("compare small small --out run", "holds something else"),
    user("compare small small --out mine.txt", "holds something else"),
    Case("train tiny.toml --data small --out /proc/new", 74, ("cannot make the output folder", "/proc: no folder can")),
    Case("compare none none --out /proc/new", 74, ("cannot make the output folder", "/proc: no folder can be made")),
    Case("train tiny.toml --data small --out mine.txt/new", 74, ("cannot make the output folder", "not a folder")),
    Case(GENERATE.format("run").replace("new", "mine.txt/new"), 74, ("cannot make the output folder",)),
    Case("compare small small --out mine.txt/new", 74, ("cannot make the output folder", "not a folder")),
    Case(f"info {'long' * 100}", 74, ("File name too long",)),
    # Resuming.
    user("train tiny.toml --data small --out new --resume", "no checkpoint to resume from"),
    user("train --data maps --out run --resume", "another 'family'", "small", "maps"),
    user("train --data small --out run --resume", "another 'generator'", "same configuration"),
    user("train tiny.toml --data few --batch-size 2 --out run --resume", "another 'training.batch_size'"),
    user("train tiny.toml --data few --out run --resume", "trained on other data"),
    user("train tiny.toml --data small --out run-cut-state --resume", "not those it was written with", "SHA-256"),
    user("train tiny.toml --data small --out run-bad-best --steps 4 --resume", "best.json is damaged", "delete it"),
    # Models.
    user(GENERATE.format("none"), "there is no model 'none'", "a run folder, a checkpoint folder"),
    user(GENERATE.format("small"), "there is no checkpoint here", "checkpoint.json"),
    user(GENERATE.format("run-truncated"), "not those it was written with", "take another checkpoint"),
    user(GENERATE.format("run-no-tensors"), "cannot read the checkpoint", "model.safetensors"),
    user(GENERATE.format("run-no-card"), "there is no checkpoint here"),
    user(GENERATE.format("run-no-best"), "no checkpoint yet", "--resume"),
    user(GENERATE.format("run-bad-best"), "best.json is damaged", "delete it"),
    user(GENERATE.format("run-bad-card"), "description is damaged"),
    user(GENERATE.format("run-binary-card"), "description is damaged"),
    user(GENERATE.format("run-nested-card"), "description is damaged"),
    user(GENERATE.format("run-newer-card"), "newer calogen", "upgrade"),
    user(GENERATE.format("run-pickled"), "a pickle", "run any code", "safetensors"),
    user(GENERATE.format("model.pt"), "a pickle", "model.pt"),
    user(GENERATE.format("mine.txt"), "a folder, not a file"),
    user("generate run-other-family -n 5 --energy fixed:50GeV --out new", "does not fit its own description"),
    user(GENERATE.format("run-too-large"), "does not fit its own description"),
    user("info run-truncated", "not those it was written with"),
    user("info run-bad-best", "best.json is damaged"),
    user("info run-pickled", "a pickle"),
    user("info run-no-best", "no checkpoint yet"),
    # How many, and of what.
    user(COUNT.format("-n 0"), "1 to 10^12", "found    0"),
    user(COUNT.format("-n -5"), "1 to 10^12", "found    -5"),
    user(COUNT.format("-n 10000000000000"), "1 to 10^12"),
    user(COUNT.format("-n 0 --dry-run"), "1 to 10^12"),
    user("generate run --like small -n -3 --out new", "1 to 10^12"),
    user("generate run --like small -n 10000000000000 --out new", "1 to 10^12"),
    Case("generate run --like small -n 1000000000000 --out new", 74, ("will not fit on the disk", "free")),
    Case(COUNT.format("-n 1000000000000"), 74, ("will not fit on the disk", "make fewer")),
    user(COUNT.format("-n many"), "'many' is not a valid integer"),
    user(COUNT.format(""), "say how many", "--like PATH"),
    user(GENERATE.format("run --shard-size 0"), "--shard-size"),
    user(GENERATE.format("run --seed 99999999999999999999"), "a seed is a number"),
    user(GENERATE.format("run --size 64"), "only maps have a size"),
    user(GENERATE.format("run --format calogan"), "own three layers only", "small"),
    user("generate free -n 5 --format calogan --out new", "--format calogan"),
    # Specifications.
    user(SPEC.format("GeV50"), "not a specification", "fixed:50GeV, uniform:1:100GeV"),
    user(SPEC.format("fixed:50"), "the unit of 'incident_energy' is missing", "fixed:50GeV"),
    user(SPEC.format("fixed:50gev"), "'gev' is not a unit of energy", "did you mean 'GeV'"),
    user(SPEC.format("fixed:nanGeV"), "not a specification"),
    user(SPEC.format("fixed:1e300GeV --extrapolate"), "too large"),
    user(SPEC.format("fixed:1:2GeV"), "not a specification"),
    user(SPEC.format("uniform:5GeV"), "not a specification"),
    user(SPEC.format("uniform:100:1GeV"), "the lower end must come first"),
    user(SPEC.format("log-uniform:0:1GeV"), "above 0"),
    user(SPEC.format("list:"), "not a specification"),
    user(SPEC.format("gauss:5GeV"), "not a specification"),
    user(SPEC.format("fixed:500GeV"), "1000 to 100000 MeV", "500000 MeV", "--extrapolate"),
    user(SPEC.format("fixed:500GeV --dry-run"), "1000 to 100000 MeV", "--extrapolate"),
    user(SPEC.format("list:5,500GeV"), "500000 MeV"),
    user(SPEC.format("fixed:-5GeV --extrapolate"), "not possible", "finite values above 0"),
    user(SPEC.format("fixed:0GeV --extrapolate"), "not possible", "finite values above 0"),
    user(MAP.format("Omega_m=some", "sigma_8=0.8"), "not a specification", "uniform:0.1:0.5 or list:0.1,0.5"),
    user(MAP.format("Omega_m=fixed:0.3", "sigma_8=fixed:0.8 --size 1000000"), "does not fit into memory", "--size"),
    user(MAP.format("Omega_m=fixed:0.3", "sigma_8=fixed:0"), "'sigma_8' are not possible", "finite values above 0"),
    user(MAP.format("Omega_m=fixed:0.3", "sigma_8=uniform:-1:1"), "'sigma_8' are not possible", "found    -1"),
    user(MAP.format("Omega_m=fixed:-0.3", "sigma_8=fixed:0.8"), "'Omega_m' are not possible", "found    -0.3"),
    user(SPEC.format("fixed:5GeV --condition incident_energy=fixed:5GeV"), "both name 'incident_energy'"),
    user(SPEC.format("fixed:5GeV --condition angle"), "takes NAME=VALUE"),
    user(SPEC.format("fixed:5GeV --condition angel=fixed:0"), "no condition 'angel'", "did you mean 'angle'"),
    user(SPEC.format("fixed:5GeV --condition angle=fixed:1"), "names 'angle' twice"),
    user(SPEC.format("fixed:5GeV --like small"), "conditions come from one place", "--like"),
    user("generate run --like small --conditions half.csv --out new", "conditions come from one place"),
    user("generate run -n 5 --energy fixed:5GeV --out new", "'angle' is missing", "--condition angle=fixed:V"),
    user("generate run -n 5 --condition angle=fixed:0 --out new", "'incident_energy' is missing", "--energy"),
    user("generate free -n 5 --energy fixed:5GeV --out new", "no condition 'incident_energy'", "unconditional"),
    user("generate run --like maps --out new", "the data lack the condition 'incident_energy'"),
    user("generate run --like none --out new", "no such file or folder"),
    # Tables of conditions.
    user(TABLE.format("none.csv"), "cannot read the conditions", "none.csv"),
    user(TABLE.format("empty.csv"), "not CSV with a header"),
    user(TABLE.format("header.csv"), "one row per sample"),
    user(TABLE.format("no-unit.csv"), "the unit of 'incident_energy' is missing", "incident_energy [GeV]"),
    user(TABLE.format("no-number.csv"), "not a number", "data row 2", "five"),
    user(TABLE.format("decimal-comma.csv"), "decimal points", "data row 1"),
    user(TABLE.format("misspelt.csv"), "did you mean 'incident_energy'"),
    user(TABLE.format("half.csv"), "lacks the condition 'angle'"),
    user(TABLE.format("half.csv -n 5"), "lacks the condition 'angle'"),
    user(TABLE.format("outside.csv"), "sample 1", "5e+06 MeV", "--extrapolate"),
    user(TABLE.format("nan.csv --extrapolate"), "sample 1", "not possible", "nan"),
    user(TABLE.format("huge.csv --extrapolate"), "sample 0", "not possible", "inf"),
    user(TABLE.format("tiny.toml"), "not HDF5"),
    user(TABLE.format("small"), "a folder, not a file"),
    # Comparing.
    user("compare small calogan.h5 --out new", "different families", "small", "calogan"),
    user("compare small maps --out new", "different families"),
    user("compare small one --out new", "too few samples"),
    user("compare small run --out new", "holds no data files"),
    user("compare small small small --out new", "two sets", "NAME=PATH"),
    user("compare small small --out new --fail-above w1/response", "KEY=NUMBER"),
    user("compare small small --out new --fail-above w1/response=low", "KEY=NUMBER", "w1/response=low"),
    user("compare small small --out new --bins 0", "--bins"),
    user("compare small --out new", "Missing argument 'GENERATED...'"),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.line[:90])
def test_bad_input_is_explained_and_nothing_is_written(
    case: Case, world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(world)
    before = {path: path.stat().st_mtime_ns * path.is_file() for path in world.rglob("*")}  # locks come and go
    done = command(*shlex.split(case.line))
    after = {path: path.stat().st_mtime_ns * path.is_file() for path in world.rglob("*")}
    shutil.rmtree("new", ignore_errors=True)
    said = done.out + done.err
    assert done.code == case.code, said
    for word in case.words:
        assert word in said
    assert "Traceback" not in said
    assert after == before


def test_a_checkpoint_that_only_begins_like_a_pickle_is_read(world: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(world / "run", tmp_path / "run"))
    path = best(run) / "model.safetensors"
    content = path.read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    padded = struct.pack("<Q", 0x10480) + content[8 : 8 + length].ljust(0x10480) + content[8 + length :]
    assert padded[:2] == pickle.dumps({}, protocol=4)[:2]
    path.write_bytes(padded)
    edit_card(best(run), model_sha256=hashlib.sha256(padded).hexdigest())
    done = command("info", run)
    assert done.code == 0, done.err


def test_every_case_is_tested_once() -> None:
    lines = [case.line for case in CASES]
    assert len(set(lines)) == len(lines)


# ------------------------------------------------------------------------------------------------- dropped and counted


def test_bad_rows_are_dropped_and_counted_if_asked(world: Path, tmp_path: Path) -> None:
    facts = json.loads(command("info", world / "nan", "--json").out)
    assert facts["bad_rows"] == 1
    assert "row 5" in facts["problems"][0]
    line = ["train", world / "tiny.toml", "--data", world / "negative", "--steps", 1, "--out", tmp_path / "run"]
    done = command(*line, "--drop-bad")
    assert done.code == 0, done.err
    assert "left out 1 bad rows of 120" in done.err


def test_a_gate_on_a_metric_that_does_not_exist_suggests_one_that_does(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("calogen.analysis.page.save.draw", lambda report: [])
    line = ["compare", world / "small", world / "nan", "--drop-bad", "--bins", 1, "--out", tmp_path / "report"]
    done = command(*line, "--fail-above", "w1/respons=1")
    assert done.code == 2
    assert "there is no metric 'w1/respons'" in done.err
    assert "did you mean 'w1/response'" in done.err
    assert "1 bad samples were dropped" in done.out


# -------------------------------------------------------------------------------------------------------- divergence


def test_numbers_that_run_away_stop_training_with_the_last_good_checkpoint(world: Path, tmp_path: Path) -> None:
    rates = ["--set", "training.learning_rate=1e30", "--set", "training.critic_learning_rate=1e30"]
    line = ["train", world / "tiny.toml", "--data", world / "small", "--out", tmp_path / "run", *rates]
    done = command(*line)
    assert done.code == 1
    for word in ("training diverged before step 2", "not finite", "step-0", "lower training.learning_rate"):
        assert word in done.err
    assert "Traceback" not in done.err
    done = command("generate", tmp_path / "run", "--like", world / "small", "-n", 3, "--out", tmp_path / "showers")
    assert done.code == 0, done.err


def test_data_of_one_energy_train_a_surrogate_of_that_energy(tmp_path: Path) -> None:
    samples = toy(SINGLE, 120)
    energy = np.full(120, 5e4, np.float32)
    scaled = samples.values * (energy / samples.conditions["incident_energy"])[:, None]
    write_folder(tmp_path / "data", Samples(SINGLE, scaled, {"incident_energy": energy}))
    (tmp_path / "tiny.toml").write_text(TINY)
    done = command("train", tmp_path / "tiny.toml", "--data", tmp_path / "data", "--out", tmp_path / "run")
    assert done.code == 0, done.err
    line = ["generate", tmp_path / "run", "-n", 4]
    assert command(*line, "--energy", "fixed:50GeV", "--out", tmp_path / "showers").code == 0
    assert np.isfinite(open_shards(tmp_path / "showers").read().values).all()
    done = command(*line, "--energy", "fixed:60GeV", "--out", tmp_path / "more")
    assert done.code == 2
    assert "50000 to 50000 MeV" in done.err


# ------------------------------------------------------------------------------------------------------ full disks


def test_a_full_disk_ends_training_and_a_new_start_can_use_the_folder(world: Path, tmp_path: Path) -> None:
    line = ["train", world / "tiny.toml", "--data", world / "small", "--out", tmp_path / "run", "--steps", 2]
    with no_file_beyond(500):
        done = command(*line)
    assert done.code == 74
    assert "cannot write the run folder" in done.err
    assert not (tmp_path / "run").exists()
    assert command(*line).code == 0


def test_a_disk_that_fills_up_leaves_the_earlier_checkpoints(world: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(world / "run", tmp_path / "run"))
    before = everything_in(run / "checkpoints")
    line = ["train", world / "tiny.toml", "--data", world / "small", "--out", run, "--resume"]
    with no_file_beyond(5000):
        done = command(*line, "--steps", 4)
    assert done.code == 74
    assert "cannot write the checkpoint" in done.err
    assert "earlier checkpoints are untouched" in done.err
    assert everything_in(run / "checkpoints") == before
    assert command(*line, "--steps", 4).code == 0


def test_a_full_disk_ends_generating_without_half_a_shard(world: Path, tmp_path: Path) -> None:
    line = ["generate", world / "run", "--like", world / "small", "-n", 2000, "--out", tmp_path / "showers"]
    with no_file_beyond(5000):
        done = command(*line)
    assert done.code == 74
    assert "the file cannot be written: File too large" in done.err
    assert "shard-000000.h5" in done.err
    assert [p.name for p in (tmp_path / "showers").iterdir()] == ["manifest.json"]
    assert command(*line).code == 0
    assert len(open_shards(tmp_path / "showers")) == 2000


def test_a_full_disk_ends_comparing_without_half_a_report(world: Path, tmp_path: Path) -> None:
    with no_file_beyond(5000):
        done = command("compare", world / "small", world / "small", "--bins", 1, "--out", tmp_path / "report")
    assert done.code == 74
    assert "metrics.json" in done.err
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
@pytest.mark.parametrize("line", [TRAIN.format("small"), GENERATE.format("run"), "compare small small --out new"])
def test_a_folder_that_may_not_be_written_is_refused_at_once(
    line: str, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(world)
    (tmp_path / "closed").mkdir(mode=0o500)
    done = command(*shlex.split(line.replace("new", str(tmp_path / "closed" / "new"))))
    assert done.code == 74
    assert "no permission to write" in done.err


# ---------------------------------------------------------------------------------------------------- the Python API


PYTHON: dict[str, tuple[Callable[[Any, Path], object], str]] = {
    "a missing condition": (lambda s, _: s.sample({"incident_energy": 5e4}, 3), "'angle' is missing"),
    "a huge number": (lambda s, _: s.sample({"incident_energy": 1e300, "angle": 0}, 3), "not possible"),
    "text": (lambda s, _: s.sample({"incident_energy": "some", "angle": 0}, 3), "not a specification"),
    "energies in GeV": (lambda s, _: s.sample({"incident_energy": 50.0, "angle": 0}, 3), "1000 to 100000 MeV"),
    "a seed below 0": (lambda s, _: s.sample({"incident_energy": 5e4, "angle": 0}, 3, seed=-1), "seed"),
    "no unit": (lambda s, out: s.generate(out, {"incident_energy": "fixed:5", "angle": "fixed:0"}, 3), "unit"),
    "no number of samples": (lambda s, out: s.generate(out, {"incident_energy": "fixed:5GeV"}), "how many"),
    "half of the conditions": (lambda s, out: s.generate(out, {"incident_energy": "fixed:5GeV"}, 3), "'angle'"),
}


@pytest.mark.parametrize("name", PYTHON)
def test_python_callers_get_the_same_errors(name: str, world: Path, tmp_path: Path) -> None:
    from calogen.errors import CalogenError
    from calogen.sampling import Surrogate

    call, word = PYTHON[name]
    with pytest.raises(CalogenError) as raised:
        call(Surrogate.load(world / "run"), tmp_path / "new")
    assert raised.value.exit_code == 2
    assert word in str(raised.value)
    assert not (tmp_path / "new").exists()


def test_a_reader_that_goes_away_is_no_error(world: Path) -> None:
    code = """
        import os, sys
        from calogen.cli import main
        read, write = os.pipe()
        os.close(read)
        os.dup2(write, 1)
        sys.argv = ["calogen", "--help"]
        main()
    """
    done = run_python(code)
    assert "Traceback" not in done.stderr
    assert "Error" not in done.stderr
    assert done.returncode in (1, 141)
