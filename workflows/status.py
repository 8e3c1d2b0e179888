"""`fcn-batch status`: how far runs are, told from their plans, receipts and claims alone, also while they go on.

Needs no scheduler and no batch system, and only the right to read: any machine that sees the files can tell.
"""

import json
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Literal

from fcn_batch.pipeline.core.errors import InputError, MismatchError
from fcn_batch.pipeline.core.journal import Receipt, block_of
from fcn_batch.workflows.outputs.publishing import Outputs, find_outputs

_STAGING = ".partial"
_REPORT = ".run.json"
_LONG_GAP = 20.0
"""So many times the usual time between two blocks, and the run stood still."""
_SHORTEST_GAP_S = 60.0

Phase = Literal["complete", "running", "publishing", "interrupted"]


@dataclass(frozen=True, slots=True)
class Status:
    """How far one run is."""

    path: str
    """Of the report if it is complete, else of the staging folder."""
    phase: Phase
    blocks: int
    done: int
    pixels: int
    pixels_done: int
    pixels_per_s: float | None
    """Since the run last began or went on; None while that cannot be told."""
    seconds_left: float | None
    at_work: tuple[str, ...] = ()
    """Processes: those of runs, and those that are at blocks."""
    done_by: dict[str, int] | None = None
    """Blocks, by the process that did them."""
    unreadable: int = 0
    """Parts of the input that could not be read."""
    lost: tuple[int, ...] = ()
    """Blocks whose process died, and at which nobody is again."""

    def line(self) -> str:
        """The same in one line, for logs."""
        speed = "" if self.pixels_per_s is None else f", {self.pixels_per_s / 1e6:.2f} MPx/s"
        left = "" if self.seconds_left is None else f", about {_duration(self.seconds_left)} left"
        return f"{self.path}: {self.phase}, {self.done} of {self.blocks} blocks{speed}{left}"

    def describe(self) -> list[tuple[str, str]]:
        """What a person wants to know: label and value, one pair a line."""
        share = 100 * self.done // max(self.blocks, 1)
        pairs = [(self.phase, self.path), ("blocks", f"{self.done} of {self.blocks} ({share} %)")]
        speed = "" if self.pixels_per_s is None else f", {self.pixels_per_s / 1e6:.2f} MPx/s"
        pairs.append(("pixels", f"{self.pixels_done / 1e6:.1f} of {self.pixels / 1e6:.1f} MPx{speed}"))
        if self.seconds_left is not None:
            pairs.append(("left", f"about {_duration(self.seconds_left)}"))
        if self.at_work:
            pairs.append(("at work", ", ".join(self.at_work)))
        if self.phase == "interrupted":
            pairs.append(("at work", "nobody: give the same segment command again to go on"))
        failures = [f"a process died at block {block}" for block in self.lost]
        failures += [f"{self.unreadable} parts of the input could not be read"] * bool(self.unreadable)
        return [*pairs, ("failures", "; ".join(failures) or "none")]


def status(path: Path) -> list[Status]:
    """How far the run is that `path` belongs to: its input, staging folder or any output; or all runs in a folder.

    InputError when there is none.
    """
    found = [one for outputs in _runs(path) if (one := _status(outputs)) is not None]
    if not found:
        raise InputError(
            "run-missing", "{path}: no run of fcn-batch segment here; give the folder of its outputs", path=path
        )
    return found


def to_json(found: Sequence[Status]) -> str:
    """A list of objects."""
    return json.dumps([asdict(one) for one in found], indent=2)


def _runs(path: Path) -> Iterator[Outputs]:
    if path.name.endswith(_STAGING) and path.name != _STAGING:
        yield Outputs(path.absolute().parent.resolve(), path.name.removesuffix(_STAGING))
    elif path.is_dir() and path.suffix != ".zarr":
        names = {found.name.removesuffix(end) for end in (_STAGING, _REPORT) for found in path.glob(f"*{end}")}
        yield from (Outputs(path.resolve(), name) for name in sorted(names - {""}))
    else:
        try:
            yield find_outputs(path)
        except InputError:  # an input, whose outputs lie beside it
            yield Outputs(path.absolute().parent.resolve(), path.stem)


def _status(outputs: Outputs) -> Status | None:
    """None when there is no run."""
    for _ in range(2):  # it may be published while we look
        if outputs.staging.is_dir() and not outputs.published():
            with suppress(MismatchError, FileNotFoundError):
                found = _under_way(outputs)
                if outputs.staging.is_dir():
                    return found
        if (report := outputs.reported()) is not None:
            pixels = sum(entry["pixels"] for entry in report["classes"]) + report["nodata_pixels"]
            return Status(
                path=str(outputs.folder / outputs.report),
                phase="complete",
                blocks=report["blocks"],
                done=report["blocks"],
                pixels=pixels,
                pixels_done=pixels,
                pixels_per_s=None,
                seconds_left=None,
                done_by=report["timing"].get("blocks_done_by"),
                unreadable=len(report["unreadable"]),
            )
    return None


def _under_way(outputs: Outputs) -> Status:
    journal = outputs.journal
    plan, receipts = journal.plan(), list(journal.receipts())
    holders = journal.claims.holders()
    living = {holder.process for holder, lives in holders.values() if lives}
    lost = (block_of(name) for name, (_, lives) in holders.items() if not lives)
    done = sum(_pixels(receipt) for receipt in receipts)
    rate = speed(receipts) if living else None
    phase: Phase = "running" if living else "interrupted"
    if living and (outputs.staging / outputs.report).exists():
        phase = "publishing"
    return Status(
        path=str(outputs.staging),
        phase=phase,
        blocks=len(plan.grid),
        done=len(receipts),
        pixels=plan.input.size.pixels,
        pixels_done=done,
        pixels_per_s=rate,
        seconds_left=(plan.input.size.pixels - done) / rate if rate else None,
        at_work=tuple(sorted(living)),
        done_by=dict(sorted(Counter(receipt.by for receipt in receipts).items())),
        unreadable=len({window for receipt in receipts for window in receipt.unreadable}),
        lost=tuple(sorted(block for block in lost if block is not None)),
    )


def _pixels(receipt: Receipt) -> int:
    return receipt.shape[0] * receipt.shape[1]


def speed(receipts: Sequence[Receipt], now: datetime | None = None) -> float | None:
    """Pixels in a second, of all processes together, since the run last stood still; None while that is not known.

    A run stood still where nothing was finished for much longer than usual: it was interrupted, and went on. The time
    that has gone by since the last block counts too, so that a run that has become slow does not look fast::

        finished   x  x x  x x              x x  x  x x  now
                                 gap        |-- counts --|
    """
    done = sorted(receipts, key=lambda receipt: receipt.finished)
    gaps = [(later.finished - earlier.finished).total_seconds() for earlier, later in pairwise(done)]
    if not gaps:
        return None
    longest = max(_LONG_GAP * median(gaps), _SHORTEST_GAP_S)
    first = max((index + 1 for index, gap in enumerate(gaps) if gap > longest), default=0)
    since = done[first].finished
    waited = (now or datetime.now(since.tzinfo)).timestamp() - done[-1].finished.timestamp()
    seconds = (done[-1].finished - since).total_seconds() + max(0.0, waited - max(gaps[first:], default=0.0))
    pixels = sum(_pixels(receipt) for receipt in done[first + 1 :])
    return pixels / seconds if pixels and seconds else None


def _duration(seconds: float) -> str:
    """``42 s``, ``7 min``, ``3 h 20 min``."""
    if seconds < 2 * 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 2 * 60 else f"{minutes // 60} h {minutes % 60} min"


def following(path: Path, every_s: float) -> Iterator[list[Status]]:
    """The runs' status whenever a block is done, until none of them goes on."""
    before: list[tuple[str, int]] = []
    while True:
        found = status(path)
        if before != (before := [(one.phase, one.done) for one in found]):
            yield found
        if not any(one.phase in ("running", "publishing") for one in found):
            return
        time.sleep(every_s)
