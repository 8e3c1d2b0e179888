"""Labels and regions that are polygons: brought to an image's pixels, burned window by window.

Polygons are brought to the image's pixels once, when they are opened, and their vertices rounded to 2**-16 of a pixel:
then taking off where a window begins is exact, and a window's pixels are those of the whole raster burned at once.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rasterio import Affine
from rasterio.features import rasterize

from fcn_batch.pipeline.core.burn import VECTOR_SUFFIXES, Burn
from fcn_batch.pipeline.core.errors import InputError, TrainingError
from fcn_batch.pipeline.core.geometry import Size, Window
from fcn_batch.pipeline.core.georeference import GeoReference
from fcn_batch.pipeline.raster.alignment import Grid
from fcn_batch.pipeline.raster.crs import Change, change_of_system, turn_of
from fcn_batch.pipeline.raster.features import Features, libraries, read_features

_STEPS = 2**16  # of a pixel, to which vertices are rounded
_STRAIGHT = 0.05  # pixels that an edge may be away from the curve that it stands for
_ROUNDS = 8  # of dividing edges by four; each makes the distance to the curve 16 times smaller
_FAR = 2.0**24  # pixels; GDAL counts in 32 bits
_MOST_TURNS = 3  # of longitude by which polygons are moved
_VERTICES = 4096  # of a polygon; larger ones are cut, or each window would take all of a coastline


class VectorLabels:
    """Polygons burned on the pixels of a grid: pixel centres inside, later features over earlier ones.

    Holds no open file. Reading is safe in many threads and after pickling.
    """

    def __init__(self, size: Size, polygons: "Polygons", ids: NDArray[np.int32], background: int) -> None:
        self._size = size
        self._polygons = polygons
        self._ids = ids
        self._background = background

    @classmethod
    def open(cls, path: Path, grid: Grid, burn: Burn, georeference: GeoReference | None = None) -> "VectorLabels":
        """Read the polygons of a file; `georeference` overrides what it says about where they lie.

        InputError for a file that is damaged or of another kind; TrainingError for layers, fields, values and
        geometries that `burn` does not fit, and when no polygon lies on the grid.
        """
        features = read_features(path, burn, georeference, grid.georeference)
        if burn.field is not None and (unknown := sorted({*features.values} - {*burn.values})):
            listed = ", ".join(repr(value) for value in unknown[:20])
            raise TrainingError(
                "value-without-id",
                "{path}: the field {field!r} holds values without an id: {values}; give each of them one in "
                "`burn.values` (-1: no label)",
                path=path,
                field=burn.field,
                values=listed + (f" and {len(unknown) - 20} more" if len(unknown) > 20 else ""),
            )
        ids = [burn.values[value] for value in features.values] or [burn.burn] * len(features.shapes)
        polygons, kept = _on_grid(path, features, grid)
        if not kept.size:
            raise TrainingError(
                "labels-elsewhere",
                "{path}: its {polygons} do not lie on the image, {image}; check their reference system",
                path=path,
                polygons=features,
                image=grid,
            )
        return cls(grid.size, polygons, np.array(ids, np.int32)[kept], burn.background)

    def read(self, window: Window) -> NDArray[np.int32]:
        """Ids of a window of the grid, (rows, cols). ValueError when it leaves the grid."""
        if window.row < 0 or window.col < 0 or window.clipped(self._size) != window:
            raise ValueError(f"{window} is not inside the image with its {self._size}")
        shape = (window.height, window.width)
        chosen = self._polygons.near(window)
        if not chosen.size:
            return np.full(shape, self._background, np.int32)
        return np.asarray(
            rasterize(
                ((self._polygons.shapes[k], int(self._ids[k])) for k in chosen),
                out_shape=shape,
                fill=self._background,
                transform=Affine.translation(window.col, window.row),
                dtype="int32",
            )
        )

    def close(self) -> None:
        """Nothing is open."""


class Polygons:
    """Polygons in the pixels of a grid (x: columns, y: rows), and an index of where they are."""

    def __init__(self, shapes: NDArray[Any]) -> None:
        self.shapes = shapes
        self._tree = libraries().shapely.STRtree(shapes)

    def __reduce__(self) -> tuple[type["Polygons"], tuple[NDArray[Any]]]:
        return Polygons, (self.shapes,)

    @classmethod
    def open(cls, path: Path, grid: Grid, layer: str | None = None) -> "Polygons":
        """All polygons of a file that lie on the grid, perhaps none, with the errors of VectorLabels.open."""
        return _on_grid(path, read_features(path, Burn(layer=layer), None, grid.georeference), grid)[0]

    def bounds(self, chosen: NDArray[np.int64]) -> tuple[float, float, float, float]:
        """Left, top, right and bottom of the polygons of those numbers."""
        left, top, right, bottom = libraries().shapely.total_bounds(self.shapes[chosen])
        return float(left), float(top), float(right), float(bottom)

    def near(self, window: Window) -> NDArray[np.int64]:
        """Numbers of the polygons whose boxes touch a window, in the file's order."""
        box = libraries().shapely.box(window.col, window.row, window.stop_col, window.stop_row)
        return np.sort(np.asarray(self._tree.query(box), np.int64))

    def cells(self, windows: list[Window]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """For each window, whether its centre is in a polygon, and whether it shares any area with one."""
        shapely = libraries().shapely
        shapes = shapely.make_valid(self.shapes)
        tree = shapely.STRtree(shapes)
        box = np.array([(w.col, w.row, w.stop_col, w.stop_row) for w in windows], float).T
        boxes = shapely.box(*box)
        centres = shapely.points((box[0] + box[2]) / 2, (box[1] + box[3]) / 2)
        centred, touched = np.zeros(len(windows), np.bool_), np.zeros(len(windows), np.bool_)
        centred[tree.query(centres, predicate="intersects")[0]] = True
        cell, polygon = tree.query(boxes, predicate="intersects")
        shared = ~shapely.touches(boxes[cell], shapes[polygon])
        touched[cell[shared]] = True
        return centred, touched


@dataclass(frozen=True, slots=True)
class Zones:
    """The polygons of a file, each for itself; what lies on a grid is there in one piece or more."""

    names: list[str]
    """What a field says of each polygon of the file, or its number from 1 on; also of those not on the grid."""
    polygons: Polygons
    """The pieces on the grid."""
    numbers: NDArray[np.int64]
    """Of each piece: the number among `names`."""

    @classmethod
    def open(cls, path: Path, grid: Grid, field: str | None = None, layer: str | None = None) -> "Zones":
        """All polygons of a file, perhaps none on the grid. InputError where they cannot be read or placed."""
        if path.suffix.lower() not in VECTOR_SUFFIXES:
            raise InputError(
                "format-unsupported",
                "{path} is no file of polygons; one of {formats} is supported",
                path=path,
                formats=", ".join(VECTOR_SUFFIXES),
            )
        try:
            features = read_features(
                path, Burn(field, {} if field is None else {"any": 0}, layer=layer), None, grid.georeference
            )
            polygons, numbers = _on_grid(path, features, grid)
        except TrainingError as error:  # the reader takes all polygons for labels, and these are none
            raise InputError("polygons-unusable", "{reason}", reason=error) from error
        names = features.values if field is not None else [str(k + 1) for k in range(len(features.shapes))]
        return cls(names, polygons, numbers)


def _on_grid(path: Path, features: Features, grid: Grid) -> tuple[Polygons, NDArray[np.int64]]:
    """The polygons that lie on the grid, in its pixels, and their numbers."""
    shapely = libraries().shapely
    plane = Grid(grid.size, features.georeference)
    shapes = shapely.transform(features.shapes, lambda points: np.stack(plane.to_plane(*points.T), axis=1))
    numbers = np.arange(len(shapes))
    change = change_of_system(features.georeference, grid.georeference)
    turn = turn_of(features.georeference)
    box = _box_of(grid, features.georeference, change, turn)
    if turn is not None and box is not None:
        shapes, numbers = _turned(shapes, box, turn)
        _check_edges(path, shapes, turn)
    if change is not None:
        shapes, near = _near_box(shapes, box)
        shapes, numbers = _bent(path, shapes, grid, change), numbers[near]
    shapes = shapely.transform(shapes, lambda points: _pixels(points, grid, change))
    far = np.flatnonzero(np.abs(shapely.bounds(shapes)).max(axis=1, initial=0) > _FAR)
    for k in far:
        shapes[k] = _clipped(shapes[k], (-_FAR, -_FAR, _FAR, _FAR))
    here = np.sort(shapely.STRtree(shapes).query(shapely.box(0, 0, grid.size.width, grid.size.height)))
    pieces = [list(_pieces(shape)) for shape in shapes[here]]
    flat = shapely.transform(np.array([piece for of_one in pieces for piece in of_one], object), _rounded)
    return Polygons(flat), np.repeat(numbers[here], [len(of_one) for of_one in pieces])


Box = tuple[float, float, float, float]
"""Left, low, right, high."""


def _box_of(grid: Grid, own: GeoReference, change: Change | None, turn: float | None) -> Box | None:
    """Return a box around a grid in the polygons' own system, somewhat larger where the two systems differ.

    Longitudes go on beyond the dateline: from the smallest gap that they leave. None where no point can be placed.
    """
    x, y = np.broadcast_arrays(*grid.to_plane(*grid.outline()))
    if change is not None:
        back = change_of_system(grid.georeference, own)
        assert back is not None
        x, y = back(x, y)
    points = np.stack([x.ravel(), y.ravel()])
    points = points[:, np.isfinite(points).all(axis=0)]
    if not points.size:
        return None
    if turn is not None and change is not None:
        around = np.sort(np.unique(points[0] % turn))
        gaps = np.diff(around, append=around[0] + turn)
        first = around[(int(gaps.argmax()) + 1) % len(around)]
        points[0] = first + (points[0] - first) % turn
        points[0] -= turn * round((points[0].min() + points[0].max()) / 2 / turn)
    low, high = points.min(axis=1), points.max(axis=1)
    if change is not None:
        low, high = low - 0.1 * (high - low), high + 0.1 * (high - low)
    return float(low[0]), float(low[1]), float(high[0]), float(high[1])


def _check_edges(path: Path, shapes: NDArray[Any], turn: float) -> None:
    """InputError for an edge of more than half a turn, but not a whole one: it may go the other way round."""
    shapely = libraries().shapely
    points, ring = shapely.get_coordinates(shapely.get_rings(shapely.get_parts(shapes)), return_index=True)
    edge = np.flatnonzero(ring[1:] == ring[:-1])
    start, stop = points[edge, 0], points[edge + 1, 0]
    wide = np.flatnonzero((np.abs(stop - start) > turn / 2) & (np.abs(stop - start) < turn))
    if wide.size:
        raise InputError(
            "polygons-ambiguous",
            "{path}: an edge goes from longitude {start:.10g} to {stop:.10g}, round the Earth or across the dateline; "
            "cut the polygon at the dateline (ogr2ogr -wrapdateline), or give the edge a point in between",
            path=path,
            start=float(start[wide[0]]),
            stop=float(stop[wide[0]]),
        )


def _turned(shapes: NDArray[Any], box: Box, turn: float) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Return polygons moved by whole turns of longitude to where they meet a box, and their numbers.

    One that meets it in two places is there twice: longitudes of 0 to 360 and of -180 to 180 are the same.
    """
    shapely = libraries().shapely
    left, _, right, _ = shapely.bounds(shapes).T
    found, numbers = [shapes[:0]], [np.arange(0)]
    for turns in range(-_MOST_TURNS, _MOST_TURNS + 1):
        by = turns * turn
        here = np.flatnonzero((left + by <= box[2]) & (right + by >= box[0]))
        found.append(shapely.transform(shapes[here], partial(np.add, (by, 0.0))) if turns else shapes[here])
        numbers.append(here)
    order = np.argsort(np.concatenate(numbers), kind="stable")
    return np.concatenate(found)[order], np.concatenate(numbers)[order]


def _near_box(shapes: NDArray[Any], box: Box | None) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Return what lies in a box, and the numbers of it.

    Far away, an edge may leave the domain of the grid's system, or need millions of points.
    """
    if box is None:
        return shapes[:0], np.arange(0)
    low, high = np.array(box[:2]), np.array(box[2:])
    bounds = libraries().shapely.bounds(shapes)
    near = np.flatnonzero((bounds[:, :2] <= high).all(axis=1) & (bounds[:, 2:] >= low).all(axis=1))
    shapes, bounds = shapes[near], bounds[near]
    beyond = np.flatnonzero((bounds[:, :2] < low).any(axis=1) | (bounds[:, 2:] > high).any(axis=1))
    for k in beyond:
        shapes[k] = _clipped(shapes[k], (*low, *high))
    return shapes, near


def _clipped(shape: Any, box: tuple[float, ...]) -> Any:
    """What of a polygon lies in a box (left, low, right, high), without the lines and points that may remain."""
    shapely = libraries().shapely
    parts = shapely.get_parts(shapely.get_parts(shapely.clip_by_rect(shapely.make_valid(shape), *box)))
    return shapely.multipolygons([part for part in parts if part.geom_type == "Polygon"])


def _pieces(shape: Any) -> Iterator[Any]:
    """A large polygon in parts, cut along borders of pixels, where no centre lies."""
    left, top, right, bottom = shape.bounds if not shape.is_empty else (0, 0, 0, 0)
    if libraries().shapely.get_num_coordinates(shape) <= _VERTICES or max(right - left, bottom - top) < 2:
        if not shape.is_empty:
            yield shape
        return
    if right - left >= bottom - top:
        middle = float(round((left + right) / 2))
        halves = (left, top, middle, bottom), (middle, top, right, bottom)
    else:
        middle = float(round((top + bottom) / 2))
        halves = (left, top, right, middle), (left, middle, right, bottom)
    for half in halves:
        yield from _pieces(_clipped(shape, half))


def _bent(path: Path, shapes: NDArray[Any], grid: Grid, change: Change) -> NDArray[Any]:
    """Polygons with points added until their edges, straight in the grid's system, follow the true curves."""
    shapely = libraries().shapely
    shapes = shapes.copy()
    for _ in range(_ROUNDS):
        parts, polygon = shapely.get_parts(shapes, return_index=True)
        rings, part = shapely.get_rings(parts, return_index=True)
        polygon = polygon[part]
        points, ring = shapely.get_coordinates(rings, return_index=True)
        edge = np.flatnonzero(ring[1:] == ring[:-1])
        start, stop = points[edge], points[edge + 1]
        ends = _pixels(start, grid, change), _pixels(stop, grid, change)
        away = np.zeros(len(edge))
        for t in (0.25, 0.5):  # two points: an edge that bends both ways is straight at its middle
            curve, chord = _pixels(start + t * (stop - start), grid, change), ends[0] + t * (ends[1] - ends[0])
            away = np.maximum(away, np.abs(curve - chord).max(axis=1))
        if not np.isfinite(away).all():
            break
        rough = np.unique(polygon[ring[edge[away > _STRAIGHT]]])
        if not rough.size:
            return shapes
        longest = np.zeros(len(shapes))
        np.maximum.at(longest, polygon[ring[edge]], np.hypot(*(stop - start).T))
        shapes[rough] = shapely.segmentize(shapes[rough], longest[rough] / 4)
    raise TrainingError(
        "polygons-beyond-crs",
        "{path}: a polygon leaves what the image's reference system can show, or crosses its edge; "
        "cut it there, or bring the polygons to the image's system (ogr2ogr -t_srs)",
        path=path,
    )


def _pixels(points: NDArray[np.float64], grid: Grid, change: Change | None) -> NDArray[np.float64]:
    """Points (n, 2) as columns and rows of the grid, rounded to a small part of a pixel."""
    x, y = points.T
    col, row = grid.to_pixels(*(change(x, y) if change else (x, y)))
    return _rounded(np.stack([col, row], axis=1))


def _rounded(points: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(np.round(points * _STEPS) / _STEPS)
