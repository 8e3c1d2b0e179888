"""Models out of other people's weights.

The authors' Caffe nets pad the image by 100 and crop; here the same weights stand in the translation-equivariant form
with a shift of 3, which gives the same scores away from the raster's edges. Upsampling that is bilinear in the file
becomes bilinear interpolation; any other stays a transposed convolution.
"""

from dataclasses import dataclass

import torch
from pydantic import ValidationError
from torch import nn

from fcn_batch.pipeline.core.classes import Legend, usual_names
from fcn_batch.pipeline.core.errors import ModelError
from fcn_batch.pipeline.core.model_card import Architecture, ModelCard, TorchvisionFcn, first_problem
from fcn_batch.pipeline.core.scalings import input_spec
from fcn_batch.pipeline.network.fcn import FcnNetwork, bilinear_kernel, build_network
from fcn_batch.pipeline.network.foreign import FIRST, Foreign, Tensors

_FIRST = "trunk.features.0.weight"
_SHIFT = 3
"""The original's pad of 100, modulo 32; 1 of it is the convolution's own (reach of the first cell: -99)."""
_FULL_WIDTH = 64
"""Channels of the first convolution of VGG16 and of AlexNet."""
_IMAGENET_CLASSES = 1000


@dataclass(frozen=True, slots=True)
class Facts:
    """What weights do not tell about a model."""

    name: str
    gsd_m: float = 1.0
    """Metres per pixel of the images it was trained on."""
    classes: tuple[str, ...] | None = None
    """Their names; None: VOC's, ImageNet's or numbers."""
    means: tuple[float, ...] | None = None
    """Of the pixels in their own numbers, red, green, blue; None: as published."""


def convert(source: Foreign, facts: Facts) -> tuple[FcnNetwork, ModelCard]:
    """Return the FCN that `source` holds, in evaluation mode and in its own dtype, and its card.

    ModelError when the file holds a classifier, or weights that do not belong together.
    """
    if source.kind == "own":
        raise ModelError("model-own", "{path}: holds a network of fcn-batch already; use it as it is", path=source.path)
    if source.classifier:
        known = source.kind in ("vgg16", "alexnet", "googlenet")
        remedy = f"`fcn-batch model convolutionalise {source.kind}` makes an FCN of it"
        raise ModelError(
            "weights-classifier",
            "{path}: a classifier, not an FCN; {remedy}",
            path=source.path,
            remedy=remedy if known else "start a training from it",
        )
    if source.kind == "fcn_resnet50" or source.kind == "fcn_resnet101":
        return _filled(source, TorchvisionFcn(name=source.kind), dict(source.tensors), facts)
    return _filled(source, *_authors_net(source), facts)


def convolutionalise(source: Foreign, facts: Facts) -> tuple[FcnNetwork, ModelCard]:
    """Return the FCN-32s of the classifier that `source` holds: the same classes, for every 32nd pixel.

    Section 3.1 of the paper: fully connected layers become convolutions over the map they saw. ModelError when the
    file holds something else than VGG16, AlexNet or GoogLeNet with its classifier.
    """
    if not source.classifier or source.kind not in ("vgg16", "alexnet", "googlenet"):
        raise ModelError(
            "weights-no-classifier",
            "{path}: not the classifier VGG16, AlexNet or GoogLeNet; try `fcn-batch model convert`",
            path=source.path,
        )
    if "score.weight" not in source.tensors:
        raise ModelError(
            "weights-no-classifier",
            "{path}: holds features without a classifier; start a training from it instead",
            path=source.path,
        )
    return _filled(source, _architecture(source, 32, "bilinear"), dict(source.tensors), facts)


def _authors_net(source: Foreign) -> tuple[Architecture, Tensors]:
    tensors = dict(source.tensors)
    skips = [skip for skip in ("score_pool4.weight", "score_pool3.weight") if skip in tensors]
    if skips == ["score_pool3.weight"]:
        raise ModelError(
            "weights-missing",
            "{path}: {layer} is missing: the file is not whole",
            path=source.path,
            layer="score_pool4",
        )
    stride = 32 >> len(skips)
    factors = {"up_score.weight": 2, "up_pool4.weight": 2, "up_final.weight": stride}
    classes = tensors["score.weight"].shape[0]
    learned = {key: _dense(source, tensors.pop(key), classes, n) for key, n in factors.items() if key in tensors}
    if all(torch.allclose(weight, _bilinear(weight, factors[key])) for key, weight in learned.items()):
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
    raise _misshapen(source, f"upsampling by {factor}", weight, (classes, classes, side, side))


def _bilinear(weight: torch.Tensor, factor: int) -> torch.Tensor:
    kernel, classes = bilinear_kernel(factor).to(weight.dtype), range(weight.shape[0])
    expected = torch.zeros_like(weight)
    expected[classes, classes] = kernel
    return expected


def _architecture(source: Foreign, stride: int, upsampling: str) -> Architecture:
    """What the tensors' shapes say; whether all of them agree shows when the network is filled."""
    tensors, width, kernel, channels = source.tensors, 1.0, 1, 0
    if source.kind != "googlenet":
        missing = [key for key in (_FIRST, "fc6.weight", "fc7.weight") if key not in tensors]
        if missing:
            raise ModelError(
                "weights-missing",
                "{path}: {layer} is missing: the file is not whole",
                path=source.path,
                layer=missing[0].removesuffix(".weight"),
            )
        width = tensors[_FIRST].shape[0] / _FULL_WIDTH
        channels, kernel = tensors["fc6.weight"].shape[0], tensors["fc6.weight"].shape[-1]
    shift = _SHIFT if source.caffe and not source.classifier else 0
    values = {"trunk": source.kind, "stride": stride, "width": width, "fc_kernel": kernel, "fc_channels": channels}
    try:
        return Architecture.model_validate({**values, "upsampling": upsampling, "shift": shift})
    except ValidationError as error:
        raise ModelError(
            "weights-mismatch",
            "{path}: no network has layers of these sizes: {reason}",
            path=source.path,
            reason=first_problem(error),
        ) from error


def _filled(
    source: Foreign, architecture: Architecture | TorchvisionFcn, tensors: Tensors, facts: Facts
) -> tuple[FcnNetwork, ModelCard]:
    _check_values(source, tensors)
    dilated = isinstance(architecture, TorchvisionFcn)
    classes = tensors["classifier.4.weight" if dilated else "score.weight"].shape[0]
    bands = next(tensors[key] for key in FIRST if key in tensors).shape[1]
    names = facts.classes or _names(source, classes)
    if len(names) != classes:
        raise ModelError(
            "classes-mismatch",
            "{path}: the network has {classes} classes, and {names} names were given",
            path=source.path,
            classes=classes,
            names=len(names),
        )
    try:
        spec = input_spec(source.pixels, facts.gsd_m, facts.means)
        legend = Legend.named(names)
    except ValueError as error:  # pydantic's is one
        problem = first_problem(error) if isinstance(error, ValidationError) else error
        raise ModelError("card-invalid", "{path}: {reason}", path=source.path, reason=problem) from error
    if bands != len(spec.bands):
        raise ModelError(
            "bands-unknown",
            "{path}: the network has {bands} bands; how they are scaled is known for 3 only",
            path=source.path,
            bands=bands,
        )
    with torch.device("meta"):  # the tensors are taken as they are, not copied
        network = build_network(architecture, bands, classes)
    _assign(source, network, tensors)
    if isinstance(architecture, TorchvisionFcn):
        kind: str = architecture.name
    else:
        kind = f"FCN-{architecture.stride}s over {architecture.trunk}"
    return network.eval(), ModelCard(
        name=facts.name,
        version="1",
        summary=f"{kind} with {classes} classes, converted from {source.path.name}",
        architecture=architecture,
        stride=network.stride,
        halo=network.halo,
        phase=network.phase,
        input=spec,
        legend=legend,
    )


def _assign(source: Foreign, network: nn.Module, tensors: Tensors) -> None:
    state = network.state_dict()
    for key, tensor in state.items():
        if key.endswith("num_batches_tracked"):  # not in old files; counts nothing once trained
            tensors.setdefault(key, torch.zeros((), dtype=torch.long))
        elif key not in tensors:
            raise ModelError(
                "weights-missing", "{path}: {layer} is missing: the file is not whole", path=source.path, layer=key
            )
        elif tensors[key].shape != tensor.shape:
            raise _misshapen(source, key, tensors[key], tuple(tensor.shape))
    if extra := sorted(set(tensors) - set(state)):
        raise ModelError(
            "weights-mismatch",
            "{path}: {layer} has no place in the network that the other layers make",
            path=source.path,
            layer=extra[0],
        )
    network.load_state_dict(tensors, assign=True)


def _check_values(source: Foreign, tensors: Tensors) -> None:
    for key, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise ModelError(
                "weights-invalid",
                "{path}: {layer} holds NaN or infinity; get the file again",
                path=source.path,
                layer=key,
            )
        if key.endswith("weight") and not tensor.any():
            raise ModelError(
                "weights-untrained",
                "{path}: all of {layer} is zero: it was never trained, or not started from a trained trunk",
                path=source.path,
                layer=key,
            )


def _misshapen(source: Foreign, layer: str, tensor: torch.Tensor, shape: tuple[int, ...]) -> ModelError:
    return ModelError(
        "weights-mismatch",
        "{path}: {layer} has the shape {found}, the layers around it need {shape}",
        path=source.path,
        layer=layer,
        found=tuple(tensor.shape),
        shape=shape,
    )


def _names(source: Foreign, classes: int) -> tuple[str, ...]:
    if source.classifier and classes == _IMAGENET_CLASSES:
        from torchvision.models import VGG16_Weights

        return tuple(VGG16_Weights.IMAGENET1K_V1.meta["categories"])
    return usual_names(classes)
