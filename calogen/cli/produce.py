"""`calogen generate` and `calogen simulate`: folders of samples, made or finished."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import ConditionError, ConfigError
from .options import FOLDER, PART, PLACE, STRICT, condition_pairs, opening, pairs, reads_files, tell
from .terminal import echo, gigabytes, sample_progress, signals, table

if TYPE_CHECKING:
    from ..production.parts import Part
    from ..production.plan import Production
    from ..production.requests import Request
    from ..sampling import Surrogate
    from ..shards.reader import Shards

_CHECKED, _OUTPUTS = 480, 8  # pairs looked at, and maps made of each low one
_ENERGIES = "Incident energies: fixed:50GeV, uniform:1:100GeV, log-uniform:1:100GeV or list:1,5,10GeV (in turn)."
_SAME = "The same of any condition (may be repeated): sigma_8=uniform:0.6:1, particle=list:gamma,e+, impact_x=fixed:2."
_CLUSTER = "Make them on a running dask cluster: tcp://host:8786, or the scheduler file (instead of --workers)."
_PARTS = "Make part I of N only, in a folder that all parts share; auto: from torchrun's or Slurm's variables."


def _shared(command: Callable[..., None]) -> Callable[..., None]:
    """Options of all commands that make samples."""
    for option in (
        click.option("--dry-run", is_flag=True, help="Say what would be done; write nothing."),
        click.option("--part", type=PART, metavar="I/N", help=_PARTS),
        click.option("--cluster", type=PLACE, metavar="ADDRESS|FILE", help=_CLUSTER),
        click.option("--workers", type=click.IntRange(min=1), help="Processes (default: all available cores)."),
        click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Random seed."),
        click.option("--condition", "conditions", multiple=True, metavar="NAME=SPEC", help=_SAME),
        click.option("--energy", metavar="SPEC", help=_ENERGIES),
    ):
        command = option(command)
    return command


@click.command()
@click.argument("model", type=PLACE)
@click.option("--out", "-o", required=True, type=FOLDER, help="Folder; empty, absent, or of an unfinished call.")
@click.option("-n", "n", type=int, help="Samples (default: as many as --like or --conditions have).")
@_shared
@click.option(
    "--like",
    type=PLACE,
    metavar="PATH",
    help="Take the conditions of these samples, in order; if -n is more than they are, over again.",
)
@click.option(
    "--conditions", "table", type=PLACE, metavar="FILE", help="CSV or HDF5 with one row per sample, in order."
)
@reads_files
@click.option("--drop-bad", is_flag=True, help="Leave out bad rows of --like instead of refusing the file.")
@click.option("--strict", is_flag=True, help="Refuse --like folders of which parts or samples are missing.")
@click.option(
    "--device",
    type=click.Choice(["auto", "cpu", "cuda"]),
    default="auto",
    show_default=True,
    help="auto takes a GPU where there is one.",
)
@click.option(
    "--format",
    "layout",
    type=click.Choice(["native", "calogan"]),
    default="native",
    show_default=True,
    help="HDF5 as in CaloChallenge (of maps: maps and params), or as in CaloGAN (of its three layers only).",
)
@click.option(
    "--shard-size", type=click.IntRange(min=1), help="Samples per file (default: at most 128 MiB before compression)."
)
@click.option(
    "--mantissa-bits", type=click.IntRange(1, 23), help="Round values to so many bits of mantissa: smaller files."
)
@click.option(
    "--candidates",
    type=click.IntRange(1, 64),
    metavar="K",
    help="Choose each sample among K by the trained critics: K times as slow, closer to the reference.",
)
@click.option(
    "--extrapolate", is_flag=True, help="Allow conditions outside the trained range, which no comparison covers."
)
@click.option(
    "--size", type=click.IntRange(min=1), help="Side of the maps in pixels, of the scale trained on (maps only)."
)
def generate(model: str, out: Path, dry_run: bool, part: Part | None, **options: Any) -> None:
    """Generate samples with a trained surrogate, or finish what an earlier call began.

    MODEL is a run folder (its best checkpoint is used), a checkpoint folder, or a surrogate that comes with calogen:
    calogan-gamma, calogan-gamma-angled, calogan-eplus,
    par04-electron, nbody-64, nbody-256. Each of its conditions must be named; `calogen info MODEL` lists them.
    (nbody-32-to-64 is for `calogen translate`.)
    Sample i depends on the checkpoint, the seed, the conditions and i alone.

    \b
    calogen generate calogan-gamma -n 10000 --energy uniform:1:100GeV --out showers
    calogen generate nbody-64 -n 100 --condition Omega_m=fixed:0.3 --condition sigma_8=uniform:0.6:1 --out maps
    """
    from ..production.run import sensible_workers
    from ..sampling import Options, Surrogate

    workers, cluster = sensible_workers(options["workers"], options["cluster"]), options["cluster"]
    options |= opening(options)
    device: Any = "cpu" if cluster and options["device"] == "auto" else options["device"]  # its workers may have no GPU
    surrogate = Surrogate.load(model, device)
    if options["size"]:
        surrogate = surrogate.resized(options["size"])
    if options["candidates"]:
        surrogate = surrogate.selecting(options["candidates"])
    request = _request(surrogate, options)
    how = {name: options[name] for name in Options.__annotations__ if name in options} | {"part": part}
    production = surrogate.plan(out, request, **how)
    size = f"about {gigabytes(production.bytes)} ({gigabytes(production.raw_bytes)} before compression)"
    facts = {"conditions": json.dumps(request.describe())}
    if surrogate.candidates > 1:
        facts["time"] = f"more than {surrogate.candidates} times that of one candidate for each sample"
    if surrogate.module.passes > 1:
        facts["speed"] = f"slow: each sample takes {surrogate.module.passes} steps, one after another"
    _make("generate", production, out, dry_run, workers, cluster, size, facts)
    if not dry_run:
        _tell_clipped(out, surrogate)


def _tell_clipped(out: Path, surrogate: Surrogate) -> None:
    """Say what share of the values are the largest that the surrogate can make, if any."""
    from ..shards.manifest import read_manifest

    manifest = read_manifest(out)
    counted = [record for record in manifest.records if record.clipped is not None] if manifest else []
    clipped = sum(record.clipped or 0 for record in counted)
    if clipped:
        share = clipped / (sum(record.samples for record in counted) * surrogate.family.voxels)
        words = f"{share:.2g} of the values ({clipped}) are {surrogate.ceiling:.4g}, the most that the surrogate makes"
        echo(f"note: {words}", err=True)


def _make(
    verb: str,
    production: Production,
    out: Path,
    dry_run: bool,
    workers: int,
    cluster: str | None,
    size: str,
    more: dict[str, Any],
) -> None:
    """Make the samples and say so, or that everything was there; or only say what would be made."""
    from ..production.plan import free_bytes, shard_times
    from ..production.run import produce

    part, total = production.part, production.total
    if dry_run:
        which = {"part": f"{part.index} of {part.count}"} if part.count > 1 else {}
        facts = {"samples": production.samples, **which, "files": production.files, "size": size}
        table(f"would {verb}", {**facts, "free": gigabytes(free_bytes(out)), **more, "folder": out})
        return
    before = shard_times(out)
    with signals() as should_stop, sample_progress(f"{verb.removesuffix('e')}ing") as progress:
        produce(production, out, workers=workers, cluster=cluster, progress=progress, should_stop=should_stop)
    what = f"part {part} of {total}" if part.count > 1 else f"{total}"
    if shard_times(out) == before:
        echo(f"nothing left to make, {what} samples are there: {out}")
    else:
        echo(f"{verb}d {what} samples: {out}")


def _request(surrogate: Surrogate, options: dict[str, Any]) -> Request:
    """The conditions that the options ask for."""
    from ..production.requests import Request
    from ..shards.sources import open_shards, require_asked

    n, names, family = options["n"], surrogate.conditions, surrogate.family
    specs = condition_pairs(options["conditions"], options["energy"])
    given = [name for name, value in (("like", options["like"]), ("conditions", options["table"])) if value]
    if (specs and given) or len(given) > 1:
        raise ConfigError(
            "conditions come from one place",
            expected="--energy/--condition, or --like, or --conditions",
            found=", ".join([f"--{name}" for name in given] + [f"--condition {name}" for name in specs]),
        )
    if options["table"]:
        return Request.from_file(options["table"], family, names, n)
    if options["like"]:
        how = {name: options[name] for name in ("family", "reading", "drop_bad", "strict")}
        shards = open_shards(options["like"], labels=family.labelled, **how)
        require_asked([shards], options["reading"])
        for note in shards.notes:
            tell(note)
        return Request.like(shards, names, n, family=family)
    if n is None:
        raise ConfigError("say how many samples to make", where="-n", hint="or --like PATH, --conditions FILE")
    request = Request.of(family, specs, n)
    for name in names:
        if name not in request.names:
            condition = family.condition(name)
            example = f"--condition {name}=fixed:{condition.labels[0] if condition.labels else 'V'}"
            example = "--energy uniform:1:100GeV" if condition.role == "energy" else example
            hint = f"{example}, --like PATH or --conditions FILE"
            raise ConditionError(f"the condition '{name}' is missing", hint=hint)
    return request


@click.command()
@click.argument("model", type=PLACE)
@click.option("--data", required=True, type=PLACE, metavar="PATH", help="Maps of low resolution, or pairs of maps.")
@click.option("--out", "-o", type=FOLDER, help="Folder; empty, absent, or of an unfinished call. Not with --check.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Random seed.")
@click.option("--check", is_flag=True, help="Translate some pairs, print how well, and write nothing.")
@click.option("--workers", type=click.IntRange(min=1), help="Processes (default: all available cores).")
@click.option("--part", type=PART, metavar="I/N", help=_PARTS)
@click.option("--shard-size", type=click.IntRange(min=1), help="Maps per file (default: at most 128 MiB of maps).")
@click.option("--extrapolate", is_flag=True, help="Allow conditions outside the trained range.")
@click.option("--dry-run", is_flag=True, help="Say what would be done; write nothing.")
@reads_files
@STRICT
def translate(model: str, data: str, out: Path | None, check: bool, dry_run: bool, **options: Any) -> None:
    """Make maps of high resolution from maps of low resolution.

    MODEL is 'nbody-32-to-64', which comes with calogen, or a run that learned from pairs (network 'super-resolution'):
    a run folder or a checkpoint folder. Map i depends on the checkpoint, the seed, the low map i and i alone; maps may
    have any size, but must have the pixels and the depth of those that it was trained on.

    
    calogen translate nbody-32-to-64 --data low --out high
    calogen simulate nbody --pairs -n 4800 --out pairs
    calogen train configs/super-resolution.toml --data pairs --out run
    calogen translate run --data pairs --check
    """
    from ..production.run import sensible_workers
    from ..sampling import Surrogate
    from ..shards.sources import open_shards, require_asked

    writing = {"--out": out, "--dry-run": dry_run, "--part": options["part"], "--shard-size": options["shard_size"]}
    if check and (named := [name for name, value in writing.items() if value]):
        hint = f"leave out --check, or {', '.join(named)}"
        raise ConfigError("with --check nothing is written", where="calogen translate", hint=hint)
    how = opening(options)
    surrogate = Surrogate.load(model)
    shards = open_shards(data, strict=options.pop("strict"), **how)
    require_asked([shards], how["reading"])
    for note in shards.notes:
        tell(note)
    wanted, given = surrogate.family.low, shards.family.low if shards.family.low_pixels else shards.family
    for what, mine, theirs in (("deep", wanted.depth, given.depth), ("wide", wanted.box_size, given.box_size)):
        if mine and not theirs:
            tell(f"the maps do not say how {what} they are; they are taken for such as the surrogate was trained on")
    if check:
        _print_fidelity(surrogate, shards, options["seed"], options["extrapolate"])
        return
    if out is None:
        raise ConfigError("say where to write the maps", where="calogen translate", expected="--out, or --check")
    workers = sensible_workers(options.pop("workers"), None)
    plan = surrogate.plan_translation(out, shards, **options)
    size = f"at most {gigabytes(plan.raw_bytes)}, before compression"
    _make("translate", plan, out, dry_run, workers, None, size, {"of": data})


def _print_fidelity(surrogate: Surrogate, shards: Shards, seed: int, extrapolate: bool) -> None:
    """How maps made of the low maps of pairs compare with the high ones."""
    from ..analysis.metrics.resolution import fidelity

    if not shards.family.low_pixels:
        what = "the data hold no maps of high resolution to compare with"
        raise ConfigError(what, where="--check", found=shards.family.summary, hint="give pairs of maps")
    some = shards.thinned(_CHECKED).read(0, _CHECKED)
    outputs = [surrogate.translate(some, seed + i, extrapolate=extrapolate) for i in range(_OUTPUTS)]
    found = fidelity(some, outputs)
    echo(f"{len(some)} pairs; k in h/Mpc; low: interpolated; r: correlation of modes with those of the true map")
    echo("      k   P / P true   low: P / P true   r   r of the mean of 8   low: r")
    for k, one, low, r, mean, other in zip(*found, strict=True):
        echo(f"  {k:5.2f}   {one:10.3f}   {low:15.3f}   {r:.3f}   {mean:16.3f}   {other:.3f}")


class _Simulate(click.Command):
    """Its help, asked for after the name of an engine, is about that engine."""

    def parse_args(self, context: click.Context, args: list[str]) -> list[str]:
        """Note which engine help is wanted of."""
        named = [word for word in args if word in _ENGINES]
        if named and {"-h", "--help"} & set(args):
            context.meta[_ENGINE] = named[0]
        return super().parse_args(context, args)

    def format_help(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        """Usage, then what the engine does and its own options, then those of all engines."""
        name = context.meta.get(_ENGINE)
        if name is None:
            super().format_help(context, formatter)
            return
        from ..simulators import engine_class

        described = engine_class(name).described()
        formatter.write_usage(f"{context.command_path} {name}", "[OPTIONS]")
        for paragraph in described.about:
            formatter.write_paragraph()
            with formatter.indentation():
                formatter.write_text(paragraph)
        with formatter.section(f"Options of {name}, each as --set OPTION=VALUE"):
            formatter.write_dl([(f"{key}={usual}", meaning) for key, usual, meaning in described.options])
        self.format_options(context, formatter)


_ENGINES = ("geant4", "nbody", "toy")
_ENGINE = "calogen.engine"  # the engine that help is asked for


@click.command(cls=_Simulate)
@click.argument("engine", metavar="ENGINE", type=click.Choice(_ENGINES))
@click.option(
    "--out", "-o", type=FOLDER, help="Folder; empty, absent, or of an unfinished call. Required but for --check."
)
@click.option("-n", "samples", type=click.IntRange(min=1), help="Samples. Required but for --check.")
@click.option("--particle", help="gamma, e- or e+, or several: gamma,e+ (geant4).")
@_shared
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="OPTION=VALUE",
    help="Any other option of the engine (may be repeated): steps=40.",
)
@click.option(
    "--pairs",
    is_flag=True,
    help="Beside each map that of a run with half the resolution and the same phases (nbody; a quarter: instead, "
    "--set pairs=4).",
)
@click.option("--shard-size", type=click.IntRange(min=1), help="Samples per file (default: some minutes of work).")
@click.option("--check", is_flag=True, help="Simulate a little, print it beside what is known, and write nothing.")
def simulate(engine: str, out: Path | None, samples: int | None, dry_run: bool, **options: Any) -> None:
    """Make reference samples, or finish what an earlier call began.

    ENGINE, with what it can be --set to and its conditions; what is not named keeps its default (`calogen simulate
    ENGINE --help` says more):

    \b
    geant4   real showers; pip install "calogen[geant4]"
             options     geometry=calogan|2|3|FILE.toml, signal=all|active, physics=option1|standard, cut=0.7 [mm]
             conditions  incident_energy, impact_x, impact_y [mm], theta, phi [deg]
    nbody    density maps, 3 * slabs of each box; pip install "calogen[nbody]"
             options     pixels=64, box=64 [Mpc/h], slabs=8, steps=20, pairs=1 (2: as --pairs; 4: a quarter)
             conditions  Omega_m, sigma_8
    toy      showers or maps with known moments, for tests and teaching
             options     family=NAME|FILE.toml, and of maps field=lognormal|gaussian, amplitude=0.8
             conditions  those of the family

    \b
    calogen simulate geant4 --particle gamma -n 1000 --energy uniform:1:100GeV --out showers
    calogen simulate nbody -n 2400 --condition Omega_m=fixed:0.3 --set slabs=4 --out boxes
    """
    from .. import simulators
    from ..production.ledger import check_folder
    from ..production.plan import free_bytes
    from ..production.run import sensible_workers

    particle = [f"particle={options['particle']}"] if options["particle"] is not None else []
    half = ["pairs=2"] if options["pairs"] else []
    settings = pairs([*options["settings"], *particle, *half], "--set")
    conditions = condition_pairs(options["conditions"], options["energy"])
    if not options["check"] and (out is None or samples is None):
        raise ConfigError("say how many samples to make, and where", where="calogen simulate", expected="-n and --out")
    taken = sorted({"seed", "samples", "conditions", "name", "model", "detector"} & settings.keys())
    if taken:
        raise ConfigError(f"'{taken[0]}' is not set with --set", where="--set", hint="see calogen simulate --help")
    samples = samples or 1
    source = simulators.build(engine, samples=samples, seed=options["seed"], conditions=conditions, **settings)
    if options["check"]:
        echo(source.check())
        return
    plan = simulators.plan(source, samples, shard_size=options["shard_size"], part=options["part"])
    folder, cluster = out or Path(), options["cluster"]
    workers = sensible_workers(options["workers"], cluster)
    check_folder(plan, folder)
    free = free_bytes(folder)
    if not dry_run and plan.bytes <= free < plan.raw_bytes:
        few = f"{gigabytes(free)} free for at most {gigabytes(plan.raw_bytes)}"
        echo(f"note: {few}, before compression: the disk may become full", err=True)
    size = f"at most {gigabytes(plan.raw_bytes)}, before compression"
    _make("simulate", plan, folder, dry_run, workers, cluster, size, {} if cluster else {"workers": workers})
