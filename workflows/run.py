"""From a plan to published outputs, whoever computes the blocks and however often it was interrupted.

    begin      staging folder and empty stores                               one run at a time
    rounds     blocks without a receipt, until all have one                  any number of runs, block by block
               (of its own part, if the run is to do a part; it ends then, unless it finds that all are done)
    end        each block compared with its receipt -> finish -> publish     one run at a time; the others find it done

The staging folder is the truth: what is not in it is done again, and what a disk has lost is noticed.
"""

import shutil
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from enum import Enum
from functools import partial

from fcn_batch.pipeline.core.claims import only_one
from fcn_batch.pipeline.core.classes import NODATA
from fcn_batch.pipeline.core.durable import sync
from fcn_batch.pipeline.core.errors import FcnBatchError, InputError, OutputError
from fcn_batch.pipeline.core.holder import Holder
from fcn_batch.pipeline.core.journal import Receipt, block_of
from fcn_batch.pipeline.core.plan import Plan
from fcn_batch.pipeline.core.tiling import BlockGrid, Work, works
from fcn_batch.workflows.blocks.commit import Committer
from fcn_batch.workflows.blocks.mend import mended
from fcn_batch.workflows.blocks.part import share
from fcn_batch.workflows.console.logs import LOG
from fcn_batch.workflows.console.progress import RunProgress
from fcn_batch.workflows.console.signals import Stop
from fcn_batch.workflows.inputs.identity import identify
from fcn_batch.workflows.inputs.sources import source_of
from fcn_batch.workflows.outputs.finish import Brief, Course, finish
from fcn_batch.workflows.outputs.publishing import Outputs
from fcn_batch.workflows.outputs.report import summary
from fcn_batch.workflows.outputs.stitch import create_confidence, create_store

OnReceipt = Callable[[Receipt], None]
Compute = Callable[[Sequence[Work], OnReceipt], None]
"""Does blocks, but those that others are at; tells of each as it is durable, in any order."""
_LOOK_EVERY_S = 0.5


class End(Enum):
    """How a run ended."""

    COMPLETE = "the outputs are there"
    PART = "its part is done, others are not"
    STOPPED = "a signal asked for it"


def run(brief: Brief, outputs: Outputs, compute: Compute, progress: RunProgress, stop: Stop) -> End:
    """Make and publish the outputs, from the beginning or from where other runs are."""
    with _present(brief, outputs, progress) as others:
        if others is None:
            progress.note(_finished(brief, outputs))
            return End.COMPLETE
        blocks = _Blocks(brief, outputs, progress)
        try:
            while blocks.do(compute, others, stop):
                if left := blocks.left():
                    progress.note(
                        f"{brief.name}: part {brief.part} is done; {left} of {len(brief.plan.grid)} blocks are left to "
                        "other parts, the last of which makes the outputs"
                    )
                    return End.PART
                if _ended(blocks):
                    return End.COMPLETE
        except (FcnBatchError, OSError):
            with suppress(OSError), only_one(outputs.lock, _waiting(brief, progress)):  # who publishes takes all away
                if _done_by_another(brief, outputs, progress):
                    return End.COMPLETE
            raise
        return End.STOPPED


@contextmanager
def _present(brief: Brief, outputs: Outputs, progress: RunProgress) -> Iterator[int | None]:
    """Begin, and show other runs that this one is at work; how many of them there are, None if they are done."""
    journal, plan = outputs.journal, brief.plan
    with only_one(outputs.lock, _waiting(brief, progress)):
        if not brief.overwrite and outputs.is_complete(plan):
            outputs.tidy_up()
            yield None
            return
        holders = journal.claims.living()
        sealed = outputs.is_sealed(plan)
        # what is being published lies in two places: it is gone on with, not discarded
        if (brief.restart and outputs.staging.exists() and not sealed) or outputs.published():
            for holder in holders.values():
                raise OutputError(
                    "run-under-way",
                    "{path}: cannot be discarded, {holder} is at work there; wait for it or stop it",
                    path=outputs.staging,
                    holder=holder.process,
                )
            journal.discard()
            sealed = False
        begun = not sealed and journal.is_of(plan)
        if begun and ((outputs.staging / outputs.report).exists() or outputs.is_left_half_published(plan)):
            _unseal(brief, outputs, progress, [outputs.report])
        if not brief.overwrite and not sealed:
            outputs.refuse_to_clobber()
        runs = [holder for name, holder in holders.items() if name.startswith("run-")]
        if journal.has_foreign_plan(plan):
            progress.note(f"{brief.name}: plan.json in {outputs.staging} is not its run's; it is written again")
        if journal.begin(plan):
            how = f"sharing the work of {runs[0].process}" if runs else "resuming the interrupted run"
            progress.note(f"{brief.name}: {how} in {outputs.staging}")
        presence = journal.claims.take(f"run-{uuid.uuid4().hex}")
        if not sealed:
            _create_stores(brief, outputs, progress)
    try:
        yield len(runs)
    finally:
        if presence is not None:
            presence.release()


def _unseal(brief: Brief, outputs: Outputs, progress: RunProgress, damaged: Sequence[str]) -> None:
    more = f" and {len(damaged) - 1} other files are" if len(damaged) > 1 else " is"
    progress.note(f"{brief.name}: {damaged[0]}{more} not as made in {outputs.staging}; what is lost is made again")
    outputs.unseal(brief.plan)


def _waiting(brief: Brief, progress: RunProgress) -> Callable[[Holder], None]:
    return lambda holder: progress.note(f"{brief.name}: waiting for {holder.process}")


def _create_stores(brief: Brief, outputs: Outputs, progress: RunProgress) -> None:
    """The stores in the staging folder, unless they are there; both are whole, as they appear by renaming."""
    kinds = {outputs.store: create_store}
    if brief.plan.confidence:
        kinds[outputs.confidence] = create_confidence
    for name, create in kinds.items():
        if not (outputs.staging / name).exists():
            outputs.journal.forget()  # receipts without their store tell of blocks that are gone
            unfinished = outputs.staging / f"{name}.new"
            shutil.rmtree(unfinished, ignore_errors=True)  # half made by a run that was killed
            create(unfinished, brief.plan, brief.legend)
            sync([unfinished, *unfinished.rglob("*")])
            unfinished.rename(outputs.staging / name)
            sync([outputs.staging])
        elif mended(outputs.staging / name, partial(create, plan=brief.plan, legend=brief.legend)):
            progress.note(f"{brief.name}: {name} had other metadata than it was made with; they are made again")
            sync([outputs.staging / name, *(outputs.staging / name).rglob("zarr.json"), outputs.staging])


@dataclass(slots=True)
class _Blocks:
    """The blocks of a run, and what is known of them."""

    brief: Brief
    outputs: Outputs
    progress: RunProgress
    done: set[int] = field(default_factory=set)
    """Those with a receipt; only their numbers: of a million, receipts would fill the memory."""
    earlier: int = 0
    unsealed: bool = False
    """True: what was made had been damaged, and is made again."""
    _pixels: int = 0
    _classified: int = 0
    _all_done: bool = False
    """True: they have been seen done, so this run sees to the end, and to what is lost until then, of whatever part."""
    _started: float = field(default_factory=time.perf_counter)

    @property
    def course(self) -> Course:
        """How they were done."""
        return Course(time.perf_counter() - self._started, self.earlier, self._pixels, self._classified)

    @property
    def committer(self) -> Committer:
        """Of the staging folder."""
        confidence = self.outputs.confidence if self.brief.plan.confidence else None
        return Committer.of(self.outputs.journal, self.outputs.store, confidence)

    def do(self, compute: Compute, others: int, stop: Stop) -> bool:
        """Compute, or wait for others to do so, until all of its own have a receipt; False when stopped before."""
        plan, journal = self.brief.plan, self.outputs.journal
        if self._sealed:
            return True
        part = None if self._all_done else self.brief.part
        mine = range(len(plan.grid)) if part is None else share(plan.grid, plan.cut.segment, part)
        for _ in self.take_up(mine):
            pass
        self.progress.start(self._title, _pixels(plan.grid, mine), _pixels(plan.grid, self.done))
        others = others if part is None else 0  # they are at other parts
        try:
            while missing := [block for block in mine if block not in self.done]:
                if stop.requested:
                    return False
                compute(_parts(works(plan.grid, plan.cut.segment, missing), others), self._finished)
                elsewhere = [journal.receipt(b, plan.fingerprint) for b in missing if b not in self.done]
                for receipt in elsewhere:
                    if receipt is not None:
                        self._finished(receipt)
                if any(receipt is None for receipt in elsewhere):
                    if not self.outputs.staging.exists():
                        raise OutputError(
                            "staging-gone",
                            "{path}: was deleted; run the same command again",
                            path=self.outputs.staging,
                        )
                    time.sleep(_LOOK_EVERY_S)  # another run has them
        finally:
            self.progress.stop()
        return True

    @property
    def _sealed(self) -> bool:
        return self.outputs.is_sealed(self.brief.plan)

    @property
    def _title(self) -> str:
        return f"{self.outputs.stem} {self.brief.part or ''}".rstrip()

    def left(self) -> int:
        """How many blocks are not done, once this run has done its own; 0 also when another run is at the end."""
        if self._sealed or self._all_done:
            return 0
        journal, plan = self.outputs.journal, self.brief.plan
        blocks = [block for block in range(len(plan.grid)) if block not in self.done]
        left = sum(journal.receipt(block, plan.fingerprint) is None for block in blocks)
        if self._sealed or not self.outputs.staging.exists():
            return 0  # what was counted was being published
        if not left:
            self._all_done, self.earlier = True, self.earlier + len(blocks)
        return left

    def take_up(self, mine: Iterable[int]) -> Iterator[Receipt]:
        """Compare finished blocks with their receipts, and tell of those that hold; others must be done again."""
        committer, journal, first = self.committer, self.outputs.journal, not self.done
        self.done = set()
        for receipt in filter(None, (journal.receipt(block, self.brief.plan.fingerprint) for block in mine)):
            if (receipt.unreadable and not self.brief.mask) or not committer.holds(receipt):
                journal.drop(receipt.block)
            else:
                self.done.add(receipt.block)
                yield receipt
        if first:
            self.earlier = len(self.done)

    def _finished(self, receipt: Receipt) -> None:
        if receipt.block not in self.done:
            self.done.add(receipt.block)
            LOG.info(
                "%s: block %d of %d: %.1f s", self._title, receipt.block, len(self.brief.plan.grid), receipt.seconds
            )
            self._pixels += (pixels := receipt.shape[0] * receipt.shape[1])
            self._classified += pixels - receipt.pixels.get(NODATA, 0)
            self.progress.advance(pixels)


def _pixels(grid: BlockGrid, blocks: Iterable[int]) -> int:
    return sum(grid[block].height * grid[block].width for block in blocks)


def _parts(passes: list[Work], others: int) -> list[Work]:
    """What to do first when others are at work: they go from the top of each pass, so this run begins further down.

    >>> _parts([(0, 1, 2, 3)], others=0), _parts([(0, 1, 2, 3)], others=1)
    ([(0, 1, 2, 3)], [(2, 3), (0, 1)])
    """
    parts: list[Work] = []
    for work in passes:
        length = -(-len(work) // (others + 1))
        parts += [work[start : start + length] for start in reversed(range(0, len(work), length))]
    return parts


def _ended(blocks: _Blocks) -> bool:
    """Finish and publish, alone; False when a block turns out to be lost, and must be done again."""
    brief, outputs = blocks.brief, blocks.outputs
    with only_one(outputs.lock, _waiting(brief, blocks.progress)):
        if _done_by_another(brief, outputs, blocks.progress):
            return True
        while any(block_of(name) is not None for name in outputs.journal.claims.living()):
            time.sleep(_LOOK_EVERY_S)  # somebody does one twice: nothing may change from here on
        if not outputs.is_sealed(brief.plan):
            receipts = list(blocks.take_up(range(len(brief.plan.grid))))
            if len(receipts) < len(brief.plan.grid):
                return False
            _refuse_changed_input(brief.plan)
            finish(brief, outputs, receipts, blocks.course, blocks.progress)
        if damaged := outputs.damaged():
            _unseal(brief, outputs, blocks.progress, damaged)
            if blocks.unsealed:
                raise OutputError(
                    "outputs-damaged",
                    "{path}: {file} was damaged twice while it waited to be published; see what writes there, or "
                    "whether the disk fails, and run the same command again",
                    path=outputs.staging,
                    file=damaged[0],
                )
            blocks.unsealed = True
            _create_stores(brief, outputs, blocks.progress)
            return False
        report = outputs.staged_report()
        assert report is not None, "it was compared just now"
        found_out = (f"{brief.name}: {note}" for note in report["notes"] if note not in brief.notes)
        for line in (*found_out, *summary(report)):
            blocks.progress.note(line)
        outputs.publish()
    return True


def _done_by_another(brief: Brief, outputs: Outputs, progress: RunProgress) -> bool:
    done = not outputs.staging.exists() and outputs.is_complete(brief.plan)
    if done:
        progress.note(_finished(brief, outputs))
    return done


def _finished(brief: Brief, outputs: Outputs) -> str:
    return f"{brief.name}: finished by another run, {outputs.folder / outputs.report}"


def _refuse_changed_input(plan: Plan) -> None:
    """InputError when the raster was written to while it was read: the map would be of two images."""
    if identify(source_of(plan.input).info, hashed=plan.input.hashed).files != plan.input.files:
        raise InputError(
            "input-changed",
            "{path}: the raster changed during the run; run again with --restart when it is complete",
            path=plan.input.path,
        )
