"""What to do where an input cannot be read: stop, try again first, or leave a hole that is told of."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from fcn_batch.pipeline.core.errors import OptionError
from fcn_batch.pipeline.core.geometry import Size, Window

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
            raise OptionError(f"--on-error {text!a}: give fail, mask, retry, retry:N or retry:N,mask")
        if retries and not 1 <= retries[0] <= MAX_RETRIES:
            raise OptionError(f"--on-error {text!a}: N counts from 1 to {MAX_RETRIES}; give retry:{_USUAL_RETRIES}")
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
"""What is done where nobody says what to do."""


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
