"""FCN-32s, FCN-16s and FCN-8s of Long, Shelhamer & Darrell (CVPR 2015; PAMI 2017), in one class; and torchvision's FCN.

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
from torchvision.models import segmentation

from fcn_batch.pipeline.core.model_card import Architecture, TorchvisionFcn
from fcn_batch.pipeline.core.reach import Reach
from fcn_batch.pipeline.network.tracing import reach_of
from fcn_batch.pipeline.network.trunks import build_trunk


class OnGrid(nn.Module):
    """A network for images whose sides are multiples of `stride`, which knows how far it looks."""

    stride: int
    reach: Reach
    """Derived from the layers, as are `halo` and `phase`."""

    @property
    def halo(self) -> int:
        """Pixels to read beyond a core that lies on the stride's grid."""
        return self.reach.halo

    @property
    def phase(self) -> int:
        """Where the coarsest cells begin, as in a model's card."""
        return self.reach.phase

    def check_sides(self, x: torch.Tensor) -> None:
        """Raise ValueError unless rows and columns are multiples of the stride."""
        if x.shape[-2] % self.stride or x.shape[-1] % self.stride:
            raise ValueError(f"rows and cols must be multiples of {self.stride}, got {tuple(x.shape[-2:])}")


class Fcn(OnGrid):
    """Scores (n, classes, rows, cols) of an image (n, bands, rows, cols) whose sides are multiples of `stride`."""

    def __init__(self, architecture: Architecture, bands: int, classes: int) -> None:
        super().__init__()
        a = self.architecture = architecture
        self.bands, self.classes = bands, classes
        self.enlarge = Upsample(a.input_upsampling)
        self.trunk = build_trunk(a, bands)
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
        self.reach = reach_of(self, self.stride)

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
        """Return the map that the coarsest scores are made of: fc7, or the trunk's end."""
        if not self.architecture.fc_channels:
            end: torch.Tensor = self.dropout(pool5)
            return end
        if self.architecture.fc_kernel % 2 == 0:
            pool5 = functional.pad(pool5, self.even_pads * 2)
        fc6 = self.dropout(torch.relu(self.fc6(pool5)))
        fc7: torch.Tensor = self.dropout(torch.relu(self.fc7(fc6)))
        return fc7

    def _upsample(self, classes: int, factor: int) -> "Upsample":
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


class DilatedFcn(OnGrid):
    """torchvision's FCN over a dilated ResNet, under torchvision's own names, for any number of bands.

    The last two stages of the ResNet keep the stride of 8 and dilate their kernels instead. Scores are enlarged by the
    whole factor of 8, so inputs are multiples of 8: at other sizes torchvision stretches them a little, and its cells
    drift away from the grid.
    """

    stride = 8

    def __init__(self, architecture: TorchvisionFcn, bands: int, classes: int) -> None:
        super().__init__()
        self.architecture, self.bands, self.classes = architecture, bands, classes
        build = {"fcn_resnet50": segmentation.fcn_resnet50, "fcn_resnet101": segmentation.fcn_resnet101}
        theirs = build[architecture.name](weights=None, weights_backbone=None, aux_loss=None, num_classes=classes)
        self.backbone: nn.Module = theirs.backbone
        self.classifier: nn.Module = theirs.classifier
        if bands != 3:
            first = nn.Conv2d(bands, 64, 7, stride=2, padding=3, bias=False)
            nn.init.kaiming_normal_(first.weight, mode="fan_out", nonlinearity="relu")
            self.backbone.conv1 = first
        score = self.score
        nn.init.zeros_(score.weight)
        assert score.bias is not None
        nn.init.zeros_(score.bias)
        self.reach = reach_of(self, self.stride)

    @property
    def score(self) -> nn.Conv2d:
        """The layer that makes one map for each class; zero at the start (Long et al., CVPR 2015, section 4.3)."""
        last = self.classifier.get_submodule("4")
        assert isinstance(last, nn.Conv2d)
        return last

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Scores (logits) at the input's own resolution."""
        self.check_sides(x)
        scores = self.classifier(self.backbone(x)["out"])
        return functional.interpolate(scores, scale_factor=self.stride, mode="bilinear", align_corners=False)


FcnNetwork = Fcn | DilatedFcn
"""A network of our own kinds. Its attributes `architecture`, `bands`, `classes`, `stride`, `halo`, `phase` and `reach`
describe it; it maps (n, bands, rows, cols), rows and cols multiples of `stride`, to scores (n, classes, rows, cols)."""


def build_network(architecture: Architecture | TorchvisionFcn, bands: int, classes: int) -> FcnNetwork:
    """Return the network of `architecture` for images of `bands` bands, with the weights that training starts from."""
    if isinstance(architecture, TorchvisionFcn):
        return DilatedFcn(architecture, bands, classes)
    return Fcn(architecture, bands, classes)


# --- upsampling ----------------------------------------------------------------------------------------------
# Long et al. (CVPR 2015, section 3.3) upsample by transposed convolution started at bilinear weights. Without padding
# it fades to zero at the raster's edge; on an input with its border replicated once it equals
# `torch.nn.functional.interpolate(align_corners=False)` everywhere, which is the fixed form used here.


def bilinear_kernel(factor: int) -> torch.Tensor:
    """Return the kernel of a transposed convolution of stride `factor` that interpolates: (2f, 2f), float32.

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


def _scaled(pool: torch.Tensor, factor: float) -> torch.Tensor:
    return pool if factor == 1 else pool * factor
