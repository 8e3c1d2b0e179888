"""The rule for pixels that hold data, one for every kind of source.

A pixel is valid where every band that is used holds a measurement:

    nodata    its bands do not have their nodata value: of signed integers and floats none of them may have it, of
              unsigned integers one that differs is enough (a pure red under nodata 0 is red, and no hole)
    NaN       no band is NaN, infinite or beyond NO_MEASUREMENT
    mask      no band is 0 in its own mask, or in that of the file
    alpha     the alpha band, wherever it stands, is not 0

Bands that are not used decide nothing: not a quality band without nodata, nor an infrared one that is 0 over water.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

NO_MEASUREMENT = 1e30
"""From here on a float is no measurement: infinity, or the usual nodata of 3.4e38 that nobody declared."""
Rule = Literal["any", "all"]
"""Where several bands have a nodata value: a pixel is missing where any of them has it, or only where all have it."""

BY_NODATA, BY_NAN, BY_MASK, BY_ALPHA, OUTSIDE, BY_RESAMPLING, UNREADABLE = 1, 2, 4, 8, 16, 32, 64
"""Why a pixel is not valid: flags, which may stand together."""
RULES_DIFFER = 128
"""A flag of its own: the two rules say different things of this pixel."""
REASONS = {
    BY_MASK: "mask",
    BY_ALPHA: "alpha",
    BY_NODATA: "nodata",
    BY_NAN: "not a number",
    BY_RESAMPLING: "mostly without data",
    UNREADABLE: "unreadable",
    OUTSIDE: "outside",
}
"""Names of the flags; a pixel with several counts for the first."""


def nodata_values(text: str) -> tuple[float, ...]:
    """Return the numbers of ``0``, ``0,0,255``, ``nan`` or ``none``; ValueError for anything else.

    >>> nodata_values("-9999"), nodata_values("0,0,255"), nodata_values("none")
    ((-9999.0,), (0.0, 0.0, 255.0), ())
    """
    return () if text == "none" else tuple(float(part) for part in text.split(","))


def held_by(dtype: str, value: float) -> bool:
    """Return whether pixels of a type can have a value."""
    kind = np.dtype(dtype)
    if kind.kind == "f":
        return not math.isfinite(value) or abs(value) <= float(np.finfo(kind).max) * (1 + 1e-6)
    return math.isfinite(value) and value == int(value) and np.iinfo(kind).min <= value <= np.iinfo(kind).max


@dataclass(frozen=True, slots=True)
class NodataOption:
    """Nodata as the user gives it, in place of the file."""

    values: str | None = None
    """As `nodata_values` reads them; None: as the file says."""
    rule: Rule | None = None
    """Where several bands have one; None: by the pixel type."""


AS_DECLARED = NodataOption()
"""Nothing said."""


@dataclass(frozen=True, slots=True)
class Validity:
    """The nodata values, masks and rule that decide validity."""

    dtype: str
    nodata: tuple[float | None, ...]
    """One value for each band; None without one, with one its type cannot hold, and for NaN and infinity."""
    alpha: int | None = None
    """Number of the alpha band."""
    masked: bool = False
    """True when bands, or the file, have masks that are stored."""
    rule: Rule = "any"

    @classmethod
    def of(
        cls,
        dtype: str,
        declared: Sequence[float | None],
        roles: Sequence[str],
        *,
        masked: bool = False,
        option: NodataOption = NodataOption(),
    ) -> "Validity":
        """Make it from what the file declares and what the user says.

        ValueError when the option fits neither the type nor the number of bands.
        """
        values: Sequence[float | None] = declared
        if option.values is not None:
            said = nodata_values(option.values)
            if len(said) not in (0, 1, len(values)):
                raise ValueError(f"{len(said)} values for {len(values)} bands: give one, or one for each band")
            if beyond := [value for value in said if not held_by(dtype, value)]:
                raise ValueError(f"pixels of {dtype} cannot be {beyond[0]:g}: give a value that they can have")
            values = said * (len(values) // len(said)) if said else (None,) * len(values)
        kept = tuple(
            value if value is not None and math.isfinite(value) and held_by(dtype, value) else None for value in values
        )
        alpha = roles.index("alpha") + 1 if "alpha" in roles else None
        usual: Rule = "all" if np.dtype(dtype).kind == "u" else "any"
        return cls(dtype, kept, alpha, masked, option.rule or usual)

    def judge(
        self,
        values: NDArray[Any],
        bands: Sequence[int],
        alpha: NDArray[Any] | None = None,
        masks: NDArray[np.uint8] | None = None,
    ) -> NDArray[np.uint8]:
        """Return why pixels are not valid, as flags: (rows, cols), 0 where they are.

        `values` are those of the used `bands`, which count from 1, `alpha` those of the alpha band, and `masks` the
        masks of the used bands.
        """
        why = np.zeros(values.shape[1:], np.uint8)
        if masks is not None:
            why[(masks == 0).any(axis=0)] |= BY_MASK
        if alpha is not None:
            why[alpha == 0] |= BY_ALPHA
        if values.dtype.kind == "f":
            why[~(np.abs(values) < NO_MEASUREMENT).all(axis=0)] |= BY_NAN
        declared = [(plane, self.nodata[band - 1]) for plane, band in zip(values, bands, strict=True)]
        missing = [plane == values.dtype.type(value) for plane, value in declared if value is not None]
        if missing:
            some, every = np.logical_or.reduce(missing), np.logical_and.reduce(missing)
            why[every if self.rule == "all" else some] |= BY_NODATA
            why[some & ~every] |= RULES_DIFFER
        return why


UNSAID = Validity("uint8", ())
"""Stands for that of a raster of which nothing is said."""


def is_valid(why: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Return where pixels hold data."""
    valid: NDArray[np.bool_] = (why & ~np.uint8(RULES_DIFFER)) == 0
    return valid


def counts(why: NDArray[np.uint8]) -> dict[str, int]:
    """Return how many pixels are not valid, by the first of their reasons."""
    left, found = why & ~np.uint8(RULES_DIFFER), {}
    for flag, name in REASONS.items():
        of_this = (left & flag) > 0
        if number := int(np.count_nonzero(of_this)):
            found[name] = number
            left = np.where(of_this, np.uint8(0), left)
    return found
