"""How a model is trained: the contents of a `configs/models/NAME.toml`, checked as a whole."""

import hashlib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from fcn_batch.pipeline.core.classes import ClassInfo, Legend
from fcn_batch.pipeline.core.errors import TrainingError
from fcn_batch.pipeline.core.frozen import Frozen
from fcn_batch.pipeline.core.limits import MAX_TEXT, parsed_toml, read_bounded
from fcn_batch.pipeline.core.model_card import Architecture, TorchvisionFcn, TrainingData
from fcn_batch.pipeline.core.splits import Split


class Identity(Frozen):
    """Name and description of the model that comes out."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_.-]*$")
    version: str
    summary: str
    gsd_m: float = Field(gt=0)
    """Ground sample distance of the training images, metres per pixel."""
    baseline: str = "none given"
    """A simpler method on the same test pixels, and what it reached."""
    weights: Literal["fp32", "fp16"] = "fp32"
    """How the file stores weights; the scores in its card are those of the weights as stored."""


class LearntClass(ClassInfo):
    """A class of the map, and which ids in the label files mean it."""

    labels: Annotated[tuple[int, ...], Field(min_length=1)] | None = None
    """Default: its own id."""

    @property
    def label_ids(self) -> tuple[int, ...]:
        """Ids in the label files that mean this class."""
        return (self.id,) if self.labels is None else self.labels


class Place(Frozen):
    """Where a file lies, when it does not say so itself, or says it wrongly."""

    crs: str
    """Such as EPSG:4326."""
    transform: tuple[float, float, float, float, float, float]
    """(a, b, c, d, e, f) of x = a * col + b * row + c, y = d * col + e * row + f."""


class Polygons(Frozen):
    """How polygons become label ids."""

    field: str | None = None
    """Attribute that says which class a polygon is; none: all are `burn`."""
    values: dict[str, int] = Field(default={})
    """Label id for each value of `field`."""
    burn: int = 1
    background: int = 0
    """Label id where no polygon is."""


class Images(Frozen):
    """The images and their labels; paths are relative to the data folder, or ``package:NAME/path``."""

    paths: tuple[str, ...] = Field(min_length=1)
    """Files or patterns such as ``images/*.png``."""
    labels: str
    """A file for all, or one for each image: {stem} stands for its name without suffix, {parent} for its folder."""
    bands: tuple[str, ...] = Field(min_length=1)
    """Names of the images' bands to train on, in the files' order from band 1; a grey image stands for all."""
    full_scale: float = Field(default=255.0, gt=0)
    place: Place | None = None
    labels_place: Place | None = None
    polygons: Polygons | None = None
    ignore: tuple[int, ...] = (255,)
    """Label ids that are no class and no error: their pixels teach and score nothing."""


class Augment(Frozen):
    """What is done at random to a training window."""

    flips: bool = True
    turns: bool = True
    """Quarter turns."""
    scale: float = Field(default=1.0, ge=1, le=4)
    """Largest factor by which a window is enlarged or made smaller."""
    jitter: float = Field(default=0.0, ge=0, lt=1)
    """Largest relative change of brightness and of each band's gain."""
    saturation: float = Field(default=0.0, ge=0, le=1)
    """Largest relative change of how far the bands lie from their mean."""


class Schedule(Frozen):
    """Optimiser and sampling."""

    steps: int = Field(ge=1)
    """Steps of each stage."""
    batch: int = Field(default=16, ge=1)
    """Windows of one step."""
    accumulate: int = Field(default=1, ge=1)
    """Parts that a batch is computed in, one after the other, for less memory; the gradient is the whole batch's."""
    crop: int = Field(default=256, ge=1)
    """Side of a training window, in raster pixels."""
    optimiser: Literal["adamw", "sgd"] = "adamw"
    learning_rate: float = Field(default=1e-3, gt=0)
    """Peak of the rate, for the mean loss over a batch's labelled pixels."""
    rates: Literal["cosine", "fixed"] = "cosine"
    """cosine: linear warm-up over the first 5 %, then half a cosine to zero; fixed: as in the paper."""
    trunk_rate: float = Field(default=1.0, gt=0, le=1)
    """Factor on the rate of the trunk: below 1 for one that knows much already."""
    bias_rate: float = Field(default=1.0, gt=0)
    """Factor on the rate of biases, which then have no weight decay: 2 in the paper."""
    momentum: float = Field(default=0.9, ge=0, lt=1)
    """Of SGD."""
    weight_decay: float = Field(default=0.01, ge=0)
    staged: bool = False
    """Train FCN-32s, then FCN-16s from it, then FCN-8s, as the paper does; else the finest at once."""
    stage_rate: float = Field(default=1.0, gt=0, le=1)
    """Factor on the rate from one stage to the next: 0.01 in the paper."""
    class_balance: float = Field(default=0.0, ge=0, le=1)
    """Weight of a class in the loss: its share of pixels to the power of minus this (0: none)."""
    dice: float = Field(default=0.0, ge=0)
    """Weight of the soft Dice loss beside the cross-entropy."""
    one_class_at_most: float = Field(default=1.0, gt=0, le=1)
    """A window where one class holds more than this share of the labels is drawn again, three times at most."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16: activations in bfloat16 (autocast), weights in float32; for devices that have it."""
    evaluate_every: int = Field(default=1000, ge=1)
    """Steps between looks at the val split."""
    patience: int = Field(default=0, ge=0)
    """Stop a stage after so many looks without a better mean IU, and take its best network; 0: take the last."""
    seed: int = 0

    @model_validator(mode="after")
    def _parts_of_a_batch(self) -> "Schedule":
        if self.batch % self.accumulate:
            raise ValueError(f"a batch of {self.batch} windows cannot be done in {self.accumulate} equal parts")
        return self


class Recipe(Frozen):
    """Everything that decides a trained model, beside the data's pixels."""

    model: Identity
    architecture: Architecture | TorchvisionFcn = Field(discriminator="family")
    start: str | None = None
    """Weights to begin with: a model file or a checkpoint, relative to the data folder, or ``package:NAME/path``."""
    classes: tuple[LearntClass, ...] = Field(min_length=2)
    images: Images
    split: Split
    augment: Augment = Augment()
    schedule: Schedule
    data: tuple[TrainingData, ...] = ()

    @field_validator("architecture", mode="before")
    @classmethod
    def _family(cls, value: Any) -> Any:
        """An architecture that names no family is of the paper's."""
        return {"family": "fcn", **value} if isinstance(value, dict) else value

    @field_validator("classes")
    @classmethod
    def _distinct(cls, classes: tuple[LearntClass, ...]) -> tuple[LearntClass, ...]:
        try:
            legend = legend_of(classes)
        except ValidationError as error:
            raise ValueError(error.errors()[0]["ctx"]["error"]) from error
        if not legend.fits_a_map:
            raise ValueError(f"class id {max(legend.ids)} does not fit a map of bytes: give ids from 0 to 254")
        ids = [i for c in classes for i in c.label_ids]
        if doubles := sorted({i for i in ids if ids.count(i) > 1}):
            raise ValueError(f"label id {doubles[0]} means two classes")
        return classes

    @model_validator(mode="after")
    def _stages(self) -> "Recipe":
        if self.schedule.staged and isinstance(self.architecture, TorchvisionFcn):
            raise ValueError(f"{self.architecture.name} has no skips to add in stages; leave schedule.staged out")
        return self

    @property
    def legend(self) -> Legend:
        """The classes, without their labels."""
        return legend_of(self.classes)

    @property
    def stages(self) -> tuple[Architecture | TorchvisionFcn, ...]:
        """The networks that are trained one after the other, each from the one before."""
        if not self.schedule.staged or isinstance(self.architecture, TorchvisionFcn):
            return (self.architecture,)
        strides = [s for s in (32, 16, 8) if s >= self.architecture.stride]
        return tuple(self.architecture.model_copy(update={"stride": s}) for s in strides)

    @property
    def sha256(self) -> str:
        """Tells recipes apart."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()


def legend_of(classes: tuple[LearntClass, ...]) -> Legend:
    """The classes of the map; ValidationError when two have one id or name."""
    return Legend(classes=tuple(ClassInfo(id=c.id, name=c.name, colour=c.colour) for c in classes))


def read_recipe(path: Path) -> Recipe:
    """Return the recipe at `path`; TrainingError names every problem at once."""
    try:
        return Recipe.model_validate(parsed_toml(read_bounded(path, MAX_TEXT)))
    except OSError as error:
        raise TrainingError(
            "recipe-unreadable",
            "{path}: cannot read the recipe: {reason}; give the TOML file that says what to train",
            path=path,
            reason=error.strerror,
        ) from error
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(str(part) for part in e['loc'])}: {e['msg']}" for e in error.errors())
        raise TrainingError("recipe-invalid", "{path}: {problems}", path=path, problems=problems) from error
    except (ValueError, RecursionError) as error:
        raise TrainingError(
            "recipe-unreadable",
            "{path}: not a TOML file, or one that is nested too deeply: {error}",
            path=path,
            error=error,
        ) from error
