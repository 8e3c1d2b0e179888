"""Signals that ask a run to end: what is under way is finished if there is time, and nothing more is begun.

Whatever is on the disk is whole at every moment, so a run that does not end by itself in time may simply be ended.
"""

import os
import select
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import NoReturn

from fcn_batch.pipeline.core.errors import StoppedError

_ENDING = tuple(signal.Signals[name] for name in ("SIGTERM", "SIGUSR1", "SIGHUP") if hasattr(signal, name))
_PATIENCE_S = 10.0
"""Seconds that a run gets beyond its grace to drop what is under way."""
_AGAIN = "run the same command again to go on"


class Stop:
    """Whether a run is to end, and how soon; for all threads."""

    def __init__(self) -> None:
        self._requested = threading.Event()
        self._deadline: float | None = None
        self._by = signal.SIGINT

    @property
    def requested(self) -> bool:
        """No more blocks are to be begun."""
        return self._requested.is_set()

    @property
    def at_once(self) -> bool:
        """What is under way is to be dropped."""
        return self._deadline is not None and time.monotonic() >= self._deadline

    def request(self, by: signal.Signals = signal.SIGINT, grace: float | None = None) -> bool:
        """End the run after the blocks under way; after `grace` seconds, if given, without them.

        False when nothing is new: the first request counts, but one with a deadline goes before one without.
        """
        if self.requested and (grace is None or self._deadline is not None):
            return False
        self._by = by
        self._deadline = None if grace is None else time.monotonic() + grace
        self._requested.set()
        return True

    def check(self) -> None:
        """StoppedError when there is no time left."""
        if self.at_once:
            self.leave()

    def leave(self) -> NoReturn:
        """End the run: KeyboardInterrupt for one from the keyboard, StoppedError for others."""
        if self._by == signal.SIGINT:
            raise KeyboardInterrupt
        raise StoppedError(
            "stopped-by-signal",
            "stopped by {signal}; finished blocks are kept: run the same command again to go on",
            signal=self._by.name,
        )


@contextmanager
def stopping(grace: float, note: Callable[[str], None]) -> Iterator[Stop]:
    """A Stop that signals request, within `grace` seconds unless they come from the keyboard; `note` is told of it.

    A second Ctrl-C is a KeyboardInterrupt. In other threads than the main one there are no signals, and no handlers.
    """
    stop = Stop()
    timers: list[threading.Timer] = []

    def asked(number: int, _frame: FrameType | None) -> None:
        by = signal.Signals(number)
        if not stop.request(by, None if by == signal.SIGINT else grace):
            if by == signal.SIGINT:
                raise KeyboardInterrupt
            return
        how = "Ctrl-C again stops at once"
        if by != signal.SIGINT:
            how = f"they have {grace:g} s"
            timers.append(_end_after(grace + _PATIENCE_S))
        with suppress(RuntimeError, OSError):  # in the middle of another line, or nowhere to tell it
            note(f"{by.name}: finishing the blocks under way ({how}); {_AGAIN}")

    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    handled = [number for number in (signal.SIGINT, *_ENDING) if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, asked) for number in handled}
    try:
        yield stop
    finally:
        for timer in timers:
            timer.cancel()
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def unheard() -> Iterator[None]:
    """What is begun meanwhile, threads and processes, hears none of these signals, from its first moment on.

    Ctrl-C and batch systems send them to every process of a run. The run asks its workers to end; if a signal killed
    them, blocks would be lost, and look as if they were at fault.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, *_ENDING))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _end_after(seconds: float) -> threading.Timer:
    """End this process then, unless that is called off: it may be waiting for a disk that does not answer."""

    def end() -> None:
        try:
            if select.select([], [2], [], 0)[1]:  # a terminal that is held, or a full pipe, would hold this too
                os.write(2, f"fcn-batch: did not end in time, stopped; finished blocks are kept: {_AGAIN}\n".encode())
        finally:  # also when standard error is closed
            os._exit(StoppedError.exit_code)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    return timer
