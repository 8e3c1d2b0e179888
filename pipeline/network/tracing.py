"""How far our own networks look, found by sending a `Reach` instead of an image through their forward pass.

No number is computed: torch hands every call on a `_Traced` map to it, and each kind of call says what its output
looks at. Tests find the same by following NaN, and by the layers that are recorded (`Graph.reach`).
"""

from functools import reduce
from operator import add
from typing import Any

from torch import nn

from fcn_batch.pipeline.core.reach import Reach

_POINTWISE = ("relu", "hardtanh", "batch_norm", "dropout", "mul")


def reach_of(network: nn.Module, period: int) -> Reach:
    """Return what the scores of `network` look at along the rows; it repeats itself every `period` pixels.

    The network is left in the mode that it was in. ValueError when it calls a layer that is not known here.
    """
    training = network.training
    traced: _Traced = network.eval()(_Traced(Reach.of_input(period)))
    network.train(training)
    return traced.reach


class _Traced:
    """A map of features of which only the reach is known; as large as one period."""

    def __init__(self, reach: Reach) -> None:
        self.reach = reach
        self.shape = (1, 1, reach.period, reach.period)

    def dim(self) -> int:
        return len(self.shape)

    def __add__(self, other: "_Traced") -> "_Traced":
        return _Traced(self.reach.join(other.reach))

    def __mul__(self, factor: float) -> "_Traced":
        return self

    @classmethod
    def __torch_function__(cls, function: Any, _types: Any, args: Any, kwargs: Any = None) -> "_Traced":
        name, options = function.__name__, kwargs or {}
        if name == "cat":
            joined: _Traced = reduce(add, args[0])
            return joined
        return args[0] if name in _POINTWISE else cls(_after(name, args[0].reach, args[1:], options))


def _after(name: str, reach: Reach, rest: Any, options: dict[str, Any]) -> Reach:
    """Return what a map looks at after one call, whose arguments are those of torch.nn.functional."""
    if name == "conv2d":
        weight, _, stride, padding, dilation, _ = rest
        return reach.conv(dilation[0] * (weight.shape[2] - 1) + 1, stride=stride[0], padding=padding[0])
    if name == "max_pool2d":
        return reach.conv(rest[0], stride=options["stride"], padding=options["padding"])
    if name == "pad":
        return reach.conv(1, padding=rest[0][2])
    if name == "interpolate":
        return reach.upsample(options["scale_factor"])
    if name == "conv_transpose2d":
        return reach.transposed(rest[0].shape[2], stride=options["stride"], padding=options["padding"])
    raise ValueError(f"how far {name} looks is not known")
