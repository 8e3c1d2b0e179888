"""Runs of the real program on small rasters, cut into many blocks."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from click.testing import CliRunner, Result
from numpy.typing import NDArray
from rasterio.transform import Affine

from fcn_batch.commands.main import main
from fcn_batch.pipeline.core.geometry import Window
from fcn_batch.pipeline.raster.gdal import accept_pixel_space
from fcn_batch.pipeline.store.classstore import ClassStore
from tests.patience import PATIENCE_S
from tests.rasters import noise, write_raster

BLOCK = 128
"""Side of a block of a model whose halo is at most this."""
DEGREES = Affine(1 / 16, 0, -20, 0, -1 / 16, 40)
"""Pixels of 7 km, as the tiny model was made for: no note about the resolution."""
_DRIVER = """
import fcn_batch.workflows.blocks.cut as cut
import fcn_batch.workflows.plan as plan
from fcn_batch.commands.main import main

cut.CHUNK, cut._STRIP_PIXELS, cut._LANE, plan.available_cpus = {chunk}, {{"cpu": 2**13}}, {chunk}, lambda: 1
cut._HALOS_PER_SEGMENT = {halos}
if __name__ == "__main__":
    main()
"""


def small_blocks(monkeypatch: pytest.MonkeyPatch, chunk: int = BLOCK) -> None:
    """Blocks of one chunk of `chunk` pixels, small strips, one thread, in this process and in the workers it starts."""
    monkeypatch.setattr("fcn_batch.workflows.blocks.cut.CHUNK", chunk)
    monkeypatch.setattr("fcn_batch.workflows.blocks.cut._LANE", chunk)
    monkeypatch.setattr("fcn_batch.workflows.blocks.cut._STRIP_PIXELS", {"cpu": 2**13})
    monkeypatch.setattr("fcn_batch.workflows.plan.available_cpus", lambda: 1)  # more only wait for each other here


def small_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    """Segments of hardly more than a halo, where there are several processes to keep busy."""
    monkeypatch.setattr("fcn_batch.workflows.blocks.cut._HALOS_PER_SEGMENT", 1)


def small_block_program(folder: Path, chunk: int = BLOCK, halos: int = 16) -> list[str]:
    """The start of a command line: fcn-batch with small blocks, as a program of its own.

    Segments are at least `halos` halos high.
    """
    script = folder / "fcn_batch_small_blocks.py"
    script.write_text(_DRIVER.format(chunk=chunk, halos=halos))
    return [sys.executable, str(script)]


def run_program(command: Sequence[object]) -> "subprocess.CompletedProcess[str]":
    """Run to the end, with what it printed."""
    return subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, check=False, timeout=PATIENCE_S
    )


def fcn_batch(*arguments: object) -> Result:
    """`fcn-batch ARGUMENTS` in this process."""
    return CliRunner().invoke(main, [str(a) for a in arguments])


def segmented(*arguments: object) -> Result:
    """`fcn-batch segment ARGUMENTS`, which must end well."""
    result = fcn_batch("segment", *arguments)
    assert result.exit_code == 0, result.stderr
    return result


def scene(path: Path, height: int = 300, width: int = 330, **profile: Any) -> Path:
    """A raster of smooth noise, three bands, in degrees."""
    coarse = noise(3, height // 8 + 1, width // 8 + 1, seed=3)
    values = np.repeat(np.repeat(coarse, 8, axis=1), 8, axis=2)[:, :height, :width]
    values = np.clip(values + noise(3, height, width) / 4, 1, 255).astype(np.uint8)
    options = {"crs": "EPSG:4326", "transform": DEGREES, "photometric": "RGB", **profile}
    return write_raster(path, values, **options)


def class_map(folder: Path, stem: str) -> NDArray[np.uint8]:
    """The map in the zarr store."""
    store = ClassStore(folder / f"{stem}.classes.zarr")
    return store.read(Window(0, 0, store.size.height, store.size.width))


def class_map_of_cog(folder: Path, stem: str) -> NDArray[Any]:
    """The map in the GeoTIFF."""
    with accept_pixel_space(), rasterio.open(folder / f"{stem}.classes.tif") as dataset:
        values: NDArray[Any] = dataset.read(1)
        return values


def output_bytes(folder: Path, stem: str) -> dict[str, bytes]:
    """Everything a run made but its report and item (which hold times): name and content of each file."""
    store = folder / f"{stem}.classes.zarr"
    files = [path for path in store.rglob("*") if path.is_file()]
    files += [folder / f"{stem}.classes.{ending}" for ending in ("tif", "tif.aux.xml", "qml")]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def tree(folder: Path) -> dict[str, tuple[int, int, int]]:
    """Every file below a folder with inode, time of change and size: equal means untouched."""
    found = {}
    for path in sorted(folder.rglob("*")):
        status = path.lstat()
        found[str(path.relative_to(folder))] = (status.st_ino, status.st_mtime_ns, status.st_size)
    return found
