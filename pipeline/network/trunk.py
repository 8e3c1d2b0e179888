"""What every trunk of an FCN is: three maps of features, at strides 8, 16 and 32, and what each of them looks at."""

from collections.abc import Iterable

import torch
from torch import nn

from fcn_batch.pipeline.core.reach import Reach

Maps = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
Reaches = tuple[Reach, Reach, Reach]


class Trunk(nn.Module):
    """A classifier without its end, in a form that gives exactly one cell for each whole 8, 16 or 32 pixels."""

    stride = 32
    channels: tuple[int, int, int]
    """Of the maps at strides 8, 16 and 32."""

    def forward(self, x: torch.Tensor) -> Maps:
        """(n, bands, rows, cols), rows and cols multiples of 32, to maps of 1/8, 1/16 and 1/32 of them."""
        raise NotImplementedError

    def reach(self, reach: Reach) -> Reaches:
        """What the three maps look at, given what the trunk's input looks at."""
        raise NotImplementedError


def through(reach: Reach, layers: Iterable[nn.Module]) -> Reach:
    """`reach` after `layers`, one after the other; what is neither a convolution nor a pool looks no further."""
    for layer in layers:
        if isinstance(layer, nn.Conv2d):
            dilation = layer.dilation[0]
            span = dilation * (layer.kernel_size[0] - 1) + 1
            reach = reach.conv(span, stride=layer.stride[0], padding=int(layer.padding[0]))
        elif isinstance(layer, nn.MaxPool2d):
            kernel, stride, padding = (_side(v) for v in (layer.kernel_size, layer.stride, layer.padding))
            reach = reach.conv(kernel, stride=stride, padding=padding)
    return reach


def stages(layers: Iterable[nn.Module]) -> list[list[nn.Module]]:
    """`layers` cut behind every max pool."""
    found: list[list[nn.Module]] = [[]]
    for layer in layers:
        found[-1].append(layer)
        if isinstance(layer, nn.MaxPool2d):
            found.append([])
    return [stage for stage in found if stage]


def _side(value: int | tuple[int, ...]) -> int:
    return value if isinstance(value, int) else value[0]
