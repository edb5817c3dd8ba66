"""`calogen info`, `calogen verify` and `calogen gallery`: what is there, whether it is whole, and what was learnt."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import click

from ..errors import ShardError
from .options import FOLDER, JSON, PLACE, as_options, opening, options_of, reads_files, show
from .terminal import columns


@click.command()
@click.argument("path", type=PLACE)
@JSON
@reads_files
def info(path: str, as_json: bool, **options: Any) -> None:
    """Describe data or a model.

    PATH is a shard, a glob or a folder, a CaloGAN, CaloChallenge or CAMELS file (of one particle: PATH,particle=e+); a
    run, a checkpoint, or a surrogate that comes with calogen. All of the data is read: ranges, and what is damaged.

    \b
    calogen info data/calogan-gamma
    calogen info calogan-gamma
    """
    from ..runs.find import describe_model, is_model
    from ..shards.inspect import describe

    how = opening(options)
    how["reading"] = how["reading"].model_copy(update={"parameters": False})
    facts = describe_model(path) if is_model(path) else describe(path, **how)
    history = [] if as_json else facts.pop("history", [])
    if not as_json:
        known = options_of(info)
        facts |= {key: [as_options(str(said), known) for said in facts.get(key, ())] for key in ("notes", "problems")}
    show(path, facts if as_json else _main(facts), as_json=as_json)
    if history:
        columns("history", history)
    if facts.get("problems") and not facts.get("samples"):
        raise ShardError("nothing of it can be read", where=path)


def _main(facts: dict[str, Any]) -> dict[str, Any]:
    """The facts that there are, without the histories of the surrogates that made samples."""
    if isinstance(sources := facts.get("provenance"), list):
        facts["provenance"] = [{key: value for key, value in one.items() if key != "history"} for one in sources]
    return {key: value for key, value in facts.items() if value not in ([], {}, "", None)}


@click.command()
@click.argument("path", type=FOLDER)
@reads_files
def verify(path: Path, **options: Any) -> None:
    """Check every byte of shards against what was written.

    PATH is a shard or a folder of shards; the exit code is 2 if anything is wrong.
    """
    from ..shards.inspect import verify as check

    problems = check(path, **opening(options))
    for problem in problems:
        click.echo(problem, err=True)
    if problems:
        raise ShardError(
            f"{len(problems)} problem(s) found",
            where=path,
            hint="run the command that made them again (with the same --part): only bad shards are made again",
        )
    click.echo(f"{path}: every byte is as it was written")


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
