"""The store opens, at the right place and with the right names, in the libraries people read it with."""

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import rioxarray  # noqa: F401 - gives xarray its `rio`
import xarray
from numpy.typing import NDArray
from pyproj import CRS

from fcn_batch.pipeline.core.classes import NODATA, ClassInfo, Legend
from fcn_batch.pipeline.core.geometry import Size, Window
from fcn_batch.pipeline.core.georeference import IDENTITY, GeoReference
from fcn_batch.pipeline.raster.crs import authority_code, cf_grid_mapping, coordinate_attributes
from fcn_batch.pipeline.store import classstore as store_module
from fcn_batch.pipeline.store.classstore import ClassStore, ConfidenceStore, Layout
from fcn_batch.pipeline.store.finished import FinishedConfidence, FinishedMap
from tests.errors import refuses

UTM = CRS.from_epsg(32633).to_wkt()
NORTH_UP = GeoReference(UTM, (10.0, 0.0, 500000.0, 0.0, -10.0, 5000000.0))
SOUTH_UP = GeoReference(UTM, (10.0, 0.0, 500000.0, 0.0, 10.0, 5000000.0))
THIRDS = GeoReference(CRS.from_epsg(4326).to_wkt(), (1 / 3, 0.0, -180.0, 0.0, -1 / 3, 90.0))
ROTATED = GeoReference(UTM, (3.0, 4.0, 5.0, 4.0, -3.0, 7.0))
NOWHERE = GeoReference(None, IDENTITY)
LEGEND = Legend(
    classes=(ClassInfo(id=3, name="bare soil", colour="#aa8866"), ClassInfo(id=0, name="water", colour="#1f78b4"))
)
SIZE = Size(100, 130)
GDAL = tuple(int(part) for part in rasterio.__gdal_version__.split(".")[:2])

# rioxarray 0.19 multiplies transforms the way that affine 3 will drop
pytestmark = pytest.mark.filterwarnings("ignore:Use `@` matmul instead of `\\*`:PendingDeprecationWarning")


def layout(reference: GeoReference, size: Size = SIZE, inner: int | None = None) -> Layout:
    y, x = coordinate_attributes(reference)
    return Layout(
        size=size,
        chunk=64,
        legend=LEGEND,
        georeference=reference,
        grid_mapping=cf_grid_mapping(reference),
        authority_code=authority_code(reference),
        y_attributes=y,
        x_attributes=x,
        provenance={"fcn:model": "tiny"},
        inner=inner,
    )


def ids(size: Size = SIZE) -> NDArray[np.uint8]:
    return np.random.default_rng(0).choice(np.array([0, 3, NODATA], np.uint8), (size.height, size.width))


def made(path: Path, reference: GeoReference = NORTH_UP, size: Size = SIZE) -> ClassStore:
    """A finished store of `ids`."""
    store = ClassStore.create(path, layout(reference, size))
    values = ids(size)
    for row, col in itertools.product(range(0, size.height, 64), range(0, size.width, 64)):
        window = Window(row, col, 64, 64).clipped(size)
        store.write(window, values[window.slices()])
    store.consolidate()
    return store


def transform_of(array: Any) -> tuple[float, ...]:
    return tuple(array.rio.transform())[:6]


def test_xarray_sees_ids_names_and_provenance(tmp_path: Path) -> None:
    made(tmp_path / "a.zarr")
    with xarray.open_zarr(tmp_path / "a.zarr") as dataset:
        classes = dataset.classes
        assert classes.dtype == np.uint8  # with a CF _FillValue it would be float
        assert classes.dims == ("y", "x")
        assert (classes.values == ids()).all()
        assert classes.attrs["flag_values"] == [3, 0]
        assert classes.attrs["flag_meanings"] == "bare_soil water"
        assert classes.attrs["flag_colors"] == "#aa8866 #1f78b4"
        assert classes.attrs["class_names"] == ["bare soil", "water"]
        assert classes.attrs["proj:code"] == "EPSG:32633"
        assert dataset.attrs["fcn:model"] == "tiny"
        assert dataset.attrs["Conventions"] == "CF-1.11"
        assert list(dataset.data_vars) == ["classes"]
        assert set(dataset.coords) == {"spatial_ref", "x", "y"}


@pytest.mark.parametrize("reference", [NORTH_UP, SOUTH_UP, ROTATED, THIRDS], ids=["north", "south", "rotated", "3rds"])
def test_rioxarray_sees_the_place(tmp_path: Path, reference: GeoReference) -> None:
    made(tmp_path / "a.zarr", reference)
    with xarray.open_zarr(tmp_path / "a.zarr", decode_coords="all") as dataset:
        assert CRS.from_wkt(dataset.classes.rio.crs.to_wkt()) == CRS.from_wkt(str(reference.crs_wkt))
        assert transform_of(dataset.classes) == reference.transform
        assert dataset.classes.rio.nodata == NODATA
        assert (dataset.classes.values == ids()).all()


@pytest.mark.parametrize("reference", [NORTH_UP, SOUTH_UP, THIRDS, NOWHERE], ids=["north", "south", "3rds", "nowhere"])
def test_coordinates_are_pixel_centres_to_the_last_bit(tmp_path: Path, reference: GeoReference) -> None:
    a, _, c, _, e, f = reference.transform
    made(tmp_path / "a.zarr", reference)
    with xarray.open_zarr(tmp_path / "a.zarr") as dataset:
        assert dataset.x.values.tolist() == [c + (col + 0.5) * a for col in range(SIZE.width)]
        assert dataset.y.values.tolist() == [f + (row + 0.5) * e for row in range(SIZE.height)]
        assert dataset.y.attrs == coordinate_attributes(reference)[0]
        assert dataset.x.attrs == coordinate_attributes(reference)[1]


def test_a_rotated_map_has_its_transform_and_no_coordinates(tmp_path: Path) -> None:
    made(tmp_path / "a.zarr", ROTATED)
    with xarray.open_zarr(tmp_path / "a.zarr") as dataset:
        assert "x" not in dataset.coords
        assert dataset.classes.attrs["spatial:transform"] == list(ROTATED.transform)
        assert dataset.classes.attrs["spatial:shape"] == [100, 130]
        names = [convention["name"] for convention in dataset.classes.attrs["zarr_conventions"]]
        assert names == ["proj", "spatial"]


def test_without_a_reference_system_none_is_claimed(tmp_path: Path) -> None:
    made(tmp_path / "a.zarr", NOWHERE)
    with xarray.open_zarr(tmp_path / "a.zarr", decode_coords="all") as dataset:
        assert dataset.classes.rio.crs is None
        assert [name for name in dataset.classes.attrs if name.startswith(("proj:", "spatial:", "zarr_"))] == []
        assert set(dataset.spatial_ref.attrs) == {"GeoTransform"}


def test_a_single_pixel(tmp_path: Path) -> None:
    store = made(tmp_path / "a.zarr", size=Size(1, 1))
    assert (store.size, store.chunk) == (Size(1, 1), 64)
    with xarray.open_zarr(tmp_path / "a.zarr", decode_coords="all") as dataset:
        assert dataset.classes.shape == (1, 1)
        assert transform_of(dataset.classes) == NORTH_UP.transform


@pytest.mark.skipif(GDAL < (3, 12), reason="GDAL before 3.12 does not read CF metadata of Zarr v3")
@pytest.mark.parametrize(
    "reference",
    [
        pytest.param(NORTH_UP, id="north"),
        pytest.param(SOUTH_UP, id="south"),
        pytest.param(
            ROTATED,
            id="rotated",
            marks=pytest.mark.skipif(
                GDAL < (3, 13), reason="GDAL before 3.13 does not read a rotated Zarr's transform"
            ),
        ),
    ],
)
def test_gdal_sees_the_place(tmp_path: Path, reference: GeoReference) -> None:
    made(tmp_path / "a.zarr", reference)
    with rasterio.open(tmp_path / "a.zarr") as dataset:
        assert dataset.crs == rasterio.CRS.from_wkt(str(reference.crs_wkt))
        assert tuple(dataset.transform)[:6] == reference.transform
        assert dataset.nodata == NODATA
        assert dataset.dtypes == ("uint8",)
        assert (dataset.read(1) == ids()).all()


def test_metadata_are_gathered_in_the_root(tmp_path: Path) -> None:
    made(tmp_path / "a.zarr")
    root = json.loads((tmp_path / "a.zarr" / "zarr.json").read_text())
    gathered = root["consolidated_metadata"]["metadata"]
    assert set(gathered) == {"classes", "spatial_ref", "x", "y"}
    for name, metadata in gathered.items():
        alone = json.loads((tmp_path / "a.zarr" / name / "zarr.json").read_text())
        assert metadata["shape"] == alone["shape"]
        assert metadata["attributes"] == alone["attributes"]
    assert gathered["spatial_ref"]["shape"] == []


def test_chunks_carry_checksums_and_nodata_takes_no_room(tmp_path: Path) -> None:
    store = ClassStore.create(tmp_path / "a.zarr", layout(NORTH_UP))
    codecs = json.loads((tmp_path / "a.zarr" / "classes" / "zarr.json").read_text())["codecs"]
    assert [c["name"] for c in codecs] == ["bytes", "zstd"]
    assert codecs[1]["configuration"] == {"level": 3, "checksum": True}
    store.write(Window(0, 0, 64, 64), np.full((64, 64), NODATA, np.uint8))
    assert not (tmp_path / "a.zarr" / "classes" / "c").exists()
    assert (store.read(Window(0, 0, 100, 130)) == NODATA).all()


@pytest.mark.parametrize("window", [Window(0, 0, 100, 130), Window(64, 128, 36, 2), Window(0, 64, 64, 64)])
def test_whole_chunks_and_ragged_ends_are_written(tmp_path: Path, window: Window) -> None:
    store = ClassStore.create(tmp_path / "a.zarr", layout(NORTH_UP))
    store.write(window, ids()[window.slices()])
    expected = np.full((100, 130), NODATA, np.uint8)
    expected[window.slices()] = ids()[window.slices()]
    assert (store.read(Window(0, 0, 100, 130)) == expected).all()


PARTS = {
    "ends inside a chunk": Window(0, 0, 32, 64),
    "starts inside one": Window(32, 0, 64, 64),
    "ends inside the last, ragged one": Window(0, 64, 64, 65),
    "starts inside one, by columns": Window(0, 1, 64, 129),
    "a chunk of a shard": Window(0, 0, 16, 16),
    "more than a shard": Window(0, 0, 64, 80),
}


@pytest.mark.parametrize("inner", [None, 16])
@pytest.mark.parametrize("what", PARTS)
def test_parts_of_chunks_and_shards_are_refused_and_nothing_is_written(
    tmp_path: Path, what: str, inner: int | None
) -> None:
    store, window = ClassStore.create(tmp_path / "a.zarr", layout(NORTH_UP, inner=inner)), PARTS[what]
    sure_of_it = ConfidenceStore.create(tmp_path / "b.zarr", layout(NORTH_UP, inner=inner))
    with pytest.raises(ValueError, match="64"):
        store.write(window, np.zeros((window.height, window.width), np.uint8))
    with pytest.raises(ValueError, match="64"):
        sure_of_it.write(window, np.zeros((2, window.height, window.width), np.uint8))
    assert not [*tmp_path.glob("*/classes/c"), *tmp_path.glob("*/confidence/c")]


@pytest.mark.parametrize("inner", [None, 16])
def test_a_write_reaches_the_disk_with_all_folders_it_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, inner: int | None
) -> None:
    synced: list[Path] = []
    monkeypatch.setattr(store_module, "sync", synced.extend)
    store = ClassStore.create(tmp_path / "a.zarr", layout(NORTH_UP, inner=inner))
    synced.clear()
    store.write(Window(64, 64, 36, 66), ids()[64:, 64:])
    # a new name is durable only when the folder that holds it is
    array = tmp_path / "a.zarr" / "classes"
    assert set(synced) == {array, array / "c", *(array / "c").rglob("*")}
    synced.clear()
    store.consolidate()
    assert {p for p in synced if p.is_file()} >= set((tmp_path / "a.zarr").rglob("zarr.json"))
    assert tmp_path / "a.zarr" / "x" / "c" / "0" in synced


def test_no_store_and_half_a_store_are_refused(tmp_path: Path) -> None:
    with refuses("output-damaged", path=tmp_path / "nothing.zarr"):
        ClassStore(tmp_path / "nothing.zarr")
    made(tmp_path / "a.zarr")
    (tmp_path / "a.zarr" / "classes" / "zarr.json").write_text("{")
    with refuses("output-damaged", path=tmp_path / "a.zarr"):
        ClassStore(tmp_path / "a.zarr")


# --- shards --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("inner", [16, 32, 64])
def test_a_shard_is_one_file_of_chunks_with_checksums(tmp_path: Path, inner: int) -> None:
    store = ClassStore.create(tmp_path / "a.zarr", layout(NORTH_UP, inner=inner))
    assert (store.chunk, store.inner) == (64, inner)
    store.write(Window(0, 0, 100, 130), ids())
    store.consolidate()
    files = sorted(p for p in (tmp_path / "a.zarr/classes/c").rglob("*") if p.is_file())
    assert [str(p.relative_to(tmp_path / "a.zarr/classes/c")) for p in files] == [
        "0/0",
        "0/1",
        "0/2",
        "1/0",
        "1/1",
        "1/2",
    ]
    (codec,) = json.loads((tmp_path / "a.zarr/classes/zarr.json").read_text())["codecs"]
    assert codec["configuration"]["chunk_shape"] == [inner, inner]
    assert codec["configuration"]["codecs"][1]["configuration"] == {"level": 3, "checksum": True}
    with xarray.open_zarr(tmp_path / "a.zarr", decode_coords="all") as dataset:
        assert dataset.classes.dtype == np.uint8
        assert (dataset.classes.values == ids()).all()
        assert transform_of(dataset.classes) == NORTH_UP.transform
    finished = FinishedMap(tmp_path / "a.zarr")
    assert finished.block == (inner, inner)
    assert (finished.read(Window(3, 50, 90, 70)) == ids()[3:93, 50:120]).all()


@pytest.mark.parametrize(("inner", "where"), [(None, 0.2), (None, 0.99), (16, 0.02), (16, 0.5), (16, 0.999)])
def test_a_flipped_bit_and_a_cut_chunk_are_found(tmp_path: Path, inner: int | None, where: float) -> None:
    store = ClassStore.create(tmp_path / "a.zarr", layout(NORTH_UP, inner=inner))
    store.write(Window(0, 0, 100, 130), ids())
    store.consolidate()
    chunk = tmp_path / "a.zarr/classes/c/0/1"
    data = bytearray(chunk.read_bytes())
    data[int(len(data) * where)] ^= 4
    chunk.write_bytes(data)
    (tmp_path / "a.zarr/classes/c/1/1").write_bytes(data[: len(data) // 2])
    for window in (Window(0, 64, 64, 64), Window(64, 64, 36, 64)):
        with refuses("output-damaged", path=store.path, window=window):
            store.read(window)
        with refuses("map-damaged", path=store.path, window=window):
            FinishedMap(store.path).read(window)
    assert (store.read(Window(0, 0, 100, 64)) == ids()[:, :64]).all()


def test_a_shard_is_whole_chunks() -> None:
    with pytest.raises(ValueError, match="48"):
        layout(NORTH_UP, inner=48)


# --- confidences ---------------------------------------------------------------------------------------------


def planes() -> NDArray[np.uint8]:
    values = np.random.default_rng(1).integers(0, 251, (2, SIZE.height, SIZE.width)).astype(np.uint8)
    return np.where(ids() == NODATA, np.uint8(NODATA), values)


def sure(path: Path, reference: GeoReference = NORTH_UP, inner: int | None = None) -> ConfidenceStore:
    store = ConfidenceStore.create(path, layout(reference, inner=inner))
    for row, col in itertools.product((0, 64), (0, 64, 128)):
        window = Window(row, col, 64, 64).clipped(SIZE)
        store.write(window, planes()[(slice(None), *window.slices())])
    store.consolidate()
    return store


@pytest.mark.parametrize("inner", [None, 16])
@pytest.mark.parametrize("reference", [NORTH_UP, SOUTH_UP, THIRDS, ROTATED], ids=["north", "south", "3rds", "rotated"])
def test_confidences_are_floats_and_nan_in_the_place_of_the_map(
    tmp_path: Path, reference: GeoReference, inner: int | None
) -> None:
    store = sure(tmp_path / "a.zarr", reference, inner)
    assert (store.read(Window(0, 0, 100, 130)) == planes()).all()
    assert store.read(Window(60, 60, 20, 30)).shape == (2, 20, 30)
    made(tmp_path / "map.zarr", reference)
    with (
        xarray.open_zarr(tmp_path / "a.zarr", decode_coords="all") as dataset,
        xarray.open_zarr(tmp_path / "map.zarr", decode_coords="all") as classes,
    ):
        for plane, name in enumerate(("confidence", "margin")):
            expected = np.where(planes()[plane] == NODATA, np.nan, planes()[plane] / 250)
            assert np.allclose(dataset[name].values, expected, rtol=1e-6, equal_nan=True)
            assert dataset[name].rio.crs == classes.classes.rio.crs
            assert transform_of(dataset[name]) == reference.transform
            assert dataset[name].attrs["units"] == "1"
            places = [
                {key: value for key, value in one.attrs.items() if key.startswith(("proj:", "spatial:", "zarr_"))}
                for one in (dataset[name], classes.classes)
            ]
            assert places[0] == places[1]
        for axis in set(classes.coords) - {"spatial_ref"}:
            assert (dataset[axis].values == classes[axis].values).all()
            assert dataset[axis].attrs == classes[axis].attrs
        assert dataset.spatial_ref.attrs == classes.spatial_ref.attrs


def test_confidences_reach_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[Path] = []
    monkeypatch.setattr(store_module, "sync", synced.extend)
    store = ConfidenceStore.create(tmp_path / "a.zarr", layout(NORTH_UP))
    with pytest.raises(ValueError, match="zip"):
        store.write(Window(0, 0, 64, 64), np.zeros((1, 64, 64), np.uint8))
    synced.clear()
    store.write(Window(0, 0, 64, 64), planes()[:, :64, :64])
    arrays = [tmp_path / "a.zarr" / name for name in ("confidence", "margin")]
    assert set(synced) == {
        path for array in arrays for path in (array, *(array / part for part in ("c", "c/0", "c/0/0")))
    }


def test_what_killed_writers_left_is_swept_out_of_all_arrays(tmp_path: Path) -> None:
    store = sure(tmp_path / "a.zarr")
    left = [tmp_path / "a.zarr" / name / "c/0/0.partial-1" for name in ("confidence", "margin")]
    for path in left:
        path.write_text("half")
    store.consolidate()
    assert not any(path.exists() for path in left)


def test_a_map_is_no_store_of_confidences(tmp_path: Path) -> None:
    made(tmp_path / "a.zarr")
    with refuses("output-damaged"):
        ConfidenceStore(tmp_path / "a.zarr")
    with refuses("map-not-ours"):
        FinishedConfidence(tmp_path / "a.zarr")
    sure(tmp_path / "b.zarr")
    found = FinishedConfidence(tmp_path / "b.zarr")
    assert (found.read(1, Window(60, 60, 20, 30)) == planes()[1, 60:80, 60:90]).all()


# --- reading a finished map ------------------------------------------------------------------------------------


@pytest.mark.parametrize("reference", [NORTH_UP, SOUTH_UP, THIRDS, ROTATED, NOWHERE])
def test_a_finished_map_comes_back_with_all_it_says(tmp_path: Path, reference: GeoReference) -> None:
    made(tmp_path / "a.zarr", reference)
    read = FinishedMap(tmp_path / "a.zarr")
    assert (read.size, read.block, read.legend, read.georeference) == (SIZE, (64, 64), LEGEND, reference)
    assert np.array_equal(read.read(Window(0, 0, SIZE.height, SIZE.width)), ids())


def test_a_finished_map_is_not_written_to(tmp_path: Path) -> None:
    made(tmp_path / "a.zarr")
    files = {path: path.stat() for path in (tmp_path / "a.zarr").rglob("*")}
    FinishedMap(tmp_path / "a.zarr").read(Window(0, 0, 10, 10))
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "a.zarr").rglob("*")} == {
        path: status.st_mtime_ns for path, status in files.items()
    }


def test_stores_that_are_no_class_map_are_named(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none"):
        with refuses("map-not-ours", path=path):
            FinishedMap(path)
    made(tmp_path / "a.zarr")
    for attribute, value in (("flag_colors", "#ffffff"), ("flag_values", [0, 300]), ("class_names", ["a", "a"])):
        description = tmp_path / "a.zarr" / "classes" / "zarr.json"
        before = description.read_text()
        metadata = json.loads(before)
        metadata["attributes"][attribute] = value
        description.write_text(json.dumps(metadata))
        with refuses("map-not-ours", path=tmp_path / "a.zarr"):
            FinishedMap(tmp_path / "a.zarr")
        description.write_text(before)
