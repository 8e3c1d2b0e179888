"""Rasters of one band that are taken as three: by a palette, or the band three times; and bands with nodata each."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio

from fcn_batch.pipeline.core.geometry import Window
from fcn_batch.pipeline.core.source import PaletteSource
from fcn_batch.pipeline.raster.gdal import accept_pixel_space
from fcn_batch.pipeline.raster.rasterfile import RasterioSource
from fcn_batch.workflows.inputs.sources import find_source, in_colours
from tests.models import save_tiny_model
from tests.rasters import noise, write_raster
from tests.runs import class_map, segmented


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model") / "tiny.safetensors", fc_kernel=1)


def test_palettes_are_colours(tmp_path: Path, model: Path) -> None:
    """A PNG has transparent ones, a TIFF has not: there, nodata counts."""
    numbers = np.random.default_rng(0).integers(0, 4, (1, 90, 80)).astype(np.uint8)
    numbers[0, :5] = 200  # which the palettes do not have
    table = {0: (0, 0, 200, 255), 1: (200, 10, 0, 255), 2: (9, 200, 0, 255), 3: (1, 2, 3, 0)}
    colours = np.zeros((256, 4), np.uint8)
    colours[list(table)] = list(table.values())
    image = pytest.importorskip("PIL.Image").fromarray(numbers[0], "P")
    image.putpalette(colours[:, :3].tobytes())
    image.save(tmp_path / "png.png", transparency=colours[:, 3].tobytes())
    write_raster(tmp_path / "tiff.tif", numbers, nodata=3)
    with accept_pixel_space(), rasterio.open(tmp_path / "tiff.tif", "r+") as dataset:
        dataset.write_colormap(1, table)
    rgb = np.moveaxis(colours[numbers[0]][..., :3], -1, 0)
    segmented(write_raster(tmp_path / "rgb.tif", rgb), "-m", model, "-o", tmp_path)
    expected = class_map(tmp_path, "rgb")
    for name, empty in (("png.png", colours[numbers[0]][..., 3] == 0), ("tiff.tif", numbers[0] == 3)):
        segmented(tmp_path / name, "-m", model, "-o", tmp_path)
        found = class_map(tmp_path, name[:-4])
        assert ((found == 255) == empty).all(), name
        source = in_colours(find_source(tmp_path / name))
        values = source.read(Window(0, 0, 90, 80), (1, 2, 3)).values
        assert (values[:, ~empty] == rgb[:, ~empty]).all()
        assert (source.read(Window(20, 30, 9, 8), (3, 1)).values == values[[2, 0], 20:29, 30:38]).all()
    assert (expected != 255).all()
    one = save_tiny_model(tmp_path / "one.safetensors", fc_kernel=1, bands=("gray",))
    segmented(tmp_path / "tiff.tif", "-m", one, "-o", tmp_path / "numbers")
    told: Any = json.loads((tmp_path / "numbers" / "tiff.run.json").read_text())["plan"]
    assert (told["bands"], told["input"]["bands"], told["input"]["sources"][0]["colours"]) == ([1], 1, False)


def test_one_band_as_three(tmp_path: Path, model: Path) -> None:
    grey = noise(1, 70, 80)
    segmented(write_raster(tmp_path / "a.tif", grey), "-m", model, "-b", "1,1,1", "-o", tmp_path)
    segmented(write_raster(tmp_path / "b.tif", np.repeat(grey, 3, axis=0)), "-m", model, "-o", tmp_path)
    assert (class_map(tmp_path, "a") == class_map(tmp_path, "b")).all()


def test_a_raster_without_a_palette_has_no_colours(tmp_path: Path) -> None:
    with pytest.raises(ValueError):
        _ = PaletteSource(RasterioSource(write_raster(tmp_path / "a.tif", noise(1, 9, 9)))).info


VRT = """<VRTDataset rasterXSize="60" rasterYSize="50">{bands}</VRTDataset>"""
BAND = """<VRTRasterBand dataType="Byte" band="{k}"><NoDataValue>{nodata}</NoDataValue><SimpleSource>
<SourceFilename relativeToVRT="1">a.tif</SourceFilename><SourceBand>{k}</SourceBand></SimpleSource></VRTRasterBand>"""


def test_each_band_has_its_nodata(tmp_path: Path, model: Path) -> None:
    """One band with data is enough; where all lack it, there is none."""
    values = noise(3, 50, 60)
    values[:, 10:20, 10:20] = np.array([201, 202, 203])[:, None, None]
    values[0, 30:40, 10:20] = 201
    values[:, 30:40, 30:40] = 201  # nodata of the first band alone
    write_raster(tmp_path / "a.tif", values)
    bands = "".join(BAND.format(k=k, nodata=200 + k) for k in (1, 2, 3))
    (tmp_path / "b.vrt").write_text(VRT.format(bands=bands))
    empty = np.zeros((50, 60), np.bool_)
    empty[10:20, 10:20] = True
    pixels = find_source(tmp_path / "b.vrt").read(Window(0, 0, 50, 60), (1, 2, 3))
    assert (pixels.values == values).all()
    assert (pixels.valid == ~empty).all()
    segmented(tmp_path / "b.vrt", "-m", model, "-o", tmp_path)
    assert ((class_map(tmp_path, "b") == 255) == empty).all()
