"""Mistakes that somebody could make in the program are caught by the checks of this folder, each of them (G3)."""

from collections.abc import Iterator

import pytest

from tests.faults.mutants import MUTANTS
from tests.faults.prober import Probers
from tests.faults.probing import can_trace
from tests.faults.suspects import EXPECTED, caught

pytestmark = pytest.mark.skipif(bool(can_trace()), reason=can_trace() or "can trace")


@pytest.fixture(scope="module")
def probers() -> Iterator[Probers]:
    with Probers() as some:
        yield some


def test_each_has_its_check() -> None:
    assert EXPECTED.keys() == MUTANTS.keys()
    assert len(MUTANTS) >= 10


@pytest.mark.parametrize("name", MUTANTS)
def test_it_is_caught(probers: Probers, name: str) -> None:
    assert caught(probers, name), f"no check sees that {name}"
