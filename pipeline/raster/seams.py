"""Taking the edges of strips out of polygons that were traced strip by strip: exact, without any geometry engine.

The pieces of a region meet along the edges of strips and nowhere else, and both sides have a vertex wherever anything
changes there. So what they share are whole edges, walked once in each direction:

    A-------B      the upper piece's ring passes  A D G F E B,  the lower one's  F G H I:
    |       |
    D--G=F--E      the one walks from G to F, the other from F to G, and both edges are taken out.
       | |         Who comes to G from D goes on to H, and who comes to F from I goes on to E:
       H-I         A D G H I F E B
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fcn_batch.pipeline.raster.features import libraries
from fcn_batch.pipeline.raster.outlines import Floats, Indices, ranges


def without_seams(pieces: list[list[Any]], lines: Indices, *, drop_straight: bool) -> NDArray[Any]:
    """A polygon for each list of pieces of one region, in the lists' order.

    `lines` holds y of the edges between strips, sorted. `drop_straight` also leaves out all vertices at which a ring
    goes straight on.
    """
    shapely = libraries().shapely
    if not pieces:
        return np.empty(0, object)
    flat = np.array([piece for of_one in pieces for piece in of_one], object)
    region_of_piece = np.repeat(np.arange(len(pieces)), [len(of_one) for of_one in pieces])
    rings, piece = shapely.get_rings(shapely.orient_polygons(flat), return_index=True)
    points, ring = shapely.get_coordinates(rings, return_index=True)
    once = np.append(ring[1:] == ring[:-1], False)  # a ring's last point is its first again
    points, ring = points[once], ring[once]
    piece = piece[ring]
    region = region_of_piece[piece]
    following = _following(ring)
    onward, gone = _onward(points, piece, region, following, lines)
    order, new_ring = _walk(ring, following, onward, gone)
    points, region = points[order], region[order]
    if drop_straight:
        bends = _bends(points, new_ring)
        points, new_ring, region = points[bends], new_ring[bends], region[bends]
    return _polygons(points, new_ring, region)


def _following(ring: Indices) -> Indices:
    """The index of the next point of each point's ring, where rings are runs of equal numbers.

    >>> _following(np.array([0, 0, 0, 1, 1])).tolist()
    [1, 2, 0, 4, 3]
    """
    first = np.flatnonzero(np.diff(ring, prepend=-1))
    following = np.arange(1, len(ring) + 1)
    following[np.append(first[1:], len(ring)) - 1] = first
    return following


def _onward(
    points: Floats, piece: Indices, region: Indices, following: Indices, lines: Indices
) -> tuple[Indices, NDArray[np.bool_]]:
    """Where each edge, named by the point it starts from, goes on; and which edges two pieces share."""
    x, y = points.T
    on_line = np.isin(y, lines)
    gone = np.zeros(len(points), np.bool_)
    level = np.flatnonzero(on_line & (y[following] == y))
    shared = _pairs(level, region[level], y[level], np.minimum(x, x[following])[level])
    gone[np.concatenate(shared)] = True
    previous = np.empty_like(following)
    previous[following] = np.arange(len(following))
    onward = following.copy()
    coming = np.flatnonzero(~gone & gone[following])
    going = np.flatnonzero(~gone & gone[previous])
    place = following[coming]
    coming = coming[np.lexsort((x[place], y[place], region[place]))]
    onward[coming] = going[np.lexsort((x[going], y[going], region[going]))]
    # Where two pixels of a region touch at a corner, and no piece has both, each piece has walked around its own one.
    # A ring must not touch itself: it goes around the pixels between them instead.
    through = np.flatnonzero(~gone & ~gone[previous])
    one, other = _pairs(through, region[through], y[through], x[through])
    apart = piece[one] != piece[other]
    one, other = one[apart], other[apart]
    onward[previous[one]], onward[previous[other]] = other, one
    return onward, gone


def _pairs(of: Indices, *keys: NDArray[Any]) -> tuple[Indices, Indices]:
    """Those of `of` that have the same keys, two by two; no three have.

    >>> one, other = _pairs(np.array([7, 8, 9]), np.array([1, 2, 1]))
    >>> one.tolist(), other.tolist()
    ([7], [9])
    """
    order = np.lexsort(keys[::-1])
    same = np.ones(max(len(of) - 1, 0), np.bool_)
    for key in keys:
        same &= key[order][1:] == key[order][:-1]
    first = np.flatnonzero(same)
    return of[order[first]], of[order[first + 1]]


def _walk(ring: Indices, following: Indices, onward: Indices, gone: NDArray[np.bool_]) -> tuple[Indices, Indices]:
    """The points of all rings in the order of the new ones, and the new ring of each.

    Between two leaps (from a piece to another one) points follow one another as they did: only leaps are looked at.
    """
    leaps = np.flatnonzero(~gone & (onward != following))
    touched = np.zeros(int(ring[-1]) + 1, np.bool_)
    touched[ring[leaps]] = True
    untouched = np.flatnonzero(~touched[ring])
    if not leaps.size:
        return untouched, ring[untouched]
    start = onward[leaps]
    # The stretch from each start to its next leap; when that lies before it, around the end of the ring.
    first = np.searchsorted(ring, ring[start])
    last = np.searchsorted(ring, ring[start], side="right")
    at = np.searchsorted(leaps, start)
    wraps = (at == len(leaps)) | (leaps[np.minimum(at, len(leaps) - 1)] >= last)
    stop = np.where(wraps, np.searchsorted(leaps, first), at)  # a number among leaps: the stretch that comes next
    order, number = _cycles(stop)
    end = leaps[stop] + 1
    begins = np.stack([start, np.where(wraps, first, 0)], axis=1)[order]
    lengths = np.stack([np.where(wraps, last, end) - start, np.where(wraps, end - first, 0)], axis=1)[order]
    walked = ranges(begins.ravel(), lengths.ravel())
    of_walked = np.repeat(number, lengths.sum(axis=1)) + int(ring[-1]) + 1
    return np.concatenate([untouched, walked]), np.concatenate([ring[untouched], of_walked])


def _cycles(onward: Indices) -> tuple[Indices, Indices]:
    """The members of a permutation, cycle after cycle, and the number of the cycle of each.

    >>> [part.tolist() for part in _cycles(np.array([2, 1, 0]))]
    [[0, 2, 1], [0, 0, 1]]
    """
    to: list[int] = onward.tolist()
    order, number, seen, count = [], [], bytearray(len(to)), 0
    for k in range(len(to)):
        if seen[k]:
            continue
        while not seen[k]:
            seen[k] = 1
            order.append(k)
            number.append(count)
            k = to[k]  # noqa: PLW2901 - around the cycle
        count += 1
    return np.array(order, np.int64), np.array(number, np.int64)


def _bends(points: Floats, ring: Indices) -> NDArray[np.bool_]:
    """True for points at which their ring does not go straight on, a ring's first included."""
    following = _following(ring)
    step = points[following] - points
    before = np.empty_like(step)
    before[following] = step
    return np.asarray(before[:, 0] * step[:, 1] != before[:, 1] * step[:, 0])


def _polygons(points: Floats, ring: Indices, region: Indices) -> NDArray[Any]:
    """A polygon of each region; of its rings the one that turns the other way than the rest is its outside."""
    shapely = libraries().shapely
    first = np.flatnonzero(np.diff(ring, prepend=-1))
    near = points - np.repeat(points[first], np.diff(first, append=len(ring)), axis=0)  # small numbers: exact
    beyond = near[_following(ring)]
    twice = np.add.reduceat(near[:, 0] * beyond[:, 1] - near[:, 1] * beyond[:, 0], first)
    order = np.lexsort((twice < 0, region[first]))
    size = np.diff(first, append=len(ring))[order]
    rings = shapely.linearrings(points[ranges(first[order], size)], indices=np.repeat(np.arange(len(order)), size))
    return np.asarray(shapely.polygons(rings, indices=region[first][order]))
