"""How far a run is, as its files tell: under way, interrupted, at its end, complete."""

import json
import os
import threading
import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from fcn_batch.pipeline.core import claims
from fcn_batch.pipeline.core.holder import Holder
from fcn_batch.pipeline.core.journal import Receipt, claim_of
from fcn_batch.workflows.blocks.part import Part
from fcn_batch.workflows.outputs.publishing import Outputs
from fcn_batch.workflows.status import following, speed, status
from tests.errors import error_of, refuses
from tests.patience import PATIENCE_S
from tests.runs import fcn_batch
from tests.test_claims import died
from tests.test_run import BLOCKS, Job

START = datetime(2026, 3, 1, 12, tzinfo=UTC)
HERE = Holder.here().process


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return Job(tmp_path)


def receipts(finished_s: Sequence[float], rows: int = 10, cols: int = 100) -> list[Receipt]:
    """Of blocks that were finished so many seconds after the start."""
    return [
        Receipt(
            plan="p", block=block, sha256="", shape=(rows, cols), pixels={}, area_m2=None, tile=32, passes=1,
            forwarded=1, seconds=1, by="process 1 on a", finished=START + timedelta(seconds=at),
        )
        for block, at in enumerate(finished_s)
    ]  # fmt: skip


def test_an_interrupted_run_tells_what_is_done_and_how_to_go_on(job: Job) -> None:
    job.end(part=Part(1, 2))
    (found,) = status(job.outputs.folder)
    assert (found.phase, found.done, found.blocks, found.at_work) == ("interrupted", 3, BLOCKS, ())
    assert (found.pixels, found.pixels_done) == (job.plan.input.size.pixels, 3 * 32 * 90)
    assert found.done_by == {HERE: 3}
    assert found.pixels_per_s is None, "it stands still"
    told = fcn_batch("status", job.outputs.folder)
    assert told.exit_code == 75
    assert "3 of 6 (50 %)" in told.stdout
    assert error_of(told).fields["path"] == str(job.outputs.staging)


def test_a_run_under_way_tells_who_is_at_work(job: Job) -> None:
    inside, go_on = threading.Event(), threading.Event()

    def slowly(index: int) -> None:
        time.sleep(0.02)
        if index == 4:
            inside.set()
            assert go_on.wait(PATIENCE_S)

    running = job.begin(slowly)
    assert inside.wait(PATIENCE_S)
    (found,) = status(job.outputs.staging)
    assert (found.phase, found.done, found.at_work) == ("running", 4, (HERE,))
    assert found.pixels_per_s is not None
    assert found.seconds_left == pytest.approx((found.pixels - found.pixels_done) / found.pixels_per_s)
    assert fcn_batch("status", job.outputs.staging).exit_code == 0
    seen = following(job.outputs.staging, 0.01)
    assert next(seen)[0].done == 4
    go_on.set()
    assert [one.phase for (one,) in seen][-1] == "complete"
    running.join(PATIENCE_S)
    assert job.is_right(), "to look changes nothing"


def test_runs_are_found_by_any_of_their_names(job: Job) -> None:
    assert job.run()
    for name in ("a.run.json", "a.classes.zarr", "a.partial", "."):
        (found,) = status(job.outputs.folder / name)
        assert (found.phase, found.done, found.blocks) == ("complete", BLOCKS, BLOCKS)
        assert found.pixels == found.pixels_done == job.plan.input.size.pixels
        assert found.done_by == {HERE: BLOCKS}
    job.outputs = Outputs(job.outputs.folder, "b")
    job.end(part=Part(1, 3))
    told = fcn_batch("status", job.outputs.folder, "--json")
    assert told.exit_code == 75
    assert [(one["phase"], one["done"]) for one in json.loads(told.stdout)] == [("complete", 6), ("interrupted", 2)]
    job.outputs = Outputs(Path(job.plan.input.path).parent, "a")
    job.end(part=Part(1, 3))
    (found,) = status(Path(job.plan.input.path))
    assert (found.phase, found.done) == ("interrupted", 2), "of the raster beside which it lies"


def test_who_may_only_read_can_ask(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    job.end(part=Part(1, 2))
    died(job.outputs.staging / "claims", claim_of(4))
    (job.outputs.staging / "claims" / claim_of(5)).write_bytes(Holder("process 7 on node9", "another").written())
    proper = os.open

    def read_only(path: Any, flags: int, *rest: Any, **named: Any) -> int:
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            raise PermissionError(13, "Permission denied", str(path))
        return proper(path, flags, *rest, **named)

    monkeypatch.setattr(os, "open", read_only)
    monkeypatch.setattr(Path, "touch", lambda path: read_only(path, os.O_CREAT))
    (found,) = status(job.outputs.staging)
    assert (found.phase, found.at_work, found.lost) == ("running", ("process 7 on node9",), (4,))
    assert "block 4" in dict(found.describe())["failures"]
    monkeypatch.setattr(claims, "STALE_S", -1.0)
    assert status(job.outputs.staging)[0].phase == "interrupted"


@pytest.mark.parametrize("name", ["", "nothing.tif", "x.partial", "x.run.json"])
def test_where_no_run_is_there_is_an_error(tmp_path: Path, name: str) -> None:
    with refuses("run-missing", path=tmp_path / name):
        status(tmp_path / name)


def test_speed_is_that_since_the_run_last_stood_still() -> None:
    steady, now = [1000.0, 1002.0, 1004.0, 1006.0, 1008.0], 1008
    for finished, at, expected in (
        (steady, now, 4 * 1000 / 8),
        ([0.0, 1.0, 2.0, *steady], now, 4 * 1000 / 8),  # interrupted before
        (steady[::-1], now, 4 * 1000 / 8),  # in any order
        ([0.0, 2.0, 4.0, 6.0], 7, 3 * 1000 / 6),
        ([0.0, 2.0, 4.0, 6.0], 106, 3 * 1000 / (6 + 100 - 2)),  # it has become slow
        ([0.0, 2.0, 4.0], -3600, 2 * 1000 / 4),  # clocks that disagree
    ):
        assert speed(receipts(finished), START + timedelta(seconds=at)) == pytest.approx(expected)
    for finished in ([], [5.0], [5.0, 5.0]):
        assert speed(receipts(finished), START + timedelta(seconds=5)) is None, "not known yet"
