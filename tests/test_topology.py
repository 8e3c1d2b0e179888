"""Cores of this machine, and processes that share them."""

import os
import subprocess
import sys

import psutil
import pytest

from fcn_batch.workflows.processes import topology
from fcn_batch.workflows.processes.topology import available_cpus, count_of, describe_processes
from tests.errors import refuses


@pytest.mark.parametrize(
    ("logical", "physical", "allowed", "quota", "cores"),
    [
        (8, 8, 8, 8, 8),
        (8, 4, 8, 8, 4),  # two threads of a core
        (8, 4, 2, 2, 1),
        (8, 4, 3, 3, 2),
        (8, 8, 8, 3, 3),  # a container
        (4, None, 4, 4, 4),  # a system that does not tell
        (1, 1, 1, 1, 1),
    ],
)
def test_cores_count_within_affinity_and_quota(
    monkeypatch: pytest.MonkeyPatch, logical: int, physical: int | None, allowed: int, quota: int, cores: int
) -> None:
    monkeypatch.setattr(psutil, "cpu_count", lambda logical=True, both=(logical, physical): both[not logical])
    monkeypatch.setattr(psutil.Process, "cpu_affinity", lambda _self: list(range(allowed)))
    monkeypatch.setattr(topology, "cpu_count", lambda: quota)
    assert available_cpus() == cores
    assert count_of("auto") == -(-cores // 4)


def test_this_machine() -> None:
    code = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
    code += "from fcn_batch.workflows.processes.topology import available_cpus; print(available_cpus())"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout == "1\n"
    assert 1 <= available_cpus() <= len(os.sched_getaffinity(0))


def test_counts_of_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [count_of(text) for text in ("0", "3")] == [0, 3]
    for text in ("some", "-1", "", "1.5"):
        with refuses("workers-invalid", value=text):
            count_of(text)
    monkeypatch.setattr(topology, "available_cpus", lambda: 6)
    assert describe_processes(0, 1) == "this process, 1 thread on 6 cores"
    assert describe_processes(2, 3) == "2 processes x 3 threads on 6 cores"
