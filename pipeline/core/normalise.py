"""From a raster's numbers to the network's: scale, subtract the mean, divide; no data becomes 0."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fcn_batch.pipeline.core.model_card import InputSpec


def normalise(
    values: NDArray[np.generic],
    valid: NDArray[np.bool_],
    spec: InputSpec,
    *,
    dtype: type[np.float32] | type[np.float64] = np.float32,
) -> NDArray[np.floating]:
    """(value / full_scale - mean) / std for each band; 0 (the band's mean) where `valid` is false.

    `values` is (bands, rows, cols) in the raster's own dtype and units, `valid` (rows, cols); NaN and
    infinity may stand in `values` where `valid` is false, and nowhere else.
    """
    gain = np.array([1 / (spec.full_scale * b.std) for b in spec.bands], dtype=dtype)[:, None, None]
    offset = np.array([-b.mean / b.std for b in spec.bands], dtype=dtype)[:, None, None]
    out: NDArray[Any] = np.zeros(values.shape, dtype=dtype)
    np.copyto(out, values, where=valid, casting="unsafe")
    out *= gain
    out += offset
    out *= valid
    return out
