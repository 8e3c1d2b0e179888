"""Every file of polygons that `export` writes comes back as --aoi, --clip and --zones, on every kind of grid."""

import csv
from pathlib import Path

import pytest

from fcn_batch.pipeline.core.geometry import Window
from fcn_batch.pipeline.core.georeference import GeoReference
from fcn_batch.pipeline.raster.clip import Clipped, inside
from fcn_batch.pipeline.raster.crs import wkt_of
from fcn_batch.pipeline.raster.rasterfile import inspect
from fcn_batch.workflows.console.progress import Quiet
from fcn_batch.workflows.finished.export import Order, export
from fcn_batch.workflows.finished.maps import open_map
from fcn_batch.workflows.finished.zones import write_zones
from fcn_batch.workflows.inputs.area import choose_area
from tests.classmaps import PLACES, blobs, write_store
from tests.errors import refuses
from tests.rasters import write_raster

GRIDS = {
    **PLACES,
    "degrees from 0": GeoReference(wkt_of("EPSG:4326"), (5.0, 0.0, 0.0, 0.0, -3.0, 75.0)),
    "across the dateline": GeoReference(wkt_of("EPSG:4326"), (0.05, 0.0, 178.2, 0.0, -0.05, 66.0)),
    "polar": GeoReference(wkt_of("EPSG:3413"), (1000.0, 0.0, -35000.0, 0.0, -1000.0, 25000.0)),
    "a slide's level": GeoReference(None, (4.0, 0.0, 0.0, 0.0, 4.0, 0.0)),
}
TARGETS = {"gpkg": ".gpkg", "flatgeobuf": ".fgb", "geojson": ".geojson", "geoparquet": ".parquet"}
IDS = blobs(50, 70)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("grid", GRIDS)
def test_polygons_come_back(tmp_path: Path, grid: str, target: str) -> None:
    place = GRIDS[grid]
    store = write_store(tmp_path / "m.classes.zarr", IDS, place)
    if target == "geojson" and (place.crs_wkt is None or grid == "polar"):
        with refuses("map-with-pole" if grid == "polar" else "map-without-crs"):
            export(Order(store, target), Quiet())
        return
    polygons = export(Order(store, target), Quiet())
    known = IDS != 255
    image = write_raster(tmp_path / "image.tif", IDS[None], crs=place.crs_wkt, transform=place.transform)
    area = choose_area(inspect(image), polygons, None)
    assert area is not None
    assert (inside(area, Window(0, 0, *IDS.shape)) == known).all(), "--aoi"
    clipped = Clipped(open_map(store), polygons).read(Window(0, 0, *IDS.shape))
    assert (clipped == IDS).all(), "--clip"
    write_zones(open_map(store), polygons, tmp_path / "zones.csv", Quiet(), name_field="class")
    with (tmp_path / "zones.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if int(row["pixels"])]
    assert {row["zone"] for row in rows} == {row["class"] for row in rows}
    assert sum(int(row["pixels"]) for row in rows if row["zone"] == row["class"]) == known.sum(), "--zones"
    assert all(row["zone"] == row["class"] for row in rows)


@pytest.mark.parametrize("crs", ['LOCAL_CS["site",UNIT["metre",1]]', "IAU_2015:49900"])
def test_geojson_is_of_the_earth(tmp_path: Path, crs: str) -> None:
    place = GeoReference(wkt_of(crs), (1.0, 0.0, 0.0, 0.0, -1.0, 0.0))
    store = write_store(tmp_path / "m.classes.zarr", IDS, place)
    with refuses("map-not-on-earth"):
        export(Order(store, "geojson"), Quiet())
    polygons = export(Order(store, "gpkg"), Quiet())
    assert (Clipped(open_map(store), polygons).read(Window(0, 0, *IDS.shape)) == IDS).all()
