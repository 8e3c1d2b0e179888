"""Progress of a run, on standard error: a bar on a terminal, plain lines in a log, or nothing."""

import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from fcn_batch.pipeline.core.text import printable

_LINE_EVERY_S = 10.0


@dataclass(frozen=True, slots=True)
class Unit:
    """What is counted, and how it is shown."""

    name: str
    size: float = 1.0
    """How many of what is counted are one of those shown."""
    digits: int = 0


PIXELS = Unit("MPx", 1e6, 1)
STEPS = Unit("steps")


class RunProgress:
    """Counts what is done, and shows it by the methods `_begin` to `_write` of a subclass.

    When one of these fails, nothing is shown any more: a closed terminal, or a log on a full disk, must not end a run.
    Names of files come along, so characters that a terminal would obey are made visible.
    """

    _what = _note = ""
    _unit = PIXELS
    _total = _done = _first = 0
    _started = 0.0
    _broken = False

    def start(self, what: str, total: int, done: int, unit: Unit = PIXELS) -> None:
        """Begin: how much there is to do, and how much of it was done by an earlier run, which is not in the speed."""
        self._what, self._note, self._unit = printable(what), "", unit
        self._total, self._done, self._first = total, done, done
        self._started = time.monotonic()
        self._try(self._begin)

    def advance(self, amount: int) -> None:
        """Count what is done."""
        self._done += amount
        self._try(self._move)

    def say(self, text: str) -> None:
        """Show `text` beside the progress, until there is another one."""
        self._note = printable(text)

    def note(self, text: str) -> None:
        """Show a line that the user should read."""
        self._try(lambda: self._write(printable(text)))

    def stop(self) -> None:
        """End: the blocks are done, or the run has failed."""
        self._try(self._end)

    @property
    def _rate(self) -> float:
        return (self._done - self._first) / max(time.monotonic() - self._started, 1e-9)

    def _try(self, show: Callable[[], None]) -> None:
        if not self._broken:
            try:
                show()
            except (OSError, ValueError):  # ValueError: the file is closed
                self._broken = True
                with suppress(OSError, ValueError):
                    self._end()  # a bar holds on to standard output

    def _begin(self) -> None:
        pass

    def _move(self) -> None:
        pass

    def _end(self) -> None:
        pass

    def _write(self, text: str) -> None:
        pass


class Quiet(RunProgress):
    """Shows nothing."""


class Lines(RunProgress):
    """A line every few seconds, and one for the last part; for logs."""

    _last = 0.0

    def _begin(self) -> None:
        self._last = self._started

    def _move(self) -> None:
        now = time.monotonic()
        if now - self._last < _LINE_EVERY_S and self._done < self._total:
            return
        self._last, unit, rate = now, self._unit, self._rate
        left = (self._total - self._done) / max(rate, 1e-9)
        self._write(
            f"{self._what}: {100 * self._done / self._total:.0f} % of {self._total / unit.size:.{unit.digits}f} "
            f"{unit.name}, {rate / unit.size:.2f} {unit.name}/s, {left:.0f} s left{', ' * bool(self._note)}{self._note}"
        )

    def _write(self, text: str) -> None:
        sys.stderr.write(f"{text}\n")
        sys.stderr.flush()


class Bar(RunProgress):
    """A live bar with speed and time left, for terminals."""

    def __init__(self) -> None:
        self._console = Console(stderr=True, emoji=False)  # file names may look like :one:
        self._bar: Progress | None = None

    def _begin(self) -> None:
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
        self._bar.add_task(self._what, total=self._total, completed=self._done, rate="")
        self._bar.start()

    def _move(self) -> None:
        if self._bar is not None:
            rate = f"{self._rate / self._unit.size:.2f} {self._unit.name}/s{'  ' * bool(self._note)}{self._note}"
            self._bar.update(self._bar.task_ids[0], completed=self._done, rate=rate)

    def _end(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _write(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)


def progress_for(*, quiet: bool) -> RunProgress:
    """Return the one that suits where standard error goes; it is None when it was closed before the program began."""
    if quiet or sys.stderr is None:
        return Quiet()
    return Bar() if sys.stderr.isatty() else Lines()
