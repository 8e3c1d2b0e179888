"""`python -m tests.faults`: every fault and check; prints tables, ends with 1 if anything was not as promised.

`python -m tests.faults kills errors checks disks several` does some of it; `--both` fails each call with ENOSPC
and with EIO, not with one of them; `--scene NAME` takes one scene, `--part 2/5` the second fifth of the points.
"""

import argparse
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.faults.bench import SCENES
from tests.faults.checks import CHECKS
from tests.faults.disks import CHECKS as CHECKS_OF_DISKS
from tests.faults.disks import MOUNTING, can_mount
from tests.faults.prober import Probers, Question
from tests.faults.probing import Point, can_trace
from tests.faults.trials import Table, error_points, kill_points, publishing, spread, try_points

_OTHERS = 150
"""Kill points of a scene whose run begins or ends like that of another one; its publishing is tried at every point."""


def main() -> int:
    """0 when all is as promised."""
    options = _options()
    if reason := can_trace():
        _say(f"nothing tried: {reason}")
        return 2
    violations: list[str] = []
    with Probers(options.processes) as probers:
        for name in options.what or _PARTS:
            violations += _PARTS[name](probers, options)
    _say(*violations, f"violations: {len(violations)}")
    return 1 if violations else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("what", nargs="*", choices=[*_PARTS, []])
    parser.add_argument("--both", action="store_true")
    parser.add_argument("--scene", choices=SCENES)
    parser.add_argument("--part", default="1/1")
    parser.add_argument("--trials", type=int, default=20, help="of each kind of several runs at once")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    return parser.parse_args()


def _kills(probers: Probers, options: argparse.Namespace) -> list[str]:
    complaints = []
    for scene in [options.scene] if options.scene else SCENES:
        points = kill_points(probers, scene)
        if scene in ("resume", "restart") and not options.scene:
            points = list(dict.fromkeys([*spread(points, _OTHERS), *publishing(points)]))
        table = Table()
        with _told(table):
            try_points(probers, table, scene, _part(points, options))
        complaints += table.complaints
    return complaints


def _errors(probers: Probers, options: argparse.Namespace) -> list[str]:
    table, scene = Table(), options.scene or "fresh"
    points = _part(error_points(probers, scene, both=options.both), options)
    with _told(table):
        try_points(probers, table, scene, points)
    return table.complaints


def _checks(probers: Probers, _options: argparse.Namespace) -> list[str]:
    complaints = []
    for check in CHECKS:
        scenes = SCENES if check == "power_loss" else ("fresh", "sure")
        for scene, found in zip(scenes, probers.ask([Question(scene, check=check) for scene in scenes]), strict=True):
            _say(f"{check:<16} {scene:<10} {'as promised' if not found else found[0]}")
            complaints += [f"{check} {scene}: {line}" for line in found]
    return complaints


def _disks(probers: Probers, _options: argparse.Namespace) -> list[str]:
    with tempfile.TemporaryDirectory() as folder:
        reason = can_mount(Path(folder) / "disk")
    complaints = []
    for check in [check for check in CHECKS_OF_DISKS if check not in MOUNTING or not reason]:
        (found,) = probers.ask([Question("fresh", check=check)])
        _say(f"{check:<16} {'as promised' if not found else found[0]}")
        complaints += [f"{check}: {line}" for line in found]
    return complaints + [f"{', '.join(MOUNTING)} were not tried: {reason}"] * bool(reason)


def _several(_probers: Probers, options: argparse.Namespace) -> list[str]:
    done = subprocess.run([sys.executable, "-m", "tests.faults.several", str(options.trials)], check=False)
    return ["several runs at once: see above"] if done.returncode else []


_PARTS: dict[str, Callable[[Probers, argparse.Namespace], list[str]]] = {
    "kills": _kills,
    "errors": _errors,
    "checks": _checks,
    "disks": _disks,
    "several": _several,
}


@contextmanager
def _told(table: Table) -> Iterator[None]:
    """Print the table in any case: also when this program is asked to end."""

    def end(*_: object) -> None:
        sys.exit("ended early")

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
        _say(*table.lines(), *table.complaints)


def _part(points: list[Point], options: argparse.Namespace) -> list[Point]:
    index, count = map(int, options.part.split("/"))
    return points[len(points) * (index - 1) // count : len(points) * index // count]


def _say(*lines: str) -> None:
    for line in lines:
        sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
