"""The classes of a model and of its maps: ids, names, colours, and the id that means 'no data'."""

import re
from collections import Counter
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

NODATA = 255
"""Class id of pixels without data; a map is uint8, so the classes of a map use 0 to 254."""

MOST_CLASSES = 65535
"""Of a model: a classifier may know more than a map can hold, and be trained further for fewer."""

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
