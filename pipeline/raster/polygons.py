"""Polygons of equal class ids, strip by strip, joined where strips meet: the same as of the whole map at once.

rasterio.features.shapes of a whole map keeps all of its polygons in memory; a strip's are dropped as soon as they are
written. A strip is some rows of the map in its full width. What ends within it is done. What touches its lower edge is
an open piece, and grows with the pieces of the next strip that it shares a part of that edge with:

    strip 0   A A . . B        A has two legs; that they are one region shows in strip 2 only
    --------- A . . A B ------ each strip's pieces: rasterio.features.shapes, pixels that share a side
    strip 1   A . . A B
    --------- A . . A . ------ B has no piece that touches this edge: its pieces are united, once
    strip 2   A A A A .

Vertices are corners of pixels until the very end: x is the column, y the row, counted from the map's upper left
corner. Pixels and areas are sums over a polygon's edges, before anything is simplified.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rasterio.features import shapes as shapes_of

from fcn_batch.pipeline.core.classes import NODATA
from fcn_batch.pipeline.core.errors import OptionError
from fcn_batch.pipeline.core.geometry import Window, round_up
from fcn_batch.pipeline.core.maps import ClassMap, Ids
from fcn_batch.pipeline.raster.features import libraries

_GEOS = (3, 12, 0)  # the first with coverages
_PART = 2**18  # vertices to turn into an array at a time, and points to look at
_STRIP = 2**22  # pixels; some 200 bytes each at worst
_SIMPLE_STRIP = 2**24  # pixels, where vertices on the edges of strips stay
_BORDERS = 2**20  # between pixels side by side in a strip, of ids that differ: a map of noise gets low strips
_READ = 2**28  # pixels to read at once at most, where storage blocks are high

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
    pixels: Indices
    """How many pixels each has."""
    areas: Floats | None
    """Square metres on the ground; None where that cannot be said."""

    def __len__(self) -> int:
        return len(self.shapes)

    def only(self, chosen: NDArray[Any]) -> "Regions":
        """Return those of a mask, or of indices."""
        areas = None if self.areas is None else self.areas[chosen]
        return Regions(self.shapes[chosen], self.ids[chosen], self.pixels[chosen], areas)


@dataclass(frozen=True, slots=True)
class _Open:
    """A region that goes on below the last strip."""

    id: int
    pixels: int
    area: float
    shapes: list[Any]


def strips_of(source: ClassMap, *, simplify: bool = False) -> Iterator[Strip]:
    """Cut the map into strips of its full width, from top to bottom, lower ones where it is noisy.

    The same strips for the same pixels, whatever file they are in. Storage blocks are read once where they fit.
    """
    height, width = source.size.height, source.size.width
    rows = max(1, (_SIMPLE_STRIP if simplify else _STRIP) // width)
    step = max(1, min(round_up(rows, source.block[0]), _READ // width))
    above: Ids | None = None
    waiting: Ids = np.empty((0, width), np.uint8)
    row = read = 0
    while row < height:
        while read < min(row + rows + 1, height):
            more = source.read(Window(read, 0, min(step, height - read), width))
            waiting = np.concatenate([waiting, more])
            read += len(more)
        ids = waiting[:rows]
        borders = np.cumsum((ids[:, 1:] != ids[:, :-1]).sum(axis=1))
        ids = ids[: max(1, int(np.searchsorted(borders, _BORDERS, side="right")))]
        waiting = waiting[len(ids) :]
        yield Strip(row, ids, above, waiting[0] if row + len(ids) < height else None)
        above, row = ids[-1], row + len(ids)


def polygonise(strips: Iterable[Strip], row_areas: Floats | None, simplify: float = 0.0) -> Iterator[Regions]:
    """Return the regions of a map's strips, given from top to bottom, each as soon as no further strip can reach it.

    `row_areas` holds square metres of a pixel of each row of the map. `simplify`, in pixels: leave vertices out whose
    triangle with their neighbours is smaller than its square, in both of the regions that a border parts; vertices on
    the edges of strips stay. A region smaller than that may vanish into what is around it. OptionError when
    simplifying is asked of a GEOS that cannot.
    """
    if simplify > 0 and libraries().shapely.geos_version < _GEOS:
        have = ".".join(str(part) for part in libraries().shapely.geos_version)
        raise OptionError(
            "library-too-old",
            "simplify {simplify}: shapely has GEOS {have} and it takes 3.12 or newer: pip install 'shapely>=2.1'",
            simplify=simplify,
            have=have,
        )
    growing: list[_Open] = []
    at: Indices | None = None  # (cols,): the number of the open region at the last strip's lower edge, -1: none
    for strip in strips:
        regions, top, bottom = _pieces(strip, row_areas, simplify)
        touching = np.unique(np.concatenate([top, bottom]))
        touching = touching[touching >= 0]
        inner = np.ones(len(regions), np.bool_)
        inner[touching] = False
        yield regions.only(inner)
        number = np.full(len(regions) + 1, -1)  # of a piece among open regions and touching pieces
        number[touching] = len(growing) + np.arange(len(touching))
        members = growing + [_open(regions, int(k)) for k in touching]
        root = _roots(len(members), _shared(at, number[top], strip))
        lower = np.append(root, -1)[number[bottom]]
        groups: dict[int, list[_Open]] = {}
        for k, member in enumerate(members):
            groups.setdefault(int(root[k]), []).append(member)
        goes_on = {*lower.tolist()}
        going = [r for r in groups if r in goes_on]
        ended = [_joined(groups[r]) for r in groups if r not in goes_on]
        growing = [_joined(groups[r]) for r in going]
        renumber = np.full(len(members) + 1, -1)
        renumber[going] = np.arange(len(going))
        at = renumber[lower]
        yield _united(ended, drop_straight=simplify <= 0, located=row_areas is not None)


def _open(regions: Regions, k: int) -> _Open:
    area = 0.0 if regions.areas is None else float(regions.areas[k])
    return _Open(int(regions.ids[k]), int(regions.pixels[k]), area, [regions.shapes[k]])


def _joined(members: list[_Open]) -> _Open:
    shapes = [shape for member in members for shape in member.shapes]
    return _Open(members[0].id, sum(m.pixels for m in members), sum(m.area for m in members), shapes)


def _shared(at: Indices | None, below: Indices, strip: Strip) -> Indices:
    """Pairs (n, 2) of an open region and a touching piece that share a part of the edge between them."""
    if at is None or strip.above is None:
        return np.empty((0, 2), np.int64)
    same = (strip.above == strip.ids[0]) & (at >= 0) & (below >= 0)
    return np.unique(np.stack([at[same], below[same]], axis=1), axis=0)


def _roots(count: int, pairs: Indices) -> Indices:
    """For each of `count` members the smallest one that pairs connect it with.

    >>> _roots(5, np.array([[0, 3], [1, 4], [3, 4]])).tolist()
    [0, 0, 2, 0, 0]
    """
    parent = list(range(count))

    def find(k: int) -> int:
        while parent[k] != k:
            parent[k] = parent[parent[k]]
            k = parent[k]
        return k

    for one, other in pairs.tolist():
        low, high = sorted((find(one), find(other)))
        parent[high] = low
    return np.array([find(k) for k in range(count)], np.int64)


def _united(ended: list[_Open], *, drop_straight: bool, located: bool) -> Regions:
    """Open regions that have no piece below any more: the pieces of each are one polygon."""
    shapely = libraries().shapely
    shapes = np.empty(len(ended), object)
    for k, one in enumerate(ended):
        shapes[k] = one.shapes[0] if len(one.shapes) == 1 else shapely.union_all(one.shapes)
    return Regions(
        _without_straight(shapes) if drop_straight and len(shapes) else shapes,
        np.array([one.id for one in ended], np.uint8),
        np.array([one.pixels for one in ended], np.int64),
        np.array([one.area for one in ended], np.float64) if located else None,
    )


def _without_straight(shapes: NDArray[Any]) -> NDArray[Any]:
    """Polygons without the vertices at which a ring goes straight on: where pieces met."""
    shapely = libraries().shapely
    rings, region = shapely.get_rings(shapes, return_index=True)
    points, ring = shapely.get_coordinates(rings, return_index=True)
    once = np.append(ring[1:] == ring[:-1], False)  # a ring's last point is its first again
    points, ring = points[once], ring[once]
    first = np.flatnonzero(np.diff(ring, prepend=-1))
    following = np.arange(1, len(ring) + 1)
    following[np.append(first[1:], len(ring)) - 1] = first
    step = points[following] - points
    before = np.empty_like(step)
    before[following] = step
    bends = before[:, 0] * step[:, 1] != before[:, 1] * step[:, 0]
    return np.asarray(shapely.polygons(shapely.linearrings(points[bends], indices=ring[bends]), indices=region))


def _pieces(strip: Strip, row_areas: Floats | None, simplify: float) -> tuple[Regions, Indices, Indices]:
    """The regions of a strip, measured, and the number of the one at each column of its upper and its lower edge.

    -1 where there is none, and where the map ends.
    """
    shapely = libraries().shapely
    height, width = strip.ids.shape
    points, ring, polygon, ids = _traced(strip.ids, with_nodata=simplify > 0)
    pixels = np.rint(_areas(points, ring, polygon, np.arange(height + 1.0))).astype(np.int64)
    areas = None
    if row_areas is not None:
        steps = np.concatenate([[0.0], np.cumsum(row_areas[strip.row : strip.row + height])])
        areas = _areas(points, ring, polygon, steps)
    nowhere = np.full(width, -1)
    top = nowhere if strip.above is None else _along(points, ring, polygon, 0, width)
    bottom = nowhere if strip.below is None else _along(points, ring, polygon, height, width)
    found = np.empty(0, object)
    if simplify > 0:
        points, ring = _with_nodes(points, ring, strip)
    if len(ids):
        rings = shapely.linearrings(points + np.array([0, strip.row]), indices=ring)
        found = np.asarray(shapely.polygons(rings, indices=polygon))
    if simplify > 0 and len(ids):
        found = shapely.coverage_simplify(found, simplify, simplify_boundary=False)
    kept = (ids != NODATA) & ~shapely.is_empty(found)
    number = np.append(np.where(kept, np.cumsum(kept) - 1, -1), -1)
    return Regions(found, ids, pixels, areas).only(kept), number[top], number[bottom]


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
    at[_ranges(left, length)] = np.repeat(polygon[ring[edge]], length)
    return at


def _ranges(start: Indices, length: Indices) -> Indices:
    """Numbers that count up from each start.

    >>> _ranges(np.array([5, 0]), np.array([3, 2])).tolist()
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


def _with_nodes(points: Floats, ring: Indices, strip: Strip) -> tuple[Floats, Indices]:
    """Rings with a vertex at every node that they pass: neighbours then have the same ones, as coverages must."""
    step = np.diff(points, axis=0, append=points[-1:]) * (np.diff(ring, append=-1) == 0)[:, None]
    length = np.maximum(np.abs(step).sum(axis=1).astype(np.int64), 1)  # a ring's last point stands for itself
    step, nodes = np.sign(step), _nodes(strip)
    found, of_ring = [np.empty((0, 2))], [np.empty(0, np.int64)]
    for part in np.split(np.arange(len(points)), np.flatnonzero(np.diff(np.cumsum(length) // _PART)) + 1):
        along = _ranges(np.zeros(len(part), np.int64), length[part])
        every = np.repeat(points[part], length[part], axis=0) + along[:, None] * np.repeat(step[part], length[part], 0)
        col, row = every.T.astype(np.int64)
        kept = (along == 0) | nodes[row, col]
        found.append(every[kept])
        of_ring.append(np.repeat(ring[part], length[part])[kept])
    return np.concatenate(found), np.concatenate(of_ring)
