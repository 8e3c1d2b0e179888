"""Damaged files from whole ones, the same ones for the same seed: what a fuzzer feeds to the program."""

import json
import random
import struct
from collections.abc import Callable
from typing import Any

_INTEGERS = (0, 1, 2, 7, 255, 256, 65535, 2**16, 2**31 - 1, 2**31, 2**32 - 1)
_VALUES: tuple[Any, ...] = (
    *(0, -1, 1, 2, 3, 255, 2**31 - 1, 2**31, 2**53 + 1, 2**63 - 1, 2**63, 10**12, 10**400),
    *(0.5, -0.0, 1e-320, 1e308, float("nan"), float("inf"), True, False, None, "", "0", "x" * 5000, "\x1b[31m\x07\r"),
    *("../../../etc/passwd", "/dev/zero", "\ud800", "\0", [], {}, [0, 0], [[[]]], {"a": 1}),
)
_DEEP = '{"a":[' * 50_000
_IFD_BYTES, _ENTRY = 2, 12


def bytes_of(data: bytes, draw: random.Random) -> bytes:
    """Some bytes flipped, replaced, taken away, copied elsewhere or cut off."""
    if not data:
        return bytes([draw.randrange(256)])
    out = bytearray(data)
    for _ in range(draw.choice((1, 1, 2, 8))):
        at, length = draw.randrange(len(out)), draw.choice((1, 2, 4, 8, 64))
        what = draw.randrange(6)
        if what == 0:
            out[at] ^= 1 << draw.randrange(8)
        elif what == 1:
            out[at : at + length] = draw.choice((b"\0", b"\xff", b"\x7f", b"\x80")) * length
        elif what == 2:
            del out[at : at + length]
        elif what == 3:
            start = draw.randrange(len(out))
            out[at : at + length] = out[start : start + length]
        elif what == 4:
            out[at:at] = draw.randbytes(length)
        elif draw.random() < 0.3:
            del out[at:]
        if not out:
            break
    return bytes(out)


def tiff(data: bytes, draw: random.Random) -> bytes:
    """A little-endian TIFF with numbers of one of its directories changed; or any bytes of it."""
    entries = _entries(data)
    if not entries or draw.random() < 0.3:
        return bytes_of(data, draw)
    out = bytearray(data)
    for _ in range(draw.choice((1, 1, 2, 3))):
        at = draw.choice(entries)
        tag, kind, count, value = struct.unpack_from("<HHII", out, at)
        what = draw.randrange(8)
        if what == 0:
            tag = draw.choice(
                (254, 256, 257, 258, 259, 262, 273, 277, 278, 279, 284, 317, 322, 323, 324, 325, 339, 42112)
            )
        elif what == 1:
            kind = draw.randrange(19)
        elif what == 2:
            count = draw.choice(_INTEGERS)
        elif what == 3:
            value ^= 1 << draw.randrange(32)
        else:
            value = draw.choice((*_INTEGERS, value + 1, value * 2, len(data)))
        struct.pack_into("<HHII", out, at, tag, kind, count % 2**32, value % 2**32)
    return bytes(out)


def _entries(data: bytes) -> list[int]:
    """Where the entries of all directories of a classic little-endian TIFF begin."""
    found: list[int] = []
    if data[:4] != b"II*\0" or len(data) < 8:
        return found
    (at,) = struct.unpack_from("<I", data, 4)
    while 0 < at < len(data) - _IFD_BYTES and len(found) < 500:
        (number,) = struct.unpack_from("<H", data, at)
        end = at + _IFD_BYTES + _ENTRY * number
        if end + 4 > len(data):
            break
        found += range(at + _IFD_BYTES, end, _ENTRY)
        (at,) = struct.unpack_from("<I", data, end)
    return found


def text(data: bytes, draw: random.Random) -> bytes:
    """JSON with values swapped, replaced or taken away, nested beyond measure, or with any bytes changed."""
    what = draw.random()
    if what < 0.05:
        return _DEEP.encode()
    if what < 0.2:
        return bytes_of(data, draw)
    tree = json.loads(data)
    for _ in range(draw.choice((1, 1, 2, 4))):
        places = list(_places(tree, lambda found: isinstance(found, dict | list) and len(found) > 0))
        holder = draw.choice([tree, *places]) if places else tree
        if not isinstance(holder, dict | list) or not holder:
            break
        key: Any = draw.choice(list(holder)) if isinstance(holder, dict) else draw.randrange(len(holder))
        chosen = draw.randrange(5)
        if chosen == 0:
            del holder[key]
        elif chosen == 1:
            holder[key] = draw.choice(list(_places(tree, lambda _: True)))
            tree = json.loads(json.dumps(tree)) if _acyclic(tree) else json.loads(data)
        else:
            holder[key] = draw.choice(_VALUES)
    return json.dumps(tree).encode()


def _acyclic(tree: Any) -> bool:
    try:
        json.dumps(tree)
    except (ValueError, RecursionError):
        return False
    return True


def _places(tree: Any, wanted: Callable[[Any], bool]) -> Any:
    for one in tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else ():
        if wanted(one):
            yield one
        yield from _places(one, wanted)


def safetensors(data: bytes, draw: random.Random) -> bytes:
    """A model file whose header or card says something else; or with any bytes of its first part changed."""
    length = int.from_bytes(data[:8], "little")
    header, rest = data[8 : 8 + length], data[8 + length :]
    what = draw.random()
    if what < 0.2:
        return bytes_of(data[: 8 + length], draw) + rest
    if what < 0.3:
        return data[: draw.randrange(len(data))]
    tree = json.loads(header)
    if what < 0.75:
        card = tree["__metadata__"]["fcn_batch.model_card"]
        tree["__metadata__"]["fcn_batch.model_card"] = text(card.encode(), draw).decode(errors="surrogateescape")
        header = json.dumps(tree).encode()
    else:
        header = text(header, draw)
    size = len(header) if draw.random() < 0.95 else draw.choice((0, 1, 2**31, 2**63, 2**64 - 1))
    return size.to_bytes(8, "little") + header + rest
