"""Rasters that come into a folder, each once it lies still: for folders that other programs write into."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

from fcn_batch.pipeline.core.errors import InputError
from fcn_batch.workflows.console.signals import Stop
from fcn_batch.workflows.inputs.many import looks_like_raster

LOOK_EVERY_S = 5.0
_NAP_S = 0.2

_State = tuple[int, int]
"""Size and time of the last change."""


def arrivals(folder: Path, stop: Stop, note: Callable[[str], None]) -> Iterator[Path]:
    """Each raster of `folder` that was the same at two looks, and again whenever it has changed since; until `stop`.

    Hidden files, empty ones and folders are left alone. It looks, and asks no service to be told: that works on every
    file system, also when another machine writes. InputError when there is no such folder at the beginning; when it
    cannot be read later, it is waited for.
    """
    try:
        before = _states(folder)
    except OSError as error:
        raise InputError(
            "input-unreadable",
            "--watch {path}: cannot be read ({reason}); give a folder that exists",
            path=folder,
            reason=error.strerror,
        ) from error
    note(f"watching {folder}: a raster is begun once it has not changed for {LOOK_EVERY_S:g} s; Ctrl-C ends this")
    taken: dict[Path, _State] = {}
    lost = False
    while _waited(stop):
        try:
            now = _states(folder)
        except OSError as error:
            if not lost:
                note(f"{folder}: cannot be read ({error.strerror}); it is waited for")
            lost = True
            continue
        lost = False
        for path, state in sorted(now.items()):
            if before.get(path) == state != taken.get(path) and not stop.requested:
                taken[path] = state
                yield path
        before = now


def _states(folder: Path) -> dict[Path, _State]:
    found: dict[Path, _State] = {}
    for path in folder.iterdir():
        if not looks_like_raster(path):
            continue
        try:
            status = path.stat()
        except FileNotFoundError:  # taken away just now, or a link to what is not there yet
            continue
        if path.is_file() and status.st_size:
            found[path] = status.st_size, status.st_mtime_ns
    return found


def _waited(stop: Stop) -> bool:
    """After the time between two looks; False when there is to be none."""
    until = time.monotonic() + LOOK_EVERY_S
    while not stop.requested:
        if time.monotonic() >= until:
            return True
        time.sleep(_NAP_S)
    return False
