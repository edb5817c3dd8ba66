"""Showers in one dataset, as in CaloChallenge's files (arXiv:2410.21611) and in calogen's own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from numpy.typing import NDArray

from ...errors import ShardError
from ...families import FAMILIES, Family
from ..samples import Samples
from .layout import Header, Layout
from .showers import ShowerFormat


class Showers(ShowerFormat):
    """``showers`` (N, V) and ``incident_energies`` (N, 1): CaloChallenge's in MeV, calogen's in the family's units."""

    written = "native"
    marker = "showers"
    energies = "incident_energies"
    datasets = "calogen or CaloChallenge: 'showers' and 'incident_energies'"

    def read(self, header: Header) -> Layout:
        """See :class:`.layout.Format`."""
        length, voxels = header.dataset(self.marker, (None, None)).shape
        where = f"{header.path}, dataset {self.marker}"
        family = header.family or _family_of_voxels(where, voxels)
        if family.kind != self.kind or voxels != family.voxels:
            raise ShardError(
                "the number of voxels is not the family's",
                where=where,
                expected=f"{family.voxels} voxels (family '{family.name}')",
                found=f"{voxels} voxels",
            )
        name = "calogen" if header.native else "calochallenge"
        conditional = not header.native or bool(header.names("condition_names"))
        layout = self.layout(header, name, family, length, (self.marker,), conditional=conditional)
        header.require_units(family)
        return layout

    def columns(self, samples: Samples) -> Iterator[tuple[str, NDArray[Any]]]:
        """See :class:`.layout.Format`."""
        yield self.marker, samples.values
        yield from super().columns(samples)


def _family_of_voxels(where: str, voxels: int) -> Family:
    """The only built-in family with so many voxels."""
    known = [family for family in FAMILIES.values() if family.kind == Showers.kind]
    fits = [family for family in known if family.voxels == voxels]
    if len(fits) == 1:
        return fits[0]
    raise ShardError(
        "no built-in family has showers of this size",
        where=where,
        expected=f"one of {', '.join(f'{family.voxels} ({family.name})' for family in known)}",
        found=f"{voxels} voxels",
        hint="name the family: a binning XML file or a [family] table",
    )
