"""The command line: with terminal.py, the only room that prints, draws progress, or sets exit codes.

One module a group of commands; importing this one imports nothing, so that Control-C is heard from the first moment.
"""

from __future__ import annotations

import sys


def main() -> None:
    """Entry point: errors become messages and exit codes."""
    try:
        from .commands import run
    except KeyboardInterrupt:
        sys.exit(130)
    sys.exit(run())
