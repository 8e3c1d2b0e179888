"""Files of polygons: without seams, with the raster's areas, and where they belong, as other programs read them."""

import itertools
import json
import sys
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pyogrio
import pytest
import shapely
from numpy.typing import NDArray
from pyproj import CRS, Geod
from rasterio import Affine
from rasterio.features import rasterize

from fcn_batch.pipeline.core.errors import InputError
from fcn_batch.pipeline.core.geometry import Size, Window
from fcn_batch.pipeline.core.georeference import GeoReference
from fcn_batch.pipeline.core.maps import ClassMap
from fcn_batch.pipeline.raster import polygons, vectorfile
from fcn_batch.pipeline.raster.crs import row_areas_m2
from fcn_batch.pipeline.raster.polygons import strips_of
from fcn_batch.pipeline.raster.vectorfile import VectorKind
from fcn_batch.workflows.console.progress import Quiet
from fcn_batch.workflows.finished.export import write_vectors
from fcn_batch.workflows.finished.maps import open_map
from tests.classmaps import LEGEND, PLACES, blobs, write_store, write_tif
from tests.errors import refuses

pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")

KINDS: dict[VectorKind, str] = {"gpkg": "m.gpkg", "geojson": "m.geojson", "flatgeobuf": "m.fgb", "geoparquet": "m.pq"}
NAMES = {entry.id: entry.name for entry in LEGEND.classes}
Table = dict[str, NDArray[Any]]


class Memory:
    """A class map in memory that notes what is read of it."""

    def __init__(self, ids: NDArray[np.uint8], place: GeoReference = PLACES["north up"], rows: int = 16) -> None:
        self.ids = ids
        self.size = Size(*ids.shape)
        self.georeference = place
        self.block = (rows, rows)
        self.legend = LEGEND
        self.reads: list[Window] = []

    def read(self, window: Window) -> NDArray[np.uint8]:
        self.reads.append(window)
        return self.ids[window.slices()]


def written(source: ClassMap, target: Path, kind: VectorKind, **choice: float) -> Table:
    """Write a file and read it back with a reader that is not ours; geometries under `shape`."""
    write_vectors(source, target, kind, Quiet(), **choice)
    assert [path.name for path in target.parent.iterdir() if path.name.startswith(".")] == []
    return read(target)


def read(path: Path) -> Table:
    if path.suffix == ".pq":
        table = parquet.read_table(path)
        columns = {name: np.array(table.column(name).to_pylist()) for name in table.column_names}
        return {**columns, "shape": shapely.from_wkb(table.column("geometry").to_pylist())}
    meta, _, shapes, data = pyogrio.raw.read(path)
    return {**dict(zip(meta["fields"], data, strict=True)), "shape": shapely.from_wkb(shapes)}


def check_fields(found: Table, ids: NDArray[np.uint8], place: GeoReference) -> None:
    """Names, pixels and areas of the polygons are those of the raster's classes."""
    areas = row_areas_m2(place, Size(*ids.shape))
    for k, name in NAMES.items():
        of_class = found["class_id"] == k
        assert set(found["class"][of_class]) == {name}
        assert found["pixels"][of_class].sum() == (ids == k).sum()
        if areas is not None:
            expected = ((ids == k).sum(axis=1) * areas).sum()
            assert found["area_m2"][of_class].sum() == pytest.approx(expected, rel=1e-11)
    assert set(found["class_id"]) == set(NAMES)
    if areas is None:
        assert all(value is None or np.isnan(value) for value in found["area_m2"])


@pytest.mark.parametrize("driver", get_args(VectorKind))
@pytest.mark.parametrize("where", PLACES)
def test_every_format_of_every_kind_of_place(tmp_path: Path, driver: VectorKind, where: str) -> None:
    ids, place = blobs(50, 70), PLACES[where]
    source = open_map(write_store(tmp_path / "m.classes.zarr", ids, place))
    target = tmp_path / KINDS[driver]
    if driver == "geojson" and place.crs_wkt is None:
        with refuses("map-without-crs"):
            write_vectors(source, target, driver, Quiet())
        assert not target.exists()
        return
    found = written(source, target, driver)
    check_fields(found, ids, place)
    shapes = found["shape"]
    assert shapely.is_valid(shapes).all()
    assert shapely.is_ccw(shapely.get_exterior_ring(shapes)).all()
    holes = [shapely.get_interior_ring(shape, k) for shape in shapes for k in range(len(shape.interiors))]
    assert holes
    assert not shapely.is_ccw(holes).any()
    if driver == "geojson" and where != "degrees":
        return  # its places are looked at below
    transform = Affine(*place.transform)
    pairs = zip(shapes, (int(k) for k in found["class_id"]), strict=True)
    assert np.array_equal(rasterize(pairs, out_shape=ids.shape, fill=255, transform=transform, dtype="uint8"), ids)


@pytest.mark.parametrize(("pixels", "simplify"), [(250, 0.0), (500, 2.0), (3000, 2.0)])
def test_the_height_of_strips_shows_only_where_borders_are_simplified(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pixels: int, simplify: float
) -> None:
    ids = blobs(60, 50, 2)
    once = written(Memory(ids), tmp_path / "a.gpkg", "gpkg", simplify=simplify)
    for name in ("_STRIP", "_SIMPLE_STRIP"):
        monkeypatch.setattr(polygons, name, pixels)
    parts = written(Memory(ids), tmp_path / "b.gpkg", "gpkg", simplify=simplify)
    same = sorted(shapely.normalize(once["shape"]).tolist(), key=str) == sorted(
        shapely.normalize(parts["shape"]).tolist(), key=str
    )
    assert same == (simplify == 0 or pixels == 3000)
    if simplify:
        assert shapely.coverage_is_valid(parts["shape"])
        assert (
            shapely.get_num_coordinates(parts["shape"]).sum()
            < shapely.get_num_coordinates(written(Memory(ids), tmp_path / "c.gpkg", "gpkg")["shape"]).sum()
        )


def test_small_polygons_are_left_out_by_their_area(tmp_path: Path) -> None:
    ids = blobs(60, 50)
    everything = written(Memory(ids), tmp_path / "a.gpkg", "gpkg")
    large = written(Memory(ids), tmp_path / "b.gpkg", "gpkg", min_area=1500)
    assert sorted(large["area_m2"]) == sorted(area for area in everything["area_m2"] if area >= 1500)
    assert 0 < len(large["area_m2"]) < len(everything["area_m2"])
    nowhere = written(Memory(ids, PLACES["nowhere"]), tmp_path / "c.gpkg", "gpkg", min_area=15)
    assert sorted(nowhere["pixels"]) == sorted(count for count in everything["pixels"] if count >= 15)
    none = written(Memory(ids), tmp_path / "d.gpkg", "gpkg", min_area=1e12)
    assert len(none["shape"]) == 0


@pytest.mark.parametrize("driver", get_args(VectorKind))
def test_a_map_without_data_makes_an_empty_file(tmp_path: Path, driver: VectorKind) -> None:
    found = written(Memory(np.full((20, 30), 255, np.uint8)), tmp_path / KINDS[driver], driver)
    assert len(found["shape"]) == 0
    assert driver == "geojson" or {"class_id", "class", "pixels", "area_m2"} <= set(found)  # its fields are its rows'


def test_geojson_is_in_longitude_and_latitude(tmp_path: Path) -> None:
    place = PLACES["north up"]
    source = Memory(np.full((20, 30), 3, np.uint8), place)
    write_vectors(source, tmp_path / "m.geojson", "geojson", Quiet())
    text = json.loads((tmp_path / "m.geojson").read_text())
    assert "crs" not in text
    ((feature,),) = (text["features"],)
    assert feature["properties"] == {
        "class_id": 3,
        "class": "森林, größer",
        "pixels": 600,
        "area_m2": pytest.approx(row_areas_m2(place, source.size).sum() * 30),  # type: ignore[union-attr]
    }
    (ring,) = feature["geometry"]["coordinates"]
    assert sorted(ring)[0] == pytest.approx([15.0, 45.1517], abs=1e-3)  # 500 km east is the middle of the zone
    area, _ = Geod(ellps="WGS84").polygon_area_perimeter(*np.transpose(ring))
    assert area == pytest.approx(feature["properties"]["area_m2"], rel=1e-4)  # above 0: counterclockwise


def test_geojson_of_tiny_pixels_keeps_them_apart(tmp_path: Path) -> None:
    place = GeoReference(PLACES["north up"].crs_wkt, (0.01, 0.0, 500000.0, 0.0, -0.01, 5000000.0))
    ids = blobs(30, 40)
    found = written(Memory(ids, place), tmp_path / "m.geojson", "geojson")
    assert shapely.is_valid(found["shape"]).all()
    widths = np.diff(shapely.bounds(found["shape"])[:, [0, 2]], axis=1) * 111_320 * np.cos(np.radians(45.15))
    assert 0.009 < widths.min() < 0.031  # at seven decimals 0 or multiples of 0.0079


def test_geoparquet_says_where_it_lies(tmp_path: Path) -> None:
    for name, place in PLACES.items():
        path = tmp_path / f"{name}.pq"
        found = written(Memory(blobs(30, 40), place), path, "geoparquet")
        geo = json.loads(parquet.read_schema(path).metadata[b"geo"])
        assert json.loads(parquet.read_metadata(path).metadata[b"geo"]) == geo
        assert (geo["version"], geo["primary_column"]) == ("1.1.0", "geometry")
        column = geo["columns"]["geometry"]
        assert (column["encoding"], column["geometry_types"]) == ("WKB", ["Polygon"])
        assert column["orientation"] == "counterclockwise"
        assert column["bbox"] == pytest.approx(shapely.total_bounds(found["shape"]).tolist())
        if place.crs_wkt is None:
            assert column["crs"] is None
        else:
            assert CRS.from_json_dict(column["crs"]).equals(CRS.from_wkt(place.crs_wkt))


def test_a_map_without_legend_has_numbers_for_names(tmp_path: Path) -> None:
    ids = blobs(30, 40)
    path = write_tif(tmp_path / "foreign.tif", ids, PLACES["north up"])
    found = written(open_map(path), tmp_path / "m.fgb", "flatgeobuf")
    assert set(zip(found["class_id"].tolist(), found["class"], strict=True)) == {(k, f"class {k}") for k in NAMES}


def test_large_regions_come_in_several_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = np.random.default_rng(0).choice(np.array([0, 3, 5], np.uint8), (70, 80))
    whole = written(Memory(ids), tmp_path / "a.pq", "geoparquet")
    assert parquet.ParquetFile(tmp_path / "a.pq").num_row_groups == 1
    monkeypatch.setattr(vectorfile, "_ROWS", 500)
    monkeypatch.setattr(polygons, "_STRIP", 800)
    parts = written(Memory(ids), tmp_path / "b.pq", "geoparquet")
    groups = parquet.ParquetFile(tmp_path / "b.pq").metadata
    assert 2 < groups.num_row_groups < 10
    assert max(groups.row_group(k).num_rows for k in range(groups.num_row_groups)) < 1000
    assert sorted(whole["pixels"]) == sorted(parts["pixels"])


@pytest.mark.parametrize("driver", get_args(VectorKind))
def test_what_stops_the_reading_passes_through(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, driver: VectorKind
) -> None:
    """And nothing stays, though some polygons were written before."""

    class Damaged(Memory):
        def read(self, window: Window) -> NDArray[np.uint8]:
            if window.row == 48:
                assert list(tmp_path.glob(".m.*"))  # FlatGeobuf: and a file without a name in it
                raise InputError("input-damaged", "row {row} is damaged", row=48)
            return super().read(window)

    monkeypatch.setattr(vectorfile, "_ROWS", 5)
    monkeypatch.setattr(polygons, "_STRIP", 8 * 30)
    with refuses("input-damaged", row=48):
        write_vectors(Damaged(blobs(64, 30)), tmp_path / "m", driver, Quiet())
    assert list(tmp_path.iterdir()) == []


def test_targets_that_cannot_be_written(tmp_path: Path) -> None:
    driver: VectorKind = "gpkg"
    with refuses("output-unwritable", path=tmp_path / "none" / "m"):
        write_vectors(Memory(blobs(9, 9)), tmp_path / "none" / "m", driver, Quiet())


@pytest.mark.parametrize("package", ["pyarrow", "pyogrio", "shapely"])
def test_what_is_not_installed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with refuses("extra-missing", package=package, extra="vectors"):
        write_vectors(Memory(blobs(9, 9)), tmp_path / "m.gpkg", "gpkg", Quiet())


def test_strips_are_low_where_the_map_is_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    ids = np.zeros((90, 64), np.uint8)
    ids[30:60] = np.arange(64) % 2
    monkeypatch.setattr(polygons, "_STRIP", 64 * 20)
    monkeypatch.setattr(polygons, "_BORDERS", 300)
    source = Memory(ids, rows=16)
    found = list(strips_of(source))
    assert [(strip.row, len(strip.ids)) for strip in found] == [
        (0, 20), (20, 14), (34, 4), (38, 4), (42, 4), (46, 4), (50, 4), (54, 4), (58, 20), (78, 12)
    ]  # fmt: skip
    assert np.array_equal(np.concatenate([strip.ids for strip in found]), ids)
    for one, other in itertools.pairwise(found):
        assert np.array_equal(other.above, one.ids[-1])  # type: ignore[arg-type]
        assert np.array_equal(one.below, other.ids[0])  # type: ignore[arg-type]
    assert found[0].above is None
    assert found[-1].below is None
    assert [window.row for window in source.reads] == sorted({window.row for window in source.reads})
    assert sum(window.height for window in source.reads) == 90  # each row once
    assert all(window.row % 16 == 0 and (window.height % 16 == 0 or window.stop_row == 90) for window in source.reads)


def test_a_map_with_huge_blocks_is_read_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(polygons, "_STRIP", 64 * 4)
    monkeypatch.setattr(polygons, "_READ", 64 * 10)
    source = Memory(blobs(90, 64), rows=90)
    found = list(strips_of(source))
    assert np.array_equal(np.concatenate([strip.ids for strip in found]), source.ids)
    assert max(window.height for window in source.reads) == 10
