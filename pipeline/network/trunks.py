"""The classifiers that an FCN stands on, without their ends: layers in a row, and three of their maps.

Each gives exactly one cell for each whole 8, 16 and 32 pixels, and its layers are called as its source calls them, so
that published weights fit as they are:

* VGG16 (Simonyan & Zisserman, 2015, configuration D) is torchvision's, at any width.
* AlexNet is torchvision's (Krizhevsky, 2014), at any width; but the first convolution is padded by 2 before the image
  and by 5 after it, and the pools keep their last window although it ends outside of the map. Away from the right and
  lower border every cell is what torchvision computes.
* GoogLeNet (Szegedy et al., 2015) is torchvision's without its classifiers, as in Long et al. (CVPR 2015, section 4.1).
* EfficientNet-Lite0 is EfficientNet (Tan & Le, 2019) without squeeze and excitation, as `efficientnet_lite_builder.py`
  in the TensorFlow TPU models has it: ReLU6, batch norm with epsilon 0.001, and padding 'same', which for a stride of 2
  and an even size sets one pixel less before the map than after it. torchvision has no such network: its blocks have
  SiLU built in, and pad both sides alike.
"""

from collections import OrderedDict

import torch
from torch import nn
from torch.nn import functional
from torchvision.models import GoogLeNet
from torchvision.models.vgg import cfgs, make_layers

from fcn_batch.pipeline.core.model_card import Architecture

Maps = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


class Trunk(nn.Module):
    """Layers one after the other; the outputs of three of them are the maps at strides 8, 16 and 32."""

    stride = 32

    def __init__(
        self, parts: dict[str, nn.Module], ends: tuple[int, int, int], channels: tuple[int, int, int], pads: int = 0
    ) -> None:
        """`parts` are layers or lists of layers by their names, `ends` counts layers from 0."""
        super().__init__()
        for name, part in parts.items():
            self.add_module(name, part)
        self.ends = ends
        self.channels = channels
        """Of the three maps."""
        self.pads = (pads, pads + 3) * 2 if pads else None
        """Zeros around the image, as torch's `pad` takes them."""

    def forward(self, x: torch.Tensor) -> Maps:
        """(n, bands, rows, cols), rows and cols multiples of 32, to maps of 1/8, 1/16 and 1/32 of them."""
        if self.pads:
            x = functional.pad(x, self.pads)
        lists = (nn.Sequential, nn.ModuleList)
        layers = [layer for part in self.children() for layer in (part.children() if type(part) in lists else [part])]
        maps = []
        for index, layer in enumerate(layers[: self.ends[-1] + 1]):
            x = layer(x)
            if index in self.ends:
                maps.append(x)
        return maps[0], maps[1], maps[2]


def build_trunk(architecture: Architecture, bands: int) -> Trunk:
    """Return the trunk of `architecture` for images of `bands` bands."""
    match architecture.trunk:
        case "vgg16":
            return _vgg16(bands, architecture.width)
        case "alexnet":
            return _alexnet(bands, architecture.width)
        case "googlenet":
            return _googlenet(bands)
        case "efficientnet_lite0":
            return _efficientnet_lite0(bands)


def _vgg16(bands: int, width: float) -> Trunk:
    widths = {v: max(1, round(v * width)) for v in cfgs["D"] if isinstance(v, int)}
    features = make_layers([v if isinstance(v, str) else widths[v] for v in cfgs["D"]])
    if bands != 3:
        features[0] = nn.Conv2d(bands, widths[64], 3, padding=1)
    return Trunk({"features": features}, (16, 23, 30), (widths[256], widths[512], widths[512]))


def _alexnet(bands: int, width: float) -> Trunk:
    a, b, c, d, e = (max(1, round(channels * width)) for channels in (64, 192, 384, 256, 256))
    convolutions = [
        nn.Conv2d(bands, a, 11, stride=4),
        nn.Conv2d(a, b, 5, padding=2),
        nn.Conv2d(b, c, 3, padding=1),
        nn.Conv2d(c, d, 3, padding=1),
        nn.Conv2d(d, e, 3, padding=1),
    ]
    layers: list[nn.Module] = []
    for index, convolution in enumerate(convolutions):
        layers += [convolution, nn.ReLU(inplace=True)]
        if index in (0, 1, 4):
            layers.append(nn.MaxPool2d(3, 2, ceil_mode=True))
    return Trunk({"features": nn.Sequential(*layers)}, (2, 5, 12), (a, b, e), pads=2)


def _googlenet(bands: int) -> Trunk:
    theirs = GoogLeNet(num_classes=1, aux_logits=False, init_weights=False)
    parts = {name: layer for name, layer in theirs.named_children() if name not in ("avgpool", "dropout", "fc")}
    if bands != 3:
        theirs.conv1.conv = nn.Conv2d(bands, 64, 7, stride=2, padding=3, bias=False)
    names = list(parts)
    ends = (names.index("inception3b"), names.index("inception4e"), names.index("inception5b"))
    return Trunk(parts, ends, (480, 832, 1024))


# --- EfficientNet-Lite0 --------------------------------------------------------------------------------------

_STAGES = (
    (3, 1, 1, 16, 1),
    (3, 2, 6, 24, 2),
    (5, 2, 6, 40, 2),
    (3, 2, 6, 80, 3),
    (5, 1, 6, 112, 3),
    (5, 2, 6, 192, 4),
    (3, 1, 6, 320, 1),
)
"""Kernel, stride of the first block, expansion, channels and number of blocks of each stage."""


class _ConvNorm(nn.Sequential):
    """A convolution padded as TensorFlow's 'same', batch norm, and ReLU6 unless `linear`."""

    def __init__(
        self, incoming: int, outgoing: int, kernel: int = 1, stride: int = 1, groups: int = 1, *, linear: bool = False
    ) -> None:
        before, after = (kernel - stride) // 2, (kernel - stride + 1) // 2
        alike = before == after  # then the convolution pads by itself
        conv = nn.Conv2d(incoming, outgoing, kernel, stride, before if alike else 0, groups=groups, bias=False)
        layers: dict[str, nn.Module] = {} if alike else {"pad": nn.ZeroPad2d((before, after) * 2)}
        layers |= {"conv": conv, "norm": nn.BatchNorm2d(outgoing, eps=1e-3, momentum=0.01)}
        super().__init__(OrderedDict(layers if linear else {**layers, "relu6": nn.ReLU6()}))


class _Block(nn.Sequential):
    """A mobile inverted bottleneck: expand, filter each channel by itself, project; added to its input if that fits."""

    def __init__(self, incoming: int, outgoing: int, kernel: int, stride: int, expansion: int) -> None:
        wide = incoming * expansion
        layers = {"expand": _ConvNorm(incoming, wide)} if expansion > 1 else {}
        layers["depthwise"] = _ConvNorm(wide, wide, kernel, stride, wide)
        super().__init__(OrderedDict({**layers, "project": _ConvNorm(wide, outgoing, linear=True)}))
        self.residual = stride == 1 and incoming == outgoing

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(n, incoming, rows, cols) to (n, outgoing, rows / stride, cols / stride)."""
        y: torch.Tensor = super().forward(x)  # type: ignore[no-untyped-call]  # torch does not type it
        return x + y if self.residual else y


def _efficientnet_lite0(bands: int) -> Trunk:
    blocks, incoming = nn.ModuleList(), 32
    stem = _ConvNorm(bands, incoming, 3, 2)
    for kernel, stride, expansion, outgoing, count in _STAGES:
        for index in range(count):
            blocks.append(_Block(incoming, outgoing, kernel, 1 if index else stride, expansion))
            incoming = outgoing
    return Trunk({"stem": stem, "blocks": blocks}, (5, 11, 16), (40, 112, 320))
