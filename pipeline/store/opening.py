"""Opening zarr stores, our own and those of others, with zarr-python.

Somebody else may have written a store, or written to it. So before a file on a disk is read, written or deleted it is
looked at (a regular file within the store, hardly larger than its array says), and of an array is read only what
`judged` let pass: sizes within limits, and codecs that cannot run anything and read no other file.
"""

import json
import math
import os
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

import zarr
from zarr.abc.store import ByteRequest
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.storage import LocalStore, ObjectStore, WrapperStore

from fcn_batch.pipeline.core.conventions import METADATA, holds_zarr
from fcn_batch.pipeline.core.limits import (
    MAX_BANDS,
    MAX_BLOCK_BYTES,
    MAX_PIXELS,
    MAX_SHARD_BYTES,
    MAX_SIDE,
    MAX_TEXT,
    read_bounded,
    regular_size,
)
from fcn_batch.pipeline.core.location import Url

UNSAFE = (OSError, ValueError, LookupError, TypeError, AttributeError, RuntimeError, OverflowError)
"""What opening raises for what is not there, broken or not safe to read."""
Node = zarr.Group | zarr.Array[Any]
ServerOf = Callable[[Url], tuple[Any, str, str]]
"""Returns the obstore store that a URL is in, the name of that store, and the key of the URL in it."""
_CODECS = {"bytes", "transpose", "shuffle", "delta", "crc32c", "blosc", "zstd", "lz4", "gzip", "zlib"}
_SHARDS = "sharding_indexed"
_SPARE = 2**20
"""Bytes that a chunk file may have beyond twice its pixels': the index of a shard, what cannot be compressed."""


class Guarded(WrapperStore[Any]):
    """A store on a disk or a server; ValueError for files on a disk that are not safe to read, write or delete."""

    def __init__(self, store: Any, name: str = "") -> None:
        super().__init__(store)
        self.name = name
        """The folder, or the part of a URL, to which keys are relative."""
        self.root: Path | None = store.root if isinstance(store, LocalStore) else None
        self.web = name.startswith(("http://", "https://"))
        """Whether it cannot list what is in a folder."""
        self.most_bytes = MAX_TEXT
        """The limit for chunk files, of the array with the largest."""
        self._documents: set[str] = set()

    def named(self, key: str) -> str:
        """The path or URL of a key."""
        return f"{self.name}/{quote(key) if self.web else key}" if key else self.name

    def has(self, key: str) -> bool:
        """Whether there is a file of this key."""
        if self.root is not None:
            return (self.root / key).is_file()
        import obstore

        try:
            obstore.head(self._store.store, key)
        except FileNotFoundError:
            return False
        return True

    def text(self, key: str) -> bytes:
        """The content of a small file."""
        if self.root is not None:
            self._check_inside(key)
            return read_bounded(self.root / key, MAX_TEXT)
        import obstore

        return bytes(obstore.get(self._store.store, key).bytes())

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        """The bytes of a key, or a range of them; None when there is none."""
        is_document = key.rpartition("/")[2] in METADATA
        found = None
        if self.root is None or self._fits(key, MAX_TEXT if is_document else self.most_bytes):
            found = await self._store.get(key, prototype, byte_range)
        if not is_document:
            if found is None and not await self._is_there(key):
                raise ValueError(f"{self.named(key)} and its array are no longer there")  # else all would seem empty
        elif found is not None:
            self._documents.add(key)
            if key.endswith("zarr.json"):
                return _completed(found, prototype)
        return found

    async def set(self, key: str, value: Buffer) -> None:
        """Write the bytes of a key."""
        self._check_inside(key)
        await self._store.set(key, value)

    async def delete(self, key: str) -> None:
        """Delete a key."""
        self._check_inside(key)
        await self._store.delete(key)

    def _check_inside(self, key: str) -> None:
        real = os.path.realpath(f"{self.root}/{key}")  # faster than Path.resolve, and there are many chunks
        if real != f"{self.root}/{key}" and not Path(real).is_relative_to(str(self.root)):
            raise ValueError(f"{key} is a link that leaves the store; copy the store with what it leads to (cp -rL)")

    def _fits(self, key: str, limit: int) -> bool:
        """False when there is no such file."""
        self._check_inside(key)
        try:
            size = regular_size(Path(f"{self.root}/{key}"))
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            return False
        if size > limit:
            raise ValueError(f"{key} has {size} bytes; more than {limit} cannot be right")
        return True

    async def _is_there(self, key: str) -> bool:
        """Whether the metadata of the array that a missing chunk belongs to still exist."""
        above = [one for one in self._documents if key.startswith(one.rpartition("/")[0])]
        return not above or await self._store.exists(max(above, key=len))


def open_array(path: Path, mode: Literal["r", "r+"] = "r") -> zarr.Array[Any]:
    """The array at `path`, which is NAME.zarr/ARRAY. UNSAFE when it cannot be used, also when a chunk is read.

    To be written to, the store must not be a link itself.
    """
    if mode != "r" and path.parent.is_symlink():
        raise ValueError(f"{path.parent.name} is a link; put the folder itself there")
    store = Guarded(LocalStore(path.parent.resolve(), read_only=mode == "r"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on codecs that `judged` refuses
        return judged(zarr.open_array(store, path=path.name, mode=mode, zarr_format=3))


def open_group(path: Path) -> zarr.Group:
    """The group at `path`, read only, from its own metadata; UNSAFE when it cannot be used."""
    store = Guarded(LocalStore(path.resolve(), read_only=True))
    return zarr.open_group(store, mode="r", zarr_format=3, use_consolidated=False)


def open_nodes(place: Path | Url, server_of: ServerOf | None) -> tuple[Node, zarr.Group | None]:
    """The array or group at `place`, and the group that an array is in; errors of zarr and obstore."""
    if isinstance(place, Url):
        if server_of is None:
            raise ValueError("a server is needed for a URL")
        server, name, key = server_of(place)
        store = Guarded(ObjectStore(server, read_only=True), name)
    else:
        inside = holds_zarr(place.parent)
        real, top = place.resolve(), place.parent if inside else place
        store = Guarded(LocalStore(real.parent if inside else real, read_only=True), str(top))
        key = real.name if inside else ""
    node, above = open_node(store, key), key.rpartition("/")[0]
    around = group_at(store, above) if key and isinstance(node, zarr.Array) and (above or store.root) else None
    return node, around


def open_node(store: Guarded, key: str) -> Node:
    """An array or group; of stores that can list it, a group without the copies of metadata that it may have."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on codecs, and texts, that format 3 does not specify yet
        return zarr.open(store, path=key, mode="r", use_consolidated=None if store.web else False)


def judged(array: zarr.Array[Any]) -> zarr.Array[Any]:
    """The array, of which chunks can be read now; ValueError when its metadata claim too much."""
    name, shape, item = array.basename or "the array", array.shape, array.dtype.itemsize
    codecs = set(_codecs(array))
    if not codecs <= _CODECS:
        known = ", ".join(sorted(_CODECS))
        raise ValueError(f"{name} is stored with {', '.join(sorted(codecs))[:100]}; known are {known}")
    if max(shape, default=0) > MAX_SIDE or math.prod(shape) > MAX_PIXELS * (MAX_BANDS if len(shape) > 2 else 1):
        raise ValueError(f"{name} has a shape of {shape!r:.60}; the limits are {MAX_SIDE} rows and {MAX_PIXELS} pixels")
    chunk, file = item * math.prod(array.chunks), item * math.prod(array.shards or array.chunks)
    if min(array.chunks, default=1) < 1 or chunk > MAX_BLOCK_BYTES or file > MAX_SHARD_BYTES:
        raise ValueError(
            f"{name} has chunks of {' x '.join(map(str, array.chunks))[:80]}, {chunk} bytes each, in files of {file}; "
            f"the limits are {MAX_BLOCK_BYTES} and {MAX_SHARD_BYTES}"
        )
    array.store.most_bytes = max(array.store.most_bytes, 2 * file + _SPARE)  # type: ignore[attr-defined] # Guarded
    return array


def _codecs(array: zarr.Array[Any]) -> Iterator[str]:
    """Names of what is done to a chunk, without the prefix of those that only numcodecs has."""
    metadata: Any = array.metadata
    if metadata.zarr_format == 2:
        listed = [one.get_config() for one in (*(metadata.filters or ()), metadata.compressor) if one is not None]
    else:
        listed = [one.to_dict() for one in metadata.codecs]
    while listed:
        codec = listed.pop()
        name = str(codec.get("name", codec.get("id"))).removeprefix("numcodecs.")
        if name == _SHARDS:
            listed += [*codec["configuration"]["codecs"], *codec["configuration"]["index_codecs"]]
            continue
        settings = codec.get("configuration", codec)
        if name == "delta" and settings.get("astype") not in (None, settings.get("dtype")):
            name = "delta of another type"
        yield name


def why(error: Exception) -> str:
    """One line, also where the message is empty, and of a group of errors the first."""
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    return f"{type(error).__name__}: {error}".splitlines()[0][:300]


def group_at(store: Guarded, key: str) -> zarr.Group | None:
    """The group of a key; None when there is none."""
    try:
        found = open_node(store, key)
    except FileNotFoundError:
        return None
    return found if isinstance(found, zarr.Group) else None


def _completed(document: Buffer, prototype: BufferPrototype) -> Buffer:
    """The metadata of an array, with what GDAL leaves out."""
    told = json.loads(document.to_bytes())
    if not isinstance(told, dict) or told.get("node_type") != "array":
        return document
    if "codecs" in told and told.get("fill_value") is not None:
        return document
    told.setdefault("codecs", [{"name": "bytes", "configuration": {"endian": "little"}}])
    told["fill_value"] = 0 if told.get("fill_value") is None else told["fill_value"]
    return prototype.buffer.from_bytes(json.dumps(told).encode())
