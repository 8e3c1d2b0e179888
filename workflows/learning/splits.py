"""What a split means for one file: the windows of it that are for training, validation or the test."""

from functools import lru_cache
from pathlib import Path, PurePosixPath

import numpy as np

from fcn_batch.pipeline.core.geometry import Window
from fcn_batch.pipeline.core.location import resolve
from fcn_batch.pipeline.core.splits import (
    BlockSplit,
    FileSplit,
    RegionSplit,
    Split,
    StripSplit,
    Use,
    joined,
    read_list,
)
from fcn_batch.pipeline.raster.labels import Grid


def regions(split: Split, name: str, grid: Grid, folder: Path, use: Use) -> list[Window]:
    """Disjoint windows of the file `name`, with pixels on `grid`, that are for `use`; none when it has none.

    Windows of different uses share no pixel. Neighbouring blocks and cells are joined, so training windows may be
    larger than one of them. `folder` is where the files that the split names are looked for.
    TrainingError when a list or a file of polygons is missing or wrong.
    """
    if isinstance(split, FileSplit):
        whole = Window(0, 0, grid.size.height, grid.size.width)
        return [whole] if _file_use(split, name, folder) == use else []
    if isinstance(split, StripSplit):
        return split.regions(grid.size, use)
    if isinstance(split, BlockSplit):
        return split.regions(name, grid.size, use)
    return _cells(split, grid, folder)[use]


def _file_use(split: FileSplit, name: str, folder: Path) -> Use | None:
    """The use of a whole file; a list may call it by its name, its last part, or that without ending."""
    if split.list is None:
        return split.use_of(name)
    path = resolve(split.list, folder)
    uses, last = _listed(path, path.stat().st_mtime_ns), PurePosixPath(name)
    return next((uses[n] for n in (name, last.name, last.stem) if n in uses), None)


@lru_cache(maxsize=4)
def _listed(path: Path, changed: int) -> dict[str, Use]:  # noqa: ARG001 (a list that has changed is read again)
    return read_list(path)


@lru_cache(maxsize=64)
def _cells(split: RegionSplit, grid: Grid, folder: Path) -> dict[Use, list[Window]]:
    """Windows of the cells of each use."""
    from fcn_batch.pipeline.raster.vectors import Polygons

    size, cell = grid.size, split.cell
    shape = -(-size.height // cell), -(-size.width // cell)
    windows = [Window(r * cell, c * cell, cell, cell).clipped(size) for r, c in np.ndindex(shape)]
    centred, touched = {}, np.zeros(shape, np.bool_)
    for use, file in (("val", split.val), ("test", split.test)):
        inside, shared = Polygons.open(resolve(file, folder), grid).cells(windows)
        centred[use] = inside.reshape(shape)
        touched |= shared.reshape(shape)
    wanted = {
        "train": ~touched,
        "val": centred["val"] & ~centred["test"],
        "test": centred["test"] & ~centred["val"],
    }
    return {use: joined(wanted[use], cell, size) for use in ("train", "val", "test")}
