"""Looks at a finished GeoTIFF: whether it has the form, place, palette and names that it should have."""

from collections.abc import Iterator
from pathlib import Path

import rasterio

from fcn_batch.pipeline.core.classes import NODATA
from fcn_batch.pipeline.core.qml import legal_text
from fcn_batch.pipeline.raster.classmap import BLOCK, MapHead, place_differs
from fcn_batch.pipeline.raster.gdal import accept_pixel_space, local_only
from fcn_batch.pipeline.raster.mapfile import read_legend


def cog_faults(path: Path, head: MapHead) -> Iterator[str]:
    """What is wrong with the GeoTIFF `path` and its side file, one line each; pixels are not read.

    OSError when it cannot be opened, InputError when its names make no legend.
    """
    with local_only(), accept_pixel_space(), rasterio.open(path, driver="GTiff") as dataset:
        palette = dataset.colormap(1) if dataset.colorinterp[0].name == "palette" else {}
        found = {
            "size": f"{dataset.height} x {dataset.width}",
            "bands": dataset.count,
            "type": dataset.dtypes[0],
            "nodata": dataset.nodata,
            "blocks": dataset.block_shapes[0],
            "layout": dataset.tags(ns="IMAGE_STRUCTURE").get("LAYOUT"),
            "fingerprint": dataset.tags().get("fcn_fingerprint"),
        }
    fingerprint = head.tags.get("fcn:fingerprint")
    size = f"{head.size.height} x {head.size.width}"
    wanted = [size, 1, "uint8", NODATA, (BLOCK, BLOCK), "COG", fingerprint]
    for (what, value), expected in zip(found.items(), wanted, strict=True):
        if value != expected:
            yield f"{what} is {value} instead of {expected}"
    for one in head.legend.classes:
        if palette.get(one.id, ())[:3] != one.rgb:
            yield f"the palette has {palette.get(one.id)} for class {one.id} instead of {one.colour}"
    names = {one.id: legal_text(one.name) for one in head.legend.classes}
    legend = read_legend(path)
    read = {} if legend is None else {one.id: one.name for one in legend.classes}
    for class_id in sorted({*names, *read}):
        if read.get(class_id) != names.get(class_id):
            yield f"class {class_id} is called {read.get(class_id)!r} instead of {names.get(class_id)!r}"
    if (differs := place_differs(path, head)) is not None:
        yield f"not in its place: {differs}"
