"""`calogen train`."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import ConditionError, ConfigError
from .options import FOLDER, PLACE, STRICT, of_command, pairs, reading_of, reads_files, tell
from .terminal import echo, signals, table, training_progress

if TYPE_CHECKING:
    from ..config import Config
    from ..families import Family
    from ..training import Run


@click.command()
@click.argument("config", required=False, type=FOLDER)
@click.option(
    "--data",
    "-d",
    type=PLACE,
    required=True,
    multiple=True,
    help="File, glob, folder, or folder with train/ (may be repeated); of one particle: PATH,particle=e+.",
)
@click.option("--out", "-o", required=True, type=FOLDER, help="Run folder; empty or absent, except with --resume.")
@click.option("--energy-conditioned", is_flag=True, default=None, help="Condition on the incident energy.")
@click.option("--condition", "conditions", multiple=True, metavar="NAME", help="Condition on NAME (may be repeated).")
@click.option("--unconditional", is_flag=True, default=None, help="Condition on nothing.")
@click.option(
    "--holdout",
    multiple=True,
    metavar="NAME=LO:HI",
    help="Leave a range out (may be repeated): incident_energy=20:30GeV.",
)
@click.option(
    "--steps", type=click.IntRange(min=0), help="Rounds of projected training, or updates; 0: the fitted start alone."
)
@click.option(
    "--time",
    type=click.FloatRange(min=0, min_open=True),
    metavar="SECONDS",
    help="Stop cleanly once the run has taken SECONDS, earlier sessions included.",
)
@click.option("--batch-size", type=click.IntRange(min=2), help="Samples per update.")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), help="auto takes a GPU where there is one.")
@click.option(
    "--from",
    "prior",
    metavar="MODEL",
    help="Start from a surrogate of the same layers and conditions: for a few hundred showers.",
)
@click.option("--seed", type=click.IntRange(min=0), help="Random seed.")
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads (default: all available cores).")
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="A.B=V",
    help="Set any key of the configuration (may be repeated): training.penalty=5.",
)
@reads_files
@click.option("--drop-bad", is_flag=True, default=None, help="Drop and count bad rows instead of refusing the file.")
@STRICT
@click.option("--resume", is_flag=True, help="Continue the run in --out from its last checkpoint.")
@click.option("--dry-run", is_flag=True, help="Say what would be done; write nothing.")
def train(
    config: Path | None,
    data: tuple[str, ...],
    out: Path,
    dry_run: bool,
    strict: bool,
    resume: bool,
    **options: Any,
) -> None:
    """Train a surrogate on simulated samples.

    CONFIG is a TOML file; without one the defaults suit the family found in the data. Options win over CONFIG. Where
    neither names conditions, the surrogate is conditioned on all that the family has.

    \b
    calogen train --data data/calogan-gamma --energy-conditioned --out run
    calogen train configs/own-calorimeter.toml --data own --steps 5 --seed 2 --out own-run
    calogen train configs/nbody-64.toml --data data/nbody-64 --out maps-run
    torchrun --nproc-per-node 4 --no-python calogen train --data own --set training.update=adam --out run
    """
    from .. import training
    from ..runs.folder import RunFolder

    with training.joined() as ranks:
        with ranks.apart():
            settings = _train_config(config, options, list(data))
        if dry_run:
            with ranks.apart():
                plan = training.prepare(settings, data, strict=strict, ranks=ranks)
                if ranks.first:
                    if not resume:
                        RunFolder(out).require_empty()
                    table("would train", {**plan.describe(), "run folder": out})
                    for note in dict.fromkeys([*plan.training.notes, *plan.validation.notes]):
                        tell(note)
            return
        shown = training_progress(of_command) if ranks.first else nullcontext()
        with signals() as should_stop, shown as progress:
            told: dict[str, Any] = {"progress": progress, "should_stop": should_stop, "ranks": ranks}
            run = training.train(settings, data, out, resume=resume, strict=strict, **told)
        if ranks.first:
            _said(settings, run)


def _said(settings: Config, run: Run) -> None:
    """Say how a run ended."""
    limit, wanted = settings.training.time, settings.training.steps
    if limit is not None and run.step < wanted and not any("stopped" in record for record in run.records[-1:]):
        what = f"the run's time limit of {limit:g} s, fitting included, ended training"
        echo(f"note: {what} after {run.step} of {wanted} steps; --resume with a longer --time goes on", err=True)
    echo(f"trained {run.step} steps: {run.folder}")
    echo(run.outcome)


def _train_config(path: Path | None, options: dict[str, Any], data: list[str]) -> Config:
    """The configuration in a file, with the options that were given."""
    from ..config import Config

    given = {key: value for key, value in options.items() if value is not None and value != ()}
    config = Config.load(path, given.pop("overrides", ()))
    if reading := reading_of(given):
        config = config.updated({"reading": {**config.reading.given, **reading}})
    if "family" in given:
        config = config.updated({"family": given.pop("family")})
    names, energy = list(given.pop("conditions", ())), given.pop("energy_conditioned", None)
    if energy:
        names = list(dict.fromkeys([_family(config, data).require_energy().name, *names]))
    if given.pop("unconditional", None):
        if names:
            raise ConfigError("--unconditional excludes --energy-conditioned and --condition", where="calogen train")
        given["conditions"] = []
    elif names:
        given["conditions"] = names
    if "holdout" in given:
        given["holdout"] = _holdout(given["holdout"], _family(config, data))
    training = {key: given.pop(key) for key in ("steps", "time", "batch_size") if key in given}
    return config.updated({**given, "training": training})


def _family(config: Config, data: list[str]) -> Family:
    from ..shards.sources import open_splits

    return config.resolved_family() or open_splits(data, reading=config.reading)[0].family


def _holdout(texts: tuple[str, ...], family: Family) -> dict[str, tuple[float, float]]:
    """NAME=LO:HI options as ranges in the conditions' own units."""
    from ..production.requests import Spec

    ranges = {}
    for name, text in pairs(texts, "--holdout").items():
        condition = family.condition(name)
        if condition.labels:
            raise ConfigError("ranges are held out, not labels", where=f"--holdout {name}", hint="leave out its files")
        try:
            low, high = Spec.parse(condition, f"uniform:{text}").values
        except ConditionError as error:
            example = f"{condition.low:g}:{condition.high:g}{condition.unit}"
            raise ConfigError(
                error.what.replace("uniform:", "").replace("specification", "range"),
                where=f"--holdout {name}={text}",
                expected=f"NAME=LO:HI, as in {name}={example}",
            ) from None
        ranges[name] = (float(low), float(high))
    return ranges
