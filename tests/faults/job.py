"""A real job of 36 blocks without a network: every block is decided from its index, all else is the program's own.

`perform` goes the way of `fcn-batch segment`: raster, plan, staging folder, claims, commits, stitching, publishing.
"""

import os
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fcn_batch.pipeline.core import claims
from fcn_batch.pipeline.core.errors import FcnBatchError
from fcn_batch.pipeline.core.plan import Plan
from fcn_batch.pipeline.core.tiling import Work
from fcn_batch.pipeline.store.classstore import CONFIDENCE
from fcn_batch.workflows import run
from fcn_batch.workflows.blocks.commit import Block, Committer
from fcn_batch.workflows.console.progress import Quiet
from fcn_batch.workflows.console.signals import Stop
from fcn_batch.workflows.outputs.finish import Brief
from fcn_batch.workflows.outputs.publishing import Outputs
from tests.memorymaps import legend_of, plan_of
from tests.rasters import noise, write_raster

SIDE, CHUNK = 192, 32
BLOCKS = (SIDE // CHUNK) ** 2
STEM = "a"
LEGEND = legend_of("water", "wood", "sand")
EMPTY = (7, 20)
"""Blocks without any data: the store keeps no chunk for them."""


@dataclass(frozen=True, slots=True)
class Task:
    """What a run is to make."""

    image: str
    folder: str
    confidence: bool = False
    """True: with confidences, and in shards."""
    full_scale: float = 255.0
    """Decides the classes, as it does in a real run."""
    restart: bool = False
    overwrite: bool = False
    stop_at: tuple[str, int] | None = None
    """Stop this process (SIGSTOP) when it has "claimed", "computed" or "committed" so many blocks."""
    slow_s: float = 0.0
    """So long a block takes at least."""
    stale_s: float | None = None
    """After so long without a heartbeat others are taken for dead; None: as the program has it."""
    user: int | None = None
    """Number of a user that the run is to belong to; None: who began it."""
    patience_s: float = 30.0
    """A run that takes longer is taken for hung."""
    change: str = ""
    """What is to be another in the plan: "full_scale", "model", "modified" or "threads"."""
    flags: tuple[str, ...] = ()
    """Names of circumstances: see `circumstances.py`."""

    @property
    def outputs(self) -> Outputs:
        """Where they go."""
        return Outputs(Path(self.folder), STEM)

    @property
    def plan(self) -> Plan:
        """Six lanes of six blocks."""
        plan = plan_of(Path(self.image))
        cut = plan.cut.model_copy(update={"lane": CHUNK, "segment": SIDE})
        inner = CHUNK // 2 if self.confidence else None
        changes = {"cut": cut, "confidence": self.confidence, "inner": inner, "full_scale": self.full_scale}
        return _changed(plan.model_copy(update=changes), self.change)


@dataclass(slots=True)
class Outcome:
    """How a run ended."""

    code: int
    """0, or the exit code of the error."""
    line: str = ""
    """What the user reads of the error."""
    computed: list[int] = field(default_factory=list)
    """Blocks that this run computed, in order."""


def make_image(path: Path) -> Path:
    """The input, in UTM zone 33."""
    place = {"crs": "EPSG:32633", "transform": (10.0, 0.0, 500000.0, 0.0, -10.0, 5000000.0)}
    return write_raster(path, noise(3, SIDE, SIDE), **place)


def _changed(plan: Plan, what: str) -> Plan:
    if what == "full_scale":
        return plan.model_copy(update={"full_scale": 1.0})
    if what == "model":
        return plan.model_copy(update={"model": plan.model.model_copy(update={"sha256": "cd" * 32})})
    if what == "modified":
        files = tuple(file.model_copy(update={"modified_ns": 1}) for file in plan.input.files)
        return plan.model_copy(update={"input": plan.input.model_copy(update={"files": files})})
    if what == "threads":
        return plan.model_copy(update={"kernel": plan.kernel.model_copy(update={"threads": 3})})
    assert not what, what
    return plan


def layers(plan: Plan, index: int) -> NDArray[np.uint8]:
    """A block as it must be: classes and, if wanted, confidences."""
    window = plan.grid[index]
    count = 1 + len(CONFIDENCE) if plan.confidence else 1
    if index in EMPTY:
        return np.full((count, window.height, window.width), 255, dtype=np.uint8)
    random = np.random.default_rng([index, int(plan.full_scale)])
    values = random.integers(0, 3, (count, window.height, window.width), dtype=np.uint8)
    values[:, : index % 5] = 255
    return values


def perform(task: Task) -> Outcome:
    """A run from its beginning to its end; only errors that users are not to see pass through."""
    outcome = Outcome(0)
    if task.stale_s is not None:
        claims.STALE_S = task.stale_s
    try:
        outputs, plan = task.outputs, task.plan
        outputs.make_folder(chosen=True)
        brief = Brief(plan, LEGEND, restart=task.restart, overwrite=task.overwrite)
        done = run.run(brief, outputs, _compute(task, outcome), Quiet(), Stop())
        assert done is run.End.COMPLETE, "nothing asked it to stop"
    except FcnBatchError as error:
        outcome.code, outcome.line = error.exit_code, str(error)
    except OSError as error:
        outcome.code, outcome.line = 6, f"{error.filename or task.folder}: {error.strerror}"
    assert "torch" not in sys.modules, "the way to the disk needs no network"
    return outcome


def _compute(task: Task, outcome: Outcome) -> run.Compute:
    """As `workflows.steps` does it: each block under a claim, unless another run has it or has done it."""
    counts = {"claimed": 0, "computed": 0, "committed": 0}

    def seen(what: str) -> None:
        counts[what] += 1
        if task.stop_at == (what, counts[what]):
            os.kill(os.getpid(), signal.SIGSTOP)

    def compute(works: Sequence[Work], on_receipt: run.OnReceipt) -> None:
        journal = task.outputs.journal
        plan = journal.plan()
        here = claims.Claims(journal.folder / "claims")
        committer = Committer.of(journal, task.outputs.store, task.outputs.confidence if plan.confidence else None)
        for index in (index for work in works for index in work):
            claim = here.take(f"block-{index:09d}")
            if claim is None:
                continue
            seen("claimed")
            try:
                receipt = journal.receipt(index, task.plan.fingerprint)
                if receipt is None:
                    outcome.computed.append(index)
                    block = Block(index, layers(plan, index), plan.cut.tile)
                    time.sleep(task.slow_s)
                    seen("computed")
                    receipt = committer.commit(block)
            finally:
                claim.release()
            seen("committed")
            on_receipt(receipt)

    return compute
