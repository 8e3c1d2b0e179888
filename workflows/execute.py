"""Run blocks on Dask: inside this process by default, or on worker processes. The only module that knows dask.

A task is one block (seconds of work); what travels is a ticket of a few strings and an index one way, a receipt the
other way. The plan, the model and the pixels are read and written by the workers themselves. Every process has
two threads and one lock on its device: while one thread computes, the other reads its block or writes.
"""

import logging
import pydoc
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any

import fcn_batch
from fcn_batch.pipeline.errors import FcnBatchError, OptionError, OutputError
from fcn_batch.pipeline.journal import Receipt
from fcn_batch.workflows.steps import JobTicket, close_job, run_block

if TYPE_CHECKING:
    from distributed import Client, Future

_THREADS_PER_PROCESS = 2  # one computes, one reads ahead or writes
_CONNECT_TIMEOUT_S = 30
_WITHOUT_WORKERS_S = 60.0  # long enough for a batch system to start a lost worker again
_LOOKS_MEANWHILE = 12  # how often it is looked for workers in that time
_LAST_PORT = 65535
_RUN_AGAIN = "finished blocks are kept: run the same command again"
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
        if self.address is None:
            return
        if self.count:
            raise OptionError("--workers and --scheduler exclude each other: the scheduler has its own workers")
        _check_address(self.address)


def execute(ticket: JobTicket, blocks: Sequence[int], workers: Workers, on_receipt: OnReceipt) -> None:
    """Run `blocks`; `on_receipt` is called in this thread as each one is finished, in any order.

    The first error of a block is raised here; blocks that were under way finish, the others are not begun.
    """
    if not blocks:
        return
    if not workers.count and workers.address is None:
        _in_this_process(ticket, blocks, on_receipt)
        return
    with _silent(), _client(workers) as client:
        _on_cluster(_Run(client, workers.address or "of this run's workers"), ticket, blocks, on_receipt)


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


@dataclass(slots=True)
class _Run:
    """The blocks in flight on a cluster, and whether it is still there to finish them."""

    client: "Client"
    address: str
    running: "set[Future[Any]]" = field(default_factory=set)
    _done: "SimpleQueue[Future[Any]]" = field(default_factory=SimpleQueue)
    _workers_seen: float = 0.0

    def submit(self, ticket: JobTicket, block: int) -> None:
        """Put one more block in flight."""
        future = self.client.submit(_run_block_afar, ticket, block, pure=False)
        self.running.add(future)
        future.add_done_callback(self._done.put)

    def next_receipt(self) -> Receipt:
        """Wait for one block; its error is raised here. Gives up when there are no workers for too long."""
        future: Future[Any] | None = None
        look_every = _WITHOUT_WORKERS_S / _LOOKS_MEANWHILE
        self._workers_seen = time.monotonic()
        while True:
            try:
                future = future or self._done.get(timeout=look_every)
                receipt: Receipt = future.result(timeout=look_every)  # computed again if its worker dies just now
            except (Empty, TimeoutError):
                if future is not None and future.status == "error":
                    raise  # the block's own: a share that does not answer, say
                self._look_for_workers()
            else:
                self.running.discard(future)
                return receipt

    def _look_for_workers(self) -> None:
        from distributed.comm.core import CommClosedError

        if self.client.status != "running":
            raise CommClosedError
        now = time.monotonic()
        if self.client.nthreads():
            self._workers_seen = now
        elif now - self._workers_seen >= _WITHOUT_WORKERS_S:
            raise OutputError(
                f"no workers at the scheduler {self.address} for {_WITHOUT_WORKERS_S:g} s: start some; {_RUN_AGAIN}"
            )


def _on_cluster(run: _Run, ticket: JobTicket, blocks: Sequence[int], on_receipt: OnReceipt) -> None:
    """Keep as many blocks in flight as there are worker threads: the scheduler's memory stays flat."""
    from distributed import KilledWorker
    from distributed.client import ClosedClientError
    from distributed.comm.core import CommClosedError

    waiting = deque(blocks)
    try:
        for _ in range(min(len(waiting), max(1, sum(run.client.nthreads().values())))):
            run.submit(ticket, waiting.popleft())
        while run.running:
            on_receipt(run.next_receipt())
            if waiting:
                run.submit(ticket, waiting.popleft())
    except KilledWorker as error:
        raise OutputError(
            f"a worker process died ({error}), killed for its memory perhaps; {_RUN_AGAIN}, "
            "with fewer --workers or a smaller --tile"
        ) from error
    except (CancelledError, CommClosedError, ClosedClientError) as error:
        raise OutputError(f"lost the scheduler {run.address}; {_RUN_AGAIN} when it is up") from error
    except RuntimeError as error:
        if isinstance(error.__cause__, ImportError | AttributeError):  # the scheduler unpickles what it passes on
            raise _not_installed(f"the scheduler {run.address}", f"({error.__cause__})") from error
        raise
    except FcnBatchError:
        run.client.cancel(list(run.running))
        raise


def _check_address(address: str) -> None:
    """Refuse what a client cannot dial: distributed notices only after it has begun to connect."""
    from distributed.comm.addressing import get_address_host_port

    try:
        host, port = get_address_host_port(address, strict=True)
    except (ValueError, ImportError) as error:
        problem = str(error)
    else:
        if host and 0 < port <= _LAST_PORT:
            return
        problem = f"host {host!r}, port {port}"
    raise OptionError(f"--scheduler {address}: not the address of a scheduler ({problem}); give tcp://HOST:PORT")


def _not_installed(where: str, found: str) -> OptionError:
    return OptionError(
        f"--scheduler: {where} cannot run fcn-batch {fcn_batch.__version__} {found}; "
        "install the same version there and here"
    )


@contextmanager
def _silent() -> Iterator[None]:
    """Keep distributed's log off standard error: what matters of it is raised and told in one line."""
    import distributed

    # each of these may have a handler of its own, from dask's configuration
    names = (distributed.__name__, "distributed.client", "distributed.gc", "tornado", "tornado.application")
    with ExitStack() as restore:
        for handler in {handler for name in names for handler in logging.getLogger(name).handlers}:
            restore.callback(handler.setLevel, handler.level)
            handler.setLevel(logging.CRITICAL + 1)
        yield


def _connect(address: str) -> "Client":
    from distributed import Client

    class Closing(Client):
        """Closed at once when it cannot connect; left to the end of the process, that waits for a minute."""

        def start(self, **kwargs: Any) -> None:
            try:
                Client.start(self, **kwargs)
            except BaseException:
                Client.close(self)
                raise

    connect: Callable[..., Client] = Closing
    try:
        return connect(address, timeout=_CONNECT_TIMEOUT_S, set_as_default=False)
    except (OSError, ValueError, TypeError, ImportError) as error:
        raise OptionError(f"--scheduler {address}: no Dask scheduler answers there ({error})") from error


def _check_workers(client: "Client", address: str) -> None:
    """OptionError unless there are workers, all of them with this version of the program."""
    # a function that every Python has: one of ours could not even be unpickled, and the worker would just die
    versions = client.run(pydoc.locate, "fcn_batch.__version__", on_error="return")
    if not versions:
        raise OptionError(f"--scheduler {address}: the scheduler has no workers; start some")
    for worker, version in versions.items():
        if version != fcn_batch.__version__ and not isinstance(version, OSError):  # which is a worker just lost
            found = version if isinstance(version, str) else "none"  # an error: it cannot be imported there
            raise _not_installed(f"the worker {worker} of {address}", f"(it has {found})")


@contextmanager
def _client(workers: Workers) -> "Iterator[Client]":
    """A client of the asked-for workers; local ones, and their dashboard, listen on loopback only."""
    from distributed import Client, LocalCluster

    if workers.address is not None:
        with _connect(workers.address) as client:
            _check_workers(client, workers.address)
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
