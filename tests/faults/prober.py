"""Processes that try faults: each has everything imported and forks its runs. `python -m tests.faults.prober` is one.

One line of JSON in, one out: what to try, and what came of it.
"""

import json
import os
import queue
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.faults import checks, disks
from tests.faults.bench import Bench, Verdict, try_point
from tests.faults.job import Task, perform
from tests.faults.probing import Point, end_all, points, traced


@dataclass(frozen=True, slots=True)
class Question:
    """What to try."""

    scene: str
    point: Point | None = None
    """The fault; None: no fault."""
    calls: tuple[str, ...] = ()
    """Tell of these calls of a run."""
    check: str = ""
    """Name of another check."""

    @classmethod
    def read(cls, line: str) -> Self:
        """From JSON."""
        found: dict[str, Any] = json.loads(line)
        found["point"] = found["point"] and Point(**found["point"])
        found["calls"] = tuple(found["calls"])
        return cls(**found)


class Probers:
    """Some of them at work."""

    def __init__(self, count: int = 2) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "tests.faults.prober"]
        root = Path(__file__).parents[2]
        self._all = [
            subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=root, env=environment
            )
            for _ in range(count)
        ]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        for process in self._all:
            process.communicate()  # without more questions they end

    def ask(self, questions: Sequence[Question]) -> Iterator[Any]:
        """Answers, in order."""
        free: queue.SimpleQueue[subprocess.Popen[str]] = queue.SimpleQueue()
        for process in self._all:
            free.put(process)

        def answer(question: Question) -> Any:
            process = free.get()
            assert process.stdin is not None
            assert process.stdout is not None
            try:
                process.stdin.write(json.dumps(asdict(question)) + "\n")
                process.stdin.flush()
                line = process.stdout.readline()
            finally:
                free.put(process)
            assert line, f"the prober ended at {question}"
            return json.loads(line)

        with ThreadPoolExecutor(len(self._all)) as pool:
            try:
                yield from pool.map(answer, questions)
            finally:  # who heard enough does not wait for the rest
                pool.shutdown(cancel_futures=True)

    def points(self, scene: str, calls: tuple[str, ...], faults: tuple[str, ...] = ("SIGKILL",)) -> list[Point]:
        """Every call of a run of `scene`, in order, once for each fault."""
        (told,) = self.ask([Question(scene, calls=calls)])
        return points([(thread, call, rest) for thread, call, rest in told], faults)

    def tried(self, scene: str, tried: Sequence[Point]) -> Iterator[tuple[Point, Verdict]]:
        """What came of each point."""
        answers = self.ask([Question(scene, point=point) for point in tried])
        for point, answer in zip(tried, answers, strict=True):
            yield point, Verdict(**answer)


_CHECKS = checks.CHECKS | disks.CHECKS


def _answer(bench: Bench, question: Question) -> Any:
    if question.point is not None:
        return asdict(try_point(bench, question.scene, question.point))
    if question.check:
        try:
            return _CHECKS[question.check](bench, question.scene)
        except (RuntimeError, AssertionError, OSError) as error:
            return [f"trouble: {error}"]
        finally:
            end_all()
    task = bench.task(question.scene)
    ended, calls = traced(task, question.calls, bench.root / "calls.log")
    assert ended.trouble == "", ended.trouble
    bench.drop(task)
    return calls


def main() -> None:
    """Answer questions until there are no more."""
    with Bench() as bench:
        perform(Task(str(bench.image), str(bench.root / "warm")))  # all that is loaded late is here now
        for line in sys.stdin:
            question = Question.read(line)
            sys.stdout.write(json.dumps(_answer(bench, question)) + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
