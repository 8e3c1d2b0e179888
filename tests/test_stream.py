"""A stream of rows equals one pass over the whole image, and it equals itself wherever it begins, to the bit."""

import math
from importlib import import_module
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from torchvision.models.segmentation import fcn_resnet50

from fcn_batch.pipeline.core.geometry import Window
from fcn_batch.pipeline.core.tiling import Descent
from fcn_batch.pipeline.network.capture import capture
from fcn_batch.pipeline.network.stream import Program, RowStream
from tests.models import UNET, tiny_architecture, tiny_network
from tests.networks import BANDS, Steps, image, networks, on_grid, programmed, stacked, streamed

smp: Any = import_module("segmentation_models_pytorch")  # it has no types
RANDOM = settings(max_examples=12, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])


def _whole(network: nn.Module, pixels: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        scores: torch.Tensor = network(pixels)
    return scores


def _assert_close(found: torch.Tensor, expected: torch.Tensor, relative: float = 1e-12) -> None:
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= relative * expected.abs().max()


def _assert_same_classes(found: torch.Tensor, expected: torch.Tensor, tie: float = 1e-4, most: float = 0.01) -> None:
    """Equal classes where the best score is clearly the best."""
    assert found.shape == expected.shape
    best = expected.topk(2, dim=1).values
    clear = best[:, 0] - best[:, 1] > tie * expected.abs().max()
    assert (found.argmax(dim=1) == expected.argmax(dim=1))[clear].all()
    assert (found.argmax(dim=1) != expected.argmax(dim=1)).double().mean() <= most


def _assert_streams(network: nn.Module, rows: int, cols: int, strips: int, relative: float = 1e-12) -> None:
    """In float64: any image, padded to the grid, in strips of so many strides."""
    network = network.double().eval()
    graph = capture(network, BANDS)
    pixels = on_grid(image(rows, cols), graph.stride)
    strip = strips * graph.stride
    found = streamed(programmed(graph, torch.float64, strip, pixels.shape[3]), pixels, strip)
    _assert_close(stacked(found), _whole(network, pixels), relative)


@RANDOM
@given(networks(), st.integers(1, 120), st.integers(1, 60), st.integers(1, 8))
def test_random_networks(network: Steps, rows: int, cols: int, strips: int) -> None:
    graph = capture(network, BANDS)
    strip = strips * graph.stride
    for dtype in (torch.float32, torch.float64):
        pixels = on_grid(image(rows, cols, dtype), graph.stride)
        found = stacked(streamed(programmed(graph, dtype, strip, pixels.shape[3]), pixels, strip))
        assert found.dtype == dtype
        expected = _whole(network.to(dtype), pixels)
        if dtype == torch.float32:  # torch interpolates from the number of the row, in float32
            _assert_same_classes(found, expected, tie=1e-3, most=1)
            _assert_close(found, expected, 1e-3)
    _assert_close(stacked(streamed(_exact(network, strip, pixels), pixels, strip)), expected)


def _exact(network: nn.Module, strip: int, pixels: torch.Tensor) -> Program:
    """Recorded in float64: BN is then folded into the weights in that precision."""
    return programmed(capture(network, BANDS), torch.float64, strip, pixels.shape[3])


@settings(RANDOM, max_examples=15)
@given(networks(), st.sampled_from([torch.float32, torch.bfloat16]), st.data())
def test_a_stream_has_the_same_bits_wherever_it_begins(network: Steps, dtype: torch.dtype, data: st.DataObject) -> None:
    graph = capture(network, BANDS)
    stride, halo = graph.stride, graph.reach.halo
    strip = stride * data.draw(st.sampled_from([1, 1, 2, 3, 5]), "strides in a strip")
    bottom, width = stride * data.draw(st.integers(8, 60), "strides down"), stride * data.draw(st.integers(1, 4))
    segment = stride * data.draw(st.integers(0, 8), "strides to the segment")
    segment = min(segment, bottom - stride)
    descent = Descent.of(Window(segment, 0, 1, 1), bottom, strip, halo, graph.warm_up(strip))
    program, pixels = programmed(graph, dtype, strip, width), image(bottom, width, dtype)
    whole = streamed(program, pixels, strip, descent.top)
    starts: dict[int, int] = {}
    for row in range(segment, bottom):
        start = descent.start(row)
        assert start % stride == 0
        assert (start - descent.top) % strip == 0, "on the segment's grid of strips"
        assert start == descent.top or row - start >= halo
        starts.setdefault(start, row)
    for start in data.draw(st.permutations(sorted(starts)))[:3]:
        again = streamed(program, pixels, strip, start)
        wrong = [row for row in range(starts[start], bottom) if not torch.equal(again[row], whole[row])]
        assert wrong == [], (start, starts[start], descent)


@pytest.mark.parametrize("shift", [0, 3])
@pytest.mark.parametrize(
    ("dtype", "top", "strip"), [(torch.float32, 0, 32), (torch.bfloat16, 96, 32), (torch.float32, 96, 64)], ids=str
)
def test_an_fcn_has_the_same_bits_wherever_it_begins(dtype: torch.dtype, top: int, strip: int, shift: int) -> None:
    graph = capture(tiny_network(tiny_architecture(shift=shift)), BANDS)
    bottom, halo = 800, graph.reach.halo
    descent = Descent.of(Window(top + halo, 0, 1, 1), bottom, strip, halo, graph.warm_up(strip))
    assert descent.top == top
    program, pixels = programmed(graph, dtype, strip, 96), image(bottom, 96, dtype)
    whole = streamed(program, pixels, strip, top)
    for row in (top + halo, 500, 600, 799):
        again = streamed(program, pixels, strip, descent.start(row))
        assert all(torch.equal(again[k], whole[k]) for k in range(row, bottom))
    assert descent.start(799) > top, "it does begin further down"


def test_rows_come_out_in_order_and_as_early_as_they_can() -> None:
    network = nn.Sequential(nn.Conv2d(BANDS, 4, 3, padding=1), nn.MaxPool2d(2), nn.Upsample(scale_factor=2)).double()
    stream = RowStream(programmed(capture(network, BANDS), torch.float64, 4, 8))
    pixels, heights = image(16, 8), []
    for row in range(0, 16, 4):
        scores = stream.push(pixels[:, :, row : row + 4], last=row == 12)
        heights.append(0 if scores is None else scores.shape[2])
    assert heights == [2, 4, 4, 6]
    assert stream.scored == 16


@pytest.mark.parametrize(
    ("stride", "enlarged", "upsampling"),
    [(32, 1, "bilinear"), (16, 1, "learned"), (8, 1, "learned"), (8, 2, "bilinear"), (8, 4, "learned")],
)
def test_our_fcns(stride: int, enlarged: int, upsampling: str) -> None:
    network = tiny_network(tiny_architecture(stride=stride, input_upsampling=enlarged, upsampling=upsampling))
    graph = capture(network, BANDS)
    assert (graph.stride, graph.reach.halo) == (network.stride, network.halo)
    assert graph.classes == 6
    _assert_streams(network, 203, 70, strips=2)


def _written(name: str, text: str) -> Any:
    namespace: dict[str, Any] = {"__name__": "written"}
    exec(text, namespace)  # noqa: S102 - the tests' own text
    return namespace[name]


def test_a_unet() -> None:
    torch.manual_seed(0)
    network = _written("make_unet", UNET)(BANDS, 4)
    assert capture(network, BANDS).stride == 4
    for strips in (1, 3, 30):
        _assert_streams(network, 77, 50, strips)


@pytest.mark.parametrize("kind", [smp.Unet, smp.Linknet], ids=lambda kind: kind.__name__)
def test_decoders_of_a_library(kind: Any) -> None:
    torch.manual_seed(0)
    network = kind("resnet18", encoder_weights=None, classes=4)
    _shake_batch_norms(network)
    _assert_streams(network, 130, 64, strips=1, relative=1e-11)  # BN folded into weights that it makes large


@pytest.mark.long
def test_torchvision_s_fcn() -> None:
    torch.manual_seed(0)
    network = _Out(fcn_resnet50(weights=None, weights_backbone=None, num_classes=5))
    assert capture(network.eval(), BANDS).stride == 8
    _assert_streams(network, 43, 30, strips=2, relative=1e-11)


@pytest.mark.parametrize("seed", range(2))
def test_the_height_of_strips_changes_no_class_but_at_ties(seed: int) -> None:
    network = tiny_network(seed=seed)
    graph = capture(network, BANDS)
    pixels = image(544, 96, torch.float32, seed=seed)
    maps = {}
    for strip in (32, 512):
        maps[strip] = stacked(streamed(programmed(graph, torch.float32, strip, 96), pixels, strip))
    differ = int((maps[32].argmax(dim=1) != maps[512].argmax(dim=1)).sum())
    assert differ <= 5, f"{differ} of {544 * 96} pixels"
    _assert_same_classes(maps[32], maps[512])
    _assert_same_classes(maps[32], _whole(network, pixels))


def test_bfloat16_is_near_and_its_scores_are_not_rounded() -> None:
    network = tiny_network()
    graph, pixels = capture(network, BANDS), image(128, 96, torch.float32)
    found = stacked(streamed(programmed(graph, torch.bfloat16, 32, 96), pixels, 32))
    assert found.dtype == torch.float32
    assert not torch.equal(found, found.bfloat16().float()), "the last layers run in float32"
    agree = (found.argmax(dim=1) == _whole(network, pixels).argmax(dim=1)).double().mean()
    assert agree > 0.9


def test_what_a_stream_is_given_stays_as_it_is() -> None:
    network = nn.Sequential(nn.ReLU(inplace=True), nn.Conv2d(BANDS, 2, 3, padding=1), nn.SiLU(inplace=True)).double()
    graph, pixels = capture(network, BANDS), image(16, 8)
    before = pixels.clone()
    streamed(programmed(graph, torch.float64, 4, 8), pixels, 4)
    assert torch.equal(pixels, before)


def test_two_streams_of_one_program_do_not_meet() -> None:
    program = programmed(capture(tiny_network(), BANDS), torch.float32, 32, 64)
    images = [image(96, 64, torch.float32, seed=seed) for seed in (1, 2)]
    alone = [stacked(streamed(program, pixels, 32)) for pixels in images]
    streams = [RowStream(program) for _ in images]
    parts: list[list[torch.Tensor]] = [[], []]
    for row in (0, 32, 64):
        for k in (0, 1):
            scores = streams[k].push(images[k][:, :, row : row + 32], last=row == 64)
            parts[k] += [] if scores is None else [scores]
    for k in (0, 1):
        assert torch.equal(torch.cat(parts[k], dim=2), alone[k])


class _Out(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.network(x)["out"]
        return out


def _shake_batch_norms(network: nn.Module) -> None:
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None and module.running_var is not None:
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)


def test_memory_is_that_of_a_strip() -> None:
    """What is kept between strips does not grow with the image."""
    network = tiny_network()
    stream = RowStream(programmed(capture(network, BANDS), torch.float32, 32, 64))
    kept = []
    for k in range(60):
        stream.push(image(32, 64, torch.float32, seed=k))
        held = [value.rows for value in stream._values if value.rows is not None]
        storages = {rows.untyped_storage().data_ptr(): rows.untyped_storage().nbytes() for rows in held}
        kept.append(sum(storages.values()))
    assert len(set(kept[20:])) == 1, "the same after every strip"
    assert kept[-1] <= 32 * 64 * 4 * 200
    assert math.isclose(kept[-1], max(kept), rel_tol=0.5)
