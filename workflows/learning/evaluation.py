"""What a comparison of a class map with labels found: as a table for people, JSON for programs, files for both."""

import csv
import io
import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fcn_batch.pipeline.core.boundary import Boundary
from fcn_batch.pipeline.core.classes import Legend
from fcn_batch.pipeline.core.durable import write_whole
from fcn_batch.pipeline.core.errors import OutputError
from fcn_batch.pipeline.core.geometry import Size
from fcn_batch.pipeline.core.metrics import Confusion
from fcn_batch.workflows.learning.charts import confusion_png

NOTHING = "no prediction"
"""What the last column of the confusion matrix is called: labelled pixels without a class in the map."""
_FILES = ("metrics.json", "confusion.csv", "confusion.png")


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Counts over all pixels that have a label, and what follows from them."""

    prediction: str
    labels: str
    size: Size
    legend: Legend
    confusion: Confusion
    """Classes in the legend's order: by id."""
    boundary: Boundary | None
    """Pixels near contours, in the same order; None when it was not wanted."""

    def __post_init__(self) -> None:
        boundaries = len(self.legend) if self.boundary is None else self.boundary.counts.shape[1]
        if not len(self.legend) == self.confusion.counts.shape[0] == boundaries:
            raise ValueError(f"{len(self.legend)} classes, but {self.confusion.counts.shape} and {boundaries} counts")

    def numbers(self) -> dict[str, Any]:
        """Everything, ready for JSON: what is not defined (no such pixels) is None."""
        counts, edge = self.confusion.counts, self.boundary
        return {
            "prediction": self.prediction,
            "labels": self.labels,
            "size": {"height": self.size.height, "width": self.size.width},
            "pixels": int(counts.sum()),
            "pixels_without_label": int(self.size.pixels - counts.sum()),
            "pixels_without_prediction": int(counts[:, -1].sum()),
            "pixel_accuracy": _number(self.confusion.pixel_accuracy),
            "mean_accuracy": _number(self.confusion.mean_accuracy),
            "mean_iu": _number(self.confusion.mean_iu),
            "frequency_weighted_iu": _number(self.confusion.frequency_weighted_iu),
            "boundary": None if edge is None else {"distance": edge.distance, "mean_iu": _number(edge.mean_iu)},
            "classes": self._classes(),
            "confusion": counts.tolist(),
        }

    def to_json(self) -> str:
        """`numbers` as text. Rows of `confusion` are labels, columns predictions; its last column has none."""
        return json.dumps(self.numbers(), indent=2, allow_nan=False)

    def to_csv(self) -> str:
        """The confusion matrix: a row for each class of the labels, a column for each class of the map."""
        text = io.StringIO()
        names = [c.name for c in self.legend.classes]
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["label \\ prediction", *names, NOTHING])
        for name, row in zip(names, self.confusion.counts.tolist(), strict=True):
            writer.writerow([name, *row])
        return text.getvalue()

    def describe(self) -> list[tuple[str, str]]:
        """What `fcn-batch evaluate` prints: label and value, one pair a line."""
        found = self.numbers()
        pairs = [
            ("prediction", f"{self.prediction}: {self.size.height} x {self.size.width} px"),
            (
                "labels",
                f"{self.labels}: {found['pixels']} px, {found['pixels_without_prediction']} of them not predicted",
            ),
            (
                "accuracy",
                f"{_told(found['pixel_accuracy'])} of pixels, {_told(found['mean_accuracy'])} mean of classes",
            ),
            ("IU", f"{_told(found['mean_iu'])} mean, {_told(found['frequency_weighted_iu'])} frequency weighted"),
        ]
        if found["boundary"] is not None:
            within = f"within {found['boundary']['distance']} px of contours"
            pairs.append(("boundary IU", f"{_told(found['boundary']['mean_iu'])} mean, {within}"))
        columns = ["iu", "precision", "recall", "boundary_iu"][: 3 if self.boundary is None else 4]
        pairs.append(("", "".join(f"{_TITLES[column]:>11}" for column in columns) + f"{'label px':>15}"))
        for one in found["classes"]:
            cells = "".join(f"{_told(one[column]):>11}" for column in columns)
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


_TITLES = {"iu": "IU", "precision": "precision", "recall": "recall", "boundary_iu": "boundary"}


def evaluation_files(folder: Path) -> list[Path]:
    """The files that `write_evaluation` makes in a folder."""
    return [folder / name for name in _FILES]


def refuse_to_clobber(paths: Iterable[Path]) -> None:
    """OutputError when one of the files exists."""
    for path in paths:
        if path.exists():
            raise OutputError(f"{path}: exists already; give --overwrite to replace it, or -o DIR for another folder")


def write_evaluation(found: Evaluation, folder: Path) -> list[Path]:
    """Write metrics.json, confusion.csv and confusion.png, each whole, and return their paths.

    The folder is made if it is missing, and files of these names are replaced. OutputError when that fails.
    """
    nothing = NOTHING if found.confusion.counts[:, -1].any() else None
    picture = confusion_png(found.confusion, found.legend, nothing)
    parts: list[bytes | str] = [found.to_json() + "\n", found.to_csv(), picture]
    paths = evaluation_files(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path, data in zip(paths, parts, strict=True):
            write_whole(path, data)
    except OSError as error:
        raise OutputError(
            f"{folder}: cannot write here ({error.strerror}); choose another folder with -o DIR"
        ) from error
    return paths


def _number(value: float) -> float | None:
    return None if math.isnan(value) else float(value)


def _told(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
