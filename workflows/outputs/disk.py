"""How much room a run takes on the disk of its outputs, and whether that much is free."""

import os
import shutil
from contextlib import suppress
from pathlib import Path

from fcn_batch.pipeline.core.errors import OutputError
from fcn_batch.pipeline.core.plan import Plan
from fcn_batch.pipeline.network.confidence import PLANES

_COORDINATE = 8
"""Bytes of the coordinate of a row or a column, in every store."""
_PAGE = 2**12
"""Bytes by which a file system gives room: the end of each file leaves some unused."""
_BESIDE = 2**20
"""Bytes of metadata, style, item and report."""
_DEFLATE = 1.001
"""Noise becomes a little larger."""
_LEAST_SHARE = 0.01
"""Maps take a tenth to a hundredth of the room that noise would take: with less, a run cannot end well."""


def disk_needed(plan: Plan, *, pyramid: bool = False) -> int:
    """Bytes that a run takes at most at any one time, all of its outputs included: maps of noise would take them.

    the store      1 byte a pixel; the confidences 2 more
    the GeoTIFF    1 as it is written first, 1 + 1/3 as it is copied, 1/3 for its overviews meanwhile
    the pyramid    1 + 1/3, when the first form of the GeoTIFF is gone
    """
    size = plan.input.size
    pixels = size.pixels
    levels = pixels * 4 / 3
    stores = pixels * (1 + (PLANES if plan.confidence else 0))
    copying, done = pixels + levels + pixels / 3, levels
    peak = max(copying, done + levels) if pyramid else copying
    coordinates = _COORDINATE * (size.height + size.width) * (1 + plan.confidence + 2 * pyramid)
    chunks = -(-size.height // plan.cut.chunk) * -(-size.width // plan.cut.chunk)
    files = chunks * (1 + (PLANES if plan.confidence else 0) + 2 * pyramid) + 2 * len(plan.grid)  # receipts and claims
    return int((stores + peak) * _DEFLATE) + coordinates + _PAGE * files + _BESIDE


def free_room(folder: Path) -> int:
    """Bytes that are free where `folder` is, or will be."""
    there = next(path for path in (folder, *folder.absolute().parents) if path.is_dir())
    return shutil.disk_usage(there).free


def describe_disk(folder: Path, plan: Plan, *, pyramid: bool = False) -> str:
    """What `fcn-batch plan` says of it."""
    needed, free = disk_needed(plan, pyramid=pyramid), free_room(folder)
    doubt = ": may not be enough" if needed > free else ""
    return f"at most {size_text(needed)} while it runs, mostly far less; {size_text(free)} free in {folder}{doubt}"


def check_disk(folder: Path, plan: Plan, *, pyramid: bool = False, staging: Path | None = None) -> str | None:
    """A note when `folder` might become full; None when it cannot.

    What an interrupted run has left in `staging` need not be written again. OutputError when there is so little room
    that a run cannot end well.
    """
    needed, free = disk_needed(plan, pyramid=pyramid), free_room(folder)
    if needed <= free:
        return None
    if staging is not None:
        needed -= min(needed, _size_of(staging))
    if free < needed * _LEAST_SHARE:
        raise OutputError(
            "disk-full",
            "{path}: {free} are free and the outputs may take {needed}; make room, or give another folder with -o DIR",
            path=folder,
            free=size_text(free),
            needed=size_text(needed),
        )
    if needed <= free:
        return None
    return f"{folder}: the outputs may take {size_text(needed)}, {size_text(free)} are free: may not be enough"


def size_text(count: int) -> str:
    """Bytes as people write them.

    >>> size_text(3_456_789), size_text(2_345_000_000), size_text(12)
    ('3.5 MB', '2.3 GB', '0.0 MB')
    """
    for unit, size in (("TB", 1e12), ("GB", 1e9)):
        if count >= size:
            return f"{count / size:,.1f} {unit}"
    return f"{count / 1e6:,.1f} MB"


def _size_of(folder: Path) -> int:
    total = 0
    for here, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):  # another run has renamed it
                total += os.lstat(Path(here, name)).st_size
    return total
