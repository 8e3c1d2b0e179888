"""Where faults are tried: an input, what a run makes of it undisturbed, and the states from which runs begin."""

import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Self

from tests.faults.job import Outcome, Task, make_image
from tests.faults.probing import Ended, Point, Run, disturbed, undisturbed
from tests.faults.states import Tree, falsely_done, finished_blocks, tree, wrong

SCENES = ("fresh", "sure", "resume", "restart", "overwrite")
"""fresh: nothing is there. sure: the same, with confidences, in shards. resume: a run was killed after 20 blocks.
restart: the same, but of another plan. overwrite: the complete outputs of another plan."""
_OTHER = 200.0
_HALF = 20


@dataclass(slots=True)
class Verdict:
    """What came of a fault."""

    killed: bool = False
    failed: bool = False
    """The run ended with a line for the user."""
    complaints: list[str] = field(default_factory=list)
    seconds: float = 0.0
    kept: int = 0
    """Blocks that were finished when the fault came."""


class Bench:
    """A folder for runs, in memory if possible: fsync is counted, not waited for."""

    def __init__(self) -> None:
        memory = Path("/dev/shm")  # noqa: S108 - only where the system has it
        self.root = Path(tempfile.mkdtemp(prefix="fcn-batch-faults-", dir=memory if memory.is_dir() else None))
        self.image = make_image(self.root / "a.tif")
        self._count = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self.root)

    def task(self, scene: str) -> Task:
        """The task of a scene, in a new folder as the scene wants it."""
        self._count += 1
        folder = self.root / f"run{self._count}"
        if scene in ("resume", "restart", "overwrite"):
            shutil.copytree(self._start(scene), folder, copy_function=shutil.copy2)
        return replace(self._plain(scene), folder=str(folder))

    def drop(self, task: Task) -> None:
        """Delete what a task made."""
        shutil.rmtree(task.folder, ignore_errors=True)

    def expected(self, scene: str) -> Tree:
        """Outputs of an undisturbed run of the program as it is."""
        return self._made("sure" if scene == "sure" else "fresh", 255.0)

    def allowed(self, scene: str) -> list[Tree]:
        """Outputs that a report may say are complete."""
        return [self.expected(scene)] + [self._made("fresh", _OTHER)] * (scene == "overwrite")

    def _plain(self, scene: str) -> Task:
        return Task(
            str(self.image), "", confidence=scene == "sure", restart=scene == "restart", overwrite=scene == "overwrite"
        )

    @cache  # noqa: B019 - a bench lives as long as its process
    def _made(self, scene: str, full_scale: float) -> Tree:
        task = replace(
            self._plain(scene), folder=str(self.root / f"made-{scene}-{full_scale:.0f}"), full_scale=full_scale
        )
        ended = undisturbed(task)
        assert ended.outcome is not None, ended
        assert ended.outcome.code == 0, ended
        return tree(Path(task.folder))

    @cache  # noqa: B019
    def _start(self, scene: str) -> Path:
        if scene == "overwrite":
            self._made("fresh", _OTHER)
            return self.root / f"made-fresh-{_OTHER:.0f}"
        folder = self.root / f"start-{scene}"
        scale = _OTHER if scene == "restart" else 255.0
        run = Run(Task(str(self.image), str(folder), full_scale=scale, stop_at=("committed", _HALF)))
        run.go_on()
        run.has_stopped()
        run.kill()
        assert run.ended().killed
        return folder


def try_point(bench: Bench, scene: str, point: Point) -> Verdict:
    """A run with a fault, then the same run without."""
    started = time.perf_counter()
    task = bench.task(scene)
    verdict = Verdict()
    _judge_first(bench, scene, task, disturbed(task, point), verdict)
    if verdict.killed != (point.fault == "SIGKILL"):
        verdict.complaints.append("ended by a signal" if verdict.killed else "the fault did not come")
    judge_again(bench, scene, task, undisturbed, verdict)
    bench.drop(task)
    verdict.seconds = time.perf_counter() - started
    return verdict


def _judge_first(bench: Bench, scene: str, task: Task, ended: Ended, verdict: Verdict) -> None:
    verdict.killed = ended.killed
    if ended.trouble:
        verdict.complaints.append(f"trouble: {ended.trouble.strip().splitlines()[-1]}")
    if ended.outcome is not None and ended.outcome.code == 0:
        found = wrong(Path(task.folder), bench.expected(scene))
        # hidden: what could not be deleted
        verdict.complaints += [line for line in found if not line.startswith("wrong: .")]
    elif ended.outcome is not None:
        verdict.failed = True
        if not ended.outcome.line or "\n" in ended.outcome.line:
            verdict.complaints.append(f"not one line: {ended.outcome.line!r}")


def judge_again(
    bench: Bench, scene: str, task: Task, again: Callable[[Task], Ended], verdict: Verdict
) -> Outcome | None:
    """What lies there is no lie, and the same command makes it right without doing again what is done."""
    folder = Path(task.folder)
    verdict.complaints += falsely_done(folder, bench.allowed(scene))
    done, complaints = finished_blocks(task, bench.expected(scene))
    verdict.complaints += complaints
    verdict.kept = len(done)
    made = task.outputs.reported_plan()
    if task.overwrite and made is not None and made.fingerprint == task.plan.fingerprint:
        done = set()  # all is complete: to overwrite it is to do it again
    ended = again(task)
    if ended.outcome is None or ended.outcome.code != 0:
        how = ended.trouble.strip().splitlines()[-1] if ended.trouble else ended.outcome and ended.outcome.line
        verdict.complaints.append(f"cannot be run again: {how}")
        return ended.outcome
    verdict.complaints += wrong(folder, bench.expected(scene))
    twice = done.intersection(ended.outcome.computed)
    if twice and not task.restart:
        verdict.complaints.append(f"computed again: blocks {sorted(twice)}")
    return ended.outcome
