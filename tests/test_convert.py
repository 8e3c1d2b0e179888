"""Weights of others give the scores that they gave there: against the original networks, written down literally."""

from collections.abc import Callable
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

from fcn_batch.pipeline.core.classes import VOC_NAMES, voc_colour
from fcn_batch.pipeline.core.errors import ModelError
from fcn_batch.pipeline.core.model_card import Architecture, Band, InputSpec, ModelCard, TorchvisionFcn
from fcn_batch.pipeline.core.scalings import input_spec
from fcn_batch.pipeline.network.checkpoints import read_tensors
from fcn_batch.pipeline.network.fcn import FcnNetwork, build_network
from fcn_batch.pipeline.network.foreign import Foreign, recognise
from fcn_batch.pipeline.network.importing import Facts, convert, convolutionalise
from fcn_batch.pipeline.network.start import start_from
from fcn_batch.pipeline.network.weights import load_model, save_model
from fcn_batch.workflows.learning.convert import Conversion, convert_file
from tests.caffe import MEAN_BGR, Blobs, Variant, Version, bilinear, caffemodel, forward, random_net, state_dict
from tests.errors import refused, refuses
from tests.models import scaled, tiny_card, tiny_network
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


def _seen(image: NDArray[Any], spec: InputSpec) -> torch.Tensor:
    return torch.from_numpy(scaled(image, np.ones(image.shape[1:], np.bool_), spec, np.float64))[None]


def _scores(network: nn.Module, card: ModelCard, image: NDArray[Any]) -> torch.Tensor:
    """Of the whole image as a run computes them, but in float64: (1, classes, rows, cols)."""
    rows, cols = image.shape[1:]
    padded = functional.pad(_seen(image, card.input), (0, -cols % card.stride, 0, -rows % card.stride))
    with torch.no_grad():
        return cast(torch.Tensor, network.double()(padded)[:, :, :rows, :cols])


def _difference(one: torch.Tensor, other: torch.Tensor, margin: int = FAR) -> float:
    """The largest one further than `margin` from the border, as a share of the largest score."""
    assert one.shape == other.shape
    inner = (..., slice(margin, one.shape[2] - margin), slice(margin, one.shape[3] - margin))
    return float((one - other)[inner].abs().max() / other.abs().max())


# --- the authors' nets ---------------------------------------------------------------------------------------


def _upsampled(variant: Variant = "8s", **kernels: Callable[[NDArray[Any]], NDArray[Any]]) -> Blobs:
    net = random_net(variant)
    return net | {name: [change(net[name][0])] for name, change in kernels.items()}


def _shaken(kernel: NDArray[Any]) -> NDArray[Any]:
    return kernel + np.random.default_rng(5).normal(0, 0.05, kernel.shape)


NETS: dict[str, tuple[Blobs, int, str]] = {
    "32s": (random_net("32s"), 32, "bilinear"),
    "16s": (random_net("16s"), 16, "bilinear"),
    "8s": (random_net("8s"), 8, "bilinear"),
    "8s-atonce": (random_net("8s-atonce"), 8, "bilinear"),
    "trained": (_upsampled(upscore2=_shaken, upscore_pool4=_shaken, upscore8=_shaken), 8, "learned"),
    "one trained": (_upsampled(upscore8=lambda kernel: 1.25 * kernel), 8, "learned"),
    "by groups": (_upsampled("32s", upscore=lambda _: 1.25 * bilinear(4, 64)), 32, "learned"),
}


@pytest.mark.parametrize("name", NETS)
def test_a_caffemodel_gives_the_scores_of_the_original(tmp_path: Path, name: str) -> None:
    net, stride, upsampling = NETS[name]
    blobs = dict(net)
    if name == "by groups":
        blobs["upscore"] = [net["upscore"][0][range(4), range(4)][:, None]]
    network, card = convert(_source(caffemodel(tmp_path / "a.caffemodel", blobs, double=True)), FACTS)
    assert isinstance(card.architecture, Architecture)
    assert (card.architecture.stride, card.architecture.upsampling, card.architecture.shift) == (stride, upsampling, 3)
    assert (card.stride, card.halo, card.phase) == (32, 224, 29)
    assert _difference(_scores(network, card, _image()), forward(net, _image())) < EXACT


def test_the_comparison_sees_each_trap(tmp_path: Path) -> None:
    net = NETS["8s-atonce"][0]
    network, card = convert(_source(caffemodel(tmp_path / "a.caffemodel", net, double=True)), FACTS)
    assert isinstance(card.architecture, Architecture)
    found = _scores(network, card, _image())
    without_factors = {name: blobs for name, blobs in net.items() if not name.startswith("scale")}
    wrong = {
        "mean": forward(net, _image(), MEAN_BGR[::-1]),
        "order of bands": forward(net, _image()[::-1]),
        "factors": forward(without_factors, _image()),
        "a pixel": _scores(network, card, np.roll(_image(), 1, axis=2)),
    }
    flat = build_network(card.architecture.model_copy(update={"shift": 0}), 3, 4).double()
    flat.load_state_dict(network.state_dict())
    wrong["shift"] = _scores(flat.eval(), card, _image())
    assert {name: _difference(found, scores) > 1e-4 for name, scores in wrong.items()} == dict.fromkeys(wrong, True)


@pytest.mark.parametrize(("variant", "wrap"), [("16s", False), ("8s-atonce", True)])
def test_pytorch_files_of_the_same_nets(tmp_path: Path, variant: Variant, *, wrap: bool) -> None:
    net = random_net(variant)
    state: dict[str, Any] = dict(state_dict(net))
    torch.save({"epoch": 1, "model_state_dict": state} if wrap else state, tmp_path / "a.pth.tar")
    network, card = convert(_source(tmp_path / "a.pth.tar", at_once=variant == "8s-atonce"), FACTS)
    assert _difference(_scores(network, card, _image()), forward(net, _image())) < EXACT


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
    assert card.summary.endswith(path.name)
    assert [(c.name, c.colour) for c in card.legend.classes] == [(n, voc_colour(k)) for k, n in enumerate(VOC_NAMES)]
    write_raster(tmp_path / "a.tif", noise(3, 70, 90), photometric="RGB")
    done = fcn_batch("segment", tmp_path / "a.tif", "-m", made, "--quiet")
    assert done.exit_code == 0, done.stderr
    refused(fcn_batch("model", "convert", path, "-o", made), "output-exists", path=made)
    assert fcn_batch("model", "convert", path, "-o", made, "--overwrite", "--name", "net").exit_code == 0
    assert load_model(made)[0].card.name == "net"


# --- names, colours, options ---------------------------------------------------------------------------------


def test_colours_are_those_of_the_voc_devkit() -> None:
    """VOClabelcolormap: bit k of red is bit 3 * (7 - k) of the number, and so on."""
    for number in range(256):
        bits = f"{number:024b}"[::-1]
        expected = "".join(f"{int(bits[channel::3], 2):02x}" for channel in range(3))
        assert voc_colour(number) == f"#{expected}"


def test_names_of_a_file(tmp_path: Path) -> None:
    path, output = tmp_path / "a.caffemodel", tmp_path / "a.safetensors"
    caffemodel(path, random_net("32s", classes=3, width=64))
    (tmp_path / "names.txt").write_text("sea\n\n land \nsea\n")
    for names, expected in ((None, ["class 0", "class 1", "class 2"]), ("names.txt", ["sea", "land", "sea (2)"])):
        convert_file(Conversion(path, output, classes=None if names is None else tmp_path / names, overwrite=True))
        assert [c.name for c in load_model(output)[0].card.legend.classes] == expected


def test_pixels_are_scaled_as_their_sources_say() -> None:
    spec = input_spec("caffe", 1.0, (92.318, 97.203, 116.190))
    own_means = _seen(np.full((3, 1, 1), 200, np.uint8), spec)
    assert own_means.ravel().tolist() == pytest.approx([200 - 92.318, 200 - 97.203, 200 - 116.190], rel=1e-12)
    seen = {pixels: _seen(_image(), input_spec(pixels, 1.0)) for pixels in ("imagenet", "caffe-rgb", "half")}
    published = models.VGG16_Weights
    for pixels, weights in (("imagenet", published.IMAGENET1K_V1), ("caffe-rgb", published.IMAGENET1K_FEATURES)):
        preset = weights.transforms()
        mean, std = (torch.tensor(v, dtype=torch.float64)[:, None, None] for v in (preset.mean, preset.std))
        assert torch.allclose(seen[pixels][0], (torch.from_numpy(_image() / 255.0) - mean) / std, rtol=1e-12)
    with torch.device("meta"):
        net = models.GoogLeNet(transform_input=True, aux_logits=False, init_weights=False)
    assert torch.allclose(seen["half"], net._transform_input(seen["imagenet"]), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["-o", "a.pth"], "model-suffix"),
        (["-o", "nowhere/a.safetensors"], "folder-missing"),
        (["--name", "Ä b"], "name-invalid"),
        (["--classes", "none.txt"], "class-names-unreadable"),
        (["--classes", "empty.txt"], "class-names-empty"),
        (["--classes", "two.txt"], "classes-mismatch"),
        (["--classes", "long.txt"], "card-invalid"),
        (["--means", "1,2"], "card-invalid"),
        (["--gsd", "nan"], "card-invalid"),
        (["--at-once"], "weights-mismatch"),
    ],
)
def test_options_that_do_not_fit(tmp_path: Path, words: list[str], code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = caffemodel(tmp_path / "a.caffemodel", random_net("32s", width=64, fc=2))
    for name, text in (("empty", "\n"), ("two", "a\nb"), ("long", f"{'x' * 101}\nb\nc\nd")):
        (tmp_path / f"{name}.txt").write_text(text)
    output = [] if "-o" in words else ["-o", "a.safetensors"]
    refused(fcn_batch("model", "convert", path, *output, *words), code)
    assert not (tmp_path / "a.safetensors").exists()


# --- what cannot be converted --------------------------------------------------------------------------------


def _small(variant: Variant = "32s", *, without: str = "", **names: str) -> Blobs:
    net = random_net(variant, width=64, fc=2)
    return {names.get(name, name): blobs for name, blobs in net.items() if name != without}


def _changed(name: str, change: Any, variant: Variant = "32s") -> Blobs:
    net = _small(variant)
    return {**net, name: [change(net[name][0]), *net[name][1:]]}


def _nan(values: NDArray[Any]) -> NDArray[Any]:
    values.flat[0] = np.nan
    return values


BAD: dict[str, tuple[Blobs, str, dict[str, Any]]] = {
    "two heads": (_small(score_fr="score_fr_sem"), "weights-unsupported", {}),
    "two trunks": (
        {f"{name}{which}": blobs for which in ("color", "hha") for name, blobs in _small().items()},
        "weights-unsupported",
        {},
    ),
    "caffenet": ({"conv1": [np.ones((2, 3, 11, 11))], "fc6": [np.ones((1, 2, 6, 6))]}, "weights-unknown", {}),
    "unknown": ({"dense": [np.ones((2, 2))]}, "weights-unknown", {"names": "dense.weight"}),
    "extra": (_small(conv5_3="conv5_4"), "weights-unknown", {"names": "conv5_4.weight"}),
    "no fc7": (_small(without="fc7"), "weights-missing", {"layer": "fc7"}),
    "no conv4_2": (_small("8s", without="conv4_2"), "weights-missing", {"layer": "trunk.features.19.weight"}),
    "no pool4": (_small("8s", without="score_pool4"), "weights-missing", {"layer": "score_pool4"}),
    "classifier": (_small(score_fr="fc8"), "weights-classifier", {}),
    "zero trunk": (_changed("conv3_1", np.zeros_like), "weights-untrained", {"layer": "trunk.features.10.weight"}),
    "zero skip": (_changed("score_pool3", np.zeros_like, "8s"), "weights-untrained", {"layer": "score_pool3.weight"}),
    "nan": (_changed("fc7", _nan), "weights-invalid", {"layer": "fc7.weight"}),
    "shape": (_changed("conv3_1", lambda w: w[:, :1]), "weights-mismatch", {"layer": "trunk.features.10.weight"}),
    "no matrix": (_changed("conv1_1", lambda w: w[0, 0, 0]), "weights-unknown", {}),
    "bands": (_changed("conv1_1", lambda w: np.concatenate([w, w], axis=1)), "bands-unknown", {"bands": 6}),
    "no square": (_changed("fc6", lambda w: w[..., :3]), "weights-mismatch", {"layer": "fc6.weight"}),
    "large kernel": (_changed("fc6", lambda _: np.ones((1, 16, 16, 16))), "weights-mismatch", {}),
    "odd upsampling": (_changed("upscore", lambda w: w[..., :63]), "weights-mismatch", {"found": (4, 4, 64, 63)}),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_converted_says_why(tmp_path: Path, name: str) -> None:
    net, code, fields = BAD[name]
    path = caffemodel(tmp_path / "a.caffemodel", net)
    with refuses(code, path=path, **fields):
        convert(_source(path), FACTS)


# --- torchvision's FCN and classifiers -----------------------------------------------------------------------


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
    preset = models.VGG16_Weights.IMAGENET1K_V1.transforms()
    mean, std = (torch.tensor(v, dtype=torch.float64)[:, None, None] for v in (preset.mean, preset.std))
    with torch.no_grad():
        expected = theirs(((torch.from_numpy(image / 255.0) - mean) / std)[None])["out"]
    assert _difference(_scores(network, card, image), expected, 0) < EXACT


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


@cache
def _classifier(kind: str, share: int = 16, fc: int = 12, classes: int = 5) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        if kind == "googlenet":
            net: nn.Module = models.googlenet(weights=None, aux_logits=True, init_weights=False, num_classes=classes)
        else:
            net = _Narrow(kind, share, fc, classes)
        for name, parameter in net.named_parameters():
            if parameter.ndim > 1:
                nn.init.kaiming_normal_(parameter, nonlinearity="relu")
            elif name.endswith("bias"):
                nn.init.normal_(parameter, std=0.1)
    return net.double().eval()


def _into(net: nn.Module, layer: str, x: torch.Tensor) -> torch.Tensor:
    """What goes into a layer of `net` when it is given `x`."""
    seen: list[torch.Tensor] = []
    hook = net.get_submodule(layer).register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        net.double()(x)
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
    cells = _into(network, "up_final", x)
    assert cells.shape == (1, 5, rows // 32, cols // 32)
    with torch.no_grad():
        if kind == "googlenet":
            features, side, heads = _into(theirs, "avgpool", x), 1, [theirs.get_submodule("fc")]
        else:
            features, side = theirs.get_submodule("features")(x), 7 if kind == "vgg16" else 6
            heads = [m for m in theirs.get_submodule("classifier").children() if isinstance(m, nn.Linear)]
        expected = _slid(heads, features, side)
    start, beyond = (side - 1) // 2, 3 if kind == "alexnet" else 0
    # torchvision's AlexNet drops what is no whole cell at the right and lower border, and pads there instead
    rows, cols = rows // 32 - side + 1 - beyond, cols // 32 - side + 1 - beyond
    found = cells[:, :, start : start + rows, start : start + cols]
    assert rows >= 5
    assert _difference(found, expected[:, :, :rows, :cols], 0) < EXACT


def _slid(heads: list[nn.Module], features: torch.Tensor, side: int) -> torch.Tensor:
    """The fully connected layers at each place of a window of that side, one by one."""
    windows = functional.unfold(features, side).transpose(1, 2)
    for index, head in enumerate(heads):
        windows = head(functional.relu(windows) if index else windows)
    rows, cols = (n - side + 1 for n in features.shape[2:])
    return windows.transpose(1, 2).reshape(1, -1, rows, cols)


def test_imagenet_s_thousand_classes_are_too_many_for_a_map(tmp_path: Path) -> None:
    torch.save(_classifier("vgg16", share=64, fc=2, classes=1000).state_dict(), tmp_path / "vgg16.pth")
    made = tmp_path / "made.safetensors"
    done = fcn_batch("model", "convolutionalise", "vgg16", tmp_path / "vgg16.pth", "-o", made)
    assert (done.exit_code, done.stdout) == (0, f"{made}\n"), done.stderr
    names = [c.name for c in load_model(made)[0].card.legend.classes]
    assert (len(names), names[0], len(set(names))) == (1000, "tench", 1000)
    raster = write_raster(tmp_path / "a.tif", noise(3, 40, 40), photometric="RGB")
    assert fcn_batch("segment", raster, "-m", made).exit_code == 5


def test_pixels_in_caffe_s_order_and_scale(tmp_path: Path) -> None:
    """Caffe's VGG16 under torchvision's names, as pytorch-fcn starts from; the cell in the middle is its answer."""
    theirs = _classifier("vgg16")
    torch.save(theirs.state_dict(), tmp_path / "vgg16_from_caffe.pth")
    network, card = convolutionalise(_source(tmp_path / "vgg16_from_caffe.pth", pixels="caffe"), FACTS)
    image = noise(3, 224, 224)
    bgr = torch.from_numpy(image[::-1].astype(np.float64)) - torch.tensor(MEAN_BGR, dtype=torch.float64)[:, None, None]
    with torch.no_grad():
        expected = theirs(bgr[None])
    found = _into(network, "up_final", _seen(image, card.input))[:, :, 3, 3]
    assert (found - expected).abs().max() / expected.abs().max() < EXACT


def test_classifiers_that_are_none_or_others(tmp_path: Path) -> None:
    torch.save(_classifier("vgg16").state_dict(), tmp_path / "vgg16.pth")
    features = {k: v for k, v in _classifier("alexnet").state_dict().items() if k.startswith("features")}
    torch.save(features, tmp_path / "features.pth")
    torch.save({**features, "features.1.weight": torch.ones(3)}, tmp_path / "bn.pth")
    fcn = caffemodel(tmp_path / "fcn.caffemodel", _small())
    for classifier, path, code in (
        ("alexnet", tmp_path / "vgg16.pth", "classifier-other"),
        ("alexnet", tmp_path / "features.pth", "weights-no-classifier"),
        ("alexnet", tmp_path / "bn.pth", "weights-unknown"),
        ("vgg16", fcn, "weights-no-classifier"),
        (None, tmp_path / "vgg16.pth", "weights-classifier"),
    ):
        with refuses(code, path=path):
            convert_file(Conversion(path, tmp_path / "a.safetensors", cast(Any, classifier)))


# --- starting a training -------------------------------------------------------------------------------------

SMALL: dict[str, Any] = {"width": 1 / 16, "fc_channels": 12}


def _start(path: Path, bands: int = 3, classes: int = 7, **architecture: Any) -> tuple[FcnNetwork, list[str]]:
    network = build_network(Architecture(**{**SMALL, **architecture}), bands, classes)
    return network, start_from(network, path)


def test_a_classifier_as_a_start(tmp_path: Path) -> None:
    theirs, path = _classifier("vgg16").state_dict(), tmp_path / "vgg16.pth"
    torch.save(theirs, path)
    network, kept = _start(path, bands=5)
    assert kept == ["score", "score_pool3", "score_pool4"]
    state = network.state_dict()
    assert torch.equal(state["trunk.features.28.weight"], theirs["features.28.weight"].float())
    assert torch.equal(state["fc6.weight"].flatten(1), theirs["classifier.0.weight"].float())
    assert torch.equal(state["fc7.bias"], theirs["classifier.3.bias"].float())
    assert not state["score.weight"].any(), "its own start"
    first, filters = state["trunk.features.0.weight"].double(), theirs["features.0.weight"]
    assert torch.allclose(first, torch.cat([filters, filters.mean(1, keepdim=True).expand(-1, 2, -1, -1)], dim=1))
    for changes, parts in (
        ({"classes": 5}, ["score_pool3", "score_pool4"]),
        ({"fc_kernel": 3}, ["fc6", "score", "score_pool3", "score_pool4"]),
        ({"upsampling": "learned", "stride": 32}, ["score", "up_final"]),
    ):
        assert _start(path, **cast(Any, changes))[1] == parts


@pytest.mark.parametrize("trunk", ["alexnet", "googlenet", "efficientnet_lite0"])
def test_other_trunks(tmp_path: Path, trunk: str) -> None:
    options: dict[str, Any] = {"fc_kernel": 6} if trunk == "alexnet" else {"width": 1, "fc_channels": 0}
    if trunk == "efficientnet_lite0":
        package = pytest.importorskip("efficientnet_lite_pytorch", reason="the weights' own package is not installed")
        theirs = package.EfficientNet.from_name("efficientnet-lite0").state_dict()
        ours = {
            "trunk.stem.conv.weight": "_conv_stem.weight",
            "trunk.blocks.0.depthwise.norm.bias": "_blocks.0._bn1.bias",
        }
    else:
        theirs = _classifier(trunk).state_dict()
        trunks = build_network(Architecture(**{**SMALL, "trunk": trunk, **options}), 3, 7).state_dict()
        ours = {key: key[6:] for key in trunks if key.startswith("trunk.") and not key.endswith("tracked")}
    torch.save(theirs, tmp_path / "a.pth")
    network, kept = _start(tmp_path / "a.pth", trunk=trunk, **options)
    assert kept == ["score", "score_pool3", "score_pool4"]
    for key, their_key in ours.items():
        assert torch.equal(network.state_dict()[key], theirs[their_key].float()), key


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


def test_the_authors_net_and_its_like_as_a_start(tmp_path: Path) -> None:
    net = random_net("8s-atonce", classes=7, fc=12)
    path = caffemodel(tmp_path / "a.caffemodel", net)
    network, kept = _start(path)
    assert kept == []
    state = network.state_dict()
    assert torch.equal(state["trunk.features.0.weight"].flip(1), torch.from_numpy(net["conv1_1"][0]).float())
    weight = torch.from_numpy(net["score_pool3"][0]).float() * 1e-4
    assert torch.allclose(state["score_pool3.weight"], weight, rtol=1e-6)
    network, _ = _start(path, skip_scales=(0.01, 0.0001))  # the network multiplies by itself
    assert torch.allclose(network.state_dict()["score_pool3.weight"], weight * 1e4, rtol=1e-6)
    heads = {k: [b.reshape(len(b), -1) if b.ndim > 1 and k.startswith("fc") else b for b in v] for k, v in net.items()}
    heads["fc8"] = heads.pop("score_fr")
    plain = {k: v for k, v in heads.items() if k.startswith(("conv", "fc"))}
    assert _start(caffemodel(tmp_path / "v1.caffemodel", plain, "v1"))[1] == ["score_pool3", "score_pool4"]


def test_a_model_of_our_own_as_a_start_needs_no_conversion(tmp_path: Path) -> None:
    coarse = tiny_network(Architecture(**SMALL, stride=32, skip_scales=(1, 1)), classes=7)
    save_model(tmp_path / "a.safetensors", coarse, tiny_card(coarse))
    network, kept = _start(tmp_path / "a.safetensors", stride=16)
    assert kept == ["score_pool4"]
    assert torch.equal(network.state_dict()["fc6.weight"], coarse.state_dict()["fc6.weight"])
    path = tmp_path / "a.safetensors"
    refused(fcn_batch("model", "convert", path, "-o", tmp_path / "b.safetensors"), "model-own", path=path)


def _broken(kind: str) -> dict[str, torch.Tensor]:
    if kind in ("wide", "other"):
        return _classifier("vgg16", share=8).state_dict() if kind == "wide" else _classifier("alexnet").state_dict()
    state = {key: tensor.clone() for key, tensor in _classifier("vgg16").state_dict().items()}
    if kind == "zero":
        state["features.10.weight"].zero_()
    elif kind == "nan":
        state["features.10.bias"][0] = torch.nan
    else:
        del state["features.10.weight"]
    return state


@pytest.mark.parametrize("kind", ["zero", "nan", "part", "wide", "other", "resnet"])
def test_a_trunk_that_does_not_fit_changes_nothing(tmp_path: Path, kind: str) -> None:
    torch.save(_resnet() if kind == "resnet" else _broken(kind), tmp_path / "a.pth")
    network = build_network(Architecture(**SMALL), 3, 7)
    before = {key: tensor.clone() for key, tensor in network.state_dict().items()}
    with pytest.raises(ModelError):
        start_from(network, tmp_path / "a.pth")
    assert all(torch.equal(tensor, before[key]) for key, tensor in network.state_dict().items())


def test_a_head_of_nan_keeps_its_own_start(tmp_path: Path) -> None:
    """torchvision's file of VGG16's features only has no values in its classifier, and another scale of pixels."""
    state = _classifier("vgg16").state_dict()
    nan = {key: torch.full_like(t, torch.nan) if key.startswith("classifier") else t for key, t in state.items()}
    torch.save(nan, tmp_path / "vgg16_features.pth")
    assert _source(tmp_path / "vgg16_features.pth").pixels == "caffe-rgb"
    network, kept = _start(tmp_path / "vgg16_features.pth")
    assert kept == ["fc6", "fc7", "score", "score_pool3", "score_pool4"]
    assert all(tensor.isfinite().all() for tensor in network.state_dict().values())


@pytest.mark.parametrize(("trunk", "bands"), [("vgg16", 3), ("vgg16", 4), ("googlenet", 4)])
def test_the_first_convolution_is_adapted_to_the_pixels(tmp_path: Path, trunk: str, bands: int) -> None:
    """The same features, however the recipe scales pixels; a further band adds nothing at its mean."""
    theirs = _classifier(trunk)
    torch.save(theirs.state_dict(), tmp_path / "a.pth")
    options = {} if trunk == "vgg16" else {"width": 1, "fc_channels": 0}
    network = build_network(Architecture(**{**SMALL, "trunk": trunk, **options}), bands, 2).double().eval()
    scales = ((0.1, 0.05), (0.2, 0.1), (0.3, 0.02), (0.4, 0.3))[:bands]
    named = tuple(Band(name="rgbn"[k], mean=m, std=s) for k, (m, s) in enumerate(scales))
    spec = InputSpec(bands=named, dtype="uint16", full_scale=10000, gsd_m=1)
    start_from(network, tmp_path / "a.pth", spec=spec)
    share = torch.rand(1, bands, 64, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    if bands == 4:
        share[:, 3] = spec.bands[3].mean

    def seen(spec: InputSpec) -> torch.Tensor:
        return torch.stack([(share[:, k] - band.mean) / band.std for k, band in enumerate(spec.bands)], dim=1)

    first = "features.0" if trunk == "vgg16" else "conv1"
    with torch.no_grad():
        expected = theirs.get_submodule(first)(seen(input_spec("imagenet" if trunk == "vgg16" else "half", 1.0)))
        found = network.get_submodule(f"trunk.{first}")(seen(spec))
    assert _difference(found, expected, 8) < EXACT
    spec = input_spec("imagenet" if trunk == "vgg16" else "half", 2.0)
    renamed = tuple(one.model_copy(update={"name": f"a {one.name}"}) for one in spec.bands)
    if bands == 3:  # scaled as the file's: the bits are left alone
        plain = build_network(Architecture(**SMALL), 3, 2)
        start_from(plain, tmp_path / "a.pth", spec=spec.model_copy(update={"bands": renamed}))
        weight = theirs.state_dict()["features.0.weight"].float()
        assert torch.equal(plain.state_dict()["trunk.features.0.weight"], weight)
