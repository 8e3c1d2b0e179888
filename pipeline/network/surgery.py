"""Filling one network from another: the stages FCN-32s, 16s, 8s, and images of other bands than red, green, blue."""

import torch

from fcn_batch.pipeline.network.fcn import Fcn

_RGB = 3


def grow(coarser: Fcn, finer: Fcn) -> list[str]:
    """Fill `finer` from `coarser`, as FCN-16s is from FCN-32s and FCN-8s from that (CVPR 2015, section 4.2).

    Every tensor of the same name is copied, so the new score layers keep their start at zero and training goes on
    from the coarser net's scores. The last upsampling is by another factor and keeps its start too. Returns the names
    of the tensors that keep their own start. ValueError when `finer` is the coarser one, or names a tensor whose
    shape differs.
    """
    from_, to = coarser.architecture.stride, finer.architecture.stride
    if from_ < to:
        raise ValueError(f"FCN-{to}s is coarser than FCN-{from_}s: train FCN-{to}s first, then grow it")
    given, wanted = coarser.state_dict(), finer.state_dict()
    if from_ != to:
        given = {name: tensor for name, tensor in given.items() if not name.startswith("up_final.")}
    for name, tensor in given.items():
        if name not in wanted:
            raise ValueError(f"the finer network has no {name}: give both the same architecture but for the stride")
        if tensor.shape != wanted[name].shape:
            raise ValueError(
                f"{name} is {tuple(tensor.shape)} in the coarser network and {tuple(wanted[name].shape)} in the finer "
                "one: give both the same architecture, bands and classes"
            )
    finer.load_state_dict(given, strict=False)
    return [name for name in wanted if name not in given]


def widen(weight: torch.Tensor, bands: int) -> torch.Tensor:
    """The first convolution's weight (channels, 3, rows, cols) for images of `bands` bands, in the same dtype.

    With more than three bands, the first three keep their filters and every other gets the mean of the three, as the
    authors' RGB-D net does (nyud-fcn32s-color-d/solve.py). With one or two, each gets the mean times 3 / `bands`: an
    image whose bands are all alike, such as a grey one, gives the response that it gives as red, green and blue.
    ValueError when `weight` is not for three bands.
    """
    if weight.ndim != 4 or weight.shape[1] != _RGB:
        raise ValueError(f"a weight for red, green and blue is (channels, 3, rows, cols), got {tuple(weight.shape)}")
    if bands < 1:
        raise ValueError(f"an image has one band or more, got {bands}")
    mean = weight.mean(dim=1, keepdim=True)
    if bands < _RGB:
        return (mean * (_RGB / bands)).repeat(1, bands, 1, 1)
    return torch.cat([weight, mean.repeat(1, bands - _RGB, 1, 1)], dim=1)
