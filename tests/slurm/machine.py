"""A SLURM of one node on this machine: its configuration, its three daemons on loopback, and their end.

Everything lies in one folder, with a key and a socket of its own for munge: nothing of the system is changed, and a
SLURM or munge that runs here anyway is left alone. Needs root where jobs are to be put into cgroups.
"""

import getpass
import os
import re
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

PACKAGES = ("slurmctld", "slurmd", "slurm-client", "munge")
PROGRAMS = ("slurmctld", "slurmd", "munged", "sbatch", "scontrol", "scancel")
REQUEUE_S = 5
"""Seconds that a requeued job waits: as long as its credentials are good for, by default 120."""
_T = TypeVar("_T")
_CGROUPS = Path("/sys/fs/cgroup")
_START_S = 60.0
_SLURM_CONF = """\
ClusterName=test
SlurmctldHost={name}({address})
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
CryptoType=crypto/munge
AuthInfo=socket={folder}/munge/socket,cred_expire={requeue_s}
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
SlurmctldPort={controller_port}
SlurmdPort={node_port}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
FirstJobId={first_job}
ProctrackType={proctrack}
TaskPlugin={task}
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
GresTypes=gpu
MpiDefault=none
SwitchType=switch/none
ReturnToService=2
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=5,bf_interval=5
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=0
KillWait=5
MinJobAge=3600
PropagateResourceLimits=NONE
NodeName={name} NodeAddr={address} NodeHostname={name} Gres=gpu:1 {hardware} State=UNKNOWN
PartitionName=main Nodes={name} Default=YES MaxTime=01:00:00 State=UP PriorityTier=10 PreemptMode=off
PartitionName=scavenge Nodes={name} MaxTime=01:00:00 State=UP PriorityTier=1 PreemptMode=requeue GraceTime=5
"""
_CGROUP_CONF = """\
CgroupAutomount=yes
CgroupPlugin=cgroup/v1
CgroupMountpoint=/sys/fs/cgroup
ConstrainRAMSpace=yes
ConstrainCores=no
ConstrainDevices=no
"""


@dataclass(frozen=True, slots=True)
class Host:
    """What this machine is called, which SLURM's daemons look up to know where to listen."""

    name: str
    address: str
    prefix: tuple[str, ...] = ()
    """What a daemon is started with, to see that name."""

    @classmethod
    def found(cls) -> "Host | None":
        """Its own name if that is for loopback, else localhost in a namespace for names; None: there is no name."""
        name, address = socket.gethostname().split(".")[0], None
        with suppress(OSError):
            address = socket.gethostbyname(name)
        if address and address.startswith("127."):
            return cls(name, address)
        if not subprocess.run(["unshare", "--uts", "true"], capture_output=True, check=False).returncode:
            rename = 'hostname localhost && exec "$@"'
            return cls("localhost", "127.0.0.1", ("unshare", "--uts", "sh", "-c", rename, "sh"))
        return cls(name, address) if address else None


@dataclass(frozen=True, slots=True)
class Slurm:
    """A SLURM that runs."""

    folder: Path
    host: Host
    cgroups: bool
    """True: a job that takes more memory than it asked for is killed."""

    def state(self, job: str) -> dict[str, str]:
        """What `scontrol show job` tells of a job or of one task of an array, 5_1."""
        told = self.run("scontrol", "show", "job", job, "--oneliner")
        return dict(re.findall(r"(\w+)=(\S*)", told))

    def run(self, *words: str) -> str:
        """What a program of SLURM prints; it must end well."""
        ran = subprocess.run(words, capture_output=True, text=True, check=False, timeout=60)
        assert ran.returncode == 0, f"{words}: {ran.stdout}{ran.stderr}"
        return ran.stdout

    def wait(self, job: str, *wanted: str, seconds: float = 120) -> dict[str, str]:
        """Its state when that is one of `wanted`."""

        def found() -> dict[str, str] | None:
            state = self.state(job)
            return state if state["JobState"] in wanted else None

        return until(found, seconds, lambda: f"{job} is not {wanted}: {self.state(job)}")


def until(look: Callable[[], _T | None], seconds: float, what: Callable[[], str]) -> _T:
    """What `look` finds as soon as that is something; AssertionError saying `what` after so many seconds."""
    deadline = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < deadline, what()
        time.sleep(0.1)
    return found


def missing() -> list[str]:
    """Programs that are not installed."""
    return [name for name in PROGRAMS if shutil.which(name, path=_path()) is None]


def install() -> str:
    """Install Debian's packages; why not, if that is not possible, else an empty string."""
    if os.geteuid() or shutil.which("apt-get") is None:
        return f"{', '.join(missing())} not installed, and only root can install {' '.join(PACKAGES)} with apt-get"
    quiet = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for words in (["update"], ["install", "-y", "--no-install-recommends", *PACKAGES]):
        ran = subprocess.run(["apt-get", *words], env=quiet, capture_output=True, text=True, check=False, timeout=250)
        if ran.returncode:
            return f"apt-get {words[0]} failed: {ran.stderr.strip()[-300:]}"
    return ""


@contextmanager
def started(folder: Path, host: Host) -> Iterator[Slurm]:
    """A SLURM with an idle node, as long as this lasts; `SLURM_CONF` names it to all programs meanwhile."""
    cgroups = cgroups_work()
    for name in ("munge", "state", "spool"):
        (folder / name).mkdir(mode=0o755)
    _write_configuration(folder, host, cgroups=cgroups)
    with ExitStack() as undo:
        _start_munge(folder, undo)
        undo.callback(_set_environment, {name: os.environ.get(name) for name in ("SLURM_CONF", "PATH")})
        _set_environment({"SLURM_CONF": str(folder / "slurm.conf"), "PATH": _path()})
        slurm = Slurm(folder, host, cgroups)
        undo.enter_context(_daemon([*host.prefix, "slurmctld", "-D", "-c"], folder / "slurmctld.out"))
        undo.enter_context(_daemon([*host.prefix, "slurmd", "-D", "-N", host.name], folder / "slurmd.out"))
        undo.callback(_cancel_all)
        until(lambda: _idle() or None, _START_S, lambda: f"the node is not idle: {_logs(folder)}")
        yield slurm


def cgroups_work() -> bool:
    """True when jobs can be put into groups (of version 1) with a limit of memory."""
    probes = [_CGROUPS / kind / f"fcn-batch-{os.getpid()}" for kind in ("memory", "freezer")]
    try:
        for probe in probes:
            if not (probe.parent / "tasks").exists():
                return False
            probe.mkdir()
            probe.rmdir()
    except OSError:
        return False
    return True


def _write_configuration(folder: Path, host: Host, *, cgroups: bool) -> None:
    controller_port, node_port = _free_ports(2)
    text = _SLURM_CONF.format(
        name=host.name,
        address=host.address,
        user=getpass.getuser(),
        folder=folder,
        requeue_s=REQUEUE_S,
        controller_port=controller_port,
        node_port=node_port,
        first_job=1000 * (1 + secrets.randbelow(60000)),  # another SLURM here must not have cgroups of the same names
        proctrack="proctrack/cgroup" if cgroups else "proctrack/linuxproc",
        task="task/cgroup" if cgroups else "task/none",
        hardware=_hardware(),
    )
    (folder / "slurm.conf").write_text(text)
    (folder / "cgroup.conf").write_text(_CGROUP_CONF)
    (folder / "gres.conf").write_text(f"NodeName={host.name} Name=gpu File=/dev/null\n")


def _hardware() -> str:
    """CPUs and memory of this machine, as the node is to have them: `slurmd -C` counts them."""
    told = subprocess.run(["slurmd", "-C"], env={"PATH": _path()}, capture_output=True, text=True, check=True).stdout
    return " ".join(re.findall(r"\b(?:CPUs|Boards|SocketsPerBoard|CoresPerSocket|ThreadsPerCore|RealMemory)=\d+", told))


def _path() -> str:
    return f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"  # where daemons are, and not every user looks


def _free_ports(count: int) -> list[int]:
    with ExitStack() as opened:
        sockets = [opened.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def _start_munge(folder: Path, undo: ExitStack) -> None:
    place = folder / "munge"
    (place / "key").write_bytes(secrets.token_bytes(128))
    (place / "key").chmod(0o400)
    files = [f"--{kind}-file={place / kind}" for kind in ("key", "log", "pid", "seed")]
    # --force: the folders above may be writable for all, as /tmp is
    undo.enter_context(
        _daemon(["munged", "--foreground", "--force", f"--socket={place / 'socket'}", *files], place / "out")
    )
    until(lambda: (place / "socket").exists() or None, _START_S, (place / "out").read_text)


@contextmanager
def _daemon(words: list[str], log: Path) -> Iterator[None]:
    """A daemon in the foreground, that ends with this or with this process."""
    with (
        log.open("w") as out,
        subprocess.Popen(
            ["setpriv", "--pdeathsig", "TERM", *words], env={**os.environ, "PATH": _path()}, stdout=out, stderr=out
        ) as process,
    ):
        try:
            yield
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()


def _set_environment(values: dict[str, str | None]) -> None:
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def _idle() -> bool:
    told = subprocess.run(["sinfo", "--noheader", "--format=%T"], capture_output=True, text=True, check=False).stdout
    return set(told.split()) == {"idle"}


def _cancel_all() -> None:
    """End what is left of jobs, so that nothing of them outlives the daemons."""
    with suppress(subprocess.TimeoutExpired, AssertionError):
        subprocess.run(["scancel", "--user", str(os.geteuid())], check=False, capture_output=True, timeout=20)
        until(lambda: _idle() or None, 20, lambda: "jobs are left")


def _logs(folder: Path) -> str:
    return "\n".join(path.read_text()[-2000:] for path in sorted(folder.glob("slurm*d.log")))
