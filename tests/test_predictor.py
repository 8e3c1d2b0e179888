"""Pixels in, classes out: scaled on the device, any size, the first of equal scores, the same bytes each time."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from fcn_batch.pipeline.core.model_card import Band, InputSpec
from fcn_batch.pipeline.core.plan import Precision
from fcn_batch.pipeline.network.capture import graph_of
from fcn_batch.pipeline.network.device import choose_device, fast_precision, set_threads
from fcn_batch.pipeline.network.fcn import Fcn
from fcn_batch.pipeline.network.predictor import Scaling, Strips, Tiles, Upsampler, choose, make_tiles
from tests.models import scaled, tiny_architecture, tiny_network
from tests.rasters import noise

WHOLE = (slice(None), slice(None))
SPEC = InputSpec(
    bands=(Band(name="r", mean=0.4, std=0.2), Band(name="g", mean=0.3, std=0.3), Band(name="b", mean=0.5, std=0.1)),
    gsd_m=1.0,
)
KINDS = ["graph", "module"]
Scores = NDArray[np.float32]


def _pixels(rows: int, cols: int, seed: int = 0) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Noise with some pixels that are not valid."""
    valid = np.random.default_rng(seed).random((rows, cols)) < 0.9
    valid[0, 0] = True
    return noise(3, rows, cols, seed=seed), valid


def _tiles(
    network: nn.Module, kind: str = "graph", *, blended: bool = False, precision: Precision = "fp32", stride: int = 32
) -> Tiles:
    graph, obstacles = graph_of(network, 3)
    assert graph is not None, obstacles
    return make_tiles(
        network, graph if kind == "graph" else None, Scaling(SPEC, "cpu"), precision, (stride, 128, blended)
    )


def _oracle(network: Fcn, values: NDArray[Any], valid: NDArray[np.bool_]) -> Scores:
    """One pass over the image, scaled in numpy and padded with 0 to the grid."""
    rows, cols = valid.shape
    x = torch.from_numpy(scaled(values, valid, SPEC))
    x = functional.pad(x, (0, -cols % network.stride, 0, -rows % network.stride))
    with torch.inference_mode():
        out: Scores = network(x[None])[0, :, :rows, :cols].numpy()
    return out


def _close(one: Scores, other: Scores, tolerance: float = 1e-4) -> bool:
    return one.shape == other.shape and bool(np.abs(one - other).max() <= tolerance * np.abs(other).max())


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


# --- scaling -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32"])
@pytest.mark.parametrize("full_scale", [1.0, 255.0, 10000.0])
def test_scaling_is_that_of_numpy(dtype: str, full_scale: float) -> None:
    spec = SPEC.model_copy(update={"full_scale": full_scale})
    valid = np.random.default_rng(1).random((9, 7)) < 0.7
    values = np.random.default_rng(0).uniform(-150 if dtype in ("int16", "float32") else 0, 255, (3, 9, 7))
    values = values.astype(dtype)
    if dtype == "float32":
        values[:, ~valid] = np.nan
        values[:, 0, 0], valid[0, 0] = np.inf, False
    image = Scaling(spec, "cpu").image(values, valid, (16, 8))
    assert image.shape == (1, 3, 16, 8)
    assert image.dtype == torch.float32
    expected = scaled(values, valid, spec)
    np.testing.assert_allclose(image[0, :, :9, :7].numpy(), expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())
    assert not image[0, :, 9:].any()
    assert not image[0, :, :, 7:].any()
    assert (image[0, :, :9, :7].numpy()[:, ~valid] == 0).all()


def test_scaling_takes_strips_without_a_row() -> None:
    image = Scaling(SPEC, "cpu").image(np.zeros((3, 0, 5), np.uint8), np.zeros((0, 5), np.bool_), (4, 8))
    assert image.shape == (1, 3, 4, 8)
    assert not image.any()


def test_scaling_takes_views_of_any_order() -> None:
    values, valid = _pixels(20, 20)
    mine = Scaling(SPEC, "cpu").image(values[:, ::2, 3:9], valid[::2, 3:9], (10, 6))
    assert torch.equal(mine, Scaling(SPEC, "cpu").image(values[:, ::2, 3:9].copy(), valid[::2, 3:9].copy(), (10, 6)))


# --- tiles ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [(1, 1), (31, 32), (32, 33), (65, 20)], ids=str)
def test_any_size_is_padded_with_zeros_and_cropped(size: tuple[int, int], kind: str) -> None:
    network = tiny_network()
    tiles, (values, valid) = _tiles(network, kind), _pixels(*size)
    scores = tiles.scores(values, valid)
    assert scores.shape == (6, *size)
    assert scores.dtype == np.float32
    assert _close(scores, _oracle(network, values, valid))
    rows, cols = (-(-length // 32) * 32 for length in size)
    padded = np.full((3, rows, cols), 77, np.uint8)  # not valid, so it counts as 0 whatever stands there
    padded[:, : size[0], : size[1]] = values
    mask = np.zeros((rows, cols), np.bool_)
    mask[: size[0], : size[1]] = valid
    assert np.array_equal(scores, tiles.scores(padded, mask)[:, : size[0], : size[1]])


@pytest.mark.parametrize("kind", KINDS)
def test_a_multiple_of_a_smaller_stride_needs_no_padding(kind: str) -> None:
    network = tiny_network(tiny_architecture(input_upsampling=4))
    values, valid = _pixels(40, 24)
    scores = _tiles(network, kind, stride=8).scores(values, valid)
    assert _close(scores, _oracle(network, values, valid))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("core", [WHOLE, (slice(32, 64), slice(0, 32)), (slice(3, 4), slice(50, 77))], ids=str)
def test_channels_are_the_best_scores_over_the_core(core: tuple[slice, slice], kind: str) -> None:
    tiles, pixels = _tiles(tiny_network(), kind), _pixels(70, 77)
    channels = tiles.channels(*pixels, core)
    assert channels.dtype == np.uint8
    assert np.array_equal(channels, tiles.scores(*pixels)[(slice(None), *core)].argmax(axis=0))
    assert len(np.unique(tiles.channels(*pixels, WHOLE))) > 1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [(64, 96), (33, 70), (1, 1)], ids=str)
@pytest.mark.parametrize("architecture", [{"stride": 8}, {"stride": 32}, {"stride": 8, "input_upsampling": 4}], ids=str)
def test_blended_tiles_give_scores_before_the_last_upsampling(
    architecture: dict[str, Any], size: tuple[int, int], kind: str
) -> None:
    network = tiny_network(tiny_architecture(**architecture))
    tiles = _tiles(network, kind, blended=True, stride=network.stride)
    factor = architecture["stride"] // architecture.get("input_upsampling", 1)
    assert tiles.factor == factor
    values, valid = _pixels(*size)
    cells = tiles.scores(values, valid)
    assert cells.shape == (6, -(-size[0] // factor), -(-size[1] // factor))
    rows, cols = (-(-length // network.stride) * network.stride for length in size)
    whole, mask = np.zeros((3, rows, cols), np.uint8), np.zeros((rows, cols), np.bool_)
    whole[:, : size[0], : size[1]], mask[: size[0], : size[1]] = values, valid
    wide = functional.interpolate(
        torch.from_numpy(tiles.scores(whole, mask))[None], scale_factor=factor, mode="bilinear", align_corners=False
    )[0, :, : size[0], : size[1]].numpy()
    assert _close(wide, _oracle(network, values, valid))


@pytest.mark.parametrize("kind", KINDS)
def test_a_learned_upsampling_is_not_cut_off(kind: str) -> None:
    network = tiny_network(tiny_architecture(upsampling="learned"))
    tiles, (values, valid) = _tiles(network, kind, blended=True), _pixels(64, 40)
    assert tiles.factor == 1
    assert _close(tiles.scores(values, valid), _oracle(network, values, valid))


@pytest.mark.parametrize("kind", KINDS)
def test_exact_tiles_of_a_graph_are_never_cut_off(kind: str) -> None:
    tiles = _tiles(tiny_network(), kind)
    assert tiles.channels(*_pixels(64, 40), WHOLE).shape == (64, 40)


@pytest.mark.parametrize("kind", KINDS)
def test_of_equal_scores_the_first_wins(kind: str) -> None:
    network = tiny_network(tiny_architecture(stride=32), classes=4)
    with torch.no_grad():
        network.score.weight.zero_()
        for bias, winner in (([0, 0, 0, 0], 0), ([-1, 2, 2, 2], 1), ([0, 1, 5, 5], 2)):
            assert network.score.bias is not None
            network.score.bias.copy_(torch.tensor(bias))
            assert (_tiles(network, kind).channels(*_pixels(40, 40), WHOLE) == winner).all()


def test_the_best_channel_is_the_first_of_equal_ones() -> None:
    scores = torch.from_numpy(np.random.default_rng(0).integers(0, 3, (1, 40, 50, 60)).astype(np.float32))
    best = choose(scores)
    assert best.dtype == torch.uint8
    assert np.array_equal(best[0].numpy(), scores[0].numpy().argmax(axis=0))


@pytest.mark.parametrize("kind", KINDS)
def test_the_network_is_put_into_evaluation_mode(kind: str) -> None:
    network = tiny_network(tiny_architecture(dropout=0.9)).train()
    tiles, pixels = _tiles(network, kind), _pixels(32, 32)
    assert np.array_equal(tiles.scores(*pixels), tiles.scores(*pixels))
    assert _close(tiles.scores(*pixels), _oracle(network.eval(), *pixels))


def test_double_precision_stays_so() -> None:
    network = tiny_network(dtype=torch.float64)
    values, valid = _pixels(32, 64)
    tiles: Any = make_tiles(network, None, Scaling(SPEC, "cpu", torch.float64), "fp32", (32, 32, False))
    scores = tiles._scores(values, valid)
    assert scores.dtype == torch.float64
    x = scaled(values, valid, SPEC, np.float64)
    with torch.inference_mode():
        assert torch.allclose(scores, network(torch.from_numpy(x)[None]), rtol=0, atol=1e-12 * scores.abs().max())


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [(64, 96), (203, 310)], ids=str)
def test_the_number_of_threads_changes_no_class_but_at_ties(size: tuple[int, int], kind: str) -> None:
    tiles, pixels = _tiles(tiny_network(), kind), _pixels(*size)
    scores = {}
    for count in (1, 2):
        set_threads(count)
        assert torch.get_num_threads() == count
        scores[count] = tiles.scores(*pixels)
        assert scores[count].tobytes() == tiles.scores(*pixels).tobytes(), (
            "the same number of threads gives the same bytes"
        )
    # oneDNN splits the sums of 1x1 convolutions among threads, so other counts round otherwise
    assert np.allclose(scores[1], scores[2], rtol=0, atol=1e-5 * np.abs(scores[1]).max())
    low, high = np.partition(scores[1], -2, axis=0)[-2:]
    clear = high - low >= 1e-4
    assert clear.mean() > 0.99
    assert (scores[1].argmax(axis=0) == scores[2].argmax(axis=0))[clear].all()


# --- strips --------------------------------------------------------------------------------------------------


def _streamed(
    strips: Strips, values: NDArray[Any], valid: NDArray[np.bool_], heights: Iterator[int] | None = None
) -> NDArray[np.uint8]:
    """The classes of an image that goes in strip by strip."""
    rows, cols = valid.shape
    bottom, width = -(-rows // 32) * 32, -(-cols // 32) * 32
    stream, out, row = strips.begin(), [], 0
    while row < bottom:
        height = min(next(heights) if heights else strips.rows, bottom - row)
        last = row + height == bottom
        part = slice(row, min(row + height, rows))
        given = stream.push(values[:, part], valid[part], (height, width), last=last)
        if given is not None:
            assert given.channels().dtype == np.uint8
            assert given.channels().shape == (given.rows, width)
            out.append(given)
        row += height
    return np.concatenate([decided.channels() for decided in out])[:rows, :cols]


def _strips(network: nn.Module, rows: int = 64, precision: Precision = "fp32", cols: int = 96) -> Strips:
    graph, obstacles = graph_of(network, 3)
    assert graph is not None, obstacles
    return Strips(graph, Scaling(SPEC, "cpu"), precision, (rows, cols))


def _same_but_at_ties(channels: NDArray[np.uint8], scores: Scores, tie: float = 1e-4) -> bool:
    low, high = np.partition(scores, -2, axis=0)[-2:]
    clear = high - low >= tie
    return bool(clear.mean() > 0.95 and np.array_equal(channels[clear], scores.argmax(axis=0)[clear]))


@pytest.mark.parametrize("size", [(300, 90), (1, 1), (64, 33), (65, 200)], ids=str)
@pytest.mark.parametrize("rows", [32, 64, 512])
def test_strips_give_the_classes_of_the_whole_image(size: tuple[int, int], rows: int) -> None:
    network = tiny_network()
    values, valid = _pixels(*size)
    channels = _streamed(_strips(network, rows), values, valid)
    assert _same_but_at_ties(channels, _oracle(network, values, valid))


def test_one_set_of_weights_serves_many_passes() -> None:
    strips, pixels = _strips(tiny_network()), _pixels(200, 90)
    first = _streamed(strips, *pixels)
    _streamed(strips, *_pixels(130, 50, seed=1))
    assert np.array_equal(_streamed(strips, *pixels), first)


def test_lower_strips_share_the_weights_and_give_the_same_classes() -> None:
    network = tiny_network()
    strips, pixels = _strips(network, 128), _pixels(300, 90)
    lower = strips.lower(32)
    assert (lower.rows, strips.rows) == (32, 128)
    assert lower.program is strips.program
    graph = strips.program.graph
    assert (lower.warm_up, strips.warm_up) == (graph.warm_up(32), graph.warm_up(128))
    assert _same_but_at_ties(_streamed(lower, *pixels), _oracle(network, *pixels))


def test_a_pass_may_go_on_in_lower_strips() -> None:
    network, pixels = tiny_network(), _pixels(300, 90)
    heights = iter([64, 64, 32, 32, *[32] * 10])
    assert _same_but_at_ties(_streamed(_strips(network), *pixels, heights), _oracle(network, *pixels))


@pytest.mark.parametrize("kind", ["strips", *KINDS])
def test_bfloat16_changes_few_classes(kind: str) -> None:
    """On any CPU, fast or emulated; scores are summed up in 32 bits so that they do not become equal."""
    network, (values, valid) = tiny_network(), _pixels(200, 96)
    scores = _oracle(network, values, valid)
    if kind == "strips":
        channels = _streamed(_strips(network, precision="bf16"), values, valid)
    else:
        tiles = _tiles(network, kind, precision="bf16")
        channels = tiles.channels(values, valid, WHOLE)
        assert not np.array_equal(tiles.scores(values, valid), _tiles(network, kind).scores(values, valid))
    agree = (channels == scores.argmax(axis=0)).mean()
    assert agree > 0.9
    low, high = np.partition(scores, -2, axis=0)[-2:]
    clear = high - low > 0.1 * np.abs(scores).max()
    assert (channels == scores.argmax(axis=0))[clear].mean() > 0.999


# --- the last upsampling of blended scores -------------------------------------------------------------------


@pytest.mark.parametrize("factor", [1, 2, 3, 8, 32])
@pytest.mark.parametrize("parts", [(7,), (1, 1, 5), (3, 0, 4), (2, 2, 2, 1)], ids=str)
def test_the_upsampler_gives_the_classes_of_the_whole_map(factor: int, parts: tuple[int, ...]) -> None:
    cells = np.random.default_rng(0).normal(size=(5, 7, 6)).astype(np.float32)
    upsampler, out, row = Upsampler(5, factor, "cpu"), [], 0
    for index, rows in enumerate(parts):
        last = index == len(parts) - 1
        if rows or last:
            given = upsampler.push(cells[:, row : row + rows], last=last)
            out.extend([] if given is None else [given[0]])
        row += rows
    wide = functional.interpolate(torch.from_numpy(cells)[None], scale_factor=factor, mode="bilinear")[0].numpy()
    channels = np.concatenate(out)
    assert channels.shape == (7 * factor, 6 * factor)
    assert _same_but_at_ties(channels, wide, tie=1e-5)


# --- a GPU ---------------------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("upsampling", ["bilinear", "learned"])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("kind", ["strips", *KINDS])
def test_cuda_equals_the_cpu_but_at_ties(upsampling: str, precision: Precision, kind: str) -> None:
    if precision == "bf16" and fast_precision("cuda:0") != "bf16":
        pytest.skip("this GPU does not compute in bfloat16")
    network = tiny_network(tiny_architecture(upsampling=upsampling))
    values, valid = _pixels(403, 500)
    scores = _oracle(network, values, valid)
    graph = graph_of(network, 3)[0]
    assert graph is not None
    scaling = Scaling(SPEC, choose_device("cuda"))
    if kind == "strips":
        channels = _streamed(Strips(graph, scaling, precision, (64, 512)), values, valid)
    else:
        tiles = make_tiles(network, graph if kind == "graph" else None, scaling, precision, (32, 512, False))
        channels = tiles.channels(values, valid, WHOLE)
    low, high = np.partition(scores, -2, axis=0)[-2:]
    # cuDNN may use TF32, with 10 bits of mantissa, as fp16 has; bf16 has 8
    clear = high - low >= (0.1 * np.abs(scores).max() if precision == "bf16" else 1e-2)
    assert clear.mean() > (0.5 if precision == "bf16" else 0.95)
    assert (channels == scores.argmax(axis=0))[clear].mean() > (0.999 if precision == "bf16" else 1 - 1e-5)
