"""Raster labels on the pixels of an image: any grid, any window, and what is refused."""

import copy
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from rasterio.transform import Affine
from rasterio.warp import Resampling, reproject

from fcn_batch.pipeline.core.errors import FcnBatchError, InputError, TrainingError
from fcn_batch.pipeline.core.geometry import Size, Window
from fcn_batch.pipeline.core.georeference import GeoReference
from fcn_batch.pipeline.raster import labels as module
from fcn_batch.pipeline.raster.alignment import Alignment
from fcn_batch.pipeline.raster.crs import wkt_of
from fcn_batch.pipeline.raster.labels import NO_LABEL, Burn, Grid, Labels, open_labels
from fcn_batch.pipeline.raster.rasterfile import RasterioSource
from tests.rasters import noise, write_raster

UTM, LONLAT = "EPSG:32633", "EPSG:4326"
NORTH_UP = Affine(10, 0, 500000, 0, -10, 5000000)
OF_UTM = {"crs": UTM, "transform": NORTH_UP}


def reference(transform: Affine, crs: str | None = UTM) -> GeoReference:
    return GeoReference(wkt_of(crs) if crs else None, tuple(transform)[:6])


def grid_of(height: int, width: int, transform: Affine = NORTH_UP, crs: str | None = UTM) -> Grid:
    return Grid(Size(height, width), reference(transform, crs))


def whole(labels: Labels, grid: Grid) -> NDArray[np.int32]:
    return labels.read(Window(0, 0, grid.size.height, grid.size.width))


def in_windows(labels: Labels, grid: Grid, side: int) -> NDArray[np.int32]:
    """The whole grid, put together from windows of an odd size."""
    ids = np.full((grid.size.height, grid.size.width), -99, np.int32)
    for row in range(0, grid.size.height, side):
        for col in range(0, grid.size.width, side):
            window = Window(row, col, side, side).clipped(grid.size)
            ids[window.slices()] = labels.read(window)
    return ids


def warped(values: NDArray[Any], source: dict[str, Any], grid: Grid) -> NDArray[np.int32]:
    """What GDAL's own warp gives: nearest neighbour, no approximation."""
    out = np.full((grid.size.height, grid.size.width), NO_LABEL, np.int32)
    reproject(
        values.astype(np.int32),
        out,
        src_transform=source["transform"],
        src_crs=source["crs"],
        dst_transform=Affine(*grid.georeference.transform),
        dst_crs=grid.georeference.crs_wkt,
        resampling=Resampling.nearest,
        tolerance=0,
        init_dest_nodata=True,
        dst_nodata=NO_LABEL,
    )
    return out


@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint32", "int32"])
def test_ids_of_any_integer_type_on_the_same_grid(tmp_path: Path, dtype: str) -> None:
    values = np.arange(30 * 40).reshape(1, 30, 40).astype(dtype)
    values[0, 0, 0] = np.iinfo(dtype).max if dtype != "uint32" else 2**31 - 1
    grid = grid_of(30, 40)
    labels = open_labels(write_raster(tmp_path / "l.tif", values, **OF_UTM), grid)
    ids = whole(labels, grid)
    assert ids.dtype == np.int32
    assert np.array_equal(ids, values[0].astype(np.int64))
    assert np.array_equal(in_windows(labels, grid, 7), ids)


def test_nodata_mask_and_alpha_are_no_label(tmp_path: Path) -> None:
    values = noise(1, 20, 30)
    ids = values[0].astype(np.int32)
    grid = grid_of(20, 30)
    declared = open_labels(write_raster(tmp_path / "n.tif", values, nodata=int(values[0, 3, 4]), **OF_UTM), grid)
    assert np.array_equal(whole(declared, grid), np.where(values[0] == values[0, 3, 4], NO_LABEL, ids))
    alpha = np.where(np.indices((20, 30))[1] < 5, 0, 255).astype(np.uint8)[None]
    masked = write_raster(tmp_path / "a.tif", np.concatenate([values, alpha]), alpha="YES", **OF_UTM)
    assert np.array_equal(whole(open_labels(masked, grid), grid), np.where(alpha[0] == 0, NO_LABEL, ids))


@st.composite
def _grids(draw: st.DrawFn) -> Affine:
    """Another grid over about the same place: shifted, coarser or finer, mirrored, perhaps turned."""
    step = draw(st.sampled_from([3.0, 7.5, 10.0, 20.0, 33.3]))
    x, y = draw(st.integers(-150, 150)), draw(st.integers(-150, 150))
    turn = draw(st.sampled_from([0, 0, 30]))
    scale = Affine.scale(step, step * draw(st.sampled_from([-1, 1])))
    return Affine.translation(500000 + x, 5000000 - 200 + y) @ Affine.rotation(turn) @ scale


@settings(max_examples=50)
@given(_grids(), st.integers(1, 60), st.integers(1, 60), st.integers(3, 50))
def test_pixels_under_the_centres(transform: Affine, height: int, width: int, side: int) -> None:
    """Against exact positions, one pixel after the other; and windows against the whole."""
    grid, own = grid_of(40, 50), grid_of(height, width, transform)
    alignment = Alignment.between(own, grid)
    rows, cols = np.broadcast_arrays(*alignment.pixels(Window(0, 0, 40, 50)))
    inverse = ~transform
    for row, col in ((0, 0), (39, 49), (13, 21), (27, 2)):
        x, y = inverse @ (NORTH_UP @ (col + 0.5, row + 0.5))
        expected = int(np.floor(y + 1e-6)), int(np.floor(x + 1e-6))
        inside = 0 <= expected[0] < height and 0 <= expected[1] < width
        found = int(rows[row, col]), int(cols[row, col])
        assert found == expected if inside else min(found) == -1
    window = Window(side // 3, side // 2, min(side, 20), min(side, 20))
    part = np.broadcast_arrays(*alignment.pixels(window))
    assert np.array_equal(part[0], rows[window.slices()])
    assert np.array_equal(part[1], cols[window.slices()])
    assert alignment.overlaps() or (np.minimum(rows, cols) == -1).all()


@pytest.mark.parametrize(
    ("crs", "transform"),
    [
        (UTM, Affine(17, 0, 499950, 0, -13, 5000070)),  # coarser, larger on all sides
        (UTM, Affine(2.7, 0, 500013, 0, 2.7, 4999700)),  # finer, south up, a part only
        (UTM, Affine(8, 3, 499901.3, 3, -8, 4999902.7)),  # turned
        (LONLAT, Affine(1e-4, 0, 14.9995, 0, -1e-4, 45.1505)),
        ("EPSG:3857", Affine(14, 0, 1669700, 0, -14, 5645900)),
    ],
)
def test_other_grids_and_systems_as_gdal_warps_them(tmp_path: Path, crs: str, transform: Affine) -> None:
    values, grid = noise(1, 90, 80, "uint16"), grid_of(45, 53)
    source = {"crs": crs, "transform": transform}
    labels = open_labels(write_raster(tmp_path / "l.tif", values, **source), grid)
    ids = whole(labels, grid)
    assert (ids != NO_LABEL).mean() > 0.2
    assert np.array_equal(ids, warped(values[0], source, grid))
    assert np.array_equal(in_windows(labels, grid, 11), ids)


def test_centres_on_borders_take_the_next_pixel(tmp_path: Path) -> None:
    """Steps of 3 to 4: every third centre lies on a border, where plain sums round either way."""
    values = noise(1, 360, 720, "uint8")
    own = reference(Affine(0.5, 0, -180, 0, -0.5, 90), LONLAT)
    grid = grid_of(270, 540, Affine(2 / 3, 0, -180, 0, -2 / 3, 90), LONLAT)
    labels = open_labels(write_raster(tmp_path / "l.tif", values), grid, georeference=own)
    rows = [((2 * i + 1) * 360) // (2 * 270) for i in range(270)]
    cols = [((2 * j + 1) * 720) // (2 * 540) for j in range(540)]
    assert np.array_equal(whole(labels, grid), values[0][np.ix_(rows, cols)])


def test_a_reference_that_is_wrong_is_overridden(tmp_path: Path) -> None:
    path = write_raster(tmp_path / "l.tif", noise(1, 20, 30), crs="EPSG:32601", transform=Affine(9, 0, 1, 0, -9, 2))
    grid = grid_of(20, 30)
    assert np.array_equal(whole(open_labels(path, grid, georeference=reference(NORTH_UP)), grid), noise(1, 20, 30)[0])
    half = open_labels(path, grid, georeference=reference(Affine(10, 0, 500100, 0, -10, 5000000), None))
    assert np.array_equal(whole(half, grid)[:, 10:], noise(1, 20, 30)[0][:, :20])
    assert (whole(half, grid)[:, :10] == NO_LABEL).all()


def test_pixels_one_by_one_where_a_system_is_missing(tmp_path: Path) -> None:
    values, plain = noise(1, 20, 30), grid_of(20, 30, Affine.identity(), None)
    bare = write_raster(tmp_path / "bare.tif", values)
    placed = write_raster(tmp_path / "placed.tif", values, **OF_UTM)
    for path, grid in ((bare, grid_of(20, 30)), (placed, plain), (bare, plain)):
        assert np.array_equal(whole(open_labels(path, grid), grid), values[0])
    shifted = write_raster(tmp_path / "s.tif", values, transform=Affine(10, 0, 500100, 0, -10, 5000000))
    local = grid_of(20, 30, NORTH_UP, None)  # both in one plane that has no name
    assert np.array_equal(whole(open_labels(shifted, local), local)[:, 10:], values[0][:, :20])


@pytest.mark.parametrize(
    ("profile", "grid"),
    [
        ({}, grid_of(21, 30)),
        ({"transform": Affine(10, 0, 500100, 0, -10, 5000000)}, grid_of(20, 30)),
        (OF_UTM, grid_of(20, 31, Affine.identity(), None)),
        ({}, grid_of(40, 60, Affine.identity(), None)),
    ],
)
def test_labels_that_could_lie_anywhere(tmp_path: Path, profile: dict[str, Any], grid: Grid) -> None:
    path = write_raster(tmp_path / "l.tif", noise(1, 20, 30), **profile)
    with pytest.raises(TrainingError):
        open_labels(path, grid)


@pytest.mark.parametrize(
    ("crs", "transform"),
    [(UTM, Affine(10, 0, 500400, 0, -10, 5000000)), (LONLAT, Affine(0.1, 0, -60, 0, -0.1, 10))],
)
def test_labels_beside_the_image(tmp_path: Path, crs: str, transform: Affine) -> None:
    path = write_raster(tmp_path / "l.tif", noise(1, 20, 30), crs=crs, transform=transform)
    with pytest.raises(TrainingError) as caught:
        open_labels(path, grid_of(30, 40))
    for fact in ("20x30", f"{transform.c:g}", crs, "30x40", "500000", "500400", "4999700"):
        assert fact in str(caught.value)


@pytest.mark.parametrize(
    ("bands", "dtype", "burn", "error"),
    [
        (3, "uint8", None, TrainingError),
        (1, "float32", None, InputError),
        (1, "uint8", Burn(), TrainingError),
    ],
)
def test_rasters_that_are_no_labels(
    tmp_path: Path, bands: int, dtype: str, burn: Burn | None, error: type[FcnBatchError]
) -> None:
    path = write_raster(tmp_path / "l.tif", noise(bands, 20, 30, dtype), photometric="MINISBLACK", **OF_UTM)
    with pytest.raises(error):
        open_labels(path, grid_of(20, 30), burn=burn)


def test_remote_files_stay_closed(tmp_path: Path) -> None:
    (tmp_path / "l.tif").write_text('<VRTDataset rasterXSize="20" rasterYSize="20"></VRTDataset>')
    for path in (Path("/vsicurl/http://127.0.0.1:1/l.tif"), tmp_path / "l.tif"):
        with pytest.raises(InputError):
            open_labels(path, grid_of(20, 30))


def test_ids_beyond_int32(tmp_path: Path) -> None:
    values = np.full((1, 20, 30), 2**31, np.uint32)
    labels = open_labels(write_raster(tmp_path / "l.tif", values, **OF_UTM), grid_of(20, 30))
    with pytest.raises(TrainingError, match="2147483648"):
        labels.read(Window(0, 0, 5, 5))


def test_windows_outside_the_image(tmp_path: Path) -> None:
    labels = open_labels(write_raster(tmp_path / "l.tif", noise(1, 20, 30), **OF_UTM), grid_of(20, 30))
    for window in (Window(-1, 0, 5, 5), Window(0, 26, 5, 5), Window(30, 40, 1, 1)):
        with pytest.raises(ValueError, match=r"image|touch"):
            labels.read(window)


def test_labels_much_finer_than_the_image_are_read_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values, grid = noise(1, 300, 400), grid_of(30, 40)
    source = {"crs": LONLAT, "transform": Affine(1.3e-5, 0, 15, 0, -0.9e-5, 45.1535)}
    path = write_raster(tmp_path / "l.tif", values, **source)
    ids = whole(open_labels(path, grid), grid)
    assert len(np.unique(ids)) > 50
    areas: list[int] = []
    read = RasterioSource.read

    def watched(self: RasterioSource, window: Window, bands: tuple[int, ...]) -> Any:
        areas.append(window.pixels)
        return read(self, window, bands)

    monkeypatch.setattr(RasterioSource, "read", watched)
    monkeypatch.setattr(module, "_AT_ONCE", 500)
    assert np.array_equal(whole(open_labels(path, grid), grid), ids)
    assert len(areas) > 20
    assert max(areas) <= 500


def test_many_files_and_threads(tmp_path: Path) -> None:
    before = threading.active_count()  # other tests of this process may have left some
    grid = grid_of(40, 30)
    paths = [write_raster(tmp_path / f"{k}.tif", noise(1, 40, 30, seed=k), **OF_UTM) for k in range(12)]
    labels = [open_labels(path, grid) for path in paths]
    labels[3] = copy.copy(labels[3])  # by the way of pickle
    opened: set[str] = set()

    def read(number: int) -> bool:
        k = number % 12
        right = np.array_equal(whole(labels[k], grid), noise(1, 40, 30, seed=k)[0])
        opened.update(_open_files(tmp_path))
        return right

    assert all(read(k) for k in range(24))
    assert len(_open_files(tmp_path)) == 4
    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(read, range(200)))
    assert len(opened) == 12
    for one in labels:
        one.close()
    assert not _open_files(tmp_path)
    assert read(5), "a later read opens it again"
    labels[5].close()
    assert threading.active_count() < before + 20


def _open_files(folder: Path) -> list[str]:
    """Files in a folder that this process has open."""
    links = [path for path in Path("/proc/self/fd").iterdir() if path.is_symlink()]
    targets: list[str] = []
    for link in links:
        try:
            targets.append(str(link.readlink()))
        except OSError:
            continue
    return [target for target in targets if Path(target).parent == folder]
