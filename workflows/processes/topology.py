"""How many cores there are for a run, and how processes and their threads share them.

Cores count, not the threads that share one: two of these compute hardly faster than one, and wait for each other.
"""

from dataclasses import dataclass

import psutil
from dask.system import cpu_count

from fcn_batch.pipeline.core.errors import OptionError

_CORES_PER_PROCESS = 4
"""With --workers auto: reading, scaling and writing take one thread of each process, whatever the others do."""
ENVIRON = {"MALLOC_ARENA_MAX": "1"} | {f"{library}_NUM_THREADS": "1" for library in ("OMP", "MKL", "OPENBLAS", "GDAL")}
"""Of a worker on CPUs, from its first moment on.

torch gets its threads by the plan; any others would fight with these. A worker computes in a thread, and glibc gives
what a thread has freed back to the system after every layer, unless all threads have one arena: that took twice the
time (`docs/scale.md`).
"""


@dataclass(frozen=True, slots=True)
class Each:
    """What every process of a run has."""

    threads: int | None = None
    """None: a share of this machine's."""
    memory: int | None = None
    """Bytes for the network and its rows; None: a share of half of what is free here."""
    apart: bool = False
    """True: memory and device are its own, not shared with the other processes."""


def available_cpus() -> int:
    """Return how many cores this process can keep busy: those of its affinity, and of its control group's quota."""
    process, logical = psutil.Process(), psutil.cpu_count() or 1
    allowed = len(process.cpu_affinity()) if hasattr(process, "cpu_affinity") else logical
    cores = -(-allowed * (psutil.cpu_count(logical=False) or logical) // logical)
    return max(1, min(cpu_count(), cores))


def count_of(workers: str) -> int:
    """Return the number of processes that ``--workers`` asks for; 0: none but this one."""
    if workers == "auto":
        return -(-available_cpus() // _CORES_PER_PROCESS)
    if workers.strip().isdecimal():
        return int(workers)
    raise OptionError(
        "workers-invalid", "--workers {value}: give auto, 0 (this process) or a number of processes", value=workers
    )


def describe_processes(count: int, threads: int) -> str:
    """Return in one line how `count` processes of so many threads, 0 for this one, share this machine's cores."""
    cores = available_cpus()
    who = f"{count} process{'es'[: 2 * (count - 1)]} x" if count else "this process,"
    return f"{who} {threads} thread{'s'[: threads - 1]} on {cores} core{'s'[: cores - 1]}"
