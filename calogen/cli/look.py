"""`calogen info`, `calogen verify` and `calogen gallery`: what is there, whether it is whole, and what was learnt."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import click

from ..errors import ConfigError, ShardError
from ..stages import reporting
from .options import FOLDER, JSON, PLACE, STRICT, of_command, opening, reads_files, show
from .terminal import columns, echo, stage_progress


@click.command()
@click.argument("paths", metavar="PATH...", type=PLACE, nargs=-1, required=True)
@STRICT
@JSON
@reads_files
def info(paths: tuple[str, ...], strict: bool, as_json: bool, **options: Any) -> None:
    """Describe data or a model, or put runs side by side.

    PATH is a shard, a glob or a folder, a CaloGAN, CaloChallenge or CAMELS file (of one particle: PATH,particle=e+); a
    run, a checkpoint, or a surrogate that comes with calogen. All of the data is read: ranges, and what is damaged.
    Several runs come as one table: settings that differ, scores, times and best steps.

    \b
    calogen info data/calogan-gamma
    calogen info calogan-gamma
    calogen info scan/*
    """
    if len(paths) > 1:
        _side_by_side(paths, as_json=as_json)
        return
    (path,) = paths
    from ..runs.find import describe_model, is_model
    from ..shards.inspect import describe

    how = opening(options)
    how["reading"] = how["reading"].model_copy(update={"parameters": False})
    facts = describe_model(path) if is_model(path) else describe(path, **how)
    history = [] if as_json else facts.pop("history", [])
    if not as_json:
        facts |= {key: [of_command(said) for said in facts.get(key, ())] for key in ("notes", "problems")}
    show(path, facts if as_json else _main(facts), as_json=as_json)
    if history:
        columns("history", history)
    if facts.get("problems") and not facts.get("samples"):
        raise ShardError("nothing of it can be read", where=path)
    if strict and (lacking := facts.get("missing")):
        raise ShardError("samples are missing", where=path, found=lacking[0], hint="make or fetch the rest")


def _side_by_side(paths: tuple[str, ...], *, as_json: bool) -> None:
    """Several runs as one table."""
    from ..runs.beside import table
    from ..runs.find import is_model

    if data := [path for path in paths if not is_model(path)]:
        what = "only runs are put side by side"
        raise ConfigError(what, expected="runs, checkpoints or surrogates", found=data[0], hint="describe it alone")
    found = table(paths)
    if as_json:
        click.echo(json.dumps(found, indent=2))
    else:
        columns("", found)


def _main(facts: dict[str, Any]) -> dict[str, Any]:
    """The facts that there are, each once, without the histories of the surrogates that made samples."""
    sources = facts.get("provenance")
    if isinstance(sources, dict):
        facts["provenance"] = _said_of(sources)
    elif isinstance(sources, list):
        facts["provenance"] = [{k: v for k, v in _said_of(one).items() if k != "history"} for one in sources]
    return {key: value for key, value in _said_of(facts).items() if key != "missing"}


def _said_of(facts: dict[str, Any]) -> dict[str, Any]:
    """The facts that say something."""
    return {key: value for key, value in facts.items() if value not in ([], {}, "", None)}


@click.command()
@click.argument("path", type=FOLDER)
@reads_files
@click.option(
    "--rebuild",
    is_flag=True,
    help="First make a lost or damaged manifest again from whole shards; give a model's card of before there were "
    "digests its own.",
)
def verify(path: Path, rebuild: bool, **options: Any) -> None:
    """Check every byte of shards, or of a model, against what was written.

    PATH is a shard or a folder of shards, a run (all of its checkpoints), a checkpoint, or a surrogate that comes with
    calogen; the exit code is 2 if anything is wrong.
    """
    from ..production.rebuild import rebuild as made_again
    from ..runs.find import holds_model, is_model, verify_model
    from ..shards.inspect import verify as check

    how = opening(options)
    model = holds_model(path) or (not path.exists() and is_model(path))  # a folder with a surrogate's name is data
    for manifest in made_again(path) if rebuild and not model else ():
        echo(f"made again: {manifest}")
    problems = verify_model(path, rebuild=rebuild) if model else check(path, **how)
    for problem in problems:
        echo(of_command(problem), err=True)
    if problems:
        again = "run the command that made them again (with the same --part): only bad shards are made again"
        hint = "copy it again; a run goes on from its last whole checkpoint with train --resume" if model else again
        raise ShardError(f"{len(problems)} problem(s) found", where=path, hint=hint)
    echo(f"{path}: every byte is as it was written")


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

    with stage_progress("gallery") as progress, reporting(progress):
        written = save_gallery(Surrogate.load(model, device), out, seed=seed)
    for path in written:
        echo(path)
