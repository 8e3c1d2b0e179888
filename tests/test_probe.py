"""The probe knows nothing of layers; interval arithmetic over the layers must come to the same."""

from collections.abc import Iterator
from math import lcm, prod

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from fcn_batch.pipeline.core.reach import Reach
from fcn_batch.pipeline.network.fcn import Fcn, Upsample
from fcn_batch.pipeline.network.probe import Grid, probe
from fcn_batch.pipeline.network.trial import compare_window, forward, try_out
from tests.errors import refuses
from tests.models import tiny_architecture, tiny_network

Convolution = tuple[int, int, int]  # kernel, stride, padding


@pytest.fixture(autouse=True)
def _same_weights() -> Iterator[None]:
    """And one thread: several wait for each other longer than they compute on strips of small networks."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(3)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize(
    "architecture",
    [
        {"stride": 8, "fc_kernel": 7},
        {"stride": 32, "fc_kernel": 1},
        {"stride": 16, "upsampling": "learned"},
        {"input_upsampling": 2},
    ],
    ids=str,
)
def test_the_grid_of_an_fcn_is_what_its_layers_give(architecture: dict[str, object]) -> None:
    network = tiny_network(tiny_architecture(**architecture))
    grid = probe(network, 3)
    assert grid == Grid(network.stride, 0, network.halo)
    agreement = compare_window(network, 3, grid.stride, network.halo)
    assert agreement.pixels == 64**2
    assert agreement.difference < 1e-4


@st.composite
def _stacks(draw: st.DrawFn) -> list[Convolution]:
    """Convolutions that shrink an image by their stride exactly; kernels and paddings as uneven as can be."""
    layers = []
    for stride in draw(st.permutations([1, 1, 2, 3]) | st.lists(st.sampled_from([1, 2]), min_size=1, max_size=4)):
        padding = draw(st.integers(0, 3))
        kernel = stride + 2 * padding - draw(st.integers(0, stride - 1))
        layers.append((kernel, stride, padding))
    return layers


def _enlarged(reach: Reach, factor: int) -> Reach:
    """As `Reach.upsample`, with the neighbour whose weight is zero: by an odd factor, 0 times NaN is NaN."""
    if factor == 1:
        return reach
    below = (2 * np.arange(reach.cells * factor) + 1 - factor) // (2 * factor)
    return Reach(reach.period, reach._at(reach.first, below), reach._at(reach.last, below + 1))


@settings(deadline=None, max_examples=12)
@given(_stacks(), st.integers(0, 4))
def test_random_stacks_against_interval_arithmetic(stack: list[Convolution], up_at: int) -> None:
    smallest = lcm(prod(s for _, s, _ in stack[:up_at]), prod(s for _, s, _ in stack[up_at:]))
    reach, layers, shrunk = Reach.of_input(smallest), list[nn.Module](), 1

    def enlarge(factor: int) -> None:
        nonlocal reach
        layers.append(Upsample(factor))
        reach = _enlarged(reach, factor)

    for at, (kernel, step, padding) in enumerate(stack):
        if at == up_at:
            enlarge(shrunk)
            shrunk = 1
        layers += [nn.Conv2d(4 if at else 3, 4, kernel, step, padding), nn.LeakyReLU()]
        reach = reach.conv(kernel, stride=step, padding=padding)
        shrunk *= step
    enlarge(shrunk)
    network = nn.Sequential(*layers)
    grid = probe(network, 3)
    assert (grid.stride, grid.halo) == (smallest, reach.halo)
    assert compare_window(network, 3, smallest, reach.halo).difference < 1e-4


class Caffe(nn.Module):
    """FCN-32s as first published: 100 pixels of padding, an unpadded fc6, and a crop of 19 pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = tiny_network(tiny_architecture(stride=32, fc_kernel=7))
        first = next(m for m in self.inner.trunk.modules() if isinstance(m, nn.Conv2d))
        first.padding, self.inner.fc6.padding = (100, 100), (0, 0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        net = self.inner
        h = torch.relu(net.fc7(torch.relu(net.fc6(net.trunk(x)[2]))))
        score = net.score(h)
        kernel = torch.ones(score.shape[1], 1, 64, 64)
        up = functional.conv_transpose2d(score, kernel, stride=32, groups=score.shape[1])
        return up[..., 19 : 19 + x.shape[2], 19 : 19 + x.shape[3]]


def test_the_cells_of_the_original_begin_at_29() -> None:
    network = Caffe()
    assert probe(network, 3) == Grid(32, 29, 224)
    assert compare_window(network, 3, 32, 224).difference < 1e-4, "windows at multiples of 32, whatever the phase"


@pytest.mark.parametrize(
    ("network", "grid"),
    [
        (nn.Sequential(nn.Conv2d(3, 2, 1)), Grid(1, 0, 0)),
        (nn.Sequential(nn.Conv2d(3, 2, 7, padding=3, padding_mode="reflect"), nn.BatchNorm2d(2)), Grid(1, 0, 3)),
        (nn.Sequential(nn.Conv2d(3, 2, (3, 7), padding=(1, 3)), nn.Hardswish()), Grid(1, 0, 3)),
        (nn.Sequential(nn.Conv2d(3, 2, 3, padding=40, dilation=40)), Grid(1, 0, 40)),
        (nn.Sequential(nn.Conv2d(3, 2, 3, padding=800, dilation=800)), Grid(1, 0, 800)),
        (nn.Sequential(nn.Conv2d(3, 4, 3, 3), nn.ConvTranspose2d(4, 2, 3, 3)), Grid(3, 0, 0)),
        (nn.Sequential(nn.Conv2d(3, 4, 5, 5), nn.Conv2d(4, 4, 3, 1, 1), nn.Upsample(scale_factor=5)), Grid(5, 0, 5)),
        (nn.Sequential(nn.AvgPool2d((2, 3)), nn.Conv2d(3, 2, 1), nn.Upsample(scale_factor=(2, 3))), Grid(6, 0, 0)),
        (nn.Sequential(nn.MaxPool2d(15), nn.Conv2d(3, 2, 41, 1, 20), nn.Upsample(scale_factor=15)), Grid(15, 0, 300)),
        (nn.Sequential(nn.MaxPool2d(64), nn.Conv2d(3, 2, 1), nn.Upsample(scale_factor=64)), Grid(64, 0, 0)),
        (nn.Sequential(nn.MaxPool2d(14), nn.Conv2d(3, 2, 1), nn.Upsample(scale_factor=14)), Grid(14, 0, 0)),
    ],
    ids=["1x1", "reflect", "uneven", "dilated", "far", "three", "five", "two by three", "15", "64", "14"],
)
def test_by_hand(network: nn.Module, grid: Grid) -> None:
    assert probe(network.train(), 3) == grid
    assert not network.training
    assert grid.halo is not None
    assert compare_window(network, 3, grid.stride, grid.halo).difference < 1e-5
    if grid.halo:
        assert compare_window(network, 3, grid.stride, grid.halo - grid.stride).difference > 1e-3


class Squeeze(nn.Module):
    """Every pixel times the mean of all."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * functional.hardsigmoid(functional.adaptive_avg_pool2d(x, 1))


class Stretched(nn.Module):
    """Coarse scores laid corner to corner over the image, as some decoders do: no shift shifts them."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        coarse = functional.avg_pool2d(x, 8)
        return functional.interpolate(coarse, x.shape[-2:], mode="bilinear", align_corners=True)


class Attention(nn.Module):
    """Every pixel times its share of its column."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * x.softmax(dim=-2)


@pytest.mark.parametrize(
    "layer",
    [nn.InstanceNorm2d(4), nn.GroupNorm(2, 4), Squeeze(), Stretched(), Attention(), nn.AdaptiveMaxPool2d(32)],
    ids=lambda layer: type(layer).__name__,
)
def test_networks_for_which_no_halo_is_enough(layer: nn.Module) -> None:
    tail = nn.Upsample((32, 32)) if isinstance(layer, nn.AdaptiveMaxPool2d) else nn.Identity()
    network = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), layer, tail)
    if isinstance(layer, nn.AdaptiveMaxPool2d):
        with refuses("network-output", found="32 x 32", size="1920 x 32"):
            probe(network, 3)
    else:
        assert probe(network, 3) == Grid(32, 0, None)


@pytest.mark.parametrize("name", ["deeplabv3_mobilenet_v3_large", "lraspp_mobilenet_v3_large"])
def test_torchvision_heads_that_pool_the_whole_image(name: str) -> None:
    from torchvision.models import segmentation

    inner = getattr(segmentation, name)(weights=None, weights_backbone=None, num_classes=2)

    class Out(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.inner(x)["out"]
            return out

    assert probe(Out(), 3).halo is None


def test_a_channel_that_is_always_nan_is_no_global_network() -> None:
    network = nn.Conv2d(3, 2, 1)
    with torch.no_grad():
        network.weight[0] = torch.nan
    with refuses("weights-broken"):
        probe(network, 3)


def test_dead_weights_hide_nothing() -> None:
    """A gradient or a difference would say that a network of zeros looks nowhere."""
    network = Fcn(tiny_architecture(), 3, 4)  # score layers start at zero
    assert probe(network, 3) == Grid(network.stride, 0, network.halo)


@pytest.mark.parametrize(
    ("network", "code", "fields"),
    [
        (nn.Conv2d(3, 2, 3), "network-output", {"found": "30 x 30", "size": "32 x 32"}),
        (nn.Conv2d(3, 2, 8, 8), "network-output", {"found": "4 x 4", "size": "32 x 32"}),
        (nn.Conv2d(4, 2, 1), "network-failed", {"bands": 3, "rows": 32, "cols": 32, "kind": "RuntimeError"}),
        (nn.Flatten(), "network-output", {"found": "shape (1, 3072)"}),
        (nn.MultiheadAttention(4, 2), "network-failed", {}),
    ],
    ids=["valid", "coarse", "bands", "flat", "other"],
)
def test_networks_that_make_no_map(network: nn.Module, code: str, fields: dict[str, object]) -> None:
    with refuses(code, **fields):
        probe(network, 3)


def test_a_list_is_no_map() -> None:
    class Lists(nn.Module):
        def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
            return [x]

    with refuses("network-output", found="list"):
        forward(Lists(), torch.zeros(1, 3, 8, 8))


def test_a_first_trial_tells_side_and_classes() -> None:
    trial = try_out(tiny_network(classes=5), 3)
    assert (trial.side, trial.classes) == (32, 5)


def test_probing_draws_no_random_numbers() -> None:
    network = nn.Conv2d(3, 2, 3, padding=1)
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    assert probe(network, 3) == probe(network, 3)
    compare_window(network, 3, 1, 1)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize(("stride", "phase", "halo"), [(0, 0, 0), (8, 8, 8), (8, -1, 8), (8, 0, 4), (8, 0, -8)])
def test_a_grid_checks_itself(stride: int, phase: int, halo: int) -> None:
    with pytest.raises(ValueError, match=str(stride)):
        Grid(stride, phase, halo)
