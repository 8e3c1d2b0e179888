"""The class map, and how sure the network was of it, as zarr stores that xarray, rioxarray and GDAL open right.

Layout and attributes were chosen from measurements over those readers (flat Zarr v3, CF grid mapping with
coordinates, `proj` convention; class ids with nodata as a plain attribute so that xarray keeps uint8, confidences
with CF scaling so that it gives floats). Stores of others are read by `zarrsource.py`.
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import ZstdCodec

from fcn_batch.pipeline.core.classes import NODATA, Legend
from fcn_batch.pipeline.core.conventions import joined, proj_attributes, spatial_attributes
from fcn_batch.pipeline.core.durable import sync
from fcn_batch.pipeline.core.errors import OutputError
from fcn_batch.pipeline.core.geometry import Size, Window
from fcn_batch.pipeline.core.georeference import GeoReference
from fcn_batch.pipeline.store.opening import UNSAFE, open_array, why

ARRAY = "classes"
CONFIDENCE = ("confidence", "margin")
"""Arrays of a store of confidences, in the order of the planes."""
SCALE_FACTOR = 1 / 250
"""What one step of a stored confidence is worth; 255 stands for no data."""
_COORDINATE_CHUNK = 65536
_LONG_NAMES = {
    "confidence": "probability of the class, as the network sees it (softmax)",
    "margin": "probability of the class less that of the next one",
}


@dataclass(frozen=True, slots=True)
class Layout:
    """Everything about a store but its pixels."""

    size: Size
    chunk: int
    """Side of what is written at once: a chunk, or a shard of several."""
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
    inner: int | None = None
    """Side of the chunks in a shard; None: no shards, every chunk is a file."""

    def __post_init__(self) -> None:
        if self.inner is not None and self.chunk % self.inner:
            raise ValueError(f"a shard of {self.chunk} is not a whole number of chunks of {self.inner}")


class _Store:
    """Arrays of one shape and one grid of chunks, written block by block; 255 where there is no data."""

    names: ClassVar[tuple[str, ...]]
    what: ClassVar[str]
    title: ClassVar[str]

    def __init__(self, path: Path) -> None:
        """Open the store at `path`; OutputError when there is none that can be read."""
        self.path = path
        try:
            self._arrays = [open_array(path / name, "r+") for name in self.names]
        except UNSAFE as error:
            raise OutputError(
                "output-damaged",
                "{path}: not a readable {what} ({why}); give --restart",
                path=path,
                what=self.what,
                why=why(error),
            ) from error
        first = self._arrays[0]
        self.size = Size(*first.shape)
        self.inner = int(first.chunks[0])
        """Side of what can be read at once without decoding anything else."""
        self.chunk = int(first.shards[0]) if first.shards else self.inner
        """Side of what is written at once."""

    @classmethod
    def create(cls, path: Path, layout: Layout) -> Self:
        """Make an empty store with all its metadata; every pixel reads as no data."""
        attributes = {"Conventions": "CF-1.11", "title": cls.title, **layout.provenance}
        root = zarr.create_group(path, zarr_format=3, attributes=attributes)
        for name in cls.names:
            root.create_array(
                name,
                shape=(layout.size.height, layout.size.width),
                chunks=(layout.inner or layout.chunk,) * 2,
                shards=None if layout.inner is None else (layout.chunk,) * 2,
                dtype="uint8",
                fill_value=NODATA,
                compressors=ZstdCodec(level=3, checksum=True),
                dimension_names=("y", "x"),
                attributes=array_attributes(name, layout),
            )
        root.create_array("spatial_ref", shape=(), dtype="int64", attributes=dict(layout.grid_mapping))
        if not layout.georeference.rotated:
            _write_coordinates(root, layout)
        return cls(path)

    def consolidate(self) -> None:
        """Gather all metadata in the root and bring them to the disk, the last thing done to a store.

        Temporary files that writers left when they were killed are deleted: chunks have numbers for names, metadata
        are `zarr.json`.
        """
        for path in self.path.glob("zarr.*.partial"):
            path.unlink(missing_ok=True)
        for name in self.names:
            for path in (self.path / name / "c").glob("*/*"):
                if not path.name.isdecimal():
                    path.unlink(missing_ok=True)
        consolidate(self.path)
        chunks = {self.path / name / "c" for name in self.names}  # durable since they were written
        sync([self.path, *(path for path in self.path.rglob("*") if chunks.isdisjoint(path.parents))])

    def _write(self, window: Window, planes: Sequence[NDArray[np.uint8]]) -> None:
        """Write a block and bring it to the disk. ValueError unless it is whole chunks (or ends the raster).

        Two tasks that shared a chunk would overwrite each other's pixels without a word.
        """
        self._check_whole_chunks(window)
        for array, plane in zip(self._arrays, planes, strict=True):
            array[window.slices()] = plane
        sync(self._files(window))

    def _read(self, window: Window) -> list[NDArray[np.uint8]]:
        try:
            return [np.asarray(array[window.slices()], dtype=np.uint8) for array in self._arrays]
        except (OSError, ValueError, RuntimeError) as error:
            raise OutputError(
                "output-damaged",
                "{path}: a chunk in {window} cannot be read ({why}); make the map again with --restart",
                path=self.path,
                window=window,
                why=why(error),
            ) from error

    def _check_whole_chunks(self, window: Window) -> None:
        ends = ((window.stop_row, self.size.height), (window.stop_col, self.size.width))
        starts_whole = window.row % self.chunk == 0 and window.col % self.chunk == 0
        if not starts_whole or any(stop % self.chunk and stop != end for stop, end in ends):
            raise ValueError(f"{window} is not whole chunks of {self.chunk} in a map of {self.size}")

    def _files(self, window: Window) -> list[Path]:
        """Chunk files of a window that exist, and all folders above them (a chunk of only nodata has no file)."""
        rows = range(window.row // self.chunk, -(-window.stop_row // self.chunk))
        cols = range(window.col // self.chunk, -(-window.stop_col // self.chunk))
        arrays = [self.path / name for name in self.names]
        folders = [array / "c" / str(row) for array, row in product(arrays, rows)]
        files = [folder / str(col) for folder in folders for col in cols]
        above = [path for array in arrays for path in (array / "c", array)]
        return [path for path in (*files, *folders, *above) if path.exists()]


class ClassStore(_Store):
    """A class map under construction or finished: (rows, cols), uint8, 255 where there is no data."""

    names = (ARRAY,)
    what = title = "class map"

    def write(self, window: Window, classes: NDArray[np.uint8]) -> None:
        """Write class ids (rows, cols) durably; ValueError unless `window` is whole chunks (or ends the raster)."""
        self._write(window, [classes])

    def read(self, window: Window) -> NDArray[np.uint8]:
        """Class ids of a window: (rows, cols), uint8. OutputError when a chunk is damaged."""
        return self._read(window)[0]


class ConfidenceStore(_Store):
    """How sure the network was of each pixel: largest probability and margin, in steps of 1/250; 255 is no data.

    Arrays of their own, in a store of their own: a second array beside the classes would keep GIS from opening these.
    """

    names = CONFIDENCE
    what, title = "store of confidences", "confidence of a class map"

    def write(self, window: Window, planes: NDArray[np.uint8]) -> None:
        """Write planes (2, rows, cols) durably; ValueError unless `window` is whole chunks (or ends the raster)."""
        self._write(window, list(planes))

    def read(self, window: Window) -> NDArray[np.uint8]:
        """Planes of a window: (2, rows, cols), uint8, as stored. OutputError when a chunk is damaged."""
        return np.stack(self._read(window))


def consolidate(path: Path) -> None:
    """Gather the metadata of all that lies in the group at `path` in the group's own."""
    with warnings.catch_warnings():
        # zarr warns that consolidated metadata is not yet in the v3 specification; xarray and GDAL read it
        warnings.filterwarnings("ignore", message="Consolidated metadata is currently not part")
        zarr.consolidate_metadata(path)


def array_attributes(name: str, layout: Layout) -> dict[str, Any]:
    """All attributes of the array `name`: what its values mean, and where the pixels lie."""
    return joined(_meaning(name, layout), _place(layout))


def centres(layout: Layout) -> dict[str, NDArray[np.float64]]:
    """Coordinates of the pixels' centres along each axis, of a grid that is not rotated."""
    a, _, c, _, e, f = layout.georeference.transform
    return {
        "y": np.asarray(f + (np.arange(layout.size.height) + 0.5) * e, np.float64),
        "x": np.asarray(c + (np.arange(layout.size.width) + 0.5) * a, np.float64),
    }


def _meaning(name: str, layout: Layout) -> dict[str, Any]:
    if name == ARRAY:
        legend = layout.legend
        return {
            "long_name": "semantic class",
            "flag_values": list(legend.ids),
            "flag_meanings": legend.flag_meanings,
            "flag_colors": " ".join(c.colour for c in legend.classes),
            "class_names": [c.name for c in legend.classes],
            "nodata": NODATA,
        }
    return {"long_name": _LONG_NAMES[name], "units": "1", "scale_factor": SCALE_FACTOR, "_FillValue": NODATA}


def _place(layout: Layout) -> dict[str, Any]:
    """Where the pixels lie."""
    reference = layout.georeference
    blocks = [{"grid_mapping": "spatial_ref", "coordinates": "spatial_ref"}]
    blocks.append(proj_attributes(reference.crs_wkt, layout.authority_code))
    if reference.rotated:
        # no x and y can say it; a reader that cuts a window must move this transform itself
        blocks.append(spatial_attributes(reference, layout.size))
    return joined(*blocks)


def _write_coordinates(root: zarr.Group, layout: Layout) -> None:
    attributes = {"y": layout.y_attributes, "x": layout.x_attributes}
    for name, values in centres(layout).items():
        array = root.create_array(
            name,
            shape=values.shape,
            chunks=(min(_COORDINATE_CHUNK, len(values)),),
            dtype="float64",
            fill_value=np.nan,
            compressors=ZstdCodec(level=3, checksum=True),
            dimension_names=(name,),
            attributes=dict(attributes[name]),
        )
        array[:] = values
