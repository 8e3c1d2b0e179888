"""A class map cut out along polygons."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rasterio import Affine
from rasterio.features import rasterize, shapes

from fcn_batch.pipeline.core.area import Area
from fcn_batch.pipeline.core.classes import NODATA, Legend
from fcn_batch.pipeline.core.errors import InputError
from fcn_batch.pipeline.core.geometry import Size, Window
from fcn_batch.pipeline.core.georeference import GeoReference
from fcn_batch.pipeline.core.maps import ClassMap
from fcn_batch.pipeline.raster.alignment import Grid
from fcn_batch.pipeline.raster.vectors import Polygons, Zones


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
            raise InputError(
                "polygons-elsewhere",
                "{path}: none of its polygons lies on the map, {raster}; clip it with others",
                path=polygons,
                raster=grid,
            )
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


def within(areas: Sequence[Area], window: Window) -> NDArray[np.bool_] | None:
    """Which pixels of a window belong to all of the areas, (rows, cols); None when there is no area."""
    masks = [inside(area, window) for area in areas]
    return np.logical_and.reduce(masks) if masks else None


def touched(areas: Sequence[Area], size: Size, side: int) -> NDArray[np.bool_]:
    """Which squares of `side` pixels of a raster all of the areas touch: (rows, cols) of squares."""
    shape = (-(-size.height // side), -(-size.width // side))
    found = np.ones(shape, np.bool_)
    for area in areas:
        polygons = [{"type": "Polygon", "coordinates": polygon} for polygon in area.polygons]
        options = {"out_shape": shape, "transform": Affine.scale(side), "dtype": "uint8"}
        found &= np.asarray(rasterize(polygons, all_touched=True, **options), np.bool_)
    return found


def outlined(mask: NDArray[np.bool_], step: int, points: int) -> Area:
    """The outlines of a mask each pixel of which stands for `step` x `step`, as an area in the latter.

    Where they have more than so many points, a coarser mask is outlined that holds all of this one.
    """
    while True:
        found = shapes(mask.astype(np.uint8), mask=mask, transform=Affine.scale(step))
        polygons = tuple(shape["coordinates"] for shape, _ in found)
        if sum(len(ring) for polygon in polygons for ring in polygon) <= points:
            return Area(polygons=polygons)
        even = np.pad(mask, [(0, side % 2) for side in mask.shape])
        mask, step = even[::2, ::2] | even[1::2, ::2] | even[::2, 1::2] | even[1::2, 1::2], 2 * step


def covered(polygons: Polygons, chosen: NDArray[np.int64], window: Window) -> NDArray[np.bool_]:
    """Which pixels of a window have their centre in one of the polygons of those numbers, (rows, cols)."""
    return _burned([polygons.shapes[k] for k in chosen], window)


def _burned(polygons: list[Any], window: Window) -> NDArray[np.bool_]:
    size = (window.height, window.width)
    if not polygons:
        return np.zeros(size, np.bool_)
    burned = rasterize(polygons, out_shape=size, transform=Affine.translation(window.col, window.row), dtype="uint8")
    return np.asarray(burned, np.bool_)
