"""A class map after a majority filter: each pixel gets the most frequent class of the square around it.

Counts are exact and read with their own halo, so a pixel does not depend on the window it is read in. Used together
with a clip, the filter comes first and the clip last: what the clip leaves out still votes, as its edge is no edge of
the ground.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fcn_batch.pipeline.core.classes import NODATA, Legend
from fcn_batch.pipeline.core.errors import OptionError
from fcn_batch.pipeline.core.geometry import Size, Window
from fcn_batch.pipeline.core.georeference import GeoReference
from fcn_batch.pipeline.core.maps import ClassMap, Ids

LARGEST_SIDE = 999
"""Of the square, in pixels."""
_PATCH = 512
"""Rows and columns that are filtered at once: few classes meet in one, and their counts stay in the cache."""


class Majority:
    """A class map whose pixels are the most frequent class of the `side` x `side` pixels around them.

    Beyond the map's edge there is nothing, and pixels without data do not vote; they stay without data. Of several
    classes that are as frequent, a pixel's own wins, else the smallest id.
    """

    def __init__(self, source: ClassMap, side: int) -> None:
        """Filter `source`; OptionError unless `side` is odd and from 3 to LARGEST_SIDE."""
        if side < 3 or side % 2 == 0 or side > LARGEST_SIDE:
            raise OptionError(f"--majority {side}: give an odd number of pixels from 3 to {LARGEST_SIDE}")
        self._source = source
        self._halo = side // 2

    @property
    def size(self) -> Size:
        """Height and width."""
        return self._source.size

    @property
    def georeference(self) -> GeoReference:
        """Where it lies."""
        return self._source.georeference

    @property
    def block(self) -> tuple[int, int]:
        """Rows and columns of a storage block."""
        return self._source.block

    @property
    def legend(self) -> Legend | None:
        """Its classes, if it names them."""
        return self._source.legend

    def read(self, window: Window) -> Ids:
        """Class ids of a window: (rows, cols), uint8, 255 where there is none. Errors are those of the source."""
        around = window.padded(self._halo).clipped(self.size)
        ids = self._source.read(around)
        result = np.empty((window.height, window.width), np.uint8)
        for row in range(window.row, window.stop_row, _PATCH):
            for col in range(window.col, window.stop_col, _PATCH):
                patch = Window(row, col, _PATCH, _PATCH).intersection(window)
                seen = patch.padded(self._halo).clipped(self.size)
                result[patch.slices(window)] = _filtered(ids[seen.slices(around)], patch, seen, self._halo)
        return result


def _filtered(ids: Ids, patch: Window, seen: Window, halo: int) -> Ids:
    """The pixels of `patch` after the filter; `ids` are those of `seen`: the patch with its halo, inside the map."""
    inner = ids[patch.slices(seen)]
    present = [class_id for class_id in np.unique(ids) if class_id != NODATA]
    if len(present) < 2:  # each pixel is of the one class or without data
        return inner
    rows = _bounds(patch.row - seen.row, patch.height, seen.height, halo)
    cols = _bounds(patch.col - seen.col, patch.width, seen.width, halo)
    # sums wrap around, differences of sums do not: a count is at most (2 halo + 1)²
    dtype: type[np.unsignedinteger[Any]] = np.uint16 if (2 * halo + 1) ** 2 < 2**16 else np.uint32
    most = np.zeros(inner.shape, dtype)
    own = np.zeros(inner.shape, dtype)
    winner = np.full(inner.shape, NODATA, np.uint8)
    for class_id in present:  # from the smallest id: a later one must be more frequent
        count = _box_sums(_box_sums(ids == class_id, rows, dtype).T, cols, dtype).T
        better = count > most
        most[better] = count[better]
        winner[better] = class_id
        here = inner == class_id
        own[here] = count[here]
    return np.where((own == most) | (inner == NODATA), inner, winner)


def _bounds(first: int, count: int, length: int, halo: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Where the span around each of `count` positions from `first` on begins, and where it has ended.

    A halo of 1 along a line of 5, for positions 0 to 2:

        position   0 1 2 3 4
        around 0   x x            begins at 0, has ended at 2
        around 1   x x x          begins at 0, has ended at 3
        around 2     x x x        begins at 1, has ended at 4

    >>> [list(map(int, bounds)) for bounds in _bounds(0, 3, 5, 1)]
    [[0, 0, 1], [2, 3, 4]]
    """
    at = np.arange(first, first + count)
    return np.maximum(at - halo, 0), np.minimum(at + halo + 1, length)


def _box_sums(
    values: NDArray[Any], bounds: tuple[NDArray[np.intp], NDArray[np.intp]], dtype: type[np.unsignedinteger[Any]]
) -> NDArray[np.unsignedinteger[Any]]:
    """Sums of the rows between bounds, shape (bounds, cols), modulo what `dtype` holds.

    >>> _box_sums(np.ones((5, 1), np.bool_), _bounds(0, 3, 5, 1), np.uint16)[:, 0].tolist()
    [2, 3, 3]
    """
    sums = np.zeros((values.shape[0] + 1, values.shape[1]), dtype)
    np.cumsum(values, axis=0, dtype=dtype, out=sums[1:])
    return sums[bounds[1]] - sums[bounds[0]]
