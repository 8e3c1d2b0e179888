"""Attributes that tell other programs what lies where in a zarr store, as plain dicts.

Three of the Zarr conventions (proj: the reference system; spatial: the transform; multiscales: the levels of a pyramid)
and the `ome` block of NGFF 0.5, which viewers of slides read.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fcn_batch.pipeline.core.classes import NODATA, Legend
from fcn_batch.pipeline.core.geometry import Size
from fcn_batch.pipeline.core.georeference import GeoReference

REGISTER = "zarr_conventions"
"""The attribute that lists the conventions which the others follow."""
MODE = "mode"
"""The most frequent class: how pixels of a pyramid are made of those below."""
NGFF = "0.5"
METADATA = ("zarr.json", ".zgroup", ".zarray", ".zattrs", ".zmetadata")
"""Files of a zarr group or array that hold no pixels."""


def holds_zarr(path: Path) -> bool:
    """Return True for a folder that is a zarr group or array, of format 2 or 3."""
    return path.is_dir() and any((path / name).is_file() for name in METADATA if name != ".zattrs")


@dataclass(frozen=True, slots=True)
class Level:
    """One level of a pyramid, a map of its own."""

    name: str
    """Of its group in the store."""
    factor: int
    """Rows, and columns, of the full map in one of its pixels."""
    size: Size
    georeference: GeoReference

    def __post_init__(self) -> None:
        if self.factor < 1:
            raise ValueError(f"a pixel of level {self.name} holds {self.factor} rows; it needs at least 1")


def proj_attributes(crs_wkt: str | None, code: str | None) -> dict[str, Any]:
    """The reference system, as WKT2 and (where it has one) as a code such as EPSG:32633; empty without a system."""
    if crs_wkt is None:
        return {}
    coded = {} if code is None else {"proj:code": code}
    return {REGISTER: [_PROJ.copy()], **coded, "proj:wkt2": crs_wkt}


def spatial_attributes(reference: GeoReference, size: Size) -> dict[str, Any]:
    """The transform, for readers that do not take x and y from coordinates.

    It stays as it is when a reader cuts a window out, and some readers prefer it to x and y: only for stores that
    have no x and y (rotated grids), and for pyramids.
    """
    return {
        REGISTER: [_SPATIAL.copy()],
        "spatial:dimensions": ["y", "x"],
        "spatial:transform_type": "affine",
        "spatial:transform": list(reference.transform),
        "spatial:shape": [size.height, size.width],
        "spatial:bbox": list(_bounds(reference, size)),
        "spatial:registration": "pixel",
    }


def multiscales(levels: Sequence[Level]) -> dict[str, Any]:
    """The levels of a pyramid, finest first, each made of the one before it."""
    layout: list[dict[str, Any]] = []
    for before, level in zip([None, *levels], levels, strict=False):
        step = 1.0 if before is None else level.factor / before.factor
        derived = {} if before is None else {"derived_from": before.name, "resampling_method": MODE}
        layout.append(
            {
                "asset": level.name,
                **derived,
                "transform": {"scale": [step, step], "translation": [0.0, 0.0]},
                "spatial:shape": [level.size.height, level.size.width],
                "spatial:transform": list(level.georeference.transform),
            }
        )
    return {REGISTER: [_MULTISCALES.copy()], "multiscales": {"resampling_method": MODE, "layout": layout}}


def joined(*blocks: Mapping[str, Any]) -> dict[str, Any]:
    """All attributes of `blocks`, the conventions of each listed once.

    >>> joined({"a": 1, "zarr_conventions": [{"name": "x"}]}, {"zarr_conventions": [{"name": "y"}, {"name": "x"}]})
    {'a': 1, 'zarr_conventions': [{'name': 'x'}, {'name': 'y'}]}
    """
    attributes: dict[str, Any] = {}
    register: list[Any] = []
    for block in blocks:
        register += [entry for entry in block.get(REGISTER, []) if entry not in register]
        attributes.update({name: value for name, value in block.items() if name != REGISTER})
    return {**attributes, REGISTER: register} if register else attributes


def ome_image(
    name: str, datasets: Iterable[tuple[str, int]], microns: float | None, legend: Legend | None
) -> dict[str, Any]:
    """The `ome` block of a label image whose levels are `datasets`: (path of the array, factor), finest first.

    `microns` is the side of a pixel of the finest level in micrometres; None: lengths are in pixels and have no unit.
    OME counts from the middle of the first pixel, and that of a coarser level lies further in::

        factor 1   | . | . | . | . |        middle of the first pixel at 0.5, called 0
        factor 4   |       .       |        at 2.0, which is 1.5 = (4 - 1) / 2 further
    """
    side = 1.0 if microns is None else microns
    unit = {} if microns is None else {"unit": "micrometer"}
    scales = [(path, factor, factor * side, (factor - 1) / 2 * side) for path, factor in datasets]
    block: dict[str, Any] = {
        "version": NGFF,
        "multiscales": [
            {
                "name": name,
                "type": MODE,
                "axes": [{"name": axis, "type": "space", **unit} for axis in ("y", "x")],
                "datasets": [
                    {"path": path, "coordinateTransformations": _placed(scale, None if factor == 1 else shift)}
                    for path, factor, scale, shift in scales
                ],
            }
        ],
    }
    if legend is not None:
        block["image-label"] = _image_label(legend)
    return {"ome": block}


def microns_of(attributes: Mapping[str, Any]) -> float | None:
    """Micrometres a pixel, as `ome_image` wrote them to a group's attributes; None when it did not."""
    try:
        image = attributes["ome"]["multiscales"][0]
        if image["axes"][0].get("unit") != "micrometer":
            return None
        return float(image["datasets"][0]["coordinateTransformations"][0]["scale"][0])
    except (KeyError, IndexError, TypeError, ValueError):
        return None


def _placed(scale: float, shift: float | None) -> list[dict[str, Any]]:
    moved = [] if shift is None else [{"type": "translation", "translation": [shift, shift]}]
    return [{"type": "scale", "scale": [scale, scale]}, *moved]


def _image_label(legend: Legend) -> dict[str, Any]:
    """Names and colours; no data is seen through. Both lists must name the same values to be valid."""
    shown = [*((c.id, c.name, (*c.rgb, 255)) for c in legend.classes), (NODATA, "no data", (0, 0, 0, 0))]
    return {
        "version": NGFF,
        "colors": [{"label-value": value, "rgba": list(rgba)} for value, _, rgba in shown],
        "properties": [{"label-value": value, "name": name} for value, name, _ in shown],
    }


def _bounds(reference: GeoReference, size: Size) -> tuple[float, float, float, float]:
    """Smallest x and y, largest x and y, of the map's corners."""
    a, b, c, d, e, f = reference.transform
    corners = [(row, col) for row in (0, size.height) for col in (0, size.width)]
    xs = [a * col + b * row + c for row, col in corners]
    ys = [d * col + e * row + f for row, col in corners]
    return min(xs), min(ys), max(xs), max(ys)


def _entry(uuid: str, name: str, description: str) -> dict[str, str]:
    return {
        "uuid": uuid,
        "name": name,
        "schema_url": f"https://raw.githubusercontent.com/zarr-conventions/{name}/refs/tags/v0.1/schema.json",
        "spec_url": f"https://github.com/zarr-conventions/{name}/blob/v0.1/README.md",
        "description": description,
    }


_PROJ = _entry(
    "f17cb550-5864-4468-aeb7-f3180cfb622f", "proj", "Coordinate reference system information for geospatial data"
)
_SPATIAL = _entry("689b58e2-cf7b-45e0-9fff-9cfc0883d6b4", "spatial", "Spatial coordinate information")
_MULTISCALES = _entry("d35379db-88df-4056-af3a-620245f8e347", "multiscales", "Multiscale layout of zarr datasets")
