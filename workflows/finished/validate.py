"""`fcn-batch validate`: read the outputs of a run again, and compare them with its report.

The report holds the plan, the hash of every block of the map, and checksums of all files, itself included. So what a
disk, a copy or a hand has changed shows, and where; each check is made whatever the others find.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
from numpy.typing import NDArray

from fcn_batch.pipeline.core.classes import NODATA, Legend
from fcn_batch.pipeline.core.errors import FcnBatchError, InputError
from fcn_batch.pipeline.core.geometry import Window
from fcn_batch.pipeline.core.georeference import IDENTITY, GeoReference
from fcn_batch.pipeline.core.maps import Ids
from fcn_batch.pipeline.core.plan import Plan
from fcn_batch.pipeline.core.pyramid import halved, levels_of
from fcn_batch.pipeline.core.tiling import BlockGrid
from fcn_batch.pipeline.raster.crs import change_of_system
from fcn_batch.pipeline.raster.gdal import gdal_cache
from fcn_batch.pipeline.raster.mapfile import MapFile, cog_faults
from fcn_batch.pipeline.store.classstore import CONFIDENCE, ClassStore, ConfidenceStore
from fcn_batch.pipeline.store.finished import FinishedConfidence, FinishedMap
from fcn_batch.pipeline.store.levels import group_attributes
from fcn_batch.pipeline.store.storecheck import gathered_faults, store_faults, system_of
from fcn_batch.workflows.console.progress import RunProgress
from fcn_batch.workflows.finished.maps import cache_mb
from fcn_batch.workflows.outputs.checksums import files_of, is_signed, output_sha256
from fcn_batch.workflows.outputs.publishing import Outputs, find_outputs, find_run
from fcn_batch.workflows.outputs.stitch import head_of, layout_of

Read = Callable[[Window], Ids]
Faults = Iterator[str]
Look = Callable[["_Run"], Faults]


_SHOWN = 5
"""Faults of a check that are printed one by one."""


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at."""

    name: str
    found: str
    """What is right, when nothing is wrong."""
    faults: tuple[str, ...] = ()
    """What is wrong, and where."""

    @property
    def ok(self) -> bool:
        """True when nothing is wrong."""
        return not self.faults


@dataclass(frozen=True, slots=True)
class Validation:
    """All checks of the outputs of one run."""

    run: str
    """The run's report."""
    checks: tuple[Check, ...]

    @property
    def ok(self) -> bool:
        """True when nothing is wrong in any of them."""
        return all(check.ok for check in self.checks)

    def to_json(self) -> str:
        """All checks with all faults, for programs."""
        checks = [{"ok": check.ok, **asdict(check)} for check in self.checks]
        return json.dumps({"ok": self.ok, "run": self.run, "checks": checks}, indent=2)

    def describe(self) -> list[tuple[str, str]]:
        """What `fcn-batch validate` prints: name of the check, and ok or FAIL with what was found."""
        pairs = [("run", self.run)]
        for check in self.checks:
            if check.ok:
                pairs.append((check.name, f"ok    {check.found}"))
            pairs += [(check.name, f"FAIL  {fault}") for fault in check.faults[:_SHOWN]]
            if len(check.faults) > _SHOWN:
                pairs.append((check.name, f"FAIL  and {len(check.faults) - _SHOWN:,} more; --json lists all"))
        return pairs


@dataclass(frozen=True, slots=True)
class _Run:
    """What the report says of a run."""

    outputs: Outputs
    report: dict[str, Any]
    plan: Plan
    legend: Legend
    progress: RunProgress

    @classmethod
    def of(cls, outputs: Outputs, progress: RunProgress) -> "_Run":
        """InputError, ValueError, KeyError or TypeError when the report cannot be used."""
        report = find_run(outputs.folder / outputs.report)[1]
        legend = Legend.model_validate(
            {"classes": [{key: one[key] for key in ("id", "name", "colour")} for one in report["classes"]]}
        )
        listed, sums = report["outputs"], report.get("checksums", {})
        if not (isinstance(listed, list) and all(isinstance(name, str) for name in listed) and isinstance(sums, dict)):
            raise ValueError(f"its outputs are {listed!r}, its checksums {type(sums).__name__}")
        return cls(outputs, report, Plan.model_validate(report["plan"]), legend, progress)

    @property
    def passes(self) -> int:
        """How often all pixels are read."""
        return 2 + (len(CONFIDENCE) if self.plan.confidence else 0) + self.has(self.outputs.pyramid)

    def has(self, name: str) -> bool:
        """True when the run made it."""
        return name in self.report["outputs"]

    def path(self, name: str) -> Path:
        """Of an output."""
        return self.outputs.folder / name


def validate(path: Path, progress: RunProgress) -> Validation:
    """Compare the outputs of the run that `path` belongs to with its report; see `find_outputs` for `path`.

    InputError when `path` is no output. Nothing that is wrong with the outputs raises: it is what is returned.
    """
    outputs = find_outputs(path)
    named = str(outputs.folder / outputs.report)
    try:
        run = _Run.of(outputs, progress)
    except (InputError, ValueError, KeyError, TypeError) as error:
        return Validation(
            named, (Check("report", "", (f"cannot be used, nor what it tells of compared: {_why(error)}",)),)
        )
    progress.start(outputs.stem, run.passes * run.plan.input.size.pixels, 0)
    try:
        return Validation(named, tuple(_checked(run, name, look, right) for name, look, right in _checks(run)))
    finally:
        progress.stop()


def _checks(run: _Run) -> Iterator[tuple[str, Look, str]]:
    """Name, what it does, and what is so when it finds nothing."""
    size, blocks = run.plan.input.size, f"{len(run.plan.grid)} blocks as the run made them"
    yield "report", _report, f"complete, {len(run.plan.grid)} blocks, fingerprint {run.plan.fingerprint[:12]}"
    yield "outputs", _outputs, f"all {len(run.report['outputs'])} are there"
    yield "checksums", _checksums, f"{len(run.report.get('checksums', ()))} files as the run made them"
    yield "store", _store, f"{size.height} x {size.width} px, in its place, {len(run.legend)} classes"
    yield "map", _map, f"{blocks}, only classes of the legend"
    yield "geotiff", _cog, "in its place, with palette and names"
    yield "geotiff map", _cog_map, blocks
    if run.plan.confidence:
        yield "confidence", _confidence, f"in its place, {blocks}"
    if run.has(run.outputs.pyramid):
        levels = len(levels_of(size, run.plan.input.georeference))
        yield "pyramid", _pyramid, f"level 0 is the map, {levels - 1} more made of it"
    yield "item", _item, "there, and of this run"


def _checked(run: _Run, name: str, look: Look, right: str) -> Check:
    """Look, and count whatever damage makes a reader stumble over as a fault too."""
    faults: list[str] = []
    try:
        faults.extend(look(run))
    except Exception as error:  # noqa: BLE001 - damage can make libraries raise anything
        faults.append(_why(error))
    return Check(name, right, tuple(faults))


def _report(run: _Run) -> Faults:
    if not is_signed(run.report):
        yield "changed since the run: its report_sha256 is not that of the rest"
    if run.plan.fingerprint != run.report.get("fingerprint"):
        yield f"its plan has the fingerprint {run.plan.fingerprint}, not {run.report.get('fingerprint')} as it says"
    blocks = {"the report": run.report.get("blocks"), "its journal": len(run.report["journal"]["sha256"])}
    for what, count in blocks.items():
        if count != len(run.plan.grid):
            yield f"{what} has {count} blocks, the plan {len(run.plan.grid)}"


def _outputs(run: _Run) -> Faults:
    wanted = run.outputs.names(confidence=run.plan.confidence, pyramid=run.has(run.outputs.pyramid))
    for name in wanted:
        if not run.path(name).exists():
            yield f"{run.path(name)}: missing"
    for name in sorted({*wanted} ^ {*run.report["outputs"]}):
        yield f"{name}: " + ("not in the report's list" if name in wanted else "no output of this plan")


def _checksums(run: _Run) -> Faults:
    known = run.report["checksums"]
    for name, expected in known.items():
        path = run.path(name)
        if ".." in path.parts or Path(name).is_absolute():
            yield f"{name}: not below the folder of the outputs"
        elif fault := _file_fault(path, expected):
            yield f"{path}: {fault}"
    for store in (name for name in run.outputs.names() if name.endswith(".zarr") and run.has(name)):
        for path in files_of(run.path(store)):
            if path.exists() and str(path.relative_to(run.outputs.folder)) not in known:
                yield f"{path}: not made by the run"


def _file_fault(path: Path, expected: str) -> str | None:
    if not path.is_file():
        return "missing"
    try:
        return None if output_sha256(path) == expected else "changed since the run"
    except (OSError, ValueError) as error:
        return _why(error)


def _store(run: _Run) -> Faults:
    path = run.path(run.outputs.store)
    yield from gathered_faults(path)
    yield from store_faults(path, layout_of(run.plan, run.legend), ClassStore)
    yield from _system_faults(run, path)
    if FinishedMap(path).georeference != run.plan.input.georeference:
        yield f"reads as lying at {FinishedMap(path).georeference.transform}, not {run.plan.input.transform}"


def _system_faults(run: _Run, path: Path) -> Faults:
    told, wanted = system_of(path), run.plan.input.crs_wkt
    differ = change_of_system(GeoReference(told, IDENTITY), GeoReference(wanted, IDENTITY)) is not None
    if differ or (told is None) != (wanted is None):
        yield f"spatial_ref: another reference system than the plan's: {told}"


def _map(run: _Run) -> Faults:
    found = FinishedMap(run.path(run.outputs.store))
    counts = np.zeros(256, np.int64)
    hashes = run.report["journal"]["sha256"]
    clean = True
    for fault in _block_faults(run, [found.read], found.block[0], hashes, counts):
        clean = False
        yield fault
    known = {one["id"]: one["pixels"] for one in run.report["classes"]} | {NODATA: run.report["nodata_pixels"]}
    for class_id in map(int, np.flatnonzero(counts)):
        if class_id not in known:
            yield f"{counts[class_id]:,} pixels of class {class_id}, which is not in the legend"
    for class_id, count in known.items() if clean else ():
        if counts[class_id] != count:
            yield f"{counts[class_id]:,} pixels of class {class_id}; the report says {count:,}"


def _cog(run: _Run) -> Faults:
    yield from cog_faults(run.path(run.outputs.cog), head_of(run.plan, run.legend))


def _cog_map(run: _Run) -> Faults:
    found = MapFile(run.path(run.outputs.cog))
    with gdal_cache(cache_mb(found.block)):
        yield from _block_faults(run, [found.read], found.block[0], run.report["journal"]["sha256"])


def _confidence(run: _Run) -> Faults:
    path = run.path(run.outputs.confidence)
    yield from gathered_faults(path)
    yield from store_faults(path, layout_of(run.plan, run.legend), ConfidenceStore)
    yield from _system_faults(run, path)
    found = FinishedConfidence(path)
    planes = [partial(found.read, plane) for plane in range(len(CONFIDENCE))]
    rows = run.plan.inner or run.plan.cut.chunk
    yield from _block_faults(run, planes, rows, run.report["journal"]["confidence_sha256"])


def _pyramid(run: _Run) -> Faults:
    path = run.path(run.outputs.pyramid)
    if (told := group_attributes(path).get("fcn:fingerprint")) != run.plan.fingerprint:
        yield f"fcn:fingerprint is {told} instead of {run.plan.fingerprint}: of another run"
    yield from gathered_faults(path)
    levels = levels_of(run.plan.input.size, run.plan.input.georeference)
    finer = FinishedMap(path / levels[0].name)
    faults = _block_faults(run, [finer.read], finer.block[0], run.report["journal"]["sha256"])
    yield from (f"level 0: {fault}" for fault in faults)
    for level in levels[1:]:
        coarser = FinishedMap(path / level.name)
        if coarser.size != level.size:
            yield f"level {level.name}: {coarser.size} instead of {level.size}"
            return
        grid = BlockGrid(level.size, *coarser.block)
        for window in map(grid.__getitem__, range(len(grid))):
            if not np.array_equal(coarser.read(window), halved(finer.read, finer.size, window)):
                yield f"level {level.name}: not half of the level before it in {_place(window)}"
        finer = coarser


def _item(run: _Run) -> Faults:
    path = run.path(run.outputs.item)
    item = json.loads(path.read_bytes())
    if item["id"] != run.outputs.stem:
        yield f"{path}: describes {item['id']}"
    listed = {Path(unquote(asset["href"])).name for asset in item["assets"].values()}
    for name in run.report["outputs"]:
        if name not in listed and name != run.outputs.item:
            yield f"{path}: does not list {name}"


def _block_faults(
    run: _Run, planes: Sequence[Read], rows: int, hashes: list[str], counts: NDArray[np.int64] | None = None
) -> Faults:
    """Blocks of the plan that do not read, or not with the hash of the journal.

    A block is one plane after the other, `rows` rows at a time; `counts` are added to by class id.
    """
    grid = run.plan.grid
    for index in range(len(grid)):
        window, digest = grid[index], hashlib.sha256()
        try:
            for read, part in product(planes, _strips(window, rows)):
                values = np.ascontiguousarray(read(part))
                digest.update(values.data)
                run.progress.advance(values.size)
                if counts is not None:
                    counts += sum(np.bincount(row, minlength=256) for row in values)
        except FcnBatchError as error:
            yield f"block {index}, {_place(window)}: {_why(error)}"
        else:
            if digest.hexdigest() != (hashes[index] if index < len(hashes) else None):
                yield f"block {index}, {_place(window)}: not as the run made it"


def _strips(window: Window, rows: int) -> list[Window]:
    """Cut a window into parts of `rows` rows, from top to bottom."""
    starts = range(window.row, window.stop_row, rows)
    return [Window(row, window.col, min(rows, window.stop_row - row), window.width) for row in starts]


def _place(window: Window) -> str:
    return f"rows {window.row}..{window.stop_row - 1}, cols {window.col}..{window.stop_col - 1}"


def _why(error: Exception) -> str:
    """One line; the name of the error too, unless it is one of ours."""
    kind = "" if isinstance(error, FcnBatchError) else f"{type(error).__name__}: "
    return " ".join(f"{kind}{error}".split())
