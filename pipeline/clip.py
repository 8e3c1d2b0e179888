"""A class map cut out along polygons."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rasterio import Affine
from rasterio.features import rasterize

from fcn_batch.pipeline.alignment import Grid
from fcn_batch.pipeline.area import Area
from fcn_batch.pipeline.classes import NODATA, Legend
from fcn_batch.pipeline.errors import InputError
from fcn_batch.pipeline.geometry import Size, Window
from fcn_batch.pipeline.georeference import GeoReference
from fcn_batch.pipeline.maps import ClassMap
from fcn_batch.pipeline.vectors import Polygons, Zones


class Clipped:
    """A class map without what lies outside of polygons: a pixel stays when its centre is in one of them.

    Many threads may read at once, where they may from the map itself.
    """

    def __init__(self, source: ClassMap, polygons: Path, layer: str | None = None) -> None:
        """InputError for polygons that cannot be read or placed, or that all lie outside of the map."""
        grid = Grid(source.size, source.georeference)
        self._source = source
        self._polygons = Zones.open(polygons, grid, layer=layer).polygons
        if not len(self._polygons.shapes):
            raise InputError(f"{polygons}: none of its polygons lies on the map, {grid}; clip it with others")
        self.size: Size = source.size
        self.georeference: GeoReference = source.georeference
        self.block: tuple[int, int] = source.block
        self.legend: Legend | None = source.legend

    def read(self, window: Window) -> NDArray[np.uint8]:
        """Class ids of a window: (rows, cols), uint8, 255 outside of the polygons; the map's errors."""
        inside = covered(self._polygons, self._polygons.near(window), window)
        if not inside.any():
            return np.full(inside.shape, NODATA, np.uint8)
        return np.where(inside, self._source.read(window), np.uint8(NODATA))


def inside(area: Area, window: Window) -> NDArray[np.bool_]:
    """Which pixels of a window belong to an area, (rows, cols)."""
    near = ({"type": "Polygon", "coordinates": polygon} for polygon in area.near(window))
    return _burned(list(near), window)


def covered(polygons: Polygons, chosen: NDArray[np.int64], window: Window) -> NDArray[np.bool_]:
    """Which pixels of a window have their centre in one of the polygons of those numbers, (rows, cols)."""
    return _burned([polygons.shapes[k] for k in chosen], window)


def _burned(shapes: list[Any], window: Window) -> NDArray[np.bool_]:
    size = (window.height, window.width)
    if not shapes:
        return np.zeros(size, np.bool_)
    burned = rasterize(shapes, out_shape=size, transform=Affine.translation(window.col, window.row), dtype="uint8")
    return np.asarray(burned, np.bool_)
