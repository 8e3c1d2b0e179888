"""Opening finished class maps, and going through them chunk by chunk."""

from collections.abc import Iterator
from pathlib import Path

from fcn_batch.pipeline.core.geometry import Size, Window, round_up
from fcn_batch.pipeline.core.maps import ClassMap
from fcn_batch.pipeline.raster.mapfile import MapFile
from fcn_batch.pipeline.store.finished import FinishedMap

_SIDE = 2048
"""Rows and columns of a chunk, where the storage blocks let us choose."""
_LARGEST_CHUNK = 2**24
"""Pixels of a chunk, however large the storage blocks: labels take 4 bytes each."""


def open_map(path: Path) -> ClassMap:
    """The class map at `path`: a zarr store of ours, or a raster of one band. InputError when it is neither."""
    return FinishedMap(path) if path.is_dir() else MapFile(path)


def chunk_windows(size: Size, block: tuple[int, int]) -> Iterator[Window]:
    """Windows of whole storage blocks (rows, cols), about _SIDE x _SIDE pixels, row by row.

    >>> [w.height for w in chunk_windows(Size(5000, 4000), (1, 4000))]
    [1048, 1048, 1048, 1048, 808]
    >>> len(list(chunk_windows(Size(5000, 4000), (512, 512))))
    6
    """
    width = min(size.width, round_up(_SIDE, block[1]))
    height = max(block[0], _SIDE**2 // width // block[0] * block[0])
    height = max(1, min(height, size.height, _LARGEST_CHUNK // width))
    for row in range(0, size.height, height):
        for col in range(0, size.width, width):
            yield Window(row, col, min(height, size.height - row), min(width, size.width - col))


def cache_mb(block: tuple[int, int]) -> int:
    """A size of GDAL's cache in which a storage block of the map stays while parts of it are read."""
    return 256 + 4 * block[0] * block[1] // 2**20  # ids have up to 4 bytes
