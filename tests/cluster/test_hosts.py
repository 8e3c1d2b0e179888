"""Two network namespaces as two hosts: the link is cut, a worker is slow, a worker dies; the map stays the same (G7).

The driver and the scheduler run on one host with a worker, a second worker on the other. Both see the same files.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

from tests.runs import class_map
from tests.twolanes import command, undisturbed

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]
PATIENCE_S = 120.0
TIMEOUT = {"DASK_DISTRIBUTED__COMM__TIMEOUTS__TCP": "15s"}
"""After so long without a word a connection counts as lost; dask's default is 30 s, and 10 are too few for it."""


def _ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(f"ip {' '.join(words)}: {done.stderr.strip()}")


@dataclass(frozen=True, slots=True)
class Host:
    """A network namespace with one link to the other one."""

    name: str
    address: str

    def inside(self, *words: object) -> list[str]:
        """A command as it is given on this host."""
        return ["ip", "netns", "exec", self.name, *map(str, words)]

    def cut(self) -> None:
        """Take the link away: whoever waits for an answer waits in vain."""
        _ip("netns", "exec", self.name, "ip", "link", "set", "fcn0", "down")


@contextmanager
def two_hosts() -> Iterator[tuple[Host, Host]]:
    hosts = [Host(f"fcn-batch-{os.getpid()}-{number}", f"10.231.1.{number}") for number in (1, 2)]
    with ExitStack() as undo:
        for host in hosts:
            _ip("netns", "add", host.name)
            undo.callback(_ip, "netns", "del", host.name)
        _ip("link", "add", "fcn0", "netns", hosts[0].name, "type", "veth", "peer", "fcn0", "netns", hosts[1].name)
        for host in hosts:
            _ip("-n", host.name, "addr", "add", f"{host.address}/24", "dev", "fcn0")
            for link in ("lo", "fcn0"):
                _ip("-n", host.name, "link", "set", link, "up")
        yield hosts[0], hosts[1]


@dataclass
class Cluster:
    """A scheduler and a worker on the first host, another worker on the second one."""

    here: Host
    there: Host
    folder: Path
    _processes: "list[subprocess.Popen[bytes]]" = field(default_factory=list)

    def __enter__(self) -> "Cluster":
        contact = self.folder / "scheduler.json"
        self._start(self.here, "dask_scheduler", "--host", self.here.address, "--port", 0, "--no-dashboard",
                    "--scheduler-file", contact)  # fmt: skip
        _until(contact.exists)
        self.address = json.loads(contact.read_text())["address"]
        for host in (self.here, self.there):
            self._start(host, "dask_worker", self.address, "--nthreads", 1, "--no-dashboard", "--host", host.address,
                        "--local-directory", self.folder)  # fmt: skip
        return self

    def _start(self, host: Host, module: str, *options: object) -> None:
        words = host.inside(sys.executable, "-m", f"distributed.cli.{module}", *options)
        with (self.folder / f"{module}-{len(self._processes)}.log").open("wb") as log:
            process = subprocess.Popen(
                words, stdout=log, stderr=log, start_new_session=True, cwd=self.folder, env={**os.environ, **TIMEOUT}
            )
        self._processes.append(process)

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            for victim in (*psutil.Process(process.pid).children(recursive=True), process):
                victim.kill()
            process.wait()

    def worker_there(self) -> list[psutil.Process]:
        """The worker on the other host, with the nanny that watches it."""
        nanny = psutil.Process(self._processes[-1].pid)
        return [nanny, *nanny.children(recursive=True)]


def _until(happens: object) -> None:
    deadline = time.monotonic() + PATIENCE_S
    assert callable(happens)
    while not happens():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return undisturbed(tmp_path_factory.mktemp("base"), 8000)


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("network namespaces need root and the program ip (package iproute2)")
    with ExitStack() as stack:
        try:
            here, there = stack.enter_context(two_hosts())
        except OSError as error:
            pytest.skip(f"network namespaces cannot be made here: {error}")
        yield stack.enter_context(Cluster(here, there, tmp_path))


@contextmanager
def running(base: Path, cluster: Cluster) -> "Iterator[subprocess.Popen[str]]":
    """A run of which each worker has finished some blocks."""
    words = command(base, cluster.folder / "out", "--scheduler", cluster.address, "--insecure", "--on-error", "fail")
    with subprocess.Popen(
        cluster.here.inside(*words),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **TIMEOUT},
    ) as run:
        try:
            _until(lambda: run.poll() is not None or len(done_by(cluster)) == 2)
            assert run.poll() is None, run.stderr and run.stderr.read()
            yield run
        finally:
            run.kill()


def done_by(cluster: Cluster) -> Counter[str]:
    """Blocks that are done, by the number of the process."""
    receipts = (cluster.folder / "out" / "a.partial" / "receipts").glob("0*.json")
    found = [re.search(r'"by":"process (\d+)', path.read_text()) for path in receipts]
    return Counter(match[1] for match in found if match)


Record = Callable[[str, object], None]


def ended_well(run: "subprocess.Popen[str]", base: Path, cluster: Cluster, record: Record) -> None:
    out, err = run.communicate(timeout=PATIENCE_S)
    assert run.returncode == 0, err
    assert "Traceback" not in err
    assert len(out.splitlines()) == 3
    made, wanted = class_map(cluster.folder / "out", "a"), class_map(base / "reference", "a")
    assert (made == wanted).all()
    report = json.loads((cluster.folder / "out" / "a.run.json").read_text())
    shares = sorted(report["timing"]["blocks_done_by"].values())
    record("measured", f"same map; blocks by each worker: {', '.join(map(str, shares))}")


def test_a_link_that_is_cut(base: Path, cluster: Cluster, record_property: Record) -> None:
    record_property("scenario", "two hosts, the link to one is cut")
    with running(base, cluster) as run:
        cluster.there.cut()
        ended_well(run, base, cluster, record_property)


def test_a_worker_that_dies(base: Path, cluster: Cluster, record_property: Record) -> None:
    record_property("scenario", "two hosts, the worker of one dies")
    with running(base, cluster) as run:
        for victim in cluster.worker_there():
            victim.kill()
        ended_well(run, base, cluster, record_property)


def test_a_worker_that_is_slow(base: Path, cluster: Cluster, record_property: Record) -> None:
    """Stopped for nine tenths of the time."""
    record_property("scenario", "two hosts, one worker stopped for nine tenths of the time")
    over = threading.Event()

    def slow_down(processes: Sequence[psutil.Process]) -> None:
        while not over.wait(0.02):
            for what in (signal.SIGSTOP, signal.SIGCONT):
                for process in processes:
                    process.send_signal(what)
                if what == signal.SIGSTOP:
                    over.wait(0.18)

    with running(base, cluster) as run:
        slow = cluster.worker_there()[1:]
        thread = threading.Thread(target=slow_down, args=(slow,))
        thread.start()
        try:
            ended_well(run, base, cluster, record_property)
        finally:
            over.set()
            thread.join()
    report = json.loads((cluster.folder / "out" / "a.run.json").read_text())
    shares = report["timing"]["blocks_done_by"]
    numbers = {str(process.pid) for process in slow}
    theirs = sum(count for name, count in shares.items() if name.split()[1] in numbers)
    assert 0 < theirs < sum(shares.values()) / 2
