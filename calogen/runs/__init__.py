"""What training leaves behind: run folders and checkpoints, and how a model is found by name.

``calogen.runs.table`` puts runs side by side (:func:`calogen.runs.beside.table`); it is brought in when it is used.
"""

from typing import Any


def __getattr__(name: str) -> Any:
    if name != "table":
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    from .beside import table

    return table
