"""Whatever becomes of standard error, a run goes on."""

import os
import re
import subprocess
import sys
from contextlib import suppress
from io import StringIO

import pytest

from fcn_batch.workflows.console.progress import Bar, RunProgress
from tests.patience import PATIENCE_S

TELLING = """
import sys
from fcn_batch.workflows.console.progress import Bar, Lines, progress_for

progress = progress_for(quiet=False)
assert isinstance(progress, {kind})
progress.start("a", 100, 0)
progress.note("begun")
sys.stdin.readline()
for _ in range(50):
    progress.advance(2)
    progress.say("well")
    progress.note("more")
progress.stop()
print("a.tif", flush=True)
"""


class Failing(RunProgress):
    """Fails when it is to show something, and counts how often it was."""

    def __init__(self, error: Exception) -> None:
        self.error = error
        self.told: list[str] = []

    def _write(self, text: str) -> None:
        self.told.append(text)
        raise self.error

    def _end(self) -> None:
        self.told.append("stop")
        raise self.error


def test_after_a_failure_nothing_is_told() -> None:
    """But a mistake of ours is not hidden."""
    for error in (OSError(5, "Input/output error"), BrokenPipeError(), OSError(28, "full"), ValueError("closed file")):
        progress = failing = Failing(error)
        for _ in range(3):
            progress.note("x")
        progress.stop()
        assert failing.told == ["x", "stop"]
    with pytest.raises(ZeroDivisionError):
        Failing(ZeroDivisionError()).note("x")


def told_to(stderr: int, kind: str, **environ: str) -> "subprocess.Popen[str]":
    plain = {name: value for name, value in os.environ.items() if name != "NO_COLOR"}
    command, pipe = [sys.executable, "-c", TELLING.format(kind=kind)], subprocess.PIPE
    environment = {**plain, "TERM": "xterm", **environ}
    return subprocess.Popen(
        command, stdin=pipe, stdout=pipe, stderr=stderr, text=True, start_new_session=True, env=environment
    )


def test_a_terminal_that_is_closed_in_the_middle() -> None:
    """The bar stops, and what is printed reaches standard output all the same."""
    inside, outside = os.openpty()
    with told_to(outside, "Bar") as process:
        os.close(outside)
        seen = b""
        with suppress(OSError):  # the process has ended
            while b"begun" not in seen:
                seen += os.read(inside, 1000)
        os.close(inside)
        out, _ = process.communicate("\n", timeout=PATIENCE_S)
    assert b"begun" in seen
    assert (process.returncode, out) == (0, "a.tif\n")


def test_a_log_on_a_full_disk_and_one_that_nobody_reads() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    for stderr in (os.open("/dev/full", os.O_WRONLY), writer):
        with told_to(stderr, "Lines") as process:
            os.close(stderr)
            out, _ = process.communicate("\n", timeout=PATIENCE_S)
        assert (process.returncode, out) == (0, "a.tif\n")


@pytest.mark.parametrize("colour", [True, False])
def test_no_color_is_honoured(colour: bool) -> None:
    """Cursor movements stay: the bar is drawn in place."""
    inside, outside = os.openpty()
    environ = {"TERM": "xterm-256color", "COLORTERM": ""} | ({} if colour else {"NO_COLOR": "1"})
    with told_to(outside, "Bar", **environ) as process:
        os.close(outside)
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
        seen = b""
        with suppress(OSError):  # the process has ended
            while part := os.read(inside, 4000):
                seen += part
        os.close(inside)
    assert b"more" in seen
    codes = {code for found in re.findall(rb"\x1b\[([\d;]*)m", seen) for code in found.split(b";")}
    colours = {code for code in codes if re.fullmatch(rb"[349][0-8]|10[0-7]", code)}
    assert bool(colours) == colour, codes


def test_names_that_look_like_markup(monkeypatch: pytest.MonkeyPatch) -> None:
    screen, bar = StringIO(), Bar()
    monkeypatch.setattr(bar._console, "file", screen)
    bar.start("scene[bold]:smile:", total=100, done=0)
    bar.note("x[red]:smile:.tif: written")
    bar.advance(50)
    assert bar._bar is not None
    bar._console.print(bar._bar)
    bar.stop()
    assert "scene[bold]:smile:" in screen.getvalue()
    assert "x[red]:smile:.tif: written" in screen.getvalue()
