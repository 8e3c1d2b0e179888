"""Reduced images: the raster's own pixels, whatever other pictures the file holds."""

import struct
from pathlib import Path

import numpy as np
import pytest
import rasterio
from numpy.typing import NDArray

from fcn_batch.pipeline.core.source import Pixels
from fcn_batch.pipeline.raster.gdal import accept_pixel_space
from fcn_batch.pipeline.raster.rasterfile import inspect
from fcn_batch.workflows.inputs.identity import identify
from fcn_batch.workflows.inputs.sources import thumbnail
from tests.rasters import noise, write_raster

WIDTH, HEIGHT = 96, 64


def reduced(path: Path, bands: tuple[int, ...], step: int) -> Pixels:
    return thumbnail(identify(inspect(path)), bands, step)


def tiff(path: Path, pages: list[NDArray[np.uint8]]) -> Path:
    """Grey pictures in one TIFF, all but the first marked as a reduced one, as scanners of slides write them."""
    data = bytearray(b"II*\0\0\0\0\0")
    link = 4
    for number, page in enumerate(pages):
        height, width = page.shape
        pixels = len(data)
        data += page.tobytes()
        struct.pack_into("<I", data, link, len(data))
        tags = {254: min(number, 1), 256: width, 257: height, 258: 8, 259: 1, 262: 1, 273: pixels, 277: 1}
        tags |= {278: height, 279: page.size}
        data += struct.pack("<H", len(tags))
        for tag, value in tags.items():
            data += struct.pack("<HHII", tag, 4, 1, value)
        link = len(data)
        data += bytes(4)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("step", [2, 3, 5])
def test_pictures_of_the_label_are_not_the_image(tmp_path: Path, step: int) -> None:
    image = np.full((HEIGHT, WIDTH), 200, np.uint8)
    label, glass = np.full((40, 40), 10, np.uint8), np.full((20, 90), 20, np.uint8)
    path = tiff(tmp_path / "slide.tif", [image, label, glass])
    with accept_pixel_space(), rasterio.open(path) as dataset:
        assert len(dataset.overviews(1)) == 2  # the trap is there
    found = reduced(path, (1,), step)
    assert found.values.shape == (1, -(-HEIGHT // step), -(-WIDTH // step))
    assert (found.values == 200).all()


@pytest.mark.parametrize(("step", "seen"), [(1, 0), (2, 100), (3, 100), (4, 150), (7, 150)])
def test_real_overviews_are_used(tmp_path: Path, step: int, seen: int) -> None:
    """They are told by their grey, and save reading the whole image."""
    sizes = [(HEIGHT, WIDTH), (HEIGHT // 2, WIDTH // 2), (HEIGHT // 4, WIDTH // 4)]
    pages = [np.full(size, grey, np.uint8) for size, grey in zip(sizes, (0, 100, 150), strict=True)]
    assert set(np.unique(reduced(tiff(tmp_path / "a.tif", pages), (1,), step).values)) == {seen}


def test_pixels_are_means_of_their_squares(tmp_path: Path) -> None:
    values = noise(3, 64, 96)
    path = write_raster(tmp_path / "a.tif", values)
    means = values[[2, 0]].reshape(2, 16, 4, 24, 4).mean(axis=(2, 4))
    assert np.abs(reduced(path, (3, 1), 4).values - means).max() <= 1
