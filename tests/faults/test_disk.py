"""A disk that is full, or that one may not write to: one line, nothing torn, and the same command finishes (G5)."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.disks import can_mount
from tests.faults.prober import Probers, Question


@pytest.fixture(scope="module")
def probers() -> Iterator[Probers]:
    with Probers(1) as one:
        yield one


def test_a_full_disk(probers: Probers, tmp_path: Path) -> None:
    if reason := can_mount(tmp_path / "disk"):
        pytest.skip(reason)
    assert list(probers.ask([Question("fresh", check="full_disk")])) == [[]]


def test_a_folder_that_may_not_be_written_to(probers: Probers) -> None:
    assert list(probers.ask([Question("fresh", check="no_permission")])) == [[]]
