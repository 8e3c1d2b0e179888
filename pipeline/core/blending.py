"""Weights of overlapping tiles: along each axis the two tiles that share a pixel sum to 1.

A tile's weight is 1 in its middle and falls over the `overlap` pixels it shares with a neighbour; at the
raster's own edges there is no neighbour and the weight stays 1::

    1 |-------.             .-------.
      |        '.         .'         '.
    0 |          '-------'             '--
      tile k      overlap    tile k + 1

In two dimensions the weight is the product of the two axes', so it sums to 1 there too.
"""

import numpy as np
from numpy.typing import NDArray

from fcn_batch.pipeline.core.tiling import Axis, Blend

# The usual choice for a Gaussian window over a tile: one eighth of its length (e.g. nnU-Net, MONAI).
_GAUSSIAN_SIGMA = 0.125


def ramp(blend: Blend, overlap: int, tile: int) -> NDArray[np.float64]:
    """Weights of the *later* tile over the shared pixels, rising; the earlier tile has one minus these.

    `hann` is the squared sine, `linear` a straight line, `gaussian` the share of two Gaussians centred on
    the two tiles, `none` a step in the middle (every pixel from the tile whose edge is farther away).

    >>> ramp("linear", 4, 16).tolist()
    [0.125, 0.375, 0.625, 0.875]
    >>> ramp("none", 4, 16).tolist()
    [0.0, 0.0, 1.0, 1.0]
    """
    centres = (np.arange(overlap) + 0.5) / max(overlap, 1)
    if blend == "linear":
        return centres
    if blend == "hann":
        return np.sin(0.5 * np.pi * centres) ** 2
    if blend == "none":
        return np.where(centres > 0.5, 1.0, 0.0)
    # distances, in pixels, of the shared pixels from the centres of the later and the earlier tile
    later = 0.5 * tile - (np.arange(overlap) + 0.5)
    earlier = later[::-1]
    exponent = (later**2 - earlier**2) / (2 * (_GAUSSIAN_SIGMA * tile) ** 2)
    return np.asarray(1 / (1 + np.exp(np.clip(exponent, -700, 700))))


def axis_weights(axis: Axis, index: int, blend: Blend) -> NDArray[np.float64]:
    """Weights of tile `index` along `axis`, one for each of its pixels."""
    start, stop = axis.span(index)
    weights = np.ones(stop - start)
    rising = ramp(blend, axis.overlap, axis.tile)
    if index > 0:
        weights[: axis.overlap] = rising
    if index < axis.count - 1 and axis.overlap:
        weights[-axis.overlap :] = 1 - rising
    return weights
