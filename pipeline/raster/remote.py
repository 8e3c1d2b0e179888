"""Object stores and web servers: what is known of a file without reading it, and outputs that go into a bucket."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit, urlunsplit

from fcn_batch.pipeline.core.errors import InputError, OptionError, OutputError
from fcn_batch.pipeline.core.location import Url
from fcn_batch.pipeline.raster.gdal import endpoint

INSTALL = "pip install 'fcn-batch[remote]'"
_TIMEOUT = "30s"
"""For a whole request, with what is sent and what comes back."""
_LONGEST = "10m"
"""For a request that sends a part of a file."""
_PARTS_AT_ONCE = 2
"""Of one file, of which several go at once. They share a line: each must be through before that time."""


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """One file of a server."""

    name: str
    bytes: int
    modified_ns: int | None
    tag: str | None
    """The server's own mark of this very content (ETag)."""


def look_at(url: Url) -> RemoteFile:
    """Ask its server; InputError when it does not answer, or has no such file."""
    store, key = store_of(url)
    import obstore

    try:
        found = obstore.head(store, key)
    except trouble() as error:
        raise unreached(url, error) from error
    return RemoteFile(url.name, found["size"], _nanoseconds(found["last_modified"]), found.get("e_tag"))


def look_into(url: Url) -> RemoteFile:
    """The same of all that is below a URL, as one: bytes together, the latest time, a hash of names and marks."""
    store, key = store_of(url)
    import obstore

    try:
        found = [one for some in obstore.list(store, prefix=key.rstrip("/")) for one in some]
    except trouble() as error:
        raise unreached(url, error) from error
    lines = sorted(f"{one['path']}\0{one['size']}\0{one['e_tag'] or one['last_modified']}\n" for one in found)
    latest = max((_nanoseconds(one["last_modified"]) for one in found), default=0)
    return RemoteFile(url.name, sum(one["size"] for one in found), latest, sha256("".join(lines).encode()).hexdigest())


def _nanoseconds(moment: datetime) -> int:
    return int(moment.timestamp()) * 10**9


def store_of(url: Url, timeout: str | None = None) -> tuple[Any, str]:
    """Return the store that a URL is in, and its key there; OptionError when the library for them is missing."""
    parts = urlsplit(url.text)
    if url.scheme in ("http", "https"):  # with its query, and as it is quoted
        return store_at(urlunsplit(parts._replace(fragment="")), url, timeout), ""
    return store_at(f"{url.scheme}://{parts.netloc}", url, timeout), parts.path.lstrip("/")


def store_at(base: str, url: Url, timeout: str | None = None) -> Any:
    """Return the store of all that is below `base`, for the sake of `url`; OptionError as above."""
    try:
        from obstore.store import from_url
    except ImportError as error:
        raise OptionError(
            "extra-missing", "{place}: for what is not on this machine, {install}", place=url, install=INSTALL
        ) from error

    client = {"timeout": timeout or _TIMEOUT, "allow_http": True}
    options: Any = {"client_options": client, "retry_config": {"max_retries": 2}}
    if url.scheme == "s3" and (server := endpoint()):
        options["config"] = {"endpoint": server, "virtual_hosted_style_request": False}
    return from_url(base, **options)


def folder_of(url: Url) -> tuple[Any, str, str]:
    """Return the server of a folder, what the server is called, and the folder's key there.

    InputError for a URL with a query: what is in the folder has no name.
    """
    parts = urlsplit(url.text)
    if parts.query or parts.fragment:
        raise InputError(
            "url-with-query",
            "{url}: a zarr store is a folder, so its URL cannot have a query; give it without",
            url=url,
        )
    base = f"{url.scheme}://{parts.netloc}"
    path = unquote(parts.path) if url.scheme in ("http", "https") else parts.path
    return store_at(base, url), base, path.strip("/")


def unreached(name: object, error: Exception) -> InputError:
    """Return the error of a server that fails."""
    return InputError(
        "server-unreachable",
        "{place}: cannot be reached ({reason}); check name, network and credentials",
        place=name,
        reason=_reason(error),
    )


def _reason(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:300]


def trouble() -> tuple[type[Exception], ...]:
    """Return what the library of object stores raises."""
    from obstore.exceptions import BaseError

    return BaseError, OSError, ValueError


def not_there() -> tuple[type[Exception], ...]:
    """Return what it raises for an object that does not exist."""
    from obstore.exceptions import NotFoundError

    return NotFoundError, FileNotFoundError


class Bucket:
    """The objects below `url`, a prefix of an object store; their keys begin after it. OutputError if refused."""

    def __init__(self, url: Url) -> None:
        self.url = url
        self._store, key = store_of(url)
        self._sink, _ = store_of(url, _LONGEST)
        self._prefix = key.rstrip("/") + "/" if key.strip("/") else ""

    def read(self, key: str) -> bytes | None:
        """Return an object's bytes; None when there is none."""
        import obstore

        found = []
        with self._asking("read", key):
            found.append(bytes(obstore.get(self._store, self._prefix + key).bytes()))
        return found[0] if found else None

    def write(self, key: str, path: Path) -> None:
        """Put a file there, in the place of what there was."""
        import obstore

        with self._asking("written", key, missing_is_fine=False):
            obstore.put(self._sink, self._prefix + key, path, max_concurrency=_PARTS_AT_ONCE)

    def sizes(self, name: str) -> dict[str, int]:
        """Return the bytes of the object of that name, and of all below it, as in a folder."""
        import obstore

        found: dict[str, int] = {}
        with self._asking("listed", name):
            for some in obstore.list(self._store, prefix=self._prefix + name):
                found |= {str(one["path"]).removeprefix(self._prefix): int(one["size"]) for one in some}
            found[name] = int(obstore.head(self._store, self._prefix + name)["size"])
        return found

    def delete(self, keys: Iterable[str]) -> None:
        """Delete objects, if they are there."""
        import obstore

        whole = [self._prefix + key for key in keys]
        if whole:
            with self._asking("deleted", whole[0]):
                obstore.delete(self._store, whole)

    @contextmanager
    def _asking(self, what: str, key: str, *, missing_is_fine: bool = True) -> Iterator[None]:
        try:
            yield
        except trouble() as error:
            if not (missing_is_fine and isinstance(error, not_there())):
                raise OutputError(
                    "bucket-refused",
                    "{place}: {key} cannot be {what} ({reason}); check the name, and what you may do there",
                    place=self.url,
                    key=key,
                    what=what,
                    reason=_reason(error),
                ) from error
