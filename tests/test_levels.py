"""--level, --mpp and --resample: the map is that of a file with these pixels, and says where it lies."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from numpy.typing import NDArray
from rasterio import Affine
from rasterio.control import GroundControlPoint

from fcn_batch.pipeline.core.geometry import Window
from fcn_batch.pipeline.core.source import RasterSource
from fcn_batch.pipeline.raster.gdal import accept_pixel_space
from fcn_batch.workflows.inputs.sources import at_resolution, find_source
from tests.models import save_tiny_model
from tests.rasters import noise, write_raster
from tests.runs import class_map, fcn_batch, segmented, small_blocks
from tests.slides import aperio, cells, levels_of, pyramid

UTM = {"crs": "EPSG:32633", "transform": Affine(10, 0, 5e5, 0, -10, 5e6), "photometric": "RGB"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model") / "tiny.safetensors", fc_kernel=1, gsd_m=24.0)


@pytest.fixture(autouse=True)
def blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    small_blocks(monkeypatch)


def whole(source: RasterSource) -> NDArray[Any]:
    size = source.info.size
    return source.read(Window(0, 0, size.height, size.width), (1, 2, 3)).values


def plan_of(folder: Path, stem: str = "a") -> Any:
    return json.loads((folder / f"{stem}.run.json").read_text())["plan"]


def test_a_level_of_a_slide(tmp_path: Path, model: Path) -> None:
    levels = levels_of(cells(700, 900), (350, 450), (175, 225))
    pyramid(tmp_path / "a.tif", levels)
    write_raster(tmp_path / "b.tif", np.moveaxis(levels[1], -1, 0))
    how = ["-m", model, "--tissue", "off"]
    told = segmented(tmp_path / "a.tif", *how, "--level", 1, "-o", tmp_path / "one").stderr
    assert "350 x 450 px" in told
    segmented(tmp_path / "b.tif", *how, "-o", tmp_path / "plain")
    found = class_map(tmp_path / "one", "a")
    assert (found == class_map(tmp_path / "plain", "b")).all()
    assert plan_of(tmp_path / "one")["input"]["sources"][0]["level"] == 1
    segmented(tmp_path / "a.tif", *how, "--mpp", 1.0, "-o", tmp_path / "microns")
    assert (class_map(tmp_path / "microns", "a") == found).all()
    for name in ("validate", "verify"):
        assert fcn_batch(name, tmp_path / "one" / "a.run.json").exit_code == 0
    before = (tmp_path / "one" / "a.run.json").read_bytes()
    segmented(tmp_path / "a.tif", *how, "--level", 1, "-o", tmp_path / "one")
    assert (tmp_path / "one" / "a.run.json").read_bytes() == before, "complete already"
    other = fcn_batch("segment", tmp_path / "a.tif", *how, "--level", 2, "-o", tmp_path / "one")
    assert other.exit_code == 6, "another level is another run"


def test_a_level_of_a_raster_with_ground_control_points(tmp_path: Path, model: Path) -> None:
    """They move with the pixels, to those of the level and back to the input's."""
    points = [GroundControlPoint(row=r, col=c, x=15 + c / 100, y=45 - r / 100) for r in (0, 160) for c in (0, 140)]
    path = write_raster(tmp_path / "a.tif", noise(3, 160, 140), gcps=points, crs="EPSG:4326", tiled=True)
    with accept_pixel_space(), rasterio.open(path, "r+") as dataset:
        dataset.build_overviews([2])
    segmented(path, "-m", model, "--level", 1, "-o", tmp_path / "out")
    assert fcn_batch("validate", tmp_path / "out" / "a.run.json").exit_code == 0
    made = tmp_path / "out" / "a.classes.tif"
    maps, placed = [], []
    for source in ("a.run.json", "a.classes.tif"):
        fine = tmp_path / f"{source}.tif"
        export = ["export", tmp_path / "out" / source, "--to", "cog", "--grid", "input", "-o", fine]
        assert fcn_batch(*export).exit_code == 0
        maps.append(fine)
    with accept_pixel_space():
        for one in (made, *maps):
            with rasterio.open(one) as dataset:
                placed.append([(p.row, p.col, p.x, p.y) for p in dataset.gcps[0]])
        coarse, *finer = (rasterio.open(one).read(1) for one in (made, *maps))
    at = [(p.row, p.col, p.x, p.y) for p in points]
    assert placed == [[(row / 2, col / 2, x, y) for row, col, x, y in at], at, at]
    for one in finer:
        assert (one == np.repeat(np.repeat(coarse, 2, axis=0), 2, axis=1)).all()


def test_resampled_slides_of_scanners(tmp_path: Path, model: Path) -> None:
    """In two processes, which open the slide anew."""
    aperio(tmp_path / "a.svs", levels_of(cells(700, 900), (350, 450)))
    how = [tmp_path / "a.svs", "-m", model, "--tissue", "off", "--mpp", "1.5"]
    segmented(*how, "-o", tmp_path / "out")
    segmented(*how, "-o", tmp_path / "two", "--workers", 2)
    told = plan_of(tmp_path / "out")["input"]
    assert (told["microns"], told["resampling"], told["sources"][0]["level"]) == (1.5, "average", 1)
    assert told["sources"][0]["by"] == "openslide"
    assert (class_map(tmp_path / "out", "a") == class_map(tmp_path / "two", "a")).all()


def test_the_resolution_of_training(tmp_path: Path, model: Path) -> None:
    values = np.repeat(np.repeat(noise(3, 60, 70), 12, axis=1), 12, axis=2)[:, :703, :811]
    path = write_raster(tmp_path / "a.tif", values, **UTM)
    source = at_resolution(find_source(path), 24.0)
    a, _, left, _, e, top = source.info.georeference.transform
    assert (left, top) == (5e5, 5e6)
    assert (a, e) == pytest.approx((24.0, -24.0), rel=2e-3)  # metres on the ground, not of the map
    write_raster(tmp_path / "b.tif", whole(source), **{**UTM, "transform": Affine(*source.info.georeference.transform)})
    told = segmented(path, "-m", model, "--resample", "auto", "-o", tmp_path / "out").stderr
    assert "24 m per pixel" in told.replace("\n", " ")
    segmented(tmp_path / "b.tif", "-m", model, "-o", tmp_path / "plain")
    found = class_map(tmp_path / "out", "a")
    assert (found == class_map(tmp_path / "plain", "b")).all()
    with rasterio.open(tmp_path / "out" / "a.classes.tif") as dataset:
        assert tuple(dataset.transform)[:6] == source.info.georeference.transform
        assert dataset.crs.to_epsg() == 32633
    item = json.loads((tmp_path / "out" / "a.stac.json").read_text())
    assert item["properties"]["proj:transform"][:6] == list(source.info.georeference.transform)
    assert item["properties"]["proj:shape"] == list(found.shape)
    for kind in ("html", "ome-zarr"):
        result = fcn_batch("export", tmp_path / "out" / "a.run.json", "--to", kind)
        assert result.exit_code == 0, result.stderr
    for name in ("validate", "verify"):
        assert fcn_batch(name, tmp_path / "out" / "a.run.json").exit_code == 0
    shown = fcn_batch("plan", path, "-m", model, "--resample", "auto").stdout
    assert f"{found.shape[0]} x {found.shape[1]} px" in shown


REFUSED = {
    "--level 1": 4,
    "--level 1 --mpp 1": 2,
    "--mpp 1": 2,
    "--resample auto": 2,
    "--mpp 0": 2,
    "--level -1": 2,
}


@pytest.mark.parametrize("options", REFUSED)
def test_what_is_refused(tmp_path: Path, model: Path, options: str) -> None:
    path = write_raster(tmp_path / "a.tif", noise(3, 40, 50))
    result = fcn_batch("segment", path, "-m", model, "-o", tmp_path / "out", *options.split())
    assert result.exit_code == REFUSED[options]
    assert not (tmp_path / "out").exists()
