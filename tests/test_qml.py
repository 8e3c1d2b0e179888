"""The QGIS style, read back as QGIS reads it: an XML document with a DOCTYPE, a renderer and its entries."""

from xml.dom import minidom
from xml.etree import ElementTree as ET

from fcn_batch.pipeline.core.classes import ClassInfo, Legend
from fcn_batch.pipeline.core.qml import qgis_style

LEGEND = Legend(
    classes=(
        ClassInfo(id=3, name='<bare> & "dry" soil', colour="#aa8866"),
        ClassInfo(id=0, name="Wasser é", colour="#1f78b4"),
        ClassInfo(id=17, name="a\0b", colour="#000000"),
    )
)


def entries(text: str) -> list[dict[str, str]]:
    return [entry.attrib for entry in ET.fromstring(text).findall("pipe/rasterrenderer/colorPalette/paletteEntry")]  # noqa: S314 (ours)


def test_every_class_has_an_entry_with_its_name_and_colour() -> None:
    assert entries(qgis_style(LEGEND)) == [
        {"value": "0", "color": "#1f78b4", "alpha": "255", "label": "Wasser é"},
        {"value": "3", "color": "#aa8866", "alpha": "255", "label": '<bare> & "dry" soil'},
        {"value": "17", "color": "#000000", "alpha": "255", "label": "a\ufffdb"},
    ]


def test_it_is_a_style_of_the_first_band_by_unique_values() -> None:
    document = minidom.parseString(qgis_style(LEGEND))  # noqa: S318 (ours)
    assert document.doctype is not None
    assert document.doctype.name == "qgis"
    renderer = ET.fromstring(qgis_style(LEGEND)).find("pipe/rasterrenderer")  # noqa: S314 (ours)
    assert renderer is not None
    assert (renderer.get("type"), renderer.get("band")) == ("paletted", "1")
    assert not list(ET.fromstring(qgis_style(LEGEND)).iter("noData"))  # noqa: S314 (ours)
