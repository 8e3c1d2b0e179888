"""The convolutional trunk of VGG16 (Simonyan & Zisserman, 2015, configuration D), at any width.

Thirteen 3x3 convolutions with padding 1 in five stages, each stage closed by a 2x2 max pool of stride 2.
Layers are numbered as torchvision numbers them (`features.0` … `features.30`), so its weights fit as they are.
"""

import torch
from torch import nn

from fcn_batch.pipeline.core.reach import Reach
from fcn_batch.pipeline.network.trunk import Maps, Reaches, Trunk, stages, through

_STAGES = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))
"""Channels at full width, and number of convolutions, of each stage."""


class VggTrunk(Trunk):
    """Feature maps after pool3, pool4 and pool5: strides 8, 16 and 32."""

    def __init__(self, bands: int, width: float) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        incoming, pooled = bands, []
        for channels, convolutions in _STAGES:
            outgoing = max(1, round(channels * width))
            for _ in range(convolutions):
                layers += [nn.Conv2d(incoming, outgoing, 3, padding=1), nn.ReLU(inplace=True)]
                incoming = outgoing
            layers.append(nn.MaxPool2d(2, 2))
            pooled.append(outgoing)
        self.channels = (pooled[2], pooled[3], pooled[4])
        self.features = nn.Sequential(*layers)

    def forward(self, x: torch.Tensor) -> Maps:
        """(n, bands, rows, cols), rows and cols multiples of 32, to pool3, pool4 and pool5."""
        pools = []
        for stage in stages(self.features):
            for layer in stage:
                x = layer(x)
            pools.append(x)
        return pools[2], pools[3], pools[4]

    def reach(self, reach: Reach) -> Reaches:
        """What pool3, pool4 and pool5 look at."""
        pools = []
        for stage in stages(self.features):
            reach = through(reach, stage)
            pools.append(reach)
        return pools[2], pools[3], pools[4]
