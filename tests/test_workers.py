"""Workers of every kind: a scheduler found by its file, mixed machines, pinned processes, and enough for all to do."""

import json
import math
import os
import re
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
from typing import Any

import psutil
import pytest
import torch
from distributed import LocalCluster

from fcn_batch.pipeline.core.errors import MismatchError, OptionError, OutputError
from fcn_batch.pipeline.core.journal import Receipt
from fcn_batch.pipeline.core.tiling import Work
from fcn_batch.workflows.console.progress import Quiet
from fcn_batch.workflows.console.signals import Stop
from fcn_batch.workflows.plan import Options
from fcn_batch.workflows.processes import topology
from fcn_batch.workflows.processes.cluster import _Run
from fcn_batch.workflows.processes.crew import connected, kept
from fcn_batch.workflows.processes.execute import execute
from fcn_batch.workflows.processes.local import local_cluster
from fcn_batch.workflows.processes.workers import Workers
from fcn_batch.workflows.segment import Request, segment
from tests.models import save_tiny_model
from tests.patience import PATIENCE_S
from tests.runs import class_map, scene, small_blocks, small_segments
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


# --- a scheduler's file --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (None, "No such file or directory; give the file that `dask scheduler --scheduler-file "),
        ("{", "it is not JSON: "),
        ("[]", "it names no address; give the file"),
        ('{"id": "x"}', "it names no address; give the file"),
        ('{"address": 3}', "it names no address; give the file"),
        ('{"address": "ftp://a:1"}', r"(ftp://a:1): not the address of a scheduler "),
        ('{"address": "tcp://10.0.0.7:8786"}', r"(tcp://10.0.0.7:8786): whoever reaches 10.0.0.7 can run programs "),
    ],
)
def test_a_file_of_no_scheduler(tmp_path: Path, text: str | None, problem: str) -> None:
    path = tmp_path / "scheduler.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(OptionError, match=rf"^--scheduler file:{re.escape(str(path))}:? {re.escape(problem)}"):
        Workers(address=f"file:{path}")


def test_the_address_in_a_file_is_as_safe_as_any(tmp_path: Path) -> None:
    path = tmp_path / "scheduler.json"
    for address, insecure in (("tls://10.0.0.7:1", False), ("tcp://10.0.0.7:1", True), ("tcp://127.0.0.1:1", False)):
        path.write_text(json.dumps({"type": "Scheduler", "address": address}))
        assert Workers(address=f"file:{path}", insecure=insecure).contact == address


def test_a_run_on_the_scheduler_of_a_file(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch, scheduler: Scheduler
) -> None:
    scheduler.worker()
    run = begun(tmp_path, model, monkeypatch, height=400)
    workers = Workers(address=f"file:{scheduler.file}")
    with connected_soon(workers):
        pass
    execute(run.ticket, run.works, workers, lambda _: None, Stop())
    assert {r.block for r in run.journal.receipts()} == set(range(8))


@contextmanager
def connected_soon(workers: Workers, count: int = 1) -> Iterator[None]:
    """Once so many workers are there: they start slowly."""

    def there() -> bool:
        try:
            with connected(workers) as client:
                return len(client.nthreads()) >= count
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
    run = begun(tmp_path, model, monkeypatch, height=6000)
    workers = Workers(address=scheduler.address)
    told: list[Receipt] = []
    with connected_soon(workers, 2):
        pass
    ticket = replace(run.ticket, allow_mixed=allowed)
    if not allowed:
        with pytest.raises(MismatchError, match=r"kernel.switches: \[\], now \['ONEDNN_MAX_CPU_ISA=SSE41'\].*--allow-"):
            execute(ticket, run.works, workers, told.append, Stop())
        assert not any(receipt.mixed for receipt in told)
        return
    execute(ticket, run.works, workers, told.append, Stop())
    done = {receipt.block: receipt for receipt in run.journal.receipts()}
    assert set(done) == set(range(94))
    by = Counter((receipt.by, bool(receipt.mixed)) for receipt in done.values())
    assert len(by) == 2, "each of the two did some, and only one of them otherwise"
    assert {mixed for _, mixed in by} == {False, True}


# --- lost workers --------------------------------------------------------------------------------------------


def test_lost_workers_of_a_run_are_waited_for_until_they_had_time_to_start_again() -> None:
    ours = Workers(2).patience
    assert ours > Workers(address="tcp://127.0.0.1:8786").patience, "who starts them again is a program, not a person"
    nobody = SimpleNamespace(status="running", nthreads=dict)
    run = _Run(nobody, "of this run's workers", lambda _: None, Stop(), own=True, patience=ours)  # type: ignore[arg-type]
    run._look_for_workers()
    run._workers_seen, run._looked = time.monotonic() - ours, -math.inf
    with pytest.raises(OutputError, match=r"^none of this run's workers has come back for 600 s; finished blocks are"):
        run._look_for_workers()


def test_workers_that_take_long_to_end_do_not_fail_a_run_that_is_complete(monkeypatch: pytest.MonkeyPatch) -> None:
    close = LocalCluster.close

    def slowly(self: LocalCluster) -> None:
        close(self)
        raise TimeoutError  # as a nanny does whose process is not gone within seconds

    monkeypatch.setattr(LocalCluster, "close", slowly)
    with local_cluster(1) as cluster:
        assert len(cluster.workers) == 1
    assert not [child for child in psutil.Process().children() if "spawn_main" in " ".join(child.cmdline())]


# --- enough to do --------------------------------------------------------------------------------------------


def bare_run() -> _Run:
    run = _Run(None, "", lambda _: None, Stop(), own=True, patience=1)  # type: ignore[arg-type]
    run._threads = 3
    return run


def test_a_pass_is_shared_with_who_has_nothing_to_do() -> None:
    run = bare_run()
    passes: dict[str, Work] = {"a": (0, 2, 4, 6, 8), "b": (1, 3, 5)}
    run.running.update(passes)  # type: ignore[arg-type]
    run._done = {0, 2, 1, 3}
    assert run.idle
    assert run.split() == (8,), "half of 4, 6, 8, of which the first is under way"
    assert run.running == {"a": (4, 6), "b": (1, 3, 5)}
    assert run.split() == (6,)
    assert run.split() is None, "what is under way is not given away"


def test_nothing_is_left_out_or_done_twice_however_passes_are_shared() -> None:
    run = bare_run()
    run.running["a"] = tuple(range(0, 2000, 2))  # type: ignore[index]
    given = [run.split() for _ in range(9)]
    parts = [*given, *run.running.values()]
    assert sorted(block for part in parts if part for block in part) == list(range(0, 2000, 2))


def test_workers_that_come_later_get_work(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch, scheduler: Scheduler
) -> None:
    """There is one pass, and one worker, which stops until another one has done a block; the same bytes as alone."""
    first = scheduler.worker()
    (tmp_path / "whole").mkdir()
    alone = begun(tmp_path / "whole", model, monkeypatch, height=6000, width=100)
    assert len(alone.works) == 1
    execute(alone.ticket, alone.works, Workers(), lambda _: None, Stop())
    run, workers = begun(tmp_path, model, monkeypatch, height=6000, width=100), Workers(address=scheduler.address)
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
    with pytest.raises(OutputError, match=r"a.partial: a worker on \S+ does not see it; outputs, input and model must"):
        execute(run.ticket, run.works, workers, lambda _: None, Stop())
    (tmp_path / "elsewhere").rename(run.journal.folder)
    (tmp_path / "a.tif").rename(tmp_path / "b.tif")
    with pytest.raises(OutputError, match=r"/a.tif: a worker on \S+ does not see it; outputs, input and model must"):
        execute(run.ticket, run.works, workers, lambda _: None, Stop())


# --- processes of this machine -------------------------------------------------------------------------------


def test_local_workers_are_pinned_and_their_libraries_do_not_fight() -> None:
    cores = topology.machine().cores
    if len(cores) < 2:
        pytest.skip("needs two cores")
    with connected(Workers(2)) as client:
        pins = list(client.run(os.sched_getaffinity, 0).values())
        seen = list(client.run(lambda: dict(os.environ)).values())
        killed = set(client.run(os.getpid).values())
        for pid in killed:  # one that replaces another, too
            os.kill(pid, signal.SIGKILL)
        until(lambda: len(set(client.run(os.getpid, on_error="ignore").values()) - killed) == 2)
        again = list(client.run(os.sched_getaffinity, 0).values())
    expected = [set(cpus) for cpus in topology.layout(topology.machine(), 2).pins]
    assert sorted(map(sorted, pins)) == sorted(map(sorted, expected)) == sorted(map(sorted, again))
    assert pins[0].isdisjoint(pins[1])
    assert [{name: one[name] for name in topology.ENVIRON} for one in seen] == [topology.ENVIRON] * 2
    assert {"OMP_NUM_THREADS", "GDAL_NUM_THREADS", "MALLOC_ARENA_MAX"} <= set(topology.ENVIRON)


@pytest.mark.parametrize("threads", [1, 2])
def test_the_threads_of_a_plan_decide_whatever_is_pinned(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch, threads: int
) -> None:
    """A plan of two threads, on workers of one core each: they are let go, and it is the same map."""
    small_blocks(monkeypatch)
    small_segments(monkeypatch)
    path = scene(tmp_path / "a.tif", 900, 200)
    before = torch.get_num_threads()
    for name, count in (("alone", 0), ("workers", 2)):
        options = Options(model=str(model), threads=threads, memory=2**30)
        assert list(segment(Request((path,), options, tmp_path / name, Workers(count)), Quiet()))
        report = json.loads((tmp_path / name / "a.run.json").read_text())
        assert report["plan"]["kernel"]["threads"] == threads
    torch.set_num_threads(before)
    assert (class_map(tmp_path / "alone", "a") == class_map(tmp_path / "workers", "a")).all()


def test_workers_are_kept_for_the_next_round() -> None:
    with kept(Workers(1), lambda _: None) as workers:
        pids = []
        for _ in range(2):
            with connected(workers) as client:
                pids.append(client.run(os.getpid))
    assert pids[0] == pids[1]
    assert not psutil.pid_exists(next(iter(pids[0].values())))


def test_a_connection_that_was_lost_is_made_anew() -> None:
    with kept(Workers(1), lambda _: None) as workers:
        with connected(workers) as client:
            first = client.run(os.getpid)
            client.close()
        with connected(workers) as client:
            assert client.run(os.getpid) != first
