"""`NAME.tif.aux.xml`: what GDAL and QGIS read beside a class map, above all the names of its classes."""

from pathlib import Path
from xml.etree import ElementTree as ET

from fcn_batch.pipeline.core.classes import ClassInfo, Legend
from fcn_batch.pipeline.core.errors import OutputError
from fcn_batch.pipeline.core.georeference import GroundControl
from fcn_batch.pipeline.core.qml import legal_text

COLUMNS = (("Value", 0, 5), ("Class", 2, 2), ("Red", 0, 6), ("Green", 0, 7), ("Blue", 0, 8), ("Alpha", 0, 9))
"""Name, type (0 integer, 2 text) and usage, in GDAL's numbers, of the columns of the attribute table."""


def write_side_file(
    path: Path, legend: Legend, crs_wkt: str | None = None, ground: GroundControl | None = None
) -> Path:
    """Write `NAME.tif.aux.xml` with the class names of the map `path`, and return its path.

    Two forms, because no reader takes both in all versions: category names (GDAL, QGIS layer info) and a
    thematic attribute table with colours (QGIS shows exactly these classes). With `crs_wkt`, it also holds the
    reference system, and with `ground` the ground control points, which GDAL then takes instead of the GeoTIFF's own.
    OutputError when it cannot be written.
    """
    by_id = {c.id: c for c in legend.classes}
    root = ET.Element("PAMDataset")
    if crs_wkt is not None:
        _text(root, "SRS", crs_wkt)
    if ground is not None:
        _write_points(root, ground)
    band = ET.SubElement(root, "PAMRasterBand", band="1")
    names = ET.SubElement(band, "CategoryNames")
    for class_id in range(max(by_id) + 1):
        _text(names, "Category", by_id[class_id].name if class_id in by_id else "")
    table = ET.SubElement(band, "GDALRasterAttributeTable", tableType="thematic")
    for index, (name, kind, usage) in enumerate(COLUMNS):
        column = ET.SubElement(table, "FieldDefn", index=str(index))
        for tag, value in (("Name", name), ("Type", kind), ("Usage", usage)):
            _text(column, tag, value)
    for index, class_id in enumerate(sorted(by_id)):
        row = ET.SubElement(table, "Row", index=str(index))
        for cell in _attributes(by_id[class_id]):
            _text(row, "F", cell)
    ET.indent(root)
    return _write(Path(f"{path}.aux.xml"), ET.tostring(root, encoding="utf-8"))


def _write(side: Path, data: bytes) -> Path:
    partial = Path(f"{side}.partial")
    try:
        partial.write_bytes(data)
        partial.replace(side)
    except OSError as error:
        raise OutputError(
            "output-unwritable",
            "{path} cannot be written: {why}; check the free space and your rights in {folder}, then run again",
            path=side,
            why=error,
            folder=side.parent,
        ) from error
    finally:
        partial.unlink(missing_ok=True)
    return side


def _write_points(root: ET.Element, ground: GroundControl) -> None:
    points = ET.SubElement(root, "GCPList")
    if ground.crs_wkt is not None:
        points.set("Projection", ground.crs_wkt)
    for number, (row, col, x, y, z) in enumerate(ground.points, 1):
        values = {"Pixel": col, "Line": row, "X": x, "Y": y, "Z": z}
        ET.SubElement(points, "GCP", {"Id": str(number), **{name: repr(value) for name, value in values.items()}})


def _attributes(info: ClassInfo) -> tuple[object, ...]:
    """One row of the attribute table, in the order of COLUMNS."""
    return (info.id, info.name, *info.rgb, 255)


def _text(parent: ET.Element, tag: str, value: object) -> None:
    ET.SubElement(parent, tag).text = legal_text(value)
