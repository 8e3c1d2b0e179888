"""Which faults are tried, and what came of them in a table."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from tests.faults.bench import Verdict
from tests.faults.prober import Probers
from tests.faults.probing import WRITING, Point

ERRORS = ("ENOSPC", "EIO")
_LAST_RENAMES = 9
"""Of a run's end: style, item, report sealed, five outputs and the report renamed into place, staging folder."""
FAILING = (*WRITING, "openat")
"""Calls that are made to fail: opening too."""
_HEAD = ("scene", "call", "fault", "points", "died", "told", "kept", "wrong", "false done", "again", "other", "s")


@dataclass(slots=True)
class Row:
    """Points of one kind."""

    points: int = 0
    died: int = 0
    told: int = 0
    """Runs that ended with a line for the user; the others came right all the same."""
    kept: int = 0
    """Blocks that were finished when the fault came, over all points."""
    wrong: int = 0
    """Points after which outputs had other bytes than they must, or files too many or too few."""
    false_done: int = 0
    """Points after which a report or a receipt told of what was not there."""
    again: int = 0
    """Points after which finished blocks were done again."""
    other: int = 0
    """Points after which a run could not be run again, did not end, or ended with a traceback."""
    seconds: float = 0.0

    def add(self, verdict: Verdict) -> None:
        """One more point."""
        self.points += 1
        self.died += verdict.killed
        self.told += verdict.failed
        self.kept += verdict.kept
        self.seconds += verdict.seconds
        kinds = {_kind(complaint) for complaint in verdict.complaints}
        for kind in kinds:
            setattr(self, kind, getattr(self, kind) + 1)

    def cells(self) -> list[str]:
        """As they stand in the table."""
        counts = (self.points, self.died, self.told, self.kept, self.wrong, self.false_done, self.again, self.other)
        return [*map(str, counts), f"{self.seconds:.0f}"]


def _kind(complaint: str) -> str:
    for start, kind in (
        ("wrong", "wrong"),
        ("false done", "false_done"),
        ("receipt without", "false_done"),
        ("torn receipt", "false_done"),
        ("computed again", "again"),
    ):
        if complaint.startswith(start):
            return kind
    return "other"


@dataclass(slots=True)
class Table:
    """All that was tried."""

    rows: dict[tuple[str, str, str], Row] = field(default_factory=dict)
    complaints: list[str] = field(default_factory=list)

    def add(self, scene: str, point: Point, verdict: Verdict) -> None:
        """One more point."""
        self.rows.setdefault((scene, point.call, point.fault), Row()).add(verdict)
        self.complaints += [f"{scene} {point}: {complaint}" for complaint in verdict.complaints]

    def lines(self) -> list[str]:
        """The table, a row for every kind of point, and sums for kills and errors."""
        body = [[*key, *row.cells()] for key, row in self.rows.items()]
        for name, faults in (("kills", ("SIGKILL",)), ("errors", ERRORS)):
            total = Row()
            for (_, _, fault), row in self.rows.items():
                if fault in faults:
                    for what in Row.__slots__:
                        setattr(total, what, getattr(total, what) + getattr(row, what))
            body.append([f"all {name}", "", "", *total.cells()])
        widths = [max(len(line[k]) for line in (_HEAD, *body)) for k in range(len(_HEAD))]
        return [_aligned(line, widths) for line in (_HEAD, *body)]


def _aligned(line: Sequence[str], widths: Sequence[int]) -> str:
    names = [cell.ljust(width) for cell, width in zip(line[:3], widths[:3], strict=True)]
    numbers = [cell.rjust(width) for cell, width in zip(line[3:], widths[3:], strict=True)]
    return "  ".join((*names, *numbers))


def try_points(probers: Probers, table: Table, scene: str, tried: Sequence[Point]) -> None:
    """Try them, and note what came of it."""
    for point, verdict in probers.tried(scene, tried):
        table.add(scene, point, verdict)


def spread(points: Sequence[Point], count: int) -> list[Point]:
    """So many of them at even distances, the first and the last among them."""
    if len(points) <= count:
        return list(points)
    return [points[round(k * (len(points) - 1) / (count - 1))] for k in range(count)]


def publishing(points: Sequence[Point]) -> list[Point]:
    """The last of a run's points: from where the last output is renamed in the staging folder to its very end.

    Of the many files that are deleted then, only some.
    """
    renames = [k for k, point in enumerate(points) if (point.call, point.thread) == ("rename", 0)]
    window = list(points[renames[-_LAST_RENAMES] :])
    deleted = [point for point in window if point.call in ("unlinkat", "unlink", "rmdir")]
    return [point for point in window if point not in deleted] + spread(deleted, 6)


def kill_points(probers: Probers, scene: str) -> list[Point]:
    """Every call of a run that changes the disk."""
    return probers.points(scene, WRITING)


def error_points(probers: Probers, scene: str, *, both: bool) -> list[Point]:
    """The same calls, and those that open files: with `both` errors at each, or with one and the other in turn."""
    points = probers.points(scene, FAILING, ERRORS)
    return points if both else [point for k, point in enumerate(points) if k % 2 == k // 2 % 2]
