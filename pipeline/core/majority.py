"""A class map after a majority filter: each pixel gets the most frequent class of the square around it.

Counts are exact and read with their own halo, so a pixel does not depend on the window it is read in. Used together
with a clip, the filter comes first and the clip last: what the clip leaves out still votes, as its edge is no edge of
the ground.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fcn_batch.pipeline.core.classes import NODATA
from fcn_batch.pipeline.core.errors import OptionError
from fcn_batch.pipeline.core.geometry import Window
from fcn_batch.pipeline.core.maps import ClassMap, DerivedMap, Ids

_PATCH = 512
"""Rows and columns that are filtered at once: few classes meet in one, and their counts stay in the cache."""


class Majority(DerivedMap):
    """A class map whose pixels are the most frequent class of the `side` x `side` pixels around them.

    Beyond the map's edge there is nothing, and pixels without data do not vote; they stay without data. Of several
    classes that are as frequent, a pixel's own wins (a tie moves no border), else the smallest id.
    """

    def __init__(self, source: ClassMap, side: int) -> None:
        """Filter `source`; OptionError unless `side` is odd and from 3 to 999."""
        if side < 3 or side % 2 == 0 or side > 999:
            raise OptionError(
                "option-value",
                "--{option} {value}: give an odd number of pixels from 3 to 999",
                option="majority",
                value=side,
            )
        super().__init__(source)
        self._halo = side // 2

    def read(self, window: Window) -> Ids:
        """Class ids of a window: (rows, cols), uint8, 255 where there is none. Errors are those of the source."""
        around = window.padded(self._halo)
        inside = around.clipped(self.size)
        ids = np.full((around.height, around.width), NODATA, np.uint8)
        ids[inside.slices(around)] = self.source.read(inside)
        result = np.empty((window.height, window.width), np.uint8)
        for row in range(0, window.height, _PATCH):
            for col in range(0, window.width, _PATCH):
                patch = result[row : row + _PATCH, col : col + _PATCH]
                rows, cols = (length + 2 * self._halo for length in patch.shape)
                patch[:] = _filtered(ids[row : row + rows, col : col + cols], self._halo)
        return result


def _filtered(ids: Ids, halo: int) -> Ids:
    """Filter the pixels of `ids` that have a whole halo around them."""
    inner = ids[halo : ids.shape[0] - halo, halo : ids.shape[1] - halo]
    present = [class_id for class_id in np.unique(ids) if class_id != NODATA]
    if len(present) < 2:  # each pixel is of the one class or without data
        return inner
    side = 2 * halo + 1
    # sums wrap around, differences of sums do not: a count is at most side²
    dtype: type[np.unsignedinteger[Any]] = np.uint16 if side**2 < 2**16 else np.uint32
    most, own = np.zeros(inner.shape, dtype), np.zeros(inner.shape, dtype)
    winner = np.full(inner.shape, NODATA, np.uint8)
    for class_id in present:  # from the smallest id: a later one must be more frequent
        count = _box_sums(_box_sums(ids == class_id, side, dtype).T, side, dtype).T
        better = count > most
        most[better] = count[better]
        winner[better] = class_id
        here = inner == class_id
        own[here] = count[here]
    return np.where((own == most) | (inner == NODATA), inner, winner)


def _box_sums(
    values: NDArray[Any], side: int, dtype: type[np.unsignedinteger[Any]]
) -> NDArray[np.unsignedinteger[Any]]:
    """Return sums of `side` rows from each row on, modulo what `dtype` holds.

    >>> _box_sums(np.ones((5, 1), np.bool_), 3, np.uint16)[:, 0].tolist()
    [3, 3, 3]
    """
    sums = np.zeros((values.shape[0] + 1, values.shape[1]), dtype)
    np.cumsum(values, axis=0, dtype=dtype, out=sums[1:])
    return sums[side:] - sums[:-side]
