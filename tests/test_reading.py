"""Rows read ahead equal windows read at once, for every layout of a file; errors come through and threads end."""

import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from rasterio.windows import Window as RasterioWindow

from fcn_batch.pipeline.core.errors import InputError
from fcn_batch.pipeline.core.geometry import Size, Window
from fcn_batch.pipeline.core.source import RasterSource, SourceFile
from fcn_batch.pipeline.core.validity import is_valid
from fcn_batch.pipeline.raster.gdal import accept_pixel_space
from fcn_batch.pipeline.raster.rasterfile import RasterioSource
from fcn_batch.workflows.blocks.reading import RowReader, slab_rows, slabs_ahead
from tests.errors import refuses
from tests.patience import PATIENCE_S
from tests.rasters import noise, write_raster
from tests.sources import ArraySource, info_of, memory_raster

LAYOUTS: dict[str, dict[str, Any]] = {
    "rows": {"blockysize": 1},
    "strips": {"blockysize": 7},
    "tiles of 16": {"tiled": True, "blockxsize": 16, "blockysize": 16},
    "tiles of 256": {"tiled": True, "blockxsize": 256, "blockysize": 256, "compress": "deflate"},
    "one block": {"blockysize": 2000, "compress": "lzw"},
    "by pixel, with nodata": {"tiled": True, "blockxsize": 64, "blockysize": 64, "interleave": "pixel", "nodata": 7},
}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("layouts")
    return {
        name: write_raster(folder / f"{k}.tif", noise(3, 1400, 90, seed=k), **options)
        for k, (name, options) in enumerate(LAYOUTS.items())
    }


def _reading_threads() -> int:
    return sum(thread.name.startswith("reading") for thread in threading.enumerate())


def _valid(dataset: rasterio.DatasetReader, bands: tuple[int, ...], window: RasterioWindow) -> NDArray[np.bool_]:
    """Where one of the used bands is not nodata."""
    values = dataset.read(bands, window=window)
    return np.ones(values.shape[1:], np.bool_) if dataset.nodata is None else (values != dataset.nodata).any(axis=0)


@pytest.mark.parametrize("layout", LAYOUTS)
@settings(max_examples=15)
@given(data=st.data())
def test_rows_equal_windows(files: dict[str, Path], layout: str, data: st.DataObject) -> None:
    source, bands = RasterioSource(files[layout]), data.draw(st.sampled_from([(1, 2, 3), (3,), (2, 1)]))
    row, col = data.draw(st.integers(0, 1399)), data.draw(st.integers(0, 89))
    area = Window(row, col, data.draw(st.integers(1, 1400 - row)), data.draw(st.integers(1, 90 - col)))
    with accept_pixel_space():
        dataset = rasterio.open(files[layout])
    with dataset, RowReader(source, bands, area, data.draw(st.integers(1, 4))) as reader:
        start = data.draw(st.integers(area.row, area.stop_row - 1))
        kept = start
        for _ in range(data.draw(st.integers(1, 12))):
            stop = data.draw(st.integers(start + 1, min(start + 500, area.stop_row)))
            window = RasterioWindow(area.col, start, area.width, stop - start)
            pixels = reader.rows(start, stop)
            assert np.array_equal(pixels.values, dataset.read(bands, window=window))
            assert np.array_equal(pixels.valid, _valid(dataset, bands, window))
            window = RasterioWindow(area.col, kept, area.width, stop - kept)
            assert np.array_equal(is_valid(reader.reasons(kept, stop)), _valid(dataset, bands, window))
            kept = data.draw(st.integers(kept, stop))
            reader.release(kept)
            start = data.draw(st.integers(kept, stop))
            if start == area.stop_row:
                break
    assert _reading_threads() == 0
    source.close()


def _source(height: int, storage: int) -> ArraySource:
    source = memory_raster(height, 20)
    source.storage = (storage, 20)
    return source


@pytest.mark.parametrize("storage", [1, 7, 16, 256, 300, 1024, 1025, 5000])
@pytest.mark.parametrize(("top", "height"), [(0, 3000), (37, 2500), (2999, 1), (256, 256)])
def test_every_slab_is_read_once_and_ends_with_blocks(storage: int, top: int, height: int) -> None:
    source, area = _source(3000, storage), Window(top, 3, height, 11)
    with RowReader(source, (1, 2, 3), area) as reader:
        for row in range(top, area.stop_row, 64):
            reader.rows(row, min(row + 64, area.stop_row))
            reader.release(row)
    slab = slab_rows(source.info)
    assert [w.row for w in source.reads] == [top, *range((top // slab + 1) * slab, area.stop_row, slab)]
    assert sum(w.height for w in source.reads) == height
    assert all((w.col, w.width) == (3, 11) for w in source.reads)
    assert all(w.row % min(storage, slab) == 0 for w in source.reads[1:])


class _Together(ArraySource):
    """Reads when three others do, too."""

    others = threading.Barrier(4)

    def read(self, window: Window, bands: tuple[int, ...]) -> Any:
        self.others.wait(PATIENCE_S)
        return super().read(window, bands)


def test_several_slabs_are_read_at_once_and_come_in_order() -> None:
    good = memory_raster(2048, 20)
    source = _Together(good.values, good.valid)
    source.storage = (256, 20)
    with RowReader(source, (1, 2), Window(0, 0, 2048, 20), ahead=4) as reader:
        for row in range(0, 2048, 128):
            assert np.array_equal(reader.rows(row, row + 128).values, good.values[:2, row : row + 128])
            reader.release(row)
    assert sorted(window.row for window in source.reads) == list(range(0, 2048, 256)), "each of them once"


@pytest.mark.parametrize(
    ("place", "storage", "spare", "ahead"),
    [
        ("https://a.org/b.tif", 256, 10**9, 4),
        ("s3://bucket/b.tif", 256, 2500, 3),
        ("s3://bucket/b.tif", 256, 999, 1),
        ("s3://bucket/b.tif", 256, -1, 1),
        ("s3://bucket/b.tif", 4096, 10**9, 1),
        ("/here/b.tif", 256, 10**9, 1),
        ("/vsizip/here.zip/b.tif", 256, 10**9, 1),
    ],
)
def test_of_remote_rasters_as_much_is_read_ahead_as_memory_holds(
    place: str, storage: int, spare: int, ahead: int
) -> None:
    info = replace(info_of(Size(9000, 10), (storage, 10)), path=place, sources=())
    assert slabs_ahead(info, 1000, spare) == ahead
    warped = replace(info, resampling="bilinear")
    assert slabs_ahead(warped, 1000, spare) == 1
    assert slabs_ahead(replace(info, sources=(*info.sources, SourceFile(path="c.tif"))), 1000, spare) == 1


def test_a_slab_is_whole_blocks_or_a_few_hundred_rows() -> None:
    rows = {1: 256, 7: 259, 16: 256, 255: 510, 256: 256, 257: 257, 1024: 1024, 1025: 256}
    assert {height: slab_rows(info_of(Size(9000, 10), (height, 10))) for height in rows} == rows


def test_what_is_released_is_let_go() -> None:
    """And a reader begins where it is first asked."""
    source = _source(3000, 16)
    with RowReader(source, (1,), Window(0, 0, 3000, 20)) as reader:
        assert reader.rows(1000, 1001).values.shape == (1, 1, 20)
        for row in range(1000, 3000, 100):
            reader.rows(row, row + 100)
            reader.release(row + 100)
            assert len(reader._slabs) <= 1
    assert source.reads[0] == Window(1000, 0, 24, 20)


class _Damaged(ArraySource):
    """Cannot be decoded from row 512 on."""

    def read(self, window: Window, bands: tuple[int, ...]) -> Any:
        if window.stop_row > 512:
            raise InputError("pixels-unreadable", "cannot be decoded; get an undamaged copy")
        return super().read(window, bands)


def test_errors_come_when_the_rows_are_asked_for() -> None:
    good = memory_raster(2000, 10)
    with RowReader(_Damaged(good.values, good.valid), (1,), Window(0, 0, 2000, 10)) as reader:
        assert np.array_equal(reader.rows(0, 512).values[0], good.values[0, :512])
        for _ in range(2):
            with refuses("pixels-unreadable"):
                reader.rows(500, 513)
        reader.release(400)
        assert np.array_equal(reader.rows(400, 512).values[0], good.values[0, 400:512]), "what was good still is"
    assert _reading_threads() == 0


def _read_all(source: RasterSource, stop_at: int) -> None:
    size = source.info.size
    with RowReader(source, (1,), Window(0, 0, size.height, size.width)) as reader:
        for row in range(0, size.height, 100):
            reader.rows(row, min(row + 100, size.height))
            reader.release(row)
            if row == stop_at:
                raise KeyboardInterrupt


def test_threads_end_when_the_user_does_and_when_a_file_is_damaged(files: dict[str, Path], tmp_path: Path) -> None:
    source = _source(3000, 16)
    with pytest.raises(KeyboardInterrupt):
        _read_all(source, stop_at=200)
    assert _reading_threads() == 0
    assert len(source.reads) <= 3, "no more than one slab ahead"
    damaged, content = tmp_path / "damaged.tif", bytearray(files["tiles of 256"].read_bytes())
    middle = len(content) // 2
    content[middle : middle + 4000] = bytes(4000)
    damaged.write_bytes(content)
    with refuses("pixels-unreadable"):
        _read_all(RasterioSource(damaged), stop_at=-1)
    assert _reading_threads() == 0
