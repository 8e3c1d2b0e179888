"""Clusters that are not there, go away, or lack the program: one line, the right exit code, and no waiting."""

import json
import logging
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from distributed import Client, LocalCluster

from fcn_batch.pipeline.core.errors import StoppedError
from fcn_batch.pipeline.core.holder import Holder
from fcn_batch.pipeline.core.journal import Journal, Receipt
from fcn_batch.pipeline.core.tiling import Work, works
from fcn_batch.workflows.blocks.job import JobTicket
from fcn_batch.workflows.console.signals import Stop
from fcn_batch.workflows.outputs.stitch import create_store
from fcn_batch.workflows.plan import Options, prepare
from fcn_batch.workflows.processes import execute as execute_module
from fcn_batch.workflows.processes import workers as workers_module
from fcn_batch.workflows.processes.crew import kept
from fcn_batch.workflows.processes.execute import execute
from fcn_batch.workflows.processes.workers import Tls, Workers
from tests.errors import refuses
from tests.models import save_tiny_model
from tests.patience import PATIENCE_S
from tests.runs import scene, small_blocks

TICKET = JobTicket("easy blocks want none", "", "", "cpu")
WORKS = [(block,) for block in range(1000)]
_CLUSTER = """
import sys
from distributed import LocalCluster

if __name__ == "__main__":
    {prelude}
    with LocalCluster(
        n_workers=1, threads_per_worker=2, host="127.0.0.1", dashboard_address="127.0.0.1:0", silence_logs=50, {options}
    ) as cluster:
        print(cluster.scheduler_address, flush=True)
        sys.stdin.read()
"""
NOT_INSTALLED = "import sys; sys.modules['fcn_batch'] = None"
"""As good as not installed, for the process that runs this."""
THREADS_ONLY = 'processes=False, protocol="tcp://"'
RECEIPT: dict[str, Any] = {"plan": "", "sha256": "", "shape": (1, 1), "pixels": {}, "area_m2": None, "tile": 1}
RECEIPT |= {"passes": 1, "forwarded": 1, "seconds": 0.05, "by": "", "finished": "2026-01-01T00:00:00Z"}
"""As good as not installed, for the process that runs this."""

READY = "import fcn_batch.workflows.processes.execute"
"""What blocks need: workers import it much more slowly than a fresh process, as they look at each other meanwhile."""


@contextmanager
def cluster_program(
    folder: Path, prelude: str = "", options: str = THREADS_ONLY
) -> Iterator[tuple[str, "subprocess.Popen[str]"]]:
    """A scheduler with one worker outside of this process, and its address."""
    script, pipe = folder / "cluster.py", subprocess.PIPE
    script.write_text(_CLUSTER.format(prelude=prelude, options=options))
    command = [sys.executable, str(script)]
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip(), process
        finally:
            process.stdin.close()  # it ends by itself, with its workers


@pytest.fixture
def _easy_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks without pixels; a local function goes to the workers by value, so they need not import this module."""
    rest = RECEIPT

    def easy(_ticket: Any, work: tuple[int, ...], _topic: str, _leave_out: bool) -> list[str]:
        time.sleep(0.05)
        return [json.dumps({"block": block, **rest}) for block in work]

    monkeypatch.setattr(execute_module, "_run_afar", easy)


def levels() -> list[int]:
    return [h.level for name in ("distributed", "distributed.client") for h in logging.getLogger(name).handlers]


# --- clusters that go away -----------------------------------------------------------------------------------


@pytest.mark.usefixtures("_easy_blocks")
def test_a_scheduler_that_dies(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    received: list[Any] = []
    before = levels()
    with cluster_program(tmp_path) as (address, process):

        def first(receipt: Any) -> None:
            received.append(receipt)
            process.kill()

        with refuses("scheduler-lost", address=address):
            execute(TICKET, WORKS, Workers(address=address), first, Stop())
    assert received
    assert capfd.readouterr() == ("", "")
    assert levels() == before


@pytest.mark.usefixtures("_easy_blocks")
def test_a_cluster_that_has_lost_its_workers(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(workers_module, "_WITHOUT_WORKERS_S", 1.0)
    options = {"dashboard_address": "127.0.0.1:0", "silence_logs": 50, "processes": False, "protocol": "tcp://"}
    with LocalCluster(n_workers=1, threads_per_worker=2, host="127.0.0.1", **options) as cluster:
        for code, field in (
            ("workers-lost", {"seconds": 1}),
            ("workers-missing", {"address": cluster.scheduler_address}),
        ):
            with refuses(code, **field):
                address = cluster.scheduler_address
                execute(TICKET, WORKS, Workers(address=address), lambda _: cluster.scale(0), Stop())
    assert capfd.readouterr() == ("", "")


# --- what is heard of blocks ---------------------------------------------------------------------------------


def nobody(_: Receipt) -> None:
    """Who is told of receipts."""


@dataclass(frozen=True, slots=True)
class Begun:
    """A run whose store and journal are there, and nothing is computed yet."""

    ticket: JobTicket
    works: list[Work]
    journal: Journal


def begun(folder: Path, model: Path, patch: pytest.MonkeyPatch, *, height: int = 1500, width: int = 200) -> Begun:
    """Two lanes, of one segment each."""
    small_blocks(patch)
    prepared = prepare(scene(folder / "a.tif", height, width), Options(model=str(model)))
    journal, plan = Journal(folder / "a.partial"), prepared.plan
    journal.begin(plan)
    create_store(journal.folder / "a.classes.zarr", plan, prepared.model.card.legend)
    ticket = JobTicket(str(journal.folder), "a.classes.zarr", plan.fingerprint, prepared.device)
    return Begun(ticket, works(plan.grid, plan.cut.segment, range(len(plan.grid))), journal)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model") / "tiny.safetensors", fc_kernel=1)


@pytest.mark.parametrize("workers", [0, 2])
def test_blocks_are_told_while_their_segment_is_under_way(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    run = begun(tmp_path, model, monkeypatch)
    assert [len(work) for work in run.works] == [12, 12]
    told, finished_when_told = list[Receipt](), list[int]()

    def on_receipt(receipt: Receipt) -> None:
        told.append(receipt)
        finished_when_told.append(len(list((run.journal.folder / "receipts").glob("*.json"))))

    execute(run.ticket, run.works, Workers(workers), on_receipt, Stop())
    assert {r.block for r in told} == set(range(24))
    assert sorted({r.model_dump_json() for r in told}) == sorted(r.model_dump_json() for r in run.journal.receipts())
    assert finished_when_told[0] < 12, "the first one is told long before its segment ends"
    assert ({receipt.by for receipt in told} == {Holder.here().process}) == (not workers), "Dask's processes did them"
    assert len({receipt.by for receipt in told}) == max(1, workers)
    assert workers or finished_when_told == list(range(1, 25))


def test_a_message_that_is_lost_is_made_up_for(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = begun(tmp_path, model, monkeypatch, height=400)
    monkeypatch.setattr(Client, "subscribe_topic", lambda *_: None)
    told: list[int] = []
    execute(run.ticket, run.works, Workers(1), lambda receipt: told.append(receipt.block), Stop())
    assert sorted(told) == list(range(8))


def test_nothing_to_do_and_what_was_asked_to_stop_begin_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    stop = Stop()
    with monkeypatch.context() as patch:
        patch.setattr(execute_module, "kept", None)
        execute(TICKET, [], Workers(4), print, stop)
    monkeypatch.setattr(execute_module._OnDask, "_submit", None)
    stop.request()
    execute(TICKET, WORKS, Workers(1), print, stop)


def test_a_segment_is_lost_only_from_its_last_finished_block(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was told is durable, and the rest can be done in a pass of its own with the same bytes."""
    (tmp_path / "whole").mkdir()
    whole = begun(tmp_path / "whole", model, monkeypatch)
    saw: dict[int, Receipt] = {}
    execute(whole.ticket, whole.works, Workers(), lambda receipt: saw.update({receipt.block: receipt}), Stop())
    tile, columns = whole.journal.plan().cut.tile, 224  # a lane of 128 (or 72), its halo of 128 on one side
    for work in whole.works:
        receipts = [saw[block] for block in work]
        assert sum(r.forwarded for r in receipts) == 1504 * columns, "every row once"
        assert sum(r.passes for r in receipts) == -(-1504 // tile)
        assert {r.tile for r in receipts} == {tile}
        # the last strip may decide several blocks at once, in no time
        assert all(r.seconds >= 0 for r in receipts)
        assert sum(r.seconds for r in receipts) > 0
    run = begun(tmp_path, model, monkeypatch)

    def stop(receipt: Receipt) -> None:
        if receipt.block >= 6:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        execute(run.ticket, run.works, Workers(), stop, Stop())
    done = {r.block for r in run.journal.receipts()}
    assert {0, 2, 4, 6} <= done < set(range(24))
    left = [tuple(block for block in work if block not in done) for work in run.works]
    execute(run.ticket, left, Workers(), nobody, Stop())
    assert {r.block: r.sha256 for r in run.journal.receipts()} == {r.block: r.sha256 for r in saw.values()}


def test_a_block_that_another_run_has_done_is_not_done_again(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = begun(tmp_path, model, monkeypatch)
    execute(run.ticket, run.works, Workers(), nobody, Stop())
    done = {receipt.block: receipt for receipt in run.journal.receipts()}
    for block in done.keys() - {6}:
        run.journal.drop(block)
    told: list[Receipt] = []
    execute(run.ticket, run.works[:1], Workers(), told.append, Stop())
    assert [receipt.block for receipt in told] == list(range(0, 24, 2))
    assert [receipt for receipt in told if receipt in done.values()] == [done[6]]


def test_a_stop_ends_a_lane_after_the_blocks_under_way(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, stop = begun(tmp_path, model, monkeypatch), Stop()
    told: list[int] = []

    def on_receipt(receipt: Receipt) -> None:
        told.append(receipt.block)
        stop.request()

    execute(run.ticket, run.works, Workers(), on_receipt, stop)
    assert told == [0, 2], "the one below is decided when the first is told"


# --- runs that are to stop -----------------------------------------------------------------------------------


@pytest.fixture
def _endless_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks without pixels, one after the other with hardly a pause, until the run is told to stop."""
    rest = RECEIPT

    def endless(ticket: Any, work: tuple[int, ...], topic: str, _leave_out: bool) -> list[str]:
        from distributed import get_worker

        from fcn_batch.workflows.processes.execute import _stop_of

        stop, deadline = _stop_of(topic), time.monotonic() + PATIENCE_S
        while not stop.requested and time.monotonic() < deadline:
            time.sleep(0.01)
            get_worker().log_event(topic, json.dumps({"block": work[0], **rest}))
        if ticket.device != "cpu":
            Path(ticket.staging, str(work[0])).write_text("stopped" if stop.requested else "too late")
        return [json.dumps({"block": -1 if stop.requested else -2, **rest})]

    monkeypatch.setattr(execute_module, "_run_afar", endless)


@pytest.mark.usefixtures("_endless_blocks")
def test_workers_are_told_to_stop_however_much_they_tell(tmp_path: Path) -> None:
    """And nothing more is begun: there are two threads."""
    stop, told = Stop(), set[int]()

    def on_receipt(receipt: Receipt) -> None:
        told.add(receipt.block)
        if {0, 1} <= told:
            stop.request()

    with cluster_program(tmp_path, prelude=READY) as (address, _):
        execute(TICKET, WORKS[:5], Workers(address=address), on_receipt, stop)
    assert told == {0, 1, -1}


@pytest.mark.usefixtures("_endless_blocks")
@pytest.mark.parametrize("by", [signal.SIGINT, signal.SIGTERM])
def test_workers_are_told_also_when_nobody_waits_for_them(tmp_path: Path, by: signal.Signals) -> None:
    """After a second Ctrl-C, or at the end of the grace: on a scheduler of others they would go on for hours."""
    stop, ticket = Stop(), JobTicket(str(tmp_path), "", "", "none")

    def on_receipt(_: Receipt) -> None:
        stop.request(by, None if by == signal.SIGINT else 0)
        if by == signal.SIGINT:
            raise KeyboardInterrupt

    with cluster_program(tmp_path, prelude=READY) as (address, _):
        with pytest.raises(KeyboardInterrupt if by == signal.SIGINT else StoppedError):
            execute(ticket, WORKS[:2], Workers(address=address), on_receipt, stop)
        while not (tmp_path / "0").exists():
            time.sleep(0.02)
    assert (tmp_path / "0").read_text() == "stopped"


def test_signals_are_not_heard_by_local_workers() -> None:
    """Not even while they start: it is the thread that starts them that hears none."""
    asked = {signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP}
    with kept(Workers(2)) as workers:
        assert workers.crew is not None
        blocked = workers.crew.client(workers, None).run(signal.pthread_sigmask, signal.SIG_BLOCK, ())
    assert len(blocked) == 2
    assert all(asked <= set(signals) for signals in blocked.values())
    assert not asked & signal.pthread_sigmask(signal.SIG_BLOCK, ()), "the run itself does"


# --- clusters without the program ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prelude", "options", "version", "field"),
    [
        ("", "preload=['PRELOAD']", None, {"found": "(it has none)"}),
        (NOT_INSTALLED, "processes=True", None, {}),
        ("", THREADS_ONLY, "0.0.1", {"version": "0.0.1"}),
    ],
    ids=["workers without it", "a scheduler without it", "another version"],
)
def test_clusters_without_this_version_of_the_program(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    prelude: str,
    options: str,
    version: str | None,
    field: dict[str, str],
) -> None:
    preload = tmp_path / "preload.py"
    preload.write_text(NOT_INSTALLED)
    with cluster_program(tmp_path, prelude, options.replace("PRELOAD", str(preload))) as (address, _):
        if version:
            monkeypatch.setattr("fcn_batch.__version__", version)
        told = field or {"where": f"the scheduler {address}"}
        with refuses("version-differs", **told):
            execute(TICKET, WORKS, Workers(address=address), print, Stop())
    assert capfd.readouterr() == ("", "")


# --- who may connect -----------------------------------------------------------------------------------------


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, Path]:
    """One of its own authority, and its key."""
    if shutil.which("openssl") is None:
        pytest.skip("needs the openssl program, to make a certificate")
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    words = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    made = subprocess.run([*words, "-keyout", str(key), "-out", str(cert)], capture_output=True, check=False)
    assert made.returncode == 0, made.stderr
    return cert, key


@pytest.mark.usefixtures("_easy_blocks")
def test_a_scheduler_with_certificates(tmp_path: Path, certificate: tuple[Path, Path]) -> None:
    """They come together and are there."""
    cert, key = certificate
    assert Tls.given(None, None, None) is None
    with refuses("tls-incomplete"):
        Tls.given(cert, cert, None)
    with refuses("tls-file-missing", name="key"):
        Tls.given(cert, cert, key.with_name("nothing.pem"))
    told = ", ".join(f"tls_{who}_{what}={str(path)!r}" for who in ("scheduler", "worker", "client")
                     for what, path in (("cert", cert), ("key", key)))  # fmt: skip
    security = f"Security(tls_ca_file={str(cert)!r}, {told}, require_encryption=True)"
    options, received = f'processes=False, protocol="tls://", security={security}', list[Receipt]()
    with cluster_program(tmp_path, prelude="from distributed import Security", options=options) as (address, _):
        assert address.startswith("tls://")
        with refuses("scheduler-silent", address=address):
            execute(TICKET, WORKS[:3], Workers(address=address), received.append, Stop())
        assert received == []
        execute(TICKET, WORKS[:3], Workers(address=address, tls=Tls(cert, cert, key)), received.append, Stop())
    assert sorted(receipt.block for receipt in received) == [0, 1, 2]


def test_local_workers_listen_on_loopback_only(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scheduler, workers, nannies and dashboards: all that this process and its children listen on."""
    run = begun(tmp_path, model, monkeypatch, height=200)
    hosts: set[str] = set()

    def look(_: Receipt) -> None:
        here = psutil.Process()
        for process in (here, *here.children(recursive=True)):
            hosts.update(c.laddr.ip for c in process.net_connections("inet") if c.status == psutil.CONN_LISTEN)

    execute(run.ticket, run.works, Workers(2), look, Stop())
    assert hosts == {"127.0.0.1"}
