"""What a signal asks of a run, and what it leaves to it."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from fcn_batch.pipeline.core.errors import InputError, StoppedError
from fcn_batch.workflows.blocks.alone import Died, run_alone
from fcn_batch.workflows.blocks.job import JobTicket
from fcn_batch.workflows.console.signals import Stop, stopping, unheard
from tests.patience import PATIENCE_S

ENDING = (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)


@pytest.fixture(autouse=True)
def _hangups_are_heard() -> Iterator[None]:
    """Also under nohup: what is ignored here would be ignored by every process that a test begins."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


def send(number: signal.Signals) -> None:
    """To this process; the handler has run when this returns."""
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", ENDING)
def test_a_signal_asks_to_end_within_its_grace(number: signal.Signals) -> None:
    told: list[str] = []
    with stopping(60, told.append) as stop:
        assert not stop.requested
        send(number)
        assert stop.requested
        assert not stop.at_once
        stop.check()
        send(number)  # again: nothing more
        with pytest.raises(StoppedError, match=rf"^stopped by {number.name}; .* run the same command again"):
            stop.leave()
    assert told == [
        f"{number.name}: finishing the blocks under way (they have 60 s); run the same command again to go on"
    ]
    assert StoppedError.exit_code == 75


@pytest.mark.parametrize("number", ENDING)
def test_after_its_grace_what_is_under_way_is_dropped(number: signal.Signals) -> None:
    with stopping(0, print) as stop:
        send(number)
        assert stop.at_once
        with pytest.raises(StoppedError, match=number.name):
            stop.check()


def test_ctrl_c_has_all_the_time_and_twice_is_at_once() -> None:
    told: list[str] = []
    with stopping(0, told.append) as stop:
        send(signal.SIGINT)
        assert stop.requested
        assert not stop.at_once
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            stop.leave()
    assert told == [
        "SIGINT: finishing the blocks under way (Ctrl-C again stops at once); run the same command again to go on"
    ]


def test_ctrl_c_counts_also_while_another_signal_drains() -> None:
    with stopping(60, print) as stop:
        send(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGINT)
        assert stop.requested


def test_the_first_request_counts() -> None:
    stop = Stop()
    stop.request(signal.SIGTERM, 60)
    stop.request(signal.SIGINT)
    with pytest.raises(StoppedError, match="SIGTERM"):
        stop.leave()


def test_a_deadline_goes_before_a_request_without_one() -> None:
    """Ctrl-C has all the time, but then the batch system ends the job."""
    told: list[str] = []
    with stopping(0, told.append) as stop:
        send(signal.SIGINT)
        assert not stop.at_once
        send(signal.SIGTERM)
        assert stop.at_once
        send(signal.SIGUSR1)  # later ones put nothing off
        with pytest.raises(StoppedError, match="SIGTERM"):
            stop.check()
    assert [line.split(":")[0] for line in told] == ["SIGINT", "SIGTERM"]


def test_handlers_are_put_back() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, *ENDING)]
    with suppress(ZeroDivisionError), stopping(0, print):
        assert signal.getsignal(signal.SIGTERM) != before[1]
        raise ZeroDivisionError
    assert [signal.getsignal(number) for number in (signal.SIGINT, *ENDING)] == before


def test_what_is_ignored_stays_ignored() -> None:
    """As nohup does with SIGHUP."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stopping(0, print) as stop:
            send(signal.SIGHUP)
            assert not stop.requested
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("error", [RuntimeError("reentrant call"), OSError(5, "Input/output error")])
def test_a_note_that_cannot_be_told_is_no_obstacle(error: Exception) -> None:
    def fails(_: str) -> None:
        raise error

    with stopping(60, fails) as stop:
        send(signal.SIGTERM)
        assert stop.requested


def test_another_thread_has_no_signals() -> None:
    seen: list[bool] = []

    def work() -> None:
        with stopping(0, print) as stop:
            seen.append(stop.requested)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [False]


def test_what_is_begun_unheard_hears_nothing() -> None:
    asked = {signal.SIGINT, *ENDING}
    heard: list[set[signal.Signals]] = []

    def look() -> None:
        heard.append(asked - signal.pthread_sigmask(signal.SIG_BLOCK, ()))

    threads = [threading.Thread(target=look) for _ in range(2)]
    with unheard():
        threads[0].start()
    threads[1].start()
    for thread in threads:
        thread.join()
    assert sorted(heard, key=len) == [set(), asked]


CHILD = """#!{python} -S
import os, sys, time
sys.stdin.read()
with open("{folder}/new", "w") as file:
    file.write(str(os.getpid()))
os.rename("{folder}/new", "{folder}/pid")
while not os.path.exists("{folder}/go"):
    time.sleep(0.05)
print('{{"error": "InputError", "message": "answered"}}', end="")
"""
TICKET = JobTicket(staging="none", store="none", fingerprint="none", device="cpu")


@pytest.fixture
def child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder; what tries a block alone writes its number into `pid` there, and answers once there is a `go`."""
    program = tmp_path / "child"
    program.write_text(CHILD.format(python=sys.executable, folder=tmp_path))
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    return tmp_path


def number_of(child: Path) -> int:
    while not (child / "pid").exists():
        time.sleep(0.01)
    return int((child / "pid").read_text())


@pytest.mark.parametrize("number", [signal.SIGINT, *ENDING])
def test_a_block_tried_alone_is_not_ended_by_a_signal_to_all(child: Path, number: signal.Signals) -> None:
    """It would look deadly, and might be left out of the map."""

    def send_to_it() -> None:
        os.kill(number_of(child), number)
        (child / "go").touch()

    thread = threading.Thread(target=send_to_it)
    thread.start()
    with pytest.raises(InputError, match=r"^answered$"):
        run_alone(TICKET, 0, Stop())
    thread.join()


def test_a_block_tried_alone_may_die_with_any_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "child"
    program.write_text("#!/bin/sh\ncat >/dev/null\nprintf 'd\\351faut\\n' >&2\nexit 134\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    with pytest.raises(Died, match=r"^exit code 134 d.faut$"):
        run_alone(TICKET, 0, Stop())


def test_a_block_tried_alone_is_dropped_when_there_is_no_time(child: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fcn_batch.workflows.blocks.alone._LOOK_EVERY_S", 0.05)
    stop, numbers = Stop(), list[int]()

    def end() -> None:
        numbers.append(number_of(child))
        stop.request(signal.SIGTERM, 0)

    thread = threading.Thread(target=end)
    thread.start()
    with pytest.raises(StoppedError, match="SIGTERM"):
        run_alone(TICKET, 0, stop)
    thread.join()
    with pytest.raises(ProcessLookupError):
        os.kill(numbers[0], 0)


HANGING = """
import sys, threading
from fcn_batch.workflows.console import signals

signals._PATIENCE_S = 0.2
with signals.stopping(0.1, print) as stop:
    print("ready", flush=True)
    {wait}
"""


def hanging(wait: str) -> "subprocess.Popen[str]":
    process = subprocess.Popen(
        [sys.executable, "-c", HANGING.format(wait=wait)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def test_a_process_that_does_not_end_in_time_is_ended() -> None:
    """As one that waits for a disk: here, a lock that nobody releases."""
    with hanging("lock = threading.Lock(); lock.acquire(); lock.acquire()") as process:
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE_S) == 75
        assert process.stderr is not None
        assert process.stderr.read() == (
            "fcn-batch: did not end in time, stopped; finished blocks are kept: run the same command again to go on\n"
        )


def test_it_is_ended_also_when_nobody_can_be_told() -> None:
    """After SIGHUP the terminal is gone."""
    with hanging("import os; os.close(2); lock = threading.Lock(); lock.acquire(); lock.acquire()") as process:
        process.send_signal(signal.SIGHUP)
        assert process.wait(PATIENCE_S) == 75


def test_it_is_ended_also_when_nobody_reads_what_it_tells() -> None:
    """A pipe that is full holds whoever writes to it."""
    full = "import os; os.set_blocking(2, False); [os.write(2, bytes(2**20)) for _ in '1']; os.set_blocking(2, True)"
    with hanging(f"{full}; lock = threading.Lock(); lock.acquire(); lock.acquire()") as process:
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE_S) == 75


def test_one_that_ends_in_time_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[Callable[[], None]] = []
    monkeypatch.setattr("fcn_batch.workflows.console.signals._PATIENCE_S", 0.0)
    monkeypatch.setattr(os, "_exit", ended.append)
    with stopping(0.05, print):
        send(signal.SIGTERM)
    threading.Event().wait(0.2)
    assert ended == []
