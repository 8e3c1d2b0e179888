"""The way of one part of a lane, and in it of every strip or tile, from the raster to its receipts.

    plan.grid[index] ...                     which blocks this task owns: one below the other
      -> source.read(slab)                      values and valid mask, in a thread that reads ahead
      -> scaling -> network -> best channel     strip by strip (or tile by tile), on the device
      -> class ids, 255 where not valid         and the confidence planes, if the plan wants them
      -> block complete: store.write (whole chunks, durable) -> journal.commit(receipt), in a thread of its own

A block is redone from its index alone; everything else is in the staging folder's plan.
"""

import hashlib
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import cycle

import numpy as np
from numpy.typing import NDArray

from fcn_batch.pipeline.confidence import PLANES
from fcn_batch.pipeline.device import is_out_of_memory, set_threads
from fcn_batch.pipeline.errors import OptionError
from fcn_batch.pipeline.geometry import Window
from fcn_batch.pipeline.journal import Receipt
from fcn_batch.pipeline.predictor import Strips
from fcn_batch.pipeline.tiling import Work
from fcn_batch.workflows.blended import blended
from fcn_batch.workflows.job import Job, JobTicket, open_job
from fcn_batch.workflows.passes import Band, Effort, Pass, stream, tiles

OnReceipt = Callable[[Receipt], None]


def run_work(ticket: JobTicket, work: Work, on_receipt: OnReceipt) -> None:
    """Do the blocks of `work` from reading to receipts; `on_receipt` hears of each one as it is durable.

    When memory runs out, the rest is done in strips of half the height: the same classes, but at ties.
    """
    job = open_job(ticket)
    left = list(work)

    def done(receipt: Receipt) -> None:
        left.remove(receipt.block)
        on_receipt(receipt)

    with job.lock:
        set_threads(job.plan.kernel.threads)  # torch keeps the number for each thread of ours
        while left:
            try:
                _run(job, tuple(left), done)
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                job.network = _smaller(job, error)


def _smaller(job: Job, error: RuntimeError) -> Strips:
    """The network for lower strips; OptionError when they cannot be lower."""
    strips, cut = job.network, job.plan.cut
    if isinstance(strips, Strips) and (half := strips.rows // 2 // cut.stride * cut.stride):
        return strips.lower(half)
    raise OptionError(
        f"out of memory on {job.device} with {cut.way} of {cut.tile} px, the least that this plan allows; "
        "give less --memory (so that lanes become narrower) or a smaller --tile, and --restart"
    ) from error


def _run(job: Job, work: Work, on_receipt: OnReceipt) -> None:
    """One pass. While rows are computed, the block before them is written."""
    with ThreadPoolExecutor(1, thread_name_prefix="writing") as writer:
        writing: Future[Receipt] | None = None
        for block in _blocks(job, work):
            if writing is not None:
                on_receipt(writing.result())
            writing = writer.submit(_commit, job, block)
        if writing is not None:
            on_receipt(writing.result())


def _bands(job: Job, part: Window, effort: Effort) -> Iterator[Band]:
    """The classes of a part, by the plan's way."""
    ids = np.array(job.card.legend.ids, dtype=np.uint8)
    work = Pass(job.plan, job.source, ids, job.device, effort)
    if isinstance(job.network, Strips):
        return stream(work, part, job.network)
    blend = job.plan.cut.blend
    return tiles(work, part, job.network) if blend is None else blended(work, part, job.network, blend)


@dataclass(frozen=True, slots=True)
class _Block:
    """A block whose last row is decided. Its array is used again for the block after the next."""

    index: int
    layers: NDArray[np.uint8]
    """(1 or 3, rows, cols): class ids and, if wanted, how sure they are."""
    effort: Effort
    seconds: float


def _blocks(job: Job, work: Work) -> Iterator[_Block]:
    """The blocks of `work`, one after the other."""
    windows = [job.plan.grid[index] for index in work]
    part = Window(windows[0].row, windows[0].col, windows[-1].stop_row - windows[0].row, windows[0].width)
    effort, before, started = Effort(), Effort(), time.perf_counter()
    waiting = iter(zip(work, windows, strict=True))
    index, window = next(waiting)
    # one is filled while the other is written
    count = 1 + PLANES if job.plan.confidence else 1
    buffers = cycle([np.empty((count, window.height, window.width), dtype=np.uint8) for _ in work[:2]])
    layers = next(buffers)
    for band in _bands(job, part, effort):
        row, end = band.row, band.row + len(band.classes)
        while row < end:
            stop = min(end, window.stop_row)
            here, there = slice(row - window.row, stop - window.row), slice(row - band.row, stop - band.row)
            layers[0, here] = band.classes[there]
            if band.planes is not None:
                layers[1:, here] = band.planes[:, there]
            row = stop
            if row == window.stop_row:
                now = time.perf_counter()
                yield _Block(index, layers, effort.since(before), now - started)
                before, started = replace(effort), now
                index, window = next(waiting, (index, window))
                layers = next(buffers)[:, : window.height]


def _commit(job: Job, block: _Block) -> Receipt:
    """Bring a block to the disk, then its receipt."""
    window, classes, planes = job.plan.grid[block.index], block.layers[0], block.layers[1:]
    job.store.write(window, classes)
    if job.confidence is not None:
        job.confidence.write(window, planes)
    by_row = np.stack([np.bincount(row, minlength=256) for row in classes])
    counts = by_row.sum(axis=0)
    present = [int(i) for i in np.flatnonzero(counts)]
    areas = None
    if job.row_areas is not None:
        area = job.row_areas[window.row : window.stop_row] @ by_row
        areas = {i: float(area[i]) for i in present}
    receipt = Receipt(
        plan=job.plan.fingerprint,
        block=block.index,
        sha256=_sha256(block.layers[:1]),
        confidence_sha256=None if job.confidence is None else _sha256(planes),
        shape=(window.height, window.width),
        pixels={i: int(counts[i]) for i in present},
        area_m2=areas,
        tile=job.network.rows if isinstance(job.network, Strips) else job.plan.cut.tile,
        passes=block.effort.passes,
        forwarded=block.effort.forwarded,
        seconds=round(block.seconds, 3),
    )
    job.journal.commit(receipt)
    return receipt


def _sha256(layers: NDArray[np.uint8]) -> str:
    """Of one layer after the other, each row by row: without a copy, though the last block is a part of its buffer."""
    digest = hashlib.sha256()
    for layer in layers:
        digest.update(layer.data)
    return digest.hexdigest()
