"""What a raster claims and brings along, checked before GDAL acts on it.

Which driver opens a raster is ours to say (see `rasterfile.py`), but GDAL opens x.tif.ovr and x.tif.msk with any, and
an overview that a tag names anywhere. Any of these may be a VRT, a text that names other files or URLs. So, before GDAL
looks at them:

    x.tif, x.tif.aux.xml    the tag OVERVIEW_FILE may only name a raster in the same folder
    x.tif.msk, x.tif.ovr    must be TIFF or HFA by their first bytes; their own tags and companions are checked alike
    all files GDAL lists    must lie in the same folder

A file named .vrt is trusted with the local files that it names, all of which must open; its companions are not.

A TIFF of 292 bytes can claim an image, or a mask or overview in it, that is stored in blocks of any size. One block is
what must be decoded at once, so its size bounds what a compressed file can swell to.

GDAL reads zeros beyond the end of an ENVI file (it refuses one that is not half as long as it should be), and beyond
the end of the file of pixels of an HFA file; and an HFA file that lost its last bytes has fewer bands to it. So the
lengths are looked at. An HFA file is a tree of entries. Those of type Edms_State say where the blocks of a band are
stored in the same file, those of type ImgExternalRaster that they are in another, a band behind the other:

    byte 16         offset of the file's head; in it, at byte 8, the offset of the root
    an entry        offsets of next, previous, parent, child and data, size of the data (4 bytes each), name (64), type
    Edms_State      ... at byte 14 number and offset of the blocks' records: id 2, offset 4, size 4, valid 2, kind 2
    External...     ends with the file's name, zeros, the offset of flags 8, of pixels 8, bands 4, this band's index 4
"""

import math
import re
import struct
from collections.abc import Iterator
from mmap import ACCESS_READ, mmap
from pathlib import Path

import numpy as np
from rasterio.enums import Interleaving
from rasterio.errors import RasterioError
from rasterio.io import DatasetReader

from fcn_batch.pipeline.core.errors import InputError
from fcn_batch.pipeline.core.limits import MAX_BLOCK_BYTES, size_problem
from fcn_batch.pipeline.core.location import Url
from fcn_batch.pipeline.raster.gdal import accept_pixel_space

_COMPANIONS = (".msk", ".MSK", ".ovr", ".OVR")
_RASTERS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+", b"EHFA_HEADER_TAG")
_DEEPEST = 3
"""Companions of companions: the overviews of a mask have no masks of their own."""
_MOST_PAGES = 128
"""Masks and overviews in a TIFF."""
_REMEDY = "remove it, or get the raster from somebody you trust"
_ENTRY = struct.Struct("<I8xIII64x32s")
_RECORD = np.dtype([("id", "<u2"), ("offset", "<u4"), ("size", "<u4"), ("valid", "<u2"), ("kind", "<u2")])
_MOST_ENTRIES = 100_000


def check_raster(path: Path, dataset: DatasetReader, depth: int = 0) -> None:
    """InputError when the raster `path`, opened as `dataset`, claims too much, is cut off, or has bad companions."""
    _check_size(path, dataset)
    for name, end in _ends(path, dataset):
        if name is not None and Path(name).name != name:
            raise _unsafe(path, f"has its pixels in {name!r:.300}, which is not in its folder")
        file = path if name is None else path.with_name(name)
        _check_end(file, file.stat().st_size if file.is_file() else 0, end)
    _check_companions(path, dataset, depth)
    if dataset.driver == "GTiff":
        _check_pages(path)
    if depth == 0 and dataset.driver != "VRT":
        folders = (path.parent, path.parent.resolve())
        for name in dataset.files:
            if Path(name).parent not in folders:
                raise _unsafe(path, f"names {name}, which is not in its folder")
    if dataset.driver == "VRT":
        _check_sources(path, dataset)


def check_remote(url: Url, dataset: DatasetReader, length: int) -> None:
    """The same for a raster of `length` bytes that is no file here: it has no companions, as none are looked for."""
    _check_size(url, dataset)
    if dataset.tags(ns="OVERVIEWS").get("OVERVIEW_FILE"):
        raise _unsafe(url, "its tag OVERVIEW_FILE names another file")
    if dataset.driver in ("HFA", "ENVI"):
        raise InputError(
            "remote-format",
            "{path}: {driver} is of several files, which are not looked for there; copy it to a disk",
            path=url,
            driver=dataset.driver,
        )
    if dataset.driver == "GTiff":
        _check_pages(url)
        for _, end in _ends(Path(url.name), dataset):
            _check_end(url, length, end)


def _unsafe(path: Path | Url, what: str) -> InputError:
    return InputError("raster-unsafe", "{path}: {what}; {remedy}", path=path, what=what, remedy=_REMEDY)


def _check_size(path: Path | Url, dataset: DatasetReader) -> None:
    problem = size_problem(dataset.height, dataset.width, dataset.count)
    if problem is not None:
        raise InputError(
            "raster-too-large",
            "{path}: claims {size}; cut it with gdal_translate -srcwin, or take some bands with -b",
            path=path,
            size=problem,
        )
    _check_blocks(path, dataset)


def _check_blocks(path: Path | Url, dataset: DatasetReader) -> None:
    rows, cols = max(dataset.block_shapes, key=math.prod)
    together = dataset.count if dataset.interleaving == Interleaving.pixel else 1
    size = rows * cols * together * np.dtype(dataset.dtypes[0]).itemsize
    if size > MAX_BLOCK_BYTES:
        raise InputError(
            "blocks-too-large",
            "{path} is stored in blocks of {rows}x{cols} pixels, {bytes} bytes each, more than the limit of {limit}; "
            "rewrite it with gdal_translate -co TILED=YES",
            path=path,
            rows=rows,
            cols=cols,
            bytes=size,
            limit=MAX_BLOCK_BYTES,
        )


def _check_sources(path: Path, dataset: DatasetReader) -> None:
    """InputError for a VRT of which a source cannot be opened: GDAL says so once, and then reads zeros."""
    for name in dataset.files:
        if name == str(path) or name.endswith(".xml"):
            continue
        try:
            with accept_pixel_space(), DatasetReader(name):
                pass
        except RasterioError as error:
            raise InputError(
                "source-missing",
                "{path}: its source {source} cannot be opened ({reason}); correct the VRT",
                path=path,
                source=name,
                reason=error,
            ) from error


def _check_end(file: Path | Url, length: int, end: int) -> None:
    if end > length:
        raise InputError(
            "file-cut-off",
            "{path} is cut off at byte {length} of {end} or more; get a complete copy",
            path=file,
            length=length,
            end=end,
        )


def _ends(path: Path, dataset: DatasetReader) -> Iterator[tuple[str | None, int]]:
    """Yield names of files beside `path` (None: itself) and how long they must at least be."""
    rows, cols = dataset.block_shapes[-1]
    down, across = -(-dataset.height // rows), -(-dataset.width // cols)
    bits = int(dataset.tags(1, ns="IMAGE_STRUCTURE").get("NBITS", 8 * np.dtype(dataset.dtypes[0]).itemsize))
    if dataset.driver == "HFA":
        yield from _hfa_ends(path, down * across * rows * cols * bits // 8)
    elif dataset.driver == "ENVI":
        tags = dataset.tags(ns="ENVI")
        if tags.get("file_compression", "0").strip() not in ("", "0"):
            raise _not_understood(path, "its pixels are compressed as a whole")
        yield None, int(tags.get("header_offset", 0)) + dataset.height * dataset.width * dataset.count * bits // 8
    for block in ("0_0", f"{across - 1}_0", f"0_{down - 1}", f"{across - 1}_{down - 1}"):
        names = (f"BLOCK_{what}_{block}" for what in ("OFFSET", "SIZE"))
        yield None, sum(int(dataset.get_tag_item(name, "TIFF", bidx=dataset.count) or 0) for name in names)


def _hfa_ends(path: Path, blocks: int) -> Iterator[tuple[str | None, int]]:
    """Yield the same for an HFA file, a band of which has `blocks` bytes of blocks."""
    with path.open("rb") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as held:
        try:
            (head,) = struct.unpack_from("<I", held, 16)
            todo, seen = list(struct.unpack_from("<I", held, head + 8)), set[int]()
            while todo:
                if (entry := todo.pop()) in seen or len(seen) == _MOST_ENTRIES:
                    raise _not_understood(path, "its entries form no tree")
                seen.add(entry)
                following, child, start, size, kind = _ENTRY.unpack_from(held, entry)
                todo += [offset for offset in (following, child) if offset]
                yield None, start + size
                if kind.startswith(b"Edms_State\0"):
                    number, at = struct.unpack_from("<II", held, start + 14)
                    yield None, at + number * _RECORD.itemsize
                    records = np.frombuffer(held[at : at + number * _RECORD.itemsize], _RECORD)
                    stored = records[records["valid"] != 0]
                    yield None, int((stored["offset"].astype(np.int64) + stored["size"]).max(initial=0))
                elif kind.startswith(b"ImgExternalRaster\0"):
                    _, first, bands, _ = struct.unpack_from("<QQII", held, start + size - 24)
                    name = held[start : start + size - 24].rstrip(b"\0").rpartition(b"\0")[2]
                    yield name.decode("latin-1"), first + bands * blocks
        except struct.error:  # a part of the tree lies beyond the end
            yield None, len(held) + 1


def _not_understood(path: Path, why: str) -> InputError:
    return InputError("raw-file-unsupported", "{path}: {why}; rewrite it with gdal_translate", path=path, why=why)


def _check_companions(path: Path, dataset: DatasetReader, depth: int) -> None:
    named = dataset.tags(ns="OVERVIEWS").get("OVERVIEW_FILE", "").removeprefix(":::BASE:::")
    if named and (Path(named).name != named or not _is_raster(path.with_name(named))):
        raise _unsafe(path, f"its tag OVERVIEW_FILE names {named[:200]!r}, no raster in its folder")
    for suffix in _COMPANIONS:
        beside = Path(f"{path}{suffix}")
        if not beside.exists():
            continue
        if depth == _DEEPEST or not _is_raster(beside):
            raise _unsafe(beside, f"GDAL reads it along with {path.name}, but it is no TIFF")
        with accept_pixel_space(), DatasetReader(str(beside), driver=["GTiff", "HFA"]) as companion:
            check_raster(beside, companion, depth + 1)


def _is_raster(path: Path) -> bool:
    if not path.is_file():  # a pipe would never end
        return False
    with path.open("rb") as file:
        return file.read(16).startswith(_RASTERS)


def _check_pages(path: Path | Url) -> None:
    """InputError for a mask or overview in the TIFF `path` that is stored in blocks too large to decode."""
    name = path.gdal if isinstance(path, Url) else path
    for number in range(2, _MOST_PAGES + 2):
        try:
            with accept_pixel_space(), DatasetReader(f"GTIFF_DIR:{number}:{name}", driver=["GTiff"]) as page:
                _check_blocks(path, page)
        except RasterioError:
            return  # there are no more
    raise InputError(
        "too-many-pages",
        "{path} has more than {most} images in it; give each in a file of its own",
        path=path,
        most=_MOST_PAGES,
    )


def check_bands(dataset: DatasetReader, path: Path | Url, dtypes: tuple[str, ...]) -> None:
    """InputError without bands or with pixel types that are mixed or not in `dtypes`."""
    if dataset.count == 0:
        raise InputError("no-bands", "{path} has no bands; give one of the rasters it refers to", path=path)
    types = " and ".join(sorted(set(dataset.dtypes)))
    if types not in dtypes:
        raise InputError(
            "pixels-unsupported",
            "{path} holds {dtype} pixels; one type of {known} is supported; convert it with gdal_translate -ot",
            path=path,
            dtype=types,
            known=", ".join(dtypes),
        )


def check_planes(dataset: DatasetReader, path: Path | Url) -> None:
    """InputError for an OME-TIFF whose channels, or planes of a stack, are pages: GDAL reads the first alone."""
    text = dataset.tags().get("TIFFTAG_IMAGEDESCRIPTION", "")
    image = re.search(r"<(?:\w+:)?Pixels\b[^>]*>", text) if "www.openmicroscopy.org" in text else None
    planes = math.prod(map(int, re.findall(r'\bSize[CZT]="(\d{1,9})"', image[0]))) if image else 1
    if dataset.count < planes <= dataset.count * len(dataset.subdatasets):
        raise InputError(
            "bands-in-pages",
            "{path}: holds {planes} planes (channels, depths, moments) in pages of their own; say in a VRT which of "
            "them are the bands (GTIFF_DIR:1:FILE is the first page), or write them as bands of one image",
            path=path,
            planes=planes,
        )
