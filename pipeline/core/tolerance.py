"""Inputs that cannot be read everywhere: stop, retry first, or leave a hole and report it."""

import re
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fcn_batch.pipeline.core.errors import DecodingError, InputError, OptionError
from fcn_batch.pipeline.core.geometry import Size, Window
from fcn_batch.pipeline.core.source import Pixels, RasterInfo, RasterSource
from fcn_batch.pipeline.core.validity import UNREADABLE

MAX_RETRIES = 20
"""Most tries after the first: with the longest waits between them, eight minutes."""
_USUAL_RETRIES = 3
_LONGEST_WAIT = 30.0


@dataclass(frozen=True, slots=True)
class OnError:
    """The policy for parts of an input that cannot be read."""

    retries: int = 0
    """How often to try again, with longer and longer waits: for files on a network."""
    mask: bool = False
    """True to go on without data there, False to stop."""

    def __post_init__(self) -> None:
        if not 0 <= self.retries <= MAX_RETRIES:
            raise ValueError(f"retries go from 0 to {MAX_RETRIES}, got {self.retries}")

    @classmethod
    def parse(cls, text: str) -> "OnError":
        """The policy that `text` names: `retry`, `retry:N`, and `fail` or `mask`, divided by a comma.

        OptionError for anything else.

        >>> OnError.parse("retry:5,mask")
        OnError(retries=5, mask=True)
        >>> str(OnError.parse("retry")), str(OnError())
        ('retry:3', 'fail')
        """
        words = text.split(",")
        tries = [word for word in words if re.fullmatch(r"retry(:\d{1,2})?", word, re.ASCII)]
        ends = [word for word in words if word in {"fail", "mask"}]
        retries = [int(word.partition(":")[2] or _USUAL_RETRIES) for word in tries]
        if len(tries) > 1 or len(ends) > 1 or len(tries) + len(ends) < len(words):
            raise OptionError(
                "option-value", "--on-error {value!a}: give fail, mask, retry, retry:N or retry:N,mask", value=text
            )
        if retries and not 1 <= retries[0] <= MAX_RETRIES:
            raise OptionError(
                "option-value",
                "--on-error {value!a}: N counts from 1 to {most}; give retry:{usual}",
                value=text,
                most=MAX_RETRIES,
                usual=_USUAL_RETRIES,
            )
        return cls(retries[0] if retries else 0, ends == ["mask"])

    def __str__(self) -> str:
        words = [f"retry:{self.retries}"] * (self.retries > 0) + ["mask"] * self.mask
        return ",".join(words) or "fail"

    def waits(self) -> Iterator[float]:
        """Seconds to wait before each new try.

        >>> list(OnError(retries=7).waits())
        [1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]
        """
        for k in range(self.retries):
            yield min(2.0**k, _LONGEST_WAIT)


FAIL = OnError()
"""The default."""


@dataclass(frozen=True, slots=True)
class StorageGrid:
    """The storage blocks of a raster: what its file decodes at once. Windows of blocks count in blocks.

    A window of pixels, and the 2x3 blocks that it touches::

        +------+------+------+----
        |    ..|......|..    |
        |    ..|......|..    |
        +------+------+------+----
        |    ..|......|..    |
        |      |      |      |

    >>> grid = StorageGrid(Size(100, 100), (16, 32))
    >>> grid.touched(Window(5, 20, 20, 50))
    Window(row=0, col=0, height=2, width=3)
    >>> grid.pixels(Window(6, 3, 1, 1))
    Window(row=96, col=96, height=4, width=4)
    """

    size: Size
    """The raster."""
    block: tuple[int, int]
    """Rows and columns of a storage block."""

    def __post_init__(self) -> None:
        if min(self.block) < 1:
            raise ValueError(f"a storage block needs at least 1x1 pixels, got {self.block}")

    def touched(self, window: Window) -> Window:
        """The blocks that hold the pixels of `window`."""
        rows, cols = self.block
        row, col = window.row // rows, window.col // cols
        return Window(row, col, (window.stop_row - 1) // rows + 1 - row, (window.stop_col - 1) // cols + 1 - col)

    def pixels(self, blocks: Window) -> Window:
        """The pixels of `blocks`, as far as the raster goes."""
        rows, cols = self.block
        whole = Window(blocks.row * rows, blocks.col * cols, blocks.height * rows, blocks.width * cols)
        return whole.clipped(self.size)


def halves(window: Window) -> tuple[Window, ...]:
    """Both halves of a window, cut across its longer side; none of what cannot be cut.

    >>> halves(Window(4, 0, 3, 2))
    (Window(row=4, col=0, height=1, width=2), Window(row=5, col=0, height=2, width=2))
    >>> halves(Window(4, 7, 1, 1))
    ()
    """
    row, col, height, width = window.row, window.col, window.height, window.width
    if height >= width and height > 1:
        up = height // 2
        return Window(row, col, up, width), Window(row + up, col, height - up, width)
    if width > 1:
        left = width // 2
        return Window(row, col, height, left), Window(row, col + left, height, width - left)
    return ()


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
            raise type(error)(
                error.code, "{problem}, or give --on-error mask", **{**error.fields, "problem": error}
            ) from error
        raise error

    def _by_pieces(self, window: Window, bands: tuple[int, ...], pieces: tuple[Window, ...]) -> Pixels:
        """All that can be read of `pieces` of the blocks that `window` touches; the rest is remembered and masked."""
        pixels = Pixels.blank(len(bands), window, self.info.dtype, UNREADABLE)
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
                    to.paste(found, part, window)
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
