"""The classes of a model and of its maps: ids, names, colours, and the id that means 'no data'."""

import re
from collections import Counter
from collections.abc import Sequence
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

NODATA = 255
"""Class id of pixels without data; a map is uint8, so the classes of a map use 0 to 254."""

MOST_CLASSES = 65535
"""Of a model: a classifier may know more than a map can hold, and be trained further for fewer."""

VOC_NAMES = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "dining table", "dog", "horse", "motorbike", "person", "potted plant", "sheep", "sofa", "train", "tv monitor",
)  # fmt: skip
"""The classes of PASCAL VOC."""

Colour = Annotated[str, StringConstraints(pattern=r"^#[0-9a-f]{6}$")]


class ClassInfo(BaseModel):
    """One class: its id, its name, and its colour as ``#rrggbb``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: int = Field(ge=0, lt=MOST_CLASSES)
    name: str = Field(min_length=1, max_length=100)
    colour: Colour

    @property
    def rgb(self) -> tuple[int, int, int]:
        """Red, green and blue, 0 to 255.

        >>> ClassInfo(id=0, name="water", colour="#1f78b4").rgb
        (31, 120, 180)
        """
        return int(self.colour[1:3], 16), int(self.colour[3:5], 16), int(self.colour[5:7], 16)


class Legend(BaseModel):
    """Classes in the order of the network's score channels."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    classes: tuple[ClassInfo, ...] = Field(min_length=1, max_length=MOST_CLASSES)

    @model_validator(mode="after")
    def _distinct(self) -> "Legend":
        for what in ("id", "name"):
            (double, times), *_ = Counter(getattr(c, what) for c in self.classes).most_common(1)
            if times > 1:
                raise ValueError(f"two classes have the {what} {double!r}")
        return self

    @classmethod
    def named(cls, names: Sequence[str]) -> "Legend":
        """Return classes 0, 1, … of those names in VOC's colours; a name that comes again gets its number.

        >>> [info.name for info in Legend.named(["sea", "land", "sea"]).classes]
        ['sea', 'land', 'sea (2)']
        """
        unique = [name if name not in names[:number] else f"{name} ({number})" for number, name in enumerate(names)]
        return cls(classes=tuple(ClassInfo(id=n, name=name, colour=voc_colour(n)) for n, name in enumerate(unique)))

    def __len__(self) -> int:
        return len(self.classes)

    @property
    def ids(self) -> tuple[int, ...]:
        """Class ids, in channel order."""
        return tuple(c.id for c in self.classes)

    @property
    def fits_a_map(self) -> bool:
        """True when a map of bytes can hold every id beside `NODATA`."""
        return max(self.ids) < NODATA

    @property
    def flag_meanings(self) -> str:
        """Names as the CF conventions want them (3.5): one word each, separated by blanks.

        >>> Legend(classes=(ClassInfo(id=0, name="bare soil", colour="#aa8866"),)).flag_meanings
        'bare_soil'
        """
        return " ".join(re.sub(r"[^A-Za-z0-9_.+@-]+", "_", c.name) for c in self.classes)


def voc_colour(number: int) -> str:
    """Return the colour of class `number` in the VOC devkit's colour map (VOClabelcolormap).

    The number's bits go to red, green and blue in turn, each channel filled from its highest bit.

    >>> [voc_colour(number) for number in (0, 1, 2, 15, 20)]
    ['#000000', '#800000', '#008000', '#c08080', '#004080']
    """
    channels = [0, 0, 0]
    for bit in range(8):
        for channel in range(3):
            channels[channel] |= (number >> (3 * bit + channel) & 1) << (7 - bit)
    return "#{:02x}{:02x}{:02x}".format(*channels)


def usual_names(count: int) -> tuple[str, ...]:
    """Return VOC's names for 21 classes, else ``class 0``, ``class 1`` and so on."""
    return VOC_NAMES if count == len(VOC_NAMES) else tuple(f"class {number}" for number in range(count))
