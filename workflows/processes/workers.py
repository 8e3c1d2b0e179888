"""Which workers do a run's blocks: local processes, those of a Dask scheduler, or jobs of a cluster. How: `crew.py`."""

import json
import shutil
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from importlib.util import find_spec
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING

from fcn_batch.pipeline.core.errors import OptionError
from fcn_batch.pipeline.core.limits import MAX_TEXT, read_bounded
from fcn_batch.pipeline.network.device import cuda_devices
from fcn_batch.workflows.processes.clusters import ClusterFile, Kind
from fcn_batch.workflows.processes.topology import Each

if TYPE_CHECKING:
    from fcn_batch.workflows.processes.crew import Crew

_PROGRAMS = {"slurm": ("sbatch", "scancel"), "pbs": ("qsub", "qdel")}
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
                raise OptionError(
                    "tls-file-missing",
                    "--tls-{name} {path}: no such file; give a PEM file",
                    name=name,
                    path=getattr(self, name),
                )

    @classmethod
    def given(cls, ca: Path | None, cert: Path | None, key: Path | None) -> "Tls | None":
        """Return all three, or None for none of them; OptionError for some."""
        if ca is None and cert is None and key is None:
            return None
        if ca is None or cert is None or key is None:
            raise OptionError("tls-incomplete", "--tls-ca, --tls-cert and --tls-key belong together; give all three")
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
            raise OptionError(
                "workers-invalid", "--workers {value}: give 0 (this process) or a number", value=self.count
            )
        others = {"--scheduler": self.address is not None, "--cluster": self.cluster is not None}
        if all(others.values()) or (others["--scheduler"] and self.count):
            raise OptionError(
                "option-conflict",
                "{one} and --scheduler exclude each other: the scheduler has its own workers",
                one="--cluster" if self.cluster else "--workers",
            )
        if self.cluster is not None:
            check_installed(self.cluster.kind)
        if self.address is not None:
            _ = self.contact

    @property
    def contact(self) -> str:
        """The address of the scheduler, tcp:// or tls://; OptionError when it cannot be one, or is not safe."""
        given = self.address or ""
        contact = _of_file(given) if given.startswith(_FILE) else given
        named = f"{given} ({contact})" if contact != given else given
        host = _check_address(contact, named)
        if not contact.startswith("tls:") and not (self.insecure or _is_this_machine(host)):
            raise OptionError(
                "scheduler-insecure",
                "--scheduler {address}: anyone who reaches {host} can run programs on its workers; use tls:// with "
                "certificates or an SSH tunnel to localhost, or give --insecure where the network is your own",
                address=named,
                host=host,
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
        memory = self.cluster.memory
        return Each(self.cluster.cores, None if memory is None else memory // 2, apart=True)

    @property
    def patience(self) -> float:
        """Seconds without any worker after which a run gives up."""
        if not self.own:
            return _WITHOUT_WORKERS_S
        if self.cluster is None or self.cluster.kind == "cuda":
            return _RESTART_S
        return self.cluster.wait


@cache
def check_installed(kind: Kind) -> int:
    """Refuse when what `kind` needs is not here; return how many GPUs there are, for cuda."""
    package, extra = ("dask_cuda", "cuda") if kind == "cuda" else ("dask_jobqueue", "jobqueue")
    devices = cuda_devices() if kind == "cuda" else 0
    if kind == "cuda" and not devices:
        raise OptionError(
            "cuda-missing", "--cluster cuda: this machine shows 0 CUDA devices (is there a driver? try nvidia-smi)"
        )
    if find_spec(package) is None:
        raise OptionError(
            "extra-missing",
            "--cluster {kind}: {package} is not installed: pip install 'fcn-batch[{extra}]'",
            kind=kind,
            package=package,
            extra=extra,
        )
    for program in _PROGRAMS.get(kind, ()):
        if shutil.which(program) is None:
            raise OptionError(
                "program-missing",
                "--cluster {kind}: no program {program} here; run this where jobs are submitted",
                kind=kind,
                program=program,
            )
    return devices


def _of_file(given: str) -> str:
    """Return the address in a scheduler's file (`dask scheduler --scheduler-file`)."""
    path = Path(given.removeprefix(_FILE))
    try:
        address = json.loads(read_bounded(path, MAX_TEXT))["address"]
        if isinstance(address, str):
            return address
        problem = f"its address is {address!r}"
    except OSError as error:
        problem = error.strerror or str(error)
    except (KeyError, TypeError):
        problem = "it names no address"
    except (ValueError, RecursionError) as error:
        problem = f"it is not JSON: {error}"
    raise OptionError(
        "scheduler-file-invalid",
        "--scheduler file:{path}: {problem}; give the file that `dask scheduler --scheduler-file {path}` writes, once "
        "it runs",
        path=path,
        problem=problem,
    )


def _check_address(address: str, named: str) -> str:
    """Return the host of an address; refuse what a client cannot dial: distributed notices only after it began."""
    from distributed.comm.addressing import get_address_host_port

    try:
        host, port = get_address_host_port(address, strict=True)
        if host and 0 < port <= _LAST_PORT:
            return str(host)
        problem = f"host {host!r}, port {port}"
    except (ValueError, ImportError) as error:
        problem = str(error)
    raise OptionError(
        "scheduler-address",
        "--scheduler {address}: not the address of a scheduler ({problem}); give tcp://HOST:PORT",
        address=named,
        problem=problem,
    )


def _is_this_machine(host: str) -> bool:
    with suppress(ValueError):  # a name
        return ip_address(host).is_loopback
    return host == "localhost"
