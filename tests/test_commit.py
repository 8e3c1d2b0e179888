"""A block comes to the disk before its receipt, into the stores of its own plan only, and can be told of again."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fcn_batch.pipeline.core.geometry import Window
from fcn_batch.pipeline.core.journal import Journal
from fcn_batch.pipeline.core.plan import Plan
from fcn_batch.pipeline.network.confidence import PLANES
from fcn_batch.pipeline.raster.crs import row_areas_m2
from fcn_batch.pipeline.store.classstore import ClassStore
from fcn_batch.workflows.blocks.commit import Block, Committer
from fcn_batch.workflows.outputs.stitch import create_confidence, create_store
from tests.errors import refuses
from tests.memorymaps import legend_of, plan_of
from tests.runs import scene

LEGEND = legend_of("water", "wood", "sand")
NAMES = ("a.classes.zarr", "a.confidence.zarr")


@pytest.fixture(params=[False, True], ids=["classes", "confidence"])
def committer(request: pytest.FixtureRequest, tmp_path: Path) -> Committer:
    plan = plan_of(scene(tmp_path / "a.tif", 70, 90)).model_copy(update={"confidence": request.param})
    journal = Journal(tmp_path / "a.partial")
    journal.begin(plan)
    create_store(journal.folder / NAMES[0], plan, LEGEND)
    if plan.confidence:
        create_confidence(journal.folder / NAMES[1], plan, LEGEND)
    return Committer.of(journal, NAMES[0], NAMES[1] if plan.confidence else None)


def block(plan: Plan, index: int, **other: Any) -> Block:
    """Random classes, some of them no data."""
    window, layers = plan.grid[index], 1 + PLANES if plan.confidence else 1
    values = np.random.default_rng(index).integers(0, 3, (layers, window.height, window.width), dtype=np.uint8)
    values[:, :3, :5] = 255
    return Block(index, values, plan.cut.tile, **other)


def test_what_is_committed_reads_back_and_is_told_rightly(committer: Committer) -> None:
    plan = committer.plan
    for index in range(len(plan.grid)):
        made, window = block(plan, index, seconds=0.12345, passes=7), plan.grid[index]
        receipt = committer.commit(made)
        assert np.array_equal(committer.classes.read(window), made.layers[0])
        if committer.confidence is not None:
            assert np.array_equal(committer.confidence.read(window), made.layers[1:])
        assert committer.journal.receipt(index, plan.fingerprint) == receipt
        assert committer.holds(receipt)
        assert (receipt.passes, receipt.seconds, receipt.shape) == (7, 0.123, (window.height, window.width))
        areas = row_areas_m2(plan.input.georeference, plan.input.size)
        assert areas is not None
        assert receipt.area_m2 is not None
        for class_id in (0, 1, 2, 255):
            mine = made.layers[0] == class_id
            assert receipt.pixels[class_id] == mine.sum()
            assert np.isclose(
                receipt.area_m2[class_id], sum(areas[window.row + r] * mine[r].sum() for r in range(window.height))
            )
    assert [r.block for r in committer.journal.receipts()] == list(range(len(plan.grid)))


def test_a_receipt_can_be_told_again_from_the_store(committer: Committer) -> None:
    plan, journal = committer.plan, committer.journal
    receipt = committer.commit(block(plan, 1))
    journal.drop(1)
    assert journal.receipt(1, plan.fingerprint) is None
    layers = committer.classes.read(plan.grid[1])[np.newaxis]
    if committer.confidence is not None:
        layers = np.concatenate([layers, committer.confidence.read(plan.grid[1])])
    again = committer.commit(Block(1, layers, plan.cut.tile))
    assert again.finished > receipt.finished
    assert again.model_copy(update={"finished": receipt.finished}) == receipt


def test_no_receipt_before_the_pixels(committer: Committer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor is there a committer whose plan and stores disagree on confidences."""

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(ValueError, match=NAMES[0]):
        Committer.of(committer.journal, NAMES[0], None if committer.plan.confidence else NAMES[1])
    monkeypatch.setattr("fcn_batch.pipeline.store.classstore.sync", full)
    with pytest.raises(OSError, match="No space"):
        committer.commit(block(committer.plan, 0))
    assert list(committer.journal.receipts()) == []


def test_a_block_that_the_disk_changed_is_not_held(committer: Committer) -> None:
    plan = committer.plan
    receipts = [committer.commit(block(plan, index)) for index in range(len(plan.grid))]
    other = block(plan, 0).layers.copy()
    other[-1, -1, -1] ^= 1
    if committer.confidence is None:
        committer.classes.write(plan.grid[0], other[0])
    else:
        committer.confidence.write(plan.grid[0], other[1:])
    chunk = committer.classes.path / "classes" / "c" / "1" / "0"
    chunk.write_bytes(chunk.read_bytes()[:-1])
    assert [committer.holds(receipt) for receipt in receipts] == [False, False, True]
    assert not committer.holds(receipts[0].model_copy(update={"block": 3})), "a block that the plan does not have"


@pytest.mark.parametrize("taken", ["gone", "other"])
def test_an_orphan_writes_nothing_into_the_stores_of_another_run(
    committer: Committer, tmp_path: Path, taken: str
) -> None:
    journal, plan = committer.journal, committer.plan
    journal.discard()
    if taken == "other":
        other = plan.model_copy(update={"full_scale": 200.0})
        journal.begin(other)
        create_store(journal.folder / NAMES[0], other, LEGEND)
    before = sorted(tmp_path.rglob("*"))
    with refuses("staging-taken", path=journal.folder):
        committer.commit(block(plan, 0))
    assert sorted(tmp_path.rglob("*")) == before
    if taken == "other":
        assert (ClassStore(journal.folder / NAMES[0]).read(Window(0, 0, 70, 90)) == 255).all()


def test_a_receipt_that_was_changed_is_not_held(committer: Committer) -> None:
    """Its counts become the report's: they are not believed because the pixels are right."""
    receipt = committer.commit(block(committer.plan, 0))
    assert committer.holds(receipt)
    assert receipt.area_m2 is not None
    changes: tuple[dict[str, Any], ...] = (
        {"pixels": {**receipt.pixels, 0: receipt.pixels[0] + 1}},
        {"pixels": {}},
        {"shape": receipt.shape[::-1]},
        {"area_m2": None},
        {"area_m2": {**receipt.area_m2, 0: receipt.area_m2[0] * 1.001}},
        {"sha256": "0" * 64},
        {"confidence_sha256": "0" * 64},
    )
    for changed in changes:
        assert not committer.holds(receipt.model_copy(update=changed)), changed
    assert committer.holds(
        receipt.model_copy(update={"area_m2": {i: a * (1 + 1e-14) for i, a in receipt.area_m2.items()}})
    )
