"""CaloChallenge's binning files: calorimeters described in XML."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

from ..errors import ConfigError
from .builtin import FAMILIES, incident_energy
from .family import Family
from .layers import CylindricalLayer


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
    return Family(conditions=(incident_energy(256, 4_194_304),), layers=tuple(layers), **named)


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
