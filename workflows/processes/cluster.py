"""Segments on other processes, by dask.distributed.

What travels to a worker is a ticket of a few strings and the blocks' numbers, and back come receipts as they are
finished. Each worker does one segment at a time; one that has none gets the lower half of another's. An event tells
workers to end after the block under way.
"""

import math
import socket
import time
import uuid
from collections import deque
from collections.abc import Sequence
from concurrent.futures import CancelledError
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any

from fcn_batch.pipeline.core.errors import FcnBatchError, OptionError, OutputError
from fcn_batch.pipeline.core.journal import Journal, Receipt
from fcn_batch.pipeline.core.location import input_of
from fcn_batch.pipeline.core.tiling import Work
from fcn_batch.workflows.blocks.job import Job, JobTicket, open_job
from fcn_batch.workflows.blocks.steps import OnReceipt, run_work
from fcn_batch.workflows.console.signals import Stop
from fcn_batch.workflows.processes.crew import connected, not_installed
from fcn_batch.workflows.processes.topology import unpin
from fcn_batch.workflows.processes.workers import Workers

if TYPE_CHECKING:
    from distributed import Client, Future

_LOOKS_MEANWHILE = 60  # how often it is looked for workers, and for a signal to stop, in that time
_LOOK_EVERY_S = 1.0
_TELL_EVERY_S = 1.0
_RUN_AGAIN = "finished blocks are kept: run the same command again"


def on_workers(ticket: JobTicket, works: Sequence[Work], workers: Workers, on_receipt: OnReceipt, stop: Stop) -> None:
    """`execute` on other processes."""
    folder = None
    if workers.cluster is not None:
        folder = Path(ticket.staging).parent  # all jobs must see it anyway
        if workers.cluster.kind == "cuda" and ticket.device != "cuda:0":
            raise OptionError(
                f"--cluster cuda: a plan for {ticket.device}; leave --device out: each process has its own"
            )
    with connected(workers, stop, folder) as client:
        run = _Run(client, workers.told, on_receipt, stop, workers.own, workers.patience)
        _on_cluster(run, ticket, works)


@cache
def _stop_of(_topic: str) -> Stop:
    """What tells the tasks of a run, in this process, to end."""
    return Stop()


def _request_stop(topic: str) -> None:
    _stop_of(topic).request()


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
        unpin(_opened(ticket).plan.kernel.threads)
        run_work(ticket, work, tell, _stop_of(topic))
    except FcnBatchError as error:
        failure: Exception = type(error)(str(error))
    except OSError as error:
        failure = OSError(error.errno, error.strerror or str(error), error.filename)
    else:
        return receipts
    raise failure  # outside of the handlers, so that the first one is not carried along as its context


def _opened(ticket: JobTicket) -> Job:
    """The job, here; OutputError when this machine does not see what the one that made the plan sees."""
    staging = Path(ticket.staging)
    needed = [staging]
    if staging.is_dir():
        plan = Journal(staging).plan()
        inputs = [place for place in map(input_of, plan.input.places) if isinstance(place, Path)]
        needed += [*inputs, Path(plan.model.path)]
    for path in needed:
        if not path.exists():
            raise OutputError(
                f"{path}: a worker on {socket.gethostname()} does not see it; outputs, input and model must be on "
                "storage that all workers share, under the same path"
            )
    return open_job(ticket)


@dataclass(slots=True)
class _Run:
    """The segments in flight on a cluster, and whether it is still there to finish them."""

    client: "Client"
    address: str
    on_receipt: OnReceipt
    stop: Stop
    own: bool
    """True: the workers are for this command only."""
    patience: float
    """Seconds without any worker after which the run gives up."""
    running: "dict[Future[Any], Work]" = field(default_factory=dict)
    """What is expected of each."""
    _topic: str = field(default_factory=lambda: f"fcn-batch-{uuid.uuid4()}")
    _news: "SimpleQueue[Future[Any] | str]" = field(default_factory=SimpleQueue)
    _done: set[int] = field(default_factory=set)
    _threads: int = 1
    _looked: float = -math.inf
    _workers_seen: float = field(default_factory=time.monotonic)
    _workers_told: float = -math.inf

    def listen(self) -> None:
        """Hear of blocks as they are finished."""
        self.client.subscribe_topic(self._topic, lambda event: self._news.put(event[1]))

    @property
    def idle(self) -> bool:
        """Whether a worker waits for something to do; workers come and go."""
        return len(self.running) < self._threads

    def submit(self, ticket: JobTicket, work: Work) -> None:
        """Put one more segment in flight."""
        future = self.client.submit(_run_work_afar, ticket, work, self._topic, pure=False)
        self.running[future] = work
        future.add_done_callback(self._news.put)

    def split(self) -> Work | None:
        """The lower half of what is left of the longest segment under way; None when none has two blocks left.

        Who is at the upper half finds the other one claimed, and ends there.
        """
        left = {future: [block for block in work if block not in self._done] for future, work in self.running.items()}
        longest = max(left, key=lambda future: len(left[future]), default=None)
        if longest is None or len(left[longest]) <= 1:
            return None
        upper = -(-len(left[longest]) // 2)
        self.running[longest] = tuple(left[longest][:upper])
        return tuple(left[longest][upper:])

    def advance(self) -> None:
        """Wait for what comes next: a block, the end of a segment, whose error is raised here, or nothing for a while.

        Gives up without workers for too long.
        """
        self._drain()
        self._look_for_workers()
        try:
            news = self._news.get(timeout=self._pause)
        except Empty:
            return
        if isinstance(news, str):
            self._hear(news)
            return
        try:
            receipts = news.result(timeout=self._pause)  # computed again if its worker dies just now
        except TimeoutError:
            if news.status == "error":
                raise  # the segment's own: a share that does not answer, say
            self._news.put(news)
            return
        del self.running[news]
        for receipt in receipts:  # told already, unless a message was lost
            self._hear(receipt)

    def _hear(self, text: str) -> None:
        self._workers_seen = time.monotonic()
        receipt = Receipt.model_validate_json(text)
        self._done.add(receipt.block)
        self.on_receipt(receipt)

    @property
    def _pause(self) -> float:
        return min(_LOOK_EVERY_S, self.patience / _LOOKS_MEANWHILE)

    def _drain(self) -> None:
        """When the run is to stop: tell the workers; give up when there is no more time."""
        self.stop.check()
        if self.stop.requested and time.monotonic() - self._workers_told >= _TELL_EVERY_S:  # new ones do not know
            self.tell_workers()

    def tell_workers(self) -> None:
        """That they are to end after the block under way."""
        with suppress(OSError):  # the scheduler has gone, which shows otherwise too
            self.client.run(_request_stop, self._topic, on_error="ignore")
        self._workers_told = time.monotonic()

    def _look_for_workers(self) -> None:
        from distributed.comm.core import CommClosedError

        if self.client.status != "running":
            raise CommClosedError
        now = time.monotonic()
        if now - self._looked < self._pause:
            return
        threads = sum(self.client.nthreads().values())
        self._looked, self._threads = now, max(1, threads)
        if threads:
            self._workers_seen = now
        elif now - self._workers_seen >= self.patience:
            for_so_long = f"for {self.patience:g} s"
            if self.own:
                raise OutputError(f"none of this run's workers has come back {for_so_long}; {_RUN_AGAIN}")
            raise OutputError(f"no workers at the scheduler {self.address} {for_so_long}: start some; {_RUN_AGAIN}")


def _to_the_end(run: _Run, ticket: JobTicket, waiting: deque[Work]) -> None:
    """Keep as many segments in flight as there are worker threads: the scheduler's memory stays flat."""
    run.listen()
    while waiting or run.running:
        while run.idle and not run.stop.requested:
            work = waiting.popleft() if waiting else run.split()
            if work is None:
                break
            run.submit(ticket, work)
        if not run.running:
            return  # it is to stop
        run.advance()


def _on_cluster(run: _Run, ticket: JobTicket, works: Sequence[Work]) -> None:
    from distributed import KilledWorker
    from distributed.client import ClosedClientError
    from distributed.comm.core import CommClosedError

    try:
        _to_the_end(run, ticket, deque(works))
    except KilledWorker as error:
        raise OutputError(
            f"a worker process died ({error}), killed for its memory perhaps; {_RUN_AGAIN}, "
            "with fewer --workers or less --memory"
        ) from error
    except (CancelledError, CommClosedError, ClosedClientError) as error:
        raise OutputError(f"lost the scheduler {run.address}; {_RUN_AGAIN} when it is up") from error
    except RuntimeError as error:
        if isinstance(error.__cause__, ImportError | AttributeError):  # the scheduler unpickles what it passes on
            raise not_installed(f"the scheduler {run.address}", f"({error.__cause__})") from error
        raise
    except (FcnBatchError, OSError, KeyboardInterrupt):
        if run.stop.requested or run.own:
            run.tell_workers()
        run.client.cancel(list(run.running))
        raise
