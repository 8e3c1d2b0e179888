"""What is in the chunk files of a zarr array, and to how many bytes compressed ones would decode, before they do."""

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fcn_batch.pipeline.core.limits import MAX_BLOCK_BYTES

DEFLATE = {"gzip", "zlib"}
"""Compressors whose data do not say how large they become."""
_DEFLATE_RATIO = 1032
"""Bytes that one byte of deflate can become at most."""
_ZSTD = b"\x28\xb5\x2f\xfd"
_ZSTD_BLOCK = 2**17
"""Bytes that a compressed block of zstd can become at most."""
_AT_ONCE = 2**20


@dataclass(frozen=True, slots=True)
class Form:
    """What is in one file of an array."""

    file: int
    """Bytes when decoded."""
    chunk: int
    """Bytes of a chunk when decoded: the file's, or of one of those that a shard holds."""
    inside: int
    """Chunks in a shard; 0: no shards."""
    compressor: str | None
    index: tuple[int, bool] = (4, True)
    """Of a shard: bytes of the checksum after its index, and whether the index is at the end."""


def pieces(data: NDArray[np.uint8], form: Form, *, whole: bool) -> Iterator[NDArray[np.uint8]]:
    """The chunks in what was read: a `whole` file, or a part of a shard, which is one chunk."""
    if not (form.inside and whole):
        yield data
        return
    checksum, at_end = form.index
    size = 16 * form.inside
    place = data[data.size - size - checksum :] if at_end else data
    index = np.frombuffer(bytes(place[:size])[: place.size // 16 * 16], "<u8").reshape(-1, 2)
    for offset, length in index.tolist():
        if offset < data.size:
            yield data[offset : offset + length]


def swollen(data: NDArray[np.uint8], compressor: str | None) -> int:
    """How many bytes `data` say that they decode to, or can become at most; 0 where nothing is compressed.

    ValueError when it is not known.

    >>> swollen(np.frombuffer(bytes.fromhex("28b52ffd 60 0100 ff"), np.uint8), "zstd")
    257
    """
    head = bytes(data[:32])
    if compressor == "blosc":
        return int.from_bytes(head[4:8], "little")
    if compressor == "lz4":  # numcodecs' own four bytes before the block
        return int.from_bytes(head[:4], "little")
    if compressor == "zstd" and head[:4] == _ZSTD and len(head) >= 6:  # else zstd refuses it
        return _zstd(data, head)
    if compressor in DEFLATE:
        return _inflated(data)
    return 0


def _zstd(data: NDArray[np.uint8], head: bytes) -> int:
    """Of a frame of zstd: magic number, descriptor, window (unless it is of a single segment), dictionary, size."""
    single, kind = head[4] >> 5 & 1, head[4] >> 6
    at = 6 - single + (0, 1, 2, 4)[head[4] & 3]
    width = (single, 2, 4, 8)[kind]
    if width:
        return int.from_bytes(head[at : at + width], "little") + (256 if width == 2 else 0)
    return _zstd_blocks(data, at)


def _zstd_blocks(data: NDArray[np.uint8], at: int) -> int:
    """What the blocks of a frame from `at` on can become, where it does not say so; each has its size before it."""
    most = 0
    while at + 3 <= data.size:
        header = int.from_bytes(bytes(data[at : at + 3]), "little")
        last, kind, size = header & 1, header >> 1 & 3, header >> 3
        most += _ZSTD_BLOCK if kind == 2 else size
        at += 3 + (1 if kind == 1 else size)  # of kind 1 is one byte, so many times
        if last:
            return most
    raise ValueError("a chunk is cut off")


def _inflated(data: NDArray[np.uint8]) -> int:
    """Deflate says nothing before it is decoded; so what could be too large is, in small parts that are let go."""
    if data.size * _DEFLATE_RATIO <= MAX_BLOCK_BYTES:
        return 0
    total, rest = 0, data.tobytes()
    while rest:
        stream: Any = zlib.decompressobj(wbits=47)  # gzip or zlib
        while not stream.eof and rest and total <= MAX_BLOCK_BYTES:
            total += len(stream.decompress(rest, _AT_ONCE))
            rest = stream.unconsumed_tail
        rest = stream.unused_data if stream.eof else b""
    return total
