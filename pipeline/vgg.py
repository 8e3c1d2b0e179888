"""The convolutional trunk of VGG16 (Simonyan & Zisserman, 2015, configuration D), at any width.

Thirteen 3x3 convolutions with padding 1 in five stages, each stage closed by a 2x2 max pool of stride 2.
Layers are numbered as torchvision numbers them (`features.0` … `features.30`), so its weights fit as they are.
"""

from collections.abc import Iterator

import torch
from torch import nn

from fcn_batch.pipeline.reach import Reach

_STAGES = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))
"""Channels at full width, and number of convolutions, of each stage."""


class VggTrunk(nn.Module):
    """Feature maps after pool3, pool4 and pool5: strides 8, 16 and 32."""

    stride = 2 ** len(_STAGES)

    def __init__(self, bands: int, width: float) -> None:
        super().__init__()
        self.channels = tuple(max(1, round(c * width)) for c, _ in _STAGES)
        layers: list[nn.Module] = []
        incoming = bands
        for outgoing, (_, convolutions) in zip(self.channels, _STAGES, strict=True):
            for _ in range(convolutions):
                layers += [nn.Conv2d(incoming, outgoing, 3, padding=1), nn.ReLU(inplace=True)]
                incoming = outgoing
            layers.append(nn.MaxPool2d(2, 2))
        self.features = nn.Sequential(*layers)

    def _stages(self) -> Iterator[list[nn.Module]]:
        stage: list[nn.Module] = []
        for layer in self.features:
            stage.append(layer)
            if isinstance(layer, nn.MaxPool2d):
                yield stage
                stage = []

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(n, bands, rows, cols), rows and cols multiples of 32, to pool3, pool4 and pool5."""
        pools = []
        for stage in self._stages():
            for layer in stage:
                x = layer(x)
            pools.append(x)
        return pools[2], pools[3], pools[4]

    def reach(self, reach: Reach) -> tuple[Reach, Reach, Reach]:
        """What pool3, pool4 and pool5 look at."""
        pools = []
        for stage in self._stages():
            for layer in stage:
                if isinstance(layer, nn.Conv2d):
                    reach = reach.conv(layer.kernel_size[0], padding=int(layer.padding[0]))
                elif isinstance(layer, nn.MaxPool2d):
                    reach = reach.conv(2, stride=2)
            pools.append(reach)
        return pools[2], pools[3], pools[4]
