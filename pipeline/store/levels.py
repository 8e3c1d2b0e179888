"""A pyramid of class maps in one zarr store: a group for each level, each of them a complete map of its own.

Beside `classstore.py`.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import zarr

from fcn_batch.pipeline.core.conventions import joined
from fcn_batch.pipeline.core.durable import sync
from fcn_batch.pipeline.core.errors import InputError
from fcn_batch.pipeline.store.classstore import ARRAY, ClassStore, Layout, consolidate
from fcn_batch.pipeline.store.opening import UNSAFE, open_array, open_group, why


def group_attributes(path: Path) -> dict[str, Any]:
    """The attributes of the group at `path`; InputError when there is none."""
    try:
        return open_group(path).attrs.asdict()
    except UNSAFE as error:
        raise InputError(
            "map-not-ours", "{path}: not a zarr group ({why}); give NAME.classes.zarr", path=path, why=why(error)
        ) from error


def writing_unit(path: Path) -> tuple[int, int | None]:
    """Side of what is written at once in the finished map at `path`, and of the chunks in it if that is a shard."""
    array = open_array(path / ARRAY)
    inner = int(array.chunks[0])
    return (int(array.shards[0]), inner) if array.shards else (inner, None)


def create_pyramid(path: Path, attributes: Mapping[str, Any]) -> None:
    """Make the store, still without levels; `attributes` are the root's."""
    zarr.create_group(path, zarr_format=3, attributes=dict(attributes))


def create_level(path: Path, name: str, layout: Layout, attributes: Mapping[str, Any]) -> ClassStore:
    """Make the empty level `name` of the pyramid at `path`; group and array say `attributes` beside their own."""
    store = ClassStore.create(path / name, layout)
    group = zarr.open_group(store.path, mode="r+")
    for node in (group, group[ARRAY]):
        node.update_attributes(joined(node.attrs.asdict(), attributes))
    return store


def finish_pyramid(path: Path, levels: Sequence[ClassStore]) -> None:
    """Gather the metadata of each level and of the whole, the last thing done, and bring it to the disk."""
    for level in levels:
        level.consolidate()
    consolidate(path)
    sync([path / "zarr.json", path])
