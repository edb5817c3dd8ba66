"""calogen: conditional WGAN-GP surrogates for scientific simulations.

Importing this package is cheap; each name brings in what it needs when first used.
"""

from __future__ import annotations

import importlib
import sys
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .analysis.comparison import compare as compare
    from .config import Config as Config
    from .errors import CalogenError as CalogenError
    from .families import FAMILIES as FAMILIES
    from .families import Family as Family
    from .production.requests import Request as Request
    from .sampling import Surrogate as Surrogate
    from .shards.reader import Shards as Shards
    from .shards.samples import Samples as Samples
    from .shards.sources import open_shards as open_shards
    from .simulators import simulate as simulate
    from .training.loop import Run as Run
    from .training.loop import train as train

__version__ = "0.1.0"

_HERE = Path(__file__).resolve().parent


class _SourceTree:
    """Finds ``calogen.analysis`` and ``calogen.data`` beside this folder, where they lie in a source tree."""

    def find_spec(self, name: str, *_: Any) -> ModuleSpec | None:
        return PathFinder.find_spec(name, [str(_HERE.parent)]) if name in ("calogen.analysis", "calogen.data") else None


if not (_HERE / "analysis").is_dir():  # not the installed package
    sys.meta_path.insert(0, _SourceTree())

_HOMES = {
    "CalogenError": "errors",
    "Config": "config",
    "FAMILIES": "families",
    "Family": "families",
    "Request": "production.requests",
    "Run": "training",
    "Samples": "shards.samples",
    "Shards": "shards.reader",
    "Surrogate": "sampling",
    "compare": "analysis",
    "open_shards": "shards.sources",
    "simulate": "simulators",
    "train": "training",
}

__all__ = [*_HOMES, "__version__", "analysis"]


def __getattr__(name: str) -> Any:
    if name == "analysis":
        return importlib.import_module(".analysis", __name__)
    if name not in _HOMES:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
