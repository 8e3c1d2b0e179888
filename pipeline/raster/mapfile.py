"""Class maps that are rasters: reading them back, with names and colours, and checking those that we wrote.

Names and colours stand in the attribute table of the side file that `classmap.py` writes (GDAL's format for metadata
that a driver has no place for, so other programs' tables are read as well); without it the band's CF flag attributes
and its palette are taken.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import numpy as np
import rasterio
from numpy.typing import NDArray
from pydantic import ValidationError
from rasterio.io import DatasetReader

from fcn_batch.pipeline.core.classes import NODATA, Legend
from fcn_batch.pipeline.core.errors import InputError
from fcn_batch.pipeline.core.geometry import Size, Window
from fcn_batch.pipeline.core.georeference import GeoReference
from fcn_batch.pipeline.core.limits import read_bounded
from fcn_batch.pipeline.core.qml import legal_text
from fcn_batch.pipeline.core.source import ID_DTYPES
from fcn_batch.pipeline.raster.classmap import BLOCK, MapHead, place_differs
from fcn_batch.pipeline.raster.gdal import accept_pixel_space, local_only
from fcn_batch.pipeline.raster.rasterfile import DRIVERS, RasterioSource, inspect

GREY = "#808080"
"""Colour of a class for which the file has none."""
_LARGEST_SIDE_FILE = 2**22
_USAGES = {"2": "name", "5": "id", "6": "red", "7": "green", "8": "blue"}
"""What a column of an attribute table holds, by GDAL's number of its usage."""


class MapFile:
    """A raster of one band of whole numbers, read as class ids; many threads may read at once."""

    def __init__(self, path: Path) -> None:
        """Open `path`; InputError when it is not a raster of one band of whole numbers."""
        self.path = path
        info = inspect(path, ID_DTYPES)
        if info.bands != 1:
            raise InputError(
                "map-bands",
                "{path}: {bands} bands; a class map has one, of class ids; take it with gdal_translate -b N",
                path=path,
                bands=info.bands,
            )
        self._source = RasterioSource(path, info)
        self.size: Size = info.size
        self.georeference: GeoReference = info.georeference
        self.block: tuple[int, int] = info.storage_block
        self.legend: Legend | None = read_legend(path)

    def read(self, window: Window) -> NDArray[np.uint8]:
        """Class ids of a window: (rows, cols), uint8, 255 where there is no data.

        InputError for pixels that cannot be decoded and for ids that are no class (below 0 or above 255).
        """
        pixels = self._source.read(window, (1,))
        values = pixels.values[0]
        beyond = pixels.valid & ((values < 0) | (values > NODATA))
        if beyond.any():
            raise InputError(
                "class-id-invalid",
                "{path}: holds {value}; class ids are 0 to 254: "
                "give the others new numbers, or declare them nodata (gdal_translate -a_nodata {value})",
                path=self.path,
                value=int(values[beyond][0]),
            )
        return np.where(pixels.valid, values.astype(np.uint8), np.uint8(NODATA))


def read_legend(path: Path) -> Legend | None:
    """Classes that the raster `path` names, or None when it names none.

    InputError when names and ids are there but make no legend (two classes of one id or name, ids that are no class).
    """
    entries = _from_side_file(Path(f"{path}.aux.xml")) or _from_band(path)
    entries = [entry for entry in entries if entry["name"] and str(entry["id"]) != str(NODATA)]
    if not entries:
        return None
    try:
        legend = Legend.model_validate({"classes": entries})
        if not legend.fits_a_map:
            raise ValueError(f"class ids are 0 to {NODATA - 1}, and one is {max(legend.ids)}")
    except ValueError as error:
        why = str(error)
        if isinstance(error, ValidationError):
            why = f"{'.'.join(str(part) for part in error.errors()[0]['loc'])} {error.errors()[0]['msg']}"
        raise InputError(
            "legend-invalid",
            "{path}: its class names cannot be used: {why}; correct or remove {path}.aux.xml",
            path=path,
            why=why,
        ) from error
    return legend


def _from_side_file(side: Path) -> list[dict[str, Any]]:
    """Rows of the first attribute table that has ids and names; empty without one."""
    try:
        root = ET.fromstring(read_bounded(side, _LARGEST_SIDE_FILE))  # noqa: S314 - expat itself bounds entities
    except (ET.ParseError, OSError, ValueError, LookupError):
        return []  # none, or none that GDAL would read
    for table in root.iter("GDALRasterAttributeTable"):
        columns = [_USAGES.get(field.findtext("Usage", ""), "") for field in table.iter("FieldDefn")]
        if {"id", "name"} <= set(columns):
            return [_entry(columns, [cell.text or "" for cell in row.iter("F")]) for row in table.iter("Row")]
    return []


def _entry(columns: list[str], cells: list[str]) -> dict[str, Any]:
    found = dict(zip(columns, cells, strict=False))
    colour = GREY
    if all(found.get(part, "").isdecimal() for part in ("red", "green", "blue")):
        colour = _hex(int(found["red"]), int(found["green"]), int(found["blue"]))
    return {"id": found.get("id", ""), "name": found.get("name", ""), "colour": colour}


def _from_band(path: Path) -> list[dict[str, Any]]:
    """Classes of the CF flag attributes, with the palette's colours; empty without them."""
    drivers = ["VRT"] if path.suffix.lower() == ".vrt" else list(DRIVERS)
    with local_only(), accept_pixel_space(), DatasetReader(str(path), driver=drivers) as dataset:
        tags = dataset.tags(1)
        try:
            palette = dataset.colormap(1)
        except ValueError:
            palette = {}
    ids, names = tags.get("flag_values", "").split(), tags.get("flag_meanings", "").split()
    if len(ids) != len(names) or not all(word.isdecimal() for word in ids):
        return []
    colours = [_hex(*palette[int(word)][:3]) if int(word) in palette else GREY for word in ids]
    return [
        {"id": int(word), "name": name.replace("_", " "), "colour": colour}
        for word, name, colour in zip(ids, names, colours, strict=True)
    ]


def _hex(red: int, green: int, blue: int) -> str:
    return f"#{red:02x}{green:02x}{blue:02x}"


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
