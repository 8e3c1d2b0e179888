"""Pixels of a lane from top to bottom, read one slab ahead of who uses them."""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from fcn_batch.pipeline.core.geometry import Window, round_up
from fcn_batch.pipeline.core.source import Pixels, RasterInfo, RasterSource

_LEAST_ROWS = 256
_MOST_ROWS = 1024


@dataclass(frozen=True, slots=True)
class _Slab:
    """Rows that were read at once."""

    window: Window
    pixels: Pixels


class RowReader:
    """Rows of the part `area` of a raster. While some are used, the next ones are read in a thread.

    Slabs begin at multiples of the file's own block height, so that every block of the file is decoded once.
    """

    def __init__(self, source: RasterSource, bands: tuple[int, ...], area: Window) -> None:
        self._source, self._bands, self._area = source, bands, area
        self._height = slab_rows(source.info)
        self._slabs: deque[_Slab] = deque()
        self._next_row = area.row
        self._ahead: Future[_Slab] | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="reading")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._thread.shutdown(cancel_futures=True)

    def rows(self, start: int, stop: int) -> Pixels:
        """Pixels of the rows `start` to `stop` (not included), at least one; InputError when they cannot be read."""
        self._read_until(start, stop)
        parts = list(self._parts(start, stop))
        if len(parts) == 1:
            return parts[0]
        values = np.concatenate([part.values for part in parts], axis=1)
        return Pixels(values, np.concatenate([part.valid for part in parts]))

    def valid(self, start: int, stop: int) -> NDArray[np.bool_]:
        """Which pixels of rows that were read already, and not released since, have data."""
        return np.concatenate([part.valid for part in self._parts(start, stop)])

    def release(self, row: int) -> None:
        """No row before `row` will be asked for again."""
        while self._slabs and self._slabs[0].window.stop_row <= row:
            self._slabs.popleft()

    def _read_until(self, start: int, stop: int) -> None:
        if not self._slabs and self._ahead is None:
            self._next_row = max(self._next_row, start)
        while self._next_row < stop:
            slab = (self._ahead or self._thread.submit(self._read, self._next_row)).result()
            self._slabs.append(slab)
            self._next_row = slab.window.stop_row
            more = self._next_row < self._area.stop_row
            self._ahead = self._thread.submit(self._read, self._next_row) if more else None

    def _parts(self, start: int, stop: int) -> Iterator[Pixels]:
        for slab in self._slabs:
            first, end = max(start, slab.window.row), min(stop, slab.window.stop_row)
            if first < end:
                rows = slice(first - slab.window.row, end - slab.window.row)
                yield Pixels(slab.pixels.values[:, rows], slab.pixels.valid[rows])

    def _read(self, row: int) -> _Slab:
        stop = min((row // self._height + 1) * self._height, self._area.stop_row)
        window = Window(row, self._area.col, stop - row, self._area.width)
        return _Slab(window, self._source.read(window, self._bands))


def slab_rows(info: RasterInfo) -> int:
    """Rows to read at once: whole storage blocks, a few hundred rows."""
    height = info.storage_block[0]
    return round_up(_LEAST_ROWS, height) if height <= _MOST_ROWS else _LEAST_ROWS
