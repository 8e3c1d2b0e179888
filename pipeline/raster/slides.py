"""Slides of scanners whose files rasterio does not read, or would take for something else: by openslide or tiffslide.

Both have the same names for things: levels, `read_region`, properties. openslide knows the formats of most scanners;
tiffslide reads TIFFs of any compression. Both are optional: ``pip install 'fcn-batch[slides]'``.

`read_region` wants a place on the finest level, and a level's pixels may not lie on whole ones of these. So a coarser
level is read in blocks that never change, each from its own place, and a pixel does not depend on the window.
"""

import logging
import math
import re
import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fcn_batch.pipeline.core.errors import FcnBatchError, InputError, OptionError
from fcn_batch.pipeline.core.geometry import Size, Window
from fcn_batch.pipeline.core.georeference import IDENTITY, GeoReference
from fcn_batch.pipeline.core.limits import size_problem
from fcn_batch.pipeline.core.source import (
    PerThread,
    Pixels,
    RasterInfo,
    SourceFile,
    check_read,
    no_level,
    nodata_refused,
    undecodable,
)
from fcn_batch.pipeline.core.validity import AS_DECLARED, OUTSIDE, NodataOption, Validity

Reader = Literal["openslide", "tiffslide"]
READERS: tuple[Reader, ...] = ("openslide", "tiffslide")
_BLOCK = 512
"""Rows and columns that are read at once of a coarser level."""
_AS_RASTER = (None, "generic-tiff")
"""Vendors whose files rasterio reads too, and faster: plain TIFFs whose first picture is the slide."""
_ONE_LEVEL_AS_RASTER = "aperio"
"""Another one, but of its levels rasterio sees only the finest."""
_CANDIDATES = 32
"""Rows or columns from which on a block of a coarser level can be read."""
_BANDS = ("red", "green", "blue")
SUFFIXES = (".svs", ".ndpi", ".mrxs", ".scn", ".bif", ".vms", ".vmu", ".svslide")
"""Endings of slides, each of which is named by one file: what folders are searched for, and errors go by."""
INSTALL = "pip install 'fcn-batch[slides]'"


class SlideSource:
    """A slide at a level of its pyramid, opened in each thread that reads it. Pickles without open files."""

    def __init__(self, path: str, by: Reader, level: int = 0, nodata: NodataOption = AS_DECLARED) -> None:
        self._path, self._by, self._level, self._nodata = str(Path(path).absolute()), by, level, nodata
        self._info: RasterInfo | None = None
        self._open = PerThread(partial(_open, self._path, self._by))

    def __reduce__(self) -> tuple[type["SlideSource"], tuple[Any, ...]]:
        return SlideSource, (self._path, self._by, self._level, self._nodata)

    @property
    def info(self) -> RasterInfo:
        """What the slide says of itself; InputError when it cannot be opened or has no such level."""
        if self._info is None:
            slide = self._open.get()
            try:
                self._info = _info(slide, self._path, self._by, self._level, self._nodata)
            except FcnBatchError:
                raise
            except Exception as error:  # metadata that a reader does not expect
                raise _unreadable(self._path, self._by, error) from error
        return self._info

    def read(self, window: Window, bands: tuple[int, ...]) -> Pixels:
        """Red, green and blue of `window`, not valid where nothing was scanned.

        ValueError when the window leaves the slide or a band does not exist, DecodingError when these pixels cannot be
        read.
        """
        check_read(self.info, window, bands)
        found = Pixels.blank(len(bands), window, "uint8")
        for piece in _pieces(window, self.info.size) if self._level else [window]:
            values = np.moveaxis(self._region(piece), -1, 0)
            chosen = values[[band - 1 for band in bands]]
            why = self.info.validity.judge(chosen, bands)
            if len(values) > 3:
                why[values[3] == 0] |= OUTSIDE
            found.paste(Pixels.judged(chosen, why), piece, window)
        return found

    def close(self) -> None:
        """Close the slide in all threads; a later read opens it again."""
        self._open.close()

    def _region(self, window: Window) -> NDArray[np.uint8]:
        """(rows, cols, 3 or 4); DecodingError."""
        try:
            slide, scale = self._open.get(), 1.0
            if self._level:
                scale = slide.level_downsamples[self._level]
            if self._by == "openslide":
                row, col = _on_whole_pixel(window.row, scale), _on_whole_pixel(window.col, scale)
                place, size = (round(col * scale), round(row * scale)), (window.stop_col - col, window.stop_row - row)
                return np.asarray(slide.read_region(place, self._level, size))[window.row - row :, window.col - col :]
            place = (math.ceil(window.col * scale), math.ceil(window.row * scale))  # divided again and rounded down
            found = slide.read_region(place, self._level, (window.width, window.height), as_array=True)
        except FcnBatchError:
            raise
        except Exception as error:
            self._open.forget()  # openslide does nothing more after an error
            raise undecodable(self._path, window, error) from error
        return np.asarray(found)


def wants_slide_reader(path: Path) -> bool:
    """True for a slide of a scanner whose format only a reader of slides understands; False where none is installed."""
    openslide = _library("openslide")
    if openslide is None or not path.is_file():
        return False
    try:
        vendor = openslide.OpenSlide.detect_format(str(path))
        if vendor == _ONE_LEVEL_AS_RASTER:
            with openslide.OpenSlide(str(path)) as slide:
                return bool(slide.level_count > 1)
        return vendor not in _AS_RASTER
    except Exception:  # noqa: BLE001 - whatever it says: it is not for it then
        return False


def installed() -> list[Reader]:
    """The readers of slides that are there, the best first."""
    return [name for name in READERS if _library(name) is not None]


def _library(name: str) -> Any:
    """The module, or None when it is not installed, or not all of it."""
    logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # what it tells of damage, our errors tell
    try:
        return __import__(name)
    except (ImportError, OSError):  # openslide without its shared library
        return None


def _open(path: str, by: Reader) -> Any:
    """The slide; InputError when it cannot be opened."""
    library = _library(by)
    if library is None:
        raise OptionError(
            "extra-missing",
            "{path}: read by {by} before, which is not installed here; {install}",
            path=path,
            by=by,
            install=INSTALL,
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of tiffslide, on metadata that it does not know
            return library.OpenSlide(path) if by == "openslide" else library.TiffSlide(path)
    except Exception as error:
        raise _unreadable(path, by, error) from error


def _unreadable(path: str, by: Reader, reason: Exception) -> InputError:
    return InputError(
        "input-damaged",
        "{path} cannot be read as a slide by {by}: {reason}; get an undamaged copy",
        path=path,
        by=by,
        reason=str(reason) or repr(reason),
    )


def _info(slide: Any, path: str, by: Reader, level: int, nodata: NodataOption) -> RasterInfo:
    levels = [Size(height, width) for width, height in slide.level_dimensions]
    if level >= len(levels):
        raise no_level(path, level, len(levels))
    finest, size = levels[0], levels[level]
    problem = size_problem(finest.height, finest.width)
    if problem is not None:
        raise InputError("raster-too-large", "{path}: claims {size}; take another slide", path=path, size=problem)
    if by == "tiffslide":
        _check_bands(slide, path)
    rows, cols = finest.height / size.height, finest.width / size.width
    microns = _number(slide.properties.get(f"{by}.mpp-x"))
    try:
        validity = Validity.of("uint8", (None,) * 3, _BANDS, option=nodata)
    except ValueError as error:
        raise nodata_refused(path, nodata, error) from error
    return RasterInfo(
        path=path,
        files=tuple(map(str, _files(Path(path)))),
        size=size,
        bands=3,
        dtype="uint8",
        georeference=GeoReference(None, IDENTITY).coarser(rows, cols),
        descriptions=(None, None, None),
        colour_roles=_BANDS,
        storage_block=_storage_block(slide, by, level),
        ground=None,
        microns=microns and microns * cols,
        sources=(SourceFile(path=path, by=by, level=level, nodata=nodata),),
        validity=validity,
        levels=tuple(levels),
    )


def _check_bands(slide: Any, path: str) -> None:
    """InputError unless the pixels are three or four bytes."""
    sample = np.asarray(slide.read_region((0, 0), 0, (1, 1), as_array=True))
    if sample.dtype != np.uint8 or sample.shape[-1] not in (3, 4):
        raise InputError(
            "pixels-unsupported",
            "{path}: holds {bands} bands of {dtype}; slides need red, green and blue bytes: convert it to a TIFF "
            "without pyramid",
            path=path,
            bands=sample.shape[-1],
            dtype=sample.dtype,
        )


def _number(text: Any) -> float | None:
    """A positive number, of what properties hold; None where that is none."""
    found = re.fullmatch(r"\d+(?:\.\d*)?(?:[eE][+-]?\d+)?", str(text))
    return (float(found[0]) or None) if found else None


def _storage_block(slide: Any, by: Reader, level: int) -> tuple[int, int]:
    """Of tiles, where the library says it."""
    sides = [_number(slide.properties.get(f"{by}.level[{level}].tile-{side}")) for side in ("height", "width")]
    height, width = (_BLOCK if side is None else int(side) for side in sides)
    return height, width


def _files(path: Path) -> Iterator[Path]:
    """A slide's files: itself and, of MIRAX, those in the folder of its name."""
    yield path
    folder = path.with_suffix("")
    if path.suffix.lower() == ".mrxs" and folder.is_dir():
        yield from sorted(one for one in folder.iterdir() if one.is_file())


def _on_whole_pixel(first: int, scale: float) -> int:
    """The row or column, `first` or one not far before it, that lies best on a whole one of the finest level.

    Between two of these openslide interpolates.

    >>> _on_whole_pixel(512, 2.0), _on_whole_pixel(512, 2.1), _on_whole_pixel(5, 2.01)
    (512, 510, 0)
    """
    near = range(first, max(-1, first - _CANDIDATES), -1)
    return min(near, key=lambda place: round(abs(place * scale - round(place * scale)), 6))


def _pieces(window: Window, size: Size) -> Iterator[Window]:
    """The blocks that never change, of a level of `size`, which touch a window."""
    for row in range(window.row // _BLOCK * _BLOCK, window.stop_row, _BLOCK):
        for col in range(window.col // _BLOCK * _BLOCK, window.stop_col, _BLOCK):
            yield Window(row, col, _BLOCK, _BLOCK).clipped(size)
