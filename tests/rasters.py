"""Small real rasters for tests."""

from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray

from fcn_batch.pipeline.raster.gdal import accept_pixel_space


def write_raster(path: Path, values: NDArray[Any], **profile: Any) -> Path:
    """Write values (bands, rows, cols) as a GeoTIFF, or as `driver`; `profile` holds rasterio's options."""
    bands, height, width = values.shape
    options = {"driver": "GTiff", "count": bands, "height": height, "width": width, "dtype": values.dtype}
    with accept_pixel_space(), rasterio.open(path, "w", **{**options, **profile}) as dataset:
        dataset.write(values)
    return path


def noise(bands: int, height: int, width: int, dtype: str = "uint8", seed: int = 0) -> NDArray[Any]:
    """Random values from 1 to 199, shape (bands, rows, cols)."""
    return np.random.default_rng(seed).integers(1, 200, (bands, height, width)).astype(dtype)
