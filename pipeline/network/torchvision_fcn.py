"""torchvision's FCN over a dilated ResNet, under torchvision's own names, for any number of bands.

The last two stages of the ResNet keep the stride of 8 and dilate their kernels instead (`fcn_resnet50`,
`fcn_resnet101` of torchvision.models.segmentation). Its scores are enlarged by the whole factor of 8, so inputs are
multiples of 8: at other sizes torchvision stretches them a little, and its cells drift away from the grid.
"""

import torch
from torch import nn
from torch.nn import functional
from torchvision.models import segmentation

from fcn_batch.pipeline.core.model_card import TorchvisionFcn
from fcn_batch.pipeline.core.reach import Reach
from fcn_batch.pipeline.network.ongrid import OnGrid
from fcn_batch.pipeline.network.trunk import through


class DilatedFcn(OnGrid):
    """Scores (n, classes, rows, cols) of an image (n, bands, rows, cols) whose sides are multiples of `stride`."""

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
        self.reach = self._reach()

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

    def _reach(self) -> Reach:
        body = self.backbone
        reach = through(Reach.of_input(self.stride), [body.get_submodule(name) for name in ("conv1", "maxpool")])
        for stage in ("layer1", "layer2", "layer3", "layer4"):
            for block in body.get_submodule(stage).children():
                # what goes past a block, as it is or through a 1x1, lies within what its 3x3 looks at
                reach = through(reach, [block.get_submodule(name) for name in ("conv1", "conv2", "conv3")])
        return through(reach, self.classifier.modules()).upsample(self.stride)
