"""Files of Geant4's Par04 example and of MLFastSim (Zenodo 6082201): a dataset for each energy, named by it in GeV."""

from __future__ import annotations

import re
from collections.abc import Collection

import h5py
import numpy as np

from ...families import conversion
from .header import Header
from .layout import Column, Layout
from .native import Showers, Turned, family_of_voxels, turned


class Par04(Showers):
    """``1``, ``2``, ..., ``1024`` (n, R, phi, z) in MeV; the angle is in the file's name: ``SiW_angle_90.h5``."""

    written = ""
    energy_unit = "GeV"
    cell_unit = "MeV"
    datasets = "Par04: a dataset (n, R, phi, z) for each energy, named by it in GeV"

    def fits(self, names: Collection[str]) -> bool:
        """See :class:`.layout.Format`."""
        return bool(names) and all(re.fullmatch(r"\d+(\.\d+)?", name) for name in names)

    def read(self, header: Header) -> Layout:
        """See :class:`.layout.Format`."""
        names = sorted(header.found, key=float)
        axes = header.dataset(names[0], (None, None, None, None), kinds="iuf").shape[1:]
        lengths = [header.dataset(name, (None, *axes), kinds="iuf").shape[0] for name in names]
        where = f"{header.path}, dataset {names[0]}"
        family = header.family or header.like or family_of_voxels(where, int(np.prod(axes)))
        order, energy = turned(family, axes, where), family.require_energy()
        factor, cells, _ = header.energy_factor("cell_unit", self.cell_unit, family.unit)
        energies = np.repeat([float(name) for name in names], lengths)
        angle = re.search(r"angle_?(\d+(?:\.\d+)?)", header.path.stem)
        notes = [f"incident energies from the datasets' names, in GeV: {', '.join(names)}"]
        notes += [f"voxels {cells}"] if cells else []
        notes += (
            [f"the file's name says the angle {angle[1]} deg: no condition unless it is named as one"] if angle else []
        )

        def view(file: h5py.File) -> dict[str, object]:
            return {self.marker: Turned([file[name] for name in names], order), self.energies: energies}

        return Layout(
            "par04",
            family,
            len(energies),
            (self.marker,),
            factor,
            (Column(energy.name, self.energies, factor=conversion("GeV", energy.unit), said=True),),
            provenance={"angle": angle[1]} if angle else {},
            notes=tuple(notes),
            view=view,
        )
