"""Which part of a raster is computed: polygons of a file, a box in the raster's own coordinates, the tissue of a slide.

The rest of a slide is glass. Stained tissue has a colour, glass has none: what counts is the saturation
(max - min) / max of the mean colour of squares of 16 micrometres. On the glass of an H&E slide it is below 0.03, on its
palest tissue above 0.05 (measured on CMU-1-Small-Region, openslide's test data). Squares next to tissue count too.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fcn_batch.pipeline.core.area import MAX_POINTS, Area
from fcn_batch.pipeline.core.errors import InputError, OptionError
from fcn_batch.pipeline.core.plan import InputIdentity, Plan
from fcn_batch.pipeline.core.source import Pixels, RasterInfo
from fcn_batch.pipeline.core.tolerance import FAIL, OnError
from fcn_batch.pipeline.raster.alignment import Grid
from fcn_batch.pipeline.raster.clip import outlined
from fcn_batch.pipeline.raster.crs import turn_of
from fcn_batch.pipeline.raster.vectors import Zones
from fcn_batch.workflows.inputs.sources import thumbnail

Box = tuple[float, float, float, float]
"""West, south, east, north."""
_MICRONS = 16.0
"""Side of a square."""
_SATURATION = 0.05
_AROUND = 2
"""Squares around tissue."""
_MOST_POINTS = 20_000
"""Of the outlines: they are part of the plan, which every worker reads."""


def choose_area(info: RasterInfo, polygons: Path | None, box: Box | None) -> Area | None:
    """The area, in the raster's pixels; None: all of it.

    OptionError when both are given or the box is none, InputError when the polygons cannot be used, or when nothing of
    the area lies on the raster.
    """
    if polygons is not None and box is not None:
        raise OptionError(
            "option-conflict", "--aoi {aoi} with --bbox {bbox}: give one of them", aoi=polygons, bbox=_words(box)
        )
    if polygons is not None:
        return _of_polygons(info, polygons)
    return None if box is None else _of_box(info, box)


def _of_polygons(info: RasterInfo, path: Path) -> Area:
    found = Zones.open(path, Grid(info.size, info.georeference)).polygons.shapes
    if not len(found):
        raise InputError(
            "polygons-elsewhere",
            "{path}: none of its polygons lies on {raster}; give others, or leave --aoi out",
            path=path,
            raster=info.path,
        )
    parts = (part for shape in found for part in getattr(shape, "geoms", [shape]))
    polygons = tuple(part.__geo_interface__["coordinates"] for part in parts)
    if (points := sum(len(ring) for polygon in polygons for ring in polygon)) > MAX_POINTS:
        raise InputError(
            "polygons-too-fine",
            "{path}: {points} points lie on {raster}, and {most} are the limit; simplify the polygons "
            "(ogr2ogr -simplify)",
            path=path,
            points=points,
            most=MAX_POINTS,
            raster=info.path,
        )
    return Area(polygons=polygons)


def _of_box(info: RasterInfo, box: Box) -> Area:
    west, south, east, north = box
    if not (west < east and south < north):
        raise OptionError(
            "option-value", "--bbox {value}: give west,south,east,north, in the raster's coordinates", value=_words(box)
        )
    a, b, c, d, e, f = info.georeference.transform
    plane = np.array([(west, north), (east, north), (east, south), (west, south), (west, north)])
    turn = turn_of(info.georeference)
    moved = [0.0] if turn is None else [-turn, 0.0, turn]  # -10 and 350 degrees are one
    corners = [plane - (c + by, f) for by in moved]
    boxes = [np.linalg.solve([(a, b), (d, e)], one.T).T for one in corners]
    size = (info.size.width, info.size.height)
    boxes = [one for one in boxes if (one.max(axis=0) > 0).all() and (one.min(axis=0) < size).all()]
    if not boxes:
        outline = np.array([(0, 0), (size[0], 0), (0, size[1]), size])
        there = outline @ [(a, d), (b, e)] + (c, f)
        bounds = (*there.min(axis=0).tolist(), *there.max(axis=0).tolist())
        raise InputError(
            "box-elsewhere",
            "--bbox {bbox}: not on {path}, which spans {bounds}",
            bbox=_words(box),
            path=info.path,
            bounds=_words(bounds),
        )
    if not any((np.ceil(one.min(axis=0) - 0.5) <= np.floor(one.max(axis=0) - 0.5)).all() for one in boxes):
        raise InputError(
            "box-empty",
            "--bbox {bbox}: holds the centre of no pixel of {path}; give a larger one",
            bbox=_words(box),
            path=info.path,
        )
    return Area(polygons=tuple((tuple((float(col), float(row)) for col, row in one),) for one in boxes))


def _words(box: tuple[float, ...]) -> str:
    return ",".join(f"{value:.10g}" for value in box)


def find_tissue(
    identity: InputIdentity, bands: Sequence[int], known: Sequence[Plan] = (), on_error: OnError = FAIL
) -> tuple[Area | None, str]:
    """The tissue of a slide, in its pixels, and what to say of it; None: take all of it.

    `bands` show red, green and blue. What an earlier plan of the same input knows is not looked for again. `on_error`:
    what to do where the slide cannot be read.
    """
    if identity.microns is None or identity.crs_wkt is not None or identity.dtype != "uint8" or len(bands) != 3:
        return None, ""
    for plan in known:
        if plan.tissue is not None and plan.bands == tuple(bands) and plan.input.georeference == identity.georeference:
            return plan.tissue, _said(plan.tissue.pixels / identity.size.pixels)
    step = max(1, round(_MICRONS / identity.microns))
    mask = coloured(thumbnail(identity, bands, step, on_error))
    if not mask.any():
        return None, "no tissue was found, so all of the slide is computed"
    area = outlined(mask, step, _MOST_POINTS)
    return area, _said(area.pixels / identity.size.pixels)


def coloured(pixels: Pixels) -> NDArray[np.bool_]:
    """Which squares have colour, or neighbours that have: (rows, cols)."""
    values = pixels.values.astype(np.float32)
    highest = values.max(axis=0)
    mask: NDArray[np.bool_] = (highest - values.min(axis=0) > _SATURATION * highest) & pixels.valid
    for _ in range(_AROUND):
        grown = np.pad(mask, 1)
        mask = grown[:-2, 1:-1] | grown[2:, 1:-1] | grown[1:-1, :-2] | grown[1:-1, 2:] | mask
    return mask


def _said(share: float) -> str:
    return (
        f"tissue was found on {100 * min(share, 1):.0f} % of the slide; the rest is no data in the map, and not "
        "computed where whole blocks have none; --tissue off computes all of it"
    )
