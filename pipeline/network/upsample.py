"""Bilinear upsampling by whole factors, fixed or learned, that does not fade at the borders.

Long et al. (CVPR 2015, section 3.3) upsample by transposed convolution started at bilinear weights. Without
padding it fades to zero at the raster's edge; on an input with its border replicated once it equals
`torch.nn.functional.interpolate(align_corners=False)` everywhere, which is the fixed form used here.
"""

import torch
from torch import nn
from torch.nn import functional

from fcn_batch.pipeline.core.reach import Reach


def bilinear_kernel(factor: int) -> torch.Tensor:
    """The kernel of a transposed convolution of stride `factor` that interpolates: (2f, 2f), float32.

    >>> bilinear_kernel(2)[0].tolist()
    [0.0625, 0.1875, 0.1875, 0.0625]
    """
    position = torch.arange(2 * factor, dtype=torch.float32)
    line = 1 - (position - (factor - 0.5)).abs() / factor
    return line[:, None] * line[None, :]


class Upsample(nn.Module):
    """Bilinear by `factor`: (n, channels, rows, cols) to (n, channels, factor * rows, factor * cols)."""

    def __init__(self, factor: int) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Interpolate; edge pixels repeat beyond the border."""
        if self.factor == 1:
            return x
        return functional.interpolate(x, scale_factor=self.factor, mode="bilinear", align_corners=False)

    def reach(self, reach: Reach) -> Reach:
        """What the output looks at, given what the input looks at."""
        return reach.upsample(self.factor) if self.factor > 1 else reach


class LearnedUpsample(Upsample):
    """The same as a transposed convolution whose weights, bilinear at the start, can be trained.

    Its kernel of 2f at stride f gives every output two inputs along each axis, the same two as bilinear
    interpolation by an even factor, so it reaches exactly as far.
    """

    def __init__(self, channels: int, factor: int) -> None:
        if factor % 2:
            raise ValueError(f"learned upsampling needs an even factor, got {factor}")
        super().__init__(factor)
        weight = torch.zeros(channels, channels, 2 * factor, 2 * factor)
        weight[range(channels), range(channels)] = bilinear_kernel(factor)
        self.weight = nn.Parameter(weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Replicate the border once, convolve, crop what the extra border made."""
        f = self.factor
        x = functional.pad(x, (1, 1, 1, 1), mode="replicate")
        return functional.conv_transpose2d(x, self.weight, stride=f, padding=f // 2 + f)
