"""The families that come with calogen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .conditions import Condition
from .family import Family
from .layers import CartesianLayer, CylindricalLayer
from .units import DENSITY


def incident_energy(low: float, high: float) -> Condition:
    """The condition of a shower's incident energy, usually from ``low`` to ``high`` MeV."""
    return Condition(name="incident_energy", unit="MeV", low=low, high=high, scale="log")


def _challenge(
    name: str,
    about: str,
    rings: Mapping[int, tuple[int, tuple[float, ...]]],
    energies: tuple[float, float],
    threshold: float,
    depths: Sequence[tuple[float, float]] = (),
) -> Family:
    """A data set of the CaloChallenge: layers (sectors, edges of rings in mm) by number, energies in MeV."""
    family = Family(
        name=name,
        description=f"CaloChallenge data set {name}: {about}",
        conditions=(incident_energy(*energies),),
        layers=tuple(CylindricalLayer(index=i, n_alpha=n, r_edges=edges) for i, (n, edges) in rings.items()),
        threshold=threshold,
    )
    return family.with_depths(depths) if depths else family


# Edges in mm, from the binning files of the CaloChallenge (arXiv:2410.21611).
_PHOTONS = {
    0: (1, (0, 5, 10, 30, 50, 100, 200, 400, 600)),
    1: (10, (0, 2, 4, 6, 8, 10, 12, 15, 20, 30, 40, 50, 70, 90, 120, 150, 200)),
    2: (10, (0, 2, 5, 10, 15, 20, 25, 30, 40, 50, 60, 80, 100, 130, 160, 200, 250, 300, 350, 400)),
    3: (1, (0, 50, 100, 200, 400, 600)),
    12: (1, (0, 100, 200, 400, 1000, 2000)),
}  # fmt: skip
_PIONS = {
    0: (1, (0, 5, 10, 30, 50, 100, 200, 400, 600)),
    1: (10, (0, 1, 4, 7, 10, 15, 30, 50, 90, 150, 200)),
    2: (10, (0, 5, 10, 20, 30, 50, 80, 130, 200, 300, 400)),
    3: (1, (0, 50, 100, 200, 400, 600)),
    12: (10, (0, 10, 20, 30, 50, 80, 100, 130, 160, 200, 250, 300, 350, 400, 1000, 2000)),
    13: (10, (0, 10, 20, 30, 50, 80, 100, 130, 160, 200, 250, 300, 350, 400, 600, 1000, 2000)),
    14: (1, (0, 50, 100, 150, 200, 250, 300, 400, 600, 1000, 2000)),
}  # fmt: skip
_ATLAS = (256, 4_194_304)
_REGULAR_2 = {i: (16, tuple(round(4.65 * k, 3) for k in range(10))) for i in range(45)}
_REGULAR_3 = {i: (50, tuple(round(2.325 * k, 3) for k in range(19))) for i in range(45)}
_PLATES = [(round(3.4 * k, 3), round(3.4 * (k + 1), 3)) for k in range(45)]  # two of 1.4 mm W + 0.3 mm Si a layer
_SILICON = "electrons in a silicon-tungsten cylinder"
_COSMOLOGY = (Condition(name="Omega_m", low=0.1, high=0.5), Condition(name="sigma_8", low=0.6, high=1.0))
_CAMELS = (  # in the order of the columns of CAMELS' own params_*.txt
    *_COSMOLOGY,
    *(Condition(name=name, low=0.25, high=4.0, scale="log") for name in ("A_SN1", "A_AGN1")),
    *(Condition(name=name, low=0.5, high=2.0, scale="log") for name in ("A_SN2", "A_AGN2")),
)
_PROJECTED: dict[str, Any] = {"kind": "map", "unit": DENSITY, "symmetries": ("mirror-x", "mirror-y", "roll", "turn")}
FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        Family(
            name="calogan",
            description="CaloGAN's three-layer lead / liquid-argon calorimeter (arXiv:1705.02355); "
            "deposits of absorber and active material summed",
            conditions=(incident_energy(1e3, 100e3),),
            layers=tuple(  # in CaloGAN's coordinates they meet at z = -150 mm and 197 mm
                CartesianLayer(shape=shape, size=(480, 480), z=z)
                for shape, z in (((3, 96), (0, 90)), ((12, 12), (90, 437)), ((12, 6), (437, 480)))
            ),
            threshold=0.0,  # the simulation records every deposit; 0.3 % of the cells hold less than 15 keV
            symmetries=("mirror-x", "mirror-y"),
            conserves_energy=True,
            max_response=1.01,
        ),
        _challenge("1-photons", "photons in the ATLAS calorimeter, 368 voxels", _PHOTONS, _ATLAS, threshold=1.0),
        _challenge("1-pions", "charged pions in the ATLAS calorimeter, 533 voxels", _PIONS, _ATLAS, threshold=1.0),
        _challenge("2", f"{_SILICON}, 45 x 16 x 9 voxels", _REGULAR_2, (1e3, 1e6), 0.01515, _PLATES),
        _challenge("3", f"{_SILICON}, 45 x 50 x 18 voxels", _REGULAR_3, (1e3, 1e6), 0.01515, _PLATES),
        Family(
            name="nbody-64",
            description="Projected N-body density, 64 x 64 pixels of 1 Mpc/h, 8 Mpc/h deep, z = 0, periodic",
            conditions=_COSMOLOGY,
            pixels=(64, 64),
            box_size=64.0,
            depth=8.0,
            **_PROJECTED,
        ),
        Family(
            name="camels",
            description="CAMELS Multifield maps (arXiv:2109.10915): 25 Mpc/h wide, 5 Mpc/h deep, periodic",
            conditions=_CAMELS,
            pixels=(256, 256),
            box_size=25.0,
            depth=5.0,
            **_PROJECTED,
        ),
    )
}
