"""The layers that can be run a few rows at a time: which rows they need, which they can give, and how to compute.

A map of features is fed from top to bottom. Every layer answers three questions about *rows* (columns are always
whole), here for a 3x3 convolution with padding 1::

    rows in       0 1 2 3 4 5 6 7 | 8 9 …      8 are here, more will come
    ready(8)      0 1 2 3 4 5 6                 row 7 of the output still needs row 8
    needs(7, 9)               6 7   8 9         rows 6..9: row 6 and 7 are kept for it
    total(10)     10 rows out when the map ends after 10: only then is there padding at the bottom

`needs` may leave the map: at -1 there is the padding at the top, beyond the last row that at the bottom.

What a layer computes on whole rows, with its weights, is a `Function`. On the CPU, convolutions in float32 and bfloat16
run as one oneDNN call with bias and activation in it, on weights that are packed once: torch's own call packs them for
every strip (fc6 of VGG16 alone is 411 MB).
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Literal, Self

import torch
from torch.nn import functional

from fcn_batch.pipeline.core.reach import Reach
from fcn_batch.pipeline.network.device import multiplies_bf16


class Function(ABC):
    """Rows in, rows out: a dataclass whose tensors are its weights."""

    @abstractmethod
    def __call__(self, inputs: list[torch.Tensor]) -> torch.Tensor:
        """Compute: every tensor is (1, channels, rows, cols)."""

    def prepared(self, device: torch.device, dtype: torch.dtype, shape: Sequence[int]) -> "Function":
        """The same with its weights on `device` as `dtype`, laid out for inputs of `shape`."""
        dataclass: Any = self
        values = {field.name: getattr(self, field.name) for field in fields(dataclass)}
        moved: Function = replace(
            dataclass, **{name: v.to(device, dtype) for name, v in values.items() if isinstance(v, torch.Tensor)}
        )
        return moved


@dataclass(frozen=True, slots=True)
class Plain(Function):
    """Anything without weights."""

    function: Callable[..., torch.Tensor]

    def __call__(self, inputs: list[torch.Tensor]) -> torch.Tensor:
        return self.function(*inputs)


@dataclass(frozen=True, slots=True)
class Scale(Function):
    """A factor and a summand for each channel: batch norm in evaluation, constants."""

    factor: torch.Tensor
    """(1, channels, 1, 1), or 1 for all channels."""
    summand: torch.Tensor

    def __call__(self, inputs: list[torch.Tensor]) -> torch.Tensor:
        return torch.addcmul(self.summand, inputs[0], self.factor)


@dataclass(frozen=True, slots=True)
class Convolution(Function):
    """A convolution, perhaps with a ReLU after it. Rows are never padded here, columns by `padding`."""

    weight: torch.Tensor
    bias: torch.Tensor
    stride: tuple[int, int]
    padding: int
    """Columns on each side."""
    dilation: tuple[int, int]
    groups: int
    relu: bool = False

    def __call__(self, inputs: list[torch.Tensor]) -> torch.Tensor:
        padding = (0, self.padding)
        out = functional.conv2d(inputs[0], self.weight, self.bias, self.stride, padding, self.dilation, self.groups)
        return out.relu_() if self.relu else out

    def normalised(self, scale: Scale) -> Self:
        """This convolution with the `scale` of its output in its weights."""
        factor = scale.factor.to(torch.float64).flatten()
        weight = self.weight.to(torch.float64) * factor[:, None, None, None]
        bias = self.bias.to(torch.float64) * factor + scale.summand.to(torch.float64).flatten()
        return replace(self, weight=weight.to(self.weight.dtype), bias=bias.to(self.bias.dtype))

    def prepared(self, device: torch.device, dtype: torch.dtype, shape: Sequence[int]) -> Function:
        """The same on `device`; on the CPU packed, where oneDNN knows the precision on this processor."""
        weight, bias = self.weight.to(device, dtype), self.bias.to(device, dtype)
        known = dtype == torch.float32 or (dtype == torch.bfloat16 and multiplies_bf16())
        if device.type == "cpu" and known and torch.backends.mkldnn.is_available():
            geometry = ([0, self.padding], list(self.stride), list(self.dilation), self.groups)
            # `shape` knows no layers of padding
            least = self.dilation[1] * (weight.shape[3] - 1) + 1 - 2 * self.padding
            shape = (*shape[:3], max(shape[3], least))
            packed = torch.ops.mkldnn._reorder_convolution_weight(  # noqa: SLF001 - what torch.compile itself uses
                weight, geometry[0], geometry[1], geometry[2], geometry[3], list(shape)
            )
            return _Packed(packed, bias, geometry, "relu" if self.relu else "none")
        weight = weight.contiguous(memory_format=torch.channels_last)
        return replace(self, weight=weight, bias=bias)


@dataclass(frozen=True, slots=True)
class _Packed(Function):
    """A convolution as oneDNN likes it."""

    weight: torch.Tensor
    bias: torch.Tensor
    geometry: tuple[list[int], list[int], list[int], int]
    activation: str

    def __call__(self, inputs: list[torch.Tensor]) -> torch.Tensor:
        out: torch.Tensor = torch.ops.mkldnn._convolution_pointwise(  # noqa: SLF001 - as above
            inputs[0], self.weight, self.bias, *self.geometry, self.activation, [], ""
        )
        return out


@dataclass(frozen=True, slots=True)
class TransposedConvolution(Function):
    """A transposed convolution. Rows are never cut off here, columns by `padding`."""

    weight: torch.Tensor
    bias: torch.Tensor | None
    stride: tuple[int, int]
    padding: int
    extra: int
    """Columns more at the right (`output_padding`)."""
    dilation: tuple[int, int]
    groups: int

    def __call__(self, inputs: list[torch.Tensor]) -> torch.Tensor:
        cut, more = (0, self.padding), (0, self.extra)
        return functional.conv_transpose2d(
            inputs[0], self.weight, self.bias, self.stride, cut, more, self.groups, self.dilation
        )


class Layer(ABC):
    """A layer whose output rows are its input rows: the base of all others."""

    fill: float | None
    """What stands beyond the map's true edges; None: the edge repeated."""

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
        """`rows` with `top` and `bottom` more of `fill` beyond the map's true edges."""
        if not (top or bottom):
            return rows
        if self.fill is None:
            return functional.pad(rows, (0, 0, top, bottom), mode="replicate")
        return functional.pad(rows, (0, 0, top, bottom), value=self.fill)

    @abstractmethod
    def compute(self, inputs: list[torch.Tensor], start: int, stop: int) -> torch.Tensor:
        """Output rows `start` to `stop` of the inputs' rows ``needs(start, stop)``: (1, channels, rows, cols)."""

    def bare(self) -> Self:
        """This layer without its function, and so without weights: it can only count."""
        return self._with(lambda _: Plain(_nothing))

    def prepared(self, device: torch.device, dtype: torch.dtype, shape: Sequence[int]) -> Self:
        """This layer with its weights on `device` as `dtype`, laid out for inputs of `shape`."""
        return self._with(lambda function: function.prepared(device, dtype, shape))

    def _with(self, change: Callable[[Function], Function]) -> Self:
        layer: Any = self
        changed: Self = replace(layer, function=change(layer.function)) if hasattr(self, "function") else self
        return changed


@dataclass(frozen=True, slots=True)
class Pointwise(Layer):
    """Any number of maps to one, row by row: activations, sums, concatenations, scaling."""

    function: Function
    fill: ClassVar[float | None] = 0.0  # type: ignore[misc]  # as above

    def compute(self, inputs: list[torch.Tensor], start: int, stop: int) -> torch.Tensor:
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
    function: Function
    """With no padding of rows of its own."""

    def total(self, rows: int) -> int:
        beyond = rows + 2 * self.padding - self.kernel
        if not self.ceil:
            return beyond // self.stride + 1
        out = -(-beyond // self.stride) + 1
        return out - 1 if (out - 1) * self.stride >= rows + self.padding else out

    def ready(self, rows: int) -> int:
        return max(0, (rows + self.padding - self.kernel) // self.stride + 1)

    def needs(self, start: int, stop: int) -> tuple[int, int]:
        return start * self.stride - self.padding, (stop - 1) * self.stride - self.padding + self.kernel

    def reach(self, reaches: list[Reach]) -> Reach:
        return reaches[0].conv(self.kernel, stride=self.stride, padding=self.padding)

    def compute(self, inputs: list[torch.Tensor], start: int, stop: int) -> torch.Tensor:
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
    fill: ClassVar[float | None] = None  # type: ignore[misc]  # a field of layers that choose it

    def total(self, rows: int) -> int:
        return rows * self.factor

    def ready(self, rows: int) -> int:
        return max(0, rows * self.factor - (self.factor // 2 if self.mode == "bilinear" else 0))

    def needs(self, start: int, stop: int) -> tuple[int, int]:
        if self.mode == "nearest":
            return start // self.factor, (stop - 1) // self.factor + 1
        first = (2 * start + 1 - self.factor) // (2 * self.factor)
        last = -((self.factor - 2 * stop + 1) // (2 * self.factor))  # of row stop - 1, rounded up
        return first, last + 1

    def reach(self, reaches: list[Reach]) -> Reach:
        return reaches[0].upsample(self.factor) if self.mode == "bilinear" else reaches[0].repeat(self.factor)

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
    fill: ClassVar[float | None] = 0.0  # type: ignore[misc]  # as above
    function: Function
    """With no padding of rows of its own."""

    def total(self, rows: int) -> int:
        return (rows - 1) * self.stride - 2 * self.padding + self.kernel + self.extra

    def ready(self, rows: int) -> int:
        return max(0, rows * self.stride - self.padding)

    def needs(self, start: int, stop: int) -> tuple[int, int]:
        first = -((self.kernel - 1 - start - self.padding) // self.stride)
        return first, (stop - 1 + self.padding) // self.stride + 1

    def reach(self, reaches: list[Reach]) -> Reach:
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

    def total(self, rows: int) -> int:
        return rows + self.top + self.bottom

    def ready(self, rows: int) -> int:
        return max(0, rows + self.top) if rows else 0

    def needs(self, start: int, stop: int) -> tuple[int, int]:
        return start - self.top, stop - self.top

    def reach(self, reaches: list[Reach]) -> Reach:
        """What the output looks at: its rows are the input's, `top` further down."""
        return reaches[0].conv(1, padding=self.top)

    def compute(self, inputs: list[torch.Tensor], start: int, stop: int) -> torch.Tensor:
        if self.fill is None:
            return functional.pad(inputs[0], (self.left, self.right, 0, 0), mode="replicate")
        return functional.pad(inputs[0], (self.left, self.right, 0, 0), value=self.fill)


def _nothing(*_: torch.Tensor) -> torch.Tensor:
    raise AssertionError("a layer without weights cannot compute")
