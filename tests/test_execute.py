"""Clusters that are not there, go away, or lack the program: one line, the right exit code, and no waiting."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from fcn_batch.pipeline.journal import Receipt
from fcn_batch.workflows import execute as execute_module
from fcn_batch.workflows.steps import JobTicket

BEFORE_THE_HANG = 45
"""A client that could not connect used to hold the process for 60 s."""
TICKET: Any = "a ticket"
_CLUSTER = """
import sys
{prelude}
from distributed import LocalCluster

if __name__ == "__main__":
    with LocalCluster(
        n_workers=1, threads_per_worker=2, host="127.0.0.1", dashboard_address=None, silence_logs=50, {options}
    ) as cluster:
        print(cluster.scheduler_address, flush=True)
        sys.stdin.read()
"""
WITHOUT_PROGRAM = 'sys.modules["fcn_batch"] = None'
ONE_PROCESS = 'processes=False, protocol="tcp://"'


@contextmanager
def cluster_program(
    folder: Path, prelude: str = "", options: str = ONE_PROCESS
) -> Iterator[tuple[str, "subprocess.Popen[str]"]]:
    """A scheduler with one worker in a process of its own, and its address."""
    script = folder / "cluster.py"
    script.write_text(_CLUSTER.format(prelude=prelude, options=options))
    with subprocess.Popen(
        [sys.executable, str(script)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip(), process
        finally:
            process.kill()


def receipt_of(block: int) -> Receipt:
    return Receipt(
        plan="p", block=block, sha256="", shape=(1, 1), pixels={}, area_m2=None, tiles=0, forwarded=0, seconds=0.0
    )


@pytest.fixture
def _easy_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks without pixels, of a function that workers get by value: a test's module is not there to import."""

    def easy(_ticket: JobTicket, block: int) -> Any:
        import time

        time.sleep(0.1)
        return receipt(block)

    receipt: Callable[[int], Any] = local_receipt()
    monkeypatch.setattr(execute_module, "_run_block_afar", easy)


def local_receipt() -> Callable[[int], Any]:
    def receipt(block: int) -> Any:
        from fcn_batch.pipeline.journal import Receipt

        values: dict[str, Any] = {"plan": "p", "block": block, "sha256": "", "shape": (1, 1), "pixels": {}}
        return Receipt(**values, area_m2=None, tiles=0, forwarded=0, seconds=0.0)

    return receipt
