"""Finished class maps: opening them, what is known about them beside their pixels, going through them in chunks."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fcn_batch.pipeline.core.conventions import holds_zarr
from fcn_batch.pipeline.core.errors import InputError, OptionError
from fcn_batch.pipeline.core.geometry import Size, Window, round_up
from fcn_batch.pipeline.core.georeference import GroundControl
from fcn_batch.pipeline.core.maps import ClassMap
from fcn_batch.pipeline.core.plan import Plan
from fcn_batch.pipeline.raster.ground import Ground, ground_of
from fcn_batch.pipeline.raster.mapfile import MapFile
from fcn_batch.pipeline.store.finished import FinishedMap
from fcn_batch.workflows.outputs.publishing import find_outputs

_REPORT = ".run.json"
_MAPS = (".classes.zarr", ".classes.tif")
_MOST_REPORT_BYTES = 2**28
_SIDE = 2048
"""Rows and columns of a chunk, where the storage blocks let us choose."""
_LARGEST_CHUNK = 2**24
"""Pixels of a chunk, however large the storage blocks: labels take 4 bytes each."""


@dataclass(frozen=True, slots=True)
class Found:
    """A map and what is known about it beside its pixels."""

    path: Path
    source: ClassMap
    report: dict[str, Any] | None = None
    """Of the run that made it."""
    plan: Plan | None = None
    """Of the same run."""
    cleaned: tuple[str, ...] = ()
    """What was done to the map on its way here."""

    @property
    def name(self) -> str:
        """What to call the map: the file's name without its endings."""
        return self.path.name.removesuffix(self.path.suffix).removesuffix(".classes")

    @property
    def ground(self) -> Ground | None:
        """Scale and direction of north, as far as they are known."""
        microns = None if self.plan is None else self.plan.input.microns
        return ground_of(self.source.georeference, self.source.size, microns)


def run_in(path: Path) -> Path:
    """The report of the only run in a folder; what is no folder, or is a store, itself. InputError for several."""
    if not path.is_dir() or path.suffix == ".zarr" or holds_zarr(path):
        return path
    outputs = find_outputs(path)
    return outputs.folder / outputs.report


def find_map(path: Path) -> Found:
    """The map at `path`, or of the report there, or of the only run in that folder, with the report if it is there.

    InputError when there is no map.
    """
    path = run_in(path)
    if path.name.endswith(_REPORT):
        report, plan = _read_report(path)
        stem = path.name.removesuffix(_REPORT)
        maps = [path.with_name(f"{stem}{ending}") for ending in _MAPS]
        for one in maps:
            if one.exists():
                return Found(one, open_map(one), report, plan)
        raise InputError(
            "map-missing",
            "{path}: neither {store} nor {geotiff} is beside it; give the map itself",
            path=path,
            store=maps[0].name,
            geotiff=maps[1].name,
        )
    source = open_map(path)
    for ending in _MAPS:
        report_path = path.with_name(path.name.removesuffix(ending) + _REPORT)
        if path.name.endswith(ending) and report_path.is_file():
            try:
                report, plan = _read_report(report_path)
            except InputError:
                break  # the map speaks for itself
            if plan.input.size == source.size:
                return Found(path, source, report, plan)
    return Found(path, source)


def _read_report(path: Path) -> tuple[dict[str, Any], Plan]:
    """A run's report and its plan; InputError when it cannot be read as one."""
    try:
        if path.stat().st_size > _MOST_REPORT_BYTES:
            raise ValueError(f"{path.stat().st_size} bytes are too many for a report")
        report = json.loads(path.read_bytes())
        return report, Plan.model_validate(report["plan"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        why = f"{type(error).__name__}: {error}".splitlines()[0]
        raise InputError(
            "report-invalid", "{path}: not the report of a run ({why}); give the map itself", path=path, why=why
        ) from error


def on_grid_of_input(found: Found, source: ClassMap) -> ClassMap:
    """The map `source` of a run with the pixels that its input had before it was resampled: those of its finest level.

    OptionError without a run's plan, InputError when the input is not there any more.
    """
    from fcn_batch.pipeline.raster.alignment import Grid, Regridded
    from fcn_batch.workflows.inputs.sources import finest_grid

    if found.plan is None:
        raise OptionError(
            "run-unknown",
            "--grid input: nothing says which input {path} was made from; leave the option out",
            path=found.path,
        )
    grid, made = finest_grid(found.plan.input), source.size
    if found.plan.input.ground is not None:  # a map has no transform then, or that of pixels of another level
        factors = made.height / grid.size.height, made.width / grid.size.width
        grid = Grid(grid.size, source.georeference.coarser(*factors))
    return Regridded(source, grid)


def ground_control(found: Found) -> GroundControl | None:
    """The ground control points of the run's input in pixels of the map, whose level may be another one."""
    if found.plan is None or found.plan.input.ground is None:
        return None
    made, size = found.plan.input.size, found.source.size
    return found.plan.input.ground.coarser(made.height / size.height, made.width / size.width)


def open_map(path: Path) -> ClassMap:
    """The class map at `path`: a zarr store of ours, or a raster of one band. InputError when it is neither."""
    return FinishedMap(path) if path.is_dir() else MapFile(path)


def chunk_windows(size: Size, block: tuple[int, int]) -> Iterator[Window]:
    """Windows of whole storage blocks (rows, cols), about _SIDE x _SIDE pixels, row by row.

    >>> [w.height for w in chunk_windows(Size(5000, 4000), (1, 4000))]
    [1048, 1048, 1048, 1048, 808]
    >>> len(list(chunk_windows(Size(5000, 4000), (512, 512))))
    6
    """
    width = min(size.width, round_up(_SIDE, block[1]))
    height = max(block[0], _SIDE**2 // width // block[0] * block[0])
    height = max(1, min(height, size.height, _LARGEST_CHUNK // width))
    for row in range(0, size.height, height):
        for col in range(0, size.width, width):
            yield Window(row, col, min(height, size.height - row), min(width, size.width - col))


def cache_mb(block: tuple[int, int]) -> int:
    """A size of GDAL's cache in which a storage block of the map stays while parts of it are read."""
    return 256 + 4 * block[0] * block[1] // 2**20  # ids have up to 4 bytes
