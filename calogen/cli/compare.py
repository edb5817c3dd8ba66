"""`calogen compare`."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import ConfigError
from ..stages import reporting, stage
from .options import FOLDER, PLACE, STRICT, at_home, opening, printable, reads_files
from .terminal import echo, print_report, stage_progress, stoppable

if TYPE_CHECKING:
    from ..analysis.report import Report
    from ..shards.reader import Shards


@click.command()
@click.argument("reference", type=PLACE)
@click.argument("generated", type=PLACE, nargs=-1, required=True)
@click.option("--out", "-o", required=True, type=FOLDER, help="Folder for metrics, figures, report.")
@click.option(
    "--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Random seed of splits and sub-samples."
)
@click.option("--bins", type=click.IntRange(min=1), default=4, show_default=True, help="Bins of each condition.")
@click.option(
    "--training",
    type=PLACE,
    metavar="PATH",
    help="What the surrogate was trained on (or a folder with it in train/): look for memorised samples; "
    "with --inference, what its floor learns from.",
)
@click.option(
    "--classifier",
    type=click.Choice(["none", "light", "calochallenge"]),
    default="none",
    show_default=True,
    help="Train classifiers to tell the two apart: light takes minutes, calochallenge (its recipe) hours.",
)
@click.option(
    "--inference",
    is_flag=True,
    help="Learn posteriors of the conditions from generated and from simulated maps; ask both about simulated maps.",
)
@click.option(
    "--threshold",
    type=float,
    metavar="E",
    help="Read-out threshold in the family's unit, applied to every side (default: the family's; 0: none).",
)
@click.option(
    "--table",
    metavar="NAME,...",
    help="Rows of table.tex and table.csv: observables, or keys of metrics.json, as in response,width,fpd_400.",
)
@click.option("--figures", metavar="NAME,...", help="Draw only these: observables, or figures by their names.")
@reads_files
@click.option("--drop-bad", is_flag=True, help="Drop and count bad rows instead of refusing the file.")
@STRICT
@click.option("--workers", type=click.IntRange(min=1), help="Processes that read files (default: all available cores).")
@click.option(
    "--cluster",
    type=PLACE,
    metavar="ADDRESS|FILE",
    help="Read files on a running dask cluster: tcp://host:8786, or the scheduler file (instead of --workers).",
)
@click.option(
    "--fail-above",
    multiple=True,
    metavar="KEY=V",
    help="Exit with 3 if |metric KEY| of metrics.json exceeds V, as in score=0.1 (may be repeated).",
)
def compare(
    reference: str,
    generated: tuple[str, ...],
    out: Path,
    training: str | None,
    drop_bad: bool,
    strict: bool,
    fail_above: tuple[str, ...],
    table: str | None,
    figures: str | None,
    **options: Any,
) -> None:
    """Compare generated samples with a reference.

    REFERENCE and each GENERATED are a file, a glob or a folder of samples; where all are of one particle, they may be
    PATH,particle=e+. Of a reference with test/ that folder is taken. NAME=PATH gives a set of generated samples a name;
    sets of the same NAME are seeds of one surrogate, and are drawn as a band.

    Writes report.html, one page with everything; metrics.json, every number with its error and its floor (what
    reference against reference gives); figures/*.pdf and *.png; table.csv and table.tex, surrogates as columns.

    \b
    calogen compare data/calogan-gamma showers --out report
    calogen compare data/calogan-gamma gan=one gan=two flow=three --classifier light --out report
    """
    from ..analysis import compare as run
    from ..analysis.inputs import open_side, require_settings
    from ..analysis.page.save import STAGE
    from ..production.run import sensible_workers
    from ..shards.sources import require_asked

    how = opening(options) | {"drop_bad": drop_bad, "strict": strict}
    require_settings(options["bins"], options["seed"], options["threshold"])
    sensible_workers(options["workers"], options["cluster"])
    limits = _limits(fail_above)
    _require_report_folder(out)
    with stoppable(), stage_progress("comparing") as progress, reporting(progress):
        stage("opening the samples")
        named = _named_samples(generated, how)
        like = next(iter(named.values()))[0]  # of files that do not say what they hold
        source = open_side(reference, "test", like, **how)
        learnt = None if training is None else open_side(training, "train", like, **how)
        known = [shards for seeds in named.values() for shards in seeds]
        require_asked([source, *known, *([learnt] if learnt else [])], how["reading"])
        report = run(source, named, training=learnt, out=out / STAGE, **options)
        wrong = _save(report, out, table=_names(table), figures=_names(figures))
    print_report(report)
    echo(f"report: {out / 'report.html'}")
    if wrong is not None:
        raise wrong
    report.check(limits)


def _names(text: str | None) -> list[str]:
    return [name.strip() for name in (text or "").split(",") if name.strip()]


def _save(report: Report, out: Path, **chosen: list[str]) -> ConfigError | None:
    """Save a report; what is wrong with its chosen rows and figures, after minutes of work, costs only these."""
    from ..analysis import save

    try:
        save(report, out, **chosen)
    except ConfigError as error:
        save(report, out)
        error.hint = "; ".join(filter(None, (error.hint, "the report is written with its usual rows and figures")))
        return error
    return None


def _named_samples(texts: tuple[str, ...], how: dict[str, Any]) -> dict[str, list[Shards]]:
    """Generated samples by name; those given the same name on purpose are seeds of one surrogate."""
    from ..shards.labels import named_with
    from ..shards.sources import open_shards

    found: dict[str, list[Shards]] = {}
    unnamed = set()
    for text in texts:
        given, path = _apart(text)
        name = printable(given or Path(named_with(path)[0]).name or path)
        if not given:
            unnamed.add(name)
        if name in found and name in unnamed:
            raise ConfigError(f"two sets of generated samples are called '{name}'", hint="name them: NAME=PATH")
        found.setdefault(name, []).append(open_shards(path, **how))
    return found


def _apart(text: str) -> tuple[str, str]:
    """NAME and PATH of NAME=PATH, or no name: one holds no comma and no slash, so that PATH,particle=e+ has none."""
    from ..shards.labels import named_with

    name, sign, path = text.partition("=")
    if not sign or Path(text).exists():
        return "", text
    if set(",/") & set(name):
        if named_with(text)[0] == text and Path(at_home(path)).exists():  # else a glob, or no such file
            raise ConfigError("the name of a set holds no comma and no slash", found=name)
        return "", text
    if not name:
        raise ConfigError("a set of generated samples needs a name before the '='", found=text)
    return name, at_home(path)


def _limits(texts: tuple[str, ...]) -> dict[str, float]:
    limits = {}
    for text in texts:
        key, sign, value = text.rpartition("=")  # keys may hold '=' themselves
        try:
            limits[key] = float(value)
        except ValueError:
            sign = ""
        if not sign or not key or math.isnan(limits[key]):
            raise ConfigError("--fail-above takes KEY=NUMBER", where="--fail-above", found=text)
    return limits


def _require_report_folder(out: Path) -> None:
    from ..analysis.page.save import FILES, STAGE
    from ..storage import require_writable

    names = {path.name for path in out.iterdir()} if out.is_dir() else set()
    if (out.exists() and not out.is_dir()) or (names - {STAGE, *FILES} and "metrics.json" not in names):
        raise ConfigError(
            "the output folder holds something else", where=out, hint="choose an empty --out, or an earlier report's"
        )
    require_writable(out)
