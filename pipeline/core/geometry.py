"""Pixel rectangles: immutable, checked at birth, row before column everywhere."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Size:
    """Height and width of a raster, in pixels."""

    height: int
    width: int

    def __post_init__(self) -> None:
        if self.height < 1 or self.width < 1:
            raise ValueError(f"a size needs at least 1x1 pixels, got {self.height}x{self.width}")

    @property
    def pixels(self) -> int:
        """Number of pixels."""
        return self.height * self.width


@dataclass(frozen=True, slots=True)
class Window:
    """A rectangle of pixels: `height` rows from `row` on, `width` columns from `col` on."""

    row: int
    """First row."""
    col: int
    """First column."""
    height: int
    """Number of rows."""
    width: int
    """Number of columns."""

    def __post_init__(self) -> None:
        if self.height < 1 or self.width < 1:
            raise ValueError(f"a window needs at least 1x1 pixels, got {self}")

    @property
    def stop_row(self) -> int:
        """The row after the last one."""
        return self.row + self.height

    @property
    def stop_col(self) -> int:
        """The column after the last one."""
        return self.col + self.width

    @property
    def pixels(self) -> int:
        """Number of pixels."""
        return self.height * self.width

    def padded(self, margin: int) -> "Window":
        """This window with `margin` more pixels on every side.

        >>> Window(10, 20, 5, 6).padded(2)
        Window(row=8, col=18, height=9, width=10)
        """
        return Window(self.row - margin, self.col - margin, self.height + 2 * margin, self.width + 2 * margin)

    def clipped(self, size: Size) -> "Window":
        """The part of this window inside a raster of `size`.

        >>> Window(-3, 5, 10, 10).clipped(Size(100, 8))
        Window(row=0, col=5, height=7, width=3)
        """
        return self.intersection(Window(0, 0, size.height, size.width))

    def intersection(self, other: "Window") -> "Window":
        """The pixels that both windows hold; ValueError when there are none."""
        row, col = max(self.row, other.row), max(self.col, other.col)
        height = min(self.stop_row, other.stop_row) - row
        width = min(self.stop_col, other.stop_col) - col
        if height < 1 or width < 1:
            raise ValueError(f"{self} and {other} do not touch")
        return Window(row, col, height, width)

    def aligned(self, step: int) -> "Window":
        """This window grown at its top and left until it starts at multiples of `step`.

        >>> Window(10, 64, 5, 6).aligned(32)
        Window(row=0, col=64, height=15, width=6)
        """
        up, left = self.row % step, self.col % step
        return Window(self.row - up, self.col - left, self.height + up, self.width + left)

    def slices(self, origin: "Window | None" = None) -> tuple[slice, slice]:
        """Row and column slices of this window in an array that starts at `origin` (default: pixel 0, 0).

        >>> Window(8, 6, 2, 3).slices(Window(5, 5, 10, 10))
        (slice(3, 5, None), slice(1, 4, None))
        """
        row, col = (origin.row, origin.col) if origin else (0, 0)
        return slice(self.row - row, self.stop_row - row), slice(self.col - col, self.stop_col - col)


def round_up(value: int, step: int) -> int:
    """The smallest multiple of `step` that is not below `value`.

    >>> [round_up(v, 32) for v in (0, 1, 32, 218)]
    [0, 32, 32, 224]
    """
    return -(-value // step) * step
