"""The part of a raster that is wanted: from a file of polygons, or a box in the raster's own coordinates."""

import math
from pathlib import Path

import numpy as np
from pydantic import ValidationError

from fcn_batch.pipeline.core.area import MAX_POINTS, Area
from fcn_batch.pipeline.core.errors import InputError, OptionError
from fcn_batch.pipeline.core.source import RasterInfo
from fcn_batch.pipeline.raster.alignment import Grid
from fcn_batch.pipeline.raster.vectors import Zones

Box = tuple[float, float, float, float]
"""West, south, east, north."""


def choose_area(info: RasterInfo, polygons: Path | None, box: Box | None) -> Area | None:
    """The area, in the raster's pixels; None: all of it.

    OptionError when both are given or the box is none, InputError when the polygons cannot be used, or when nothing of
    the area lies on the raster.
    """
    if polygons is not None and box is not None:
        raise OptionError(f"--aoi {polygons} with --bbox {_said(box)}: give one of them")
    if polygons is not None:
        return _of_polygons(info, polygons)
    return None if box is None else _of_box(info, box)


def _of_polygons(info: RasterInfo, path: Path) -> Area:
    found = Zones.open(path, Grid(info.size, info.georeference)).polygons.shapes
    if not len(found):
        raise InputError(f"{path}: none of its polygons lies on {info.path}; give others, or leave --aoi out")
    try:
        return Area(polygons=tuple(shape.__geo_interface__["coordinates"] for shape in found))
    except ValidationError as error:
        raise InputError(
            f"{path}: more than {MAX_POINTS} points lie on {info.path}; simplify the polygons (ogr2ogr -simplify)"
        ) from error


def _of_box(info: RasterInfo, box: Box) -> Area:
    west, south, east, north = box
    if not (west < east and south < north):
        raise OptionError(f"--bbox {_said(box)}: give west,south,east,north, in the raster's coordinates")
    a, b, c, d, e, f = info.georeference.transform
    plane = np.array([(west, north), (east, north), (east, south), (west, south), (west, north)])
    pixels = np.linalg.solve([(a, b), (d, e)], (plane - (c, f)).T).T
    (left, top), (right, bottom) = pixels.min(axis=0), pixels.max(axis=0)
    if right <= 0 or bottom <= 0 or left >= info.size.width or top >= info.size.height:
        corners = np.array([(0, 0), (info.size.width, 0), (0, info.size.height), (info.size.width, info.size.height)])
        there = corners @ [(a, d), (b, e)] + (c, f)
        bounds = (*there.min(axis=0).tolist(), *there.max(axis=0).tolist())
        raise InputError(f"--bbox {_said(box)}: not on {info.path}, which spans {_said(bounds)}")
    if math.ceil(left - 0.5) > math.floor(right - 0.5) or math.ceil(top - 0.5) > math.floor(bottom - 0.5):
        raise InputError(f"--bbox {_said(box)}: holds the centre of no pixel of {info.path}; give a larger one")
    return Area(polygons=((tuple((float(col), float(row)) for col, row in pixels),),))


def _said(box: tuple[float, ...]) -> str:
    return ",".join(f"{value:.10g}" for value in box)
