"""From pixels of a source to those of a block of another grid, by GDAL's warper.

Between two reference systems it places pixels to an eighth of a pixel of the source, as gdalwarp does unless told
otherwise (rasterio's `reproject` takes no other tolerance); within one, exactly.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rasterio import Affine
from rasterio.enums import Resampling as Kernel
from rasterio.io import MemoryFile
from rasterio.warp import reproject
from rasterio.windows import Window as RasterioWindow

from fcn_batch.pipeline.core.errors import InputError
from fcn_batch.pipeline.core.geometry import Window
from fcn_batch.pipeline.core.source import Pixels, Resampling
from fcn_batch.pipeline.raster.alignment import Grid
from fcn_batch.pipeline.raster.crs import change_of_system
from fcn_batch.pipeline.raster.gdal import accept_pixel_space, local_only

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
            raise InputError(f"the middle of {self.wanted} does not lie in the reference system of {self.source}")
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
    here = (slice(None), *there.slices(warp.seen))
    shape = (warp.seen.height, warp.seen.width)
    values = np.zeros((len(pixels.values), *shape), pixels.values.dtype)
    held = np.zeros((2, *shape), np.float32)  # with data, and in the source
    values[here], held[here] = pixels.values, np.stack([pixels.valid, np.ones_like(pixels.valid)])
    made, _ = _made(Pixels(values, held[0] > 0), warp)
    valid, inside = warp(held)
    return Pixels(made[:-1], (valid > inside / 2) & (inside > _SLIVER) & (made[-1] > 0))


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
