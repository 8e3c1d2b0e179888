"""Run segments on Dask: inside this process by default, or on worker processes. The only module that knows dask.

A task is the wanted blocks of one segment (minutes to hours of work); what travels is a ticket of a few strings and
the blocks' numbers one way, and the other way a receipt for every finished block, as it is finished. The plan, the
model and the pixels are read and written by the workers themselves, each of which does one segment at a time.
"""

import logging
import pydoc
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any

import fcn_batch
from fcn_batch.pipeline.errors import FcnBatchError, OptionError, OutputError
from fcn_batch.pipeline.journal import Receipt
from fcn_batch.pipeline.tiling import Work
from fcn_batch.workflows.job import JobTicket, close_job
from fcn_batch.workflows.steps import OnReceipt, run_work

if TYPE_CHECKING:
    from distributed import Client, Future

_THREADS_PER_PROCESS = 1  # a pass has its own for reading and writing
_CONNECT_TIMEOUT_S = 30
_WITHOUT_WORKERS_S = 60.0  # long enough for a batch system to start a lost worker again
_LOOKS_MEANWHILE = 12  # how often it is looked for workers in that time
_LAST_PORT = 65535
_RUN_AGAIN = "finished blocks are kept: run the same command again"
_LOOPBACK = "127.0.0.1"


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


def execute(ticket: JobTicket, works: Sequence[Work], workers: Workers, on_receipt: OnReceipt) -> None:
    """Do `works`; `on_receipt` is called in this thread as each block is finished, in any order, perhaps twice.

    The first error of a block is raised here; on other processes, segments that are under way go on to their end.
    """
    if not works:
        return
    if not workers.count and workers.address is None:
        _in_this_process(ticket, works, on_receipt)
        return
    with _silent(), _client(workers) as client:
        run = _Run(client, workers.address or "of this run's workers", on_receipt)
        _on_cluster(run, ticket, works)


def _in_this_process(ticket: JobTicket, works: Sequence[Work], on_receipt: OnReceipt) -> None:
    from dask.base import compute
    from dask.delayed import delayed

    waiting = deque(works)

    def run_next() -> None:
        # dask runs independent tasks in an order of its own
        run_work(ticket, waiting.popleft(), on_receipt)

    tasks = [delayed(run_next, pure=False)() for _ in works]
    try:
        compute(*tasks, scheduler="synchronous", optimize_graph=False)
    finally:
        close_job()


def _run_work_afar(ticket: JobTicket, work: Work, topic: str) -> list[str]:
    """`run_work` on a worker: receipts, as JSON, are told as they come and returned again at the end.

    Errors must be able to travel: what libraries raised, kept as causes, may not unpickle.
    """
    from distributed import get_worker

    receipts: list[str] = []

    def tell(receipt: Receipt) -> None:
        receipts.append(receipt.model_dump_json())
        get_worker().log_event(topic, receipts[-1])

    try:
        run_work(ticket, work, tell)
    except FcnBatchError as error:
        failure: Exception = type(error)(str(error))
    except OSError as error:
        failure = OSError(error.errno, error.strerror or str(error), error.filename)
    else:
        return receipts
    raise failure  # outside of the handlers, so that the first one is not carried along as its context


@dataclass(slots=True)
class _Run:
    """The segments in flight on a cluster, and whether it is still there to finish them."""

    client: "Client"
    address: str
    on_receipt: OnReceipt
    running: "set[Future[Any]]" = field(default_factory=set)
    _topic: str = field(default_factory=lambda: f"fcn-batch-{uuid.uuid4()}")
    _news: "SimpleQueue[Future[Any] | str]" = field(default_factory=SimpleQueue)
    _workers_seen: float = 0.0

    def listen(self) -> None:
        """Hear of blocks as they are finished."""
        self.client.subscribe_topic(self._topic, lambda event: self._news.put(event[1]))

    def submit(self, ticket: JobTicket, work: Work) -> None:
        """Put one more segment in flight."""
        future = self.client.submit(_run_work_afar, ticket, work, self._topic, pure=False)
        self.running.add(future)
        future.add_done_callback(self._news.put)

    def next_end(self) -> None:
        """Wait for the end of one segment; its error is raised here. Gives up without workers for too long."""
        future: Future[Any] | None = None
        look_every = _WITHOUT_WORKERS_S / _LOOKS_MEANWHILE
        self._workers_seen = time.monotonic()
        while True:
            try:
                if future is None:
                    news = self._news.get(timeout=look_every)
                    if isinstance(news, str):
                        self._workers_seen = time.monotonic()
                        self.on_receipt(Receipt.model_validate_json(news))
                        continue
                    future = news
                receipts = future.result(timeout=look_every)  # computed again if its worker dies just now
            except (Empty, TimeoutError):
                if future is not None and future.status == "error":
                    raise  # the segment's own: a share that does not answer, say
                self._look_for_workers()
            else:
                self.running.discard(future)
                for receipt in receipts:  # told already, unless a message was lost
                    self.on_receipt(Receipt.model_validate_json(receipt))
                return

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


def _on_cluster(run: _Run, ticket: JobTicket, works: Sequence[Work]) -> None:
    """Keep as many segments in flight as there are worker threads: the scheduler's memory stays flat."""
    from distributed import KilledWorker
    from distributed.client import ClosedClientError
    from distributed.comm.core import CommClosedError

    waiting = deque(works)
    try:
        run.listen()
        for _ in range(min(len(waiting), max(1, sum(run.client.nthreads().values())))):
            run.submit(ticket, waiting.popleft())
        while run.running:
            run.next_end()
            if waiting:
                run.submit(ticket, waiting.popleft())
    except KilledWorker as error:
        raise OutputError(
            f"a worker process died ({error}), killed for its memory perhaps; {_RUN_AGAIN}, "
            "with fewer --workers or less --memory"
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
