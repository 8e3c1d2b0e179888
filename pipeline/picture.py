"""Small pictures of large rasters, and when they were taken: what pages and catalogues show of an input."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rasterio.enums import Resampling
from rasterio.io import DatasetReader, MemoryFile

from fcn_batch.pipeline.errors import InputError
from fcn_batch.pipeline.gdal import accept_pixel_space, local_only
from fcn_batch.pipeline.guard import check_raster
from fcn_batch.pipeline.raster import BROKEN, DRIVERS, NO_MEASUREMENT, Pixels, local_path

_TAKEN = (("IMAGERY", "ACQUISITIONDATETIME"), (None, "EXIF_DateTimeOriginal"), (None, "TIFFTAG_DATETIME"))
"""Where GDAL keeps the time of an image: name space and key; the surest first."""
_QUALITY = 82


def reduced(path: Path, bands: tuple[int, ...], step: int) -> Pixels:
    """A raster with `step` x `step` of its pixels as one (their mean; overviews are used where there are any).

    `bands` counts from 1. Pixels are as Pixels has them, with ceil(height / step) rows and ceil(width / step)
    columns. InputError when the raster cannot be opened or decoded, or lacks the bands.
    """
    try:
        with local_only(), accept_pixel_space(), _open(path) as whole:
            check_raster(path.absolute(), whole)  # overviews may lie elsewhere
            level, shape = _overview(whole, step), (-(-whole.height // step), -(-whole.width // step))
        with local_only(), accept_pixel_space(), _open(path, level) as dataset:
            if max(bands) > dataset.count:
                raise InputError(f"{path}: has {dataset.count} bands, and {max(bands)} is wanted")
            options: dict[str, Any] = {"out_shape": (len(bands), *shape), "resampling": Resampling.average}
            values: NDArray[Any] = dataset.read(list(bands), **options)
            valid = dataset.dataset_mask(out_shape=shape, resampling=Resampling.nearest) > 0
    except BROKEN as error:
        raise InputError(f"{path} cannot be read: {error.__cause__ or error}") from error
    if values.dtype.kind == "f":
        valid &= (np.abs(values) < NO_MEASUREMENT).all(axis=0)
    return Pixels(values, valid)


def _overview(whole: DatasetReader, step: int) -> str:
    """GDAL's word for the smallest overview that has a pixel for each `step` pixels along both axes; NONE: itself.

    In slides, pictures of the label and of the whole glass count as overviews too: their shape is another one.
    """
    least, height, width = "NONE", whole.height, whole.width
    for number in range(len(whole.overviews(1))):
        word = f"{number}only"
        with _open(Path(whole.name), word) as level:
            like = abs(level.height * whole.width - level.width * whole.height) <= max(whole.shape)
            if like and height > level.height >= whole.height // step and width > level.width >= whole.width // step:
                least, height, width = word, level.height, level.width
    return least


def jpeg(picture: NDArray[np.uint8]) -> bytes:
    """A picture, (rows, cols, 3), as the bytes of a JPEG file."""
    height, width, bands = picture.shape
    with local_only(), accept_pixel_space(), MemoryFile() as file:
        options = {"height": height, "width": width, "count": bands, "dtype": "uint8", "photometric": "YCBCR"}
        with file.open(driver="JPEG", quality=_QUALITY, **options) as dataset:
            dataset.write(np.moveaxis(picture, -1, 0))
        return bytes(file.read())


def taken_at(path: Path) -> datetime | None:
    """When the image says that it was taken; as UTC where it names no time zone; None when it does not say it.

    A raster that cannot be opened says nothing either.
    """
    try:
        with local_only(), accept_pixel_space(), _open(path) as dataset:
            told = [
                dataset.tags(ns=space).get(key, "") if space else dataset.tags().get(key, "") for space, key in _TAKEN
            ]
    except (*BROKEN, InputError):
        return None
    return next((found for text in told if (found := _moment(text)) is not None), None)


def _moment(text: str) -> datetime | None:
    """A time as TIFF, EXIF and GDAL write it.

    >>> _moment("2019:01:31 10:20:30").isoformat(), _moment("2021-03-04T05:06:07+02:00").isoformat(), _moment("soon")
    ('2019-01-31T10:20:30+00:00', '2021-03-04T03:06:07+00:00', None)
    """
    text = text.strip()
    if text[4:5] == ":":
        text = text.replace(":", "-", 2)
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        return None
    return found.replace(tzinfo=UTC) if found.tzinfo is None else found.astimezone(UTC)


def _open(path: Path, overview: str | None = None) -> DatasetReader:
    local = local_path(path)
    if not local.is_file():
        raise InputError(f"{local} does not exist")
    drivers = ["VRT"] if local.suffix.lower() == ".vrt" else list(DRIVERS)
    options = {} if overview is None else {"OVERVIEW_LEVEL": overview}
    return DatasetReader(str(local), driver=drivers, **options)
