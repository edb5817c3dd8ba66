"""CaloGAN's files (arXiv:1705.02355): a dataset for each layer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import ConfigError, ShardError
from ...families import FAMILIES, Family
from ..samples import Samples
from .header import Header
from .layout import Layout
from .native import Showers

_OVERFLOW = "overflow"  # energy beside the cells of each layer


class CaloGAN(Showers):
    """``layer_0`` (N, X, Y), ... in MeV, ``energy`` (N, 1) in GeV, ``overflow`` (N, L) in MeV."""

    written = "calogan"
    marker = "layer_0"
    energies = "energy"
    energy_unit = "GeV"
    cell_unit = "MeV"
    datasets = "CaloGAN: 'layer_0', 'layer_1', ... and 'energy'"

    def read(self, header: Header) -> Layout:
        """See :class:`.layout.Format`."""
        family = header.family or header.like or FAMILIES["calogan"]
        if family.kind != self.kind:
            expected = f"samples of family '{family.name}'"
            raise ShardError("the file holds showers", where=header.path, expected=expected)
        values, length = _datasets(family), None
        for name, layer in zip(values, family.layers, strict=True):
            length = header.dataset(name, (length, *layer.shape), kinds="iuf").shape[0]
        surplus = sorted(name for name in header.found if name.startswith("layer_") and name not in values)
        if surplus:
            raise ShardError(
                "the file has more layers than the family", where=header.path, expected=values, found=surplus
            )
        layout = self.layout(header, "calogan", family, int(length or 0), values, conditional=True)
        if _OVERFLOW not in header.found:
            return layout
        return layout.noted(f"{_OVERFLOW} (energy beside the cells) is not modelled and not read")

    def require(self, family: Family, conditions: Sequence[str]) -> None:
        """See :class:`.layout.Format`."""
        if 0 not in family.layer_numbers or not all(layer.rectangular for layer in family.layers):
            raise ConfigError(
                "CaloGAN's layout cannot hold these samples",
                where="`layout=calogan`",
                expected="layers 0, 1, ... of rectangular cells: of the built-in families, its own three layers only",
                found=f"family '{family.name}'",
            )
        if family.energy is None or family.energy.name not in conditions:
            raise ConfigError(
                "CaloGAN's layout needs incident energies", where="`layout=calogan`", found="unconditional samples"
            )

    def columns(self, samples: Samples) -> Iterator[tuple[str, NDArray[Any]]]:
        """See :class:`.layout.Format`."""
        family = samples.family
        for name, layer, cells in zip(_datasets(family), family.layers, family.layer_slices, strict=True):
            yield name, samples.values[:, cells].reshape(-1, *layer.shape)
        yield from self.condition_columns(samples)
        yield _OVERFLOW, np.zeros((len(samples), len(family.layers)), np.float32)

    def attributes(self, family: Family) -> dict[str, str]:
        """See :class:`.layout.Format`."""
        return {"energy_unit": self.energy_unit, "cell_unit": family.unit, _OVERFLOW: "not modelled: zeros"}


def _datasets(family: Family) -> tuple[str, ...]:
    return tuple(f"layer_{number}" for number in family.layer_numbers)
