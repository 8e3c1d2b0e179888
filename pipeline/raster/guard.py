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
"""

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from rasterio.enums import Interleaving
from rasterio.errors import RasterioError
from rasterio.io import DatasetReader

from fcn_batch.pipeline.core.errors import InputError
from fcn_batch.pipeline.core.limits import MAX_BLOCK_BYTES, size_problem
from fcn_batch.pipeline.core.location import Url
from fcn_batch.pipeline.core.microns import planes_of
from fcn_batch.pipeline.core.rawsize import envi_end, hfa_ends
from fcn_batch.pipeline.raster.gdal import accept_pixel_space

_COMPANIONS = (".msk", ".MSK", ".ovr", ".OVR")
_RASTERS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+", b"EHFA_HEADER_TAG")
_DEEPEST = 3
"""Companions of companions: the overviews of a mask have no masks of their own."""
_MOST_PAGES = 128
"""Masks and overviews in a TIFF."""
_REMEDY = "remove it, or get the raster from somebody you trust"


def check_raster(path: Path, dataset: DatasetReader, depth: int = 0) -> None:
    """InputError when the raster `path`, opened as `dataset`, claims too much, is cut off, or has bad companions."""
    problem = size_problem(dataset.height, dataset.width, dataset.count)
    if problem is not None:
        raise InputError(f"{path}: claims {problem}; cut it with gdal_translate -srcwin, or take some bands with -b")
    _check_blocks(path, dataset)
    _check_end(path, dataset)
    _check_companions(path, dataset, depth)
    if dataset.driver == "GTiff":
        _check_pages(path)
    if depth == 0 and dataset.driver != "VRT":
        folders = (path.parent, path.parent.resolve())
        for name in dataset.files:
            if Path(name).parent not in folders:
                raise InputError(f"{path}: names {name}, which is not in its folder; {_REMEDY}")
    if dataset.driver == "VRT":
        _check_sources(path, dataset)


def _check_sources(path: Path, dataset: DatasetReader) -> None:
    """InputError for a VRT of which a source cannot be opened: GDAL says so once, and then reads zeros."""
    for name in dataset.files:
        if name == str(path) or name.endswith(".xml"):
            continue
        try:
            with accept_pixel_space(), DatasetReader(name):
                pass
        except RasterioError as error:
            raise InputError(f"{path}: its source {name} cannot be opened ({error}); correct the VRT") from error


def check_remote(url: Url, dataset: DatasetReader, length: int) -> None:
    """The same for a raster of `length` bytes that is no file here: it has no companions, as none are looked for."""
    problem = size_problem(dataset.height, dataset.width, dataset.count)
    if problem is not None:
        raise InputError(f"{url}: claims {problem}; cut it with gdal_translate -srcwin, or take some bands with -b")
    if dataset.tags(ns="OVERVIEWS").get("OVERVIEW_FILE"):
        raise InputError(f"{url}: its tag OVERVIEW_FILE names another file; {_REMEDY}")
    if dataset.driver in ("HFA", "ENVI"):
        raise InputError(
            f"{url}: {dataset.driver} is of several files, which are not looked for there; copy it to a disk"
        )
    _check_blocks(url, dataset)
    if dataset.driver == "GTiff":
        _check_pages(url)
        for _, end in _ends(Path(url.name), dataset):
            if end > length:
                raise InputError(f"{url} is cut off at byte {length} of {end} or more; get a complete copy")


def _check_blocks(path: Path | Url, dataset: DatasetReader) -> None:
    rows, cols = max(dataset.block_shapes, key=math.prod)
    together = dataset.count if dataset.interleaving == Interleaving.pixel else 1
    size = rows * cols * together * np.dtype(dataset.dtypes[0]).itemsize
    if size > MAX_BLOCK_BYTES:
        message = f"{path} is stored in blocks of {rows}x{cols} pixels, {size} bytes each"
        remedy = "rewrite it with gdal_translate -co TILED=YES"
        raise InputError(f"{message}, more than the limit of {MAX_BLOCK_BYTES}; {remedy}")


def _check_end(path: Path, dataset: DatasetReader) -> None:
    """InputError for a TIFF cut off before its last blocks, and for files of raw pixels cut off anywhere."""
    for name, end in _ends(path, dataset):
        if name is not None and Path(name).name != name:
            raise InputError(f"{path}: has its pixels in {name!r:.300}, which is not in its folder; {_REMEDY}")
        file = path if name is None else path.with_name(name)
        length = file.stat().st_size if file.is_file() else 0
        if end > length:
            raise InputError(f"{file} is cut off at byte {length} of {end} or more; get a complete copy")


def _ends(path: Path, dataset: DatasetReader) -> Iterator[tuple[str | None, int]]:
    """Names of files beside `path` (None: itself) and how long they must at least be."""
    rows, cols = dataset.block_shapes[-1]
    down, across = -(-dataset.height // rows), -(-dataset.width // cols)
    bits = int(dataset.tags(1, ns="IMAGE_STRUCTURE").get("NBITS", 8 * np.dtype(dataset.dtypes[0]).itemsize))
    try:
        if dataset.driver == "HFA":
            yield from hfa_ends(path, down * across * rows * cols * bits // 8)
        elif dataset.driver == "ENVI":
            yield None, envi_end(dataset.tags(ns="ENVI"), dataset.height * dataset.width * dataset.count * bits // 8)
    except ValueError as error:
        raise InputError(f"{path}: {error}; rewrite it with gdal_translate") from error
    for block in ("0_0", f"{across - 1}_0", f"0_{down - 1}", f"{across - 1}_{down - 1}"):
        tags = (f"BLOCK_{what}_{block}" for what in ("OFFSET", "SIZE"))
        yield None, sum(int(dataset.get_tag_item(tag, "TIFF", bidx=dataset.count) or 0) for tag in tags)


def _check_companions(path: Path, dataset: DatasetReader, depth: int) -> None:
    named = dataset.tags(ns="OVERVIEWS").get("OVERVIEW_FILE", "").removeprefix(":::BASE:::")
    if named and (Path(named).name != named or not _is_raster(path.with_name(named))):
        raise InputError(f"{path}: its tag OVERVIEW_FILE names {named[:200]!r}, no raster in its folder; {_REMEDY}")
    for suffix in _COMPANIONS:
        beside = Path(f"{path}{suffix}")
        if not beside.exists():
            continue
        if depth == _DEEPEST or not _is_raster(beside):
            raise InputError(f"{beside}: GDAL reads it along with {path.name}, but it is no TIFF; {_REMEDY}")
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
    raise InputError(f"{path} has more than {_MOST_PAGES} images in it; give each in a file of its own")


def check_bands(dataset: DatasetReader, path: Path | Url, dtypes: tuple[str, ...]) -> None:
    """InputError without bands or with pixel types that are mixed or not in `dtypes`."""
    if dataset.count == 0:
        raise InputError(f"{path} has no bands; give one of the rasters it refers to")
    types = " and ".join(sorted(set(dataset.dtypes)))
    if types not in dtypes:
        message = f"{path} holds {types} pixels; one type of {', '.join(dtypes)} is supported"
        raise InputError(f"{message}; convert it with gdal_translate -ot")


def check_planes(dataset: DatasetReader, path: Path | Url) -> None:
    """InputError for an OME-TIFF whose channels, or planes of a stack, are pages: GDAL reads the first alone."""
    planes = planes_of(dataset.tags())
    if dataset.count < planes <= dataset.count * len(dataset.subdatasets):
        raise InputError(
            f"{path}: holds {planes} planes (channels, depths, moments) in pages of their own; say in a VRT which of "
            "them are the bands (GTIFF_DIR:1:FILE is the first page), or write them as bands of one image"
        )
