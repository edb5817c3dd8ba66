"""The family that a name, a file or a table stands for; CaloChallenge's binning files describe calorimeters in XML."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from pydantic import ValidationError

from ..errors import ConfigError, did_you_mean
from ..storage import read_bounded, read_toml
from .builtin import FAMILIES, incident_energy
from .family import Family
from .layers import CylindricalLayer


def resolve_family(source: str | Path | Mapping[str, Any] | Family) -> Family:
    """The family that a name, a file or a table stands for.

    Args:
        source: Name of a built-in family; a CaloChallenge or ATLAS binning file (``.xml``), of several particles and
            regions with those wanted: ``FILE.xml,particle=photon,region=20-25``; a ``.toml`` file with a table
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
    if match := re.fullmatch(r"(.+?\.xml)(?:,(.*))?", name, re.IGNORECASE):
        pairs = [fact.partition("=")[::2] for fact in (match[2] or "").split(",") if fact]
        if unknown := [key for key, value in pairs if key not in ("particle", "region") or not value]:
            expected = "FILE.xml,particle=NAME,region=LOW-HIGH"
            raise ConfigError("invalid choice of a binning", where=name, expected=expected, found=", ".join(unknown))
        return family_from_binning(match[1], **dict(pairs))
    if name.endswith(".toml"):
        found = read_toml(Path(name)).get("family", {})
        return FAMILIES[found] if isinstance(found, str) and found in FAMILIES else _from_table(found)
    raise ConfigError(f"unknown family '{name}'", found=name, hint=did_you_mean(name, FAMILIES))


def _from_table(table: object) -> Family:
    try:
        family = Family.model_validate(table)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(["family", *(str(part) for part in first["loc"])])
        hint = did_you_mean(str(first["loc"][-1]), Family.model_fields) if first["type"] == "extra_forbidden" else None
        raise ConfigError(
            f"the family table is not valid: {first['msg']}", where=where, found=first.get("input"), hint=hint
        ) from None
    known = FAMILIES.get(family.name)  # files written before layers had depths are those of the family of their name
    if known and known.depths and not family.depths and known.same_cells(family):
        return family.with_depths(known.depths)
    return family


def family_from_binning(path: str | Path, particle: str | None = None, region: str | None = None) -> Family:
    """The family a CaloChallenge or ATLAS binning XML file describes.

    Args:
        path: The XML file: ``Bin`` elements (one a particle, of ATLAS also one a region of pseudorapidity) with
            ``Layer id r_edges n_bin_alpha``; edges in mm. A layer with fewer than two edges is absent.
        particle: Name or PDG number of the ``Bin`` to use when there are several.
        region: Its ``etaMin-etaMax`` as they stand in the file, ``20-25``, or the value of another attribute.

    Returns:
        A calorimeter family named after the file. Where the layers are those of a built-in family, its condition range
        and laws hold too, except the read-out threshold, which no binning file gives (0).

    Raises:
        ConfigError: If the file is missing or is not a binning file.

    Source: CaloChallenge, arXiv:2410.21611.
    """
    path = Path(path)
    element = _particle_element(path, _parse_xml(path), particle, region)
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
    family = _from_table({"conditions": (incident_energy(256, 4_194_304),), "layers": tuple(layers), **named})
    known = next((known for known in FAMILIES.values() if known.same_cells(family)), None)
    return known.model_copy(update=named) if known else family


def _parse_xml(path: Path) -> ElementTree.Element:
    try:
        text = read_bounded(path)
    except OSError as error:
        raise ConfigError("the binning file cannot be read", where=path, found=error.strerror) from None
    signs = text.replace(b"\0", b"")  # as UTF-16 has between them
    if b"<!DOCTYPE" in signs or b"<!ENTITY" in signs:  # entities can blow up to any size
        raise ConfigError("a binning file declares no document type or entity", where=path)
    try:
        return ElementTree.fromstring(text)
    except (ElementTree.ParseError, LookupError, ValueError) as error:  # LookupError: of an encoding
        raise ConfigError("the binning file is not valid XML", where=path, found=str(error)) from None


def _particle_element(
    path: Path, root: ElementTree.Element, particle: str | None, region: str | None
) -> ElementTree.Element:
    bins = every = list(root.iter("Bin"))
    for wanted, known in ((particle, _particles), (region, _regions)):
        bins = [item for item in bins if wanted is None or wanted in known(item)]
    if len(bins) == 1:
        return bins[0]
    found = ", ".join(f"{key}={value}" for key, value in (("particle", particle), ("region", region)) if value)
    several = [
        f"particle={_particles(item)[0]}" + "".join(f",region={r}" for r in _regions(item)[:1]) for item in every
    ]
    raise ConfigError(
        "the binning file does not say which particle to use" if bins else "the binning file has no such particle",
        where=path,
        expected=f"one of {'; '.join(several)}" if several else "<Bins><Bin pid name><Layer .../></Bin></Bins>",
        found=found or None,
        hint=f"name it with the file: {path},{(several or ['particle=NAME'])[0]}",
    )


def _particles(element: ElementTree.Element) -> list[str]:
    return [str(value) for value in (element.get("name"), element.get("pid")) if value] or ["?"]


def _regions(element: ElementTree.Element) -> list[str]:
    ends = [element.get(name) for name in ("etaMin", "etaMax")]
    both = [f"{low}-{high}" for low, high in [ends] if low is not None and high is not None]
    return both + [value for name, value in element.attrib.items() if name.lower() in ("region", "eta", "etaregion")]
