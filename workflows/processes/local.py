"""Worker processes on this machine, each on its own cores. One of the modules that know dask.distributed."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing import active_children, resource_tracker
from typing import TYPE_CHECKING

import dask
from distributed import LocalCluster, WorkerPlugin
from distributed.utils import LoopRunner

from fcn_batch.workflows.console.logs import level_of_dask
from fcn_batch.workflows.console.signals import unheard
from fcn_batch.workflows.processes.topology import ENVIRON, layout, machine, pin

if TYPE_CHECKING:
    from distributed import Worker
    from tornado.ioloop import IOLoop

LOOPBACK = "127.0.0.1"
THREADS_PER_PROCESS = 1
"""Of Dask: a pass has its own for reading and writing, and the network those of the plan."""


class Pin(WorkerPlugin):
    """Keeps a worker, also one that replaces another, on the cores of its number."""

    name = "fcn-batch-pin"

    def __init__(self, pins: tuple[tuple[int, ...], ...]) -> None:
        self.pins = pins

    def setup(self, worker: "Worker") -> None:
        """Before the worker has computed anything: threads begin with the CPUs of those that begin them."""
        pin(self.pins[int(worker.name) % len(self.pins)])


@contextmanager
def local_cluster(count: int) -> Iterator[LocalCluster]:
    """So many processes; they, the scheduler and the dashboard listen on loopback only."""
    pins = layout(machine(), count).pins
    with (
        deaf_loop() as loop,
        dask.config.set({f"distributed.nanny.pre-spawn-environ.{name}": value for name, value in ENVIRON.items()}),
    ):
        cluster = LocalCluster(
            n_workers=count,
            threads_per_worker=THREADS_PER_PROCESS,
            processes=True,
            host=LOOPBACK,
            dashboard_address=f"{LOOPBACK}:0",
            memory_limit=0,
            silence_logs=level_of_dask(),
            loop=loop,
            plugins=(Pin(pins),) if pins else (),
        )
        try:
            yield cluster
        finally:
            with suppress(TimeoutError):  # on a busy machine; `deaf_loop` kills who has not ended by then
                cluster.close()


@contextmanager
def deaf_loop() -> "Iterator[IOLoop]":
    """A loop for a cluster, in a thread that hears no signals; nor do the processes that it starts."""
    runner, others = LoopRunner(), set(active_children())
    resource_tracker.ensure_running()  # begun later, by the thread that starts workers, it would let that hear again
    with unheard():
        runner.start()
    try:
        yield runner.loop
    finally:
        for child in set(active_children()) - others:  # closing was interrupted: Python would wait for them to end
            child.kill()
        runner.stop()
