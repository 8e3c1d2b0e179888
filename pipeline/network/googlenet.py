"""The convolutional trunk of GoogLeNet (Szegedy et al., 2015), made of torchvision's parts under torchvision's names.

Nothing is added: for inputs whose sides are multiples of 32 torchvision's own padding and rounding give one cell for
each stride. The auxiliary classifiers, the last average pool and the classifier are left out, as Long et al. do
(CVPR 2015, section 4.1).
"""

import torch
from torch import nn
from torchvision.models.googlenet import BasicConv2d, Inception

from fcn_batch.pipeline.core.reach import Reach
from fcn_batch.pipeline.network.trunk import Maps, Reaches, Trunk, through

_INCEPTIONS = {
    "3a": (192, 64, 96, 128, 16, 32, 32),
    "3b": (256, 128, 128, 192, 32, 96, 64),
    "4a": (480, 192, 96, 208, 16, 48, 64),
    "4b": (512, 160, 112, 224, 24, 64, 64),
    "4c": (512, 128, 128, 256, 24, 64, 64),
    "4d": (512, 112, 144, 288, 32, 64, 64),
    "4e": (528, 256, 160, 320, 32, 128, 128),
    "5a": (832, 256, 160, 320, 32, 128, 128),
    "5b": (832, 384, 192, 384, 48, 128, 128),
}
"""Table 1 of the paper: channels in; #1x1, #3x3 reduce, #3x3, #5x5 reduce, #5x5, pool proj."""
_FIRST = ("conv1", "maxpool1", "conv2", "conv3", "maxpool2", "inception3a", "inception3b")
_SECOND = ("maxpool3", "inception4a", "inception4b", "inception4c", "inception4d", "inception4e")
_THIRD = ("maxpool4", "inception5a", "inception5b")


class GoogLeNetTrunk(Trunk):
    """Feature maps after inception 3b, 4e and 5b: strides 8, 16 and 32."""

    def __init__(self, bands: int) -> None:
        super().__init__()
        self.channels = (480, 832, 1024)
        self.conv1 = BasicConv2d(bands, 64, kernel_size=7, stride=2, padding=3)
        self.maxpool1 = nn.MaxPool2d(3, 2, ceil_mode=True)
        self.conv2 = BasicConv2d(64, 64, kernel_size=1)
        self.conv3 = BasicConv2d(64, 192, kernel_size=3, padding=1)
        self.maxpool2 = nn.MaxPool2d(3, 2, ceil_mode=True)
        self.maxpool3 = nn.MaxPool2d(3, 2, ceil_mode=True)
        self.maxpool4 = nn.MaxPool2d(2, 2, ceil_mode=True)
        for name, channels in _INCEPTIONS.items():
            self.add_module(f"inception{name}", Inception(*channels))

    def forward(self, x: torch.Tensor) -> Maps:
        """(n, bands, rows, cols), rows and cols multiples of 32, to inception 3b, 4e and 5b."""
        maps = []
        for names in (_FIRST, _SECOND, _THIRD):
            for name in names:
                x = self.get_submodule(name)(x)
            maps.append(x)
        return maps[0], maps[1], maps[2]

    def reach(self, reach: Reach) -> Reaches:
        """What inception 3b, 4e and 5b look at."""
        maps = []
        for names in (_FIRST, _SECOND, _THIRD):
            for name in names:
                reach = _after(reach, self.get_submodule(name))
            maps.append(reach)
        return maps[0], maps[1], maps[2]


def _after(reach: Reach, layer: nn.Module) -> Reach:
    if not isinstance(layer, Inception):
        return through(reach, layer.modules())
    branches = [through(reach, branch.modules()) for branch in layer.children()]
    for branch in branches[1:]:
        branches[0] = branches[0].join(branch)
    return branches[0]
