"""How a raster is cut: exact where it can be, within the memory there is, and at the cost that is told."""

import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fcn_batch.pipeline.core.errors import OptionError
from fcn_batch.pipeline.core.geometry import Size, Window, round_up
from fcn_batch.pipeline.core.model_card import Architecture
from fcn_batch.pipeline.core.plan import Cut
from fcn_batch.pipeline.network.capture import capture
from fcn_batch.pipeline.network.fcn import Fcn
from fcn_batch.pipeline.network.graph import Graph
from fcn_batch.pipeline.network.predictor import Scaling, Strips, make_tiles
from fcn_batch.workflows.blocks.blended import blended
from fcn_batch.workflows.blocks.cut import CHUNK, Network, Room, Wish, choose_cut, forwarded, memory
from fcn_batch.workflows.blocks.passes import stream, tiles
from tests.errors import refuses
from tests.models import save_tiny_model, tiny_network
from tests.runs import scene, segmented, small_blocks
from tests.sources import SPEC, gathered, info_of, make_pass, memory_raster

GB = 10**9
PLENTY = Room(64 * GB, 1, "cpu")


@cache
def _graph() -> Graph:
    return capture(tiny_network(), 3)


def _network(**changes: Any) -> Network:
    """The tiny FCN: stride 32, halo 160."""
    values = {"bands": 3, "classes": 6, "stride": 32, "halo": 160, "graph": _graph().bare(), "obstacles": ()}
    return Network(**{**values, "weights": 10**6, "itemsize": 4, **changes})


def _unknown(halo: int | None) -> Network:
    return _network(graph=None, halo=halo, obstacles=("a.b: mean (pools the whole image)", "c: roll (not known)"))


def _cut(network: Network, size: Size, room: Room = PLENTY, **wish: Any) -> tuple[Cut, list[str]]:
    notes: list[str] = []
    return choose_cut(network, info_of(size), Wish(**wish), room, notes), notes


def test_it_is_streamed_where_it_can_be() -> None:
    cut, notes = _cut(_network(), Size(10_000, 9_000))
    assert (cut.way, cut.blend, cut.stride, cut.overlap, cut.exact) == ("stream", None, 32, 160, True)
    assert (cut.chunk, cut.lane, cut.segment) == (CHUNK, 10_240, 10_240)
    assert cut.tile == 2**19 // 9024 // 32 * 32
    assert notes == []


def test_a_whole_fcn_8s_sees_each_pixel_of_10_000_squared_hardly_more_than_once() -> None:
    with torch.device("meta"):
        graph = capture(Fcn(Architecture(), 3, 21), 3)
    network = _network(graph=graph.bare(), halo=graph.reach.halo, classes=21, weights=540 * 10**6)
    size = Size(10_000, 10_000)
    for room in (PLENTY, Room(4 * GB, 1, "cpu")):
        cut, _ = _cut(network, size, room)
        assert memory(network, info_of(size), cut) <= room.bytes
        assert forwarded(network, size, cut) <= 1.05 * size.pixels


def test_what_looks_everywhere_is_blended_and_told_so() -> None:
    cut, notes = _cut(_unknown(halo=None), Size(10_000, 9_000))
    assert (cut.way, cut.blend, cut.exact) == ("blend", "hann", False)
    assert (cut.tile, cut.overlap) == (1024, 256)
    (note,) = notes
    assert note.startswith("windows: ")
    assert "a.b: mean (pools the whole image)" in note


def test_an_overlap_that_is_wished_for_makes_windows_too() -> None:
    cut, notes = _cut(_network(), Size(10_000, 9_000), overlap=100, tile=512, blend="linear")
    assert (cut.way, cut.tile, cut.overlap, cut.blend) == ("blend", 512, 128, "linear")
    assert notes[-1].endswith("--overlap auto is exact")


@pytest.mark.parametrize(
    ("network", "wish"), [(_network(), {}), (_unknown(halo=96), {}), (_network(), {"overlap": 32})],
    ids=["stream", "tiles", "blend"],
)  # fmt: skip
def test_a_shard_is_what_is_written_at_once(network: Network, wish: dict[str, Any]) -> None:
    size = Size(20_000, 30_000)
    plain, _ = _cut(network, size, **wish)
    cut, _ = _cut(network, size, shard=4 * CHUNK, **wish)
    assert (cut.way, cut.chunk, cut.tile, cut.overlap) == (plain.way, 4 * CHUNK, plain.tile, plain.overlap)
    assert cut.lane % cut.chunk == cut.segment % cut.chunk == 0
    more = cut.chunk * min(cut.lane, size.width) - plain.chunk * min(plain.lane, size.width)
    # three blocks of classes, or of classes and two planes; and why pixels have none
    assert memory(network, info_of(size), cut) - memory(network, info_of(size), plain) == (3 + 1) * more
    sure = replace(network, confidence=True)
    assert memory(sure, info_of(size), cut) - memory(sure, info_of(size), plain) == (9 + 1) * more


@pytest.mark.parametrize("stride", [32, 48])
def test_the_widest_lane_is_whole_shards_too(stride: int) -> None:
    """Where an area is wider than a lane can be; 2 ** 18 is not three chunks times anything."""
    network = _network(stride=stride, halo=5 * stride)
    shard = 3 * round_up(CHUNK, stride)
    cut, _ = _cut(network, Size(3000, 400_000), shard=shard, columns=350 * round_up(CHUNK, stride) // 2)
    assert cut.lane % shard == 0
    assert cut.lane >= 2**18


def test_a_shard_too_large_for_memory_is_told() -> None:
    with refuses("memory-short", given="2,000 MB"):
        _cut(_network(), Size(70_000, 70_000), Room(2 * GB, 1, "cpu"), shard=32 * CHUNK)


@pytest.mark.parametrize(("shard", "such_as"), [(2000, 2048), (2049, 4096), (5000, 6144), (0, 2048), (-1, 2048)])
def test_a_shard_is_whole_chunks(shard: int, such_as: int) -> None:
    with refuses("option-value", option="--shard", value=shard, chunk=2048, fits=such_as):
        _cut(_network(), Size(1000, 1000), shard=shard)
    assert _cut(_network(), Size(1000, 1000), shard=such_as)[0].chunk == such_as


def test_chunks_of_a_shard_lie_on_the_networks_grid() -> None:
    network = _network(stride=48, halo=96, graph=None)
    with refuses("option-value", chunk=2064, fits=4128):
        _cut(network, Size(1000, 1000), shard=4096)
    assert _cut(network, Size(1000, 1000), shard=4128)[0].chunk == 4128


def test_less_memory_gives_lower_strips_then_lanes_then_a_refusal() -> None:
    network, size = _network(), Size(50_000, 100_000)
    cuts, refused = [], 0
    for megabytes in (20_000, 4000, 2000, 1000, 500, 250, 120, 60, 30, 15):
        room = Room(megabytes * 10**6, 1, "cpu")
        try:
            cut, _ = _cut(network, size, room)
        except OptionError as error:
            refused += 1
            needed = int(error.fields["needed"].removesuffix(" MB").replace(",", ""))
            enough, _ = _cut(network, size, Room(needed * 10**6, 1, "cpu"))
            assert enough.way == "stream", "the number that it names is enough"
        else:
            assert memory(network, info_of(size), cut) <= room.bytes
            assert not refused, "less memory is not more"
            cuts.append((cut.lane, cut.tile))
    assert refused >= 1
    assert len({lane for lane, _ in cuts}) > 2
    assert cuts[0][0] == round_up(100_000, CHUNK), "one lane when there is room"
    assert [lane for lane, _ in cuts] == sorted((lane for lane, _ in cuts), reverse=True)


@settings(max_examples=40)
@given(st.integers(1, 60_000), st.integers(1, 300_000), st.integers(10, 10_000), st.integers(1, 16))
def test_any_cut_is_on_the_grid_and_fits(height: int, width: int, megabytes: int, processes: int) -> None:
    network, size = _network(), Size(height, width)
    room = Room(megabytes * 10**6, processes, "cpu")
    try:
        cut, _ = _cut(network, size, room)
    except OptionError:
        return
    assert memory(network, info_of(size), cut) <= room.bytes
    for length in (cut.tile, cut.chunk, cut.overlap):
        assert length % 32 == 0
    assert cut.lane % cut.chunk == 0 == cut.segment % cut.chunk
    assert cut.tile <= round_up(height, 32)
    lanes = -(-width // cut.lane)
    assert lanes == 1 or cut.lane * (lanes - 1) < width
    share = forwarded(network, size, cut) / size.pixels
    assert share >= 1
    if height > 4000 and width > 20_000 and megabytes > 4000:
        assert share < 1.3


class _Ends(nn.Module):
    """Stride 8, cells of 8 pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(3, 4, 9, stride=8, padding=4), nn.Upsample(scale_factor=8, mode="bilinear")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.up(self.down(x))
        return scores


@cache
def _small() -> tuple[nn.Module, Graph]:
    network = _Ends().eval()
    return network, capture(network, 3)


@pytest.mark.parametrize("way", ["stream", "tiles", "blend"])
@settings(max_examples=25)
@given(data=st.data())
def test_what_is_forwarded_is_what_was_told(way: Any, data: st.DataObject) -> None:
    module, graph = _small()
    halo, size = graph.reach.halo, Size(data.draw(st.integers(1, 250)), data.draw(st.integers(1, 90)))
    chunk = 8 * data.draw(st.integers(1, 8))
    lane, segment = chunk * data.draw(st.integers(1, 4)), chunk * data.draw(st.integers(1, 6))
    tile = 8 * data.draw(st.integers(1, 8))
    overlap = halo
    if way == "blend":
        segment, overlap = round_up(size.height, chunk), 8 * data.draw(st.integers(0, tile // 16))
    cut = Cut(
        way=way,
        chunk=chunk,
        lane=lane,
        segment=segment,
        tile=tile,
        overlap=overlap,
        stride=8,
        blend="hann" if way == "blend" else None,
    )
    source = memory_raster(size.height, size.width)
    source.valid[:] = True
    scaling, spent = Scaling(SPEC, "cpu"), 0
    for row in range(0, size.height, cut.segment):
        for col in range(0, size.width, cut.lane):
            part, work = Window(row, col, cut.segment, cut.lane).clipped(size), make_pass(source, cut, 4)
            if way == "stream":
                bands = stream(work, part, Strips(graph, scaling, "fp32", (cut.tile, lane)))
            else:
                network = make_tiles(module, graph, scaling, "fp32", (8, tile + 2 * halo, way == "blend"))
                bands = tiles(work, part, network) if way == "tiles" else blended(work, part, network, "hann")
            gathered(bands, part)
            spent += work.effort.forwarded
    network_facts = _network(classes=4, stride=8, halo=halo, graph=graph.bare())
    assert forwarded(network_facts, size, cut) == spent


@pytest.mark.parametrize("options", [(), ("--tile", 64), ("--tile", 64, "--overlap", 32)], ids=str)
def test_a_run_forwards_what_its_plan_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[Any, ...]
) -> None:
    small_blocks(monkeypatch)
    model, raster = save_tiny_model(tmp_path / "tiny.safetensors"), scene(tmp_path / "scene.tif")
    segmented(raster, "--model", model, "-o", tmp_path / "out", "--threads", 1, *options)
    report = json.loads((tmp_path / "out" / "scene.run.json").read_text())
    cut = Cut(**report["plan"]["cut"])
    expected = forwarded(_network(), Size(300, 330), cut) / (300 * 330)
    assert report["forward_passes_per_pixel"] == round(expected, 4)
