"""What a finished class map is to those who read it, whatever file it is in."""

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from fcn_batch.pipeline.core.classes import Legend
from fcn_batch.pipeline.core.geometry import Size, Window
from fcn_batch.pipeline.core.georeference import GeoReference

Ids = NDArray[np.uint8]
"""Class ids, 255 where there is none."""


class ClassMap(Protocol):
    """A class map to read from, by several threads at once."""

    @property
    def size(self) -> Size:
        """Height and width."""

    @property
    def georeference(self) -> GeoReference:
        """Where it lies."""

    @property
    def block(self) -> tuple[int, int]:
        """Rows and columns of a storage block."""

    @property
    def legend(self) -> Legend | None:
        """Its classes, if it names them."""

    def read(self, window: Window) -> Ids:
        """Class ids of a window: (rows, cols), uint8, 255 where there is none."""


class DerivedMap:
    """A class map made of another one, with its size, place, storage blocks and classes unless a subclass differs."""

    def __init__(self, source: ClassMap) -> None:
        self.source = source
        self.size: Size = source.size
        self.georeference: GeoReference = source.georeference
        self.block: tuple[int, int] = source.block
        self.legend: Legend | None = source.legend

    def read(self, window: Window) -> Ids:
        """Class ids of a window: (rows, cols), uint8, 255 where there is none. Errors are those of the source."""
        return self.source.read(window)
