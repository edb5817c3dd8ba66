"""The header of an HDF5 file: datasets that are safe to read, and the root attributes that calogen writes and reads."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from ...config import PLAIN, Reading
from ...errors import CalogenError, ConfigError, ShardError
from ...families import ENERGY_UNITS, FAMILIES, Family, conversion, is_energy, resolve_family
from ..hdf5 import checked_dataset
from ..samples import Samples

SCHEMA = 1
"""Version of the files that calogen writes; newer ones are refused."""


@dataclass(frozen=True)
class Header:
    """The header of an open HDF5 file.

    Attributes:
        file: The file.
        path: Its path, for messages.
        family: What the samples are, as asked for or as the file says; None: the format must find out.
        reading: What the user said of a file that calogen did not write.
        like: What the samples are, where neither the user nor the file says.
        one_unit: Whether incident energies and voxels of such files have the same unit.
    """

    file: h5py.File
    path: Path
    family: Family | None
    reading: Reading = PLAIN
    like: Family | None = None
    one_unit: bool = True

    @property
    def native(self) -> bool:
        """Whether calogen wrote the file."""
        return "calogen_schema" in self.file.attrs

    @property
    def found(self) -> set[str]:
        """Names of datasets, groups and links at the root; no link is followed."""
        return set(self.file)

    def dataset(
        self, name: str, shape: tuple[int | None, ...] | None, *, column: bool = False, kinds: str = "f"
    ) -> h5py.Dataset:
        """A dataset after the checks of :func:`calogen.shards.hdf5.checked_dataset`."""
        return checked_dataset(self.file, name, shape, column=column, kinds=kinds)

    def at(self, attribute: str) -> str:
        """Where an attribute is, for messages."""
        return f"{self.path}, attribute {attribute}"

    def names(self, attribute: str) -> list[str] | None:
        """The texts of an attribute; None if there is none of that name."""
        if attribute not in self.file.attrs:
            return None
        values = np.atleast_1d(np.asarray(self.file.attrs[attribute], dtype=object)).ravel()
        return [value.decode() if isinstance(value, bytes) else str(value) for value in values]

    def energy_factor(self, attribute: str, default: str, wanted: str) -> tuple[float, str | None, bool]:
        """What stored energies are multiplied by to be in the unit wanted.

        Args:
            attribute: Where the file may say its unit.
            default: The unit where neither it nor the user does.
            wanted: The family's; one that is no energy is left alone.

        Returns:
            The factor; a note, if that converts them; and whether anybody said the unit.

        Raises:
            ShardError: If the file says a unit that is no energy.
        """
        if not is_energy(wanted):
            return 1.0, None, True
        given = {} if self.native else self.reading.unit
        own = given.get("energy") if attribute == "energy_unit" else given.get("voxels")
        if own is None and attribute == "cell_unit" and attribute not in self.file.attrs:
            own = given.get("energy") if self.one_unit else None
        unit = own or self.file.attrs.get(attribute, default)
        unit = unit.decode("utf-8", "replace") if isinstance(unit, bytes) else str(unit)
        if not is_energy(unit):
            known = ", ".join(ENERGY_UNITS)
            raise ShardError("unknown energy unit", where=self.at(attribute), expected=known, found=unit)
        said = bool(own) or self.native or attribute in self.file.attrs
        return conversion(unit, wanted), f"converted from {unit} to {wanted}" if unit != wanted else None, said

    def angle_factor(self, dataset: h5py.Dataset, name: str, wanted: str) -> float:
        """What stored angles are multiplied by to be in the unit wanted.

        Raises:
            ShardError: If neither user nor file says their unit, and the numbers could be in either.
        """
        unit = self.reading.unit.get(name) or dataset.attrs.get("unit") or dataset.attrs.get("units")
        unit = unit.decode("utf-8", "replace") if isinstance(unit, bytes) else unit
        unit = {"degree": "deg", "degrees": "deg", "radian": "rad", "radians": "rad"}.get(str(unit), unit)
        if unit is None and float(np.abs(dataset[:]).max(initial=0)) > 1.01 * 2 * np.pi:
            unit = "deg"
        if unit not in ("rad", "deg"):
            raise ShardError(
                f"nothing says whether '{name}' is in rad or in deg",
                where=f"{self.path}, dataset {dataset.name}",
                expected="an attribute unit, or values beyond a full turn in rad",
                found=unit,
                hint=f"say it: `unit={name}=rad` or `unit={name}=deg`",
            )
        return 1.0 if unit == wanted else float(np.degrees(1.0) if unit == "rad" else np.radians(1.0))

    def require_known(self, family: Family, names: Sequence[str]) -> None:
        """Refuse conditions that the family does not have."""
        for name in names:
            try:
                family.condition(name)
            except ConfigError as error:
                known = ", ".join(condition.name for condition in family.conditions)
                raise ShardError(error.what, where=self.path, expected=known, found=name, hint=error.hint) from None

    def require_units(self, family: Family) -> None:
        """Refuse conditions that the file says are in other units than the family's."""
        for name, unit in zip(self.names("condition_names") or (), self.names("condition_units") or (), strict=False):
            expected = family.condition(name).unit
            if unit != expected:
                raise ShardError(
                    f"'{name}' is stored in another unit than the family's",
                    where=self.at("condition_units"),
                    expected=expected or "no unit",
                    found=unit or "no unit",
                )

    def require_schema(self) -> None:
        """Refuse a file that a newer calogen wrote."""
        schema = self.file.attrs.get("calogen_schema", SCHEMA)
        if not (isinstance(schema, int | np.integer) and 1 <= schema <= SCHEMA):
            raise ShardError(
                "the file was written by a newer calogen"
                if np.isscalar(schema)
                else "the file's schema is not a number",
                where=self.at("calogen_schema"),
                expected=f"at most {SCHEMA}",
                found=schema,
                hint="update calogen",
            )

    def stored_family(self) -> Family | None:
        """The family that the file says it holds; None if it does not say."""
        text = self.file.attrs.get("family")
        if text is None:
            return None
        try:
            return _parse_family(str(text))
        except (CalogenError, ValueError) as error:
            found = str(error).partition("\n")[0]
            raise ShardError("the file's family cannot be understood", where=self.at("family"), found=found) from None

    def stored_kind(self) -> str:
        """``reference`` or ``generated``."""
        kind = str(self.file.attrs.get("kind", "reference"))
        if kind not in ("reference", "generated"):
            expected = "reference or generated"
            raise ShardError("unknown kind of samples", where=self.at("kind"), expected=expected, found=kind)
        return kind

    def stored_provenance(self) -> dict[str, Any]:
        """Where the samples come from: of foreign files, every short attribute that says something about it."""
        text = self.file.attrs.get("provenance")
        if text is None:
            plain = {str(name): _plain(value) for name, value in self.file.attrs.items()}
            return {name: value for name, value in plain.items() if value is not None}
        try:
            table = json.loads(str(text))
        except ValueError as error:
            raise ShardError("the provenance is not JSON", where=self.at("provenance"), found=str(error)) from None
        return table if isinstance(table, dict) else {"provenance": table}


def write_attributes(file: h5py.File, samples: Samples, provenance: Mapping[str, Any], index_start: int) -> None:
    """Say in a file what it holds.

    Args:
        file: The open file.
        samples: Some of those it holds.
        provenance: Where they come from: JSON-able.
        index_start: Global index of the first of them.
    """
    family, names = samples.family, list(samples.conditions)
    file.attrs.update(
        calogen_schema=SCHEMA,
        kind=samples.kind,
        family=family.model_dump_json(),
        provenance=json.dumps(dict(provenance), sort_keys=True),
        index_start=index_start,
    )
    units = [family.condition(name).unit for name in names]
    for attribute, texts in (("condition_names", names), ("condition_units", units)):
        file.attrs.create(attribute, np.array(texts, dtype=object), dtype=h5py.string_dtype())


@lru_cache(maxsize=64)  # thousands of shards carry the same text
def _parse_family(text: str) -> Family:
    table = FAMILIES[text] if text in FAMILIES else json.loads(text)
    if not isinstance(table, Family | dict):
        raise ValueError("it is not a table")
    return resolve_family(table)


def _plain(value: object) -> object:
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")[:1000]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, str):
        return value[:1000]
    return value if isinstance(value, bool | int | float) else None
