"""From what is named as an input, or from a plan, to a source of pixels: the place that knows all kinds there are.

    named                   opened by                              then
    a raster                rasterio                               a level of its pyramid     (--level, --mpp)
    a scanner's slide       openslide, tiffslide                   on another grid            (--mpp, --resample)
    a zarr store            zarr                                   colours of its palette
    several, as one         each of them, each on the one grid

What was done is in the RasterInfo, and so in the plan; `source_of` does it again in another process. `thumbnail` makes
small pictures of large inputs: means of their pixels, from the level of a pyramid that is just fine enough.
"""

import math
from collections.abc import Sequence
from functools import reduce
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

from fcn_batch.pipeline.core.conventions import holds_zarr
from fcn_batch.pipeline.core.errors import FormatError, InputError, OptionError
from fcn_batch.pipeline.core.geometry import Size, Window
from fcn_batch.pipeline.core.georeference import IDENTITY, GeoReference
from fcn_batch.pipeline.core.limits import size_problem
from fcn_batch.pipeline.core.location import Input, Mosaic, Url, input_of
from fcn_batch.pipeline.core.plan import InputIdentity
from fcn_batch.pipeline.core.source import (
    MosaicSource,
    PaletteSource,
    Piece,
    Pixels,
    RasterInfo,
    RasterSource,
    SourceFile,
    mosaic_problem,
    no_level,
)
from fcn_batch.pipeline.core.tolerance import FAIL, OnError, TolerantSource
from fcn_batch.pipeline.core.validity import AS_DECLARED, NodataOption
from fcn_batch.pipeline.raster.alignment import Grid
from fcn_batch.pipeline.raster.crs import wkt_of
from fcn_batch.pipeline.raster.rasterfile import RasterioSource, local_path
from fcn_batch.pipeline.raster.remote import folder_of
from fcn_batch.pipeline.raster.slides import INSTALL, SUFFIXES, SlideSource, installed, wants_slide_reader
from fcn_batch.pipeline.raster.warped import WarpedSource, coarser_grid, kernel_for, part_of, same_pixels, window_on
from fcn_batch.pipeline.store.zarrsource import ZarrSource
from fcn_batch.workflows.inputs.resolution import ground_sample_distance

_AS_IT_IS = 0.01
"""By so little a level's resolution may differ from the wanted one to be taken as it is."""
_SLIDES = (*SUFFIXES, ".dcm")
"""Endings of slides: of use only for what is said when none of the readers is there."""


def find_source(given: Input, level: int | None = None, nodata: NodataOption = AS_DECLARED) -> RasterSource:
    """Return the source of pixels that `given` is, by what can open it, at a level of its pyramid.

    `nodata` is what the user says of its nodata values. InputError when nothing can open it, or it has no such level;
    OptionError when it cannot have such nodata.
    """
    if isinstance(given, Mosaic):
        return _mosaic(given.name, [find_source(part, level, nodata) for part in given.parts])
    source = _finest(given, nodata)
    if not level:
        return source
    info = source.info
    source.close()
    if level >= len(info.levels):
        raise no_level(info.path, level, len(info.levels))
    return level_of(info.sources[0], level)


def source_of(identity: InputIdentity) -> RasterSource:
    """The source that a plan was made for, opened when it is first read; in whatever process."""
    grid = Grid(identity.size, identity.georeference)
    if len(identity.sources) > 1:
        return _placed(identity.path, [_opened(file) for file in identity.sources], grid)
    source = _opened(identity.sources[0])
    return source if identity.resampling is None else WarpedSource(source, grid, identity.resampling)


def at_microns(source: RasterSource, wanted: float) -> RasterSource:
    """The level of a slide with that many micrometres per pixel, or the next finer one made coarser.

    OptionError when nothing says how large its pixels are, or `wanted` is no size for one.
    """
    info = source.info
    if not math.isfinite(wanted):
        raise OptionError("option-value", "--mpp {value:g}: give micrometres per pixel, such as 0.5", value=wanted)
    if info.microns is None:
        raise OptionError(
            "resolution-unknown",
            "--mpp {value:g}: {path} does not say how large a pixel is; leave --mpp out",
            value=wanted,
            path=info.path,
        )
    sizes = [info.microns * info.size.width / size.width for size in info.levels]
    own = max(file.level for file in info.sources)
    level = max((k for k, microns in enumerate(sizes) if microns <= wanted * (1 + _AS_IT_IS)), default=0)
    if level > own and len(info.sources) == 1:
        source = level_of(info.sources[0], level)
    return resampled(source, wanted / (source.info.microns or info.microns))


def resampled(source: RasterSource, factor: float) -> RasterSource:
    """The same ground with pixels `factor` times as wide and high; the source itself where that is about 1."""
    if abs(factor - 1) <= _AS_IT_IS:
        return source
    grid = Grid(source.info.size, source.info.georeference)
    _check_factor(source.info, factor)
    wanted = coarser_grid(grid, factor)
    if len(source.info.sources) > 1:
        return _placed(source.info.path, [_opened(file) for file in source.info.sources], wanted)
    return WarpedSource(source, wanted, kernel_for(grid, wanted))


def _check_factor(info: RasterInfo, factor: float) -> None:
    """OptionError unless pixels `factor` times as large are as few as a map can have."""
    least = max(factor, 1e-15)  # division by less could give infinity
    problem = size_problem(math.ceil(info.size.height / least), math.ceil(info.size.width / least))
    if problem is not None:
        raise OptionError(
            "resampled-size",
            "{path}: with pixels {factor:.3g} times as large as its own it would have "
            "{size}; give another --mpp, or with --resample auto a model for such images",
            path=info.path,
            factor=factor,
            size=problem,
        )


def at_resolution(source: RasterSource, metres: float) -> RasterSource:
    """A source at another resolution, in metres per pixel; OptionError when nothing says what its own is."""
    info = source.info
    if info.microns is not None:
        return at_microns(source, metres * 1e6)
    own = ground_sample_distance(info)
    if own is None:
        raise OptionError(
            "resolution-unknown",
            "--resample auto: {path} does not say how large a pixel is; leave --resample out",
            path=info.path,
        )
    return resampled(source, metres / own)


def in_colours(source: RasterSource) -> RasterSource:
    """The colours that the values of a source with a palette stand for; before they are averaged, not after."""
    info = source.info
    if len(info.sources) == 1:
        return PaletteSource(source)
    pieces = [PaletteSource(_opened(file)) for file in info.sources]
    return _placed(info.path, pieces, Grid(info.size, info.georeference))


def level_of(file: SourceFile, level: int) -> RasterSource:
    """A file at another level of its pyramid."""
    return _opened(file.model_copy(update={"level": level}))


def finest_grid(identity: InputIdentity) -> Grid:
    """The pixels of an input at the finest level of its files; of a mosaic, on the grid of the first."""
    infos = (level_of(file, 0).info for file in identity.sources)
    return reduce(_around, (Grid(info.size, info.georeference) for info in infos))


def _finest(given: Path | Url, nodata: NodataOption = AS_DECLARED) -> RasterSource:
    if (place := _zarr_at(given)) is not None:
        return _looked_at(ZarrSource(place, 0, wkt_of, folder_of, nodata))
    if isinstance(given, Path) and wants_slide_reader(local_path(given)):
        return _looked_at(SlideSource(str(given), installed()[0], nodata=nodata))
    try:
        return _looked_at(RasterioSource(str(given), nodata=nodata))
    except FormatError as error:  # what is refused for another reason stays refused
        if not isinstance(given, Path):
            raise
        return _slide(given, nodata, error)


def _zarr_at(given: Path | Url) -> Path | Url | None:
    """Where the zarr store is that is named; None when it is something else. At URLs the name tells."""
    if isinstance(given, Path):
        return local_path(given).absolute() if holds_zarr(given) else None
    path = urlsplit(given.text).path
    if not path.endswith("/") and not any(part.endswith(".zarr") for part in PurePosixPath(path).parts):
        return None
    if not given.remote:
        raise InputError("store-in-archive", "{path}: zarr stores are not read out of archives; unpack it", path=given)
    return given


def _looked_at(source: RasterSource) -> RasterSource:
    """The source, which could be opened; its own error when it could not."""
    try:
        _ = source.info
    except BaseException:
        source.close()
        raise
    return source


def _slide(path: Path, nodata: NodataOption, error: InputError) -> RasterSource:
    """A slide that rasterio does not read; `error` is why."""
    for by in installed():
        try:
            return _looked_at(SlideSource(str(path), by, nodata=nodata))
        except InputError as refused:
            reason = refused
    if path.suffix.lower() not in _SLIDES:
        raise error
    if not installed():
        raise InputError(
            "reader-missing",
            "{problem}. If it is a slide, {install} brings what reads it",
            problem=error,
            install=INSTALL,
        ) from error
    raise reason


def _opened(file: SourceFile) -> RasterSource:
    source: RasterSource
    if file.by == "rasterio":
        source = RasterioSource(file.path, level=file.level, nodata=file.nodata)
    elif file.by == "zarr":
        source = ZarrSource(input_of(file.path), file.level, wkt_of, folder_of, file.nodata)
    else:
        source = SlideSource(file.path, file.by, file.level, file.nodata)
    return PaletteSource(source) if file.colours else source


def _mosaic(name: str, sources: Sequence[RasterSource]) -> RasterSource:
    """All on the grid of the first, made large enough; InputError when their pixels do not mean the same."""
    first = sources[0].info
    for source in sources[1:]:
        _check_alike(first, source.info)
    grid = reduce(_around, (Grid(source.info.size, source.info.georeference) for source in sources))
    return _placed(name, sources, grid)


def _check_alike(first: RasterInfo, other: RasterInfo) -> None:
    problem = mosaic_problem(first, other)
    for info in (first, other):
        if _is_placeless(info):
            other, problem = info, problem or "nothing says where it lies"
    if problem is None and (first.georeference.crs_wkt is None) != (other.georeference.crs_wkt is None):
        problem = f"and {first.path}: one has a reference system, the other has none"
    if problem is not None:
        raise InputError(
            "mosaic-differs",
            "{path}: {problem}; make it alike (gdal_translate), or leave it out of the mosaic",
            path=other.path,
            problem=problem,
        )


def _is_placeless(info: RasterInfo) -> bool:
    """True where a transform only says how large the pixels of a level are."""
    finest, size = info.levels[0], info.size
    pixels = GeoReference(None, IDENTITY).coarser(finest.height / size.height, finest.width / size.width)
    return info.georeference.transform == pixels.transform


def _around(grid: Grid, other: Grid) -> Grid:
    """The first grid, with more rows and columns until it holds the second; InputError when that is too large."""
    there = window_on(grid, other)
    top, left = min(0, there.row), min(0, there.col)
    bottom, right = max(grid.size.height, there.stop_row), max(grid.size.width, there.stop_col)
    problem = size_problem(bottom - top, right - left)
    if problem is not None:
        raise InputError(
            "mosaic-too-large",
            "a mosaic of {grid} and {other} would have {size}; leave out what lies far away",
            grid=grid,
            other=other,
            size=problem,
        )
    return part_of(grid, Window(top, left, bottom - top, right - left))


def _placed(name: str, sources: Sequence[RasterSource], grid: Grid) -> RasterSource:
    """A mosaic of sources on a grid, on which those that do not lie on it are warped."""
    pieces = []
    for source in sources:
        own = Grid(source.info.size, source.info.georeference)
        at = same_pixels(own, grid)
        if at is not None:
            pieces.append(Piece(source, *at))
            continue
        there = window_on(grid, own)
        warped = WarpedSource(source, part_of(grid, there), kernel_for(own, grid))
        pieces.append(Piece(warped, there.row, there.col))
    return MosaicSource(name, pieces, grid.size, grid.georeference)


def thumbnail(identity: InputIdentity, bands: Sequence[int], step: int, on_error: OnError = FAIL) -> Pixels:
    """An input with `step` x `step` of its pixels as one, `bands` counting from 1.

    ceil(height / step) rows and ceil(width / step) columns. InputError when it cannot be opened or, unless `on_error`
    says otherwise, decoded.
    """
    source = TolerantSource(_fine_enough(identity, step), on_error)
    try:
        rows, cols = (-(-side // step) for side in (identity.height, identity.width))
        grid = Grid(Size(rows, cols), identity.georeference.coarser(step, step))
        own = Grid(source.info.size, source.info.georeference)
        small = source if own == grid else WarpedSource(source, grid, "average")
        return small.read(Window(0, 0, rows, cols), tuple(bands))
    finally:
        source.close()


def _fine_enough(identity: InputIdentity, step: int) -> RasterSource:
    """The input, or the coarsest level of its file that has a pixel for each of the picture."""
    if len(identity.sources) != 1:
        return source_of(identity)
    file = identity.sources[0]
    levels = level_of(file, 0).info.levels
    height, width = identity.height // step, identity.width // step
    enough = [number for number, size in enumerate(levels) if size.height >= height and size.width >= width]
    return level_of(file, enough[-1]) if enough else source_of(identity)
