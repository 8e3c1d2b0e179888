"""The outlines of a strip of class ids: polygons, how much they hold, and where they touch the strip's edges.

Vertices are corners of pixels: x is the column, y the row, counted from the map's upper left corner. Pixels and areas
are sums over a polygon's edges, before anything is simplified.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rasterio.features import shapes as shapes_of

from fcn_batch.pipeline.core.classes import NODATA
from fcn_batch.pipeline.raster.features import libraries

_PART = 2**18  # vertices to turn into an array at a time, and points to look at

Ids = NDArray[np.uint8]
Floats = NDArray[np.float64]
Indices = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Strip:
    """Some rows of a map, and the rows that touch them."""

    row: int
    """Its first row in the map."""
    ids: Ids
    """(rows, cols), 255 where there is none."""
    above: Ids | None
    """(cols,): the row before it; None at the top of the map."""
    below: Ids | None
    """(cols,): the row after it; None at the bottom."""


@dataclass(frozen=True, slots=True)
class Regions:
    """Connected pixels of one class, a polygon each; all arrays have one entry a region."""

    shapes: NDArray[Any]
    """Polygons; x is the column, y the row."""
    ids: Ids
    """Class ids."""
    pixels: NDArray[np.int64]
    """How many pixels each has."""
    areas: NDArray[np.float64] | None
    """Square metres on the ground; None where that cannot be said."""

    def __len__(self) -> int:
        return len(self.shapes)

    def only(self, chosen: NDArray[Any]) -> "Regions":
        """Those of a mask, or of indices."""
        areas = None if self.areas is None else self.areas[chosen]
        return Regions(self.shapes[chosen], self.ids[chosen], self.pixels[chosen], areas)


@dataclass(frozen=True, slots=True)
class Pieces:
    """The regions of one strip, and which of them is at each column of its edges."""

    regions: Regions
    top: NDArray[np.int64]
    """(cols,): the number of the piece below the upper edge, -1 where there is none."""
    bottom: NDArray[np.int64]
    """(cols,): the number of the piece above the lower edge."""


def pieces_of(strip: Strip, row_areas: Floats | None, simplify: float) -> Pieces:
    """The pieces of a strip: polygons in the map's pixels, measured, and where they touch its edges."""
    shapely = libraries().shapely
    height, width = strip.ids.shape
    points, ring, polygon, ids = _traced(strip.ids, with_nodata=simplify > 0)
    count = len(ids)
    pixels = np.rint(_areas(points, ring, polygon, np.arange(height + 1.0))).astype(np.int64)
    areas = None
    if row_areas is not None:
        steps = np.concatenate([[0.0], np.cumsum(row_areas[strip.row : strip.row + height])])
        areas = _areas(points, ring, polygon, steps)
    nowhere = np.full(width, -1)
    top = nowhere if strip.above is None else _along(points, ring, polygon, 0, width)
    bottom = nowhere if strip.below is None else _along(points, ring, polygon, height, width)
    points, ring = _with_nodes(points, ring, strip, everywhere=simplify > 0)
    rings = shapely.linearrings(points + np.array([0, strip.row]), indices=ring) if count else np.empty(0, object)
    found = shapely.polygons(rings, indices=polygon) if count else np.empty(0, object)
    if simplify > 0 and count:
        found = shapely.coverage_simplify(found, simplify, simplify_boundary=False)
    regions = Regions(found, ids, pixels, areas)
    kept = (ids != NODATA) & ~shapely.is_empty(found)
    number = np.append(np.where(kept, np.cumsum(kept) - 1, -1), -1)
    return Pieces(regions.only(kept), number[top], number[bottom])


def _traced(ids: Ids, *, with_nodata: bool) -> tuple[Floats, Indices, Indices, Ids]:
    """Outlines of equal pixels that share sides: points (n, 2), the ring of each, the polygon of each ring, its id.

    Rings are closed; the first of a polygon is its outside. x counts columns, y rows, from the upper left corner.
    """
    parts = [np.empty((0, 2))]
    flat: list[tuple[float, float]] = []
    sizes: list[int] = []
    polygon: list[int] = []
    found: list[int] = []
    for shape, value in shapes_of(ids, mask=None if with_nodata else ids != NODATA, connectivity=4):
        for ring in shape["coordinates"]:
            polygon.append(len(found))
            sizes.append(len(ring))
            flat += ring
        found.append(int(value))
        if len(flat) > _PART:
            parts.append(np.array(flat))
            flat = []
    parts.append(np.array(flat).reshape(-1, 2))
    ring_of = np.repeat(np.arange(len(sizes)), sizes)
    return np.concatenate(parts), ring_of, np.array(polygon, np.int64), np.array(found, np.uint8)


def _areas(points: Floats, ring: Indices, polygon: Indices, steps: Floats) -> Floats:
    """The area of each polygon where `steps[y]` is the area of a column of pixels from row 0 to row y.

    Green's theorem: the sum of steps[y] dx along a ring. Only its level edges count, and there y is a whole number.
    """
    if not len(points):
        return np.empty(0)
    level = ring[1:] == ring[:-1]
    parts = np.where(level, steps[points[:-1, 1].astype(np.int64)] * np.diff(points[:, 0]), 0.0)
    of_ring = np.abs(np.bincount(ring[:-1], parts, len(polygon)))
    outside = np.diff(polygon, prepend=-1) > 0
    return np.asarray(np.bincount(polygon, np.where(outside, of_ring, -of_ring)), np.float64)


def _along(points: Floats, ring: Indices, polygon: Indices, y: int, width: int) -> Indices:
    """Which polygon has an edge on the line y at each column, (cols,); -1 where none has."""
    at = np.full(width, -1)
    edge = np.flatnonzero((points[:-1, 1] == y) & (points[1:, 1] == y) & (ring[1:] == ring[:-1]))
    left = np.minimum(points[edge, 0], points[edge + 1, 0]).astype(np.int64)
    length = np.abs(points[edge + 1, 0] - points[edge, 0]).astype(np.int64)
    at[ranges(left, length)] = np.repeat(polygon[ring[edge]], length)
    return at


def ranges(start: Indices, length: Indices) -> Indices:
    """Numbers that count up from each start.

    >>> ranges(np.array([5, 0]), np.array([3, 2])).tolist()
    [5, 6, 7, 0, 1]
    """
    return np.repeat(start - np.cumsum(length) + length, length) + np.arange(int(length.sum()))


def _nodes(strip: Strip) -> NDArray[np.bool_]:
    """Where borders of pixels of different ids do anything but go straight on, (rows + 1, cols + 1).

    The strip's own edges count as borders, and so does what begins or ends on their other side: both strips then have
    a vertex there.
    """
    height, width = strip.ids.shape
    around = np.full((height + 2, width + 2), -1, np.int16)
    around[1:-1, 1:-1] = strip.ids
    for row, ids in ((0, strip.above), (-1, strip.below)):
        if ids is not None:
            around[row, 1:-1] = ids
    upright = around[:, 1:] != around[:, :-1]
    level = around[1:] != around[:-1]
    level[[0, -1]] = True
    up, down, left, right = upright[:-1], upright[1:], level[:, :-1], level[:, 1:]
    return np.asarray((up != down) | (left != right) | (up & left))


def _with_nodes(points: Floats, ring: Indices, strip: Strip, *, everywhere: bool) -> tuple[Floats, Indices]:
    """Rings with a vertex at every node that they pass: neighbours then have the same ones.

    `everywhere`, as coverages must, or along the strip's edges only.
    """
    height = strip.ids.shape[0]
    step = np.diff(points, axis=0, append=points[-1:]) * (np.diff(ring, append=-1) == 0)[:, None]
    length = np.maximum(np.abs(step).sum(axis=1).astype(np.int64), 1)  # a ring's last point stands for itself
    if everywhere:
        nodes, down = _nodes(strip), 1
    else:
        ends = Strip(0, strip.ids[[0, -1]], strip.above, strip.below)
        nodes, down = _nodes(ends)[::2], height  # of its three lines the first and the last
        on_edge = (points[:, 1] == 0) & (strip.above is not None) | (points[:, 1] == height) & (strip.below is not None)
        length[~on_edge | (step[:, 1] != 0)] = 1
    step = np.sign(step)
    found, of_ring = [np.empty((0, 2))], [np.empty(0, np.int64)]
    for part in np.split(np.arange(len(points)), np.flatnonzero(np.diff(np.cumsum(length) // _PART)) + 1):
        along = ranges(np.zeros(len(part), np.int64), length[part])
        every = np.repeat(points[part], length[part], axis=0) + along[:, None] * np.repeat(step[part], length[part], 0)
        col, row = every.T.astype(np.int64)
        kept = (along == 0) | nodes[row // down, col]
        found.append(every[kept])
        of_ring.append(np.repeat(ring[part], length[part])[kept])
    return np.concatenate(found), np.concatenate(of_ring)
