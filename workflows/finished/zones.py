"""How much of each class lies in each zone: a table, counted chunk by chunk."""

import csv
import io
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fcn_batch.pipeline.core.classes import NODATA
from fcn_batch.pipeline.core.durable import write_whole
from fcn_batch.pipeline.core.errors import OutputError
from fcn_batch.pipeline.core.geometry import Window
from fcn_batch.pipeline.core.maps import ClassMap, Ids
from fcn_batch.pipeline.raster.alignment import Grid
from fcn_batch.pipeline.raster.clip import covered
from fcn_batch.pipeline.raster.crs import row_areas_m2
from fcn_batch.pipeline.raster.gdal import gdal_cache
from fcn_batch.pipeline.raster.vectors import Zones
from fcn_batch.workflows.console.progress import RunProgress
from fcn_batch.workflows.finished.maps import cache_mb, chunk_windows

Tallies = dict[int, NDArray[np.float64]]
"""Pixels (first row) and square metres (second row) of each class id, by the number of the zone."""
_COLUMNS = ("zone", "class_id", "class", "pixels", "area_m2", "share")


def write_zones(
    source: ClassMap,
    zones: Path,
    target: Path,
    progress: RunProgress,
    *,
    name_field: str | None = None,
    layer: str | None = None,
) -> None:
    """Write the table of a map's classes by zone to the CSV `target`, a row for each zone and class.

    A zone is a polygon of the file `zones`, on whatever reference system; it has the pixels whose centres it holds,
    and every zone is counted on its own. Its name is what `name_field` says, else its number from 1 on. The classes
    are those of the legend and any others that a zone holds. `area_m2` is empty where the map cannot say its areas,
    `share` (of the zone's pixels with data) where a zone has none. InputError for zones or a map that cannot be read
    or placed, OutputError when `target` cannot be written.
    """
    grid = Grid(source.size, source.georeference)
    found = Zones.open(zones, grid, name_field, layer)
    areas = row_areas_m2(source.georeference, source.size)
    tallies: Tallies = defaultdict(lambda: np.zeros((2, 256)))
    progress.start("zones", source.size.pixels, 0)
    try:
        with gdal_cache(cache_mb(source.block)):
            for window in chunk_windows(source.size, source.block):
                _count(source, window, found, areas, tallies)
                progress.advance(window.pixels)
    finally:
        progress.stop()
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_COLUMNS)
    writer.writerows(_rows(source, found, tallies, located=areas is not None))
    try:
        write_whole(target, text.getvalue())
    except OSError as error:
        raise OutputError(
            "output-unwritable", "{path} cannot be written: {reason}; choose another place", path=target, reason=error
        ) from error


def _count(source: ClassMap, window: Window, zones: Zones, areas: NDArray[np.float64] | None, tallies: Tallies) -> None:
    """Add what a window holds of each zone; a window without zones is not read."""
    pieces = zones.polygons.near(window)
    ids: Ids | None = None
    for zone in np.unique(zones.numbers[pieces]).tolist():
        mine = pieces[zones.numbers[pieces] == zone]
        box = _box(zones, mine, window)
        inside = covered(zones.polygons, mine, box)
        if not inside.any():
            continue
        if ids is None:
            ids = source.read(window)
        row, col = np.nonzero(inside)
        of_zone = ids[box.slices(window)][row, col]
        counts = np.bincount(row * 256 + of_zone, minlength=box.height * 256).reshape(box.height, 256)
        counts[:, NODATA] = 0
        tallies[zone][0] += counts.sum(axis=0)
        if areas is not None:
            tallies[zone][1] += areas[box.row : box.stop_row] @ counts


def _box(zones: Zones, pieces: NDArray[np.int64], window: Window) -> Window:
    """The part of a window that holds what is in it of some pieces."""
    left, top, right, bottom = zones.polygons.bounds(pieces)
    row = min(max(int(np.floor(top)), window.row), window.stop_row - 1)
    col = min(max(int(np.floor(left)), window.col), window.stop_col - 1)
    stop_row = max(min(int(np.ceil(bottom)), window.stop_row), row + 1)
    stop_col = max(min(int(np.ceil(right)), window.stop_col), col + 1)
    return Window(row, col, stop_row - row, stop_col - col)


def _rows(source: ClassMap, zones: Zones, tallies: Tallies, *, located: bool) -> Iterator[tuple[object, ...]]:
    named = {entry.id: entry.name for entry in source.legend.classes} if source.legend else {}
    others = {int(k) for tally in tallies.values() for k in np.flatnonzero(tally[0])} - set(named)
    named |= {k: f"class {k}" for k in sorted(others)}
    for number, name in enumerate(zones.names):
        pixels, area = tallies[number]
        total = pixels.sum()
        if not named:  # no legend, and no zone has any data
            yield name, "", "", 0, 0.0 if located else "", ""
        for k, class_name in named.items():
            share = float(pixels[k] / total) if total else ""
            yield name, k, class_name, int(pixels[k]), float(area[k]) if located else "", share
