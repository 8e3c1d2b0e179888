"""Polygons as a file has them: geometries, one field, and where they lie.

Files are opened only by what they begin with: GDAL would otherwise pass a text that names other files or URLs to a
driver that follows them. pyogrio and shapely come with `pip install 'fcn-batch[vectors]'`.
"""

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fcn_batch.pipeline.core.burn import VECTOR_SUFFIXES, Burn
from fcn_batch.pipeline.core.errors import InputError, OptionError, TrainingError
from fcn_batch.pipeline.core.georeference import IDENTITY, GeoReference
from fcn_batch.pipeline.raster.crs import system_name, wkt_of
from fcn_batch.pipeline.raster.rasterfile import local_path

_MAGIC = {
    ".gpkg": b"SQLite format 3",
    ".shp": b"\x00\x00\x27\x0a",
    ".fgb": b"fgb",
    ".geojson": b"{",
    ".json": b"{",
    ".geojsonl": b"{",
    ".parquet": b"PAR1",
}
_POLYGONS = ("Polygon", "MultiPolygon")


@dataclass(frozen=True, slots=True)
class Features:
    """Polygons as a file has them."""

    shapes: NDArray[Any]
    """Geometries, in the file's coordinates."""
    values: list[str]
    """What the field says of each, as text; empty without a field."""
    georeference: GeoReference
    """The system of the coordinates; the transform takes them to its plane."""

    def __str__(self) -> str:
        if not len(self.shapes):
            return "0 polygons"
        x0, y0, x1, y1 = libraries().shapely.total_bounds(self.shapes)
        extent = f"x {x0:.10g} to {x1:.10g}, y {y0:.10g} to {y1:.10g} ({system_name(self.georeference)})"
        return f"{len(self.shapes)} polygons, {extent},"


def libraries(*more: str) -> SimpleNamespace:
    """Import pyogrio, shapely and `more`; OptionError when one is not installed."""
    try:
        return SimpleNamespace(**{name: import_module(name) for name in ("pyogrio", "shapely", *more)})
    except ImportError as error:
        raise OptionError(
            "extra-missing",
            "polygons are read and written with {package}, which is not installed: pip install 'fcn-batch[{extra}]'",
            package=error.name,
            extra="vectors",
        ) from error


def read_features(path: Path, burn: Burn, given: GeoReference | None, image: GeoReference) -> Features:
    """The polygons of a file, with the errors of VectorLabels.open."""
    local = local_path(path)
    _check_kind(local)
    pyogrio, shapely = libraries().pyogrio, libraries().shapely
    try:
        if local.suffix.lower() == ".parquet":
            crs, shapes, values = _from_parquet(local, burn.field)
        else:
            layer = _layer(local, [str(name) for name in pyogrio.list_layers(local)[:, 0]], burn.layer)
            _check_field(local, burn.field, pyogrio.read_info(local, layer=layer)["fields"])
            columns = [] if burn.field is None else [burn.field]
            meta, _, shapes, values = pyogrio.raw.read(local, layer=layer, columns=columns, force_2d=True)
            crs = meta["crs"]
        shapes = shapely.from_wkb(shapes if shapes is not None else [])
    except (pyogrio.errors.DataSourceError, pyogrio.errors.DataLayerError, shapely.errors.ShapelyError) as error:
        raise InputError(
            "input-damaged",
            "{path} cannot be read as polygons: {reason}; get an undamaged copy",
            path=local,
            reason=error,
        ) from error
    shapes = np.array([_areal(shape) for shape in shapes], object)
    there = ~(shapely.is_missing(shapes) | shapely.is_empty(shapes))
    kinds = {shape.geom_type for shape in shapes[there]}
    if others := sorted(kinds - {*_POLYGONS}):
        raise TrainingError(
            "geometry-unsupported",
            "{path} holds {kinds}; labels need polygons: leave the others out",
            path=local,
            kinds=", ".join(others),
        )
    said = [] if burn.field is None else [_text(value) for value in values[0][there]]
    return Features(shapes[there], said, _where(local, crs, given, image))


def _check_field(path: Path, field: str | None, fields: Iterable[Any]) -> None:
    if field is not None and field not in (known := [str(name) for name in fields]):
        raise TrainingError(
            "field-missing",
            "{path} has no field {field!r}; its fields are {fields}",
            path=path,
            field=field,
            fields=", ".join(known) or "none",
        )


def _from_parquet(path: Path, field: str | None) -> tuple[str | None, Any, list[Any]]:
    """Return reference system, shapes as WKB and the values of a field of a GeoParquet file.

    pyogrio's GDAL has no driver for it. InputError for other Parquet files.
    """
    arrow = libraries("pyarrow.parquet", "pyarrow").pyarrow
    try:
        file = arrow.parquet.ParquetFile(path)
        geo = json.loads((file.metadata.metadata or {}).get(b"geo", b"{}"))
        name = geo["primary_column"]
        column = geo["columns"][name]
        if column["encoding"] != "WKB":
            raise ValueError(f"geometries are encoded as {column['encoding']}, not as WKB")
        _check_field(path, field, (one for one in file.schema_arrow.names if one != name))
        table = file.read(columns=[name, *([] if field is None else [field])])
        crs = column.get("crs", "OGC:CRS84")
        shapes = libraries().shapely.force_2d(libraries().shapely.from_wkb(table[name].to_numpy(zero_copy_only=False)))
    except (arrow.ArrowException, ValueError, KeyError, TypeError) as error:
        raise InputError(
            "input-damaged",
            "{path} cannot be read as GeoParquet: {reason}; get an undamaged copy",
            path=path,
            reason=error,
        ) from error
    values = [] if field is None else [np.array(table[field].to_pylist(), object)]
    return (json.dumps(crs) if isinstance(crs, dict) else crs), libraries().shapely.to_wkb(shapes), values


def _areal(shape: Any) -> Any:
    """Return the polygons of a collection as one; anything else, and a collection without polygons, as it is."""
    if shape is None or shape.geom_type != "GeometryCollection":
        return shape
    shapely, waiting, found = libraries().shapely, [shape], []
    while waiting:
        one = waiting.pop()
        if one.geom_type in ("GeometryCollection", "MultiPolygon"):
            waiting.extend(one.geoms)
        elif one.geom_type == "Polygon":
            found.append(one)
    return shapely.multipolygons(found[::-1]) if found else shape


def _check_kind(path: Path) -> None:
    """InputError unless the file begins as its name promises: no driver that follows links gets to see it."""
    if not path.is_file():
        if path.exists():
            raise InputError("input-is-folder", "{path} is a folder; give the file in it", path=path)
        raise InputError("input-missing", "{path} does not exist; check the name", path=path)
    magic = _MAGIC[path.suffix.lower()]
    with path.open("rb") as file:
        start = file.read(1024).removeprefix(b"\xef\xbb\xbf")
    if not (start.lstrip() if magic == b"{" else start).startswith(magic):
        raise InputError(
            "format-unsupported",
            "{path} is not what its ending says; one of {formats} is supported",
            path=path,
            formats=", ".join(VECTOR_SUFFIXES),
        )


def _layer(path: Path, names: list[str], wanted: str | None) -> str:
    """The layer to read; TrainingError when it is not clear which one."""
    if wanted is None and len(names) == 1:
        return names[0]
    if wanted not in names:
        raise TrainingError(
            "layer-missing",
            "{path} {problem}; choose one with `layer`: {layers}",
            path=path,
            problem="has several layers" if wanted is None else f"has no layer {wanted!r}",
            layers=", ".join(names) or "there is none",
        )
    return wanted


def _text(value: Any) -> str:
    """A field's value as it stands in a recipe: 3 for 3.0, "null" for nothing."""
    if value is None or (isinstance(value, float) and math.isnan(value)):  # numpy's float64 is a float
        return "null"
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _where(path: Path, crs: str | None, given: GeoReference | None, image: GeoReference) -> GeoReference:
    """The polygons' system: as given, else as the file says; TrainingError when only one of both sides has one."""
    if given is not None:
        return given
    if (crs is None) != (image.crs_wkt is None):
        none = "polygons have" if crs is None else "image has"
        copy = "EPSG:…" if crs is None else "NONE COPY.gpkg, if they are in its pixels"
        raise TrainingError(
            "crs-one-sided",
            "{path}: the {which} no reference system, the other has; say in a copy where the polygons lie "
            "(ogr2ogr -a_srs {remedy}), or in a recipe with `georeference`; GeoJSON counts as longitude and latitude, "
            "also where it holds pixels",
            path=path,
            which=none,
            remedy=copy,
        )
    return GeoReference(None if crs is None else wkt_of(crs), IDENTITY)
