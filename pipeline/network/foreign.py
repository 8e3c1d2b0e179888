"""Weights of other people under our names.

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

Tensors = dict[str, torch.Tensor]
Kind = Literal["vgg16", "alexnet", "googlenet", "efficientnet_lite0", "fcn_resnet50", "fcn_resnet101", "own"]

_VGG = dict(zip(
    ("1_1", "1_2", "2_1", "2_2", "3_1", "3_2", "3_3", "4_1", "4_2", "4_3", "5_1", "5_2", "5_3"),
    (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28),
    strict=True
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
_LITE0 = {
    "_conv_stem": "conv",
    "_expand_conv": "expand.conv",
    "_depthwise_conv": "depthwise.conv",
    "_bn1": "depthwise.norm",
    "_project_conv": "project.conv",
    "_bn2": "project.norm",
}
"""Names in `efficientnet_lite_pytorch` (lukemelas' EfficientNet-PyTorch), and here; `_bn0` follows what precedes it."""
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
    readers: tuple[tuple[str, Callable[[Checkpoint], Foreign]], ...] = (
        ("trunk.", _own),
        ("backbone.", _torchvision_fcn),
        ("conv1_1", _caffe),
        ("features.0.", _torchvision_classifier),
        ("inception3a.", _googlenet),
        ("_conv_stem.", _efficientnet),
        ("layer4.2.conv3.", _resnet),
        ("block1/layers/", _keras_vgg),
    )
    read = next((read for start, read in readers if any(key.startswith(start) for key in checkpoint.tensors)), None)
    if read is None:
        if any(key.startswith("conv1.") for key in checkpoint.tensors) and checkpoint.kind == "caffe":
            raise ModelError(
                "weights-unknown",
                "{path}: a CaffeNet: its grouped convolutions and local response normalisation have no counterpart "
                "here; start from torchvision's AlexNet instead",
                path=checkpoint.path,
            )
        names = ", ".join(sorted(checkpoint.tensors)[:3])
        raise ModelError(
            "weights-unknown",
            "{path}: no network known here has tensors such as {names}; docs/models.md lists what is known",
            path=checkpoint.path,
            names=names,
        )
    try:
        found = read(checkpoint)
    except (IndexError, RuntimeError, ZeroDivisionError) as error:
        raise ModelError(
            "weights-unknown",
            "{path}: its tensors have shapes that no such network has: {reason}",
            path=checkpoint.path,
            reason=error,
        ) from error
    if at_once:
        found = replace(found, tensors=_at_once(found))
    if pixels is not None:
        other_order = (pixels == "caffe") != (found.pixels == "caffe")
        tensors = {key: _swapped(t) if other_order and key in FIRST else t for key, t in found.tensors.items()}
        found = replace(found, pixels=pixels, tensors=tensors)
    return found


def _own(checkpoint: Checkpoint) -> Foreign:
    return Foreign(checkpoint.path, "own", checkpoint.tensors, "imagenet", classifier=False)


def _caffe(checkpoint: Checkpoint) -> Foreign:
    """The authors' nets, and VGG16 as they started from it."""
    theirs = checkpoint.tensors
    if "score_fr_sem.weight" in theirs:
        raise ModelError(
            "weights-unsupported",
            "{path}: has two heads (SIFT-Flow's classes and geometry); a map holds one answer a pixel",
            path=checkpoint.path,
        )
    layers = {key.rpartition(".")[0] for key in theirs}
    if any(re.fullmatch(r"conv1_1_?(color|hha|depth|d|rgb)", layer) for layer in layers):
        raise ModelError(
            "weights-unsupported",
            "{path}: has a trunk for each of two images (NYUD's colour and HHA); one image is read here",
            path=checkpoint.path,
        )
    ours: Tensors = {}
    for key, tensor in theirs.items():
        layer, _, part = key.rpartition(".")
        if layer in _CAFFE and part in ("weight", "bias"):
            ours[f"{_CAFFE[layer]}.{part}"] = tensor.reshape(-1) if part == "bias" else tensor
        elif not layer.startswith("scale_pool"):
            raise ModelError(
                "weights-unknown",
                "{path}: {names} has no place in an FCN over VGG16; docs/models.md lists what is known",
                path=checkpoint.path,
                names=key,
            )
    for skip in ("pool4", "pool3"):
        if (scale := theirs.get(f"scale_{skip}.weight")) is not None and f"score_{skip}.weight" in ours:
            ours[f"score_{skip}.weight"] = ours[f"score_{skip}.weight"] * scale.reshape(1, -1, 1, 1)
    if _FIRST in ours:
        ours[_FIRST] = _swapped(ours[_FIRST])
    pixels: Pixels = "bgr-depth" if "conv1_1_bgrd.weight" in theirs else "caffe"
    classifier = "score_fr.weight" not in theirs
    ours = _as_convolutions(checkpoint, ours)
    return Foreign(checkpoint.path, "vgg16", ours, pixels, classifier=classifier, caffe=True)


def _at_once(found: Foreign) -> Tensors:
    """The skips' factors of voc-fcn8s-atonce/net.py, as part of the weights."""
    tensors = dict(found.tensors)
    if not {"score_pool4.weight", "score_pool3.weight"} <= set(tensors):
        raise ModelError(
            "weights-mismatch",
            "{path}: --at-once is for an FCN-8s; this file has no score_pool4 and score_pool3",
            path=found.path,
        )
    tensors["score_pool4.weight"] = tensors["score_pool4.weight"] * 0.01
    tensors["score_pool3.weight"] = tensors["score_pool3.weight"] * 0.0001
    return tensors


def _swapped(weight: torch.Tensor) -> torch.Tensor:
    """A first convolution (out, bands, rows, cols) for red, green, blue (and more) of one for blue, green, red."""
    return torch.cat([weight[:, :3].flip(1), weight[:, 3:]], dim=1)


def _torchvision_classifier(checkpoint: Checkpoint) -> Foreign:
    theirs = checkpoint.tensors
    numbers = {int(found[1]) for key in theirs if (found := re.match(r"features\.(\d+)\.", key))}
    kind: Literal["vgg16", "alexnet"]
    if numbers == set(_VGG.values()):
        kind = "vgg16"
    elif numbers == set(_ALEX):
        kind = "alexnet"
    else:
        raise ModelError(
            "weights-unknown",
            "{path}: features {names} are neither VGG16's nor AlexNet's; docs/models.md lists what is known",
            path=checkpoint.path,
            names=sorted(numbers),
        )
    ours = {f"trunk.{key}": tensor for key, tensor in theirs.items() if key.startswith("features.")}
    for part, index in zip(("fc6", "fc7", "score"), _HEADS[kind], strict=True):
        ours |= {f"{part}.{k}": theirs[key] for k in ("weight", "bias") if (key := f"classifier.{index}.{k}") in theirs}
    head = ours.get("fc6.weight")
    # torchvision's file of features only, trained in Caffe's scaling, has NaN in its classifier
    unknown = kind == "vgg16" and head is not None and not head.isfinite().all()
    ours = _as_convolutions(checkpoint, ours)
    return Foreign(checkpoint.path, kind, ours, "caffe-rgb" if unknown else "imagenet", classifier=True)


def _googlenet(checkpoint: Checkpoint) -> Foreign:
    ours = {
        f"score.{key[3:]}" if key.startswith("fc.") else f"trunk.{key}": tensor
        for key, tensor in checkpoint.tensors.items()
        if not key.startswith("aux")
    }
    return Foreign(checkpoint.path, "googlenet", _as_convolutions(checkpoint, ours), "half", classifier=True)


def _efficientnet(checkpoint: Checkpoint) -> Foreign:
    """EfficientNet-Lite0 without its head."""
    ours = {}
    for key, tensor in checkpoint.tensors.items():
        if re.match(r"(_conv_head|_bn1|_fc)\.", key):
            continue
        found = re.fullmatch(r"(?:_blocks\.(\d+)\.)?(\w+)\.(\w+)", key)
        stem = found is not None and found[1] is None
        part = None if found is None else {**_LITE0, "_bn0": "norm" if stem else "expand.norm"}.get(found[2])
        if found is None or part is None or stem != (part in ("conv", "norm")):
            raise ModelError(
                "weights-unknown",
                "{path}: not a key of an EfficientNet-Lite0: {names}",
                path=checkpoint.path,
                names=key,
            )
        ours[f"trunk.{'stem' if stem else f'blocks.{found[1]}'}.{part}.{found[3]}"] = tensor
    return Foreign(checkpoint.path, "efficientnet_lite0", ours, "tensorflow", classifier=True)


def _resnet(checkpoint: Checkpoint) -> Foreign:
    ours = {f"backbone.{key}": tensor for key, tensor in checkpoint.tensors.items() if not key.startswith("fc.")}
    return Foreign(checkpoint.path, _depth(ours), ours, "imagenet", classifier=True)


def _torchvision_fcn(checkpoint: Checkpoint) -> Foreign:
    theirs = checkpoint.tensors
    if "backbone.layer4.2.conv3.weight" not in theirs or "classifier.4.weight" not in theirs:
        raise ModelError(
            "weights-unknown",
            "{path}: neither fcn_resnet50 nor fcn_resnet101; docs/models.md lists what is known",
            path=checkpoint.path,
        )
    ours = {key: tensor for key, tensor in theirs.items() if not key.startswith("aux_classifier.")}
    return Foreign(checkpoint.path, _depth(ours), ours, "imagenet", classifier=False)


def _keras_vgg(checkpoint: Checkpoint) -> Foreign:
    """The convolutions of Keras's VGG16 in blocks, as holistic edge detectors (Xie & Tu 2015) keep them.

    Weights are (rows, cols, in, out); pixels are Caffe's. What stands beside the blocks belongs to the edges.
    """
    ours: Tensors = {}
    for key, tensor in checkpoint.tensors.items():
        if found := re.fullmatch(r"block(\d)/layers/conv2d(?:_(\d))?/vars/([01])", key):
            number = _VGG.get(f"{found[1]}_{int(found[2] or 0) + 1}")
            if number is None:
                raise ModelError(
                    "weights-unknown",
                    "{path}: {names} has no place in VGG16; docs/models.md lists what is known",
                    path=checkpoint.path,
                    names=key,
                )
            part = "bias" if found[3] == "1" else "weight"
            ours[f"trunk.features.{number}.{part}"] = tensor if part == "bias" else tensor.permute(3, 2, 0, 1)
    if _FIRST in ours:
        ours[_FIRST] = _swapped(ours[_FIRST])
    return Foreign(checkpoint.path, "vgg16", ours, "caffe", classifier=True)


def _depth(ours: Tensors) -> Literal["fcn_resnet50", "fcn_resnet101"]:
    return "fcn_resnet101" if "backbone.layer3.22.conv1.weight" in ours else "fcn_resnet50"


def _as_convolutions(checkpoint: Checkpoint, ours: Tensors) -> Tensors:
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
            raise ModelError(
                "weights-mismatch",
                "{path}: {layer} sees {size} numbers, no square map of {channels} channels",
                path=checkpoint.path,
                layer=part,
                size=weight.shape[1],
                channels=channels,
            )
        ours[f"{part}.weight"] = weight.reshape(-1, channels, side, side)
    return ours
