"""Interval arithmetic against a tracer that follows sets of pixels, and against the numbers known of VGG16."""

from collections.abc import Callable
from fractions import Fraction
from functools import cache
from math import floor

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fcn_batch.pipeline.core.reach import Reach
from fcn_batch.pipeline.network.fcn import Fcn
from fcn_batch.pipeline.network.tracing import reach_of
from tests.models import tiny_architecture

Layer = tuple[
    str, int, int, int
]  # "conv" or "transposed", kernel, stride, padding; "upsample" or "repeat", factor, 0, 0
Cone = Callable[[int], set[int]]


def _through(reach: Reach, layers: list[Layer]) -> Reach:
    for kind, size, stride, padding in layers:
        if kind == "conv":
            reach = reach.conv(size, stride=stride, padding=padding)
        elif kind == "transposed":
            reach = reach.transposed(size, stride=stride, padding=padding)
        else:
            reach = reach.upsample(size) if kind == "upsample" else reach.repeat(size)
    return reach


def _traced(layers: list[Layer]) -> Cone:
    """The input pixels that a cell after `layers` depends on, layer by layer from the definition."""
    if not layers:
        return lambda cell: {cell}
    below = _traced(layers[:-1])
    kind, size, stride, padding = layers[-1]

    @cache
    def conv(cell: int) -> set[int]:
        return {pixel for tap in range(size) for pixel in below(cell * stride - padding + tap)}

    @cache
    def upsample(cell: int) -> set[int]:
        position = (cell + Fraction(1, 2)) / size - Fraction(1, 2)
        weights = {k: 1 - abs(position - k) for k in (floor(position), floor(position) + 1)}
        return {pixel for k, weight in weights.items() if weight for pixel in below(k)}

    @cache
    def repeat(cell: int) -> set[int]:
        return below(floor(Fraction(cell, size)))

    @cache
    def transposed(cell: int) -> set[int]:
        taps = [cell + padding - tap for tap in range(size)]
        return {pixel for tap in taps if tap % stride == 0 for pixel in below(tap // stride)}

    return {"conv": conv, "upsample": upsample, "repeat": repeat, "transposed": transposed}[kind]


@st.composite
def _chains(draw: st.DrawFn) -> tuple[int, list[Layer]]:
    """A period and some layers whose strides fit it."""
    period = cells = draw(st.sampled_from([1, 2, 3, 4, 6, 8, 12]))
    layers: list[Layer] = []
    for _ in range(draw(st.integers(0, 4))):
        kind = draw(st.sampled_from(["conv", "upsample", "repeat", "transposed"]))
        if kind == "conv":
            stride = draw(st.sampled_from([s for s in (1, 2, 3) if cells % s == 0]))
            layers.append(("conv", draw(st.integers(1, 5)), stride, draw(st.integers(0, 3))))
            cells //= stride
        else:
            factor = draw(st.integers(1, 4))
            if kind == "transposed":
                layers.append((kind, factor + draw(st.integers(0, 4)), factor, draw(st.integers(0, 3))))
            else:
                layers.append((kind, factor, 0, 0))
            cells *= factor
    return period, layers


@settings(deadline=None, max_examples=50)  # long chains look at many pixels
@given(_chains())
def test_first_and_last_are_what_a_tracer_finds(chain: tuple[int, list[Layer]]) -> None:
    period, layers = chain
    reach, cone = _through(Reach.of_input(period), layers), _traced(layers)
    cones = [cone(cell) for cell in range(reach.cells)]
    assert [min(c) for c in cones] == reach.first.tolist()
    assert [max(c) for c in cones] == reach.last.tolist()
    assert reach.field == max(max(c) - min(c) + 1 for c in cones)
    assert reach.beyond_core == max(0, *(-min(c) for c in cones), *(max(c) - period + 1 for c in cones))
    assert reach.halo % period == 0
    assert 0 <= reach.halo - reach.beyond_core < period
    assert reach.stride == Fraction(period, reach.cells)
    shifted = [{pixel + 3 * period for pixel in c} for c in cones]
    assert [cone(cell + 3 * reach.cells) for cell in range(reach.cells)] == shifted, "it repeats every period"


def test_by_hand() -> None:
    pooled = Reach.of_input(4).conv(2, stride=2)
    assert (pooled.first.tolist(), pooled.last.tolist()) == ([0, 2], [1, 3])
    conv = pooled.conv(3, padding=1)
    assert (conv.first.tolist(), conv.last.tolist()) == ([-2, 0], [3, 5])
    assert (conv.field, conv.beyond_core, conv.halo, conv.stride) == (6, 2, 4, Fraction(2))
    back = conv.upsample(2)  # cells -1 0 | 0 1 | 0 1 | 1 2
    assert (back.first.tolist(), back.last.tolist()) == ([-4, -2, -2, 0], [3, 5, 5, 7])
    joined = pooled.join(conv)
    assert (joined.first.tolist(), joined.last.tolist()) == ([-2, 0], [3, 5])


def test_an_odd_factor_has_outputs_of_one_cell() -> None:
    up = Reach.of_input(1).upsample(3)
    assert (up.first.tolist(), up.last.tolist()) == ([-1, 0, 0], [0, 0, 1])


def test_a_network_that_looks_nowhere_else_needs_no_halo() -> None:
    reach = Reach.of_input(8).conv(8, stride=8)
    assert (reach.beyond_core, reach.halo, reach.field) == (0, 0, 8)


def test_layers_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="stride 2 does not fit 3 cells"):
        Reach.of_input(3).conv(2, stride=2)
    with pytest.raises(ValueError, match="stride 1 and 2 cannot be added"):
        Reach.of_input(4).join(Reach.of_input(4).conv(2, stride=2))


class _Last(nn.Module):
    def forward(self, maps: tuple[torch.Tensor, ...]) -> torch.Tensor:
        return maps[-1]


def _network(**architecture: object) -> Fcn:
    with torch.device("meta"):
        return Fcn(tiny_architecture(**architecture), 3, 2)


@pytest.mark.parametrize("stride", [8, 16, 32])
@pytest.mark.parametrize(
    ("fc_kernel", "beyond", "halo"),
    [(7, 218, 224), (3, 154, 160), (1, 122, 128)],
)
def test_the_halo_of_each_fcn(stride: int, fc_kernel: int, beyond: int, halo: int) -> None:
    network = _network(stride=stride, fc_kernel=fc_kernel)
    assert (network.stride, network.reach.beyond_core, network.halo) == (32, beyond, halo)
    assert beyond == 90 + 32 * (fc_kernel // 2) + 32


@pytest.mark.parametrize(
    ("stride", "smallest", "largest", "side"), [(32, 436, 436, 233), (16, 436, 468, 241), (8, 436, 468, 245)]
)
def test_the_receptive_fields_of_fcn_md(stride: int, smallest: int, largest: int, side: int) -> None:
    reach = _network(stride=stride, fc_kernel=7).reach
    fields = reach.last - reach.first + 1
    pixel = range(32)
    assert ({*fields.tolist()}, reach.field) == ({smallest, largest}, largest)
    assert (max(pixel - reach.first), max(reach.last - pixel)) == (side, side)


def test_the_coarse_cells_of_fcn_md() -> None:
    trunk = _network(fc_kernel=7).trunk
    coarse = reach_of(nn.Sequential(trunk, _Last(), nn.Conv2d(trunk.channels[2], 1, 7, padding=3)), 32)
    assert (coarse.first.tolist(), coarse.last.tolist(), coarse.field) == ([-186], [217], 404)


@pytest.mark.parametrize(("enlarged", "fc_kernel"), [(2, 7), (4, 3)])
@pytest.mark.parametrize("upsampling", ["bilinear", "learned"])
def test_an_enlarged_input_looks_less_far(enlarged: int, fc_kernel: int, upsampling: str) -> None:
    network = _network(input_upsampling=enlarged, fc_kernel=fc_kernel, upsampling=upsampling)
    plain = _network(fc_kernel=fc_kernel)
    assert network.stride == 32 // enlarged
    # a reach of b enlarged pixels ends between two pixels of the raster, and bilinear looks at both
    span = range(-2 * plain.reach.beyond_core, 2 * plain.reach.beyond_core)
    sources = {k: _traced([("upsample", enlarged, 0, 0)])(k) for k in span}
    first = min(sources[-plain.reach.beyond_core])
    last = max(sources[32 + plain.reach.beyond_core - 1])
    assert network.reach.beyond_core == max(-first, last - network.stride + 1)
    assert network.halo == -(-network.reach.beyond_core // network.stride) * network.stride
