"""Killed, or refused by the disk, at any call: no lie is left, and the same command makes it right (G1, G2, G3, G5).

The short form of `python -m tests.faults`, which tries every point.
"""

from collections.abc import Iterator

import pytest

from tests.faults.bench import SCENES
from tests.faults.checks import CHECKS
from tests.faults.prober import Probers, Question
from tests.faults.probing import can_trace
from tests.faults.trials import Table, error_points, kill_points, publishing, spread, try_points

pytestmark = pytest.mark.skipif(bool(can_trace()), reason=can_trace() or "can trace")


@pytest.fixture(scope="module")
def probers() -> Iterator[Probers]:
    with Probers() as some:
        yield some


def test_killed_at_any_call(probers: Probers) -> None:
    table, points = Table(), kill_points(probers, "fresh")
    assert len(points) > 370, "a run of 36 blocks"
    tried = list(dict.fromkeys([*spread(points, 40), *publishing(points)]))
    try_points(probers, table, "fresh", tried)
    assert table.complaints == []
    assert sum(row.died for row in table.rows.values()) == len(tried)
    assert sum(row.kept for row in table.rows.values()) > len(tried), "there were finished blocks to keep"


def test_killed_while_outputs_replace_others(probers: Probers) -> None:
    table = Table()
    try_points(probers, table, "overwrite", publishing(kill_points(probers, "overwrite")))
    assert table.complaints == []


def test_a_call_fails(probers: Probers) -> None:
    table, points = Table(), error_points(probers, "fresh", both=True)
    assert len(points) > 700
    of_the_geotiff = [point for point in points if (point.call, point.thread, point.fault) == ("write", 0, "EIO")][-25:]
    try_points(probers, table, "fresh", list(dict.fromkeys([*spread(points, 41), *of_the_geotiff])))
    assert table.complaints == []
    assert {fault for _, _, fault in table.rows} == {"ENOSPC", "EIO"}
    assert sum(row.told for row in table.rows.values()) > 20, "most errors end a run, with a line that says so"


@pytest.mark.parametrize("scene", SCENES)
def test_what_a_loss_of_power_could_take(probers: Probers, scene: str) -> None:
    assert list(probers.ask([Question(scene, check="power_loss")])) == [[]]


@pytest.mark.parametrize("check", [name for name in CHECKS if name != "power_loss"])
def test_others(probers: Probers, check: str) -> None:
    """Another plan, a damaged or torn block, an orphan, two runs at once, claims of the dead."""
    assert list(probers.ask([Question(scene, check=check) for scene in ("fresh", "sure")])) == [[], []]
