"""Looks at finished stores: whether one has the form, place and meaning that it should have."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fcn_batch.pipeline.core.classes import NODATA
from fcn_batch.pipeline.core.limits import MAX_TEXT, read_bounded
from fcn_batch.pipeline.store.classstore import ClassStore, ConfidenceStore, Layout, array_attributes, centres
from fcn_batch.pipeline.store.opening import UNSAFE, open_array, open_group

_OF_AN_ARRAY = ("flag_values", "class_names", "flag_colors", "nodata", "scale_factor", "_FillValue", "units")
_OF_A_PLACE = ("grid_mapping", "proj:wkt2", "spatial:transform", "spatial:shape")
"""Attributes that decide what readers see. Others may be told in other words by other versions of libraries."""
_OF_A_RUN = ("fcn:fingerprint", "fcn:gcps", "fcn:gcps_crs")


def store_faults(path: Path, layout: Layout, kind: type[ClassStore] | type[ConfidenceStore]) -> Iterator[str]:
    """What is wrong with the metadata and coordinates of the store at `path`, one line each; pixels are not read.

    UNSAFE (see opening.py) when a part cannot be read at all.
    """
    root = open_group(path)
    run = root.attrs.asdict()
    yield from _differences("", run, {name: value for name, value in layout.provenance.items() if name in _OF_A_RUN})
    chunks = (layout.inner or layout.chunk,) * 2
    for name in kind.names:
        array = open_array(path / name)
        form = {
            "shape": (layout.size.height, layout.size.width),
            "dtype": np.dtype(np.uint8),
            "fill_value": NODATA,
            "chunks": chunks,
            "shards": None if layout.inner is None else (layout.chunk,) * 2,
        }
        yield from _differences(f"{name}: ", {what: getattr(array, what) for what in form}, form)
        said = array_attributes(name, layout)
        wanted = {what: said[what] for what in (*_OF_AN_ARRAY, *_OF_A_PLACE) if what in said}
        found = array.attrs.asdict()
        extra = {what: None for what in (*_OF_AN_ARRAY, *_OF_A_PLACE) if what in found and what not in said}
        yield from _differences(f"{name}: ", found, {**wanted, **extra})
    place = open_array(path / "spatial_ref").attrs.asdict()
    yield from _differences("spatial_ref: ", place, {"GeoTransform": layout.georeference.gdal_geotransform})
    if not layout.georeference.rotated:
        for name, wanted_centres in centres(layout).items():
            yield from _coordinate_faults(path, name, wanted_centres)


def _coordinate_faults(path: Path, name: str, wanted: NDArray[np.float64]) -> Iterator[str]:
    try:
        array = open_array(path / name)
        found = np.asarray(array[:]) if array.shape == wanted.shape else None
    except UNSAFE as error:
        yield f"{name}: cannot be read: {error}"
        return
    if found is None or not np.array_equal(found, wanted):
        yield f"{name}: not the centres of the pixels"


def system_of(path: Path) -> str | None:
    """WKT of the reference system that the store's `spatial_ref` tells CF readers; None when it tells none."""
    wkt = open_array(path / "spatial_ref").attrs.asdict().get("crs_wkt")
    return None if wkt is None else str(wkt)


def gathered_faults(path: Path) -> Iterator[str]:
    """Where the metadata that are gathered in the root of a store differ from those of the parts."""
    gathered = (_metadata(path).get("consolidated_metadata") or {}).get("metadata")
    if gathered is None:
        yield "the metadata are not gathered in the root: xarray and GDAL would look for them in every folder"
        return
    alone = {str(one.parent.relative_to(path)): one.parent for one in path.rglob("zarr.json") if one.parent != path}
    for name in sorted({*gathered, *alone}):
        if name not in alone:
            yield f"{name}/zarr.json: missing"
        elif name not in gathered:
            yield f"{name}: not gathered in the root"
        else:
            yield from _differences(f"{name}: ", gathered[name], _own(alone[name]), "gathered in the root as")


def _metadata(path: Path) -> dict[str, Any]:
    found = json.loads(read_bounded(path / "zarr.json", MAX_TEXT))
    if not isinstance(found, dict):
        raise TypeError(f"{path}/zarr.json holds a {type(found).__name__}")
    return found


def _own(path: Path) -> dict[str, Any]:
    found = _metadata(path)
    found.pop("consolidated_metadata", None)
    return found


def _differences(where: str, found: dict[str, Any], wanted: dict[str, Any], verb: str = "is") -> Iterator[str]:
    for name, value in wanted.items():
        if found.get(name) != value:
            yield f"{where}{name} {verb} {_short(found.get(name))} instead of {_short(value)}"


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 100 else f"{text[:97]}..."
