"""Several rasters as one: on each pixel the first that has data there, on the grid of the first."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from rasterio import Affine
from rasterio.enums import Resampling as Kernel
from rasterio.warp import reproject

from fcn_batch.pipeline.core.errors import InputError
from fcn_batch.pipeline.core.geometry import Size, Window
from fcn_batch.pipeline.core.location import Mosaic
from fcn_batch.pipeline.core.plan import InputIdentity
from fcn_batch.pipeline.core.source import Pixels, RasterSource
from fcn_batch.pipeline.raster.gdal import accept_pixel_space
from fcn_batch.pipeline.raster.rasterfile import RasterioSource
from fcn_batch.workflows.inputs.identity import identify
from fcn_batch.workflows.inputs.sources import find_source, in_colours, resampled, source_of
from tests.errors import refuses
from tests.patience import PATIENCE_S
from tests.rasters import noise, write_raster

LEFT, TOP = 5e5, 5e6


def piece(path: Path, row: float, col: float, values: NDArray[Any], *, step: float = 10.0, **profile: Any) -> Path:
    """A raster whose first pixel's corner is so many 10 m pixels below and right of (LEFT, TOP)."""
    place = Affine(step, 0, LEFT + 10 * col, 0, -step, TOP - 10 * row)
    return write_raster(path, values, **{"crs": "EPSG:32633", "transform": place, **profile})


def mosaic(*parts: Path) -> RasterSource:
    return find_source(Mosaic("all", parts))


def whole(source: RasterSource, bands: tuple[int, ...] = (1, 2, 3)) -> Pixels:
    size = source.info.size
    return source.read(Window(0, 0, size.height, size.width), bands)


@given(st.data())
@settings(max_examples=25)
def test_the_first_with_data_is_seen(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    folder = tmp_path_factory.mktemp("m")
    count = data.draw(st.integers(2, 5))
    places = [(data.draw(st.integers(-60, 60)), data.draw(st.integers(-60, 60))) for _ in range(count)]
    sizes = [(data.draw(st.integers(1, 50)), data.draw(st.integers(1, 50))) for _ in range(count)]
    top, left = (min(place[axis] for place in places) for axis in (0, 1))
    bottom, right = (max(p[axis] + s[axis] for p, s in zip(places, sizes, strict=True)) for axis in (0, 1))
    expected = np.zeros((3, bottom - top, right - left), np.uint8)
    files = []
    for k, ((row, col), (height, width)) in enumerate(zip(places, sizes, strict=True)):
        values = noise(3, height, width, seed=k)
        values[:, np.random.default_rng(k).random((height, width)) < 0.3] = 0
        files.append(piece(folder / f"{k}.tif", row, col, values, nodata=0))
        under = expected[:, row - top : row - top + height, col - left : col - left + width]
        np.copyto(under, values, where=~under.any(axis=0))
    found = mosaic(*files)
    assert found.info.size == Size(bottom - top, right - left)
    assert found.info.georeference.transform == (10.0, 0.0, LEFT + 10 * left, 0.0, -10.0, TOP - 10 * top)
    pixels = whole(found)
    assert (pixels.valid == expected.any(axis=0)).all()
    assert (pixels.values[:, pixels.valid] == expected[:, pixels.valid]).all()
    row, col = data.draw(st.integers(0, bottom - top - 1)), data.draw(st.integers(0, right - left - 1))
    window = Window(row, col, 30, 30).clipped(found.info.size)
    part = found.read(window, (3, 1))
    assert (part.values == pixels.values[[2, 0]][(slice(None), *window.slices())]).all()
    assert (part.valid == pixels.valid[window.slices()]).all()


def smooth(rows: NDArray[Any], cols: NDArray[Any]) -> NDArray[np.uint8]:
    """What the ground looks like at 10 m rows and columns: three bands."""
    bands = [100 + 60 * np.sin(rows / 23) + 40 * np.cos(cols / (17 + k)) for k in range(3)]
    return np.stack(bands).round().astype(np.uint8)


@pytest.mark.parametrize(
    ("row", "col", "step"), [(40.5, 60, 10), (40, 59.5, 10), (40.25, 60.7, 10), (40, 60, 20), (40, 60, 5)]
)
def test_other_grids_show_the_same_ground(tmp_path: Path, row: float, col: float, step: float) -> None:
    own = np.mgrid[:100, :100] + 0.5
    there = (np.mgrid[:80, :90] + 0.5) * step / 10 + np.array([row, col])[:, None, None]
    first = piece(tmp_path / "a.tif", 0, 0, smooth(*own))
    second = piece(tmp_path / "b.tif", row, col, smooth(*there), step=step)
    found = mosaic(first, second)
    bottom, right = (np.ceil(at + side * step / 10) for at, side in ((row, 80), (col, 90)))
    assert found.info.size == Size(max(100, int(bottom)), max(100, int(right)))
    pixels = whole(found)
    ground = smooth(*(np.mgrid[: found.info.size.height, : found.info.size.width] + 0.5))
    assert (pixels.values[:, :100, :100] == smooth(*own)).all()
    assert pixels.valid[101 : int(bottom) - 1, int(col) + 2 : int(right) - 1].all()
    assert not pixels.valid[101:, : int(col)].any()
    differ = np.abs(pixels.values.astype(int) - ground)[:, pixels.valid]
    assert differ.max() <= 5  # a slope of 4 in each pixel
    assert differ.mean() < 1


def test_a_piece_in_another_system(tmp_path: Path) -> None:
    values = smooth(*(np.mgrid[:200, :200] + 0.5))
    first, all_of_it = (piece(tmp_path / f"{n}.tif", 0, 0, values[..., :n]) for n in (100, 200))
    place = Affine(1e-4, 0, 14.99, 0, -1e-4, 45.16)
    with rasterio.open(all_of_it) as dataset:
        degrees = np.zeros((3, 240, 380), np.uint8)
        reproject(values, degrees, dataset.transform, src_crs=dataset.crs, dst_transform=place, dst_crs="EPSG:4326",
                  resampling=Kernel.bilinear, dst_nodata=0)  # fmt: skip
    write_raster(tmp_path / "d.tif", degrees, crs="EPSG:4326", transform=place, nodata=0)
    found = mosaic(first, tmp_path / "d.tif")
    pixels, (_, _, left, _, _, top) = whole(found), found.info.georeference.transform
    row, col = round((TOP - top) / 10), round((LEFT - left) / 10)
    assert (row, col) != (0, 0)
    here = (slice(-row, 200 - row), slice(col, col + 200))
    assert pixels.valid[here][:, :198].mean() > 0.98
    assert (pixels.values[(slice(None), *here)][..., :100] == values[..., :100]).all()
    differ = np.abs(pixels.values[(slice(None), *here)].astype(int) - values)[:, pixels.valid[here]]
    assert differ.max() <= 12  # at borders of what had data in degrees
    assert differ.mean() < 1


def test_few_pieces_are_read_for_a_window(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = [piece(tmp_path / f"{k}.tif", 8 * (k // 15), 8 * (k % 15), noise(3, 8, 8, seed=k)) for k in range(225)]
    found = mosaic(*files)
    reads: list[str] = []
    proper = RasterioSource.read

    def read(self: RasterioSource, window: Window, bands: tuple[int, ...]) -> Pixels:
        reads.append(self.info.path)
        return proper(self, window, bands)

    monkeypatch.setattr(RasterioSource, "read", read)
    part = found.read(Window(6, 6, 4, 4), (1,))
    assert sorted(reads) == sorted(str(files[k]) for k in (0, 1, 15, 16))
    assert part.values[0, 0, 0] == noise(3, 8, 8, seed=0)[0, 6, 6]
    assert part.values[0, 3, 3] == noise(3, 8, 8, seed=16)[0, 1, 1]
    reads.clear()
    assert not find_source(Mosaic("far", (files[0], files[224]))).read(Window(40, 40, 9, 9), (1,)).valid.any()
    assert not reads


READ_AGAIN = """
import sys
import numpy as np
from fcn_batch.pipeline.core.geometry import Window
from fcn_batch.pipeline.core.plan import InputIdentity
from fcn_batch.workflows.inputs.sources import source_of
source = source_of(InputIdentity.model_validate_json(open(sys.argv[1]).read()))
size = source.info.size
pixels = source.read(Window(0, 0, size.height, size.width), (1, 2, 3))
np.savez(sys.argv[2], values=pixels.values, valid=pixels.valid)
"""


@pytest.mark.parametrize("factor", [1.0, 2.37])
def test_another_process_reads_the_same(tmp_path: Path, factor: float) -> None:
    first = piece(tmp_path / "a.tif", 0, 0, noise(3, 70, 60))
    others = [piece(tmp_path / "b.tif", 30.3, 45, noise(3, 70, 60)), piece(tmp_path / "c.tif", -9, -9, noise(3, 9, 9))]
    source = resampled(mosaic(first, *others), factor)
    assert (source.info.resampling is None) == (factor == 1)
    identity = identify(source.info)
    (tmp_path / "identity.json").write_text(identity.model_dump_json())
    command = [sys.executable, "-c", READ_AGAIN, tmp_path / "identity.json", tmp_path / "pixels.npz"]
    subprocess.run([str(part) for part in command], check=True, timeout=PATIENCE_S)
    with np.load(tmp_path / "pixels.npz") as again:
        pixels = whole(source)
        assert pixels.valid.any()
        assert (again["values"] == pixels.values).all()
        assert (again["valid"] == pixels.valid).all()
    assert identify(source_of(identity).info) == identity


def test_palettes_become_colours_before_they_are_averaged(tmp_path: Path) -> None:
    colours = {0: (0, 0, 200, 255), 1: (200, 0, 0, 255), 2: (0, 200, 0, 255)}
    files = []
    for name, row in (("a", 0.0), ("b", 20.5)):
        numbers = np.full((1, 20, 20), 0, np.uint8)
        numbers[:, ::2] = 2
        files.append(piece(tmp_path / f"{name}.tif", row, 0, numbers))
        with rasterio.open(files[-1], "r+") as dataset:
            dataset.write_colormap(1, colours)
    source = in_colours(mosaic(*files))
    pixels = whole(source)
    assert pixels.values[0].max() == 0  # no red: it is not between blue and green
    assert (pixels.values[:, 25, 5] == (0, 100, 100)).all()
    again = whole(source_of(identify(source.info)))
    assert (again.values == pixels.values).all()


def test_what_is_refused(tmp_path: Path) -> None:
    first = piece(tmp_path / "a.tif", 0, 0, noise(3, 20, 20))
    nowhere = write_raster(tmp_path / "nowhere.tif", noise(3, 20, 20))
    for other, code in (
        (piece(tmp_path / "bands.tif", 0, 0, noise(4, 20, 20)), "mosaic-differs"),
        (piece(tmp_path / "type.tif", 0, 0, noise(3, 20, 20, "uint16")), "mosaic-differs"),
        (nowhere, "mosaic-differs"),
        (piece(tmp_path / "none.tif", 0, 0, noise(3, 20, 20), crs=None), "mosaic-differs"),
        (piece(tmp_path / "far.tif", 4e7, 0, noise(3, 20, 20)), "mosaic-too-large"),
    ):
        with refuses(code):
            mosaic(first, other)
        with pytest.raises(InputError):
            mosaic(other, first)
    again = write_raster(tmp_path / "nowhere2.tif", noise(3, 20, 20), transform=Affine(2, 0, 9, 0, -2, 9))
    second = write_raster(tmp_path / "nowhere3.tif", noise(3, 20, 20))
    with refuses("mosaic-differs", path=nowhere):
        mosaic(nowhere, again)
    for path in (nowhere, second):
        with accept_pixel_space(), rasterio.open(path, "r+") as dataset:
            dataset.build_overviews([2])
    with refuses("mosaic-differs"):
        find_source(Mosaic("m", (nowhere, second)), 1)
    scaled = piece(tmp_path / "scaled.tif", 0, 0, noise(3, 20, 20))
    with rasterio.open(scaled, "r+") as dataset:
        dataset.scales = (0.1, 0.1, 0.1)
    with refuses("mosaic-differs", path=scaled):
        mosaic(first, scaled)
    named = piece(tmp_path / "named.tif", 0, 0, noise(3, 20, 20))
    with rasterio.open(named, "r+") as dataset:
        dataset.descriptions = ("B04", "B03", "B02")
    with refuses("mosaic-differs", path=named):
        mosaic(first, named)


def test_identities_tell_the_pieces_and_their_order(tmp_path: Path) -> None:
    files = [piece(tmp_path / f"{k}.tif", 0, 5 * k, noise(3, 9, 9, seed=k)) for k in range(2)]
    one, other = (identify(mosaic(*order).info) for order in (files, files[::-1]))
    assert isinstance(one, InputIdentity)
    assert [Path(file.path).name for file in one.sources] == ["0.tif", "1.tif"]
    assert [file.name for file in one.files] == ["0.tif", "1.tif"]
    assert one != other
