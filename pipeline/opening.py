"""Opening zarr stores that somebody else may have written, or written to. Store side.

40 KB of zarr can claim one chunk of a gigabyte, and a link in a store can lead anywhere. So an array's metadata are
read and judged before zarr sees them, and of each chunk the size and the first bytes before it is read and decoded:

    zarr.json     shape, dtype, chunk and shard sizes within limits; only the codecs named here, one compressor at most
    chunk file    a regular file within the store, hardly larger than its pixels; says to decode to no more than them
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.abc.store import ByteRequest, SuffixByteRequest
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.storage import LocalStore

from fcn_batch.pipeline.limits import (
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
_ZSTD = b"\x28\xb5\x2f\xfd"


def open_array(path: Path, mode: Literal["r", "r+"] = "r") -> zarr.Array[Any]:
    """The array at `path`, which is NAME.zarr/ARRAY. UNSAFE when it cannot be used.

    Reading a chunk that is not raises ValueError too. To be written to, the store must not be a link itself.
    """
    _check_place(path.parent, path, mode)
    store = _Guarded(path, read_only=mode == "r").of(_judged(metadata(path)))
    return zarr.open_array(store, mode=mode)


def open_group(path: Path) -> zarr.Group:
    """The group at `path`, read only, from its own metadata; UNSAFE when it cannot be used."""
    metadata(path)
    return zarr.open_group(str(path), mode="r", use_consolidated=False)


def metadata(path: Path) -> dict[str, Any]:
    """What the zarr.json of a group or array says; UNSAFE when it is no such file."""
    try:
        found = json.loads(read_bounded(path / "zarr.json", MAX_TEXT))
    except RecursionError:
        raise ValueError("zarr.json: nested too deeply") from None
    if not isinstance(found, dict):
        raise TypeError(f"zarr.json holds a {type(found).__name__}")
    return found


@dataclass(frozen=True, slots=True)
class _Form:
    """What is in one file of an array."""

    file: int
    """Bytes when decoded."""
    chunk: int
    """Bytes of a chunk when decoded: the file's, or of one of those that a shard holds."""
    inside: int
    """Chunks in a shard; 0: no shards."""
    compressor: str | None


def _check_place(store: Path, path: Path, mode: str) -> None:
    if mode != "r" and store.is_symlink():
        raise ValueError(f"{store.name} is a link; put the folder itself there")
    if not path.resolve().is_relative_to(store.resolve()):
        raise ValueError(f"{path.name} is a link that leaves the store")


def _judged(found: dict[str, Any]) -> _Form:
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
        return _Form(size, size, 0, _compressor(codecs))
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
    return _Form(size, size // inside, inside, _compressor(told["codecs"]))


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


class _Guarded(LocalStore):
    """Files of one array; ValueError for those that are not safe to read, write or delete."""

    form = _Form(0, 0, 0, None)

    def of(self, form: _Form) -> Self:
        self.form = form
        return self

    def with_read_only(self, read_only: bool = False) -> Self:  # noqa: FBT001, FBT002 - zarr's own
        return super().with_read_only(read_only).of(self.form)

    async def get(
        self, key: str, prototype: BufferPrototype | None = None, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        if not self._fits(key):
            return None
        return self._checked(key, await super().get(key, prototype, byte_range), byte_range)

    def get_sync(
        self, key: str, *, prototype: BufferPrototype | None = None, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        if not self._fits(key):
            return None
        return self._checked(key, super().get_sync(key, prototype=prototype, byte_range=byte_range), byte_range)

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
        limit = MAX_TEXT if key == "zarr.json" else 2 * self.form.file + _SPARE
        if size > limit:
            raise ValueError(f"{key} has {size} bytes; more than {limit} cannot be right")
        return True

    def _checked(self, key: str, found: Buffer | None, byte_range: ByteRequest | None) -> Buffer | None:
        """What was read of a chunk file, if it decodes to no more than its array says."""
        if found is None or key == "zarr.json" or isinstance(byte_range, SuffixByteRequest):  # the index of a shard
            return found
        data = found.as_numpy_array()
        whole = self.form.inside and byte_range is None
        for start in _starts(data, self.form.inside) if whole else (0,):
            size = _swollen(bytes(data[start : start + 32]), self.form.compressor)
            if size > self.form.chunk:
                raise ValueError(f"{key} would decode to {size} bytes, and a chunk has {self.form.chunk}")
        return found


def _starts(shard: NDArray[np.uint8], inside: int) -> list[int]:
    """Where the chunks in a shard begin, from the index at its end: offset and length of each, and a checksum."""
    index = bytes(shard[-16 * inside - 4 : -4])
    offsets = np.frombuffer(index[: len(index) // 16 * 16], "<u8")[::2]
    return [int(offset) for offset in offsets if offset < shard.size]


def _swollen(head: bytes, compressor: str | None) -> int:
    """How many bytes what begins with `head` says that it decodes to; 0 where nothing is compressed.

    A frame of zstd: magic number, descriptor, window (unless it is of a single segment), dictionary, size.

    >>> _swollen(bytes.fromhex("28b52ffd 60 0100 ff"), "zstd")
    257
    """
    if compressor is None:
        return 0
    if compressor == "blosc":
        return int.from_bytes(head[4:8], "little")
    if head[:4] != _ZSTD or len(head) < 6:
        return 0  # zstd refuses it
    single, kind = head[4] >> 5 & 1, head[4] >> 6
    at = 6 - single + (0, 1, 2, 4)[head[4] & 3]
    width = (single, 2, 4, 8)[kind]
    if not width:
        raise ValueError("a chunk does not say how large it is")
    return int.from_bytes(head[at : at + width], "little") + (256 if width == 2 else 0)
