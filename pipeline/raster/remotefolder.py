"""Zarr stores at URLs: files and folders below them, as obstore gives them."""

import errno
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Self
from urllib.parse import quote, unquote, urlsplit

from fcn_batch.pipeline.core.distant import Distant
from fcn_batch.pipeline.core.errors import InputError
from fcn_batch.pipeline.core.location import Url
from fcn_batch.pipeline.raster.remote import not_there, store_at, trouble, unreached


@dataclass(frozen=True, slots=True)
class _Server:
    """A host, or a bucket, and what is known of it."""

    base: str
    """Such as "s3://bucket"."""
    web: bool
    """True: it speaks HTTP and no more, so it lists nothing, and names are quoted in URLs."""
    store: Any
    sizes: dict[str, int | None] = field(default_factory=dict)
    texts: dict[str, bytes | None] = field(default_factory=dict)


class RemoteFolder(Distant):
    """What is at a URL. Pickles as the URL. InputError for a URL with a query: what is below has no name."""

    def __init__(self, url: Url, of: tuple[_Server, str] | None = None) -> None:
        if of is None:
            parts = urlsplit(url.text)
            if parts.query or parts.fragment:
                raise InputError(f"{url}: a zarr store is a folder, so its URL cannot have a query; give it without")
            base, web = f"{url.scheme}://{parts.netloc}", url.scheme in ("http", "https")
            of = _Server(base, web, store_at(base, url)), unquote(parts.path) if web else parts.path
        self._server, key = of
        super().__init__(key)

    def __reduce__(self) -> tuple[type["RemoteFolder"], tuple[Url]]:
        return RemoteFolder, (Url(str(self)),)

    def __str__(self) -> str:
        return f"{self._server.base}/{quote(self.key) if self._server.web else self.key}"

    @property
    def lists(self) -> bool:
        """False for a server of HTTP alone."""
        return not self._server.web

    def iterdir(self) -> Iterator[Self]:
        """The folders in it. InputError when the server does not answer."""
        import obstore

        try:
            found = obstore.list_with_delimiter(self._server.store, prefix=self.key)["common_prefixes"]
        except trouble() as error:
            raise unreached(self, error) from error
        yield from map(self._at, found)

    def size(self) -> int | None:
        """Bytes of a file; None when there is none. InputError when the server does not answer."""
        import obstore

        sizes = self._server.sizes
        if self.key not in sizes:
            try:
                sizes[self.key] = obstore.head(self._server.store, self.key)["size"]
            except not_there():
                sizes[self.key] = None
            except trouble() as error:
                raise unreached(self, error) from error
        return sizes[self.key]

    def read(self, limit: int, part: slice = slice(None)) -> bytes | None:
        """Bytes of a file; None when there is none. OSError when they are more, InputError when the server fails."""
        import obstore

        try:
            found = obstore.get(self._server.store, self.key, options=_range(part))
            first, stop = found.range
            if stop - first <= limit:
                return bytes(found.bytes())
        except not_there():
            return None
        except trouble() as error:
            raise unreached(self, error) from error
        raise OSError(errno.EFBIG, f"its {stop - first} bytes are more than the limit of {limit}", str(self))

    def text(self, limit: int) -> bytes | None:
        """All of a small file, which is read once. Errors as of `read`."""
        texts = self._server.texts
        if self.key not in texts:
            texts[self.key] = self.read(limit)
        return texts[self.key]

    def _at(self, key: str) -> Self:
        return type(self)(Url(self._server.base), (self._server, key))


def _range(part: slice) -> Any:
    """As obstore has it.

    >>> _range(slice(5, 9)), _range(slice(5, None)), _range(slice(-5, None)), _range(slice(None))
    ({'range': (5, 9)}, {'range': {'offset': 5}}, {'range': {'suffix': 5}}, {})
    """
    if part.start is None:
        return {}
    if part.stop is not None:
        return {"range": (part.start, part.stop)}
    return {"range": {"offset": part.start} if part.start >= 0 else {"suffix": -part.start}}
