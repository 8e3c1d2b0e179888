"""Weights out of a .caffemodel: a reader of the protobuf wire format for the few fields that hold blobs.

Message and field numbers are those of caffe.proto (BVLC/caffe): NetParameter {layer = 100, in old files layers = 2},
LayerParameter {name = 1, blobs = 7}, V1LayerParameter {name = 4, blobs = 6}, BlobProto {num, channels, height,
width = 1 to 4, data = 5, shape = 7, double_data = 8}, BlobShape {dim = 1}. All other fields are passed over unread,
so nesting costs nothing. The encoding is protobuf's: a key (field << 3 | wire type), then a varint, 4 or 8 bytes, or
a length and that many bytes.
"""

import math
import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fcn_batch.pipeline.core.errors import ModelError

Blob = NDArray[np.float32] | NDArray[np.float64]
Bytes = memoryview | bytearray

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_FIXED = {_FIXED64: 8, _FIXED32: 4}
_LONGEST_VARINT = 10
_MOST_AXES = 32
"""Caffe's own limit of a blob's axes."""
_NAME_AND_BLOBS = {100: (1, 7), 2: (4, 6)}
"""Fields of a layer, by the field that holds the layer."""


class _BadError(Exception):
    """The bytes are no net; the message says why."""


def read_caffemodel(path: Path) -> dict[str, list[Blob]]:
    """Read the blobs of every layer that has any, by the layer's name, in the file's order.

    Arrays are float32 (float64 where the file has doubles) in Caffe's order of axes: (out, in, rows, cols) for
    convolutions; old files give 4 axes to everything. They lie in the file's own pages, privately: writing to them
    does not change the file. ModelError when the file cannot be read, is cut short or no .caffemodel.
    """
    layers: dict[str, list[Blob]] = {}
    try:
        with path.open("rb") as file:
            data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY))
        for number, value in _messages(data, *_NAME_AND_BLOBS):
            name, blobs = _layer(value, *_NAME_AND_BLOBS[number])
            if blobs and layers.setdefault(name, blobs) is not blobs:
                raise _BadError(f"two layers are called {name!r}")
        if not layers:
            raise _BadError("no layer with weights in it")
    except (_BadError, OSError, ValueError) as error:  # an empty file cannot be mapped
        raise ModelError(
            "checkpoint-damaged",
            "{path}: {reason}; the file is damaged or no .caffemodel: get it again",
            path=path,
            reason=getattr(error, "strerror", None) or error,
        ) from error
    return layers


def _layer(data: memoryview, name_field: int, blobs_field: int) -> tuple[str, list[Blob]]:
    found = list(_messages(data, name_field, blobs_field))
    blobs = [value for number, value in found if number == blobs_field]
    try:
        name = "".join(bytes(value).decode() for number, value in found if number == name_field)
    except UnicodeDecodeError:
        raise _BadError("a layer's name is not text") from None
    if blobs and not name:
        raise _BadError("a layer with weights has no name")
    return name, [_blob(blob, f"blob {index} of layer {name!r}") for index, blob in enumerate(blobs)]


def _blob(data: memoryview, what: str) -> Blob:
    dims: list[int] | None = None
    old: dict[int, int] = {}
    values: dict[int, Bytes] = {}
    for number, wire, value in _fields(data):
        if number in (1, 2, 3, 4) and wire == _VARINT:
            old[number] = _signed(value)
        elif number in (5, 8) and wire in (_BYTES, _FIXED32 if number == 5 else _FIXED64):
            values[number] = _joined(values.get(number), value)
        elif number == 7 and wire == _BYTES:
            dims = _dims(value)
        elif number in (1, 2, 3, 4, 5, 7, 8):
            raise _BadError(f"{what}: field {number} has wire type {wire}")
    shape = tuple(old.get(number, 0) for number in (1, 2, 3, 4)) if dims is None else tuple(dims)
    if len(shape) > _MOST_AXES or any(size < 0 for size in shape):
        raise _BadError(f"{what}: a blob cannot have the shape {shape[:_MOST_AXES]}")
    if len(values) > 1:
        raise _BadError(f"{what}: holds both floats and doubles")
    number, raw = next(iter(values.items()), (5, memoryview(b"")))
    dtype = np.dtype("<f4" if number == 5 else "<f8")
    if len(raw) != math.prod(shape) * dtype.itemsize:
        raise _BadError(f"{what}: {len(raw)} bytes of values for the shape {shape}")
    array: NDArray[Any] = np.frombuffer(raw, dtype=dtype).reshape(shape)
    return array


def _joined(before: Bytes | None, more: memoryview) -> Bytes:
    """Repeated values may come in several pieces, one by one too; one piece is not copied."""
    if before is None:
        return more
    whole = before if isinstance(before, bytearray) else bytearray(before)
    whole += more
    return whole


def _dims(data: memoryview) -> list[int]:
    dims: list[int] = []
    for number, wire, value in _fields(data):
        if number == 1 and wire == _VARINT:
            dims.append(_signed(value))
        elif number == 1 and wire == _BYTES:
            at = 0
            while at < len(value):
                size, at = _varint(value, at)
                dims.append(_signed(size))
    return dims


def _messages(data: memoryview, *numbers: int) -> Iterator[tuple[int, memoryview]]:
    """The fields of those numbers, which must hold bytes: messages or text."""
    for number, wire, value in _fields(data):
        if number in numbers:
            if wire != _BYTES:
                raise _BadError(f"field {number} has wire type {wire}")
            yield number, value


def _fields(data: memoryview) -> Iterator[tuple[int, int, Any]]:
    """Number, wire type and value of each field: an int for varints, else the bytes."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        number, wire = key >> 3, key & 7
        if wire == _VARINT:
            value, at = _varint(data, at)
            yield number, wire, value
            continue
        if wire == _BYTES:
            size, at = _varint(data, at)
        elif wire in _FIXED:
            size = _FIXED[wire]
        else:
            raise _BadError(f"wire type {wire} is not one of protobuf's that Caffe uses")
        if number == 0 or size > len(data) - at:
            raise _BadError(f"field {number} claims {size} bytes where {len(data) - at} are left")
        yield number, wire, data[at : at + size]
        at += size


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    """An unsigned number of up to 64 bits and where it ends."""
    value = 0
    for index in range(_LONGEST_VARINT):
        if at + index >= len(data):
            raise _BadError("the file ends within a number")
        byte = data[at + index]
        value |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            return value & (2**64 - 1), at + index + 1
    raise _BadError(f"a number is longer than {_LONGEST_VARINT} bytes")


def _signed(value: int) -> int:
    """An int64 out of 64 bits in two's complement."""
    return value - 2**64 if value >= 2**63 else value
