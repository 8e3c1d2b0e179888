"""How the workers of a run are reached, begun, kept and let go. One of the modules that know dask.distributed."""

import logging
import pydoc
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fcn_batch
from fcn_batch.pipeline.core.errors import OptionError
from fcn_batch.workflows.console.logs import level_of_dask
from fcn_batch.workflows.console.signals import Stop
from fcn_batch.workflows.processes.clusters import seconds_of
from fcn_batch.workflows.processes.jobqueue import gpu_cluster, job_cluster
from fcn_batch.workflows.processes.waiting import Waiting, await_first
from fcn_batch.workflows.processes.workers import Tls, Workers

if TYPE_CHECKING:
    from distributed import Client
    from distributed.security import Security

_CONNECT_TIMEOUT_S = 30
_DEATHS_OF_A_TASK = 20  # blocks at which processes die are found out by their claims, well before that


def not_installed(where: str, found: str) -> OptionError:
    """The error of a place where another version runs, or none."""
    return OptionError(
        f"--scheduler: {where} cannot run fcn-batch {fcn_batch.__version__} {found}; "
        "install the same version there and here"
    )


@contextmanager
def silent() -> Iterator[None]:
    """Keep distributed's log off standard error: what matters of it is raised and told in one line.

    With --verbose it is heard.
    """
    import distributed

    log, level = logging.getLogger(distributed.__name__), level_of_dask()
    # each of these may have a handler of its own, from dask's configuration
    names = (distributed.__name__, "distributed.client", "distributed.gc", "tornado", "tornado.application")
    with ExitStack() as restore:
        if level < logging.CRITICAL:
            restore.callback(log.setLevel, log.level)
            log.setLevel(level)
            yield
            return
        for handler in {handler for name in names for handler in logging.getLogger(name).handlers}:
            restore.callback(handler.setLevel, handler.level)
            handler.setLevel(logging.CRITICAL + 1)
        yield


def _connect(workers: Workers) -> "Client":
    from distributed import Client

    address = workers.contact

    class Closing(Client):
        """Closed at once when it cannot connect; left to the end of the process, that waits for a minute."""

        def start(self, **kwargs: Any) -> None:
            try:
                Client.start(self, **kwargs)
            except BaseException:
                Client.close(self)
                raise

    connect: Callable[..., Client] = Closing
    try:
        return connect(address, timeout=_CONNECT_TIMEOUT_S, set_as_default=False, security=_security(workers.tls))
    except (OSError, ValueError, TypeError, ImportError) as error:
        raise OptionError(f"--scheduler {address}: no Dask scheduler answers there ({error})") from error


def _security(tls: Tls | None) -> "Security | None":
    from distributed.security import Security

    if tls is None:
        return None  # as dask's own configuration says
    return Security(
        tls_ca_file=str(tls.ca),
        tls_client_cert=str(tls.cert),
        tls_client_key=str(tls.key),
        require_encryption=True,
    )


def _security_of_all(workers: Workers) -> "Security | None":
    """For a scheduler and workers of our own: the user's certificates, or new ones that last as long as they do."""
    from distributed.security import Security

    if workers.tls is not None:
        both = {"cert": str(workers.tls.cert), "key": str(workers.tls.key)}
        files = {f"tls_{who}_{what}": both[what] for who in ("scheduler", "worker", "client") for what in both}
        return Security(tls_ca_file=str(workers.tls.ca), require_encryption=True, **files)
    if workers.insecure:
        return None
    try:
        made: Security = Security.temporary()
    except ImportError as error:
        raise OptionError(
            "--cluster: needs cryptography for its certificates: pip install 'fcn-batch[jobqueue]', or give --insecure "
            "where the network is your own"
        ) from error
    return made


def _check_workers(client: "Client", address: str) -> None:
    """OptionError unless there are workers, all of them with this version of the program."""
    # a function that every Python has: one of ours could not even be unpickled, and the worker would just die
    versions = client.run(pydoc.locate, "fcn_batch.__version__", on_error="return")
    if not versions:
        raise OptionError(f"--scheduler {address}: the scheduler has no workers; start some")
    for worker, version in versions.items():
        if version != fcn_batch.__version__ and not isinstance(version, OSError):  # which is a worker just lost
            found = version if isinstance(version, str) else "none"  # an error: it cannot be imported there
            raise not_installed(f"the worker {worker} of {address}", f"(it has {found})")


@dataclass(slots=True, eq=False)
class Crew:
    """The workers of a command, kept from one round of blocks, and one input, to the next."""

    note: Callable[[str], None]
    _open: ExitStack = field(default_factory=ExitStack)
    _client: "Client | None" = None

    def client(self, workers: Workers, waiting: Waiting) -> "Client":
        """Connected at the first call, and when the connection was lost."""
        if self._client is None or self._client.status != "running":
            self.close()
            self._open.enter_context(silent())
            self._client = self._open.enter_context(_opened(workers, waiting))
        return self._client

    def close(self) -> None:
        """Let them go; jobs are cancelled."""
        self._client = None
        self._open.close()


@contextmanager
def kept(workers: Workers, note: Callable[[str], None]) -> Iterator[Workers]:
    """These workers, begun when they are first needed and let go at the end; `note` hears what is waited for."""
    crew = Crew(note)
    try:
        yield replace(workers, crew=crew)
    finally:
        crew.close()


@contextmanager
def connected(workers: Workers, stop: Stop | None = None, folder: Path | None = None) -> "Iterator[Client]":
    """A client of the asked-for workers. Jobs need a `folder` that they see; what they wait for ends with `stop`."""
    crew = workers.crew
    waiting = Waiting(stop or Stop(), folder, (lambda _: None) if crew is None else crew.note)
    if crew is not None:
        yield crew.client(workers, waiting)
        return
    with silent(), _opened(workers, waiting) as client:
        yield client


@contextmanager
def _opened(workers: Workers, waiting: Waiting) -> "Iterator[Client]":
    import dask
    from distributed import Client

    from fcn_batch.workflows.processes.local import deaf_loop, local_cluster

    if workers.address is not None:
        with _connect(workers) as client:
            _check_workers(client, workers.address)
            yield client
        return
    with ExitStack() as stack:
        stack.enter_context(dask.config.set({"distributed.scheduler.allowed-failures": _DEATHS_OF_A_TASK}))
        if workers.cluster is None:
            cluster = stack.enter_context(local_cluster(workers.count))
            yield stack.enter_context(Client(cluster, set_as_default=False))
            return
        loop, spec, count = stack.enter_context(deaf_loop()), workers.cluster, workers.processes or 1
        if spec.kind == "cuda":
            yield stack.enter_context(Client(stack.enter_context(gpu_cluster(count, loop)), set_as_default=False))
            return
        security = _security_of_all(workers)
        cluster, jobs = stack.enter_context(job_cluster(spec, count, waiting, security, loop))
        client = stack.enter_context(Client(cluster, set_as_default=False))
        await_first(client.nthreads, jobs, waiting, seconds_of(spec.wait))
        if not waiting.stop.requested:
            _check_workers(client, spec.kind)
        yield client
