"""Many inputs in one command: which they are, and how each of them ended."""

import glob
import json
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Literal

from fcn_batch.pipeline.core.conventions import holds_zarr
from fcn_batch.pipeline.core.durable import write_whole
from fcn_batch.pipeline.core.errors import FcnBatchError, InputError, OptionError, OutputError
from fcn_batch.pipeline.core.limits import MAX_TEXT, read_bounded
from fcn_batch.pipeline.core.location import Input, Url, input_of, is_remote
from fcn_batch.pipeline.raster import slides
from fcn_batch.workflows.inputs.items import holds_items, in_items

Status = Literal["done", "part", "holes", "failed"]
_SAID: dict[Status, str] = {"done": "done", "part": "part done", "holes": "has holes", "failed": "failed"}
_WIDEST_NAME = 40
RASTER_SUFFIXES = (".tif", ".tiff", ".jp2", ".jpg", ".jpeg", ".png", ".img", ".vrt", *slides.SUFFIXES)
"""Of the files in a folder that are taken for rasters."""
_OUTPUTS = (
    ".classes.tif",
    ".classes.cog.tif",
    ".classes.png",
    ".classes.zarr",
    ".classes.ome.zarr",
    ".confidence.zarr",
    ".pyramid.zarr",
)
"""What `segment` and `export` leave beside their inputs."""


def inputs_of(given: Sequence[str | Path], listed: Path | None, asset: str | None = None) -> tuple[Path | Url, ...]:
    """The inputs that a command line names, each once; the errors of `dated_inputs`."""
    return tuple(dated_inputs(given, listed, asset))


def dated_inputs(
    given: Sequence[str | Path], listed: Path | None, asset: str | None = None
) -> dict[Path | Url, datetime | None]:
    """The inputs that a command line names: files, zarr stores, folders of rasters, patterns for no shell, STAC items.

    Of items it is their `asset`, and its time, which others do not have. A file that really has the name of a pattern
    is meant itself. Maps that earlier commands left beside their inputs are not taken unless they are named. InputError
    when a folder or a pattern holds nothing, OptionError when the list cannot be read or there is no input at all.
    """
    found: dict[Path | Url, datetime | None] = {}
    for path in [*map(_named, given), *(_listed(listed) if listed else ())]:
        if isinstance(path, Url):
            found[path] = None
        elif holds_items(path):
            found |= {one.place: one.taken for one in in_items(path, asset)}
        elif path.is_dir() and not holds_zarr(path):
            found |= dict.fromkeys(_in_folder(path))
        elif path.exists() or not glob.has_magic(str(path)):
            found[path] = None
        else:
            found |= dict.fromkeys(_fitting(str(path)))
    if not found:
        raise OptionError("no input; give files, folders, patterns like 'in/*.tif', or --list FILE")
    return found


def refuse_remote(inputs: Iterable[Path | Url], *, local_only: bool) -> None:
    """OptionError for an input on another machine where `local_only` forbids them."""
    for one in inputs if local_only else ():
        if is_remote(one):
            raise OptionError(f"{one}: not on this machine, and --local-only forbids that; copy it to a file")


def _named(given: str | Path) -> Path | Url:
    return input_of(given) if isinstance(given, str) else given


def looks_like_raster(path: Path) -> bool:
    """By its name alone: what a folder that holds other files too is searched for."""
    hidden = path.name.startswith(".")
    return not hidden and path.suffix.lower() in RASTER_SUFFIXES and not path.name.endswith(_OUTPUTS)


def _in_folder(folder: Path) -> list[Path]:
    try:
        rasters = sorted(path for path in folder.iterdir() if looks_like_raster(path) and path.is_file())
    except OSError as error:
        raise InputError(f"{folder}: cannot be read ({error.strerror}); give a folder that can") from error
    if not rasters:
        raise InputError(f"{folder}: a folder with no raster in it ({', '.join(RASTER_SUFFIXES)}); give another one")
    return rasters


def _fitting(pattern: str) -> list[Path]:
    names = glob.glob(pattern, recursive=True)  # noqa: PTH207 - as shells do it: without hidden files
    fitting = sorted(path for name in names if _is_input(path := Path(name)) and not name.endswith(_OUTPUTS))
    if not fitting:
        raise InputError(f"{pattern}: no such file, and as a pattern it fits none; mend the name or the pattern")
    return fitting


def _is_input(path: Path) -> bool:
    return path.is_file() or holds_zarr(path)


def _listed(path: Path) -> list[Path | Url]:
    """The lines of a list, relative to its folder, or to the working folder if it comes from standard input (-)."""
    try:
        text = sys.stdin.read(MAX_TEXT) if str(path) == "-" else read_bounded(path, MAX_TEXT).decode("utf-8-sig")
    except (OSError, ValueError) as error:
        raise OptionError(f"--list {path}: cannot be read ({error}); give a text file, a path on each line") from error
    lines = [line.strip() for line in text.splitlines()]
    places = [input_of(line) for line in lines if line and not line.startswith("#")]
    return [place if isinstance(place, Url) else path.parent / place for place in places]


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one input ended."""

    path: str
    status: Status
    code: int
    """The exit code that it would have had alone."""
    seconds: float
    pixels: int | None = None
    """Of the input; None when it could not be looked at."""
    message: str = ""

    def line(self) -> str:
        """A row of the table for people."""
        name = self.path if len(self.path) <= _WIDEST_NAME else f"…{self.path[1 - _WIDEST_NAME :]}"
        size = "" if self.pixels is None else f"{self.pixels / 1e6:.1f}"
        row = f"  {name:<{_WIDEST_NAME}} {_SAID[self.status]:<10} {size:>10} MPx {self.seconds:8.1f} s  {self.message}"
        return row.rstrip()


@dataclass(slots=True)
class Tally:
    """How the inputs of a command ended, as they end."""

    expected: int | None
    """How many there are; None: more may come at any time."""
    file: Path | None = None
    """Where all of it is written as JSON, again after every input; None: nowhere."""
    outcomes: dict[Input, Outcome] = field(default_factory=dict)
    """The last of each."""
    _errors: dict[Input, FcnBatchError] = field(default_factory=dict)
    _started: float = field(default_factory=time.perf_counter)

    @property
    def several(self) -> bool:
        """False: what is wrong with the only input is what is wrong."""
        return self.expected != 1

    @property
    def _inputs(self) -> int:
        return len(self.outcomes) if self.expected is None else self.expected

    def begin(self) -> None:
        """Time counts for the next input from here on."""
        self._started = time.perf_counter()

    def add(self, path: Input, status: Status, pixels: int | None, error: FcnBatchError | None = None) -> None:
        """One more; OutputError when the file cannot be written."""
        self._errors.pop(path, None)
        if error is not None:
            self._errors[path] = error
        seconds, code = time.perf_counter() - self._started, error.exit_code if error else 0
        self.outcomes[path] = Outcome(str(path), status, code, round(seconds, 3), pixels, str(error or ""))
        self.write()

    def write(self) -> None:
        """Write the file, whole; those that are not done yet are counted."""
        if self.file is None:
            return
        all_of_them = self.outcomes.values()
        told: dict[str, object] = {"inputs": self._inputs, "waiting": self._inputs - len(self.outcomes)}
        told |= {name: sum(one.status == name for one in all_of_them) for name in _SAID}
        text = json.dumps({**told, "outcomes": [asdict(one) for one in all_of_them]}, indent=2)
        try:
            write_whole(self.file, text + "\n")
        except OSError as error:
            raise OutputError(f"{self.file}: cannot be written ({error.strerror}); choose another --summary") from error

    def lines(self) -> list[str]:
        """The table for people: what failed stands last."""
        rows = sorted(self.outcomes.values(), key=lambda one: one.status == "failed")
        waiting = self._inputs - len(self.outcomes)
        return [*(one.line() for one in rows), *([f"  {waiting} more not begun or not finished"] if waiting else [])]

    def error(self) -> FcnBatchError | None:
        """What the command ends with: the first error; None when there was none."""
        first = next(iter(self._errors.values()), None)
        if first is None or not self.several:
            return first
        count = len(self._errors)
        return type(first)(f"{count} of {self._inputs} inputs {'has' if count == 1 else 'have'} a problem: {first}")


def ends_all(error: FcnBatchError, tally: Tally) -> bool:
    """Whether it is of no use to try the next input.

    What is wrong with the options or the model shows with the first input, before anything was made.
    """
    return not tally.several or not (isinstance(error, InputError | OutputError) or tally.outcomes)
