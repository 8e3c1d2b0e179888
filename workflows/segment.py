"""`fcn-batch segment`: plan, run what is not done yet, stitch, publish.

prepare -> complete already? -> lock -> journal.begin (new or resumed)
        -> execute the blocks without a receipt, segment by segment -> stitch -> journal.seal -> outputs.publish
"""

import hashlib
import shutil
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

from fcn_batch.pipeline.durable import only_one
from fcn_batch.pipeline.errors import InputError, OutputError
from fcn_batch.pipeline.journal import Journal, Receipt
from fcn_batch.pipeline.plan import Free, Plan
from fcn_batch.pipeline.raster import inspect
from fcn_batch.pipeline.store import ClassStore
from fcn_batch.pipeline.tiling import works
from fcn_batch.workflows.execute import Workers, execute
from fcn_batch.workflows.job import JobTicket
from fcn_batch.workflows.outputs import Outputs, outputs_of
from fcn_batch.workflows.plan import Options, Prepared, identify, prepare
from fcn_batch.workflows.progress import RunProgress
from fcn_batch.workflows.report import make_report, summary
from fcn_batch.workflows.stitch import create_store, stitch


@dataclass(frozen=True, slots=True)
class Request:
    """What the user asked for."""

    inputs: tuple[Path, ...]
    options: Options
    folder: Path | None = None
    """None: beside each input."""
    workers: Workers = field(default_factory=Workers)
    overwrite: bool = False
    restart: bool = False


def segment(request: Request, progress: RunProgress) -> Iterator[Path]:
    """Make the class map of one input after the other, and name the outputs of each when they are complete.

    All inputs are looked at before the first one is run, so that a wrong name at the end shows at once.
    """
    places = outputs_of(list(request.inputs), request.folder)
    processes = None if request.workers.address else max(1, request.workers.count)
    plans = [prepare(path, request.options, processes=processes) for path in request.inputs]
    for prepared, outputs in zip(plans, places, strict=True):
        _segment_one(_settled(prepared, outputs, request.options), outputs, request, progress)
        yield from outputs.paths


def _segment_one(prepared: Prepared, outputs: Outputs, request: Request, progress: RunProgress) -> None:
    name = Path(prepared.info.path).name
    for note in prepared.notes:
        progress.note(f"{name}: {note}")
    if not request.overwrite and _is_complete(outputs, prepared):
        progress.note(f"{name}: complete already, made {outputs.folder / outputs.report} earlier")
        if outputs.published():
            with suppress(OutputError), only_one(outputs.lock):
                Journal(outputs.staging).discard()
        return
    outputs.make_folder(chosen=request.folder is not None)
    try:
        with only_one(outputs.lock):
            _run(prepared, outputs, request, progress)
    except OSError as error:
        raise OutputError(
            f"{error.filename or outputs.folder}: {error.strerror or error}; finished blocks are kept: "
            "make room or mend it, then run the same command again"
        ) from error


def _run(prepared: Prepared, outputs: Outputs, request: Request, progress: RunProgress) -> None:
    """Make and publish the outputs, from the beginning or from where an interrupted run stopped."""
    journal = Journal(outputs.staging)
    if (request.restart and outputs.staging.exists()) or outputs.published():
        journal.discard()
    sealed = (outputs.staging / outputs.report).exists()
    if not request.overwrite and not sealed:
        outputs.refuse_to_clobber()
    if journal.begin(prepared.plan):
        progress.note(f"{Path(prepared.info.path).name}: resuming the interrupted run in {outputs.staging}")
    if not sealed:
        _make(prepared, outputs, request.workers, progress)
    outputs.publish()


def _settled(prepared: Prepared, outputs: Outputs, options: Options) -> Prepared:
    """Keep what an earlier run of the same plan chose by its machine: it decides the last bits."""
    free: set[Free] = {"segment"}
    if options.threads is None:
        free.add("threads")
    if options.memory is None:
        free.add("lane")
        if options.tile is None:
            free.add("tile")
    for earlier in (outputs.reported_plan(), Journal(outputs.staging).earlier_plan()):
        if earlier is not None:
            prepared = replace(prepared, plan=prepared.plan.settled_by(earlier, frozenset(free)))
    return prepared


def _is_complete(outputs: Outputs, prepared: Prepared) -> bool:
    made = outputs.reported_plan()
    if made is None or made.fingerprint != prepared.plan.fingerprint:
        return False
    return all(path.exists() for path in outputs.paths)


def _make(prepared: Prepared, outputs: Outputs, workers: Workers, progress: RunProgress) -> None:
    """Everything from the first block to the sealed staging folder."""
    started = time.perf_counter()
    plan, legend = prepared.plan, prepared.model.card.legend
    journal = Journal(outputs.staging)
    store_path = outputs.staging / outputs.store
    if not store_path.exists():
        journal.forget()  # receipts without their store tell of blocks that are gone
        unfinished = outputs.staging / f"{outputs.store}.new"
        shutil.rmtree(unfinished, ignore_errors=True)  # half made by a run that was killed
        create_store(unfinished, plan, legend)
        unfinished.rename(store_path)
    store = ClassStore(store_path)
    receipts = {r.block: r for r in journal.receipts() if _is_intact(store, plan, r)}
    earlier = len(receipts)
    progress.start(outputs.stem, plan.input.size.pixels, sum(r.shape[0] * r.shape[1] for r in receipts.values()))

    def finished(receipt: Receipt) -> None:
        if receipts.setdefault(receipt.block, receipt) is receipt:
            progress.advance(receipt.shape[0] * receipt.shape[1])

    ticket = JobTicket(str(outputs.staging), outputs.store, plan.fingerprint, prepared.device)
    missing = (block for block in range(len(plan.grid)) if block not in receipts)
    try:
        execute(ticket, works(plan.grid, plan.cut.segment, missing), workers, finished)
    finally:
        progress.stop()
    _refuse_changed_input(plan)
    computed = time.perf_counter() - started
    progress.note(f"{outputs.stem}: writing the GeoTIFF")
    stitch(store, outputs.staging / outputs.cog, plan, legend)
    report = make_report(prepared, outputs, receipts.values())
    report["timing"] = {
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "blocks_s": round(computed, 3),
        "stitch_s": round(time.perf_counter() - started - computed, 3),
        "blocks_done_by_earlier_runs": earlier,
    }
    for line in summary(report):
        progress.note(line)
    journal.seal(outputs.report, report)


def _is_intact(store: ClassStore, plan: Plan, receipt: Receipt) -> bool:
    """True when a block of an earlier run is in the store as its receipt says: a disk may have lost it since."""
    if receipt.block >= len(plan.grid):
        return False
    try:
        classes = store.read(plan.grid[receipt.block])
    except OutputError:
        return False
    return hashlib.sha256(classes.tobytes()).hexdigest() == receipt.sha256


def _refuse_changed_input(plan: Plan) -> None:
    """InputError when the raster was written to while it was read: the map would be of two images."""
    if identify(inspect(plan.input.path)).files != plan.input.files:
        raise InputError(
            f"{plan.input.path}: the raster changed during the run; run again with --restart when it is complete"
        )
