"""Where the pixels are in a zarr store that others wrote: which arrays and axes are bands, rows and columns.

an array                        (rows, cols), (bands, rows, cols) or (rows, cols, bands)
a group, OME-Zarr               the array of a level; axes t, c, z, y, x, of which t and z have length 1
a group of xarray's or GDAL's   its only array of pixels, or several of (rows, cols), one a band
"""

from dataclasses import dataclass
from typing import Any

from fcn_batch.pipeline.core.distant import Place
from fcn_batch.pipeline.core.errors import InputError
from fcn_batch.pipeline.core.geometry import Size
from fcn_batch.pipeline.core.zarrnode import Node, child, children, holds_zarr, read_node

_ROWS = {"y", "lat", "latitude", "northing", "row", "rows"}
_COLS = {"x", "lon", "longitude", "easting", "col", "cols", "column", "columns"}
_NO_BANDS = {"t", "time", "date", "z", "depth", "level", "altitude"}
_MICRONS = {"angstrom": 1e-4, "nanometer": 1e-3, "micrometer": 1.0, "millimeter": 1e3, "centimeter": 1e4}
_MICRONS |= {"meter": 1e6, "inch": 25400.0, "nm": 1e-3, "µm": 1.0, "um": 1.0, "micron": 1.0, "mm": 1e3, "m": 1e6}
_OLD_AXES = ["t", "c", "z", "y", "x"]
"""Of OME-Zarr 0.1 and 0.2, which do not name them."""
_MOST_LEVELS = 64


@dataclass(frozen=True, slots=True)
class Axes:
    """Which dimension of an array holds what; all others have length 1."""

    rows: int
    cols: int
    bands: int | None
    """None: an array is one band."""


@dataclass(frozen=True, slots=True)
class Layout:
    """The arrays that hold an image, and what is known of it as a whole."""

    arrays: tuple[Node, ...]
    """One with all bands, or one for each band; all of one shape."""
    axes: Axes
    groups: tuple[Node, ...]
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
        return _size(self.arrays[0], self.axes)

    @property
    def bands(self) -> int:
        """Number of bands."""
        return len(self.arrays) if self.axes.bands is None else self.arrays[0].shape[self.axes.bands]

    @property
    def block(self) -> tuple[int, int]:
        """Rows and columns of a chunk, as much of it as lies in the image."""
        chunk, size = self.arrays[0].chunk, self.size
        return min(chunk[self.axes.rows], size.height), min(chunk[self.axes.cols], size.width)


def layout_of(path: Place, level: int) -> Layout:
    """What is in the store, or part of a store, at `path`.

    InputError when there is no image in it, or no such level; OSError, ValueError, LookupError or TypeError when its
    metadata are broken.
    """
    node = read_node(path)
    ome = None if node.is_array else _multiscale(node)
    if ome is not None:
        return _ome_layout(node, ome, level)
    if level:
        raise InputError(f"{path} has no level {level}: it is no OME-Zarr image, the only zarr whose levels are known")
    if node.is_array:
        around = (read_node(path.parent),) if holds_zarr(path.parent) else ()
        return Layout((node,), _axes(node), around)
    return _group_layout(node)


def _group_layout(group: Node) -> Layout:
    """Of arrays that are one image; InputError when there is none, or more than one."""
    inside = children(group)
    beside = {name for node in (group, *inside) for name in str(node.attributes.get("coordinates", "")).split()}
    arrays = [node for node in inside if node.is_array and node.name not in beside and _may_be_pixels(node)]
    placed = [node for node in arrays if _named(node)]
    arrays = placed or arrays
    if not arrays:
        groups = ", ".join(node.name for node in inside if not node.is_array)[:200]
        problem = f"its groups are {groups}: give one of these ({group.path}/NAME)" if groups else "give another one"
        raise InputError(f"{group.path}: no array of pixels in this zarr group; {problem}")
    if len(arrays) == 1:
        return Layout((arrays[0],), _axes(arrays[0]), (group,))
    axes = [_axes(node) for node in arrays]
    kinds = {(node.shape, node.dtype, place) for node, place in zip(arrays, axes, strict=True)}
    if len(kinds) > 1 or axes[0].bands is not None:
        told = ", ".join(f"{node.name} ({' x '.join(map(str, node.shape))} {node.dtype})" for node in arrays)
        raise InputError(
            f"{group.path}: several arrays that are not bands of one image: {told[:500]}; give one of them "
            f"({group.path}/NAME), or a group of arrays of one shape and type"
        )
    return Layout(tuple(arrays), axes[0], (group,), names=tuple(node.name for node in arrays))


def _may_be_pixels(node: Node) -> bool:
    """False for coordinates, and for what has no rows and columns."""
    return len(node.shape) >= 2 and min(node.shape) > 0 and node.name.lower() not in _ROWS | _COLS


def _named(node: Node) -> bool:
    """True where the dimensions say which are rows and columns."""
    return not _ROWS.isdisjoint(_lower(node)) and not _COLS.isdisjoint(_lower(node))


def _lower(node: Node) -> list[str]:
    return [(name or "").lower() for name in node.dimensions]


def _axes(node: Node) -> Axes:
    """By the names of the dimensions; else by their order, bands being the shorter of the first and the last.

    InputError when more than bands is beside rows and columns.
    """
    names, shape = _lower(node), node.shape
    if len(shape) < 2 or min(shape) < 1:
        raise InputError(
            f"{node.path}: an array of shape {shape!r:.60}; give one of rows and columns, and bands if any"
        )
    rows, cols = len(shape) - 2, len(shape) - 1
    if _named(node):
        rows, cols = (next(k for k, name in enumerate(names) if name in wanted) for wanted in (_ROWS, _COLS))
    elif len(shape) > 2 and shape[-1] < shape[-3]:
        rows, cols = rows - 1, cols - 1
    wide = [k for k in range(len(shape)) if shape[k] > 1 and k not in (rows, cols)]
    if len(wide) > 1 or any(names[k] in _NO_BANDS for k in wide):
        told = ", ".join(f"{shape[k]} along {names[k] or f'dimension {k}'}" for k in wide)
        raise InputError(f"{node.path}: has {told}; cut one image out of it: beside rows and columns only bands may be")
    return Axes(rows, cols, wide[0] if wide else None)


def _multiscale(group: Node) -> dict[str, Any] | None:
    """The first image of an OME-Zarr group, of 0.5 or before; None for other groups."""
    images = _ome(group).get("multiscales")
    first = images[0] if isinstance(images, list) and images else None
    return first if isinstance(first, dict) and "datasets" in first else None


def _ome(group: Node) -> dict[str, Any]:
    """What OME says of a group: in a block of its own since 0.5."""
    told = group.attributes.get("ome")
    return told if isinstance(told, dict) else group.attributes


def _ome_layout(group: Node, image: dict[str, Any], level: int) -> Layout:
    datasets = image["datasets"]
    if not 0 < len(datasets) <= _MOST_LEVELS:
        raise ValueError(f"{len(datasets)} levels; 1 to {_MOST_LEVELS} make sense")
    if level >= len(datasets):
        raise InputError(f"{group.path} has no level {level}: its pyramid goes from 0 to {len(datasets) - 1}")
    nodes = [child(group, str(dataset["path"])) for dataset in datasets]
    listed = image.get("axes", _OLD_AXES)
    axes = [one if isinstance(one, dict) else {"name": str(one)} for one in listed]
    node, places = nodes[level], _ome_axes(group, axes, nodes[level])
    above = node.path.parent
    around = (read_node(above), group) if above != group.path and holds_zarr(above) else (group,)
    levels = tuple(_size(one, places) for one in nodes)
    microns = _microns(image, datasets[level], axes, places.cols)
    return Layout((node,), places, around, levels, _channels(group), microns, is_ome=True)


def _ome_axes(group: Node, axes: list[dict[str, Any]], node: Node) -> Axes:
    """InputError when t or z is longer than 1, or there is no x or y."""
    names = [str(axis["name"]).lower() for axis in axes]
    channel = {k for k, axis in enumerate(axes) if axis.get("type") == "channel" or names[k] == "c"}
    if not node.is_array or len(names) != len(node.shape) or not {"x", "y"} <= set(names) or len(channel) > 1:
        raise ValueError(f"axes {', '.join(names)[:60]} do not fit {node.name} of shape {node.shape!r:.60}")
    rows, cols = names.index("y"), names.index("x")
    for k, name in enumerate(names):
        if k not in {rows, cols, *channel} and node.shape[k] != 1:
            raise InputError(
                f"{group.path}: has {node.shape[k]} images along axis {name}; give an OME-Zarr of one of them, or of "
                "their projection"
            )
    return Axes(rows, cols, channel.pop() if channel else None)


def _channels(group: Node) -> tuple[str | None, ...]:
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
    for told in (dataset, image):
        for change in told.get("coordinateTransformations") or []:
            unit *= float(change["scale"][cols]) if change.get("type") == "scale" else 1.0
    return unit if 0 < unit < float("inf") else None


def _size(node: Node, axes: Axes) -> Size:
    return Size(node.shape[axes.rows], node.shape[axes.cols])
