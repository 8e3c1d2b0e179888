"""A source with holes: against an oracle that looks at each block; what is tried again, remembered and reported."""

import math
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fcn_batch.pipeline.core.errors import DecodingError, InputError
from fcn_batch.pipeline.core.geometry import Window
from fcn_batch.pipeline.core.source import Pixels, RasterSource, undecodable
from fcn_batch.pipeline.core.tolerance import OnError, TolerantSource
from fcn_batch.pipeline.raster.rasterfile import RasterioSource
from tests.errors import refuses
from tests.rasters import noise, write_raster
from tests.sources import ArraySource

MASK = OnError(mask=True)


@dataclass
class Damaged(ArraySource):
    """A raster in memory, some blocks of which cannot be read; or whose first reads fail by `outages`."""

    bad: set[tuple[int, int, int]] = field(default_factory=set)
    """Row and column of the block, and the band."""
    outages: list[Exception] = field(default_factory=list)

    def read(self, window: Window, bands: tuple[int, ...]) -> Pixels:
        pixels = super().read(window, bands)
        if self.outages:
            raise self.outages.pop(0)
        assert self.storage is not None
        (rows, cols), damaged = self.storage, []
        for row, col, band in self.bad:
            across = window.row < (row + 1) * rows and row * rows < window.stop_row
            if band in bands and across and window.col < (col + 1) * cols and col * cols < window.stop_col:
                damaged.append((row, col))
        if damaged:
            raise undecodable("/memory.tif", window, f"blocks {damaged}")
        return pixels


def damaged(height: int, width: int, storage: tuple[int, int], bad: set[tuple[int, int, int]]) -> Damaged:
    valid = np.random.default_rng(0).random((height, width)) > 0.1
    return Damaged(noise(3, height, width), valid, storage, bad=bad)


def no_sleep(_: float) -> None:
    """What a test waits for."""


def whole(source: RasterSource, *bands: int) -> Pixels:
    size = source.info.size
    return source.read(Window(0, 0, size.height, size.width), bands or (1, 2, 3))


_source: type[RasterSource] = TolerantSource  # mypy proves that it is one


@given(st.data())
def test_every_block_by_itself(data: st.DataObject) -> None:
    height, width = data.draw(st.integers(1, 30)), data.draw(st.integers(1, 30))
    rows, cols = data.draw(st.integers(1, 35)), data.draw(st.integers(1, 9))
    blocks = [(r, c) for r in range(math.ceil(height / rows)) for c in range(math.ceil(width / cols))]
    some = st.lists(st.sampled_from(blocks), unique=True, max_size=len(blocks))
    bad = set(data.draw(some))
    source = damaged(height, width, (rows, cols), {(*block, data.draw(st.integers(1, 2))) for block in bad})
    tolerant = TolerantSource(source, MASK)
    found: set[tuple[int, int]] = set()
    for _ in range(data.draw(st.integers(1, 4))):
        row, col = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
        window = Window(row, col, data.draw(st.integers(1, height - row)), data.draw(st.integers(1, width - col)))
        pixels = tolerant.read(window, (2, 1))
        values, valid = source.values[[1, 0]][:, *window.slices()].copy(), source.valid[window.slices()].copy()
        touched = set()
        for r in range(window.height):
            for c in range(window.width):
                block = ((row + r) // rows, (col + c) // cols)
                touched.add(block)
                if block in bad:
                    values[:, r, c], valid[r, c] = 0, False
        found |= touched & bad
        assert pixels.values.dtype == values.dtype
        assert (pixels.values == values).all()
        assert (pixels.valid == valid).all()
        expected = [
            Window(r * rows, c * cols, min(rows, height - r * rows), min(cols, width - c * cols))
            for r, c in sorted(found & touched)
        ]
        assert tolerant.unreadable(window) == tuple(expected)
    source.bad.clear()
    remembered = source.valid.copy()
    for r, c in found:
        remembered[r * rows : (r + 1) * rows, c * cols : (c + 1) * cols] = False
    assert (whole(tolerant, 3).valid == remembered).all()


def test_one_bad_block_of_many_costs_few_reads() -> None:
    source = damaged(200, 200, (2, 2), {(37, 81, 2)})
    tolerant = TolerantSource(source, MASK)
    assert (~whole(tolerant).valid & source.valid).sum() == source.valid[74:76, 162:164].sum()
    assert len(source.reads) <= 1 + 2 * math.ceil(math.log2(100 * 100))
    assert sum(window.pixels for window in source.reads) <= 3 * 200 * 200
    source.reads.clear()
    whole(tolerant)
    hole = Window(74, 162, 2, 2)
    assert sum(window.pixels for window in source.reads) == 200 * 200 - hole.pixels, "each sound pixel once, no other"


def test_nothing_bad_costs_nothing() -> None:
    source = damaged(20, 20, (2, 2), set())
    tolerant = TolerantSource(source, MASK)
    assert (whole(tolerant).values == source.values).all()
    assert len(source.reads) == 1
    assert tolerant.unreadable(Window(-5, -5, 100, 100)) == ()


def test_a_bad_strip_is_bad_for_every_lane() -> None:
    source = damaged(100, 40, (50, 40), {(1, 0, 1)})
    tolerant = TolerantSource(source, MASK)
    assert not tolerant.read(Window(60, 0, 30, 10), (1,)).valid.any()
    source.bad.clear()
    assert not tolerant.read(Window(55, 30, 10, 10), (1,)).valid.any(), "the same hole for who comes later"
    assert tolerant.unreadable(Window(99, 39, 1, 1)) == (Window(50, 0, 50, 40),)
    assert tolerant.unreadable(Window(0, 0, 50, 40)) == ()


def test_only_wanted_bands_matter_and_then_all_suffer() -> None:
    source = damaged(20, 20, (10, 10), {(0, 1, 3)})
    tolerant = TolerantSource(source, MASK)
    assert (whole(tolerant, 1, 2).valid == source.valid).all()
    whole(tolerant, 3, 1)
    assert not whole(tolerant, 1, 2).valid[:10, 10:].any()


def test_without_mask_the_error_tells_of_it() -> None:
    tolerant = TolerantSource(damaged(20, 20, (10, 10), {(0, 1, 3)}), OnError())
    with pytest.raises(DecodingError, match="--on-error mask") as caught:
        whole(tolerant)
    assert caught.value.code == "pixels-unreadable", "as the source has it"
    assert whole(tolerant, 1).valid.any(), "other reads are not touched"
    assert tolerant.unreadable(Window(0, 0, 20, 20)) == ()


@pytest.mark.parametrize("policy", ["retry:3", "retry:3,mask"])
def test_an_outage_is_waited_for(policy: str) -> None:
    source, slept = damaged(20, 20, (10, 10), set()), list[float]()
    source.outages = [
        DecodingError("pixels-unreadable", "away"),
        InputError("input-missing", "gone"),
        DecodingError("pixels-unreadable", "away"),
    ]
    tolerant = TolerantSource(source, OnError.parse(policy), slept.append)
    assert (whole(tolerant).valid == source.valid).all()
    assert slept == [1, 2, 4]
    assert tolerant.unreadable(Window(0, 0, 20, 20)) == ()


def test_tries_have_an_end() -> None:
    source, slept = damaged(20, 20, (10, 10), {(0, 0, 1)}), list[float]()
    with pytest.raises(DecodingError, match="--on-error mask"):
        whole(TolerantSource(source, OnError(retries=7), slept.append))
    assert slept == [1, 2, 4, 8, 16, 30, 30]
    assert len(source.reads) == 8


def test_sound_blocks_next_to_bad_ones_are_tried_again_too() -> None:
    source, slept = damaged(40, 40, (10, 10), {(2, 1, 1), (3, 1, 1), (0, 0, 1)}), list[float]()

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == 4:
            source.bad.discard((0, 0, 1))

    tolerant = TolerantSource(source, OnError(retries=2, mask=True), sleep)
    assert (whole(tolerant).valid[:10, :10] == source.valid[:10, :10]).all(), "it came back"
    assert tolerant.unreadable(Window(0, 0, 40, 40)) == (Window(20, 10, 10, 10), Window(30, 10, 10, 10))
    assert slept == [1, 2, 1, 2], "once for all blocks"
    whole(tolerant)
    assert len(slept) == 4, "what is known to be bad is not waited for"


@pytest.mark.parametrize("policy", ["fail", "mask", "retry:2,mask"])
def test_a_file_that_cannot_be_opened_is_an_error(policy: str) -> None:
    source, slept = damaged(20, 20, (10, 10), {(0, 0, 1)}), list[float]()
    source.outages = [InputError("input-missing", "gone")]
    with pytest.raises(InputError, match=r"^gone$") as caught:
        whole(TolerantSource(source, OnError.parse(policy), slept.append))
    assert not isinstance(caught.value, DecodingError)
    assert slept == []


def test_a_file_that_vanishes_while_it_is_tried_again_is_an_error() -> None:
    source = damaged(20, 20, (10, 10), set())
    source.outages = [DecodingError("pixels-unreadable", "away"), InputError("input-missing", "gone")]
    with refuses("input-missing"):
        whole(TolerantSource(source, OnError(retries=1, mask=True), no_sleep))


@pytest.mark.parametrize("window", [Window(-1, 0, 5, 5), Window(15, 0, 10, 5), Window(0, 18, 5, 5)])
def test_windows_outside_are_refused_though_holes_are_known(window: Window) -> None:
    tolerant = TolerantSource(damaged(20, 20, (10, 10), {(0, 0, 1), (1, 0, 1), (0, 1, 1)}), MASK)
    whole(tolerant)
    with pytest.raises(ValueError):
        tolerant.read(window, (1,))


def test_many_threads_see_the_same_holes() -> None:
    rng = np.random.default_rng(3)
    bad = {(int(r), int(c), 1) for r, c in rng.integers(0, 20, (40, 2))}
    source = damaged(200, 200, (10, 10), bad)
    tolerant, start = TolerantSource(source, MASK), threading.Barrier(8)

    def read(_: int) -> bytes:
        start.wait()
        return whole(tolerant).valid.tobytes()

    with ThreadPoolExecutor(8) as threads:
        assert len(set(threads.map(read, range(8)))) == 1
    assert len(tolerant.unreadable(Window(0, 0, 200, 200))) == len(bad)


def test_a_copy_for_another_process_starts_afresh() -> None:
    tolerant = TolerantSource(damaged(40, 40, (10, 10), {(0, 0, 1)}), OnError(1, mask=True), no_sleep)
    assert not whole(tolerant).valid[:10, :10].any()
    copy = pickle.loads(pickle.dumps(tolerant))  # noqa: S301
    assert isinstance(copy, TolerantSource)
    assert copy.unreadable(Window(0, 0, 40, 40)) == ()
    assert (whole(copy).valid == whole(tolerant).valid).all()
    assert copy.unreadable(Window(0, 0, 40, 40)) == (Window(0, 0, 10, 10),)


def test_closing_keeps_what_was_found(tmp_path: Path) -> None:
    path = write_raster(tmp_path / "a.tif", noise(1, 40, 40), tiled=True, blockxsize=16, blockysize=16)
    source = RasterioSource(path)
    info, content = source.info, path.read_bytes()
    path.write_bytes(content[:-16])
    tolerant = TolerantSource(source, MASK)
    assert tolerant.info == info
    whole(tolerant, 1)
    tolerant.close()
    path.write_bytes(content)
    assert np.argwhere(~whole(tolerant, 1).valid).min(axis=0).tolist() == [32, 32]
