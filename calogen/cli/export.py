"""`calogen export`: a model for other people's programs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ..stages import reporting, stage
from .options import FOLDER, PLACE
from .terminal import echo, stage_progress


@click.command()
@click.argument("model", type=PLACE)
@click.option("--format", required=True, metavar="onnx|par04|cpp", help="What to write; see above.")
@click.option("--out", "-o", required=True, type=FOLDER, help="Folder to be made; empty or absent.")
@click.option("--opset", type=int, help="Of ONNX's operators (default: the lowest that does; most runtimes read it).")
def export(model: str, out: Path, **options: Any) -> None:
    """Write a model for programs that do not run Python, and check what it makes there.

    MODEL is a run folder, a checkpoint folder, or a surrogate that comes with calogen. Formats:

    \b
    onnx    one graph for any ONNX runtime: noise and conditions in, showers in MeV (or maps) out
    par04   the graph that Geant4's example Par04 calls, with a macro; for cylinders of equal cells
    cpp     showers as one C++17 header that needs nothing else, a file of weights, and an example

    surrogate.json beside the files says how to call them, what their numbers mean, and where the voxels are. Graphs
    are tried on 1,000 samples, which are compared with those of Python; that needs pip install "calogen[export]".

    \b
    calogen export calogan-gamma --format onnx --out gamma
    calogen export par04-electron --format par04 --out electron
    calogen export calogan-gamma --format cpp --out gamma-cpp
    """
    from ..sampling import Surrogate

    with stage_progress("exporting") as progress, reporting(progress):
        stage("loading the model")
        made = Surrogate.load(model).export(out=out, **options)
    echo(f"{made['format']} written: {out}")
    if (check := made.get("check")) is None:
        build = f"g++ -std=c++17 -O2 {out / 'example.cpp'} -o example && ./example"
        echo(f"it prints the showers that Python makes with seed 0: {build}")
        return
    unit, relative = check["unit"], check["largest_relative_above_1"]
    differ = f"largest difference {check['largest']:.3g} {unit}, relative {relative:.2g} above 1 {unit}"
    echo(f"{check['samples']} samples in {check['with']} and in Python: {differ}")
