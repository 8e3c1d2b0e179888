"""Runs in processes of their own, forked from one that has everything imported, with a fault at one system call.

    this process --fork--> run: warm up, say the numbers of its threads, stop
                 --------> strace attaches to one thread: at its K-th call of a kind the fault
                 --------> go on; the run says how it ended (over a socket, which is not among the calls) and exits

The store writes with threads of its own. With one writing thread, the calls of each thread are the same in every run.
"""

import asyncio
import json
import os
import re
import select
import signal
import socket
import subprocess
import threading
import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import zarr
from zarr.core.sync import sync as in_the_loop

from fcn_batch.pipeline.raster.rasterfile import inspect
from tests.faults.circumstances import CIRCUMSTANCES
from tests.faults.job import Outcome, Task, perform

WRITING = (
    "write",
    "pwrite64",
    "ftruncate",
    "fsync",
    "fdatasync",
    "rename",
    "link",
    "unlink",
    "unlinkat",
    "rmdir",
    "mkdir",
)
"""Calls that change what lies on the disk."""
_LOG = re.compile(r"^(\d+) +(\w+)\((.*)$")


@dataclass(frozen=True, slots=True)
class Point:
    """A call of a run, and what is to happen there."""

    call: str
    thread: int
    """0: the main one; then those of the store."""
    number: int
    """Counts the thread's calls of this kind from 1."""
    fault: str = "SIGKILL"
    """Or the name of an error that the call is to fail with."""

    @property
    def injection(self) -> str:
        """For strace."""
        kind = "signal" if self.fault == "SIGKILL" else "error"
        return f"inject={self.call}:{kind}={self.fault}:when={self.number}"


@dataclass(frozen=True, slots=True)
class Ended:
    """How a run's process ended."""

    killed: bool
    outcome: Outcome | None
    """None when it could not tell."""
    trouble: str = ""
    """A traceback, or that it had to be ended."""


def can_trace() -> str:
    """Why faults cannot be injected here; empty when they can."""
    try:
        done = subprocess.run(["strace", "-e", "trace=none", "true"], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return "strace is not installed"
    return "" if done.returncode == 0 else f"strace is not permitted: {done.stderr.strip()[:200]}"


class Run:
    """A run in a process of its own, which waits until it is told to go on."""

    def __init__(self, task: Task) -> None:
        self._ours, theirs = socket.socketpair()
        self._patience_s = task.patience_s
        self.pid = os.fork()
        if self.pid == 0:
            self._ours.close()
            _in_the_child(task, theirs)
        theirs.close()
        self.threads: list[int] = json.loads(self._ours.recv(1000))
        os.waitpid(self.pid, os.WUNTRACED)
        _BEGUN.append(self)

    def go_on(self) -> None:
        """After it was made, or has stopped itself."""
        os.kill(self.pid, signal.SIGCONT)

    def has_stopped(self) -> None:
        """Wait until it does so."""
        _, status = os.waitpid(self.pid, os.WUNTRACED)
        if not os.WIFSTOPPED(status):
            _BEGUN.remove(self)
            raise RuntimeError(f"the run ended where it was to stop: {self._told()[-300:]!r}")

    def kill(self) -> None:
        """As kill -9 does."""
        os.kill(self.pid, signal.SIGKILL)

    def ended(self) -> Ended:
        """Wait for its end."""
        late = not select.select([self._ours], [], [], self._patience_s)[0]
        if late:
            self.kill()
        told = self._told()
        _, status = os.waitpid(self.pid, 0)
        _BEGUN.remove(self)
        if late:
            return Ended(killed=False, outcome=None, trouble="did not end in time")
        if os.WIFSIGNALED(status):
            return Ended(killed=True, outcome=None)
        found = json.loads(told)
        if "trouble" in found:
            return Ended(killed=False, outcome=None, trouble=found["trouble"])
        return Ended(killed=False, outcome=Outcome(**found))

    def _told(self) -> bytes:
        """All that it says until its end."""
        with self._ours:
            return b"".join(iter(lambda: self._ours.recv(100_000), b""))

    def with_strace(self, *arguments: str) -> Ended:
        """Go on under strace, with these arguments, to the end."""
        command = ["strace", *arguments]
        with subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE) as tracer:
            assert tracer.stderr is not None
            first = tracer.stderr.readline()
            assert b"attached" in first, first
            self.go_on()
            ended = self.ended()
            tracer.stderr.read()
        return ended


_BEGUN: list[Run] = []


def end_all() -> None:
    """Kill what has not ended."""
    while _BEGUN:
        _BEGUN[0].kill()
        _BEGUN[0].ended()


def undisturbed(task: Task) -> Ended:
    """A run to its end."""
    run = Run(task)
    run.go_on()
    return run.ended()


def disturbed(task: Task, point: Point) -> Ended:
    """A run with a fault at `point`."""
    run = Run(task)
    what = ["-e", f"trace={point.call}", "-e", point.injection, "-o", os.devnull]
    return run.with_strace(*what, "-p", str(run.threads[point.thread]))


def traced(task: Task, calls: tuple[str, ...], log: Path) -> tuple[Ended, list[tuple[int, str, str]]]:
    """A run to its end, and its calls in order: number of the thread, name, and the rest of strace's line."""
    run = Run(task)
    trace = f"trace={','.join(calls)}"
    ended = run.with_strace("-f", "-y", "-s", "0", "-o", str(log), "-e", trace, "-p", str(run.pid))
    return ended, list(_lines(log, run.threads))


def _lines(log: Path, threads: list[int]) -> Iterator[tuple[int, str, str]]:
    for line in log.read_text(errors="replace").splitlines():
        if match := _LOG.match(line):
            thread = int(match[1])
            yield threads.index(thread) if thread in threads else len(threads), match[2], match[3]


def points(calls: list[tuple[int, str, str]], faults: tuple[str, ...] = ("SIGKILL",)) -> list[Point]:
    """Every call of a traced run, in order."""
    counts: Counter[tuple[int, str]] = Counter()
    found = []
    for thread, call, _ in calls:
        counts[thread, call] += 1
        found += [Point(call, thread, counts[thread, call], fault) for fault in faults]
    return found


def _in_the_child(task: Task, told: socket.socket) -> None:
    """Never returns."""
    try:
        if task.user is not None:
            os.setresuid(task.user, task.user, task.user)
        for name in task.flags:
            CIRCUMSTANCES[name]()
        inspect(task.image)  # after a fork, and only then, PROJ opens its database anew
        told.sendall(json.dumps(_threads()).encode())
        os.kill(os.getpid(), signal.SIGSTOP)
        answer: dict[str, object] = asdict(perform(task))
    except BaseException:  # noqa: BLE001 - told by whoever waits for it
        answer = {"trouble": traceback.format_exc()}
    with suppress(OSError):
        told.sendall(json.dumps(answer).encode())
    os._exit(0)


def _threads() -> list[int]:
    """This thread, and those that the store reads and writes with, which begin here."""
    zarr.config.set({"threading.max_workers": 1})

    async def of_the_loop() -> tuple[int, int]:
        return threading.get_native_id(), await asyncio.to_thread(threading.get_native_id)

    return [threading.get_native_id(), *in_the_loop(of_the_loop())]
