"""The class map as a zarr store that xarray, rioxarray and GDAL open at the right place with the right names.

Layout and attributes were chosen from measurements over those readers (flat Zarr v3, CF grid mapping with
coordinates, `proj` convention, nodata as a plain attribute so that xarray keeps uint8). The only module that
imports zarr.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import ZstdCodec

from fcn_batch.pipeline.classes import NODATA, Legend
from fcn_batch.pipeline.durable import sync
from fcn_batch.pipeline.errors import InputError, OutputError
from fcn_batch.pipeline.geometry import Size, Window
from fcn_batch.pipeline.georeference import GeoReference

ARRAY = "classes"
_COORDINATE_CHUNK = 65536
_PROJ_CONVENTION = {
    "uuid": "f17cb550-5864-4468-aeb7-f3180cfb622f",
    "name": "proj",
    "schema_url": "https://raw.githubusercontent.com/zarr-conventions/proj/refs/tags/v0.1/schema.json",
    "spec_url": "https://github.com/zarr-conventions/proj/blob/v0.1/README.md",
    "description": "Coordinate reference system information for geospatial data",
}
_SPATIAL_CONVENTION = {
    "uuid": "689b58e2-cf7b-45e0-9fff-9cfc0883d6b4",
    "name": "spatial",
    "schema_url": "https://raw.githubusercontent.com/zarr-conventions/spatial/refs/tags/v0.1/schema.json",
    "spec_url": "https://github.com/zarr-conventions/spatial/blob/v0.1/README.md",
    "description": "Spatial coordinate information",
}


@dataclass(frozen=True, slots=True)
class Layout:
    """Everything about the store but its pixels."""

    size: Size
    chunk: int
    legend: Legend
    georeference: GeoReference
    grid_mapping: Mapping[str, Any]
    """CF attributes of the reference system."""
    authority_code: str | None
    """Such as EPSG:32633, when there is one."""
    y_attributes: Mapping[str, Any]
    x_attributes: Mapping[str, Any]
    provenance: Mapping[str, Any]
    """Root attributes that say how the map was made."""


class ClassStore:
    """A class map under construction or finished: (rows, cols), uint8, 255 where there is no data."""

    def __init__(self, path: Path) -> None:
        """Open the store at `path`; OutputError when there is none that can be read."""
        self.path = path
        try:
            opened = zarr.open_array(str(path / ARRAY), mode="r+")
        except (OSError, ValueError, KeyError) as error:
            raise OutputError(f"{path}: not a readable class map ({error}); give --restart") from error
        self._array = opened
        self.size = Size(*opened.shape)
        self.chunk = int(opened.chunks[0])

    @classmethod
    def create(cls, path: Path, layout: Layout) -> "ClassStore":
        """Make an empty store with all its metadata; every pixel reads as no data."""
        root = zarr.create_group(str(path), zarr_format=3, attributes=_root_attributes(layout))
        root.create_array(
            ARRAY,
            shape=(layout.size.height, layout.size.width),
            chunks=(layout.chunk, layout.chunk),
            dtype="uint8",
            fill_value=NODATA,
            compressors=ZstdCodec(level=3, checksum=True),
            dimension_names=("y", "x"),
            attributes=_array_attributes(layout),
        )
        root.create_array("spatial_ref", shape=(), dtype="int64", attributes=dict(layout.grid_mapping))
        if not layout.georeference.rotated:
            _write_coordinates(root, layout)
        return cls(path)

    def write(self, window: Window, classes: NDArray[np.uint8]) -> None:
        """Write a block and bring it to the disk. ValueError unless it is whole chunks (or ends the raster).

        Two tasks that shared a chunk would overwrite each other's pixels without a word.
        """
        self._check_whole_chunks(window)
        self._array[window.slices()] = classes
        sync(self._files(window))

    def read(self, window: Window) -> NDArray[np.uint8]:
        """Class ids of a window: (rows, cols), uint8. OutputError when a chunk is damaged."""
        try:
            return np.asarray(self._array[window.slices()], dtype=np.uint8)
        except (OSError, ValueError, RuntimeError) as error:
            raise OutputError(f"{self.path}: a chunk in {window} cannot be read: {error}") from error

    def consolidate(self) -> None:
        """Gather all metadata in the root and bring them to the disk, the last thing done to a store.

        Temporary files that writers left when they were killed are deleted: chunks have numbers for names.
        """
        for path in (self.path / ARRAY / "c").glob("*/*"):
            if not path.name.isdecimal():
                path.unlink(missing_ok=True)
        _consolidate(self.path)
        chunks = self.path / ARRAY / "c"  # durable since they were written
        sync([self.path, *(path for path in self.path.rglob("*") if chunks not in path.parents)])

    def _check_whole_chunks(self, window: Window) -> None:
        ends = ((window.stop_row, self.size.height), (window.stop_col, self.size.width))
        starts_whole = window.row % self.chunk == 0 and window.col % self.chunk == 0
        if not starts_whole or any(stop % self.chunk and stop != end for stop, end in ends):
            raise ValueError(f"{window} is not whole chunks of {self.chunk} in a map of {self.size}")

    def _files(self, window: Window) -> list[Path]:
        """Chunk files of a window that exist, and all folders above them (a chunk of only nodata has no file)."""
        rows = range(window.row // self.chunk, -(-window.stop_row // self.chunk))
        cols = range(window.col // self.chunk, -(-window.stop_col // self.chunk))
        folders = [self.path / ARRAY / "c" / str(row) for row in rows]
        files = [folder / str(col) for folder in folders for col in cols]
        return [path for path in (*files, *folders, self.path / ARRAY / "c", self.path / ARRAY) if path.exists()]


class FinishedMap:
    """A finished class map, read only: what ClassStore made, with legend and place read back from its attributes."""

    def __init__(self, path: Path) -> None:
        """Open the store at `path`; InputError when it is none, or none that this project wrote."""
        self.path = path
        try:
            self._array = zarr.open_array(str(path / ARRAY), mode="r")
            place = zarr.open_array(str(path / "spatial_ref"), mode="r").attrs.asdict()
            found = self._array.attrs.asdict()
            parts = [found[name] for name in ("flag_values", "class_names")] + [str(found["flag_colors"]).split()]
            entries = [dict(zip(("id", "name", "colour"), one, strict=True)) for one in zip(*parts, strict=True)]
            self.legend = Legend.model_validate({"classes": entries})
            if self._array.dtype != np.uint8 or not self.legend.fits_a_map:
                raise ValueError(f"{self._array.dtype} with ids up to {max(self.legend.ids)}")
            x, a, b, y, d, e = (float(number) for number in str(place["GeoTransform"]).split())
            wkt = found.get("proj:wkt2")
            self.georeference = GeoReference(None if wkt is None else str(wkt), (a, b, x, d, e, y))
            self.size = Size(*self._array.shape)
            self.block = (int(self._array.chunks[0]), int(self._array.chunks[1]))
        except (OSError, ValueError, KeyError, TypeError) as error:
            why = f"{type(error).__name__}: {error}".splitlines()[0]
            raise InputError(f"{path}: not a class map that fcn-batch wrote ({why}); give NAME.classes.zarr") from error

    def read(self, window: Window) -> NDArray[np.uint8]:
        """Class ids of a window: (rows, cols), uint8, 255 where there is no data. InputError for damaged chunks."""
        try:
            return np.asarray(self._array[window.slices()], dtype=np.uint8)
        except (OSError, ValueError, RuntimeError) as error:
            raise InputError(f"{self.path}: a chunk in {window} cannot be read: {error}; make the map again") from error


def _consolidate(path: Path) -> None:
    import warnings

    with warnings.catch_warnings():
        # zarr warns that consolidated metadata is not yet in the v3 specification; xarray and GDAL read it
        warnings.filterwarnings("ignore", message="Consolidated metadata is currently not part")
        zarr.consolidate_metadata(str(path))


def _root_attributes(layout: Layout) -> dict[str, Any]:
    return {"Conventions": "CF-1.11", "title": "class map", **layout.provenance}


def _array_attributes(layout: Layout) -> dict[str, Any]:
    reference = layout.georeference
    conventions = []
    attributes: dict[str, Any] = {
        "long_name": "semantic class",
        "flag_values": list(layout.legend.ids),
        "flag_meanings": layout.legend.flag_meanings,
        "flag_colors": " ".join(c.colour for c in layout.legend.classes),
        "class_names": [c.name for c in layout.legend.classes],
        "nodata": NODATA,
        "grid_mapping": "spatial_ref",
        "coordinates": "spatial_ref",
    }
    if reference.crs_wkt is not None:
        conventions.append(_PROJ_CONVENTION)
        if layout.authority_code is not None:
            attributes["proj:code"] = layout.authority_code
        attributes["proj:wkt2"] = reference.crs_wkt
    if reference.rotated:
        # no x and y can say it; a reader that cuts a window must move this transform itself
        conventions.append(_SPATIAL_CONVENTION)
        attributes["spatial:dimensions"] = ["y", "x"]
        attributes["spatial:transform_type"] = "affine"
        attributes["spatial:transform"] = list(reference.transform)
        attributes["spatial:shape"] = [layout.size.height, layout.size.width]
        attributes["spatial:registration"] = "pixel"
    if conventions:
        attributes["zarr_conventions"] = conventions
    return attributes


def _write_coordinates(root: zarr.Group, layout: Layout) -> None:
    a, _, c, _, e, f = layout.georeference.transform
    axes = {
        "y": (f + (np.arange(layout.size.height) + 0.5) * e, layout.y_attributes),
        "x": (c + (np.arange(layout.size.width) + 0.5) * a, layout.x_attributes),
    }
    for name, (centres, attributes) in axes.items():
        array = root.create_array(
            name,
            shape=centres.shape,
            chunks=(min(_COORDINATE_CHUNK, len(centres)),),
            dtype="float64",
            fill_value=np.nan,
            compressors=ZstdCodec(level=3, checksum=True),
            dimension_names=(name,),
            attributes=dict(attributes),
        )
        array[:] = centres
