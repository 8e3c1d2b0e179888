"""How well a class map agrees with labels: read both chunk by chunk, count, and turn the counts into numbers once."""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fcn_batch.pipeline.core.boundary import BoundarySweep, default_distance
from fcn_batch.pipeline.core.classes import NODATA, ClassInfo, Legend
from fcn_batch.pipeline.core.errors import InputError, OptionError, TrainingError
from fcn_batch.pipeline.core.geometry import Size, Window
from fcn_batch.pipeline.core.maps import ClassMap, Ids
from fcn_batch.pipeline.core.metrics import Confusion
from fcn_batch.pipeline.raster.gdal import gdal_cache
from fcn_batch.pipeline.raster.labels import Burn, Grid, Labels, open_labels
from fcn_batch.pipeline.raster.mapfile import GREY
from fcn_batch.workflows.console.progress import RunProgress
from fcn_batch.workflows.finished.maps import cache_mb, chunk_windows, find_map
from fcn_batch.workflows.learning.evaluation import Evaluation, evaluation_files, refuse_to_clobber, write_evaluation
from fcn_batch.workflows.learning.meaning import UNKNOWN, Meaning, Translation, check_kind, listed, polygons_mean

_LARGEST_SWEEP = 2**31
"""Bytes of rows to keep for the boundaries."""
_OPTION_FOR = {"burn.values": "--value VALUE=ID", "layer": "--layer", "georeference": "gdal_edit.py -a_srs -a_ullr"}
"""How to say on the command line what a recipe says with a key."""


@dataclass(frozen=True, slots=True)
class Request:
    """What to compare, and how."""

    prediction: Path
    labels: Path
    meaning: Meaning
    burn: Burn | None = None
    """How polygons become ids; None for rasters."""
    boundary: int | None = None
    """Distance of boundary IU in pixels; None: by the raster's size; 0: leave it out."""
    folder: Path | None = None
    """Where to write what was found; None: nowhere."""
    overwrite: bool = False
    """Replace files there."""


def request_for(prediction: Path, labels: Path, **chosen: Any) -> Request:
    """The request of the command line's options; OptionError when they contradict each other."""
    meaning = Meaning(chosen.pop("ignore"), chosen.pop("renamed"))
    rest = {name: chosen.pop(name) for name in ("boundary", "folder", "overwrite")}
    return Request(prediction, labels, meaning, polygons_mean(**chosen), **rest)


def evaluate(request: Request, progress: RunProgress) -> Evaluation:
    """Compare a class map with labels.

    Both are read once, in chunks of whole storage blocks of the map; if the request names a folder, what was found is
    written there too. OptionError for a distance that fits neither
    raster nor memory and for classes that are mapped to but not there; InputError for files that cannot be read, ids
    that are in no legend, and maps without a pixel in common; OutputError when files exist or cannot be written.
    """
    if request.folder is not None and not request.overwrite:
        refuse_to_clobber(evaluation_files(request.folder))
    predicted = find_map(request.prediction).source
    distance = default_distance(predicted.size) if request.boundary is None else request.boundary
    _check_distance(distance, predicted.size)
    check_kind(request.labels, request.burn)
    sweep = BoundarySweep(predicted.size, distance) if distance else None
    counting = _Counting(request, predicted.legend)
    progress.start(request.prediction.name, predicted.size.pixels, 0)
    try:
        with gdal_cache(cache_mb(predicted.block)), _labels_as_input():
            labels = open_labels(request.labels, Grid(predicted.size, predicted.georeference), burn=request.burn)
            with closing(labels):
                for window, given, label_ids in _chunks(predicted, labels):
                    truth = counting.add(window, given, label_ids)
                    if sweep is not None:
                        sweep.push(window, truth, given)
                    progress.advance(window.pixels)
    finally:
        progress.stop()
    legend = counting.legend_of_all()
    found = Evaluation(
        prediction=str(request.prediction),
        labels=str(request.labels),
        size=predicted.size,
        legend=legend,
        confusion=counting.confusion.restricted(legend.ids),
        boundary=sweep.result().restricted(legend.ids) if sweep is not None else None,
    )
    for path in write_evaluation(found, request.folder) if request.folder is not None else ():
        progress.note(f"written: {path}")
    return found


class _Counting:
    """The confusion so far, over all 255 possible classes, and what was seen."""

    def __init__(self, request: Request, legend: Legend | None) -> None:
        self.request, self.legend = request, legend
        self.confusion = Confusion.empty(NODATA)
        self._translation = Translation(request.meaning, None if legend is None else legend.ids)
        self._given = np.zeros(NODATA + 1, np.int64)

    def add(self, window: Window, given: Ids, labels: NDArray[np.int32]) -> Ids:
        """Count a chunk and return its truth as class ids, 255 where it is not known."""
        translated = self._translation.of(labels)
        if (unknown := translated == UNKNOWN).any():
            self._refuse(window, sorted(set(labels[unknown].tolist())))
        truth = translated.astype(np.uint8)
        self.confusion += Confusion.count(truth, given, NODATA)
        self._given += np.bincount(given.ravel(), minlength=NODATA + 1)
        known = range(NODATA) if self.legend is None else self.legend.ids
        if unnamed := sorted(set(np.flatnonzero(self._given[:NODATA]).tolist()) - set(known)):
            raise InputError(
                f"{self.request.prediction}: holds {listed(unnamed)}, which its legend does not name; "
                "its pixels and its names are of different runs: make the map again"
            )
        return truth

    def legend_of_all(self) -> Legend:
        """The map's legend by id, else one of the ids that either map holds; InputError when no pixel was compared."""
        if not self.confusion.counts.sum():
            raise InputError(
                f"{self.request.labels}: no label on any pixel of {self.request.prediction}; check that both show the "
                "same place, and what --ignore leaves over"
            )
        if self.legend is not None:  # by id: a raster's attribute table keeps no other order
            return Legend(classes=tuple(sorted(self.legend.classes, key=lambda one: one.id)))
        ids = np.flatnonzero(self.confusion.truth + self._given[:NODATA])
        return Legend(classes=tuple(ClassInfo(id=int(i), name=f"class {i}", colour=GREY) for i in ids))

    def _refuse(self, window: Window, ids: list[int]) -> None:
        classes = f"; classes are {listed(self.legend.ids)}" if self.legend is not None else ""
        where = f"rows {window.row}..{window.stop_row - 1}, cols {window.col}..{window.stop_col - 1}"
        raise InputError(
            f"{self.request.labels}: label {listed(ids)} in {where} of {self.request.prediction.name} is no class"
            f"{classes}; say what it is with --map ID=CLASS, or --ignore ID"
        )


@contextmanager
def _labels_as_input() -> Iterator[None]:
    """Labels that cannot be used are faults of an input here: nothing is trained."""
    try:
        yield
    except TrainingError as error:
        message = str(error)
        for key, option in _OPTION_FOR.items():
            message = message.replace(f"`{key}`", option)
        raise InputError(message) from error


def _check_distance(distance: int, size: Size) -> None:
    if distance < 0:
        raise OptionError(f"--boundary {distance}: a distance is at least 1 pixel; 0 leaves boundary IU out")
    if BoundarySweep.memory(size, distance) > _LARGEST_SWEEP:
        most = _LARGEST_SWEEP // BoundarySweep.memory(size, 1)
        raise OptionError(f"--boundary {distance}: too far for {size.width} columns; give at most {most}")


def _chunks(predicted: ClassMap, labels: Labels) -> Iterator[tuple[Window, Ids, NDArray[np.int32]]]:
    """Both maps chunk by chunk, left to right and down; one chunk is read while another is counted."""

    def read(window: Window) -> tuple[Window, Ids, NDArray[np.int32]]:
        return window, predicted.read(window), labels.read(window)

    waiting: deque[Future[tuple[Window, Ids, NDArray[np.int32]]]] = deque()
    with ThreadPoolExecutor(1) as reader:
        for window in chunk_windows(predicted.size, predicted.block):
            waiting.append(reader.submit(read, window))
            if len(waiting) > 1:
                yield waiting.popleft().result()
        yield waiting.popleft().result()
