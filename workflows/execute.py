"""Run blocks on Dask: inside this process by default, or on worker processes. The only module that knows dask.

A task is one block (seconds of work); what travels is a ticket of a few strings and an index one way, a receipt the
other way. The plan, the model and the pixels are read and written by the workers themselves. Every process has
two threads and one lock on its device: while one thread computes, the other reads its block or writes.
"""

import logging
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fcn_batch.pipeline.errors import FcnBatchError, OptionError, OutputError
from fcn_batch.pipeline.journal import Receipt
from fcn_batch.workflows.steps import JobTicket, close_job, run_block

if TYPE_CHECKING:
    from distributed import Client

_THREADS_PER_PROCESS = 2  # one computes, one reads ahead or writes
_CONNECT_TIMEOUT_S = 30
_LOOPBACK = "127.0.0.1"

OnReceipt = Callable[[Receipt], None]


@dataclass(frozen=True, slots=True)
class Workers:
    """Where blocks run: in this process, on `count` local processes, or on the scheduler at `address`."""

    count: int = 0
    address: str | None = None

    def __post_init__(self) -> None:
        if self.count < 0:
            raise OptionError(f"--workers {self.count}: give 0 (this process) or a number of processes")
        if self.count and self.address:
            raise OptionError("--workers and --scheduler exclude each other: the scheduler has its own workers")


def execute(ticket: JobTicket, blocks: Sequence[int], workers: Workers, on_receipt: OnReceipt) -> None:
    """Run `blocks`; `on_receipt` is called in this thread as each one is finished, in any order.

    The first error of a block is raised here; blocks that were under way finish, the others are not begun.
    """
    if not blocks:
        return
    if not workers.count and workers.address is None:
        _in_this_process(ticket, blocks, on_receipt)
        return
    with _client(workers) as client:
        _on_cluster(client, ticket, blocks, on_receipt)


def _in_this_process(ticket: JobTicket, blocks: Sequence[int], on_receipt: OnReceipt) -> None:
    from dask.base import compute
    from dask.callbacks import Callback
    from dask.delayed import delayed

    waiting = deque(blocks)

    def run_next() -> Receipt:
        # dask runs independent tasks in an order of its own; striped files are read best row by row
        return run_block(ticket, waiting.popleft())

    tasks = [delayed(run_next, pure=False)() for _ in blocks]

    def finished(_key: Any, result: Any, *_rest: Any) -> None:
        if isinstance(result, Receipt):
            on_receipt(result)

    try:
        # a pool of its own: leaving it waits for the blocks that are under way when another one fails
        with Callback(posttask=finished), ThreadPoolExecutor(_THREADS_PER_PROCESS) as pool:
            compute(*tasks, scheduler="threads", pool=pool, optimize_graph=False)
    finally:
        close_job()


def _run_block_afar(ticket: JobTicket, index: int) -> Receipt:
    """`run_block` whose errors can travel: what libraries raised, kept as causes, may not unpickle."""
    try:
        return run_block(ticket, index)
    except FcnBatchError as error:
        failure: Exception = type(error)(str(error))
    except OSError as error:
        failure = OSError(error.errno, error.strerror or str(error), error.filename)
    raise failure  # outside of the handlers, so that the first one is not carried along as its context


def _on_cluster(client: "Client", ticket: JobTicket, blocks: Sequence[int], on_receipt: OnReceipt) -> None:
    """Keep as many blocks in flight as there are worker threads: the scheduler's memory stays flat."""
    from distributed import KilledWorker, as_completed

    waiting = iter(blocks)

    def submit() -> Iterator[Any]:
        for block in waiting:
            yield client.submit(_run_block_afar, ticket, block, pure=False)
            return

    in_flight = max(1, sum(client.nthreads().values()))
    # without a loop it looks for a default client, and there is none
    running = as_completed([future for _ in range(in_flight) for future in submit()], loop=client.loop)
    try:
        for future in running:
            on_receipt(future.result())
            for new in submit():
                running.add(new)
    except KilledWorker as error:
        raise OutputError(
            f"a worker process died ({error}), killed for its memory perhaps; finished blocks are kept: "
            "run the same command again, with fewer --workers or a smaller --tile"
        ) from error
    except FcnBatchError:
        client.cancel(list(running.futures))
        raise


@contextmanager
def _client(workers: Workers) -> "Iterator[Client]":
    """A client of the asked-for workers; local ones, and their dashboard, listen on loopback only."""
    from distributed import Client, LocalCluster

    if workers.address is not None:
        try:
            client = Client(workers.address, timeout=_CONNECT_TIMEOUT_S, set_as_default=False)
        except (OSError, ValueError) as error:
            raise OptionError(f"--scheduler {workers.address}: no Dask scheduler answers there ({error})") from error
        with client:
            if not client.nthreads():
                raise OptionError(f"--scheduler {workers.address}: the scheduler has no workers; start some")
            yield client
        return
    with (
        LocalCluster(
            n_workers=workers.count,
            threads_per_worker=_THREADS_PER_PROCESS,
            processes=True,
            host=_LOOPBACK,
            dashboard_address=f"{_LOOPBACK}:0",
            memory_limit=0,
            silence_logs=logging.CRITICAL,
        ) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        yield client
