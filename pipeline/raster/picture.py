"""Pictures as bytes, and when a raster was taken: what pages and catalogues show of an input."""

from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rasterio.io import MemoryFile

from fcn_batch.pipeline.core.errors import InputError
from fcn_batch.pipeline.core.location import Url
from fcn_batch.pipeline.raster.gdal import accept_pixel_space, local_only
from fcn_batch.pipeline.raster.rasterfile import BROKEN, allowed, open_dataset, place_of

_TAKEN = (("IMAGERY", "ACQUISITIONDATETIME"), (None, "EXIF_DateTimeOriginal"), (None, "TIFFTAG_DATETIME"))
"""Where GDAL keeps the time of an image: name space and key; the surest first."""
_QUALITY = 82


def jpeg(picture: NDArray[np.uint8]) -> bytes:
    """A picture, (rows, cols, 3), as the bytes of a JPEG file."""
    height, width, bands = picture.shape
    with local_only(), accept_pixel_space(), MemoryFile() as file:
        options = {"height": height, "width": width, "count": bands, "dtype": "uint8", "photometric": "YCBCR"}
        with file.open(driver="JPEG", quality=_QUALITY, **options) as dataset:
            dataset.write(np.moveaxis(picture, -1, 0))
        return bytes(file.read())


def taken_at(path: str | Path | Url) -> datetime | None:
    """When the image says that it was taken; as UTC where it names no time zone; None when it does not say it.

    A raster that cannot be opened says nothing either.
    """
    try:
        place = place_of(path)
        with allowed(place), accept_pixel_space(), open_dataset(place) as dataset:
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
        return found.replace(tzinfo=UTC) if found.tzinfo is None else found.astimezone(UTC)
    except (ValueError, OverflowError):  # the first hours of year 1 stand for a time that nobody set
        return None
