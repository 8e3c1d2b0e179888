"""Passes over rasters in memory: the classes of the whole image, and the same ones whatever part is asked for."""

from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fcn_batch.pipeline.core.geometry import Size, Window, round_up
from fcn_batch.pipeline.core.plan import Cut
from fcn_batch.pipeline.core.tiling import BlockGrid, Descent, works
from fcn_batch.pipeline.network.capture import capture
from fcn_batch.pipeline.network.graph import Graph
from fcn_batch.pipeline.network.predictor import Scaling, Strips, make_tiles
from fcn_batch.workflows.blocks.passes import Band, Effort, Pass, stream, tiles
from tests.sources import SPEC, ArraySource, assert_classes, gathered, make_pass, memory_raster, whole_scores

CLASSES = 4


class Small(nn.Module):
    """Stride 4, and looks some 20 pixels far."""

    def __init__(self) -> None:
        super().__init__()
        self.fine = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU())
        self.coarse = nn.Sequential(nn.MaxPool2d(4), nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6), nn.SiLU())
        self.up = nn.Upsample(scale_factor=4, mode="bilinear")
        self.score = nn.Conv2d(12, CLASSES, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        fine = self.fine(x)
        scores: torch.Tensor = self.score(torch.cat([fine, self.up(self.coarse(fine))], dim=1))
        return scores


@cache
def _network() -> tuple[Small, Graph]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        network = Small().eval()
    graph = capture(network, 3)
    assert (graph.stride, graph.reach.halo) == (4, 12)
    return network, graph


def _cut(way: Any, **changes: int) -> Cut:
    graph = _network()[1]
    lengths = {"chunk": 16, "lane": 32, "segment": 48, "tile": 8, "overlap": graph.reach.halo, **changes}
    return Cut(way=way, stride=graph.stride, blend=None, **lengths)


def _strips(cut: Cut, size: Size) -> Strips:
    width = round_up(min(cut.lane + 2 * cut.overlap, size.width), cut.stride)
    return Strips(_network()[1], Scaling(SPEC, "cpu"), "fp32", (cut.tile, width))


def _passed(work: Pass, part: Window, *, by_module: bool = False) -> Iterator[Band]:
    network, graph = _network()
    cut, scaling = work.plan.cut, Scaling(SPEC, "cpu")
    if cut.way == "stream":
        return stream(work, part, _strips(cut, work.plan.input.size))
    grid = (cut.stride, cut.tile + 2 * cut.overlap, False)
    return tiles(work, part, make_tiles(network.float(), None if by_module else graph, scaling, "fp32", grid))


def _map(source: ArraySource, cut: Cut, **options: bool) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """The whole raster, segment by segment of each lane."""
    out = np.zeros((source.size.height, source.size.width), np.uint8)
    for row in range(0, source.size.height, cut.segment):
        for col in range(0, source.size.width, cut.lane):
            part = Window(row, col, cut.segment, cut.lane).clipped(source.size)
            out[part.slices()] = gathered(_passed(make_pass(source, cut, CLASSES), part, **options), part)
    return out


@st.composite
def rasters(draw: st.DrawFn) -> ArraySource:
    """Any small raster, often with long stretches of rows without data."""
    height, width = draw(st.integers(1, 200)), draw(st.integers(1, 70))
    edges = draw(st.lists(st.tuples(st.integers(0, height), st.integers(1, 120)), max_size=3))
    return memory_raster(height, width, draw(st.integers(0, 9)), [(first, first + rows) for first, rows in edges])


@st.composite
def cuts(draw: st.DrawFn, way: str) -> Cut:
    """Any cut of such a raster."""
    chunk = 4 * draw(st.integers(1, 8))
    lane, segment = chunk * draw(st.integers(1, 8)), chunk * draw(st.integers(1, 12))
    return _cut(way, chunk=chunk, lane=lane, segment=segment, tile=4 * draw(st.integers(1, 12)))


@settings(max_examples=30)
@given(rasters(), cuts("stream"))
def test_streams_make_the_map_of_the_whole_image(source: ArraySource, cut: Cut) -> None:
    assert_classes(_map(source, cut), whole_scores(_network()[0], source, 4), source.valid)


@settings(max_examples=20)
@given(rasters(), cuts("tiles"), st.booleans())
def test_tiles_make_the_map_of_the_whole_image(source: ArraySource, cut: Cut, by_module: bool) -> None:
    scores = whole_scores(_network()[0], source, 4)
    assert_classes(_map(source, cut, by_module=by_module), scores, source.valid)


@pytest.mark.parametrize("way", ["stream", "tiles"])
@settings(max_examples=20)
@given(data=st.data())
def test_a_part_has_the_same_classes_whatever_else_is_asked_for(way: str, data: st.DataObject) -> None:
    source, cut = data.draw(rasters()), data.draw(cuts(way))
    grid = BlockGrid(source.size, cut.chunk, cut.lane)
    wanted = data.draw(st.sets(st.integers(0, len(grid) - 1), min_size=1, max_size=6))
    whole = _map(source, cut)
    for work in works(grid, cut.segment, wanted):
        first, last = grid[work[0]], grid[work[-1]]
        part = Window(first.row, first.col, last.stop_row - first.row, first.width)
        found = gathered(_passed(make_pass(source, cut, CLASSES), part), part)
        assert np.array_equal(found, whole[part.slices()])


@settings(max_examples=25)
@given(rasters(), cuts("stream"), st.data())
def test_leaving_out_empty_rows_changes_no_class(source: ArraySource, cut: Cut, data: st.DataObject) -> None:
    part = Window(data.draw(st.integers(0, source.size.height - 1)) // cut.chunk * cut.chunk, 0, cut.segment, cut.lane)
    part = part.clipped(source.size)
    part = Window(part.row, 0, min(part.stop_row, (part.row // cut.segment + 1) * cut.segment) - part.row, part.width)
    work = make_pass(source, cut, CLASSES)
    found = gathered(_passed(work, part), part)
    scores, graph = whole_scores(_network()[0], source, 4), _network()[1]
    assert_classes(found, scores[(slice(None), *part.slices())], source.valid[part.slices()])
    segment = Window(part.row // cut.segment * cut.segment, 0, cut.segment, 1).clipped(source.size)
    bottom = round_up(source.size.height, 4)
    descent = Descent.of(segment, bottom, cut.tile, cut.overlap, graph.warm_up(cut.tile))
    width = min(round_up(source.size.width, 4), part.width + cut.overlap)
    assert work.effort.forwarded <= (bottom - descent.start(part.row)) * width, "no row goes in twice"


def test_an_empty_raster_needs_no_network() -> None:
    source = memory_raster(300, 40, empty=[(0, 300)])
    for way in ("stream", "tiles"):
        work, part = make_pass(source, _cut(way, segment=304), CLASSES), Window(0, 0, 300, 32)
        assert (gathered(_passed(work, part), part) == 255).all()
        assert work.effort == Effort()


def test_long_empty_stretches_are_left_out_and_short_ones_go_through() -> None:
    cut = _cut("stream", segment=2000, chunk=16, lane=48)
    full, gaps = memory_raster(2000, 40), memory_raster(2000, 40, empty=[(100, 900), (1000, 1990)])
    efforts = []
    for source in (full, gaps):
        work, part = make_pass(source, cut, CLASSES), Window(0, 0, 2000, 40)
        found = gathered(_passed(work, part), part)
        assert_classes(found, whole_scores(_network()[0], source, 4), source.valid)
        efforts.append(work.effort.forwarded)
    assert efforts[0] == 2000 * 40
    warm = _network()[1].warm_up(cut.tile)
    assert efforts[1] <= (100 + 100 + 10 + 2 * (cut.overlap + warm + 3 * cut.tile) + 2 * 48) * 40


@pytest.mark.parametrize("way", ["stream", "tiles"])
def test_what_is_read_is_the_part_and_what_it_looks_at(way: str) -> None:
    source, cut = memory_raster(1200, 200), _cut(way, lane=64, segment=400, chunk=16)
    part = Window(400, 64, 400, 64)
    gathered(_passed(make_pass(source, cut, CLASSES), part), part)
    assert {(w.col, w.stop_col) for w in source.reads} == {(64 - 12, 128 + 12)}
    assert min(w.row for w in source.reads) == 400 - 12
    assert len({w.row for w in source.reads}) == len(source.reads), "each row once"


def test_effort_counts_from_where_it_was() -> None:
    effort = Effort()
    effort.count(8, 10)
    before = Effort(effort.passes, effort.forwarded)
    effort.count(4, 10)
    assert effort.since(before) == Effort(1, 40)
