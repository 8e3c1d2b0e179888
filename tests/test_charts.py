"""Pictures that any reader of PNG opens, whatever the classes are called."""

import numpy as np
from numpy.typing import NDArray
from rasterio.io import MemoryFile

from fcn_batch.pipeline.core.classes import ClassInfo, Legend
from fcn_batch.pipeline.core.metrics import Confusion
from fcn_batch.pipeline.raster.gdal import accept_pixel_space
from fcn_batch.workflows.learning.charts import confusion_png, samples_png


def legend(*names: str) -> Legend:
    return Legend(classes=tuple(ClassInfo(id=k, name=name, colour=f"#80{k:02x}80") for k, name in enumerate(names)))


def pixels(png: bytes) -> NDArray[np.uint8]:
    """(rows, cols, 3), as GDAL reads it."""
    with accept_pixel_space(), MemoryFile(png) as file, file.open() as dataset:
        assert dataset.driver == "PNG"
        values: NDArray[np.uint8] = np.moveaxis(dataset.read((1, 2, 3)), 0, -1)
        return values


def diagonal(classes: int) -> Confusion:
    labels = np.arange(classes * 3) % classes
    return Confusion.count(labels, labels, classes)


def dark(confusion: Confusion, *names: str) -> NDArray[np.bool_]:
    """Pixels in the colour of a share of 1."""
    picture = pixels(confusion_png(confusion, legend(*names)))
    return np.asarray(np.abs(picture.astype(int) - (8, 48, 107)).max(axis=-1) < 4)


def test_rows_are_labels_and_a_share_of_one_is_dark() -> None:
    right, half = diagonal(3), Confusion.count(np.repeat(np.arange(3), 2), np.array([0, 1, 1, 2, 2, 0]), 3)
    found = dark(right, "a", "b", "c")
    assert found.mean() > 0.05
    assert dark(half, "a", "b", "c").mean() < 0.01
    rows, cols = np.nonzero(found)
    assert np.corrcoef(rows, cols)[0, 1] > 0.3  # down and to the right
    both_called_the_second = dark(Confusion.count(np.array([0, 1]), np.array([1, 1]), 2), "a", "b")
    assert both_called_the_second.sum(axis=0).max() > 1.5 * both_called_the_second.sum(axis=1).max()


def test_any_name_is_drawn_as_it_is() -> None:
    names = ("$x^2$", "$\\frac{$", "森林", "a\nb\tc", "n" * 100, "_%{}#~")
    once, again = (confusion_png(diagonal(6), legend(*names), "no prediction") for _ in range(2))
    assert once == again
    assert 300 < pixels(once).shape[1] < 1500
    for classes in (1, 41):
        assert pixels(confusion_png(diagonal(classes), legend(*map(str, range(classes))))).shape[0] > 100


def test_samples_show_image_labels_and_prediction_in_colour() -> None:
    image = np.full((20, 20, 3), (200, 10, 10), np.uint8)
    zero, one = (np.full((20, 20), k, np.uint8) for k in (0, 1))
    picture = pixels(samples_png([("$a$", image, zero, one), ("b", image, zero, one)], legend("a", "b")))
    for colour in ((200, 10, 10), (128, 0, 128), (128, 1, 128)):
        assert (picture == colour).all(axis=-1).mean() > 0.1, colour
