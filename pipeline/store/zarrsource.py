"""Zarr stores of others as sources of pixels: OME-Zarr images, what xarray, rioxarray and GDAL write, bare arrays.

Where the image is in a store, `zarrimage.py` says, and what its values mean `zarrmeaning.py`.
"""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from fcn_batch.pipeline.core.conventions import METADATA
from fcn_batch.pipeline.core.errors import DecodingError, FcnBatchError, InputError
from fcn_batch.pipeline.core.geometry import Window
from fcn_batch.pipeline.core.georeference import IDENTITY, GeoReference
from fcn_batch.pipeline.core.limits import size_problem
from fcn_batch.pipeline.core.location import Url
from fcn_batch.pipeline.core.source import DTYPES, Pixels, RasterInfo, SourceFile, check_read, nodata_refused
from fcn_batch.pipeline.core.validity import AS_DECLARED, NodataOption, Validity
from fcn_batch.pipeline.store.opening import Node, ServerOf, judged, why
from fcn_batch.pipeline.store.zarrimage import Image, image_at, store_of
from fcn_batch.pipeline.store.zarrmeaning import descriptions_of, nodata_of, place_of, roles_of, scales_of

_LOW = 1024
"""Rows of chunks that slabs are about as high as: taller ones are kept decoded while slabs are read from them.

Without this, chunks of 4096 rows are decoded 16 times, which takes six times as long (zstd).
"""
_MOST_BYTES = 2**28
"""The limit for what is kept."""


class ZarrSource:
    """An image in a zarr store, at a level of its pyramid. Pickles without open arrays.

    `wkt_of` gives WKT2 of a reference system that the store names in another form, `server_of` what URLs are read
    from; both are functions of modules. `nodata` is what the user says of its nodata values.
    """

    def __init__(
        self,
        place: Path | Url,
        level: int,
        wkt_of: Callable[[str], str],
        server_of: ServerOf | None = None,
        nodata: NodataOption = AS_DECLARED,
    ) -> None:
        self._given = (place, level, wkt_of, server_of, nodata)
        self._lock = threading.RLock()
        self._values: _Values | None = None
        self._info: RasterInfo | None = None

    def __reduce__(self) -> tuple[type["ZarrSource"], tuple[Any, ...]]:
        return ZarrSource, self._given

    @property
    def info(self) -> RasterInfo:
        """What the store says of itself.

        InputError when there is no image in it that can be read, it has no such level, or is not safe to read.
        """
        with self._lock:
            if self._info is None:
                self._open()
            assert self._info is not None
            return self._info

    def read(self, window: Window, bands: tuple[int, ...]) -> Pixels:
        """Values and mask of `window`; `bands` counts from 1, in the order wanted.

        Which pixels are valid, validity.py says. ValueError when the window leaves the image or a band does not exist;
        InputError when the store cannot be opened, and DecodingError when it can, but some of these pixels cannot be
        read.
        """
        info = self.info
        check_read(info, window, bands)
        image = self._open()
        try:
            values, alpha = image.read(window, bands), None
            if (number := info.validity.alpha) is not None:
                alpha = values[bands.index(number)] if number in bands else image.read(window, (number,))[0]
        except Exception as error:
            raise DecodingError(
                "pixels-unreadable",
                "{path} cannot be decoded in rows {rows}, cols {cols}: {why}; get an undamaged copy",
                path=info.path,
                rows=f"{window.row}..{window.stop_row - 1}",
                cols=f"{window.col}..{window.stop_col - 1}",
                why=why(error),
            ) from error
        return Pixels.judged(values, info.validity.judge(values, bands, alpha))

    def close(self) -> None:
        """Let go of the arrays; a later read opens them again."""
        with self._lock:
            self._values = None

    def _open(self) -> "_Values":
        place, level, wkt_of, server_of, nodata = self._given
        with self._lock:
            if self._values is None:
                try:
                    image = image_at(place, level, server_of)
                    if self._info is None:
                        self._info = _info(place, level, image, wkt_of, nodata)
                    self._values = _Values(image, self._info)
                except FcnBatchError:
                    raise
                except FileNotFoundError as error:
                    raise InputError(
                        "store-missing",
                        "{path}: no zarr store there (no zarr.json, .zarray or .zgroup); check the name",
                        path=place,
                    ) from error
                except Exception as error:
                    raise InputError(
                        "store-unreadable",
                        "{path} cannot be read as zarr: {why}; check the name, get an undamaged copy, or write it anew "
                        "with xarray",
                        path=place,
                        why=why(error),
                    ) from error
            return self._values


class _Values:
    """The values of an image."""

    def __init__(self, image: Image, info: RasterInfo) -> None:
        self._axes, self._arrays, self._dtype = image.axes, image.arrays, np.dtype(info.dtype)
        self._size, self._tall = info.size, info.storage_block[0]
        self._lock = threading.Lock()
        self._kept: dict[tuple[Window, tuple[int, ...]], NDArray[Any]] = {}
        self._together = image.axes.bands is not None and image.arrays[0].chunks[image.axes.bands] > 1

    def read(self, window: Window, bands: tuple[int, ...]) -> NDArray[Any]:
        """(bands, rows, cols), in the byte order of this machine."""
        strip_bytes = self._tall * window.width * len(bands) * self._dtype.itemsize
        if self._tall <= _LOW or window.height >= self._tall or strip_bytes > _MOST_BYTES:
            return self._decoded(window, bands)
        parts = []
        for top in range(window.row // self._tall * self._tall, window.stop_row, self._tall):
            strip = Window(top, window.col, self._tall, window.width).clipped(self._size)
            rows, _ = strip.intersection(window).slices(strip)
            parts.append(self._strip(strip, bands)[:, rows])
        return np.concatenate(parts, axis=1)

    def _strip(self, strip: Window, bands: tuple[int, ...]) -> NDArray[Any]:
        """A row of chunks, which is kept until others need the room."""
        with self._lock:
            values = self._kept.pop((strip, bands), None)
            if values is not None:
                self._kept[strip, bands] = values  # as the newest
                return values
        values = self._decoded(strip, bands)
        with self._lock:
            self._kept[strip, bands] = values
            while sum(one.nbytes for one in self._kept.values()) > _MOST_BYTES:
                del self._kept[next(iter(self._kept))]
        return values

    def _decoded(self, window: Window, bands: tuple[int, ...]) -> NDArray[Any]:
        if self._axes.bands is None:
            return np.concatenate([self._selected(self._arrays[band - 1], window, slice(0))[None] for band in bands])
        first, stop = min(bands) - 1, max(bands)
        if self._together or stop - first == len(set(bands)):
            block = self._selected(self._arrays[0], window, slice(first, stop))
            wanted = [band - 1 - first for band in bands]
            return block if wanted == list(range(len(block))) else block[wanted]
        return np.concatenate([self._selected(self._arrays[0], window, slice(band - 1, band)) for band in bands])

    def _selected(self, array: zarr.Array[Any], window: Window, bands: slice) -> NDArray[Any]:
        """(bands, rows, cols), or (rows, cols) of an array that is one band: one selection by zarr."""
        axes = self._axes
        at: dict[int | None, Any] = {axes.bands: bands}
        at[axes.rows], at[axes.cols] = window.slices()
        found = np.asarray(array[tuple(at.get(axis, 0) for axis in range(array.ndim))])
        order = [axis for axis in (axes.bands, axes.rows, axes.cols) if axis is not None]
        kept = sorted(order)
        found = found.transpose([kept.index(axis) for axis in order])
        return np.ascontiguousarray(found, self._dtype)


def _info(
    place: Path | Url,
    level: int,
    image: Image,
    wkt_of: Callable[[str], str],
    nodata: NodataOption,
) -> RasterInfo:
    size = image.size
    _check(place, image)
    georeference = place_of(image, wkt_of)
    if georeference == GeoReference(None, IDENTITY) and level:
        finest = image.levels[0]
        georeference = georeference.coarser(finest.height / size.height, finest.width / size.width)
    descriptions = descriptions_of(image)
    roles = roles_of(image, descriptions)
    dtype = image.arrays[0].dtype.name
    try:
        validity = Validity.of(dtype, nodata_of(image), roles, option=nodata)
    except ValueError as error:
        raise nodata_refused(str(place), nodata, error) from error
    return RasterInfo(
        path=str(place),
        files=tuple(_files(image)),
        size=size,
        bands=image.bands,
        dtype=dtype,
        georeference=georeference,
        descriptions=descriptions,
        colour_roles=roles,
        storage_block=image.block,
        validity=validity,
        ground=None,
        microns=image.microns,
        scales=scales_of(image),
        sources=(SourceFile(path=str(place), by="zarr", level=level, nodata=nodata),),
        levels=image.levels,
    )


def _check(place: Path | Url, image: Image) -> None:
    """InputError for pixels of another type, or too many of them; ValueError for chunks that are not safe to decode."""
    dtype = image.arrays[0].dtype.name
    if dtype not in DTYPES:
        raise InputError(
            "dtype-unsupported",
            "{path} holds {dtype} pixels; one type of {known} is supported: write it anew with one (xarray's astype)",
            path=place,
            dtype=dtype[:60],
            known=", ".join(DTYPES),
        )
    for size in (image.size, *image.levels):
        problem = size_problem(size.height, size.width, image.bands)
        if problem is not None:
            raise InputError(
                "raster-too-large",
                "{path}: claims {problem}; cut out a part, or some bands (xarray's isel)",
                path=place,
                problem=problem,
            )
    for array in image.arrays:
        judged(array)


def _files(image: Image) -> Iterator[str]:
    """What changes with the input: the metadata of groups, and arrays by their folder or, if not listed, metadata."""
    nodes: list[Node] = [*reversed(image.groups), *image.arrays]
    for node in nodes:
        store = store_of(node)
        if isinstance(node, zarr.Array) and not store.web:
            yield store.named(node.path) + ("" if store.root is not None else "/")
        else:
            keys = (f"{node.path}/{name}".strip("/") for name in METADATA)
            yield from (store.named(key) for key in keys if store.has(key))
