"""Opening zarr stores that somebody else may have written, or written to.

40 KB of zarr can claim one chunk of a gigabyte, and a link in a store can lead anywhere. So an array's metadata are
read and judged before zarr sees them, and of each chunk the size and the first bytes before it is read and decoded:

    zarr.json     shape, dtype, chunk and shard sizes within limits; only the codecs named here, one compressor at most
    chunk file    a regular file within the store, hardly larger than its pixels; says to decode to no more than them
"""

import asyncio
import errno
import json
import math
import os
import warnings
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self

import zarr
from zarr.abc.store import ByteRequest, RangeByteRequest, SuffixByteRequest
from zarr.core.buffer import Buffer, BufferPrototype, default_buffer_prototype
from zarr.storage import LocalStore

from fcn_batch.pipeline.core.chunkform import DEFLATE, Form, pieces, swollen
from fcn_batch.pipeline.core.limits import (
    MAX_BLOCK_BYTES,
    MAX_PIXELS,
    MAX_SHARD_BYTES,
    MAX_SIDE,
    MAX_TEXT,
    read_bounded,
    regular_size,
)

UNSAFE = (OSError, ValueError, LookupError, TypeError, AttributeError, RuntimeError, OverflowError)
"""What opening raises for what is not there, broken or not safe to read."""
_ITEM_BYTES = {"uint8": 1, "int64": 8, "float64": 8}
"""Of the types in a store: pixels, the reference system, coordinates."""
_COMPRESSORS = {"zstd", "blosc"}
"""Which say in their first bytes how large the rest becomes; gzip does not."""
_CODECS = {"bytes", "crc32c", "transpose", *_COMPRESSORS}
_SPARE = 2**20
"""Bytes that a chunk file may have beyond twice its pixels': the index of a shard, what cannot be compressed."""


def open_array(path: Path, mode: Literal["r", "r+"] = "r") -> zarr.Array[Any]:
    """The array at `path`, which is NAME.zarr/ARRAY. UNSAFE when it cannot be used.

    Reading a chunk that is not raises ValueError too. To be written to, the store must not be a link itself.
    """
    _check_place(path.parent, path, mode)
    store = _Guarded(path, read_only=mode == "r").of(_judged(metadata(path)))
    return zarr.open_array(store, mode=mode)


def open_foreign(path: Path, form: Form, documents: Mapping[str, bytes]) -> zarr.Array[Any]:
    """The array at `path`, read only, of which somebody judged the metadata files, `documents`, and says its form.

    UNSAFE when it cannot be used. Reading a chunk that is not, or is a link, raises ValueError too.
    """
    store = _Foreign(path.resolve(), read_only=True).of(form).holding(documents)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on codecs, and texts, that format 3 does not specify yet
        return zarr.open_array(store, mode="r", zarr_format=3 if "zarr.json" in documents else 2)


def open_group(path: Path) -> zarr.Group:
    """The group at `path`, read only, from its own metadata; UNSAFE when it cannot be used."""
    metadata(path)
    return zarr.open_group(path, mode="r", use_consolidated=False)


def metadata(path: Path) -> dict[str, Any]:
    """What the zarr.json of a group or array says; UNSAFE when it is no such file."""
    try:
        found = json.loads(read_bounded(path / "zarr.json", MAX_TEXT))
    except RecursionError:
        raise ValueError("zarr.json: nested too deeply") from None
    if not isinstance(found, dict):
        raise TypeError(f"zarr.json holds a {type(found).__name__}")
    return found


def _check_place(store: Path, path: Path, mode: str) -> None:
    if mode != "r" and store.is_symlink():
        raise ValueError(f"{store.name} is a link; put the folder itself there")
    if not path.resolve().is_relative_to(store.resolve()):
        raise ValueError(f"{path.name} is a link that leaves the store")


def _judged(found: dict[str, Any]) -> Form:
    """The form of the array with these metadata; ValueError when it is not allowed."""
    if (found.get("zarr_format"), found.get("node_type")) != (3, "array"):
        raise ValueError("no array of zarr 3")
    dtype, shape = found.get("data_type"), _sizes(found.get("shape"), least=0)
    if not isinstance(dtype, str) or dtype not in _ITEM_BYTES:
        raise ValueError(f"data type {dtype!r:.60}, not {', '.join(_ITEM_BYTES)}")
    if len(shape) > 2 or max(shape, default=0) > MAX_SIDE or math.prod(shape) > MAX_PIXELS:
        raise ValueError(f"shape {shape!r:.60}, beyond {MAX_SIDE} rows or columns or {MAX_PIXELS} pixels")
    if found.get("storage_transformers"):
        raise ValueError("has storage transformers, which nobody defines")
    grid, codecs = found["chunk_grid"], found["codecs"]
    chunk = _sizes(grid["configuration"]["chunk_shape"])
    size = math.prod(chunk) * _ITEM_BYTES[dtype]
    sharded = [codec["name"] for codec in codecs] == ["sharding_indexed"]
    limit = MAX_SHARD_BYTES if sharded else MAX_BLOCK_BYTES
    if len(chunk) != len(shape) or size > limit:
        raise ValueError(f"chunks of {chunk!r:.60}, {size} bytes each; the limit is {limit}")
    if not sharded:
        return Form(size, size, 0, _compressor(codecs))
    told = codecs[0]["configuration"]
    inner = _sizes(told["chunk_shape"])
    if len(inner) != len(chunk) or any(outer % part for outer, part in zip(chunk, inner, strict=True)):
        raise ValueError(f"a shard of {chunk!r:.60} holds no whole chunks of {inner!r:.60}")
    index = [codec["name"] for codec in told["index_codecs"]]
    if index != ["bytes", "crc32c"] or told.get("index_location", "end") != "end":
        raise ValueError("an index of a shard that is compressed, or not at its end")
    inside = math.prod(chunk) // math.prod(inner)
    if size // inside > MAX_BLOCK_BYTES:
        raise ValueError(f"chunks of {inner!r:.60}, {size // inside} bytes each; the limit is {MAX_BLOCK_BYTES}")
    return Form(size, size // inside, inside, _compressor(told["codecs"]))


def _compressor(codecs: Any) -> str | None:
    names = [str(codec["name"]) for codec in codecs]
    used = [name for name in names if name in _COMPRESSORS]
    if not set(names) <= _CODECS or len(used) > 1:
        raise ValueError(f"codecs {', '.join(names):.100}; one compressor at most of {', '.join(sorted(_CODECS))}")
    return used[0] if used else None


def _sizes(found: Any, least: int = 1) -> list[int]:
    if not isinstance(found, list) or not all(type(size) is int and least <= size < 2**63 for size in found):
        raise ValueError(f"{found!r:.60} are no sizes")
    return found


class Apart:
    """A store that reads the ranges of a shard one by one.

    Newer zarr reads those that are near each other as one, which would hide all but the first chunk from `checked`.
    """

    async def get_ranges(
        self, key: str, byte_ranges: Sequence[ByteRequest | None], *, prototype: BufferPrototype, **_: Any
    ) -> AsyncIterator[Sequence[tuple[int, Buffer | None]]]:
        """Number and bytes of each range. FileNotFoundError when the file was taken away meanwhile."""
        of: Any = self
        found = await asyncio.gather(*(of.get(key, prototype, one) for one in byte_ranges))
        if any(one is None for one in found):
            raise FileNotFoundError(errno.ENOENT, "there is none", key)
        yield list(enumerate(found))

    def get_ranges_sync(
        self, key: str, byte_ranges: Sequence[ByteRequest | None], *, prototype: BufferPrototype, **_: Any
    ) -> Sequence[tuple[int, Buffer | None]]:
        """The same, without an event loop."""
        of: Any = self
        found = [of.get_sync(key, prototype=prototype, byte_range=one) for one in byte_ranges]
        if any(one is None for one in found):
            raise FileNotFoundError(errno.ENOENT, "there is none", key)
        return list(enumerate(found))


class _Guarded(Apart, LocalStore):
    """Files of one array; ValueError for those that are not safe to read, write or delete."""

    form = Form(0, 0, 0, None)

    def of(self, form: Form) -> Self:
        self.form = form
        return self

    def with_read_only(self, read_only: bool = False) -> Self:  # noqa: FBT001, FBT002 - zarr's own
        return super().with_read_only(read_only).of(self.form)

    async def get(
        self, key: str, prototype: BufferPrototype | None = None, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        if not self._fits(key):
            return None
        found = await super().get(key, prototype, byte_range)
        if self.form.compressor in DEFLATE:  # which takes as long to check as to decode
            return await asyncio.to_thread(checked, key, found, self.form, byte_range)
        return checked(key, found, self.form, byte_range)

    def get_sync(
        self, key: str, *, prototype: BufferPrototype | None = None, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        if not self._fits(key):
            return None
        return checked(key, super().get_sync(key, prototype=prototype, byte_range=byte_range), self.form, byte_range)

    async def set(self, key: str, value: Buffer, *args: Any, **kwargs: Any) -> None:
        self._inside(key)
        await super().set(key, value, *args, **kwargs)

    def set_sync(self, key: str, value: Buffer) -> None:
        self._inside(key)
        super().set_sync(key, value)

    async def delete(self, key: str) -> None:
        self._inside(key)
        await super().delete(key)

    def delete_sync(self, key: str) -> None:
        self._inside(key)
        super().delete_sync(key)

    def _inside(self, key: str) -> None:
        if not (self.root / key).resolve().is_relative_to(self.root.resolve()):
            raise ValueError(f"{key} is a link that leaves the store")

    def _fits(self, key: str) -> bool:
        """False when there is no such file."""
        self._inside(key)
        try:
            size = regular_size(self.root / key)
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            return False
        limit = MAX_TEXT if key == "zarr.json" else most_bytes(self.form)
        if size > limit:
            raise ValueError(f"{key} has {size} bytes; more than {limit} cannot be right")
        return True


def most_bytes(form: Form) -> int:
    """Of a chunk file of that form."""
    return 2 * form.file + _SPARE


def checked(key: str, found: Buffer | None, form: Form, byte_range: ByteRequest | None) -> Buffer | None:
    """What was read of a chunk file; ValueError when it decodes to more than its array says."""
    if found is None or key == "zarr.json" or _is_index(form, byte_range):
        return found
    for piece in pieces(found.as_numpy_array(), form, whole=byte_range is None):
        size = swollen(piece, form.compressor)
        if size > form.chunk:
            raise ValueError(f"{key} would decode to {size} bytes, and a chunk has {form.chunk}")
    return found


def _is_index(form: Form, byte_range: ByteRequest | None) -> bool:
    """True for the index of a shard, which is read before its chunks."""
    if isinstance(byte_range, SuffixByteRequest):
        return True
    checksum, at_end = form.index
    return not at_end and byte_range == RangeByteRequest(0, 16 * form.inside + checksum)


class _Foreign(_Guarded):
    """Chunk files of an array that others wrote, whose metadata are not read again."""

    documents: Mapping[str, bytes]

    def holding(self, documents: Mapping[str, bytes]) -> Self:
        self.documents = documents
        return self

    def with_read_only(self, read_only: bool = False) -> Self:  # noqa: FBT001, FBT002 - zarr's own
        return super().with_read_only(read_only).holding(self.documents)

    async def get(
        self, key: str, prototype: BufferPrototype | None = None, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        return self._known(key, prototype) or await super().get(key, prototype, byte_range)

    def get_sync(
        self, key: str, *, prototype: BufferPrototype | None = None, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        return self._known(key, prototype) or super().get_sync(key, prototype=prototype, byte_range=byte_range)

    def _known(self, key: str, prototype: BufferPrototype | None) -> Buffer | None:
        if key not in self.documents:
            return None
        return (prototype or default_buffer_prototype()).buffer.from_bytes(self.documents[key])

    def _inside(self, key: str) -> None:
        path = f"{self.root}/{key}"
        if os.path.realpath(path) != path:  # faster than Path.resolve, and there are many chunks
            raise ValueError(f"{key} is a link; copy the store with what its links lead to (cp -rL)")

    def _fits(self, key: str) -> bool:
        if super()._fits(key):
            return True
        if not any((self.root / name).exists() for name in self.documents):
            raise ValueError(f"{self.root} is no longer there")  # else all of it would seem to be empty
        return False
