"""Several inputs that become one map: which of them lies on top."""

from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Literal

from fcn_batch.pipeline.core.errors import InputError, OptionError
from fcn_batch.pipeline.core.location import Input, Mosaic, Url
from fcn_batch.pipeline.raster.picture import taken_at

Priority = Literal["order", "date"]


def inputs_or_mosaic(
    name: str | None, priority: Priority, inputs: Mapping[Path | Url, datetime | None]
) -> tuple[Input, ...]:
    """The inputs, each for itself, or one that is all of them if it has a name; the errors of `mosaic_of`.

    OptionError for a priority without a mosaic.
    """
    if name is not None:
        return (mosaic_of(name, priority, inputs),)
    if priority != "order":
        raise OptionError(f"--priority {priority}: it is for --mosaic NAME; give that too, or leave it out")
    return tuple(inputs)


def mosaic_of(name: str, priority: Priority, inputs: Mapping[Path | Url, datetime | None]) -> Mosaic:
    """One input of all, the first on top, or the one that was taken last: `inputs` may already say when.

    OptionError for a name that is none, InputError when an input does not say when it was taken, but that decides.
    """
    if not name or "/" in name or name.startswith("."):
        raise OptionError(f"--mosaic {name}: give a name for its outputs, not a path; -o says where they go")
    if priority == "order":
        return Mosaic(name, tuple(inputs))
    taken = {one: _taken(one, known) for one, known in inputs.items()}
    return Mosaic(name, tuple(sorted(inputs, key=lambda one: taken[one], reverse=True)))


def _taken(one: Path | Url, known: datetime | None) -> datetime:
    taken = known or taken_at(one)
    if taken is None:
        raise InputError(f"{one}: does not say when it was taken; leave out --priority date, and name them in order")
    return taken
