"""Stride and halo of any network, found by looking at what it does and not at how it is built.

A network's scores far from a row depend on that row or they do not, and NaN shows it: whatever it touches becomes
NaN, also where gradients would be zero (behind a maximum, a ReLU, a weight of zero). All images are thin strips
along one axis, so that a probe costs little even for a network that looks far::

    rows   NaN NaN NaN | data data data data data data | NaN NaN NaN
    scores NaN NaN NaN | NaN NaN  clean clean  NaN NaN | NaN NaN NaN
                       p <- up -> f            g <- down -> q

In steps: (1) what sides the network accepts; (2) whether any score is clean, else it looks at the whole image;
(3) the stride, which is the smallest shift of the input that does nothing but shift the scores; (4) `f - p` and
`q - g` for p and q on the stride's grid, along rows and along columns: the larger one, rounded up, is the halo.

What a network multiplies by zero counts as looked at. So bilinear enlargement by an odd factor may show a halo one
stride larger than it must be; never one that is smaller.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cache

import torch
from torch import nn

from fcn_batch.pipeline.core.errors import ModelError
from fcn_batch.pipeline.core.geometry import round_up
from fcn_batch.pipeline.core.reach import cells_begin
from fcn_batch.pipeline.network.trial import forward, noise, try_out

_LENGTH = 1920  # 128 * 3 * 5: a multiple of the strides that networks have
_STRETCH = 4  # a network without a clean score on a strip this many times as long looks at the whole image
_SLACK = 128  # how far a border that is not on the (yet unknown) grid may seem to reach beyond one that is
_SAME = 1e-2  # of a channel's deviation: far above rounding, far below what a shift off the grid changes
_EQUAL = 1e-5  # of the largest score: what rounding may change
_ROUNDING = 1e-4  # of a channel's largest score


@dataclass(frozen=True, slots=True)
class Grid:
    """How a network's scores depend on pixels, along rows and columns alike."""

    stride: int
    """Pixels: shifting the image by it shifts the scores. With no halo: a side the network accepts."""
    phase: int
    """First pixel of a coarsest cell, 0 to stride - 1, as near to 0 as the scores allow to tell; windows start at
    multiples of the stride whatever it is."""
    halo: int | None
    """Pixels to read beyond a core on the grid, a multiple of the stride; None: no number of pixels is enough."""

    def __post_init__(self) -> None:
        if self.stride < 1 or not 0 <= self.phase < self.stride:
            raise ValueError(f"a grid needs a stride of 1 or more and a phase below it, got {self}")
        if self.halo is not None and (self.halo < 0 or self.halo % self.stride):
            raise ValueError(f"the halo is a multiple of the stride and not negative, got {self}")


def probe(network: nn.Module, bands: int, *, finite: bool = False) -> Grid:
    """Stride, phase and halo of `network`, which is put in evaluation mode.

    With `finite`, what it looks at is also followed with numbers, large and small, of both signs: NaN may be hidden by
    a comparison, a replacement, or an index. The farther of the two counts.

    `network` maps (n, bands, rows, cols) to scores (n, classes, rows, cols) of the same rows and cols, for sides that
    are multiples of its stride; ModelError when it does not. The halo is None when the scores depend on the whole
    image (global pooling, attention, norms over space), on more than some 1900 pixels, or on where the image begins.
    """
    side = try_out(network, bands).side
    strips = [_fitting_strip(_Strip(network, bands, side, axis, finite=finite)) for axis in (0, 1)]
    found = [strip for strip in strips if strip is not None]
    strides = [stride for strip in found if (stride := strip.stride()) is not None] if len(found) == 2 else []
    if len(strides) < 2:
        return Grid(side, 0, None)
    stride = math.lcm(*strides)
    beyond = [rows for strip in found if (rows := strip.beyond(stride)) is not None]
    if len(beyond) < 2:
        return Grid(side, 0, None)
    return Grid(stride, found[0].phase(stride), round_up(max(beyond), stride))


@dataclass(frozen=True, slots=True)
class _Strip:
    """Thin images along one axis: `length` pixels long, `side` wide."""

    network: nn.Module
    bands: int
    side: int
    axis: int
    stretch: int = 1
    finite: bool = False
    """True: numbers are followed too."""
    image: torch.Tensor = field(init=False, repr=False)
    """Noise (1, bands, length, side), the long axis first whatever `axis` is."""

    def __post_init__(self) -> None:
        shape = (self.bands, self.unit * self.stretch, self.side)
        object.__setattr__(self, "image", noise(self.network, shape))

    @property
    def unit(self) -> int:
        """The shortest length: a multiple of the side and of the usual strides."""
        return _LENGTH if _LENGTH % self.side == 0 else 8 * self.side

    @property
    def length(self) -> int:
        return self.unit * self.stretch

    def stretched(self, stretch: int) -> "_Strip":
        """The same, `stretch` units long."""
        return replace(self, stretch=stretch)

    def scores(self, image: torch.Tensor) -> torch.Tensor:
        """(length, side, classes) of an image like `self.image`."""
        out = forward(self.network, image.transpose(-1, -2) if self.axis else image)[0]
        lengthwise = out.permute(2, 1, 0) if self.axis else out.permute(1, 2, 0)
        if lengthwise.shape[:2] != (self.length, self.side):
            raise ModelError(
                "network-output",
                "the network gives scores of {found} for {size} pixels; let it upsample them to the input's size",
                found=" x ".join(map(str, lengthwise.shape[:2])),
                size=f"{self.length} x {self.side}",
            )
        return lengthwise

    def clean(self, start: int, stop: int) -> tuple[int, int] | None:
        """The first row with clean scores and the row after the last one, when only rows start … stop - 1 are data.

        None when the middle is not clean.
        """
        image = torch.full_like(self.image, torch.nan)
        image[:, :, start:stop] = self.image[:, :, start:stop]
        broken = torch.isnan(self.scores(image)).flatten(1).any(dim=1)
        for other in self._others() if self.finite else ():
            other[:, :, start:stop] = self.image[:, :, start:stop]
            broken |= self._changed(self.scores(other))
        middle = (start + stop) // 2
        if broken[middle]:
            return None
        above, below = broken[:middle].nonzero(), broken[middle:].nonzero()
        return (
            int(above[-1]) + 1 if len(above) else 0,
            middle + int(below[0]) if len(below) else self.length,
        )

    def _others(self) -> Iterator[torch.Tensor]:
        """Yield images that are unlike this one: bright, dark, large, small, noisy in another way."""
        for factor, summand in ((0.0, 1000.0), (0.0, -1000.0), (0.0, 0.0), (0.1, 5.0), (-100.0, 0.0)):
            yield factor * self.image + summand

    def _changed(self, scores: torch.Tensor) -> torch.Tensor:
        """Return the rows whose scores are not those of the image."""
        usual = self.scores(self.image)
        allowed = _EQUAL * usual.abs().amax().clamp(min=torch.finfo(usual.dtype).tiny)
        return (~((scores - usual).abs() <= allowed)).flatten(1).any(dim=1)

    def beyond(self, stride: int) -> int | None:
        """Rows needed beyond a core on the grid, on the worse side; None when no score is clean."""
        start, stop = self._data(stride)
        clean = self.clean(start, stop)
        return None if clean is None else max(clean[0] - start, stop - clean[1], 0)

    def stride(self) -> int | None:
        """The smallest shift the network commutes with: such shifts are the multiples of one number.

        None when not even shifts that all usual strides divide do.
        """
        stride = self.unit
        far = (self.beyond(1) or 0) + _SLACK  # rows so far from both ends see neither
        start = 2 * _SLACK
        image = self.image.clone()
        image[:, :, :start] = torch.nan  # its edge, `far` from it, shows strides that values hardly show
        still = self.scores(image)
        for prime in (7, 5, 3, 2):
            while stride % prime == 0:
                shift = stride // prime
                if self.length - 2 * far < shift + start:
                    return self.stretched(2 * self.stretch).stride()
                moved = self.scores(image.roll(shift, dims=2))
                if not _same(still[far : self.length - far - shift], moved[far + shift : self.length - far]):
                    break
                stride = shift
        return stride if stride < self.unit else None

    def phase(self, stride: int) -> int:
        """Where cells begin, as near to 0 as can be told."""
        start, stop = self._data(stride)
        by_nan = replace(self, finite=False)  # where cells begin only saves a little

        @cache  # of most networks, what looks up and what looks down jump at the same places
        def clean(rows: int) -> tuple[int, int]:
            return by_nan.clean(start + rows, stop - rows) or (0, 0)

        def top(rows: int) -> int:
            return clean(rows)[0]

        def bottom(rows: int) -> int:
            return -clean(rows)[1]

        return cells_begin(top, bottom, stride)

    def _data(self, stride: int) -> tuple[int, int]:
        start = round_up(self.length // 4, stride)
        return start, self.length - start


def _fitting_strip(strip: _Strip) -> _Strip | None:
    """`strip`, or a longer one if the network looks farther; None when it looks at everything."""
    beyond = strip.beyond(1)
    if beyond is None:
        strip = strip.stretched(_STRETCH)
        beyond = strip.beyond(1)
    if beyond is None:
        return None
    enough = [k for k in (1, 2) if 2 * (beyond + _SLACK) <= k * strip.unit // 2]
    stretch = enough[0] if enough else _STRETCH
    return strip if stretch == strip.stretch else strip.stretched(stretch)


def _same(still: torch.Tensor, moved: torch.Tensor) -> bool:
    """True when (rows, side, classes) of both are NaN at the same places and equal elsewhere, but for rounding."""
    known = ~torch.isnan(still)
    if not torch.equal(known, ~torch.isnan(moved)):
        return False
    sound = known.flatten(1).all(dim=1)
    a, b = still[sound].flatten(0, 1), moved[sound].flatten(0, 1)
    if len(a) == 0:
        return True
    allowed = _SAME * a.std(dim=0, correction=0) + _ROUNDING * a.abs().amax(dim=0)
    return bool(((a - b).abs().amax(dim=0) <= allowed).all())
