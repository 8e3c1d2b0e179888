"""From a class map of any size to polygons: strip by strip, no more than a few strips in memory."""

import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fcn_batch.pipeline.core.errors import OptionError
from fcn_batch.pipeline.core.geometry import Window, round_up
from fcn_batch.pipeline.core.maps import ClassMap, Ids
from fcn_batch.pipeline.raster.crs import row_areas_m2
from fcn_batch.pipeline.raster.gdal import gdal_cache
from fcn_batch.pipeline.raster.outlines import Regions, Strip
from fcn_batch.pipeline.raster.polygonise import polygonise
from fcn_batch.pipeline.raster.vectorfile import VectorHead, VectorKind, write_polygons
from fcn_batch.workflows.console.progress import RunProgress
from fcn_batch.workflows.finished.maps import cache_mb

_STRIP = 2**22  # pixels; some 200 bytes each at worst
_SIMPLE_STRIP = 2**24  # pixels, where vertices on the edges of strips stay
_BORDERS = 2**20  # between pixels side by side in a strip, of ids that differ: a map of noise gets low strips
_READ = 2**28  # pixels to read at once at most, where storage blocks are high


@dataclasses.dataclass(frozen=True, slots=True)
class VectorChoice:
    """Which polygons, and how smooth; OptionError for numbers that are neither 0 nor above."""

    min_area: float = 0.0
    """Square metres below which a polygon is left out; pixels where the map cannot say its areas."""
    simplify: float = 0.0
    """Side, in pixels, of what may be cut off or filled in along borders."""

    def __post_init__(self) -> None:
        for name in ("min_area", "simplify"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise OptionError(f"{name.replace('_', '-')} is {value}; give 0 or more")


def write_vectors(
    source: ClassMap, target: Path, driver: VectorKind, choice: VectorChoice, progress: RunProgress
) -> None:
    """Write the polygons of a map's classes to `target`: each region of pixels that share sides is one polygon.

    OptionError for a GeoJSON of a map without reference system, and when something that it takes is not installed;
    InputError for a map that cannot be read; OutputError when `target` cannot be written.
    """
    named = {entry.id: entry.name for entry in source.legend.classes} if source.legend else {}
    head = VectorHead(driver, target.stem, source.georeference, named)
    areas = row_areas_m2(source.georeference, source.size)
    progress.start("polygons", source.size.pixels, 0)
    try:
        with gdal_cache(cache_mb(source.block)):
            strips = _told(strips_of(source, _SIMPLE_STRIP if choice.simplify else _STRIP), progress)
            regions = polygonise(strips, areas, choice.simplify)
            write_polygons(target, head, (_large(some, choice.min_area) for some in regions))
    finally:
        progress.stop()


def strips_of(source: ClassMap, most: int) -> Iterator[Strip]:
    """The map in strips of its full width from top to bottom, of `most` pixels (or one row), fewer where it is noisy.

    The same strips for the same pixels, whatever file they are in.
    """
    above: NDArray[np.uint8] | None = None
    rows = _Rows(source, most)
    row, height = 0, source.size.height
    while row < height:
        ids = rows.take(row, max(1, most // source.size.width))
        borders = np.cumsum((ids[:, 1:] != ids[:, :-1]).sum(axis=1))
        ids = ids[: max(1, int(np.searchsorted(borders, _BORDERS, side="right")))]
        stop = row + len(ids)
        yield Strip(row, ids, above, rows.take(stop, 1)[0] if stop < height else None)
        above, row = ids[-1], stop


class _Rows:
    """Rows of a map, read by whole storage blocks where they fit, so that each is decoded once."""

    def __init__(self, source: ClassMap, most: int) -> None:
        self._source = source
        width = source.size.width
        self._step = max(1, min(round_up(max(1, most // width), source.block[0]), _READ // width))
        self._first = 0
        self._ids: Ids = np.empty((0, width), np.uint8)

    def take(self, row: int, count: int) -> Ids:
        """Rows `row` to `row + count`, or to the map's last one; never one that lies before an earlier `row`."""
        height, width = self._source.size.height, self._source.size.width
        stop = min(row + count, height)
        while (have := self._first + len(self._ids)) < stop:
            more = self._source.read(Window(have, 0, min(self._step, height - have), width))
            self._ids = np.concatenate([self._ids[row - self._first :], more])
            self._first = row
        return self._ids[row - self._first : stop - self._first]


def _told(strips: Iterator[Strip], progress: RunProgress) -> Iterator[Strip]:
    for strip in strips:
        yield strip
        progress.advance(strip.ids.size)  # asked for the next one: this one is done


def _large(some: Regions, least: float) -> Regions:
    measure = some.pixels if some.areas is None else some.areas
    return some.only(measure >= least) if least else some
