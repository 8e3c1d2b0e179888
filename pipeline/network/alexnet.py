"""The convolutional trunk of AlexNet, in the form of Krizhevsky (2014) that torchvision has, at any width.

Layers are numbered as torchvision numbers them (`features.0` … `features.12`), so its weights fit as they are. So that
a map has exactly one cell for each stride, the first convolution is padded by 2 before the image and by 5 after it,
and the pools (3x3, stride 2) keep their last window although it ends outside of the map::

    pixels        0 1 2 3 | 4 5 6 7 | …
    conv1         -2 .. 8                 cell 0 looks at pixels -2 to 8, cell 1 at 2 to 12
    pool1         0 1 2                   cell 0 looks at cells 0 to 2 of conv1

Away from the right and lower border every cell is what torchvision computes.
"""

import torch
from torch import nn
from torch.nn import functional

from fcn_batch.pipeline.core.reach import Reach
from fcn_batch.pipeline.network.trunk import Maps, Reaches, Trunk, stages, through

_BEFORE, _AFTER = 2, 5
"""Zeros around the image: torchvision's before it, and after it what the last cell still looks at."""


class AlexTrunk(Trunk):
    """Feature maps after pool1, pool2 and pool3: strides 8, 16 and 32."""

    def __init__(self, bands: int, width: float) -> None:
        super().__init__()
        a, b, c, d, e = (max(1, round(channels * width)) for channels in (64, 192, 384, 256, 256))
        self.channels = (a, b, e)
        self.features = nn.Sequential(
            nn.Conv2d(bands, a, 11, stride=4),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, 2, ceil_mode=True),
            nn.Conv2d(a, b, 5, padding=2),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, 2, ceil_mode=True),
            nn.Conv2d(b, c, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(c, d, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(d, e, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, 2, ceil_mode=True),
        )

    def forward(self, x: torch.Tensor) -> Maps:
        """(n, bands, rows, cols), rows and cols multiples of 32, to pool1, pool2 and pool3."""
        x = functional.pad(x, (_BEFORE, _AFTER, _BEFORE, _AFTER))
        pools = []
        for stage in stages(self.features):
            for layer in stage:
                x = layer(x)
            pools.append(x)
        return pools[0], pools[1], pools[2]

    def reach(self, reach: Reach) -> Reaches:
        """What pool1, pool2 and pool3 look at."""
        reach = reach.conv(1, padding=_BEFORE)
        pools = []
        for stage in stages(self.features):
            reach = through(reach, stage)
            pools.append(reach)
        return pools[0], pools[1], pools[2]
