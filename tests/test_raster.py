import pickle
import struct
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import rasterio
from rasterio.control import GroundControlPoint
from rasterio.env import get_gdal_config
from rasterio.transform import Affine

from fcn_batch.pipeline.core.geometry import Size, Window
from fcn_batch.pipeline.core.georeference import IDENTITY
from fcn_batch.pipeline.core.source import DTYPES, Pixels, RasterSource, cache_needed
from fcn_batch.pipeline.raster.gdal import accept_pixel_space, gdal_cache
from fcn_batch.pipeline.raster.guard import check_bands
from fcn_batch.pipeline.raster.rasterfile import RasterioSource, inspect
from tests.errors import refuses
from tests.rasters import noise, write_raster

NORTH_UP = Affine(10, 0, 500000, 0, -10, 5000000)
VRT = """<VRTDataset rasterXSize="20" rasterYSize="20"><VRTRasterBand dataType="Byte" band="1"><SimpleSource>
<SourceFilename>{}</SourceFilename><SourceBand>1</SourceBand></SimpleSource></VRTRasterBand></VRTDataset>"""


def whole(source: RasterSource, *bands: int) -> Pixels:
    size = source.info.size
    return source.read(Window(0, 0, size.height, size.width), bands)


def test_info_of_a_georeferenced_file(tmp_path: Path) -> None:
    path = write_raster(
        tmp_path / "a.tif",
        noise(3, 70, 50),
        crs="EPSG:32633",
        transform=NORTH_UP,
        nodata=0,
        photometric="RGB",
    )
    with rasterio.open(path, "r+") as dataset:
        dataset.set_band_description(2, "near infrared")
    info = inspect(path)
    assert (info.path, info.size, info.bands, info.dtype) == (str(path), Size(70, 50), 3, "uint8")
    assert info.georeference.transform == (10.0, 0.0, 500000.0, 0.0, -10.0, 5000000.0)
    assert str(info.georeference.crs_wkt).startswith('PROJCRS["WGS 84 / UTM zone 33N"')
    assert info.descriptions == (None, "near infrared", None)
    assert info.colour_roles == ("red", "green", "blue")
    assert info.storage_block[1] == 50
    assert info.has_mask
    assert info.ground is None


def test_threads_read_what_one_thread_reads(tmp_path: Path) -> None:
    tiled = {"tiled": True, "blockxsize": 64, "blockysize": 64, "compress": "deflate"}
    values = noise(3, 512, 512)
    source = RasterioSource(write_raster(tmp_path / "a.tif", values, **tiled))
    windows = [Window(r, c, 96, 96) for r in range(0, 416, 32) for c in range(0, 416, 32)]
    with gdal_cache(1), ThreadPoolExecutor(8) as pool:
        for window, pixels in zip(windows, pool.map(lambda w: source.read(w, (1, 2, 3)), windows), strict=True):
            rows, cols = window.slices()
            assert (pixels.values == values[:, rows, cols]).all()
        assert len(source._open._opened) > 1
    source.close()


@pytest.mark.parametrize("content", [None, b"II*\0"])
def test_a_vrt_with_a_source_that_is_gone(tmp_path: Path, content: bytes | None) -> None:
    """Also while another one is open, when GDAL would read zeros."""
    (tmp_path / "a.vrt").write_text(VRT.format(write_raster(tmp_path / "part.tif", noise(1, 20, 20))))
    first = RasterioSource(tmp_path / "a.vrt")
    assert whole(first, 1).values.any()
    if content is not None:
        (tmp_path / "gone.tif").write_bytes(content)
    (tmp_path / "b.vrt").write_text(VRT.format(tmp_path / "gone.tif"))
    with refuses("source-missing", path=tmp_path / "b.vrt", source=tmp_path / "gone.tif"):
        whole(RasterioSource(tmp_path / "b.vrt"), 1)
    first.close()


def test_no_bands_are_refused() -> None:
    with refuses("no-bands"):
        check_bands(SimpleNamespace(count=0), Path("a.vrt"), DTYPES)


def test_damage_names_the_window(tmp_path: Path) -> None:
    path = write_raster(tmp_path / "a.tif", noise(1, 512, 512), compress="deflate", tiled=True)
    with rasterio.Env(), accept_pixel_space(), rasterio.open(path) as dataset:
        start = int(dataset.get_tag_item("BLOCK_OFFSET_1_0", "TIFF", bidx=1))
    data = bytearray(path.read_bytes())
    data[start : start + 200] = bytes(200)
    path.write_bytes(data)
    source = RasterioSource(path)
    with refuses("pixels-unreadable", path=path, first_row=10, last_row=19, first_col=250, last_col=299):
        source.read(Window(10, 250, 10, 50), (1,))
    assert source.read(Window(300, 250, 10, 50), (1,)).valid.all()


def test_decompression_bombs_are_refused(tmp_path: Path) -> None:
    side = 30_000  # one block of 0.9 GB in a file of some hundred bytes
    tags = [(256, 4, side), (257, 4, side), (258, 3, 8), (259, 3, 8), (262, 3, 1), (277, 3, 1)]
    tags += [(322, 4, side), (323, 4, side), (324, 4, 8), (325, 4, 8)]
    entries = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags)
    path = tmp_path / "bomb.tif"
    path.write_bytes(struct.pack("<2sHI", b"II", 42, 16) + bytes(8) + struct.pack("<H", len(tags)) + entries + bytes(4))
    with refuses("blocks-too-large", rows=side, cols=side, bytes=side**2):
        inspect(path)


def test_the_cache_for_strips_holds_one_row_of_windows(tmp_path: Path) -> None:
    info = inspect(write_raster(tmp_path / "a.tif", noise(3, 64, 1000, "uint16"), blockysize=16))
    assert info.storage_block == (16, 1000)
    assert cache_needed(info, rows=100, bands=3) == 116 * 1000 * 2 * 3


def test_files_without_a_place_and_with_control_points_alone(tmp_path: Path) -> None:
    plain = inspect(write_raster(tmp_path / "a.png", noise(3, 5, 6), driver="PNG"))
    assert not plain.has_mask
    gcps = [GroundControlPoint(0, 0, 10, 50), GroundControlPoint(0, 5, 11, 50), GroundControlPoint(5, 0, 10, 49)]
    pinned = inspect(write_raster(tmp_path / "a.tif", noise(1, 5, 5), gcps=gcps, crs="EPSG:4326"))
    assert pinned.ground is not None
    assert pinned.ground.points[1] == (0, 5, 11, 50, 0)
    for info in (plain, pinned):
        assert (info.georeference.crs_wkt, info.georeference.transform) == (None, IDENTITY)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32"])
def test_windows_read_as_written(tmp_path: Path, dtype: str) -> None:
    values = noise(3, 90, 80, dtype)
    source = RasterioSource(write_raster(tmp_path / "a.with:colon.tif", values, compress="deflate"))
    pixels = source.read(Window(13, 7, 40, 73), (3, 1))
    assert pixels.values.dtype == dtype
    assert pixels.values.tolist() == values[[2, 0], 13:53, 7:80].tolist()
    assert pixels.valid.all()
    assert pixels.valid.shape == (40, 73)


@pytest.mark.parametrize(
    ("place", "bands"),
    [
        *((place, (1,)) for place in ((-1, 0), (0, -1), (16, 0), (0, 28), (90, 90))),
        *(((0, 0), bands) for bands in ((), (0,), (1, 4))),
    ],
)
def test_windows_and_bands_that_do_not_exist_are_refused(
    tmp_path: Path, place: tuple[int, int], bands: tuple[int, ...]
) -> None:
    source = RasterioSource(write_raster(tmp_path / "a.tif", noise(3, 20, 30)))
    with pytest.raises(ValueError):
        source.read(Window(*place, 5, 5), bands)


@pytest.mark.parametrize(("dtype", "least"), [("uint8", 1), ("float32", 0.25), ("int16", 1)])
def test_alpha_is_the_mask(tmp_path: Path, dtype: str, least: float) -> None:
    """Also of types that GDAL makes no mask of."""
    values = noise(4, 8, 8, dtype)
    values[3] = 100
    values[3, 4, :2] = (0, least)
    source = RasterioSource(write_raster(tmp_path / "a.tif", values, photometric="RGB", alpha="YES"))
    assert source.info.colour_roles[3] == "alpha"
    assert source.info.has_mask
    assert np.argwhere(~whole(source, 1, 2, 3).valid).tolist() == [[4, 0]]


def test_nodata_needs_all_bands_and_a_mask_band_counts(tmp_path: Path) -> None:
    values = noise(3, 8, 8)
    values[:, 2, 3] = 0
    values[0, 5, 5] = 0
    path = write_raster(tmp_path / "a.tif", values, nodata=0)
    assert np.argwhere(~whole(RasterioSource(path), 1, 2, 3).valid).tolist() == [[2, 3]]
    path = write_raster(tmp_path / "b.tif", values)
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), accept_pixel_space(), rasterio.open(path, "r+") as dataset:
        dataset.write_mask(np.arange(64).reshape(8, 8) != 57)
    assert np.argwhere(~whole(RasterioSource(path), 1).valid).tolist() == [[7, 1]]


@pytest.mark.parametrize("nodata", [None, np.nan])
def test_only_finite_pixels_of_the_chosen_bands_are_valid(tmp_path: Path, nodata: float | None) -> None:
    values = noise(2, 8, 8, "float32")
    values[0, 1, 1], values[1, 2, 2], values[1, 3, 3] = np.nan, np.inf, np.finfo("float32").min  # nobody's nodata
    source = RasterioSource(write_raster(tmp_path / "a.tif", values, nodata=nodata))
    for bands, missing in (((1,), [1]), ((2,), [2, 3]), ((1, 2), [1, 2, 3])):
        assert np.argwhere(~whole(source, *bands).valid).tolist() == [[k, k] for k in missing]


def test_sources_open_when_they_are_read_and_again_after_closing_and_pickling(tmp_path: Path) -> None:
    source = RasterioSource(tmp_path / "a.tif")
    fresh = pickle.loads(pickle.dumps(source))  # noqa: S301  (our own bytes: this is what dask does)
    values = noise(1, 8, 8)
    write_raster(tmp_path / "a.tif", values)
    assert source.info.size == Size(8, 8)
    assert pickle.loads(pickle.dumps(source))._info == source.info  # noqa: S301  (our own bytes)
    assert (whole(fresh, 1).values == values).all()
    assert (whole(source, 1).values == values).all()
    dataset = source._open._local.one
    source.close()
    assert dataset.closed
    assert (whole(source, 1).values == values).all()


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("{folder}/none.tif", "input-missing"),
        ("{folder}", "input-is-folder"),
        ("/vsicurl/http://x/a.tif", "input-not-local"),
        ("/vsimem/a.tif", "input-not-local"),
        ("/vsizip/a.zip/a.tif", "archive-missing"),
        ("ftp://x/a.tif", "url-unsupported"),
        ("file:///none/a.tif", "input-missing"),
    ],
)
def test_names_that_nothing_opens(tmp_path: Path, path: str, code: str) -> None:
    name = path.format(folder=tmp_path)
    with refuses(code, **({"path": name} if "{" in path else {})):
        _ = RasterioSource(name).info


def test_the_cache_size_is_of_the_first_until_the_last_thread_leaves() -> None:
    with rasterio.Env():
        before = get_gdal_config("GDAL_CACHEMAX")
    first, second = gdal_cache(64), gdal_cache(100)  # MiB; the process has one cache: the first to come decides
    with ThreadPoolExecutor(1) as one, ThreadPoolExecutor(1) as other:
        one.submit(first.__enter__).result()
        assert one.submit(get_gdal_config, "GDAL_CACHEMAX").result() == 64 * 2**20
        other.submit(second.__enter__).result()
        one.submit(first.__exit__, None, None, None).result()
        assert other.submit(get_gdal_config, "GDAL_CACHEMAX").result() == 64 * 2**20
        other.submit(second.__exit__, None, None, None).result()
    assert get_gdal_config("GDAL_CACHEMAX") == before
    with pytest.raises(ValueError), gdal_cache(0):
        pass


def test_values_and_mask_must_fit(tmp_path: Path) -> None:
    with pytest.raises(ValueError):
        Pixels(np.zeros((2, 4, 5)), np.zeros((4, 4), np.bool_))
    info = inspect(write_raster(tmp_path / "a.tif", noise(1, 5, 5)))
    for changes in ({"dtype": "float64"}, {"descriptions": ()}):
        with pytest.raises(ValueError):
            replace(info, **changes)
