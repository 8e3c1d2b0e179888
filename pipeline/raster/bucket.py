"""Where outputs go that are not to stay on a file system: a prefix in an object store."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fcn_batch.pipeline.core.errors import OutputError
from fcn_batch.pipeline.core.location import Url
from fcn_batch.pipeline.raster.remote import not_there, store_of, trouble

_LONGEST = "10m"
"""For a request that sends a part of a file."""
_PARTS_AT_ONCE = 2
"""Of one file, of which several go at once. They share a line: each must be through before that time."""


class Bucket:
    """The objects below `url`; their keys begin after it. OutputError for whatever its server refuses."""

    def __init__(self, url: Url) -> None:
        self.url = url
        self._store, key = store_of(url)
        self._sink, _ = store_of(url, _LONGEST)
        self._prefix = key.rstrip("/") + "/" if key.strip("/") else ""

    def read(self, key: str) -> bytes | None:
        """An object's bytes; None when there is none."""
        import obstore

        try:
            return bytes(obstore.get(self._store, self._prefix + key).bytes())
        except not_there():
            return None
        except trouble() as error:
            raise self._refused("read", key, error) from error

    def write(self, key: str, path: Path) -> None:
        """Put a file there, in the place of what there was."""
        import obstore

        try:
            obstore.put(self._sink, self._prefix + key, path, max_concurrency=_PARTS_AT_ONCE)
        except trouble() as error:
            raise self._refused("written", key, error) from error

    def sizes(self, name: str) -> dict[str, int]:
        """Bytes of the object called so, and of all below it, as in a folder."""
        import obstore

        found: dict[str, int] = {}
        try:
            for some in obstore.list(self._store, prefix=self._prefix + name):
                found |= {str(one["path"]).removeprefix(self._prefix): int(one["size"]) for one in some}
            found[name] = int(obstore.head(self._store, self._prefix + name)["size"])
        except not_there():
            return found
        except trouble() as error:
            raise self._refused("listed", name, error) from error
        return found

    def delete(self, keys: Iterable[str]) -> None:
        """Delete objects, if they are there."""
        import obstore

        whole = [self._prefix + key for key in keys]
        try:
            if whole:
                obstore.delete(self._store, whole)
        except not_there():
            return
        except trouble() as error:
            raise self._refused("deleted", whole[0], error) from error

    def _refused(self, what: str, key: str, error: Any) -> OutputError:
        reason = str(error).strip().splitlines()[0][:300]
        return OutputError(f"{self.url}: {key} cannot be {what} ({reason}); check the name, and what you may do there")
