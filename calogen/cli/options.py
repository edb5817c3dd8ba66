"""What the commands share: paths with ``~``, NAME=VALUE options, and facts as JSON or a table."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import CalogenError, ConfigError, plain
from .terminal import echo, readable, table

if TYPE_CHECKING:
    from ..production.parts import Part


at_home = os.path.expanduser


def printable(name: str) -> str:
    """A file's name as text that any file can hold: bytes that are not UTF-8 or no signs are written as \\xNN."""
    return plain(os.fsencode(name).decode("utf-8", "backslashreplace"))


def _folder(text: str) -> Path:
    if not text:
        raise ValueError("a path cannot be empty")
    return Path(at_home(text))


def _kind(convert: Callable[[str], Any]) -> click.ParamType[Any]:
    kind = click.types.FuncParamType(convert)
    kind.name = "path"  # what help calls the value
    return kind


PLACE, FOLDER = _kind(at_home), _kind(_folder)
"""What is read: a path, glob or name, as text; and what is written. Shells leave the ``~`` in ``--out=~/run``."""


def _part(text: str) -> Part:
    from ..production.parts import Part

    return Part.parse(text)


PART = _kind(_part)
"""One of the parts of a production."""


_OF_ENGINES = frozenset({"geometry", "signal", "physics", "cut"})


class Commands(click.Group):
    """Commands whose errors name options: the library's are about its own arguments, `seed` or `part=3/100`."""

    def invoke(self, context: click.Context) -> Any:
        """Run a command."""
        try:
            return super().invoke(context)
        except CalogenError as error:
            mine = context.invoked_subcommand or ""
            options = options_of(self.commands[mine]) if mine else {}
            if "settings" in options:  # of simulate: the engine's options are not its own
                options |= {name: f"--set {name}" for name in _OF_ENGINES - options.keys()} | {"n": options["samples"]}
            others = {
                option.name: f"{context.command_path} {name} {max(option.opts, key=len)}"
                for name, command in self.commands.items()
                for option in command.params
            }
            for part in ("what", "where", "expected", "found", "hint"):
                if isinstance(text := getattr(error, part), str):  # what to do may be to run another command
                    setattr(error, part, as_options(text, {**others, **options} if part == "hint" else options))
            raise


def options_of(command: click.Command) -> dict[str, str]:
    """How a command's arguments are written as options; of a switch, its other position is ``NAME=False``."""
    found = {str(option.name): max(option.opts, key=len) for option in command.params}
    switched = [option for option in command.params if option.secondary_opts]
    return found | {f"{option.name}=False": max(option.secondary_opts, key=len) for option in switched}


def tell(note: str) -> None:
    """Print a note about the data to those who wait."""
    echo(f"note: {of_command(note)}", err=True)


def of_command(text: object) -> str:
    """A text with its arguments as options of the command that runs."""
    context = click.get_current_context(silent=True)
    return as_options(str(text), options_of(context.command) if context else {})


def as_options(text: str, options: Mapping[Any, str]) -> str:
    """A text with the arguments in it that are options written as such: `shard_size=5` as ``--shard-size 5``."""

    def written(match: re.Match[str]) -> str:
        argument, name, value = match[1], match[2], match[3]
        if f"{name}={value}" in options:
            return options[f"{name}={value}"]
        if name not in options:
            return argument
        if value is not None and options[name].startswith("--set "):
            return f"{options[name]}={value}"
        return f"{options[name]} {value}" if value not in (None, "True") else options[name]

    return re.sub(r"`((\w+)(?:=([^`]*))?)`", written, text)


def pairs(values: Sequence[str], option: str) -> dict[str, str]:
    """NAME=VALUE options as a mapping.

    Raises:
        ConfigError: If one is not NAME=VALUE, or a name is there twice.
    """
    found: dict[str, str] = {}
    for text in values:
        name, sign, value = text.partition("=")
        if not sign or not name or not value:
            raise ConfigError(f"{option} takes NAME=VALUE", where=option, found=text)
        if name in found:
            raise ConfigError(f"{option} names '{name}' twice", where=option)
        found[name] = value
    return found


def condition_pairs(conditions: Sequence[str], energy: str | None) -> dict[str, str]:
    """Specifications by condition name; ``energy`` is that of the incident energy, whatever its name."""
    return pairs([*conditions, *([f"energy={energy}"] if energy is not None else [])], "--condition")


def reads_files(command: Callable[..., None]) -> Callable[..., None]:
    """Options of all commands that read files: what these do not say of themselves."""
    unit = "Units in files that say none: energy=GeV, voxels=keV, theta=rad (may be repeated)."
    for option in (
        click.option(
            "--signed", type=float, metavar="S", help="Maps are a field with negative values: read exp(field / S)."
        ),
        click.option(
            "--unweight", is_flag=True, default=None, help="Keep weighted samples in proportion to their weights."
        ),
        click.option(
            "--log10/--linear",
            default=None,
            help="Maps are logarithms to base 10; or are not, whatever they look like.",
        ),
        click.option("--box", type=float, metavar="MPC/H", help="Side of maps whose file does not say it."),
        click.option(
            "--maps-per-simulation", type=int, metavar="N", help="N maps that follow each other are of one simulation."
        ),
        click.option(
            "--columns", metavar="A,B,...", help="What unnamed columns of parameters hold, in order; _: unused."
        ),
        click.option("--unit", multiple=True, metavar="NAME=UNIT", help=unit),
        click.option(
            "--family", metavar="NAME|FILE", help="What the samples are, where files do not say: a name, TOML or XML."
        ),
    ):
        command = option(command)
    return command


def reading_of(options: dict[str, Any]) -> dict[str, Any]:
    """Takes what :func:`reads_files` gives out of a command's options: the fields of a ``Reading`` that were given."""
    names = ("signed", "unweight", "log10", "box", "maps_per_simulation")
    found = {name: value for name in names if (value := options.pop(name, None)) is not None}
    if columns := options.pop("columns", None):
        found["columns"] = [name.strip() for name in columns.split(",")]
    if units := options.pop("unit", ()):
        found["unit"] = pairs(units, "--unit")
    return found


def opening(options: dict[str, Any]) -> dict[str, Any]:
    """The same as arguments of what opens files: family and reading."""
    from ..config import Config
    from ..families import resolve_family

    family, found = options.pop("family", None), reading_of(options)
    return {
        "family": None if family is None else resolve_family(family),
        "reading": Config.build({"reading": found}).reading,
    }


STRICT = click.option(
    "--strict", is_flag=True, help="Refuse folders of which parts or samples are missing, instead of saying so."
)
JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def show(title: str, facts: Mapping[str, Any], *, as_json: bool) -> None:
    """Facts as JSON or as a table."""
    if as_json:
        click.echo(json.dumps(facts, indent=2))
    else:
        table(title, {key.replace("_", " "): readable(value) for key, value in facts.items()})
