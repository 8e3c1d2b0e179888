"""By which check each mutant is caught."""

from tests.faults.prober import Probers, Question
from tests.faults.probing import WRITING, Point
from tests.faults.trials import publishing, spread

EXPECTED = {
    "receipt_before_data": "power_loss",
    "written_in_place": "kills",
    "sealed_before_the_last_output": "publishing",
    "published_before_the_last_block": "last block",
    "report_renamed_first": "publishing",
    "fingerprint_without_a_field": "changed_plan",
    "no_fsync": "power_loss",
    "no_fsync_of_folders": "power_loss",
    "a_chunk_is_a_receipt": "torn_block",
    "claims_exclude_nobody": "together",
    "the_dead_keep_their_claims": "taken_over",
    "lock_excludes_nobody": "together",
    "hashes_are_not_compared": "damaged_block",
    "any_plan_is_resumed": "changed_plan",
    "deleted_without_renaming": "deleting",
    "orphans_write": "orphan",
    "finished_blocks_are_done_again": "kills",
    "old_outputs_stay_told_of": "overwriting",
}
"""The check that each mutant must not pass; several others may catch it too."""
_POINTS = 24
_AT_ONCE = 4
_CHANCES = 6


def caught(probers: Probers, mutant: str) -> str:
    """Which check catches a mutant, and what it says; empty when none does.

    Runs that are at work together meet by chance: what shows only then gets more than one.
    """
    for _ in range(_CHANCES if EXPECTED[mutant] == "together" else 1):
        if found := _caught(probers, mutant):
            return found
    return ""


def _caught(probers: Probers, mutant: str) -> str:
    check = EXPECTED[mutant]
    if check in _WINDOWS:
        found = _by_points(probers, mutant, check)
    else:
        scene = "fresh"
        (lines,) = probers.ask([Question(scene, (mutant,), check=check)])
        found = lines[0] if lines else ""
    return f"{check}: {found[:90]}" if found else ""


_WINDOWS = ("kills", "publishing", "deleting", "last block", "overwriting")


def _by_points(probers: Probers, mutant: str, which: str) -> str:
    scene = "overwrite" if which == "overwriting" else "fresh"
    points = probers.points(scene, WRITING, flags=(mutant,))
    chosen = _chosen(points, which)
    for some in (chosen[k : k + _AT_ONCE] for k in range(0, len(chosen), _AT_ONCE)):
        for point, verdict in probers.tried(scene, some, flags=(mutant,)):
            if verdict.complaints:
                return f"{point.call} {point.number} of thread {point.thread}: {verdict.complaints[0]}"
    return ""


def _chosen(points: list[Point], which: str) -> list[Point]:
    """A few neighbours at once: a mutant may be wrong between two calls only."""
    if which in ("publishing", "overwriting"):
        return publishing(points)
    if which == "deleting":
        return spread([point for point in points if point.call == "unlinkat"], 4)
    if which == "last block":
        claimed, locked = [k for k, point in enumerate(points) if (point.call, point.thread) == ("link", 0)][-2:]
        return spread(points[claimed + 1 : locked], 6)  # its claim is the last one but that of who publishes
    begin = len(points) // 3
    return [*points[begin : begin + _POINTS], *spread(points[:begin], 4)]
