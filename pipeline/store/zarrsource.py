"""Zarr stores of others as sources of pixels: OME-Zarr images, what xarray, rioxarray and GDAL write, bare arrays.

What a store says of itself is read by zarrnode.py, zarrlayout.py, zarrplace.py and zarrvalues.py; zarr is given the
metadata that were judged there, and chunk files through a guard (see opening.py).
"""

import math
import threading
from collections.abc import Callable
from itertools import chain
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from fcn_batch.pipeline.core.decoded import Decoded
from fcn_batch.pipeline.core.distant import Distant, Place
from fcn_batch.pipeline.core.errors import DecodingError, InputError
from fcn_batch.pipeline.core.geometry import Window
from fcn_batch.pipeline.core.georeference import IDENTITY, GeoReference
from fcn_batch.pipeline.core.limits import size_problem
from fcn_batch.pipeline.core.source import DTYPES, NO_MEASUREMENT, Pixels, RasterInfo, SourceFile, check_read
from fcn_batch.pipeline.core.zarrlayout import Layout, layout_of
from fcn_batch.pipeline.core.zarrnode import Node, child, document, metadata_files
from fcn_batch.pipeline.core.zarrplace import place_of
from fcn_batch.pipeline.core.zarrvalues import descriptions_of, nodata_of, roles_of, scales_of
from fcn_batch.pipeline.store.distantarray import open_distant
from fcn_batch.pipeline.store.opening import UNSAFE, open_foreign

_LONGEST_NAME = 256
"""Characters of the names of bands in a coordinate."""


class ZarrSource:
    """An image in a zarr store, at a level of its pyramid. Pickles without open arrays.

    `wkt_of`, a function of a module, gives WKT2 of a reference system that the store names in another form.
    """

    def __init__(self, place: Place, level: int, wkt_of: Callable[[str], str]) -> None:
        self._path, self._level, self._wkt_of = place, level, wkt_of
        self._lock = threading.RLock()
        self._image: _Image | None = None
        self._info: RasterInfo | None = None

    def __reduce__(self) -> tuple[type["ZarrSource"], tuple[Place, int, Callable[[str], str]]]:
        return ZarrSource, (self._path, self._level, self._wkt_of)

    @property
    def info(self) -> RasterInfo:
        """What the store says of itself.

        InputError when there is no image in it that can be read, it has no such level, or is not safe to read.
        """
        with self._lock:
            if self._info is None:
                self._info = self._look()
            return self._info

    def read(self, window: Window, bands: tuple[int, ...]) -> Pixels:
        """Values and mask of `window`; `bands` counts from 1, in the order wanted.

        A pixel is valid where any band of the store has data (is not nodata), alpha is not 0, and all `bands` are below
        NO_MEASUREMENT: as RasterioSource has it. ValueError when the window leaves the image or a band does not exist;
        InputError when the store cannot be opened, and DecodingError when it can, but some of these pixels cannot be
        read.
        """
        info = self.info
        check_read(info, window, bands)
        image = self._open()
        try:
            values = image.decoded.values(window, bands)
            valid = image.valid(window, bands, values)
        except Exception as error:
            where = f"rows {window.row}..{window.stop_row - 1}, cols {window.col}..{window.stop_col - 1}"
            message = f"{info.path} cannot be decoded in {where}: {_why(error)}"
            raise DecodingError(f"{message}; get an undamaged copy") from error
        if values.dtype.kind == "f":
            valid &= (np.abs(values) < NO_MEASUREMENT).all(axis=0)
        return Pixels(values, valid)

    def close(self) -> None:
        """Let go of the arrays; a later read opens them again."""
        with self._lock:
            self._image = None

    def _open(self) -> "_Image":
        with self._lock:
            if self._image is None:
                try:
                    self._image = _Image(layout_of(self._path, self._level), self.info)
                except UNSAFE as error:
                    raise self._unreadable(error) from error
            return self._image

    def _look(self) -> RasterInfo:
        try:
            return _info(self._path, self._level, self._wkt_of)
        except UNSAFE as error:
            raise self._unreadable(error) from error

    def _unreadable(self, error: Exception) -> InputError:
        return InputError(
            f"{self._path} cannot be read as zarr: {_why(error)}; get an undamaged copy, or write it anew with xarray"
        )


class _Image:
    """The arrays of an image, opened, and what their values mean."""

    def __init__(self, layout: Layout, info: RasterInfo) -> None:
        self._axes, self._dtype = layout.axes, np.dtype(info.dtype)
        self._arrays = [_opened(node) for node in layout.arrays]
        self._together = layout.axes.bands is not None and layout.arrays[0].chunk[layout.axes.bands] > 1
        self.decoded = Decoded(self._values, info.size, info.storage_block[0], self._dtype.itemsize)
        self._nodata = nodata_of(layout)
        self._alpha = info.colour_roles.index("alpha") + 1 if "alpha" in info.colour_roles else None

    def _values(self, window: Window, bands: tuple[int, ...]) -> NDArray[Any]:
        """(bands, rows, cols), in the byte order of this machine."""
        if self._axes.bands is None:
            found = [self._selected(self._arrays[band - 1], window, slice(0))[None] for band in bands]
            return found[0] if len(found) == 1 else np.concatenate(found)
        first, stop = min(bands) - 1, max(bands)
        if self._together or stop - first == len(set(bands)):
            block = self._selected(self._arrays[0], window, slice(first, stop))
            wanted = [band - 1 - first for band in bands]
            return block if wanted == list(range(len(block))) else block[wanted]
        single = [self._selected(self._arrays[0], window, slice(band - 1, band)) for band in bands]
        return np.concatenate(single)

    def valid(self, window: Window, bands: tuple[int, ...], values: NDArray[Any]) -> NDArray[np.bool_]:
        """(rows, cols), from the `values` of `bands` and, where these do not decide it, of the others."""
        if self._alpha is not None:
            known = (
                values[bands.index(self._alpha)]
                if self._alpha in bands
                else self.decoded.values(window, (self._alpha,))[0]
            )
            return np.asarray(known > 0)
        valid = self._measured(bands, values)
        others = tuple(band for band in range(1, len(self._nodata) + 1) if band not in bands)
        if others and not valid.all():
            valid |= self._measured(others, self.decoded.values(window, others))
        return valid

    def _measured(self, bands: tuple[int, ...], values: NDArray[Any]) -> NDArray[np.bool_]:
        """Where any of these bands is not nodata."""
        measured = np.zeros(values.shape[1:], np.bool_)
        for band, plane in zip(bands, values, strict=True):
            nodata = self._nodata[band - 1]
            if nodata is None:
                return np.ones_like(measured)
            with np.errstate(over="ignore"):
                measured |= ~np.isnan(plane) if math.isnan(nodata) else plane != self._dtype.type(nodata)
        return measured

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


def _info(path: Place, level: int, wkt_of: Callable[[str], str]) -> RasterInfo:
    layout = layout_of(path, level)
    node, size = layout.arrays[0], layout.size
    _check(path, layout)
    georeference = place_of(layout, _read_whole, wkt_of)
    if georeference == GeoReference(None, IDENTITY) and level:
        finest = layout.levels[0]
        georeference = georeference.coarser(finest.height / size.height, finest.width / size.width)
    descriptions = descriptions_of(layout, _band_names(layout))
    roles = roles_of(layout, descriptions)
    has_nodata = any(value is not None for value in nodata_of(layout))
    groups = [file for group in reversed(layout.groups) for file in metadata_files(group)]
    return RasterInfo(
        path=str(path),
        files=(*map(str, groups), *chain.from_iterable(map(_chunks_of, layout.arrays))),
        size=size,
        bands=layout.bands,
        dtype=node.dtype,
        georeference=georeference,
        descriptions=descriptions,
        colour_roles=roles,
        storage_block=layout.block,
        has_mask=has_nodata or "alpha" in roles,
        ground=None,
        microns=layout.microns,
        scales=scales_of(layout),
        sources=(SourceFile(path=str(path), by="zarr", level=level),),
        levels=layout.levels,
    )


def _check(path: Place, layout: Layout) -> None:
    """InputError for pixels of another type, or too many of them; ValueError for chunks that are not safe to decode."""
    dtype = layout.arrays[0].dtype
    if dtype not in DTYPES:
        message = f"{path} holds {dtype[:60]} pixels; one type of {', '.join(DTYPES)} is supported"
        raise InputError(f"{message}: write it anew with one (xarray's astype)")
    for size in (layout.size, *layout.levels):
        problem = size_problem(size.height, size.width, layout.bands)
        if problem is not None:
            raise InputError(f"{path}: claims {problem}; cut out a part, or some bands (xarray's isel)")
    for node in layout.arrays:
        _ = node.form


def _opened(node: Node) -> zarr.Array[Any]:
    if isinstance(node.path, Distant):
        return open_distant(node.path, node.form, document(node))
    return open_foreign(node.path, node.form, document(node))


def _chunks_of(node: Node) -> list[str]:
    """By what an array is known: its folder or, where nobody lists that, its metadata."""
    if not isinstance(node.path, Distant):
        return [str(node.path)]
    return [f"{node.path}/"] if node.path.lists else [str(file) for file in metadata_files(node)]


def _read_whole(node: Node) -> NDArray[Any]:
    """All values of a coordinate."""
    return np.asarray(_opened(node)[...])


def _band_names(layout: Layout) -> list[str] | None:
    """What the coordinate of the bands says, where it is text; None where there is none."""
    axis, groups = layout.axes.bands, layout.groups
    name = None if axis is None else layout.arrays[0].dimensions[axis]
    if name is None or not groups or not (groups[0].path / name).is_dir() or layout.is_ome:
        return None
    try:
        node = child(groups[0], name)
        if node.shape != (layout.bands,) or node.form.file > 4 * _LONGEST_NAME * layout.bands:
            return None
        values = _read_whole(node)
    except UNSAFE:
        return None  # names are a convenience
    return [str(value) for value in values] if values.dtype.kind == "U" else None


def _why(error: Exception) -> str:
    """One line, also where the message is empty, and of a group of errors the first."""
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    return f"{type(error).__name__}: {error}".splitlines()[0][:300]
