"""How the workers of a run are started or reached, kept and let go: dask's own clusters, and a client of them."""

import logging
import pydoc
import re
import shlex
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from multiprocessing import active_children, resource_tracker
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fcn_batch
from fcn_batch.pipeline.core.errors import OptionError, OutputError
from fcn_batch.workflows.console.logs import level_of_dask
from fcn_batch.workflows.console.signals import unheard
from fcn_batch.workflows.processes.clusters import ClusterFile
from fcn_batch.workflows.processes.topology import ENVIRON
from fcn_batch.workflows.processes.workers import Tls, Workers

if TYPE_CHECKING:
    from distributed import Client
    from distributed.security import Security

_CONNECT_TIMEOUT_S = 30
_CLOSE_S = 60
_LOOPBACK = "127.0.0.1"
_THREADS_PER_PROCESS = 1
"""Of Dask: a pass has its own for reading and writing, and the network those of the plan."""
_HARMLESS = r"[\w./@%+=:,-]+"
"""What a path may hold that stands in job scripts as it is."""


def not_installed(where: str, found: str) -> OptionError:
    """Return the error of a place where another version runs, or none."""
    return OptionError(
        "version-differs",
        "--scheduler: {where} cannot run fcn-batch {version} {found}; install the same version there and here",
        where=where,
        version=fcn_batch.__version__,
        found=found,
    )


@contextmanager
def silent() -> Iterator[None]:
    """Keep distributed's log off standard error, unless --verbose: errors that matter are raised as ours."""
    import distributed

    log, level = logging.getLogger(distributed.__name__), level_of_dask()
    # each of these may have a handler of its own, from dask's configuration
    names = (distributed.__name__, "distributed.client", "distributed.gc", "tornado", "tornado.application")
    quiet = level >= logging.CRITICAL
    handlers = {handler for name in names for handler in logging.getLogger(name).handlers} if quiet else set()
    with ExitStack() as restore:
        for one in [*handlers] if quiet else [log]:
            restore.callback(one.setLevel, one.level)
            one.setLevel(level + quiet)
        yield


def _connect(workers: Workers) -> "Client":
    from distributed import Client

    address = workers.contact
    try:
        return Client(address, timeout=_CONNECT_TIMEOUT_S, set_as_default=False, security=_security(workers.tls))
    except (OSError, ValueError, TypeError, ImportError) as error:
        raise OptionError(
            "scheduler-silent",
            "--scheduler {address}: no Dask scheduler answers there ({error})",
            address=address,
            error=error,
        ) from error


def _security(tls: Tls | None) -> "Security | None":
    """Return the certificates of the user, for all roles; None: what dask's own configuration says."""
    from distributed.security import Security

    if tls is None:
        return None
    both = {"cert": str(tls.cert), "key": str(tls.key)}
    named = {f"tls_{who}_{what}": both[what] for who in ("scheduler", "worker", "client") for what in both}
    return Security(tls_ca_file=str(tls.ca), require_encryption=True, **named)


def _check_workers(client: "Client", address: str) -> None:
    """Refuse a scheduler that has no workers, or some with another version of the program."""
    # a function that every Python has: one of ours could not even be unpickled, and the worker would just die
    versions = client.run(pydoc.locate, "fcn_batch.__version__", on_error="return")
    if not versions:
        raise OptionError(
            "workers-missing",
            "--scheduler {address}: the scheduler has no workers; start some",
            address=address,
        )
    for worker, version in versions.items():
        if version != fcn_batch.__version__ and not isinstance(version, OSError):  # which is a worker just lost
            found = version if isinstance(version, str) else "none"  # an error: it cannot be imported there
            raise not_installed(f"the worker {worker} of {address}", f"(it has {found})")


@dataclass(slots=True, eq=False)
class Crew:
    """The workers of a command, kept from one round of blocks, and one input, to the next."""

    note: Callable[[str], None]
    failures: Counter[tuple[str, int]] = field(default_factory=Counter)
    """How often a worker died at a block of a staging folder."""
    _open: ExitStack = field(default_factory=ExitStack)
    _client: "Client | None" = None

    def client(self, workers: Workers, folder: Path | None) -> "Client":
        """Return the connection, made at the first call and when it was lost. Jobs need a `folder` that they see."""
        if self._client is None or self._client.status != "running":
            self.close()
            self._open.enter_context(silent())
            self._client = self._open.enter_context(_opened(workers, folder, self.note))
        return self._client

    def close(self) -> None:
        """Let them go; jobs are cancelled."""
        self._client = None
        self._open.__exit__(*sys.exc_info())  # what the run ended with: logs of jobs stay when it failed


@contextmanager
def kept(workers: Workers, note: Callable[[str], None] = lambda _: None) -> Iterator[Workers]:
    """These workers, started when they are first needed and let go at the end; `note` is told what is waited for."""
    crew = Crew(note)
    try:
        yield workers if workers.crew else replace(workers, crew=crew)
    finally:
        crew.close()


@contextmanager
def _opened(workers: Workers, folder: Path | None, note: Callable[[str], None]) -> "Iterator[Client]":
    from distributed import Client

    if workers.address is not None:
        with _connect(workers) as client:
            _check_workers(client, workers.address)
            yield client
    elif workers.cluster is not None and workers.cluster.kind != "cuda":
        with _job_cluster(workers, workers.cluster, folder) as cluster, Client(cluster, set_as_default=False) as client:
            note(f"submitted {workers.processes} jobs to {workers.cluster.kind}; blocks wait for them (Ctrl-C cancels)")
            yield client
    else:
        with _local_cluster(workers) as cluster, Client(cluster, set_as_default=False) as client:
            yield client


@contextmanager
def _local_cluster(workers: Workers) -> Iterator[Any]:
    """Worker processes on this machine, one for each GPU if `workers` are of the cluster cuda, on loopback only.

    They, and the thread of their scheduler, hear no signals: the run tells them to end.
    """
    import dask
    from distributed import LocalCluster

    # a worker that dies is noticed at once: this program submits its blocks again, and finds the one at fault
    settings: dict[str, Any] = {"distributed.scheduler.allowed-failures": 0}
    make: Any
    if workers.cluster is None:
        make = LocalCluster
        settings |= {f"distributed.nanny.pre-spawn-environ.{name}": value for name, value in ENVIRON.items()}
    else:
        from dask_cuda import LocalCUDACluster

        make = LocalCUDACluster

    others = set(active_children())
    resource_tracker.ensure_running()  # started later, by a thread that hears no signals, it would unblock them
    try:
        with dask.config.set(settings), unheard():
            cluster = make(
                n_workers=workers.processes,
                threads_per_worker=_THREADS_PER_PROCESS,
                host=_LOOPBACK,
                dashboard_address=f"{_LOOPBACK}:0",
                memory_limit=0,
                silence_logs=level_of_dask(),
            )
    except (RuntimeError, ValueError, OSError) as error:
        if workers.cluster is None:
            raise
        raise OptionError(
            "cuda-unusable", "--cluster cuda: the GPUs cannot be used ({error}); is nvidia-smi well?", error=error
        ) from error
    try:
        with dask.config.set(settings):
            yield cluster
    finally:
        try:
            with suppress(TimeoutError):  # on a busy machine
                cluster.close()
        finally:
            for child in set(active_children()) - others:  # Python would wait for them, and they hear no signals
                child.kill()


@contextmanager
def _job_cluster(workers: Workers, spec: ClusterFile, folder: Path | None) -> Iterator[Any]:
    """A scheduler in this process, and jobs that are its workers, as dask-jobqueue submits, replaces and cancels them.

    When the run fails, the folder with their logs is left.
    """
    import dask_jobqueue
    from distributed.core import Status

    assert folder is not None, "jobs need a folder"
    logs = Path(tempfile.mkdtemp(prefix=".fcn-batch-jobs-", dir=folder)).absolute()
    keep = False
    try:
        if not re.fullmatch(_HARMLESS, str(logs)):
            raise OptionError(
                "path-unsafe",
                "--cluster {kind}: {path}: blanks, or signs that mean something to a shell, are in this path, which "
                "stands in job scripts; give another --output",
                kind=spec.kind,
                path=folder,
            )
        make: Any = getattr(dask_jobqueue, {"slurm": "SLURMCluster", "pbs": "PBSCluster"}[spec.kind])
        with unheard():
            cluster = make(**job_settings(spec, logs, _on_disk(_security_of_jobs(workers), logs)))
        refused = True
        try:
            cluster.sync(_submit, cluster, workers.processes)
            refused = False
            yield cluster
        except (RuntimeError, ValueError) as error:
            if not refused:
                raise
            found = re.search(r"stderr:\s*(\S.*)", str(error), re.DOTALL)
            raise OptionError(
                "job-refused",
                "--cluster {kind}: the job was refused: {reason}; change its TOML file",
                kind=spec.kind,
                reason=" ".join((found[1] if found else str(error)).split()),
            ) from error
        finally:
            # no job may be held by a name here: Dask expects that those it has cancelled are gone
            for name in [name for name, job in cluster.workers.items() if job.job_id is None]:
                cluster.workers.pop(name).status = Status.failed  # refused: there is nothing to cancel
            with suppress(TimeoutError):
                cluster.close(timeout=_CLOSE_S)
    except OutputError:
        keep = True
        raise
    finally:
        for secret in logs.glob("*.pem"):
            secret.unlink()
        if not keep:
            shutil.rmtree(logs, ignore_errors=True)


async def _submit(cluster: Any, jobs: int) -> None:
    """Submit jobs; from then on, lost ones are replaced. RuntimeError when the batch system refuses one."""
    cluster.scale(jobs)
    await cluster
    cluster.adapt(minimum=jobs, maximum=jobs)


def _security_of_jobs(workers: Workers) -> "Security | None":
    """Return the user's certificates, or new ones that last as long as the scheduler."""
    from distributed.security import Security

    if workers.tls is not None or workers.insecure:
        return _security(workers.tls)
    try:
        made: Security = Security.temporary()
    except ImportError as error:
        raise OptionError(
            "extra-missing",
            "--cluster: needs {package} for its certificates: pip install 'fcn-batch[{extra}]', or give --insecure "
            "where the network is your own",
            package="cryptography",
            extra="jobqueue",
        ) from error
    return made


def _on_disk(security: "Security | None", folder: Path) -> "Security | None":
    """Put the certificates of workers into files that only the user can read, where they are in none."""
    for name in ("tls_ca_file", "tls_worker_cert", "tls_worker_key") if security is not None else ():
        text = getattr(security, name)
        if "\n" in text:
            path = folder / f"{name}.pem"
            path.touch(mode=0o600)
            path.write_text(text)
            setattr(security, name, str(path))
    return security


def job_settings(spec: ClusterFile, logs: Path, security: "Security | None") -> dict[str, Any]:
    """Return what dask-jobqueue's clusters take. What is None here may stand in its own configuration."""
    from distributed.utils import get_ip

    lifetime, stagger = spec.lifetime
    walltime = spec.walltime or 0
    # one segment at a time; the batch system judges what is too much memory, not Dask, which would stop the worker
    arguments = ["--nthreads", 1, "--memory-limit", 0, "--dashboard-address", f"{_LOOPBACK}:0"]
    arguments += ["--lifetime", f"{lifetime}s", "--lifetime-stagger", f"{stagger}s"]
    settings: dict[str, Any] = {
        "cores": spec.cores,
        "memory": f"{spec.memory}B",
        "processes": 1,
        "walltime": f"{walltime // 3600:02}:{walltime // 60 % 60:02}:{walltime % 60:02}",
        "queue": spec.queue,
        "account": spec.account,
        "interface": spec.interface,
        "job_name": "fcn-batch",
        # a job that is preempted is replaced by a new one; begun again by SLURM, it would be one too many
        "job_extra_directives": [*(["--no-requeue"] if spec.kind == "slurm" else []), *spec.directives],
        "job_script_prologue": [*(f"export {name}={value}" for name, value in ENVIRON.items()), *spec.prologue],
        "log_directory": str(logs),
        "worker_extra_args": [str(argument) for argument in arguments],
        "python": f"{shlex.quote(sys.executable)} -P",
        "protocol": "tcp://" if security is None else "tls://",
        "security": security,
        "scheduler_options": {"dashboard_address": f"{_LOOPBACK}:0"}
        | ({"interface": spec.interface} if spec.interface else {"host": get_ip()}),
        "silence_logs": level_of_dask(),
    }
    return settings | ({"resource_spec": spec.resources} if spec.resources else {})
