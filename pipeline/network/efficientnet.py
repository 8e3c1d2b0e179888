"""The convolutional trunk of EfficientNet-Lite0: EfficientNet (Tan & Le, 2019) without squeeze and excitation.

The blocks are those of `efficientnet_lite_builder.py` in the TensorFlow TPU models: ReLU6 throughout, batch norm with
epsilon 0.001, and TensorFlow's padding 'same', which for a stride of 2 and an even size sets one pixel less before the
map than after it. No layer looks at the whole image, so the trunk can be streamed as it is.
"""

import re

import torch
from torch import nn
from torch.nn import functional

from fcn_batch.pipeline.core.reach import Reach
from fcn_batch.pipeline.network.trunk import Maps, Reaches, Trunk, through

_STAGES = (
    (3, 1, 1, 16, 1),
    (3, 2, 6, 24, 2),
    (5, 2, 6, 40, 2),
    (3, 2, 6, 80, 3),
    (5, 1, 6, 112, 3),
    (5, 2, 6, 192, 4),
    (3, 1, 6, 320, 1),
)
"""Kernel, stride of the first block, expansion, channels and number of blocks of each stage."""
_STEM = 32
_ENDS = (5, 11, 16)
"""Blocks whose outputs are the maps: the last ones at strides 8, 16 and 32."""


class ConvNorm(nn.Module):
    """A convolution padded as TensorFlow's 'same', batch norm, and ReLU6 unless `linear`."""

    def __init__(self, channels: tuple[int, int], kernel: int, stride: int, groups: int, *, linear: bool) -> None:
        super().__init__()
        # at stride 1 both sides are alike and the convolution pads by itself
        self.before, self.after = (kernel - stride) // 2, (kernel - stride + 1) // 2
        padding = self.before if self.before == self.after else 0
        self.conv = nn.Conv2d(*channels, kernel, stride, padding, groups=groups, bias=False)
        self.norm = nn.BatchNorm2d(channels[1], eps=1e-3, momentum=0.01)
        self.linear = linear

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(n, channels, rows, cols) to 1/stride of the rows and cols, for even ones."""
        if self.before != self.after:
            x = functional.pad(x, (self.before, self.after, self.before, self.after))
        x = self.norm(self.conv(x))
        return x if self.linear else functional.relu6(x)

    def reach(self, reach: Reach) -> Reach:
        """What the output looks at."""
        if self.before != self.after:
            reach = reach.conv(1, padding=self.before)
        return through(reach, [self.conv])


class Block(nn.Module):
    """A mobile inverted bottleneck: expand, filter each channel by itself, project; added to its input if that fits."""

    def __init__(self, incoming: int, outgoing: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = incoming * expansion
        if expansion > 1:
            self.expand = ConvNorm((incoming, wide), 1, 1, 1, linear=False)
        self.depthwise = ConvNorm((wide, wide), kernel, stride, wide, linear=False)
        self.project = ConvNorm((wide, outgoing), 1, 1, 1, linear=True)
        self.residual = stride == 1 and incoming == outgoing

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(n, incoming, rows, cols) to (n, outgoing, rows / stride, cols / stride)."""
        y = x
        for layer in self.children():
            y = layer(y)
        return x + y if self.residual else y

    def reach(self, reach: Reach) -> Reach:
        """What the output looks at; the input itself lies within that."""
        return self.depthwise.reach(reach)


class EfficientNetLite0Trunk(Trunk):
    """Feature maps of the last blocks at strides 8, 16 and 32."""

    def __init__(self, bands: int) -> None:
        super().__init__()
        self.channels = (40, 112, 320)
        self.stem = ConvNorm((bands, _STEM), 3, 2, 1, linear=False)
        self.blocks = nn.ModuleList()
        incoming = _STEM
        for kernel, stride, expansion, outgoing, many in _STAGES:
            for index in range(many):
                self.blocks.append(Block(incoming, outgoing, kernel, 1 if index else stride, expansion))
                incoming = outgoing

    def forward(self, x: torch.Tensor) -> Maps:
        """(n, bands, rows, cols), rows and cols multiples of 32, to the outputs of blocks 4, 10 and 15."""
        x = self.stem(x)
        maps = []
        for index, block in enumerate(self.blocks, start=1):
            x = block(x)
            if index in _ENDS:
                maps.append(x)
        return maps[0], maps[1], maps[2]

    def reach(self, reach: Reach) -> Reaches:
        """What the three maps look at."""
        reach = self.stem.reach(reach)
        maps = []
        for index, block in enumerate(self.blocks, start=1):
            assert isinstance(block, Block)
            reach = block.reach(reach)
            if index in _ENDS:
                maps.append(reach)
        return maps[0], maps[1], maps[2]


_PARTS = {
    "_expand_conv": "expand.conv",
    "_bn0": "expand.norm",
    "_depthwise_conv": "depthwise.conv",
    "_bn1": "depthwise.norm",
    "_project_conv": "project.conv",
    "_bn2": "project.norm",
}
"""Names inside a block, there and here."""


def from_lukemelas(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A state dict of `efficientnet_lite_pytorch` (lukemelas' EfficientNet-PyTorch) with this trunk's names.

    Its head (`_conv_head`, `_bn1`, `_fc`) is left out. ValueError names a key that is in no such state dict.
    """
    renamed = {}
    for key, tensor in state.items():
        if re.match(r"(_conv_head|_bn1|_fc)\.", key):
            continue
        stem = re.fullmatch(r"(_conv_stem|_bn0)\.(\w+)", key)
        block = re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(\w+)", key)
        if stem:
            renamed[f"stem.{'conv' if stem[1] == '_conv_stem' else 'norm'}.{stem[2]}"] = tensor
        elif block and block[2] in _PARTS:
            renamed[f"blocks.{block[1]}.{_PARTS[block[2]]}.{block[3]}"] = tensor
        else:
            raise ValueError(f"not a key of an EfficientNet-Lite: {key}")
    return renamed
