"""Pictures that any reader of PNG opens, whatever the classes are called."""

import numpy as np
import pytest
from numpy.typing import NDArray
from rasterio.io import MemoryFile

from fcn_batch.pipeline.core.classes import ClassInfo, Legend
from fcn_batch.pipeline.core.metrics import Confusion
from fcn_batch.pipeline.raster.gdal import accept_pixel_space
from fcn_batch.workflows.learning.charts import confusion_png


def legend(*names: str) -> Legend:
    return Legend(classes=tuple(ClassInfo(id=k, name=name, colour="#808080") for k, name in enumerate(names)))


def pixels(png: bytes) -> NDArray[np.uint8]:
    """(rows, cols, 4), as GDAL reads it."""
    with accept_pixel_space(), MemoryFile(png) as file, file.open() as dataset:
        assert dataset.driver == "PNG"
        values: NDArray[np.uint8] = np.moveaxis(dataset.read(), 0, -1)
        return values


def diagonal(classes: int) -> Confusion:
    labels = np.arange(classes * 3) % classes
    return Confusion.count(labels, labels, classes)


def share_of_dark_blue(png: bytes) -> float:
    """Pixels in the colour of a share of 1."""
    return float((np.abs(pixels(png)[..., :3].astype(int) - (8, 48, 107)).max(axis=-1) < 4).mean())


def test_the_diagonal_is_dark() -> None:
    right = diagonal(3)
    wrong = Confusion.count(np.arange(3), (np.arange(3) + 1) % 3, 3)
    half = Confusion.count(np.repeat(np.arange(3), 2), np.array([0, 1, 1, 2, 2, 0]), 3)
    pictures = [confusion_png(one, legend("a", "b", "c")) for one in (right, wrong, half)]
    assert pixels(pictures[0]).shape == pixels(pictures[1]).shape
    assert share_of_dark_blue(pictures[0]) > 0.05
    assert share_of_dark_blue(pictures[2]) < 0.01
    rows, cols = np.nonzero(np.abs(pixels(pictures[0])[..., :3].astype(int) - (8, 48, 107)).max(axis=-1) < 4)
    assert np.corrcoef(rows, cols)[0, 1] > 0.3  # down and to the right


def test_labels_are_rows() -> None:
    both_called_the_second = Confusion.count(np.array([0, 1]), np.array([1, 1]), 2)
    picture = pixels(confusion_png(both_called_the_second, legend("a", "b")))
    dark = np.abs(picture[..., :3].astype(int) - (8, 48, 107)).max(axis=-1) < 4
    assert dark.sum(axis=0).max() > 1.5 * dark.sum(axis=1).max()  # two cells high, one wide


def test_any_name_is_drawn_as_it_is() -> None:
    names = ("$x^2$", "$\\frac{$", "森林", "a\nb\tc", "n" * 100, "_%{}#~")
    picture = pixels(confusion_png(diagonal(6), legend(*names), "no prediction"))
    assert 300 < picture.shape[1] < 1500


@pytest.mark.parametrize("classes", [1, 41])
def test_few_and_many_classes(classes: int) -> None:
    names = [f"class {k}" for k in range(classes)]
    assert pixels(confusion_png(diagonal(classes), legend(*names))).shape[0] > 100


def test_the_same_numbers_make_the_same_bytes() -> None:
    once, again = (confusion_png(diagonal(2), legend("a", "b")) for _ in range(2))
    assert once == again


def test_a_legend_of_other_classes_is_refused() -> None:
    with pytest.raises(ValueError, match="2 classes, but a matrix of 3"):
        confusion_png(diagonal(3), legend("a", "b"))
