"""The command line for Python: what `fcn_batch.segment` and the other names of the package do.

Each function does what the command of its name does, with the same words: `--on-error retry:5` is
`on_error="retry:5"`, a folder is a path, bands are a list. Errors are those of `fcn_batch.pipeline.core.errors`.
"""

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter, ValidationError

from fcn_batch.pipeline.core.errors import InputError, OptionError
from fcn_batch.workflows.console.progress import progress_for

if TYPE_CHECKING:
    import xarray as xr

    from fcn_batch.pipeline.core.model_card import ModelCard
    from fcn_batch.pipeline.core.plan import Plan
    from fcn_batch.workflows.finished.validate import Validation
    from fcn_batch.workflows.finished.verify import Verification
    from fcn_batch.workflows.learning.evaluate import Evaluation
    from fcn_batch.workflows.plan import Options
    from fcn_batch.workflows.segment import Request
    from fcn_batch.workflows.status import Status

PathLike = str | os.PathLike[str]
_REPORT = ".run.json"
_STORE = ".classes.zarr"
_OF_A_REQUEST = ("overwrite", "restart", "pyramid", "on_error", "allow_mixed", "part")
_AUTO = ("tile", "overlap", "precision")
"""Options of which the word auto stands for what is done when they are not given."""
_OF_LABELS: dict[str, Any] = {
    **dict.fromkeys(("boundary", "output", "field", "burn", "background", "layer")),
    "ignore": (),
    "map": {},
    "value": {},
    "overwrite": False,
}
"""Options of `evaluate`, and what they are when not given."""


@dataclass(frozen=True, slots=True)
class Maps:
    """What one input became; as a path it is that of the report."""

    paths: tuple[str, ...]
    """All that was made and is meant for reading, as `fcn-batch segment` prints it; the report is the last."""

    @property
    def report(self) -> str:
        """Path, or URL, of NAME.run.json."""
        return self.paths[-1]

    @property
    def store(self) -> str:
        """Path, or URL, of NAME.classes.zarr."""
        return next(path for path in self.paths if path.endswith(_STORE))

    @property
    def cog(self) -> str:
        """Path, or URL, of NAME.classes.tif."""
        return next(path for path in self.paths if path.endswith(".tif"))

    def __fspath__(self) -> str:
        return self.report


def segment(
    inputs: PathLike | Sequence[PathLike],
    output: PathLike | None = None,
    *,
    workers: int | str = 0,
    quiet: bool = True,
    **options: Any,
) -> list[Maps]:
    """Make the class map of each input, as `fcn-batch segment` does; one `Maps` for each of them.

    `inputs`: files, URLs, folders or patterns. `output`: a folder; None: beside each input. `options`: those of `plan`,
    and overwrite, restart, pyramid, on_error, allow_mixed, part. What is complete already is not made again, what was
    interrupted is gone on with. `quiet=False` tells progress on standard error. Call it where `if __name__ ==
    "__main__"` guards a script that has `workers`.

    OptionError, InputError, OutputError and the others of the exit codes; UnreadableError when a map has holes.
    """
    from fcn_batch.workflows.segment import segment as run

    request = _request(inputs, output, workers, options)
    made: list[Maps] = []
    paths: list[str] = []
    for path in run(request, progress_for(quiet=quiet)):
        paths.append(str(path))
        if paths[-1].endswith(_REPORT):
            made.append(Maps(tuple(paths)))
            paths.clear()
    return made


def plan(given: PathLike, **options: Any) -> "Plan":
    """Everything `segment` would do to one input, decided but not done.

    `options`: the fields of `fcn_batch.workflows.plan.Options`, which are those of the command line: model, bands,
    stretch, aoi, bbox, mpp, level, resample, tissue, tile, overlap, blend, device, threads, precision, memory, …
    """
    from fcn_batch.pipeline.core.location import input_of
    from fcn_batch.workflows.plan import prepare

    return prepare(input_of(os.fspath(given)), _options(options)).plan


def open_classes(source: PathLike, **chosen: Any) -> "xr.DataArray":
    """The class ids of a map as an xarray DataArray (rows, cols) with coordinates, read as they are needed.

    `source`: one of what `segment` gave, or the path of NAME.run.json, NAME.classes.zarr or a folder with one run. The
    attribute `legend` names the class of each id, `nodata` is the id of pixels without a class. `chosen` goes to
    `xarray.open_zarr`, such as `chunks=None` to do without Dask. Needs `pip install 'fcn-batch[xarray]'`. InputError
    when there is no such map.
    """
    try:
        import xarray as xr
    except ImportError as error:
        raise OptionError("extra-missing", "open_classes needs xarray: pip install 'fcn-batch[xarray]'") from error

    from fcn_batch.workflows.finished.maps import run_in

    path = _place(source)
    if "://" not in path:
        path = str(run_in(Path(path)))
    if path.endswith(_REPORT):
        path = path.removesuffix(_REPORT) + _STORE
    if not path.endswith(_STORE) or ("://" not in path and not Path(path).is_dir()):
        raise InputError(
            "map-missing", "{path}: no class map; give NAME.run.json or NAME.classes.zarr of a complete run", path=path
        )
    classes: xr.DataArray = xr.open_zarr(path, **{"mask_and_scale": False, **chosen})["classes"]
    names = zip(classes.attrs["flag_values"], classes.attrs["class_names"], strict=True)
    classes.attrs["legend"] = {int(value): str(name) for value, name in names}
    return classes


def report(source: PathLike) -> dict[str, Any]:
    """What a run says of itself: plan, classes with pixels and areas, speed; `source` as for `open_classes`."""
    from fcn_batch.workflows.finished.maps import run_in

    path = run_in(Path(_place(source)))
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise InputError(
            "report-invalid", "{path}: no report of a run ({reason}); give NAME.run.json", path=path, reason=error
        ) from error


def validate(output: PathLike) -> "Validation":
    """Read the outputs of a run again and compare them with its report; `ok` tells whether all is as it was made."""
    from fcn_batch.workflows.finished.validate import validate as run

    return run(Path(_place(output)), progress_for(quiet=True))


def verify(output: PathLike, samples: int = 10, seed: int = 0) -> "Verification":
    """Compute windows of a map again, from its input; `ok` tells whether the classes are the same."""
    from fcn_batch.workflows.finished.verify import verify as run

    return run(Path(_place(output)), samples, seed, progress_for(quiet=True))


def export(source: PathLike, to: str, output: PathLike | None = None, **options: Any) -> Path:
    """Write a map in another form and give its path: cog, png, html, ome-zarr, gpkg, geojson, …, csv.

    `options`: majority, clip, min_area, simplify, zones, field, layer, grid, overwrite, as on the command line.
    """
    from fcn_batch.workflows.finished.export import Order
    from fcn_batch.workflows.finished.export import export as run

    _check_names(options, [one.name for one in fields(Order) if one.name not in ("source", "target", "output")])
    paths = {name: Path(options[name]) for name in ("clip", "zones") if options.get(name) is not None}
    target = None if output is None else Path(output)
    return run(Order(Path(_place(source)), to, target, **{**options, **paths}), progress_for(quiet=True))


def evaluate(prediction: PathLike, labels: PathLike, **options: Any) -> "Evaluation":
    """Compare a map with labels: accuracy, IU and the rest, of all and of each class.

    `options`: those of `fcn-batch evaluate`: ignore (ids), map ({label: class}), boundary, output, overwrite; of
    polygons field, value ({"forest": 1}), burn, background, layer.
    """
    from fcn_batch.workflows.learning.evaluate import evaluate as run
    from fcn_batch.workflows.learning.evaluate import request_for

    _check_names(options, list(_OF_LABELS))
    chosen = {**_OF_LABELS, **options}
    output = chosen.pop("output")
    request = request_for(
        Path(_place(prediction)),
        Path(labels),
        ignore=tuple(chosen.pop("ignore")),
        renamed=tuple(dict(chosen.pop("map")).items()),
        values=tuple(dict(chosen.pop("value")).items()),
        folder=None if output is None else Path(output),
        **chosen,
    )
    return run(request, progress_for(quiet=True))


def status(folder: PathLike) -> "list[Status]":
    """How far the runs in a folder are, told from their files alone, also while they go on."""
    from fcn_batch.workflows.status import status as look

    return look(Path(_place(folder)))


def models() -> "list[ModelCard]":
    """The cards of the models that come with the package: name, classes, bands, resolution, scores."""
    from fcn_batch.workflows.learning.models import embedded

    return [file.card for file in embedded()]


def _place(source: PathLike) -> str:
    """The path of what is meant; InputError for a list of maps."""
    if isinstance(source, list | tuple):
        raise InputError(
            "several-maps",
            "{count} maps in a list; give one, as of `(maps,) = fcn_batch.segment(…)`",
            count=len(source),
        )
    return os.fspath(source)


def _request(
    inputs: PathLike | Sequence[PathLike], output: PathLike | None, workers: int | str, options: Any
) -> "Request":
    from fcn_batch.pipeline.core.tolerance import OnError
    from fcn_batch.workflows.blocks.part import Part
    from fcn_batch.workflows.inputs.many import inputs_of
    from fcn_batch.workflows.outputs.upload import destination
    from fcn_batch.workflows.processes.topology import count_of
    from fcn_batch.workflows.processes.workers import Workers
    from fcn_batch.workflows.segment import Request

    named = [inputs] if isinstance(inputs, str | os.PathLike) else inputs
    folder, bucket = destination(None if output is None else os.fspath(output), None, local_only=False)
    chosen = {name: options[name] for name in options if name in _OF_A_REQUEST}
    if "on_error" in chosen:
        chosen["on_error"] = OnError.parse(chosen["on_error"])
    if chosen.get("part") is not None:
        chosen["part"] = Part.parse(chosen["part"])
    return Request(
        inputs_of([os.fspath(one) for one in named], None),
        _options({name: value for name, value in options.items() if name not in chosen}, _OF_A_REQUEST),
        folder,
        Workers(count_of(str(workers))),
        bucket=bucket,
        **chosen,
    )


def _options(given: dict[str, Any], others: Iterable[str] = ()) -> "Options":
    from fcn_batch.pipeline.core.model_card import first_problem
    from fcn_batch.pipeline.core.units import bytes_of
    from fcn_batch.workflows.plan import Options
    from fcn_batch.workflows.words import bands_of, box_of

    _check_names(given, [*(field.name for field in fields(Options)), *others])
    chosen = {"model": "auto", **given}
    chosen["model"] = str(chosen["model"])
    for name, parse in (("bands", bands_of), ("memory", bytes_of), ("bbox", box_of)):
        if isinstance(chosen.get(name), str):
            chosen[name] = parse(chosen[name])
    for name in _AUTO:
        if chosen.get(name) == "auto":
            del chosen[name]
    try:
        return TypeAdapter(Options).validate_python(chosen)
    except ValidationError as error:
        raise OptionError("option-type", "option {problem}", problem=first_problem(error)) from error


def _check_names(given: Iterable[str], known: Sequence[str]) -> None:
    """OptionError for a name that no option has."""
    for name in given:
        if name not in known:
            near = get_close_matches(name, known, 1)
            meant = f"{near[0]}?" if near else f"one of {', '.join(known)}"
            raise OptionError(
                "option-unknown", "there is no option {option}; do you mean {meant}", option=name, meant=meant
            )
