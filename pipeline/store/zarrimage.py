"""Where the image is in a zarr store that others wrote: which arrays and axes are bands, rows and columns.

an array                        (rows, cols), (bands, rows, cols) or (rows, cols, bands)
a group, OME-Zarr               the array of a level; axes t, c, z, y, x, of which t and z have length 1
a group of xarray's or GDAL's   its only array of pixels, or several of (rows, cols), one a band
"""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import zarr

from fcn_batch.pipeline.core.errors import InputError
from fcn_batch.pipeline.core.geometry import Size
from fcn_batch.pipeline.core.location import Url
from fcn_batch.pipeline.store.opening import Guarded, Node, ServerOf, group_at, open_node, open_nodes

Array = zarr.Array[Any]
_ROWS = {"y", "lat", "latitude", "northing", "row", "rows"}
_COLS = {"x", "lon", "longitude", "easting", "col", "cols", "column", "columns"}
_NO_BANDS = {"t", "time", "date", "z", "depth", "level", "altitude"}
_MICRONS = {"angstrom": 1e-4, "nanometer": 1e-3, "micrometer": 1.0, "millimeter": 1e3, "centimeter": 1e4}
_MICRONS |= {"meter": 1e6, "inch": 25400.0, "nm": 1e-3, "µm": 1.0, "um": 1.0, "micron": 1.0, "mm": 1e3, "m": 1e6}
_OLD_AXES = ["t", "c", "z", "y", "x"]
"""Of OME-Zarr 0.1 and 0.2, which do not name them."""
_MOST_LEVELS = 64
DIMENSIONS = "_ARRAY_DIMENSIONS"
"""Where xarray and GDAL keep the names of dimensions in format 2."""


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
    if isinstance(node, zarr.Group) and (ome := _multiscale(node)) is not None:
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


def dimensions(array: Array) -> list[str]:
    """The name of each dimension; empty where it has none."""
    metadata: Any = array.metadata
    named = array.attrs.get(DIMENSIONS) if metadata.zarr_format == 2 else metadata.dimension_names
    if not isinstance(named, list | tuple) or len(named) != array.ndim:
        return [""] * array.ndim
    return [name if isinstance(name, str) else "" for name in named]


def _says_axes(array: Array) -> bool:
    """True where the names of the dimensions say which are rows and columns."""
    names = {name.lower() for name in dimensions(array)}
    return not _ROWS.isdisjoint(names) and not _COLS.isdisjoint(names)


def _axes(place: Path | Url, array: Array) -> Axes:
    """By the names of the dimensions; else by their order, bands being the shorter of the first and the last.

    InputError when more than bands is beside rows and columns.
    """
    names, shape = [name.lower() for name in dimensions(array)], array.shape
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
    between = None if str(inner) == "." else group_at(store_of(group), f"{group.path}/{inner}".strip("/"))
    groups = (group,) if between is None else (between, group)
    levels = tuple(found.size(one) for one in arrays)
    microns = _microns(image, datasets[level], axes, found.cols)
    return Image((arrays[level],), found, groups, levels, _channels(group), microns, is_ome=True)


def _level(group: zarr.Group, path: str) -> Array:
    parts = PurePosixPath(path)
    if parts.is_absolute() or ".." in parts.parts:
        raise ValueError(f"{path[:200]!r} leaves the store")
    node = open_node(store_of(group), f"{group.path}/{path}".strip("/"))
    if isinstance(node, zarr.Group):
        raise TypeError(f"{path[:200]!r} is a group, not an array")
    return node


def store_of(node: Node) -> Guarded:
    """The store that opening.py opened a node in."""
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
