"""What is needed to repeat a run, besides configuration and data."""

from __future__ import annotations

import functools
import platform
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .. import __version__


def environment() -> dict[str, Any]:
    """Versions of everything that decides numbers, and the commit of this program."""
    return {
        "calogen": __version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        **_commit(),
    }


@functools.cache
def _commit() -> dict[str, Any]:
    """The commit of this program, and whether its code was changed since; nothing for an installed copy."""

    def git(*words: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *words]
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", Path(__file__).name)  # a copy may lie inside somebody else's repository
        changed = git("status", "--porcelain", "--untracked-files=no", "--", "..", "../../analysis")
        return {"commit": git("rev-parse", "--short=12", "HEAD"), "code_changed": bool(changed)}
    except (OSError, subprocess.SubprocessError):
        return {"commit": ""}
