"""The inputs of one command: which they are, and how each of them ended.

They are named as files, zarr stores, folders, patterns, lists, or by STAC items, of each of which one asset is taken.
Several may become one map: a mosaic.
"""

import glob
import json
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal
from urllib.parse import unquote, urlsplit

from fcn_batch.pipeline.core.conventions import holds_zarr
from fcn_batch.pipeline.core.durable import write_whole
from fcn_batch.pipeline.core.errors import FcnBatchError, InputError, OptionError, OutputError
from fcn_batch.pipeline.core.limits import MAX_TEXT, read_bounded
from fcn_batch.pipeline.core.location import Input, Mosaic, Url, input_of, is_remote
from fcn_batch.pipeline.raster import slides
from fcn_batch.pipeline.raster.picture import taken_at

Status = Literal["done", "part", "holes", "failed"]
Priority = Literal["order", "date"]
_SAID: dict[Status, str] = {"done": "done", "part": "part done", "holes": "has holes", "failed": "failed"}
_WIDEST_NAME = 40
RASTER_SUFFIXES = (".tif", ".tiff", ".jp2", ".jpg", ".jpeg", ".png", ".img", ".vrt", *slides.SUFFIXES)
"""Of the files in a folder that are taken for rasters."""
_TYPES = ("image/tiff", "image/jp2", "image/jpeg", "image/png", "image/vnd.stac.geotiff", "application/vnd+zarr")
"""Media types of assets that may be inputs."""
_NOT_IMAGES = {"thumbnail", "overview", "metadata"}
"""Roles of assets that are not the image itself."""
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
    for path in [
        *(input_of(one) if isinstance(one, str) else one for one in given),
        *(_listed(listed) if listed else ()),
    ]:
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
        raise OptionError("no-input", "no input; give files, folders, patterns like 'in/*.tif', or --list FILE")
    return found


def refuse_remote(inputs: Iterable[Path | Url], *, local_only: bool) -> None:
    """OptionError for an input on another machine where `local_only` forbids them."""
    for one in inputs if local_only else ():
        if is_remote(one):
            raise OptionError(
                "input-remote",
                "{path}: not on this machine, and --local-only forbids that; copy it to a file",
                path=one,
            )


def looks_like_raster(path: Path) -> bool:
    """By its name alone: what a folder that holds other files too is searched for."""
    hidden = path.name.startswith(".")
    return not hidden and path.suffix.lower() in RASTER_SUFFIXES and not path.name.endswith(_OUTPUTS)


def _in_folder(folder: Path) -> list[Path]:
    try:
        rasters = sorted(path for path in folder.iterdir() if looks_like_raster(path) and path.is_file())
    except OSError as error:
        raise InputError(
            "input-unreadable",
            "{path}: cannot be read ({reason}); give a folder that can",
            path=folder,
            reason=error.strerror,
        ) from error
    if not rasters:
        raise InputError(
            "nothing-found",
            "{path}: a folder with no raster in it ({endings}); give another one",
            path=folder,
            endings=", ".join(RASTER_SUFFIXES),
        )
    return rasters


def _fitting(pattern: str) -> list[Path]:
    names = glob.glob(pattern, recursive=True)  # noqa: PTH207 - as shells do it: without hidden files
    paths = (Path(name) for name in names if not name.endswith(_OUTPUTS))
    fitting = sorted(path for path in paths if path.is_file() or holds_zarr(path))
    if not fitting:
        raise InputError(
            "nothing-found", "{path}: no such file, and as a pattern it fits none; correct it", path=pattern
        )
    return fitting


def _listed(path: Path) -> list[Path | Url]:
    """The lines of a list, relative to its folder, or to the working folder if it comes from standard input (-)."""
    try:
        text = sys.stdin.read(MAX_TEXT) if str(path) == "-" else read_bounded(path, MAX_TEXT).decode("utf-8-sig")
    except (OSError, ValueError) as error:
        raise OptionError(
            "list-unreadable",
            "--list {path}: cannot be read ({reason}); give a text file, a path on each line",
            path=path,
            reason=error,
        ) from error
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
            raise OutputError(
                "summary-unwritable",
                "{path}: cannot be written ({reason}); choose another --summary",
                path=self.file,
                reason=error.strerror,
            ) from error

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
        have, fields = "has" if count == 1 else "have", {**first.fields, "first": first}
        return type(first)(
            first.code,
            "{count} of {inputs} inputs {have} a problem: {first}",
            **{**fields, "count": count, "inputs": self._inputs, "have": have},
        )


def ends_all(error: FcnBatchError, tally: Tally) -> bool:
    """Whether it is of no use to try the next input.

    What is wrong with the options or the model shows with the first input, before anything was made.
    """
    return not tally.several or not (isinstance(error, InputError | OutputError) or tally.outcomes)


@dataclass(frozen=True, slots=True)
class Found:
    """An input, and when it was taken."""

    place: Path | Url
    taken: datetime | None


def holds_items(path: Path) -> bool:
    """True for a file named as JSON that holds STAC items."""
    if path.suffix.lower() not in {".json", ".geojson"} or not path.is_file():
        return False
    return any(True for _ in _items(path))


def in_items(path: Path, asset: str | None) -> list[Found]:
    """The asset of each item of a file; by default the only one that is an image.

    Links are relative to the file. InputError when an item has no such asset, OptionError when it has several.
    """
    return [_found(path, item, asset) for item in _items(path)]


def _items(path: Path) -> Iterator[dict[str, Any]]:
    """Features that are STAC items; none of a file that is something else."""
    try:
        held = json.loads(read_bounded(path, MAX_TEXT))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(
            "json-invalid",
            "{path}: no JSON that can be read ({reason}); give a raster, or STAC items",
            path=path,
            reason=error,
        ) from error
    features = held.get("features", [held]) if isinstance(held, dict) else []
    for one in features if isinstance(features, list) else []:
        if isinstance(one, dict) and one.get("type") == "Feature" and isinstance(one.get("assets"), dict):
            yield one


def _found(path: Path, item: dict[str, Any], asset: str | None) -> Found:
    assets = {key: one for key, one in item["assets"].items() if isinstance(one, dict) and _is_link(one.get("href"))}
    name = str(item.get("id"))[:80]
    if asset is None:
        keys = [key for key, one in assets.items() if _is_image(one)]
        if len(keys) > 1:
            raise OptionError(
                "asset-ambiguous",
                "{path}: item {item!r} has several images; choose one with --asset {assets}",
                path=path,
                item=name,
                assets="|".join(map(str, keys))[:200],
            )
        asset = keys[0] if keys else None
    if asset not in assets:
        raise InputError(
            "asset-missing",
            "{path}: item {item!r} has no {asset}; give --asset one of: {assets}",
            path=path,
            item=name,
            asset="asset that is an image" if asset is None else f"asset {asset!r}",
            assets=", ".join(map(str, assets))[:200] or "none at all",
        )
    properties = item.get("properties")
    times = properties if isinstance(properties, dict) else {}
    taken = _moment(times.get("datetime") or times.get("start_datetime"))
    return Found(_place(assets[asset]["href"], path.absolute().parent), taken)


def _is_link(href: object) -> bool:
    """True for a text that can be a path or URL."""
    if not isinstance(href, str) or not href or "\0" in unquote(href):
        return False
    try:
        return bool(urlsplit(href))
    except ValueError:  # brackets that hold no address
        return False


def _is_image(asset: dict[str, Any]) -> bool:
    roles = asset.get("roles")
    return str(asset.get("type", "")).startswith(_TYPES) and _NOT_IMAGES.isdisjoint(
        map(str, roles if isinstance(roles, list) else ())
    )


def _place(href: str, folder: Path) -> Path | Url:
    """What a link of a file in `folder` leads to.

    >>> str(_place("../a%20b.tif", Path("/data/items"))), str(_place("s3://bucket/a.tif", Path("/data")))
    ('/data/items/../a b.tif', 's3://bucket/a.tif')
    """
    if urlsplit(href).scheme not in ("", "file"):
        return input_of(href)
    return folder / unquote(urlsplit(href).path)


def _moment(text: object) -> datetime | None:
    try:
        found = datetime.fromisoformat(str(text))
    except ValueError:
        return None
    return found.replace(tzinfo=UTC) if found.tzinfo is None else found


def inputs_or_mosaic(
    name: str | None, priority: Priority, inputs: Mapping[Path | Url, datetime | None]
) -> tuple[Input, ...]:
    """The inputs, each for itself, or one that is all of them if it has a name; the errors of `mosaic_of`.

    OptionError for a priority without a mosaic.
    """
    if name is not None:
        return (mosaic_of(name, priority, inputs),)
    if priority != "order":
        raise OptionError(
            "option-needs",
            "--priority {value}: it is for --mosaic NAME; give that too, or leave it out",
            value=priority,
        )
    return tuple(inputs)


def mosaic_of(name: str, priority: Priority, inputs: Mapping[Path | Url, datetime | None]) -> Mosaic:
    """One input of all, the first on top, or the one that was taken last: `inputs` may already say when.

    OptionError for a name that is none, InputError when an input does not say when it was taken, but that decides.
    """
    if not name or "/" in name or name.startswith("."):
        raise OptionError(
            "option-value",
            "--mosaic {value}: give a name for its outputs, not a path; -o says where they go",
            value=name,
        )
    if priority == "order":
        return Mosaic(name, tuple(inputs))
    taken = {one: _taken(one, known) for one, known in inputs.items()}
    return Mosaic(name, tuple(sorted(inputs, key=lambda one: taken[one], reverse=True)))


def _taken(one: Path | Url, known: datetime | None) -> datetime:
    taken = known or taken_at(one)
    if taken is None:
        raise InputError(
            "date-unknown",
            "{path}: does not say when it was taken; leave out --priority date, and name them in order",
            path=one,
        )
    return taken
