"""How large the pixels of an input are on the ground, where they lie, and how to say it."""

import math

from fcn_batch.pipeline.core.source import RasterInfo
from fcn_batch.pipeline.raster.crs import row_areas_m2


def ground_sample_distance(info: RasterInfo) -> float | None:
    """Metres per pixel: in the raster's middle row, or as a slide says; None when nothing says so."""
    areas = row_areas_m2(info.georeference, info.size)
    if areas is not None:
        return math.sqrt(areas[info.size.height // 2])
    return None if info.microns is None else info.microns * 1e-6


def resolution_note(info: RasterInfo) -> str:
    """What to say of an input that is taken at another resolution than that of its finest pixels."""
    gsd = ground_sample_distance(info)
    how = {None: "a level of its pyramid", "average": "means of its pixels", "bilinear": "interpolated"}[
        info.resampling
    ]
    size = "" if gsd is None else f"{metres(gsd)} per pixel, "
    return f"the input is taken at {size}{info.size.height} x {info.size.width} px ({how}): so is the map"


def metres(value: float) -> str:
    """A length as people write it.

    >>> metres(7421.0), metres(0.13214), metres(0.004), metres(5e-7)
    ('7.42 km', '0.132 m', '4 mm', '0.5 µm')
    """
    units = (("km", 1e3, 1e3), ("m", 1e-2, 1.0), ("mm", 1e-3, 1e-3), ("µm", 0.0, 1e-6))
    unit, size = next((name, size) for name, least, size in units if value >= least)
    return f"{value / size:.3g} {unit}"


def georeference_notes(info: RasterInfo) -> list[str]:
    """What is missing to know where its pixels lie."""
    if info.ground is not None:
        note = f"the raster has {len(info.ground.points)} ground control points and no transform: the GeoTIFF carries "
        return [note + "them on, so GIS places it by them; the zarr store is in pixels, with the points as fcn:gcps"]
    if info.rpcs and info.georeference.crs_wkt is None:
        note = "the raster is placed by RPCs alone, which the map does not have"
        return [f"{note}: orthorectify it first (gdalwarp -rpc) for a map that lies on the Earth"]
    if info.georeference.crs_wkt is None:
        return ["the raster has no coordinate reference system: neither has the map, and areas are not known"]
    return []
