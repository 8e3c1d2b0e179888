"""One look at a whole class map: a small picture of it, and what each class covers. Memory does not grow with the map.

Every pixel counts in the numbers. The picture is the map halved as often as it takes, as a pyramid's levels are.
"""

import colorsys
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fcn_batch.pipeline.core.classes import NODATA, ClassInfo, Legend
from fcn_batch.pipeline.core.errors import InputError
from fcn_batch.pipeline.core.geometry import Size, Window, round_up
from fcn_batch.pipeline.core.georeference import GeoReference
from fcn_batch.pipeline.core.maps import ClassMap, Ids
from fcn_batch.pipeline.core.pyramid import halve
from fcn_batch.pipeline.raster.crs import row_areas_m2
from fcn_batch.pipeline.raster.gdal import gdal_cache
from fcn_batch.workflows.console.progress import RunProgress
from fcn_batch.workflows.finished.maps import cache_mb

_SIDE = 2048
_WINDOW_PIXELS = 2**22
_MOST_PIXELS = 2**24
_GOLDEN = (math.sqrt(5) - 1) / 2


@dataclass(frozen=True, slots=True)
class Covered:
    """What one class covers."""

    info: ClassInfo
    pixels: int
    share: float
    """Of the pixels with data."""
    area_m2: float | None
    """On the ground; None where it cannot be said."""


@dataclass(frozen=True, slots=True)
class Survey:
    """A whole map, reduced."""

    ids: Ids
    """The picture: (rows, cols), 255 for no data."""
    step: int
    """Rows and columns of the map that became one of the picture (fewer at its lower and right edge): a power of 2."""
    classes: tuple[Covered, ...]
    """All classes of the legend, and those that the legend does not know but the map holds, by id."""
    nodata: int
    """Pixels without data."""
    size: Size
    """Of the map."""
    georeference: GeoReference
    """Of the map."""

    @property
    def legend(self) -> Legend:
        """Names and colours of all classes."""
        return Legend(classes=tuple(covered.info for covered in self.classes))


def survey(source: ClassMap, side: int, progress: RunProgress, what: str = "reading the map") -> Survey:
    """Go through `source` once; the picture has at most `side` rows and columns. InputError for a damaged map."""
    size = source.size
    step = 1
    while step * side < max(size.height, size.width):
        step *= 2
    picture = np.full((-(-size.height // step), -(-size.width // step)), NODATA, np.uint8)
    areas = row_areas_m2(source.georeference, size)
    pixels: Counter[int] = Counter()
    covered = np.zeros(256)  # square metres
    progress.start(what, size.pixels, 0)
    try:
        with gdal_cache(cache_mb(source.block)):
            for window in _aligned(size, source.block, step):
                ids = source.read(window)
                row, col = window.row // step, window.col // step
                small = ids
                for _ in range(step.bit_length() - 1):
                    small = halve(small)
                picture[row : row + small.shape[0], col : col + small.shape[1]] = small
                for class_id in np.flatnonzero(np.bincount(ids.ravel(), minlength=256)):
                    in_rows = np.count_nonzero(ids == class_id, axis=1)
                    pixels[int(class_id)] += int(in_rows.sum())
                    if areas is not None:
                        covered[class_id] += in_rows @ areas[window.row : window.stop_row]
                progress.advance(window.pixels)
    finally:
        progress.stop()
    known = size.pixels - pixels[NODATA]
    classes = tuple(
        Covered(
            one,
            pixels[one.id],
            pixels[one.id] / known if known else 0.0,
            None if areas is None else float(covered[one.id]),
        )
        for one in complete_legend(source.legend, pixels).classes
    )
    return Survey(picture, step, classes, pixels[NODATA], size, source.georeference)


def complete_legend(legend: Legend | None, found: "Counter[int] | list[int]") -> Legend:
    """`legend` with a name and a colour for every id that was found and has none, by id.

    InputError when there is nothing to name: no legend, and no pixel with data.
    """
    known = {} if legend is None else {one.id: one for one in legend.classes}
    names = {one.name for one in known.values()}
    for class_id in sorted({*found} - {*known, NODATA}):
        name = f"class {class_id}"
        while name in names:
            name += "'"
        known[class_id] = ClassInfo(id=class_id, name=name, colour=_colour(class_id))
    if not known:
        raise InputError("map-empty", "the map holds no class: all of its pixels are without data; export another map")
    return Legend(classes=tuple(known[class_id] for class_id in sorted(known)))


def paint(ids: Ids, legend: Legend, nodata: tuple[int, int, int]) -> NDArray[np.uint8]:
    """Ids in their classes' colours: (rows, cols, 3)."""
    colours = np.full((256, 3), nodata, np.uint8)
    for one in legend.classes:
        colours[one.id] = one.rgb
    return colours[ids]


def _aligned(size: Size, block: tuple[int, int], step: int) -> Iterator[Window]:
    """Windows of whole squares that cover the map row by row, about as large as a storage block wants.

    >>> [(w.col, w.width) for w in _aligned(Size(10, 5000), (2048, 2048), 3)]
    [(0, 2049), (2049, 2049), (4098, 902)]
    """
    width = min(round_up(max(_SIDE, block[1]), step), size.width)
    if width * step > _MOST_PIXELS:  # strips of a very wide map
        width = round_up(_MOST_PIXELS // step, step)
    height = max(_WINDOW_PIXELS // width // step, 1) * step
    for row in range(0, size.height, height):
        for col in range(0, size.width, width):
            yield Window(row, col, height, width).clipped(size)


def _colour(class_id: int) -> str:
    """A colour for a class that has none: hues as far from each other as they get."""
    red, green, blue = colorsys.hsv_to_rgb(class_id * _GOLDEN % 1, 0.65, 0.85)
    return f"#{round(255 * red):02x}{round(255 * green):02x}{round(255 * blue):02x}"
