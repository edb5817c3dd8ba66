"""What generators of maps of any size share."""

from __future__ import annotations

from abc import abstractmethod

from ...families import Family
from ..contract import Generator


class MapGenerator(Generator):
    """A generator of maps, which may be larger than those it was trained on."""

    @abstractmethod
    def resized(self, size: int) -> MapGenerator:
        """A view of this generator that makes maps of ``size`` pixels a side, with the same weights and pixels.

        Raises:
            ConfigError: If the size does not fit.
        """

    def _grown(self, size: int) -> Family:
        """The family of larger maps, the pixels of the same size."""
        box = self.family.box_size * size / self.family.sample_shape[0]
        return Family.model_validate({**self.family.model_dump(), "pixels": (size, size), "box_size": box})
