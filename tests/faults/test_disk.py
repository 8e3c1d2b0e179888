"""A disk that is full, or that one may not write to: one line, nothing torn, and the same command finishes (G5)."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.disks import CHECKS, MOUNTING, can_mount
from tests.faults.prober import Probers, Question


@pytest.fixture(scope="module")
def probers() -> Iterator[Probers]:
    with Probers(1) as one:
        yield one


@pytest.mark.parametrize("check", CHECKS)
def test_no_room_or_no_permission(probers: Probers, tmp_path: Path, check: str) -> None:
    if check == "anothers_job" and os.geteuid():
        pytest.skip("only root may be somebody else")
    if check in MOUNTING and (reason := can_mount(tmp_path / "disk")):
        pytest.skip(reason)
    assert list(probers.ask([Question("fresh", check=check)])) == [[]]
