"""Saving a report: tables, figures and one page to open in a browser."""

from __future__ import annotations

import json
from pathlib import Path

from calogen.storage import write_atomic

from ..figures.draw import draw
from ..figures.panels import encode
from ..report import Report
from .html import render
from .tables import SideBySide


def save(report: Report, out: str | Path) -> Path:
    """Write ``metrics.json``, ``report.html``, ``table.csv``, ``table.tex`` and ``figures/*.pdf`` and ``*.png``.

    Args:
        report: What a comparison found.
        out: The folder, made if absent; files of an earlier report are replaced.

    Returns:
        The path of ``report.html``.

    Raises:
        StorageError: If the file system refuses.
    """
    out = Path(out)
    text = json.dumps(report.to_json(), indent=1, allow_nan=False, default=str)
    write_atomic(out / "metrics.json", text.encode())
    table = SideBySide.of(report)
    write_atomic(out / "table.csv", table.to_csv().encode())
    write_atomic(out / "table.tex", table.to_latex().encode())
    figures = []
    for figure in draw(report):
        png = encode(figure, "png")
        write_atomic(out / "figures" / f"{figure.name}.pdf", encode(figure, "pdf"))
        write_atomic(out / "figures" / f"{figure.name}.png", png)
        figures.append((figure.name, figure.title, figure.caption, png))
    page = out / "report.html"
    write_atomic(page, render(report, figures).encode())
    return page
