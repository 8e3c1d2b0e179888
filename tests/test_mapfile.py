"""Class names and colours as they come back from files: ours, those of other programs, and broken ones."""

from pathlib import Path

import numpy as np
import pytest
import rasterio

from fcn_batch.pipeline.core.classes import ClassInfo, Legend
from fcn_batch.pipeline.core.geometry import Size, Window
from fcn_batch.pipeline.core.georeference import IDENTITY, GeoReference
from fcn_batch.pipeline.core.sidefile import write_side_file
from fcn_batch.pipeline.raster.classmap import MapHead, write_cog
from fcn_batch.pipeline.raster.gdal import accept_pixel_space
from fcn_batch.pipeline.raster.mapfile import GREY, MapFile, read_legend
from tests.errors import refuses
from tests.rasters import write_raster

LEGEND = Legend(
    classes=(
        ClassInfo(id=0, name='a "b" <c> & d', colour="#1f78b4"),
        ClassInfo(id=3, name="森林, größer", colour="#106020"),
        ClassInfo(id=254, name="x" * 100, colour="#000000"),
    )
)
TABLE = """<PAMDataset><PAMRasterBand band="1"><GDALRasterAttributeTable>
<FieldDefn index="0"><Name>n</Name><Type>0</Type><Usage>1</Usage></FieldDefn>
<FieldDefn index="1"><Name>kind</Name><Type>2</Type><Usage>2</Usage></FieldDefn>
<FieldDefn index="2"><Name>v</Name><Type>0</Type><Usage>5</Usage></FieldDefn>
{rows}</GDALRasterAttributeTable></PAMRasterBand></PAMDataset>"""


def raster(folder: Path) -> Path:
    return write_raster(folder / "a.tif", np.zeros((1, 4, 5), np.uint8))


def with_table(folder: Path, *rows: tuple[object, ...]) -> Path:
    """A raster with another program's table: count, name, id; no colours."""
    path = raster(folder)
    text = "".join(f"<Row>{''.join(f'<F>{cell}</F>' for cell in row)}</Row>" for row in rows)
    Path(f"{path}.aux.xml").write_text(TABLE.format(rows=text))
    return path


def test_a_side_file_of_ours_comes_back_whole(tmp_path: Path) -> None:
    path = raster(tmp_path)
    assert read_legend(path) is None
    write_side_file(path, LEGEND)
    assert read_legend(path) == LEGEND


def test_without_the_side_file_the_map_itself_tells(tmp_path: Path) -> None:
    legend = Legend(
        classes=(ClassInfo(id=1, name="bare soil", colour="#aa8866"), ClassInfo(id=6, name="ice", colour="#ffffff"))
    )
    head = MapHead(GeoReference(None, IDENTITY), Size(4, 5), legend)
    path = tmp_path / "a.classes.tif"
    write_cog(path, head, [(Window(0, 0, 4, 5), np.ones((4, 5), np.uint8))])
    Path(f"{path}.aux.xml").unlink()
    assert read_legend(path) == legend


def test_a_table_of_another_program(tmp_path: Path) -> None:
    path = with_table(tmp_path, (20, "water", 2), (7, "", 3), (9, "fields", 11), (9, "nodata", 255))
    read = read_legend(path)
    assert read is not None
    assert [(one.id, one.name, one.colour) for one in read.classes] == [(2, "water", GREY), (11, "fields", GREY)]


def test_flags_without_a_palette(tmp_path: Path) -> None:
    path = raster(tmp_path)
    with accept_pixel_space(), rasterio.open(path, "r+") as dataset:
        dataset.update_tags(1, flag_values="0 5", flag_meanings="deep_sea land")
    read = read_legend(path)
    assert read is not None
    assert [(one.id, one.name, one.colour) for one in read.classes] == [(0, "deep sea", GREY), (5, "land", GREY)]


@pytest.mark.parametrize("text", ["", "<PAMDataset>", "<PAMDataset/>", TABLE.format(rows="")])
def test_side_files_that_name_no_classes(tmp_path: Path, text: str) -> None:
    path = raster(tmp_path)
    Path(f"{path}.aux.xml").write_text(text)
    assert read_legend(path) is None


@pytest.mark.parametrize(
    "rows", [[(1, "a", 1), (1, "b", 1)], [(1, "a", 1), (1, "a", 2)], [(1, "a", 300)], [(1, "a", -1)], [(1, "a", "one")]]
)
def test_names_that_make_no_legend(tmp_path: Path, rows: list[tuple[object, ...]]) -> None:
    path = with_table(tmp_path, *rows)
    with refuses("legend-invalid", path=path):
        read_legend(path)


@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16", "int16", "uint32", "int32"])
def test_ids_of_any_whole_numbers(tmp_path: Path, dtype: str) -> None:
    values = np.array([[[0, 1, 126, 127]]], dtype)
    opened = MapFile(write_raster(tmp_path / "a.tif", values, nodata=126))
    assert opened.read(Window(0, 0, 1, 4)).tolist() == [[0, 1, 255, 127]]
    assert opened.legend is None


def test_ids_below_zero_are_no_class(tmp_path: Path) -> None:
    opened = MapFile(write_raster(tmp_path / "a.tif", np.full((1, 2, 2), -7, np.int16)))
    with refuses("class-id-invalid", value=-7):
        opened.read(Window(0, 0, 2, 2))
