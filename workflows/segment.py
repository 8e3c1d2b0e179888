"""`fcn-batch segment`: plan, run what is not done yet, stitch, publish.

prepare -> complete already? -> lock -> journal.begin (new or resumed)
        -> execute the blocks without a receipt, segment by segment -> stitch -> journal.seal -> outputs.publish
"""

import hashlib
import json
import shutil
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fcn_batch.pipeline.durable import only_one, write_whole
from fcn_batch.pipeline.errors import InputError, OutputError
from fcn_batch.pipeline.journal import Journal, Receipt
from fcn_batch.pipeline.levels import group_attributes
from fcn_batch.pipeline.plan import Free, Plan
from fcn_batch.pipeline.raster import inspect
from fcn_batch.pipeline.store import ClassStore, ConfidenceStore
from fcn_batch.pipeline.tiling import works
from fcn_batch.workflows.checksums import checksums
from fcn_batch.workflows.execute import Workers, execute
from fcn_batch.workflows.job import JobTicket
from fcn_batch.workflows.outputs import Outputs, outputs_of
from fcn_batch.workflows.plan import Options, Prepared, identify, prepare
from fcn_batch.workflows.progress import RunProgress
from fcn_batch.workflows.pyramid import write_pyramid
from fcn_batch.workflows.report import make_report, summary
from fcn_batch.workflows.stac import make_item
from fcn_batch.workflows.stitch import create_confidence, create_store, stitch


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
    pyramid: bool = False
    """True: also make the map's pyramid."""


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
        if request.pyramid:
            _add_pyramid(prepared, outputs, progress)
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
        _make(prepared, outputs, request, progress)
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
    """True when this very run's outputs are all here; a pyramid can be added at any time."""
    made = outputs.reported_plan()
    if made is None or made.fingerprint != prepared.plan.fingerprint:
        return False
    names = outputs.names(confidence=made.confidence, pyramid=False)
    return all((outputs.folder / name).exists() for name in names)


@dataclass(frozen=True, slots=True)
class _Stores:
    """What the blocks are written to."""

    classes: ClassStore
    confidence: ConfidenceStore | None

    def hold(self, plan: Plan, receipt: Receipt) -> bool:
        """True when a block of an earlier run is in the stores as its receipt says: a disk may have lost it since."""
        if receipt.block >= len(plan.grid):
            return False
        window = plan.grid[receipt.block]
        try:
            if hashlib.sha256(self.classes.read(window).data).hexdigest() != receipt.sha256:
                return False
            if self.confidence is None:
                return True
            return hashlib.sha256(self.confidence.read(window).data).hexdigest() == receipt.confidence_sha256
        except OutputError:
            return False


def _stores(prepared: Prepared, outputs: Outputs, journal: Journal) -> _Stores:
    """The stores in the staging folder: as an earlier run left them, or new."""
    kinds = {outputs.store: create_store}
    if prepared.plan.confidence:
        kinds[outputs.confidence] = create_confidence
    for name, create in kinds.items():
        if not (outputs.staging / name).exists():
            journal.forget()  # receipts without their store tell of blocks that are gone
            unfinished = outputs.staging / f"{name}.new"
            shutil.rmtree(unfinished, ignore_errors=True)  # half made by a run that was killed
            create(unfinished, prepared.plan, prepared.model.card.legend)
            unfinished.rename(outputs.staging / name)
    sure = ConfidenceStore(outputs.staging / outputs.confidence) if prepared.plan.confidence else None
    return _Stores(ClassStore(outputs.staging / outputs.store), sure)


def _make(prepared: Prepared, outputs: Outputs, request: Request, progress: RunProgress) -> None:
    """Everything from the first block to the sealed staging folder."""
    started = time.perf_counter()
    plan = prepared.plan
    journal = Journal(outputs.staging)
    stores = _stores(prepared, outputs, journal)
    receipts = {r.block: r for r in journal.receipts() if stores.hold(plan, r)}
    earlier = len(receipts)
    progress.start(outputs.stem, plan.input.size.pixels, sum(r.shape[0] * r.shape[1] for r in receipts.values()))

    def finished(receipt: Receipt) -> None:
        if receipts.setdefault(receipt.block, receipt) is receipt:
            progress.advance(receipt.shape[0] * receipt.shape[1])

    confidence = outputs.confidence if plan.confidence else None
    ticket = JobTicket(str(outputs.staging), outputs.store, plan.fingerprint, prepared.device, confidence)
    missing = (block for block in range(len(plan.grid)) if block not in receipts)
    try:
        execute(ticket, works(plan.grid, plan.cut.segment, missing), request.workers, finished)
    finally:
        progress.stop()
    _refuse_changed_input(plan)
    computed = time.perf_counter() - started
    _finish(stores, prepared, outputs, progress, pyramid=request.pyramid)
    made = outputs.names(confidence=plan.confidence, pyramid=request.pyramid)
    report = make_report(prepared, made, receipts.values())
    report["timing"] = {
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "blocks_s": round(computed, 3),
        "stitch_s": round(time.perf_counter() - started - computed, 3),
        "blocks_done_by_earlier_runs": earlier,
    }
    _describe(outputs.staging, prepared, report, outputs)
    for line in summary(report):
        progress.note(line)
    journal.seal(outputs.report, report)


def _finish(stores: _Stores, prepared: Prepared, outputs: Outputs, progress: RunProgress, *, pyramid: bool) -> None:
    """What is made of the finished blocks."""
    staging, plan, legend = outputs.staging, prepared.plan, prepared.model.card.legend
    progress.note(f"{outputs.stem}: writing the GeoTIFF")
    stitch(stores.classes, staging / outputs.cog, staging / outputs.style, plan, legend)
    if stores.confidence is not None:
        stores.confidence.consolidate()
    if pyramid:
        write_pyramid(stores.classes.path, staging / outputs.pyramid, progress, overwrite=True)


def _describe(folder: Path, prepared: Prepared, report: dict[str, Any], outputs: Outputs) -> None:
    """Write the STAC item of the outputs in `folder`, and their checksums into `report`."""
    item = make_item(prepared.plan, prepared.model.card.legend, report, outputs)
    write_whole(folder / outputs.item, json.dumps(item, indent=2) + "\n")
    # GDAL adds statistics to the side file when a map is looked at
    report["checksums"] = checksums(folder, [name for name in report["outputs"] if name != outputs.side_file])


def _add_pyramid(prepared: Prepared, outputs: Outputs, progress: RunProgress) -> None:
    """The pyramid of a complete run that has none; the report that tells of it is written last."""
    target, names = outputs.folder / outputs.pyramid, outputs.names(confidence=prepared.plan.confidence)
    with only_one(outputs.lock):
        report = outputs.reported()
        if report is None or not _is_complete(outputs, prepared):
            raise OutputError(f"{outputs.folder / outputs.report}: changed meanwhile; run the same command again")
        if report.get("outputs") == names and target.exists():
            return
        ours = target.is_dir() and group_attributes(target).get("fcn:fingerprint") == prepared.plan.fingerprint
        write_pyramid(outputs.folder / outputs.store, target, progress, overwrite=ours)
        report["outputs"] = names
        _describe(outputs.folder, prepared, report, outputs)
        write_whole(outputs.folder / outputs.report, json.dumps(report, indent=2) + "\n")


def _refuse_changed_input(plan: Plan) -> None:
    """InputError when the raster was written to while it was read: the map would be of two images."""
    if identify(inspect(plan.input.path)).files != plan.input.files:
        raise InputError(
            f"{plan.input.path}: the raster changed during the run; run again with --restart when it is complete"
        )
