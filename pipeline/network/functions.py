"""What layers compute on whole rows, with the weights in it: ready for one device and one precision.

On the CPU, convolutions in float32 and bfloat16 run as one oneDNN call with bias and activation in it, on weights
that are packed once: torch's own call packs them for every strip (fc6 of VGG16 alone is 411 MB).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, Self

import torch
from torch.nn import functional

from fcn_batch.pipeline.network.device import multiplies_bf16


class Function(Protocol):
    """Rows in, rows out."""

    def __call__(self, inputs: list[torch.Tensor]) -> torch.Tensor:
        """Compute: every tensor is (1, channels, rows, cols)."""

    def prepared(self, device: torch.device, dtype: torch.dtype, shape: Sequence[int]) -> "Function":
        """The same with its weights on `device` as `dtype`, laid out for inputs of `shape`."""


@dataclass(frozen=True, slots=True)
class Plain:
    """Anything without weights."""

    function: Callable[..., torch.Tensor]

    def __call__(self, inputs: list[torch.Tensor]) -> torch.Tensor:
        """Compute."""
        return self.function(*inputs)

    def prepared(self, device: torch.device, dtype: torch.dtype, shape: Sequence[int]) -> Self:
        """Nothing to prepare."""
        return self


@dataclass(frozen=True, slots=True)
class Scale:
    """A factor and a summand for each channel: batch norm in evaluation, constants."""

    factor: torch.Tensor
    """(1, channels, 1, 1), or 1 for all channels."""
    summand: torch.Tensor

    def __call__(self, inputs: list[torch.Tensor]) -> torch.Tensor:
        """Multiply and add."""
        return torch.addcmul(self.summand, inputs[0], self.factor)

    def prepared(self, device: torch.device, dtype: torch.dtype, shape: Sequence[int]) -> Self:
        """Move the constants."""
        return replace(self, factor=self.factor.to(device, dtype), summand=self.summand.to(device, dtype))


@dataclass(frozen=True, slots=True)
class Convolution:
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
        """Convolve."""
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
            least = (
                self.dilation[1] * (weight.shape[3] - 1) + 1 - 2 * self.padding
            )  # `shape` knows no layers of padding
            shape = (*shape[:3], max(shape[3], least))
            packed = torch.ops.mkldnn._reorder_convolution_weight(  # noqa: SLF001 - what torch.compile itself uses
                weight, geometry[0], geometry[1], geometry[2], geometry[3], list(shape)
            )
            return _Packed(packed, bias, geometry, "relu" if self.relu else "none")
        weight = weight.contiguous(memory_format=torch.channels_last)
        return replace(self, weight=weight, bias=bias)


@dataclass(frozen=True, slots=True)
class _Packed:
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

    def prepared(self, device: torch.device, dtype: torch.dtype, shape: Sequence[int]) -> Self:
        return self


@dataclass(frozen=True, slots=True)
class TransposedConvolution:
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
        """Convolve."""
        return functional.conv_transpose2d(
            inputs[0],
            self.weight,
            self.bias,
            self.stride,
            (0, self.padding),
            (0, self.extra),
            self.groups,
            self.dilation,
        )

    def prepared(self, device: torch.device, dtype: torch.dtype, shape: Sequence[int]) -> Self:
        """Move the weights."""
        bias = None if self.bias is None else self.bias.to(device, dtype)
        return replace(self, weight=self.weight.to(device, dtype), bias=bias)
