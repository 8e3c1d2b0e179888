"""What a model file says about itself: validated when written and when read."""

import unicodedata
from typing import Annotated, Literal

from pydantic import Field, JsonValue, ValidationError, field_validator, model_validator

from fcn_batch.pipeline.core.classes import Legend
from fcn_batch.pipeline.core.frozen import Frozen
from fcn_batch.pipeline.core.limits import MAX_BANDS


class Architecture(Frozen):
    """A network of the FCN paper's kind: a trunk of stride 32, and score layers on three of its feature maps."""

    family: Literal["fcn"] = "fcn"
    trunk: Literal["vgg16", "alexnet", "googlenet", "efficientnet_lite0"] = "vgg16"
    stride: Literal[8, 16, 32] = 8
    """FCN-8s, FCN-16s or FCN-32s: the stride of the finest score map."""
    width: float = Field(default=1.0, gt=0, le=2)
    """Channels of the trunk, as a share of the published one's."""
    fc_kernel: int = Field(default=7, ge=1, le=15)
    """Kernel of fc6; 7 in VGG16, 6 in AlexNet."""
    fc_channels: int = Field(default=4096, ge=0, le=8192)
    """Channels of fc6 and fc7; 0: the trunk has none, and is scored directly (GoogLeNet, EfficientNet)."""
    upsampling: Literal["bilinear", "learned"] = "bilinear"
    input_upsampling: Literal[1, 2, 4] = 1
    dropout: float = Field(default=0.5, ge=0, lt=1)
    skip_scales: tuple[float, float] = (1.0, 1.0)
    """Fixed factors of pool4 and pool3 before they are scored; 0.01 and 0.0001 in nets trained all at once."""
    shift: int = Field(default=0, ge=0, lt=32)
    """Rows and columns of zeros set before the image: 3 stands for the pad of 100 of the authors' Caffe nets, whose
    coarse cells begin at -3 modulo 32."""

    @model_validator(mode="after")
    def _possible(self) -> "Architecture":
        if self.width != 1 and self.trunk not in ("vgg16", "alexnet"):
            raise ValueError(
                f"{self.trunk} has one width, got {self.width:g}: set width to 1, or take vgg16 or alexnet"
            )
        if self.shift and self.input_upsampling > 1:
            raise ValueError(
                f"a shift of {self.shift} does not go with an input enlarged {self.input_upsampling} times: set shift "
                "to 0 or input_upsampling to 1"
            )
        return self


class TorchvisionFcn(Frozen):
    """A dilated ResNet with an FCN head, as torchvision builds it: stride 8."""

    family: Literal["torchvision"] = "torchvision"
    name: Literal["fcn_resnet50", "fcn_resnet101"] = "fcn_resnet50"


NAME = r"^[a-z0-9][a-z0-9_.-]*$"
"""What a model may be called."""

_LONGEST = 300

TARGET = r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*$"
"""How a factory is named: ``package.module:factory``."""


class Factory(Frozen):
    """A network that somebody else's Python code builds."""

    family: Literal["factory"] = "factory"
    target: str = Field(pattern=TARGET)
    """``package.module:factory``."""
    arguments: dict[str, JsonValue] = Field(default={})
    """Keyword arguments of the factory."""

    @property
    def module(self) -> str:
        """The module's name."""
        return self.target.partition(":")[0]

    @property
    def name(self) -> str:
        """The factory's name in its module."""
        return self.target.partition(":")[2]


class Band(Frozen):
    """One input band, as the network was trained: (value / full_scale - mean) / std."""

    name: str = Field(min_length=1, max_length=100)
    mean: float
    std: float = Field(gt=0)


class InputSpec(Frozen):
    """What the network wants to see."""

    bands: tuple[Band, ...] = Field(min_length=1, max_length=MAX_BANDS)
    dtype: Literal["uint8", "uint16", "int16", "float32"] = "uint8"
    """Data type of the rasters it was trained on."""
    full_scale: float = Field(default=255.0, gt=0)
    """The value that became 1 in training."""
    gsd_m: float = Field(gt=0)
    """Ground sample distance it was trained at, in metres per pixel."""
    nodata: Literal["mean"] = "mean"
    """Pixels without data become each band's mean before the network (0 after scaling)."""


class Scores(Frozen):
    """How well the network did on pixels it never saw."""

    split: str
    """Which pixels those were."""
    pixel_accuracy: Annotated[float, Field(ge=0, le=1)]
    mean_iu: Annotated[float, Field(ge=0, le=1)]
    mean_accuracy: Annotated[float, Field(ge=0, le=1)] | None = None
    frequency_weighted_iu: Annotated[float, Field(ge=0, le=1)] | None = None
    class_iu: dict[str, float]
    baseline: str
    """A simpler method on the same pixels, and what it reached."""


Exactness = Literal["exact", "exact (tested)", "windows"]
"""exact: the network's answer for the whole image, by the arithmetic of all of its layers. exact (tested): the same,
but how far some layers look was found by trying. windows: by definition the blend of a fixed grid of windows."""


class TrainingData(Frozen):
    """Where the labels and images came from."""

    name: str
    source: str
    licence: str


class ModelCard(Frozen):
    """Everything a run needs to know of a model, beside its weights."""

    format: Literal[1] = 1
    """Version of this metadata; raised when old readers would misread new files."""
    name: str = Field(pattern=NAME)
    version: str
    summary: str
    architecture: Architecture | TorchvisionFcn | Factory = Field(discriminator="family")
    stride: int = Field(ge=1)
    """The raster's grid the network repeats on, in pixels; derived from the layers or probed, checked on load."""
    halo: int | None = Field(ge=0)
    """Pixels to read beyond a core; None: the scores depend on the whole image, so tiles are approximate."""
    exactness: Exactness = "exact"
    """The best word for a map of it."""
    inexact: str = ""
    """The reason why it is no better."""
    probabilities: bool = False
    """True when its scores are probabilities: it ends in a softmax over the classes."""
    phase: int = Field(default=0, ge=0)
    """First pixel of a coarsest cell; 0 in nets that are padded alike on both sides. Windows start at multiples of
    the stride whatever it is."""
    input: InputSpec
    legend: Legend
    training: tuple[TrainingData, ...] = ()
    scores: Scores | None = None
    bf16_disagreement: float | None = Field(default=None, ge=0, le=1)
    """Share of pixels whose class in bfloat16 differs from float32's, measured."""

    @field_validator("legend", "input")
    @classmethod
    def _plain_names(cls, value: Legend | InputSpec) -> Legend | InputSpec:
        named = value.classes if isinstance(value, Legend) else value.bands
        if wrong := next((one.name for one in named if any(unicodedata.category(c) == "Cc" for c in one.name)), None):
            raise ValueError(f"the name {wrong!r} holds control characters; give one without")
        return value


def first_problem(error: ValidationError) -> str:
    """The first thing wrong in a card or in the file it is made from: the place, what is wrong, the value."""
    first = error.errors()[0]
    place = [str(part) for part in first["loc"]]
    if place[:1] == ["architecture"]:
        del place[1:2]  # pydantic's name of the family, which is no field of the file
    got = "" if first["type"] == "missing" else f" (got {_short(repr(first['input']))})"
    return f"{_short('.'.join(place))}: {_short(first['msg'])}{got}"


def _short(text: str) -> str:
    """What a hostile file holds may be megabytes long."""
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."
