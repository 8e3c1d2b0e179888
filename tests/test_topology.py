"""Which CPUs there are, and how processes lie on them: made-up machines, and this one."""

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from fcn_batch.pipeline.core.errors import OptionError
from fcn_batch.workflows.processes import topology
from fcn_batch.workflows.processes.topology import Cpu, Layout, Machine, available_cpus, count_of, layout, machine

LAPTOP = Machine(tuple(Cpu(number, number % 4) for number in range(8)))
SERVER = Machine(tuple(Cpu(number, number % 64, number % 64 // 32) for number in range(128)))
"""Two sockets of 32 cores; CPUs 64 and above are the cores' second threads."""
CONTAINER = Machine(tuple(Cpu(number, number) for number in range(64)), quota=2.5)
MASKED = Machine((Cpu(1, 1), Cpu(3, 3), Cpu(65, 1)))
"""Three CPUs of two cores."""


@pytest.mark.parametrize(
    ("there", "cores", "processes", "threads"),
    [(LAPTOP, 4, 1, 4), (SERVER, 64, 16, 4), (CONTAINER, 2, 1, 2), (MASKED, 2, 1, 2)],
)
def test_what_suits_a_machine(there: Machine, cores: int, processes: int, threads: int) -> None:
    assert there.usable == cores
    assert (layout(there).processes, layout(there).threads) == (processes, threads)


@pytest.mark.parametrize("there", [LAPTOP, SERVER, MASKED, Machine((Cpu(7, 7),))])
@pytest.mark.parametrize("processes", [1, 2, 3, 4, 7, 16, 64, 100])
def test_each_process_has_its_own_cores(there: Machine, processes: int) -> None:
    laid = layout(there, processes)
    assert laid.processes == processes
    if processes > there.usable:
        assert laid == Layout(processes, 1)
        return
    assert len(laid.pins) == processes
    assert laid.threads == there.usable // processes
    core = {cpu.number: cpu.core for cpu in there.cpus}
    taken = [{core[number] for number in pins} for pins in laid.pins]
    assert [len(cores) for cores in taken] == [laid.threads] * processes
    assert len(set().union(*taken)) == laid.threads * processes, "none has two"
    for pins, cores in zip(laid.pins, taken, strict=True):
        assert set(pins) == {cpu.number for cpu in there.cpus if cpu.core in cores}, "both threads of a core"


def test_processes_that_suit_stay_on_one_node() -> None:
    node = {cpu.number: cpu.node for cpu in SERVER.cpus}
    for processes in (None, 2, 4, 8, 32, 64):
        assert all(len({node[number] for number in pins}) == 1 for pins in layout(SERVER, processes).pins)


def test_what_is_shared_with_others_is_not_pinned() -> None:
    """A quota is time on any CPU: others may be at those that we would choose."""
    assert layout(CONTAINER, 2) == Layout(2, 1)
    assert layout(Machine(CONTAINER.cpus, quota=64.0), 2).pins, "as much as there is"
    assert Machine(CONTAINER.cpus, quota=0.3).usable == 1


def test_workers_as_they_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(topology, "machine", lambda: SERVER)
    assert [count_of(text) for text in ("auto", "0", "7")] == [16, 0, 7]
    for text in ("-1", "many", "1.5", ""):
        with pytest.raises(OptionError, match=f"^--workers {text}: give auto, 0 .this process. or a number of"):
            count_of(text)


def test_how_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    told = topology.describe_processes
    monkeypatch.setattr(topology, "machine", lambda: SERVER)
    assert told(0, 64) == "this process, 64 threads on 64 cores (128 CPUs, 2 NUMA nodes)"
    assert told(16, 4) == "16 processes x 4 threads on 64 cores (128 CPUs, 2 NUMA nodes), each pinned to its own cores"
    assert told(16, 5) == "16 processes x 5 threads on 64 cores (128 CPUs, 2 NUMA nodes), each not pinned"
    monkeypatch.setattr(topology, "machine", lambda: CONTAINER)
    assert told(2, 1) == "2 processes x 1 thread on 64 cores (64 CPUs, of which 2.5 at a time), each not pinned"


# --- what the system says ------------------------------------------------------------------------------------


def wrote(root: Path, name: str, text: str) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Four CPUs of two cores, on two nodes."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3})
    for number in range(4):
        first = number % 2
        wrote(tmp_path, f"sys/devices/system/cpu/cpu{number}/topology/thread_siblings_list", f"{first},{first + 2}\n")
        (tmp_path / f"sys/devices/system/cpu/cpu{number}/node{first}").mkdir()
    return tmp_path


def test_cores_and_nodes_as_linux_tells_them(system: Path) -> None:
    there = machine(system)
    assert there.cores == ((0, 2), (1, 3))
    assert (there.nodes, there.quota) == (2, None)
    wrote(system, "sys/devices/system/cpu/cpu3/topology/thread_siblings_list", "2-3\n")
    assert machine(system).cores == ((0, 2), (1,), (3,))


@pytest.mark.parametrize(
    ("groups", "files", "quota"),
    [
        ("0::/\n", {"cpu.max": "250000 100000\n"}, 2.5),
        ("0::/a/b\n", {"a/b/cpu.max": "max 100000\n", "a/cpu.max": "50000 100000\n", "cpu.max": "max 1\n"}, 0.5),
        ("0::/a/b\n", {"a/b/cpu.max": "300000 100000\n", "a/cpu.max": "150000 100000\n"}, 1.5),
        ("0::/a\n", {"a/cpu.max": "max 100000\n"}, None),
        ("0::/not/here\n", {"cpu.max": "300000 100000\n"}, 3.0),
        ("4:cpu,cpuacct:/x\n", {"cpu,cpuacct/x/cpu.cfs_quota_us": "150000\n",
                                "cpu,cpuacct/x/cpu.cfs_period_us": "100000\n"}, 1.5),
        ("1:cpu:/x\n", {"cpu/x/cpu.cfs_quota_us": "-1\n", "cpu/x/cpu.cfs_period_us": "100000\n"}, None),
        ("7:memory:/x\n", {"memory/x/cpu.max": "1000 100000\n"}, None),
        ("", {}, None),
    ],
)  # fmt: skip
def test_quotas_of_both_kinds_of_groups(system: Path, groups: str, files: dict[str, str], quota: float | None) -> None:
    wrote(system, "proc/self/cgroup", groups)
    for name, text in files.items():
        wrote(system, f"sys/fs/cgroup/{name}", text)
    assert machine(system).quota == quota


def test_a_system_that_tells_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 3)
    assert machine(tmp_path) == Machine((Cpu(0, 0), Cpu(1, 1), Cpu(2, 2)))


def test_this_machine() -> None:
    code = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
    code += "from fcn_batch.workflows.processes.topology import available_cpus; print(available_cpus())"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout == "1\n"
    assert 1 <= available_cpus() <= (psutil.cpu_count() or 1)


_PINNED = """
import os, threading, time
from fcn_batch.workflows.processes.topology import pin, unpin
early = threading.Thread(target=time.sleep, args=(1,))
early.start()
everything = os.sched_getaffinity(0)
pin({min(everything)})
late = threading.Thread(target=time.sleep, args=(1,))
late.start()
seen = [os.sched_getaffinity(thread.native_id) for thread in (threading.main_thread(), early, late)]
unpin(1)
seen.append(os.sched_getaffinity(0))
assert seen == [{min(everything)}] * 4, seen
unpin(2)
assert os.sched_getaffinity(0) == os.sched_getaffinity(late.native_id) == everything
"""


def test_all_threads_of_a_process_are_pinned() -> None:
    """Those that run already, too; and let go when a plan has more threads than that."""
    subprocess.run([sys.executable, "-c", _PINNED], check=True)
