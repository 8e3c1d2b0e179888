"""A raster some pixels of which cannot be read: tried again, then masked or refused, as the policy says."""

import threading
import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from fcn_batch.pipeline.core.errors import DecodingError, InputError
from fcn_batch.pipeline.core.geometry import Window
from fcn_batch.pipeline.core.source import Pixels, RasterInfo, RasterSource
from fcn_batch.pipeline.core.tolerance import OnError, StorageGrid, halves


class TolerantSource:
    """Reads from `source`; where it gives a DecodingError, does what `policy` says.

    With `mask`, storage blocks that cannot be read are 0 and not valid. They stay so, for all bands, as long as
    this object lives: each pass sees the same pixels, and no block is waited for twice. What is missing is in
    `unreadable`. A file that cannot be opened is an InputError under every policy. Pickles without what it found.
    """

    def __init__(self, source: RasterSource, policy: OnError, sleep: Callable[[float], None] = time.sleep) -> None:
        self._source, self._policy, self._sleep = source, policy, sleep
        self._lock = threading.Lock()
        self._bad: dict[int, set[int]] = {}  # columns of unreadable blocks in each row of blocks that has some

    def __reduce__(self) -> tuple[type["TolerantSource"], tuple[RasterSource, OnError, Callable[[float], None]]]:
        return TolerantSource, (self._source, self._policy, self._sleep)

    @property
    def info(self) -> RasterInfo:
        """As the source gives it."""
        return self._source.info

    def close(self) -> None:
        """Close the source; what was found unreadable stays so."""
        self._source.close()

    def read(self, window: Window, bands: tuple[int, ...]) -> Pixels:
        """Pixels of `window`; `bands` counts from 1.

        DecodingError, without `mask`, when some cannot be read by the last try; ValueError as the source gives it.
        """
        if not self._policy.mask or window.clipped(self.info.size) != window:
            return self._tried(window, bands)
        blocks = self._grid.touched(window)
        pieces: tuple[Window, ...] = (blocks,)
        if not self._known(blocks).any():
            try:
                return self._tried(window, bands)
            except DecodingError:
                pieces = halves(blocks)
                if not pieces:
                    self._remember([blocks])
        return self._by_pieces(window, bands, pieces)

    def unreadable(self, area: Window) -> tuple[Window, ...]:
        """The storage blocks found unreadable so far that touch `area`, sorted, as windows of pixels."""
        blocks = self._grid.touched(area.clipped(self.info.size))
        found = np.argwhere(self._known(blocks)).tolist()
        return tuple(self._grid.pixels(Window(blocks.row + row, blocks.col + col, 1, 1)) for row, col in found)

    @property
    def _grid(self) -> StorageGrid:
        return StorageGrid(self.info.size, self.info.storage_block)

    def _tried(self, window: Window, bands: tuple[int, ...]) -> Pixels:
        """Read at once, again after each wait of the policy."""
        error: InputError
        try:
            return self._source.read(window, bands)
        except DecodingError as first:
            error = first
        for wait in self._policy.waits():
            self._sleep(wait)
            try:
                return self._source.read(window, bands)
            except InputError as again:  # a server that fails may also refuse to open for a while
                error = again
        if isinstance(error, DecodingError) and not self._policy.mask:
            raise DecodingError(f"{error}, or give --on-error mask") from error
        raise error

    def _by_pieces(self, window: Window, bands: tuple[int, ...], pieces: tuple[Window, ...]) -> Pixels:
        """All that can be read of `pieces` of the blocks that `window` touches; the rest is remembered and masked."""
        shape = (window.height, window.width)
        values = np.zeros((len(bands), *shape), dtype=np.dtype(self.info.dtype))
        pixels = Pixels(values, np.zeros(shape, dtype=np.bool_))
        for wait in (0.0, *self._policy.waits()):
            if not pieces:
                break
            if wait:
                self._sleep(wait)  # once for all that failed: a file cut off has thousands of such blocks
            pieces = self._copy(window, bands, pieces, pixels)
        self._remember(pieces)
        return pixels

    def _copy(
        self, window: Window, bands: tuple[int, ...], pieces: tuple[Window, ...], to: Pixels
    ) -> tuple[Window, ...]:
        """Read pieces, and halves of pieces where that fails, into `to`; the single blocks that fail come back.

        One bad block of n costs about 2 log2(n) reads, in which each sound block is decoded about twice.
        """
        failed, todo = [], list(reversed(pieces))  # from top to bottom: some formats decode all that is above again
        while todo:
            piece = todo.pop()
            parts = halves(piece)
            if not self._known(piece).any():
                part = self._grid.pixels(piece).intersection(window)
                try:
                    found = self._source.read(part, bands)
                except DecodingError:
                    failed += [] if parts else [piece]
                else:
                    here = part.slices(window)
                    to.values[(slice(None), *here)], to.valid[here] = found.values, found.valid
                    continue
            todo += reversed(parts)
        return tuple(failed)

    def _known(self, blocks: Window) -> NDArray[np.bool_]:
        """Which of these blocks are known to be unreadable: (rows, columns of blocks)."""
        known = np.zeros((blocks.height, blocks.width), dtype=np.bool_)
        with self._lock:
            rows = range(blocks.row, blocks.stop_row)
            for row in rows if len(rows) < len(self._bad) else [row for row in self._bad if row in rows]:
                cols = [col - blocks.col for col in self._bad.get(row, ()) if blocks.col <= col < blocks.stop_col]
                known[row - blocks.row, cols] = True
        return known

    def _remember(self, blocks: tuple[Window, ...] | list[Window]) -> None:
        """These single blocks are unreadable from now on."""
        with self._lock:
            for block in blocks:
                self._bad.setdefault(block.row, set()).add(block.col)
