"""Runs of one job, by threads and a compute of our own: what they share, leave to others, notice, refuse (G4, G9)."""

import errno
import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fcn_batch.pipeline.core.errors import FcnBatchError, MismatchError, OutputError, StoppedError
from fcn_batch.pipeline.core.geometry import Window
from fcn_batch.pipeline.core.holder import Holder
from fcn_batch.pipeline.core.plan import Plan
from fcn_batch.pipeline.core.tiling import Work
from fcn_batch.workflows import run as module
from fcn_batch.workflows.blocks.commit import Block, Committer
from fcn_batch.workflows.console.progress import Quiet
from fcn_batch.workflows.console.signals import Stop
from fcn_batch.workflows.outputs.finish import Brief
from fcn_batch.workflows.outputs.publishing import Outputs
from fcn_batch.workflows.run import End, OnReceipt, run
from tests.errors import refuses
from tests.memorymaps import legend_of, plan_of
from tests.patience import PATIENCE_S
from tests.runs import class_map, output_bytes, scene

LEGEND = legend_of("water", "wood", "sand")
BLOCKS = 6


Before = Callable[[int], None]


def _nothing(_: int) -> None:
    pass


class Heard(Quiet):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


class Job:
    """A task of six blocks in one lane, and what the runs of it did."""

    def __init__(self, folder: Path) -> None:
        self.plan: Plan = plan_of(scene(folder / "a.tif", 32 * BLOCKS - 10, 90))
        self.brief = Brief(self.plan, LEGEND)
        self.outputs = Outputs(folder / "out", "a")
        self.outputs.folder.mkdir()
        self.computed: list[int] = []
        self.progress = Heard()

    def compute(self, before: Before = _nothing) -> module.Compute:
        """Blocks under their claims; `before` is told of each that is about to be committed."""

        def work(works: Sequence[Work], on_receipt: OnReceipt) -> None:
            journal = self.outputs.journal
            committer = Committer.of(journal, self.outputs.store, None)
            for index in (index for work in works for index in work):
                claim = journal.claims.take(f"block-{index:09d}")
                if claim is None:
                    continue
                try:
                    receipt = journal.receipt(index, self.plan.fingerprint)
                    if receipt is None:
                        before(index)
                        receipt = committer.commit(Block(index, self.layers(index), 32))
                        self.computed.append(index)
                finally:
                    claim.release()
                on_receipt(receipt)

        return work

    def layers(self, index: int) -> Any:
        window = self.plan.grid[index]
        return np.full((1, window.height, window.width), index % 3, dtype=np.uint8)

    def run(self, before: Before = _nothing, stop: Stop | None = None, **brief: Any) -> bool:
        """A run in this thread; True when it ended with outputs."""
        return self.end(before, stop, **brief) is End.COMPLETE

    def end(self, before: Before = _nothing, stop: Stop | None = None, **brief: Any) -> End:
        """How a run in this thread ended."""
        changed = replace(self.brief, **brief)
        return run(changed, self.outputs, self.compute(before), self.progress, stop or Stop())

    def begin(self, before: Before = _nothing, **brief: Any) -> "Thread":
        """A run in a thread of its own."""
        thread = Thread(lambda: self.end(before, **brief))
        thread.start()
        return thread

    def waiting_at(self, block: int) -> tuple["Thread", threading.Event]:
        """A run in a thread that is at work on this block until the event is set."""
        is_in, go_on = threading.Event(), threading.Event()

        def slowly(index: int) -> None:
            if index == block:
                is_in.set()
                assert go_on.wait(PATIENCE_S)

        thread = self.begin(slowly)
        assert is_in.wait(PATIENCE_S)
        return thread, go_on

    @property
    def report(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.outputs.folder / self.outputs.report).read_bytes())
        return found

    def is_right(self) -> bool:
        """The map is as it must be, and nothing else lies there."""
        names = {*self.outputs.names(confidence=False, pyramid=False), self.outputs.report}
        assert {path.name for path in self.outputs.folder.iterdir()} == names
        wanted = np.concatenate([self.layers(index)[0] for index in range(BLOCKS)])
        return np.array_equal(class_map(self.outputs.folder, "a"), wanted)

    def is_done_once(self) -> bool:
        """It is right, and each block was computed once."""
        assert sorted(self.computed) == list(range(BLOCKS))
        return self.is_right()


class Thread(threading.Thread):
    """Keeps what came of it."""

    def __init__(self, work: Callable[[], End]) -> None:
        super().__init__(daemon=True)
        self._work = work
        self.came: End | BaseException | None = None

    def run(self) -> None:
        try:
            self.came = self._work()
        except (FcnBatchError, OSError, AssertionError) as error:
            self.came = error

    def result(self) -> End | BaseException | None:
        self.join(PATIENCE_S)
        assert not self.is_alive()
        return self.came


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return Job(tmp_path)


def fails_at(block: int) -> Callable[[int], None]:
    def fail(index: int) -> None:
        if index == block:
            raise OutputError("planted", "planted")

    return fail


def half_done(job: Job, **brief: Any) -> None:
    """An interrupted run has left its first three blocks."""
    with refuses("planted"):
        job.run(fails_at(3), **brief)
    assert job.computed == [0, 1, 2]


# --- alone ---------------------------------------------------------------------------------------------------


def test_a_run_and_the_same_run_again_and_anew(job: Job) -> None:
    assert job.run()
    assert job.computed == list(range(BLOCKS))
    assert job.is_right()
    made = output_bytes(job.outputs.folder, "a")
    assert job.run()
    assert job.progress.notes[-1] == f"a.tif: finished by another run, {job.outputs.folder / 'a.run.json'}"
    assert output_bytes(job.outputs.folder, "a") == made
    assert job.is_done_once()
    job.computed.clear()
    half_done(job, overwrite=True)
    assert job.run(overwrite=True)
    assert job.is_done_once(), "an interrupted run that makes a map anew is taken up too"


def test_an_interrupted_run_is_taken_up(job: Job) -> None:
    half_done(job)
    assert job.run()
    assert job.is_done_once()
    timing = job.report["timing"]
    assert timing["blocks_done_by_earlier_runs"] == 3
    assert timing["blocks_done_by"] == {Holder.here().process: BLOCKS}
    assert any("resuming the interrupted run" in note for note in job.progress.notes)


def test_a_run_that_is_stopped_publishes_nothing(job: Job) -> None:
    stop = Stop()

    def compute(works: Sequence[Work], on_receipt: OnReceipt) -> None:
        job.compute()([works[0][:2]], on_receipt)
        stop.request(signal.SIGTERM)

    assert run(job.brief, job.outputs, compute, job.progress, stop) is End.STOPPED
    assert [path.name for path in job.outputs.folder.iterdir()] == ["a.partial"]

    def drop(_: int) -> None:
        raise StoppedError("planted", "planted")

    with pytest.raises(StoppedError):
        job.run(drop)
    assert job.run()
    assert job.is_done_once()


def test_a_run_that_was_killed_while_it_published_is_not_discarded(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    proper = Outputs._move

    def moved_no_further(self: Outputs, name: str) -> None:
        proper(self, name)
        raise OSError(errno.EIO, "planted")

    monkeypatch.setattr(Outputs, "_move", moved_no_further)
    with pytest.raises(OSError, match="planted"):
        job.run(restart=True)
    monkeypatch.setattr(Outputs, "_move", proper)
    assert job.run(restart=True), "the same command again"
    assert job.is_done_once()


@pytest.mark.parametrize("what", ["changed", "gone", "torn"])
def test_a_block_that_the_disk_lost_meanwhile_is_done_again(job: Job, what: str) -> None:
    lost: list[int] = []

    def lose(index: int) -> None:
        if index == BLOCKS - 1 and not lost:
            lost.append(2)
            chunks = job.outputs.staging / job.outputs.store / "classes" / "c" / "2"
            if what == "changed":
                shutil.copy(chunks.with_name("3") / "0", chunks / "0")
            elif what == "gone":
                shutil.rmtree(chunks)
            else:
                (chunks / "0").write_bytes((chunks / "0").read_bytes()[:-3])

    assert job.run(lose)
    assert lost
    assert job.computed == [*range(BLOCKS), 2]
    assert job.is_right()


def test_receipts_of_a_store_that_is_gone_are_forgotten(job: Job) -> None:
    half_done(job)
    shutil.rmtree(job.outputs.staging / job.outputs.store)
    assert job.run()
    assert job.computed == [0, 1, 2, *range(BLOCKS)]
    assert job.is_right()


def test_a_raster_that_changes_under_way_makes_no_map(job: Job) -> None:
    def touch(index: int) -> None:
        if index == BLOCKS - 1:
            os.utime(job.plan.input.path, ns=(1, 1))

    with refuses("input-changed", path=job.plan.input.path):
        job.run(touch)
    assert [path.name for path in job.outputs.folder.iterdir()] == ["a.partial"]


def test_a_hole_of_an_earlier_run_is_filled_unless_holes_are_wanted(job: Job) -> None:
    holes = (Window(40, 3, 5, 6),)

    def compute(_: Sequence[Work], on_receipt: OnReceipt) -> None:
        committer = Committer.of(job.outputs.journal, job.outputs.store, None)
        on_receipt(committer.commit(Block(1, job.layers(0), 32, unreadable=holes)))
        raise OutputError("planted", "planted")

    def begun(**brief: Any) -> None:
        with refuses("planted"):
            run(replace(job.brief, mask=True, **brief), job.outputs, compute, job.progress, Stop())

    begun()
    assert job.run(mask=True)
    assert job.computed == [0, 2, 3, 4, 5]
    assert job.report["unreadable"] == [{"row": 40, "col": 3, "height": 5, "width": 6}]
    begun(overwrite=True)
    job.computed.clear()
    assert job.run(overwrite=True)
    assert job.is_done_once()
    assert job.report["unreadable"] == []


# --- several -------------------------------------------------------------------------------------------------


def test_two_runs_share_the_blocks_and_both_end_well(job: Job) -> None:
    first, go_on = job.waiting_at(1)

    def last(index: int) -> None:
        if len(job.computed) == BLOCKS - 2:  # all but this one, and that which the first is at
            go_on.set()
        assert index != 1

    second = job.begin(last)
    assert (first.result(), second.result()) == (End.COMPLETE, End.COMPLETE)
    assert job.is_done_once()
    assert any("sharing the work of process" in note for note in job.progress.notes)


def test_who_comes_while_another_one_publishes_waits_and_finds_it_done(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    publishing, go_on = threading.Event(), threading.Event()
    proper = Outputs.publish

    def publish(self: Outputs) -> None:
        publishing.set()
        assert go_on.wait(PATIENCE_S)
        proper(self)

    monkeypatch.setattr(Outputs, "publish", publish)
    first = job.begin()
    assert publishing.wait(PATIENCE_S)
    second = job.begin()
    while not any("waiting for" in note for note in job.progress.notes):
        time.sleep(0.01)
    go_on.set()
    assert (first.result(), second.result()) == (End.COMPLETE, End.COMPLETE)
    assert job.is_done_once()


@pytest.mark.parametrize("moved", ["the store", "everything"])
def test_who_wakes_up_while_another_one_publishes_ends_well(
    job: Job, monkeypatch: pytest.MonkeyPatch, moved: str
) -> None:
    """It slept so long that it was taken for dead, and its block was done: the staging folder goes away under it."""
    asleep, awake, publishing, go_on = (threading.Event() for _ in range(4))
    proper = Outputs._move

    def move(self: Outputs, name: str) -> None:
        proper(self, name)
        if name == (self.store if moved == "the store" else self.report):
            publishing.set()
            assert go_on.wait(PATIENCE_S)

    def sleep(index: int) -> None:
        if index == 2:
            claim = job.outputs.staging / "claims" / f"block-{index:09d}"
            claim.unlink()  # as one who takes it for dead does
            asleep.set()
            assert awake.wait(PATIENCE_S)
            raise OutputError("planted", "what it works on is gone")

    monkeypatch.setattr(Outputs, "_move", move)
    sleeper = job.begin(sleep)
    assert asleep.wait(PATIENCE_S)
    other = job.begin()
    assert publishing.wait(PATIENCE_S)
    awake.set()
    time.sleep(0.3)
    assert sleeper.is_alive(), "whether it has failed is not known before the other one is done"
    go_on.set()
    assert (sleeper.result(), other.result()) == (End.COMPLETE, End.COMPLETE)
    assert job.is_right()


def test_an_error_of_ones_own_stays_one_while_others_go_on(job: Job) -> None:
    first, go_on = job.waiting_at(0)
    came = job.begin(fails_at(4)).result()
    assert isinstance(came, OutputError)
    assert str(came) == "planted"
    go_on.set()
    assert first.result() is End.COMPLETE
    assert job.is_right()


def test_a_job_taken_away_under_a_run_ends_it_with_a_line(job: Job) -> None:
    def take_away(index: int) -> None:
        if index == 3:
            shutil.rmtree(job.outputs.staging)

    with pytest.raises((OutputError, MismatchError)):
        job.run(take_away)
    assert not job.outputs.staging.exists(), "nothing of it comes back"
    assert job.run()
    assert job.is_right()


def test_nobody_discards_what_another_one_is_at_work_on(job: Job) -> None:
    first, go_on = job.waiting_at(3)
    with refuses("run-under-way", path=job.outputs.staging, holder=Holder.here().process):
        job.run(restart=True)
    with refuses("run-differs", differences="full_scale: 255.0, now 200.0"):
        job.run(plan=job.plan.model_copy(update={"full_scale": 200.0}))
    go_on.set()
    assert first.result() is End.COMPLETE
    assert job.is_done_once()
