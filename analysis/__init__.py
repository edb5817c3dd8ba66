"""Compare generated with reference samples: observables, distances with errors and floors, and a report.

Importing this package is cheap; each name brings in what it needs when first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .distances import Metric as Metric
    from .observables import catalogue as catalogue
    from .observables import observe as observe
    from .report import Report as Report
    from .report import compare as compare
    from .scores import score as score
    from .scores import score_floor as score_floor

_HOMES = {
    "Metric": "distances",
    "Report": "report",
    "catalogue": "observables",
    "compare": "report",
    "observe": "observables",
    "score": "scores",
    "score_floor": "scores",
}

__all__ = ["Metric", "Report", "catalogue", "compare", "observe", "score", "score_floor"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
