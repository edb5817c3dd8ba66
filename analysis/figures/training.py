"""Draws how surrogates were trained: validation by validation, with the checkpoint that was chosen."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..origins import History, chosen_checkpoint
from ..report import Report
from . import values as views
from .panels import REFERENCE_COLOUR, Drawing, look_of

_GAPS = ("critic_gap", "loss_gap")
_EQUAL = {"wasserstein": 0.0, "validation_auc": 0.5}  # of critics that see no difference
_LABELS = {
    "score": "score [standard deviations]",
    "critic_gap": "critic: training minus validation",
    "loss_gap": "loss: validation minus training",
    "wasserstein": "critic: reference minus generated",
    "validation_auc": "AUC of critics, validation",
    "loss": "loss on validation samples",
    "diversity": "diversity, generated over reference",
}
_WIDE = 10.0  # a curve that spans more than this factor is drawn on a logarithmic axis


def history(report: Report) -> Iterator[Drawing]:
    """Scores over training, gaps between training and validation, and what else the histories have."""
    found = [
        (name, member, told)
        for name in report.metrics
        for member in report.members(name)
        if (told := History.of(report.generated[member].provenance)) is not None
    ]
    shown = [key for key in _LABELS if any(np.isfinite(h.curves.get(key, np.nan)).any() for _, _, h in found)]
    if "score" not in shown:
        return
    rows, columns = -(-len(shown) // 3), min(len(shown), 3)
    figure = Figure(figsize=(3.6 * columns, 2.9 * rows + 0.3), layout="constrained")
    for number, key in enumerate(shown):
        _draw(figure.add_subplot(rows, columns, number + 1), key, found, report)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=min(4, len(labels)))
    ended = "; ".join(_ending(member, history) for _, member, history in found)
    caption = (
        "Validations during training, on samples that were not trained on. Score: mean W1 of all observables in bins "
        "of the conditions. Dashed, with its uncertainty: the same for training against validation samples, about the "
        "best that can be expected (a little less, since generated samples have the validation samples' own "
        "conditions); differences within the band mean little. Gaps that open are learning by heart. The ring is the "
        f"checkpoint that was used. {ended}."
    )
    yield Drawing("training-history", "Training history", caption, figure)


def _ending(name: str, history: History) -> str:
    steps = int(history.steps[-1])
    used = chosen_checkpoint(history.chosen, steps)
    return f"{name}: {used or f'{steps} steps'}, in {history.seconds[-1]:,.0f} s"


def _draw(axes: Axes, key: str, found: Sequence[tuple[str, str, History]], report: Report) -> None:
    titles, by_time = list(views.sides(report)), len(report.metrics) > 1
    everything, floors = [], set()
    for name, member, history in found:
        values = history.curves.get(key)
        if values is None or not np.isfinite(values).any():
            continue
        look, x = look_of(titles, name), history.seconds if by_time else history.steps
        seeds = report.members(name)
        label = name if len(seeds) == 1 else f"{name} ({len(seeds)} seeds)" if member == seeds[0] else None
        everything.append(np.abs(values[np.isfinite(values)]))
        axes.plot(x, values, color=look.colour, linestyle=look.line, marker=look.marker, markersize=2.5, label=label)
        at = history.steps == history.chosen
        axes.plot(x[at], values[at], "o", color=look.colour, markersize=9, fillstyle="none", markeredgewidth=1.4)
        if key == "score" and np.isfinite(history.floor[0]):
            floors.add(history.floor)
    for floor, error in floors:
        axes.axhline(floor, color=REFERENCE_COLOUR, linestyle="--", linewidth=0.9)
        if np.isfinite(error):
            axes.axhspan(floor - error, floor + error, color=REFERENCE_COLOUR, alpha=0.18, linewidth=0)
    if key in _GAPS or key in _EQUAL:
        axes.axhline(_EQUAL.get(key, 0.0), color=REFERENCE_COLOUR, linewidth=0.8)
    elif key == "score" and max(map(np.max, everything)) > _WIDE * min(map(np.min, everything)) > 0:
        axes.set_yscale("log")
    axes.set(xlabel="training time [s]" if by_time else "step", ylabel=_LABELS[key])
