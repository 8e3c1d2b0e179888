"""FCN-32s, FCN-16s and FCN-8s of Long, Shelhamer & Darrell (CVPR 2015; PAMI 2017), in one class.

The classifier's fully connected layers are convolutions (fc6 k x k, fc7 1x1), `score` makes one map per class
at stride 32, and the skips add score maps of pool4 (stride 16) and pool3 (stride 8) on the way up
(section 4.2, figure 3 of the paper)::

    image -> pool3 ---------> pool4 ---------> pool5 -> fc6 -> fc7 -> score           stride 32
               |                |                                       | x2
               |                '---- score_pool4 --------------------> + -> FCN-16s   stride 16
               |                                                        | x2
               '--------------------- score_pool3 --------------------> + -> FCN-8s    stride 8

This is the translation-equivariant form: padding 1 in every 3x3, half of its kernel in fc6, inputs that are
multiples of the stride, bilinear upsampling on replicated borders. Shifting the input by the stride shifts the
scores and changes nothing else, which is what makes tiles equal to the whole image (the original's pad of 100
and its crops depend on where a tile begins).

Other trunks stand in VGG16's place; their maps of strides 8, 16 and 32 are called pool3, pool4 and pool5 here too.
Without `fc_channels` there is no fc6 and no fc7, and the trunk's end is scored.

`shift` s sets s zeros before the image and `32 - s` after it, and cuts the scores out again: coarse cells then begin
at -s. The original's pad of 100 is a shift of 3 and 97 zeros more.

`input_upsampling` u enlarges the image u times before the trunk (for coarse pixels that carry much detail each)
and enlarges the scores u times less after it: stride and halo in the raster's own pixels shrink by u.
"""

import torch
from torch import nn
from torch.nn import functional

from fcn_batch.pipeline.core.model_card import Architecture
from fcn_batch.pipeline.core.reach import Reach
from fcn_batch.pipeline.network.alexnet import AlexTrunk
from fcn_batch.pipeline.network.efficientnet import EfficientNetLite0Trunk
from fcn_batch.pipeline.network.googlenet import GoogLeNetTrunk
from fcn_batch.pipeline.network.ongrid import OnGrid
from fcn_batch.pipeline.network.trunk import Trunk
from fcn_batch.pipeline.network.upsample import LearnedUpsample, Upsample
from fcn_batch.pipeline.network.vgg import VggTrunk


def _trunk(architecture: Architecture, bands: int) -> Trunk:
    match architecture.trunk:
        case "vgg16":
            return VggTrunk(bands, architecture.width)
        case "alexnet":
            return AlexTrunk(bands, architecture.width)
        case "googlenet":
            return GoogLeNetTrunk(bands)
        case "efficientnet_lite0":
            return EfficientNetLite0Trunk(bands)


class Fcn(OnGrid):
    """Scores (n, classes, rows, cols) of an image (n, bands, rows, cols) whose sides are multiples of `stride`."""

    def __init__(self, architecture: Architecture, bands: int, classes: int) -> None:
        super().__init__()
        a = self.architecture = architecture
        self.bands, self.classes = bands, classes
        self.enlarge = Upsample(a.input_upsampling)
        self.trunk = _trunk(a, bands)
        pool3, pool4, pool5 = self.trunk.channels
        # an even kernel is padded by one more after the map; a convolution pads both sides alike
        self.even_pads = (a.fc_kernel - 1) // 2, a.fc_kernel // 2
        if a.fc_channels:
            self.fc6 = nn.Conv2d(pool5, a.fc_channels, a.fc_kernel, padding=a.fc_kernel // 2 if a.fc_kernel % 2 else 0)
            self.fc7 = nn.Conv2d(a.fc_channels, a.fc_channels, 1)
        self.dropout = nn.Dropout(a.dropout)
        self.score = nn.Conv2d(a.fc_channels or pool5, classes, 1)
        if a.stride <= 16:
            self.score_pool4 = nn.Conv2d(pool4, classes, 1)
            self.up_score = self._upsample(classes, 2)
        if a.stride == 8:
            self.score_pool3 = nn.Conv2d(pool3, classes, 1)
            self.up_pool4 = self._upsample(classes, 2)
        self.up_final = self._upsample(classes, a.stride // a.input_upsampling)
        self._start_weights()
        self.stride = self.trunk.stride // a.input_upsampling
        self.reach = self._reach()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Scores (logits) at the input's own resolution."""
        self.check_sides(x)
        a = self.architecture
        before, after = a.shift, self.stride - a.shift
        if a.shift:
            x = functional.pad(x, (before, after, before, after))
        pool3, pool4, pool5 = self.trunk(self.enlarge(x))
        score: torch.Tensor = self.score(self._classified(pool5))
        if a.stride <= 16:
            score = self.up_score(score) + self.score_pool4(_scaled(pool4, a.skip_scales[0]))
        if a.stride == 8:
            score = self.up_pool4(score) + self.score_pool3(_scaled(pool3, a.skip_scales[1]))
        out: torch.Tensor = self.up_final(score)
        return functional.pad(out, (-before, -after, -before, -after)) if a.shift else out

    def _classified(self, pool5: torch.Tensor) -> torch.Tensor:
        """What the coarsest scores are made of: fc7, or the trunk's end."""
        if not self.architecture.fc_channels:
            end: torch.Tensor = self.dropout(pool5)
            return end
        if self.architecture.fc_kernel % 2 == 0:
            pool5 = functional.pad(pool5, self.even_pads * 2)
        fc6 = self.dropout(torch.relu(self.fc6(pool5)))
        fc7: torch.Tensor = self.dropout(torch.relu(self.fc7(fc6)))
        return fc7

    def _upsample(self, classes: int, factor: int) -> Upsample:
        learned = self.architecture.upsampling == "learned" and factor > 1
        return LearnedUpsample(classes, factor) if learned else Upsample(factor)

    def _start_weights(self) -> None:
        """He's start for the trunk; zero for every score layer, as in the paper (section 4.3).

        Only the score layers may start at zero: a zero trunk never learns. Batch norms start at 1 and 0, as ever.
        """
        for name, module in self.named_modules():
            if isinstance(module, nn.Conv2d):
                if name.startswith("score"):
                    nn.init.zeros_(module.weight)
                else:
                    nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def _reach(self) -> Reach:
        a = self.architecture
        image = Reach.of_input(self.stride).conv(1, padding=a.shift)
        pool3, pool4, reach = self.trunk.reach(self.enlarge.reach(image))
        if a.fc_channels:
            reach = reach.conv(a.fc_kernel, padding=self.even_pads[0])
        if a.stride <= 16:
            reach = self.up_score.reach(reach).join(pool4)
        if a.stride == 8:
            reach = self.up_pool4.reach(reach).join(pool3)
        return self.up_final.reach(reach).conv(1, padding=-a.shift)


def _scaled(pool: torch.Tensor, factor: float) -> torch.Tensor:
    return pool if factor == 1 else pool * factor
