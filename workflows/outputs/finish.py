"""From finished blocks to finished outputs: GeoTIFF, style, pyramid, STAC item, report with checksums."""

import json
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fcn_batch.pipeline.core.classes import Legend
from fcn_batch.pipeline.core.durable import write_whole
from fcn_batch.pipeline.core.journal import Receipt
from fcn_batch.pipeline.core.plan import Plan
from fcn_batch.pipeline.store.classstore import ClassStore, ConfidenceStore
from fcn_batch.workflows.blocks.part import Part
from fcn_batch.workflows.console.progress import RunProgress
from fcn_batch.workflows.outputs.checksums import checksums, signed
from fcn_batch.workflows.outputs.publishing import Outputs
from fcn_batch.workflows.outputs.pyramid import write_pyramid
from fcn_batch.workflows.outputs.report import make_report
from fcn_batch.workflows.outputs.stac import make_item
from fcn_batch.workflows.outputs.stitch import stitch


@dataclass(frozen=True, slots=True)
class Brief:
    """What a run is to make."""

    plan: Plan
    legend: Legend
    notes: tuple[str, ...] = ()
    """What a user should know before trusting the map."""
    pyramid: bool = False
    """True: also the map's pyramid."""
    mask: bool = False
    """True: what cannot be read of the input may be no data in the map."""
    overwrite: bool = False
    """True: outputs that exist are replaced."""
    restart: bool = False
    """True: an interrupted run is discarded."""
    part: Part | None = None
    """Which blocks this run sees to; None: all."""

    @property
    def name(self) -> str:
        """The input's, for messages."""
        return Path(self.plan.input.path).name


@dataclass(frozen=True, slots=True)
class Course:
    """How the blocks were done, for the report."""

    seconds: float
    earlier: int
    """Blocks that were done before this run began, or by other parts."""
    pixels: int = 0
    """Of the blocks that were done while this run went on."""
    classified: int = 0
    """Those of them that have a class: not what has no data."""


def finish(brief: Brief, outputs: Outputs, receipts: Sequence[Receipt], course: Course, progress: RunProgress) -> None:
    """Make all that is made of the blocks, in the staging folder; the report, which says that all is there, is last."""
    started = time.perf_counter()
    staging, plan = outputs.staging, brief.plan
    store = ClassStore(staging / outputs.store)
    progress.note(f"{outputs.stem}: writing the GeoTIFF")
    stitch(store, staging / outputs.cog, staging / outputs.style, plan, brief.legend)
    if plan.confidence:
        ConfidenceStore(staging / outputs.confidence).consolidate()
    if brief.pyramid:
        write_pyramid(store.path, staging / outputs.pyramid, progress, overwrite=True)
    made = outputs.names(confidence=plan.confidence, pyramid=brief.pyramid)
    report = make_report(plan, brief.legend, brief.notes, made, receipts)
    report["timing"] = {
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "blocks_s": round(course.seconds, 3),
        "stitch_s": round(time.perf_counter() - started, 3),
        "pixels_per_s": round(course.pixels / course.seconds),
        "classified_pixels_per_s": round(course.classified / course.seconds),
        "blocks_done_by_earlier_runs": course.earlier,
        "blocks_done_by": dict(sorted(Counter(receipt.by for receipt in receipts).items())),
    }
    describe(staging, brief, report, outputs)
    outputs.journal.seal(outputs.report, report)


def add_pyramid(brief: Brief, outputs: Outputs, report: dict[str, Any], progress: RunProgress) -> None:
    """The pyramid of a complete run that has none; its report, which tells of it, is written again at the end."""
    target = outputs.folder / outputs.pyramid
    write_pyramid(outputs.folder / outputs.store, target, progress, overwrite=outputs.is_ours(target, brief.plan))
    report["outputs"] = outputs.names(confidence=brief.plan.confidence)
    describe(outputs.folder, brief, report, outputs)
    write_whole(outputs.folder / outputs.report, json.dumps(report, indent=2) + "\n")


def describe(folder: Path, brief: Brief, report: dict[str, Any], outputs: Outputs) -> None:
    """Write the STAC item of the outputs in `folder`, and the checksums of all, its own too, into `report`."""
    item = make_item(brief.plan, brief.legend, report, outputs)
    write_whole(folder / outputs.item, json.dumps(item, indent=2) + "\n")
    remade = (outputs.item, outputs.pyramid)  # of a complete run; what was damaged of the others stays so
    known = {at: one for at, one in report.get("checksums", {}).items() if Path(at).parts[0] not in remade}
    made = [name for name in report["outputs"] if name in remade or not known]
    report["checksums"] = {**known, **checksums(folder, made)}
    report.update(signed(report))
