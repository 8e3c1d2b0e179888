"""What a source of pixels is: what is known of it, and the pixels and mask of a window of it.

Whoever classifies, measures or shows pixels asks for a RasterSource, and need not know whether they come out of a
GeoTIFF, a slide, a zarr store or several of these at once.
"""

from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from fcn_batch.pipeline.core.geometry import Size, Window
from fcn_batch.pipeline.core.georeference import GeoReference, GroundControl

DTYPES = ("uint8", "uint16", "int16", "float32")
"""Pixel types that the networks' preprocessing is defined for."""
ID_DTYPES = ("uint8", "int8", "uint16", "int16", "uint32", "int32")
"""Pixel types that label ids may have."""
NO_MEASUREMENT = 1e30
"""From here on a float is no measurement: infinity, or the usual nodata of 3.4e38 that nobody declared."""


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
    sources: tuple[SourceFile, ...] = ()
    """How it is opened; by default as a raster file."""
    levels: tuple[Size, ...] = ()
    """Height and width of each level of a pyramid that the file holds, the finest first."""
    palette: tuple[tuple[int, int, int, int], ...] = ()
    """Red, green, blue and alpha of each value of the first band, where its values are numbers of colours."""
    resampling: Resampling | None = None
    """How its pixels are made of those of the files; None: they are those of the files."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "sources", self.sources or (SourceFile(path=self.path),))
        object.__setattr__(self, "levels", self.levels or (self.size,))
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


def check_read(info: RasterInfo, window: Window, bands: tuple[int, ...]) -> None:
    """ValueError when a window leaves the raster, or one of `bands` does not exist."""
    if window.row < 0 or window.col < 0 or window.clipped(info.size) != window:
        raise ValueError(f"{window} is not inside {info.path} with its {info.size}")
    if not bands or min(bands) < 1 or max(bands) > info.bands:
        raise ValueError(f"bands {bands} were asked for, but {info.path} has bands 1 to {info.bands}")


def cache_needed(info: RasterInfo, rows: int, bands: int) -> int:
    """Bytes of block cache with which windows of `rows` rows, read in row order, decode each block once.

    All blocks that a row of windows touches must fit: one more than its rows, as it may begin in the last
    row of a block. `bands` is how many are decoded together: all when they are stored pixel by pixel.
    """
    return (rows + info.storage_block[0]) * info.size.width * np.dtype(info.dtype).itemsize * bands
