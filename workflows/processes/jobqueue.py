"""Jobs of a batch system, or the GPUs of this machine, as workers. The only module that knows dask_jobqueue, dask_cuda.

check_installed      before anything else: the extra, the batch system's programs, GPUs
job_cluster          jobs are submitted, replaced when they are lost, and cancelled at the end, however it comes
await_first          until one of them is at work, with the batch system's own reason while none is
"""

import re
import shlex
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fcn_batch.pipeline.core.errors import OptionError, OutputError
from fcn_batch.pipeline.network.device import cuda_devices
from fcn_batch.workflows.console.logs import level_of_dask
from fcn_batch.workflows.processes.clusters import ClusterFile, Kind, seconds_of
from fcn_batch.workflows.processes.topology import ENVIRON
from fcn_batch.workflows.processes.waiting import LONGEST_TOLD, Jobs, Waiting

if TYPE_CHECKING:
    from distributed.security import Security
    from tornado.ioloop import IOLoop

_CLASSES = {"slurm": "SLURMCluster", "pbs": "PBSCluster", "lsf": "LSFCluster", "sge": "SGECluster"}
_PROGRAMS = {"slurm": ("sbatch", "scancel"), "pbs": ("qsub", "qdel"), "lsf": ("bsub", "bkill"), "sge": ("qsub", "qdel")}
_CALL_S = 60.0
"""For a cluster to close."""
_LOOPBACK = "127.0.0.1"
_HARMLESS = r"[\w./@%+=:,-]+"
"""What a path may hold that stands in job scripts as it is."""


@cache
def check_installed(kind: Kind) -> int:
    """OptionError when what `kind` needs is not here; how many GPUs there are, for cuda."""
    package, extra = ("dask_cuda", "cuda") if kind == "cuda" else ("dask_jobqueue", "jobqueue")
    devices = cuda_devices() if kind == "cuda" else 0
    if kind == "cuda" and not devices:
        raise OptionError("--cluster cuda: this machine shows 0 CUDA devices (is there a driver? try nvidia-smi)")
    if find_spec(package) is None:
        raise OptionError(f"--cluster {kind}: {package} is not installed: pip install 'fcn-batch[{extra}]'")
    for program in _PROGRAMS.get(kind, ()):
        if shutil.which(program) is None:
            raise OptionError(f"--cluster {kind}: no program {program} here; run this where jobs are submitted")
    return devices


@contextmanager
def gpu_cluster(count: int, loop: "IOLoop") -> Iterator[Any]:
    """A process for each of the first `count` GPUs of this machine, on loopback."""
    from dask_cuda import LocalCUDACluster

    try:
        cluster = LocalCUDACluster(
            n_workers=count,
            threads_per_worker=1,
            memory_limit=0,
            host=_LOOPBACK,
            dashboard_address=f"{_LOOPBACK}:0",
            silence_logs=level_of_dask(),
            loop=loop,
        )
    except (RuntimeError, ValueError, OSError) as error:
        raise OptionError(f"--cluster cuda: the GPUs cannot be used ({error}); is nvidia-smi well?") from error
    with cluster:
        yield cluster


@contextmanager
def job_cluster(
    spec: ClusterFile, count: int, waiting: Waiting, security: "Security | None", loop: "IOLoop"
) -> Iterator[tuple[Any, Jobs]]:
    """A scheduler in this process, and `count` jobs that are its workers.

    OptionError when the batch system refuses them. When the run fails, the folder with their logs is left.
    """
    assert waiting.folder is not None, "jobs need a folder"
    folder = Path(tempfile.mkdtemp(prefix=".fcn-batch-jobs-", dir=waiting.folder)).absolute()
    jobs = Jobs(spec.kind, count, folder)
    keep = False
    try:
        if not re.fullmatch(_HARMLESS, str(folder)):
            raise OptionError(
                f"--cluster {spec.kind}: {folder.parent}: blanks, or signs that mean something to a shell, are in this "
                "path, which stands in job scripts; give another --output"
            )
        settings = _settings(spec, folder, _on_disk(security, folder))
        cluster = _class_of(spec.kind)(job_cls=_recording(spec.kind, jobs), loop=loop, **settings)
        try:
            yield _submitted(cluster, jobs), jobs
        finally:
            command = cluster.job_cls.cancel_command
            try:
                cluster.close(timeout=_CALL_S)
            finally:
                if command:
                    jobs.cancel(command)
    except OutputError:
        keep = True
        raise
    finally:
        for secret in folder.glob("*.pem"):
            secret.unlink()
        if not keep:
            shutil.rmtree(folder, ignore_errors=True)


def _class_of(kind: str) -> Any:
    import dask_jobqueue

    return getattr(dask_jobqueue, _CLASSES[kind])


def _recording(kind: str, jobs: Jobs) -> Any:
    """The class of a job of that kind, which notes what was submitted."""
    from distributed.deploy.spec import ProcessInterface

    base: Any = _class_of(kind).job_cls

    class Recorded(base):  # type: ignore[misc]  # what it is a class of is known when it runs
        async def start(self) -> None:
            try:
                await base.start(self)
            except (RuntimeError, ValueError, OSError) as error:
                jobs.refused = str(error)
                raise
            finally:
                if self.job_id:
                    jobs.ids.append(str(self.job_id))

        async def close(self) -> None:
            await base.close(self)
            await ProcessInterface.close(self)  # a cluster with jobs that were refused would wait for this

    return Recorded


def _on_disk(security: "Security | None", folder: Path) -> "Security | None":
    """With the certificates of workers in files that only the user can read, where they are not yet."""
    if security is not None:
        for name in ("tls_ca_file", "tls_worker_cert", "tls_worker_key"):
            text = getattr(security, name)
            if "\n" in text:
                path = folder / f"{name}.pem"
                path.touch(mode=0o600)
                path.write_text(text)
                setattr(security, name, str(path))
    return security


def _settings(spec: ClusterFile, folder: Path, security: "Security | None") -> dict[str, Any]:
    """What dask_jobqueue is told. What is None here may stand in its own configuration (jobqueue.yaml)."""
    lifetime, stagger = spec.lifetime
    # one segment at a time; what is too much memory the batch system says, not Dask, which would stop the worker
    arguments = ["--nthreads", 1, "--memory-limit", 0, "--dashboard-address", f"{_LOOPBACK}:0"]
    arguments += ["--lifetime", f"{lifetime}s", "--lifetime-stagger", f"{stagger}s"]
    address = {"interface": spec.interface} if spec.interface else {"host": _own_address()}
    protocol = "tcp://" if security is None else "tls://"
    settings: dict[str, Any] = {
        "cores": spec.cores,
        "memory": spec.memory,
        "processes": 1,
        "walltime": _walltime(spec),
        "queue": spec.queue,
        "project" if spec.kind in ("lsf", "sge") else "account": spec.account,
        "interface": spec.interface,
        "job_name": "fcn-batch",
        "job_extra_directives": _directives(spec),
        "job_script_prologue": [*(f"export {name}={value}" for name, value in ENVIRON.items()), *spec.prologue],
        "log_directory": str(folder),
        "worker_extra_args": [str(argument) for argument in arguments],
        "python": f"{shlex.quote(sys.executable)} -P",
        "protocol": protocol,
        "security": security,
        "scheduler_options": {"dashboard_address": f"{_LOOPBACK}:0", **address},
        "silence_logs": level_of_dask(),
    }
    if spec.resources:
        settings["resource_spec"] = spec.resources
    return settings


def _own_address() -> str:
    """Of this machine, on its default route."""
    from distributed.utils import get_ip

    return str(get_ip())


def _walltime(spec: ClusterFile) -> str:
    """As the batch system writes it: LSF counts minutes.

    >>> [_walltime(ClusterFile(kind=kind, workers=1, cores=1, memory="1GB", walltime="01:10:30")) for kind in _CLASSES]
    ['01:10:30', '01:10:30', '1:11', '01:10:30']
    """
    seconds = seconds_of(spec.walltime or "")
    hours, minutes = divmod(-(-seconds // 60), 60)
    return f"{hours}:{minutes:02}" if spec.kind == "lsf" else spec.walltime or ""


def _directives(spec: ClusterFile) -> list[str]:
    """A job that is preempted is replaced by a new one; begun again by SLURM, it would be one too many."""
    return [*(["--no-requeue"] if spec.kind == "slurm" else []), *spec.directives]


def _submitted(cluster: Any, jobs: Jobs) -> Any:
    """The cluster with its jobs submitted; lost ones are replaced from now on."""
    cluster.scale(jobs.count)
    with suppress(RuntimeError, OSError):  # told below
        cluster.sync(cluster._correct_state)  # noqa: SLF001 - to know whether the batch system takes them
    if jobs.refused:
        said = re.search(r"stderr:\s*(\S.*)", jobs.refused, re.DOTALL)
        told = " ".join((said[1] if said else jobs.refused).split())[:LONGEST_TOLD]
        raise OptionError(f"--cluster {jobs.kind}: the job was refused: {told}; change its TOML file")
    cluster.adapt(minimum=jobs.count, maximum=jobs.count)
    return cluster
