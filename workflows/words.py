"""Options as they are written in words, on the command line and in Python. OptionError when nothing can be meant."""

import math
import re

from fcn_batch.pipeline.core.errors import OptionError

_LEAST_BARE = 10**6
"""Who gives fewer bytes, without a unit, meant to give one."""


def bands_of(text: str) -> tuple[int | str, ...]:
    """Numbers and names of bands.

    >>> bands_of("3,2,B02")
    (3, 2, 'B02')
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(parts):
        raise OptionError(f"{text!r} is not a list of bands like 3,2,1 or B04,B03,B02")
    return tuple(int(part) if re.fullmatch(r"[+-]?\d+", part) else part for part in parts)


def box_of(text: str) -> tuple[float, ...]:
    """West, south, east and north.

    >>> box_of("5.1,45,5.3,45.2")
    (5.1, 45.0, 5.3, 45.2)
    """
    try:
        numbers = tuple(float(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    if len(numbers) != 4 or not all(map(math.isfinite, numbers)):
        raise OptionError(f"{text!r} is not a box like 5.1,45,5.3,45.2 (west, south, east, north)")
    return numbers


def bytes_of(text: str) -> int:
    """An amount of memory.

    >>> bytes_of("4GB"), bytes_of("500MiB"), bytes_of("4e9")
    (4000000000, 524288000, 4000000000)
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?(?:e\d+)?)\s*([kmgt]?)(i?)b?\s*", text, re.IGNORECASE)
    count = 0.0
    if found is not None:
        unit = 1024 if found[3] else 1000
        count = float(found[1]) * unit ** ("kmgt".find(found[2].lower()) + 1 if found[2] else 0)
    least = _LEAST_BARE if text.strip()[-1:].isdigit() else 1
    if not least <= count < math.inf:
        raise OptionError(f"{text!r} is not an amount of memory like 4GB or 500MB")
    return int(count)
