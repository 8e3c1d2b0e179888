"""`fcn-batch segment`: plan every input, then make its map on the executor that was asked for.

prepare -> settled by what an earlier run chose -> complete already? -> run: begin, rounds of execute, end
"""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from fcn_batch.pipeline.core.claims import only_one
from fcn_batch.pipeline.core.errors import (
    FcnBatchError,
    MismatchError,
    OptionError,
    OutputError,
    StoppedError,
    UnreadableError,
)
from fcn_batch.pipeline.core.location import Input, Url
from fcn_batch.pipeline.core.plan import Free
from fcn_batch.pipeline.core.tiling import Work
from fcn_batch.pipeline.core.tolerance import OnError
from fcn_batch.pipeline.raster.remote import Bucket
from fcn_batch.workflows.blocks.job import JobTicket
from fcn_batch.workflows.blocks.part import Part
from fcn_batch.workflows.console.progress import RunProgress
from fcn_batch.workflows.console.signals import Stop, stopping
from fcn_batch.workflows.inputs.many import Tally, ends_all
from fcn_batch.workflows.inputs.watch import arrivals
from fcn_batch.workflows.outputs.disk import check_disk
from fcn_batch.workflows.outputs.finish import Brief, add_pyramid
from fcn_batch.workflows.outputs.publishing import Outputs, Places, outputs_of
from fcn_batch.workflows.outputs.upload import plan_there, upload
from fcn_batch.workflows.plan import Options, Prepared, prepare
from fcn_batch.workflows.processes.crew import kept
from fcn_batch.workflows.processes.execute import execute
from fcn_batch.workflows.processes.workers import Workers
from fcn_batch.workflows.run import End, OnReceipt, run

GRACE_S = 25.0
"""Seconds that a batch system leaves at least between asking a job to end and ending it: SLURM 30, PBS 10 to 60."""


@dataclass(frozen=True, slots=True)
class Request:
    """What the user asked for."""

    inputs: tuple[Input, ...]
    """Or, if none: those that come into the folder `watch`."""
    options: Options
    folder: Path | None = None
    """None: beside each input."""
    workers: Workers = field(default_factory=Workers)
    overwrite: bool = False
    restart: bool = False
    pyramid: bool = False
    """True: also make the map's pyramid."""
    on_error: OnError = field(default_factory=OnError)
    """What to do about parts of an input that cannot be read."""
    allow_mixed: bool = False
    """True: go on with what another kind of machine, or other versions, began."""
    grace: float = GRACE_S
    """Seconds in which a run ends that a signal asks to."""
    part: Part | None = None
    """Which blocks this run sees to; None: all."""
    summary: Path | None = None
    """Where it is written, as JSON, how each input ended; None: nowhere."""
    watch: Path | None = None
    bucket: Url | None = None
    """Where outputs go when they are complete; None: they stay in `folder`."""

    def __post_init__(self) -> None:
        if self.bucket is not None and self.part is not None:
            raise OptionError(
                "option-conflict",
                "{one} with {other}: give a folder that all parts share",
                one=f"--part {self.part}",
                other=f"-o {self.bucket}",
            )
        if self.watch is not None:
            self._check_watch(self.watch)
        if self.part is not None and (self.restart or self.overwrite):
            raise OptionError(
                "option-conflict",
                "{one} with {other} would discard what other parts have done; delete the staging folder NAME.partial, "
                "or the outputs, before the first part begins",
                one=f"--part {self.part}",
                other="--restart" if self.restart else "--overwrite",
            )

    def _check_watch(self, watch: Path) -> None:
        if self.inputs or self.part is not None:
            other = f"--part {self.part}" if self.part else f"the input {self.inputs[0]}"
            raise OptionError(
                "option-conflict", "{one} with {other}: give one of them", one=f"--watch {watch}", other=other
            )
        if self.folder is None or self.folder.resolve() == watch.resolve():
            raise OptionError(
                "watch-own-outputs",
                "--watch {path}: outputs there would be inputs again; give another folder with -o DIR",
                path=watch,
            )


def segment(request: Request, progress: RunProgress) -> Iterator[Path | str]:
    """Make the class map of one input after the other, and name the outputs of each when they are complete.

    That two would have the same names shows before the first one is run. With several inputs one that fails does not
    stop the others. The error of the only input, or the first of several, at the end: UnreadableError too, when a map
    has holes because of its input. StoppedError or KeyboardInterrupt when a signal ended it before: of one that watches
    a folder, not while it waits for the next.
    """
    outputs_of(list(request.inputs), request.folder)
    places = Places(request.folder)
    tally = Tally(None if request.watch else len(request.inputs), request.summary)
    tally.write()
    try:
        with stopping(request.grace, progress.note) as stop, kept(request.workers, progress.note) as workers:
            request = replace(request, workers=workers)
            for path in request.inputs if request.watch is None else arrivals(request.watch, stop, progress.note):
                tally.begin()
                outputs: Outputs | None = None
                try:
                    outputs = places.of(path)  # fails in watched folders only: those that were named are looked at
                    prepared = prepare(
                        path,
                        request.options,
                        processes=workers.processes,
                        each=workers.each,
                        known=outputs.earlier_plans(),
                        on_error=request.on_error,
                    )
                    if _there_already(prepared, outputs, request):
                        tally.add(path, "done", prepared.info.size.pixels)
                        progress.note(f"{path}: complete already, in {request.bucket}")
                        continue
                    end = _segment_one(prepared, outputs, request, progress, stop)
                except StoppedError:
                    raise
                except FcnBatchError as error:
                    if outputs is not None and ends_all(error, tally):
                        raise
                    tally.add(path, "failed", None, error)
                    progress.note(f"{path}: failed, the others go on: {error}")
                    continue
                if end is End.STOPPED:
                    stop.leave()
                made = _ended(path, outputs, end, tally)
                yield from made if request.bucket is None else upload(Bucket(request.bucket), outputs)
    finally:
        for line in tally.lines() if tally.several else ():
            progress.note(line)
    if (failure := tally.error()) is not None:
        raise failure


def _there_already(prepared: Prepared, outputs: Outputs, request: Request) -> bool:
    """Whether the outputs are in the bucket; OutputError when those of another run are, and may not be replaced."""
    if request.bucket is None or request.overwrite:
        return False
    there = plan_there(Bucket(request.bucket), outputs)
    if there is None:
        return False
    if prepared.plan.settled_by(there, _free(request)).fingerprint == there.fingerprint:
        return True
    raise OutputError(
        "output-exists",
        "{path}: {report} there is of another run; give --overwrite to replace its outputs, or another place with -o",
        path=request.bucket,
        report=outputs.report,
    )


def _ended(path: Input, outputs: Outputs, end: End, tally: Tally) -> list[Path]:
    """Count one that ended well, or with holes; its outputs, if they are there."""
    if end is End.PART:
        tally.add(path, "part", None)
        return []
    report = outputs.reported() or {}
    pixels = report.get("nodata_pixels", 0) + sum(entry["pixels"] for entry in report.get("classes", ()))
    holes = None
    if report.get("unreadable"):
        holes = UnreadableError(
            "map-has-holes",
            "{path}: complete, but parts of the input could not be read and are no data; it lists them as unreadable: "
            "get an undamaged copy and make the map again",
            path=outputs.folder / outputs.report,
        )
    tally.add(path, "holes" if holes else "done", pixels, holes)
    return outputs.paths


def _segment_one(prepared: Prepared, outputs: Outputs, request: Request, progress: RunProgress, stop: Stop) -> End:
    """By the plan of an earlier run, or of one that began at the same moment."""
    settled = _settled(prepared, outputs, request)
    try:
        return _run_one(settled, outputs, request, progress, stop)
    except MismatchError:
        again = _settled(prepared, outputs, request)
        if again.plan == settled.plan:
            raise
        return _run_one(again, outputs, request, progress, stop)


def _run_one(prepared: Prepared, outputs: Outputs, request: Request, progress: RunProgress, stop: Stop) -> End:
    brief = Brief(
        plan=prepared.plan,
        legend=prepared.model.card.legend,
        notes=tuple(prepared.notes),
        pyramid=request.pyramid,
        mask=request.on_error.mask,
        overwrite=request.overwrite,
        restart=request.restart,
        part=request.part,
    )
    for note in prepared.notes:
        progress.note(f"{brief.name}: {note}")
    if not request.overwrite and outputs.is_complete(brief.plan):
        _complete_already(brief, outputs, progress)
        return End.COMPLETE
    outputs.make_folder(chosen=request.folder is not None)
    doubt = check_disk(outputs.folder, brief.plan, pyramid=request.pyramid, staging=outputs.staging)
    if doubt is not None:
        progress.note(f"{brief.name}: {doubt}")
    ticket = JobTicket(
        staging=str(outputs.staging),
        store=outputs.store,
        fingerprint=brief.plan.fingerprint,
        device=prepared.device,
        confidence=outputs.confidence if brief.plan.confidence else None,
        on_error=request.on_error,
        allow_mixed=request.allow_mixed,
        ahead=prepared.ahead,
    )

    def compute(works: Sequence[Work], on_receipt: OnReceipt) -> None:
        execute(ticket, works, request.workers, on_receipt, stop)

    try:
        return run(brief, outputs, compute, progress, stop)
    except OSError as error:
        raise OutputError(
            "output-unwritable",
            "{path}: {reason}; finished blocks are kept: make room or repair the disk, then run the same command again",
            path=error.filename or outputs.folder,
            reason=error.strerror or error,
        ) from error


def _complete_already(brief: Brief, outputs: Outputs, progress: RunProgress) -> None:
    """The run is complete; tidy up after one that was killed at its very end, add a pyramid if one is wanted."""
    if (outputs.reported() or {}).get("unreadable") and not brief.mask:
        raise OutputError(
            "output-has-holes",
            "{path}: complete, but has holes where the input could not be read; give --on-error mask to take it as it "
            "is, or --overwrite and an undamaged copy to make it again",
            path=outputs.folder / outputs.report,
        )
    progress.note(f"{brief.name}: complete already, made {outputs.folder / outputs.report} earlier")
    if outputs.leftovers():
        with suppress(OutputError), only_one(outputs.lock):
            outputs.tidy_up()
    if not brief.pyramid:
        return
    with only_one(outputs.lock):
        report = outputs.reported()
        if report is None or not outputs.is_complete(brief.plan):
            path = outputs.folder / outputs.report
            raise OutputError("output-changed", "{path}: changed meanwhile; run the same command again", path=path)
        names = outputs.names(confidence=brief.plan.confidence)
        if report.get("outputs") != names or not (outputs.folder / outputs.pyramid).exists():
            add_pyramid(brief, outputs, report, progress)


def _settled(prepared: Prepared, outputs: Outputs, request: Request) -> Prepared:
    """Keep what an earlier run of the same plan chose by its machine: it decides the last bits."""
    for earlier in outputs.earlier_plans():
        prepared = replace(prepared, plan=prepared.plan.settled_by(earlier, _free(request)))
    return prepared


def _free(request: Request) -> frozenset[Free]:
    """What the machine chose, not the user."""
    options = request.options
    free: set[Free] = {"segment"}
    if options.threads is None:
        free.add("threads")
    if options.memory is None:
        free.add("lane")
        if options.tile is None:
            free.add("tile")
    if request.allow_mixed:
        free.add("kernel")
    return frozenset(free)
