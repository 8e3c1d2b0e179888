"""The arithmetic of rows against one-hot rows and NaN; the memory of a stream against what is allocated."""

from collections.abc import Callable
from typing import Any, Literal

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional
from torch.profiler import ProfilerActivity, profile

from fcn_batch.pipeline.core.reach import Reach
from fcn_batch.pipeline.network.capture import capture
from fcn_batch.pipeline.network.graph import Graph
from fcn_batch.pipeline.network.layers import Interpolate, Layer, Pad, Plain, Pointwise, Sliding, Transposed
from fcn_batch.pipeline.network.stream import RowStream
from tests.models import tiny_architecture, tiny_network
from tests.networks import BANDS, Steps, image, networks, on_grid, programmed, streamed
from tests.processors import needs_bf16

FEW = settings(max_examples=10, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
Whole = Callable[[torch.Tensor], torch.Tensor]
SMALL = st.integers(1, 4)
ROWS = 40
NONE = Plain(lambda rows: rows)


def _interpolate(factor: int, mode: Literal["bilinear", "nearest"]) -> Whole:
    return lambda x: functional.interpolate(x, scale_factor=(factor, 1), mode=mode)


@st.composite
def layers(draw: st.DrawFn) -> tuple[Layer, Whole]:
    """A layer, and what torch computes on a whole column of rows: every weight is positive."""
    kind = draw(st.sampled_from(["conv", "max", "interpolate", "transposed", "pad"]))
    kernel, stride, dilation = draw(SMALL), draw(SMALL), draw(st.integers(1, 3))
    ones = torch.ones(1, 1, kernel, 1, dtype=torch.float64)
    span = dilation * (kernel - 1) + 1
    if kind == "conv":
        p = draw(st.integers(0, span - 1))
        whole: Whole = lambda x: functional.conv2d(x, ones, None, (stride, 1), (p, 0), (dilation, 1))  # noqa: E731
        return Sliding(span, stride, p, ceil=False, fill=0.0, function=NONE), whole
    if kind == "max":
        p, ceil = draw(st.integers(0, kernel // 2)), draw(st.booleans())
        whole = lambda x: functional.max_pool2d(x, (kernel, 1), (stride, 1), (p, 0), (dilation, 1), ceil)  # noqa: E731
        return Sliding(span, stride, p, ceil=ceil, fill=-torch.inf, function=NONE), whole
    if kind == "interpolate":
        mode: Literal["bilinear", "nearest"] = draw(st.sampled_from(["bilinear", "nearest"]))
        return Interpolate(stride, 1, mode), _interpolate(stride, mode)
    if kind == "transposed":
        assume(span >= stride)
        p, extra = draw(st.integers(0, 2)), draw(st.integers(0, max(stride, dilation) - 1))
        assume(p < span)
        options: dict[str, Any] = {"output_padding": (extra, 0), "dilation": (dilation, 1)}
        whole = lambda x: functional.conv_transpose2d(x, ones, None, (stride, 1), (p, 0), **options)  # noqa: E731
        return Transposed(span, stride, p, extra, NONE), whole
    repeat = draw(st.booleans())
    top, bottom = draw(st.integers(0 if repeat else -4, 4)), draw(st.integers(0 if repeat else -4, 4))
    pads = (0, 0, top, bottom)
    whole = lambda x: functional.pad(x, pads, mode="replicate" if repeat else "constant")  # noqa: E731
    return Pad(top, bottom, 0, 0, None if repeat else 0.0), whole


def _looks_at(whole: Whole, rows: int) -> list[list[int]]:
    """For each row of the output the rows of the input that change it."""
    nothing = whole(torch.zeros(1, 1, rows, 1, dtype=torch.float64)).flatten()
    ones = torch.eye(rows, dtype=torch.float64)[:, None, :, None]
    changed = torch.stack([whole(one[None]).flatten() != nothing for one in ones], dim=1)
    return [row.nonzero().flatten().tolist() for row in changed]


@settings(max_examples=150)
@given(layers(), st.integers(1, ROWS - 1))
def test_rows_of_a_layer(layer_and_whole: tuple[Layer, Whole], rows: int) -> None:
    layer, whole = layer_and_whole
    assume(layer.total(rows) > 0)
    looks = _looks_at(whole, ROWS)
    assert layer.total(ROWS) == len(looks)
    try:
        assert layer.total(rows) == whole(torch.zeros(1, 1, rows, 1, dtype=torch.float64)).shape[2]
    except RuntimeError:  # fewer rows than the kernel, or than torch cuts off before it pads
        assert not isinstance(layer, Interpolate)
        assert not isinstance(layer, Pad) or rows < -min(layer.top, 0) - min(layer.bottom, 0)
    dilated = isinstance(layer, Transposed | Sliding)
    for row, seen in enumerate(looks):
        low, high = layer.needs(row, row + 1)
        inside = range(max(low, 0), min(high, ROWS))
        if isinstance(layer, Pad) and layer.fill is None:
            inside = range(min(max(low, 0), ROWS - 1), max(min(high, ROWS), 1))
        assert set(seen) <= set(inside)
        if seen and not dilated:
            assert (seen[0], seen[-1]) == (inside[0], inside[-1])
        if row:
            before = layer.needs(row - 1, row)
            assert before[0] <= low, "rows that were let go are not asked for again"
            assert layer.needs(row - 1, row + 1) == (before[0], high)
    decided = next((o for o, seen in enumerate(looks) if seen and seen[-1] >= rows), len(looks))
    ready = min(layer.ready(rows), layer.total(ROWS))
    assert ready <= decided
    assert all(layer.needs(o, o + 1)[1] <= rows for o in range(ready))
    assert ready >= decided or dilated or isinstance(layer, Pad)
    next_needs = layer.needs(ready, ready + 1)[1]
    assert next_needs > rows or ready == layer.total(ROWS), "no row is held back"


def _reach(graph: Graph, rows: int) -> list[tuple[int, int]]:
    """First and last image row that each row of the scores looks at, inside of the image."""
    period, first, last = graph.reach.period, graph.reach.first, graph.reach.last
    shifts = [(o % period, o // period * period) for o in range(rows)]
    return [(int(first[k]) + shift, int(last[k]) + shift) for k, shift in shifts]


@FEW
@given(networks(), st.data())
def test_the_reach_of_a_network_is_as_far_as_it_looks(network: Steps, data: st.DataObject) -> None:
    network = network.double()
    graph = capture(network, BANDS)
    stride, halo = graph.stride, graph.reach.halo
    rows = min(-(-(3 * halo + 8 * stride) // stride) * stride, 400 // stride * stride)
    pixels = image(rows, 2 * stride)
    reach = _reach(graph, rows)
    with torch.inference_mode():
        plain = network(pixels)
        for _ in range(4):
            row = data.draw(st.integers(0, rows - 1))
            other = pixels.clone()
            other[:, :, row] += 1
            changed = (network(other) != plain).any(dim=1).any(dim=2)[0]
            assert not [o for o, (a, b) in enumerate(reach) if changed[o] and not a <= row <= b]
            other[:, :, row] = torch.nan
            spoiled = network(other).isnan().any(dim=1).any(dim=2)[0]
            edges = [o for o, (a, b) in enumerate(reach) if row in (a, b) and a >= 0 and b < rows]
            assert all(spoiled[o] for o in edges), "it does look that far"
    for o, (first, last) in enumerate(reach):
        core = o // stride * stride
        assert core - halo <= first
        assert last < core + stride + halo


@FEW
@given(networks(), st.integers(1, 3))
def test_the_stride_and_the_flow_of_a_network(network: Steps, strips: int) -> None:
    graph = capture(network, BANDS)
    stride = graph.stride
    for rows in (stride, 5 * stride, 6 * stride):
        assert graph.total(rows)[-1] == rows
        assert all(total >= ready for total, ready in zip(graph.total(rows), graph.ready(rows), strict=True))
    strip = strips * stride
    warm = graph.warm_up(strip)
    assert warm % strip == 0
    assert min(graph.ready(warm)) >= 1
    assert warm == strip or min(graph.ready(warm - strip)) < 1
    for k in range(1, 4):
        now, next_one = graph.ready(warm + (k - 1) * strip), graph.ready(warm + k * strip)
        more = [b - a for a, b in zip(now, next_one, strict=True)]
        assert more == [strip / scale for scale in graph.scales], "a strip's worth of every value"
        assert graph.lag(strip) == warm + k * strip - next_one[-1]
    assert graph.lag(strip) <= graph.reach.beyond_core + stride


class _Doubled(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + x


def test_a_value_that_is_taken_twice_by_one_layer() -> None:
    network = nn.Sequential(nn.Conv2d(BANDS, 2, 3, padding=1), _Doubled()).double()
    pixels = image(12, 4)
    rows = streamed(programmed(capture(network, BANDS), torch.float64, 2, 4), pixels, 2)
    with torch.inference_mode():
        expected = network(pixels)
    assert all(torch.allclose(rows[k], expected[0, :, k], rtol=0, atol=1e-14) for k in range(12))


def test_layers_of_one_row_each_have_the_reach_of_their_inputs() -> None:
    reach = Reach.of_input(4).conv(3, padding=1)
    joined = Pointwise(NONE).reach([Reach.of_input(4), reach])
    assert (joined.first.tolist(), joined.last.tolist()) == (reach.first.tolist(), reach.last.tolist())


def _peak(graph: Graph, dtype: torch.dtype, strip: int, cols: int, passes: int) -> int:
    """Most bytes that tensors took at once, beside the weights and the strip itself, while strips went through."""
    stream = RowStream(programmed(graph, dtype, strip, cols))
    strips = [image(strip, cols, dtype, seed=k) for k in range(2)]
    for k in range(passes - 2):
        stream.push(strips[k % 2])
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as watched:
        scores = stream.push(strips[0])
        assert scores is not None
        scores.argmax(dim=1)
    changes = [e.nbytes() for e in watched.profiler.kineto_results.events() if e.name() == "[memory]"]
    level = peak = 0
    for change in changes:
        level += change
        peak = max(peak, level)
    kept = {
        v.rows.untyped_storage().data_ptr(): v.rows.untyped_storage().nbytes()
        for v in stream._values
        if v.rows is not None
    }
    return peak + sum(kept.values())


@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.bfloat16, marks=needs_bf16)], ids=str)
@pytest.mark.parametrize("changes", [{}, {"input_upsampling": 2}], ids=str)
def test_the_bytes_of_a_strip(changes: dict[str, Any], dtype: torch.dtype) -> None:
    """What the plan counts with is not far from what is allocated, on either side."""
    graph = capture(tiny_network(tiny_architecture(**changes)), BANDS)
    itemsize = torch.empty(0, dtype=dtype).element_size()
    measured, counted = _peak(graph, dtype, 128, 256, passes=8), graph.bytes_of_strip(128, 256, itemsize)
    assert counted >= 0.7 * measured, (counted, measured)
    assert counted <= 3 * measured, (counted, measured)


def test_peaks_do_not_grow_with_the_rows_that_have_gone_through() -> None:
    graph = capture(tiny_network(), BANDS)
    few, many = (_peak(graph, torch.float32, 32, 64, passes) for passes in (20, 60))
    assert many <= 1.1 * few  # the profiler may miss what another thread gives back


@FEW
@given(networks(), st.integers(1, 4))
def test_bytes_grow_with_rows_and_columns(network: Steps, strips: int) -> None:
    graph = capture(network, BANDS)
    rows = strips * graph.stride
    for itemsize in (2, 4):
        one = graph.bytes_of_strip(rows, 64, itemsize)
        assert one < graph.bytes_of_strip(2 * rows, 64, itemsize) <= 2 * one
        assert one < graph.bytes_of_strip(rows, 128, itemsize) <= 2 * one
    assert on_grid(image(1, 1), graph.stride).shape[2:] == (graph.stride, graph.stride)
