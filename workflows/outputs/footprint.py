"""The outline of a map in longitude and latitude, as GeoJSON wants it: cut at the antimeridian, closed over a pole.

Outlines are followed in small steps, so that an edge that is straight in the map's system is a curve here, and
longitudes are counted on from point to point, without a jump from 180 to -180:

    -180         180          An outline that comes back to where it began is a ring, whose parts beyond 180 lie
      | +--+      | +--+      beyond the antimeridian. One that comes back a full turn away has gone round a pole;
      | |  |      | |  |      cut at the antimeridian it is an edge from -180 to 180, closed along the pole.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fcn_batch.pipeline.core.geometry import Size
from fcn_batch.pipeline.core.georeference import IDENTITY, GeoReference, GroundControl
from fcn_batch.workflows.outputs.ground import degrees

Points = NDArray[np.float64]
"""Longitudes and latitudes, shape (points, 2)."""
_STEPS = 64
"""Along each side of the map."""
_DIGITS = 7
"""Of a coordinate: a centimetre."""
_STRAIGHT = 1e-10
"""Degrees that a point may lie beside the line between its neighbours and count as on it; over a side they add up."""


@dataclass(frozen=True, slots=True)
class Footprint:
    """Where a map lies, in longitude and latitude (WGS 84)."""

    geometry: dict[str, Any]
    """A GeoJSON geometry: Polygon, or MultiPolygon where it is cut at the antimeridian."""
    bbox: tuple[float, ...]
    """West, south, east, north; west is the larger one across the antimeridian (RFC 7946, 5.2)."""


def footprint(ref: GeoReference, size: Size, ground: GroundControl | None = None) -> Footprint | None:
    """Where a map lies; with ground control points only, the hull of these. None when nothing says it.

    Where the map's edge is outside the system's domain (the corners of a full disc seen from space), the box around
    the part inside.
    """
    if ground is not None:
        points = np.array([point[2:4] for point in ground.points])
        found = _finite(GeoReference(ground.crs_wkt, IDENTITY), points)
        return None if found is None or len(found) < 3 else _of_ring(_hull(_gathered(found)))
    edge = _finite(ref, _edge(ref, size))
    if edge is None:
        return None
    if len(edge) < 4 * _STEPS:
        inside = _finite(ref, _lattice(ref, size))
        return None if inside is None or len(inside) < 3 else _of_ring(_box(_gathered(inside)))
    unrolled = _unrolled(edge)
    turn = unrolled[-1, 0] - unrolled[0, 0]
    if abs(turn) > 180:
        return _around_pole(ref, size, unrolled)
    return _of_ring(unrolled[:-1])


def _edge(ref: GeoReference, size: Size) -> Points:
    """Points around the map in its own system, clockwise as the map is stored, without the first one again."""
    along = np.arange(_STEPS) / _STEPS
    down = np.concatenate([0 * along, along, 1 + 0 * along, 1 - along])
    across = np.concatenate([along, 1 + 0 * along, 1 - along, 0 * along])
    return _placed(ref, down * size.height, across * size.width)


def _lattice(ref: GeoReference, size: Size) -> Points:
    down, across = np.meshgrid(np.linspace(0, size.height, _STEPS + 1), np.linspace(0, size.width, _STEPS + 1))
    return _placed(ref, down.ravel(), across.ravel())


def _placed(ref: GeoReference, rows: NDArray[np.float64], cols: NDArray[np.float64]) -> Points:
    a, b, c, d, e, f = ref.transform
    return np.stack([a * cols + b * rows + c, d * cols + e * rows + f], axis=1)


def _finite(ref: GeoReference, points: Points) -> Points | None:
    """Those of the points that have a longitude and a latitude; None when the system says none."""
    found = degrees(ref, points[:, 0], points[:, 1])
    if found is None:
        return None
    lonlat = np.stack(found, axis=1)
    lonlat = lonlat[np.isfinite(lonlat).all(axis=1)]
    lonlat[:, 1] = np.clip(lonlat[:, 1], -90, 90)
    return lonlat


def _unrolled(ring: Points) -> Points:
    """The ring with its first point again at its end, and longitudes that never jump."""
    closed = np.concatenate([ring, ring[:1]])
    steps = np.diff(closed[:, 0])
    steps = np.where(np.abs(steps) > 180, (steps + 180) % 360 - 180, steps)  # exactly half a turn stays as it is
    closed[1:, 0] = closed[0, 0] + np.cumsum(steps)
    return closed


def _gathered(points: Points) -> Points:
    """Scattered points with longitudes counted on from behind the widest gap between them.

    >>> _gathered(np.array([[170.0, 0], [-175, 1], [179, 2]]))[:, 0].tolist()
    [170.0, 185.0, 179.0]
    """
    lon = points[:, 0] % 360
    order = np.sort(lon)
    gaps = np.diff(np.concatenate([order, order[:1] + 360]))
    first = order[(int(gaps.argmax()) + 1) % len(order)]
    counted = (lon - first) % 360 + (first + 180) % 360 - 180
    return np.stack([counted, points[:, 1]], axis=1)


def _hull(points: Points) -> Points:
    """The convex hull, counter-clockwise (Andrew's monotone chain)."""
    ordered = [tuple(map(float, p)) for p in np.unique(points, axis=0)]

    def chain(along: list[tuple[float, ...]]) -> list[tuple[float, ...]]:
        kept: list[tuple[float, ...]] = []
        for x, y in along:
            while len(kept) > 1:
                (x0, y0), (x1, y1) = kept[-2:]
                if (x1 - x0) * (y - y0) - (y1 - y0) * (x - x0) > 0:
                    break
                kept.pop()
            kept.append((x, y))
        return kept[:-1]

    return np.array(chain(ordered) + chain(ordered[::-1]))


def _box(points: Points) -> Points:
    (west, south), (east, north) = points.min(axis=0), points.max(axis=0)
    return np.array([[west, south], [east, south], [east, north], [west, north]])


def _around_pole(ref: GeoReference, size: Size, unrolled: Points) -> Footprint:
    """The footprint of a map with a pole inside: `unrolled` goes once round it."""
    path = unrolled if unrolled[-1, 0] > unrolled[0, 0] else unrolled[::-1]  # eastwards
    cut = (np.floor(path[0, 0] / 360 + 0.5) + 0.5) * 360  # the antimeridian: it is crossed once
    crossing = int(np.searchsorted(np.maximum.accumulate(path[:, 0]), cut))
    latitude = float(np.interp(cut, np.maximum.accumulate(path[:, 0]), path[:, 1]))
    after = path[crossing:-1] - [360, 0]
    edge = np.concatenate([[[cut - 360, latitude]], after, path[:crossing], [[cut, latitude]]])
    edge[:, 0] = np.clip(edge[:, 0] - (cut - 180), -180, 180)
    pole = 90.0 if _holds(ref, size, 90.0) or not _holds(ref, size, -90.0) else -90.0
    ring = np.concatenate([edge, [[180, pole], [-180, pole]]])
    south, north = min(pole, float(edge[:, 1].min())), max(pole, float(edge[:, 1].max()))
    return Footprint({"type": "Polygon", "coordinates": [_coordinates(ring)]}, _rounded(-180, south, 180, north))


def _holds(ref: GeoReference, size: Size, latitude: float) -> bool:
    """True when the map's lattice comes nearer to this pole than its edge does."""
    inside, edge = _finite(ref, _lattice(ref, size)), _finite(ref, _edge(ref, size))
    if inside is None or edge is None:
        return False
    return float(np.abs(inside[:, 1] - latitude).min()) < float(np.abs(edge[:, 1] - latitude).min())


def _of_ring(ring: Points) -> Footprint | None:
    """The footprint of a ring with longitudes that do not jump, cut into what lies on either side of 180.

    None where nothing is left of it after rounding.
    """
    west, east = float(ring[:, 0].min()), float(ring[:, 0].max())
    shift = 360 * np.floor((west + 180) / 360 + 1e-12)
    ring, west, east = ring - [shift, 0], west - shift, east - shift
    south, north = float(ring[:, 1].min()), float(ring[:, 1].max())
    if east <= 180 + 10**-_DIGITS:
        ring[:, 0] = np.minimum(ring[:, 0], 180)
        if not (only := _coordinates(ring)):
            return None
        return Footprint({"type": "Polygon", "coordinates": [only]}, _rounded(west, south, min(east, 180), north))
    if east - west >= 360 - 10**-_DIGITS:
        whole = _box(np.array([[-180, south], [180, north]]))
        return Footprint({"type": "Polygon", "coordinates": [_coordinates(whole)]}, _rounded(-180, south, 180, north))
    parts = [_left_of(ring, 180.0), _left_of(ring * [-1, 1], -180.0) * [-1, 1] - [360, 0]]
    coordinates = [[points] for part in parts if (points := _coordinates(part))]
    if not coordinates:
        return None
    return Footprint({"type": "MultiPolygon", "coordinates": coordinates}, _rounded(west, south, east - 360, north))


def _left_of(ring: Points, most: float) -> Points:
    """The part of a ring with longitudes of at most `most` (Sutherland and Hodgman 1974)."""
    kept: list[Points] = []
    for here, there in zip(ring, np.roll(ring, -1, axis=0), strict=True):
        if here[0] <= most:
            kept.append(here)
        if (here[0] <= most) != (there[0] <= most):
            share = (most - here[0]) / (there[0] - here[0])
            kept.append(np.array([most, here[1] + share * (there[1] - here[1])]))
    return np.array(kept)


def _coordinates(ring: Points) -> list[list[float]]:
    """A GeoJSON ring: counter-clockwise, closed, without the points between others on a straight line.

    Empty when fewer than three points are left.

    >>> _coordinates(np.array([[0.0, 0], [1, 0], [2, 0], [2, 2], [2, 2], [0, 2]]))
    [[0.0, 0.0], [2.0, 0.0], [2.0, 2.0], [0.0, 2.0], [0.0, 0.0]]
    """
    near = np.round(ring, _DIGITS)
    # a point that is there twice: each of the two would be on the straight line of its neighbours, and both would go
    ring = ring[(near != np.roll(near, 1, axis=0)).any(axis=1)]
    x, y = ring[:, 0], ring[:, 1]
    twice_area = float((x * np.roll(y, -1) - np.roll(x, -1) * y).sum())
    ahead, behind = np.roll(ring, -1, axis=0), np.roll(ring, 1, axis=0)
    along = ahead - behind
    aside = np.abs(along[:, 0] * (y - behind[:, 1]) - along[:, 1] * (x - behind[:, 0]))
    ring = ring[aside > _STRAIGHT * np.hypot(*along.T)]
    points = [list(_rounded(*point)) for point in (ring if twice_area > 0 else ring[::-1])]
    points = [point for index, point in enumerate(points) if point != points[index - 1]]
    return [*points, points[0]] if len(points) > 2 else []


def _rounded(*values: float) -> tuple[float, ...]:
    return tuple(round(float(value), _DIGITS) + 0.0 for value in values)
