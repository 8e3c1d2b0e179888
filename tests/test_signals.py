"""What a signal asks of a run, and what it leaves to it."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import nullcontext, suppress

import pytest

from fcn_batch.pipeline.core.errors import StoppedError
from fcn_batch.workflows.console.signals import Stop, stopping, unheard
from tests.errors import refuses
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
    """After it what is under way is dropped."""
    told: list[str] = []
    with stopping(60, told.append) as stop:
        assert not stop.requested
        send(number)
        assert stop.requested
        assert not stop.at_once
        stop.check()
        send(number)  # again: nothing more
        with refuses("stopped-by-signal", signal=number.name):
            stop.leave()
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGINT)
    line = f"{number.name}: finishing the blocks under way (they have 60 s); run the same command again to go on"
    assert told == [line]
    assert StoppedError.exit_code == 75
    with stopping(0, print) as stop:
        send(number)
        assert stop.at_once
        with refuses("stopped-by-signal", signal=number.name):
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
    told_once = "(Ctrl-C again stops at once); run the same command again to go on"
    assert told == [f"SIGINT: finishing the blocks under way {told_once}"]


def test_a_deadline_goes_before_a_request_without_one() -> None:
    """Ctrl-C has all the time, but then the batch system ends the job; otherwise the first request counts."""
    told: list[str] = []
    with stopping(0, told.append) as stop:
        send(signal.SIGINT)
        assert not stop.at_once
        send(signal.SIGTERM)
        assert stop.at_once
        send(signal.SIGUSR1)  # later ones put nothing off
        with refuses("stopped-by-signal", signal="SIGTERM"):
            stop.check()
    assert [line.split(":")[0] for line in told] == ["SIGINT", "SIGTERM"]
    stop = Stop()
    stop.request(signal.SIGTERM, 60)
    stop.request(signal.SIGINT)
    with refuses("stopped-by-signal", signal="SIGTERM"):
        stop.leave()


def test_handlers_are_put_back_and_what_is_ignored_stays_ignored() -> None:
    """As nohup does with SIGHUP."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    before = [signal.getsignal(number) for number in (signal.SIGINT, *ENDING)]
    with suppress(ZeroDivisionError), stopping(0, print) as stop:
        assert signal.getsignal(signal.SIGTERM) != before[1]
        send(signal.SIGHUP)
        assert not stop.requested
        raise ZeroDivisionError
    assert [signal.getsignal(number) for number in (signal.SIGINT, *ENDING)] == before


@pytest.mark.parametrize("error", [RuntimeError("reentrant call"), OSError(5, "Input/output error")])
def test_a_note_that_cannot_be_told_is_no_obstacle(error: Exception) -> None:
    def fails(_: str) -> None:
        raise error

    with stopping(60, fails) as stop:
        send(signal.SIGTERM)
        assert stop.requested


def test_another_thread_has_no_signals_and_one_begun_unheard_hears_nothing() -> None:
    asked, seen, heard = {signal.SIGINT, *ENDING}, list[bool](), list[set[signal.Signals]]()

    def look() -> None:
        with stopping(0, print) as stop:
            seen.append(stop.requested)
        heard.append(asked - signal.pthread_sigmask(signal.SIG_BLOCK, ()))

    for around in (unheard(), nullcontext()):
        thread = threading.Thread(target=look)
        with around:
            thread.start()
        thread.join()
    assert (seen, heard) == ([False, False], [set(), asked])


HANGING = """
import sys, threading
from fcn_batch.workflows.console import signals

signals._PATIENCE_S = 0.2
with signals.stopping(0.1, print) as stop:
    print("ready", flush=True)
    {wait}
"""


WAIT = "lock = threading.Lock(); lock.acquire(); lock.acquire()"
CLOSED = "import os; os.close(2)"
FULL = "import os; os.set_blocking(2, False); [os.write(2, bytes(2**20)) for _ in '1']; os.set_blocking(2, True)"


@pytest.mark.parametrize(
    ("before", "number"),
    [("pass", signal.SIGTERM), (CLOSED, signal.SIGHUP), (FULL, signal.SIGTERM)],
    ids=["a disk that does not answer", "a closed terminal", "a full pipe"],
)
def test_a_process_that_does_not_end_in_time_is_ended(before: str, number: signal.Signals) -> None:
    code = HANGING.format(wait=f"{before}; {WAIT}")
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        assert process.wait(PATIENCE_S) == 75
        if before == "pass":
            (line,) = process.stderr.read().splitlines()
            assert line.startswith("fcn-batch: ")


def test_one_that_ends_in_time_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[Callable[[], None]] = []
    monkeypatch.setattr("fcn_batch.workflows.console.signals._PATIENCE_S", 0.0)
    monkeypatch.setattr(os, "_exit", ended.append)
    with stopping(0.05, print):
        send(signal.SIGTERM)
    threading.Event().wait(0.2)
    assert ended == []
