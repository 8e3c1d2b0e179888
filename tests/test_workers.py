"""Workers of every kind: schedulers and their addresses, mixed machines, blocks that fail, enough for all to do."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import psutil
import pytest
from distributed import Client, KilledWorker, LocalCluster

from fcn_batch.pipeline.core.errors import OptionError
from fcn_batch.pipeline.core.journal import Receipt
from fcn_batch.pipeline.core.tiling import Work
from fcn_batch.pipeline.core.tolerance import OnError
from fcn_batch.workflows.blocks.job import JobTicket
from fcn_batch.workflows.console.signals import Stop
from fcn_batch.workflows.processes.crew import kept
from fcn_batch.workflows.processes.execute import _OnDask, execute
from fcn_batch.workflows.processes.topology import ENVIRON
from fcn_batch.workflows.processes.workers import Workers
from tests.errors import refused, refuses
from tests.models import save_tiny_model
from tests.patience import PATIENCE_S
from tests.runs import fcn_batch, scene
from tests.test_execute import begun

OTHER = {"ONEDNN_MAX_CPU_ISA": "SSE41"}
"""Makes a worker compute as another kind of machine would."""


def until(happens: Callable[[], Any]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not happens():
        assert time.monotonic() < deadline
        time.sleep(0.05)


class Scheduler:
    """A `dask scheduler` with `dask worker`s on loopback, as programs of their own."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.file = folder / "scheduler.json"
        self._folder, self._stack = folder, stack
        self._start("scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--scheduler-file", self.file)
        until(self.file.exists)

    @property
    def address(self) -> str:
        return str(json.loads(self.file.read_text())["address"])

    def worker(self, **environment: str) -> "subprocess.Popen[bytes]":
        """One more, with one thread."""
        return self._start("worker", self.address, "--nthreads", "1", "--no-dashboard", "--no-nanny", "--host",
                           "127.0.0.1", "--local-directory", self._folder, **environment)  # fmt: skip

    def _start(self, what: str, *options: object, **environment: str) -> "subprocess.Popen[bytes]":
        words = [sys.executable, "-m", f"distributed.cli.dask_{what}", *map(str, options)]
        log = self._stack.enter_context((self._folder / f"{what}.log").open("ab"))
        process = subprocess.Popen(words, stdout=log, stderr=log, env={**os.environ, **environment}, cwd=self._folder)
        self._stack.callback(process.wait)
        self._stack.callback(process.kill)
        return process


@pytest.fixture
def scheduler(tmp_path: Path) -> Iterator[Scheduler]:
    with ExitStack() as stack:
        yield Scheduler(tmp_path, stack)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model") / "tiny.safetensors", fc_kernel=1)


# --- addresses -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "code"),
    [
        *((address, "scheduler-address") for address in (
            "", "abc", "127.0.0.1:8786", "tcp://", "tcp://127.0.0.1", "tcp://:8786", "tcp://127.0.0.1:0",
            "tcp://a:99999", "tcp://a:b", "tcp://[::1", "tcp://a://b:1", "ftp://127.0.0.1:1", "inproc://127.0.0.1/1/1")),
        *((f"tcp://{host}:8786", "scheduler-insecure") for host in (
            "a.example", "10.0.0.7", "[fe80::1]", "127.0.0.1.example")),
        *((f"tcp://{host}:8786", None) for host in ("127.0.0.1", "localhost", "[::1]", "127.1.2.3")),
        *((f"tls://{host}:65535", None) for host in ("a.example", "10.0.0.7", "[fe80::1]")),
    ],
)  # fmt: skip
def test_addresses_by_themselves_and_in_a_file(tmp_path: Path, address: str, code: str | None) -> None:
    path = tmp_path / "scheduler.json"
    path.write_text(json.dumps({"type": "Scheduler", "address": address}))
    for given in (address, f"file:{path}"):
        if code is not None:
            with refuses(code):
                Workers(address=given)
        else:
            assert Workers(address=given).contact == address
    if code == "scheduler-insecure":
        assert Workers(address=f"file:{path}", insecure=True).contact == address


@pytest.mark.parametrize("text", [None, "{", "[]", '{"id": "x"}', '{"address": 3}', "[" * 9999])
def test_a_file_of_no_scheduler(tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "scheduler.json"
    if text is not None:
        path.write_text(text)
    with refuses("scheduler-file-invalid", path=path):
        Workers(address=f"file:{path}")


def test_a_wrong_address_ends_the_program_at_once(tmp_path: Path, model: Path) -> None:
    path = scene(tmp_path / "a.tif", 40, 50)
    refused(fcn_batch("segment", path, "-m", model, "--scheduler", "abc"), "scheduler-address")


def client_of(workers: Workers) -> Client:
    """Of workers that are kept."""
    assert workers.crew is not None
    return workers.crew.client(workers, None)


@contextmanager
def connected_soon(workers: Workers, count: int = 1) -> Iterator[None]:
    """Once so many workers are there: they start slowly."""

    def there() -> bool:
        try:
            with kept(workers) as own:
                return len(client_of(own).nthreads()) >= count
        except OptionError:
            return False

    until(there)
    yield


# --- other kinds of machines ---------------------------------------------------------------------------------


@pytest.mark.parametrize("allowed", [False, True])
def test_mixed_kinds_of_workers(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch, scheduler: Scheduler, *, allowed: bool
) -> None:
    scheduler.worker()
    scheduler.worker(**OTHER)
    run = begun(tmp_path, model, monkeypatch, height=3000)
    workers = Workers(address=scheduler.address)
    told: list[Receipt] = []
    with connected_soon(workers, 2):
        pass
    ticket = replace(run.ticket, allow_mixed=allowed)
    if not allowed:
        with refuses("machine-differs", differences="kernel.switches: [], now ['ONEDNN_MAX_CPU_ISA=SSE41']"):
            execute(ticket, run.works, workers, told.append, Stop())
        assert not any(receipt.mixed for receipt in told)
        return
    execute(ticket, run.works, workers, told.append, Stop())
    done = {receipt.block: receipt for receipt in run.journal.receipts()}
    assert set(done) == set(range(48))
    by = Counter((receipt.by, bool(receipt.mixed)) for receipt in done.values())
    assert len(by) == 2, "each of the two did some, and only one of them otherwise"
    assert {mixed for _, mixed in by} == {False, True}


# --- enough to do, and blocks at fault ------------------------------------------------------------------------


def bare_round(ticket: JobTicket | None = None, workers: Workers | None = None) -> _OnDask:
    """A round of three workers, without Dask."""
    nobody: Any = SimpleNamespace(status="running", nthreads=dict)
    ticket = ticket or JobTicket("a.partial", "", "", "cpu")
    found = _OnDask(nobody, ticket, workers or Workers(3), lambda _: None, Stop(), Counter())
    found._threads = 3
    return found


def test_a_pass_is_shared_with_idle_workers() -> None:
    run = bare_round()
    passes: dict[Any, Work] = {"a": (0, 2, 4, 6, 8), "b": (1, 3, 5)}
    run.running.update(passes)
    run._done.update({0, 2, 1, 3})
    assert run._split() == (8,), "half of 4, 6, 8, of which the first is under way"
    assert run.running == {"a": (4, 6), "b": (1, 3, 5)}
    assert run._split() == (6,)
    assert run._split() is None, "what is under way is not given away"


def test_nothing_is_left_out_or_done_twice_however_passes_are_shared() -> None:
    run = bare_round()
    run.running["a"] = tuple(range(0, 2000, 2))  # type: ignore[index]
    given = [run._split() for _ in range(9)]
    parts = [*given, *run.running.values()]
    assert sorted(block for part in parts if part for block in part) == list(range(0, 2000, 2))


def test_a_segment_whose_worker_died_is_done_with_its_suspects_by_themselves(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A block at which two workers died is at fault; one that lost its worker with it once is not."""
    ticket = begun(tmp_path, model, monkeypatch, height=400).ticket
    run = bare_round(ticket)

    class Dead:
        def result(self, **_: object) -> None:
            raise KilledWorker("x", cast("Any", None), 0)

        def add_done_callback(self, _: object) -> None:
            """Nothing."""

    dead: Any = Dead()
    run._done.add(0)

    def loses(work: Work) -> list[Work]:
        run.running[dead] = work
        run._news.put(dead)
        run.waiting.clear()
        run._advance()
        return list(run.waiting)

    assert loses((0, 2, 4, 6)) == [(2,), (4,), (6,)]
    assert loses((1, 3, 5, 7)) == [(1,), (3,), (5, 7)]
    assert list(run._apart((1, 2, 5, 6, 7))) == [(1,), (2,), (5, 6, 7)], "in the next round too"
    with refuses("block-failed", block=4, count=2, rows="256..383", columns="0..127"):
        loses((4,))
    masked = bare_round(replace(ticket, on_error=OnError.parse("mask")))
    masked.failures.update(run.failures)
    submitted: list[Any] = []

    def submit(*given: Any, **_: object) -> Dead:
        submitted.append(given)
        return Dead()

    monkeypatch.setattr(masked.client, "submit", submit, raising=False)
    for block in (4, 2):
        masked._submit((block,))
    assert [(given[2], given[4]) for given in submitted] == [((4,), True), ((2,), False)]


def test_lost_workers_are_waited_for_until_they_had_time_to_start_again() -> None:
    ours = Workers(2).patience
    assert ours > Workers(address="tcp://127.0.0.1:8786").patience, "a program starts them again, not a person"
    run = bare_round()
    run._look_for_workers()
    run._workers_seen, run._looked = time.monotonic() - ours, -math.inf
    with refuses("workers-lost", seconds=600):
        run._look_for_workers()


def test_workers_that_come_later_get_work(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch, scheduler: Scheduler
) -> None:
    """There is one pass, and one worker, which stops until another one has done a block; the same bytes as alone."""
    first = scheduler.worker()
    (tmp_path / "whole").mkdir()
    alone = begun(tmp_path / "whole", model, monkeypatch, height=3000, width=100)
    assert len(alone.works) == 1
    execute(alone.ticket, alone.works, Workers(), lambda _: None, Stop())
    run, workers = begun(tmp_path, model, monkeypatch, height=3000, width=100), Workers(address=scheduler.address)
    with connected_soon(workers):
        pass
    by: list[str] = []

    def on_receipt(receipt: Receipt) -> None:
        if not by:
            os.kill(first.pid, signal.SIGSTOP)
            scheduler.worker()
        elif receipt.by != by[0]:
            os.kill(first.pid, signal.SIGCONT)
        by.append(receipt.by)

    execute(run.ticket, run.works, workers, on_receipt, Stop())
    assert len(set(by)) == 2
    assert {r.block: r.sha256 for r in run.journal.receipts()} == {r.block: r.sha256 for r in alone.journal.receipts()}


def test_a_worker_that_does_not_see_the_folder(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch, scheduler: Scheduler
) -> None:
    scheduler.worker()
    run = begun(tmp_path, model, monkeypatch, height=200)
    workers = Workers(address=scheduler.address)
    with connected_soon(workers):
        pass
    run.journal.folder.rename(tmp_path / "elsewhere")
    with refuses("path-not-shared", path=run.journal.folder):
        execute(run.ticket, run.works, workers, lambda _: None, Stop())
    (tmp_path / "elsewhere").rename(run.journal.folder)
    (tmp_path / "a.tif").rename(tmp_path / "b.tif")
    with refuses("path-not-shared", path=tmp_path / "a.tif"):
        execute(run.ticket, run.works, workers, lambda _: None, Stop())


# --- processes of this machine -------------------------------------------------------------------------------


def test_local_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their libraries do not fight for cores, they are replaced, kept for the next round, and gone at the end."""
    close = LocalCluster.close

    def slowly(self: LocalCluster) -> None:
        close(self)
        raise TimeoutError  # as a nanny does whose process is not gone within seconds

    monkeypatch.setattr(LocalCluster, "close", slowly)
    with kept(Workers(1), lambda _: None) as workers:
        client = client_of(workers)
        (seen,) = client.run(lambda: dict(os.environ)).values()
        assert ENVIRON.items() <= seen.items()
        assert {"OMP_NUM_THREADS", "GDAL_NUM_THREADS", "MALLOC_ARENA_MAX"} <= set(ENVIRON)
        (first,) = client.run(os.getpid).values()
        os.kill(first, signal.SIGKILL)
        until(lambda: set(client.run(os.getpid, on_error="ignore").values()) - {first})
        assert client_of(workers) is client
        client.close()
        assert client_of(workers) is not client, "a connection that was lost is made anew"
    assert not [child for child in psutil.Process().children() if "spawn_main" in " ".join(child.cmdline())]
