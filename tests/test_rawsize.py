"""Files of raw pixels that were cut off are refused: GDAL would read zeros beyond their ends."""

import gzip
import shutil
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from rasterio.errors import RasterioIOError

from fcn_batch.pipeline.core.errors import InputError
from fcn_batch.pipeline.core.geometry import Window
from fcn_batch.pipeline.raster.gdal import accept_pixel_space
from fcn_batch.pipeline.raster.rasterfile import RasterioSource, inspect
from tests.errors import refuses
from tests.rasters import noise, write_raster

PIXELS = noise(3, 70, 90)
KINDS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "envi bsq": ("x", "x", {"driver": "ENVI", "interleave": "bsq"}),
    "envi bil": ("x", "x", {"driver": "ENVI", "interleave": "bil"}),
    "envi bip": ("x", "x", {"driver": "ENVI", "interleave": "bip"}),
    "hfa": ("x.img", "x.img", {"driver": "HFA"}),
    "hfa compressed": ("x.img", "x.img", {"driver": "HFA", "COMPRESSED": "YES"}),
    "hfa spilt": ("x.img", "x.ige", {"driver": "HFA", "USE_SPILL": "YES"}),
    "hfa of bits": ("x.img", "x.img", {"driver": "HFA", "NBITS": "1"}),
}
"""The raster, its file of pixels, how it is written."""


def made(folder: Path, kind: str) -> tuple[Path, Path]:
    name, pixels, profile = KINDS[kind]
    write_raster(folder / name, PIXELS % 2 if "NBITS" in profile else PIXELS, **profile)
    return folder / name, folder / pixels


def read(path: Path) -> np.ndarray[Any, Any]:
    return RasterioSource(path, inspect(path)).read(Window(0, 0, 70, 90), (1, 2, 3)).values


@pytest.mark.parametrize("kind", KINDS)
def test_whole_files_are_read(tmp_path: Path, kind: str) -> None:
    path, _ = made(tmp_path, kind)
    assert np.array_equal(read(path), PIXELS % 2 if "bits" in kind else PIXELS)


@pytest.mark.parametrize("kind", KINDS)
def test_files_cut_off_anywhere_are_refused(tmp_path: Path, kind: str) -> None:
    path, pixels = made(tmp_path, kind)
    whole = pixels.read_bytes()
    for left in (len(whole) - 1, len(whole) - 60, len(whole) // 2, len(whole) // 9, 10):
        pixels.write_bytes(whole[:left])
        with pytest.raises(InputError):
            inspect(path)


def test_what_is_missing_is_told(tmp_path: Path) -> None:
    path, pixels = made(tmp_path, "envi bip")
    pixels.write_bytes(pixels.read_bytes()[:-7])
    with refuses("file-cut-off", path=pixels, length=70 * 90 * 3 - 7, end=70 * 90 * 3):
        inspect(path)
    path, pixels = made(tmp_path, "hfa spilt")
    pixels.unlink()
    with refuses("file-cut-off", path=pixels, length=0):
        inspect(path)


def test_the_header_of_an_envi_file_counts(tmp_path: Path) -> None:
    path, pixels = made(tmp_path, "envi bsq")
    header = path.with_suffix(".hdr")
    header.write_text(header.read_text().replace("header offset = 0", "header offset = 100"))
    with refuses("file-cut-off"):
        inspect(path)
    pixels.write_bytes(bytes(100) + pixels.read_bytes())
    assert np.array_equal(read(path), PIXELS)


def test_envi_files_that_are_compressed_as_a_whole_are_refused(tmp_path: Path) -> None:
    path, pixels = made(tmp_path, "envi bsq")
    pixels.write_bytes(gzip.compress(pixels.read_bytes()))
    with path.with_suffix(".hdr").open("a") as header:
        header.write("file compression = 1\n")
    with refuses("raw-file-unsupported", path=path):
        inspect(path)


def test_an_hfa_file_whose_pixels_are_elsewhere_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    path, pixels = made(tmp_path / "a", "hfa spilt")
    shutil.move(pixels, tmp_path / "x.ige")
    data = path.read_bytes()
    assert data.count(b"x.ige\0") == len(PIXELS)
    for at in [at for at in range(len(data)) if data[at : at + 6] == b"x.ige\0"]:
        data = renamed(data, at)
    path.write_bytes(data)
    with accept_pixel_space(), rasterio.open(path, driver="HFA") as dataset:
        try:
            followed = dataset.read()
        except RasterioIOError:  # as GDAL of rasterio 1.5 has it
            followed = PIXELS
        assert np.array_equal(followed, PIXELS)  # older GDAL follows it
    with refuses("raster-unsafe", path=path):
        inspect(path)


def renamed(data: bytes, at: int) -> bytes:
    """The HFA file with the name at `at` changed to ../x.ige, in a copy at the end of what it stands in."""
    kinds = [one for one in range(len(data)) if data[one : one + 17] == b"ImgExternalRaster"]
    pairs = {kind - 72: struct.unpack_from("<II", data, kind - 72) for kind in kinds}
    entry = next(offset for offset, (start, size) in pairs.items() if start < at < start + size)
    start, size = pairs[entry]
    letters, _ = struct.unpack_from("<II", data, at - 8)
    told = data[start : at - 8] + struct.pack("<II", letters + 3, 8) + b"../" + data[at : start + size]
    out = bytearray(data + told)
    struct.pack_into("<II", out, entry, len(data), len(told))
    return bytes(out)


def test_an_hfa_file_without_end_is_refused(tmp_path: Path) -> None:
    path, _ = made(tmp_path, "hfa")
    data = bytearray(path.read_bytes())
    (head,) = struct.unpack_from("<I", data, 16)
    (root,) = struct.unpack_from("<I", data, head + 8)
    (child,) = struct.unpack_from("<I", data, root + 12)
    struct.pack_into("<I", data, child + 12, child)  # its own child
    path.write_bytes(data)
    with refuses("raw-file-unsupported", path=path):
        inspect(path)
