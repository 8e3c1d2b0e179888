"""Run segments on Dask: inside this process by default, or on worker processes (`cluster.py`).

A task is the wanted blocks of one segment (minutes to hours of work). The plan, the model and the pixels are read and
written by whoever does it; what comes back is a receipt for every finished block, as it is finished.
"""

from collections import deque
from collections.abc import Sequence

from fcn_batch.pipeline.core.tiling import Work
from fcn_batch.workflows.blocks.job import JobTicket, close_job
from fcn_batch.workflows.blocks.steps import OnReceipt, run_work
from fcn_batch.workflows.console.signals import Stop
from fcn_batch.workflows.processes.cluster import on_workers
from fcn_batch.workflows.processes.workers import Workers


def execute(ticket: JobTicket, works: Sequence[Work], workers: Workers, on_receipt: OnReceipt, stop: Stop) -> None:
    """Do `works`; `on_receipt` is called in this thread as each block is finished, in any order, perhaps twice.

    Blocks that other runs are at are left to them. When `stop` is requested, blocks under way are finished. The first
    error of a block is raised here; on other processes, segments that are under way go on to their end.
    """
    if not works:
        return
    if workers.elsewhere:
        on_workers(ticket, works, workers, on_receipt, stop)
        return
    from dask.base import compute
    from dask.delayed import delayed

    waiting = deque(works)

    def run_next() -> None:
        # dask runs independent tasks in an order of its own
        run_work(ticket, waiting.popleft(), on_receipt, stop)

    tasks = [delayed(run_next, pure=False)() for _ in works]
    try:
        compute(*tasks, scheduler="synchronous", optimize_graph=False)
    finally:
        close_job()
