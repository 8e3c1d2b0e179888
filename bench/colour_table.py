"""The baseline of the world data set: a look-up table from colour to class, without any context.

Every colour falls into one of 64 x 64 x 64 bins; a bin means the class most of its training pixels have,
and a bin without training pixels means the class most training pixels have. A network that is not clearly
better than this has learned nothing but colours.

``python -m bench.colour_table FOLDER`` (a folder that `bench.world` wrote) prints one line of JSON.
"""

import argparse
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.windows import Window

from bench.world import HEIGHT, IMAGE, LABELS, NAMES
from fcn_batch.pipeline.metrics import Confusion

STRIP = 450
"""Columns of a strip: 30 degrees of longitude."""
TEST, VALIDATION, RESERVED = (2, 6, 10), (4,), (7,)
"""Numbers of the strips that are not trained on; the reserved one is not even read."""
TRAINING = tuple(s for s in range(12) if s not in {*TEST, *VALIDATION, *RESERVED})
SCORED_ROWS = 2250
"""Rows north of 60 S, the ones that are scored: the rest is nearly all snow."""

_BITS = 6
_BINS = 1 << 3 * _BITS


def read_strip(folder: Path, strip: int, rows: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Image (3, rows, 450) and labels (rows, 450) of one strip."""
    window = Window(strip * STRIP, 0, STRIP, rows)
    with rasterio.open(folder / IMAGE) as image, rasterio.open(folder / LABELS) as labels:
        return image.read(window=window), labels.read(1, window=window)


def colour_bins(image: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Bin number of every pixel of an image (3, h, w): the upper six bits of red, green and blue."""
    red, green, blue = (image >> 8 - _BITS).astype(np.int64)
    return np.asarray((red << 2 * _BITS) | (green << _BITS) | blue)


def train(folder: Path, strips: Iterable[int], rows: int) -> NDArray[np.uint8]:
    """Make the table, a class for every bin, learned from the first `rows` rows of `strips`."""
    classes = len(NAMES)
    votes = np.zeros((_BINS, classes), np.int64)
    for strip in strips:
        image, labels = read_strip(folder, strip, rows)
        known = labels < classes
        cells = colour_bins(image)[known] * classes + labels[known]
        votes += np.bincount(cells, minlength=votes.size).reshape(votes.shape)
    table: NDArray[np.int64] = votes.argmax(axis=1)
    table[votes.sum(axis=1) == 0] = votes.sum(axis=0).argmax()
    return np.asarray(table, np.uint8)


def score(folder: Path, strips: Iterable[int], table: NDArray[np.uint8]) -> Confusion:
    """Confusion of the table over the scored rows of `strips`."""
    total = Confusion(np.zeros((len(NAMES), len(NAMES) + 1), np.int64))
    for strip in strips:
        image, labels = read_strip(folder, strip, SCORED_ROWS)
        total += Confusion.count(labels, table[colour_bins(image)], classes=len(NAMES))
    return total


def report(confusion: Confusion) -> dict[str, Any]:
    """Round the numbers of a confusion for JSON."""
    return {
        "pixel_accuracy": round(confusion.pixel_accuracy, 4),
        "mean_iu": round(confusion.mean_iu, 4),
        "iu": {name: round(float(iu), 4) for name, iu in zip(NAMES, confusion.iu, strict=True)},
    }


def main() -> None:
    """Train, score, print."""
    parser = argparse.ArgumentParser(prog="python -m bench.colour_table", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--train-rows", type=int, default=HEIGHT, help="rows to train on, from the north pole")
    options = parser.parse_args()
    table = train(options.folder, TRAINING, options.train_rows)
    parts = {"val": VALIDATION, "test": TEST}
    print(json.dumps({name: report(score(options.folder, strips, table)) for name, strips in parts.items()}))


if __name__ == "__main__":
    main()
