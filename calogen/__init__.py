"""calogen: conditional WGAN-GP surrogates for scientific simulations.

Importing this package is cheap; each name brings in what it needs when first used.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .config import Config as Config
    from .errors import CalogenError as CalogenError
    from .families import FAMILIES as FAMILIES
    from .families import Family as Family
    from .production.requests import Request as Request
    from .sampling import Surrogate as Surrogate
    from .shards.reader import Shards as Shards
    from .shards.samples import Samples as Samples
    from .shards.sources import open_shards as open_shards
    from .training.loop import Run as Run
    from .training.loop import train as train

_TREE = Path(__file__).resolve().parents[1]
if (_TREE / "pyproject.toml").is_file() and (_TREE / "analysis" / "__init__.py").is_file():
    # Not installed but imported from its source tree, where analysis/ and data/ lie beside this folder.
    __path__.append(str(_TREE))

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
    "open_shards": "shards.sources",
    "train": "training",
}

__all__ = [*_HOMES, "__version__", "analysis"]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("calogen")
    if name == "analysis":
        return importlib.import_module(".analysis", __name__)
    if name not in _HOMES:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
