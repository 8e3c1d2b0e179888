"""What a reference system means: CF metadata, authority codes, units, the area of a pixel, changes between systems.

The only module that imports pyproj. A GeoReference carries WKT text; everything that has to understand
that text is here.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pyproj import CRS, Proj, Transformer
from pyproj.exceptions import CRSError, ProjError

from fcn_batch.pipeline.core.errors import InputError
from fcn_batch.pipeline.core.geometry import Size
from fcn_batch.pipeline.core.georeference import GeoReference

Change = Callable[[NDArray[np.float64], NDArray[np.float64]], tuple[NDArray[np.float64], NDArray[np.float64]]]
"""Takes x and y of points in one system, any shape, to x and y in another; infinite where that has no such point."""
_SCALE_SAMPLES = 1024


def cf_grid_mapping(ref: GeoReference) -> dict[str, object]:
    """Attributes of a CF grid mapping variable, ready for JSON.

    Holds what pyproj's `CRS.to_cf` gives (`crs_wkt`, `grid_mapping_name` where CF has a name for the
    projection, and its parameters), `spatial_ref` (the WKT2 again, under the name GDAL reads) and
    `GeoTransform` in GDAL's order. Without a CRS only the GeoTransform. InputError for WKT that PROJ
    does not understand.
    """
    attributes: dict[str, object] = {}
    crs = _crs(ref)
    if crs is not None:
        attributes.update(_cf_parameters(crs))
        attributes["spatial_ref"] = attributes["crs_wkt"]
    attributes["GeoTransform"] = ref.gdal_geotransform
    return attributes


def wkt_of(text: str) -> str:
    """WKT2 of a reference system named as PROJ knows it, such as EPSG:4326; InputError for an unknown one."""
    try:
        return str(CRS.from_user_input(text).to_wkt("WKT2_2019"))
    except CRSError as error:
        raise InputError(
            "crs-unknown",
            "{value!r} is no reference system that PROJ knows: {reason}; give a code like EPSG:4326",
            value=text,
            reason=error,
        ) from error


def authority_code(ref: GeoReference) -> str | None:
    """Code such as "EPSG:32633", or None when no registered system is the same as this one.

    PROJ proposes a code by name and parameters; it counts only if the registered system, rebuilt from the
    code, is equivalent to the one of the raster.
    """
    crs = _crs(ref)
    match = crs.to_authority() if crs is not None else None
    if crs is None or match is None:
        return None
    registered = CRS.from_authority(*match)
    return ":".join(match) if registered.equals(crs, ignore_axis_order=True) else None


def projjson(ref: GeoReference) -> dict[str, Any] | None:
    """The reference system as PROJJSON, the form that GeoParquet takes; None without one."""
    crs = _crs(ref)
    return None if crs is None else crs.to_json_dict()


def change_of_system(source: GeoReference, target: GeoReference) -> Change | None:
    """How points of `source`'s system become points of `target`'s; None when both are in the same system.

    x is longitude or easting in either, whatever order the systems' definitions have. A reference without a
    system counts as being in the other's. InputError for WKT that PROJ does not understand.
    """
    one, other = _crs(source), _crs(target)
    if one is None or other is None or one.equals(other, ignore_axis_order=True):
        return None
    transformer = Transformer.from_crs(one, other, always_xy=True)

    def change(x: NDArray[np.float64], y: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        new_x, new_y = transformer.transform(x, y)
        return np.asarray(new_x), np.asarray(new_y)

    return change


def turn_of(ref: GeoReference) -> float | None:
    """Return the full turn of longitude in the units of a geographic system; None for any other."""
    crs = _crs(ref)
    horizontal = _horizontal(crs) if crs is not None else None
    if horizontal is None or not horizontal.is_geographic or horizontal.is_derived:
        return None
    return 2 * math.pi / float(horizontal.axis_info[0].unit_conversion_factor)


def system_name(ref: GeoReference) -> str:
    """A short name for messages: the code, else the name in the WKT.

    >>> system_name(GeoReference(None, (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)))
    'no reference system'
    """
    crs = _crs(ref)
    return "no reference system" if crs is None else authority_code(ref) or crs.name


def coordinate_attributes(ref: GeoReference) -> tuple[dict[str, object], dict[str, object]]:
    """CF attributes of the y and of the x coordinate variable, in this order.

    Longitude and latitude for geographic systems, projection coordinates in the system's own unit for
    projected ones, bare axes when there is no system or it is neither (a local drawing, say).
    """
    crs = _crs(ref)
    horizontal = _horizontal(crs) if crs is not None else None
    if horizontal is not None and horizontal.is_geographic:
        if horizontal.is_derived:
            return _axis("Y", "grid_latitude", "degrees"), _axis("X", "grid_longitude", "degrees")
        return _axis("Y", "latitude", "degrees_north"), _axis("X", "longitude", "degrees_east")
    if horizontal is not None and horizontal.is_projected:
        unit = _length_unit(horizontal)
        return _axis("Y", "projection_y_coordinate", unit), _axis("X", "projection_x_coordinate", unit)
    return {"axis": "Y", "long_name": "row coordinate"}, {"axis": "X", "long_name": "column coordinate"}


def row_areas_m2(ref: GeoReference, size: Size) -> NDArray[np.float64] | None:
    """Area on the ground, in square metres, of one pixel of each row, shape (rows,); None where it cannot be said.

    Projected systems: the area in the plane divided by the projection's areal scale (Snyder 1987, Map
    Projections - A Working Manual, ch. 4) in the middle column; in Web Mercator a pixel at 60 degrees covers a
    quarter of what it covers at the equator. Where the scale changes along a row too, the middle stands for it.
    Geographic systems: the exact area on the ellipsoid between the row's two parallels (Snyder, eq. 3-12);
    parts beyond a pole count nothing. None without a CRS, for local systems, for geographic grids that are
    rotated or have a shifted pole, and where the raster leaves the projection's domain.
    """
    crs = _crs(ref)
    horizontal = _horizontal(crs) if crs is not None else None
    if horizontal is None:
        return None
    if horizontal.is_projected:
        return _projected_row_areas(horizontal, ref, size)
    if not horizontal.is_geographic or horizontal.is_derived or ref.rotated:
        return None
    return _ellipsoid_row_areas(horizontal, ref, size.height)


def _projected_row_areas(crs: CRS, ref: GeoReference, size: Size) -> NDArray[np.float64] | None:
    """Ground areas down the middle column; the scale is smooth, so it is asked for at some rows only."""
    geodetic = crs.geodetic_crs
    if geodetic is None:
        return None
    a, b, c, d, e, f = ref.transform
    asked = np.linspace(0, size.height, min(size.height, _SCALE_SAMPLES) + 1)
    x, y = a * size.width / 2 + b * asked + c, d * size.width / 2 + e * asked + f
    try:
        lon, lat = Transformer.from_crs(crs, geodetic, always_xy=True).transform(x, y)
    except ProjError:  # some projections have no inverse
        return None
    scale = np.asarray(Proj(crs).get_factors(lon, lat).areal_scale)
    if not (np.isfinite(scale) & (scale > 0)).all():
        return None
    plane = ref.pixel_area * crs.axis_info[0].unit_conversion_factor ** 2
    areas: NDArray[np.float64] = plane / np.interp(np.arange(size.height) + 0.5, asked, scale)
    return areas


def _ellipsoid_row_areas(crs: CRS, ref: GeoReference, height: int) -> NDArray[np.float64] | None:
    """Areas of the pixels of a north-up or south-up grid in longitude and latitude, shape (height,)."""
    ellipsoid = crs.ellipsoid
    if ellipsoid is None:
        return None
    to_radians = crs.axis_info[0].unit_conversion_factor
    dx, _, _, _, dy, top = ref.transform
    edges = np.clip((top + dy * np.arange(height + 1)) * to_radians, -math.pi / 2, math.pi / 2)
    sine = np.sin(edges)
    minor = ellipsoid.semi_minor_metre
    eccentricity = math.sqrt(max(0.0, 1 - (minor / ellipsoid.semi_major_metre) ** 2))
    # Area from the equator to a parallel, for one radian of longitude. On a sphere it is r^2 sin(latitude).
    if eccentricity < 1e-9:
        north = minor**2 * sine
    else:
        es = eccentricity * sine
        north = minor**2 / 2 * (sine / (1 - es**2) + np.arctanh(es) / eccentricity)
    areas: NDArray[np.float64] = np.abs(np.diff(north)) * abs(dx) * to_radians
    return areas


def _crs(ref: GeoReference) -> CRS | None:
    """Parse the reference system; None when the raster has none; InputError for unreadable WKT."""
    if ref.crs_wkt is None:
        return None
    try:
        return CRS.from_wkt(ref.crs_wkt)
    except CRSError as error:
        raise InputError(
            "crs-invalid",
            "PROJ does not understand the raster's reference system {wkt!r:.200}: {reason}; "
            "assign a valid one, for instance with `gdal_edit.py -a_srs EPSG:32633`",
            wkt=ref.crs_wkt,
            reason=error,
        ) from error


def _horizontal(crs: CRS) -> CRS:
    """Take the part of the system that gives x and y: no heights, no datum shift tied to it."""
    while crs.is_compound or crs.is_bound:
        inner = crs.sub_crs_list[0] if crs.is_compound else crs.source_crs
        if inner is None:
            break
        crs = inner
    return crs


def _cf_parameters(crs: CRS) -> dict[str, object]:
    """`CRS.to_cf` with lists for tuples, as in JSON; the WKT2 alone where pyproj cannot translate."""
    try:
        parameters: dict[str, Any] = crs.to_cf()
    except KeyError:  # rotated poles given without all their parameters (seen with pyproj 3.7)
        parameters = {"crs_wkt": crs.to_wkt()}
    return {name: list(v) if isinstance(v, tuple) else v for name, v in parameters.items()}


def _length_unit(crs: CRS) -> str:
    """Name the unit of a projected system in a form that UDUNITS, hence CF, reads."""
    factor = crs.axis_info[0].unit_conversion_factor
    named = {1.0: "m", 1000.0: "km"}
    return named.get(factor, f"{factor!r} m")


def _axis(axis: str, standard_name: str, units: str) -> dict[str, object]:
    return {"standard_name": standard_name, "axis": axis, "units": units}
