"""What a network has to beat, on the test split of a recipe: methods that look at one pixel, or one threshold.

``python -m bench.baselines RECIPE.toml --data DIR`` prints one line of JSON for

* ``colours``: a look-up table. Every colour falls into one of 2^bits bins a band; a bin means the class most of its
  training pixels have, and a bin without training pixels the class most training pixels have.
* ``otsu`` (with ``--otsu CLASS``): Otsu's threshold of each image's grey values (Otsu 1979); the brighter part is
  CLASS, or the darker one where the image's median is bright (brightfield); the rest is the first class.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fcn_batch.pipeline.core.classes import NODATA
from fcn_batch.pipeline.core.metrics import Confusion
from fcn_batch.pipeline.core.recipe import Recipe, read_recipe
from fcn_batch.workflows.learning.labelled import LabelledImage, open_images

Classifier = Callable[[NDArray[np.uint8]], NDArray[np.uint8]]
"""From an image (bands, rows, cols) to channels (rows, cols)."""


def colour_bins(image: NDArray[np.uint8], bits: int) -> NDArray[np.int64]:
    """Bin number of every pixel of an image (bands, rows, cols): the upper bits of each band.

    >>> colour_bins(np.array([[[255]], [[0]], [[128]]], np.uint8), 1).tolist()
    [[5]]
    """
    bins = np.zeros(image.shape[1:], np.int64)
    for band in image:
        bins = (bins << bits) | (band >> 8 - bits)
    return bins


def colour_table(images: Sequence[LabelledImage], classes: int, bands: int, bits: int) -> Classifier:
    """Learn the table from the training regions."""
    votes = np.zeros((1 << bands * bits, classes), np.int64)
    for image in images:
        for part in image.parts("train"):
            pixels, labels = image.read(part), image.read_labels(part)
            known = pixels.valid & (labels != NODATA)
            cells = colour_bins(pixels.values, bits)[known] * classes + labels[known]
            votes += np.bincount(cells, minlength=votes.size).reshape(votes.shape)
    table = votes.argmax(axis=1)
    table[votes.sum(axis=1) == 0] = votes.sum(axis=0).argmax()
    return lambda image: np.asarray(table[colour_bins(image, bits)], np.uint8)


def otsu(image: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """True where an image (bands, rows, cols) is on the rarer side of Otsu's threshold of its grey values."""
    grey = image.astype(np.float64).mean(axis=0).round().astype(np.int64)
    counts = np.bincount(grey.ravel(), minlength=256).astype(np.float64)
    below, levels = counts.cumsum(), np.arange(256)
    sums = (counts * levels).cumsum()
    above = below[-1] - below
    with np.errstate(invalid="ignore", divide="ignore"):
        between = below * above * (sums / below - (sums[-1] - sums) / above) ** 2
    threshold = int(np.nanargmax(between)) if np.isfinite(between).any() else 255
    return np.asarray(grey <= threshold if np.median(grey) > 127 else grey > threshold)


def score(images: Sequence[LabelledImage], classes: int, classify: Classifier) -> Confusion:
    """Confusion of a classifier over the test regions."""
    total = Confusion.empty(classes)
    for image in images:
        for part in image.parts("test"):
            total += Confusion.count(image.read_labels(part), classify(image.read(part).values), classes)
    return total


def report(confusion: Confusion, recipe: Recipe) -> dict[str, Any]:
    """Round the numbers of a confusion for JSON."""
    names = [c.name for c in recipe.classes]
    return {
        "pixel_accuracy": round(confusion.pixel_accuracy, 4),
        "mean_accuracy": round(confusion.mean_accuracy, 4),
        "mean_iu": round(confusion.mean_iu, 4),
        "frequency_weighted_iu": round(confusion.frequency_weighted_iu, 4),
        "iu": {name: round(float(iu), 4) for name, iu in zip(names, confusion.iu, strict=True)},
    }


def main() -> None:
    """Train, score, print."""
    parser = argparse.ArgumentParser(prog="python -m bench.baselines", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--data", type=Path, required=True, help="folder that the recipe's paths begin at")
    parser.add_argument("--bits", type=int, default=5, help="of each band, for the table of colours")
    parser.add_argument("--otsu", metavar="CLASS", help="name of the class that a threshold finds")
    options = parser.parse_args()
    recipe = read_recipe(options.recipe)
    images, classes = open_images(recipe, options.data), len(recipe.classes)
    table = colour_table(images, classes, len(recipe.images.bands), options.bits)
    found = {"colours": report(score(images, classes, table), recipe)}
    if options.otsu:
        channel = [c.name for c in recipe.classes].index(options.otsu)
        found["otsu"] = report(score(images, classes, lambda i: np.uint8(channel) * otsu(i)), recipe)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
