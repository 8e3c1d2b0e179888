"""Runs where there is no room, or no permission: `python -m tests.faults.places`.

A small file system in memory is filled by a run until nothing fits any more: the run ends with a line, what is finished
is whole, and with more room the same command finishes. The same for a file system that becomes read-only, and for a
folder of somebody else. Prints a table, and ends with 1 when anything was not so, with 2 when nothing can be tried.
"""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from tests.faults.bench import Bench
from tests.faults.job import Task
from tests.faults.mutants import MUTANTS
from tests.faults.probing import Ended, Run, undisturbed
from tests.faults.states import falsely_done, finished_blocks, wrong

_PAGE = 4096
_PLENTY = "size=16m,nr_inodes=4000"
"""More than a run needs."""
_NOBODY = 65534


def nobody() -> None:
    """As a user who owns nothing."""
    os.setgid(_NOBODY)
    os.setuid(_NOBODY)


@dataclass(slots=True)
class Tally:
    """What came of the trials of one kind."""

    trials: int = 0
    failed: int = 0
    """Runs that ended with a line."""
    kept: int = 0
    """Blocks that were finished then, over all trials."""
    complaints: list[str] = field(default_factory=list)
    seconds: float = 0.0


@dataclass(slots=True)
class Place:
    """Where a task is tried."""

    bench: Bench
    tally: Tally
    scene: str
    task: Task

    @property
    def root(self) -> Path:
        """What is mounted, or not."""
        return Path(self.task.folder).parent

    def fails(self, ended: Ended) -> None:
        """See that a run ended with a line, and that what it left is no lie."""
        complain = self.tally.complaints.append
        if ended.outcome is None:
            complain(f"ended otherwise than with a line: {ended.trouble[-300:] or 'killed'}")
            return
        line = ended.outcome.line
        if ended.outcome.code == 0:
            self.comes_right(ended)
            return
        self.tally.failed += 1
        if not line or "\n" in line or "None" in line or str(self.root) not in line:
            complain(f"does not say where: {line!r}")
        expected = self.bench.expected(self.scene)
        done, complaints = finished_blocks(self.task, expected)
        self.tally.kept += len(done)
        self.tally.complaints += [*complaints, *falsely_done(Path(self.task.folder), [expected])]

    def comes_right(self, ended: Ended, done: frozenset[int] = frozenset()) -> None:
        """See that a run ended well, and did none of `done` again."""
        if ended.outcome is None or ended.outcome.code:
            self.tally.complaints.append(f"failed: {ended.outcome.line if ended.outcome else ended.trouble[-300:]}")
            return
        self.tally.complaints += wrong(Path(self.task.folder), self.bench.expected(self.scene))
        if twice := done.intersection(ended.outcome.computed):
            self.tally.complaints.append(f"computed again: blocks {sorted(twice)}")

    def done(self) -> frozenset[int]:
        """Blocks that have a receipt by now."""
        return frozenset(finished_blocks(self.task, self.bench.expected(self.scene))[0])


@contextmanager
def mounted(folder: Path, options: str) -> Iterator[None]:
    """A file system in memory, at a new folder; PermissionError when that is not permitted."""
    folder.mkdir()
    done = _mount("-t", "tmpfs", "-o", options, "tmpfs", str(folder))
    if done.returncode:
        folder.rmdir()
        raise PermissionError(f"mounting is not permitted: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)
        folder.rmdir()


def remounted(folder: Path, options: str) -> None:
    """With other options."""
    _mount("-o", f"remount,{options}", str(folder)).check_returncode()


def _mount(*words: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(["mount", *words], capture_output=True, text=True, check=False)


def full(place: Place, number: int, count: int) -> None:
    """So little room that the run ends early, or only at its very end."""
    sizes = [len(data) for data in place.bench.expected(place.scene).values()]
    pages = 2 + (number + 1) * sum(-(-size // _PAGE) for size in sizes) * 3 // (2 * count)
    _cramped(place, f"size={pages * _PAGE}")


def no_names(place: Place, number: int, count: int) -> None:
    """The same, but the file system has no more room for files, be they empty."""
    _cramped(place, f"nr_inodes={4 + (number + 1) * len(place.bench.expected(place.scene)) * 2 // count}")


def _cramped(place: Place, how: str) -> None:
    with mounted(place.root, how):
        place.fails(undisturbed(place.task))
        place.fails(undisturbed(place.task))  # again without more room
        done = place.done()
        remounted(place.root, _PLENTY)
        place.comes_right(undisturbed(place.task), done)


def read_only(place: Place, number: int, count: int) -> None:
    """The file system has become read-only after a run was killed, as one does when its disk fails."""
    with mounted(place.root, _PLENTY):
        _killed(place, ("claimed", "computed", "committed")[number % 3], 1 + 35 * number // count)
        remounted(place.root, "ro")
        place.fails(undisturbed(place.task))
        done = place.done()
        remounted(place.root, "rw")
        place.comes_right(undisturbed(place.task), done)


def _killed(place: Place, what: str, count: int) -> None:
    """Leave what a run leaves that is killed then."""
    run = Run(replace(place.task, stop_at=(what, count)))
    run.go_on()
    run.has_stopped()
    run.kill()
    run.ended()


def anothers(place: Place, number: int, _count: int) -> None:
    """A folder of somebody else, with or without a job in it."""
    place.root.mkdir()
    Path(place.task.folder).mkdir()
    if number % 2:
        _killed(place, "committed", 9)
    place.fails(undisturbed(replace(place.task, flags=("nobody",))))
    place.comes_right(undisturbed(place.task), place.done())


KINDS: dict[str, Callable[[Place, int, int], None]] = {
    "full": full,
    "no names": no_names,
    "read-only": read_only,
    "another's": anothers,
}


def tried(bench: Bench, kind: str, trials: int) -> Tally:
    """Trials of one kind, at even distances."""
    tally, started = Tally(), time.perf_counter()
    for number in range(trials):
        tally.trials += 1
        scene = ("fresh", "sure")[number % 2]
        task, before = bench.task(scene), len(tally.complaints)
        task = replace(task, folder=str(bench.root / f"place{number}-{kind}" / "out"))
        KINDS[kind](Place(bench, tally, scene, task), number, trials)
        tally.complaints[before:] = [f"{kind} {number} ({scene}): {c}" for c in tally.complaints[before:]]
    tally.seconds = time.perf_counter() - started
    return tally


def main(trials: int) -> int:
    """Try all kinds, print what came of them; 1 when a promise was broken."""
    MUTANTS["nobody"] = nobody
    if os.geteuid():
        _say("nothing tried: only root may mount, and be somebody else")
        return 2
    complaints = []
    _say(f"{'places':<10} {'trials':>7} {'ended with a line':>18} {'blocks kept':>12} {'wrong':>6} {'s':>7}")
    with Bench() as bench:
        bench.root.chmod(0o755)
        for kind in KINDS:
            try:
                tally = tried(bench, kind, trials)
            except PermissionError as error:
                _say(f"{kind:<10} not tried: {error}")
                continue
            complaints += tally.complaints
            _say(
                f"{kind:<10} {tally.trials:7} {tally.failed:18} {tally.kept:12} {len(tally.complaints):6} "
                f"{tally.seconds:7.1f}"
            )
    _say(*complaints)
    return 1 if complaints else 0


def _say(*lines: str) -> None:
    for line in lines:
        sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 12))
