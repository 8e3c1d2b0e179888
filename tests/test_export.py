"""`fcn-batch export`: every target from every map, cleaned up in the right order, and nothing replaced unasked."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from click.testing import Result
from rasterio.control import GroundControlPoint

from fcn_batch.pipeline.core.errors import OutputError
from fcn_batch.pipeline.core.geometry import Size
from fcn_batch.pipeline.core.georeference import IDENTITY, GeoReference
from fcn_batch.pipeline.core.majority import Majority
from fcn_batch.pipeline.core.maps import Ids
from fcn_batch.pipeline.raster.crs import row_areas_m2
from fcn_batch.pipeline.raster.gdal import accept_pixel_space
from fcn_batch.workflows.console.progress import Quiet
from fcn_batch.workflows.finished.export import Order, export
from fcn_batch.workflows.finished.maps import find_map, open_map
from fcn_batch.workflows.finished.targets import ENDINGS
from tests.errors import refused, refuses
from tests.memorymaps import ArrayMap, legend_of, patches, plan_of, utm, whole, write_map
from tests.rasters import write_raster
from tests.runs import fcn_batch

LEGEND = legend_of("water", "wood, wet", "sand")
IDS = patches(61, 83, 3, seed=2)
IDS[20:30, 5:9] = 255
PACKAGES = {"gpkg": "pyarrow", "geojson": "pyarrow", "geoparquet": "pyarrow", "flatgeobuf": "pyarrow"}


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """The GeoTIFF of a map."""
    return write_map(tmp_path / "scene.classes.tif", IDS, LEGEND, utm())


@pytest.fixture
def run(made: Path) -> Path:
    """The report of a run with its map, and the image it was made from."""
    folder = made.parent
    image = write_raster(folder / "scene.tif", np.stack([IDS] * 3), photometric="RGB")
    report = folder / "scene.run.json"
    told = {"exactness": "exact", "timing": {"finished": "2026-01-02T03:04:05+00:00"}, "versions": {}}
    report.write_text(json.dumps({**told, "plan": plan_of(image).model_dump(mode="json")}))
    return report


def called(*arguments: object) -> Result:
    return fcn_batch("export", *arguments)


def exported(source: Path, target: str, **chosen: Any) -> Path:
    return export(Order(source, target, **chosen), Quiet())


def raster(path: Path) -> Ids:
    with accept_pixel_space(), rasterio.open(path) as dataset:
        ids: Ids = dataset.read(1)
        return ids


def table(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text("utf-8").splitlines()))


def square(path: Path, west: float, south: float, east: float, north: float) -> Path:
    """A polygon file beside the map."""
    pyogrio, shapely = pytest.importorskip("pyogrio"), pytest.importorskip("shapely")
    shapes = shapely.to_wkb(np.array([shapely.box(west, south, east, north)]))
    pyogrio.raw.write(path, shapes, [np.array(["inner"], object)], ["name"], geometry_type="Polygon", crs="EPSG:32633")
    return path


@pytest.mark.parametrize("target", ENDINGS)
def test_every_target_is_written_beside_the_map(run: Path, target: str) -> None:
    if target in PACKAGES:
        pytest.importorskip(PACKAGES[target])
    result = called(run, "--to", target, "-q")
    assert result.exit_code == 0, result.stderr
    path = Path(result.stdout.strip())
    assert path == run.with_name(f"scene.classes{ENDINGS[target][0]}")
    assert path.exists()
    known = {"scene.tif", "scene.run.json", "scene.classes.tif", "scene.classes.tif.aux.xml", path.name}
    beside = {f"{path.name}.aux.xml", path.with_suffix(".qml").name} if target == "cog" else set()
    assert {one.name for one in run.parent.iterdir()} - known <= beside


def test_a_cog_is_the_map_again_and_says_how_it_was_made(run: Path) -> None:
    path = exported(run, "cog")
    again = open_map(path)
    assert np.array_equal(whole(again), IDS)
    assert again.legend == LEGEND
    assert again.georeference.transform == utm().transform
    with rasterio.open(path) as dataset:
        assert dataset.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
        assert dataset.tags()["fcn_model"] == "tiny-model"
    style = path.with_suffix(".qml").read_text("utf-8")
    assert all(f'label="{one.name}"' in style for one in LEGEND.classes)


def test_a_cog_keeps_the_ground_control_points(tmp_path: Path) -> None:
    points = [GroundControlPoint(row=r, col=c, x=15 + c / 100, y=45 - r / 100) for r in (0, 60) for c in (0, 80)]
    image = write_raster(tmp_path / "scene.tif", np.stack([IDS] * 3), gcps=points, crs="EPSG:4326")
    write_map(tmp_path / "scene.classes.tif", IDS, LEGEND, GeoReference(None, IDENTITY))
    report = {"plan": plan_of(image).model_dump(mode="json")}
    (tmp_path / "scene.run.json").write_text(json.dumps(report))
    with rasterio.open(exported(tmp_path / "scene.run.json", "cog")) as dataset:
        found, crs = dataset.gcps
    assert [(p.row, p.col, p.x, p.y) for p in found] == [(p.row, p.col, p.x, p.y) for p in points]
    assert crs.to_epsg() == 4326


def test_the_table_counts_every_pixel(made: Path) -> None:
    rows = table(exported(made, "csv"))
    areas = row_areas_m2(utm(), Size(*IDS.shape))
    assert areas is not None
    assert [(int(row["class_id"]), row["class"]) for row in rows] == [(0, "water"), (1, "wood, wet"), (2, "sand")]
    for row in rows:
        here = np.equal(IDS, int(row["class_id"]))
        assert int(row["pixels"]) == here.sum()
        assert float(row["area_m2"]) == pytest.approx((here * areas[:, None]).sum(), rel=1e-9)
        assert float(row["share"]) == pytest.approx(here.sum() / (IDS != 255).sum(), rel=1e-8)


def test_a_map_without_names_and_place_gets_names_but_no_areas(tmp_path: Path) -> None:
    path, names = write_raster(tmp_path / "ids.tif", IDS[None], nodata=255), ["class 0", "class 1", "class 2"]
    rows = table(exported(path, "csv"))
    assert [row["class"] for row in rows] == names
    assert {row["area_m2"] for row in rows} == {""}
    legend = open_map(exported(path, "cog")).legend
    assert legend is not None
    assert [one.name for one in legend.classes] == names
    attributes = json.loads((exported(path, "ome-zarr") / "zarr.json").read_text())["attributes"]
    assert [one["name"] for one in attributes["ome"]["image-label"]["properties"]] == [*names, "no data"]


def test_the_filter_comes_before_the_clip(made: Path) -> None:
    polygons = square(made.parent / "clip.gpkg", 500203, 4999603, 500597, 4999897)
    found = raster(exported(made, "cog", majority=5, clip=polygons))
    inside = np.zeros(IDS.shape, np.bool_)
    inside[10:40, 20:60] = True  # pixels whose centres are in the square
    expected = np.where(inside, whole(Majority(ArrayMap(IDS), 5)), 255)
    assert np.array_equal(found, expected)
    other_order = whole(Majority(ArrayMap(np.where(inside, IDS, 255).astype(np.uint8)), 5))
    assert not np.array_equal(found, np.where(inside, other_order, 255))


@pytest.mark.parametrize("target", ["geoparquet", "gpkg"])
def test_polygons_add_up_to_the_map(made: Path, target: str) -> None:
    pytest.importorskip("pyarrow")
    pyogrio = pytest.importorskip("pyogrio")
    path = exported(made, target, majority=3)
    filtered = whole(Majority(ArrayMap(IDS), 3))
    if target == "geoparquet":
        found = pytest.importorskip("pyarrow.parquet").read_table(path)
        ids, pixels = (np.array(found[name]) for name in ("class_id", "pixels"))
    else:
        _, _, _, (ids, pixels) = pyogrio.raw.read(path, columns=["class_id", "pixels"], read_geometry=False)
    for class_id in (0, 1, 2):
        assert pixels[ids == class_id].sum() == (filtered == class_id).sum()


@pytest.mark.parametrize("target", ["cog", "png", "gpkg", "ome-zarr"])
def test_nothing_is_replaced_unasked(made: Path, target: str) -> None:
    if target in PACKAGES:
        pytest.importorskip(PACKAGES[target])
    path = exported(made, target)
    before = path.stat().st_mtime_ns
    refused(called(made, "--to", target, "-q"), "output-exists", path=path)
    assert path.stat().st_mtime_ns == before
    replaced = called(made, "--to", target, "-q", "--overwrite")
    assert replaced.exit_code == 0, replaced.stderr
    assert path.stat().st_mtime_ns > before


def test_what_is_read_or_of_a_run_or_no_store_is_never_replaced(run: Path) -> None:
    folder, cog = run.parent, run.parent / "scene.classes.tif"
    for output in (cog, folder / "scene.tif"):
        refused(called(run, "--to", "cog", "-o", output, "--overwrite", "-q"), "output-is-input", path=output)
    zones = square(folder / "zones.gpkg", 500203, 4999603, 500597, 4999897)
    with refuses("output-is-input"):
        exported(run, "gpkg", clip=zones, output=zones, overwrite=True)
    (folder / "sad.zarr").mkdir()
    (folder / "sad.zarr" / "keep").write_text("mine")
    with pytest.raises(OutputError):
        exported(run, "ome-zarr", output=folder / "sad.zarr", overwrite=True)
    assert (folder / "sad.zarr" / "keep").read_text() == "mine"
    other = write_map(folder / "other.tif", IDS, LEGEND, utm())
    run.write_text(json.dumps({**json.loads(run.read_text()), "complete": True, "outputs": [cog.name]}))
    with refuses("output-of-a-run", other=cog.name):
        exported(other, "cog", output=cog, overwrite=True)
    (folder / "nest.zarr").mkdir()
    (folder / "nest.zarr" / "zarr.json").write_text("{}")
    inside = other.rename(folder / "nest.zarr" / "other.tif")
    with refuses("output-is-input"):
        exported(inside, "ome-zarr", output=inside.parent, overwrite=True)
    assert inside.exists()


def test_the_default_name_is_never_the_maps(tmp_path: Path) -> None:
    path = write_raster(tmp_path / "ids.png", IDS[None], driver="PNG")
    assert exported(path, "png", overwrite=True) == tmp_path / "ids.export.png"
    assert np.array_equal(raster(path), IDS)


def test_the_report_finds_its_map_and_the_map_its_report(run: Path) -> None:
    cog = run.with_name("scene.classes.tif")
    for found in (find_map(run), find_map(cog), find_map(run.parent)):
        assert (found.path, found.name) == (cog, "scene")
        assert found.plan is not None
        assert found.plan.model.name == "tiny-model"
        assert np.array_equal(whole(found.source), IDS)
    (run.parent / "other.run.json").write_text("{}")
    with refuses("run-ambiguous", reports=2):
        find_map(run.parent)


def test_a_map_beside_the_report_of_another_speaks_for_itself(run: Path) -> None:
    cog = run.with_name("scene.classes.tif")
    write_map(cog, IDS[:20], LEGEND, utm())
    assert find_map(cog).plan is None
    report = run.read_text()
    run.write_text("{}")
    assert find_map(cog).plan is None
    with refuses("report-invalid", path=run):
        find_map(run)
    run.write_text(report)
    cog.unlink()
    with refuses("map-missing", store="scene.classes.zarr", geotiff=cog.name):
        find_map(run)


@pytest.mark.parametrize(
    ("target", "chosen", "code", "option"),
    [
        ("pgn", {}, "option-value", "to"),
        ("png", {"min_area": 3.0}, "option-conflict", "min-area"),
        ("csv", {"simplify": 3.0}, "option-conflict", "simplify"),
        ("gpkg", {"zones": Path("z.gpkg")}, "option-conflict", "zones"),
        ("png", {"grid": "input"}, "option-conflict", "grid"),
        ("csv", {"field": "name"}, "option-conflict", "field"),
        ("png", {"layer": "l"}, "option-conflict", "layer"),
        ("csv", {"layer": "l", "zones": Path("z"), "clip": Path("c")}, "option-conflict", "layer"),
        ("gpkg", {"min_area": -1.0}, "option-value", "min-area"),
        ("gpkg", {"simplify": float("nan")}, "option-value", "simplify"),
        ("png", {"output": Path("map.tif")}, "option-conflict", "output"),
        ("geojson", {"output": Path("map.gpkg")}, "option-conflict", "output"),
    ],
)
def test_options_that_do_not_fit_are_named(target: str, chosen: dict[str, Any], code: str, option: str) -> None:
    with refuses(code, option=option):
        Order(Path("m.tif"), target, **chosen)


def test_what_is_in_the_way_is_named(made: Path) -> None:
    folder = made.parent
    refused(called(made, "--to", "png", "-o", folder / "no" / "a.png", "-q"), "folder-missing", folder=folder / "no")
    (folder / "a.png").mkdir()
    refused(called(made, "--to", "png", "-o", folder / "a.png", "--overwrite", "-q"), "output-unwritable")
    side = folder / "scene.classes.cog.tif.aux.xml"
    side.write_text("mine")
    refused(called(made, "--to", "cog", "-q"), "output-exists", path=side)
    refused(called(made, "--to", "png", "--majority", "4", "-q"), "option-value", option="majority", value=4)
