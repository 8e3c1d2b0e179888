"""Jobs as workers: what a cluster's file may say, the scripts that are submitted, and real jobs of a stand-in."""

import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import dask
import dask_jobqueue
import psutil
import pytest
from distributed import Client

from fcn_batch.pipeline.core.errors import OptionError
from fcn_batch.workflows.blocks.cut import Room, choose_cut
from fcn_batch.workflows.blocks.job import JobTicket
from fcn_batch.workflows.console.progress import Quiet
from fcn_batch.workflows.console.signals import Stop
from fcn_batch.workflows.plan import Options, prepare
from fcn_batch.workflows.processes import workers as workers_module
from fcn_batch.workflows.processes.clusters import ClusterFile, read_cluster
from fcn_batch.workflows.processes.crew import job_settings, kept
from fcn_batch.workflows.processes.execute import execute
from fcn_batch.workflows.processes.workers import Workers, check_installed
from fcn_batch.workflows.segment import Request, segment
from tests.errors import refused, refuses
from tests.models import save_tiny_model
from tests.patience import PATIENCE_S
from tests.runs import class_map, fcn_batch, scene, small_blocks, small_segments

SPEC: dict[str, Any] = {
    "kind": "slurm",
    "workers": 2,
    "cores": 1,
    "memory": "4GB",
    "walltime": "00:30:00",
    "wait": "00:02:00",
}


@contextmanager
def client_of(workers: Workers, folder: Path) -> Iterator[Client]:
    """Of workers that are kept as long."""
    with kept(workers) as own:
        assert own.crew is not None
        yield own.crew.client(own, folder)


class Notes(Quiet):
    """Shows nothing, and keeps what it is told."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


# --- files ---------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _here(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Schedulers listen on loopback; nothing is remembered of what is installed."""
    monkeypatch.setattr("distributed.utils.get_ip", lambda: "127.0.0.1")
    check_installed.cache_clear()
    yield
    check_installed.cache_clear()


@pytest.mark.parametrize("name", ["slurm", "pbs", "cuda"])
def test_the_shipped_files(name: str) -> None:
    spec = read_cluster(name)
    assert spec.kind == name
    if name != "cuda":
        assert spec.memory == 16 * 10**9
        assert spec.lifetime == (7200 - 300 - 150, 150)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("kind = 'slurm'\ncroes = 3", ["croes", "cores"]),
        ("kind = 'lsf'", ["kind", "'lsf'", "slurm"]),
        ("workers = 3", ["kind"]),
        ("kind = 'pbs'\nworkers = 2\ncores = 2\nmemory = '4GB'", ["walltime", "pbs"]),
        ("kind = 'slurm'\nmemory = '4'", ["memory", "'4'", "4GB"]),
        ("kind = 'slurm'\nwalltime = '90'", ["walltime", "'90'", "HH:MM:SS"]),
        ("kind = 'slurm'\nworkers = 0", ["workers", "0"]),
        ("kind = 'slurm'\nqueue = 'a b'", ["queue", "'a b'"]),
        ('kind = "slurm"\ndirectives = ["-x\\nrm"]', ["directives.0", r"'-x\nrm'"]),
        ("kind = 'slurm'\nworkers = 1\ncores = 1\nmemory = '1GB'\nwalltime = '00:01:59'", ["walltime", "119", "120"]),
        ("kind = 'slurm'\nworkers=1\ncores=1\nmemory='1GB'\nwalltime='01:00:00'\nresources='x'", ["resources", "'x'"]),
        ("kind = 'cuda'\ncores = 3", ["cores", "cuda"]),
        ("kind = ", ["TOML"]),
        (None, ["No such file"]),
    ],
)
def test_what_is_wrong_with_a_file(tmp_path: Path, text: str | None, words: list[str]) -> None:
    path = tmp_path / "my.toml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(OptionError) as caught:
        read_cluster(str(path))
    assert (caught.value.code, caught.value.fields["path"]) == ("cluster-invalid", path)
    assert [word for word in words if word not in caught.value.fields["problem"]] == []


@pytest.mark.parametrize("name", ["slrum", "lsf", "../clusters/slurm", "", "Slurm"])
def test_names_of_no_cluster(name: str) -> None:
    with refuses("cluster-unknown", name=name, known="cuda, pbs, slurm"):
        read_cluster(name)


# --- what must be there --------------------------------------------------------------------------------------


def test_what_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers_module, "cuda_devices", lambda: 0)
    with refuses("cuda-missing"):
        Workers(cluster=ClusterFile(kind="cuda"))
    monkeypatch.setenv("PATH", str(tmp_path))
    for kind, program in (("slurm", "sbatch"), ("pbs", "qsub")):
        with refuses("program-missing", kind=kind, program=program):
            Workers(cluster=ClusterFile(**{**SPEC, "kind": kind}))
    monkeypatch.setattr(workers_module, "find_spec", lambda _: None)
    with refuses("extra-missing", package="dask_jobqueue", extra="jobqueue"):
        Workers(cluster=ClusterFile(**SPEC))
    check_installed.cache_clear()
    monkeypatch.setattr(workers_module, "cuda_devices", lambda: 2)
    result = fcn_batch("segment", scene(tmp_path / "a.tif", 20, 20), "--cluster", "cuda")
    refused(result, "extra-missing", package="dask_cuda", extra="cuda")
    assert [path.name for path in tmp_path.iterdir()] == ["a.tif"]


def test_each_gpu_has_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers_module, "cuda_devices", lambda: 3)
    monkeypatch.setattr(workers_module, "find_spec", lambda _: object())
    assert Workers(cluster=ClusterFile(kind="cuda")).processes == 3
    assert Workers(2, cluster=ClusterFile(kind="cuda")).processes == 2


def test_what_a_cluster_has_goes_into_the_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, programs: Path) -> None:
    """Not what this machine has: threads and memory are those of a job, and there are segments for all jobs."""
    assert programs.is_dir()
    rooms: list[Room] = []

    def noted(*arguments: Any) -> Any:
        rooms.append(arguments[3])
        return choose_cut(*arguments)

    monkeypatch.setattr("fcn_batch.workflows.plan.choose_cut", noted)
    spec = ClusterFile(**{**SPEC, "cores": 7, "workers": 12, "memory": "64GB"})
    workers = Workers(cluster=spec)
    assert Workers(3, cluster=spec).processes == 3
    model = save_tiny_model(tmp_path / "tiny.safetensors", fc_kernel=1)
    path, options = scene(tmp_path / "a.tif", 50, 60), Options(model=str(model))
    assert prepare(path, options, processes=workers.processes, each=workers.each).plan.kernel.threads == 7
    prepare(path, replace(options, memory=2**31), processes=workers.processes, each=workers.each)
    assert rooms == [Room(32 * 10**9, 12, "cpu"), Room(2**31, 12, "cpu")]
    with pytest.raises(OptionError):
        prepare(path, replace(options, threads=29), processes=12, each=workers.each)


# --- job scripts ---------------------------------------------------------------------------------------------


def script(tmp_path: Path, **changes: Any) -> str:
    spec = ClusterFile(**{**SPEC, "queue": "short", "account": "p42", **changes})
    settings = job_settings(spec, tmp_path, None)
    job: Any = getattr(dask_jobqueue, {"slurm": "SLURMCluster", "pbs": "PBSCluster"}[spec.kind]).job_cls
    ours = {key: value for key, value in settings.items() if key not in ("scheduler_options", "silence_logs")}
    return str(job("tcp://10.0.0.1:1234", name="fcn-batch-0", **ours).job_script())


@pytest.mark.parametrize(
    ("kind", "lines"),
    [
        ("slurm", ["#SBATCH -p short", "#SBATCH -A p42", "#SBATCH --cpus-per-task=6", "#SBATCH --mem=4G",
                   "#SBATCH -t 00:30:00", "#SBATCH --no-requeue"]),
        ("pbs", ["#PBS -q short", "#PBS -A p42", "#PBS -l select=1:ncpus=6:mem=3815MB", "#PBS -l walltime=00:30:00"]),
    ],
)  # fmt: skip
def test_the_scripts_that_are_submitted(tmp_path: Path, kind: str, lines: list[str]) -> None:
    text = script(tmp_path, kind=kind, cores=6, directives=("-x 1",), prologue=("module load a", "set -e"))
    mark = {"slurm": "#SBATCH", "pbs": "#PBS"}[kind]
    found = text.splitlines()
    assert set(lines) | {f"{mark} -x 1", "module load a", "set -e"} <= set(found)
    assert found.index("export MALLOC_ARENA_MAX=1") < found.index("module load a"), "a cluster may know better"
    command = found[-1]
    assert " -P -m distributed.cli.dask_worker tcp://10.0.0.1:1234 --name fcn-batch-0 " in command
    assert "--nanny" in command
    # the last one of an option counts
    options = dict(re.findall(r"--([a-z-]+) (\S+)", command))
    wanted = {"nthreads": "1", "memory-limit": "0", "lifetime": "1350s", "lifetime-stagger": "150s"}
    assert wanted.items() | {("dashboard-address", "127.0.0.1:0")} <= options.items()


def test_a_pbs_that_wants_other_resources(tmp_path: Path) -> None:
    text = script(tmp_path, kind="pbs", resources="select=1:ncpus=6:ngpus=1")
    assert "#PBS -l select=1:ncpus=6:ngpus=1\n" in text
    assert "mem=" not in text


# --- a batch system that answers, but runs nothing -----------------------------------------------------------

_PROGRAM = """#!/bin/sh
echo "$0 $*" >> {log}
{does}
"""


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """sbatch, squeue and scancel that only note how they were called."""
    folder = tmp_path / "bin"
    folder.mkdir()
    says = {"sbatch": f"echo $$ >> {tmp_path}/jobs; echo Submitted batch job $$", "squeue": "echo PENDING Priority",
            "scancel": ":"}  # fmt: skip
    for name, does in says.items():
        (folder / name).write_text(_PROGRAM.format(log=tmp_path / "log", does=does))
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    return folder


def called(tmp_path: Path, name: str) -> list[str]:
    """The arguments of every call of a program."""
    lines = (tmp_path / "log").read_text().splitlines()
    return [line.partition(" ")[2] for line in lines if line.partition(" ")[0].endswith(f"/{name}")]


def test_jobs_that_are_refused(tmp_path: Path, programs: Path) -> None:
    refusal = "echo 'sbatch: error: invalid partition specified: x' >&2; exit 1"
    (programs / "sbatch").write_text(_PROGRAM.format(log=tmp_path / "log", does=refusal))
    with (
        refuses("job-refused", reason="sbatch: error: invalid partition specified: x"),
        client_of(Workers(cluster=ClusterFile(**SPEC)), tmp_path),
    ):
        pass
    assert [path.name for path in tmp_path.glob(".fcn*")] == []


@pytest.mark.parametrize("ends", ["time", "signal"])
def test_jobs_that_never_begin(tmp_path: Path, programs: Path, ends: str) -> None:
    """The run waits as long as its cluster says, or until it is to stop; its jobs are cancelled, their logs kept."""
    assert programs.is_dir()
    workers = Workers(cluster=ClusterFile(**{**SPEC, "wait": "00:00:04" if ends == "time" else "00:02:00"}))
    stop, ticket = Stop(), JobTicket(str(tmp_path / "a.partial"), "", "", "cpu")
    if ends == "time":
        with refuses("workers-lost", seconds=4):
            execute(ticket, [(0,), (1,)], workers, print, stop)
    else:
        threading.Timer(2, stop.request).start()
        execute(ticket, [(0,), (1,)], workers, print, stop)
        assert stop.requested
    assert len(list(tmp_path.glob(".fcn*"))) == (ends == "time")
    cancelled = {job for call in called(tmp_path, "scancel") for job in call.split()}
    assert cancelled == set((tmp_path / "jobs").read_text().split())


def test_what_jobs_need(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, programs: Path) -> None:
    workers = Workers(cluster=ClusterFile(**SPEC))
    with refuses("option-conflict", one="--cluster"):
        replace(workers, address="tcp://127.0.0.1:1")
    (tmp_path / "my maps").mkdir()
    with refuses("path-unsafe", path=tmp_path / "my maps"), client_of(workers, tmp_path / "my maps"):
        pass
    monkeypatch.setitem(sys.modules, "cryptography", None)
    with refuses("extra-missing", package="cryptography"), client_of(workers, tmp_path):
        pass
    assert not (programs / "../log").exists()


# --- jobs that run -------------------------------------------------------------------------------------------


_SBATCH = """cp "$1" {here}/job-$$.sh
setsid sh {here}/job-$$.sh </dev/null >{here}/job-$$.out 2>&1 &
echo $! >> {here}/jobs
echo Submitted batch job $!"""
_SCANCEL = 'for id in "$@"; do kill -9 "-$id" 2>/dev/null; done; true'


@pytest.fixture
def jobs(tmp_path: Path, programs: Path) -> Path:
    """As if this machine were a cluster: sbatch runs its script here. The file that the jobs' numbers are in."""
    for name, does in (
        ("sbatch", _SBATCH.format(here=tmp_path)),
        ("scancel", _SCANCEL),
        ("squeue", "echo RUNNING None"),
    ):
        (programs / name).write_text(_PROGRAM.format(log=tmp_path / "log", does=does))
    return tmp_path / "jobs"


def alive(jobs: Path) -> list[psutil.Process]:
    """What runs of all jobs so far."""
    found = []
    for process in psutil.process_iter(["status"]):
        with suppress(psutil.Error, ProcessLookupError):
            if str(os.getpgid(process.pid)) in jobs.read_text().split() and process.info["status"] != "zombie":
                found.append(process)
    return found


def test_a_run_on_jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, jobs: Path) -> None:
    """Two inputs on the same jobs, one of which is lost and replaced; the bytes as in this process; nothing is left."""
    small_blocks(monkeypatch)
    small_segments(monkeypatch)
    model = save_tiny_model(tmp_path / "tiny.safetensors", fc_kernel=1)
    inputs = (scene(tmp_path / "a.tif", 1500, 200), scene(tmp_path / "b.tif", 300, 200))
    options, progress, listening = Options(model=str(model), memory=2 * 10**9), Notes(), set[str]()

    def look(_pixels: int) -> None:
        if not listening:
            for process in (psutil.Process(), *alive(jobs)):
                listening.update(c.laddr.ip for c in process.net_connections("inet") if c.status == psutil.CONN_LISTEN)
            os.killpg(int(jobs.read_text().split()[0]), signal.SIGKILL)

    monkeypatch.setattr(progress, "advance", look)
    workers = Workers(cluster=ClusterFile(**SPEC, interface="lo"))
    assert len(list(segment(Request(inputs, options, tmp_path / "jobs-made", workers), progress))) == 6
    assert listening == {"127.0.0.1"}
    assert len([note for note in progress.notes if note.startswith("submitted 2 jobs to slurm")]) == 1
    assert len(jobs.read_text().split()) == len(called(tmp_path, "sbatch"))
    until(lambda: not alive(jobs))
    assert list((tmp_path / "jobs-made").glob(".fcn*")) == []
    assert len(list(segment(Request(inputs, options, tmp_path / "alone"), Notes()))) == 6
    for stem in ("a", "b"):
        assert (class_map(tmp_path / "jobs-made", stem) == class_map(tmp_path / "alone", stem)).all()


def until(happens: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not happens():
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.parametrize("insecure", [False, True])
def test_jobs_speak_tls_and_a_lost_one_is_replaced(tmp_path: Path, jobs: Path, *, insecure: bool) -> None:
    workers = Workers(cluster=ClusterFile(**{**SPEC, "workers": 1}, interface="lo"), insecure=insecure)
    protocol = "tcp" if insecure else "tls"
    settings = {"distributed.deploy.lost-worker-timeout": "1s"}  # 15, by default
    with dask.config.set(settings), client_of(workers, tmp_path) as client:
        client.wait_for_workers(1, timeout=PATIENCE_S)
        info = client.scheduler_info()
        assert info["address"].startswith(f"{protocol}://127.0.0.1:")
        assert [worker.partition(":")[0] for worker in info["workers"]] == [protocol]
        secrets = list(tmp_path.glob(".fcn*/*.pem"))
        assert [path.stat().st_mode & 0o777 for path in secrets] == [0o600] * 3 * (not insecure)
        if insecure:
            (first,) = jobs.read_text().split()
            os.killpg(int(first), signal.SIGKILL)
            until(lambda: len(jobs.read_text().split()) == 2 and len(alive(jobs)) > 0 and len(client.nthreads()) == 1)
    assert list(tmp_path.glob(".fcn*")) == []
    until(lambda: not alive(jobs))
