"""Parts of a run: together they do every block once, in any order, and the last one makes the outputs."""

import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fcn_batch.pipeline.core.geometry import Size
from fcn_batch.pipeline.core.tiling import BlockGrid, works
from fcn_batch.workflows.blocks.part import Part, share
from fcn_batch.workflows.run import End
from tests.errors import refuses
from tests.test_run import BLOCKS, Job


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return Job(tmp_path)


def test_a_part_is_written_as_two_numbers() -> None:
    assert [Part.parse(text) for text in ("1/1", "2/8", "08/08")] == [Part(1, 1), Part(2, 8), Part(8, 8)]
    for text in ("", "1", "0/3", "4/3", "1/0", "-1/3", "1/3/5", "a/b", "1 / 3", "१/३", f"1/{'9' * 4301}"):
        with refuses("part-invalid", part=text):
            Part.parse(text)


@given(
    rows=st.integers(1, 200), cols=st.integers(1, 200), side=st.integers(1, 40), per=st.integers(1, 9),
    count=st.integers(1, 60),
)  # fmt: skip
def test_parts_share_all_blocks_evenly(rows: int, cols: int, side: int, per: int, count: int) -> None:
    grid = BlockGrid(Size(rows, cols), side, side)
    shares = [share(grid, per * side, Part(index, count)) for index in range(1, count + 1)]
    assert sorted(block for blocks in shares for block in blocks) == list(range(len(grid)))
    lengths = [len(blocks) for blocks in shares]
    assert max(lengths) - min(lengths) <= 1
    # a part adds at most one pass to those that a single run makes
    passes = sum(len(works(grid, per * side, blocks)) for blocks in shares)
    assert passes <= len(works(grid, per * side, range(len(grid)))) + count - 1


@pytest.mark.parametrize("count", [1, 2, 3, BLOCKS, BLOCKS + 3])
def test_parts_in_any_order_make_what_one_run_makes(job: Job, count: int) -> None:
    parts = [Part(index, count) for index in range(1, count + 1)]
    random.Random(count).shuffle(parts)  # noqa: S311 - no secret
    shares = [share(job.plan.grid, job.plan.cut.segment, part) for part in parts]
    for part, mine in zip(parts, shares, strict=True):
        done = set(job.computed)
        end = job.end(part=part)
        assert set(job.computed) - done == mine
        assert end is (End.COMPLETE if len(job.computed) == BLOCKS else End.PART)
        assert (job.outputs.folder / job.outputs.report).exists() == (end is End.COMPLETE)
    assert job.is_done_once()
    last = [mine for mine in shares if mine][-1]
    assert job.report["timing"]["blocks_done_by_earlier_runs"] == BLOCKS - len(last)


def test_a_part_that_is_over_says_what_is_left(job: Job) -> None:
    assert job.end(part=Part(2, 3)) is End.PART
    assert job.progress.notes[-1] == (
        "a.tif: part 2/3 is done; 4 of 6 blocks are left to other parts, the last of which makes the outputs"
    )
    assert job.end(part=Part(2, 3)) is End.PART, "the same job, started again"
    assert len(job.computed) == 2


def test_parts_at_the_same_time(job: Job) -> None:
    threads = [job.begin(part=Part(index, 3)) for index in (1, 2, 3)]
    ends = [thread.result() for thread in threads]
    assert End.COMPLETE in ends
    assert set(ends) <= {End.PART, End.COMPLETE}
    assert job.is_done_once()


def test_a_part_that_was_stopped_is_done_by_a_run_without_parts(job: Job) -> None:
    assert job.end(part=Part(1, 2)) is End.PART
    assert job.end() is End.COMPLETE
    assert job.is_done_once()
    assert job.end(part=Part(1, 2)) is End.COMPLETE, "a part of what is complete does nothing"
    assert job.is_done_once()


def test_the_last_part_does_again_what_a_disk_has_lost_of_another_one(job: Job) -> None:
    assert job.end(part=Part(1, 2)) is End.PART
    (lost,) = (job.outputs.staging / job.outputs.store).rglob("c/0/0")
    lost.write_bytes(b"")
    assert job.end(part=Part(2, 2)) is End.COMPLETE
    assert job.computed.count(0) == 2
    assert job.is_right()
