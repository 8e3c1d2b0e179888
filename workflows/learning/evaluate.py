"""How well a class map agrees with labels: read both chunk by chunk, count, and turn the counts into numbers once."""

import csv
import io
import json
import math
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fcn_batch.pipeline.core.boundary import Boundary, BoundarySweep, default_distance
from fcn_batch.pipeline.core.burn import VECTOR_SUFFIXES, Burn
from fcn_batch.pipeline.core.classes import NODATA, ClassInfo, Legend
from fcn_batch.pipeline.core.durable import write_whole
from fcn_batch.pipeline.core.errors import InputError, OptionError, OutputError, TrainingError
from fcn_batch.pipeline.core.geometry import Size, Window
from fcn_batch.pipeline.core.metrics import Confusion
from fcn_batch.pipeline.raster.gdal import gdal_cache
from fcn_batch.pipeline.raster.labels import Grid, open_labels
from fcn_batch.pipeline.raster.mapfile import GREY
from fcn_batch.workflows.console.progress import RunProgress
from fcn_batch.workflows.finished.maps import cache_mb, chunk_windows, find_map
from fcn_batch.workflows.learning.charts import confusion_png
from fcn_batch.workflows.learning.labelids import UNKNOWN, Translation, listed

NOTHING = "no prediction"
"""Name of the last column of the confusion matrix: labelled pixels without a class in the map."""
_FILES = ("metrics.json", "confusion.csv", "confusion.png")
_COLUMNS = {"iu": "IU", "precision": "precision", "recall": "recall", "boundary_iu": "boundary"}
_LARGEST_SWEEP = 2**31
"""Bytes of rows to keep for the boundaries."""
_OPTION_FOR = {"burn.values": "--value VALUE=ID", "layer": "--layer", "georeference": "gdal_edit.py -a_srs -a_ullr"}
"""The command line's words for the keys of a recipe."""


@dataclass(frozen=True, slots=True)
class Request:
    """What to compare, and how. OptionError when options contradict each other."""

    prediction: Path
    labels: Path
    ignore: tuple[int, ...] = ()
    """Label ids to leave out, beside 255 and nodata."""
    renamed: tuple[tuple[int, int], ...] = ()
    """Pairs of a label id and the class id it stands for."""
    burn: Burn | None = None
    """How polygons become ids; None for rasters."""
    boundary: int | None = None
    """Distance of boundary IU in pixels; None: by the raster's size; 0: leave it out."""
    folder: Path | None = None
    """Where to write the result; None: nowhere."""
    overwrite: bool = False
    """Replace files there."""

    def __post_init__(self) -> None:
        sources = [source for source, _ in self.renamed]
        for source, target in self.renamed:
            if source in (NODATA, *self.ignore) or sources.count(source) > 1 or not 0 <= target < NODATA:
                raise OptionError(
                    "option-map",
                    "{option}: map a label once, none that is ignored (255 always is), to a class from 0 to 254; "
                    "to leave it out give --ignore",
                    option=f"--map {source}={target}",
                )
        if self.labels.is_dir():
            raise InputError(
                "reference-folder", "{path} is a folder; give a raster such as NAME.classes.tif", path=self.labels
            )
        if (self.labels.suffix.lower() in VECTOR_SUFFIXES) != (self.burn is not None):
            raise OptionError(
                "option-polygons",
                "{path}: --field NAME and --value VALUE=CLASS, or --burn CLASS, say what polygons mean: give them for "
                "polygons ({kinds}), and leave them out for a raster",
                path=self.labels,
                kinds=", ".join(VECTOR_SUFFIXES),
            )


def request_for(
    prediction: Path,
    labels: Path,
    *,
    field: str | None,
    values: tuple[tuple[str, int], ...],
    burn: int | None,
    background: int | None,
    layer: str | None,
    **others: Any,
) -> Request:
    """Return the request of the command line's options."""
    names = [name for name, _ in values]
    for name, label in values:
        if field is None or names.count(name) > 1:
            given = f"--value {name}={label}"
            raise OptionError("option-values", "{option}: give one id for each value of --field NAME", option=given)
    if field is not None and (not values or burn is not None):
        raise OptionError("option-field", "--field {field}: give its --value VALUE=ID, and no --burn", field=field)
    meaning = None
    if any(given is not None for given in (field, burn, background, layer)):
        meaning = Burn(field, dict(values), 1 if burn is None else burn, background or 0, layer)
    return Request(prediction, labels, burn=meaning, **others)


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Counts over all pixels that have a label, and the numbers that follow from them."""

    prediction: str
    labels: str
    size: Size
    legend: Legend
    confusion: Confusion
    """Classes in the legend's order: by id."""
    boundary: Boundary | None
    """Pixels near contours, in the same order; None when they were not counted."""

    def numbers(self) -> dict[str, Any]:
        """Return everything, ready for JSON: what is not defined (no such pixels) is None."""
        counts, edge = self.confusion.counts, self.boundary
        return {
            "prediction": self.prediction,
            "labels": self.labels,
            "size": {"height": self.size.height, "width": self.size.width},
            "pixels": int(counts.sum()),
            "pixels_without_label": int(self.size.pixels - counts.sum()),
            "pixels_without_prediction": int(counts[:, -1].sum()),
            **{name: _number(value) for name, value in self.confusion.summary.items()},
            "boundary": None if edge is None else {"distance": edge.distance, "mean_iu": _number(edge.mean_iu)},
            "classes": self._classes(),
            "confusion": counts.tolist(),
        }

    def to_json(self) -> str:
        """Return `numbers` as text. Rows of `confusion` are labels, columns predictions; its last column has none."""
        return json.dumps(self.numbers(), indent=2, allow_nan=False)

    def to_csv(self) -> str:
        """Return the confusion matrix: a row for each class of the labels, a column for each class of the map."""
        text = io.StringIO()
        names = [c.name for c in self.legend.classes]
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["label \\ prediction", *names, NOTHING])
        writer.writerows([name, *row] for name, row in zip(names, self.confusion.counts.tolist(), strict=True))
        return text.getvalue()

    def describe(self) -> list[tuple[str, str]]:
        """Return what `fcn-batch evaluate` prints: label and value, one pair a line."""
        found = self.numbers()
        text = {name: "-" if value is None else f"{value:.3f}" for name, value in found.items() if "_" in name}
        missing = found["pixels_without_prediction"]
        pairs = [
            ("prediction", f"{self.prediction}: {self.size.height} x {self.size.width} px"),
            ("labels", f"{self.labels}: {found['pixels']} px, {missing} of them not predicted"),
            ("accuracy", f"{text['pixel_accuracy']} of pixels, {text['mean_accuracy']} mean of classes"),
            ("IU", f"{text['mean_iu']} mean, {text['frequency_weighted_iu']} frequency weighted"),
        ]
        if self.boundary is not None:
            mean = _cell(found["boundary"]["mean_iu"]).strip()
            pairs.append(("boundary IU", f"{mean} mean, within {self.boundary.distance} px of contours"))
        columns = list(_COLUMNS)[: 3 if self.boundary is None else 4]
        pairs.append(("", "".join(f"{_COLUMNS[column]:>11}" for column in columns) + f"{'label px':>15}"))
        for one in found["classes"]:
            cells = "".join(_cell(one[column]) for column in columns)
            pairs.append(("class", f"{cells}{one['label_pixels']:>15,}  {one['id']:3} {one['name']}"))
        return pairs

    def _classes(self) -> list[dict[str, Any]]:
        score, edge = self.confusion, self.boundary
        return [
            {
                "id": one.id,
                "name": one.name,
                "label_pixels": int(score.truth[place]),
                "predicted_pixels": int(score.predicted[place]),
                "iu": _number(score.iu[place]),
                "precision": _number(score.precision[place]),
                "recall": _number(score.recall[place]),
                "boundary_iu": None if edge is None else _number(edge.iu[place]),
            }
            for place, one in enumerate(self.legend.classes)
        ]


def _number(value: float) -> float | None:
    return None if math.isnan(value) else float(value)


def _cell(value: float | None) -> str:
    return f"{'-' if value is None else f'{value:.3f}':>11}"


def evaluate(request: Request, progress: RunProgress) -> Evaluation:
    """Compare a class map with labels.

    Both are read once, in chunks of whole storage blocks of the map; if the request names a folder, the result is
    written there too. OptionError for a distance that fits neither raster nor memory and for classes that are mapped
    to but not there; InputError for files that cannot be read, ids that are in no legend, and maps without a pixel in
    common; OutputError when files exist or cannot be written.
    """
    for path in [request.folder / name for name in _FILES] if request.folder and not request.overwrite else ():
        if path.exists():
            raise OutputError("output-exists", "{path} exists already; give --overwrite or another -o DIR", path=path)
    predicted = find_map(request.prediction).source
    distance = default_distance(predicted.size) if request.boundary is None else request.boundary
    most = _LARGEST_SWEEP // BoundarySweep.memory(predicted.size, 1)
    if not 0 <= distance <= most:
        raise OptionError("option-boundary", "--boundary {value}: give 0 to {most} pixels", value=distance, most=most)
    sweep = BoundarySweep(predicted.size, distance) if distance else None
    translation = _translation(request, predicted.legend)
    confusion, given_pixels = Confusion.empty(NODATA), np.zeros(NODATA + 1, np.int64)
    progress.start(request.prediction.name, predicted.size.pixels, 0)
    try:
        with gdal_cache(cache_mb(predicted.block)), _labels_as_input():
            labels = open_labels(request.labels, Grid(predicted.size, predicted.georeference), burn=request.burn)
            with closing(labels):
                for window in chunk_windows(predicted.size, predicted.block):
                    given, ids = predicted.read(window), labels.read(window)
                    translated = translation.of(ids)
                    if (unknown := translated == UNKNOWN).any():
                        raise _unknown_labels(request, window, sorted(set(ids[unknown].tolist())))
                    truth = translated.astype(np.uint8)
                    confusion += Confusion.count(truth, given, NODATA)
                    given_pixels += np.bincount(given.ravel(), minlength=NODATA + 1)
                    if sweep is not None:
                        sweep.push(window, truth, given)
                    progress.advance(window.pixels)
    finally:
        progress.stop()
    legend = _legend_of_all(request, predicted.legend, confusion, given_pixels[:NODATA])
    found = Evaluation(
        prediction=str(request.prediction),
        labels=str(request.labels),
        size=predicted.size,
        legend=legend,
        confusion=confusion.restricted(legend.ids),
        boundary=sweep.result().restricted(legend.ids) if sweep is not None else None,
    )
    if request.folder is not None:
        for path in _write(found, request.folder):
            progress.note(f"written: {path}")
    return found


def _translation(request: Request, legend: Legend | None) -> Translation:
    """Return the meaning of label ids for a map of these classes; None: any id from 0 to 254 is one."""
    known = range(NODATA) if legend is None else legend.ids
    for source, target in request.renamed:
        if target not in known:
            raise OptionError(
                "option-class",
                "--map {label}={target}: the map has only the classes {known}",
                label=source,
                target=target,
                known=listed(sorted(known)),
            )
    classes = {k: k for k in known if k not in request.ignore} | dict(request.renamed)
    return Translation(classes, (NODATA, *request.ignore))


def _unknown_labels(request: Request, window: Window, ids: list[int]) -> InputError:
    return InputError(
        "reference-ids",
        "{path}: label {ids} in {window} of {map} is no class of it; give --map ID=CLASS, or --ignore ID",
        path=request.labels,
        ids=listed(ids),
        window=window,
        map=request.prediction.name,
    )


def _legend_of_all(request: Request, legend: Legend | None, confusion: Confusion, given: NDArray[np.int64]) -> Legend:
    """Return the map's legend by id, else one of the ids that either map holds."""
    found = np.flatnonzero(given).tolist()
    if legend is not None and (unnamed := sorted(set(found) - set(legend.ids))):
        raise InputError(
            "map-ids",
            "{path} holds {ids}, which its legend does not name; make the map again",
            path=request.prediction,
            ids=listed(unnamed),
        )
    if not confusion.counts.sum():
        raise InputError(
            "reference-empty",
            "{path}: no label on any pixel of {map}; check the place of both, and --ignore",
            path=request.labels,
            map=request.prediction,
        )
    if legend is not None:  # by id: a raster's attribute table keeps no other order
        return Legend(classes=tuple(sorted(legend.classes, key=lambda one: one.id)))
    ids = sorted({*found, *np.flatnonzero(confusion.truth).tolist()})
    return Legend(classes=tuple(ClassInfo(id=i, name=f"class {i}", colour=GREY) for i in ids))


@contextmanager
def _labels_as_input() -> Iterator[None]:
    """Labels that cannot be used are faults of an input here: nothing is trained."""
    try:
        yield
    except TrainingError as error:
        problem = str(error)
        for key, option in _OPTION_FOR.items():
            problem = problem.replace(f"`{key}`", option)
        raise InputError("reference-unusable", "{problem}", problem=problem) from error


def _write(found: Evaluation, folder: Path) -> list[Path]:
    """Write metrics.json, confusion.csv and confusion.png, each whole; the folder is made if it is missing."""
    nothing = NOTHING if found.confusion.counts[:, -1].any() else None
    picture = confusion_png(found.confusion, found.legend, nothing)
    parts: list[bytes | str] = [found.to_json() + "\n", found.to_csv(), picture]
    paths = [folder / name for name in _FILES]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path, data in zip(paths, parts, strict=True):
            write_whole(path, data)
    except OSError as error:
        raise OutputError(
            "output-unwritable",
            "{path}: cannot write here ({reason}); choose another -o DIR",
            path=folder,
            reason=error.strerror,
        ) from error
    return paths
