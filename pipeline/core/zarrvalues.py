"""What the values of the bands of a zarr store mean: which are no measurement, scales, names, colours."""

import base64
import math
import struct
from typing import Any

import numpy as np

from fcn_batch.pipeline.core.zarrlayout import Layout
from fcn_batch.pipeline.core.zarrnode import Node

_COLOURS = {"red", "green", "blue", "alpha"}


def nodata_of(layout: Layout) -> tuple[int | float | None, ...]:
    """The value of each band that stands for no data, None where there is none that its type can have."""
    values = [_nodata(node, ome=layout.is_ome) for node in layout.arrays]
    return tuple(values * (layout.bands // len(values)))


def scales_of(layout: Layout) -> tuple[tuple[float, float], ...]:
    """Scale and offset of each band; ValueError when they are no numbers."""
    pairs = []
    for node in layout.arrays:
        scale, offset = (node.attributes.get(key, usual) for key, usual in (("scale_factor", 1.0), ("add_offset", 0.0)))
        pairs.append((float(scale), float(offset)))
        if not all(map(math.isfinite, pairs[-1])) or not pairs[-1][0]:
            raise ValueError(f"{node.name} has a scale of {scale!r:.40} and an offset of {offset!r:.40}")
    return tuple(pairs * (layout.bands // len(pairs)))


def descriptions_of(layout: Layout, coordinate: list[str] | None) -> tuple[str | None, ...]:
    """Names of bands: of channels and variables, else of `coordinate`, else a list of rioxarray's; None without."""
    listed = layout.arrays[0].attributes.get("long_name") if len(layout.arrays) == 1 else None
    for names in (layout.names, coordinate, listed if isinstance(listed, list) else None):
        if names and len(names) == layout.bands and any(names):
            return tuple(None if name is None else str(name) for name in names)
    return (None,) * layout.bands


def roles_of(layout: Layout, descriptions: tuple[str | None, ...]) -> tuple[str, ...]:
    """What each band shows: of three or four bands of bytes that are called so, or that GDAL has noted it of."""
    noted = layout.arrays[0].attributes.get("COLOR_INTERPRETATION")
    names = [str(name or "").lower() for name in (noted if isinstance(noted, list) else descriptions)]
    is_colour = layout.arrays[0].dtype == "uint8" and layout.bands in (3, 4) and len(names) == layout.bands
    if not is_colour or not _COLOURS - {"alpha"} <= set(names):
        return ("undefined",) * layout.bands
    return tuple(name if name in _COLOURS else "undefined" for name in names)


def _nodata(node: Node, *, ome: bool) -> int | float | None:
    """By attributes or, in format 2, by the fill value, as xarray takes it; OME has no such thing."""
    told = [node.attributes.get(key) for key in ("_FillValue", "nodata", "missing_value")]
    if node.written_by_xarray and not ome:
        told.append(node.told.get("fill_value"))
    found = next((_number(value) for value in told if value is not None), None)
    if found is None:
        return None
    if node.dtype.startswith("float"):
        return found
    limits = np.iinfo(node.dtype)
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
