"""Where a map lies on the Earth: its outline as GeoJSON wants it, and metres per pixel and north in its middle.

Outlines are followed in small steps, so that an edge that is straight in the map's system is a curve here. Longitudes
are counted on from point to point, without a jump from 180 to -180 (GDAL cuts outlines of some systems only):

    -180         180          An outline that comes back to where it began is a ring, whose parts beyond 180 lie
      | +--+      | +--+      beyond the antimeridian. One that comes back a full turn away has gone round a pole;
      | |  |      | |  |      cut at the antimeridian it is an edge from -180 to 180, closed along the pole.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fcn_batch.pipeline.core.errors import InputError
from fcn_batch.pipeline.core.geometry import Size
from fcn_batch.pipeline.core.georeference import IDENTITY, GeoReference, GroundControl
from fcn_batch.pipeline.raster.crs import change_of_system, wkt_of

Numbers = NDArray[np.float64]
_RADIUS, _FLATTENING = 6378137.0, 1 / 298.257223563
"""Of the Earth, in metres (WGS 84)."""
_SPAN = 0.005
"""Share of the map's shorter side over which its middle is looked at."""
_SAME = 0.1
_STEPS = 64
"""Of an outline, along each side of the map."""
_DIGITS = 7
"""Of a coordinate: a centimetre."""
_STRAIGHT = 1e-10
"""Degrees that a point may lie beside the line between its neighbours and count as on it; over a side they add up."""


@dataclass(frozen=True, slots=True)
class Ground:
    """The ground under a map's middle."""

    metres: float
    """Length of a step of one column."""
    north: tuple[float, float] | None
    """(rows, cols) of a step of length 1 to the north; None when nothing says where that is."""
    same: bool
    """True when a column is about as long everywhere."""


def ground_of(ref: GeoReference, size: Size, microns: float | None = None) -> Ground | None:
    """Scale and north in the middle of a map; of a slide, its scale (`microns` per pixel); None when unknown.

    Unknown without a reference system, for systems that are not tied to the Earth, and where the map's middle is
    outside the system's domain.
    """
    if ref.crs_wkt is None:
        return None if microns is None else Ground(microns * 1e-6, None, same=True)
    middle = _steps(ref, size, 0.5, 0.5)
    if middle is None:
        return None
    metres = float(np.hypot(*middle[:, 1]))
    rows, cols = (float(part) for part in np.linalg.solve(middle, np.array([0.0, 1.0])))
    length = math.hypot(rows, cols)
    others = [_steps(ref, size, *at) for at in ((0.1, 0.5), (0.9, 0.5), (0.5, 0.1), (0.5, 0.9))]
    same = all(one is not None and abs(np.hypot(*one[:, 1]) / metres - 1) < _SAME for one in others)
    return Ground(metres, (rows / length, cols / length), same)


def degrees(ref: GeoReference, x: Numbers, y: Numbers) -> tuple[Numbers, Numbers] | None:
    """Longitude and latitude (WGS 84) of points of the system of `ref`, infinite where there is none.

    None without a system, and for one that nothing connects with the Earth.
    """
    if ref.crs_wkt is None:
        return None
    try:
        change = change_of_system(ref, GeoReference(wkt_of("EPSG:4326"), IDENTITY))
        return (x, y) if change is None else change(x, y)
    except (InputError, RuntimeError):  # PROJ's errors are RuntimeErrors: a drawing's own axes, another planet
        return None


@dataclass(frozen=True, slots=True)
class Footprint:
    """The outline of a map in longitude and latitude (WGS 84)."""

    geometry: dict[str, Any]
    """A GeoJSON geometry: Polygon, or MultiPolygon where it is cut at the antimeridian."""
    bbox: tuple[float, ...]
    """West, south, east, north; west is the larger one across the antimeridian (RFC 7946, 5.2)."""


def footprint(ref: GeoReference, size: Size, ground: GroundControl | None = None) -> Footprint | None:
    """Return the outline of a map; with ground control points only, their hull. None when nothing says where it lies.

    Where the map's edge is outside the system's domain (the corners of a full disc seen from space), the box around
    the part inside.
    """
    if ground is not None:
        points = _finite(GeoReference(ground.crs_wkt, IDENTITY), np.array([point[2:4] for point in ground.points]))
        return None if points is None or len(points) < 3 else _of_ring(_hull(_gathered(points)))
    edge = _finite(ref, _edge(ref, size))
    if edge is None:
        return None
    if len(edge) < 4 * _STEPS:
        inside = _finite(ref, _lattice(ref, size))
        return None if inside is None or len(inside) < 3 else _of_ring(_box(_gathered(inside)))
    unrolled = _unrolled(edge)
    return _around_pole(ref, size, unrolled) if _goes_round(unrolled) else _of_ring(unrolled[:-1])


def holds_pole(ref: GeoReference, size: Size) -> bool:
    """Return whether a pole lies inside a map: polygons around it have no outline in longitude and latitude."""
    edge = _finite(ref, _edge(ref, size))
    return edge is not None and len(edge) == 4 * _STEPS and _goes_round(_unrolled(edge))


def _goes_round(unrolled: Numbers) -> bool:
    return bool(abs(unrolled[-1, 0] - unrolled[0, 0]) > 180)


def _edge(ref: GeoReference, size: Size) -> Numbers:
    """Points around the map in its own system, clockwise as the map is stored, without the first one again."""
    along = np.arange(_STEPS) / _STEPS
    down = np.concatenate([0 * along, along, 1 + 0 * along, 1 - along])
    across = np.concatenate([along, 1 + 0 * along, 1 - along, 0 * along])
    return _placed(ref, down * size.height, across * size.width)


def _lattice(ref: GeoReference, size: Size) -> Numbers:
    down, across = np.meshgrid(np.linspace(0, size.height, _STEPS + 1), np.linspace(0, size.width, _STEPS + 1))
    return _placed(ref, down.ravel(), across.ravel())


def _placed(ref: GeoReference, rows: Numbers, cols: Numbers) -> Numbers:
    a, b, c, d, e, f = ref.transform
    return np.stack([a * cols + b * rows + c, d * cols + e * rows + f], axis=1)


def _finite(ref: GeoReference, points: Numbers) -> Numbers | None:
    """Longitudes and latitudes of the points that have them; None when the system says none."""
    found = degrees(ref, points[:, 0], points[:, 1])
    if found is None:
        return None
    lonlat = np.stack(found, axis=1)
    lonlat = lonlat[np.isfinite(lonlat).all(axis=1)]
    lonlat[:, 1] = np.clip(lonlat[:, 1], -90, 90)
    return lonlat


def _gathered(points: Numbers) -> Numbers:
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


def _hull(points: Numbers) -> Numbers:
    """The convex hull, counter-clockwise (Andrew's monotone chain)."""
    ordered = np.unique(points, axis=0)
    halves: list[Numbers] = []
    for along in (ordered, ordered[::-1]):
        kept: list[Numbers] = []
        for point in along:
            while len(kept) > 1:
                ahead, here = kept[-1] - kept[-2], point - kept[-2]
                if ahead[0] * here[1] - ahead[1] * here[0] > 0:
                    break
                kept.pop()
            kept.append(point)
        halves += kept[:-1]
    return np.array(halves)


def _box(points: Numbers) -> Numbers:
    (west, south), (east, north) = points.min(axis=0), points.max(axis=0)
    return np.array([[west, south], [east, south], [east, north], [west, north]])


def _unrolled(ring: Numbers) -> Numbers:
    """The ring with its first point again at its end, and longitudes that never jump."""
    closed = np.concatenate([ring, ring[:1]])
    steps = np.diff(closed[:, 0])
    steps = np.where(np.abs(steps) > 180, (steps + 180) % 360 - 180, steps)  # exactly half a turn stays as it is
    closed[1:, 0] = closed[0, 0] + np.cumsum(steps)
    return closed


def _around_pole(ref: GeoReference, size: Size, unrolled: Numbers) -> Footprint:
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


def _of_ring(ring: Numbers) -> Footprint | None:
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


def _left_of(ring: Numbers, most: float) -> Numbers:
    """The part of a ring with longitudes of at most `most` (Sutherland and Hodgman 1974)."""
    kept: list[Numbers] = []
    for here, there in zip(ring, np.roll(ring, -1, axis=0), strict=True):
        if here[0] <= most:
            kept.append(here)
        if (here[0] <= most) != (there[0] <= most):
            share = (most - here[0]) / (there[0] - here[0])
            kept.append(np.array([most, here[1] + share * (there[1] - here[1])]))
    return np.array(kept)


def _coordinates(ring: Numbers) -> list[list[float]]:
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


def _steps(ref: GeoReference, size: Size, down: float, across: float) -> Numbers | None:
    """Metres to the east (first row) and to the north for a step of one row (first column) and of one column.

    At the point so far down and across the map, as shares of its height and width; None where it cannot be said.
    """
    half = max(0.5, _SPAN * min(size.height, size.width))
    rows = down * size.height + np.array([-half, half, 0, 0])
    cols = across * size.width + np.array([0, 0, -half, half])
    a, b, c, d, e, f = ref.transform
    found = degrees(ref, a * cols + b * rows + c, d * cols + e * rows + f)
    if found is None or not np.isfinite(found).all() or np.abs(found[1]).max() >= 90:
        return None
    lon, lat = found
    at = math.radians(float(lat.mean()))
    eccentricity = _FLATTENING * (2 - _FLATTENING)
    flat = 1 - eccentricity * math.sin(at) ** 2
    across_meridians = _RADIUS / math.sqrt(flat)  # radii of curvature (Snyder 1987, eqs. 4-18 to 4-20)
    along_meridians = across_meridians * (1 - eccentricity) / flat
    turns = (lon[1::2] - lon[::2] + 180) % 360 - 180
    east = np.radians(turns) * across_meridians * math.cos(at)
    north = np.radians(lat[1::2] - lat[::2]) * along_meridians
    steps = np.stack([east, north]) / (2 * half)
    return steps if np.linalg.det(steps) != 0 else None


def round_length(most: float) -> tuple[float, str]:
    """The longest length of at most `most` metres that is 1, 2 or 5 times a power of ten, and its name.

    >>> [round_length(most) for most in (1234.0, 49.0, 0.6, 7e-4, 4.4e-6)]
    [(1000.0, '1 km'), (20.0, '20 m'), (0.5, '50 cm'), (0.0005, '500 µm'), (2e-06, '2 µm')]
    """
    power = 10.0 ** math.floor(math.log10(most))
    digit = next(digit for digit in (5, 2, 1) if digit * power <= most * (1 + 1e-9))
    length = float(f"{digit * power:.0e}")
    for unit, metres in (("km", 1e3), ("m", 1.0), ("cm", 1e-2), ("µm", 1e-6)):
        if length >= metres * (1 - 1e-9):
            return length, f"{round(length / metres, 6):,g} {unit}"
    return length, f"{length * 1e9:g} nm"
