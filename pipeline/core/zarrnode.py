"""Groups and arrays of zarr stores that others wrote, formats 2 and 3: what their metadata say, before zarr sees them.

    format 3    zarr.json
    format 2    .zgroup or .zarray, and .zattrs

More codecs are taken than our own stores have, but only those that cannot run anything, read no other file, and whose
result is bounded (see chunkform.py).
"""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from fcn_batch.pipeline.core.chunkform import DEFLATE, Form
from fcn_batch.pipeline.core.distant import Distant, Place, bounded
from fcn_batch.pipeline.core.limits import MAX_BANDS, MAX_BLOCK_BYTES, MAX_SHARD_BYTES, MAX_SIDE, MAX_TEXT

METADATA = ("zarr.json", ".zgroup", ".zarray", ".zattrs", ".zmetadata")
SPARE = 2**20
"""Bytes by which what is in a chunk may be larger than its pixels: checksums, and sizes that are only estimated."""
_COMPRESSORS = {"blosc", "zstd", "lz4", *DEFLATE}
_FILTERS = {"bytes", "transpose", "shuffle", "delta", "crc32c"}
"""Which leave as many bytes as there were, or four more."""
_ITEM_BYTES = {"int8": 1, "int16": 2, "int32": 4, "int64": 8, "uint8": 1, "uint16": 2, "uint32": 4, "uint64": 8}
_ITEM_BYTES |= {"float16": 2, "float32": 4, "float64": 8, "bool": 1}
_NUMPY = {"b1": "bool", "f2": "float16", "f4": "float32", "f8": "float64"}
_NUMPY |= {
    f"{kind}{size}": f"{name}{8 * size}" for kind, name in (("i", "int"), ("u", "uint")) for size in (1, 2, 4, 8)
}
_MOST_CHILDREN = 2 * MAX_BANDS
_V2 = "_ARRAY_DIMENSIONS"
"""Where xarray and GDAL keep the names of dimensions in format 2."""


@dataclass(frozen=True, slots=True)
class Node:
    """A group, or an array, as its own metadata tell."""

    path: Place
    format: int
    """2 or 3."""
    is_array: bool
    attributes: dict[str, Any] = field(repr=False)
    told: dict[str, Any] = field(repr=False)
    """Everything in its zarr.json, .zarray or .zgroup."""

    @property
    def name(self) -> str:
        """Of its folder."""
        return self.path.name

    @property
    def shape(self) -> tuple[int, ...]:
        """Of an array; ValueError when these are no sizes that anybody has."""
        return _sizes(self.told.get("shape"), least=0)

    @property
    def dtype(self) -> str:
        """Of an array, in numpy's words, such as uint16; as it stands in the metadata where numpy has no word."""
        named = self.told.get("data_type" if self.format == 3 else "dtype")
        if self.format == 3:
            return str(named["name"] if isinstance(named, dict) and "name" in named else named)
        text = str(named)
        return _NUMPY.get(text[1:], text) if text[:1] in "<>|=" else text

    @property
    def dimensions(self) -> tuple[str | None, ...]:
        """The name of each dimension of an array, None where it has none."""
        named = self.told.get("dimension_names") if self.format == 3 else self.attributes.get(_V2)
        if not isinstance(named, list) or len(named) != len(self.shape):
            return (None,) * len(self.shape)
        return tuple(name if isinstance(name, str) else None for name in named)

    @property
    def chunk(self) -> tuple[int, ...]:
        """What of an array can be read without decoding anything else; a shard holds several."""
        inner = _shard(self.told)
        return _sizes(inner["chunk_shape"]) if inner is not None else self._file_shape

    @property
    def _file_shape(self) -> tuple[int, ...]:
        if self.format == 2:
            return _sizes(self.told.get("chunks"))
        grid = self.told["chunk_grid"]
        if grid["name"] != "regular":
            raise ValueError(f"{self.name} has a grid of chunks {str(grid['name'])[:60]!r}, not a regular one")
        return _sizes(grid["configuration"]["chunk_shape"])

    @property
    def written_by_xarray(self) -> bool:
        """True for arrays of format 2 of which the fill value is what nobody measured: xarray's, and GDAL's."""
        return self.format == 2 and _V2 in self.attributes

    @property
    def form(self) -> Form:
        """What is in a file of the array; ValueError when that is not allowed."""
        shape, outer, chunk = self.shape, self._file_shape, self.chunk
        item = _ITEM_BYTES.get(self.dtype, 4 * _text_length(self.told))
        if not item:
            raise ValueError(f"{self.name} holds {self.dtype[:60]}, which are no numbers")
        if self.told.get("storage_transformers"):
            raise ValueError(f"{self.name} has storage transformers, which nobody defines")
        size, file = item * math.prod(chunk), item * math.prod(outer)
        if not len(chunk) == len(outer) == len(shape) or size > MAX_BLOCK_BYTES or file > MAX_SHARD_BYTES:
            raise ValueError(
                f"{self.name} has chunks of {' x '.join(map(str, chunk))[:80]}, {size} bytes each; the limit is "
                f"{MAX_BLOCK_BYTES}, and {MAX_SHARD_BYTES} for shards"
            )
        if any(whole % part for whole, part in zip(outer, chunk, strict=True)):
            raise ValueError(f"a shard of {outer!r:.60} holds no whole chunks of {chunk!r:.60}")
        inside = 0 if _shard(self.told) is None else math.prod(outer) // math.prod(chunk)
        return Form(file, 2 * size + SPARE, inside, _compressor(self), _index(self.told))


def holds_zarr(path: Place) -> bool:
    """True for a folder that has metadata of a zarr group or array in it."""
    return path.is_dir() and any((path / name).is_file() for name in METADATA if name != ".zattrs")


def read_node(path: Place) -> Node:
    """The group or array at `path`; OSError, ValueError or TypeError when it is none, or its metadata are broken."""
    if (path / "zarr.json").exists():
        told = _json(path / "zarr.json")
        if told.get("zarr_format") != 3 or told.get("node_type") not in ("group", "array"):
            raise ValueError("zarr.json is of a draft of zarr 3, or of no zarr at all")
        return Node(path, 3, told["node_type"] == "array", _object(told.get("attributes", {})), told)
    for name in (".zarray", ".zgroup"):
        if (path / name).exists():
            told = _json(path / name)
            if told.get("zarr_format") != 2:
                raise ValueError(f"{name} is of zarr format {told.get('zarr_format')!r:.60}; 2 and 3 are known")
            attributes = _json(path / ".zattrs") if (path / ".zattrs").exists() else {}
            return Node(path, 2, name == ".zarray", attributes, told)
    raise ValueError(f"no zarr.json, .zarray or .zgroup in {path}")


def children(group: Node) -> list[Node]:
    """The groups and arrays in a group, by name; without those that are links. Errors as of `read_node`."""
    folders = sorted((one for one in _inside(group) if not one.is_symlink() and holds_zarr(one)), key=str)
    if len(folders) > _MOST_CHILDREN:
        raise ValueError(f"{len(folders)} arrays and groups; the limit is {_MOST_CHILDREN}")
    return [read_node(folder) for folder in folders]


def _inside(group: Node) -> Iterator[Place]:
    """Folders in a group; of a server that does not list any, those that consolidated metadata name."""
    if not isinstance(group.path, Distant) or group.path.lists:
        yield from group.path.iterdir()
        return
    known: Any = group.told.get("consolidated_metadata")
    if group.format == 2:
        known = _json(group.path / ".zmetadata") if (group.path / ".zmetadata").is_file() else None
    if known is None:
        raise ValueError("the server does not list what is in the group, and it has no consolidated metadata")
    for name in sorted({key.partition("/")[0] for key in known["metadata"]}):
        if name and name not in METADATA:
            yield child_place(group, name)


def child_place(group: Node, path: str) -> Place:
    """Where something in a group is; ValueError when that is not in the group."""
    parts = PurePosixPath(path)
    there = group.path / path
    if parts.is_absolute() or ".." in parts.parts or there.resolve() != group.path.resolve() / path:
        raise ValueError(f"{path[:200]!r} is a link, or leaves the store")
    return there


def child(group: Node, path: str) -> Node:
    """The array or group that `path` names from a group on; ValueError when it is not in the group."""
    return read_node(child_place(group, path))


def metadata_files(node: Node) -> Iterator[Place]:
    """Those of a group or array that are there."""
    return (node.path / name for name in METADATA if (node.path / name).is_file())


def document(node: Node) -> dict[str, bytes]:
    """The metadata of an array by file name, for zarr to open it: without attributes, and with what GDAL left out."""
    if node.format == 2:
        return {".zarray": json.dumps(node.told).encode(), ".zattrs": b"{}"}
    told = {**node.told, "attributes": {}}
    told.setdefault("codecs", [{"name": "bytes", "configuration": {"endian": "little"}}])
    told["fill_value"] = 0 if told.get("fill_value") is None else told["fill_value"]
    return {"zarr.json": json.dumps(told).encode()}


def _json(path: Place) -> dict[str, Any]:
    try:
        return _object(json.loads(bounded(path, MAX_TEXT)))
    except RecursionError:
        raise ValueError(f"{path.name}: nested too deeply") from None


def _object(found: Any) -> dict[str, Any]:
    if not isinstance(found, dict):
        raise TypeError(f"metadata are a {type(found).__name__}, no object")
    return found


def _sizes(found: Any, least: int = 1) -> tuple[int, ...]:
    if not isinstance(found, list) or not all(type(size) is int and least <= size <= MAX_SIDE for size in found):
        raise ValueError(f"{found!r:.60} are no sizes from {least} to {MAX_SIDE}")
    return tuple(found)


def _text_length(told: dict[str, Any]) -> int:
    """Characters of a text of fixed length; 0 for anything else."""
    named = told.get("data_type")
    if isinstance(named, dict) and named.get("name") == "fixed_length_utf32":
        return int(named["configuration"]["length_bytes"]) // 4
    text = str(told.get("dtype"))
    return int(text[2:]) if text[:2] in ("<U", ">U") and text[2:].isdecimal() else 0


def _shard(told: dict[str, Any]) -> dict[str, Any] | None:
    """The configuration of a shard; None where every chunk is a file."""
    codecs = told.get("codecs") or []
    first = codecs[0] if len(codecs) == 1 else {}
    return _object(first["configuration"]) if first.get("name") == "sharding_indexed" else None


def _index(told: dict[str, Any]) -> tuple[int, bool]:
    """As in Form; ValueError for an index of a shard that nobody writes."""
    shard = _shard(told)
    if shard is None:
        return 0, True
    names, place = [codec["name"] for codec in shard["index_codecs"]], shard.get("index_location", "end")
    endian = shard["index_codecs"][0].get("configuration", {}).get("endian", "little")
    if names not in (["bytes"], ["bytes", "crc32c"]) or endian != "little" or place not in ("start", "end"):
        raise ValueError(f"the index of a shard is in codecs {', '.join(map(str, names))[:100]} at its {place!r:.20}")
    return 4 * (len(names) - 1), place == "end"


def _compressor(node: Node) -> str | None:
    """The one compressor of a chunk; ValueError for codecs that are not known, or stand where they would hide it."""
    codecs = _codecs(node)
    names = [name for name, _ in codecs]
    while names and names[-1] == "crc32c":
        names.pop()
    if not set(names) <= _FILTERS | _COMPRESSORS or not set(names[:-1]) <= _FILTERS:
        raise ValueError(
            f"{node.name} is stored with {', '.join(names)[:100]}; known are {', '.join(sorted(_FILTERS))} and, as the "
            f"last, one of {', '.join(sorted(_COMPRESSORS))}"
        )
    for name, settings in codecs:
        if name == "delta" and settings.get("astype") not in (None, settings.get("dtype")):
            raise ValueError(f"{node.name} is stored as differences of another type, {settings['astype']!r:.20}")
    return names[-1] if names and names[-1] in _COMPRESSORS else None


def _codecs(node: Node) -> list[tuple[str, dict[str, Any]]]:
    """Name and settings of what is done to a chunk, in this order."""
    if node.format == 2:
        filters, last = node.told.get("filters") or [], node.told.get("compressor")
        return [(str(codec["id"]), _object(codec)) for codec in [*filters, *([] if last is None else [last])]]
    shard = _shard(node.told)
    codecs = node.told.get("codecs", []) if shard is None else shard["codecs"]
    settings = [_object(codec.get("configuration", {})) for codec in codecs]
    return [(str(codec["name"]).removeprefix("numcodecs."), one) for codec, one in zip(codecs, settings, strict=True)]
