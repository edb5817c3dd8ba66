"""Units of energy: the only table of them, and what reads well on an axis."""

from __future__ import annotations

from ..errors import ConditionError, did_you_mean

ENERGY_UNITS = {"eV": 1e-6, "keV": 1e-3, "MeV": 1.0, "GeV": 1e3, "TeV": 1e6}
"""Units of energy that files and requests may use, in MeV."""
DENSITY = "1+delta"
"""Of maps: the density over the mean density of their box."""


def is_energy(unit: str) -> bool:
    """Whether a unit is one of energy."""
    return unit in ENERGY_UNITS


def conversion(unit: str, wanted: str, *, name: str = "", where: object = None, example: str | None = None) -> float:
    """What a number in ``unit`` is multiplied by to be in ``wanted``.

    Args:
        unit: A unit of energy, or what stands in its place.
        wanted: The unit it shall be in; empty where numbers have none.
        name: Whose unit it is, for the message.
        where: Where it stands, for the message.
        example: How it is written there.

    Raises:
        ConditionError: If ``wanted`` is a unit of energy and ``unit`` is not, or they are different other units.
    """
    if is_energy(wanted):
        if not is_energy(unit):
            raise ConditionError(
                f"'{unit}' is not a unit of energy" if unit else f"the unit of {name or 'an energy'} is missing",
                where=where,
                expected=f"one of {', '.join(ENERGY_UNITS)}" + (f", as in {example}" if example else ""),
                found=unit or None,
                hint=did_you_mean(unit, ENERGY_UNITS) if unit else None,
            )
        return ENERGY_UNITS[unit] / ENERGY_UNITS[wanted]
    if unit not in ("", wanted):
        what = f"'{unit}' is not the unit of {name or 'these numbers'}"
        raise ConditionError(what, where=where, expected=wanted or "no unit", found=unit)
    return 1.0


def in_mev(unit: str) -> float:
    """One of a unit of energy in MeV; 1 for any other unit."""
    return ENERGY_UNITS.get(unit, 1.0)


def readable(unit: str, largest: float) -> tuple[float, str]:
    """Factor and unit in which numbers up to ``largest`` read best: MeV become GeV from 1000 on."""
    return (1e-3, "GeV") if unit == "MeV" and largest >= 1000 else (1.0, unit)
