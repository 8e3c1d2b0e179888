"""Amounts of memory and durations, as people write them: the same everywhere, on the command line and in files."""

import math
import re

from fcn_batch.pipeline.core.errors import OptionError

_LEAST_BARE = 10**6
"""A smaller number of bytes without a unit is a unit that was forgotten."""


def bytes_of(text: str) -> int:
    """Return an amount of memory; OptionError when `text` is none. G is 10^9 as GB is, and GiB is 2^30.

    >>> bytes_of("8G"), bytes_of("8GB"), bytes_of("1.5GB"), bytes_of("500M"), bytes_of("500MiB"), bytes_of("4e9")
    (8000000000, 8000000000, 1500000000, 500000000, 524288000, 4000000000)
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?(?:e\d+)?)\s*(?:([kmgt])(i?))?b?\s*", text, re.IGNORECASE | re.ASCII)
    count = 0.0
    if found is not None:
        count = float(found[1]) * (1024 if found[3] else 1000) ** (" kmgt".index((found[2] or " ").lower()))
    least = _LEAST_BARE if text.strip()[-1:].isdigit() else 1
    if not least <= count < math.inf:
        raise OptionError(
            "memory-invalid", "{value} is not an amount of memory like 4GB, 500M or 2GiB", value=repr(text)
        )
    return int(count)


def seconds_of(text: str) -> int:
    """Return a duration in seconds; OptionError when `text` is none.

    >>> seconds_of("01:30:00")
    5400
    """
    found = re.fullmatch(r"(\d{1,4}):([0-5]\d):([0-5]\d)", text, re.ASCII)
    if found is None:
        raise OptionError("duration-invalid", "{value} is not a duration; give HH:MM:SS", value=repr(text))
    hours, minutes, seconds = map(int, found.groups())
    return 3600 * hours + 60 * minutes + seconds
