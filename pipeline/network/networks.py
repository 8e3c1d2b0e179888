"""Builds the network that a model's card describes."""

from fcn_batch.pipeline.core.model_card import Architecture, TorchvisionFcn
from fcn_batch.pipeline.network.fcn import Fcn
from fcn_batch.pipeline.network.torchvision_fcn import DilatedFcn

FcnNetwork = Fcn | DilatedFcn
"""A network of our own kinds. Its attributes `architecture`, `bands`, `classes`, `stride`, `halo`, `phase` and `reach`
say what it is and how it looks at an image; it maps (n, bands, rows, cols), rows and cols multiples of `stride`, to
scores (n, classes, rows, cols)."""


def build_network(architecture: Architecture | TorchvisionFcn, bands: int, classes: int) -> FcnNetwork:
    """The network of `architecture` for images of `bands` bands, with the weights that training starts from."""
    if isinstance(architecture, TorchvisionFcn):
        return DilatedFcn(architecture, bands, classes)
    return Fcn(architecture, bands, classes)
