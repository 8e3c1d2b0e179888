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
from fcn_batch.pipeline.core.plan import Cut, FileIdentity, Free, InputIdentity, Kernel, ModelIdentity, Plan
from fcn_batch.pipeline.core.source import SourceFile
from tests.errors import refuses

PLAN = Plan(
    input=InputIdentity(
        path="/data/a.tif",
        files=(FileIdentity(name="a.tif", bytes=1000, modified_ns=12345),),
        height=300,
        width=200,
        bands=3,
        dtype="uint8",
        sources=(SourceFile(path="/data/a.tif"),),
        crs_wkt="LOCAL_CS[]",
        transform=(1.0, 0.0, 0.0, 0.0, -1.0, 0.0),
    ),
    model=ModelIdentity(path="/models/m.safetensors", name="m", version="1", sha256="ab"),
    bands=(1, 2, 3),
    full_scale=255.0,
    cut=Cut(way="tiles", chunk=64, lane=128, segment=192, tile=64, overlap=32, stride=32, blend=None),
    kernel=Kernel(
        device="cpu",
        torch="2",
        gdal="3",
        fcn_batch="0",
        threads=2,
        instructions="AVX2",
        torchvision="0",
        rasterio="1",
        numpy="2",
    ),
)


def changed(*where: str, value: Any, plan: Plan = PLAN) -> Plan:
    """The plan with another value at a place such as "cut", "tile"."""
    tree = plan.model_dump()
    node = tree
    for key in where[:-1]:
        node = node[key]
    node[where[-1]] = value
    return Plan.model_validate(tree)


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


OTHERS = {
    ("input", "files"): [{"name": "a.tif", "bytes": 1000, "modified_ns": 12346}],
    ("input", "height"): 301,
    ("input", "width"): 201,
    ("input", "bands"): 4,
    ("input", "dtype"): "uint16",
    ("input", "crs_wkt"): None,
    ("input", "transform"): (1.0, 0.0, 0.0, 0.0, -1.0, 1e-9),
    ("input", "ground"): {"crs_wkt": None, "points": [(0.0, 0.0, 1.0, 2.0, 3.0)]},
    ("input", "microns"): 0.5,
    ("input", "resampling"): "average",
    ("input", "nodata"): (0.0, 0.0, 0.0),
    ("input", "nodata_rule"): "all",
    ("input", "sources"): [{"path": "/data/a.tif", "level": 1}],
    ("model", "name"): "n",
    ("model", "version"): "2",
    ("model", "sha256"): "ac",
    ("bands",): (3, 2, 1),
    ("full_scale",): 256.0,
    ("stretch",): {"by": "0,9", "ranges": ((0.0, 9.0),) * 3},
    ("area",): {"polygons": ((((0.0, 0.0), (9.0, 0.0), (9.0, 9.0), (0.0, 0.0)),),)},
    ("tissue",): {"polygons": ((((0.0, 0.0), (9.0, 0.0), (9.0, 9.0), (0.0, 0.0)),),)},
    ("cut", "way"): "stream",
    ("cut", "chunk"): 32,
    ("cut", "lane"): 192,
    ("cut", "segment"): 128,
    ("cut", "tile"): 96,
    ("cut", "overlap"): 64,
    ("cut", "stride"): 16,
    ("cut", "blend"): "linear",
    ("kernel", "device"): "cuda",
    ("kernel", "precision"): "bf16",
    ("kernel", "torch"): "3",
    ("kernel", "gdal"): "4",
    ("kernel", "fcn_batch"): "1",
    ("kernel", "threads"): 3,
    ("kernel", "instructions"): "AVX512",
    ("kernel", "cudnn"): 91002,
    ("kernel", "torchvision"): "0.26",
    ("kernel", "rasterio"): "1.5",
    ("kernel", "numpy"): "3",
    ("kernel", "switches"): ("MKL_CBWR=AVX2",),
    ("inner",): 32,
    ("confidence",): True,
}


OTHER_PLAN = changed("confidence", value=True)


@pytest.mark.parametrize("where", OTHERS, ids=".".join)
def test_each_field_counts(where: tuple[str, ...]) -> None:
    plan = PLAN  # only blended tiles have a blend
    if where == ("cut", "blend"):
        plan = PLAN.model_copy(update={"cut": PLAN.cut.model_copy(update={"way": "blend", "blend": "hann"})})
    other = changed(*where, value=OTHERS[where], plan=plan)
    assert other.fingerprint != plan.fingerprint
    differences = plan.differences(other)
    assert len(differences) == (2 if where == ("stretch",) else 1)
    assert all(difference.startswith(".".join(where)) for difference in differences)


def test_every_field_is_tried_above() -> None:
    tree = PLAN.model_dump()
    fields = {(k, *rest) for k, v in tree.items() for rest in ([(i,) for i in v] if isinstance(v, dict) else [()])}
    # one value is possible for the format
    assert fields - set(OTHERS) == {("input", "path"), ("model", "path"), ("format",)}


def test_paths_do_not_count() -> None:
    moved = changed("input", "path", value="/mnt/b.tif", plan=changed("model", "path", value="/mnt/m.safetensors"))
    assert moved.fingerprint == PLAN.fingerprint
    assert PLAN.differences(moved) == []


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("lane", 96, "lane of 96 is not a whole number of chunks of 64"),
        ("segment", 100, "segment of 100 is not a whole number of chunks of 64"),
        ("chunk", 80, "is not a whole number of chunks of 80"),
        ("tile", 65, "tile 65 is not a multiple of the stride 32"),
        ("overlap", 33, "overlap 33 is not a multiple of the stride 32"),
        ("tile", 0, "greater than or equal to 1"),
        ("overlap", -32, "greater than or equal to 0"),
        ("blend", "hann", "way tiles with blend hann"),
        ("way", "blend", "way blend with blend None"),
        ("way", "guess", "'stream', 'tiles' or 'blend'"),
    ],
)
def test_a_cut_off_the_grid_is_no_cut(field: str, value: Any, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        changed("cut", field, value=value)


def test_the_grid_of_a_plan() -> None:
    assert [len(PLAN.grid), PLAN.grid[5]] == [10, Window(128, 128, 64, 72)]
    assert PLAN.grid[9] == Window(256, 128, 44, 72)
    assert PLAN.input.size == Size(300, 200)
    assert PLAN.cut.exact
    assert changed("cut", "way", value="stream").cut.exact
    blended = {**PLAN.cut.model_dump(), "way": "blend", "blend": "hann"}
    assert not changed("cut", value=blended).cut.exact


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
        where, value = FREE[name]
        plan = changed(*where, value=value, plan=plan)
    return plan


def test_every_free_choice_is_tried_here() -> None:
    assert set(FREE) == set(get_args(Free))


@pytest.mark.parametrize("names", [c for k in range(6) for c in combinations(FREE, k)], ids=" ".join)
def test_an_earlier_run_settles_what_is_free(names: tuple[Free, ...]) -> None:
    stored = of_another_machine(*names)
    for free in (frozenset(c) for k in range(6) for c in combinations(FREE, k)):
        settled = PLAN.settled_by(stored, free)
        given = free | {"threads"} if "kernel" in free else free
        expected = stored if given.issuperset(names) else PLAN
        assert settled.fingerprint == expected.fingerprint


def test_what_an_earlier_run_settles_keeps_this_runs_paths() -> None:
    stored = changed("input", "path", value="/old/a.tif", plan=of_another_machine("segment", "threads"))
    settled = PLAN.settled_by(stored, frozenset(FREE))
    assert settled.input.path == PLAN.input.path
    assert (settled.cut, settled.kernel) == (stored.cut, stored.kernel)


@pytest.mark.parametrize("where", [w for w in OTHERS if w not in {place for place, _ in FREE.values()}], ids=".".join)
def test_an_earlier_run_that_differs_otherwise_settles_nothing(where: tuple[str, ...]) -> None:
    value: Any = OTHERS[where]
    if where == ("cut", "blend"):
        where, value = ("cut",), {**PLAN.cut.model_dump(), "way": "blend", "blend": "hann"}
    stored = changed(*where, value=value, plan=of_another_machine("threads", "segment"))
    assert PLAN.settled_by(stored, frozenset(FREE) - {"kernel"}) == PLAN
    mixed = PLAN.settled_by(stored, frozenset(FREE))
    assert mixed == (stored if where[0] == "kernel" and where[1] != "precision" else PLAN)


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
    journal = Journal(tmp_path / "a.partial")
    assert journal.begin(PLAN) is False
    assert list(journal.receipts()) == []
    for block in (3, 0, 12):
        journal.commit(receipt(block))
    again = Journal(tmp_path / "a.partial")
    assert again.begin(PLAN) is True
    assert again.plan() == PLAN
    assert list(again.receipts()) == [receipt(0), receipt(3), receipt(12)]
    assert sorted(p.name for p in (tmp_path / "a.partial").rglob("*")) == [
        "000000000.json", "000000003.json", "000000012.json", "plan.json", "receipts",
    ]  # fmt: skip


def test_a_run_taken_up_with_moved_paths_uses_the_new_ones(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.begin(PLAN)
    moved = changed("input", "path", value="/mnt/b.tif")
    assert journal.begin(moved) is True
    assert journal.plan().input.path == "/mnt/b.tif"


def test_a_block_done_twice_is_one_receipt(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.begin(PLAN)
    journal.commit(receipt(1, seconds=1.0))
    journal.commit(receipt(1, seconds=2.0))
    assert list(journal.receipts()) == [receipt(1, seconds=2.0)]


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
    other = changed("cut", "tile", value=128, plan=changed("bands", value=(3, 2, 1)))
    with pytest.raises(MismatchError) as caught:
        journal.begin(other)
    message = str(caught.value)
    assert str(tmp_path) in message
    assert "bands: [1, 2, 3], now [3, 2, 1]; cut.tile: 64, now 128" in message
    assert "--restart" in message
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


def test_an_interrupted_begin_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / ".plan.json.0123.tmp").write_text("{")
    assert Journal(tmp_path).begin(PLAN) is False


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


def test_the_seal_is_a_whole_file(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.begin(PLAN)
    journal.seal("a.run.json", {"complete": True, "blocks": 3})
    assert json.loads((tmp_path / "a.run.json").read_text()) == {"complete": True, "blocks": 3}


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
