"""What a person sees of a run, on standard error: a bar on a terminal, plain lines in a log, or nothing."""

import sys
import time
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

_LINE_EVERY_S = 10.0


class RunProgress(Protocol):
    """Told of a run's blocks as they finish."""

    def start(self, what: str, total: int, done: int) -> None:
        """Pixels of the raster, and how many of them were finished by an earlier run."""

    def advance(self, pixels: int) -> None:
        """More pixels are finished."""

    def note(self, text: str) -> None:
        """Something the user should read."""

    def stop(self) -> None:
        """The blocks are done, or the run has failed."""


class Quiet:
    """Says nothing."""

    def start(self, what: str, total: int, done: int) -> None:
        """Nothing."""

    def advance(self, pixels: int) -> None:
        """Nothing."""

    def note(self, text: str) -> None:
        """Nothing."""

    def stop(self) -> None:
        """Nothing."""


class Lines:
    """A line every few seconds, for logs."""

    def __init__(self) -> None:
        self._what = ""
        self._total = self._done = self._first = 0
        self._started = self._last = 0.0

    def start(self, what: str, total: int, done: int) -> None:
        """Begin; the speed counts only pixels of this run."""
        self._what, self._total, self._done, self._first = what, total, done, done
        self._started = self._last = time.monotonic()

    def advance(self, pixels: int) -> None:
        """Write a line when the last one is old enough, and for the last block."""
        self._done += pixels
        now = time.monotonic()
        if now - self._last < _LINE_EVERY_S and self._done < self._total:
            return
        self._last = now
        rate = (self._done - self._first) / max(now - self._started, 1e-9)
        left = (self._total - self._done) / max(rate, 1e-9)
        self.note(
            f"{self._what}: {100 * self._done / self._total:.0f} % of {self._total / 1e6:.1f} MPx, "
            f"{rate / 1e6:.2f} MPx/s, {left:.0f} s left"
        )

    def note(self, text: str) -> None:
        """One line."""
        sys.stderr.write(f"{text}\n")
        sys.stderr.flush()

    def stop(self) -> None:
        """Nothing to clear."""


class Bar:
    """A live bar with speed and time left, for terminals."""

    def __init__(self) -> None:
        self._console = Console(stderr=True, emoji=False)  # file names may look like :one:
        self._bar: Progress | None = None
        self._done = self._first = 0
        self._started = 0.0

    def start(self, what: str, total: int, done: int) -> None:
        """Draw the bar."""
        self._bar = Progress(
            TextColumn("{task.description}", markup=False),  # a file name, not rich's markup
            BarColumn(),
            TextColumn("{task.percentage:3.0f} %  {task.fields[rate]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self._console,
            transient=True,
        )
        self._bar.add_task(what, total=total, completed=done, rate="")
        self._done, self._first, self._started = done, done, time.monotonic()
        self._bar.start()

    def advance(self, pixels: int) -> None:
        """Move the bar."""
        if self._bar is None:
            return
        self._done += pixels
        rate = (self._done - self._first) / max(time.monotonic() - self._started, 1e-9)
        self._bar.update(self._bar.task_ids[0], completed=self._done, rate=f"{rate / 1e6:.2f} MPx/s")

    def note(self, text: str) -> None:
        """A line above the bar."""
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def stop(self) -> None:
        """Clear the bar."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def progress_for(*, quiet: bool) -> RunProgress:
    """The one that suits where standard error goes."""
    if quiet:
        return Quiet()
    return Bar() if sys.stderr.isatty() else Lines()
