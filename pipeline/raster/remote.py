"""What is known of a remote file without reading it: its size, and what changes when it is written anew."""

from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256
from typing import Any
from urllib.parse import unquote, urlsplit, urlunsplit

from fcn_batch.pipeline.core.errors import InputError, OptionError
from fcn_batch.pipeline.core.location import Url
from fcn_batch.pipeline.raster.gdal import endpoint

INSTALL = "pip install 'fcn-batch[remote]'"
_TIMEOUT = "30s"
"""For a whole request, with what is sent and what comes back."""


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
    """The store that a URL is in, and its key there; OptionError when the library that knows them is missing."""
    parts = urlsplit(url.text)
    if url.scheme in ("http", "https"):  # with its query, and as it is quoted
        return store_at(urlunsplit(parts._replace(fragment="")), url, timeout), ""
    return store_at(f"{url.scheme}://{parts.netloc}", url, timeout), parts.path.lstrip("/")


def store_at(base: str, url: Url, timeout: str | None = None) -> Any:
    """All that is below `base`, for the sake of `url`; OptionError as above."""
    try:
        from obstore.store import from_url
    except ImportError as error:
        raise OptionError(f"{url}: for what is not on this machine, {INSTALL}") from error

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
    """What is said when a server fails."""
    reason = str(error).strip().splitlines()[0][:300]
    return InputError(f"{name}: cannot be reached ({reason}); check name, network and credentials")


def trouble() -> tuple[type[Exception], ...]:
    """What the library of object stores raises."""
    from obstore.exceptions import BaseError

    return BaseError, OSError, ValueError


def not_there() -> tuple[type[Exception], ...]:
    """What it raises for an object that does not exist."""
    from obstore.exceptions import NotFoundError

    return NotFoundError, FileNotFoundError
