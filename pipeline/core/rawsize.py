"""How long the files of raw pixels must be: GDAL reads zeros beyond the end of an ENVI or HFA file, without an error.

An HFA file is a tree of entries. Those of type Edms_State say where the blocks of a band are stored in the same file,
those of type ImgExternalRaster that they are in another, a band behind the other:

    byte 16         offset of the file's head; in it, at byte 8, the offset of the root
    an entry        offsets of next, previous, parent, child and data, size of the data (4 bytes each), name (64), type
    Edms_State      ... at byte 14 number and offset of the blocks' records: id 2, offset 4, size 4, valid 2, kind 2
    External...     ends with the file's name, zeros, the offset of flags 8, of pixels 8, bands 4, this band's index 4
"""

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

_ENTRY = struct.Struct("<6I64s32s")
_STACK = struct.Struct("<QQII")
_RECORD = np.dtype([("id", "<u2"), ("offset", "<u4"), ("size", "<u4"), ("valid", "<u2"), ("kind", "<u2")])
_MOST_ENTRIES = 100_000
_LONGEST = 5000


def envi_end(tags: dict[str, str], pixels: int) -> int:
    """Length of an ENVI file with these tags and so many bytes of pixels; ValueError when they are compressed.

    >>> envi_end({"header_offset": "100"}, 60)
    160
    """
    if tags.get("file_compression", "0").strip() not in ("", "0"):
        raise ValueError("its pixels are compressed as a whole")
    return int(tags.get("header_offset", 0)) + pixels


def hfa_ends(path: Path, blocks: int) -> Iterator[tuple[str | None, int]]:
    """File and least length, for each entry of the HFA file `path` and for all its pixels; None is the file itself.

    A band has `blocks` bytes of blocks. ValueError when it is no tree.
    """
    length = path.stat().st_size
    with path.open("rb") as file:
        try:
            (head,) = _at(file, 16, struct.Struct("<I"))
            (root,) = _at(file, head + 8, struct.Struct("<I"))
            todo, seen = [root], set[int]()
            while todo:
                entry = todo.pop()
                if not entry:
                    continue
                if entry in seen or len(seen) == _MOST_ENTRIES:
                    raise ValueError("its entries form no tree")
                seen.add(entry)
                file.seek(entry)
                following, _, _, child, data, size, _, kind = _ENTRY.unpack(file.read(_ENTRY.size))
                todo += [following, child]
                yield None, entry + _ENTRY.size
                yield None, data + size
                if data + size <= length:
                    yield from _of(file, kind.split(b"\0")[0], data, size, blocks)
        except struct.error:
            yield None, length + 1


def _of(file: BinaryIO, kind: bytes, data: int, size: int, blocks: int) -> Iterator[tuple[str | None, int]]:
    if kind == b"Edms_State":
        number, at = _at(file, data + 14, struct.Struct("<II"))
        yield None, at + number * _RECORD.itemsize
        file.seek(at)
        records = np.frombuffer(file.read(number * _RECORD.itemsize), _RECORD)
        valid = records[records["valid"] != 0]
        yield None, int((valid["offset"].astype(np.int64) + valid["size"]).max(initial=0))
    elif kind == b"ImgExternalRaster":
        text, numbers = _told(file, data, size)
        name = text.rstrip(b"\0").rpartition(b"\0")[2].decode("latin-1")
        _, start, bands, _ = _STACK.unpack(numbers)
        yield name, start + bands * blocks


def _told(file: BinaryIO, data: int, size: int) -> tuple[bytes, bytes]:
    if not _STACK.size <= size <= _LONGEST:
        raise ValueError("what it says of its file of pixels has an absurd length")
    file.seek(data)
    found = file.read(size)
    return found[: -_STACK.size], found[-_STACK.size :]


def _at(file: BinaryIO, offset: int, what: struct.Struct) -> tuple[int, ...]:
    file.seek(offset)
    return what.unpack(file.read(what.size))
