"""What is in the staging folder is believed only when it is whole and of the same plan."""

import json
from itertools import combinations
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import ValidationError

from fcn_batch.pipeline.core.durable import write_whole
from fcn_batch.pipeline.core.errors import MismatchError
from fcn_batch.pipeline.core.geometry import Size, Window
from fcn_batch.pipeline.core.journal import Journal, Receipt
from fcn_batch.pipeline.core.plan import Cut, Free, Plan
from tests.errors import refuses
from tests.faults.test_fingerprint import PLACES, PLAN, Place, changed, field, others


def receipt(block: int, **other: Any) -> Receipt:
    values: dict[str, Any] = {
        "plan": PLAN.fingerprint,
        "block": block,
        "sha256": "00",
        "shape": (64, 128),
        "pixels": {0: 8000, 255: 192},
        "area_m2": {0: 1.25, 255: 0.1},
        "tile": 64,
        "passes": 4,
        "forwarded": 40000,
        "seconds": 0.5,
        "by": "process 4711 on node3",
        "finished": "2026-03-01T12:00:00.5Z",
    }
    return Receipt(**{**values, **other})


OTHER_PLAN = PLAN.model_copy(update={"confidence": not PLAN.confidence})


def test_paths_do_not_count() -> None:
    moved = changed(("input", "path"), "/mnt/b.tif", changed(("model", "path"), "/mnt/m.safetensors"))
    assert moved.fingerprint == PLAN.fingerprint
    assert PLAN.differences(moved) == []


@pytest.mark.parametrize(
    "change",
    [
        *({"lane": 96}, {"segment": 100}, {"chunk": 80}, {"tile": 65}, {"overlap": 33}, {"tile": 0}, {"overlap": -32}),
        *({"blend": None}, {"way": "tiles"}, {"way": "guess"}),
    ],
    ids=str,
)
def test_a_cut_off_the_grid_is_no_cut(change: dict[str, Any]) -> None:
    """Nor is one whose blend is not that of its way."""
    assert Cut.model_validate(PLAN.cut.model_dump()) == PLAN.cut
    with pytest.raises(ValidationError) as caught:
        Cut.model_validate(PLAN.cut.model_dump() | change)
    assert next(iter(change)) in str(caught.value)


def test_the_grid_of_a_plan() -> None:
    assert [len(PLAN.grid), PLAN.grid[5]] == [10, Window(128, 128, 64, 72)]
    assert PLAN.grid[9] == Window(256, 128, 44, 72)
    assert PLAN.input.size == Size(300, 200)
    exact = {way: PLAN.cut.model_copy(update={"way": way}).exact for way in ("stream", "tiles", "blend")}
    assert exact == {"stream": True, "tiles": True, "blend": False}


# --- what an earlier run settles -----------------------------------------------------------------------------

FREE: dict[Free, tuple[tuple[str, str], Any]] = {
    "threads": (("kernel", "threads"), 7),
    "lane": (("cut", "lane"), 64),
    "segment": (("cut", "segment"), 64),
    "tile": (("cut", "tile"), 128),
    "kernel": (("kernel", "instructions"), "NVIDIA H100"),
}


def of_another_machine(*names: Free) -> Plan:
    """The plan of a run that chose other lengths and threads."""
    plan = PLAN
    for name in names:
        plan = changed(*FREE[name], plan)
    return plan


@pytest.mark.parametrize("names", [c for k in range(6) for c in combinations(FREE, k)], ids=" ".join)
def test_an_earlier_run_settles_what_is_free(names: tuple[Free, ...]) -> None:
    assert set(FREE) == set(get_args(Free))
    stored = of_another_machine(*names)
    for free in (frozenset(c) for k in range(6) for c in combinations(FREE, k)):
        settled = PLAN.settled_by(stored, free)
        given = free | {"threads"} if "kernel" in free else free
        expected = stored if given.issuperset(names) else PLAN
        assert settled.fingerprint == expected.fingerprint


def test_what_an_earlier_run_settles_keeps_this_runs_paths() -> None:
    stored = changed(("input", "path"), "/old/a.tif", of_another_machine("segment", "threads"))
    settled = PLAN.settled_by(stored, frozenset(FREE))
    assert settled.input.path == PLAN.input.path
    assert (settled.cut, settled.kernel) == (stored.cut, stored.kernel)


@pytest.mark.parametrize(
    "place",
    [one for one in PLACES if one not in {there for there, _ in FREE.values()}],
    ids=lambda p: ".".join(map(str, p)),
)
def test_an_earlier_run_that_differs_otherwise_settles_nothing(place: Place) -> None:
    for value in others(*field(place)):
        stored = changed(place, value, of_another_machine("threads", "segment"))
        assert PLAN.settled_by(stored, frozenset(FREE) - {"kernel"}) == PLAN
        mixed = PLAN.settled_by(stored, frozenset(FREE))
        assert mixed == (stored if place[0] == "kernel" and place[1] != "precision" else PLAN)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"instructions": "AVX512", "threads": 3}, True),
        ({"torch": "3", "device": "cuda"}, True),
        ({"threads": 3}, False),  # --threads was given
        ({"torch": "3", "precision": "bf16"}, False),
    ],
)
def test_what_another_machine_began_can_be_mixed(tmp_path: Path, changes: dict[str, Any], named: bool) -> None:
    journal = Journal(tmp_path)
    journal.begin(PLAN)
    here = PLAN.model_copy(update={"kernel": PLAN.kernel.model_copy(update=changes)})
    with pytest.raises(MismatchError) as refused:
        journal.begin(here)
    assert refused.value.code == "run-differs"
    assert ("--allow-mixed" in refused.value.fields["mixed"]) is named
    differences = refused.value.fields["differences"]
    assert all(f"kernel.{name}: {getattr(PLAN.kernel, name)}, now {changes[name]}" in differences for name in changes)
    with refuses("run-differs", mixed=""):
        journal.begin(here.model_copy(update={"full_scale": 1.0}))


def test_a_new_run_and_the_same_run_again(tmp_path: Path) -> None:
    """A block done twice is one receipt; of moved paths the new ones are used."""
    journal = Journal(tmp_path / "a.partial")
    (tmp_path / "a.partial").mkdir()
    (tmp_path / "a.partial" / ".plan.json.0123.tmp").write_text("{")  # an interrupted begin
    assert journal.begin(PLAN) is False
    assert list(journal.receipts()) == []
    for block, seconds in ((3, 1.0), (0, 1.0), (12, 1.0), (3, 2.0)):
        journal.commit(receipt(block, seconds=seconds))
    again = Journal(tmp_path / "a.partial")
    assert again.begin(PLAN) is True
    assert again.plan() == PLAN
    assert list(again.receipts()) == [receipt(0, seconds=1.0), receipt(3, seconds=2.0), receipt(12, seconds=1.0)]
    names = sorted(p.name for p in (tmp_path / "a.partial").rglob("[!.]*"))
    assert names == ["000000000.json", "000000003.json", "000000012.json", "plan.json", "receipts"]
    assert again.begin(changed(("input", "path"), "/mnt/b.tif")) is True
    assert again.plan().input.path == "/mnt/b.tif"
    again.seal("a.run.json", {"complete": True, "blocks": 3})
    assert json.loads((tmp_path / "a.partial" / "a.run.json").read_text()) == {"complete": True, "blocks": 3}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("000000001.json", ""),
        ("000000001.json", receipt(1).model_dump_json()[:-20]),
        ("000000001.json", "[]"),
        ("000000001.json", "\0" * 300),
        ("000000001.json", receipt(2).model_dump_json()),  # another block's
        ("000000001.json", receipt(1, plan="ab").model_dump_json()),  # of a worker of another run
        ("1.json", receipt(1).model_dump_json()),
        ("000000001.json", json.dumps({**receipt(1).model_dump(mode="json"), "later": 1})),
        (".000000001.json.0123.tmp", receipt(1).model_dump_json()),
    ],
    ids=["empty", "torn", "list", "zeros", "other block", "other plan", "other name", "other format", "temporary"],
)
def test_what_is_no_receipt_is_not_there(tmp_path: Path, name: str, text: str) -> None:
    journal = Journal(tmp_path)
    journal.begin(PLAN)
    journal.commit(receipt(0))
    (tmp_path / "receipts" / name).write_text(text)
    assert list(journal.receipts()) == [receipt(0)]


def test_another_plan_is_refused_with_all_differences(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.begin(PLAN)
    journal.commit(receipt(0))
    with pytest.raises(MismatchError) as caught:
        journal.begin(changed(("cut", "tile"), 128, changed(("bands",), (3, 2, 1))))
    told = (str(tmp_path), "bands: [1, 2, 3], now [3, 2, 1]; cut.tile: 64, now 128", "--restart")
    assert all(text in str(caught.value) for text in told)
    assert journal.plan() == PLAN
    assert list(journal.receipts()) == [receipt(0)]


@pytest.mark.parametrize("text", ["", "{}", "not json", '{"format": 2}'])
def test_an_unreadable_plan_is_refused(tmp_path: Path, text: str) -> None:
    journal = Journal(tmp_path)
    journal.begin(PLAN)
    (tmp_path / "plan.json").write_text(text)
    with refuses("plan-unreadable", path=tmp_path / "plan.json"):
        journal.begin(PLAN)


@pytest.mark.parametrize("content", [None, b"", b"{", b"[1]", OTHER_PLAN.model_dump_json().encode()])
def test_receipts_say_whose_folder_it_is_where_the_plan_is_lost(tmp_path: Path, content: bytes | None) -> None:
    journal = Journal(tmp_path)
    journal.begin(PLAN)
    journal.commit(receipt(0))
    (tmp_path / "plan.json").unlink()
    if content is not None:
        (tmp_path / "plan.json").write_bytes(content)
    if content != OTHER_PLAN.model_dump_json().encode():
        with refuses("staging-unknown" if content is None else "plan-unreadable"):
            journal.begin(OTHER_PLAN)
    assert journal.has_foreign_plan(PLAN)
    assert journal.begin(PLAN) is True
    assert (journal.plan(), [one.block for one in journal.receipts()]) == (PLAN, [0])
    with refuses("run-differs"):
        journal.begin(OTHER_PLAN)


def test_a_folder_is_discarded_at_once_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "a.partial"
    journal = Journal(folder)
    journal.begin(PLAN)
    journal.commit(receipt(0))

    def killed(*_args: Any, **_options: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("fcn_batch.pipeline.core.journal.shutil.rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            journal.discard()
    assert not folder.exists()
    assert journal.begin(PLAN) is False
    assert list(tmp_path.iterdir()) == [folder]
    journal.discard()
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.json"
    write_whole(path, "old")

    def full(_paths: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("fcn_batch.pipeline.core.durable.sync", full)
    with pytest.raises(OSError, match="No space left"):
        write_whole(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
