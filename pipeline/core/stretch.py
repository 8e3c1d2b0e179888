"""Which values of a raster stand for 0 and 1 in training, band by band, where it is not 0 and one full scale."""

import math
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from fcn_batch.pipeline.core.limits import MAX_BANDS
from fcn_batch.pipeline.core.model_card import InputSpec

Range = tuple[float, float]
_KEPT_BITS = 20
"""Of a float that is counted: sign, exponent and 11 bits, so a percentile is right to a 2048th of itself."""


class Stretch(BaseModel):
    """A range of values for each band, in the order the network wants them."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    by: Annotated[str, Field(max_length=300)]
    """How it was asked for."""
    ranges: Annotated[tuple[Range, ...], Field(min_length=1, max_length=MAX_BANDS)]
    """The values that stand for 0 and for 1."""

    @model_validator(mode="after")
    def _ascending(self) -> "Stretch":
        for low, high in self.ranges:
            if not high > low:
                raise ValueError(f"from {low:g} to {high:g} nothing can be stretched")
        return self

    def applied(self, spec: InputSpec) -> InputSpec:
        """`spec` for the raster's own values: ((v - low) / (high - low) - mean) / std is (v - mean') / std'.

        >>> from fcn_batch.pipeline.core.model_card import Band
        >>> spec = InputSpec(bands=(Band(name="red", mean=0.5, std=0.25),), gsd_m=1)
        >>> Stretch(by="1000,3000", ranges=((1000, 3000),)).applied(spec).bands[0]
        Band(name='red', mean=2000.0, std=500.0)
        """
        bands = tuple(
            band.model_copy(update={"mean": low + band.mean * (high - low), "std": band.std * (high - low)})
            for band, (low, high) in zip(spec.bands, self.ranges, strict=True)
        )
        return spec.model_copy(update={"bands": bands, "full_scale": 1.0})


class Histogram:
    """How often each value occurs in a band, however large: exact for integers of 16 bits, by 20 bits of floats."""

    def __init__(self, dtype: str) -> None:
        self._dtype = np.dtype(dtype)
        if self._dtype.kind not in "iuf" or self._dtype.itemsize > (4 if self._dtype.kind == "f" else 2):
            raise ValueError(f"values of {dtype} are not counted; integers of 16 bits and float32 are")
        bits = _KEPT_BITS if self._dtype.kind == "f" else 8 * self._dtype.itemsize
        self._counts = np.zeros(2**bits, np.int64)

    def add(self, values: NDArray[np.generic]) -> None:
        """Count finite `values` of any shape."""
        self._counts += np.bincount(self._bins(values.ravel()), minlength=self._counts.size)

    @property
    def count(self) -> int:
        """How many values there were."""
        return int(self._counts.sum())

    def percentile(self, percent: float) -> float:
        """The least value that so many percent of all do not exceed. ValueError when there are none.

        >>> counted = Histogram("uint8")
        >>> counted.add(np.arange(200, dtype=np.uint8))
        >>> counted.percentile(0), counted.percentile(50), counted.percentile(100)
        (0.0, 99.0, 199.0)
        """
        if not self.count:
            raise ValueError("no values")
        wanted = max(1, math.ceil(self.count * percent / 100))
        return self._value(int(np.searchsorted(np.cumsum(self._counts), wanted)))

    def _bins(self, values: NDArray[np.generic]) -> NDArray[np.integer]:
        if self._dtype.kind == "f":
            return (_ordered(values.astype(np.float32)) >> np.uint32(32 - _KEPT_BITS)).astype(np.int64)
        return values.astype(np.int64) - int(np.iinfo(self._dtype).min)

    def _value(self, number: int) -> float:
        if self._dtype.kind != "f":
            return float(number + int(np.iinfo(self._dtype).min))
        bits = np.uint32(number) << np.uint32(32 - _KEPT_BITS)
        sign = np.uint32(2**31)
        bits = bits ^ sign if bits & sign else ~bits
        return float(np.array([bits], np.uint32).view(np.float32)[0])


def _ordered(values: NDArray[np.float32]) -> NDArray[np.uint32]:
    """Bits of floats as whole numbers in the floats' order: the sign turned for positive ones, all for negative ones.

    >>> [f"{bits:08x}" for bits in _ordered(np.array([-1, -0.0, 0, 1], np.float32))]
    ['407fffff', '7fffffff', '80000000', 'bf800000']
    """
    bits = values.view(np.uint32)
    return np.where(bits >> np.uint32(31), ~bits, bits ^ np.uint32(2**31))
