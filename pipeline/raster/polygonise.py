"""Polygons of equal class ids, strip by strip, joined where strips meet: the same as of the whole map at once.

A strip is some rows of the map in its full width. What ends within it is done. What touches its lower edge is an open
piece, and grows with the pieces of the next strip that it shares a part of that edge with:

    strip 0   A A . . B        A has two legs; that they are one region shows in strip 2 only
    --------- A . . A B ------ each strip's pieces: rasterio.features.shapes, pixels that share a side
    strip 1   A . . A B
    --------- A . . A . ------ B has no piece that touches this edge: its pieces are joined, once (see seams.py)
    strip 2   A A A A .

Vertices are whole pixels until the very end: x is the column and y the row of a corner of a pixel, counted from the
map's upper left corner. Pixels and areas are sums over a piece's edges, before anything is simplified.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fcn_batch.pipeline.core.errors import OptionError
from fcn_batch.pipeline.raster.features import libraries
from fcn_batch.pipeline.raster.outlines import Indices, Pieces, Regions, Strip, pieces_of
from fcn_batch.pipeline.raster.seams import without_seams

_GEOS = (3, 12, 0)  # the first with coverages


def polygonise(
    strips: Iterable[Strip], row_areas: NDArray[np.float64] | None, simplify: float = 0.0
) -> Iterator[Regions]:
    """The regions of a map's strips, given from top to bottom, each as soon as no further strip can reach it.

    `row_areas` holds square metres of a pixel of each row of the map. `simplify`, in pixels: leave vertices out whose
    triangle with their neighbours is smaller than its square, in both of the regions that a border parts; vertices on
    the edges of strips stay. A region smaller than that may vanish into what is around it. OptionError when
    simplifying is asked of a GEOS that cannot.
    """
    if simplify > 0 and libraries().shapely.geos_version < _GEOS:
        have = ".".join(str(part) for part in libraries().shapely.geos_version)
        raise OptionError(f"simplify {simplify}: shapely has GEOS {have}, it takes 3.12: pip install 'shapely>=2.1'")
    border = _Border()
    for strip in strips:
        pieces = pieces_of(strip, row_areas, simplify)
        yield from border.join(pieces, strip, drop_straight=simplify <= 0)


@dataclass(slots=True)
class _Open:
    """A region that goes on below the last strip."""

    id: int
    pixels: int = 0
    area: float = 0.0
    shapes: list[Any] = field(default_factory=list)

    def take(self, other: "_Open") -> None:
        self.pixels += other.pixels
        self.area += other.area
        self.shapes += other.shapes


class _Border:
    """What is open along the lower edge of the strips so far."""

    def __init__(self) -> None:
        self._open: list[_Open] = []
        self._lines: list[int] = []  # first rows of the strips, but the map's
        self._at: Indices | None = None  # (cols,): the number of the open region, -1 where there is none

    def join(self, pieces: Pieces, strip: Strip, *, drop_straight: bool) -> Iterator[Regions]:
        """Take in a strip's pieces; the regions that end in this strip."""
        top, bottom = pieces.top, pieces.bottom
        if strip.above is not None:
            self._lines.append(strip.row)
        touching = np.unique(np.concatenate([top, bottom]))
        touching = touching[touching >= 0]
        inner = np.ones(len(pieces.regions), np.bool_)
        inner[touching] = False
        yield pieces.regions.only(inner)
        number = np.full(len(pieces.regions) + 1, -1)  # of a piece among open regions and touching pieces
        number[touching] = len(self._open) + np.arange(len(touching))
        members = self._open + [_open(pieces.regions, int(k)) for k in touching]
        root = _roots(len(members), self._shared(number[top], strip))
        goes_on = np.zeros(len(members), np.bool_)
        goes_on[root[number[bottom[bottom >= 0]]]] = True
        groups: dict[int, _Open] = {}
        for k, member in enumerate(members):
            if (group := groups.setdefault(int(root[k]), member)) is not member:
                group.take(member)
        order = {r: n for n, r in enumerate(r for r in groups if goes_on[r])}
        self._open = [groups[r] for r in order]
        renumber = np.full(len(members) + 1, -1)
        renumber[list(order)] = list(order.values())
        self._at = renumber[np.append(root, -1)[number[bottom]]]
        ended = [group for r, group in groups.items() if not goes_on[r]]
        yield _ended(
            ended, np.array(self._lines), drop_straight=drop_straight, located=pieces.regions.areas is not None
        )

    def _shared(self, below: Indices, strip: Strip) -> Indices:
        """Pairs (n, 2) of an open region and a touching piece that share a part of the edge between them."""
        if self._at is None or strip.above is None:
            return np.empty((0, 2), np.int64)
        same = (strip.above == strip.ids[0]) & (self._at >= 0) & (below >= 0)
        return np.unique(np.stack([self._at[same], below[same]], axis=1), axis=0)


def _open(regions: Regions, k: int) -> _Open:
    area = 0.0 if regions.areas is None else float(regions.areas[k])
    return _Open(int(regions.ids[k]), int(regions.pixels[k]), area, [regions.shapes[k]])


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


def _ended(groups: list[_Open], lines: Indices, *, drop_straight: bool, located: bool) -> Regions:
    """Open regions that have no piece below any more, united."""
    found = without_seams([group.shapes for group in groups], lines, drop_straight=drop_straight)
    return Regions(
        found,
        np.array([group.id for group in groups], np.uint8),
        np.array([group.pixels for group in groups], np.int64),
        np.array([group.area for group in groups], np.float64) if located else None,
    )
