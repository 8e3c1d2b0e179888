"""The way of one block, and in it of every tile, from the raster to its receipt.

    plan.grid[index]                        which pixels this task owns
      -> source.read(block + what tiles see)   values and valid mask, no lock: overlaps with computing
      -> for each tile: normalise -> predictor -> class channel       under the device's lock
      -> class ids, 255 where not valid
      -> store.write (whole chunks, durable) -> journal.commit(receipt)

A block is redone from its index alone; everything else is in the staging folder's plan.
"""

import hashlib
import threading
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fcn_batch.pipeline.blending import Blend, axis_weights
from fcn_batch.pipeline.classes import NODATA
from fcn_batch.pipeline.crs import row_areas_m2
from fcn_batch.pipeline.errors import MismatchError
from fcn_batch.pipeline.gdal import gdal_cache
from fcn_batch.pipeline.geometry import Window, round_up
from fcn_batch.pipeline.journal import Journal, Receipt
from fcn_batch.pipeline.model_card import ModelCard
from fcn_batch.pipeline.normalise import normalise
from fcn_batch.pipeline.plan import Plan
from fcn_batch.pipeline.predictor import Predictor, TorchPredictor, set_threads
from fcn_batch.pipeline.raster import Pixels, RasterInfo, RasterioSource, RasterSource, cache_needed
from fcn_batch.pipeline.store import ClassStore
from fcn_batch.pipeline.tiling import Axis, exact_tiles
from fcn_batch.pipeline.weights import load_model

_SMALL_CACHE_MB = 128
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


@dataclass(frozen=True, slots=True)
class Job:
    """A plan with everything open that it needs, once per process."""

    plan: Plan
    card: ModelCard
    source: RasterSource
    predictor: Predictor
    store: ClassStore
    journal: Journal
    row_areas: NDArray[np.float64] | None
    settings: ExitStack
    """Holds GDAL's block cache at the size this job needs, from its first block to its last."""
    device_lock: threading.Lock


@dataclass(slots=True)
class Effort:
    """What the network did for one block."""

    tiles: int = 0
    forwarded: int = 0

    def count(self, read: Window, stride: int) -> None:
        """One more pass, over `read` padded to the stride."""
        self.tiles += 1
        self.forwarded += round_up(read.height, stride) * round_up(read.width, stride)


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
            f"{ticket.staging}: another run took this folder over; this worker's part of the old one is dropped"
        )
    model, network = load_model(Path(plan.model.path), sha256=plan.model.sha256)
    source = RasterioSource(plan.input.path)
    job = Job(
        plan=plan,
        card=model.card,
        source=source,
        predictor=TorchPredictor(network, ticket.device),
        store=ClassStore(journal.folder / ticket.store),
        journal=journal,
        row_areas=row_areas_m2(plan.input.georeference, plan.input.size),
        settings=ExitStack(),
        device_lock=threading.Lock(),
    )
    job.settings.enter_context(gdal_cache(cache_size_mb(source.info, plan)))
    return job


def run_block(ticket: JobTicket, index: int) -> Receipt:
    """Do block `index` from reading to receipt."""
    started = time.perf_counter()
    job = open_job(ticket)
    block = job.plan.grid[index]
    read = tiles_window(job.plan, block)
    pixels = job.source.read(read, job.plan.bands)
    valid = pixels.valid[block.slices(read)]
    effort = Effort()
    classes = np.full((block.height, block.width), NODATA, dtype=np.uint8)
    if valid.any():
        with job.device_lock:
            set_threads(job.plan.kernel.threads)  # torch keeps the number for each thread of ours
            channels = classify(job, block, read, pixels, effort)
        ids = np.array(job.card.legend.ids, dtype=np.uint8)
        np.copyto(classes, ids[channels], where=valid)
    job.store.write(block, classes)
    receipt = _receipt(job, index, block, classes, effort, started)
    job.journal.commit(receipt)
    return receipt


def tiles_window(plan: Plan, block: Window) -> Window:
    """Everything that the tiles of `block` see, inside the raster."""
    size, cut = plan.input.size, plan.cut
    if cut.exact:
        return block.padded(cut.overlap).clipped(size)
    rows, cols = blend_axes(plan)
    touching_rows = rows.touching(block.row, block.stop_row)
    touching_cols = cols.touching(block.col, block.stop_col)
    top, left = rows.span(touching_rows[0])[0], cols.span(touching_cols[0])[0]
    bottom, right = rows.span(touching_rows[-1])[1], cols.span(touching_cols[-1])[1]
    return Window(top, left, bottom - top, right - left)


def cache_size_mb(info: RasterInfo, plan: Plan) -> int:
    """Megabytes of block cache that reading block after block, row after row, needs.

    A striped file is decoded over its whole width for every block, so a row of blocks has to fit; of a tiled one
    only what neighbouring blocks share.
    """
    striped = info.storage_block[1] == info.size.width
    rows = plan.cut.block + 2 * (plan.cut.overlap if plan.cut.exact else plan.cut.tile)
    needed = cache_needed(info, min(rows, info.size.height), info.bands) if striped else 0
    return min(max(needed // 2**20 + 1, _SMALL_CACHE_MB), _LARGE_CACHE_MB)


def blend_axes(plan: Plan) -> tuple[Axis, Axis]:
    """The overlapping tiles along rows and along columns, one grid for the whole raster."""
    size, cut = plan.input.size, plan.cut
    return Axis(size.height, cut.tile, cut.overlap), Axis(size.width, cut.tile, cut.overlap)


def classify(job: Job, block: Window, read: Window, pixels: Pixels, effort: Effort) -> NDArray[np.uint8]:
    """Best score channel of every pixel of `block`, (rows, cols); meaningless where not valid."""
    blend = job.plan.cut.blend
    if blend is None:
        return _classify_exact(job, block, read, pixels, effort)
    return _classify_blended(job, block, read, pixels, effort, blend)


def _classify_exact(job: Job, block: Window, read: Window, pixels: Pixels, effort: Effort) -> NDArray[np.uint8]:
    """Every pixel from the one tile that saw all of its context: nothing to blend."""
    cut = job.plan.cut
    channels = np.zeros((block.height, block.width), dtype=np.uint8)
    for tile in exact_tiles(job.plan.input.size, block, cut.tile, cut.overlap):
        if not pixels.valid[tile.core.slices(read)].any():
            continue
        image = _normalised(job, pixels, tile.read, read)
        channels[tile.core.slices(block)] = job.predictor.channels(image, tile.core.slices(tile.read))
        effort.count(tile.read, cut.stride)
    return channels


def _classify_blended(
    job: Job, block: Window, read: Window, pixels: Pixels, effort: Effort, blend: Blend
) -> NDArray[np.uint8]:
    """Weighted sums of overlapping tiles, one row of tiles at a time.

    Tiles are summed in the order of the grid whatever block asks, so a pixel's score has the same bits in every
    block; only one row of tiles is in memory, and the rows it shares with the next are carried over.
    """
    rows, cols = blend_axes(job.plan)
    channels = np.zeros((block.height, block.width), dtype=np.uint8)
    carried = np.zeros((len(job.card.legend), 0, block.width), dtype=np.float32)
    for index in rows.touching(block.row, block.stop_row):
        start, stop = rows.span(index)
        band = Window(start, block.col, stop - start, block.width).intersection(block)
        sums = np.zeros((len(job.card.legend), band.height, band.width), dtype=np.float32)
        sums[:, : carried.shape[1]] = carried
        for col_index in cols.touching(block.col, block.stop_col):
            left, right = cols.span(col_index)
            tile = Window(start, left, stop - start, right - left)
            if not pixels.valid[tile.slices(read)].any():
                continue
            scores = job.predictor.scores(_normalised(job, pixels, tile, read))
            weights = np.outer(axis_weights(rows, index, blend), axis_weights(cols, col_index, blend))
            part = tile.intersection(band)
            here = part.slices(tile)
            sums[(slice(None), *part.slices(band))] += scores[(slice(None), *here)] * weights[here].astype(np.float32)
            effort.count(tile, job.plan.cut.stride)
        last = index == rows.count - 1
        done = band.stop_row if last else min(rows.span(index + 1)[0], band.stop_row)
        finished = max(done - band.row, 0)
        into = slice(band.row - block.row, band.row - block.row + finished)
        channels[into] = sums[:, :finished].argmax(axis=0)
        carried = sums[:, finished:]
    return channels


def _normalised(job: Job, pixels: Pixels, window: Window, read: Window) -> NDArray[np.floating]:
    spec = job.card.input.model_copy(update={"full_scale": job.plan.full_scale})
    here = window.slices(read)
    return normalise(pixels.values[(slice(None), *here)], pixels.valid[here], spec)


def _receipt(
    job: Job, index: int, block: Window, classes: NDArray[np.uint8], effort: Effort, started: float
) -> Receipt:
    by_row = np.stack([np.bincount(row, minlength=256) for row in classes])
    counts = by_row.sum(axis=0)
    present = [int(i) for i in np.flatnonzero(counts)]
    areas = None
    if job.row_areas is not None:
        area = job.row_areas[block.row : block.stop_row] @ by_row
        areas = {i: float(area[i]) for i in present}
    return Receipt(
        plan=job.plan.fingerprint,
        block=index,
        sha256=hashlib.sha256(classes.tobytes()).hexdigest(),
        shape=(block.height, block.width),
        pixels={i: int(counts[i]) for i in present},
        area_m2=areas,
        tiles=effort.tiles,
        forwarded=effort.forwarded,
        seconds=round(time.perf_counter() - started, 3),
    )
