"""Physics parameters that samples are conditioned on: names, units, ranges, labels."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, model_serializer, model_validator

from ..errors import ConditionError, did_you_mean
from .units import is_energy, readable

LABEL = r"[^\s,:;=\[\]/\\]+"
"""What a label is written with, as a regular expression: anything but the signs that texts with labels are made of."""
_NAME = r"(?!\.{1,2}$)(?:(?!\s)[^,:;=\[\]/\\\x00-\x1f\x7f])+"  # of a dataset, a column and an option
Role = Literal["energy", "impact", "angle", "cosmology", "label", "other"]
"""What a condition means for the physics; ``energy`` is the incident energy."""
Behaviour = Literal["x", "y", "azimuth", "still"]
"""What a condition does when a shower is mirrored or turned: it is a coordinate, an azimuth, or stays as it is."""

_ROLES: dict[str, Role] = {
    "incident_energy": "energy",
    **dict.fromkeys(("impact_x", "impact_y"), "impact"),
    **dict.fromkeys(("theta", "phi", "angle"), "angle"),
    **dict.fromkeys(("Omega_m", "sigma_8", "A_SN1", "A_SN2", "A_AGN1", "A_AGN2"), "cosmology"),
}  # of conditions whose tables do not say one: files written before there were roles
_AXIS = {"impact_x": "x", "impact_y": "y", "theta": "theta", "phi": "phi"}
_AXIS_UNITS = {"impact": {"mm": 1.0}, "angle": {"rad": 1.0, "deg": math.pi / 180}}
_POSITIVE = ("Omega_m", "sigma_8")  # no universe is without matter, or smooth
_BEHAVIOUR: dict[str, Behaviour] = {"impact_x": "x", "impact_y": "y", "phi": "azimuth", "theta": "still"}
_FULL_TURN = {"deg": 360.0, "rad": 2 * math.pi}
_SYMBOLS = {
    "Omega_m": r"$\Omega_m$", "sigma_8": r"$\sigma_8$", "impact_x": r"$x_\mathrm{impact}$",
    "impact_y": r"$y_\mathrm{impact}$", "theta": r"$\theta$", "phi": r"$\phi$",
}  # fmt: skip


class Frozen(BaseModel):
    """A table of a family: fields that do not change, and no others."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Condition(Frozen):
    """A physics parameter that samples are conditioned on.

    Attributes:
        name: The name by which data files, command line and Python match it.
        role: What it means for the physics; of a table without one it follows from labels or name.
        unit: Its unit in shards and in Python (``MeV`` for energies), empty when dimensionless.
        low: Lower end of the usual range, in ``unit``.
        high: Upper end of the usual range, in ``unit``.
        scale: ``log`` if the physics goes with its logarithm; decides network scaling and analysis bins.
        labels: Of a condition that is one of several names (the particle), these names; it is stored as their number,
            0, 1, ..., and low and high follow. People write the names.
    """

    name: str
    role: Role = "other"
    unit: str = ""
    low: float
    high: float
    scale: Literal["linear", "log"] = "linear"
    labels: tuple[str, ...] = ()

    @classmethod
    def labelled(cls, name: str, labels: Sequence[str]) -> Condition:
        """A condition that is one of some names."""
        return cls(name=name, low=0, high=len(labels) - 1, labels=tuple(labels))

    @model_validator(mode="before")
    @classmethod
    def _completed(cls, given: Any) -> Any:
        if not isinstance(given, Mapping):
            return given
        labels = given.get("labels")
        if isinstance(labels, list | tuple) and labels:
            return {"low": 0, "high": len(labels) - 1, "role": "label", **given}
        return {"role": _ROLES.get(str(given.get("name")), "other"), **given}

    @model_serializer(mode="wrap")
    def _without_labels(self, handler: Any) -> dict[str, Any]:
        found: dict[str, Any] = handler(self)  # files of conditions without labels stay as they always were
        return found if self.labels else {key: value for key, value in found.items() if key != "labels"}

    @model_validator(mode="after")
    def _consistent(self) -> Condition:
        if not re.fullmatch(_NAME, self.name):
            raise ValueError(f"{self.name!r} cannot be the name of a condition: no spaces, and none of , : ; = [ ] /")
        if bool(self.labels) != (self.role == "label"):
            raise ValueError(f"condition '{self.name}': labels and the role 'label' come together, got '{self.role}'")
        if self.labels:
            wrong = next((label for label in self.labels if not re.fullmatch(LABEL, label)), None)
            if wrong is not None:
                rule = "no spaces, and none of , : ; = [ ] /"
                raise ValueError(f"condition '{self.name}': '{wrong}' is not a label: {rule}")
            if len(set(self.labels)) < max(2, len(self.labels)):
                raise ValueError(f"condition '{self.name}': at least two labels, all different, got {self.labels}")
            if self.unit or self.scale == "log" or (self.low, self.high) != (0, len(self.labels) - 1):
                raise ValueError(f"condition '{self.name}': labels have no unit, no scale and no range")
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise ValueError(f"condition '{self.name}': low must be below high, got {self.low} and {self.high}")
        if self.scale == "log" and self.low <= 0:
            raise ValueError(f"condition '{self.name}': a logarithmic scale needs low > 0, got {self.low}")
        return self

    @property
    def of_axis(self) -> tuple[str, float] | None:
        """Which number of a particle's axis it is, and one of its unit in mm or rad; none if it is none of them.

        The axis crosses depth z at (x, y) + z tan(theta) (cos phi, sin phi), depth 0 being the plane of impact points.
        """
        factor = _AXIS_UNITS.get(self.role, {}).get(self.unit)
        return None if factor is None or self.name not in _AXIS else (_AXIS[self.name], factor)

    def possible(self, values: NDArray[np.floating]) -> NDArray[np.bool_]:
        """Which values (N,), in ``unit`` or numbers of labels, are possible, trained with or not."""
        if self.labels:
            return np.isin(values, np.arange(len(self.labels)))
        return np.asarray((np.abs(values) <= self._largest) & ((values > 0) | (not self._positive)))

    @property
    def domain(self) -> str:
        """The possible values, for messages."""
        if self.labels:
            return ", ".join(f"{number} ({label})" for number, label in enumerate(self.labels))
        most = f"{self._largest:g} {self.unit}".rstrip()
        return f"finite values above 0, at most {most}" if self._positive else f"finite values from -{most} to {most}"

    @property
    def _largest(self) -> float:  # far beyond the usual: a damaged file or a wrong unit; squares fit single precision
        return min(1000 * max(abs(self.low), abs(self.high)), 1e18)

    @property
    def _positive(self) -> bool:
        return self.scale == "log" or is_energy(self.unit) or self.name in _POSITIVE

    @property
    def behaviour(self) -> Behaviour | None:
        """How it goes with mirror images and turns of a shower; None of impacts and angles whose names do not say."""
        if self.role not in ("impact", "angle"):
            return "still"
        found = _BEHAVIOUR.get(self.name)
        return None if found == "azimuth" and self.unit not in _FULL_TURN else found

    @property
    def full_turn(self) -> float:
        """A full turn in the unit of an angle; 0 of everything else."""
        return _FULL_TURN.get(self.unit, 0.0)

    def shown(self, largest: float) -> tuple[float, str]:
        """Factor and unit in which values up to ``largest`` (in ``unit``) read best."""
        return readable(self.unit, largest)

    @property
    def axis(self) -> tuple[float, str]:
        """Factor and label (mathtext) of an axis of this condition; energies in GeV."""
        factor, unit = readable(self.unit, math.inf)
        symbol = r"$E_\mathrm{inc}$" if self.role == "energy" else _SYMBOLS.get(self.name, self.name)
        return factor, f"{symbol} [{unit}]" if unit else symbol

    def code(self, label: str) -> float:
        """The number of a label.

        Raises:
            ConditionError: If there is no such label.
        """
        if label not in self.labels:
            raise ConditionError(
                f"'{label}' is not a label of '{self.name}'",
                expected=", ".join(self.labels) or "a number: it has no labels",
                found=label,
                hint=did_you_mean(label, self.labels),
            )
        return float(self.labels.index(label))

    def covered(self, low: float, high: float) -> tuple[float, float]:
        """The range that data reaching from ``low`` to ``high`` cover: the usual one where they come within 1 % of it.

        Random data never reach the ends they were drawn between.
        """
        ends = np.array([self.low, self.high, low, high])
        if self.scale == "log" and low > 0:
            ends = np.log(ends)
        near = abs(ends[:2] - ends[2:]) <= 0.01 * (ends[1] - ends[0])
        return (self.low if near[0] else low), (self.high if near[1] else high)
