"""`segment --cluster` on a real SLURM: jobs become workers, lost ones are replaced, none is left behind (G7, G10)."""

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from fcn_batch.pipeline.core.errors import OptionError
from fcn_batch.workflows.blocks.job import JobTicket
from fcn_batch.workflows.console.progress import Quiet
from fcn_batch.workflows.console.signals import Stop
from fcn_batch.workflows.plan import Options
from fcn_batch.workflows.processes.clusters import read_cluster
from fcn_batch.workflows.processes.execute import execute
from fcn_batch.workflows.processes.workers import Workers
from fcn_batch.workflows.segment import Request, segment
from tests.errors import refuses
from tests.models import save_tiny_model
from tests.runs import class_map, scene, small_blocks, small_segments
from tests.slurm.machine import Slurm, until
from tests.test_jobqueue import client_of

pytestmark = pytest.mark.slurm

CLUSTER = """
kind = "slurm"
workers = {workers}
cores = 1
memory = "1200MB"
walltime = "00:10:00"
interface = "lo"
wait = "{wait}"
{more}
"""


@pytest.fixture(autouse=True)
def _away_from_the_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slurm: Slurm) -> None:
    assert slurm.folder.is_dir()
    monkeypatch.chdir(tmp_path)


def workers(folder: Path, count: int = 1, wait: str = "00:02:00", more: str = "") -> Workers:
    path = folder / "my.toml"
    path.write_text(CLUSTER.format(workers=count, wait=wait, more=more))
    return Workers(cluster=read_cluster(str(path)))


def jobs(slurm: Slurm, *states: str) -> list[str]:
    """Ids of jobs of this cluster in these states."""
    told = slurm.run("squeue", "--noheader", "--name=fcn-batch", "--format=%A", f"--states={','.join(states)}")
    return told.split()


def none_left(slurm: Slurm) -> None:
    until(lambda: not jobs(slurm, "PENDING", "RUNNING", "COMPLETING") or None, 60, lambda: slurm.run("squeue"))


def test_a_run_that_loses_a_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slurm: Slurm) -> None:
    """One of two is cancelled by somebody else while it works; the map is that of a run in this process."""
    small_blocks(monkeypatch)
    small_segments(monkeypatch)
    model = save_tiny_model(tmp_path / "tiny.safetensors", fc_kernel=1)
    inputs, options = (scene(tmp_path / "a.tif", 12000, 250),), Options(model=str(model), threads=1)
    lost: list[str] = []

    class Losing(Quiet):
        def advance(self, amount: int) -> None:
            if not lost and (running := jobs(slurm, "RUNNING")):
                lost.append(running[0])
                slurm.run("scancel", running[0])
            assert amount

    made = list(segment(Request(inputs, options, tmp_path / "jobs", workers(tmp_path, 2)), Losing()))
    assert len(made) == 3
    assert lost
    none_left(slurm)
    assert list((tmp_path / "jobs").glob(".fcn*")) == []
    assert len(list(segment(Request(inputs, options, tmp_path / "alone"), Quiet()))) == 3
    assert (class_map(tmp_path / "jobs", "a") == class_map(tmp_path / "alone", "a")).all()


def test_a_job_that_is_lost_is_replaced(tmp_path: Path, slurm: Slurm) -> None:
    with client_of(workers(tmp_path), tmp_path) as client:
        client.wait_for_workers(1, timeout=60)
        (first,) = jobs(slurm, "RUNNING")
        slurm.run("scancel", first)
        until(lambda: [job for job in jobs(slurm, "RUNNING") if job != first] or None, 90, lambda: slurm.run("squeue"))
        until(lambda: client.nthreads() or None, 60, lambda: slurm.run("squeue"))
    none_left(slurm)


@pytest.fixture
def _full(slurm: Slurm, tmp_path: Path) -> Iterator[None]:
    """A job that has the whole node."""
    words = ["sbatch", "--parsable", "--exclusive", f"--output={tmp_path}/out", "--wrap=exec sleep 600"]
    job = slurm.run(*words).strip()
    slurm.wait(job, "RUNNING")
    yield
    slurm.run("scancel", job)
    slurm.wait(job, "CANCELLED")


@pytest.mark.usefixtures("_full")
@pytest.mark.parametrize("ends", ["time", "signal"])
def test_jobs_that_wait_for_ever(tmp_path: Path, slurm: Slurm, ends: str) -> None:
    stop, ticket = Stop(), JobTicket(str(tmp_path / "a.partial"), "", "", "cpu")

    def once_submitted() -> None:
        until(lambda: jobs(slurm, "PENDING") or None, 60, lambda: slurm.run("squeue"))
        stop.request()

    if ends == "time":
        with refuses("workers-lost", seconds=8):
            execute(ticket, [(0,)], workers(tmp_path, wait="00:00:08"), print, stop)
    else:
        thread = threading.Thread(target=once_submitted)
        thread.start()
        execute(ticket, [(0,)], workers(tmp_path, 2), print, stop)
        thread.join()
    none_left(slurm)


def test_a_partition_that_is_not_there(tmp_path: Path, slurm: Slurm) -> None:
    with (
        pytest.raises(OptionError) as caught,
        client_of(workers(tmp_path, more='queue = "nothing"'), tmp_path),
    ):
        pass
    assert caught.value.code == "job-refused"
    assert "invalid partition" in caught.value.fields["reason"]
    none_left(slurm)


def test_a_driver_that_is_killed_leaves_no_jobs_for_long(tmp_path: Path, slurm: Slurm) -> None:
    """Workers end when their scheduler has gone."""
    workers(tmp_path)
    code = (
        "from pathlib import Path\n"
        "import os, signal\n"
        "from fcn_batch.workflows.processes.clusters import read_cluster\n"
        "from fcn_batch.workflows.processes.crew import kept\n"
        "from fcn_batch.workflows.processes.workers import Workers\n"
        "with kept(Workers(cluster=read_cluster('my.toml'))) as own:\n"
        "    own.crew.client(own, Path()).wait_for_workers(1)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=False, env=os.environ, timeout=100)
    assert jobs(slurm, "RUNNING")
    none_left(slurm)
