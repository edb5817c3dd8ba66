"""What an observable is: a number measured on one sample, with how it is shown."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calogen.families import readable

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Observable:
    """A number measured on one sample.

    Attributes:
        name: Its name in metrics, ``quantity`` or ``quantity_LAYER`` with the detector's own layer number.
        label: What figures print, in matplotlib's mathtext.
        unit: Its unit, empty when dimensionless.
        measure: Gives it for N samples, (N,) float64, from what observables of their kind share
            (:class:`~calogen.analysis.observables.showers.ShowerSums`,
            :class:`~calogen.analysis.observables.maps.MapSums`).
        signed: Whether values of both signs are normal, so that a relative difference of means makes no sense.
        log: Whether it spreads over decades when the incident energy does, so that bins are logarithmic then.
        resolution: Smallest difference that means something, in its unit, where that is more than its own rounding:
            a difference of large numbers knows only as much as these (:func:`calogen.families.varies`).
        step: Distance between neighbouring values of a quantity that counts, 0 for a continuous one.
        layer: The detector's number of the layer concerned, if any.
        needs_energy: Whether it exists only where the incident energy is known.
        wave_number: Of a value of the power spectrum, in h/Mpc; else 0.
        about_axis: Whether it is measured about the shower's axis, from
            :class:`~calogen.analysis.observables.axis.AxisSums`.
        scored: Whether scores, classifiers and permutations use it; what was added after their numbers were published
            does not change them.
        figure: Which figure of observables shows it (``shower``: ``observables-shower``); empty for none.
    """

    name: str
    label: str
    unit: str = ""
    measure: Callable[[Any], Any] = field(default=np.asarray, repr=False, compare=False)
    signed: bool = False
    log: bool = False
    resolution: float = 0.0
    step: float = 0.0
    layer: int | None = None
    needs_energy: bool = False
    wave_number: float = 0.0
    about_axis: bool = False
    scored: bool = True
    figure: str = ""

    @property
    def quantity(self) -> str:
        """The name without the layer."""
        return self.name if self.layer is None else self.name.removesuffix(f"_{self.layer}")

    @property
    def axis_label(self) -> str:
        """The label with its unit in brackets."""
        return self.axis()[1]

    def axis(self, largest: float = 0.0) -> tuple[float, str]:
        """Factor and label of an axis on which values up to ``largest`` read well: large energies in GeV."""
        factor, unit = readable(self.unit, largest)
        return factor, f"{self.label} [{unit}]" if unit else self.label
