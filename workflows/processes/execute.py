"""Run segments: one after the other in this process, or on Dask workers.

A task is the wanted blocks of one segment (minutes to hours of work). The plan, the model and the pixels are read and
written where it is done. To a worker travel a ticket of a few strings and the blocks' numbers, and back come receipts
as they are finished. Each worker does one segment at a time; one that has none gets the lower half of another's. An
event tells workers to end after the block under way.
"""

import math
import socket
import time
import uuid
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from itertools import groupby
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any

from fcn_batch.pipeline.core.errors import FcnBatchError, OptionError, OutputError
from fcn_batch.pipeline.core.journal import Journal, Receipt
from fcn_batch.pipeline.core.location import input_of
from fcn_batch.pipeline.core.tiling import Work
from fcn_batch.workflows.blocks.job import JobTicket, close_job
from fcn_batch.workflows.blocks.steps import OnReceipt, run_work
from fcn_batch.workflows.console.signals import Stop
from fcn_batch.workflows.processes.crew import kept, not_installed
from fcn_batch.workflows.processes.workers import Workers

if TYPE_CHECKING:
    from distributed import Client, Future

_LOOKS_MEANWHILE = 60  # how often it looks for workers, and for a signal to stop, in that time
_LOOK_EVERY_S = 1.0
_TELL_EVERY_S = 1.0
_MOST_FAILURES = 2
"""After so many dead workers, a block is at fault."""
_SUSPECTS = 2
"""Of a segment whose worker died: the block that was computed, and the one before it, which was being written."""


def execute(ticket: JobTicket, works: Sequence[Work], workers: Workers, on_receipt: OnReceipt, stop: Stop) -> None:
    """Do `works`; `on_receipt` is called in this thread as each block is finished, in any order, perhaps twice.

    Blocks that other runs are at are left to them. When `stop` is requested, blocks under way are finished. The first
    error of a block is raised here; on other processes, segments that are under way go on to their end.
    """
    if not works:
        return
    if workers.elsewhere:
        _on_workers(ticket, works, workers, on_receipt, stop)
        return
    try:
        for work in works:
            run_work(ticket, work, on_receipt, stop)
    finally:
        close_job()


def _on_workers(ticket: JobTicket, works: Sequence[Work], workers: Workers, on_receipt: OnReceipt, stop: Stop) -> None:
    if workers.cluster is not None and workers.cluster.kind == "cuda" and ticket.device != "cuda:0":
        raise OptionError(
            "option-conflict",
            "--cluster cuda: a plan for {device}; leave --device out: each process has its own",
            device=ticket.device,
        )
    with kept(workers) as own:
        assert own.crew is not None, "as kept"
        client = own.crew.client(workers, Path(ticket.staging).parent)  # all jobs must see it anyway
        _OnDask(client, ticket, workers, on_receipt, stop, own.crew.failures).run(works)


@cache
def _stop_of(_topic: str) -> Stop:
    """Return what tells the tasks of a run, in this process, to end."""
    return Stop()


def _request_stop(topic: str) -> None:
    _stop_of(topic).request()


def _run_afar(ticket: JobTicket, work: Work, topic: str, leave_out: bool) -> list[str]:  # noqa: FBT001 - a Dask task
    """`run_work` on a worker: receipts, as JSON, are sent as they come and returned again at the end.

    Errors must be able to travel: what libraries raised, kept as causes, may not unpickle.
    """
    from distributed import get_worker

    receipts: list[str] = []

    def send(receipt: Receipt) -> None:
        receipts.append(receipt.model_dump_json())
        get_worker().log_event(topic, receipts[-1])

    try:
        _check_paths(ticket)
        run_work(ticket, work, send, _stop_of(topic), leave_out=leave_out)
    except FcnBatchError as error:
        make, arguments = error.__reduce__()
        failure: Exception = make(*arguments)
    except OSError as error:
        failure = OSError(error.errno, error.strerror or str(error), error.filename)
    else:
        return receipts
    raise failure  # outside of the handlers, so that the first one is not carried along as its context


def _check_paths(ticket: JobTicket) -> None:
    """Refuse when this machine does not see what the one that made the plan sees."""
    staging = Path(ticket.staging)
    needed = [staging]
    if staging.is_dir():
        plan = Journal(staging).plan()
        inputs = [place for place in map(input_of, plan.input.places) if isinstance(place, Path)]
        needed += [*inputs, Path(plan.model.path)]
    for path in needed:
        if not path.exists():
            raise OutputError(
                "path-not-shared",
                "{path}: a worker on {host} does not see it; outputs, input and model must be on storage that all "
                "workers share, under the same path",
                path=path,
                host=socket.gethostname(),
            )


@dataclass(slots=True)
class _OnDask:
    """A round of segments on Dask workers, and whether these are still there to finish it."""

    client: "Client"
    ticket: JobTicket
    workers: Workers
    on_receipt: OnReceipt
    stop: Stop
    failures: Counter[tuple[str, int]]
    """How often a worker died at a block of a staging folder."""
    running: "dict[Future[Any], Work]" = field(default_factory=dict)
    """What is expected of each."""
    waiting: deque[Work] = field(default_factory=deque)
    _topic: str = field(default_factory=lambda: f"fcn-batch-{uuid.uuid4()}")
    _news: "SimpleQueue[Future[Any] | str]" = field(default_factory=SimpleQueue)
    _done: set[int] = field(default_factory=set)
    _threads: int = 1
    _looked: float = -math.inf
    _workers_seen: float = field(default_factory=time.monotonic)
    _workers_told: float = -math.inf

    def run(self, works: Sequence[Work]) -> None:
        """Do `works`."""
        from distributed.client import ClosedClientError
        from distributed.comm.core import CommClosedError

        address = self.workers.address or "of this run's workers"
        try:
            for work in works:
                self.waiting.extend(self._apart(work))
            self._to_the_end()
        except (CancelledError, CommClosedError, ClosedClientError) as error:
            raise OutputError(
                "scheduler-lost",
                "lost the scheduler {address}; finished blocks are kept: run the same command again when it is up",
                address=address,
            ) from error
        except RuntimeError as error:
            if isinstance(error.__cause__, ImportError | AttributeError):  # the scheduler unpickles what it passes on
                raise not_installed(f"the scheduler {address}", f"({error.__cause__})") from error
            raise
        except (FcnBatchError, OSError, KeyboardInterrupt):
            if self.stop.requested or self.workers.own:
                self._tell_workers()
            self.client.cancel(list(self.running))
            raise

    def _to_the_end(self) -> None:
        """Keep as many segments in flight as there are worker threads: the scheduler's memory stays flat."""
        self.client.subscribe_topic(self._topic, lambda event: self._news.put(event[1]))
        while self.waiting or self.running:
            while len(self.running) < max(1, self._threads) and not self.stop.requested:  # workers come and go
                work = self.waiting.popleft() if self.waiting else self._split()
                if work is None:
                    break
                self._submit(work)
            if not self.running:
                return  # it is to stop
            self._advance()
            if self.stop.requested and not self._threads:
                self.client.cancel(list(self.running))  # nobody is at work
                return

    def _submit(self, work: Work) -> None:
        """Put one more segment in flight."""
        leave_out = len(work) == 1 and self._at_fault(work[0])
        future = self.client.submit(_run_afar, self.ticket, work, self._topic, leave_out, pure=False)
        self.running[future] = work
        future.add_done_callback(self._news.put)

    def _split(self) -> Work | None:
        """Return the lower half of what is left of the longest segment under way; None when none has two blocks left.

        The worker at the upper half finds the other one claimed, and ends there.
        """
        left = {future: [block for block in work if block not in self._done] for future, work in self.running.items()}
        longest = max(left, key=lambda future: len(left[future]), default=None)
        if longest is None or len(left[longest]) <= 1:
            return None
        upper = -(-len(left[longest]) // 2)
        self.running[longest] = tuple(left[longest][:upper])
        return tuple(left[longest][upper:])

    def _advance(self) -> None:
        """Wait for a block, the end of a segment, whose error is raised here, or for nothing for a while."""
        from distributed import KilledWorker

        self.stop.check()
        if self.stop.requested and time.monotonic() - self._workers_told >= _TELL_EVERY_S:  # new ones do not know
            self._tell_workers()
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
        except KilledWorker:
            self._lost(self.running.pop(news))
            return
        except TimeoutError:
            if news.status == "error":
                raise  # the segment's own: a share that does not answer, say
            self._news.put(news)
            return
        del self.running[news]
        for receipt in receipts:  # heard already, unless a message was lost
            self._hear(receipt)

    def _hear(self, text: str) -> None:
        self._workers_seen = time.monotonic()
        receipt = Receipt.model_validate_json(text)
        self._done.add(receipt.block)
        self.on_receipt(receipt)

    def _lost(self, work: Work) -> None:
        """Submit what is left of a segment whose worker died, with the blocks that may be at fault by themselves."""
        left = tuple(block for block in work if block not in self._done)
        for block in left[:_SUSPECTS]:
            self.failures[self.ticket.staging, block] += 1
            if self._at_fault(block) and not self.ticket.on_error.mask:
                plan = Journal(Path(self.ticket.staging)).plan()
                window = plan.grid[block]
                raise OutputError(
                    "block-failed",
                    "{path}: {count} worker processes died at block {block} (rows {rows}, columns {columns}), killed "
                    "for its memory perhaps; all other blocks can be done: give --on-error mask to leave it out, or "
                    "fewer --workers or less --memory",
                    path=plan.input.path,
                    count=self.failures[self.ticket.staging, block],
                    block=block,
                    rows=f"{window.row}..{window.stop_row - 1}",
                    columns=f"{window.col}..{window.stop_col - 1}",
                )
        self.waiting.extend(self._apart(left))

    def _at_fault(self, block: int) -> bool:
        return self.failures[self.ticket.staging, block] >= _MOST_FAILURES

    def _apart(self, work: Iterable[int]) -> Iterator[Work]:
        """Return a segment in parts, so that a block at which a worker died is by itself."""
        for failed, blocks in groupby(work, lambda block: self.failures[self.ticket.staging, block] > 0):
            part = tuple(blocks)
            yield from zip(part) if failed else [part]

    @property
    def _pause(self) -> float:
        return min(_LOOK_EVERY_S, self.workers.patience / _LOOKS_MEANWHILE)

    def _tell_workers(self) -> None:
        """Ask them to end after the block under way."""
        with suppress(OSError):  # the scheduler has gone, which shows otherwise too
            self.client.run(_request_stop, self._topic, on_error="ignore")
        self._workers_told = time.monotonic()

    def _look_for_workers(self) -> None:
        """Give up without workers for too long."""
        from distributed.comm.core import CommClosedError

        if self.client.status != "running":
            raise CommClosedError
        now, patience = time.monotonic(), self.workers.patience
        if now - self._looked < self._pause:
            return
        self._looked, self._threads = now, sum(self.client.nthreads().values())
        if self._threads:
            self._workers_seen = now
        elif now - self._workers_seen >= patience:
            raise OutputError(
                "workers-lost",
                "no workers {where} for {seconds} s; finished blocks are kept: {remedy}, and run the same command "
                "again",
                where=f"at the scheduler {self.workers.address}" if self.workers.address else "of this run",
                seconds=f"{patience:g}",
                remedy="start some" if self.workers.address else "see why they do not start",
            )
