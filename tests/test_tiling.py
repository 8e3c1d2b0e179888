"""The laws of the cut: nothing twice, nothing missing, everything on the network's grid."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from fcn_batch.pipeline.geometry import Size, Window
from fcn_batch.pipeline.tiling import Axis, BlockGrid, exact_tiles

SIDES = st.integers(1, 40)
SIZES = st.builds(Size, height=SIDES, width=SIDES)


@st.composite
def axes(draw: st.DrawFn) -> Axis:
    """Any valid axis, overlaps of nothing and of half a tile included."""
    tile = draw(st.integers(1, 17))
    return Axis(length=draw(st.integers(1, 70)), tile=tile, overlap=draw(st.integers(0, tile // 2)))


def _visits(size: Size, windows: list[Window]) -> NDArray[np.int64]:
    """How many of the windows hold each pixel of the raster."""
    visits = np.zeros((size.height, size.width), np.int64)
    for window in windows:
        assert window == window.clipped(size), "a window leaves the raster"
        visits[window.slices()] += 1
    return visits


@given(SIZES, SIDES)
def test_blocks_partition_the_raster(size: Size, block: int) -> None:
    grid = BlockGrid(size, block)
    windows = [grid[index] for index in range(len(grid))]
    assert (_visits(size, windows) == 1).all()
    assert all(window.row % block == 0 == window.col % block for window in windows)
    assert windows == sorted(windows, key=lambda w: (w.row, w.col))


def test_blocks_outside_the_raster_do_not_exist() -> None:
    grid = BlockGrid(Size(10, 10), block=4)
    for index in (-1, 9):
        with pytest.raises(IndexError, match=f"block {index} of 9"):
            grid[index]
    with pytest.raises(ValueError, match="got 0"):
        BlockGrid(Size(10, 10), block=0)


@given(SIZES, st.integers(1, 4), st.integers(1, 5), st.integers(1, 3), st.integers(0, 3))
def test_exact_tiles(size: Size, stride: int, blocks: int, cores: int, halos: int) -> None:
    tile, halo = stride * cores, stride * halos
    grid = BlockGrid(size, stride * blocks)
    for index in range(len(grid)):
        block = grid[index]
        tiles = list(exact_tiles(size, block, tile, halo))
        inside = _visits(size, [t.core for t in tiles])
        assert (inside[block.slices()] == 1).all()
        assert inside.sum() == block.pixels, "a core leaves its block"
        for t in tiles:
            assert t.read == t.core.padded(halo).clipped(size)
            assert t.core.intersection(t.read) == t.core
            starts = (t.core.row, t.core.col, t.read.row, t.read.col)
            assert all(start % stride == 0 for start in starts)


@given(axes())
def test_tiles_of_an_axis_cover_it(axis: Axis) -> None:
    spans = [axis.span(index) for index in range(axis.count)]
    visits = np.zeros(axis.length, np.int64)
    for start, stop in spans:
        assert 0 <= start < stop <= axis.length
        visits[start:stop] += 1
    assert set(visits.tolist()) <= {1, 2}
    for (_, stop), (start, _) in pairwise(spans):
        assert stop - start == axis.overlap, "neighbours share exactly the overlap"
    assert all(stop - start == axis.tile for start, stop in spans[:-1]), "only the last tile is shorter"


@given(axes(), st.data())
def test_touching_is_what_a_search_finds(axis: Axis, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, axis.length - 1))
    stop = data.draw(st.integers(start + 1, axis.length))
    spans = [axis.span(index) for index in range(axis.count)]
    expected = [k for k, (first, last) in enumerate(spans) if first < stop and start < last]
    assert list(axis.touching(start, stop)) == expected


@pytest.mark.parametrize(("length", "tile", "overlap"), [(0, 4, 0), (4, 0, 0), (9, 4, 3), (9, 4, -1)])
def test_axes_that_cannot_be_are_refused(length: int, tile: int, overlap: int) -> None:
    with pytest.raises(ValueError, match=f"length={length}, tile={tile}, overlap={overlap}"):
        Axis(length, tile, overlap)
