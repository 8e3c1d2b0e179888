"""The way of one part of a lane, and in it of every strip or tile, from the raster to its receipts.

    claims.take(block)                       nobody else is at it, and nobody has done it
      -> source.read(slab)                      values and valid mask, in a thread that reads ahead
      -> scaling -> network -> best channel     strip by strip (or tile by tile), on the device
      -> class ids, 255 where not valid         and the confidence planes, if the plan wants them
         or not in the wanted area              a block with nothing of it is not even read
      -> block complete: committer.commit       whole chunks, durable, then the receipt; in a thread of its own
      -> the next block below, in the same pass, if it can be claimed

A block is redone from its index alone; everything else is in the staging folder's plan.
"""

import time
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from functools import partial
from itertools import cycle, takewhile

import numpy as np
from numpy.typing import NDArray

from fcn_batch.pipeline.core.claims import Claim
from fcn_batch.pipeline.core.classes import NODATA
from fcn_batch.pipeline.core.errors import OptionError
from fcn_batch.pipeline.core.geometry import Window
from fcn_batch.pipeline.core.journal import Receipt, claim_of
from fcn_batch.pipeline.core.tiling import Work
from fcn_batch.pipeline.core.validity import OUTSIDE, REASONS, RULES_DIFFER, UNREADABLE, counts, is_valid
from fcn_batch.pipeline.network.device import free_memory, is_out_of_memory, set_threads
from fcn_batch.pipeline.network.predictor import Strips
from fcn_batch.workflows.blocks.blended import blended
from fcn_batch.workflows.blocks.commit import Block
from fcn_batch.workflows.blocks.job import Job, JobTicket, open_job
from fcn_batch.workflows.blocks.passes import Band, Effort, Pass, stream, tiles
from fcn_batch.workflows.console.signals import Stop

OnReceipt = Callable[[Receipt], None]
_SHARE_TO_TAKE = 0.8
"""Of the memory that is free once a job has run out of it."""


def run_work(ticket: JobTicket, work: Work, on_receipt: OnReceipt, stop: Stop, *, leave_out: bool = False) -> None:
    """Do the blocks of `work` that nobody else is at, from reading to receipts; `on_receipt` is called for each one.

    When memory runs out, the rest is done in strips of half the height: the same classes, except where two
    are equally likely. Ends after the block under way when `stop` is requested. With `leave_out` the blocks become no
    data, as ones that cannot be read.
    """
    job = open_job(ticket)
    left = deque(work)
    with job.lock:
        set_threads(job.plan.kernel.threads)  # torch keeps the number for each thread of ours
        while left and not stop.requested:
            claim = job.claims.take(claim_of(left[0]))
            if claim is None:
                left.popleft()
            elif receipt := job.journal.receipt(left[0], ticket.fingerprint):
                left.popleft()
                claim.release()
                on_receipt(receipt)
            elif leave_out or not _matters(job, left[0]):
                on_receipt(_commit(job, _empty(job, left.popleft(), unreadable=leave_out), claim))
            else:
                try:
                    _descend(job, left, claim, on_receipt, stop)
                except (RuntimeError, MemoryError) as error:
                    _need_less_memory(job, error)


def _descend(job: Job, left: deque[int], claim: Claim, on_receipt: OnReceipt, stop: Stop) -> None:
    """One pass from the first of `left`, which is claimed, to where it is stopped or another run is at work.

    While rows are computed, the block before them is written. Blocks that are decided leave `left`.
    """
    current: Claim | None = claim
    with (
        ThreadPoolExecutor(1, thread_name_prefix="writing") as writer,
        closing(_blocks(job, tuple(takewhile(partial(_matters, job), left)), stop)) as blocks,
    ):
        writing: Future[Receipt] | None = None
        try:
            for block in blocks:
                if writing is not None:
                    on_receipt(writing.result())
                assert current is not None, "claimed before it was begun"
                writing, current = writer.submit(_commit, job, block, current), None
                left.popleft()
                current = _claim_below(job, left) if not stop.requested else None
                if current is None:
                    break
            if writing is not None:
                on_receipt(writing.result())
        finally:
            if current is not None:
                current.release()


def _claim_below(job: Job, left: deque[int]) -> Claim | None:
    """The claim to go on with; None when the pass must end here."""
    claim = job.claims.take(claim_of(left[0])) if left else None
    if claim is not None and job.journal.receipt(left[0], job.plan.fingerprint):
        claim.release()
        return None
    return claim


def _commit(job: Job, block: Block, claim: Claim) -> Receipt:
    try:
        return job.committer.commit(block)
    finally:
        claim.release()


def _matters(job: Job, index: int) -> bool:
    """Whether anything of a block is wanted."""
    wanted = job.wanted(job.plan.grid[index])
    return wanted is None or bool(wanted.any())


def _empty(job: Job, index: int, *, unreadable: bool) -> Block:
    """Return a block without data, which nothing was read for."""
    window = job.plan.grid[index]
    layers = np.full((job.layers, window.height, window.width), NODATA, dtype=np.uint8)
    missing = {REASONS[UNREADABLE if unreadable else OUTSIDE]: window.pixels}
    return Block(index, layers, job.plan.cut.tile, unreadable=(window,) if unreadable else (), missing=missing)


def _need_less_memory(job: Job, error: RuntimeError | MemoryError) -> None:
    """Give the job a network for lower strips, if memory ran out; OptionError when they cannot be lower."""
    if not is_out_of_memory(error):
        raise error
    strips, cut = job.network, job.plan.cut
    if isinstance(strips, Strips) and (half := strips.rows // 2 // cut.stride * cut.stride):
        job.network = strips.lower(half)
        return
    remedy = f"--memory {int(free_memory(job.device) * _SHARE_TO_TAKE) // 10**6}MB, so that lanes become narrower,"
    if cut.way != "stream":
        remedy = f"--tile {max(cut.tile // 2 // cut.stride, 1) * cut.stride}"
    raise OptionError(
        "memory-short",
        "out of memory on {device} with {way} of {tile} px in lanes of {lane} px, the least that this plan allows; "
        "give {remedy} and --restart",
        device=job.device,
        way=cut.way,
        tile=cut.tile,
        lane=cut.lane,
        remedy=remedy,
    ) from error


def _bands(job: Job, part: Window, effort: Effort) -> Iterator[Band]:
    """The classes of a part, by the plan's way."""
    ids = np.array(job.card.legend.ids, dtype=np.uint8)
    work = Pass(job.plan, job.source, ids, job.device, effort, job.ahead, job.card.probabilities)
    if isinstance(job.network, Strips):
        return stream(work, part, job.network)
    blend = job.plan.cut.blend
    return tiles(work, part, job.network) if blend is None else blended(work, part, job.network, blend)


def _blocks(job: Job, work: Work, stop: Stop) -> Generator[Block, None, None]:
    """The blocks of `work`, one after the other. The array of one is used again for the one after the next."""
    windows = [job.plan.grid[index] for index in work]
    part = Window(windows[0].row, windows[0].col, windows[-1].stop_row - windows[0].row, windows[0].width)
    effort, before, started = Effort(), Effort(), time.perf_counter()
    waiting = iter(zip(work, windows, strict=True))
    index, window = next(waiting)
    # one is filled while the other is written
    buffers = cycle([np.empty((job.layers, window.height, window.width), dtype=np.uint8) for _ in work[:2]])
    layers = next(buffers)
    why = np.empty(layers.shape[1:], np.uint8)
    for band in _bands(job, part, effort):
        stop.check()
        row, end = band.row, band.row + len(band.classes)
        while row < end:
            until = min(end, window.stop_row)
            here, there = slice(row - window.row, until - window.row), slice(row - band.row, until - band.row)
            layers[0, here], why[here] = band.classes[there], band.why[there]
            if band.planes is not None:
                layers[1:, here] = band.planes[:, there]
            row = until
            if row == window.stop_row:
                now = time.perf_counter()
                missing = why[: window.height]
                yield _decided(job, index, layers, missing, effort.since(before), now - started)
                before, started = replace(effort), now
                index, window = next(waiting, (index, window))
                layers = next(buffers)[:, : window.height]


def _decided(
    job: Job, index: int, layers: NDArray[np.uint8], why: NDArray[np.uint8], effort: Effort, seconds: float
) -> Block:
    cut, window = job.plan.cut, job.plan.grid[index]
    seen = window.padded(cut.tile if cut.way == "blend" else cut.overlap).clipped(job.plan.input.size)
    tile = job.network.rows if isinstance(job.network, Strips) else cut.tile
    if (wanted := job.wanted(window)) is not None:
        layers[:, ~wanted] = NODATA
        why[~wanted & is_valid(why)] |= OUTSIDE
    return Block(
        index,
        layers,
        tile,
        effort.passes,
        effort.forwarded,
        seconds,
        job.source.unreadable(seen),
        counts(why),
        int(np.count_nonzero(why & RULES_DIFFER)),
    )
