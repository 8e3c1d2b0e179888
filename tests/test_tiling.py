"""The laws of the cut: nothing twice, nothing missing, everything on the network's grid."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from fcn_batch.pipeline.core.geometry import Size, Window
from fcn_batch.pipeline.core.tiling import Axis, BlockGrid, Descent, exact_tiles, lane_columns, works

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


@given(SIZES, SIDES, SIDES)
def test_blocks_partition_the_raster(size: Size, height: int, width: int) -> None:
    grid = BlockGrid(size, height, width)
    windows = [grid[index] for index in range(len(grid))]
    assert (_visits(size, windows) == 1).all()
    assert all(window.row % height == 0 == window.col % width for window in windows)
    assert windows == sorted(windows, key=lambda w: (w.row, w.col))
    assert grid.columns == len({window.col for window in windows})


def test_blocks_outside_the_raster_do_not_exist() -> None:
    grid = BlockGrid(Size(10, 10), height=4, width=5)
    for index in (-1, 6):
        with pytest.raises(IndexError):
            grid[index]
    for height, width in ((0, 4), (4, 0)):
        with pytest.raises(ValueError, match=f"{height}x{width}"):
            BlockGrid(Size(10, 10), height, width)


@given(SIZES, st.integers(1, 8), st.integers(1, 40), st.integers(1, 5), st.data())
def test_works_hold_every_wanted_block_once(
    size: Size, height: int, width: int, rows: int, data: st.DataObject
) -> None:
    grid, segment = BlockGrid(size, height, width), rows * height
    wanted = data.draw(st.permutations(range(len(grid))))[: data.draw(st.integers(0, len(grid)))]
    passes = works(grid, segment, wanted)
    assert sorted(block for blocks in passes for block in blocks) == sorted(wanted)
    for blocks in passes:
        windows = [grid[block] for block in blocks]
        assert len({window.col for window in windows}) == 1, "a pass stays in its lane"
        assert len({window.row // segment for window in windows}) == 1, "a pass stays in its segment"
        assert all(upper.stop_row == lower.row for upper, lower in pairwise(windows)), "without gaps, downwards"
    joined = {(a[-1], b[0]) for a in passes for b in passes}
    below = {(b, b + grid.columns) for b in wanted if grid[b].stop_row % segment}
    assert not joined & below, "what can be done in one pass is"


@given(SIZES, st.integers(1, 8), st.integers(1, 40), st.integers(1, 5))
def test_works_go_down_segment_by_segment(size: Size, height: int, width: int, rows: int) -> None:
    """Of the whole raster: every pass is a whole segment, and what is above is begun first."""
    grid, segment = BlockGrid(size, height, width), rows * height
    tops = [grid[blocks[0]] for blocks in works(grid, segment, range(len(grid)))]
    assert [(w.row, w.col) for w in tops] == [
        (row, col) for row in range(0, size.height, segment) for col in range(0, size.width, width)
    ]


@given(st.integers(1, 4), st.integers(1, 6), st.integers(0, 5), st.integers(1, 6), st.integers(0, 60), st.data())
def test_a_descent_begins_far_enough_above(
    stride: int, strips: int, halos: int, warm: int, row: int, data: st.DataObject
) -> None:
    strip, halo = stride * strips, stride * halos
    warm_up, bottom = strip * warm, stride * 200
    segment = Window(stride * row, 0, bottom - stride * row, 1)
    descent = Descent.of(segment, bottom, strip, halo, warm_up)
    assert descent.top == max(0, segment.row - halo)
    wanted = data.draw(st.integers(segment.row, segment.stop_row - 1))
    start = descent.start(wanted)
    assert (start - descent.top) % strip == 0, "strips are the same wherever a pass begins"
    assert start == descent.top or start + warm_up <= wanted - halo, "every layer is in flow before it looks"
    assert start + strip + warm_up > wanted - halo, "and no pass begins higher than it must"
    rows = start
    while True:
        height, last = descent.rows(rows)
        rows += height
        assert last == (rows == bottom)
        if last:
            break
        assert height == strip


@given(SIZES, st.integers(1, 40), st.integers(0, 20), st.integers(1, 8), st.data())
def test_a_lane_sees_its_halo_inside_the_padded_raster(
    size: Size, width: int, halo: int, stride: int, data: st.DataObject
) -> None:
    grid = BlockGrid(size, height=8, width=width)
    block = grid[data.draw(st.integers(0, len(grid) - 1))]
    end = -(-size.width // stride) * stride
    left, right = lane_columns(block, halo, size.width, stride)
    seen, wanted = range(left, right), range(block.col - halo, block.stop_col + halo)
    assert list(seen) == [col for col in wanted if 0 <= col < end]


@given(SIZES, st.integers(1, 4), st.integers(1, 3), st.integers(0, 3), st.data())
def test_exact_tiles(size: Size, stride: int, cores: int, halos: int, data: st.DataObject) -> None:
    tile, halo = stride * cores, stride * halos
    row, col = data.draw(st.integers(0, size.height - 1)), data.draw(st.integers(0, size.width - 1))
    part = Window(row, col, data.draw(SIDES), data.draw(SIDES)).clipped(size)
    rows = list(exact_tiles(size, part, tile, halo))
    tiles = [t for row_of_tiles in rows for t in row_of_tiles]
    inside = _visits(size, [t.core for t in tiles])
    assert (inside[part.slices()] == 1).all()
    assert inside.max() == 1
    for row_of_tiles in rows:
        assert len({(t.core.row, t.core.height, t.read.row, t.read.height) for t in row_of_tiles}) == 1
        assert [t.core.col for t in row_of_tiles] == sorted(t.core.col for t in row_of_tiles)
    assert [row_of_tiles[0].core.row for row_of_tiles in rows] == sorted({t.core.row for t in tiles})
    for t in tiles:
        assert t.core == Window(t.core.row, t.core.col, tile, tile).clipped(size), "the same whatever part is asked for"
        assert (t.core.row % tile, t.core.col % tile) == (0, 0)
        t.core.intersection(part)  # raises when it need not be computed at all
        assert t.read == t.core.padded(halo).clipped(size)
        assert t.core.intersection(t.read) == t.core
        assert all(start % stride == 0 for start in (t.read.row, t.read.col))


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
