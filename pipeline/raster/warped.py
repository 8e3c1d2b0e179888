"""A source of pixels on another grid: at another resolution, or in another reference system.

    the wanted grid is cut into blocks that never change          ... and each is always made in the same way,
    +-----+-----+-----+--                                             from the same pixels of the source:
    |     | win |dow  |                                                   footprint of the block + margin
    +-----+-----+-----+--                                                 -> GDAL's warper,
    |     |     |     |                                                      the scale told, not guessed by block
    +-----+-----+-----+--                                             a window is cut out of its blocks

so a pixel does not depend on the window that it is read in. (GDAL's bilinear kernel differs by one in some hundred of a
million values when only the origin of the array changes.)

Between two reference systems GDAL's warper places pixels to an eighth of a pixel of the source, as gdalwarp does by
default (rasterio's `reproject` takes no other tolerance); within one, exactly.
"""

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rasterio import Affine
from rasterio.enums import Resampling as Kernel
from rasterio.io import MemoryFile
from rasterio.warp import reproject
from rasterio.windows import Window as RasterioWindow

from fcn_batch.pipeline.core.errors import InputError
from fcn_batch.pipeline.core.geometry import Size, Window
from fcn_batch.pipeline.core.source import Pixels, RasterInfo, RasterSource, Resampling, check_read
from fcn_batch.pipeline.core.validity import BY_RESAMPLING, OUTSIDE, RULES_DIFFER
from fcn_batch.pipeline.raster.alignment import Grid
from fcn_batch.pipeline.raster.crs import change_of_system
from fcn_batch.pipeline.raster.gdal import accept_pixel_space, local_only

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
            ground=before.ground and before.ground.coarser(*scale),
            microns=None if before.microns is None else float(f"{before.microns * scale[1]:.{_DIGITS}g}"),
            levels=(self._grid.size,),
            resampling=self._resampling,
        )

    def read(self, window: Window, bands: tuple[int, ...]) -> Pixels:
        """Values and mask of `window`; ValueError and the errors of the source."""
        check_read(self.info, window, bands)
        found, side = Pixels.blank(len(bands), window, self._source.info.dtype), self._side
        for row in range(window.row // side * side, window.stop_row, side):
            for col in range(window.col // side * side, window.stop_col, side):
                block = Window(row, col, side, side).clipped(self._grid.size)
                pixels = self._block(block, bands)
                if pixels is not None:
                    found.paste(pixels, block, window)
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
                "warp-too-large",
                "{path}: {rows} x {cols} of its pixels become {new_rows} x {new_cols}; "
                "take a coarser level of its pyramid (--level), or make one with gdaladdo",
                path=self._source.info.path,
                rows=there.height,
                cols=there.width,
                new_rows=block.height,
                new_cols=block.width,
            )
        pixels = self._source.read(there, bands)
        if not pixels.valid.any():
            made = Pixels.blank(len(bands), block, pixels.values.dtype.name)
        elif self._resampling == "bilinear":
            made = interpolated(pixels, Warp(self._place, there, block, self._resampling))
        else:
            made = averaged(pixels, there, Warp(self._place, seen, block, self._resampling))
        return Pixels(made.values, made.valid, reasons_of(made.valid, pixels, there, self._place, block))


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
        raise _apart(source, wanted)
    top, left = (math.floor(values.min() + _ROUNDED) for values in (rows, cols))
    bottom, right = (math.ceil(values.max() - _ROUNDED) for values in (rows, cols))
    return Window(top, left, max(1, bottom - top), max(1, right - left))


def part_of(grid: Grid, window: Window) -> Grid:
    """The pixels of a window, which may reach beyond the grid, as a grid of their own."""
    return Grid(Size(window.height, window.width), grid.georeference.moved(window.row, window.col))


_EDGE_POINTS = 17
"""Points along each axis of a block, by which its footprint in the source is found."""
_SPARE = 2
"""Pixels of the source around a footprint, beyond what the kernel reaches: borders are curved between the points."""
_PLANE = "EPSG:3857"
"""Stands for the plane of both grids where it is the same: GDAL's warper wants a system, and does nothing with it."""
_SLIVER = 1e-3
"""Share of a pixel: where less of it lies on the source, it does so by rounding."""
_WARP_MEMORY = 2**14
"""Megabytes: GDAL never cuts a block in parts, whose number would depend on that of the bands."""


class Lies:
    """How the pixels of a wanted grid lie on those of a source."""

    def __init__(self, source: Grid, wanted: Grid) -> None:
        self.source, self.wanted = source, wanted
        self._change = change_of_system(wanted.georeference, source.georeference)
        self.scale = self._scale()
        """Pixels of the source for one pixel, along rows and columns, in the middle."""

    @property
    def systems(self) -> tuple[str, str]:
        """Of source and wanted grid, in words for GDAL."""
        one, other = self.source.georeference.crs_wkt, self.wanted.georeference.crs_wkt
        return (_PLANE, _PLANE) if self._change is None or one is None or other is None else (one, other)

    def to_source(self, rows: NDArray[np.float64], cols: NDArray[np.float64]) -> tuple[NDArray[Any], NDArray[Any]]:
        """Rows and columns in the source, not finite where there is no such point."""
        x, y = self.wanted.to_plane(cols, rows)
        if self._change is not None:
            x, y = self._change(x, y)
        with np.errstate(invalid="ignore"):
            found = self.source.to_pixels(x, y)
        return found[1], found[0]

    def footprint(self, block: Window) -> Window | None:
        """Pixels that a block is made of, some of them beyond the source's borders; None when none lies in it."""
        rows, cols = np.meshgrid(
            np.linspace(block.row, block.stop_row, _EDGE_POINTS),
            np.linspace(block.col, block.stop_col, _EDGE_POINTS),
            indexing="ij",
        )
        there = [values[np.isfinite(values)] for values in self.to_source(rows, cols)]
        if not all(values.size for values in there):
            return None
        margins = [math.ceil(max(1.0, scale)) + _SPARE for scale in self.scale]
        (top, bottom), (left, right) = (
            (math.floor(values.min()) - margin, math.ceil(values.max()) + margin)
            for values, margin in zip(there, margins, strict=True)
        )
        size, (down, across) = self.source.size, margins
        near = Window(-2 * down, -2 * across, size.height + 4 * down, size.width + 4 * across)
        try:
            seen = Window(top, left, bottom - top, right - left).intersection(near)
            seen.clipped(size)
        except ValueError:
            return None
        return seen

    @property
    def upright(self) -> bool:
        """True when rows and columns of both grids run alike, in one reference system."""
        if self._change is not None:
            return False
        (down, aside), (up, right) = self._steps()
        return aside == up == 0 and down > 0 and right > 0

    def _scale(self) -> tuple[float, float]:
        down, right = self._steps() if self._change is None else self._steps_in_the_middle()
        scale = (math.hypot(down[0], right[0]), math.hypot(down[1], right[1]))
        if not all(math.isfinite(value) and value > 0 for value in scale):
            raise _apart(self.wanted, self.source)
        return scale

    def _steps(self) -> list[tuple[float, float]]:
        """Rows and columns of the source in a step down and in one to the right: exact, as the origins cancel."""
        a, b, _, d, e, _ = self.source.georeference.transform
        k, m, _, o, p, _ = self.wanted.georeference.transform
        det = a * e - b * d
        return [((a * y - d * x) / det, (e * x - b * y) / det) for x, y in ((m, p), (k, o))]

    def _steps_in_the_middle(self) -> list[tuple[float, float]]:
        row, col = self.wanted.size.height / 2, self.wanted.size.width / 2
        rows, cols = self.to_source(np.array([row, row + 1, row]), np.array([col, col, col + 1]))
        return [(float(rows[k] - rows[0]), float(cols[k] - cols[0])) for k in (1, 2)]


@dataclass(frozen=True, slots=True)
class Warp:
    """How a block is made of pixels."""

    lies: Lies
    seen: Window
    """Where those of the source are, which may reach beyond its borders."""
    block: Window
    resampling: Resampling

    def __call__(self, bands: NDArray[Any], *, alpha: int = 0) -> NDArray[Any]:
        """(bands, rows, cols) of `seen` to those of `block`; `alpha` is the value of the last band for valid pixels."""
        made = np.zeros((len(bands), self.block.height, self.block.width), bands.dtype)
        source, target = self.lies.systems
        masked = {"src_alpha": len(made), "dst_alpha": len(made)} if alpha else {}
        with local_only(), accept_pixel_space():
            reproject(
                bands,
                made,
                src_transform=_moved(self.lies.source, self.seen),
                dst_transform=_moved(self.lies.wanted, self.block),
                src_crs=source,
                dst_crs=target,
                resampling=Kernel[self.resampling],
                warp_mem_limit=_WARP_MEMORY,
                XSCALE=1 / self.lies.scale[1],
                YSCALE=1 / self.lies.scale[0],
                SRC_ALPHA_MAX=str(alpha),
                DST_ALPHA_MAX=str(alpha),
                **masked,
            )
        return made


def interpolated(pixels: Pixels, warp: Warp) -> Pixels:
    """The mask goes through the warper as one more band: the weights of what is valid."""
    made, opaque = _made(pixels, warp)
    return Pixels(made[:-1], made[-1] > opaque / 2)


def averaged(pixels: Pixels, there: Window, warp: Warp) -> Pixels:
    """`pixels` are those of `there`, the part of what is seen that the source has.

    GDAL takes pixels at a border for larger than they are, and a mean for valid when any of its pixels is: so it gets
    the beyond as pixels without data, and the share of valid ones is averaged by itself.
    """
    if there == warp.seen and pixels.valid.all():
        if warp.lies.upright:
            values = _shrunk(pixels.values, warp)
            return Pixels(values, np.ones(values.shape[1:], np.bool_))
        made, _ = _made(pixels, warp)
        return Pixels(made[:-1], made[-1] > 0)
    seen = Pixels.blank(len(pixels.values), warp.seen, pixels.values.dtype.name)
    seen.paste(pixels, there, warp.seen)
    source = np.zeros_like(seen.valid)
    source[there.slices(warp.seen)] = True
    made, _ = _made(seen, warp)
    valid, inside = warp(np.stack([seen.valid, source]).astype(np.float32))
    return Pixels(made[:-1], (valid > inside / 2) & (inside > _SLIVER) & (made[-1] > 0))


def reasons_of(valid: NDArray[np.bool_], pixels: Pixels, there: Window, lies: Lies, block: Window) -> NDArray[np.uint8]:
    """Return why pixels of a block have no data: the reasons of the nearest of `pixels`, which are those of `there`.

    Where that one has data, but most of what the pixel is made of has none, it is the resampling.
    """
    why, reasons = np.zeros(valid.shape, np.uint8), pixels.reasons
    differ = bool((reasons & RULES_DIFFER).any())
    if valid.all() and not differ:
        return why
    rows, cols = np.nonzero(np.ones_like(valid) if differ else ~valid)
    middles = (at.astype(np.float64) + first + 0.5 for at, first in ((rows, block.row), (cols, block.col)))
    found = lies.to_source(*middles)
    with np.errstate(invalid="ignore"):
        row, col = (np.floor(at) - first for at, first in zip(found, (there.row, there.col), strict=True))
        inside = (row >= 0) & (row < there.height) & (col >= 0) & (col < there.width)
    nearest = np.full(rows.shape, OUTSIDE, np.uint8)
    nearest[inside] = reasons[row[inside].astype(np.intp), col[inside].astype(np.intp)]
    said, differs = nearest & ~np.uint8(RULES_DIFFER), nearest & np.uint8(RULES_DIFFER)
    said = np.where(valid[rows, cols], 0, np.where(said == 0, np.uint8(BY_RESAMPLING), said))
    why[rows, cols] = said | differs
    return why


def _shrunk(values: NDArray[Any], warp: Warp) -> NDArray[Any]:
    """Means where nothing is missing: GDAL's reader makes the same ones as its warper, in a sixth of the time."""
    (top, bottom), (left, right) = (
        side.tolist()
        for side in warp.lies.to_source(
            np.array([warp.block.row, warp.block.stop_row], np.float64),
            np.array([warp.block.col, warp.block.stop_col], np.float64),
        )
    )
    there = RasterioWindow(left - warp.seen.col, top - warp.seen.row, right - left, bottom - top)
    shape = (len(values), warp.block.height, warp.block.width)
    with local_only(), accept_pixel_space(), MemoryFile() as file:
        size = {"count": len(values), "height": values.shape[1], "width": values.shape[2]}
        with file.open(driver="GTiff", dtype=values.dtype, interleave="band", **size) as dataset:
            dataset.write(values)
        with file.open() as dataset:
            found: NDArray[Any] = dataset.read(window=there, out_shape=shape, resampling=Kernel.average)
    return found


def _made(pixels: Pixels, warp: Warp) -> tuple[NDArray[Any], int]:
    """Values, the mask as the last band, and what stands for a valid pixel in it."""
    dtype = pixels.values.dtype
    opaque = _opaque(dtype)
    alpha = np.where(pixels.valid, opaque, 0).astype(dtype)[None]
    values = np.where(pixels.valid, pixels.values, 0).astype(dtype)  # not a number would spread
    return warp(np.concatenate([values, alpha]), alpha=opaque), opaque


def _opaque(dtype: np.dtype[Any]) -> int:
    """What stands for a valid pixel in a band of that type."""
    return 1 if dtype.kind == "f" else 255


def _moved(grid: Grid, window: Window) -> Affine:
    """The transform of a window of a grid."""
    return Affine(*grid.georeference.transform) @ Affine.translation(window.col, window.row)


def _apart(one: Grid, other: Grid) -> InputError:
    return InputError(
        "grids-apart",
        "{grid} does not lie where the reference system of {other} holds; give rasters of one place",
        grid=one,
        other=other,
    )
