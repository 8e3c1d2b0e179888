"""Which parts of a data set are for training, for validation and for the test, so that no pixel has two uses.

Four ways: by files, by strips of columns, by blocks, by polygons. Each has `regions`, the windows of one file for each
use; those of polygons need a vector library and are found where labels are opened (workflows/learning/labelled.py).
"""

import fnmatch
import hashlib
import json
from collections.abc import Mapping
from functools import lru_cache
from itertools import combinations
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from fcn_batch.pipeline.core.errors import TrainingError
from fcn_batch.pipeline.core.frozen import Frozen
from fcn_batch.pipeline.core.geometry import Size, Window
from fcn_batch.pipeline.core.location import resolve

Use = Literal["train", "val", "test"]
USES: tuple[Use, ...] = ("train", "val", "test")
Regions = Mapping[Use, list[Window]]
"""Disjoint windows of one file, by their use; windows of different uses share no pixel."""


class FileSplit(Frozen):
    """Whole files: named in a list, or by patterns that their names match.

    A pattern with a slash is compared with the whole name ("tile3/*"), one without also with its last part.
    What no pattern matches is trained on.
    """

    by: Literal["files"] = "files"
    list: str | None = None
    """JSON file of records {"name": …, "split": "train" | "val" | "test"}; further keys are left alone. A file that
    is not listed is not used."""
    val: tuple[str, ...] = ()
    test: tuple[str, ...] = ()
    never: tuple[str, ...] = ()
    """Patterns of files that are not used at all."""

    @model_validator(mode="after")
    def _one_way(self) -> "FileSplit":
        patterns = bool(self.val or self.test or self.never)
        if (self.list is not None) == patterns or (self.list is None and not (self.val and self.test)):
            raise ValueError("a split by files needs either `list`, or patterns for `val` and `test`")
        return self

    def use_of(self, name: str) -> Use | None:
        """The use of a file by the patterns, None for never; TrainingError when two uses claim it."""
        claims = {"val": self.val, "test": self.test, "never": self.never}
        found = [use for use, patterns in claims.items() if any(_matches(name, pattern) for pattern in patterns)]
        if len(found) > 1:
            raise TrainingError(
                "split-conflict",
                "split: {name} matches patterns of both {one} and {other}; narrow one of them",
                name=name,
                one=found[0],
                other=found[1],
            )
        return next((use for use in USES if found == [use]), None if found else "train")

    def regions(self, name: str, size: Size, folder: Path) -> Regions:
        """Return the whole file under its use; a list may call it by its name, its last part, or that without ending.

        The list's path is relative to `folder`.
        """
        if self.list is None:
            use = self.use_of(name)
        else:
            path, last = resolve(self.list, folder), PurePosixPath(name)
            uses = _listed(path, path.stat().st_mtime_ns)
            use = next((uses[n] for n in (name, last.name, last.stem) if n in uses), None)
        return {one: [Window(0, 0, size.height, size.width)] if one == use else [] for one in USES}


class StripSplit(Frozen):
    """Which columns are for what: strips of equal width, so that no test pixel is near a training window.

    Strip s holds columns s * width to (s + 1) * width - 1. Training uses what no other list names.
    """

    by: Literal["strips"] = "strips"
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

    def regions(self, _name: str, size: Size, _folder: Path) -> Regions:
        """Return the strips for each use, neighbouring strips joined, in order of columns.

        >>> split = StripSplit(width=10, val=(1,), test=(3,))
        >>> [(w.col, w.width) for w in split.regions("a", Size(5, 60), Path())["train"]]
        [(0, 10), (20, 10), (40, 20)]
        """
        found: dict[Use, list[Window]] = {use: [] for use in USES}
        for strip in range(-(-size.width // self.width)):
            use: Use = "val" if strip in self.val else "test" if strip in self.test else "train"
            start, stop = (0, size.height) if use == "train" or not self.score_rows else self.score_rows
            if strip in self.never or start >= size.height:
                continue
            window = Window(start, strip * self.width, stop - start, self.width).clipped(size)
            if found[use] and found[use][-1].stop_col == window.col:
                last = found[use].pop()
                window = Window(last.row, last.col, last.height, last.width + window.width)
            found[use].append(window)
        return found


class BlockSplit(Frozen):
    """Square blocks of each file, drawn by a hash of the file's name, the block's place and the seed.

    A block's use does not depend on which other files there are. Neighbouring blocks look alike, so scores are
    kinder than with strips, regions or whole files.
    """

    by: Literal["blocks"] = "blocks"
    size: int = Field(ge=1)
    """Side of a block, in pixels; training windows are no larger than what blocks leave together."""
    val: float = Field(gt=0, lt=1)
    """Share of the blocks."""
    test: float = Field(gt=0, lt=1)
    seed: int = 0

    @model_validator(mode="after")
    def _leave_some(self) -> "BlockSplit":
        if self.val + self.test >= 1:
            raise ValueError(f"val and test take {self.val + self.test:g} of the blocks; leave some to train on")
        return self

    def use_of(self, name: str, row: int, col: int) -> Use:
        """The use of the block in `row` and `col` of the blocks of file `name`."""
        digest = hashlib.sha256(json.dumps([self.seed, name, row, col]).encode()).digest()
        drawn = int.from_bytes(digest[:7]) / 2**56
        return "val" if drawn < self.val else "test" if drawn < self.val + self.test else "train"

    def regions(self, name: str, size: Size, _folder: Path) -> Regions:
        """Return the blocks for each use, neighbouring ones joined."""
        rows, cols = -(-size.height // self.size), -(-size.width // self.size)
        drawn = np.array([[self.use_of(name, row, col) for col in range(cols)] for row in range(rows)])
        return {use: joined(drawn == use, self.size, size) for use in USES}


class RegionSplit(Frozen):
    """Polygons drawn for validation and for the test; cells of the raster go where their centres lie.

    A cell that shares ground with such a polygon and is not its own belongs to nobody; so does one whose centre is
    in polygons of both.
    """

    by: Literal["regions"] = "regions"
    val: str
    """File of polygons."""
    test: str
    """File of polygons."""
    cell: int = Field(default=64, ge=1)
    """Side of a cell, in pixels."""


Split = Annotated[FileSplit | StripSplit | BlockSplit | RegionSplit, Field(discriminator="by")]


def joined(wanted: NDArray[np.bool_], cell: int, size: Size) -> list[Window]:
    """Disjoint windows that cover exactly the wanted cells, (rows, cols) of `cell` pixels, cut at the raster's edge.

    Cells are joined to rectangles one after the other, each the one with the longest shorter side (then the
    largest) among those that begin at the first cell left, so that large training windows fit.

    >>> joined(np.array([[1, 1, 0], [1, 1, 1]], np.bool_), 10, Size(20, 25))
    [Window(row=0, col=0, height=20, width=20), Window(row=10, col=20, height=10, width=5)]
    """
    left, windows = wanted.copy(), []
    for row, col in np.argwhere(wanted):
        if not left[row, col]:
            continue
        height, width = _largest(left[row:, col:])
        left[row : row + height, col : col + width] = False
        window = Window(int(row) * cell, int(col) * cell, height * cell, width * cell)
        windows.append(window.clipped(size))
    return windows


def read_list(path: Path) -> dict[str, Use]:
    """Return name and use of each record of a JSON list; TrainingError when it is not such a list.

    A record's name stands under "name", or "id".
    """
    try:
        records = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise TrainingError(
            "split-list-unreadable",
            "{path}: the split's list is not JSON or cannot be read: {error}",
            path=path,
            error=error,
        ) from error
    uses: dict[str, Use] = {}
    for record in records if isinstance(records, list) else [records]:
        name = record.get("name", record.get("id")) if isinstance(record, dict) else None
        use = record.get("split") if isinstance(record, dict) else None
        if not isinstance(name, str) or use not in USES:
            raise TrainingError(
                "split-list-invalid",
                '{path}: a record is not {{"name": …, "split": "train|val|test"}}: {record}',
                path=path,
                record=json.dumps(record)[:100],
            )
        if uses.setdefault(name, use) != use:
            raise TrainingError(
                "split-conflict",
                "{path}: {name} is listed for both {one} and {other}; keep one of the two",
                path=path,
                name=name,
                one=uses[name],
                other=use,
            )
    return uses


@lru_cache(maxsize=4)
def _listed(path: Path, changed: int) -> dict[str, Use]:  # noqa: ARG001 (a list that has changed is read again)
    return read_list(path)


def _largest(left: NDArray[np.bool_]) -> tuple[int, int]:
    """Height and width of the rectangle of wanted cells at the first row and column."""
    best, width = (0, 0), left.shape[1]
    for row in range(left.shape[0]):
        gaps = np.flatnonzero(~left[row, :width])
        width = int(gaps[0]) if gaps.size else width
        if not width:
            break
        best = max(best, (row + 1, width), key=lambda side: (min(side), side[0] * side[1]))
    return best


def _matches(name: str, pattern: str) -> bool:
    """True when the whole name matches or, for a pattern without a slash, its last part with or without ending."""
    last = PurePosixPath(name)
    names = [name] if "/" in pattern else [name, last.name, last.stem]
    return any(fnmatch.fnmatchcase(n, pattern) for n in names)
