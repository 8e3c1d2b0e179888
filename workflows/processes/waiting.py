"""Jobs that were submitted and are waited for: how they are, what they said last, and their end."""

import shlex
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from fcn_batch.pipeline.core.errors import OutputError
from fcn_batch.pipeline.core.text import printable
from fcn_batch.workflows.console.signals import Stop
from fcn_batch.workflows.processes.clusters import Kind

_STATES: dict[str, Callable[[list[str]], list[str]]] = {
    "slurm": lambda ids: ["squeue", "--noheader", "--format=%T %r", f"--jobs={','.join(ids)}"],
    "pbs": lambda ids: ["qstat", "-s", *ids],
    "lsf": lambda ids: ["bjobs", "-p", *ids],
    "sge": lambda ids: ["qstat", "-j", ",".join(ids)],
}
"""Commands that tell how jobs are, and why they do not run."""
_LOOK_EVERY_S = 0.5
_ASK_EVERY_S = 20.0
_CALL_S = 60.0
"""For a program of the batch system."""
_AT_ONCE = 200
"""Jobs named in one command."""
LONGEST_TOLD = 300
"""Characters that are repeated of what others said."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """What a run does until its workers are there."""

    stop: Stop
    folder: Path | None = None
    """On storage that all jobs see, for their certificates and logs."""
    note: Callable[[str], None] = lambda _: None


@dataclass(slots=True)
class Jobs:
    """The jobs of a run."""

    kind: Kind
    count: int
    folder: Path
    ids: list[str] = field(default_factory=list)
    """All that were ever submitted."""
    refused: str = ""
    """What the batch system said of one that it did not take."""

    def state(self) -> str:
        """What the batch system says of them; empty when it knows none of them, or nothing."""
        if not self.ids or self.kind not in _STATES:
            return ""
        told = _call(_STATES[self.kind](self.ids[-_AT_ONCE:]))
        return "; ".join(sorted({" ".join(line.split()) for line in told.splitlines() if line.strip()}))[:LONGEST_TOLD]

    def last_words(self) -> str:
        """The last line of the newest log that says anything."""
        logs = [path for path in self.folder.glob("*") if path.suffix in (".err", ".out") and path.stat().st_size]
        for path in sorted(logs, key=lambda path: path.stat().st_mtime, reverse=True):
            lines = [line for line in path.read_text(errors="replace").splitlines() if line.strip()]
            if lines:
                return printable(lines[-1].strip())[:LONGEST_TOLD]
        return ""

    def cancel(self, command: str) -> None:
        """All of them, those too that a signal kept from being cancelled in order; done ones are no harm."""
        for start in range(0, len(self.ids), _AT_ONCE):
            _call([*shlex.split(command), *self.ids[start : start + _AT_ONCE]])


def _call(words: list[str]) -> str:
    """What a program prints, or an empty text; a Ctrl-C is not for it."""
    with suppress(OSError, subprocess.TimeoutExpired):
        ran = subprocess.run(
            words,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            timeout=_CALL_S,
            start_new_session=True,
        )
        return ran.stdout if ran.returncode == 0 else ""
    return ""


def await_first(there: Callable[[], object], jobs: Jobs, waiting: Waiting, patience: float) -> None:
    """Wait until a worker is `there`, or for a signal to stop; OutputError when none has come in so many seconds."""
    begun = asked = time.monotonic()
    told = ""
    waiting.note(f"submitted {jobs.count} jobs to {jobs.kind}; waiting for the first (Ctrl-C cancels them)")
    while not waiting.stop.requested and not there():
        now = time.monotonic()
        if now - begun >= patience:
            raise _none_came(jobs, f"none of the {jobs.count} jobs became a worker in {patience:g} s", told)
        if now - asked >= min(_ASK_EVERY_S, patience / 4):
            asked, before, told = now, told, jobs.state()
            if told and told != before:
                waiting.note(f"jobs in {jobs.kind}: {told}")
            if jobs.kind == "slurm" and before and not told and not there():
                raise _none_came(jobs, f"all {jobs.count} jobs ended before they became workers", "")
        time.sleep(_LOOK_EVERY_S)


def _none_came(jobs: Jobs, what: str, state: str) -> OutputError:
    words = jobs.last_words()
    said = [f"{jobs.kind} says: {state}"] * bool(state) + [f"the last log says: {words}"] * bool(words)
    return OutputError(
        f"--cluster {jobs.kind}: {what}; {'; '.join(said) or 'nothing is known of them'}; logs are in {jobs.folder}: "
        "mend it, or change the cluster's TOML file, and run the same command again"
    )
