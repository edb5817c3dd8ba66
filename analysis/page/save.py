"""Saving a report: tables, figures and one page to open in a browser."""

from __future__ import annotations

import json
import shutil
from contextlib import suppress
from pathlib import Path

from calogen.errors import StorageError
from calogen.storage import remedy, sync_folder, tidied, write_atomic

from ..figures.draw import draw
from ..figures.panels import encode
from ..report import Report
from .html import render
from .tables import SideBySide

STAGE = ".part"
"""The folder in a report's where the next one is written."""
FILES = ("table.csv", "table.tex", "figures", "metrics.json", "report.html")
"""What a report is made of."""


def save(report: Report, out: str | Path) -> Path:
    """Write ``metrics.json``, ``report.html``, ``table.csv``, ``table.tex`` and ``figures/*.pdf`` and ``*.png``.

    All of them are written beside their places first, and take them together: until then an earlier report stays whole.

    Args:
        report: What a comparison found.
        out: The folder, made if absent; files of an earlier report are replaced.

    Returns:
        The path of ``report.html``.

    Raises:
        StorageError: If the file system refuses.
    """
    out = Path(out)
    stage = out / STAGE
    with tidied(out):
        try:
            shutil.rmtree(stage, ignore_errors=True)  # of a writer that was killed
            text = json.dumps(report.to_json(), indent=1, allow_nan=False, default=str)
            write_atomic(stage / "metrics.json", text.encode())
            table = SideBySide.of(report)
            write_atomic(stage / "table.csv", table.to_csv().encode())
            write_atomic(stage / "table.tex", table.to_latex().encode())
            figures = []
            for figure in draw(report):
                png = encode(figure, "png")
                write_atomic(stage / "figures" / f"{figure.name}.pdf", encode(figure, "pdf"))
                write_atomic(stage / "figures" / f"{figure.name}.png", png)
                figures.append((figure.name, figure.title, figure.caption, png))
            write_atomic(stage / "report.html", render(report, figures).encode())
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
