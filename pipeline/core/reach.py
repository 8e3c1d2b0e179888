"""What each output pixel of a network looks at, worked out from its layers.

A network whose layers have stride repeats itself every `period` input pixels. `Reach` holds, for each
cell of a feature map within one period, the first and the last input pixel it depends on::

    input    . . . . . . . . . . . .      period 4 (total stride)
    pool 2   [0 1][2 3][4 5]              2 cells a period: first = 0 2, last = 1 3
    conv 3      [-2 .. 3]                 pad 1:            first = -2 0, last = 3 5

Following the layers from the input to the scores gives the receptive field, and from it the halo: how far
beyond a core, whose edges lie on multiples of the period, the network still looks. The method is exact
interval arithmetic (all kernels are dense), so nothing is typed in; a test finds the same by following NaN.
"""

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from fcn_batch.pipeline.core.geometry import round_up


@dataclass(frozen=True, slots=True)
class Reach:
    """First and last input pixel (inclusive) of every cell in one period of a feature map."""

    period: int
    """Total stride of the network, in input pixels."""
    first: NDArray[np.int64]
    """First input pixel of cells 0, 1, … of one period."""
    last: NDArray[np.int64]
    """Last input pixel of the same cells."""

    @classmethod
    def of_input(cls, period: int) -> "Reach":
        """The input itself: pixel i looks at pixel i."""
        return cls(period, np.arange(period), np.arange(period))

    @property
    def cells(self) -> int:
        """Cells in one period."""
        return len(self.first)

    @property
    def stride(self) -> Fraction:
        """Input pixels from one cell to the next."""
        return Fraction(self.period, self.cells)

    def conv(self, kernel: int, *, stride: int = 1, padding: int = 0) -> "Reach":
        """After a convolution or a pool: cell q looks at cells q*stride - padding … + kernel - 1.

        >>> Reach.of_input(4).conv(2, stride=2).conv(3, padding=1).first.tolist()
        [-2, 0]
        """
        if self.cells % stride:
            raise ValueError(f"a layer of stride {stride} does not fit {self.cells} cells a period")
        start = np.arange(self.cells // stride) * stride - padding
        return Reach(self.period, self._at(self.first, start), self._at(self.last, start + kernel - 1))

    def upsample(self, factor: int) -> "Reach":
        """After bilinear upsampling: cell o looks at the two cells around (o + 0.5) / factor - 0.5.

        >>> up = Reach.of_input(2).upsample(2)
        >>> up.first.tolist(), up.last.tolist()
        ([-1, 0, 0, 1], [0, 1, 1, 2])
        """
        out = np.arange(self.cells * factor)
        below = (2 * out + 1 - factor) // (2 * factor)  # floor of the source position
        exact = (2 * out + 1 - factor) % (2 * factor) == 0  # falls on a cell: the other weight is zero
        return Reach(self.period, self._at(self.first, below), self._at(self.last, below + ~exact))

    def repeat(self, factor: int) -> "Reach":
        """After nearest upsampling: cell o is cell o // factor.

        >>> Reach.of_input(2).repeat(2).first.tolist()
        [0, 0, 1, 1]
        """
        return Reach(self.period, np.repeat(self.first, factor), np.repeat(self.last, factor))

    def transposed(self, kernel: int, *, stride: int, padding: int) -> "Reach":
        """After a transposed convolution: cell o looks at the cells i with i*stride <= o + padding < i*stride + kernel.

        >>> up = Reach.of_input(2).transposed(4, stride=2, padding=1)
        >>> up.first.tolist(), up.last.tolist()
        ([-1, 0, 0, 1], [0, 1, 1, 2])
        """
        out = np.arange(self.cells * stride) + padding
        first, last = -((kernel - 1 - out) // stride), out // stride
        return Reach(self.period, self._at(self.first, first), self._at(self.last, last))

    def join(self, other: "Reach") -> "Reach":
        """After an addition of two maps of the same stride."""
        if (self.period, self.cells) != (other.period, other.cells):
            raise ValueError(f"maps of stride {self.stride} and {other.stride} cannot be added")
        return Reach(self.period, np.minimum(self.first, other.first), np.maximum(self.last, other.last))

    @property
    def field(self) -> int:
        """Receptive field: input pixels (along one axis) that the widest-looking cell depends on."""
        return int((self.last - self.first).max()) + 1

    @property
    def beyond_core(self) -> int:
        """Input pixels needed beyond a core whose edges are multiples of the period, on the worse side."""
        return int(max(-self.first.min(), self.last.max() - self.period + 1, 0))

    @property
    def halo(self) -> int:
        """`beyond_core` rounded up to the period, so that a window with its halo starts on the grid."""
        return round_up(self.beyond_core, self.period)

    @property
    def phase(self) -> int:
        """Where the coarsest cells begin, of a map with a cell for each pixel: see `cells_begin`."""
        cell = np.arange(self.period)

        def top(start: int) -> int:
            """The first cell from which on none looks at what lies above `start`."""
            turns = (start - 1 - self.first) // self.period
            return int((cell + turns * self.period).max()) + 1

        def bottom(rows: int) -> int:
            """The first cell that looks at pixel -`rows` or beyond, negative."""
            turns = (self.last + rows) // self.period
            return int((turns * self.period - cell).max())

        return cells_begin(top, bottom, self.period)

    def _at(self, edge: NDArray[np.int64], index: NDArray[np.int64]) -> NDArray[np.int64]:
        """`edge` of cells beyond the first period: one period on, everything shifts by `period`."""
        turns, cell = np.divmod(index, self.cells)
        return np.asarray(edge[cell] + turns * self.period)


def cells_begin(top: Callable[[int], int], bottom: Callable[[int], int], period: int) -> int:
    """Where the coarsest cells begin, 0 to period - 1: halfway between the first and the last pixels that they look at.

    `top` and `bottom` say where scores begin and, negative, where they end when so many rows more are missing there.
    Both ends are known but for multiples of the period, so the answer is but for half of it: the one nearer to 0.
    """
    double = (steepest(top, period) - steepest(bottom, period)) % period
    return int((double if 2 * double <= period else double - period) / 2) % period


def steepest(edge: Callable[[int], int], period: int) -> int:
    """Where `edge`, which rises by `period` from 0 to `period`, jumps: the step begins at the number returned.

    >>> steepest(lambda rows: 8 if rows > 5 else 0, 8)
    5
    """
    low, high = 0, period
    at_low = edge(0)
    at_high = at_low + period
    while high - low > 1:
        middle = (low + high) // 2
        at_middle = edge(middle)
        if at_high - at_middle > at_middle - at_low:
            low, at_low = middle, at_middle
        else:
            high, at_high = middle, at_middle
    return low
