"""Boundary IU: how well contours agree, counted chunk by chunk and yet exactly as on the whole maps.

Cheng, Girshick, Dollar, Berg and Kirillov, "Boundary IoU" (CVPR 2021, arXiv:2103.16562), section 4: of each class's
mask only the pixels within distance d of its contour count, in the truth and in the prediction, and of these two sets
the intersection over the union is taken. As in the authors' `boundary_utils.py`, a mask's inner pixels are what d
erosions with a 3x3 square leave (so distance is the chessboard's), and beyond the raster there is background: a mask
that the raster's edge cuts has a contour there.

A class map holds all masks at once: a pixel is within d of its mask's contour when the (2d + 1) x (2d + 1) pixels
around it are not all of its class. Their smallest and largest id tell, for all classes together.

The paper has no pixels without truth. Here they belong to no mask in both maps: their edge is a contour of both, like
the raster's. Otherwise the truth alone would have a contour there, and no prediction could match it. Pixels whose
truth is known and whose prediction is nodata belong to no predicted mask; that is the prediction's fault.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fcn_batch.pipeline.core.classes import NODATA
from fcn_batch.pipeline.core.geometry import Size, Window
from fcn_batch.pipeline.core.metrics import mean_of_known, ratio

LARGEST_DISTANCE = 16
"""Largest distance that is taken unasked, in pixels: 2 % of the diagonal of 640x480."""


def default_distance(size: Size) -> int:
    """The paper's distance, 2 % of the diagonal and at least 1 pixel, but at most LARGEST_DISTANCE.

    The 2 % were chosen for photographs of about 640x480. For a raster of any size they would be hundreds of pixels,
    and all but the largest objects would be nothing but boundary.

    >>> default_distance(Size(480, 640)), default_distance(Size(10, 10)), default_distance(Size(20000, 40000))
    (16, 1, 16)
    """
    return min(LARGEST_DISTANCE, max(1, round(0.02 * math.hypot(size.height, size.width))))


@dataclass(frozen=True, slots=True, eq=False)
class Boundary:
    """Pixels within `distance` of a contour, for each class id."""

    distance: int
    """Chessboard distance to the contour, in pixels."""
    counts: NDArray[np.int64]
    """(3, n): pixels in both boundaries of a class, in the boundary of its true mask, in that of its predicted mask."""

    def __post_init__(self) -> None:
        if self.distance < 1:
            raise ValueError(f"the distance is at least 1 pixel, got {self.distance}")
        if self.counts.ndim != 2 or self.counts.shape[0] != 3 or self.counts.dtype != np.int64:
            raise ValueError(f"counts are int64 of shape (3, n), got {self.counts.dtype} {self.counts.shape}")

    def restricted(self, ids: tuple[int, ...]) -> "Boundary":
        """The counts of these classes alone, in this order."""
        return Boundary(self.distance, self.counts[:, list(ids)])

    @property
    def iu(self) -> NDArray[np.float64]:
        """Boundary IU of each class, (n,); nan where a class is in neither map."""
        both, truth, predicted = self.counts
        return ratio(both, truth + predicted - both)

    @property
    def mean_iu(self) -> float:
        """Mean of `iu` without the nans: a class predicted but not in the truth counts as 0."""
        return mean_of_known(self.iu)


class BoundarySweep:
    """Counts boundary pixels of two maps that come chunk by chunk: left to right, one row of chunks after another.

    A chunk decides the pixels `distance` up and left of it, whose neighbours have all come by then. What is kept for
    that are the last 2 * `distance` rows of both maps over the whole width, and as many columns of a chunk: no chunk
    is wanted twice, and memory does not grow with the height.
    """

    def __init__(self, size: Size, distance: int) -> None:
        self.size, self.distance = size, distance
        self._row = self._col = self._height = 0
        self._above = _nothing(2 * distance, size.width)
        self._below = _nothing(2 * distance, size.width)
        self._left = _nothing(0, 2 * distance)
        self._counts = np.zeros((3, NODATA), np.int64)

    @staticmethod
    def memory(size: Size, distance: int) -> int:
        """Bytes that are kept for the rows above."""
        return 2 * 2 * 2 * distance * size.width

    def push(self, window: Window, truth: NDArray[np.uint8], predicted: NDArray[np.uint8]) -> None:
        """Count with the next chunk: class ids, (rows, cols), uint8, 255 where there is none.

        Chunks of one row have one height; heights and widths may differ otherwise. ValueError when a chunk does not
        follow on the last one, leaves the raster, or comes with arrays of another shape or type.
        """
        self._check(window, truth, predicted)
        kept, columns = 2 * self.distance, slice(window.col, window.stop_col)
        maps = np.stack([truth, np.where(truth == NODATA, np.uint8(NODATA), predicted)])
        maps = np.concatenate([self._above[:, :, columns], maps], axis=1)
        self._below[:, :, columns] = maps[:, -kept:]
        if window.stop_row == self.size.height:
            maps = np.concatenate([maps, _nothing(self.distance, window.width)], axis=1)
        if window.col == 0:
            self._left = _nothing(maps.shape[1], kept)
        maps = np.concatenate([self._left, maps], axis=2)
        self._left = maps[:, :, -kept:].copy()
        if window.stop_col == self.size.width:
            maps = np.concatenate([maps, _nothing(maps.shape[1], self.distance)], axis=2)
            self._above, self._below = self._below, self._above
        self._counts += _count(maps, self.distance)
        self._advance(window)

    def result(self) -> Boundary:
        """What was counted, by class id 0 to 254; ValueError before the last chunk has come."""
        if self._row != self.size.height:
            raise ValueError(f"the chunks of {self.size} have come as far as row {self._row} only")
        return Boundary(self.distance, self._counts.copy())

    def _check(self, window: Window, truth: NDArray[np.uint8], predicted: NDArray[np.uint8]) -> None:
        follows = (window.row, window.col) == (self._row, self._col) and self._height in (0, window.height)
        if not follows or window.clipped(self.size) != window:
            raise ValueError(f"{window} does not follow: row {self._row}, column {self._col} of {self.size} is next")
        for what, ids in (("truth", truth), ("prediction", predicted)):
            if ids.shape != (window.height, window.width) or ids.dtype != np.uint8:
                raise ValueError(f"the {what} of {window} came as {ids.dtype} of shape {ids.shape}")

    def _advance(self, window: Window) -> None:
        self._col, self._height = window.stop_col, window.height
        if self._col == self.size.width:
            self._row, self._col, self._height = window.stop_row, 0, 0


def boundary(truth: NDArray[np.uint8], predicted: NDArray[np.uint8], distance: int) -> Boundary:
    """Boundary counts of two whole maps: class ids, (rows, cols), uint8, 255 where there is none.

    >>> square = np.pad(np.zeros((6, 6), np.uint8), 2, constant_values=1)
    >>> [round(float(iu), 3) for iu in boundary(square, np.roll(square, 1, axis=1), 1).restricted((0, 1)).iu]
    [0.333, 0.714]
    """
    size = Size(*truth.shape)
    sweep = BoundarySweep(size, distance)
    sweep.push(Window(0, 0, size.height, size.width), truth, predicted)
    return sweep.result()


def _nothing(rows: int, cols: int) -> NDArray[np.uint8]:
    """A part of both maps without any class."""
    return np.full((2, rows, cols), NODATA, np.uint8)


def _count(maps: NDArray[np.uint8], distance: int) -> NDArray[np.int64]:
    """Boundary pixels of truth and prediction, (2, rows, cols), that have `distance` pixels around them: (3, 255)."""
    truth, predicted = maps[:, distance:-distance, distance:-distance]
    in_truth, in_predicted = _near_contour(maps, distance)
    in_both = in_truth & in_predicted & (truth == predicted)
    chosen = (truth[in_both], truth[in_truth], predicted[in_predicted])
    return np.stack([np.bincount(ids, minlength=NODATA + 1)[:NODATA] for ids in chosen]).astype(np.int64)


def _near_contour(maps: NDArray[np.uint8], distance: int) -> NDArray[np.bool_]:
    """True where the square of side 2 * distance + 1 around a pixel is not all one id; `distance` smaller all round."""
    side, smallest, largest = 2 * distance + 1, maps, maps
    for axis in (1, 2):
        smallest, largest = _slide(smallest, side, axis, np.minimum), _slide(largest, side, axis, np.maximum)
    return np.asarray(smallest != largest)


def _slide(values: NDArray[np.uint8], side: int, axis: int, pick: np.ufunc) -> NDArray[np.uint8]:
    """`pick` (minimum or maximum) over every `side` neighbours along an axis: windows are doubled until they fit."""
    span = 1
    while span < side:
        step = min(span, side - span)
        behind, ahead = [slice(None)] * values.ndim, [slice(None)] * values.ndim
        behind[axis], ahead[axis] = slice(-step), slice(step, None)
        values = pick(values[tuple(behind)], values[tuple(ahead)])
        span += step
    return values
