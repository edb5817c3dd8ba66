"""`calogen bench`."""

from __future__ import annotations

from typing import Any

import click

from .options import PLACE, Commands, show


@click.group(cls=Commands)
def bench() -> None:
    """Measure calogen beside the bare minimum."""


@bench.command("train")
@click.option(
    "--data",
    "-d",
    type=PLACE,
    multiple=True,
    help="Shards (default: the showers calogen comes with, if they are here).",
)
@click.option("--steps", type=click.IntRange(min=1), default=30, show_default=True, help="Steps timed in each round.")
@click.option("--rounds", type=click.IntRange(min=1), default=5, show_default=True)
@click.option("--batch-size", type=click.IntRange(min=2), default=256, show_default=True)
@click.option("--threads", type=click.IntRange(min=1), help="Of both (default: the cores there are).")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def bench_train(as_json: bool, **options: Any) -> None:
    """Time training steps against a bare torch loop on the same tensors."""
    from ..bench import train_ratio

    facts = train_ratio(**options)
    show("training step, calogen against a bare torch loop", facts, as_json=as_json)


@bench.command("generate")
@click.argument("model", type=PLACE, default="calogan-gamma")
@click.option(
    "-n", "samples", type=click.IntRange(min=1), help="Written each time (default: what takes one core some seconds)."
)
@click.option("--workers", type=click.IntRange(min=1), help="Processes (default: the cores there are).")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def bench_generate(as_json: bool, **options: Any) -> None:
    """Time a generator: its bare forward pass, in memory, and end to end onto the disk."""
    from ..bench import generation_rates

    facts = generation_rates(**options)
    show("generation on the CPU", facts, as_json=as_json)


@bench.command("analysis")
@click.option("--data", "-d", type=PLACE, multiple=True, help="Showers (default: made by the surrogate calogan-gamma).")
@click.option("-n", "samples", type=click.IntRange(min=1000), default=100_000, show_default=True, help="Showers.")
@click.option("--rounds", type=click.IntRange(min=1), default=3, show_default=True)
@click.option("--threads", type=click.IntRange(min=1), default=2, show_default=True, help="Of ours; plain numpy has 1.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def bench_analysis(as_json: bool, **options: Any) -> None:
    """Time observables and histograms against the same, one feature after another in plain numpy."""
    from ..bench import analysis_ratio

    facts = analysis_ratio(**options)
    show("observables and histograms, calogen against plain numpy", facts, as_json=as_json)
