"""A run's job, opened once in every process that works on it: model, raster, store and journal of a staging folder."""

import threading
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fcn_batch.pipeline.core.claims import Claims
from fcn_batch.pipeline.core.errors import MismatchError
from fcn_batch.pipeline.core.geometry import Window, round_up
from fcn_batch.pipeline.core.journal import Journal
from fcn_batch.pipeline.core.model_card import ModelCard
from fcn_batch.pipeline.core.plan import Plan
from fcn_batch.pipeline.core.source import RasterInfo, cache_needed
from fcn_batch.pipeline.core.tolerance import FAIL, OnError, TolerantSource
from fcn_batch.pipeline.network.capture import graph_for
from fcn_batch.pipeline.network.confidence import PLANES
from fcn_batch.pipeline.network.device import keep_pages, set_threads
from fcn_batch.pipeline.network.predictor import Scaling, Strips, Tiles, make_tiles
from fcn_batch.pipeline.network.weights import load_model
from fcn_batch.pipeline.raster.clip import within
from fcn_batch.pipeline.raster.gdal import gdal_cache
from fcn_batch.workflows.blocks.commit import Committer
from fcn_batch.workflows.blocks.kernel import kernel_here
from fcn_batch.workflows.blocks.reading import slab_rows
from fcn_batch.workflows.inputs.sources import source_of

_SMALL_CACHE_MB = 64
_WARPING_CACHE_MB = 256
_LARGE_CACHE_MB = 1024


@dataclass(frozen=True, slots=True)
class JobTicket:
    """What a worker needs to open a job: a few strings, cheap to send with every task."""

    staging: str
    """The staging folder, on a file system that all workers see."""
    store: str
    """Name of the store in it."""
    fingerprint: str
    device: str
    confidence: str | None = None
    """Name of the store of confidences in it; None when the plan wants none."""
    on_error: OnError = FAIL
    """What to do about pixels that cannot be read."""
    allow_mixed: bool = False
    """True: a device or library may differ from the plan's."""
    ahead: int = 1
    """Slabs of rows that are read at once."""


@dataclass(slots=True)
class Job:
    """A plan with everything open that it needs, once per process."""

    plan: Plan
    card: ModelCard
    source: TolerantSource
    network: Strips | Tiles
    """Strips may become lower during a run, when memory is short."""
    journal: Journal
    claims: Claims
    committer: Committer
    settings: ExitStack
    """Holds GDAL's block cache at the size this job needs, from its first block to its last."""
    device: str
    ahead: int
    lock: threading.Lock
    """One pass at a time: the network takes all threads, and the memory, that the plan gives it."""

    def wanted(self, window: Window) -> NDArray[np.bool_] | None:
        """Which pixels of a window belong to what a map is wanted of; None: all."""
        return within(self.plan.areas, window)

    @property
    def layers(self) -> int:
        """Of a block: the classes and, if wanted, how sure they are."""
        return 1 + PLANES if self.plan.confidence else 1


_opening = threading.Lock()
_open: dict[JobTicket, Job] = {}


def open_job(ticket: JobTicket) -> Job:
    """The job of `ticket`, opened once per process however many threads ask; the one before it is dropped."""
    with _opening:
        if ticket not in _open:
            _drop()
            _open[ticket] = _opened(ticket)
        return _open[ticket]


def close_job() -> None:
    """Drop what this process has open; files close when the last thread that reads them is done."""
    with _opening:
        _drop()


def _drop() -> None:
    while _open:
        _open.popitem()[1].settings.close()


def _opened(ticket: JobTicket) -> Job:
    journal = Journal(Path(ticket.staging))
    plan = journal.plan()
    if plan.fingerprint != ticket.fingerprint:
        raise MismatchError(
            "staging-taken",
            "{path}: another run took this folder over; this worker's part of the old one is dropped",
            path=ticket.staging,
        )
    mixed = _mixed(plan, ticket)
    keep_pages()
    set_threads(plan.kernel.threads)
    card, network = _ready_network(plan, ticket.device)
    policy = ticket.on_error
    source = TolerantSource(source_of(plan.input), policy)
    job = Job(
        plan=plan,
        card=card,
        source=source,
        network=network,
        journal=journal,
        claims=journal.claims,
        committer=Committer.of(journal, ticket.store, ticket.confidence, mixed),
        settings=ExitStack(),
        device=ticket.device,
        ahead=ticket.ahead,
        lock=threading.Lock(),
    )
    job.settings.enter_context(gdal_cache(cache_size_mb(source.info, ticket.ahead)))
    return job


def _mixed(plan: Plan, ticket: JobTicket) -> tuple[str, ...]:
    """How what computes here differs from the plan's kernel; MismatchError when it does and may not.

    A worker may be on another kind of machine than the one that made the plan.
    """
    kernel = plan.kernel
    differences = kernel.differences(kernel_here(ticket.device, kernel.precision, kernel.threads))
    if differences and not ticket.allow_mixed:
        raise MismatchError(
            "machine-differs",
            "{path}: this machine would round otherwise than the run does ({differences}); run on the same kind of "
            "machine, or give --allow-mixed: the classes are the same, except where two are equally likely",
            path=ticket.staging,
            differences="; ".join(differences),
        )
    return tuple(differences)


def _ready_network(plan: Plan, device: str) -> tuple[ModelCard, Strips | Tiles]:
    """The plan's model with its weights on the device, for the plan's way; the weights as loaded are let go."""
    model, network = load_model(Path(plan.model.path), sha256=plan.model.sha256)
    spec = plan.scaled(model.card.input)
    scaling, cut, precision = Scaling(spec, device), plan.cut, plan.kernel.precision
    graph, obstacles = graph_for(model.card, network)
    if cut.way != "stream":
        grid = (cut.stride, cut.tile + (2 * cut.overlap if cut.way == "tiles" else 0), cut.way == "blend")
        return model.card, make_tiles(network, graph, scaling, precision, grid)
    if graph is None:  # the same code made the plan, so another version of a library
        raise MismatchError(
            "model-not-streamable",
            "{path}: cannot be streamed here ({obstacle}), but the plan says so; give --restart",
            path=model.path,
            obstacle=obstacles[0],
        )
    columns = round_up(min(cut.lane + 2 * cut.overlap, plan.input.width), cut.stride)
    return model.card, Strips(graph, scaling, precision, (cut.tile, columns))


def cache_size_mb(info: RasterInfo, ahead: int = 1) -> int:
    """Megabytes of GDAL's block cache: the slabs under way with all bands: bands stored together are decoded so.

    What is warped is read in windows of other sizes, from files that `info` does not tell of.
    """
    if info.resampling is not None or len(info.sources) > 1:
        return _WARPING_CACHE_MB
    needed = ahead * cache_needed(info, slab_rows(info), info.bands)
    return min(max(needed // 2**20 + 1, _SMALL_CACHE_MB), _LARGE_CACHE_MB)
