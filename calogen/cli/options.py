"""What the commands share: paths with ``~``, NAME=VALUE options, and facts as JSON or a table."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import CalogenError, ConfigError
from .terminal import readable, table

if TYPE_CHECKING:
    from ..production.parts import Part


at_home = os.path.expanduser


def printable(name: str) -> str:
    """A file's name as text that any file can hold: bytes that are not UTF-8 are written as \\xNN."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


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
            options = {option.name: max(option.opts, key=len) for option in self.commands[mine].params} if mine else {}
            if "settings" in options:  # of simulate: the engine's options are not its own
                options |= {name: f"--set {name}" for name in _OF_ENGINES - options.keys()}
            others = {
                option.name: f"{context.command_path} {name} {max(option.opts, key=len)}"
                for name, command in self.commands.items()
                for option in command.params
            }
            for part in ("what", "where", "expected", "hint"):
                if isinstance(text := getattr(error, part), str):  # what to do may be to run another command
                    setattr(error, part, as_options(text, {**others, **options} if part == "hint" else options))
            raise


def as_options(text: str, options: Mapping[Any, str]) -> str:
    """A text with the arguments in it that are options written as such: `shard_size=5` as ``--shard-size 5``."""

    def written(match: re.Match[str]) -> str:
        argument, name, value = match[1], match[2], match[3]
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


JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def show(title: str, facts: Mapping[str, Any], *, as_json: bool) -> None:
    """Facts as JSON or as a table."""
    if as_json:
        click.echo(json.dumps(facts, indent=2))
    else:
        table(title, {key.replace("_", " "): readable(value) for key, value in facts.items()})
