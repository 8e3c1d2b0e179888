"""`fcn-batch verify`: compute random windows of a map again, from its input, and compare the classes.

A window is seen in one piece, with twice the halo around it. In float32 the network runs as torch runs it: nothing of
what streams or cuts the image is used, so a fault there shows. In other precisions the layers are those of the run,
because torch's own way to use them rounds at other places.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from fcn_batch.pipeline.core.classes import NODATA
from fcn_batch.pipeline.core.errors import InputError, IntegrityError, ModelError, OptionError
from fcn_batch.pipeline.core.geometry import Size, Window, round_up
from fcn_batch.pipeline.core.location import Url, input_of
from fcn_batch.pipeline.core.maps import ClassMap, Ids
from fcn_batch.pipeline.core.plan import FileIdentity, InputIdentity, Plan, Precision
from fcn_batch.pipeline.core.source import RasterSource
from fcn_batch.pipeline.network.capture import graph_for
from fcn_batch.pipeline.network.device import (
    check_precision,
    choose_device,
    describe_device,
    is_out_of_memory,
    torch_kind,
    torch_version,
)
from fcn_batch.pipeline.network.predictor import Scaling, Tiles, make_tiles
from fcn_batch.pipeline.network.weights import load_model
from fcn_batch.pipeline.raster.clip import within
from fcn_batch.pipeline.raster.gdal import gdal_cache
from fcn_batch.workflows.blocks.job import cache_size_mb
from fcn_batch.workflows.console.progress import RunProgress
from fcn_batch.workflows.finished.maps import open_map
from fcn_batch.workflows.inputs.identity import identify
from fcn_batch.workflows.inputs.many import refuse_remote
from fcn_batch.workflows.inputs.sources import source_of
from fcn_batch.workflows.outputs.publishing import Outputs, find_run

_SIDE = 512
"""Rows and columns of a window."""
_LOOKS = 50
"""Places to look at for each window that is wanted, where much of the map is without data."""
_ROUNDING: dict[Precision, float] = {"fp32": 1e-4, "fp16": 5e-3, "bf16": 2e-2}
"""How far the same score may lie apart, computed in two ways, as a share of the window's largest score."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One window, computed again."""

    row: int
    col: int
    height: int
    width: int
    compared: int
    """Pixels that have data in the input, or a class in the map."""
    differ: int
    """Those with another label."""
    ties: int
    """Those of them whose two labels score alike, as far as the precision can tell."""

    @property
    def wrong(self) -> int:
        """Labels that differ and are no ties."""
        return self.differ - self.ties

    def __str__(self) -> str:
        """Place and counts."""
        place = f"rows {self.row}..{self.row + self.height - 1}, cols {self.col}..{self.col + self.width - 1}"
        return f"{place}: {self.compared:,} px, {self.differ:,} differ, {self.ties:,} of them ties"


@dataclass(frozen=True, slots=True)
class Verification:
    """What came of all windows."""

    run: str
    """The run's report."""
    exact: bool
    """True when the map is that of the whole image in one pass; blended ones are expected to differ."""
    precision: Precision
    seed: int
    samples: tuple[Sample, ...]
    notes: list[str] = field(default_factory=list)

    @property
    def compared(self) -> int:
        """Pixels in all windows."""
        return sum(sample.compared for sample in self.samples)

    @property
    def differ(self) -> int:
        """Labels that differ, in all windows."""
        return sum(sample.differ for sample in self.samples)

    @property
    def ties(self) -> int:
        """Those of them that are ties."""
        return sum(sample.ties for sample in self.samples)

    @property
    def ok(self) -> bool:
        """False when an exact map has labels that the network does not give."""
        return not self.exact or self.differ == self.ties

    def to_json(self) -> str:
        """All fields and totals, for programs."""
        totals = {"compared": self.compared, "differ": self.differ, "ties": self.ties, "share": self._share}
        return json.dumps({"ok": self.ok, **totals, **asdict(self)}, indent=2)

    def describe(self) -> list[tuple[str, str]]:
        """What `fcn-batch verify` prints: label and value, one pair a line."""
        return [
            ("run", self.run),
            ("windows", f"{len(self.samples)} at random (seed {self.seed}), {self.compared:,} px"),
            ("differ", f"{self.differ:,} px ({100 * self._share:.4f} %), {self.ties:,} of them ties"),
            ("result", self._result()),
            *(("window", str(sample)) for sample in self.samples),
            *(("note", note) for note in self.notes),
        ]

    @property
    def _share(self) -> float:
        return self.differ / self.compared if self.compared else 0.0

    def _result(self) -> str:
        if not self.exact:
            return "windows: the map is their blend, by definition, and not what the network gives for all of the image"
        if not self.ok:
            wrong = self.differ - self.ties
            return f"{wrong:,} label{'s are' if wrong > 1 else ' is'} not what the network gives"
        return "exact: every label is what the network gives" + (", except for ties" if self.ties else "")


def verify(path: Path, samples: int, seed: int, progress: RunProgress, *, local_only: bool = False) -> Verification:
    """Compute `samples` windows of the map at `path` again and compare their labels.

    `path` is a run's report, an output beside it, or a folder with one report; `seed` decides the windows, which never
    overlap. InputError and ModelError when the raster or the model is not what the run had, IntegrityError when the
    store has another size than its plan, OptionError for what cannot be computed here, or lies on another machine where
    `local_only` forbids that.
    """
    if samples < 1 or seed < 0:
        option, value, least = ("samples", samples, 1) if samples < 1 else ("seed", seed, 0)
        raise OptionError(
            "option-value", "--{option} {value}: give {least} or more", option=option, value=value, least=least
        )
    outputs, report = find_run(path)
    named = outputs.folder / outputs.report
    plan = _plan(named, report)
    refuse_remote(map(input_of, plan.input.places), local_only=local_only)
    source = _same_input(named, plan, outputs)
    check = _Check.of(named, plan, source, outputs)
    windows = list(check.windows(samples, seed))
    found = []
    progress.start(outputs.stem, sum(window.pixels for window in windows), 0)
    try:
        with gdal_cache(cache_size_mb(source.info)):
            for window in windows:
                found.append(check.sample(window))
                progress.advance(window.pixels)
    finally:
        progress.stop()
    return Verification(
        run=str(named),
        exact=plan.cut.exact,
        precision=plan.kernel.precision,
        seed=seed,
        samples=tuple(found),
        notes=check.notes,
    )


def _plan(named: Path, report: dict[str, Any]) -> Plan:
    try:
        return Plan.model_validate(report["plan"])
    except (KeyError, ValidationError) as error:
        raise InputError(
            "report-without-plan", "{path}: holds no plan of this version of fcn-batch; make the map again", path=named
        ) from error


def _same_input(named: Path, plan: Plan, outputs: Outputs) -> RasterSource:
    """The raster of the run, where it was or beside the outputs; InputError when it is another one by now."""
    source = _found(named, plan.input, outputs.folder)
    before, now = set(plan.input.files), set(identify(source.info, hashed=plan.input.hashed).files)
    if before == now:
        return source
    name = min(file.name for file in before ^ now)
    was, found = (next((f for f in files if f.name == name), None) for files in (before - now, now - before))
    raise InputError(
        "input-changed",
        "{path}: not the raster that {report} was made from: {file} was {before}, is {now}; put the old one back{time} "
        "or make the map again",
        path=source.info.path,
        report=named.name,
        file=name,
        before=_described(was),
        now=_described(found),
        time="" if plan.input.hashed else " (with its time)",
    )


def _found(named: Path, wanted: InputIdentity, folder: Path) -> RasterSource:
    """Where it was, or in `folder`."""
    if not all(isinstance(place, Url) or place.exists() for place in map(input_of, wanted.places)):
        beside = [file.model_copy(update={"path": str(folder / Path(file.path).name)}) for file in wanted.sources]
        wanted = wanted.model_copy(update={"sources": tuple(beside)})
        if not beside or not all(Path(file.path).exists() for file in beside):
            raise InputError(
                "input-missing",
                "{report}: was made from {path}, which is not there; put it back, or beside the outputs",
                report=named,
                path=wanted.path,
            )
    return source_of(wanted)


def _described(file: FileIdentity | None) -> str:
    if file is None:
        return "not there"
    if file.modified_ns is None:
        return f"{file.bytes:,} bytes of SHA-256 {file.sha256}"
    return f"{file.bytes:,} bytes of {datetime.fromtimestamp(file.modified_ns / 1e9, UTC).isoformat(' ', 'seconds')}"


@dataclass(frozen=True, slots=True)
class _Check:
    """Everything that it takes to compute a window again."""

    plan: Plan
    source: RasterSource
    map: ClassMap
    network: Tiles
    ids: NDArray[np.uint8]
    """Class id of every score channel."""
    margin: int
    """Pixels to see around a window."""
    rounding: float
    """Scores closer than this share of the largest one are a tie."""
    notes: list[str]

    @classmethod
    def of(cls, named: Path, plan: Plan, source: RasterSource, outputs: Outputs) -> "_Check":
        made, cut, kernel = open_map(outputs.folder / outputs.store), plan.cut, plan.kernel
        if made.size != plan.input.size:
            raise IntegrityError(
                "size-mismatch",
                "{path}: {size}, but the plan has {expected}; make the map again",
                path=outputs.folder / outputs.store,
                size=made.size,
                expected=plan.input.size,
            )
        device = _device(named, plan)
        model, network = load_model(Path(plan.model.path))
        if model.sha256 != plan.model.sha256:
            raise ModelError(
                "model-changed",
                "{path}: sha256 is {found}…, but {report} was made with {expected}…; put that model back, or make the "
                "map again",
                path=model.path,
                found=model.sha256[:12],
                report=named.name,
                expected=plan.model.sha256[:12],
            )
        graph = None if kernel.precision == "fp32" else graph_for(model.card, network)[0]
        scaling = Scaling(plan.scaled(model.card.input), device)
        halo = cut.overlap if cut.exact else cut.tile if model.card.halo is None else model.card.halo
        margin = 2 * round_up(halo, cut.stride)
        tiles = make_tiles(network, graph, scaling, kernel.precision, (cut.stride, _SIDE + 2 * margin, False))
        on_gpu = "cuda" in (kernel.device, torch_kind(device))
        return cls(
            plan=plan,
            source=source,
            map=made,
            network=tiles,
            ids=np.array(model.card.legend.ids, dtype=np.uint8),
            margin=margin,
            # there, float32 is multiplied with as many bits as fp16 has
            rounding=_ROUNDING["fp16" if on_gpu and kernel.precision == "fp32" else kernel.precision],
            notes=_notes(plan, device),
        )

    def windows(self, count: int, seed: int) -> Iterator[Window]:
        """`count` windows with data, if so many are found; else others too."""
        empty, found = [], 0
        for window in _places(self.plan.input.size, count * _LOOKS, seed):
            if found == count:
                return
            valid = self.source.read(window, self.plan.bands).valid
            if (self.map.read(window) == NODATA).all() and not self._wanted(window, valid).any():
                empty.append(window)
                continue
            found += 1
            yield window
        yield from empty[: count - found]

    def sample(self, window: Window) -> Sample:
        """Compute `window` again and compare."""
        stride, size = self.plan.cut.stride, self.plan.input.size
        core = window.aligned(stride)
        core = Window(core.row, core.col, round_up(core.height, stride), round_up(core.width, stride))
        read = core.padded(self.margin).clipped(size)
        pixels = self.source.read(read, self.plan.bands)
        here = window.slices(read)
        try:
            scores = self.network.scores(pixels.values, pixels.valid)[(slice(None), *here)]
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            raise OptionError(
                "memory-short",
                "out of memory with a window of {rows} x {cols} px, halo included; verify on a machine with more",
                rows=read.height,
                cols=read.width,
            ) from error
        return self._compared(window, scores, self._wanted(window, pixels.valid[here]))

    def _wanted(self, window: Window, valid: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Which of a window's pixels have a class."""
        wanted = within(self.plan.areas, window)
        return valid if wanted is None else valid & wanted

    def _compared(self, window: Window, scores: NDArray[np.float32], valid: NDArray[np.bool_]) -> Sample:
        labels = self.map.read(window)
        wanted: Ids = self.ids[scores.argmax(axis=0)]
        wanted[~valid] = NODATA
        differ = labels != wanted
        channel_of = np.full(NODATA + 1, -1)
        channel_of[self.ids] = np.arange(len(self.ids))
        channel = channel_of[labels]
        given = np.take_along_axis(scores, channel[None].clip(0), axis=0)[0]
        near = scores.max(axis=0) - given <= self.rounding * np.abs(scores).max()
        ties = differ & near & valid & (channel >= 0)
        return Sample(
            window.row,
            window.col,
            window.height,
            window.width,
            compared=int((valid | (labels != NODATA)).sum()),
            differ=int(differ.sum()),
            ties=int(ties.sum()),
        )


def _places(size: Size, most: int, seed: int) -> Iterator[Window]:
    """At most `most` windows in a random order, none of which overlap.

    They form a grid that begins at a random corner, so that they lie across the borders of blocks and tiles::

        +--+------+------+---+
        |  |      |      |   |      windows at the raster's edges are what is left there
        +--+------+------+---+
    """
    random = np.random.default_rng(seed)
    up, left = (int(random.integers(_SIDE)) if length > _SIDE else 0 for length in (size.height, size.width))
    rows, cols = range(-up, size.height, _SIDE), range(-left, size.width, _SIDE)
    count = len(rows) * len(cols)
    for index in random.choice(count, min(count, most), replace=False).tolist():
        row, col = divmod(index, len(cols))
        yield Window(rows[row], cols[col], _SIDE, _SIDE).clipped(size)


def _device(named: Path, plan: Plan) -> str:
    """The device to use: a CPU for what a CPU made, else the best one here."""
    device = choose_device("cpu" if plan.kernel.device == "cpu" else "auto")
    try:
        check_precision(plan.kernel.precision, device)
    except OptionError as error:
        raise OptionError(
            "precision-unsupported",
            "{path}: made in {precision} on {machine}, which {device} here cannot compute; verify it on such a device",
            path=named,
            precision=plan.kernel.precision,
            machine=plan.kernel.instructions,
            device=device,
        ) from error
    return device


def _notes(plan: Plan, device: str) -> list[str]:
    """What may round otherwise here than it did in the run."""
    kernel = plan.kernel
    pairs = [
        ("device", f"{kernel.device}, {kernel.instructions}", f"{torch_kind(device)}, {describe_device(device)}"),
        ("torch", kernel.torch, torch_version()),
    ]
    return [
        f"{name}: the map was made with {then}, verified with {now}: labels may differ where two scores tie"
        for name, then, now in pairs
        if then != now
    ]
