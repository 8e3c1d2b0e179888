"""SHA-256 of the files of a run's outputs, but those that the blocks' own hashes speak for: the chunks of its maps."""

import hashlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from fcn_batch.pipeline.store import ARRAY, CONFIDENCE

_CHUNKS = frozenset((ARRAY, *CONFIDENCE))
"""Arrays whose folder `c` holds them."""


def checksums(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """Hashes by path below `folder` of the outputs `names`; of stores, of all files but the chunks of a map."""
    return {str(path.relative_to(folder)): file_sha256(path) for name in names for path in _files(folder / name)}


def file_sha256(path: Path) -> str:
    """Of a file of any size, as hexadecimal digits; OSError when it cannot be read."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _files(path: Path) -> Iterator[Path]:
    if not path.is_dir():
        yield path
        return
    for folder, folders, names in os.walk(path):
        here = Path(folder)
        folders[:] = sorted(name for name in folders if not (name == "c" and here.name in _CHUNKS))
        yield from (here / name for name in sorted(names))
