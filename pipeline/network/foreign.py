"""Which network other people's weights belong to, and what each tensor is called in ours.

Known are torchvision's VGG16, AlexNet, GoogLeNet and ResNets (classifiers), torchvision's FCN over ResNets, the
authors' Caffe nets (shelhamer/fcn.berkeleyvision.org) and their PyTorch form (wkentaro/pytorch-fcn; the same layer
names), EfficientNet-Lite0, VGG16's convolutions as Keras stores them, and model files of our own. Keys do not tell how
the pixels were scaled; what is known of it is said here.
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch

from fcn_batch.pipeline.core.errors import ModelError
from fcn_batch.pipeline.core.scalings import Pixels
from fcn_batch.pipeline.network.checkpoints import Checkpoint
from fcn_batch.pipeline.network.efficientnet import from_lukemelas

Tensors = dict[str, torch.Tensor]
Kind = Literal["vgg16", "alexnet", "googlenet", "efficientnet_lite0", "fcn_resnet50", "fcn_resnet101", "own"]

_VGG = dict(zip(
    ("1_1", "1_2", "2_1", "2_2", "3_1", "3_2", "3_3", "4_1", "4_2", "4_3", "5_1", "5_2", "5_3"),
    (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28),
    strict=True,
))  # fmt: skip
"""The Caffe name of each convolution of VGG16, and torchvision's number of it."""
_ALEX = (0, 3, 6, 8, 10)
_CAFFE = {
    **{f"conv{name}": f"trunk.features.{index}" for name, index in _VGG.items()},
    "conv1_1_bgrd": "trunk.features.0",
    "fc6": "fc6",
    "fc7": "fc7",
    "fc8": "score",
    "score_fr": "score",
    "score_pool4": "score_pool4",
    "score_pool3": "score_pool3",
    "upscore": "up_final",
    "upscore16": "up_final",
    "upscore8": "up_final",
    "upscore2": "up_score",
    "upscore_pool4": "up_pool4",
}
_HEADS = {"vgg16": (0, 3, 6), "alexnet": (1, 4, 6)}
"""Numbers of the fully connected layers in torchvision's `classifier`."""
_FIRST = "trunk.features.0.weight"
FIRST = {
    _FIRST: "trunk.features.0.bias",
    "trunk.conv1.conv.weight": "trunk.conv1.bn.running_mean",
    "trunk.stem.conv.weight": "trunk.stem.norm.running_mean",
    "backbone.conv1.weight": "backbone.bn1.running_mean",
}
"""The first convolution of each trunk, and what can take up a constant added to its output."""


@dataclass(frozen=True, slots=True)
class Foreign:
    """Weights of somebody else's under our names."""

    path: Path
    kind: Kind
    tensors: Tensors
    """`trunk.*` or `backbone.*`, and what there is of `fc6`, `fc7`, `score*`, `up_*`, `classifier.*`; bands in the
    order red, green, blue."""
    pixels: Pixels
    classifier: bool
    """True for a network that gave one answer for an image, False for an FCN."""
    caffe: bool = False
    """True for the form of the authors' Caffe nets, whose coarse cells begin at -3."""


def recognise(checkpoint: Checkpoint, *, at_once: bool = False, pixels: Pixels | None = None) -> Foreign:
    """Find out what `checkpoint` is; ModelError when it is nothing known, with the reason where there is one.

    `at_once` says that a PyTorch file holds the FCN-8s trained at once, whose skips are scaled by code that the file
    does not hold. `pixels` overrides what is assumed of the pixels; ``caffe`` also means that the file's bands
    are in the order blue, green, red, and any other that they are not.
    """
    known: tuple[tuple[str, Callable[[Checkpoint], Foreign]], ...] = (
        ("trunk.", _own),
        ("backbone.", _torchvision_fcn),
        ("conv1_1", _caffe),
        ("features.0.", _torchvision_classifier),
        ("inception3a.", _googlenet),
        ("_conv_stem.", _efficientnet),
        ("layer4.2.conv3.", _resnet),
        ("block1/layers/", _keras_vgg),
    )
    read = next((read for start, read in known if any(key.startswith(start) for key in checkpoint.tensors)), None)
    if read is None:
        if any(key.startswith("conv1.") for key in checkpoint.tensors) and checkpoint.kind == "caffe":
            raise ModelError(f"{checkpoint.path}: {_CAFFENET}")
        names = ", ".join(sorted(checkpoint.tensors)[:3])
        raise ModelError(f"{checkpoint.path}: no network known here has tensors such as {names}; {_KNOWN}")
    try:
        found = read(checkpoint)
    except (IndexError, RuntimeError, ZeroDivisionError) as error:
        raise ModelError(f"{checkpoint.path}: its tensors have shapes that no such network has: {error}") from error
    if at_once:
        found = replace(found, tensors=_at_once(found))
    if pixels is not None:
        other_order = (pixels == "caffe") != (found.pixels == "caffe")
        tensors = {key: _swapped(t) if other_order and key in FIRST else t for key, t in found.tensors.items()}
        found = replace(found, pixels=pixels, tensors=tensors)
    return found


_KNOWN = "known are VGG16, AlexNet, GoogLeNet, fcn_resnet50 and fcn_resnet101 of torchvision, and FCNs of the authors"
_CAFFENET = (
    "a CaffeNet: its grouped convolutions and local response normalisation have no counterpart here; "
    "start from torchvision's AlexNet instead"
)


def _own(checkpoint: Checkpoint) -> Foreign:
    return Foreign(checkpoint.path, "own", checkpoint.tensors, "imagenet", classifier=False)


def _caffe(checkpoint: Checkpoint) -> Foreign:
    """The authors' nets, and VGG16 as they started from it."""
    path, theirs = checkpoint.path, checkpoint.tensors
    if "score_fr_sem.weight" in theirs:
        raise ModelError(f"{path}: has two heads (SIFT-Flow's classes and geometry); a map holds one answer a pixel")
    layers = {key.rpartition(".")[0] for key in theirs}
    if any(re.fullmatch(r"conv1_1_?(color|hha|depth|d|rgb)", layer) for layer in layers):
        raise ModelError(f"{path}: has a trunk for each of two images (NYUD's colour and HHA); one image is read here")
    ours: Tensors = {}
    for key, tensor in theirs.items():
        layer, _, part = key.rpartition(".")
        if layer in _CAFFE and part in ("weight", "bias"):
            name = f"{_CAFFE[layer]}.{part}"
            ours[name] = tensor.reshape(-1) if part == "bias" else tensor
        elif not layer.startswith("scale_pool"):
            raise ModelError(f"{path}: {key} has no place in an FCN over VGG16; {_KNOWN}")
    for skip in ("pool4", "pool3"):
        if (scale := theirs.get(f"scale_{skip}.weight")) is not None and f"score_{skip}.weight" in ours:
            ours[f"score_{skip}.weight"] = ours[f"score_{skip}.weight"] * scale.reshape(1, -1, 1, 1)
    if _FIRST in ours:
        ours[_FIRST] = _swapped(ours[_FIRST])
    depth = "conv1_1_bgrd.weight" in theirs
    classifier = "score_fr.weight" not in theirs
    ours = _as_convolutions(path, ours)
    return Foreign(path, "vgg16", ours, "bgr-depth" if depth else "caffe", classifier=classifier, caffe=True)


def _at_once(found: Foreign) -> Tensors:
    """The skips' factors of voc-fcn8s-atonce/net.py, as part of the weights."""
    tensors = dict(found.tensors)
    if not {"score_pool4.weight", "score_pool3.weight"} <= set(tensors):
        raise ModelError(f"{found.path}: --at-once is for an FCN-8s; this file has no score_pool4 and score_pool3")
    tensors["score_pool4.weight"] = tensors["score_pool4.weight"] * 0.01
    tensors["score_pool3.weight"] = tensors["score_pool3.weight"] * 0.0001
    return tensors


def _swapped(weight: torch.Tensor) -> torch.Tensor:
    """A first convolution (out, bands, rows, cols) for red, green, blue (and more) of one for blue, green, red."""
    return torch.cat([weight[:, :3].flip(1), weight[:, 3:]], dim=1)


def _torchvision_classifier(checkpoint: Checkpoint) -> Foreign:
    path, theirs = checkpoint.path, checkpoint.tensors
    numbers = {int(found[1]) for key in theirs if (found := re.match(r"features\.(\d+)\.", key))}
    kind: Literal["vgg16", "alexnet"]
    if numbers == set(_VGG.values()):
        kind = "vgg16"
    elif numbers == set(_ALEX):
        kind = "alexnet"
    else:
        raise ModelError(f"{path}: features {sorted(numbers)} are neither VGG16's nor AlexNet's; {_KNOWN}")
    ours = {f"trunk.{key}": tensor for key, tensor in theirs.items() if key.startswith("features.")}
    for part, index in zip(("fc6", "fc7", "score"), _HEADS[kind], strict=True):
        ours |= {f"{part}.{k}": theirs[key] for k in ("weight", "bias") if (key := f"classifier.{index}.{k}") in theirs}
    head = ours.get("fc6.weight")
    # torchvision's file of features only, trained in Caffe's scaling, has NaN in its classifier
    unknown = kind == "vgg16" and head is not None and not head.isfinite().all()
    ours = _as_convolutions(path, ours)
    return Foreign(path, kind, ours, "caffe-rgb" if unknown else "imagenet", classifier=True)


def _googlenet(checkpoint: Checkpoint) -> Foreign:
    ours = {}
    for key, tensor in checkpoint.tensors.items():
        if key.startswith("fc."):
            ours[f"score.{key[3:]}"] = tensor
        elif not key.startswith("aux"):
            ours[f"trunk.{key}"] = tensor
    ours = _as_convolutions(checkpoint.path, ours)
    return Foreign(checkpoint.path, "googlenet", ours, "half", classifier=True)


def _efficientnet(checkpoint: Checkpoint) -> Foreign:
    try:
        ours = {f"trunk.{key}": tensor for key, tensor in from_lukemelas(checkpoint.tensors).items()}
    except ValueError as error:
        raise ModelError(f"{checkpoint.path}: {error}; only EfficientNet-Lite0 is known here") from None
    return Foreign(checkpoint.path, "efficientnet_lite0", ours, "tensorflow", classifier=True)


def _resnet(checkpoint: Checkpoint) -> Foreign:
    ours = {f"backbone.{key}": tensor for key, tensor in checkpoint.tensors.items() if not key.startswith("fc.")}
    return Foreign(checkpoint.path, _depth(ours), ours, "imagenet", classifier=True)


def _torchvision_fcn(checkpoint: Checkpoint) -> Foreign:
    path, theirs = checkpoint.path, checkpoint.tensors
    if "backbone.layer4.2.conv3.weight" not in theirs or "classifier.4.weight" not in theirs:
        raise ModelError(f"{path}: neither fcn_resnet50 nor fcn_resnet101; {_KNOWN}")
    ours = {key: tensor for key, tensor in theirs.items() if not key.startswith("aux_classifier.")}
    return Foreign(path, _depth(ours), ours, "imagenet", classifier=False)


def _keras_vgg(checkpoint: Checkpoint) -> Foreign:
    """The convolutions of Keras's VGG16 in blocks, as holistic edge detectors (Xie & Tu 2015) keep them.

    Weights are (rows, cols, in, out); pixels are Caffe's. What stands beside the blocks belongs to the edges.
    """
    ours: Tensors = {}
    for key, tensor in checkpoint.tensors.items():
        if found := re.fullmatch(r"block(\d)/layers/conv2d(?:_(\d))?/vars/([01])", key):
            number = _VGG.get(f"{found[1]}_{int(found[2] or 0) + 1}")
            if number is None:
                raise ModelError(f"{checkpoint.path}: {key} has no place in VGG16; {_KNOWN}")
            part = "bias" if found[3] == "1" else "weight"
            ours[f"trunk.features.{number}.{part}"] = tensor if part == "bias" else tensor.permute(3, 2, 0, 1)
    if _FIRST in ours:
        ours[_FIRST] = _swapped(ours[_FIRST])
    return Foreign(checkpoint.path, "vgg16", ours, "caffe", classifier=True)


def _depth(ours: Tensors) -> Literal["fcn_resnet50", "fcn_resnet101"]:
    return "fcn_resnet101" if "backbone.layer3.22.conv1.weight" in ours else "fcn_resnet50"


def _as_convolutions(path: Path, ours: Tensors) -> Tensors:
    """Fully connected layers as convolutions over the map they saw: the same numbers in the same order.

    Section 3.1 of the paper; Caffe and torch both flatten (channels, rows, cols).
    """
    last = "trunk.features.28.weight" if "trunk.features.28.weight" in ours else "trunk.features.10.weight"
    ours = dict(ours)
    for part in ("fc6", "fc7", "score"):
        weight = ours.get(f"{part}.weight")
        if weight is None or (weight.ndim == 4 and weight.shape[:2] != (1, 1)):
            continue  # Caffe's old files give a matrix the axes (1, 1, out, in)
        weight = weight.reshape(weight.shape[-2:])
        channels = ours[last].shape[0] if part == "fc6" and last in ours else weight.shape[1]
        side = math.isqrt(weight.shape[1] // channels)
        if channels * side * side != weight.shape[1]:
            raise ModelError(f"{path}: {part} sees {weight.shape[1]} numbers, no square map of {channels} channels")
        ours[f"{part}.weight"] = weight.reshape(-1, channels, side, side)
    return ours
