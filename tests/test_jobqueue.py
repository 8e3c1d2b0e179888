"""Jobs as workers: what a cluster's file may say, the scripts that are submitted, and real jobs of a stand-in."""

import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import dask
import psutil
import pytest

from fcn_batch.pipeline.core.errors import OptionError, OutputError
from fcn_batch.workflows.blocks.cut import Room, choose_cut
from fcn_batch.workflows.console.progress import Quiet
from fcn_batch.workflows.console.signals import Stop
from fcn_batch.workflows.plan import Options, prepare
from fcn_batch.workflows.processes import jobqueue
from fcn_batch.workflows.processes.clusters import ClusterFile, read_cluster
from fcn_batch.workflows.processes.crew import connected, kept
from fcn_batch.workflows.processes.jobqueue import check_installed, job_cluster
from fcn_batch.workflows.processes.waiting import Waiting
from fcn_batch.workflows.processes.workers import Workers
from fcn_batch.workflows.segment import Request, segment
from tests.models import save_tiny_model
from tests.patience import PATIENCE_S
from tests.runs import class_map, fcn_batch, scene, small_blocks, small_segments

SYSTEMS = ["slurm", "pbs", "lsf", "sge"]
SPEC: dict[str, Any] = {
    "kind": "slurm",
    "workers": 2,
    "cores": 1,
    "memory": "4GB",
    "walltime": "00:30:00",
    "wait": "00:02:00",
}


class Notes(Quiet):
    """Shows nothing, and keeps what it is told."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.fixture(autouse=True)
def _here(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Schedulers listen on loopback; nothing is remembered of what is installed."""
    monkeypatch.setattr(jobqueue, "_own_address", lambda: "127.0.0.1")
    check_installed.cache_clear()
    yield
    check_installed.cache_clear()


# --- files ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*SYSTEMS, "cuda"])
def test_the_shipped_files(name: str) -> None:
    spec = read_cluster(name)
    assert spec.kind == name
    if name != "cuda":
        assert spec.bytes == 16 * 10**9
        assert spec.lifetime == (7200 - 300 - 150, 150)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("kind = 'slurm'\ncroes = 3", r"croes = 3: no such key; there are kind, workers, cores, memory, .*"),
        ("kind = 'condor'", r"kind = 'condor': Input should be 'slurm', 'pbs', 'lsf', 'sge' or 'cuda'"),
        ("workers = 3", r"kind: is missing; add it"),
        ("kind = 'pbs'\nworkers = 2\ncores = 2\nmemory = '4GB'", r"walltime is missing; a job of pbs needs it"),
        ("kind = 'slurm'\nmemory = '4'", r"memory = '4': '4' is not an amount of memory; give it as 16GB or 500MiB"),
        ("kind = 'slurm'\nwalltime = '90'", r"walltime = '90': '90' is not a time; give HH:MM:SS"),
        ("kind = 'slurm'\nworkers = 0", r"workers = 0: .* greater than or equal to 1"),
        ("kind = 'slurm'\nqueue = 'a b'", r"queue = 'a b': .*match pattern.*"),
        (
            'kind = "slurm"\ndirectives = ["-x\\nrm"]',
            r".*'-x\\nrm' is more than one line; give a list of lines",
        ),
        ("kind = 'cuda'\ncores = 3", r"cores is of batch systems; kind = 'cuda' is this machine: leave it out"),
        ("kind = ", r"not a TOML file, or one that is nested too deeply: .*"),
    ],
)
def test_what_is_wrong_with_a_file(tmp_path: Path, text: str, problem: str) -> None:
    path = tmp_path / "my.toml"
    path.write_text(text)
    with pytest.raises(OptionError, match=f"^--cluster {re.escape(str(path))}: {problem}"):
        read_cluster(str(path))


def test_jobs_that_are_too_short(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="walltime 00:01:59 is 119 s; give jobs at least 120 s"):
        ClusterFile(**{**SPEC, "walltime": "00:01:59"})
    assert ClusterFile(**{**SPEC, "walltime": "00:02:00"}).lifetime == (84, 12)
    with pytest.raises(ValueError, match=r"resources 'x': slurm has directives for that"):
        ClusterFile(**SPEC, resources="x")
    with pytest.raises(OptionError, match=r"^--cluster .*/none.toml: cannot be read: No such file .*; copy one from /"):
        read_cluster(str(tmp_path / "none.toml"))


@pytest.mark.parametrize("name", ["slrum", "../clusters/slurm", "", "Slurm"])
def test_names_of_no_cluster(name: str) -> None:
    with pytest.raises(OptionError, match=f"^--cluster {name}: give cuda, lsf, pbs, sge, slurm, or the path of a file"):
        read_cluster(name)


# --- what must be there --------------------------------------------------------------------------------------


def test_an_extra_that_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobqueue, "find_spec", lambda _: None)
    with pytest.raises(OptionError, match=r"dask_jobqueue is not installed: pip install 'fcn-batch\[jobqueue\]'"):
        Workers(cluster=ClusterFile(**SPEC))
    monkeypatch.setattr(jobqueue, "cuda_devices", lambda: 2)
    result = fcn_batch("segment", scene(tmp_path / "a.tif", 20, 20), "--cluster", "cuda")
    assert result.exit_code == 2
    assert result.stderr == ("fcn-batch: --cluster cuda: dask_cuda is not installed: pip install 'fcn-batch[cuda]'\n")
    assert [path.name for path in tmp_path.iterdir()] == ["a.tif"]


def test_a_machine_without_a_batch_system(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    for kind, program in (("slurm", "sbatch"), ("pbs", "qsub"), ("lsf", "bsub"), ("sge", "qsub")):
        with pytest.raises(OptionError, match=f"^--cluster {kind}: no program {program} here; run this where jobs"):
            Workers(cluster=ClusterFile(**{**SPEC, "kind": kind}))


def test_a_machine_without_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobqueue, "cuda_devices", lambda: 0)
    with pytest.raises(OptionError, match=r"^--cluster cuda: this machine shows 0 CUDA devices .*nvidia-smi"):
        Workers(cluster=ClusterFile(kind="cuda"))


def test_each_gpu_has_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobqueue, "cuda_devices", lambda: 3)
    monkeypatch.setattr(jobqueue, "find_spec", lambda _: object())
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
    with pytest.raises(OptionError, match="--threads 29: give 1 to 28 in a job of this cluster of 7 CPUs"):
        prepare(path, replace(options, threads=29), processes=12, each=workers.each)


def test_two_places_at_once(programs: Path) -> None:
    assert programs.is_dir()
    with pytest.raises(OptionError, match="--cluster and --scheduler exclude each other"):
        Workers(address="tcp://127.0.0.1:1", cluster=ClusterFile(**SPEC))


# --- job scripts ---------------------------------------------------------------------------------------------


def script(tmp_path: Path, **changes: Any) -> str:
    spec = ClusterFile(**{**SPEC, "queue": "short", "account": "p42", **changes})
    settings = jobqueue._settings(spec, tmp_path, None)
    job = jobqueue._class_of(spec.kind).job_cls
    ours = {key: value for key, value in settings.items() if key not in ("scheduler_options", "silence_logs")}
    return str(job("tcp://10.0.0.1:1234", name="fcn-batch-0", **ours).job_script())


@pytest.mark.parametrize(
    ("kind", "lines"),
    [
        ("slurm", ["#SBATCH -p short", "#SBATCH -A p42", "#SBATCH --cpus-per-task=6", "#SBATCH --mem=4G",
                   "#SBATCH -t 00:30:00", "#SBATCH --no-requeue"]),
        ("pbs", ["#PBS -q short", "#PBS -A p42", "#PBS -l select=1:ncpus=6:mem=3815MB", "#PBS -l walltime=00:30:00"]),
        ("lsf", ["#BSUB -q short", '#BSUB -P "p42"', "#BSUB -n 6", '#BSUB -R "span[hosts=1]"', "#BSUB -W 0:30"]),
        ("sge", ["#$ -q short", "#$ -P p42", "#$ -l h_rt=00:30:00"]),
    ],
)  # fmt: skip
def test_the_scripts_that_are_submitted(tmp_path: Path, kind: str, lines: list[str]) -> None:
    text = script(tmp_path, kind=kind, cores=6, directives=("-x 1",), prologue=("module load a", "set -e"))
    mark = {"slurm": "#SBATCH", "pbs": "#PBS", "lsf": "#BSUB", "sge": "#$"}[kind]
    found = text.splitlines()
    assert set(lines) | {f"{mark} -x 1", "module load a", "set -e"} <= set(found)
    assert found.index("export MALLOC_ARENA_MAX=1") < found.index("module load a"), "a cluster may know better"
    command = found[-1]
    assert " -P -m distributed.cli.dask_worker tcp://10.0.0.1:1234 --name fcn-batch-0 " in command
    assert "--nanny" in command
    # the last one of an option counts
    said = dict(re.findall(r"--([a-z-]+) (\S+)", command))
    assert said["nthreads"] == "1"
    assert said["memory-limit"] == "0"
    assert said["lifetime"] == "1350s"
    assert said["lifetime-stagger"] == "150s"
    assert said["dashboard-address"] == "127.0.0.1:0"


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
    says = "echo 'sbatch: error: invalid partition specified: x' >&2; exit 1"
    (programs / "sbatch").write_text(_PROGRAM.format(log=tmp_path / "log", does=says))
    with (
        pytest.raises(OptionError, match=r"^--cluster slurm: the job was refused: sbatch: error: invalid partition"),
        connected(Workers(cluster=ClusterFile(**SPEC)), folder=tmp_path),
    ):
        pass
    assert [path.name for path in tmp_path.glob(".fcn*")] == []


def test_jobs_that_never_begin(tmp_path: Path, programs: Path) -> None:
    assert programs.is_dir()
    spec = ClusterFile(**{**SPEC, "wait": "00:00:04"})
    with (
        pytest.raises(
            OutputError,
            match=r"^--cluster slurm: none of the 2 jobs became a worker in 4 s; slurm says: PENDING Priority; logs",
        ),
        connected(Workers(cluster=spec), folder=tmp_path),
    ):
        pass
    assert set(called(tmp_path, "scancel")[-1].split()) == set((tmp_path / "jobs").read_text().split()), (
        "at the end, all"
    )


def test_jobs_that_end_at_once(tmp_path: Path, programs: Path) -> None:
    """The batch system knew them, and does not any more; what they said is in their logs."""
    does = "if [ $(grep -c squeue {log}) -lt 2 ]; then echo PENDING None; fi; "
    does += "echo python: not found > $(ls -d {here}/.fcn*)/fcn-batch-1.err"
    (programs / "squeue").write_text(
        _PROGRAM.format(log=tmp_path / "log", does=does.format(log=tmp_path / "log", here=tmp_path))
    )
    spec = ClusterFile(**{**SPEC, "wait": "00:00:12"})
    began = time.monotonic()
    with (
        pytest.raises(
            OutputError,
            match=r"all 2 jobs ended before they became workers; the last log says: python: not found; logs are in /",
        ),
        connected(Workers(cluster=spec), folder=tmp_path),
    ):
        pass
    assert time.monotonic() - began < 12


def test_a_signal_while_jobs_are_waited_for(tmp_path: Path, programs: Path) -> None:
    assert programs.is_dir()
    stop, notes = Stop(), list[str]()
    threading.Timer(2, stop.request).start()
    with (
        kept(Workers(cluster=ClusterFile(**SPEC)), notes.append) as workers,
        connected(workers, stop, tmp_path) as client,
    ):
        assert stop.requested
        assert not client.nthreads()
    assert notes[0] == "submitted 2 jobs to slurm; waiting for the first (Ctrl-C cancels them)"
    assert set(called(tmp_path, "scancel")[-1].split()) == set((tmp_path / "jobs").read_text().split())
    assert [path.name for path in tmp_path.glob(".fcn*")] == []


def test_a_folder_that_cannot_stand_in_a_script(tmp_path: Path, programs: Path) -> None:
    assert programs.is_dir()
    (tmp_path / "my maps").mkdir()
    with (
        pytest.raises(OptionError, match=r"my maps: blanks, or signs that mean something to a shell.*another --output"),
        connected(Workers(cluster=ClusterFile(**SPEC)), folder=tmp_path / "my maps"),
    ):
        pass


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
    inputs = (scene(tmp_path / "a.tif", 3000, 200), scene(tmp_path / "b.tif", 300, 200))
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
    assert len([note for note in progress.notes if note.startswith("submitted 2 jobs to slurm; waiting")]) == 1
    assert len(jobs.read_text().split()) == len(called(tmp_path, "sbatch"))
    until(lambda: not alive(jobs))
    assert list((tmp_path / "jobs-made").glob(".fcn*")) == []
    assert len(list(segment(Request(inputs, options, tmp_path / "alone"), Notes()))) == 6
    for stem in ("a", "b"):
        assert (class_map(tmp_path / "jobs-made", stem) == class_map(tmp_path / "alone", stem)).all()


def test_a_lost_job_is_replaced(tmp_path: Path, jobs: Path) -> None:
    settings = {"distributed.deploy.lost-worker-timeout": "1s"}  # 15, by default
    spec = ClusterFile(**{**SPEC, "workers": 1}, interface="lo")
    with dask.config.set(settings), connected(Workers(cluster=spec), folder=tmp_path) as client:
        (first,) = jobs.read_text().split()
        os.killpg(int(first), signal.SIGKILL)
        until(lambda: len(jobs.read_text().split()) == 2 and len(alive(jobs)) > 0 and len(client.nthreads()) == 1)
    until(lambda: not alive(jobs))


def until(happens: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not happens():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_jobs_speak_tls_unless_told_otherwise(tmp_path: Path, jobs: Path) -> None:
    spec = ClusterFile(**{**SPEC, "workers": 1}, interface="lo")
    for workers, protocol in ((Workers(cluster=spec), "tls"), (Workers(cluster=spec, insecure=True), "tcp")):
        with connected(workers, folder=tmp_path) as client:
            info = client.scheduler_info()
            assert info["address"].startswith(f"{protocol}://127.0.0.1:")
            assert [worker.partition(":")[0] for worker in info["workers"]] == [protocol]
            secrets = list(tmp_path.glob(".fcn*/*.pem"))
            assert [path.stat().st_mode & 0o777 for path in secrets] == [0o600] * 3 * (protocol == "tls")
        assert list(tmp_path.glob(".fcn*")) == []
        until(lambda: not alive(jobs))


def test_certificates_that_cannot_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, programs: Path) -> None:
    monkeypatch.setitem(sys.modules, "cryptography", None)
    with (
        pytest.raises(
            OptionError, match=r"needs cryptography for its certificates: pip install .*, or give --insecure"
        ),
        connected(Workers(cluster=ClusterFile(**SPEC)), folder=tmp_path),
    ):
        pass
    assert not (programs / "../log").exists()


def test_nothing_is_submitted_without_a_folder() -> None:
    with (
        pytest.raises(AssertionError, match="jobs need a folder"),
        job_cluster(ClusterFile(**SPEC), 1, Waiting(Stop()), None, None),  # type: ignore[arg-type]
    ):
        pass
