"""Layouts of data files: our own, and those other people write, described so that one reader opens them all.

A layout is found from a file's header alone. It says which datasets hold the voxels and the physics parameters, in
which units they are stored, and what the numbers must be multiplied by to be in the family's own units.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import h5py
import numpy as np

from .errors import CalogenError, ConfigError, ShardError, did_you_mean
from .families import FAMILIES, Condition, CylindricalLayer, Family, resolve_family
from .hdf5 import checked_dataset, open_file, outside

SCHEMA = 1
INDEX_EXTRAS = ("realisation_id", "weights")
"""Optional per-sample datasets that are carried along and never modelled."""

_UNIT_IN_MEV = {"eV": 1e-6, "keV": 1e-3, "MeV": 1.0, "GeV": 1e3, "TeV": 1e6}
_LAYOUTS = (
    "calogen or CaloChallenge: 'showers' and 'incident_energies'; "
    "CaloGAN: 'layer_0', 'layer_1', ... and 'energy'; maps: 'maps' and 'params'"
)


@dataclass(frozen=True)
class Column:
    """One physics parameter in a file.

    Attributes:
        name: The condition's name.
        dataset: The dataset that holds it.
        column: Its column in that dataset; None if the dataset holds nothing else.
        factor: What the stored numbers are multiplied by to be in the condition's unit.
    """

    name: str
    dataset: str
    column: int | None = None
    factor: float = 1.0


@dataclass(frozen=True)
class Layout:
    """How one file holds its samples.

    Attributes:
        name: ``calogen``, ``calogan``, ``calochallenge`` or ``maps``.
        family: The family of the samples.
        kind: ``reference`` or ``generated``.
        length: Samples in the file (N).
        values: Datasets of the voxels in the family's order; several when each layer has its own.
        factor: What stored voxels are multiplied by to be in the family's unit.
        conditions: Where each physics parameter is.
        extras: Optional per-sample datasets present.
        index_start: Global index of the first sample.
        provenance: Where the samples come from, as far as the file says.
        notes: Conversions that reading does, in words.
    """

    name: str
    family: Family
    kind: str
    length: int
    values: tuple[str, ...]
    factor: float = 1.0
    conditions: tuple[Column, ...] = ()
    extras: tuple[str, ...] = ()
    index_start: int = 0
    provenance: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def read_layout(path: Path, family: Family | None = None) -> Layout:
    """Finds out how a file holds its samples, from its header; no sample is read.

    Args:
        path: An HDF5 file in any known layout.
        family: What the samples are, where the file itself does not say; checked against the file.

    Raises:
        ShardError: If the layout is unknown, shapes or types are wrong, or the file points outside itself.
    """
    with open_file(path) as file:
        try:
            return _find_layout(file, path, family)
        except (OSError, RuntimeError, KeyError, TypeError, ValueError) as error:
            raise ShardError("the file's header is damaged", where=path, found=str(error)) from None


def _find_layout(file: h5py.File, path: Path, family: Family | None) -> Layout:
    schema = file.attrs.get("calogen_schema")
    if schema is not None and not (isinstance(schema, int | np.integer) and 1 <= schema <= SCHEMA):
        raise ShardError(
            "the file was written by a newer calogen" if np.isscalar(schema) else "the file's schema is not a number",
            where=f"{path}, attribute calogen_schema",
            expected=f"at most {SCHEMA}",
            found=schema,
            hint="update calogen",
        )
    stored = _stored_family(file, path)
    if stored is not None and family is not None and not stored.same_samples(family):
        raise ShardError(
            "the file holds another family than asked for", where=path, expected=family.name, found=stored.name
        )
    names = set(file)
    if "layer_0" in names:
        layout = _calogan(file, path, family or stored)
    elif "showers" in names:
        layout = _showers(file, path, family or stored, schema is not None)
    elif "maps" in names:
        layout = _maps(file, path, family or stored, schema is not None)
    else:
        found = ", ".join(sorted(names)[:12]) or "no datasets"
        raise ShardError("no known layout has these datasets", where=path, expected=_LAYOUTS, found=found)
    if not layout.length:
        raise ShardError("the file holds no samples", where=path, found="0 rows")
    if layout.name != "calogan":  # whose unit of energy is its own
        _check_units(file, path, layout)
    extras = tuple(name for name in INDEX_EXTRAS if name in names)
    for name in extras:
        checked_dataset(file, path, name, (layout.length,), kinds="iuf")
    kind = str(file.attrs.get("kind", "reference"))
    if kind not in ("reference", "generated"):
        raise ShardError(
            "unknown kind of samples", where=f"{path}, attribute kind", expected="reference or generated", found=kind
        )
    return replace(
        layout,
        kind=kind,
        extras=extras,
        index_start=int(file.attrs.get("index_start", 0)),
        provenance=_provenance(file, path),
    )


def _stored_family(file: h5py.File, path: Path) -> Family | None:
    text = file.attrs.get("family")
    if text is None:
        return None
    try:
        return _parse_family(str(text))
    except CalogenError as error:
        found = error.what
    except ValueError as error:
        found = str(error)
    raise ShardError("the file's family cannot be understood", where=f"{path}, attribute family", found=found)


@lru_cache(maxsize=64)  # thousands of shards carry the same text
def _parse_family(text: str) -> Family:
    if text in FAMILIES:
        return FAMILIES[text]
    table = json.loads(text)
    if not isinstance(table, dict):
        raise ValueError("it is not a table")
    return resolve_family(table)


def _provenance(file: h5py.File, path: Path) -> dict[str, Any]:
    text = file.attrs.get("provenance")
    if text is None:  # foreign files: every short attribute says something about the origin
        plain = {str(name): _plain(value) for name, value in file.attrs.items()}
        return {name: value for name, value in plain.items() if value is not None}
    try:
        table = json.loads(str(text))
    except ValueError as error:
        raise ShardError(
            "the provenance is not JSON", where=f"{path}, attribute provenance", found=str(error)
        ) from None
    return table if isinstance(table, dict) else {"provenance": table}


def _plain(value: object) -> object:
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")[:1000]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, str):
        return value[:1000]
    return value if isinstance(value, bool | int | float) else None


# ---------------------------------------------------------------------------------------------------- layouts


def _calogan(file: h5py.File, path: Path, family: Family | None) -> Layout:
    """CaloGAN (arXiv:1705.02355): one dataset a layer in MeV, ``energy`` in GeV, ``overflow`` in MeV."""
    family = family or FAMILIES["calogan"]
    if family.kind != "calorimeter":
        raise ShardError("the file holds showers", where=path, expected=f"samples of family '{family.name}'")
    values = tuple(f"layer_{number}" for number in family.layer_numbers)
    length = None
    for name, layer in zip(values, family.layers, strict=True):
        length = checked_dataset(file, path, name, (length, *layer.shape)).shape[0]
    surplus = sorted(name for name in file if name.startswith("layer_") and name not in values)
    if surplus:
        raise ShardError("the file has more layers than the family", where=path, expected=values, found=surplus)
    checked_dataset(file, path, "energy", (length,), column=True)
    condition, notes = family.conditions[0], list[str]()
    energy_factor = _factor(file, path, "energy_unit", "GeV", condition.unit, notes)
    columns = [Column(condition.name, "energy", None, energy_factor)]
    columns += _further_conditions(file, path, family, length)
    factor = _factor(file, path, "cell_unit", "MeV", family.unit, notes)
    if "overflow" in set(file):
        notes.append("overflow (energy beside the cells) is not modelled and not read")
    return Layout(
        name="calogan",
        family=family,
        kind="reference",
        length=int(length or 0),
        values=values,
        factor=factor,
        conditions=tuple(columns),
        notes=tuple(notes),
    )


def _showers(file: h5py.File, path: Path, family: Family | None, native: bool) -> Layout:
    """CaloChallenge (arXiv:2410.21611) and our own: ``showers`` (N, V) and ``incident_energies`` (N, 1) in MeV."""
    showers = checked_dataset(file, path, "showers", (None, None))
    length, voxels = showers.shape
    if family is None:
        family = _family_of_voxels(path, voxels)
    if family.kind != "calorimeter" or voxels != family.voxels:
        raise ShardError(
            "the number of voxels is not the family's",
            where=f"{path}, dataset showers",
            expected=f"{family.voxels} voxels (family '{family.name}')",
            found=f"{voxels} voxels",
        )
    columns, notes = list[Column](), list[str]()
    unconditional = native and not _names(file, "condition_names")
    if "incident_energies" in set(file) or not unconditional:
        condition = family.conditions[0]
        checked_dataset(file, path, "incident_energies", (length,), column=True)
        default = condition.unit if native else "MeV"
        energy_factor = _factor(file, path, "energy_unit", default, condition.unit, notes)
        columns.append(Column(condition.name, "incident_energies", None, energy_factor))
    columns += _further_conditions(file, path, family, length)
    _check_names(file, path, [column.name for column in columns])
    factor = _factor(file, path, "cell_unit", family.unit if native else "MeV", family.unit, notes)
    return Layout(
        name="calogen" if native else "calochallenge",
        family=family,
        kind="reference",
        length=length,
        values=("showers",),
        factor=factor,
        conditions=tuple(columns),
        notes=tuple(notes),
    )


def _maps(file: h5py.File, path: Path, family: Family | None, native: bool) -> Layout:
    """Density maps: ``maps`` (N, H, W), ``params`` (N, C) and the names of its columns as an attribute."""
    maps = checked_dataset(file, path, "maps", (None, None, None))
    length, *pixels = maps.shape
    box = file.attrs.get("box_size")
    if family is None:
        fits = [
            known
            for known in FAMILIES.values()
            if known.pixels == tuple(pixels) and (box is None or math.isclose(float(box), known.box_size))
        ]
        if len(fits) != 1:
            raise ShardError(
                "no built-in family has maps like these",
                where=f"{path}, dataset maps",
                expected=", ".join(
                    f"{k.name}: {k.pixels}, box {k.box_size:g} Mpc/h" for k in FAMILIES.values() if k.pixels
                ),
                found=f"{tuple(pixels)}, box {box}",
                hint="describe the maps in a [family] table",
            )
        family = fits[0]
    if family.pixels != tuple(pixels):
        raise ShardError(
            "the maps have another size than the family's",
            where=f"{path}, dataset maps",
            expected=f"{family.pixels or 'showers'} (family '{family.name}')",
            found=tuple(pixels),
        )
    if box is not None and family.box_size and not math.isclose(float(box), family.box_size):
        raise ShardError(
            "the maps have another box size than the family",
            where=f"{path}, attribute box_size",
            expected=f"{family.box_size:g} Mpc/h",
            found=box,
        )
    names = _names(file, "condition_names" if "condition_names" in file.attrs else "param_names")
    if names is None and "params" in set(file):
        raise ShardError(
            "the columns of params have no names",
            where=f"{path}, attribute param_names",
            expected="one name a column: conditions are matched by name, never by position",
            hint=f"write the attribute; family '{family.name}' knows {[c.name for c in family.conditions]}",
        )
    if names:
        checked_dataset(file, path, "params", (length, len(names)))
        _check_known(path, family, names)
    return Layout(
        name="calogen" if native else "maps",
        family=family,
        kind="reference",
        length=length,
        values=("maps",),
        conditions=tuple(Column(name, "params", index) for index, name in enumerate(names or ())),
    )


def _family_of_voxels(path: Path, voxels: int) -> Family:
    fits = [family for family in FAMILIES.values() if family.kind == "calorimeter" and family.voxels == voxels]
    if len(fits) == 1:
        return fits[0]
    known = ", ".join(f"{f.voxels} ({f.name})" for f in FAMILIES.values() if f.kind == "calorimeter")
    raise ShardError(
        "no built-in family has showers of this size",
        where=f"{path}, dataset showers",
        expected=f"one of {known}",
        found=f"{voxels} voxels",
        hint="name the family: a binning XML file or a [family] table",
    )


def _further_conditions(file: h5py.File, path: Path, family: Family, length: int | None) -> list[Column]:
    link = file.get("conditions", getlink=True)
    if link is None:
        return []
    if not isinstance(link, h5py.HardLink):
        raise outside(path, "conditions", "a link")
    names = sorted(file["conditions"])
    _check_known(path, family, names)
    for name in names:
        checked_dataset(file, path, f"conditions/{name}", (length,), column=True)
    return [Column(name, f"conditions/{name}") for name in names]


def _check_known(path: Path, family: Family, names: list[str]) -> None:
    known = [condition.name for condition in family.conditions]
    for name in names:
        if name not in known:
            raise ShardError(
                f"family '{family.name}' has no condition '{name}'",
                where=path,
                expected=", ".join(known),
                found=name,
                hint=did_you_mean(name, known),
            )


def _check_names(file: h5py.File, path: Path, found: list[str]) -> None:
    names = _names(file, "condition_names")
    if names is not None and set(names) != set(found):
        raise ShardError(
            "the conditions the file names are not the ones it holds",
            where=f"{path}, attribute condition_names",
            expected=names,
            found=found,
        )


def _check_units(file: h5py.File, path: Path, layout: Layout) -> None:
    names, units = _names(file, "condition_names"), _names(file, "condition_units")
    for name, unit in zip(names or (), units or (), strict=False):
        expected = layout.family.condition(name).unit
        if unit != expected:
            raise ShardError(
                f"'{name}' is stored in another unit than the family's",
                where=f"{path}, attribute condition_units",
                expected=expected or "no unit",
                found=unit or "no unit",
            )


def _names(file: h5py.File, attribute: str) -> list[str] | None:
    if attribute not in file.attrs:
        return None
    values = np.atleast_1d(np.asarray(file.attrs[attribute], dtype=object)).ravel()
    return [value.decode() if isinstance(value, bytes) else str(value) for value in values]


def _factor(file: h5py.File, path: Path, attribute: str, default: str, wanted: str, notes: list[str]) -> float:
    """What stored energies are multiplied by to be in the unit wanted; a conversion is noted."""
    if wanted not in _UNIT_IN_MEV:  # a family of the user's own, in a unit of its own
        return 1.0
    unit = file.attrs.get(attribute, default)
    unit = unit.decode("utf-8", "replace") if isinstance(unit, bytes) else str(unit)
    if unit not in _UNIT_IN_MEV:
        raise ShardError(
            "unknown energy unit",
            where=f"{path}, attribute {attribute}",
            expected=", ".join(_UNIT_IN_MEV),
            found=unit,
        )
    if unit != wanted:
        what = "incident energies" if attribute == "energy_unit" else "voxels"
        notes.append(f"{what} converted from {unit} to {wanted}")
    return _UNIT_IN_MEV[unit] / _UNIT_IN_MEV[wanted]


# ---------------------------------------------------------------------------------------------------- binning


def family_from_binning(path: str | Path, particle: str | None = None) -> Family:
    """The family a CaloChallenge binning XML file describes.

    Args:
        path: The XML file: ``Bin`` elements (one a particle) with ``Layer id r_edges n_bin_alpha``; edges in mm. A
            layer with fewer than two edges is absent.
        particle: Name or PDG number of the ``Bin`` to use when there are several.

    Returns:
        A calorimeter family named after the file. Where the layers are those of a built-in family, its condition range
        and laws hold too, except the read-out threshold, which no binning file gives (0).

    Raises:
        ConfigError: If the file is missing or is not a binning file.

    Source: CaloChallenge, arXiv:2410.21611.
    """
    path = Path(path)
    element = _particle_element(path, _parse_xml(path), particle)
    layers = []
    for item in element.iter("Layer"):
        try:
            edges = tuple(float(edge) for edge in item.attrib["r_edges"].split(","))
            if len(edges) > 1:
                number, sectors = int(item.attrib["id"]), int(item.attrib["n_bin_alpha"])
                layers.append(CylindricalLayer(index=number, n_alpha=sectors, r_edges=edges))
        except KeyError as error:
            raise ConfigError(f"a layer has no attribute {error}", where=path, found=dict(item.attrib)) from None
        except ValueError as error:
            raise ConfigError(f"a layer is not valid: {error}", where=path, found=dict(item.attrib)) from None
    if not layers:
        raise ConfigError("the binning file has no layers", where=path, expected="<Layer id r_edges n_bin_alpha>")
    named = {"name": path.stem, "description": f"from {path.name}", "threshold": 0.0}
    for family in FAMILIES.values():
        if family.layers == tuple(layers):
            return family.model_copy(update=named)
    energy = Condition(name="incident_energy", unit="MeV", low=256, high=4_194_304, scale="log")
    return Family(conditions=(energy,), layers=tuple(layers), **named)


def _parse_xml(path: Path) -> ElementTree.Element:
    try:
        text = path.read_bytes()
    except OSError as error:
        raise ConfigError("the binning file cannot be read", where=path, found=error.strerror) from None
    if b"<!DOCTYPE" in text or b"<!ENTITY" in text:  # entities can blow up to any size
        raise ConfigError("a binning file declares no document type or entity", where=path)
    try:
        return ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        raise ConfigError("the binning file is not valid XML", where=path, found=str(error)) from None


def _particle_element(path: Path, root: ElementTree.Element, particle: str | None) -> ElementTree.Element:
    bins = list(root.iter("Bin"))
    if particle is not None:
        bins = [item for item in bins if particle in (item.get("name"), item.get("pid"))]
    if len(bins) == 1:
        return bins[0]
    known = [f"{item.get('name')} ({item.get('pid')})" for item in root.iter("Bin")]
    raise ConfigError(
        "the binning file does not say which particle to use" if bins else "the binning file has no such particle",
        where=path,
        expected=f"one of {', '.join(known)}" if known else "<Bins><Bin pid name><Layer .../></Bin></Bins>",
        found=particle,
    )


def resolve_family_source(source: str | Path | Mapping[str, Any] | Family) -> Family:
    """The family meant by a name, a CaloChallenge binning XML file, a ``[family]`` table or a family.

    Raises:
        ConfigError: If there is no such family, or the file or table does not describe one.
    """
    if isinstance(source, Path) or (isinstance(source, str) and source.lower().endswith(".xml")):
        return family_from_binning(source)
    return resolve_family(source)
