"""The family that a name, a file or a table stands for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ..errors import ConfigError, did_you_mean
from ..storage import read_toml
from .binning import family_from_binning
from .builtin import FAMILIES
from .family import Family


def resolve_family(source: str | Path | Mapping[str, Any] | Family) -> Family:
    """The family that a name, a file or a table stands for.

    Args:
        source: Name of a built-in family; a CaloChallenge binning file (``.xml``); a ``.toml`` file with a table
            ``[family]`` or the name of one; a mapping with the fields of :class:`Family`; or a family.

    Raises:
        ConfigError: If the name is unknown, or the file or table does not describe a family.
    """
    if isinstance(source, Family):
        return source
    if isinstance(source, Mapping):
        return _from_table(source)
    name = str(source)
    if name in FAMILIES:
        return FAMILIES[name]
    if name.lower().endswith(".xml"):
        return family_from_binning(source)
    if name.endswith(".toml"):
        found = read_toml(Path(name)).get("family", {})
        return FAMILIES[found] if isinstance(found, str) and found in FAMILIES else _from_table(found)
    raise ConfigError(f"unknown family '{name}'", found=name, hint=did_you_mean(name, FAMILIES))


def _from_table(table: object) -> Family:
    try:
        return Family.model_validate(table)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(["family", *(str(part) for part in first["loc"])])
        hint = did_you_mean(str(first["loc"][-1]), Family.model_fields) if first["type"] == "extra_forbidden" else None
        raise ConfigError(
            f"the family table is not valid: {first['msg']}", where=where, found=first.get("input"), hint=hint
        ) from None
