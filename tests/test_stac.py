"""The STAC item: valid, readable by pystac, and the map is where it says."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pystac
import pytest
import rasterio
from hypothesis import given, settings
from hypothesis import strategies as st
from pystac.extensions.classification import ClassificationExtension
from pystac.extensions.projection import ProjectionExtension
from pystac.validation.stac_validator import JsonSchemaSTACValidator
from rasterio.control import GroundControlPoint
from rasterio.warp import transform as to_degrees
from shapely import MultiPolygon, Point, Polygon, box
from shapely.geometry import shape

from fcn_batch.pipeline.core.classes import ClassInfo, Legend
from fcn_batch.pipeline.core.geometry import Size
from fcn_batch.pipeline.core.georeference import IDENTITY, GeoReference, GroundControl
from fcn_batch.pipeline.raster.ground import Footprint, footprint
from fcn_batch.workflows.outputs.publishing import Outputs
from fcn_batch.workflows.outputs.stac import make_item
from tests.memorymaps import legend_of, plan_of, utm, wkt
from tests.rasters import write_raster

Transform = tuple[float, float, float, float, float, float]
LEGEND = legend_of("bare soil", "森林", "山")
FINISHED = "2026-01-02T03:04:05+00:00"


def _no_network(*_: object) -> None:
    raise AssertionError("the network was asked")


def valid(item: dict[str, Any]) -> dict[str, Any]:
    """The item itself, checked against the core schemas that pystac ships: nothing is asked from the network."""
    told = json.loads(json.dumps(item, allow_nan=False))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("socket.socket.connect", _no_network)
        JsonSchemaSTACValidator().validate_core(told, pystac.STACObjectType.ITEM, "1.1.0")
    pystac.Item.from_dict(told)
    return item


def item_of(image: Path, *more: str, model: Path | None = None, legend: Legend = LEGEND, **changes: Any) -> Any:
    plan = plan_of(image, model, **changes)
    counted = [{"id": one.id, "name": one.name, "pixels": 7, "share": 0.25} for one in legend.classes]
    names = [f"{image.stem}{ending}" for ending in (".classes.zarr", ".classes.tif", ".classes.tif.aux.xml", *more)]
    report = {"outputs": names, "classes": counted, "timing": {"finished": FINISHED}}
    return valid(make_item(plan, legend, report, Outputs(image.parent, image.stem)))


@pytest.fixture
def image(tmp_path: Path) -> Path:
    ref = utm()
    return write_raster(
        tmp_path / "scene.tif", np.ones((3, 20, 30), np.uint8), crs=ref.crs_wkt, transform=ref.transform
    )


def test_pystac_reads_everything_back(image: Path) -> None:
    told = item_of(image)
    uris = [uri.removeprefix("https://stac-extensions.github.io/") for uri in told["stac_extensions"]]
    versions = ("projection/v2.0.0", "raster/v2.0.0", "classification/v2.0.0", "processing/v1.2.0")
    assert uris == [f"{one}/schema.json" for one in versions]
    item = pystac.Item.from_dict(told)
    proj = ProjectionExtension.ext(item)
    assert (proj.code, proj.shape, proj.transform) == ("EPSG:32633", [20, 30], list(utm().transform))
    assert item.datetime is not None
    assert item.datetime.isoformat() == FINISHED
    for key in ("classes", "cog"):
        classes = ClassificationExtension.ext(item.assets[key]).classes
        assert classes is not None
        assert [(one.value, one.name) for one in classes] == [(0, "bare_soil"), (1, "_"), (2, "__2"), (255, "nodata")]
        assert [one.color_hint for one in classes[:3]] == ["1F6FB4", "1B7837", "E0C48C"]
        assert [one.nodata for one in classes] == [None, None, None, True]
        assert [one.to_dict().get("title") for one in classes[:3]] == ["bare soil", "森林", "山"]
        assert [(one.to_dict()["count"], one.to_dict()["percentage"]) for one in classes[:3]] == [(7, 25)] * 3


def test_every_output_is_an_asset_beside_the_item(image: Path) -> None:
    few = item_of(image)["assets"]
    assert {key: one["href"] for key, one in few.items()} == {
        "classes": "./scene.classes.zarr",
        "cog": "./scene.classes.tif",
        "names": "./scene.classes.tif.aux.xml",
        "report": "./scene.run.json",
    }
    assert few["classes"]["type"] == "application/vnd.zarr; version=3"
    assert few["cog"]["type"] == "image/tiff; application=geotiff; profile=cloud-optimized"
    many = item_of(image, ".confidence.zarr", ".pyramid.zarr", ".classes.qml")["assets"]
    assert set(many) - set(few) == {"confidence", "pyramid", "style"}
    assert many["confidence"]["raster:scale"] == 1 / 250
    assert "classification:classes" not in many["confidence"]
    assert many["cog"]["raster:spatial_resolution"] == pytest.approx(10, rel=1e-3)


def test_the_model_is_described_where_it_is_a_file(image: Path) -> None:
    model = image.parent / "models" / "tiny.safetensors"
    model.parent.mkdir()
    model.write_bytes(b"")
    item = item_of(image, model=model)
    found, asset = item["properties"], item["assets"]["model"]
    assert item["stac_extensions"][-1] == "https://stac-extensions.github.io/mlm/v1.4.0/schema.json"
    assert asset["href"] == "models/tiny.safetensors"
    assert asset["roles"] == ["mlm:model"]
    assert {"mlm:name", "mlm:architecture", "mlm:tasks", "mlm:input", "mlm:output"} <= set(found)
    assert found["mlm:output"][0]["result"]["shape"] == [-1, 3, -1, -1]
    assert found["mlm:input"][0]["input"]["shape"] == [-1, 3, -1, -1]
    assert not [key for key in item_of(image)["properties"] if key.startswith("mlm:")]


def test_names_of_classes_and_files_of_any_kind(image: Path) -> None:
    classes = [ClassInfo(id=k, name=name, colour="#000000") for k, name in enumerate(["a b", "a-b", "a_b", "nodata"])]
    odd = item_of(image.rename(image.parent / "a#b? %25.tif"), legend=Legend(classes=tuple(classes)))["assets"]
    assert len({one["name"] for one in odd["classes"]["classification:classes"]}) == 5, "no two share one"
    assert odd["cog"]["href"] == "./a%23b%3F%20%2525.classes.tif"


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ({"TIFFTAG_DATETIME": "2019:01:31 10:20:30"}, "2019-01-31T10:20:30Z"),
        ({"TIFFTAG_DATETIME": "0000:00:00 00:00:00"}, "2026-01-02T03:04:05Z"),
        ({"TIFFTAG_DATETIME": "yesterday"}, "2026-01-02T03:04:05Z"),
        ({"TIFFTAG_DATETIME": "0001-01-01T00:00:00+01:00"}, "2026-01-02T03:04:05Z"),  # before the first year
        ({"TIFFTAG_DATETIME": "2019:01:31 10:20:30", "of a satellite": "2018-05-06 07:08:09"}, "2018-05-06T07:08:09Z"),
        ({}, "2026-01-02T03:04:05Z"),
    ],
)
def test_the_time_is_the_satellites_else_the_images_else_the_runs(
    image: Path, tags: dict[str, str], expected: str
) -> None:
    with rasterio.open(image, "r+") as dataset:
        if "of a satellite" in tags:
            dataset.update_tags(ns="IMAGERY", ACQUISITIONDATETIME=tags.pop("of a satellite"))
        dataset.update_tags(**tags)
    properties = item_of(image)["properties"]
    assert properties["datetime"] == expected
    assert properties["processing:datetime"] == properties["created"] == "2026-01-02T03:04:05Z"


def test_an_image_that_is_gone_says_no_time(image: Path) -> None:
    plan = plan_of(image)
    report = {"outputs": [], "classes": [], "timing": {"finished": FINISHED}}
    image.unlink()
    item = valid(make_item(plan, LEGEND, report, Outputs(image.parent, "scene")))
    assert item["properties"]["datetime"] == "2026-01-02T03:04:05Z"


def test_pixel_space_has_no_geometry(tmp_path: Path) -> None:
    item = item_of(write_raster(tmp_path / "slide.tif", np.ones((3, 20, 30), np.uint8)), microns=0.5)
    assert item["geometry"] is None
    assert "bbox" not in item
    assert "proj:code" not in item["properties"]
    assert item["assets"]["cog"]["raster:spatial_resolution"] == 5e-7


def test_ground_control_points_give_their_hull(tmp_path: Path) -> None:
    corners = ((0, 0, 14, 46), (0, 30, 15, 46.5), (20, 30, 15, 45), (20, 0, 14, 45), (10, 15, 14.5, 45.5))
    points = [GroundControlPoint(row=row, col=col, x=x, y=y) for row, col, x, y in corners]
    path = write_raster(tmp_path / "g.tif", np.ones((3, 20, 30), np.uint8), gcps=points, crs="EPSG:4326")
    item = item_of(path)
    assert shape(item["geometry"]).equals(Polygon([(14, 46), (15, 46.5), (15, 45), (14, 45)]))
    assert item["bbox"] == [14, 45, 15, 46.5]
    assert "proj:transform" not in item["properties"]


def test_a_system_without_a_code_is_written_out(tmp_path: Path) -> None:
    own = "+proj=laea +lat_0=45 +lon_0=15 +datum=WGS84"
    values = np.ones((3, 20, 30), np.uint8)
    item = item_of(write_raster(tmp_path / "o.tif", values, crs=own, transform=utm().transform))
    assert item["properties"]["proj:code"] is None
    assert item["properties"]["proj:wkt2"].startswith("PROJCRS")


# footprints


def placed(code: str, *transform: float) -> GeoReference:
    a, b, c, d, e, f = transform
    return GeoReference(wkt(code), (a, b, c, d, e, f))


def print_of(code: str, size: Size, *transform: float) -> Footprint:
    found = footprint(placed(code, *transform), size)
    assert found is not None
    return found


PLACES: dict[str, tuple[str, Size, Transform, tuple[float, float, float, float]]] = {
    "whole world": ("EPSG:4326", Size(1800, 3600), (0.1, 0, -180, 0, -0.1, 90), (-180, -90, 180, 90)),
    "from Greenwich eastwards": ("EPSG:4326", Size(180, 360), (1, 0, 0, 0, -1, 90), (-180, -90, 180, 90)),
    "web world": (
        "EPSG:3857",
        Size(100, 100),
        (400750.16, 0, -20037508, 0, -400750.16, 20037508),
        (-180, -85.051, 180, 85.051),
    ),
    "Fiji": ("EPSG:4326", Size(300, 500), (0.01, 0, 178, 0, -0.01, -16), (178, -19, -177, -16)),
    "south-up": ("EPSG:4326", Size(10, 20), (0.1, 0, 5, 0, 0.1, 50), (5, 50, 7, 51)),
    "South Pole": ("EPSG:3031", Size(60, 60), (1e5, 0, -3e6, 0, -1e5, 3e6), (-180, -90, 180, -52.317)),
    "North Pole": ("EPSG:3413", Size(60, 60), (1e5, 0, -3e6, 0, -1e5, 3e6), (-180, 52.212, 180, 90)),
}  # fmt: skip


@pytest.mark.parametrize("name", PLACES)
def test_boxes_of_known_places(name: str) -> None:
    code, size, transform, expected = PLACES[name]
    assert print_of(code, size, *transform).bbox == pytest.approx(expected, abs=1e-3)


FOOTPRINTS = {
    "utm": ("EPSG:32633", Size(100, 200), (100, 0, 400000, 0, -100, 5000000)),
    "rotated": ("EPSG:32633", Size(100, 200), (80, 30, 500000, 30, -80, 5000000)),
    "across 180": ("EPSG:32760", Size(300, 500), (1000, 0, 700000, 0, -1000, 8200000)),
    "South Pole": ("EPSG:3031", Size(60, 60), (1e5, 0, -3e6, 0, -1e5, 3e6)),
    "North Pole": ("EPSG:3413", Size(50, 60), (1e5, 0, -1e6, 0, -1e5, 3e6)),
    "beside the pole": ("EPSG:3413", Size(20, 20), (1e5, 0, 1e5, 0, -1e5, 3e6)),
    "wide cone": ("EPSG:3035", Size(40, 60), (1e5, 0, 2e6, 0, -1e5, 5.5e6)),
}


@pytest.mark.parametrize("name", FOOTPRINTS)
@settings(max_examples=30)
@given(at=st.tuples(st.floats(0.02, 0.98), st.floats(0.02, 0.98)), beyond=st.sampled_from([0.0, 1.06, -1.06]))
def test_the_map_and_nothing_else_is_inside(name: str, at: tuple[float, float], beyond: float) -> None:
    code, size, (a, b, c, d, e, f) = FOOTPRINTS[name]
    found = print_of(code, size, a, b, c, d, e, f)
    area = shape(found.geometry)
    assert isinstance(area, Polygon | MultiPolygon)
    assert area.is_valid
    row, col = (at[0] + beyond) * size.height, at[1] * size.width
    (lon,), (lat,) = to_degrees(code, "EPSG:4326", [a * col + b * row + c], [d * col + e * row + f])
    if beyond == 0 or np.isfinite([lon, lat]).all():
        assert area.covers(Point(lon, lat)) == (beyond == 0)


@pytest.mark.parametrize("name", FOOTPRINTS)
def test_rings_are_as_geojson_wants_them(name: str) -> None:
    code, size, transform = FOOTPRINTS[name]
    found = print_of(code, size, *transform)
    area = shape(found.geometry)
    parts = list(area.geoms) if isinstance(area, MultiPolygon) else [area]
    for part in parts:
        assert part.exterior.is_ccw
        assert part.exterior.coords[0] == part.exterior.coords[-1]
        assert box(-180, -90, 180, 90).covers(part)
    west, south, east, north = found.bbox
    assert (west > east) == (len(parts) == 2)
    assert (south, north) == (area.bounds[1], area.bounds[3])


def test_a_disc_seen_from_space_has_the_box_of_what_is_seen() -> None:
    found = footprint(
        placed("+proj=geos +h=35785831 +lon_0=175 +sweep=y", 55680, 0, -5568000, 0, -55680, 5568000), Size(200, 200)
    )
    assert found is not None
    west, south, east, north = found.bbox
    assert west - 175 == pytest.approx(-(east + 360 - 175))
    assert 60 < 175 - west < 82
    assert south == pytest.approx(-north)


@pytest.mark.parametrize(
    "wkt_text", [None, 'ENGCRS["x",EDATUM["y"],CS[Cartesian,2],AXIS["a",east],AXIS["b",north],LENGTHUNIT["m",1]]']
)
def test_what_is_not_on_the_earth_has_no_footprint(wkt_text: str | None) -> None:
    assert footprint(GeoReference(wkt_text, (2.0, 0.0, 3.0, 0.0, -2.0, 4.0)), Size(5, 5)) is None
    points = tuple((float(k), float(k * k), float(k), float(k * k), 0.0) for k in range(4))
    assert footprint(GeoReference(None, IDENTITY), Size(5, 5), GroundControl(wkt_text, points)) is None
