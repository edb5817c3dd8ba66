"""The commands, gathered."""

from __future__ import annotations

import io
import signal
import sys

import click

from .. import __version__
from ..errors import CalogenError, ElsewhereError, StorageError
from .bench import bench
from .compare import compare
from .completion import completion
from .export import export
from .look import gallery, info, verify
from .options import Commands
from .produce import generate, simulate, translate
from .terminal import Stopped, echo
from .train import train


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__)
def cli() -> None:
    """Fast, faithful stand-ins for slow simulations: conditional WGAN-GPs for calorimeter showers and N-body maps.

    \b
    calogen info data/calogan-gamma                     what is in these files?
    calogen train --data data/calogan-gamma --energy-conditioned --out run
    calogen generate run -n 100000 --energy uniform:1:100GeV --out showers
    calogen compare data/calogan-gamma/test showers --out report
    """


for command in (train, generate, translate, simulate, compare, export, gallery, info, verify, bench, completion):
    cli.add_command(command)


def run() -> int:
    """Do what the command line says; errors become messages.

    Returns:
        The exit code.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # names of files may be anything
    try:
        cli(prog_name="calogen", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.exceptions.Abort, KeyboardInterrupt) as error:
        cause = error.__cause__ or error  # click raises its own
        return _said("interrupted", 128 + (cause.number if isinstance(cause, Stopped) else signal.SIGINT))
    except ElsewhereError as error:
        return error.exit_code
    except CalogenError as error:
        return _said(error, error.exit_code)
    except BrokenPipeError:
        sys.stderr.close()
        return 141
    except OSError as error:  # a name that is too long, a folder that may not be read
        where = f"\n  where    {error.filename}" if error.filename else ""
        return _said(f"{error.strerror or error}{where}", StorageError.exit_code)
    except MemoryError as error:
        return _said(f"there is not enough memory{f': {error}' if str(error) else ''}", 1)
    return 0


def _said(what: object, code: int) -> int:
    echo(f"calogen: {what}", err=True)
    return code
