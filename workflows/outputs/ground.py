"""How a map lies on the ground: metres per pixel and the direction of north in its middle, for pictures of it."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fcn_batch.pipeline.core.errors import InputError
from fcn_batch.pipeline.core.geometry import Size
from fcn_batch.pipeline.core.georeference import IDENTITY, GeoReference
from fcn_batch.pipeline.raster.crs import change_of_system, wkt_of

Numbers = NDArray[np.float64]
_RADIUS, _FLATTENING = 6378137.0, 1 / 298.257223563
"""Of the Earth, in metres (WGS 84)."""
_SPAN = 0.005
"""Share of the map's shorter side over which its middle is looked at."""
_SAME = 0.1


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
