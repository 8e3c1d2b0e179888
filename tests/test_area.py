"""Maps of a part of a raster: a box or polygons. Inside, what the whole raster would have there; outside, nothing."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from numpy.typing import NDArray
from pydantic import ValidationError
from rasterio.warp import transform_geom

from fcn_batch.pipeline.core import area as area_module
from fcn_batch.pipeline.core.area import Area
from fcn_batch.pipeline.core.geometry import Window
from fcn_batch.pipeline.raster.clip import inside
from fcn_batch.pipeline.raster.rasterfile import RasterioSource
from fcn_batch.pipeline.store.classstore import ConfidenceStore
from tests.errors import refused
from tests.models import save_tiny_model
from tests.rasters import noise, write_raster
from tests.runs import class_map, fcn_batch, scene, segmented, small_blocks

HEIGHT, WIDTH = 400, 330
TRIANGLE = ((40.0, 150.0), (200.5, 150.0), (120.0, 290.0), (40.0, 150.0))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model") / "tiny.safetensors", fc_kernel=1)


@pytest.fixture
def raster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    small_blocks(monkeypatch)
    return scene(tmp_path / "a.tif", HEIGHT, WIDTH)


def box_of(raster: Path, window: Window) -> str:
    with rasterio.open(raster) as dataset:
        left, top = dataset.transform @ (window.col, window.row)
        right, bottom = dataset.transform @ (window.stop_col, window.stop_row)
    return ",".join(map(repr, (left, min(top, bottom), right, max(top, bottom))))


def within(window: Window) -> NDArray[np.bool_]:
    mask = np.zeros((HEIGHT, WIDTH), np.bool_)
    mask[window.slices()] = True
    return mask


def expected(whole: NDArray[np.uint8], wanted: NDArray[np.bool_]) -> NDArray[np.uint8]:
    return np.where(wanted, whole, np.uint8(255))


def test_a_pixel_belongs_to_it_by_its_centre() -> None:
    hole = ((3.0, 3.0), (5.0, 3.0), (5.0, 5.0), (3.0, 5.0), (3.0, 3.0))
    area = Area(polygons=((((1.4, 2.0), (9.6, 2.0), (9.6, 7.0), (1.4, 7.0), (1.4, 2.0)), hole), (TRIANGLE,)))
    mask = inside(area, Window(0, 0, 10, 12))
    whole = np.zeros((10, 12), np.bool_)
    whole[2:7, 1:10] = True
    whole[3:5, 3:5] = False
    assert (mask == whole).all()
    assert (inside(area, Window(4, 2, 4, 5)) == whole[4:8, 2:7]).all()
    assert not inside(area, Window(20, 20, 30, 30)).any()
    assert len(area.near(Window(0, 0, 10, 12))) == 1
    assert area.pixels == 8.2 * 5 - 4 + abs(Area(polygons=((TRIANGLE,),)).pixels)


def test_areas_that_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    for polygons in ((), ((),), ((TRIANGLE[:3],),), ((((0.0, float("nan")), *TRIANGLE),),)):
        with pytest.raises(ValidationError):
            Area.model_validate({"polygons": polygons})
    monkeypatch.setattr(area_module, "MAX_POINTS", 7)
    with pytest.raises(ValidationError, match="8 points"):
        Area(polygons=((TRIANGLE,), (TRIANGLE,)))


@pytest.mark.parametrize(
    "way", [(), ("--tile", "64"), ("--tile", "96", "--overlap", "32"), ("--confidence",), ("--workers", "2")]
)
def test_a_box(raster: Path, model: Path, tmp_path: Path, way: tuple[str, ...]) -> None:
    window = Window(150, 70, 170, 61)
    options = [raster, "-m", model, "--precision", "fp32", "--threads", 1, *way]
    segmented(*options, "-o", tmp_path / "whole")
    segmented(*options, "-o", tmp_path / "part", "--bbox", box_of(raster, window))
    whole, part = class_map(tmp_path / "whole", "a"), class_map(tmp_path / "part", "a")
    assert (part == expected(whole, within(window))).all()
    with rasterio.open(tmp_path / "part" / "a.classes.tif") as dataset:
        assert (dataset.read(1) == part).all()
    for command in ("validate", "verify"):
        assert fcn_batch(command, tmp_path / "part" / "a.run.json").exit_code == 0


def test_what_is_far_away_is_not_even_read(
    raster: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: list[tuple[int, int]] = []
    proper = RasterioSource.read

    def read(self: RasterioSource, window: Window, bands: tuple[int, ...]) -> Any:
        rows.append((window.row, window.stop_row))
        return proper(self, window, bands)

    monkeypatch.setattr(RasterioSource, "read", read)
    segmented(raster, "-m", model, "-o", tmp_path / "out", "--bbox", box_of(raster, Window(0, 0, 20, 330)))
    assert max(stop for _, stop in rows) < 300
    segmented(raster, "-m", model, "-o", tmp_path / "whole")
    part, whole = (json.loads((tmp_path / name / "a.run.json").read_text()) for name in ("out", "whole"))
    assert part["forward_passes_per_pixel"] < whole["forward_passes_per_pixel"] * 0.7
    assert part["blocks"] == whole["blocks"]


def test_outside_of_it_nothing_is_sure(raster: Path, model: Path, tmp_path: Path) -> None:
    box = Window(30, 40, 100, 150)
    segmented(raster, "-m", model, "-o", tmp_path / "out", "--confidence", "--bbox", box_of(raster, box))
    planes = ConfidenceStore(tmp_path / "out" / "a.confidence.zarr").read(Window(0, 0, HEIGHT, WIDTH))
    assert ((planes == 255) == ~within(box)).all()


def test_polygons_also_in_another_system(raster: Path, model: Path, tmp_path: Path) -> None:
    pytest.importorskip("pyogrio")
    options = [raster, "-m", model]
    segmented(*options, "-o", tmp_path / "whole")
    with rasterio.open(raster) as dataset:
        transform, crs = dataset.transform, dataset.crs
    box = ((60.2, 90.7), (200.4, 90.7), (200.4, 300.1), (60.2, 300.1), (60.2, 90.7))  # which Mercator keeps straight
    whole = class_map(tmp_path / "whole", "a")
    for name, system, number, ring in (("own", crs, 4326, TRIANGLE), ("mercator", "EPSG:3857", 3857, box)):
        shape = {"type": "Polygon", "coordinates": [[transform @ point for point in ring]]}
        feature = {"type": "Feature", "properties": {}, "geometry": transform_geom(crs, system, shape, precision=-1)}
        named = {"type": "name", "properties": {"name": f"urn:ogc:def:crs:EPSG::{number}"}}
        path = tmp_path / f"{name}.geojson"
        path.write_text(json.dumps({"type": "FeatureCollection", "crs": named, "features": [feature]}))
        segmented(*options, "-o", tmp_path / name, "--aoi", path)
        mask = inside(Area(polygons=((ring,),)), Window(0, 0, HEIGHT, WIDTH))
        assert (class_map(tmp_path / name, "a") == expected(whole, mask)).all(), name
    told = fcn_batch("plan", *options, "--aoi", path).stdout
    assert "area         1 polygons: at least " in told
    assert "are not even read" in told


def test_an_area_that_differs_is_another_run(raster: Path, model: Path, tmp_path: Path) -> None:
    options = [raster, "-m", model, "-o", tmp_path / "out", "--bbox"]
    segmented(*options, box_of(raster, Window(0, 0, 20, 20)))
    assert "complete already" in segmented(*options, box_of(raster, Window(0, 0, 20, 20))).stderr
    result = fcn_batch("segment", *options, box_of(raster, Window(0, 0, 20, 21)))
    assert result.exit_code == 6
    assert "--overwrite" in result.stderr


def test_lanes_need_not_be_wider_than_the_area(tmp_path: Path, model: Path) -> None:
    path = write_raster(
        tmp_path / "wide.tif", noise(3, 40, 9000), crs="EPSG:32633", transform=rasterio.Affine(10, 0, 5e5, 0, -10, 5e6)
    )
    told = fcn_batch("plan", path, "-m", model, "--bbox", box_of(path, Window(0, 5000, 40, 100))).stdout
    assert "lanes        5 of 2048 px" in told
    assert "area         1 polygons: at least 4 of 5 blocks, " in told


@pytest.mark.parametrize(
    ("options", "code"),
    [
        (["--bbox", "1,2,3"], None),
        (["--bbox", "1,2,3,nan"], None),
        (["--bbox", "3,2,1,4"], "option-value"),
        (["--bbox", "500,500,501,501"], "box-elsewhere"),
        (["--bbox=-20,39.98,-19.98,40"], "box-empty"),
        (["--bbox", "1,2,3,4", "--aoi", "x.geojson"], "option-conflict"),
    ],
)
def test_what_is_refused(
    raster: Path, model: Path, tmp_path: Path, options: list[str], code: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = fcn_batch("segment", raster, "-m", model, "-o", tmp_path / "out", *options)
    if code is None:  # refused by click
        assert result.exit_code == 2
    else:
        refused(result, code)
    assert not (tmp_path / "out").exists()


def test_polygons_elsewhere(raster: Path, model: Path, tmp_path: Path) -> None:
    pytest.importorskip("pyogrio")
    far = {"type": "Polygon", "coordinates": [[(-100, -50), (-99, -50), (-99, -49), (-100, -50)]]}
    (tmp_path / "far.geojson").write_text(json.dumps(far))
    result = fcn_batch("segment", raster, "-m", model, "-o", tmp_path / "out", "--aoi", tmp_path / "far.geojson")
    refused(result, "polygons-elsewhere", path=tmp_path / "far.geojson", raster=raster)
