"""The rasters that are measured: tiled, compressed GeoTIFFs, three bands of uint8, metres.

The scene is a texture of blobs of all sizes, repeated with shifts so that any size is written in seconds and
in little memory. The land is a window of the Blue Marble image, for the model trained on it.

``python -m bench.scenes scene|land FILE ROWS COLUMNS`` writes one, ``python -m bench.scenes differ MAP MAP``
counts the pixels in which two maps differ; both print a JSON object. Neither loads torch.
"""

import argparse
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio import Affine
from rasterio.windows import Window

from bench.world import write_world

TEXTURE = 1024
_STRIP = 512
_CORNER = (300, 2350)
"""Row and column of the Blue Marble where the window begins: Europe, Africa and the sea between."""
_PROFILE: dict[str, Any] = {
    "driver": "GTiff", "count": 3, "dtype": "uint8", "crs": "EPSG:32633",
    "transform": Affine(10, 0, 500_000, 0, -10, 5_200_000), "tiled": True, "blockxsize": 512, "blockysize": 512,
    "compress": "deflate", "zlevel": 1, "photometric": "RGB", "interleave": "pixel", "num_threads": "all_cpus",
}  # fmt: skip


def texture(seed: int = 0) -> NDArray[np.uint8]:
    """Blobs of 4 to 256 pixels in every band, (3, 1024, 1024), 1 to 255."""
    random = np.random.default_rng(seed)
    values = np.zeros((3, TEXTURE, TEXTURE))
    for size in (4, 16, 64, 256):
        coarse = random.normal(0, 1, (3, TEXTURE // size, TEXTURE // size))
        values += np.kron(coarse, np.ones((1, size, size)))
    return np.clip(128 + 32 * values, 1, 255).astype(np.uint8)


def write_scene(path: Path, height: int, width: int) -> Path:
    """Write a textured scene of any size."""
    tile = texture()
    random = np.random.default_rng(1)
    with rasterio.open(path, "w", height=height, width=width, **_PROFILE) as target:
        for row in range(0, height, _STRIP):
            rows = min(_STRIP, height - row)
            strip = np.roll(tile, random.integers(0, TEXTURE, 2), axis=(1, 2))[:, :rows]
            repeats = -(-width // TEXTURE)
            target.write(np.tile(strip, (1, 1, repeats))[:, :, :width], window=Window(0, row, width, rows))
    return path


def write_land(path: Path, height: int, width: int) -> Path:
    """Write a window of the Blue Marble, kept in the folder of `path`."""
    (world,) = write_world(path.parent, image_only=True)
    with rasterio.open(world) as source:
        values = source.read(window=Window(_CORNER[1], _CORNER[0], width, height))
    if values.shape[1:] != (height, width):
        raise ValueError(f"the image holds no window of {height} x {width} pixels from {_CORNER}")
    with rasterio.open(path, "w", height=height, width=width, **_PROFILE) as target:
        target.write(values)
    return path


def differing(one: Path, other: Path) -> int:
    """Pixels in which two maps of one size are not equal."""
    with rasterio.open(one) as first, rasterio.open(other) as second:
        return int((first.read(1) != second.read(1)).sum())


def main(arguments: Iterable[str] | None = None) -> None:
    """Write a raster or compare two maps."""
    parser = argparse.ArgumentParser(prog="python -m bench.scenes", description=__doc__)
    commands = parser.add_subparsers(dest="job", required=True)
    for name in ("scene", "land"):
        command = commands.add_parser(name)
        command.add_argument("file", type=Path)
        command.add_argument("size", type=int, nargs=2)
    commands.add_parser("differ").add_argument("maps", type=Path, nargs=2)
    options = parser.parse_args(None if arguments is None else list(arguments))
    if options.job == "differ":
        print(json.dumps({"differing": differing(*options.maps)}))
    else:
        write = write_land if options.job == "land" else write_scene
        print(json.dumps({"path": str(write(options.file, *options.size))}))


if __name__ == "__main__":
    main()
