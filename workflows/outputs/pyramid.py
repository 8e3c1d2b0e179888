"""Smaller and smaller versions of a class map in one store, made chunk by chunk.

A task reads one window of the level before, halves it, and writes whole chunks of the next level; no two tasks have a
chunk in common. Memory is that of one task for each thread, whatever the size of the map.
"""

import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

from fcn_batch.pipeline.core.claims import only_one
from fcn_batch.pipeline.core.classes import Legend
from fcn_batch.pipeline.core.conventions import (
    Level,
    joined,
    microns_of,
    multiscales,
    ome_image,
    proj_attributes,
    spatial_attributes,
)
from fcn_batch.pipeline.core.durable import sync
from fcn_batch.pipeline.core.errors import OutputError
from fcn_batch.pipeline.core.geometry import Window
from fcn_batch.pipeline.core.maps import ClassMap, Ids
from fcn_batch.pipeline.core.pyramid import halved, levels_of
from fcn_batch.pipeline.core.tiling import BlockGrid
from fcn_batch.pipeline.raster.crs import authority_code
from fcn_batch.pipeline.store.classstore import ARRAY, ClassStore, Layout
from fcn_batch.pipeline.store.finished import FinishedMap
from fcn_batch.pipeline.store.levels import create_level, create_pyramid, finish_pyramid, group_attributes, writing_unit
from fcn_batch.workflows.console.progress import RunProgress
from fcn_batch.workflows.outputs.stitch import located

_CHUNK = 2048
"""Rows and columns of a chunk, of maps whose own blocks are not those of a store."""
_MOST_THREADS = 8
_OF_A_MAP = ("Conventions", "title", "ome")
"""Root attributes that each store has of its own; the others say how the map was made."""
_IN_PIXELS = ("fcn:gcps", "fcn:gcps_crs")
"""Root attributes that speak of the map's own rows and columns, so of no coarser level."""


@dataclass(frozen=True, slots=True)
class _Making:
    """What a pyramid is made of."""

    source: ClassMap
    legend: Legend
    attributes: Mapping[str, Any]
    """Of the root: how the map was made."""
    microns: float | None
    """Micrometres a pixel."""
    ome: bool
    """True for a store that viewers of slides open."""
    unit: tuple[int, int | None]
    """Rows, and columns, of what is written at once: of a chunk, or of a shard and of the chunks in it."""


def write_pyramid(source: Path, target: Path, progress: RunProgress, *, overwrite: bool = False) -> None:
    """Write the pyramid store `target` of the class map in the store `source`; level 0 is the map itself.

    Viewers of slides open it too when the map's scale in micrometres is known. The result appears complete or not at
    all. InputError when `source` is no store of ours or damaged; OutputError when `target` exists (and not
    `overwrite`) or cannot be written.
    """
    opened = FinishedMap(source)
    found = group_attributes(source)
    provenance = {name: value for name, value in found.items() if name not in _OF_A_MAP}
    microns = microns_of(found)
    making = _Making(opened, opened.legend, provenance, microns, ome=microns is not None, unit=writing_unit(source))
    _write(making, target, progress, overwrite=overwrite)


def write_ome_zarr(
    source: ClassMap, legend: Legend, target: Path, microns: float | None, progress: RunProgress, *, overwrite: bool
) -> None:
    """Write any class map, with `legend` for its classes, as a label image with its pyramid: OME-Zarr (NGFF 0.5).

    `microns` is the side of a pixel in micrometres; without it lengths are in pixels. Errors as of `write_pyramid`.
    """
    _write(_Making(source, legend, {}, microns, ome=True, unit=(_CHUNK, None)), target, progress, overwrite=overwrite)


def _write(making: _Making, target: Path, progress: RunProgress, *, overwrite: bool) -> None:
    levels = levels_of(making.source.size, making.source.georeference)
    with _staged(target, getattr(making.source, "path", None), overwrite=overwrite) as staging:
        create_pyramid(staging, _root_attributes(making, levels))
        stores = [create_level(staging, level.name, _layout(making, level), _placed(level)) for level in levels]
        progress.start(target.name, sum(level.size.pixels for level in levels), 0)
        try:
            _write_chunks(stores[0], making.source.read, progress.advance)
            for finer, store in pairwise(stores):
                _write_chunks(store, partial(halved, finer.read, finer.size), progress.advance)
        finally:
            progress.stop()
        finish_pyramid(staging, stores)


def _write_chunks(store: ClassStore, make: Callable[[Window], Ids], advance: Callable[[int], None]) -> None:
    """Write what `make` returns for each chunk of `store`, several at a time; raise the first error of all."""

    def write(window: Window) -> int:
        store.write(window, make(window))
        return window.pixels

    grid = BlockGrid(store.size, store.chunk, store.chunk)
    with ThreadPoolExecutor(min(_MOST_THREADS, os.cpu_count() or 1)) as pool:  # at an error the rest is not begun
        for pixels in pool.map(write, (grid[index] for index in range(len(grid)))):
            advance(pixels)


def _root_attributes(making: _Making, levels: list[Level]) -> dict[str, Any]:
    blocks = [{"Conventions": "CF-1.11", "title": "class map", **making.attributes}, multiscales(levels)]
    if making.ome:
        datasets = [(f"{level.name}/{ARRAY}", level.factor) for level in levels]
        blocks.append(ome_image(ARRAY, datasets, making.microns, making.legend))
    return joined(*blocks, _placed(levels[0]))


def _placed(level: Level) -> dict[str, Any]:
    """The conventions that say where a level lies."""
    place = level.georeference
    return joined(spatial_attributes(place, level.size), proj_attributes(place.crs_wkt, authority_code(place)))


def _layout(making: _Making, level: Level) -> Layout:
    skipped = () if level.factor == 1 else _IN_PIXELS
    told = {name: value for name, value in making.attributes.items() if name not in skipped}
    return located(level.size, level.georeference, making.legend, making.unit, told)


@contextmanager
def _staged(target: Path, source: Path | None, *, overwrite: bool) -> Iterator[Path]:
    """A folder beside `target` that takes its name when all went well, and is removed when not."""
    if source is not None and target.resolve() == source.resolve():
        raise OutputError("output-is-map", "{path}: is the map itself; give the output another name", path=target)
    staging, old = (target.with_name(f".{target.name}.{ending}") for ending in ("partial", "old"))
    try:
        with only_one(target.with_name(f".{target.name}.lock")):
            _put_back(target, old)
            if (target.exists() or target.is_symlink()) and not overwrite:
                raise OutputError("output-exists", "{path} exists already; give --overwrite to replace it", path=target)
            if target.is_dir() and not (target / "zarr.json").is_file():
                raise OutputError(
                    "output-exists", "{path} is a folder that is no zarr store; give another name", path=target
                )
            shutil.rmtree(staging, ignore_errors=True)  # of a run that was killed
            try:
                yield staging
                if target.is_dir() and not target.is_symlink():
                    target.rename(old)
                elif target.exists() or target.is_symlink():
                    target.unlink()
                staging.replace(target)
                sync([target.parent])
            finally:
                shutil.rmtree(staging, ignore_errors=True)
                _put_back(target, old)
    except OSError as error:
        raise OutputError(
            "output-unwritable",
            "{path} cannot be written: {why}; check the free space and your rights in {folder}",
            path=target,
            why=error,
            folder=target.parent,
        ) from error


def _put_back(target: Path, old: Path) -> None:
    """Delete the store that was replaced, or give it its name again when nothing came in its place."""
    if target.exists():
        shutil.rmtree(old, ignore_errors=True)
    elif old.exists():
        old.rename(target)
