"""Where an image in a zarr store lies on the Earth, and what its values mean, by the conventions in use.

    system      grid mapping (CF, rioxarray), _CRS (GDAL), proj:…
    transform   GeoTransform of the grid mapping, spatial:transform, proj:transform, or the coordinates x and y

A transform stays as it is when somebody cuts a window out of a store; the coordinates do not. So where both are there
and differ, the coordinates count.
"""

import base64
import json
import math
import re
import struct
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import numpy as np
import zarr

from fcn_batch.pipeline.core.errors import InputError
from fcn_batch.pipeline.core.geometry import Size
from fcn_batch.pipeline.core.georeference import IDENTITY, GeoReference
from fcn_batch.pipeline.store.opening import UNSAFE, judged, open_node
from fcn_batch.pipeline.store.zarrimage import DIMENSIONS, Array, Image, dimensions, store_of

Transform = tuple[float, float, float, float, float, float]
_MOST_ASIDE = 0.1
"""Pixels that a coordinate may be away from where even spacing puts it."""
_LONGEST_NAME = 256
"""Characters of the names of bands in a coordinate."""
_WKT2 = re.compile(r"\s*(BOUND|COMPOUND|DERIVEDPROJ|ENG|GEOD|GEOG|PARAMETRIC|PROJ|TIME|VERT)CRS\s*\[")
_NAMED = re.compile(r"\s*(\w+\[.*|\{.*|[A-Za-z]+:\d+|https?://www\.opengis\.net/def/crs/[\w./]+)\s*", re.DOTALL)
"""WKT, PROJJSON, codes and their URLs: PROJ would take names of files too."""
_COLOURS = {"red", "green", "blue", "alpha"}


def place_of(image: Image, wkt_of: Callable[[str], str]) -> GeoReference:
    """Reference system and transform of an image; the identity where nothing says it.

    `wkt_of` gives WKT2 of a system in another form. InputError for coordinates that are not evenly spaced, or systems
    that nobody knows; ValueError and the like for metadata that are broken.
    """
    mapping = _grid_mapping(image)
    blocks = [image.arrays[0].attrs.asdict(), *(group.attrs.asdict() for group in image.groups)]
    named = next(_systems(mapping, blocks, image), None)
    wkt = None if named is None else _wkt(named, wkt_of)
    declared = next(_declared(mapping, blocks), None)
    if declared is not None and (declared[1] or declared[3]):
        return GeoReference(wkt, declared)
    measured = _measured(image)
    if measured is not None and (declared is None or _apart(declared, measured, image.size)):
        declared = measured
    return GeoReference(wkt, declared or IDENTITY)


def _grid_mapping(image: Image) -> Mapping[str, Any]:
    """Attributes of the variable that CF calls so; empty where there is none."""
    named = str(image.arrays[0].attrs.get("grid_mapping", "")).split(":")[0].split()
    found = (_sibling(image, name) for name in (*named[:1], "spatial_ref", "crs"))
    return next((one.attrs.asdict() for one in found if one is not None), {})


def _sibling(image: Image, name: str) -> Array | None:
    """An array in the same group; None where there is none."""
    if not image.groups or not name or Path(name).name != name:
        return None
    group = image.groups[0]
    if group.metadata.consolidated_metadata is not None:
        node: Any = group.get(name)
    else:
        try:
            node = open_node(store_of(group), f"{group.path}/{name}".strip("/"))
        except FileNotFoundError:
            return None
    return node if isinstance(node, zarr.Array) else None


def _systems(mapping: Mapping[str, Any], blocks: list[dict[str, Any]], image: Image) -> Iterator[str]:
    """How the reference system is named, the surest form first; last comes what is in a side file."""
    yield from (str(mapping[key]) for key in ("crs_wkt", "spatial_ref") if mapping.get(key))
    for block in blocks:
        gdal = block.get("_CRS")
        found = {**block, **({f"_CRS:{key}": value for key, value in gdal.items()} if isinstance(gdal, dict) else {})}
        for key in ("proj:wkt2", "_CRS:wkt", "proj:projjson", "_CRS:projjson", "proj:code", "_CRS:url"):
            if found.get(key):
                yield json.dumps(found[key]) if isinstance(found[key], dict) else str(found[key])
        if found.get("proj:epsg"):
            yield f"EPSG:{found['proj:epsg']}"
    for group in image.groups:  # where GDAL keeps the system of arrays of three dimensions
        key = f"{group.path}/pam.aux.xml".strip("/")
        if store_of(group).has(key):
            try:
                root = ET.fromstring(store_of(group).text(key))  # noqa: S314 - expat itself refuses bombs
            except ET.ParseError as error:
                raise ValueError(f"pam.aux.xml: {error}") from error
            yield from (one.text for one in root.iter("SRS") if one.text)


def _wkt(named: str, wkt_of: Callable[[str], str]) -> str:
    if _WKT2.match(named):
        return named
    if not _NAMED.fullmatch(named):
        raise InputError("crs-unknown", "unknown reference system {crs}; write it as WKT or EPSG:CODE", crs=named[:200])
    return wkt_of(named)


def _declared(mapping: Mapping[str, Any], blocks: list[dict[str, Any]]) -> Iterator[Transform]:
    """Transforms as they stand in the metadata, in rasterio's order."""
    gdal = mapping.get("GeoTransform")
    if gdal:
        c, a, b, f, d, e = _numbers(gdal.split() if isinstance(gdal, str) else gdal)
        yield a, b, c, d, e, f
    for block in blocks:
        if block.get("spatial:transform") and block.get("spatial:transform_type", "affine") == "affine":
            found = GeoReference(None, _numbers(block["spatial:transform"]))
            yield (found.moved(-0.5, -0.5) if block.get("spatial:registration") == "node" else found).transform
        if block.get("proj:transform"):
            yield _numbers(block["proj:transform"])


def _numbers(found: Any) -> Transform:
    """The first six of a list of six, or of a matrix of nine."""
    if not isinstance(found, list) or len(found) not in (6, 9):
        raise ValueError(f"{found!r:.100} is no transform of six numbers")
    a, b, c, d, e, f = (float(number) for number in found[:6])
    if not np.isfinite([a, b, c, d, e, f]).all():
        raise ValueError(f"{found!r:.100} is no transform of six finite numbers")
    return a, b, c, d, e, f


def _measured(image: Image) -> Transform | None:
    """By the variables named as the dimensions: the centres of rows and columns. None where one is missing."""
    names = dimensions(image.arrays[0])
    axes = []
    for axis, length in ((image.axes.cols, image.size.width), (image.axes.rows, image.size.height)):
        array = _sibling(image, names[axis])
        if array is None or array.shape != (length,) or length < 2:
            return None
        axes.append(_spacing(array))
    (x, width), (y, height) = axes
    return width, 0.0, x - width / 2, 0.0, height, y - height / 2


def _spacing(array: Array) -> tuple[float, float]:
    """The first coordinate, and how far it is to the next; InputError when that changes."""
    values = np.asarray(judged(array)[...])
    centres = values.astype(np.float64)
    step = float(centres[-1] - centres[0]) / (len(centres) - 1)
    rounded = float(np.spacing(np.abs(values).max())) if values.dtype.kind == "f" else 0.0
    aside = np.abs(centres - (centres[0] + step * np.arange(len(centres)))).max()
    if not np.isfinite(centres).all() or not step or aside > _MOST_ASIDE * abs(step) + 2 * rounded:
        raise InputError(
            "coordinates-uneven",
            "{path}: coordinates that are not evenly spaced, such as {values}; bring the image to an even grid (with "
            "gdalwarp, or xarray's interp)",
            path=store_of(array).named(array.path),
            values=centres[:3].tolist(),
        )
    return float(centres[0]), step


def _apart(one: Transform, other: Transform, size: Size) -> bool:
    """True when two transforms that are not rotated put a corner of the image more than a little apart."""
    a, _, c, _, e, f = one
    g, _, i, _, k, m = other
    cols, rows = np.array([0, size.width]), np.array([0, size.height])
    x, y = (a - g) * cols + c - i, (e - k) * rows + f - m
    return bool((np.abs(x) > _MOST_ASIDE * abs(g)).any() or (np.abs(y) > _MOST_ASIDE * abs(k)).any())


def nodata_of(image: Image) -> tuple[int | float | None, ...]:
    """The value of each band that stands for no data, None where there is none that its type can have."""
    values = [_nodata(array, ome=image.is_ome) for array in image.arrays]
    return tuple(values * (image.bands // len(values)))


def scales_of(image: Image) -> tuple[tuple[float, float], ...]:
    """Scale and offset of each band; ValueError when they are no numbers."""
    pairs = []
    for array in image.arrays:
        scale, offset = (array.attrs.get(key, usual) for key, usual in (("scale_factor", 1.0), ("add_offset", 0.0)))
        pairs.append((float(scale), float(offset)))  # type: ignore[arg-type] # TypeError if they are none
        if not all(map(math.isfinite, pairs[-1])) or not pairs[-1][0]:
            raise ValueError(f"{array.basename} has a scale of {scale!r:.40} and an offset of {offset!r:.40}")
    return tuple(pairs * (image.bands // len(pairs)))


def descriptions_of(image: Image) -> tuple[str | None, ...]:
    """Names of bands: of channels and variables, else of a coordinate, else a list of rioxarray's; None without."""
    listed: Any = image.arrays[0].attrs.get("long_name") if len(image.arrays) == 1 else None
    for names in (image.names, _in_coordinate(image), listed if isinstance(listed, list) else None):
        if names and len(names) == image.bands and any(names):
            return tuple(None if name is None else str(name) for name in names)
    return (None,) * image.bands


def _in_coordinate(image: Image) -> list[str] | None:
    """What the coordinate of the bands says, where it is text; None where there is none."""
    if image.axes.bands is None or image.is_ome:
        return None
    try:
        array = _sibling(image, dimensions(image.arrays[0])[image.axes.bands])
        if array is None or array.shape != (image.bands,) or array.dtype.itemsize > 4 * _LONGEST_NAME:
            return None
        values = np.asarray(judged(array)[...])
    except UNSAFE:
        return None  # names are a convenience
    return [str(value) for value in values] if values.dtype.kind == "U" else None


def roles_of(image: Image, descriptions: tuple[str | None, ...]) -> tuple[str, ...]:
    """What each band shows: of three or four bands of bytes that are called so, or that GDAL has noted it of."""
    noted: Any = image.arrays[0].attrs.get("COLOR_INTERPRETATION")
    names = [str(name or "").lower() for name in (noted if isinstance(noted, list) else descriptions)]
    is_colour = image.arrays[0].dtype == "uint8" and image.bands in (3, 4) and len(names) == image.bands
    if not is_colour or not _COLOURS - {"alpha"} <= set(names):
        return ("undefined",) * image.bands
    return tuple(name if name in _COLOURS else "undefined" for name in names)


def _nodata(array: Array, *, ome: bool) -> int | float | None:
    """By attributes or, in format 2, by the fill value, as xarray takes it; OME has no such thing."""
    given: list[Any] = [array.attrs.get(key) for key in ("_FillValue", "nodata", "missing_value")]
    if array.metadata.zarr_format == 2 and DIMENSIONS in array.attrs and not ome:
        given.append(None if array.fill_value is None else array.fill_value.item())
    found = next((_number(value) for value in given if value is not None), None)
    if found is None:
        return None
    if array.dtype.kind == "f":
        return found
    limits = np.iinfo(array.dtype)
    return int(found) if math.isfinite(found) and found == int(found) and limits.min <= found <= limits.max else None


def _number(value: Any) -> float | None:
    """A number as JSON has it, as text ("NaN", "Infinity", "7"), or as xarray packs floats in format 3."""
    value = value[0] if isinstance(value, list) and len(value) == 1 else value
    if not isinstance(value, str):
        return float(value) if isinstance(value, int | float) else None
    try:
        return float(value)
    except ValueError:
        pass
    try:
        return float(struct.unpack("<d", base64.standard_b64decode(value))[0])
    except (ValueError, struct.error):
        return None
