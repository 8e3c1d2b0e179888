"""Files that are either whole or not there, also after a crash."""

import os
import uuid
from collections.abc import Iterable
from pathlib import Path


def write_whole(path: Path, data: bytes | str) -> None:
    """Write `data` (text as UTF-8) to `path`: readers see the old file or the new one, never a part."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        temporary.write_bytes(data.encode() if isinstance(data, str) else data)
        sync([temporary])
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    sync([path.parent])


def sync(paths: Iterable[Path]) -> None:
    """Ask the system to bring files and folders to the disk before going on."""
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
