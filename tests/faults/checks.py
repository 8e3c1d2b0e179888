"""What is tried beside faults at single calls: each check makes its runs and tells what is wrong."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from fcn_batch.pipeline.core.errors import MismatchError
from tests.faults import order
from tests.faults.bench import Bench
from tests.faults.job import BLOCKS, Task
from tests.faults.probing import Ended, Run, traced, undisturbed
from tests.faults.states import wrong

_HALF = 20


def power_loss(bench: Bench, scene: str) -> list[str]:
    """What had reached the disk before each receipt and each report."""
    task = bench.task(scene)
    files = {str(path) for path in Path(task.folder).rglob("*")}
    ended, calls = traced(task, order.CALLS, bench.root / "calls.log")
    found = order.complaints(calls, task, files)
    bench.drop(task)
    return found or _failure(ended)


def changed_plan(bench: Bench, scene: str) -> list[str]:
    """After half of a run, the same one with one setting changed: refused, and then, restarted, as if it were alone."""
    found = []
    task = _half_done(bench, scene)
    for setting in ("full_scale", "model", "modified", "threads"):
        changed = replace(task, change=setting)
        ended = undisturbed(changed)
        if ended.outcome is None or ended.outcome.code != MismatchError.exit_code:
            found.append(f"not refused although another {setting}: {ended.outcome or ended.trouble}")
            break
    bench.drop(task)
    return found


def damaged_block(bench: Bench, scene: str) -> list[str]:
    """The disk changed a block that has its receipt."""
    return _damaged(bench, scene, lose_receipt=False)


def torn_block(bench: Bench, scene: str) -> list[str]:
    """A block has no receipt, and a loss of power has left a part of it."""
    return _damaged(bench, scene, lose_receipt=True)


def _damaged(bench: Bench, scene: str, *, lose_receipt: bool) -> list[str]:
    task = _half_done(bench, scene)
    staging = task.outputs.staging
    whole, other = (staging / task.outputs.store / "classes" / "c" / "0" / str(col) for col in (0, 1))
    whole.write_bytes(other.read_bytes())  # another block's: decodes without any complaint
    if lose_receipt:
        (staging / "receipts" / f"{0:09d}.json").unlink()
    ended = undisturbed(task)
    found = _failure(ended) or wrong(Path(task.folder), bench.expected(scene))
    bench.drop(task)
    return found


def orphan(bench: Bench, scene: str) -> list[str]:
    """A run that was stopped while another one, of another plan, discarded its work and began anew."""
    task = bench.task(scene)
    old = Run(replace(task, full_scale=200.0, stop_at=("computed", 3)))
    old.go_on()
    old.has_stopped()
    new = Run(replace(task, restart=True, stop_at=("committed", _HALF), stale_s=0.01))
    new.go_on()
    new.has_stopped()
    old.go_on()
    late = old.ended()
    new.go_on()
    found = _failure(new.ended()) or wrong(Path(task.folder), bench.expected(scene))
    if late.outcome is None or late.outcome.code != MismatchError.exit_code:
        found.append(f"the orphan did not end as such: {late}")
    bench.drop(task)
    return found


def together(bench: Bench, scene: str) -> list[str]:
    """Two runs at once: each block is done once."""
    task = bench.task(scene)
    runs = [Run(replace(task, slow_s=0.002)) for _ in range(2)]
    for run in runs:
        run.go_on()
    ended = [run.ended() for run in runs]
    found = [line for one in ended for line in _failure(one)]
    found += wrong(Path(task.folder), bench.expected(scene))
    done = [block for one in ended if one.outcome for block in one.outcome.computed]
    twice = {block for block in done if done.count(block) > 1}
    if twice or len(set(done)) != BLOCKS:
        found.append(f"computed by both: blocks {sorted(twice)}")
    bench.drop(task)
    return found


def taken_over(bench: Bench, scene: str) -> list[str]:
    """A run was killed while it had a claim: the next one does that block."""
    task = bench.task(scene)
    run = Run(replace(task, stop_at=("claimed", 3)))
    run.go_on()
    run.has_stopped()
    run.kill()
    run.ended()
    found = _failure(undisturbed(task))
    found = found or wrong(Path(task.folder), bench.expected(scene))
    bench.drop(task)
    return found


def one_publishes(bench: Bench, scene: str) -> list[str]:
    """A run that has committed its last block, and stopped, leaves the rest to the other; both end well."""
    task = bench.task(scene)
    first = Run(replace(task, stop_at=("committed", BLOCKS)))
    first.go_on()
    first.has_stopped()
    second = Run(task)
    second.go_on()
    found = _failure(second.ended())
    first.go_on()
    found += _failure(first.ended()) or wrong(Path(task.folder), bench.expected(scene))
    bench.drop(task)
    return found


def _half_done(bench: Bench, scene: str) -> Task:
    """A task whose run was killed after some blocks."""
    task = bench.task(scene)
    run = Run(replace(task, stop_at=("committed", _HALF)))
    run.go_on()
    run.has_stopped()
    run.kill()
    assert run.ended().killed
    return task


def _failure(ended: Ended) -> list[str]:
    if ended.outcome is not None and ended.outcome.code == 0:
        return []
    return [f"failed: {ended.outcome.line if ended.outcome else ended.trouble.strip()[-300:]}"]


CHECKS: dict[str, Callable[[Bench, str], list[str]]] = {
    check.__name__: check
    for check in (power_loss, changed_plan, damaged_block, torn_block, orphan, together, taken_over, one_publishes)
}
