"""Plant one bug at a time in a copy of a checkout, run the tests of its subject, and print a table of what came of it.

A mutant is caught when pytest exits with 1, tests failed, and the first test that failed passes without the mutant.
Any other exit (an error while tests are collected, none found) is no catch: those tests say nothing about the mutant.
Exits with 0 when all mutants are caught.
"""

import argparse
import os
import queue
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from tests.mutants import HERE, Mutant, mutants

_TIME_OUT_S = 300
_CONTROL_S = 3600
_OUT_OF_TIME = -1
_WHY_NOT = {
    0: "NO",
    2: "tests interrupted",
    3: "pytest failed",
    4: "no such tests",
    5: "no tests",
    _OUT_OF_TIME: "hangs",
}
"""By pytest's exit code: why a mutant is not caught."""
_FAILED = re.compile(r"^(?:FAILED|ERROR) (\S+::.*?)(?: - .*)?$", re.MULTILINE)
_PYTEST = ("-m", "pytest", "-q", "--no-header", "--tb=line", "-p", "no:cacheprovider")
_EXAMPLES = ("-p", "unshrunk", "--hypothesis-profile", "unshrunk")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one mutant."""

    mutant: Mutant
    caught: str
    """yes, or why not."""
    test: str = ""
    """The first one that failed."""
    seconds: float = 0.0

    @property
    def row(self) -> str:
        """Its row of the table."""
        test = self.test.replace("|", "\\|")
        return f"| {self.mutant.name} | {self.mutant.area} | {self.caught} | {test} | {self.seconds:.0f} |"


@dataclass(frozen=True, slots=True)
class Copy:
    """A copy of a checkout, to be changed and tested."""

    folder: Path

    @classmethod
    def of(cls, checkout: Path, folder: Path) -> "Copy":
        """Clone a checkout into `folder`, with changes that are not committed but without untracked files."""
        changes = _git(checkout, "diff", "--binary", "HEAD")
        _git(checkout, "clone", "--quiet", "--shared", str(checkout), str(folder))
        _git(folder, "checkout", "--quiet", "--detach", _git(checkout, "rev-parse", "HEAD").strip())
        if changes:
            subprocess.run(["git", "apply", "--index"], cwd=folder, input=changes, text=True, check=True)
            _git(folder, "-c", "user.name=mutants", "-c", "user.email=", "commit", "--quiet", "-m", "As it is")
        return cls(folder)

    @contextmanager
    def holding(self, mutant: Mutant) -> Iterator[bool]:
        """Plant a mutant, and take it out again with all that tests left; False when no patch of it applies."""
        try:
            yield any(self._applies(patch) for patch in mutant.patches)
        finally:
            _git(self.folder, "reset", "--quiet", "--hard")
            _git(self.folder, "clean", "--quiet", "-ffdx")

    def _applies(self, patch: Path) -> bool:
        # -C1: of the lines around it, those further away may have changed
        command = ["git", "apply", "-C1", str(patch)]
        return subprocess.run(command, cwd=self.folder, capture_output=True, check=False).returncode == 0

    def pytest(self, arguments: Sequence[str], time_out: float) -> tuple[int, str]:
        """Run tests; return pytest's exit code, or _OUT_OF_TIME, and what it printed."""
        paths = f"{self.folder}{os.pathsep}{HERE}"  # for the plugin, which the copy may not have
        environment = {**os.environ, "PYTHONPATH": paths, "PYTHONDONTWRITEBYTECODE": "1", "COLUMNS": "1000"}
        with tempfile.TemporaryFile("w+") as out:  # no pipe: a process that a test forgot would hold it open
            process = subprocess.Popen(
                [sys.executable, *_PYTEST, *_EXAMPLES, *arguments],
                cwd=self.folder,
                env=environment,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                code = process.wait(time_out)
            except subprocess.TimeoutExpired:
                code = _OUT_OF_TIME
            finally:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            out.seek(0)
            return code, out.read()


def main() -> int:
    """Return 0 when all mutants are caught."""
    options, known = _options(), mutants()
    if unknown := set(options.names) - set(known):
        _say(f"no mutants: {', '.join(sorted(unknown))}")
        return 2
    chosen = [known[name] for name in options.names or known]
    for ignored in (signal.SIGINT, signal.SIGHUP):  # as of what a shell runs in the background: tests would inherit it
        signal.signal(ignored, signal.SIG_DFL)
    if options.list:
        _say(*(f"{mutant.area:<11} {mutant.name:<40} {mutant.subject}" for mutant in chosen))
        return 0
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        copies = [Copy.of(options.checkout.resolve(), Path(folder, str(number))) for number in range(options.jobs)]
        outcomes = list(_outcomes(copies, chosen))
        if options.control:
            outcomes = _controlled(copies[0], outcomes)
    caught = sum(outcome.caught == "yes" for outcome in outcomes)
    _say("", "| mutant | area | caught | first test that fails | s |", "| --- | --- | --- | --- | --- |")
    _say(*(outcome.row for outcome in outcomes), "", f"{caught} of {len(outcomes)} caught")
    return 0 if caught == len(outcomes) else 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="mutants to try; default: all")
    parser.add_argument("--list", action="store_true", help="print the mutants and try none")
    parser.add_argument("--checkout", type=Path, default=Path(), help="what to plant them in; default: this folder")
    parser.add_argument("--jobs", type=int, default=1, help="mutants to try at the same time")
    parser.add_argument(
        "--no-control",
        dest="control",
        action="store_false",
        help="leave out that the tests which failed pass without mutants",
    )
    return parser.parse_args()


def _outcomes(copies: list[Copy], chosen: list[Mutant]) -> Iterator[Outcome]:
    """Try mutants, each in a copy that is free, and tell of each on standard error."""
    free: queue.SimpleQueue[Copy] = queue.SimpleQueue()
    for copy in copies:
        free.put(copy)

    def tried(mutant: Mutant) -> Outcome:
        copy = free.get()
        try:
            return _outcome(copy, mutant)
        finally:
            free.put(copy)

    with ThreadPoolExecutor(len(copies)) as pool:
        for outcome in pool.map(tried, chosen):
            print(outcome.row, file=sys.stderr, flush=True)  # noqa: T201 - progress of a program
            yield outcome


def _outcome(copy: Copy, mutant: Mutant) -> Outcome:
    started = time.monotonic()
    with copy.holding(mutant) as planted:
        if not planted:
            return Outcome(mutant, "does not apply")
        code, out = copy.pytest(["-x", *mutant.tests], _TIME_OUT_S)
    caught = code == 1 or (code == _OUT_OF_TIME and mutant.hangs)
    failed = _FAILED.search(out)
    test = failed[1] if code == 1 and failed else ""
    return Outcome(mutant, "yes" if caught else _WHY_NOT.get(code, f"exit {code}"), test, time.monotonic() - started)


def _controlled(copy: Copy, outcomes: list[Outcome]) -> list[Outcome]:
    """Return the outcomes, not caught where the test that failed does so without the mutant too."""
    tests = sorted({outcome.test for outcome in outcomes if outcome.test})
    _, out = copy.pytest(tests, _CONTROL_S) if tests else (0, "")
    failed = {found[1] for found in _FAILED.finditer(out)}
    return [replace(one, caught="fails without it too") if one.test in failed else one for one in outcomes]


def _git(folder: Path, *arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=folder, check=True, capture_output=True, text=True).stdout


def _say(*lines: str) -> None:
    print(*lines, sep="\n")  # noqa: T201 - what this program is for


if __name__ == "__main__":
    sys.exit(main())
