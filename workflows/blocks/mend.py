"""The metadata of a store in a staging folder, made again where a disk or somebody has changed them."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

_GATHERED = "consolidated_metadata"


def mended(path: Path, create: Callable[[Path], None]) -> bool:
    """Put the store at `path` into a new one of `create`, unless it is as that makes it; True when it was not.

    Chunks of pixels come along, as they are: no receipt speaks for metadata, but one does for every block. Whenever
    this is interrupted, what is left has other metadata, no chunks, or no store: blocks are lost, nothing is believed.
    """
    fresh = path.with_name(f"{path.name}.new")
    shutil.rmtree(fresh, ignore_errors=True)
    create(fresh)
    files = [file.relative_to(fresh) for file in fresh.rglob("*") if file.is_file()]
    linked = path.is_symlink() or any(part.is_symlink() for file in files for part in (path / file, path / file.parent))
    if not linked and all(_content(path / file) == _content(fresh / file) for file in files):
        shutil.rmtree(fresh)
        return False
    for array in (file.parent for file in fresh.glob("*/zarr.json")):
        chunks = path / array.name / "c"
        if not linked and chunks.is_dir() and not chunks.is_symlink() and not (array / "c").exists():
            chunks.rename(array / "c")
    if path.is_symlink() or not path.is_dir():
        path.unlink()
    else:
        shutil.rmtree(path)
    fresh.rename(path)
    return True


def _content(file: Path) -> bytes | str | None:
    """What is in a file, of metadata without what is gathered from elsewhere; None when they cannot be read."""
    try:
        data = file.read_bytes()
        if file.name != "zarr.json":
            return data
        return json.dumps({key: value for key, value in json.loads(data).items() if key != _GATHERED})
    except (OSError, ValueError, AttributeError, RecursionError):
        return None
