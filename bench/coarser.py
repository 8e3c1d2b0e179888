"""A copy of a labelled data set whose test images have larger pixels: for scores at another resolution."""

from pathlib import Path
from typing import Any

import rasterio
from rasterio import Affine
from rasterio.enums import Resampling


def coarser(folder: Path, factor: float, target: Path) -> Path:
    """Link ``train`` and ``val`` of `folder` into `target`, and resample the rasters of ``test`` there.

    Pixels become `factor` times as large: images by the mean of what a pixel covers, labels (``*_label.tif``) by the
    class that covers most of it.
    """
    for split in ("train", "val"):
        (target / split).symlink_to((folder / split).resolve())
    (target / "test").mkdir()
    for path in sorted((folder / "test").glob("*.tif")):
        _resample(path, factor, target / "test" / path.name)
    return target


def _resample(path: Path, factor: float, target: Path) -> None:
    how = Resampling.mode if path.stem.endswith("_label") else Resampling.average
    with rasterio.open(path) as source:
        rows, cols = round(source.height / factor), round(source.width / factor)
        values = source.read(out_shape=(source.count, rows, cols), resampling=how)
        scale = Affine.scale(source.width / cols, source.height / rows)
        profile: dict[str, Any] = {
            "driver": "GTiff", "count": source.count, "height": rows, "width": cols, "dtype": values.dtype,
            "crs": source.crs, "transform": source.transform @ scale, "compress": "deflate", "nodata": source.nodata,
        }  # fmt: skip
    with rasterio.open(target, "w", **profile) as made:
        made.write(values)
