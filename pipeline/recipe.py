"""How a model is trained: the contents of a `configs/models/NAME.toml`, checked as a whole."""

import tomllib
from itertools import combinations
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from fcn_batch.pipeline.classes import ClassInfo, Legend
from fcn_batch.pipeline.errors import TrainingError
from fcn_batch.pipeline.geometry import Size, Window
from fcn_batch.pipeline.model_card import Architecture, TrainingData


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Identity(_Frozen):
    """Name and description of the model that comes out."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_.-]*$")
    version: str
    summary: str
    gsd_m: float = Field(gt=0)
    """Ground sample distance of the training image, metres per pixel."""
    baseline: str = "none given"
    """A simpler method on the same test pixels, and what it reached."""


class Pair(_Frozen):
    """An image and its labels, on the same grid; paths are relative to the data folder."""

    image: str
    labels: str
    bands: tuple[str, ...] = Field(min_length=1)
    """Names of the image's bands to train on, in the file's order from band 1."""
    full_scale: float = Field(default=255.0, gt=0)


class StripSplit(_Frozen):
    """Which columns are for what: strips of equal width, so that no test pixel is near a training window.

    Strip s holds columns s * width to (s + 1) * width - 1. Training uses what no other list names.
    """

    width: int = Field(ge=1)
    val: tuple[int, ...] = Field(min_length=1)
    test: tuple[int, ...] = Field(min_length=1)
    never: tuple[int, ...] = ()
    """Strips that are neither trained on nor scored here."""
    score_rows: tuple[int, int] | None = None
    """First row and row after the last one that are scored; default: all."""

    @model_validator(mode="after")
    def _apart(self) -> "StripSplit":
        uses = {"val": self.val, "test": self.test, "never": self.never}
        for (one, strips), (other, others) in combinations(uses.items(), 2):
            if shared := sorted({*strips} & {*others}):
                raise ValueError(f"strip {shared[0]} is in both {one} and {other}")
        if self.score_rows and not 0 <= self.score_rows[0] < self.score_rows[1]:
            raise ValueError(f"score_rows go from a first row to a later one, got {list(self.score_rows)}")
        return self

    def regions(self, size: Size, use: Literal["train", "val", "test"]) -> list[Window]:
        """Windows of the strips for `use`, neighbouring strips joined, in order of columns.

        >>> split = StripSplit(width=10, val=(1,), test=(3,))
        >>> [(w.col, w.width) for w in split.regions(Size(5, 60), "train")]
        [(0, 10), (20, 10), (40, 20)]
        """
        strips = range(-(-size.width // self.width))
        named = {"val": self.val, "test": self.test}
        other = {*self.val, *self.test, *self.never}
        chosen = [s for s in strips if (s not in other if use == "train" else s in named[use])]
        start, stop = (0, size.height) if use == "train" or not self.score_rows else self.score_rows
        if start >= size.height:
            return []
        regions: list[Window] = []
        for strip in chosen:
            window = Window(start, strip * self.width, stop - start, self.width).clipped(size)
            if regions and regions[-1].stop_col == window.col:
                last = regions.pop()
                window = Window(last.row, last.col, last.height, last.width + window.width)
            regions.append(window)
        return regions


class Schedule(_Frozen):
    """Optimiser and sampling."""

    steps: int = Field(ge=1)
    batch: int = Field(default=16, ge=1)
    crop: int = Field(default=256, ge=1)
    """Side of a training window, in raster pixels."""
    learning_rate: float = Field(default=1e-3, gt=0)
    """Peak of AdamW's rate: linear warm-up over the first 5 %, then a half cosine to zero."""
    weight_decay: float = Field(default=0.01, ge=0)
    class_balance: float = Field(default=0.0, ge=0, le=1)
    """Weight of a class in the loss: its share of pixels to the power of minus this (0: none)."""
    one_class_at_most: float = Field(default=1.0, gt=0, le=1)
    """A window where one class holds more than this share of the labels is drawn again, three times at most."""
    jitter: float = Field(default=0.0, ge=0, lt=1)
    """Largest relative change of brightness and of each band's gain."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16: activations in bfloat16 (autocast), weights in float32; for devices that have it."""
    evaluate_every: int = Field(default=1000, ge=1)
    seed: int = 0


class Recipe(_Frozen):
    """Everything that decides a trained model, beside the data's pixels."""

    model: Identity
    architecture: Architecture
    classes: tuple[ClassInfo, ...] = Field(min_length=2)
    pair: Pair
    split: StripSplit
    schedule: Schedule
    data: tuple[TrainingData, ...] = ()

    @field_validator("classes")
    @classmethod
    def _distinct(cls, classes: tuple[ClassInfo, ...]) -> tuple[ClassInfo, ...]:
        try:
            Legend(classes=classes)
        except ValidationError as error:
            raise ValueError(error.errors()[0]["ctx"]["error"]) from error
        return classes


def read_recipe(path: Path) -> Recipe:
    """The recipe at `path`; TrainingError names every problem at once."""
    try:
        return Recipe.model_validate(tomllib.loads(path.read_text("utf-8")))
    except OSError as error:
        raise TrainingError(f"{path}: cannot read the recipe: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise TrainingError(f"{path}: not a TOML file: {error}") from error
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(str(part) for part in e['loc'])}: {e['msg']}" for e in error.errors())
        raise TrainingError(f"{path}: {problems}") from error
