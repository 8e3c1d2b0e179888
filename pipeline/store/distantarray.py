"""Arrays of zarr stores that a server has, read chunk by chunk through the guard of opening.py."""

import asyncio
import warnings
from collections.abc import Mapping
from typing import Any, Self

import zarr
from zarr.abc.store import ByteRequest, OffsetByteRequest, RangeByteRequest, SuffixByteRequest
from zarr.core.buffer import Buffer, BufferPrototype, default_buffer_prototype
from zarr.storage import MemoryStore

from fcn_batch.pipeline.core.chunkform import Form
from fcn_batch.pipeline.core.distant import Distant
from fcn_batch.pipeline.core.limits import MAX_TEXT
from fcn_batch.pipeline.store.opening import Apart, checked, most_bytes


def open_distant(place: Distant, form: Form, documents: Mapping[str, bytes]) -> zarr.Array[Any]:
    """The array at `place`, as opening.open_foreign has it for one on a disk.

    Reading a chunk raises InputError too, when the server does not answer.
    """
    prototype = default_buffer_prototype().buffer
    held = {name: prototype.from_bytes(document) for name, document in documents.items()}
    store = _Distant(held, read_only=True).of(place, form)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on codecs, and texts, that format 3 does not specify yet
        return zarr.open_array(store, mode="r", zarr_format=3 if "zarr.json" in documents else 2)


class _Distant(Apart, MemoryStore):
    """Metadata that were judged, in memory; chunk files of a server."""

    place: Distant
    form: Form

    def of(self, place: Distant, form: Form) -> Self:
        self.place, self.form = place, form
        return self

    def with_read_only(self, read_only: bool = False) -> Self:  # noqa: FBT001, FBT002 - zarr's own
        return type(self)(self._store_dict, read_only=read_only).of(self.place, self.form)

    async def get(
        self, key: str, prototype: BufferPrototype | None = None, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        prototype = prototype or default_buffer_prototype()
        if key in self._store_dict:
            return await super().get(key, prototype, byte_range)
        return await asyncio.to_thread(self._fetched, key, prototype, byte_range)

    def get_sync(
        self, key: str, *, prototype: BufferPrototype | None = None, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        prototype = prototype or default_buffer_prototype()
        if key in self._store_dict:
            return super().get_sync(key, prototype=prototype, byte_range=byte_range)
        return self._fetched(key, prototype, byte_range)

    def _fetched(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None) -> Buffer | None:
        found = (self.place / key).read(most_bytes(self.form), _part(byte_range))
        if found is not None:
            return checked(key, prototype.buffer.from_bytes(found), self.form, byte_range)
        if all((self.place / name).read(MAX_TEXT) is None for name in self._store_dict):
            raise ValueError(f"{self.place} is no longer there")  # else all of it would seem to be empty
        return None


def _part(byte_range: ByteRequest | None) -> slice:
    match byte_range:
        case RangeByteRequest(start, end):
            return slice(start, end)
        case OffsetByteRequest(offset):
            return slice(offset, None)
        case SuffixByteRequest(suffix):
            return slice(-suffix, None)
    return slice(None)
