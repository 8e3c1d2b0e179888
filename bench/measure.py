"""Run a command and measure it from outside: wall time, CPU time and peak memory, whatever it is.

The kernel counts all threads and, for CPU time, all children that were waited for. The peak is that of the
largest process. It starts from the memory of the process that calls this, so the caller must stay small.
"""

import json
import os
import subprocess
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

ROOT = Path(__file__).parents[1]
_LONGEST_REASON = 160


@dataclass(frozen=True, slots=True)
class Measured:
    """One finished command."""

    code: int
    wall_s: float
    cpu_s: float
    peak_mib: float
    out: str
    err: str

    @property
    def failed(self) -> str:
        """Why the command failed, in one line; empty when it did not."""
        if not self.code:
            return ""
        lines = [line.strip() for line in self.err.splitlines() if line.strip()]
        return (lines[-1] if lines else f"ended with code {self.code} and said nothing")[:_LONGEST_REASON]

    @property
    def told(self) -> dict[str, Any]:
        """The JSON object that a worker prints as its last line; empty when there is none."""
        lines = self.out.strip().splitlines()
        if self.code or not lines or not lines[-1].startswith("{"):
            return {}
        values: dict[str, Any] = json.loads(lines[-1])
        return values


def measure(command: Sequence[object], *, limit_s: float = 900.0) -> Measured:
    """Run `command` in the root of the checkout to its end; it is killed after `limit_s`."""
    with TemporaryFile() as out, TemporaryFile() as err:
        started = time.perf_counter()
        process = subprocess.Popen([str(part) for part in command], cwd=ROOT, stdout=out, stderr=err)
        timer = threading.Timer(limit_s, process.kill)
        timer.start()
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - started
        timer.cancel()
        process.returncode = code = os.waitstatus_to_exitcode(status)  # so that it is not waited for again
        texts = []
        for stream in (out, err):
            stream.seek(0)
            texts.append(stream.read().decode("utf-8", "replace"))
    if code < 0 and wall >= limit_s:
        texts[1] += f"\nstopped after {limit_s:.0f} s"
    elif code < 0:
        texts[1] += f"\nkilled by signal {-code}"
    return Measured(code, wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024, *texts)
