"""Model files out of other people's weights; and other people's weights as the start of a training.

The authors' Caffe nets pad the image by 100 and crop; here the same weights stand in the translation-equivariant form
with a shift of 3, which gives the same scores away from the raster's edges. Upsampling that is bilinear in the file
becomes bilinear interpolation; any other stays a transposed convolution.
"""

from dataclasses import dataclass

import torch
from pydantic import ValidationError
from torch import nn

from fcn_batch.pipeline.core.errors import ModelError
from fcn_batch.pipeline.core.model_card import Architecture, ModelCard, TorchvisionFcn, first_problem
from fcn_batch.pipeline.core.scalings import Pixels, input_spec
from fcn_batch.pipeline.core.voc import legend_of, usual_names
from fcn_batch.pipeline.network.foreign import FIRST, Foreign, Tensors
from fcn_batch.pipeline.network.networks import FcnNetwork, build_network
from fcn_batch.pipeline.network.start import start_from
from fcn_batch.pipeline.network.upsample import bilinear_kernel

__all__ = ["Facts", "Pixels", "convert", "convolutionalise", "start_from"]

_SHIFT = 3
"""The original's pad of 100, modulo 32; 1 of it is the convolution's own (reach of the first cell: -99)."""
_FULL_WIDTH = {"vgg16": 64, "alexnet": 64}
_IMAGENET_CLASSES = 1000


@dataclass(frozen=True, slots=True)
class Facts:
    """What no weights tell."""

    name: str
    gsd_m: float = 1.0
    """Metres per pixel of the images it was trained on."""
    classes: tuple[str, ...] | None = None
    """Their names; None: VOC's, ImageNet's or numbers."""
    means: tuple[float, ...] | None = None
    """Of the pixels in their own numbers, red, green, blue; None: as published."""


def convert(source: Foreign, facts: Facts) -> tuple[FcnNetwork, ModelCard]:
    """The FCN that `source` holds, in evaluation mode and in its own dtype, and its card.

    ModelError when the file holds a classifier, or weights that do not belong together.
    """
    if source.kind == "own":
        raise ModelError(f"{source.path}: holds a network of fcn-batch already; use it as it is")
    if source.classifier:
        remedy = f"`fcn-batch model convolutionalise {source.kind}` makes an FCN of it"
        known = source.kind in ("vgg16", "alexnet", "googlenet")
        raise ModelError(f"{source.path}: a classifier, not an FCN; {remedy if known else 'start a training from it'}")
    if source.kind == "fcn_resnet50" or source.kind == "fcn_resnet101":
        tensors: Tensors = dict(source.tensors)
        architecture: Architecture | TorchvisionFcn = TorchvisionFcn(name=source.kind)
    else:
        architecture, tensors = _authors_net(source)
    return _filled(source, architecture, tensors, facts)


def convolutionalise(source: Foreign, facts: Facts) -> tuple[FcnNetwork, ModelCard]:
    """The FCN-32s of the classifier that `source` holds: the same classes, for every 32nd pixel.

    Section 3.1 of the paper: fully connected layers become convolutions over the map they saw. ModelError when the
    file holds something else than VGG16, AlexNet or GoogLeNet with its classifier.
    """
    if not source.classifier or source.kind not in ("vgg16", "alexnet", "googlenet"):
        raise ModelError(
            f"{source.path}: not the classifier VGG16, AlexNet or GoogLeNet; try `fcn-batch model convert`"
        )
    if "score.weight" not in source.tensors:
        raise ModelError(f"{source.path}: holds features without a classifier; start a training from it instead")
    return _filled(source, _architecture(source, 32, "bilinear"), dict(source.tensors), facts)


def _authors_net(source: Foreign) -> tuple[Architecture, Tensors]:
    tensors = dict(source.tensors)
    skips = [skip for skip in ("score_pool4.weight", "score_pool3.weight") if skip in tensors]
    if skips == ["score_pool3.weight"]:
        raise ModelError(f"{source.path}: has score_pool3 and no score_pool4; a part of the file is missing")
    stride = 32 >> (len(skips) if len(skips) < 2 else 2)
    factors = {"up_score": 2, "up_pool4": 2, "up_final": stride}
    kernels = {f"{up}.weight": factors[up] for up in factors if f"{up}.weight" in tensors}
    classes = tensors["score.weight"].shape[0]
    learned = {key: _dense(source, tensors.pop(key), classes, factor) for key, factor in kernels.items()}
    if all(torch.allclose(weight, _bilinear(weight, kernels[key])) for key, weight in learned.items()):
        return _architecture(source, stride, "bilinear"), tensors
    return _architecture(source, stride, "learned"), tensors | learned


def _dense(source: Foreign, weight: torch.Tensor, classes: int, factor: int) -> torch.Tensor:
    """A transposed convolution's weight (in, out, rows, cols), also where the file has one kernel for each class."""
    side = 2 * factor
    if tuple(weight.shape) == (classes, classes, side, side):
        return weight
    if tuple(weight.shape) == (classes, 1, side, side):
        dense = weight.new_zeros(classes, classes, side, side)
        dense[range(classes), range(classes)] = weight[:, 0]
        return dense
    raise ModelError(
        f"{source.path}: an upsampling by {factor} of {classes} classes has the shape {tuple(weight.shape)}, "
        f"not {(classes, classes, side, side)}"
    )


def _bilinear(weight: torch.Tensor, factor: int) -> torch.Tensor:
    kernel, classes = bilinear_kernel(factor).to(weight.dtype), range(weight.shape[0])
    expected = torch.zeros_like(weight)
    expected[classes, classes] = kernel
    return expected


def _architecture(source: Foreign, stride: int, upsampling: str) -> Architecture:
    """What the tensors' shapes say; whether all of them agree shows when the network is filled."""
    tensors, width, kernel, channels = source.tensors, 1.0, 1, 0
    assert source.kind in ("vgg16", "alexnet", "googlenet")
    if source.kind != "googlenet":
        missing = [key for key in ("trunk.features.0.weight", "fc6.weight", "fc7.weight") if key not in tensors]
        if missing:
            raise ModelError(f"{source.path}: {missing[0].removesuffix('.weight')} is missing: the file is not whole")
        width = tensors["trunk.features.0.weight"].shape[0] / _FULL_WIDTH[source.kind]
        channels, kernel = tensors["fc6.weight"].shape[0], tensors["fc6.weight"].shape[-1]
    shift = _SHIFT if source.caffe and not source.classifier else 0
    values = {"trunk": source.kind, "stride": stride, "width": width, "fc_kernel": kernel, "fc_channels": channels}
    try:
        return Architecture.model_validate({**values, "upsampling": upsampling, "shift": shift})
    except ValidationError as error:
        raise ModelError(f"{source.path}: no network has layers of these sizes: {first_problem(error)}") from error


def _filled(
    source: Foreign, architecture: Architecture | TorchvisionFcn, tensors: Tensors, facts: Facts
) -> tuple[FcnNetwork, ModelCard]:
    _check_values(source, tensors)
    score = tensors["classifier.4.weight" if isinstance(architecture, TorchvisionFcn) else "score.weight"]
    first = next(tensors[key] for key in FIRST if key in tensors)
    classes, bands = score.shape[0], first.shape[1]
    names = facts.classes or _names(source, classes)
    if len(names) != classes:
        raise ModelError(f"{source.path}: the network has {classes} classes, and {len(names)} names were given")
    try:
        spec = input_spec(source.pixels, facts.gsd_m, facts.means)
        legend = legend_of(names)
    except ValidationError as error:
        raise ModelError(f"{source.path}: {first_problem(error)}") from error
    except ValueError as error:
        raise ModelError(f"{source.path}: {error}") from error
    if bands != len(spec.bands):
        raise ModelError(f"{source.path}: the network has {bands} bands; how they are scaled is known for 3 only")
    with torch.device("meta"):  # the tensors are taken as they are, not copied
        network = build_network(architecture, bands, classes)
    _assign(source, network, tensors)
    return network.eval(), ModelCard(
        name=facts.name,
        version="1",
        summary=f"{_told(architecture)} with {classes} classes, converted from {source.path.name}",
        architecture=architecture,
        stride=network.stride,
        halo=network.halo,
        phase=network.phase,
        input=spec,
        legend=legend,
    )


def _assign(source: Foreign, network: nn.Module, tensors: Tensors) -> None:
    wanted = network.state_dict()
    for key, tensor in wanted.items():
        if key.endswith("num_batches_tracked"):  # not in old files; counts nothing once trained
            tensors.setdefault(key, torch.zeros((), dtype=torch.long))
        elif key not in tensors:
            raise ModelError(f"{source.path}: {key} is missing: the file is not whole")
        elif tensors[key].shape != tensor.shape:
            raise ModelError(
                f"{source.path}: {key} has the shape {tuple(tensors[key].shape)}, the layers around it want "
                f"{tuple(tensor.shape)}"
            )
    if extra := sorted(set(tensors) - set(wanted)):
        raise ModelError(f"{source.path}: {extra[0]} has no place in the network that the other layers make")
    network.load_state_dict(tensors, assign=True)


def _check_values(source: Foreign, tensors: Tensors) -> None:
    for key, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise ModelError(
                f"{source.path}: {key} holds NaN or infinity: the training diverged, or the file is damaged"
            )
        if key.endswith("weight") and not tensor.any():
            raise ModelError(
                f"{source.path}: all weights of {key.removesuffix('.weight')} are zero: it was never trained, or not "
                "started from a trained trunk"
            )


def _names(source: Foreign, classes: int) -> tuple[str, ...]:
    if source.classifier and classes == _IMAGENET_CLASSES:
        from torchvision.models import VGG16_Weights

        return tuple(VGG16_Weights.IMAGENET1K_V1.meta["categories"])
    return usual_names(classes)


def _told(architecture: Architecture | TorchvisionFcn) -> str:
    if isinstance(architecture, TorchvisionFcn):
        return architecture.name
    return f"FCN-{architecture.stride}s over {architecture.trunk}"
