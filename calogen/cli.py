"""The command line: with terminal.py, the only room that prints, draws progress, or sets exit codes."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .errors import CalogenError, ConditionError, ConfigError, StorageError
from .terminal import (
    gigabytes,
    make_console,
    nothing,
    print_report,
    readable,
    sample_progress,
    signals,
    table,
    training_progress,
)

if TYPE_CHECKING:
    from .config import Config
    from .requests import Request
    from .sampling import Surrogate
    from .shards import Shards


def _pairs(values: tuple[str, ...], option: str) -> dict[str, str]:
    """NAME=VALUE options as a mapping."""
    found = {}
    for text in values:
        name, sign, value = text.partition("=")
        if not sign or not name or not value:
            raise ConfigError(f"{option} takes NAME=VALUE", where=option, found=text)
        if name in found:
            raise ConfigError(f"{option} names '{name}' twice", where=option)
        found[name] = value
    return found


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="calogen")
def cli() -> None:
    """Fast, faithful stand-ins for slow simulations: conditional WGAN-GPs for calorimeter showers and N-body maps.

    \b
    calogen info data/calogan-gamma                     what is in these files?
    calogen train --data data/calogan-gamma --energy-conditioned --out run
    calogen generate run -n 100000 --energy uniform:1:100GeV --out showers
    calogen compare data/calogan-gamma/test showers --out report
    """


# --- train ----------------------------------------------------------------------------------------------------------


@cli.command()
@click.argument("config", required=False, type=click.Path(path_type=Path))
@click.option("--data", "-d", required=True, multiple=True, help="Shard, glob, folder, or folder with train/.")
@click.option("--out", "-o", required=True, type=click.Path(path_type=Path), help="Run folder; empty or absent.")
@click.option("--energy-conditioned", is_flag=True, help="Condition on the incident energy.")
@click.option("--condition", "conditions", multiple=True, metavar="NAME", help="Condition on NAME (may be repeated).")
@click.option("--unconditional", is_flag=True, help="Condition on nothing.")
@click.option("--holdout", multiple=True, metavar="NAME=LO:HI", help="Leave a range out: incident_energy=20:30GeV.")
@click.option("--steps", type=click.IntRange(min=1), help="Generator updates.")
@click.option("--time", "seconds", type=click.FloatRange(min=0, min_open=True), help="Stop cleanly after SECONDS.")
@click.option("--batch-size", type=click.IntRange(min=2), help="Samples per update.")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), help="auto takes a GPU where there is one.")
@click.option("--seed", type=click.IntRange(min=0), help="Of everything random.")
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads (default: the cores there are).")
@click.option("--set", "overrides", multiple=True, metavar="A.B=V", help="Set any key of the configuration.")
@click.option("--drop-bad", is_flag=True, help="Drop and count bad rows instead of refusing the file.")
@click.option("--resume", is_flag=True, help="Continue the run in --out from its last checkpoint.")
@click.option("--dry-run", is_flag=True, help="Say what would be done; write nothing.")
def train(config: Path | None, data: tuple[str, ...], out: Path, dry_run: bool, resume: bool, **options: Any) -> None:
    """Train a surrogate on simulation shards.

    CONFIG is a TOML file; without one the defaults suit the family found in the data.
    """
    settings = _train_config(config, options, list(data))
    from . import training
    from .runs import RunFolder

    if dry_run:
        plan = training.prepare(settings, data)
        if not resume:
            RunFolder(out).require_empty()
        table("would train", {**plan.describe(), "run folder": out})
        return
    with signals() as should_stop, training_progress() as progress:
        run = training.train(settings, data, out, resume=resume, progress=progress, should_stop=should_stop)
    best = f"best score {run.score:.4f}" if run.score is not None else "not validated"
    if run.step < (wanted := settings.training.steps) and settings.training.time is not None:
        limit = f"the time limit of {settings.training.time:g} s, fitting included, "
        click.echo(f"note: {limit}ended training after {run.step} of {wanted} steps", err=True)
    click.echo(f"trained {run.step} steps, {best}: {run.folder}")


def _train_config(path: Path | None, options: dict[str, Any], data: list[str]) -> Config:
    from .config import Config

    config = Config.load(path, options["overrides"])
    chosen = [options["energy_conditioned"] or bool(options["conditions"]), options["unconditional"]]
    if all(chosen):
        raise ConfigError("--unconditional excludes --energy-conditioned and --condition", where="calogen train")
    changes: dict[str, Any] = {key: options[key] for key in ("device", "seed", "threads") if options[key] is not None}
    if chosen[0]:
        names = ["incident_energy"] if options["energy_conditioned"] else []
        changes["conditions"] = list(dict.fromkeys([*names, *options["conditions"]]))
    if options["unconditional"]:
        changes["conditions"] = []
    if options["drop_bad"]:
        changes["drop_bad"] = True
    section = {"steps": options["steps"], "time": options["seconds"], "batch_size": options["batch_size"]}
    changes["training"] = {key: value for key, value in section.items() if value is not None}
    if options["holdout"]:
        changes["holdout"] = _holdout(options["holdout"], config, data)
    return config.updated(changes)


def _holdout(texts: tuple[str, ...], config: Config, data: list[str]) -> dict[str, tuple[float, float]]:
    """NAME=LO:HI options as ranges in the conditions' own units."""
    from .requests import Spec
    from .shards import open_splits

    family = config.resolved_family() or open_splits(data)[0].family
    ranges = {}
    for name, text in _pairs(texts, "--holdout").items():
        condition = family.condition(name)
        try:
            low, high = Spec(condition, f"uniform:{text}").values
        except ConditionError as error:
            example = f"{condition.low:g}:{condition.high:g}{condition.unit}"
            raise ConfigError(
                error.what.replace("uniform:", "").replace("specification", "range"),
                where=f"--holdout {name}={text}",
                expected=f"NAME=LO:HI, as in {name}={example}",
            ) from None
        ranges[name] = (float(low), float(high))
    return ranges


# --- generate -------------------------------------------------------------------------------------------------------


@cli.command()
@click.argument("model")
@click.option(
    "--out",
    "-o",
    required=True,
    type=click.Path(path_type=Path),
    help="Folder; empty, absent, or of an unfinished call.",
)
@click.option("-n", "count", type=int, help="Samples (default: the length of --like or --conditions).")
@click.option("--energy", metavar="SPEC", help="fixed:50GeV, uniform:1:100GeV, log-uniform:1:100GeV, list:1,5,10GeV.")
@click.option("--condition", "conditions", multiple=True, metavar="NAME=SPEC", help="The same for any condition.")
@click.option("--like", metavar="PATH", help="Take the conditions of these shards, in order.")
@click.option("--conditions", "table", metavar="FILE", help="CSV or HDF5 with one row per sample, in order.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
@click.option("--workers", type=click.IntRange(min=1), help="Processes (default: the cores there are).")
@click.option("--part", metavar="I/N", help="Make part I of N only; auto: from torchrun's or Slurm's variables.")
@click.option("--format", "layout", type=click.Choice(["native", "calogan"]), default="native", show_default=True)
@click.option(
    "--shard-size", type=click.IntRange(min=1), help="Samples per file (default: 128 MiB before compression)."
)
@click.option(
    "--mantissa-bits", type=click.IntRange(1, 23), help="Round values to so many bits of mantissa: smaller files."
)
@click.option("--extrapolate", is_flag=True, help="Allow conditions outside the trained range.")
@click.option("--size", type=click.IntRange(min=1), help="Side of the maps in pixels (maps only).")
@click.option("--dry-run", is_flag=True, help="Say what would be done; write nothing.")
def generate(model: str, out: Path, dry_run: bool, part: str | None, **options: Any) -> None:
    """Generate samples with a trained surrogate, or finish what an earlier call began.

    MODEL is a run folder (its best checkpoint is used), a checkpoint folder, or a surrogate that comes with calogen.
    Sample i depends on the checkpoint, the seed, the conditions and i alone.
    """
    from .parts import Part
    from .sampling import Surrogate

    surrogate = Surrogate.load(model, options["device"])
    if options["size"]:
        surrogate = surrogate.resized(options["size"])
    request = _request(surrogate, options)
    names = ("seed", "layout", "shard_size", "mantissa_bits", "extrapolate", "workers")
    how = {name: options[name] for name in names} | {"part": Part.parse(part) if part is not None else None}
    if dry_run:
        plan, estimate = surrogate.plan(request, out, **how)
        table(
            "would generate",
            {
                "samples": estimate.samples,
                **({"part": f"{plan.part.index} of {plan.part.count}"} if plan.part.count > 1 else {}),
                "files": estimate.shards,
                "size": f"about {gigabytes(estimate.bytes)} ({gigabytes(estimate.raw_bytes)} before compression)",
                "free": gigabytes(estimate.free_bytes),
                "conditions": json.dumps(request.describe()),
                "folder": out,
            },
        )
        return
    with signals() as should_stop, sample_progress("generating") as progress:
        surrogate.generate(out, request, **how, progress=progress, should_stop=should_stop)
    what = f"part {part} of {request.samples}" if part else f"{request.samples}"
    click.echo(f"generated {what} samples: {out}")


def _request(surrogate: Surrogate, options: dict[str, Any]) -> Request:
    from .requests import Request
    from .shards import open_shards

    specs = _pairs(options["conditions"], "--condition")
    if options["energy"] is not None:
        if "incident_energy" in specs:
            raise ConfigError("--energy and --condition both name 'incident_energy'", where="calogen generate")
        specs["incident_energy"] = options["energy"]
    given = [name for name, value in (("like", options["like"]), ("conditions", options["table"])) if value]
    if (specs and given) or len(given) > 1:
        raise ConfigError(
            "conditions come from one place",
            expected="--energy/--condition, or --like, or --conditions",
            found=", ".join([f"--{name}" for name in given] + [f"--condition {name}" for name in specs]),
        )
    names = surrogate.conditions
    if options["like"]:
        return Request.like(open_shards(options["like"]), names, options["count"])
    if options["table"]:
        return Request.from_file(options["table"], surrogate.family, names, options["count"])
    missing = [name for name in names if name not in specs]
    if missing:
        example = (
            "--energy uniform:1:100GeV" if missing[0] == "incident_energy" else f"--condition {missing[0]}=fixed:V"
        )
        raise ConditionError(
            f"the condition '{missing[0]}' is missing", hint=f"{example}, --like PATH or --conditions FILE"
        )
    return Request.from_specs(surrogate.family, specs, options["count"])


# --- simulate -------------------------------------------------------------------------------------------------------


@cli.command()
@click.argument("engine", metavar="ENGINE", type=click.Choice(["geant4", "nbody", "toy"]))
@click.option("--out", "-o", type=click.Path(path_type=Path), help="Folder; empty, absent, or of an unfinished run.")
@click.option("-n", "count", type=click.IntRange(min=1), help="Samples.")
@click.option("--particle", help="gamma, e- or e+ (geant4).")
@click.option("--energy", metavar="SPEC", help="fixed:50GeV, uniform:1:100GeV, log-uniform:1:100GeV, list:1,5,10GeV.")
@click.option("--condition", "conditions", multiple=True, metavar="NAME=SPEC", help="The same for any condition.")
@click.option("--set", "settings", multiple=True, metavar="OPTION=VALUE", help="Any other option of the engine.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option("--workers", type=click.IntRange(min=1), help="Processes (default: the cores there are).")
@click.option("--part", metavar="I/N", help="Make part I of N only; auto: from torchrun's or Slurm's variables.")
@click.option("--shard-size", type=click.IntRange(min=1), help="Samples per file.")
@click.option("--check", is_flag=True, help="Simulate a little, print it beside what is known, and write nothing.")
@click.option("--dry-run", is_flag=True, help="Say what would be done; write nothing.")
def simulate(engine: str, out: Path | None, count: int | None, check: bool, dry_run: bool, **options: Any) -> None:
    """Make reference samples on this machine, or finish what an earlier call began.

    \b
    geant4   showers; pip install "calogen[geant4]"
             --set geometry=calogan|2|FILE.toml, signal=all|active, physics=option1|standard, cut=0.7 [mm]
             --condition impact_x, impact_y [mm], theta, phi [deg]
    nbody    density maps; pip install "calogen[nbody]"
             --set pixels=64, box=64 [Mpc/h], slabs=8, steps=20; --condition Omega_m, sigma_8
    toy      showers or maps with known moments, for tests and teaching
             --set family=NAME|FILE.toml, field=lognormal|gaussian, amplitude=
    """
    from . import simulators
    from .parts import Part
    from .production import check_folder, produce, usable_cores

    settings = _pairs(options["settings"], "--set")
    conditions = _pairs(options["conditions"], "--condition")
    if options["energy"] is not None:
        if "incident_energy" in conditions:
            raise ConfigError("--energy and --condition both name 'incident_energy'", where="calogen simulate")
        conditions["incident_energy"] = options["energy"]
    if not check and (out is None or count is None):
        raise ConfigError("say how many samples to make, and where", where="calogen simulate", expected="-n and --out")
    taken = sorted({"seed", "samples", "conditions", "name", "model", "detector"} & settings.keys())
    if taken:
        raise ConfigError(f"'{taken[0]}' is not set with --set", where="--set", hint="see calogen simulate --help")
    named = {"particle": options["particle"]} if options["particle"] else {}
    source = simulators.build(
        engine, samples=count or 1, seed=options["seed"], conditions=conditions, **named, **settings
    )
    if check:
        click.echo(source.check())
        return
    part = Part.parse(options["part"]) if options["part"] is not None else None
    plan = simulators.plan(source, count or 1, shard_size=options["shard_size"], part=part)
    folder, workers = out or Path(), options["workers"] or usable_cores()
    if dry_run:
        check_folder(plan, folder)
        table("would simulate", {"samples": count, "files": len(plan.shards()), "workers": workers, "folder": folder})
        return
    with signals() as should_stop, sample_progress("simulating") as progress:
        produce(plan, folder, workers=workers, isolate=source.isolated, progress=progress, should_stop=should_stop)
    click.echo(f"simulated {f'part {part.index}/{part.count} of ' if part else ''}{count} samples: {folder}")


# --- compare, info, verify, bench -----------------------------------------------------------------------------------


@cli.command()
@click.argument("reference")
@click.argument("generated", nargs=-1, required=True)
@click.option(
    "--out", "-o", required=True, type=click.Path(path_type=Path), help="Folder for metrics, figures, report."
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of splits and sub-samples.")
@click.option("--bins", type=click.IntRange(min=1), default=4, show_default=True, help="Bins of each condition.")
@click.option("--training", metavar="PATH", help="What the surrogate was trained on: look for samples learnt by heart.")
@click.option(
    "--classifier",
    type=click.Choice(["none", "light", "calochallenge"]),
    default="none",
    show_default=True,
    help="Two-sample classifiers: light takes a minute or more, calochallenge hours.",
)
@click.option("--drop-bad", is_flag=True, help="Drop and count bad rows instead of refusing the file.")
@click.option(
    "--fail-above", multiple=True, metavar="KEY=V", help="Exit 3 if |metric KEY| exceeds V (may be repeated)."
)
def compare(
    reference: str,
    generated: tuple[str, ...],
    out: Path,
    training: str | None,
    drop_bad: bool,
    fail_above: tuple[str, ...],
    **options: Any,
) -> None:
    """Compare generated samples with a reference.

    Writes metrics with errors and floors (metrics.json), figures (PDF, PNG), one self-contained page (report.html) and
    a table with the surrogates as columns (table.csv, table.tex).

    REFERENCE and GENERATED are shards, globs or folders; NAME=PATH gives a set of samples a name. The same NAME given
    several times stands for seeds of one surrogate, which are drawn as a band.
    """
    from calogen.analysis import compare as run

    limits = _limits(fail_above)
    _require_report_folder(out)
    named = _named_samples(generated, drop_bad)
    source = _open_split(reference, "test", drop_bad)
    learnt = None if training is None else _open_split(training, "train", drop_bad)
    console = make_console(stderr=True)
    with console.status("comparing") if console.is_terminal else nothing():
        report = run(source, named, training=learnt, **options)
        report.save(out)
    print_report(report)
    click.echo(f"report: {out / 'report.html'}")
    report.check(limits)


def _open_split(path: str, split: str, drop_bad: bool) -> Shards:
    """Shards, or one split of a folder that has it."""
    from .shards import open_shards

    return open_shards(path, split=split if (Path(path) / split).is_dir() else None, drop_bad=drop_bad)


def _named_samples(texts: tuple[str, ...], drop_bad: bool) -> dict[str, list[Shards]]:
    """Generated samples by name; those given the same name on purpose are seeds of one surrogate."""
    from .shards import open_shards

    found: dict[str, list[Shards]] = {}
    unnamed = set()
    for text in texts:
        name, sign, path = text.partition("=") if not Path(text).exists() else ("", "", text)
        path = path if sign or not name else name
        if not sign:
            name = Path(path).name or path
            unnamed.add(name)
        if name in found and name in unnamed:
            raise ConfigError(f"two sets of generated samples are called '{name}'", hint="name them: NAME=PATH")
        found.setdefault(name, []).append(open_shards(path, drop_bad=drop_bad))
    return found


def _limits(texts: tuple[str, ...]) -> dict[str, float]:
    limits = {}
    for text in texts:
        key, sign, value = text.rpartition("=")  # keys may hold '=' themselves
        try:
            limits[key] = float(value)
        except ValueError:
            sign = ""
        if not sign or not key:
            raise ConfigError("--fail-above takes KEY=NUMBER", where="--fail-above", found=text)
    return limits


def _require_report_folder(out: Path) -> None:
    from .hdf5 import require_writable

    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not (out / "metrics.json").exists())):
        raise ConfigError(
            "the output folder holds something else", where=out, hint="choose an empty --out, or an earlier report's"
        )
    require_writable(out)


@cli.command()
@click.argument("path")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def info(path: str, as_json: bool) -> None:
    """Describe shards, a simulation file or a model."""
    from .models import describe_model, is_model
    from .shards import describe

    facts = describe_model(path) if is_model(path) else describe(path)
    if as_json:
        click.echo(json.dumps(facts, indent=2))
        return
    table(path, {key.replace("_", " "): readable(value) for key, value in facts.items() if value not in ([], {}, "")})


@cli.command()
@click.argument("path", type=click.Path(path_type=Path))
def verify(path: Path) -> None:
    """Check every byte of shards.

    PATH is a shard or a folder of shards; the exit code is 2 if anything is wrong.
    """
    from .errors import ShardError
    from .shards import verify as check

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


@cli.group()
def bench() -> None:
    """Measure calogen beside the bare minimum."""


@bench.command("train")
@click.option("--data", "-d", multiple=True, help="Shards (default: the showers calogen comes with, if they are here).")
@click.option("--steps", type=click.IntRange(min=1), default=30, show_default=True, help="Steps timed in each round.")
@click.option("--rounds", type=click.IntRange(min=1), default=5, show_default=True)
@click.option("--batch-size", type=click.IntRange(min=2), default=256, show_default=True)
@click.option("--threads", type=click.IntRange(min=1))
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def bench_train(as_json: bool, **options: Any) -> None:
    """Time training steps against a bare torch loop on the same tensors."""
    from .bench import train_ratio

    facts = train_ratio(**options)
    if as_json:
        click.echo(json.dumps(facts, indent=2))
    else:
        table("training step, calogen against a bare torch loop", facts)


@bench.command("generate")
@click.argument("model", default="calogan-gamma")
@click.option(
    "-n", "samples", type=click.IntRange(min=1), default=500_000, show_default=True, help="Written each time."
)
@click.option("--workers", type=click.IntRange(min=1), help="Processes (default: the cores there are).")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def bench_generate(as_json: bool, **options: Any) -> None:
    """Time a generator: its bare forward pass, in memory, and end to end onto the disk."""
    from .bench import generation_rates

    facts = generation_rates(**options)
    if as_json:
        click.echo(json.dumps(facts, indent=2))
    else:
        table("generation on the CPU", {key: readable(value) for key, value in facts.items()})


@bench.command("analysis")
@click.option("--data", "-d", multiple=True, help="Showers (default: made by the surrogate calogan-gamma).")
@click.option("-n", "samples", type=click.IntRange(min=1000), default=100_000, show_default=True, help="Showers.")
@click.option("--rounds", type=click.IntRange(min=1), default=3, show_default=True)
@click.option("--threads", type=click.IntRange(min=1), default=2, show_default=True, help="Of ours; plain numpy has 1.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def bench_analysis(as_json: bool, **options: Any) -> None:
    """Time observables and histograms against the same, one feature after another in plain numpy."""
    from .bench import analysis_ratio

    facts = analysis_ratio(**options)
    if as_json:
        click.echo(json.dumps(facts, indent=2))
    else:
        table("observables and histograms, calogen against plain numpy", facts)


def main() -> None:
    """Entry point: errors become messages and exit codes."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # names of files may be anything
    try:
        sys.exit(cli(prog_name="calogen", standalone_mode=False))
    except click.exceptions.Abort:
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except CalogenError as error:
        click.echo(f"calogen: {error}", err=True)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        click.echo("calogen: interrupted", err=True)
        sys.exit(130)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(141)
    except OSError as error:  # a name that is too long, a folder that may not be read
        where = f"\n  where    {error.filename}" if error.filename else ""
        click.echo(f"calogen: {error.strerror or error}{where}", err=True)
        sys.exit(StorageError.exit_code)
    except MemoryError as error:
        click.echo(f"calogen: there is not enough memory{f': {error}' if str(error) else ''}", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
