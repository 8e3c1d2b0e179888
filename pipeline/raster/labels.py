"""Labels of an image: rasters of class ids on any grid, or polygons, read on the image's pixels.

>>> labels = open_labels(path, grid)                                        # doctest: +SKIP
>>> labels.read(Window(0, 0, 256, 256))                                     # doctest: +SKIP
"""

import threading
import weakref
from collections import OrderedDict
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fcn_batch.pipeline.core.burn import NO_LABEL, VECTOR_SUFFIXES, Burn
from fcn_batch.pipeline.core.errors import TrainingError
from fcn_batch.pipeline.core.geometry import Window
from fcn_batch.pipeline.core.georeference import IDENTITY, GeoReference
from fcn_batch.pipeline.core.source import ID_DTYPES, RasterInfo
from fcn_batch.pipeline.core.tolerance import halves
from fcn_batch.pipeline.raster.alignment import Alignment, Grid
from fcn_batch.pipeline.raster.rasterfile import RasterioSource, inspect
from fcn_batch.pipeline.raster.vectors import VectorLabels

__all__ = ["NO_LABEL", "Burn", "Grid", "Labels", "RasterLabels", "open_labels"]

_OPEN_FILES = 4
"""Label files that one thread keeps open: a data set may have hundreds."""
_AT_ONCE = 2**26
"""Label pixels to read at once; more (labels much finer than the image) are read in parts."""

_recent = threading.local()  # in each thread, the sources it read last


class Labels(Protocol):
    """Anything that label ids can be read from, by many threads at once."""

    def read(self, window: Window) -> NDArray[np.int32]:
        """Label ids of a window of the image, (rows, cols); NO_LABEL where there is none."""

    def close(self) -> None:
        """Release what is open; a later read opens it again. Not while another thread is reading."""


def open_labels(
    path: Path, grid: Grid, *, burn: Burn | None = None, georeference: GeoReference | None = None
) -> Labels:
    """The labels at `path` on the pixels of `grid`, the image's.

    A raster gives each pixel the id under its centre (nearest neighbour), whatever its reference system and
    resolution; `burn` says what polygons mean and belongs to vector files. `georeference` overrides what the file
    says about where it lies; without a reference system it lies in the image's own.

    InputError when the file cannot be used at all; TrainingError when it does not lie on the image, when it does not
    say where it lies and is not of the image's size, and when `burn` does not fit the file.
    """
    if path.suffix.lower() in VECTOR_SUFFIXES:
        if burn is None:
            raise TrainingError(
                "burn-missing", "{path}: nothing says what labels that are polygons mean; give `burn`", path=path
            )
        return VectorLabels.open(path, grid, burn, georeference)
    if burn is not None:
        raise TrainingError(
            "burn-of-raster",
            "{path}: `burn` is for polygons ({kinds}), and this is a raster; leave it out",
            path=path,
            kinds=", ".join(VECTOR_SUFFIXES),
        )
    info = inspect(path, ID_DTYPES)
    if any(role != "alpha" for role in info.colour_roles[1:]):
        raise TrainingError(
            "labels-bands",
            "{path} has {bands} bands ({roles}); labels need one band of class ids (and alpha at most): turn colours "
            "into ids first",
            path=path,
            bands=info.bands,
            roles=", ".join(info.colour_roles),
        )
    alignment = Alignment.between(Grid(info.size, _where(info, grid, georeference)), grid)
    if not alignment.overlaps():
        raise TrainingError(
            "labels-elsewhere",
            "{path}: the labels, {labels}, do not lie on the image, {image}",
            path=path,
            labels=alignment.source,
            image=grid,
        )
    return RasterLabels(info, alignment)


class RasterLabels:
    """Ids of a raster, on the pixels of another grid. Pickles without open files."""

    def __init__(self, info: RasterInfo, alignment: Alignment) -> None:
        self._info = info
        self._alignment = alignment
        self._lock = threading.Lock()
        self._sources: weakref.WeakSet[RasterioSource] = weakref.WeakSet()

    def __reduce__(self) -> tuple[Any, ...]:
        return _again, (self._info, self._alignment.source, self._alignment.target)

    def read(self, window: Window) -> NDArray[np.int32]:
        """Label ids of a window of the image, (rows, cols).

        NO_LABEL outside the label raster and where its nodata, mask or alpha says that there is nothing.
        ValueError when the window leaves the image; InputError when the file cannot be decoded there;
        TrainingError for ids beyond int32.
        """
        if window.row < 0 or window.col < 0 or window.clipped(self._alignment.target.size) != window:
            raise ValueError(f"{window} is not inside the image with its {self._alignment.target.size}")
        row, col = self._alignment.pixels(window)
        rows, cols = row[row >= 0], col[col >= 0]
        if not (rows.size and cols.size):
            return np.full((window.height, window.width), NO_LABEL, np.int32)
        top, left = int(rows.min()), int(cols.min())
        area = Window(top, left, int(rows.max()) + 1 - top, int(cols.max()) + 1 - left)
        if area.pixels > _AT_ONCE and window.pixels > 1:
            return np.concatenate([self.read(half) for half in halves(window)], int(window.height < window.width))
        ids = self._read_area(area)[np.maximum(row - top, 0), np.maximum(col - left, 0)]
        ids[(row < 0) | (col < 0)] = NO_LABEL
        return ids

    def close(self) -> None:
        """Close the file in all threads; a later read opens it again. Not while another thread is reading."""
        with self._lock:
            for source in list(self._sources):
                source.close()

    def _read_area(self, area: Window) -> NDArray[np.int32]:
        """Ids of a window of the label raster itself."""
        pixels = self._source().read(area, (1,))
        values = pixels.values[0]
        if values.dtype == np.uint32 and (largest := values[pixels.valid].max(initial=0)) > np.iinfo(np.int32).max:
            raise TrainingError(
                "labels-ids",
                "{path} holds the id {id}; ids go up to {most}",
                path=self._info.path,
                id=largest,
                most=np.iinfo(np.int32).max,
            )
        return np.where(pixels.valid, values.astype(np.int32), np.int32(NO_LABEL))

    def _source(self) -> RasterioSource:
        """This thread's source; the one it has not read for longest is closed when there are too many."""
        if not hasattr(_recent, "sources"):
            _recent.sources = OrderedDict()
        sources: OrderedDict[RasterLabels, RasterioSource] = _recent.sources
        if self not in sources:
            sources[self] = RasterioSource(self._info.path, self._info)
            with self._lock:
                self._sources.add(sources[self])
        sources.move_to_end(self)
        while len(sources) > _OPEN_FILES:
            sources.popitem(last=False)[1].close()
        return sources[self]


def _again(info: RasterInfo, source: Grid, target: Grid) -> RasterLabels:
    return RasterLabels(info, Alignment.between(source, target))


def _where(info: RasterInfo, grid: Grid, given: GeoReference | None) -> GeoReference:
    """Where a label raster lies: as given, as it says, or on the image's pixels one by one."""
    if given is not None:
        return given
    own, image = info.georeference, grid.georeference
    unplaced = IDENTITY in (own.transform, image.transform)
    systems = sum(ref.crs_wkt is not None for ref in (own, image))
    if systems == 2 or (systems == 0 and not unplaced):
        return own
    if info.size == grid.size and (unplaced or np.allclose(own.transform, image.transform, rtol=1e-9)):
        return image
    raise TrainingError(
        "labels-unplaced",
        "{path}: the {which} no reference system, and {rows}x{cols} label pixels do not match the image, {image}, "
        "one by one; say with `georeference` where the labels lie on the image",
        path=info.path,
        which="labels have" if own.crs_wkt is None else "image has",
        rows=info.size.height,
        cols=info.size.width,
        image=grid,
    )
