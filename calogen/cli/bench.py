"""`calogen bench`."""

from __future__ import annotations

from typing import Any

import click

from .options import JSON, PLACE, Commands, show

_AT_LEAST_ONE = click.IntRange(min=1)


@click.group(cls=Commands)
def bench() -> None:
    """Measure calogen beside the bare minimum."""


@bench.command("train")
@click.option("--data", "-d", type=PLACE, multiple=True, help="Shards (default: the showers that come with calogen).")
@click.option("--steps", type=_AT_LEAST_ONE, default=30, show_default=True, help="Steps timed in each round.")
@click.option("--rounds", type=_AT_LEAST_ONE, default=5, show_default=True)
@click.option("--batch-size", type=click.IntRange(min=2), default=256, show_default=True)
@click.option("--threads", type=_AT_LEAST_ONE, help="CPU threads of both (default: all available cores).")
@JSON
def bench_train(as_json: bool, **options: Any) -> None:
    """Time training steps against a bare torch loop on the same tensors."""
    from ..bench import train_ratio

    show("training step, calogen against a bare torch loop", train_ratio(**options), as_json=as_json)


@bench.command("generate")
@click.argument("model", type=PLACE, default="calogan-gamma")
@click.option(
    "-n", "samples", type=_AT_LEAST_ONE, help="Samples in each round (default: some seconds' work of a core)."
)
@click.option("--workers", type=_AT_LEAST_ONE, help="Processes (default: all available cores).")
@JSON
def bench_generate(as_json: bool, **options: Any) -> None:
    """Time a generator: its bare forward pass, in memory, and end to end onto the disk."""
    from ..bench import generation_rates

    show("generation on the CPU", generation_rates(**options), as_json=as_json)


@bench.command("analysis")
@click.option("--data", "-d", type=PLACE, multiple=True, help="Showers (default: made by the surrogate calogan-gamma).")
@click.option("-n", "samples", type=click.IntRange(min=1000), default=100_000, show_default=True, help="Showers.")
@click.option("--rounds", type=_AT_LEAST_ONE, default=3, show_default=True)
@click.option("--threads", type=_AT_LEAST_ONE, default=2, show_default=True, help="Of calogen; plain numpy has 1.")
@click.option("--workers", type=_AT_LEAST_ONE, help="Time the pass over files, too, with 1 and so many processes.")
@JSON
def bench_analysis(as_json: bool, **options: Any) -> None:
    """Time observables and histograms against the same, one feature after another in plain numpy."""
    from ..bench import analysis_ratio

    show("observables and histograms, calogen against plain numpy", analysis_ratio(**options), as_json=as_json)
