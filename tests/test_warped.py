"""Sources on other grids: their pixels are means or interpolations, and never depend on the window."""

import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from rasterio import Affine
from rasterio.crs import CRS
from rasterio.enums import Resampling as Kernel
from rasterio.io import MemoryFile
from rasterio.vrt import WarpedVRT

from fcn_batch.pipeline.core.errors import DecodingError
from fcn_batch.pipeline.core.geometry import Size, Window
from fcn_batch.pipeline.core.georeference import IDENTITY, GeoReference, GroundControl
from fcn_batch.pipeline.core.source import Pixels, RasterInfo, RasterSource, Resampling, undecodable
from fcn_batch.pipeline.raster.alignment import Grid
from fcn_batch.pipeline.raster.gdal import accept_pixel_space
from fcn_batch.pipeline.raster.warped import WarpedSource, coarser_grid, kernel_for, part_of, same_pixels, window_on
from tests.errors import refuses
from tests.rasters import noise
from tests.sources import ArraySource

UTM, MERCATOR = (CRS.from_epsg(code).to_wkt() for code in (32633, 3857))
PLACES = {
    "north up": GeoReference(UTM, (10.0, 0.0, 5e5, 0.0, -10.0, 5e6)),
    "south up": GeoReference(UTM, (10.0, 0.0, 5e5, 0.0, 10.0, 5e6)),
    "rotated": GeoReference(UTM, (8.0, 6.0, 5e5, 6.0, -8.0, 5e6)),
    "pixels": GeoReference(None, IDENTITY),
}
FACTORS = (0.4, 1.3, 2.0, 2.37, 50.0)


@dataclass
class Placed(ArraySource):
    """An array somewhere on the Earth."""

    place: GeoReference = PLACES["north up"]
    microns: float | None = None

    @property
    def info(self) -> RasterInfo:
        points = ((0.0, 0.0, 1.0, 2.0, 0.0), (40.0, 60.0, 3.0, 4.0, 0.0))
        ground = GroundControl(UTM, points) if self.place.transform == IDENTITY else None
        return replace(super().info, georeference=self.place, microns=self.microns, ground=ground)

    @property
    def grid(self) -> Grid:
        return Grid(self.size, self.place)


def scene(dtype: str, height: int = 150, width: int = 130, place: str = "north up", *, whole: bool = False) -> Placed:
    """Noise with holes in the middle, at a border and here and there."""
    values = noise(2, height, width, dtype)
    if dtype == "int16":
        values = values - np.int16(100)
    if dtype == "float32":
        values += np.random.default_rng(1).random(values.shape, dtype=np.float32)
    valid = np.random.default_rng(2).random((height, width)) > 0.2
    valid[height // 3 : height // 2, width // 4 : width // 2] = valid[:4] = False
    values[:, ~valid] = np.nan if dtype == "float32" else 99
    if whole:
        values, valid = np.nan_to_num(values, nan=7), np.ones_like(valid)
    return Placed(values, valid, place=PLACES[place])


def whole(source: RasterSource, bands: tuple[int, ...] = (1, 2)) -> Pixels:
    size = source.info.size
    return source.read(Window(0, 0, size.height, size.width), bands)


def mercator(grid: Grid, metres: float) -> Grid:
    """Web Mercator around a grid in UTM, somewhat beyond its borders."""
    origin = Grid(Size(1, 1), GeoReference(MERCATOR, (metres, 0.0, 1.6e6, 0.0, -metres, 5.7e6)))
    around = window_on(origin, grid)
    return part_of(origin, Window(around.row - 3, around.col - 2, around.height + 6, around.width + 5))


def shares(pixels: int, made: int, factor: float, start: float) -> NDArray[np.float64]:
    """(made, pixels): how much of each pixel lies in each of those that are made, the first from `start` on."""
    low = start + factor * np.arange(made)[:, None]
    edge = np.arange(pixels)[None, :]
    covered: NDArray[np.float64] = np.clip(np.minimum(low + factor, edge + 1) - np.maximum(low, edge), 0, None)
    return np.where(covered > 1e-9, covered, 0)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32"])
@pytest.mark.parametrize(
    ("factor", "start"), [(1.5, 0), (2, -1), (2.37, 0), (8.3, -3), (8.3, 0.4), (50, 0), (50, -0.5)]
)
def test_averages_are_means_of_areas(dtype: str, factor: float, start: float) -> None:
    """`start` is in pixels that are made: such grids begin and end beyond the source."""
    source = scene(dtype)
    first = coarser_grid(source.grid, factor)
    wanted = Grid(Size(first.size.height + 2, first.size.width + 2), first.georeference.moved(start, start))
    found = whole(WarpedSource(source, wanted, "average"))
    down = shares(source.size.height, wanted.size.height, factor, start * factor)
    across = shares(source.size.width, wanted.size.width, factor, start * factor)
    data, inside = down @ source.valid @ across.T, down @ np.ones_like(source.valid) @ across.T
    sums = np.stack([down @ np.where(source.valid, band, 0).astype(float) @ across.T for band in source.values])
    clear = np.abs(data - inside / 2) > 1e-5 * factor**2
    assert (found.valid[clear] == (data > inside / 2)[clear]).all()
    assert found.valid.any()
    assert not found.valid.all()
    means = sums[:, found.valid] / data[found.valid]
    assert np.abs(found.values[:, found.valid] - means).max() <= (1e-3 if dtype == "float32" else 0.5001)


@contextmanager
def gdal(
    source: Placed, wanted: Grid, kernel: Kernel, factors: tuple[float, float] = (1.0, 1.0)
) -> Iterator[WarpedVRT]:
    """GDAL's own view of a source without holes on another grid, all at once."""
    one = source.place
    profile = {"driver": "GTiff", "count": 2, "height": source.size.height, "width": source.size.width}
    system = one.crs_wkt or MERCATOR
    with accept_pixel_space(), MemoryFile() as file:
        with file.open(**profile, dtype=source.values.dtype, crs=system, transform=Affine(*one.transform)) as new:
            new.write(source.values)
        with (
            file.open() as dataset,
            WarpedVRT(
                dataset,
                crs=wanted.georeference.crs_wkt or system,
                transform=Affine(*wanted.georeference.transform),
                height=wanted.size.height,
                width=wanted.size.width,
                resampling=kernel,
                tolerance=1e-9,  # 0 does not work
                add_alpha=True,
                XSCALE=1 / factors[1],  # which it guesses by block
                YSCALE=1 / factors[0],
            ) as vrt,
        ):
            yield vrt


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("factor", FACTORS)
def test_gdal_makes_the_same_pixels(dtype: str, place: str, factor: float) -> None:
    source = scene(dtype, 300, 250, place, whole=True)
    wanted = coarser_grid(source.grid, factor)
    kernel: Resampling = kernel_for(source.grid, wanted)
    assert kernel == ("average" if factor > 1.5 else "bilinear")
    found = whole(WarpedSource(source, wanted, kernel))
    with gdal(source, wanted, Kernel[kernel], (factor, factor)) as vrt:
        theirs = vrt.read()
    rows, cols = (int(side / factor) for side in (source.size.height, source.size.width))  # GDAL's last ones are wrong
    assert found.valid[:rows, :cols].all()
    differ = np.abs(found.values.astype(float) - theirs[:2])[:, :rows, :cols]
    assert differ.max() <= (1 if dtype == "uint8" else 0.01)
    assert differ.mean() < 0.01


@pytest.mark.parametrize(("rows", "cols"), [(1.45, 0.4), (0.4, 1.45)])
def test_gdal_makes_the_same_pixels_of_another_shape(rows: float, cols: float) -> None:
    source = scene("float32", 300, 250, whole=True)
    size = Size(int(300 / rows), int(250 / cols))
    wanted = Grid(size, source.place.coarser(rows, cols))
    found = whole(WarpedSource(source, wanted, "bilinear"))
    with gdal(source, wanted, Kernel.bilinear, (rows, cols)) as vrt:
        theirs = vrt.read()
    assert found.valid.all()
    assert np.abs(found.values - theirs[:2]).max() < 0.01


@pytest.mark.parametrize(("metres", "kernel"), [(9.0, "bilinear"), (37.0, "average"), (700.0, "average")])
def test_gdal_makes_the_same_pixels_in_another_system(metres: float, kernel: Resampling) -> None:
    source = scene("uint8", 900, 800, whole=True)
    rows, cols = np.mgrid[:900, :800]
    source.values[:] = 100 + 60 * np.sin(rows / 50) + 30 * np.sin(cols / 40)  # an eighth of a pixel changes it by 0.25
    source.values[:, 300:400, 300:500] += 30
    wanted = mercator(source.grid, metres)
    assert kernel_for(source.grid, wanted) == kernel
    found = whole(WarpedSource(source, wanted, kernel))
    with gdal(source, wanted, Kernel[kernel]) as vrt:
        theirs = vrt.read()
    assert found.valid.any()
    inner = found.valid.copy()
    for step in (-2, -1, 1, 2):  # not at the borders, where GDAL's means are wrong
        for axis in (0, 1):
            inner &= np.roll(found.valid, step, axis)
    assert inner.mean() > 0.3
    assert (theirs[2][inner] == 255).all()
    differ = np.abs(found.values.astype(int) - theirs[:2])[:, inner]
    assert np.count_nonzero(differ > 1) < 0.002 * differ.size  # at the step
    assert differ.max() <= 6
    assert differ.mean() < 0.1


KERNELS: tuple[tuple[Resampling, float], ...] = (("average", 2.37), ("bilinear", 0.9))
SOURCES = {
    (dtype, kernel, system): WarpedSource(source, grid, kernel)
    for dtype in ("uint8", "uint16", "int16", "float32")
    for source in [scene(dtype, 700, 900)]
    for system in ("same", "other")
    for kernel, factor in KERNELS
    for grid in [coarser_grid(source.grid, factor) if system == "same" else mercator(source.grid, 14.2 * factor)]
}
ALL = {key: whole(source) for key, source in SOURCES.items()}


@given(st.data(), st.sampled_from(list(SOURCES)))
@settings(max_examples=60)
def test_pixels_do_not_depend_on_the_window(data: st.DataObject, which: tuple[str, Resampling, str]) -> None:
    source, at_once = SOURCES[which], ALL[which]
    size = source.info.size
    assert max(size.height, size.width) > 512 or which[1] == "average"  # several blocks
    row, col = (data.draw(st.integers(0, side - 1)) for side in (size.height, size.width))
    height, width = data.draw(st.integers(1, size.height - row)), data.draw(st.integers(1, size.width - col))
    bands = data.draw(st.sampled_from([(1,), (2,), (2, 1), (1, 2)]))
    window = Window(row, col, height, width)
    found = source.read(window, bands)
    expected = at_once.values[(slice(None), *window.slices())][[band - 1 for band in bands]]
    assert found.values.tobytes() == expected.tobytes()
    assert (found.valid == at_once.valid[window.slices()]).all()


def test_holes_do_not_spread() -> None:
    """Interpolated: valid by its weights, and the values of what has no data count for nothing."""
    source = scene("float32")
    wanted = coarser_grid(source.grid, 0.5)
    found = whole(WarpedSource(source, wanted, "bilinear"))
    rows, cols = (np.arange(side) / 2 + 0.25 - 0.5 for side in (wanted.size.height, wanted.size.width))
    weights = [
        one / one.sum(axis=1, keepdims=True)
        for at, side in ((rows, source.size.height), (cols, source.size.width))
        for one in [np.maximum(0, 1 - np.abs(at[:, None] - np.arange(side)[None, :]))]
    ]
    data = weights[0] @ source.valid @ weights[1].T
    assert (found.valid == (data > 0.5)).all()
    values = [weights[0] @ np.where(source.valid, band, 0) @ weights[1].T for band in source.values]
    assert np.isfinite(found.values).all()
    assert np.abs(found.values - np.stack(values) / np.maximum(data, 1e-9))[:, found.valid].max() < 1e-3


def test_nothing_but_the_pixels_needed_is_read() -> None:
    source = scene("uint8", 3000, 2000)
    warped = WarpedSource(source, coarser_grid(source.grid, 2), "average")
    warped.read(Window(600, 600, 3, 3), (1,))
    assert len(source.reads) == 1
    seen = source.reads[0]
    assert (seen.row, seen.col) >= (1024 - 8, 1024 - 8)
    assert seen.height <= 1024 + 16
    away = WarpedSource(source, Grid(Size(40, 40), source.place.moved(2990, 1990)), "bilinear")
    assert whole(away).valid.sum() == 100 - (~source.valid[-10:, -10:]).sum()
    far = WarpedSource(source, Grid(Size(40, 40), source.place.moved(9000, 0)), "average")
    source.reads.clear()
    assert not whole(far).valid.any()
    assert not source.reads


@pytest.mark.parametrize("wanted", [1.0, 0.25, 2.0, 8.0, 0.8795])
def test_what_is_known_of_it(wanted: float) -> None:
    for own in (0.499, 0.2528, 0.1, 1 / 3):
        source = replace(scene("uint8", 41, 60, "pixels"), microns=own)
        info = WarpedSource(source, coarser_grid(source.grid, wanted / own), "average").info
        assert info.microns == wanted
        assert info.georeference.transform == (wanted / own, 0, 0, 0, wanted / own, 0)
        assert info.resampling == "average"
        assert info.ground is not None
        assert np.allclose(info.ground.points[1], (40 * own / wanted, 60 * own / wanted, 3, 4, 0))
    assert coarser_grid(scene("uint8", 400, 601).grid, 2).size == Size(200, 301)


def test_it_goes_to_other_processes() -> None:
    warped = SOURCES["uint8", "bilinear", "other"]
    again = pickle.loads(pickle.dumps(warped))  # noqa: S301 - our own
    window = Window(100, 100, 50, 60)
    assert (again.read(window, (1,)).values == warped.read(window, (1,)).values).all()
    assert again.info == warped.info


class Broken(Placed):
    """Cannot be decoded."""

    def read(self, window: Window, bands: tuple[int, ...]) -> Pixels:
        raise undecodable("a.tif", window, f"bands {bands}")


def test_errors() -> None:
    source = scene("uint8")
    broken = Broken(source.values, source.valid)
    with pytest.raises(DecodingError):
        whole(WarpedSource(broken, coarser_grid(source.grid, 2), "average"))
    warped = WarpedSource(source, coarser_grid(source.grid, 2), "average")
    for window, bands in ((Window(0, 0, 76, 10), (1,)), (Window(0, 0, 1, 1), (3,)), (Window(-1, 0, 2, 2), (1,))):
        with pytest.raises(ValueError):
            warped.read(window, bands)
    pole = Grid(Size(10, 10), GeoReference(CRS.from_epsg(4326).to_wkt(), (1.0, 0.0, 0.0, 0.0, -1.0, 5000.0)))
    with refuses("grids-apart"):
        _ = WarpedSource(source, pole, "average").info


@pytest.mark.parametrize("place", PLACES)
def test_grids_of_the_same_pixels(place: str) -> None:
    grid = Grid(Size(30, 30), PLACES[place])
    assert same_pixels(part_of(grid, Window(-4, 7, 9, 9)), grid) == (-4, 7)
    assert same_pixels(part_of(grid, Window(2, 3, 900, 1200)), grid) == (2, 3)
    assert same_pixels(Grid(grid.size, grid.georeference.moved(0.5, 0)), grid) is None
    assert same_pixels(coarser_grid(grid, 2), grid) is None
    a, b, c, d, e, f = grid.georeference.transform
    turned = Grid(grid.size, replace(grid.georeference, transform=(b, a, c, e, d, f)))
    assert same_pixels(turned, grid) is None
    assert window_on(grid, part_of(grid, Window(-4, 7, 9, 12))) == Window(-4, 7, 9, 12)
