"""Halving class maps: a pixel of the next level of a pyramid takes the class that most of its four pixels have.

    +---+---+---+---+
    | 1 | 2 | 3 |   |           +---+---+
    +---+---+---+---+           | 2 | 3 |     1 2 / 2 3: two of class 2
    | 2 | 3 |   |   |           +---+---+     3 . / . .: what has no data does not count
    +---+---+---+---+     ->    | 5 |   |     5 4 / 4 5: as many of each; 5 comes first in reading order
    | 5 | 4 |   |   |           +---+---+     . . / . .: no data
    +---+---+---+---+           | 6 | 7 |     6 6 and 7 .: the map ends in an odd row
    | 4 | 5 |   |   |           +---+---+
    +---+---+---+---+
    | 6 | 6 | 7 |   |
    +---+---+---+---+

Each level is made of the one before it, so a pixel of the third is the most frequent of four most frequent classes.
"""

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from fcn_batch.pipeline.core.classes import NODATA
from fcn_batch.pipeline.core.conventions import Level
from fcn_batch.pipeline.core.geometry import Size, Window
from fcn_batch.pipeline.core.georeference import GeoReference
from fcn_batch.pipeline.core.tiling import BlockGrid

LONGEST = 512
"""No further level is made once the longer side is not above this."""
PIECE = 2048
"""Rows and columns of the level being made that are worked out at once: memory does not grow with a chunk's size."""

Ids = NDArray[np.uint8]
Read = Callable[[Window], Ids]


def halve(ids: Ids) -> Ids:
    """Class ids of half the rows and columns, rounded up: (rows, cols) -> (rows / 2, cols / 2), uint8.

    >>> halve(np.array([[1, 2, 3, 255], [2, 3, 255, 255], [5, 4, 255, 255], [4, 5, 255, 255], [6, 6, 7, 255]], "uint8"))
    array([[  2,   3],
           [  5, 255],
           [  6,   7]], dtype=uint8)
    """
    height, width = ids.shape
    if height % 2 or width % 2:
        ids = np.pad(ids, ((0, height % 2), (0, width % 2)), constant_values=NODATA)
    # of each cell, in reading order:  a b
    #                                  c d
    a, b, c, d = ids[0::2, 0::2], ids[0::2, 1::2], ids[1::2, 0::2], ids[1::2, 1::2]
    most = _first(a, b, c, d)
    # A class wins over the first one by a pair that begins earlier than any other pair; three or four of a class are
    # pairs too. So the last word is that of the earliest pair.
    for class_, twins in ((c, (d,)), (b, (c, d)), (a, (b, c, d))):
        paired = np.zeros(most.shape, dtype=np.bool_)
        for twin in twins:
            paired |= class_ == twin
        paired &= class_ != NODATA
        np.copyto(most, class_, where=paired)
    return most


def halved(read: Read, finer: Size, window: Window) -> Ids:
    """A window of the next level, made by `read`ing the level before it, of size `finer`, piece by piece."""
    made = np.empty((window.height, window.width), dtype=np.uint8)
    grid = BlockGrid(Size(window.height, window.width), PIECE, PIECE)
    for index in range(len(grid)):
        piece = grid[index]
        row, col = 2 * (window.row + piece.row), 2 * (window.col + piece.col)
        source = Window(row, col, 2 * piece.height, 2 * piece.width).clipped(finer)
        made[piece.slices()] = halve(read(source))
    return made


def levels_of(size: Size, reference: GeoReference, longest: int = LONGEST) -> list[Level]:
    """The levels of a map's pyramid, "0" being the map itself, until the longer side is at most `longest`.

    Corner (0, 0) stays where it is. The last cells of an odd side stick out, so pixels are twice as large exactly.

    >>> nowhere = GeoReference(None, (1.0, 0.0, 0.0, 0.0, 1.0, 0.0))
    >>> for level in levels_of(Size(1025, 600), nowhere):
    ...     print(level.name, level.factor, level.size)
    0 1 Size(height=1025, width=600)
    1 2 Size(height=513, width=300)
    2 4 Size(height=257, width=150)
    """
    return list(_levels(size, reference, longest))


def _levels(size: Size, reference: GeoReference, longest: int) -> Iterator[Level]:
    a, b, c, d, e, f = reference.transform
    factor, number = 1, 0
    while True:
        placed = GeoReference(reference.crs_wkt, (a * factor, b * factor, c, d * factor, e * factor, f))
        yield Level(str(number), factor, size, placed)
        if max(size.height, size.width) <= longest:
            return
        size = Size(-(-size.height // 2), -(-size.width // 2))
        factor, number = 2 * factor, number + 1


def _first(*ids: Ids) -> Ids:
    """Of each cell the first that is not no data."""
    found: Ids = np.full(ids[0].shape, NODATA, dtype=np.uint8)
    for values in reversed(ids):
        np.copyto(found, values, where=values != NODATA)
    return found
