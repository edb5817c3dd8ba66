"""`calogen gallery`: a surrogate in figures."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import click

from .options import FOLDER, PLACE


@click.command()
@click.argument("model", type=PLACE)
@click.option("--out", "-o", required=True, type=FOLDER, help="Folder for the figures.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Random seed of the latents.")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
def gallery(model: str, out: Path, seed: int, device: Literal["auto", "cpu", "cuda"]) -> None:
    """Draw what a surrogate has learnt: walks between latents, sweeps of the conditions, a large field of maps.

    MODEL is a run folder, a checkpoint folder, or a surrogate that comes with calogen. No reference is needed.
    """
    from ..gallery import save_gallery
    from ..sampling import Surrogate

    for path in save_gallery(Surrogate.load(model, device), out, seed=seed):
        click.echo(path)
