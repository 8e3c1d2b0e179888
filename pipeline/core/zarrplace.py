"""Where an image in a zarr store lies on the Earth, by the conventions of those who write such stores.

    system      grid mapping (CF, rioxarray), _CRS (GDAL), proj:…
    transform   GeoTransform of the grid mapping, spatial:transform, proj:transform, or the coordinates x and y

A transform stays as it is when somebody cuts a window out of a store; the coordinates do not. So where both are there
and differ, the coordinates count.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import numpy as np
from numpy.typing import NDArray

from fcn_batch.pipeline.core.distant import bounded
from fcn_batch.pipeline.core.errors import InputError
from fcn_batch.pipeline.core.georeference import IDENTITY, GeoReference
from fcn_batch.pipeline.core.limits import MAX_TEXT
from fcn_batch.pipeline.core.zarrlayout import Layout
from fcn_batch.pipeline.core.zarrnode import Node, holds_zarr, read_node

Transform = tuple[float, float, float, float, float, float]
_MOST_ASIDE = 0.1
"""Pixels that a coordinate may be away from where even spacing puts it."""
_WKT2 = re.compile(r"\s*(BOUND|COMPOUND|DERIVEDPROJ|ENG|GEOD|GEOG|PARAMETRIC|PROJ|TIME|VERT)CRS\s*\[")
_NAMED = re.compile(r"\s*(\w+\[.*|\{.*|[A-Za-z]+:\d+|https?://www\.opengis\.net/def/crs/[\w./]+)\s*", re.DOTALL)
"""WKT, PROJJSON, codes and their URLs: PROJ would take names of files too."""


def place_of(layout: Layout, read: Callable[[Node], NDArray[Any]], wkt_of: Callable[[str], str]) -> GeoReference:
    """Reference system and transform of an image; the identity where nothing says it.

    `read` gives the values of an array, `wkt_of` WKT2 of a system in another form. InputError for coordinates that are
    not evenly spaced, or systems that nobody knows; ValueError and the like for metadata that are broken.
    """
    mapping = _grid_mapping(layout)
    blocks = [node.attributes for node in (layout.arrays[0], *layout.groups)]
    named = next(_systems(mapping, blocks, _in_side_file(layout)), None)
    wkt = None if named is None else _wkt(named, wkt_of)
    declared = next(_declared(mapping, blocks), None)
    if declared is not None and (declared[1] or declared[3]):
        return GeoReference(wkt, declared)
    measured = _measured(layout, read)
    if measured is not None and (declared is None or _apart(declared, measured, layout)):
        declared = measured
    return GeoReference(wkt, declared or IDENTITY)


def _grid_mapping(layout: Layout) -> Mapping[str, Any]:
    """Attributes of the variable that CF calls so; empty where there is none."""
    named = str(layout.arrays[0].attributes.get("grid_mapping", "")).split(":")[0].split()
    for name in (*named[:1], "spatial_ref", "crs"):
        node = _sibling(layout, name)
        if node is not None:
            return node.attributes
    return {}


def _sibling(layout: Layout, name: str) -> Node | None:
    """An array in the same group; None where there is none."""
    if not layout.groups or Path(name).name != name:
        return None
    path = layout.groups[0].path / name
    if path.is_symlink() or not holds_zarr(path):
        return None
    node = read_node(path)
    return node if node.is_array else None


def _systems(mapping: Mapping[str, Any], blocks: list[dict[str, Any]], side: Iterator[str]) -> Iterator[str]:
    """How the reference system is named, the surest form first; last comes what is in a side file."""
    yield from (str(mapping[key]) for key in ("crs_wkt", "spatial_ref") if mapping.get(key))
    for block in blocks:
        gdal = block.get("_CRS")
        told = {**block, **({f"_CRS:{key}": value for key, value in gdal.items()} if isinstance(gdal, dict) else {})}
        for key in ("proj:wkt2", "_CRS:wkt", "proj:projjson", "_CRS:projjson", "proj:code", "_CRS:url"):
            if told.get(key):
                yield json.dumps(told[key]) if isinstance(told[key], dict) else str(told[key])
        if told.get("proj:epsg"):
            yield f"EPSG:{told['proj:epsg']}"
    yield from side


def _in_side_file(layout: Layout) -> Iterator[str]:
    """Where GDAL keeps the system of arrays of three dimensions."""
    for group in layout.groups:
        path = group.path / "pam.aux.xml"
        if path.is_file():
            try:
                root = ET.fromstring(bounded(path, MAX_TEXT))  # noqa: S314 - expat itself refuses bombs
            except ET.ParseError as error:
                raise ValueError(f"{path.name}: {error}") from error
            yield from (one.text for one in root.iter("SRS") if one.text)


def _wkt(named: str, wkt_of: Callable[[str], str]) -> str:
    if _WKT2.match(named):
        return named
    if not _NAMED.fullmatch(named):
        raise InputError(f"the reference system {named[:200]!r} is none that is known; write it as WKT or EPSG:CODE")
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


def _measured(layout: Layout, read: Callable[[Node], NDArray[Any]]) -> Transform | None:
    """By the variables named as the dimensions: the centres of rows and columns. None where one is missing."""
    names = layout.arrays[0].dimensions
    axes = []
    for axis, length in ((layout.axes.cols, layout.size.width), (layout.axes.rows, layout.size.height)):
        node = _sibling(layout, names[axis] or "/")
        if node is None or node.shape != (length,) or length < 2:
            return None
        axes.append(_spacing(node, read(node)))
    (x, width), (y, height) = axes
    return width, 0.0, x - width / 2, 0.0, height, y - height / 2


def _spacing(node: Node, values: NDArray[Any]) -> tuple[float, float]:
    """The first coordinate, and how far it is to the next; InputError when that changes."""
    centres = values.astype(np.float64)
    step = float(centres[-1] - centres[0]) / (len(centres) - 1)
    rounded = float(np.spacing(np.abs(values).max())) if values.dtype.kind == "f" else 0.0
    aside = np.abs(centres - (centres[0] + step * np.arange(len(centres)))).max()
    if not np.isfinite(centres).all() or not step or aside > _MOST_ASIDE * abs(step) + 2 * rounded:
        raise InputError(
            f"{node.path}: coordinates that are not evenly spaced, such as {centres[:3].tolist()}; bring the image to "
            "an even grid (with gdalwarp, or xarray's interp)"
        )
    return float(centres[0]), step


def _apart(one: Transform, other: Transform, layout: Layout) -> bool:
    """True when two transforms that are not rotated put a corner of the image more than a little apart."""
    a, _, c, _, e, f = one
    g, _, i, _, k, m = other
    cols, rows = np.array([0, layout.size.width]), np.array([0, layout.size.height])
    x, y = (a - g) * cols + c - i, (e - k) * rows + f - m
    return bool((np.abs(x) > _MOST_ASIDE * abs(g)).any() or (np.abs(y) > _MOST_ASIDE * abs(k)).any())
