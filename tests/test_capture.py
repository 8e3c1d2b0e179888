"""Any module is either recorded as it computes, or refused with the name of what stands in the way."""

from collections.abc import Callable
from importlib import import_module
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from fcn_batch.pipeline.network.capture import NotStreamableError, capture, graph_of
from tests.models import tiny_network
from tests.networks import BANDS, image, programmed, stacked, streamed

smp: Any = import_module("segmentation_models_pytorch")  # it has no types
Forward = Callable[[nn.ModuleList, torch.Tensor], Any]


class Net(nn.Module):
    """Computes `forward` with `layers`, which are called `part.0`, `part.1`, …"""

    def __init__(self, forward: Forward, *layers: nn.Module) -> None:
        super().__init__()
        self.part, self.how = nn.ModuleList(layers), forward

    def forward(self, x: torch.Tensor) -> Any:
        return self.how(self.part, x)


def _conv(before: int = BANDS, after: int = 4, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(before, after, 3, **{"padding": 1, **options})


def _down() -> nn.Conv2d:
    return nn.Conv2d(BANDS, 4, 2, stride=2)


def _both(first: Callable[[torch.Tensor], torch.Tensor]) -> Forward:
    """`first` of a convolution, and the convolution itself added."""

    def forward(m: nn.ModuleList, x: torch.Tensor) -> torch.Tensor:
        y = m[0](x)
        out: torch.Tensor = first(y) + y
        return out

    return forward


def _in_place(change: Callable[[torch.Tensor], object]) -> Forward:
    """A convolution, `change` of it whose result is not taken, and another convolution of it."""

    def forward(m: nn.ModuleList, x: torch.Tensor) -> torch.Tensor:
        y = m[0](x)
        change(y)
        out: torch.Tensor = m[1](y) + y
        return out

    return forward


def _with(then: Forward) -> Forward:
    """`then` of a convolution."""
    return lambda m, x: then(m, m[0](x))


def _changed_image(m: nn.ModuleList, x: torch.Tensor) -> torch.Tensor:
    x = x.clone()
    x.mul_(2).sub_(0.5)
    out: torch.Tensor = m[0](x)
    return out


RECORDED = {
    "a copy of what is merged": Net(_both(lambda y: functional.relu(y.clone())), _conv()),
    "a later copy": Net(_with(lambda _, y: functional.relu(y) + y.clone()), _conv()),
    "detached": Net(_both(lambda y: functional.relu(y.detach())), _conv()),
    "dropout": Net(_both(lambda y: functional.relu(functional.dropout(y, 0.5, training=False))), _conv()),
    "relu twice": Net(_both(functional.relu), _conv()),
    "relu in place": Net(_both(lambda y: functional.relu(y, inplace=True)), _conv()),
    "sigmoid in place": Net(_both(lambda y: y.sigmoid_() * 2), _conv()),
    "relu in place, not taken": Net(_in_place(functional.relu_), _conv(), _conv(4)),
    "sum in place, not taken": Net(_in_place(lambda y: y.add_(1).div_(3)), _conv(), _conv(4)),
    "image in place": Net(_changed_image, _conv()),
    "norm of a copy": Net(_with(lambda m, y: m[1](y.clone()) + y), _conv(), nn.BatchNorm2d(4)),
    "norm, relu, norm": Net(lambda m, x: m[1](m[1](m[0](x)).relu()), _conv(), nn.BatchNorm2d(4)),
    "one layer twice": Net(lambda m, x: m[1](m[1](m[0](x))), _conv(), _conv(4)),
    "what nobody takes": Net(lambda m, x: (m[0](x), m[1](x))[1], _conv(), _conv()),
    "constants": Net(lambda m, x: 2.5 * m[0](x) / 3 - 1 + 0.25, _conv()),
    "weights as factors": Net(lambda m, x: m[0](x) * m[1].weight, _conv(), nn.Conv2d(4, 1, 1, bias=False)),
    "one channel to four": Net(lambda m, x: m[0](x) * m[1].weight, _conv(after=1), nn.Conv2d(4, 1, 1, bias=False)),
    "alpha": Net(_with(lambda m, y: torch.sub(y, m[1](y), alpha=3)), _conv(), _conv(4)),
    "clamped": Net(lambda m, x: m[0](x).clamp(min=-0.1, max=0.3), _conv()),
    "softmax": Net(lambda m, x: functional.log_softmax(m[0](x), dim=-3), _conv()),
    "no bias, no affine": Net(lambda m, x: m[1](m[0](x)), _conv(bias=False), nn.BatchNorm2d(4, affine=False)),
    "kernel smaller than stride": Net(
        lambda m, x: functional.interpolate(m[0](x), scale_factor=4), nn.Conv2d(BANDS, 4, 1, stride=4)
    ),
    "back to a map's size": Net(
        lambda m, x: functional.interpolate(m[0](x), size=x.shape[2:], mode="bilinear", align_corners=False), _down()
    ),
    "cropped and padded": Net(lambda m, x: m[1](m[0](x)), _conv(padding=0), _conv(4, padding=2)),
    "padded and cropped": Net(lambda m, x: functional.pad(m[0](x), (-1, -3, -2, -2)), _conv(padding=3)),
    "cropped and moved": Net(
        lambda m, x: m[1](functional.pad(m[0](x), (-2, 2, 3, -3))), _down(), nn.ConvTranspose2d(4, 4, 2, 2)
    ),
    "sliced": Net(lambda m, x: m[0](x)[:, :, 1:-3, 2:-2], _conv(padding=3)),
    "sliced at one edge": Net(lambda m, x: m[0](x)[..., 2:, :-2], _conv(padding=2)),
    "in half the numbers": Net(lambda _, x: functional.avg_pool2d(x, 3, 1, 1)),
    "stride 7": Net(lambda m, x: functional.interpolate(m[0](x), scale_factor=7), nn.Conv2d(BANDS, 4, 7, stride=7)),
    "a tuple": Net(lambda m, x: (m[0](x), m[0](x) * 2), _conv()),
    "a dictionary": Net(lambda m, x: {"out": m[0](x), "aux": m[0](x) * 2}, _conv()),
}


def _first(output: Any) -> torch.Tensor:
    if isinstance(output, dict):
        output = tuple(output.values())
    first: torch.Tensor = output[0] if isinstance(output, tuple) else output
    return first


@pytest.mark.parametrize("name", RECORDED)
def test_recorded_as_it_computes(name: str) -> None:
    torch.manual_seed(0)
    network = RECORDED[name].double().eval()
    graph = capture(network, BANDS)
    pixels = image(12 * graph.stride, 5 * graph.stride)
    with torch.inference_mode():
        expected = _first(network(pixels))
    assert graph.classes == expected.shape[1]
    strip = 2 * graph.stride
    found = stacked(streamed(programmed(graph, torch.float64, strip, pixels.shape[3]), pixels, strip))
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= 1e-12 * expected.abs().max()


class Excite(nn.Module):
    """Squeeze and excitation."""

    def __init__(self) -> None:
        super().__init__()
        self.squeeze, self.gate = nn.AdaptiveAvgPool2d(1), nn.Conv2d(4, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = x * self.gate(self.squeeze(x)).sigmoid()
        return out


class Attend(nn.Module):
    """Every pixel looks at every other."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        flat = x.flatten(2).transpose(1, 2)
        return functional.scaled_dot_product_attention(flat, flat, flat).transpose(1, 2).reshape(x.shape)


def _then(layer: nn.Module) -> Net:
    """`part.1` after a convolution."""
    return Net(lambda m, x: m[1](m[0](x)), _conv(), layer)


def _reshaped(m: nn.ModuleList, x: torch.Tensor) -> torch.Tensor:
    out: torch.Tensor = m[0](x).view(1, 4, -1).reshape(1, 4, x.shape[2], x.shape[3])
    return out


def _by_value(m: nn.ModuleList, x: torch.Tensor) -> torch.Tensor:
    out: torch.Tensor = m[0](x) if x.sum() > 0 else m[1](x)
    return out


def _by_place(m: nn.ModuleList, x: torch.Tensor) -> torch.Tensor:
    out: torch.Tensor = m[0](x) + torch.linspace(0, 1, x.shape[2])[:, None]
    return out


def _enlarged(**options: Any) -> Net:
    return Net(lambda m, x: functional.interpolate(m[0](x), **{"scale_factor": 2, **options}), _down())


REFUSED: dict[str, tuple[nn.Module, str]] = {
    "global pooling": (_then(Excite()), r"part\.1\.squeeze: adaptive_avg_pool2d \(pools the whole image\)"),
    "mean": (
        Net(lambda m, x: x - m[0](x).mean((2, 3), keepdim=True), _conv(after=3)),
        r"mean \(pools the whole image\)",
    ),
    "largest": (Net(lambda m, x: x / m[0](x).amax((2, 3), keepdim=True), _conv(after=3)), r"amax \(pools the whole"),
    "instance norm": (_then(nn.InstanceNorm2d(4)), r"part\.1: instance_norm \(normalises by the whole image\)"),
    "in place under another name": (
        Net(_both(lambda y: y.detach().mul_(2)), _conv()),
        r"mul \(changes in place what has another name too\)",
    ),
    "group norm": (_then(nn.GroupNorm(2, 4)), r"part\.1: group_norm \(normalises by the whole image\)"),
    "layer norm": (_then(nn.LayerNorm([1920])), r"part\.1: layer_norm \(normalises by the whole image\)"),
    "batch norm of the image": (
        _then(nn.BatchNorm2d(4, track_running_stats=False)),
        r"part\.1: batch_norm \(it normalises by the image itself\)",
    ),
    "attention": (_then(Attend()), r"part\.1: flatten"),
    "aligned corners": (
        _enlarged(mode="bilinear", align_corners=True),
        r"upsample_bilinear2d \(aligned at the corners",
    ),
    "bicubic": (_enlarged(mode="bicubic"), r"upsample_bicubic2d \(not known\)"),
    "no whole factor": (_enlarged(scale_factor=1.5), r"upsample_nearest2d \(by 3/2 x 3/2, no whole factors\)"),
    "a factor rounded by the size": (_enlarged(scale_factor=2.0002), r"upsample_nearest2d \(by .*no whole factors\)"),
    "the same, bilinear": (_enlarged(scale_factor=2.0002, mode="bilinear"), r"upsample_bilinear2d \(by "),
    "reflected": (_then(_conv(4, padding_mode="reflect")), r"part\.1: pad \(padding reflect \[1, 1, 1, 1\]\)"),
    "circular": (_then(_conv(4, padding_mode="circular")), r"part\.1: pad \(padding circular"),
    "sliced to a size": (Net(lambda m, x: m[0](x)[:, :, 1:1921, 1:-1], _conv(padding=2)), r"slice \(\[1:1921:1\] of d"),
    "sliced from the end": (Net(lambda m, x: m[0](x)[:, :, -1920:], _conv(padding=(2, 1))), r"slice \(\[-1920:"),
    "every other row": (Net(lambda m, x: m[0](x)[:, :, ::2], _conv()), r"slice \(\[0:\d+:2\] of dimension 2"),
    "some channels": (Net(lambda m, x: m[0](x)[:, 1:], _conv()), r"slice \(\[1:\d+:1\] of dimension 1"),
    "cropped and reflected": (
        Net(lambda m, x: functional.pad(m[0](x), (-1, -1, 1, 1), mode="replicate"), _conv(padding=(0, 2))),
        r"pad \(padding replicate \[-1, -1, 1, 1\]\)",
    ),
    "reshaped": (Net(_reshaped, _conv()), r"view(_1)? \(not known\)"),
    "rolled": (Net(lambda m, x: m[0](x).roll(1, 2), _conv()), r"roll \(looks anywhere in the image\)"),
    "summed up": (Net(lambda m, x: m[0](x).cumsum(2), _conv()), r"cumsum \(looks anywhere in the image\)"),
    "its place": (Net(_by_place, _conv()), r"linspace \(not known\)"),
    "by value": (Net(_by_value, _conv(), _conv()), r"torch\.export cannot record it \(GuardOnDataDependentSymNode"),
    "softmax of rows": (Net(lambda m, x: m[0](x).softmax(2), _conv()), r"softmax \(along dimension 2\)"),
    "joined rows": (Net(lambda m, x: torch.cat([m[0](x)] * 2, dim=2), _conv()), r"cat \(along dimension 2\)"),
    "random": (Net(lambda m, x: functional.dropout(m[0](x), 0.5, training=True), _conv()), r"dropout \(at random"),
    "'same' of an even kernel": (
        Net(lambda m, x: m[0](x), nn.Conv2d(BANDS, 4, 4, padding="same")),
        r"part\.0: conv2d \(padding 'same' with an even kernel\)",
    ),
    "pools that count less": (
        _then(nn.AvgPool2d(3, 1, 1, count_include_pad=False)),
        r"part\.1: avg_pool2d \(windows that end outside",
    ),
    "linear": (Net(lambda m, x: m[0](x), nn.Linear(1920, 1920)), r"part\.0: linear \(its place in the image enters\)"),
    "weights of the image": (
        Net(lambda m, x: functional.conv2d(x, m[0](x)[:, :3, :3, :3] * 1), _conv()),
        r"slice|conv2d \(its weights are computed\)",
    ),
    "holes between": (
        Net(lambda m, x: m[1](m[0](x)), _down(), nn.ConvTranspose2d(4, 4, 1, stride=2, output_padding=1)),
        r"part\.1: conv_transpose2d \(its kernel of 1 is smaller than its stride of 2\)",
    ),
    "smaller": (Net(lambda m, x: m[0](x), _conv(padding=0)), r"its scores of 1920 x 1920 pixels are 1918 x 1918"),
    "narrower": (Net(lambda m, x: m[0](x), _conv(padding=(1, 0))), r"1920 x 1920 pixels are 1920 x 1918"),
    "lower": (Net(lambda m, x: m[0](x), _conv(padding=(0, 1))), r"1920 x 1920 pixels are 1918 x 1920"),
    "coarse": (Net(lambda m, x: m[0](x), _down()), r"1920 x 1920 pixels are 960 x 960"),
    "a constant": (Net(lambda m, _: m[0].weight, _conv()), r"its output is not computed from the image"),
    "nothing": (Net(lambda _, x: x), r"its output is not computed from the image"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_by_name(name: str) -> None:
    network, said = REFUSED[name]
    with pytest.raises(NotStreamableError, match=said) as caught:
        capture(network, BANDS)
    assert len(set(caught.value.obstacles)) == len(caught.value.obstacles)
    graph, obstacles = graph_of(network, BANDS)
    assert graph is None
    assert obstacles == caught.value.obstacles


def test_torch_says_nothing_of_what_it_cannot_record(capfd: pytest.CaptureFixture[str]) -> None:
    graph, obstacles = graph_of(Net(lambda m, x: m[0](x) if x.sum() > 0 else x, _conv(after=BANDS)), BANDS)
    assert graph is None
    assert len(obstacles) == 1
    assert "\n" not in obstacles[0]
    assert capfd.readouterr() == ("", "")


def test_every_call_that_looks_everywhere_is_told_first() -> None:
    """Also those that follow one that is not known: it is they who make the halo infinite."""
    network = nn.Sequential(_conv(), nn.GroupNorm(2, 4), _conv(4), nn.Sequential(nn.InstanceNorm2d(4), nn.ReLU()))
    with pytest.raises(NotStreamableError) as caught:
        capture(network, BANDS)
    assert [one.split(" ")[0] for one in caught.value.obstacles] == ["1:", "3.0:"]
    shuffled = Net(lambda m, x: functional.pixel_shuffle(functional.pixel_unshuffle(m[0](x), 2), 2).roll(1, 2), _conv())
    assert "roll (" in graph_of(shuffled, BANDS)[1][0]
    beside = Net(lambda m, x: m[0](x) + m[1](x), nn.GroupNorm(3, 3), nn.InstanceNorm2d(3))
    assert [o.split(" ")[0] for o in graph_of(beside, BANDS)[1]] == ["part.0:", "part.1:"]


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (smp.FPN, r"decoder\.seg_blocks\.0\.block\.0\.block\.1: group_norm"),
        (smp.PSPNet, r"decoder\.psp\.blocks\.0\.pool\.0: adaptive_avg_pool2d"),
        (smp.DeepLabV3Plus, r"decoder\.aspp\.0\.convs\.4\.0: adaptive_avg_pool2d"),
        (smp.MAnet, r"decoder\.center: flatten"),
    ],
    ids=lambda kind: getattr(kind, "__name__", ""),
)
def test_networks_of_a_library_that_look_everywhere(kind: Any, said: str) -> None:
    with pytest.raises(NotStreamableError, match=said):
        capture(kind("resnet18", encoder_weights=None, classes=4), BANDS)


def test_the_places_are_the_modules_names() -> None:
    graph = capture(tiny_network(), BANDS)
    names = [node.name for node in graph.nodes]
    assert {"fc6", "fc7", "score", "up_score", "up_final"} <= set(names)
    assert graph.bands == BANDS
    assert graph.nodes[-1].columns == 1 == graph.scales[-1]


def test_layers_that_follow_a_convolution_are_merged_into_it() -> None:
    network = nn.Sequential(_conv(), nn.BatchNorm2d(4), nn.ReLU(), _conv(4), nn.ReLU(), nn.BatchNorm2d(4))
    assert [type(n.layer).__name__ for n in capture(network, BANDS).nodes] == ["Sliding", "Sliding", "Pointwise"]


def test_recording_leaves_the_network_as_it_was_but_in_evaluation() -> None:
    network = nn.Sequential(_conv(), nn.BatchNorm2d(4), nn.Dropout(), nn.ReLU(inplace=True)).train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    capture(network, BANDS)
    assert not network.training
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_a_bare_graph_counts_the_same_and_holds_no_weights() -> None:
    graph = capture(tiny_network(), BANDS)
    bare = graph.bare()
    assert (bare.stride, bare.reach.halo, bare.scoring) == (graph.stride, graph.reach.halo, graph.scoring)
    assert bare.ready(320) == graph.ready(320)
    assert bare.bytes_of_strip(32, 64, 4) == graph.bytes_of_strip(32, 64, 4)
    assert all(not hasattr(getattr(node.layer, "function", None), "weight") for node in bare.nodes)
    with pytest.raises(AssertionError, match="without weights"):
        streamed(programmed(bare, torch.float32, 32, 32), image(32, 32, torch.float32), 32)
