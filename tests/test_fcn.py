"""The network is the paper's, and tiles of it equal the whole image: the promise the project rests on."""

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from fcn_batch.pipeline.core.geometry import Size, Window
from fcn_batch.pipeline.core.model_card import Architecture, Band, InputSpec
from fcn_batch.pipeline.core.tiling import exact_tiles
from fcn_batch.pipeline.network.capture import graph_of
from fcn_batch.pipeline.network.fcn import Fcn
from fcn_batch.pipeline.network.graph import Graph
from fcn_batch.pipeline.network.predictor import Scaling, make_tiles
from fcn_batch.pipeline.network.stream import Program, RowStream
from fcn_batch.pipeline.network.vgg import VggTrunk
from tests.models import tiny_architecture, tiny_network

Array = NDArray[np.floating]
AS_IT_IS = InputSpec(bands=tuple(Band(name=name, mean=0, std=1) for name in "abc"), full_scale=1, gsd_m=1)
"""Pixels are scaled already."""

NETWORKS = [
    {"stride": 8, "fc_kernel": 7},
    {"stride": 16, "fc_kernel": 3},
    {"stride": 32, "fc_kernel": 1},
    {"stride": 8, "fc_kernel": 3, "upsampling": "learned"},
    {"stride": 32, "fc_kernel": 3, "upsampling": "learned"},
    {"stride": 8, "fc_kernel": 3, "input_upsampling": 2},
    {"stride": 8, "fc_kernel": 3, "input_upsampling": 4},
    {"stride": 16, "fc_kernel": 3, "input_upsampling": 4, "upsampling": "learned"},
    {"stride": 8, "fc_kernel": 4, "skip_scales": (0.5, 0.1)},
    {"stride": 16, "fc_kernel": 3, "shift": 3},
    {"stride": 32, "fc_kernel": 2, "shift": 31, "upsampling": "learned"},
    {"trunk": "alexnet", "stride": 8, "fc_kernel": 6},
    {"trunk": "alexnet", "stride": 32, "fc_kernel": 6, "fc_channels": 0, "shift": 20},
]


def _name(architecture: dict[str, Any]) -> str:
    return "-".join(str(value) for value in architecture.values())


def _image(rows: int, cols: int, dtype: Any = np.float64, seed: int = 0) -> Array:
    out: Array = np.random.default_rng(seed).normal(size=(3, rows, cols)).astype(dtype)
    return out


def _whole(network: Fcn, image: Array) -> Array:
    """One forward pass over the whole image, padded at right and bottom with 0."""
    rows, cols = image.shape[1:]
    x = functional.pad(torch.from_numpy(image), (0, -cols % network.stride, 0, -rows % network.stride))
    with torch.no_grad():
        scores: Array = network(x[None])[0, :, :rows, :cols].numpy()
    return scores


def _tiled(network: Fcn, image: Array, tile: int, halo: int, block: Window | None = None) -> Array:
    """The same, tile by tile; NaN outside of the cores that touch `block`."""
    size, dtype = Size(*image.shape[1:]), torch.from_numpy(image).dtype
    tiles: Any = make_tiles(network, None, Scaling(AS_IT_IS, "cpu", dtype), "fp32", (network.stride, tile, False))
    scores = np.full((network.score.out_channels, size.height, size.width), np.nan, dtype=image.dtype)
    for t in (t for row in exact_tiles(size, block or Window(0, 0, size.height, size.width), tile, halo) for t in row):
        with torch.inference_mode():
            values = image[(slice(None), *t.read.slices())]
            seen = tiles._scores(values, np.ones(values.shape[1:], np.bool_))[0].numpy()
        scores[(slice(None), *t.core.slices())] = seen[(slice(None), *t.core.slices(t.read))]
    return scores


@cache
def _graph(network: Fcn) -> Graph:
    graph, obstacles = graph_of(network, 3)
    assert graph is not None, obstacles
    return graph


def _streamed(network: Fcn, image: Array, strip: int) -> Array:
    """The same, strip by strip."""
    graph = _graph(network)
    rows, cols = image.shape[1:]
    x = functional.pad(torch.from_numpy(image), (0, -cols % network.stride, 0, -rows % network.stride))[None]
    stream = RowStream(Program(graph, torch.device("cpu"), x.dtype, (strip, x.shape[3])))
    starts = range(0, x.shape[2], strip)
    parts = [stream.push(x[:, :, start : start + strip], last=start == starts[-1]) for start in starts]
    scores: Array = torch.cat([part for part in parts if part is not None], dim=2)[0, :, :rows, :cols].numpy()
    return scores


def _difference(one: Array, other: Array) -> float:
    return float(np.abs(one - other).max() / np.abs(other).max())


@pytest.mark.parametrize("architecture", NETWORKS, ids=_name)
@pytest.mark.parametrize("tall", [False, True], ids=["wide", "tall"])
def test_tiles_equal_the_whole_image(architecture: dict[str, Any], tall: bool) -> None:
    network = tiny_network(tiny_architecture(**architecture), dtype=torch.float64)
    stride = network.stride
    image = _image(stride + 5, 2 * network.halo + 5 * stride + 3)
    if tall:
        image = np.ascontiguousarray(image.transpose(0, 2, 1))
    whole = _whole(network, image)
    assert _difference(_tiled(network, image, 2 * stride, network.halo), whole) <= 1e-12
    less = _tiled(network, image, 2 * stride, network.halo - stride)
    assert _difference(less, whole) > 1e-6, "the halo is not larger than it must be"


@pytest.mark.parametrize("architecture", NETWORKS, ids=_name)
def test_strips_equal_the_whole_image(architecture: dict[str, Any]) -> None:
    network = tiny_network(tiny_architecture(**architecture), dtype=torch.float64)
    stride = network.stride
    image = _image(2 * network.halo + 5 * stride + 3, stride + 5)
    whole = _whole(network, image)
    for strip in (stride, 3 * stride, 100 * stride):
        assert _difference(_streamed(network, image, strip), whole) <= 1e-12


@pytest.mark.parametrize("architecture", NETWORKS, ids=_name)
def test_its_graph_has_its_grid_and_its_reach(architecture: dict[str, Any]) -> None:
    network = tiny_network(tiny_architecture(**architecture))
    graph = _graph(network)
    assert (graph.stride, graph.classes, graph.bands) == (network.stride, 6, 3)
    assert graph.reach.halo == network.halo
    assert np.array_equal(graph.reach.first, network.reach.first)
    assert np.array_equal(graph.reach.last, network.reach.last)


@pytest.mark.parametrize("size", [(1, 1), (31, 33), (64, 50), (97, 201)], ids=str)
@pytest.mark.parametrize("architecture", [NETWORKS[1], NETWORKS[6]], ids=_name)
def test_odd_sizes_and_rasters_smaller_than_a_tile(size: tuple[int, int], architecture: dict[str, Any]) -> None:
    network = tiny_network(tiny_architecture(**architecture), dtype=torch.float64)
    image = _image(*size)
    for tile in (64, 256):
        assert _difference(_tiled(network, image, tile, network.halo), _whole(network, image)) <= 1e-12
        assert _difference(_streamed(network, image, tile), _whole(network, image)) <= 1e-12


def test_tiles_of_a_block_inside_the_raster() -> None:
    network = tiny_network(tiny_architecture(input_upsampling=4), dtype=torch.float64)
    image, block = _image(203, 197), Window(64, 56, 72, 80)
    tiled = _tiled(network, image, 40, network.halo, block)[(slice(None), *block.slices())]
    assert _difference(tiled, _whole(network, image)[(slice(None), *block.slices())]) <= 1e-12


def test_a_larger_halo_off_the_grid_is_wrong() -> None:
    network = tiny_network(dtype=torch.float64)
    image = _image(32, 2 * network.halo + 160)
    assert _difference(_tiled(network, image, 64, network.halo + 16), _whole(network, image)) > 1e-6


@pytest.mark.parametrize("architecture", [NETWORKS[0], NETWORKS[6]], ids=_name)
def test_single_precision_gives_the_same_class_but_at_ties(architecture: dict[str, Any]) -> None:
    network = tiny_network(tiny_architecture(**architecture))
    image = _image(network.stride + 5, 2 * network.halo + 300, np.float32)
    whole, tiled = _whole(network, image), _tiled(network, image, 4 * network.stride, network.halo)
    streamed = _streamed(network, image, 2 * network.stride)
    low, high = np.partition(whole, -2, axis=0)[-2:]
    clear = high - low >= 1e-4
    assert clear.mean() > 0.99
    assert (whole.argmax(axis=0) == tiled.argmax(axis=0))[clear].all()
    assert (whole.argmax(axis=0) == streamed.argmax(axis=0))[clear].all()
    assert len(np.unique(whole.argmax(axis=0))) == 6, "the image must not be too easy"


@pytest.mark.parametrize("architecture", NETWORKS, ids=_name)
def test_a_nan_reaches_as_far_as_the_layers_say(architecture: dict[str, Any]) -> None:
    network = tiny_network(tiny_architecture(**architecture), classes=2, dtype=torch.float64)
    reach, period = network.reach, network.stride
    cols = 2 * network.halo + 4 * period
    turns, cell = np.divmod(np.arange(cols), period)
    for offset in {0, 1, period // 2, period - 1}:
        at = network.halo + 2 * period + offset
        x = torch.zeros(1, 3, period, cols, dtype=torch.float64)
        x[0, 1, period // 2, at] = torch.nan
        with torch.no_grad():
            poisoned = network(x)[0].isnan()
        assert (poisoned.any(dim=0) == poisoned.all(dim=0)).all(), "every class looks equally far"
        expected = (reach.first[cell] + turns * period <= at) & (at <= reach.last[cell] + turns * period)
        assert np.array_equal(poisoned[0].any(dim=0).numpy(), expected)
        assert not expected[0], "the picture must be wider than the reach"
        assert not expected[-1], "the picture must be wider than the reach"


@pytest.mark.parametrize("architecture", [NETWORKS[0], NETWORKS[3], NETWORKS[5]], ids=_name)
def test_shifting_the_image_by_the_stride_shifts_the_scores(architecture: dict[str, Any]) -> None:
    network = tiny_network(tiny_architecture(**architecture), dtype=torch.float64)
    stride, halo = network.stride, network.halo
    cols = 2 * halo + 4 * stride
    image = _image(stride, cols + stride)

    def interior(shift: int) -> Array:
        """Scores where neither end of a window that starts at `shift` is seen, from one raster pixel on."""
        scores = _whole(network, np.ascontiguousarray(image[:, :, shift : shift + cols]))
        start = halo + stride - shift
        return scores[:, :, start : start + 2 * stride]

    assert _difference(interior(0), interior(stride)) <= 1e-14  # BLAS may sum the last columns in another order
    assert _difference(interior(stride // 2), interior(0)) > 1e-3, "half a stride is another grid"


def test_sides_off_the_stride_are_refused() -> None:
    network = tiny_network()
    for rows, cols in ((33, 64), (64, 31)):
        with pytest.raises(ValueError, match=rf"multiples of 32, got \({rows}, {cols}\)"):
            network(torch.zeros(1, 3, rows, cols))
    assert network(torch.zeros(2, 3, 64, 32)).shape == (2, 6, 64, 32)


@pytest.mark.parametrize(("stride", "parameters"), [(8, 134_362_751), (16, 134_357_354), (32, 134_346_581)])
def test_parameters_of_the_full_width_networks(stride: Any, parameters: int) -> None:
    with torch.device("meta"):
        network = Fcn(Architecture(stride=stride), 3, 21)
    assert sum(p.numel() for p in network.parameters()) == parameters  # the paper: 134M
    assert sum(p.numel() for p in network.trunk.parameters()) == 14_714_688


def test_only_score_layers_start_at_zero() -> None:
    network = Fcn(tiny_architecture(), 3, 4)
    convolutions = [(name, m) for name, m in network.named_modules() if isinstance(m, nn.Conv2d)]
    assert len(convolutions) == 13 + 2 + 3
    for name, layer in convolutions:
        assert bool(layer.weight.any()) != name.startswith("score"), name


def test_an_untrained_network_prefers_no_class() -> None:
    network = Fcn(tiny_architecture(), 3, 4).eval()
    assert not network(torch.randn(1, 3, 32, 32)).any()


def test_the_trunk_is_torchvisions() -> None:
    vgg16 = pytest.importorskip("torchvision.models").vgg16
    with torch.device("meta"):
        theirs = vgg16(weights=None, init_weights=False).features.state_dict()
        ours = VggTrunk(3, 1.0).features.state_dict()
    assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in theirs.items()}


def test_the_trunk_computes_what_torchvisions_does() -> None:
    vgg = pytest.importorskip("torchvision.models.vgg")
    ours = VggTrunk(3, 0.125).eval()
    stages = zip((8, 16, 32, 64, 64), (2, 2, 3, 3, 3), strict=True)
    features = vgg.make_layers([v for channels, many in stages for v in (*[channels] * many, "M")]).eval()
    with torch.no_grad():
        for parameter in ours.parameters():  # torch's own start lets the signal fade
            parameter.normal_(0, (2 / parameter[0].numel()) ** 0.5 if parameter.ndim == 4 else 0.1)
        features.load_state_dict(ours.features.state_dict())
        x = torch.randn(1, 3, 64, 96)
        pool3, pool4, pool5 = ours(x)
        assert ours.channels == (32, 64, 64)
        assert (pool3.shape, pool4.shape, pool5.shape) == ((1, 32, 8, 12), (1, 64, 4, 6), (1, 64, 2, 3))
        assert pool5.any()
        assert torch.equal(pool5, features(x))
        assert torch.equal(pool4, features[:24](x))
        assert torch.equal(pool3, features[:17](x))


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
        plain = Fcn(tiny_architecture(width=1.0), 3, 6)
    graph = _graph(plain)
    pixels, cells = 64 * 1024, 64 * 1024 // 64
    classes = 2 * 4 * pixels  # as torch counts them
    for dtype in (torch.bfloat16, torch.float32):
        widest = 3 * 64 * dtype.itemsize * pixels
        assert graph.bytes_of_strip(64, 1024, dtype.itemsize) == widest + classes + _kept(graph, 64, 1024, dtype)
    few, many = _graph(tiny_network(classes=6)), _graph(tiny_network(classes=200))
    # of many classes, the scores: those at an eighth of the resolution twice, and those of every pixel
    for dtype in (torch.bfloat16, torch.float32):  # scores stay in float32
        kept = _kept(many, 64, 1024, dtype)
        assert many.bytes_of_strip(64, 1024, dtype.itemsize) == 4 * 200 * (pixels + 2 * cells) + classes + kept
    assert few.bytes_of_strip(64, 1024, 4) < many.bytes_of_strip(64, 1024, 4)
