"""`calogen info` and `calogen verify`: what is there, and whether it is whole."""

from __future__ import annotations

from pathlib import Path

import click

from ..errors import ShardError
from .options import FOLDER, PLACE, show


@click.command()
@click.argument("path", type=PLACE)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def info(path: str, as_json: bool) -> None:
    """Describe shards, a simulation file or a model."""
    from ..models import describe_model, is_model
    from ..shards import describe

    facts = describe_model(path) if is_model(path) else describe(path)
    show(path, facts if as_json else {k: v for k, v in facts.items() if v not in ([], {}, "")}, as_json=as_json)
    if facts.get("problems") and not facts.get("samples"):
        raise ShardError("nothing of it can be read", where=path)


@click.command()
@click.argument("path", type=FOLDER)
def verify(path: Path) -> None:
    """Check every byte of shards.

    PATH is a shard or a folder of shards; the exit code is 2 if anything is wrong.
    """
    from ..shards import verify as check

    problems = check(path)
    for problem in problems:
        click.echo(problem, err=True)
    if problems:
        raise ShardError(
            f"{len(problems)} problem(s) found",
            where=path,
            hint="what calogen made, the same command (and --part) makes good: only bad shards are made again",
        )
    click.echo(f"{path}: every byte is as it was written")
