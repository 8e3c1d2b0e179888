"""Sources of pixels: what is known of one, pixels and mask of a window of it, and sources made of other sources.

Whoever classifies, measures or shows pixels asks for a RasterSource, and need not know whether they come out of a
GeoTIFF, a slide, a zarr store or several of these at once.
"""

import threading
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, Literal, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from fcn_batch.pipeline.core.errors import DecodingError, InputError, OptionError
from fcn_batch.pipeline.core.geometry import Size, Window
from fcn_batch.pipeline.core.georeference import GeoReference, GroundControl
from fcn_batch.pipeline.core.validity import BY_ALPHA, BY_NODATA, OUTSIDE, UNSAID, NodataOption, Validity, is_valid

T = TypeVar("T", bound="_Closes")
DTYPES = ("uint8", "uint16", "int16", "float32")
"""Pixel types that the networks' preprocessing is defined for."""
ID_DTYPES = ("uint8", "int8", "uint16", "int16", "uint32", "int32")
"""Pixel types that label ids may have."""
Resampling = Literal["average", "bilinear"]


class SourceFile(BaseModel):
    """One file of an input, and what opens it: enough for another process to read the same pixels."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: str
    """Absolute path, or URL."""
    by: Literal["rasterio", "zarr", "tiffslide", "openslide"] = "rasterio"
    level: int = Field(default=0, ge=0)
    """Of the file's own pyramid; 0 is the finest."""
    colours: bool = False
    """True: numbers of a palette are taken as the colours they stand for."""
    nodata: NodataOption = NodataOption()
    """Nodata as the user gives it."""


@dataclass(frozen=True, slots=True)
class RasterInfo:
    """What is known about a raster without reading a pixel."""

    path: str
    """Absolute path of the file."""
    files: tuple[str, ...]
    """Paths of all files it consists of: itself, masks, side files, the sources of a VRT."""
    size: Size
    """Height and width."""
    bands: int
    """Number of bands."""
    dtype: str
    """Pixel type, the same in all bands: one of DTYPES, or of ID_DTYPES for labels."""
    georeference: GeoReference
    """Reference system and transform; the identity when the file has none."""
    descriptions: tuple[str | None, ...]
    """Name of each band, None where it has none."""
    colour_roles: tuple[str, ...]
    """What each band shows, in rasterio's words: "red", "alpha", "gray", "undefined", ..."""
    storage_block: tuple[int, int]
    """Rows and columns of the first band's storage block: (1, width) and the like mean strips."""
    ground: GroundControl | None
    """Ground control points, where they stand in the place of a transform."""
    microns: float | None = None
    """Micrometres per pixel, of a slide that says so."""
    scales: tuple[tuple[float, float], ...] = ()
    """Scale and offset of each band: what its values mean is value * scale + offset; (1, 0) where nothing says so."""
    sources: tuple[SourceFile, ...] = ()
    """How it is opened; by default as a raster file."""
    levels: tuple[Size, ...] = ()
    """Height and width of each level of a pyramid that the file holds, the finest first."""
    rpcs: bool = False
    """True when rational polynomial coefficients say where its pixels lie: a map does not carry them."""
    palette: tuple[tuple[int, int, int, int], ...] = ()
    """Red, green, blue and alpha of each value of the first band, where its values are numbers of colours."""
    resampling: Resampling | None = None
    """How its pixels are made of those of the files; None: they are those of the files."""
    validity: Validity = UNSAID
    """The rule for pixels that hold data; by default only NaN is missing."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "sources", self.sources or (SourceFile(path=self.path),))
        object.__setattr__(self, "levels", self.levels or (self.size,))
        if self.bands < 1 or self.dtype not in {*DTYPES, *ID_DTYPES}:
            raise ValueError(f"a raster needs bands of {', '.join(DTYPES)}; got {self.bands} of {self.dtype}")
        if not self.validity.nodata:
            object.__setattr__(self, "validity", Validity.of(self.dtype, (None,) * self.bands, self.colour_roles))
        if not self.scales:
            object.__setattr__(self, "scales", ((1.0, 0.0),) * self.bands)
        for name, found in (
            ("descriptions", self.descriptions),
            ("colour_roles", self.colour_roles),
            ("scales", self.scales),
            ("nodata", self.validity.nodata),
        ):
            if len(found) != self.bands:
                raise ValueError(f"{name} needs {self.bands} entries, one a band: {found}")


@dataclass(frozen=True, slots=True)
class Pixels:
    """The pixels of a window."""

    values: NDArray[Any]
    """(bands, rows, cols), in the raster's own dtype."""
    valid: NDArray[np.bool_]
    """(rows, cols): False where there is no data."""
    why: NDArray[np.uint8] | None = None
    """(rows, cols): why there is none, as flags of validity.py; None where nothing says it."""

    def __post_init__(self) -> None:
        if self.values.ndim != 3 or self.valid.shape != self.values.shape[1:] or self.valid.dtype != np.bool_:
            raise ValueError(f"values {self.values.shape} and {self.valid.dtype} mask {self.valid.shape} differ")

    @classmethod
    def blank(cls, bands: int, window: Window, dtype: str, why: int = OUTSIDE) -> "Pixels":
        """Return zeros for a window, none of them valid."""
        shape = (window.height, window.width)
        return cls.judged(np.zeros((bands, *shape), np.dtype(dtype)), np.full(shape, why, np.uint8))

    @classmethod
    def judged(cls, values: NDArray[Any], why: NDArray[np.uint8]) -> "Pixels":
        """Return pixels with the reasons why some are not valid."""
        return cls(values, is_valid(why), why)

    @property
    def reasons(self) -> NDArray[np.uint8]:
        """Why pixels are not valid, as flags; nodata where nothing says it."""
        return np.where(self.valid, np.uint8(0), np.uint8(BY_NODATA)) if self.why is None else self.why

    def part(self, rows: slice, cols: slice = slice(None)) -> "Pixels":
        """Return some rows and columns of it."""
        why = None if self.why is None else self.why[rows, cols]
        return Pixels(self.values[:, rows, cols], self.valid[rows, cols], why)

    @classmethod
    def stacked(cls, parts: Sequence["Pixels"]) -> "Pixels":
        """Return one below the other."""
        if len(parts) == 1:
            return parts[0]
        values = np.concatenate([part.values for part in parts], axis=1)
        return cls.judged(values, np.concatenate([part.reasons for part in parts]))

    def paste(self, other: "Pixels", at: Window, window: Window) -> None:
        """Copy `other`, the pixels of `at`, into these, which are those of `window`, where the two overlap."""
        both = at.intersection(window)
        here, there = both.slices(window), both.slices(at)
        self.values[:, *here], self.valid[here] = other.values[:, *there], other.valid[there]
        if self.why is not None:
            self.why[here] = other.reasons[there]


class RasterSource(Protocol):
    """Anything that windows can be read from, by many threads at once and after pickling."""

    @property
    def info(self) -> RasterInfo:
        """What is known about the raster without reading a pixel."""

    def read(self, window: Window, bands: tuple[int, ...]) -> Pixels:
        """Read the pixels of `window`; `bands` counts from 1."""

    def close(self) -> None:
        """Release what is open; a later read opens it again."""


def check_read(info: RasterInfo, window: Window, bands: tuple[int, ...]) -> None:
    """ValueError when a window leaves the raster, or one of `bands` does not exist."""
    if window.row < 0 or window.col < 0 or window.clipped(info.size) != window:
        raise ValueError(f"{window} is not inside {info.path} with its {info.size}")
    if not bands or min(bands) < 1 or max(bands) > info.bands:
        raise ValueError(f"bands {bands} were asked for, but {info.path} has bands 1 to {info.bands}")


def undecodable(path: str, window: Window, reason: object) -> DecodingError:
    """Return the error of pixels that cannot be read."""
    return DecodingError(
        "pixels-unreadable",
        "{path} cannot be decoded in rows {first_row}..{last_row}, cols {first_col}..{last_col}: {reason}; "
        "get an undamaged copy",
        path=path,
        first_row=window.row,
        last_row=window.stop_row - 1,
        first_col=window.col,
        last_col=window.stop_col - 1,
        reason=reason,
    )


def nodata_refused(path: str, nodata: NodataOption, problem: object) -> OptionError:
    """Return the error of nodata values that pixels of a raster cannot have."""
    return OptionError(
        "nodata-invalid", "--nodata {value}: {path}: {problem}", value=nodata.values, path=path, problem=problem
    )


def no_level(path: str, level: int, levels: int) -> InputError:
    """Return the error of a level that a pyramid does not have."""
    return InputError(
        "level-missing",
        "{path} has no level {level}: its pyramid goes from 0 to {last}; give one of these",
        path=path,
        level=level,
        last=levels - 1,
    )


def cache_needed(info: RasterInfo, rows: int, bands: int) -> int:
    """Bytes of block cache with which windows of `rows` rows, read in row order, decode each block once.

    All blocks that a row of windows touches must fit: one more than its rows, as it may begin in the last
    row of a block. `bands` is how many are decoded together: all when they are stored pixel by pixel.
    """
    return (rows + info.storage_block[0]) * info.size.width * np.dtype(info.dtype).itemsize * bands


class _Closes(Protocol):
    def close(self) -> None: ...


class PerThread(Generic[T]):
    """Opened by `open_one` when a thread first asks for it; what belongs to a thread that ended is let go with it."""

    def __init__(self, open_one: Callable[[], T]) -> None:
        self._open_one = open_one
        self._lock = threading.Lock()
        self._local = threading.local()
        self._opened: weakref.WeakSet[T] = weakref.WeakSet()

    def get(self) -> T:
        """This thread's; the errors of `open_one`."""
        if not hasattr(self._local, "one"):
            self._local.one = self._open_one()
            with self._lock:
                self._opened.add(self._local.one)
        one: T = self._local.one
        return one

    def forget(self) -> None:
        """Close this thread's, if it has one, so that the next `get` opens anew."""
        if hasattr(self._local, "one"):
            self._local.one.close()
            del self._local.one

    def close(self) -> None:
        """Close those of all threads, none of which may be using its own; a later `get` opens it again."""
        with self._lock:
            for one in list(self._opened):
                one.close()
            self._opened, self._local = weakref.WeakSet(), threading.local()


class PaletteSource:
    """The colours of `source`, which has a palette: red, green and blue as bands of bytes.

    What the palette has no colour for, or one that cannot be seen, is not valid.
    """

    def __init__(self, source: RasterSource) -> None:
        self._source = source
        self._info: RasterInfo | None = None

    @property
    def info(self) -> RasterInfo:
        """As the source gives it, with three bands; ValueError when it has no palette."""
        if self._info is None:
            numbers = self._source.info
            if not numbers.palette:
                raise ValueError(f"{numbers.path} has no palette")
            self._info = replace(
                numbers,
                bands=3,
                dtype="uint8",
                descriptions=(None, None, None),
                colour_roles=("red", "green", "blue"),
                validity=UNSAID,
                scales=(),
                sources=tuple(file.model_copy(update={"colours": True}) for file in numbers.sources),
            )
        return self._info

    def read(self, window: Window, bands: tuple[int, ...]) -> Pixels:
        """Colours of `window`; `bands` are some of 1, 2 and 3. The errors of the source, ValueError for other bands."""
        check_read(self.info, window, bands)
        table = np.array(self.info.palette, dtype=np.uint8)
        numbers = self._source.read(window, (1,))
        known = (numbers.values[0] >= 0) & (numbers.values[0] < len(table))
        colours = table[np.where(known, numbers.values[0], 0)]
        values = np.moveaxis(colours[..., [band - 1 for band in bands]], -1, 0)
        seen = known & (colours[..., 3] > 0)
        return Pixels.judged(
            np.ascontiguousarray(values), numbers.reasons | np.where(seen, 0, BY_ALPHA).astype(np.uint8)
        )

    def close(self) -> None:
        """Close the source."""
        self._source.close()


@dataclass(frozen=True, slots=True)
class Piece:
    """A source whose pixels are those of the mosaic, from (row, col) on; it may reach beyond its borders."""

    source: RasterSource
    row: int
    col: int

    @property
    def window(self) -> Window:
        """Where it lies."""
        size = self.source.info.size
        return Window(self.row, self.col, size.height, size.width)


class MosaicSource:
    """`pieces`, the first on top, on a grid of `size`. Bands, types and meaning must agree: see `mosaic_problem`."""

    def __init__(self, name: str, pieces: Sequence[Piece], size: Size, georeference: GeoReference) -> None:
        self._name, self._pieces, self._size, self._georeference = name, tuple(pieces), size, georeference
        self._info: RasterInfo | None = None

    @property
    def info(self) -> RasterInfo:
        """That of the first piece, for the whole grid."""
        if self._info is None:
            self._info = self._together([piece.source.info for piece in self._pieces])
        return self._info

    def _together(self, infos: Sequence[RasterInfo]) -> RasterInfo:
        return replace(
            infos[0],
            path=self._name,
            files=tuple(dict.fromkeys(file for info in infos for file in info.files)),
            size=self._size,
            georeference=self._georeference,
            storage_block=max(info.storage_block for info in infos),
            ground=None,
            sources=tuple(file for info in infos for file in info.sources),
            levels=(self._size,),
        )

    def read(self, window: Window, bands: tuple[int, ...]) -> Pixels:
        """Values and mask of `window`; ValueError and the errors of the sources."""
        info = self.info
        check_read(info, window, bands)
        found = Pixels.blank(len(bands), window, info.dtype)
        for piece in self._pieces:
            try:
                part = window.intersection(piece.window)
            except ValueError:
                continue
            here = part.slices(window)
            if found.valid[here].all():
                continue
            inside = Window(part.row - piece.row, part.col - piece.col, part.height, part.width)
            pixels = piece.source.read(inside, bands)
            # what nothing has given yet takes the first reason, and what is valid comes on top of it
            new = pixels.valid & ~found.valid[here]
            first = new | (found.reasons[here] == OUTSIDE)
            found.values[:, *here][:, new] = pixels.values[:, new]
            found.valid[here] |= new
            assert found.why is not None, "blank pixels have reasons"
            found.why[here] = np.where(first, pixels.reasons, found.why[here])
        return found

    def close(self) -> None:
        """Close all."""
        for piece in self._pieces:
            piece.source.close()


def mosaic_problem(first: RasterInfo, other: RasterInfo) -> str | None:
    """Why the pixels of two rasters do not mean the same, or None."""
    if (other.bands, other.dtype) != (first.bands, first.dtype):
        return f"has {other.bands} bands of {other.dtype}, and {first.path} has {first.bands} of {first.dtype}"
    if other.scales != first.scales:
        return f"has other scales and offsets than {first.path}"
    if other.palette != first.palette:
        return f"has another palette than {first.path}"
    named = [(info.descriptions, info.colour_roles) for info in (first, other)]
    return f"has its bands in another order than {first.path}" if named[0] != named[1] else None
