"""Which workers do a run's blocks, and how they are reached: local processes, or those of a Dask scheduler."""

import logging
import pydoc
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from ipaddress import ip_address
from multiprocessing import active_children, resource_tracker
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fcn_batch
from fcn_batch.pipeline.errors import OptionError
from fcn_batch.workflows.signals import unheard

if TYPE_CHECKING:
    from distributed import Client
    from distributed.security import Security
    from tornado.ioloop import IOLoop

_THREADS_PER_PROCESS = 1  # a pass has its own for reading and writing
_CONNECT_TIMEOUT_S = 30
_DEATHS_OF_A_TASK = 20  # blocks at which processes die are found out by their claims, well before that
_LAST_PORT = 65535
_LOOPBACK = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class Tls:
    """Certificates of a scheduler that is reached by tls://."""

    ca: Path
    """Of the authority that both sides trust."""
    cert: Path
    key: Path

    def __post_init__(self) -> None:
        for name in ("ca", "cert", "key"):
            if not getattr(self, name).is_file():
                raise OptionError(f"--tls-{name} {getattr(self, name)}: no such file; give a PEM file")

    @classmethod
    def given(cls, ca: Path | None, cert: Path | None, key: Path | None) -> "Tls | None":
        """All three, or None of them; OptionError for some."""
        if ca is None and cert is None and key is None:
            return None
        if ca is None or cert is None or key is None:
            raise OptionError("--tls-ca, --tls-cert and --tls-key belong together; give all three")
        return cls(ca, cert, key)


@dataclass(frozen=True, slots=True)
class Workers:
    """Where blocks run: in this process, on `count` local processes, or on the scheduler at `address`."""

    count: int = 0
    address: str | None = None
    tls: Tls | None = None
    insecure: bool = False
    """True: also on a scheduler that anyone on its network can reach."""

    def __post_init__(self) -> None:
        if self.count < 0:
            raise OptionError(f"--workers {self.count}: give 0 (this process) or a number of processes")
        if self.address is None:
            return
        if self.count:
            raise OptionError("--workers and --scheduler exclude each other: the scheduler has its own workers")
        host = _check_address(self.address)
        if not self.address.startswith("tls:") and not (self.insecure or _is_this_machine(host)):
            raise OptionError(
                f"--scheduler {self.address}: whoever reaches {host} can run programs on its workers; use tls:// with "
                "certificates or an SSH tunnel to localhost, or give --insecure where the network is your own"
            )


def _check_address(address: str) -> str:
    """The host of an address; refuses what a client cannot dial: distributed notices only once it has begun to."""
    from distributed.comm.addressing import get_address_host_port

    try:
        host, port = get_address_host_port(address, strict=True)
    except (ValueError, ImportError) as error:
        problem = str(error)
    else:
        if host and 0 < port <= _LAST_PORT:
            return str(host)
        problem = f"host {host!r}, port {port}"
    raise OptionError(f"--scheduler {address}: not the address of a scheduler ({problem}); give tcp://HOST:PORT")


def _is_this_machine(host: str) -> bool:
    with suppress(ValueError):  # a name
        return ip_address(host).is_loopback
    return host == "localhost"


def not_installed(where: str, found: str) -> OptionError:
    """The error of a place where another version runs, or none."""
    return OptionError(
        f"--scheduler: {where} cannot run fcn-batch {fcn_batch.__version__} {found}; "
        "install the same version there and here"
    )


@contextmanager
def silent() -> Iterator[None]:
    """Keep distributed's log off standard error: what matters of it is raised and told in one line."""
    import distributed

    # each of these may have a handler of its own, from dask's configuration
    names = (distributed.__name__, "distributed.client", "distributed.gc", "tornado", "tornado.application")
    with ExitStack() as restore:
        for handler in {handler for name in names for handler in logging.getLogger(name).handlers}:
            restore.callback(handler.setLevel, handler.level)
            handler.setLevel(logging.CRITICAL + 1)
        yield


def _connect(workers: Workers) -> "Client":
    from distributed import Client

    address = workers.address

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


@contextmanager
def connected(workers: Workers) -> "Iterator[Client]":
    """A client of the asked-for workers; local ones, and their dashboard, listen on loopback only."""
    import dask
    from distributed import Client, LocalCluster

    if workers.address is not None:
        with _connect(workers) as client:
            _check_workers(client, workers.address)
            yield client
        return
    with (
        _deaf_loop() as loop,
        dask.config.set({"distributed.scheduler.allowed-failures": _DEATHS_OF_A_TASK}),
        LocalCluster(
            n_workers=workers.count,
            threads_per_worker=_THREADS_PER_PROCESS,
            processes=True,
            host=_LOOPBACK,
            dashboard_address=f"{_LOOPBACK}:0",
            memory_limit=0,
            silence_logs=logging.CRITICAL,
            loop=loop,
        ) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        yield client


@contextmanager
def _deaf_loop() -> "Iterator[IOLoop]":
    """A loop for a cluster, in a thread that hears no signals; nor do the worker processes that it starts."""
    from distributed.utils import LoopRunner

    runner, others = LoopRunner(), set(active_children())
    resource_tracker.ensure_running()  # begun later, by the thread that starts workers, it would let that hear again
    with unheard():
        runner.start()
    try:
        yield runner.loop
    finally:
        for child in set(active_children()) - others:  # closing was interrupted: Python would wait for them to end
            child.kill()
        runner.stop()
