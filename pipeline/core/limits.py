"""How large a file may claim to be: checked before anything of that size is read or allocated.

The limits are far above what anybody has (the land and seas of the Earth at 10 m are 4e6 x 2e6 pixels) and far below
what would take a machine down.
"""

import errno
import os
import re
import stat
import tomllib
from pathlib import Path
from typing import Any

MAX_SIDE = 2**25
"""Rows, and columns, of a raster or map."""
MAX_PIXELS = 2**42
"""Rows times columns."""
MAX_BANDS = 4096
"""Bands of a raster."""
MAX_BLOCK_BYTES = 2**29
"""What must be decoded at once: a storage block of a raster, a chunk of a store."""
MAX_SHARD_BYTES = 2**32
"""Pixels of a shard, which is written at once and read chunk by chunk."""
MAX_TEXT = 2**24
"""Bytes of a file of JSON, or of a text."""
MAX_TOML = 2**20
"""Bytes of a file of TOML."""
MAX_DOTS = 32
"""Dots in one of its keys."""
MAX_MODEL = 2**34
"""Bytes of a file of weights."""


def read_bounded(path: Path, limit: int) -> bytes:
    """The content of a regular file of at most `limit` bytes.

    OSError when it is missing, unreadable or larger, or a pipe or device, which might never end.
    """
    size = regular_size(path)
    if size > limit:
        raise OSError(errno.EFBIG, f"its {size} bytes are more than the limit of {limit}", str(path))
    with path.open("rb") as file:
        return file.read(limit)


def regular_size(path: Path) -> int:
    """Bytes of a regular file; OSError when it is missing, or no file but a folder, a pipe or a device."""
    status = path.stat()
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "is a pipe or device, not a file", str(path))
    return status.st_size


_KEY_PART = r"""\.[ \t]*(?:[\w-]+|"(?:[^"\\\n]|\\.)*"|'[^'\n]*')[ \t]*"""
_MANY_DOTS = re.compile(f"(?:{_KEY_PART}){{{MAX_DOTS + 1}}}")


def parsed_toml(data: bytes) -> dict[str, Any]:
    """What a file of TOML says.

    ValueError when it is none or claims too much, RecursionError when it is nested too deeply. Python's parser needs
    memory by the square of the parts of a key: 100 KB of ``a.a.a.…`` take 10 GB.

    >>> parsed_toml(b"a.b = 1"), parsed_toml(b"a.a" + b".a" * MAX_DOTS + b" = 1")
    Traceback (most recent call last):
    ValueError: a key of more than 32 dots
    """
    if len(data) > MAX_TOML:
        raise ValueError(f"its {len(data)} bytes are more than the limit of {MAX_TOML}")
    text = data.decode()
    if _MANY_DOTS.search(text):
        raise ValueError(f"a key of more than {MAX_DOTS} dots")
    return tomllib.loads(text)


def size_problem(height: int, width: int, bands: int = 1) -> str | None:
    """Why a raster of that size is too large, or None.

    >>> size_problem(1_000_000, 4_000_000), size_problem(2**26, 10)
    (None, '67108864 x 10 pixels, more than the limit of 33554432 rows or columns')
    """
    if max(height, width) > MAX_SIDE:
        return f"{height} x {width} pixels, more than the limit of {MAX_SIDE} rows or columns"
    if height * width > MAX_PIXELS:
        return f"{height} x {width} pixels, more than the limit of {MAX_PIXELS} in all"
    if bands > MAX_BANDS:
        return f"{bands} bands, more than the limit of {MAX_BANDS}"
    return None
