"""How the pixels of published networks were scaled, as what a model's card says of its input."""

from typing import Literal, NamedTuple

from fcn_batch.pipeline.core.model_card import Band, InputSpec

Pixels = Literal["imagenet", "caffe", "caffe-rgb", "half", "tensorflow", "bgr-depth"]


class _Scaling(NamedTuple):
    """Of values from 0 to 255, as shares of 255."""

    means: tuple[float, ...]
    stds: tuple[float, ...]


_BYTE = 255.0
_UNSCALED = (1 / _BYTE,) * 3
_SCALINGS: dict[Pixels, _Scaling] = {
    # torchvision's models; values 0 to 255 become 0 to 1 first
    "imagenet": _Scaling((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    # voc_layers.py and infer.py of the authors: mean of blue, green, red 104.00699, 116.66877, 122.67892; not divided
    "caffe": _Scaling((122.67892 / _BYTE, 116.66877 / _BYTE, 104.00699 / _BYTE), _UNSCALED),
    # VGG16_Weights.IMAGENET1K_FEATURES of torchvision
    "caffe-rgb": _Scaling((0.48235, 0.45882, 0.40784), _UNSCALED),
    # what transform_input of torchvision's GoogLeNet makes of the pixels
    "half": _Scaling((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    # EfficientNet-Lite: (value - 127) / 128
    "tensorflow": _Scaling((127 / _BYTE,) * 3, (128 / _BYTE,) * 3),
    # nyud_layers.py of the authors: colour, and the logarithm of the depth as it is
    "bgr-depth": _Scaling((92.318 / _BYTE, 97.203 / _BYTE, 116.190 / _BYTE, 7.844 / _BYTE), (1 / _BYTE,) * 4),
}
_BANDS = ("red", "green", "blue", "log depth")


def input_spec(pixels: Pixels, gsd_m: float, means: tuple[float, ...] | None = None) -> InputSpec:
    """What a network wants to see whose pixels were scaled that way, at `gsd_m` metres per pixel.

    `means` are other means, in the numbers that the pixels have (0 to 255), in the order of the bands. Bands are red,
    green, blue, and for ``bgr-depth`` the natural logarithm of the depth. ValueError when `means` are too many or few.
    """
    known, stds = _SCALINGS[pixels]
    if means is not None and len(means) != len(known):
        raise ValueError(f"{len(means)} means for {len(known)} bands")
    chosen = known if means is None else tuple(mean / _BYTE for mean in means)
    bands = tuple(Band(name=name, mean=m, std=s) for name, m, s in zip(_BANDS, chosen, stds, strict=False))
    return InputSpec(bands=bands, dtype="float32" if pixels == "bgr-depth" else "uint8", full_scale=_BYTE, gsd_m=gsd_m)
