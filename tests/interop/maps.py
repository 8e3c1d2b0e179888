"""The maps that readers are tried on, made by the project's own writers: kinds of input x layouts.

Each map is class 1, with no data in a corner, but for two single pixels: whoever looks a pixel beside the place sees
another class.
"""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pyproj import CRS

from fcn_batch.pipeline.core.classes import NODATA, ClassInfo, Legend
from fcn_batch.pipeline.core.conventions import ome_image
from fcn_batch.pipeline.core.geometry import Size, Window
from fcn_batch.pipeline.core.georeference import IDENTITY, GeoReference, GroundControl
from fcn_batch.pipeline.core.tiling import BlockGrid
from fcn_batch.pipeline.raster.classmap import MapHead, write_cog
from fcn_batch.pipeline.raster.crs import authority_code, cf_grid_mapping, coordinate_attributes
from fcn_batch.pipeline.store.classstore import ClassStore, Layout
from fcn_batch.workflows.console.progress import Quiet
from fcn_batch.workflows.outputs.pyramid import write_pyramid

SIZE = Size(530, 402)
CHUNK = 128
PLACES = {(301, 77): 4, (20, 350): 7}
"""(row, col) of the single pixels, and their class."""
NAMES = {1: "bare soil", 4: "water", 7: "forest"}
LEGEND = Legend(
    classes=tuple(
        ClassInfo(id=i, name=name, colour=f"#{40 * (n + 1):02x}80c0") for n, (i, name) in enumerate(NAMES.items())
    )
)
CUT = Window(10, 60, 400, 300)
"""What is cut out by xarray; both places lie in it."""
MICRONS = 0.25


@dataclass(frozen=True, slots=True)
class Kind:
    """Where an input lies."""

    georeference: GeoReference
    ground: GroundControl | None = None
    microns: float | None = None


_UTM = CRS.from_epsg(32633).to_wkt()
_CORNERS = [(0, 0), (0, SIZE.width), (SIZE.height, 0), (SIZE.height, SIZE.width)]
KINDS = {
    "north up": Kind(GeoReference(_UTM, (10.0, 0.0, 500000.0, 0.0, -10.0, 5000000.0))),
    "south up": Kind(GeoReference(_UTM, (10.0, 0.0, 500000.0, 0.0, 10.0, 5000000.0))),
    "geographic": Kind(GeoReference(CRS.from_epsg(4326).to_wkt(), (1 / 30, 0.0, -7.0, 0.0, -1 / 30, 52.0))),
    "rotated": Kind(GeoReference(_UTM, (3.0, 4.0, 500000.0, 4.0, -3.0, 5000000.0))),
    "GCPs": Kind(
        GeoReference(None, IDENTITY),
        GroundControl(_UTM, tuple((r, c, 500000.0 + 10 * c, 5000000.0 - 10 * r, 0.0) for r, c in _CORNERS)),
    ),
    "no CRS": Kind(GeoReference(None, IDENTITY)),
    "slide": Kind(GeoReference(None, IDENTITY), microns=MICRONS),
}
_FILES = {
    "flat": "map.classes.zarr",
    "sharded": "shards.classes.zarr",
    "pyramid": "map.pyramid.zarr",
    "COG": "map.classes.tif",
    "flat, cut": "window.zarr",
    "pyramid, cut": "window-of-0.zarr",
}
LAYOUTS = tuple(_FILES)


@dataclass(frozen=True, slots=True)
class Made:
    """A map, and what is true of it."""

    path: Path
    layout: str
    kind: Kind

    @property
    def array(self) -> str:
        """The group in which the full map lies, if it is a store."""
        return "0/" if self.layout == "pyramid" else ""

    @property
    def offset(self) -> tuple[int, int]:
        """Row and column of the whole map at which this one begins."""
        return (CUT.row, CUT.col) if self.layout.endswith("cut") else (0, 0)

    @property
    def pixels(self) -> list[tuple[int, int]]:
        """(row, col) of the places."""
        return [(row - self.offset[0], col - self.offset[1]) for row, col in PLACES]

    @property
    def ground(self) -> list[tuple[float, float]]:
        """(x, y) of the places, the middles of their pixels, whatever was cut."""
        a, b, c, d, e, f = self.kind.georeference.transform
        middles = [(row + 0.5, col + 0.5) for row, col in PLACES]
        return [(a * col + b * row + c, d * col + e * row + f) for row, col in middles]

    @property
    def points(self) -> list[tuple[float, ...]]:
        """(row, col, x, y) of the ground control points."""
        ground = self.kind.ground
        row, col = self.offset
        return [] if ground is None else sorted((r - row, c - col, x, y) for r, c, x, y, _ in ground.points)

    @property
    def transform(self) -> tuple[float, ...]:
        """What a reader should say."""
        a, b, c, d, e, f = self.kind.georeference.transform
        row, col = self.offset
        return a, b, a * col + b * row + c, d, e, d * col + e * row + f


def make(kind_name: str, layout: str, folder: Path) -> Made:
    """One map, made in `folder` (one for each kind) if it is not there yet.

    All that depends on the writers' interfaces is here and in the functions below.
    """
    kind, path = KINDS[kind_name], folder / _FILES[layout]
    if not path.exists():
        if layout == "COG":
            write_cog(path, MapHead(kind.georeference, SIZE, LEGEND, {"fcn:model": "none"}, kind.ground), _parts(512))
        elif layout == "flat":
            _write_store(path, kind, CHUNK, None)
        elif layout == "sharded":
            _write_store(path, kind, 2 * CHUNK, CHUNK)
        elif layout == "pyramid":
            write_pyramid(make(kind_name, "flat", folder).path, path, Quiet())
        else:
            whole = make(kind_name, layout.removesuffix(", cut"), folder)
            _cut(whole, path)
    return Made(path, layout, kind)


def ids() -> NDArray[np.uint8]:
    """The class map."""
    values = np.ones((SIZE.height, SIZE.width), np.uint8)
    values[:50, :50] = NODATA
    for (row, col), class_id in PLACES.items():
        values[row, col] = class_id
    return values


def _parts(side: int) -> Iterator[tuple[Window, NDArray[np.uint8]]]:
    grid = BlockGrid(SIZE, side, side)
    for index in range(len(grid)):
        yield grid[index], ids()[grid[index].slices()]


def _write_store(path: Path, kind: Kind, chunk: int, inner: int | None) -> None:
    y_attributes, x_attributes = coordinate_attributes(kind.georeference)
    more: dict[str, Any] = {}
    if kind.microns is not None:
        more = ome_image("classes", [("classes", 1)], kind.microns, LEGEND)
    if kind.ground is not None:
        more = {"fcn:gcps": [list(point) for point in kind.ground.points], "fcn:gcps_crs": kind.ground.crs_wkt}
    layout = Layout(
        size=SIZE,
        chunk=chunk,
        legend=LEGEND,
        georeference=kind.georeference,
        grid_mapping=cf_grid_mapping(kind.georeference),
        authority_code=authority_code(kind.georeference),
        y_attributes=y_attributes,
        x_attributes=x_attributes,
        provenance={"fcn:model": "none", **more},
        inner=inner,
    )
    store = ClassStore.create(path, layout)
    for window, values in _parts(chunk):
        store.write(window, values)
    store.consolidate()


def _cut(whole: Made, target: Path) -> None:
    """A window of a store, as a user of xarray would cut it out and keep it."""
    import xarray

    with warnings.catch_warnings(), xarray.open_zarr(whole.path, group=whole.array or None, chunks=None) as dataset:
        warnings.filterwarnings("ignore", message="Consolidated metadata is currently not part")
        rows, cols = CUT.slices()
        dataset.isel(y=rows, x=cols).to_zarr(target)
