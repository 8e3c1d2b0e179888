"""`fcn-batch segment`: plan, run what is not done yet, stitch, publish.

prepare -> complete already? -> journal.begin (new or resumed)
        -> execute the blocks without a receipt -> stitch -> journal.seal -> outputs.publish
"""

import shutil
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fcn_batch.pipeline.classes import NODATA
from fcn_batch.pipeline.errors import InputError, OutputError
from fcn_batch.pipeline.journal import Journal, Receipt
from fcn_batch.pipeline.plan import Plan
from fcn_batch.pipeline.store import ClassStore
from fcn_batch.workflows.execute import Workers, execute
from fcn_batch.workflows.outputs import Outputs, outputs_of
from fcn_batch.workflows.plan import Options, Prepared, prepare
from fcn_batch.workflows.progress import RunProgress
from fcn_batch.workflows.steps import JobTicket
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
    """Make the class map of one input after the other, and name the outputs of each when they are complete."""
    places = outputs_of(list(request.inputs), request.folder)
    for path, outputs in zip(request.inputs, places, strict=True):
        _segment_one(path, outputs, request, progress)
        yield from outputs.paths


def _segment_one(path: Path, outputs: Outputs, request: Request, progress: RunProgress) -> None:
    journal = Journal(outputs.staging)
    prepared = prepare(path, request.options, processes=max(1, request.workers.count))
    if request.options.threads is None:
        prepared = _settled(prepared, outputs)
    plan = prepared.plan
    for note in prepared.notes:
        progress.note(f"{path.name}: {note}")
    if not request.overwrite and _is_complete(outputs, prepared):
        progress.note(f"{path.name}: complete already, made {outputs.folder / outputs.report} earlier")
        left = journal.earlier_plan()
        if left is not None and left.fingerprint == plan.fingerprint:
            journal.discard()  # of a run that was killed in its very last step
        return
    if request.restart and outputs.staging.exists():
        journal.discard()
    sealed = (outputs.staging / outputs.report).exists()
    if not request.overwrite and not sealed:
        outputs.refuse_to_clobber()
    outputs.make_folder(chosen=request.folder is not None)
    try:
        if journal.begin(plan):
            progress.note(f"{path.name}: resuming the interrupted run in {outputs.staging}")
        if not sealed:
            _make(prepared, outputs, request.workers, progress)
        outputs.publish()
    except OSError as error:
        raise OutputError(
            f"{error.filename or outputs.folder}: {error.strerror or error}; finished blocks are kept: "
            "make room or mend it, then run the same command again"
        ) from error


def _settled(prepared: Prepared, outputs: Outputs) -> Prepared:
    """Keep the number of threads that an earlier run of the same plan chose: it decides the last bits."""
    for earlier in (outputs.reported_plan(), Journal(outputs.staging).earlier_plan()):
        if earlier is not None:
            prepared = replace(prepared, plan=prepared.plan.settled_by(earlier))
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
    receipts = {r.block: r for r in journal.receipts() if r.block < len(plan.grid)}
    earlier = len(receipts)
    progress.start(outputs.stem, plan.input.size.pixels, sum(r.shape[0] * r.shape[1] for r in receipts.values()))

    def finished(receipt: Receipt) -> None:
        receipts[receipt.block] = receipt
        progress.advance(receipt.shape[0] * receipt.shape[1])

    ticket = JobTicket(str(outputs.staging), outputs.store, plan.fingerprint, prepared.device)
    try:
        execute(ticket, [b for b in range(len(plan.grid)) if b not in receipts], workers, finished)
    finally:
        progress.stop()
    _refuse_changed_input(plan)
    computed = time.perf_counter() - started
    stitch(ClassStore(store_path), outputs.staging / outputs.cog, plan, legend)
    report = _report(prepared, outputs, list(receipts.values()))
    report["timing"] = {
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "blocks_s": round(computed, 3),
        "stitch_s": round(time.perf_counter() - started - computed, 3),
        "blocks_done_by_earlier_runs": earlier,
    }
    for line in _summary(report):
        progress.note(line)
    journal.seal(outputs.report, report)


def _refuse_changed_input(plan: Plan) -> None:
    """InputError when the raster was written to while it was read: the map would be of two images."""
    status = Path(plan.input.path).stat()
    if (status.st_size, status.st_mtime_ns) != (plan.input.bytes, plan.input.modified_ns):
        raise InputError(
            f"{plan.input.path}: the raster changed during the run; run again with --restart when it is complete"
        )


def _report(prepared: Prepared, outputs: Outputs, receipts: list[Receipt]) -> dict[str, Any]:
    plan, card = prepared.plan, prepared.model.card
    pixels: Counter[int] = Counter()
    areas: defaultdict[int, float] = defaultdict(float)
    for receipt in sorted(receipts, key=lambda r: r.block):  # one order, so that sums have the same bits
        pixels.update(receipt.pixels)
        for class_id, area in (receipt.area_m2 or {}).items():
            areas[class_id] += area
    known = sum(n for i, n in pixels.items() if i != NODATA)
    located = all(r.area_m2 is not None for r in receipts)
    classes = [
        {
            "id": c.id,
            "name": c.name,
            "pixels": pixels[c.id],
            "share": pixels[c.id] / known if known else 0.0,
            "area_km2": areas[c.id] / 1e6 if located else None,
        }
        for c in card.legend.classes
    ]
    return {
        "complete": True,
        "fingerprint": plan.fingerprint,
        "exactness": "exact" if plan.cut.exact else "approximate",
        "outputs": [outputs.store, outputs.cog, outputs.side_file],
        "classes": classes,
        "nodata_pixels": pixels[NODATA],
        "notes": prepared.notes,
        "blocks": len(receipts),
        "forward_passes_per_pixel": round(sum(r.forwarded for r in receipts) / plan.input.size.pixels, 4),
        "plan": plan.model_dump(mode="json"),
    }


def _summary(report: dict[str, Any]) -> list[str]:
    lines = []
    for entry in report["classes"]:
        area = f"{entry['area_km2']:16,.2f} km²" if entry["area_km2"] is not None else ""
        lines.append(f"  {entry['name']:<24} {100 * entry['share']:6.2f} % {entry['pixels']:14,} px {area}")
    lines.append(f"  {'no data':<24} {'':8} {report['nodata_pixels']:14,} px")
    return lines
