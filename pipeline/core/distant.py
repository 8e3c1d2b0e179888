"""Files and folders of a server, with as much of what a `Path` can do as readers of zarr stores need."""

import errno
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Self

from fcn_batch.pipeline.core.limits import read_bounded


class Distant(ABC):
    """What a server has under a name; equal if the names are."""

    def __init__(self, key: str) -> None:
        self.key = key.strip("/")

    @abstractmethod
    def __str__(self) -> str:
        """The whole name."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Distant) and str(self) == str(other)

    def __hash__(self) -> int:
        return hash(str(self))

    def __truediv__(self, name: str) -> Self:
        return self._at("/".join([self.key, *(part for part in name.split("/") if part not in ("", "."))]))

    @property
    def name(self) -> str:
        """The last part of the name."""
        return self.key.rpartition("/")[2]

    @property
    def parent(self) -> Self:
        """What it is in."""
        return self._at(self.key.rpartition("/")[0])

    def is_symlink(self) -> bool:
        """False: servers have none."""
        return False

    def resolve(self) -> Self:
        """Itself."""
        return self

    def is_dir(self) -> bool:
        """True: nobody knows, and what is asked for in it may not be there."""
        return True

    def is_file(self) -> bool:
        """Whether it is there. InputError when the server does not answer."""
        return self.size() is not None

    exists = is_file

    @property
    @abstractmethod
    def lists(self) -> bool:
        """Whether the server tells what is in a folder."""

    @abstractmethod
    def iterdir(self) -> Iterator[Self]:
        """The folders in it, if the server tells. InputError when it does not answer."""

    @abstractmethod
    def size(self) -> int | None:
        """Bytes of a file; None when there is none. The server is asked once. InputError when it does not answer."""

    @abstractmethod
    def read(self, limit: int, part: slice = slice(None)) -> bytes | None:
        """Bytes of a file; None when there is none.

        OSError when these are more than `limit`, InputError when the server does not answer.
        """

    @abstractmethod
    def text(self, limit: int) -> bytes | None:
        """All of a small file, which is read once. Errors as of `read`."""

    @abstractmethod
    def _at(self, key: str) -> Self:
        """Another name at the same server."""


Place = Path | Distant
"""Where a zarr store, or a part of it, is."""


def bounded(place: Place, limit: int) -> bytes:
    """The content of a file of at most `limit` bytes; OSError when it is missing or larger, or cannot be read."""
    if isinstance(place, Path):
        return read_bounded(place, limit)
    found = place.text(limit)
    if found is None:
        raise FileNotFoundError(errno.ENOENT, "there is none", str(place))
    return found
