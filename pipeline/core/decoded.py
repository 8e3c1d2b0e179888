"""Rows of tall chunks that are kept decoded while windows of fewer rows are read from them, one after the other.

Lanes are read in slabs of some hundred rows. GDAL keeps the blocks that it decoded; zarr does not, and would decode a
chunk of 4096 rows 16 times.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fcn_batch.pipeline.core.geometry import Size, Window

_LOW = 1024
"""Rows of chunks that slabs are made as high as."""
_MOST_BYTES = 2**28
"""Of what is kept, and of one row of chunks that is kept."""

Read = Callable[[Window, tuple[int, ...]], NDArray[Any]]
"""Gives the values of bands in a window, (bands, rows, cols)."""


class Decoded:
    """Reads through `read`, whole rows of chunks at once where these are tall; for many threads."""

    def __init__(self, read: Read, size: Size, rows: int, itemsize: int) -> None:
        self._read, self._size, self._rows, self._itemsize = read, size, rows, itemsize
        self._lock = threading.Lock()
        self._kept: OrderedDict[tuple[Window, tuple[int, ...]], NDArray[Any]] = OrderedDict()

    def values(self, window: Window, bands: tuple[int, ...]) -> NDArray[Any]:
        """(bands, rows, cols); the errors of `read`."""
        strip_bytes = self._rows * window.width * len(bands) * self._itemsize
        if self._rows <= _LOW or strip_bytes > _MOST_BYTES:
            return self._read(window, bands)
        parts = [self._part(top, window, bands) for top in range(*self._tops(window))]
        return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)

    def _tops(self, window: Window) -> tuple[int, int, int]:
        return window.row // self._rows * self._rows, window.stop_row, self._rows

    def _part(self, top: int, window: Window, bands: tuple[int, ...]) -> NDArray[Any]:
        """What of a window lies in the row of chunks from row `top` on."""
        strip = Window(top, window.col, self._rows, window.width).clipped(self._size)
        part = strip.intersection(window)
        if part == strip:
            return self._read(strip, bands)
        rows, _ = part.slices(strip)
        return self._strip(strip, bands)[:, rows].copy()

    def _strip(self, strip: Window, bands: tuple[int, ...]) -> NDArray[Any]:
        with self._lock:
            if (strip, bands) in self._kept:
                self._kept.move_to_end((strip, bands))
                return self._kept[strip, bands]
        values = self._read(strip, bands)
        with self._lock:
            self._kept[strip, bands] = values
            while sum(one.nbytes for one in self._kept.values()) > _MOST_BYTES:
                self._kept.popitem(last=False)
        return values
