"""What a loss of power could take: the calls of a run, followed to see what had reached the disk before each promise.

A file's bytes are safe after an fsync of the file, its name after an fsync of the folder that holds it.
"""

import re
from pathlib import PurePath

from tests.faults.job import CHUNK, EMPTY, SIDE, Task

CALLS = ("openat", "write", "pwrite64", "ftruncate", "fsync", "rename", "link", "unlink", "mkdir")
_DESCRIPTOR = re.compile(r"^\d+<([^>]*)>")
_PATH = re.compile(r'"([^"]*)"')


class Disk:
    """What is safe below the folder `root`, which holds `files` at first, call by call."""

    def __init__(self, root: str, files: set[str]) -> None:
        self._root = root
        self.unsafe_bytes: set[str] = set()
        self.unsafe_names: set[str] = set()
        self.files = set(files)

    def call(self, name: str, rest: str) -> None:
        """Follow a call."""
        if " = -1 " in rest:
            return
        paths = _PATH.findall(rest)
        if descriptor := _DESCRIPTOR.match(rest):
            self._by_descriptor(name, descriptor[1].removesuffix(" (deleted)"))
        elif name == "openat" and "O_CREAT" in rest:
            self._named(paths[0])
        elif name in ("mkdir", "link"):
            self._named(paths[-1], like=paths[0])
        elif name == "unlink":
            self._forget(paths[0])
        elif name == "rename":
            self._renamed(*paths)

    def _by_descriptor(self, name: str, path: str) -> None:
        if name != "fsync":
            self.unsafe_bytes.add(path)
            return
        self.unsafe_bytes.discard(path)
        self.unsafe_names -= {one for one in self.unsafe_names if str(PurePath(one).parent) == path}

    def _named(self, path: str, like: str = "") -> None:
        if path not in self.files and path.startswith(self._root):
            self.files.add(path)
            self.unsafe_names.add(path)
            if like in self.unsafe_bytes:
                self.unsafe_bytes.add(path)

    def _forget(self, path: str) -> None:
        for known in (self.files, self.unsafe_bytes, self.unsafe_names):
            known.discard(path)

    def _renamed(self, old: str, new: str) -> None:
        for known in (self.files, self.unsafe_bytes, self.unsafe_names):
            moved = {path for path in known if _within(path, old)}
            known.difference_update(moved)
            known.update(new + path[len(old) :] for path in moved)
        self.files.add(new)
        self.unsafe_names.add(new)

    def lost(self, path: str) -> list[str]:
        """What a loss of power could take of a file, or of a folder with all in it; `path` if it is not there."""
        if path not in self.files:
            return [path]
        return sorted(one for one in self.unsafe_bytes | self.unsafe_names if _within(one, path))


def _within(path: str, folder: str) -> bool:
    return path == folder or path.startswith(f"{folder}/")


def complaints(calls: list[tuple[int, str, str]], task: Task, files: set[str]) -> list[str]:
    """Promises made too early: a receipt before its block, a report before the outputs. `files`: there at first."""
    folder, staging = task.folder, str(task.outputs.staging)
    disk, promises = Disk(folder, files), 0
    found: list[str] = []
    made = task.outputs.names(confidence=task.confidence, pyramid=False)
    for _, name, rest in calls:
        renamed = _PATH.findall(rest) if name == "rename" and " = -1 " not in rest else ["", ""]
        old, new = renamed
        lost: list[str] | None = None
        if new.startswith(f"{staging}/receipts/"):
            lost = _of_block(disk, task, int(PurePath(new).stem))
        elif new in (f"{staging}/{task.outputs.report}", f"{folder}/{task.outputs.report}"):
            lost = [path for one in made for path in disk.lost(f"{PurePath(new).parent}/{one}")]
        if lost is not None:
            promises += 1
            found += [f"not on the disk before {new}: {path}" for path in [*lost, *disk.unsafe_bytes & {old}][:1]]
        disk.call(name, rest)
    return [line.replace(f"{folder}/", "") for line in found] if promises else ["no promise was seen"]


def _of_block(disk: Disk, task: Task, block: int) -> list[str]:
    """What a block needs that a loss of power could take: its chunks, the folders above, what describes the store."""
    row, col = divmod(block, SIDE // CHUNK)
    outputs = task.outputs
    arrays = [f"{outputs.store}/classes"]
    if task.confidence:
        arrays += [f"{outputs.confidence}/{name}" for name in ("confidence", "margin")]
    stores = [f"{outputs.staging}/{array}" for array in arrays]
    needed = [f"{store}/c/{row}/{col}" for store in stores if block not in EMPTY]
    needed += [f"{store}/zarr.json" for store in stores] + [f"{PurePath(store).parent}/zarr.json" for store in stores]
    above = {str(path) for one in needed for path in PurePath(one).parents if path.is_relative_to(outputs.staging)}
    missing = [path for path in needed if path not in disk.files]
    unsafe = disk.unsafe_bytes | disk.unsafe_names
    return missing + sorted(unsafe.intersection((*needed, *above)) - {str(outputs.staging)})
