"""Zarr stores as others write them, of one image."""

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import rasterio
import rioxarray
import xarray as xr
import zarr
from numpy.typing import NDArray
from rasterio.shutil import copy as copy_raster

from fcn_batch.pipeline.core.conventions import joined, proj_attributes, spatial_attributes
from fcn_batch.pipeline.core.geometry import Size
from fcn_batch.pipeline.core.georeference import GeoReference

Format = Literal[2, 3]


def opened(tif: Path, **attributes: Any) -> xr.DataArray:
    """A GeoTIFF as rioxarray gives it, without attributes that zarr does not need."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # rioxarray's use of affine
        found = rioxarray.open_rasterio(tif)
    assert isinstance(found, xr.DataArray)
    found.attrs = {key: found.attrs[key] for key in ("_FillValue",) if key in found.attrs} | attributes
    found.name = "image"
    return found


def written(dataset: xr.Dataset, path: Path, version: Format, **encoding: Any) -> Path:
    """By xarray."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what format 3 does not specify: consolidated metadata, texts
        dataset.to_zarr(path, zarr_format=version, encoding=encoding or None)
    return path


def by_xarray(tif: Path, path: Path, version: Format, **encoding: Any) -> Path:
    """(band, y, x), x and y, spatial_ref."""
    return written(opened(tif).to_dataset(name="image"), path, version, image=encoding)


def by_xarray_interleaved(tif: Path, path: Path, version: Format) -> Path:
    """(y, x, band) with names of the bands in a coordinate."""
    found = opened(tif)
    named = found.assign_coords(band=[f"B{band:02}" for band in found.band.to_numpy()])
    return written(named.transpose("y", "x", "band").to_dataset(name="image"), path, version)


def by_xarray_in_variables(tif: Path, path: Path, version: Format) -> Path:
    """A variable (y, x) for each band, as Sentinel-2 has it, and others of other shapes."""
    found = opened(tif)
    bands = {f"B{band:02}": found.sel(band=band, drop=True) for band in found.band.to_numpy()}
    return written(xr.Dataset({**bands, "angles": ("angle", np.arange(5.0))}), path, version)


def by_xarray_in_degrees(tif: Path, path: Path, version: Format) -> Path:
    """Dimensions latitude and longitude, a time of one moment, no GeoTransform: only the coordinates say where."""
    found = opened(tif).rename(x="longitude", y="latitude").expand_dims("time")
    del found["spatial_ref"].attrs["GeoTransform"]
    return written(found.to_dataset(name="image"), path, version)


def by_gdal(tif: Path, path: Path, version: Format) -> Path:
    """rasterio's GDAL: an array (Y, X, Band), or one for a single band; no nodata, which it cannot write."""
    with rasterio.open(tif) as dataset:
        profile, values = {**dataset.profile, "nodata": None}, dataset.read()
        colours = dataset.colorinterp
    plain = path.with_suffix(".plain.tif")
    with rasterio.open(plain, "w", **profile) as dataset:
        dataset.write(values)
        dataset.colorinterp = colours
    copy_raster(plain, path, driver="Zarr", FORMAT=f"ZARR_V{version}")
    plain.unlink()
    return path


def by_convention(tif: Path, path: Path, version: Format) -> Path:
    """An array in a group with the proj and spatial conventions, and neither x and y nor a grid mapping."""
    with rasterio.open(tif) as dataset:
        reference = GeoReference(dataset.crs.to_wkt(version="WKT2_2019"), tuple(dataset.transform)[:6])
        blocks = [
            proj_attributes(reference.crs_wkt, f"EPSG:{dataset.crs.to_epsg()}"),
            spatial_attributes(reference, Size(*dataset.shape)),
        ]
        attributes: dict[str, Any] = joined(*blocks) | ({} if dataset.nodata is None else {"nodata": dataset.nodata})
        bare_array(dataset.read(), path / "image", version, attributes)
    zarr.open_group(path, mode="a", zarr_format=version)
    return path


def bare_array(
    values: NDArray[Any], path: Path, version: Format, attributes: dict[str, Any] | None = None, **options: Any
) -> Path:
    """An array and nothing else."""
    options = {"chunks": (*(1,) * (values.ndim - 2), 32, 48), **options}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # codecs of numcodecs in format 3
        array = zarr.create_array(
            path, shape=values.shape, dtype=values.dtype, zarr_format=version, attributes=attributes, **options
        )
    array[...] = values
    return path


def ome_by_hand(values: NDArray[Any], path: Path, version: Format, labels: Sequence[str] = ()) -> Path:
    """OME-Zarr 0.4 or 0.5 of (c, y, x) as its specification has it, which ome-zarr-models checks.

    Half a micrometre a pixel, with two coarser levels.
    """
    from ome_zarr_models import open_ome_zarr

    axes = [{"name": "c", "type": "channel"}, *({"name": a, "type": "space", "unit": "micrometer"} for a in "yx")]
    datasets = [
        {"path": str(k), "coordinateTransformations": [{"type": "scale", "scale": [1.0, 0.5 * 2**k, 0.5 * 2**k]}]}
        for k in range(3)
    ]
    told: dict[str, Any] = {"multiscales": [{"name": "image", "axes": axes, "datasets": datasets}]}
    if labels:
        told["omero"] = {"channels": [{"label": label, "color": "FF0000", "window": _SHOWN} for label in labels]}
    if version == 2:
        told["multiscales"][0]["version"] = "0.4"
    group = zarr.open_group(path, mode="w", zarr_format=version)
    group.attrs.put(told if version == 2 else {"ome": {"version": "0.5", **told}})
    for k in range(3):
        rows, cols = values.shape[1] >> k, values.shape[2] >> k
        level = np.ascontiguousarray(values[:, :: 2**k, :: 2**k][:, :rows, :cols])
        named: dict[str, Any] = {"dimension_names": ("c", "y", "x")} if version == 3 else {}
        form: Any = {"name": "v2" if version == 2 else "default", "separator": "/"}
        group.create_array(str(k), data=level, chunks=(1, 32, 48), chunk_key_encoding=form, **named)
    open_ome_zarr(group, version="0.4" if version == 2 else "0.5")
    return path


def by_ome(
    values: NDArray[Any],
    path: Path,
    version: Format,
    axes: str = "cyx",
    labels: Sequence[str] = (),
    **options: Any,
) -> Path:
    """OME-Zarr 0.4 or 0.5 by its own library, half a micrometre a pixel, with two coarser levels.

    The library is no part of the `dev` extra: it and moto want other versions of botocore.
    """
    pytest.importorskip("ome_zarr", reason="pip install ome-zarr, to read what it writes")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the library's own
        from ome_zarr.format import FormatV04, FormatV05
        from ome_zarr.writer import write_image

        group = zarr.open_group(path, mode="w", zarr_format=version)
        channels = [{"label": label, "color": "FF0000", "window": _SHOWN, "active": True} for label in labels]
        scale = {axis: 0.5 if axis in "xy" else 1.0 for axis in axes}
        write_image(
            values,
            group,
            axes=axes,
            fmt=FormatV04() if version == 2 else FormatV05(),
            scale=scale,
            axes_units=dict.fromkeys("xy", "micrometer"),
            scale_factors=[2, 4],
            storage_options={"chunks": (*(1,) * (values.ndim - 2), 32, 48)},
            **options,
        )
    if channels:  # by hand, where the specification wants it: the library's way in changed between 0.11 and 0.21
        told: dict[str, Any] = dict(group.attrs)
        (told if version == 2 else told["ome"])["omero"] = {"channels": channels}
        group.attrs.put(told)
    return path


_SHOWN = {"start": 0, "end": 255, "min": 0, "max": 255}

WRITERS: dict[str, Callable[[Path, Path, Format], Path]] = {
    "xarray": by_xarray,
    "interleaved": by_xarray_interleaved,
    "variables": by_xarray_in_variables,
    "degrees": by_xarray_in_degrees,
    "conventions": by_convention,
}
"""Which write the pixels, nodata, system and transform of a GeoTIFF."""
