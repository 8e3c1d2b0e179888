"""Options as they are written in words, on the command line and in Python. OptionError when nothing can be meant."""

import math
import re

from fcn_batch.pipeline.core.errors import OptionError
from fcn_batch.pipeline.core.validity import nodata_values


def bands_of(text: str) -> tuple[int | str, ...]:
    """Return numbers and names of bands.

    >>> bands_of("3,2,B02")
    (3, 2, 'B02')
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(parts):
        raise OptionError("bands-invalid", "{value} is not a list of bands like 3,2,1 or B04,B03,B02", value=repr(text))
    return tuple(int(part) if re.fullmatch(r"[+-]?\d+", part) else part for part in parts)


def box_of(text: str) -> tuple[float, ...]:
    """Return west, south, east and north.

    >>> box_of("5.1,45,5.3,45.2")
    (5.1, 45.0, 5.3, 45.2)
    """
    try:
        numbers = tuple(float(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    if len(numbers) != 4 or not all(map(math.isfinite, numbers)):
        raise OptionError(
            "box-invalid", "{value} is not a box like 5.1,45,5.3,45.2 (west, south, east, north)", value=repr(text)
        )
    return numbers


def nodata_of(text: str) -> str:
    """Return nodata values as they are written, or none.

    >>> nodata_of("0,0,255")
    '0,0,255'
    """
    try:
        nodata_values(text)
    except ValueError:
        raise OptionError(
            "nodata-invalid", "{value} is not a value like 0 or -9999, a list like 0,0,255, or none", value=repr(text)
        ) from None
    return text
