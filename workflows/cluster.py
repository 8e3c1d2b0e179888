"""Segments on other processes. With `workers.py` the only module that knows dask.distributed.

What travels to a worker is a ticket of a few strings and the blocks' numbers, and back come receipts as they are
finished. Each worker does one segment at a time. An event tells workers to end after the block under way.
"""

import math
import time
import uuid
from collections import deque
from collections.abc import Sequence
from concurrent.futures import CancelledError
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any

from fcn_batch.pipeline.errors import FcnBatchError, OutputError
from fcn_batch.pipeline.journal import Receipt
from fcn_batch.pipeline.tiling import Work
from fcn_batch.workflows.job import JobTicket
from fcn_batch.workflows.signals import Stop
from fcn_batch.workflows.steps import OnReceipt, run_work
from fcn_batch.workflows.workers import Workers, connected, not_installed, silent

if TYPE_CHECKING:
    from distributed import Client, Future

_WITHOUT_WORKERS_S = 60.0  # long enough for a batch system to start a lost worker again
_LOOKS_MEANWHILE = 60  # how often it is looked for workers, and for a signal to stop, in that time
_TELL_EVERY_S = 1.0
_RUN_AGAIN = "finished blocks are kept: run the same command again"


def on_workers(ticket: JobTicket, works: Sequence[Work], workers: Workers, on_receipt: OnReceipt, stop: Stop) -> None:
    """`execute` on other processes."""
    with silent(), connected(workers) as client:
        _on_cluster(_Run(client, workers.address or "of this run's workers", on_receipt, stop), ticket, works)


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
        run_work(ticket, work, tell, _stop_of(topic))
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
    stop: Stop
    running: "set[Future[Any]]" = field(default_factory=set)
    _topic: str = field(default_factory=lambda: f"fcn-batch-{uuid.uuid4()}")
    _news: "SimpleQueue[Future[Any] | str]" = field(default_factory=SimpleQueue)
    _workers_seen: float = 0.0
    _workers_told: float = -math.inf

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
            self._drain()
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
        if self.client.nthreads():
            self._workers_seen = now
        elif now - self._workers_seen >= _WITHOUT_WORKERS_S:
            raise OutputError(
                f"no workers at the scheduler {self.address} for {_WITHOUT_WORKERS_S:g} s: start some; {_RUN_AGAIN}"
            )


def _to_the_end(run: _Run, ticket: JobTicket, waiting: deque[Work]) -> None:
    """Keep as many segments in flight as there are worker threads: the scheduler's memory stays flat."""
    run.listen()
    most = max(1, sum(run.client.nthreads().values()))
    while True:
        while waiting and len(run.running) < most and not run.stop.requested:
            run.submit(ticket, waiting.popleft())
        if not run.running:
            return
        run.next_end()


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
    except (FcnBatchError, KeyboardInterrupt):
        if run.stop.requested:
            run.tell_workers()
        run.client.cancel(list(run.running))
        raise
