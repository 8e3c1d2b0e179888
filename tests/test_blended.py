"""Blended tiles against sums over the whole raster, for every kind of network; the same for every part."""

from functools import cache
from typing import Any, get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from fcn_batch.pipeline.core.blending import axis_weights
from fcn_batch.pipeline.core.geometry import Window, round_up
from fcn_batch.pipeline.core.plan import Cut
from fcn_batch.pipeline.core.tiling import Axis, Blend, BlockGrid, works
from fcn_batch.pipeline.network.capture import graph_of
from fcn_batch.pipeline.network.graph import Graph
from fcn_batch.pipeline.network.predictor import Scaling, Tiles, choose, make_tiles
from fcn_batch.workflows.blocks.blended import blended
from tests.sources import SPEC, ArraySource, assert_classes, gathered, make_pass, memory_raster

CLASSES = 4
STRIDE = 8
KINDS = ("streamed", "streamed, fine", "global", "global, fine", "global, nearest")


class Body(nn.Module):
    """Everything before the last upsampling: cells of 4 pixels, or of 1."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.MaxPool2d(4))
        self.coarse = nn.Sequential(nn.AvgPool2d(2), nn.Conv2d(6, 6, 3, padding=1), nn.Upsample(scale_factor=2))
        self.score = nn.Conv2d(6, CLASSES, 1)
        self.fine, self.everywhere = "fine" in kind, "global" in kind
        self.detail = nn.Conv2d(3, CLASSES, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.first(x)
        h = h + self.coarse(h)
        if self.everywhere:
            h = h * (1 + functional.adaptive_avg_pool2d(h, 1))
        scores: torch.Tensor = self.score(h)
        if self.fine:
            scores = functional.interpolate(scores, scale_factor=4, mode="nearest") + self.detail(x)
        return scores


class Network(nn.Module):
    """A body and its last upsampling."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.body, self.fine = Body(kind), "fine" in kind
        self.mode = "nearest" if "nearest" in kind else "bilinear"

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.body(x)
        return scores if self.fine else functional.interpolate(scores, x.shape[2:], mode=self.mode)


@cache
def _network(kind: str) -> tuple[Network, Graph | None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        network = Network(kind).eval()
    graph, obstacles = graph_of(network, 3)
    assert (graph is None) == ("global" in kind) == bool(obstacles)
    assert graph is None or graph.stride == STRIDE
    return network, graph


def _tiles(kind: str, tile: int) -> Tiles:
    network, graph = _network(kind)
    return make_tiles(network, graph, Scaling(SPEC, "cpu"), "fp32", (STRIDE, tile, True))


def _naive(kind: str, source: ArraySource, cut: Cut) -> NDArray[np.float64]:
    """Every tile's weighted scores summed up over the whole raster, then upsampled: (classes, rows, cols)."""
    network, side = _network(kind)[0], 4 if kind in ("streamed", "global") else 1
    forward = network.body if side > 1 else network
    height, width = source.size.height, source.size.width
    axes = [Axis(-(-length // side), cut.tile // side, cut.overlap // side) for length in (height, width)]
    sums = np.zeros((CLASSES, axes[0].length, axes[1].length))
    assert cut.blend is not None
    for row in range(axes[0].count):
        for col in range(axes[1].count):
            (top, bottom), (left, right) = axes[0].span(row), axes[1].span(col)
            pixels = (slice(top * side, bottom * side), slice(left * side, right * side))
            values, valid = source.values[(slice(None), *pixels)], source.valid[pixels]
            grid = (round_up(valid.shape[0], STRIDE), round_up(valid.shape[1], STRIDE))
            with torch.inference_mode():
                scores = forward(Scaling(SPEC, "cpu").image(values, valid, grid))[0].double().numpy()
            weights = np.outer(axis_weights(axes[0], row, cut.blend), axis_weights(axes[1], col, cut.blend))
            sums[:, top:bottom, left:right] += weights * scores[:, : bottom - top, : right - left]
    if side == 1:
        return sums
    wide = functional.interpolate(torch.from_numpy(sums)[None], scale_factor=side, mode="bilinear")[0].numpy()
    out: NDArray[np.float64] = wide[:, :height, :width]
    return out


def _part(source: ArraySource, kind: str, cut: Cut, part: Window) -> NDArray[np.uint8]:
    assert cut.blend is not None
    work = make_pass(source, cut, CLASSES)
    return gathered(blended(work, part, _tiles(kind, cut.tile), cut.blend), part)


@st.composite
def cuts(draw: st.DrawFn) -> Cut:
    tile = STRIDE * draw(st.integers(1, 8))
    overlap = STRIDE * draw(st.integers(0, tile // STRIDE // 2))
    chunk = STRIDE * draw(st.integers(1, 6))
    lengths: dict[str, Any] = {"chunk": chunk, "lane": chunk * draw(st.integers(1, 4)), "segment": chunk * 100}
    blend: Blend = draw(st.sampled_from(get_args(Blend)))
    return Cut(way="blend", tile=tile, overlap=overlap, stride=STRIDE, blend=blend, **lengths)


@st.composite
def rasters(draw: st.DrawFn) -> ArraySource:
    height, width = draw(st.integers(1, 130)), draw(st.integers(1, 90))
    edges = draw(st.lists(st.tuples(st.integers(0, height), st.integers(1, 60)), max_size=2))
    return memory_raster(height, width, draw(st.integers(0, 9)), [(first, first + rows) for first, rows in edges])


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=12)
@given(source=rasters(), cut=cuts(), data=st.data())
def test_blended_tiles(kind: str, source: ArraySource, cut: Cut, data: st.DataObject) -> None:
    scores = _naive(kind, source, cut)
    found = np.zeros(source.valid.shape, np.uint8)
    for col in range(0, source.size.width, cut.lane):
        part = Window(0, col, source.size.height, cut.lane).clipped(source.size)
        found[part.slices()] = _part(source, kind, cut, part)
    assert_classes(found, scores, source.valid)
    whole = Window(0, 0, source.size.height, source.size.width)
    assert np.array_equal(_part(source, kind, cut, whole), found), "lanes change nothing"
    grid = BlockGrid(source.size, cut.chunk, cut.lane)
    wanted = data.draw(st.sets(st.integers(0, len(grid) - 1), min_size=1, max_size=4))
    for work in works(grid, cut.segment, wanted):
        first, last = grid[work[0]], grid[work[-1]]
        part = Window(first.row, first.col, last.stop_row - first.row, first.width)
        assert np.array_equal(_part(source, kind, cut, part), found[part.slices()])


@pytest.mark.parametrize(("kind", "factor"), list(zip(KINDS, (4, 1, 4, 1, 1), strict=True)))
def test_the_last_upsampling_is_found_and_left_out(kind: str, factor: int) -> None:
    tiles = _tiles(kind, 32)
    assert tiles.factor == factor
    source = memory_raster(30, 17)
    scores = tiles.scores(source.values, source.valid)
    assert scores.shape == (CLASSES, -(-30 // factor), -(-17 // factor))
    with torch.inference_mode():
        network = _network(kind)[0]
        image = Scaling(SPEC, "cpu").image(source.values, source.valid, (32, 24))
        expected = (network.body if factor > 1 else network)(image)[0].numpy()
    np.testing.assert_allclose(scores, expected[:, : scores.shape[1], : scores.shape[2]], atol=1e-5)


def test_tiles_without_data_are_left_out_and_the_others_count() -> None:
    cut = Cut(way="blend", chunk=32, lane=64, segment=320, tile=32, overlap=8, stride=STRIDE, blend="hann")
    source, part = memory_raster(320, 60, empty=[(0, 100), (150, 320)]), Window(0, 0, 320, 60)
    work = make_pass(source, cut, CLASSES)
    gathered(blended(work, part, _tiles("global", 32), "hann"), part)
    spans = [(24 * k, min(24 * k + 32, 320)) for k in range(14)]
    rows = [(start, stop) for start, stop in spans if start - 4 < 150 and stop + 4 > 100 and start < 320]
    assert work.effort.passes == len(rows) * 3
    assert work.effort.forwarded == sum(stop - start for start, stop in rows) * (32 + 32 + 16)


@pytest.mark.parametrize("start", [16, 48, 112])
def test_the_same_bits_before_the_best_is_chosen(start: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scores, not only classes, whatever row a part begins in."""
    seen: list[NDArray[np.float32]] = []

    def keep(scores: torch.Tensor, **kind: bool) -> torch.Tensor:
        seen.append(scores[0].numpy().copy())
        return choose(scores, **kind)

    monkeypatch.setattr("fcn_batch.pipeline.network.predictor.choose", keep)
    cut = Cut(way="blend", chunk=16, lane=64, segment=160, tile=48, overlap=16, stride=STRIDE, blend="gaussian")
    source = memory_raster(140, 60)
    maps = []
    for row in (0, start):
        seen.clear()
        _part(source, "streamed", cut, Window(row, 0, 140 - row, 60))
        maps.append(np.concatenate(seen, axis=1)[:, -(140 - start) :])
    assert np.array_equal(maps[0], maps[1])
