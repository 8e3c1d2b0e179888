"""Several runs of one job at once, some of them killed or stopped: `python -m tests.faults.several [TRIALS]`.

Whatever happens to some, the others finish the job: the same bytes, no block twice unless its first run was taken for
dead, nothing left lying about. Prints a table, and ends with 1 when anything was not so.
"""

import os
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path

from tests.faults.bench import Bench
from tests.faults.circumstances import MACHINES, STALE_S
from tests.faults.job import Task
from tests.faults.probing import WRITING, Point, Run, can_trace, points, traced, undisturbed
from tests.faults.states import falsely_done, finished_blocks, wrong

_THREADS = 3
"""Of a run that write: its own, and two of the store."""
_ABOUT_S = 0.6
"""What a run takes, so that kills and starts fall into it."""


@dataclass(slots=True)
class Tally:
    """What came of the trials of one kind."""

    trials: int = 0
    killed: int = 0
    survived: int = 0
    """Runs that ended with 0."""
    twice: int = 0
    """Blocks done by two runs."""
    complaints: list[str] = field(default_factory=list)
    seconds: float = 0.0


@cache
def _points(bench: Bench, scene: str) -> list[Point]:
    """Every call that writes, of a run of this scene."""
    task = bench.task(scene)
    calls = traced(replace(task, flags=("hasty",)), WRITING, bench.root / "calls.log")[1]
    bench.drop(task)
    return [point for point in points(calls) if point.thread < _THREADS]


@contextmanager
def stopped_at(run: Run, point: Point) -> Iterator[None]:
    """Go on until there."""
    inject = f"inject={point.call}:signal=SIGSTOP:when={point.number}"
    command = ["strace", "-o", os.devnull, "-e", f"trace={point.call}", "-e", inject]
    command += ["-p", str(run.threads[point.thread])]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE) as tracer:
        assert tracer.stderr is not None
        assert b"attached" in tracer.stderr.readline()
        run.go_on()
        yield
        tracer.stderr.read()


@dataclass(slots=True)
class Trial:
    """Some runs of one task in a folder of its own."""

    bench: Bench
    tally: Tally
    draw: random.Random
    task: Task
    scene: str
    twice_is_fine: bool = False
    """True: a run may be taken for dead that is not."""
    runs: list[Run] = field(default_factory=list)

    def start(self, *flags: str, **changes: object) -> Run:
        """One more run."""
        run = Run(replace(self.task, flags=(*self.task.flags, *flags), **changes))  # type: ignore[arg-type]
        self.runs.append(run)
        run.go_on()
        return run

    def pause(self) -> None:
        """For some part of what a run takes."""
        time.sleep(self.draw.random() * _ABOUT_S)

    def judge(self, *victims: Run) -> None:
        """Wait for all, and see what they did."""
        complain = self.tally.complaints.append
        computed: Counter[int] = Counter()
        for run in self.runs:
            ended = run.ended()
            if ended.killed and run in victims:
                self.tally.killed += 1
            elif ended.outcome is None or ended.outcome.code:
                complain(f"a run failed: {ended.outcome.line if ended.outcome else ended.trouble or 'killed'}")
            else:
                self.tally.survived += 1
                computed.update(ended.outcome.computed)
        twice = sorted(block for block, count in computed.items() if count > 1)
        self.tally.twice += len(twice)
        if twice and not self.twice_is_fine:
            complain(f"done twice: blocks {twice}")
        for line in wrong(Path(self.task.folder), self.bench.expected(self.scene)):
            complain(line)

    def kept(self) -> set[int]:
        """Blocks that are finished by now, each as it must be."""
        expected = self.bench.expected(self.scene)
        done, complaints = finished_blocks(self.task, expected)
        self.tally.complaints += [*complaints, *falsely_done(Path(self.task.folder), [expected])]
        return done


def together(trial: Trial) -> None:
    """Two or three runs begin at any time."""
    for _ in range(trial.draw.randint(2, 3)):
        trial.start()
        trial.pause()
    trial.judge()


def one_killed(trial: Trial) -> None:
    """Of two or three runs one is killed at any time."""
    for _ in range(trial.draw.randint(2, 3)):
        trial.start()
        time.sleep(trial.draw.random() / 10)
    trial.pause()
    victim = trial.draw.choice(trial.runs)
    victim.kill()
    trial.judge(victim)


def all_killed(trial: Trial) -> None:
    """Two runs are killed at any time; the next one does no block again."""
    victims = [trial.start(), trial.start()]
    for victim in trial.draw.sample(victims, 2):
        trial.pause()
        victim.kill()
    for victim in victims:
        trial.tally.killed += victim.ended().killed
    trial.runs.clear()
    kept = trial.kept()
    ended = undisturbed(trial.task)
    if ended.outcome is None or ended.outcome.code:
        trial.tally.complaints.append(f"cannot be run again: {ended.outcome.line if ended.outcome else ended.trouble}")
        return
    trial.tally.survived += 1
    if again := kept.intersection(ended.outcome.computed):
        trial.tally.complaints.append(f"computed again: blocks {sorted(again)}")
    trial.judge()


def one_stopped(trial: Trial) -> None:
    """A run is stopped for so long that others take over its block, or publish; then it goes on."""
    trial.twice_is_fine = True
    where = (trial.draw.choice(("claimed", "committed")), trial.draw.randint(1, 12))
    sleeper = trial.start("impatient", stop_at=where)
    sleeper.has_stopped()
    others = [trial.start("impatient") for _ in range(trial.draw.randint(1, 2))]
    if trial.draw.random() < 0.5:
        ends = [run.ended() for run in others]
        trial.runs = [sleeper]
        if any(end.outcome is None or end.outcome.code for end in ends):
            trial.tally.complaints.append(f"a run failed beside a stopped one: {ends}")
        trial.tally.survived += len(ends)
    else:
        time.sleep(STALE_S + trial.draw.random() * _ABOUT_S)
    sleeper.go_on()
    trial.judge()


def _wait_for(run: Run, seconds: float) -> None:
    """Until it ends, but no longer."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and not os.waitid(os.P_PID, run.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
        time.sleep(0.02)


def stopped_anywhere(trial: Trial) -> None:
    """A run is stopped at any call that writes; another one may take it for dead, or has to wait for it."""
    trial.twice_is_fine = True
    trial.task = replace(trial.task, flags=("hasty",))
    point = trial.draw.choice(_points(trial.bench, trial.scene))
    sleeper = Run(trial.task)
    trial.runs.append(sleeper)
    with stopped_at(sleeper, point):
        sleeper.has_stopped()
        other = trial.start()
        _wait_for(other, trial.draw.random() * 3)
        sleeper.go_on()
        trial.judge()


def machines(trial: Trial) -> None:
    """On two or three machines that see nothing of each other but files; one run may be killed."""
    nodes = MACHINES[: trial.draw.randint(2, 3)]
    for node in nodes:
        trial.start(node)
        time.sleep(trial.draw.random() / 10)
    victims = []
    if trial.draw.random() < 0.7:
        trial.pause()
        victims = [trial.draw.choice(trial.runs)]
        victims[0].kill()
    trial.judge(*victims)


def begun_anew(trial: Trial) -> None:
    """Nobody may discard what another run is at work on; when that was killed, anybody may."""
    first = trial.start(stop_at=("claimed", trial.draw.randint(1, 12)))
    first.has_stopped()
    told = undisturbed(replace(trial.task, restart=True)).outcome
    if told is None or told.code == 0 or "is at work there" not in told.line:
        trial.tally.complaints.append(f"--restart discarded a run at work: {told}")
    other = undisturbed(replace(trial.task, full_scale=100.0)).outcome
    if other is None or other.code == 0 or "other settings" not in other.line:
        trial.tally.complaints.append(f"another plan went into the folder of a run at work: {other}")
    if trial.draw.random() < 0.5:
        first.kill()
        trial.start(restart=True)
        trial.judge(first)
    else:
        first.go_on()
        trial.judge()


KINDS: dict[str, Callable[[Trial], None]] = {
    "together": together,
    "one killed": one_killed,
    "all killed": all_killed,
    "one stopped": one_stopped,
    "stopped anywhere": stopped_anywhere,
    "machines": machines,
    "begun anew": begun_anew,
}


def tried(bench: Bench, kind: str, trials: int) -> Tally:
    """Trials of one kind, the same in every run of this program but for what the machine makes of them."""
    tally, started = Tally(), time.perf_counter()
    for number in range(trials):
        tally.trials += 1
        scene = ("fresh", "resume", "fresh", "sure")[number % 4]
        task, before = bench.task(scene), len(tally.complaints)
        draw = random.Random(f"{kind} {number}")  # noqa: S311 - no secret
        KINDS[kind](Trial(bench, tally, draw, task, scene))
        tally.complaints[before:] = [f"{kind} {number} ({scene}): {c}" for c in tally.complaints[before:]]
        bench.drop(task)
    tally.seconds = time.perf_counter() - started
    return tally


def main(trials: int) -> int:
    """Try all kinds, print what came of them; 1 when a promise was broken."""
    complaints = []
    _say(f"{'several runs':<16} {'trials':>7} {'killed':>7} {'ended 0':>8} {'blocks twice':>13} {'wrong':>6} {'s':>7}")
    with Bench() as bench:
        for kind in KINDS:
            if kind == "stopped anywhere" and (reason := can_trace()):
                _say(f"{kind:<16} not tried: {reason}")
                continue
            tally = tried(bench, kind, trials)
            _say(
                f"{kind:<16} {tally.trials:7} {tally.killed:7} {tally.survived:8} {tally.twice:13} "
                f"{len(tally.complaints):6} {tally.seconds:7.1f}"
            )
            complaints += tally.complaints
    _say(*complaints)
    return 1 if complaints else 0


def _say(*lines: str) -> None:
    for line in lines:
        sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 40))
