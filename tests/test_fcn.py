"""Tiles and strips of every network of ours equal the whole image: the promise the project rests on."""

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

from fcn_batch.pipeline.core.geometry import Size, Window
from fcn_batch.pipeline.core.tiling import exact_tiles
from fcn_batch.pipeline.network.capture import graph_of
from fcn_batch.pipeline.network.fcn import Fcn, FcnNetwork
from fcn_batch.pipeline.network.graph import Graph
from fcn_batch.pipeline.network.stream import Program, RowStream
from tests.models import tiny_architecture, tiny_dilated, tiny_network
from tests.networks import BANDS, image, on_grid, programmed, stacked, streamed

NETWORKS: dict[str, dict[str, Any]] = {
    "fcn-8s": {"stride": 8, "fc_kernel": 7},
    "fcn-16s": {"stride": 16},
    "fcn-32s": {"stride": 32, "fc_kernel": 1},
    "learned 8s": {"stride": 8, "upsampling": "learned"},
    "learned 32s": {"stride": 32, "upsampling": "learned"},
    "enlarged 2": {"stride": 8, "input_upsampling": 2},
    "enlarged 4": {"stride": 8, "input_upsampling": 4},
    "enlarged, learned": {"stride": 16, "input_upsampling": 4, "upsampling": "learned"},
    "even kernel": {"stride": 8, "fc_kernel": 4, "skip_scales": (0.5, 0.1)},
    "shifted": {"stride": 16, "shift": 3},
    "far shifted": {"stride": 32, "fc_kernel": 2, "shift": 31, "upsampling": "learned"},
    "alexnet": {"trunk": "alexnet", "stride": 8, "fc_kernel": 6},
    "alexnet, shifted": {"trunk": "alexnet", "stride": 32, "fc_channels": 0, "shift": 20},
    "googlenet": {"trunk": "googlenet", "fc_channels": 0},
    "efficientnet_lite0": {"trunk": "efficientnet_lite0", "stride": 16, "fc_channels": 0},
    "fcn_resnet50": {},
}
WIDE = ("googlenet", "efficientnet_lite0", "fcn_resnet50")
"""Networks of one width, which are slow; batch norm is folded into weights that it makes large."""


@cache
def _network(name: str, dtype: torch.dtype = torch.float64) -> FcnNetwork:
    if name == "fcn_resnet50":
        return tiny_dilated(dtype=dtype)
    return tiny_network(tiny_architecture(**NETWORKS[name]), dtype=dtype)


@cache
def _graph(name: str, dtype: torch.dtype = torch.float64) -> Graph:
    graph, obstacles = graph_of(_network(name, dtype), BANDS)
    assert graph is not None, obstacles
    return graph


def _exact(name: str) -> float:
    return 1e-11 if name in WIDE else 1e-12


def _whole(network: FcnNetwork, pixels: torch.Tensor) -> torch.Tensor:
    """One forward pass over the whole image, padded at right and bottom with 0."""
    with torch.inference_mode():
        scores: torch.Tensor = network(on_grid(pixels, network.stride))
    return scores[:, :, : pixels.shape[2], : pixels.shape[3]]


def _tiled(
    network: FcnNetwork, pixels: torch.Tensor, tile: int, halo: int, block: Window | None = None
) -> torch.Tensor:
    """The same, tile by tile; NaN outside of the cores that touch `block`."""
    size = Size(*pixels.shape[2:])
    scores = torch.full((1, network.classes, size.height, size.width), torch.nan, dtype=pixels.dtype)
    for t in (t for row in exact_tiles(size, block or Window(0, 0, size.height, size.width), tile, halo) for t in row):
        seen = _whole(network, pixels[(..., *t.read.slices())].contiguous())
        scores[(..., *t.core.slices())] = seen[(..., *t.core.slices(t.read))]
    return scores


def _streamed(name: str, pixels: torch.Tensor, strip: int) -> torch.Tensor:
    """The same, strip by strip."""
    graph = _graph(name, pixels.dtype)
    padded = on_grid(pixels, graph.stride)
    scores = stacked(streamed(programmed(graph, pixels.dtype, strip, padded.shape[3]), padded, strip))
    return scores[:, :, : pixels.shape[2], : pixels.shape[3]]


def _difference(one: torch.Tensor, other: torch.Tensor) -> float:
    assert one.shape == other.shape
    return float((one - other).abs().max() / other.abs().max())


@pytest.mark.parametrize(
    ("name", "tall"), [(name, tall) for name in NETWORKS for tall in (False, True) if not (tall and name in WIDE)]
)
def test_tiles_equal_the_whole_image(name: str, *, tall: bool) -> None:
    network = _network(name)
    stride, halo = network.stride, network.halo
    pixels = image(stride if name in WIDE else stride + 5, 2 * halo + 5 * stride + 3)
    if tall:
        pixels = pixels.transpose(2, 3).contiguous()
    rows, cols = pixels.shape[2:]
    at = halo // stride // 2 * 2 * stride + 2 * stride  # one tile of the wide ones is enough, and all of the others
    block = Window(0, at, rows, 2 * stride) if name in WIDE else Window(0, 0, rows, cols)
    part = (..., *block.slices())
    whole = _whole(network, pixels)[part]
    assert _difference(_tiled(network, pixels, 2 * stride, halo, block)[part], whole) <= _exact(name)
    less = _tiled(network, pixels, 2 * stride, halo - stride, block)[part]
    assert _difference(less, whole) > (1e-8 if name in WIDE else 1e-6), "the halo is not larger than it must be"


@pytest.mark.parametrize("name", NETWORKS)
def test_strips_equal_the_whole_image_and_the_graph_has_its_grid(name: str) -> None:
    network, graph = _network(name), _graph(name)
    stride = network.stride
    assert (graph.stride, graph.classes, graph.bands, graph.reach.halo) == (stride, 6, 3, network.halo)
    assert np.array_equal(graph.reach.first, network.reach.first)
    assert np.array_equal(graph.reach.last, network.reach.last)
    rows = graph.warm_up(stride) + 3 * stride if name in WIDE else 2 * network.halo + 5 * stride + 3
    pixels = image(rows, stride if name in WIDE else stride + 5)
    whole = _whole(network, pixels)
    assert len(whole.argmax(dim=1).unique()) > 1, "the image must not be too easy"
    for strip in (stride,) if name in WIDE else (stride, 3 * stride, 100 * stride):
        assert _difference(_streamed(name, pixels, strip), whole) <= _exact(name)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_nan_reaches_as_far_as_the_layers_say(name: str) -> None:
    network = _network(name)
    reach, period = network.reach, network.stride
    cols = 2 * network.halo + 4 * period
    turns, cell = np.divmod(np.arange(cols), period)
    for offset in {0, period // 2 - 1} if name in WIDE else {0, 1, period // 2, period - 1}:
        at = network.halo + 2 * period + offset
        pixels = torch.zeros(1, BANDS, period, cols, dtype=torch.float64)
        pixels[0, 1, period // 2, at] = torch.nan
        poisoned = _whole(network, pixels)[0].isnan()
        assert (poisoned.any(dim=0) == poisoned.all(dim=0)).all(), "every class looks equally far"
        expected = (reach.first[cell] + turns * period <= at) & (at <= reach.last[cell] + turns * period)
        assert np.array_equal(poisoned[0].any(dim=0).numpy(), expected)
        assert not expected[[0, -1]].any(), "the picture must be wider than the reach"


@pytest.mark.parametrize("size", [(1, 1), (31, 33), (97, 201)], ids=str)
@pytest.mark.parametrize("name", ["fcn-16s", "enlarged 4"])
def test_odd_sizes_and_rasters_smaller_than_a_tile(size: tuple[int, int], name: str) -> None:
    network, pixels = _network(name), image(*size)
    whole = _whole(network, pixels)
    for tile in (64, 256):
        assert _difference(_tiled(network, pixels, tile, network.halo), whole) <= 1e-12
        assert _difference(_streamed(name, pixels, tile), whole) <= 1e-12


def test_tiles_of_a_block_inside_the_raster() -> None:
    network = _network("enlarged 4")
    pixels, block = image(203, 197), Window(64, 56, 72, 80)
    tiled = _tiled(network, pixels, 40, network.halo, block)[(..., *block.slices())]
    assert _difference(tiled, _whole(network, pixels)[(..., *block.slices())]) <= 1e-12


def test_a_larger_halo_off_the_grid_is_wrong() -> None:
    network = _network("fcn-16s")
    pixels = image(32, 2 * network.halo + 160)
    assert _difference(_tiled(network, pixels, 64, network.halo + 16), _whole(network, pixels)) > 1e-6


@pytest.mark.parametrize("name", ["fcn-8s", "enlarged 4"])
def test_single_precision_gives_the_same_class_but_at_ties(name: str) -> None:
    network = _network(name, torch.float32)
    pixels = image(network.stride + 5, 2 * network.halo + 300, torch.float32, seed=1)
    whole, tiled = _whole(network, pixels), _tiled(network, pixels, 4 * network.stride, network.halo)
    low, high = whole.sort(dim=1).values[0, -2:]
    clear = high - low >= 1e-4
    assert clear.double().mean() > 0.99
    for found in (tiled, _streamed(name, pixels, 2 * network.stride)):
        assert (whole.argmax(dim=1) == found.argmax(dim=1))[0][clear].all()
    assert len(whole.argmax(dim=1).unique()) == 6, "the image must not be too easy"


@pytest.mark.parametrize("name", ["fcn-8s", "learned 8s", "enlarged 2"])
def test_shifting_the_image_by_the_stride_shifts_the_scores(name: str) -> None:
    network = _network(name)
    stride, halo = network.stride, network.halo
    cols = 2 * halo + 4 * stride
    pixels = image(stride, cols + stride)

    def interior(shift: int) -> torch.Tensor:
        """Scores where neither end of a window that starts at `shift` is seen, from one raster pixel on."""
        scores = _whole(network, pixels[..., shift : shift + cols].contiguous())
        start = halo + stride - shift
        return scores[..., start : start + 2 * stride]

    assert _difference(interior(0), interior(stride)) <= 1e-14  # BLAS may sum the last columns in another order
    assert _difference(interior(stride // 2), interior(0)) > 1e-3, "half a stride is another grid"


# --- memory --------------------------------------------------------------------------------------------------


def _kept(graph: Graph, rows: int, cols: int, dtype: torch.dtype) -> int:
    """Bytes that a stream really keeps between strips; numbers without values are enough to count them."""
    meta = torch.device("meta")
    stream = RowStream(Program(graph, meta, dtype, (rows, cols)))
    for _ in range(graph.warm_up(rows) // rows):
        stream.push(torch.empty(1, graph.bands, rows, cols, device=meta))
    return sum(value.rows.nbytes for value in stream._values if value.rows is not None)


def test_memory_counts_the_widest_place_and_what_is_kept() -> None:
    """The first convolutions of a wide network: a map of 64 channels in and one out, and a copy of the first."""
    with torch.device("meta"):
        wide, _ = graph_of(Fcn(tiny_architecture(width=1.0), 3, 6), 3)
        many, _ = graph_of(Fcn(tiny_architecture(), 3, 200), 3)
    assert wide is not None
    assert many is not None
    pixels, cells = 64 * 1024, 64 * 1024 // 64
    classes = 2 * 4 * pixels  # as torch counts them
    for dtype in (torch.bfloat16, torch.float32):
        widest = 3 * 64 * dtype.itemsize * pixels
        assert wide.bytes_of_strip(64, 1024, dtype.itemsize) == widest + classes + _kept(wide, 64, 1024, dtype)
        # of many classes, the scores: those at an eighth of the resolution twice, and those of every pixel, in float32
        kept = _kept(many, 64, 1024, dtype)
        assert many.bytes_of_strip(64, 1024, dtype.itemsize) == 4 * 200 * (pixels + 2 * cells) + classes + kept
