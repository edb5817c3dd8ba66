"""Compare generated with reference samples: observables, distances with errors and floors, and a report.

Importing this package is cheap; each name brings in what it needs when first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .comparison import compare as compare
    from .metrics.registry import Metric as Metric
    from .metrics.validation import score as score
    from .metrics.validation import score_floor as score_floor
    from .observables.catalogue import catalogue as catalogue
    from .observables.catalogue import observe as observe
    from .page.save import save as save
    from .report import Report as Report

_HOMES = {
    "Metric": "metrics.registry",
    "Report": "report",
    "catalogue": "observables.catalogue",
    "compare": "comparison",
    "observe": "observables.catalogue",
    "save": "page.save",
    "score": "metrics.validation",
    "score_floor": "metrics.validation",
}

__all__ = [*_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
