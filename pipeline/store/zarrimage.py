"""Where the image is in a zarr store that others wrote, where it lies on the Earth, and what its values mean.

    an array                        (rows, cols), (bands, rows, cols) or (rows, cols, bands)
    a group, OME-Zarr               the array of a level; axes t, c, z, y, x, of which t and z have length 1
    a group of xarray's or GDAL's   its only array of pixels, or several of (rows, cols), one a band

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
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from xml.etree import ElementTree as ET

import numpy as np
import zarr

from fcn_batch.pipeline.core.errors import InputError
from fcn_batch.pipeline.core.geometry import Size
from fcn_batch.pipeline.core.georeference import IDENTITY, GeoReference
from fcn_batch.pipeline.core.location import Url
from fcn_batch.pipeline.store.opening import UNSAFE, Guarded, Node, ServerOf, group_at, judged, open_node, open_nodes

Array = zarr.Array[Any]
Transform = tuple[float, float, float, float, float, float]
_ROWS = {"y", "lat", "latitude", "northing", "row", "rows"}
_COLS = {"x", "lon", "longitude", "easting", "col", "cols", "column", "columns"}
_NO_BANDS = {"t", "time", "date", "z", "depth", "level", "altitude"}
_MICRONS = {"angstrom": 1e-4, "nanometer": 1e-3, "micrometer": 1.0, "millimeter": 1e3, "centimeter": 1e4}
_MICRONS |= {"meter": 1e6, "inch": 25400.0, "nm": 1e-3, "µm": 1.0, "um": 1.0, "micron": 1.0, "mm": 1e3, "m": 1e6}
_OLD_AXES = ["t", "c", "z", "y", "x"]
"""Of OME-Zarr 0.1 and 0.2, which do not name them."""
_MOST_LEVELS = 64
_DIMENSIONS = "_ARRAY_DIMENSIONS"
"""Where xarray and GDAL keep the names of dimensions in format 2."""
_MOST_ASIDE = 0.1
"""Pixels that a coordinate may be away from where even spacing puts it."""
_LONGEST_NAME = 256
"""Characters of the names of bands in a coordinate."""
_WKT2 = re.compile(r"\s*(BOUND|COMPOUND|DERIVEDPROJ|ENG|GEOD|GEOG|PARAMETRIC|PROJ|TIME|VERT)CRS\s*\[")
_NAMED = re.compile(r"\s*(\w+\[.*|\{.*|[A-Za-z]+:\d+|https?://www\.opengis\.net/def/crs/[\w./]+)\s*", re.DOTALL)
"""WKT, PROJJSON, codes and their URLs: PROJ would take names of files too."""
_COLOURS = {"red", "green", "blue", "alpha"}


@dataclass(frozen=True, slots=True)
class Axes:
    """Which dimension of an array holds what; all others have length 1."""

    rows: int
    cols: int
    bands: int | None
    """None: an array is one band."""

    def size(self, array: Array) -> Size:
        """Height and width of an array."""
        return Size(array.shape[self.rows], array.shape[self.cols])


@dataclass(frozen=True, slots=True)
class Image:
    """The arrays that hold an image, and what is known of it as a whole."""

    arrays: tuple[Array, ...]
    """One with all bands, or one for each band; all of one shape."""
    axes: Axes
    groups: tuple[zarr.Group, ...]
    """Groups that the arrays are in, the innermost first: they have what says where the image lies."""
    levels: tuple[Size, ...] = ()
    """Of a pyramid, the finest first."""
    names: tuple[str | None, ...] = ()
    """Of the bands, where the group knows them."""
    microns: float | None = None
    """Width of a pixel, where the group says it."""
    is_ome: bool = False

    @property
    def size(self) -> Size:
        """Height and width."""
        return self.axes.size(self.arrays[0])

    @property
    def bands(self) -> int:
        """Number of bands."""
        return len(self.arrays) if self.axes.bands is None else self.arrays[0].shape[self.axes.bands]

    @property
    def block(self) -> tuple[int, int]:
        """Rows and columns of a chunk, as much of it as lies in the image."""
        chunk, size = self.arrays[0].chunks, self.size
        return min(chunk[self.axes.rows], size.height), min(chunk[self.axes.cols], size.width)


def image_at(place: Path | Url, level: int, server_of: ServerOf | None) -> Image:
    """What is in the store, or part of a store, at `place`.

    InputError when there is no image in it, or no such level; errors of zarr and obstore when it cannot be read.
    """
    node, above = open_nodes(place, server_of)
    ome = None if isinstance(node, zarr.Array) else _multiscale(node)
    if ome is not None:
        return _of_ome(place, node, ome, level)
    if level:
        raise InputError(
            "level-missing",
            "{path} has no level {level}: it is no OME-Zarr image, the only zarr whose levels are known",
            path=place,
            level=level,
        )
    if isinstance(node, zarr.Array):
        return Image((node,), _axes(place, node), () if above is None else (above,))
    return _of_group(place, node)


def _of_group(place: Path | Url, group: zarr.Group) -> Image:
    """Arrays that are one image; InputError when there is none, or more than one."""
    inside = _children(place, group)
    beside = {name for node in (group, *inside) for name in str(node.attrs.get("coordinates", "")).split()}
    arrays = [
        node for node in inside if isinstance(node, zarr.Array) and node.basename not in beside and _may_be_pixels(node)
    ]
    arrays = [node for node in arrays if _says_axes(node)] or arrays
    if not arrays:
        groups = ", ".join(node.basename for node in inside if isinstance(node, zarr.Group))[:200]
        raise InputError(
            "store-without-image",
            "{path}: no array of pixels in this zarr group; give one of its groups ({groups}), or another store",
            path=place,
            groups=groups or "there are none",
        )
    if len(arrays) == 1:
        return Image((arrays[0],), _axes(place, arrays[0]), (group,))
    axes = [_axes(place, node) for node in arrays]
    kinds = {(node.shape, node.dtype.name, one) for node, one in zip(arrays, axes, strict=True)}
    if len(kinds) > 1 or axes[0].bands is not None:
        listed = ", ".join(f"{one.basename} ({' x '.join(map(str, one.shape))} {one.dtype.name})" for one in arrays)
        raise InputError(
            "store-of-several-images",
            "{path}: several arrays that are not bands of one image: {arrays}; give one of them ({path}/NAME), or a "
            "group of arrays of one shape and type",
            path=place,
            arrays=listed[:500],
        )
    return Image(tuple(arrays), axes[0], (group,), names=tuple(node.basename for node in arrays))


def _children(place: Path | Url, group: zarr.Group) -> list[Node]:
    """The groups and arrays in a group, by name."""
    if group.store.web and group.metadata.consolidated_metadata is None:  # type: ignore[attr-defined] # Guarded
        raise InputError(
            "store-not-listed",
            "{path}: the server does not list what is in the group, and it has no consolidated metadata; give an array "
            "in it ({path}/NAME), or consolidate the store (zarr.consolidate_metadata)",
            path=place,
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on files that are none, and on what format 3 does not specify yet
        return [node for _, node in sorted(group.members())]


def _may_be_pixels(array: Array) -> bool:
    """False for coordinates, and for what has no rows and columns."""
    return len(array.shape) >= 2 and min(array.shape) > 0 and array.basename.lower() not in _ROWS | _COLS


def _dimensions(array: Array) -> list[str]:
    """The name of each dimension; empty where it has none."""
    metadata: Any = array.metadata
    named = array.attrs.get(_DIMENSIONS) if metadata.zarr_format == 2 else metadata.dimension_names
    if not isinstance(named, list | tuple) or len(named) != array.ndim:
        return [""] * array.ndim
    return [name if isinstance(name, str) else "" for name in named]


def _says_axes(array: Array) -> bool:
    """True where the names of the dimensions say which are rows and columns."""
    names = {name.lower() for name in _dimensions(array)}
    return not _ROWS.isdisjoint(names) and not _COLS.isdisjoint(names)


def _axes(place: Path | Url, array: Array) -> Axes:
    """By the names of the dimensions; else by their order, bands being the shorter of the first and the last.

    InputError when more than bands is beside rows and columns.
    """
    names, shape = [name.lower() for name in _dimensions(array)], array.shape
    if len(shape) < 2 or min(shape) < 1:
        raise InputError(
            "store-without-image",
            "{path}: an array of shape {shape}; give one of rows and columns, and bands if any",
            path=place,
            shape=str(shape)[:60],
        )
    rows, cols = len(shape) - 2, len(shape) - 1
    if _says_axes(array):
        rows, cols = (next(k for k, name in enumerate(names) if name in some) for some in (_ROWS, _COLS))
    elif len(shape) > 2 and shape[-1] < shape[-3]:
        rows, cols = rows - 1, cols - 1
    wide = [k for k in range(len(shape)) if shape[k] > 1 and k not in (rows, cols)]
    if len(wide) > 1 or any(names[k] in _NO_BANDS for k in wide):
        extra = ", ".join(f"{shape[k]} along {names[k] or f'dimension {k}'}" for k in wide)
        raise _several(place, extra)
    return Axes(rows, cols, wide[0] if wide else None)


def _several(place: Path | Url, extra: str) -> InputError:
    return InputError(
        "store-of-several-images",
        "{path}: has {extra}; cut one image out of it: beside rows and columns there may only be bands",
        path=place,
        extra=extra,
    )


def _multiscale(group: zarr.Group) -> dict[str, Any] | None:
    """The first image of an OME-Zarr group, of 0.5 or before; None for other groups."""
    images = _ome(group).get("multiscales")
    first = images[0] if isinstance(images, list) and images else None
    return first if isinstance(first, dict) and "datasets" in first else None


def _ome(group: zarr.Group) -> Mapping[str, Any]:
    """What OME says of a group: in a block of its own since 0.5."""
    found: Any = group.attrs.get("ome")
    return found if isinstance(found, dict) else group.attrs.asdict()


def _of_ome(place: Path | Url, group: zarr.Group, image: dict[str, Any], level: int) -> Image:
    datasets = image["datasets"]
    if not 0 < len(datasets) <= _MOST_LEVELS:
        raise ValueError(f"{len(datasets)} levels; 1 to {_MOST_LEVELS} make sense")
    if level >= len(datasets):
        last = len(datasets) - 1
        raise InputError(
            "level-missing",
            "{path} has no level {level}: its pyramid goes from 0 to {last}",
            path=place,
            level=level,
            last=last,
        )
    arrays = [_level(group, str(dataset["path"])) for dataset in datasets]
    listed = image.get("axes", _OLD_AXES)
    axes = [one if isinstance(one, dict) else {"name": str(one)} for one in listed]
    found = _ome_axes(place, axes, arrays[level])
    inner = PurePosixPath(str(datasets[level]["path"])).parent
    between = None if str(inner) == "." else group_at(_store(group), f"{group.path}/{inner}".strip("/"))
    groups = (group,) if between is None else (between, group)
    levels = tuple(found.size(one) for one in arrays)
    microns = _microns(image, datasets[level], axes, found.cols)
    return Image((arrays[level],), found, groups, levels, _channels(group), microns, is_ome=True)


def _level(group: zarr.Group, path: str) -> Array:
    parts = PurePosixPath(path)
    if parts.is_absolute() or ".." in parts.parts:
        raise ValueError(f"{path[:200]!r} leaves the store")
    node = open_node(_store(group), f"{group.path}/{path}".strip("/"))
    if isinstance(node, zarr.Group):
        raise TypeError(f"{path[:200]!r} is a group, not an array")
    return node


def _store(node: Node) -> Guarded:
    store = node.store
    if not isinstance(store, Guarded):
        raise TypeError(f"{node} was opened without a guard")
    return store


def _ome_axes(place: Path | Url, axes: list[dict[str, Any]], array: Array) -> Axes:
    """InputError when t or z is longer than 1, ValueError when there is no x or y."""
    names = [str(axis["name"]).lower() for axis in axes]
    channel = {k for k, axis in enumerate(axes) if axis.get("type") == "channel" or names[k] == "c"}
    if len(names) != array.ndim or not {"x", "y"} <= set(names) or len(channel) > 1:
        raise ValueError(f"axes {', '.join(names)[:60]} do not fit {array.basename} of shape {array.shape!r:.60}")
    rows, cols = names.index("y"), names.index("x")
    for k, name in enumerate(names):
        if k not in {rows, cols, *channel} and array.shape[k] != 1:
            raise _several(place, f"{array.shape[k]} images along axis {name}")
    return Axes(rows, cols, channel.pop() if channel else None)


def _channels(group: zarr.Group) -> tuple[str | None, ...]:
    """Labels of the channels, where an image has some."""
    shown = _ome(group).get("omero")
    channels = shown.get("channels") if isinstance(shown, dict) else None
    labels = [one.get("label") if isinstance(one, dict) else None for one in channels or ()]
    return tuple(str(label) if label else None for label in labels)


def _microns(image: dict[str, Any], dataset: dict[str, Any], axes: list[dict[str, Any]], cols: int) -> float | None:
    """Width of a pixel in micrometres: the scale of the level, times that of the image; None without a unit."""
    unit = _MICRONS.get(str(axes[cols].get("unit")).lower())
    if unit is None:
        return None
    for block in (dataset, image):
        for change in block.get("coordinateTransformations") or []:
            unit *= float(change["scale"][cols]) if change.get("type") == "scale" else 1.0
    return unit if 0 < unit < float("inf") else None


# -- place


def place_of(image: Image, wkt_of: Callable[[str], str]) -> GeoReference:
    """Reference system and transform of an image; the identity where nothing says it.

    `wkt_of` gives WKT2 of a system in another form. InputError for coordinates that are not evenly spaced, or systems
    that nobody knows; ValueError and the like for metadata that are broken.
    """
    mapping = _grid_mapping(image)
    blocks = [node.attrs.asdict() for node in (image.arrays[0], *image.groups)]
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
            node = open_node(_store(group), f"{group.path}/{name}".strip("/"))
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
        if _store(group).has(key):
            try:
                root = ET.fromstring(_store(group).text(key))  # noqa: S314 - expat itself refuses bombs
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
    names = _dimensions(image.arrays[0])
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
            path=_store(array).named(array.path),
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


# -- values


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
        array = _sibling(image, _dimensions(image.arrays[0])[image.axes.bands])
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
    if array.metadata.zarr_format == 2 and _DIMENSIONS in array.attrs and not ome:
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
