"""Saving a report: tables, figures and one page to open in a browser."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from calogen.errors import StorageError
from calogen.storage import remedy, sync_folder, tidied, write_atomic

from ..figures.draw import draw, draw_one
from ..figures.panels import draw_into, encode
from ..report import Report
from .html import render
from .tables import SideBySide

STAGE = ".part"
"""The folder in a report's where the next one is written."""
FILES = ("table.csv", "table.tex", "figures", "metrics.json", "report.html")
"""What a report is made of."""


def draw_figure(report: Report, name: str, path: Path) -> Path:
    """Draw one figure into a file, as :meth:`Report.figure` says."""
    return draw_into(path, draw_one(report, name))


def save(report: Report, out: str | Path, *, table: Sequence[str] = (), figures: Sequence[str] = ()) -> Path:
    """Write ``metrics.json``, ``report.html``, ``table.csv``, ``table.tex`` and ``figures/*.pdf`` and ``*.png``.

    All of them are written beside their places first, and take them together: until then an earlier report stays whole.

    Args:
        report: What a comparison found.
        out: The folder, made if absent; files of an earlier report are replaced.
        table: Rows of ``table.csv`` and ``table.tex``, in order: observables, whose Wasserstein distance is meant, or
            keys of metrics. None: the headline metrics, the worst observables, costs.
        figures: What to draw: observables, or figures by name. None: all figures.

    Returns:
        The path of ``report.html``.

    Raises:
        ConfigError: If there is no such observable, metric or figure; nothing is written then.
        StorageError: If the file system refuses.
    """
    out = Path(out)
    side_by_side = SideBySide.of(report, table)
    drawings = [draw_one(report, name) for name in figures] if figures else draw(report)
    stage = out / STAGE
    with tidied(out):
        try:
            shutil.rmtree(stage, ignore_errors=True)  # of a writer that was killed
            text = json.dumps(report.to_json(), indent=1, allow_nan=False, default=str)
            write_atomic(stage / "metrics.json", text.encode())
            write_atomic(stage / "table.csv", side_by_side.to_csv().encode())
            write_atomic(stage / "table.tex", side_by_side.to_latex().encode())
            pictures = []
            for figure in drawings:
                png = encode(figure, "png")
                write_atomic(stage / "figures" / f"{figure.name}.pdf", encode(figure, "pdf"))
                write_atomic(stage / "figures" / f"{figure.name}.png", png)
                pictures.append((figure.name, figure.title, figure.caption, png))
            write_atomic(stage / "report.html", render(report, pictures).encode())
            try:
                _swap(stage, out)
            except KeyboardInterrupt:  # half of a report would be worse than a moment's delay
                _swap(stage, out)
                raise
        finally:
            shutil.rmtree(stage, ignore_errors=True)
    return out / "report.html"


def _swap(stage: Path, out: Path) -> None:
    """Put what is staged into its places; called again after an interrupt, it does the rest.

    The page goes first and comes last: it never stands beside tables or figures of another report.
    """
    try:
        if (stage / FILES[0]).exists():  # nothing new has its place yet
            for name in reversed(FILES):
                with suppress(FileNotFoundError):
                    (out / name).replace(stage / f"old-{name}")
        for name in FILES:
            if (stage / name).exists():
                (stage / name).replace(out / name)
        sync_folder(out)
    except OSError as error:
        what = f"the report cannot be put into its place: {error.strerror}"
        raise StorageError(what, where=out, hint=remedy(error)) from None
