"""Where the pixels of one raster lie among those of another: the pixel under each pixel's centre.

Everything is worked out from a pixel's own row and column, never from where a window begins, so the pixels of a
window do not depend on the window. A centre that lies on the border of two pixels belongs to the next one, as in
row = floor((i + 0.5) * rows / new_rows), whatever way rounding went.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fcn_batch.pipeline.core.classes import NODATA, Legend
from fcn_batch.pipeline.core.geometry import Size, Window
from fcn_batch.pipeline.core.georeference import GeoReference
from fcn_batch.pipeline.core.maps import ClassMap, Ids
from fcn_batch.pipeline.raster.crs import Change, change_of_system, system_name

_ON_BORDER = 1e-6  # pixels: what is nearer to a border lies on it, and differs by rounding only
_SAMPLES = 65  # points along each side of a raster, for its outline in another system
_BLOCK = 512  # rows and columns that are read at once of a map on another grid

Floats = NDArray[np.float64]
Indices = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Grid:
    """The pixels of a raster, and where they lie."""

    size: Size
    """Height and width."""
    georeference: GeoReference
    """Reference system and transform."""

    def __str__(self) -> str:
        x, y = self.to_plane(*self.outline())
        where = f"x {x.min():.10g} to {x.max():.10g}, y {y.min():.10g} to {y.max():.10g}"
        return f"{self.size.height}x{self.size.width} pixels, {where} ({system_name(self.georeference)})"

    def outline(self) -> tuple[Floats, Floats]:
        """Columns (1, 65) and rows (65, 1) of points all over the raster, its four borders included."""
        steps = np.arange(_SAMPLES) / (_SAMPLES - 1)
        return steps[None, :] * self.size.width, steps[:, None] * self.size.height

    def to_plane(self, col: Floats, row: Floats) -> tuple[Floats, Floats]:
        """Coordinates x and y of positions in pixels, which may broadcast."""
        a, b, c, d, e, f = self.georeference.transform
        return a * col + b * row + c, d * col + e * row + f

    def to_pixels(self, x: Floats, y: Floats) -> tuple[Floats, Floats]:
        """Columns and rows, with fractions, of positions in the plane."""
        a, b, c, d, e, f = self.georeference.transform
        x, y, det = x - c, y - f, a * e - b * d
        return (e * x - b * y) / det, (a * y - d * x) / det


@dataclass(frozen=True, slots=True)
class Alignment:
    """Which pixel of `source` lies under the centre of each pixel of `target`."""

    source: Grid
    target: Grid
    change: Change | None
    """From the target's reference system to the source's; None when it is the same."""

    @classmethod
    def between(cls, source: Grid, target: Grid) -> "Alignment":
        """By their reference systems; a grid without one counts as lying in the other's."""
        return cls(source, target, change_of_system(target.georeference, source.georeference))

    def pixels(self, window: Window) -> tuple[Indices, Indices]:
        """Row and column of the source under each pixel of a window of the target; -1 where there is none.

        Two arrays that broadcast to (rows, cols): (rows, 1) and (1, cols) where the axes of both run alike.
        """
        row = np.arange(window.row, window.stop_row, dtype=np.float64)[:, None] + 0.5
        col = np.arange(window.col, window.stop_col, dtype=np.float64)[None, :] + 0.5
        across, down = self._positions(col, row)
        rows, cols = _floor(down, self.source.size.height), _floor(across, self.source.size.width)
        if rows.shape == cols.shape:
            rows[cols < 0] = cols[rows < 0] = -1  # so that nothing is read for half a place
        return rows, cols

    def overlaps(self) -> bool:
        """False when the two rasters certainly have no pixel in common."""
        back = change_of_system(self.source.georeference, self.target.georeference)
        reverse = Alignment(self.target, self.source, back)
        return self._meets() or reverse._meets()

    def _positions(self, col: Floats, row: Floats) -> tuple[Floats, Floats]:
        """Columns and rows of the source, with fractions, of positions in the target's pixels."""
        if self.change is not None:
            x, y = np.broadcast_arrays(*self.target.to_plane(col, row))
            return self.source.to_pixels(*self.change(x, y))
        a, b, c, d, e, f = self.target.georeference.transform
        k, m, n, o, p, q = self.source.georeference.transform
        # one affine step from pixels to pixels, from the distance of the origins: large coordinates cancel
        steps, det = ((a, d), (b, e), (c - n, f - q)), k * p - m * o
        across = [(p * x - m * y) / det for x, y in steps]
        down = [(k * y - o * x) / det for x, y in steps]
        return _affine(col, row, across), _affine(col, row, down)

    def _meets(self) -> bool:
        """True when the box around the target, in pixels of the source, has a part in the source."""
        positions = self._positions(*self.target.outline())
        across, down = (np.asarray(values) for values in np.broadcast_arrays(*positions))
        known = np.isfinite(across) & np.isfinite(down)
        if not known.any():
            return False
        across, down, size = across[known], down[known], self.source.size
        return bool(across.max() > 0 and across.min() < size.width and down.max() > 0 and down.min() < size.height)


def _affine(col: Floats, row: Floats, factors: list[float]) -> Floats:
    """The sum of columns and rows times their factors and of the last one; only what counts is broadcast."""
    terms = [values * factor for values, factor in zip((col, row), factors, strict=False) if factor]
    return sum(terms, np.zeros((1, 1))) + factors[2]


def _floor(position: Floats, stop: int) -> Indices:
    """The pixel at a position, -1 outside 0 to `stop` or where the position is infinite."""
    pixel = np.floor(position + _ON_BORDER)
    return np.where((pixel >= 0) & (pixel < stop), pixel, -1).astype(np.int64)


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
