"""Small disks, in memory, and runs on them."""

import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from tests.faults.bench import Bench
from tests.faults.job import Task
from tests.faults.probing import Run, undisturbed
from tests.faults.states import falsely_done, finished_blocks, wrong

_NOBODY = 65534
"""A user without rights: the system's administrator may write anywhere."""
_PARTS = (0.05, 0.2, 0.35, 0.5, 0.65, 0.75, 0.85, 0.95)
"""Of what a run needs at most, at the moment when it is largest."""


MOUNTING = ("full_disk", "no_more_files", "read_only_disk")
"""Checks that need a disk of their own."""


def can_mount(place: Path) -> str:
    """Why no disk can be mounted at this new folder; empty when one can."""
    try:
        with small_disk(place, 16):
            return ""
    except OSError as error:
        return str(error)


@contextmanager
def small_disk(place: Path, kilobytes: int) -> Iterator[Path]:
    """A disk of that size at the new folder `place`; OSError when that is not permitted."""
    place.mkdir()
    _mount(place, f"size={kilobytes}k")
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)
        place.rmdir()


def _mount(place: Path, options: str) -> None:
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise OSError("mount is not installed") from error
    if done.returncode:
        raise OSError(f"mounting a disk is not permitted here: {done.stderr.strip()}")


def full_disk(bench: Bench, scene: str) -> list[str]:
    """Runs on disks of several sizes until each is full; then the disk grows, and they finish."""
    found = []
    needed = _needed_kilobytes(bench, scene)
    for part in _PARTS:
        with small_disk(bench.root / "disk", int(needed * part)) as place:
            task = replace(bench.task(scene), folder=str(place / "out"))
            lines = _on_a_full_disk(bench, scene, task, place)
        found += [f"disk of {part:.0%} of {needed} kB: {line}" for line in lines]
    return found


def no_more_files(bench: Bench, scene: str) -> list[str]:
    """The same on disks with room for bytes, but not for so many files."""
    found, files = [], len(bench.expected(scene))
    for part in _PARTS[:5]:
        with small_disk(bench.root / "disk", 2**16) as place:
            _mount(place, f"remount,nr_inodes={4 + int(files * part * 1.5)}")
            lines = _on_a_full_disk(bench, scene, replace(bench.task(scene), folder=str(place / "out")), place)
        found += [f"disk for {1.5 * part:.0%} of {files} files: {line}" for line in lines]
    return found


def read_only_disk(bench: Bench, scene: str) -> list[str]:
    """A run was killed, and its disk is read-only by now: a line that says so; later it can be written to again."""
    found = []
    for what in ("claimed", "computed", "committed"):
        with small_disk(bench.root / "disk", 2**16) as place:
            task = replace(bench.task(scene), folder=str(place / "out"))
            _killed(replace(task, stop_at=(what, 12)))
            _mount(place, "remount,ro")
            ended = undisturbed(task)
            line = "" if ended.outcome is None or ended.outcome.code == 0 else ended.outcome.line
            if not line.startswith(f"{task.folder}: cannot write outputs here (Read-only file system)"):
                found.append(f"not one line that says so: {ended}")
            _mount(place, "remount,rw")
            found += _taken_up(bench, scene, task)
    return found


def anothers_job(bench: Bench, scene: str) -> list[str]:
    """The interrupted run of somebody else, in a folder that one may write to: a line; its owner can finish it."""
    task = bench.task(scene)
    _killed(replace(task, stop_at=("committed", 9)))
    bench.root.chmod(0o755)
    Path(task.folder).chmod(0o777)
    ended = undisturbed(replace(task, user=_NOBODY))
    line = "" if ended.outcome is None or ended.outcome.code == 0 else ended.outcome.line
    found = [] if "Permission denied" in line and task.folder in line else [f"not one line that says so: {ended}"]
    return found + _taken_up(bench, scene, task)


def _killed(task: Task) -> None:
    """Leave what a run leaves that is killed where it stops."""
    run = Run(task)
    run.go_on()
    run.has_stopped()
    run.kill()
    run.ended()


def _taken_up(bench: Bench, scene: str, task: Task) -> list[str]:
    """How a run fails to finish what lies there, or what it does again."""
    done, complaints = finished_blocks(task, bench.expected(scene))
    again = undisturbed(task)
    if again.outcome is None or again.outcome.code:
        return [*complaints, f"cannot be run again: {again.outcome or again.trouble}"]
    if twice := done.intersection(again.outcome.computed):
        complaints.append(f"computed again: blocks {sorted(twice)}")
    return [*complaints, *wrong(Path(task.folder), bench.expected(scene))]


def _on_a_full_disk(bench: Bench, scene: str, task: Task, place: Path) -> list[str]:
    first = undisturbed(task)
    if first.outcome is None or first.outcome.code == 0:
        return [f"did not end with an error: {first.outcome or first.trouble}"]
    found = []
    if "\n" in first.outcome.line or not first.outcome.line.startswith(str(place)):
        found.append(f"not one line that names the place: {first.outcome.line!r}")
    found += falsely_done(Path(task.folder), bench.allowed(scene))
    _mount(place, "remount,size=64m,nr_inodes=9000")
    return found + _taken_up(bench, scene, task)


def _needed_kilobytes(bench: Bench, scene: str) -> int:
    """The least disk, to a few kB, on which a run ends well."""
    low, high = 16, 4096
    while high - low > 16:
        middle = (low + high) // 2
        with small_disk(bench.root / "disk", middle) as place:
            ended = undisturbed(replace(bench.task(scene), folder=str(place / "out")))
        if ended.outcome is not None and ended.outcome.code == 0:
            high = middle
        else:
            low = middle
    return low


def no_permission(bench: Bench, scene: str) -> list[str]:
    """A run into a folder that one may not write to, and into a new one in it: one line that names it."""
    found = []
    task = bench.task(scene)
    folder = Path(task.folder)
    folder.mkdir()
    bench.root.chmod(0o755)
    folder.chmod(0o555)
    for place in (folder, folder / "deeper"):
        ended = undisturbed(replace(task, folder=str(place), user=_NOBODY if os.geteuid() == 0 else None))
        line = "" if ended.outcome is None or ended.outcome.code == 0 else ended.outcome.line
        if "\n" in line or not line.startswith(f"{place}: cannot write outputs here (Permission denied)"):
            found.append(f"not one line that says so: {ended}")
    found += [f"left behind: {path}" for path in folder.iterdir()]
    folder.chmod(0o755)
    bench.drop(task)
    return found


CHECKS: dict[str, Callable[[Bench, str], list[str]]] = {
    check.__name__: check for check in (full_disk, no_more_files, read_only_disk, no_permission, anothers_job)
}
