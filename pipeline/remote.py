"""What is known of a remote file without reading it: its size, and what changes when it is written anew."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from fcn_batch.pipeline.errors import InputError, OptionError
from fcn_batch.pipeline.gdal import endpoint
from fcn_batch.pipeline.location import Url

INSTALL = "pip install 'fcn-batch[remote]'"
_TIMEOUT = "30s"


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
        reason = str(error).strip().splitlines()[0][:300]
        raise InputError(f"{url}: cannot be reached ({reason}); check name, network and credentials") from error
    modified: datetime | None = found["last_modified"]
    nanoseconds = None if modified is None else int(modified.timestamp()) * 10**9
    return RemoteFile(url.name, found["size"], nanoseconds, found.get("e_tag"))


def store_of(url: Url) -> tuple[Any, str]:
    """The store that a URL is in, and its key there; OptionError when the library that knows them is missing."""
    try:
        from obstore.store import from_url
    except ImportError as error:
        raise OptionError(f"{url}: for what is not on this machine, {INSTALL}") from error

    parts = urlsplit(url.text)
    options: Any = {"client_options": {"timeout": _TIMEOUT, "allow_http": True}, "retry_config": {"max_retries": 2}}
    if url.scheme == "s3" and (server := endpoint()):
        options["config"] = {"endpoint": server, "virtual_hosted_style_request": False}
    if url.scheme in ("http", "https"):
        base = urlunsplit((url.scheme, parts.netloc, "", "", ""))
        return from_url(base, **options), parts.path.lstrip("/") + (f"?{parts.query}" if parts.query else "")
    return from_url(f"{url.scheme}://{parts.netloc}", **options), parts.path.lstrip("/")


def trouble() -> tuple[type[Exception], ...]:
    """What the library of object stores raises."""
    from obstore.exceptions import BaseError

    return BaseError, OSError, ValueError


def not_there() -> tuple[type[Exception], ...]:
    """What it raises for an object that does not exist."""
    from obstore.exceptions import NotFoundError

    return NotFoundError, FileNotFoundError
