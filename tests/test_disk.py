"""The room that a run takes is told before it begins, and a disk that cannot hold it is refused."""

import os
import threading
from pathlib import Path

import numpy as np
import pytest

from fcn_batch.pipeline.core.plan import Plan
from fcn_batch.pipeline.network.confidence import PLANES
from fcn_batch.workflows.blocks.commit import Block, Committer
from fcn_batch.workflows.console.progress import Quiet
from fcn_batch.workflows.outputs import disk
from fcn_batch.workflows.outputs.disk import check_disk, disk_needed
from fcn_batch.workflows.outputs.finish import Brief, Course, finish
from fcn_batch.workflows.outputs.publishing import Outputs
from fcn_batch.workflows.outputs.stitch import create_confidence, create_store
from tests.errors import refuses
from tests.memorymaps import legend_of, plan_of
from tests.models import save_tiny_model
from tests.rasters import write_raster
from tests.runs import fcn_batch, scene

SIDE, CHUNK = 1024, 256
MB = 10**6


def plan_with(folder: Path, *, confidence: bool = False) -> Plan:
    """Blocks of one chunk."""
    plan = plan_of(write_raster(folder / "a.tif", np.zeros((3, SIDE, SIDE), np.uint8), photometric="RGB"))
    cut = plan.cut.model_copy(update={"chunk": CHUNK, "lane": CHUNK, "segment": CHUNK})
    return plan.model_copy(update={"cut": cut, "confidence": confidence})


def size_of(folder: str) -> int:
    """Bytes that the disk gives to what is in it; what goes away meanwhile counts or not."""
    total = 0
    for here, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(Path(here) / name).st_blocks * 512
            except FileNotFoundError:
                continue
    return total


@pytest.mark.parametrize("confidence", [False, True])
@pytest.mark.parametrize("pyramid", [False, True])
def test_a_map_of_noise_takes_no_more_than_was_said(tmp_path: Path, confidence: bool, pyramid: bool) -> None:
    plan, legend = plan_with(tmp_path, confidence=confidence), legend_of(*(f"class {k}" for k in range(255)))
    outputs = Outputs(tmp_path / "out", "a")
    outputs.folder.mkdir()
    outputs.journal.begin(plan)
    create_store(outputs.staging / outputs.store, plan, legend)
    if confidence:
        create_confidence(outputs.staging / outputs.confidence, plan, legend)
    committer = Committer.of(outputs.journal, outputs.store, outputs.confidence if confidence else None)
    random, layers = np.random.default_rng(0), 1 + PLANES * confidence
    sizes, done = [0], threading.Event()

    def watch() -> None:
        while not done.is_set():
            sizes.append(size_of(str(outputs.folder)))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        receipts = []
        for index in range(len(plan.grid)):
            shape = (layers, plan.grid[index].height, plan.grid[index].width)
            block = Block(index, random.integers(0, 255, shape, dtype=np.uint8), CHUNK)
            receipts.append(committer.commit(block))
        finish(Brief(plan, legend, pyramid=pyramid), outputs, receipts, Course(1, 0), Quiet())
    finally:
        done.set()
        watcher.join()
    needed = disk_needed(plan, pyramid=pyramid)
    assert max(sizes) <= needed
    assert max(sizes) > layers * SIDE**2, "noise cannot be compressed, so at least the stores were seen"
    assert needed < 3 * max(sizes)


@pytest.mark.parametrize(("share", "said"), [(1.01, "fits"), (0.99, "noted"), (0.011, "noted"), (0.009, "refused")])
def test_little_room_is_noted_and_next_to_none_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, share: float, said: str
) -> None:
    plan = plan_with(tmp_path)
    monkeypatch.setattr(disk, "free_room", lambda _: int(share * disk_needed(plan, pyramid=True)))
    if said == "refused":
        with refuses("disk-full", path=tmp_path):
            check_disk(tmp_path, plan, pyramid=True)
    else:
        assert (check_disk(tmp_path, plan, pyramid=True) is None) == (said == "fits")


def test_what_an_interrupted_run_has_done_needs_no_more_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = plan_with(tmp_path)
    staging = tmp_path / "a.partial"
    staging.mkdir()
    (staging / "done").write_bytes(bytes(disk_needed(plan) - 100_000))
    monkeypatch.setattr(disk, "free_room", lambda _: 100_000)
    assert check_disk(tmp_path, plan, staging=staging) is None
    monkeypatch.setattr(disk, "free_room", lambda _: 10_000)
    assert check_disk(tmp_path, plan, staging=staging) is not None
    with refuses("disk-full"):
        check_disk(tmp_path, plan)


def test_the_plan_tells_of_the_room(tmp_path: Path) -> None:
    path, model = scene(tmp_path / "a.tif", 50, 60), save_tiny_model(tmp_path / "tiny.safetensors", fc_kernel=1)
    (line,) = [one for one in fcn_batch("plan", path, "-m", model).stdout.splitlines() if one.startswith("disk ")]
    assert "1.1 MB" in line
    assert str(tmp_path) in line
