"""The style with which QGIS shows a class map: `NAME.qml` beside `NAME.tif` or `NAME.zarr` is taken by itself."""

import re
from xml.etree import ElementTree as ET

from fcn_batch.pipeline.core.classes import Legend

_DOCTYPE = "<!DOCTYPE qgis PUBLIC 'http://mrcc.com/qgis.dtd' 'SYSTEM'>\n"
_VERSION = "3.22"
"""Of QGIS: the oldest that was tried. Newer ones read older styles."""


def qgis_style(legend: Legend) -> str:
    """The text of a QGIS style file: each class with its name and colour, nothing between them, sorted by id.

    Pixels are drawn as they are at every scale; a mean of class ids would be a class that is not there.
    """
    root = ET.Element("qgis", version=_VERSION, styleCategories="Symbology")
    pipe = ET.SubElement(root, "pipe")
    renderer = ET.SubElement(pipe, "rasterrenderer", type="paletted", band="1", opacity="1", alphaBand="-1")
    ET.SubElement(renderer, "rasterTransparency")
    palette = ET.SubElement(renderer, "colorPalette")
    for one in sorted(legend.classes, key=lambda one: one.id):
        entry = {"value": str(one.id), "color": one.colour, "alpha": "255", "label": legal_text(one.name)}
        ET.SubElement(palette, "paletteEntry", entry)
    ET.SubElement(pipe, "rasterresampler", maxOversampling="2")  # no resampler named: the nearest pixel
    ET.SubElement(root, "blendMode").text = "0"
    ET.indent(root)
    return _DOCTYPE + ET.tostring(root, encoding="unicode") + "\n"


def legal_text(value: object) -> str:
    r"""`value` as text; characters that XML 1.0 cannot hold, escaped or not, become U+FFFD.

    >>> legal_text("a\0b")
    'a\ufffdb'
    """
    return re.sub(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "\ufffd", str(value))
