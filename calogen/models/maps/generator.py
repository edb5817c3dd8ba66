"""What generators of maps of any size share."""

from __future__ import annotations

import re
from abc import abstractmethod

from ...families import Family
from ..contract import Generator


class MapGenerator(Generator):
    """A generator of maps, which may be larger than those it was trained on.

    Attributes:
        size: Pixels a side of maps where no other size is asked for; none: as many as those trained on have.
    """

    size: int | None = None

    def usual(self) -> MapGenerator:
        """This generator, of the size that it makes where no other is asked for."""
        return self if self.size in (None, self.family.sample_shape[0]) else self.resized(self.size)

    @abstractmethod
    def resized(self, size: int) -> MapGenerator:
        """A view of this generator that makes maps of ``size`` pixels a side, with the same weights and pixels.

        Raises:
            ConfigError: If the size does not fit.
        """

    def _grown(self, size: int) -> Family:
        """The family of larger maps, the pixels of the same size."""
        height, width = self.family.sample_shape
        known = self.family.model_dump()
        named = {
            "name": re.sub(rf"\b{height}$", str(size), self.family.name),  # nbody-128, say
            "description": self.family.description.replace(f"{height} x {width} pixels", f"{size} x {size} pixels"),
        }
        box = self.family.box_size * size / height
        return Family.model_validate({**known, **named, "pixels": (size, size), "box_size": box})
