"""Writing polygons of classes to files: GeoPackage, FlatGeobuf, GeoJSON and GeoParquet, batch by batch.

One stream of Arrow batches feeds all four: GDAL (in pyogrio) pulls it into the first three, pyarrow writes the fourth,
as pyogrio's GDAL has no Parquet driver. Only what one batch holds is in memory.
"""

import json
import math
import shutil
import uuid
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fcn_batch.pipeline.core.durable import sync
from fcn_batch.pipeline.core.errors import OptionError, OutputError
from fcn_batch.pipeline.core.geometry import Size
from fcn_batch.pipeline.core.georeference import GeoReference
from fcn_batch.pipeline.raster.crs import projjson, system_name
from fcn_batch.pipeline.raster.features import libraries
from fcn_batch.pipeline.raster.ground import degrees, holds_pole
from fcn_batch.pipeline.raster.polygons import Regions

VectorKind = Literal["gpkg", "geojson", "geoparquet", "flatgeobuf"]
"""Formats that polygons can be written in."""

_DRIVERS = {"gpkg": "GPKG", "geojson": "GeoJSON", "flatgeobuf": "FlatGeobuf"}
_SUFFIXES = {"gpkg": ".gpkg", "geojson": ".geojson", "flatgeobuf": ".fgb", "geoparquet": ".parquet"}
_ROWS = 2**16  # of a batch
_BYTES = 2**26  # of the geometries of a batch, about
_METRES_PER_DEGREE = 111_320


@dataclass(frozen=True, slots=True)
class VectorHead:
    """Everything about a file but its polygons."""

    kind: VectorKind
    layer: str
    """Name of the layer, where the format has names."""
    georeference: GeoReference
    """Takes corners of pixels to the plane of its system."""
    size: Size
    """Rows and columns of the map."""
    names: Mapping[int, str]
    """Class names by id; "class 7" where there is none."""

    def __post_init__(self) -> None:
        if self.kind != "geojson":
            return
        if self.georeference.crs_wkt is None:
            raise OptionError(
                "map-without-crs",
                "the map has no reference system and GeoJSON is in longitude and latitude; "
                "take gpkg, flatgeobuf or geoparquet, or give the map one: gdal_edit.py -a_srs EPSG:32633 MAP",
            )
        if degrees(self.georeference, np.zeros(1), np.zeros(1)) is None:
            raise OptionError(
                "map-not-on-earth",
                "GeoJSON is in longitude and latitude of the Earth, and nothing connects the map's system, {crs}, "
                "with them; take gpkg, flatgeobuf or geoparquet",
                crs=system_name(self.georeference),
            )
        if holds_pole(self.georeference, self.size):
            raise OptionError(
                "map-with-pole",
                "a pole lies in the map, and polygons around it have no outline in longitude and latitude, as GeoJSON "
                "wants it; take gpkg, flatgeobuf or geoparquet",
            )


def write_polygons(path: Path, head: VectorHead, regions: Iterable[Regions]) -> None:
    """Write regions, vertices in pixels, to a new file at `path`, with class_id, class, pixels, area_m2 of each.

    Without a reference system, x is the column and y the row, downwards, of the finest level: as viewers of slides
    have it, and as they are read again. Outer rings run counterclockwise in the plane, holes clockwise. Edges are
    straight there; GeoJSON has their ends in longitude and latitude only, so there neighbours whose vertices differ
    along a straight border may part by what such an edge bends. The file is whole or not there.

    What `regions` raises passes; OutputError for a file that cannot be written, OptionError when pyarrow is not
    installed.
    """
    arrow = libraries("pyarrow").pyarrow  # before anything is written
    schema = _schema(arrow)
    stream = _Stream(_batches(arrow, schema, head, regions))
    with _whole(path, _SUFFIXES[head.kind]) as temporary:
        try:
            if head.kind == "geoparquet":
                _write_parquet(temporary, head, schema, stream)
            else:
                _write_ogr(temporary, head, arrow.RecordBatchReader.from_batches(schema, stream))
        except (OSError, RuntimeError) as error:  # pyogrio's errors are RuntimeErrors
            if stream.failure is not None:
                raise stream.failure from None  # what GDAL says of it is: no batch came
            raise OutputError(
                "output-unwritable",
                "{path} cannot be written: {reason}; free some space or choose another place",
                path=path,
                reason=error,
            ) from error
        if stream.failure is not None:
            raise stream.failure


class _Stream:
    """Batches that remember why they stopped: an error is lost on its way through GDAL."""

    def __init__(self, batches: Iterator[Any]) -> None:
        self._batches = batches
        self.failure: BaseException | None = None

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        try:
            return next(self._batches)
        except StopIteration:
            raise
        except BaseException as error:  # also an interrupt from the keyboard
            self.failure = error
            raise


@contextmanager
def _whole(path: Path, suffix: str) -> Iterator[Path]:
    """A file to write that becomes `path` at the end; what the writers put beside it goes with its folder."""
    folder = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        folder.mkdir()
    except OSError as error:
        raise OutputError(
            "output-unwritable", "{path} cannot be written: {reason}; choose another place", path=path, reason=error
        ) from error
    try:
        temporary = folder / f"polygons{suffix}"
        yield temporary
        sync([temporary])
        temporary.replace(path)
        sync([path.parent])
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _schema(arrow: Any) -> Any:
    return arrow.schema(
        [
            ("class_id", arrow.int32()),
            ("class", arrow.string()),
            ("pixels", arrow.int64()),
            ("area_m2", arrow.float64()),
            ("geometry", arrow.binary()),
        ]
    )


def _batches(arrow: Any, schema: Any, head: VectorHead, regions: Iterable[Regions]) -> Iterator[Any]:
    """Arrow batches of about _ROWS rows or _BYTES bytes, whatever sizes the regions come in."""
    waiting: list[Any] = []
    for some in regions:
        vertices = np.cumsum(libraries().shapely.get_num_coordinates(some.shapes)) if len(some) else np.empty(0)
        part = np.maximum(np.arange(len(some)) // _ROWS, 16 * vertices // _BYTES)
        for chosen in np.split(np.arange(len(some)), np.flatnonzero(np.diff(part)) + 1):
            waiting.append(_batch(arrow, schema, head, some.only(chosen)))
            if sum(one.num_rows for one in waiting) >= _ROWS or sum(one.nbytes for one in waiting) >= _BYTES:
                yield from arrow.Table.from_batches(waiting).combine_chunks().to_batches()
                waiting = []
    if any(one.num_rows for one in waiting):
        yield from arrow.Table.from_batches(waiting).combine_chunks().to_batches()


def _batch(arrow: Any, schema: Any, head: VectorHead, some: Regions) -> Any:
    shapely = libraries().shapely
    shapes = shapely.to_wkb(placed(some.shapes, head.georeference), byte_order=1)
    ids = some.ids.tolist()
    columns = [
        ids,
        [head.names.get(k, f"class {k}") for k in ids],
        some.pixels,
        [None] * len(some) if some.areas is None else some.areas,
        shapes.tolist(),
    ]
    return arrow.record_batch(
        [arrow.array(column, kind.type) for column, kind in zip(columns, schema, strict=True)], schema=schema
    )


def placed(shapes: NDArray[Any], reference: GeoReference) -> NDArray[Any]:
    """Polygons in pixels (x: columns, y: rows) taken to the plane; outer rings run counterclockwise there."""
    shapely = libraries().shapely
    a, b, c, d, e, f = reference.transform

    def place(points: NDArray[np.float64]) -> NDArray[np.float64]:
        col, row = points.T
        return np.stack([a * col + b * row + c, d * col + e * row + f], axis=1)

    return np.asarray(shapely.orient_polygons(shapely.transform(shapes, place)))


def _write_ogr(path: Path, head: VectorHead, reader: Any) -> None:
    """GeoPackage, FlatGeobuf or GeoJSON, by GDAL."""
    options: dict[str, Any] = {}
    if head.kind == "gpkg":
        options["dataset_options"] = {"VERSION": "1.2"}  # later ones make GDAL before 3.7 warn
    if head.kind == "geojson":
        options["layer_options"] = {"RFC7946": "YES", "COORDINATE_PRECISION": str(_digits(head.georeference))}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="'crs' was not provided")  # there is none
        libraries().pyogrio.write_arrow(
            reader,
            path,
            layer=head.layer,
            driver=_DRIVERS[head.kind],
            geometry_name="geometry",
            geometry_type="Polygon",
            crs=head.georeference.crs_wkt,
            **options,
        )


def _digits(reference: GeoReference) -> int:
    """Decimals of degrees that tell a hundredth of a pixel apart; 7, about a centimetre, is what the standard advises.

    >>> _digits(GeoReference(None, (0.05, 0.0, 0.0, 0.0, -0.05, 0.0)))
    9
    """
    side = math.sqrt(reference.pixel_area)  # metres, or degrees, which are then more exact than it takes
    return min(15, max(7, math.ceil(-math.log10(side / _METRES_PER_DEGREE / 100))))


def _write_parquet(path: Path, head: VectorHead, schema: Any, batches: Iterable[Any]) -> None:
    """GeoParquet 1.1: WKB, and a `geo` entry that says where it lies."""
    from pyarrow.parquet import ParquetWriter

    shapely = libraries().shapely
    box = np.array([np.inf, np.inf, -np.inf, -np.inf])
    # with Arrow's own schema in the file, Arrow's readers would not see the entry that is added at the end
    with ParquetWriter(path, schema, compression="zstd", store_schema=False) as writer:
        for batch in batches:
            found = shapely.total_bounds(shapely.from_wkb(batch.column("geometry").to_numpy(zero_copy_only=False)))
            box = np.concatenate([np.minimum(box[:2], found[:2]), np.maximum(box[2:], found[2:])])
            writer.write_batch(batch)
        column: dict[str, Any] = {
            "encoding": "WKB",
            "geometry_types": ["Polygon"],
            "crs": projjson(head.georeference),  # null: not known; without the entry it would be longitude, latitude
            "orientation": "counterclockwise",
            "edges": "planar",
        }
        if np.isfinite(box).all():
            column["bbox"] = box.tolist()
        geo = {"version": "1.1.0", "primary_column": "geometry", "columns": {"geometry": column}}
        writer.add_key_value_metadata({"geo": json.dumps(geo)})
