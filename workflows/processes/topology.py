"""Which CPUs there are for a run, and how processes and their threads are laid out on them.

Cores count, not the threads that share one: two of these compute hardly faster than one, and wait for each other.
"""

import math
import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from fcn_batch.pipeline.core.errors import OptionError

_CORES_PER_PROCESS = 4
"""With --workers auto: what is read, scaled and written takes one thread of each process, whatever the others do."""
ENVIRON = {"MALLOC_ARENA_MAX": "1"} | {f"{library}_NUM_THREADS": "1" for library in ("OMP", "MKL", "OPENBLAS", "GDAL")}
"""Of a worker on CPUs, from its first moment on.

torch is told its threads by the plan; any others would fight with these. A worker computes in a thread, and glibc gives
what a thread has freed back to the system after every layer, unless all threads have one arena: that took twice the
time (`docs/scale.md`).
"""
_CPUS = Path("sys/devices/system/cpu")
_CGROUPS = Path("sys/fs/cgroup")


@dataclass(frozen=True, slots=True)
class Cpu:
    """One logical CPU, as the system counts them."""

    number: int
    core: int
    """The first of the CPUs that share its core."""
    node: int = 0
    """Part of the machine with memory of its own (NUMA)."""


@dataclass(frozen=True, slots=True)
class Machine:
    """The CPUs that this process may use."""

    cpus: tuple[Cpu, ...]
    quota: float | None = None
    """How many of them at a time, on average: what a container or a job was given; None: all."""

    def __post_init__(self) -> None:
        if not self.cpus:
            raise ValueError("a machine without CPUs")

    @property
    def cores(self) -> tuple[tuple[int, ...], ...]:
        """CPUs by core, cores of one node side by side."""
        ordered = sorted(self.cpus, key=lambda cpu: (cpu.node, cpu.core, cpu.number))
        return tuple(
            tuple(cpu.number for cpu in core) for _, core in groupby(ordered, key=lambda cpu: (cpu.node, cpu.core))
        )

    @property
    def usable(self) -> int:
        """How many cores can be kept busy."""
        return len(self.cores) if self.quota is None else max(1, min(len(self.cores), math.floor(self.quota)))

    @property
    def nodes(self) -> int:
        """How many parts with memory of their own."""
        return len({cpu.node for cpu in self.cpus})


@dataclass(frozen=True, slots=True)
class Layout:
    """Processes and their threads on a machine."""

    processes: int
    threads: int
    """Of each."""
    pins: tuple[tuple[int, ...], ...] = ()
    """CPUs of each process; empty: the system moves them as it likes."""


@dataclass(frozen=True, slots=True)
class Each:
    """What every process of a run has."""

    threads: int | None = None
    """None: a share of this machine's."""
    memory: int | None = None
    """Bytes for the network and its rows; None: a share of half of what is free here."""
    apart: bool = False
    """True: memory and device are its own, not shared with the other processes."""


def layout(machine: Machine, processes: int | None = None) -> Layout:
    """So many processes, or as many as suit, with equal shares of the cores; each gets neighbours, and only its own.

    They are not pinned where the cores are shared with others (a quota) or not enough for one each.

    >>> four = Machine(tuple(Cpu(number, number % 4) for number in range(8)))
    >>> layout(four, 2)
    Layout(processes=2, threads=2, pins=((0, 4, 1, 5), (2, 6, 3, 7)))
    """
    cores = machine.usable
    if processes is None:
        each = -(-cores // machine.nodes)
        processes = min(cores, machine.nodes * -(-each // _CORES_PER_PROCESS))
    threads = max(1, cores // processes)
    if cores < len(machine.cores) or processes > cores:
        return Layout(processes, threads)
    starts = range(0, processes * threads, threads)
    return Layout(processes, threads, tuple(sum(machine.cores[start : start + threads], ()) for start in starts))


def count_of(workers: str) -> int:
    """The number of processes that ``--workers`` asks for; 0: none but this one. OptionError when it is no number."""
    if workers == "auto":
        return layout(machine()).processes
    with suppress(ValueError):
        if (count := int(workers)) >= 0:
            return count
    raise OptionError(f"--workers {workers}: give auto, 0 (this process) or a number of processes")


def available_cpus() -> int:
    """How many cores this process can keep busy."""
    return machine().usable


def describe_processes(count: int, threads: int) -> str:
    """How `count` processes of so many threads, 0 for this one, lie on this machine: one line."""
    here = machine()
    placed = layout(here, max(1, count))
    cores, quota = len(here.cores), "" if here.quota is None else f", of which {here.quota:g} at a time"
    nodes = f", {here.nodes} NUMA nodes" if here.nodes > 1 else ""
    on = f"{cores} core{'s'[: cores - 1]} ({len(here.cpus)} CPUs{nodes}{quota})"
    if not count:
        return f"this process, {threads} thread{'s'[: threads - 1]} on {on}"
    pinned = "pinned to its own cores" if placed.pins and threads <= placed.threads else "not pinned"
    return f"{count} process{'es'[: 2 * (count - 1)]} x {threads} thread{'s'[: threads - 1]} on {on}, each {pinned}"


_before: list[set[int]] = []
"""The CPUs of this process before it was pinned."""


def pin(cpus: Iterable[int]) -> None:
    """Let every thread of this process run on `cpus` only, those that are begun later too; where the system can."""
    if hasattr(os, "sched_getaffinity") and not _before:
        _before.append(os.sched_getaffinity(0))
    for thread in Path("/proc/self/task").glob("*"):
        with suppress(OSError):  # one that has just ended, or CPUs that were taken away
            os.sched_setaffinity(int(thread.name), cpus)


def unpin(threads: int) -> None:
    """Give this process all its CPUs again if it computes with more threads than it is pinned to CPUs.

    A plan may have been made for fewer processes; threads that wait for each other on one core hardly get on.
    """
    if _before and len(os.sched_getaffinity(0)) < threads:
        pin(_before[0])


def machine(root: Path = Path("/")) -> Machine:
    """This one, as the files below `root` tell of it."""
    numbers = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    cpus = tuple(Cpu(number, _first_of_core(root, number), _node(root, number)) for number in numbers)
    return Machine(cpus, min(_quotas(root), default=None))


def _first_of_core(root: Path, number: int) -> int:
    """By the list of CPUs that share its core: ``0,64`` or ``0-1``."""
    with suppress(OSError, ValueError):
        told = (root / _CPUS / f"cpu{number}" / "topology" / "thread_siblings_list").read_text()
        return int(told.strip().replace("-", ",").split(",")[0])
    return number


def _node(root: Path, number: int) -> int:
    with suppress(ValueError):
        return min(int(path.name.removeprefix("node")) for path in (root / _CPUS / f"cpu{number}").glob("node*"))
    return 0


def _quotas(root: Path) -> Iterator[float]:
    """CPUs at a time that this process's groups may use, for each group with a limit, in both versions of cgroups."""
    with suppress(OSError):
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            _, controllers, group = line.split(":", 2)
            for top in _mounts(controllers):
                # inside of a container the path may be that outside, and the limit is at the top
                for folder in (Path(group.lstrip("/")), *Path(group.lstrip("/")).parents):
                    with suppress(OSError, ValueError):
                        yield _quota(root / top / folder, unified=not controllers)


def _mounts(controllers: str) -> tuple[Path, ...]:
    if not controllers:
        return (_CGROUPS, _CGROUPS / "unified")
    return (_CGROUPS / controllers, _CGROUPS / "cpu") if "cpu" in controllers.split(",") else ()


def _quota(folder: Path, *, unified: bool) -> float:
    """OSError when nothing is said there, ValueError when there is no limit."""
    if unified:
        quota, period = (folder / "cpu.max").read_text().split()  # "max" is no number
    else:
        quota, period = ((folder / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
    if int(quota) <= 0 or int(period) <= 0:
        raise ValueError(quota)
    return int(quota) / int(period)
