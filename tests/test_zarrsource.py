"""Stores of others as inputs: what they hold is what the GeoTIFF of the same image holds."""

import json
import os
import pickle
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import reduce
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numcodecs
import numpy as np
import pytest
import rasterio
import xarray as xr
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pyproj import CRS
from rasterio.transform import Affine
from zarr.codecs import BytesCodec, Crc32cCodec, GzipCodec, ShardingCodec, TransposeCodec, ZstdCodec

from fcn_batch.pipeline.core.errors import InputError, OptionError
from fcn_batch.pipeline.core.geometry import Size, Window
from fcn_batch.pipeline.core.source import Pixels, RasterSource, SourceFile
from fcn_batch.pipeline.core.tolerance import OnError, TolerantSource
from fcn_batch.pipeline.raster.crs import wkt_of
from fcn_batch.pipeline.raster.rasterfile import RasterioSource
from fcn_batch.pipeline.store.opening import Guarded
from fcn_batch.pipeline.store.zarrsource import ZarrSource
from fcn_batch.workflows.inputs.identity import identify
from fcn_batch.workflows.inputs.many import inputs_of
from fcn_batch.workflows.inputs.sources import find_source, source_of
from tests.errors import refuses
from tests.models import save_tiny_model
from tests.rasters import noise, write_raster
from tests.runs import class_map, fcn_batch, scene, segmented, small_blocks
from tests.zarrs import (
    WRITERS,
    Format,
    bare_array,
    by_gdal,
    by_xarray,
    by_xarray_in_variables,
    ome_by_hand,
    opened,
    written,
)

NORTH_UP = Affine(10, 0, 500000, 0, -10, 5000000)
HEIGHT, WIDTH = 90, 70


def source(path: Path, level: int = 0) -> ZarrSource:
    return ZarrSource(path, level, wkt_of)


def whole(of: RasterSource, *bands: int) -> Pixels:
    size = of.info.size
    return of.read(Window(0, 0, size.height, size.width), bands or tuple(range(1, of.info.bands + 1)))


def geotiff(path: Path, dtype: str = "uint8", bands: int = 3, nodata: float | None = 7, **profile: Any) -> Path:
    """With pixels without data in one band only, and in all."""
    values = noise(bands, HEIGHT, WIDTH, dtype)
    if nodata is not None:
        values[0, 10:30] = nodata
        values[:, 20:40, 5:60] = nodata
    return write_raster(path, values, **{"crs": "EPSG:32633", "transform": NORTH_UP, "nodata": nodata, **profile})


def equal(found: Pixels, wanted: Pixels) -> bool:
    same = found.values.dtype == wanted.values.dtype and (found.valid == wanted.valid).all()
    return bool(same and np.array_equal(found.values, wanted.values, equal_nan=found.values.dtype.kind == "f"))


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change a file of JSON."""
    told = json.loads(path.read_text())
    change(told)
    path.write_text(json.dumps(told))


KINDS = [("uint8", 7), ("int16", -9999), ("float32", -1.5), ("float32", np.nan), ("uint16", None)]


@pytest.mark.parametrize(
    ("writer", "version", "dtype", "nodata"),
    [
        *((writer, version, "uint8", 7) for writer in WRITERS for version in (2, 3)),
        *(("xarray", version, *kind) for version in (2, 3) for kind in KINDS[1:]),
        *((writer, 3, "float32", np.nan) for writer in ("interleaved", "variables", "degrees", "conventions")),
    ],
)
def test_a_store_of_a_geotiff_is_the_geotiff(
    tmp_path: Path, writer: str, version: Format, dtype: str, nodata: float | None
) -> None:
    tif = geotiff(tmp_path / "a.tif", dtype, nodata=nodata)
    path = WRITERS[writer](tif, tmp_path / "a.zarr", version)
    found, wanted = source(path), RasterioSource(tif)
    assert (found.info.size, found.info.bands, found.info.dtype) == (Size(HEIGHT, WIDTH), 3, dtype)
    assert found.info.georeference.transform == wanted.info.georeference.transform
    assert str(found.info.georeference.crs_wkt).startswith("PROJCRS["), "WKT2"
    assert CRS(found.info.georeference.crs_wkt) == CRS(32633)
    for bands in ((1, 2, 3), (3, 1), (1,)):
        pixels = whole(found, *bands)
        assert pixels.valid.all() == (nodata is None)
        assert equal(pixels, whole(wanted, *bands))
        assert pixels.values.flags.c_contiguous
    names = {"interleaved": ("B01", "B02", "B03"), "variables": ("B01", "B02", "B03")}
    assert found.info.descriptions == names.get(writer, (None,) * 3)
    assert found.info.sources == (SourceFile(path=str(path), by="zarr"),)
    assert found.info.colour_roles == ("undefined",) * 3


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("bands", [1, 3])
def test_what_gdal_writes(tmp_path: Path, version: Format, bands: int) -> None:
    tif = geotiff(tmp_path / "a.tif", bands=bands, nodata=None, **({"photometric": "RGB"} if bands == 3 else {}))
    path = by_gdal(tif, tmp_path / "a.zarr", version)
    found, wanted = source(path), RasterioSource(tif)
    assert equal(whole(found), whole(wanted))
    assert found.info.georeference.transform == wanted.info.georeference.transform
    assert CRS(found.info.georeference.crs_wkt) == CRS(32633)
    if bands == 3:
        assert found.info.colour_roles == ("red", "green", "blue")
        (path / "a" / ("4.0.0" if version == 2 else "c/4/0/0")).unlink()
        assert (whole(found).values[:, 4] == 0).all(), "its fill value is null"


@pytest.mark.parametrize("transform", [Affine(10, 0, 5, 0, 10, 7), Affine(3, 4, 5, 4, -3, 7)])
@pytest.mark.parametrize("writer", ["xarray", "conventions"])
def test_south_up_and_rotated_transforms_are_kept(tmp_path: Path, writer: str, transform: Affine) -> None:
    tif = geotiff(tmp_path / "a.tif", transform=transform)
    path = WRITERS[writer](tif, tmp_path / "a.zarr", 3)
    assert source(path).info.georeference.transform == tuple(transform)[:6]


def test_a_window_that_xarray_cut_out_lies_where_its_coordinates_say(tmp_path: Path) -> None:
    image = opened(geotiff(tmp_path / "a.tif")).isel(y=slice(20, 80), x=slice(30, 60))
    assert image.spatial_ref.attrs["GeoTransform"].startswith("500000.0 ")
    written(image.to_dataset(name="image"), tmp_path / "a.zarr", 3)
    assert source(tmp_path / "a.zarr").info.georeference.transform == (10, 0, 500300, 0, -10, 4999800)


def test_coordinates_of_single_precision_and_uneven_ones(tmp_path: Path) -> None:
    lon = (179.0 + 2e-5 * np.arange(WIDTH)).astype(np.float32)  # in steps of 1.5e-5
    lat = 60 - 1e-4 * np.arange(HEIGHT)
    values = (("latitude", "longitude"), noise(1, HEIGHT, WIDTH)[0])
    written(xr.Dataset({"a": values}, {"longitude": lon, "latitude": lat}), tmp_path / "a.zarr", 3)
    info = source(tmp_path / "a.zarr").info
    assert info.georeference.crs_wkt is None
    np.testing.assert_allclose(info.georeference.transform[::4], (2e-5, -1e-4), rtol=0.01)
    lat[HEIGHT // 2 :] -= 5e-5
    written(xr.Dataset({"a": values}, {"longitude": lon, "latitude": lat}), tmp_path / "b.zarr", 3)
    with refuses("coordinates-uneven", path=tmp_path / "b.zarr" / "latitude"):
        _ = source(tmp_path / "b.zarr").info


@pytest.mark.parametrize(
    "attributes",
    [
        {"proj:code": "EPSG:32633"},
        {"proj:epsg": 32633},
        {"proj:projjson": CRS(32633).to_json_dict()},
        {"_CRS": {"wkt": CRS(32633).to_wkt()}},
        {"_CRS": {"projjson": CRS(32633).to_json_dict()}},
        {"_CRS": {"url": "http://www.opengis.net/def/crs/EPSG/0/32633"}},
    ],
    ids=str,
)
@pytest.mark.parametrize("by_group", [False, True])
def test_systems_in_all_their_forms(tmp_path: Path, attributes: dict[str, Any], by_group: bool) -> None:
    zarr.open_group(tmp_path / "a.zarr", mode="w", attributes=attributes if by_group else {})
    bare_array(noise(1, 40, 50)[0], tmp_path / "a.zarr" / "b", 3, None if by_group else attributes)
    assert CRS(source(tmp_path / "a.zarr").info.georeference.crs_wkt) == CRS(32633)


def test_scales_and_names_of_rioxarray(tmp_path: Path) -> None:
    image = opened(geotiff(tmp_path / "a.tif", "uint16"), long_name=["red edge", "nir", "swir"])
    image.attrs |= {"scale_factor": 1e-4, "add_offset": -0.1}
    written(image.to_dataset(name="image"), tmp_path / "a.zarr", 3)
    info = source(tmp_path / "a.zarr").info
    assert info.scales == ((1e-4, -0.1),) * 3
    assert info.descriptions == ("red edge", "nir", "swir")


@pytest.mark.parametrize("version", [2, 3])
def test_a_fill_value_is_nodata_only_where_xarray_says_so(tmp_path: Path, version: Format) -> None:
    values = noise(1, 40, 50)[0]
    bare = source(bare_array(values, tmp_path / "a.zarr", version, fill_value=9))
    assert (values == 9).any()
    assert whole(bare).valid.all()
    names = {"_ARRAY_DIMENSIONS": ["y", "x"]}
    named = source(bare_array(values, tmp_path / "b.zarr", version, names, fill_value=9))
    assert (whole(named).valid == ((values != 9) if version == 2 else True)).all()
    wrong = source(bare_array(values, tmp_path / "c.zarr", version, {"nodata": 900}))
    assert whole(wrong).valid.all(), "no byte is 900"


def test_missing_chunks_are_the_fill_value(tmp_path: Path) -> None:
    path = bare_array(np.full((64, 96), 5, np.uint8), tmp_path / "a.zarr", 3, fill_value=3)
    (path / "c" / "1" / "0").unlink()
    found = whole(source(path)).values[0]
    assert (found[32:, :48] == 3).all()
    found[32:, :48] = 5
    assert (found == 5).all()


def test_a_store_that_is_gone_is_not_a_store_of_fill_values(tmp_path: Path) -> None:
    path = bare_array(np.full((64, 96), 5, np.uint8), tmp_path / "a.zarr", 3)
    reader = source(path)
    whole(reader)
    shutil.rmtree(path)
    with refuses("pixels-unreadable", path=path):
        whole(reader)


CODECS: dict[str, tuple[Format, dict[str, Any]]] = {
    "2 raw": (2, {"compressors": None}),
    "2 zlib": (2, {"compressors": numcodecs.Zlib(1)}),
    "2 gzip": (2, {"compressors": numcodecs.GZip(1)}),
    "2 blosc": (2, {"compressors": numcodecs.Blosc()}),
    "2 lz4": (2, {"compressors": numcodecs.LZ4()}),
    "2 delta, shuffle, zstd": (
        2,
        {"filters": [numcodecs.Delta("u2"), numcodecs.Shuffle(2)], "compressors": numcodecs.Zstd(1)},
    ),
    "2 order F": (2, {"order": "F", "compressors": numcodecs.Zstd(1)}),
    "2 keys with slashes": (2, {"chunk_key_encoding": {"name": "v2", "separator": "/"}}),
    "3 raw": (3, {"compressors": None}),
    "3 gzip": (3, {"compressors": GzipCodec()}),
    "3 blosc": (3, {"compressors": zarr.codecs.BloscCodec()}),
    "3 transpose, zstd, crc32c": (
        3,
        {"filters": [TransposeCodec(order=(0, 2, 1))], "compressors": [ZstdCodec(), Crc32cCodec()]},
    ),
    "3 big endian": (3, {"serializer": BytesCodec(endian="big")}),
    "3 shards": (3, {"shards": (2, 64, 96)}),
    "3 shards of gzip": (3, {"shards": (2, 64, 96), "compressors": GzipCodec()}),
    "3 numcodecs": (3, {"compressors": {"name": "numcodecs.zlib", "configuration": {"level": 1}}}),
}


@pytest.mark.parametrize("name", CODECS)
def test_codecs(tmp_path: Path, name: str) -> None:
    values = noise(4, HEIGHT, WIDTH, "uint16")
    version, options = CODECS[name]
    path = bare_array(values, tmp_path / "a.zarr", version, **options)
    found = source(path)
    assert (whole(found).values == values).all()
    assert (found.read(Window(30, 40, 7, 25), (2, 4)).values == values[[1, 3], 30:37, 40:65]).all()
    assert found.info.storage_block == (32, 48)


def test_the_other_order_of_bytes(tmp_path: Path) -> None:
    values = noise(1, 40, 50, ">u2")[0]
    path = bare_array(values, tmp_path / "a.zarr", 2)
    assert json.loads((path / ".zarray").read_text())["dtype"] == ">u2"
    found = whole(source(path)).values
    assert found.dtype == np.dtype("uint16")
    assert found.dtype.isnative
    assert (found[0] == values).all()


@pytest.mark.parametrize("location", ["start", "end"])
@pytest.mark.parametrize("codec", [zarr.codecs.BloscCodec(), ZstdCodec()], ids=["blosc", "zstd"])
def test_shards_with_holes_and_their_index_at_either_end(tmp_path: Path, location: Any, codec: Any) -> None:
    values = noise(1, 64, 96)[0]
    values[:32, :48] = 0
    sharding = ShardingCodec(chunk_shape=(16, 24), codecs=[BytesCodec(), codec], index_location=location)
    path = bare_array(values, tmp_path / "a.zarr", 3, chunks=(64, 96), serializer=sharding, compressors=None)
    found = source(path)
    assert found.info.storage_block == (16, 24)
    for window in (Window(0, 0, 64, 96), Window(0, 0, 20, 30), Window(40, 50, 3, 3)):
        assert (found.read(window, (1,)).values[0] == values[window.slices()]).all()


@settings(max_examples=40)
@given(data=st.data())
def test_windows(stores: dict[str, tuple[NDArray[Any], ZarrSource]], data: st.DataObject) -> None:
    values, found = stores[data.draw(st.sampled_from(sorted(stores)))]
    bands, height, width = values.shape
    row, col = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
    window = Window(row, col, data.draw(st.integers(1, height - row)), data.draw(st.integers(1, width - col)))
    chosen = data.draw(st.lists(st.integers(1, bands), min_size=1, max_size=5))
    pixels = found.read(window, tuple(chosen))
    rows, cols = window.slices()
    assert (pixels.values == values[[band - 1 for band in chosen], rows, cols]).all()
    assert (pixels.valid == (values[[band - 1 for band in chosen], rows, cols] != 7).any(axis=0)).all()


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[NDArray[Any], ZarrSource]]:
    folder = tmp_path_factory.mktemp("stores")
    values = noise(4, HEIGHT, WIDTH)
    values[:, 20:60, 5:60] = np.where(noise(4, 40, 55, seed=2) < 150, 7, values[:, 20:60, 5:60])
    tif = write_raster(folder / "a.tif", values, crs="EPSG:32633", transform=NORTH_UP, nodata=7)
    paths = [
        bare_array(values, folder / "bare.zarr", 3, {"nodata": 7}),
        bare_array(values, folder / "shards.zarr", 3, {"nodata": 7}, chunks=(2, 16, 16), shards=(4, 48, 64)),
        bare_array(np.moveaxis(values, 0, -1), folder / "last.zarr", 2, {"nodata": 7}, chunks=(33, 20, 3)),
        by_xarray(tif, folder / "xarray.zarr", 2, chunks=(4, 40, 40)),
        by_xarray_in_variables(tif, folder / "variables.zarr", 3),
    ]
    tall = np.tile(values, (1, 30, 1))
    paths.append(bare_array(tall, folder / "tall.zarr", 3, {"nodata": 7}, chunks=(2, 1100, 40)))
    return {path.name: (tall if path.stem == "tall" else values, source(path)) for path in paths}


@pytest.mark.parametrize("in_variables", [False, True])
def test_bands_that_nobody_asked_for_are_not_decoded(tmp_path: Path, in_variables: bool) -> None:
    values, path = noise(4, 40, 50), tmp_path / "a.zarr"
    if in_variables:
        zarr.open_group(path, mode="w")
        for number, plane in enumerate(values):
            bare_array(plane, path / f"B{number}", 3)
    else:
        bare_array(values, path, 3)
    for chunk in (path / ("B1/c" if in_variables else "c/1")).rglob("[0-9]"):
        if chunk.is_file():
            chunk.write_bytes(b"x")
    found = source(path)
    assert (whole(found, 4, 1).values == values[[3, 0]]).all()
    with refuses("pixels-unreadable"):
        whole(found, 1, 2)


def test_tall_chunks_are_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values, asked = noise(2, 5000, 40), []
    found = source(bare_array(values, tmp_path / "a.zarr", 3, chunks=(1, 2000, 40)))
    get = Guarded.get

    async def counted(self: Guarded, key: str, *args: Any, **kwargs: Any) -> Any:
        asked.append(key)
        return await get(self, key, *args, **kwargs)

    monkeypatch.setattr(Guarded, "get", counted)
    for row in range(300, 5000, 256):
        window = Window(row, 3, min(256, 5000 - row), 30)
        pixels = found.read(window, (2, 1)).values
        assert (pixels == values[[1, 0]][(slice(None), *window.slices())]).all()
        pixels[:] = 0  # is the caller's own
    assert sorted(key for key in asked if "c/" in key) == [f"c/{band}/{row}/0" for band in (0, 1) for row in range(3)]


def test_threads_and_other_processes_read_the_same(tmp_path: Path) -> None:
    values = noise(3, 200, 150)
    found = source(bare_array(values, tmp_path / "a.zarr", 3))
    windows = [Window(k, k % 40, 100, 90) for k in range(64)]
    for one in (found, pickle.loads(pickle.dumps(found))):  # noqa: S301 - our own
        with ThreadPoolExecutor(8) as threads:
            read = list(threads.map(lambda window, one=one: one.read(window, (3, 1)), windows))
        for window, pixels in zip(windows, read, strict=True):
            assert (pixels.values == values[[2, 0]][(slice(None), *window.slices())]).all()
        one.close()
        assert (whole(one).values == values).all(), "opens itself again"


def test_wrong_windows_and_bands(tmp_path: Path) -> None:
    found = source(bare_array(noise(3, 40, 50), tmp_path / "a.zarr", 3))
    for window, bands in ((Window(0, 0, 41, 50), (1,)), (Window(0, 0, 40, 50), (4,)), (Window(0, 0, 40, 50), (0,))):
        with pytest.raises(ValueError):
            found.read(window, bands)


def test_an_array_of_a_group_has_the_groups_place(tmp_path: Path) -> None:
    path = by_xarray_in_variables(geotiff(tmp_path / "a.tif"), tmp_path / "a.zarr", 3)
    info = source(path / "B02").info
    assert info.bands == 1
    assert info.georeference == source(path).info.georeference


ODD: tuple[Any, ...] = (None, -1, 10**400, float("nan"), "x", [], {})


def places(told: Any, above: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Of everything in what a file of JSON holds."""
    pairs = told.items() if isinstance(told, dict) else enumerate(told) if isinstance(told, list) else ()
    for key, value in pairs:
        yield (*above, key)
        yield from places(value, (*above, key))


@pytest.mark.parametrize("name", ["xarray", "ome", "shards"])
def test_anything_in_the_metadata_may_be_anything(tmp_path: Path, name: str) -> None:
    path = tmp_path / "a.zarr"
    if name == "xarray":
        by_xarray(geotiff(tmp_path / "a.tif"), path, 2)
    elif name == "ome":
        ome_by_hand(noise(3, 40, 50), path, 3, ("red", "green", "blue"))
    else:
        bare_array(noise(4, 40, 50), path, 3, {"spatial:transform": [1, 0, 0, 0, 1, 0]}, shards=(2, 64, 96))
    read, unreadable = 0, 0
    odd = cycle(ODD)  # of a number of values that has no divisor in common with what is there
    for file in [one for one in path.rglob("*") if one.name in {"zarr.json", ".zattrs", ".zarray", ".zgroup"}]:
        before = file.read_text()
        for place in places(json.loads(before)):
            for value in islice(odd, len(ODD)):
                told = json.loads(before)
                reduce(lambda inner, key: inner[key], place[:-1], told)[place[-1]] = value
                file.write_text(json.dumps(told))
                try:
                    identify(source(path).info)
                    whole(source(path))
                    read += 1
                except InputError as error:
                    assert "\n" not in str(error)  # noqa: PT017 - that there is no other error is the point
                    unreadable += 1
        file.write_text(before)
    assert min(read, unreadable) > 10


def test_a_damaged_chunk_can_be_left_out(tmp_path: Path) -> None:
    values = noise(3, 64, 96)
    path = bare_array(values, tmp_path / "a.zarr", 3)
    (path / "c" / "1" / "1" / "0").write_bytes(b"x")
    found = TolerantSource(source(path), OnError(mask=True))
    pixels = whole(found)
    assert found.unreadable(Window(0, 0, 64, 96)) == (Window(32, 0, 32, 48),)
    assert not pixels.valid[32:, :48].any()
    assert pixels.valid.sum() == 64 * 96 - 32 * 48
    assert (pixels.values[:, pixels.valid] == values[:, pixels.valid]).all()


@pytest.mark.parametrize("version", [2, 3])
def test_a_damaged_chunk_is_told_with_its_rows(tmp_path: Path, version: Format) -> None:
    values = noise(1, 64, 96)[0]
    path = bare_array(values, tmp_path / "a.zarr", version)
    chunk = path / ("1.0" if version == 2 else "c/1/0")
    chunk.write_bytes(chunk.read_bytes()[:-40])
    found = source(path)
    with refuses("pixels-unreadable", path=path, rows="32..63", cols="0..47"):
        found.read(Window(32, 0, 32, 48), (1,))
    assert (found.read(Window(0, 0, 32, 96), (1,)).values[0] == values[:32]).all(), "others can be read"


def test_a_chunk_written_anew_is_another_input(tmp_path: Path) -> None:
    path = tmp_path / "a.zarr"
    zarr.open_group(path, mode="w")
    for name in ("B01", "B02", "B03"):
        bare_array(noise(1, 64, 96)[0], path / name, 3)
    before = identify(source(path).info)
    assert identify(source(path).info) == before
    assert [file.name for file in before.files] == ["zarr.json", "B01", "B02", "B03"]
    chunk = path / "B02" / "c" / "0" / "0"
    status, old = chunk.stat(), chunk.read_bytes()
    os.utime(path / "B02" / "c" / "1" / "1", ns=(0, status.st_mtime_ns + 10**9))  # the newest, before and after
    before = identify(source(path).info)
    chunk.write_bytes(old[:-1] + bytes([old[-1] ^ 1]))
    os.utime(chunk, ns=(0, status.st_mtime_ns + 1))
    after = identify(source(path).info)
    changed = [one.name for one, other in zip(before.files, after.files, strict=True) if one != other]
    assert changed == ["B02"], "as many bytes, none newer than the newest"
    content = identify(source(path).info, hashed=True)
    assert content.hashed
    os.utime(chunk)
    assert identify(source(path).info, hashed=True) == content
    chunk.write_bytes(old)
    assert identify(source(path).info, hashed=True) != content


def test_a_store_is_found_by_what_is_in_it(tmp_path: Path) -> None:
    tif = geotiff(tmp_path / "a.tif")
    path = by_xarray(tif, tmp_path / "a.folder", 2)
    found = find_source(path)
    assert isinstance(found, ZarrSource)
    again = source_of(identify(found.info))
    assert equal(whole(again), whole(found))
    assert again.info == found.info
    (tmp_path / "in").mkdir()
    inside = by_xarray(tif, tmp_path / "in" / "b.zarr", 3)
    assert inputs_of([path], None) == (path,)
    assert inputs_of([tmp_path / "in" / "*.zarr"], None) == (inside,)
    one = ome_by_hand(noise(3, HEIGHT, WIDTH), tmp_path / "c.zarr", 3)
    assert find_source(one, 1).info.sources[0].level == 1
    assert source_of(identify(find_source(one, 1).info)).info.size == Size(45, 35)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model") / "tiny.safetensors", fc_kernel=1)


def chunks_of(folder: Path) -> dict[str, bytes]:
    """Of the class map of a run."""
    store = folder / "a.classes.zarr"
    return {
        str(path.relative_to(store)): path.read_bytes()
        for path in (store / "classes" / "c").rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize("writer", ["xarray", "variables"])
def test_the_map_of_a_store_is_that_of_the_geotiff(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch, writer: str
) -> None:
    small_blocks(monkeypatch)
    tif = scene(tmp_path / "a.tif", nodata=30)
    path = WRITERS[writer](tif, tmp_path / "a.zarr", 3)
    bands = ("--bands", "1,2,3")
    for given_, out in ((tif, "of_tif"), (path, "of_zarr")):
        segmented(given_, "-m", model, "-o", tmp_path / out, "--precision", "fp32", *bands)
    wanted = chunks_of(tmp_path / "of_tif")
    assert len(wanted) > 4
    assert len(np.unique(class_map(tmp_path / "of_tif", "a"))) > 3
    assert chunks_of(tmp_path / "of_zarr") == wanted
    with rasterio.open(tmp_path / "of_zarr" / "a.classes.tif") as found, rasterio.open(tif) as image:
        assert (found.crs, found.transform) == (image.crs, image.transform)
    for command in ("verify", "validate"):
        result = fcn_batch(command, tmp_path / "of_zarr" / "a.run.json")
        assert result.exit_code == 0, result.stderr
    chunk = next((path / ("image" if writer == "xarray" else "B01") / "c").rglob("0"))
    chunk = next(one for one in chunk.rglob("*") if one.is_file())
    os.utime(chunk)
    result = fcn_batch("verify", tmp_path / "of_zarr" / "a.run.json")
    assert result.exit_code == InputError.exit_code


def test_the_map_of_a_level_is_that_of_its_plain_raster(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_blocks(monkeypatch)
    with rasterio.open(scene(tmp_path / "scene.tif", 400, 520)) as dataset:
        values = dataset.read()
    path = ome_by_hand(values, tmp_path / "a.zarr", 3, ("red", "green", "blue"))
    half = whole(source(path, 1)).values
    plain = write_raster(tmp_path / "a.tif", half, photometric="RGB")
    segmented(path, "-m", model, "-o", tmp_path / "out", "--precision", "fp32", "--level", "1", "--tissue", "off")
    segmented(plain, "-m", model, "-o", tmp_path / "plain", "--precision", "fp32")
    assert chunks_of(tmp_path / "out") == chunks_of(tmp_path / "plain")
    assert class_map(tmp_path / "out", "a").shape == (200, 260)


def test_outputs_are_not_written_into_a_store(tmp_path: Path, model: Path) -> None:
    path = by_xarray_in_variables(scene(tmp_path / "a.tif"), tmp_path / "a.zarr", 3)
    result = fcn_batch("segment", path / "B01", "-m", model)
    assert result.exit_code == OptionError.exit_code
