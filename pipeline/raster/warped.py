"""A source of pixels on another grid: at another resolution, or in another reference system.

    the wanted grid is cut into blocks that never change          ... and each is always made in the same way,
    +-----+-----+-----+--                                             from the same pixels of the source:
    |     | win |dow  |                                                   footprint of the block + margin
    +-----+-----+-----+--                                                 -> GDAL's warper,
    |     |     |     |                                                      the scale told, not guessed by block
    +-----+-----+-----+--                                             a window is cut out of its blocks

so a pixel does not depend on the window that it is read in. (GDAL's bilinear kernel differs by one in some hundred of a
million values when only the origin of the array changes.)
"""

import math
from dataclasses import replace

import numpy as np

from fcn_batch.pipeline.core.errors import InputError
from fcn_batch.pipeline.core.geometry import Size, Window
from fcn_batch.pipeline.core.source import Pixels, RasterInfo, RasterSource, Resampling, check_read
from fcn_batch.pipeline.raster.alignment import Grid
from fcn_batch.pipeline.raster.crs import change_of_system
from fcn_batch.pipeline.raster.warping import Lies, Warp, averaged, interpolated

_BLOCKS = (16, 512)
"""Fewest and most rows and columns of a block."""
_SEEN = 4096
"""Rows and columns of the source that a block is made of, if it can be so."""
_ROUNDED = 1e-3
"""Pixels by which files round their corners."""
_SEVERAL = 1.5
"""Pixels of a source along one of the wanted grid, from which on they are averaged."""
_MOST_SOURCE_PIXELS = 2**28
"""That one block is made of."""
_DIGITS = 14
"""Of micrometres: the last ones of a float are those of its way through factors, not of what was asked for."""


class WarpedSource:
    """`source` on `grid`, its pixels averaged or interpolated. Pickles with it.

    A pixel is valid where more than half of the source's pixels that it is made of are, those by their share of it.
    """

    def __init__(self, source: RasterSource, grid: Grid, resampling: Resampling) -> None:
        self._source, self._grid, self._resampling = source, grid, resampling
        self._lies: Lies | None = None
        self._info: RasterInfo | None = None

    def __reduce__(self) -> tuple[type["WarpedSource"], tuple[RasterSource, Grid, Resampling]]:
        return WarpedSource, (self._source, self._grid, self._resampling)

    @property
    def info(self) -> RasterInfo:
        """As the source gives it, on the wanted grid; InputError where the two have nothing in common."""
        if self._info is None:
            self._info = self._on_grid(self._source.info)
        return self._info

    def _on_grid(self, before: RasterInfo) -> RasterInfo:
        scale = self._place.scale
        return replace(
            before,
            size=self._grid.size,
            georeference=self._grid.georeference,
            storage_block=(min(self._side, self._grid.size.height), min(self._side, self._grid.size.width)),
            has_mask=True,
            ground=before.ground and before.ground.coarser(*scale),
            microns=None if before.microns is None else float(f"{before.microns * scale[1]:.{_DIGITS}g}"),
            levels=(self._grid.size,),
            resampling=self._resampling,
        )

    def read(self, window: Window, bands: tuple[int, ...]) -> Pixels:
        """Values and mask of `window`; ValueError and the errors of the source."""
        check_read(self.info, window, bands)
        shape = (window.height, window.width)
        found = Pixels(np.zeros((len(bands), *shape), np.dtype(self._source.info.dtype)), np.zeros(shape, np.bool_))
        side = self._side
        for row in range(window.row // side * side, window.stop_row, side):
            for col in range(window.col // side * side, window.stop_col, side):
                block = Window(row, col, side, side).clipped(self._grid.size)
                pixels = self._block(block, bands)
                if pixels is None:
                    continue
                part = block.intersection(window)
                here, there = part.slices(window), part.slices(block)
                found.values[(slice(None), *here)] = pixels.values[(slice(None), *there)]
                found.valid[here] = pixels.valid[there]
        return found

    def close(self) -> None:
        """Close the source."""
        self._source.close()

    @property
    def _place(self) -> "Lies":
        if self._lies is None:
            self._lies = Lies(Grid(self._source.info.size, self._source.info.georeference), self._grid)
        return self._lies

    @property
    def _side(self) -> int:
        """Rows and columns of a block: a power of two, the less the coarser the grid."""
        fits: int = 1 << max(0, math.floor(math.log2(_SEEN / max(self._place.scale))))
        return min(max(fits, _BLOCKS[0]), _BLOCKS[1])

    def _block(self, block: Window, bands: tuple[int, ...]) -> Pixels | None:
        """One block; None where nothing of the source lies."""
        seen = self._place.footprint(block)
        if seen is None:
            return None
        there = seen.clipped(self._source.info.size)
        if seen.pixels > _MOST_SOURCE_PIXELS:  # what is beyond the borders takes memory too
            raise InputError(
                f"{self._source.info.path}: {there.height} x {there.width} of its pixels become {block.height} x "
                f"{block.width}; take a coarser level of its pyramid (--level), or make one with gdaladdo"
            )
        pixels = self._source.read(there, bands)
        if not pixels.valid.any():
            return None
        if self._resampling == "bilinear":
            return interpolated(pixels, Warp(self._place, there, block, self._resampling))
        return averaged(pixels, there, Warp(self._place, seen, block, self._resampling))


def kernel_for(source: Grid, wanted: Grid) -> Resampling:
    """Means where several pixels become one, else interpolation."""
    return "average" if max(Lies(source, wanted).scale) >= _SEVERAL else "bilinear"


def same_pixels(source: Grid, wanted: Grid) -> tuple[int, int] | None:
    """Row and column of `wanted` at which the first pixel of `source` lies, if its pixels are those of `wanted`."""
    if change_of_system(source.georeference, wanted.georeference) is not None:
        return None
    rows, cols = np.array([0.0, source.size.height, 0.0]), np.array([0.0, source.size.width, source.size.width])
    there = wanted.to_pixels(*source.to_plane(cols, rows))
    row, col = round(float(there[1][0])), round(float(there[0][0]))
    off = [np.abs(there[1] - rows - row).max(), np.abs(there[0] - cols - col).max()]
    return (row, col) if max(off) < _ROUNDED else None


def coarser_grid(source: Grid, factor: float) -> Grid:
    """The same ground with pixels `factor` times as high and wide, from the same corner on."""
    size = Size(*(max(1, math.ceil(side / factor - 1e-6)) for side in (source.size.height, source.size.width)))
    return Grid(size, source.georeference.coarser(factor, factor))


def window_on(wanted: Grid, source: Grid) -> Window:
    """Where `source` lies on another grid, whole pixels around it; InputError where it lies nowhere."""
    x, y = source.to_plane(*source.outline())
    if (change := change_of_system(source.georeference, wanted.georeference)) is not None:
        x, y = change(*np.broadcast_arrays(x, y))
    cols, rows = (values[np.isfinite(values)] for values in wanted.to_pixels(x, y))
    if not (rows.size and cols.size):
        raise InputError(f"{source} does not lie in the reference system of {wanted}")
    top, left = (math.floor(values.min() + _ROUNDED) for values in (rows, cols))
    bottom, right = (math.ceil(values.max() - _ROUNDED) for values in (rows, cols))
    return Window(top, left, max(1, bottom - top), max(1, right - left))


def part_of(grid: Grid, window: Window) -> Grid:
    """The pixels of a window, which may reach beyond the grid, as a grid of their own."""
    return Grid(Size(window.height, window.width), grid.georeference.moved(window.row, window.col))
