"""What a person sees of a run, on standard error: a bar on a terminal, plain lines in a log, or nothing."""

import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

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


class RunProgress(Protocol):
    """Told of a run's blocks as they finish."""

    def start(self, what: str, total: int, done: int, unit: Unit = PIXELS) -> None:
        """How much there is to do, and how much of it was done by an earlier run."""

    def advance(self, amount: int) -> None:
        """More is done."""

    def say(self, text: str) -> None:
        """How it goes: shown beside the progress until something else is said."""

    def note(self, text: str) -> None:
        """Something the user should read."""

    def stop(self) -> None:
        """The blocks are done, or the run has failed."""


class Quiet:
    """Says nothing."""

    def start(self, what: str, total: int, done: int, unit: Unit = PIXELS) -> None:
        """Nothing."""

    def advance(self, amount: int) -> None:
        """Nothing."""

    def say(self, text: str) -> None:
        """Nothing."""

    def note(self, text: str) -> None:
        """Nothing."""

    def stop(self) -> None:
        """Nothing."""


class Lines:
    """A line every few seconds, for logs."""

    def __init__(self) -> None:
        self._what = self._said = ""
        self._unit = PIXELS
        self._total = self._done = self._first = 0
        self._started = self._last = 0.0

    def start(self, what: str, total: int, done: int, unit: Unit = PIXELS) -> None:
        """Begin; the speed counts only what this run does."""
        self._what, self._unit, self._said = what, unit, ""
        self._total, self._done, self._first = total, done, done
        self._started = self._last = time.monotonic()

    def advance(self, amount: int) -> None:
        """Write a line when the last one is old enough, and for the last part."""
        self._done += amount
        now = time.monotonic()
        if now - self._last < _LINE_EVERY_S and self._done < self._total:
            return
        self._last = now
        rate = (self._done - self._first) / max(now - self._started, 1e-9)
        left = (self._total - self._done) / max(rate, 1e-9)
        unit = self._unit
        self.note(
            f"{self._what}: {100 * self._done / self._total:.0f} % of {self._total / unit.size:.{unit.digits}f} "
            f"{unit.name}, {rate / unit.size:.2f} {unit.name}/s, {left:.0f} s left{self._said}"
        )

    def say(self, text: str) -> None:
        """Kept for the next line."""
        self._said = f", {text}"

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
        self._unit, self._said = PIXELS, ""
        self._done = self._first = 0
        self._started = 0.0

    def start(self, what: str, total: int, done: int, unit: Unit = PIXELS) -> None:
        """Draw the bar."""
        self._unit, self._said = unit, ""
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

    def advance(self, amount: int) -> None:
        """Move the bar."""
        if self._bar is None:
            return
        self._done += amount
        rate = (self._done - self._first) / max(time.monotonic() - self._started, 1e-9) / self._unit.size
        shown = f"{rate:.2f} {self._unit.name}/s{self._said}"
        self._bar.update(self._bar.task_ids[0], completed=self._done, rate=shown)

    def say(self, text: str) -> None:
        """Shown with the next move."""
        self._said = f"  {text}"

    def note(self, text: str) -> None:
        """A line above the bar."""
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def stop(self) -> None:
        """Clear the bar."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


class Sturdy:
    """Tells another one, until that fails: a terminal that was closed, or a log on a full disk, must not end a run.

    Names of files come along, so what a terminal would obey is told in a visible form.
    """

    def __init__(self, told: RunProgress) -> None:
        self._told = told

    def start(self, what: str, total: int, done: int, unit: Unit = PIXELS) -> None:
        """Tell it."""
        self._tell("start", what, total, done, unit)

    def advance(self, amount: int) -> None:
        """Tell it."""
        self._tell("advance", amount)

    def say(self, text: str) -> None:
        """Tell it."""
        self._tell("say", text)

    def note(self, text: str) -> None:
        """Tell it."""
        self._tell("note", text)

    def stop(self) -> None:
        """Tell it."""
        self._tell("stop")

    def _tell(self, what: str, *arguments: object) -> None:
        try:
            getattr(self._told, what)(*(printable(one) if isinstance(one, str) else one for one in arguments))
        except (OSError, ValueError):  # ValueError: the file is closed
            failed, self._told = self._told, Quiet()
            with suppress(OSError, ValueError):
                failed.stop()  # a bar holds on to standard output


def progress_for(*, quiet: bool) -> RunProgress:
    """The one that suits where standard error goes; it is None when it was closed before the program began."""
    if quiet or sys.stderr is None:
        return Quiet()
    return Sturdy(Bar() if sys.stderr.isatty() else Lines())
