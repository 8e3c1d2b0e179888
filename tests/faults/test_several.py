"""Several runs of one job at once, killed, stopped and on several machines: the same bytes, no block lost (G9).

The short form of `python -m tests.faults several`.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults.several import KINDS
from tests.patience import PATIENCE_S


@pytest.mark.faults
def test_several_runs_at_once() -> None:
    command = [sys.executable, "-m", "tests.faults.several", "1"]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=PATIENCE_S,
        cwd=Path(__file__).parents[2], env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [line for line in done.stdout.splitlines() if line.startswith(tuple(KINDS))]
    assert len(rows) == len(KINDS)
