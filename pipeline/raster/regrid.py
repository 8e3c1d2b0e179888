"""A class map on another grid: each pixel has the class of the pixel under its centre."""

import numpy as np

from fcn_batch.pipeline.core.classes import NODATA, Legend
from fcn_batch.pipeline.core.geometry import Size, Window
from fcn_batch.pipeline.core.georeference import GeoReference
from fcn_batch.pipeline.core.maps import ClassMap, Ids
from fcn_batch.pipeline.raster.alignment import Alignment, Grid

_BLOCK = 512


class Regridded:
    """The classes of `source` on `grid`. Many threads may read at once, where they may from the map itself."""

    def __init__(self, source: ClassMap, grid: Grid) -> None:
        self._source = source
        self._alignment = Alignment.between(Grid(source.size, source.georeference), grid)
        self.size: Size = grid.size
        self.georeference: GeoReference = grid.georeference
        self.block = (_BLOCK, _BLOCK)
        self.legend: Legend | None = source.legend

    def read(self, window: Window) -> Ids:
        """Class ids of a window: (rows, cols), uint8, 255 where there is none; the map's errors."""
        rows, cols = self._alignment.pixels(window)
        inside = (rows >= 0) & (cols >= 0)
        found = np.full((window.height, window.width), NODATA, np.uint8)
        if not inside.any():
            return found
        top, left = int(rows[rows >= 0].min()), int(cols[cols >= 0].min())
        seen = Window(top, left, int(rows.max()) - top + 1, int(cols.max()) - left + 1)
        ids = self._source.read(seen)
        picked = ids[np.where(inside, rows - top, 0), np.where(inside, cols - left, 0)]
        return np.where(inside, picked, np.uint8(NODATA))
