"""What the command line shows: tables, live progress, and the questions that signals become."""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from ..errors import plain

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

    from ..analysis.report import Report

_WORDS = (
    "generated",
    "metric",
    "unit",
    "network",
    "objective",
    "checkpoint",
    "trained on",
    "",
)  # titles of columns with words
_SENTENCES = {"symmetries", "warning", "stopped", "note"}  # of a training log, shown whole
_SOON = 0.01  # seconds after which an exception that was lost is raised again
PLAIN_SECONDS = 10.0
"""Seconds between lines of progress where there is no terminal."""


def make_console(*, stderr: bool = False) -> Console:
    """Where tables and live lines go."""
    from rich.console import Console

    console = Console(stderr=stderr, soft_wrap=True, highlight=False)
    if not console.is_terminal:
        console.width = 200  # a file or a pipe has no width to keep to
    return console


@contextmanager
def signals() -> Iterator[Callable[[], int]]:
    """Turn SIGINT and SIGTERM into a question; a second one ends the process at once."""
    received: list[int] = []

    def note(number: int, _frame: object) -> None:
        received.append(number)
        signal.signal(number, signal.SIG_DFL)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: received[0] if received else 0
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Stopped(KeyboardInterrupt):
    """A signal ends the work at once; what is being written stays as it was.

    Args:
        number: The signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


@contextmanager
def stoppable() -> Iterator[None]:
    """Turn SIGTERM into an exception, as SIGINT is one: for work that does not ask whether it should stop."""
    wanted = signal.SIGTERM

    def stop(number: int, _frame: object) -> None:
        raise Stopped(wanted if number == signal.SIGALRM else number)

    def once_more(lost: sys.UnraisableHookArgs) -> None:
        # Where a signal finds Python in a weak reference's callback or a finalizer, its exception goes no further.
        nonlocal wanted
        if isinstance(lost.exc_value, KeyboardInterrupt):
            wanted = signal.Signals(getattr(lost.exc_value, "number", signal.SIGINT))
            signal.setitimer(signal.ITIMER_REAL, _SOON)
        else:
            hook(lost)

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGALRM)}
    hook, sys.unraisablehook = sys.unraisablehook, once_more
    try:
        yield
    finally:
        sys.unraisablehook = hook
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in before.items():
            signal.signal(number, handler)


def echo(what: object, *, err: bool = False) -> None:
    """Print a line; names and texts from files in it are shown as text, whatever is in them."""
    click.echo(plain(str(what)), err=err)


def table(title: str, facts: dict[str, Any]) -> None:
    """Print facts, one a line."""
    from rich.table import Table
    from rich.text import Text

    # As Text: names may hold square brackets, which would be taken for styles.
    table = Table(title=Text(plain(title)), title_justify="left", show_header=False, box=None, padding=(0, 2, 0, 0))
    for key, value in facts.items():
        text = ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
        table.add_row(Text(plain(key), style="dim"), Text(plain(text)))
    make_console().print(table)


def columns(title: str, records: list[dict[str, Any]]) -> None:
    """Print records, one a line, their keys as columns."""
    from rich.table import Table
    from rich.text import Text

    names = list(dict.fromkeys(key for record in records for key in record))
    table = Table(title=title, title_justify="left", box=None, padding=(0, 2, 0, 0))
    for name in names:
        table.add_column(Text(plain(name.replace("_", " "))), justify="right")
    for record in records:
        table.add_row(*(Text("" if record.get(name) is None else plain(_short(record[name]))) for name in names))
    make_console().print(table)


def readable(value: Any) -> Any:
    """JSON-able values as people read them."""
    if isinstance(value, dict):
        known = {key: entry for key, entry in value.items() if entry is not None}
        return "\n".join(f"{k}: {_inline(v) if isinstance(v, dict) else readable(v)}" for k, v in known.items())
    if isinstance(value, float):
        return _short(value)
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return readable(_merged(value))
    if isinstance(value, list) and len(value) > 12:
        return f"{', '.join(map(str, value[:12]))}, ... ({len(value)} in all)"
    return value


def _merged(entries: list[dict[str, Any]]) -> dict[str, Any]:
    """Several records as one: each key with its value, or with all the values it takes."""
    merged = {}
    for key in dict.fromkeys(key for entry in entries for key in entry):
        values: list[Any] = []
        for found in (entry[key] for entry in entries if key in entry):
            values += [value for value in (found if isinstance(found, list) else [found]) if value not in values]
        merged[key] = (
            values[0] if len(values) == 1 else f"{', '.join(map(str, values[:6]))}{', ...' * (len(values) > 6)}"
        )
    return merged


def _inline(entry: dict[str, Any]) -> str:
    known = {key: value for key, value in entry.items() if value not in ("", None)}
    return ", ".join(f"{k} {_inline(v) if isinstance(v, dict) else _short(v)}" for k, v in known.items())


def _short(value: Any) -> str:
    text = f"{value:.5g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 100 else text[:97] + "..."


def gigabytes(number: int) -> str:
    """Bytes for people."""
    return f"{number / 1e9:.3f} GB" if number < 1e10 else f"{number / 1e9:,.1f} GB"


@contextmanager
def _live_line(verb: str, *, passing: bool = False) -> Iterator[Progress | None]:
    """A line that is drawn anew as work goes on, with one task; None where there is no terminal.

    Args:
        verb: What is done, at first.
        passing: Whether it goes when the work is done.
    """
    console = make_console(stderr=True)
    if not console.is_terminal:
        yield None
        return
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (
        SpinnerColumn(finished_text=" "),
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        TextColumn("{task.fields[counted]}"),
        TimeElapsedColumn(),
        TextColumn("{task.fields[facts]}"),
    )
    with Progress(*columns, console=console, transient=passing) as bar:
        bar.add_task(verb, total=None, counted="", facts="")
        yield bar


def _show(bar: Progress, what: str, done: int, of: int, facts: str = "") -> None:
    """Draw the line anew: what is done, how far it is."""
    counted = f"{done:,} of {of:,}" if of else ""
    task = bar.tasks[0]
    if task.description != plain(what) or (task.total or 0) != of:  # a bar of its own: the one before may be full
        task.total, task.completed, task.finished_time = of or None, done, None
    bar.update(task.id, description=plain(what), completed=done, counted=counted, facts=facts)


class _PlainLines:
    """Lines for log files: what is going on, whenever nothing has been said for some seconds."""

    def __init__(self, verb: str) -> None:
        self.verb, self.said = verb, verb
        self.begun = self.last = time.monotonic()
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._wait, daemon=True)

    def __enter__(self) -> _PlainLines:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        self.thread.join()

    def now(self, what: str) -> None:
        """What is going on; printed when its time has come."""
        self.said = what

    def line(self, text: str) -> None:
        """Print a line at once."""
        self.last = time.monotonic()
        echo(text, err=True)

    def _wait(self) -> None:
        while not self.ended.wait(max(0.01, self.last + PLAIN_SECONDS - time.monotonic())):
            if time.monotonic() >= self.last + PLAIN_SECONDS:
                self.line(f"{self.said}  {time.monotonic() - self.begun:.0f} s")


def _so_far(what: str, done: int, of: int) -> str:
    return f"{what}: {done:,} of {of:,}" if of else what


@contextmanager
def stage_progress(verb: str) -> Iterator[Callable[[str, int, int], None]]:
    """What work is doing and how far it is: a live line on a terminal, a plain line now and then elsewhere."""
    with _live_line(verb, passing=True) as bar:
        if bar is not None:
            yield lambda what, done, of: _show(bar, f"{verb}: {what}", done, of)
            return
        with _PlainLines(verb) as lines:
            yield lambda what, done, of: lines.now(_so_far(f"{verb}: {what}", done, of))


@contextmanager
def training_progress(written: Callable[[object], str]) -> Iterator[Callable[[dict[str, Any]], None]]:
    """A live line on a terminal, plain lines elsewhere; ``written`` is how notes and warnings are shown."""
    with _live_line("opening the data") as bar:
        if bar is None:
            with _PlainLines("opening the data") as lines:
                yield lambda record: _plain_record(lines, record, written)
            return
        from rich.text import Text

        shown: dict[str, str] = {}

        def note(record: dict[str, Any]) -> None:
            if "stage" in record:
                _show(bar, *(record[key] for key in ("stage", "done", "of")))
                return
            for word in _SENTENCES & record.keys():
                bar.console.print(Text(f"{word}: ", "yellow"), Text(plain(written(record[word]))), sep="")
            shown.update(_facts(record))
            facts = "  ".join(f"[dim]{key}[/] {value}" for key, value in shown.items())
            _show(bar, "training", record["step"], record.get("steps") or int(bar.tasks[0].total or 0), facts)

        yield note


def _plain_record(lines: _PlainLines, record: dict[str, Any], written: Callable[[object], str]) -> None:
    if "stage" in record:
        lines.now(_so_far(record["stage"], record["done"], record["of"]))
        return
    for word in _SENTENCES & record.keys():
        lines.line(f"{word}: {written(record[word])}")
    facts = "  ".join(f"{key} {value}" for key, value in _facts(record).items())
    if "seconds" in record:
        lines.line(f"step {record['step']}  {record['seconds']:.0f} s  {facts}")
    if "steps" in record:
        lines.now(_so_far("training", record["step"], record["steps"]))


def _facts(record: dict[str, Any]) -> dict[str, str]:
    names = {
        "steps_per_second": ("steps/s", ".2f"),
        "wasserstein": ("W", ".3f"),
        "validation_auc": ("critics", ".3f"),
        "score": ("score", ".4f"),
    }
    return {label: format(record[key], form) for key, (label, form) in names.items() if key in record}


@contextmanager
def sample_progress(verb: str) -> Iterator[Callable[[int, int], None]]:
    """A live line on a terminal, plain lines elsewhere: samples done, rate and time left."""
    with _live_line(verb) as bar:
        if bar is not None:

            def note(done: int, total: int) -> None:
                left = bar.tasks[0].time_remaining
                facts = [_per_second(speed)] if (speed := bar.tasks[0].speed) else []
                _show(bar, verb, done, total, "  ".join([*facts, *([f"{left / 60:.1f} min left"] if left else [])]))

            yield note
            return
        with _PlainLines(verb) as lines:
            yield _plain_progress(verb, lines)


def _plain_progress(verb: str, lines: _PlainLines) -> Callable[[int, int], None]:
    """Samples done, rate and time left, for log files."""
    last, made = time.monotonic(), 0

    def note(done: int, total: int) -> None:
        nonlocal last, made
        now = time.monotonic()
        if now - last < 1 or done <= made:
            return
        # Of the last seconds: what an earlier run made and this one only checks must not count as speed for long.
        rate = (done - made) / (now - last)
        last, made = now, done
        left = f"{(total - done) / rate / 60:.1f} min left"
        lines.now(f"{verb}: {done} of {total}, {_per_second(rate)}, {left}")

    return note


def _per_second(rate: float) -> str:
    return f"{rate:,.0f}/s" if rate >= 10 else f"{rate:.1f}/s"


def print_report(report: Report) -> None:
    """Three small tables: overall numbers, mean and spread of the main observables in bins, and costs."""
    from ..analysis.numbers import percent
    from ..analysis.page.tables import SUMMARY_HEADER, absent, cost_table, summary

    console, first = make_console(), 0 if len(report.metrics) > 1 else 1  # the name of a single surrogate is left out
    rows, binned = [], dict[tuple[str, str], dict[str, str]]()
    for row in summary(report):
        key = row.key
        if key.observable and key.selection.name:
            label = row.generated, f"{key.observable}: {key.quantity.name}"
            binned.setdefault(label, {})[key.selection.name] = percent(row.metric.value, row.metric.error)
        elif not absent([(key, row.metric)]):
            rows.append(row.cells[first:])
    _print_rows(console, SUMMARY_HEADER[first:], rows)
    if report.maps and (quarters := report.maps["reference"].yardstick.quarters):
        console.print(plain("; ".join(f"[{quarter.name}] {quarter.title}" for quarter in quarters)), markup=False)
    bins = list(dict.fromkeys(where for cells in binned.values() for where in cells))
    moments = [[*label, *(cells.get(where, "") for where in bins)][first:] for label, cells in binned.items()]
    _print_rows(console, ["generated", "", *bins][first:], moments, "generated / reference - 1")
    _print_rows(console, *cost_table(report), "cost, on the machines that did it")
    for note in report.notes:
        console.print(f"note: {plain(note)}", markup=False)


def _print_rows(console: Console, header: Sequence[str], rows: Sequence[Sequence[str]], title: str = "") -> None:
    from rich.table import Table
    from rich.text import Text

    if not rows:
        return
    table = Table(box=None, padding=(0, 2, 0, 0), title=title or None, title_justify="left")
    for name in header:
        table.add_column(Text(plain(name)), justify="left" if name in _WORDS else "right", no_wrap=True)
    for row in rows:
        table.add_row(*(Text(plain(cell)) for cell in row))  # as Text: keys hold square brackets
    if title:
        console.print()
    console.print(table)
