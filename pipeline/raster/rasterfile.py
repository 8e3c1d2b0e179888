"""Reading rasters: what a file holds, and the pixels and mask of a window of it.

Only the modules of the raster side import rasterio. Three facts shape this one:

* GDAL looks into a file to choose its driver, and would open a VRT (a text that names other files or
  URLs) called `x.tif` too. So few drivers are tried, VRT only for names ending in `.vrt`; such a file is
  trusted with the local paths its author wrote, but http and cloud storage are closed to it.
* GDAL datasets shared between threads give wrong pixels or crash. So each thread opens its own.
* The block cache decides the speed of striped files: when one block row of the whole width does not fit,
  each strip is decoded again for each window, seven times slower. See `cache_needed`.
"""

import math
import re
import secrets
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from rasterio._err import CPLE_BaseError
from rasterio.crs import CRS
from rasterio.enums import ColorInterp, MaskFlags, WktVersion
from rasterio.errors import RasterioError, RasterioIOError
from rasterio.io import DatasetReader
from rasterio.windows import Window as RasterioWindow

from fcn_batch.pipeline.core.errors import FormatError, InputError
from fcn_batch.pipeline.core.geometry import Size, Window
from fcn_batch.pipeline.core.georeference import IDENTITY, GeoReference, GroundControl
from fcn_batch.pipeline.core.location import Url, input_of, is_remote, size_in_archive
from fcn_batch.pipeline.core.source import (
    DTYPES,
    PerThread,
    Pixels,
    RasterInfo,
    SourceFile,
    check_read,
    no_level,
    nodata_refused,
    undecodable,
)
from fcn_batch.pipeline.core.validity import AS_DECLARED, NodataOption, Validity
from fcn_batch.pipeline.raster.gdal import accept_pixel_space, leaving_nothing, local_only, reaching
from fcn_batch.pipeline.raster.guard import check_bands, check_planes, check_raster, check_remote
from fcn_batch.pipeline.raster.remote import look_at

DRIVERS = ("GTiff", "COG", "JPEG", "PNG", "JP2OpenJPEG", "HFA", "ENVI")
"""GDAL drivers that may open an input."""
_PAGE = re.compile(r"^GTIFF_DIR:(off:)?\d+:")
"""What stands before the name of a TIFF of which one page is meant."""
BROKEN = (RasterioError, CPLE_BaseError, UnicodeDecodeError)
"""What rasterio raises for damaged files."""
_OME_UNITS = {"µm": 1.0, "um": 1.0, "&#181;m": 1.0, "nm": 1e-3, "mm": 1e3}
_COARSEST = 5.0
"""Micrometres per pixel: coarser ones are a printer's or a camera's."""


class RasterioSource:
    """A raster file, opened when first needed, once in each thread that reads it.

    `level` is of the file's own pyramid, 0 the finest; `nodata` is what the user says of its nodata values.
    Pickles as its path and info, without open files. Call `close` only when no other thread is reading.
    """

    def __init__(
        self,
        path: str | Path | Url,
        info: RasterInfo | None = None,
        level: int = 0,
        nodata: NodataOption = AS_DECLARED,
    ) -> None:
        self._path, self._level, self._nodata = place_of(path), level, nodata
        self._info = info
        self._open = PerThread(partial(open_dataset, self._path, level))

    def __reduce__(self) -> tuple[type["RasterioSource"], tuple[Any, ...]]:
        return RasterioSource, (self._path, self._info, self._level, self._nodata)

    @property
    def info(self) -> RasterInfo:
        """As `inspect` gives it, and with the same errors."""
        if self._info is None:
            self._info = inspect(self._path, level=self._level, nodata=self._nodata)
        return self._info

    def read(self, window: Window, bands: tuple[int, ...]) -> Pixels:
        """Values and mask of `window`; `bands` counts from 1, in the order wanted.

        Which pixels are valid, validity.py says: rasterio's `dataset_mask` is meant for display. ValueError when the
        window leaves the raster or a band does not exist; InputError when the file cannot be opened, and DecodingError
        when it can, but some of these pixels cannot be read.
        """
        info = self.info
        check_read(info, window, bands)
        area = RasterioWindow(window.col, window.row, window.width, window.height)
        try:
            with allowed(self._path):
                dataset = self._open.get()
                values: NDArray[Any] = dataset.read(list(bands), window=area)
                judge, masks, alpha = info.validity, None, None
                if judge.masked and (masked := _masked(dataset, bands)):
                    masks = dataset.read_masks(masked, window=area)
                if judge.alpha is not None:
                    alpha = dataset.read(judge.alpha, window=area)
        except BROKEN as error:
            reason = _without_visit(self._path, error.__cause__ or error)
            self._open.forget()  # after an error, GDAL's JPEG driver gives grey if it is not opened anew
            _forget_fetched(self._path)
            raise undecodable(info.path, window, reason) from error
        return Pixels.judged(values, judge.judge(values, bands, alpha, masks))

    def close(self) -> None:
        """Close the file in all threads; a later read opens it again."""
        self._open.close()


def allowed(place: Path | Url) -> Any:
    """GDAL settings under which nothing but `place` itself, and files beside it, can be reached."""
    return reaching(place.gdal) if is_remote(place) else local_only()


def inspect(
    path: str | Path | Url,
    dtypes: tuple[str, ...] = DTYPES,
    level: int = 0,
    nodata: NodataOption = AS_DECLARED,
) -> RasterInfo:
    """Open a raster, check that it can be used, and say what it holds, at a level of its own pyramid.

    `nodata` is what the user says of its nodata values.

    InputError when it has no such level, is not a local file of an allowed format, is damaged or cut off, has no bands
    or pixels of a type not in `dtypes`, or is not safe to read (see guard.py).
    """
    local = place_of(path)
    try:
        length = look_at(local).bytes if is_remote(local) else None  # GDAL says less of why not
        if isinstance(local, Url) and local.scheme in ("s3", "gs"):  # whose names have no room for a visit
            _forget_fetched(local)
        with allowed(local), open_dataset(local) as dataset:
            check_bands(dataset, local, dtypes)
            check_planes(dataset, local)
            if isinstance(local, Url):
                check_remote(local, dataset, size_in_archive(local) if length is None else length)
            else:
                check_raster(local, dataset)
            info = _info(local, dataset, nodata)
            info = replace(info, levels=tuple(size for _, size in _levels(local, dataset)))
            return info if level == 0 else _at_level(info, level)
    except BROKEN as error:
        raise InputError(
            "input-damaged",
            "{path} cannot be read: {reason}; get an undamaged copy",
            path=local,
            reason=error.__cause__ or error,
        ) from error


def _info(local: Path | Url, dataset: DatasetReader, nodata: NodataOption) -> RasterInfo:
    transform = tuple(dataset.transform)[:6]
    ground = _ground_control(dataset) if transform == IDENTITY else None
    wkt = _wkt(dataset.crs) if ground is None else None
    roles = tuple(role.name for role in dataset.colorinterp)
    try:
        georeference = GeoReference(wkt, transform)
    except ValueError as error:
        raise InputError(
            "transform-invalid", "{path}: {problem}; correct it with gdal_edit.py -a_ullr", path=local, problem=error
        ) from error
    return RasterInfo(
        path=str(local),
        files=_files(local, dataset),
        size=Size(dataset.height, dataset.width),
        bands=dataset.count,
        dtype=dataset.dtypes[0],
        georeference=georeference,
        descriptions=tuple(dataset.descriptions),
        colour_roles=roles,
        storage_block=tuple(dataset.block_shapes[0]),
        validity=_validity(local, dataset, roles, nodata),
        ground=ground,
        microns=microns_of(dataset.tags(), slide=dataset.crs is None),
        scales=tuple(zip(dataset.scales, dataset.offsets, strict=True)),
        rpcs=dataset.rpcs is not None,
        palette=_palette(dataset),
        sources=(SourceFile(path=str(local), nodata=nodata),),
    )


def _validity(local: Path | Url, dataset: DatasetReader, roles: tuple[str, ...], nodata: NodataOption) -> Validity:
    masked = _masked(dataset, range(1, dataset.count + 1))
    together = any(MaskFlags.nodata in flags for flags in (dataset.mask_flag_enums[band - 1] for band in masked))
    declared = (None,) * dataset.count if together else dataset.nodatavals
    try:
        return Validity.of(dataset.dtypes[0], declared, roles, masked=bool(masked), option=nodata)
    except ValueError as error:
        raise nodata_refused(str(local), nodata, error) from error


def _masked(dataset: DatasetReader, bands: Iterable[int]) -> list[int]:
    """Return those of the bands whose mask is stored, in the file or beside it.

    Not what GDAL makes of nodata of this one band, or of an alpha band. Of a list of values for all bands (a PNG's
    transparent colour) it does make a mask that counts.
    """
    flags = dataset.mask_flag_enums
    return [
        band
        for band in bands
        if not {MaskFlags.all_valid, MaskFlags.alpha} & set(flags[band - 1])
        and (MaskFlags.nodata not in flags[band - 1] or MaskFlags.per_dataset in flags[band - 1])
    ]


def _files(local: Path | Url, dataset: DatasetReader) -> tuple[str, ...]:
    if isinstance(local, Path):
        # a VRT may name pages of a TIFF, several of the same
        return tuple(dict.fromkeys(_PAGE.sub("", name) for name in dataset.files))
    return (local.text,) if local.remote else (str(local.archive[0]),)


def _at_level(info: RasterInfo, level: int) -> RasterInfo:
    """What is known of a coarser level. Its transform is not asked for: it may be stray numbers where there is none."""
    with open_dataset(place_of(info.path), level) as dataset:
        size, block = Size(dataset.height, dataset.width), tuple(dataset.block_shapes[0])
    rows, cols = info.size.height / size.height, info.size.width / size.width
    return replace(
        info,
        size=size,
        storage_block=block,
        georeference=info.georeference.coarser(rows, cols),
        ground=info.ground and info.ground.coarser(rows, cols),
        microns=info.microns and info.microns * cols,
        sources=tuple(file.model_copy(update={"level": level}) for file in info.sources),
    )


def _levels(place: Path | Url, dataset: DatasetReader) -> list[tuple[str, Size]]:
    """GDAL's word for each level of a pyramid, and its size, the finest first; NONE is the dataset itself.

    In slides, pictures of the label and of the whole glass count as overviews too: their shape is another one.
    """
    found = [("NONE", Size(dataset.height, dataset.width))]
    for number in range(len(dataset.overviews(1))):
        with open_dataset(place, f"{number}only") as coarse:
            finer = found[-1][1]
            like = abs(coarse.height * dataset.width - coarse.width * dataset.height) <= max(dataset.shape)
            if like and coarse.height < finer.height and coarse.width < finer.width:
                found.append((f"{number}only", Size(coarse.height, coarse.width)))
    return found


def _wkt(crs: CRS | None) -> str | None:
    return crs.to_wkt(version=WktVersion.WKT2_2019) if crs else None


def _ground_control(dataset: DatasetReader) -> GroundControl | None:
    points, crs = dataset.gcps
    return GroundControl(_wkt(crs), tuple((p.row, p.col, p.x, p.y, p.z or 0.0) for p in points)) if points else None


def _palette(dataset: DatasetReader) -> tuple[tuple[int, int, int, int], ...]:
    others = [role for role in dataset.colorinterp if role not in (ColorInterp.palette, ColorInterp.alpha)]
    if others or dataset.colorinterp[0] != ColorInterp.palette:
        return ()
    colours = dataset.colormap(1)
    empty = (0, 0, 0, 0)
    return tuple(colours.get(value, empty) for value in range(max(colours, default=-1) + 1))


def local_path(path: str | Path) -> Path:
    """Absolute path of a local file; InputError for URLs and GDAL's virtual file systems."""
    text = str(path)
    if text != text.encode(errors="replace").decode():
        raise InputError(
            "name-not-utf8", "{path!a}: the name is not UTF-8, so no report could name it; rename the file", path=text
        )
    if text.startswith("/vsi") or re.match(r"[A-Za-z][A-Za-z0-9+.-]*:/", text):
        raise InputError(
            "input-not-local",
            "{path}: not a file on this machine, and one is needed here; copy it to a file",
            path=text,
        )
    return Path(path).absolute()


def place_of(path: str | Path | Url) -> Path | Url:
    """Where a raster is, absolute, a URL with a visit of its own; InputError for names that nothing can open."""
    found = input_of(path) if isinstance(path, str) else path
    if not isinstance(found, Url):
        return local_path(found)
    return found if found.visit else replace(found, visit=secrets.token_hex(4))


def open_dataset(path: Path | Url, level: int | str = 0) -> DatasetReader:
    """Open with an allowed driver, at a level of the file's pyramid; InputError when that fails.

    A level is its number, or GDAL's word for it.
    """
    if isinstance(level, int) and level > 0:
        with open_dataset(path) as whole:
            words = [word for word, _ in _levels(path, whole)]
        if level >= len(words):
            raise no_level(str(path), level, len(words))
        level = words[level]
    if isinstance(path, Url) and not path.remote:
        _ = path.archive  # says if there is none
    if isinstance(path, Path) and not path.is_file():
        if path.is_dir():
            raise InputError("input-is-folder", "{path} is a folder; give the file in it", path=path)
        raise InputError("input-missing", "{path} does not exist; check the name", path=path)
    drivers = ["VRT"] if isinstance(path, Path) and path.suffix.lower() == ".vrt" else list(DRIVERS)
    name = path.gdal if isinstance(path, Url) else str(path)
    try:
        with accept_pixel_space():
            options = {"OVERVIEW_LEVEL": level} if isinstance(level, str) else {}
            return DatasetReader(name, driver=drivers, **options)
    except RasterioIOError as error:
        reason = _without_visit(path, str(error).replace(name, str(path))).rstrip(".")
        raise FormatError(
            "format-unknown",
            "{path} cannot be opened as a raster: {reason}; {remedy}",
            path=path,
            reason=reason,
            remedy=_remedy(path, reason),
        ) from error


def _remedy(path: Path | Url, reason: str) -> str:
    """Return what may help where `path` could not be opened."""
    if isinstance(path, Path) and "Permission denied" in reason and "not recognized as being" not in reason:
        return "make it readable"
    formats = f"give an undamaged, readable {', '.join(DRIVERS)} file"
    if is_remote(path):
        return f"{formats}, or copy it to this machine first"
    return f"{formats} (or a VRT whose name ends in .vrt), or convert it with gdal_translate"


def _forget_fetched(place: Path | Url) -> None:
    """Make GDAL forget what it fetched of a remote file; it takes an answer that broke off for the end of the file."""
    if is_remote(place):
        with allowed(place), leaving_nothing(), suppress(InputError, *BROKEN):
            open_dataset(place).close()


def _without_visit(path: Path | Url, reason: object) -> str:
    """Return GDAL's message about a raster, with the name that it was given."""
    return str(reason).replace(f"#{path.visit}", "") if isinstance(path, Url) and path.visit else str(reason)


def microns_of(tags: Mapping[str, str], *, slide: bool) -> float | None:
    """Micrometres per pixel: as Aperio's scanners or OME say it in the description, else by the TIFF's resolution.

    `tags` are those of a TIFF in GDAL's words. The latter counts only for what may be a `slide`, and in a range that a
    microscope has: 72 dots an inch are a printer's.
    """
    text = tags.get("TIFFTAG_IMAGEDESCRIPTION", "")
    if found := re.search(r"\|MPP = (\d+\.\d+)", text):
        return float(found[1]) or None
    if "www.openmicroscopy.org" in text and (found := re.search(r'\bPhysicalSizeX="([\d.eE+-]+)"', text)):
        unit = re.search(r'\bPhysicalSizeXUnit="([^"]+)"', text)
        return _in_microns(found[1], _OME_UNITS.get(unit[1] if unit else "µm"))
    length = {"2": 25400.0, "3": 10000.0}.get(tags.get("TIFFTAG_RESOLUTIONUNIT", "")[:1])  # inch, centimetre
    microns = _in_microns(tags.get("TIFFTAG_XRESOLUTION", ""), length, inverse=True)
    return microns if slide and microns is not None and microns <= _COARSEST else None


def _in_microns(text: str, unit: float | None, *, inverse: bool = False) -> float | None:
    """A length, or its inverse, in units of so many micrometres; None where that is no length."""
    try:
        value = float(text)
    except ValueError:
        return None
    if unit is None or not 0 < value < math.inf:
        return None
    return unit / value if inverse else value * unit
