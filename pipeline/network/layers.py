"""The layers that can be run a few rows at a time: which rows they need, which they can give, and how to compute.

A map of features is fed from top to bottom. Every layer answers three questions about *rows* (columns are always
whole), here for a 3x3 convolution with padding 1::

    rows in       0 1 2 3 4 5 6 7 | 8 9 …      8 are here, more will come
    ready(8)      0 1 2 3 4 5 6                 row 7 of the output still needs row 8
    needs(7, 9)               6 7   8 9         rows 6..9: row 6 and 7 are kept for it
    total(10)     10 rows out when the map ends after 10: only then is there padding at the bottom

`needs` may leave the map: at -1 there is the padding at the top, beyond the last row that at the bottom.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Self

import torch
from torch.nn import functional

from fcn_batch.pipeline.core.reach import Reach
from fcn_batch.pipeline.network.functions import Function, Plain


class Layer(ABC):
    """A layer whose output rows are its input rows: the base of all others."""

    def total(self, rows: int) -> int:
        """Rows of the whole output for `rows` rows of the whole input."""
        return rows

    def ready(self, rows: int) -> int:
        """Rows of the output that the first `rows` rows of the input decide when more are to come."""
        return rows

    def needs(self, start: int, stop: int) -> tuple[int, int]:
        """Rows of the input that the output's rows `start` to `stop` (not included) look at."""
        return start, stop

    def reach(self, reaches: list[Reach]) -> Reach:
        """What the output looks at, given what the inputs look at."""
        joined = reaches[0]
        for other in reaches[1:]:
            joined = joined.join(other)
        return joined

    def pad(self, rows: torch.Tensor, top: int, bottom: int) -> torch.Tensor:
        """`rows` with so many more above and below the map's true edges: zeros, if not said otherwise."""
        return functional.pad(rows, (0, 0, top, bottom)) if top or bottom else rows

    @abstractmethod
    def compute(self, inputs: list[torch.Tensor], start: int, stop: int) -> torch.Tensor:
        """Output rows `start` to `stop` of the inputs' rows ``needs(start, stop)``: (1, channels, rows, cols)."""

    def bare(self) -> Self:
        """This layer without its function, and so without weights: it can only count."""
        layer: Any = self
        bare: Self = replace(layer, function=Plain(_nothing)) if hasattr(self, "function") else self
        return bare

    def prepared(self, device: torch.device, dtype: torch.dtype, shape: Sequence[int]) -> Self:
        """This layer with its weights on `device` as `dtype`, laid out for inputs of `shape`."""
        function: Any = getattr(self, "function", None)
        if function is None:
            return self
        layer: Any = self
        prepared: Self = replace(layer, function=function.prepared(device, dtype, shape))
        return prepared


@dataclass(frozen=True, slots=True)
class Pointwise(Layer):
    """Any number of maps to one, row by row: activations, sums, concatenations, scaling."""

    function: Function

    def compute(self, inputs: list[torch.Tensor], start: int, stop: int) -> torch.Tensor:
        """Apply the function."""
        return self.function(inputs)


@dataclass(frozen=True, slots=True)
class Sliding(Layer):
    """What slides a window along the rows: convolutions and pools."""

    kernel: int
    """Rows from the first to the last that an output row looks at; dilation included."""
    stride: int
    padding: int
    ceil: bool
    """A last window that begins inside the map or its upper padding counts, even if it ends below."""
    fill: float
    """What stands in the padding."""
    function: Function
    """With no padding of rows of its own."""

    def total(self, rows: int) -> int:
        """Rows of the whole output for `rows` rows of the whole input."""
        beyond = rows + 2 * self.padding - self.kernel
        if not self.ceil:
            return beyond // self.stride + 1
        out = -(-beyond // self.stride) + 1
        return out - 1 if (out - 1) * self.stride >= rows + self.padding else out

    def ready(self, rows: int) -> int:
        """Rows of the output that the first `rows` rows of the input decide when more are to come."""
        return max(0, (rows + self.padding - self.kernel) // self.stride + 1)

    def needs(self, start: int, stop: int) -> tuple[int, int]:
        """Rows of the input that the output's rows `start` to `stop` (not included) look at."""
        return start * self.stride - self.padding, (stop - 1) * self.stride - self.padding + self.kernel

    def reach(self, reaches: list[Reach]) -> Reach:
        """What the output looks at, given what the input looks at."""
        return reaches[0].conv(self.kernel, stride=self.stride, padding=self.padding)

    def pad(self, rows: torch.Tensor, top: int, bottom: int) -> torch.Tensor:
        """`rows` with so many more rows of `fill` above and below."""
        return functional.pad(rows, (0, 0, top, bottom), value=self.fill) if top or bottom else rows

    def compute(self, inputs: list[torch.Tensor], start: int, stop: int) -> torch.Tensor:
        """Slide."""
        return self.function(inputs)


@dataclass(frozen=True, slots=True)
class Interpolate(Layer):
    """Upsampling by a whole factor along the rows, bilinear (not aligned at corners) or nearest.

    Output row o lies at ``(o + 0.5) / factor - 0.5`` of the input; bilinear takes the rows around it::

        input      0       1       2          factor 2
        output   0   1   2   3   4   5        1 and 2 look at rows 0 and 1, 0 at row 0 alone (the edge repeats)
    """

    factor: int
    columns: int
    """The factor along the columns."""
    mode: Literal["bilinear", "nearest"]

    def total(self, rows: int) -> int:
        """Rows of the whole output for `rows` rows of the whole input."""
        return rows * self.factor

    def ready(self, rows: int) -> int:
        """Rows of the output that the first `rows` rows of the input decide when more are to come."""
        return max(0, rows * self.factor - (self.factor // 2 if self.mode == "bilinear" else 0))

    def needs(self, start: int, stop: int) -> tuple[int, int]:
        """Rows of the input that the output's rows `start` to `stop` (not included) look at."""
        if self.mode == "nearest":
            return start // self.factor, (stop - 1) // self.factor + 1
        first = (2 * start + 1 - self.factor) // (2 * self.factor)
        last = -((self.factor - 2 * stop + 1) // (2 * self.factor))  # of row stop - 1, rounded up
        return first, last + 1

    def reach(self, reaches: list[Reach]) -> Reach:
        """What the output looks at, given what the input looks at."""
        return reaches[0].upsample(self.factor) if self.mode == "bilinear" else reaches[0].repeat(self.factor)

    def pad(self, rows: torch.Tensor, top: int, bottom: int) -> torch.Tensor:
        """`rows` with its edge rows repeated, as interpolation does beyond the map."""
        return _repeat_edges(rows, top, bottom)

    def compute(self, inputs: list[torch.Tensor], start: int, stop: int) -> torch.Tensor:
        """Interpolate all rows that are there, then cut off what only the others looked at."""
        first = self.needs(start, stop)[0]
        factors = (float(self.factor), float(self.columns))
        corners = False if self.mode == "bilinear" else None
        wide = functional.interpolate(inputs[0], scale_factor=factors, mode=self.mode, align_corners=corners)
        return wide[:, :, start - first * self.factor : stop - first * self.factor]


@dataclass(frozen=True, slots=True)
class Transposed(Layer):
    """A transposed convolution: input row i adds to the output rows ``i * stride - padding`` … ``+ kernel - 1``."""

    kernel: int
    """Rows that one input row adds to; dilation included; at least the stride."""
    stride: int
    padding: int
    extra: int
    """Rows more at the bottom (`output_padding`)."""
    function: Function
    """With no padding of rows of its own."""

    def total(self, rows: int) -> int:
        """Rows of the whole output for `rows` rows of the whole input."""
        return (rows - 1) * self.stride - 2 * self.padding + self.kernel + self.extra

    def ready(self, rows: int) -> int:
        """Rows of the output that the first `rows` rows of the input decide when more are to come."""
        return max(0, rows * self.stride - self.padding)

    def needs(self, start: int, stop: int) -> tuple[int, int]:
        """Rows of the input that the output's rows `start` to `stop` (not included) look at."""
        first = -((self.kernel - 1 - start - self.padding) // self.stride)
        return first, (stop - 1 + self.padding) // self.stride + 1

    def reach(self, reaches: list[Reach]) -> Reach:
        """What the output looks at, given what the input looks at."""
        return reaches[0].transposed(self.kernel, stride=self.stride, padding=self.padding)

    def compute(self, inputs: list[torch.Tensor], start: int, stop: int) -> torch.Tensor:
        """Add up, then cut off the rows that others add to as well."""
        top = self.needs(start, stop)[0] * self.stride - self.padding
        return self.function(inputs)[:, :, start - top : stop - top]


@dataclass(frozen=True, slots=True)
class Pad(Layer):
    """More rows and columns at the map's true edges: zeros or another number, or its edge repeated.

    Negative numbers cut rows and columns off there instead. `ready` may then count rows that the map's end cuts off,
    because it does not know where that is; `Graph.ready` does.
    """

    top: int
    bottom: int
    left: int
    right: int
    fill: float | None
    """None: the edge is repeated."""

    def total(self, rows: int) -> int:
        """Rows of the whole output for `rows` rows of the whole input."""
        return rows + self.top + self.bottom

    def ready(self, rows: int) -> int:
        """Rows of the output that the first `rows` rows of the input decide when more are to come."""
        return max(0, rows + self.top) if rows else 0

    def needs(self, start: int, stop: int) -> tuple[int, int]:
        """Rows of the input that the output's rows `start` to `stop` (not included) look at."""
        return start - self.top, stop - self.top

    def reach(self, reaches: list[Reach]) -> Reach:
        """What the output looks at: its rows are the input's, `top` further down."""
        return reaches[0].conv(1, padding=self.top)

    def pad(self, rows: torch.Tensor, top: int, bottom: int) -> torch.Tensor:
        """`rows` with so many more above and below."""
        if self.fill is None:
            return _repeat_edges(rows, top, bottom)
        return functional.pad(rows, (0, 0, top, bottom), value=self.fill)

    def compute(self, inputs: list[torch.Tensor], start: int, stop: int) -> torch.Tensor:
        """Pad or cut the columns."""
        if self.fill is None:
            return functional.pad(inputs[0], (self.left, self.right, 0, 0), mode="replicate")
        return functional.pad(inputs[0], (self.left, self.right, 0, 0), value=self.fill)


def _repeat_edges(rows: torch.Tensor, top: int, bottom: int) -> torch.Tensor:
    return functional.pad(rows, (0, 0, top, bottom), mode="replicate") if top or bottom else rows


def _nothing(*_: torch.Tensor) -> torch.Tensor:
    raise AssertionError("a layer without weights cannot compute")
