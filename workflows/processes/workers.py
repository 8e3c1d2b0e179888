"""Which workers do a run's blocks: local processes, those of a Dask scheduler, or jobs of a cluster. How: `crew.py`."""

import json
from contextlib import suppress
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING

from fcn_batch.pipeline.core.errors import OptionError
from fcn_batch.pipeline.core.limits import MAX_TEXT, read_bounded
from fcn_batch.workflows.processes.clusters import ClusterFile, seconds_of
from fcn_batch.workflows.processes.jobqueue import check_installed
from fcn_batch.workflows.processes.topology import Each

if TYPE_CHECKING:
    from fcn_batch.workflows.processes.crew import Crew

_LAST_PORT = 65535
_FILE = "file:"
_WITHOUT_WORKERS_S = 60.0
"""Long enough for a batch system to start a lost worker again."""
_RESTART_S = 600.0
"""Lost processes of this machine are started again at once; beside other work that took more than a minute."""


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
    """Where blocks run: in this process, on `count` local processes, on the scheduler at `address`, on jobs."""

    count: int = 0
    address: str | None = None
    """Of a scheduler: tcp://HOST:PORT, tls://HOST:PORT, or file:PATH of the file that a scheduler writes."""
    tls: Tls | None = None
    insecure: bool = False
    """True: also on a scheduler that anyone on its network can reach."""
    cluster: ClusterFile | None = None
    """Jobs of a batch system, or this machine's GPUs; `count` of them, if that is not 0."""
    crew: "Crew | None" = field(default=None, compare=False, repr=False)
    """Holds the connection for the next input; None: it is closed after each round of blocks."""

    def __post_init__(self) -> None:
        if self.count < 0:
            raise OptionError(f"--workers {self.count}: give 0 (this process) or a number of processes")
        if self.cluster is not None:
            if self.address is not None:
                raise OptionError("--cluster and --scheduler exclude each other: a cluster has a scheduler of its own")
            check_installed(self.cluster.kind)
        if self.address is None:
            return
        if self.count:
            raise OptionError("--workers and --scheduler exclude each other: the scheduler has its own workers")
        _ = self.contact

    @property
    def contact(self) -> str:
        """The address of the scheduler, tcp:// or tls://; OptionError when it cannot be one, or is not safe."""
        given = self.address or ""
        contact = _of_file(given) if given.startswith(_FILE) else given
        said = f"{given} ({contact})" if contact != given else given
        host = _check_address(contact, said)
        if not contact.startswith("tls:") and not (self.insecure or _is_this_machine(host)):
            raise OptionError(
                f"--scheduler {said}: whoever reaches {host} can run programs on its workers; use tls:// with "
                "certificates or an SSH tunnel to localhost, or give --insecure where the network is your own"
            )
        return contact

    @property
    def elsewhere(self) -> bool:
        """True when this process computes nothing itself."""
        return bool(self.count or self.address is not None or self.cluster is not None)

    @property
    def own(self) -> bool:
        """True when they were started for this run, and end with it."""
        return self.address is None

    @property
    def processes(self) -> int | None:
        """How many; None: as many as the scheduler has."""
        if self.address is not None:
            return None
        if self.cluster is not None:
            return self.count or self.cluster.workers or check_installed(self.cluster.kind)
        return max(1, self.count)

    @property
    def each(self) -> Each:
        """What each process has, if it is not a share of this machine."""
        if self.cluster is None:
            return Each()
        memory = self.cluster.bytes
        return Each(self.cluster.cores, None if memory is None else memory // 2, apart=True)

    @property
    def patience(self) -> float:
        """Seconds that lost ones may be waited for."""
        if not self.own:
            return _WITHOUT_WORKERS_S
        if self.cluster is None or self.cluster.kind == "cuda":
            return _RESTART_S
        return seconds_of(self.cluster.wait)

    @property
    def told(self) -> str:
        """Which, in messages."""
        return self.address or "of this run's workers"


def _of_file(given: str) -> str:
    """The address in a scheduler's file (`dask scheduler --scheduler-file`)."""
    path = Path(given.removeprefix(_FILE))
    try:
        found = json.loads(read_bounded(path, MAX_TEXT))
        address = found["address"]
        if not isinstance(address, str):
            raise TypeError(f"its address is {address!r}")
    except OSError as error:
        problem = error.strerror or str(error)
    except (KeyError, TypeError):
        problem = "it names no address"
    except (ValueError, RecursionError) as error:
        problem = f"it is not JSON: {error}"
    else:
        return address
    raise OptionError(
        f"--scheduler {given}: {problem}; give the file that `dask scheduler --scheduler-file {path}` writes, once it "
        "runs"
    )


def _check_address(address: str, said: str) -> str:
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
    raise OptionError(f"--scheduler {said}: not the address of a scheduler ({problem}); give tcp://HOST:PORT")


def _is_this_machine(host: str) -> bool:
    with suppress(ValueError):  # a name
        return ip_address(host).is_loopback
    return host == "localhost"
