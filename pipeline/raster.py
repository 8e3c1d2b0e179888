"""Reading rasters: what a file holds, and the pixels and mask of a window of it.

Only the modules of the raster side import rasterio. Three facts shape this one:

* GDAL looks into a file to choose its driver, and would open a VRT (a text that names other files or
  URLs) called `x.tif` too. So few drivers are tried, VRT only for names ending in `.vrt`; such a file is
  trusted with the local paths its author wrote, but http and cloud storage are closed to it.
* GDAL datasets shared between threads give wrong pixels or crash. So each thread opens its own.
* The block cache decides the speed of striped files: when one block row of the whole width does not fit,
  each strip is decoded again for each window, seven times slower. See `cache_needed`.
"""

import re
import threading
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from rasterio._err import CPLE_BaseError
from rasterio.crs import CRS
from rasterio.enums import MaskFlags, WktVersion
from rasterio.errors import RasterioError, RasterioIOError
from rasterio.io import DatasetReader
from rasterio.windows import Window as RasterioWindow

from fcn_batch.pipeline.errors import DecodingError, InputError
from fcn_batch.pipeline.gdal import accept_pixel_space, local_only
from fcn_batch.pipeline.geometry import Size, Window
from fcn_batch.pipeline.georeference import IDENTITY, GeoReference, GroundControl
from fcn_batch.pipeline.guard import check_raster

DRIVERS = ("GTiff", "COG", "JPEG", "PNG", "JP2OpenJPEG", "HFA", "ENVI")
"""GDAL drivers that may open an input."""
DTYPES = ("uint8", "uint16", "int16", "float32")
"""Pixel types that the networks' preprocessing is defined for."""
ID_DTYPES = ("uint8", "int8", "uint16", "int16", "uint32", "int32")
"""Pixel types that label ids may have."""
BROKEN = (RasterioError, CPLE_BaseError, UnicodeDecodeError)
"""What rasterio raises for damaged files."""
NO_MEASUREMENT = 1e30
"""From here on a float is no measurement: infinity, or the usual nodata of 3.4e38 that nobody declared."""


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
    has_mask: bool
    """True when alpha, a mask band or nodata can make pixels invalid."""
    ground: GroundControl | None
    """Ground control points, where they stand in the place of a transform."""
    microns: float | None = None
    """Micrometres per pixel, of a slide that says so."""
    scales: tuple[tuple[float, float], ...] = ()
    """Scale and offset of each band: what its values mean is value * scale + offset; (1, 0) where nothing says so."""

    def __post_init__(self) -> None:
        if self.bands < 1 or self.dtype not in {*DTYPES, *ID_DTYPES}:
            raise ValueError(f"a raster needs bands of {', '.join(DTYPES)}; got {self.bands} of {self.dtype}")
        if not self.scales:
            object.__setattr__(self, "scales", ((1.0, 0.0),) * self.bands)
        for name in ("descriptions", "colour_roles", "scales"):
            if len(getattr(self, name)) != self.bands:
                raise ValueError(f"{name} needs {self.bands} entries, one a band: {getattr(self, name)}")


@dataclass(frozen=True, slots=True)
class Pixels:
    """The pixels of a window."""

    values: NDArray[Any]
    """(bands, rows, cols), in the raster's own dtype."""
    valid: NDArray[np.bool_]
    """(rows, cols): False where there is no data."""

    def __post_init__(self) -> None:
        if self.values.ndim != 3 or self.valid.shape != self.values.shape[1:] or self.valid.dtype != np.bool_:
            raise ValueError(f"values {self.values.shape} and {self.valid.dtype} mask {self.valid.shape} differ")


class RasterSource(Protocol):
    """Anything that windows can be read from, by many threads at once and after pickling."""

    @property
    def info(self) -> RasterInfo:
        """What is known about the raster without reading a pixel."""

    def read(self, window: Window, bands: tuple[int, ...]) -> Pixels:
        """Read the pixels of `window`; `bands` counts from 1."""

    def close(self) -> None:
        """Release what is open; a later read opens it again."""


class RasterioSource:
    """A raster file, opened when first needed, once in each thread that reads it.

    Pickles as its path and info, without open files. Call `close` only when no other thread is reading.
    """

    def __init__(self, path: str | Path, info: RasterInfo | None = None) -> None:
        self._path = local_path(path)
        self._info = info
        self._lock = threading.Lock()
        self._local = threading.local()
        self._opened: weakref.WeakSet[Any] = weakref.WeakSet()

    def __reduce__(self) -> tuple[type["RasterioSource"], tuple[str, RasterInfo | None]]:
        return RasterioSource, (str(self._path), self._info)

    @property
    def info(self) -> RasterInfo:
        """As `inspect` gives it, and with the same errors."""
        if self._info is None:
            self._info = inspect(self._path)
        return self._info

    def read(self, window: Window, bands: tuple[int, ...]) -> Pixels:
        """Values and mask of `window`; `bands` counts from 1, in the order wanted.

        A pixel is valid when the dataset's mask says so (a mask band or alpha; else nodata, where one band with
        data is enough, as in rasterio's `dataset_mask`) and all `bands` are below NO_MEASUREMENT. ValueError when
        the window leaves the raster or a band does not exist; InputError when the file cannot be opened, and
        DecodingError when it can, but some of these pixels cannot be read.
        """
        info = self.info
        if window.row < 0 or window.col < 0 or window.clipped(info.size) != window:
            raise ValueError(f"{window} is not inside {info.path} with its {info.size}")
        if not bands or min(bands) < 1 or max(bands) > info.bands:
            raise ValueError(f"bands {bands} were asked for, but {info.path} has bands 1 to {info.bands}")
        area = RasterioWindow(window.col, window.row, window.width, window.height)
        try:
            with local_only():
                dataset = self._dataset()
                values: NDArray[Any] = dataset.read(list(bands), window=area)
                valid = np.ones(values.shape[1:], np.bool_)
                if info.has_mask:
                    valid = dataset.dataset_mask(window=area) > 0
        except BROKEN as error:
            where = f"rows {window.row}..{window.stop_row - 1}, cols {window.col}..{window.stop_col - 1}"
            message = f"{info.path} cannot be decoded in {where}: {error.__cause__ or error}"
            self._forget_dataset()
            raise DecodingError(f"{message}; get an undamaged copy") from error
        if values.dtype.kind == "f":
            valid &= (np.abs(values) < NO_MEASUREMENT).all(axis=0)
        return Pixels(values, valid)

    def close(self) -> None:
        """Close the file in all threads; a later read opens it again."""
        with self._lock:
            for dataset in list(self._opened):
                dataset.close()
            self._opened, self._local = weakref.WeakSet(), threading.local()

    def _dataset(self) -> DatasetReader:
        """Return this thread's dataset, opened if need be."""
        if not hasattr(self._local, "dataset"):
            self._local.dataset = _open(self._path)
            with self._lock:
                self._opened.add(self._local.dataset)
        return self._local.dataset

    def _forget_dataset(self) -> None:
        """Let the next read of this thread open anew: after an error, GDAL's JPEG driver gives grey without one."""
        self._local.dataset.close()
        del self._local.dataset


def inspect(path: str | Path, dtypes: tuple[str, ...] = DTYPES) -> RasterInfo:
    """Open a raster, check that it can be used, and say what it holds.

    InputError when it is not a local file of an allowed format, is damaged or cut off, has no bands or pixels of a type
    not in `dtypes`, or is not safe to read (see guard.py).
    """
    local = local_path(path)
    try:
        with local_only(), _open(local) as dataset:
            _check_bands(dataset, local, dtypes)
            check_raster(local, dataset)
            return _info(local, dataset)
    except BROKEN as error:
        raise InputError(f"{local} cannot be read: {error.__cause__ or error}; get an undamaged copy") from error


def _info(local: Path, dataset: DatasetReader) -> RasterInfo:
    transform = tuple(dataset.transform)[:6]
    ground = _ground_control(dataset) if transform == IDENTITY else None
    wkt = _wkt(dataset.crs) if ground is None else None
    try:
        georeference = GeoReference(wkt, transform)
    except ValueError as error:
        raise InputError(f"{local}: {error}; correct it with gdal_edit.py -a_ullr") from error
    return RasterInfo(
        path=str(local),
        files=tuple(dataset.files),
        size=Size(dataset.height, dataset.width),
        bands=dataset.count,
        dtype=dataset.dtypes[0],
        georeference=georeference,
        descriptions=tuple(dataset.descriptions),
        colour_roles=tuple(role.name for role in dataset.colorinterp),
        storage_block=tuple(dataset.block_shapes[0]),
        has_mask=any(MaskFlags.all_valid not in flags for flags in dataset.mask_flag_enums),
        ground=ground,
        microns=_microns(dataset),
        scales=tuple(zip(dataset.scales, dataset.offsets, strict=True)),
    )


def _wkt(crs: CRS | None) -> str | None:
    return crs.to_wkt(version=WktVersion.WKT2_2019) if crs else None


def _ground_control(dataset: DatasetReader) -> GroundControl | None:
    points, crs = dataset.gcps
    return GroundControl(_wkt(crs), tuple((p.row, p.col, p.x, p.y, p.z or 0.0) for p in points)) if points else None


def _microns(dataset: DatasetReader) -> float | None:
    """What Aperio scanners write into the description: "… |AppMag = 20|MPP = 0.4990|…"."""
    found = re.search(r"\|MPP = (\d+\.\d+)", dataset.tags().get("TIFFTAG_IMAGEDESCRIPTION", ""))
    return (float(found[1]) or None) if found else None


def cache_needed(info: RasterInfo, rows: int, bands: int) -> int:
    """Bytes of block cache with which windows of `rows` rows, read in row order, decode each block once.

    All blocks that a row of windows touches must fit: one more than its rows, as it may begin in the last
    row of a block. `bands` is how many are decoded together: all when they are stored pixel by pixel.
    """
    return (rows + info.storage_block[0]) * info.size.width * np.dtype(info.dtype).itemsize * bands


def local_path(path: str | Path) -> Path:
    """Absolute path of a local file; InputError for URLs and GDAL's virtual file systems."""
    text = str(path)
    if text != text.encode(errors="replace").decode():
        raise InputError(f"{text!a}: the name is not UTF-8, so no report could name it; rename the file")
    if text.startswith("/vsi") or re.match(r"[A-Za-z][A-Za-z0-9+.-]*:/", text):
        raise InputError(f"remote inputs are not supported yet, got {text}; copy it to a local file")
    return Path(path).absolute()


def _open(path: Path) -> DatasetReader:
    """Open with an allowed driver; InputError when that fails."""
    if not path.is_file():
        problem = "is a folder; give the file in it" if path.is_dir() else "does not exist; check the name"
        raise InputError(f"{path} {problem}")
    drivers = ["VRT"] if path.suffix.lower() == ".vrt" else list(DRIVERS)
    try:
        with accept_pixel_space():
            return DatasetReader(str(path), driver=drivers)
    except RasterioIOError as error:
        raise InputError(
            f"{path} cannot be opened as a raster: {error}; give an undamaged, readable {', '.join(DRIVERS)} "
            "file (or a VRT whose name ends in .vrt), or convert it with gdal_translate"
        ) from error


def _check_bands(dataset: DatasetReader, path: Path, dtypes: tuple[str, ...] = DTYPES) -> None:
    """InputError without bands or with pixel types that are mixed or not in `dtypes`."""
    if dataset.count == 0:
        raise InputError(f"{path} has no bands; give one of the rasters it refers to")
    types = " and ".join(sorted(set(dataset.dtypes)))
    if types not in dtypes:
        message = f"{path} holds {types} pixels; one type of {', '.join(dtypes)} is supported"
        raise InputError(f"{message}; convert it with gdal_translate -ot")
