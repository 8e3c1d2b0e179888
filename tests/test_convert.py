"""Weights of others give the scores that they gave there: against the original networks, written down literally."""

import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import safetensors.torch
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional
from torchvision import models

from fcn_batch.pipeline.core.errors import ModelError
from fcn_batch.pipeline.core.model_card import Architecture, Band, InputSpec, ModelCard, TorchvisionFcn
from fcn_batch.pipeline.core.normalise import normalise
from fcn_batch.pipeline.core.scalings import Pixels, input_spec
from fcn_batch.pipeline.core.voc import VOC_NAMES, voc_colour
from fcn_batch.pipeline.network.checkpoints import read_tensors
from fcn_batch.pipeline.network.convert import Facts, convert, convolutionalise, start_from
from fcn_batch.pipeline.network.foreign import Foreign, recognise
from fcn_batch.pipeline.network.networks import FcnNetwork, build_network
from fcn_batch.pipeline.network.weights import load_model, save_model
from fcn_batch.workflows.plan import Options, prepare
from tests.caffe import MEAN_BGR, Blobs, Variant, Version, bilinear, caffemodel, forward, random_net, state_dict
from tests.models import save_tiny_model, tiny_card, tiny_network
from tests.rasters import noise, write_raster
from tests.runs import fcn_batch

FACTS = Facts("converted")
FAR = 256
"""Pixels from the border at which the original's padding, upsampling and rounding up no longer show."""
EXACT = 1e-12
"""Of the largest score, in float64: only the order of sums may differ."""


@cache
def _image(bands: int = 3) -> NDArray[np.uint8]:
    return noise(bands, 2 * FAR + 40, 2 * FAR + 50)


def _source(path: Path, **options: Any) -> Foreign:
    return recognise(read_tensors(path), **options)


def _scores(network: nn.Module, card: ModelCard, image: NDArray[Any] | None = None) -> torch.Tensor:
    """Of the whole image as a run computes them, but in float64: (1, classes, rows, cols)."""
    image = _image() if image is None else image
    rows, cols = image.shape[1:]
    x = normalise(image, np.ones((rows, cols), np.bool_), card.input, dtype=np.float64)
    padded = functional.pad(torch.from_numpy(x)[None], (0, -cols % card.stride, 0, -rows % card.stride))
    with torch.no_grad():
        return cast(torch.Tensor, network.double()(padded)[:, :, :rows, :cols])


def _difference(one: torch.Tensor, other: torch.Tensor, margin: int = FAR) -> float:
    """The largest one further than `margin` from the border, as a share of the largest score."""
    assert one.shape == other.shape
    inner = (slice(None), slice(None), slice(margin, one.shape[2] - margin), slice(margin, one.shape[3] - margin))
    return float((one - other)[inner].abs().max() / other.abs().max())


# --- the authors' nets ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", ["32s", "16s", "8s", "8s-atonce"])
def test_a_caffemodel_gives_the_scores_of_the_original(tmp_path: Path, variant: Variant) -> None:
    net = random_net(variant)
    network, card = convert(_source(caffemodel(tmp_path / "a.caffemodel", net, double=True)), FACTS)
    assert isinstance(card.architecture, Architecture)
    assert (card.architecture.stride, card.architecture.upsampling) == (int(variant.split("s")[0]), "bilinear")
    assert (card.stride, card.halo, card.phase, card.architecture.shift) == (32, 224, 29, 3)
    expected = forward(net, _image())
    assert _difference(_scores(network, card), expected) < EXACT
    shifted = np.roll(_image(), 1, axis=2)
    assert _difference(_scores(network, card, shifted), expected) > 1e-3, "the comparison sees a pixel's difference"


@pytest.mark.parametrize("wrong", ["mean", "order", "shift", "factors"])
def test_the_comparison_sees_each_trap(tmp_path: Path, wrong: str) -> None:
    net = random_net("8s-atonce")
    source = _source(caffemodel(tmp_path / "a.caffemodel", net, double=True))
    expected = forward(net, _image(), MEAN_BGR[::-1] if wrong == "mean" else MEAN_BGR)
    if wrong == "order":
        expected = forward(net, _image()[::-1])
    if wrong == "factors":
        expected = forward({name: blobs for name, blobs in net.items() if not name.startswith("scale")}, _image())
    network, card = convert(source, FACTS)
    if wrong == "shift":
        assert isinstance(card.architecture, Architecture)
        flat = build_network(card.architecture.model_copy(update={"shift": 0}), 3, 4).double()
        flat.load_state_dict(network.state_dict())
        network = flat.eval()
    assert _difference(_scores(network, card), expected) > 1e-4


@pytest.mark.parametrize("form", ["bare", "checkpoint"])
@pytest.mark.parametrize("variant", ["16s", "8s-atonce"])
def test_pytorch_files_of_the_same_nets(tmp_path: Path, variant: Variant, form: str) -> None:
    net = random_net(variant)
    state: dict[str, Any] = dict(state_dict(net))
    if form == "checkpoint":
        state = {"epoch": 1, "best_mean_iu": np.float64(0.5), "model_state_dict": state, "arch": "FCN"}
    torch.save(state, tmp_path / "a.pth.tar")
    network, card = convert(_source(tmp_path / "a.pth.tar", at_once=variant == "8s-atonce"), FACTS)
    assert _difference(_scores(network, card), forward(net, _image())) < EXACT


def test_trained_upsampling_is_kept(tmp_path: Path) -> None:
    net = random_net("8s")
    draw = np.random.default_rng(5)
    for name in ("upscore2", "upscore_pool4", "upscore8"):
        net[name] = [net[name][0] + draw.normal(0, 0.05, net[name][0].shape)]
    network, card = convert(_source(caffemodel(tmp_path / "a.caffemodel", net, double=True)), FACTS)
    assert isinstance(card.architecture, Architecture)
    assert card.architecture.upsampling == "learned"
    assert _difference(_scores(network, card), forward(net, _image())) < EXACT


def test_one_trained_upsampling_of_several_keeps_all(tmp_path: Path) -> None:
    net = random_net("8s")
    net["upscore8"] = [1.25 * net["upscore8"][0]]
    network, card = convert(_source(caffemodel(tmp_path / "a.caffemodel", net, double=True)), FACTS)
    assert _difference(_scores(network, card), forward(net, _image())) < EXACT


def test_upsampling_by_groups_is_the_same(tmp_path: Path) -> None:
    net = random_net("32s")
    net["upscore"] = [1.25 * bilinear(4, 64)[range(4), range(4)][:, None]]
    network, card = convert(_source(caffemodel(tmp_path / "a.caffemodel", net, double=True)), FACTS)
    net["upscore"] = [1.25 * bilinear(4, 64)]
    assert _difference(_scores(network, card), forward(net, _image())) < EXACT


def test_colour_and_depth(tmp_path: Path) -> None:
    net = random_net("32s", bands=4)
    named = {("conv1_1_bgrd" if name == "conv1_1" else name): blobs for name, blobs in net.items()}
    network, card = convert(_source(caffemodel(tmp_path / "a.caffemodel", named, double=True)), FACTS)
    assert [band.name for band in card.input.bands] == ["red", "green", "blue", "log depth"]
    assert card.input.dtype == "float32"
    image = _image(4).astype(np.float32)
    image[3] = image[3] / 25 + 4
    expected = forward(net, image, (116.190, 97.203, 92.318, 7.844))
    assert _difference(_scores(network, card, image), expected) < EXACT


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_the_file_written_has_the_same_weights_and_runs(tmp_path: Path, version: Version) -> None:
    """Through the command line, to a class map."""
    path = caffemodel(tmp_path / "fcn8s-heavy-pascal.caffemodel", random_net("8s", classes=21), version)
    made = tmp_path / "made.safetensors"
    done = fcn_batch("model", "convert", path, "-o", made, "--gsd", "0.5")
    assert (done.exit_code, done.stdout, done.stderr) == (0, f"{made}\n", "")
    file, network = load_model(made)
    expected, _ = convert(_source(path), FACTS)
    for name, tensor in expected.state_dict().items():
        assert torch.equal(network.state_dict()[name], tensor), name
    card = file.card
    assert (card.name, card.input.gsd_m) == ("made", 0.5)
    assert card.summary == "FCN-8s over vgg16 with 21 classes, converted from fcn8s-heavy-pascal.caffemodel"
    assert [c.name for c in card.legend.classes] == list(VOC_NAMES)
    assert [c.colour for c in card.legend.classes[:3]] == ["#000000", "#800000", "#008000"]
    assert "vgg16 x 0.0625" in fcn_batch("model", "info", made).stdout
    write_raster(tmp_path / "a.tif", noise(3, 70, 90), photometric="RGB")
    done = fcn_batch("segment", tmp_path / "a.tif", "-m", made, "--quiet")
    assert done.exit_code == 0, done.stderr
    again = fcn_batch("model", "convert", path, "-o", made)
    assert again.exit_code == 6
    assert again.stderr == f"fcn-batch: {made}: exists already; give --overwrite to replace it\n"
    assert fcn_batch("model", "convert", path, "-o", made, "--overwrite", "--name", "net").exit_code == 0
    assert load_model(made)[0].card.name == "net"


def test_a_converted_model_passes_its_check(tmp_path: Path) -> None:
    path = caffemodel(tmp_path / "a.caffemodel", random_net("32s", width=64, fc=2, classes=2))
    assert fcn_batch("model", "convert", path, "-o", tmp_path / "a.safetensors").exit_code == 0
    check = fcn_batch("model", "check", tmp_path / "a.safetensors")
    assert check.exit_code == 0, check.stderr
    assert "exact: with 224 px" in check.stdout


# --- names, colours, options ---------------------------------------------------------------------------------


def test_colours_are_those_of_the_voc_devkit() -> None:
    """VOClabelcolormap: bit k of red is bit 3 * (7 - k) of the number, and so on."""
    for number in range(256):
        bits = f"{number:024b}"[::-1]
        expected = "".join(f"{int(bits[channel::3], 2):02x}" for channel in range(3))
        assert voc_colour(number) == f"#{expected}"


def test_names_of_a_file(tmp_path: Path) -> None:
    path = caffemodel(tmp_path / "a.caffemodel", random_net("32s", classes=3))
    (tmp_path / "names.txt").write_text("sea\n\n land \nsea\n")
    for names, expected in ((None, ["class 0", "class 1", "class 2"]), ("names.txt", ["sea", "land", "sea (2)"])):
        words = [] if names is None else ["--classes", tmp_path / names]
        done = fcn_batch("model", "convert", path, "-o", tmp_path / "a.safetensors", "--overwrite", *words)
        assert done.exit_code == 0, done.stderr
        assert [c.name for c in load_model(tmp_path / "a.safetensors")[0].card.legend.classes] == expected


def test_means_of_one_s_own() -> None:
    spec = input_spec("caffe", 1.0, (92.318, 97.203, 116.190))
    x = normalise(np.full((3, 1, 1), 200, np.uint8), np.ones((1, 1), np.bool_), spec, dtype=np.float64)
    assert x.ravel().tolist() == pytest.approx([200 - 92.318, 200 - 97.203, 200 - 116.190], rel=1e-12)


def _told(pixels: Pixels) -> torch.Tensor:
    spec = input_spec(pixels, 1.0)
    return torch.from_numpy(normalise(_image(), np.ones(_image().shape[1:], np.bool_), spec, dtype=np.float64))


@pytest.mark.parametrize(
    ("pixels", "weights"),
    [("imagenet", models.VGG16_Weights.IMAGENET1K_V1), ("caffe-rgb", models.VGG16_Weights.IMAGENET1K_FEATURES)],
)
def test_pixels_are_scaled_as_torchvision_says(pixels: Pixels, weights: models.WeightsEnum) -> None:
    preset = weights.transforms()
    mean, std = (torch.tensor(v, dtype=torch.float64)[:, None, None] for v in (preset.mean, preset.std))
    assert torch.allclose(_told(pixels), (torch.from_numpy(_image() / 255.0) - mean) / std, rtol=1e-12)


def test_googlenet_s_pixels_are_those_behind_its_own_transform() -> None:
    with torch.device("meta"):
        net = models.GoogLeNet(transform_input=True, aux_logits=False, init_weights=False)
    assert torch.allclose(_told("half"), net._transform_input(_told("imagenet")[None])[0], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("words", "code", "match"),
    [
        (["-o", "a.pth"], 6, "ends in .safetensors"),
        (["-o", "nowhere/a.safetensors"], 6, "there is no folder"),
        (["--name", "Ä b"], 2, "--name 'Ä b': give small letters"),
        (["--classes", "none.txt"], 2, "--classes none.txt: No such file"),
        (["--classes", "empty.txt"], 2, "no names in it"),
        (["--classes", "two.txt"], 5, "has 4 classes, and 2 names were given"),
        (["--classes", "long.txt"], 5, "at most 100 characters"),
        (["--means", "1,2"], 5, "2 means for 3 bands"),
        (["--means", "1,b"], 2, "not a list of numbers"),
        (["--gsd", "nan"], 5, "gsd_m"),
        (["--at-once"], 5, "no score_pool4 and score_pool3"),
    ],
)
def test_options_that_do_not_fit(
    tmp_path: Path, words: list[str], code: int, match: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = caffemodel(tmp_path / "a.caffemodel", random_net("32s", width=64))
    for name, text in (("empty", "\n"), ("two", "a\nb"), ("long", f"{'x' * 101}\nb\nc\nd")):
        (tmp_path / f"{name}.txt").write_text(text)
    output = [] if "-o" in words else ["-o", "a.safetensors"]
    done = fcn_batch("model", "convert", path, *output, *words)
    assert done.exit_code == code, done.stderr
    assert match in done.stderr
    assert not (tmp_path / "a.safetensors").exists()


# --- what cannot be converted --------------------------------------------------------------------------------


def _renamed(net: Blobs, **names: str) -> Blobs:
    return {names.get(name, name): blobs for name, blobs in net.items()}


def _two_trunks() -> Blobs:
    net = random_net("32s", width=64)
    return {f"{name}{which}": blobs for which in ("color", "hha") for name, blobs in net.items()}


def _changed(name: str, change: Any, variant: Variant = "32s") -> Blobs:
    net = random_net(variant, width=64)
    net[name] = [change(net[name][0]), *net[name][1:]]
    return net


def _nan(values: NDArray[Any]) -> NDArray[Any]:
    values.flat[0] = np.nan
    return values


@pytest.mark.parametrize(
    ("net", "match"),
    [
        (_renamed(random_net("32s", width=64), score_fr="score_fr_sem"), "two heads"),
        (_two_trunks(), "each of two images"),
        ({"conv1": [np.ones((2, 3, 11, 11))], "fc6": [np.ones((1, 2, 6, 6))]}, "CaffeNet: its grouped convolutions"),
        ({"dense": [np.ones((2, 2))]}, "no network known here"),
        (_renamed(random_net("32s", width=64), conv5_3="conv5_4"), "conv5_4.weight has no place"),
        ({k: v for k, v in random_net("32s", width=64).items() if k != "fc7"}, "fc7 is missing"),
        ({k: v for k, v in random_net("8s", width=64).items() if k != "conv4_2"}, "features.19.weight is missing"),
        ({k: v for k, v in random_net("8s", width=64).items() if k != "score_pool4"}, "score_pool3 and no score_pool4"),
        (_renamed(random_net("32s", width=64), score_fr="fc8"), "a classifier, not an FCN"),
        (_changed("conv3_1", np.zeros_like), "all weights of trunk.features.10 are zero"),
        (_changed("score_pool3", np.zeros_like, "8s"), "all weights of score_pool3 are zero"),
        (_changed("fc7", _nan), "fc7.weight holds NaN"),
        (_changed("conv3_1", lambda w: w[:, :1]), "has the shape"),
        (_changed("conv1_1", lambda w: w[0, 0, 0]), "shapes that no such network has|has the shape"),
        (_changed("conv1_1", lambda w: np.concatenate([w, w], axis=1)), "6 bands"),
        (_changed("fc6", lambda w: w[..., :3]), "has the shape"),
        (_changed("fc6", lambda _: np.ones((1, 16, 16, 16))), r"no network has layers of these sizes: fc_kernel.*16"),
        (_changed("upscore", lambda w: w[..., :63]), r"shape \(4, 4, 64, 63\), not \(4, 4, 64, 64\)"),
    ],
    ids=[
        "two heads",
        "two trunks",
        "caffenet",
        "unknown",
        "extra",
        "no fc7",
        "no conv4_2",
        "no pool4",
        "classifier",
        "zero trunk",
        "zero skip",
        "nan",
        "shape",
        "no matrix",
        "bands",
        "no square",
        "large kernel",
        "odd upsampling",
    ],
)
def test_what_cannot_be_converted_says_why(tmp_path: Path, net: Blobs, match: str) -> None:
    path = caffemodel(tmp_path / "a.caffemodel", net)
    with pytest.raises(ModelError, match=match) as caught:
        convert(_source(path), FACTS)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_models_of_our_own_need_no_conversion(tmp_path: Path) -> None:
    path = save_tiny_model(tmp_path / "a.safetensors")
    done = fcn_batch("model", "convert", path, "-o", tmp_path / "b.safetensors")
    assert (done.exit_code, done.stdout) == (5, "")
    assert "use it as it is" in done.stderr


# --- torchvision's FCN ---------------------------------------------------------------------------------------


def test_torchvision_s_fcn(tmp_path: Path) -> None:
    """Its auxiliary head is left out; at multiples of 8 the scores are torchvision's own, everywhere."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        theirs = models.segmentation.fcn_resnet50(weights=None, weights_backbone=None, aux_loss=True).double().eval()
    torch.save(theirs.state_dict(), tmp_path / "fcn_resnet50_coco.pth")
    network, card = convert(_source(tmp_path / "fcn_resnet50_coco.pth"), FACTS)
    assert card.architecture == TorchvisionFcn(name="fcn_resnet50")
    assert (card.stride, card.phase) == (8, 0)
    assert [c.name for c in card.legend.classes] == list(VOC_NAMES)
    image = noise(3, 40, 48)
    rgb = torch.from_numpy(image / 255.0)
    mean, std = (
        torch.tensor(v, dtype=torch.float64)[:, None, None] for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    )
    with torch.no_grad():
        expected = theirs(((rgb - mean) / std)[None])["out"]
    assert _difference(_scores(network, card, image), expected, 0) < EXACT


# --- classifiers ---------------------------------------------------------------------------------------------


class _Narrow(nn.Module):
    """torchvision's VGG16 or AlexNet with fewer channels."""

    def __init__(self, kind: str, share: int = 16, fc: int = 12, classes: int = 5) -> None:
        super().__init__()
        build = {"vgg16": models.vgg16, "alexnet": models.alexnet}[kind]
        with torch.device("meta"):
            theirs = build(weights=None)
        layers: list[nn.Module] = []
        into = 3
        for layer in theirs.features:
            if isinstance(layer, nn.Conv2d):
                out = layer.out_channels // share
                kernel, stride, padding = (int(v[0]) for v in (layer.kernel_size, layer.stride, layer.padding))
                layers.append(nn.Conv2d(into, out, kernel, stride, padding))
                into = out
            else:
                layers.append(layer)
        self.features, self.avgpool = nn.Sequential(*layers), theirs.avgpool
        side = 7 if kind == "vgg16" else 6
        linear = iter([nn.Linear(into * side**2, fc), nn.Linear(fc, fc), nn.Linear(fc, classes)])
        self.classifier = nn.Sequential(*(next(linear) if isinstance(m, nn.Linear) else m for m in theirs.classifier))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return cast(torch.Tensor, self.classifier(torch.flatten(self.avgpool(self.features(x)), 1)))


def _classifier(kind: str, **options: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        if kind == "googlenet":
            net: nn.Module = models.googlenet(weights=None, aux_logits=True, init_weights=False, num_classes=5)
        else:
            net = _Narrow(kind, **options)
        for name, parameter in net.named_parameters():
            if parameter.ndim > 1:
                nn.init.kaiming_normal_(parameter, nonlinearity="relu")
            elif name.endswith("bias"):
                nn.init.normal_(parameter, std=0.1)
    return net.double().eval()


def _coarse(network: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Scores before they are enlarged."""
    seen: list[torch.Tensor] = []
    hook = network.get_submodule("up_final").register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        network.double()(x)
    hook.remove()
    return seen[0]


@pytest.mark.parametrize("kind", ["vgg16", "alexnet", "googlenet"])
def test_a_classifier_s_answer_becomes_a_map(tmp_path: Path, kind: str) -> None:
    """Against torchvision's own features, with its head as convolutions that do not look beyond the map."""
    theirs = _classifier(kind)
    torch.save(theirs.state_dict(), tmp_path / "a.pth")
    network, card = convolutionalise(_source(tmp_path / "a.pth"), FACTS)
    assert isinstance(card.architecture, Architecture)
    assert (card.architecture.trunk, card.architecture.stride, card.architecture.shift) == (kind, 32, 0)
    rows, cols = (192, 224) if kind == "googlenet" else (416, 448)
    x = torch.randn(1, 3, rows, cols, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    cells = _coarse(network, x)
    assert cells.shape == (1, 5, rows // 32, cols // 32)
    with torch.no_grad():
        assert network(x).shape == (1, 5, rows, cols)
        if kind == "googlenet":
            features, side = _before_pool(theirs, x), 1
            heads = [theirs.get_submodule("fc")]
        else:
            features, side = theirs.get_submodule("features")(x), 7 if kind == "vgg16" else 6
            heads = [m for m in theirs.get_submodule("classifier").children() if isinstance(m, nn.Linear)]
        expected = _slid(heads, features, side)
    start, beyond = (side - 1) // 2, 3 if kind == "alexnet" else 0
    # torchvision's AlexNet drops what is no whole cell at the right and lower border, and pads there instead
    rows, cols = rows // 32 - side + 1 - beyond, cols // 32 - side + 1 - beyond
    found = cells[:, :, start : start + rows, start : start + cols]
    assert _difference(found, expected[:, :, :rows, :cols], 0) < EXACT
    assert rows >= 5


def _before_pool(net: nn.Module, x: torch.Tensor) -> torch.Tensor:
    seen: list[torch.Tensor] = []
    hook = net.get_submodule("avgpool").register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    net(x)
    hook.remove()
    return seen[0]


def _slid(heads: list[nn.Module], features: torch.Tensor, side: int) -> torch.Tensor:
    """The fully connected layers at each place of a window of that side, one by one."""
    windows = functional.unfold(features, side).transpose(1, 2)
    for index, head in enumerate(heads):
        windows = head(functional.relu(windows) if index else windows)
    rows, cols = (n - side + 1 for n in features.shape[2:])
    return windows.transpose(1, 2).reshape(1, -1, rows, cols)


def test_the_cell_in_the_middle_of_a_crop_is_the_classifier_s_answer(tmp_path: Path) -> None:
    theirs = _classifier("vgg16")
    torch.save({"state_dict": theirs.state_dict()}, tmp_path / "a.pth")
    network, _ = convolutionalise(_source(tmp_path / "a.pth"), FACTS)
    x = torch.randn(1, 3, 224, 224, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = theirs(x)
    difference = (_coarse(network, x)[:, :, 3, 3] - expected).abs().max() / expected.abs().max()
    assert difference < EXACT


def test_imagenet_s_thousand_classes_are_too_many_for_a_map(tmp_path: Path) -> None:
    torch.save(_classifier("vgg16", share=64, fc=2, classes=1000).float().state_dict(), tmp_path / "vgg16.pth")
    made = tmp_path / "made.safetensors"
    done = fcn_batch("model", "convolutionalise", "vgg16", tmp_path / "vgg16.pth", "-o", made)
    assert (done.exit_code, done.stdout) == (0, f"{made}\n"), done.stderr
    names = [c.name for c in load_model(made)[0].card.legend.classes]
    assert (len(names), names[0], len(set(names))) == (1000, "tench", 1000)
    assert "1000 classes" in fcn_batch("model", "info", made).stdout
    raster = write_raster(tmp_path / "a.tif", noise(3, 40, 40), photometric="RGB")
    with pytest.raises(ModelError, match="has 1000 classes with ids up to 999; a map of bytes holds ids 0 to 254"):
        prepare(raster, Options(str(made)))
    done = fcn_batch("segment", raster, "-m", made)
    assert done.exit_code == 5
    assert "train it further for fewer classes" in done.stderr


def test_pixels_in_caffe_s_order_and_scale(tmp_path: Path) -> None:
    """Caffe's VGG16 under torchvision's names, as pytorch-fcn starts from."""
    theirs = _classifier("vgg16")
    torch.save(theirs.state_dict(), tmp_path / "vgg16_from_caffe.pth")
    network, card = convolutionalise(_source(tmp_path / "vgg16_from_caffe.pth", pixels="caffe"), FACTS)
    image = noise(3, 224, 224)
    bgr = torch.from_numpy(image[::-1].astype(np.float64)) - torch.tensor(MEAN_BGR, dtype=torch.float64)[:, None, None]
    with torch.no_grad():
        expected = theirs(bgr[None])
    x = torch.from_numpy(normalise(image, np.ones((224, 224), np.bool_), card.input, dtype=np.float64))[None]
    assert (_coarse(network, x)[:, :, 3, 3] - expected).abs().max() / expected.abs().max() < EXACT


def test_classifiers_that_are_none_or_others(tmp_path: Path) -> None:
    torch.save(_classifier("vgg16").state_dict(), tmp_path / "vgg16.pth")
    features = {k: v for k, v in _classifier("alexnet").state_dict().items() if k.startswith("features")}
    torch.save(features, tmp_path / "features.pth")
    torch.save({**features, "features.1.weight": torch.ones(3)}, tmp_path / "bn.pth")
    fcn = caffemodel(tmp_path / "fcn.caffemodel", random_net("32s", width=64))
    output = ["-o", tmp_path / "a.safetensors"]
    for words, match in (
        (["convolutionalise", "alexnet", tmp_path / "vgg16.pth"], "holds vgg16, not alexnet"),
        (["convolutionalise", "alexnet", tmp_path / "features.pth"], "features without a classifier"),
        (["convolutionalise", "alexnet", tmp_path / "bn.pth"], "neither VGG16's nor AlexNet's"),
        (["convolutionalise", "vgg16", fcn], "try `fcn-batch model convert`"),
        (["convert", tmp_path / "vgg16.pth"], "`fcn-batch model convolutionalise vgg16` makes an FCN of it"),
    ):
        done = fcn_batch("model", *words, *output)
        assert done.exit_code == 5, done.stderr
        assert match in done.stderr


# --- starting a training -------------------------------------------------------------------------------------


SMALL: dict[str, Any] = {"width": 1 / 16, "fc_channels": 12}


def _start(path: Path, bands: int = 3, classes: int = 7, **architecture: Any) -> tuple[FcnNetwork, list[str]]:
    network = build_network(Architecture(**{**SMALL, **architecture}), bands, classes)
    return network, start_from(network, path)


def test_a_classifier_as_a_start(tmp_path: Path) -> None:
    theirs = _classifier("vgg16").state_dict()
    torch.save(theirs, tmp_path / "vgg16.pth")
    network, kept = _start(tmp_path / "vgg16.pth")
    assert kept == ["score", "score_pool3", "score_pool4"]
    state = network.state_dict()
    assert torch.equal(state["trunk.features.28.weight"], theirs["features.28.weight"].float())
    assert torch.equal(state["fc6.weight"].flatten(1), theirs["classifier.0.weight"].float())
    assert torch.equal(state["fc7.bias"], theirs["classifier.3.bias"].float())
    assert not state["score.weight"].any(), "its own start"
    assert _start(tmp_path / "vgg16.pth", classes=5)[1] == ["score_pool3", "score_pool4"]
    assert _start(tmp_path / "vgg16.pth", fc_kernel=3)[1] == ["fc6", "score", "score_pool3", "score_pool4"]
    kept = _start(tmp_path / "vgg16.pth", upsampling="learned", stride=32)[1]
    assert kept == ["score", "up_final"]


def test_more_bands_get_the_mean_filter(tmp_path: Path) -> None:
    theirs = _classifier("vgg16").state_dict()["features.0.weight"]
    torch.save(_classifier("vgg16").state_dict(), tmp_path / "vgg16.pth")
    network, _ = _start(tmp_path / "vgg16.pth", bands=5)
    first = network.state_dict()["trunk.features.0.weight"].double()
    assert torch.allclose(first[:, :3], theirs)
    assert torch.allclose(first[:, 3:], theirs.mean(1, keepdim=True).expand(-1, 2, -1, -1))


@pytest.mark.parametrize("trunk", ["alexnet", "googlenet"])
def test_other_trunks(tmp_path: Path, trunk: str) -> None:
    theirs = _classifier(trunk).state_dict()
    torch.save(theirs, tmp_path / "a.pth")
    options = {"fc_kernel": 6} if trunk == "alexnet" else {"width": 1, "fc_channels": 0}
    network, kept = _start(tmp_path / "a.pth", trunk=trunk, **options)
    assert kept == ["score", "score_pool3", "score_pool4"]
    for key, tensor in network.state_dict().items():
        if key.startswith("trunk.") and not key.endswith("tracked"):
            assert torch.equal(tensor, theirs[key[6:]].float()), key


@cache
def _resnet() -> dict[str, torch.Tensor]:
    with torch.device("meta"):
        shapes = build_network(TorchvisionFcn(), 3, 21).state_dict()
    return {key: torch.ones(tensor.shape, dtype=tensor.dtype) for key, tensor in shapes.items()}


def test_a_resnet_as_a_start(tmp_path: Path) -> None:
    whole, network = _resnet(), build_network(TorchvisionFcn(), 4, 21)
    trunk = {k[9:]: v for k, v in whole.items() if k.startswith("backbone.")} | {"fc.weight": torch.ones(2, 2)}
    for theirs, kept in ((trunk, ["head", "score"]), (whole, [])):
        safetensors.torch.save_file(theirs, tmp_path / "a.safetensors")
        before = network.state_dict()["classifier.0.weight"].clone()
        assert start_from(network, tmp_path / "a.safetensors") == kept
        state = network.state_dict()
        assert all((tensor == 1).all() for key, tensor in state.items() if key.startswith("backbone."))
        assert torch.equal(state["classifier.0.weight"], before if kept else whole["classifier.0.weight"])


def test_an_efficientnet_as_a_start(tmp_path: Path) -> None:
    package = pytest.importorskip("efficientnet_lite_pytorch", reason="the weights' own package is not installed")
    theirs = package.EfficientNet.from_name("efficientnet-lite0").state_dict()
    torch.save(theirs, tmp_path / "a.pth")
    network, kept = _start(tmp_path / "a.pth", trunk="efficientnet_lite0", width=1, fc_channels=0)
    assert kept == ["score", "score_pool3", "score_pool4"]
    assert torch.equal(network.state_dict()["trunk.stem.conv.weight"], theirs["_conv_stem.weight"])


def test_the_authors_net_and_its_like_as_a_start(tmp_path: Path) -> None:
    net = random_net("8s-atonce", classes=7, fc=12)
    path = caffemodel(tmp_path / "a.caffemodel", net)
    network, kept = _start(path)
    assert kept == []
    state = network.state_dict()
    assert torch.equal(state["trunk.features.0.weight"].flip(1), torch.from_numpy(net["conv1_1"][0]).float())
    scaled = torch.from_numpy(net["score_pool3"][0]).float() * 1e-4
    assert torch.allclose(state["score_pool3.weight"], scaled, rtol=1e-6)
    network, _ = _start(path, skip_scales=(0.01, 0.0001))  # the network multiplies by itself
    assert torch.allclose(network.state_dict()["score_pool3.weight"], scaled * 1e4, rtol=1e-6)
    heads = {k: [b.reshape(len(b), -1) if b.ndim > 1 and k.startswith("fc") else b for b in v] for k, v in net.items()}
    heads["fc8"] = heads.pop("score_fr")
    plain = {k: v for k, v in heads.items() if k.startswith(("conv", "fc"))}
    assert _start(caffemodel(tmp_path / "v1.caffemodel", plain, "v1"))[1] == ["score", "score_pool3", "score_pool4"][1:]


def test_a_model_of_our_own_as_a_start(tmp_path: Path) -> None:
    coarse = tiny_network(Architecture(**SMALL, stride=32, skip_scales=(1, 1)), classes=7)
    save_model(tmp_path / "a.safetensors", coarse, tiny_card(coarse))
    network, kept = _start(tmp_path / "a.safetensors", stride=16)
    assert kept == ["score_pool4"]
    assert torch.equal(network.state_dict()["fc6.weight"], coarse.state_dict()["fc6.weight"])


def _broken(kind: str) -> dict[str, torch.Tensor]:
    state = _classifier("vgg16").float().state_dict()
    if kind == "zero":
        state["features.10.weight"].zero_()
    elif kind == "nan":
        state["features.10.bias"][0] = torch.nan
    elif kind == "part":
        del state["features.10.weight"]
    elif kind == "wide":
        state = _classifier("vgg16", share=8).float().state_dict()
    elif kind == "other":
        state = _classifier("alexnet").float().state_dict()
    elif kind == "resnet":
        state = _resnet()
    return state


@pytest.mark.parametrize(
    ("kind", "match"),
    [
        ("zero", "all of trunk.features.10.weight is zero"),
        ("nan", "trunk.features.10.bias holds NaN"),
        ("part", "trunk.features.10.weight is missing"),
        ("wide", "trunk.features.0.weight has the shape"),
        ("other", "does not fit the network's trunk"),
        ("resnet", "holds fcn_resnet50, whose trunk is not the network's"),
    ],
)
def test_a_trunk_that_does_not_fit_changes_nothing(tmp_path: Path, kind: str, match: str) -> None:
    torch.save(_broken(kind), tmp_path / "a.pth")
    network = build_network(Architecture(**SMALL), 3, 7)
    before = {key: tensor.clone() for key, tensor in network.state_dict().items()}
    with pytest.raises(ModelError, match=match):
        start_from(network, tmp_path / "a.pth")
    assert all(torch.equal(tensor, before[key]) for key, tensor in network.state_dict().items())


def test_a_head_of_nan_keeps_its_own_start(tmp_path: Path) -> None:
    """torchvision's file of VGG16's features only has no values in its classifier, and another scale of pixels."""
    state = _classifier("vgg16").float().state_dict()
    for key in state:
        if key.startswith("classifier"):
            state[key].fill_(torch.nan)
    torch.save(state, tmp_path / "vgg16_features.pth")
    assert _source(tmp_path / "vgg16_features.pth").pixels == "caffe-rgb"
    network, kept = _start(tmp_path / "vgg16_features.pth")
    assert kept == ["fc6", "fc7", "score", "score_pool3", "score_pool4"]
    assert all(tensor.isfinite().all() for tensor in network.state_dict().values())


@pytest.mark.parametrize("trunk", ["vgg16", "googlenet"])
@pytest.mark.parametrize("bands", [3, 4])
def test_the_first_convolution_is_adapted_to_the_pixels(tmp_path: Path, trunk: str, bands: int) -> None:
    """The same features, however the recipe scales pixels; a further band adds nothing at its mean."""
    theirs = _classifier(trunk)
    torch.save(theirs.state_dict(), tmp_path / "a.pth")
    options = {} if trunk == "vgg16" else {"width": 1, "fc_channels": 0}
    network = build_network(Architecture(**{**SMALL, "trunk": trunk, **options}), bands, 2).double().eval()
    scales = ((0.1, 0.05), (0.2, 0.1), (0.3, 0.02), (0.4, 0.3))[:bands]
    spec = InputSpec(
        bands=tuple(Band(name="rgbn"[k], mean=m, std=s) for k, (m, s) in enumerate(scales)),
        dtype="uint16",
        full_scale=10000,
        gsd_m=1,
    )
    start_from(network, tmp_path / "a.pth", spec=spec)
    share = torch.rand(1, bands, 64, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    if bands == 4:
        share[:, 3] = spec.bands[3].mean
    known = input_spec("imagenet" if trunk == "vgg16" else "half", 1.0)

    def scaled(spec: InputSpec) -> torch.Tensor:
        values = [(share[:, k] - band.mean) / band.std for k, band in enumerate(spec.bands)]
        return torch.stack(values, dim=1)

    first = "features.0" if trunk == "vgg16" else "conv1"
    with torch.no_grad():
        expected = theirs.get_submodule(first)(scaled(known))
        found = network.get_submodule(f"trunk.{first}")(scaled(spec))
    assert _difference(found, expected, 8) < EXACT


def test_bands_scaled_as_the_file_s_leave_the_bits_alone(tmp_path: Path) -> None:
    theirs = _classifier("vgg16").float().state_dict()
    torch.save(theirs, tmp_path / "a.pth")
    network = build_network(Architecture(**SMALL), 3, 2)
    spec = input_spec("imagenet", 2.0)
    named = spec.model_copy(update={"bands": tuple(b.model_copy(update={"name": f"a {b.name}"}) for b in spec.bands)})
    start_from(network, tmp_path / "a.pth", spec=named)
    assert torch.equal(network.state_dict()["trunk.features.0.weight"], theirs["features.0.weight"])


# --- memory --------------------------------------------------------------------------------------------------


def test_converting_takes_less_than_twice_the_file(tmp_path: Path) -> None:
    """Measured in a process of its own; the file's own pages, mapped, are not counted."""
    path = caffemodel(tmp_path / "a.caffemodel", random_net("8s", width=16, fc=2048))
    code = (
        "import sys; from pathlib import Path\n"
        "from fcn_batch.workflows.learning.convert import Conversion, convert_file\n"
        "from fcn_batch.pipeline.network.checkpoints import read_tensors\n"
        "def peak():\n"
        "    lines = Path('/proc/self/status').read_text().splitlines()\n"
        "    return {l.split(':')[0]: int(l.split()[1]) for l in lines if l.startswith('Rss')}['RssAnon']\n"
        "import threading, time; top = [0]; before = peak()\n"
        "def watch():\n"
        "    while True:\n"
        "        top[0] = max(top[0], peak()); time.sleep(0.002)\n"
        "threading.Thread(target=watch, daemon=True).start()\n"
        "convert_file(Conversion(Path(sys.argv[1]), Path(sys.argv[2]))); print((top[0] - before) * 1024)"
    )
    if not Path("/proc/self/status").exists():
        pytest.skip("this system does not say what memory a process has")
    arguments = [sys.executable, "-c", code, str(path), str(tmp_path / "a.safetensors")]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 2 * path.stat().st_size
