"""The families that come with calogen."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from ..errors import ConfigError, did_you_mean
from .conditions import Condition
from .family import Family
from .layers import CartesianLayer, CylindricalLayer


def _energy(low: float, high: float) -> Condition:
    return Condition(name="incident_energy", unit="MeV", low=low, high=high, scale="log")


def _rings(layers: Mapping[int, tuple[int, tuple[float, ...]]]) -> tuple[CylindricalLayer, ...]:
    return tuple(CylindricalLayer(index=i, n_alpha=n, r_edges=edges) for i, (n, edges) in layers.items())


def _challenge(name: str, description: str, layers: tuple[CylindricalLayer, ...], **laws: Any) -> Family:
    return Family(name=name, description=f"CaloChallenge data set {name}: {description}", layers=layers, **laws)


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
_REGULAR_2 = {i: (16, tuple(round(4.65 * k, 3) for k in range(10))) for i in range(45)}
_REGULAR_3 = {i: (50, tuple(round(2.325 * k, 3) for k in range(19))) for i in range(45)}
_CAMELS = (  # in the order of the columns of CAMELS' own params_*.txt
    Condition(name="Omega_m", low=0.1, high=0.5),
    Condition(name="sigma_8", low=0.6, high=1.0),
    *(Condition(name=name, low=0.25, high=4.0, scale="log") for name in ("A_SN1", "A_AGN1")),
    *(Condition(name=name, low=0.5, high=2.0, scale="log") for name in ("A_SN2", "A_AGN2")),
)
FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        Family(
            name="calogan",
            description="CaloGAN's three-layer lead / liquid-argon calorimeter (arXiv:1705.02355); "
            "deposits of absorber and active material summed",
            conditions=(_energy(1e3, 100e3),),
            layers=(
                CartesianLayer(shape=(3, 96), size=(480, 480)),
                CartesianLayer(shape=(12, 12), size=(480, 480)),
                CartesianLayer(shape=(12, 6), size=(480, 480)),
            ),
            threshold=0.0,  # the simulation records every deposit; 0.3 % of the cells hold less than 15 keV
            symmetries=("mirror-x", "mirror-y"),
            conserves_energy=True,
            max_response=1.01,
        ),
        _challenge(
            "1-photons",
            "photons in the ATLAS calorimeter, 368 voxels",
            _rings(_PHOTONS),
            conditions=(_energy(256, 4_194_304),),
            threshold=1.0,
        ),
        _challenge(
            "1-pions",
            "charged pions in the ATLAS calorimeter, 533 voxels",
            _rings(_PIONS),
            conditions=(_energy(256, 4_194_304),),
            threshold=1.0,
        ),
        _challenge(
            "2",
            "electrons in a silicon-tungsten cylinder, 45 x 16 x 9 voxels",
            _rings(_REGULAR_2),
            conditions=(_energy(1e3, 1e6),),
            threshold=0.01515,
        ),
        _challenge(
            "3",
            "electrons in a silicon-tungsten cylinder, 45 x 50 x 18 voxels",
            _rings(_REGULAR_3),
            conditions=(_energy(1e3, 1e6),),
            threshold=0.01515,
        ),
        Family(
            name="nbody-64",
            kind="map",
            description="Projected N-body density, 64 x 64 pixels of 1 Mpc/h, 8 Mpc/h deep, z = 0, periodic",
            unit="1+delta",
            conditions=(
                Condition(name="Omega_m", low=0.1, high=0.5),
                Condition(name="sigma_8", low=0.6, high=1.0),
            ),
            pixels=(64, 64),
            box_size=64.0,
            depth=8.0,
            symmetries=("mirror-x", "mirror-y", "roll", "turn"),
        ),
        Family(
            name="camels",
            kind="map",
            description="CAMELS Multifield maps (arXiv:2109.10915): 25 Mpc/h wide, 5 Mpc/h deep, periodic",
            unit="1+delta",
            conditions=_CAMELS,
            pixels=(256, 256),
            box_size=25.0,
            depth=5.0,
            symmetries=("mirror-x", "mirror-y", "roll", "turn"),
        ),
    )
}


def resolve_family(source: str | Mapping[str, Any] | Family) -> Family:
    """The family a name or a ``[family]`` table stands for.

    Args:
        source: Name of a built-in family, a mapping with the fields of :class:`Family`, or a family.

    Raises:
        ConfigError: If the name is unknown or the table does not describe a family.
    """
    if isinstance(source, Family):
        return source
    if isinstance(source, str):
        if source in FAMILIES:
            return FAMILIES[source]
        raise ConfigError(f"unknown family '{source}'", found=source, hint=did_you_mean(source, FAMILIES))
    try:
        return Family.model_validate(source)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(["family", *(str(part) for part in first["loc"])])
        hint = did_you_mean(str(first["loc"][-1]), Family.model_fields) if first["type"] == "extra_forbidden" else None
        raise ConfigError(
            f"the family table is not valid: {first['msg']}", where=where, found=first.get("input"), hint=hint
        ) from None
