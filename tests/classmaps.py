"""Small real class maps for tests, as stores and as rasters."""

import itertools
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rasterio.crs import CRS

from fcn_batch.pipeline.core.classes import ClassInfo, Legend
from fcn_batch.pipeline.core.geometry import Size, Window
from fcn_batch.pipeline.core.georeference import IDENTITY, GeoReference
from fcn_batch.pipeline.raster.crs import authority_code, cf_grid_mapping, coordinate_attributes, wkt_of
from fcn_batch.pipeline.store.classstore import ClassStore, Layout
from tests.rasters import write_raster

LEGEND = Legend(
    classes=(
        ClassInfo(id=0, name="bare soil", colour="#aa8866"),
        ClassInfo(id=3, name="森林, größer", colour="#106020"),
        ClassInfo(id=5, name="water", colour="#1f78b4"),
    )
)
UTM, LONLAT = wkt_of("EPSG:32633"), wkt_of("EPSG:4326")
PLACES = {
    "north up": GeoReference(UTM, (10.0, 0.0, 500000.0, 0.0, -10.0, 5000000.0)),
    "south up": GeoReference(UTM, (10.0, 0.0, 500000.0, 0.0, 10.0, 5000000.0)),
    "rotated": GeoReference(UTM, (6.0, 8.0, 500000.0, 8.0, -6.0, 5000000.0)),
    "degrees": GeoReference(LONLAT, (0.05, 0.0, -4.0, 0.0, -0.05, 66.0)),
    "nowhere": GeoReference(None, IDENTITY),
}


def write_store(path: Path, ids: NDArray[np.uint8], place: GeoReference, chunk: int = 16) -> Path:
    """A finished class map of ours, its classes those of LEGEND."""
    size = Size(*ids.shape)
    y, x = coordinate_attributes(place)
    code = authority_code(place)
    store = ClassStore.create(path, Layout(size, chunk, LEGEND, place, cf_grid_mapping(place), code, y, x, {}))
    for row, col in itertools.product(range(0, size.height, chunk), range(0, size.width, chunk)):
        window = Window(row, col, chunk, chunk).clipped(size)
        store.write(window, ids[window.slices()])
    store.consolidate()
    return path


def write_tif(path: Path, ids: NDArray[np.uint8], place: GeoReference) -> Path:
    """A class map of another program's, without names."""
    where = {"crs": CRS.from_wkt(place.crs_wkt)} if place.crs_wkt else {}
    if place.transform != IDENTITY:
        where["transform"] = place.transform
    return write_raster(path, ids[None], nodata=255, **where)


def blobs(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    """Patches of the classes of LEGEND and of no data, of many sizes, none of them aligned with anything."""
    rng = np.random.default_rng(seed)
    wide = np.kron(rng.random((height // 9 + 1, width // 7 + 1)), np.ones((9, 7)))[:height, :width]
    fine = np.kron(rng.random((height // 2 + 1, width // 3 + 1)), np.ones((2, 3)))[:height, :width]
    steps = np.digitize(wide + 0.5 * fine, [0.5, 0.9, 1.2])
    ids: NDArray[np.uint8] = np.array([0, 3, 5, 255], np.uint8)[steps]
    return ids
